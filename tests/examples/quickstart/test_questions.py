"""From annotation lines to questions, batches and reply files."""

from pathlib import Path

from examples.annotations import (
    DatasetEntry,
    conversation,
    read_jsonl,
    read_meta,
    write_jsonl,
    write_meta,
)
from examples.quickstart.questions import (
    Asked,
    load_questions,
    read_answers,
    read_replies,
    write_replies,
)


def asked(num_images: int, prompt: str, truth: str) -> Asked:
    return Asked(
        dataset="d",
        identity=prompt,
        images=("x.png",) * num_images,
        prompt="<image>\n" * num_images + prompt,
        truth=truth,
    )


def test_a_meta_comes_back_and_its_records_become_questions(tmp_path: Path) -> None:
    lines = [
        {"id": "1", "image": "a.png", "conversations": conversation(("<image>\nOne?", "1"))},
        {"id": "2", "image": ["a.png", "b.png"], "conversations": conversation(("Two?", "2"))},
        {"id": "3", "conversations": conversation(("Three?", "3"), ("Four?", "4"))},
    ]
    annotation = tmp_path / "d.jsonl"
    entry = DatasetEntry(
        name="d",
        root=Path("images"),
        annotation=annotation,
        length=write_jsonl(annotation, lines),
    )
    write_meta(tmp_path / "meta.json", [entry])
    assert read_meta(tmp_path / "meta.json") == [entry]
    questions = load_questions(tmp_path / "meta.json")
    assert [q.images for q in questions] == [
        ("images/a.png",),
        ("images/a.png", "images/b.png"),
        (),
    ]
    assert [(q.prompt, q.truth) for q in questions] == [
        ("<image>\nOne?", "1"),
        ("Two?", "2"),
        ("Three?", "3"),
    ]


def test_answers_of_the_benchmark_go_to_their_questions(tmp_path: Path) -> None:
    lines = [{"id": "d/One?", "answer": "1"}, {"id": "d/Two?", "error": "no such file"}]
    write_jsonl(tmp_path / "own-heldout/answers.jsonl", lines)
    answers = read_answers(tmp_path)
    assert [answers[asked(1, text, "").key] for text in ("One?", "Two?")] == ["1", ""]


def test_replies_come_back_from_their_file(tmp_path: Path) -> None:
    given = [asked(1, "One?", "1").answered("1"), asked(0, "Two?", "2").answered("3\n")]
    write_replies(tmp_path / "r.jsonl", given)
    assert read_replies(tmp_path / "r.jsonl") == given
    assert [line["right"] for line in read_jsonl(tmp_path / "r.jsonl")] == [True, False]
    assert given[0].question == "One?"
