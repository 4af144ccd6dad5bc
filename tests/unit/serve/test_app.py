"""Routes over an engine that is none: what can hardly be brought about with a real one."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from internvl_chat.serve.app import Service, create_app
from internvl_chat.serve.engine import (
    EngineStats,
    Failed,
    Finished,
    GenerationRequest,
    Piece,
    RequestHandle,
    StoppingError,
)
from internvl_chat.serve.prompt import Prompter
from internvl_chat.serve.settings import RequestLimits
from tests.support.serving import tiny

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


class FakeEngine:
    """Tells the given events to whoever asks."""

    def __init__(self, *events: Any, is_alive: bool = True) -> None:
        self.events = events
        self.is_alive = is_alive
        self.handles: list[RequestHandle] = []
        self.questions: list[GenerationRequest] = []

    def stats(self) -> EngineStats:
        return EngineStats(running=0, waiting=0, answered=1, cancelled=2, failed=3)

    def has_place(self, num_before: int = 0) -> bool:
        return True

    def submit(self, question: Any, tell: Any) -> RequestHandle:
        if not self.is_alive:
            raise StoppingError
        self.handles.append(RequestHandle())
        self.questions.append(question)
        for event in self.events:
            tell(event)
        return self.handles[-1]


def request(
    engine: FakeEngine, method: str, path: str, *, prompter: Any = None, **body: Any
) -> httpx.Response:
    with ThreadPoolExecutor(1) as executor:
        service = Service(
            engine=engine,  # type: ignore[arg-type]
            prompter=prompter or Prompter(*tiny()),
            model_name="m",
            executor=executor,
            limits=RequestLimits(),
        )
        transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)

        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await client.request(method, path, json=body or None)

        return asyncio.run(send())


def test_health_tells_when_the_engine_has_stopped() -> None:
    assert request(FakeEngine(), "GET", "/health").status_code == 200
    stopped = request(FakeEngine(is_alive=False), "GET", "/health")
    assert stopped.status_code == 503
    assert stopped.json() == {
        "status": "stopped",
        "running": 0,
        "waiting": 0,
        "answered": 1,
        "cancelled": 2,
        "failed": 3,
        "receiving": 0,
    }
    refused = request(FakeEngine(is_alive=False), "POST", "/v1/chat/completions", **BODY)
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error")


@pytest.mark.parametrize(("is_shutdown", "status"), [(False, 500), (True, 503)])
def test_a_failure_is_told_with_its_status(is_shutdown: bool, status: int) -> None:
    engine = FakeEngine(Piece("a"), Failed("went wrong", is_shutdown))
    reply = request(engine, "POST", "/v1/chat/completions", **BODY)
    assert reply.status_code == status
    assert reply.json()["error"]["message"] == "went wrong"
    assert engine.handles[0].is_cancelled  # its row, if there is one, is free


def test_a_failure_within_a_stream_is_its_last_event() -> None:
    engine = FakeEngine(Piece("a"), Failed("went wrong"))
    reply = request(engine, "POST", "/v1/chat/completions", **BODY, stream=True)
    assert reply.status_code == 200  # sent before
    *_, piece, error, end = reply.text.split("\n\n")
    assert '"content":"a"' in piece
    assert '"message":"went wrong"' in error
    assert end == ""
    assert engine.handles[0].is_cancelled


def test_our_own_mistake_is_a_500_in_the_usual_shape() -> None:
    prompter = SimpleNamespace()  # has nothing of what is asked of it
    reply = request(FakeEngine(), "POST", "/v1/chat/completions", prompter=prompter, **BODY)
    assert reply.status_code == 500
    assert reply.json()["error"]["message"] == "internal error"


@pytest.mark.parametrize(("asked", "given"), [({}, None), ({"max_tokens": 9}, 9)])
def test_an_answer_ends_with_the_context_at_the_latest(
    asked: dict[str, int], given: int | None
) -> None:
    engine = FakeEngine(Finished("length", 1))
    for settings in (asked, {"max_tokens": 5000}):
        reply = request(engine, "POST", "/v1/chat/completions", **BODY, **settings)
    room = 2048 - reply.json()["usage"]["prompt_tokens"]
    assert [question.max_tokens for question in engine.questions] == [given or room, room]
