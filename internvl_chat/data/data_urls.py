"""``data:`` URLs and base64 as browsers read them.

Source: https://fetch.spec.whatwg.org/#data-url-processor and
https://infra.spec.whatwg.org/#forgiving-base64-decode
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from typing import Final

import numpy as np

_SCHEME: Final = "data:"
_WHITE_SPACE: Final = " \t\n\f\r"
_NO_WHITE_SPACE: Final = str.maketrans("", "", _WHITE_SPACE)
_NOT_IN_URLS: Final = str.maketrans("", "", "\t\n\r")
_AROUND_URLS: Final = "".join(map(chr, range(0x21)))
_BASE64_MARK: Final = re.compile(r"; *base64$", re.IGNORECASE)
_NO_BASE64: Final = re.compile(r"[^A-Za-z0-9+/]")
_NO_HEX_DIGIT: Final = 255
_HEX_DIGITS: Final = np.full(256, _NO_HEX_DIGIT, dtype=np.uint8)
for _digit in "0123456789abcdefABCDEF":
    _HEX_DIGITS[ord(_digit)] = int(_digit, 16)


class DataUrlError(ValueError):
    """No ``data:`` URL, or one whose data are damaged; the text says what to mend."""


@dataclass(frozen=True)
class DataUrl:
    """What a ``data:`` URL holds."""

    media_type: str
    """``image/png``, lower case and without parameters; empty if the URL names none."""
    raw: bytes


def is_data_url(text: str) -> bool:
    """Whether a text is a ``data:`` URL, whole or broken; the scheme may be upper case."""
    start = text[:64].lstrip(_AROUND_URLS).translate(_NOT_IN_URLS)
    return start[: len(_SCHEME)].lower() == _SCHEME


def read_data_url(url: str) -> DataUrl:
    """The type and the bytes of a ``data:`` URL.

    Percent escapes are decoded, and base64 is read by :func:`forgiving_base64`. Parameters of the
    type (``;charset=…``) are passed over; what follows ``#`` is no data.

    Raises:
        DataUrlError: no ``data:`` URL, no comma, or base64 that is broken.
    """
    if not is_data_url(url):
        raise DataUrlError("no data: URL")
    rest = url.strip(_AROUND_URLS).translate(_NOT_IN_URLS)[len(_SCHEME) :].partition("#")[0]
    head, comma, body = rest.partition(",")
    if not comma:
        raise DataUrlError("a data: URL without a comma before its data")
    head = head.strip(_WHITE_SPACE)
    raw = percent_decoded(body)
    mark = _BASE64_MARK.search(head)
    if mark is not None:
        head, raw = head[: mark.start()], forgiving_base64(raw.decode("latin-1"))
    return DataUrl(head.partition(";")[0].strip(_WHITE_SPACE).lower(), raw)


def percent_decoded(text: str) -> bytes:
    """UTF-8 of a text, ``%2B`` being one byte; a percent sign before anything else stays."""
    data = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)
    signs = np.flatnonzero(data[:-2] == ord("%"))
    high, low = _HEX_DIGITS[data[signs + 1]], _HEX_DIGITS[data[signs + 2]]
    is_escape = (high != _NO_HEX_DIGIT) & (low != _NO_HEX_DIGIT)
    signs, high, low = signs[is_escape], high[is_escape], low[is_escape]
    if not len(signs):
        return data.tobytes()
    # Of a whole array, for a body may be one escape after the other, millions of them.
    decoded, kept = data.copy(), np.ones(len(data), dtype=bool)
    decoded[signs] = high * 16 + low
    kept[signs + 1] = kept[signs + 2] = False
    return decoded[kept].tobytes()


def forgiving_base64(text: str) -> bytes:
    """The bytes of base64 with or without line breaks, blanks and padding.

    Raises:
        DataUrlError: a character that base64 does not have, or a length that it cannot have.
    """
    bare = text.translate(_NO_WHITE_SPACE)
    if len(bare) % 4 == 0:
        bare = bare.removesuffix("=").removesuffix("=")
    foreign = _NO_BASE64.search(bare)
    if foreign is not None:
        place = f"{foreign[0]!r} at character {foreign.start() + 1}, line breaks and blanks aside"
        raise DataUrlError(f"broken base64: {place}")
    if len(bare) % 4 == 1:
        raise DataUrlError(f"broken base64: it ends within a byte, after {len(bare)} characters")
    return binascii.a2b_base64(bare + "=" * (-len(bare) % 4))
