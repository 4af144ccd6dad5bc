"""Alpaca: ``{"instruction", "input", "output", "history": [[q, a]], "system", "images"}``.

ms-swift's ``query`` and ``response`` are the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from internvl_chat.data.convert.conversations import (
    ChatTurn,
    Draft,
    Row,
    carry_on,
    leave_keys,
    read_own,
    with_tags,
)
from internvl_chat.data.convert.media import image_reference
from internvl_chat.data.convert.notes import Notes, UnfitRecordError
from internvl_chat.data.convert.sharegpt import as_list

_USED = (
    *("instruction", "query", "prompt", "output", "response", "input"),
    *("history", "system", "images", "image", "videos", "video"),
)


def from_alpaca(source: Mapping[str, Any], notes: Notes, *, train_masked: bool = False) -> Draft:
    """An Alpaca record; ``input`` follows the instruction on a line of its own, and is kept beside.

    Raises:
        UnfitRecordError: a text is missing or no string.
    """
    instruction = _text(source, "instruction", "query", "prompt")
    output = _text(source, "output", "response")
    extra = source.get("input")
    if extra is not None and not isinstance(extra, str):
        raise UnfitRecordError('"input" is no string')
    turns = []
    history = source.get("history") or []
    if not isinstance(history, list):
        raise UnfitRecordError('"history" is no list of [question, answer]')
    for earlier in history:
        if not isinstance(earlier, list | tuple) or len(earlier) != 2:
            raise UnfitRecordError('"history" is no list of [question, answer]')
        if not all(isinstance(text, str) for text in earlier):
            raise UnfitRecordError('"history" is no list of [question, answer]')
        turns += [ChatTurn("human", earlier[0]), ChatTurn("gpt", earlier[1])]
    question = f"{instruction}\n{extra}" if extra and instruction else instruction or extra or ""
    turns += [ChatTurn("human", question), ChatTurn("gpt", output)]
    system = source.get("system")
    if system is not None and not isinstance(system, str):
        raise UnfitRecordError('"system" is no string')
    images = [image_reference(one) for one in as_list(source.get("images", source.get("image")))]
    videos = as_list(source.get("videos", source.get("video")))
    if len(videos) > 1:
        raise UnfitRecordError("several videos in a record")
    draft = Draft(turns, images, videos[0] if videos else None, system or None)
    carry_on(source, _USED, draft, notes)
    if extra:
        draft.rest["input"] = extra  # by which export tells it from the instruction
    return draft


def to_alpaca(record: Mapping[str, Any], notes: Notes) -> Row:
    """An Alpaca record: the last round, earlier ones as ``history``.

    Raises:
        UnfitRecordError: turns do not alternate, or no record.
    """
    own = read_own(record)
    leave_keys(own, record, ("video",), notes)
    rounds = own.rounds()
    if own.images:
        tagged = with_tags(own, notes)
        rounds = [(q.text, a.text) for q, a in zip(tagged[::2], tagged[1::2], strict=True)]
    for turn in own.turns:
        if turn.kind:
            notes.left[f"the mark {turn.kind} of a turn"] += 1
    (question, answer), rest = rounds[-1], dict(own.rest)
    extra = rest.get("input")
    if isinstance(extra, str) and (question == extra or question.endswith(f"\n{extra}")):
        rest.pop("input")
        question = question[: len(question) - len(extra)].removesuffix("\n")
    else:
        extra = ""
    result: Row = {} if own.identity is None else {"id": own.identity}
    result |= {"instruction": question, "input": extra, "output": answer}
    if own.system is not None:
        result["system"] = own.system
    if len(rounds) > 1:
        result["history"] = [list(pair) for pair in rounds[:-1]]
    if own.images:
        result["images"] = list(own.images)
    if own.video is not None:
        result["videos"] = [own.video]
    return result | rest


def _text(source: Mapping[str, Any], *keys: str) -> str:
    for key in keys:
        if source.get(key) is not None:
            if not isinstance(source[key], str):
                raise UnfitRecordError(f'"{key}" is no string')
            return str(source[key])
    if keys[0] == "instruction" and source.get("input"):
        return ""
    raise UnfitRecordError(f'"{keys[0]}" is missing')
