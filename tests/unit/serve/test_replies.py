"""The JSON of OpenAI's chat completions, field by field."""

from __future__ import annotations

import json
from typing import Any

from internvl_chat.serve.protocol import RequestError
from internvl_chat.serve.replies import Replies, model_list, usage

HEAD = {"id": "chatcmpl-1", "created": 5, "model": "m"}
USED = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def events(raw: bytes) -> list[Any]:
    lines = raw.decode().split("\n\n")
    assert lines.pop() == ""
    told = [line.removeprefix("data: ") for line in lines]
    return [one if one == "[DONE]" else json.loads(one) for one in told]


def replies(*, include_usage: bool = False) -> Replies:
    return Replies(**HEAD, include_usage=include_usage)  # type: ignore[arg-type]


def chunk(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return {**HEAD, "object": "chat.completion.chunk", "choices": [choice]}


def test_a_whole_answer() -> None:
    message = {"role": "assistant", "content": "star", "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    assert replies().completion("star", "stop", usage(7, 2)) == {
        **HEAD,
        "object": "chat.completion",
        "choices": [choice],
        "usage": USED,
    }


def test_a_stream_without_usage() -> None:
    stream = replies().opening() + replies().piece("星") + replies().closing("length", USED)
    assert events(stream) == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "星"}),
        chunk({}, "length"),
        "[DONE]",
    ]


def test_a_stream_with_usage() -> None:
    """Every chunk has the field, as OpenAI's have; only the last one, without a choice, says it."""
    one = replies(include_usage=True)
    assert events(one.opening() + one.closing("stop", USED)) == [
        {**chunk({"role": "assistant", "content": ""}), "usage": None},
        {**chunk({}, "stop"), "usage": None},
        {**chunk({}), "choices": [], "usage": USED},
        "[DONE]",
    ]


def test_the_models() -> None:
    model = {"id": "m", "object": "model", "created": 5, "owned_by": "internvl-chat"}
    assert model_list("m", 5) == {"object": "list", "data": [model]}


def test_errors() -> None:
    error = RequestError("no", param="n", code="c").body()["error"]
    assert error == {"message": "no", "type": "invalid_request_error", "param": "n", "code": "c"}
    told = {}
    for status in (401, 404, 413, 415, 429, 500, 503):
        error = RequestError("no", status=status).body()["error"]
        told[status] = (error["type"], error["code"])
    assert told == {
        401: ("invalid_request_error", "invalid_api_key"),
        404: ("invalid_request_error", "not_found"),
        413: ("invalid_request_error", "too_large"),
        415: ("invalid_request_error", None),
        429: ("rate_limit_error", "queue_full"),
        500: ("server_error", None),
        503: ("server_error", None),
    }
