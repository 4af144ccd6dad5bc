"""OpenAI's chat completions: what is understood, what each mistake is told, and the replies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from internvl_chat.serve.protocol import ChatCompletionRequest, read_request
from internvl_chat.serve.refusals import RequestError
from internvl_chat.serve.replies import ReplyWriter, count_usage, model_list
from internvl_chat.serve.turns import ChatTurns, SentImage, read_turns
from tests.support.serving import text_part

USER = {"role": "user", "content": "Hi"}


def parse(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [USER], **fields}
    return read_request(json.dumps(body).encode(), "m")


def read(*messages: Any, check_text: Any = lambda text, where: None) -> ChatTurns:
    return read_turns(parse(messages=list(messages)).messages, check_text)


def show(url: str = "data:x") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_defaults_are_openais() -> None:
    asked = parse()
    assert (asked.temperature, asked.top_p, asked.seed) == (1.0, 1.0, None)
    assert (asked.most_tokens, asked.stop, asked.stream) == (None, [], False)
    assert not asked.include_usage


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
    assert (asked.temperature, asked.top_p, asked.seed) == (0.0, 0.5, -3)
    assert (asked.most_tokens, asked.stop) == (7, ["a", "b"])
    assert asked.stream
    assert asked.include_usage
    assert parse(max_tokens=5).most_tokens == 5
    assert parse(max_tokens=5, max_completion_tokens=5).most_tokens == 5
    assert parse(stop="end").stop == ["end"]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "store": False, "user": "me", "metadata": {"a": "b"}},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}},
        {"logprobs": False, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}},
        {"anything": [], "else": {}, "more": ""},
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
        ({"do_sample": False}, "do_sample", "do_sample is not supported"),
        ({"typo": 1}, "typo", "typo is not supported by this server"),
        ({"temperature": -0.1}, "temperature", "temperature is -0.1, want a number from 0 to 2"),
        ({"temperature": 2.1}, "temperature", "2.1"),
        ({"temperature": "0"}, "temperature", "'0'"),
        ({"temperature": True}, "temperature", "True"),
        ({"top_p": 1.1}, "top_p", "want a number from 0 to 1"),
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
    for model, code in ((None, "missing_required_parameter"), (5, "invalid_value")):
        with pytest.raises(RequestError, match="model: want the name 'm'") as caught:
            parse(model=model)
        assert (caught.value.status, caught.value.code) == (400, code)
    for body, problem in ((b"{", "not JSON"), (b"[]", "no JSON object"), (b"\xff", "not JSON")):
        with pytest.raises(RequestError, match=problem):
            read_request(body, "m")


def test_images_stand_where_their_parts_stand() -> None:
    conversation = read(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [show("data:1"), text_part("What?"), show("data:2")]},
        {"role": "assistant", "content": [text_part("A star."), text_part("Two.")]},
        {"role": "user", "content": "Sure?"},
    )
    assert conversation.system_message == "Be brief."
    assert conversation.images == (
        SentImage("data:1", "messages[1].content[0].image_url"),
        SentImage("data:2", "messages[1].content[2].image_url"),
    )
    assert conversation.turns == (
        ("<image>\nWhat?\n<image>", "A star.\nTwo."),
        ("Sure?", None),
    )
    assert read({"role": "developer", "content": "x"}, USER).system_message == "x"
    assert read(USER).system_message is None


@pytest.mark.parametrize(
    ("parts", "question"),
    [
        ("T1", "<image>\nT"),
        ("T12", "<image>\n<image>\nT"),
        ("1T", "<image>\nT"),
        ("12T", "<image>\n<image>\nT"),
        ("1T2", "<image>\nT\n<image>"),
        ("T1U", "T\n<image>\nU"),
        ("T1U2", "T\n<image>\nU\n<image>"),
        ("TU1", "T\nU\n<image>"),
        ("1TU", "<image>\nT\nU"),
        ("T", "T"),
        ("TU", "T\nU"),
        ("12", "<image>\n<image>"),
        (" T 1 ", "<image>\nT"),
        (" 1 ", "<image>"),
    ],
)
def test_the_only_text_follows_its_images(parts: str, question: str) -> None:
    """In every message of the history: digits are images, letters and blanks are texts."""
    content = [show(f"data:{one}") if one.isdigit() else text_part(one) for one in parts]
    asked = {"role": "user", "content": content}
    conversation = read(asked, {"role": "assistant", "content": "A"}, asked)
    assert conversation.turns == ((question, "A"), (question, None))
    urls = [f"data:{one}" for one in parts if one.isdigit()]
    assert [image.url for image in conversation.images] == urls * 2


def test_the_system_and_the_answers_keep_every_part() -> None:
    parts = [text_part("a"), text_part(""), text_part("b")]
    conversation = read({"role": "system", "content": parts}, USER)
    assert conversation.system_message == "a\n\nb"


@pytest.mark.parametrize("detail", ["auto", "low", "high", "original", None])
def test_every_detail_is_the_same_image(detail: str | None) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:1", "detail": detail}}
    asked = {"role": "user", "content": [part, text_part("What?")]}
    assert read(asked) == read({"role": "user", "content": [show("data:1"), text_part("What?")]})


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
    read(*messages, check_text=lambda text, where: seen.append((text, where)))
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
        ([{"role": "user", "content": [{}]}], "messages[0].content[0]", "want {"),
        (
            [{"role": "user", "content": [{"type": "text", "text": 1}]}],
            "messages[0].content[0].text",
            "text is 1, want a string",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "messages[0].content[0].text",
            "text: want a string",
        ),
        (
            [{"role": "user", "content": [{**text_part("a"), "size": 1}]}],
            "messages[0].content[0].size",
            "size is not supported",
        ),
        *(
            (
                [{"role": "user", "content": [text_part("a"), {"type": kind, kind: {}}]}],
                "messages[0].content[1].type",
                f"is '{kind}'; this server takes parts of the types text and image_url",
            )
            for kind in ("input_audio", "file", "refusal", "video_url")
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]}],
            "messages[0].content[0].image_url",
            'want {"url"',
        ),
        (
            [{"role": "user", "content": [{**show(), "image_url": {"url": "", "detail": "med"}}]}],
            "messages[0].content[0].image_url.detail",
            "detail is 'med', want auto, low, high or original",
        ),
        (
            [{"role": "user", "content": [{**show(), "image_url": {"url": "", "max_pixels": 1}}]}],
            "messages[0].content[0].image_url.max_pixels",
            "is not supported",
        ),
        ([{"role": "system", "content": [show()]}, USER], "messages[0].content[0]", "of the user"),
    ],
)
def test_wrong_messages(messages: list[Any], param: str, problem: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(*messages)
    assert caught.value.param == param
    assert problem in caught.value.message


HEAD = {"id": "chatcmpl-1", "created": 5, "model": "m"}
USED = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def events(raw: bytes) -> list[Any]:
    lines = raw.decode().split("\n\n")
    assert lines.pop() == ""
    told = [line.removeprefix("data: ") for line in lines]
    return [one if one == "[DONE]" else json.loads(one) for one in told]


def replies(*, include_usage: bool = False) -> ReplyWriter:
    return ReplyWriter(**HEAD, include_usage=include_usage)  # type: ignore[arg-type]


def chunk(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return {**HEAD, "object": "chat.completion.chunk", "choices": [choice]}


def test_a_whole_answer() -> None:
    message = {"role": "assistant", "content": "star", "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    told = replies().completion("star", "stop", count_usage(7, 2))
    assert json.loads(told.model_dump_json()) == {
        **HEAD,
        "object": "chat.completion",
        "choices": [choice],
        "usage": USED,
    }


def test_a_stream_without_usage() -> None:
    stream = (
        replies().opening() + replies().piece("星") + replies().closing("length", count_usage(7, 2))
    )
    assert events(stream) == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "星"}),
        chunk({}, "length"),
        "[DONE]",
    ]


def test_a_stream_with_usage() -> None:
    """Every chunk has the field, as OpenAI's have; only the last one, without a choice, says it."""
    one = replies(include_usage=True)
    assert events(one.opening() + one.closing("stop", count_usage(7, 2))) == [
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
    for status in (400, 401, 404, 405, 408, 413, 415, 429, 500, 503):
        error = RequestError("no", status=status).body()["error"]
        told[status] = (error["type"], error["code"])
    assert told == {
        400: ("invalid_request_error", "invalid_value"),
        401: ("invalid_request_error", "invalid_api_key"),
        404: ("invalid_request_error", "not_found"),
        405: ("invalid_request_error", "method_not_supported"),
        408: ("invalid_request_error", "request_timeout"),
        413: ("invalid_request_error", "too_large"),
        415: ("invalid_request_error", None),
        429: ("rate_limit_error", "queue_full"),
        500: ("server_error", None),
        503: ("server_error", None),
    }
