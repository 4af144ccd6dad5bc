"""``--cot``: what is asked, and what is read of an answer that reasons first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.evaluation.metrics.final_answer import final_answer
from internvl_chat.evaluation.task import TaskSpec
from internvl_chat.evaluation.tasks.mmvp import MMVP
from internvl_chat.evaluation.tasks.pope import POPE
from internvl_chat.evaluation.tasks.scienceqa import SCIENCEQA
from internvl_chat.evaluation.variants import as_reasoned
from tests.support.evaluation.asking import (
    answered,
    export_of,
    questions_of,
    score_of,
    write_files,
)
from tests.support.evaluation.choice import write_scienceqa
from tests.support.evaluation.pope import write_pope


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is round.\nFinal answer: B", "B"),
        ("Final answer:\nB", "B"),
        ("final ANSWER:   (B) rock  \nA", "(B) rock"),
        ("The answer: C. Final answer: D", "C. Final answer: D"),  # the first one counts
        ("No mark at all ", "No mark at all "),
        ("Answer:", ""),
        ("", ""),
    ],
)
def test_final_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def reasoned(task: TaskSpec) -> TaskSpec:
    assert task.reasoning is not None
    return task.reasoning


def test_scienceqa_by_hand(tmp_path: Path) -> None:
    write_scienceqa(tmp_path)
    task = reasoned(SCIENCEQA)
    questions = questions_of(task, tmp_path, "later")
    replies = ["So.\nFinal answer: B", "A dog barks.\nAnswer: (B)", "C", "none", "", "B first"]
    answers = answered(questions, replies)
    values = score_of(task, questions, answers, "later").per_sample.values()
    assert list(values) == [1, 1, 1, 0, 0, 1]
    files = export_of(task, questions, answers, "later")
    records = [json.loads(line) for line in next(iter(files.values())).splitlines()]
    assert (records[1]["answer"], records[1]["answer_orig"]) == ("B", replies[1])
    assert task.read_answers(write_files(tmp_path, files), questions) == answers


def test_pope_by_hand(tmp_path: Path) -> None:
    """Reasons that say no do not matter where the final answer is yes."""
    write_pope(tmp_path, num_images=2)
    task = reasoned(POPE)
    questions = questions_of(task, tmp_path, "later")
    assert all("single word" not in one.prompt for one in questions)
    ending = {True: "Yes", False: "No"}
    answers = {
        one.id: f"There is no sign of it.\nFinal answer: {ending[one.record['is_yes']]}"
        for one in questions
    }
    assert score_of(task, questions, answers, "later").metrics["overall_f1"] == 100.0
    assert score_of(POPE, questions, answers, "later").metrics["overall_f1"] == 0.0
    files = export_of(task, questions, answers, "later")
    record = json.loads(next(iter(files.values())))[0]
    assert (record["text"], record["text_orig"]) == (final_answer(answers["0"]), answers["0"])
    assert task.read_answers(write_files(tmp_path, files), questions) == answers


def test_where_there_is_none() -> None:
    assert [task.generation.max_new_tokens for task in as_reasoned([POPE], "later")] == [4096]
    with pytest.raises(ConfigError, match="mmvp cannot be asked with a chain of thought"):
        as_reasoned([POPE, MMVP], "later")
    for rules in (None, "2024"):
        with pytest.raises(ConfigError, match="pope has no chain of thought under the rules of"):
            as_reasoned([POPE], rules)  # type: ignore[arg-type]
