"""The runner with a scripted model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.evaluation.runner import estimated_length, make_batches
from internvl_chat.evaluation.settings import generate_keywords, results_folder
from internvl_chat.evaluation.task import Question
from internvl_chat.evaluation.tasks.pope import POPE
from tests.support.evaluation.pope import write_pope
from tests.support.evaluation.scripted import (
    SUM_FILES,
    SUMS,
    Scripted,
    add,
    run_scripted,
    settings_in,
    write_sums,
)


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    write_sums(tmp_path)
    return tmp_path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def test_a_scripted_model_is_asked_and_scored(sums: Path) -> None:
    told: list[str] = []
    outcome = run_scripted(settings_in(sums), [SUMS], Scripted(add), tell=told.append)[0]
    assert outcome.unanswered == []
    folder = sums / "results/sums"
    assert lines_of(folder / "answers.jsonl")[4] == {
        "id": "hard/1",
        "prompt": "1 + 11 = ",
        "answer": "12",
        "tokens": 1,
    }
    score = json.loads((folder / "score.json").read_text())
    assert score["n"] == 6
    assert list(score["rules"]) == ["2024", "later", "official"]
    assert score["rules"]["2024"]["metrics"] == {"accuracy": 1.0}
    assert score["rules"]["2024"]["printed"] == "accuracy 1.0\n"
    assert (score["disagree"], score["judge"]) == ([], None)
    card = json.loads((folder / "run.json").read_text())
    assert card["beams"] == {"num_beams": 1, "why": "one by default"}
    assert card["template"] == "Hermes-2"
    assert card["settings"]["max_new_tokens"] == 5
    exported = folder / f"sums_{card['stamp']}.json"
    assert json.loads(exported.read_text())["easy/2"] == "4"
    assert "accuracy 1.0" in told[-1]
    assert "6 of 6 questions to ask" in told[0]


def test_rules_that_disagree_name_their_samples(sums: Path) -> None:
    model = Scripted(lambda one: add(one) + "." * (one.id == "easy/0"))
    outcome = run_scripted(settings_in(sums), [SUMS], model)[0]
    score = json.loads((outcome.folder / "score.json").read_text())
    assert score["disagree"] == ["easy/0"]
    assert score["rules"]["official"]["metrics"]["accuracy"] == 1.0
    assert "1 samples differ between the rules: easy/0" in outcome.text


def test_a_finished_run_asks_nothing_and_loads_no_model(sums: Path) -> None:
    run_scripted(settings_in(sums), [SUMS], Scripted(add))
    before = {path.name: path.read_bytes() for path in (sums / "results/sums").iterdir()}
    again = Scripted(add)
    run_scripted(settings_in(sums), [SUMS], again)
    after = {path.name: path.read_bytes() for path in (sums / "results/sums").iterdir()}
    assert again.batches == []
    assert after == before


def test_a_crash_loses_no_answer(sums: Path) -> None:
    def crash(one: Question) -> str:
        if one.id == "easy/0":
            raise RuntimeError("the power is gone")
        return add(one)

    with pytest.raises(RuntimeError, match="power"):
        run_scripted(settings_in(sums, batch_size=1), [SUMS], Scripted(crash))
    again = Scripted(add)
    run_scripted(settings_in(sums, batch_size=3), [SUMS], again)
    asked = {name for batch in again.batches for name in batch}
    assert "easy/0" in asked
    assert len(asked) < 6
    lines = lines_of(sums / "results/sums/answers.jsonl")
    assert [line["answer"] for line in lines] == ["0", "2", "4", "10", "12", "14"]


def test_several_tasks_share_one_model(sums: Path) -> None:
    write_pope(sums)
    model = Scripted(lambda one: "Yes" if "is_yes" in one.record else add(one))
    outcomes = run_scripted(settings_in(sums), [SUMS, POPE], model)
    assert [one.task.id for one in outcomes] == ["sums", "pope"]
    assert {kw["max_new_tokens"] for kw in model.keywords} == {5, 100}


def test_pope_by_hand(tmp_path: Path) -> None:
    """Yes to all: half of each category are right, whatever the rules."""
    write_pope(tmp_path)
    outcome = run_scripted(settings_in(tmp_path), [POPE], Scripted(lambda _: "Yes"))[0]
    block = (
        "TP\tFP\tTN\tFN\t\n2\t2\t0\t0\nAccuracy: 0.5\nPrecision: 0.5\nRecall: 1.0\n"
        "F1 score: 0.6666666666666666\nYes ratio: 1.0\n0.667, 0.500, 0.500, 1.000, 1.000\n"
        "====================================\n"
    )
    names = ("random", "popular", "adversarial")
    blocks = "".join(f"Category: {name}, # samples: 4\n{block}" for name in names)
    wanted = "Evaluating pope ...\n" + blocks
    score = json.loads((outcome.folder / "score.json").read_text())
    assert score["rules"]["2024"]["printed"] == wanted
    assert score["rules"]["later"]["printed"] == wanted + "Overall F1: 66.67\n"


def test_an_image_that_cannot_be_read_does_not_end_the_run(tmp_path: Path) -> None:
    write_pope(tmp_path)
    image = tmp_path / "data/pope/val2014/COCO_val2014_000000000001.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:200])
    outcome = run_scripted(settings_in(tmp_path), [POPE], Scripted(lambda _: "No"))[0]
    assert len(outcome.unanswered) == 3
    assert "3 questions could not be asked, counted as empty" in outcome.text
    assert "COCO_val2014_000000000001.jpg" in outcome.unanswered[0]
    lines = lines_of(outcome.folder / "answers.jsonl")
    assert set(lines[3]) == {"id", "prompt", "error"}
    assert len(lines) == 12
    image.write_bytes(whole)
    again = Scripted(lambda _: "No")
    outcome = run_scripted(settings_in(tmp_path), [POPE], again)[0]
    assert sorted(name for batch in again.batches for name in batch) == ["3", "4", "5"]
    assert outcome.unanswered == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_beams": 2}, "num_beams is 1 there, 2 here"),
        ({"limit": 3}, "num_questions is 6 there, 3 here"),
        ({"rules": "later"}, "rules is"),
        ({"temperature": 0.5}, "temperature is 0.0 there, 0.5 here"),
        ({"dynamic": True}, "max_num is absent there, 6 here"),
        ({"load_in_8bit": True}, "weights is"),
    ],
)
def test_other_settings_in_the_same_place_are_refused(
    sums: Path, changes: dict[str, Any], told: str
) -> None:
    run_scripted(settings_in(sums), [SUMS], Scripted(add))
    with pytest.raises(ConfigError, match=told) as caught:
        run_scripted(settings_in(sums, **changes), [SUMS], Scripted(add))
    assert caught.value.exit_code == 2


def test_another_checkpoint_or_question_is_refused(sums: Path) -> None:
    settings = settings_in(sums)
    run_scripted(settings, [SUMS], Scripted(add))
    weights = Path(settings.checkpoint) / "model.safetensors"
    weights.write_bytes(b"\x01" * 100)
    with pytest.raises(ConfigError, match="checkpoint is"):
        run_scripted(settings, [SUMS], Scripted(add))
    weights.unlink()
    easy = sums / SUM_FILES[0]
    easy.write_text(easy.read_text().replace('"a": 2', '"a": 7'))
    with pytest.raises(ConfigError, match="questions is"):
        run_scripted(settings, [SUMS], Scripted(add))


def test_batch_size_does_not_belong_to_the_answers(sums: Path) -> None:
    answers = sums / "results/sums/answers.jsonl"
    run_scripted(settings_in(sums, batch_size=2), [SUMS], Scripted(add))
    before = answers.read_bytes()
    again = Scripted(add)
    run_scripted(settings_in(sums, batch_size=5, workers=1), [SUMS], again)
    assert again.batches == []  # nothing was left to ask, nothing was refused
    assert answers.read_bytes() == before


def test_missing_data_is_named_with_place_and_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_scripted(settings_in(tmp_path), [SUMS, POPE], Scripted(add))
    text = str(caught.value)
    for path in (*SUM_FILES, *(one.path for one in POPE.data)):
        assert str(tmp_path / path) in text
    assert "JSON lines: a, b" in text
    assert "val2014 (folder of pope): COCO val2014 images" in text
    assert caught.value.exit_code == 2


def test_malformed_data_is_named_by_line(sums: Path) -> None:
    (sums / SUM_FILES[1]).write_text('{"a": 1, "b": 2, "image": ""}\n{"a": ')
    with pytest.raises(ConfigError, match=r"hard.jsonl:2: is no JSON") as caught:
        run_scripted(settings_in(sums), [SUMS], Scripted(add))
    assert caught.value.exit_code == 2


def test_limit_seed_and_temperature_reach_the_model(sums: Path) -> None:
    model = Scripted(add)
    run_scripted(settings_in(sums, limit=2, temperature=0.7, seed=3), [SUMS], model)
    assert sum(map(len, model.batches)) == 2
    assert model.keywords[0] == {
        "num_beams": 1,
        "max_new_tokens": 5,
        "min_new_tokens": 1,
        "do_sample": True,
        "temperature": 0.7,
    }


def test_answers_without_scores(sums: Path) -> None:
    settings = settings_in(sums, is_scored=False, export_folder=sums / "exported")
    run_scripted(settings, [SUMS], Scripted(add))
    assert not (sums / "results/sums/score.json").exists()
    assert len(list((sums / "exported").glob("sums_*.json"))) == 1


def test_greedy_generation_is_not_told_of_sampling() -> None:
    settings = {"do_sample": False, "temperature": 0.0, "top_k": 50, "num_beams": 1}
    assert generate_keywords(settings) == {"do_sample": False, "num_beams": 1}
    sampled = {"do_sample": True, "temperature": 0.2, "top_k": 50, "top_p": None}
    assert generate_keywords(sampled) == {"do_sample": True, "temperature": 0.2, "top_k": 50}


def test_batches_hold_questions_of_like_length() -> None:
    questions = [Question(id=str(n), prompt="x" * n) for n in (3, 300, 30, 290, 9)]
    batches = make_batches(questions, 2, lambda length: 4, 10)
    assert [[len(one.prompt) for one in batch] for batch in batches] == [[300, 290], [30, 9], [3]]
    seen: list[int] = []
    make_batches(questions, None, lambda length: seen.append(length) or 9, 10)
    assert seen == [estimated_length(questions[1]) + 10]


@pytest.mark.parametrize(
    ("parameters", "changes", "beams", "why"),
    [
        (5_000_000, {}, 5, "original's default in 2024"),
        (19_100_000_000, {}, 5, "original's default in 2024"),
        (40_000_000_000, {"num_beams": 3}, 1, "above 20e9 parameters, here 40.0e9"),
        (5_000_000, {"dynamic": True}, 1, "one with --dynamic"),
        (5_000_000, {"num_beams": 3}, 3, "--num-beams"),
        (5_000_000, {"rules": "later"}, 1, "original's default"),
    ],
)
def test_the_originals_beam_rule(
    tmp_path: Path, parameters: int, changes: dict[str, Any], beams: int, why: str
) -> None:
    settings = settings_in(tmp_path, uses_original_beams=True, **changes)
    found, reason = settings.beams_of(SUMS, parameters)
    assert found == beams
    assert why in reason


def test_beams_of_videos_the_tsv_family_and_our_own_default(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, uses_original_beams=True)
    assert settings.beams_of(replace(SUMS, original_beams=1), 1)[0] == 1
    toolkit = replace(SUMS, suite="vlmevalkit", rules=("2024", "later"))
    assert settings.beams_of(toolkit, 1)[0] == 1
    old = replace(settings, checkpoint="pretrained/InternVL-Chat-V1-1")
    assert old.beams_of(toolkit, 1)[0] == 5
    assert replace(old, rules="later").beams_of(toolkit, 1)[0] == 1
    later = replace(settings, rules="later")  # today's default, also where nothing else differs
    assert later.beams_of(replace(SUMS, rules=("2024",)), 1) == (1, "the original's default")
    assert settings_in(tmp_path).beams_of(SUMS, None) == (1, "one by default")
    assert settings_in(tmp_path, num_beams=4).beams_of(SUMS, None) == (4, "--num-beams")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 0}, "--batch-size: is 0"),
        ({"max_num": 0}, "--max-num: is 0"),
        ({"temperature": -1.0}, "--temperature: is -1.0"),
        ({"load_in_8bit": True, "load_in_4bit": True}, "exclude each other"),
    ],
)
def test_settings_check_themselves(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        settings_in(tmp_path, **changes)


def test_results_are_named_by_the_last_two_parts() -> None:
    out = Path("results")
    assert results_folder(out, "/a/pretrained/M/") == out / "pretrained_M"
    assert results_folder(out, "./M") == out / "M"
