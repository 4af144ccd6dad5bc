"""FLOPs of a chat model in training, counted from its weights' shapes and from what trains.

Counted are matrix products and attention, two FLOPs a multiplication; norms, activations, softmax
and the optimizer, which take no tensor cores, are not (https://arxiv.org/abs/2204.02311, appendix
B). A product counts by its passes: forward; gradient of the input, if anything before it trains;
gradient of the weight, if that trains. Attention counts twice its forward in backward: four
products for two.

Model FLOPs are the arithmetic that the samples need. Positions that pad a row, dummy tiles,
vision blocks behind ``select_layer`` and recomputation are none: they lower the utilisation (MFU).
An output layer reads supervised positions only, as the loss does. Of an LLM with experts, each
token counts those that it is sent to. Every layer of the LLM is taken to attend to all that went
before (a sliding window or a linear layer does less).

Legend: L tokens of a sequence, S of a tile in the tower (patches and the class token).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from internvl_chat.costs.parameters import full_numel, full_shape
from internvl_chat.costs.work import WorkRates

if TYPE_CHECKING:
    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel


@dataclass(frozen=True)
class PassFlops:
    """FLOPs of something, by pass."""

    forward: float = 0.0
    backward: float = 0.0
    recomputed: float = 0.0
    """Forward of what gradient checkpointing computes again: of blocks with a backward pass."""

    @property
    def total(self) -> float:
        """Forward and backward, once each."""
        return self.forward + self.backward

    def __add__(self, other: PassFlops) -> PassFlops:
        return PassFlops(
            self.forward + other.forward,
            self.backward + other.backward,
            self.recomputed + other.recomputed,
        )

    def times(self, number: float) -> PassFlops:
        """So many of it."""
        return PassFlops(self.forward * number, self.backward * number, self.recomputed * number)

    def executed(self, *, recompute: bool) -> float:
        """What a device does of it."""
        return self.total + (self.recomputed if recompute else 0.0)


@dataclass(frozen=True, kw_only=True)
class ModelFlops:
    """FLOPs of forward and backward, by what a batch holds."""

    per_token: PassFlops
    """A token in the language model, without attention and output layer."""
    per_pair: PassFlops
    """A token that sees another or itself, in all layers of the language model."""
    per_target: PassFlops
    """A supervised position through the output layer."""
    per_tile: PassFlops
    """A tile through vision tower and projector."""

    @classmethod
    def of_model(cls, model: InternVLChatModel) -> ModelFlops:
        """Count an InternVLChatModel: on any device, partitioned or not, in 4 bits or not.

        What trains (``requires_grad``) and adapters must be decided by then.
        """
        tile, reached = _tile_flops(model)
        token, pair, reached = _text_flops(model, reached)
        head, _ = _stage([("", model.get_output_embeddings())], reached)
        return cls(per_token=token, per_pair=pair, per_target=head, per_tile=tile)

    def of_batch(
        self, segment_lengths: Sequence[int], tiles: int, supervised: int | None = None
    ) -> float:
        """Model FLOPs of forward and backward.

        Args:
            segment_lengths: tokens of each sample, image tokens included, padding left out.
            tiles: real ones.
            supervised: positions with a label; None, where nobody knows, takes all tokens.
        """
        tokens = sum(segment_lengths)
        pairs = sum(length * (length + 1) // 2 for length in segment_lengths)
        return (
            tokens * self.per_token.total
            + pairs * self.per_pair.total
            + (tokens if supervised is None else supervised) * self.per_target.total
            + tiles * self.per_tile.total
        )

    def work(self, recompute: bool) -> WorkRates:
        """What a device executes.

        The output layer is put on every token: how many are supervised, no plan knows.

        Args:
            recompute: whether the run has gradient checkpointing.
        """
        return WorkRates(
            per_token=self.per_token.executed(recompute=recompute) + self.per_target.total,
            per_pair=self.per_pair.executed(recompute=recompute),
            per_tile=self.per_tile.executed(recompute=recompute),
        )


def _tile_flops(model: InternVLChatModel) -> tuple[PassFlops, bool]:
    """FLOPs of a tile; and whether gradients go through its features."""
    tower: Any = _bare(model.vision_model)
    patches = (model.config.image_size // model.config.vision_config.patch_size) ** 2
    sequence = patches + 1
    width = model.config.vision_config.hidden_size
    flops, reached = _stage([("", tower.embeddings)], False)
    flops = flops.times(patches)
    last = model.config.select_layer
    layers = list(tower.encoder.layers)
    for layer in layers[: last if last >= 0 else len(layers) + 1 + last]:
        weights, attended, reached = _block(layer, reached, 4.0 * width)
        flops += weights.times(sequence) + attended.times(sequence**2)
    for module in model.mlp1.named_children():
        projected, reached = _stage([module], reached)
        flops += projected.times(model.num_image_token)
    return flops, reached


def _text_flops(model: InternVLChatModel, reached: bool) -> tuple[PassFlops, PassFlops, bool]:
    """FLOPs of a token and of a pair in the decoder; and whether gradients go through its end."""
    decoder: nn.Module = model.get_decoder()
    table = model.get_input_embeddings()
    reached = reached or _trains(table)  # a lookup, which costs nothing
    config = model.config.get_text_config()
    head_width = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    per_pair = 4.0 * config.num_attention_heads * head_width
    share = _expert_share(config)
    blocks = _blocks(decoder)
    inside = {id(module) for block in blocks for module in block.modules()}
    token, pair = PassFlops(), PassFlops()
    for block in blocks:
        weights, attended, reached = _block(block, reached, per_pair, share)
        token, pair = token + weights, pair + attended
    rest = [named for named in decoder.named_modules() if id(named[1]) not in inside]
    outside, reached = _stage(rest, reached, deep=False)
    return token + outside, pair, reached


def _block(
    block: nn.Module, reached: bool, per_pair: float, expert_share: float = 1.0
) -> tuple[PassFlops, PassFlops, bool]:
    """FLOPs of a block's products by token, and of its attention by pair.

    Of each half, attention and MLP, the layers but the last one read the half's input side by
    side, and the last one reads what they made.

    Args:
        block: norms, attention, MLP.
        reached: whether anything before it trains.
        per_pair: forward FLOPs of its attention.
        expert_share: of the experts, how many a token is sent to.

    Returns:
        Both, and whether gradients go through the block's output.
    """
    halves = [half for _, half in _with_matrices(block)]
    inside = {id(parameter) for half in halves for parameter in half.parameters()}
    between = [p for p in block.parameters() if id(p) not in inside]  # norms, layer scale
    reached = reached or any(parameter.requires_grad for parameter in between)
    flops, attends = PassFlops(), False
    for number, half in enumerate(halves):
        layers = _with_matrices(half) or [("", half)]
        first, reached = _stage(layers[:-1], reached, expert_share=expert_share)
        if number == 0:  # attention, between its first layers and its last one
            attends = reached
        last, reached = _stage(layers[-1:], reached, expert_share=expert_share)
        flops += first + last
    attended = PassFlops(per_pair, 2 * per_pair if attends else 0.0)
    if reached:
        flops = PassFlops(flops.forward, flops.backward, flops.forward)
        attended = PassFlops(attended.forward, attended.backward, attended.forward)
    return flops, attended, reached


def _with_matrices(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Children that have matrices, in themselves or deeper, by name."""
    return [named for named in module.named_children() if any(True for _ in _matrices([named]))]


def _stage(
    modules: Iterable[tuple[str, nn.Module]],
    reached: bool,
    *,
    expert_share: float = 1.0,
    deep: bool = True,
) -> tuple[PassFlops, bool]:
    """FLOPs a token of modules that read the same input.

    Args:
        modules: side by side, by name.
        reached: whether anything before them trains.
        expert_share: what counts of the weights of experts.
        deep: with all that is in them.

    Returns:
        FLOPs, and whether gradients go through what they make.
    """
    taken = list(modules)
    flops = PassFlops()
    for name, parameter in _matrices(taken, deep=deep):
        forward = 2.0 * full_numel(parameter)
        if _EXPERTS.search(name):
            forward *= expert_share
        # B of an adapter reads what A made, which trains with it.
        follows = reached or ("lora_B" in name and parameter.requires_grad)
        flops += PassFlops(forward, forward * (follows + parameter.requires_grad))
    return flops, reached or any(_trains(module, deep=deep) for _, module in taken)


_EXPERTS = re.compile(r"(^|\.)experts\.")
_UNUSED = re.compile(r"(^|\.)original_module\.|position_embedding|class_embedding|lora_embedding")
"""What PEFT's ``modules_to_save`` replaced; sums and lookups."""


def _matrices(
    modules: Iterable[tuple[str, nn.Module]], *, deep: bool = True
) -> Iterator[tuple[str, nn.Parameter]]:
    """Weights that their input is multiplied with, by name; those of a lookup are none."""
    for start, top in modules:
        for prefix, module in top.named_modules(prefix=start) if deep else [(start, top)]:
            if isinstance(module, nn.Embedding):
                continue
            for name, parameter in module.named_parameters(recurse=False):
                path = f"{prefix}.{name}"
                if len(full_shape(parameter)) > 1 and not _UNUSED.search(path):
                    yield path, parameter


def _trains(module: nn.Module, *, deep: bool = True) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=deep))


def _bare(tower: Any) -> Any:
    """A tower without PEFT's wrapping."""
    return tower.get_base_model() if hasattr(tower, "get_base_model") else tower


def _blocks(decoder: nn.Module) -> list[nn.Module]:
    """The layers of a decoder, in their order."""
    lists = [child for child in decoder.children() if isinstance(child, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def _expert_share(config: Any) -> float:
    """Of an LLM's experts, the share that a token is sent to; 1 without experts."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    return chosen / experts if experts and chosen else 1.0
