"""Directories that are complete or absent, and the proof that they are complete.

A directory is written under another name, its files are flushed to disk and listed with sizes and
SHA-256 in ``manifest.json``, and only then it gets its name. With several ranks the flushing and
hashing is shared out; the directory has to be on a file system that all of them see.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from internvl_chat.files import REPLACED, replace_directory, sync_directory, sync_file

MANIFEST_NAME = "manifest.json"
_MANIFEST_VERSION = 1
_PART = ".manifest-rank{rank}.json"
_INCOMPLETE = ".incomplete"
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")

T = TypeVar("T")


@dataclass(frozen=True)
class Peers:
    """This process among those that write a directory together."""

    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], object] = lambda: None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: list[T]) -> list[T]:
        """This rank's part of a list that is the same on all ranks."""
        return items[self.rank :: self.world_size]


@contextmanager
def atomic_directory(target: Path, peers: Peers | None = None) -> Iterator[Path]:
    """Write a directory aside and give it its name when it is complete.

    Args:
        target: the final name. A directory already there is replaced, and kept until then.
        peers: all ranks enter and leave together; default: this process alone.

    Yields:
        The directory to write into.

    On an exception nothing appears under ``target``; what was written stays aside for a look, and
    the next attempt clears it.
    """
    peers = peers or Peers()
    staging = target.with_name(target.name + _INCOMPLETE)
    if peers.is_main:
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir(parents=True)
    peers.barrier()
    yield staging
    peers.barrier()
    part = staging / _PART.format(rank=peers.rank)
    files = [path for path in _files(staging) if not path.name.startswith(".manifest-rank")]
    peers.barrier()  # nobody adds its part to the listing of another
    part.write_text(json.dumps({_relative(p, staging): _seal(p) for p in peers.share(files)}))
    peers.barrier()
    if peers.is_main:
        _write_manifest(staging, peers.world_size)
        replace_directory(staging, target)
    peers.barrier()


def _files(directory: Path) -> list[Path]:
    found = (path for path in directory.rglob("*") if path.is_file())
    # Largest first, so that the ranks' shares weigh about the same.
    return sorted(found, key=lambda path: (-path.stat().st_size, str(path)))


def _relative(path: Path, directory: Path) -> str:
    return path.relative_to(directory).as_posix()


def _seal(path: Path) -> dict[str, Any]:
    """Flush a file to disk and describe it."""
    sync_file(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _write_manifest(directory: Path, world_size: int) -> None:
    entries: dict[str, Any] = {}
    for rank in range(world_size):
        part = directory / _PART.format(rank=rank)
        entries |= json.loads(part.read_text())
        part.unlink()
    manifest = {"version": _MANIFEST_VERSION, "files": dict(sorted(entries.items()))}
    path = directory / MANIFEST_NAME
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    sync_file(path)
    for folder in {path.parent for path in directory.rglob("*")} | {directory}:
        sync_directory(folder)


def verify_manifest(directory: Path, *, deep: bool = True) -> list[str]:
    """What is wrong with a directory; empty if it is as it was written.

    Args:
        directory: written by :func:`atomic_directory`. Files added since are no fault.
        deep: compare checksums too, which reads everything.
    """
    try:
        manifest = json.loads((directory / MANIFEST_NAME).read_text())
        entries = manifest["files"].items()
    except OSError as err:
        return [f"{MANIFEST_NAME} cannot be read ({err.strerror})"]
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        return [f"{MANIFEST_NAME} is damaged ({type(err).__name__}: {err})"]
    problems = (_problem(directory / name, name, entry, deep) for name, entry in entries)
    return [problem for problem in problems if problem is not None]


def _problem(path: Path, name: str, entry: dict[str, Any], deep: bool) -> str | None:
    if not path.is_file():
        return f"{name} is missing"
    size = path.stat().st_size
    if size != entry["size"]:
        return f"{name} has {size} bytes, {entry['size']} were written"
    if deep:
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return f"{name} was changed or damaged (its SHA-256 differs)"
    return None


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The ``checkpoint-N`` directories of a run, newest (largest N) first, verified or not."""
    if not output_dir.is_dir():
        return []
    steps = {
        int(match[1]): path
        for path in output_dir.iterdir()
        if path.is_dir() and (match := _CHECKPOINT.match(path.name))
    }
    return [steps[step] for step in sorted(steps, reverse=True)]


def clear_leftovers(output_dir: Path) -> None:
    """Bring order after a crash: a replaced directory without successor gets its name back,
    unfinished and superseded ones are removed."""
    for path in sorted(output_dir.glob(f"*{REPLACED}")):
        original = path.with_name(path.name.removesuffix(REPLACED))
        if original.exists():
            shutil.rmtree(path)
        else:
            path.rename(original)
    for path in output_dir.glob(f"*{_INCOMPLETE}"):
        shutil.rmtree(path)


def remove_old_checkpoints(
    output_dir: Path, keep: int, *, protect: Iterable[Path] = ()
) -> list[Path]:
    """Remove the oldest checkpoints beyond ``keep`` valid ones; never the newest valid one.

    Damaged ones older than the newest valid one go as well. Checks sizes, not checksums. Those in
    ``protect`` (the best one, say) stay in any case.
    """
    protected = {path.name for path in protect}
    valid: list[Path] = []
    removed: list[Path] = []
    for checkpoint in list_checkpoints(output_dir):
        fine = not verify_manifest(checkpoint, deep=False)
        if fine and len(valid) < max(keep, 1):
            valid.append(checkpoint)
        elif valid and checkpoint.name not in protected:
            shutil.rmtree(checkpoint)
            removed.append(checkpoint)
    return removed
