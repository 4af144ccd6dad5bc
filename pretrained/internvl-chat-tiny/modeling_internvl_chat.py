"""InternVL-Chat: InternViT, pixel shuffle, an MLP projector and a causal language model.

Shapes: ``B`` rows, ``T`` tokens, ``N`` tiles of all rows in reading order, ``K`` tokens per tile,
``D`` width of the language model, ``V`` its vocabulary, ``R`` supervised positions.

This file travels inside checkpoints, so it imports nothing of its package but its neighbours.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

# All files that travel are named here, F401 or not: transformers 4 copies a local checkpoint's code
# no deeper than the imports of the file that auto_map names.
from .adapter import AdapterMixin
from .chat import DEFAULT_TEMPLATE, ChatMixin
from .configuration_intern_vit import InternVisionConfig  # noqa: F401
from .configuration_internvl_chat import InternVLChatConfig, shuffle_factor
from .constants import IGNORE_INDEX  # noqa: F401
from .conversation import get_conv_template
from .decoding_choice import why_not  # noqa: F401
from .decoding_loop import continue_rows  # noqa: F401
from .generation import GenerateMixin, num_cached_tokens
from .modeling_intern_vit import InternVisionModel
from .settings import SettingsMixin
from .static_cache import StepCache  # noqa: F401
from .static_decoding import StaticDecoder  # noqa: F401
from .suggestions import suggest  # noqa: F401
from .vocabulary_loss import Targets, VocabularyLoss, logits_are_the_heads, select_targets


def find_image_slots(
    input_ids: Tensor, *, image_token_id: int | None, num_tiles: int, num_image_token: int
) -> Tensor:
    """Find the placeholder tokens, where :func:`splice_image_features` puts the features.

    Args:
        input_ids: (B, T); a tile is K copies of ``image_token_id``.
        image_token_id: ``None`` if nobody has set it.
        num_tiles: N.
        num_image_token: K.

    Returns:
        (N*K,) positions in the flattened (B*T).

    Raises:
        ValueError: the placeholders do not number N*K (going on would shift images against text),
            or ``image_token_id`` is ``None``.
    """
    if image_token_id is None:
        raise ValueError(
            "img_context_token_id is not set. Set model.img_context_token_id to the "
            "tokenizer's id of <IMG_CONTEXT> before passing images"
        )
    is_slot = input_ids.eq(image_token_id)
    slots = is_slot.flatten().nonzero().squeeze(1)
    if len(slots) != num_tiles * num_image_token:
        raise ValueError(
            f"{len(slots)} image tokens in input_ids (by row: {is_slot.sum(dim=1).tolist()}), but "
            f"{num_tiles} tiles give {num_tiles * num_image_token} features ({num_image_token} "
            "each). A text cut at max_seq_length loses image tokens; so does a wrong tile count"
        )
    return slots


def refuse_image_tokens(input_ids: Tensor, image_token_id: int) -> None:
    """Refuse placeholders (B, T) of a text that came without images.

    Raises:
        ValueError: there are some; the model would read them as words.
    """
    if input_ids.is_meta or torch.compiler.is_compiling():
        return  # without values to look at
    is_slot = input_ids.eq(image_token_id)
    if is_slot.any():
        raise ValueError(
            f"{int(is_slot.sum())} image tokens in input_ids (by row: "
            f"{is_slot.sum(dim=1).tolist()}), but no pixel_values. Give the tiles that they stand "
            "for, or leave the tokens out"
        )


def splice_image_features(text_embeds: Tensor, image_embeds: Tensor, slots: Tensor) -> Tensor:
    """Put the tiles' features where their placeholder tokens stand.

    Args:
        text_embeds: (B, T, D) token embeddings; left unchanged.
        image_embeds: (N, K, D) in reading order.
        slots: (N*K,) from :func:`find_image_slots`.

    Returns:
        (B, T, D), equal to ``text_embeds`` off the placeholders.
    """
    flat = text_embeds.reshape(-1, text_embeds.shape[-1])
    features = image_embeds.reshape(-1, image_embeds.shape[-1])
    flat = flat.index_copy(0, slots.to(flat.device), features.to(flat))
    return flat.view(text_embeds.shape)


def pixel_shuffle(x: Tensor, scale_factor: float = 0.5, *, version: str = "v2") -> Tensor:
    """Move squares of neighbouring tokens into the channels.

    Args:
        x: (N, W, H, C).
        scale_factor: of either side; 0.5 takes 2 x 2 tokens.
        version: ``"v1"`` leaves the two token axes transposed, as published V1-2 weights expect.

    Returns:
        (N, H*scale_factor, W*scale_factor, C/scale_factor**2), for ``"v2"`` with W before H.
    """
    num, width, height, channels = x.shape
    new_width, new_height = int(width * scale_factor), int(height * scale_factor)
    x = x.reshape(num, width, new_height, int(channels / scale_factor))
    x = x.permute(0, 2, 1, 3).contiguous()
    x = x.view(num, new_height, new_width, int(channels / (scale_factor * scale_factor)))
    return x.permute(0, 2, 1, 3).contiguous() if version == "v2" else x


def ids_of_slots(
    inputs_embeds: Tensor, embeddings: nn.Module, image_token_id: int | None
) -> Tensor:
    """Find the placeholders where the text came as embeddings.

    Args:
        inputs_embeds: (B, T, D), the placeholders as ``embeddings`` has them.
        embeddings: ids to (..., D).
        image_token_id: ``None`` if nobody has set it.

    Returns:
        (B, T) ids: ``image_token_id`` where its embedding stands, -1 elsewhere.
    """
    ids = torch.full(inputs_embeds.shape[:2], -1, device=inputs_embeds.device)
    if image_token_id is None:
        return ids
    with torch.no_grad():
        mark = embeddings(ids.new_tensor([image_token_id])).to(inputs_embeds)
        return ids.masked_fill((inputs_embeds == mark).all(dim=-1), image_token_id)


class InternVLChatModel(
    GenerateMixin, SettingsMixin, ChatMixin, AdapterMixin, PreTrainedModel, GenerationMixin
):
    """InternVL-Chat for training, chat and generation."""

    config_class = InternVLChatConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _keys_to_ignore_on_load_unexpected: Any
    _no_split_modules: ClassVar = ["InternVisionEncoderLayer", "LlamaDecoderLayer"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: InternVLChatConfig,
        vision_model: InternVisionModel | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        """Build the model.

        Args:
            config: its shape.
            vision_model, language_model: parts that exist already, taken as they are.
        """
        super().__init__(config)
        # A language model asks its decoder by it and reads names of what it gets. What this model
        # returns is decided by the configuration's own.
        config.get_text_config().return_dict = True
        if vision_model is None:
            vision_model = InternVisionModel(config.vision_config)
        else:
            _keep_weights(vision_model)
        if language_model is None:
            language_model = _build_language_model(config.llm_config)
        else:
            _keep_weights(language_model)
        self.vision_model = vision_model
        self.language_model = language_model
        width = config.vision_config.hidden_size * shuffle_factor(config.downsample_ratio) ** 2
        llm_width = config.get_text_config().hidden_size
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, llm_width),
            nn.GELU(),
            nn.Linear(llm_width, llm_width),
        )
        self.vocabulary_loss = VocabularyLoss()
        self.img_context_token_id: int | None = None
        self.conv_template = get_conv_template(config.template or DEFAULT_TEMPLATE)
        self.system_message: str = (
            getattr(config, "system_message", None) or self.conv_template.system_message
        )
        self.post_init()
        ignored = self._keys_to_ignore_on_load_unexpected
        if ignored:  # transformers 5 takes over the parts'; the tower's hold where it is alone
            of_tower = InternVisionModel._keys_to_ignore_on_load_unexpected
            self._keys_to_ignore_on_load_unexpected = type(ignored)(set(ignored) - set(of_tower))
        if config.use_backbone_lora:
            self.wrap_backbone_lora(r=config.use_backbone_lora)
        if config.use_llm_lora:
            self.wrap_llm_lora(r=config.use_llm_lora)
        if config.lora:
            self.inject_lora(config.lora)

    # ------------------------------------------------------------------ parts and settings

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings of the language model."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the language model."""
        self._bare_language_model().set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The vocabulary projection of the language model."""
        return self._bare_language_model().get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the vocabulary projection of the language model."""
        self._bare_language_model().set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        """The language model without its vocabulary projection."""
        return self._bare_language_model().get_decoder()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize both token tables; see transformers. ``llm_config.vocab_size`` follows."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self._bare_language_model().vocab_size = self.config.llm_config.vocab_size
        return embeddings

    @property
    def embeddings(self) -> nn.ModuleDict:
        """The token embeddings where PEFT's prompt tuning looks for them first.

        Its second try, by shape, searches the first of our parts alone, the vision tower.
        """
        return nn.ModuleDict({"word_embeddings": self.get_input_embeddings()})

    def enable_input_require_grads(self) -> None:
        """Let gradients reach the embeddings' outputs, for adapters on a frozen model.

        Token embeddings always; the patch embeddings only while something in the vision tower is
        trained, as a frozen one would run a backward pass for nothing.
        """
        self.disable_input_require_grads()

        def of_text(module: nn.Module, args: Any, output: Tensor) -> None:
            output.requires_grad_(True)

        def of_image(module: nn.Module, args: Any, output: Tensor) -> None:
            if any(parameter.requires_grad for parameter in self.vision_model.parameters()):
                output.requires_grad_(True)

        self._require_grads_hooks = [
            self.get_input_embeddings().register_forward_hook(of_text),
            self.vision_model.get_input_embeddings().register_forward_hook(of_image),
        ]

    def disable_input_require_grads(self) -> None:
        """Undo :meth:`enable_input_require_grads`."""
        for hook in getattr(self, "_require_grads_hooks", ()):
            hook.remove()
        self._require_grads_hooks = []

    # ------------------------------------------------------------------ images

    def pixel_shuffle(self, x: Tensor, scale_factor: float = 0.5) -> Tensor:
        """:func:`pixel_shuffle` in the configured version."""
        return pixel_shuffle(x, scale_factor, version=self.config.ps_version)

    def extract_feature(self, pixel_values: Tensor) -> Tensor:
        """Encode tiles as the language model reads them.

        Args:
            pixel_values: (N, 3, S, S), normalised.

        Returns:
            (N, K, D).

        Raises:
            ValueError: the tiles do not divide into whole squares of patches.
        """
        outputs = self.vision_model(
            pixel_values=pixel_values,
            select_layer=self.config.select_layer,
            output_hidden_states=False,
            output_attentions=False,
            return_dict=True,
        )
        tokens = outputs.last_hidden_state[:, 1:]  # without the class token
        patch, ratio = self.config.vision_config.patch_size, self.config.downsample_ratio
        grid = [side // patch for side in pixel_values.shape[-2:]]
        factor = shuffle_factor(ratio)
        if any(side % factor for side in grid):
            raise ValueError(
                f"tiles of {tuple(pixel_values.shape[-2:])} pixels are {grid[0]} x {grid[1]} "
                f"patches of {patch}; want multiples of {factor} patches"
            )
        tokens = tokens.reshape(tokens.shape[0], *grid, -1)
        return self.mlp1(self.pixel_shuffle(tokens, ratio).flatten(1, 2))

    def needs_dummy_tile(self, *, training: bool) -> bool:
        """Whether a batch without images sends a dummy tile through vision tower and projector.

        Under ZeRO-3 every rank must run the same modules, and elsewhere every trained parameter
        wants a gradient.
        """
        parameters = [*self.vision_model.parameters(), *self.mlp1.parameters()]
        partitioned = any(hasattr(parameter, "ds_id") for parameter in parameters)
        trained = training and any(parameter.requires_grad for parameter in parameters)
        return partitioned or trained

    def _dummy_tile_zero(self, device: torch.device) -> Tensor | None:
        """The zero that a batch without images adds: a dummy tile's output, multiplied by it."""
        if not self.needs_dummy_tile(training=self.training):
            return None
        size = self.config.image_size
        channels = self.config.vision_config.num_channels
        dummy = torch.zeros(1, channels, size, size, device=device)
        return self.extract_feature(dummy).sum() * 0

    def _embed(
        self,
        input_ids: Tensor | None,
        pixel_values: Tensor | None,
        image_flags: Tensor | None = None,
        visual_features: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        goes_on: bool = False,
    ) -> Tensor:
        """Token embeddings with the tiles' features in place: (B, T, D).

        Args:
            goes_on: the text continues what is in a cache, and may hold a placeholder that the
                model itself wrote.
        """
        tiles = self._tiles(pixel_values, visual_features)
        if tiles is None and input_ids is None:
            assert inputs_embeds is not None
            return inputs_embeds  # with the images in place, if there are any
        # What needs the device to catch up (counting) comes first, while its queue is short.
        if tiles is not None and image_flags is not None:
            tiles = tiles[image_flags.reshape(-1).to(tiles.device) == 1]
        token_id, table = self.img_context_token_id, self.get_input_embeddings()
        ids = input_ids
        if ids is None:
            assert inputs_embeds is not None
            ids = ids_of_slots(inputs_embeds, table, token_id)
        slots = None
        if tiles is not None:
            slots = find_image_slots(
                ids,
                image_token_id=token_id,
                num_tiles=tiles.shape[0],
                num_image_token=self.num_image_token,
            )
        elif token_id is not None and not goes_on:
            refuse_image_tokens(ids, token_id)
        embeds = table(ids) if inputs_embeds is None else inputs_embeds
        if tiles is None or slots is None or tiles.shape[0] == 0:
            zero = self._dummy_tile_zero(embeds.device)
            return embeds if zero is None else embeds + zero.to(embeds)
        features = self.extract_feature(tiles) if visual_features is None else tiles
        return splice_image_features(embeds, features, slots)

    def _tiles(self, pixel_values: Tensor | None, visual_features: Tensor | None) -> Tensor | None:
        """The images of a batch, in either form, if it has any and they have the right shape."""
        if visual_features is not None:
            if visual_features.ndim != 3 or visual_features.shape[1] != self.num_image_token:
                raise ValueError(
                    f"visual_features has shape {tuple(visual_features.shape)}, want "
                    f"(tiles, {self.num_image_token}, width), as extract_feature gives them"
                )
            return visual_features
        if pixel_values is None:
            return None
        channels, size = self.config.vision_config.num_channels, self.config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, want "
                f"(tiles, {channels}, {size}, {size})"
            )
        if pixel_values.shape[2:] != (size, size):
            height, width = pixel_values.shape[2:]
            raise ValueError(
                f"the tiles have {height} x {width} pixels, and the model takes {size} x {size} "
                f"(image size of its configuration). Cut them at {size}"
            )
        return pixel_values

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        image_flags: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        loss_weight: Tensor | None = None,
        loss_denominator: float | Tensor | None = None,
        return_logits: bool = True,
        visual_features: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Run the model on text with images.

        Args:
            pixel_values: (N, 3, S, S), normalised; ``None`` for a batch without images.
            input_ids: (B, T); a tile is K copies of ``img_context_token_id``.
            attention_mask: (B, T), 1 on real tokens; ``None`` for none padded.
            position_ids: (B, T); restart in packed rows.
            image_flags: (N,) or (N, 1), 1 for a real tile, 0 for a dummy tile, which is dropped.
            past_key_values: cache of the language model.
            labels: (B, T), ``IGNORE_INDEX`` off the loss mask; the shift by one happens here.
            use_cache: return the cache; off by default when there are labels.
            output_attentions, output_hidden_states: of the language model; by default what the
                configuration, or the language model's, says.
            return_dict: ``False`` for a tuple; by default what the configuration says.
            inputs_embeds: (B, T, D) in place of ``input_ids``, images and all; with
                ``pixel_values``, the placeholders as the token embeddings have them.
            logits_to_keep: as in transformers' language models; without labels only.
            loss_weight: (B, T) float32, aligned with ``labels``; 1 by default.
            loss_denominator: what the weighted sum of cross entropies is divided by; the sum of
                the weights by default. Zero gives a loss of exactly zero.
            return_logits: ``False`` returns the loss without logits, which are not even computed
                where the language model allows it: supervised positions only, chunk by chunk.
            visual_features: (N, K, D), what :meth:`extract_feature` gave, in place of pixels.
            **kwargs: ``shift_labels``, (B, T) in place of ``labels``, each at the position that
                predicts it (and ``loss_weight`` with it), as trainers with sequence parallelism
                have them; all others (``cu_seq_lens_q`` and the like of packed rows) go to the
                language model.

        Returns:
            Loss (float32), logits (B, T, V) or ``None``, and what else was asked for.

        Raises:
            ValueError: image tokens do not number K per tile, images came without
                ``img_context_token_id`` set or in another size, or no text was given.
            TypeError: images under a name that is not known here.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, not both or neither")
        _refuse_other_images(kwargs)
        num_items = kwargs.pop("num_items_in_batch", None)
        if loss_denominator is None:
            loss_denominator = num_items  # the plain transformers Trainer's name for it
        targets = None
        # No parameter of its own: transformers' Trainer takes every parameter named so for labels
        # that a batch must have, and evaluates nothing without.
        shift_labels: Tensor | None = kwargs.pop("shift_labels", None)
        goal = labels if shift_labels is None else shift_labels
        if goal is not None:
            targets = select_targets(
                goal, loss_weight, loss_denominator, are_shifted=shift_labels is not None
            )
            logits_to_keep = 0
        embeds = self._embed(
            input_ids,
            pixel_values,
            image_flags,
            visual_features,
            inputs_embeds,
            goes_on=num_cached_tokens(past_key_values) > 0,
        )
        if use_cache is None and (self.training or targets is not None):
            use_cache = False
        settings = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": embeds,
            "use_cache": use_cache,
            "output_attentions": self._wanted("output_attentions", output_attentions),
            "output_hidden_states": self._wanted("output_hidden_states", output_hidden_states),
            **kwargs,
        }
        if targets is not None and not return_logits and self._can_skip_logits(settings):
            result = self._forward_loss_only(targets, settings)
        else:
            outputs = self.language_model(
                **settings, logits_to_keep=logits_to_keep, return_dict=True
            )
            loss = None
            if targets is not None:
                loss = self.vocabulary_loss.of_logits(outputs.logits, targets)
            result = CausalLMOutputWithPast(
                loss=loss,
                logits=outputs.logits if return_logits or loss is None else None,
                past_key_values=outputs.past_key_values,
                hidden_states=outputs.hidden_states,
                attentions=outputs.attentions,
            )
        if return_dict is None:
            return_dict = self.config.return_dict
        return result.to_tuple() if return_dict is False else result

    def _wanted(self, name: str, given: bool | None) -> bool:
        """Whether an output is asked for: by the call, else by either configuration."""
        if given is not None:
            return given
        configs = (self.config, self.config.llm_config)
        return any(bool(getattr(config, name, False)) for config in configs)

    def _can_skip_logits(self, settings: dict[str, Any]) -> bool:
        """Whether decoder and head may be called without the language model around them."""
        # The wrapper of PEFT chooses each row's adapter.
        return "adapter_names" not in settings and logits_are_the_heads(self.language_model)

    def _forward_loss_only(
        self, targets: Targets, settings: dict[str, Any]
    ) -> CausalLMOutputWithPast:
        outputs = self.get_decoder()(**settings, return_dict=True)
        hidden = outputs.last_hidden_state
        positions = targets.positions.to(hidden.device)
        supervised = hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)
        total = self.vocabulary_loss(
            supervised,
            targets.tokens.to(hidden.device),
            self.get_output_embeddings(),
            targets.weights.to(hidden.device),
        )
        return CausalLMOutputWithPast(
            loss=total * targets.scale.to(total.device),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _refuse_other_images(kwargs: dict[str, Any]) -> None:
    """Images under another model's keywords, which the language model would drop in silence."""
    for name, value in kwargs.items():
        if value is not None and name.startswith(("pixel_", "image", "video")):
            raise TypeError(f"{name} is not known: tiles are pixel_values, dummies by image_flags")


def _build_language_model(config: PretrainedConfig) -> PreTrainedModel:
    """A fresh causal LM of transformers, in the dtype and on the device of the surroundings."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"transformers has no causal language model for {type(config).__name__}")
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)


def _keep_weights(model: nn.Module) -> None:
    """Mark the weights of a finished part, so that no initialisation touches them again."""
    for module in model.modules():
        module._is_hf_initialized = True  # type: ignore[assignment]


# Makes save_pretrained write these files, and name them in config.json (auto_map).
InternVLChatConfig.register_for_auto_class()
InternVLChatModel.register_for_auto_class("AutoModel")
