"""Ask the fine-tuned SmolLM2: held-out colours and digits, and a question without an image.

    python -m examples.smollm2.evaluate --model work_dirs/smollm2_lora/lora \\
        --data work_dirs/smollm2_lora/data --out work_dirs/smollm2_lora/result.json
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.annotations import write_json
from examples.durations import read_seconds
from examples.smollm2.data import COLOR_CHANCE, DIGIT_CHANCE
from examples.tiny_model.evaluate import Reply, ask_files

logger = logging.getLogger(__name__)

TEXT_QUESTION = "What is the capital of France?"
CHANCE = {"color": COLOR_CHANCE, "digit": DIGIT_CHANCE}
NUM_EXAMPLES = 5


def begins_with(reply: str, truth: str) -> bool:
    """Whether the answer's first word or number is the truth: ``"Red."``, ``"red"``, ``"7"``."""
    words = re.findall(r"[a-z]+|\d+", reply.lower())
    return words[:1] == [truth.lower()]


def answers_paris(reply: str) -> bool:
    """Whether a text-only reply names Paris."""
    return re.search(r"\bParis\b", reply) is not None


def summarize(replies: Sequence[Reply]) -> dict[str, Any]:
    """Accuracy by skill beside chance, with a few replies to look at."""
    skills: dict[str, Any] = {}
    for skill, chance in CHANCE.items():
        asked = [reply for reply in replies if reply.skill == skill]
        if not asked:
            continue
        right = sum(begins_with(reply.text, reply.truth) for reply in asked)
        skills[skill] = {
            "accuracy": round(right / len(asked), 4),
            "chance": chance,
            "asked": len(asked),
            "examples": [
                {"truth": reply.truth, "reply": reply.text} for reply in asked[:NUM_EXAMPLES]
            ],
        }
    return skills


def text_reply(model: Any, tokenizer: Any) -> str:
    """Greedy answer to the text-only question."""
    generation = {"max_new_tokens": 24, "do_sample": False}
    return str(model.chat(tokenizer, None, TEXT_QUESTION, generation))


def evaluate(model_path: Path, data: Path, *, limit: int | None = None) -> dict[str, Any]:
    """Load a checkpoint (adapter-only ones included) and ask everything."""
    from transformers import AutoModel

    import internvl_chat  # noqa: F401  registers the Auto classes
    from internvl_chat.checkpoint.tokenizer import load_tokenizer

    model = AutoModel.from_pretrained(model_path, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(model_path))
    text = text_reply(model, tokenizer)
    del model  # the runner loads it anew
    files = [data / "heldout" / f"{skill}.jsonl" for skill in CHANCE]
    return {
        "skills": summarize(ask_files(model_path, files, data, limit=limit)),
        "text": {"question": TEXT_QUESTION, "reply": text, "right": answers_paris(text)},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="the fine-tuned checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="what examples.smollm2.data wrote")
    parser.add_argument("--out", type=Path, required=True, help="result.json")
    parser.add_argument("--seconds", type=Path, help="lines of `phase seconds` to add")
    parser.add_argument("--limit", type=int, help="at most so many questions of a skill")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    result = evaluate(arguments.model, arguments.data, limit=arguments.limit)
    if arguments.seconds is not None:
        result["seconds"] = read_seconds(arguments.seconds)
    write_json(arguments.out, result)
    for skill, found in result["skills"].items():
        logger.info(
            "%-6s %5.1f %% of %d held-out questions right (chance %.1f %%)",
            skill,
            100 * found["accuracy"],
            found["asked"],
            100 * found["chance"],
        )
    logger.info("%s -> %s", TEXT_QUESTION, result["text"]["reply"])


if __name__ == "__main__":
    main()
