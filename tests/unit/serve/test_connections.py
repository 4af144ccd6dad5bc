"""Clients that are slow, silent, many or broken: they are ended, and others are answered."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from internvl_chat.serve.app import Service, create_app
from internvl_chat.serve.connections import ConnectionConfig, PatientProtocol, most_connections
from internvl_chat.serve.engine import Finished, Piece, RequestHandle
from internvl_chat.serve.prompt import Prompter
from internvl_chat.serve.refusals import RequestError
from internvl_chat.serve.remote import RemoteImages
from internvl_chat.serve.server import bind
from internvl_chat.serve.settings import RequestLimits
from tests.support.serving import LIMIT_SECONDS, tiny

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}).encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
SLOW = {
    "nothing": b"",
    "half a head": POST,
    "half a body": POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY[:-1],
    "a body without end": POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "the body of another path": b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc",
}
DRIPS = {
    "nothing": b"",
    "half a head": b"x",
    "half a body": b"",
    "a body without end": b"1\r\nx\r\n",
    "the body of another path": b"",
}
HANGING, SOON = LIMIT_SECONDS, 0.2


class TwoPlaces:
    """An engine that answers at once and has room for two requests."""

    def has_place(self, num_before: int = 0) -> bool:
        return num_before < 2

    def submit(self, question: Any, tell: Any) -> RequestHandle:
        tell(Piece("yes"))
        tell(Finished("stop", 2))
        return RequestHandle()


Client = Callable[[bytes], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@asynccontextmanager
async def serving(app: Any, *, receive_seconds: float, max_connections: int = 1000) -> Any:
    """A server on a free port; yields its URL and what opens a connection and sends something."""
    config = ConnectionConfig(
        app,
        receive_seconds=receive_seconds,
        max_connections=max_connections,
        log_config=None,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=LIMIT_SECONDS,
    )
    server, place = uvicorn.Server(config), bind("127.0.0.1", 0)
    port = place.getsockname()[1]
    running = asyncio.create_task(server._serve([place]))  # without its handling of signals
    writers = []

    async def connect(sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        writer.write(sent)
        await writer.drain()
        return reader, writer

    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{port}", connect, server
    finally:
        server.should_exit = True
        await asyncio.wait_for(running, LIMIT_SECONDS)
        for writer in writers:
            writer.close()


def run(
    use: Callable[[str, Client, uvicorn.Server], Awaitable[None]],
    *,
    receive_seconds: float,
    max_connections: int = 1000,
    app: Any = None,
    remote: RemoteImages | None = None,
    **limits: Any,
) -> None:
    """Call ``use`` with a server of ``app``, by default of our own."""

    async def main() -> None:
        with ThreadPoolExecutor(2) as executor:
            service = Service(
                engine=TwoPlaces(),  # type: ignore[arg-type]
                prompter=Prompter(*tiny()),
                model_name="m",
                executor=executor,
                limits=RequestLimits(receive_seconds=receive_seconds, **limits),  # type: ignore[arg-type]
                remote=remote,
            )
            settings = {"receive_seconds": receive_seconds, "max_connections": max_connections}
            async with serving(app or create_app(service), **settings) as given:
                await use(*given)

    asyncio.run(main())


async def ask(url: str, body: bytes = BODY) -> httpx.Response:
    async with httpx.AsyncClient(timeout=LIMIT_SECONDS) as client:
        head = {"Content-Type": "application/json"}
        return await client.post(f"{url}/v1/chat/completions", content=body, headers=head)


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Status and JSON of what comes until the server closes; 0 if that is nothing."""
    raw = await asyncio.wait_for(reader.read(), LIMIT_SECONDS)
    if not raw:
        return 0, None
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_a_hundred_slow_clients_hold_nobody_up() -> None:
    async def use(url: str, connect: Client, server: uvicorn.Server) -> None:
        for sent in SLOW.values():
            for _ in range(20):
                await connect(sent)
        while len(server.server_state.connections) < 100:
            await asyncio.sleep(0.01)
        replies = [await ask(url) for _ in range(3)]
        assert [reply.json()["choices"][0]["message"]["content"] for reply in replies] == [
            "yes"
        ] * 3
        assert len(server.server_state.connections) >= 100  # they hang on all the same

    run(use, receive_seconds=HANGING)


@pytest.mark.parametrize(
    ("sent", "status", "told"),
    [
        ("nothing", 0, ""),
        ("half a head", 408, "the request's head had not arrived after 0.2 s"),
        ("half a body", 408, "the body had not arrived after 0.2 s (--receive-seconds)"),
        ("a body without end", 408, "the body had not arrived"),
        ("the body of another path", 404, "Invalid URL (POST /x)"),
    ],
)
def test_slow_clients_are_ended(sent: str, status: int, told: str) -> None:
    async def use(url: str, connect: Client, server: uvicorn.Server) -> None:
        reader, writer = await connect(SLOW[sent])

        async def drip() -> None:  # a byte now and then is no whole request either
            while not writer.is_closing():
                writer.write(DRIPS[sent])
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        got, body = await answer_of(reader)
        dripping.cancel()
        assert got == status
        if body is not None:
            assert told in body["error"]["message"]
            code = {408: "request_timeout", 404: "not_found"}[status]
            assert body["error"]["code"] == code
        while server.server_state.connections:
            await asyncio.sleep(0.01)

    run(use, receive_seconds=SOON)


def test_a_connection_that_was_used_is_watched_again() -> None:
    async def use(url: str, connect: Client, server: uvicorn.Server) -> None:
        reader, writer = await connect(b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n")
        await reader.readuntil(b"]}")
        writer.write(POST)
        assert (await answer_of(reader))[0] == 408

    run(use, receive_seconds=SOON)


def test_a_length_that_is_too_large_is_refused_before_the_body() -> None:
    async def use(url: str, connect: Client, server: uvicorn.Server) -> None:
        reader, _ = await connect(POST + b"Content-Length: 1001\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_SECONDS)
        assert b" 413 " in head
        reply = await ask(url, b" " * 2_000_000)  # sent to its end: the answer is read, no reset
        assert reply.status_code == 413
        assert "larger than 0.001 MB (--max-request-mb)" in reply.json()["error"]["message"]

    run(use, receive_seconds=HANGING, max_request_bytes=1000)


def test_a_body_that_is_not_as_long_as_promised() -> None:
    async def use(url: str, connect: Client, server: uvicorn.Server) -> None:
        reader, _ = await connect(POST + b"Content-Length: 2\r\n\r\n{}and more\r\n\r\n")
        raw = await asyncio.wait_for(reader.read(), LIMIT_SECONDS)
        assert raw.count(b"HTTP/1.1 400 Bad Request") == 2
        reader, _ = await connect(POST + b"Transfer-Encoding: chunked\r\n\r\nno number\r\n")
        status, body = await answer_of(reader)
        assert (status, body["error"]["type"]) == (400, "invalid_request_error")
        for cut in range(0, len(BODY), 20):
            _, writer = await connect(POST + b"Content-Length: 999\r\n\r\n" + BODY[:cut])
            writer.close()
        assert (await ask(url)).status_code == 200

    run(use, receive_seconds=HANGING)


def test_the_longest_silent_make_room_for_others() -> None:
    async def use(url: str, connect: Client, server: uvicorn.Server) -> None:
        readers = [(await connect(sent))[0] for sent in (SLOW["half a head"], b"", POST)]
        while len(server.server_state.connections) < 3:
            await asyncio.sleep(0.01)
        assert (await ask(url)).status_code == 200
        with contextlib.suppress(ConnectionResetError):  # it is closed either way
            assert await asyncio.wait_for(readers[0].read(), LIMIT_SECONDS) == b""
        assert not readers[2].at_eof()

    run(use, receive_seconds=HANGING, max_connections=3)


def test_bodies_share_their_memory() -> None:
    """Of the fifth largest body at once, the first one is given up."""

    async def use(url: str, connect: Client, server: uvicorn.Server) -> None:
        half = POST + b"Content-Length: 1000\r\n\r\n" + b" " * 990
        readers = [(await connect(half))[0] for _ in range(5)]
        status, body = await answer_of_one(readers[0])
        assert (status, body["error"]["type"]) == (503, "server_error")
        assert "too many bodies" in body["error"]["message"]
        assert (await ask(url)).status_code == 200
        assert not any(reader.at_eof() or reader._buffer for reader in readers[2:])  # type: ignore[attr-defined]

    run(use, receive_seconds=HANGING, max_request_bytes=1000)


async def answer_of_one(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Status and JSON of an answer after which the connection stays open."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_SECONDS)
    return int(head.split()[1]), json.loads(await reader.readuntil(b"}}"))


def test_who_does_not_take_the_answer_is_ended() -> None:
    ended = threading.Event()

    async def flood(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await asyncio.sleep(0)) is None and not ended.is_set():
            await send({"type": "http.response.body", "body": bytes(10**6), "more_body": True})

    async def use(url: str, connect: Client, server: uvicorn.Server) -> None:
        await connect(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        while not server.server_state.connections:
            await asyncio.sleep(0.01)
        while server.server_state.connections:
            await asyncio.sleep(0.01)
        ended.set()

    run(use, receive_seconds=SOON, app=flood)


def test_a_shutdown_does_not_wait_for_bodies() -> None:
    async def use(url: str, connect: Client, server: uvicorn.Server) -> None:
        reader, _ = await connect(SLOW["half a body"])
        while not server.server_state.tasks:
            await asyncio.sleep(0.01)
        server.should_exit = True
        status, body = await answer_of(reader)
        assert (status, body["error"]["message"]) == (503, "the server is shutting down")

    run(use, receive_seconds=HANGING)


class SlowImages(RemoteImages):
    """The other machine does not answer until the test is over."""

    over = asyncio.Event()

    async def fetch(self, url: str, where: str) -> bytes:
        await self.over.wait()
        raise RequestError("no image")


def test_other_machines_that_are_slow_hold_up_who_asks_for_them() -> None:
    async def use(url: str, connect: Client, server: uvicorn.Server) -> None:
        part = {"type": "image_url", "image_url": {"url": "http://h/a.png"}}
        shown = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
        waiting = [asyncio.create_task(ask(url, json.dumps(shown).encode())) for _ in range(3)]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result().status_code for task in done] == [429]
        assert (await ask(url)).status_code == 200
        SlowImages.over.set()
        await asyncio.wait(waiting)

    run(use, receive_seconds=SOON, remote=SlowImages(max_bytes=1))


def test_the_hooks_are_uvicorns() -> None:
    for name, hook in vars(PatientProtocol).items():
        theirs = getattr(H11Protocol, name, None)
        if theirs is not None and inspect.isfunction(hook) and name != "__init__":
            assert list(inspect.signature(hook).parameters) == list(
                inspect.signature(theirs).parameters
            )
    for name in ("connection_made", "connection_lost", "data_received", "on_response_complete"):
        assert name in vars(PatientProtocol)
        assert hasattr(H11Protocol, name)
    assert 16 <= most_connections() <= 1000
