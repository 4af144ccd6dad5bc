"""A record's bytes -> its JSON value, with one clear reading of what Python and Windows write."""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from internvl_chat.data.bad_record import BadRecordError
from internvl_chat.data.remarks import NAN_REMARK

MAX_RECORD_BYTES: Final = 64 * 2**20
"""Longer lines are refused before they are parsed: no context holds what they say."""
_BOM = b"\xef\xbb\xbf"
_STRING_OR_NAN = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\Z)|-?\bInfinity\b|\bNaN\b', re.DOTALL)


def load_record(raw: bytes | str, *, where: str) -> tuple[Any, tuple[str, ...]]:
    """(the value, remarks about how it was read).

    Args:
        raw: a JSON value.
        where: ``file:line``, for messages.

    Raises:
        BadRecordError: it is no JSON, not UTF-8, or longer than any sample can be.
    """
    if len(raw) > MAX_RECORD_BYTES:
        raise BadRecordError(
            "RECORD_TOO_LARGE",
            f"the record has more than {MAX_RECORD_BYTES >> 20} MiB of JSON, which no sample holds",
            where=where,
            fix="Cut its text, and put images into files of their own.",
        )
    try:
        return orjson.loads(raw), ()
    except orjson.JSONDecodeError as err:
        return _leniently(raw, err, where)


def _leniently(
    raw: bytes | str, err: orjson.JSONDecodeError, where: str
) -> tuple[Any, tuple[str, ...]]:
    """What is no JSON but has one clear reading: NaN as Python writes it, a byte-order mark.

    Raises:
        BadRecordError: it has none.
    """
    text = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else bytes(raw)
    text = text.removeprefix(_BOM)
    found: list[bytes] = []

    def replace(match: re.Match[bytes]) -> bytes:
        if match[0].startswith(b'"'):
            return match[0]
        found.append(match[0])
        return b"null"

    if b"NaN" in text or b"Infinity" in text:
        text = _STRING_OR_NAN.sub(replace, text)
    try:
        return orjson.loads(text), (NAN_REMARK,) if found else ()
    except orjson.JSONDecodeError:
        pass
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as broken:
        raise BadRecordError(
            "NOT_UTF8",
            f"not JSON: byte 0x{text[broken.start]:02x} at column {broken.start + 1} is not UTF-8",
            where=where,
            fix="Save the file as UTF-8.",
        ) from err
    raise BadRecordError(
        "JSON",
        f"not JSON: {err.msg} (column {err.colno})",
        where=where,
        fix="Write one JSON object a line.",
    ) from err
