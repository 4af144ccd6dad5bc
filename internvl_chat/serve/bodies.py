"""Bodies of requests, read under a deadline: who sends slowly holds up nobody but himself."""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import Request
from starlette.requests import ClientDisconnect

from internvl_chat.serve.refusals import RequestError
from internvl_chat.serve.settings import MB, RequestLimits

_LARGEST_BODIES_AT_ONCE: Final = 4
"""Bodies that are being read hold no more memory than so many of the largest allowed."""


class BodyReader:
    """Reads the bodies of one server, whose memory they share.

    Args:
        limits: of a body's size and of the time in which it must have come.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._num_bytes: dict[asyncio.Task[bytes], int] = {}
        """Of each body that is being read, the one that began first first."""

    def __len__(self) -> int:
        """How many bodies have not come whole."""
        return len(self._num_bytes)

    async def read(self, request: Request) -> bytes:
        """The whole body.

        Raises:
            RequestError: another type than JSON, too large, too slow, or broken off; or no memory
                is left for bodies, and this one has been on its way for the longest time.
        """
        _require_json(request)
        self._require_size(int(request.headers.get("content-length", 0)))
        task = asyncio.ensure_future(self._collect(request))
        self._num_bytes[task] = 0
        try:
            await asyncio.wait((task,), timeout=self._limits.receive_seconds)
            if not task.done():
                raise RequestError(
                    f"the body had not arrived after {self._limits.receive_seconds:g} s "
                    "(--receive-seconds)",
                    status=408,
                )
            if task.cancelled():
                raise RequestError("too many bodies arrive at once; try again later", status=503)
            return task.result()
        except ClientDisconnect as err:
            raise RequestError("the connection was closed before the body's end") from err
        finally:
            task.cancel()
            self._num_bytes.pop(task, None)

    async def _collect(self, request: Request) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            self._require_size(len(body))
            self._num_bytes[task] = len(body)
            self._make_room()
        return bytes(body)

    def _require_size(self, num_bytes: int) -> None:
        most = self._limits.max_request_bytes
        if num_bytes > most:
            raise RequestError(
                f"the body is larger than {most / MB:g} MB (--max-request-mb)", status=413
            )

    def _make_room(self) -> None:
        """Give up bodies until the others fit, the one that has taken longest first."""
        most = _LARGEST_BODIES_AT_ONCE * self._limits.max_request_bytes
        while sum(self._num_bytes.values()) > most:
            oldest = next(iter(self._num_bytes))
            del self._num_bytes[oldest]
            oldest.cancel()  # if it is the one that runs: at its next wait


def _require_json(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page in a browser can send other types to this machine without being asked.
        raise RequestError("want Content-Type: application/json", status=415)
