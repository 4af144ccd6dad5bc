"""Pre-train the tiny vision tower on dense labels; the heads are thrown away.

python -m playground.demo.vision_stage --out work_dirs/pretrain_tiny/vision
"""

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from internvl_chat.model.configuration_intern_vit import InternVisionConfig
from internvl_chat.model.modeling_intern_vit import InternVisionModel
from internvl_chat.model.presets import load_preset
from playground.demo.common import stream
from playground.demo.muon import Muon
from playground.demo.vision_labels import (
    GLOBAL_CLASSES,
    GRID,
    PATCH_CLASSES,
    UNKNOWN,
    labelled_picture,
)

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]
_QUERY_WIDTH = 64
MUON_PEAK = 4e-3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class LabelledPictures(Dataset[Batch]):
    """Picture ``i`` of the stream, with its labels; never repeats within a run."""

    def __init__(self, seed: int, split: str, length: int) -> None:
        self._seed, self._split, self._length = seed, split, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        image, labels = labelled_picture(stream(self._seed, "vision", self._split, index))
        return {
            "pixels": torch.from_numpy(np.array(image)),  # (S, S, 3) uint8
            "patches": torch.from_numpy(labels.patches),
            "whole": torch.from_numpy(labels.whole),
            "boxes": torch.from_numpy(labels.boxes),
        }


class VisionHeads(nn.Module):
    """Throw-away heads: linear per patch, one attention query per whole-picture label."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.patch_head = nn.Linear(width, sum(PATCH_CLASSES.values()))
        self.box_head = nn.Linear(width, 4)
        # The language model will see 2 x 2 patches as one token: ask the same view here.
        self.cell_norm = nn.LayerNorm(4 * width)
        self.key = nn.Linear(4 * width, _QUERY_WIDTH)
        self.value = nn.Linear(4 * width, width)
        self.query = nn.Parameter(0.2 * torch.randn(len(GLOBAL_CLASSES), _QUERY_WIDTH))
        self.classes = tuple(GLOBAL_CLASSES.values())
        self.weight = nn.Parameter(
            0.02 * torch.randn(len(GLOBAL_CLASSES), width, max(self.classes))
        )
        self.bias = nn.Parameter(torch.zeros(len(GLOBAL_CLASSES), max(self.classes)))
        unused = torch.arange(max(self.classes)) >= torch.tensor(self.classes)[:, None]
        self.register_buffer("unused", unused)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, P, C) to patch logits (N, P, sum of classes), boxes (N, P, 4), whole (N, G, V)."""
        normed = self.norm(patches)
        cells = patches.unflatten(1, (GRID // 2, 2, GRID // 2, 2)).permute(0, 1, 3, 2, 4, 5)
        cells = self.cell_norm(cells.flatten(3).flatten(1, 2))  # (N, P/4, 4C)
        scores = torch.einsum("gq,nkq->ngk", self.query, self.key(cells))
        pooled = F.gelu(scores.softmax(-1) @ self.value(cells))  # (N, G, C)
        whole = torch.einsum("ngc,gcv->ngv", pooled, self.weight) + self.bias
        whole = whole.masked_fill(self.unused, -1e4)
        return self.patch_head(normed), self.box_head(normed), whole


def dense_loss(outputs: tuple[Tensor, Tensor, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Mean cross entropy of each label over the places where it is known, and the boxes' L1."""
    patch_logits, boxes, whole = outputs
    losses = {}
    for i, logits in enumerate(patch_logits.split(list(PATCH_CLASSES.values()), dim=-1)):
        name = list(PATCH_CLASSES)[i]
        target = batch["patches"][:, i].reshape(-1)
        losses[name] = F.cross_entropy(logits.flatten(0, 1), target, ignore_index=UNKNOWN)
    known = ~batch["boxes"].isnan()
    losses["box"] = F.smooth_l1_loss(boxes[known], batch["boxes"][known], beta=0.1)
    target = batch["whole"].reshape(-1)
    losses["whole"] = F.cross_entropy(whole.flatten(0, 1), target, ignore_index=UNKNOWN)
    return losses


LOSS_WEIGHTS = {"box": 1.0, "glyph_a": 3.0, "glyph_b": 1.5, "middle": 2.0, "whole": 6.0}
"""Weight of a loss; 0.5 for those not named."""


@torch.no_grad()
def accuracies(outputs: tuple[Tensor, Tensor, Tensor], batch: Batch) -> dict[str, float]:
    """Share right by label, over known places; ``none`` counts only for whole-picture labels."""
    patch_logits, boxes, whole = outputs
    result = {}
    for i, logits in enumerate(patch_logits.split(list(PATCH_CLASSES.values()), dim=-1)):
        target = batch["patches"][:, i]
        result[list(PATCH_CLASSES)[i]] = _share(logits.argmax(-1) == target, target > 0)
    known = ~batch["boxes"].isnan()
    result["box_error"] = (boxes[known] - batch["boxes"][known]).abs().mean().item()
    right = whole.argmax(-1) == batch["whole"]
    for group in ("num_", "value_", "bar_color_", "glyph_"):
        rows = torch.tensor([name.startswith(group) for name in GLOBAL_CLASSES])
        target = batch["whole"][:, rows]
        known = target != UNKNOWN if group == "num_" else target > 0
        result["whole_" + group.strip("_")] = _share(right[:, rows], known)
    return result


def _share(right: Tensor, known: Tensor) -> float:
    return (right & known).sum().item() / max(1, int(known.sum()))


def normalize(pixels: Tensor) -> Tensor:
    """(N, S, S, 3) uint8 to (N, 3, S, S) float, normalised as in training."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def sincos_position(width: int) -> Tensor:
    """(GRID * GRID, width) two-dimensional sines and cosines: neighbours start out alike."""
    quarter = width // 4
    frequency = 1.0 / 100 ** (torch.arange(quarter) / quarter)
    angle = torch.arange(GRID)[:, None] * frequency  # (GRID, quarter)
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)  # (GRID, width / 2)
    rows = wave[:, None].expand(GRID, GRID, -1)
    columns = wave[None].expand(GRID, GRID, -1)
    return torch.cat([rows, columns], dim=-1).reshape(GRID * GRID, width)


def fresh_tower(config: InternVisionConfig) -> InternVisionModel:
    """A tower with fresh weights, position embeddings laid out as a plane."""
    model = InternVisionModel(config)
    with torch.no_grad():
        position = model.embeddings.position_embedding
        position[0, 1:] = 0.3 * sincos_position(config.hidden_size)
        # Fan-in scaled: the block widths here are far from those 0.02 is meant for.
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
    return model


def make_optimizers(
    model: InternVisionModel, heads: VisionHeads, peak: float
) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the blocks' matrices, AdamW for the rest; each with its highest learning rate.

    Muon (https://kellerjordan.github.io/posts/muon/) needs about half of AdamW's pictures here.
    """
    blocks = [p for p in model.encoder.parameters() if p.ndim == 2]
    taken = {id(p) for p in blocks}
    others = [p for p in (*model.parameters(), *heads.parameters()) if id(p) not in taken]
    muon = Muon(blocks, lr=MUON_PEAK, weight_decay=0.02)
    return [
        (muon, MUON_PEAK),
        (torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.98), weight_decay=0.0, fused=True), peak),
    ]


def cosine(step: int, steps: int, warmup: int = 50) -> float:
    """Share of the highest learning rate: linear warm-up, then half a cosine to a fiftieth."""
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * share)))


def batches(seed: int, split: str, batch: int, steps: int, workers: int) -> Iterator[Batch]:
    """``steps`` batches of the stream, in order."""
    pictures = LabelledPictures(seed, split, batch * steps)
    return iter(DataLoader(pictures, batch_size=batch, num_workers=workers))


def pretrain_vision(
    config: InternVisionConfig,
    *,
    seed: int,
    steps: int,
    batch_size: int = 32,
    peak: float = 1.5e-3,
    workers: int = 1,
    log_every: int = 100,
) -> InternVisionModel:
    """Train a fresh tower for ``steps`` steps; a function of its arguments."""
    torch.manual_seed(seed)
    model = fresh_tower(config).train()
    heads = VisionHeads(config.hidden_size)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizers = make_optimizers(model, heads, peak)
    held_out = next(batches(seed, "heldout", 256, 1, 0))
    start = time.monotonic()
    for step, batch in enumerate(batches(seed, "train", batch_size, steps, workers)):
        scale = cosine(step, steps)
        for optimizer, highest in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = highest * scale
        hidden = model(normalize(batch["pixels"])).last_hidden_state[:, 1:]
        losses = dense_loss(heads(hidden), batch)
        known = {k: v for k, v in losses.items() if not v.isnan()}
        loss = torch.stack([LOSS_WEIGHTS.get(k, 0.5) * v for k, v in known.items()]).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if (step + 1) % log_every == 0 or step + 1 == steps:
            scores = evaluate_vision(model, heads, held_out)
            report = " ".join(f"{k}={v:.3f}" for k, v in scores.items())
            seconds = time.monotonic() - start
            logger.info("step %d, %.0f s, loss %.3f: %s", step + 1, seconds, loss.item(), report)
    return model


@torch.no_grad()
def evaluate_vision(model: InternVisionModel, heads: VisionHeads, batch: Batch) -> dict[str, float]:
    """Held-out accuracy by label."""
    model.eval()
    scores = accuracies(heads(model(normalize(batch["pixels"])).last_hidden_state[:, 1:]), batch)
    model.train()
    return scores


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", default="tiny-vit", help="shape of the tower")
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    config = load_preset(args.preset)
    if not isinstance(config, InternVisionConfig):
        parser.error(f"--preset {args.preset} is no InternVisionConfig")
    model = pretrain_vision(config, seed=args.seed, steps=args.steps)
    model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
