"""Pre-train the tiny vision tower and its projector to give the labels of each image token.

    python -m examples.tiny_model.vision_stage --out work_dirs/pretrain_tiny/eye

The chat recipe starts from a *pretrained* InternViT and a projector that has been aligned with the
language model; this is how the tiny ones come by that: see ``label_embeddings.py``. Writes the
tower into ``OUT/vision`` and the projector into ``OUT/mlp.safetensors``.
"""

import argparse
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from examples.tiny_model.charts import sample_chart
from examples.tiny_model.common import SIDE, stream
from examples.tiny_model.label_embeddings import (
    GROUP_NAMES,
    NOTHING,
    UNKNOWN,
    LabelEmbeddings,
    label_image,
    waves,
)
from examples.tiny_model.muon import MuonWithAdamW
from examples.tiny_model.precision import has_bf16_products, matrix_precision
from examples.tiny_model.projector import build_projector, save_projector, shuffled_patches
from examples.tiny_model.records import ImageSpec, draw
from examples.tiny_model.scene import MANY, sample_scene
from examples.tiny_model.words import sample_glyphs, sample_sign
from internvl_chat.data.pixels import normalize_pixels
from internvl_chat.model.configuration_intern_vit import InternVisionConfig
from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.model.modeling_intern_vit import InternVisionModel
from internvl_chat.model.presets import load_preset

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]
PATCH = 14
GRID = SIDE // PATCH
MUON_PEAK = 4e-3
SHARPNESS = 12.0
"""Factor from a label's strength to its logit: 1 against 0 is a certain answer."""
NOTHING_WEIGHT = 0.2
"""Of a token that shows none of a group, in the cross entropy: most of them do."""
SQUARES_WEIGHT, WAVES_WEIGHT, REST_WEIGHT = 4.0, 10.0, 5.0


def sample_spec(rng: random.Random) -> ImageSpec:
    """An image of the kinds in the records; half of them full, for more to learn from each."""
    kind = rng.random()
    if kind < 0.2:
        return sample_scene(rng)
    if kind < 0.5:
        return sample_scene(rng, counts=MANY)
    if kind < 0.65:
        return sample_chart(rng)
    return sample_sign(rng) if kind < 0.8 else sample_glyphs(rng)


class LabelledImages(Dataset[Batch]):
    """Image ``i`` of the stream, with its labels; never repeats within a run."""

    def __init__(self, seed: int, split: str, length: int) -> None:
        self._seed, self._split, self._length = seed, split, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        spec = sample_spec(stream(self._seed, "vision", self._split, index))
        labels = label_image(spec)
        return {
            "pixels": torch.from_numpy(np.array(draw(spec))),  # (S, S, 3) uint8
            "classes": torch.from_numpy(labels.classes),  # (K, G)
            "edges": torch.from_numpy(labels.edges),  # (K, 4)
        }


class TowerAndProjector(nn.Module):
    """A vision tower, pixel shuffle and a projector: what a chat model has before its LLM."""

    def __init__(self, tower: InternVisionModel, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.projector = build_projector(4 * tower.config.hidden_size, width)
        for layer in self.projector:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) to (N, K, D)."""
        return self.projector(shuffled_patches(self.tower, pixel_values))


def label_loss(image_embeds: Tensor, batch: Batch, label_embeddings: LabelEmbeddings) -> Tensor:
    """How far ``image_embeds`` (N, K, D) are from what the image tokens show.

    Cross entropy within each group, "nothing" being half a label's strength; and squares of
    every strength, so that an embedding has its very length and holds nothing else.
    """
    groups, found_waves, rest = label_embeddings.decode(image_embeds)
    entropy, squares = image_embeds.new_zeros(()), image_embeds.new_zeros(())
    for strengths, target in zip(groups, batch["classes"].unbind(-1), strict=True):
        known = target != UNKNOWN
        strengths, target = strengths[known], target[known]
        wanted = F.one_hot(target + 1, strengths.shape[-1] + 1)[:, 1:].to(strengths)
        squares = squares + (strengths - wanted).square().sum() / max(1, len(target))
        none = torch.full_like(strengths[:, :1], 0.5)
        logits = SHARPNESS * torch.cat([none, strengths], dim=-1)
        weights = torch.where(target == NOTHING, NOTHING_WEIGHT, 1.0)
        losses = F.cross_entropy(logits, target + 1, reduction="none") * weights
        entropy = entropy + losses.sum() / weights.sum().clamp(min=1.0)
    there = ~batch["edges"].isnan().any(-1)
    wrong = (found_waves - waves(batch["edges"])).square().mean(-1)
    box = wrong[there].sum() / max(1, int(there.sum())) + 0.2 * wrong[~there].mean()
    nothing = rest.square().mean()
    return entropy + SQUARES_WEIGHT * squares + WAVES_WEIGHT * box + REST_WEIGHT * nothing


@torch.no_grad()
def accuracies(
    image_embeds: Tensor, batch: Batch, label_embeddings: LabelEmbeddings
) -> dict[str, float]:
    """Share right by group where something is shown, and how often nothing is."""
    result = {}
    groups, found_waves, _ = label_embeddings.decode(image_embeds)
    for name, strengths, target in zip(
        GROUP_NAMES, groups, batch["classes"].unbind(-1), strict=True
    ):
        highest, index = strengths.max(-1)
        best = torch.where(highest > 0.5, index, NOTHING)
        result[name] = _share(best == target, target >= 0)
    empty = batch["classes"][..., GROUP_NAMES.index("color")] == NOTHING
    colors = groups[GROUP_NAMES.index("color")]
    result["nothing"] = _share(colors.amax(-1) <= 0.5, empty)
    there = ~batch["edges"].isnan().any(-1)
    gap = (found_waves - waves(batch["edges"]))[there].square().mean()
    result["waves"] = gap.sqrt().item()
    return result


def _share(right: Tensor, known: Tensor) -> float:
    return (right & known).sum().item() / max(1, int(known.sum()))


def normalize(pixels: Tensor) -> Tensor:
    """(N, S, S, 3) uint8 to (N, 3, S, S) float, normalised as in training."""
    return normalize_pixels(pixels.permute(0, 3, 1, 2).contiguous())


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


def cosine(step: int, steps: int, warmup: int = 50) -> float:
    """Share of the highest learning rate: linear warm-up, then half a cosine to a fiftieth."""
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * share)))


def batches(seed: int, split: str, batch: int, steps: int, workers: int) -> Iterator[Batch]:
    """``steps`` batches of the stream, in order."""
    images = LabelledImages(seed, split, batch * steps)
    return iter(DataLoader(images, batch_size=batch, num_workers=workers))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast."""

    steps: int
    batch_size: int = 32
    peak: float = 1.5e-3
    """Of AdamW's rate."""
    workers: int = 1
    log_every: int = 100


def pretrain_vision(
    config: InternVisionConfig, width: int, *, seed: int, plan: Schedule
) -> TowerAndProjector:
    """Train a fresh tower and projector; a function of its arguments.

    Args:
        config: shape of the tower.
        width: D, of the language model to come.
        seed: of weights and images.
        plan: how long.
    """
    torch.manual_seed(seed)
    label_embeddings = LabelEmbeddings(width)
    model = TowerAndProjector(fresh_tower(config), width).train()
    if has_bf16_products():
        model.tower.set_attn_implementation("eager")  # short rows: bf16 products beat the kernel
    # Muon (https://kellerjordan.github.io/posts/muon/) needs half of AdamW's images here.
    blocks = [*model.tower.encoder.parameters(), *model.projector.parameters()]
    optimizer = MuonWithAdamW(model, blocks, muon_peak=MUON_PEAK, adam_peak=plan.peak)
    held_out = next(batches(seed, "heldout", 256, 1, 0))
    start = time.monotonic()
    stream_of_batches = batches(seed, "train", plan.batch_size, plan.steps, plan.workers)
    for step, batch in enumerate(stream_of_batches):
        with matrix_precision():
            image_embeds = model(normalize(batch["pixels"]))
        loss = label_loss(image_embeds.float(), batch, label_embeddings)
        loss.backward()
        optimizer.step(cosine(step, plan.steps))
        if (step + 1) % plan.log_every == 0 or step + 1 == plan.steps:
            model.eval()
            with torch.no_grad():
                scores = accuracies(
                    model(normalize(held_out["pixels"])), held_out, label_embeddings
                )
            model.train()
            report = " ".join(f"{k}={v:.3f}" for k, v in scores.items())
            seconds = time.monotonic() - start
            logger.info("step %d, %.0f s, loss %.3f: %s", step + 1, seconds, loss.item(), report)
    return model


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", default="tiny", help="shape of the chat model")
    parser.add_argument("--out", type=Path, required=True, help="gets vision/ and mlp.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    config = load_preset(args.preset)
    if not isinstance(config, InternVLChatConfig):
        parser.error(f"--preset {args.preset} is no chat model")
    llm: Any = config.llm_config
    plan = Schedule(steps=args.steps)
    model = pretrain_vision(config.vision_config, llm.hidden_size, seed=args.seed, plan=plan)
    model.tower.save_pretrained(args.out / "vision")
    save_projector(model.projector, args.out / "mlp.safetensors")


if __name__ == "__main__":
    main()
