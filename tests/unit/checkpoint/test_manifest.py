"""Checkpoints are complete or absent."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest

from internvl_chat.checkpoint.manifest import (
    MANIFEST_NAME,
    Peers,
    atomic_directory,
    clear_leftovers,
    list_checkpoints,
    remove_old_checkpoints,
    verify_manifest,
)


def write(target: Path, text: str = "weights") -> Path:
    with atomic_directory(target) as staging:
        (staging / "model.safetensors").write_text(text)
        (staging / "state").mkdir()
        (staging / "state" / "rank0.pt").write_text("optimizer")
    return target


def test_a_complete_directory_lists_what_it_holds(tmp_path: Path) -> None:
    target = write(tmp_path / "checkpoint-2")
    manifest = json.loads((target / MANIFEST_NAME).read_text())
    assert manifest["files"] == {
        "model.safetensors": {"size": 7, "sha256": hashlib.sha256(b"weights").hexdigest()},
        "state/rank0.pt": {"size": 9, "sha256": hashlib.sha256(b"optimizer").hexdigest()},
    }
    assert verify_manifest(target) == []
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_failure_leaves_nothing_under_the_name_and_the_old_one_untouched(tmp_path: Path) -> None:
    target = write(tmp_path / "checkpoint-2", "old")

    def fail_halfway() -> None:
        with atomic_directory(target) as staging:
            (staging / "model.safetensors").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_halfway()
    assert (target / "model.safetensors").read_text() == "old"
    assert verify_manifest(target) == []
    assert list_checkpoints(tmp_path) == [target]
    write(target, "new")
    assert (target / "model.safetensors").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors is missing"),
        (
            lambda d: (d / "model.safetensors").write_text("weight"),
            "model.safetensors has 6 bytes, 7 were written",
        ),
        (
            lambda d: (d / "model.safetensors").write_text("Weights"),
            "model.safetensors was changed or damaged (its SHA-256 differs)",
        ),
        (lambda d: (d / MANIFEST_NAME).unlink(), f"{MANIFEST_NAME} cannot be read (No such file"),
        (lambda d: (d / MANIFEST_NAME).write_text("{"), f"{MANIFEST_NAME} is damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, problem: str) -> None:
    target = write(tmp_path / "checkpoint-2")
    damage(target)
    (found,) = verify_manifest(target)
    assert found.startswith(problem)


def test_the_newest_comes_first_and_unfinished_ones_do_not_count(tmp_path: Path) -> None:
    for step in (9, 10, 200):
        write(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-300.incomplete").mkdir()
    (tmp_path / "checkpoint-400").write_text("a file")
    found = [path.name for path in list_checkpoints(tmp_path)]
    assert found == ["checkpoint-200", "checkpoint-10", "checkpoint-9"]
    assert list_checkpoints(tmp_path / "none") == []


def test_a_limit_of_one_never_leaves_zero_good_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-3" / "model.safetensors").unlink()
    removed = remove_old_checkpoints(tmp_path, keep=1)
    assert [path.name for path in removed] == ["checkpoint-1"]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-2"]


def test_the_best_one_stays_besides(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path / f"checkpoint-{step}")
    removed = remove_old_checkpoints(tmp_path, keep=1, protect=[tmp_path / "checkpoint-1"])
    assert [path.name for path in removed] == ["checkpoint-2"]


def test_leftovers_of_a_crash_are_put_in_order(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint-1").rename(tmp_path / "checkpoint-1.replaced")
    write(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2.replaced").mkdir()
    (tmp_path / "checkpoint-3.incomplete").mkdir()
    clear_leftovers(tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-1"]
    assert len(list(tmp_path.iterdir())) == 2


def test_ranks_write_one_directory_together(tmp_path: Path) -> None:
    barrier = threading.Barrier(3, timeout=20)
    target = tmp_path / "checkpoint-7"

    def rank_main(rank: int) -> None:
        with atomic_directory(target, Peers(rank, 3, barrier.wait)) as staging:
            (staging / f"rank{rank}.pt").write_text(str(rank))

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(json.loads((target / MANIFEST_NAME).read_text())["files"]) == {
        "rank0.pt",
        "rank1.pt",
        "rank2.pt",
    }
    assert verify_manifest(target) == []
