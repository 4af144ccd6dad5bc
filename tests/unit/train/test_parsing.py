"""The command line of a run: spellings, files, and mistakes reported all at once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl_chat.errors import ConfigError
from internvl_chat.train import parsing, unknown_flags
from internvl_chat.train.arguments import DataArguments, ModelArguments
from internvl_chat.train.assumed import Surroundings
from internvl_chat.train.inherited import contradictions, kept_by
from internvl_chat.train.parsing import RunArguments, parse, peek, peek_seconds
from internvl_chat.train.trainer_arguments import TrainArguments
from internvl_chat.train.validation import best_metric_problems
from internvl_chat.train.zero import require_deepspeed
from tests.support.checkpoint_like import checkpoint_like

CPU = torch.device("cpu")


@pytest.fixture
def base(tmp_path: Path) -> list[str]:
    """The least a run needs."""
    model = checkpoint_like(tmp_path / "model")
    meta = tmp_path / "meta.json"
    meta.write_text("{}")
    return [
        f"--model_name_or_path={model}",
        f"--meta_path={meta}",
        f"--output_dir={tmp_path / 'out'}",
        "--force_image_size=28",
    ]


def problems(argv: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(argv, device=CPU)
    lines = str(caught.value).splitlines()
    return [line.removeprefix("- ") for line in lines[1:]] if len(lines) > 1 else lines


def test_defaults_and_booleans(base: list[str]) -> None:
    args = parse([*base, "--freeze_llm", "False", "--freeze_backbone", "True"], device=CPU)
    assert (args.model.freeze_llm, args.model.freeze_backbone) == (False, True)
    assert args.data.conv_style == "Hermes-2"
    assert args.data.loss_reduction == "token"
    assert args.train.uses_tensorboard
    assert args.given.keys() == {
        "model_name_or_path",
        "meta_path",
        "output_dir",
        "force_image_size",
        "freeze_llm",
        "freeze_backbone",
    }


def test_spellings_of_the_original_recipes(base: list[str]) -> None:
    argv = [
        "--group_by_length",
        "True",
        "--evaluation_strategy",
        "no",
        "--overwrite_output_dir",
        "True",
    ]
    args = parse([*base, *argv, "--warmup_ratio", "0.03", "--do_train", "True"], device=CPU).train
    assert args.train_sampling_strategy == "group_by_length"
    assert args.eval_strategy == "no"
    assert args.overwrite_output_dir is True
    assert args.get_warmup_steps(1000) == 30
    assert parse([*base, "--group_by_length", "False"]).train.train_sampling_strategy == "random"


def test_dashes_and_negative_numbers(base: list[str]) -> None:
    args = parse([*base, "--vision-select-layer", "-1", "--learning-rate=2e-5"], device=CPU)
    assert args.model.vision_select_layer == -1
    assert args.train.learning_rate == 2e-5


def test_last_one_wins(base: list[str]) -> None:
    args = parse([*base, "--max_steps", "5", "--max_steps", "7"], device=CPU)
    assert args.train.max_steps == 7


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_file_then_command_line(base: list[str], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run.{suffix}"
    path.write_text(json.dumps({"learning_rate": 1e-4, "max_steps": 9, "freeze_mlp": True}))
    args = parse([str(path), *base, "--max_steps", "3"], device=CPU)
    assert (args.train.learning_rate, args.train.max_steps) == (1e-4, 3)
    assert args.model.freeze_mlp is True


def test_unknown_names_offer_the_nearest(base: list[str]) -> None:
    assert problems([*base, "--freze_llm", "True"]) == [
        "unknown argument --freze_llm. Did you mean --freeze_llm?"
    ]
    assert problems([*base, "--group_by_lenght", "True"]) == [
        "unknown argument --group_by_lenght. Did you mean --group_by_length?"
    ]
    assert problems([*base, "--split_dataset_ratio", "0.1", "--lora-rank", "8"]) == [
        "unknown argument --split_dataset_ratio: it is --val_split here.",
        "unknown argument --lora_rank: it is --use_llm_lora here.",
    ]


def test_flags_of_other_frameworks_are_told_as_ours(base: list[str]) -> None:
    known = {option for action in parsing._parser()._actions for option in action.option_strings}
    theirs = unknown_flags._by_their_name()
    assert not known & set(theirs)
    assert {ours.split()[0] for ours in theirs.values()} <= known
    for flag, ours in (
        ("--lora_rank", "--use_llm_lora"),
        ("--cutoff-len", "--max_seq_length"),
        ("--model", "--model_name_or_path"),
        ("--finetuning_type", "--use_llm_lora RANK for LoRA, --use_llm_lora 0 for the whole LLM"),
    ):
        name = flag.replace("-len", "_len")
        assert problems([*base, flag, "8"]) == [f"unknown argument {name}: it is {ours} here."]


def test_unknown_name_in_a_file(base: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("learning_rat: 1.0e-4\n")
    assert problems([str(path), *base]) == [
        f"{path}:1: unknown argument --learning_rat. Did you mean --learning_rate?"
    ]


def test_broken_file(base: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("a: [")
    assert "neither YAML nor JSON" in problems([str(path), *base])[0]
    assert "cannot be read" in problems([str(tmp_path / "none.yaml"), *base])[0]


@pytest.mark.parametrize("value", ['{"a": 1}', "nope.json"])
def test_what_transformers_cannot_build_is_no_traceback(base: list[str], value: str) -> None:
    (problem,) = problems([*base, "--accelerator_config", value])
    assert "'a'" in problem or "nope.json" in problem


@pytest.mark.parametrize(
    ("metric", "is_known"),
    [(None, True), ("loss", True), ("eval_loss", True), ("loss/a", True), ("accuracy", False)],
)
def test_the_figure_that_chooses_a_model(metric: str | None, is_known: bool) -> None:
    found = list(best_metric_problems(metric, ["a"]))
    assert (found == []) is is_known
    assert is_known or "validation gives eval_loss, eval_loss/a" in found[0]


@pytest.mark.parametrize("path", ["n" * 300, "n/" * 3000, "a\0b"])
@pytest.mark.parametrize("flag", ["model_name_or_path", "output_dir", "resume_from_checkpoint"])
def test_names_that_no_file_has(base: list[str], flag: str, path: str) -> None:
    (problem,) = problems([*base, f"--{flag}", path])
    assert problem.startswith(f"--{flag} ")
    assert "too long for a path" in problem or "no file has such a name" in problem
    assert len(problem) < 200


def test_all_problems_at_once(base: list[str], tmp_path: Path) -> None:
    found = problems(
        [
            *base,
            "--llm_path",
            str(tmp_path / "nowhere"),
            "--learning_rate",
            "fast",
            "--use_llm_lora",
            "16",
            "--meta_path",
            str(tmp_path / "none.json"),
            "--deepspeed",
            str(tmp_path / "zero.json"),
            "--lr_scheduler_type",
            "cosin",
        ]
    )
    text = "\n".join(found)
    assert len(found) == 7
    for part in (
        "--model_name_or_path is a whole model, yet --llm_path given too",
        f"--llm_path {tmp_path / 'nowhere'}: no such directory",
        "invalid float value: 'fast'",
        "--use_llm_lora 16 on weights that train themselves. Add --freeze_llm True",
        "none.json: no such file",
        "zero.json: cannot be read",
        "invalid choice: 'cosin'",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--freeze_llm True --freeze_mlp True --freeze_backbone True", "nothing trains"),
        ("--use_backbone_lora 8", "Add --freeze_backbone True"),
        ("--unfreeze_vit_layers -2", "--unfreeze_vit_layers has no effect"),
        ("--force_image_size 30", "Nearest that work: 28 or 42"),
        ("--vision_select_layer -9", "the tower has 3"),
        ("--attn_implementation flash_attention_2", "auto would take sdpa"),
        ("--conv_style Hermes2", "Did you mean 'Hermes-2'?"),
        ("--use_packed_ds True --max_packed_tokens 100", "is less than --max_seq_length 2048"),
        ("--min_dynamic_patch 4 --max_dynamic_patch 2", "want 1 <= smallest <= largest"),
        ("--eval_steps 5 --eval_strategy steps", "without --val_split 0.02 or --eval_meta"),
        ("--fp16 True --bf16 True", "both --fp16 and --bf16"),
        ("--drop_path_rate 1.5", "want 0 <= rate < 1"),
        ("--label_smoothing_factor 0.1", "not supported"),
        ("--ps_version v3", "invalid choice: 'v3'"),
        ("--loss_reduction mean", "invalid choice: 'mean'"),
        ("--max_steps 1 2", "too many values: '2'"),
        ("--freeze_backbone True --unfreeze_vit_layers 99", "the tower has 3 layers"),
        ("--freeze_backbone True --unfreeze_vit_layers -4", "the tower has 3 layers"),
        ("--adam_beta1 1", "--adam_beta1 1.0: want 0 <= beta < 1"),
        ("--adam_epsilon -1", "want a number >= 0"),
        ("--seed -1", "--seed -1: want a whole number from 0"),
        ("--data_seed 99999999999", "--data_seed 99999999999: want a whole number from 0"),
        ("--torch_compile_backend bogus", "--torch_compile_backend bogus: want one of "),
        ("--save_strategy best", "needs held-out records and --metric_for_best_model eval_loss"),
        ("--val_split 2.5", "--val_split 2.5: want a share of every dataset between 0 and 1"),
        ("--val_split 0.1 --val_split_seed -1", "--val_split_seed -1: want a whole number"),
        ("--pad_to_multiple_of 0", "--pad_to_multiple_of 0: want a number >= 1"),
        ("--pad_to_multiple_of 5000", "5000 is more than --max_seq_length 2048: rows would be"),
        ("--pad_to_multiple_of 64 --use_packed_ds True", "has no effect with --use_packed_ds"),
        ("--tf32 True", "TF32 needs a GPU of Ampere or newer, this run is on cpu. Drop it."),
        ("--max_samples 0", "--max_samples 0: want a whole number >= 1"),
        ("--early_stopping_patience 2", "--early_stopping_patience needs held-out records"),
    ],
)
def test_contradictions(base: list[str], argv: str, message: str) -> None:
    assert message in "\n".join(problems([*base, *argv.split()]))


def test_no_model_at_all() -> None:
    text = "\n".join(problems(["--output_dir", "x"]))
    assert "no model: give --model_name_or_path, or --vision_path and --llm_path" in text
    assert "--meta_path is missing" in text


def test_tokenizer_missing(base: list[str], tmp_path: Path) -> None:
    (tmp_path / "model" / "tokenizer.json").unlink()
    assert "no tokenizer in it" in problems(base)[0]


def test_value_before_any_flag(base: list[str]) -> None:
    assert problems(["stray", *base]) == ["'stray' stands before any --argument"]


def test_peek() -> None:
    argv = ["--a", "1", "--ddp_timeout=60", "--use_cpu"]
    assert peek(argv, "ddp_timeout", "1800") == "60"
    assert peek(argv, "use_cpu", "false") == "true"
    assert peek(argv, "output_dir", "") == ""
    assert peek_seconds(argv, "ddp_timeout", 1800) == 60


@pytest.mark.parametrize("word", ["abc", "nan", "-5", "0", "1e99", ""])
def test_no_time_at_all_is_left_to_the_parser(word: str) -> None:
    assert peek_seconds([f"--ddp_timeout={word}"], "ddp_timeout", 1800) == 1800


def zero(base: list[str], tmp_path: Path, **config: Any) -> RunArguments:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(config))
    return parse([*base, "--deepspeed", str(path)], device=CPU)


def test_zero_file_with_an_unknown_key(base: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean overlap_comm"):
        zero(base, tmp_path, zero_optimization={"stage": 2, "overlap_com": True})


def test_zero_file_against_the_arguments(base: list[str], tmp_path: Path) -> None:
    optimizer = {"type": "AdamW", "params": {"lr": 0.5}}
    with pytest.raises(ConfigError, match=r"lr: 0.5 in the file, 5e-05 in the arguments"):
        zero(base, tmp_path, optimizer=optimizer)


def test_every_switch_keeps_its_default() -> None:
    """A switch that defaults to True is followed by a ``--no_`` form that defaults to False."""
    defaults = parsing._defaults(parsing._parser())
    switches = {
        f.name: f.default
        for kind in (ModelArguments, DataArguments, TrainArguments)
        for f in dataclasses.fields(kind)
        if isinstance(f.default, bool)
    }
    assert switches["skip_memory_metrics"] is True
    assert {name: defaults[name] for name in switches} == switches


# ---- values that a checkpoint keeps ---------------------------------------------------------


def keeping(directory: Path, **values: Any) -> Path:
    """A checkpoint whose configuration says something else than the flags' defaults."""
    checkpoint_like(directory)
    config = json.loads((directory / "config.json").read_text())
    kept = {
        "force_image_size": 28,
        "template": "smollm2",
        "ps_version": "v2",
        "select_layer": -2,
        "downsample_ratio": 0.25,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 2,
        "max_dynamic_patch": 9,
        "pad2square": True,
    }
    (directory / "config.json").write_text(json.dumps(config | kept | values))
    return directory


def test_what_the_checkpoint_keeps_goes_before_the_defaults(
    base: list[str], tmp_path: Path
) -> None:
    model = keeping(tmp_path / "kept")
    rest = [word for word in base[1:] if "force_image_size" not in word]
    args = parse([f"--model_name_or_path={model}", *rest], device=CPU)
    assert (args.data.force_image_size, args.data.conv_style) == (28, "smollm2")
    assert (args.model.ps_version, args.model.vision_select_layer) == ("v2", -2)
    assert (args.data.down_sample_ratio, args.data.pad2square) == (0.25, True)
    assert (args.data.dynamic_image_size, args.data.use_thumbnail) == (True, True)
    assert (args.data.min_dynamic_patch, args.data.max_dynamic_patch) == (2, 9)
    assert args.given.keys() == {"model_name_or_path", "meta_path", "output_dir"}
    assert contradictions(str(model), args.given, kept_by(str(model))) == []


def test_what_is_given_goes_before_the_checkpoint_and_is_told(
    base: list[str], tmp_path: Path
) -> None:
    model = str(keeping(tmp_path / "kept", dynamic_image_size=False))
    path = tmp_path / "run.yaml"
    path.write_text("conv_style: Hermes-2\nmax_dynamic_patch: 3\nps_version: v2\n")
    argv = [str(path), *base, f"--model_name_or_path={model}", "--force_image_size=56"]
    args = parse(argv, device=CPU)
    assert (args.data.force_image_size, args.data.conv_style) == (56, "Hermes-2")
    assert contradictions(model, args.given, kept_by(model)) == [
        f"--conv_style Hermes-2 goes before {model}, which was made with smollm2: the model was "
        "trained to answer in the other's form. Leave --conv_style out to keep smollm2.",
        f"--force_image_size 56 goes before {model}, which was made with 28: position embeddings "
        "are resized, so the whole model is saved and no adapter. Leave --force_image_size out "
        "to keep 28.",
    ]


def test_parts_get_the_defaults(base: list[str], tmp_path: Path) -> None:
    part = keeping(tmp_path / "kept")
    argv = [f"--vision_path={part}", f"--llm_path={part}", *base[1:3], "--force_image_size=28"]
    data = parse(argv, device=CPU).data
    assert (data.conv_style, data.max_dynamic_patch, data.use_thumbnail) == ("Hermes-2", 1, False)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"downsample_ratio": "x"}, "want a number"),
        ({"force_image_size": 30}, "30 is no multiple"),
        ({"force_image_size": 30}, "is what {model} keeps: give another --force_image_size."),
        ({"template": "nope"}, "That is what {model} keeps: give another --conv_style."),
    ],
)
def test_kept_values_that_no_model_can_have(
    base: list[str], tmp_path: Path, values: dict[str, Any], problem: str
) -> None:
    model = keeping(tmp_path / "kept", **values)
    rest = [word for word in base[1:] if "force_image_size" not in word]
    told = problems([f"--model_name_or_path={model}", *rest])
    assert problem.format(model=model) in told[0]


def test_a_run_that_is_not_to_train(base: list[str]) -> None:
    assert "--do_train False: this program trains" in problems([*base, "--do_train", "False"])[0]


def test_a_file_names_the_home_folder(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell would have written it out."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("output_dir: ~/runs/one\n")
    argv = [word for word in base if "output_dir" not in word]
    found = parse([str(tmp_path / "run.yaml"), *argv], device=CPU)
    assert found.train.output_dir == str(tmp_path / "runs/one")


# ---- warm-up ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "steps"),
    [
        ("--warmup_ratio 0.5 --warmup_steps 0", 500),
        ("--warmup_steps 0 --warmup_ratio 0.5", 500),
        ("--warmup_steps 4 --warmup_ratio 0.03", 4),
        ("--warmup_ratio=0.03 --warmup-steps=4", 4),
        ("--warmup_ratio 0.03 --warmup_ratio 0.1", 100),
        ("--warmup_ratio 1", 1000),
        ("--warmup_ratio 0", 0),
        ("--warmup_steps 0.2", 200),
    ],
)
def test_warm_up_by_the_older_rule(base: list[str], argv: str, steps: int) -> None:
    assert parse([*base, *argv.split()], device=CPU).train.get_warmup_steps(1000) == steps


def test_warm_up_of_file_and_command_line(base: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("warmup_steps: 7\n")
    args = parse([str(path), *base, "--warmup_ratio=0.5"], device=CPU).train
    assert args.get_warmup_steps(1000) == 7
    assert "want a share between 0 and 1" in problems([*base, "--warmup_ratio=3"])[0]
    assert "--warmup_ratio: invalid float" in problems([*base, "--warmup_ratio=much"])[0]


# ---- nothing is lost, nothing misread ------------------------------------------------------------


def test_words_and_numbers_of_a_file_are_as_written(base: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "save_strategy: no\nbf16: off\ngrad_checkpoint: yes\nfreeze_mlp: on\nlearning_rate: 1e-5\n"
        "seed: 010\nmax_steps: 0x10\nrun_name: 2024-01-01\nadam_epsilon: .1\nreport_to: [none]\n"
        "lr_scheduler_kwargs: {min_lr: 1e-5, list: [no, 1e3, '1e3', 010, 1:30], on: off, n: ~}\n"
        "max_packed_tiles:\n"
    )
    args = parse([str(path), *base], device=CPU)
    assert args.train.save_strategy == "no"
    assert (args.train.bf16, args.model.grad_checkpoint, args.model.freeze_mlp) == (
        False,
        True,
        True,
    )
    assert (args.train.learning_rate, args.train.seed, args.train.max_steps) == (1e-5, 10, 16)
    assert (args.train.run_name, args.train.adam_epsilon) == ("2024-01-01", 0.1)
    assert args.train.report_to == []
    assert args.data.max_packed_tiles is None
    assert args.train.lr_scheduler_kwargs == {
        "min_lr": 1e-5,
        "list": [False, 1000.0, "1e3", 10, "1:30"],
        "on": False,
        "n": None,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"max_steps: 3\nseed: 1\nmax_steps: 4\n", "'max_steps' stands in line 1 and in line 3"),
        (b'{"seed": 1, "seed": 2}', "'seed' stands in line 1 and in line 1"),
        (b"learning_rate:\n", "--learning_rate stands in the file without a value"),
        (b"freze_llm:\n", "unknown argument --freze_llm. Did you mean --freeze_llm?"),
        (b"a: \xff", "neither YAML nor JSON"),
        (b"a: " + b"[" * 3000, "neither YAML nor JSON"),
        (b"", "want an object of argument: value, got nothing"),
        (b"[1]", "want an object of argument: value, got a list"),
        (b"[1]: 2", "neither YAML nor JSON"),
        (b"!!int 1: 2", "1 is no name of an argument"),
        (b"a: 1\n---\nb: 2", "neither YAML nor JSON"),
        (b"seed: 1\nlearning_rate: fast\n", "run.yaml:2: argument --learning_rate"),
        (b"seed: 1\nrun:\n  sed: 1\n", "run.yaml:3: unknown argument --sed. Did you mean --seed?"),
        (b"seed: 1\nrun:\n  seed: 2\n", "'seed' stands in line 1 and in line 3. Keep one."),
        (b"max-steps: 1\nmax_steps: 2\n", "'max_steps' stands in line 1 and in line 2. Keep one."),
        (b"optimizaton:\n  seed: 2\n", "no section of a run file (model, data, "),
        (b"optimizaton:\n  seed: 2\n", "Did you mean optimization:?"),
        (b"data: 3\n", "run.yaml:1: data: is a section of a run file"),
        (b"learning_rate: {a: 1}\n", "run.yaml:1: argument --learning_rate"),
        (b"max_steps: [1, 2]\n", "run.yaml:1: --max_steps: too many values: '2'"),
        (b"x: !!python/name:os.system", "neither YAML nor JSON"),
    ],
)
def test_what_a_file_must_not_hold(
    base: list[str], tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    assert message in problems([str(path), *base])[0]


@pytest.mark.parametrize("content", [None, b"", b"a: ["])
def test_a_file_that_says_nothing_is_all_that_is_told(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    told = problems([str(path), "--seed", "3"])  # no model, no data: they may stand in it
    assert len(told) == 1
    assert told[0].startswith(f"{path}: ")


def test_sections_of_a_file_say_nothing_themselves(base: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: {freeze_mlp: yes}\nlora:\n  # use_llm_lora: 8\noptimization:\n  max-steps: 4\n"
        "  lr_scheduler_kwargs: {min_lr: 1e-6}\nrun:\n  --seed: 3\n"
    )
    args = parse([str(path), *base], device=CPU)
    assert (args.model.freeze_mlp, args.train.max_steps, args.train.seed) == (True, 4, 3)
    assert args.train.lr_scheduler_kwargs == {"min_lr": 1e-6}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max_steps", "3", "run.yaml"], "A run file goes first"),
        (["--config", "run.yaml"], "A run file is the first word"),
        (["--zzz", "1"], "unknown argument --zzz. See --help and --help-all."),
    ],
)
def test_a_file_elsewhere_is_told_where_it_belongs(
    base: list[str], argv: list[str], message: str
) -> None:
    assert message in problems([*base, *argv])[0]


def test_a_path_that_is_meant_from_the_files_folder(base: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1\nmeta_path: meta.json\n")
    told = problems([str(path), base[0], *base[2:]])
    assert told[0] == "--meta_path meta.json: no such file."
    assert told[1] == (
        f"{path}:2: meta.json lies beside the file, but paths are read from where you stand: "
        f"write {tmp_path}/meta.json"
    )


def test_a_file_of_another_ending(base: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.conf"
    path.write_text("seed: 1\n")
    assert "A run file's name ends in .yaml, .yml, .json" in problems([str(path), *base])[0]


# ---- what nobody says -------------------------------------------------------------------------

ALONE = Surroundings(world_size=1, on_gpu=False, has_bf16=False, num_cpus=2)


def completed(base: list[str], *argv: str) -> RunArguments:
    return parse([*base, *argv], device=CPU, around=ALONE)


def test_a_run_without_assumptions_keeps_the_defaults_of_the_recipes(base: list[str]) -> None:
    """They start finetune.py with flags alone."""
    args = parse(base, device=CPU)
    assert args.told == ()
    assert (args.train.learning_rate, args.train.num_train_epochs) == (5e-5, 3)
    assert (args.train.lr_scheduler_type, args.model.freeze_llm) == ("linear", False)


def test_model_and_data_are_enough(base: list[str], tmp_path: Path) -> None:
    args = completed([word for word in base if "output_dir" not in word])
    assert args.train.output_dir == "work_dirs/model_tuned"
    assert (args.model.use_llm_lora, args.model.freeze_llm, args.model.freeze_mlp) == (
        16,
        True,
        True,
    )
    assert (args.train.learning_rate, args.train.lr_scheduler_type) == (1e-4, "cosine")
    assert args.train.per_device_train_batch_size * args.train.gradient_accumulation_steps == 16
    assert args.train.get_warmup_steps(1000) == 30
    assert "output_dir" not in args.given
    assert "no --output_dir was given" in args.told[0]


def test_a_run_file_names_its_folder(base: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"meta_path: {base[1].partition('=')[2]}\n")
    args = completed([str(path), base[0], base[3]])
    assert args.train.output_dir == "work_dirs/mine"


def test_what_is_given_goes_before_what_is_assumed(base: list[str]) -> None:
    given = ("--learning_rate=3e-4", "--weight_decay=0", "--gradient_accumulation_steps=1")
    args = completed(base, *given, "--lr_scheduler_type=linear", "--warmup_steps=0")
    assert (args.train.learning_rate, args.train.weight_decay) == (3e-4, 0)
    assert args.train.gradient_accumulation_steps == 1
    assert (args.train.lr_scheduler_type, args.train.get_warmup_steps(100)) == ("linear", 0)


def test_an_adapter_goes_on_at_its_own_rank(base: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(parsing, "carried_ranks", lambda path: (8, 0))
    assert completed(base).model.use_llm_lora == 8


# ---- one flag, several times --------------------------------------------------------------------


def test_a_flag_that_stands_twice_is_told(
    base: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    argv = ["--bf16=True", "--group_by_length=True", "--train_sampling_strategy=random"]
    parse([*base, *argv, "--max_steps=5", "--max_steps=7", "--bf16=True"], device=CPU)
    assert caplog.messages == [
        "given more than once, the last one counts: --train_sampling_strategy random (before: "
        "group_by_length); --max_steps 7 (before: 5)"
    ]


@pytest.mark.parametrize("flag", ["learning_rate", "adam_beta1", "per_device_train_batch_size"])
def test_numbers_that_are_none(base: list[str], flag: str) -> None:
    assert flag in problems([*base, f"--{flag}=nan"])[0]


def test_a_negative_number_in_any_spelling_is_read(base: list[str]) -> None:
    assert problems([*base, "--weight_decay", "-1e-5"]) == [
        "--weight_decay -1e-05: want a number >= 0."
    ]


def test_deepspeed_by_name_is_its_file(base: list[str], tmp_path: Path) -> None:
    by_path = parse([*base, "--deepspeed", "shell/deepspeed/zero_stage1_config.json"], device=CPU)
    by_name = parse([*base, "--deepspeed", "zero1"], device=CPU)
    assert by_name.train.deepspeed == by_path.train.deepspeed
    (tmp_path / "run.yaml").write_text("deepspeed: zero1\n")
    in_file = parse([str(tmp_path / "run.yaml"), *base], device=CPU)
    assert in_file.train.deepspeed == by_path.train.deepspeed
    (found,) = problems([*base, "--deepspeed", "zero5"])
    assert "neither a file here nor one of the names zero1, zero2, " in found


def test_deepspeed_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("internvl_chat.train.zero.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="DeepSpeed is not installed"):
        require_deepspeed()


def test_lora_settings_need_lora(base: list[str], tmp_path: Path) -> None:
    frozen = [*base, "--freeze_llm", "True", "--use_llm_lora", "4"]
    words = ["--lora_target_modules", "q_proj", "v_proj", "--lora_alpha", "8", "--use_dora", "True"]
    args = parse([*frozen, *words], device=CPU).model
    assert args.lora_target_modules == ["q_proj", "v_proj"]
    assert (args.lora_alpha, args.use_dora, args.use_rslora) == (8.0, True, None)
    assert problems([*base, *words]) == [
        "--lora_alpha 8.0 --lora_target_modules q_proj v_proj --use_dora True without LoRA. Add "
        "--use_llm_lora and a rank, 16 for one (and --freeze_llm True), or leave it out."
    ]
    assert problems([*frozen, "--lora_alpha", "-1", "--lora_dropout", "2"]) == [
        "--lora_alpha -1: want a number > 0; twice the rank is usual.",
        "--lora_dropout 2: want 0 <= dropout < 1.",
    ]
    path = tmp_path / "run.yaml"
    path.write_text("lora_target_modules: [q_proj, v_proj]\nmodules_to_save: lm_head\n")
    args = parse([str(path), *frozen], device=CPU).model
    assert (args.lora_target_modules, args.modules_to_save) == (["q_proj", "v_proj"], ["lm_head"])


def test_four_bits_want_lora_bf16_and_no_deepspeed(base: list[str]) -> None:
    lora = ["--freeze_llm", "True", "--freeze_backbone", "True", "--use_llm_lora", "4"]
    four = [*base, "--load_in_4bit", "True"]
    assert parse([*four, *lora, "--bf16", "True"], device=CPU).model.load_in_4bit is True
    zero = json.dumps({"zero_optimization": {"stage": 3}, "bf16": {"enabled": "auto"}}, indent=99)
    found = problems([*four, "--deepspeed", zero])  # text, longer than a path may be
    assert [text.partition(".")[0] for text in found] == [
        "--load_in_4bit: weights of 4 bits cannot train themselves",
        "--load_in_4bit computes in bf16",
        "--load_in_4bit with --deepspeed: ZeRO-3 would cut packed weights and leave their scales "
        "behind, and ZeRO-1 and 2 have only the small optimizer of the adapter to share",
        "--load_in_4bit saves an adapter, and the vision tower trains beside it",
    ]
    (told,) = problems([*four, *lora, "--bf16", "True", "--unfreeze_vit_layers", "-1"])
    assert "--unfreeze_vit_layers would be lost" in told
