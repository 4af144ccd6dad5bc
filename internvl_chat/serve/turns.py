"""Messages of a request -> turns with an image tag per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from internvl_chat.model.constants import IMAGE_TAG
from internvl_chat.serve.protocol import Message, TextPart
from internvl_chat.serve.refusals import RequestError

CheckText = Callable[[str, str], None]
"""Called with what a client wrote and where; raises RequestError if it must not stand there."""


@dataclass(frozen=True)
class SentImage:
    """An image of a request, not read yet."""

    url: str
    where: str
    """Its place in the request, as ``messages[0].content[1].image_url``."""


@dataclass(frozen=True, kw_only=True)
class ChatTurns:
    """What was said so far; the last question waits for its answer."""

    turns: tuple[tuple[str, str | None], ...]
    """(question, answer) pairs with one ``<image>`` tag per image; the last answer is None."""
    images: tuple[SentImage, ...]
    """In reading order."""
    system_message: str | None
    """None takes the checkpoint's own."""


def read_turns(messages: Sequence[Message], check_text: CheckText) -> ChatTurns:
    """Pair questions and answers.

    An image part becomes an ``<image>`` tag; parts are joined by line breaks, as the training data
    has them (``<image>\\nquestion``). The order of a user's parts is kept, but for the message that
    begins with its only text: its images go first, for that is how questions look in training.
    Parts of nothing but white space are dropped.

    Args:
        messages: at least one.
        check_text: called for every text of the client, with its place.

    Raises:
        RequestError: another order than system?, (user, assistant)*, user, or an image in a message
            of somebody else than the user.
    """
    images: list[SentImage] = []
    texts = [
        _text(message, f"messages[{number}].content", check_text, images)
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
        images=tuple(images),
        system_message=texts[0] if first else None,
    )


def _text(message: Message, where: str, check_text: CheckText, images: list[SentImage]) -> str:
    """A message's text with its tags; its images are added to ``images``."""
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
            images.append(SentImage(part.image_url.url, f"{place}.image_url"))
            pieces.append(IMAGE_TAG)
        else:
            raise RequestError(f"{place}: only messages of the user hold images", param=place)
    return "\n".join(_in_order(pieces) if message.role == "user" else pieces)


def _in_order(pieces: Sequence[str]) -> Sequence[str]:
    """A user's texts and tags in the order in which the model reads them."""
    said = [piece for piece in pieces if piece.strip()]
    texts = [piece for piece in said if piece != IMAGE_TAG]  # no text is a tag: it was checked
    return [*said[1:], *texts] if len(texts) == 1 and said[0] == texts[0] else said
