"""``internvl-chat eval --jsonl`` and ``--meta`` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl_chat.cli import main
from tests.support.evaluation.own import write_own, write_own_meta
from tests.support.training import ROOT

MODEL = str(ROOT / "pretrained/internvl-chat-tiny")
needs_tiny = pytest.mark.skipif(
    not Path(MODEL).is_dir(), reason="the tiny model is not in this checkout"
)


def say(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["eval", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@needs_tiny
def test_a_file_is_asked_and_scored_again_by_another_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_own(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    command = ["run", MODEL, "--jsonl", "data/colors.jsonl", "--max-new-tokens", "8"]
    code, out, err = say(capsys, *command, "--device", "cpu")
    assert code == 0, err
    assert "exact: truth down, answer across" in out
    folder = tmp_path / "results/pretrained_internvl-chat-tiny/own-colors"
    asked = (folder / "answers.jsonl").read_bytes()
    assert len(asked.splitlines()) == 7
    score = json.loads((folder / "score.json").read_text())
    assert score["rules"]["2024"]["metrics"]["exact"] > 0.5

    more = ["--metric", "anls", "--metric", "rouge", "--by", "skill"]
    code, out, _ = say(capsys, *command, "--device", "cpu", *more)
    assert code == 0
    assert "rougeL" in out
    assert "questions to ask" not in out  # no model was loaded
    assert (folder / "answers.jsonl").read_bytes() == asked

    answers = str(folder / "answers.jsonl")
    code, out, _ = say(capsys, "score", answers, "--jsonl", "data/colors.jsonl", "--json")
    assert code == 0
    assert json.loads(out)["rules"] == score["rules"]


def test_prompts_of_a_meta(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = str(write_own_meta(tmp_path))
    code, out, _ = say(capsys, "prompts", "--meta", meta, "--json")
    assert code == 0
    first, *_, last = json.loads(out)
    assert (first["id"], first["images"]) == ("colors/c0", ["images/red.png"])
    assert (last["id"], last["prompt"]) == ("boxes/b1", "<image>\nWhere is it?")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", MODEL], "TASK: nothing to ask. Name a task (eval list), or give --jsonl FILE."),
        (["run", MODEL, "pope", "--metric", "exact"], "--metric: is of own records, and there"),
        (["run", MODEL, "--jsonl", "a", "--meta", "b"], "--jsonl and --meta: exclude each other"),
        (["run", MODEL, "pope", "--held-out", "x"], "--held-out: is of own records, and there"),
        (["run", MODEL, "--jsonl", "a.jsonl", "--held-out", "x"], "Give --meta, too."),
        (["run", MODEL, "--jsonl", "a.jsonl"], "a.jsonl (file of own-a): records as for training"),
        (["run", MODEL, "--jsonl", "a.jsonl", "--metric", "bleeu"], "Did you mean bleu?"),
        (["score", "--jsonl", "a.jsonl"], "ANSWERS: no file"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = say(capsys, *argv)
    assert code == 2
    assert message in err
