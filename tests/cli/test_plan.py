"""internvl-chat plan as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl_chat.cli import main
from tests.support.training import ROOT

TINY = [
    *("--model_name_or_path", str(ROOT / "pretrained/internvl-chat-tiny")),
    *("--meta_path", str(ROOT / "examples/samples/meta.json")),
]


def test_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TINY, "--num_gpus", "2", "--gpu", "H100"]) == 0
    told = capsys.readouterr().out
    assert "2 x NVIDIA H100 80GB HBM3" in told
    assert "fits: " in told
    assert "LoRA of rank 16 on the LLM" in told  # assumed, as train does
    assert max(map(len, told.splitlines())) <= 80


def test_it_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TINY, "--gpu", "0.5", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] is False
    assert report["advice"]
    assert report["hours"] is None
    assert report["num_gpus"] == 1


def test_a_run_file_and_flags_behind_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    values = dict(zip(TINY[::2], TINY[1::2], strict=True))
    lines = [f"{name.removeprefix('--')}: {value}" for name, value in values.items()]
    file.write_text("\n".join([*lines, "per_device_train_batch_size: 2", "max_steps: 7"]))
    assert main(["plan", str(file), "--max_steps", "9", "--gpu", "24GB", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["steps"] == 9
    assert report["worst_micro_batch"]["rows"] == 2


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([*TINY], "--gpu: is missing"),
        ([*TINY, "--gpu", "nosuch"], "no GPU 'nosuch' is known"),
        ([*TINY, "--gpu", "24", "--num_gpus", "0"], "--num_gpus: 0"),
        ([*TINY, "--gpu", "24", "--max_seq_lenght", "9"], "--max_seq_length"),
        ([*TINY, "--gpu", "24", "--bf16", "True", "--fp16", "True"], "both --fp16 and --bf16"),
        (["--gpu", "24"], "no model: give --model_name_or_path"),
        ([*TINY, "--gpu", "24", "--mfu", "40"], "--mfu: 40"),
    ],
)
def test_wrong_use(
    words: list[str],
    problem: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["plan", *words]) == 2
    assert problem in capsys.readouterr().err


def test_the_gpus_of_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    assert main(["plan", *TINY, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["num_gpus"], report["gpu"]) == (3, "NVIDIA H200")
