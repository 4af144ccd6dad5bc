"""Ask a checkpoint questions: batched greedy answers, shared out over a few processes."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import internvl_chat  # noqa: F401  registers the model's classes with transformers
from examples.answering import answer_batch
from examples.quickstart.questions import Asked, batches

BATCH_SIZE = 50


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """A loaded checkpoint."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, checkpoint: str) -> "Answerer":
        """Load in fp32, on the CPU."""
        model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
        return cls(model=model, tokenizer=AutoTokenizer.from_pretrained(checkpoint))

    def answer(self, questions: Sequence[Asked]) -> list[str]:
        """One answer for each question; all with the same number of images, which may be 0."""
        prompts, images = zip(*((asked.prompt, asked.images) for asked in questions), strict=True)
        return answer_batch(self.model, self.tokenizer, prompts, images)


_answerer: Answerer | None = None  # of this worker process


def _start_worker(checkpoint: str, threads: int) -> None:
    global _answerer
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # the main process shows one for all
    torch.set_num_threads(threads)
    _answerer = Answerer.load(checkpoint)


def _answer_in_worker(questions: Sequence[Asked]) -> list[str]:
    if _answerer is None:
        raise RuntimeError("the worker process was not started by _start_worker")
    return _answerer.answer(questions)


def answer_all(
    checkpoint: Path,
    questions: Sequence[Asked],
    num_processes: int,
    report: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Answers in the order of the questions.

    Several processes of one thread beat one process of several: the model is so small that most
    of its operations are too short to be shared out.

    Args:
        checkpoint: folder of the model.
        questions: what to ask.
        num_processes: processes at most; no more than there are CPUs.
        report: told how many questions are answered so far.
    """
    num_processes = max(1, min(num_processes, os.cpu_count() or 1))
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    answers: list[str] = [""] * len(questions)
    done = 0
    # Forking a process that has used torch's threads can hang, so each one is started afresh.
    with ProcessPoolExecutor(
        num_processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(str(checkpoint), threads),
    ) as pool:
        waiting = {
            pool.submit(_answer_in_worker, [questions[i] for i in batch]): batch
            for batch in batches(questions, BATCH_SIZE)
        }
        for future in as_completed(waiting):
            for i, answer in zip(waiting[future], future.result(), strict=True):
                answers[i] = answer
            done += len(waiting[future])
            report(done)
    return answers
