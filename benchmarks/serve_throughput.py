"""Answers per second: ``internvl-chat serve`` with one client and with many, and ``model.chat``.

One round asks the same questions, each about its own image (a JPEG file), three times: one by one
with ``model.chat`` in a process of its own, by one client of the server, and by many at once. Both
begin with the file's bytes and have the same number of threads. All greedy answers must be equal.

Two kinds of answers: those of the shipped tiny model, two or three tokens long, where reading
images and prompts is the work, and answers of exactly ``--tokens`` tokens (the same model with
its end of turn made unlikely), where generation is. ::

    python benchmarks/serve_throughput.py --rounds 3
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from benchmarks.common import ROOT, machine, median_and_all, python_path, report, run_child, table

TINY = ROOT / "pretrained/internvl-chat-tiny"
FAMILIES = ("shapes", "charts", "reading")
SEED = 7
WARM_UP = 8
"""Questions that are asked before time is taken."""
MAX_TOKENS = 32
"""Of the shipped model's answers, which end by themselves."""


def write_questions(path: Path, number: int) -> None:
    """JSON: for each question its text and the JPEG in base64."""
    from examples.tiny_model.records import make_sample

    questions = []
    for index in range(number):
        sample = make_sample(SEED, FAMILIES[index % len(FAMILIES)], "heldout", index)
        file = io.BytesIO()
        sample.images[0].save(file, format="JPEG", quality=95)
        image = base64.b64encode(file.getvalue()).decode()
        questions.append({"text": sample.questions[0].text, "image": image})
    path.write_text(json.dumps(questions), encoding="utf-8")


def write_endless_model(directory: Path) -> None:
    """The tiny model, whose end of turn is never the likeliest token."""
    import torch

    from internvl_chat.chat import load_model

    model, tokenizer = load_model(str(TINY), device="cpu")
    with torch.no_grad():
        end = tokenizer.convert_tokens_to_ids(model.conv_template.stop_str)
        model.language_model.lm_head.weight[end] = 0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def chat_one_by_one(model_path: str, questions_path: Path, max_tokens: int) -> None:
    """In a child: answer all questions in turn and report seconds and answers."""
    from PIL import Image

    from internvl_chat.chat import load_model
    from internvl_chat.chat.media import image_config_of, load_tiles

    model, tokenizer = load_model(model_path, device="cpu")
    settings = image_config_of(model.config)
    generation = {"max_new_tokens": max_tokens, "do_sample": False}
    questions = json.loads(questions_path.read_text("utf-8"))

    def answer(question: dict[str, str]) -> str:
        image = Image.open(io.BytesIO(base64.b64decode(question["image"])))
        text = f"<image>\n{question['text']}"
        return model.chat(tokenizer, load_tiles(image, settings), text, generation)

    for question in questions[:WARM_UP]:
        answer(question)
    start = time.perf_counter()
    answers = [answer(question) for question in questions]
    report({"seconds": time.perf_counter() - start, "answers": answers})


@contextmanager
def serving(model_path: str, log_path: Path, *, threads: int, batch_size: int) -> Iterator[str]:
    """A server in a process of its own; gives its URL."""
    command = [sys.executable, "-m", "internvl_chat", "serve", "--model", model_path]
    options = ["--port", "0", "--device", "cpu", "--max-batch-size", str(batch_size)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": python_path()}
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, *options, "--served-model-name", "m"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            cwd=ROOT,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if " is served at " not in line:
            raise RuntimeError(f"the server did not start:\n{log_path.read_text('utf-8')[-3000:]}")
        yield line.split(" is served at ")[1].strip()
    finally:
        process.terminate()
        process.wait()


def ask_server(
    url: str, questions: Sequence[dict[str, str]], *, num_clients: int, max_tokens: int
) -> dict[str, Any]:
    """Ask all questions, ``num_clients`` at a time; seconds, answers and seconds of each."""
    import httpx

    def ask(client: httpx.Client, question: dict[str, str]) -> tuple[str, float]:
        start = time.perf_counter()
        image = {"url": f"data:image/jpeg;base64,{question['image']}"}
        parts = [
            {"type": "image_url", "image_url": image},
            {"type": "text", "text": question["text"]},
        ]
        body = {"model": "m", "temperature": 0, "max_tokens": max_tokens}
        body["messages"] = [{"role": "user", "content": parts}]
        reply = client.post(f"{url}/chat/completions", json=body).raise_for_status()
        return reply.json()["choices"][0]["message"]["content"], time.perf_counter() - start

    with httpx.Client(timeout=600) as client, ThreadPoolExecutor(num_clients) as pool:
        list(pool.map(lambda question: ask(client, question), questions[:WARM_UP]))
        start = time.perf_counter()
        told = list(pool.map(lambda question: ask(client, question), questions))
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "answers": [answer for answer, _ in told],
        "latency_seconds": statistics.median(one for _, one in told),
    }


def measure(
    model_path: str, questions_path: Path, directory: Path, options: argparse.Namespace, tokens: int
) -> dict[str, list[dict[str, Any]]]:
    """All rounds with one model; the three ways take turns."""
    questions = json.loads(questions_path.read_text("utf-8"))
    names = ["model.chat, one by one", "server, 1 client", f"server, {options.clients} clients"]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    child = ["--child", model_path, "--questions", str(questions_path), "--max_tokens", str(tokens)]
    with serving(
        model_path,
        directory / "server.log",
        threads=options.threads,
        batch_size=options.batch_size,
    ) as url:
        for _ in range(options.rounds):
            runs[names[0]].append(
                run_child(
                    Path(__file__),
                    child,
                    threads=options.threads,
                    log_path=directory / "chat.log",
                )
            )
            for name, num_clients in ((names[1], 1), (names[2], options.clients)):
                runs[name].append(
                    ask_server(url, questions, num_clients=num_clients, max_tokens=tokens)
                )
    return runs


def show(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The table of one kind of answers."""
    rates = {
        name: [len(run["answers"]) / run["seconds"] for run in found]
        for name, found in runs.items()
    }
    base = statistics.median(next(iter(rates.values())))
    rows = []
    for name, found in runs.items():
        latencies = [
            run.get("latency_seconds", run["seconds"] / len(run["answers"])) for run in found
        ]
        rows.append(
            [
                name,
                median_and_all(rates[name], 1),
                f"{statistics.median(rates[name]) / base:.2f}",
                f"{1000 * statistics.median(latencies):.0f}",
            ]
        )
    return table(["way", "requests/s, median (all)", "ratio", "ms an answer, median"], rows)


def num_different(runs: dict[str, list[dict[str, Any]]]) -> int:
    """Answers that are not those of the first run."""
    first, *others = [run["answers"] for found in runs.values() for run in found]
    return sum(a != b for other in others for a, b in zip(first, other, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if an answer differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=64, help="questions of a round")
    parser.add_argument("--clients", type=int, default=16, help="at once, against one")
    parser.add_argument("--batch_size", type=int, default=8, help="the server's")
    parser.add_argument("--tokens", type=int, default=64, help="of the long answers")
    parser.add_argument("--threads", type=int, default=1, help="of the model, in either process")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--questions", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--max_tokens", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        chat_one_by_one(options.child, options.questions, options.max_tokens)
        return 0
    print(machine())
    print(
        f"{options.requests} questions a round, {options.threads} threads, {options.rounds} rounds"
    )
    differ = 0
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        write_questions(directory / "questions.json", options.requests)
        write_endless_model(directory / "endless")
        for title, path, tokens in (
            ("short answers", str(TINY), MAX_TOKENS),
            (f"answers of {options.tokens} tokens", str(directory / "endless"), options.tokens),
        ):
            runs = measure(path, directory / "questions.json", directory, options, tokens)
            differ += num_different(runs)
            print(f"\n{title}\n\n{show(runs)}", flush=True)
    print(f"\n{differ} answers differ")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
