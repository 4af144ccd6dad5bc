"""A run planned from its arguments: no weights, no images, annotations there or not."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim import GlobalOptimManager

from internvl_chat.costs.holdings import Holdings, parameter_sizes
from internvl_chat.costs.measured import MEASURED, nearest
from internvl_chat.costs.memory import holdings_of
from internvl_chat.costs.optimizer_state import optimizer_state
from internvl_chat.costs.zero_buffers import ZeroSettings
from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.machine.peaks import peaks_of
from internvl_chat.train.finetune import main
from internvl_chat.train.plan_advice import advice, in_four_bits
from internvl_chat.train.plan_report import WIDTH, as_json, as_text
from internvl_chat.train.planned_machine import planned_machine
from internvl_chat.train.planned_run import PlannedRun, planned_anew
from internvl_chat.train.planning import plan_run
from internvl_chat.train.zero import read_zero_file, zero_config
from internvl_chat.train.zero3 import settle_zero3
from tests.support.training import ROOT, train_arguments, write_dataset

GUIDE = str(ROOT / "shell/data/internvl_1_2_finetune.json")
SAMPLES = str(ROOT / "examples/samples/meta.json")
TINY = str(ROOT / "pretrained/internvl-chat-tiny")


@pytest.fixture(scope="module", autouse=True)
def small_meta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two thousand records that are not there, for ``planned``."""
    path = tmp_path_factory.mktemp("planning") / "meta.json"
    entry = {"root": "x", "annotation": "gone.jsonl", "data_augment": False, "repeat_time": 1}
    path.write_text(json.dumps({"two thousand": {**entry, "length": 2000}}))
    META.append(str(path))
    yield
    META.clear()


META: list[str] = []


PUBLISHED: dict[str, Any] = {
    "model_name_or_path": "InternVL-Chat-V1-2",
    "bf16": True,
    "max_seq_length": 2048,
}
WHOLE: dict[str, Any] = {**PUBLISHED, "use_llm_lora": 0, "per_device_train_batch_size": 8}
LORA: dict[str, Any] = {
    "use_llm_lora": 16,
    "freeze_llm": True,
    "freeze_mlp": True,
    "freeze_backbone": True,
}


def words(**options: Any) -> list[str]:
    given = {"model_name_or_path": "tiny", "meta_path": META[0], **options}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def planned(num_gpus: int = 8, gpu: str = "A100", **options: Any) -> PlannedRun:
    own = {key: options.pop(key) for key in ("mfu", "sample_tokens") if key in options}
    return plan_run(words(**options), planned_machine(gpu, num_gpus), **own)


@pytest.fixture(scope="module")
def recipe() -> PlannedRun:
    """The first recipe's flags, on 64 A100; nothing of pretrained/ or playground/ is there."""
    return plan_run(
        [
            *("--vision_path", "./pretrained/InternViT-6B-448px-V1-2"),
            *("--mlp_path", "./pretrained/InternViT-6B-448px-V1-2/mlp_projector/hermes.pth"),
            *("--llm_path", "./pretrained/Nous-Hermes-2-Yi-34B", "--meta_path", GUIDE),
            *("--deepspeed", "zero3_34b", "--per_device_train_batch_size", "8"),
            *("--gradient_accumulation_steps", "1", "--output_dir", "work_dirs/none"),
            *("--max_seq_length", "2048", "--group_by_length", "True", "--do_train", "True"),
            *("--bf16", "True", "--grad_checkpoint", "True", "--num_train_epochs", "1"),
            *("--warmup_ratio", "0.03", "--save_strategy", "steps", "--save_steps", "200"),
            *("--freeze_backbone", "False", "--freeze_mlp", "False", "--freeze_llm", "False"),
            *("--drop_path_rate", "0.4", "--save_total_limit", "3"),
        ],
        planned_machine("A100", 64),
    )


def test_the_recipe_for_64_gpus(recipe: PlannedRun) -> None:
    report = as_json(recipe)
    assert report["parameters"] == report["trainable"] == 40_068_583_808
    assert report["fits"]
    assert report["steps"] == math.ceil(1_267_819 / 512)
    assert report["tokens"] == 1_267_819 * 512
    # 2 bytes a weight, 2 a gradient, 12 of state, of 64 ranks.
    share = 40_068_583_808 / 64 / 2**30
    parts = report["memory_gib"]
    assert parts["weights"] == parts["gradients"] == pytest.approx(2 * share, rel=1e-3)
    assert parts["optimizer"] == pytest.approx(12 * share, rel=1e-3)
    assert parts["total"] == pytest.approx(sum(parts.values()) - parts["total"], abs=0.01)
    # Four checkpoints while the oldest of three goes: 12 bytes of state a weight and the model's 2.
    expected = 4 * 14 * 40.07e9
    assert report["disk_gib"] * 2**30 == pytest.approx(expected, rel=0.01)


def test_the_guides_eighteen_hours(recipe: PlannedRun) -> None:
    """At the efficiency that they are, the hours come out again; from its own arithmetic."""
    time = recipe.time()
    assert time is not None
    assert time.high == pytest.approx(18, rel=0.02)
    assert time.low < time.hours < time.high
    peak = 64 * 312e12 * 3600
    # 6 FLOPs a parameter and token, ViT's tokens in their number; attention comes on top.
    least = 6 * 1_267_819 * (512 * 34.0e9 + 1025 * 5.9e9)
    assert time.low * 0.20 * peak == pytest.approx(least, rel=0.1)


def test_disk_of_a_small_run() -> None:
    """As a run of the tiny model left it: fp32 where it trains, bf16 where it is frozen."""
    run = planned(1, "24", model_name_or_path=TINY, use_llm_lora=0, save_steps=2, bf16=True)
    disk = run.disk()
    assert disk.checkpoint == pytest.approx(17_716_152 + 13_289_754 + 26_585_675, rel=0.03)
    assert (disk.num_kept, disk.num_at_once) == (1, 2)
    assert disk.total == 2 * disk.checkpoint
    never = planned(1, "24", save_strategy="no").disk()
    assert never.total == never.final


@pytest.mark.parametrize(
    ("options", "files"),
    [
        # The model, DeepSpeed's module and optimizer files as a run left them on one rank.
        ({"deepspeed": "zero1", "optim": "adamw_bnb_8bit"}, (11_069_768, 11_095_141, 33_353_927)),
        ({"deepspeed": "zero1", "optim": "adafactor"}, (11_069_768, 11_095_141, 44_230_597)),
        # No weight beside the masters.
        ({"deepspeed": "zero3"}, (11_069_768, 74_086, 66_326_213)),
    ],
)
def test_disk_under_zero(options: dict[str, Any], files: tuple[int, ...]) -> None:
    """Masters in fp32 and the state of one vector for each group, whatever the shapes were."""
    whole = {"model_name_or_path": TINY, "use_llm_lora": 0, "bf16": True, "freeze_backbone": False}
    assert planned(1, "24", **whole, **options).disk().checkpoint == pytest.approx(
        sum(files), rel=0.02
    )


def checkpoint_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "lion_32bit", "adafactor"])
def test_disk_of_a_real_checkpoint(optim: str, tmp_path: Path) -> None:
    """A step of the tiny model in full, which writes one."""
    meta = write_dataset(tmp_path / "data", ("text", "image"))
    options = {
        "optim": optim,
        "bf16": True,
        "max_steps": 1,
        "save_steps": 1,
        "save_strategy": "steps",
        "force_image_size": 112,
        "use_llm_lora": 0,
        "freeze_llm": False,
        "freeze_mlp": False,
        "freeze_backbone": False,
        "per_device_train_batch_size": 1,
    }
    argv = train_arguments(Path(TINY), meta, tmp_path / "out", **options)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        assert main(argv) == 0
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        GlobalOptimManager.get_instance().initialize()  # which knows this model's embeddings
    run = plan_run(argv, planned_machine("24", 1))
    found = checkpoint_bytes(tmp_path / "out/checkpoint-1")
    assert run.disk().checkpoint == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize(
    ("options", "is_adapter"),
    [
        (LORA, True),
        ({**LORA, "freeze_mlp": False}, True),  # which is saved with it
        ({**LORA, "unfreeze_vit_layers": -1}, False),
        ({**LORA, "freeze_backbone": False}, False),
    ],
)
def test_disk_of_adapters_and_what_trains_beside_them(
    options: dict[str, Any], is_adapter: bool
) -> None:
    run = planned(1, "24", model_name_or_path=TINY, **options)
    sizes = parameter_sizes(run.model)
    saved = sum(size.numel for size in sizes if size.is_trained or not is_adapter)
    assert run.disk().final == pytest.approx(2 * saved, abs=2**20)


def test_keys_of_the_report(recipe: PlannedRun) -> None:
    report = json.loads(json.dumps(as_json(recipe)))
    wanted = ["parameters", "trainable", "memory_gib", "fits", "steps", "tokens", "hours"]
    assert [*report][:9] == [*wanted, "disk_gib", "advice"]
    assert [*report["memory_gib"]][-1] == "total"
    assert all(isinstance(value, float) for value in report["memory_gib"].values())
    assert report["hours_range"][0] <= report["hours"] <= report["hours_range"][1]


def test_text_is_80_columns_wide(recipe: PlannedRun) -> None:
    text = as_text(recipe)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "fits: " in text
    assert "9 of 9 datasets have no annotation file" in text


def test_a_given_efficiency_counts() -> None:
    slow, fast = (planned(mfu=mfu, deepspeed="zero3").time() for mfu in (0.1, 0.4))
    assert slow is not None
    assert fast is not None
    assert slow.hours == pytest.approx(4 * fast.hours)
    assert slow.basis == "--mfu"


def test_memory_alone_gives_no_hours() -> None:
    report = as_json(planned(gpu="80GiB", deepspeed="zero3"))
    assert report["hours"] is None
    assert report["hours_range"] is None
    assert report["gpu_memory_gib"] == 80


def test_what_does_not_fit_is_told_with_what_would(recipe: PlannedRun) -> None:
    run = replace(recipe, machine=planned_machine("30", 64))
    assert not run.fits(run.memory)
    told = advice(run)
    for change in ("--per_device_train_batch_size ", "LoRA (", "zero3_offload", "ZeRO-3 together"):
        (sentence,) = [text for text in told if change in text]
        assert "GiB a GPU" in sentence
    assert "--per_device_train_batch_size 4 --gradient_accumulation_steps 2" in told[0]
    figures = [float(text.partition(" GiB a GPU")[0].rpartition(" ")[2]) for text in told]
    assert max(figures) < run.memory.total
    assert any(text.endswith(" fits") for text in told)


def following(told: list[str], change: str) -> str:
    (sentence,) = [text for text in told if text.startswith(f"{change}")]
    return sentence


@pytest.mark.parametrize(
    ("num_gpus", "zero", "change", "followed"),
    [
        (8, None, "16 GPUs and --deepspeed zero3", {"num_gpus": 16, "deepspeed": "zero3"}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (
                    8,
                    "zero2",
                    "16 GPUs and --deepspeed zero3",
                    {"num_gpus": 16, "deepspeed": "zero3"},
                ),
                (8, None, "LoRA (", {"deepspeed": "zero3", **LORA}),
                (8, None, "--deepspeed zero3_offload", {"deepspeed": "zero3_offload"}),
                (8, "zero2_offload", "--deepspeed zero3_offload", {"deepspeed": "zero3_offload"}),
                (1, "zero3", "16 GPUs", {"num_gpus": 16, "deepspeed": "zero3"}),
            )
        ),
    ],
)
def test_what_fits_is_told_where_one_step_is_not_enough(
    num_gpus: int, zero: str | None, change: str, followed: dict[str, Any]
) -> None:
    """And followed it comes to the figure."""
    whole = WHOLE if zero is None else {**WHOLE, "deepspeed": zero}
    told = following(advice(planned(num_gpus, **whole)), change)
    other = planned(**{"num_gpus": num_gpus, **WHOLE, **followed})
    assert other.fits(other.memory)
    assert f"{other.memory.total:.1f} GiB a GPU" in told
    assert told.endswith(" fits")


def too_small_for(run: PlannedRun, *, by_gib: float) -> PlannedRun:
    """The run on GPUs that lack so much."""
    usable = run.memory.total - by_gib
    return replace(run, machine=planned_machine(f"{(usable + 0.75) / 0.9:.6f}", 1))


@pytest.mark.parametrize(
    ("zero", "flags"),
    [(None, "--load_in_4bit True"), ("zero3", "--load_in_4bit True, without --deepspeed")],
)
def test_four_bits_are_offered_where_lora_does_not_fit(zero: str | None, flags: str) -> None:
    """With what they save, and followed they come to the figure."""
    given = {"model_name_or_path": TINY, "bf16": True, "max_seq_length": 64, **LORA}
    lora = planned(1, "24", **given, **({} if zero is None else {"deepspeed": zero}))
    four = planned(1, "24", **given, load_in_4bit=True)
    saved = lora.memory.total - four.memory.total
    assert saved > 0
    ((change, memory),) = in_four_bits(too_small_for(lora, by_gib=saved / 2))
    assert memory == four.memory
    assert change == f"QLoRA ({flags}), {saved:.1f} GiB less than LoRA"
    assert not [*in_four_bits(lora)]
    assert not [*in_four_bits(too_small_for(four, by_gib=saved))]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{**PUBLISHED, **LORA}, WHOLE])
def test_four_bits_are_among_the_advice(options: dict[str, Any]) -> None:
    """For the published model on a GPU of 70 GiB, as sentences and in the object."""
    run = planned(1, "70", **options)
    batch = {"per_device_train_batch_size": options.get("per_device_train_batch_size", 4)}
    followed = planned(1, "70", **PUBLISHED, **LORA, **batch, load_in_4bit=True)
    told = following(as_json(run)["advice"], "QLoRA (--load_in_4bit True)")
    assert told.endswith(f": {followed.memory.total:.1f} GiB a GPU, fits")
    saved = float(told.partition("), ")[2].partition(" GiB less than LoRA")[0])
    assert 40 < saved < 60  # 34 B weights of 2 bytes
    assert "QLoRA (--load_in_4bit True)" in as_text(run)


@pytest.mark.parametrize(
    "changes",
    [
        {"torch_compile": True},
        {"freeze_backbone": False},
        {"unfreeze_vit_layers": -1},
        {"bf16": False, "fp16": True},
    ],
)
def test_four_bits_are_not_offered_where_they_cannot_be(changes: dict[str, Any]) -> None:
    given = {"model_name_or_path": TINY, "bf16": True, **LORA, **changes}
    assert not [*in_four_bits(too_small_for(planned(1, "24", **given), by_gib=0.001))]


def zero_json(**changes: Any) -> str:
    config = read_zero_file("zero3")
    config["zero_optimization"] |= changes
    return json.dumps(config)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    "zero",
    [
        "zero3",
        zero_json(stage3_param_persistence_threshold="auto"),
        zero_json(stage3_param_persistence_threshold=10),
        zero_json(offload_param={"device": "cpu"}),
        "zero3_offload",
    ],
)
def test_a_plan_keeps_whole_what_a_run_keeps_whole(zero: str, world_size: int) -> None:
    run = planned(world_size, "24", model_name_or_path=TINY, deepspeed=zero, **LORA)
    assert run.setting.deepspeed is not None
    chosen = zero_config(zero, run.read.values, torch.device("cuda"))
    assert chosen is not None
    settle_zero3(chosen["zero_optimization"], run.model, world_size=world_size)
    name = "stage3_param_persistence_threshold"
    found = run.setting.deepspeed["zero_optimization"][name]
    assert found == chosen["zero_optimization"][name]
    sizes = parameter_sizes(run.model)
    read = ZeroSettings.of(run.setting.deepspeed, num_parameters=sum(s.numel for s in sizes))
    assert read.sizes[name] == found


FEW_LIVE = zero_json(stage3_param_persistence_threshold="auto", stage3_max_live_parameters=200_000)
"""Leaves open what is kept whole, and gathers so little that it shows beside it."""


@pytest.mark.parametrize("zero", [FEW_LIVE, "zero2"])
def test_more_gpus_keep_whole_what_they_would(zero: str) -> None:
    """One GPU cuts nothing up; two do, and a plan for one tells what each of two would need."""
    given = {"model_name_or_path": TINY, "deepspeed": zero, **LORA}
    one, two = (planned(number, "24", **given) for number in (1, 2))
    assert one.on_gpus(2, two.setting.batch) == two.memory


def test_one_gpu_overlaps_nothing() -> None:
    """So that ZeRO-2 has one bucket there and two on several."""
    runs = [planned(n, "24", model_name_or_path=TINY, deepspeed="zero2") for n in (1, 2)]
    overlaps = [ZeroSettings.of(r.setting.deepspeed or {}, num_parameters=1).overlaps for r in runs]
    assert overlaps == [False, True]


def test_an_adapter_in_place_of_whole_weights_is_kept_whole() -> None:
    """Of rank 512 its matrices are larger than what every rank keeps of any model."""
    adapter = {**LORA, "use_llm_lora": 512}
    given = {"model_name_or_path": TINY, "deepspeed": FEW_LIVE}
    run = planned(2, "24", **given, use_llm_lora=0, freeze_backbone=False)
    assert planned_anew(run, adapter).memory == planned(2, "24", **given, **adapter).memory


def test_offload_that_nobody_needs() -> None:
    told = advice(planned(64, **WHOLE, deepspeed="zero3_offload"))
    needs = planned(64, **WHOLE, deepspeed="zero3").memory.total
    assert f"--deepspeed zero3 fits, too ({needs:.1f} GiB): nothing is copied" in " ".join(told)


def test_hours_say_that_offload_is_not_in_them() -> None:
    for zero, told in (("zero3", False), ("zero3_offload", True), ("zero2_offload", True)):
        time = planned(64, deepspeed=zero).time()
        assert time is not None
        assert ("without offload, which takes longer" in time.basis) is told


def test_four_bits_are_cut_up_by_no_stage() -> None:
    run = planned(8, "24", **PUBLISHED, **LORA, load_in_4bit=True, deepspeed="auto")
    assert run.setting.deepspeed is None
    assert run.notes[-1].startswith("--deepspeed auto: none")
    assert "ZeRO" not in " ".join(advice(run))
    assert "zero" not in " ".join(advice(run))


def test_lower_stages_and_kept_activations_are_offered_where_they_fit() -> None:
    told = advice(planned(num_gpus=2, gpu="H200", deepspeed="zero3", model_name_or_path=TINY))
    assert any(text.startswith("--grad_checkpoint False fits, too") for text in told)
    alone = planned(num_gpus=2, gpu="H200", model_name_or_path=TINY).memory.total
    start = f"without --deepspeed it fits, too ({alone:.1f} GiB): weights are not gathered"
    assert any(text.startswith(start) for text in told)
    whole = planned(2, "H200", deepspeed="zero3", model_name_or_path=TINY, use_llm_lora=0)
    assert any(text.startswith("--deepspeed zero1 fits, too") for text in advice(whole))


OLDER: dict[str, Any] = {
    "gpu": "V100-SXM2-32GB",
    "bf16": False,
    "fp16": True,
    "model_name_or_path": TINY,
    "max_steps": 10**9,
}
"""A card whose kernels take packed rows by segments."""


@pytest.mark.parametrize(
    ("changes", "offered"),
    [
        ({"deepspeed": "zero1"}, True),
        ({"deepspeed": "zero1", "torch_compile": True}, False),
        ({"deepspeed": "zero3"}, False),
        ({"deepspeed": "zero1", "max_steps": 2}, False),
        ({"deepspeed": "zero1", "bf16": False, "fp16": False}, False),
        ({"load_in_4bit": True}, False),
        ({"use_packed_ds": True}, True),
        ({"use_packed_ds": True, "attn_implementation": "sdpa"}, False),
        (OLDER, True),
        ({**OLDER, "use_packed_ds": True}, False),
    ],
)
def test_compiling_is_offered_to_long_runs_that_can(changes: dict[str, Any], offered: bool) -> None:
    given = {**PUBLISHED, **LORA, "max_steps": 100_000, "bf16": True, "gpu": "H200", **changes}
    told = advice(planned(8, **given))
    assert any(text.startswith("--torch_compile True was measured") for text in told) is offered


def test_a_compiled_run_is_told_to_compile_nothing_where_it_is_cut_up() -> None:
    """ZeRO-3 is refused beside it, by `train` and by a plan."""
    told = advice(planned(8, "H100", **WHOLE, torch_compile=True))
    cut_up = [text for text in told if "zero3" in text or "ZeRO-3" in text]
    assert len(cut_up) >= 2
    assert all("--torch_compile False" in text for text in cut_up)
    followed = planned(8, "H100", **WHOLE, deepspeed="zero3", torch_compile=False)
    assert f": {followed.memory.total:.1f} GiB" in " ".join(cut_up)


def test_hours_of_adapters_of_the_vision_tower_alone() -> None:
    """What is frozen has no gradients: they are those of a LoRA."""
    vision: dict[str, Any] = {"use_backbone_lora": 16, "freeze_llm": True, "freeze_mlp": True}
    run = planned(1, "H200", **PUBLISHED, **vision, freeze_backbone=True)
    assert run.trained == "lora"
    beside = planned(
        1, "H200", **PUBLISHED, **{**vision, "freeze_llm": False}, freeze_backbone=True
    )
    assert beside.trained == "full"


COUNTED: dict[str, Any] = {
    "model_name_or_path": TINY,
    "meta_path": SAMPLES,
    "dynamic_image_size": True,
    "use_thumbnail": True,
    "max_dynamic_patch": 12,
    "max_seq_length": 8192,
    "per_device_train_batch_size": 4,
}
"""A sample has 14 tiles, four have 17."""


@pytest.mark.parametrize("packs", [{}, {"use_packed_ds": True, "max_packed_tokens": 8192}])
def test_a_smaller_micro_batch_is_what_the_run_would_have(packs: dict[str, Any]) -> None:
    run = planned(1, "24", **COUNTED, **packs)
    smaller = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    followed = planned(1, "24", **{**COUNTED, **packs, **smaller})
    assert run.largest(1) == followed.setting.batch
    assert run.largest(1).num_tiles >= run.setting.batch.num_tiles / 4


def test_packing_is_offered_where_it_fits() -> None:
    run = planned(1, "24", **COUNTED)
    followed = planned(1, "24", **COUNTED, use_packed_ds=True, max_packed_tokens=8192)
    (told,) = [text for text in advice(run) if "--use_packed_ds" in text]
    assert told.startswith("--use_packed_ds True --max_packed_tokens 8192 fits, too (")
    assert f"({followed.memory.total:.1f} GiB)" in told
    between = (run.memory.total + followed.memory.total) / 2
    tight = replace(run, machine=planned_machine(f"{(between + 0.75) / 0.9:.6f}", 1))
    assert tight.fits(tight.memory)
    assert "--use_packed_ds True --max_packed_tokens 8192 fits" not in " ".join(advice(tight))
    for half, offered in ({"bf16": True}, True), ({"bf16": False}, False):  # segments in fp32
        compiled = planned(1, "48", **COUNTED, torch_compile=True, **half)
        assert ("--use_packed_ds" in " ".join(advice(compiled))) is offered


def test_records_are_counted_where_they_can_be() -> None:
    """Lengths are the run's own: those of ``examples/samples`` with the tiny model's tokenizer."""
    run = planned(1, "24", model_name_or_path=TINY, meta_path=SAMPLES)
    assert not run.data.is_stated
    assert len(run.data.tokens) == 8
    assert run.steps == 1
    assert run.setting.batch.rows == 4
    assert run.setting.batch.row_tokens == run.data.tokens.max()
    assert run.epoch.tokens == run.data.tokens.sum()


def test_rows_are_as_long_as_the_run_makes_them() -> None:
    options = {"model_name_or_path": TINY, "meta_path": SAMPLES, "pad_to_multiple_of": 128}
    run = planned(1, "24", **options)
    assert run.setting.batch.row_tokens == 256
    samples = {**options, "pad_to_multiple_of": 1}
    assert run.epoch.imbalance.padding > planned(1, "24", **samples).epoch.imbalance.padding


def test_packs_are_joined_in_one_row() -> None:
    options = {"model_name_or_path": TINY, "meta_path": SAMPLES, "max_seq_length": 512}
    run = planned(1, "24", use_packed_ds=True, max_packed_tokens=512, **options)
    assert run.setting.batch.rows == 1
    assert run.setting.batch.row_tokens >= run.data.tokens.max()


def test_stated_tokens_and_the_limits_of_a_micro_batch() -> None:
    run = planned(
        sample_tokens=700, max_seq_length=2048, deepspeed="zero3", per_device_train_batch_size=2
    )
    assert run.epoch.tokens == 700 * 2000
    largest = run.setting.batch
    assert (largest.rows, largest.row_tokens, largest.num_tiles) == (2, 2048, 2)
    packed = planned(use_packed_ds=True, deepspeed="zero3", per_device_train_batch_size=2)
    assert packed.setting.batch.rows == 1
    assert packed.setting.batch.row_tokens == 2 * 4096


def test_max_steps_go_before_epochs() -> None:
    run = planned(max_steps=100, gradient_accumulation_steps=4, per_device_train_batch_size=4)
    assert run.steps == 100
    assert as_json(run)["tokens"] == pytest.approx(100 * 128 * (16 + 256), rel=0.05)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"use_packed_ds": True, "max_packed_tokens": 512}, "--max_packed_tokens 512 is less"),
        ({"nosuch": 1}, "--nosuch"),
        ({"max_seq_lenght": 1}, "--max_seq_length"),
        ({"bf16": True, "fp16": True}, "both --fp16 and --bf16"),
        ({"model_name_or_path": "no/such/place/of/a/model"}, "no such directory"),
        ({"meta_path": "no/such.json"}, "--meta_path no/such.json: no such file"),
        ({"deepspeed": "zero9"}, "zero9"),
        ({"deepspeed": "zero3", "torch_compile": True}, "--torch_compile with ZeRO-3"),
        (
            {**LORA, "bf16": True, "load_in_4bit": True, "torch_compile": True},
            "--torch_compile with --load_in_4bit",
        ),
        ({"mfu": 2}, "--mfu"),
        ({"sample_tokens": 0}, "--sample_tokens"),
    ],
)
def test_wrong_arguments_are_told_as_train_tells_them(
    options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(**options)
    assert problem in str(caught.value)


def test_a_meta_that_promises_nothing(tmp_path: Path) -> None:
    entry = {"root": "x", "annotation": "gone.jsonl", "data_augment": False, "repeat_time": 1}
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"one": {**entry, "length": 0}}))
    with pytest.raises(DatasetError):
        planned(meta_path=meta)
    meta.write_text(json.dumps({"one": {**entry, "length": 100, "repeat_time": 2.5}}))
    assert len(planned(meta_path=meta).data.tokens) == 250


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("H100", "NVIDIA H100 80GB HBM3"),
        ("h100 pcie", "NVIDIA H100 PCIe"),
        ("A100", "NVIDIA A100-SXM4-80GB"),
        ("A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB"),
        ("rtx 4090", "NVIDIA GeForce RTX 4090"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("80", "80 GiB"),
        ("40 GB", "40 GiB"),
        ("81559MiB", "79.6475 GiB"),
        ("RTX4090", "NVIDIA GeForce RTX 4090"),
        ("4090", "NVIDIA GeForce RTX 4090"),
        ("RTX 4090 24GB", "NVIDIA GeForce RTX 4090"),
        ("L40S 48GB", "NVIDIA L40S"),
        ("T4 16 GB", "Tesla T4"),
        ("A100 80GB", "NVIDIA A100-SXM4-80GB"),
        ("a100_80g", "NVIDIA A100-SXM4-80GB"),
        ("A100-40G", "NVIDIA A100-SXM4-40GB"),
        ("A100-PCIE-80GB", "NVIDIA A100 80GB PCIe"),
        ("H100-SXM5-80GB", "NVIDIA H100 80GB HBM3"),
        ("H100PCIe", "NVIDIA H100 PCIe"),
        ("H200 141GB", "NVIDIA H200"),
        ("V100 32GB", "Tesla V100-SXM2-32GB"),
        ("V100 16 GB", "Tesla V100-SXM2-16GB"),
    ],
)
def test_names_of_gpus(said: str, name: str) -> None:
    assert planned_machine(said, 1).gpu == name


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("RTX", "is one of several"),
        ("A100 PCIe", "is one of several"),
        ("nosuch", "no GPU"),
        ("", "no GPU"),
        ("A100 48GB", "no GPU"),
        ("H100 80GB HBM3 MIG 1g.10gb", "no GPU"),
        ("0", "want memory > 0"),
        ("3060", "up to 1024 GiB, or a GPU's name"),  # no card of 3060 GiB that all would fit
    ],
)
def test_gpus_that_nobody_knows(said: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        planned_machine(said, 1)


def test_fp16_only_where_there_is_no_bf16() -> None:
    with pytest.raises(ConfigError, match="does not compute in it"):
        planned(gpu="V100", bf16=True)
    assert as_json(planned(gpu="V100", fp16=True, deepspeed="zero3"))["hours"] > 0


def test_tensor_cores_count_for_fp32_where_they_are_asked_for() -> None:
    slow, fast = (
        planned(bf16=False, deepspeed="zero3", mfu=0.3, tf32=tf32).time() for tf32 in (False, True)
    )
    assert slow is not None
    assert fast is not None
    assert slow.hours == pytest.approx(8 * fast.hours)  # 19.5 and 156 TFLOP/s of an A100
    with pytest.raises(ConfigError, match="--tf32: Tesla V100"):
        planned(gpu="V100", bf16=False, tf32=True)


def test_the_nearest_measurement() -> None:
    """Rows of every kind find themselves; what trains weighs more than the device."""
    for row in MEASURED:
        assert peaks_of(row.device) is not None
        assert 0 < row.low <= row.high <= 1
        setting = {key: getattr(row, key) for key in ("trained", "packed", "stage", "recompute")}
        found = nearest(device=row.device, **setting)
        assert [getattr(found, key) for key in setting] == [*setting.values()]
    far = nearest(
        device="NVIDIA A100-SXM4-80GB", trained="lora", packed=False, stage=3, recompute=True
    )
    assert far.trained == "lora"


def test_hours_of_lora_rest_on_a_measured_lora() -> None:
    """Of the same card, packed or not, and of the stage where it was measured."""
    for packed, stage, basis in (
        (True, 3, "two packs of 4,096 tokens a step"),
        (True, 0, "two packs of 4,096 tokens a step"),
        (False, 0, "grouped, 4 samples a forward pass"),
        (False, 3, "grouped, 4 samples a forward pass"),
    ):
        row = nearest(
            device="NVIDIA H200", trained="lora", packed=packed, stage=stage, recompute=True
        )
        assert row.stage == (stage if packed else 0)
        assert basis in row.source
    run = planned(1, "H200", **LORA, deepspeed="zero3", bf16=True, use_packed_ds=True)
    time = run.time()
    assert time is not None
    assert "LoRA of rank 16" in time.basis


def test_a_setting_has_one_figure_for_a_card() -> None:
    """And none is of what was measured before packed kernels, a tenth of the peak and less."""
    settings = [(row.device, row.trained, row.packed, row.stage, row.recompute) for row in MEASURED]
    assert len(set(settings)) == len(settings)
    assert min(row.low for row in MEASURED) > 0.13


@pytest.fixture(scope="module")
def whole() -> PlannedRun:
    """The tiny model in full on one GPU."""
    return planned(1, "24", model_name_or_path=TINY, use_llm_lora=0, freeze_backbone=False)


def held(run: PlannedRun, optim: str, deepspeed: str | None = None) -> Holdings:
    setting = replace(
        run.setting,
        compute_dtype=torch.bfloat16,
        optimizer=optimizer_state(optim),
        deepspeed=None if deepspeed is None else read_zero_file(deepspeed),
    )
    return holdings_of(parameter_sizes(run.model), setting)


def test_optimizers_keep_different_amounts(whole: PlannedRun) -> None:
    usual = held(whole, "adamw_torch").optimizer
    assert usual == 8 * 5_526_720
    # Embeddings stay in fp32, and so does what is smaller than 4,096 elements.
    assert held(whole, "adamw_8bit").optimizer == pytest.approx(12_959_115, rel=0.02)
    assert held(whole, "sgd").optimizer == 0
    assert 250_000 < held(whole, "adafactor").optimizer < 397_195  # which is the file
    # What ZeRO has flattened has no rows and columns, nor embeddings; a master on top.
    assert held(whole, "adafactor", "zero1").optimizer == pytest.approx(usual, rel=1e-4)
    eighth = held(whole, "adamw_8bit", "zero3").optimizer
    assert eighth == pytest.approx((4 + 2 + 2 / 64) * 5_526_720, rel=1e-3)


def test_what_a_paged_optimizer_keeps_gives_way_to_the_host(whole: PlannedRun) -> None:
    paged, plain = (held(whole, name) for name in ("paged_adamw_32bit", "adamw_torch"))
    large = [size for size in parameter_sizes(whole.model) if size.numel >= 100_000]
    assert paged.on_cpu == 8 * sum(size.numel for size in large) > 0
    assert paged.optimizer + paged.on_cpu == plain.optimizer
    for zero in ("zero2", "zero3"):
        flat = held(whole, "paged_adamw_32bit", zero)
        assert flat.on_cpu + flat.optimizer == held(whole, "adamw_torch", zero).optimizer
        assert flat.optimizer < flat.on_cpu


def test_the_optimizer_is_the_runs() -> None:
    run = planned(1, "24", optim="paged_lion_8bit", model_name_or_path=TINY)
    assert run.setting.optimizer == optimizer_state("paged_lion_8bit")
    momentum = planned(1, "24", optim="sgd", optim_args="momentum=0.9", model_name_or_path=TINY)
    assert momentum.setting.optimizer.moments == 1


def test_four_bits_are_of_the_llms_layers_alone() -> None:
    """A weight in nf4 with double quantisation takes 4.127 bits, in bf16 16."""
    plain = planned(num_gpus=1, use_llm_lora=16)
    four = planned(num_gpus=1, use_llm_lora=16, load_in_4bit=True)
    layers = 4 * (256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 576)
    saved = layers * (2 - 4.127 / 8) / 2**30
    assert plain.memory.weights - four.memory.weights == pytest.approx(saved, rel=0.001)
