"""What a card says of a run, out of the files that the run left beside its model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

from internvl_chat.checkpoint.hub_names import cached_snapshot, hub_name, name_of_snapshot

RECORD, RESULTS, STATE = "arguments.json", "train_results.json", "trainer_state.json"
ADAPTER_CONFIG: Final = "adapter_config.json"  # as model/adapter.py, which imports torch
_MODELS: Final = ("model_name_or_path", "vision_path", "mlp_path", "llm_path")
_ALWAYS: Final = (
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "lr_scheduler_type",
    "weight_decay",
    "optim",
    "max_seq_length",
    "loss_reduction",
    "bf16",
    "seed",
)
"""Arguments that are shown whether they were given or not."""
_LEFT_OUT: Final = re.compile(
    r"_(path|dir|paths|token)$|^(hub_|logging_|log_|report_to|run_name|dataloader_|save_|project$)"
    r"|^(command|resume_from_checkpoint|overwrite_output_dir|push_to_hub|disable_tqdm|ddp_timeout)$"
    r"|^(use_cpu|local_rank|trackio_|do_train|metric_for)"
)
"""Of a machine, or of no effect on the model."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A training as its files tell it."""

    bases: tuple[str, ...]
    """What it started from, as it is publicly named."""
    parts: str
    """What was trained."""
    continued: str | None
    """The adapter that it went on with, as it is publicly named."""
    is_lora: bool
    settings: dict[str, str]
    earlier: tuple[tuple[str, dict[str, str]], ...]
    """Stretches of steps before that were told otherwise, and what."""
    datasets: tuple[dict[str, Any], ...]
    held_out: tuple[dict[str, Any], ...]
    skipped: dict[str, int] | None
    """Records by dataset; ``None`` where that is not known."""
    scores: dict[str, str]
    versions: dict[str, str]


def public_name(name: str) -> str:
    """A model's name without anything of this machine: its id on the hub, or its last folder."""
    found = name_of_snapshot(name) or hub_name(name)
    if found is not None and (found.commit or name.startswith("hf://")):
        return found.repo
    return PurePath(str(name).rstrip("/\\")).name or "model"


def read_run(directory: Path) -> RunFacts | None:
    """The facts of the run whose model, or checkpoint, lies in a directory; None without any."""
    record, state = (_read(directory / name) for name in (RECORD, STATE))
    results = _read(directory / RESULTS)
    former = record.get("of_finished_model")  # a run that goes on has not replaced the model yet
    record = former if isinstance(former, dict) else record
    arguments, given = (record.get(key) for key in ("arguments", "given"))
    if not isinstance(arguments, dict) or not isinstance(given, dict):
        return None
    contents = record.get("contents")
    contents = contents if isinstance(contents, dict) else {}
    skipped = results.get("bad_samples")
    adapter = _read(directory / ADAPTER_CONFIG)
    base = _adapter_base(adapter)
    models = tuple(public_name(arguments[key]) for key in _MODELS if arguments.get(key))
    # A checkpoint has no results, and holds the weights of its own step.
    is_best = bool(results and arguments.get("load_best_model_at_end"))
    return RunFacts(
        bases=models if base is None else (base,),
        parts=_parts(arguments, adapter.get("modules_to_save")),
        continued=None if base is None else _continued(arguments.get("model_name_or_path")),
        is_lora=bool(arguments.get("use_llm_lora") or arguments.get("use_backbone_lora")),
        settings=_settings(record, arguments, given),
        earlier=_earlier(record, arguments),
        datasets=_datasets(contents.get("meta_path")),
        held_out=_datasets(contents.get("eval_meta_path")),
        skipped=dict(skipped) if isinstance(skipped, dict) else None,
        scores=_scores(state, results, is_best=is_best),
        versions=_versions(record),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _adapter_base(adapter: Mapping[str, Any]) -> str | None:
    """What an adapter's configuration names as its base, which need not be what a run began with.

    That may have been an adapter, too.
    """
    named, revision = (adapter.get(key) for key in ("base_model_name_or_path", "revision"))
    if not isinstance(named, str) or not named:
        return None
    return public_name(f"{named}@{revision}" if revision and "@" not in named else named)


def _continued(start: Any) -> str | None:
    """The adapter that a run began with; None where that was none, or is gone."""
    if not isinstance(start, str):
        return None
    found = hub_name(start)
    folder = Path(start) if found is None else cached_snapshot(found)
    is_adapter = folder is not None and (folder / ADAPTER_CONFIG).is_file()
    return public_name(start) if is_adapter else None


def _parts(arguments: Mapping[str, Any], whole: Any) -> str:
    """What was trained; ``whole`` are an adapter's ``modules_to_save``."""
    found = []
    for what, frozen, rank in (
        ("vision tower", "freeze_backbone", "use_backbone_lora"),
        ("projector", "freeze_mlp", None),
        ("language model", "freeze_llm", "use_llm_lora"),
    ):
        if rank and arguments.get(rank):
            found.append(f"{what} (LoRA of rank {arguments[rank]})")
        elif not arguments.get(frozen):
            found.append(what)
    found += [f"`{name}` (whole, beside the LoRA)" for name in whole or ()]
    return ", ".join(found) or "nothing"


def _settings(
    record: Mapping[str, Any], arguments: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, str]:
    shown = {key: arguments.get(key) for key in _ALWAYS if key in arguments}
    if (shown.get("max_steps") or -1) > 0:
        shown.pop("num_train_epochs", None)
    else:
        shown.pop("max_steps", None)
    shown |= {key: arguments.get(key, value) for key, value in given.items()}
    found = {key: plain(value) for key, value in shown.items() if is_shown(key)}
    batch, ranks = record.get("global_batch_size"), record.get("world_size")
    if batch:
        found["global batch size"] = f"{batch} samples on {ranks} process{'es'[: 2 * (ranks != 1)]}"
    return found


def is_shown(key: str) -> bool:
    """Whether an argument is of the model and not of the machine."""
    return _LEFT_OUT.search(key) is None


def plain(value: Any) -> str:
    """A value for a table: files by their name alone."""
    if isinstance(value, dict):
        return "given in the run's file"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    text = str(value)
    return PurePath(text).name if re.search(r"[/\\]", text) else text


def _earlier(
    record: Mapping[str, Any], arguments: Mapping[str, Any]
) -> tuple[tuple[str, dict[str, str]], ...]:
    """What the steps before this stretch were told, where it was otherwise."""
    told = [one for one in record.get("earlier") or () if isinstance(one, dict)]
    starts = [one.get("from_step", 0) for one in told] + [record.get("from_step", 0)]
    found = []
    for number, one in enumerate(told):
        before = one.get("arguments") or {}
        others = {
            key: plain(value)
            for key, value in before.items()
            if is_shown(key) and key in arguments and arguments[key] != value
        }
        if one.get("global_batch_size") != record.get("global_batch_size"):
            others["global batch size"] = plain(one.get("global_batch_size"))
        found.append((f"up to step {starts[number + 1]}", others))
    return tuple(found)


def _datasets(entries: Any) -> tuple[dict[str, Any], ...]:
    keys = ("name", "records", "repeat_time", "max_samples", "weight", "max_dynamic_patch")
    return tuple(
        {key: entry.get(key) for key in keys} for entry in entries or () if isinstance(entry, dict)
    )


def _scores(
    state: Mapping[str, Any], results: Mapping[str, Any], *, is_best: bool
) -> dict[str, str]:
    """Losses at the step whose weights these are."""
    log = [entry for entry in state.get("log_history") or () if isinstance(entry, dict)]
    last = state.get("global_step") or results.get("global_step")
    best = state.get("best_global_step") if is_best and state.get("best_model_checkpoint") else None
    step = best or last
    if step is None:
        return {}
    found = {"steps": f"{last}"}
    if best:
        found["weights"] = f"those of step {best}, which validated best"
    for key, what in (("loss", "training loss"), ("eval_loss", "validation loss")):
        entries = [one for one in log if key in one and one.get("step", 0) <= step]
        if not entries:
            continue
        at = entries[-1]
        found[what] = f"{at[key]:.4f} at step {at.get('step')}"
        apart = {name: value for name, value in at.items() if name.startswith(f"{key}/")}
        for name, value in apart.items() if len(apart) > 1 else ():
            found[f"{what}, {name.removeprefix(f'{key}/')}"] = f"{value:.4f}"
    if isinstance(results.get("stopped_early"), str):
        found["ended"] = results["stopped_early"]
    return found


def _versions(record: Mapping[str, Any]) -> dict[str, str]:
    found = dict(record.get("versions") or {})
    revision = record.get("git_revision")
    if isinstance(revision, str):
        changed = " with local changes" if revision.endswith("+") else ""
        found["commit"] = f"{revision.rstrip('+')[:12]}{changed}"
    return {name: str(version) for name, version in found.items()}
