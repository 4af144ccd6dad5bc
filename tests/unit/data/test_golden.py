"""Tokenization and packs of a fixed corpus are what they were; see tests/fixtures/data_golden."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fixtures.write_data_golden import EXPECTED, PLANS, SETTINGS, planned, tokenized

EXPECTED_VALUES: dict[str, Any] = json.loads(EXPECTED.read_text("utf-8"))


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens(name: str) -> None:
    expected = EXPECTED_VALUES["tokens"][name]
    assert json.loads(json.dumps(tokenized(SETTINGS[name]))) == expected


@pytest.mark.parametrize("name", PLANS)
def test_plans(name: str) -> None:
    assert planned(**PLANS[name]) == EXPECTED_VALUES["plans"][name]


def test_the_corpus_holds_good_and_bad_records() -> None:
    rows = EXPECTED_VALUES["tokens"]["one tile"]
    codes = [row for row in rows if isinstance(row, str)]
    assert codes == ["NO_LABEL", "TURNS", "EMPTY_ANSWER", "CONTROL_TOKEN", "TAG_MISMATCH"]
    assert len(rows) == 26
