"""What a quickstart run consists of: budgets, the recipe's settings, the files. No side effects."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from examples.quickstart.commands import Command, wrapped
from examples.quickstart.data import DataFiles, DataPlan

RECIPE = (
    "shell/internvl1.2/2nd_finetune/internvl_chat_v1_2_hermes2_yi34b_448_res_2nd_finetune_full.sh"
)
MODEL = Path("pretrained/internvl-chat-tiny")
NUM_PROCESSES = 2


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of everything."""

    name: str
    data: DataPlan
    max_steps: int | None = None
    """Optimizer steps; None for one epoch."""


BUDGETS = {
    budget.name: budget
    for budget in (
        Budget(name="full", data=DataPlan()),
        # For tests: every phase really runs, but too little is trained to learn much.
        Budget(
            name="small",
            data=DataPlan(
                digit_scans=160, digit_looks=1, digit_held_out=24, general=64, general_held_out=6
            ),
            max_steps=6,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What lies in the run's folder."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The fine-tuned model: ``--output_dir`` of the training."""
        return self.folder / "model"

    @property
    def result(self) -> Path:
        """Written last: a run that has it is finished."""
        return self.folder / "result.json"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / "report.html"

    @property
    def state(self) -> Path:
        """What is done so far, for a run that is started again."""
        return self.folder / "state.json"

    def replies(self, phase: str) -> Path:
        """Answers of the phase ``before`` or ``after``."""
        return self.folder / f"{phase}.jsonl"


@dataclass(frozen=True, kw_only=True)
class TrainingCommand:
    """The second recipe with the settings for a tiny model on a CPU."""

    settings: dict[str, str]
    """The recipe's environment."""
    arguments: list[str]
    """The program and its arguments."""


def data_files(playground: Path, budget: Budget) -> DataFiles:
    """The full budget's files have the plain name."""
    suffix = "" if budget.name == "full" else f"-{budget.name}"
    return DataFiles(playground=playground, name=f"quickstart{suffix}")


def training_command(
    *, model: Path, meta: Path, output_dir: Path, max_steps: int | None
) -> TrainingCommand:
    """The command that the quickstart trains with; it can be run by hand as well."""
    settings = {
        "LAUNCHER": "pytorch",
        "GPUS": str(NUM_PROCESSES),
        "BATCH_SIZE": "2",  # packs of samples, about a dozen in each
        "PER_DEVICE_BATCH_SIZE": "1",
        "NUM_WORKERS": "1",
        "DEEPSPEED_CONFIG": "shell/deepspeed/zero_stage3_config.json",
        "MODEL_PATH": model.as_posix(),
        "META_PATH": meta.as_posix(),
        "OUTPUT_DIR": output_dir.as_posix(),
    }
    arguments = [
        *("--force_image_size", "112"),
        *("--bf16", "False"),  # most CPUs have no bf16 arithmetic
        *("--freeze_backbone", "False"),  # handwriting is new to the vision tower as well
        *("--use_packed_ds", "True", "--max_packed_tokens", "1024", "--max_seq_length", "512"),
        *("--group_by_length", "False"),
        *("--loss_reduction", "square"),  # else one list of shapes weighs as much as ten digits
        *("--grad_checkpoint", "False"),  # memory is no worry at this size, time is
        *("--learning_rate", "3e-4", "--warmup_ratio", "0.05"),
        *(["--max_steps", str(max_steps)] if max_steps else ["--num_train_epochs", "1"]),
    ]
    return TrainingCommand(settings=settings, arguments=["sh", RECIPE, *arguments])


def benchmark_command(*, model: Path, meta: Path, results: Path) -> list[str]:
    """The command that asks the held-out questions; results go to a folder."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(NUM_PROCESSES)),
        *("-m", "examples.benchmark", "--model", model.as_posix()),
        *("--meta", meta.as_posix(), "--out", results.as_posix()),
    ]


def next_commands(
    *, before: Path, after: Path, image: str | None, training: TrainingCommand
) -> list[Command]:
    """What one wants to type after a run, for the page.

    Args:
        before, after: the checkpoints.
        image: a held-out image of the custom dataset.
        training: the command of the run.
    """
    activate = Path(sys.executable).with_name("activate")
    prefix = f". {shlex.quote(_from_here(activate))}\n" if activate.is_file() else ""
    chat = ["internvl-chat", "chat", "--model", after.as_posix()]
    asked = [*chat, "--image", image, "Which digit is this?"] if image else chat
    demo = ["internvl-chat", "demo", "--model", before.as_posix(), "--compare", after.as_posix()]
    again = after.with_name(f"{after.name}-2").as_posix()  # the run's own folder is left alone
    install = "pip install -e '.[demo]'\n"
    return [
        Command(title="Ask the fine-tuned model", text=prefix + wrapped(asked)),
        Command(title="Before and after side by side", text=prefix + install + wrapped(demo)),
        Command(
            title="Train again, with settings of your own",
            text=prefix + wrapped(training.arguments, {**training.settings, "OUTPUT_DIR": again}),
        ),
    ]


def _from_here(path: Path) -> str:
    here = Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()
