"""ScienceQA, test questions with an image (https://scienceqa.github.io)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.joining import OpenQuestions, identity, json_lines, require_text
from internvl_chat.evaluation.metrics.final_answer import final_answer
from internvl_chat.evaluation.metrics.letters import (
    LETTERS,
    lettered,
    listed,
    named_letter,
    read_letter,
    read_letter_later,
)
from internvl_chat.evaluation.sources import ImageFile, read_jsonl, require, require_answer
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
from internvl_chat.evaluation.tasks.wording import (
    CHAIN_OF_THOUGHT,
    COT_TOKENS,
    LETTER_EN,
    NAMED_OPTION,
    NO_COT_IN_2024,
)

QUESTIONS = "data/scienceqa/scienceqa_test_img.jsonl"
IMAGES = "data/scienceqa/images/test"
_READERS = {"2024": read_letter, "later": read_letter_later, "official": named_letter}


def load(root: DataRoot, rules: Rules, *, reasons: bool = False) -> list[Question]:
    """Questions with hint and lettered choices; with ``reasons`` as ``--cot`` words them."""
    questions = []
    for number, (record, where) in enumerate(read_jsonl(root.folder / QUESTIONS)):
        options = _options(record, where)
        text, hint = require_text(record, "question", where), record.get("hint")
        lines = [str(hint)] if hint else []
        ending = "" if reasons else LETTER_EN
        prompt = "\n".join([*lines, text, *listed(options), ending])
        if reasons:
            prompt = CHAIN_OF_THOUGHT.replace("{question}", prompt.strip())
        image = require_text(record, "image", where)
        questions.append(
            Question(
                id=identity(record, number, where),
                prompt=prompt.strip() if rules == "later" else prompt,
                images=(ImageFile(str(root.folder / image), shown=image),),
                record={
                    "text": text,
                    "image": image,
                    "options": options,
                    "truth": _truth(record, options, where),
                },
            )
        )
    return questions


def _options(record: dict[str, Any], where: str) -> dict[str, str]:
    choices = require(record, "choices", where)
    if not isinstance(choices, list) or not 1 <= len(choices) <= len(LETTERS):
        raise DatasetError(f'"choices" is {choices!r}, want a list of texts', where=where)
    return lettered(map(str, choices))


def _truth(record: dict[str, Any], options: Mapping[str, str], where: str) -> str:
    index = require(record, "answer", where)
    if not isinstance(index, int) or not 0 <= index < len(options):
        raise DatasetError(
            f'"answer" is {index!r}, want the number of a choice, 0 to {len(options) - 1}',
            where=where,
        )
    return LETTERS[index]


def score(given: ScoreInput, *, reasons: bool = False) -> Score:
    """Share of questions whose letter is right; with ``reasons`` that of the final answer."""
    read = _READERS[given.rules]
    per_sample, num_empty = {}, 0
    for one in given.questions:
        answer = given.answers[one.id]
        answer = final_answer(answer) if reasons else answer
        num_empty += not answer.strip()
        letter = read(answer, one.record["options"])
        per_sample[one.id] = float(letter == one.record["truth"])
    accuracy = sum(per_sample.values()) / len(per_sample) if per_sample else None
    return Score(
        metrics={"accuracy": accuracy},
        printed=f"Evaluating sqa_test ...\nAcc@1: {accuracy}\n",
        per_sample=per_sample,
        notes=(
            *((f"{num_empty} empty answers count as wrong",) if num_empty else ()),
            *((NO_COT_IN_2024,) if reasons else ()),
        ),
    )


def export(given: ExportInput, *, reasons: bool = False) -> Mapping[str, str]:
    """``sqa_test_{stamp}.jsonl``, with letters as answers; later the whole answer beside it."""
    read = _READERS["2024" if given.rules == "2024" else "later"]
    records = []
    for one in given.questions:
        answer = given.answers[one.id]
        record = {
            "question": one.prompt,
            "answer": read(final_answer(answer) if reasons else answer, one.record["options"]),
            "gt_answers": one.record["truth"],
            "image_path": one.record["image"],
        }
        records.append(record if given.rules == "2024" else record | {"answer_orig": answer})
    return {f"sqa_test_{given.stamp}.jsonl": json_lines(records)}


def read_answers(files: Sequence[Path], questions: Sequence[Question]) -> dict[str, str]:
    """Answers of such a file: whole where it holds them, else letters."""
    waiting = OpenQuestions(questions, lambda one: Path(one.record["image"]).parts[-2:])
    answers = {}
    for path in files:
        for record, where in read_jsonl(path):
            image = Path(str(require(record, "image_path", where))).parts[-2:]
            one = waiting.take(image, where, text=str(require(record, "question", where)))
            name = "answer_orig" if "answer_orig" in record else "answer"
            answers[one] = require_answer(record, name, where)
    return answers


_DIRECT = TaskSpec(
    id="scienceqa",
    suite="internvl",
    title="ScienceQA test, questions with an image",
    data=(
        DataFile(
            path=QUESTIONS,
            format="JSON lines: image (path), question, choices (list), answer (index), hint",
        ),
        DataFile(path=IMAGES, format="{id}/image.png", is_folder=True),
    ),
    load=load,
    generation=Generation(max_new_tokens=100),
    metric="letter of the choice",
    score=score,
    rules=("2024", "later", "official"),
    rule_differences={
        "later": "white space around the prompt goes; `(B)` and `(B) text` are read as B",
        "official": NAMED_OPTION,
    },
    export=export,
    read_answers=read_answers,
    published="Acc@1: 0.9806727813584531",
    source="https://github.com/lupantech/ScienceQA",
)
SCIENCEQA = replace(
    _DIRECT,
    reasoning=replace(
        _DIRECT,
        load=partial(load, reasons=True),
        generation=Generation(max_new_tokens=COT_TOKENS),
        score=partial(score, reasons=True),
        export=partial(export, reasons=True),
        rules=("later", "official"),
        rule_differences={"official": NAMED_OPTION},
        published="",
    ),
)
