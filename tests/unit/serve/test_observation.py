"""What a server tells of its requests: real HTTP, a real engine, clients that go away."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import uvicorn

from internvl_chat.serve.app import Service, create_app
from internvl_chat.serve.engine import Engine, RequestHandle
from internvl_chat.serve.metrics import CONTENT_TYPE
from internvl_chat.serve.observation import RequestTrace, line, logging_requests, request_log
from internvl_chat.serve.prompt import Prompter
from internvl_chat.serve.server import bind
from internvl_chat.serve.settings import EngineSettings, RequestLimits
from tests.support.serving import LIMIT_SECONDS, endless, image_part, shape_image, text_part, tiny

KEY = "sk-secret"
ASKED = "What shape is red?"
SAMPLE = re.compile(r"^([a-z_]+:?[a-z0-9_]+)(?:\{(.*)\})? (\S+)$")


def figures(text: str) -> dict[str, float]:
    """By name and labels, model's name and bounds of buckets left out."""
    found: dict[str, float] = {}
    for row in text.splitlines():
        if row.startswith("#"):
            assert re.match(r"# (HELP|TYPE) \S+ \S", row)
            continue
        matched = SAMPLE.match(row)
        assert matched is not None, row
        name, labels, value = matched.groups()
        own = [one for one in (labels or "").split(",") if not one.startswith("model_name")]
        if not name.endswith("_bucket"):
            found[f"{name}{{{','.join(own)}}}" if any(own) else name] = float(value)
    return found


def serving(
    loaded: tuple[Any, Any], use: Callable[[httpx.AsyncClient], Awaitable[None]]
) -> list[str]:
    """Call ``use`` with a client of a server of its own; returns the lines of the request log."""
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    async def main(engine: Engine) -> None:
        with ThreadPoolExecutor(2) as executor:
            service = Service(
                engine=engine,
                prompter=Prompter(*loaded),
                model_name="m",
                executor=executor,
                limits=RequestLimits(),
                api_key=KEY,
                model_info={"version": "1", "device": "cpu"},
            )
            config = uvicorn.Config(
                create_app(service), log_config=None, access_log=False, lifespan="off"
            )
            server, place = uvicorn.Server(config), bind("127.0.0.1", 0)
            running = asyncio.create_task(server._serve([place]))
            while not server.started:
                await asyncio.sleep(0.01)
            url = f"http://127.0.0.1:{place.getsockname()[1]}"
            head = {"Authorization": f"Bearer {KEY}"}
            try:
                async with httpx.AsyncClient(
                    base_url=url, headers=head, timeout=LIMIT_SECONDS
                ) as client:
                    await use(client)
            finally:
                server.should_exit = True
                await asyncio.wait_for(running, LIMIT_SECONDS)

    engine, handler = Engine(*loaded, EngineSettings(max_batch_size=4)), Kept()
    engine.start()
    try:
        with logging_requests(is_wanted=False):
            request_log.addHandler(handler)
            asyncio.run(main(engine))
    finally:
        request_log.removeHandler(handler)
        engine.stop(0)
        assert engine.join(LIMIT_SECONDS)
    return lines


def body(*content: Any, **settings: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": list(content)}]
    return {"model": "m", "messages": messages, "temperature": 0, **settings}


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    told = await client.get("/metrics", headers={"Authorization": ""})
    assert told.headers["content-type"] == CONTENT_TYPE
    return figures(told.text)


def test_a_question_in_the_log_and_in_the_figures() -> None:
    usages: list[dict[str, int]] = []
    seen: list[dict[str, float]] = []

    async def use(client: httpx.AsyncClient) -> None:
        asked = body(image_part(shape_image()), text_part(ASKED))
        path = "/v1/chat/completions?token=query-secret"
        told = await client.post(path, json=asked)
        usages.append(told.json()["usage"])
        assert told.headers["x-request-id"].endswith(told.json()["id"].removeprefix("chatcmpl-"))
        streamed = await client.post(path, json={**asked, "max_tokens": 1, "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert (await client.post(path, json={**asked, "n": 2})).status_code == 400
        assert (await client.get("/v1/models", headers={"Authorization": "x"})).status_code == 401
        assert (await client.get("/a%0Ab%22c")).status_code == 404
        for open_path in ("/health", "/docs", "/openapi.json"):
            reply = await client.get(open_path, headers={"Authorization": ""})
            assert reply.status_code == 200
        assert reply.json()["components"]["securitySchemes"]
        seen.append(await metrics(client))

    lines = serving(tiny(), use)
    whole, stream, refused, denied, odd, *_ = lines
    prompt, answer = usages[0]["prompt_tokens"], usages[0]["completion_tokens"]
    first = rf" POST /v1/chat/completions 200 [\d.]+ms prompt={prompt} completion={answer} images=1"
    last = r" first_token=[\d.]+ms finish=stop id=chatcmpl-[0-9a-f]{32}"
    assert re.fullmatch(rf"127\.0\.0\.1:\d+{first}{last}", whole)
    assert " completion=1 images=1 first_token=" in stream
    assert " finish=length id=" in stream
    assert re.search(r" 400 [\d.]+ms error=unsupported_parameter id=req_[0-9a-f]{32}$", refused)
    assert re.search(r" GET /v1/models 401 [\d.]+ms error=invalid_api_key id=req_", denied)
    assert " GET /a%0Ab%22c 404 " in odd
    assert not any("/health" in one or "/metrics" in one for one in lines)
    told = "\n".join([*lines, *map(str, seen)])
    assert not [word for word in (KEY, "secret", "shape", "red", "base64") if word in told]

    found, prefix = seen[0], "internvl_chat:"
    assert found[f'{prefix}model_info{{version="1",device="cpu"}}'] == 1
    assert found[f"{prefix}prompt_tokens_total"] == 2 * prompt
    assert found[f"{prefix}generation_tokens_total"] == answer + 1
    assert found[f"{prefix}images_total"] == 2
    ends = {k: v for k, v in found.items() if "request_success_total" in k and v}
    assert [(key.split('"')[1], value) for key, value in ends.items()] == [
        ("stop", 1),
        ("length", 1),
    ]
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds"):
        assert found[f"{prefix}{name}_count"] == 2
        assert found[f"{prefix}{name}_sum"] > 0
    assert found[f"{prefix}request_tokens_per_second_count"] == 1  # of one token there is none
    assert found[f"{prefix}request_generation_tokens_sum"] == answer + 1
    asked = 'http_requests_total{handler="/v1/chat/completions",method="POST",status='
    assert (found[f'{asked}"200"}}'], found[f'{asked}"400"}}']) == (2, 1)
    assert found['http_requests_total{handler="none",method="GET",status="404"}'] == 1
    assert found[f'{prefix}request_errors_total{{code="invalid_api_key"}}'] == 1
    assert found["process_resident_memory_bytes"] > 10**7
    assert found["http_requests_inprogress"] == 1  # this one


def test_concurrent_streams_and_clients_that_go_away_are_counted_once() -> None:
    seen: list[dict[str, float]] = []

    asked = body(text_part("What can you do?"), max_tokens=1900)

    async def leave_a_stream(client: httpx.AsyncClient) -> None:
        path, longest = "/v1/chat/completions", {**asked, "stream": True}
        async with client.stream("POST", path, json=longest) as reply:
            async for piece in reply.aiter_text():
                if '"content":"I' in piece:
                    return

    async def leave(client: httpx.AsyncClient) -> None:
        waiting = asyncio.create_task(client.post("/v1/chat/completions", json=asked))
        while not (await metrics(client))["internvl_chat:num_requests_running"]:
            await asyncio.sleep(0.01)
        waiting.cancel()

    async def stay(client: httpx.AsyncClient, *, stream: bool) -> None:
        short = {**asked, "max_tokens": 5, "stream": stream}
        assert (await client.post("/v1/chat/completions", json=short)).status_code == 200

    async def use(client: httpx.AsyncClient) -> None:
        await leave(client)
        others = [stay(client, stream=bool(number % 2)) for number in range(6)]
        await asyncio.gather(leave_a_stream(client), *others)
        for _ in range(LIMIT_SECONDS * 100):
            seen.append(await metrics(client))
            if seen[-1]["http_requests_inprogress"] == 1:
                break
            await asyncio.sleep(0.01)
        while (await metrics(client))["internvl_chat:num_requests_running"]:
            await asyncio.sleep(0.01)
        seen.append(await metrics(client))

    lines = serving(endless(), use)
    found, prefix = seen[-1], "internvl_chat:"
    ended = {k.split('"')[1]: v for k, v in found.items() if "request_success_total" in k}
    assert ended == {"stop": 0, "length": 6, "abort": 2, "error": 0}
    assert found[f"{prefix}e2e_request_latency_seconds_count"] == 8
    assert found[f"{prefix}num_requests_waiting"] == 0
    assert sum(" finish=abort " in one for one in lines) == 2
    (gone,) = [one for one in lines if " 499 " in one]  # the other's status was sent before
    assert " finish=abort " in gone
    logged = sum(int(n) for one in lines for n in re.findall(r" completion=(\d+)", one))
    assert found[f"{prefix}request_generation_tokens_sum"] == logged
    # Two rows were given up, each amid a step, which may still read its prompt and add a token.
    assert 0 <= found[f"{prefix}generation_tokens_total"] - logged <= 4
    prompts = {int(n) for one in lines for n in re.findall(r" prompt=(\d+)", one)}
    assert found[f"{prefix}prompt_tokens_total"] == 8 * prompts.pop()


def trace(**known: Any) -> RequestTrace:
    values = {"client": "h:1", "method": "GET", "path": "/v1/models/a/b", "hex_id": "f", **known}
    return RequestTrace(**values)


def test_lines_of_what_did_not_come_far() -> None:
    assert line(trace(status=200), 0.0015) == "h:1 GET /v1/models/a/b 200 1.5ms id=req_f"
    assert line(trace(path="/" + "a" * 300), 0).startswith(f"h:1 GET /{'a' * 199}… 499 ")
    waited = line(trace(handle=RequestHandle(), num_prompt_tokens=3), 1)
    assert waited.endswith(" prompt=3 completion=0 images=0 finish=abort id=chatcmpl-f")
    handlers = [
        trace(path=path).handler for path in ("/v1/models/a/b", "/v1/models/", "/x", "/docs")
    ]
    assert handlers == ["/v1/models/{name}", "none", "none", "/docs"]


@pytest.mark.parametrize("is_wanted", [True, False])
def test_the_log_is_on_stderr_or_nowhere(
    is_wanted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_requests(is_wanted=is_wanted):
        request_log.info("a line")
        request_log.debug("a probe")
    request_log.info("another")
    told = capsys.readouterr()
    wanted = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} a line\n" if is_wanted else ""
    assert re.fullmatch(wanted, told.err)
    assert told.out == ""
