"""Images from other machines; a server of our own plays them, which by default is not asked."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.serve.refusals import RequestError
from internvl_chat.serve.remote import RemoteImages, is_public

BODY = b"content" * 1000
Answers = dict[str, bytes]


def reply(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def redirect(location: str) -> bytes:
    return reply(status="302 Found", Location=location)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


class Other:
    """A web server with canned answers by path; ``paths`` are those that were asked for."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.paths: list[str] = []
        self.num_connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.paths.append(head.split()[1].decode())
            answer = self.answers.get(self.paths[-1])
            if answer is None:
                await reader.read()  # never answers
            else:
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def run(
    use: Callable[[str], Awaitable[Any]], other: Other, *, context: ssl.SSLContext | None = None
) -> Any:
    """Call ``use`` with ``host:port`` of the server."""

    async def main() -> Any:
        server = await asyncio.start_server(other.serve, "127.0.0.1", 0, ssl=context)
        try:
            port = server.sockets[0].getsockname()[1]
            return await use(f"127.0.0.1:{port}")
        finally:
            server.close()

    return asyncio.run(main())


def fetch(answers: Answers, path: str = "/a", **settings: Any) -> bytes:
    """Fetch a path of a server that may be asked."""
    remote = RemoteImages(**{"max_bytes": 10_000, "is_allowed": lambda address: True, **settings})
    return run(lambda place: remote.fetch(f"http://{place}{path}", "image 1"), Other(answers))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("127.8.9.10", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.251", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_an_image_is_fetched() -> None:
    assert fetch({"/a": reply(BODY)}) == BODY
    assert fetch({"/a": CHUNKED}) == b"abcde"
    assert fetch({"/a?x=1": reply(BODY)}, "/a?x=1") == BODY


def test_redirects_are_followed() -> None:
    answers = {"/a": redirect("/b"), "/b": redirect("c"), "/c": reply(BODY)}
    assert fetch(answers) == BODY


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({"/a": reply(status="404 Not Found")}, "the other server answers 404"),
        ({"/a": reply(status="304 Not Modified")}, "answers 304"),
        ({"/a": reply(status="302 Found")}, "answers 302"),
        ({"/a": redirect("/a")}, "more than 3 redirects"),
        ({"/a": redirect("file:///etc/passwd")}, "only http"),
        ({"/a": redirect("//user:word@host/")}, "only http"),
        ({"/a": b"hello\r\n\r\n"}, "cannot be fetched (RemoteProtocolError)"),
        ({"/a": reply(BODY)[:-1]}, "cannot be fetched (RemoteProtocolError)"),
    ],
)
def test_what_cannot_be_had(answers: Answers, problem: str) -> None:
    with pytest.raises(RequestError) as caught:
        fetch(answers)
    assert caught.value.status == 400
    assert problem in caught.value.message


def test_too_large_a_file_is_not_read_to_its_end() -> None:
    with pytest.raises(RequestError, match=r"larger than 0\.006 MB") as caught:
        fetch({"/a": reply(BODY)}, max_bytes=6000)
    assert caught.value.status == 413
    assert fetch({"/a": reply(BODY)}, max_bytes=len(BODY)) == BODY


def test_a_server_that_does_not_answer() -> None:
    with pytest.raises(RequestError, match="not there after"):
        fetch({}, timeout_seconds=0.2)


def test_nobody_listens() -> None:
    remote = RemoteImages(max_bytes=1, is_allowed=lambda address: True)
    with pytest.raises(RequestError, match="cannot be fetched"):
        asyncio.run(remote.fetch("http://127.0.0.1:1/", "image 1"))
    with pytest.raises(RequestError, match="cannot be fetched"):
        asyncio.run(remote.fetch("http://127.0.0.1:99999/", "image 1"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "127.1", "2130706433"])
def test_our_own_machine_is_not_asked(host: str) -> None:
    other = Other({"/a": reply(BODY)})
    remote = RemoteImages(max_bytes=10_000)

    async def use(place: str) -> None:
        with pytest.raises(RequestError, match="not on the public internet"):
            await remote.fetch(f"http://{host}:{place.partition(':')[2]}/a", "image 1")

    run(use, other)
    assert other.num_connections == 0


def test_a_redirect_to_where_we_must_not_ask() -> None:
    """Each hop's address is looked at anew."""
    asked: list[str] = []

    def is_allowed(address: str) -> bool:
        asked.append(address)
        return len(asked) == 1

    other = Other({"/a": redirect("/b"), "/b": reply(BODY)})
    remote = RemoteImages(max_bytes=10_000, is_allowed=is_allowed)

    async def use(place: str) -> None:
        with pytest.raises(RequestError, match="not on the public internet"):
            await remote.fetch(f"http://{place}/a", "image 1")

    run(use, other)
    assert other.paths == ["/a"]
    assert len(asked) == 2


def test_the_address_that_was_looked_at_is_the_one_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name could tell another one a moment later."""
    connected: list[str] = []
    connect = asyncio.open_connection

    async def record(host: str, *args: Any, **kwargs: Any) -> Any:
        connected.append(host)
        return await connect(host, *args, **kwargs)

    monkeypatch.setattr(asyncio, "open_connection", record)
    remote = RemoteImages(max_bytes=10_000, is_allowed=lambda address: address == "127.0.0.1")

    async def use(place: str) -> bytes:
        return await remote.fetch(f"http://127.1:{place.partition(':')[2]}/a", "image 1")

    assert run(use, Other({"/a": reply(BODY)})) == BODY
    assert connected == ["127.0.0.1"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_https_checks_the_name_of_the_host(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    settings: dict[str, Any] = {"max_bytes": 10_000, "is_allowed": lambda address: True}

    async def use(place: str) -> bytes:
        port = place.partition(":")[2]
        for host, remote in (
            ("127.0.0.1", RemoteImages(**settings, ssl_context=trusting)),  # another name
            ("localhost", RemoteImages(**settings)),  # an unknown authority
        ):
            with pytest.raises(RequestError, match="SSLCertVerificationError"):
                await remote.fetch(f"https://{host}:{port}/a", "image 1")
        known = RemoteImages(**settings, ssl_context=trusting)
        return await known.fetch(f"https://localhost:{port}/a", "image 1")

    assert run(use, Other({"/a": reply(BODY)}), context=context) == BODY
