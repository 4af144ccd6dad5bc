"""What a run says about itself: log lines before step 1, arguments, errors."""

from __future__ import annotations

import logging
import platform
import re
import sys
from typing import Any

import numpy as np
import torch

from internvl_chat.checkpoint.four_bits import four_bit_line
from internvl_chat.checkpoint.lora import adapter_lines, trainable_table
from internvl_chat.config import BuildConfig
from internvl_chat.data.dataset import SftDataset
from internvl_chat.data.imbalance import Imbalance, expected_imbalance
from internvl_chat.data.sampler import StepBatchSampler
from internvl_chat.errors import UserError
from internvl_chat.model.constants import IGNORE_INDEX
from internvl_chat.quiet import quiet_libraries
from internvl_chat.train.batch_plan import BatchPlan
from internvl_chat.train.dataset_table import dataset_table, validation_line
from internvl_chat.train.distributed import DistributedState
from internvl_chat.train.metrics import matmul_precision, peak_line
from internvl_chat.train.order import RunLength, RunTotal
from internvl_chat.train.parsing import RunArguments
from internvl_chat.train.preparation import PreparedRun
from internvl_chat.train.rates import asked_rates, num_vision_layers, rates_by_row
from internvl_chat.train.versions import versions
from internvl_chat.train.zero import stage_of
from internvl_chat.train.zero_fitting import tell_of_lower_stage

logger = logging.getLogger(__name__)

NUM_SAMPLES_SHOWN = 6


def set_up_logging(state: DistributedState) -> None:
    """One format with the rank in it; ranks above 0 speak up for warnings only."""
    logging.basicConfig(
        level=logging.INFO if state.is_main else logging.WARNING,
        format=f"%(asctime)s [rank {state.rank}] %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    quiet_libraries()


# ---- errors ------------------------------------------------------------------------------------


def describe(err: UserError) -> str:
    """The message of an error, also of one that a data worker sent with its traceback."""
    text = str(err)
    if "Original Traceback" in text:
        found = re.findall(rf"{type(err).__name__}: (.*)\Z", text.strip(), flags=re.DOTALL)
        text = found[-1] if found else text
    return text


def with_rank(state: DistributedState | None, text: str) -> str:
    """The lines for stderr; a rank that fails alone says who it is."""
    alone = state is not None and not state.is_main
    return f"error: {f'[rank {state.rank}] ' if alone and state else ''}{text}\n"


# ---- before step 1 ------------------------------------------------------------------------------


def log_start(
    args: RunArguments,
    state: DistributedState,
    batch_plan: BatchPlan,
    model: Any,
    prepared: PreparedRun,
    sampler: StepBatchSampler,
    length: RunLength,
    step: int,
) -> None:
    """Log what trains, the batch arithmetic, device and kernels, versions."""
    if not state.is_main:
        return
    lines = ["trainable parameters", *_parameter_table(model, args), *adapter_lines(model)]
    lines += filter(None, [four_bit_line(model)])
    lines += dataset_table(prepared.train.mixture, is_split=prepared.is_split)
    if prepared.evaluation is not None:
        lines.append(validation_line(args.train, prepared.evaluation.mixture))
    lines += [f"batch: {batch_plan}", *_schedule(args, prepared.train, sampler, length, step)]
    lines.append(
        f"device {state.device} ({_device_name(state.device)}), {state.world_size} processes, "
        f"backend {state.backend or 'none'}, launcher {state.launcher}, "
        f"master {state.master or 'none'}"
    )
    lines += filter(None, [peak_line(state.device, matmul_precision(args.train))])
    lines.append(
        f"ZeRO-{stage_of(_deepspeed(args))}, weights {_dtypes(prepared.build)}, "
        f"attention {prepared.attention} ({prepared.attention_reason})"
    )
    lines.append(", ".join(f"{name} {version}" for name, version in versions().items()))
    logger.info("%s", "\n  ".join(lines))
    tell_of_lower_stage(args, state, model)
    if args.train.bf16 and state.device.type == "cpu":
        instead = "" if args.model.load_in_4bit else "; --bf16 False computes in fp32"
        logger.warning("bf16 on a CPU is emulated and slow%s", instead)


def _dtypes(build: BuildConfig) -> str:
    if build.frozen_dtype == build.dtype:
        return str(build.dtype)
    return f"{build.dtype} where they train, {build.frozen_dtype} where they are frozen"


def _parameter_table(model: Any, args: RunArguments) -> list[str]:
    rows = trainable_table(model)
    rows_and_sum = [(row.group, row.total, row.trainable) for row in rows]
    rows_and_sum.append(("all", sum(r.total for r in rows), sum(r.trainable for r in rows)))
    width = max(len(name) for name, *_ in rows_and_sum)
    asked = asked_rates(vars(args.train), num_vision_layers(model))
    rates = rates_by_row(model, asked)
    return [
        f"{name:<{width}}  {total:>16,}  trainable {trainable:>16,}  {trainable / total:>7.2%}"
        + _rate(rates.get(name))
        for name, total, trainable in rows_and_sum
        if total
    ]


def _rate(lowest_and_highest: tuple[float, float] | None) -> str:
    if lowest_and_highest is None:
        return ""
    lowest, highest = lowest_and_highest
    return f"  lr {highest:g}" if lowest == highest else f"  lr {lowest:.3g} to {highest:.3g}"


def _schedule(
    args: RunArguments, dataset: SftDataset, sampler: StepBatchSampler, length: RunLength, step: int
) -> list[str]:
    total = length.total(num_epochs=args.train.num_train_epochs, max_steps=args.train.max_steps)
    sampler.set_epoch(0)
    plan = sampler.plan
    tokens = int(dataset.lengths[plan.samples].sum(dtype=np.int64))
    padding = plan.num_steps * plan.global_batch_size - plan.num_packs
    return [
        f"epoch: {plan.num_steps:,} steps, {plan.num_samples():,} samples, {tokens:,} tokens, "
        f"{padding:,} padding samples in the last step",
        balance_line(expected_imbalance(plan, sampler.cut), num_ranks=sampler.world_size),
        run_line(total, done=step),
    ]


def run_line(total: RunTotal, *, done: int) -> str:
    """How long the run is, and how many steps of it are done."""
    about = "" if total.is_exact else "about "
    of_them = f", {done:,} of them done" if done else ""
    return f"run: {total.steps:,} steps in {about}{total.epochs:,} epochs{of_them}"


def balance_line(expected: Imbalance, *, num_ranks: int) -> str:
    """How evenly the ranks will be busy; one has none to wait for."""
    filled = (
        f"padding {expected.padding:.1%}"
        if expected.filled is None
        else f"packs {expected.filled:.1%} full"
    )
    ratios = (
        f", slowest rank over mean {expected.vision:.2f} in the vision tower and "
        f"{expected.text:.2f} in the language model"
    )
    steps = f"{expected.steps:,} steps" if expected.steps > 1 else "step"
    return f"balance of the first {steps}: {filled}{ratios if num_ranks > 1 else ''}"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def _deepspeed(args: RunArguments) -> Any:
    return args.train.deepspeed if isinstance(args.train.deepspeed, dict) else None


def training_samples(
    dataset: SftDataset, tokenizer: Any, sampler: StepBatchSampler
) -> list[tuple[np.ndarray | None, str]]:
    """The first samples of the run: image (H, W, 3) uint8 and the text that is trained."""
    shown: list[tuple[np.ndarray | None, str]] = []
    sampler.set_epoch(0)
    plan = sampler.plan
    for number in range(min(plan.num_packs, NUM_SAMPLES_SHOWN)):
        example = dataset[plan.pack(number)][0]
        pixels = example.pixel_values
        image = None if pixels is None else pixels[0].permute(1, 2, 0).numpy()
        trained = example.input_ids[example.labels != IGNORE_INDEX]
        question = tokenizer.decode(example.input_ids[example.labels == IGNORE_INDEX][-200:])
        shown.append((image, f"... {question}\n=> {tokenizer.decode(trained)}"))
    return shown
