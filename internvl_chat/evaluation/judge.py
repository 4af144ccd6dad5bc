"""A judge model behind any OpenAI-compatible endpoint, and how scorers ask one.

A scorer collects what it wants to know and asks it all at once; a judge that can do so works on
several requests at a time, any other object with ``ask`` is asked in order::

    requests = [
        JudgeRequest(
            key="yes_no", fields={"question": q, "prediction": p}, temperature=0, max_tokens=1024
        )
        for q, p in unclear
    ]
    replies = ask_all(judge, requests)  # list[str | None], one per request, in order

:func:`ask_until` asks those whose reply cannot be read once more at the next temperature::

    verdicts = ask_until(judge, requests, read_verdict, temperatures=(0, 0.5, 1, 1.5, 2))

``read_verdict`` returns None for a reply that it cannot read. The keys and the fields that each
wants are in :data:`~internvl_chat.evaluation.judge_prompts.FIELDS`. A reply is None only where
none could be had; the reason is counted in :meth:`OpenAIJudge.summary`. Equal requests (text,
model, temperature, max_tokens, attempt) are asked once and their reply is kept, so scoring under
several rules, or again after a crash, costs nothing. :func:`ask_until` counts attempts at the same
temperature, so that each of them is really asked.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from internvl_chat.errors import ConfigError
from internvl_chat.evaluation.judge_cache import JudgeCache, content_sha256
from internvl_chat.evaluation.judge_endpoint import (
    OPENAI_URL,
    JudgeEndpoint,
    JudgeFailure,
    JudgePacer,
    JudgeReply,
    endpoint_url,
)
from internvl_chat.evaluation.judge_prompts import JudgePrompts, load_judge_prompts
from internvl_chat.evaluation.task import Judge

logger = logging.getLogger(__name__)
Parsed = TypeVar("Parsed")

VERSIONS = {
    "gpt-4-turbo": "gpt-4-1106-preview",
    "gpt-4-0125": "gpt-4-0125-preview",
    "gpt-4-0409": "gpt-4-turbo-2024-04-09",
    "chatgpt-1106": "gpt-3.5-turbo-1106",
    "chatgpt-0125": "gpt-3.5-turbo-0125",
    "gpt-4o": "gpt-4o-2024-05-13",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
}
"""Names of judges -> what the endpoint is asked for; any other name is asked for as it is."""
PRICES = {
    "gpt-4-0613": (30.0, 60.0),
    "gpt-4-1106-preview": (10.0, 30.0),
    "gpt-4-0125-preview": (10.0, 30.0),
    "gpt-4-turbo-2024-04-09": (10.0, 30.0),
    "gpt-3.5-turbo-1106": (1.0, 2.0),
    "gpt-3.5-turbo-0125": (0.5, 1.5),
    "gpt-4o-2024-05-13": (5.0, 15.0),
    "gpt-4o-mini-2024-07-18": (0.15, 0.6),
}
"""Version -> US dollars per million tokens of prompt and reply, list prices of 2024."""
NO_JUDGE = "exact_matching"
"""The judge's name that means none."""
MAX_FAILURES_IN_A_ROW = 5
"""Requests given up in a row, all tries of each used, after which the endpoint counts as down."""
MAX_RETRY_AFTER_SECONDS = 120.0
"""An endpoint that asks for a longer pause counts as down."""


PROBE_TRIES = 3
"""Of the request that finds out whether a judge answers at all."""


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """One question to a judge."""

    key: str
    """Of ``judge_prompts.yaml``."""
    fields: Mapping[str, str]
    temperature: float
    max_tokens: int
    attempt: int = 0
    """How often it was asked before, as it is, and its reply could not be read."""


@runtime_checkable
class ConcurrentJudge(Protocol):
    """A judge that works on several requests at once."""

    def ask_all(self, requests: Sequence[JudgeRequest]) -> list[str | None]:
        """See the function of this name."""


def ask_all(judge: Judge, requests: Sequence[JudgeRequest]) -> list[str | None]:
    """Replies in the order of the requests, None where none could be had.

    Args:
        judge: any; asked several at a time if it has ``ask_all`` itself.
        requests: equal ones are asked once by such a judge.
    """
    if isinstance(judge, ConcurrentJudge):
        return judge.ask_all(requests)
    return [
        judge.ask(one.key, one.fields, temperature=one.temperature, max_tokens=one.max_tokens)
        for one in requests
    ]


def ask_until(
    judge: Judge,
    requests: Sequence[JudgeRequest],
    read: Callable[[str], Parsed | None],
    *,
    temperatures: Sequence[float],
) -> list[Parsed | None]:
    """What is read of replies; those that cannot be read are asked for again, hotter or as before.

    Args:
        judge: any.
        requests: their own temperature is not used.
        read: reply -> value; None asks again.
        temperatures: of each try, as many as there are tries.

    Returns:
        In the order of the requests; None where no reply could be read.
    """
    found: list[Parsed | None] = [None] * len(requests)
    waiting = list(range(len(requests)))
    for number, temperature in enumerate(temperatures):
        attempt = list(temperatures[:number]).count(temperature)
        hotter = [
            replace(requests[place], temperature=temperature, attempt=attempt) for place in waiting
        ]
        for place, reply in zip(waiting, ask_all(judge, hotter), strict=True):
            found[place] = None if reply is None else read(reply)
        waiting = [place for place in waiting if found[place] is None]
        if not waiting:
            break
    return found


@dataclass(frozen=True, kw_only=True)
class JudgeLimits:
    """How hard an endpoint is asked."""

    most_at_once: int = 8
    most_tries: int = 5
    reply_seconds: float = 60.0
    """For one try."""
    pause_seconds: float = 1.0
    """After a first overload that names no time; doubled with each in a row."""
    longest_pause_seconds: float = 20.0

    def __post_init__(self) -> None:
        for name in ("most_at_once", "most_tries", "reply_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} of the judge is {getattr(self, name)}, want more than 0")


class OpenAIJudge:
    """A judge that is asked over HTTP, several requests at once; safe to use from threads.

    Whatever the endpoint does (429, 500, garbage, silence, nothing there), a request ends: with a
    reply, or with None after ``most_tries`` tries. An endpoint that refuses the key, or answers
    none of several requests in a row, is left alone for the rest of the run.

    Args:
        name: as the user says it (``gpt-4-turbo``).
        base_url: ``https://host/v1``.
        api_key: None for a server that wants none. Never shown, logged or written.
        prompts: what is asked.
        cache: where replies are kept.
        limits: how hard the endpoint is asked.
        proxy: that requests go through.
        prices: US dollars per million tokens of prompt and reply; None looks in :data:`PRICES`.
    """

    def __init__(
        self,
        name: str,
        *,
        base_url: str = OPENAI_URL,
        api_key: str | None,
        prompts: JudgePrompts,
        cache: JudgeCache,
        limits: JudgeLimits | None = None,
        proxy: str | None = None,
        prices: tuple[float, float] | None = None,
    ) -> None:
        self.name = name
        self.version = VERSIONS.get(name, name)
        self.prompts = prompts
        self._limits = limits or JudgeLimits()
        self._prices = prices or PRICES.get(self.version)
        self._cache = cache
        self._endpoint = JudgeEndpoint(
            endpoint_url(base_url),
            api_key,
            limit_seconds=self._limits.reply_seconds,
            proxy=proxy,
        )
        self._pacer = JudgePacer(
            self._limits.most_at_once,
            pause_seconds=self._limits.pause_seconds,
            longest_pause_seconds=self._limits.longest_pause_seconds,
        )
        self._tally = _Tally()

    def ask(
        self, key: str, fields: Mapping[str, str], *, temperature: float, max_tokens: int
    ) -> str | None:
        """See :class:`~internvl_chat.evaluation.task.Judge`."""
        body = self._body(key, fields, temperature, max_tokens)
        return self._answer(content_sha256(body), key, body)

    def ask_all(self, requests: Sequence[JudgeRequest]) -> list[str | None]:
        """See the function of this name."""
        asked: dict[str, tuple[str, dict[str, Any]]] = {}
        order = []
        for one in requests:
            body = self._body(one.key, one.fields, one.temperature, one.max_tokens)
            order.append(content_sha256(body, one.attempt))
            asked.setdefault(order[-1], (one.key, body))
        pool = ThreadPoolExecutor(self._limits.most_at_once, thread_name_prefix="judge")
        try:
            futures = {
                sha256: pool.submit(self._answer, sha256, key, body)
                for sha256, (key, body) in asked.items()
            }
            replies = {}
            for number, (sha256, future) in enumerate(futures.items(), start=1):
                replies[sha256] = future.result()
                if number % 100 == 0:
                    logger.info("judge %s: %d of %d replies", self.name, number, len(futures))
        except KeyboardInterrupt:
            self._tally.down = _STOPPED
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return [replies[sha256] for sha256 in order]

    def absence(self) -> str:
        """Why nothing can be asked of it, after a request of a word; empty where it answers.

        Nothing is asked where replies are kept: it has answered then.
        """
        if len(self._cache):
            return ""
        body = {
            "model": self.version,
            "messages": [{"role": "user", "content": "hello"}],
            "temperature": 0.0,
            "max_tokens": 16,
        }
        reason = ""
        for _ in range(PROBE_TRIES):
            outcome = self._try_once(body)
            if isinstance(outcome, JudgeReply) or _is_alive(outcome):
                return ""
            reason = outcome.reason
            if outcome.verdict == "give up" or reason == "timeout":  # a minute of silence will do
                break
        return reason

    def _body(
        self, key: str, fields: Mapping[str, str], temperature: float, max_tokens: int
    ) -> dict[str, Any]:
        return {
            "model": self.version,
            "messages": self.prompts.messages(key, fields),
            "temperature": float(temperature),
            "max_tokens": int(max_tokens),
        }

    def _answer(self, sha256: str, key: str, body: dict[str, Any]) -> str | None:
        kept = self._cache.get(sha256)
        if kept is not None:
            self._tally.replied(sha256, kept, is_new=False)
            return kept.text
        outcome = self._try(body)
        if isinstance(outcome, JudgeFailure):
            self._tally.failed(outcome)
            return None
        self._cache.put(sha256, key, body, outcome)
        self._tally.replied(sha256, outcome, is_new=True)
        return outcome.text

    def _try(self, body: dict[str, Any]) -> JudgeReply | JudgeFailure:
        """Up to ``most_tries`` tries, none once the endpoint counts as down."""
        for number in range(1, self._limits.most_tries + 1):
            outcome = self._try_once(body)
            if isinstance(outcome, JudgeReply) or outcome.verdict != "retry":
                return outcome
            if number < self._limits.most_tries:
                self._tally.retried(outcome)
        return outcome

    def _try_once(self, body: dict[str, Any]) -> JudgeReply | JudgeFailure:
        began = self._pacer.enter()
        outcome: JudgeReply | JudgeFailure = _STOPPED
        try:
            if self._tally.down is not None:
                outcome = self._tally.down
            else:
                outcome = self._endpoint.send(body)
                if isinstance(outcome, JudgeFailure):
                    outcome = _patience(outcome)
        finally:  # a place that is never given back would stop all others
            self._pacer.leave(began, outcome)
        return outcome

    def summary(self) -> dict[str, Any]:
        """For ``run.json``: what was asked, what came of it, what it cost; no key, no address."""
        return {
            "name": self.name,
            "version": self.version,
            "endpoint": "OpenAI" if self._endpoint.url == endpoint_url(OPENAI_URL) else "other",
            "prompts_sha256": self.prompts.sha256(),
            **self._tally.summary(self._prices),
        }

    def close(self) -> None:
        """End the connections and close the file of replies."""
        self._endpoint.close()
        self._cache.close()


class _Tally:
    """Counts over threads, and whether the endpoint is down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()
        self._all: dict[str, JudgeReply] = {}
        self._new: dict[str, JudgeReply] = {}
        self._failed_in_a_row = 0
        self.down: JudgeFailure | None = None
        """Set once: why nothing more is asked."""

    def replied(self, sha256: str, reply: JudgeReply, *, is_new: bool) -> None:
        with self._lock:
            self._all[sha256] = reply
            if is_new:
                self._new[sha256] = reply
                self._failed_in_a_row = 0

    def retried(self, failure: JudgeFailure) -> None:
        with self._lock:
            self._retries[failure.reason] += 1

    def failed(self, failure: JudgeFailure) -> None:
        with self._lock:
            self._failures[failure.reason] += 1
            if failure.verdict == "retry":
                self._failed_in_a_row += 1
            many = self._failed_in_a_row >= MAX_FAILURES_IN_A_ROW
            if self.down is not None or not (many or failure.verdict == "give up"):
                return
            self.down = JudgeFailure(
                reason=f"not asked after: {failure.reason}",
                verdict="skip",
                is_overload=False,
                retry_after_seconds=None,
            )
            logger.warning("the judge is asked nothing more: %s", failure.reason)

    def summary(self, prices: tuple[float, float] | None) -> dict[str, Any]:
        with self._lock:
            return {
                "num_replies": len(self._all),
                "num_without_reply": sum(self._failures.values()),
                "without_reply": dict(sorted(self._failures.items())),
                "retries": dict(sorted(self._retries.items())),
                **_cost(list(self._all.values()), prices),
                "this_session": {
                    "num_replies": len(self._new),
                    **_cost(list(self._new.values()), prices),
                },
            }


_STOPPED = JudgeFailure(
    reason="stopped", verdict="skip", is_overload=False, retry_after_seconds=None
)


def _is_alive(failure: JudgeFailure) -> bool:
    """Whether a judge that works may say so to a word: busy, silent, or of other wants."""
    return failure.verdict == "skip" or failure.reason in ("http 429", "empty")


def _patience(failure: JudgeFailure) -> JudgeFailure:
    """A pause that is too long to be waited for ends the asking."""
    wait = failure.retry_after_seconds
    if wait is None or wait <= MAX_RETRY_AFTER_SECONDS:
        return failure
    reason = f"{failure.reason}, wants {wait:.0f} s"
    return JudgeFailure(
        reason=reason, verdict="give up", is_overload=False, retry_after_seconds=None
    )


def _cost(replies: Sequence[JudgeReply], prices: tuple[float, float] | None) -> dict[str, Any]:
    asked = sum(one.prompt_tokens for one in replies)
    said = sum(one.completion_tokens for one in replies)
    dollars = None if prices is None else round((asked * prices[0] + said * prices[1]) / 1e6, 6)
    return {"prompt_tokens": asked, "completion_tokens": said, "cost_usd": dollars}


def open_judge(
    name: str | None,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    prompts: Path | None = None,
    replies: Path | None = None,
    limits: JudgeLimits | None = None,
    environ: Mapping[str, str],
) -> OpenAIJudge | None:
    """The judge that options and environment name; None where there is none, with a log line.

    Args:
        name: of ``--judge`` or the task's own; ``exact_matching`` and None mean none.
        base_url: of ``--judge-base-url``; else ``OPENAI_API_BASE_JUDGE``, ``OPENAI_BASE_URL`` or
            ``OPENAI_API_BASE``; else OpenAI's.
        api_key: of ``--judge-key``; else ``OPENAI_API_KEY_JUDGE`` or ``OPENAI_API_KEY``. A base
            URL without a key is asked without one.
        prompts: of ``--judge-prompts``.
        replies: JSON lines file that keeps replies, in the run's folder.
        limits: how hard the endpoint is asked.
        environ: ``os.environ``; ``LOCAL_LLM`` there goes before every name, ``EVAL_PROXY`` is a
            proxy for the judge alone.

    Raises:
        ConfigError: of the base URL, the key, the prompts or the file of replies.
    """
    if name is None or name == NO_JUDGE:
        return None
    url = base_url or _first(environ, "OPENAI_API_BASE_JUDGE", "OPENAI_BASE_URL", "OPENAI_API_BASE")
    key = api_key or _first(environ, "OPENAI_API_KEY_JUDGE", "OPENAI_API_KEY")
    if url is None and key is None:
        logger.warning("no judge: neither OPENAI_API_KEY nor OPENAI_BASE_URL is set")
        return None
    return OpenAIJudge(
        _first(environ, "LOCAL_LLM") or name,
        base_url=url or OPENAI_URL,
        api_key=key,
        prompts=load_judge_prompts(prompts),
        cache=JudgeCache(replies),
        limits=limits,
        proxy=_first(environ, "EVAL_PROXY"),
    )


def _first(environ: Mapping[str, str], *names: str) -> str | None:
    return next((environ[name].strip() for name in names if environ.get(name, "").strip()), None)
