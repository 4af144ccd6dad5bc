"""Connections of clients that are slow, silent or many, which uvicorn keeps for ever.

A deadline for the head of a request, for what is left of a body after its answer, and for a client
to take an answer; the body itself is read by :mod:`internvl_chat.serve.bodies`. Where there are too
many connections, those go that have been silent or slow for the longest time.
"""

from __future__ import annotations

import asyncio
import resource
from http import HTTPStatus
from typing import Any, Final, Literal

import h11
import orjson
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from internvl_chat.serve.refusals import RequestError

_SPARE_FILES: Final = 256
"""Of the files that the process may open: for weights, libraries and connections being accepted."""
_MOST_CONNECTIONS: Final = 1000
BACKLOG: Final = 128
"""Connections accepted at a time; fewer than the spare files."""

_Phase = Literal["head", "rest of a body"]


def most_connections() -> int:
    """How many connections this process may hold."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return max(16, min(_MOST_CONNECTIONS, files - _SPARE_FILES))


class ConnectionConfig(uvicorn.Config):
    """uvicorn's configuration with what :class:`PatientProtocol` allows.

    Args:
        app: an ASGI application.
        receive_seconds: for a request's head to come.
        max_connections: at once.
        **settings: uvicorn's.
    """

    def __init__(
        self, app: Any, *, receive_seconds: float, max_connections: int, **settings: Any
    ) -> None:
        super().__init__(app, http=PatientProtocol, backlog=BACKLOG, **settings)
        self.receive_seconds = receive_seconds
        self.max_connections = max_connections


class PatientProtocol(H11Protocol):
    """uvicorn's protocol whose patience ends."""

    config: ConnectionConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase: _Phase | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writing_timer: asyncio.TimerHandle | None = None
        self._since = self.loop.time()
        """When this client's turn to send began, in seconds of the loop."""

    # ------------------------------------------------------------------ uvicorn's hooks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """uvicorn's; somebody else's connection may have to go."""
        super().connection_made(transport)
        self._watch()
        self._make_room()

    def data_received(self, data: bytes) -> None:
        """uvicorn's, which handles what is complete."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """uvicorn's, which begins the next request on this connection."""
        super().on_response_complete()
        self._since = self.loop.time()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn's."""
        self._enter(None)
        self._stop_writing_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """uvicorn's: the client does not take what is sent."""
        super().pause_writing()
        seconds = self.config.receive_seconds
        self._writing_timer = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """uvicorn's."""
        self._stop_writing_timer()
        super().resume_writing()

    def shutdown(self) -> None:
        """uvicorn's, which lets answers finish; what has not come whole is not waited for."""
        if self.conn.their_state is h11.SEND_BODY:
            self._refuse(RequestError("the server is shutting down", status=503))
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's, for what is no HTTP."""
        self._refuse(RequestError(msg))

    # ------------------------------------------------------------------ deadlines

    @property
    def is_receiving(self) -> bool:
        """Whether it is the client's turn: no request has come whole that waits for its answer."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _watch(self) -> None:
        """See what the client is to send now, and begin its deadline if that is new."""
        if self.transport.is_closing():
            self._enter(None)
        elif self.conn.their_state is h11.IDLE:
            self._enter("head")
        elif self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            # The answer did not wait for the body, which is read and dropped: closed now, the
            # connection would be reset before the client has seen the answer.
            self._enter("rest of a body")
        else:
            self._enter(None)

    def _enter(self, phase: _Phase | None) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if phase is not None:
            self._timer = self.loop.call_later(self.config.receive_seconds, self._is_late)

    def _stop_writing_timer(self) -> None:
        if self._writing_timer is not None:
            self._writing_timer.cancel()
            self._writing_timer = None

    def _is_late(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            seconds = self.config.receive_seconds
            self._refuse(
                RequestError(
                    f"the request's head had not arrived after {seconds:g} s (--receive-seconds)",
                    status=408,
                )
            )
        else:
            self.transport.close()

    def _refuse(self, problem: RequestError) -> None:
        """Answer in the protocol's own name, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = orjson.dumps(problem.body())
            headers = [("content-type", "application/json"), ("connection", "close")]
            headers.append(("content-length", str(len(body))))
            head = h11.Response(
                status_code=problem.status,
                headers=headers,
                reason=HTTPStatus(problem.status).phrase.encode(),
            )
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _make_room(self) -> None:
        """Close the connections that have been silent or slow for longest if there are too many."""
        open_ones = [one for one in self.connections if not one.transport.is_closing()]
        receiving = [
            one for one in open_ones if isinstance(one, PatientProtocol) and one.is_receiving
        ]
        receiving.sort(key=lambda one: one._since)
        for one in receiving[: max(0, len(open_ones) - self.config.max_connections)]:
            one.transport.abort()
