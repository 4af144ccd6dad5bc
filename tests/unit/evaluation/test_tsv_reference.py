"""MMStar and HallusionBench: data, answer files and numbers that the originals' own code gave.

Also inputs on which the originals stop and ours must not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.registry import TASKS
from internvl_chat.evaluation.spreadsheets import write_xlsx
from internvl_chat.evaluation.task import (
    RULES,
    DataRoot,
    ExportInput,
    Question,
    Rules,
    Score,
    ScoreInput,
)
from tests.support.evaluation.tsv import SHAPES, score_answers, write_table
from tests.support.training import ROOT

FILES = ROOT / "tests/fixtures/answer_files"
STATES: tuple[Rules, ...] = ("2024", "later")
pytestmark = pytest.mark.parametrize("rules", STATES)


def _expected(name: str, rules: str) -> dict[str, Any]:
    return json.loads((FILES / name / f"expect_{rules}.json").read_text("utf-8"))


def _questions(name: str, rules: Rules) -> list[Question]:
    return TASKS[name].load(DataRoot(folder=FILES, lmu_data=FILES / name), rules)


def _answers(name: str, questions: Sequence[Question]) -> dict[str, str]:
    file = FILES / name / f"InternVL-Chat-V1-2_{name}.xlsx"
    return TASKS[name].read_answers([file], questions)


def _score(name: str, rules: Rules) -> Score:
    questions = _questions(name, rules)
    score = TASKS[name].score
    assert score is not None
    return score(ScoreInput(questions=questions, answers=_answers(name, questions), rules=rules))


def _without_numbers(table: str) -> list[list[str]]:
    """Rows of a numbered table in order of their names."""
    return sorted(line.split()[1:] for line in table.split("\n"))


@pytest.mark.parametrize("name", ["MMStar", "HallusionBench"])
def test_scores_are_the_originals(name: str, rules: Rules) -> None:
    expected, score = _expected(name, rules), _score(name, rules)
    values = {key: value for key, value in score.metrics.items() if key != "result"}
    assert values == expected["values"]
    hits = {key: one["hit"] for key, one in expected["per_sample"].items()}
    assert score.per_sample == hits
    if name == "MMStar":
        assert score.printed == expected["printed"]
    else:  # rows of the original are in the order of a hash table
        assert _without_numbers(score.printed) == _without_numbers(expected["printed"])
        extracted = {key: one["extracted"] for key, one in score.added_columns.items()}
        assert extracted == {key: one["extracted"] for key, one in expected["per_sample"].items()}


def test_hallusionbench_says_the_guides_figure(rules: Rules) -> None:
    score = _score("HallusionBench", rules)
    shown = {
        "2024": "result = (50.5155 + 50.7692 + 34.0426) / 3 = 45.1",
        "later": "result = (51.5464 + 52.3077 + 34.0426) / 3 = 46.0",
    }
    assert score.notes[-1] == shown[rules]
    assert "no judge" in score.notes[0]


@pytest.mark.parametrize("name", ["MMStar", "HallusionBench"])
def test_prompts_are_the_originals(name: str, rules: Rules) -> None:
    asked = json.loads((FILES / name / "prompts.json").read_text("utf-8"))
    questions = {one.id: one for one in _questions(name, rules)}
    for index, states in asked["prompts"].items():
        question = questions[index]
        shown = {"text": question.prompt, "image": question.images[0].label, "images_of_row": 1}
        assert shown == states[rules]
    task = TASKS[name]
    generation = task.generation_by_rules.get(rules, task.generation)
    settings = asked["generation"][rules]
    assert generation.max_new_tokens == settings["max_new_tokens"]
    assert generation.num_beams == settings.get("num_beams", 1)
    assert generation.extra == {"top_p": settings["top_p"]}


@pytest.mark.parametrize("name", ["MMStar", "HallusionBench"])
def test_our_own_table_scores_alike(name: str, rules: Rules, tmp_path: Path) -> None:
    questions = _questions(name, rules)
    answers = _answers(name, questions)
    given = ExportInput(
        questions=questions,
        answers=answers,
        checkpoint="pretrained/InternVL-Chat-V1-2",
        stamp="240727120000",
        rules=rules,
        score=_score(name, rules),
    )
    files = TASKS[name].export(given)
    suffixes = {
        "MMStar": ["_acc.csv", "_exact_matching_result.xlsx", ".xlsx"],
        "HallusionBench": ["_auxmatch.xlsx", "_score.csv", ".xlsx"],
    }
    stem = f"InternVL-Chat-V1-2_{name}"
    assert sorted(files) == sorted(stem + suffix for suffix in suffixes[name])
    for file in files:
        if not file.endswith(".xlsx"):
            continue
        content = files[file]
        assert isinstance(content, bytes)
        (tmp_path / file).write_bytes(content)
        read = TASKS[name].read_answers([tmp_path / file], questions)
        score = TASKS[name].score
        assert score is not None
        again = score(ScoreInput(questions=questions, answers=read, rules=rules))
        assert again.per_sample == given.score.per_sample if given.score else False
        if file == f"{stem}.xlsx":
            assert read == answers


# -- where the originals stop --------------------------------------------------------------------


def test_mmstar_a_missing_category(rules: Rules, tmp_path: Path) -> None:
    for missing in (None, "None"):
        rows = [
            {"question": "q", **SHAPES, "answer": "A", "category": name} for name in ("x", missing)
        ]
        write_table(tmp_path / "MMStar.tsv", rows)
        score = score_answers(TASKS["MMStar"], tmp_path, ["A", "B"], rules=rules)
        assert score.metrics == {"none|Overall": 0.5, "none|x": 1.0}
        assert score.notes == ("1 rows have no category: in Overall alone",)


def test_mmstar_an_answer_to_no_question(rules: Rules, tmp_path: Path) -> None:
    file = tmp_path / "m_MMStar.xlsx"
    file.write_bytes(write_xlsx(("index", "prediction"), [{"index": 999, "prediction": "A"}]))
    with pytest.raises(DatasetError, match="1 rows belong to no question, the first has index 999"):
        TASKS["MMStar"].read_answers([file], _questions("MMStar", rules))


def test_mmstar_questions_that_are_missing_or_numbers(rules: Rules, tmp_path: Path) -> None:
    for questions, shown in (([None, "q"], ["", "q"]), (["7", "8"], ["7", "8"])):
        rows = [{"question": one, **SHAPES, "answer": "A"} for one in questions]
        write_table(tmp_path / "MMStar.tsv", rows)
        root = DataRoot(folder=tmp_path, lmu_data=tmp_path)
        prompts = [one.prompt.split("\n")[0] for one in TASKS["MMStar"].load(root, rules)]
        assert prompts == shown
        score = score_answers(TASKS["MMStar"], tmp_path, ["A", "A"], rules=rules)
        assert score.metrics == {"none|Overall": 1.0}
        notes = ("1 rows have no question: asked without one",) if questions[0] is None else ()
        assert score.notes == notes


def test_mmstar_images_that_lead_nowhere_are_still_scored(rules: Rules, tmp_path: Path) -> None:
    rows = [
        {"question": "q", **SHAPES, "answer": "A", "image": cell} for cell in ("2", "9", "9", "[]")
    ]
    write_table(tmp_path / "MMStar.tsv", rows)
    score = score_answers(TASKS["MMStar"], tmp_path, ["A", "A", "B", "A"], rules=rules)
    assert score.metrics == {"none|Overall": 0.75}


def test_hallusionbench_indices_that_say_nothing(rules: Rules, tmp_path: Path) -> None:
    base = {"question": "q", "answer": "Yes", "category": "VD", "l2-category": "VD_ocr"}
    for indices in ((3, 4), ("VD_ocr_1", "VD_ocr_1_0_0_0")):
        write_table(tmp_path / "HallusionBench.tsv", [{**base, "index": one} for one in indices])
        score = score_answers(TASKS["HallusionBench"], tmp_path, ["yes", "no"], rules=rules)
        whole = indices[0] == 3
        assert score.metrics["Overall|aAcc"] == 50.0
        assert score.metrics["Overall|fAcc"] == (None if whole else 0.0)
        count = 2 if whole else 1
        note = f"{count} indices do not name set, figure and question: in aAcc alone"
        assert note in score.notes


def test_every_set_of_rules_scores(rules: Rules) -> None:
    assert rules in RULES
    for name in ("MMStar", "HallusionBench"):
        official = _score(name, "official")
        assert set(official.per_sample) == set(_score(name, rules).per_sample)
