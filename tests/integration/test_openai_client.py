"""OpenAI's own client against the routes, in one process: what it can ask in the namespaces served.

``tests/unit/serve/test_parameters.py`` has every keyword; here is what the client makes of replies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from internvl_chat.serve.app import Service, create_app
from internvl_chat.serve.engine import Engine
from internvl_chat.serve.prompt import Prompter
from internvl_chat.serve.settings import EngineSettings, RequestLimits
from tests.support.serving import LIMIT_SECONDS, chat, image_part, shape_image, text_part, tiny

MODEL, KEY = "lab/tiny-1", "sk-1"
SUM: list[Any] = [{"role": "user", "content": "What is 2 plus 3?"}]
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 48}
STAR = shape_image()
Use = Callable[[AsyncOpenAI], Awaitable[Any]]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """The shipped model behind a name with a slash, and a key."""
    engine = Engine(*tiny(), EngineSettings(max_batch_size=2))
    engine.start()
    with ThreadPoolExecutor(2) as executor:
        yield Service(
            engine=engine,
            prompter=Prompter(*tiny()),
            model_name=MODEL,
            executor=executor,
            limits=RequestLimits(max_images=3),
            api_key=KEY,
        )
    engine.stop(0)
    assert engine.join(LIMIT_SECONDS)


def run(service: Service, use: Use, *, key: str = KEY) -> Any:
    """Call ``use`` with a client that never tries twice."""

    async def main() -> Any:
        transport = httpx2.ASGITransport(create_app(service))
        async with (
            httpx2.AsyncClient(transport=transport) as http,
            AsyncOpenAI(
                base_url="http://here/v1", api_key=key, max_retries=0, http_client=http
            ) as client,
        ):
            return await use(client)

    return asyncio.run(main())


def text_of(completion: Any) -> str:
    return completion.choices[0].message.content


def test_create_with_what_may_be_said(service: Service) -> None:
    async def use(client: AsyncOpenAI) -> Any:
        return await client.chat.completions.create(
            messages=SUM,
            **GREEDY,
            top_p=0.5,
            seed=1,
            stop=["\n\n"],
            stream=False,
            n=1,
            user="me",
            metadata={"a": "b"},
            prediction={"type": "content", "content": "5"},
            prompt_cache_key="a",
            reasoning_effort="none",
            response_format={"type": "text"},
            service_tier="auto",
            store=False,
            timeout=LIMIT_SECONDS,
            extra_headers={"X-Client-Request-Id": "mine"},
        )

    completion = run(service, use)
    assert text_of(completion) == "5"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.choices[0].message.role == "assistant"
    assert completion.usage.total_tokens > completion.usage.completion_tokens > 0
    assert completion._request_id == completion.id.replace("chatcmpl-", "req_")


@pytest.mark.parametrize("detail", ["auto", "low", "high", "original"])
def test_the_answer_is_the_same_wherever_the_image_stands(service: Service, detail: str) -> None:
    image: dict[str, Any] = image_part(STAR)
    image["image_url"]["detail"] = detail

    async def use(client: AsyncOpenAI) -> list[str]:
        told = []
        for parts in (
            [image, text_part("What shape is red?")],
            [text_part("What shape is red?"), image],
        ):
            messages: Any = [{"role": "user", "content": parts}]
            told.append(text_of(await client.chat.completions.create(messages=messages, **GREEDY)))
        return told

    wanted = chat(tiny(), (("<image>\nWhat shape is red?", None),), [STAR])
    assert run(service, use) == [wanted] * 2 == ["star"] * 2


def test_streams(service: Service) -> None:
    async def use(client: AsyncOpenAI) -> tuple[str, Any, list[str]]:
        pieces = [
            chunk.choices[0].delta.content or ""
            async for chunk in await client.chat.completions.create(
                messages=SUM, stream=True, **GREEDY
            )
        ]
        settings = {"stream_options": {"include_usage": True}, **GREEDY}
        async with client.chat.completions.stream(messages=SUM, **settings) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_completion()
        return "".join(pieces), final, kinds

    pieces, final, kinds = run(service, use)
    assert pieces == text_of(final) == "5"
    assert final.usage.completion_tokens > 0
    assert {"content.delta", "content.done"} <= set(kinds)


class Answer(BaseModel):
    """What a client might want an answer as."""

    number: int


def test_the_parsing_helper(service: Service) -> None:
    async def plain(client: AsyncOpenAI) -> Any:
        return await client.chat.completions.parse(messages=SUM, **GREEDY)

    async def schema(client: AsyncOpenAI) -> Any:
        return await client.chat.completions.parse(messages=SUM, response_format=Answer, **GREEDY)

    parsed = run(service, plain)
    assert (text_of(parsed), parsed.choices[0].message.parsed) == ("5", None)
    with pytest.raises(openai.BadRequestError) as caught:
        run(service, schema)
    assert caught.value.param == "response_format"


def test_raw_and_streaming_responses(service: Service) -> None:
    async def use(client: AsyncOpenAI) -> tuple[Any, Any, list[str]]:
        raw = await client.chat.completions.with_raw_response.create(messages=SUM, **GREEDY)
        models = await client.models.with_raw_response.list()
        lines = []
        async with client.chat.completions.with_streaming_response.create(
            messages=SUM, stream=True, **GREEDY
        ) as reply:
            lines = [line async for line in reply.iter_lines() if line]
        return raw, models, lines

    raw, models, lines = run(service, use)
    assert text_of(raw.parse()) == "5"
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["content-type"] == "application/json"
    assert models.request_id != raw.request_id
    assert lines[-1] == "data: [DONE]"


def test_models(service: Service) -> None:
    async def use(client: AsyncOpenAI) -> tuple[Any, Any]:
        return (await client.models.list()).data, await client.models.retrieve(MODEL)

    (listed,), retrieved = run(service, use)
    assert listed == retrieved
    assert (retrieved.id, retrieved.object, retrieved.owned_by) == (MODEL, "model", "internvl-chat")


def ask(client: AsyncOpenAI, messages: Any = SUM, **settings: Any) -> Awaitable[Any]:
    return client.chat.completions.create(messages=messages, **{**GREEDY, **settings})


def said(*parts: Any, role: str = "user") -> list[Any]:
    return [{"role": role, "content": list(parts)}]


NO_FUNCTION = {"role": "function", "name": "f", "content": "5"}
NO_TOOL = {"role": "tool", "tool_call_id": "1", "content": "5"}
AUDIO = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
FILE = {"type": "file", "file": {"file_data": "data:,"}}
BROKEN = {"type": "image_url", "image_url": {"url": "data:image/png;base64,Y"}}
ODD = {"type": "image_url", "image_url": {"url": "data:,", "detail": "medium"}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
CLASSES = {
    "unsupported_parameter": openai.BadRequestError,
    "invalid_value": openai.BadRequestError,
    "bad_image": openai.BadRequestError,
    "context_length_exceeded": openai.BadRequestError,
    "model_not_found": openai.NotFoundError,
    "not_found": openai.NotFoundError,
    "too_large": openai.APIStatusError,
    "method_not_supported": openai.APIStatusError,
    None: openai.PermissionDeniedError,
}
PART = "messages[0].content[0]"
CASES: list[tuple[Use, str | None, str | None]] = [
    (lambda c: ask(c, n=2), "n", "unsupported_parameter"),
    (lambda c: ask(c, temperature=3), "temperature", "invalid_value"),
    (lambda c: ask(c, extra_body={"top_k": 5}), "top_k", "unsupported_parameter"),
    (lambda c: ask(c, [*SUM, NO_TOOL]), "messages[1].role", "invalid_value"),
    (lambda c: ask(c, [NO_FUNCTION]), "messages[0].role", "invalid_value"),
    (lambda c: ask(c, [*SUM, CALLS]), "messages[1].tool_calls", "unsupported_parameter"),
    (lambda c: ask(c, said(AUDIO)), f"{PART}.type", "invalid_value"),
    (lambda c: ask(c, said(FILE)), f"{PART}.type", "invalid_value"),
    (lambda c: ask(c, said(ODD)), f"{PART}.image_url.detail", "invalid_value"),
    (lambda c: ask(c, said(BROKEN)), f"{PART}.image_url", "bad_image"),
    (lambda c: ask(c, said(text_part("7" * 3000))), "messages", "context_length_exceeded"),
    (lambda c: ask(c, said(text_part("7" * 200_000))), "messages", "context_length_exceeded"),
    (lambda c: ask(c, said(*[image_part(STAR)] * 4)), "messages", "too_large"),
    (lambda c: ask(c, model="gpt-4o"), "model", "model_not_found"),
    (lambda c: c.models.retrieve("gpt-4o"), "model", "model_not_found"),
    (lambda c: c.models.delete("gpt-4o"), "model", "model_not_found"),
    (lambda c: c.models.delete(MODEL), "model", None),
    (lambda c: c.completions.create(model=MODEL, prompt="a"), None, "not_found"),
    (lambda c: c.embeddings.create(model=MODEL, input="a"), None, "not_found"),
    (lambda c: c.responses.create(model=MODEL, input="a"), None, "not_found"),
    (lambda c: c.chat.completions.retrieve("x"), None, "not_found"),
    (lambda c: c.chat.completions.update("x", metadata={}), None, "not_found"),
    (lambda c: c.chat.completions.delete("x"), None, "not_found"),
    (lambda c: c.chat.completions.messages.list("x"), None, "not_found"),
    (lambda c: c.chat.completions.list(), None, "method_not_supported"),
    (lambda c: c.post("/models", cast_to=object), None, "method_not_supported"),
]


def test_errors_are_the_clients_own_classes(service: Service) -> None:
    async def use(client: AsyncOpenAI) -> list[Any]:
        return await asyncio.gather(*(one[0](client) for one in CASES), return_exceptions=True)

    for error, (_, param, code) in zip(run(service, use), CASES, strict=True):
        assert type(error) is CLASSES[code], error
        assert (error.param, error.code) == (param, code)
        assert error.type == "invalid_request_error"
        assert error.request_id.startswith("req_")
        assert error.message


def test_a_wrong_key(service: Service) -> None:
    calls: list[Use] = [ask, lambda c: c.models.list(), lambda c: c.models.retrieve(MODEL)]
    for call in calls:
        with pytest.raises(openai.AuthenticationError) as caught:
            run(service, call, key="other")
        assert caught.value.code == "invalid_api_key"
