"""A stand-in for huggingface.co on this machine.

Unless it is given repositories, every name is one that holds two small files.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0" * 40


def files_of(repository: str) -> dict[str, bytes]:
    """What a repository holds, by path."""
    return {
        "config.json": json.dumps({"name": repository}).encode(),
        "sub/part.txt": repository.encode(),
    }


def commit_of(files: Mapping[str, bytes]) -> str:
    """A commit's name, which follows from its content."""
    digests = {name: _digest(content) for name, content in files.items()}
    return _digest(json.dumps(digests, sort_keys=True).encode())


def files_in(directory: Path) -> dict[str, bytes]:
    """Content of a directory's files, by path in it."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@dataclass
class Repository:
    """A model on the stand-in hub."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False

    def push(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Add a commit at a branch's end; returns its name."""
        commit = commit_of(files)
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def find(self, revision: str) -> str | None:
        """The commit that a revision names."""
        revision = revision.replace("%2F", "/")
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class Hub:
    """The stand-in: what it holds, and what it was asked."""

    repositories: dict[str, Repository] | None
    """None: every name is one of :func:`files_of`."""
    address: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of each request."""
    cuts_after: int | None = None
    """Bytes after which it breaks off a large file, once."""
    small_bytes: int = 10_000
    """Larger files are elsewhere, as those of git-lfs are: answered with a redirect."""

    @property
    def elsewhere(self) -> str:
        """The address of large files: another host's, as far as a client can see."""
        return self.address.replace("127.0.0.1", "localhost")

    def add(self, name: str, files: Mapping[str, bytes]) -> Repository:
        """A new repository with one commit on main."""
        assert self.repositories is not None
        repository = self.repositories[name] = Repository()
        repository.push(files)
        return repository

    def find(self, name: str) -> Repository | None:
        """A repository by its name."""
        if self.repositories is not None:
            return self.repositories.get(name)
        return Repository(commits={COMMIT: files_of(name)}, branches={"main": COMMIT})

    def asked(self, method: str, part: str) -> list[str]:
        """Paths of requests that hold a text."""
        return [path for kind, path, _ in self.requests if kind == method and part in path]


class _Handler(BaseHTTPRequestHandler):
    """As much of the hub's API as downloading asks for."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0]
        wanted = self.headers.get("Range", "")
        self.hub.requests.append((self.command, path, wanted))
        if asked := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._about(asked[1], lambda r, c: _info(asked[1], r, c), asked[2], with_body)
        elif asked := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            deep = "recursive=True" in self.path or "recursive=true" in self.path
            self._about(asked[1], lambda r, c: _tree(r.commits[c], deep), asked[2], with_body)
        elif asked := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(asked[1], asked[2], asked[3], with_body)
        elif asked := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            repository = self.hub.find(asked[1])
            assert repository is not None
            self._content(repository.commits[asked[2]][asked[3]], with_body, {})
        else:
            self._send(404, b"", {}, with_body)

    def _found(self, name: str, revision: str | None, with_body: bool) -> Any:
        """(repository, commit); None where an error was answered."""
        repository = self.hub.find(name)
        if repository is None:  # as the hub does for who has no token
            self._send(401, b"", {"X-Error-Message": "Invalid username or password."}, with_body)
            return None
        if repository.is_gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"}, with_body)
            return None
        commit = repository.find(revision or "main")
        if commit is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, with_body)
            return None
        return repository, commit

    def _about(self, name: str, make: Any, revision: str | None, with_body: bool) -> None:
        found = self._found(name, revision, with_body)
        if found is not None:
            body = json.dumps(make(*found)).encode()
            self._send(200, body, {"Content-Type": "application/json"}, with_body)

    def _file(self, name: str, revision: str, path: str, with_body: bool) -> None:
        found = self._found(name, revision, with_body)
        if found is None:
            return
        repository, commit = found
        content = repository.commits[commit].get(path)
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
            return
        about = {"X-Repo-Commit": commit, "ETag": f'"{_digest(content)}"'}
        if len(content) <= self.hub.small_bytes:
            self._content(content, with_body, about)
            return
        about |= {
            "Location": f"{self.hub.elsewhere}/cdn/{name}/{commit}/{path}",
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
        }
        self._send(302, b"", about, with_body)

    def _content(self, content: bytes, with_body: bool, headers: dict[str, str]) -> None:
        status = 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
            content, status = content[first : last + 1], 206
        cut = self.hub.cuts_after
        if with_body and cut is not None and len(content) > cut:
            self.hub.cuts_after = None
            self._send(status, content, headers, False)
            self.wfile.write(content[:cut])
            self.close_connection = True
            return
        self._send(status, content, headers, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _info(name: str, repository: Repository, commit: str) -> dict[str, Any]:
    siblings = [{"rfilename": path} for path in repository.commits[commit]]
    return {"_id": "0", "id": name, "sha": commit, "siblings": siblings}


def _tree(files: Mapping[str, bytes], deep: bool) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}
        for path, content in files.items()
        if deep or "/" not in path
    ]


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextmanager
def model_hub(repositories: dict[str, Repository] | None) -> Iterator[Hub]:
    """Serve repositories; ``address`` is for ``HF_ENDPOINT``."""
    hub = Hub(repositories=repositories)
    handler = type("_HandlerOfOne", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def local_hub() -> Iterator[str]:
    """Serve a hub on which every name is a model; gives the address for ``HF_ENDPOINT``."""
    with model_hub(None) as hub:
        yield hub.address


def fill_cache(cache: Path, name: str, files: Mapping[str, bytes], branch: str = "main") -> Path:
    """A model as huggingface_hub's cache keeps it, made by hand; returns the commit's folder."""
    commit = commit_of(files)
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for path, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = snapshot / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (2 + path.count("/"))) / "blobs" / blob.name)
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / branch).write_text(commit)
    return snapshot
