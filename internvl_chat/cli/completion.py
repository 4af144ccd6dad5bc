"""What a shell is told when it completes ``internvl-chat VERB …``: without torch, at once.

typer's own ``--install-completion`` and ``--show-completion`` write the shells' side of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand

from internvl_chat.train.flags import GROUPS, HELP_ALL, Flag, flags


def completed_command(verb: str, app: typer.Typer) -> Any:
    """The command that completes a verb's options, values and verbs of its own.

    Args:
        verb: its name.
        app: its application.
    """
    return _Train(verb) if verb == "train" else typer.main.get_command(app)


class _Offer(NamedTuple):
    """A word that a shell may put there, as typer's own completion items."""

    value: str
    help: str | None = None


class _Train(TyperCommand):
    """``train``, whose flags are the trainer's and none of typer's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what stands before the word that is completed."""
        ctx.args = [word for word in args if word != "="]  # bash cuts --flag=value in three
        return ctx.args

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Flags that begin so, or values of the flag before; nothing where a file may stand."""
        if incomplete.startswith("-"):
            return [
                _Offer(name, words)
                for name, words in _offered().items()
                if name.startswith(incomplete)
            ]
        before = ctx.args[-1] if ctx.args else ""
        flag = flags().get(before.removeprefix("--").replace("-", "_"))
        choices = flag.choices if before.startswith("--") and flag else ()
        return [_Offer(choice) for choice in choices if choice.startswith(incomplete)]


def _offered() -> dict[str, str]:
    listed: list[Flag] = [flag for flag in flags().values() if flag.group in GROUPS]
    own = {f"--{flag.name}": flag.words for flag in listed}
    return {**own, "--help": "Show the flags.", HELP_ALL: "Show transformers' flags, too."}
