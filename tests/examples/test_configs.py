"""The run files of examples/configs, each started by the command that its comment names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from internvl_chat.train.argument_file import written
from internvl_chat.train.assumed import Surroundings
from internvl_chat.train.parsing import parse
from tests.support.run_files import FILES, FOLDER, TINY, command_of, run_command
from tests.support.training import ROOT


def test_there_are_three_and_each_names_its_command() -> None:
    assert [path.stem for path in FILES] == ["full_slurm", "lora_2gpus", "lora_laptop"]
    for path in FILES:
        command = command_of(path)
        assert command[-3:] == ["internvl-chat", "train", f"examples/configs/{path.name}"]
        assert path.read_text("utf-8").count("\n") <= 40


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_is_read_without_a_complaint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    problems: list[str] = []
    flags = [one.flag for one in written([str(path)], problems)]
    assert problems == []
    around = Surroundings(world_size=1, on_gpu=False, has_bf16=False, num_cpus=2)
    argv = [str(path), "--model_name_or_path", TINY]
    args = parse(argv, device=torch.device("cpu"), around=around)
    assert {flag.removeprefix("--") for flag in flags} == set(args.given)
    assert args.train.output_dir == f"work_dirs/{path.stem}"


def test_lora_on_a_laptop(tmp_path: Path) -> None:
    said = run_command(command_of(FOLDER / "lora_laptop.yaml"), tmp_path / "out")
    assert "what trains: LoRA of rank 16 on the LLM" in said
    assert not re.findall("WARNING.*only", said)
    assert (tmp_path / "out/adapter_model.safetensors").is_file()
    record = json.loads((tmp_path / "out/arguments.json").read_text())
    assert record["arguments"]["lr_scheduler_type"] == "cosine"


@pytest.mark.slow
@pytest.mark.distributed
def test_lora_on_two_devices(tmp_path: Path) -> None:
    said = run_command(command_of(FOLDER / "lora_2gpus.yaml"), tmp_path / "out")
    assert "4 per rank x 2 ranks x 2 accumulation = 16 per step" in said
    assert "ZeRO-3" in said
    assert "only 1 optimizer step in all" in said
    assert (tmp_path / "out/adapter_model.safetensors").is_file()
