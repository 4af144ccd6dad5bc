"""A stand-in for huggingface.co on this machine: every repository holds two small files."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 40


def files_of(repository: str) -> dict[str, bytes]:
    """What a repository holds, by path."""
    return {
        "config.json": json.dumps({"name": repository}).encode(),
        "sub/part.txt": repository.encode(),
    }


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as ``hf download`` asks for."""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def _answer(self, *, with_body: bool) -> None:
        body, headers = self._found()
        self.send_response(200 if headers is not None else 404)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _found(self) -> tuple[bytes, dict[str, str] | None]:
        path = self.path.split("?")[0]
        if asked := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
            siblings = [{"rfilename": name} for name in files_of(asked[1])]
            body = {"_id": "0", "id": asked[1], "sha": COMMIT, "siblings": siblings}
            return json.dumps(body).encode(), {"Content-Type": "application/json"}
        if asked := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}
                for name, content in files_of(asked[1]).items()
            ]
            return json.dumps(tree).encode(), {"Content-Type": "application/json"}
        if asked := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = files_of(asked[1]).get(asked[2])
            if content is not None:
                return content, {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": COMMIT}
        return b"", None


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextmanager
def local_hub() -> Iterator[str]:
    """Serve; gives the address for ``HF_ENDPOINT``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
