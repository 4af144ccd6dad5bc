"""Bodies of requests: what is understood, and what each mistake is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.serve.messages import ChatTurns, read_messages
from internvl_chat.serve.protocol import RequestError
from internvl_chat.serve.request import ChatRequest, parse_request
from internvl_chat.serve.sampling import SamplingParams
from internvl_chat.serve.settings import EngineSettings, RequestLimits
from tests.support.serving import text_part

USER = {"role": "user", "content": "Hi"}


def parse(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [USER], **fields}
    return parse_request(
        json.dumps(body).encode(),
        model_name="m",
        limits=RequestLimits(max_images=2),
        check_text=lambda text, where: None,
    )


def read(*messages: Any) -> ChatTurns:
    return read_messages(list(messages), lambda text, where: None)


def show(url: str = "data:x") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_defaults_are_openais() -> None:
    asked = parse()
    assert asked.sampling == SamplingParams(temperature=1.0, top_p=1.0, seed=None)
    assert (asked.max_tokens, asked.stop, asked.stream) == (None, (), False)


def test_every_setting_arrives() -> None:
    asked = parse(
        max_completion_tokens=7,
        temperature=0,
        top_p=0.5,
        seed=-3,
        stop=["a", "b"],
        stream=True,
        stream_options={"include_usage": True},
    )
    assert asked.sampling == SamplingParams(temperature=0.0, top_p=0.5, seed=-3)
    assert (asked.max_tokens, asked.stop) == (7, ("a", "b"))
    assert asked.stream
    assert asked.include_usage
    assert parse(max_tokens=5).max_tokens == 5
    assert parse(max_tokens=5, max_completion_tokens=5).max_tokens == 5
    assert parse(stop="end").stop == ("end",)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "store": False, "user": "me", "metadata": {"a": "b"}},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}},
        {"logprobs": False, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}},
        {"tools": None, "anything": None, "stop": None, "temperature": None, "stream": None},
    ],
)
def test_what_changes_nothing_may_be_said(fields: dict[str, Any]) -> None:
    assert parse(**fields) == parse()


@pytest.mark.parametrize(
    ("fields", "param", "problem"),
    [
        ({"n": 2}, "n", "n is not supported by this server; it may be left out or 1"),
        ({"n": True}, "n", "n is not supported"),
        ({"tools": [{}]}, "tools", "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"logprobs": 0}, "logprobs", "not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ({"store": True}, "store", "not supported"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "not supported"),
        ({"typo": 1}, "typo", "typo is not supported by this server"),
        ({"temperature": -0.1}, "temperature", "temperature is -0.1, want a number from 0 to 2"),
        ({"temperature": 2.1}, "temperature", "2.1"),
        ({"temperature": "0"}, "temperature", "'0'"),
        ({"temperature": True}, "temperature", "True"),
        ({"top_p": 0}, "top_p", "want a number from above 0 to 1"),
        ({"seed": 1.5}, "seed", "want a whole number"),
        ({"seed": 2**63}, "seed", "want a whole number"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0, want a whole number from 1"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "give one of them"),
        ({"stop": [""]}, "stop", "strings of 1 to 256 characters"),
        ({"stop": [1]}, "stop", "strings of 1 to 256 characters"),
        ({"stop": list("abcde")}, "stop", "5 strings, at most 4"),
        ({"stream": 1}, "stream", "want true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream: true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options", "only include_usage"),
        ({"stream": True, "stream_options": []}, "stream_options", "want an object"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": None}, "messages", "at least one message"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    fields: dict[str, Any], param: str, problem: str
) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert problem in caught.value.message
    assert caught.value.body()["error"]["type"] == "invalid_request_error"


def test_another_model_and_no_json() -> None:
    with pytest.raises(RequestError, match="'gpt' is not served here, only 'm'") as caught:
        parse(model="gpt")
    assert caught.value.body()["error"]["code"] == "model_not_found"
    assert caught.value.status == 404
    for body, problem in ((b"{", "not JSON"), (b"[]", "no JSON object"), (b"\xff", "not JSON")):
        with pytest.raises(RequestError, match=problem):
            parse_request(
                body, model_name="m", limits=RequestLimits(), check_text=lambda text, where: None
            )


def test_too_many_pictures() -> None:
    with pytest.raises(RequestError, match="3 pictures; this server takes 2") as caught:
        parse(messages=[{"role": "user", "content": [show()] * 3}])
    assert caught.value.status == 413


def test_pictures_stand_where_their_parts_stand() -> None:
    conversation = read(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [show("data:1"), text_part("What?"), show("data:2")]},
        {"role": "assistant", "content": [text_part("A star."), text_part("Two.")]},
        {"role": "user", "content": "Sure?"},
    )
    assert conversation.system == "Be brief."
    assert conversation.images == ("data:1", "data:2")
    assert conversation.turns == (
        ("<image>\nWhat?\n<image>", "A star.\nTwo."),
        ("Sure?", None),
    )
    assert read({"role": "developer", "content": "x"}, USER).system == "x"
    assert read(USER).system is None


def test_an_answer_may_be_sent_back_as_it_came() -> None:
    echoed = {"role": "assistant", "content": "Hello", "refusal": None, "tool_calls": []}
    assert read(USER, echoed, USER).turns == (("Hi", "Hello"), ("Hi", None))


def test_every_text_is_checked_with_its_place() -> None:
    seen = []
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [show(), text_part("u")]},
        {"role": "assistant", "content": "a"},
        USER,
    ]
    read_messages(messages, lambda text, where: seen.append((text, where)))
    assert seen == [
        ("s", "messages[0].content"),
        ("u", "messages[1].content[1].text"),
        ("a", "messages[2].content"),
        ("Hi", "messages[3].content"),
    ]


ANSWER = {"role": "assistant", "content": "A"}


@pytest.mark.parametrize(
    ("messages", "param", "problem"),
    [
        (["Hi"], "messages[0]", "want an object"),
        ([{"role": "tool", "content": "x"}], "messages[0].role", "role is 'tool'"),
        ([{"role": "user"}], "messages[0].content", "want a string or a list of parts"),
        ([{"role": "user", "content": []}], "messages[0].content", "want a string or a list"),
        ([{"role": "user", "content": " "}], "messages[0].content", "is empty"),
        ([{**USER, "name": "Bob"}], "messages[0].name", "name is not supported"),
        ([USER, {**ANSWER, "tool_calls": [1]}, USER], "messages[1].tool_calls", "not supported"),
        ([USER, USER], "messages[1]", "want a message of the assistant here, got one of the user"),
        ([ANSWER, USER], "messages[0]", "want a message of the user"),
        ([{"role": "system", "content": "s"}, ANSWER], "messages[1]", "want a message of the user"),
        ([USER, {"role": "system", "content": "s"}], "messages[1]", "got one of the system"),
        ([USER, ANSWER], "messages", "the last one must be the user's"),
        ([{"role": "system", "content": "s"}], "messages", "the last one must be the user's"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "want {"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "messages[0].content[0]", "want {"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]}],
            "messages[0].content[0].image_url",
            'want {"url"',
        ),
        (
            [{"role": "user", "content": [{**show(), "image_url": {"url": "", "detail": "low"}}]}],
            "messages[0].content[0].image_url.detail",
            'only "auto"',
        ),
        ([{"role": "system", "content": [show()]}, USER], "messages[0].content[0]", "of the user"),
    ],
)
def test_wrong_messages(messages: list[Any], param: str, problem: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(*messages)
    assert caught.value.param == param
    assert problem in caught.value.message


def test_limits_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="--max-queue: max_queue is 0"):
        EngineSettings(max_queue=0)
    with pytest.raises(ConfigError, match="--max-images"):
        RequestLimits(max_images=0)
