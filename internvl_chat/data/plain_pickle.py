"""Pickles that hold plain values, read without running anything that they name.

A pickle is a program: it may name any function of any module and have it called. Lists, objects,
texts and numbers need no name, so here every name is refused.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from internvl_chat.errors import DatasetError


class _PlainUnpickler(pickle.Unpickler):
    """Knows no name and no reference to anything outside."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        """Refuse it."""
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse it."""
        raise pickle.UnpicklingError("it refers to something outside")


def read_plain_pickle(path: Path) -> Any:
    """Lists, objects, texts, numbers and None of a pickle of Python 2 or 3.

    Raises:
        DatasetError: the file is missing or damaged, or holds anything else; nothing of it was run.
    """
    try:
        raw = path.read_bytes()
    except OSError as err:
        raise DatasetError(f"cannot be read ({err.strerror or err})", where=str(path)) from err
    try:
        # Texts of Python 2 are bytes of whatever its author typed; the releases' are ASCII.
        return _PlainUnpickler(io.BytesIO(raw), encoding="utf-8", errors="replace").load()
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ImportError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as err:  # all that a damaged program makes of the machine that it is for
        raise DatasetError(
            f"is no pickle of plain values ({err or type(err).__name__})",
            where=str(path),
            fix="Take the file of the release anew; what names functions or classes is not read.",
        ) from err
