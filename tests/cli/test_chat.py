"""``internvl-chat chat`` with the shipped tiny model: what a user types, and what comes back."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples.tiny_model.records import draw
from examples.tiny_model.scene import Scene, Shape
from internvl_chat.cli import main
from tests.support.training import ROOT, environment

TINY = ROOT / "pretrained/internvl-chat-tiny"
BACKGROUND = (172, 172, 172)
GREYS = ROOT / "tests/unit/data/greys.mp4"


def run(*words: object, typed: str = "", cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "internvl_chat", "chat", "--model", str(TINY)]
    return subprocess.run(
        [*command, *map(str, words)],
        input=typed,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env=environment(HF_HUB_OFFLINE="1"),
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with star.jpg (red, top left) and circle.jpg (blue, bottom right)."""
    star = Shape(kind="star", color="red", x=14, y=14, radius=13.0, fill=(216, 32, 32))
    circle = Shape(kind="circle", color="blue", x=98, y=98, radius=13.0, fill=(32, 72, 214))
    for shape in (star, circle):
        image = draw(Scene(background=BACKGROUND, shapes=(shape,)))
        image.save(tmp_path / f"{shape.kind}.jpg", quality=95)
    return tmp_path


def test_one_answer_with_its_speed(place: Path) -> None:
    result = run("--image", "star.jpg", "What shape is red?", cwd=place)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "star\n"
    assert "tokens/s" in result.stderr


def test_two_images_and_json(place: Path) -> None:
    question = "How many shapes are in the second picture?"
    images = ("--image", "star.jpg", "--image", "circle.jpg")
    result = run(*images, "--json", question, cwd=place)
    told = json.loads(result.stdout)
    assert told["answer"] == "1"
    assert told["question"] == question
    assert 0 < told["first_token_seconds"] <= told["seconds"]
    assert told["num_tokens"] == 2  # the number and the end


def test_a_conversation_goes_on_after_mistakes(place: Path) -> None:
    (place / "broken.jpg").write_bytes(b"no image")
    typed = "\n".join(
        (
            "/image broken.jpg",
            "/nonsense",
            "/image",
            "/image star.jpg",
            "What shape is red?",
            "<image> and <image>?",
            "Where is the red star?",
            "/save talk.json",
            "/save talk.json",
            "/reset",
            "/image circle.jpg",
            "What shape is blue?",
            f"/video {GREYS}",
            "/quit",
            "never asked",
        )
    )
    result = run(typed=typed, cwd=place)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["star", "top left", "circle"]
    for problem in (
        "error: broken.jpg",
        "error: unknown command /nonsense",
        "error: /image needs a file",
        "2 <image> tags in the question, 0 images",
        "talk.json exists and is not overwritten",
    ):
        assert problem in result.stderr
    saved = json.loads((place / "talk.json").read_text())
    assert saved["media"] == ["star.jpg"]
    assert [turn["answer"] for turn in saved["turns"]] == ["star", "top left"]


def test_a_file_of_questions_is_resumed(place: Path) -> None:
    questions = [
        {"id": "a", "image": "star.jpg", "question": "What shape is red?"},
        {"image": "missing.jpg", "question": "What is this?"},
        {"question": "What is 2 plus 3?"},
        {"image": ["circle.jpg"], "question": "What color is the circle?"},
    ]
    lines = [json.dumps(question) for question in questions]
    odd = json.dumps({"image": 7, "question": "What?"})
    (place / "in.jsonl").write_text("\n".join([*lines, "no json", odd]) + "\n")
    first = run("--batch", "in.jsonl", "--out", "out.jsonl", cwd=place)
    assert first.returncode == 1  # three lines could not be answered
    told = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    answers = {row["line"]: row.get("answer") for row in told}
    assert answers == {1: "star", 2: None, 3: "5", 4: "blue", 5: None, 6: None}
    assert told[0]["id"] == "a"
    assert "missing.jpg" in told[1]["error"]
    # As an interruption leaves it: the last write cut, the one before it not made.
    kept = (place / "out.jsonl").read_text().splitlines()[:3]
    (place / "out.jsonl").write_text("\n".join(kept) + '\n{"line": 4, "ans')
    draw(Scene(background=BACKGROUND, shapes=())).save(place / "missing.jpg")
    second = run("--batch", "-", "--out", "out.jsonl", typed="\n".join(lines), cwd=place)
    assert second.returncode == 0, second.stderr
    rows = (place / "out.jsonl").read_text().splitlines()
    assert [rows[0], rows[2]] == [kept[0], kept[2]]
    assert [json.loads(row)["line"] for row in rows] == [1, 2, 3, 4]
    assert all("answer" in json.loads(row) for row in rows)
    assert "2 were answered in out.jsonl before" in second.stderr


WRONG = [
    (("--batch", "in.jsonl"), "--batch and --out go together"),
    (("--out", "o"), "--batch and --out go together"),
    (("--batch", "in.jsonl", "--out", "o", "Why?"), "--batch takes questions"),
    (("--batch", "none.jsonl", "--out", "o"), "none.jsonl cannot be read"),
    (("--batch", "folder", "--out", "o"), "folder cannot be read: Is a directory"),
    (("--batch", "array.json", "--out", "o"), "array.json is one JSON array"),
    (("--batch", "in.jsonl", "--out", "in.jsonl"), "in.jsonl is the file of questions itself"),
    (("--batch", "-", "--out", "in.jsonl"), "in.jsonl is the file of questions itself"),
    (("--batch", "in.jsonl", "--out", "star.jpg"), "star.jpg:1: no line of answers"),
    (("--batch", "in.jsonl", "--out", "other"), "other answers another question than in.jsonl:1"),
    (("--batch", "in.jsonl", "--out", "folder"), "folder is a folder"),
    (("--batch", "in.jsonl", "--out", "no/o"), "there is no folder"),
    (("--image", "none.jpg", "Why?"), "--image: no such file: none.jpg. Check the path."),
    (("--video", "none.mp4", "Why?"), "--video: no such file: none.mp4. Check the path."),
    (("--video", str(GREYS), "--num-segments", "9999", "Why?"), "maximum context length is 2048"),
    (("--video", str(GREYS), "--video-backend", "torchcodec", "Why?"), "torchcodec"),
    (("word " * 3000,), "tokens in the question alone, and the model's maximum context length is"),
    (("--image", "star.jpg", "<image> <image> Why?"), "2 <image> tags"),
    (("   ",), "the question is empty"),
    (("caf\udce9?",), "the question is no UTF-8: byte 0xe9 at character 4"),
    (("--temperature", "-1", "Why?"), "'--temperature'"),
    (("--temperature", "1e-40", "Why?"), "--temperature: 1e-40 is no temperature"),
    (("--temperature", "inf", "Why?"), "--temperature: inf is no temperature"),
    (("--device", "foo", "Why?"), "'foo' is no device that torch computes on here"),
    (("--device", "meta", "Why?"), "'meta' is no device that torch computes on here"),
    (("--device", "cuda:99", "Why?"), "'cuda:99' is no device that torch computes on here"),
    (("--gpus", "99", "Why?"), "99 asked for"),
    (("--model", "", "Why?"), "no model is named"),
]


UNREADABLE = [
    (("--image", "folder", "Why?"), "--image: cannot read folder: it is a folder"),
    (("--image", "in.jsonl", "Why?"), "--image: in.jsonl is no image that can be read"),
    (("--image", str(GREYS), "Why?"), "Ask about it as a video."),
    (("--image", "foo://x", "Why?"), "--image: cannot read foo://x: fsspec cannot open it"),
    (("--video", "star.jpg", "Why?"), "star.jpg is no video: it is a JPEG image. Ask about it as"),
]


@pytest.mark.parametrize(
    ("words", "problem", "code"),
    [(*one, 2) for one in WRONG] + [(*one, 3) for one in UNREADABLE],
)
def test_wrong_use_is_one_line(
    place: Path,
    words: tuple[str, ...],
    problem: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Told before the model's weights are read, and nothing is written."""
    monkeypatch.chdir(place)
    (place / "folder").mkdir()
    (place / "in.jsonl").write_text('{"question": "Why?"}\n')
    (place / "array.json").write_text('[\n{"question": "Why?"}\n]\n')
    (place / "other").write_text('{"line": 1, "question": "Who?", "answer": "I"}\n')
    before = {path: path.read_bytes() for path in place.iterdir() if path.is_file()}
    with open(place / "in.jsonl") as typed:
        monkeypatch.setattr(sys, "stdin", typed)
        assert main(["chat", "--model", str(TINY), *words]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert problem in line
    assert {path: path.read_bytes() for path in place.iterdir() if path.is_file()} == before


def converse(typed: bytes, *words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
    return main(["chat", "--model", str(TINY), *words])


def test_bytes_that_are_no_text_end_no_conversation(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    typed = b"\xef\xbb\xbfWhat is 2 plus 3?\r\n" + b"What is caf\xe9?\n" + b"word " * 20_000
    typed += b"\n\x00\x1b[A\xe2\x80\xa8\r?\n/image nope.jpg\n<image>?\nWhat is 1 plus 1?"
    assert converse(typed, monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    told = out.splitlines()
    assert (told[0], told[-1]) == ("5", "2")
    for problem in (
        "error: question: the question is no UTF-8: byte 0xe9 at character 12",
        "and the model's maximum context length is 2048 tokens, answer included",
        "/reset forgets what was said and shown.",
        "error: no such file: nope.jpg. Check the path.\n",
        "error: question: 1 <image> tags in the question, 0 images",
    ):
        assert problem in err
    assert "512" not in err  # transformers' own warning, with another limit
    assert converse("What is 2 plus 3?\n".encode("utf-16"), monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == "5\n"
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", "--model", str(TINY)]) == 2
    assert capsys.readouterr().err == "error: chat: standard input is closed. Give a question.\n"


def test_no_checkpoint(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--model", str(place), "Why?"]) == 2
    assert "config.json: cannot be read" in capsys.readouterr().err
