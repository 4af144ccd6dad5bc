"""Figures of a server in Prometheus' text format. Values in, text out: no HTTP, no clock.

The format is https://prometheus.io/docs/instrumenting/exposition_formats/. Where vLLM has a figure
of the same meaning the name is its name, with ``internvl_chat:`` in place of ``vllm:``
(https://docs.vllm.ai/en/latest/usage/metrics.html), and so are the bounds of its histograms.
Everything is counted on the server's event loop, by one thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

PREFIX: Final = "internvl_chat:"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

FIRST_TOKEN_SECONDS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_SECONDS: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
REQUEST_SECONDS: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)
HTTP_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
TOKENS_PER_SECOND: Final = (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 500)

_Key = tuple[tuple[str, str], ...]


def _written(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _labels(key: Iterable[tuple[str, str]]) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in key]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"


def sample(name: str, kind: str, about: str, value: float, **labels: str) -> Iterator[str]:
    """The lines of a figure that is read when it is asked for.

    Args:
        name: of the figure; that of a counter ends in ``_total``.
        kind: ``gauge`` or ``counter``.
        about: what it counts, in which unit.
        value: now.
        **labels: which one it is.
    """
    yield from _head(name, kind, about)
    yield f"{name}{_labels(labels.items())} {_written(value)}"


class MetricCounter:
    """What only grows, by labels.

    Args:
        name: ends in ``_total``.
        about: what it counts.
        **labels: of all its samples.
    """

    def __init__(self, name: str, about: str, **labels: str) -> None:
        self._name, self._about, self._own = name, about, tuple(labels.items())
        self._values: dict[_Key, float] = {}

    def add(self, amount: float = 1, **labels: str) -> None:
        """Count so many; 0 makes the sample appear."""
        key = (*self._own, *labels.items())
        self._values[key] = self._values.get(key, 0) + amount

    def lines(self) -> Iterator[str]:
        """As Prometheus reads it."""
        yield from _head(self._name, "counter", self._about)
        for key, value in self._values.items():
            yield f"{self._name}{_labels(key)} {_written(value)}"


class MetricHistogram:
    """How often values fell below bounds, by labels.

    Args:
        name: with its unit.
        about: what is measured.
        bounds: upper ones, ascending; beyond them is infinity.
        **labels: of all its samples.
    """

    def __init__(self, name: str, about: str, bounds: Sequence[float], **labels: str) -> None:
        self._name, self._about, self._own = name, about, tuple(labels.items())
        self._bounds = tuple(bounds)
        self._counts: dict[_Key, list[int]] = {}
        self._sums: dict[_Key, float] = {}

    def observe(self, value: float, **labels: str) -> None:
        """Count a value where it belongs: a bound is part of what is below it."""
        key = (*self._own, *labels.items())
        counts = self._counts.setdefault(key, [0] * (len(self._bounds) + 1))
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[key] = self._sums.get(key, 0.0) + value

    def lines(self) -> Iterator[str]:
        """As Prometheus reads it: each bucket with all below it."""
        yield from _head(self._name, "histogram", self._about)
        for key, counts in self._counts.items():
            below = 0
            bounds = [*(repr(float(bound)) for bound in self._bounds), "+Inf"]
            for bound, count in zip(bounds, counts, strict=True):
                below += count
                yield f"{self._name}_bucket{_labels((*key, ('le', bound)))} {below}"
            yield f"{self._name}_sum{_labels(key)} {_written(self._sums[key])}"
            yield f"{self._name}_count{_labels(key)} {below}"


class AnswerFigures:
    """Answers of the engine: how they ended, how long they took, how long they are.

    Args:
        model_name: label of all figures.
    """

    def __init__(self, model_name: str) -> None:
        def histogram(name: str, about: str, bounds: Sequence[float]) -> MetricHistogram:
            return MetricHistogram(f"{PREFIX}{name}", about, bounds, model_name=model_name)

        self.ended = MetricCounter(
            f"{PREFIX}request_success_total",
            "Answers by how they ended: stop, length, abort (the client went away), error.",
            model_name=model_name,
        )
        for reason in ("stop", "length", "abort", "error"):
            self.ended.add(0, finished_reason=reason)
        self.images = MetricCounter(
            f"{PREFIX}images_total", "Images of answered requests.", model_name=model_name
        )
        self.images.add(0)
        self.first_token = histogram(
            "time_to_first_token_seconds",
            "From a request's arrival to the first token of its answer.",
            FIRST_TOKEN_SECONDS,
        )
        self.per_token = histogram(
            "request_time_per_output_token_seconds",
            "Mean time of an answer's tokens after the first.",
            TOKEN_SECONDS,
        )
        self.speed = histogram(
            "request_tokens_per_second",
            "Tokens of an answer per second, after the first.",
            TOKENS_PER_SECOND,
        )
        self.whole = histogram(
            "e2e_request_latency_seconds",
            "From a request's arrival to its answer's end.",
            REQUEST_SECONDS,
        )
        self.prompt_tokens = histogram(
            "request_prompt_tokens", "Tokens of a prompt, images included.", TOKENS
        )
        self.answer_tokens = histogram(
            "request_generation_tokens", "Tokens of an answer, its end included.", TOKENS
        )

    def lines(self) -> Iterator[str]:
        """As Prometheus reads them."""
        for figure in vars(self).values():
            yield from figure.lines()


class HttpFigures:
    """Requests of any path, under the names of prometheus-fastapi-instrumentator, as at vLLM."""

    def __init__(self) -> None:
        self.in_progress = 0
        self.requests = MetricCounter(
            "http_requests_total",
            "Requests by path, method and status; 499: the client went away before the answer.",
        )
        self.seconds = MetricHistogram(
            "http_request_duration_seconds",
            "From a request's head to its answer's end.",
            HTTP_SECONDS,
        )
        self.errors = MetricCounter(
            f"{PREFIX}request_errors_total", "Refused or failed requests by the code they are told."
        )

    def lines(self) -> Iterator[str]:
        """As Prometheus reads them."""
        about = "Requests that have no whole answer yet."
        yield from sample("http_requests_inprogress", "gauge", about, self.in_progress)
        for figure in (self.requests, self.seconds, self.errors):
            yield from figure.lines()


def process_lines(
    *, resident_bytes: int, cpu_seconds: float, started: float, open_files: int
) -> Iterator[str]:
    """Figures of the process, under the names that every Prometheus client gives them.

    Args:
        resident_bytes: memory.
        cpu_seconds: of all its threads so far.
        started: seconds since 1970.
        open_files: file descriptors, connections included.
    """
    for name, kind, about, value in (
        ("process_resident_memory_bytes", "gauge", "Resident memory in bytes.", resident_bytes),
        ("process_cpu_seconds_total", "counter", "CPU time in seconds.", cpu_seconds),
        ("process_start_time_seconds", "gauge", "Start in seconds since 1970.", started),
        ("process_open_fds", "gauge", "Open file descriptors.", open_files),
    ):
        yield from sample(name, kind, about, value)


def engine_lines(
    model_name: str, *, gauges: Mapping[str, tuple[str, int]], tokens: Mapping[str, tuple[str, int]]
) -> Iterator[str]:
    """What the engine is doing, and the tokens that it has read and written.

    Args:
        model_name: label of all figures.
        gauges: name without prefix -> (what it is, how many now).
        tokens: likewise, of what only grows.
    """
    for kind, figures in (("gauge", gauges), ("counter", tokens)):
        for name, (about, value) in figures.items():
            yield from sample(f"{PREFIX}{name}", kind, about, value, model_name=model_name)
