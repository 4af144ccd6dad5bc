"""A clone of the working tree for each page, and programs that start at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.hub import local_hub
from tests.support.page_runs import PageRun, copy_of_clone, warm_programs

Start = Callable[..., PageRun]
LARGE_BYTES = 1 << 20


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_clone(tmp_path_factory.mktemp("pages") / "clone")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory, clone: Path) -> Iterator[Path]:
    with warm_programs(tmp_path_factory.mktemp("bin"), clone) as folder:
        yield folder


@pytest.fixture(scope="session")
def hub() -> Iterator[str]:
    with local_hub() as address:
        yield address


def copy_or_link(source: str, target: str) -> None:
    """Weights are read only: linked, they take no room."""
    if os.path.getsize(source) > LARGE_BYTES:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


@pytest.fixture
def start(clone: Path, programs: Path, hub: str, tmp_path: Path) -> Iterator[Start]:
    """A :class:`PageRun` in a clone of its own; caches are shared."""

    def make(**settings: object) -> PageRun:
        folder = tmp_path / "internvl-chat"
        shutil.copytree(clone, folder, copy_function=copy_or_link)
        shared = clone.parent
        more = {
            "INTERNVL_CHAT_CACHE": str(shared / "cache"),
            "HF_HOME": str(shared / "hf"),
            "HF_ENDPOINT": hub,
            "HF_HUB_DISABLE_XET": "1",
            "no_proxy": "127.0.0.1",
        }
        return PageRun(
            folder=folder,
            shared=shared,
            programs=programs,
            more=more,
            **settings,  # type: ignore[arg-type]
        )

    yield make
    shutil.rmtree(tmp_path / "internvl-chat", ignore_errors=True)
