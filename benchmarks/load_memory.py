"""Peak memory per rank while a model is loaded, at 1, 2 and 4 ranks.

python benchmarks/load_memory.py [--megabytes 160] [--ranks 1 2 4]

A chat model of the wanted size is stitched from three files made on the fly: by
``internvl_chat.checkpoint`` without ZeRO and under ZeRO-3, and by transformers' own
``from_pretrained`` under ZeRO-3 (from the same weights, saved as one checkpoint). Each rank is a
process on gloo. Measured is the growth of its highest resident set over that before loading, after
imports and the process group; pages of mapped files count, as the kernel counts them.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from benchmarks.common import python_path

IMAGE_SIZE = 112
WAYS = ("plain", "zero3", "transformers")


def resident_mb(field: str = "VmRSS") -> float:
    """A field of /proc/self/status in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no {field} in /proc/self/status")


class PeakWatch(threading.Thread):
    """Samples the resident set every few milliseconds (the kernel's own peak holds imports)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = self.start_mb = resident_mb()
        self._stop_event = threading.Event()

    def run(self) -> None:
        while not self._stop_event.wait(0.003):
            self.peak = max(self.peak, resident_mb())

    def stop(self) -> float:
        self._stop_event.set()
        self.join()
        self.peak = max(self.peak, resident_mb())
        return self.peak - self.start_mb


def write_parts(directory: Path, megabytes: int) -> float:
    """Separate checkpoints of a ViT, a projector and an LLM in bf16; returns their MB."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from internvl_chat.checkpoint.tokenizer import add_special_tokens
    from internvl_chat.model import (
        InternVisionConfig,
        InternVisionModel,
        InternVLChatConfig,
        InternVLChatModel,
    )
    from tests.support.checkpoints import tiny_tokenizer

    torch.set_default_dtype(torch.bfloat16)
    tokenizer = tiny_tokenizer()
    width, vocabulary = 512, 8192
    layers = max(2, round((megabytes * 1e6 / 2 - 2 * vocabulary * width - 6e6) / 3.4e6))
    llm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=1536,
            num_hidden_layers=layers,
            num_attention_heads=8,
            tie_word_embeddings=False,
            dtype="bfloat16",
        )
    )
    vision_config = InternVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=14,
        hidden_size=256,
        num_attention_heads=4,
        intermediate_size=1024,
        num_hidden_layers=6,
    )
    vision = InternVisionModel(vision_config)
    chat = InternVLChatModel(
        InternVLChatConfig(
            vision_config=vision_config.to_dict(),
            llm_config=llm.config.to_dict(),
            force_image_size=IMAGE_SIZE,
            template="Hermes-2",
        ),
        vision,
        llm,
    )
    vision.save_pretrained(directory / "vit")
    llm.save_pretrained(directory / "llm")
    tokenizer.save_pretrained(directory / "llm")
    torch.save(chat.mlp1.state_dict(), directory / "mlp.pth")
    add_special_tokens(tokenizer)
    chat.save_pretrained(directory / "chat")
    return sum(p.numel() * p.element_size() for p in chat.parameters()) / 1e6


def load(way: str, directory: Path) -> float:
    """Load in one of the ways on this rank; returns the peak's growth in MB."""
    import torch
    import torch.distributed as dist
    from transformers.integrations import HfDeepSpeedConfig

    from internvl_chat.checkpoint.load import build_model
    from internvl_chat.checkpoint.tokenizer import add_special_tokens, load_tokenizer
    from internvl_chat.model import InternVLChatModel
    from internvl_chat.train.arguments import DataArguments, ModelArguments, build_config

    dist.init_process_group("gloo")
    announced = None
    if way != "plain":
        import deepspeed

        deepspeed.init_distributed("gloo")
        announced = HfDeepSpeedConfig(
            {
                "zero_optimization": {"stage": 3},
                "train_micro_batch_size_per_gpu": 1,
                "bf16": {"enabled": True},
            }
        )
    tokenizer = load_tokenizer(str(directory / "llm"))
    new = add_special_tokens(tokenizer)
    parts = ModelArguments(
        vision_path=str(directory / "vit"),
        mlp_path=str(directory / "mlp.pth"),
        llm_path=str(directory / "llm"),
    )
    build = build_config(
        parts,
        DataArguments(force_image_size=IMAGE_SIZE),
        dtype=torch.bfloat16,
        attn_implementation=None,
        seed=0,
    )
    dist.all_reduce(torch.ones(1 << 20))  # buffers of the process group
    dist.barrier()
    watch = PeakWatch()
    watch.start()
    if way == "transformers":
        model: Any = InternVLChatModel.from_pretrained(directory / "chat", dtype=torch.bfloat16)
    else:
        model = build_model(build, tokenizer, num_new_tokens=new)
    grown = watch.stop()
    del model, announced
    dist.barrier()
    dist.destroy_process_group()
    return grown


def measure(way: str, world_size: int, directory: Path) -> list[float]:
    """Load on ``world_size`` fresh processes; returns each rank's growth in MB."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world_size):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": python_path(),
        }
        command = [sys.executable, __file__, "--load", way, "--directory", str(directory)]
        processes.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    grown = []
    for process in processes:
        out, err = process.communicate(timeout=1200)
        if process.returncode:
            raise RuntimeError(f"{way} at {world_size} ranks failed:\n{err[-3000:]}")
        grown.append(json.loads(out.strip().splitlines()[-1])["grown_mb"])
    return grown


def main() -> None:
    """Command line; with ``--load``, one rank of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=160)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--load", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps({"grown_mb": load(args.load, args.directory)}))
        return
    with tempfile.TemporaryDirectory() as folder:
        size = write_parts(Path(folder), args.megabytes)
        print(f"model: {size:.0f} MB in bf16; growth of each rank's resident set while loading")
        print(
            f"{'way':<14}{'ranks':>6}{'highest MB':>12}{'of model':>10}{'model/ranks':>13}{'s':>6}"
        )
        for way in args.ways:
            for ranks in args.ranks:
                start = time.perf_counter()
                peak = max(measure(way, ranks, Path(folder)))
                share = size if way == "plain" else size / ranks
                seconds = time.perf_counter() - start
                print(
                    f"{way:<14}{ranks:>6}{peak:>12.0f}{peak / size:>10.2f}{share:>13.0f}"
                    f"{seconds:>6.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
