"""Speed of chat: batches against one by one, first token, overhead over the bare language model.

Three measurements in one process, rivals taking turns:

1. ``--questions`` short questions about one image each by ``model.chat``, one after the other,
   and by ``model.batch_chat`` in batches; the greedy answers must be the same.
2. Seconds from the question to the first token (vision tower, projector and prompt included), and
   those that the bare language model needs for a prompt of the same length.
3. Tokens per second of ``chat`` and of ``language_model.generate`` on a prompt of the same length,
   both forced to the same number of new tokens.

Example::

    python benchmarks/chat_speed.py --model pretrained/internvl-chat-tiny
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from benchmarks.common import machine, table
from examples.tiny_model.records import make_sample
from internvl_chat.chat import load_image, load_model
from internvl_chat.chat.media import image_config_of

GREEDY: dict[str, Any] = {"max_new_tokens": 32, "do_sample": False}
MAX_OVERHEAD = 1.1


def one_image_questions(count: int, size: int) -> tuple[Tensor, list[str]]:
    """(count, 3, S, S) and a question about each; families of one-word answers take turns."""
    families = ("shapes", "charts", "reading")
    tiles, questions = [], []
    for number in range(count):
        sample = make_sample(99, families[number % len(families)], "heldout", number)
        tiles.append(load_image(sample.images[0], image_size=size))
        questions.append(sample.questions[0].text)
    return torch.cat(tiles), questions


def measure_batches(
    model: Any, tokenizer: Any, count: int, sizes: list[int]
) -> tuple[list[list[str]], bool]:
    """A row a batch size; whether all answers are those of one by one."""
    tiles, questions = one_image_questions(count, image_config_of(model.config).image_size)
    model.batch_chat(tokenizer, tiles[:4], questions[:4], GREEDY)  # first-call buffers
    begin = time.perf_counter()
    wanted = [
        model.chat(tokenizer, tile[None], question, GREEDY)
        for tile, question in zip(tiles, questions, strict=True)
    ]
    alone = time.perf_counter() - begin
    rows, same = [["one by one", f"{alone:.2f}", f"{count / alone:.1f}", "1.00"]], True
    for size in sizes:
        begin = time.perf_counter()
        found: list[str] = []
        for start in range(0, count, size):
            part = slice(start, start + size)
            found += model.batch_chat(tokenizer, tiles[part], questions[part], GREEDY)
        seconds = time.perf_counter() - begin
        same = same and found == wanted
        ratio = f"{alone / seconds:.2f}"
        rows.append([f"batches of {size}", f"{seconds:.2f}", f"{count / seconds:.1f}", ratio])
    return rows, same


class _FirstToken(TextStreamer):
    """Notes when the first new token came."""

    seconds = 0.0

    def put(self, value: Tensor) -> None:
        if not self.seconds and not self.next_tokens_are_prompt:
            self.seconds = time.perf_counter()
        self.next_tokens_are_prompt = False

    def end(self) -> None:
        pass


def timed(action: Callable[[_FirstToken], Any], tokenizer: Any) -> tuple[float, float]:
    """Seconds in all, and to the first token."""
    streamer = _FirstToken(tokenizer, skip_prompt=True)
    begin = time.perf_counter()
    action(streamer)
    return time.perf_counter() - begin, streamer.seconds - begin


def measure_overhead(
    model: Any, tokenizer: Any, new_tokens: int, rounds: int
) -> tuple[list[list[str]], float]:
    """Rows of first token and tokens per second; the overhead of chat."""
    size = image_config_of(model.config).image_size
    tile = one_image_questions(1, size)[0]
    fixed = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    question = "What is in this picture?"
    lengths: list[int] = []
    hook = model.language_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: (
            lengths.append(kwargs["inputs_embeds"].shape[1])
            if kwargs.get("inputs_embeds") is not None
            else None
        ),
        with_kwargs=True,
    )
    model.chat(tokenizer, tile, question, {**fixed, "max_new_tokens": 2, "min_new_tokens": 2})
    hook.remove()
    ids = torch.randint(10, 200, (1, lengths[0]))
    settings = {**fixed, "pad_token_id": tokenizer.pad_token_id}

    def chat(streamer: _FirstToken) -> None:
        model.chat(tokenizer, tile, question, {**fixed, "streamer": streamer})

    def bare(streamer: _FirstToken) -> None:
        model.language_model.generate(
            ids, attention_mask=torch.ones_like(ids), streamer=streamer, **settings
        )

    seconds: dict[str, list[tuple[float, float]]] = {"chat": [], "bare language model": []}
    for _ in range(rounds):
        for name, action in (("chat", chat), ("bare language model", bare)):
            seconds[name].append(timed(action, tokenizer))
    rows = []
    medians = {}
    for name, pairs in seconds.items():
        whole, first = (statistics.median(column) for column in zip(*pairs, strict=True))
        medians[name] = whole
        rows.append([name, f"{1000 * first:.1f}", f"{new_tokens / whole:.1f}"])
    return rows, medians["chat"] / medians["bare language model"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pretrained/internvl-chat-tiny")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 16, 50])
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    model, tokenizer = load_model(arguments.model)
    print(f"{machine()}, {torch.get_num_threads()} threads, {arguments.model}\n")
    if arguments.questions:
        rows, same = measure_batches(model, tokenizer, arguments.questions, arguments.batch_sizes)
        print(table([f"{arguments.questions} questions", "s", "questions/s", "ratio"], rows))
        print(f"\nanswers of all batches as one by one: {'yes' if same else 'NO'}\n")
    else:
        same = True
    rows, overhead = measure_overhead(model, tokenizer, arguments.new_tokens, arguments.rounds)
    print(table(["", "first token, ms", f"tokens/s over {arguments.new_tokens}"], rows))
    print(f"\nchat takes {overhead:.3f} of the bare model's time (target: at most {MAX_OVERHEAD})")
    return 0 if same and overhead <= MAX_OVERHEAD else 1


if __name__ == "__main__":
    sys.exit(main())
