"""Ask a checkpoint the held-out records of an example, by the package's evaluation runner.

    python -m examples.benchmark --model pretrained/internvl-chat-tiny \\
        --meta playground/opensource/quickstart/heldout.json --out work_dirs/quickstart/before

Under torchrun the questions are shared out; what a killed run has answered is not asked again.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from internvl_chat.errors import UserError
from internvl_chat.evaluation.opening import count_parameters, open_model
from internvl_chat.evaluation.runner import plan_tasks, run_plans
from internvl_chat.evaluation.settings import RunSettings
from internvl_chat.evaluation.task import DataRoot, Question, TaskSpec
from internvl_chat.evaluation.tasks.own import task_of_records
from internvl_chat.train.distributed import init_distributed, shut_down

MAX_NEW_TOKENS = 64


def settings_of(checkpoint: Path, folder: Path) -> RunSettings:
    """Greedy answers in fp32 on the CPU."""
    return RunSettings(
        checkpoint=str(checkpoint),
        folder=folder,
        export_folder=None,
        root=DataRoot(folder=Path(), lmu_data=Path()),
        rules=None,
        batch_size=None,
        limit=None,
        seed=0,
        num_beams=None,
        uses_original_beams=False,
        temperature=0.0,
        samples=False,
        top_k=None,
        top_p=None,
        max_new_tokens=MAX_NEW_TOKENS,
        dynamic=False,
        max_num=1,
        num_segments=None,
        load_in_8bit=False,
        load_in_4bit=False,
        compile=True,
        spread=False,
        use_cpu=True,
        dtype="float32",
        workers=2,
        is_scored=True,
        shows_answers=False,
        table_format="xlsx",
        score_format="csv",
    )


def run_benchmark(checkpoint: Path, tasks: Sequence[TaskSpec], folder: Path) -> None:
    """Answer and score the tasks below ``folder``, a folder each.

    Raises:
        UserError: the data or the checkpoint cannot be used.
    """
    state = init_distributed(use_cpu=True)
    try:
        settings = settings_of(checkpoint, folder)
        plans = plan_tasks(settings, tasks, state, count_parameters)
        run_plans(settings, plans, state, open_answerer=open_model)
    finally:
        shut_down()


def read_answers(folder: Path, task: str) -> dict[str, str]:
    """What a checkpoint answered, by question id."""
    path = folder / task / "answers.jsonl"
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {line["id"]: line.get("answer", "") for line in lines}


def ask(checkpoint: Path, tasks: Sequence[TaskSpec]) -> list[tuple[Question, str]]:
    """All questions of the tasks with their answers; the files of the run are not kept."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_benchmark(checkpoint, tasks, folder)
        data = DataRoot(folder=Path(), lmu_data=Path())
        pairs = []
        for task in tasks:
            answers = read_answers(folder, task.id)
            pairs += [(one, answers[one.id]) for one in task.load(data, "2024")]
    return pairs


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="chat checkpoint")
    parser.add_argument("--meta", type=Path, required=True, help="meta JSON of held-out records")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args()
    try:
        task = task_of_records(args.meta, meta=True, metrics=["exact", "iou"])
        run_benchmark(args.model, [task], args.out)
    except UserError as err:
        sys.stderr.write(f"error: {err}\n")
        return err.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
