"""Names of weights: which tensor of which file belongs to which parameter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from internvl_chat.checkpoint.tensor_files import TensorSource, listed, numel
from internvl_chat.errors import CheckpointError
from internvl_chat.model.adapter import COMPUTED_BUFFERS

VISION_PREFIX = "vision_model."
LLM_PREFIX = "language_model."
MLP_PREFIX = "mlp1."

_LORA = re.compile(r"\.lora_((A|B)\.|magnitude_vector(\.|$))")
_OTHER_ADAPTER = re.compile(r"\.lora_embedding_[AB](\.|$)|\.trainable_tokens_delta$")
MAGNITUDE = ".lora_magnitude_vector"
"""Of DoRA: the length of each row of a layer."""
EMBEDDING_A = ".lora_embedding_A"
_WRAPPED = re.compile(r"^(language_model|vision_model)\.base_model\.model\.")
_ADAPTER_NAME = re.compile(r"\.lora_(A|B)\.default\.")


def is_lora(name: str) -> bool:
    """Whether the name is an adapter weight's."""
    return _LORA.search(name) is not None


def is_adapter_weight(name: str) -> bool:
    """Whether the name is that of any weight that PEFT's LoRA adds to a model."""
    return is_lora(name) or is_unmerged(name)


def is_unmerged(name: str) -> bool:
    """Whether it is one of an embedding or of single tokens."""
    return _OTHER_ADAPTER.search(name) is not None


def unwrapped_name(name: str) -> str:
    """The name without PEFT's wrapping: as in a checkpoint that never had an adapter."""
    return _WRAPPED.sub(r"\1.", name).replace(".base_layer.", ".")


def adapter_key(name: str) -> str:
    """The key of an adapter weight in ``adapter_model.safetensors``, for the whole chat model."""
    plain = _ADAPTER_NAME.sub(r".lora_\1.", unwrapped_name(name))
    return "base_model.model." + plain.replace(f"{MAGNITUDE}.default.weight", MAGNITUDE)


def parameter_of_adapter_key(key: str) -> str:
    """The (unwrapped) parameter name of an adapter file's key, without ``base_model.model.``."""
    if key.endswith(MAGNITUDE):
        return f"{key}.default.weight"
    return re.sub(r"\.lora_(A|B)\.weight$", r".lora_\1.default.weight", key)


def with_prefix(tensors: Mapping[str, TensorSource], prefix: str) -> dict[str, TensorSource]:
    """The part of a chat model that a file holds, under the chat model's names.

    Args:
        tensors: from a chat checkpoint (``prefix`` present; other parts are left out) or from a
            checkpoint of this part alone.
        prefix: of the part in the chat model.
    """
    chosen = {name: source for name, source in tensors.items() if name.startswith(prefix)}
    return chosen or {prefix + name: source for name, source in tensors.items()}


@dataclass(frozen=True)
class Match:
    """Result of comparing a model's names with those found in files."""

    sources: dict[str, TensorSource]
    """By parameter name."""
    missing: tuple[str, ...]
    surplus: tuple[str, ...]


def match_names(
    expected: Mapping[str, tuple[str, ...]], available: Mapping[str, TensorSource]
) -> Match:
    """Give each parameter its tensor.

    Args:
        expected: parameter name -> all names that mean it (tied weights have several), as the
            model writes them.
        available: by the name in the files: the wrapped or the unwrapped one.
    """
    sources: dict[str, TensorSource] = {}
    used: set[str] = set()
    for name, aliases in expected.items():
        for alias in aliases:
            # PEFT before 0.7 wrapped without "base_layer".
            spellings = (alias, alias.replace(".base_layer.", "."), unwrapped_name(alias))
            found = next((spelling for spelling in spellings if spelling in available), None)
            if found is not None:  # another spelling beside it is surplus: which one is meant?
                sources.setdefault(name, available[found])
                used.add(found)
    missing = tuple(name for name in expected if name not in sources)
    surplus = tuple(
        name for name in available if name not in used and not COMPUTED_BUFFERS.search(name)
    )
    return Match(sources, missing, surplus)


def require_fit(
    problems_of: str,
    *,
    missing: Iterable[str] = (),
    surplus: Iterable[str] = (),
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
) -> None:
    """Say everything that does not fit in one error.

    Args:
        problems_of: the checkpoint's path(s).
        missing: parameters that no file holds.
        surplus: tensors that no parameter takes.
        shapes: name -> (shape found, shape wanted), equal ones included.

    Raises:
        CheckpointError: there is a difference.
    """
    found_wanted = dict(shapes or {})
    empty = [name for name, (found, _) in found_wanted.items() if numel(found) == 0]
    wrong = [
        f"{name} is {_text(found)}, wanted {_text(wanted)}"
        for name, (found, wanted) in found_wanted.items()
        if found != wanted and numel(found)
    ]
    complaints = [
        f"{len(names)} {what}: {listed(names)}"
        for what, names in (
            ("missing", list(missing)),
            ("surplus", list(surplus)),
            ("of the wrong shape", wrong),
            ("of zero size", empty),
        )
        if names
    ]
    if complaints:
        fix = "Check that config.json and the weights belong together and are complete."
        if empty:
            fix = "Zero-size tensors are unfinished ZeRO-3 saves: use an earlier checkpoint."
        raise CheckpointError("tensors " + "; ".join(complaints), where=problems_of, fix=fix)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
