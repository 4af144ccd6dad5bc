"""Files of questions: several at a time give what one by one gives, and one costs no other."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from internvl_chat.chat import load_model
from internvl_chat.chat.answer_file import AnswerFile, require_same_questions
from internvl_chat.chat.batch import BatchReport, answer_file
from internvl_chat.chat.question_lines import QuestionSource, open_questions, read_lines
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


def source_of(lines: list[str]) -> QuestionSource:
    raw = [line.encode() for line in lines]
    return QuestionSource(shown="in.jsonl", lines=raw, num_questions=len(raw), status=None)


def report_of(
    session: ChatSession, lines: list[str], out: Path, **options: Any
) -> tuple[BatchReport, list[dict[str, Any]]]:
    report = answer_file(session, source_of(lines), AnswerFile(out), num_segments=2, **options)
    return report, [json.loads(line) for line in out.read_text().split("\n")[:-1]]


def ask(session: ChatSession, lines: list[str], out: Path, **options: Any) -> list[dict[str, Any]]:
    return report_of(session, lines, out, **options)[1]


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
    assert rows[3]["error"] == "no such file: nowhere.png. Check the path."
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


@pytest.mark.parametrize(
    ("media", "same_as"),
    [
        ({"image": None, "video": None}, {}),
        ({"image": "", "video": ""}, {}),
        ({"image": [], "images": None, "video": []}, {}),
        ({"image": None, "images": ["{0}"]}, {"image": "{0}"}),
        ({"image": ["{0}", "{1}"]}, {"images": ["{0}", "{1}"]}),
        ({"video": "{gif}", "question": "<video>\nWho?"}, {"video": "{gif}"}),
        ({"image": "{0}", "video": "{gif}", "question": "<image>\n<video>\nWho?"}, None),
    ],
)
def test_media_are_named_as_in_training_data(
    session: ChatSession,
    lines: list[str],
    tmp_path: Path,
    media: dict[str, Any],
    same_as: dict[str, Any] | None,
) -> None:
    folder = Path(json.loads(lines[0])["image"]).parent

    def written(keys: dict[str, Any]) -> str:
        text = json.dumps({"question": "Who?", **keys})
        for name in ("0", "1"):
            text = text.replace(f"{{{name}}}", str(folder / f"{name}.png"))
        return text.replace("{gif}", str(folder / "a.gif"))

    if same_as is None:
        same_as = {key: value for key, value in media.items() if key != "question"}
    one, other = ask(session, [written(media), written(same_as)], tmp_path / "out.jsonl")
    assert one["answer"] == other["answer"]


UNASKABLE = {
    "no JSON": "nonsense",
    "no object": "[1]",
    "a text": '"What?"',
    "nothing": "null",
    "no question": '{"id": 3}',
    "a question that is none": '{"question": null}',
    "a number": '{"question": 5}',
    "too deep": '{"id": 1, "question": ' + "[" * 2000 + "]" * 2000 + "}",
    "too deep to write": '{"question": "a", "id": ' + "[" * 1000 + "]" * 1000 + "}",
    "half a character": '{"question": "\\ud800"}',
    "infinite": '{"question": "a", "id": 1e999}',
    "too long": json.dumps({"question": "word " * 3000}),
    "far too long": json.dumps({"question": "x" * 1_000_000}),
    "image is a number": '{"question": "a", "image": 7}',
    "image is an object": '{"question": "a", "image": {"path": "x.png"}}',
    "an image without a name": '{"question": "a", "image": ["", null]}',
    "a video as an image": '{"question": "a", "image": "x.mp4"}',
    "video is a list": '{"question": "a", "video": ["a", "b"]}',
    "a folder": '{"question": "a", "image": "/tmp"}',
    "a pipe": '{"question": "a", "image": "{folder}/pipe"}',
    "a video from a pipe": '{"question": "a", "video": "{folder}/pipe"}',
    "a name with a NUL": '{"question": "a", "image": "a\\u0000b"}',
    "a name that is too long": json.dumps({"question": "a", "image": "x" * 5000}),
    "a kind of URL that nothing opens": '{"question": "a", "image": "foo://x/y.png"}',
    "no image": '{"question": "a", "image": "{folder}/text.png"}',
    "a reserved token": '{"question": "<IMG_CONTEXT>"}',
    "a tag without an image": '{"question": "<image>"}',
}


def test_whatever_a_line_raises_is_its_own_error(session: ChatSession, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text.png").write_text("no image")
    bad = [line.replace("{folder}", str(tmp_path)) for line in UNASKABLE.values()]
    good = json.dumps({"question": "Who?"})
    mixed = [line for one in bad for line in (one, good)]
    report, rows = report_of(session, mixed, tmp_path / "out.jsonl")
    answered = dict(zip(UNASKABLE, rows[::2], strict=True))
    assert [name for name, row in answered.items() if not row.get("error")] == []
    assert {row["answer"] for row in rows[1::2]} == {
        session.model.chat(session.tokenizer, None, "Who?", GREEDY)
    }
    assert (report.answered, report.failed) == (len(bad), len(bad))
    told = " ".join(row["error"] for row in rows[::2])
    for word in ("meta", "record's", '"root"', "--max_image_pixels", "train"):
        assert word not in told, word
    # The next start answers the same, and the file is the same.
    again, rows_again = report_of(session, mixed, tmp_path / "out.jsonl")
    assert (again.answered, again.failed, again.answered_before) == (0, len(bad), len(bad))
    assert rows_again == rows


@pytest.mark.parametrize(
    "raised",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        MemoryError(),
        RuntimeError("a kernel\nand its trace"),
        KeyError("layer"),
        AssertionError(),
        OSError(5, "Input/output error"),
    ],
)
def test_a_question_that_ends_the_model_costs_no_other(
    session: ChatSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    batch_chat = session.model.batch_chat

    def failing(tokenizer: Any, tiles: Any, questions: list[str], *args: Any, **kw: Any) -> Any:
        if "bad" in questions:
            raise raised
        return batch_chat(tokenizer, tiles, questions, *args, **kw)

    monkeypatch.setattr(session.model, "batch_chat", failing)
    lines = [json.dumps({"question": text}) for text in ("One?", "bad", "Two?")]
    rows = ask(session, lines, tmp_path / "out.jsonl", batch_size=3)
    assert ["answer" in row for row in rows] == [True, False, True]
    assert "\n" not in rows[1]["error"]
    if isinstance(raised, MemoryError | torch.OutOfMemoryError):
        assert rows[1]["error"].startswith("the memory is full")


def test_an_answer_ends_with_the_context(session: ChatSession, tmp_path: Path) -> None:
    """Alone or beside others, and beside one that has all the room it wants."""
    limit = session.model.config.llm_config.max_position_embeddings
    word = "word "
    long = word * 10
    while session.count_prompt_tokens(long) < limit - 20:
        long += word
    while session.count_prompt_tokens(long) < limit - 3:
        long += "."
    room = limit - session.count_prompt_tokens(long)
    assert 0 < room < GREEDY["max_new_tokens"]
    lines = [json.dumps({"question": text}) for text in (long, "Who?", word * limit)]
    rows = ask(session, lines, tmp_path / "out.jsonl")
    model, tokenizer = session.model, session.tokenizer
    cut = {**GREEDY, "max_new_tokens": room}
    assert rows[0]["answer"] == model.chat(tokenizer, None, long, cut)
    assert rows[1]["answer"] == model.chat(tokenizer, None, "Who?", GREEDY)
    assert f"maximum context length is {limit} tokens" in rows[2]["error"]
    assert str(session.count_prompt_tokens(word * limit)) in rows[2]["error"]


def test_what_was_written_can_be_asked(
    session: ChatSession, lines: list[str], tmp_path: Path
) -> None:
    odd = {"id": 2**70, "question": "Is\u2028this\x85one\x0b\x1cline? é", "answer": "yes"}
    asked = [*lines, json.dumps(odd, ensure_ascii=False), '{"id": NaN, "question": "Who?"}']
    rows = ask(session, asked, tmp_path / "out.jsonl")
    text = (tmp_path / "out.jsonl").read_text()
    assert "Is\u2028this\x85one" in text
    assert f'"id": {2**70}, ' in text
    assert rows[-1]["id"] is None
    written = text.split("\n")[:-1]
    again = ask(session, written, tmp_path / "again.jsonl")
    outcomes = [
        {key: row.get(key) for key in ("id", "question", "image", "answer")} for row in rows
    ]
    assert [{key: row.get(key) for key in outcomes[0]} for row in again] == outcomes


def test_an_image_under_another_name_is_told(
    session: ChatSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = json.dumps({"question": "What is in b.jpg", "image_path": "a.jpg", "answer": "c.jpg"})
    ask(session, [line, line], tmp_path / "out.jsonl")
    (told,) = caplog.messages
    assert told == 'in.jsonl:1: key "image_path" is not read: what it names is not seen'


def test_only_what_is_open_is_asked(session: ChatSession, lines: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    whole = ask(session, lines, out)
    rows = out.read_text().split("\n")[:-1]
    # As interruptions leave it: a write cut in the middle, and no order.
    (out).write_text("\n".join([rows[8], *rows[1:4], rows[0], rows[4][:20]]))
    report, again = report_of(session, lines, out)
    assert (report.answered, report.failed, report.answered_before) == (2, 4, 3)
    assert again == whole


def test_answers_to_other_questions_are_no_answers(session: ChatSession, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    ask(session, [json.dumps({"question": "Who?"})], out)
    before = out.read_bytes()
    with pytest.raises(ConfigError, match=r"out\.jsonl answers another question than in\.jsonl:1"):
        ask(session, [json.dumps({"question": "What?"})], out)
    assert out.read_bytes() == before


def test_lines_of_every_encoding() -> None:
    text = '{"question": "a\u2028b\u0a0a\u0d0dé"}\r\n\n{"question": "😀"}'
    wanted = [b'{"question": "a\xe2\x80\xa8b\xe0\xa8\x8a\xe0\xb4\x8d\xc3\xa9"}', b""]
    wanted.append('{"question": "😀"}'.encode())
    for encoding in (
        "utf-8",
        "utf-8-sig",
        "utf-16",
        "utf-16-le",
        "utf-16-be",
        "utf-32",
        "utf-32-be",
    ):
        assert list(read_lines(io.BytesIO(text.encode(encoding)))) == wanted, encoding
    broken = '{"a": 1}\n'.encode("utf-16-le") + b"x"
    assert list(read_lines(io.BytesIO(broken))) == [b'{"a": 1}', b"x"]
    assert list(read_lines(io.BytesIO(b"caf\xe9\nb\x0bc\x1c\n"))) == [b"caf\xe9", b"b\x0bc\x1c"]
    assert list(read_lines(io.BytesIO(b""))) == []


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ('{"question": "a"}\r{"question": "b"}\r', r"end in \\r alone, want \\n"),
        ('{\n "question": "a"\n}\n', "is one JSON object over 3 lines"),
        ('[{"question": "a"}]', r"json2jsonl .*q\.jsonl .*q\.lines\.jsonl makes"),
    ],
)
def test_files_in_which_no_line_is_a_question(tmp_path: Path, raw: str, told: str) -> None:
    (tmp_path / "q.jsonl").write_bytes(raw.encode())
    with pytest.raises(ConfigError, match=told):
        open_questions(str(tmp_path / "q.jsonl"))


def test_a_carriage_return_within_a_line(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(b'{"question":\r"a"}\r\n')
    assert open_questions(str(tmp_path / "q.jsonl")).num_questions == 1


def test_an_image_added_to_a_question_makes_it_another(
    session: ChatSession, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    ask(session, [json.dumps({"question": "Who?", "image": None})], out)
    ask(session, [json.dumps({"question": "Who?"})], out)
    for media in ({"image": "a.png"}, {"images": ["a.png"]}, {"video": "a.gif"}):
        with pytest.raises(ConfigError, match="answers another question"):
            ask(session, [json.dumps({"question": "Who?", **media})], out)


def test_answers_to_lines_that_are_gone(session: ChatSession, tmp_path: Path) -> None:
    out, line = tmp_path / "out.jsonl", json.dumps({"question": "Who?"})
    ask(session, [line, line], out)
    with pytest.raises(ConfigError, match=r"answers line 2, and in\.jsonl has 1 lines"):
        require_same_questions(source_of([line]), AnswerFile(out))


def test_a_data_url_is_not_repeated_as_the_name_of_a_file(
    session: ChatSession, tmp_path: Path
) -> None:
    line = json.dumps({"image": "data:image/png;base64," + "A" * 5000, "question": "Who?"})
    (row,) = ask(session, [line], tmp_path / "out.jsonl")
    assert row["error"].endswith("Write its image into a file of its own and name that.")
    assert len(row["error"]) < 200


def test_marks_of_joined_files_are_no_text() -> None:
    """``/image`` behind one was asked as a question."""
    assert list(read_lines(io.BytesIO(b"\xef\xbb\xbfa\n\xef\xbb\xbf/image b\n"))) == [
        b"a",
        b"/image b",
    ]
