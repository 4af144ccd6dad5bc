"""Make what the recipe stitches to the vision tower: a projector and a language model.

    python -m playground.demo.align_stage --vision VISION --out WORK/align

First come questions about each image token (``cells.py``), then the demo's own records with a
share of those; the tower is frozen at first. Writes a Llama with its tokenizer into ``OUT/llm``,
the projector into ``OUT/mlp.safetensors`` and the tower into ``OUT/vision``: the recipe stitches
them by ``--llm_path``, ``--mlp_path`` and ``--vision_path``.
"""

import argparse
import itertools
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from internvl_chat.checkpoint.tokenizer import add_special_tokens
from internvl_chat.data.constants import (
    IGNORE_INDEX,
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
)
from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.model.conversation import get_conv_template
from internvl_chat.model.modeling_intern_vit import InternVisionModel
from internvl_chat.model.modeling_internvl_chat import InternVLChatModel
from internvl_chat.model.presets import load_preset
from playground.demo.cells import NOTHING, CellQuestion, cell_sample
from playground.demo.common import SIDE, stream
from playground.demo.muon import Muon
from playground.demo.records import FAMILIES, make_sample
from playground.demo.tokenizer import train_tokenizer
from playground.demo.vision_stage import normalize

logger = logging.getLogger(__name__)

CELL_RECORDS = 4800
"""So many records at the start ask about cells alone; afterwards one in five does."""
CELL_SHARE = 0.2
NOTHING_WEIGHT = 0.1
"""Of an empty cell. Most are: at full weight "nothing" is all that is learnt about letters."""
MUON_PEAK, ADAM_PEAK = 8e-3, 4e-3
TOWER_JOINS = 0.25
"""Share of the steps with the tower frozen: an untrained language model would only disturb it."""
TOWER_RATE = 0.2
"""Its rate relative to the others'."""
EMBEDDING_STD = 0.3
PROJECTOR_GAIN = 0.5
"""Of the projector's last layer at the start: image tokens begin at the size of text embeddings
(they grow to about thirty times that; keeping them small was tried and is slower)."""
_FIRST_RECORD = 1_000_000  # away from the records that the recipe trains on


@dataclass(frozen=True)
class Item:
    """One record: ids, labels and loss weights (T,), pixels (N, S, S, 3) uint8."""

    input_ids: Tensor
    labels: Tensor
    weights: Tensor
    pixels: Tensor
    family: str


class AlignmentRecords(Dataset[Item]):
    """Record ``i`` of the stage; a function of seed and index."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, num_image_token: int, seed: int, length: int
    ) -> None:
        self._tokenizer, self._seed, self._length = tokenizer, seed, length
        self._template = get_conv_template("Hermes-2")
        context = IMG_CONTEXT_TOKEN * num_image_token
        self._image = f"{IMG_START_TOKEN}{context}{IMG_END_TOKEN}\n"

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Item:
        rng = stream(self._seed, "align", index)
        if index < CELL_RECORDS or rng.random() < CELL_SHARE:
            image, questions = cell_sample(rng)
            return self._cell_item(image, questions)
        family = rng.choices(list(FAMILIES), [f.share for f in FAMILIES.values()])[0]
        sample = make_sample(self._seed + 1, family, "train", _FIRST_RECORD + index)
        turns = [(question.text, question.answer) for question in sample.questions]
        turns[0] = (self._image * len(sample.images) + turns[0][0], turns[0][1])
        rendered = self._template.render(turns)
        tokens = self._tokenizer(
            rendered.text, add_special_tokens=False, return_offsets_mapping=True
        )
        ids = torch.tensor(tokens["input_ids"])
        starts = torch.tensor([start for start, _ in tokens["offset_mapping"]])
        labels = torch.full_like(ids, IGNORE_INDEX)
        weights = torch.zeros(len(ids))
        for span in rendered.answers:
            learnt = (starts >= span.start) & (starts < span.end)
            labels[learnt] = ids[learnt]
            weights[learnt] = float(learnt.sum()) ** -0.5
        return Item(ids, labels, weights, _stack(sample.images), family)

    def _cell_item(self, image: Image.Image, questions: list[CellQuestion]) -> Item:
        """Answers are given by piece, one a cell: text would merge and split them."""
        end = [self._piece(self._template.stop_str)]
        open_turn = "".join((self._template.roles[0], self._template.question_sep))
        open_turn_length = len(open_turn) + len(self._template.roles[1])
        system_length = len(self._template.render([("", None)]).text) - open_turn_length
        ids: list[int] = []
        labels: list[int] = []
        weights: list[float] = []
        for number, question in enumerate(questions):
            text = self._image + question.text if number == 0 else question.text
            prompt = self._template.render([(text, None)]).text[system_length if number else 0 :]
            asked = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
            answer = [self._piece(word) for word in question.answer] + end
            ids += asked + answer
            labels += [IGNORE_INDEX] * len(asked) + answer
            shows = [NOTHING_WEIGHT if word == NOTHING else 1.0 for word in question.answer] + [1.0]
            scale = sum(shows) ** -0.5
            weights += [0.0] * len(asked) + [scale * share for share in shows]
        return Item(
            torch.tensor(ids),
            torch.tensor(labels),
            torch.tensor(weights),
            _stack((image,)),
            "cells",
        )

    def _piece(self, piece: str) -> int:
        found = self._tokenizer.convert_tokens_to_ids(piece)
        if found == self._tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no piece {piece!r}")
        return int(found)


def _stack(images: tuple[Image.Image, ...]) -> Tensor:
    if not images:
        return torch.zeros(0, SIDE, SIDE, 3, dtype=torch.uint8)
    return torch.from_numpy(np.stack([np.array(image) for image in images]))


@dataclass(frozen=True)
class Batch:
    """Right-padded ids, labels and loss weights (B, T), all pixels, the family of each row."""

    input_ids: Tensor
    labels: Tensor
    weights: Tensor
    pixels: Tensor
    families: tuple[str, ...]


def collate(items: list[Item]) -> Batch:
    """Pad the records of one step."""

    def pad(rows: list[Tensor], value: int) -> Tensor:
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    return Batch(
        input_ids=pad([item.input_ids for item in items], 0),
        labels=pad([item.labels for item in items], IGNORE_INDEX),
        weights=pad([item.weights for item in items], 0),
        pixels=torch.cat([item.pixels for item in items]),
        families=tuple(item.family for item in items),
    )


@dataclass(frozen=True)
class SortedPool:
    """Collate function: a pool of records cut into batches of about equal length."""

    batch_size: int

    def __call__(self, items: list[Item]) -> list[Batch]:
        items = sorted(items, key=lambda item: len(item.input_ids))
        starts = range(0, len(items), self.batch_size)
        return [collate(items[start : start + self.batch_size]) for start in starts]


def fresh_model(preset: str, vision: Path, tokenizer: PreTrainedTokenizerBase) -> InternVLChatModel:
    """The chat model around a trained tower, its other weights scaled by their fan-in."""
    config = load_preset(preset)
    if not isinstance(config, InternVLChatConfig):
        raise ValueError(f"preset {preset!r} is no chat model")
    llm = config.llm_config
    llm.vocab_size = len(tokenizer)
    llm.bos_token_id = tokenizer.convert_tokens_to_ids("<|im_start|>")
    llm.eos_token_id, llm.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model = InternVLChatModel(config, vision_model=InternVisionModel.from_pretrained(vision))
    model.img_context_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
    with torch.no_grad():
        for module in [*model.language_model.model.layers.modules(), *model.mlp1]:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        model.mlp1[-1].weight.mul_(PROJECTOR_GAIN)
        # Every block starts as the identity: what a token is stays readable in all of them.
        for layer in model.language_model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        nn.init.normal_(model.language_model.model.embed_tokens.weight, std=EMBEDDING_STD)
        nn.init.normal_(model.language_model.lm_head.weight, std=0.02)
    model.vision_model.requires_grad_(False)
    return model


def make_optimizers(model: InternVLChatModel) -> list[tuple[torch.optim.Optimizer, list[float]]]:
    """Muon for the matrices of blocks and projector, AdamW for the rest, with each group's peak."""
    tower, llm = model.vision_model, model.language_model
    matrices = [[*llm.model.layers.parameters(), *model.mlp1.parameters()]]
    matrices = [[p for p in group if p.ndim == 2] for group in matrices]
    matrices.append([p for p in tower.encoder.parameters() if p.ndim == 2])
    taken = {id(p) for group in matrices for p in group}
    others = [
        [p for p in (*llm.parameters(), *model.mlp1.parameters()) if id(p) not in taken],
        [p for p in tower.parameters() if id(p) not in taken],
    ]
    muon = Muon([{"params": group} for group in matrices], lr=MUON_PEAK, weight_decay=0.02)
    adamw = torch.optim.AdamW(
        [{"params": group} for group in others],
        lr=ADAM_PEAK,
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=True,
    )
    return [
        (muon, [MUON_PEAK, MUON_PEAK * TOWER_RATE]),
        (adamw, [ADAM_PEAK, ADAM_PEAK * TOWER_RATE]),
    ]


def rate(step: int, steps: int, warmup: int = 40, hold: int = 100, cooldown: float = 0.3) -> float:
    """Share of the peak rates: linear warm-up, inverse square root after ``hold``, linear to zero.

    Token by token the pictures are learnt fastest at the peak; looking things up is not learnt at
    all there, and slowly where the rate has fallen too far.
    """
    falling = (hold / max(hold, step)) ** 0.5
    return min((step + 1) / warmup, falling) * min(1.0, (steps - step) / (cooldown * steps))


def align(
    model: InternVLChatModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    steps: int,
    batch_size: int = 16,
    pool: int = 4,
    log_every: int = 20,
) -> None:
    """Train projector and language model in place; a function of the arguments.

    Raises:
        FloatingPointError: the loss is infinite or no number.
    """
    records = AlignmentRecords(tokenizer, model.num_image_token, seed, steps * batch_size)
    loader = DataLoader(
        records, batch_size=pool * batch_size, num_workers=1, collate_fn=SortedPool(batch_size)
    )
    optimizers = make_optimizers(model)
    model.train()
    start = time.monotonic()
    smooth: dict[str, float] = {}
    for step, batch in enumerate(itertools.chain.from_iterable(loader)):
        if step == round(TOWER_JOINS * steps):
            model.vision_model.requires_grad_(True)
        for optimizer, peaks in optimizers:
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate(step, steps)
        pixels = batch.pixels
        flags = torch.ones(len(pixels), dtype=torch.long)
        loss = model(
            pixel_values=normalize(pixels) if len(pixels) else None,
            input_ids=batch.input_ids,
            labels=batch.labels,
            image_flags=flags if len(pixels) else None,
            loss_weight=batch.weights,
        ).loss
        if not loss.isfinite():
            raise FloatingPointError(f"step {step + 1}: the loss is {loss.item()}")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for family, value in family_losses(model, batch).items():
            smooth[family] = 0.95 * smooth.get(family, value) + 0.05 * value
        if (step + 1) % log_every == 0:
            report = " ".join(f"{family} {value:.3f}" for family, value in sorted(smooth.items()))
            logger.info("step %d, %.0f s: %s", step + 1, time.monotonic() - start, report)


def family_losses(model: InternVLChatModel, batch: Batch) -> dict[str, float]:
    """Mean cross entropy per learnt token of the last step, by family."""
    losses = model.vocabulary_loss.row_losses
    rows = (batch.labels[:, 1:] != IGNORE_INDEX).nonzero()[:, 0].tolist()
    if losses is None or len(losses) != len(rows):
        raise ValueError("the model's last step was not on this batch")
    sums: dict[str, tuple[float, int]] = {}
    for row, loss in zip(rows, losses.tolist(), strict=True):
        total, count = sums.get(batch.families[row], (0.0, 0))
        sums[batch.families[row]] = total + loss, count + 1
    return {family: total / count for family, (total, count) in sums.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="tiny", help="shape of the chat model")
    parser.add_argument("--vision", type=Path, required=True, help="the trained tower")
    parser.add_argument("--out", type=Path, required=True, help="gets llm/ and mlp.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(args.out / "llm", seed=args.seed)
    add_special_tokens(tokenizer)
    tokenizer.save_pretrained(args.out / "llm")
    model = fresh_model(args.preset, args.vision, tokenizer)
    align(model, tokenizer, seed=args.seed, steps=args.steps)
    model.vision_model.save_pretrained(args.out / "vision")
    model.language_model.save_pretrained(args.out / "llm")
    projector = {f"mlp1.{name}": value for name, value in model.mlp1.state_dict().items()}
    save_file(projector, args.out / "mlp.safetensors")


if __name__ == "__main__":
    main()
