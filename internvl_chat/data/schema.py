"""One record of an annotation file: conversation, image(s) or video, checked and normalised.

Pure: opens no image. What comes out needs no further interpretation: turns are (question, answer)
pairs and the questions hold exactly one ``<image>`` tag per image (or one ``<video>``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from internvl_chat.errors import DatasetError
from internvl_chat.model.constants import IMAGE_TAG, IMG_CONTEXT_TOKEN, VIDEO_TAG

_USER = {"human", "user"}
_ASSISTANT = {"gpt", "assistant"}
_CONTROL = (IMG_CONTEXT_TOKEN, "<|im_start|>", "<|im_end|>")
_LOOKS_SPECIAL = ("<img>", "</img>")

# Fields below that hold one value per image are tuples of (width, height).
Size = tuple[float, float]


class BadRecordError(DatasetError):
    """A record that cannot be trained on; the bad-record policy decides what happens.

    Args:
        code: short upper-case kind, by which reasons are counted.
    """

    def __init__(
        self, code: str, problem: str, *, where: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(problem, where=where, fix=fix)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.code, self.problem, self.where, self.fix))


def _rebuild(code: str, problem: str, where: str | None, fix: str | None) -> BadRecordError:
    return BadRecordError(code, problem, where=where, fix=fix)


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


def parse_record(raw: bytes | str, *, where: str) -> Record:
    """Read one record.

    Args:
        raw: a JSON object.
        where: ``file:line``, for messages.

    Raises:
        BadRecordError: the record breaks a rule; the message says which and how to mend it.
    """
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as err:
        raise BadRecordError(
            "JSON",
            f"not JSON: {err.msg} (column {err.colno})",
            where=where,
            fix="Write one JSON object a line.",
        ) from err
    return _Reader(data, where).record()


class _Reader:
    """Turns a parsed JSON value into a Record; every failure names ``where``."""

    def __init__(self, data: Any, where: str) -> None:
        self.where = where
        if not isinstance(data, dict):
            raise self.error("SCHEMA", f"a record is a {type(data).__name__}, want an object")
        self.data: dict[str, Any] = data
        self.warnings: list[str] = []

    def error(self, code: str, problem: str, fix: str | None = None) -> BadRecordError:
        return BadRecordError(code, problem, where=self.where, fix=fix)

    def record(self) -> Record:
        messages, dropped, system = self.messages()
        turns = self.turns(messages)
        images, video = self.images(), self.video()
        if images and video:
            raise self.error("SCHEMA", 'has both "image" and "video"', "Split it into two records.")
        self.check_text(turns, system)
        turns = self.place_video_tag(turns) if video else self.place_image_tags(turns, len(images))
        return Record(
            turns=tuple(turns),
            images=images,
            video=video,
            clip=self.clip() if video else None,
            sizes=self.sizes(len(images)) if images else None,
            system=system,
            length=self.length(),
            dropped_leading_answer=dropped,
            warnings=tuple(self.warnings),
        )

    # -- conversation ---------------------------------------------------------------------------

    def messages(self) -> tuple[list[tuple[str, str]], bool, str | None]:
        """(role, text) pairs without system turn and leading answer; whether one was dropped."""
        raw = self.data.get("conversations", self.data.get("messages"))
        if not isinstance(raw, list) or not raw:
            raise self.error(
                "SCHEMA", '"conversations" is missing or empty', "Give it a list of turns."
            )
        messages = [self.message(number, turn) for number, turn in enumerate(raw)]
        system = self.system()
        if messages[0][0] == "system":
            if system is None:
                system = messages[0][1]
            messages = messages[1:]
        dropped = bool(messages) and messages[0][0] == "assistant"
        return messages[dropped:], dropped, system

    def message(self, number: int, turn: Any) -> tuple[str, str]:
        if not isinstance(turn, dict):
            raise self.error("SCHEMA", f"turn {number} is no object")
        role = turn.get("from", turn.get("role"))
        text = turn.get("value", turn.get("content"))
        if not isinstance(text, str):
            raise self.error(
                "SCHEMA", f'the text ("value") of turn {number} is {_shown(text)}, no string'
            )
        if isinstance(role, str):
            if role in _USER:
                return "user", text
            if role in _ASSISTANT:
                return "assistant", text
            if role == "system" and number == 0:
                return "system", text
        raise self.error(
            "ROLE", f"unknown role {_shown(role)} in turn {number}", 'Use "human" and "gpt".'
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
            raise self.error("SCHEMA", f'"system" is {_shown(value)}, want a string')
        return value

    def check_text(self, turns: list[tuple[str, str]], system: str | None) -> None:
        """Refuse control tokens: in the text they would break counting or masking."""
        texts = [text for turn in turns for text in turn]
        if system is not None:
            texts.append(system)
        for text in texts:
            if "<" not in text:
                continue
            for token in _CONTROL:
                if token in text:
                    raise self.error(
                        "CONTROL_TOKEN",
                        f"the text holds the control token {token}",
                        "Remove or spell it differently.",
                    )
            for token in _LOOKS_SPECIAL:
                if token in text:
                    self.warnings.append(f"the text holds a literal {token}")

    # -- images and video -----------------------------------------------------------------------

    def images(self) -> tuple[str, ...]:
        value = self.data.get("image", self.data.get("images"))
        if value is None or value == "" or value == []:
            return ()
        paths = [value] if isinstance(value, str) else value
        if not isinstance(paths, list) or not all(isinstance(p, str) and p for p in paths):
            raise self.error(
                "SCHEMA", f'"image" is {_shown(value)}, want a path or a list of paths'
            )
        return tuple(paths)

    def video(self) -> str | None:
        value = self.data.get("video")
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise self.error("SCHEMA", f'"video" is {_shown(value)}, want one path')
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
            raise self.error("SCHEMA", f'"clip" is {_shown(value)}, want [start, end] in seconds')
        return float(value[0]), float(value[1])

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
        width, height = self.data.get("width"), self.data.get("height")
        widths = width if isinstance(width, list) else [width]
        heights = height if isinstance(height, list) else [height]
        if not len(widths) == len(heights) == num_images:
            return None
        if not all(_is_number(v) and v > 0 for v in [*widths, *heights]):
            return None
        return tuple(zip(widths, heights, strict=True))

    def length(self) -> int | None:
        value = self.data.get("length")
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
