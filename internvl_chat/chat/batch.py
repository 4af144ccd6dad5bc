"""A file of questions -> a file of answers: several at a time, resumable, errors line by line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from internvl_chat.chat.session import ChatSession, Prompt
from internvl_chat.errors import ConfigError, DatasetError


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """How a file went."""

    answered: int
    failed: int
    """Lines that could not be asked; each has an ``error`` in place of an answer."""


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of the file: what to ask, or what is wrong with it."""

    number: int
    known: dict[str, Any]
    """``id`` and ``question``, as far as they could be read, for the answer's line."""
    prompt: Prompt | None
    error: str = ""


def answer_file(
    session: ChatSession,
    lines: Iterable[str],
    name: str,
    out: Path,
    *,
    num_segments: int = 8,
    batch_size: int = 8,
    progress: Callable[[int], None] = lambda lines: None,
) -> BatchReport:
    """Answer every line that ``out`` does not answer yet.

    Args:
        session: model, tokenizer and settings; its conversation is not used.
        lines: ``{"question": ..., "image": FILE or [FILES], "video": FILE, "id": anything}``.
        name: of the file, for messages.
        out: gets ``{"line": n, "id": ..., "question": ..., "answer": ...}`` a line, in order, or
            ``"error"`` in place of the answer.
        num_segments: frames of a video.
        batch_size: questions that the model answers at a time.
        progress: told how many lines are done with, every time some are.

    Raises:
        ConfigError: ``out`` holds something else.
    """
    done = answered_lines(out)
    numbered = ((number, line) for number, line in enumerate(lines, start=1))
    open_lines = ((number, line) for number, line in numbered if number not in done)
    asked = (
        _read(session, number, line, f"{name}:{number}", num_segments)
        for number, line in open_lines
        if line.strip()
    )
    progress(len(done))
    answered = failed = 0
    with out.open("a", encoding="utf-8") as file:
        while group := list(itertools.islice(asked, batch_size)):
            for told in _answer(session, group):
                failed += "error" in told
                answered += "answer" in told
                file.write(json.dumps(told, ensure_ascii=False) + "\n")
            file.flush()
            progress(len(group))
    return BatchReport(answered=answered, failed=failed)


def answered_lines(out: Path) -> set[int]:
    """Numbers of the lines that ``out`` answers. A last line that was cut short is finished off.

    Raises:
        ConfigError: it is no file of answers.
    """
    if not out.exists():
        return set()
    text = out.read_text(encoding="utf-8")
    done = set()
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            told = json.loads(line)
            done |= {told["line"]} if "answer" in told else set()
        except (json.JSONDecodeError, KeyError, TypeError) as err:
            if number == len(lines) and not text.endswith("\n"):
                continue  # the write that an interruption cut
            raise ConfigError(
                f"{out}:{number}: no line of answers",
                where="--out",
                fix="Name a new file, or the --out of an earlier run.",
            ) from err
    if text and not text.endswith("\n"):
        with out.open("a", encoding="utf-8") as file:
            file.write("\n")
    return done


def _read(session: ChatSession, number: int, line: str, where: str, num_segments: int) -> _Line:
    known: dict[str, Any] = {}
    try:
        known, images, video = _parse(line, where)
        session.reset()
        for path in images:
            session.add_image(path)
        if video is not None:
            session.add_video(video, num_segments=num_segments)
        return _Line(number=number, known=known, prompt=session.take(known["question"]))
    except (DatasetError, ValueError) as err:
        return _Line(number=number, known=known, prompt=None, error=str(err))


def _parse(line: str, where: str) -> tuple[dict[str, Any], list[str], str | None]:
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("question"), str):
        raise DatasetError('want {"question": "...", ...}', where=where)
    images, video = record.get("image", []), record.get("video")
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(path, str) for path in images):
        raise DatasetError('"image" is no file name and no list of them', where=where)
    if video is not None and not isinstance(video, str):
        raise DatasetError('"video" is no file name', where=where)
    return {key: record[key] for key in ("id", "question") if key in record}, images, video


def _answer(session: ChatSession, group: list[_Line]) -> Iterator[dict[str, Any]]:
    """What to write for each line, in order."""
    prompts = [line.prompt for line in group if line.prompt is not None]
    answers = iter(_ask(session, prompts))
    for line in group:
        told: dict[str, Any] = {"line": line.number, **line.known}
        if line.prompt is None:
            yield {**told, "error": line.error}
        else:
            yield {**told, "answer": next(answers)}


def _ask(session: ChatSession, prompts: list[Prompt]) -> list[str]:
    if not prompts:
        return []
    tiles = [prompt.tiles for prompt in prompts if prompt.tiles is not None]
    model = session.model
    answers: list[str] = model.batch_chat(
        session.tokenizer,
        torch.cat(tiles).to(model.device, model.dtype) if tiles else None,
        [prompt.text for prompt in prompts],
        session.generation,
        num_patches_list=[prompt.num_patches for prompt in prompts],
    )
    return answers
