"""Errors that a user caused and can mend.

Every entry point turns a :class:`UserError` into a few lines on stderr and the exit code of the
class; anything else is our own bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType


def printable(text: str) -> str:
    """The text with what UTF-8 cannot hold (bytes of file names, half characters) written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class UserError(Exception):
    """Something the user gave is wrong.

    Args:
        problem: what is wrong, with the offending value.
        where: the place: ``file:line``, a dataset, a sample index or an argument's name.
        fix: how to mend it, in the imperative.
    """

    exit_code = 1

    def __init__(self, problem: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.problem = problem
        self.where = where
        self.fix = fix
        super().__init__(problem, where, fix)

    def __str__(self) -> str:
        text = f"{self.where}: {self.problem}" if self.where else self.problem
        if self.fix:
            text = f"{text.rstrip('.')}. {self.fix}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        # DataLoader workers send exceptions to the parent by pickle, which would otherwise call
        # the constructor with positional arguments only.
        return (_rebuild, (type(self), self.problem, self.where, self.fix))


def _rebuild(cls: type[UserError], problem: str, where: str | None, fix: str | None) -> UserError:
    return cls(problem, where=where, fix=fix)


class ConfigError(UserError):
    """Arguments, environment or configuration contradict each other or name what does not exist."""

    exit_code = 2
    _listed: tuple[str, ...] = ()

    @classmethod
    def listing(cls, problems: Sequence[str]) -> ConfigError:
        """One error for several problems, each a sentence or two with its mend."""
        if len(problems) == 1:
            error = cls(problems[0])
        else:
            lines = "\n".join(f"- {problem}" for problem in problems)
            error = cls(f"{len(problems)} problems in the arguments:\n{lines}")
        error._listed = tuple(problems)
        return error

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, one by one: to be listed with other errors' problems."""
        return self._listed or (str(self),)


class DatasetError(UserError):
    """A meta JSON, an annotation file or the bad-record policy was violated."""

    exit_code = 3


class CheckpointError(UserError):
    """Weights, a tokenizer or a configuration file are missing, surplus or do not fit."""

    exit_code = 2


class NoCheckpointError(CheckpointError):
    """A checkpoint to continue from was asked for and none is valid."""

    exit_code = 4


class Attempt:
    """A block that may fail without ending more than itself; ``error`` is what it raised.

    For the work on one of many things that users give: decoders, tokenizers and kernels raise
    whatever they like, and no list of kinds is complete. Ctrl-C and the end of the process pass.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(err, Exception):
            return False
        self.error = err
        return True
