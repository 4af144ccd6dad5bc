"""Names of the checkpoints that the page shows."""

from __future__ import annotations

import pytest

from internvl_chat.web.loading import names_of


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/before"], ["before"]),
        (["/a/before", "/a/after"], ["before", "after"]),
        (["/one/model", "/two/model"], ["one/model", "two/model"]),
        (["/a/model", "/a/model/"], ["model (1)", "model (2)"]),
    ],
)
def test_checkpoints_are_told_apart(paths: list[str], names: list[str]) -> None:
    assert names_of(paths) == names
