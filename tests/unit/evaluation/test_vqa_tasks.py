"""The VQA family as tasks: data on disk, prompts, scores as printed, answer files both ways."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.registry import TASKS, find_tasks
from internvl_chat.evaluation.task import (
    DataRoot,
    ExportInput,
    Question,
    Rules,
    Score,
    ScoreInput,
    TaskSpec,
)
from tests.support.evaluation.vqa import (
    AI2D_ROWS,
    CHART_AUGMENTED_ROWS,
    CHART_HUMAN_ROWS,
    DOCUMENT_ROWS,
    DOCUMENT_SUM,
    GQA_ROWS,
    HUMAN_MEAN,
    HUMAN_OFFICIAL,
    HUMAN_ROWS,
    REPLIES,
    SHORT,
    WRITERS,
)

REFERENCE = Path(__file__).parents[2] / "fixtures/answer_files/vqa-okvqa-val"
VIZWIZ = (
    "When the provided information is insufficient, respond with 'Unanswerable'. "
    "Answer the question using a single word or phrase."
)
CHECKPOINT = "pretrained/InternVL-Chat-V1-2-Plus"
STAMP = "240727123000"


def root_of(folder: Path) -> DataRoot:
    return DataRoot(folder=folder, lmu_data=folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vqa")
    for write in set(WRITERS.values()):
        write(folder)
    return folder


class Run:
    """A task on the written data with its scripted replies."""

    def __init__(self, name: str, root: Path) -> None:
        self.task: TaskSpec = TASKS[name]
        self.questions: list[Question] = self.task.load(root_of(root), "2024")
        pairs = zip(self.questions, REPLIES[name], strict=True)
        self.answers = {question.id: reply for question, reply in pairs}

    def score(self, rules: Rules = "2024") -> Score:
        assert self.task.score is not None
        return self.task.score(
            ScoreInput(questions=self.questions, answers=self.answers, rules=rules)
        )

    def export(self) -> dict[str, Any]:
        score = None if self.task.score is None else self.score()
        files = self.task.export(
            ExportInput(
                questions=self.questions,
                answers=self.answers,
                checkpoint=CHECKPOINT,
                stamp=STAMP,
                rules="2024",
                score=score,
            )
        )
        return dict(files)


@pytest.mark.parametrize("name", WRITERS)
def test_answer_files_come_back(name: str, root: Path, tmp_path: Path) -> None:
    run = Run(name, root)
    paths = []
    for file, content in run.export().items():
        if re.search(rf"_{STAMP}\.json$", file) and "submission" not in file:
            (tmp_path / file).write_text(content, encoding="utf-8")
            paths.append(tmp_path / file)
    assert len(paths) == (2 if name == "vqa-chartqa-test" else 1)
    assert run.task.read_answers(paths[::-1], run.questions) == run.answers
    for question in run.questions:
        (image,) = question.images
        assert image.open().size[1] == 10
        assert "<image>" not in question.prompt
    for data in run.task.data:
        assert (root / data.path).is_dir() == data.is_folder
        assert (root / data.path).exists()
    json.dumps([question.record for question in run.questions])


def test_tasks_and_their_settings() -> None:
    family = {name: task for name, task in TASKS.items() if name.startswith("vqa-")}
    assert [*family] == [*WRITERS]
    assert {name: task.generation.max_new_tokens for name, task in family.items()} == {
        name: 100 if re.search("chartqa|docvqa|infovqa", name) else 10 for name in WRITERS
    }
    assert [name for name, task in family.items() if task.score is None] == [
        "vqa-vizwiz-test",
        "vqa-docvqa-test",
        "vqa-infovqa-test",
    ]
    assert [name for name, task in family.items() if task.rules == ("2024",)] == [
        "vqa-vizwiz-test",
        "vqa-docvqa-test",
        "vqa-infovqa-test",
        "vqa-gqa-testdev",
    ]
    assert not any(task.single_process for task in family.values())
    assert [task.id for task in find_tasks(["vqa"])] == [
        "vqa-okvqa-val",
        "vqa-textvqa-val",
        "vqa-vizwiz-val",
        "vqa-ai2d-test",
        "vqa-gqa-testdev",
    ]


@pytest.mark.parametrize(
    ("name", "number", "identity", "prompt"),
    [
        ("vqa-okvqa-val", 0, "1001", f"What bird is this? {SHORT}"),
        ("vqa-textvqa-val", 0, "2001", f"What bird is this? {SHORT}"),
        (
            "vqa-textvqa-val-ocr",
            1,
            "2002",
            f"Which bird does one see?\nReference OCR token: EXIT, 1 {SHORT}",
        ),
        (
            "vqa-textvqa-val-ocr",
            0,
            "2001",
            f"What bird is this?\nReference OCR token: EXIT, 0\n{SHORT}",
        ),
        ("vqa-vizwiz-val", 0, "3001", f"What bird is this? {VIZWIZ}"),
        (
            "vqa-vizwiz-test",
            0,
            "data/vizwiz/test/VizWiz_test_00000000.jpg",
            f"What bird is this? {VIZWIZ}",
        ),
        ("vqa-chartqa-test", 0, "chartqa_test_human/0", f"What was it in 2010? {SHORT}"),
        ("vqa-chartqa-test", 12, "chartqa_test_augmented/0", f"When was the low? {SHORT}"),
        ("vqa-chartqa-test-augmented", 0, "0", f"When was the low? {SHORT}"),
        ("vqa-docvqa-val", 0, "70001", f"What is the ratio? {SHORT}"),
        ("vqa-infovqa-test", 0, "85001", f"What is the ratio? {SHORT}"),
        ("vqa-ai2d-test", 0, "0", AI2D_ROWS[0].question),
        ("vqa-gqa-testdev", 0, "20001", f"Is it indoors? {SHORT}"),
    ],
)
def test_prompts(name: str, number: int, identity: str, prompt: str, root: Path) -> None:
    question = Run(name, root).questions[number]
    assert (question.id, question.prompt) == (identity, prompt)


# ---- scores ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("vqa-okvqa-val", "okvqa_val"),
        ("vqa-textvqa-val", "textvqa_val"),
        ("vqa-textvqa-val-ocr", "textvqa_val_ocr"),
        ("vqa-vizwiz-val", "vizwiz_val"),
    ],
)
def test_vqa_accuracy(name: str, key: str, root: Path) -> None:
    run = Run(name, root)
    score = run.score()
    assert score.metrics["accuracy"] == pytest.approx(HUMAN_MEAN)
    assert score.printed == f"Evaluating {key} ...\n{key} 0.65\n"
    assert [*score.per_sample.values()] == pytest.approx([row.score for row in HUMAN_ROWS])
    assert score.notes == ()
    official = run.score("official")
    assert official.metrics["accuracy"] == pytest.approx(HUMAN_OFFICIAL)
    assert [*official.per_sample.values()] == pytest.approx([row.official for row in HUMAN_ROWS])


def test_chartqa_has_a_closing_average(root: Path) -> None:
    score = Run("vqa-chartqa-test", root).score()
    assert score.printed == (
        "Evaluating chartqa_test_human ...\n"
        "chartqa_test_human {'relaxed_accuracy': 0.4166666666666667}\n"
        "Evaluating chartqa_test_augmented ...\n"
        "chartqa_test_augmented {'relaxed_accuracy': 0.7}\n"
        "['chartqa_test_human', {'relaxed_accuracy': 0.4166666666666667}]\n"
        "['chartqa_test_augmented', {'relaxed_accuracy': 0.7}]\n"
        "average score = (41.67 + 70.00) / 2 = 55.8\n"
    )
    assert score.metrics == {
        "chartqa_test_human/relaxed_accuracy": 5 / 12,
        "chartqa_test_augmented/relaxed_accuracy": 0.7,
        "average": pytest.approx(55.8333333),
    }
    rows = CHART_HUMAN_ROWS + CHART_AUGMENTED_ROWS
    assert [*score.per_sample.values()] == [row.score for row in rows]
    official = Run("vqa-chartqa-test", root).score("official")
    assert official.metrics["chartqa_test_human/relaxed_accuracy"] == 0.5
    assert [*official.per_sample.values()] == [row.official for row in rows]


def test_half_of_chartqa(root: Path) -> None:
    score = Run("vqa-chartqa-test-human", root).score()
    assert score.metrics == {"relaxed_accuracy": 5 / 12}
    assert score.printed == (
        "Evaluating chartqa_test_human ...\n"
        "chartqa_test_human {'relaxed_accuracy': 0.4166666666666667}\n"
        "['chartqa_test_human', {'relaxed_accuracy': 0.4166666666666667}]\n"
    )


def test_the_guides_chartqa_line() -> None:
    from internvl_chat.evaluation.tasks.vqa_frame import SplitScore, _average

    parts = [
        SplitScore(metrics={"x": value}, lines=[], per_sample={}, remarks=[], summary=None)
        for value in (0.5772, 0.8796)
    ]
    assert _average(parts)[1] == "average score = (57.72 + 87.96) / 2 = 72.8"


@pytest.mark.parametrize(
    ("name", "key"), [("vqa-docvqa-val", "docvqa_val"), ("vqa-infovqa-val", "infographicsvqa_val")]
)
def test_anls(name: str, key: str, root: Path) -> None:
    run = Run(name, root)
    score = run.score()
    assert score.printed == f"Evaluating {key} ...\n\nOverall ANLS: 0.6766\n"
    assert score.metrics["anls"] == pytest.approx(DOCUMENT_SUM / 12)
    values = [score.per_sample[one.id] for one in run.questions]
    assert values == pytest.approx([row.score for row in DOCUMENT_ROWS])
    official = run.score("official")
    assert official.printed.endswith("Overall ANLS: 0.6290\n")
    values = [official.per_sample[one.id] for one in run.questions]
    assert values == pytest.approx([row.official for row in DOCUMENT_ROWS])


def test_infovqa_by_kind_of_question(root: Path) -> None:
    metrics = Run("vqa-infovqa-val", root).score().metrics
    quarter = {
        "Image-Span": (0.75 + 11 / 12 + 1) / 3,
        "Question-Span": (1 + 2 / 3 + 4 / 7) / 3,
        "Multi-Span": (0.5 + 1 + 5 / 7) / 3,
        "None span": 1 / 3,
    }
    assert {name: value for name, value in metrics.items() if name != "anls"} == {
        **{f"answer_type/{name}": pytest.approx(value) for name, value in quarter.items()},
        "evidence/Table/list": pytest.approx(quarter["Image-Span"]),
        "evidence/Text": pytest.approx(quarter["Question-Span"]),
        "evidence/Visual/Layout": pytest.approx(quarter["Multi-Span"]),
        "evidence/Figure": pytest.approx(quarter["None span"]),
        "evidence/Map": None,
        "operation/Sorting": 0.75,
        "operation/Arithmetic": 1.0,
        "operation/Counting": 0.5,
    }
    assert [*Run("vqa-docvqa-val", root).score().metrics] == ["anls"]


def test_ai2d_takes_whole_answers(root: Path) -> None:
    run = Run("vqa-ai2d-test", root)
    score = run.score()
    assert score.metrics == {"accuracy": 1 / 3}
    assert score.printed == (
        "Evaluating ai2diagram_test ...\nai2diagram_test {'accuracy': 0.3333333333333333}\n"
    )
    assert [*score.per_sample.values()] == [row.score for row in AI2D_ROWS]
    official = run.score("official")
    assert [*official.per_sample.values()] == [row.official for row in AI2D_ROWS]


GQA_TEXT = """
Binary: 66.67%
Open: 60.00%
Accuracy: 63.64%
Validity: 0.00%
Plausibility: 0.00%
Distribution: 0.01 (lower is better)

Accuracy / structural type:
  choose: 100.00% (2 questions)
  compare: 0.00% (1 questions)
  logical: 0.00% (1 questions)
  query: 60.00% (5 questions)
  verify: 100.00% (2 questions)

Accuracy / semantic type:
  attr: 60.00% (5 questions)
  cat: 100.00% (1 questions)
  global: 100.00% (2 questions)
  obj: 50.00% (2 questions)
  rel: 0.00% (1 questions)

Accuracy / steps number:
  0: 100.00% (1 questions)
  1: 75.00% (4 questions)
  2: 50.00% (4 questions)
  3: 50.00% (2 questions)

Accuracy / words number:
  3: 60.00% (5 questions)
  4: 0.00% (1 questions)
  5: 66.67% (3 questions)
  7: 100.00% (1 questions)
  9: 100.00% (1 questions)
"""


def test_gqa(root: Path) -> None:
    score = Run("vqa-gqa-testdev", root).score()
    assert score.printed == (f"Evaluating gqa_testdev_llava ...\ngqa_testdev_llava {GQA_TEXT}\n")
    assert [*score.per_sample.values()] == [float(row.is_right) for row in GQA_ROWS]
    assert score.metrics["accuracy"] == pytest.approx(700 / 11)
    assert score.metrics["distribution"] == pytest.approx(0.009)
    assert score.metrics["steps/1"] == 75
    assert score.metrics["structural/query"] == 60
    assert score.notes == ()


@pytest.mark.parametrize(
    "name", [name for name, task in TASKS.items() if name in WRITERS and task.score]
)
def test_a_part_is_scored_alone_and_order_does_not_matter(name: str, root: Path) -> None:
    run = Run(name, root)
    whole = run.score().per_sample
    assert all(0 <= value <= 1 for value in whole.values())
    run.questions = run.questions[:5]
    score = run.score()
    assert score.per_sample == {one.id: whole[one.id] for one in run.questions}
    assert bool(score.notes) == bool(re.search("docvqa|infovqa|gqa", name))
    run.questions = []
    assert run.score().metrics == {}


# ---- answer files ---------------------------------------------------------------------------


def test_answer_files_are_the_originals(root: Path) -> None:
    files = {name: Run(name, root).export() for name in WRITERS}
    assert {name: [*content] for name, content in files.items()} == {
        **{
            name: [f"{key}_{STAMP}.json", "pretrained_InternVL-Chat-V1-2-Plus.txt"]
            for name, key in [
                ("vqa-okvqa-val", "okvqa_val"),
                ("vqa-textvqa-val", "textvqa_val"),
                ("vqa-textvqa-val-ocr", "textvqa_val_ocr"),
                ("vqa-vizwiz-val", "vizwiz_val"),
                ("vqa-chartqa-test-human", "chartqa_test_human"),
                ("vqa-chartqa-test-augmented", "chartqa_test_augmented"),
                ("vqa-ai2d-test", "ai2diagram_test"),
            ]
        },
        "vqa-vizwiz-test": [f"vizwiz_test_{STAMP}.json"],
        "vqa-chartqa-test": [
            f"chartqa_test_human_{STAMP}.json",
            f"chartqa_test_augmented_{STAMP}.json",
            "pretrained_InternVL-Chat-V1-2-Plus.txt",
        ],
        "vqa-docvqa-val": [f"docvqa_val_{STAMP}.json"],
        "vqa-docvqa-test": [f"docvqa_test_{STAMP}.json"],
        "vqa-infovqa-val": [f"infographicsvqa_val_{STAMP}.json"],
        "vqa-infovqa-test": [
            f"infographicsvqa_test_{STAMP}.json",
            f"infographicsvqa_test_submission_{STAMP}.json",
        ],
        "vqa-gqa-testdev": [
            f"gqa_testdev_llava_{STAMP}.json",
            "testdev_balanced_predictions.json",
            "pretrained_InternVL-Chat-V1-2-Plus.txt",
        ],
    }


@pytest.mark.parametrize(
    ("name", "file", "record"),
    [
        (
            "vqa-okvqa-val",
            f"okvqa_val_{STAMP}.json",
            {"question": f"What bird is this? {SHORT}", "question_id": 1001, "answer": "heron"},
        ),
        (
            "vqa-vizwiz-test",
            f"vizwiz_test_{STAMP}.json",
            {"image": "VizWiz_test_00000000.jpg", "answer": "heron"},
        ),
        (
            "vqa-chartqa-test",
            f"chartqa_test_human_{STAMP}.json",
            {"question": f"What was it in 2010? {SHORT}", "answer": "10", "annotation": "10.5"},
        ),
        (
            "vqa-docvqa-val",
            f"docvqa_val_{STAMP}.json",
            {
                "question": f"What is the ratio? {SHORT}",
                "questionId": 70001,
                "answer": "0.38",
                "annotation": ["0.28"],
            },
        ),
        ("vqa-docvqa-test", f"docvqa_test_{STAMP}.json", {"questionId": 75001, "answer": "0.38"}),
        (
            "vqa-infovqa-test",
            f"infographicsvqa_test_{STAMP}.json",
            {
                "question": f"What is the ratio? {SHORT}",
                "questionId": 85001,
                "answer": "0.38",
                "annotation": None,
            },
        ),
        (
            "vqa-infovqa-test",
            f"infographicsvqa_test_submission_{STAMP}.json",
            {"questionId": 85001, "answer": "0.38"},
        ),
        (
            "vqa-ai2d-test",
            f"ai2diagram_test_{STAMP}.json",
            {"question": AI2D_ROWS[0].question, "image": 0, "answer": "C", "annotation": "C"},
        ),
        (
            "vqa-gqa-testdev",
            f"gqa_testdev_llava_{STAMP}.json",
            {
                "question": f"Is it indoors? {SHORT}",
                "questionId": "20001",
                "answer": "No.",
                "annotation": "no",
            },
        ),
        (
            "vqa-gqa-testdev",
            "testdev_balanced_predictions.json",
            {"questionId": "20001", "prediction": "no"},
        ),
    ],
)
def test_records(name: str, file: str, record: dict[str, Any], root: Path) -> None:
    content = json.loads(Run(name, root).export()[file])
    assert [*content[0].items()] == [*record.items()]


def test_summary_lines_and_escapes(root: Path) -> None:
    summary = "pretrained_InternVL-Chat-V1-2-Plus.txt"
    assert Run("vqa-okvqa-val", root).export()[summary] == (
        "['pretrained/InternVL-Chat-V1-2-Plus', 'okvqa_val', 0.65]\n"
    )
    assert Run("vqa-chartqa-test", root).export()[summary] == (
        "['chartqa_test_human', {'relaxed_accuracy': 0.4166666666666667}]\n"
        "['chartqa_test_augmented', {'relaxed_accuracy': 0.7}]\n"
    )
    assert Run("vqa-gqa-testdev", root).export()[summary] == (
        f"['pretrained/InternVL-Chat-V1-2-Plus', 'gqa_testdev_llava', {GQA_TEXT!r}]\n"
    )
    assert "zürich" in Run("vqa-docvqa-val", root).export()[f"docvqa_val_{STAMP}.json"]
    assert "z\\u00fcrich" in Run("vqa-docvqa-test", root).export()[f"docvqa_test_{STAMP}.json"]


def test_gqa_predictions_are_read_as_well(root: Path, tmp_path: Path) -> None:
    run = Run("vqa-gqa-testdev", root)
    path = tmp_path / "testdev_balanced_predictions.json"
    path.write_text(run.export()[path.name])
    before = run.score()
    run.answers = run.task.read_answers([path], run.questions)
    assert run.score() == before


def test_chartqa_files_under_other_names(root: Path, tmp_path: Path) -> None:
    run = Run("vqa-chartqa-test", root)
    paths = []
    for number, content in enumerate([*run.export().values()][:2]):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(content)
    assert run.task.read_answers(paths[::-1], run.questions) == run.answers


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vqa-okvqa-val", "[", "answers.json: is no JSON"),
        ("vqa-okvqa-val", {"a": 1}, "answers.json: is no list of objects"),
        ("vqa-okvqa-val", [{"answer": "x"}], 'answers.json, record 0: has no "question_id"'),
        ("vqa-okvqa-val", [{"question_id": 1001}], 'answers.json, record 0: has no "answer"'),
        (
            "vqa-okvqa-val",
            [{"question_id": 5, "answer": "x"}],
            "record 0: question_id 5 is none of okvqa_val",
        ),
        (
            "vqa-docvqa-val",
            [{"questionId": 70001, "answer": None}],
            'record 0: "answer" is None, want a text',
        ),
        (
            "vqa-docvqa-val",
            [{"questionId": 70001, "answer": ["x"]}],
            "record 0: \"answer\" is ['x'], want a text",
        ),
        (
            "vqa-chartqa-test-human",
            [{"question": "?", "answer": "x"}],
            "has 1 records, chartqa_test_human has 12 questions",
        ),
        (
            "vqa-chartqa-test-human",
            [{"question": "?", "answer": "x"}] * 12,
            "record 0: answers '?', question 0 of chartqa_test_human is 'What was it in 2010?",
        ),
        (
            "vqa-chartqa-test",
            [{"question": "?", "answer": "x"}],
            "may be of any of chartqa_test_human, chartqa_test_augmented",
        ),
    ],
)
def test_unfit_answer_files(
    name: str, content: Any, message: str, root: Path, tmp_path: Path
) -> None:
    run = Run(name, root)
    path = write(tmp_path / "answers.json", content)
    with pytest.raises(DatasetError, match=re.escape(message)):
        run.task.read_answers([path], run.questions)


# ---- data that is not as it should be -------------------------------------------------------


def change(root: Path, path: str, edit: Any) -> None:
    content = json.loads((root / path).read_text())
    edit(content)
    (root / path).write_text(json.dumps(content))


OKVQA = "data/okvqa/mscoco_val2014_annotations.json"
DOCVQA = "data/docvqa/val/val_v1.0.json"
GQA = "data/gqa/testdev_balanced_questions.json"


@pytest.mark.parametrize(
    ("name", "path", "edit", "note", "mean"),
    [
        (
            "vqa-okvqa-val",
            OKVQA,
            lambda content: content["annotations"].pop(),
            "okvqa_val: 1 question without ten human answers, counted as wrong; "
            "the original stops: 1001",
            6.8 / 12,
        ),
        (
            "vqa-okvqa-val",
            OKVQA,
            lambda content: content["annotations"][-1]["answers"].pop(),
            "okvqa_val: 1 question without ten human answers, counted as wrong; "
            "the original stops: 1001",
            6.8 / 12,
        ),
        (
            "vqa-docvqa-val",
            DOCVQA,
            lambda content: content["data"].pop(),
            "docvqa_val: 1 question without a right answer in the annotation, counted as wrong; "
            "the original stops: 70001",
            (DOCUMENT_SUM - 0.75) / 12,
        ),
        (
            "vqa-docvqa-val",
            DOCVQA,
            lambda content: content["data"][-1].update(answers=[]),
            "docvqa_val: 1 question without a right answer in the annotation, counted as wrong; "
            "the original stops: 70001",
            (DOCUMENT_SUM - 0.75) / 12,
        ),
        (
            "vqa-docvqa-val",
            DOCVQA,
            lambda content: content["data"].append({"questionId": 1, "answers": ["x"]}),
            "docvqa_val: scored 12 of 13 annotated questions; the original stops",
            DOCUMENT_SUM / 12,
        ),
        (
            "vqa-gqa-testdev",
            GQA,
            lambda content: content.pop("20001"),
            "gqa_testdev_llava: 1 question outside the official file, not counted: 20001",
            60.0,
        ),
        (
            "vqa-gqa-testdev",
            GQA,
            lambda content: [entry.update(groups={}) for entry in content.values()],
            None,
            700 / 11,
        ),
    ],
)
def test_what_the_originals_die_of(
    name: str, path: str, edit: Any, note: str | None, mean: float, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path)
    change(tmp_path, path, edit)
    score = Run(name, tmp_path).score()
    assert next(iter(score.metrics.values())) == pytest.approx(mean)
    assert score.notes == ((note,) if note else ())


@pytest.mark.parametrize("annotation", [None, []])
def test_a_chart_question_without_a_right_answer(annotation: Any, tmp_path: Path) -> None:
    WRITERS["vqa-chartqa-test"](tmp_path)
    path = tmp_path / "data/chartqa/test_human.jsonl"
    first, *rest = path.read_text().splitlines()
    row = json.loads(first) | {"answer": annotation}
    path.write_text("\n".join([json.dumps(row), *rest]))
    score = Run("vqa-chartqa-test-human", tmp_path).score()
    assert score.metrics == {"relaxed_accuracy": 4 / 12}
    (note,) = score.notes
    assert note.startswith("chartqa_test_human: 1 question without a right answer")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "okvqa_val.jsonl:1: is no JSON"),
        ("{}", 'okvqa_val.jsonl:1: has no "question"'),
        ('{"question": 5}', 'okvqa_val.jsonl:1: "question" is 5, want a text'),
        ('{"question": "?"}', 'okvqa_val.jsonl:1: has no "image"'),
        (
            '{"question": "?", "image": "a.jpg", "question_id": 1}\n' * 2,
            "okvqa_val.jsonl:2: question_id 1 was there before",
        ),
    ],
)
def test_malformed_questions(line: str, message: str, tmp_path: Path) -> None:
    WRITERS["vqa-okvqa-val"](tmp_path)
    (tmp_path / "data/okvqa/okvqa_val.jsonl").write_text(line)
    with pytest.raises(DatasetError, match=re.escape(message)):
        TASKS["vqa-okvqa-val"].load(root_of(tmp_path), "2024")


@pytest.mark.parametrize(
    ("name", "path", "content", "message"),
    [
        ("vqa-okvqa-val", OKVQA, [], "annotations.json: is no JSON object"),
        ("vqa-okvqa-val", OKVQA, {}, 'annotations.json: has no "annotations"'),
        ("vqa-okvqa-val", OKVQA, {"annotations": 5}, '"annotations" is no list of objects'),
        (
            "vqa-okvqa-val",
            OKVQA,
            {"annotations": [{}]},
            'annotations.json, annotations[0]: has no "answers"',
        ),
        ("vqa-docvqa-val", DOCVQA, {"data": []}, 'val_v1.0.json: has no "dataset_name"'),
        ("vqa-docvqa-val", DOCVQA, {"dataset_name": "x"}, 'val_v1.0.json: has no "data"'),
        ("vqa-gqa-testdev", GQA, {"7": {}}, 'questions.json, question 7: has no "types"'),
        ("vqa-gqa-testdev", GQA, {"7": 5}, "questions.json, question 7: is no JSON object"),
    ],
)
def test_malformed_annotations(
    name: str, path: str, content: Any, message: str, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path)
    (tmp_path / path).write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=re.escape(message)):
        TASKS[name].load(root_of(tmp_path), "2024")


def test_rows_without_an_id_are_numbered(tmp_path: Path) -> None:
    WRITERS["vqa-chartqa-test"](tmp_path)
    path = tmp_path / "data/chartqa/test_human.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        del row["question_id"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run("vqa-chartqa-test", tmp_path)
    assert run.questions[3].id == "chartqa_test_human/3"
    path.write_text(
        "".join(json.dumps({"id": f"c{n}", **row}) + "\n" for n, row in enumerate(rows))
    )
    assert Run("vqa-chartqa-test", tmp_path).questions[3].id == "chartqa_test_human/c3"


# ---- the original's own numbers -------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> tuple[list[Question], dict[str, str]]:
    task = TASKS["vqa-okvqa-val"]
    questions = task.load(root_of(REFERENCE / "work"), "2024")
    files = sorted((REFERENCE / "answers").iterdir())
    return questions, task.read_answers(files, questions)


def test_reference_scores(reference: tuple[list[Question], dict[str, str]]) -> None:
    questions, answers = reference
    score_of = TASKS["vqa-okvqa-val"].score
    assert score_of is not None
    expected = json.loads((REFERENCE / "expect.json").read_text())
    score = score_of(ScoreInput(questions=questions, answers=answers, rules="2024"))
    assert score.metrics == expected["values"]
    assert score.per_sample == expected["per_sample"]
    lines = [line for line in expected["printed"] if "results" not in line]
    lines = [line for line in lines if "pretrained/" not in line]
    assert score.printed.splitlines() == lines
    official = score_of(ScoreInput(questions=questions, answers=answers, rules="official"))
    differing = {
        one for one, value in official.per_sample.items() if value != score.per_sample[one]
    }
    assert differing == {"7100044"}  # forty periods


def test_reference_files(reference: tuple[list[Question], dict[str, str]]) -> None:
    questions, answers = reference
    task = TASKS["vqa-okvqa-val"]
    settings = json.loads((REFERENCE / "prompts.json").read_text())["settings"]
    assert task.generation.max_new_tokens == settings["max_new_tokens"]
    assert task.generation.min_new_tokens == settings["min_new_tokens"]
    (file,) = (REFERENCE / "answers").iterdir()
    assert [one["question"] for one in json.loads(file.read_text())] == [
        one.prompt for one in questions
    ]
    exported = task.export(
        ExportInput(
            questions=questions, answers=answers, checkpoint=CHECKPOINT, stamp=STAMP, rules="2024"
        )
    )
    assert exported == {file.name: file.read_text()}


def test_reference_crashes(tmp_path: Path) -> None:
    task = TASKS["vqa-okvqa-val"]
    assert task.score is not None
    for crash in json.loads((REFERENCE / "crashes.json").read_text()):
        work = tmp_path / str(len([*tmp_path.iterdir()]))
        for path in (REFERENCE / "work").rglob("*.json*"):
            target = work / path.relative_to(REFERENCE / "work")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path.read_text())
        given = crash["input"]
        changed = given.get("annotation")
        identity = changed["question_id"] if changed else given["without question_id"]
        content = json.loads((work / given["file"]).read_text())
        kept = [one for one in content["annotations"] if one["question_id"] != identity]
        content["annotations"] = [*kept, *([changed] if changed else [])]
        (work / given["file"]).write_text(json.dumps(content))
        questions = task.load(root_of(work), "2024")
        answers = task.read_answers([*(REFERENCE / "answers").iterdir()], questions)
        score = task.score(ScoreInput(questions=questions, answers=answers, rules="2024"))
        assert score.per_sample[str(identity)] == 0.0
        assert score.metrics["accuracy"] == pytest.approx(0.742 - 0.6 / 50)
        (note,) = score.notes
        assert note.endswith(f": {identity}")
