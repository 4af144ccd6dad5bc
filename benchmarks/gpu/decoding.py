"""Times answers of a loaded model: through ``chat`` and ``batch_chat`` alone.

    python -m benchmarks.gpu.decoding SPEC.json

is started by ``gpu_decode.py``; a line of JSON comes back for each row.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.common import report
from benchmarks.gpu.card import measure_card
from internvl_chat.chat import load_image, load_model

MODES: dict[str, dict[str, Any]] = {"graphs": {}, "eager": {"disable_compile": True}}
"""Keywords of ``generate``: recorded steps as they are chosen by default, and without."""
QUESTION = "<image>\nWhat is in this picture?"


class Chat:
    """A model and a question about one grey picture, asked by any number of rows at once."""

    def __init__(self, path: str, device: torch.device, new_tokens: int) -> None:
        start = time.perf_counter()
        self.model: Any
        self.model, self.tokenizer = load_model(path, device=device)
        self.device, self.new_tokens = device, new_tokens
        self.synchronize()
        self.load_seconds = time.perf_counter() - start
        picture = Image.new("RGB", (640, 480), (120, 120, 120))
        self.pixels: Tensor = load_image(picture, model=self.model).to(device, self.model.dtype)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def ask(self, rows: int, new_tokens: int, mode: str) -> list[str]:
        """Greedy answers of exactly so many tokens."""
        settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
        settings |= MODES[mode]
        if rows == 1:
            return [self.model.chat(self.tokenizer, self.pixels, QUESTION, settings)]
        pixels, number = torch.cat([self.pixels] * rows), len(self.pixels)
        answers: list[str] = self.model.batch_chat(
            self.tokenizer, pixels, [QUESTION] * rows, settings, num_patches_list=[number] * rows
        )
        return answers

    def seconds(self, work: Callable[[], object]) -> float:
        """Time of one call."""
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start

    def bytes_of_step(self, rows: int) -> dict[str, float]:
        """What one step has to read: all weights but the embedding table, and keys and values.

        Those of half the answer are there on average; the prompt is taken to be its image.
        """
        llm = self.model.language_model
        table = {id(p) for p in llm.get_input_embeddings().parameters()}
        table -= {id(p) for p in llm.get_output_embeddings().parameters()}
        weights = sum(p.numel() * p.element_size() for p in llm.parameters() if id(p) not in table)
        config, size = llm.config, self.model.dtype.itemsize
        places = len(self.pixels) * self.model.num_image_token + self.new_tokens / 2
        width = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers
        return {"weights": weights, "cache": rows * places * width * size}

    def measure(self, mode: str, rows: int, rounds: int) -> dict[str, Any]:
        """First answers, then the median of ``rounds`` long ones less their first token."""
        first_answer = self.seconds(lambda: self.ask(rows, self.new_tokens, mode))
        # The first run of a size is eager, its second is recorded.
        second_answer = self.seconds(lambda: self.ask(rows, self.new_tokens, mode))
        answers: list[str] = []

        def ask_all() -> None:
            answers[:] = self.ask(rows, self.new_tokens, mode)

        first_token = statistics.median(
            self.seconds(lambda: self.ask(rows, 1, mode)) for _ in range(rounds)
        )
        full = statistics.median(self.seconds(ask_all) for _ in range(rounds))
        steps = self.new_tokens - 1
        per_step = (full - first_token) / steps
        read = self.bytes_of_step(rows)
        return {
            "mode": mode,
            "rows": rows,
            "tokens_per_second": rows / per_step,
            "step_ms": 1e3 * per_step,
            "first_token_ms": 1e3 * first_token,
            "start_seconds": max(0.0, first_answer - full) + max(0.0, second_answer - full),
            "weights_gb": read["weights"] / 1e9,
            "cache_gb": read["cache"] / 1e9,
            "bytes_per_second": sum(read.values()) / per_step,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if self.on_gpu else None,
            "answers": answers,
        }

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a GPU."""
        return self.device.type == "cuda"


def main(spec_path: str) -> None:
    """The card first, then every mode at every number of rows."""
    spec = json.loads(Path(spec_path).read_text("utf-8"))
    device = torch.device("cuda" if spec["on_gpu"] else "cpu")
    report({"card": measure_card(device)})
    gc.collect()
    if spec["on_gpu"]:
        torch.cuda.empty_cache()
    chat = Chat(spec["model"], device, spec["new_tokens"])
    if not spec["on_gpu"]:
        chat.model.static_decoding = True  # its logic can be tried there, nothing is gained
    report({"load_seconds": chat.load_seconds})
    chat.ask(1, 2, "eager")  # what libraries prepare at their first call
    for mode in spec["modes"]:
        for rows in spec["batches"]:
            report(chat.measure(mode, rows, spec["rounds"]))


if __name__ == "__main__":
    main(sys.argv[1])
