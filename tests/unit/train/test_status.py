"""The status file of a run: what it says after each end, and who may write it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.train import status as status_module
from internvl_chat.train.process_identity import ProcessIdentity
from internvl_chat.train.status import (
    STALE_SECONDS,
    STATUS,
    RunStatus,
    is_surely_running,
    load_status,
    read_status,
)


def content_of(folder: Path) -> dict[str, Any]:
    found = load_status(folder)
    assert found is not None
    return found


def change(folder: Path, **values: Any) -> None:
    (folder / STATUS).write_text(json.dumps({**content_of(folder), **values}))


@pytest.fixture
def dead() -> ProcessIdentity:
    """A process that has ended."""
    script = "import json, dataclasses as d\n"
    script += "from internvl_chat.train.process_identity import ProcessIdentity as P\n"
    script += "print(json.dumps(d.asdict(P.current())))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return ProcessIdentity(**json.loads(done.stdout))


def complete(folder: Path) -> dict[str, Any]:
    """What a finished run leaves."""
    run = RunStatus(folder)
    run.start()
    run.training(step=0, max_steps=3)
    run.note(step=3)
    run.end("complete", code=0)
    return content_of(folder)


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    run = RunStatus(tmp_path, clock=lambda: 1_700_000_000.0)
    assert run.start() is None
    running = content_of(tmp_path)
    assert running["status"] == "running"
    assert running["exit_code"] is None
    assert (running["pid"], running["host"]) == (os.getpid(), os.uname().nodename)
    assert time.strptime(running["heartbeat"], "%Y-%m-%dT%H:%M:%S%z")

    run.training(step=2, max_steps=9)
    run.note(step=7, checkpoint="checkpoint-6")
    run.end("interrupted", code=143, error="by SIGTERM")
    run.end("complete", code=0)  # the first verdict counts
    ended = content_of(tmp_path)
    assert (ended["status"], ended["exit_code"], ended["error"]) == (
        *("interrupted", 143, "by SIGTERM"),
    )
    assert (ended["step"], ended["max_steps"], ended["checkpoint"]) == (7, 9, "checkpoint-6")
    assert read_status(tmp_path) == ended


def test_signs_of_life_carry_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "HEARTBEAT_SECONDS", 0.01)
    seconds = iter(range(1_700_000_000, 1_800_000_000, 60))
    run = RunStatus(tmp_path, clock=lambda: float(next(seconds)))
    run.start()
    first = content_of(tmp_path)["heartbeat"]
    run.note(step=5)
    limit = time.monotonic() + 20
    while content_of(tmp_path)["step"] != 5 and time.monotonic() < limit:
        time.sleep(0.01)
    beaten = content_of(tmp_path)
    run.end("complete", code=0)
    assert beaten["step"] == 5
    assert beaten["heartbeat"] > first


def test_a_process_that_was_killed_is_found(tmp_path: Path, dead: ProcessIdentity) -> None:
    RunStatus(tmp_path).start()
    change(tmp_path, **asdict(dead), step=4)
    found = read_status(tmp_path)
    assert found is not None
    assert (found["status"], found["exit_code"], found["step"]) == ("interrupted", None, 4)
    assert f"process {dead.pid} on {dead.host} ended without a word" in found["error"]
    assert content_of(tmp_path)["status"] == "running", "reading writes nothing"

    again = RunStatus(tmp_path)
    assert f"process {dead.pid}" in str(again.start())
    assert content_of(tmp_path)["pid"] == os.getpid()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_another_process_of_the_same_number_is_not_the_run(tmp_path: Path) -> None:
    run = RunStatus(tmp_path)
    run.start()
    ticks = content_of(tmp_path)["started_ticks"]
    assert content_of(tmp_path)["status"] == (read_status(tmp_path) or {})["status"] == "running"
    change(tmp_path, started_ticks=ticks - 1)
    assert (read_status(tmp_path) or {})["status"] == "interrupted"


@pytest.mark.parametrize("elsewhere", ["host", "boot_id", "pid_namespace"])
def test_elsewhere_the_sign_of_life_decides(elsewhere: str, tmp_path: Path) -> None:
    RunStatus(tmp_path).start()
    change(tmp_path, **{elsewhere: "another", "pid": 2**22 + 1})
    now = time.time()
    assert (read_status(tmp_path, now=now) or {})["status"] == "running"
    late = read_status(tmp_path, now=now + STALE_SECONDS + 60) or {}
    assert late["status"] == "interrupted"
    assert "has given no sign of life for 6 minutes" in late["error"]


def test_times_of_another_zone(tmp_path: Path) -> None:
    RunStatus(tmp_path).start()
    change(tmp_path, host="another", heartbeat="2026-01-01T03:00:00+0300")
    midnight = 1_767_225_600.0  # 2026-01-01T00:00:00Z
    assert (read_status(tmp_path, now=midnight + 10) or {})["status"] == "running"
    assert (read_status(tmp_path, now=midnight + 3600) or {})["status"] == "interrupted"


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"status": "running"'])
def test_no_readable_file(text: str, tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    (tmp_path / STATUS).write_text(text)
    assert read_status(tmp_path) is None
    assert RunStatus(tmp_path).start() is None


def test_a_file_of_an_older_version(tmp_path: Path) -> None:
    old = {"status": "running", "exit_code": None, "error": None, "rank": 0}
    (tmp_path / STATUS).write_text(json.dumps({**old, "time": "2024-01-01T00:00:00+0000"}))
    assert (read_status(tmp_path) or {})["status"] == "interrupted"


# ---- a finished run's verdict -------------------------------------------------------------------


def test_a_refused_start_leaves_the_finished_run_complete(tmp_path: Path) -> None:
    before = complete(tmp_path)
    RunStatus(tmp_path).end("failed", code=2, error="--meta_path: no such file")
    after = content_of(tmp_path)
    last = after.pop("last_start")
    assert after == before
    assert (last["status"], last["exit_code"]) == ("failed", 2)
    assert last["error"] == "--meta_path: no such file"


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_start_that_ends_before_its_first_step(status: Any, tmp_path: Path) -> None:
    before = complete(tmp_path)
    run = RunStatus(tmp_path)
    run.start()
    assert content_of(tmp_path)["status"] == "running"
    run.end(status, code=143, error="why")
    after = content_of(tmp_path)
    assert after.pop("last_start")["status"] == status
    assert after == before


def test_complete_already_changes_nothing(tmp_path: Path) -> None:
    before = complete(tmp_path)
    run = RunStatus(tmp_path)
    run.start()
    run.end("complete", code=0)
    assert content_of(tmp_path) == before


def test_killed_before_its_first_step(tmp_path: Path, dead: ProcessIdentity) -> None:
    before = complete(tmp_path)
    RunStatus(tmp_path).start()
    change(tmp_path, **asdict(dead))
    found = read_status(tmp_path) or {}
    assert found.pop("last_start")["status"] == "interrupted"
    assert found == before
    assert RunStatus(tmp_path).start() is None, "the finished run was not interrupted"


def test_from_the_first_step_the_new_run_counts(tmp_path: Path, dead: ProcessIdentity) -> None:
    complete(tmp_path)
    run = RunStatus(tmp_path)
    run.start()
    run.training(step=3, max_steps=6)
    change(tmp_path, **asdict(dead))
    assert (read_status(tmp_path) or {})["status"] == "interrupted"
    run.end("failed", code=5, error="not finite")
    assert content_of(tmp_path)["status"] == "failed"


# ---- several writers ----------------------------------------------------------------------------


def test_another_rank_tells_its_error_unless_it_was_told(tmp_path: Path) -> None:
    first, second = RunStatus(tmp_path), RunStatus(tmp_path, rank=1)
    first.start()
    assert second.start() is None
    second.end("complete", code=0)
    assert content_of(tmp_path)["status"] == "running"
    RunStatus(tmp_path, rank=2).end("failed", code=3, error="bad record")
    RunStatus(tmp_path, rank=3).end("failed", code=1, error="connection lost")
    first.training(step=0, max_steps=2)  # no sign of life hides it
    first.end("interrupted", code=143, error="by SIGTERM, which the launcher sends then")
    ended = content_of(tmp_path)
    assert (ended["status"], ended["rank"], ended["error"]) == ("failed", 2, "bad record")


def test_a_second_run_beside_a_living_one_is_refused(tmp_path: Path) -> None:
    RunStatus(tmp_path).start()
    with subprocess.Popen(["sleep", "60"]) as other:
        stat = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()
        change(tmp_path, pid=other.pid, started_ticks=int(stat[19]))
        assert is_surely_running(tmp_path) is not None
        refused = RunStatus(tmp_path)
        with pytest.raises(ConfigError, match=f"written by another run, process {other.pid}"):
            refused.start()
        refused.end("failed", code=2, error="refused")
        assert content_of(tmp_path)["status"] == "running"
        other.kill()


def test_a_folder_that_cannot_be_written_into(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    RunStatus(tmp_path / "file").end("failed", code=2, error="it is a file")
    with pytest.raises(ConfigError, match="cannot write into"):
        RunStatus(tmp_path / "file" / "below").start()
    RunStatus("").end("failed", code=2, error="no --output_dir")


def test_the_last_word_fits_where_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunStatus(tmp_path)
    run.start()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(status_module, "write_json", full)
    run.training(step=0, max_steps=1)
    run.end("failed", code=1, error="No space left on device")
    assert content_of(tmp_path)["status"] == "failed"


@pytest.mark.parametrize("has_said", [False, True])
def test_a_refused_start_leaves_nothing_beside_somebodys_model(
    tmp_path: Path, has_said: bool
) -> None:
    (tmp_path / "config.json").write_text("{}")
    run = RunStatus(tmp_path)
    if has_said:
        run.start()
        assert content_of(tmp_path)["status"] == "running"
    run.end("failed", code=2, error="holds a model already")
    assert os.listdir(tmp_path) == ["config.json"]
    begun = RunStatus(tmp_path)  # --overwrite_output_dir True
    begun.start()
    begun.training(step=0, max_steps=3)
    begun.end("failed", code=1, error="gone")
    assert content_of(tmp_path)["status"] == "failed"
