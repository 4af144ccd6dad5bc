"""Names of models on the hub: which texts are one, and how a place in the hub's cache is named.

``ORG/NAME`` and ``ORG/NAME@REVISION`` are models on the hub where no such path is there;
``hf://ORG/NAME[@REVISION][/FILE]`` (as huggingface_hub's file system spells it) is one in any case.
Nothing here asks the network or needs more than the standard library and huggingface_hub's
constants.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_REPO: Final = r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
_ID: Final = re.compile(rf"{_REPO}(?:@(?P<revision>[^@\s]+))?")
_URL: Final = re.compile(
    # pathlib makes one slash of two
    rf"hf:/{{1,2}}{_REPO}(?:@(?P<revision>refs/(?:pr|convert)/[^/@\s]+|[^/@\s]+))?"
    r"(?:/(?P<file>[^@]+))?"
)
_NO_REPO: Final = re.compile(r"--|\.\.|[.-](?=/|$)|\.git$")
"""What huggingface_hub refuses in an id: a path with it is mistyped."""
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_PREFIX: Final = "models--"


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A model on the hub, or one file of it."""

    repo: str
    """``ORG/NAME``."""
    revision: str | None = None
    """Branch, tag or commit; None is the repository's ``main``."""
    file: str | None = None
    """Path of a file in the repository, of names that say one."""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        if self.file is None:
            return f"{self.repo}{revision}"
        return f"hf://{self.repo}{revision}/{self.file}"

    @property
    def commit(self) -> str | None:
        """The revision, if it is one that does not move."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    @property
    def short(self) -> str:
        """For people: a commit by its first digits."""
        commit = self.commit
        return str(HubName(repo=self.repo, revision=commit[:8])) if commit else str(self)


def hub_name(name: str | os.PathLike[str]) -> HubName | None:
    """The model on the hub that a name means; None where it is a path, present or mistyped.

    A path goes first, as in transformers. What can only be a path is one: absolute, with ``./`` or
    ``~``, with more than one slash or none, or in a folder that is there, unless a whole commit is
    behind it, as what was pinned is written. So a mistyped path asks no network.
    """
    text = os.fspath(name)
    explicit = _URL.fullmatch(text)
    if explicit and not _NO_REPO.search(explicit["repo"]):
        return HubName(**explicit.groupdict())
    match = _ID.fullmatch(text)
    if match is None or _NO_REPO.search(match["repo"]):
        return None
    found = HubName(**match.groupdict())
    in_folder = os.path.isdir(found.repo.partition("/")[0])
    if os.path.lexists(text) or (in_folder and found.commit is None):
        return None
    return found


def path_hint(path: str | os.PathLike[str]) -> str:
    """How to mend the name of a directory that is not there."""
    text = os.fspath(path)
    match = _ID.fullmatch(text)
    if match and not _NO_REPO.search(match["repo"]):
        folder = match["repo"].partition("/")[0]
        return (
            f"Correct the path; the model of that name on the hub is hf://{text} (the folder "
            f"{folder} is here, so it is taken for a path)."
        )
    return "Correct the path, or give a model on the hub as ORG/NAME."


def cache_folder() -> Path:
    """huggingface_hub's cache: ``HF_HUB_CACHE``, else ``hub`` in ``HF_HOME``."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def repo_folder(repo: str) -> Path:
    """Where the cache keeps a repository."""
    return cache_folder() / f"{_PREFIX}{repo.replace('/', '--')}"


def cached_snapshot(name: HubName) -> Path | None:
    """Folder of the revision in the cache, complete or not; None if it holds none."""
    folder = repo_folder(name.repo)
    commit = name.commit
    if commit is None:
        try:
            commit = (folder / "refs" / (name.revision or "main")).read_text("utf-8").strip()
        except (OSError, ValueError):
            return None
    snapshot = folder / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def name_of_snapshot(path: str | os.PathLike[str]) -> HubName | None:
    """The model, with its commit, of a path in this machine's cache; None of any other path."""
    # Of a file the folder alone: it is itself a link, to where the cache keeps its content.
    place = Path(os.path.abspath(path))
    try:
        parts = (place.parent.resolve() / place.name).relative_to(cache_folder()).parts
    except ValueError:
        return None
    if len(parts) < 3 or not parts[0].startswith(_PREFIX) or parts[1] != "snapshots":
        return None
    if not _COMMIT.fullmatch(parts[2]):
        return None
    repo = parts[0].removeprefix(_PREFIX).replace("--", "/")
    return HubName(repo=repo, revision=parts[2], file="/".join(parts[3:]) or None)


def portable_name(path: str) -> str:
    """How a path is named so that another machine finds it: a model of the hub by its commit."""
    found = name_of_snapshot(path)
    return path if found is None else str(found)


def named(value: Any) -> Any:
    """:func:`portable_name` of a text; anything else as it is."""
    return portable_name(value) if isinstance(value, str) and value else value


def as_path(name: str) -> str:
    """The name as a folder could have it: ``ORG/NAME@REVISION`` in two parts; paths as they are."""
    found = hub_name(name)
    if found is None:
        return name
    revision = f"@{found.revision.replace('/', '-')}" if found.revision else ""
    return f"{found.repo}{revision}"


def last_part(name: str) -> str:
    """What a model is called: the name of its directory, or of its repository without revision."""
    found = hub_name(name) or name_of_snapshot(name)
    return found.repo.partition("/")[2] if found else os.path.basename(os.path.abspath(name))
