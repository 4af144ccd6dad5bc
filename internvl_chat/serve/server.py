"""A uvicorn server that ends its answers before it ends."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from internvl_chat.errors import ConfigError
from internvl_chat.serve.connections import ConnectionConfig, most_connections
from internvl_chat.serve.engine import Engine

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 5
"""After the grace period: for the errors to reach the clients."""


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, which does not listen yet; port 0 takes a free one.

    Raises:
        ConfigError: no such host, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        place = socket.socket(family, kind, protocol)
    except OSError as err:
        raise ConfigError(f"{host}: {err.strerror}", where="--host") from err
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(address)
    except OSError as err:
        place.close()
        raise ConfigError(
            f"{host}:{port} cannot be bound: {err.strerror}",
            where="--port",
            fix="Choose another one; 0 takes a free one.",
        ) from err
    return place


def url_of(place: socket.socket) -> str:
    """``http://host:port`` of a bound socket."""
    host, port = place.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_open(place: socket.socket) -> bool:
    """Whether other machines may reach a bound socket."""
    return not ipaddress.ip_address(place.getsockname()[0].partition("%")[0]).is_loopback


class Server(uvicorn.Server):
    """Tells when it listens; at its end the engine's answers may finish, then fail.

    Args:
        app: the routes.
        engine: what they ask, started already.
        grace_seconds: how long answers may go on after SIGINT or SIGTERM.
        receive_seconds: for a request's head to come.
        on_ready: called when connections are taken.
    """

    def __init__(
        self,
        app: ASGIApp,
        engine: Engine,
        *,
        grace_seconds: int,
        receive_seconds: float,
        on_ready: Callable[[], None],
    ) -> None:
        config = ConnectionConfig(
            app,
            receive_seconds=receive_seconds,
            max_connections=most_connections(),
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=grace_seconds + _FLUSH_SECONDS,
        )
        super().__init__(config)
        self._engine = engine
        self._grace_seconds = grace_seconds
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, which ends with listening."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, which waits for the open connections and with them for their answers."""
        self._engine.stop(self._grace_seconds)
        await super().shutdown(sockets)


def serve(server: Server, place: socket.socket, engine: Engine) -> None:
    """Run until SIGINT or SIGTERM, then end in order.

    Args:
        server: not yet running.
        place: bound; closed at the end.
        engine: the server's.
    """
    # uvicorn raises the signals that ended it once more, for the handlers that were there before.
    before = {
        number: signal.signal(number, _has_ended) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        server.run(sockets=[place])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        engine.stop(0)
        if not engine.join(_FLUSH_SECONDS):
            logger.warning("a step of generation has not ended; it is left behind")
            # Python's own end would abort the process: it takes down threads inside PyTorch.
            logging.shutdown()
            os._exit(0)


def _has_ended(number: int, frame: FrameType | None) -> None:
    """The signal has done its work."""
