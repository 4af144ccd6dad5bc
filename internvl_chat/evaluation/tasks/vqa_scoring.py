"""References of the VQA family as their files hold them, and each metric with its printed lines.

What the originals die of (no reference, nine human answers, an empty list of right answers) counts
as wrong here and is remarked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.joining import require_text
from internvl_chat.evaluation.metrics.anls import anls
from internvl_chat.evaluation.metrics.averages import mean_in_order
from internvl_chat.evaluation.metrics.exact_match import same_letter, same_text
from internvl_chat.evaluation.metrics.gqa import (
    GqaAnswer,
    GqaReport,
    clean_prediction,
    count_steps,
)
from internvl_chat.evaluation.metrics.relaxed_accuracy import relaxed_accuracy
from internvl_chat.evaluation.metrics.vqa_accuracy import (
    NUM_HUMANS,
    normalize_answer,
    normalize_answer_by_wording,
    vqa_accuracy,
)
from internvl_chat.evaluation.sources import read_json, require, require_list, require_plain
from internvl_chat.evaluation.task import Question, Rules
from internvl_chat.evaluation.tasks.vqa_frame import References, SplitScore

BREAKDOWNS: Mapping[str, Mapping[str, str]] = {
    "answer_type": {
        "image span": "Image-Span",
        "question span": "Question-Span",
        "multiple spans": "Multi-Span",
        "non span": "None span",
    },
    "evidence": {
        "table/list": "Table/list",
        "textual": "Text",
        "photo/pciture/visual_objects": "Visual/Layout",  # sic
        "figure": "Figure",
        "map": "Map",
    },
    "operation/reasoning": {
        "comparison": "Sorting",
        "arithmetic": "Arithmetic",
        "counting": "Counting",
    },
}
"""Field of an InfographicVQA annotation -> value in it -> name in the script's tables."""
METRIC_OF_BREAKDOWN = {
    "answer_type": "answer_type",
    "evidence": "evidence",
    "operation/reasoning": "operation",
}

# ---- references -----------------------------------------------------------------------------


def read_human_answers(path: Path) -> References:
    """``{"annotations": [{"question_id": 1, "answers": [{"answer": "corgi"}, ...]}]}``"""
    references = {}
    for entry, where in _entries(path, "annotations"):
        given = require_list(entry, "answers", where)
        humans = [str(require_plain(one, "answer", f"{where}, answers")) for one in given]
        references[str(require_plain(entry, "question_id", where))] = humans
    return references


def read_document_answers(path: Path) -> References:
    """``{"dataset_name": "docvqa", "data": [{"questionId": 1, "answers": ["$12.50"]}]}``"""
    require(_object(path), "dataset_name", str(path))
    entries = _entries(path, "data")
    return {
        str(require_plain(entry, "questionId", where)): {
            "golds": [str(one) for one in require_list(entry, "answers", where)],
            "position": position,
            "num_annotated": len(entries),
            **{field: entry[field] for field in BREAKDOWNS if field in entry},
        }
        for position, (entry, where) in enumerate(entries)
    }


def read_gqa_questions(path: Path) -> References:
    """``{"20001": {"answer": "no", "question": ..., "isBalanced": true, "types": ..., ...}}``"""
    entries = {
        str(identity): _gqa_reference(entry, f"{path}, question {identity}")
        for identity, entry in _object(path).items()
    }
    num_balanced = sum(one["is_balanced"] for one in entries.values())
    return {
        identity: entry | {"position": position, "num_annotated": num_balanced}
        for position, (identity, entry) in enumerate(entries.items())
    }


def _gqa_reference(entry: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DatasetError("is no JSON object", where=where)
    types = require(entry, "types", where)
    operations = require_list(entry, "semantic", where)
    for operation in operations:
        require_text(operation, "operation", where)
        require_text(operation, "argument", where)
    return {
        "gold": require_text(entry, "answer", where),
        "is_balanced": bool(require(entry, "isBalanced", where)),
        "structural_type": require_text(types, "structural", where),
        "semantic_type": require_text(types, "semantic", where),
        "num_steps": count_steps(operations),
        "num_words": len(str(require(entry, "question", where)).split()),
        "group": _global_group(entry, where),
    }


def _global_group(entry: Mapping[str, Any], where: str) -> str | None:
    """None where a question belongs to none."""
    groups = entry.get("groups") or {}
    if not isinstance(groups, dict) or not isinstance(groups.get("global"), str | None):
        raise DatasetError(
            f'"groups" is {groups!r:.80}', where=where, fix='Want {"global": a text or null}.'
        )
    return groups.get("global")


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError("is no JSON object", where=str(path))
    return content


def _entries(path: Path, name: str) -> list[tuple[dict[str, Any], str]]:
    entries = require(_object(path), name, str(path))
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise DatasetError(f'"{name}" is no list of objects', where=str(path))
    return [(entry, f"{path}, {name}[{number}]") for number, entry in enumerate(entries)]


# ---- metrics --------------------------------------------------------------------------------


def score_vqa(
    key: str, questions: Sequence[Question], answers: Mapping[str, str], rules: Rules
) -> SplitScore:
    """VQA accuracy; official normalises as the benchmark words it."""
    normalize = normalize_answer_by_wording if rules == "official" else normalize_answer
    per_sample = {}
    unfit = []
    for one in questions:
        humans = one.record["reference"]
        if humans is None or len(humans) != NUM_HUMANS:
            unfit.append(one.id)
            per_sample[one.id] = 0.0
            continue
        per_sample[one.id] = vqa_accuracy(answers[one.id], humans, normalize=normalize)
    accuracy = mean_in_order(per_sample.values())
    return SplitScore(
        metrics={"accuracy": accuracy},
        lines=[f"{key} {accuracy}"],
        per_sample=per_sample,
        remarks=_counted_as_wrong(unfit, "without ten human answers"),
        summary=accuracy,
    )


def score_relaxed(
    key: str, questions: Sequence[Question], answers: Mapping[str, str], rules: Rules
) -> SplitScore:
    """Relaxed accuracy; official measures the tolerance by the gold answer, the evaluator by the
    prediction.
    """

    base: Literal["gold", "prediction"] = "gold" if rules == "official" else "prediction"
    is_right = partial(relaxed_accuracy, relative_to=base)
    return _score_by_gold("relaxed_accuracy", is_right, key, questions, answers)


def score_exact(
    key: str, questions: Sequence[Question], answers: Mapping[str, str], rules: Rules
) -> SplitScore:
    """Equal texts; official also takes ``C.`` and ``(C) stem`` for ``C``."""
    is_right = same_letter if rules == "official" else same_text
    return _score_by_gold("accuracy", is_right, key, questions, answers)


def _score_by_gold(
    name: str,
    is_right: Callable[[str, str], bool],
    key: str,
    questions: Sequence[Question],
    answers: Mapping[str, str],
) -> SplitScore:
    per_sample = {}
    unfit = []
    for one in questions:
        golds = _golds(one.record["annotation"])
        if not golds:
            unfit.append(one.id)
        per_sample[one.id] = float(any(is_right(answers[one.id], gold) for gold in golds))
    summary = {name: mean_in_order(per_sample.values())}
    return SplitScore(
        metrics=summary,
        lines=[f"{key} {summary}"],
        per_sample=per_sample,
        remarks=_counted_as_wrong(unfit, "without a right answer"),
        summary=summary,
    )


def _golds(annotation: Any) -> list[str]:
    if annotation is None:
        return []
    return [str(one) for one in (annotation if isinstance(annotation, list) else [annotation])]


def score_anls(
    key: str, questions: Sequence[Question], answers: Mapping[str, str], rules: Rules
) -> SplitScore:
    """ANLS; official divides by the lengths of the texts that are compared."""
    known = _in_annotation_order(questions)
    unfit = [one.id for one in questions if not (one.record["reference"] or {}).get("golds")]
    per_sample = {one.id: 0.0 for one in known} | dict.fromkeys(unfit, 0.0)
    for one in known:
        if one.id not in unfit:
            per_sample[one.id] = anls(
                one.record["reference"]["golds"],
                answers[one.id],
                lengths="compared" if rules == "official" else "written",
            )
    mean = mean_in_order(per_sample.values())
    return SplitScore(
        metrics={"anls": mean, **_breakdowns(known, per_sample)},
        lines=["", f"Overall ANLS: {mean:2.4f}"],
        per_sample=per_sample,
        remarks=[
            *_counted_as_wrong(unfit, "without a right answer in the annotation"),
            *_part_of_annotation(known),
        ],
        summary=None,
    )


def _breakdowns(
    questions: Sequence[Question], per_sample: Mapping[str, float]
) -> dict[str, float | None]:
    """Means by what InfographicVQA says of its questions, the script's ``-a``; none for DocVQA."""
    metrics: dict[str, float | None] = {}
    for field, names in BREAKDOWNS.items():
        if not any(field in one.record["reference"] for one in questions):
            continue
        for value, name in names.items():
            scores = [
                per_sample[one.id]
                for one in questions
                for given in one.record["reference"].get(field, ())
                if given == value
            ]
            mean = mean_in_order(scores) if scores else None
            metrics[f"{METRIC_OF_BREAKDOWN[field]}/{name}"] = mean
    return metrics


def score_gqa(
    key: str, questions: Sequence[Question], answers: Mapping[str, str], rules: Rules
) -> SplitScore:
    """Accuracy over the balanced questions, and the script's tables."""
    known = _in_annotation_order(questions)
    balanced = [one for one in known if one.record["reference"]["is_balanced"]]
    counted = {one.id: _gqa_answer(one, answers[one.id]) for one in balanced}
    report = GqaReport.of([*counted.values()])
    text = _gqa_text(report)
    unknown = [one.id for one in questions if one.record["reference"] is None]
    return SplitScore(
        metrics=_gqa_metrics(report),
        lines=[f"{key} {text}"],
        per_sample={identity: float(one.is_right) for identity, one in counted.items()},
        remarks=[
            *([_listed(unknown, "outside the official file, not counted")] * bool(unknown)),
            *_part_of_annotation(balanced),
        ],
        summary=text,
    )


def _gqa_answer(question: Question, answer: str) -> GqaAnswer:
    reference = question.record["reference"]
    return GqaAnswer(
        gold=reference["gold"],
        prediction=clean_prediction(answer),
        structural_type=reference["structural_type"],
        semantic_type=reference["semantic_type"],
        num_steps=reference["num_steps"],
        num_words=reference["num_words"],
        group=reference["group"],
    )


def _gqa_metrics(report: GqaReport) -> dict[str, float | None]:
    tables: dict[str, Mapping[Any, tuple[float, int]]] = {
        "structural": report.by_structural_type,
        "semantic": report.by_semantic_type,
        "steps": report.by_num_steps,
        "words": report.by_num_words,
    }
    return {
        "accuracy": report.accuracy,
        "binary": report.binary,
        "open": report.open,
        "validity": 0.0,  # the tier has no file of choices
        "plausibility": 0.0,
        "distribution": report.distribution,
        **{
            f"{table}/{name}": accuracy
            for table, rows in tables.items()
            for name, (accuracy, _) in rows.items()
        },
    }


def _gqa_text(report: GqaReport) -> str:
    """What the script writes after its lines about files, which the evaluator catches."""
    lines = [
        "",
        f"Binary: {report.binary:.2f}%",
        f"Open: {report.open:.2f}%",
        f"Accuracy: {report.accuracy:.2f}%",
        "Validity: 0.00%",
        "Plausibility: 0.00%",
        f"Distribution: {report.distribution:.2f} (lower is better)",
        *_table_lines("structural type", report.by_structural_type),
        *_table_lines("semantic type", report.by_semantic_type),
        *_table_lines("steps number", report.by_num_steps),
        *_table_lines("words number", report.by_num_words),
    ]
    return "\n".join(lines) + "\n"


def _table_lines(title: str, rows: Mapping[Any, tuple[float, int]]) -> list[str]:
    return [
        "",
        f"Accuracy / {title}:",
        *(f"  {name}: {accuracy:.2f}% ({num} questions)" for name, (accuracy, num) in rows.items()),
    ]


# ---- remarks --------------------------------------------------------------------------------


def _in_annotation_order(questions: Iterable[Question]) -> list[Question]:
    """Those that the annotation knows, in its order, which is that of adding."""
    known = [one for one in questions if one.record["reference"] is not None]
    return sorted(known, key=lambda one: int(one.record["reference"]["position"]))


def _counted_as_wrong(ids: Sequence[str], what: str) -> list[str]:
    return [_listed(ids, f"{what}, counted as wrong; the original stops")] if ids else []


def _part_of_annotation(questions: Sequence[Question]) -> list[str]:
    """The originals score all annotated questions or none."""
    if not questions:
        return []
    num_annotated = questions[0].record["reference"]["num_annotated"]
    if num_annotated == len(questions):
        return []
    return [f"scored {len(questions)} of {num_annotated} annotated questions; the original stops"]


def _listed(ids: Sequence[str], what: str) -> str:
    shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
    return (
        f"{len(ids)} questions {what}: {shown}" if len(ids) > 1 else f"1 question {what}: {shown}"
    )
