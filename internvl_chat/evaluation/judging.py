"""Which judge a task is scored with: what the task names, what a user says, what is reachable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.evaluation.judge import JudgeLimits, OpenAIJudge, open_judge
from internvl_chat.evaluation.task import Judge, Rules, TaskSpec

logger = logging.getLogger(__name__)

REPLIES = "judge.jsonl"
"""Beside the answers: what the judge said, so that nothing is paid for twice."""


@dataclass(frozen=True, kw_only=True)
class OpenedJudge:
    """A judge while a task is scored, or the lack of one."""

    model: Judge | None = None
    absence: str = ""
    """Why there is none although one was named; empty where none was wanted or can be."""


NOBODY = OpenedJudge()
JudgeOpener = Callable[[TaskSpec, Path | None], AbstractContextManager[OpenedJudge]]
"""(task, file of replies) -> the judge while the task is scored."""


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
    def open(self, task: TaskSpec, replies: Path | None) -> Iterator[OpenedJudge]:
        """The judge of a task while it is scored; none for a task that has none.

        One that has not answered yet is asked a word first.

        Raises:
            ConfigError: see :func:`~internvl_chat.evaluation.judge.open_judge`.
        """
        with self._client(task, replies) as client:
            reason = "" if client is None else client.absence()
            if client is not None and reason:
                logger.warning("the judge %s does not answer: %s", client.name, reason)
                yield OpenedJudge(absence=f"the judge {client.name} does not answer ({reason})")
            else:
                yield OpenedJudge(model=client)

    @contextmanager
    def _client(self, task: TaskSpec, replies: Path | None) -> Iterator[OpenAIJudge | None]:
        client = None
        if task.judge is not None:
            client = open_judge(
                self.name or task.judge_under(self.rules),
                base_url=self.base_url,
                api_key=self.api_key,
                prompts=self.prompts,
                replies=replies,
                limits=self.limits,
                environ=self.environ,
            )
        try:
            yield client
        finally:
            if client is not None:
                client.close()

    def check(self, tasks: Sequence[TaskSpec], *, asks: bool) -> list[str]:
        """See that the judges could be asked, before hours of answering.

        Args:
            tasks: that are to be scored.
            asks: whether each judge is asked a word.

        Returns:
            A sentence for each judge that does not answer.

        Raises:
            ConfigError: of the base URL, the key or the texts.
        """
        absent: dict[str, str] = {}
        for task in tasks:
            with self._client(task, None) as client:
                if asks and client is not None and client.version not in absent:
                    reason = client.absence()
                    told = f"the judge {client.name} does not answer ({reason}); what it would "
                    told += "judge is left out unless it does in the end"
                    absent[client.version] = told if reason else ""
        return [told for told in absent.values() if told]


@contextmanager
def no_judge(task: TaskSpec, replies: Path | None) -> Iterator[OpenedJudge]:
    """A :data:`JudgeOpener` that opens none."""
    yield OpenedJudge()


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
