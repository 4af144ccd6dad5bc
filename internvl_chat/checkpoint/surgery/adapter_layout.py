"""An adapter for its base in another layout: the same LoRA under other names, not merged."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from internvl_chat.checkpoint.adapters import read_adapter, split_adapter
from internvl_chat.checkpoint.card.files import write_adapter_card
from internvl_chat.checkpoint.hub import local_model
from internvl_chat.checkpoint.hub_names import name_of_snapshot, portable_name
from internvl_chat.checkpoint.lora_settings import continued_settings
from internvl_chat.checkpoint.sources import (
    Sources,
    find_sources,
    read_json,
    require_config,
    resolve_adapter_base,
)
from internvl_chat.checkpoint.surgery import native
from internvl_chat.checkpoint.surgery.probe import (
    fits_in_memory,
    logits_of,
    logits_of_checkpoint,
    make_probe,
    require_same,
)
from internvl_chat.checkpoint.surgery.write import (
    add_provenance,
    new_directory,
    refuse_existing,
)
from internvl_chat.checkpoint.tensor_files import TensorSource, numel, open_weights
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.config import SourceConfig
from internvl_chat.errors import CheckpointError
from internvl_chat.model.adapter import ADAPTER_WEIGHTS_NAME, is_adapter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AdapterReport:
    """What was written."""

    layers: int
    logits: float | None
    """Largest difference between the two adapters on their bases in fp32; None where memory is
    short."""


_LORA_WEIGHT = re.compile(r"^(.+)\.(lora_[AB]\.weight|lora_magnitude_vector)$")
_QKV = re.compile(r"^(.*\.attention)\.qkv$")
_NATIVE = "internvl"
"""``model_type`` of transformers' own class."""


def export_adapter(checkpoint: str, output_dir: str, *, base: str) -> AdapterReport:
    """Write an adapter for its base as ``export`` wrote that, for PEFT to load onto it.

    Args:
        checkpoint: an adapter, this program's or PEFT's.
        output_dir: new.
        base: directory of the exported base, or its name on the hub; its layout decides the names.

    Raises:
        CheckpointError: no adapter, one that the settings do not describe, a base that is another
            model or none, or other logits.
        ConfigError: ``output_dir`` is taken.
    """
    refuse_existing(Path(output_dir))
    settings_of_base = Path(local_model(base, "settings"))  # weights come when the rest is right
    if is_adapter(settings_of_base):
        raise CheckpointError(
            "is an adapter itself",
            where=base,
            fix="Give --adapter-for the directory of what export made of an adapter's base.",
        )
    is_native = read_json(require_config(settings_of_base)).get("model_type") == _NATIVE
    adapter = local_model(checkpoint)
    sources = find_sources(SourceConfig.whole(adapter))
    if not sources.adapter:
        raise CheckpointError(
            "is no adapter beside a base",
            where=checkpoint,
            fix="Without --adapter-for, export merges what a checkpoint holds.",
        )
    settings = continued_settings(sources.adapter_config, sources.where)
    base = local_model(base)
    own = portable_name(str(resolve_adapter_base(Path(adapter))))
    fix = f"Give --adapter-for the directory of what export made of {own}."
    stored = read_adapter(Path(adapter))
    _, whole = split_adapter(stored)
    if is_native:
        settings = _native_settings(settings, stored)
        stored = _native_adapter(stored)
        whole = native.native_tensors(whole)
    _require_base(sources, stored, base, is_native=is_native, fix=fix)
    with new_directory(Path(output_dir)) as directory:
        _write(stored, whole, settings, directory, Path(base))
        difference = None
        if fits_in_memory(sources.tensors.values()):
            difference = _compare(sources, adapter, directory, base, is_native=is_native, fix=fix)
        else:
            logger.warning("too little memory to run the model in fp32: logits are not compared")
        add_provenance(
            directory, (), sources.where, "export --adapter-for", base=portable_name(base)
        )
    write_adapter_card(Path(output_dir), Path(adapter), base=Path(base), is_native=is_native)
    layers = {split[0] for name in stored if (split := _layer(name)) is not None}
    return AdapterReport(layers=len(layers), logits=difference)


def _require_base(
    sources: Sources, stored: Mapping[str, TensorSource], base: str, *, is_native: bool, fix: str
) -> None:
    """Refuse a base in which the layers that the adapter goes into are missing or of other sizes.

    Args:
        sources: the adapter and its own base.
        stored: the adapter's weights under the names of the other base.
        base: directory of that.
        is_native: whether it is in transformers' layout.
        fix: which base to give.
    """
    known = native.native_tensors(sources.tensors) if is_native else sources.tensors
    there = open_weights(Path(base))
    for name in stored:
        split = _layer(name)
        weight = name if split is None else f"{split[0]}.weight"
        wanted, found = known.get(weight), there.get(weight)
        if wanted is not None and (found is None or found.shape != wanted.shape):
            held = "none" if found is None else f"one of shape {found.shape}"
            raise CheckpointError(
                f"is another model: the adapter goes into a {weight} of shape {wanted.shape}, and "
                f"there is {held}",
                where=base,
                fix=fix,
            )


def _layer(name: str) -> tuple[str, str] | None:
    match = _LORA_WEIGHT.match(name)
    return None if match is None else (match[1], match[2])


def _native_layers(layer: str) -> list[str]:
    """A layer's name there; three where its rows are those of q, k and v."""
    renamed = native.native_name(f"{layer}.weight").removesuffix(".weight")
    match = _QKV.match(renamed)
    return [renamed] if match is None else [f"{match[1]}.{one}_proj" for one in "qkv"]


def _native_adapter(stored: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
    """All weights under their names there. Of a product of two matrices the second has the rows."""
    found: dict[str, TensorSource] = {}
    for name, source in stored.items():
        split = _layer(name)
        if split is None:
            found |= native.native_tensors({name: source})
            continue
        layers = _native_layers(split[0])
        for number, layer in enumerate(layers):
            is_cut = len(layers) > 1 and not split[1].startswith("lora_A")
            found[f"{layer}.{split[1]}"] = native.QkvSlice(source, number) if is_cut else source
    return found


def _native_settings(
    settings: Mapping[str, Any], stored: Mapping[str, TensorSource]
) -> dict[str, Any]:
    """Settings that say by full names what the adapter's own say by patterns of the other names."""
    from peft.utils.other import get_pattern_key

    ranks, alphas = (settings.get(f"{name}_pattern") or {} for name in ("rank", "alpha"))
    layers = sorted({split[0] for name in stored if (split := _layer(name)) is not None})
    found = {
        name: value
        for name, value in settings.items()
        if name in ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")
    }
    found |= {"target_modules": [], "rank_pattern": {}, "alpha_pattern": {}}
    for layer in layers:
        names_there = _native_layers(layer)
        found["target_modules"] += names_there
        for kind, patterns in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
            value = patterns.get(get_pattern_key([*patterns], layer))
            if value is not None:
                found[kind] |= dict.fromkeys(map(re.escape, names_there), value)
    return found


def _write(
    stored: Mapping[str, TensorSource],
    whole: Mapping[str, TensorSource],
    settings: Mapping[str, Any],
    directory: Path,
    base: Path,
) -> None:
    from peft import LoraConfig

    values = {
        f"base_model.model.{name}": source.read(0, numel(source.shape)).view(source.shape).clone()
        for name, source in stored.items()
    }
    save_file(values, directory / ADAPTER_WEIGHTS_NAME, {"format": "pt"})
    modules = sorted({name.rpartition(".")[0] for name in whole})
    model = name_of_snapshot(base)
    LoraConfig(
        base_model_name_or_path=str(base.resolve()) if model is None else model.repo,
        revision=None if model is None else model.revision,
        modules_to_save=modules or None,
        inference_mode=True,
        **settings,
    ).save_pretrained(str(directory))


@torch.no_grad()
def _compare(
    sources: Sources, adapter: str, directory: Path, base: str, *, is_native: bool, fix: str
) -> float:
    """Logits with the written adapter, put on by PEFT alone, against those with the other."""
    from peft import PeftModel
    from transformers import InternVLForConditionalGeneration

    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

    probe = make_probe(sources.config, load_tokenizer(adapter))
    wanted = logits_of_checkpoint(adapter, probe)
    kind: Any = InternVLForConditionalGeneration if is_native else InternVLChatModel
    model = PeftModel.from_pretrained(kind.from_pretrained(base, dtype=torch.float32), directory)
    found = logits_of(model.eval().base_model.model, probe)
    del model
    gc.collect()
    written = open_weights(Path(base))
    before, after = ({one.dtype for one in of.values()} for of in (sources.tensors, written))
    return require_same(wanted, found, exact=before == after, where=adapter, fix=fix)
