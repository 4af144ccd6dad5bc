"""A card's text: pure, from facts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from internvl_chat.checkpoint.card import front_matter
from internvl_chat.checkpoint.card.run_facts import RunFacts
from internvl_chat.checkpoint.card.usage import Kind, usage

Relation = Literal["finetune", "adapter", "merge"]
_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)
"""What a hub takes for the name of a model or a data set."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card is made of."""

    name: str
    kind: Kind
    bases: tuple[str, ...]
    relation: Relation | None
    """To the bases; ``None`` for the same model in other files."""
    about: Mapping[str, str]
    """Of the model: image size, template and the like."""
    date: str
    run: RunFacts | None = None
    inherited: Mapping[str, Any] = field(default_factory=dict)
    """Front matter to keep: licence, language."""
    former: str = ""
    """Sections about the training of a card that this one follows."""
    provenance: Sequence[str] = ()
    """What was done with the checkpoint, oldest first."""
    results: Mapping[str, str] = field(default_factory=dict)
    """Of benchmarks, by task."""


def card_text(facts: CardFacts) -> str:
    """The whole of ``README.md``, but for the mark under it."""
    parts = [
        f"# {facts.name}",
        _opening(facts),
        _table({**facts.about, "written": facts.date}, "", ""),
    ]
    parts.append(f"## How to use it\n\n{usage(facts.kind, facts.name, _base(facts))}")
    if facts.run is not None:
        parts += training_sections(facts.run)
    elif facts.former:
        parts.append(facts.former)
    if facts.results:
        parts.append("## Benchmarks\n\n" + _table(facts.results, "task", "score"))
    if facts.provenance:
        parts.append(
            "## What was done to it\n\n" + "\n".join(f"1. {one}" for one in facts.provenance)
        )
    return front_matter.joined(_matter(facts), "\n\n".join(parts))


def _base(facts: CardFacts) -> str:
    return facts.bases[0] if facts.bases else "its base"


def _opening(facts: CardFacts) -> str:
    bases = " + ".join(f"`{base}`" for base in facts.bases)
    what = {
        "finetune": f"A vision-language model (InternVL-Chat), fine-tuned from {bases}",
        "adapter": f"A LoRA adapter for {bases}, a vision-language model (InternVL-Chat)",
        "merge": f"A vision-language model (InternVL-Chat): a LoRA adapter merged into {bases}",
        None: f"A vision-language model (InternVL-Chat): {bases or 'a checkpoint'} in other files",
    }[facts.relation]
    return f"{what}, written by internvl-chat."


def _matter(facts: CardFacts) -> dict[str, Any]:
    is_adapter = facts.relation == "adapter"
    named = [base for base in facts.bases if _ID.fullmatch(base)]
    values: dict[str, Any] = dict(facts.inherited)
    values["library_name"] = "peft" if is_adapter else "transformers"
    values["pipeline_tag"] = "image-text-to-text"
    if named and len(named) == len(facts.bases):
        values["base_model"] = named[0] if len(named) == 1 else named
        if facts.relation is not None:
            values["base_model_relation"] = facts.relation
    datasets = [one["name"] for one in (facts.run.datasets if facts.run else ())]
    datasets = [name for name in datasets if _ID.fullmatch(str(name))]
    if datasets:
        values["datasets"] = datasets
    tags = ["internvl", "internvl-chat", "vision-language"]
    values["tags"] = [
        *tags,
        *(["custom_code"] if not facts.kind.startswith("native") else []),
        *(["lora"] if is_adapter or (facts.run is not None and facts.run.is_lora) else []),
    ]
    return values


def training_sections(run: RunFacts) -> list[str]:
    """Data, settings, scores and versions, a section each."""
    further = f" It went on from the adapter `{run.continued}`." if run.continued else ""
    parts = ["## Data\n\n" + _data(run), f"## Settings\n\nTrained: {run.parts}.{further}\n\n"]
    parts[-1] += _table(run.settings, "argument", "value")
    for stretch, others in run.earlier:
        told = "; ".join(f"`{key}` {value}" for key, value in others.items()) or "the same"
        parts[-1] += f"\n\nOtherwise {stretch}: {told}."
    if run.scores:
        parts.append("## Scores\n\n" + _table(run.scores, "", ""))
    return [*parts, "## Versions\n\n" + _table(run.versions, "", "")]


def _data(run: RunFacts) -> str:
    text = _datasets(run.datasets) if run.datasets else "Not recorded."
    split = run.settings.get("val_split", "0")
    if split not in ("0", "0.0"):
        text += f"\n\nHeld out of them, for the validation loss: `--val_split {split}`."
    if run.held_out:
        text += "\n\nHeld out, for the validation loss:\n\n" + _datasets(run.held_out)
    if run.skipped is not None:
        told = ", ".join(f"{name} {count}" for name, count in run.skipped.items())
        text += f"\n\nRecords skipped as unfit: {told or 'none'}."
    return text


def _datasets(datasets: Sequence[Mapping[str, Any]]) -> str:
    usual = {"repeat_time": 1, "weight": 1.0, "max_samples": None, "max_dynamic_patch": None}
    keys = [
        key
        for key in ("name", "records", "repeat_time", "max_samples", "weight", "max_dynamic_patch")
        if key in ("name", "records", "repeat_time")
        or any(one.get(key) != usual[key] for one in datasets)
    ]
    titles = {"name": "dataset"}
    rows = [[titles.get(key, key) for key in keys], ["---"] * len(keys)]
    rows += [["" if one.get(key) is None else str(one[key]) for key in keys] for one in datasets]
    return "\n".join(_row(row) for row in rows)


def _table(values: Mapping[str, str], *titles: str) -> str:
    rows = [list(titles), ["---"] * 2, *([key, value] for key, value in values.items())]
    return "\n".join(_row(row) for row in rows)


def _row(cells: Sequence[str]) -> str:
    """Cells may hold anything; a bar or a new line would end one."""
    safe = (re.sub(r"\s+", " ", cell).replace("|", r"\|").replace("<", "&lt;") for cell in cells)
    return f"| {' | '.join(safe)} |"
