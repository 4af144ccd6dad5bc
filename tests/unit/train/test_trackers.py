"""``--report_to``: which trackers there are, and what is told of others."""

from __future__ import annotations

import pytest
from transformers import integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from internvl_chat.train import trackers
from internvl_chat.train.trackers import named_trackers, tracker_problems


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trackers that are installed, to be changed."""
    there = ["tensorboard"]
    monkeypatch.setattr(trackers, "_is_available", lambda name: name in there)
    return there


def test_all_trackers_of_transformers_are_known() -> None:
    assert trackers._AVAILABLE.keys() == INTEGRATION_TO_CALLBACK.keys()
    for test, _, _ in trackers._AVAILABLE.values():
        assert callable(getattr(integrations, test))


@pytest.mark.parametrize("name", ["wandb", "mlflow", "comet_ml", "clearml", "swanlab", "neptune"])
def test_what_is_not_installed_is_told_with_its_mend(only: list[str], name: str) -> None:
    (problem,) = tracker_problems([name])
    assert problem.startswith(f"--report_to {name}: {name} is not installed (pip install {name})")
    assert "Installed: tensorboard; supported too: azure_ml, clearml" in problem
    only.append(name)
    assert list(tracker_problems([name])) == []


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ("comet", "comet is no tracker (Did you mean comet_ml?)"),
        ("WandB", "WandB is no tracker (Did you mean wandb?)"),
        (["tensorbord", "wandb"], "(Did you mean tensorboard?); wandb is not installed"),
        ("tensorboard,wandb", "wandb is not installed"),
        (["none", "tensorboard"], "none stands alone"),
        (["all", "tensorboard"], "all stands alone"),
        ("", "names nothing"),
        ([], "names nothing"),
        ("kubeflow", "kubeflow needs KUBEFLOW_TRAINER_SERVER_URL"),
    ],
)
def test_problems(only: list[str], asked: str | list[str], problem: str) -> None:
    (told,) = tracker_problems(asked)
    assert problem in told


@pytest.mark.parametrize("asked", ["all", "none", ["none"], "tensorboard", ["tensorboard"]])
def test_nothing_to_tell(only: list[str], asked: str | list[str]) -> None:
    assert list(tracker_problems(asked)) == []


def test_names_with_commas_and_blanks() -> None:
    assert named_trackers(["wandb,mlflow", "wandb", " clearml "]) == ["wandb", "mlflow", "clearml"]
