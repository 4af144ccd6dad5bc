"""Peak memory and time of merging a LoRA: ``merge-lora`` against PEFT's ``merge_and_unload``.

The model has the widths of InternVL-Chat-V1-2 (7168 and 3200) and fewer layers; its weights are
zeros in a sparse file, which take no room on disk and cost what any others cost to merge. Each way
runs in a process of its own and writes a full checkpoint. PEFT's way loads the model with
``AutoModel``, merges and calls ``save_pretrained``; it checks nothing, ours compares every weight.
Example::

    python benchmarks/merge_memory.py --layers 2 --shard-mb 500
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from benchmarks.common import machine, peak_rss_mb, report, run_child, table
from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.load import skeleton_of
from internvl_chat.model import InternVLChatConfig
from internvl_chat.model.presets import load_preset

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "pretrained/internvl-chat-tiny"
RANK = 16


def write_base(directory: Path, layers: int) -> tuple[InternVLChatConfig, int]:
    """A checkpoint of zeros in bf16; its configuration and bytes."""
    config = load_preset("InternVL-Chat-V1-2")
    assert isinstance(config, InternVLChatConfig)
    config.llm_config.num_hidden_layers = layers  # type: ignore[union-attr]
    config.vision_config.num_hidden_layers = layers
    config.dtype = torch.bfloat16
    header, end = {}, 0
    for name, shape in skeleton_of(config).shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    directory.mkdir(parents=True)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    write_small_files(config, directory)
    return config, end


def write_small_files(config: InternVLChatConfig, directory: Path) -> None:
    config.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copyfile(TINY / name, directory / name)


def write_adapter(config: InternVLChatConfig, base: Path, directory: Path) -> int:
    """An adapter of random numbers on it; its bytes."""
    from safetensors.torch import save_file

    config.use_llm_lora = RANK
    directory.mkdir(parents=True)
    write_small_files(config, directory)
    generator = torch.Generator().manual_seed(0)
    weights = {
        names.adapter_key(name): torch.randn(shape, generator=generator).mul_(0.01).bfloat16()
        for name, shape in skeleton_of(config).shapes.items()
        if names.is_lora(name)
    }
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in weights})
    settings = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": targets,
        "base_model_name_or_path": str(base),
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return sum(weight.nbytes for weight in weights.values())


def merge(way: str, base: Path, adapter: Path, target: Path, shard_bytes: int) -> None:
    """What a child process does."""
    begin = time.perf_counter()
    if way == "merge-lora":
        from internvl_chat.checkpoint.surgery.merge import merge_lora

        merge_lora(str(adapter), str(target), max_shard_bytes=shard_bytes, check="weights")
    else:
        from peft import PeftModel
        from transformers import AutoModel

        import internvl_chat  # noqa: F401  registers the Auto classes

        model = AutoModel.from_pretrained(base, dtype=torch.bfloat16)
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        merged.save_pretrained(target, max_shard_size=shard_bytes)
    report({"seconds": time.perf_counter() - begin, "mb": peak_rss_mb()})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=2, help="of language model and ViT")
    parser.add_argument("--shard-mb", type=int, default=1000, help="largest file; PEFT's too")
    parser.add_argument("--way", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        way, *paths = arguments.way
        base, adapter, target = map(Path, paths)
        merge(way, base, adapter, target, arguments.shard_mb * 10**6)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        config, size = write_base(place / "base", arguments.layers)
        adapter_size = write_adapter(config, place / "base", place / "adapter")
        print(
            f"{machine()}\nmodel {size / 1e6:.0f} MB, adapter {adapter_size / 1e6:.0f} MB, "
            f"files of {arguments.shard_mb} MB\n"
        )
        rows, peaks = [], []
        for way in ("merge-lora", "merge_and_unload"):
            target = place / way
            paths = [str(path) for path in (place / "base", place / "adapter", target)]
            command = ["--shard-mb", str(arguments.shard_mb), "--way", way, *paths]
            found = run_child(Path(__file__), command, threads=2, log_path=place / f"{way}.log")
            shutil.rmtree(target)
            peaks.append(found["mb"])
            rows.append([way, f"{found['mb']:.0f}", f"{found['seconds']:.1f}"])
        print(table(["way", "peak memory, MB (libraries included)", "s"], rows))
        print(f"\nratio of the peaks: {peaks[0] / peaks[1]:.2f}")


if __name__ == "__main__":
    main()
