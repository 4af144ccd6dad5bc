"""Host memory of all ranks together while an evaluation opens its model.

python benchmarks/eval_load_memory.py [--megabytes 400] [--ranks 4]

A chat checkpoint of the wanted size is written twice, in bfloat16 and in float32, and opened on
gloo ranks of one machine to be computed with in float32: by ``load_model`` in each rank, as many
programs would do it, and by ``internvl_chat.evaluation.opening.open_model``. Measured is the
proportional share (PSS) of memory, summed over the ranks, above that before loading: pages that
ranks share count once. ``peak`` is the highest sum of a sample every 20 ms, ``after`` the sum once
all have loaded and touched every weight.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from benchmarks.common import python_path

WAYS = ("own copies", "open_model")
SAMPLE_SECONDS = 0.02


def pss_mb(pid: int) -> float:
    """Proportional share of a process in MB (10^6 bytes); 0 once it has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    except (OSError, ProcessLookupError):
        pass
    return 0.0


def write_checkpoint(directory: Path, megabytes: int) -> float:
    """``bf16/`` and ``fp32/``: one chat model in both dtypes; returns MB in bfloat16."""
    import torch
    from transformers import AutoTokenizer

    from benchmarks.load_memory import write_parts
    from internvl_chat.model import InternVLChatModel

    size = write_parts(directory, megabytes)
    model = InternVLChatModel.from_pretrained(directory / "chat", dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(directory / "llm")
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        model.to(dtype).save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    return size


def load(way: str, checkpoint: str, folder: Path) -> None:
    """One rank: wait for the start, load, touch, say so, wait for the end."""
    import torch.distributed as dist

    from internvl_chat.chat.loading import load_model
    from internvl_chat.evaluation import opening
    from internvl_chat.train.distributed import init_distributed
    from tests.support.evaluation.scripted import settings_in

    state = init_distributed(use_cpu=True)
    settings = settings_in(folder / "settings", checkpoint=checkpoint, dtype="float32")
    dist.barrier()
    (folder / f"ready-{state.rank}").touch()
    _wait_for(folder / "go")
    if way == "own copies":
        model: Any = load_model(checkpoint, device="cpu", dtype=opening.DTYPES["float32"])[0]
    else:
        model = opening.open_model(settings, state).model
    total = sum(float(one.detach().double().sum()) for one in model.parameters())
    dist.barrier()
    (folder / f"done-{state.rank}").write_text(str(total))
    _wait_for(folder / "end")
    dist.destroy_process_group()


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def measure(way: str, checkpoint: Path, num_ranks: int) -> dict[str, float]:
    """Peak and final MB above those before loading, and seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = _start(way, checkpoint, num_ranks, folder)
        try:
            while not all((folder / f"ready-{n}").exists() for n in range(num_ranks)):
                _require_alive(ranks)
                time.sleep(0.05)
            before = sum(pss_mb(one.pid) for one in ranks)
            (folder / "go").touch()
            begin, peak = time.perf_counter(), 0.0
            while not all((folder / f"done-{n}").exists() for n in range(num_ranks)):
                _require_alive(ranks)
                peak = max(peak, sum(pss_mb(one.pid) for one in ranks))
                time.sleep(SAMPLE_SECONDS)
            seconds = time.perf_counter() - begin
            after = sum(pss_mb(one.pid) for one in ranks)
            (folder / "end").touch()
            for one in ranks:
                one.communicate(timeout=300)
        finally:
            for one in ranks:
                if one.poll() is None:
                    one.kill()
    return {"peak": peak - before, "after": after - before, "seconds": seconds}


def _start(
    way: str, checkpoint: Path, num_ranks: int, folder: Path
) -> Sequence[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(num_ranks):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": python_path(),
        }
        command = [sys.executable, __file__, "--load", way, "--checkpoint", str(checkpoint)]
        ranks.append(
            subprocess.Popen(
                [*command, "--folder", str(folder)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return ranks


def _require_alive(ranks: Sequence[subprocess.Popen[str]]) -> None:
    for one in ranks:
        if one.poll() is not None:
            raise RuntimeError(one.communicate()[1][-3000:])


def main() -> None:
    """Command line; with ``--load``, one rank of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=400, help="Of the model in bfloat16.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--load", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        load(args.load, str(args.checkpoint), args.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        size = write_checkpoint(Path(name), args.megabytes)
        print(f"model: {size:.0f} MB in bfloat16, {2 * size:.0f} MB in float32; asked in float32")
        print(f"{'on disk':<8}{'ranks':>6}{'way':>12}{'peak MB':>10}{'after MB':>10}{'s':>6}")
        for stored in ("bf16", "fp32"):
            for ranks in args.ranks:
                for way in WAYS:
                    found = measure(way, Path(name) / stored, ranks)
                    print(
                        f"{stored:<8}{ranks:>6}{way:>12}{found['peak']:>10.0f}"
                        f"{found['after']:>10.0f}{found['seconds']:>6.1f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
