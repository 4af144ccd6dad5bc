"""Data and answer files that users get wrong: a reason with its place, or a score; no traceback."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.cli import main
from internvl_chat.errors import UserError
from internvl_chat.evaluation.prompts import describe_prompts
from internvl_chat.evaluation.registry import TASKS
from internvl_chat.evaluation.scoring import as_text, load_questions, score_answers, score_files
from internvl_chat.evaluation.task import RULES, DataRoot, ExportInput, Question
from tests.support.evaluation.every_task import LMU_DATA, write_every_task

FAMILIES = [
    *("pope", "mme", "scienceqa", "tiny_lvlm", "seed", "mmvp", "mvbench", "refcoco-val"),
    *("mmmu-val", "mmbench-dev-en", "ccbench-dev", "mmvet", "llava-bench"),
    *("vqa-okvqa-val", "vqa-chartqa-test", "vqa-docvqa-val", "vqa-infovqa-test"),
    *("vqa-ai2d-test", "vqa-gqa-testdev"),
    *("MathVista_MINI", "HallusionBench", "MMStar", "OCRBench", "MMMU_DEV_VAL", "MMVet"),
    "LLaVABench",
]
"""Tasks that read their files in their own way."""
WRONG: tuple[Any, ...] = (None, 7, ["x", "y"], {"a": 1}, "", "\ud800")
DEEP = b"[" * 100_000
ODD_ANSWERS = (
    *("", " ", "\x00 judged {", "\x00review {", "a\tb\nc\rd", "\ud83d", "9" * 5000, "1e999"),
    *("nan", "1/0", "[[1e999, 5, 3, " + "9" * 400 + "]]", "(" * 3000, "٣²", '{"a": 1}'),
)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataRoot]:
    """Data of all tasks; the working directory."""
    folder = tmp_path_factory.mktemp("unfit")
    write_every_task(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LMUData", str(folder / LMU_DATA))
        yield DataRoot(folder=Path(), lmu_data=folder / LMU_DATA)


def told(name: str, root: DataRoot, *files: Path) -> str:
    """Why a task cannot be asked or scored; empty if it can, with numbers that JSON knows."""
    task = TASKS[name]
    try:
        if files:
            report, missing = score_files(task, root, files)
            json.dumps(report.as_dict(), allow_nan=False, ensure_ascii=False).encode()
            for rules in RULES:
                as_text(report, rules).encode()
            return f"missing {missing}" if missing else ""
        for rules in task.rules:
            json.dumps(describe_prompts(task, root, rules, None), ensure_ascii=False).encode()
    except UserError as err:
        return str(err) if err.exit_code == 2 else "another exit code"
    return ""


def data_files(name: str, root: DataRoot) -> list[Path]:
    """The first of many alike, and all of a few."""
    paths = [root.of(TASKS[name].suite) / one.path for one in TASKS[name].data if not one.is_folder]
    if name == "mme":
        paths = sorted(root.folder.glob("eval/mme/Your_Results/*.txt"))[:1]
    return paths[:1] if name in ("mvbench", "tiny_lvlm") else paths


def replaced(path: Path, content: bytes, look: Callable[[], str]) -> str:
    """What is told while a file holds something else."""
    kept = path.read_bytes()
    path.write_bytes(content)
    try:
        return look()
    finally:
        path.write_bytes(kept)


def sites(content: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Containers and a key in each: all of an object, the middle of a list."""
    if isinstance(content, dict) and depth < 4:
        for key in list(content)[:10]:
            yield content, key
            yield from sites(content[key], depth + 1)
    elif isinstance(content, list) and content and depth < 4:
        middle = len(content) // 2
        yield content, middle
        yield from sites(content[middle], depth + 1)


def mutations(raw: bytes) -> Iterator[bytes]:
    """A JSON file or JSON lines with one value of another type, or without it."""
    text = raw.decode()
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        content, is_lines = json.loads(text), False
    except ValueError:
        content, is_lines = [json.loads(line) for line in lines], True
    for number in range(sum(1 for _ in sites(content))):
        for wrong in (*WRONG, "drop"):
            changed = copy.deepcopy(content)
            place, key = list(sites(changed))[number]
            if wrong == "drop":
                del place[key]
            else:
                place[key] = wrong
            if is_lines:
                yield "".join(f"{json.dumps(one)}\n" for one in changed).encode()
            else:
                yield json.dumps(changed).encode()


# -- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [one for one in FAMILIES if one != "mmmu-val"])
def test_data_files_that_are_none(given: DataRoot, name: str) -> None:
    def look() -> str:
        return told(name, given)

    assert look() == ""
    for path in data_files(name, given):
        raw = path.read_bytes()
        broken = (b"", b"\n", raw[: len(raw) * 2 // 3 - 1], b"hello\n", raw[:9] + b"\xff" + raw[9:])
        for content in (*broken, b"\x00" * 9, DEEP, b"7\n", b"null\n", b"[[1]]\n"):
            reason = replaced(path, content, look)
            assert path.name in reason or path.parent.name in reason or content in broken[:3]
        aside = path.with_name("aside")
        path.rename(aside)
        assert path.name in look() or name == "mme"
        path.mkdir()
        assert path.name in look() or name == "mme"
        path.rmdir()
        aside.rename(path)
    assert look() == ""


@pytest.mark.parametrize("name", [one for one in FAMILIES if one != "mmmu-val"])
def test_a_mark_at_the_start_and_other_ends_of_lines_change_nothing(
    given: DataRoot, name: str
) -> None:
    def look() -> str:
        return json.dumps(describe_prompts(TASKS[name], given, TASKS[name].rules[0], None))

    usual = look()
    for path in data_files(name, given):
        raw = path.read_bytes()
        assert replaced(path, b"\xef\xbb\xbf" + raw, look) == usual
        if name != "MathVista_MINI":  # whose cells have several lines, kept as they are
            unix = raw.replace(b"\r\n", b"\n")
            assert replaced(path, unix.replace(b"\n", b"\r\n"), look) == usual
        assert replaced(path, raw.rstrip(b"\r\n"), look) == usual


@pytest.mark.parametrize("name", FAMILIES)
def test_wrong_types_in_data_have_a_place(given: DataRoot, name: str) -> None:
    answers = given.folder / "answers.jsonl"
    write_answers(answers, load_questions(TASKS[name], given, "2024"), "A")
    for path in data_files(name, given):
        if path.suffix not in (".json", ".jsonl"):
            continue
        for content in mutations(path.read_bytes()):
            reason = replaced(path, content, lambda: told(name, given))
            assert not reason or path.name in reason or answers.name in reason
            scored = replaced(path, content, lambda: told(name, given, answers))
            assert not reason or scored


@pytest.mark.parametrize(
    ("name", "path", "field", "wrong"),
    [
        ("tiny_lvlm", "data/tiny_lvlm/updated_datasets/{}/dataset.json", "gt_answers", None),
        ("tiny_lvlm", "data/tiny_lvlm/updated_datasets/{}/dataset.json", "gt_answers", [None]),
        ("mvbench", "data/MVBench/json/action_sequence.json", "answer", None),
        ("vqa-ai2d-test", "data/ai2diagram/test_vlmevalkit.jsonl", "question_id", [1]),
        ("vqa-ai2d-test", "data/ai2diagram/test_vlmevalkit.jsonl", "question", ["a"]),
        ("mmvet", "data/mm-vet/llava-mm-vet.jsonl", "text", None),
        ("llava-bench", "data/llava-bench-in-the-wild/context.jsonl", "caption", None),
        ("seed", "data/SEED/seed.jsonl", "text", 7),
    ],
)
def test_no_wrong_value_is_asked_or_scored_as_its_name(
    given: DataRoot, name: str, path: str, field: str, wrong: Any
) -> None:
    file = given.folder / path.format("Visual_Reasoning")
    text = file.read_text("utf-8")
    records = json.loads(text) if file.suffix == ".json" else text.splitlines()
    records = [json.loads(one) if isinstance(one, str) else one for one in records]
    records[0][field] = wrong
    lines = "".join(f"{json.dumps(one)}\n" for one in records)
    content = json.dumps(records) if file.suffix == ".json" else lines
    reason = replaced(file, content.encode(), lambda: told(name, given))
    assert file.name in reason
    assert f'"{field}" is ' in reason


# -- answers --------------------------------------------------------------------------------------


def write_answers(path: Path, questions: list[Question], answer: Any, *, odd: Any = None) -> Path:
    """Ours: the same answer to all questions, another to the first."""
    lines = [
        {"id": one.id, "prompt": one.prompt, "answer": answer, "tokens": 1} for one in questions
    ]
    if odd is not None:
        lines[0] |= odd
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", FAMILIES)
def test_odd_answers_are_scored_and_unfit_ones_refused(given: DataRoot, name: str) -> None:
    questions = load_questions(TASKS[name], given, TASKS[name].rules[0])
    path = given.folder / "answers.jsonl"
    for answer in ODD_ANSWERS:
        assert told(name, given, write_answers(path, questions, answer)) == ""
    assert told(name, given, write_answers(path, questions, "A", odd={"answer": 7})) == ""
    first = questions[0].id
    reason = told(name, given, write_answers(path, questions, "A", odd={"answer": None}))
    assert reason == f"missing {[first]}"
    reason = told(name, given, write_answers(path, questions, "A", odd={"answer": ["a"]}))
    assert reason.startswith("answers.jsonl:1: \"answer\" is ['a'], want a text or a number.")
    reason = told(name, given, write_answers(path, questions, "A", odd={"id": "no such"}))
    assert "answers question 'no such', which" in reason
    reason = told(name, given, write_answers(path, questions, "A", odd={"id": questions[1].id}))
    assert reason == f"missing {[first]}"
    odd = {"id": questions[1].id, "answer": "B"}
    reason = told(name, given, write_answers(path, questions, "A", odd=odd))
    assert reason.startswith(f"answers.jsonl:2: answers question {questions[1].id} again")
    raw = write_answers(path, questions, "A").read_bytes()
    for content in (b"", b"\n", raw[:5], b"\xff\n", DEEP, b"null", raw + b"7\n", raw[:-9]):
        path.write_bytes(content)
        assert path.name in told(name, given, path)


@pytest.mark.parametrize("name", FAMILIES)
def test_unfit_files_of_the_originals(given: DataRoot, name: str) -> None:
    task = TASKS[name]
    questions = load_questions(task, given, task.rules[0])
    exported = task.export(
        ExportInput(
            questions=questions,
            answers={one.id: "yes" for one in questions},
            checkpoint="a/b",
            stamp="1",
            rules=task.rules[0],
        )
    )
    folder = given.folder / "exported"
    folder.mkdir()
    for file, content in exported.items():
        raw = content.encode() if isinstance(content, str) else content
        path = folder / Path(file).name
        kinds = [b"", raw[: len(raw) // 2], b"hello", raw[:40] + b"\xff" + raw[40:], DEEP, b"null"]
        for changed in [*kinds, *(mutations(raw) if path.suffix in (".json", ".jsonl") else ())]:
            path.write_bytes(changed)
            reason = told(name, given, path)
            assert not reason or path.name in reason or reason.startswith("missing")
    shutil.rmtree(folder)


# -- divisions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_divided_by_zero(given: DataRoot, name: str) -> None:
    task = TASKS[name]
    questions = load_questions(task, given, task.rules[0])
    parts = [questions, questions[-1:], [], *([one] for one in questions[:8])]
    for part in parts:
        for answer in ("", "no", "A"):
            answers = {one.id: answer for one in part}
            report = score_answers(task, given, answers, ids=frozenset(answers))
            json.dumps(report.as_dict(), allow_nan=False)
            assert all(as_text(report, rules) is not None for rules in RULES)
            assert report.n == len(part)


def test_the_command_says_it_in_a_line(given: DataRoot, capsys: pytest.CaptureFixture[str]) -> None:
    path = given.folder / "answers.jsonl"
    questions = load_questions(TASKS["pope"], given, "2024")
    write_answers(path, questions, "no", odd={"answer": {"a": 1}})
    assert main(["eval", "score", "pope", str(path), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: answers.jsonl:1: \"answer\" is {'a': 1}, want a text")
    write_answers(path, questions, "no", odd={"answer": None})
    assert main(["eval", "score", "pope", str(path), "--json"]) == 1
    captured = capsys.readouterr()
    assert "error: 1 answers are missing: 0" in captured.err
    assert json.loads(captured.out)["n"] == len(questions)
