"""What checkpoints answer by the code beside them: ``worker.py RESULT.json DIRECTORY...``.

Run with the transformers of the published checkpoints on PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoTokenizer

QUESTIONS = ("What colour is the square?", "How many circles are there? 你好", "Read  the word.")
GREEDY = {"max_new_tokens": 12, "do_sample": False}


def images(size: int) -> list[torch.Tensor]:
    """Of one tile and of two."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 3, size, size, generator=generator) for count in (1, 2)]


def describe(directory: str) -> dict[str, Any]:
    """Answers of one directory, and what loading it found amiss."""
    try:
        model, loading = AutoModel.from_pretrained(
            directory,
            trust_remote_code=True,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except ImportError as err:
        return {"error": str(err)}
    answers = {}
    for kind in ("fast", "slow"):
        tokenizer = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=True, use_fast=kind == "fast"
        )
        answers[kind] = [
            model.eval().chat(tokenizer, pixels, question, dict(GREEDY))
            for pixels in images(model.config.vision_config.image_size)
            for question in QUESTIONS
        ]
    amiss = {kind: list(names) for kind, names in loading.items() if names}
    return {**answers, "amiss": amiss, "code": type(model).__module__.split(".")[0]}


if __name__ == "__main__":
    sys.modules["internvl_chat"] = None  # type: ignore[assignment]
    found = {directory: describe(directory) for directory in sys.argv[2:]}
    result = {"version": transformers.__version__, "found": found}
    Path(sys.argv[1]).write_text(json.dumps(result), encoding="utf-8")
