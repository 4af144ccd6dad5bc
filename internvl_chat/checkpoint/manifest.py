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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from internvl_chat.files import REPLACED, replace_directory, sync_directory, sync_file

MANIFEST_NAME = "manifest.json"
_MANIFEST_VERSION = 1
_PART = ".manifest-rank{rank}.json"
_INCOMPLETE = ".incomplete"
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
_SHA256 = re.compile(r"[0-9a-f]{64}")

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
    files = dict(sorted(entries.items()))
    manifest = {"version": _MANIFEST_VERSION, "files": files, "sha256": _digest(files)}
    path = directory / MANIFEST_NAME
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    sync_file(path)
    for folder in {path.parent for path in directory.rglob("*")} | {directory}:
        sync_directory(folder)


def verify_manifest(directory: Path, *, deep: bool = True) -> list[str]:
    """What is wrong with a directory; empty if it is as it was written.

    Never raises: whatever happened to the manifest or to a file that it lists is an entry of the
    list, so that a damaged directory is passed over and ends no run.

    Args:
        directory: written by :func:`atomic_directory`. Files added since are no fault.
        deep: compare checksums too, which reads everything.
    """
    path = directory / MANIFEST_NAME
    if path.exists() and not path.is_file():
        return [f"{MANIFEST_NAME} is no regular file"]
    try:
        entries = read_manifest(path.read_bytes())
    except OSError as err:
        return [f"{MANIFEST_NAME} cannot be read ({err.strerror})"]
    except ValueError as err:
        return [f"{MANIFEST_NAME} is damaged ({err})"]
    problems = (_problem(directory, name, entry, deep) for name, entry in entries.items())
    return [problem for problem in problems if problem is not None]


@dataclass(frozen=True)
class _SealedFile:
    """What a manifest says about a file."""

    size: int
    sha256: str


def read_manifest(content: bytes) -> dict[str, _SealedFile]:
    """Size and checksum by file name, everything about a manifest checked that can be.

    Raises:
        ValueError: it is not as :func:`atomic_directory` writes it; manifests from before they
            held a checksum of themselves lack that.
    """
    try:
        manifest = json.loads(content, object_pairs_hook=_without_repetition)
    except RecursionError as err:
        raise ValueError("nested without end") from err
    if not isinstance(manifest, dict) or manifest.keys() - {"sha256"} != {"version", "files"}:
        raise ValueError("it wants the keys version, files and sha256, no others")
    version, files = manifest["version"], manifest["files"]
    if version != _MANIFEST_VERSION or isinstance(version, bool):
        raise ValueError(f"its version is {version!r}, want {_MANIFEST_VERSION}")
    if not isinstance(files, dict) or not files:
        raise ValueError("it lists no files")
    for name, entry in files.items():
        _require_entry(name, entry)
    if "sha256" in manifest and manifest["sha256"] != _digest(files):
        raise ValueError("its list of files was changed: the SHA-256 of the list differs")
    return {name: _SealedFile(**entry) for name, entry in files.items()}


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _require_entry(name: str, entry: object) -> None:
    inside = PurePosixPath(name)
    if not name or inside.is_absolute() or ".." in inside.parts or "\0" in name:
        raise ValueError(f"{name[:80]!r} is no file of this directory")
    if not isinstance(entry, dict) or entry.keys() != {"size", "sha256"}:
        raise ValueError(f"{name[:80]!r} wants a size and a sha256, no more")
    size, checksum = entry["size"], entry["sha256"]
    if type(size) is not int or size < 0:
        raise ValueError(f"the size of {name[:80]!r} is {str(size)[:40]!r}")
    if not isinstance(checksum, str) or not _SHA256.fullmatch(checksum):
        raise ValueError(f"the sha256 of {name[:80]!r} is {str(checksum)[:80]!r}")


def _digest(files: Mapping[str, Any]) -> str:
    """Of the list itself: an entry that is gone, or another's name, would not be missed."""
    text = json.dumps(files, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _problem(directory: Path, name: str, entry: _SealedFile, deep: bool) -> str | None:
    path = directory / name
    try:
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != entry.size:
            return f"{name} has {size} bytes, {entry.size} were written"
        if deep:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                    return f"{name} was changed or damaged (its SHA-256 differs)"
    except (OSError, ValueError) as err:  # ValueError: a name that no file system takes
        return f"{name} cannot be read ({getattr(err, 'strerror', None) or err})"
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
    ``protect`` (the best one, say) stay in any case, and count: of two kept ones one is the best.
    """
    protected = {path.name for path in protect}
    found = list_checkpoints(output_dir)
    valid = [path for path in found if not verify_manifest(path, deep=False)]
    kept = [path for place, path in enumerate(valid) if not place or path.name in protected]
    others = [path for path in valid if path not in kept]
    kept += others[: max(keep - len(kept), 0)]
    older = found[found.index(valid[0]) :] if valid else []
    removed = [path for path in older if path not in kept and path.name not in protected]
    for checkpoint in removed:
        shutil.rmtree(checkpoint)
    return removed
