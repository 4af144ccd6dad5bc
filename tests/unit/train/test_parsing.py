"""The command line of a run: spellings, files, and mistakes reported all at once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl_chat.errors import ConfigError
from internvl_chat.train import parsing
from internvl_chat.train.arguments import DataArguments, ModelArguments, TrainArguments
from internvl_chat.train.parsing import RunArguments, parse, peek
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


def test_unknown_name_in_a_file(base: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("learning_rat: 1.0e-4\n")
    assert problems([str(path), *base]) == [
        "unknown argument --learning_rat. Did you mean --learning_rate?"
    ]


def test_broken_file(base: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("a: [")
    assert "neither YAML nor JSON" in problems([str(path), *base])[0]
    assert "cannot be read" in problems([str(tmp_path / "none.yaml"), *base])[0]


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
        ("--eval_steps 5 --eval_strategy steps", "without --eval_meta_path"),
        ("--fp16 True --bf16 True", "both --fp16 and --bf16"),
        ("--drop_path_rate 1.5", "want 0 <= rate < 1"),
        ("--label_smoothing_factor 0.1", "not supported"),
        ("--ps_version v3", "invalid choice: 'v3'"),
        ("--loss_reduction mean", "invalid choice: 'mean'"),
        ("--max_steps 1 2", "too many values: '2'"),
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
