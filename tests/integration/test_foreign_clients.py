"""LangChain and LiteLLM against ``internvl-chat serve``, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_serve import KEY, MODEL, STAR, Serving
from tests.support import foreign_clients
from tests.support.serving import TINY, chat, data_url, tiny

pytestmark = pytest.mark.slow

# Their latest, and of what they need the newest that pip finds: as a user of today installs them.
PACKAGES = {"langchain": "langchain-openai==1.7.4", "litellm": "litellm==1.110.2"}
LIMIT_SECONDS = 300


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The shipped model behind a key."""
    serving = Serving(TINY, tmp_path_factory.mktemp("serve") / "log", key=KEY)
    yield serving
    serving.close()


def environment(name: str, folder: Path) -> Path:
    """A folder with the client's packages; skips where they cannot be had."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
    try:
        found = subprocess.run(
            [*command, PACKAGES[name]], capture_output=True, text=True, timeout=LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{PACKAGES[name]} was not installed within {LIMIT_SECONDS} s")
    if found.returncode != 0:
        reason = (found.stderr.strip().splitlines() or ["pip failed"])[-1]
        pytest.skip(f"{PACKAGES[name]} cannot be installed here: {reason}")
    return folder


def told(name: str, server: Serving, folder: Path) -> dict[str, Any]:
    """What the client's own program found."""
    # -S leaves the packages of this environment out; theirs come by PYTHONPATH.
    words = [name, f"{server.url}/v1", MODEL, KEY, data_url(STAR)]
    run = subprocess.run(
        [sys.executable, "-S", str(foreign_clients.__file__), *words],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(folder),
            "NO_PROXY": "127.0.0.1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "HOME": str(folder),
        },
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_langchain(server: Serving, tmp_path: Path) -> None:
    found = told("langchain", server, environment("langchain", tmp_path))
    turns = (("<image>\nWhat shape is red?", "star"), ("Where is the red star?", None))
    assert found == {
        "text first": "star",
        "image first": "star",
        "pieces": "5",
        "batch": [chat(tiny(), turns, [STAR]), "5"],
        "system": True,
        "tokens": 2,
        "end": "stop",
        "too long": True,
        "tools": "tools",
    }


def test_litellm(server: Serving, tmp_path: Path) -> None:
    found = told("litellm", server, environment("litellm", tmp_path))
    assert found == {
        "text first": "star",
        "image first": "star",
        "pieces": "5",
        "tokens": 2,
        "end": "stop",
        "too long": "ContextWindowExceededError",
        "key": "AuthenticationError",
        "tools": "BadRequestError",
    }
