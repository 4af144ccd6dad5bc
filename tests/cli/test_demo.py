"""``internvl-chat demo``: started, ended, and started wrongly."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from internvl_chat.cli import main
from tests.support.training import ROOT, environment, write_tiny_chat_model

TINY = ROOT / "pretrained/internvl-chat-tiny"
needs_gradio = pytest.mark.skipif(
    find_spec("gradio") is None,
    reason='the demo page needs pip install -e ".[demo]"',
)


@needs_gradio
def test_it_serves_until_it_is_ended(tmp_path: Path) -> None:
    import httpx

    other = write_tiny_chat_model(tmp_path / "other")
    command = [sys.executable, "-m", "internvl_chat", "demo", "--model", str(TINY)]
    # A proxy that is not there: what asks this machine must not go through it.
    proxy = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    process = subprocess.Popen(
        [*command, "--compare", str(other)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(TMPDIR=str(tmp_path), **proxy),
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+/", line)
        answer = httpx.get(url, trust_env=False)
        assert answer.status_code == 200
        assert "internvl-chat-tiny" in answer.text
        assert "5.5 M parameters" in answer.text
        assert "Every question goes to both" in answer.text
        assert list(tmp_path.glob("internvl-chat-demo-*"))
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"], "no file is left"


def test_gradio_is_imported_by_the_verb_only() -> None:
    code = "import sys, internvl_chat.cli; print({'gradio', 'starlette'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout == "set()\n"


def test_a_missing_gradio_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)  # what Python does for a failed import
    assert main(["demo", "--model", str(TINY)]) == 2
    assert 'pip install "internvl-chat[demo]"' in capsys.readouterr().err


@needs_gradio
@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--port", "{taken}"), "cannot listen on 127.0.0.1:{taken}"),
        (("--host", "192.0.2.1"), "cannot listen on 192.0.2.1:0"),
        (("--host", "a..b"), "cannot listen on a..b:0"),
        (("--compare", "nowhere"), "nowhere"),
        (("--examples", "nowhere.jsonl"), "--examples: nowhere.jsonl cannot be read"),
        (("--compare", ""), "no model is named"),
        (("--device", "foo"), "'foo' is no device that torch computes on here"),
        (("--port", "70000"), "'--port'"),
        (("--max-upload-mb", "0"), "'--max-upload-mb'"),
    ],
)
def test_wrong_use_is_one_line(
    words: tuple[str, str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = listening.getsockname()[1]
        given = [word.format(taken=taken) for word in words]
        assert main(["demo", "--model", str(TINY), *given]) == 2
    errors = capsys.readouterr().err
    assert "Loading weights" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: ")
    assert problem.format(taken=taken) in last
