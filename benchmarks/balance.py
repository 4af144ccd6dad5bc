"""How evenly 64 ranks are busy: padding, and the slowest rank over the mean in either tower.

A simulation, without a model: the order is planned for a synthetic mixture, its steps are cut, and
the work of every micro batch is added up. Ranks meet in every layer, so a micro step lasts as long
as its slowest rank takes in the vision tower, and then as long as its slowest takes in the language
model; a ratio is the sum of the slowest over the sum of the means. Compared: the rule of now, the
one before it (tokens only), and the original code's grouped sampler. Example::

    python benchmarks/balance.py
    python benchmarks/balance.py --json

**The mixtures.** Nine datasets in the proportions of the ``length``s of
``shell/data/internvl_1_2_finetune.json``; text beside the image is log-normal, ``SETS`` says with
which median and deviation (of the logarithm), chosen by us after what the datasets ask and answer.
6.1 % of one of them (40,688 of 665,058: ShareGPT's conversations) is text only, 900 tokens in the
median. A tile is 256 tokens and 3 of tags, 30 more are the template's. ``one tile``: cut at 2,048
tokens, as the recipes do. ``0 to 12 tiles``: a record with images has 1 to 12 tiles, all equally
often; cut at 4,096.

**The speed.** Time is FLOPs of InternVL-Chat-V1-2, everything trained with recomputation, padding
and dummy tiles included, both towers at one rate, nothing but computing counted. OmniBal
(arXiv 2407.20761) calls the mean over micro steps of 1 - mean / slowest the Dist Ratio (of the
longest row's tokens, and of images): the share of the time that a rank waits; shown likewise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from benchmarks.common import ROOT, table
from benchmarks.data.order import original_grouped
from internvl_chat.data.balance import V1_2_RATES
from internvl_chat.data.epoch_plan import EpochPlan
from internvl_chat.data.sampler import plan_epoch

META = ROOT / "shell/data/internvl_1_2_finetune.json"
SETS = {
    "sharegpt4v_instruct_gpt4-vision_cap100k": (250, 0.35),
    "llava_instruct_150k_zh": (280, 0.6),
    "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k": (300, 0.7),
    "dvqa_train_200k": (220, 0.4),
    "chartqa_train_18k": (80, 0.4),
    "ai2d_train_12k": (130, 0.3),
    "docvqa_train_10k": (130, 0.5),
    "geoqa+": (160, 0.4),
    "synthdog_en": (320, 0.5),
}
"""Tokens of text beside an image: median, deviation of the logarithm."""
TEXT_ONLY = {"sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k": 40_688 / 665_058}
TEXT_ONLY_TOKENS = (900, 0.9)
TOKENS_OF_TILE, TOKENS_OF_TEMPLATE = 259, 30
MOST_TILES = {"one tile": 1, "0 to 12 tiles": 12}
MOST_TOKENS = {"one tile": 2048, "0 to 12 tiles": 4096}

MOST_IMBALANCE, MOST_PADDING = 1.05, 0.01
GLOBAL_BATCH, PER_DEVICE = 512, 8
"""Of the recipe for 64 GPUs."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A row of the table."""

    order: str
    rule: str
    """``original``, ``before`` or ``now``."""
    global_batch_size: int
    micro_batch_size: int
    max_packed_tokens: int | None = None

    def is_possible(self, ranks: int, longest: int) -> bool:
        """Whether its steps divide and its packs take every sample."""
        divides = self.global_batch_size % (ranks * self.micro_batch_size) == 0
        return divides and (self.max_packed_tokens is None or self.max_packed_tokens >= longest)


def mixture(name: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and tiles of about ``count`` records."""
    meta = json.loads(META.read_text("utf-8"))
    total = sum(entry["length"] for entry in meta.values())
    rng = np.random.default_rng(seed)
    lengths, tiles = [], []
    for dataset, entry in meta.items():
        number = round(count * entry["length"] / total)
        is_text = rng.random(number) < TEXT_ONLY.get(dataset, 0)
        shown = rng.integers(1, MOST_TILES[name] + 1, number)
        words = log_normal(rng, *SETS[dataset], number)
        shown[is_text] = 0
        words[is_text] = log_normal(rng, *TEXT_ONLY_TOKENS, int(is_text.sum()))
        tokens = TOKENS_OF_TEMPLATE + words + TOKENS_OF_TILE * shown
        lengths.append(np.minimum(tokens, MOST_TOKENS[name]).astype(np.int32))
        tiles.append(shown.astype(np.int32))
    return np.concatenate(lengths), np.concatenate(tiles)


def log_normal(rng: np.random.Generator, median: float, deviation: float, size: int) -> np.ndarray:
    """Draws of a log-normal distribution."""
    return np.exp(rng.normal(np.log(median), deviation, size))


def settings() -> Iterator[Setting]:
    """What is compared: the original's order, and ours under both rules."""
    grouped = Setting(
        order="grouped",
        rule="original",
        global_batch_size=GLOBAL_BATCH,
        micro_batch_size=PER_DEVICE,
    )
    yield replace(grouped, order="random")
    yield grouped
    for rule in ("before", "now"):
        for micro in (PER_DEVICE, 4, 1):
            yield replace(grouped, rule=rule, micro_batch_size=micro)
        for micro in (PER_DEVICE, 1):
            yield replace(grouped, order="random", rule=rule, micro_batch_size=micro)
        for capacity in (4096, 8192, 16_384):
            for size in (64, 128, 512):
                yield Setting(
                    order="packed",
                    rule=rule,
                    global_batch_size=size,
                    micro_batch_size=1,
                    max_packed_tokens=capacity,
                )


def planned(setting: Setting, lengths: np.ndarray, tiles: np.ndarray, ranks: int) -> EpochPlan:
    """The plan of an epoch."""
    plan = plan_epoch(
        lengths,
        tiles=tiles,
        seed=0,
        epoch=0,
        global_batch_size=setting.global_batch_size,
        mode=setting.order,  # type: ignore[arg-type]
        max_packed_tokens=setting.max_packed_tokens,
        rule=2 if setting.rule == "now" else 1,
    )
    if (setting.rule, setting.order) == ("original", "grouped"):
        order = original_grouped(lengths, setting.micro_batch_size, ranks)
        plan = replace(plan, samples=np.array(order, dtype=np.int32))
    return plan


def simulated(setting: Setting, plan: EpochPlan, ranks: int) -> dict[str, float]:
    """The figures of a row; of whole steps."""
    cut = plan.cut(world_size=ranks, micro_batch_size=setting.micro_batch_size, rates=V1_2_RATES)
    steps = plan.num_packs // setting.global_batch_size
    vision, text, longest, shown = [], [], [], []
    tokens = positions = 0
    for step in range(steps):
        dealt, work = plan.dealt(step, cut)
        sizes = plan.sizes(step, cut.rates)
        vision.append(work.vision)
        text.append(work.text)
        rows = sizes.lengths[dealt]
        longest.append(rows.sum(axis=2) if cut.packed else rows.max(axis=2))
        shown.append(np.maximum(sizes.tiles[dealt].sum(axis=2), 1))
        tokens += int(rows.sum())
        widest = setting.max_packed_tokens or rows.max(axis=2)
        positions += int(np.broadcast_to(widest, rows.shape[:2]).sum()) * rows.shape[2]
    slowest = [np.concatenate(work).max(axis=1).sum() for work in (vision, text)]
    mean = [np.concatenate(work).mean(axis=1).sum() for work in (vision, text)]
    return {
        "padding": 1 - tokens / positions,
        "vit_imbalance": float(slowest[0] / mean[0]),
        "llm_imbalance": float(slowest[1] / mean[1]),
        "vit_dist_ratio": dist_ratio(shown),
        "llm_dist_ratio": dist_ratio(longest),
        "time_per_sample": float(sum(slowest)) / plan.num_samples(0, steps),
    }


def dist_ratio(values: list[np.ndarray]) -> float:
    """OmniBal's measure of (A, W) values a step."""
    joined = np.concatenate(values)
    return float((1 - joined.mean(axis=1) / joined.max(axis=1)).mean())


def is_reached(row: dict[str, Any]) -> bool:
    """Whether a row keeps the targets, which are for grouped and packed orders of now."""
    if row["rule"] != "now" or row["order"] == "random":
        return True
    even = max(row["vit_imbalance"], row["llm_imbalance"]) <= MOST_IMBALANCE
    return bool(even and row["padding"] <= MOST_PADDING)


def rows_of(name: str, count: int, ranks: int, seed: int) -> list[dict[str, Any]]:
    """All settings on a mixture; speed relative to the original's grouped order."""
    lengths, tiles = mixture(name, count, seed)
    rows, original = [], 0.0
    for setting in settings():
        if not setting.is_possible(ranks, int(lengths.max())):
            continue
        plan = planned(setting, lengths, tiles, ranks)
        row = {"mix": name, **asdict(setting), **simulated(setting, plan, ranks)}
        if (setting.rule, setting.order) == ("original", "grouped"):
            original = row["time_per_sample"]
        rows.append(row)
    for row in rows:
        row["speed"] = original / row.pop("time_per_sample") if original else None
        row["reached"] = is_reached(row)
    return rows


def shown_rows(rows: list[dict[str, Any]]) -> str:
    """The table of a mixture."""
    header = ["order", "rule", "pack", "step", "a rank", "padding", "ViT", "LLM", "Dist Ratio", ""]
    lines = [
        [
            row["order"],
            row["rule"] + ("" if row["reached"] else " (MISSED)"),
            str(row["max_packed_tokens"] or ""),
            str(row["global_batch_size"]),
            str(row["micro_batch_size"]),
            f"{row['padding']:.4f}",
            f"{row['vit_imbalance']:.3f}",
            f"{row['llm_imbalance']:.3f}",
            f"{row['vit_dist_ratio']:.3f}, {row['llm_dist_ratio']:.3f}",
            "" if row["speed"] is None else f"{row['speed']:.2f} x",
        ]
        for row in rows
    ]
    return table(header, lines)


def main() -> int:
    """Returns 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=200_000, help="records of each mixture")
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of the mixtures")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    args = parser.parse_args()
    rows = {name: rows_of(name, args.samples, args.ranks, args.seed) for name in MOST_TILES}
    reached = all(row["reached"] for found in rows.values() for row in found)
    if args.json:
        shared = {"samples": args.samples, "ranks": args.ranks, "seed": args.seed}
        print(
            json.dumps(
                {
                    **shared,
                    "reached": reached,
                    "rows": [row for found in rows.values() for row in found],
                }
            )
        )
        return 0 if reached else 1
    for name, found in rows.items():
        print(f"\n{name}: {args.samples:,} records, {args.ranks} ranks\n\n{shown_rows(found)}")
    print(f"\nboth imbalances <= {MOST_IMBALANCE}, padding <= {MOST_PADDING}, grouped and packed: ")
    print("reached" if reached else "MISSED")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
