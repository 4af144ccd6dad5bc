"""A judge's endpoint on this machine whose every reply is scripted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Said:
    """One reply of the server."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    after_seconds: float = 0.0
    between_seconds: float = 0.0
    """Before each byte of the body."""
    breaks: bool = False
    """The connection ends before a word."""


def said(text: str | None, *, prompt_tokens: int = 10, completion_tokens: int = 2) -> Said:
    """A chat completion."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    choices = [{"index": 0, "message": {"role": "assistant", "content": text}}]
    return Said(body=json.dumps({"choices": choices, "usage": usage}).encode())


def refused(status: int, message: str = "no", **headers: str) -> Said:
    body = json.dumps({"error": {"message": message}}).encode()
    return Said(status, body, {name.replace("_", "-"): text for name, text in headers.items()})


Script = Callable[[int, dict[str, Any]], Said]
"""(number of the request from 0, its body) -> reply."""


class JudgeServer:
    """What the server was asked; ``url`` for a judge."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.running = 0
        self.most_running = 0
        self.lock = threading.Lock()
        self.url = ""

    def texts(self) -> list[str]:
        """The last message of each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]


@contextmanager
def judge_server(script: Script) -> Iterator[JudgeServer]:
    """A server that lives as long as the block."""
    server = JudgeServer(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.headers.append({k.lower(): v for k, v in self.headers.items()})
                server.times.append(time.monotonic())
                server.running += 1
                server.most_running = max(server.most_running, server.running)
            reply = server.script(number, body)
            time.sleep(reply.after_seconds)
            with server.lock:
                server.running -= 1
            if reply.breaks:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, text in reply.headers.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self._write(reply)

        def _write(self, reply: Said) -> None:
            try:
                if not reply.between_seconds:
                    self.wfile.write(reply.body)
                    return
                for byte in reply.body:
                    time.sleep(reply.between_seconds)
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
            except OSError:  # the judge has hung up
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
