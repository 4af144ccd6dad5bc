"""Configuration of the InternViT vision tower (``model_type: intern_vit_6b``)."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, __version__

TRANSFORMERS = tuple(map(int, __version__.split(".")[:2]))
"""Major and minor number of the version that runs here."""

if TRANSFORMERS < (4, 48):  # has no registry of attention kernels, among others
    raise ImportError(
        f"this checkpoint's code needs transformers 4.48 or newer, here is {__version__}: "
        "pip install -U 'transformers>=4.48'"
    )

AUTO_MAP = {
    "AutoConfig": "configuration_intern_vit.InternVisionConfig",
    "AutoModel": "modeling_intern_vit.InternVisionModel",
}


class InternVisionConfig(PretrainedConfig):
    """Shape of an InternViT.

    Args:
        num_channels: of the input images.
        patch_size: side of a patch in pixels.
        image_size: side in pixels of the image that the position embeddings are laid out for.
        qkv_bias: whether the q, k, v projection has a bias.
        hidden_size: width ``C``.
        num_attention_heads: must divide ``hidden_size``.
        intermediate_size: width of the hidden layer of the MLPs.
        qk_normalization: RMS norm on queries and keys, over the whole width before the heads.
        num_hidden_layers: blocks.
        hidden_act: activation of the MLPs.
        norm_type: ``"rms_norm"`` or ``"layer_norm"``.
        layer_norm_eps: epsilon of either norm.
        dropout: after attention's and the MLP's output projection.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 at the first.
        attention_dropout: on attention weights.
        initializer_range: standard deviation of fresh weights.
        initializer_factor: initial value of the layer scales.
        **kwargs: anything else is kept and written back (``use_flash_attn`` of published files,
            for one: kept, and of no effect; the kernel is chosen by ``attn_implementation``).

    Raises:
        ValueError: a value is out of range or unknown.
    """

    model_type = "intern_vit_6b"
    base_config_key = "vision_config"

    def __init__(
        self,
        num_channels: int = 3,
        patch_size: int = 14,
        image_size: int = 224,
        qkv_bias: bool = False,
        hidden_size: int = 3200,
        num_attention_heads: int = 25,
        intermediate_size: int = 12800,
        qk_normalization: bool = True,
        num_hidden_layers: int = 48,
        hidden_act: str = "gelu",
        norm_type: str = "rms_norm",
        layer_norm_eps: float = 1e-6,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_factor: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if norm_type not in ("rms_norm", "layer_norm"):
            raise ValueError(f"norm_type is {norm_type!r}, want 'rms_norm' or 'layer_norm'")
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size={hidden_size} is not a multiple of "
                f"num_attention_heads={num_attention_heads}"
            )
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate is {drop_path_rate}, want 0 <= rate < 1")
        self.num_channels = num_channels
        self.patch_size = patch_size
        self.image_size = image_size
        self.qkv_bias = qkv_bias
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.qk_normalization = qk_normalization
        self.num_hidden_layers = num_hidden_layers
        self.hidden_act = hidden_act
        self.norm_type = norm_type
        self.layer_norm_eps = layer_norm_eps
        self.dropout = dropout
        self.drop_path_rate = drop_path_rate
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.initializer_factor = initializer_factor
        super().__init__(**kwargs)
        self.auto_map = dict(AUTO_MAP)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read ``config.json``; of a chat checkpoint, its ``vision_config``.

        The attention kernel that was in use where the file was written is not taken over.
        """
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") != cls.model_type and "vision_config" in config_dict:
            config_dict = config_dict["vision_config"]
        return drop_saved_kernel(config_dict), kwargs


def drop_saved_kernel(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Leave out the attention kernel that a configuration file asks for.

    Files of the transformers 4.37 era name the kernel of the machine that wrote them
    (``flash_attention_2``), which must not decide what runs here.
    """
    dropped = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
    return {key: value for key, value in config_dict.items() if key not in dropped}
