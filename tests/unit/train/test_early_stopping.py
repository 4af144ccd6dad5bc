"""When a run stops, when it is evaluated, and which evaluation was the best."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

from internvl_chat.train.early_stopping import (
    EarlyStopping,
    EarlyStopRule,
    best_evaluation,
    evaluations_of,
)
from internvl_chat.train.evaluation_schedule import evaluation_problems, with_evaluation


def rule(patience: int, threshold: float = 0.0, **more: Any) -> EarlyStopRule:
    return EarlyStopRule(
        patience=patience,
        threshold=threshold,
        **{"metric": "eval_loss", "greater_is_better": False, **more},
    )


@pytest.mark.parametrize(
    ("values", "patience", "threshold", "stops_at"),
    [
        ([3.0, 2.0, 1.0], 1, 0.0, None),
        ([3.0, 2.0, 2.5], 1, 0.0, 3),
        ([3.0, 2.0, 2.0], 1, 0.0, 3),
        ([3.0, 2.0, 2.5, 1.5, 1.6, 1.7], 2, 0.0, 6),
        ([3.0, 2.95, 2.9, 2.85], 2, 0.1, 3),  # better, but by too little
        ([3.0, 2.95, 2.0, 1.95, 1.9], 2, 0.1, 5),
        ([3.0, float("nan"), float("nan")], 2, 0.0, 3),
        ([], 1, 0.0, None),
    ],
)
def test_when_a_run_stops(
    values: list[float], patience: int, threshold: float, stops_at: int | None
) -> None:
    evaluations = dict(enumerate(values, start=1))
    assert rule(patience, threshold).stops_at(evaluations) == stops_at


@pytest.mark.parametrize("greater", [False, True])
def test_it_stops_where_transformers_does(greater: bool) -> None:
    rng = random.Random(0)
    for _ in range(300):
        patience, threshold = rng.randint(1, 4), rng.choice([0.0, 0.5, 2.0])
        values = [float(rng.randint(0, 8)) for _ in range(rng.randint(1, 12))]
        callback = EarlyStoppingCallback(patience, threshold)
        args = SimpleNamespace(greater_is_better=greater, metric_for_best_model="eval_loss")
        state, expected = TrainerState(), None
        for step, value in enumerate(values, start=1):
            control = TrainerControl()
            callback.on_evaluate(args, state, control, {"eval_loss": value})
            if control.should_training_stop:
                expected = step
                break
            best = state.best_metric
            if best is None or (value > best if greater else value < best):
                state.best_metric = value  # as Trainer._determine_best_metric
        own = rule(patience, threshold, greater_is_better=greater)
        assert own.stops_at(dict(enumerate(values, start=1))) == expected, (values, patience)


def log(*values: tuple[int, float], name: str = "eval_loss") -> list[dict[str, float]]:
    return [{name: value, "step": step} for step, value in values]


def test_what_counts_as_an_evaluation() -> None:
    history = [
        *log((0, 0.1)),  # --eval_on_start
        {"loss": 9.0, "step": 2},
        *log((2, 3.0), (4, 2.0), (4, 2.0), (6, 2.5)),  # at 4 it was resumed, and asked again
        {"eval_loss/a": 1.0, "step": 6},
    ]
    assert evaluations_of(history, "eval_loss") == {2: 3.0, 4: 2.0, 6: 2.5}
    assert evaluations_of(history, "eval_loss/a") == {6: 1.0}


def test_a_run_that_goes_on_counts_on() -> None:
    stopping = EarlyStopping(rule(2))
    args: Any = SimpleNamespace()
    state = TrainerState(global_step=3, max_steps=9, log_history=log((1, 1.0), (2, 2.0)))
    begun = TrainerControl()
    stopping.on_train_begin(args, state, begun)
    assert not begun.should_training_stop
    state.log_history += log((3, 2.0))
    control = TrainerControl()
    stopping.on_evaluate(args, state, control)
    assert control.should_training_stop
    assert stopping.told(state) == (
        "stopped early at step 3 of 9: eval_loss has not improved for 2 evaluations"
    )
    # Ended between its stop and its last word: nothing more is trained.
    begun = TrainerControl()
    stopping.on_train_begin(args, state, begun)
    assert begun.should_training_stop
    state.global_step = 9
    assert stopping.told(state) is None, "the last step is the end in any case"


def test_the_best_evaluation() -> None:
    state = TrainerState(log_history=log((2, 3.0), (4, 1.0), (6, 2.0)), best_global_step=6)
    assert str(best_evaluation({}, state)) == "eval_loss 1.0000 at step 4"
    # Of the checkpoints: step 4 was not saved.
    told = best_evaluation({"load_best_model_at_end": True, "metric_for_best_model": "loss"}, state)
    assert told is not None
    assert told.as_dict() == {"step": 6, "metric": "eval_loss", "value": 2.0}
    assert best_evaluation({"metric_for_best_model": "eval_loss/a"}, state) is None


# ---- when held-out records are asked --------------------------------------------------------

DEFAULTS: dict[str, Any] = {
    "eval_meta_path": None,
    "val_split": 0.0,
    "val_split_seed": 42,
    "eval_strategy": "no",
    "eval_steps": None,
    "save_strategy": "steps",
    "save_steps": 500,
    "save_only_model": False,
    "load_best_model_at_end": False,
    "metric_for_best_model": None,
    "greater_is_better": None,
    "early_stopping_patience": None,
    "early_stopping_threshold": 0.0,
}
SPLIT = {"val_split": 0.02}
STOP = {**SPLIT, "early_stopping_patience": 3}
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}


def settled(given: dict[str, Any]) -> dict[str, Any]:
    values = with_evaluation({**DEFAULTS, **given}, given)
    return {name: value for name, value in values.items() if value != {**DEFAULTS, **given}[name]}


@pytest.mark.parametrize(
    ("given", "follows"),
    [
        ({}, {}),
        ({"eval_steps": 5}, {}),
        (SPLIT, {"eval_strategy": "steps", "eval_steps": 500}),
        ({"eval_meta_path": "a"}, {"eval_strategy": "steps", "eval_steps": 500}),
        ({**SPLIT, "save_steps": 0.1}, {"eval_strategy": "steps", "eval_steps": 0.1}),
        ({**SPLIT, "save_strategy": "epoch"}, {"eval_strategy": "epoch"}),
        ({**SPLIT, "save_strategy": "no"}, {"eval_strategy": "epoch"}),
        ({**SPLIT, "save_strategy": "no", "eval_steps": 5}, {"eval_strategy": "steps"}),
        ({**SPLIT, "eval_steps": 5}, {"eval_strategy": "steps"}),
        ({**SPLIT, "eval_strategy": "steps"}, {"eval_steps": 500}),
        ({**SPLIT, "eval_strategy": "epoch"}, {}),
        (
            {**SPLIT, "metric_for_best_model": "eval_loss/a"},
            {"eval_strategy": "steps", "eval_steps": 500, "greater_is_better": False},
        ),
        (
            STOP,
            {"eval_strategy": "steps", "eval_steps": 500, "greater_is_better": False, **BEST},
        ),
        (
            {**STOP, "eval_steps": 5},
            {"eval_strategy": "steps", "save_steps": 5, "greater_is_better": False, **BEST},
        ),
        (
            {**STOP, "eval_strategy": "epoch"},
            {"save_strategy": "epoch", "greater_is_better": False, **BEST},
        ),
        (
            {**STOP, "save_strategy": "no"},
            {
                "eval_strategy": "epoch",
                "greater_is_better": False,
                "metric_for_best_model": "eval_loss",
            },
        ),
        (
            {**STOP, "load_best_model_at_end": False, "eval_steps": 5},
            {
                "eval_strategy": "steps",
                "greater_is_better": False,
                "metric_for_best_model": "eval_loss",
            },
        ),
    ],
)
def test_what_follows_from_held_out_data(given: dict[str, Any], follows: dict[str, Any]) -> None:
    assert settled(given) == follows
    if given:
        problems = list(evaluation_problems(with_evaluation({**DEFAULTS, **given}, given)))
        assert problems == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({**SPLIT, "eval_meta_path": "a"}, "--val_split and --eval_meta_path: held-out records"),
        ({"eval_strategy": "steps"}, "without --val_split 0.02 or --eval_meta_path: no records"),
        ({"early_stopping_patience": 3}, "patience needs held-out records: give --val_split"),
        ({"load_best_model_at_end": True}, "--load_best_model_at_end needs held-out records"),
        ({"save_strategy": "best"}, "--save_strategy best needs held-out records"),
        ({**SPLIT, "save_strategy": "best"}, "needs --metric_for_best_model eval_loss"),
        ({**SPLIT, **BEST, "save_strategy": "no"}, "--save_strategy no writes none"),
        ({**STOP, "eval_strategy": "steps", "save_strategy": "epoch"}, "Give steps for both"),
        ({**STOP, "eval_strategy": "epoch", "save_steps": 5}, "Give epoch for both"),
        ({**STOP, "eval_steps": 3, "save_steps": 10}, "no multiple of --eval_steps 3: the best"),
        ({**STOP, "eval_steps": 3, "save_steps": 2}, "among those that are evaluated. Try 3."),
        ({**SPLIT, **BEST, "save_only_model": True}, "what --save_only_model leaves out"),
        ({**STOP, "greater_is_better": True}, "all figures of validation are losses"),
        ({**SPLIT, "eval_steps": -5}, "--eval_steps -5: want a number > 0"),
        ({**SPLIT, "eval_steps": 0}, "--eval_steps 0: want a number > 0"),
        ({"val_split_seed": 3}, "--val_split_seed 3 has no effect without --val_split"),
        ({**SPLIT, "early_stopping_patience": 0}, "0: want a number of evaluations >= 1"),
        ({**STOP, "early_stopping_threshold": -1.0}, "threshold -1.0: want a number >= 0"),
        ({**STOP, "early_stopping_threshold": float("nan")}, "threshold nan: want a number >= 0"),
        ({**SPLIT, "early_stopping_threshold": 0.1}, "without --early_stopping_patience"),
    ],
)
def test_contradictions(given: dict[str, Any], problem: str) -> None:
    (told,) = evaluation_problems(with_evaluation({**DEFAULTS, **given}, given))
    assert problem in told
