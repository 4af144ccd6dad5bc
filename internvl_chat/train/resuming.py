"""From where a run goes on: what OUTPUT_DIR holds, looked at by rank 0, before a weight is read."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from internvl_chat.checkpoint.manifest import clear_leftovers, list_checkpoints, verify_manifest
from internvl_chat.config import ORDER_RULE
from internvl_chat.errors import CheckpointError, NoCheckpointError
from internvl_chat.train.checkpoints import OPTIMIZER, POSITION
from internvl_chat.train.early_stopping import EarlyStopRule, evaluations_of
from internvl_chat.train.parsing import RunArguments
from internvl_chat.train.rates import grouping
from internvl_chat.train.record import (
    PLANNED_STEPS,
    RESULTS,
    TRACKERS,
    compared,
    continued,
    damage_of_model,
    finished_step,
    holds_model,
    load_record,
    new_record,
    record_of_finished_model,
)
from internvl_chat.train.rerun import ELSEWHERE, UNKNOWN, Earlier, Verdict, decide, refuse_early
from internvl_chat.train.zero import stage_of

logger = logging.getLogger(__name__)

_DEEPSPEED_MARK = "latest"
"""File that DeepSpeed leaves in a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """How a run begins, the same on every rank."""

    record: dict[str, Any]
    """What ``arguments.json`` will say."""
    earlier: Earlier
    checkpoint: Path | None
    """To go on from."""
    position: dict[str, int]
    """Of the checkpoint, as ``data_position.json`` says."""

    @property
    def step(self) -> int:
        """Steps that are done already."""
        return self.position.get("global_step", 0)

    @property
    def epoch_begin(self) -> tuple[int, int] | None:
        """The checkpoint's epoch, and the steps before it; None without a place that can be."""
        epoch, step = (self.position.get(name, -1) for name in ("epoch", "step"))
        begin = self.step - step
        # An epoch has one step at least, the first none before it.
        is_possible = step >= 0 and (0 < epoch <= begin or epoch == begin == 0)
        return (epoch, begin) if is_possible else None

    @property
    def order_rule(self) -> int:
        """By which the order of the data is made: the one that the run began with."""
        return ORDER_RULE if self.checkpoint is None else self.position.get("order_rule", 1)

    @property
    def is_anew(self) -> bool:
        """It neither goes on from a checkpoint nor finds a finished model to keep."""
        return self.checkpoint is None and self.earlier.finished_step is None


def find_start(args: RunArguments, *, world_size: int, global_batch_size: int) -> RunStart:
    """Look for what this run continues, and refuse what it must not.

    Raises:
        NoCheckpointError: one was asked for by name and is missing or damaged.
        CheckpointError: OUTPUT_DIR holds the run of other arguments.
        DatasetError: an annotation file cannot be read.
    """
    output_dir = Path(args.train.output_dir)
    checkpoint = checkpoint_to_resume(args)
    record = new_record(args, world_size=world_size, global_batch_size=global_batch_size)
    position = read_position(checkpoint) if checkpoint is not None else {}
    before = None
    if checkpoint is not None:
        # Checkpoints of earlier versions hold no record of their own.
        before = load_record(checkpoint) or load_record(checkpoint.parent)
    earlier = Earlier()
    if not args.train.overwrite_output_dir:
        earlier = look_at(output_dir, checkpoint, position, before, record)
    refuse_early(earlier, str(output_dir))
    record = continued(record, before, position.get("global_step", 0))
    if checkpoint is not None and not _is_of(checkpoint, output_dir):
        record.pop(TRACKERS, None)  # another folder's training has its own runs there
    return RunStart(
        record=record,
        earlier=earlier,
        checkpoint=checkpoint,
        position=position,
    )


def look_at(
    output_dir: Path,
    checkpoint: Path | None,
    position: Mapping[str, int],
    before: Mapping[str, Any] | None,
    record: Mapping[str, Any],
) -> Earlier:
    """What a folder holds of an earlier run, compared with this one.

    Args:
        output_dir: the folder.
        checkpoint: to go on from.
        position: of the checkpoint.
        before: record of the run that wrote it.
        record: of this run.
    """
    of_finished = record_of_finished_model(output_dir)
    has_model = holds_model(output_dir)
    damage = damage_of_model(output_dir) if has_model else None
    if damage is not None and (output_dir / RESULTS).is_file():
        logger.warning("passing over the finished model in %s: %s", output_dir, damage)
    beside = None
    if checkpoint is not None and not _is_of(checkpoint, output_dir):
        beside = newest_valid(output_dir)
    return Earlier(
        finished_step=finished_step(output_dir),
        finished_run=compared(of_finished, record) if has_model else UNKNOWN,
        finished_plan=_whole_number(output_dir / RESULTS, PLANNED_STEPS),
        would_stop_at=_stop_of_finished(output_dir, record),
        holds_model=has_model,
        record_is_known=of_finished is not None,
        checkpoint=None if checkpoint is None else str(checkpoint),
        checkpoint_step=position.get("global_step", 0),
        planned_steps=None if checkpoint is None else _planned_steps(checkpoint),
        resumed_run=UNKNOWN if checkpoint is None else compared(before, record),
        checkpoint_beside=None if beside is None else str(beside),
        run_beside=UNKNOWN if beside is None else compared(load_record(beside), record),
    )


def _is_of(checkpoint: Path, output_dir: Path) -> bool:
    return checkpoint.resolve().parent == output_dir.resolve()


def verdict_on(
    start: RunStart, args: RunArguments, *, steps: int, num_samples: int, world_size: int
) -> Verdict:
    """What becomes of the run, now that its steps are known.

    Raises:
        CheckpointError: it would train nothing, or the checkpoint is of another form.
    """
    verdict = decide(start.earlier, steps, args.train.output_dir)
    if start.checkpoint is not None:
        require_same_order(start, num_samples)
        if verdict == "go on":
            require_same_form(start, args, world_size)
    return verdict


# ---- checkpoints --------------------------------------------------------------------------------


def left_by_an_earlier_run(args: RunArguments) -> list[Path]:
    """What --overwrite_output_dir replaces, but not before the first save."""
    if not args.train.overwrite_output_dir:
        return []
    output_dir = Path(args.train.output_dir)
    return [*list_checkpoints(output_dir), output_dir / RESULTS]


def checkpoint_to_resume(args: RunArguments) -> Path | None:
    """The checkpoint this run continues, if any.

    Raises:
        NoCheckpointError: one was asked for by name and is missing or damaged.
    """
    asked = args.train.resume_from_checkpoint
    if asked and asked.lower() not in ("true", "false"):
        problems = checkpoint_problems(Path(asked))
        if problems:
            raise NoCheckpointError(
                f"cannot be continued: {'; '.join(problems[:3])}",
                where=asked,
                fix="Name an intact checkpoint-N, or leave --resume_from_checkpoint out to take "
                "the newest one that is.",
            )
        return Path(asked)
    if args.train.overwrite_output_dir or (asked and asked.lower() == "false"):
        return None
    found = newest_valid(Path(args.train.output_dir))
    if found is None and asked:
        raise NoCheckpointError(
            "no valid checkpoint to continue from",
            where=args.train.output_dir,
            fix="Leave --resume_from_checkpoint out to start anew.",
        )
    return found


def newest_valid(output_dir: Path) -> Path | None:
    """The newest checkpoint of a run that verifies; damaged ones are reported, not used."""
    if output_dir.is_dir():
        clear_leftovers(output_dir)
    for path in list_checkpoints(output_dir):
        problems = checkpoint_problems(path)
        if not problems:
            return path
        logger.warning("passing over %s: %s", path, "; ".join(problems[:3]))
    return None


def checkpoint_problems(path: Path) -> list[str]:
    """What is wrong with a checkpoint; empty if it can be continued."""
    found = verify_manifest(path)
    if found:
        return found
    if not (path / POSITION).is_file():
        return [f"no {POSITION}: saved without what it takes to continue"]
    try:
        read_position(path)
    except ValueError as err:
        return [str(err)]
    return []


def read_position(path: Path) -> dict[str, int]:
    """``data_position.json`` of a checkpoint.

    Raises:
        ValueError: it is not what :class:`CheckpointWriter` writes.
    """
    try:
        position = json.loads((path / POSITION).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise ValueError(f"{POSITION} cannot be read ({err})") from err
    wanted = ("global_step", "global_batch_size", "num_samples")
    if not isinstance(position, dict) or any(type(position.get(n)) is not int for n in wanted):
        raise ValueError(f"{POSITION} wants whole numbers {', '.join(wanted)}")
    return {name: value for name, value in position.items() if type(value) is int}


def _planned_steps(checkpoint: Path) -> int | None:
    """How many steps the run that wrote a checkpoint was to have."""
    return _whole_number(checkpoint / TRAINER_STATE_NAME, "max_steps")


def _whole_number(path: Path, name: str) -> int | None:
    value = _object(path).get(name)
    return value if type(value) is int else None


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none that can be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _stop_of_finished(output_dir: Path, record: Mapping[str, Any]) -> int | None:
    """Where this run's early stopping would have ended the finished run, by its evaluations."""
    rule = EarlyStopRule.of(record["arguments"])
    history = _object(output_dir / TRAINER_STATE_NAME).get("log_history")
    if rule is None or not isinstance(history, list) or finished_step(output_dir) is None:
        return None
    entries = [entry for entry in history if isinstance(entry, dict)]
    return rule.stops_at(evaluations_of(entries, rule.metric))


def require_same_order(start: RunStart, num_samples: int) -> None:
    """Check that the data position of a checkpoint means the same in this run.

    Raises:
        CheckpointError: it was written with another global batch size or other data, or under a
            rule of the order that this version does not know.
    """
    if not 1 <= start.order_rule <= ORDER_RULE:
        raise CheckpointError(
            f"written under rule {start.order_rule} of the data's order, which this version does "
            f"not know: it knows 1 to {ORDER_RULE}",
            where=str(start.checkpoint),
            fix="Continue with the version of internvl-chat that wrote it, or a newer one.",
        )
    now = {"global_batch_size": start.record["global_batch_size"], "num_samples": num_samples}
    for name, value in now.items():
        if start.position[name] != value:
            raise CheckpointError(
                f"written with {name} {start.position[name]}, this run has {value}: its position "
                "in the data would be another",
                where=str(start.checkpoint),
                fix="Continue with the same batch and data, or start anew with "
                "--overwrite_output_dir True and this checkpoint as --model_name_or_path.",
            )


def require_same_form(start: RunStart, args: RunArguments, world_size: int) -> None:
    """Check that the optimizer's files can be read by this run: DeepSpeed cuts them up its way.

    Raises:
        CheckpointError: they are of another ZeRO stage, of another number of ranks under
            DeepSpeed, or of a run with it where this one has none, or the other way round.
    """
    assert start.checkpoint is not None
    was_deepspeed = (start.checkpoint / _DEEPSPEED_MARK).is_file()
    if not was_deepspeed and not (start.checkpoint / OPTIMIZER).is_file():
        return  # of neither kind: loading says what is missing
    # Of --deepspeed, or of accelerate's environment.
    is_deepspeed = args.train.deepspeed_plugin is not None
    before, now = _form(was_deepspeed), _form(is_deepspeed)
    if was_deepspeed and is_deepspeed:
        written_by = start.position.get("world_size", world_size)
        known = load_record(start.checkpoint) or {}
        config = known.get("arguments", {}).get("deepspeed")
        stage = stage_of(args.train.deepspeed if isinstance(args.train.deepspeed, dict) else None)
        former = stage_of(config) if isinstance(config, dict) else stage
        before, now = (
            f"DeepSpeed ZeRO-{former} on {written_by} ranks",
            f"ZeRO-{stage} on {world_size} ranks",
        )
        if (former, written_by) == (stage, world_size):
            _require_same_groups(start, known.get("arguments", {}))
            return
    if before != now:
        raise CheckpointError(
            f"its optimizer files are of a run under {before}, this one is under {now}",
            where=str(start.checkpoint),
            fix="Continue with the same --deepspeed stage and number of ranks, or start anew with "
            "--overwrite_output_dir True and this checkpoint as --model_name_or_path.",
        )


def _require_same_groups(start: RunStart, former: Mapping[str, Any]) -> None:
    """DeepSpeed cuts up what is in one parameter group as a whole; other rates in them are fine."""
    before, now = grouping(former), grouping(start.record["arguments"])
    if before != now:
        raise CheckpointError(
            f"its optimizer files, which DeepSpeed cut up, are of a run with {before}, this one "
            f"has {now}",
            where=str(start.checkpoint),
            fix="Give --vision_lr, --mlp_lr, --llm_lr and --vit_layer_decay_rate as before, any "
            "of them with another number, or start anew with --overwrite_output_dir True and this "
            "checkpoint as --model_name_or_path.",
        )


def _form(is_deepspeed: bool) -> str:
    return "DeepSpeed" if is_deepspeed else "no DeepSpeed"


# ---- saying so ----------------------------------------------------------------------------------


def tell(start: RunStart, verdict: Verdict, steps: int, where: str) -> None:
    """Log what becomes of the run, and what about it a user may not expect."""
    if verdict == "anew":
        return
    earlier = start.earlier
    comparison = earlier.finished_run if verdict == "complete" else earlier.resumed_run
    for note in comparison.uncertain:
        logger.warning("%s: %s", where if verdict == "complete" else start.checkpoint, note)
    if verdict == "complete":
        _tell_of_completeness(earlier, steps, where)
        asked = start.record["arguments"].get("resume_from_checkpoint")
        if asked and start.checkpoint is not None and str(asked).lower() != "true":
            logger.warning(
                "--resume_from_checkpoint %s is not gone on from: the finished model stays; to "
                "train from there give more steps, or %s",
                asked,
                ELSEWHERE,
            )
    else:
        _tell_of_continuing(start, steps)
    idle = [*comparison.of("none"), *(d for d in comparison.differences if d.is_default)]
    idle = [found for found in dict.fromkeys(idle) if found.name not in _NOT_WORTH_A_WORD]
    if idle:
        told = "; ".join(map(str, idle))
        logger.info("other arguments than before, without effect on the model: %s", told)


def _tell_of_completeness(earlier: Earlier, steps: int, where: str) -> None:
    finished, plan = earlier.finished_step, earlier.finished_plan
    if earlier.would_stop_at is None:
        logger.info("%s is complete already (%d steps): nothing to do", where, steps)
        return
    of = f" of {plan}" if earlier.stopped_early else ""
    logger.info(
        "%s is complete already (stopped early at step %s%s): nothing to do", where, finished, of
    )
    if steps > max(finished or 0, plan or 0):
        logger.warning("to go on to step %d raise --early_stopping_patience", steps)


_NOT_WORTH_A_WORD = {"--output_dir", "--overwrite_output_dir", "--resume_from_checkpoint"}


def _tell_of_continuing(start: RunStart, steps: int) -> None:
    left, planned = steps - start.step, start.earlier.planned_steps
    logger.info(
        "going on from %s: %d of %d steps are done, %d left%s",
        start.checkpoint,
        start.step,
        steps,
        left,
        "" if left else "; the model is written",
    )
    if left and start.order_rule != ORDER_RULE:
        logger.warning(
            "this run began under rule %d of the data's order and goes on under it, so that no "
            "sample comes twice or is left out; new runs follow rule %d, which balances images and "
            "text over the ranks (docs/data.md, Order)",
            start.order_rule,
            ORDER_RULE,
        )
    rate = start.earlier.resumed_run.of("rate")
    kind = start.record["arguments"].get("lr_scheduler_type")
    follows_a_figure = kind in ("reduce_lr_on_plateau", "greedy")
    if follows_a_figure and rate and not any(d.name == "--lr_scheduler_type" for d in rate):
        logger.warning(
            "%s: the checkpoint's learning rate is kept and these are not: %s goes on from it",
            "; ".join(map(str, rate)),
            kind,
        )
    elif rate:
        logger.warning(
            "%s: from step %d on this run's learning rate and schedule count, not the checkpoint's",
            "; ".join(map(str, rate)),
            start.step + 1,
        )
    elif planned not in (None, steps):
        logger.info(
            "%d steps instead of %d: the learning rate follows the schedule of %d steps from here",
            steps,
            planned,
            steps,
        )
