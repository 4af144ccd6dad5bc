"""InternViT: a plain vision transformer with layer scale and, in the 6B, RMS norms.

Shapes: ``N`` images, ``S`` tokens (the class token, then ``P`` patches row by row), ``C`` width.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from .configuration_intern_vit import InternVisionConfig

try:
    from transformers.modeling_layers import GradientCheckpointingLayer
except ImportError:  # transformers before 4.53, whose models call the checkpointing themselves

    class GradientCheckpointingLayer(nn.Module):  # type: ignore[no-redef]
        """A block that is computed again in the backward pass, where the model says so."""

        gradient_checkpointing = False
        _gradient_checkpointing_func: Callable[..., Any]

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """As any module, or by the function that transformers sets."""
            run = partial(super().__call__, **kwargs)
            if self.gradient_checkpointing and self.training:
                return self._gradient_checkpointing_func(run, *args)
            return run(*args)


class InternRMSNorm(nn.Module):
    """RMS norm over the last axis, in fp32; the weight multiplies in the input's dtype."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self.weight * F.rms_norm(x, self.weight.shape, None, self.eps)


def make_norm(config: InternVisionConfig) -> nn.Module:
    """The norm of a block, by ``config.norm_type``."""
    if config.norm_type == "rms_norm":
        return InternRMSNorm(config.hidden_size, eps=config.layer_norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


def interpolate_position_embedding(grid_embedding: Tensor, height: int, width: int) -> Tensor:
    """Stretch position embeddings to another grid, bicubic, in fp32.

    Args:
        grid_embedding: (1, P, C) of a square grid, row by row; without the class token.
        height, width: of the new grid, in patches.

    Returns:
        (1, height*width, C) in the input's dtype.
    """
    side = int(grid_embedding.shape[1] ** 0.5 + 0.5)
    if side == height and side == width:
        return grid_embedding
    planes = grid_embedding.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    planes = F.interpolate(planes, size=(height, width), mode="bicubic", align_corners=False)
    return planes.flatten(2).transpose(1, 2).to(grid_embedding.dtype)


class InternVisionEmbeddings(nn.Module):
    """Patches and class token, plus position embeddings."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_size = config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
        )
        num_patches = (config.image_size // config.patch_size) ** 2
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + num_patches, config.hidden_size))

    @property
    def embed_dim(self) -> int:
        """Width of a token."""
        return self.config.hidden_size

    @property
    def image_size(self) -> int:
        """Side in pixels of the image that the position embeddings are laid out for."""
        return self.config.image_size

    @property
    def num_patches(self) -> int:
        """Patches of such an image."""
        return self.num_positions - 1

    @property
    def num_positions(self) -> int:
        """Rows of the position embeddings, the class token's included."""
        return self.position_embedding.shape[1]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 1+P, C); H and W need not be those of the configuration."""
        weight = self.patch_embedding.weight
        patches = self.patch_embedding(pixel_values.to(weight.dtype))  # (N, C, h, w)
        height, width = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)
        position = self.position_embedding
        grid = interpolate_position_embedding(position[:, 1:], height, width).to(patches.dtype)
        first = (self.class_embedding + position[:, :1]).to(patches.dtype)
        return torch.cat([first.expand(patches.shape[0], -1, -1), patches + grid], dim=1)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out; (N, heads, S, head_dim) to (N, S, heads, head_dim) and the weights."""
    scores = torch.matmul(query * scaling, key.transpose(-2, -1))
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    dropped = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2), weights


def attention_function(name: str | None) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The kernel of this name; ours where it is written out (``eager``) or none is named.

    Looked up as in a dictionary: ``get_interface`` is of transformers 5 only.

    Raises:
        KeyError: transformers knows no such kernel.
    """
    if name is None or name == "eager":
        return eager_attention
    return ALL_ATTENTION_FUNCTIONS[name]


class InternAttention(nn.Module):
    """Multi-head self-attention over all tokens of an image."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.is_causal = False
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.proj_drop = nn.Dropout(config.dropout)
        self.qk_normalization = config.qk_normalization
        if config.qk_normalization:
            self.q_norm = InternRMSNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.k_norm = InternRMSNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, hidden_states: Tensor, with_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(N, S, C) to (N, S, C); ``with_weights``, to that and the weights (N, heads, S, S)."""
        query, key, value = self.qkv(hidden_states).chunk(3, dim=-1)
        if self.qk_normalization:
            query, key = self.q_norm(query), self.k_norm(key)
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        # Only attention written out has weights.
        attend = attention_function("eager" if with_weights else self.config._attn_implementation)
        context, weights = attend(
            self,
            query.view(heads).transpose(1, 2),
            key.view(heads).transpose(1, 2),
            value.view(heads).transpose(1, 2),
            None,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=False,
        )
        output = self.proj_drop(self.proj(context.reshape(hidden_states.shape)))
        return (output, weights) if with_weights and weights is not None else output


class InternMLP(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(N, S, C) to (N, S, C)."""
        return self.drop(self.fc2(self.act(self.fc1(hidden_states))))


class DropPath(nn.Module):
    """Stochastic depth: in training, an image's branch is left out with probability ``rate``.

    What stays is divided by the probability to stay (https://arxiv.org/abs/1603.09382).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(N, S, C) to (N, S, C)."""
        if self.rate == 0 or not self.training:
            return branch
        keep = 1 - self.rate
        kept = branch.new_empty((branch.shape[0],) + (1,) * (branch.ndim - 1)).bernoulli_(keep)
        return branch * (kept / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class InternVisionEncoderLayer(GradientCheckpointingLayer):
    """Pre-norm block with layer scale."""

    def __init__(self, config: InternVisionConfig, drop_path_rate: float) -> None:
        super().__init__()
        self.initializer_factor = config.initializer_factor
        self.attn = InternAttention(config)
        self.mlp = InternMLP(config)
        self.norm1 = make_norm(config)
        self.norm2 = make_norm(config)
        self.ls1 = nn.Parameter(torch.full((config.hidden_size,), config.initializer_factor))
        self.ls2 = nn.Parameter(torch.full((config.hidden_size,), config.initializer_factor))
        self.drop_path1 = DropPath(drop_path_rate)
        self.drop_path2 = DropPath(drop_path_rate)

    def forward(
        self, hidden_states: Tensor, with_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(N, S, C) to (N, S, C); ``with_weights``, to that and attention's (N, heads, S, S)."""
        attended = self.attn(self.norm1(hidden_states), with_weights)
        branch, weights = attended if with_weights else (attended, None)
        hidden_states = torch.addcmul(hidden_states, self.drop_path1(branch), self.ls1)
        branch = self.drop_path2(self.mlp(self.norm2(hidden_states)))
        hidden_states = torch.addcmul(hidden_states, branch, self.ls2)
        return hidden_states if weights is None else (hidden_states, weights)


class InternVisionEncoder(nn.Module):
    """The blocks."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.config = config
        last = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            InternVisionEncoderLayer(config, config.drop_path_rate * index / last)
            for index in range(config.num_hidden_layers)
        )

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the blocks are computed again in the backward pass.

        Scripts for the original set it here; transformers' ``gradient_checkpointing_enable`` sets
        the blocks' own.
        """
        return any(layer.gradient_checkpointing for layer in self.layers)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        blocks: list[Any] = list(self.layers)
        for layer in blocks:
            if not hasattr(layer, "_gradient_checkpointing_func"):
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            layer.gradient_checkpointing = value

    def forward(
        self,
        inputs_embeds: Tensor,
        output_hidden_states: bool = False,
        num_layers: int | None = None,
        output_attentions: bool = False,
    ) -> BaseModelOutput:
        """Run the first ``num_layers`` blocks (all by default) on (N, S, C)."""
        hidden_states = inputs_embeds
        collected, attentions = [hidden_states], []
        for layer in self.layers[:num_layers]:
            if output_attentions:
                hidden_states, weights = layer(hidden_states, True)
                attentions.append(weights)
            else:
                hidden_states = layer(hidden_states)
            if output_hidden_states:
                collected.append(hidden_states)
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(collected) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


class InternVisionModel(PreTrainedModel):
    """InternViT without a head."""

    config_class = InternVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    base_model_prefix = "vision_model"  # what its weights are under in a chat checkpoint
    _keys_to_ignore_on_load_unexpected: ClassVar = [r"^language_model\.", r"^mlp1\."]
    _no_split_modules: ClassVar = ["InternVisionEncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True
    _supports_attention_backend = True

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = InternVisionEmbeddings(config)
        self.encoder = InternVisionEncoder(config)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Load a vision tower, or that of a chat checkpoint; see transformers.

        Raises:
            ValueError: weights are missing. transformers alone would make them up and say so in a
                log; ``output_loading_info=True`` returns its report instead of raising.
        """
        wants_report = kwargs.pop("output_loading_info", False)
        model, report = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        if wants_report:
            return model, report
        missing = sorted(report["missing_keys"])
        if missing and pretrained_model_name_or_path is not None:
            raise ValueError(
                f"{pretrained_model_name_or_path}: {len(missing)} weights of the vision tower are "
                f"missing: {', '.join(missing[:10])}. Check that it holds one; LoRA layers have to "
                "be merged first (internvl-chat merge-lora)"
            )
        return model

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """Yes, at any time; transformers would look for certain words in this file to find out."""
        return True

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, InternRMSNorm)):
            nn.init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                nn.init.zeros_(module.bias)
        elif isinstance(module, InternVisionEmbeddings):
            nn.init.normal_(module.class_embedding, mean=0.0, std=std)
            nn.init.normal_(module.position_embedding, mean=0.0, std=std)
        elif isinstance(module, InternVisionEncoderLayer):
            nn.init.constant_(module.ls1, module.initializer_factor)
            nn.init.constant_(module.ls2, module.initializer_factor)

    def get_input_embeddings(self) -> nn.Module:
        """The patch and position embeddings."""
        return self.embeddings

    def resize_pos_embeddings(self, old_size: int, new_size: int, patch_size: int) -> None:
        """Stretch the position embeddings for images of another size, once and for all.

        Args:
            old_size: side in pixels of the images they are laid out for.
            new_size: side in pixels to lay them out for.
            patch_size: side of a patch in pixels.

        Raises:
            ValueError: the embeddings do not belong to ``old_size`` and ``patch_size``.
        """
        position = self.embeddings.position_embedding
        num_patches = (old_size // patch_size) ** 2
        if position.shape[1] != 1 + num_patches:
            raise ValueError(
                f"position_embedding has {position.shape[1]} rows; image size {old_size} in "
                f"patches of {patch_size} means {1 + num_patches}"
            )
        side = new_size // patch_size
        grid = interpolate_position_embedding(position.data[:, 1:], side, side)
        self.embeddings.position_embedding = nn.Parameter(
            torch.cat([position.data[:, :1], grid], dim=1), requires_grad=position.requires_grad
        )
        self.config.image_size = new_size

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pixel_embeds: Tensor | None = None,
        select_layer: int | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encode images.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            output_hidden_states: return the embeddings and every block's output as well; by
                default what the configuration says.
            return_dict: ``False`` for a tuple; by default what the configuration says.
            pixel_embeds: (N, 1+P, C), the embeddings in place of ``pixel_values``.
            select_layer: index into the hidden states (0 the embeddings, -1 the last); the blocks
                after it are not run and ``last_hidden_state`` is that state.
            output_attentions: return every block's attention weights (N, heads, S, S) as well,
                for which attention is computed without a kernel; by default what the
                configuration says.
            **kwargs: none is known; for callers that name others' arguments with ``None``.

        Raises:
            ValueError: neither, both or a misshapen input, or ``select_layer`` out of range.
            TypeError: a keyword that is not known.
        """
        for name in [name for name, value in kwargs.items() if value is not None]:
            raise TypeError(f"{type(self).__name__} takes no {name}")
        config = self.config
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if output_attentions is None:
            output_attentions = config.output_attentions
        outputs = self.encoder(
            self._embed(pixel_values, pixel_embeds),
            output_hidden_states=bool(output_hidden_states),
            num_layers=None if select_layer is None else self._num_layers_for(select_layer),
            output_attentions=bool(output_attentions),
        )
        result = BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=outputs.last_hidden_state[:, 0],
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        is_wanted = config.return_dict if return_dict is None else return_dict
        return result if is_wanted else result.to_tuple()

    def _embed(self, pixel_values: Tensor | None, pixel_embeds: Tensor | None) -> Tensor:
        if (pixel_embeds is None) == (pixel_values is None):
            raise ValueError("give pixel_values or pixel_embeds, and one of them only")
        if pixel_values is None:
            return pixel_embeds  # type: ignore[return-value]
        if pixel_values.ndim != 4:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, want (N, channels, H, W)"
            )
        return self.embeddings(pixel_values)

    def _num_layers_for(self, select_layer: int) -> int:
        total = len(self.encoder.layers)
        index = select_layer if select_layer >= 0 else total + 1 + select_layer
        if not 0 <= index <= total:
            raise ValueError(
                f"select_layer={select_layer}: the vision model has {total + 1} hidden states"
            )
        return index


# Makes save_pretrained write these files, and name them in config.json (auto_map).
InternVisionConfig.register_for_auto_class()
InternVisionModel.register_for_auto_class("AutoModel")
