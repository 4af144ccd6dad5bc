"""The two meta files, and that they come out the same and complete."""

import json
from pathlib import Path

import pytest

from examples.annotations import read_jsonl
from examples.quickstart.data import DataFiles, DataPlan, is_written, write_data
from examples.quickstart.questions import load_questions
from examples.tiny_model.records import FAMILIES
from internvl_chat.data.meta import load_meta

PLAN = DataPlan(digit_scans=4, digit_looks=2, digit_held_out=3, general=20, general_held_out=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DataFiles:
    made = DataFiles(playground=tmp_path_factory.mktemp("playground"), name="quickstart")
    write_data(made, PLAN)
    return made


def test_the_trainer_reads_the_meta_files(files: DataFiles) -> None:
    specs = load_meta(str(files.train_meta))
    assert [spec.name for spec in specs] == ["digits", *FAMILIES]
    assert specs[0].length == 8
    for spec in specs:
        assert spec.length == len(read_jsonl(Path(spec.annotation)))
    assert {spec.name: spec.length for spec in load_meta(str(files.held_out_meta))} == {
        "digits": 3,
        **dict.fromkeys(FAMILIES, 2),
    }


def test_images_of_every_record_exist(files: DataFiles) -> None:
    for meta in (files.train_meta, files.held_out_meta):
        for asked in load_questions(meta):
            assert all(Path(image).is_file() for image in asked.images)
            assert asked.prompt.count("<image>") == len(asked.images)


def test_held_out_records_ask_one_question_and_name_its_skill(files: DataFiles) -> None:
    for family in FAMILIES:
        for record in read_jsonl(files.annotations / f"{family}_heldout.jsonl"):
            assert len(record["conversations"]) == 2
            assert record["skill"]


def test_the_stamp_names_the_plan(files: DataFiles, tmp_path: Path) -> None:
    assert is_written(files, PLAN)
    assert not is_written(files, DataPlan())
    assert not is_written(DataFiles(playground=tmp_path, name="quickstart"), PLAN)


def test_the_same_plan_gives_the_same_lines(files: DataFiles, tmp_path: Path) -> None:
    again = DataFiles(playground=tmp_path, name="quickstart")
    seen: list[tuple[int, int]] = []
    write_data(again, PLAN, lambda done, total: seen.append((done, total)))
    for annotation in files.annotations.glob("*.jsonl"):
        assert (again.annotations / annotation.name).read_bytes() == annotation.read_bytes()
    total = sum(entry["length"] for entry in json.loads(files.train_meta.read_text()).values())
    total += 3 + 2 * len(FAMILIES)
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
