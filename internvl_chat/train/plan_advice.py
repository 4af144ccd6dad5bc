"""What to change about a planned run: where it does not fit, and where it could be faster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from internvl_chat.costs.measured import zero3_share
from internvl_chat.costs.memory import MemoryEstimate, estimate_memory
from internvl_chat.errors import ConfigError
from internvl_chat.train.planned_run import PlannedRun, planned_anew

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_GPUS: Final = 1024
_WORTH_PACKING: Final = 0.05
"""Share of padding from which packing is named."""
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
    yield from _lora(run)
    yield from _offload(run)
    yield "recomputation, one sample at a time and ZeRO-3 together", _smallest(run)


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
        yield f"--deepspeed {found[0]}", found[1]


def _more_gpus(run: PlannedRun) -> Iterator[_Change]:
    """Twice as many GPUs, until it fits; nothing where that changes nothing."""
    if run.stage == 0:
        return
    number, memory = run.machine.num_gpus, run.memory
    while not run.fits(memory) and number < MOST_GPUS:
        number *= 2
        memory = run.varied(world_size=number)
    if run.fits(memory):
        yield f"{number} GPUs", memory


def _lora(run: PlannedRun) -> Iterator[_Change]:
    if run.trained == "lora" or run.read.model.freeze_llm:
        return
    changes = {
        "freeze_llm": True,
        "freeze_mlp": True,
        "freeze_backbone": True,
        "use_llm_lora": _RANK,
        "unfreeze_vit_layers": 0,
        "unfreeze_lm_head": False,
    }
    try:
        memory = planned_anew(run, changes).memory
    except ConfigError:
        return  # its settings allow no adapter
    yield f"LoRA (--use_llm_lora {_RANK}, the rest frozen)", memory


def _offload(run: PlannedRun) -> Iterator[_Change]:
    name = "zero3_offload" if run.stage == 3 else "zero2_offload"
    if run.read.model.load_in_4bit or _offloads(run.setting.deepspeed):
        return
    yield f"--deepspeed {name} (slower)", run.under(name).memory


def _offloads(config: Mapping[str, Any] | None) -> bool:
    zero = (config or {}).get("zero_optimization") or {}
    return (zero.get("offload_optimizer") or {}).get("device", "none") not in ("none", None)


def _smallest(run: PlannedRun) -> MemoryEstimate:
    """Recomputation, ZeRO-3, one sample at a time."""
    pack = run.read.data.max_seq_length if run.order.mode == "packed" else None
    cut = run if run.stage == 3 else run.under("zero3")
    setting = replace(cut.setting, recompute=True, batch=run.largest(1, pack=pack))
    return estimate_memory(run.model, setting)


# ---- it fits ------------------------------------------------------------------------------------


def _faster(run: PlannedRun) -> Iterator[str]:
    """What would be faster and fits, too."""
    yield from _without_recomputation(run)
    yield from _lower_stages(run)
    is_padded = not run.data.is_stated and run.epoch.imbalance.padding >= _WORTH_PACKING
    if run.order.mode != "packed" and is_padded:
        yield (
            f"--use_packed_ds True: {run.epoch.imbalance.padding:.0%} of the positions that are "
            "computed now are padding"
        )


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
    """The lowest ZeRO stage that fits: less is gathered and waited for."""
    if run.stage < 2:
        return
    names: Sequence[str] = ("zero1", "zero2")[: run.stage - 1]
    for name in names:
        memory = run.under(name).memory
        if run.fits(memory):
            what = "weights are not gathered" if run.stage == 3 else "gradients meet once a step"
            share = zero3_share(run.trained) if run.stage == 3 else None
            much = f", ZeRO-3 was measured at {share} of its speed" if share else ""
            yield f"--deepspeed {name} fits, too ({memory.total:.1f} GiB): {what}{much}"
            return
