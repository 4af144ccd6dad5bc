"""Cards on disk: what they are made of, and ``README.md`` where it is not somebody else's."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from internvl_chat.checkpoint.card import front_matter
from internvl_chat.checkpoint.card.model_card import CardFacts, Relation, card_text
from internvl_chat.checkpoint.card.run_facts import public_name, read_run
from internvl_chat.checkpoint.card.usage import Kind
from internvl_chat.checkpoint.hub_names import cached_snapshot, hub_name
from internvl_chat.files import written_aside

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
_MARK = re.compile(r"\n?<!-- internvl-chat wrote this card: ([0-9a-f]{16}) -->\s*\Z")
_PEFT_HEADLINE = "# Model Card for Model ID"
_PEFT_VERSIONS = re.compile(r"\n#+ Framework versions\s+- PEFT [\w.+]+\s*\Z")
_TRAINING = ("## Data", "## Settings", "## Scores", "## Versions", "## Benchmarks")
_SCORES = "score.json"
_SEVERAL = re.compile(r" \+ | on ")
"""Between the names of parts, or of an adapter and its base, in ``provenance.json``."""


def write_run_card(directory: Path) -> None:
    """Write the card of a finished run, from what it left in OUTPUT_DIR.

    Args:
        directory: OUTPUT_DIR, with the model at its root.
    """
    run = read_run(directory)
    if run is None:
        return
    is_adapter = (directory / "adapter_config.json").is_file()
    facts = CardFacts(
        name=public_name(str(directory.resolve())),
        kind="adapter" if is_adapter else "whole",
        bases=run.bases,
        relation="adapter" if is_adapter else "finetune",
        about=about_model(directory),
        date=_today(),
        run=run,
        inherited=_inherited(_base_folders(directory)),
        results=benchmark_results(directory),
    )
    write_card(directory, facts)


def write_surgery_card(
    directory: Path, source: Path, *, kind: Kind, merged: bool, base: str | None
) -> None:
    """Write the card of what ``export`` or ``merge-lora`` made.

    Args:
        directory: of the new checkpoint.
        source: the checkpoint it was made from.
        kind: of its files.
        merged: whether a LoRA was merged on the way.
        base: folder of an adapter's base.
    """
    run = read_run(source)
    own = front_matter.split(_read_text(source / CARD_NAME))
    bases: tuple[str, ...] = run.bases if run else _named_bases(own[0])
    relation: Relation | None = "finetune" if run else own[0].get("base_model_relation")
    if merged:
        bases = run.bases if run else (public_name(base),) if base else bases
        relation = "merge"
    elif relation not in ("finetune", "merge"):
        bases, relation = (public_name(str(source.resolve())),), None
    folders = [source, *([Path(base)] if base else []), *_base_folders(source)]
    facts = CardFacts(
        name=public_name(str(directory.resolve())),
        kind=kind,
        bases=bases,
        relation=relation,
        about=about_model(directory),
        date=_today(),
        run=run,
        inherited=_inherited(folders),
        former="" if run else _training_part(own[1]),
        provenance=_history(directory),
        results=benchmark_results(source),
    )
    write_card(directory, facts)


def write_adapter_card(directory: Path, source: Path, *, base: Path, is_native: bool) -> None:
    """Write the card of what ``export --adapter-for`` made: PEFT's files alone.

    Args:
        directory: of the new adapter.
        source: the adapter that it was made from.
        base: folder of its base, which says what the model is.
        is_native: whether transformers' own class loads that.
    """
    facts = CardFacts(
        name=public_name(str(directory.resolve())),
        kind="native adapter" if is_native else "bare adapter",
        bases=(public_name(str(base.resolve())),),
        relation="adapter",
        about=about_model(base),
        date=_today(),
        run=read_run(source),
        inherited=_inherited([source, base, *_base_folders(source)]),
        provenance=_history(directory),
        results=benchmark_results(source),
    )
    write_card(directory, facts)


def about_model(directory: Path) -> dict[str, str]:
    """What the configuration says of images and prompts, for people."""
    values = _read_json(directory / "config.json")
    vision = values.get("vision_config") or {}
    size = values.get("force_image_size") or vision.get("image_size")
    if isinstance(size, list):
        size = size[0]
    found = {"tiles": f"{size} x {size} pixels"}
    if values.get("dynamic_image_size"):
        tiles = f"{values.get('min_dynamic_patch')} to {values.get('max_dynamic_patch')}"
        found["tiles"] += f", {tiles} an image"
    for key, what in (("template", "chat template"), ("ps_version", "pixel shuffle")):
        if values.get(key):
            found[what] = str(values[key])
    dtype = values.get("torch_dtype") or values.get("dtype")
    return found | ({"dtype": str(dtype)} if dtype else {})


def benchmark_results(directory: Path) -> dict[str, str]:
    """Scores that ``eval run --out-dir`` left in the model's own folder, by task."""
    found = {}
    for path in sorted(directory.glob(f"**/{_SCORES}"))[:100]:
        score = _read_json(path)
        rules = score.get("rules")
        if not isinstance(rules, dict) or not isinstance(score.get("task"), str):
            continue
        scores = {name: _score(one) for name, one in rules.items() if isinstance(one, dict)}
        told = [f"{name}: {text}" for name, text in scores.items() if text]
        if len(told) > 1 and len(set(scores.values())) == 1:  # all rules agree
            told = [next(iter(scores.values()))]
        found[score["task"]] = f"{'; '.join(told)} ({score.get('n')} questions)"
    return found


def _score(rule: Mapping[str, Any]) -> str:
    """By one set of rules: what the evaluator prints, where that is a line and no table."""
    printed, metrics = str(rule.get("printed") or "").strip(), rule.get("metrics")
    if "\n" not in printed or not isinstance(metrics, dict):
        return printed
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    return ", ".join(f"{key} {value:.4f}" for key, value in numbers.items())


def write_card(directory: Path, facts: CardFacts) -> None:
    """Write ``README.md``, unless there is one that somebody wrote or changed.

    Args:
        directory: of the model.
        facts: for the text.
    """
    path = directory / CARD_NAME
    if path.exists() and not is_replaceable(_read_text(path)):
        logger.info("%s is kept as it is: no model card is written", path)
        return
    text = card_text(facts)
    try:
        with written_aside(path) as staging:
            marked = f"{text}\n<!-- internvl-chat wrote this card: {_digest(text)} -->\n"
            staging.write_text(marked, "utf-8")
    except OSError as err:  # the model is complete without
        logger.warning("%s cannot be written (%s)", path, err.strerror)


def is_replaceable(text: str) -> bool:
    """Whether a card is ours as we wrote it, or PEFT's template as nobody filled it in."""
    match = _MARK.search(text)
    if match is not None:
        return match[1] == _digest(text[: match.start()])
    body = front_matter.split(text)[1].strip()
    if not body.startswith(_PEFT_HEADLINE):
        return not text.strip()
    from huggingface_hub import ModelCard, ModelCardData

    empty = front_matter.split(str(ModelCard.from_template(ModelCardData())))[1].strip()
    return _PEFT_VERSIONS.sub("", f"{body}\n").strip() == empty


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def _base_folders(directory: Path) -> list[Path]:
    """Where what a model was made from lies on this machine."""
    names: list[Any] = [
        _read_json(directory / "adapter_config.json").get("base_model_name_or_path")
    ]
    arguments = _read_json(directory / "arguments.json").get("arguments")
    if isinstance(arguments, dict):
        names += [arguments.get("model_name_or_path"), arguments.get("llm_path")]
    folders = []
    for name in names:
        if isinstance(name, str) and name:
            found = hub_name(name)
            folders.append(Path(name) if found is None else cached_snapshot(found))
    return [folder for folder in folders if folder is not None]


def _inherited(folders: Iterable[Path]) -> dict[str, Any]:
    """Licence and language of the first of them whose card says some."""
    for folder in folders:
        found = front_matter.kept(front_matter.split(_read_text(folder / CARD_NAME))[0])
        if found:
            return found
    return {}


def _named_bases(matter: Mapping[str, Any]) -> tuple[str, ...]:
    found = matter.get("base_model")
    names = found if isinstance(found, list) else [found]
    return tuple(name for name in names if isinstance(name, str))


def _training_part(body: str) -> str:
    """The sections about training of a card of ours; nothing of anybody else's."""
    if _MARK.search(body) is None:
        return ""
    sections = re.split(r"\n(?=## )", _MARK.sub("", body))
    return "\n".join(one for one in sections if one.startswith(_TRAINING)).strip()


def _history(directory: Path) -> tuple[str, ...]:
    found = []
    for entry in _read_json(directory / "provenance.json").get("history") or ():
        names = _SEVERAL.split(str(entry.get("checkpoint", "")))
        of = " + ".join(f"`{public_name(name)}`" for name in names if name)
        code = f", with the code of `{entry['code']}`" if entry.get("code") else ""
        found.append(
            f"`{entry.get('command')}` of {of}{code} (internvl-chat {entry.get('version')})"
        )
    return tuple(found)


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError):
        return ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
