"""A conversation as the messages of ``gr.Chatbot``, for one of its checkpoints."""

from __future__ import annotations

import re
from typing import Any, Final

from internvl_chat.web.conversation import Answer, Conversation, Turn

_CODE: Final = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`)", re.DOTALL)


def as_markdown(text: str) -> str:
    """Keep Markdown, but show every tag as it was written.

    ``<box>`` and ``<ref>`` would otherwise vanish as unknown HTML; nothing that a model or a user
    writes becomes an element of the page. Code is left alone: there Markdown escapes by itself.
    """
    parts = _CODE.split(text)
    return "".join(
        part if number % 2 else part.replace("&", "&amp;").replace("<", "&lt;")
        for number, part in enumerate(parts)
    )


def as_messages(conversation: Conversation, place: int) -> list[dict[str, Any]]:
    """What the chat of checkpoint ``place`` shows."""
    shown: list[dict[str, Any]] = []
    for turn in conversation.turns:
        shown += _asked(turn) + _answered(turn.answers[place])
    if conversation.pending is not None:
        shown += _asked(conversation.pending)
    return shown


def _asked(turn: Turn) -> list[dict[str, Any]]:
    files = [{"path": item.path, "alt_text": item.name} for item in turn.media]
    return [
        *({"role": "user", "content": file} for file in files),
        {"role": "user", "content": as_markdown(turn.typed)},
    ]


def _answered(answer: Answer) -> list[dict[str, Any]]:
    contents: list[Any] = []
    if answer.text:
        contents.append(as_markdown(answer.text))
    if answer.drawing is not None:
        contents.append({"path": answer.drawing, "alt_text": answer.caption or "Boxes"})
    if answer.caption:
        contents.append(f"*{answer.caption}*")
    if answer.problem:
        contents.append(f"⚠️ {as_markdown(answer.problem)}")
    if answer.stopped:
        contents.append("*(stopped)*")
    elif not contents:
        contents.append("*(the model said nothing)*" if answer.finished else "…")
    return [{"role": "assistant", "content": content} for content in contents]
