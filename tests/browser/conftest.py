"""A headless Chromium for the tests here; fetched by apt-get where that is possible."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """The browser's path, None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


def install_chromium() -> str | None:
    """Fetch Debian's package; None (no error) where that cannot be done."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return None
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        done = subprocess.run(
            ["apt-get", "-q", *command], env=environment, stdout=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            return None
    return find_chromium()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser context with a profile of its own, 1200 x 900 pixels, English."""
    api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    executable = find_chromium() or install_chromium()
    if executable is None:
        pytest.skip("Chromium is not installed and not to be had here")
    with api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")),
            executable_path=executable,
            headless=True,
            args=list(FLAGS),
            viewport={"width": 1200, "height": 900},
            locale="en-GB",
        )
        context.set_default_timeout(30_000)
        api.expect.set_options(timeout=30_000)  # far more than is ever needed
        yield context
        context.close()
