"""What to change about a planned run: where it does not fit, and where it could be faster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import torch

from internvl_chat.costs.measured import COMPILED, zero3_share
from internvl_chat.costs.memory import MemoryEstimate, estimate_memory
from internvl_chat.errors import ConfigError
from internvl_chat.train.batch_plan import BatchPlan
from internvl_chat.train.compilation import never_compiled
from internvl_chat.train.planned_run import PlannedRun, planned_anew
from internvl_chat.train.validation import four_bit_problems

MOST_GPUS: Final = 1024
_WORTH_PACKING: Final = 0.05
"""Share of padding from which packing is named."""
_WORTH_COMPILING: Final = 1.0
"""Hours of a run from which compiling blocks is named."""
_RANK: Final = 16


def advice(run: PlannedRun) -> list[str]:
    """Sentences, the least change first."""
    memory = run.memory
    return list(_faster(run)) if run.fits(memory) else list(_smaller(run))


# ---- it does not fit ----------------------------------------------------------------------------


def _smaller(run: PlannedRun) -> Iterator[str]:
    """What would make it fit, or smaller, each with the figure it gives."""
    for change, memory in _changes(run):
        if memory.total < run.memory.total:
            yield _told(run, change, memory)


_Change = tuple[str, MemoryEstimate]


def _changes(run: PlannedRun) -> Iterator[_Change]:
    if not run.setting.recompute:
        yield "--grad_checkpoint True", run.varied(recompute=True)
    yield from _fewer_samples(run)
    if run.order.mode == "packed":
        yield from _shorter_packs(run)
    yield from _higher_stages(run)
    yield from _more_gpus(run)
    yield from _adapters(run)
    yield from _offload(run)
    yield _smallest(run)


def _told(run: PlannedRun, change: str, memory: MemoryEstimate) -> str:
    verdict = "fits" if run.fits(memory) else "does not fit either"
    host = f", and {memory.cpu:.3g} GiB of the host's memory for each GPU" if memory.cpu else ""
    return f"{change}: {memory.total:.1f} GiB a GPU{host}, {verdict}"


def _fewer_samples(run: PlannedRun) -> Iterator[_Change]:
    """A smaller micro batch, with the same samples a step."""
    micro, share = run.batch.micro_batch_size, run.batch.accumulation_steps
    share *= micro
    sizes = [size for size in range(micro - 1, 0, -1) if share % size == 0]
    for size in sizes:
        memory = run.varied(batch=run.largest(size))
        if run.fits(memory) or size == sizes[-1]:
            change = (
                f"--per_device_train_batch_size {size} --gradient_accumulation_steps "
                f"{share // size} (recipes: PER_DEVICE_BATCH_SIZE={size}), which keeps "
                f"{run.batch.global_batch_size} a step"
            )
            yield change, memory
            return


def _shorter_packs(run: PlannedRun) -> Iterator[_Change]:
    limit, least = run.order.max_packed_tokens or 0, run.read.data.max_seq_length
    if limit <= least:
        return
    memory = run.varied(batch=run.largest(run.batch.micro_batch_size, pack=least))
    yield f"--max_packed_tokens {least}", memory


def _higher_stages(run: PlannedRun) -> Iterator[_Change]:
    """ZeRO stages above this one: the first that fits, else the last."""
    found: tuple[str, MemoryEstimate] | None = None
    for name in ("zero1", "zero2", "zero3"):
        other = run.under(name)
        is_other = run.setting.deepspeed is None or other.stage > run.stage
        if not is_other or run.read.model.load_in_4bit:
            continue
        found = name, other.memory
        if run.fits(found[1]):
            break
    if found:
        yield f"--deepspeed {found[0]}{_uncompiled(run, found[0])}", found[1]


def _uncompiled(run: PlannedRun, zero: str) -> str:
    """What a DeepSpeed file needs beside it: ZeRO-3 is refused where blocks are compiled."""
    compiled = run.read.values["torch_compile"] and zero.startswith("zero3")
    return " --torch_compile False" if compiled else ""


def _more_gpus(run: PlannedRun) -> Iterator[_Change]:
    """Twice as many GPUs, with the same samples on each, until it fits; under ZeRO-3 where less of
    ZeRO leaves each of them too much."""
    if run.read.model.load_in_4bit:
        return
    found = _enough_gpus(run) if run.stage else None
    if found:
        yield f"{found[0]} GPUs", found[1]
    elif run.stage < 3:
        found = _enough_gpus(run.under("zero3"))
        if found and found[0] > run.machine.num_gpus:
            words = f"{found[0]} GPUs and --deepspeed zero3{_uncompiled(run, 'zero3')}"
            yield words, found[1]


def _enough_gpus(run: PlannedRun) -> tuple[int, MemoryEstimate] | None:
    """So many times two as it takes, and what each then needs; None where none are enough."""
    micro, accumulation = run.batch.micro_batch_size, run.batch.accumulation_steps
    number, memory = run.machine.num_gpus, run.memory
    while not run.fits(memory) and number < MOST_GPUS:
        number *= 2
        batch = BatchPlan.from_accumulation(
            micro_batch_size=micro, world_size=number, accumulation_steps=accumulation
        )
        try:
            largest = run.largest_of(batch, run.order)
        except ConfigError:
            return None  # too few samples for so many
        memory = run.on_gpus(number, largest)
    return (number, memory) if run.fits(memory) else None


def _adapters(run: PlannedRun) -> Iterator[_Change]:
    """LoRA in place of whole weights, and the frozen ones in 4 bits where that is not enough."""
    if run.trained == "lora":
        yield from in_four_bits(run)
        return
    adapted = _with_lora(run)
    if adapted is None:
        return
    change = f"LoRA (--use_llm_lora {_RANK}, the rest frozen)"
    cut = adapted.under("zero3") if run.stage < 3 else adapted
    if not run.fits(adapted.memory) and run.fits(cut.memory):
        yield f"{change} and --deepspeed zero3{_uncompiled(run, 'zero3')}", cut.memory
        return
    yield change, adapted.memory
    yield from in_four_bits(adapted)


def in_four_bits(run: PlannedRun) -> Iterator[_Change]:
    """QLoRA where a run with an adapter does not fit, and its other arguments allow it.

    Args:
        run: with LoRA on the language model.
    """
    values, model = {**run.read.values, "deepspeed": None}, run.read.model
    if run.fits(run.memory) or model.load_in_4bit or values["torch_compile"]:
        return
    if any(four_bit_problems(replace(model, load_in_4bit=True), values)):
        return
    try:
        quantised = planned_anew(run.under(None), {"load_in_4bit": True})
    except ConfigError:
        return
    memory = quantised.memory
    if memory.total < run.memory.total:
        without = ", without --deepspeed" if run.read.values["deepspeed"] else ""
        saved = run.memory.total - memory.total
        yield f"QLoRA (--load_in_4bit True{without}), {saved:.1f} GiB less than LoRA", memory


def _with_lora(run: PlannedRun) -> PlannedRun | None:
    """The run with LoRA on the language model alone; None where its settings allow none."""
    if run.read.model.freeze_llm:
        return None
    changes = {
        "freeze_llm": True,
        "freeze_mlp": True,
        "freeze_backbone": True,
        "use_llm_lora": _RANK,
        "unfreeze_vit_layers": 0,
        "unfreeze_lm_head": False,
    }
    try:
        return planned_anew(run, changes)
    except ConfigError:
        return None


def _offload(run: PlannedRun) -> Iterator[_Change]:
    """ZeRO-2's if that fits, as it copies less; else ZeRO-3's, which leaves least."""
    if run.read.model.load_in_4bit:
        return
    first = 3 if run.stage == 3 else 2
    if run.offloads:
        first = run.stage + 1
    names = [f"zero{stage}_offload" for stage in range(first, 4)]
    found: list[_Change] = [
        (f"--deepspeed {name}{_uncompiled(run, name)} (slower)", run.under(name).memory)
        for name in names
    ]
    yield from next(([one] for one in found if run.fits(one[1])), found[-1:])


def _smallest(run: PlannedRun) -> _Change:
    """Recomputation, ZeRO-3, one sample at a time."""
    pack = run.read.data.max_seq_length if run.order.packed else None
    in_four_bits = run.read.model.load_in_4bit  # which ZeRO-3 does not cut up
    cut = run if run.stage == 3 or in_four_bits else run.under("zero3")
    setting = replace(cut.setting, recompute=True, batch=run.largest(1, pack=pack))
    one = "one sample at a time" if pack is None else f"one pack of {pack} tokens at a time"
    words = ["recomputation", one]
    if not in_four_bits:
        words += [flag] if (flag := _uncompiled(run, "zero3").strip()) else []
        words = [", ".join(words), "ZeRO-3"]
    return f"{' and '.join(words)} together", estimate_memory(run.model, setting)


# ---- it fits ------------------------------------------------------------------------------------


def _faster(run: PlannedRun) -> Iterator[str]:
    """What would be faster and fits, too."""
    yield from _without_recomputation(run)
    yield from _lower_stages(run)
    yield from _packing(run)
    yield from _compiled(run)


def _compiled(run: PlannedRun) -> Iterator[str]:
    """Only of runs that are long enough for it, and where it would not be refused."""
    time, setting = run.time(), run.setting
    is_refused = any(never_compiled(stage=run.stage, in_four_bits=run.read.model.load_in_4bit))
    refused = is_refused or setting.compute_dtype == torch.float32
    refused = refused or (run.order.packed and _goes_by_segments(run))
    if time is None or time.low < _WORTH_COMPILING or refused or run.read.values["torch_compile"]:
        return
    yield f"--torch_compile True was measured at {COMPILED}"


def _goes_by_segments(run: PlannedRun) -> bool:
    """Whether packed rows would, with which no block is compiled: the kernels that take them in one
    call want half precision and an Ampere GPU or newer, which is one that has bf16."""
    peaks = run.machine.peaks
    is_older = peaks is not None and "bf16" not in peaks.teraflops
    is_fp32 = run.setting.compute_dtype == torch.float32
    return is_older or is_fp32 or run.read.model.attn_implementation == "sdpa"


def _packing(run: PlannedRun) -> Iterator[str]:
    padding, data = run.epoch.imbalance.padding, run.read.data
    if run.order.packed or run.data.is_stated or padding < _WORTH_PACKING:
        return
    if run.read.values["torch_compile"] and _goes_by_segments(run):
        return
    limit = max(data.max_packed_tokens, data.max_seq_length)  # a long sample must fit a pack
    order = replace(run.order, mode="packed", max_packed_tokens=limit)
    for size in dict.fromkeys((run.batch.micro_batch_size, 1)):
        batch = replace(run.batch, micro_batch_size=size)
        try:
            memory = run.varied(batch=run.largest_of(batch, order))
        except ConfigError:
            return  # too few packs
        if run.fits(memory):
            words = ["--use_packed_ds True"]
            if limit > data.max_packed_tokens:
                words.append(f"--max_packed_tokens {limit}")
            if size < run.batch.micro_batch_size:
                words.append(f"--per_device_train_batch_size {size}")
            yield (
                f"{' '.join(words)} fits, too ({memory.total:.1f} GiB): {padding:.0%} of the "
                "positions that are computed now are padding"
            )
            return


def _without_recomputation(run: PlannedRun) -> Iterator[str]:
    if not run.setting.recompute:
        return
    memory = run.varied(recompute=False)
    if run.fits(memory):
        saved = 1 - _executed(run, recompute=False) / _executed(run, recompute=True)
        yield (
            f"--grad_checkpoint False fits, too ({memory.total:.1f} GiB): {saved:.0%} less "
            "arithmetic"
        )


def _executed(run: PlannedRun, *, recompute: bool) -> float:
    work, epoch = run.flops.work(recompute), run.epoch
    return work.per_token * epoch.tokens + work.per_pair * epoch.pairs + work.per_tile * epoch.tiles


def _lower_stages(run: PlannedRun) -> Iterator[str]:
    """The lowest ZeRO stage that fits: less is gathered and waited for, and nothing copied. None at
    all in place of ZeRO-3 for an adapter, whose optimizer is small: so it was measured."""
    offloads = run.offloads
    last = run.stage if offloads else run.stage - 1
    for stage in range(0 if run.stage == 3 and run.trained == "lora" else 1, last + 1):
        memory = run.under(f"zero{stage}" if stage else None).memory
        if run.fits(memory):
            whats = ["nothing is copied to the host's memory"] if offloads else []
            if run.stage == 3 and stage < 3:
                whats.append("weights are not gathered")
            elif not offloads:
                whats.append("gradients meet once a step")
            share = zero3_share(run.trained) if run.stage == 3 and not offloads else None
            much = f", ZeRO-3 was measured at {share}" if share else ""
            change = f"--deepspeed zero{stage}" if stage else "without --deepspeed it"
            yield (f"{change} fits, too ({memory.total:.1f} GiB): {', '.join(whats)}{much}")
            return
