"""LoRA weights merged into the layers under them, one weight at a time, when it is read."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.tensor_files import TensorSource, listed, numel
from internvl_chat.errors import CheckpointError

if TYPE_CHECKING:
    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig

_CHUNK_ELEMENTS = 1 << 20
_ADAPTER_WEIGHT = re.compile(r"^(.+)\.lora_([AB])\.([^.]+)\.weight$")
_UNSUPPORTED = {
    "fan_in_fan_out": "its layers are stored transposed",
    "lora_bias": "it adds a bias that the layer does not have",
}


@dataclass
class MergedLoraWeight:
    """``base + scale * up @ down``, read in fp32, so that whoever writes it rounds once.

    LoRA: https://arxiv.org/abs/2106.09685, equation 3; ``scale`` is ``alpha / r``.
    """

    base: TensorSource
    """(out, in)."""
    down: TensorSource
    """``lora_A``: (r, in)."""
    up: TensorSource
    """``lora_B``: (out, r)."""
    scale: float
    magnitude: TensorSource | None = None
    """Of DoRA, (out,): the length that each row of the sum gets
    (https://arxiv.org/abs/2402.09353, equation 5)."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the layer, not of the values read."""
        return self.base.dtype

    @property
    def where(self) -> str:
        return f"{self.base.where} with {self.down.where}"

    @property
    def rows_per_chunk(self) -> int:
        """Rows whose values take some megabytes."""
        return max(1, _CHUNK_ELEMENTS // self.shape[1])

    def read(self, start: int, stop: int) -> Tensor:
        width = self.shape[1]
        values = torch.empty(stop - start, dtype=torch.float32)
        first, last = start // width, math.ceil(stop / width)
        for row in range(first, last, self.rows_per_chunk):
            end = min(row + self.rows_per_chunk, last)
            begin, finish = max(start, row * width), min(stop, end * width)
            exact = self.exact(row, end).view(-1)[begin - row * width : finish - row * width]
            values[begin - start : finish - start] = exact
        return values

    def exact(self, row: int, end: int) -> Tensor:
        """Rows ``row:end`` before rounding: (end - row, in) float32."""
        width, rank = self.shape[1], self.down.shape[0]
        base = self.base.read(row * width, end * width).float().view(-1, width)
        down = self.down.read(0, rank * width).float().view(rank, width)
        up = self.up.read(row * rank, end * rank).float().view(-1, rank)
        # Not in place: what a PyTorch file's tensor reads is the tensor itself.
        merged = base.addmm(up, down, alpha=self.scale)
        return merged if self.magnitude is None else merged * self.factors(row, merged)

    def factors(self, row: int, merged: Tensor) -> Tensor:
        """What DoRA multiplies rows from ``row`` on by, given them without it: (rows, 1)."""
        assert self.magnitude is not None
        wanted = self.magnitude.read(row, row + len(merged)).to(merged.dtype)
        return (wanted / merged.norm(dim=1)).unsqueeze(1)


def merge_adapters(
    tensors: Mapping[str, TensorSource], scales: AdapterScales, *, where: str
) -> tuple[dict[str, TensorSource], dict[str, MergedLoraWeight]]:
    """Take the wrapping off a model and merge its LoRA weights; nothing is read yet.

    Args:
        tensors: by name, wrapped by PEFT or not, ``lora_A`` and ``lora_B`` among them.
        scales: of the adapters.
        where: the checkpoint, for messages.

    Returns:
        All tensors by plain name, and those of them that a LoRA goes into.

    Raises:
        CheckpointError: the model was wrapped twice, half of a pair is missing, or ranks and
            shapes do not fit.
    """
    plain: dict[str, TensorSource] = {}
    halves: dict[str, dict[str, TensorSource]] = {}
    magnitudes: dict[str, TensorSource] = {}
    for wrapped, source in tensors.items():
        name = names.unwrapped_name(wrapped)
        _refuse_second_wrap(name, wrapped, where)
        match = _ADAPTER_WEIGHT.match(name)
        layer, is_magnitude, _ = name.partition(f"{names.MAGNITUDE}.")
        if names.is_unmerged(name):
            raise CheckpointError(
                f"{name} belongs to an adapter on an embedding, which is not merged here",
                where=where,
                fix="Merge it with PEFT's merge_and_unload.",
            )
        if is_magnitude:
            magnitudes[layer] = source
        elif match is not None:
            halves.setdefault(match[1], {})[match[2]] = source
        elif name in plain:
            raise CheckpointError(
                f"holds {name} twice, under two names: {wrapped} is one",
                where=where,
                fix="Take one of them out: programs disagree on which to read.",
            )
        else:
            plain[name] = source
    merged_weights = {
        f"{module}.weight": _merged_weight(
            module, pair, plain, scales, where, magnitudes.get(module)
        )
        for module, pair in halves.items()
    }
    lacking = sorted(halves.keys() ^ magnitudes.keys()) if scales.has_magnitudes else []
    if lacking or (magnitudes and not scales.has_magnitudes):
        raise CheckpointError(
            f"DoRA's magnitudes do not belong to the settings: {listed(lacking or magnitudes, 3)}",
            where=where,
            fix="Put the adapter_config.json there that was saved with the weights.",
        )
    return {**plain, **merged_weights}, merged_weights


def _refuse_second_wrap(name: str, wrapped: str, where: str) -> None:
    match = _ADAPTER_WEIGHT.match(name)
    if "base_model.model." in name or ".base_layer." in name:
        problem = f"LoRA layers were wrapped in LoRA layers: {wrapped}"
    elif match is not None and match[3] != "default":
        problem = f"it carries several adapters: {wrapped}"
    else:
        return
    raise CheckpointError(
        problem,
        where=where,
        fix="Such a model cannot be merged; go back to the checkpoint before the second wrapping.",
    )


def _merged_weight(
    module: str,
    pair: Mapping[str, TensorSource],
    plain: Mapping[str, TensorSource],
    scales: AdapterScales,
    where: str,
    magnitude: TensorSource | None,
) -> MergedLoraWeight:
    base = plain.get(f"{module}.weight")
    lacking = [f"lora_{half}" for half in "AB" if half not in pair]
    if base is None or lacking:
        raise CheckpointError(
            f"{module} has no {' and no '.join(lacking) if base is not None else 'weight'}",
            where=where,
            fix="The adapter does not belong to this model, or its file is incomplete.",
        )
    rank = pair["A"].shape[0] if pair["A"].shape else 0
    names.require_fit(
        where,
        shapes={
            f"{module}.lora_A": (pair["A"].shape, (rank, *base.shape[1:])),
            f"{module}.lora_B": (pair["B"].shape, (*base.shape[:1], rank)),
        },
    )
    if magnitude is not None:
        names.require_fit(where, shapes={module: (magnitude.shape, base.shape[:1])})
    return MergedLoraWeight(base, pair["A"], pair["B"], scales.of(module, rank), magnitude)


@dataclass(frozen=True, kw_only=True)
class AdapterScales:
    """By what each adapter's product is multiplied."""

    where: str
    alpha: Mapping[str, float]
    """Layer-name pattern -> alpha, the general one under ``""``."""
    ranks: Mapping[str, int]
    """Layer-name pattern -> rank that the configuration names, the general one under ``""``; only
    checked."""
    rank_stabilised: bool = False
    """Divide by sqrt(r) instead of r (https://arxiv.org/abs/2312.03732)."""
    has_magnitudes: bool = False
    """DoRA: each layer has a length for each row."""

    def of(self, module: str, rank: int) -> float:
        """The factor of one layer.

        Raises:
            CheckpointError: its rank is not the configuration's.
        """
        named = _by_pattern(self.ranks, module, rank)
        if named != rank:
            raise CheckpointError(
                f"{module} has a LoRA of rank {rank}, the configuration says {named}",
                where=self.where,
            )
        alpha = _by_pattern(self.alpha, module, 2 * rank)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _by_pattern(values: Mapping[str, float], module: str, default: float) -> float:
    """The value of the pattern that names a layer, as PEFT matches them."""
    from peft.utils.other import get_pattern_key

    key = get_pattern_key([pattern for pattern in values if pattern], module)
    return values.get(key, values.get("", default))


def scales_of_layout(config: InternVLChatConfig, where: str) -> AdapterScales:
    """For LoRA weights inside a chat checkpoint, whose alpha is twice the rank by convention where
    its configuration has no settings of its own."""
    if config.lora is not None:
        return scales_of_peft(config.lora, where)
    ranks = {
        "language_model": config.use_llm_lora,
        "vision_model": config.use_backbone_lora,
    }
    ranks = {rf"{tower}\..*": rank for tower, rank in ranks.items() if rank}
    alpha = {pattern: 2.0 * rank for pattern, rank in ranks.items()}
    return AdapterScales(where=where, alpha=alpha, ranks=ranks)


def scales_of_peft(adapter_config: Mapping[str, Any], where: str) -> AdapterScales:
    """For an adapter in PEFT's files.

    Args:
        adapter_config: contents of ``adapter_config.json``.
        where: that file, for messages.

    Raises:
        CheckpointError: a kind of adapter that adding a product to the weight does not merge.
    """
    from peft import LoraConfig

    unsupported = [name for name in _UNSUPPORTED if adapter_config.get(name)]
    if unsupported or adapter_config.get("bias", "none") != "none":
        reason = _UNSUPPORTED[unsupported[0]] if unsupported else "it trained biases"
        raise CheckpointError(
            f"cannot be merged into weights one by one: {listed(unsupported) or 'bias'} is set, "
            f"{reason}",
            where=where,
            fix="Merge it with PEFT's merge_and_unload.",
        )
    general = LoraConfig()  # what PEFT takes where the file is silent
    alpha = {"": adapter_config.get("lora_alpha", general.lora_alpha)}
    ranks = {"": adapter_config.get("r", general.r)}
    return AdapterScales(
        where=where,
        alpha=alpha | (adapter_config.get("alpha_pattern") or {}),
        ranks=ranks | (adapter_config.get("rank_pattern") or {}),
        rank_stabilised=bool(adapter_config.get("use_rslora")),
        has_magnitudes=bool(adapter_config.get("use_dora")),
    )


def require_every_target(
    adapter_config: Mapping[str, Any],
    layers: Iterable[str],
    merged: Container[str],
    where: str,
) -> None:
    """The layers that the adapter is for must be those that it has weights of: some would be read
    as zero else, and others passed over by transformers.

    Args:
        adapter_config: contents of ``adapter_config.json``.
        layers: names of the model's matrices, ``.weight`` at their end.
        merged: those that a LoRA goes into.
        where: the adapter, for messages.

    Raises:
        CheckpointError: layers lack theirs, or have some without being named.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    targets = adapter_config.get("target_modules")
    if not targets or targets == "all-linear":  # which layers that is depends on PEFT's version
        return
    keys = ("layers_to_transform", "layers_pattern", "exclude_modules")
    settings = LoraConfig(
        target_modules=targets,
        **{key: adapter_config[key] for key in keys if adapter_config.get(key) is not None},
    )
    # Empty lists are nulls to PEFT, and parameters are named apart from modules.
    parameters = adapter_config.get("target_parameters") or ()
    lacking, unnamed = [], []
    for name in layers:
        is_named = check_target_module_exists(settings, name.removesuffix(".weight"))
        if is_named and name not in merged:
            lacking.append(name)
        elif name in merged and not (is_named or name.endswith(tuple(parameters) or ("\0",))):
            unnamed.append(name)
    if unnamed:
        raise CheckpointError(
            f"{len(unnamed)} layers have LoRA weights and are not named by target_modules: "
            f"{listed(unnamed)}",
            where=where,
            fix="Put the adapter_config.json there that was saved with the weights.",
        )
    if lacking:
        raise CheckpointError(
            f"{len(lacking)} layers that target_modules names have no LoRA weights: "
            f"{listed(lacking)}",
            where=where,
            fix="Its file is incomplete: copy it again, or save it again from the training.",
        )


def check_merged_weight(
    weight: MergedLoraWeight, written: TensorSource, generator: torch.Generator
) -> None:
    """Compare what was written with base and adapter applied one after the other to a vector.

    ``written @ x`` must equal ``base @ x + scale * up @ (down @ x)`` up to what rounding each
    weight to the written dtype can make: half a unit in the last place of every product.

    Raises:
        CheckpointError: it does not.
    """
    rows, width = weight.shape
    rank = weight.down.shape[0]
    x = torch.randn(width, generator=generator, dtype=torch.float64)
    down_x = weight.down.read(0, rank * width).view(rank, width).double() @ x
    unit = torch.finfo(written.dtype).eps / 2 + torch.finfo(torch.float32).eps
    for row in range(0, rows, weight.rows_per_chunk):
        end = min(row + weight.rows_per_chunk, rows)
        merged = written.read(row * width, end * width).view(-1, width).double()
        base = weight.base.read(row * width, end * width).view(-1, width).double()
        up = weight.up.read(row * rank, end * rank).view(-1, rank).double()
        wanted = base @ x + weight.scale * (up @ down_x)
        if weight.magnitude is not None:
            down = weight.down.read(0, rank * width).view(rank, width).double()
            factors = weight.factors(row, base + weight.scale * (up @ down))
            wanted, base, up = wanted * factors[:, 0], base * factors, up * factors
        difference = (merged @ x - wanted).abs()
        # Products and sums in fp32 err by their own size, not by the result's.
        room = merged.abs() @ x.abs() + base.abs() @ x.abs()
        room += abs(weight.scale) * (up.abs() @ down_x.abs())
        if bool((difference > unit * room + numel(weight.shape[1:]) * 1e-12).any()):
            worst = float((difference / (unit * room)).max())
            raise CheckpointError(
                f"merged wrongly: off by {worst:.1f} times what rounding explains",
                where=written.where,
            )
