"""Requests that do not reach Gradio, and what is done to its answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="comes with gradio")
pytest.importorskip("starlette", reason="comes with gradio")

from starlette.applications import Starlette  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import HTMLResponse, JSONResponse, Response  # noqa: E402
from starlette.routing import Route  # noqa: E402

from internvl_chat.web.guard import MAX_BODY_BYTES, Guard  # noqa: E402

HEAD = (
    '<head><meta\n property="og:image"\n content="https://elsewhere.org/a.jpg"\n/>'
    '<meta name="twitter:card" content="x" /><meta name="viewport" content="y" /></head>'
)


async def _echo(request: Request) -> Response:
    if request.url.path == "/":
        return HTMLResponse(HEAD)
    body = await request.body()
    return JSONResponse({"path": request.url.path, "body": body.decode()})


def send(method: str, path: str, **options: Any) -> Any:
    async def run() -> Any:
        route = Route("/{path:path}", _echo, methods=["GET", "POST"])
        transport = httpx.ASGITransport(app=Guard(Starlette(routes=[route])))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "path",
    [
        "/config",
        "/theme.css",
        "/assets/a/b.js",
        "/static/fonts/a.woff2",
        "/gradio_api/info",
        "/gradio_api/queue/data?session_hash=a",
        "/gradio_api/heartbeat/abc",
        "/gradio_api/file=/tmp/x/a.png",
        "/gradio_api/call/ask/1234",
    ],
)
def test_the_pages_own_routes_pass(path: str) -> None:
    answer = send("GET", path)
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=https://elsewhere.org/a.png",
        "/gradio_api/file=HTTP://elsewhere.org/a.png",
        "/gradio_api/file=%68ttp://elsewhere.org/a.png",
        "/gradio_api/file=/http://elsewhere.org/a.png",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=https://elsewhere.org/a.png",
        "/gradio_api/run",
        "/gradio_api/api/ask",
        "/gradio_api/component_server",
        "/gradio_api/vibe-code",
        "/gradio_api/process_recording",
        "/gradio_api/runs",
        "/monitoring",
        "/login",
        "/file=/etc/passwd",
    ],
)
def test_other_routes_do_not(path: str) -> None:
    assert send("GET", path).status_code == 404
    assert send("POST", path).status_code == 404


def test_bodies_arrive_whole() -> None:
    told = {"data": [{"text": "see https://elsewhere.org", "files": [{"path": "/tmp/a.png"}]}]}
    answer = send("POST", "/gradio_api/queue/join", json=told)
    assert answer.status_code == 200
    assert json.loads(answer.json()["body"]) == told


@pytest.mark.parametrize("url", ["http://elsewhere.org/a.png", " HTTPS://a/b", "ftp://a/b"])
def test_files_by_url_are_refused(url: str) -> None:
    told = {"data": [{"text": "Why?", "files": [{"path": url}]}]}
    assert send("POST", "/gradio_api/queue/join", json=told).status_code == 403
    escaped = json.dumps(told).replace("h", "\\u0068")
    assert send("POST", "/gradio_api/call/ask", content=escaped).status_code == 403


def test_long_bodies_are_refused_and_uploads_are_not() -> None:
    long = b"x" * (MAX_BODY_BYTES + 1)
    assert send("POST", "/gradio_api/queue/join", content=long).status_code == 413
    assert send("POST", "/gradio_api/upload", content=long).status_code == 200


def test_the_page_loses_what_names_other_hosts() -> None:
    answer = send("GET", "/")
    assert answer.text == '<head><meta name="viewport" content="y" /></head>'
    assert int(answer.headers["content-length"]) == len(answer.content)


@pytest.mark.parametrize("path", ["/gradio_api/run/ask", "/gradio_api/upload"])
def test_a_body_that_does_not_end_is_given_up(path: str) -> None:
    route = Route("/{path:path}", _echo, methods=["POST"])
    guard = Guard(Starlette(routes=[route]), body_seconds=0.1, upload_seconds=0.1)
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Any:
        if not parts:
            await asyncio.Event().wait()
        return parts.pop()

    async def send_on(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    asyncio.run(guard(scope, receive, send_on))
    assert [message.get("status") for message in sent] == [408, None]
    assert (b"connection", b"close") in sent[0]["headers"]
