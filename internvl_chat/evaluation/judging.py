"""Which judge a task is scored with: what the task names, what a user says, what is reachable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.evaluation.judge import JudgeLimits, OpenAIJudge, open_judge
from internvl_chat.evaluation.task import Judge, Rules, TaskSpec

REPLIES = "judge.jsonl"
"""Beside the answers: what the judge said, so that nothing is paid for twice."""

JudgeOpener = Callable[[TaskSpec, Path | None], AbstractContextManager[Judge | None]]
"""(task, file of replies) -> the judge while the task is scored; None without one."""


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """What a user says of judges; the rest is the task's and the environment's."""

    name: str | None
    """In place of the task's own; ``exact_matching`` means none."""
    rules: Rules | None
    """Whose judge a task has by default; None: of its first."""
    base_url: str | None
    api_key: str | None
    prompts: Path | None
    """The user's texts in place of ours."""
    limits: JudgeLimits
    environ: Mapping[str, str]

    @contextmanager
    def open(self, task: TaskSpec, replies: Path | None) -> Iterator[OpenAIJudge | None]:
        """The judge of a task while it is scored; None for a task that has none.

        Raises:
            ConfigError: see :func:`~internvl_chat.evaluation.judge.open_judge`.
        """
        judge = None
        if task.judge is not None:
            judge = open_judge(
                self.name or task.judge_under(self.rules),
                base_url=self.base_url,
                api_key=self.api_key,
                prompts=self.prompts,
                replies=replies,
                limits=self.limits,
                environ=self.environ,
            )
        try:
            yield judge
        finally:
            if judge is not None:
                judge.close()

    def check(self, tasks: Sequence[TaskSpec]) -> None:
        """See that the judges could be asked, before hours of answering.

        Raises:
            ConfigError: of the base URL, the key or the texts.
        """
        for task in tasks:
            with self.open(task, None):
                pass


@contextmanager
def no_judge(task: TaskSpec, replies: Path | None) -> Iterator[Judge | None]:
    """A :data:`JudgeOpener` that opens none."""
    yield None


def summary_of(judge: Judge | None) -> dict[str, Any] | None:
    """What a run card says of a judge: replies, failures, tokens, cost."""
    return judge.summary() if isinstance(judge, OpenAIJudge) else None


def warning_of(summary: Mapping[str, Any] | None) -> str | None:
    """What people are told of a judge that failed; None where it did not."""
    if summary is None or not summary["num_without_reply"]:
        return None
    reasons = ", ".join(f"{count} × {why}" for why, count in summary["without_reply"].items())
    return (
        f"{summary['num_without_reply']} requests to the judge {summary['name']} had no reply "
        f"({reasons}); score again to ask for these alone"
    )
