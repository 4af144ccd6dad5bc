"""Speed of ``internvl-chat eval run``: against ``model.chat`` one by one, and ``model.batch_chat``.

``--questions`` short questions about one image each, of the demo data, asked in one process by

1. ``model.chat``, one after the other,
2. ``model.batch_chat``, in batches of ``--batch-size`` in the data's order,
3. the runner with its defaults: files of answers, resuming and progress included,

taking turns over ``--rounds``. All three read the same PNG files; loading the model does not count.
The greedy answers must be the same.

Example::

    python benchmarks/eval_throughput.py --model pretrained/internvl-chat-tiny
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from benchmarks.common import machine, median_and_all, table
from examples.tiny_model.records import make_sample
from internvl_chat.chat import load_model
from internvl_chat.chat.media import image_config_of
from internvl_chat.data.pixels import normalize_pixels
from internvl_chat.evaluation.generate import ModelAnswerer
from internvl_chat.evaluation.pixels import TileRule, tiles_of
from internvl_chat.evaluation.runner import plan_tasks, run_plans
from internvl_chat.evaluation.settings import RunSettings
from internvl_chat.evaluation.sources import ImageFile
from internvl_chat.evaluation.task import DataRoot, Generation, Question, Score, TaskSpec
from internvl_chat.train.distributed import init_distributed

AIM = {"chat": 2.3, "batch_chat": 0.95}
FAMILIES = ("shapes", "charts", "reading")


def write_questions(folder: Path, count: int) -> list[Question]:
    """PNG files and a question about each; families of one-word answers take turns."""
    questions = []
    for number in range(count):
        sample = make_sample(99, FAMILIES[number % len(FAMILIES)], "heldout", number)
        path = folder / f"{number}.png"
        sample.images[0].save(path)
        questions.append(
            Question(
                id=str(number),
                prompt=sample.questions[0].text,
                images=(ImageFile(str(path)),),
            )
        )
    return questions


def task_of(questions: list[Question], max_new_tokens: int) -> TaskSpec:
    """A task that asks them and scores nothing."""
    return TaskSpec(
        id="demo",
        suite="internvl",
        title="Questions of the demo data",
        data=(),
        load=lambda root, rules: questions,
        generation=Generation(max_new_tokens=max_new_tokens),
        metric="none",
        score=lambda given: Score(metrics={}, printed="", per_sample={}),
        export=lambda given: {},
        read_answers=lambda files, wanted: {},
    )


def settings_in(folder: Path, model: str, batch_size: int | None) -> RunSettings:
    """The runner's defaults."""
    return RunSettings(
        checkpoint=model,
        folder=folder,
        export_folder=None,
        root=DataRoot(folder=folder, lmu_data=folder),
        rules=None,
        batch_size=batch_size,
        limit=None,
        seed=0,
        num_beams=None,
        uses_original_beams=False,
        temperature=0.0,
        samples=False,
        top_k=None,
        top_p=None,
        max_new_tokens=None,
        dynamic=False,
        max_num=None,
        num_segments=None,
        load_in_8bit=False,
        load_in_4bit=False,
        compile=True,
        spread=False,
        use_cpu=not torch.cuda.is_available(),
        dtype=None,
        workers=None,
        is_scored=True,
        shows_answers=False,
        table_format="xlsx",
        score_format="csv",
    )


class Rivals:
    """The three ways, each from files to answers."""

    def __init__(self, model: str, questions: list[Question], options: argparse.Namespace) -> None:
        self.path, self.questions, self.options = model, questions, options
        self.model, self.tokenizer = load_model(model)
        images = image_config_of(self.model.config)
        self.rule = TileRule(
            side=images.image_size,
            max_tiles=None,
            has_thumbnail=False,
            normalize_type=images.normalize_type,
        )
        self.greedy: dict[str, Any] = {
            "max_new_tokens": options.max_new_tokens,
            "min_new_tokens": 1,
            "do_sample": False,
        }

    def _pixels(self, question: Question) -> Tensor:
        source = question.images[0]
        assert isinstance(source, ImageFile)
        tiles = tiles_of(Image.open(source.path).convert("RGB"), self.rule)
        return normalize_pixels(tiles, dtype=self.model.dtype).to(self.model.device)

    def chat(self) -> list[str]:
        """One by one."""
        return [
            str(self.model.chat(self.tokenizer, self._pixels(one), one.prompt, self.greedy))
            for one in self.questions
        ]

    def batch_chat(self) -> list[str]:
        """In batches, in the data's order."""
        answers: list[str] = []
        for start in range(0, len(self.questions), self.options.batch_size):
            part = self.questions[start : start + self.options.batch_size]
            pixels = torch.cat([self._pixels(one) for one in part])
            asked = [one.prompt for one in part]
            found = self.model.batch_chat(self.tokenizer, pixels, asked, self.greedy)
            answers += [str(one) for one in found]
        return answers

    def runner(self) -> list[str]:
        """``eval run`` without the loading of the model."""
        answerer = ModelAnswerer(self.model, self.tokenizer, self.rule, seed=0)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            settings = settings_in(folder, self.path, None)
            state = init_distributed(use_cpu=settings.use_cpu)
            task = task_of(self.questions, self.options.max_new_tokens)
            plans = plan_tasks(settings, [task], state, lambda path: 0)
            run_plans(settings, plans, state, open_answerer=lambda *_: answerer)
            lines = (folder / "demo/answers.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["answer"] for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pretrained/internvl-chat-tiny")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=16, help="Of batch_chat.")
    parser.add_argument("--max-new-tokens", type=int, default=10, help="As short VQA tasks have.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--aim", type=float, default=AIM["chat"], help="Over chat.")
    options = parser.parse_args()
    print(f"{machine()}, {torch.get_num_threads()} threads, {options.model}\n")
    with tempfile.TemporaryDirectory() as name:
        questions = write_questions(Path(name), options.questions)
        rivals = Rivals(options.model, questions, options)
        ways: dict[str, Callable[[], list[str]]] = {
            "chat": rivals.chat,
            "batch_chat": rivals.batch_chat,
            "runner": rivals.runner,
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        answers: dict[str, list[str]] = {}
        rivals.model.batch_chat(  # first-call buffers
            rivals.tokenizer, rivals._pixels(questions[0]), [questions[0].prompt], rivals.greedy
        )
        for _ in range(options.rounds):
            for way, ask in ways.items():
                begin = time.perf_counter()
                answers[way] = ask()
                seconds[way].append(time.perf_counter() - begin)
    median = {way: statistics.median(values) for way, values in seconds.items()}
    rows = [
        [way, median_and_all(values, 2), f"{options.questions / median[way]:.1f}"]
        for way, values in seconds.items()
    ]
    print(table([f"{options.questions} questions", "s", "answers/s"], rows))
    # Of each round: what else the machine does changes from round to round.
    ratios = {
        way: statistics.median(
            other / own for other, own in zip(seconds[way], seconds["runner"], strict=True)
        )
        for way in AIM
    }
    print(f"\nrunner over chat: {ratios['chat']:.2f} (aim: {options.aim})")
    print(f"runner over batch_chat: {ratios['batch_chat']:.2f} (aim: {AIM['batch_chat']})")
    same = all(found == answers["chat"] for found in answers.values())
    print(f"answers of all equal: {'yes' if same else 'NO'}")
    reached = ratios["chat"] >= options.aim and ratios["batch_chat"] >= AIM["batch_chat"]
    return 0 if same and reached else 1


if __name__ == "__main__":
    sys.exit(main())
