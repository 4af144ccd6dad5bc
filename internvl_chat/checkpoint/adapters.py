"""An adapter in PEFT's files: what is wrong with it, said before a weight is read.

Chat, training and surgery read adapters by different code (transformers', this package's), which
must not take one and the same adapter in different ways: what one of them cannot compute, or
would pass over, is refused here for all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.tensor_files import TensorSource, open_weights
from internvl_chat.errors import CheckpointError
from internvl_chat.model.adapter import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    OLD_ADAPTER_WEIGHTS_NAME,
    plain_adapter_key,
)

_MERGE_BY_PEFT: Final = "Merge it with PEFT's merge_and_unload."
_NOT_READ: Final = {
    "alora_invocation_tokens": "an adapter that some tokens switch on (aLoRA)",
    "arrow_config": "a choice among adapters (Arrow)",
    "layer_replication": "an adapter on layers that are there several times",
    "monteclora_config": "MonteCLoRA",
    "use_bdlora": "BD-LoRA",
}
"""Settings by which an adapter computes more than the product of two matrices."""
_CHANGES_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of ``init_lora_weights`` that take something out of the layers under the adapter."""
_LORA_A: Final = ".lora_A.weight"


def find_adapter_weights(directory: Path) -> Path:
    """The file of an adapter's weights, as PEFT writes it or wrote it before 0.7.

    Raises:
        CheckpointError: there is neither.
    """
    for name in (ADAPTER_WEIGHTS_NAME, OLD_ADAPTER_WEIGHTS_NAME):
        if (directory / name).is_file():
            return directory / name
    raise CheckpointError(
        f"has {ADAPTER_CONFIG_NAME} but no adapter's weights",
        where=str(directory),
        fix=f"Expected {ADAPTER_WEIGHTS_NAME} or {OLD_ADAPTER_WEIGHTS_NAME} beside it.",
    )


def read_adapter(directory: Path) -> dict[str, TensorSource]:
    """An adapter's weights by the names that PEFT gives them today, without its prefix.

    Raises:
        CheckpointError: no file, none that is a plain state dict, no weight in it, or one weight
            under two names.
    """
    path = find_adapter_weights(directory)
    found: dict[str, TensorSource] = {}
    for key, tensor in open_weights(path).items():
        name = plain_adapter_key(key).removeprefix("base_model.model.")
        if name in found:
            raise CheckpointError(
                f"holds {name} twice, the second time as {key}",
                where=str(path),
                fix="Take one of them out: programs disagree on which to read.",
            )
        found[name] = tensor
    if not found:
        raise CheckpointError(
            "holds no weights",
            where=str(path),
            fix="Copy it again, or save it again from the training.",
        )
    return found


def require_readable_settings(values: Mapping[str, Any], where: str) -> None:
    """Refuse an ``adapter_config.json`` that no LoRA can be made of, or one of a kind unread here.

    Args:
        values: its contents.
        where: the file, for messages.

    Raises:
        CheckpointError: names the setting.
    """
    kind = values.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"peft_type is {kind!r}, wanted 'LORA'", where=where)
    for name, (is_right, wanted) in _SETTINGS.items():
        if name in values and not is_right(values[name]):
            raise CheckpointError(f"{name} is {values[name]!r}, wanted {wanted}", where=where)
    if not values.get("target_modules") and not values.get("target_parameters"):
        raise CheckpointError("target_modules names no layer", where=where)
    unread = next((what for name, what in _NOT_READ.items() if values.get(name)), None)
    start = str(values.get("init_lora_weights")).lower()
    if start.startswith(_CHANGES_BASE):
        unread = f"an adapter on layers that were changed for it (init_lora_weights {start})"
    if unread is not None:
        raise CheckpointError(
            f"{unread} is not read here: its answers would be others",
            where=where,
            fix=_MERGE_BY_PEFT,
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _by_layer(is_right: Callable[[object], bool]) -> Callable[[object], bool]:
    """Whether something is an object of patterns, each with a value that is right; or null."""

    def check(value: object) -> bool:
        if value is None:
            return True
        return isinstance(value, dict) and all(
            _is_pattern(key) and is_right(one) for key, one in value.items()
        )

    return check


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _is_list_of_texts(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _is_text_or_list(value: object) -> bool:
    return (isinstance(value, str) and _is_pattern(value)) or _is_list_of_texts(value)


def _is_layer_choice(value: object) -> bool:
    if isinstance(value, list):
        return all(_is_layer_choice(one) for one in value)
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


_SETTINGS: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "r": (_is_count, "a rank, 1 or more"),
    "lora_alpha": (_is_number, "a number"),
    "rank_pattern": (_by_layer(_is_count), "ranks by patterns of layer names"),
    "alpha_pattern": (_by_layer(_is_number), "numbers by patterns of layer names"),
    "target_modules": (_is_text_or_list, "names of layers"),
    "exclude_modules": (_is_text_or_list, "names of layers"),
    "modules_to_save": (_is_list_of_texts, "a list of modules"),
    "layers_to_transform": (_is_layer_choice, "numbers of layers"),
}
"""Setting -> whether a value is right, and what is wanted."""


def split_adapter(
    stored: Mapping[str, TensorSource],
) -> tuple[dict[str, TensorSource], dict[str, TensorSource]]:
    """An adapter's own weights by parameter name, and weights that take the place of the base's.

    The latter are modules that were trained whole, and what is under an adapter on embedding or
    head, which PEFT stores beside it.
    """
    adapter: dict[str, TensorSource] = {}
    whole: dict[str, TensorSource] = {}
    for name, tensor in stored.items():
        module, wrapped, _ = name.partition(".base_layer.")
        if names.is_adapter_weight(name):
            adapter[names.parameter_of_adapter_key(name)] = tensor
        elif wrapped and any(f"{module}{kind}" in stored for kind in (_LORA_A, names.EMBEDDING_A)):
            whole[name.replace(".base_layer.", ".")] = tensor
        else:
            whole[name] = tensor
    return adapter, whole


def require_adapter_fits(
    adapter: Mapping[str, TensorSource],
    base: Mapping[str, TensorSource],
    adapter_config: Mapping[str, Any],
    where: str,
) -> None:
    """Compare ranks and widths of an adapter with its configuration and the layers under it.

    Args:
        adapter: by parameter name, of the unwrapped model.
        base: by name.
        adapter_config: contents of ``adapter_config.json``.
        where: both paths, for messages.

    Raises:
        CheckpointError: it belongs to another model or configuration, or half of a pair is missing.
    """
    from peft import LoraConfig
    from peft.utils.other import get_pattern_key

    general: int = adapter_config.get("r", LoraConfig().r)
    ranks: dict[str, int] = adapter_config.get("rank_pattern") or {}
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for name, down in adapter.items():
        module, is_down, _ = name.partition(".lora_A.")
        layer, up = base.get(f"{module}.weight"), adapter.get(name.replace(".lora_A.", ".lora_B."))
        if not is_down or layer is None or len(layer.shape) != 2:
            continue
        rank = ranks.get(get_pattern_key([*ranks], module), general)
        if down.shape[:1] != (rank,):
            found = down.shape[0] if down.shape else 0
            raise CheckpointError(
                f"{module} has a LoRA of rank {found}, {ADAPTER_CONFIG_NAME} says {rank}",
                where=where,
            )
        shapes[f"{module}.lora_A"] = (down.shape, (rank, layer.shape[1]))
        if up is not None:
            shapes[f"{module}.lora_B"] = (up.shape, (layer.shape[0], rank))
    names.require_fit(where, shapes=shapes)
