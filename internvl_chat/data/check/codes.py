"""The table of everything that can be wrong with data: code, severity, what, mend.

An *error* is refused by training or costs the sample; a *warning* trains, but hardly as meant.
``python -m internvl_chat.data.check.codes docs/data_checks.md`` writes the table into the page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Severity = Literal["error", "warning"]

_BEGIN: Final = "<!-- codes: begin -->"
_END: Final = "<!-- codes: end -->"


@dataclass(frozen=True, slots=True)
class Check:
    """A kind of finding."""

    code: str
    severity: Severity
    what: str
    mend: str
    """What to do about it, in the imperative; a finding may say it more closely."""


def _errors(*rows: tuple[str, str, str]) -> list[Check]:
    return [Check(code, "error", what, mend) for code, what, mend in rows]


def _warnings(*rows: tuple[str, str, str]) -> list[Check]:
    return [Check(code, "warning", what, mend) for code, what, mend in rows]


_META: Final = [
    *_errors(
        (
            "META_FILE",
            "The meta JSON is missing, unreadable, no JSON object, or names no dataset.",
            'Write {"my_dataset": {"root": …, "annotation": …, …}}.',
        ),
        (
            "META_ENTRY",
            "An entry lacks a key, or a value has the wrong type.",
            "Correct the entry in the meta JSON.",
        ),
        (
            "DUPLICATE_DATASET",
            "Two entries of the meta have one name; JSON would silently keep the last.",
            "Rename or delete one.",
        ),
        (
            "ANNOTATION",
            "An annotation file is missing, unreadable, empty, or neither `.jsonl` nor a `.json` "
            "array.",
            "Download it, correct the path, or write one JSON object a line into a .jsonl file.",
        ),
        (
            "LENGTH_MISMATCH",
            "`length` in the meta is not the number of records.",
            'Correct "length" in the meta JSON, or download the annotation again if it was cut.',
        ),
    ),
    *_warnings(
        ("META_KEY", "An entry has a key that nothing reads.", "Remove or rename the key."),
        (
            "UTF16",
            "An annotation file is in UTF-16. It is read, but most other tools cannot.",
            "Save it as UTF-8.",
        ),
    ),
]

_RECORD: Final = [
    *_errors(
        ("JSON", "A line is no JSON.", "Write one JSON object a line."),
        ("NOT_UTF8", "A line is not UTF-8.", "Save the file as UTF-8."),
        (
            "RECORD_TOO_LARGE",
            "A record has more than 64 MiB of JSON, which no sample holds.",
            "Cut its text, and put images into files of their own.",
        ),
        (
            "UNREADABLE_RECORD",
            "Reading a record failed in a way that no other rule tells: memory, a number beyond "
            "every limit, a file that changed.",
            "Look at its values and files, or leave it out.",
        ),
        (
            "SCHEMA",
            "A field is missing or has a type that is not read.",
            "Write the field as docs/data.md says.",
        ),
        ("ROLE", "A turn has an unknown role.", 'Use "human" and "gpt".'),
        (
            "TURNS",
            "Turns do not alternate between human and gpt, or the last question has no answer.",
            "Let human and gpt alternate, beginning with human and ending with gpt.",
        ),
        ("EMPTY_ANSWER", "An answer is empty.", "Write the answer or remove the record."),
        (
            "TAG_MISMATCH",
            "The `<image>` (or `<video>`) tags are not as many as the files.",
            "Write one tag a file, or none at all: tags are then put first.",
        ),
        (
            "TAG_IN_ANSWER",
            "An answer holds an `<image>` or `<video>` tag.",
            "Move the tag to the question.",
        ),
        (
            "CONTROL_TOKEN",
            "The text holds a control token of the template or the tokenizer.",
            "Remove it or spell it differently.",
        ),
        ("BOX", "Boxes cannot be converted by `box_format`.", "Convert these boxes beforehand."),
    ),
    *_warnings(
        (
            "UNKNOWN_KEY",
            "A record or turn has a key that nothing reads.",
            "Rename the key if it is a misspelling, else remove it.",
        ),
        (
            "REPEATED_KEY",
            "A record has a key twice; the last one counts.",
            "Delete one; several images go into one list.",
        ),
        (
            "MEDIA_KEY",
            "Images or videos stand under another framework's key and are not seen.",
            'Name the file under "image" (a path or a list of paths) or "video" (a path).',
        ),
        (
            "LOSS_MARK",
            "A turn is marked not to be learned in another framework's way; it is learned.",
            "Remove the turn, or cut the conversation so that the answer is not in it.",
        ),
        ("NAN", "A field is NaN or Infinity, which is not JSON.", "Write null or a number."),
        (
            "STRAY_TAG",
            "A question holds a tag of a video or of another framework, without such a file.",
            'Name the file under "image" or "video" and write <image> or <video> for it.',
        ),
        (
            "IMG_TAG",
            "The text holds a literal `<img>` or `</img>`, which becomes a special token.",
            "Spell it differently if it is not meant, such as &lt;img&gt;.",
        ),
        (
            "SENTENCE_MARK",
            "The text holds `<s>` or `</s>`, left over from another model's prompt.",
            "Remove it.",
        ),
        (
            "OTHER_TEMPLATE",
            "The text holds marks of another model family's template.",
            "Write the plain turns; training puts its own template around them.",
        ),
        (
            "REPETITION",
            "More than 40 % of a text's 10-grams occur more than once.",
            "Look whether the text is a generator's loop, and shorten or remove it.",
        ),
        (
            "BOX_MALFORMED",
            "What stands in `<box>…</box>` is no list of boxes.",
            "Write <box>[[x1, y1, x2, y2]]</box> with whole numbers from 0 to 1000.",
        ),
        (
            "BOX_RANGE",
            "A box in `<box>…</box>` has a coordinate outside 0-1000.",
            "Scale the coordinates to 0-1000 (data convert-boxes).",
        ),
        (
            "BOX_INVERTED",
            "A box has its corners out of order (want x1 < x2 and y1 < y2).",
            "Write the upper left corner first.",
        ),
        (
            "DUPLICATE_RECORD",
            "The same media and conversation as in an earlier record, of any dataset.",
            "Remove one; to train on it more often, raise repeat_time.",
        ),
        (
            "DUPLICATE_ID",
            "The same id as an earlier record of the dataset.",
            "Give each record an id of its own.",
        ),
    ),
]

_MEDIA: Final = [
    *_errors(
        (
            "OUTSIDE_ROOT",
            "A path leads out of the dataset's root.",
            "Make the path relative to root, or root the common folder.",
        ),
        (
            "SYMLINK_ESCAPE",
            "A symbolic link leads out of root (with `--strict_root`).",
            "Copy the file into root, or leave --strict_root out.",
        ),
        (
            "MISSING_FILE",
            "A file does not exist.",
            'Check "root" in the meta JSON and the record\'s path.',
        ),
        ("UNREADABLE_FILE", "A file cannot be read.", "Check its permissions and the disk."),
        (
            "FILE_TOO_LARGE",
            "An image file has more than 2 GiB.",
            "Save it in a compressed format.",
        ),
        (
            "VIDEO_AS_IMAGE",
            'A video stands under "image".',
            'Name it under "video" and write <video> for it.',
        ),
        (
            "NOT_AN_IMAGE",
            "A file is no image: empty, an error page, a Git LFS pointer, another format.",
            "Download or convert the file.",
        ),
        ("TRUNCATED_IMAGE", "An image file ends early.", "Download or copy the file again."),
        ("BROKEN_IMAGE", "An image cannot be decoded.", "Download or convert the file."),
        (
            "TOO_MANY_PIXELS",
            "An image has more pixels than `--max_image_pixels`.",
            "Shrink it or raise --max_image_pixels.",
        ),
        (
            "SIZE_MISMATCH",
            "Stated width and height give another number of tiles than the image.",
            'Correct "width" and "height".',
        ),
        ("EMPTY_VIDEO", "A video or a folder holds no frame.", "Download or extract it again."),
        ("NOT_A_VIDEO", "A file is no video.", "Download or convert the file."),
        ("BROKEN_VIDEO", "A video cannot be opened or decoded.", "Download or convert the file."),
        (
            "CLIP",
            "`clip` lies outside the video, or the video has no time.",
            'Correct or remove "clip".',
        ),
    ),
    *_warnings(
        (
            "EXTENSION",
            "A file's content is not what its ending says.",
            "Rename the file, and its path in the records.",
        ),
        (
            "SIZE_DIFFERS",
            "Stated width and height are not the image's.",
            'Correct "width" and "height".',
        ),
        (
            "ALPHA_WITH_BOXES",
            "An image of a record with boxes has transparency: what is drawn may not be seen.",
            "Put the image on a ground colour and save it without transparency.",
        ),
        (
            "EXIF_WITH_BOXES",
            "An image of a record with boxes is turned by its EXIF orientation.",
            "Check that the boxes fit what is shown; if they are the stored image's, state its "
            "width and height.",
        ),
    ),
]

_TOKENS: Final = [
    *_errors(
        (
            "IMAGE_CUT",
            "Cutting at `max_seq_length` would remove image tokens.",
            "Raise --max_seq_length, or use fewer images or tiles.",
        ),
        (
            "NO_LABEL",
            "No token to learn is left within `max_seq_length`.",
            "Raise --max_seq_length or shorten the question.",
        ),
    ),
    *_warnings(
        (
            "TEXT_CUT",
            "The text is cut at `max_seq_length`; part of it is still learned.",
            "Raise --max_seq_length or split the conversation.",
        ),
    ),
]

_SECTIONS: Final[tuple[tuple[str, list[Check]], ...]] = (
    ("Meta JSON and annotation files", _META),
    ("Records and their text", _RECORD),
    ("Images and videos", _MEDIA),
    ("Token counts", _TOKENS),
)

CODES: Final[dict[str, Check]] = {check.code: check for _, checks in _SECTIONS for check in checks}
"""Every check by its code."""


def check_of(code: str) -> Check:
    """The row of a code; one that the table lacks is an error without further words."""
    return CODES.get(code) or Check(code, "error", "", "See the message.")


def codes_table() -> str:
    """The table as Markdown, a section a kind."""
    parts = []
    for title, checks in _SECTIONS:
        rows = [f"| `{c.code}` | {c.severity} | {c.what} | {_escaped(c.mend)} |" for c in checks]
        head = f"### {title}\n\n| code | severity | what | mend |\n|---|---|---|---|"
        parts.append("\n".join([head, *rows]))
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    """Tags as text: Markdown would take them for HTML."""
    return text.replace("&lt;", "&amp;lt;").replace("&gt;", "&amp;gt;").replace("<", "&lt;")


def with_table(page: str) -> str:
    """The page with the table between its two marks made anew."""
    head, _, rest = page.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    return f"{head}{_BEGIN}\n\n{codes_table()}\n\n{_END}{tail}"


def main(paths: Iterable[str]) -> None:
    """Write the table into pages."""
    for path in map(Path, paths):
        path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
