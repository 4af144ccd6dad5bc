"""Why a request gets an error: the error itself, and checks of pydantic that say what is wanted.

:func:`refusal` turns what pydantic found into the one error that a client gets, in words of this
package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pydantic import BeforeValidator, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError

_CODES: Final = {
    400: "invalid_value",
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_supported",
    408: "request_timeout",
    413: "too_large",
    429: "queue_full",
}
UNSUPPORTED: Final = "unsupported_parameter"


class RequestError(Exception):
    """A request that gets an error instead of an answer.

    Args:
        message: what is wrong and how to mend it.
        status: of HTTP.
        param: the part of the request, such as ``messages[0].content``.
        code: short name for programs; by default from ``status``.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code or _CODES.get(status)

    def body(self) -> dict[str, Any]:
        """The JSON in place of an answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def want(text: str) -> WrapValidator:
    """Whatever is wrong with a value, say what it should be."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError as err:
            raise PydanticCustomError("want", text) from err

    return WrapValidator(check)


def shape(is_right: Callable[[Any], object], text: str) -> BeforeValidator:
    """Say what a value should be unless it looks like it; what is inside is checked afterwards."""

    def check(value: Any) -> Any:
        if not is_right(value):
            raise PydanticCustomError("want", text)
        return value

    return BeforeValidator(check)


def refused(text: str, *, field: str = "", code: str = "") -> PydanticCustomError:
    """An error about a field of the object that is being checked, or about the value itself."""
    return PydanticCustomError("refused", "{text}", {"text": text, "field": field, "code": code})


def refusal(err: ValidationError) -> RequestError:
    """The first error, with its place as ``messages[0].content``."""
    first = err.errors(include_url=False)[0]
    context = first.get("ctx", {})
    steps = [step for step in first["loc"] if not str(step).startswith("<")]  # tags of unions
    steps += [context["field"]] if context.get("field") else []
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)[1:]
    if first["type"] == "refused":
        return RequestError(f"{param} {first['msg']}", param=param, code=context["code"] or None)
    value = first["input"]
    told = f" is {value!r}," if isinstance(value, str | int | float) else ":"
    want = f"want {first['msg']}" if first["type"] == "want" else first["msg"]
    code = "missing_required_parameter" if value is None else None
    return RequestError(f"{param}{told} {want}", param=param, code=code)
