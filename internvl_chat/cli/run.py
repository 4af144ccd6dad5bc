"""``run.py`` at the repository's root: VLMEvalKit's command line before our runner."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from internvl_chat.checkpoint.hub_names import as_path, hub_name
from internvl_chat.checkpoint.hub_progress import show_downloads
from internvl_chat.cli.eval import (
    data_root,
    judges_of,
    parse_rules,
    require_start,
    run_on_ranks,
)
from internvl_chat.cli.run_options import (
    TABLE_FORMATS,
    judge_settings,
    make_parser,
    refuse_foreign,
    table_formats,
)
from internvl_chat.errors import ConfigError, UserError
from internvl_chat.quiet import set_up_output
from internvl_chat.train.launched import is_first_process, leave_reason

if TYPE_CHECKING:
    import argparse

    from internvl_chat.evaluation.judging import JudgeOptions
    from internvl_chat.evaluation.settings import RunSettings
    from internvl_chat.evaluation.task import TaskSpec


def main(argv: Sequence[str] | None = None, *, env_file: Path | None = None) -> int:
    """Run models x data sets in the order given; returns the exit code.

    Args:
        argv: arguments without the program's name; ``sys.argv[1:]`` if None.
        env_file: lines ``NAME=value`` for the environment, which goes before them; may be absent.
    """
    if env_file is not None and env_file.is_file():
        for name, value in read_env_file(env_file).items():
            os.environ.setdefault(name, value)
    set_up_output()
    show_downloads()
    options = make_parser().parse_args(argv)
    is_main = is_first_process()
    try:
        return _run(options, is_main)
    except UserError as err:
        if is_main:
            typer.echo(f"error: {err}", err=True)
        leave_reason(f"error: {err}")
        return err.exit_code


def _run(options: argparse.Namespace, is_main: bool) -> int:
    from internvl_chat.evaluation.judging import REPLIES
    from internvl_chat.evaluation.registry import find_tasks

    refuse_foreign(options)
    tasks = find_tasks(options.data)
    judges = judges_of(
        prompts=options.judge_prompts, rules=parse_rules(options.rules), **judge_settings(options)
    )
    is_scored_alone = options.mode == "eval"
    runs = [
        _settings(options, name, name if is_scored_alone else find_checkpoint(name))
        for name in options.model
    ]
    if not is_scored_alone:
        _refuse_one_folder_for_two(runs)
        runs = [require_start(settings, tasks, judges) for settings in runs]
    pairs = [(settings, task) for settings in runs for task in tasks]
    if options.rerun and is_main:
        for settings, task in pairs:
            (settings.folder / task.id / REPLIES).unlink(missing_ok=True)
    if is_scored_alone:
        return max([_try_score(*pair, judges) for pair in pairs]) if is_main else 0
    return run_on_ranks(runs, tasks, judges)


def find_checkpoint(name: str) -> str:
    """A model's path: an existing one, else ``pretrained/NAME``, else a model on the hub.

    A folder without a checkpoint's configuration gives way: below the working directory an earlier
    run has left a folder of results under the model's name.

    Raises:
        ConfigError: neither is there.
    """
    found = [path for path in (Path(name), Path("pretrained") / name) if path.is_dir()]
    for path in found:
        if any((path / one).exists() for one in ("config.json", "adapter_config.json")):
            return str(path)
    if found:
        return str(found[0])
    if hub_name(name) is not None:
        return name
    raise ConfigError(
        f"no folder {name} and no pretrained/{name}",
        where="--model",
        fix="Correct the name, or give a model on the hub as ORG/NAME.",
    )


def _refuse_one_folder_for_two(runs: Sequence[RunSettings]) -> None:
    """Results go by the last part of a model's path: two of a name would meet after hours."""
    places: dict[Path, str] = {}
    for settings in runs:
        other = places.setdefault(settings.folder, settings.checkpoint)
        if Path(other).resolve() != Path(settings.checkpoint).resolve():
            raise ConfigError(
                f"{other} and {settings.checkpoint} would share {settings.folder}",
                where="--model",
                fix="Run them apart, each with a --work-dir.",
            )


def read_env_file(path: Path) -> dict[str, str]:
    """Names and values of a ``.env`` file; comments and other lines are passed over."""
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, is_set, value = line.strip().removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        if is_set and value and name.isidentifier():
            found[name] = value
    return found


def _settings(options: argparse.Namespace, name: str, checkpoint: str) -> RunSettings:
    from internvl_chat.evaluation.settings import RunSettings

    folder = Path(options.work_dir) / Path(as_path(name)).name
    return RunSettings(
        checkpoint=checkpoint,
        folder=folder,
        export_folder=folder,
        root=data_root(),
        rules=parse_rules(options.rules),
        batch_size=options.batch_size,
        limit=options.limit,
        seed=0,
        num_beams=None,
        uses_original_beams=True,
        temperature=0.0,
        samples=False,
        top_k=None,
        top_p=None,
        max_new_tokens=None,
        dynamic=False,
        max_num=None,
        num_segments=options.nframe,
        load_in_8bit=False,
        load_in_4bit=False,
        compile=options.compile,
        spread=False,
        use_cpu=False,
        dtype=None,
        workers=None,
        is_scored=options.mode != "infer",
        shows_answers=options.verbose,
        **table_formats(os.environ),
    )


def _try_score(settings: RunSettings, task: TaskSpec, judges: JudgeOptions) -> int:
    """Score, or say why not: the next pair is still to come; returns the exit code."""
    try:
        return _score(settings, task, judges)
    except UserError as err:
        typer.echo(f"error: {err}", err=True)
        return err.exit_code


def _score(settings: RunSettings, task: TaskSpec, judges: JudgeOptions) -> int:
    """Score the predictions of an earlier run and write its files; returns the exit code."""
    from internvl_chat.evaluation.exporting import export_scored
    from internvl_chat.evaluation.judging import REPLIES
    from internvl_chat.evaluation.results import ANSWERS
    from internvl_chat.evaluation.scoring import as_text, score_files

    ours = settings.folder / task.id / ANSWERS
    stem = f"{settings.folder.name}_{task.id}"
    tables = [settings.folder / f"{stem}.{ending}" for ending in TABLE_FORMATS]
    path = next((one for one in (ours, *tables) if one.exists()), tables[0])
    with judges.open(task, settings.folder / task.id / REPLIES) as judge:
        report, missing = score_files(
            task, settings.root, [path], rules=settings.rules, judge=judge
        )
    typer.echo(as_text(report, settings.rules_of(task)))
    if not missing:
        export_scored(task, settings, [path], report)
    else:
        typer.echo(f"error: {path}: {len(missing)} answers are missing", err=True)
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
