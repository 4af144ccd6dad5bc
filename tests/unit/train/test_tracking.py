"""What trackers are told: our names, our arguments, one run for a training that goes on."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from transformers import TrainerState
from transformers.integrations import integration_utils

from internvl_chat.errors import ConfigError
from internvl_chat.train.finetune import main
from internvl_chat.train.parsing import parse
from internvl_chat.train.resuming import find_start
from internvl_chat.train.tracking import WRITERS, TrackedRun, tracked_run, tracker_writers
from internvl_chat.train.trainer_arguments import TrainArguments
from tests.support.training import train_arguments, write_dataset, write_tiny_chat_model

LOGS = {"loss": 2.5, "learning_rate": 1e-5, "learning_rate/vision": 1e-6, "mfu": 0.5, "note": "x"}
FIGURES = {
    "train/loss": 2.5,
    "update/learning_rate": 1e-5,
    "update/learning_rate/vision": 1e-6,
    "usage/mfu": 0.5,
}
SUMMARY = {"train_runtime": 9.0, "train_loss": 2.0}
STATE = TrainerState(global_step=3, logging_steps=1)


@pytest.fixture(autouse=True)
def own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The entry point sets logging up for a process of its own; no tracker's settings but ours."""
    for name in ("WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_NAME", "MLFLOW_RUN_ID", "SWANLAB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def run_of(tmp_path: Path, trackers: dict[str, str] | None = None, **given: Any) -> TrackedRun:
    train = TrainArguments(output_dir=str(tmp_path / "night"), report_to=[], use_cpu=True, **given)
    record: dict[str, Any] = {"arguments": {"meta_path": "m.json", "max_steps": 4}}
    return tracked_run(train, record | ({"trackers": trackers} if trackers else {}))


class Model:
    """As much of one as the trackers look at."""

    config = SimpleNamespace(to_dict=lambda: {"template": "Hermes-2"})

    def num_parameters(self) -> int:
        return 7


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch, **parts: Any) -> Any:
    """A module in a tracker's place that keeps what it is called with."""
    module = MagicMock(**parts)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(integration_utils, f"is_{name}_available", lambda: True)
    return module


def wandb(monkeypatch: pytest.MonkeyPatch, **parts: Any) -> Any:
    module = stand_in("wandb", monkeypatch, run=None, **parts)
    module.errors.Error = type("Error", (Exception,), {})

    def init(**settings: Any) -> None:
        module.run = MagicMock(id=settings.get("id", "new1"))

    module.init.side_effect = init
    below = ModuleType("wandb.sdk.lib.config_util")
    below.ConfigError = type("ConfigError", (Exception,), {})  # type: ignore[attr-defined]
    for path in ("wandb.sdk", "wandb.sdk.lib", "wandb.sdk.lib.config_util"):
        monkeypatch.setitem(sys.modules, path, below)
    return module


def begin(writer: Any, told: TrackedRun, **given: Any) -> None:
    args = SimpleNamespace(
        **{"run_name": None, "output_dir": "night", "project": "huggingface", **given},
        to_dict=lambda: {"max_steps": 4},
        **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "hub_private_repo")),
        resume_from_checkpoint=None,
    )
    writer.on_train_begin(args, STATE, None, model=Model())
    writer.on_log(args, STATE, None, logs=LOGS, model=Model())
    writer.on_log(args, STATE, None, logs=SUMMARY, model=Model())
    assert told.record["trackers"]


def test_the_name_is_the_folders_and_the_time(tmp_path: Path) -> None:
    told = run_of(tmp_path)
    assert told.name.startswith("night-20")
    assert told.project is None
    told = run_of(tmp_path, run_name="mine", project="pets")
    assert (told.name, told.project) == ("mine", "pets")
    assert tracker_writers(["tensorboard", "comet_ml"], told) == []


@pytest.mark.parametrize("known", [None, "abc"])
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str | None) -> None:
    module = wandb(monkeypatch)
    told = run_of(tmp_path, {"wandb": known} if known else None, project="pets")
    (writer,) = tracker_writers(["wandb"], told)
    begin(writer, told)
    goes_on = {"id": known, "resume": "allow"} if known else {}
    module.init.assert_called_once_with(project="pets", name=told.name, **goes_on)
    module.log.assert_called_once_with({**FIGURES, "train/global_step": 3})
    module.run.summary.update.assert_called_once_with(SUMMARY)
    assert module.config.update.call_args.args == (told.arguments,)
    assert told.record["trackers"] == {"wandb": known or "new1"}
    writer.close(failed=True)
    module.finish.assert_called_once_with(exit_code=1)


def test_wandb_is_asked_by_its_own_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = wandb(monkeypatch)
    for name in ("PROJECT", "RUN_ID", "NAME"):
        monkeypatch.setenv(f"WANDB_{name}", "theirs")
    told = run_of(tmp_path, {"wandb": "abc"})
    begin(WRITERS["wandb"](told), told)
    module.init.assert_called_once_with(project="theirs")


def test_a_tracker_that_does_not_start_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = wandb(monkeypatch)
    module.init.side_effect = module.errors.Error("No API key configured.")
    told = run_of(tmp_path)
    with pytest.raises(ConfigError) as caught:
        begin(WRITERS["wandb"](told), told)
    assert str(caught.value).startswith("--report_to wandb: does not start: No API key configured.")
    assert "WANDB_MODE=offline" in str(caught.value)


@pytest.mark.parametrize("known", [None, "abc"])
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str | None) -> None:
    module = stand_in("mlflow", monkeypatch, __version__="3.0.0")
    module.active_run.return_value = None
    module.exceptions.MlflowException = type("MlflowException", (Exception,), {})
    module.utils.validation.MAX_PARAM_VAL_LENGTH = 100
    module.utils.validation.MAX_PARAMS_TAGS_PER_BATCH = 100

    def start(**settings: Any) -> Any:
        run = MagicMock()
        run.info.run_id = settings["run_id"] or "new1"
        module.active_run.return_value = run
        return run

    module.start_run.side_effect = start
    told = run_of(tmp_path, {"mlflow": known} if known else None, project="pets")
    (writer,) = tracker_writers(["mlflow"], told)
    begin(writer, told)
    name = None if known else told.name
    module.start_run.assert_called_once_with(run_id=known, run_name=name)
    assert module.set_experiment.call_count == (known is None)
    module.log_metrics.assert_called_once_with(FIGURES, step=3)
    logged = {k: v for call in module.log_params.call_args_list for k, v in call.args[0].items()}
    # A second time with another value would be an error of MLflow's.
    wanted = {"template": "Hermes-2", "max_steps": 4, "meta_path": "m.json"}
    assert logged == ({} if known else wanted)
    assert told.record["trackers"] == {"mlflow": known or "new1"}
    writer.close(failed=False)
    module.end_run.assert_called_once_with("FINISHED")


@pytest.mark.parametrize("known", [None, "abc"])
def test_swanlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str | None) -> None:
    module = stand_in("swanlab", monkeypatch)
    module.has_run.side_effect = [False, True]
    module.get_run.return_value.id = known or "new1"
    told = run_of(tmp_path, {"swanlab": known} if known else None, run_name="mine")
    (writer,) = tracker_writers(["swanlab"], told)
    begin(writer, told)
    goes_on = {"id": known, "resume": "allow"} if known else {}
    module.init.assert_called_once_with(project=None, experiment_name="mine", **goes_on)
    module.log.assert_called_once_with(FIGURES, step=3)
    assert told.record["trackers"] == {"swanlab": known or "new1"}
    writer.close(failed=True)
    module.finish.assert_called_once_with(state="crashed")


def test_trackio_keeps_one_run_of_a_training_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real one, whose database is read back."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    model = write_tiny_chat_model(tmp_path / "model")
    meta = write_dataset(tmp_path / "data", ("text", "image", "two", "rounds"))
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "report_to": "trackio"}
    argv = train_arguments(model, meta, tmp_path / "out", **options)
    argv += ["--project", "pets", "--vision_lr", "1e-5"]
    assert main(argv) == 0
    assert main([*argv, "--max_steps", "2"]) == 0
    (run,) = SQLiteStorage.get_runs("pets")
    assert run.startswith("out-20")
    record = json.loads((tmp_path / "out/arguments.json").read_text())
    assert record["trackers"] == {"trackio": run}
    logs = SQLiteStorage.get_logs("pets", run)
    assert [entry["step"] for entry in logs] == [1, 2]
    groups = {name.partition("/")[0] for name in logs[0]} - {"step", "timestamp"}
    assert groups == {"train", "update", "usage"}
    assert logs[1]["update/learning_rate/vision"] == 1e-5
    config = SQLiteStorage.get_run_config("pets", run) or {}
    known = ("meta_path", "vision_lr", "max_steps", "report_to")
    assert [config[name] for name in known] == [str(meta), 1e-5, 2, ["trackio"]]
    more = ["--max_steps", "3"]
    start = find_start(parse([*argv, *more]), world_size=1, global_batch_size=2)
    assert start.record["trackers"] == {"trackio": run}
    # What goes on from another folder's checkpoint is a training of its own.
    checkpoint = ["--resume_from_checkpoint", str(tmp_path / "out/checkpoint-1")]
    elsewhere = [*argv, *more, *checkpoint, "--output_dir", str(tmp_path / "other")]
    start = find_start(parse(elsewhere), world_size=1, global_batch_size=2)
    assert "trackers" not in start.record
