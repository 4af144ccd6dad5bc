"""A few hundred mutations; ``python -m tests.support.fuzz_data`` runs ten thousand by hand."""

from __future__ import annotations

import random
from pathlib import Path

from tests.support.fuzz_data import (
    MetaFuzzer,
    RecordFuzzer,
    fuzz_boxes,
    fuzz_whole_check,
    run_fuzz,
)


def test_records(tmp_path: Path) -> None:
    outcomes = run_fuzz(RecordFuzzer(tmp_path), 300, seed=0)
    assert outcomes["good"] > 10
    assert {"JSON", "SCHEMA", "TURNS", "NOT_UTF8"} <= set(outcomes)


def test_metas(tmp_path: Path) -> None:
    outcomes = run_fuzz(MetaFuzzer(tmp_path), 300, seed=0)
    assert min(outcomes["good"], outcomes["refused"]) > 10
    assert set(outcomes) == {"good", "refused"}


def test_boxes() -> None:
    assert run_fuzz(fuzz_boxes, 300, seed=0)["boxes"] > 100


def test_the_cleaned_copy_of_rubbish_is_clean(tmp_path: Path) -> None:
    fuzz_whole_check(random.Random(0), tmp_path, 200)
