"""torch.compile of the transformer blocks of both towers.

Blocks, not the model: all blocks of a tower are one piece of code, so that a few compilations
serve any number of them, and what stands between them (images put into the text, the vocabulary
loss in chunks, hooks) stays as it is. Lengths are symbols in what is compiled, so that other
lengths compile nothing; one row or one tile, which compilers take to be a case of its own, does
once more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from internvl_chat.train.arguments import DataArguments, ModelArguments
from internvl_chat.train.attention import SDPA_VARLEN, choose_attention
from internvl_chat.train.trainer_arguments import NOT_COMPILED, TrainArguments
from internvl_chat.train.zero import stage_of

ROW_MULTIPLE: Final = 64
"""What padded rows are rounded up to where blocks are compiled and nothing else is said: kernels
for any length are laid out for aligned ones."""
_GRAPHS: Final = 64
"""Most graphs of the blocks of both towers together. All modules are called by one function, on
which torch counts; its own limit is 8, beyond which it silently goes on uncompiled."""
REMATERIALISE: Final = "remat_using_tags_for_fwd_loss_bwd_graph"
"""A pass of torch 2.12 and newer over graphs that hold a forward and its backward, which a block's
never does. Off, as it refuses a block that is recomputed and has attention in it, where nothing
before or in the block trains: a frozen tower's."""
_RECORDING: Final = ("reduce-overhead", "max-autotune")
_COMPILERS: Final = ("c++", "g++", "clang++", "gcc", "clang", "cc")


def never_compiled(*, stage: int, in_four_bits: bool) -> Iterator[str]:
    """A sentence for each reason why blocks are compiled on no machine.

    Args:
        stage: of ZeRO.
        in_four_bits: whether the language model's weights are.
    """
    flag = "--torch_compile"
    if stage == 3:
        yield (
            f"{flag} with ZeRO-3: its hooks bring the weights of a block when it is called, which "
            f"a compiled block would not wait for. Use ZeRO-1 or 2, or drop {flag}."
        )
    if in_four_bits:
        yield f"{flag} with --load_in_4bit: weights of 4 bits are not compiled. Drop one."


def compile_problems(
    model: ModelArguments, data: DataArguments, train: TrainArguments, device: torch.device
) -> Iterator[str]:
    """A sentence for each reason why a run's blocks cannot be compiled.

    Args:
        model, data, train: the run's arguments, those of a DeepSpeed file settled.
        device: where it computes.
    """
    if not train.torch_compile:
        return
    flag, config = "--torch_compile", train.deepspeed if isinstance(train.deepspeed, dict) else None
    yield from never_compiled(stage=stage_of(config), in_four_bits=model.load_in_4bit)
    chosen = choose_attention(
        model.attn_implementation,
        packed=data.use_packed_ds,
        device=device,
        half_precision=train.bf16 or train.fp16,
    )
    if chosen.llm == SDPA_VARLEN:
        yield (
            f"{flag} with --use_packed_ds True: here packed rows go through SDPA segment by "
            f"segment ({chosen.reason}), which would be compiled anew for every row. Drop one."
        )
    if train.torch_compile_mode in _RECORDING:
        yield (
            f"--torch_compile_mode {train.torch_compile_mode} records kernels for one shape, and "
            "batches have many. Use default or max-autotune-no-cudagraphs."
        )
    known = torch._inductor.list_mode_options()
    if train.torch_compile_mode is not None and train.torch_compile_mode not in known:
        yield (
            f"--torch_compile_mode {train.torch_compile_mode}: want one of "
            f"{', '.join(sorted(set(known) - set(_RECORDING)))}."
        )
    given = os.environ.get("CXX") or os.environ.get("CC")
    if train.torch_compile_backend == "inductor" and not (
        given or any(map(shutil.which, _COMPILERS))
    ):
        yield f"{flag} needs a C++ compiler: install g++ (apt-get install g++), or drop it."


@contextmanager
def not_the_whole_model(train: TrainArguments) -> Iterator[None]:
    """Within it the arguments ask for no compilation, which accelerate would take to mean the
    whole model."""
    told = {name: getattr(train, name) for name in NOT_COMPILED}
    train.__dict__.update(NOT_COMPILED)
    try:
        yield
    finally:
        train.__dict__.update(told)


def row_multiple(data: DataArguments, train: TrainArguments) -> int:
    """What the lengths of padded rows are rounded up to; 1 for as long as the longest."""
    if data.use_packed_ds:
        return 1
    if data.pad_to_multiple_of is not None:
        return data.pad_to_multiple_of
    return ROW_MULTIPLE if train.torch_compile else 1


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of both towers, which transformers keeps on one device each."""
    kinds = {
        name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()
    }
    return [part for part in model.modules() if type(part).__name__ in kinds]


def compile_blocks(model: nn.Module, train: TrainArguments) -> int:
    """Have the blocks compiled when they are first called, in place: names stay as they are.

    Args:
        model: with everything that changes its layers done (LoRA, gradient checkpointing).
        train: the run's arguments.

    Returns:
        How many blocks.
    """
    import torch._dynamo
    import torch._functorch.config

    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _GRAPHS)
    # Under DDP torch would cut a graph where a bucket of gradients is full, so that they are sent
    # while the rest is computed: of a block of hundreds of MB into dozens. Blocks are cut enough.
    config.optimize_ddp = False
    tracing: Any = torch._functorch.config
    if hasattr(tracing, REMATERIALISE):
        setattr(tracing, REMATERIALISE, False)
    blocks = transformer_blocks(model)
    for block in blocks:
        block.compile(
            dynamic=True, backend=train.torch_compile_backend, mode=train.torch_compile_mode
        )
    return len(blocks)
