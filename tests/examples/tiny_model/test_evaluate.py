"""Held-out questions asked by the runner, counted by skill."""

import json
from pathlib import Path

import pytest

from examples.tiny_model.evaluate import (
    Reply,
    evaluate,
    format_table,
    skill_of,
    summarize,
    task_of,
)
from internvl_chat.evaluation.task import DataRoot
from tests.support.evaluation.own import write_own
from tests.support.training import ROOT

TINY = ROOT / "pretrained/internvl-chat-tiny"
NOWHERE = DataRoot(folder=Path("/nowhere"), lmu_data=Path("/nowhere"))


def test_a_limit_holds_for_each_skill(tmp_path: Path) -> None:
    asked = task_of(write_own(tmp_path), limit=2).load(NOWHERE, "2024")
    assert [(one.id, skill_of(one)) for one in asked] == [
        ("c0", "color"),
        ("c1", "color"),
        ("t0", "text"),
    ]


def test_images_lie_beside_the_files_folder(tmp_path: Path) -> None:
    jsonl = write_own(tmp_path / "heldout")
    (image,) = task_of(jsonl).load(NOWHERE, "2024")[0].images
    assert image.path == str(tmp_path / "images/red.png")  # type: ignore[attr-defined]


def test_a_skill_has_its_own_scorer() -> None:
    replies = [
        Reply(skill="count", truth="3", text="3 shapes"),
        Reply(skill="color", truth="red", text="Red."),
        Reply(skill="color", truth="red", text="3"),
    ]
    summary = summarize(replies)
    assert summary["skills"] == {"color": 0.5, "count": 1.0}
    assert summary["asked"] == {"color": 2, "count": 1}
    assert format_table(summary).splitlines()[0] == "color           50.0%"


@pytest.mark.skipif(not TINY.is_dir(), reason="the tiny model is not in this checkout")
def test_the_shipped_model_names_colors(tmp_path: Path) -> None:
    summary = evaluate(TINY, [write_own(tmp_path)], root=tmp_path, limit=4)
    assert summary["asked"] == {"color": 4, "text": 1}
    assert summary["skills"]["color"] > 0.5
    assert json.loads(json.dumps(summary)) == summary
