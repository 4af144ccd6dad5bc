"""Replies of judges, kept by content: a run that was killed asks nothing twice."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from internvl_chat.errors import ConfigError
from internvl_chat.evaluation.judge_endpoint import JudgeReply

logger = logging.getLogger(__name__)


def content_sha256(body: Mapping[str, Any], attempt: int = 0) -> str:
    """Hash of a request: model, messages, temperature, max_tokens, and which attempt it is.

    Equal requests have equal replies, whatever the judge would say a second time; a scorer that
    could not read a reply counts its attempts.
    """
    numbered = {**body, "attempt": attempt} if attempt else body
    text = json.dumps(numbered, sort_keys=True)  # ASCII, lone surrogates escaped
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class JudgeCache:
    """A JSON lines file to which each reply is appended when it comes; for threads.

    A line that a killed process left half written is passed over, and so is what is no reply.

    Args:
        path: None keeps replies in memory only.

    Raises:
        ConfigError: the file cannot be read or written.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._replies: dict[str, JudgeReply] = {}
        self._file: TextIO | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = path.read_bytes() if path.exists() else b""
            self._read(raw, str(path))
            self._file = path.open("a", encoding="utf-8", newline="\n")
            if raw and not raw.endswith(b"\n"):
                self._file.write("\n")
        except OSError as err:
            raise ConfigError(
                f"the judge's replies cannot be kept ({err.strerror})", where=str(path)
            ) from err

    def _read(self, raw: bytes, where: str) -> None:
        bad = 0
        for line in raw.split(b"\n"):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                reply = JudgeReply(
                    text=record["reply"],
                    prompt_tokens=int(record["prompt_tokens"]),
                    completion_tokens=int(record["completion_tokens"]),
                )
                if not isinstance(reply.text, str):
                    raise TypeError("reply is no text")
                self._replies[record["sha256"]] = reply
            except (ValueError, LookupError, TypeError):
                bad += 1
        if bad:
            logger.warning("%s: %d lines are no replies, they will be asked again", where, bad)

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, sha256: str) -> JudgeReply | None:
        """The reply to a request of this hash, if there was one."""
        with self._lock:
            return self._replies.get(sha256)

    def put(self, sha256: str, key: str, body: Mapping[str, Any], reply: JudgeReply) -> None:
        """Keep a reply.

        Args:
            sha256: of :func:`content_sha256`.
            key, body: what was asked, for people who read the file; without the messages.
            reply: to it.
        """
        settings = {name: value for name, value in body.items() if name != "messages"}
        record = {
            "sha256": sha256,
            "key": key,
            **settings,
            "reply": reply.text,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
        }
        line = json.dumps(record) + "\n"
        with self._lock:
            self._replies[sha256] = reply
            if self._file is not None:
                self._file.write(line)
                self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
