"""A file of questions -> a file of answers: several at a time, resumable, errors line by line."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import torch

from internvl_chat.chat.answer_file import AnswerFile, Row, repeated
from internvl_chat.chat.failures import describe_failure
from internvl_chat.chat.question_lines import BLANK, QuestionSource
from internvl_chat.chat.session import ChatSession, Prompt
from internvl_chat.data.record_json import load_record
from internvl_chat.data.remarks import record_key_remarks, split_remark
from internvl_chat.data.schema import read_media
from internvl_chat.errors import Attempt, DatasetError

logger = logging.getLogger(__name__)

_TEXTS: Final = {"id", "question", "line", "answer", "error"}


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """How a file went."""

    answered: int
    failed: int
    """Lines without an answer; each has an ``error`` in its place."""
    answered_before: int
    """Lines that an earlier start answered."""


@dataclass(kw_only=True)
class _Line:
    """A line of the file: what to ask, or what is wrong with it."""

    number: int
    asked: Row = field(default_factory=dict)
    """What the answer's row repeats of the question, as far as it could be read."""
    prompt: Prompt | None = None
    error: str = ""


def answer_file(
    session: ChatSession,
    source: QuestionSource,
    out: AnswerFile,
    *,
    num_segments: int = 8,
    batch_size: int = 8,
    progress: Callable[[int], None] = lambda lines: None,
) -> BatchReport:
    """Answer every line that ``out`` does not answer yet; those with an error are asked again.

    Args:
        session: model, tokenizer and settings; its conversation is not used.
        source: ``{"question": ..., "image": FILE or [FILES], "video": FILE, "id": anything}`` a
            line.
        out: gets ``{"line": n, "id": ..., "question": ..., "answer": ...}`` a line, in order, or
            ``"error"`` in place of the answer: whatever a question raises is its own error.
        num_segments: frames of a video.
        batch_size: questions that the model answers at a time.
        progress: told how many lines are done with, every time some are.

    Raises:
        ConfigError: ``out`` answers other questions, or cannot be written any more.
    """
    remarks: set[str] = set()
    answered = failed = 0
    with out:
        progress(len(out.answered))
        asked = (
            _read(session, number, line, f"{source.shown}:{number}", num_segments, remarks)
            for number, line in _open_lines(source, out)
        )
        while group := list(itertools.islice(asked, batch_size)):
            rows = [*_answer(session, group)]
            failed += sum("error" in row for row in rows)
            answered += sum("answer" in row for row in rows)
            out.write(rows)
            progress(len(group))
    return BatchReport(answered=answered, failed=failed, answered_before=len(out.answered))


def _open_lines(source: QuestionSource, out: AnswerFile) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(source.lines, start=1):
        if number in out.answered:
            out.require_same(line, number, source.shown)
        elif line.strip(BLANK):
            yield number, line


# ---- a line -> what to ask ----------------------------------------------------------------------


def _read(
    session: ChatSession,
    number: int,
    raw: bytes,
    where: str,
    num_segments: int,
    remarks: set[str],
) -> _Line:
    """What a line asks. ``remarks`` are told once a file."""
    line = _Line(number=number)
    with Attempt() as attempt:
        record, _ = load_record(raw, where=where)
        if not isinstance(record, dict):
            raise DatasetError(
                f'the line is a {type(record).__name__}, want {{"question": "...", ...}}',
                where=where,
            )
        asked = repeated(record, raw)
        json.dumps(asked, allow_nan=False)  # what cannot be written is not asked
        line.asked = asked
        if not isinstance(record.get("question"), str):
            raise DatasetError('"question" is no text, want {"question": "...", ...}', where=where)
        _tell_remarks(record, where, remarks)
        line.prompt = _prompt(session, record, where, num_segments)
    if attempt.error is not None:
        line.error = describe_failure(attempt.error)
    return line


def _tell_remarks(record: Row, where: str, told: set[str]) -> None:
    """Warn of images and videos under keys that nothing reads: the question is asked without."""
    for remark in record_key_remarks({k: v for k, v in record.items() if k not in _TEXTS}):
        code, what = split_remark(remark)
        if code == "MEDIA_KEY" and what not in told:
            told.add(what)
            logger.warning("%s: %s", where, what)


def _prompt(session: ChatSession, record: Row, where: str, num_segments: int) -> Prompt:
    images, video = read_media(record, where=where)
    session.reset()
    for path in images:
        session.add_image(path)
    if video is not None:
        session.add_video(video, num_segments=num_segments)
    return session.take(record["question"])


# ---- what to ask -> answers ---------------------------------------------------------------------


def _answer(session: ChatSession, group: list[_Line]) -> Iterator[Row]:
    """What to write for each line, in order."""
    answers = _ask_all(session, [line.prompt for line in group if line.prompt is not None])
    for line in group:
        answer = {"error": line.error} if line.prompt is None else next(answers)
        yield {"line": line.number, **line.asked, **answer}


def _ask_all(session: ChatSession, prompts: list[Prompt]) -> Iterator[Row]:
    """An answer or an error for each; what fails together is asked one by one."""
    # An answer that its context cuts ends there alone: greedy answers are those of one by one.
    together = [prompt for prompt in prompts if session.has_room(prompt)]
    answers = _ask_together(session, together) if len(together) > 1 else None
    for prompt in prompts:
        if answers is not None and session.has_room(prompt):
            yield {"answer": next(answers)}
        else:
            yield _ask_one(session, prompt)


def _ask_together(session: ChatSession, prompts: list[Prompt]) -> Iterator[str] | None:
    """Answers; None if they failed. What the failure held in memory is free again then."""
    with Attempt() as attempt:
        return iter(_ask(session, prompts))
    if attempt.error is not None:
        logger.info("asked one by one: %s", describe_failure(attempt.error))
    return None


def _ask_one(session: ChatSession, prompt: Prompt) -> Row:
    answer = ""
    with Attempt() as attempt:
        (answer,) = _ask(session, [prompt])
    if attempt.error is None:
        return {"answer": answer}
    return {"error": describe_failure(attempt.error)}


def _ask(session: ChatSession, prompts: list[Prompt]) -> list[str]:
    tiles = [prompt.tiles for prompt in prompts if prompt.tiles is not None]
    model = session.model
    answers: list[str] = model.batch_chat(
        session.tokenizer,
        torch.cat(tiles).to(model.device, model.dtype) if tiles else None,
        [prompt.text for prompt in prompts],
        session.settings_for(min((p.room for p in prompts if p.room is not None), default=None)),
        num_patches_list=[prompt.num_patches for prompt in prompts],
    )
    return answers
