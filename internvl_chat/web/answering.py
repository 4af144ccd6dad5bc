"""Checkpoints that answer the questions of many conversations, one question at a time."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import torch

from internvl_chat.chat.context import PromptTooLongError
from internvl_chat.chat.session import ChatSession
from internvl_chat.config import DecodeConfig
from internvl_chat.data import images
from internvl_chat.data.schema import BadRecordError
from internvl_chat.errors import Attempt
from internvl_chat.web.conversation import Answer, Conversation, MediaItem, QuestionError, Turn
from internvl_chat.web.drawing import draw_boxes, find_boxes
from internvl_chat.web.facts import facts_of
from internvl_chat.web.limits import describe

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS: Final = 2048
_CONTEXT_ENDED: Final = "The answer ends where the context of the model does. Press Clear to go on."
_AS_SHOWN: Final = DecodeConfig.as_shown()


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How the next token is chosen."""

    temperature: float
    """0 takes the likeliest token."""
    top_p: float
    max_new_tokens: int

    def __post_init__(self) -> None:
        bounds = {
            "temperature": (0.0, 2.0),
            "top_p": (0.01, 1.0),
            "max_new_tokens": (1, MAX_NEW_TOKENS),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            # A client may send anything in place of a number, NaN included.
            if not isinstance(value, int | float) or not low <= value <= high:
                raise QuestionError(f"{name} is {value}, want {low} to {high}.")

    def keywords(self) -> dict[str, Any]:
        """Keywords of ``generate``."""
        length = {"max_new_tokens": int(self.max_new_tokens)}
        if self.temperature == 0:
            return {**length, "do_sample": False}
        chosen = {"temperature": float(self.temperature), "top_p": float(self.top_p)}
        return {**length, "do_sample": True, **chosen}


DEFAULT_GENERATION: Final = GenerationSettings(temperature=0.0, top_p=1.0, max_new_tokens=512)
"""What the page begins with."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded model under the name that the page shows."""

    name: str
    model: Any
    tokenizer: Any

    @property
    def facts(self) -> tuple[str, ...]:
        """What the page says of it beside its name."""
        return facts_of(self.model)

    @property
    def decode(self) -> DecodeConfig:
        """How its files become RGB; of what is shown to people every pixel."""
        rule = DecodeConfig.of_preprocessor(vars(self.model.config))
        return replace(rule, image_backend="pillow")

    def answer(
        self,
        past: Sequence[tuple[Turn, Answer]],
        turn: Turn,
        generation: GenerationSettings,
        tell: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> Answer:
        """Answer a question after earlier ones.

        Args:
            past: earlier turns, each with this checkpoint's answer.
            turn: the question.
            tell: gets the answer piece by piece.
            should_stop: asked once a token.
        """
        if should_stop():
            return Answer(stopped=True)
        with Attempt() as attempt:
            session = self._session(past, turn, generation)
            reply = session.ask(turn.question, tell, should_stop=should_stop)
            note = _CONTEXT_ENDED if reply.ended_by_context else ""
            return Answer(text=reply.text, problem=note, stopped=should_stop())
        assert attempt.error is not None, "the block returns or raises"
        return Answer(problem=_problem(attempt.error))

    def _session(
        self, past: Sequence[tuple[Turn, Answer]], turn: Turn, generation: GenerationSettings
    ) -> ChatSession:
        session = ChatSession(self.model, self.tokenizer, generation.keywords())
        for earlier, answer in past:
            _add(session, earlier.media)
            session.remember(earlier.question, answer.text)
        _add(session, turn.media)
        return session


def _problem(err: Exception) -> str:
    """What the page says of an answer that was not to be had; names no file of the server."""
    if isinstance(err, BadRecordError):
        return describe(err, "A file of this conversation")
    if isinstance(err, MemoryError | torch.OutOfMemoryError):
        return "The model's memory is full: ask about fewer or no images."
    if isinstance(err, PromptTooLongError):
        return f"{err.problem[0].upper()}{err.problem[1:]}. Press Clear, or take fewer frames."
    logger.error("a question was not answered", exc_info=err)
    return "The model failed at this question; the log of the server says how. Press Clear."


def _add(session: ChatSession, media: Sequence[MediaItem]) -> None:
    for item in media:
        if item.num_frames is None:
            session.add_image(item.path)
        else:
            session.add_video(item.path, num_segments=item.num_frames)


class Answering:
    """One or more checkpoints that get the same questions.

    Args:
        checkpoints: with different names.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        self.checkpoints = tuple(checkpoints)
        # The queue lets one question in; this holds whatever way a question may have come.
        self._one_at_a_time = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names of the checkpoints, in order."""
        return [checkpoint.name for checkpoint in self.checkpoints]

    def stream(
        self,
        conversation: Conversation,
        generation: GenerationSettings,
        should_stop: Callable[[], bool],
        *,
        drawings: Path,
        box_image: int = 0,
    ) -> Generator[Conversation]:
        """Answer the pending question with all checkpoints at the same time.

        Args:
            conversation: with a pending question.
            should_stop: asked once a token, from other threads.
            drawings: folder for images with boxes.
            box_image: number of the image that boxes are drawn on; 0 is the newest.

        Yields:
            The conversation with the answers so far; at last with the whole ones. Closing the
            iterator early ends the generation before it returns.
        """
        turn = conversation.pending
        assert turn is not None
        abandoned = threading.Event()
        news: SimpleQueue[tuple[int, str] | None] = SimpleQueue()

        def run(place: int) -> Answer:
            past = _past(conversation, place)
            return self.checkpoints[place].answer(
                past,
                turn,
                generation,
                lambda text: news.put((place, text)),
                lambda: abandoned.is_set() or should_stop(),
            )

        places = range(len(self.checkpoints))
        with self._one_at_a_time, ThreadPoolExecutor(len(places)) as threads:
            tasks = [threads.submit(run, place) for place in places]
            for task in tasks:
                task.add_done_callback(lambda _: news.put(None))
            try:
                for texts in _gather(news, len(places)):
                    so_far = [Answer(text=text, finished=False) for text in texts]
                    yield conversation.answered(so_far)
            finally:
                abandoned.set()
        answers = [task.result() for task in tasks]
        drawn = [
            with_drawing(
                answer,
                conversation.images,
                box_image,
                drawings,
                padded=bool(checkpoint.model.config.pad2square),
                decode=checkpoint.decode,
            )
            for answer, checkpoint in zip(answers, self.checkpoints, strict=True)
        ]
        yield conversation.answered(drawn)


def _past(conversation: Conversation, place: int) -> list[tuple[Turn, Answer]]:
    """Turns that a checkpoint answered; what has no text is not shown to it again."""
    pairs = ((turn, turn.answers[place]) for turn in conversation.turns)
    return [(turn, answer) for turn, answer in pairs if answer.text]


def _gather(news: SimpleQueue[tuple[int, str] | None], num_tasks: int) -> Iterator[list[str]]:
    """Texts so far, whenever there is more; all that came in the meantime in one step."""
    texts = [""] * num_tasks
    while num_tasks:
        changed = False
        for item in _waiting(news):
            if item is None:
                num_tasks -= 1
            elif item[1]:
                texts[item[0]] += item[1]
                changed = True
        if changed:
            yield list(texts)


def _waiting(news: SimpleQueue[tuple[int, str] | None]) -> Iterator[tuple[int, str] | None]:
    """Everything in the queue, but at least one thing."""
    yield news.get()
    while True:
        try:
            yield news.get_nowait()
        except Empty:
            return


def with_drawing(
    answer: Answer,
    shown: Sequence[MediaItem],
    box_image: int,
    drawings: Path,
    *,
    padded: bool,
    decode: DecodeConfig = _AS_SHOWN,
) -> Answer:
    """The answer, with its boxes drawn if it has any and there is an image.

    Args:
        shown: the images of the whole conversation.
        box_image: number of the image, from 1; 0, or one that is not there, is the newest.
        drawings: folder for the file.
        padded: the model sees images padded to a square.
        decode: how the model's files become RGB, which its boxes refer to.
    """
    boxes = find_boxes(answer.text)
    if not boxes or not shown:
        return answer
    number = box_image if 1 <= box_image <= len(shown) else len(shown)
    try:
        image = images.load_image(shown[number - 1].path, decode=decode)
    except BadRecordError as err:
        return replace(answer, problem=describe(err, shown[number - 1].name))
    file = drawings / f"{uuid.uuid4().hex}.png"
    drawings.mkdir(parents=True, exist_ok=True)
    draw_boxes(image, boxes, padded=padded).save(file)
    caption = f"Boxes on image {number} of {len(shown)}" if len(shown) > 1 else ""
    return replace(answer, drawing=str(file), caption=caption)
