"""Shares of the memory's bandwidth, and what is asked of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_decode, gpu_train
from benchmarks.gpu.checkpoint import make_checkpoint
from benchmarks.gpu.decoding import Chat


def row(mode: str, rows: int, rate: float, **changes: Any) -> dict[str, Any]:
    """As the child reports it."""
    return {
        "mode": mode,
        "rows": rows,
        "tokens_per_second": rate,
        "step_ms": 1e3 * rows / rate,
        "first_token_ms": 115.0,
        "start_seconds": 2.0,
        "weights_gb": 68.0,
        "cache_gb": 0.1,
        "bytes_per_second": 68.1e9 * rate / rows,
        "peak_gib": 80.0,
        "answers": ["a"] * rows,
        **changes,
    }


def test_shares_and_targets() -> None:
    rows = [
        row("graphs", 1, 40.0),
        row("graphs", 16, 300.0),
        row("eager", 1, 8.0),
        row("eager", 16, 130.0, answers=["b"] * 16),
    ]
    found = {"card": {"name": "NVIDIA H200", "copy_tb_per_second": 4.0}, "rows": rows}
    shown = gpu_decode.show(found)
    assert rows[0]["of_copy"] == pytest.approx(0.681)
    assert rows[0]["of_data_sheet"] == pytest.approx(2.724 / 4.8)
    assert "| graphs | 1 | 40.0 | 25.00 | 2.72 | 0.68 | 0.57 | 115 | 2.0 | 80.0 |" in shown
    assert gpu_decode.verdicts(rows) == [
        ("one row: 0.68 of the memory's bandwidth (>= 0.6)", True),
        ("16 rows: 7.5 times the tokens of one (>= 8)", False),
    ]
    assert gpu_decode.alike(rows) == (
        "1 of 1 answers are those decoded eagerly; 0 of 16 answers are those decoded eagerly; "
        "eagerly, 0 of 16 are as that of one"
    )
    assert gpu_decode.alike(rows[:2]) == ""


def test_a_step_reads_the_weights_and_what_is_cached(tmp_path: Path) -> None:
    chat = Chat(str(make_checkpoint(tmp_path, "tiny")), torch.device("cpu"), new_tokens=8)
    llm = chat.model.language_model
    weights = sum(p.numel() for p in llm.parameters()) - 1000 * 64  # the table is looked up
    layers, groups, width = 2, 2, 16
    places = 4 + 8 / 2  # of the image, and half the answer
    assert chat.bytes_of_step(3) == {
        "weights": 4 * weights,
        "cache": 3 * places * 2 * layers * groups * width * 4,
    }
    measured = chat.measure("eager", 2, rounds=1)
    assert measured["tokens_per_second"] > 0
    assert measured["answers"][0] == measured["answers"][1]


@pytest.mark.slow
def test_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "figures.json"
    words = ["--folder", str(tmp_path), "--size", "tiny", "--device", "cpu", "--new_tokens", "4"]
    words += ["--batches", "1", "2", "--rounds", "1", "--json", str(report)]
    assert gpu_decode.main(words) == 0
    found = json.loads(report.read_text("utf-8"))
    assert [(r["mode"], r["rows"]) for r in found["rows"]] == [
        ("graphs", 1),
        ("graphs", 2),
        ("eager", 1),
        ("eager", 2),
    ]
    assert "| graphs | 1 |" in capsys.readouterr().out
    assert gpu_decode.main([*words, "--new_tokens", "1"]) == 2


@pytest.mark.parametrize("program", [gpu_decode, gpu_train])
def test_nothing_is_written_where_there_is_no_gpu(
    program: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The checkpoint of some sizes is 44 GB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert program.main(["--folder", str(tmp_path / "new"), "--size", "tiny"]) == 2
    assert "PyTorch finds no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
