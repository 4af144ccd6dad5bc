"""What a shell is told when it completes ``internvl-chat VERB …``: without torch, at once.

typer's own ``--install-completion`` and ``--show-completion`` write the shells' side of it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, get_args

import typer
from typer.core import TyperCommand

from internvl_chat.resources import zero_files
from internvl_chat.train.flags import GROUPS, HELP_ALL, Flag, flags


def completed_command(verb: str, app: typer.Typer) -> Any:
    """The command that completes a verb's options, values and verbs of its own.

    Args:
        verb: its name.
        app: its application.
    """
    own = typer.main.get_command(app)
    if verb == "train":
        return _Train(verb)
    return _Train(verb, params=own.params) if verb == "plan" else own


class _Offer(NamedTuple):
    """A word that a shell may put there, as typer's own completion items."""

    value: str
    help: str | None = None


class _Train(TyperCommand):
    """``train``, whose flags are the trainer's and none of typer's; ``plan`` has its own beside."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what stands before the word that is completed."""
        ctx.args = [word for word in args if word != "="]  # bash cuts --flag=value in three
        return ctx.args

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Flags that begin so, or values of the flag before; nothing where a file may stand."""
        if incomplete.startswith("-"):
            own = {
                name: getattr(option, "help", None)
                for option in self.params
                for name in option.opts[:1]
            }
            return [
                _Offer(name, words)
                for name, words in {**own, **_offered()}.items()
                if name.startswith(incomplete)
            ]
        before = ctx.args[-1] if ctx.args else ""
        flag = flags().get(before.removeprefix("--").replace("-", "_"))
        choices = _values(flag) if before.startswith("--") and flag else ()
        return [_Offer(choice) for choice in choices if choice.startswith(incomplete)]


_OPEN: Final = {
    "lr_scheduler_type": (
        *("cosine", "linear", "constant", "constant_with_warmup"),
        *("cosine_with_min_lr", "polynomial", "warmup_stable_decay"),
    ),
    "optim": ("adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "adafactor"),
    "train_sampling_strategy": ("random", "group_by_length"),
    "report_to": ("tensorboard", "wandb", "trackio", "mlflow", "none"),
}
"""The usual values of flags that take others, too."""


def _values(flag: Flag) -> tuple[str, ...]:
    if flag.name == "deepspeed":
        return ("auto", *zero_files())
    return flag.choices or _OPEN.get(flag.name, ())


# ---- values of other verbs, each from where the verb has them -----------------------------------


def record_formats() -> list[str]:
    """What ``data import`` and ``data export`` read and write."""
    from internvl_chat.data.convert.importing import FORMATS

    return list(FORMATS)


def benchmark_tasks() -> list[str]:
    """What ``eval`` asks."""
    from internvl_chat.evaluation.registry import GROUPS, TASKS

    return [*TASKS, *GROUPS]


def own_metrics() -> list[str]:
    """What ``eval`` scores own records by."""
    from internvl_chat.evaluation.metrics.own import OwnMetric

    return list(get_args(OwnMetric))


def _offered() -> dict[str, str]:
    listed: list[Flag] = [flag for flag in flags().values() if flag.group in GROUPS]
    own = {f"--{flag.name}": flag.words for flag in listed}
    return {**own, "--help": "Show the flags.", HELP_ALL: "Show transformers' flags, too."}
