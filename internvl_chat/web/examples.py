"""Questions to click: shipped ones that suit the model, or the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from internvl_chat.chat.question_lines import BLANK, open_questions
from internvl_chat.data.record_json import load_record
from internvl_chat.data.schema import read_media
from internvl_chat.errors import ConfigError

IMAGES: Final = Path(__file__).with_name("example_images")
"""In the package, drawn by ``examples/demo_images.py``."""
LOW_RESOLUTION: Final = 224
"""Pixels of a side; models that see less get drawings of the tiny model's kind."""
MOST: Final = 12
"""Of a user's file that are shown."""


@dataclass(frozen=True, kw_only=True)
class ExampleQuestion:
    """A question with its files."""

    question: str
    files: tuple[Path, ...] = ()
    title: str = ""
    """What is clicked, where the question itself is too long for it."""

    @property
    def shown(self) -> str:
        """What is clicked."""
        return self.title or self.question


def _of(image: str, question: str, title: str = "") -> ExampleQuestion:
    return ExampleQuestion(question=question, files=(IMAGES / image,), title=title)


# The prompts for boxes are the ones that the models were trained with.
_LARGE: Final = (
    _of("street.png", "Describe this image in one or two sentences."),
    _of(
        "street.png",
        "Please provide the bounding box coordinate of the region this sentence describes: "
        "<ref>the red car</ref>",
        title="Where is the red car? Draw its box.",
    ),
    _of("chart.png", "Which month had the most visitors, and how many?"),
    _of("receipt.png", "What was bought, and what did it cost in total?"),
    ExampleQuestion(question="Why is the sky blue? Explain it in two sentences."),
)
_SMALL: Final = (
    _of("small_shapes.png", "How many shapes are there?"),
    _of(
        "small_shapes.png",
        "Give the box of <ref>red star</ref>.",
        title="Where is the red star? Draw its box.",
    ),
    _of("small_bars.png", "List the bars and their values."),
    _of("small_sign.png", "Read the text."),
    ExampleQuestion(question="What is 2 plus 3?"),
)
_DIGIT: Final = _of("small_digit.png", "Which digit is this?")


def shipped_examples(image_size: int, *, compared: bool) -> tuple[ExampleQuestion, ...]:
    """Examples that a model can be asked without an image of one's own.

    Args:
        image_size: side in pixels of what it sees; of several models the smallest.
        compared: two models are asked. The tiny model knows no digit until the quickstart has
            taught it those: a question to see the difference with.
    """
    if image_size >= LOW_RESOLUTION:
        return _LARGE
    return (_DIGIT, *_SMALL) if compared else _SMALL


def read_examples(path: Path) -> tuple[ExampleQuestion, ...]:
    """The user's own, from lines as ``chat --batch`` reads them; the first :data:`MOST`.

    Raises:
        ConfigError: the file cannot be read, holds no question, or an image is missing.
        DatasetError: a line is no record.
    """
    found: list[ExampleQuestion] = []
    for number, line in enumerate(open_questions(str(path), option="--examples").lines, start=1):
        if line.strip(BLANK) and len(found) < MOST:
            found.append(_read(line, f"{path}:{number}"))
    if not found:
        raise ConfigError(f"{path} holds no question", where="--examples", fix=_LINE)
    return tuple(found)


_LINE: Final = 'Write lines of {"question": "...", "image": FILE or [FILES]}.'


def _read(line: bytes, where: str) -> ExampleQuestion:
    record, _ = load_record(line, where=where)
    question = record.get("question") if isinstance(record, dict) else None
    if not isinstance(question, str) or not question.strip():
        raise ConfigError("the line has no question", where=where, fix=_LINE)
    images, video = read_media(record, where=where)
    files = tuple(Path(name) for name in (*images, *([video] if video else [])))
    for file in files:
        if not file.is_file():
            raise ConfigError(
                f"{file} is not there", where=where, fix="Paths count from the current folder."
            )
    return ExampleQuestion(question=question, files=files)
