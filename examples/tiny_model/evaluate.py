"""Held-out accuracy of a chat model on demo records, by skill.

    python -m examples.tiny_model.evaluate --model pretrained/internvl-chat-tiny \\
        --data work_dirs/pretrain_tiny/data/heldout/*.jsonl --out accuracy.json

A record is LLaVA-style with one round and a ``skill``; image paths are relative to ``--root``
(by default the parent of the JSONL file's folder). The package's evaluation runner asks.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from examples.annotations import write_json
from examples.benchmark import ask
from examples.tiny_model.scoring import group_accuracies, is_right
from internvl_chat.evaluation.task import Question, TaskSpec
from internvl_chat.evaluation.tasks.own import task_of_records

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A held-out question's truth and what the model said."""

    skill: str
    truth: str
    text: str

    @property
    def right(self) -> bool:
        """Whether the reply passes its skill's scorer."""
        return is_right(self.skill, self.text, self.truth)


def task_of(jsonl: Path, root: Path | None = None, *, limit: int | None = None) -> TaskSpec:
    """Held-out records as a benchmark.

    Args:
        jsonl: one record of one round a line.
        root: what image paths are relative to; the parent of the file's folder by default.
        limit: at most so many of each skill.
    """
    task = task_of_records(jsonl, root=jsonl.parent.parent if root is None else root)
    if limit is None:
        return task
    most = limit
    return replace(task, load=lambda data, rules: list(_first(task.load(data, rules), most)))


def _first(questions: Sequence[Question], most: int) -> Iterator[Question]:
    """At most so many questions of each skill."""
    taken: Counter[str] = Counter()
    for one in questions:
        taken[skill_of(one)] += 1
        if taken[skill_of(one)] <= most:
            yield one


def skill_of(question: Question) -> str:
    """What a question tests; the file's name where its record does not say."""
    return str(question.record["fields"].get("skill", question.record["dataset"]))


def ask_files(
    checkpoint: Path, files: Sequence[Path], root: Path | None = None, *, limit: int | None = None
) -> list[Reply]:
    """Greedy replies to all records of some files; see :func:`task_of` for the arguments."""
    tasks = [task_of(file, root, limit=limit) for file in files]
    return [
        Reply(skill=skill_of(one), truth=one.record["references"][0], text=text)
        for one, text in ask(checkpoint, tasks)
    ]


def summarize(replies: Sequence[Reply]) -> dict[str, Any]:
    """Accuracy by skill and by group, with the numbers asked."""
    results: dict[str, tuple[int, int]] = {}
    for reply in replies:
        right, asked = results.get(reply.skill, (0, 0))
        results[reply.skill] = right + reply.right, asked + 1
    return {
        "groups": group_accuracies(results),
        "skills": {skill: right / asked for skill, (right, asked) in sorted(results.items())},
        "asked": {skill: asked for skill, (_, asked) in sorted(results.items())},
    }


def evaluate(
    checkpoint: Path,
    files: Sequence[Path],
    *,
    root: Path | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Ask the records of some files; see :func:`summarize` for what comes back."""
    return summarize(ask_files(checkpoint, files, root, limit=limit))


def format_table(summary: dict[str, Any]) -> str:
    """The summary as lines of text."""
    lines = [f"{name:14} {value:6.1%}" for name, value in summary["groups"].items()]
    lines += [
        f"  {skill:12} {value:6.1%}  of {summary['asked'][skill]}"
        for skill, value in summary["skills"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="chat checkpoint")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="held-out JSONL files")
    parser.add_argument("--root", type=Path, help="what image paths are relative to")
    parser.add_argument("--limit", type=int, help="at most so many questions of a skill")
    parser.add_argument("--out", type=Path, help="write the accuracies here as JSON")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    summary = evaluate(args.model, args.data, root=args.root, limit=args.limit)
    logger.info("%s", format_table(summary))
    if args.out is not None:
        write_json(args.out, summary)


if __name__ == "__main__":
    main()
