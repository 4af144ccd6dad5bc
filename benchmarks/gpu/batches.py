"""The micro batches that our trainer would see, collated beforehand, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from internvl_chat.config import ORDER_RULE
from internvl_chat.costs.work import WorkRates
from internvl_chat.data.collate import Collator
from internvl_chat.model.constants import IGNORE_INDEX
from internvl_chat.train.batch_plan import BatchPlan
from internvl_chat.train.distributed import DistributedState
from internvl_chat.train.finetune import train_sampler
from internvl_chat.train.parsing import RunArguments
from internvl_chat.train.preparation import PreparedRun

Batch = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """The micro batches of one optimizer step."""

    batches: list[Batch]

    @property
    def supervised(self) -> float:
        """Supervised tokens: what the step's loss is divided by."""
        return float(sum(supervised(batch) for batch in self.batches))

    @property
    def tokens(self) -> int:
        """Tokens that are no padding."""
        return sum(sum(segment_lengths(batch)) for batch in self.batches)


def segment_lengths(batch: Mapping[str, Any]) -> list[int]:
    """Tokens of each sample of a micro batch, in its order."""
    segments: Tensor | None = batch.get("cu_seq_lens_q")
    lengths = batch["attention_mask"].sum(dim=1) if segments is None else segments.diff()
    return [int(length) for length in lengths.tolist()]


def supervised(batch: Mapping[str, Any]) -> int:
    """Positions with a label."""
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())


def num_tiles(batch: Mapping[str, Any]) -> int:
    """Image tiles of a micro batch."""
    return 0 if batch.get("pixel_values") is None else len(batch["pixel_values"])


def collate_steps(
    args: RunArguments,
    prepared: PreparedRun,
    state: DistributedState,
    rates: WorkRates,
    number: int,
) -> list[Step]:
    """The first steps of the run that ``args`` describe, in its order.

    Args:
        args, prepared: of the run.
        state: of this process.
        rates: of the model, by which steps are cut into micro batches.
        number: of steps.

    Raises:
        ValueError: the data have fewer.
    """
    plan = BatchPlan.from_accumulation(
        micro_batch_size=args.train.per_device_train_batch_size,
        world_size=state.world_size,
        accumulation_steps=args.train.gradient_accumulation_steps,
    )
    collator = Collator(
        pad_token_id=prepared.tokenizer.pad_token_id, packed=args.data.use_packed_ds
    )
    sampler = train_sampler(args, prepared.train, plan, state, rule=ORDER_RULE)
    sampler.rates = rates
    batches = (collator([prepared.train[pack] for pack in packs]) for packs in sampler)
    steps: list[Step] = []
    for _ in range(number):
        taken = [batch for _, batch in zip(range(plan.accumulation_steps), batches, strict=False)]
        if len(taken) < plan.accumulation_steps:
            raise ValueError(f"the data have {len(steps)} steps, {number} wanted: more --records")
        steps.append(Step(taken))
    return steps
