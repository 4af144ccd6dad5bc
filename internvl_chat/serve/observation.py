"""What becomes of each request: a line of the log, and the figures of ``/metrics``.

The middleware here is the outermost one, so that whatever ends a request (an answer, a refusal,
our own mistake, a client that goes away in the middle of a stream) is seen once. Contents, keys and
query strings are neither logged nor counted.
"""

from __future__ import annotations

import logging
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import psutil
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from internvl_chat.serve.engine import RequestHandle
from internvl_chat.serve.metrics import AnswerFigures, HttpFigures

request_log = logging.getLogger("internvl_chat.requests")
"""A line for each request; not below the package's own loggers, whose level is another matter."""

PATHS: Final = (
    *("/v1/chat/completions", "/v1/models", "/v1/models/{name}"),
    *("/health", "/metrics", "/docs", "/openapi.json"),
)
_ONE_MODEL: Final = "/v1/models/"
_METHODS: Final = ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS")
_PROBES: Final = ("/health", "/metrics")
_MOST_CHARACTERS: Final = 200
_GONE: Final = 499
"""Status of an answer that nobody waits for, as nginx has it."""
_TRACE: Final = "internvl_chat.trace"


@dataclass
class RequestTrace:
    """What is known of one request, as far as it has come."""

    client: str
    """Its address and port."""
    method: str
    path: str
    """As it was sent, percent escapes and all, without the query."""
    began: float = field(default_factory=time.monotonic)
    """Monotonic seconds, at which the head had arrived."""
    hex_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """What its ``x-request-id`` and the answer's ``id`` end in."""
    status: int | None = None
    """None as long as no answer has begun."""
    error_code: str | None = None
    handle: RequestHandle | None = None
    """Of the engine, once it has the request."""
    num_prompt_tokens: int = 0
    num_images: int = 0
    finish_reason: str | None = None
    """``stop``, ``length`` or ``error``; None as long as the answer goes on."""

    @classmethod
    def of(cls, scope: Scope) -> RequestTrace:
        """That of a request that runs under :class:`Observed`."""
        found: RequestTrace = scope[_TRACE]
        return found

    @property
    def handler(self) -> str:
        """The route, with which the path of any client is one of a few."""
        if self.path in PATHS:
            return self.path
        is_model = self.path.startswith(_ONE_MODEL) and len(self.path) > len(_ONE_MODEL)
        return "/v1/models/{name}" if is_model else "none"

    @property
    def first_token_seconds(self) -> float | None:
        """From its arrival; None if there was no token."""
        first = None if self.handle is None else self.handle.first_token_at
        return None if first is None else first - self.began

    @property
    def token_seconds(self) -> float | None:
        """Mean of the tokens after the first; None if there is none."""
        handle = self.handle
        if handle is None or handle.first_token_at is None or handle.num_tokens < 2:
            return None
        return (handle.last_token_at - handle.first_token_at) / (handle.num_tokens - 1)

    @property
    def ending(self) -> str | None:
        """Why the answer ended: ``finish_reason``, or ``abort`` where nobody took it to its end."""
        return None if self.handle is None else self.finish_reason or "abort"


class Observed:
    """ASGI middleware: times, counts and logs; each answer says its ``x-request-id``.

    Args:
        app: what answers.
        http: counts every request.
        answers: counts those of the engine.
    """

    def __init__(self, app: ASGIApp, http: HttpFigures, answers: AnswerFigures) -> None:
        self._app, self._http, self._answers = app, http, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host, port = scope.get("client") or ("-", 0)
        raw = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
        path = raw.decode("ascii", "replace")
        trace = RequestTrace(client=f"{host}:{port}", method=scope["method"], path=path)
        scope[_TRACE] = trace

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = f"req_{trace.hex_id}"
                trace.status = message["status"]
            await send(message)

        self._http.in_progress += 1
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._http.in_progress -= 1
            self._end(trace)

    def _end(self, trace: RequestTrace) -> None:
        seconds = time.monotonic() - trace.began
        status = str(trace.status or _GONE)
        method = trace.method if trace.method in _METHODS else "other"
        self._http.requests.add(handler=trace.handler, method=method, status=status)
        self._http.seconds.observe(seconds, handler=trace.handler, method=method)
        if trace.error_code is not None:
            self._http.errors.add(code=trace.error_code)
        if trace.handle is not None:
            count_answer(self._answers, trace, trace.handle, seconds)
        is_probe = trace.path in _PROBES and status == "200"
        request_log.log(logging.DEBUG if is_probe else logging.INFO, "%s", line(trace, seconds))


def count_answer(
    figures: AnswerFigures, trace: RequestTrace, handle: RequestHandle, seconds: float
) -> None:
    """Count an answer of the engine, whole or not.

    Args:
        figures: changed.
        trace: of its request.
        handle: of the engine.
        seconds: from the request's arrival to its end.
    """
    figures.ended.add(finished_reason=str(trace.ending))
    figures.images.add(trace.num_images)
    figures.whole.observe(seconds)
    figures.prompt_tokens.observe(trace.num_prompt_tokens)
    figures.answer_tokens.observe(handle.num_tokens)
    if trace.first_token_seconds is not None:
        figures.first_token.observe(trace.first_token_seconds)
    if trace.token_seconds:
        figures.per_token.observe(trace.token_seconds)
        figures.speed.observe(1 / trace.token_seconds)


def line(trace: RequestTrace, seconds: float) -> str:
    """A request in a line: who, what, how it ended, and how long it took."""
    path = (
        trace.path if len(trace.path) <= _MOST_CHARACTERS else trace.path[:_MOST_CHARACTERS] + "…"
    )
    told = [trace.client, trace.method, path, str(trace.status or _GONE), f"{seconds * 1000:.1f}ms"]
    handle = trace.handle
    if handle is not None:
        told += [f"prompt={trace.num_prompt_tokens}", f"completion={handle.num_tokens}"]
        told.append(f"images={trace.num_images}")
        if trace.first_token_seconds is not None:
            told.append(f"first_token={trace.first_token_seconds * 1000:.1f}ms")
        told.append(f"finish={trace.ending}")
    if trace.error_code is not None:
        told.append(f"error={trace.error_code}")
    told.append(f"id={'req_' if handle is None else 'chatcmpl-'}{trace.hex_id}")
    return " ".join(told)


def process_figures() -> dict[str, Any]:
    """Arguments of :func:`process_lines`, of this process."""
    process = psutil.Process()
    with process.oneshot():
        times = process.cpu_times()
        return {
            "resident_bytes": process.memory_info().rss,
            "cpu_seconds": times.user + times.system,
            "started": process.create_time(),
            "open_files": process.num_fds(),
        }


@contextmanager
def logging_requests(*, is_wanted: bool) -> Iterator[None]:
    """Write the lines to stderr with their time, whatever else is logged; or none at all."""
    handler: logging.Handler = logging.NullHandler()
    if is_wanted:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    before = request_log.level, request_log.propagate
    request_log.addHandler(handler)
    request_log.setLevel(logging.INFO)
    request_log.propagate = False
    try:
        yield
    finally:
        request_log.removeHandler(handler)
        request_log.level, request_log.propagate = before
