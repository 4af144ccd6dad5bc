"""An OUTPUT_DIR that cannot be written into: told in one line, before a run and in the middle."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from internvl_chat.checkpoint.manifest import clear_leftovers, list_checkpoints
from internvl_chat.errors import ConfigError, UserError
from internvl_chat.files import sync_file

_PROBE_BYTES = 64 * 2**10

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ANYWHERE = (*_FULL, errno.EROFS)
_IN_OUTPUT_DIR = (errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.ENOENT, errno.ESTALE)

_TOLD = re.compile(
    r"\(os error (?P<number>\d+)\)"  # tokenizers and safetensors
    r"|\[Errno (?P<sent>\d+)\]"  # sent by a data worker, as text
    r"|(?P<torch>PytorchStreamWriter failed|inline_container.*unexpected pos|file write failed)"
)
"""How libraries tell that a file could not be written, without an ``OSError``."""


class OutputError(UserError):
    """What a run writes cannot be written any more: a disk is full, read-only or gone."""

    exit_code = 7


def require_writable(output_dir: Path, *, flag: str = "--output_dir") -> None:
    """Make the folder and write into it, so that a run fails now and not at its first save.

    Args:
        output_dir: the folder.
        flag: that names it.

    Raises:
        ConfigError: it cannot be made, or not be written into.
    """
    probe = output_dir / f".writable.{os.getpid()}"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(_PROBE_BYTES))
            sync_file(probe)
        finally:
            probe.unlink(missing_ok=True)
    except (OSError, ValueError) as err:  # ValueError: a NUL in the name
        reason = getattr(err, "strerror", None) or err
        raise ConfigError(
            f"{flag} {output_dir}: cannot be written into ({reason}).",
            fix="Make room or give yourself the right to write there, or give another folder.",
        ) from err


@contextmanager
def telling_of_output(output_dir: Path, *, is_main: bool) -> Iterator[None]:
    """Turn an error of writing, of whatever type libraries make of it, into a line for the user.

    Args:
        output_dir: of the run.
        is_main: whether this is rank 0, which clears half-written checkpoints of a full disk away:
            without them the status can be written, and the next start would remove them anyway.

    Raises:
        OutputError: in place of the library's error.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as err:
        found = writing_problem(err, output_dir)
        if found is None:
            raise
        if is_main:
            _clear(output_dir)
        place, reason = found
        raise OutputError(
            f"cannot be written any more: {reason}",
            where=place,
            fix=f"Make room or mend the disk ({_free(output_dir)} in OUTPUT_DIR), then start the "
            f"same command again: it {_next_start(output_dir)}.",
        ) from err


def writing_problem(err: BaseException, output_dir: Path) -> tuple[str, str] | None:
    """What kept a file from being written; None if the error is of another kind.

    Args:
        err: with what it was raised from.
        output_dir: of the run.

    Returns:
        The file, or ``output_dir`` where libraries do not name it, and the reason.
    """
    if not isinstance(err, Exception):
        return None  # ended from outside, whatever else is on its way
    seen: set[int] = set()
    current: BaseException | None = err
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        found = _place_and_reason(current, output_dir)
        if found is not None:
            return found
        current = current.__cause__ or current.__context__
    return None


def _place_and_reason(err: BaseException, output_dir: Path) -> tuple[str, str] | None:
    if isinstance(err, OSError) and err.errno is not None:
        name = err.filename2 or err.filename  # the second one is where a copy goes
        name = os.fsdecode(name) if isinstance(name, (str, bytes)) else ""
        is_inside = os.path.abspath(name).startswith(os.path.abspath(output_dir) + os.sep)
        if err.errno in _ANYWHERE or (err.errno in _IN_OUTPUT_DIR and name and is_inside):
            return name or str(output_dir), os.strerror(err.errno)
        return None
    text = str(err)
    found = _TOLD.search(text)
    if found is None or "/dev/shm" in text or "</torch_" in text:  # memory that workers share
        return None
    if found["torch"]:
        return str(output_dir), "a file of a checkpoint could not be written to its end"
    number = int(found["number"] or found["sent"])
    return (str(output_dir), os.strerror(number)) if number in _ANYWHERE else None


def _clear(output_dir: Path) -> None:
    try:
        clear_leftovers(output_dir)
    except OSError:  # a disk that is gone: the line below says enough
        return


def _free(output_dir: Path) -> str:
    try:
        return f"{shutil.disk_usage(output_dir).free / 2**20:.0f} MiB are free"
    except OSError:
        return "it does not answer"


def _next_start(output_dir: Path) -> str:
    try:
        checkpoints = list_checkpoints(output_dir)
    except OSError:
        checkpoints = []
    return f"goes on from {checkpoints[0].name}" if checkpoints else "starts anew"
