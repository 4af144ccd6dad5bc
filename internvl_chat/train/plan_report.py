"""A planned run as people and programs read it."""

from __future__ import annotations

import textwrap
from typing import Any, Final

from internvl_chat.costs.holdings import parameter_sizes
from internvl_chat.costs.memory import CONTEXT_GIB, GIB
from internvl_chat.train.plan_advice import advice
from internvl_chat.train.planned_run import PlannedRun
from internvl_chat.train.zero_choice import MARGIN

WIDTH: Final = 80
_COLUMN: Final = 16
_PARTS: Final = {
    "weights": "{weights}",
    "gradients": "of what trains",
    "optimizer": "its state, and fp32 masters",
    "activations": "{activations}",
    "logits": "the vocabulary loss, chunk by chunk",
    "buffers": "buckets, gathered weights, the optimizer's step",
}


def as_json(run: PlannedRun) -> dict[str, Any]:
    """For programs; hours are null where the GPU's peak is not known."""
    memory, time, disk = run.memory, run.time(), run.disk()
    sizes = parameter_sizes(run.model)
    parts = {name: round(value, 3) for name, value in memory.parts().items()}
    return {
        "parameters": sum(size.numel for size in sizes),
        "trainable": sum(size.numel for size in sizes if size.is_trained),
        "memory_gib": {**parts, "total": round(memory.total, 3)},
        "fits": run.fits(memory),
        "steps": run.steps,
        "tokens": round(run.epoch.tokens * run.epochs),
        "hours": None if time is None else _rounded(time.hours),
        "disk_gib": round(disk.total / GIB, 3),
        "advice": advice(run),
        "hours_range": None if time is None else [_rounded(time.low), _rounded(time.high)],
        "hours_basis": None if time is None else time.basis,
        "usable_gib": round(run.room.usable_gib, 3),
        "host_gib": round(memory.cpu, 3),
        "gpu": run.machine.gpu,
        "gpu_memory_gib": round(run.machine.memory_gib, 3),
        "num_gpus": run.machine.num_gpus,
        "zero_stage": run.stage,
        "global_batch_size": run.batch.global_batch_size,
        "worst_micro_batch": {
            "rows": run.setting.batch.rows,
            "row_tokens": run.setting.batch.row_tokens,
            "tiles": run.setting.batch.num_tiles,
        },
        "padding_share": round(run.epoch.imbalance.padding, 4),
        "vit_imbalance": round(run.epoch.imbalance.vision, 4),
        "llm_imbalance": round(run.epoch.imbalance.text, 4),
        "model_flops": run.model_flops(),
        "notes": list(run.notes),
    }


def _rounded(number: float) -> float:
    """To four digits, however small it is."""
    return float(f"{number:.4g}")


def as_text(run: PlannedRun) -> str:
    """For a terminal of 80 columns."""
    lines = [*_model(run), *_memory(run), *_time(run), *_disk(run), *_advice(run), *_notes(run)]
    return "\n".join(lines)


def _row(name: str, text: str) -> list[str]:
    wrapped = textwrap.wrap(text, WIDTH - _COLUMN, break_on_hyphens=False) or [""]
    return [f"{name:<{_COLUMN}}{wrapped[0]}", *(" " * _COLUMN + line for line in wrapped[1:])]


def _model(run: PlannedRun) -> list[str]:
    sizes = parameter_sizes(run.model)
    total = sum(size.numel for size in sizes)
    trained = sum(size.numel for size in sizes if size.is_trained)
    return [
        *_row("parameters", f"{_count(total)}, of which {_count(trained)} train"),
        *_row("GPUs", f"{run.machine.num_gpus} x {run.machine.gpu}, {_sharding(run)}"),
        *_row("batch", str(run.batch)),
        "",
    ]


def _sharding(run: PlannedRun) -> str:
    if run.setting.deepspeed is None:
        return "each with the whole model (no DeepSpeed)"
    return f"ZeRO-{run.stage}"


def _memory(run: PlannedRun) -> list[str]:
    memory, batch = run.memory, run.setting.batch
    again = "blocks are computed again in backward" if run.setting.recompute else "all are kept"
    words = {
        "weights": "this GPU's share" if run.stage == 3 else "all of them",
        "activations": again,
    }
    lines = [f"{'a GPU needs':<{_COLUMN}}{'GiB':>8}"]
    for name, value in memory.parts().items():
        lines.append(f"  {name:<{_COLUMN - 2}}{value:8.2f}  {_PARTS[name].format(**words)}")
    verdict = "fits" if run.fits(memory) else "DOES NOT FIT"
    room = f"{verdict}: there are {run.room.usable_gib:.1f}"
    lines.append(f"  {'total':<{_COLUMN - 2}}{memory.total:8.2f}  {room}")
    spare = f"({run.room.memory_gib:.1f} less {MARGIN:.0%} and {CONTEXT_GIB:g} of CUDA's own)"
    lines.append(f"{'':<{_COLUMN + 10}}{spare}")
    if memory.cpu:
        lines += _row(
            "host", f"{memory.cpu:.1f} GiB of its memory for each GPU (offloaded or paged)"
        )
    shape = f"{batch.rows} x {batch.row_tokens} tokens, {batch.num_tiles} tiles"
    return [*lines, *_row("at most", f"{shape} in a micro batch"), ""]


def _time(run: PlannedRun) -> list[str]:
    tokens, even = _count(round(run.epoch.tokens * run.epochs)), run.epoch.imbalance
    epochs = "1 epoch" if run.epochs == 1 else f"{run.epochs:.3g} epochs"
    lines = _row("steps", f"{run.steps:,}, {tokens} tokens in {epochs}")
    if not run.data.is_stated:
        lines += _row(
            "balance",
            f"padding {even.padding:.1%}, slowest rank over mean {even.vision:.2f} in the vision "
            f"tower and {even.text:.2f} in the language model",
        )
    time = run.time()
    if time is None:
        return [*lines, *_row("hours", "not known: --gpu NAME tells the GPU's speed"), ""]
    span = _hours(time.low)
    if _hours(time.high) != span:
        low, high = span.split(), _hours(time.high).split()
        first = low[0] if low[1:] == high[1:] else span
        span = f"{first} to {' '.join(high)}"
    least, most = (run.mfu, run.mfu) if run.mfu else _shares(run)
    share = f"{least:.0%}" if least == most else f"{least:.0%} to {most:.0%}"
    return [*lines, *_row("time", f"{span} at an MFU of {share}"), *_row("", f"({time.basis})"), ""]


def _shares(run: PlannedRun) -> tuple[float, float]:
    row = run.measurement()
    return row.low, row.high


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return "under a minute"
    if hours < 1.5:
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:.1f} days"


def _disk(run: PlannedRun) -> list[str]:
    disk = run.disk()
    many = "checkpoints" if disk.num_at_once > 1 else "checkpoint"
    text = (
        f"{_size(disk.total)}: at most {disk.num_at_once} {many} of {_size(disk.checkpoint)} at "
        f"once, of which {disk.num_kept} stay; at the end the result of {_size(disk.final)}"
    )
    return [*_row("disk", text), ""]


def _size(count: float) -> str:
    gib = count / GIB
    return f"{gib:,.0f} GiB" if gib >= 10 else f"{gib:.1f} GiB" if gib >= 0.1 else f"{gib:.2f} GiB"


def _advice(run: PlannedRun) -> list[str]:
    told = advice(run)
    if not told:
        return []
    title = "would be faster" if run.fits(run.memory) else "would help"
    return [title, *(line for text in told for line in _item(text)), ""]


def _notes(run: PlannedRun) -> list[str]:
    if not run.notes:
        return []
    return ["taken for granted", *(line for text in run.notes for line in _item(text))]


def _item(text: str) -> list[str]:
    wrapped = textwrap.wrap(text, WIDTH - 4, break_on_hyphens=False, break_long_words=False)
    return [f"  - {wrapped[0]}", *(f"    {line}" for line in wrapped[1:])]


def _count(number: float) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if number >= limit:
            return f"{number / (1e3 if unit == 'k' else limit):.4g} {unit}"
    return f"{number:,.0f}"
