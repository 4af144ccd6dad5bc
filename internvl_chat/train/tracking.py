"""wandb, trackio, MLflow and SwanLab, told what TensorBoard is told: same figures, same names.

transformers' own callbacks for them name figures in another way, know nothing of our arguments and
begin a new run each time a training goes on. The subclasses here keep what else these do (their
environment variables, artifacts, Spaces). Only rank 0 has them. ``train/trackers.py`` knows whether
a tracker is installed; all others that transformers knows are left to it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers import TrainerControl, TrainerState
from transformers.integrations import (
    MLflowCallback,
    SwanLabCallback,
    TrackioCallback,
    WandbCallback,
)

from internvl_chat.errors import ConfigError
from internvl_chat.train.callbacks import is_summary, tagged
from internvl_chat.train.record import TRACKERS
from internvl_chat.train.trainer_arguments import TrainArguments

logger = logging.getLogger(__name__)

STEP: Final = "train/global_step"
"""The axis of figures where a tracker has none of its own, as transformers names it."""
_USUAL_PROJECT: Final = "huggingface"  # transformers' default of --project
_MOST_PARAMETERS: Final = 100  # of MLflow, at a time


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told about a training."""

    name: str
    """For people."""
    project: str | None
    """Of ``--project``; None if it was not given."""
    arguments: Mapping[str, Any]
    """All of the training, in JSON's types, secrets blanked."""
    record: MutableMapping[str, Any]
    """What ``arguments.json`` and each checkpoint say; the tracker's run is noted in it."""

    def known(self, tracker: str) -> str | None:
        """The tracker's run that this training began with, if it goes on."""
        found = self.record.get(TRACKERS, {}).get(tracker)
        return found if isinstance(found, str) else None

    def keep(self, tracker: str, run: str) -> None:
        """Note the tracker's run, for when the training goes on."""
        self.record.setdefault(TRACKERS, {})[tracker] = run

    def project_or(self, variable: str) -> str | None:
        """``--project``, or else what the tracker's own environment variable says."""
        return self.project or os.environ.get(variable) or None


def tracked_run(train: TrainArguments, record: MutableMapping[str, Any]) -> TrackedRun:
    """Of the arguments; without ``--run_name`` it is called after OUTPUT_DIR and the time.

    Args:
        train: of the run.
        record: what its ``arguments.json`` will say.
    """
    folder = Path(train.output_dir).resolve().name
    return TrackedRun(
        name=train.run_name or f"{folder}-{time.strftime('%Y%m%d-%H%M%S')}",
        project=None if train.project == _USUAL_PROJECT else train.project,
        arguments=record["arguments"],
        record=record,
    )


def _refused(tracker: str, err: Exception, fix: str) -> ConfigError:
    told = str(err).strip().rstrip(".") or type(err).__name__
    return ConfigError(f"does not start: {told}", where=f"--report_to {tracker}", fix=fix)


class WandbWriter(WandbCallback):
    """Weights & Biases: one run, also when the training goes on."""

    def __init__(self, told: TrackedRun) -> None:
        super().__init__()
        self._told = told

    def setup(self, args: Any, state: TrainerState, model: Any, **kwargs: Any) -> None:
        """Begin the run, or go on with it; transformers adds the model's configuration."""
        if self._wandb.run is None:
            told = self._told
            known = {} if "WANDB_RUN_ID" in os.environ else {"id": told.known("wandb")}
            name = {} if "WANDB_NAME" in os.environ and not args.run_name else {"name": told.name}
            try:
                self._wandb.init(
                    project=told.project_or("WANDB_PROJECT") or _USUAL_PROJECT,
                    **{key: value for key, value in (known | name).items() if value},
                    **({"resume": "allow"} if known.get("id") else {}),
                )
            except self._wandb.errors.Error as err:
                fix = "wandb login, or WANDB_MODE=offline to write files that wandb sync sends."
                raise _refused("wandb", err, fix) from err
        super().setup(args, state, model, **kwargs)
        self._wandb.config.update(dict(self._told.arguments), allow_val_change=True)
        self._told.keep("wandb", self._wandb.run.id)

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Figures by step; what sums the run up goes into its summary."""
        if is_summary(logs):
            self._wandb.run.summary.update(dict(logs or {}))
        elif figures := tagged(logs):
            self._wandb.log({**figures, STEP: state.global_step})

    def close(self, *, failed: bool) -> None:
        """Send what is waiting and end the run."""
        if self._wandb.run is not None:
            self._wandb.finish(exit_code=int(failed))


class TrackioWriter(TrackioCallback):
    """Trackio, whose runs are known by their names."""

    def __init__(self, told: TrackedRun) -> None:
        super().__init__()
        self._told = told

    def setup(self, args: Any, state: TrainerState, model: Any, **kwargs: Any) -> None:
        """Begin the run, or go on with it."""
        told, known = self._told, self._told.known("trackio")
        config = {**told.arguments, "model/num_parameters": model.num_parameters()}
        try:
            run = self._trackio.init(
                project=args.project,
                name=known or told.name,
                space_id=args.trackio_space_id,
                resume="allow" if known else "never",
                private=args.hub_private_repo,
                bucket_id=args.trackio_bucket_id,
                config=config,
            )
        except (ValueError, OSError) as err:
            fix = "Without --trackio_space_id it writes to this machine (TRACKIO_DIR)."
            raise _refused("trackio", err, fix) from err
        self._space_id = self._trackio.context_vars.current_space_id.get()
        self._initialized = True
        told.keep("trackio", run.name)

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Figures by step; the summary is in train_results.json."""
        if figures := {} if is_summary(logs) else tagged(logs):
            self._trackio.log(figures, step=state.global_step)

    def close(self, *, failed: bool) -> None:
        """Write what is waiting; transformers has done so at a training's end."""
        if self._initialized:
            self._initialized = False
            self._trackio.finish()


class MlflowWriter(MLflowCallback):
    """MLflow, whose parameters cannot be said twice."""

    def __init__(self, told: TrackedRun) -> None:
        super().__init__()
        self._told = told

    def setup(self, args: Any, state: TrainerState, model: Any) -> None:
        """Begin the run, or go on with it; transformers logs its parameters as they begin."""
        told, known = self._told, self._told.known("mlflow")
        known = None if "MLFLOW_RUN_ID" in os.environ else known
        try:
            if self._ml_flow.active_run() is None:
                experiment = told.project_or("MLFLOW_EXPERIMENT_NAME")
                if experiment is not None and known is None:
                    self._ml_flow.set_experiment(experiment)
                run = self._ml_flow.start_run(run_id=known, run_name=None if known else told.name)
            else:
                run = self._ml_flow.active_run()
        except self._ml_flow.exceptions.MlflowException as err:
            fix = "MLFLOW_TRACKING_URI says where it writes; sqlite:///mlflow.db is a file here."
            raise _refused("mlflow", err, fix) from err
        if known is None and "MLFLOW_RUN_ID" not in os.environ:
            super().setup(args, state, model)
            self._log_arguments(args, model)
        self._auto_end_run = self._initialized = True
        told.keep("mlflow", run.info.run_id)

    def _log_arguments(self, args: Any, model: Any) -> None:
        """Ours, beside those that transformers has logged."""
        said = {**model.config.to_dict(), **args.to_dict()}
        own = {name: value for name, value in self._told.arguments.items() if name not in said}
        own = {n: v for n, v in own.items() if len(str(v)) <= self._MAX_PARAM_VAL_LENGTH}
        names = list(own)
        for first in range(0, len(names), _MOST_PARAMETERS):
            part = names[first : first + _MOST_PARAMETERS]
            self._ml_flow.log_params({name: own[name] for name in part})

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Figures by step, in the characters that MLflow takes."""
        figures = {} if is_summary(logs) else tagged(logs)
        named = {_mlflow_name(name): value for name, value in figures.items()}
        if named:
            self._ml_flow.log_metrics(named, step=state.global_step)

    def close(self, *, failed: bool) -> None:
        """End the run; transformers has done so at a training's end."""
        if self._initialized and self._ml_flow.active_run() is not None:
            self._ml_flow.end_run("FAILED" if failed else "FINISHED")


def _mlflow_name(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-. :/") else "_" for c in name)


class SwanlabWriter(SwanLabCallback):
    """SwanLab: one experiment, also when the training goes on."""

    def __init__(self, told: TrackedRun) -> None:
        super().__init__()
        self._told = told

    def setup(self, args: Any, state: TrainerState, model: Any, **kwargs: Any) -> None:
        """Begin the experiment, or go on with it; transformers adds the model's configuration."""
        told = self._told
        known = os.environ.get("SWANLAB_RUN_ID") or told.known("swanlab")
        goes_on = {"id": known, "resume": os.environ.get("SWANLAB_RESUME", "allow")}
        if not self._swanlab.has_run():
            try:
                self._swanlab.init(
                    project=told.project_or("SWANLAB_PROJECT"),
                    experiment_name=told.name,
                    **(goes_on if known else {}),
                )
            except (ValueError, RuntimeError, OSError) as err:
                fix = "swanlab login, or SWANLAB_MODE=offline to write files only."
                raise _refused("swanlab", err, fix) from err
        super().setup(args, state, model, **kwargs)
        self._swanlab.config.update(dict(told.arguments))
        told.keep("swanlab", str(self._swanlab.get_run().id))

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Figures by step; the summary is in train_results.json."""
        if figures := {} if is_summary(logs) else tagged(logs):
            self._swanlab.log(figures, step=state.global_step)

    def close(self, *, failed: bool) -> None:
        """Send what is waiting and end the experiment."""
        if self._initialized and self._swanlab.has_run():
            self._swanlab.finish(**({"state": "crashed"} if failed else {}))


Writer = WandbWriter | TrackioWriter | MlflowWriter | SwanlabWriter
WRITERS: Final[dict[str, Callable[[TrackedRun], Writer]]] = {
    "wandb": WandbWriter,
    "trackio": TrackioWriter,
    "mlflow": MlflowWriter,
    "swanlab": SwanlabWriter,
}
"""Tracker -> what writes to it."""


def tracker_writers(names: Sequence[str], told: TrackedRun) -> list[Writer]:
    """Those of the trackers that are written to from here; for rank 0.

    Args:
        names: of ``--report_to``.
        told: what they say of the training.
    """
    return [WRITERS[name](told) for name in names if name in WRITERS]
