"""A start for the projector: each image token is pulled to the LLM's embeddings of its labels.

    python -m examples.smollm2.projector_start --vision pretrained/internvl-chat-tiny \\
        --llm pretrained/SmolLM2-135M-Instruct --out work_dirs/smollm2_lora/mlp.safetensors

A new projector's output means nothing to a frozen LLM, and finding out what does takes the
published recipe half a million captioned images. Here we know what each image token shows, so the
first part of the way needs no LLM at all, only its table of token embeddings: the token of a red
star is moved to where "red" and "star" are. What the LLM makes of such a token is left to the two
stages of the recipes.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from examples.quickstart.digits import Scan, draw_scan, sample_look, split_scans
from examples.tiny_model.common import COLOR_NAMES, stream
from examples.tiny_model.label_embeddings import token_at
from examples.tiny_model.projector import build_projector, save_projector, shuffled_patches
from examples.tiny_model.scene import KINDS, draw_scene, sample_scene
from examples.tiny_model.vision_stage import normalize
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.model.modeling_intern_vit import InternVisionModel
from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

logger = logging.getLogger(__name__)

DIGITS = tuple("0123456789")
GROUPS: dict[str, tuple[str, ...]] = {"color": COLOR_NAMES, "kind": KINDS, "digit": DIGITS}
"""Labels that exclude each other: an image token shows at most one of each group."""
NUM_IMAGE_TOKEN = 16
UNKNOWN = -100
TEMPERATURE = 0.05
HELD_OUT = 200


@dataclass(frozen=True)
class Views:
    """Shuffled features (N, K, C) of the frozen tower and a label of each group (N, K, G)."""

    features: Tensor
    labels: Tensor


def scene_labels(seed: int, index: int) -> tuple[Image.Image, Tensor]:
    """A scene and the (K, G) labels of its image tokens."""
    scene = sample_scene(stream(seed, "smollm2", "start", index))
    labels = torch.full((NUM_IMAGE_TOKEN, len(GROUPS)), UNKNOWN)
    for shape in scene.shapes:
        token = token_at(shape.x, shape.y)
        labels[token, 0] = COLOR_NAMES.index(shape.color)
        labels[token, 1] = KINDS.index(shape.kind)
    return draw_scene(scene), labels


def digit_labels(seed: int, index: int, scans: Sequence[Scan]) -> tuple[Image.Image, Tensor]:
    """A scan of the training part, in a look of its own; every image token shows the digit."""
    scan = scans[index % len(scans)]
    labels = torch.full((NUM_IMAGE_TOKEN, len(GROUPS)), UNKNOWN)
    labels[:, 2] = scan.digit
    return draw_scan(scan, sample_look(stream(seed, "smollm2", "start digit", index))), labels


@torch.no_grad()
def view(tower: InternVisionModel, images: Sequence[tuple[Image.Image, Tensor]]) -> Views:
    """What the projector gets to see of each image."""
    features = []
    for start in range(0, len(images), 32):
        pixels = np.stack([np.asarray(image) for image, _ in images[start : start + 32]])
        features.append(shuffled_patches(tower, normalize(torch.from_numpy(pixels))))
    return Views(torch.cat(features), torch.stack([labels for _, labels in images]))


def embedding_table(llm: Path) -> Tensor:
    """(V, D) input embeddings of a checkpoint on disk, in fp32.

    Raises:
        FileNotFoundError: no safetensors file of the folder holds them.
    """
    name = "model.embed_tokens.weight"
    for file in sorted(llm.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118  safe_open is no mapping
                return tensors.get_tensor(name).float()
    raise FileNotFoundError(f"{llm}: no *.safetensors holds {name}. Convert the LLM first.")


def label_vectors(tokenizer: Any, table: Tensor) -> dict[str, Tensor]:
    """(W, D) of each group: the mean of the first token of a label alone and after a blank."""

    def vector(label: str) -> Tensor:
        spellings = (label,) if label.isdigit() else (label, f" {label}")
        first = [tokenizer(s, add_special_tokens=False)["input_ids"][0] for s in spellings]
        return table[first].mean(0)

    return {
        group: torch.stack([vector(label) for label in labels]) for group, labels in GROUPS.items()
    }


def nearness(rows: Tensor, table: Tensor, middle: Tensor) -> Tensor:
    """(M, W) cosines between rows (M, D) and labels (W, D), seen from the mean of all tokens.

    Embeddings share a large mean; from the origin all of them lie in one direction.
    """
    return F.normalize(rows - middle, dim=1) @ F.normalize(table - middle, dim=1).t()


def start_loss(output: Tensor, labels: Tensor, vectors: dict[str, Tensor], empty: Tensor) -> Tensor:
    """How far image tokens are from their labels' embeddings.

    Args:
        output: (M, D) of the projector.
        labels: (M, G) index within each group, UNKNOWN where it shows none.
        vectors: (W, D) of each group.
        empty: (D,) mean of all embeddings: what a token with nothing to show should be.

    Returns:
        Cross entropy of the cosines within each group, plus what lacks to the mean of the labels'
        embeddings.
    """
    target = torch.zeros_like(output)
    count = torch.zeros(len(output), 1)
    loss = output.new_zeros(())
    for column, group in zip(labels.unbind(1), vectors.values(), strict=True):
        known = column != UNKNOWN
        if known.any():
            cosines = nearness(output[known], group, empty)
            loss = loss + F.cross_entropy(cosines / TEMPERATURE, column[known])
            target[known] += group[column[known]]
            count[known] += 1
    target = torch.where(count > 0, target / count.clamp(min=1), empty)
    return loss + (output - target).pow(2).mean() / empty.pow(2).mean()


def accuracy(
    projector: nn.Module, views: Views, vectors: dict[str, Tensor], empty: Tensor
) -> dict[str, float]:
    """Share of held-out things whose nearest label is right; a digit by its mean token."""
    with torch.no_grad():
        output = projector(views.features)
    scores = {}
    for (group, table), labels in zip(vectors.items(), views.labels.unbind(2), strict=True):
        rows, truth = output[labels != UNKNOWN], labels[labels != UNKNOWN]
        if group == "digit":
            whole = (labels != UNKNOWN).all(1)
            rows, truth = output[whole].mean(1), labels[whole][:, 0]
        nearest = nearness(rows, table, empty).argmax(1)
        scores[group] = (nearest == truth).float().mean().item()
    return scores


def fit(
    projector: nn.Module,
    views: Views,
    vectors: dict[str, Tensor],
    empty: Tensor,
    *,
    epochs: int,
    batch_size: int = 64,
    peak: float = 2e-3,
) -> None:
    """Train the projector in place on images seen ``epochs`` times."""
    optimizer = torch.optim.AdamW(projector.parameters(), lr=peak, weight_decay=0.01)
    steps = epochs * -(-len(views.labels) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(views.labels)).split(batch_size):
            output = projector(views.features[rows]).flatten(0, 1)
            loss = start_loss(output, views.labels[rows].flatten(0, 1), vectors, empty)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vision", type=Path, required=True, help="chat model with the tower")
    parser.add_argument("--llm", type=Path, required=True, help="whose token embeddings to meet")
    parser.add_argument("--out", type=Path, required=True, help="the recipe's --mlp_path")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--digits", type=int, default=4200)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(args.seed)
    begin = time.monotonic()
    tower = InternVLChatModel.from_pretrained(args.vision, dtype=torch.float32).vision_model.eval()
    scans, _ = split_scans(args.seed)
    held_out_scans, scans = scans[:HELD_OUT], scans[HELD_OUT:]
    table = embedding_table(args.llm)
    vectors = label_vectors(load_tokenizer(str(args.llm)), table)
    train = [scene_labels(args.seed, i) for i in range(args.scenes)]
    train += [digit_labels(args.seed, i, scans) for i in range(args.digits)]
    held_out = [scene_labels(args.seed + 1, i) for i in range(HELD_OUT)]
    held_out += [digit_labels(args.seed + 1, i, held_out_scans) for i in range(HELD_OUT)]
    views, held_out_views = view(tower, train), view(tower, held_out)
    projector = build_projector(views.features.shape[-1], table.shape[1])
    empty = table.mean(0)
    fit(projector, views, vectors, empty, epochs=args.epochs)
    scores = accuracy(projector, held_out_views, vectors, empty)
    told = ", ".join(f"{group} {100 * share:.0f} %" for group, share in scores.items())
    seconds = time.monotonic() - begin
    logger.info("nearest label right, images not trained on: %s (%.0f s)", told, seconds)
    save_projector(projector, args.out)


if __name__ == "__main__":
    main()
