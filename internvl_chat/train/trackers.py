"""Where a run is reported: ``--report_to``, checked before anything is read.

The trainer starts its trackers when the weights are in memory. Whether one is there to be started
is known before: this asks the same functions of transformers that its callbacks ask.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from transformers import integrations

from internvl_chat.model.suggestions import suggest

_AVAILABLE: Final[dict[str, tuple[str, str, str]]] = {
    "azure_ml": ("is_azureml_available", "azureml", "azureml-sdk"),
    "clearml": ("is_clearml_available", "clearml", "clearml"),
    "codecarbon": ("is_codecarbon_available", "codecarbon", "codecarbon"),
    "comet_ml": ("is_comet_available", "comet_ml", "comet_ml"),
    "dagshub": ("is_dagshub_available", "dagshub", "dagshub mlflow"),
    "dvclive": ("is_dvclive_available", "dvclive", "dvclive"),
    "flyte": ("is_flytekit_available", "flytekit", "flytekit"),
    "kubeflow": ("is_kubeflow_available", "", ""),
    "mlflow": ("is_mlflow_available", "mlflow", "mlflow"),
    "neptune": ("is_neptune_available", "neptune", "neptune"),
    "swanlab": ("is_swanlab_available", "swanlab", "swanlab"),
    "tensorboard": ("is_tensorboard_available", "tensorboard", "tensorboard"),
    "trackio": ("is_trackio_available", "trackio", "trackio"),
    "wandb": ("is_wandb_available", "wandb", "wandb"),
}
"""Tracker -> transformers' test, the module it looks for, what to install."""
_WHOLE: Final = ("all", "none")


def named_trackers(report_to: str | Sequence[str] | None) -> list[str]:
    """The names of ``--report_to``, each once: written apart, or with commas between."""
    texts = [report_to] if isinstance(report_to, str) else report_to or []
    names = [name.strip() for text in texts for name in text.split(",")]
    return list(dict.fromkeys(name for name in names if name))


def tracker_problems(report_to: str | Sequence[str] | None) -> Iterator[str]:
    """What keeps a run from reporting there: some sentences with their mend, or nothing."""
    names = named_trackers(report_to)
    problems = [problem for name in names if (problem := _problem(name, names))]
    if not names:
        problems = ["names nothing"]
    if problems:
        there = [name for name in _AVAILABLE if _is_available(name)]
        others = [name for name in _AVAILABLE if name not in there]
        yield (
            f"--report_to {' '.join(names)}: {'; '.join(problems)}. Installed: "
            f"{', '.join(there) or 'none'}; supported too: {', '.join(others)}. "
            "--report_to none reports nowhere."
        )


def _problem(name: str, names: Sequence[str]) -> str | None:
    if name in _WHOLE:
        return f"{name} stands alone" if len(names) > 1 else None
    if name not in _AVAILABLE:
        hint = suggest(name, [*_AVAILABLE, *_WHOLE], write=str)
        return f"{name} is no tracker{f' ({hint.rstrip()})' if hint else ''}"
    return None if _is_available(name) else _missing(name)


def _is_available(name: str) -> bool:
    if name == "tensorboard":  # our own writer is torch's, which knows one of the two packages
        return importlib.util.find_spec("tensorboard") is not None
    test: Callable[[], bool] = getattr(integrations, _AVAILABLE[name][0])
    return bool(test())


def _missing(name: str) -> str:
    _, module, packages = _AVAILABLE[name]
    if not module:
        return f"{name} needs KUBEFLOW_TRAINER_SERVER_URL"
    if importlib.util.find_spec(module) is None:
        return f"{name} is not installed (pip install {packages})"
    return (
        f"{name} is installed, but transformers does not take it: too old, damaged or switched off "
        f"in the environment (pip install --upgrade {packages})"
    )
