"""A tracker is told by one of the processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.training import (
    run_cases,
    train_arguments,
    write_dataset,
    write_tiny_chat_model,
)

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_only_rank_0_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    model = write_tiny_chat_model(tmp_path / "model")
    meta = write_dataset(tmp_path / "data", ("text", "image", "two", "rounds"))
    run_cases(tmp_path, [train_arguments(model, meta, tmp_path / "out", report_to="trackio")])
    (database,) = (tmp_path / "trackio").glob("*.db")

    import sqlite3

    with sqlite3.connect(database) as opened:
        found = opened.execute("select distinct run_name from metrics").fetchall()
        steps = opened.execute("select step from metrics order by step").fetchall()
    assert [name.startswith("out-20") for (name,) in found] == [True]
    assert [step for (step,) in steps] == [1, 2, 3]
