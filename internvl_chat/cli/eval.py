"""``internvl-chat eval …``: benchmarks at the command line, thin."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from internvl_chat.cli.completion import benchmark_tasks
from internvl_chat.cli.options import Compile, verb_app
from internvl_chat.cli.original_flags import (
    CheckpointFlag,
    Cot,
    Datasets,
    FewShot,
    FlagsOfOne,
    Sample,
    TopK,
    TopP,
    truth_of,
)
from internvl_chat.cli.own_data import (
    HeldOut,
    OwnData,
    OwnField,
    OwnJsonl,
    OwnMeta,
    OwnMetrics,
    OwnRoot,
    tasks_of,
)
from internvl_chat.errors import ConfigError, UserError
from internvl_chat.train.launched import is_first_process, leave_reason, leave_status

if TYPE_CHECKING:
    from internvl_chat.evaluation.judging import JudgeOptions
    from internvl_chat.evaluation.settings import RunSettings
    from internvl_chat.evaluation.task import DataRoot, Rules, TaskSpec
    from internvl_chat.train.distributed import DistributedState

_WEEK_SECONDS = 7 * 24 * 3600.0  # a rank that is done waits for the slowest

app = verb_app(has_verbs=True)

Tasks = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TASK...", help="Ids: internvl-chat eval list.", autocompletion=benchmark_tasks
    ),
]
TaskId = Annotated[
    str | None,
    typer.Argument(
        metavar="TASK", help="Id of a task; none with own records.", autocompletion=benchmark_tasks
    ),
]
RulesName = Annotated[
    str | None, typer.Option("--rules", help="2024 (by default), later or official.")
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
JudgeName = Annotated[str | None, typer.Option("--judge", help="Model that judges answers.")]
JudgeUrl = Annotated[
    str | None, typer.Option("--judge-base-url", help="Of an OpenAI-style server.")
]
JudgePrompts = Annotated[
    Path | None,
    typer.Option(metavar="YAML", help="What the judge is asked, in place of our texts."),
]


@app.callback()
def _root() -> None:
    """Ask benchmarks, and score answers."""


@app.command(context_settings={"token_normalize_func": lambda name: name.replace("_", "-")})
def run(
    checkpoint: Annotated[
        str, typer.Argument(help="Chat checkpoint of any kind, or one on the hub.")
    ],
    task: Tasks = None,
    jsonl: OwnJsonl = None,
    meta: OwnMeta = None,
    held_out: HeldOut = None,
    root: OwnRoot = None,
    metric: OwnMetrics = None,
    by: OwnField = "",
    out_dir: Annotated[
        Path, typer.Option(help="Results go to {out-dir}/{parent}_{name}/{task}.")
    ] = Path("results"),
    batch_size: Annotated[
        str, typer.Option(help="Questions at a time: auto, or a number.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first n questions.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampled answers.")] = 0,
    num_beams: Annotated[int | None, typer.Option(min=1, help="1 by default.")] = None,
    original_beams: Annotated[
        bool,
        typer.Option(
            "--original-beams",
            help="The original's: 5 under the rules of 2024; 1 above 20e9 parameters or --dynamic.",
        ),
    ] = False,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="The task's own.")] = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Cut images into tiles.")] = False,
    max_num: Annotated[
        int | None, typer.Option(min=1, help="Most tiles, with --dynamic: the task's own, or 6.")
    ] = None,
    num_segments: Annotated[
        int | None,
        typer.Option("--num-segments", "--num_segments", min=1, help="Frames of a video."),
    ] = None,
    cot: Cot = False,
    datasets: Datasets = None,
    checkpoint_flag: CheckpointFlag = None,
    few_shot: FewShot = None,
    sample: Sample = None,
    top_k: TopK = None,
    top_p: TopP = None,
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", help="int8 weights.")] = False,
    load_in_4bit: Annotated[
        bool, typer.Option("--load-in-4bit", help="nf4 language model.")
    ] = False,
    compile: Compile = True,
    auto: Annotated[bool, typer.Option("--auto", help="One model over all GPUs.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, in spite of a GPU.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16 instead of the default.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "--num-workers",
            min=0,
            help="Threads that read images: 4, on a CPU 0.",
        ),
    ] = None,
    rules: RulesName = None,
    judge: JudgeName = None,
    judge_base_url: JudgeUrl = None,
    judge_prompts: JudgePrompts = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show every answer.")] = False,
    check_only: Annotated[
        bool, typer.Option("--check-only", help="See that it could start, and stop.")
    ] = False,
) -> None:
    """Ask a checkpoint the questions of tasks and score its answers.

    A run that was killed goes on where it was when it is started again. Under torchrun or srun the
    questions are shared out.

    Example: internvl-chat eval run pretrained/internvl-chat-tiny pope --limit 100
    """
    from internvl_chat.evaluation.dataset_keys import tasks_of_keys
    from internvl_chat.evaluation.settings import RunSettings, results_folder

    own = OwnData(jsonl=jsonl, meta=meta, held_out=held_out, root=root, metrics=metric, by=by)
    names = task if datasets is None else tasks_of_keys(datasets)
    found = tasks_of(names, own, reasons=cot, rules=parse_rules(rules))
    checkpoint = checkpoint_flag or checkpoint
    settings = RunSettings(
        checkpoint=checkpoint,
        folder=results_folder(out_dir, checkpoint, reasons=cot),
        export_folder=None,
        root=data_root(),
        rules=parse_rules(rules),
        batch_size=_batch_size(batch_size),
        limit=limit,
        seed=seed,
        num_beams=num_beams,
        uses_original_beams=original_beams,
        temperature=temperature,
        samples=truth_of(sample),
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        dynamic=dynamic,
        max_num=max_num,
        num_segments=num_segments,
        load_in_8bit=load_in_8bit,
        load_in_4bit=load_in_4bit,
        compile=compile,
        spread=auto,
        use_cpu=_is_cpu(device),
        dtype=dtype,
        workers=workers,
        is_scored=True,
        shows_answers=verbose,
        table_format="xlsx",
        score_format="csv",
    )
    judges = judges_of(
        name=judge, base_url=judge_base_url, prompts=judge_prompts, rules=parse_rules(rules)
    )
    notes = FlagsOfOne(few_shot=few_shot, sample=sample).notes(found, settings)
    settings = require_start(settings, found, judges)
    if check_only:
        return
    for note in notes if is_first_process() else ():
        typer.echo(f"note: {note}", err=True)
    raise typer.Exit(run_on_ranks([settings], found, judges))


@app.command("list")
def list_tasks(as_json: Json = False) -> None:
    """Name all tasks, what data they need and whether it is here.

    Example: internvl-chat eval list
    """
    from internvl_chat.evaluation.registry import GROUPS, TASKS

    root = data_root()
    rows = [_row(task, root) for task in TASKS.values()]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        missing = [one["path"] for one in row["data"] if not one["present"]]
        state = "data is here" if not missing else f"missing: {', '.join(missing)}"
        typer.echo(f"{row['id']:<28} {row['metric']:<24} {state}")
    for name, members in GROUPS.items():
        typer.echo(f"{name:<28} = {', '.join(members)}")


@app.command()
def prompts(
    task: TaskId = None,
    jsonl: OwnJsonl = None,
    meta: OwnMeta = None,
    held_out: HeldOut = None,
    root: OwnRoot = None,
    as_json: Json = False,
    rules: RulesName = None,
    cot: Cot = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first n questions.")] = None,
) -> None:
    """Show what a model would be asked, before its chat template.

    Example: internvl-chat eval prompts pope --limit 3
    """
    from internvl_chat.evaluation.prompts import describe_prompts

    own = OwnData(jsonl=jsonl, meta=meta, held_out=held_out, root=root, metrics=None, by="")
    chosen = parse_rules(rules)
    for one in tasks_of([task] if task else None, own, reasons=cot, rules=chosen):
        rows = describe_prompts(one, data_root(), chosen, limit)
        if as_json:
            typer.echo(json.dumps(rows, ensure_ascii=False))
            continue
        for row in rows:
            typer.echo(f"{row['id']}  {row['images']}  {row['settings']}\n{row['prompt']}\n")


@app.command()
def prepare(
    task: Annotated[
        str,
        typer.Argument(metavar="TASK", help="Id of a task.", autocompletion=benchmark_tasks),
    ],
    source: Annotated[Path, typer.Argument(help="Its unpacked release, or the one file.")],
    out: Annotated[Path, typer.Option(help="The folder that holds data/.")] = Path(),
) -> None:
    """Bring an official release into the layout of docs/eval_data.md.

    Texts are written, images and videos are linked to; what exists is left as it is.

    Example: internvl-chat eval prepare vqa-okvqa-val downloads/okvqa
    """
    from internvl_chat.evaluation.prepare import prepare as prepare_release

    written = prepare_release(task, source, out)
    for path in written:
        typer.echo(str(path))
    typer.echo(f"{len(written)} new" if written else "all was in place")


@app.command()
def score(
    task: TaskId = None,
    answers: Annotated[
        list[Path] | None,
        typer.Argument(metavar="ANSWERS...", help="Ours, or the original's files."),
    ] = None,
    jsonl: OwnJsonl = None,
    meta: OwnMeta = None,
    held_out: HeldOut = None,
    root: OwnRoot = None,
    metric: OwnMetrics = None,
    by: OwnField = "",
    as_json: Json = False,
    rules: RulesName = None,
    cot: Cot = False,
    judge: JudgeName = None,
    judge_base_url: JudgeUrl = None,
    judge_prompts: JudgePrompts = None,
) -> None:
    """Score answer files, under all rules side by side.

    Takes our answers.jsonl and what the original evaluators and VLMEvalKit write. The exit code is
    1 if answers are missing.

    Example: internvl-chat eval score pope results/pretrained_internvl-chat-tiny/pope/answers.jsonl
    """
    from internvl_chat.evaluation.judging import REPLIES, summary_of, warning_of
    from internvl_chat.evaluation.scoring import as_text, score_files

    own = OwnData(jsonl=jsonl, meta=meta, held_out=held_out, root=root, metrics=metric, by=by)
    files = [*(answers or ())]
    if own.is_given and task is not None:  # what stands in the place of an id is a file
        files.insert(0, Path(task))
        task = None
    if not files:
        raise ConfigError("no file", where="ANSWERS", fix="Name the answers to be scored.")
    wanted = parse_rules(rules)
    # Without --rules the reasoned answers are scored by those that know of reasoning.
    tasks = tasks_of([task] if task else None, own, reasons=cot, rules=wanted or "later")
    if len(tasks) != 1:
        names = ", ".join(one.id for one in tasks)
        raise ConfigError(f"{task} stands for several tasks", where="TASK", fix=f"Name {names}.")
    judges = judges_of(name=judge, base_url=judge_base_url, prompts=judge_prompts, rules=wanted)
    with judges.open(tasks[0], files[0].absolute().parent / REPLIES) as opened:
        report, missing = score_files(tasks[0], data_root(), files, rules=wanted, judge=opened)
        warning = warning_of(summary_of(opened.model))
    if as_json:
        typer.echo(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        typer.echo(as_text(report, wanted or tasks[0].rules[0]))
    if warning:
        typer.echo(f"warning: {warning}", err=True)
    if missing:
        shown = ", ".join(missing[:10]) + (" …" if len(missing) > 10 else "")
        typer.echo(f"error: {len(missing)} answers are missing: {shown}", err=True)
        raise typer.Exit(1)


# -- shared with run.py ---------------------------------------------------------------------------


def data_root() -> DataRoot:
    """Data below the working directory; TSV files below ``$LMUData`` or ``~/LMUData``."""
    from internvl_chat.evaluation.task import DataRoot

    named = os.environ.get("LMUData", "")  # noqa: SIM112
    lmu_data = Path(named) if named and Path(named).exists() else Path.home() / "LMUData"
    return DataRoot(folder=Path(), lmu_data=lmu_data)


def parse_rules(name: str | None) -> Rules | None:
    """A set of rules by its name; None stays None.

    Raises:
        ConfigError: there is no such set.
    """
    from internvl_chat.evaluation.task import RULES

    if name is None:
        return None
    for rules in RULES:
        if rules == name:
            return rules
    raise ConfigError(f"{name!r} are none", where="--rules", fix=f"Give {', '.join(RULES)}.")


def judges_of(
    *,
    name: str | None,
    base_url: str | None,
    prompts: Path | None,
    rules: Rules | None,
    api_key: str | None = None,
    most_at_once: int | None = None,
    most_tries: int | None = None,
    reply_seconds: float | None = None,
) -> JudgeOptions:
    """What was said of judges, with the environment."""
    from internvl_chat.evaluation.judge import JudgeLimits
    from internvl_chat.evaluation.judging import JudgeOptions

    said: dict[str, Any] = {
        "most_at_once": most_at_once,
        "most_tries": most_tries,
        "reply_seconds": reply_seconds,
    }
    return JudgeOptions(
        name=name,
        rules=rules,
        base_url=base_url,
        api_key=api_key,
        prompts=prompts,
        limits=JudgeLimits(**{key: value for key, value in said.items() if value is not None}),
        environ=os.environ,
    )


def require_start(
    settings: RunSettings, tasks: list[TaskSpec], judges: JudgeOptions
) -> RunSettings:
    """See that a run could start, before anything heavy.

    Returns:
        The settings; a checkpoint on the hub is named by the commit that it has now, or had when
        the run began that is gone on with.

    Raises:
        UserError: data or the checkpoint are missing, or the settings exclude each other.
    """
    from internvl_chat.checkpoint.hub_commits import pinned_before, pinned_model
    from internvl_chat.checkpoint.sources import find_chat_config
    from internvl_chat.evaluation.results import recorded_checkpoint
    from internvl_chat.evaluation.scoring import require_data

    require_data(tasks, settings.root, with_folders=True)
    recorded = (recorded_checkpoint(settings.folder / task.id) for task in tasks)
    pinned = pinned_before(settings.checkpoint, recorded) or pinned_model(settings.checkpoint)
    settings = replace(settings, checkpoint=pinned)
    find_chat_config(settings.directory)
    asks = settings.is_scored and is_first_process()
    for told in judges.check(tasks, asks=asks):
        typer.echo(f"warning: {told}", err=True)
    return settings


def run_on_ranks(runs: Sequence[RunSettings], tasks: list[TaskSpec], judges: JudgeOptions) -> int:
    """Meet the other ranks, run, and return the exit code: 1 where questions could not be asked.

    Args:
        runs: settings of one checkpoint each.
        tasks: of all of them.
        judges: of the tasks that have one.
    """
    from transformers.utils.logging import disable_progress_bar

    from internvl_chat.evaluation.opening import count_parameters, open_model
    from internvl_chat.evaluation.runner import plan_tasks, run_plans
    from internvl_chat.train.distributed import init_distributed, shut_down

    disable_progress_bar()
    use_cpu = any(settings.use_cpu for settings in runs)
    state = init_distributed(timeout_seconds=_WEEK_SECONDS, use_cpu=use_cpu)
    num_unanswered = 0
    try:
        for settings in runs:
            try:
                _refuse_spread_over_ranks(settings, state)
                settings = _fetched(settings, state)
                plans = plan_tasks(settings, tasks, state, count_parameters)
            except UserError as err:  # all ranks', in agreement
                if state.is_main:
                    typer.echo(f"error: {err}", err=True)
                return _leave(err.exit_code, state, f"error: {err}")
            outcomes = run_plans(
                settings,
                plans,
                state,
                open_answerer=open_model,
                judges=judges.open,
                tell=typer.echo,
            )
            num_unanswered += sum(len(one.unanswered) for one in outcomes)
        return _leave(int(num_unanswered > 0), state, "questions could not be asked, see above")
    finally:
        shut_down()


def _fetched(settings: RunSettings, state: DistributedState) -> RunSettings:
    """Bring a checkpoint on the hub here, once a machine and of one commit for all."""
    from internvl_chat.checkpoint.hub import local_model
    from internvl_chat.train.distributed import ahead_on_each_node, from_rank_zero

    checkpoint = from_rank_zero(state, lambda: settings.checkpoint)
    ahead_on_each_node(state, lambda: local_model(checkpoint), name=f"fetched/{checkpoint}")
    return replace(settings, checkpoint=checkpoint)


def _refuse_spread_over_ranks(settings: RunSettings, state: DistributedState) -> None:
    if settings.spread and state.world_size > 1:
        raise ConfigError(
            f"one model over all GPUs, but {state.world_size} processes",
            where="--auto",
            fix="Start one process: GPUS=1.",
        )


def _leave(code: int, state: DistributedState, reason: str) -> int:
    """The exit code of this rank."""
    if code:
        leave_reason(reason)
    return leave_status(code, world_size=state.world_size, is_main=state.is_main)


def _row(task: TaskSpec, root: DataRoot) -> dict[str, Any]:
    place = root.of(task.suite)
    return {
        "id": task.id,
        "suite": task.suite,
        "data": [{"path": one.path, "present": one.is_in(place)} for one in task.data],
        "metric": task.metric,
        "max_new_tokens": task.generation_under(task.rules[0]).max_new_tokens,
        "judge": task.judge,
        "published": task.published,
    }


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"is {text!r}", where="--batch-size", fix="Give auto, or 1 or more.")
    return int(text)


def _is_cpu(device: str | None) -> bool:
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f"is {device!r}", where="--device", fix="Give cpu, or leave it out.")
    return device == "cpu"
