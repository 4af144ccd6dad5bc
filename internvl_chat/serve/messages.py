"""OpenAI's ``messages`` -> system message, turns and the pictures' URLs. Pure.

An image part becomes an ``<image>`` tag where it stands; parts are joined by line breaks, as the
training data has them (``<image>\\nquestion``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from internvl_chat.model.constants import IMAGE_TAG
from internvl_chat.serve.protocol import RequestError

CheckText = Callable[[str, str], None]
"""Called with what a client wrote and where; raises RequestError if it must not stand there."""

_SYSTEM = ("system", "developer")


@dataclass(frozen=True, kw_only=True)
class ChatTurns:
    """What was said so far; the last question waits for its answer."""

    turns: tuple[tuple[str, str | None], ...]
    """(question, answer) pairs with one ``<image>`` tag per picture; the last answer is None."""
    images: tuple[str, ...] = ()
    """URLs in reading order."""
    system: str | None = None
    """None takes the checkpoint's own."""


def read_messages(value: Any, check_text: CheckText) -> ChatTurns:
    """Read the field ``messages``.

    Args:
        value: as parsed from JSON.
        check_text: called for every text of the client.

    Raises:
        RequestError: another shape or order than system?, (user, assistant)*, user.
    """
    if not isinstance(value, list) or not value:
        raise RequestError("messages: want a list with at least one message", param="messages")
    images: list[str] = []
    spoken: list[tuple[str, str]] = []
    for number, message in enumerate(value):
        where = f"messages[{number}]"
        role = _role(message, where)
        may_show = images if role == "user" else None
        spoken.append((role, _content(message.get("content"), where, check_text, may_show)))
    system = None
    if spoken[0][0] in _SYSTEM:
        system = spoken[0][1]
        spoken, offset = spoken[1:], 1
    else:
        offset = 0
    return ChatTurns(turns=_turns(spoken, offset), images=tuple(images), system=system)


def _role(message: Any, where: str) -> str:
    if not isinstance(message, dict):
        raise RequestError(f"{where}: want an object with role and content", param=where)
    role = message.get("role")
    if role not in (*_SYSTEM, "user", "assistant"):
        raise RequestError(
            f"{where}.role is {role!r}; this server knows system, user and assistant",
            param=f"{where}.role",
        )
    # Clients send answers back as they got them, with fields that say nothing.
    extra = [name for name in message if name not in ("role", "content") and message[name]]
    if extra:
        raise RequestError(
            f"{where}.{extra[0]} is not supported by this server",
            param=f"{where}.{extra[0]}",
            code="unsupported_parameter",
        )
    return str(role)


def _content(content: Any, where: str, check_text: CheckText, images: list[str] | None) -> str:
    """The text with its tags; URLs are added to ``images`` (None: pictures are not allowed)."""
    where = f"{where}.content"
    if isinstance(content, str):
        check_text(content, where)
        return content
    if not isinstance(content, list) or not content:
        raise RequestError(f"{where}: want a string or a list of parts", param=where)
    pieces = []
    for number, part in enumerate(content):
        place = f"{where}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            check_text(part["text"], f"{place}.text")
            pieces.append(part["text"])
        elif kind == "image_url" and images is not None:
            images.append(_url(part.get("image_url"), f"{place}.image_url"))
            pieces.append(IMAGE_TAG)
        elif kind == "image_url":
            raise RequestError(f"{place}: only messages of the user hold pictures", param=place)
        else:
            raise RequestError(
                f'{place}: want {{"type": "text", "text": "..."}} or '
                '{"type": "image_url", "image_url": {"url": "..."}}',
                param=place,
            )
    return "\n".join(pieces)


def _url(image: Any, where: str) -> str:
    if not isinstance(image, dict) or not isinstance(image.get("url"), str):
        raise RequestError(f'{where}: want {{"url": "data:image/...;base64,..."}}', param=where)
    if image.get("detail") not in (None, "auto"):
        raise RequestError(
            f'{where}.detail: only "auto"; the checkpoint says how pictures are cut',
            param=f"{where}.detail",
            code="unsupported_parameter",
        )
    return str(image["url"])


def _turns(spoken: Sequence[tuple[str, str]], offset: int) -> tuple[tuple[str, str | None], ...]:
    """Pair questions and answers; ``offset`` is the number of messages before them."""
    for number, (role, text) in enumerate(spoken):
        where = f"messages[{number + offset}]"
        want = ("user", "assistant")[number % 2]
        if role != want:
            raise RequestError(
                f"{where}: want a message of the {want} here, got one of the {role}. The order is "
                "system (or none), then user and assistant by turns",
                param=where,
            )
        if role == "user" and not text.strip():
            raise RequestError(f"{where}.content is empty", param=f"{where}.content")
    if len(spoken) % 2 == 0:
        raise RequestError("messages: the last one must be the user's", param="messages")
    texts: list[str | None] = [*(text for _, text in spoken), None]
    return tuple((texts[i] or "", texts[i + 1]) for i in range(0, len(texts), 2))
