"""Rows measured -> what is printed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import table
from benchmarks.gpu.rows import ROWS

Figures = Mapping[str, Any]
HEADER = (
    "row",
    "what",
    "tokens/s",
    "of plain",
    "s/step",
    "MFU",
    "of matmul",
    "peak GiB",
    "data wait",
    "note",
)
SHOWN_PLACES = 6
MIN_OF_PLAIN = {
    "packed-zero3": 0.85,
    "packed-zero2": 0.95,
    "packed-zero1": 0.95,
    "packed-zero2-compiled": 0.95,
    "packed-zero1-compiled": 0.95,
}
SMALL_STEP_TOKENS, MAX_SMALL_STEP, MIN_OF_MATMUL = 8200, 5.0, 0.5
"""With LoRA: seconds that a step of two packs may take, and what a larger one must reach."""
MIN_MFU = {
    "plain": 0.35,
    "plain-fused": 0.35,
    "plain-norecompute": 0.40,
    "plain-fused-norecompute": 0.40,
}


def number(value: float | None, form: str) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def ratio_to_plain(name: str, measured: Mapping[str, Figures]) -> float | None:
    """Tokens per second over those of the plain row with the same batches and recomputation."""
    reference = measured.get(ROWS[name].reference, {}).get("tokens_per_second")
    own = measured[name].get("tokens_per_second")
    return own / reference if own and reference else None


def flops_per_second(figures: Figures, peak: float | None) -> float | None:
    """Model FLOP/s: measured, or what an MFU of the log says."""
    if "flops_per_second" in figures:
        return figures["flops_per_second"]
    return figures["mfu"] * peak if "mfu" in figures and peak else None


def complete(
    measured: Mapping[str, Figures], *, peak: float | None, matmul: float | None
) -> dict[str, dict[str, Any]]:
    """Every row with its ratio, MFU and share of what a matrix product reaches.

    The share is of what the device executes, recomputation included: how many times the model's
    own FLOPs that is, the plain row with the same batches says.

    Args:
        measured: by row.
        peak: dense bf16 FLOP/s of the card's data sheet.
        matmul: FLOP/s of a plain matrix product.
    """
    completed = {}
    for name, figures in measured.items():
        rate = flops_per_second(figures, peak)
        ratio = measured.get(ROWS[name].reference, figures).get("executed_ratio")
        completed[name] = {
            **figures,
            "of_plain": ratio_to_plain(name, measured),
            "mfu": figures.get("mfu", rate / peak if rate and peak else None),
            "of_matmul": rate * ratio / matmul if rate and ratio and matmul else None,
        }
    return completed


def show_table(rows: Mapping[str, Figures]) -> str:
    """The Markdown table."""
    lines = [
        [
            f"`{name}`",
            ROWS[name].summary,
            number(found.get("tokens_per_second"), ",.0f"),
            number(found.get("of_plain"), ".2f"),
            number(found.get("step_seconds"), ".3f"),
            number(found.get("mfu"), ".1%"),
            number(found.get("of_matmul"), ".1%"),
            number(found.get("peak_gib"), ".1f"),
            number(found.get("wait"), ".1%"),
            found.get("note") or "",
        ]
        for name, found in rows.items()
    ]
    return table(HEADER, lines)


def show_profiles(rows: Mapping[str, Figures]) -> str:
    """Milliseconds of one step by class of kernel, a column for each traced row."""
    traced = {name: found["profile"] for name, found in rows.items() if found.get("profile")}
    if not traced:
        return ""
    kinds: dict[str, float] = {}
    for profile in traced.values():
        for kind, seconds in profile["by_class"].items():
            kinds[kind] = max(kinds.get(kind, 0.0), seconds)
    ordered = sorted(kinds, key=lambda kind: -kinds[kind])
    lines = [
        [kind, *(_part(profile["by_class"].get(kind, 0.0), profile) for profile in traced.values())]
        for kind in ordered
    ]
    lines.append(
        ["no kernel runs", *(_part(profile["idle"], profile) for profile in traced.values())]
    )
    lines.append(["step, traced", *(f"{1e3 * p['step_seconds']:.1f} ms" for p in traced.values())])
    lines.append(["kernels", *(f"{p['num_kernels']:,}" for p in traced.values())])
    shown = table(["one step", *(f"`{name}`" for name in traced)], lines)
    return "\n\n".join([shown, *(_host_line(n, p["host"]) for n, p in traced.items())])


def _host_line(name: str, host: Mapping[str, Any]) -> str:
    """In whose Python the host was, and in which functions most."""
    packages, functions = (
        ", ".join(f"{what} {share:.0%}" for what, share in list(host[part].items())[:SHOWN_PLACES])
        for part in ("packages", "functions")
    )
    return f"host of `{name}`, {host['samples']} samples: {packages}\n  {functions}"


def _part(seconds: float, profile: Mapping[str, Any]) -> str:
    return f"{1e3 * seconds:.1f} ms ({seconds / profile['step_seconds']:.0%})"


def verdicts(rows: Mapping[str, Figures], *, lora: bool = False) -> list[tuple[str, bool]]:
    """The targets for rows that were measured, and whether they are reached."""
    if lora:
        return lora_verdicts(rows)
    checks: list[tuple[str, bool]] = []
    for name, least in MIN_OF_PLAIN.items():
        share = rows.get(name, {}).get("of_plain")
        if share is not None:
            checks.append((f"{name}: {share:.2f} of the plain loop (>= {least})", share >= least))
    for name, least in MIN_MFU.items():
        share = rows.get(name, {}).get("mfu")
        if share is not None:
            checks.append((f"{name}: MFU {share:.1%} (>= {least:.0%})", share >= least))
    return checks


def lora_verdicts(rows: Mapping[str, Figures]) -> list[tuple[str, bool]]:
    """Small steps must be short, large ones near what a matrix product reaches."""
    checks: list[tuple[str, bool]] = []
    for name, found in rows.items():
        seconds, speed = found.get("step_seconds"), found.get("tokens_per_second")
        if ROWS[name].is_plain or not seconds or not speed:
            continue
        tokens, share = seconds * speed, found.get("of_matmul")
        if tokens <= SMALL_STEP_TOKENS:
            text = f"{name}: {seconds:.1f} s for {tokens:,.0f} tokens (<= {MAX_SMALL_STEP:.0f} s)"
            checks.append((text, seconds <= MAX_SMALL_STEP))
        elif share is not None:
            text = f"{name}: {share:.2f} of a matrix product (>= {MIN_OF_MATMUL})"
            checks.append((text, share >= MIN_OF_MATMUL))
    return checks


def left_out(names: Sequence[str], budget: float) -> str:
    """What --budget cost."""
    return f"left out, the budget of {budget:.0f} s is spent: {', '.join(names)}"
