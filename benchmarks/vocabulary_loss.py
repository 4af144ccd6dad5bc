"""Peak memory and time of the vocabulary loss: all logits at once, built-in, ours.

Each method runs in a process of its own (clean peak memory), forward and backward. Seconds are of
the processor, all threads together, so that other work on the machine counts for little; the best
of ``--repeats``. Example::

    python benchmarks/vocabulary_loss.py --rows 2048 --vocabulary 64000 --width 512
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

METHODS = ("full logits", "built-in, chunk 1024", "ours")


def resident_bytes(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (highest so far) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def full_logits(hidden: Tensor, targets: Tensor, head: nn.Linear) -> Tensor:
    return F.cross_entropy(head(hidden).float(), targets)


def built_in(hidden: Tensor, targets: Tensor, head: nn.Linear) -> Tensor:
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=1024, chunking_method=None)
    return F.linear_cross_entropy(hidden, head.weight, targets, options=options)


def ours(hidden: Tensor, targets: Tensor, head: nn.Linear) -> Tensor:
    from internvl_chat.model import VocabularyLoss

    weights = torch.full(targets.shape, 1.0)
    return VocabularyLoss()(hidden, targets, head, weights) / len(targets)


def measure(method: str, rows: int, width: int, vocabulary: int, dtype: str, repeats: int) -> None:
    """Print one method's figures as JSON."""
    functions: dict[str, Callable[[Tensor, Tensor, nn.Linear], Tensor]] = dict(
        zip(METHODS, (full_logits, built_in, ours), strict=True)
    )
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    hidden = torch.randn(rows, width).to(kind).requires_grad_()
    head = nn.Linear(width, vocabulary, bias=False).to(kind)
    targets = torch.randint(0, vocabulary, (rows,))
    functions[method](hidden[:2], targets[:2], head).backward()  # imports and first-call buffers
    seconds, value = [], 0.0
    hidden.grad = head.weight.grad = None
    gc.collect()
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
    for _ in range(repeats):
        hidden.grad = head.weight.grad = None
        start = time.process_time()
        loss = functions[method](hidden, targets, head)
        loss.backward()
        seconds.append(time.process_time() - start)
        value = float(loss)
        del loss
    assert head.weight.grad is not None
    result = {
        "seconds": min(seconds),
        "peak_bytes": resident_bytes("VmHWM") - before,
        "loss": value,
        "gradient_norm": float(head.weight.grad.double().norm()),
    }
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=64000)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--method", choices=METHODS, help="run this one here")
    args = parser.parse_args()
    if args.method:
        measure(args.method, args.rows, args.width, args.vocabulary, args.dtype, args.repeats)
        return
    print(
        f"{args.rows} rows x {args.vocabulary} words, width {args.width}, {args.dtype}, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{'method':<24}{'peak MB':>10}{'ratio':>8}{'CPU s':>10}{'loss':>12}{'grad norm':>12}")
    reference = None
    for method in METHODS:
        command = [sys.executable, __file__, *sys.argv[1:], "--method", method]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result = json.loads(output.splitlines()[-1])
        reference = reference or result["peak_bytes"]
        print(
            f"{method:<24}{result['peak_bytes'] / 2**20:>10.0f}"
            f"{result['peak_bytes'] / reference:>8.3f}{result['seconds']:>10.2f}"
            f"{result['loss']:>12.6f}{result['gradient_norm']:>12.6f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
