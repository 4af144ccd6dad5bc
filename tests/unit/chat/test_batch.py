"""Files of questions: several at a time give what one by one gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl_chat.chat import load_model
from internvl_chat.chat.batch import answer_file
from internvl_chat.chat.session import ChatSession
from internvl_chat.errors import ConfigError
from tests.support.training import write_tiny_chat_model

GREEDY = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> ChatSession:
    model, tokenizer = load_model(str(write_tiny_chat_model(tmp_path_factory.mktemp("m") / "m")))
    return ChatSession(model, tokenizer, GREEDY)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    paths = [str(folder / f"{number}.png") for number in range(3)]
    for number, path in enumerate(paths):
        Image.new("RGB", (30, 20 + number), (80 * number, 200, 10)).save(path)
    Image.new("RGB", (10, 10)).save(folder / "a.gif", save_all=True, append_images=[])
    records: list[Any] = [
        {"id": "one", "image": paths[0], "question": "What?"},
        {"question": "No image, but a rather longer question than the others?"},
        {"image": paths, "question": "Which?"},
        {"id": 4, "image": "nowhere.png", "question": "Who?"},
        {"image": paths[:2], "question": "<image> or <image>?"},
        {"image": paths[0], "question": "<image> and <image>?"},
        {"question": "  "},
        {"video": str(folder / "a.gif"), "question": "When?"},
    ]
    return [*(json.dumps(record) for record in records), "", "{"]


def ask(session: ChatSession, lines: list[str], out: Path, **options: Any) -> list[dict[str, Any]]:
    answer_file(session, lines, "in.jsonl", out, num_segments=2, **options)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_batches_give_what_one_by_one_gives(
    session: ChatSession, lines: list[str], tmp_path: Path
) -> None:
    told: list[int] = []
    alone = ask(session, lines, tmp_path / "1.jsonl", batch_size=1)
    rows = ask(session, lines, tmp_path / "3.jsonl", batch_size=3, progress=told.append)
    assert rows == alone
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert sum(told) == 9
    assert [row["line"] for row in rows if "error" in row] == [4, 6, 7, 10]
    assert rows[0]["id"] == "one"
    assert rows[3]["id"] == 4
    assert "nowhere.png" in rows[3]["error"]
    assert "2 <image> tags in the question, 1 images" in rows[5]["error"]
    assert rows[6]["error"] == "the question is empty"
    model, tokenizer = session.model, session.tokenizer
    wanted = model.chat(tokenizer, None, json.loads(lines[1])["question"], GREEDY)
    assert rows[1]["answer"] == wanted


def test_images_of_a_line_that_failed_are_forgotten(
    session: ChatSession, lines: list[str], tmp_path: Path
) -> None:
    good = json.loads(lines[0])["image"]
    half = json.dumps({"image": [good, "nowhere.png"], "question": "What?"})
    rows = ask(session, [half, json.dumps({"question": "Who?"})], tmp_path / "out.jsonl")
    assert "nowhere.png" in rows[0]["error"]
    assert rows[1]["answer"] == session.model.chat(session.tokenizer, None, "Who?", GREEDY)


def test_only_what_is_open_is_asked(session: ChatSession, lines: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    whole = ask(session, lines, out)
    again = answer_file(session, lines, "in.jsonl", out, num_segments=2)
    assert (again.answered, again.failed) == (0, 4)  # errors are tried again
    kept = out.read_text().splitlines()[: len(whole)]
    assert [json.loads(line) for line in kept] == whole


def test_a_file_that_is_something_else_is_left_alone(session: ChatSession, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("dear diary\n")
    with pytest.raises(ConfigError, match=r"out\.jsonl:1: no line of answers"):
        ask(session, [], out)
    assert out.read_text() == "dear diary\n"
