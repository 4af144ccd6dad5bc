"""Images from other machines, fetched so that a client cannot make us ask our own network.

Every address of a host is looked at before the first of them is connected to, that very address is
connected to (a second look-up could tell another), and every redirect starts anew.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

import h11

from internvl_chat.serve.refusals import RequestError
from internvl_chat.serve.settings import MB

_MAX_REDIRECTS: Final = 3
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_CHUNK_BYTES: Final = 65536
# Networks that carry an IPv4 address inside, which may be a private one.
_CARRIERS: Final = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "2002::/16", "2001::/32")))


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet: not private, loopback, link-local or such."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif any(ip in network for network in _CARRIERS):
            return False
    return ip.is_global and not ip.is_multicast


class _FetchError(Exception):
    """Why an image could not be had."""


@dataclass(frozen=True, kw_only=True)
class RemoteImages:
    """Fetches images over http and https."""

    max_bytes: int
    timeout_seconds: float = 10.0
    """For everything together: names, connections, redirects and the file."""
    is_allowed: Callable[[str], bool] = is_public
    """Which IP addresses may be asked."""
    ssl_context: ssl.SSLContext | None = None
    """Whom to trust; None: the system's authorities."""

    async def fetch(self, url: str, where: str) -> bytes:
        """The file behind a URL.

        Raises:
            RequestError: 400 for what cannot be had, 413 for too large a file.
        """
        try:
            return await asyncio.wait_for(self._follow(url), self.timeout_seconds)
        except asyncio.TimeoutError as err:
            problem = f"not there after {self.timeout_seconds:g} s"
            raise RequestError(f"{where}: {problem}", param=where, code="remote_image") from err
        except _TooLargeError as err:
            raise RequestError(
                f"{where}: the image's file is larger than {self.max_bytes / MB:g} MB "
                "(--max-image-mb)",
                status=413,
                param=where,
            ) from err
        except _FetchError as err:
            raise RequestError(f"{where}: {err}", param=where, code="remote_image") from err
        except (OSError, ValueError, h11.ProtocolError) as err:
            # no connection, no certificate, no URL, no HTTP
            raise RequestError(
                f"{where}: cannot be fetched ({type(err).__name__})",
                param=where,
                code="remote_image",
            ) from err

    async def _follow(self, url: str) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
                raise _FetchError("only http(s)://host/path is fetched")
            status, location, body = await self._get(parts)
            if status == 200:
                return body
            if status not in _REDIRECTS or not location:
                raise _FetchError(f"the other server answers {status}")
            url = urljoin(url, location)
        raise _FetchError(f"more than {_MAX_REDIRECTS} redirects")

    async def _addresses(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        if not addresses or not all(map(self.is_allowed, addresses)):
            raise _FetchError("the host is not on the public internet")
        return addresses

    async def _connect(
        self, parts: SplitResult
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To the first address that takes it: a host may have some that are out of reach."""
        host = parts.hostname or ""
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        context = (self.ssl_context or ssl.create_default_context()) if is_tls else None
        problem: OSError | None = None
        for address in await self._addresses(host, port):
            try:
                return await asyncio.open_connection(
                    address, port, ssl=context, server_hostname=host if is_tls else None
                )
            except OSError as err:
                problem = err
        raise _FetchError("no connection") if problem is None else problem

    async def _get(self, parts: SplitResult) -> tuple[int, str, bytes]:
        """Ask for one URL: status, ``Location`` and, of a 200, the body."""
        reader, writer = await self._connect(parts)
        try:
            connection = h11.Connection(h11.CLIENT)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {
                "Host": parts.netloc,
                "Accept": "image/*",
                "Accept-Encoding": "identity",
                "Connection": "close",
                "User-Agent": "internvl-chat",
            }
            ask = h11.Request(method="GET", target=target, headers=list(headers.items()))
            writer.write(connection.send(ask) or b"")
            writer.write(connection.send(h11.EndOfMessage()) or b"")
            await writer.drain()
            return await self._receive(reader, connection)
        finally:
            writer.close()

    async def _receive(
        self, reader: asyncio.StreamReader, connection: h11.Connection
    ) -> tuple[int, str, bytes]:
        status, location, body = 0, "", bytearray()
        while True:
            event: Any = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(_CHUNK_BYTES))
            elif isinstance(event, h11.Response):
                status = event.status_code
                location = dict(event.headers).get(b"location", b"").decode("latin-1")
                if status != 200:
                    return status, location, b""
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self.max_bytes:
                    raise _TooLargeError
            elif isinstance(event, h11.EndOfMessage):
                return status, location, bytes(body)


class _TooLargeError(Exception):
    """More bytes than allowed."""
