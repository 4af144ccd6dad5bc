"""Configuration of InternVL-Chat: a vision tower, a projector and a language model."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from transformers import AutoConfig, LlamaConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .configuration_intern_vit import TRANSFORMERS, InternVisionConfig, drop_saved_kernel

AUTO_MAP = {
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
}


def shuffle_factor(downsample_ratio: float) -> int:
    """The n of the n x n patches that the pixel shuffle makes one token of."""
    return round(1 / downsample_ratio)


def image_size_unit(patch_size: int, downsample_ratio: float) -> int:
    """Pixels of which the side of a tile must be a multiple: whole patches, whole squares of them.

    Args:
        patch_size: side of a patch in pixels.
        downsample_ratio: of the pixel shuffle, per side.
    """
    return patch_size * shuffle_factor(downsample_ratio)


def nearest_image_size(image_size: int, unit: int) -> int:
    """The multiple of ``unit``, at least one, that is nearest to a size in pixels."""
    return max(1, round(image_size / unit)) * unit


def num_image_token(image_size: int, patch_size: int, downsample_ratio: float) -> int:
    """Tokens that stand for one tile (``K``), as the pixel shuffle leaves them.

    Args:
        image_size: side of a tile in pixels.
        patch_size: side of a patch in pixels.
        downsample_ratio: of the pixel shuffle, per side.
    """
    return int(image_size // patch_size * downsample_ratio) ** 2


def _llm_config(values: dict[str, Any]) -> PretrainedConfig:
    """The language model's configuration from its JSON object; a Llama unless it says otherwise."""
    values = drop_saved_kernel(copy.deepcopy(values))
    model_type = values.get("model_type", LlamaConfig.model_type)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"llm_config.model_type is {model_type!r}, which this version of transformers "
            "does not have"
        )
    return CONFIG_MAPPING[model_type](**values)


def spell_for_transformers_4(values: dict[str, Any]) -> None:
    """Write a configuration's values under the names that transformers 4 reads as well.

    ``torch_dtype`` beside ``dtype``; ``rope_theta``, ``rope_scaling``, ``partial_rotary_factor``
    and ``rope_local_base_freq`` beside ``rope_parameters``; the class of a language model.
    transformers 4 drops what it does not know and takes its defaults: other answers, no message.

    Args:
        values: of one model, as they go into ``config.json``; changed in place.
    """
    if values.get("dtype") is not None:
        values["torch_dtype"] = values["dtype"]
    language_class = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(values.get("model_type", ""))
    if not values.get("architectures") and language_class is not None:
        values["architectures"] = [language_class]
    rope = values.get("rope_parameters") or {}
    if isinstance(rope.get("sliding_attention"), dict):  # of Gemma 3, one for either kind of layer
        values["rope_local_base_freq"] = rope["sliding_attention"].get("rope_theta")
        rope = rope.get("full_attention") or {}
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            values[name] = rope[name]
    scaling = _rope_scaling(rope, values.get("model_type"))
    if scaling is not None:
        values["rope_scaling"] = scaling


def _rope_scaling(rope: dict[str, Any], model_type: str | None) -> dict[str, Any] | None:
    """What transformers 4 calls ``rope_scaling``; transformers 5 takes it back whole."""
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    if kind in ("linear", "dynamic") and model_type == LlamaConfig.model_type:
        return {"type": kind, "factor": rope.get("factor")}  # 4.37 refuses any other key
    if model_type == "phi3":  # likewise
        return {"type": kind, **{key: rope.get(key) for key in ("short_factor", "long_factor")}}
    apart = ("rope_theta", "partial_rotary_factor")
    return {key: value for key, value in rope.items() if key not in apart}


def _refuse_other_answers(llm_config: PretrainedConfig) -> None:
    """Refuse language models that transformers 4 computes otherwise than 5, without a word.

    It scales these models' embeddings, the images' among them, where 5 scales the tokens' only.
    """
    if llm_config.model_type in ("gemma", "gemma2", "vaultgemma"):
        raise ValueError(
            f"a language model of type {llm_config.model_type} sees other images under "
            "transformers 4 than in its training: load it with transformers 5"
        )


class InternVLChatConfig(PretrainedConfig):
    """Configuration of an :class:`InternVLChatModel`.

    Args:
        vision_config: of the vision tower, as an object or its JSON values.
        llm_config: of the language model, likewise; any causal LM of transformers, told apart by
            ``model_type`` (a Llama where it is missing).
        use_backbone_lora: rank of the LoRA layers in the vision tower, 0 for none.
        use_llm_lora: rank of the LoRA layers in the language model, 0 for none.
        lora: settings of one ``peft.LoraConfig`` for the whole model, in place of the two ranks,
            whose adapters have an alpha of twice the rank on every linear layer.
        pad2square: images are padded to a square before they are resized.
        select_layer: hidden state of the vision tower that is projected; -1 is the last.
        force_image_size: side of a tile in pixels; ``None`` takes the vision tower's.
        downsample_ratio: of the pixel shuffle, per side.
        template: name of the chat template.
        dynamic_image_size: images are cut into several tiles.
        use_thumbnail: and the whole image is added as a tile.
        ps_version: of the pixel shuffle; ``"v1"`` leaves the token grid transposed, as published
            V1-2 weights expect.
        min_dynamic_patch, max_dynamic_patch: tiles per image.
        **kwargs: anything else is kept and written back (``system_message``, for one).

    Raises:
        ValueError: a value is out of range or unknown.
    """

    model_type = "internvl_chat"
    sub_configs: ClassVar = {"vision_config": InternVisionConfig, "llm_config": AutoConfig}
    attribute_map: ClassVar = {"text_config": "llm_config"}  # its name in transformers' own models

    def __init__(
        self,
        vision_config: dict[str, Any] | InternVisionConfig | None = None,
        llm_config: dict[str, Any] | PretrainedConfig | None = None,
        use_backbone_lora: int = 0,
        use_llm_lora: int = 0,
        lora: dict[str, Any] | None = None,
        pad2square: bool = False,
        select_layer: int = -1,
        force_image_size: int | None = None,
        downsample_ratio: float = 0.5,
        template: str | None = None,
        dynamic_image_size: bool = False,
        use_thumbnail: bool = False,
        ps_version: str = "v1",
        min_dynamic_patch: int = 1,
        max_dynamic_patch: int = 6,
        **kwargs: Any,
    ) -> None:
        text_config = kwargs.pop("text_config", None)
        llm_config = text_config if llm_config is None else llm_config
        if ps_version not in ("v1", "v2"):
            raise ValueError(f"ps_version is {ps_version!r}, want 'v1' or 'v2'")
        if vision_config is None or isinstance(vision_config, dict):
            vision_config = InternVisionConfig(**drop_saved_kernel(vision_config or {}))
        if llm_config is None or isinstance(llm_config, dict):
            llm_config = _llm_config(llm_config or {})
        # Before super().__init__, which hands attn_implementation on to them.
        self.vision_config = vision_config
        self.llm_config = llm_config
        self.use_backbone_lora = use_backbone_lora
        self.use_llm_lora = use_llm_lora
        self.lora = lora
        self.pad2square = pad2square
        self.select_layer = select_layer
        self.force_image_size = force_image_size
        self.downsample_ratio = downsample_ratio
        self.template = template
        self.dynamic_image_size = dynamic_image_size
        self.use_thumbnail = use_thumbnail
        self.ps_version = ps_version
        self.min_dynamic_patch = min_dynamic_patch
        self.max_dynamic_patch = max_dynamic_patch
        # A tie of token embeddings is the language model's affair (llm_config), not this level's.
        kwargs.pop("tie_word_embeddings", None)
        kwargs.setdefault("architectures", ["InternVLChatModel"])
        super().__init__(**kwargs)
        if TRANSFORMERS < (5, 0):
            _refuse_other_answers(llm_config)
            # True unless somebody says so; up to 4.48 this level's decides.
            self.tie_word_embeddings = bool(getattr(llm_config, "tie_word_embeddings", False))
        self.auto_map = dict(AUTO_MAP)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read ``config.json`` without the attention kernel it may name."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return drop_saved_kernel(config_dict), kwargs

    def get_text_config(
        self, decoder: bool | None = None, encoder: bool | None = None
    ) -> PretrainedConfig:
        """The language model's configuration."""
        return self.llm_config

    def __getattr__(self, name: str) -> Any:
        """The width of the language model, for whoever asks a text model for its own."""
        if name == "hidden_size" and "llm_config" in vars(self):
            return vars(self)["llm_config"].hidden_size
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """All values; the language model's under ``text_config`` too, where PEFT looks for it."""
        values = super().to_dict()
        return {**values, "text_config": values["llm_config"]}

    def to_diff_dict(self) -> dict[str, Any]:
        """The values that are saved, spelled for transformers 4 too (the original code's)."""
        values = super().to_diff_dict()
        values.pop("text_config", None)
        if values.get("lora") is None:
            values.pop("lora", None)
        spell_for_transformers_4(values)
        spell_for_transformers_4(values["vision_config"])
        spell_for_transformers_4(values["llm_config"])
        return values

    @property
    def image_size(self) -> int:
        """Side in pixels of the tiles that the model is fed."""
        return self.force_image_size or self.vision_config.image_size

    @property
    def num_image_token(self) -> int:
        """Tokens that stand for one tile (``K``)."""
        return num_image_token(
            self.image_size, self.vision_config.patch_size, self.downsample_ratio
        )
