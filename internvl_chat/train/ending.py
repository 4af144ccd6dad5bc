"""How a run ends: what its status file is told, and a checkpoint before a signal ends it."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from internvl_chat.checkpoint.manifest import list_checkpoints
from internvl_chat.errors import UserError
from internvl_chat.train.distributed import (
    DistributedState,
    announce_end,
    let_rank_zero_speak,
    rank_that_died,
    same_error_on_rank_zero,
    sum_over_ranks,
)
from internvl_chat.train.early_stopping import best_evaluation
from internvl_chat.train.launched import (
    SAVED,
    first_guess_of_rank,
    leave_at_once,
    leave_reason,
    leave_report,
)
from internvl_chat.train.reports import describe, with_rank
from internvl_chat.train.signals import EndingSignals
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

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the best evaluation so far."""
        self._note_best(args, state)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Name the checkpoint that the run has just written, which may be the best."""
        self._status.note(checkpoint=f"checkpoint-{state.global_step}")
        self._note_best(args, state)

    def _note_best(self, args: TrainingArguments, state: TrainerState) -> None:
        best = best_evaluation(vars(args), state)
        if best is not None:
            self._status.note(best=best.as_dict())


class SaveBeforeEnd(TrainerCallback):
    """Save at the end of the step in which any rank has got a signal, and stop there.

    In place of transformers' own callback for ``--enable_jit_checkpoint``, whose ranks do not agree
    on the step. From the first step to the end of the run signals are noted only: what is finished
    while it is being saved is finished.
    """

    def __init__(
        self, signals: EndingSignals, *, is_wanted: bool, world_size: int, device: torch.device
    ) -> None:
        """Not wanted, it does nothing: a signal ends the run at once."""
        self._signals = signals
        self._is_wanted = is_wanted
        self._world_size = world_size
        self._device = device
        self.stopped_at: int | None = None
        """Step of the checkpoint that was saved because of a signal."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on there is something to save."""
        self._signals.defers = self._is_wanted

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Agree with all ranks whether to stop; the last step is the end in any case."""
        if not self._is_wanted or state.global_step >= state.max_steps:
            return
        heard = torch.tensor([self._signals.received is not None], dtype=torch.float32)
        heard = sum_over_ranks(heard.to(self._device), self._world_size)
        if not heard.item():
            return
        self.stopped_at = state.global_step
        args.save_only_model = False  # it is to be continued from
        control.should_save = True
        control.should_evaluate = False
        control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep what was saved, which transformers removes at the end where another was better."""
        if self.stopped_at is not None:
            args.load_best_model_at_end = False
            args.save_total_limit = None

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What an epoch ends with can wait for the continued run."""
        if self.stopped_at is not None:
            control.should_save = control.should_evaluate = False


class RunEnd:
    """A run's last word: in the status file, to the launcher, on the screen, as an exit code."""

    def __init__(self, output_dir: str) -> None:
        """``output_dir`` may be empty: it is the user's, and not yet checked."""
        self._output_dir = output_dir
        self.status = RunStatus(output_dir, rank=first_guess_of_rank())
        self._state: DistributedState | None = None
        self._saying = threading.Lock()
        self._code: int | None = None

    def meet(self, state: DistributedState) -> None:
        """From now on the rank is known, and the others can be asked for."""
        self._state = state
        self.status.rank = state.rank

    def complete(self) -> int:
        """The run is finished, or was already."""
        self.status.end("complete", code=0)
        return 0

    def refused(self, err: UserError) -> int:
        """The user's mistake, told once by rank 0 or by the rank that alone met it."""
        text = describe(err)
        self.status.end("failed", code=err.exit_code, error=text)
        self._tell_launcher(err.exit_code, f"error: {text}")
        if not same_error_on_rank_zero(self._state, text):
            sys.stderr.write(with_rank(self._state, text))
        return err.exit_code

    def crashed(self, err: BaseException) -> int:
        """A mistake of ours, whose traceback is to follow."""
        self.status.end("failed", code=1, error=repr(err))
        self._tell_launcher(1, f"error: {err!r}")
        return 1

    def saved(self, step: int) -> int:
        """A checkpoint was saved because of a signal."""
        checkpoint = f"checkpoint-{step}"
        text = f"a signal ended the run, and {Path(self._output_dir) / checkpoint} was saved"
        self.status.end("saved", code=SAVED, checkpoint=checkpoint)
        self._tell_launcher(SAVED, text)
        self._say(f"{text}: start the same command again to go on from it")
        let_rank_zero_speak(self._state)
        return SAVED

    def interrupted(self, number: int, *, because: str | None = None) -> int:
        """A signal ended the run: somebody's, or the launcher's because another rank has died.

        Args:
            number: of the signal.
            because: what went wrong just before, if anything did.
        """
        with self._saying:  # a second signal's thread waits for the main one, and says nothing
            if self._code is None:
                self._code = self._say_interrupted(number, because)
            return self._code

    def _say_interrupted(self, number: int, because: str | None) -> int:
        died = rank_that_died(self._state)
        announce_end(self._state)
        code = 1 if died else 128 + number
        text = died or f"interrupted by {_name_of(number)}"
        step, last = (self.status.content.get(name) for name in ("step", "max_steps"))
        text += f" at step {step} of {last}" if last is not None else ""
        if because and not died:
            text += f", after {because}"
        self.status.end("failed" if died else "interrupted", code=code, error=text)
        self._tell_launcher(code, f"error: {text}" if died else text)
        newest = list_checkpoints(Path(self._output_dir)) if self._output_dir else []
        if newest:
            text += f"; start the same command again to go on from {newest[0].name}"
        self._say(text, without_rank_zero=bool(died and died.startswith("rank 0 ")))
        if not died:
            let_rank_zero_speak(self._state)
        return code

    def force(self, number: int) -> None:
        """End the process with the verdict, from a thread: the main one does not get to it."""
        leave_at_once(self.interrupted(number))

    def _say(self, text: str, *, without_rank_zero: bool = False) -> None:
        if self.status.rank == int(without_rank_zero):
            # A progress bar may stand at the end of the line.
            bar = "\n" if self.status.content.get("max_steps") is not None else ""
            sys.stderr.write(f"{bar}{text}\n")

    def _tell_launcher(self, code: int, text: str) -> None:
        leave_report(code, text)
        leave_reason(text)


def _name_of(number: int) -> str:
    name = signal.Signals(number).name
    return f"Ctrl-C ({name})" if number == signal.SIGINT else name
