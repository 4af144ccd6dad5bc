"""Every keyword of OpenAI's client: followed, without effect, or refused by its name."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any, get_args

import openai
import pytest
from openai.types.chat import completion_create_params
from openai.types.chat.chat_completion_content_part_image_param import ImageURL

from internvl_chat.serve.protocol import ChatCompletionRequest, read_request
from internvl_chat.serve.refusals import RequestError
from tests.support.training import ROOT

ASKED = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TOOL = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
AUDIO = {"voice": "alloy", "format": "wav"}
FOLLOWED: dict[str, list[Any]] = {
    "messages": [ASKED["messages"]],
    "model": ["m"],
    "max_completion_tokens": [1, 5000],
    "max_tokens": [1, 5000, None],
    "seed": [0, -(2**63), None],
    "stop": ["a", ["a", "b", "c", "d"], None],
    "stream": [True, False, None],
    "temperature": [0, 2, None],
    "top_p": [0, 1, None],
}
WITHOUT_EFFECT: dict[str, list[Any]] = {
    "metadata": [{"a": "b"}, {}, None],
    "prediction": [{"type": "content", "content": "x"}, None],
    "prompt_cache_key": ["a", None],
    "prompt_cache_options": [{"mode": "explicit"}],
    "prompt_cache_retention": ["in_memory", "24h", None],
    "safety_identifier": ["a", None],
    "user": ["a", ""],
    # with these values only
    "audio": [None],
    "frequency_penalty": [0, 0.0, None],
    "function_call": ["none", None],
    "functions": [[], None],
    "logit_bias": [{}, None],
    "logprobs": [False, None],
    "modalities": [["text"], None],
    "moderation": [None],
    "n": [1, None],
    "parallel_tool_calls": [False, None],
    "presence_penalty": [0, None],
    "reasoning_effort": ["none", None],
    "response_format": [{"type": "text"}, None],
    "service_tier": ["auto", "default", None],
    "store": [False, None],
    "stream_options": [None],
    "tool_choice": ["none", None],
    "tools": [[], None],
    "top_logprobs": [0, None],
    "verbosity": ["medium", None],
    "web_search_options": [None],
}
REFUSED: dict[str, list[Any]] = {
    "audio": [AUDIO, {}],
    "frequency_penalty": [0.1, -2, "0", False],
    "function_call": ["auto", {"name": "f"}],
    "functions": [[{"name": "f"}]],
    "logit_bias": [{"50256": -100}],
    "logprobs": [True, 0],
    "max_completion_tokens": [0, 1.5, "1", True],
    "max_tokens": [0, -1],
    "messages": [[], "Hi", None],
    "metadata": [{"a": 1}, "a", []],
    "modalities": [["text", "audio"], ["audio"], []],
    "model": ["", 1, None],
    "moderation": [{"model": "omni-moderation-latest"}],
    "n": [2, 0, True, "1"],
    "parallel_tool_calls": [True],
    "prediction": ["x", {}],
    "presence_penalty": [2],
    "prompt_cache_key": [1],
    "prompt_cache_options": ["x"],
    "prompt_cache_retention": ["1h"],
    "reasoning_effort": ["minimal", "low", "high"],
    "response_format": [SCHEMA, {"type": "json_object"}, {}],
    "safety_identifier": [1],
    "seed": [0.5, 2**63, "1", True],
    "service_tier": ["flex", "priority"],
    "stop": ["", [""], list("abcde"), 1],
    "store": [True],
    "stream": [1, "true"],
    "stream_options": [{"include_usage": True}],  # without stream
    "temperature": [-0.1, 2.1, "0", True],
    "tool_choice": ["auto", "required", {"type": "function", "function": {"name": "f"}}],
    "tools": [[TOOL]],
    "top_logprobs": [5],
    "top_p": [-0.1, 1.1],
    "user": [1],
    "verbosity": ["low", "high"],
    "web_search_options": [{}, {"search_context_size": "low"}],
}


def keywords() -> set[str]:
    """Of ``client.chat.completions.create``, without those of the client itself."""
    create = openai.resources.chat.completions.Completions.create
    names = set(inspect.signature(create).parameters)
    return names - {"self", "extra_headers", "extra_query", "extra_body", "timeout"}


def read(**fields: Any) -> ChatCompletionRequest:
    return read_request(json.dumps({**ASKED, **fields}).encode(), "m")


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}={json.dumps(value)}")
        for name, values in table.items()
        for value in values
    ]


def test_the_tables_hold_every_keyword_of_the_client() -> None:
    assert set(completion_create_params.CompletionCreateParamsBase.__annotations__) <= keywords()
    assert keywords() == FOLLOWED.keys() | WITHOUT_EFFECT.keys()
    assert keywords() == set(REFUSED)


def test_the_page_names_every_keyword() -> None:
    page = (ROOT / "docs/serve.md").read_text()
    table = page.split("| keyword |")[1].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(keywords())


@pytest.mark.parametrize(("name", "value"), cases(FOLLOWED))
def test_what_is_followed(name: str, value: Any) -> None:
    asked = read(**{name: value})
    if name == "messages":
        assert asked.messages[0].content == "Hi"
    elif value is None:
        assert asked == read()
    else:
        wanted = [value] if name == "stop" and isinstance(value, str) else value
        assert getattr(asked, name) == wanted


@pytest.mark.parametrize(("name", "value"), cases(WITHOUT_EFFECT))
def test_what_has_no_effect(name: str, value: Any) -> None:
    assert read(**{name: value}) == read()


@pytest.mark.parametrize(("name", "value"), cases(REFUSED))
def test_what_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        read(**{name: value})
    error = caught.value.body()["error"]
    assert caught.value.status == (404 if (name, value) == ("model", "") else 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", name)
    assert error["code"]
    assert name in error["message"]


def test_stream_options() -> None:
    asked = read(stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    assert asked.include_usage
    assert not read(stream=True, stream_options={}).include_usage
    with pytest.raises(RequestError, match="only include_usage") as caught:
        read(stream=True, stream_options={"include_obfuscation": True})
    assert caught.value.param == "stream_options"


def test_details_of_images() -> None:
    """Those that the client's types allow, all of which mean the same here."""
    annotation = ImageURL.__annotations__["detail"]
    allowed = re.findall(r"'(\w+)'|\"(\w+)\"", str(getattr(annotation, "__forward_arg__", "")))
    names = {one or other for one, other in allowed} or set(get_args(annotation))
    assert names == {"auto", "low", "high", "original"}
    for detail in names:
        image = {"url": "data:,", "detail": detail}
        content = [{"type": "image_url", "image_url": image}]
        assert read(messages=[{"role": "user", "content": content}])
