"""Checkpoints are complete or absent."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

SEAL = {"size": 1, "sha256": "0" * 64}
"""An entry of a manifest."""


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


def replace_manifest_by_folder(directory: Path) -> None:
    (directory / MANIFEST_NAME).unlink()
    (directory / MANIFEST_NAME).mkdir()


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
        (lambda d: replace_manifest_by_folder(d), f"{MANIFEST_NAME} is no regular file"),
        (lambda d: (d / MANIFEST_NAME).write_bytes(b""), f"{MANIFEST_NAME} is damaged"),
        (lambda d: (d / MANIFEST_NAME).write_bytes(b"\xff{}"), f"{MANIFEST_NAME} is damaged"),
        (lambda d: (d / MANIFEST_NAME).write_text("[" * 100_000), "manifest.json is damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, problem: str) -> None:
    target = write(tmp_path / "checkpoint-2")
    damage(target)
    (found,) = verify_manifest(target)
    assert found.startswith(problem)


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], dict]:
    def apply(manifest: dict[str, Any]) -> dict[str, Any]:
        change(manifest)
        return manifest

    return apply


@pytest.mark.parametrize("has_digest", [True, False], ids=["as written", "of an older version"])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda m: [m], "wants the keys version, files and sha256"),
        (lambda m: None, "wants the keys"),
        (changed(lambda m: m.pop("files")), "wants the keys"),
        (changed(lambda m: m.pop("version")), "wants the keys"),
        (changed(lambda m: m.update(shb256="")), "wants the keys"),
        (changed(lambda m: m.update(version=3)), "its version is 3, want 1"),
        (changed(lambda m: m.update(version=True)), "its version is True"),
        (changed(lambda m: m.update(version="1")), "its version is '1'"),
        (changed(lambda m: m.update(files=[])), "lists no files"),
        (changed(lambda m: m.update(files={})), "lists no files"),
        (changed(lambda m: m.update(files=None)), "lists no files"),
        (changed(lambda m: m["files"].update({"../x": {}})), "'../x' is no file of this directory"),
        (changed(lambda m: m["files"].update({"/etc/x": {}})), "is no file of this directory"),
        (changed(lambda m: m["files"].update({"": {}})), "'' is no file of this directory"),
        (changed(lambda m: m["files"].update({"a\0b": {}})), "is no file of this directory"),
        (
            changed(lambda m: m["files"].update({"state": None})),
            "'state' wants a size and a sha256",
        ),
        (changed(lambda m: m["files"]["model.safetensors"].pop("size")), "wants a size and a sha"),
        (changed(lambda m: m["files"]["model.safetensors"].update(sizd=7)), "wants a size and a"),
        (changed(lambda m: m["files"]["model.safetensors"].update(size="7")), "the size of"),
        (changed(lambda m: m["files"]["model.safetensors"].update(size=7.0)), "the size of"),
        (changed(lambda m: m["files"]["model.safetensors"].update(size=-7)), "the size of"),
        (changed(lambda m: m["files"]["model.safetensors"].update(sha256=7)), "the sha256 of"),
        (changed(lambda m: m["files"]["model.safetensors"].update(sha256="ab")), "the sha256 of"),
        (changed(lambda m: m["files"].update({"n" * 300: SEAL})), "cannot be read"),
    ],
)
def test_a_manifest_of_any_other_form_is_a_damaged_one(
    tmp_path: Path, damage: Callable[[Any], Any], problem: str, has_digest: bool
) -> None:
    target = write(tmp_path / "checkpoint-2")
    path = target / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    if not has_digest:
        del manifest["sha256"]
        path.write_text(json.dumps(manifest))
        assert verify_manifest(target) == []
    path.write_text(json.dumps(damage(manifest)))
    found = verify_manifest(target)
    told = " ".join(found)
    assert problem in told or (has_digest and "its list of files was changed" in told)
    assert remove_old_checkpoints(tmp_path, keep=1) == []


def test_an_entry_that_is_gone_or_stands_twice_is_missed(tmp_path: Path) -> None:
    target = write(tmp_path / "checkpoint-2")
    path = target / MANIFEST_NAME
    text = path.read_text()
    manifest = json.loads(text)
    del manifest["files"]["state/rank0.pt"]
    path.write_text(json.dumps(manifest))
    assert "its list of files was changed" in verify_manifest(target)[0]
    path.write_text(text.replace("state/rank0.pt", "model.safetensors"))
    assert "a key stands in it twice" in verify_manifest(target)[0]


def test_every_flipped_bit_and_every_cut_of_a_manifest_is_damage(tmp_path: Path) -> None:
    target = write(tmp_path / "checkpoint-2")
    path = target / MANIFEST_NAME
    whole = path.read_bytes()
    meaning = json.loads(whole)
    for place in range(len(whole)):
        path.write_bytes(whole[:place])
        if place < len(whole) - 1:  # without the last line end it says the same
            assert verify_manifest(target, deep=False) != [], place
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                same = json.loads(bytes(flipped)) == meaning  # a blank for a tab, say
            except ValueError:
                same = False
            assert (verify_manifest(target, deep=False) == []) is same, (place, bit)


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
