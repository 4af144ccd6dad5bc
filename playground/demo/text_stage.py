"""Make the tiny language model: its tokenizer, and a Llama trained on the demo text alone.

    python -m playground.demo.text_stage --out work_dirs/pretrain_tiny/llm

The text is that of the demo with pictures told in words ("Picture: red circle 24 31 15, ..."), so
the model learns to look things up, count and compare before it ever sees an image.
"""

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from internvl_chat.model.conversation import get_conv_template
from internvl_chat.model.presets import load_preset
from playground.demo.common import stream
from playground.demo.records import Sample, Split, make_sample
from playground.demo.tokenizer import train_tokenizer
from playground.demo.vision_stage import cosine

logger = logging.getLogger(__name__)

FAMILY_SHARES = {"shapes": 0.45, "charts": 0.20, "reading": 0.15, "text": 0.20}
"""Boxes and pairs stay out: their special tokens join the vocabulary only at stitching."""
TEXT_WEIGHT = 0.05
"""Loss weight of what is not an answer: names and numbers told at random cannot be foreseen."""


def told_turns(sample: Sample) -> list[tuple[str, str]]:
    """Questions and answers, the picture's description before the first."""
    turns = [(question.text, question.answer) for question in sample.questions]
    if sample.description and turns:
        turns[0] = (f"{sample.description}\n{turns[0][0]}", turns[0][1])
    return turns


class ToldPictures(Dataset[tuple[Tensor, Tensor]]):
    """Record ``i`` as ids (T,) and weights (T,) of predicting each id."""

    def __init__(self, tokenizer: LlamaTokenizer, seed: int, split: Split, length: int) -> None:
        self._tokenizer, self._seed, self._split, self._length = tokenizer, seed, split, length
        self._template = get_conv_template("Hermes-2")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        draw = stream(self._seed, "told", self._split, index)
        family = draw.choices(list(FAMILY_SHARES), weights=list(FAMILY_SHARES.values()))[0]
        sample = make_sample(self._seed + 1, family, self._split, index)
        rendered = self._template.render(told_turns(sample))
        tokens = self._tokenizer(
            rendered.text, add_special_tokens=False, return_offsets_mapping=True
        )
        starts = torch.tensor([start for start, _ in tokens["offset_mapping"]])
        weights = torch.full(starts.shape, TEXT_WEIGHT)
        for span in rendered.answers:
            weights[(starts >= span.start) & (starts < span.end)] = 1.0
        return torch.tensor(tokens["input_ids"]), weights


def _collate(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Right-padded ids and weights (zero on padding)."""
    ids = torch.nn.utils.rnn.pad_sequence([row[0] for row in rows], batch_first=True)
    weights = torch.nn.utils.rnn.pad_sequence([row[1] for row in rows], batch_first=True)
    return ids, weights


def by_length(
    loader: DataLoader[tuple[Tensor, Tensor]], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut large batches into small ones of about one length."""
    for ids, weights in loader:
        lengths = (weights > 0).sum(1)
        for rows in lengths.argsort().split(batch_size):
            width = int(lengths[rows].max())
            yield ids[rows, :width], weights[rows, :width]


def answer_loss(model: LlamaForCausalLM, ids: Tensor, weights: Tensor) -> tuple[Tensor, float]:
    """Weighted mean loss, and the share of answer tokens predicted right."""
    # Causal attention and padding on the right: padding cannot be seen, no mask is needed.
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    target, weight = ids[:, 1:], weights[:, 1:]
    logits = model.lm_head(hidden[weight > 0])
    losses = F.cross_entropy(logits, target[weight > 0], reduction="none")
    used = weight[weight > 0]
    answers = used == 1.0
    right = (logits.argmax(-1) == target[weight > 0])[answers].float().mean().item()
    return (losses * used).sum() / used.sum(), right


def pretrain_text(
    config: LlamaConfig,
    tokenizer: LlamaTokenizer,
    *,
    seed: int,
    steps: int,
    batch_size: int = 8,
    peak: float = 2e-3,
    workers: int = 1,
) -> LlamaForCausalLM:
    """Train a fresh Llama for ``steps`` steps; a function of its arguments."""
    torch.manual_seed(seed)
    config.vocab_size = len(tokenizer)
    config.bos_token_id = tokenizer.convert_tokens_to_ids("<|im_start|>")
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    large = 8 * batch_size
    told = ToldPictures(tokenizer, seed, "train", steps * batch_size)
    loader = DataLoader(told, batch_size=large, num_workers=workers, collate_fn=_collate)
    start, smooth = time.monotonic(), 0.0
    for step, (ids, weights) in enumerate(by_length(loader, batch_size)):
        for group in optimizer.param_groups:
            group["lr"] = peak * cosine(step, steps)
        loss, right = answer_loss(model, ids, weights)
        if not loss.isfinite():
            raise FloatingPointError(f"step {step + 1}: loss {loss.item()}; nothing saved")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth = right if step == 0 else 0.98 * smooth + 0.02 * right
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - start
            logger.info(
                "step %d, %.0f s, loss %.3f, answers %.3f", step + 1, seconds, loss.item(), smooth
            )
    return model


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="tiny-llama", help="shape of the model")
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    tokenizer = train_tokenizer(args.out, seed=args.seed)
    config = load_preset(args.preset)
    if not isinstance(config, LlamaConfig):
        parser.error(f"--preset {args.preset} is no LlamaConfig")
    model = pretrain_text(config, tokenizer, seed=args.seed, steps=args.steps)
    model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
