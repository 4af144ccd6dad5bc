"""One record of an annotation file: conversation, image(s) or video, checked and normalised.

Pure: opens no image. What comes out needs no further interpretation: turns are (question, answer)
pairs and the questions hold exactly one ``<image>`` tag per image (or one ``<video>``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from internvl_chat.data.bad_record import BadRecordError
from internvl_chat.data.record_json import load_record
from internvl_chat.data.remarks import (
    VIDEO_ENDINGS,
    record_key_remarks,
    shown,
    text_remarks,
    turn_key_remarks,
)
from internvl_chat.model.constants import IMAGE_TAG, IMG_CONTEXT_TOKEN, VIDEO_TAG

__all__ = ["BadRecordError", "Reading", "Record", "Size", "parse_record", "read_record"]

_USER = {"human", "user"}
_ASSISTANT = {"gpt", "assistant"}
_CONTROL = (IMG_CONTEXT_TOKEN, "<|im_start|>", "<|im_end|>")
_Stage = TypeVar("_Stage")

# Fields below that hold one value per image are tuples of (width, height).
Size = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A checked record."""

    turns: tuple[tuple[str, str], ...]
    """(question, answer) pairs; each question holds the tags of its own images."""
    images: tuple[str, ...] = ()
    """Paths as written, relative to the dataset's root."""
    video: str | None = None
    clip: tuple[float, float] | None = None
    """Start and end second of the video."""
    sizes: tuple[Size, ...] | None = None
    """(width, height) per image, where the record states them for all."""
    system: str | None = None
    length: int | None = None
    """Tokens as its author counted them; informative, lengths are always counted anew."""
    dropped_leading_answer: bool = False
    warnings: tuple[str, ...] = ()
    """``CODE: what`` each; see ``data/remarks.py``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Everything that reading a record found, also where it is bad."""

    record: Record | None
    """None if there are problems."""
    data: dict[str, Any] | None
    """The JSON object, if it is one."""
    problems: tuple[BadRecordError, ...]
    """In the order in which :func:`parse_record` looks for them."""
    remarks: tuple[str, ...]
    """As ``Record.warnings``."""
    messages: tuple[tuple[str, str], ...]
    """(``user`` or ``assistant``, text) of the turns that could be read."""
    media: tuple[str, ...]
    """Paths of images or of the video, as written."""
    is_video: bool


def parse_record(raw: bytes | str, *, where: str) -> Record:
    """Read one record.

    Args:
        raw: a JSON object.
        where: ``file:line``, for messages.

    Raises:
        BadRecordError: the record breaks a rule; the message says which and how to mend it.
    """
    reading = read_record(raw, where=where)
    if reading.problems:
        raise reading.problems[0]
    assert reading.record is not None, "a record without problems is one"
    return reading.record


def read_record(raw: bytes | str, *, where: str) -> Reading:
    """As :func:`parse_record`, but tells all problems of the record instead of raising the first.

    Args:
        raw, where: of :func:`parse_record`.
    """
    remarks: tuple[str, ...] = ()
    try:
        data, remarks = load_record(raw, where=where)
        reader = _Reader(data, where, remarks)
    except BadRecordError as err:
        return Reading(
            record=None,
            data=None,
            problems=(err,),
            remarks=remarks,
            messages=(),
            media=(),
            is_video=False,
        )
    return reader.reading()


class _Reader:
    """Turns a parsed JSON value into a Record; every failure names ``where``."""

    def __init__(self, data: Any, where: str, remarks: tuple[str, ...]) -> None:
        self.where = where
        if not isinstance(data, dict):
            fix = "Name a file that is one array .json." if isinstance(data, list) else None
            raise self.error("SCHEMA", f"a record is a {type(data).__name__}, want an object", fix)
        self.data: dict[str, Any] = data
        self.remarks = dict.fromkeys((*remarks, *record_key_remarks(data)))
        self.problems: list[BadRecordError] = []

    def error(self, code: str, problem: str, fix: str | None = None) -> BadRecordError:
        return BadRecordError(code, problem, where=self.where, fix=fix)

    def attempt(self, stage: Callable[[], _Stage], otherwise: _Stage) -> _Stage:
        """What a stage gives, or ``otherwise`` with its problem noted."""
        try:
            return stage()
        except BadRecordError as err:
            self.problems.append(err)
            return otherwise

    def reading(self) -> Reading:
        no_messages: tuple[list[tuple[str, str]], bool, str | None] = ([], False, None)
        messages, dropped, system = self.attempt(self.messages, no_messages)
        turns: list[tuple[str, str]] = []
        if not self.problems:
            turns = self.attempt(lambda: self.turns(messages), turns)
        no_images: tuple[str, ...] = ()
        before = len(self.problems)
        images = self.attempt(self.images, no_images)
        video = self.attempt(self.video, None)
        media_known = len(self.problems) == before
        self.attempt(lambda: self.check_text(messages, system, video), None)
        if turns and media_known:
            placed = self.attempt(lambda: self.place_tags(turns, images, video), turns)
        clip = self.attempt(self.clip, None) if video else None
        sizes = self.attempt(lambda: self.sizes(len(images)), None) if images else None
        record = None
        if not self.problems:
            record = Record(
                turns=tuple(placed),
                images=images,
                video=video,
                clip=clip,
                sizes=sizes,
                system=system,
                length=self.length(),
                dropped_leading_answer=dropped,
                warnings=tuple(self.remarks),
            )
        return Reading(
            record=record,
            data=self.data,
            problems=tuple(self.problems),
            remarks=tuple(self.remarks),
            messages=tuple(messages),
            media=(video,) if video else images,
            is_video=video is not None,
        )

    # -- conversation ---------------------------------------------------------------------------

    def messages(self) -> tuple[list[tuple[str, str]], bool, str | None]:
        """(role, text) pairs without system turn and leading answer; whether one was dropped."""
        raw = self.data.get("conversations") or self.data.get("messages")
        if not isinstance(raw, list) or not raw:
            raise self.error(
                "SCHEMA", '"conversations" is missing or empty', "Give it a list of turns."
            )
        messages = []
        for number, turn in enumerate(raw):
            try:
                messages.append(self.message(number, turn))
            except BadRecordError as err:
                self.problems.append(err)
        system = self.system()
        if not messages:
            return messages, False, system
        if messages[0][0] == "system":
            if system is None:
                system = messages[0][1]
            messages = messages[1:]
        dropped = bool(messages) and messages[0][0] == "assistant"
        return messages[dropped:], dropped, system

    def message(self, number: int, turn: Any) -> tuple[str, str]:
        if not isinstance(turn, dict):
            raise self.error("SCHEMA", f"turn {number} is no object")
        if len(turn) > 2:
            self.remarks.update(dict.fromkeys(turn_key_remarks(turn)))
        role = turn.get("from", turn.get("role"))
        text = turn.get("value", turn.get("content"))
        if not isinstance(text, str):
            raise self.error(
                "SCHEMA",
                f'the text ("value") of turn {number} is {shown(text)}, no string',
                'Write the text as one string; files go under "image" or "video".',
            )
        if isinstance(role, str):
            if role in _USER:
                return "user", text
            if role in _ASSISTANT:
                return "assistant", text
            if role == "system" and number == 0:
                return "system", text
        raise self.error(
            "ROLE", f"unknown role {shown(role)} in turn {number}", 'Use "human" and "gpt".'
        )

    def turns(self, messages: list[tuple[str, str]]) -> list[tuple[str, str]]:
        if not messages:
            raise self.error("TURNS", "no question is left", "Begin with a human turn.")
        for number, (role, text) in enumerate(messages):
            expected = "assistant" if number % 2 else "user"
            if role != expected:
                raise self.error(
                    "TURNS",
                    f"turn {number} is {role}'s, want {expected}'s",
                    "Let human and gpt alternate.",
                )
            if role == "assistant" and not text.strip():
                raise self.error("EMPTY_ANSWER", f"the answer in turn {number} is empty")
        if len(messages) % 2:
            raise self.error("TURNS", f"{len(messages)} turns: the last question has no answer")
        return [(messages[i][1], messages[i + 1][1]) for i in range(0, len(messages), 2)]

    def system(self) -> str | None:
        value = self.data.get("system")
        if value is not None and not isinstance(value, str):
            raise self.error("SCHEMA", f'"system" is {shown(value)}, want a string')
        return value

    def check_text(
        self, messages: list[tuple[str, str]], system: str | None, video: str | None
    ) -> None:
        """Refuse control tokens: in the text they would break counting or masking."""
        questions = [text for role, text in messages if role == "user"]
        answers = [text for role, text in messages if role != "user"]
        if system is not None:
            questions.append(system)
        self.remarks.update(
            dict.fromkeys(text_remarks(questions, answers, video=video is not None))
        )
        for text in (*questions, *answers):
            if "<" not in text:
                continue
            for token in _CONTROL:
                if token in text:
                    raise self.error(
                        "CONTROL_TOKEN",
                        f"the text holds the control token {token}",
                        "Remove or spell it differently.",
                    )

    # -- images and video -----------------------------------------------------------------------

    def images(self) -> tuple[str, ...]:
        value = self.data.get("image")
        if value is None or value == "" or value == []:
            value = self.data.get("images")
        if value is None or value == "" or value == []:
            return ()
        paths = [value] if isinstance(value, str) else value
        if not isinstance(paths, list) or not all(isinstance(p, str) and p for p in paths):
            raise self.error("SCHEMA", f'"image" is {shown(value)}, want a path or a list of paths')
        for path in paths:
            if path[:5].lower() == "data:":
                raise self.error(
                    "SCHEMA",
                    '"image" is a data: URL, want a path',
                    "Write its image into a file of its own and name that.",
                )
            if path.lower().endswith(VIDEO_ENDINGS):
                raise self.error(
                    "VIDEO_AS_IMAGE",
                    f'the video {shown(path)} stands under "image"',
                    'Name it under "video" and write <video> for it.',
                )
        return tuple(paths)

    def video(self) -> str | None:
        value = self.data.get("video")
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise self.error("SCHEMA", f'"video" is {shown(value)}, want one path')
        if self.data.get("image") or self.data.get("images"):
            raise self.error("SCHEMA", 'has both "image" and "video"', "Split it into two records.")
        return value

    def clip(self) -> tuple[float, float] | None:
        value = self.data.get("clip")
        if value is None:
            return None
        if (
            not isinstance(value, list)
            or len(value) != 2
            or not all(_is_number(v) for v in value)
            or not 0 <= value[0] < value[1]
        ):
            raise self.error("SCHEMA", f'"clip" is {shown(value)}, want [start, end] in seconds')
        return float(value[0]), float(value[1])

    def place_tags(
        self, turns: list[tuple[str, str]], images: tuple[str, ...], video: str | None
    ) -> list[tuple[str, str]]:
        return self.place_video_tag(turns) if video else self.place_image_tags(turns, len(images))

    def place_image_tags(
        self, turns: list[tuple[str, str]], num_images: int
    ) -> list[tuple[str, str]]:
        self.refuse_in_answers(turns, IMAGE_TAG)
        num_tags = sum(question.count(IMAGE_TAG) for question, _ in turns)
        if num_tags == num_images:
            return turns
        if num_tags == 0:
            question, answer = turns[0]
            return [(f"{IMAGE_TAG}\n" * num_images + question, answer), *turns[1:]]
        tags = "placeholder" if num_tags == 1 else "placeholders"
        files = "file" if num_images == 1 else "files"
        raise self.error(
            "TAG_MISMATCH",
            f'{num_tags} <image> {tags}, {num_images} {files} in "image"',
            "Make them as many.",
        )

    def place_video_tag(self, turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
        self.refuse_in_answers(turns, VIDEO_TAG)
        self.refuse_in_answers(turns, IMAGE_TAG)
        if any(IMAGE_TAG in question for question, _ in turns):
            raise self.error(
                "TAG_MISMATCH", "an <image> placeholder in a video record", "Use <video>."
            )
        num_tags = sum(question.count(VIDEO_TAG) for question, _ in turns)
        if num_tags > 1:
            raise self.error(
                "TAG_MISMATCH", f"{num_tags} <video> placeholders, 1 video", "Keep one."
            )
        if num_tags == 1:
            return turns
        question, answer = turns[0]
        return [(f"{VIDEO_TAG}\n{question}", answer), *turns[1:]]

    def refuse_in_answers(self, turns: list[tuple[str, str]], tag: str) -> None:
        for number, (_, answer) in enumerate(turns):
            if tag in answer:
                raise self.error(
                    "TAG_IN_ANSWER",
                    f"{tag} in the answer of round {number}",
                    "Move it to the question.",
                )

    def sizes(self, num_images: int) -> tuple[Size, ...] | None:
        sides = []
        for key in ("width", "height"):
            value = self.data.get(key)
            values = value if isinstance(value, list) else [value]
            if isinstance(value, list) and value and len(value) != num_images:
                raise self.error(
                    "SCHEMA",
                    f'"{key}" lists {len(value)} numbers for {num_images} images',
                    "Write one number an image, in the images' order.",
                )
            sides.append(values)
        widths, heights = sides
        if not len(widths) == len(heights) == num_images:
            return None
        if not all(_is_number(v) and v > 0 for v in [*widths, *heights]):
            return None
        return tuple(zip(widths, heights, strict=True))

    def length(self) -> int | None:
        value = self.data.get("length")
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value)


def read_media(data: dict[str, Any], *, where: str) -> tuple[tuple[str, ...], str | None]:
    """(images, video) that an object names, by the rules of a record; it may name both.

    Args:
        data: a question, say.
        where: ``file:line``, for messages.

    Raises:
        BadRecordError: what stands there is no path and no list of paths.
    """
    images = _Reader(data, where, ()).images()
    video = None if data.get("video") == [] else data.get("video")
    return images, _Reader({"video": video}, where, ()).video()
