from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.metrics.boxes_iou import iou, read_box
from internvl_chat.evaluation.task import TaskSpec
from internvl_chat.evaluation.tasks.refcoco import REFCOCO, SPLITS
from tests.support.evaluation.asking import (
    answered,
    export_of,
    questions_of,
    score_of,
    write_files,
)
from tests.support.evaluation.choice import write_refcoco

ALL, VAL = REFCOCO[0], REFCOCO[1]
REPLIES = ["<box>[[16, 42, 173, 458]]</box>", "no box", "[0, 0, 0.5, 1.0]"]
"""Of 640 x 480: the truth but for rounding; none; the left half, which is half of the whole."""


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("<box>[[100, 200, 300, 400]]</box>", (100, 200, 300, 400)),
        ("[1,2,3,4]", (1, 2, 3, 4)),
        ("[[1,2,3,4],[5,6,7,8]]", (1, 2, 3, 4)),
        ("[[1, 2, 3]]", (0, 0, 0, 0)),
        ("[[0.1,0.2,0.3,0.4]]", (100, 200, 300, 400)),
        ("[a, b, c, d]", (0, 0, 0, 0)),
        ("[[1,2,3],[5,6,7,8]]", (0, 0, 0, 0)),  # the fourth number would be "[5"
        ("", (0, 0, 0, 0)),
        ("[0, 0, 1, 2]", (0, 0, 1000, 2000)),  # a small sum: shares, however meant
        ("[1, 1, 1, 1]", (1, 1, 1, 1)),
        ("[300, 400, 100, 200]", (300, 400, 100, 200)),
    ],
)
def test_boxes(answer: str, box: tuple[float, ...]) -> None:
    assert read_box(answer, 1000, 1000) == pytest.approx(box)


def test_boxes_in_pixels() -> None:
    box = read_box("[[100, 200, 300, 400]]", 640, 480)
    assert box == pytest.approx([64, 96, 192, 192])
    assert box.dtype == np.float32
    assert np.isinf(read_box("[1e400, 1, 1, 1]", 640, 480)[0])
    assert np.isnan(read_box("[nan, 1, 1, 1]", 640, 480)[0])


def box(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


def test_iou() -> None:
    assert iou(box(0, 0, 2, 2), box(1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou(box(0, 0, 2, 2), box(0, 0, 2, 2)) == 1.0
    assert iou(box(0, 0, 1, 1), box(2, 2, 3, 3)) == 0.0
    assert iou(box(2, 2, 0, 0), box(0, 0, 2, 2)) == 0.0  # inverted: no intersection
    assert np.isnan(iou(box(0, 0, 0, 0), box(0, 0, 0, 0)))


def torch_iou(first: np.ndarray, second: np.ndarray) -> float:
    """torchvision's ``box_iou``."""
    one, other = torch.from_numpy(first)[None], torch.from_numpy(second)[None]
    areas = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (one, other)]
    corner = torch.max(one[:, None, :2], other[:, :2])
    sides = (torch.min(one[:, None, 2:], other[:, 2:]) - corner).clamp(min=0)
    inter = sides[:, :, 0] * sides[:, :, 1]
    return float((inter / (areas[0][:, None] + areas[1] - inter)).item())


numbers = st.floats(-2000, 2000, width=32)
corners = st.tuples(numbers, numbers, numbers, numbers)


@given(corners, corners)
def test_iou_is_torchs_to_the_bit(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    ours, theirs = iou(box(*first), box(*second)), torch_iou(box(*first), box(*second))
    assert ours == theirs or (np.isnan(ours) and np.isnan(theirs))


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4), st.integers(1, 4000))
def test_a_box_is_scaled_as_torch_scales_it(thousandths: list[int], width: int) -> None:
    want = torch.tensor([float(x) for x in thousandths], dtype=torch.float32).view(-1, 4)
    if want.sum() >= 4:
        want = want / 1000
    want[:, 0::2] *= width
    want[:, 1::2] *= 480
    assert read_box(str(thousandths), width, 480).tolist() == want[0].tolist()


def test_ids() -> None:
    assert [task.id for task in REFCOCO] == [
        "refcoco",
        "refcoco-val",
        "refcoco-testA",
        "refcoco-testB",
        "refcoco+-val",
        "refcoco+-testA",
        "refcoco+-testB",
        "refcocog-val",
        "refcocog-test",
    ]
    assert ALL.published == "90.2 / 93.4 / 85.5 / 85.3 / 90.4 / 79.7 / 88.5 / 88.8"
    assert REFCOCO[-1].published == "88.8"
    assert [file.path for file in REFCOCO[4].data] == ["data/refcoco/refcoco+_val.jsonl"]


def test_prompts(tmp_path: Path) -> None:
    write_refcoco(tmp_path)
    questions = questions_of(ALL, tmp_path)
    assert len(questions) == 24
    assert [one.id for one in questions[2:4]] == ["refcoco_val/2", "refcoco_testA/0"]
    assert questions[1].prompt == (
        "Please provide the bounding box coordinate of the region this sentence describes: "
        "<ref>the mug at {left}</ref>"
    )
    single = questions_of(REFCOCO[5], tmp_path)
    assert [one.id for one in single] == ["0", "1", "2"]
    assert single[0].images[0].label.endswith("000000000004.jpg")
    assert single[0].images[0].open().size == (12, 8)
    assert ALL.generation.max_new_tokens == 100


def test_scripted_answers(tmp_path: Path) -> None:
    write_refcoco(tmp_path)
    questions = questions_of(VAL, tmp_path)
    score = score_of(VAL, questions, answered(questions, REPLIES))
    assert list(score.per_sample.values()) == [1, 0, 1]
    assert score.metrics == {"refcoco_val": 2 / 3}
    assert score.printed == (
        "Evaluating refcoco_val ...\nEvaluating refcoco_val ...\n"
        "Precision @ 1: 0.6666666666666666 \n\n"
    )


def test_all_splits(tmp_path: Path) -> None:
    write_refcoco(tmp_path)
    questions = questions_of(ALL, tmp_path)
    answers = answered(questions, REPLIES[:1] * 3 + REPLIES * 7)
    score = score_of(ALL, questions, answers)
    assert list(score.metrics) == list(SPLITS)
    assert set(score.metrics.values()) == {2 / 3}
    assert score.printed.count("Evaluating refcoco+_testB ...\n") == 2
    files = export_of(ALL, questions, answers)
    assert list(files) == [
        *(f"{split}_240727004726.json" for split in SPLITS),
        "pretrained_InternVL-Chat-V1-2-Plus.txt",
    ]
    assert ALL.read_answers(write_files(tmp_path, files)[:8], questions) == answers


def test_files_written_and_read(tmp_path: Path) -> None:
    write_refcoco(tmp_path)
    questions = questions_of(VAL, tmp_path)
    answers = answered(questions, REPLIES)
    files = export_of(VAL, questions, answers)
    assert json.loads(files["refcoco_val_240727004726.json"])[0] == {
        "answer": "<box>[[16, 42, 173, 458]]</box>",
        "gt_bbox": [10.5, 20.0, 110.5, 220.0],
        "hw": [480, 640],
    }
    assert files["pretrained_InternVL-Chat-V1-2-Plus.txt"] == (
        "['pretrained/InternVL-Chat-V1-2-Plus', 'refcoco_val', "
        "'Precision @ 1: 0.6666666666666666 \\n']\n"
    )
    renamed = write_files(tmp_path, {"mine.json": files["refcoco_val_240727004726.json"]})
    assert VAL.read_answers(renamed, questions) == answers
    with pytest.raises(DatasetError, match=r"mine\.json: does not say its split"):
        ALL.read_answers(renamed, questions_of(ALL, tmp_path))
    assert list(export_of(VAL, questions, answers, with_score=False)) == [
        "refcoco_val_240727004726.json"
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[10.5, 20.0, 110.5, 220.0]", "[1, 2]", r"val\.jsonl:1: \"bbox\" is \[1, 2\], want"),
        ('"height": 480', '"height": 0', r"val\.jsonl:1: \"height\" is 0, want pixels"),
        ('"sent"', '"text"', r"val\.jsonl:1: has no \"sent\""),
        ('"left mug"', "3", r"val\.jsonl:1: \"sent\" is 3, want a text"),
    ],
)
def test_unfit_data(old: str, new: str, message: str, tmp_path: Path) -> None:
    write_refcoco(tmp_path)
    path = tmp_path / "data/refcoco/refcoco_val.jsonl"
    path.write_text(path.read_text("utf-8").replace(old, new, 1), "utf-8")
    with pytest.raises(DatasetError, match=message):
        questions_of(VAL, tmp_path)


@pytest.mark.parametrize("task", REFCOCO, ids=lambda task: task.id)
def test_the_truth_scores_1(task: TaskSpec, tmp_path: Path) -> None:
    write_refcoco(tmp_path)
    questions = questions_of(task, tmp_path)
    answers = {}
    for one in questions:
        (height, width), (x1, y1, x2, y2) = one.record["hw"], one.record["bbox"]
        answers[one.id] = str([x1 / width, y1 / height, x2 / width, y2 / height])
        if one.prompt.endswith("whole image</ref>"):  # shares that sum to 2
            assert answers[one.id] == "[0.0, 0.0, 1.0, 1.0]"
    assert set(score_of(task, questions, answers).metrics.values()) == {1.0}
