"""``internvl-chat`` and ``python FILE`` in processes forked off one that has imported everything.

Starting torch and transformers takes seconds, the commands of the pages mostly less. ``python -m
tests.support.warm serve SOCKET`` imports and waits; ``client`` is what stands on PATH in place of
the programs: it hands its arguments, folder, environment and streams over, passes signals on, and
ends with the exit code of the fork.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from typing import Any

HEAVY = (
    "torch",
    "transformers",
    "internvl_chat.cli.command",
    "internvl_chat.chat",
    "internvl_chat.train.finetune",
    "internvl_chat.evaluation.runner",
    "internvl_chat.evaluation.opening",
    "internvl_chat.checkpoint.surgery",
)
CLIENT = """#!{python} -SE
import array, json, os, signal, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({socket!r})
asked = {{"kind": {kind!r}, "argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}}
streams = array.array("i", [0, 1, 2])
body = json.dumps(asked).encode()
head = len(body).to_bytes(8, "big")
link.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
link.sendall(body)
reply = link.makefile("r")
pid = int(reply.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda received, _: os.kill(pid, received))
sys.exit(int(reply.readline() or 134))
"""
"""A program on PATH; ``kind`` is ``verb`` or ``file``."""


def serve(path: str) -> None:
    """Fork for every connection, until the process is ended."""
    for name in HEAVY:
        importlib.import_module(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(8)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        link, _ = listening.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            _answer(link)
        link.close()


def _answer(link: socket.socket) -> None:
    """In the fork: take over the client's place, do the work, tell the exit code, end."""
    head, streams, _, _ = socket.recv_fds(link, 8, 3)
    body = link.makefile("rb").read(int.from_bytes(head, "big"))
    asked = json.loads(body)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    link.sendall(f"{os.getpid()}\n".encode())
    code = 1
    try:
        code = _work(asked)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - a forked program ends like any: traceback, code 1
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        with contextlib.suppress(OSError):
            link.sendall(f"{code}\n".encode())
        os._exit(code)


def _work(asked: dict[str, Any]) -> int:
    if asked["kind"] == "verb":
        from internvl_chat.cli.command import main

        sys.argv = ["internvl-chat", *asked["argv"]]
        return main(asked["argv"])
    sys.argv = asked["argv"]
    sys.path[0] = os.path.dirname(os.path.abspath(asked["argv"][0]))
    runpy.run_path(asked["argv"][0], run_name="__main__")
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
