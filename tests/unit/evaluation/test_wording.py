"""Instructions have one home: a copy elsewhere could come to differ from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from internvl_chat.evaluation.tasks import wording

PACKAGE = Path(wording.__file__).parents[1]
TEXTS = [wording.SHORT, wording.LETTER_EN, wording.LETTER_CN]


@pytest.mark.parametrize("text", TEXTS)
def test_no_module_spells_an_instruction_out(text: str) -> None:
    holders = [path for path in PACKAGE.rglob("*.py") if text in path.read_text(encoding="utf-8")]
    assert holders == [Path(wording.__file__)]
