"""What checkpoints answer, in a process of its own: ``worker.py RESULT.json DIRECTORY...``.

Run with another transformers on PYTHONPATH; the test imports ``describe`` for its own version. It
sees only what travels inside a checkpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForImageTextToText, AutoTokenizer, TextIteratorStreamer

TEXTS = (
    "The answer is 42, not 17.",
    " two  spaces\nand\ttabs",
    "中文 naïve Ω 😀",
    "<|im_start|>user\na <img><IMG_CONTEXT></img><|im_end|> <ref>y</ref>",
    "",
)
GREEDY = {"max_new_tokens": 5, "do_sample": False}


def describe(directory: str) -> dict[str, Any]:
    """Ids, answers and logits of one directory; a tokenizer alone if it holds no model."""
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    found = _tokens(tokenizer, directory)
    path = Path(directory)
    if path.name.startswith("refused"):
        return {**found, "error": _refusal(directory)}
    if (path / "processor_config.json").is_file():
        found["logits"] = _native_logits(directory, tokenizer)
    elif (path / "preprocessor_config.json").is_file():
        model = AutoModel.from_pretrained(
            directory, trust_remote_code=True, torch_dtype=torch.float32
        )
        found |= _answers(model.eval(), tokenizer)
    return found


def _refusal(directory: str) -> str:
    """Why the model does not load."""
    try:
        AutoModel.from_pretrained(directory, trust_remote_code=True)
    except ValueError as err:
        return str(err)
    return ""


def _tokens(tokenizer: Any, directory: str) -> dict[str, Any]:
    slow = AutoTokenizer.from_pretrained(directory, trust_remote_code=True, use_fast=False)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    named = ("bos_token", "eos_token", "pad_token", "unk_token")
    return {
        "ids": ids,
        "slow_ids": [slow(text)["input_ids"] for text in TEXTS],
        "decoded": [tokenizer.decode(row, skip_special_tokens=True) for row in ids],
        "inputs": sorted(tokenizer("a")),
        "length": len(tokenizer),
        "named": {name: getattr(tokenizer, name) for name in named},
        "padding_side": tokenizer.padding_side,
        "context": tokenizer.model_max_length,
        "chat_template": tokenizer.chat_template,
    }


def _batch(tokenizer: Any, num_image_token: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, 250, (1, 40), generator=generator)
    ids[:, 2 : 2 + num_image_token] = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    return torch.randn(1, 3, size, size, generator=generator), ids


def _native_logits(directory: str, tokenizer: Any) -> list[Any]:
    model = AutoModelForImageTextToText.from_pretrained(directory, torch_dtype=torch.float32)
    size = model.config.vision_config.image_size[0]
    pixels, ids = _batch(tokenizer, model.config.image_seq_length, size)
    with torch.no_grad():
        return model.eval()(pixel_values=pixels, input_ids=ids).logits.tolist()


def _answers(model: Any, tokenizer: Any) -> dict[str, Any]:
    size = model.config.force_image_size or model.config.vision_config.image_size
    pixels, ids = _batch(tokenizer, model.num_image_token, size)
    two = torch.cat([pixels, pixels.flip(0) * 2])
    first = model.chat(tokenizer, pixels, "What is it?", GREEDY)
    with torch.no_grad():
        logits = model(pixel_values=pixels, input_ids=ids).logits
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    settings = {**GREEDY, "streamer": streamer}
    thread = Thread(target=model.chat, args=(tokenizer, pixels, "What is it?", settings))
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    return {
        "logits": logits.tolist(),
        "chat": [first, model.chat(tokenizer, None, "And?", GREEDY, history=[("a", "b")])],
        "batch": model.batch_chat(tokenizer, two, ["one", "two two"], GREEDY),
        "streamed": streamed,
        "loss": _loss(model, pixels, ids),
    }


def _loss(model: Any, pixels: torch.Tensor, ids: torch.Tensor) -> float:
    """Of a training step of the projector with gradient checkpointing."""
    torch.manual_seed(0)
    model.train()
    model.gradient_checkpointing_enable()
    model.mlp1.requires_grad_(True)
    labels = ids.clone()
    labels[:, :20] = -100
    loss = model(pixel_values=pixels, input_ids=ids, labels=labels).loss
    loss.backward()
    return round(float(loss.detach()), 5)


if __name__ == "__main__":
    sys.modules["internvl_chat"] = None  # type: ignore[assignment]
    result = {directory: describe(directory) for directory in sys.argv[2:]}
    Path(sys.argv[1]).write_text(
        json.dumps({"version": transformers.__version__, "found": result}), encoding="utf-8"
    )
