"""Releases that have the layout already: linked into place."""

from __future__ import annotations

from collections.abc import Mapping

from internvl_chat.evaluation.releases.release import (
    Layout,
    Reader,
    Release,
)


def as_it_is(files: Mapping[str, str], folders: Mapping[str, str] | None = None) -> Reader:
    """A release that has the layout already: its files and folders are linked into place.

    Args:
        files: path in the layout -> name in the release; must be there.
        folders: the same; must be there.
    """

    def read(release: Release) -> Layout:
        links = {path: release.file(name) for path, name in files.items()}
        links |= {path: release.folder(name) for path, name in (folders or {}).items()}
        return Layout({}, links)

    return read


def mmmu(release: Release) -> Layout:
    """Parquet, arrow or JSON lines in a folder for each subject: linked as a whole."""
    subject = release.folder("Accounting")
    return Layout({}, {"data/MMMU": subject.parent})


def mvbench(release: Release) -> Layout:
    """The folder of JSON files and the folder of videos."""
    return Layout(
        {},
        {
            "data/MVBench/json": release.file("action_sequence.json").parent,
            "data/MVBench/video": release.folder("video"),
        },
    )
