"""The program does what was written down: see ``tests/pins/snapshot.py``.

Where a change is meant: ``python -m tests.pins.snapshot write --only SECTION``, and the pins' diff
goes into the same commit.
"""

from __future__ import annotations

import pytest

from tests.pins.differences import differences
from tests.pins.snapshot import SECTIONS, as_text, compare, pinned

TRAINED = ("losses", "figures")


def _require_as_pinned(section: str) -> None:
    lines = list(compare(section))
    assert not lines, "\n".join(lines[:60])


@pytest.mark.parametrize("section", [name for name in SECTIONS if name not in TRAINED])
def test_as_written_down(section: str) -> None:
    _require_as_pinned(section)


@pytest.mark.distributed
@pytest.mark.parametrize("section", TRAINED)
def test_trainings_as_written_down(section: str) -> None:
    _require_as_pinned(section)


def test_nothing_is_pinned_empty() -> None:
    assert all(pinned(section) for section in SECTIONS)
    for run in ("zero3", "plain", "lora"):
        losses = pinned("losses")[run]["loss"]
        assert len(losses) == 20
        assert losses[-1] < losses[0] - 0.1, "a run that learns nothing pins little"


def test_a_difference_is_found() -> None:
    was = {"a": [1.0, 2.0], "b": "x", "text": "one\ntwo\n", "gone": True}
    now = {"a": [1.0, 2.1], "b": "x", "text": "one\nthree\n", "new": 1}
    lines = list(differences(was, now, where="s"))
    assert lines[0] == "s.a[1]: 2.1, was 2.0"
    assert {"-two", "+three", "s.gone: gone, was True", "s.new: new, 1"} <= set(lines)


def test_numbers_have_room_only_where_they_are_given_it() -> None:
    was, now = {"a": [1.0, 7]}, {"a": [1.0 + 1e-7, 7]}
    assert list(differences(was, now, where="s"))
    assert not list(differences(was, now, where="s", relative=1e-5))
    assert list(differences(was, {"a": [1.0, 8]}, where="s", relative=1.0)), (
        "whole numbers are exact"
    )


def test_json_is_the_same_after_layout() -> None:
    import json

    value = {"a": [1, 2, {"b": []}], "c": ["x" * 60, "y" * 60], "d": None, "ü": 1e-5}
    assert json.loads(as_text(value)) == value
