"""The ceiling: the same model on the same batches in a plain PyTorch loop.

bf16 weights (fp32 on a CPU), gradients clipped, torch's fused AdamW on the weights as they are;
packed rows through torch's ``varlen_attn``, the vision tower through SDPA's flash kernel. Batches
are collated before the clock starts; nothing is logged or sharded.

    python -m benchmarks.gpu.plain_loop SPEC.json

is started by ``gpu_train.py``, which wrote the file; a line of JSON comes back for each row.
"""

from __future__ import annotations

import inspect
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface

from benchmarks.common import report
from benchmarks.gpu.batches import (
    Batch,
    Step,
    collate_steps,
    num_tiles,
    segment_lengths,
    supervised,
)
from benchmarks.gpu.card import measure_card
from benchmarks.gpu.rows import ROWS, Row
from benchmarks.gpu.tracing import StepTrace
from internvl_chat.checkpoint.construction import build_in_one_dtype
from internvl_chat.checkpoint.lora import apply_freezing_and_lora
from internvl_chat.costs.flops import ModelFlops
from internvl_chat.data.pixels import normalize_pixels
from internvl_chat.model.constants import IMG_CONTEXT_TOKEN
from internvl_chat.train.attention import register_attention
from internvl_chat.train.distributed import init_distributed
from internvl_chat.train.fused_norms import fuse_norms
from internvl_chat.train.parsing import parse
from internvl_chat.train.preparation import PreparedRun, prepare_run

KERNEL = "plain_packed"
LEARNING_RATE, MAX_GRAD_NORM = 1e-5, 1.0


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """A packed row through torch's flash kernels: (1, H, T, E), (1, G, T, E) -> (1, T, H, E)."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"scale": scaling}
    options |= {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    repeats = query.shape[1] // key.shape[1]
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    if repeats > 1 and "enable_gqa" in known:
        options["enable_gqa"] = True
    elif repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    ends, longest = cu_seq_lens_q, max_length_q
    attended: Any = varlen_attn(q, k, v, ends, ends, longest, longest, **options)  # type: ignore[arg-type]
    return attended[None], None


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    lengths: Sequence[int] = (),
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The same with a call of SDPA for each segment."""
    parts = zip(
        *(states.split(list(lengths), dim=2) for states in (query, key, value)), strict=True
    )
    attended = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        for q, k, v in parts
    ]
    return torch.cat(attended, dim=2).transpose(1, 2), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Segments are told by their ends."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A model on a device and how long it is measured."""

    model: Any
    device: torch.device
    dtype: torch.dtype
    num_steps: int
    skip: int
    profile: bool

    def sync(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Update:
    """Clipping and AdamW on the trained weights; with ``fp32_master`` on fp32 copies of them."""

    def __init__(self, weights: Iterable[nn.Parameter], *, fp32_master: bool) -> None:
        self.weights = [weight for weight in weights if weight.requires_grad]
        self.masters = [weight.detach().float() for weight in self.weights] if fp32_master else []
        trained: list[Tensor] = self.masters or list(self.weights)
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def step(self) -> None:
        """One update; gradients are gone afterwards."""
        torch.nn.utils.clip_grad_norm_(self.weights, MAX_GRAD_NORM)
        for master, weight in zip(self.masters, self.weights, strict=False):
            master.grad = None if weight.grad is None else weight.grad.float()
        self.optimizer.step()
        for master, weight in zip(self.masters, self.weights, strict=False):
            weight.data.copy_(master)
        self.optimizer.zero_grad(set_to_none=True)
        for weight in self.weights:
            weight.grad = None


def model_inputs(batch: Batch, row: Row, device: torch.device, dtype: torch.dtype) -> Batch:
    """Arguments of the forward pass; pixels are normalised on the device."""
    kept = ("input_ids", "labels", "image_flags")
    taken: Batch = {name: batch[name] for name in kept if name in batch}
    if num_tiles(batch):
        taken["pixel_values"] = normalize_pixels(batch["pixel_values"], dtype=dtype)
    if not row.packed:
        return taken  # padding stands at the right, where causal attention never looks
    taken["position_ids"] = batch["position_ids"]
    if row.attention == "segments" or device.type == "cpu":
        return {**taken, "lengths": batch["lengths"]}
    ends = batch["cu_seq_lens_q"]
    return {**taken, "cu_seq_lens_q": ends, "max_length_q": max(batch["lengths"])}


@contextmanager
def flash_kernels(device: torch.device) -> Iterator[None]:
    """Without SDPA back ends that build a plan for every new shape."""
    if device.type != "cuda":
        yield
        return
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(kernels):
        yield


def one_step(bench: Bench, row: Row, step: Step, update: Update) -> float:
    """Forward, backward and update; returns the loss on this rank."""
    denominator, loss = step.supervised, torch.zeros((), device=bench.device)
    for batch in step.batches:
        inputs = model_inputs(batch, row, bench.device, bench.dtype)
        part = bench.model(**inputs, loss_denominator=denominator, return_logits=False).loss
        part.backward()
        loss += part.detach()
    update.step()
    return float(loss)


def run_row(bench: Bench, row: Row, steps: Sequence[Step]) -> dict[str, Any]:
    """Time the steps of a row, the first ones left out."""
    model, on_gpu = bench.model, bench.device.type == "cuda"
    implementation = "sdpa" if not row.packed else f"{KERNEL}_{_attention(row, bench.device)}"
    model.language_model.set_attn_implementation(implementation)
    if row.fused:
        fuse_norms(model)  # for good: such rows are the last
    if row.recompute:
        model.gradient_checkpointing_enable()
    else:
        model.gradient_checkpointing_disable()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    update = Update(model.parameters(), fp32_master=row.fp32_master)
    seconds, losses = [], []
    trace = StepTrace(on_gpu=on_gpu)
    with flash_kernels(bench.device):
        for step in steps[: bench.num_steps]:
            bench.sync()
            start = time.perf_counter()
            losses.append(one_step(bench, row, step, update))
            bench.sync()
            seconds.append(time.perf_counter() - start)
        if bench.profile:
            trace.start()
            one_step(bench, row, steps[bench.skip], update)
            trace.stop()
    counted, times = steps[bench.skip : bench.num_steps], seconds[bench.skip :]
    flops, executed = step_flops(ModelFlops.of_model(model), counted, row.recompute)
    return {
        "row": row.name,
        "tokens_per_second": sum(step.tokens for step in counted) / sum(times),
        "step_seconds": statistics.median(times),
        "all_step_seconds": [round(second, 4) for second in seconds],
        "step_tokens": [step.tokens for step in steps],
        "flops_per_second": flops / sum(times),
        "executed_ratio": executed / flops,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "losses": losses,
        "profile": trace.summary() if bench.profile else None,
    }


def step_flops(count: ModelFlops, steps: Sequence[Step], recompute: bool) -> tuple[float, float]:
    """Model FLOPs of the steps, and those that the device executes for them."""
    model = executed = 0.0
    for batch in (batch for step in steps for batch in step.batches):
        lengths, labelled = segment_lengths(batch), supervised(batch)
        model += count.of_batch(lengths, num_tiles(batch), labelled)
        parts = (
            (count.per_token, sum(lengths)),
            (count.per_pair, sum(length * (length + 1) / 2 for length in lengths)),
            (count.per_target, labelled),
            (count.per_tile, num_tiles(batch)),
        )
        executed += sum(part.executed(recompute=recompute) * number for part, number in parts)
    return model, executed


def _attention(row: Row, device: torch.device) -> str:
    return "segments" if device.type == "cpu" else row.attention


def on_device(steps: Sequence[Step], device: torch.device) -> list[Step]:
    """Every tensor moved; lengths of segments kept as numbers."""

    def moved(batch: Batch) -> Batch:
        tensors = {
            name: value.to(device) for name, value in batch.items() if torch.is_tensor(value)
        }
        return {**batch, **tensors, "lengths": segment_lengths(batch)}

    return [Step([moved(batch) for batch in step.batches]) for step in steps]


def load(prepared: PreparedRun, device: torch.device, dtype: torch.dtype) -> Any:
    """The model in its final shape, made where it computes, with what trains decided."""
    config: Any = prepared.plan.config
    for part in (config, config.vision_config, config.llm_config):
        part.dtype = dtype
    model: Any = build_in_one_dtype(config, prepared.plan.tensors, dtype, device)
    model.img_context_token_id = prepared.tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
    apply_freezing_and_lora(model, prepared.build.trainable)
    model.vision_model.set_attn_implementation("sdpa")
    return model.train()


def main(spec_path: str) -> None:
    """Measure the card, then each row of the file."""
    spec = json.loads(Path(spec_path).read_text("utf-8"))
    on_gpu = spec["on_gpu"]
    device = torch.device("cuda" if on_gpu else "cpu")
    if spec["card"]:
        report({"card": measure_card(device)})
    for attention, function in (("varlen", varlen_attention), ("segments", segment_attention)):
        AttentionInterface.register(f"{KERNEL}_{attention}", function)
        AttentionMaskInterface.register(f"{KERNEL}_{attention}", _no_mask)
    register_attention()  # prepare_run looks at the model with the trainer's kernels
    state = init_distributed(use_cpu=not on_gpu)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    model: Any = None
    collated: dict[tuple[bool, bool], list[Step]] = {}
    for name, words in sorted(spec["rows"].items(), key=lambda item: ROWS[item[0]].fused):
        row = ROWS[name]
        kind = row.packed, row.recompute
        if kind not in collated:
            args = parse(words, device=device)
            prepared = prepare_run(args, state)
            model = model or load(prepared, device, dtype)
            rates = ModelFlops.of_model(model).work(row.recompute)
            steps = collate_steps(args, prepared, state, rates, spec["steps"])
            collated[kind] = on_device(steps, device)
        bench = Bench(
            model=model,
            device=device,
            dtype=dtype,
            num_steps=spec["steps"],
            skip=spec["skip"],
            profile=spec["profile"],
        )
        report(run_row(bench, row, collated[kind]))


if __name__ == "__main__":
    main(sys.argv[1])
