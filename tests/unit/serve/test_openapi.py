"""``/openapi.json`` says of a body what the server says of it, and ``/docs`` stands alone."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import pytest

from internvl_chat.serve.openapi import openapi_schema
from internvl_chat.serve.protocol import read_request
from internvl_chat.serve.reference_page import PAGE_HEADERS, reference_page
from internvl_chat.serve.refusals import RequestError
from internvl_chat.serve.replies import ReplyWriter, count_usage

OPEN, LOCKED = (openapi_schema("m", has_key=has_key) for has_key in (False, True))
TEXT = {"type": "text", "text": "Hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}
TYPES: dict[str, tuple[type, ...]] = {
    **{"string": (str,), "object": (dict,), "array": (list,), "null": (type(None),)},
    **{"integer": (int,), "number": (int, float), "boolean": (bool,)},
}


def same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """JSON Schema, as far as ours goes."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return is_valid(value, OPEN["components"]["schemas"][name])
    for key, wanted in (("anyOf", (1, 2, 3)), ("oneOf", (1,))):
        if key in schema and sum(is_valid(value, one) for one in schema[key]) not in wanted:
            return False
    if "enum" in schema and not any(same(value, one) for one in schema["enum"]):
        return False
    if "const" in schema and not same(value, schema["const"]):
        return False
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        fits = [isinstance(value, TYPES[kind]) for kind in kinds]
        if not any(fits) or (isinstance(value, bool) and "boolean" not in kinds):
            return False
    if "if" in schema and is_valid(value, schema["if"]) and not is_valid(value, schema["then"]):
        return False
    return is_within(value, schema)


def is_within(value: Any, schema: dict[str, Any]) -> bool:
    if isinstance(value, dict):
        known = schema.get("properties", {})
        other = schema.get("additionalProperties", {})
        return set(schema.get("required", [])) <= value.keys() and all(
            is_valid(one, known.get(name, other)) for name, one in value.items()
        )
    size, words = value, ("minimum", "maximum")
    if isinstance(value, str | list):
        end = "Items" if isinstance(value, list) else "Length"
        size, words = len(value), (f"min{end}", f"max{end}")
        if isinstance(value, list) and not all(is_valid(v, schema.get("items", {})) for v in value):
            return False
    if not isinstance(size, int | float):
        return True
    bounds = schema.get(words[0], -(2**70)), schema.get(words[1], 2**70)
    return bool(bounds[0] <= size <= bounds[1] and size < schema.get("exclusiveMaximum", 2**70))


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **more}]}


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),
        ({"model": "x"}, False),
        ({"model": None}, False),
        ({"messages": []}, False),
        ({"messages": None}, False),
        (user([TEXT, IMAGE]), True),
        (user([]), False),
        (user(None), False),
        (user([{**TEXT, "type": "video_url"}]), False),
        (user([{**TEXT, "prompt_cache_breakpoint": {"a": 1}}]), True),
        (user([{**IMAGE, "image_url": "data:,"}]), False),
        (user([{**IMAGE, "image_url": {"url": "data:,", "detail": "huge"}}]), False),
        (user("Hi", refusal=None, tool_calls=[]), True),
        (user("Hi", name="me"), False),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, False),
        *[({"temperature": t}, ok) for t, ok in ((0, True), (2, True), (2.1, False), ("1", False))],
        *[({"top_p": p}, ok) for p, ok in ((0.5, True), (-0.1, False), (None, True))],
        *[({"max_tokens": n}, ok) for n, ok in ((1, True), (0, False), (1.5, False), (None, True))],
        *[({"seed": n}, ok) for n, ok in ((-(2**63), True), (2**63, False), (True, False))],
        *[({"stop": s}, ok) for s, ok in (("a", True), ("", False), (["a"] * 4, True))],
        *[({"stop": s}, ok) for s, ok in ((["a"] * 5, False), ([""], False), ("a" * 257, False))],
        *[({"stream": s}, ok) for s, ok in ((True, True), (1, False), (None, True))],
        ({"stream": True, "stream_options": {"include_usage": True}}, True),
        ({"stream_options": {"include_usage": True}}, False),
        ({"stream_options": None}, True),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, False),
        *[({"n": n}, ok) for n, ok in ((1, True), (2, False), (True, False), (None, True))],
        *[({"tools": t}, ok) for t, ok in (([], True), ([{}], False), (None, True))],
        *[({"user": u}, ok) for u, ok in (("a", True), (1, False), (None, True))],
        *[({"metadata": m}, ok) for m, ok in (({"a": "b"}, True), ({"a": 1}, False), ([], False))],
        *[({"prediction": p}, ok) for p, ok in (({"content": []}, True), ({}, False))],
        *[({"web_search_options": w}, ok) for w, ok in ((None, True), ({}, False))],
        *[({"prompt_cache_retention": r}, ok) for r, ok in (("24h", True), ("1h", False))],
        *[({"best_of": b}, ok) for b, ok in ((None, True), ("", True), (2, False))],
    ],
)
def test_a_body_is_valid_where_it_is_taken(changes: dict[str, Any], taken: bool) -> None:
    import orjson

    body = {"model": "m", **user("Hi"), **changes}
    schema = {"$ref": "#/components/schemas/ChatCompletionRequest"}
    try:
        if "seed" in changes and changes["seed"] == 2**63:  # no number of orjson's
            raise RequestError("too large")
        read_request(orjson.dumps(body), "m")
        was_taken = True
    except RequestError:
        was_taken = False
    assert (was_taken, is_valid(body, schema)) == (taken, taken)


@pytest.mark.parametrize("include_usage", [False, True])
def test_replies_are_as_described(include_usage: bool) -> None:
    import orjson

    replies = ReplyWriter(id="i", model="m", created=1, include_usage=include_usage)
    usage = count_usage(3, 2)
    sent = replies.opening() + replies.piece("Hi") + replies.closing("stop", usage)
    chunks = [one.removeprefix(b"data: ") for one in sent.split(b"\n\n") if b"[DONE]" not in one]
    for chunk in filter(None, chunks):
        schema = {"$ref": "#/components/schemas/ChatCompletionChunk"}
        assert is_valid(orjson.loads(chunk), schema), chunk
    whole = orjson.loads(replies.completion("Hi", "stop", usage).model_dump_json())
    assert is_valid(whole, {"$ref": "#/components/schemas/ChatCompletion"})


def test_the_key_is_told_where_there_is_one() -> None:
    for path, item in LOCKED["paths"].items():
        for verb in item.keys() & {"get", "post", "delete"}:
            guarded = path.startswith("/v1")
            assert ("security" in item[verb]) == guarded
            assert ("401" in item[verb]["responses"]) == guarded
    assert "securitySchemes" not in OPEN["components"]
    assert all("security" not in op for item in OPEN["paths"].values() for op in item.values())


@pytest.mark.parametrize("schema", [OPEN, LOCKED])
def test_the_page_loads_nothing_and_lists_everything(schema: dict[str, Any]) -> None:
    page = reference_page(schema)
    assert not re.search(r"https?://|\bsrc=|url\(|@import|<link", page)
    for path in schema["paths"]:
        assert f"<code>{path}</code>" in page
    fields = schema["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert all(f"<td><code>{name}</code>" in page for name in fields)
    assert ('id="key"' in page) == (schema is LOCKED)
    policy = PAGE_HEADERS["Content-Security-Policy"]
    for tag in ("style", "script"):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
