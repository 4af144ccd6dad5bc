"""Judged benchmarks and ``eval prepare`` at the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from internvl_chat.cli import main
from internvl_chat.cli.run import main as run_main
from tests.support.evaluation.judge_server import JudgeServer, judge_server, refused, said
from tests.support.evaluation.own import write_own
from tests.support.evaluation.releases import RELEASES
from tests.support.training import ROOT

MODEL = str(ROOT / "pretrained/internvl-chat-tiny")
OWN = ("--jsonl", "colors.jsonl", "--metric", "judge", "--metric", "exact")
FOLDER = Path("results/pretrained_internvl-chat-tiny/own-colors")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_own(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "LOCAL_LLM"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    """Grades everything 0.5, but refuses the first three requests."""
    with judge_server(
        lambda number, _: refused(429, retry_after="0") if number < 3 else said("0.5")
    ) as found:
        yield found


def run(*more: str) -> int:
    return main(["eval", "run", MODEL, *OWN, "--max-new-tokens", "3", *more])


def test_a_judge_grades_and_is_paid_once(
    work: Path, server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert run("--judge", "a-judge") == 0
    score = json.loads((FOLDER / "score.json").read_text("utf-8"))
    card = json.loads((FOLDER / "run.json").read_text("utf-8"))
    assert score["judge"] == card["judge"]["name"] == "a-judge"
    assert score["rules"]["2024"]["metrics"]["judge"] == 0.5
    distinct = card["judge"]["num_replies"]
    # Two of the refusals met the words that find out whether anybody is there, busy or not.
    assert card["judge"]["retries"] == {"http 429": 1}
    assert card["judge"]["prompt_tokens"] == 10 * distinct
    assert server.url not in json.dumps(card)
    asked = len(server.bodies)
    assert asked == distinct + 3
    answers = str(FOLDER / "answers.jsonl")
    assert main(["eval", "score", answers, *OWN, "--judge", "a-judge"]) == 0
    assert len(server.bodies) == asked  # judge.jsonl beside the answers


def test_without_a_judge_the_rest_is_scored(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    score = json.loads((FOLDER / "score.json").read_text("utf-8"))
    assert score["judge"] is None
    metrics = score["rules"]["2024"]["metrics"]
    assert metrics["judge"] is None
    assert metrics["exact"] > 0.5  # the tiny model knows colours
    assert "there is no judge" in capsys.readouterr().out


def test_a_judge_that_is_down_is_told_before_and_after(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judge_server(lambda *_: refused(401, "no such key")) as server:
        assert run("--judge", "a-judge", "--judge-base-url", server.url) == 0
    told = capsys.readouterr()
    reason = "the judge a-judge does not answer (http 401, key refused)"
    assert told.err.index(f"warning: {reason}") < told.err.index("7/7")
    assert f"note: {reason}\n" in told.out
    card = json.loads((FOLDER / "run.json").read_text("utf-8"))
    score = json.loads((FOLDER / "score.json").read_text("utf-8"))
    assert (card["judge"], score["judge"]) == (None, None)
    assert card["judge_absence"] == score["notes"][0] == reason
    assert [body["messages"][-1]["content"] for body in server.bodies] == ["hello", "hello"]


def test_a_judge_that_falls_silent_is_told(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with judge_server(
        lambda _, body: said("Hi") if body["messages"][-1]["content"] == "hello" else refused(401)
    ) as server:
        assert run("--judge", "a-judge", "--judge-base-url", server.url) == 0
    assert "requests to the judge a-judge had no reply" in capsys.readouterr().out
    card = json.loads((FOLDER / "run.json").read_text("utf-8"))
    assert card["judge"]["num_replies"] == 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--judge-base-url", "no url"), "names no http"),
        (
            ("--judge-prompts", "none.yaml", "--judge-base-url", "http://127.0.0.1:1/v1"),
            "none.yaml",
        ),
    ],
)
def test_a_judge_that_cannot_be_is_found_before_the_model(
    work: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], told: str
) -> None:
    assert run(*more) == 2
    assert told in capsys.readouterr().err
    assert not FOLDER.exists()


def test_run_py_hands_its_options_on(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "No", "--model", MODEL, "--judge-key", "k", "--api-nproc", "2"]
    assert run_main([*options, "--retry", "3", "--judge", "exact_matching"]) == 2
    assert "No" in capsys.readouterr().err


def test_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RELEASES["pope"](tmp_path / "release")
    argv = ["eval", "prepare", "pope", str(tmp_path / "release"), "--out", str(tmp_path / "work")]
    assert main(argv) == 0
    assert "llava_pope_test.jsonl" in capsys.readouterr().out
    assert (tmp_path / "work/data/pope/llava_pope_test.jsonl").is_file()
    assert main(argv) == 0
    assert "all was in place" in capsys.readouterr().out
    assert main(["eval", "prepare", "pop", str(tmp_path)]) == 2
    assert "pope" in capsys.readouterr().err
