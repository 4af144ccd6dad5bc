"""transformers' TrainingArguments with what this package adds to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import TrainingArguments

from internvl_chat.train.arguments import RunOptions


@dataclass
class TrainArguments(RunOptions, TrainingArguments):
    """transformers' TrainingArguments, with the defaults of fine-tuning and a few options more."""

    def __post_init__(self) -> None:
        # accelerate calls gloo on several CPU processes "use_cpu", and transformers refuses bf16
        # on a machine without a GPU unless told that this is meant.
        if not torch.cuda.is_available():
            self.use_cpu = True
        super().__post_init__()

    @property
    def uses_tensorboard(self) -> bool:
        """Whether our own TensorBoard callback writes (transformers' one is not used)."""
        return "tensorboard" in (self.report_to or [])
