"""The rows of the table: what is run, and what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .sizes import ModelSize

PlainAttention = Literal["varlen", "segments"]
MANY_STEPS = 1_000
"""Of a trainer that is stopped when enough steps were timed: its end saves, which is no step. Not
more: packed epochs differ in their steps, and are planned up to the last before the first."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to run the training step."""

    name: str
    summary: str
    packed: bool = True
    recompute: bool = True
    zero: int | None = None
    """ZeRO stage of our trainer; 0 is without DeepSpeed; None is the plain loop."""
    attention: PlainAttention = "varlen"
    deterministic: bool = False
    """Whether our trainer runs with ``--full_determinism``."""
    fp32_master: bool = False
    """Whether the plain loop keeps fp32 weights and moments, as mixed precision under ZeRO."""
    fused: bool = False
    """Whether the plain loop's norms are fused, as our trainer's are."""
    compiled: bool = False
    """Whether our trainer compiles the blocks."""

    @property
    def is_plain(self) -> bool:
        """Whether it runs without our trainer."""
        return self.zero is None

    @property
    def reference(self) -> str:
        """Name of the plain row that has the same batches and the same recomputation."""
        kind = "plain" if self.packed else "plain-grouped"
        return kind + ("" if self.recompute else "-norecompute")


def _rows() -> list[Row]:
    plain = "plain loop, "
    rows = [
        Row(name="plain-segments", summary=plain + "an SDPA call a segment", attention="segments"),
        Row(name="plain-master", summary=plain + "fp32 masters and moments", fp32_master=True),
    ]
    rows += [
        Row(
            name="packed-zero3-deterministic",
            summary="our trainer, packed, ZeRO-3, deterministic kernels",
            zero=3,
            deterministic=True,
        )
    ]
    rows += [
        Row(
            name=f"packed-{f'zero{stage}' if stage else 'none'}-compiled",
            summary="our trainer, packed, "
            + (f"ZeRO-{stage}" if stage else "no DeepSpeed")
            + ", blocks compiled",
            zero=stage,
            compiled=True,
        )
        for stage in range(3)
    ]
    for recompute in (True, False):
        end, without = ("", "") if recompute else ("-norecompute", ", no recomputation")
        rows += [
            Row(name=f"plain{end}", summary=f"{plain}varlen_attn{without}", recompute=recompute),
            Row(
                name=f"plain-fused{end}",
                summary=f"{plain}fused norms{without}",
                recompute=recompute,
                fused=True,
            ),
            Row(
                name=f"plain-grouped{end}",
                summary=f"{plain}padded{without}",
                packed=False,
                recompute=recompute,
            ),
        ]
        for kind in ("packed", "grouped"):
            rows += [
                Row(
                    name=f"{kind}-{f'zero{stage}' if stage else 'none'}{end}",
                    summary=f"our trainer, {kind}, "
                    + (f"ZeRO-{stage}" if stage else "no DeepSpeed")
                    + without,
                    packed=kind == "packed",
                    recompute=recompute,
                    zero=stage,
                )
                for stage in range(4)
            ]
    return rows


ROWS: dict[str, Row] = {row.name: row for row in _rows()}
DEFAULT_ROWS = (
    "plain",
    "plain-norecompute",
    "plain-fused",
    "plain-fused-norecompute",
    "packed-zero3",
    "packed-zero2",
    "packed-zero1",
    "packed-none",
    "packed-zero1-compiled",
    "packed-zero2-compiled",
    "packed-zero2-norecompute",
    "plain-grouped",
    "grouped-zero3",
)
"""Most telling first: ``--budget`` leaves out from the end."""


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where a size's files lie, and what all rows share."""

    size: ModelSize
    model_dir: Path
    meta_path: Path
    on_gpu: bool
    num_gpus: int = 1
    pack_tokens: int
    packs_per_step: int
    packs_together: int = 1
    """Packs of a forward pass."""
    grouped_per_step: int
    grouped_micro_batch: int
    num_workers: int = 4

    def accumulation(self, row: Row) -> int:
        """Micro batches of a step."""
        if row.packed:
            return self.packs_per_step // self.packs_together
        return self.grouped_per_step // self.grouped_micro_batch

    def arguments(self, row: Row, output_dir: Path, extra: Sequence[str] = ()) -> list[str]:
        """Command line of the trainer; the plain loop takes its batches and freezing from it."""
        values: dict[str, object] = {
            "model_name_or_path": self.model_dir,
            "meta_path": self.meta_path,
            "output_dir": output_dir,
            "max_seq_length": self.size.max_seq_length,
            "use_packed_ds": row.packed,
            "per_device_train_batch_size": (
                self.packs_together if row.packed else self.grouped_micro_batch
            ),
            "gradient_accumulation_steps": self.accumulation(row),
            "grad_checkpoint": row.recompute,
            "bf16": self.on_gpu,
            "use_cpu": not self.on_gpu,
            "max_steps": MANY_STEPS,
            "learning_rate": 1e-5,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "seed": 0,
            "dataloader_num_workers": self.num_workers,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
        }
        if row.packed:
            values["max_packed_tokens"] = self.pack_tokens
        else:
            values["train_sampling_strategy"] = "group_by_length"
        if row.zero:
            values["deepspeed"] = f"zero{row.zero}"
        if row.compiled:
            values["torch_compile"] = True
        if row.deterministic:
            values["full_determinism"] = True
        if self.size.lora_rank:
            values |= dict.fromkeys(("freeze_llm", "freeze_mlp", "freeze_backbone"), True)
            values["use_llm_lora"] = self.size.lora_rank
        words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        return [*words, *extra]
