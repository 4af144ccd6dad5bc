"""What in a record trains, but hardly as its author meant: keys that nothing reads, leftovers in
the text.

Pure, and cheap enough to run on every record whenever it is read: counting tokens ahead of training
and ``data check`` both tell it. A remark is one string, ``CODE: what``, so that equal ones can be
counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from internvl_chat.model.suggestions import suggest

IMAGE_ENDINGS: Final = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif"),
    *(".svg", ".avif", ".jp2", ".jfif", ".ppm"),
)
VIDEO_ENDINGS: Final = (
    *(".mp4", ".avi", ".mov", ".mkv", ".webm", ".flv", ".wmv", ".m4v", ".mpg", ".mpeg", ".3gp"),
    *(".ts", ".ogv"),
)
RECORD_KEYS: Final = frozenset(
    {
        *("id", "image", "images", "video", "clip", "width", "height", "length", "system"),
        *("conversations", "messages"),
    }
)
TURN_KEYS: Final = frozenset({"from", "value", "role", "content", "kind"})
_METADATA: Final = frozenset(
    {
        *("model", "source", "question_id", "idx", "index", "uid", "uuid", "dataset", "task"),
        *("dataset_name", "data_source", "task_type", "category", "type", "split", "license"),
        *("score", "image_id", "ann_id", "annotation_id", "lang", "language", "tags", "version"),
        *("metadata", "meta", "info", "comment", "note", "timestamp", "date", "author", "name"),
        *("skill", "ability", "capability", "domain", "subject", "level", "group", "year", "sha"),
        *("difficulty", "topic", "input", "url", "quality", "num_turns", "origin", "created_at"),
    }
)
"""Says nothing about images, text or the loss: no remark."""

_MEDIA_KEY: Final = re.compile(
    r"(?:image|img|photo|pic|video|vid|movie|audio|frame|visual)s?"
    r"[_-]?(?:path|file|name|file_?name|url|uri|list|data|bytes|base64|folder|dir)?s?|"
    r"(?:multi_?modal|mm)_?(?:data|input)s?|pixel_values",
    re.IGNORECASE,
)
# "weight": 1, "loss": true, … learn as usual; any other value would not.
_LEARN_KEY: Final = re.compile(
    r"(?:loss|weight|train|trainable|training|learn|supervised?|is_trained|train_on|"
    r"train_on_(?:inputs?|prompt|response|turn)|compute_loss|calculate_loss|has_loss|kto_tag)"
    r"(?:_?(?:weight|scale|factor|mask|detail)s?)?",
    re.IGNORECASE,
)
# "mask": true, … do not learn.
_SKIP_KEY: Final = re.compile(
    r"(?:mask|masked|ignore|ignored|skip|exclude|excluded)"
    r"(?:_?(?:loss|train|training|history|turn|label)s?)?|(?:no|without)_?(?:loss|train|training)",
    re.IGNORECASE,
)
_LEARN_AS_USUAL: Final = (True, 1, "true", "True", "1", "1.0", "yes", "all", "default", None)
_SKIP_NOT: Final = (False, 0, "false", "False", "0", "no", "", None)

_STRAY: Final = re.compile(
    r"<\|(?:image|vision|video|audio|img)[A-Za-z0-9_]*\|>"
    r"|<(?:video|audio|ImageHere|VideoHere|image_placeholder|video_placeholder|im_patch|im_start|"
    r"im_end|vid_patch|image_pad|Image|IMAGE|IMG|Video|VIDEO)>"
    r"|<(?:image|img|video)[_-]?\d+>"
    r"|<\s+(?:image|video)\s*>|<(?:image|video)\s+>|\[IMG\]|\[IMAGE\]"
)
_REFUSED: Final = re.compile(r"<\|im_(?:start|end)\|>")  # an error already
_SENTENCE: Final = re.compile(r"</?s>")
_TEMPLATE: Final = re.compile(
    r"\[/?INST\]|<</?SYS>>"
    r"|<\|[A-Za-z][A-Za-z0-9_]*\|>"
    r"|</?(?:start|end)_of_turn>|<(?:bos|eos|pad)>|\[gMASK\]|<reserved_\d+>|<｜[^｜<>]{1,30}｜>"
    r"|(?m:^#{2,3} ?(?:Human|Assistant|USER|ASSISTANT): ?)"
)
# (opening, closing): found one after the other, as one lazy pattern takes quadratic time.
_VICUNA: Final = (re.compile(r"(?:\A|\s)USER:\s"), re.compile(r"(?:\s|</s>)ASSISTANT:"))
_ALPACA: Final = (re.compile(r"(?m:^### Instruction:)"), re.compile(r"(?m:^### Response:)"))

NAN_REMARK: Final = "NAN: a field is NaN or Infinity, which is not JSON; it is read as null"


def split_remark(remark: str) -> tuple[str, str]:
    """(code, what) of a remark."""
    code, _, what = remark.partition(": ")
    return code, what


def record_key_remarks(data: dict[str, Any]) -> Iterator[str]:
    """Keys of a record that nothing reads."""
    for key, other in (("images", "image"), ("messages", "conversations")):
        if data.get(key) and data.get(other) and not _same(data[key], data[other]):
            code = "MEDIA_KEY" if key == "images" else "UNKNOWN_KEY"
            yield f'{code}: key "{key}" is not used beside "{other}"'
    others = data.keys() - RECORD_KEYS
    if others:
        seen = _base_names([data.get(key) for key in ("image", "images", "video")])
        for key in others:
            yield from _key_remarks(key, data[key], "", RECORD_KEYS, seen)


def turn_key_remarks(turn: dict[str, Any]) -> Iterator[str]:
    """Keys of a turn that nothing reads."""
    for key in turn.keys() - TURN_KEYS:
        yield from _key_remarks(key, turn[key], " of a turn", TURN_KEYS, frozenset())


def has_loss_mark(data: Mapping[str, Any]) -> bool:
    """Whether a key of a turn or a record says that the text is not to be learned as any."""
    return any(
        _is_loss_mark(key, value) for key, value in data.items() if value not in ("", [], {})
    )


def _is_loss_mark(key: str, value: object) -> bool | None:
    """None for a key that says nothing about the loss."""
    if _LEARN_KEY.fullmatch(key) or (key == "label" and value is False):
        return value not in _LEARN_AS_USUAL
    return value not in _SKIP_NOT if _SKIP_KEY.fullmatch(key) else None


def _key_remarks(
    key: str, value: object, of: str, known: frozenset[str], seen: frozenset[str]
) -> Iterator[str]:
    """``seen`` are the file names of the images and videos that are read."""
    if value is None or value == "" or value == [] or value == {}:
        return
    names = _base_names([value])
    if seen and names <= seen and (names or _MEDIA_KEY.fullmatch(key)):
        return  # the same once more, or something else about it
    if names and key not in _METADATA:
        yield f'MEDIA_KEY: key "{key}"{of} is not read: what it names is not seen'
        return
    is_mark = _is_loss_mark(key, value)
    if is_mark is not None:
        if is_mark:
            yield f'LOSS_MARK: key "{key}"{of} is {shown(value)}, but the text is learned as any'
        return
    if key in _METADATA or key.endswith("_id"):
        return
    if _MEDIA_KEY.fullmatch(key):
        yield f'MEDIA_KEY: key "{key}"{of} is not read: what it names is not seen'
        return
    yield f'UNKNOWN_KEY: key "{key}"{of} is not read. {_hint(key, known)}'.rstrip()


@lru_cache(maxsize=1024)
def _hint(key: str, known: frozenset[str]) -> str:
    return suggest(key, sorted(known), cutoff=0.75, write=lambda name: f'"{name}"')


def _base_names(values: Sequence[object]) -> frozenset[str]:
    """File names of images and videos among paths, lists of paths and objects that hold a path."""
    found = []
    for value in values:
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                one = one.get("path") or one.get("url") or one.get("bytes")
            if isinstance(one, str) and one[-6:].lower().endswith(IMAGE_ENDINGS + VIDEO_ENDINGS):
                found.append(one.rpartition("/")[2])
    return frozenset(found)


def _same(one: object, other: object) -> bool:
    try:
        return one in (other, [other])
    except RecursionError:  # lists in lists in lists
        return False


def shown(value: object, limit: int = 60) -> str:
    """A JSON value for a message, shortened."""
    try:
        text = str(value).lower() if isinstance(value, bool) else repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _in_turn(pair: tuple[re.Pattern[str], re.Pattern[str]], text: str) -> bool:
    opening = pair[0].search(text)
    return opening is not None and pair[1].search(text, opening.end() - 1) is not None


def text_remarks(questions: Sequence[str], answers: Sequence[str], *, video: bool) -> list[str]:
    """Leftovers of other prompts and tags that mean nothing here.

    Args:
        questions, answers: the text of the turns.
        video: whether the record has a video, whose tag a question may hold.
    """
    found: dict[str, None] = {}
    for text in questions:
        if "<" in text or "[" in text:
            for match in _STRAY.finditer(text):
                tag = match[0]
                closing = f"{tag[0]}/{tag[1:]}"  # of HTML and the like, which is code
                if (tag == "<video>" and video) or f"`{tag}`" in text or closing in text:
                    continue
                found[f"STRAY_TAG: a question holds a literal {tag}, which means nothing here"] = (
                    None
                )
    for text in questions:
        _leftovers(text, found, told=_STRAY)
    for text in answers:
        _leftovers(text, found, told=_REFUSED)
    return list(found)


def _leftovers(text: str, found: dict[str, None], *, told: re.Pattern[str]) -> None:
    if "<" in text:
        for tag in ("<img>", "</img>"):
            if tag in text:
                found[f"IMG_TAG: the text holds a literal {tag}"] = None
        for mark in dict.fromkeys(_SENTENCE.findall(text)):
            found[f"SENTENCE_MARK: the text holds {mark}"] = None
    if "<" in text or "[" in text or "##" in text:
        for mark in dict.fromkeys(match.strip() for match in _TEMPLATE.findall(text)):
            if not told.fullmatch(mark) and not _REFUSED.fullmatch(mark):
                found[f"OTHER_TEMPLATE: the text holds {mark}, a mark of another template"] = None
    if "ASSISTANT:" in text and _in_turn(_VICUNA, text):
        found["OTHER_TEMPLATE: the text holds USER: … ASSISTANT:, another model's prompt"] = None
    if "### Response:" in text and _in_turn(_ALPACA, text):
        found["OTHER_TEMPLATE: the text holds ### Instruction: … ### Response:"] = None
