"""How far a run has come, told to its status file."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from internvl_chat.train.status import RunStatus


class StatusCallback(TrainerCallback):
    """Tells a run's status the steps and the checkpoints."""

    def __init__(self, status: RunStatus) -> None:
        self._status = status

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What a former run said of the folder no longer holds."""
        self._status.training(step=state.global_step, max_steps=state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the step for the next sign of life."""
        self._status.note(step=state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Name the checkpoint that the run has just written."""
        self._status.note(checkpoint=f"checkpoint-{state.global_step}")
