"""Text files in other encodings than UTF-8: recognised by their first bytes, read all the same.

Windows tools write UTF-16 (PowerShell's ``>``, spreadsheets' "Unicode text"), with or without a
byte-order mark. Our formats begin with an ASCII character, so the pattern of zero bytes tells.
"""

from __future__ import annotations

import codecs
from typing import BinaryIO, Final

UTF8: Final = "utf-8"
BOM: Final = codecs.BOM_UTF8

_MARKS: Final = (
    # The marks of UTF-32 first: that of UTF-16 (little endian) is the start of one.
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Which of the first four bytes are zero, if the text begins with two ASCII characters (RFC 4627).
_ZEROS: Final[dict[tuple[bool, ...], str]] = {
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
    (False, True, False, True): "utf-16-le",
    (True, False, True, False): "utf-16-be",
    (False, True): "utf-16-le",  # of a file that has no more
    (True, False): "utf-16-be",
}
_CHUNK_BYTES = 1 << 22


def encoding_of(head: bytes) -> str:
    """The encoding of a text that begins with these bytes (four are enough); UTF-8 by default."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    return _ZEROS.get(tuple(byte == 0 for byte in head[:4]), UTF8)


def decode(raw: bytes) -> str:
    """A whole file's text, without its byte-order mark.

    Raises:
        UnicodeDecodeError: not valid in the encoding that it begins in.
    """
    return raw.decode(encoding_of(raw[:4])).removeprefix("\ufeff")


def recode(source: BinaryIO, target: BinaryIO, encoding: str) -> None:
    """Copy a text as UTF-8 without a byte-order mark, in the memory of a chunk.

    Half of a surrogate pair is copied as it is, which no JSON reader takes: the line is bad, not
    the file.

    Raises:
        UnicodeDecodeError: the bytes are no such text (its end is cut off, say).
    """
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    first = True
    while True:
        chunk = source.read(_CHUNK_BYTES)
        text = decoder.decode(chunk, final=not chunk)
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        target.write(text.encode(UTF8, "surrogatepass"))
        if not chunk:
            return
