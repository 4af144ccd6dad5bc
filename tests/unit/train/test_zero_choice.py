"""``--deepspeed auto``: the lowest stage that fits, or that of the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.train import zero_choice
from internvl_chat.train.zero_choice import ZeroRoom, choose_zero, former_zero, is_auto

NEEDS = {"none": 90.0, "zero1": 60.0, "zero2": 40.0, "zero3": 20.0, "zero3_offload": 10.0}


def room(usable: float) -> ZeroRoom:
    return ZeroRoom(memory_gib=(usable + 0.75) / 0.9, beside_gib=0.75)


def choice(usable: float, former: str | None = None) -> tuple[str | None, bool, str]:
    found = choose_zero(NEEDS.__getitem__, room(usable), former=former)
    return found.source, found.fits, found.told


@pytest.mark.parametrize(
    ("usable", "source"),
    [(90.1, None), (89.9, "zero1"), (59.9, "zero2"), (39.9, "zero3"), (20.1, "zero3")],
)
def test_the_lowest_that_fits(usable: float, source: str | None) -> None:
    found, fits, told = choice(usable)
    assert (found, fits) == (source, True)
    assert told.startswith(f"--deepspeed auto: {source or 'none'}, the first that fits; estimated ")
    assert "none 90, zero1 60, zero2 40, zero3 20; there are " in told


def test_the_margin_is_told() -> None:
    _, _, told = choice(71.25)
    assert told.endswith("there are 71.2 GiB (80 less 10% and 0.75)")


def test_where_nothing_fits_the_one_that_needs_least() -> None:
    source, fits, told = choice(10)
    assert (source, fits) == ("zero3", False)
    assert "which needs least and may not fit (internvl-chat plan tells what to change)" in told
    alone = choose_zero(lambda name: 5.0 + (name != "none"), room(1))
    assert (alone.source, alone.fits) == (None, False)  # one rank: nothing to divide


@pytest.mark.parametrize(
    ("usable", "former", "why"),
    [
        (95, "zero2", "though none would be the first that fits"),
        (45, "zero2", "as the checkpoint to go on from was written with it; estimated"),
        (30, "zero2", "though it may not fit here"),
        (30, "none", "though it may not fit here"),
        (5, "zero3_offload", "though it may not fit here"),
        (15, "zero3_offload", "was written with it; estimated"),
    ],
)
def test_a_checkpoint_decides(usable: float, former: str, why: str) -> None:
    source, _, told = choice(usable, former)
    assert source == (None if former == "none" else former)
    assert why in told


def test_without_deepspeed_a_stage_that_is_needed_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(zero_choice, "is_installed", lambda: False)
    assert choice(95)[0] is None
    with pytest.raises(ConfigError, match="auto comes to zero2, and DeepSpeed is not installed"):
        choice(45)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (None, "none"),
        ("zero2.json", "none"),
        ({"zero_optimization": {"stage": 0}}, "none"),
        ({"zero_optimization": {"stage": 1}}, "zero1"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": None}}, "zero3"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "none"}}}, "zero3"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            "zero2_offload",
        ),
    ],
)
def test_what_a_run_was_under(config: Any, name: str) -> None:
    assert former_zero({"deepspeed": config}) == name


def test_a_file_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_auto("auto")
    assert is_auto("AUTO")  # as with the names of files
    assert not is_auto("zero2")
    assert not is_auto(None)
    assert not is_auto({"zero_optimization": {}})
    (tmp_path / "auto").write_text("{}")
    assert not is_auto("auto")
