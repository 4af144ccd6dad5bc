"""Requests that cannot be answered, as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any

_CODES = {401: "invalid_api_key", 404: "not_found", 413: "too_large", 429: "queue_full"}


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
        """The JSON of OpenAI's errors."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}
