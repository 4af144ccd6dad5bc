"""transformers' TrainingArguments with what this package adds to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from transformers import TrainingArguments

from internvl_chat.train.arguments import RunOptions

NOT_COMPILED: Final = {
    "torch_compile": False,
    "torch_compile_backend": None,
    "torch_compile_mode": None,
}
"""transformers' arguments about compiling, as they ask for none."""


@dataclass
class TrainArguments(RunOptions, TrainingArguments):
    """transformers' TrainingArguments, with the defaults of fine-tuning and a few options more."""

    def __post_init__(self) -> None:
        # accelerate calls gloo on several CPU processes "use_cpu", and transformers refuses bf16
        # on a machine without a GPU unless told that this is meant.
        if not torch.cuda.is_available():
            self.use_cpu = True
        # Blocks are compiled, not the model (compilation.py), and no precision changes with it.
        told = {name: getattr(self, name) for name in NOT_COMPILED}
        self.__dict__.update(NOT_COMPILED)
        super().__post_init__()
        told["torch_compile"] = any(told.values())
        if told["torch_compile"]:
            told["torch_compile_backend"] = told["torch_compile_backend"] or "inductor"
        self.__dict__.update(told)

    @property
    def uses_tensorboard(self) -> bool:
        """Whether our own TensorBoard callback writes (transformers' one is not used)."""
        return "tensorboard" in (self.report_to or [])
