"""What may reach Gradio, and what may leave it: nothing here leads to another host or file.

Gradio 6.31 has more routes than this page uses: it fetches ``/gradio_api/file=https://…`` and files
named by URL in a request for anybody who asks, and its HTML names other hosts.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable
from typing import Any, Final

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The page's own routes; all others (URL proxies, run history, monitoring, code editing, recording)
# answer 404. Gradio lets only what is not queued come by run/.
_ROUTES: Final = re.compile(
    r"/(?:config|theme\.css|robots\.txt|favicon\.ico|manifest\.json|(?:static|assets|svelte)/.*"
    r"|gradio_api/(?:info|app_id|login_check|user|token|startup-events|theme\.css"
    r"|run/[^/]+|queue/(?:join|data|status)|call/[^/]+(?:/[^/]+){0,2}|cancel|reset|heartbeat/[^/]+"
    r"|upload|upload_progress|file=.*))?/?"
)
_REMOTE_FILE: Final = re.compile(r"/gradio_api/file=/*\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_REMOTE: Final = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
MAX_BODY_BYTES: Final = 1_000_000
"""Of a request other than an upload, whose size Gradio itself bounds."""

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",  # Gradio's start is inline
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)
# Link previews of the head, and the example image in the description of the API.
_FOREIGN: Final = re.compile(
    rb'<meta\b[^>]*"(?:og|twitter):[^>]*>|https://raw\.githubusercontent\.com/[\w./-]*'
)


class Guard:
    """ASGI middleware around Gradio's application.

    Args:
        app: Gradio's.
        body_seconds: for a request's body to arrive.
        upload_seconds: for uploaded files to arrive.
    """

    def __init__(
        self, app: ASGIApp, *, body_seconds: float = 30, upload_seconds: float = 300
    ) -> None:
        self._app = app
        self._body_seconds = body_seconds
        self._upload_seconds = upload_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if not _ROUTES.fullmatch(path) or _REMOTE_FILE.match(path):
            await PlainTextResponse("Not found", 404)(scope, receive, send)
            return
        answer = _GuardedResponse(send)
        if scope["method"] == "POST":
            if path.startswith("/gradio_api/upload"):
                upload = self._app(scope, receive, answer)
                if not await _in_time(upload, self._upload_seconds):
                    await _too_slow()(scope, receive, send)
                return
            reading = asyncio.ensure_future(_read(receive))
            if not await _in_time(reading, self._body_seconds):
                await _too_slow()(scope, receive, send)
                return
            body = reading.result()
            if body is None:
                await PlainTextResponse("Too large", 413)(scope, receive, send)
                return
            if _names_remote_file(body):
                await PlainTextResponse("Only uploaded files", 403)(scope, receive, send)
                return
            receive = _Replay(body, receive)
        await self._app(scope, receive, answer)


async def _in_time(work: Awaitable[object], seconds: float) -> bool:
    """Do it; False if it was given up: a client that sends slowly would hang on for ever."""
    try:
        await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        return False
    return True


def _too_slow() -> PlainTextResponse:
    return PlainTextResponse("Too slow", 408, {"Connection": "close"})


async def _read(receive: Receive) -> bytes | None:
    """The request's body, None if it is longer than allowed."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return body


def _names_remote_file(body: bytes) -> bool:
    try:
        return _has_remote_path(json.loads(body))
    except (ValueError, RecursionError):
        return False  # no JSON: Gradio refuses it


def _has_remote_path(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_remote_path, value))
    if not isinstance(value, dict):
        return False
    path = value.get("path")
    if isinstance(path, str) and _REMOTE.match(path):
        return True
    return any(map(_has_remote_path, value.values()))


class _Replay:
    """Hands a body that was read already to the application, then what else comes."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class _GuardedResponse:
    """Adds the policy to every answer and takes foreign links out of the page's head."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._page = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "no-referrer"
            if headers.get("content-type", "").startswith("text/html"):
                self._start = message  # until the page's new length is known
                return
        elif self._start is not None:
            self._page += message.get("body", b"")
            if message.get("more_body", False):
                return
            page = _FOREIGN.sub(b"", self._page)
            headers = MutableHeaders(scope=self._start)
            if "content-length" in headers and self._page:  # an answer to HEAD has no body
                headers["content-length"] = str(len(page))
            await self._send(self._start)
            self._start = None
            message = {"type": "http.response.body", "body": page, "more_body": False}
        await self._send(message)
