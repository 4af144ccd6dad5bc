"""What autograd keeps for the backward pass, counted on the model itself.

One block of each kind runs without memory and without values (PyTorch's fake tensors), with hooks
that see what is saved; a storage counts once, weights not at all. So the count holds for any
language model, any adapter and any freezing, and only two kernels need a rule of ours, for they are
not what runs here: attention that never writes the scores out, and a GPU's RMS norm. Each is
replaced by one that saves what it saves.

Shapes: ``B`` rows, ``T`` tokens of a row, ``H`` query heads, ``G`` key/value heads, ``E`` head
width, ``D`` width of the language model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface

from internvl_chat.errors import CheckpointError

if TYPE_CHECKING:
    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

COUNTED_KERNEL = "counted_without_scores"
"""Name of the one for such kernels with transformers."""


@dataclass(frozen=True, kw_only=True)
class LargestMicroBatch:
    """The micro batch that needs most."""

    rows: int
    """B; 1 for packed rows, which are joined."""
    row_tokens: int
    """T, padding included."""
    num_tiles: int
    num_supervised: int
    """Positions that the loss is taken over."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes."""

    kept: int
    """Saved from the forward to the backward pass."""
    working: int
    """What the backward pass needs beside it: a block computed again, gradients of activations."""


def count_activations(
    model: InternVLChatModel,
    batch: LargestMicroBatch,
    *,
    recompute: bool,
    writes_scores: bool,
    dtype: torch.dtype,
    autocasts: bool,
    has_norm_kernel: bool,
) -> Activations:
    """Count both towers and the projector.

    Args:
        model: on the meta device, with what trains and which norms are fused decided.
        batch: what goes through it.
        recompute: whether blocks are computed again in the backward pass.
        writes_scores: whether attention is written out (``eager``).
        dtype: the model computes in.
        autocasts: whether its weights are fp32 masters, cast where they are used.
        has_norm_kernel: whether PyTorch's RMS norm is one kernel where it computes: on a GPU.

    Raises:
        CheckpointError: the language model cannot be run without values.
    """
    AttentionInterface.register(COUNTED_KERNEL, _attention_without_scores)
    AttentionMaskInterface.register(COUNTED_KERNEL, _no_mask)
    probe = _Probe(dtype=dtype, autocasts=autocasts, has_norm_kernel=has_norm_kernel)
    towers = []
    tiles = _tiles_run(model, batch)
    if tiles:
        towers.append(_vision_tower(model, tiles, writes_scores))
    towers.append(_language_model(model, batch, writes_scores, probe))
    kept, working = 0, 0
    for tower in towers:
        counts = _count_blocks(tower, probe)
        for block in counts.blocks:
            kept += block.entry if recompute and block.saved else block.saved
            again = block.saved if recompute else 0
            working = max(working, again + 2 * block.largest)
        kept += counts.rest
    if recompute and autocasts:
        working = max(working, _cast_weights(model, dtype))
    return Activations(kept=kept, working=working)


def _cast_weights(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the copies that autocast keeps of trained weights until the forward pass has ended.

    Without recomputation the backward pass needs them, so that they are counted with it.
    """
    cast = 0
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight = module.weight
            if weight.requires_grad and weight.dtype != dtype:
                cast += weight.numel() * dtype.itemsize
    return cast


# ---- towers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tower:
    """A stack of blocks with what stands before and behind it."""

    layers: Sequence[nn.Module]
    build: Callable[[list[nn.Module]], nn.Module]
    """The same with these layers only, a copy of its own."""
    inputs: Callable[[torch.dtype], dict[str, Any]]


def _tiles_run(model: InternVLChatModel, batch: LargestMicroBatch) -> int:
    """Tiles that go through the vision tower: a dummy one where it trains and there is no image."""
    parts = (*model.vision_model.parameters(), *model.mlp1.parameters())
    return max(batch.num_tiles, int(any(parameter.requires_grad for parameter in parts)))


def _vision_tower(model: InternVLChatModel, tiles: int, writes_scores: bool) -> _Tower:
    tower: Any = _unwrapped(model.vision_model)
    total = len(tower.encoder.layers)
    select = model.config.select_layer
    used = list(tower.encoder.layers)[: select if select >= 0 else total + 1 + select]

    def build(layers: list[nn.Module]) -> nn.Module:
        encoder = _replaced(tower.encoder, "layers", nn.ModuleList(layers))
        made = _ImageFeatures(_replaced(tower, "encoder", encoder), model.mlp1, model.config)
        return _own_copy(made, "eager" if writes_scores else COUNTED_KERNEL)

    side, channels = model.config.image_size, model.config.vision_config.num_channels

    def inputs(dtype: torch.dtype) -> dict[str, Any]:
        return {"pixel_values": torch.empty(tiles, channels, side, side, dtype=dtype)}

    return _Tower(used, build, inputs)


def _language_model(
    model: InternVLChatModel, batch: LargestMicroBatch, writes_scores: bool, probe: _Probe
) -> _Tower:
    decoder: Any = model.get_decoder()
    upstream = (model.vision_model, model.mlp1, decoder)
    has_gradient = any(p.requires_grad for part in upstream for p in part.parameters())
    width = model.config.get_text_config().hidden_size
    kernel = "eager" if writes_scores else COUNTED_KERNEL

    name, blocks = _stack(decoder)

    def build(layers: list[nn.Module]) -> nn.Module:
        return _own_copy(_replaced(decoder, name, nn.ModuleList(layers)), kernel)

    def inputs(dtype: torch.dtype) -> dict[str, Any]:
        if probe.autocasts:  # embeddings are no product, and come as they are held
            dtype = model.get_input_embeddings().weight.dtype  # type: ignore[assignment]
        embeds = torch.empty(batch.rows, batch.row_tokens, width, dtype=dtype)
        return {
            "inputs_embeds": embeds.requires_grad_(has_gradient),
            "use_cache": False,
            "return_dict": True,
        }

    return _Tower(blocks, build, inputs)


class _ImageFeatures(nn.Module):
    """Vision tower, pixel shuffle and projector, as ``extract_feature`` runs them."""

    def __init__(self, tower: nn.Module, projector: nn.Module, config: Any) -> None:
        super().__init__()
        self.tower = tower
        self.projector = projector
        self.config = config

    def forward(self, pixel_values: Tensor) -> Tensor:
        from internvl_chat.model.modeling_internvl_chat import pixel_shuffle

        outputs = self.tower(pixel_values=pixel_values, return_dict=True)
        tokens: Tensor = outputs.last_hidden_state[:, 1:]
        side = int(tokens.shape[1] ** 0.5)
        tokens = tokens.reshape(tokens.shape[0], side, side, -1)
        shuffled = pixel_shuffle(tokens, self.config.downsample_ratio)
        return self.projector(shuffled.flatten(1, 2))


def _stack(decoder: nn.Module) -> tuple[str, list[nn.Module]]:
    """A decoder's blocks and what it calls them: ``layers``, or ``h`` of GPT-2."""
    lists = {
        name: list(child)
        for name, child in decoder.named_children()
        if isinstance(child, nn.ModuleList)
    }
    name = max(lists, key=lambda key: len(lists[key]))
    return name, lists[name]


def _unwrapped(module: Any) -> Any:
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def _replaced(module: nn.Module, name: str, child: nn.Module) -> nn.Module:
    """A shallow copy with another child."""
    made = copy.copy(module)
    made._modules = {**module._modules, name: child}
    return made


def _own_copy(module: nn.Module, kernel: str) -> nn.Module:
    """A deep copy, in training, whose configurations name the kernel."""
    made = copy.deepcopy(module).train()
    for part in made.modules():
        config = getattr(part, "config", None)
        if config is not None and hasattr(config, "_attn_implementation_internal"):
            config._attn_implementation_internal = kernel
        if hasattr(part, "gradient_checkpointing"):
            part.gradient_checkpointing = False  # type: ignore[assignment]
    return made


# ---- counting -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    saved: int
    largest: int
    """Of the saved tensors."""
    entry: int
    """The block's input, which is all that is kept where it is computed again."""


@dataclass(frozen=True)
class _Counts:
    blocks: list[_Block]
    rest: int


@dataclass
class _Saved:
    """Storages that hooks have seen, each once."""

    sizes: dict[int, int]
    alive: list[Any]
    """Keeps the storages, whose addresses tell them apart."""

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """How a module is run without memory."""

    dtype: torch.dtype
    autocasts: bool
    has_norm_kernel: bool

    def run(self, module: nn.Module, inputs: Callable[[torch.dtype], dict[str, Any]]) -> _Saved:
        """Run it and note what autograd saves."""
        saved = _Saved({}, [])
        with FakeTensorMode():
            state = self._state(module)
            known = {_storage_id(tensor) for tensor in state.values()}

            def pack(tensor: Tensor) -> Tensor:
                key = _storage_id(tensor)
                if key not in known and key not in saved.sizes:
                    saved.sizes[key] = tensor.untyped_storage().nbytes()
                    saved.alive.append(tensor)
                return tensor

            try:
                with _seeing(pack), self._precision(), self._norms():
                    outputs = functional_call(module, state, (), inputs(self.dtype))
            except RuntimeError as err:  # torch's own of them: shapes that depend on values
                raise CheckpointError(
                    f"{type(module).__name__} cannot be run without values, which planning its "
                    f"memory takes ({type(err).__name__}: {err})",
                    fix="Try it on a GPU; --deepspeed takes a stage by name in place of auto.",
                ) from err
            saved.alive.append(outputs)
        return saved

    def _precision(self) -> Any:
        return torch.autocast("cpu", dtype=self.dtype) if self.autocasts else nullcontext()

    def _norms(self) -> Any:
        return _NormsWithoutParts() if self.has_norm_kernel else nullcontext()

    def _state(self, module: nn.Module) -> dict[str, Tensor]:
        """Weights without values; floating ones in the dtype they are held in."""
        made = {}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            dtype = tensor.dtype
            if dtype.is_floating_point and isinstance(tensor, nn.Parameter):
                dtype = dtype if self.autocasts else self.dtype
            made[name] = torch.empty(tensor.shape, dtype=dtype).requires_grad_(tensor.requires_grad)
        return made


@contextmanager
def _seeing(pack: Callable[[Tensor], Tensor]) -> Iterator[None]:
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def _storage_id(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _count_blocks(tower: _Tower, probe: _Probe) -> _Counts:
    """Count each kind of block once: what a second one like it adds."""
    kinds: dict[Any, _Block] = {}
    blocks, rest = [], 0
    for number, layer in enumerate(tower.layers):
        kind = _kind(layer)
        if kind not in kinds:
            one = probe.run(tower.build([layer]), tower.inputs)
            two = probe.run(tower.build([layer, layer]), tower.inputs)
            added = max(two.total - one.total, 0)
            kinds[kind] = _Block(
                added,
                max(two.sizes.values(), default=0) if added else 0,
                _entry(tower, layer, probe),
            )
            if number == 0:
                rest = one.total - added
        blocks.append(kinds[kind])
    return _Counts(blocks, rest)


def _entry(tower: _Tower, layer: nn.Module, probe: _Probe) -> int:
    """Bytes of what goes into a block."""
    sizes: list[int] = []
    built = tower.build([layer, layer])

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        sizes.append(hidden.numel() * hidden.element_size())

    for module in built.modules():
        if type(module) is type(layer):
            module.register_forward_pre_hook(note, with_kwargs=True)
    probe.run(built, tower.inputs)
    return sizes[-1] if sizes else 0


def _kind(layer: nn.Module) -> Any:
    """Blocks of one kind save the same."""
    parameters = tuple(
        (name, tuple(parameter.shape), parameter.dtype, parameter.requires_grad)
        for name, parameter in layer.named_parameters()
    )
    return type(layer), getattr(layer, "attention_type", None), parameters


# ---- attention that never writes the scores out -------------------------------------------------


class _WithoutScores(torch.autograd.Function):
    """Saves what flash kernels save: query, key, value, output and a log-sum a row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, tokens, width = query.shape
        output = query.new_empty(rows, tokens, heads, width)
        sums = query.new_empty(rows, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError("only what is saved counts")


def _attention_without_scores(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(B, H, T, E), key and value (B, G, T, E), to (B, T, H, E)."""
    return _WithoutScores.apply(query, key, value), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The kernels know where rows end."""


# ---- RMS norms that are one kernel --------------------------------------------------------------


class _NormsWithoutParts(TorchFunctionMode):
    """PyTorch's RMS norm as on a GPU, where the CPU computes it by parts and saves those."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.rms_norm:
            return func(*args, **kwargs)
        hidden, weight = args[0], kwargs.get("weight")
        if torch.is_autocast_enabled("cpu"):  # on a GPU it takes fp32 then, and gives it
            hidden, weight = hidden.float(), None if weight is None else weight.float()
        return _WithoutParts.apply(hidden, weight)


class _WithoutParts(torch.autograd.Function):
    """Saves what the kernel saves: the input as it came, the weight, a factor a row."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor | None) -> Tensor:
        factors = hidden.new_empty(*hidden.shape[:-1], 1, dtype=torch.float32)
        ctx.save_for_backward(hidden, weight, factors)
        return torch.empty_like(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError("only what is saved counts")
