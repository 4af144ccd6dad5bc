"""Ask a checkpoint the questions of tasks: shards, batches, resuming, scores and files."""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from internvl_chat.chat.loading import default_dtype
from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.exporting import write_export
from internvl_chat.evaluation.fingerprints import (
    checkpoint_fingerprint,
    data_fingerprint,
    questions_fingerprint,
)
from internvl_chat.evaluation.generate import Answerer, Prepared
from internvl_chat.evaluation.judging import REPLIES, JudgeOpener, no_judge, summary_of, warning_of
from internvl_chat.evaluation.progress import AnswerProgress
from internvl_chat.evaluation.results import CARD, SCORE, Answered, TaskFolder, append
from internvl_chat.evaluation.scoring import (
    as_text,
    load_questions,
    require_data,
    score_answers,
)
from internvl_chat.evaluation.settings import RunSettings, generate_keywords
from internvl_chat.evaluation.task import ExportInput, Question, Score, TaskSpec
from internvl_chat.evaluation.videos import with_segments
from internvl_chat.files import write_json
from internvl_chat.model.constants import IMAGE_TAG
from internvl_chat.train.distributed import DistributedState, agree

logger = logging.getLogger(__name__)

_CHARACTERS_PER_TOKEN = 3
_BATCHES_AHEAD = 3
_WORKERS_OF_A_GPU = 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A task as this run asks it."""

    task: TaskSpec
    questions: list[Question]
    folder: TaskFolder
    card: dict[str, Any]
    """What ``run.json`` holds."""
    generation: dict[str, Any]
    """As the original names the settings."""
    open_ids: frozenset[str]
    """Questions without an answer yet, of all ranks."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A task that was asked and scored, on rank 0."""

    task: TaskSpec
    folder: Path
    text: str
    """For people."""
    unanswered: list[str]
    """``id: reason`` of questions that could not be asked."""


def run_plans(
    settings: RunSettings,
    plans: Sequence[Plan],
    state: DistributedState,
    *,
    open_answerer: Callable[[RunSettings, DistributedState], Answerer],
    judges: JudgeOpener = no_judge,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Outcome]:
    """Ask, merge, score and export the tasks one after another with one model load.

    The folders are released in the end.

    Args:
        settings: of the run.
        plans: of :func:`plan_tasks`.
        state: of this rank.
        open_answerer: loads the model; not called where nothing is left to ask.
        judges: open those of the tasks that have one.
        tell: shows a line to people, on rank 0.

    Returns:
        An outcome a task on rank 0, none on others.
    """
    answerer: Answerer | None = None
    outcomes = []
    try:
        if any(plan.open_ids for plan in plans):
            answerer = open_answerer(settings, state)
            if state.is_main:
                tell(_how_it_asks(settings, plans, answerer))
        for plan in plans:
            if answerer is not None and plan.open_ids:
                _ask(plan, settings, state, answerer, tell)
            if state.world_size > 1:
                dist.barrier()
            # While rank 0 scores, the others go on to the next task; they meet at its barrier.
            if state.is_main:
                outcome = finish(plan, settings, judges, answerer)
                outcomes.append(outcome)
                tell(f"\n{outcome.text}\nresults: {outcome.folder}")
        if state.world_size > 1:
            dist.barrier()
    finally:
        for plan in plans:
            plan.folder.release()
    return outcomes


def plan_tasks(
    settings: RunSettings,
    tasks: Sequence[TaskSpec],
    state: DistributedState,
    count_parameters: Callable[[str], int],
) -> list[Plan]:
    """Read the questions and take the folders, before a model is loaded.

    Args:
        settings: of the run.
        tasks: in this order.
        state: of this rank.
        count_parameters: of a checkpoint, for the original's beam rule.

    Raises:
        UserError: on all ranks: data is missing, or a folder holds another run's answers.
    """

    def plan() -> list[Plan]:
        require_data(tasks, settings.root, with_folders=True)
        needs_size = settings.uses_original_beams and not settings.dynamic
        size = count_parameters(settings.directory) if needs_size else None
        checkpoint = checkpoint_fingerprint(settings.directory)
        weights = _weights(settings, state)
        return [_plan(settings, task, size, checkpoint, weights, state.is_main) for task in tasks]

    plans = agree(state, plan)
    if state.world_size == 1:
        return plans
    # What rank 0 found answered holds for all: the parts grow while others still look.
    shared: list[Any] = [[plan.open_ids for plan in plans]] if state.is_main else [None]
    dist.broadcast_object_list(shared, src=0)
    return [_with_open(plan, ids) for plan, ids in zip(plans, shared[0], strict=True)]


def _plan(
    settings: RunSettings,
    task: TaskSpec,
    size: int | None,
    checkpoint: str,
    weights: str,
    is_main: bool,
) -> Plan:
    rules = settings.rules_of(task)
    questions = load_questions(task, settings.root, rules, settings.limit)
    questions = [_as_asked(one, settings) for one in questions]
    num_beams, why = settings.beams_of(task, size)
    generation = settings.generation_of(task, num_beams)
    sampled = {"seed": settings.seed} if generation["do_sample"] else {}
    fingerprint = {
        "task": task.id,
        "rules": rules,
        "num_questions": len(questions),
        "questions": questions_fingerprint(questions, settings.root.of(task.suite)),
        "checkpoint": checkpoint,
        **generation,
        **sampled,
        "max_num": settings.most_tiles,
        "weights": weights,
    }
    card = {
        "task": task.id,
        "checkpoint": settings.checkpoint,
        "rules": rules,
        "settings": {**generation, **sampled, "limit": settings.limit, "dynamic": settings.dynamic},
        "beams": {"num_beams": num_beams, "why": why},
        "judge": None,
        "data_fingerprint": data_fingerprint(questions),
        "versions": _versions(),
        "stamp": time.strftime("%y%m%d%H%M%S"),
        "fingerprint": fingerprint,
    }
    folder = TaskFolder(settings.folder / task.id)
    answered: set[str] = set()
    if is_main:
        card = folder.claim(card)
        answered = set(folder.answered())
    return Plan(
        task=task,
        questions=questions,
        folder=folder,
        card=card,
        generation=generation,
        open_ids=frozenset(one.id for one in questions if one.id not in answered),
    )


def _as_asked(question: Question, settings: RunSettings) -> Question:
    """With the number of frames and of tiles that the user wants."""
    if settings.num_segments is not None:
        question = with_segments(question, settings.num_segments)
    if settings.max_num is not None or not settings.dynamic:
        question = replace(question, max_tiles=None)
    return question


def _with_open(plan: Plan, ids: frozenset[str]) -> Plan:
    return replace(plan, open_ids=ids)


def _weights(settings: RunSettings, state: DistributedState) -> str:
    if settings.load_in_8bit or settings.load_in_4bit:
        return "int8" if settings.load_in_8bit else "nf4"
    return settings.dtype or str(default_dtype(state.device)).removeprefix("torch.")


def _versions() -> dict[str, str]:
    from internvl_chat import __version__

    found = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "pillow")}
    return {"internvl-chat": __version__, **found}


def _how_it_asks(settings: RunSettings, plans: Sequence[Plan], answerer: Answerer) -> str:
    """A line for each thing that people would wonder about."""
    told = answerer.describe()
    lines = [f"{settings.checkpoint}: " + ", ".join(f"{k} {v}" for k, v in told.items())]
    for plan in plans:
        beams = plan.card["beams"]
        left = f"{len(plan.open_ids)} of {len(plan.questions)} questions to ask"
        lines.append(f"{plan.task.id}: {left}, num_beams {beams['num_beams']} ({beams['why']})")
    if settings.batch_size is None and any(_batch_size(plan, settings) == 1 for plan in plans):
        lines.append(
            "one question at a time: of several beams close decisions are not noticed; "
            "--batch-size n is faster, and answers may then depend on n"
        )
    elif answerer.rows_at_once(1) == 1 and settings.batch_size is None:
        lines.append(
            "one question at a time: in half precision a batch changes rounding, and with it "
            "answers; --batch-size n is faster and asks close decisions again alone"
        )
    return "\n".join(lines)


# -- asking ---------------------------------------------------------------------------------------


def estimated_length(question: Question, tokens_per_image: int = 256) -> int:
    """About how many tokens a prompt has; only the order of questions depends on it."""
    shown = question.video.num_segments if question.video else len(question.images)
    text = "".join([*(said for turn in question.earlier for said in turn), question.prompt])
    return len(text.replace(IMAGE_TAG, "")) // _CHARACTERS_PER_TOKEN + tokens_per_image * shown


def make_batches(
    questions: Sequence[Question], size: int | None, rows_at_once: Callable[[int], int], extra: int
) -> list[list[Question]]:
    """Questions of like length together, the longest first, so that memory fails early.

    Args:
        questions: to be asked.
        size: of a batch; None: as many as ``rows_at_once`` says.
        rows_at_once: questions of so many tokens in a batch.
        extra: tokens that an answer may add.
    """
    order = sorted(questions, key=estimated_length, reverse=True)
    batches = []
    while order:
        count = size or rows_at_once(estimated_length(order[0]) + extra)
        batches.append(order[:count])
        order = order[count:]
    return batches


def _ask(
    plan: Plan,
    settings: RunSettings,
    state: DistributedState,
    answerer: Answerer,
    tell: Callable[[str], None],
) -> None:
    """Answer this rank's share of what is open."""
    still_open = [one for one in plan.questions if one.id in plan.open_ids]
    still_open.sort(key=estimated_length)  # every rank gets long and short ones
    mine = still_open[state.rank :: state.world_size]
    extra = min(int(plan.generation["max_new_tokens"]), 128)
    batches = make_batches(mine, _batch_size(plan, settings), answerer.rows_at_once, extra)
    keywords = generate_keywords(plan.generation)
    workers = settings.workers
    if workers is None:
        workers = 0 if state.device.type == "cpu" else _WORKERS_OF_A_GPU
    done = len(plan.questions) - len(still_open)
    progress = AnswerProgress(
        plan.task.id, len(plan.questions), done, state.world_size, state.is_main
    )
    with plan.folder.part(state.rank) as file, progress:
        for good, bad in _prepared(batches, plan.task, answerer, workers):
            begin = time.perf_counter()
            answers = answerer.answer(good, keywords) if good else []
            seconds = (time.perf_counter() - begin) / max(len(good), 1)
            lines = [
                Answered(
                    id=one.question.id,
                    prompt=one.question.prompt,
                    answer=answer.text,
                    tokens=answer.num_tokens,
                    error="",
                    seconds=seconds,
                    batch_size=len(good),
                    rank=state.rank,
                )
                for one, answer in zip(good, answers, strict=True)
            ]
            append(file, [*lines, *(_failed(one, err, state.rank) for one, err in bad)])
            progress.add(len(good) + len(bad))
            for line in lines if settings.shows_answers else ():
                tell(f"{line.id}: {line.answer}")


def _batch_size(plan: Plan, settings: RunSettings) -> int | None:
    """Questions at a time; one with several beams, whose close decisions nobody notices."""
    has_beams = plan.generation["num_beams"] > 1
    return 1 if has_beams and settings.batch_size is None else settings.batch_size


def _failed(question: Question, err: DatasetError, rank: int) -> Answered:
    logger.warning("question %s cannot be asked: %s", question.id, err)
    return Answered(
        id=question.id,
        prompt=question.prompt,
        answer=None,
        tokens=0,
        error=str(err),
        seconds=0.0,
        batch_size=0,
        rank=rank,
    )


Batch = tuple[list[Prepared], list[tuple[Question, DatasetError]]]


def _prepared(
    batches: Sequence[Sequence[Question]], task: TaskSpec, answerer: Answerer, workers: int
) -> Iterator[Batch]:
    """The batches with their files read: by ``workers`` while the model is at work on earlier ones,
    or, without any, in between.
    """
    if not workers:
        for batch in batches:
            yield _collect([(one, partial(answerer.prepare, one, task.tiling)) for one in batch])
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="images") as pool:
        waiting: list[list[tuple[Question, Callable[[], Prepared]]]] = []
        try:
            for batch in batches:
                futures = [pool.submit(answerer.prepare, one, task.tiling) for one in batch]
                results = (future.result for future in futures)
                waiting.append(list(zip(batch, results, strict=True)))
                if len(waiting) >= _BATCHES_AHEAD:
                    yield _collect(waiting.pop(0))
            while waiting:
                yield _collect(waiting.pop(0))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _collect(batch: Sequence[tuple[Question, Callable[[], Prepared]]]) -> Batch:
    good, bad = [], []
    for question, result in batch:
        try:
            good.append(result())
        except DatasetError as err:
            bad.append((question, err))
    return good, bad


# -- at the end -----------------------------------------------------------------------------------


def finish(
    plan: Plan, settings: RunSettings, judges: JudgeOpener, answerer: Answerer | None
) -> Outcome:
    """Merge the parts, score under all rules, write the files in the original's formats."""
    lines = plan.folder.merge(plan.questions)
    answers = {line["id"]: line.get("answer", "") for line in lines}
    unanswered = [f"{line['id']}: {line['error']}" for line in lines if "error" in line]
    told = answerer.describe() if answerer is not None else plan.card.get("model", {})
    card = {**plan.card, "template": told.get("template"), "model": told}
    text, rules = plan.task.id, settings.rules_of(plan.task)
    score, judge_name = None, None
    if settings.is_scored:
        ids = frozenset(one.id for one in plan.questions)
        with judges(plan.task, plan.folder.path / REPLIES) as judge:
            report = score_answers(plan.task, settings.root, answers, ids=ids, judge=judge)
            card["judge"] = summary_of(judge.model)
            if judge.absence:
                card["judge_absence"] = judge.absence
        write_json(plan.folder.path / SCORE, report.as_dict())
        text, score = as_text(report, rules), report.scores[rules]
        judge_name, warning = report.judge, warning_of(card["judge"])
        text += f"\nwarning: {warning}" if warning else ""
    _export(plan, settings, answers, score, judge_name)
    write_json(plan.folder.path / CARD, card)
    if unanswered:
        reasons = "\n".join(f"  {reason}" for reason in unanswered)
        text += f"\n{len(unanswered)} questions could not be asked, counted as empty:\n{reasons}"
    return Outcome(task=plan.task, folder=plan.folder.path, text=text, unanswered=unanswered)


def _export(
    plan: Plan,
    settings: RunSettings,
    answers: dict[str, str],
    score: Score | None,
    judge_name: str | None,
) -> None:
    given = ExportInput(
        questions=plan.questions,
        answers={one.id: answers.get(one.id, "") for one in plan.questions},
        checkpoint=settings.checkpoint,
        stamp=plan.card["stamp"],
        rules=settings.rules_of(plan.task),
        score=score,
        judge_name=judge_name,
        table_format=settings.table_format,
        score_format=settings.score_format,
    )
    write_export(plan.task, given, settings.export_folder or plan.folder.path)
