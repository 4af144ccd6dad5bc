"""What an optimizer keeps of the tensors that it steps, in memory and in checkpoints.

Read off torch's optimizers, transformers' Adafactor, bitsandbytes 0.50 (``optim/optimizer.py``) and
torchao (``optim/subclass_8bit.py``). fp32 masters that ZeRO holds are none of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

FP32_BYTES: Final = 4
_LEAST_QUANTISED: Final = 4096
"""Elements below which a tensor's state stays in fp32."""
_LEAST_PAGED: Final = 100_000
"""Elements below which a paged optimizer keeps its state where the weights are."""
_BLOCKS: Final[Mapping[int, int]] = {8: 256, 4: 128}
"""Elements that share an fp32 scale, by bits."""
_SUFFIXES: Final = ("_layerwise", "_8bit", "_4bit", "_32bit", "_bnb", "_fused")
_MOMENTS: Final[Mapping[str, int]] = {
    "sgd": 0,
    "lomo": 0,
    "adagrad": 1,
    "lion": 1,
    "rmsprop": 1,
    "schedule_free_sgd": 1,
    "ademamix": 3,
    "grokadamw": 3,
}
"""Numbers of an element by the optimizer's name without what says how they are kept; Adam's two for
others, which is the most that the low-rank ones (GaLore, APOLLO) come to."""
_FACTORED: Final = ("adafactor", "galore_adafactor", "adalomo")


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """What is kept, by the tensor."""

    moments: int = 2
    """Numbers of each element."""
    bits: int = 32
    """Of such a number; below 32 in blocks with a scale each."""
    spares_embeddings: bool = False
    """Whether embeddings are kept in fp32 in any case: transformers asks bitsandbytes for it."""
    is_factored: bool = False
    """Whether of a matrix only its rows and columns are kept."""
    is_paged: bool = False
    """Whether it is in memory that the GPU shares with the host, and gives way."""

    def kept(self, numel: int, *, factors: int = 0, is_embedding: bool = False) -> int:
        """Bytes of a tensor's state.

        Args:
            numel: elements of the tensor, as the optimizer sees it.
            factors: of its rows and columns together; 0 for a vector, or what ZeRO has flattened.
            is_embedding: whether it is a table of embeddings.
        """
        if self.is_factored:
            return FP32_BYTES * (factors or numel)
        is_exact = numel < _LEAST_QUANTISED or (is_embedding and self.spares_embeddings)
        if self.bits == 32 or is_exact:
            return FP32_BYTES * self.moments * numel
        scales = math.ceil(numel / _BLOCKS[self.bits])
        return self.moments * (math.ceil(numel * self.bits / 8) + FP32_BYTES * scales)

    def gives_way(self, numel: int) -> bool:
        """Whether a tensor's state leaves the GPU's memory to others."""
        return self.is_paged and numel >= _LEAST_PAGED


ADAM: Final = OptimizerState()


def optimizer_state(optim: str, optim_args: str | None = None) -> OptimizerState:
    """What an optimizer of transformers keeps.

    Args:
        optim: as ``--optim`` has it (transformers' ``OptimizerNames``).
        optim_args: as ``--optim_args`` has it, ``momentum=0.9`` for one.
    """
    name = optim.removeprefix("paged_")
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    bits = 8 if "_8bit" in optim else 4 if "_4bit" in optim else 32
    return OptimizerState(
        moments=_MOMENTS.get(name, 2) + _more(optim, optim_args),
        bits=bits,
        spares_embeddings=bits == 8 and not optim.startswith("adamw_torch"),
        is_factored=name in _FACTORED,
        is_paged=optim.startswith("paged_"),
    )


def _more(optim: str, optim_args: str | None) -> int:
    """Numbers that torch's SGD and RMSprop keep where they are asked for momentum or a mean."""
    if optim not in ("sgd", "rmsprop"):
        return 0
    parts = (part.partition("=") for part in (optim_args or "").replace(" ", "").split(","))
    given = {name: value for name, _, value in parts}
    has_momentum = given.get("momentum", "0").strip("0.") != ""
    is_centered = optim == "rmsprop" and given.get("centered", "").lower() in ("true", "1", "yes")
    return int(has_momentum) + int(is_centered)
