"""Continuous batching: one thread owns the model, and answers share its steps. No HTTP here.

Between two steps of generation, requests that wait are read and join the rows that run; rows that
end or are cancelled leave. Requests start in the order in which they came.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from torch import Tensor

from internvl_chat.chat.answer_text import AnswerText
from internvl_chat.errors import ConfigError
from internvl_chat.model.chat import pad_id, stop_settings
from internvl_chat.model.constants import IMG_CONTEXT_TOKEN
from internvl_chat.serve.batch import Batch, EncodedPrompt, Rows, decode, fast_rows, prefill
from internvl_chat.serve.sampling import Sampler, SamplingParams
from internvl_chat.serve.settings import EngineSettings

logger = logging.getLogger(__name__)

FinishReason = Literal["stop", "length"]

# What a pass through the model raises: PyTorch's own (out of memory among them) and Python's on
# values that do not fit. It ends the answers that it concerns; anything else ends the thread.
_MODEL_ERRORS: Final = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    MemoryError,
)
_ATTENTION = {"full_attention", "sliding_attention"}


class QueueFullError(Exception):
    """As many requests wait as may."""


class StoppingError(Exception):
    """The engine takes no more requests."""


@dataclass(frozen=True)
class Piece:
    """Some more text of an answer."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The answer is complete."""

    reason: FinishReason
    """``stop``: the model ended it, or a stop string; ``length``: max_tokens or the context did."""
    num_tokens: int
    """Generated, the end of the turn included."""


@dataclass(frozen=True)
class Failed:
    """The answer ends here, incomplete."""

    problem: str
    is_shutdown: bool = False


Event = Piece | Finished | Failed

_FAILED: Final = Failed("generation failed; the server's log says why")


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A prompt and how it is to be continued."""

    prompt: EncodedPrompt
    max_tokens: int
    sampling: SamplingParams
    stop: tuple[str, ...]
    """Strings that end the answer, beside the template's own."""


@dataclass(frozen=True)
class EngineStats:
    """What the engine is doing, and has done."""

    running: int
    waiting: int
    answered: int
    cancelled: int
    failed: int


class RequestHandle:
    """What cancels a request that was submitted, and tells how far its answer has come."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        # Written by the engine's thread, read by whoever asks how far the answer has come.
        self.num_tokens = 0
        """Of the answer so far."""
        self.first_token_at: float | None = None
        """Monotonic seconds; None before the first token."""
        self.last_token_at = 0.0

    def count_token(self) -> None:
        """One more has been chosen."""
        self.last_token_at = time.monotonic()
        if self.first_token_at is None:
            self.first_token_at = self.last_token_at
        self.num_tokens += 1

    def cancel(self) -> None:
        """Give the answer up; before the next step its row is free. Later calls do nothing."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._cancelled.is_set()


class _Row:
    """One answer as it grows; used by the engine's thread only."""

    def __init__(
        self, request: GenerationRequest, tell: Callable[[Event], None], text: AnswerText
    ) -> None:
        self.handle = RequestHandle()
        self.prompt: EncodedPrompt | None = request.prompt
        """None once the model has read it: the tiles need memory."""
        self.token = -1
        """The last one, which the model has not read yet."""
        self.end: Finished | Failed | None = None
        """How the answer ended; told once the row is free."""
        self.tell = tell
        self._text = text
        self._max_tokens = request.max_tokens
        self._sampler = Sampler(request.sampling)

    def take(self, logits: Tensor, likeliest: int, ends: frozenset[int]) -> None:
        """Choose the next token from (V,) logits and tell its text; sets ``end`` at the end."""
        self.token = likeliest if self._sampler.is_greedy else self._sampler.draw(logits)
        self.handle.count_token()
        has_ended = self.token in ends
        piece = "" if has_ended else self._text.push(self.token)
        if has_ended or self._text.stopped or self.handle.num_tokens >= self._max_tokens:
            piece += self._text.finish()
            is_stop = has_ended or self._text.stopped
            self.end = Finished("stop" if is_stop else "length", self.handle.num_tokens)
        if piece:
            self.tell(Piece(piece))


class Engine:
    """Answers the requests to one model.

    Args:
        model: an InternVLChatModel, which is this engine's alone from now on.
        tokenizer: the checkpoint's.
        settings: how many at once.

    Raises:
        ConfigError: a language model with other layers than attention, whose state cannot be cut
            out of a batch row by row.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: EngineSettings) -> None:
        layers = set(getattr(model.config.get_text_config(), "layer_types", None) or _ATTENTION)
        if not layers <= _ATTENTION:
            raise ConfigError(
                f"language models with {', '.join(sorted(layers - _ATTENTION))} cannot be served",
                where="--model",
            )
        self._model = model
        self._model.img_context_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
        self._tokenizer = tokenizer
        self._settings = settings
        stop = model.conv_template.stop_str
        ends = stop_settings(tokenizer, stop, {})["eos_token_id"]
        ends = ends if isinstance(ends, list) else [ends]
        self._ends = frozenset(end for end in ends if end is not None)
        self._stop_str: str = stop
        self._pad_id = pad_id(tokenizer)

        # Guarded by _changed: what other threads see.
        self._changed = threading.Condition()
        self._waiting: deque[_Row] = deque()
        self._num_running = 0
        self._counts = {"answered": 0, "cancelled": 0, "failed": 0}
        self._num_tokens = {"prompt": 0, "generation": 0}
        self._deadline: float | None = None  # once stopping
        # The engine's thread only.
        self._rows: list[_Row] = []
        self._batch: Rows | None = None  # of _rows
        self._reading: list[_Row] = []
        # A daemon, so that a pass that hangs cannot keep a process alive that was told to end.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # ------------------------------------------------------------------ called by other threads

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def submit(self, request: GenerationRequest, tell: Callable[[Event], None]) -> RequestHandle:
        """Queue a request.

        Args:
            request: its prompt is shorter than the context.
            tell: gets the answer's pieces and then Finished or Failed, on the engine's thread. It
                must not wait. After :meth:`RequestHandle.cancel` no event need follow.

        Raises:
            QueueFullError: ``max_batch_size + max_queue`` requests are here already.
            StoppingError: :meth:`stop` was called, or the engine's thread has ended.
        """
        stops = (*request.stop, self._stop_str)
        row = _Row(request, tell, AnswerText(self._tokenizer, stops))
        with self._changed:
            if self._deadline is not None:
                raise StoppingError
            if not self.has_place():
                raise QueueFullError
            self._waiting.append(row)
            self._changed.notify_all()
        return row.handle

    def has_place(self, num_before: int = 0) -> bool:
        """Whether a request would find a place after so many others."""
        with self._changed:
            allowed = self._settings.max_batch_size + self._settings.max_queue
            return len(self._waiting) + self._num_running + num_before < allowed

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    def stats(self) -> EngineStats:
        """What is going on."""
        with self._changed:
            return EngineStats(
                running=self._num_running, waiting=len(self._waiting), **self._counts
            )

    def token_counts(self) -> dict[str, int]:
        """How many tokens of ``prompt`` were read and of ``generation`` chosen so far, those of
        answers included that nobody took to their end."""
        with self._changed:
            return dict(self._num_tokens)

    def stop(self, grace_seconds: float) -> None:
        """Take no more requests; those that are here may finish within this time, then fail."""
        with self._changed:
            deadline = time.monotonic() + grace_seconds
            self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
            self._changed.notify_all()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the end after :meth:`stop`; False if it did not come in time."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    # ------------------------------------------------------------------ the engine's thread

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                try:
                    self._step()
                except _MODEL_ERRORS as err:
                    logger.error("a step of generation failed", exc_info=err)
                    self._end_running(_FAILED)
            self._end_all(Failed("the server is shutting down", is_shutdown=True))
        finally:  # also when something unforeseen ends the thread: nobody is left waiting
            with self._changed:
                self._deadline = time.monotonic()
            self._end_all(Failed("the server's engine has stopped"))

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False when it is time to end."""
        with self._changed:
            while not (self._waiting or self._rows or self._deadline is not None):
                self._changed.wait()
            has_work = bool(self._waiting or self._rows)
            return has_work and (self._deadline is None or time.monotonic() < self._deadline)

    def _step(self) -> None:
        """Cancelled rows leave, requests join, and every row gets a token."""
        self._drop_cancelled()
        self._take_group()
        if self._reading:
            self._read()
        if self._batch is not None:
            rows = self._rows
            self._batch, logits = decode(self._model, self._batch, [row.token for row in rows])
            self._keep(self._hand_out(rows, logits))
            self._tell_ends(rows)

    def _drop_cancelled(self) -> None:
        kept = [place for place, row in enumerate(self._rows) if not row.handle.is_cancelled]
        num_dropped = len(self._rows) - len(kept)
        self._keep(kept)
        with self._changed:
            waiting = [row for row in self._waiting if not row.handle.is_cancelled]
            self._counts["cancelled"] += num_dropped + len(self._waiting) - len(waiting)
            self._waiting = deque(waiting)

    def _take_group(self) -> None:
        """The requests that come next, as many as one pass takes, go from waiting to reading."""
        longest = 0
        with self._changed:
            while self._waiting and self._num_running < self._settings.max_batch_size:
                prompt = self._waiting[0].prompt
                assert prompt is not None
                longest = max(longest, len(prompt.ids))
                padded = (len(self._reading) + 1) * longest
                if self._reading and padded > self._settings.prefill_tokens:
                    return
                self._reading.append(self._waiting.popleft())
                self._num_running += 1

    def _read(self) -> None:
        """Let the requests that are being read join the rows."""
        try:
            parts = [self._read_together(self._reading)]
        except _MODEL_ERRORS as err:
            logger.warning("reading %d prompts failed: %s", len(self._reading), err)
            parts = self._read_each(self._reading)
        for rows, batch, logits in parts:
            going_on = self._hand_out(rows, logits)
            if going_on:
                batch = batch.keep(going_on)
                self._join(batch)
                self._rows += [rows[place] for place in going_on]
        read, self._reading = self._reading, []
        self._show_rows()
        self._tell_ends(read)

    def _join(self, batch: Batch) -> None:
        if self._batch is None:
            self._batch = fast_rows(self._model, batch, self._settings.max_batch_size)
        else:
            self._batch = self._batch.join(batch)

    def _read_together(self, rows: Sequence[_Row]) -> tuple[Sequence[_Row], Batch, Tensor]:
        prompts = [row.prompt for row in rows if row.prompt is not None]
        batch, logits = prefill(self._model, prompts, self._pad_id)
        self._count_tokens("prompt", sum(len(prompt.ids) for prompt in prompts))
        for row in rows:
            row.prompt = None
        return rows, batch, logits

    def _read_each(self, rows: Sequence[_Row]) -> list[tuple[Sequence[_Row], Batch, Tensor]]:
        """One by one, so that a prompt that cannot be read is the only one to fail."""
        parts = []
        for row in rows:
            try:
                parts.append(self._read_together([row]))
            except _MODEL_ERRORS as err:
                logger.error("a prompt cannot be read", exc_info=err)
                row.end = _FAILED
        return parts

    def _hand_out(self, rows: Sequence[_Row], logits: Tensor) -> list[int]:
        """Give every row its (V,) of (B, V) logits; returns the places of those that go on."""
        likeliest = logits.argmax(-1).tolist()
        before = sum(row.handle.num_tokens for row in rows)
        for place, row in enumerate(rows):
            try:
                row.take(logits[place], likeliest[place], self._ends)
            except _MODEL_ERRORS as err:  # no number among the logits, for one
                logger.error("no token could be chosen", exc_info=err)
                row.end = _FAILED
        self._count_tokens("generation", sum(row.handle.num_tokens for row in rows) - before)
        return [place for place, row in enumerate(rows) if row.end is None]

    def _count_tokens(self, kind: str, number: int) -> None:
        with self._changed:
            self._num_tokens[kind] += number

    def _keep(self, places: Sequence[int]) -> None:
        """Only these rows go on."""
        if self._batch is not None and len(places) < len(self._rows):
            self._batch = self._batch.keep(places) if places else None
            self._rows = [self._rows[place] for place in places]
        self._show_rows()

    def _show_rows(self) -> None:
        with self._changed:
            self._num_running = len(self._rows) + len(self._reading)

    def _tell_ends(self, rows: Sequence[_Row]) -> None:
        """Tell those of them that ended; their rows are free by now."""
        for row in rows:
            if row.end is not None:
                kind = "answered" if isinstance(row.end, Finished) else "failed"
                with self._changed:
                    self._counts[kind] += 1
                row.tell(row.end)

    def _end_running(self, failure: Failed) -> None:
        """End all that were running and being read."""
        rows = list(dict.fromkeys((*self._rows, *self._reading)))  # once each, amid a join too
        self._rows, self._reading, self._batch = [], [], None
        self._show_rows()
        for row in rows:
            row.end = row.end or failure
        self._tell_ends(rows)

    def _end_all(self, failure: Failed) -> None:
        self._end_running(failure)
        with self._changed:
            waiting = list(self._waiting)
            self._waiting.clear()
        for row in waiting:
            row.end = failure
        self._tell_ends(waiting)
