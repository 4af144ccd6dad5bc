"""What is wrong with a file that somebody asks about, without the words of training data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from internvl_chat.data.bad_record import BadRecordError
from internvl_chat.data.storage import CHECK_ROOT
from internvl_chat.errors import ConfigError, DatasetError

_FIXES: Final = {
    "MISSING_FILE": "Check the path.",
    "TOO_MANY_PIXELS": "Shrink it.",
}
"""How a file is mended where there is no dataset with records."""


@contextmanager
def told_for_inference() -> Iterator[None]:
    """Let the block's errors speak of the file alone, not of a dataset and its records.

    Raises:
        BadRecordError: of any DatasetError of the block.
        ConfigError: a reader of videos is not installed.
    """
    try:
        yield
    except BadRecordError as err:
        fix = _FIXES.get(err.code)
        if err.code == "MISSING_FILE" and err.fix not in (None, CHECK_ROOT):
            fix = err.fix  # which member of an archive may be meant
        if err.code == "NOT_AN_IMAGE" and "video" in err.problem.partition(": it is ")[2]:
            fix = "Ask about it as a video."
        if err.code == "NOT_A_VIDEO" and err.fix is not None:
            fix = "Ask about it as an image."
        problem = err.problem.replace('"clip"', "a bound")
        is_named = err.where and (err.where in problem or repr(err.where)[1:-1] in problem)
        where = None if is_named else err.where
        raise BadRecordError(err.code, problem, where=where, fix=fix) from err
    except DatasetError as err:  # a URL that nothing here opens
        raise BadRecordError(
            "UNREADABLE_FILE",
            f"cannot read {err.where}: {err.problem.replace(' roots are', ' files are')}",
            fix="Download it, and name the file.",
        ) from err
    except ConfigError as err:
        fix = err.fix and err.fix.replace("--video_backend ", "the video backend ")
        raise ConfigError(err.problem, fix=fix) from err  # `where` is a flag of training
