"""``internvl-chat serve``: wrong use is one line, before a model is loaded; and its end."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import internvl_chat.cli.serve as serve_cli
from internvl_chat.chat import loading
from internvl_chat.cli import main
from internvl_chat.errors import CheckpointError
from internvl_chat.serve.server import bind, is_open, serve, url_of
from tests.support.serving import TINY


def problem(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["serve", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_packages_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = serve_cli.find_spec
    monkeypatch.setattr(
        serve_cli, "find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    line = problem(capsys, "--model", str(TINY))
    assert line == (
        "error: internvl-chat serve: serving needs uvicorn, not installed here. "
        'pip install "internvl-chat[serve]"'
    )


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = problem(capsys, "--model", str(TINY), "--port", port)
    assert f"127.0.0.1:{port} cannot be bound: Address already in use" in line
    assert "0 takes a free one" in line


def test_no_such_host(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--host" in problem(capsys, "--model", str(TINY), "--host", "no host")


def test_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "config.json" in problem(capsys, "--model", str(tmp_path), "--port", "0")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--api-key", ""), "--api-key: the key is empty"),
        (("--max-batch-size", "0"), "'--max-batch-size'"),
        (("--max-queue", "0"), "'--max-queue'"),
        (("--port", "65536"), "'--port'"),
        (("--shutdown-seconds", "-1"), "'--shutdown-seconds'"),
    ],
)
def test_wrong_values(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in problem(capsys, "--model", str(TINY), *words)


def test_how_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    whole = {"load_in_4bit": False, "compile": True}

    def load(path: str, **options: Any) -> None:
        seen.append((path, options))
        raise CheckpointError("seen")

    monkeypatch.setattr(loading, "load_model", load)
    problem(capsys, "--model", "here", "--port", "0")
    problem(capsys, "--model", "here", "--port", "0", "--device", "cuda:1", "--load-in-8bit")
    problem(capsys, "--model", "here", "--port", "0", "--no-compile")
    assert seen == [
        ("here", {"device": None, "gpus": None, "load_in_8bit": False, **whole}),
        ("here", {"device": "cuda:1", "gpus": None, "load_in_8bit": True, **whole}),
        ("here", {"device": None, "gpus": None, "load_in_8bit": False, **whole, "compile": False}),
    ]


@pytest.mark.parametrize(
    ("host", "begin", "others"),
    [
        ("127.0.0.1", "http://127.0.0.1:", False),
        ("localhost", "http://", False),
        ("0.0.0.0", "http://0.0.0.0:", True),
        ("::1", "http://[::1]:", False),
    ],
)
def test_places(host: str, begin: str, others: bool) -> None:
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with bind(host, 0) as place:
        assert url_of(place).startswith(begin)
        assert not url_of(place).endswith(":0")
        assert is_open(place) is others


def test_an_engine_that_hangs_does_not_keep_the_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    stopped: list[float] = []
    for ends in (True, False):
        engine: Any = SimpleNamespace(stop=stopped.append, join=lambda seconds, ends=ends: ends)
        server: Any = SimpleNamespace(run=lambda sockets: None)
        serve(server, None, engine)  # type: ignore[arg-type]
    assert stopped == [0, 0]
    assert codes == [0]
    assert "a step of generation has not ended" in caplog.text
