"""Messages of a request -> turns with an image tag per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from internvl_chat.model.constants import IMAGE_TAG
from internvl_chat.serve.protocol import Message, TextPart
from internvl_chat.serve.refusals import RequestError

CheckText = Callable[[str, str], None]
"""Called with what a client wrote and where; raises RequestError if it must not stand there."""


@dataclass(frozen=True, kw_only=True)
class ChatTurns:
    """What was said so far; the last question waits for its answer."""

    turns: tuple[tuple[str, str | None], ...]
    """(question, answer) pairs with one ``<image>`` tag per image; the last answer is None."""
    image_urls: tuple[str, ...]
    """In reading order."""
    system_message: str | None
    """None takes the checkpoint's own."""


def read_turns(messages: Sequence[Message], check_text: CheckText) -> ChatTurns:
    """Pair questions and answers.

    An image part becomes an ``<image>`` tag where it stands; parts are joined by line breaks, as
    the training data has them (``<image>\\nquestion``).

    Args:
        messages: at least one.
        check_text: called for every text of the client, with its place.

    Raises:
        RequestError: another order than system?, (user, assistant)*, user, or an image in a message
            of somebody else than the user.
    """
    urls: list[str] = []
    texts = [
        _text(message, f"messages[{number}].content", check_text, urls)
        for number, message in enumerate(messages)
    ]
    first = int(messages[0].role in ("system", "developer"))
    for number, message in enumerate(messages[first:], start=first):
        role = ("user", "assistant")[(number - first) % 2]
        where = f"messages[{number}]"
        if message.role != role:
            raise RequestError(
                f"{where}: want a message of the {role} here, got one of the {message.role}. The "
                "order is system (or none), then user and assistant by turns",
                param=where,
            )
        if role == "user" and not texts[number].strip():
            raise RequestError(f"{where}.content is empty", param=f"{where}.content")
    questions, answers = texts[first::2], texts[first + 1 :: 2]
    if len(questions) == len(answers):
        raise RequestError("messages: the last one must be the user's", param="messages")
    return ChatTurns(
        turns=tuple(zip(questions, [*answers, None], strict=True)),
        image_urls=tuple(urls),
        system_message=texts[0] if first else None,
    )


def _text(message: Message, where: str, check_text: CheckText, urls: list[str]) -> str:
    """A message's text with its tags; the URLs of its images are added to ``urls``."""
    if isinstance(message.content, str):
        check_text(message.content, where)
        return message.content
    pieces = []
    for number, part in enumerate(message.content):
        place = f"{where}[{number}]"
        if isinstance(part, TextPart):
            check_text(part.text, f"{place}.text")
            pieces.append(part.text)
        elif message.role == "user":
            urls.append(part.image_url.url)
            pieces.append(IMAGE_TAG)
        else:
            raise RequestError(f"{place}: only messages of the user hold images", param=place)
    return "\n".join(pieces)
