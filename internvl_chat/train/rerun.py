"""A run in a folder that an earlier one wrote: complete, going on, or refused.

Pure: what the folder holds and what this run wants go in, a verdict comes out.
``train/record.py`` reads and writes the files, ``train/effects.py`` says what each argument does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from internvl_chat.errors import CheckpointError
from internvl_chat.train.effects import (
    DECIDES_OTHERS,
    EFFECTS,
    OF_THE_MACHINE,
    Effect,
    settled,
    zero_settings,
)

ELSEWHERE = (
    "give another folder (OUTPUT_DIR=… for a recipe, --output_dir …), or --overwrite_output_dir "
    "True to start anew in this one"
)
"""What a refused run is offered."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run was told, as ``arguments.json`` keeps it."""

    arguments: Mapping[str, Any]
    """All by name, in JSON's types."""
    given: Mapping[str, Any]
    """Those that the command line or a file said."""
    global_batch_size: int | None
    contents: Mapping[str, Any]
    """Of the files that an argument names (``data.identity``, ``checkpoint.identity``); None, or
    no entry, where it is not known."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing in which two runs differ."""

    name: str
    old: str
    new: str
    effect: Effect
    is_default: bool = False
    """Nobody gave it, then or now: the default has changed."""

    def __str__(self) -> str:
        text = f"{self.name} {self.old} -> {self.new}"
        if self.is_default:
            text += f" (the default has changed: give {self.name} {self.old})"
        return text


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs, difference by difference."""

    differences: tuple[Difference, ...] = ()
    uncertain: tuple[str, ...] = ()
    """What could not be compared."""

    def of(self, *effects: Effect) -> tuple[Difference, ...]:
        """The differences of these effects."""
        return tuple(found for found in self.differences if found.effect in effects)

    def asked(self, *effects: Effect) -> tuple[Difference, ...]:
        """As :meth:`of`, without defaults that have changed: both runs asked for the same."""
        return tuple(found for found in self.of(*effects) if not found.is_default)


UNKNOWN = Comparison(uncertain=("no readable arguments.json says what it was trained with",))


# ---- comparing ----------------------------------------------------------------------------------


def compare(old: RunRecord | None, new: RunRecord, defaults: Mapping[str, Any]) -> Comparison:
    """In what this run differs from an earlier one.

    Args:
        old: the earlier run's; None where its record is lost.
        new: this run's.
        defaults: of the arguments, for those that the earlier run did not know yet.
    """
    if old is None:
        return UNKNOWN
    notes: list[str] = []
    before, now = settled(dict(old.arguments)), settled(dict(new.arguments))
    chooses = any(
        found.get("load_best_model_at_end") or found.get("early_stopping_patience")
        for found in (before, now)
    )
    found = [*_contents(old, new, notes, chooses=chooses)]
    for name, effect in EFFECTS.items():
        if effect in ("files", "batch", "zero") or name == "eval_meta_path" or name not in now:
            continue
        if effect == "choice":
            effect = "result" if chooses else "none"
        if name not in before:
            # Of a later version than the record, or without effect in the earlier run.
            known = name in old.arguments
            if known and old.arguments[name] == new.arguments.get(name):
                continue
            if not known and (name not in new.given or now[name] == defaults.get(name)):
                continue
            then = _shown(old.arguments[name]) if known else "(not known then)"
            found.append(_difference(name, then, now[name], effect, old, new))
        elif before[name] != now[name]:
            was, wanted = old.arguments.get(name), new.arguments.get(name)
            if was == wanted:  # what they follow differs
                was, wanted = before[name], now[name]
            found.append(_difference(name, _shown(was), wanted, effect, old, new))
    found += _batch(old, new)
    found += _zero(old, new)
    return Comparison(differences=tuple(found), uncertain=tuple(notes))


def _difference(
    name: str, then: str, now: object, effect: Effect, old: RunRecord, new: RunRecord
) -> Difference:
    is_default = (
        name not in old.given
        and name not in new.given
        and name in old.arguments
        and all(old.given.get(other) == new.given.get(other) for other in DECIDES_OTHERS)
    )
    return Difference(
        name=f"--{name}",
        old=then,
        new=_shown(now),
        effect="none" if is_default and name in OF_THE_MACHINE else effect,
        is_default=is_default,
    )


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _batch(old: RunRecord, new: RunRecord) -> Iterator[Difference]:
    """Micro batch, accumulation and ranks may change as long as their product does not."""
    if old.global_batch_size is not None and old.global_batch_size != new.global_batch_size:
        yield Difference(
            name="the global batch size",
            old=str(old.global_batch_size),
            new=str(new.global_batch_size),
            effect="result",
        )


def _zero(old: RunRecord, new: RunRecord) -> Iterator[Difference]:
    before, now = zero_settings(dict(old.arguments)), zero_settings(dict(new.arguments))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            yield Difference(
                name=f"--deepspeed {key}",
                old=_shown(before.get(key)),
                new=_shown(now.get(key)),
                effect="result",
            )


# ---- what arguments name ------------------------------------------------------------------------


def _contents(
    old: RunRecord, new: RunRecord, notes: list[str], *, chooses: bool
) -> Iterator[Difference]:
    """Files are compared by content, wherever they lie; by name where a content is lost."""
    names = [name for name, effect in EFFECTS.items() if effect == "files"]
    for name in [*names, *(["eval_meta_path"] if chooses else [])]:
        then, now = old.arguments.get(name), new.arguments.get(name)
        before, content = old.contents.get(name), new.contents.get(name)
        if before is not None and content is not None:
            if before == content:
                continue
            if _are_datasets(before) and _are_datasets(content):
                yield from _datasets(f"--{name}", before, content, notes)
                continue
            detail = "" if then != now else " (other files under this path)"
            yield Difference(
                name=f"--{name}", old=_shown(then), new=f"{_shown(now)}{detail}", effect="result"
            )
        elif then != now and _differ(then, now):
            yield Difference(name=f"--{name}", old=_shown(then), new=_shown(now), effect="result")
        elif then != now:
            notes.append(f"--{name} {then} -> {now}: taken for the same files in another place")


def _are_datasets(content: object) -> bool:
    return isinstance(content, list) and all(isinstance(entry, dict) for entry in content)


def _differ(then: object, now: object) -> bool:
    """Whether two paths, of which one cannot be read any more, name different things."""
    if not isinstance(then, str) or not isinstance(now, str):
        return True
    return Path(then).name != Path(now).name


_COMPARED_KEYS: dict[str, Any] = {
    "data_augment": False,
    "repeat_time": 1,
    "max_samples": None,
    "max_dynamic_patch": None,
    "box_format": "keep",
    "weight": 1.0,
}
"""Settings of a meta's entry, with their defaults."""


def _datasets(
    name: str, old: list[Mapping[str, Any]], new: list[Mapping[str, Any]], notes: list[str]
) -> Iterator[Difference]:
    """Differences of two meta JSONs, each a list as ``data.identity.data_identity`` makes it."""

    def one(what: str, then: object, now: object) -> Difference:
        return Difference(name=f"{name} {what}", old=_shown(then), new=_shown(now), effect="result")

    if len(old) != len(new):
        listed = [", ".join(str(entry.get("name")) for entry in side) for side in (old, new)]
        yield one("datasets", *listed)
        return
    for before, now in zip(old, new, strict=True):
        entry = f'entry "{now.get("name")}"'
        if before.get("records_sha256") != now.get("records_sha256"):
            sides = [f"{s.get('annotation')} ({s.get('records')} records)" for s in (before, now)]
            if sides[0] == sides[1]:
                sides[1] += " of other content"
            yield one(f"{entry} annotation", *sides)
        elif before.get("files") != now.get("files"):
            detail = "" if before.get("root") != now.get("root") else " (other files in it)"
            yield one(f"{entry} root", before.get("root"), f"{now.get('root')}{detail}")
        elif before.get("root") != now.get("root"):
            roots = f"{before.get('root')} -> {now.get('root')}"
            notes.append(f"{name} {entry} root {roots}: taken for the same files")
        for key, default in _COMPARED_KEYS.items():
            if before.get(key, default) != now.get(key, default):
                yield one(f"{entry} {key}", before.get(key, default), now.get(key, default))


# ---- deciding -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What a folder holds of an earlier run."""

    finished_step: int | None = None
    """Steps of the finished model at its root."""
    finished_run: Comparison = Comparison()
    """Of the run that finished it with this one."""
    finished_plan: int | None = None
    """Steps that it was to have; more than it has if it stopped early."""
    would_stop_at: int | None = None
    """Step at which this run's early stopping would have ended it; None if it would not."""
    holds_model: bool = False
    """A model lies at its root, finished or not."""
    record_is_known: bool = False
    """A readable ``arguments.json`` says whose."""
    checkpoint: str | None = None
    """The checkpoint to go on from."""
    checkpoint_step: int = 0
    planned_steps: int | None = None
    """Steps that the run which wrote it was to have."""
    resumed_run: Comparison = Comparison()
    """Of the run that wrote it with this one."""
    checkpoint_beside: str | None = None
    """The folder's newest one, where another folder's was named to go on from."""
    run_beside: Comparison = Comparison()
    """Of the run that wrote that one with this one."""

    @property
    def stopped_early(self) -> bool:
        """The finished run ended before its last step."""
        plan, step = self.finished_plan, self.finished_step
        return plan is not None and step is not None and plan > step


Verdict = Literal["complete", "go on", "anew"]


def refuse_early(earlier: Earlier, where: str) -> None:
    """Refuse what is wrong whatever the number of steps: before the data is looked at.

    Args:
        earlier: what ``where`` holds.
        where: OUTPUT_DIR.

    Raises:
        CheckpointError: neither the finished model nor the checkpoint is of a run like this one.
    """
    other_result = earlier.finished_run.asked("result")
    if earlier.finished_step is not None and not other_result:
        return  # complete, or refused when the steps are known
    if earlier.checkpoint is not None:
        _refuse(
            earlier.resumed_run.of("result"),
            f"{earlier.checkpoint} was written with other arguments",
            _former_or_anew(earlier.checkpoint),
        )
        _refuse_to_mix(earlier, other_result, where)
    elif earlier.finished_step is not None:
        _refuse_finished(earlier, other_result, where)
    elif earlier.holds_model:
        _refuse_to_replace(earlier, where)


def decide(earlier: Earlier, steps: int, where: str) -> Verdict:
    """What becomes of a run of ``steps`` steps in all.

    Args:
        earlier: what ``where`` holds; :func:`refuse_early` has seen it.
        steps: of this run, counted from its beginning.
        where: OUTPUT_DIR.

    Raises:
        CheckpointError: it would train nothing, or continue what is not its own.
    """
    finished = earlier.finished_step
    if finished is not None and _is_behind(earlier, finished, steps):
        if steps >= finished and not earlier.record_is_known:
            raise CheckpointError(
                f"holds a model finished after {finished} steps, and no readable arguments.json "
                "says what it was trained with: whether this run is complete cannot be told",
                where=where,
                fix=_sentence(ELSEWHERE),
            )
        differing = [*earlier.finished_run.asked("result", "rate"), *_other_stop(earlier)]
        planned = max(finished, earlier.finished_plan or 0)
        if steps < planned:
            differing.append(_steps(planned, steps))
        _refuse_finished(earlier, differing, where)
        return "complete"
    if earlier.checkpoint is None:
        if finished is not None:
            raise CheckpointError(
                f"holds a model finished after {finished} steps and no valid checkpoint; going on "
                f"to step {steps} is not possible",
                where=where,
                fix=_sentence(ELSEWHERE),
            )
        return "anew"
    _refuse(
        earlier.resumed_run.of("result"),
        f"{earlier.checkpoint} was written with other arguments",
        _former_or_anew(earlier.checkpoint),
    )
    nothing_left = steps <= earlier.checkpoint_step
    if nothing_left:
        differing = [*earlier.resumed_run.of("rate")]
        if earlier.planned_steps not in (None, steps) or steps < earlier.checkpoint_step:
            differing.append(_steps(earlier.planned_steps or earlier.checkpoint_step, steps))
        _refuse(
            differing,
            f"{earlier.checkpoint} has {earlier.checkpoint_step} steps behind it; nothing would be "
            "trained now",
            f"Give more steps, or {ELSEWHERE}.",
        )
    return "go on"


def _is_behind(earlier: Earlier, finished: int, steps: int) -> bool:
    """Whether a run of so many steps has nothing left to train behind the finished one."""
    return steps <= finished or earlier.would_stop_at is not None


def _other_stop(earlier: Earlier) -> Iterator[Difference]:
    """By what this run would have stopped before the finished one did."""
    stop = earlier.would_stop_at
    if stop is not None and earlier.finished_step is not None and stop < earlier.finished_step:
        yield from (d for d in earlier.finished_run.of("length") if d.name.startswith(_STOP_FLAGS))


_STOP_FLAGS = "--early_stopping_"


def _steps(old: int, new: int) -> Difference:
    return Difference(name="steps", old=str(old), new=str(new), effect="length")


def _refuse_finished(
    earlier: Earlier, differing: list[Difference] | tuple[Difference, ...], where: str
) -> None:
    _refuse(
        differing,
        f"{where} holds the finished run of other arguments ({earlier.finished_step} steps); "
        "nothing would be trained now",
        _sentence(ELSEWHERE),
    )


def _refuse_to_mix(earlier: Earlier, finished: tuple[Difference, ...], where: str) -> None:
    """Another folder's checkpoint would be continued over what another run has left in this one."""
    if earlier.finished_step is not None:
        _refuse(
            finished,
            f"{where} holds the finished run of other arguments ({earlier.finished_step} steps); "
            f"going on from {earlier.checkpoint} would replace it",
            _sentence(ELSEWHERE),
        )
    if earlier.checkpoint_beside is not None:
        _refuse(
            earlier.run_beside.of("result"),
            f"{earlier.checkpoint_beside} is of a run with other arguments; going on from "
            f"{earlier.checkpoint} would mix the two",
            _sentence(ELSEWHERE),
        )


def _refuse_to_replace(earlier: Earlier, where: str) -> None:
    """A model that this run did not begin would be replaced by its own at the end."""
    if earlier.record_is_known:
        differing = [*earlier.finished_run.of("result", "rate")]
        _refuse(differing, f"{where} holds a model of other arguments", _sentence(ELSEWHERE))
    else:
        raise CheckpointError(
            "holds a model already, and no arguments.json says that a run like this one wrote it",
            where=where,
            fix=_sentence(ELSEWHERE),
        )


def _refuse(differing: list[Difference] | tuple[Difference, ...], problem: str, fix: str) -> None:
    if differing:
        listed = "; ".join(map(str, differing))
        raise CheckpointError(f"{problem}: {listed}", fix=fix)


def _former_or_anew(checkpoint: str) -> str:
    return (
        f"Give the former ones to go on, or {ELSEWHERE}; --model_name_or_path {checkpoint} begins "
        "with its weights."
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
