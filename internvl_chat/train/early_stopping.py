"""Which evaluation was the best, and whether a run stops because none is better any more.

Both are read from the logged figures, which every checkpoint keeps: a run that goes on counts on
where the former one stood, and a finished one can be asked when other settings had ended it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Evaluations = Mapping[int, float]
"""Step -> figure, in the steps' order."""

HELD_OUT_LOSS = "eval_loss"


@dataclass(frozen=True, kw_only=True)
class EarlyStopRule:
    """When a run has gone on for too long without becoming better."""

    patience: int
    """Evaluations in a row that are no better."""
    threshold: float
    """By how much a figure must be better than the best before it."""
    metric: str
    """With ``eval_``."""
    greater_is_better: bool

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> EarlyStopRule | None:
        """The rule that arguments, by name, ask for; None for none."""
        patience = arguments.get("early_stopping_patience")
        if patience is None:
            return None
        return cls(
            patience=patience,
            threshold=arguments.get("early_stopping_threshold") or 0.0,
            metric=metric_of(arguments),
            greater_is_better=bool(arguments.get("greater_is_better")),
        )

    def stops_at(self, evaluations: Evaluations) -> int | None:
        """The step at which it ends a run with these evaluations; None if it does not.

        As transformers' EarlyStoppingCallback counts: what is better by less than the threshold
        still becomes the best, which the next is compared with.
        """
        sign = -1.0 if self.greater_is_better else 1.0
        best, worse = float("inf"), 0
        for step, value in evaluations.items():
            improves = sign * value < best
            worse = 0 if improves and best - sign * value > self.threshold else worse + 1
            if improves:
                best = sign * value
            if worse >= self.patience:
                return step
        return None


@dataclass(frozen=True, kw_only=True)
class BestEvaluation:
    """The best evaluation of a run."""

    step: int
    metric: str
    value: float

    def as_dict(self) -> dict[str, Any]:
        """For ``status.json`` and ``train_results.json``."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.4f} at step {self.step}"


def metric_of(arguments: Mapping[str, Any]) -> str:
    """The figure that counts, with ``eval_``; the held-out loss where none is named."""
    name = arguments.get("metric_for_best_model") or HELD_OUT_LOSS
    return f"eval_{str(name).removeprefix('eval_')}"


def evaluations_of(log_history: Sequence[Mapping[str, Any]], metric: str) -> dict[int, float]:
    """A figure of every evaluation.

    What was asked before the first step does not count, and what was asked again as a run went on
    counts once.

    Args:
        log_history: of transformers' ``TrainerState``.
        metric: with ``eval_``.
    """
    found: dict[int, float] = {}
    for entry in log_history:
        step, value = entry.get("step"), entry.get(metric)
        if step and isinstance(value, int | float):
            found.setdefault(step, value)
    return dict(sorted(found.items()))


def best_evaluation(args: Mapping[str, Any], state: TrainerState) -> BestEvaluation | None:
    """The best one so far, or the one whose checkpoint is the run's result.

    Args:
        args: arguments by name.
        state: of the run.
    """
    metric = metric_of(args)
    evaluations = evaluations_of(state.log_history, metric)
    if not evaluations:
        return None
    chosen = state.best_global_step if args.get("load_best_model_at_end") else None
    choose = max if args.get("greater_is_better") else min
    step = chosen if chosen in evaluations else choose(evaluations, key=lambda s: evaluations[s])
    return BestEvaluation(step=step, metric=metric, value=evaluations[step])


class EarlyStopping(TrainerCallback):
    """Ends a run by an :class:`EarlyStopRule`."""

    def __init__(self, rule: EarlyStopRule) -> None:
        self.rule = rule

    def has_stopped(self, state: TrainerState) -> bool:
        """Whether the evaluations so far end the run."""
        return self.rule.stops_at(evaluations_of(state.log_history, self.rule.metric)) is not None

    def told(self, state: TrainerState) -> str | None:
        """Why the run ended before its last step; None where it did not."""
        if state.global_step >= state.max_steps or not self.has_stopped(state):
            return None
        count = self.rule.patience
        return (
            f"stopped early at step {state.global_step} of {state.max_steps}: {self.rule.metric} "
            f"has not improved for {count} {'evaluation' if count == 1 else 'evaluations'}"
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A run that ended between its stop and its last word trains nothing more."""
        if self.has_stopped(state):
            control.should_training_stop = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop behind the evaluation that was one too many."""
        if self.has_stopped(state):
            control.should_training_stop = True
