"""The quickstart from end to end: data, questions before, training, questions after, report.

``sh shell/quickstart.sh`` installs what is needed and runs this. Each phase leaves its files in the
run's folder, and is not repeated when an interrupted run is started again.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.annotations import write_json
from examples.quickstart.cards import CUSTOM
from examples.quickstart.commands import shell_command
from examples.quickstart.data import DataFiles, DataPlan, is_written, write_data
from examples.quickstart.plan import (
    BUDGETS,
    MODEL,
    NUM_PROCESSES,
    Budget,
    RunFiles,
    TrainingCommand,
    benchmark_command,
    data_files,
    next_commands,
    training_command,
)
from examples.quickstart.questions import (
    load_questions,
    read_answers,
    read_replies,
    write_replies,
)
from examples.quickstart.report import ReportInput, render_report
from examples.quickstart.result import make_result, show_result
from examples.quickstart.scoring import accuracy_by_dataset
from examples.quickstart.surroundings import commit, hardware, made_at, named_versions
from internvl_chat.checkpoint.hub_names import hub_name

NOT_INHERITED = (
    *("GPUS_PER_NODE", "PARTITION", "QUOTA_TYPE", "CPUS_PER_TASK", "GRES", "SRUN_ARGS"),
    *("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "VISION_PATH", "MLP_PATH", "LLM_PATH"),
    *("TRAINER", "DRY_RUN"),
)
"""Settings of the recipe which, set in the user's shell, would make another run of this one."""


class WrongUse(Exception):
    """Something the user asked for cannot be; the message says what, where and how to mend it.

    Not the package's own error: importing the package loads torch, seconds that ``--help`` and a
    finished run need not take.
    """


def make_data(console: Console, files: DataFiles, plan: DataPlan) -> None:
    """Write the custom dataset and the general data, unless this plan's files are there."""
    if is_written(files, plan):
        console.print(f"found in {files.annotations}, left as it is")
        return
    with _progress(console) as progress:
        task = progress.add_task("records", total=None)
        write_data(
            files, plan, lambda done, total: progress.update(task, completed=done, total=total)
        )
    console.print(f"images below {files.images}\nmeta JSON  {files.train_meta}")


def ask(console: Console, model: Path, files: DataFiles, replies: Path) -> int:
    """Ask a checkpoint every held-out question and write the replies; returns the exit status."""
    results = replies.with_suffix("")
    status = _run(benchmark_command(model=model, meta=files.held_out_meta, results=results))
    if status:
        return status
    answers = read_answers(results)
    given = [asked.answered(answers[asked.key]) for asked in load_questions(files.held_out_meta)]
    write_replies(replies, given)
    accuracy = accuracy_by_dataset(given)
    console.print(", ".join(f"{name} {100 * share:.1f} %" for name, share in accuracy.items()))
    return 0


def train(command: TrainingCommand) -> int:
    """Run the recipe with its output on the screen; returns its exit status."""
    return _run([*command.arguments], {"PYTHON": sys.executable, **command.settings})


def _run(arguments: Sequence[str], settings: Mapping[str, str] | None = None) -> int:
    """Run a program of two processes with its output on the screen; returns its exit status.

    Several processes of one thread beat one process of several: the model is so small that most of
    its operations are too short to be shared out.
    """
    environment = {key: value for key, value in os.environ.items() if key not in NOT_INHERITED}
    threads = max(1, (os.cpu_count() or 1) // NUM_PROCESSES)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    environment |= {
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",  # two processes on the CPU, whatever else is in the machine
        **(settings or {}),
    }
    process = subprocess.Popen(arguments, env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the recipe too: let that end
            process.send_signal(signal.SIGINT)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """One run: where, from which model, how much."""

    run: RunFiles
    files: DataFiles
    model: Path
    budget: Budget
    console: Console

    def start(self) -> int:
        """Do every phase that is not done yet; returns the exit code."""
        self._open()
        command = training_command(
            model=self.model,
            meta=self.files.train_meta,
            output_dir=self.run.checkpoint,
            max_steps=self.budget.max_steps,
        )
        self._phase(
            "data",
            "the custom dataset, and general data beside it",
            lambda: make_data(self.console, self.files, self.budget.data),
        )
        phases: list[tuple[str, str, Callable[[], int]]] = [
            (
                "before",
                "held-out questions to the model as it is shipped",
                lambda: ask(self.console, self.model, self.files, self.run.replies("before")),
            ),
            (
                "train",
                f"fine-tuning: the second recipe, ZeRO-3, {NUM_PROCESSES} processes",
                lambda: self._train(command),
            ),
            (
                "after",
                "the same questions to the fine-tuned model",
                lambda: ask(
                    self.console, self.run.checkpoint, self.files, self.run.replies("after")
                ),
            ),
        ]
        for name, title, work in phases:
            if status := self._phase(name, title, work):
                again = "sh shell/quickstart.sh"
                self.console.print(f"{name} ended with exit status {status}. To go on: {again}")
                return status
        self._finish(command)
        return 0

    def _open(self) -> None:
        """Make the run's folder; one with other settings in it is left alone."""
        settings = {"budget": self.budget.name, "model": self.model.as_posix()}
        require_settings(self.run, settings)
        if not self._state():
            self._save({"settings": settings, "seconds": {}})

    def _phase(self, name: str, title: str, work: Callable[[], int | None]) -> int:
        """Do one phase unless it is done; returns the exit status of what it ran."""
        self.console.rule(f"[bold]{name}[/bold]: {title}", align="left")
        state = self._state()
        if name in state["seconds"]:
            self.console.print(f"done before, in {state['seconds'][name]:.0f} s")
            return 0
        start = time.perf_counter()
        status = work() or 0
        if status == 0:
            seconds = round(time.perf_counter() - start, 1)
            self._save({**state, "seconds": {**state["seconds"], name: seconds}})
            self.console.print(f"[dim]{seconds:.0f} s[/dim]\n")
        return status

    def _train(self, command: TrainingCommand) -> int:
        self.console.print(
            f"[dim]{shell_command(command.arguments, command.settings)}[/dim]", soft_wrap=True
        )
        return train(command)

    def _finish(self, command: TrainingCommand) -> None:
        """Write the report and then, as the sign that all is done, the result."""
        trainer = json.loads(
            (self.run.checkpoint / "trainer_state.json").read_text(encoding="utf-8")
        )
        before, after = (read_replies(self.run.replies(phase)) for phase in ("before", "after"))
        seconds = self._state()["seconds"]
        result = make_result(
            before, after, seconds, budget=self.budget.name, num_steps=trainer["global_step"]
        )
        shown = [path for reply in after if reply.dataset == CUSTOM for path in reply.images]
        page = render_report(
            ReportInput(
                before=before,
                after=after,
                log=trainer["log_history"],
                seconds=seconds,
                made=self._made(),
                facts=self._facts(trainer["global_step"]),
                commands=next_commands(
                    before=self.model,
                    after=self.run.checkpoint,
                    image=next(iter(shown), None),
                    training=command,
                ),
            )
        )
        self.run.report.write_text(page, encoding="utf-8")
        write_json(self.run.result, result)
        show_result(self.console, self.run, result)

    @staticmethod
    def _made() -> list[str]:
        from internvl_chat.train.versions import git_revision  # imports torch

        now = datetime.now().astimezone()
        return [made_at(now), commit(git_revision()), hardware()]

    def _facts(self, num_steps: int) -> dict[str, str]:
        from internvl_chat.train.versions import git_revision, versions

        return {
            "model before": self.model.as_posix(),
            "model after": self.run.checkpoint.as_posix(),
            "meta JSON": self.files.train_meta.as_posix(),
            "budget": f"{self.budget.name}, {num_steps} optimizer steps",
            "processes": f"{NUM_PROCESSES}, on the CPU, ZeRO-3",
            "commit": git_revision() or commit(None),
            "system": platform.platform(terse=True),
            "versions": named_versions(versions()),
        }

    def _state(self) -> dict[str, Any]:
        return read_state(self.run)

    def _save(self, state: Mapping[str, Any]) -> None:
        write_json(self.run.state, state)


def read_state(run: RunFiles) -> dict[str, Any]:
    """Settings of a run and the seconds of its phases that are done; empty before its start."""
    if not run.state.is_file():
        return {}
    return dict(json.loads(run.state.read_text(encoding="utf-8")))


def require_settings(run: RunFiles, settings: Mapping[str, str]) -> None:
    """See that a folder which holds a run, finished or not, holds the run that is asked for.

    Raises:
        WrongUse: it is another's.
    """
    found = read_state(run).get("settings", settings)
    if found != settings:
        kind = "a finished" if run.result.is_file() else "an unfinished"
        raise WrongUse(
            f"{run.folder}: holds {kind} run with {found}, asked for are {dict(settings)}. Name "
            "another folder with QUICKSTART_DIR=..., or use the same."
        )


def next_free(folder: Path) -> Path:
    """``folder``, or the first of ``folder-2``, ``folder-3`` ... that is not there."""
    if not folder.exists():
        return folder
    number = 2
    while (numbered := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return numbered


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line; the environment gives the defaults, so that the shell script needs no options.

    Raises:
        WrongUse: QUICKSTART_BUDGET names no budget.
    """
    env = os.environ.get
    parser = argparse.ArgumentParser(
        prog="sh shell/quickstart.sh",
        description="Fine-tune the tiny model on handwritten digits and see what it learns.",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=env("QUICKSTART_DIR"),
        help="the run's folder (QUICKSTART_DIR; default work_dirs/quickstart, for another budget "
        "than full work_dirs/quickstart-BUDGET)",
    )
    parser.add_argument(
        "--budget",
        default=env("QUICKSTART_BUDGET", "full"),
        help="full, or small: every phase, but too little to learn much (QUICKSTART_BUDGET)",
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=Path(env("QUICKSTART_MODEL", str(MODEL))),
        help="to start from",
    )
    parser.add_argument(
        "--playground",
        type=Path,
        default=Path("playground"),
        help="where data/ and opensource/ are",
    )
    parser.add_argument(
        "--again", action="store_true", help="a new run beside those that are there, in DIR-2, ..."
    )
    args = parser.parse_args(argv)
    if args.budget not in BUDGETS:
        raise WrongUse(
            f"QUICKSTART_BUDGET: unknown budget {args.budget!r}. Use one of: {', '.join(BUDGETS)}."
        )
    if args.dir is None:
        ending = "" if args.budget == "full" else f"-{args.budget}"
        args.dir = Path(f"work_dirs/quickstart{ending}")
    args.dir = Path(args.dir)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quickstart; returns the exit code."""
    console = Console(highlight=False)
    try:
        args = parse(argv)
        if hub_name(args.model) is None and not (args.model / "config.json").is_file():
            raise WrongUse(
                f"{args.model}: no checkpoint here. Run from the repository's root, where "
                f"{MODEL} is shipped."
            )
        run = RunFiles(folder=next_free(args.dir) if args.again else args.dir)
        if run.result.is_file():
            require_settings(run, {"budget": args.budget, "model": args.model.as_posix()})
            show_result(console, run, json.loads(run.result.read_text(encoding="utf-8")))
            console.print("This run is finished. For another one: sh shell/quickstart.sh --again")
            return 0
        budget = BUDGETS[args.budget]
        files = data_files(args.playground, budget)
        return Quickstart(
            run=run, files=files, model=args.model, budget=budget, console=console
        ).start()
    except WrongUse as err:
        sys.stderr.write(f"error: {err}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
