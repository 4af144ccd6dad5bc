"""What keeps a model on the hub from being read, each in a sentence with its mend."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from internvl_chat.checkpoint.hub_names import HubName, cached_snapshot
from internvl_chat.errors import Attempt, CheckpointError, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST),
    *(errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP),
)
_NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
"""Packages whose errors are about the way to the hub; which one it is depends on versions."""


class NoRoomError(CheckpointError):
    """The disk of the hub's cache filled up in the middle of a download."""

    exit_code = 7  # as train's, for a disk that filled up


def download_command(name: HubName) -> str:
    """What brings a model into the cache by hand."""
    revision = f" --revision {name.revision}" if name.revision else ""
    return f"hf download {name.repo}{revision}"


def not_in_cache(name: HubName, *, is_incomplete: bool = False) -> CheckpointError:
    """Nothing may be fetched, and it is not here."""
    what = "only in part in the hub's cache" if is_incomplete else "not in the hub's cache"
    return CheckpointError(
        f"no such directory, and the model of that name is {what} while HF_HUB_OFFLINE "
        "(or TRANSFORMERS_OFFLINE) is set",
        where=str(name),
        fix=f"On a machine with network, download with: {download_command(name)}",
    )


@contextmanager
def told(name: HubName, cache: Path) -> Iterator[None]:
    """Turn what huggingface_hub raises over a model into one sentence.

    Args:
        name: of the model.
        cache: that it is brought into.

    Raises:
        CheckpointError: in place of the library's error; what is none of the hub's stays.
    """
    with Attempt() as attempt:
        yield
    if attempt.error is None:
        return
    error = _in_a_sentence(attempt.error, name, cache)
    if error is attempt.error:
        raise error
    raise error from attempt.error


def _in_a_sentence(err: Exception, name: HubName, cache: Path) -> Exception:
    if isinstance(err, UserError):
        return err
    from huggingface_hub.errors import LocalEntryNotFoundError

    # What the cache lacks is told where the hub's answer is the cause.
    cause = err.__cause__ if isinstance(err, LocalEntryNotFoundError) else err
    return _refused(cause, name) or _of_disk(err, name, cache) or _of_network(err, name) or err


def _refused(err: BaseException | None, name: HubName) -> CheckpointError | None:
    """What the hub said; None if it said nothing."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if not isinstance(err, HfHubHTTPError):
        return None
    where, page = str(name), f"{constants.ENDPOINT}/{name.repo}"
    status = err.response.status_code
    if isinstance(err, GatedRepoError):
        return CheckpointError(
            "the model is gated",
            where=where,
            fix=f"Accept the licence at {page}, then `hf auth login` (or set HF_TOKEN).",
        )
    # 401 is the hub's answer about what is not there to who is not signed in.
    if isinstance(err, RepositoryNotFoundError) or status == 401:
        return CheckpointError(
            "no such directory, and no such model on the hub",
            where=where,
            fix="Correct the name; a private model needs `hf auth login` (or HF_TOKEN).",
        )
    if isinstance(err, RevisionNotFoundError):
        return CheckpointError(
            f"the model has no revision {name.revision}",
            where=where,
            fix=f"Its branches, tags and commits: {page}/commits.",
        )
    return CheckpointError(
        f"{constants.ENDPOINT} answers {status} {err.response.reason_phrase}".rstrip(),
        where=where,
        fix="Sign in with `hf auth login`." if status == 403 else "Try again later.",
    )


def _of_disk(err: Exception, name: HubName, cache: Path) -> CheckpointError | None:
    """What kept a file from being written; None if nothing did."""
    if isinstance(err, OSError) and err.errno in _FULL:
        return NoRoomError(
            f"{os.strerror(err.errno)} in {cache} while it was downloaded",
            where=str(name),
            fix="Make room, or set HF_HOME to a folder on a larger disk, and start again: files "
            "that have arrived whole are kept.",
        )
    if isinstance(err, OSError) and err.errno in _UNWRITABLE:
        return CheckpointError(
            f"cannot be written into the hub's cache ({err.strerror}: {err.filename or cache})",
            where=str(name),
            fix="Set HF_HOME to a folder of your own.",
        )
    return None


def _of_network(err: Exception, name: HubName) -> CheckpointError | None:
    """That the hub was not reached, or not to the end; None if it was."""
    from huggingface_hub import constants

    if not _is_of_network(err):
        return None
    problem = "no such directory, and {} cannot be reached for the model of that name ({})"
    if cached_snapshot(name) is not None:
        problem = "its download from {} broke off ({})"
    return CheckpointError(
        problem.format(constants.ENDPOINT, _reason(err)),
        where=str(name),
        fix="Start again, files that have arrived whole are kept; or, where there is network, "
        f"download with: {download_command(name)}",
    )


def _is_of_network(err: BaseException | None) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(err, (ConnectionError, TimeoutError, LocalEntryNotFoundError)):
        return True
    package = type(err).__module__.partition(".")[0]
    # huggingface_hub raises a plain OSError where a file's size is not the promised one.
    return package in _NETWORK or "Consistency check failed" in str(err)


def _reason(err: BaseException) -> str:
    found = err.__cause__ or err
    text = str(found).strip().split("\n")[0]
    return text or type(found).__name__
