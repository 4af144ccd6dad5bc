"""Tiny models and datasets on disk, for tests that train."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from internvl_chat.checkpoint.artifacts import write_companions
from internvl_chat.checkpoint.tokenizer import add_special_tokens
from internvl_chat.model import InternVLChatModel
from tests.support.checkpoints import LLM, tiny_config, tiny_tokenizer
from tests.support.search_path import ROOT, search_path

IMAGE_SIZE = 28
"""Pixels: 4 x 4 patches of 7, 4 tokens an image."""
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (30, 60, 230)}
SYSTEM = "Hi."


def write_tiny_chat_model(directory: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A chat checkpoint of some 10,000 weights with its byte tokenizer; fp32."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    add_special_tokens(tokenizer)
    llm = {"vocab_size": len(tokenizer), **changes.pop("llm", {})}
    model = InternVLChatModel(tiny_config(llm={**LLM, **llm}, **changes))
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    write_companions(model.config, tokenizer, directory)
    return directory


def write_dataset(
    directory: Path, kinds: Sequence[str], *, name: str = "shapes", seed: int = 0
) -> Path:
    """A meta JSON with one dataset, a record per kind: ``text``, ``image``, ``two`` or ``rounds``.

    Lengths differ from record to record; images are plain squares.
    """
    rng = random.Random(seed)
    folder = directory / name
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_record(kind, number, folder, rng)) for number, kind in enumerate(kinds)]
    annotation = folder / "records.jsonl"
    annotation.write_text("\n".join(lines) + "\n", encoding="utf-8")
    entry = {
        "root": str(folder),
        "annotation": str(annotation),
        "data_augment": False,
        "repeat_time": 1,
        "length": len(lines),
    }
    meta = directory / f"{name}.json"
    meta.write_text(json.dumps({name: entry}), encoding="utf-8")
    return meta


def _record(kind: str, number: int, folder: Path, rng: random.Random) -> dict[str, Any]:
    count = {"text": 0, "image": 1, "two": 2, "rounds": 1}[kind]
    colours = [rng.choice(sorted(COLOURS)) for _ in range(count)]
    paths = []
    for place, colour in enumerate(colours):
        paths.append(f"{number}-{place}.png")
        Image.new("RGB", (20 + number % 5, 24), COLOURS[colour]).save(folder / paths[-1])
    answer = " and ".join(colours) if colours else "ok " * rng.randint(1, 9)
    question = "<image>" * count + "\nWhat colour?" if count else "Say " + "o" * rng.randint(1, 20)
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    if kind == "rounds":
        turns += [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes, " + answer}]
    record: dict[str, Any] = {"id": number, "conversations": turns, "system": SYSTEM}
    if paths:
        record["image"] = paths if len(paths) > 1 else paths[0]
    return record


def train_arguments(model: Path, meta: Path, output_dir: Path, **options: Any) -> list[str]:
    """Command line of a small run; ``options`` override and add."""
    values: dict[str, Any] = {
        "model_name_or_path": model,
        "meta_path": meta,
        "output_dir": output_dir,
        "force_image_size": IMAGE_SIZE,
        "max_seq_length": 256,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "seed": 7,
        **options,
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def environment(**extra: str) -> dict[str, str]:
    """Environment of a child process: one thread, this repository importable, no launcher."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LAUNCHER"):
        kept.pop(name, None)
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": search_path(ROOT), **extra}


def torchrun(
    *command: str, processes: int = 2, timeout: float = 1800, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a script (or ``-m module``) under torchrun on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, f"--nproc_per_node={processes}", *command],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(**extra),
        cwd=ROOT,
    )


def run_cases(
    directory: Path, cases: Sequence[Sequence[str]], *, processes: int = 2, timeout: float = 5400
) -> None:
    """Train all cases in one set of processes; see ``tests/distributed/train_worker.py``."""
    path = directory / f"cases-{processes}.json"
    path.write_text(json.dumps([list(case) for case in cases]))
    worker = str(ROOT / "tests/distributed/train_worker.py")
    if processes == 1:
        done = subprocess.run(
            [sys.executable, worker, str(path)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment(),
            cwd=ROOT,
        )
    else:
        done = torchrun(worker, str(path), processes=processes, timeout=timeout)
    assert done.returncode == 0, done.stderr[-6000:]


def logged(output_dir: Path, name: str = "loss") -> list[float]:
    """A figure at every logged step of a run."""
    state = json.loads((output_dir / "trainer_state.json").read_text())
    return [entry[name] for entry in state["log_history"] if name in entry]


def weights(output_dir: Path, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    """Weights of the finished model."""
    from safetensors.torch import load_file

    return load_file(output_dir / file)


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference between two sets of weights of the same names."""
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)
