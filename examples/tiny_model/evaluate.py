"""Held-out accuracy of a chat model on demo records, by skill.

    python -m examples.tiny_model.evaluate --model pretrained/internvl-chat-tiny \\
        --data work_dirs/pretrain_tiny/data/heldout/*.jsonl --out accuracy.json

A record is LLaVA-style with one round and a ``skill``; image paths are relative to ``--root``
(by default the parent of the JSONL file's folder).
"""

import argparse
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from examples.annotations import image_paths, read_jsonl, write_json
from examples.answering import answer_batch
from examples.tiny_model.scoring import group_accuracies, is_right

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One held-out question."""

    identity: str
    question: str
    truth: str
    skill: str
    images: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A trial and what the model said."""

    trial: Trial
    text: str

    @property
    def right(self) -> bool:
        """Whether the reply passes its skill's scorer."""
        return is_right(self.trial.skill, self.text, self.trial.truth)


def read_trials(jsonl: Path, root: Path | None = None, *, limit: int | None = None) -> list[Trial]:
    """Read held-out records.

    Args:
        jsonl: one record a line; the first round is asked.
        root: what image paths are relative to; the parent of the file's folder by default.
        limit: at most so many of each skill.
    """
    root = jsonl.parent.parent if root is None else root
    taken: dict[str, int] = defaultdict(int)
    trials = []
    for record in read_jsonl(jsonl):
        skill = record.get("skill", jsonl.stem)
        if limit is not None and taken[skill] >= limit:
            continue
        taken[skill] += 1
        human, gpt = (turn["value"] for turn in record["conversations"][:2])
        trials.append(
            Trial(
                identity=str(record["id"]),
                question=human,
                truth=gpt,
                skill=skill,
                images=tuple(root / path for path in image_paths(record)),
            )
        )
    return trials


def _batches(trials: Sequence[Trial], size: int) -> Iterator[list[Trial]]:
    """Batches of one skill and one number of images: equal prompts pad little."""
    by_kind: dict[tuple[str, int], list[Trial]] = defaultdict(list)
    for trial in trials:
        by_kind[trial.skill, len(trial.images)].append(trial)
    for group in by_kind.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def answer(
    model: Any, tokenizer: Any, trials: Sequence[Trial], *, batch_size: int = 50
) -> list[Reply]:
    """Greedy replies to all trials, in batches.

    Args:
        model: an InternVLChatModel in eval mode.
        tokenizer: its tokenizer.
        trials: any mixture of skills.
        batch_size: questions generated together.
    """
    replies = []
    for batch in _batches(trials, batch_size):
        texts = answer_batch(
            model, tokenizer, [trial.question for trial in batch], [t.images for t in batch]
        )
        replies += [Reply(trial=t, text=text) for t, text in zip(batch, texts, strict=True)]
    return replies


def summarize(replies: Sequence[Reply]) -> dict[str, Any]:
    """Accuracy by skill and by group, with the numbers asked."""
    results: dict[str, tuple[int, int]] = {}
    for reply in replies:
        right, asked = results.get(reply.trial.skill, (0, 0))
        results[reply.trial.skill] = right + reply.right, asked + 1
    return {
        "groups": group_accuracies(results),
        "skills": {skill: right / asked for skill, (right, asked) in sorted(results.items())},
        "asked": {skill: asked for skill, (_, asked) in sorted(results.items())},
    }


def evaluate(
    model: Any,
    tokenizer: Any,
    jsonl: Path | Sequence[Path],
    *,
    root: Path | None = None,
    limit: int | None = None,
    batch_size: int = 50,
) -> dict[str, Any]:
    """Ask the records of one or several files; see :func:`summarize` for what comes back."""
    files = [jsonl] if isinstance(jsonl, Path) else list(jsonl)
    trials = [trial for file in files for trial in read_trials(file, root, limit=limit)]
    return summarize(answer(model, tokenizer, trials, batch_size=batch_size))


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
    from internvl_chat.checkpoint.tokenizer import load_tokenizer
    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="chat checkpoint")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="held-out JSONL files")
    parser.add_argument("--root", type=Path, help="what image paths are relative to")
    parser.add_argument("--limit", type=int, help="at most so many questions of a skill")
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--out", type=Path, help="write the accuracies here as JSON")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = load_tokenizer(args.model)
    model = InternVLChatModel.from_pretrained(args.model, dtype=torch.float32).eval()
    limits = {"root": args.root, "limit": args.limit, "batch_size": args.batch_size}
    summary = evaluate(model, tokenizer, args.data, **limits)
    logger.info("%s", format_table(summary))
    if args.out is not None:
        write_json(args.out, summary)


if __name__ == "__main__":
    main()
