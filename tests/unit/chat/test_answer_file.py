"""``--out`` of a batch: what may be written to, and that nothing else is touched."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from internvl_chat.chat.answer_file import AnswerFile
from internvl_chat.errors import ConfigError

ROW = '{"line": 1, "question": "Who?", "answer": "I"}\n'
QUESTION = '{"question": "Who?"}\n'


def same(folder: Path) -> Path:
    return folder / "q.jsonl"


def hard_link(folder: Path) -> Path:
    os.link(folder / "q.jsonl", folder / "hard")
    return folder / "hard"


def link(folder: Path) -> Path:
    (folder / "soft").symlink_to("q.jsonl")
    return folder / "soft"


def detour(folder: Path) -> Path:
    return folder / "sub" / ".." / "q.jsonl"


@pytest.mark.parametrize("name", [same, hard_link, link, detour])
def test_the_questions_are_no_place_for_answers(
    tmp_path: Path, name: Callable[[Path], Path]
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "q.jsonl").write_text(ROW)  # even where they look like answers
    out = name(tmp_path)
    with pytest.raises(ConfigError, match="is the file of questions itself"):
        AnswerFile(out, os.stat(tmp_path / "q.jsonl"))
    assert (tmp_path / "q.jsonl").read_text() == ROW


@pytest.mark.parametrize(
    "content",
    [
        b"dear diary\n",
        b"dear diary",  # no write that was cut
        QUESTION.encode(),
        QUESTION[:-1].encode(),
        b'{"answer": "5"}\n',
        b'{"line": "1", "answer": "5"}\n',
        b'{"line": true, "answer": "5"}\n',
        b'{"line": 0, "answer": "5"}\n',
        b'{"line": 1, "answer": 5}\n',
        b"[1, 2]\n",
        b"null\n",
        ROW.encode() + b"caf\xe9\n",
        b"\x89PNG\r\n\x1a\n\0\0",
        ROW.encode("utf-16"),
    ],
)
def test_what_is_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(content)
    with pytest.raises(ConfigError, match=r"out\.jsonl:\d: no line of answers\. Name a new file"):
        AnswerFile(out)
    assert out.read_bytes() == content


def test_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "dangling").symlink_to("nowhere/b")
    (tmp_path / "circle").symlink_to("circle")
    for name, problem in {
        "nowhere/a": "there is no folder",
        "a.txt/b": "there is no folder",
        "dangling": "there is no folder",
        "circle": "Too many levels",
        "x" * 300: "File name too long",
        ".": "is a folder",
    }.items():
        with pytest.raises(ConfigError, match=problem):
            AnswerFile(tmp_path / name)


def test_nothing_is_made_before_it_is_open(tmp_path: Path) -> None:
    answers = AnswerFile(tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []
    with answers:
        pass
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_rows_are_put_in_order(tmp_path: Path) -> None:
    real = tmp_path / "real.jsonl"
    error = '{"line": %d, "error": "%s"}\n'
    real.write_text(
        "\ufeff"
        + '{"line": 3, "answer": "c", "mine": 1}\n\n'
        + error % (2, "old")
        + '{"line": 4, "ans\n'  # cut, and written behind by an earlier version
        + ROW.replace("\n", "\r\n")
        + error % (1, "older than its answer")
        + '{"line": 5, "answer": "e"}'
    )
    real.chmod(0o640)
    (tmp_path / "out.jsonl").symlink_to("real.jsonl")
    answers = AnswerFile(tmp_path / "out.jsonl")
    assert sorted(answers.answered) == [1, 3, 5]
    assert answers.answered[1] == {"question": "Who?"}
    with answers:
        answers.write([{"line": 2, "error": "new \udce9"}])
    wanted = [
        ROW,
        '{"line": 2, "error": "new \\\\udce9"}\n',
        '{"line": 3, "answer": "c", "mine": 1}\n',
    ]
    assert real.read_text() == "".join(wanted) + '{"line": 5, "answer": "e"}\n'
    assert (tmp_path / "out.jsonl").is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "real.jsonl"]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with (
        AnswerFile(Path("/dev/full")) as answers,
        pytest.raises(ConfigError, match="No space left"),
    ):
        answers.write([{"line": 1, "answer": "x"}])


def test_two_starts_do_not_write_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    first, second = AnswerFile(out), AnswerFile(out)
    with first:
        with pytest.raises(ConfigError, match="is being written by another start"):
            second.__enter__()
        first.write([{"line": 1, "answer": "x"}])
    with second:
        pass
    assert out.read_text() == '{"line": 1, "answer": "x"}\n'


def test_a_pipe_gets_the_rows(tmp_path: Path) -> None:
    read, write = os.pipe()
    with open(read) as end, AnswerFile(Path(f"/dev/fd/{write}")) as answers:
        answers.write([{"line": 1, "answer": "x"}])
        assert end.readline() == '{"line": 1, "answer": "x"}\n'
    os.close(write)
