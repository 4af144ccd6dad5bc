"""What is wrong with the arguments of a run, found before anything is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from internvl_chat.train.validation import _output


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (b"out", None),
        ("图".encode(), None),
        (b"", "--output_dir is missing"),
        (b"file", "a file of this name exists"),
        (b"caf\xe9", "its name is not UTF-8, and TensorBoard cannot write there"),
    ],
)
def test_output_dir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes, problem: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    found = list(_output({"output_dir": os.fsdecode(name)}))
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]
