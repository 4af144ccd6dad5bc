"""A second run in a folder: what is the same, what counts, what is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from internvl_chat.errors import CheckpointError
from internvl_chat.train.arguments import DataArguments, ModelArguments
from internvl_chat.train.effects import EFFECTS, settled, zero_settings
from internvl_chat.train.rerun import (
    UNKNOWN,
    Comparison,
    Earlier,
    RunRecord,
    compare,
    decide,
    refuse_early,
)
from internvl_chat.train.trainer_arguments import TrainArguments

FLAGS = [f for kind in (ModelArguments, DataArguments, TrainArguments) for f in fields(kind)]
DEFAULTS = {f.name: f.default for f in FLAGS}
SHAPES = {
    "name": "shapes",
    "root": "data",
    "annotation": "data/a.jsonl",
    "records": 8,
    "records_sha256": "aa",
    "files": "ff",
    "repeat_time": 1,
}


def record(batch: int = 8, contents: dict[str, Any] | None = None, **given: Any) -> RunRecord:
    """A run that was told ``given`` on the command line; other arguments have these values."""
    arguments = {
        "model_name_or_path": "models/a",
        "meta_path": "metas/a.json",
        "learning_rate": 1e-4,
        "max_steps": 6,
        "num_train_epochs": 3.0,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        "optim": "adamw_torch_fused",
        "seed": 42,
        "data_seed": None,
        "max_seq_length": 256,
        "max_packed_tokens": 4096,
        "max_dynamic_patch": 1,
        "freeze_llm": False,
        "use_llm_lora": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "report_to": ["tensorboard"],
        "dataloader_num_workers": 4,
        "save_steps": 500,
        "eval_meta_path": None,
        "deepspeed": None,
        **given,
    }
    return RunRecord(
        arguments=arguments, given=given, global_batch_size=batch, contents=contents or {}
    )


def differences(old: RunRecord, new: RunRecord) -> dict[str, list[str]]:
    """Differences by effect, as they are told."""
    found: dict[str, list[str]] = {}
    for one in compare(old, new, DEFAULTS).differences:
        found.setdefault(one.effect, []).append(str(one))
    return found


def test_every_flag_stands_in_one_class() -> None:
    assert sorted(EFFECTS) == sorted(f.name for f in FLAGS)


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        ({}, {}, {}),
        ({}, {"learning_rate": 1e-6}, {"rate": ["--learning_rate 0.0001 -> 1e-06"]}),
        ({}, {"max_steps": 9}, {"length": ["--max_steps 6 -> 9"]}),
        ({}, {"use_llm_lora": 8}, {"result": ["--use_llm_lora 0 -> 8"]}),
        ({}, {"freeze_llm": True}, {"result": ["--freeze_llm False -> True"]}),
        ({}, {"data_seed": 7}, {"result": ["--data_seed none -> 7"]}),
        ({}, {"seed": 7}, {"result": ["--seed 42 -> 7"]}),
        ({}, {"logging_steps": 5}, {"none": ["--logging_steps 1 -> 5"]}),
        ({}, {"save_steps": 5}, {"none": ["--save_steps 500 -> 5"]}),
        # The same in other words.
        ({}, {"data_seed": 42}, {}),
        ({}, {"optim": "adamw_torch"}, {}),
        ({"lr_scheduler_kwargs": None}, {"lr_scheduler_kwargs": {}}, {}),
        ({"val_split": 0.1}, {"val_split": 0.2}, {"result": ["--val_split 0.1 -> 0.2"]}),
        (
            {"val_split": 0.1, "val_split_seed": 42},
            {"val_split": 0.1, "val_split_seed": 1},
            {"result": ["--val_split_seed 42 -> 1"]},
        ),
        ({"max_samples": None}, {"max_samples": 9}, {"result": ["--max_samples none -> 9"]}),
        # How a run is stopped early decides when it ends; by what, which model it gives.
        (
            {"early_stopping_patience": 2, "eval_steps": 5},
            {"early_stopping_patience": 3, "eval_steps": 6},
            {
                "length": ["--early_stopping_patience 2 -> 3"],
                "result": ["--eval_steps 5 -> 6"],
            },
        ),
        # Without effect in both runs.
        ({"val_split_seed": 42}, {"val_split_seed": 1}, {}),
        ({"early_stopping_threshold": 0.0}, {"early_stopping_threshold": 1.0}, {}),
        ({}, {"max_packed_tokens": 8192}, {}),
        ({}, {"max_dynamic_patch": 6}, {}),
        (
            {"lr_scheduler_type": "constant"},
            {"lr_scheduler_type": "constant", "warmup_steps": 5},
            {},
        ),
        # One of them makes the other count; what stays as it was is not told.
        (
            {"dynamic_image_size": False, "use_thumbnail": False},
            {"dynamic_image_size": True, "use_thumbnail": False, "max_dynamic_patch": 6},
            {"result": ["--dynamic_image_size False -> True", "--max_dynamic_patch 1 -> 6"]},
        ),
        (
            {"use_packed_ds": False},
            {"use_packed_ds": True, "max_packed_tokens": 8192},
            {"result": ["--use_packed_ds False -> True", "--max_packed_tokens 4096 -> 8192"]},
        ),
        # Validation counts where it chooses the model.
        ({}, {"eval_meta_path": "held_out.json"}, {}),
        (
            {"load_best_model_at_end": True},
            {"load_best_model_at_end": True, "save_steps": 5},
            {"result": ["--save_steps 500 -> 5"]},
        ),
        # Flags that a record of an earlier version does not know.
        ({}, {"image_backend": "pillow"}, {}),
        ({}, {"image_backend": "fast"}, {"result": ["--image_backend (not known then) -> fast"]}),
        # A DeepSpeed file: how it is sharded changes nothing.
        ({}, {"deepspeed": {"zero_optimization": {"stage": 2}, "gradient_clipping": "auto"}}, {}),
        ({}, {"deepspeed": {"gradient_clipping": 1.0, "bf16": {"enabled": True}}}, {}),
        ({}, {"deepspeed": {"fp16": {"enabled": "auto", "loss_scale": 0}}}, {}),
        (
            {"vision_lr": 1e-5, "mlp_lr": None, "llm_lr": None, "learning_rate": 1e-5},
            {"vision_lr": 2e-5, "mlp_lr": None, "llm_lr": None, "learning_rate": 1e-5},
            {"rate": ["--vision_lr 1e-05 -> 2e-05"]},  # as given, though it was the run's rate
        ),
        (
            {},
            {"deepspeed": {"gradient_clipping": 0.5}},
            {"result": ["--deepspeed gradient_clipping none -> 0.5"]},
        ),
        (
            {"deepspeed": {"scheduler": {"type": "WarmupLR"}}},
            {"deepspeed": {"optimizer": {"type": "AdamW"}}},
            {"result": ["--deepspeed scheduler.type WarmupLR -> none"]},
        ),
    ],
)
def test_what_differs(then: dict[str, Any], now: dict[str, Any], told: dict[str, Any]) -> None:
    assert differences(record(**then), record(**now)) == told


def test_a_default_that_changed_was_asked_for_by_nobody() -> None:
    old, new = record(), record()
    old = RunRecord(
        arguments={**old.arguments, "max_seq_length": 128},
        given={},
        global_batch_size=8,
        contents={},
    )
    found = compare(old, new, DEFAULTS)
    assert [str(one) for one in found.of("result")] == [
        "--max_seq_length 128 -> 256 (the default has changed: give --max_seq_length 128)"
    ]
    assert found.asked("result") == ()


@pytest.mark.parametrize("dropped", [{"vision_lr": 1e-5}, {"early_stopping_patience": 2}])
def test_what_follows_from_another_flag_is_no_default_that_changed(dropped: dict[str, Any]) -> None:
    old, new = record(), record()
    old = RunRecord(
        arguments={**old.arguments, **dropped, "freeze_backbone": False},
        given=dropped,
        global_batch_size=8,
        contents={},
    )
    new = RunRecord(
        arguments={**new.arguments, "freeze_backbone": True},
        given={},
        global_batch_size=8,
        contents={},
    )
    found = compare(old, new, DEFAULTS).asked("result")
    assert "--freeze_backbone False -> True" in map(str, found)


def test_what_is_assumed_of_what_trains_is_asked_for_by_what_is_said() -> None:
    old, new = record(freeze_llm=True, freeze_mlp=False), record(freeze_mlp=True)
    old = replace(old, given={"freeze_llm": True})
    new = replace(new, arguments={**new.arguments, "freeze_llm": True, "learning_rate": 1e-3})
    found = compare(old, replace(new, given={}), DEFAULTS)
    asked = [one.name for one in found.asked("result", "rate")]
    assert asked == ["--learning_rate", "--freeze_mlp"]
    same = replace(new, given=dict(old.given))  # by a version with other defaults
    assert compare(old, same, DEFAULTS).asked("result", "rate") == ()


def test_ranks_and_accumulation_may_change_as_long_as_the_global_batch_does_not() -> None:
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    assert differences(record(), record(**split)) == {}
    assert differences(record(), record(batch=16, **split)) == {
        "result": ["the global batch size 8 -> 16"]
    }


@pytest.mark.parametrize(
    ("now", "content", "told"),
    [
        ("metas/a.json", SHAPES, []),
        ("/elsewhere/b.json", {**SHAPES, "annotation": "/elsewhere/a.jsonl"}, []),
        ("metas/a.json", {**SHAPES, "name": "renamed"}, []),
        (
            "metas/a.json",
            {**SHAPES, "records_sha256": "bb", "records": 9},
            ['entry "shapes" annotation data/a.jsonl (8 records) -> data/a.jsonl (9 records)'],
        ),
        (
            "metas/a.json",
            {**SHAPES, "records_sha256": "bb"},
            [
                'entry "shapes" annotation data/a.jsonl (8 records) -> data/a.jsonl (8 records) of '
                "other content"
            ],
        ),
        ("metas/a.json", {**SHAPES, "repeat_time": 2}, ['entry "shapes" repeat_time 1 -> 2']),
        ("metas/a.json", {**SHAPES, "max_samples": 2}, ['entry "shapes" max_samples none -> 2']),
        ("metas/a.json", {**SHAPES, "weight": 3.0}, ['entry "shapes" weight 1.0 -> 3.0']),
        (
            "metas/a.json",
            {**SHAPES, "root": "data224", "files": "gg"},
            ['entry "shapes" root data -> data224'],
        ),
        (
            "metas/a.json",
            {**SHAPES, "files": "gg"},
            ['entry "shapes" root data -> data (other files in it)'],
        ),
    ],
)
def test_data_is_compared_by_content(now: str, content: dict[str, Any], told: list[str]) -> None:
    old = record(contents={"meta_path": [SHAPES]})
    new = record(contents={"meta_path": [content]}, meta_path=now)
    found = compare(old, new, DEFAULTS)
    assert [str(one) for one in found.differences] == [f"--meta_path {text}" for text in told]


def test_a_root_that_moved_is_told_and_goes_on() -> None:
    new = record(contents={"meta_path": [{**SHAPES, "root": "/scratch/7/data"}]})
    found = compare(record(contents={"meta_path": [SHAPES]}), new, DEFAULTS)
    assert found.differences == ()
    assert found.uncertain == (
        '--meta_path entry "shapes" root data -> /scratch/7/data: taken for the same files',
    )


def test_datasets_that_came_or_went() -> None:
    new = record(contents={"meta_path": [SHAPES, {**SHAPES, "name": "b"}]})
    found = compare(record(contents={"meta_path": [SHAPES]}), new, DEFAULTS)
    assert [str(one) for one in found.differences] == ["--meta_path datasets shapes -> shapes, b"]


@pytest.mark.parametrize(
    ("path", "old", "new", "told", "noted"),
    [
        ("models/a", "11", "11", [], False),
        ("/moved/b", "11", "11", [], False),
        ("models/a", "11", "22", ["models/a -> models/a (other files under this path)"], False),
        ("models/b", "11", "22", ["models/a -> models/b"], False),
        # The former files are gone or were not looked at: the name is all that is known.
        ("models/a", None, "22", [], False),
        ("/moved/a", None, "22", [], True),
        ("models/b", None, "22", ["models/a -> models/b"], False),
        (None, None, None, ["models/a -> none"], False),
    ],
)
def test_models_are_compared_by_content(
    path: str | None, old: str | None, new: str | None, told: list[str], noted: bool
) -> None:
    found = compare(
        record(contents={"model_name_or_path": old}),
        record(contents={"model_name_or_path": new}, model_name_or_path=path),
        DEFAULTS,
    )
    assert [str(one) for one in found.differences] == [
        f"--model_name_or_path {text}" for text in told
    ]
    assert bool(found.uncertain) is noted


# ---- what becomes of the run --------------------------------------------------------------------

SAME = compare(record(), record(), DEFAULTS)
RATE = compare(record(), record(learning_rate=1e-6), DEFAULTS)
OTHER = compare(record(), record(use_llm_lora=8), DEFAULTS)
PATIENT = {"early_stopping_patience": 3, "early_stopping_threshold": 0.0}
SHORTER, LONGER = (
    compare(record(**PATIENT), record(**{**PATIENT, "early_stopping_patience": count}), DEFAULTS)
    for count in (2, 5)
)


def finished(step: int, comparison: Comparison, **more: Any) -> Earlier:
    """A finished run with its last checkpoint."""
    values: dict[str, Any] = {
        "checkpoint": "out/checkpoint-6",
        "checkpoint_step": step,
        "planned_steps": step,
        "resumed_run": comparison,
        **more,
    }
    values = {"holds_model": True, "record_is_known": True, **values}
    return Earlier(finished_step=step, finished_run=comparison, **values)


def unfinished(step: int, comparison: Comparison, planned: int = 6) -> Earlier:
    return Earlier(
        checkpoint=f"out/checkpoint-{step}",
        checkpoint_step=step,
        planned_steps=planned,
        resumed_run=comparison,
    )


def mixing(beside: Comparison) -> Earlier:
    """Another folder's checkpoint is named, and this one holds an unfinished run's."""
    return Earlier(
        checkpoint="b/checkpoint-2",
        checkpoint_step=2,
        resumed_run=SAME,
        checkpoint_beside="out/checkpoint-4",
        run_beside=beside,
    )


def stopped(comparison: Comparison, **more: Any) -> Earlier:
    """A finished run that stopped early."""
    values = {"finished_plan": 20, "would_stop_at": 6, "planned_steps": 20, **more}
    return finished(6, comparison, **values)


NOTHING_TRAINED = "holds the finished run of other arguments (6 steps); nothing would be trained"
CASES = [
    (Earlier(), 6, "anew"),
    (finished(6, SAME), 6, "complete"),
    (finished(6, UNKNOWN, record_is_known=False), 6, "whether this run is complete cannot be told"),
    (finished(6, SAME, checkpoint=None), 6, "complete"),
    (finished(6, SAME), 9, "go on"),
    (finished(6, RATE), 9, "go on"),
    (finished(6, RATE), 6, f"{NOTHING_TRAINED} now: --learning_rate 0.0001 -> 1e-06"),
    (finished(6, SAME), 4, f"{NOTHING_TRAINED} now: steps 6 -> 4"),
    (finished(6, OTHER), 6, "was written with other arguments: --use_llm_lora 0 -> 8"),
    (finished(6, OTHER), 9, "was written with other arguments: --use_llm_lora 0 -> 8"),
    (finished(6, OTHER, checkpoint=None), 6, f"{NOTHING_TRAINED} now: --use_llm_lora 0 -> 8"),
    (finished(6, SAME, checkpoint=None), 9, "no valid checkpoint; going on to step 9 is not"),
    # Stopped early at 6 of 20 steps, as this run would have.
    (stopped(SAME), 20, "complete"),
    (stopped(SAME), 30, "complete"),
    (stopped(SAME, checkpoint=None), 20, "complete"),
    (stopped(SAME), 6, f"{NOTHING_TRAINED} now: steps 20 -> 6"),
    (stopped(RATE), 20, f"{NOTHING_TRAINED} now: --learning_rate 0.0001 -> 1e-06"),
    (stopped(UNKNOWN, record_is_known=False), 20, "whether this run is complete cannot be told"),
    # This run would have stopped before, or would not have stopped.
    (stopped(SHORTER, would_stop_at=4), 20, f"{NOTHING_TRAINED} now: --early_stopping_patience 3"),
    (finished(6, SHORTER, would_stop_at=4), 6, f"{NOTHING_TRAINED} now: --early_stopping_patien"),
    (stopped(LONGER, would_stop_at=None), 20, "go on"),
    (stopped(LONGER, would_stop_at=None, checkpoint=None), 20, "no valid checkpoint; going on"),
    (finished(6, LONGER), 6, "complete"),
    # Lengthened, and stopped before its end: the finished model is still that of 6 steps.
    (finished(6, SAME, checkpoint_step=8, planned_steps=9, resumed_run=RATE), 6, "complete"),
    (finished(6, RATE, checkpoint_step=8, planned_steps=9, resumed_run=SAME), 9, "go on"),
    # Another folder's checkpoint was named.
    (finished(6, OTHER, checkpoint="b/checkpoint-2", resumed_run=SAME), 9, "would replace it: --u"),
    (mixing(OTHER), 6, "out/checkpoint-4 is of a run with other arguments; going on from b/check"),
    (mixing(SAME), 6, "go on"),
    (unfinished(3, SAME), 6, "go on"),
    (unfinished(3, UNKNOWN), 6, "go on"),
    (unfinished(3, SAME), 4, "go on"),
    (unfinished(3, RATE), 6, "go on"),
    (unfinished(3, OTHER), 6, "was written with other arguments: --use_llm_lora 0 -> 8"),
    (unfinished(3, SAME), 2, "has 3 steps behind it; nothing would be trained now: steps 6 -> 2"),
    (unfinished(3, SAME), 3, "nothing would be trained now: steps 6 -> 3"),
    (unfinished(6, SAME), 6, "go on"),
    (unfinished(6, RATE), 6, "nothing would be trained now: --learning_rate 0.0001 -> 1e-06"),
    # A model whose run did not get to its results.
    (Earlier(holds_model=True, record_is_known=True, finished_run=SAME), 6, "anew"),
    (Earlier(holds_model=True, record_is_known=True, finished_run=RATE), 6, "a model of other arg"),
    (Earlier(holds_model=True, finished_run=UNKNOWN), 6, "out: holds a model already"),
]


@pytest.mark.parametrize(("earlier", "steps", "verdict"), CASES)
def test_verdicts(earlier: Earlier, steps: int, verdict: str) -> None:
    def told() -> str:
        refuse_early(earlier, "out")
        return decide(earlier, steps, "out")

    if verdict in ("complete", "go on", "anew"):
        assert told() == verdict
        return
    with pytest.raises(CheckpointError) as caught:
        told()
    assert caught.value.exit_code == 2
    assert verdict in str(caught.value)
    for offer in ("OUTPUT_DIR=…", "--overwrite_output_dir True"):
        assert offer in str(caught.value)


@pytest.mark.parametrize(
    ("said", "is_usual"),
    [
        ({"lora_alpha": 16.0}, True),
        ({"lora_alpha": 8.0}, False),
        ({"lora_alpha": 16.0, "use_backbone_lora": 8}, True),
        ({"lora_alpha": 16.0, "use_backbone_lora": 4}, False),  # the other tower's is no usual one
        ({"lora_target_modules": ["all-linear"], "use_dora": False, "use_rslora": False}, True),
        ({"use_dora": True}, False),
        ({"lora_target_modules": ["q_proj"]}, False),
    ],
)
def test_saying_what_an_adapter_has_unasked_is_no_other_run(
    said: dict[str, Any], is_usual: bool
) -> None:
    unsaid = dict.fromkeys(("lora_alpha", "lora_target_modules", "use_dora", "use_rslora"))
    ranks = {"use_llm_lora": 8, "use_backbone_lora": said.get("use_backbone_lora", 0)}
    assert (settled({**unsaid, **ranks}) == settled({**unsaid, **ranks, **said})) is is_usual


def test_settling_leaves_its_argument_alone() -> None:
    arguments = {"seed": 3, "optim": "adamw_torch_fused", "max_packed_tokens": 5}
    assert settled(arguments)["optim"] == "adamw_torch"
    assert arguments == {"seed": 3, "optim": "adamw_torch_fused", "max_packed_tokens": 5}
    fp16 = {"fp16": {"loss_scale": 0, "enabled": True}}
    assert zero_settings({"deepspeed": fp16, "fp16": True}) == {"fp16.loss_scale": 0}


def test_refusing_tf32_is_what_nobody_said() -> None:
    assert settled({"tf32": False}) == settled({"tf32": None}) != settled({"tf32": True})


def test_the_other_default_video_reader_is_no_other_run() -> None:
    """The same frames, read on a machine that has no decord; asked for, it is another run."""
    old, new = (
        RunRecord(arguments={"video_backend": backend}, given={}, global_batch_size=8, contents={})
        for backend in ("decord", "pyav")
    )
    assert list(differences(old, new)) == ["none"]
    asked = replace(new, given={"video_backend": "pyav"})
    assert differences(old, asked) == {"result": ["--video_backend decord -> pyav"]}
