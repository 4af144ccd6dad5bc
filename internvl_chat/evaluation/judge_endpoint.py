"""An OpenAI-compatible endpoint: one request, what became of it, how many may run at once."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from internvl_chat.errors import ConfigError

OPENAI_URL = "https://api.openai.com/v1"
PATH = "/chat/completions"
MAX_REPLY_BYTES = 4 << 20
Verdict = Literal["retry", "skip", "give up"]
"""After a failure: ask again, leave this request, or ask this endpoint nothing more."""


@dataclass(frozen=True, kw_only=True)
class JudgeReply:
    """What a judge said."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    """Of both 0 where the endpoint does not say."""


@dataclass(frozen=True, kw_only=True)
class JudgeFailure:
    """Why there is no reply."""

    reason: str
    """A few words, for counting: ``http 429``, ``timeout``, ``garbage``."""
    verdict: Verdict
    is_overload: bool
    """Fewer requests at once may help."""
    retry_after_seconds: float | None
    """What the endpoint asks for."""


def endpoint_url(base_url: str) -> str:
    """Where requests go: ``https://host/v1`` and the full URL of chat completions both mean it.

    Raises:
        ConfigError: no http(s) URL, or one that carries a key.
    """
    try:
        parts = urlsplit(base_url.strip())
        parts.port  # noqa: B018  raises for one that is none
    except ValueError as err:
        raise ConfigError(
            f"the judge's base URL is none ({err})", where="--judge-base-url"
        ) from err
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            "the judge's base URL names no http or https server",
            where="--judge-base-url",
            fix=f"Want http(s)://HOST[:PORT]/v1, such as {OPENAI_URL}.",
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "the judge's base URL has a user, a query or a fragment",
            where="--judge-base-url",
            fix="A key belongs in OPENAI_API_KEY, where it is never shown.",
        )
    path = parts.path.rstrip("/").removesuffix(PATH)
    return f"{parts.scheme}://{parts.netloc}{path}{PATH}"


class JudgeEndpoint:
    """Sends one request at a time per calling thread; holds the key and shows it to nobody.

    Args:
        url: of :func:`endpoint_url`.
        api_key: sent as a bearer token; None for a server that wants none.
        limit_seconds: for a whole reply.
        proxy: URL of a proxy that requests go through, in place of the environment's.
    """

    def __init__(
        self, url: str, api_key: str | None, *, limit_seconds: float, proxy: str | None = None
    ) -> None:
        try:
            import httpx
        except ImportError as err:
            raise ConfigError(
                "a judge needs httpx", where="--judge", fix='pip install "internvl-chat[eval]"'
            ) from err
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError(
                "the judge's key has line ends or characters beyond ASCII",
                where="OPENAI_API_KEY",
                fix="Copy it again.",
            )
        self.url = url
        self._errors = httpx
        self._limit_seconds = limit_seconds
        self._limit_name = "max_tokens"
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._client = httpx.Client(headers=headers, timeout=limit_seconds, proxy=proxy)
        except (ValueError, httpx.InvalidURL, ImportError) as err:
            raise ConfigError(
                f"the judge's proxy cannot be used ({err})",
                where="EVAL_PROXY",
                fix="Set http://HOST:PORT, or unset it.",
            ) from err

    def send(self, body: Mapping[str, Any]) -> JudgeReply | JudgeFailure:
        """Post a chat completion; never raises for what the other side does.

        Args:
            body: model, messages, temperature and max_tokens.
        """
        try:
            status, headers, raw = self._post(body)
        except (self._errors.TimeoutException, TimeoutError):
            return _failure("timeout", "retry", is_overload=True)
        except self._errors.ConnectError:
            return _failure("unreachable", "retry", is_overload=True)
        except (self._errors.HTTPError, ValueError):
            return _failure("connection broken", "retry", is_overload=True)
        if status == 200:
            return parse_reply(raw)
        renamed = b"max_completion_tokens" in raw and self._limit_name == "max_tokens"
        if status == 400 and renamed:  # what newer models of OpenAI want, and say so
            self._limit_name = "max_completion_tokens"
            return self.send(body)
        return parse_refusal(status, headers, raw)

    def _post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        named = {self._limit_name if key == "max_tokens" else key: body[key] for key in body}
        content = json.dumps(named).encode("ascii")  # lone surrogates of an answer pass, escaped
        end = time.monotonic() + self._limit_seconds
        raw = bytearray()
        head = {"Content-Type": "application/json"}
        with self._client.stream("POST", self.url, content=content, headers=head) as response:
            for part in response.iter_bytes():
                raw += part
                if time.monotonic() > end:
                    raise TimeoutError
                if len(raw) > MAX_REPLY_BYTES:
                    raise ValueError("a reply without end")
        return response.status_code, response.headers, bytes(raw)

    def close(self) -> None:
        """End the connections."""
        self._client.close()


def parse_reply(raw: bytes) -> JudgeReply | JudgeFailure:
    """The text and token counts of a chat completion."""
    try:
        content = json.loads(raw)
        text = content["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return _failure("garbage", "retry")
    if isinstance(text, list):  # as parts
        texts = [one.get("text") for one in text if isinstance(one, dict)]
        text = "".join(one for one in texts if isinstance(one, str))
    if text is not None and not isinstance(text, str):
        return _failure("garbage", "retry")
    if not text or not text.strip():
        return _failure("empty", "retry")
    usage = content.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return JudgeReply(
        text=text,
        prompt_tokens=_count(counts.get("prompt_tokens")),
        completion_tokens=_count(counts.get("completion_tokens")),
    )


def parse_refusal(status: int, headers: Mapping[str, str], raw: bytes) -> JudgeFailure:
    """What a status other than 200 means."""
    if status == 429 and b"insufficient_quota" in raw:
        return _failure("http 429, quota used up", "give up")
    if status in (401, 402, 404):
        why = {401: "key refused", 402: "not paid", 404: "no such model or address"}[status]
        return _failure(f"http {status}, {why}", "give up")
    if status in (408, 409, 425, 429) or status >= 500:
        wait = retry_after_seconds(headers, now=time.time())
        return _failure(f"http {status}", "retry", is_overload=True, wait=wait)
    return _failure(f"http {status}", "skip")


def retry_after_seconds(headers: Mapping[str, str], *, now: float) -> float | None:
    """``Retry-After`` in seconds, given as a number or as a date; None if absent or unreadable.

    Args:
        headers: by lower-case name, or of any case if the mapping does not mind.
        now: seconds since 1970.
    """
    value = headers.get("retry-after", "").strip()
    try:
        wait = float(value)
    except ValueError:
        try:
            wait = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return max(wait, 0.0) if math.isfinite(wait) else None


def _failure(
    reason: str, verdict: Verdict, *, is_overload: bool = False, wait: float | None = None
) -> JudgeFailure:
    return JudgeFailure(
        reason=reason, verdict=verdict, is_overload=is_overload, retry_after_seconds=wait
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


class JudgePacer:
    """How many requests run at once: halved on overload, creeping up again, pauses kept by all.

    A burst of refusals counts once: a request that began before the last halving does not halve
    again (additive increase, multiplicative decrease, as TCP does).

    Args:
        most: requests at once, at first and at best.
        pause_seconds: after a first overload that names no time; doubled with each in a row.
        longest_pause_seconds: where the doubling ends.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        most: int,
        *,
        pause_seconds: float,
        longest_pause_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._pause_seconds = pause_seconds
        self._longest = longest_pause_seconds
        self._clock = clock
        self._limit = float(most)
        self._running = 0
        self._resume_at = -math.inf
        self._last_cut = -math.inf
        self._num_cuts = 0
        """In a row."""
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """Requests that may run at once now."""
        return int(self._limit)

    def enter(self) -> float:
        """Wait for a place; the time at which it was had, for :meth:`leave`."""
        with self._changed:
            while True:
                pause = self._resume_at - self._clock()
                if pause <= 0 and self._running < self.limit:
                    self._running += 1
                    return self._clock()
                self._changed.wait(pause if pause > 0 else None)

    def leave(self, began: float, outcome: JudgeReply | JudgeFailure) -> None:
        """Give the place back and learn from what happened."""
        with self._changed:
            self._running -= 1
            if isinstance(outcome, JudgeReply):
                self._limit = min(self._most, self._limit + 1 / self._limit)
                self._num_cuts = 0
            elif outcome.is_overload:
                self._slow_down(began, outcome.retry_after_seconds)
            self._changed.notify_all()

    def _slow_down(self, began: float, wait: float | None) -> None:
        now = self._clock()
        if began >= self._last_cut:
            self._limit = max(1.0, self._limit / 2)
            self._last_cut = now
            self._num_cuts += 1
        if wait is None:
            wait = min(self._pause_seconds * 2 ** (self._num_cuts - 1), self._longest)
        self._resume_at = max(self._resume_at, now + wait)
