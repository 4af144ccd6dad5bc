from __future__ import annotations

import ast

from internvl_chat.data.check.codes import CODES, check_of, codes_table, with_table
from tests.support.training import ROOT

PAGE = ROOT / "docs" / "data_checks.md"


def test_the_page_holds_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert codes_table() in page
    assert with_table(page) == page


def test_every_row_says_what_and_how_to_mend() -> None:
    assert len(CODES) > 40
    for check in CODES.values():
        assert check.severity in ("error", "warning")
        assert check.what.endswith(".")
        assert check.mend.endswith(".")


def test_every_code_that_data_raises_is_in_the_table() -> None:
    known = set(CODES)
    for path in (ROOT / "internvl_chat" / "data").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name not in ("BadRecordError", "error"):
                continue
            codes = {
                part.value
                for part in ast.walk(node.args[0])
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            }
            assert codes <= known, f"{path.name}: {codes - known} are not in codes.py"


def test_a_code_that_the_table_lacks_is_an_error() -> None:
    assert check_of("HEIC").severity == "error"
    assert check_of("NAN").severity == "warning"
