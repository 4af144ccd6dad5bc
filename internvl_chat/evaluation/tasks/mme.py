"""MME: pairs of yes/no questions in fourteen tasks (https://arxiv.org/abs/2306.13394)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.evaluation.joining import OpenQuestions
from internvl_chat.evaluation.metrics.mme import TaskCount, stored
from internvl_chat.evaluation.sources import ImageFile
from internvl_chat.evaluation.task import (
    DataFile,
    DataRoot,
    ExportInput,
    Generation,
    Question,
    Rules,
    Score,
    ScoreInput,
    TaskSpec,
)
from internvl_chat.evaluation.tasks.wording import FIRST_VERDICT, SHORT

GROUPS = {
    "Perception": (
        "existence",
        "count",
        "position",
        "color",
        "posters",
        "celebrity",
        "scene",
        "landmark",
        "artwork",
        "OCR",
    ),
    "Cognition": (
        "commonsense_reasoning",
        "numerical_calculation",
        "text_translation",
        "code_reasoning",
    ),
}
TASK_NAMES = tuple(name for names in GROUPS.values() for name in names)
RELEASE = "data/mme/MME_Benchmark_release_version"
LISTS = "eval/mme/Your_Results"
"""Question lists of the original evaluator; without one it is rebuilt from the release."""
_IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")


class StoredAnswer(str):
    """A reply out of an answer file: processed already, with the line that it stood in."""

    line: str

    def __new__(cls, text: str, line: str = "") -> StoredAnswer:
        """Of a line's last field, and the line."""
        answer = super().__new__(cls, text)
        answer.line = line
        return answer


def load(root: DataRoot, rules: Rules, *, lists: Path | None = None) -> list[Question]:
    """Questions of all tasks, those about the same image next to each other.

    Args:
        root: where the release lies.
        rules: of no account here.
        lists: folder of question lists that a user names; each task must have its own there.
    """
    questions = []
    for task in TASK_NAMES:
        folder = root.folder / RELEASE / task
        given = (lists or root.folder / LISTS) / f"{task}.txt"
        rows = list(_listed(given) if lists or given.is_file() else _rebuilt(folder))
        for number, (image, text, truth) in enumerate(rows):
            questions.append(
                Question(
                    id=f"{task}/{number}",
                    prompt=f"{text} {SHORT}",
                    images=(_image(root.folder, _image_path(folder, image)),),
                    record={"task": task, "image": image, "text": text, "truth": truth},
                )
            )
    return questions


def _listed(path: Path) -> Iterator[tuple[str, str, str]]:
    """Image name, question and truth of each line of a question list."""
    for line, where in _lines(path):
        yield _fields(line, 3, where, "image, question, answer")  # type: ignore[misc]


def _rebuilt(folder: Path) -> Iterator[tuple[str, str, str]]:
    """The same of the release, which has a text file of two lines beside each image."""
    texts = folder / "questions_answers_YN"
    texts = texts if texts.is_dir() else folder
    files = {_image_name(folder, path.stem): path for path in texts.glob("*.txt")}
    if not files:
        raise DatasetError(
            "holds no questions",
            where=str(folder),
            fix=f"Unpack the release there, or put the task's list into {LISTS}/.",
        )
    for image in sorted(files):
        rows = [_fields(line, 2, where, "question, answer") for line, where in _lines(files[image])]
        for text, truth in sorted(rows, key=lambda row: row[1].lower() != "yes"):
            yield image, text, truth


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines that are not blank, with their place. A carriage return within a line stays there."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as err:
        raise DatasetError(f"cannot be read ({err.strerror})", where=str(path)) from err
    except UnicodeDecodeError as err:
        raise DatasetError(f"is no UTF-8 ({err.reason})", where=str(path)) from err
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if line.strip():
            yield line, f"{path}:{number}"


def _fields(line: str, number: int, where: str, names: str) -> tuple[str, ...]:
    fields = tuple(line.strip().split("\t"))
    if len(fields) != number:
        raise DatasetError(
            f"{len(fields)} tab-separated fields, want {number}: {names}", where=where
        )
    return fields


def _image_path(folder: Path, name: str) -> Path:
    """Flat, or in ``images/``."""
    places = (folder / name, folder / "images" / name)
    return next((path for path in places if path.is_file()), places[0])


def _image(base: Path, path: Path) -> ImageFile:
    return ImageFile(str(path), shown=path.relative_to(base).as_posix())


def _image_name(folder: Path, stem: str) -> str:
    """With the suffix that is there; that of the task where the image is not."""
    names = [stem + suffix for suffix in _IMAGE_SUFFIXES]
    there = (name for name in names if _image_path(folder, name).is_file())
    return next(there, names[1] if folder.name in GROUPS["Cognition"] else names[0])


def _line(question: Question, answer: str) -> str:
    """As it stands in the answer file, without the newline."""
    if isinstance(answer, StoredAnswer):
        return answer.line
    record = question.record
    return "\t".join((record["image"], question.prompt, record["truth"], stored(answer)))


def score(given: ScoreInput) -> Score:
    """Accuracy and accuracy+ of each task, out of 200, and the sums of the two groups."""
    metrics: dict[str, float | None] = {}
    per_sample: dict[str, float] = {}
    counts: dict[str, TaskCount] = {}
    for task in TASK_NAMES:
        asked = [one for one in given.questions if one.record["task"] == task]
        if asked:
            counts[task] = _count(asked, given)
            right = counts[task].right
            per_sample |= {one.id: float(hit) for one, hit in zip(asked, right, strict=True)}
    printed: list[str] = []
    for group, tasks in GROUPS.items():
        scores = {task: counts[task].score for task in tasks if task in counts}
        metrics |= {group: sum(scores.values()), **scores}
        printed += [f"=========== {group} ==========="]
        printed += [f"{line}\n" for task in scores for line in counts[task].left_out]
        printed += [f"total score: {metrics[group]} \n"]
        printed += [f"\t {task}  score: {value}" for task, value in scores.items()]
        printed += ["\n"]
    text = "\n".join(printed).rstrip("\n") + "\n"
    return Score(metrics=metrics, printed=text, per_sample=per_sample, notes=_notes(given, counts))


def _count(asked: Sequence[Question], given: ScoreInput) -> TaskCount:
    if given.rules != "official":
        return TaskCount.of([_line(one, given.answers[one.id]) for one in asked])
    return TaskCount.by_verdicts(
        [(one.record["truth"], _stored(given.answers[one.id])) for one in asked]
    )


def _stored(answer: str) -> str:
    return str(answer) if isinstance(answer, StoredAnswer) else stored(answer)


def _notes(given: ScoreInput, counts: Mapping[str, TaskCount]) -> tuple[str, ...]:
    """What the original stops at, or leaves out."""
    odd = [task for task, one in counts.items() if len(one.right) % 2]
    bad = [task for task, one in counts.items() if one.bad_truths]
    out = sum(len(one.left_out) for one in counts.values())
    returns = sum("\r" in given.answers[one.id] for one in given.questions)
    is_official = given.rules == "official"
    returns = 0 if is_official else returns
    found = (
        (out, f"{out} lines have not four fields: left out of the accuracy, wrong in accuracy+"),
        (odd, f"the last question of {', '.join(odd)} has no partner: wrong in accuracy+"),
        (bad, f"truths of {', '.join(bad)} are neither yes nor no: those questions are wrong"),
        (returns, f"{returns} answers hold a carriage return; their first four characters count"),
    )
    return tuple(text for is_so, text in found if is_so)


def export(given: ExportInput) -> Mapping[str, str]:
    """``{name}/{task}.txt``: image, prompt, truth and processed answer, tab-separated."""
    name = Path(given.checkpoint).name
    files: dict[str, str] = {}
    for one in given.questions:
        path = f"{name}/{one.record['task']}.txt"
        files[path] = files.get(path, "") + _line(one, given.answers[one.id]) + "\n"
    return files


def read_answers(files: Sequence[Path], questions: Sequence[Question]) -> dict[str, str]:
    """Answers of such files, or of the folder that holds them."""
    waiting = OpenQuestions(
        questions, lambda one: (one.record["task"], one.record["image"], one.prompt)
    )
    answers: dict[str, str] = {}
    for path in _answer_files(files):
        for line, where in _lines(path):
            fields = line.split("\t", 3)
            if len(fields) < 2:
                raise DatasetError("has no tab", where=where, fix="image, prompt, truth, answer.")
            identity = waiting.take((path.stem, *fields[:2]), where)
            answers[identity] = StoredAnswer(fields[3] if len(fields) > 3 else "", line)
    return answers


def _answer_files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = [path / f"{task}.txt" for task in TASK_NAMES if (path / f"{task}.txt").is_file()]
        if not found:
            raise DatasetError(
                "holds no answers", where=str(path), fix=f"{TASK_NAMES[0]}.txt, one per task."
            )
        yield from found


def with_lists(task: TaskSpec, folder: Path) -> TaskSpec:
    """The task with the question lists of a folder, as the original's ``--root`` names it.

    Args:
        task: MME.
        folder: relative to the working directory, or to ``eval/mme``, the original's own.

    Raises:
        ConfigError: there is no such folder.
    """
    places = (folder, Path(LISTS).parent / folder)
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise ConfigError(
            f"no folder {places[0]} and no {places[1]}",
            where="--root",
            fix="Name the folder of the question lists, {task}.txt, or leave --root out.",
        )
    return replace(task, load=partial(load, lists=found))


MME = TaskSpec(
    id="mme",
    suite="internvl",
    title="MME",
    data=(
        DataFile(
            path=RELEASE,
            format="A folder per task: images, and unless eval/mme/Your_Results/{task}.txt lists "
            "them (image, question, answer between tabs) a text file per image, two lines of "
            "question and answer; or the same in images/ and questions_answers_YN/",
            is_folder=True,
        ),
    ),
    load=load,
    generation=Generation(
        max_new_tokens=20, min_new_tokens=None, extra={"top_k": 50, "top_p": 0.9}
    ),
    metric="accuracy and accuracy+ of yes and no",
    score=score,
    rules=("2024", "official"),
    rule_differences={
        "official": f"{FIRST_VERDICT}, not the first four characters; a tab in an answer is of no "
        "account"
    },
    export=export,
    read_answers=read_answers,
    single_process=True,
    original_flags={"--root": True, "--sample": True},
    published="1614.0419167667067 / 558.2142857142858",
    source="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models",
)
