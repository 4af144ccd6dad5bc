"""``/openapi.json``: the interface as it is, out of the models that check the requests.

OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0). What pydantic's schemas cannot know is added:
that ``null`` is the same as leaving a field out, that a string is a list of one stop string, which
keywords are taken without being followed, and that others may only be empty.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from internvl_chat import __version__
from internvl_chat.serve.parameters import NEUTRAL, WITHOUT_EFFECT
from internvl_chat.serve.protocol import MAX_STOPS, ChatCompletionRequest
from internvl_chat.serve.refusals import RequestError
from internvl_chat.serve.replies import ChatCompletion, ChatCompletionChunk, model_info, model_list

Schema = dict[str, Any]

_REF: Final = "#/components/schemas/{model}"
_EMPTY: Final[Schema] = {
    "enum": [None, "", [], {}],
    "description": "Not supported: may only be empty.",
}
_ERRORS: Final = {
    400: "Something in the request cannot be followed; `param` says which, `code` why.",
    401: "No key, or another one.",
    403: "The model cannot be deleted.",
    404: "Another model.",
    408: "The body had not arrived in time.",
    413: "Beyond a limit of the server.",
    415: "The body is no JSON by its Content-Type.",
    429: "As many requests wait as may; Retry-After says when to try again.",
    500: "Generation failed; the server's log says why.",
    503: "The server is ending.",
}
_ABOUT: Final = (
    "The part of OpenAI's chat completions that a vision-language model needs. Answers carry "
    "`x-request-id`, by which the server's log knows them. An error within a stream is its last "
    "event, in place of `[DONE]`."
)


def openapi_schema(model_name: str, *, has_key: bool) -> Schema:
    """The description of a server.

    Args:
        model_name: the only one that is served.
        has_key: whether ``/v1`` wants one.
    """
    schema: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "internvl-chat", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "paths": _paths(model_name, has_key),
        "components": {"schemas": _schemas(model_name)},
    }
    if has_key:
        bearer = {"type": "http", "scheme": "bearer", "description": "--api-key of the server"}
        schema["components"]["securitySchemes"] = {"bearer": bearer}
    return schema


# ---- paths --------------------------------------------------------------------------------------


def _paths(model_name: str, has_key: bool) -> Schema:
    guarded: Schema = {"security": [{"bearer": []}]} if has_key else {}
    denied = (401,) if has_key else ()
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "Of the model; it may hold slashes.",
    }

    def guard(operation: Schema, *statuses: int) -> Schema:
        errors = {str(status): _error(status) for status in sorted((*denied, *statuses))}
        answers = {**operation.get("responses", {}), **errors}
        return {**operation, **guarded, "responses": answers}

    listed = {"200": _json("The one model.", {"$ref": _REF.format(model="ModelList")})}
    one = {"200": _json("The model.", {"$ref": _REF.format(model="Model")})}
    return {
        "/v1/chat/completions": {"post": guard(_completion(model_name), *_OF_COMPLETIONS)},
        "/v1/models": {"get": guard({"summary": "What is served", "responses": listed})},
        "/v1/models/{name}": {
            "parameters": [name],
            "get": guard({"summary": "The model by its name", "responses": one}, 404),
            "delete": guard({"summary": "Refused"}, 403, 404),
        },
        "/health": {"get": _health()},
        "/metrics": {"get": {"summary": "Figures for Prometheus", "responses": _text("plain")}},
        "/docs": {"get": {"summary": "This interface as a page", "responses": _text("html")}},
        "/openapi.json": {
            "get": {
                "summary": "This interface for programs",
                "responses": {"200": _json("OpenAPI 3.1.", {"type": "object"})},
            }
        },
    }


_OF_COMPLETIONS: Final = (400, 404, 408, 413, 415, 429, 500, 503)


def _completion(model_name: str) -> Schema:
    question = {"role": "user", "content": "What is 2 plus 3?"}
    example = {"model": model_name, "messages": [question], "temperature": 0}
    body = {"schema": {"$ref": _REF.format(model="ChatCompletionRequest")}, "example": example}
    whole = {"schema": {"$ref": _REF.format(model="ChatCompletion")}}
    pieces = {"schema": {"$ref": _REF.format(model="ChatCompletionChunk")}}
    return {
        "summary": "An answer, at once or in pieces",
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {
            "200": {
                "description": "The answer. With `stream`, events `data: {...}`, each a chunk, "
                "and `data: [DONE]` at the end.",
                "content": {"application/json": whole, "text/event-stream": pieces},
            }
        },
    }


def _health() -> Schema:
    counts = ("running", "waiting", "answered", "cancelled", "failed", "receiving")
    properties: Schema = {name: {"type": "integer", "minimum": 0} for name in counts}
    properties["status"] = {"enum": ["ok", "stopped"]}
    body = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "summary": "Whether it answers, and what it is doing",
        "responses": {"200": _json("It answers.", body), "503": _json("It has stopped.", body)},
    }


def _json(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _text(kind: str) -> Schema:
    content = {f"text/{kind}": {"schema": {"type": "string"}}}
    return {"200": {"description": "As text.", "content": content}}


def _error(status: int) -> Schema:
    found = _json(_ERRORS[status], {"$ref": _REF.format(model="Error")})
    if status in (429, 503):
        about = {"description": "Seconds.", "schema": {"type": "string"}}
        found["headers"] = {"Retry-After": about}
    return found


# ---- schemas ------------------------------------------------------------------------------------


def _schemas(model_name: str) -> Schema:
    found: Schema = {"Error": _error_schema(), **_model_schemas(model_name)}
    for reply in (ChatCompletion, ChatCompletionChunk):
        found |= _with_parts(reply, mode="serialization")
    asked = _with_parts(ChatCompletionRequest, mode="validation")
    for schema in asked.values():
        schema["additionalProperties"] = _EMPTY
    asked["TextPart"]["properties"]["type"] = {"const": "text"}
    asked["ImagePart"]["properties"]["type"] = {"const": "image_url"}
    for part in ("TextPart", "ImagePart"):
        asked[part]["properties"]["prompt_cache_breakpoint"] = {"description": "No effect."}
    asked["Message"]["properties"]["content"]["oneOf"][1]["minItems"] = 1
    request = asked["ChatCompletionRequest"]["properties"]
    request["model"] = {"const": model_name}
    request["messages"]["minItems"] = 1
    strings = {**request["stop"], "maxItems": MAX_STOPS}
    request["stop"] = {"anyOf": [strings["items"], strings]}
    for name, (_, _, schema) in WITHOUT_EFFECT.items():
        request[name] = {**schema, "description": "No effect."}
    for name, values in NEUTRAL.items():
        about = "Not supported: may only have the value that changes nothing."
        request[name] = {"enum": list(values), "description": about}
    for schema in asked.values():
        _let_null_mean_nothing(schema)
    options = {"properties": {"stream_options": {"type": "object"}}, "required": ["stream_options"]}
    stream = {"properties": {"stream": {"const": True}}, "required": ["stream"]}
    asked["ChatCompletionRequest"] |= {"if": options, "then": stream}
    return found | asked


def _with_parts(model: type[BaseModel], *, mode: Any) -> Schema:
    """A model's schema and those that it refers to, by name."""
    schema = model.model_json_schema(ref_template=_REF, mode=mode)
    parts = schema.pop("$defs", {})
    return {name: _plain(part) for name, part in {**parts, model.__name__: schema}.items()}


def _plain(value: Any) -> Any:
    """Without pydantic's titles, which repeat the names, and docstrings' double backquotes."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {k: _plain(v) for k, v in value.items() if k != "title" or not isinstance(v, str)}
    if isinstance(kept.get("description"), str):
        kept["description"] = kept["description"].replace("``", "`")
    return kept


def _let_null_mean_nothing(schema: Schema) -> None:
    """``null`` is allowed for what is not required."""
    for name, field in schema["properties"].items():
        if name in schema.get("required", []) or not field.keys() - {"description"}:
            continue
        kinds = field.get("anyOf", [field])
        if "enum" in field:
            field["enum"] = [value for value in field["enum"] if value is not None] + [None]
        elif {"type": "null"} not in kinds:
            outer = {key: field[key] for key in ("description", "default") if key in field}
            bare = [{k: v for k, v in kind.items() if k not in outer} for kind in kinds]
            schema["properties"][name] = {"anyOf": [*bare, {"type": "null"}], **outer}


def _error_schema() -> Schema:
    body = RequestError("what is wrong and how to mend it").body()["error"]
    text = {"type": "string"}
    maybe = {"type": ["string", "null"]}
    kinds = {"enum": ["invalid_request_error", "rate_limit_error", "server_error"]}
    properties = {"message": text, "type": kinds, "param": maybe, "code": maybe}
    error = {"type": "object", "properties": properties, "required": list(body)}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


def _model_schemas(model_name: str) -> Schema:
    """Of what ``GET /v1/models`` tells: each value as it is, but for the time."""
    one = model_info(model_name, 0)
    fields: Schema = {key: {"const": value} for key, value in one.items()}
    fields["created"] = {"type": "integer", "description": "Seconds since 1970."}
    model = {"type": "object", "properties": fields, "required": list(one)}
    listed = {"object": {"const": model_list(model_name, 0)["object"]}}
    ref = {"$ref": _REF.format(model="Model")}
    listed["data"] = {"type": "array", "items": ref, "minItems": 1, "maxItems": 1}
    return {
        "Model": model,
        "ModelList": {"type": "object", "properties": listed, "required": list(listed)},
    }
