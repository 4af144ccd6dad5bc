"""LLaVA-Bench in the wild: a judge compares answers with GPT-4's (arXiv 2304.08485, section 5.1).

A review file is read like an answer file: what it says of a question stands for the answer, and no
judge is asked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.joining import add_answer, require_text
from internvl_chat.evaluation.judge import JudgeRequest, ask_all
from internvl_chat.evaluation.metrics.llava_bench import (
    UNREADABLE,
    Grades,
    printed_summary,
    read_grades,
    read_grades_leniently,
    summarise,
)
from internvl_chat.evaluation.sources import (
    ImageFile,
    read_jsonl,
    require,
    require_answer,
    require_plain,
)
from internvl_chat.evaluation.task import (
    DataFile,
    DataRoot,
    ExportInput,
    Generation,
    Judge,
    Question,
    Rules,
    Score,
    ScoreInput,
    TaskSpec,
)

FOLDER = "data/llava-bench-in-the-wild"
ANSWERS = "llava_bench_results.jsonl"
REVIEWS = "llava_bench_results_review.jsonl"
CATEGORIES = ("conv", "detail", "complex")
DETAIL = " Please give a detailed answer."
TEMPERATURES = (0.2, 0.4, 0.6)
"""The original asks once; a review without two numbers is asked for again."""


class ReviewAnswer(str):
    """A review of an answer file, which stands for the answer it is about."""

    review: dict[str, Any]

    def __new__(cls, review: dict[str, Any]) -> ReviewAnswer:
        """Of a record of the file."""
        answer = super().__new__(cls, json.dumps(review))
        answer.review = review
        return answer


def load(root: DataRoot, rules: Rules) -> list[Question]:
    """Questions with GPT-4's answer, which stands on the same line, and the image's captions."""
    folder = root.folder / FOLDER
    captions = {
        require_text(record, "image", where): _joined(record, where)
        for record, where in read_jsonl(folder / "context.jsonl")
    }
    references = list(read_jsonl(folder / "answers_gpt4.jsonl"))
    questions: list[Question] = []
    for record, where in read_jsonl(folder / "questions.jsonl"):
        image = require_text(record, "image", where)
        category = require_text(record, "category", where)
        if category not in CATEGORIES:
            raise DatasetError(
                f"category is {category!r}", where=where, fix=f"Want {', '.join(CATEGORIES)}."
            )
        if len(questions) >= len(references):
            raise DatasetError(
                f"question {len(questions) + 1}, answers_gpt4.jsonl has {len(references)} lines",
                where=where,
                fix="Take both files of the same release.",
            )
        reference, place = references[len(questions)]
        identity = require_plain(record, "question_id", where)
        text = require_text(record, "text", where)
        questions.append(
            Question(
                id=str(identity),
                prompt=f"{text}{DETAIL}",
                images=(ImageFile(str(folder / "images" / image)),),
                record={
                    "question_id": identity,
                    "question": text,
                    "category": category,
                    "context": captions.get(image, ""),
                    "reference": require_text(reference, "text", place),
                    "reference_id": reference.get("answer_id", reference.get("question_id")),
                },
            )
        )
    return questions


def _joined(record: dict[str, Any], where: str) -> str:
    caption = require(record, "caption", where)
    texts = caption if isinstance(caption, list) else [caption]
    if not all(isinstance(one, str) for one in texts):
        raise DatasetError(f'"caption" is {caption!r:.80}, want a text or several', where=where)
    return "\n".join(texts)


def score(given: ScoreInput) -> Score:
    """Mean grades by category, from reviews that were read or are asked for now."""
    replies, missing = _reviews(given)
    if not replies:
        who = given.judge.name if given.judge else "No judge"
        note = f"{who}: no review. The answers are written, their grades are missing."
        return Score(metrics={"all": None}, printed="", per_sample={}, notes=(note,))
    grades: dict[str, list[Grades]] = {}
    per_sample, unreadable = {}, []
    for one in given.questions:
        if one.id not in replies:
            continue
        pair = _grades_of(replies[one.id], given.answers[one.id], given.rules)
        if pair is None or pair == UNREADABLE:
            unreadable.append(one.id)
        if pair is None:
            continue
        grades.setdefault(_category(one), []).append(pair)
        per_sample[one.id] = pair[1]
    summaries = summarise(grades)
    metrics: dict[str, float | None] = {}
    for name, summary in summaries.items():
        reference, model = summary.percents
        metrics |= {
            name: _number(summary.relative),
            f"{name}/reference": _number(reference),
            f"{name}/model": _number(model),
        }
    return Score(
        metrics=metrics,
        printed=printed_summary(summaries, REVIEWS.removesuffix(".jsonl")),
        per_sample=per_sample,
        notes=tuple(_notes(given, missing, unreadable)),
        replies=replies,
    )


def _reviews(given: ScoreInput) -> tuple[dict[str, str], list[str]]:
    """Texts of reviews by question id, and the ids that have none."""
    replies = {}
    asked = []
    for one in given.questions:
        review = as_review(given.answers[one.id])
        if review is None:
            asked.append(one)
        else:
            replies[one.id] = str(review["content"])
    if given.judge is None or not asked:
        return replies, [one.id for one in asked]
    found = _ask(given.judge, asked, given.answers, given.rules)
    missing = [one.id for one in asked if one.id not in found]
    if not found:
        return replies, missing
    # Without a reply a review is empty, and unreadable.
    return replies | dict.fromkeys(missing, "") | found, missing


def _ask(
    judge: Judge, questions: Sequence[Question], answers: Mapping[str, str], rules: Rules
) -> dict[str, str]:
    replies: dict[str, str] = {}
    waiting = list(questions)
    for temperature in TEMPERATURES:
        requests = [
            JudgeRequest(
                key="llava_bench",
                fields={
                    "context": one.record["context"],
                    "question": one.record["question"],
                    "answer_1": one.record["reference"],
                    "answer_2": answers[one.id],
                    "category": one.record["category"],
                },
                temperature=temperature,
                max_tokens=1024,
            )
            for one in waiting
        ]
        for one, reply in zip(waiting, ask_all(judge, requests), strict=True):
            if reply is not None:
                replies[one.id] = reply
        waiting = [one for one in waiting if not _is_readable(replies.get(one.id, ""), rules)]
        if not waiting:
            break
    return replies


def _read(review: str, rules: Rules) -> Grades | None:
    return read_grades_leniently(review) if rules == "official" else read_grades(review)


def _is_readable(review: str, rules: Rules) -> bool:
    return _read(review, rules) not in (None, UNREADABLE)


def _grades_of(reply: str, answer: str, rules: Rules) -> Grades | None:
    review = as_review(answer)
    if review is not None and rules != "official":
        first, second = review["tuple"]
        return first, second
    return _read(reply, rules)


def as_review(answer: str) -> dict[str, Any] | None:
    """The review that stands for an answer, if one does."""
    return answer.review if isinstance(answer, ReviewAnswer) else None


def _category(question: Question) -> str:
    return f"llava_bench_{question.record['category']}"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _notes(given: ScoreInput, missing: Sequence[str], unreadable: Sequence[str]) -> list[str]:
    notes = []
    if given.judge is not None:
        notes.append(f"Judged by {given.judge.name}; the original's judge is GPT-4-0613.")
    if missing:
        notes.append(f"{len(missing)} without a review: {', '.join(missing)}.")
    if unreadable:
        what = "left out" if given.rules == "official" else "averaged in as -1, -1"
        notes.append(
            f"{len(unreadable)} reviews do not begin with two numbers, {what}: "
            f"{', '.join(unreadable)}."
        )
    return notes


def export(given: ExportInput) -> Mapping[str, str]:
    """The original's answer file, and its review file where there are reviews."""
    model = "_".join(Path(given.checkpoint).parts[-2:])
    replies = given.score.replies if given.score else {}
    answers, reviews = [], []
    for number, one in enumerate(given.questions, start=1):
        text = given.answers[one.id]
        review = as_review(text)
        if review is None:
            answers.append(
                {
                    "question_id": one.record["question_id"],
                    "text": text,
                    "model_id": model,
                    "metadata": {},
                }
            )
            if one.id in replies:
                review = _review(number, one, replies[one.id])
        if review is not None:
            reviews.append(review)
    files = {ANSWERS: answers, REVIEWS: reviews}
    return {
        name: "".join(f"{json.dumps(record)}\n" for record in records)
        for name, records in files.items()
        if records
    }


def _review(number: int, question: Question, content: str) -> dict[str, Any]:
    return {
        "id": number,
        "question_id": question.record["question_id"],
        "answer1_id": question.record["reference_id"],
        "answer2_id": question.record["question_id"],
        "category": _category(question),
        "content": content,
        "tuple": list(read_grades(content)),
    }


def read_answers(files: Sequence[Path], questions: Sequence[Question]) -> dict[str, str]:
    """Texts of answer files, and reviews, which go before the texts they are about."""
    texts: dict[str, str] = {}
    reviews: dict[str, str] = {}
    for path in files:
        for record, where in read_jsonl(path):
            identity = str(require_plain(record, "question_id", where))
            if "tuple" in record or "content" in record:
                reviews[identity] = ReviewAnswer(_checked(record, where))
            else:
                add_answer(texts, identity, require_answer(record, "text", where), where)
    return texts | reviews


def _checked(record: dict[str, Any], where: str) -> dict[str, Any]:
    record = {"content": "", **record}
    pair = record.setdefault("tuple", list(read_grades(str(record["content"]))))
    is_pair = isinstance(pair, list) and len(pair) == 2
    if not is_pair or not all(isinstance(one, int | float) for one in pair):
        raise DatasetError(f'"tuple" is {pair!r}', where=where, fix="Want two numbers.")
    return record


LLAVA_BENCH = TaskSpec(
    id="llava-bench",
    suite="internvl",
    title="LLaVA-Bench in the wild",
    data=(
        DataFile(
            path=f"{FOLDER}/questions.jsonl",
            format="JSON lines: question_id, image, category (conv, detail, complex), text",
        ),
        DataFile(
            path=f"{FOLDER}/context.jsonl",
            format="JSON lines: id, image, caption (a text or a list of texts)",
        ),
        DataFile(
            path=f"{FOLDER}/answers_gpt4.jsonl",
            format="JSON lines in the questions' order: question_id, text, answer_id",
        ),
        DataFile(path=f"{FOLDER}/images", format="001.jpg, ...", is_folder=True),
    ),
    load=load,
    generation=Generation(max_new_tokens=1000),
    metric="relative grade by a judge",
    score=score,
    rules=("2024", "official"),
    rule_differences={
        "official": "grades written `8, 7` are read; a review without two grades is left out of "
        "the means instead of entering them as -1"
    },
    export=export,
    read_answers=read_answers,
    judge="gpt-4-0613",
    single_process=True,
    source="https://github.com/haotian-liu/LLaVA/blob/main/docs/LLaVA_Bench.md",
)
