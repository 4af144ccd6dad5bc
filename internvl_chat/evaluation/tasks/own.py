"""Own data as a benchmark: records as training reads them, every answer asked for and compared.

A question is asked as it was trained: earlier rounds of its record stand before it, with the true
answers, whatever the model would have said there.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from internvl_chat.data.meta import DatasetSpec, load_meta
from internvl_chat.data.storage import is_url
from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.evaluation.joining import add_answer
from internvl_chat.evaluation.metrics.own import (
    OWN_METRICS,
    PERCENT,
    VALUES,
    Compared,
    OwnMetric,
    Values,
    bleu_tokenizer,
    confusion,
    pairs_of,
    score_each,
    value_of_all,
)
from internvl_chat.evaluation.metrics.text import table_lines
from internvl_chat.evaluation.own_records import HeldOutPart, read_questions
from internvl_chat.evaluation.sources import (
    read_json,
    read_jsonl,
    require_answer,
    require_plain,
)
from internvl_chat.evaluation.task import (
    DataFile,
    DataRoot,
    ExportInput,
    Generation,
    Question,
    Rules,
    Score,
    ScoreInput,
    TaskSpec,
)
from internvl_chat.model.constants import IMAGE_TAG
from internvl_chat.model.suggestions import suggest

MAX_NEW_TOKENS = 1024
JUDGE = "gpt-4-turbo"
"""Where the user names none; MM-Vet's of 2024."""
ALL = ""
"""The group of all questions; no other is called so."""
_FORMAT = "records as for training, one a line (docs/data.md)"
_SHOWN_PROBLEMS = 10


def task_of_records(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    metrics: Sequence[str] = ("exact",),
    meta: bool = False,
    held_out: str | os.PathLike[str] | None = None,
    by: str = "",
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> TaskSpec:
    """A benchmark of a file of records, or of all datasets of a meta JSON.

    Args:
        path: ``.jsonl``, or ``.json`` with an array of records; with ``meta`` the meta JSON.
        root: folder that image paths are relative to; by default the file's own.
        metrics: of :data:`OWN_METRICS`; the first gives the score of a question.
        meta: whether ``path`` is a meta JSON. ``repeat_time`` below 1 takes the first records as
            training does, above 1 it counts as 1; ``box_format`` is applied, and
            ``max_dynamic_patch`` where images are tiled.
        held_out: folder of a run with ``--val_split`` on this meta, or its ``held_out.jsonl``: only
            what that names is asked.
        by: a field of the records by which results are told apart, in place of the dataset.
        max_new_tokens: of an answer.

    Raises:
        ConfigError: an unknown metric, ``root`` with a meta, ``held_out`` without one or of
            another, or a meta that cannot be read.
        DatasetError: ``held_out`` cannot be read.
    """
    chosen = _known_metrics(metrics)
    file = Path(os.path.abspath(path))
    if meta and root is not None:
        raise ConfigError(
            "a meta JSON names the root of each dataset", where="--root", fix="Leave it out."
        )
    if held_out is not None and not meta:
        raise ConfigError(
            "is a part of a meta JSON's records", where="--held-out", fix="Give --meta, too."
        )
    specs = _specs_of_meta(file) if meta else (_spec_of_file(file, root),)
    part = None if held_out is None else HeldOutPart.read(held_out)
    specs = specs if part is None else part.specs_of(specs, meta=path)
    recipe = _Recipe(specs=specs, metrics=chosen, prefixed=meta, part=part, by=by)
    told = "" if part is None else f"held-out-of-{part.run_name}"
    return TaskSpec(
        id=f"own-{file.stem}" + (f"-{told}" if told else ""),
        suite="internvl",
        title=file.name + (f" {told}" if told else ""),
        data=_data_files(specs),
        load=recipe.load,
        generation=Generation(max_new_tokens=max_new_tokens, min_new_tokens=None),
        metric=", ".join(chosen),
        score=recipe.score,
        export=export,
        read_answers=read_answers,
        judge=JUDGE if "judge" in chosen else None,
    )


def _known_metrics(metrics: Sequence[str]) -> tuple[OwnMetric, ...]:
    if not metrics:
        raise ConfigError("no metric", where="--metric", fix=f"One of {', '.join(OWN_METRICS)}.")
    for name in metrics:
        if name not in OWN_METRICS:
            near = suggest(name, OWN_METRICS, write=str)
            raise ConfigError(
                f"no metric {name!r}",
                where="--metric",
                fix=f"{near} There are {', '.join(OWN_METRICS)}.".strip(),
            )
    return tuple(one for one in dict.fromkeys(metrics) if one in OWN_METRICS)


def _specs_of_meta(path: Path) -> tuple[DatasetSpec, ...]:
    try:
        specs = load_meta(path)
    except DatasetError as err:
        raise ConfigError(err.problem, where=err.where, fix=err.fix) from err
    return tuple(replace(spec, annotation=os.path.abspath(spec.annotation)) for spec in specs)


def _spec_of_file(path: Path, root: str | os.PathLike[str] | None) -> DatasetSpec:
    folder = path.parent if root is None else Path(os.path.abspath(root))
    return DatasetSpec(name=path.stem, root=str(folder), annotation=str(path))


def _data_files(specs: Sequence[DatasetSpec]) -> tuple[DataFile, ...]:
    """The annotation files, then the folders that images and videos lie in."""
    files = [DataFile(path=spec.annotation, format=_FORMAT) for spec in specs]
    on_disk = [spec.root for spec in specs if not is_url(spec.root)]
    roots = dict.fromkeys(os.path.abspath(root or ".") for root in on_disk)
    folders = [
        DataFile(path=root, format="images and videos that the records name", is_folder=True)
        for root in roots
    ]
    return (*files, *folders)


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """What is loaded and how it is measured."""

    specs: tuple[DatasetSpec, ...]
    metrics: tuple[OwnMetric, ...]
    prefixed: bool
    """Whether ids begin with the dataset's name."""
    part: HeldOutPart | None
    """Of the records; None asks all."""
    by: str

    def load(self, root: DataRoot, rules: Rules) -> list[Question]:
        """All questions in the files' order; ``root`` is not looked at.

        Raises:
            DatasetError: records that cannot be asked, up to ten of them by file and line; or
                files that are not those of which the part was held out.
        """
        questions: list[Question] = []
        problems: list[str] = []
        for spec in self.specs:
            rows = None if self.part is None else self.part.rows_of(spec)
            found = read_questions(spec, problems, rows=rows)
            prefix = f"{spec.name}/" if self.prefixed else ""
            questions += [replace(one, id=f"{prefix}{one.id}") for one in found]
        if problems:
            more = len(problems) - _SHOWN_PROBLEMS
            listed = "\n  ".join(problems[:_SHOWN_PROBLEMS])
            raise DatasetError(
                f"{len(problems)} records cannot be asked:\n  {listed}"
                + (f"\n  and {more} more" if more > 0 else "")
            )
        return questions

    def score(self, given: ScoreInput) -> Score:
        """All metrics, over everything and by group, as a table."""
        return _score(given, self.metrics, self.by)


# ---- answers -> scores ----------------------------------------------------------------------


def _score(given: ScoreInput, metrics: Sequence[OwnMetric], by: str) -> Score:
    samples = [_compared(one, given.answers[one.id]) for one in given.questions]
    each: list[dict[str, float]] = [{} for _ in samples]
    for metric in metrics:
        for values, new in zip(each, score_each(metric, samples, given.judge), strict=True):
            values.update(new)
    names = [name for metric in metrics for name in VALUES[metric]]
    pairs = pairs_of(samples)
    tokenize = bleu_tokenizer(pairs) if "bleu" in metrics and pairs else ""
    groups = [_group(one, by) for one in given.questions]
    table = {ALL: _values(names, samples, each, tokenize)}
    if len(set(groups)) > 1:
        for group in dict.fromkeys(groups):
            own = [place for place, name in enumerate(groups) if name == group]
            chosen = [samples[i] for i in own], [each[i] for i in own]
            table[group] = _values(names, *chosen, tokenize)
    counts = Counter(groups)
    counts[ALL] = len(samples)
    lines = _table(names, table, counts)
    for metric in metrics:
        lines += _confusion(metric, samples)
    first = names[0]
    return Score(
        metrics=_flat(table),
        printed="\n".join(lines) + "\n",
        per_sample={
            one.id: values[first]
            for one, values in zip(given.questions, each, strict=True)
            if first in values
        },
        notes=tuple(_notes(metrics, each, given, tokenize)),
    )


def _compared(question: Question, answer: str) -> Compared:
    return Compared(
        question=question.prompt.replace(IMAGE_TAG, "").strip(),
        references=tuple(one.strip() for one in question.record["references"]),
        answer=answer,
    )


def _group(question: Question, by: str) -> str:
    if not by:
        return str(question.record["dataset"])
    return str(question.record["fields"].get(by, "")) or f"(no {by})"


def _values(
    names: Sequence[str], samples: Sequence[Compared], each: Sequence[Values], tokenize: str
) -> dict[str, float | None]:
    return {name: value_of_all(name, samples, each, tokenize=tokenize) for name in names}


def _flat(table: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """``exact`` of everything, ``GROUP|exact`` of a group."""
    return {
        name if group == ALL else f"{group}|{name}": value
        for group, values in table.items()
        for name, value in values.items()
    }


def _table(
    names: Sequence[str],
    table: Mapping[str, Mapping[str, float | None]],
    counts: Mapping[str, int],
) -> list[str]:
    """A line for each group, then one for all."""
    groups = [*(group for group in table if group != ALL), ALL]
    head = ["", "n", *names]
    body = [
        [group or "all", str(counts[group]), *(_shown(name, table[group][name]) for name in names)]
        for group in groups
    ]
    return table_lines([head, *body])


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name in PERCENT else f"{value:.4f}"


def _confusion(metric: OwnMetric, samples: Sequence[Compared]) -> list[str]:
    if metric not in ("exact", "choice"):
        return []
    table = confusion(metric, samples)
    return [] if table is None else ["", f"{metric}: truth down, answer across", *table.lines()]


def _notes(
    metrics: Sequence[OwnMetric], each: Sequence[Values], given: ScoreInput, tokenize: str
) -> list[str]:
    notes = []
    why: Mapping[OwnMetric, str] = {
        "iou": "left out, whose truth holds no box",
        "choice": "left out, whose truth names no option",
        "judge": "without a readable grade" if given.judge else "not graded, there is no judge",
    }
    for metric in metrics:
        missing = sum(VALUES[metric][0] not in values for values in each)
        if missing:
            notes.append(f"{metric}: {missing} of {len(each)} questions {why[metric]}")
    if tokenize:
        notes.append(f"bleu: sacrebleu with the tokenizer {tokenize}")
    return notes


# ---- files ----------------------------------------------------------------------------------


def export(given: ExportInput) -> Mapping[str, str]:
    """``own_{stamp}.jsonl``: question, references, answer and score, to be looked through."""
    scores = given.score.per_sample if given.score else {}
    lines = []
    for one in given.questions:
        told: dict[str, Any] = {
            "id": one.id,
            "dataset": one.record["dataset"],
            "images": [image.label for image in one.images],
            "question": one.prompt.replace(IMAGE_TAG, "").strip(),
            "references": one.record["references"],
            "answer": given.answers[one.id],
        }
        if one.id in scores:
            told["score"] = scores[one.id]
        lines.append(json.dumps(told, ensure_ascii=False) + "\n")
    return {f"own_{given.stamp}.jsonl": "".join(lines)}


def read_answers(files: Sequence[Path], questions: Sequence[Question]) -> dict[str, str]:
    """``id`` and ``answer`` of JSON lines, or of a ``.json`` array.

    Raises:
        DatasetError: an id that no question has, or a record without id or answer.
    """
    known = {one.id for one in questions}
    answers: dict[str, str] = {}
    for path in files:
        for record, where in _records(path):
            identity = str(require_plain(record, "id", where))
            if identity not in known:
                raise DatasetError(
                    f"answers {identity!r}, which no question is called",
                    where=where,
                    fix="Give the answers to this very data.",
                )
            add_answer(answers, identity, require_answer(record, "answer", where), where)
    return answers


def _records(path: Path) -> Sequence[tuple[dict[str, Any], str]]:
    if path.suffix != ".json":
        return list(read_jsonl(path))
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise DatasetError("is no array of objects", where=str(path))
    return [(one, f"{path}, record {number}") for number, one in enumerate(content)]
