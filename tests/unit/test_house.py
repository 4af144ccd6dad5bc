"""The plan of the house (docs/architecture.md), held in place."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.house import GENERAL, House, circles, level_of, read_house, room_of
from tests.support.training import ROOT

SETTINGS_IN_TWO_CLASSES = {
    "loss_reduction",  # the flag, and the collator that may be used without one
    "padding",  # of a pack, and of the example that it becomes
    "length",  # that a meta JSON promises, and of an upload's body
    "max_dynamic_patch",  # the run's, and a dataset's own
    "max_samples",  # the run's, and a dataset's own
    "warnings",  # about a record, and counted over records
    "images",  # of a record, and of a question to be evaluated
    "video",  # of a record, and of a question to be evaluated
    "judge",  # the model that a benchmark names, and the one at hand
    "video_backend",  # of a run, and of a conversation
    "notes",  # on a score, and on a placement of ranks
}


@pytest.fixture(scope="module")
def house() -> House:
    return read_house(ROOT / "internvl_chat")


def test_no_module_imports_itself_by_a_detour(house: House) -> None:
    assert circles(house.imports) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


def test_imports_point_downwards(house: House) -> None:
    wrong = []
    for module, targets in house.imports.items():
        height = level_of(room_of(module))
        for target in targets:
            other = level_of(room_of(target))
            if height is None or other is None or room_of(module) == room_of(target):
                continue
            if other >= height:
                wrong.append(f"{module} imports {target}")
    # errors, files and config are the ground floor together
    assert [text for text in wrong if "imports internvl_chat.errors" not in text] == []


def test_settings_and_class_names_have_one_home(house: House) -> None:
    twice = {name for name, classes in house.defaults.items() if len(classes) > 1} - GENERAL
    assert twice <= SETTINGS_IN_TWO_CLASSES
    assert [name for name in twice if len(house.defaults[name]) > 2] == []
    assert {name: where for name, where in house.classes.items() if len(where) > 1} == {}


def test_lengths(house: House) -> None:
    assert {module: n for module, n in house.lines.items() if n > 700} == {}
    longest = {name: n for name, n in house.functions.items() if n > 60}
    # Most of them says what each argument is.
    assert set(longest) <= {
        "internvl_chat.model.modeling_internvl_chat.forward",
        "internvl_chat.cli.eval.run",
    }


def test_words_are_the_fields(house: House) -> None:
    assert {module: words for module, words in house.words.items() if words} == {}


def test_playground_holds_no_code() -> None:
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "playground"], capture_output=True, text=True
    )
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    assert tracked.stdout.split() == ["playground/README.md"]
