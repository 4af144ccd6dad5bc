"""The commands of README and docs, extracted from the pages and run as they stand there."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.pages.conftest import Start
from tests.pages.scenes import SCENES, Scene
from tests.support.page_runs import treatment
from tests.support.pages import PAGES, Block, blocks, commands


def scene_of(page: str) -> Scene:
    return SCENES.get(page, Scene())


def is_run(page: str) -> bool:
    stand_ins = scene_of(page).stand_ins
    return any(treatment(command, stand_ins) != "not" for command in commands(page)) or any(
        block.script for block in blocks(page)
    )


LAUNCH = re.compile(r"\b(?:srun|torchrun|torch\.distributed\.run|python) .*\binternvl_chat\b")
"""A line that starts the ranks."""
WALKED = ["docs/first_hour.md"]
"""Typed by tests/walkthrough, from the clone on."""
RUN = [page for page in PAGES if is_run(page) and page not in WALKED]


def cases() -> list[object]:
    return [
        pytest.param(page, marks=[pytest.mark.slow] if scene_of(page).slow else []) for page in RUN
    ]


@pytest.mark.parametrize("page", cases())
def test_page(page: str, start: Start) -> None:
    scene = scene_of(page)
    if missing := [program for program in scene.wants if shutil.which(program) is None]:
        pytest.skip(f"not installed here: {', '.join(missing)}")
    run = start(stand_ins=frozenset(scene.stand_ins), whole=scene.whole)
    for put in scene.puts:
        put(run)
    run.run(page)
    scene.look(run)
    for command, shown in scene.shows:
        (line,) = (one.line for one in commands(page) if command in one.text)
        assert shown in run.told[line], f"{page}:{line}: {run.told[line]}"
    done = [one for one in commands(page) if treatment(one, scene.stand_ins) != "not"]
    assert [one.where for one in done if one.line not in run.told] == []
    for one in done:
        if treatment(one, scene.stand_ins) == "dry":
            assert LAUNCH.search(run.told[one.line]), f"{one.where}: {run.told[one.line]}"


def test_scenes_are_of_pages() -> None:
    assert [page for page in SCENES if page not in RUN] == []


NOT_RUN = {
    "time": 10,  # quickstart, demos, all tests, benchmarks: each has its own tests
    "network": 29,  # pip install, git clone, downloads; test_install.py runs some
    "GPUs": 12,
    "cluster": 2,
    "root": 3,  # tests/slurm starts the same cluster
    "judge": 3,
    "data": 2,
    "file": 2,
    "image": 2,  # Docker or Apptainer
    "wheels": 1,
}
"""By what they need, the commands that no test runs. Another one wants a change here."""
INSTEAD = {"dry": 16, "stand-in": 17}
SLOW = ["docs/custom_dataset.md", "docs/training.md"]


def test_what_is_not_run_is_counted() -> None:
    found: dict[str, int] = {}
    instead: dict[str, int] = {}
    for page in PAGES:
        for command in commands(page):
            how = treatment(command, scene_of(page).stand_ins)
            if how == "not":
                assert command.need is not None
                found[command.need] = found.get(command.need, 0) + 1
            elif how != "run":
                instead[how] = instead.get(how, 0) + 1
    assert found == NOT_RUN
    assert instead == INSTEAD
    assert sorted(page for page, scene in SCENES.items() if scene.slow) == SLOW


SESSIONS = [(page, one) for page in PAGES for one in blocks(page) if one.language == "console"]


def test_sessions_that_fail_are_counted() -> None:
    assert [page for page, _ in SESSIONS] == ["docs/serve.md"]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "block"), SESSIONS)
def test_sessions_still_fail_as_shown(page: str, block: Block, start: Start) -> None:
    typed, *shown = block.text.splitlines()
    told = start().shell(f"! {typed.removeprefix('$ ')}\n", page)
    assert [line for line in shown if line not in told.splitlines()] == []
