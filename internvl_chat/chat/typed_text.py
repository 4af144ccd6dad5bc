"""What people type: questions, and names of files as shells and file managers write them."""

from __future__ import annotations

import os
import shlex
from urllib.parse import unquote

from internvl_chat.data.storage import exists, is_url
from internvl_chat.errors import DatasetError
from internvl_chat.model.constants import IMG_CONTEXT_TOKEN


def require_text(question: str) -> None:
    """Raises:
    ValueError: the question is empty, holds bytes that are no UTF-8 (as Python escapes them), or
        a token that stands for images.
    """
    if not question.strip():
        raise ValueError("the question is empty")
    try:
        question.encode("utf-8")
    except UnicodeEncodeError as err:
        escaped = ord(question[err.start])
        what = f"byte 0x{escaped & 0xFF:02x}" if 0xDC80 <= escaped <= 0xDCFF else "half a character"
        raise ValueError(
            f"the question is no UTF-8: {what} at character {err.start + 1}. Set the terminal or "
            "the file to UTF-8"
        ) from err
    if IMG_CONTEXT_TOKEN in question:
        raise ValueError(f"{IMG_CONTEXT_TOKEN} is reserved for images. Leave it out")


def find_file(typed: str) -> str:
    r"""The file that somebody means: as typed, with ``~`` for the home folder, or unquoted.

    A name with spaces needs no quotes; what a terminal makes of a file that is dropped on it
    (``'my photo.jpg'``, ``my\ photo.jpg``) is understood. What is nowhere stays as typed, without
    the quotes around it.
    """
    candidates = [typed, os.path.expanduser(typed)]
    if typed.startswith("file://"):
        candidates.append(unquote(typed.removeprefix("file://")))
    try:
        words = shlex.split(typed)
    except ValueError:  # an apostrophe
        words = []
    if len(words) == 1:
        candidates += [words[0], os.path.expanduser(words[0])]
    is_quoted = len(words) == 1 and typed[0] in "\"'"
    otherwise = candidates[-1] if is_quoted else candidates[1]
    return next((name for name in candidates if _is_there(name)), otherwise)


def _is_there(name: str) -> bool:
    try:
        return not is_url(name) and exists(name)
    except DatasetError:
        return False
