"""Sections ``losses`` and ``figures``: three short trainings, run as a user runs them."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.pins.batches import change_meta, paint
from tests.support.training import (
    ROOT,
    environment,
    train_arguments,
    write_dataset,
    write_tiny_chat_model,
)

KINDS = ("text", "image", "two", "rounds", "text", "image") * 4
ZERO = ROOT / "shell/deepspeed"
TRAINER = str(ROOT / "internvl_chat/train/finetune.py")
COMMON: dict[str, Any] = {
    "max_steps": 20,
    "save_strategy": "steps",
    "save_steps": 10,
    "save_total_limit": 1,
    "learning_rate": 3e-3,
    "weight_decay": 0.05,
    "warmup_steps": 3,
    "lr_scheduler_type": "cosine",
    "train_sampling_strategy": "group_by_length",
    "data_seed": 11,
}
RUNS: dict[str, dict[str, Any]] = {
    "zero3": {
        "deepspeed": ZERO / "zero_stage3_config.json",
        "drop_path_rate": 0.1,
        "grad_checkpoint": True,
        "report_to": "tensorboard",
    },
    "plain": {
        "gradient_accumulation_steps": 2,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "max_dynamic_patch": 3,
        "loss_reduction": "square",
        "eval_steps": 10,
        "per_device_eval_batch_size": 2,
    },
    "lora": {
        "deepspeed": ZERO / "zero_stage2_config.json",
        "use_packed_ds": True,
        "max_packed_tokens": 256,
        "per_device_train_batch_size": 1,
        "freeze_llm": True,
        "freeze_backbone": True,
        "use_llm_lora": 4,
        "learning_rate": 1e-2,
    },
}
"""What differs from ``COMMON``; ``plain`` runs in one process, the others in two."""

Run = dict[str, Any]
TIMES = ("samples_per_second", "tokens_per_second", "data_wait_share", "step_seconds")
LOSSES = ("loss", "grad_norm", "eval_loss", "eval_loss/held_out", "train_loss")
STEADY = ("step", "epoch", "learning_rate", "padding_share")


@functools.cache
def trained() -> dict[str, Run]:
    """What the three trainings leave, read once a process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        model = write_tiny_chat_model(folder / "model")
        meta = write_dataset(folder / "data", KINDS)
        held_out = write_dataset(folder / "data", KINDS[:5], name="held_out", seed=5)
        for data in ("shapes", "held_out"):
            paint(folder / "data" / data)
        change_meta(meta, data_augment=True)
        for run, options in RUNS.items():
            if "eval_steps" in options:
                options = {**options, "eval_meta_path": held_out}
            argv = train_arguments(model, meta, folder / run, **{**COMMON, **options})
            train(argv, processes=1 if run == "plain" else 2, cache=folder / "cache")
        return {run: _read(folder / run, folder) for run in RUNS}


def train(argv: Sequence[str], *, processes: int, cache: Path) -> str:
    """Run finetune.py, under torchrun if in several processes, without a GPU; returns stderr."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*launcher, TRAINER, *argv],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment(CUDA_VISIBLE_DEVICES="", INTERNVL_CHAT_CACHE=str(cache)),
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stderr


def losses_section() -> dict[str, Any]:
    """By run: every loss and gradient norm."""
    return {
        run: {name: series(left["log"], name) for name in LOSSES} for run, left in trained().items()
    }


def figures_section() -> dict[str, Any]:
    """By run: what is reported, and what lies in OUTPUT_DIR."""
    return {run: _figures(left) for run, left in trained().items()}


def series(log: list[dict[str, Any]], name: str) -> list[float]:
    """A figure at every step that has it."""
    return [entry[name] for entry in log if name in entry]


def _read(output_dir: Path, places: Path) -> Run:
    def load(name: str) -> Any:
        text = (output_dir / name).read_text()
        return json.loads(text.replace(str(places), "<RUN>").replace(str(ROOT), "<ROOT>"))

    state = load("trainer_state.json")
    return {
        "log": state.pop("log_history"),
        "state": state,
        "arguments": load("arguments.json"),
        "results": load("train_results.json"),
        "status": load("status.json"),
        "tags": _tensorboard_tags(output_dir / "runs"),
        "files": sorted(_name(path, output_dir) for path in output_dir.rglob("*")),
        "position": {
            path.parent.name: json.loads(path.read_text())
            for path in sorted(output_dir.glob("checkpoint-*/data_position.json"))
        },
    }


def _name(path: Path, output_dir: Path) -> str:
    """Without time, host and process."""
    name = path.relative_to(output_dir).as_posix() + "/" * path.is_dir()
    name = re.sub(r"events\.out\.tfevents\.[^/]*", "events.out.tfevents.*", name)
    return re.sub(r"^runs/[^/]+/", "runs/*/", name)


def _tensorboard_tags(directory: Path) -> dict[str, list[str]]:
    if not directory.is_dir():
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[str]] = {}
    for path in sorted(directory.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(path))
        events.Reload()
        for kind, tags in events.Tags().items():
            if isinstance(tags, list) and tags:
                found[kind] = sorted({*found.get(kind, []), *tags})
    return found


def _figures(left: Run) -> dict[str, Any]:
    log, arguments = left["log"], left["arguments"]
    steps = [entry for entry in log if "step_seconds" in entry]
    return {
        "keys": _runs_of_keys(log),
        **{name: series(log, name) for name in STEADY},
        **{
            name.removesuffix("_per_second"): [
                round(entry[name] * entry["step_seconds"]) for entry in steps
            ]
            for name in TIMES
            if name.endswith("_per_second")
        },
        "state": left["state"],
        "status": list(left["status"]),
        "exit_code": left["status"]["exit_code"],
        "train_results": list(left["results"]),
        "arguments.json": list(arguments),
        "versions": [name for name in arguments["versions"] if name != "flash-attn"],
        "arguments": arguments["arguments"],
        "given": arguments["given"],
        "tensorboard": left["tags"],
        "data_position": left["position"],
        "files": left["files"],
    }


def _runs_of_keys(log: list[dict[str, Any]]) -> list[str]:
    """Names that log entries have, in their order; equal neighbours once with their number."""
    found: list[tuple[str, int]] = []
    for names in (" ".join(sorted(entry)) for entry in log):
        count = found.pop()[1] if found and found[-1][0] == names else 0
        found.append((names, count + 1))
    return [f"{count} x {names}" for names, count in found]
