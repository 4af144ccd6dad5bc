"""Parameters that DeepSpeed ZeRO-3 has cut up: their true shapes, writing and reading them.

Layout (deepspeed/runtime/zero/partition_parameters.py): the flattened parameter is padded at its
end to a multiple of the world size and cut into equal runs; rank r keeps run r in ``ds_tensor``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from internvl_chat.checkpoint.tensor_files import TensorSource
from internvl_chat.costs.parameters import full_numel


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ZeRO-3 manages the parameter (its ``.shape`` is then that of a placeholder)."""
    return hasattr(parameter, "ds_id")


def deepspeed_config_if_zero3() -> dict[str, Any] | None:
    """The DeepSpeed configuration that TrainingArguments announced, if it is a ZeRO-3 one."""
    from transformers.integrations import deepspeed_config, is_deepspeed_zero3_enabled

    return deepspeed_config() if is_deepspeed_zero3_enabled() else None


@contextmanager
def partitioned_construction(config: dict[str, Any] | None) -> Iterator[None]:
    """Modules made inside have their parameters cut up one module at a time (``None``: as usual).

    Values are not initialised; a rank holds its runs and, for a moment, the parameters of the
    module under construction.
    """
    from transformers.initialization import no_init_weights
    from transformers.modeling_utils import set_zero3_state

    with ExitStack() as stack:
        stack.enter_context(no_init_weights())
        if config is not None:
            import deepspeed
            from deepspeed.runtime.zero.partition_parameters import DeepSpeedTensorOverride

            # Only the device is overridden: torch's default dtype already is the model's, and
            # DeepSpeed's own override would round the rotary frequencies, which are fp32.
            stack.enter_context(
                deepspeed.zero.Init(
                    config_dict_or_path=config,
                    tensor_overrides={DeepSpeedTensorOverride.device},
                )
            )
            # transformers would otherwise enter zero.Init again for the language model.
            stack.enter_context(set_zero3_state())
        yield


def gathered(
    parameters: Iterable[Tensor], *, modifier_rank: int | None = None
) -> AbstractContextManager[None]:
    """Whole parameters inside the context; every rank must enter it.

    Args:
        parameters: partitioned ones are gathered, others stay as they are.
        modifier_rank: the rank whose changes are kept; ``None`` for reading only.
    """
    cut = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not cut:
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(
        cut, modifier_rank=modifier_rank
    )
    return context


@torch.no_grad()
def write_tensor(target: Tensor, source: TensorSource) -> None:
    """Fill a parameter or buffer from a source of the same shape.

    Without ZeRO-3 the values are copied once. Under ZeRO-3 each rank reads and writes only its own
    run, without communication; where DeepSpeed keeps more than that run (quantised, on NVMe, or a
    secondary partition), the parameter is gathered and rank 0's values are kept.
    """
    if not is_partitioned(target):
        flat = target.data.view(-1)
        for start, stop in pieces(0, flat.numel()):
            # Converted there: over the bus goes what is in the file.
            flat[start:stop].copy_(source.read(start, stop).to(flat.device))
    elif _is_plain_run(target):
        run: Tensor = target.ds_tensor  # type: ignore[attr-defined]
        first = run.numel() * target.ds_zero_partition_rank  # type: ignore[attr-defined]
        last = min(first + run.numel(), full_numel(target))
        for start, stop in pieces(first, last):
            run[start - first : stop - first].copy_(source.read(start, stop))
        if last < first + run.numel():  # padding
            run[max(last - first, 0) :].zero_()
    else:
        _write_gathered(target, source)


def pieces(start: int, stop: int, size: int = 1 << 22) -> Iterator[tuple[int, int]]:
    """Cut a range so that a buffer between file and parameter stays small (16 MB in fp32)."""
    for begin in range(start, stop, size):
        yield begin, min(begin + size, stop)


def _is_plain_run(target: Any) -> bool:
    run = target.ds_tensor
    return (
        run.final_location is None
        and target.ds_secondary_tensor is None
        and not hasattr(run, "ds_quant_scale")
    )


def _write_gathered(target: Tensor, source: TensorSource) -> None:
    with gathered([target], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            flat = target.data.view(-1)
            flat.copy_(source.read(0, flat.numel()))


def gathered_tensors(
    named: Iterable[tuple[str, Tensor]], *, keep: bool
) -> Iterator[tuple[str, Tensor | None]]:
    """Whole tensors one at a time, on the CPU; every rank must iterate to the end.

    Args:
        named: the same names in the same order on every rank.
        keep: whether this rank wants the values (others yield ``None`` and hold nothing).
    """
    for name, tensor in named:
        with gathered([tensor]):
            value = tensor.detach().to("cpu", copy=is_partitioned(tensor)) if keep else None
        yield name, value


def parameters_and_buffers(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint of the model holds, each shared tensor once, under its first name."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    state = model.state_dict(keep_vars=True)
    # Beside a quantised weight stand its scales, which are no parameters.
    scales = tuple(f"{name}." for name, tensor in state.items() if hasattr(tensor, "quant_state"))
    for name, tensor in state.items():
        if id(tensor) not in seen and not (scales and name.startswith(scales)):
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors
