"""The model's settings under the names that scripts written for the original use.

Each has one home, the configuration or the chat template; here it is read and, where that can be
done, changed. This file travels inside checkpoints.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .conversation import ConversationTemplate, get_conv_template


class SettingsMixin:
    """Attributes of a model with a vision tower, a projector and a language model."""

    config: Any
    language_model: Any
    conv_template: ConversationTemplate
    """The chat template; messages put into it stay without effect on ``chat``."""
    num_samples: int = 0
    """The original sets it to 0 and never reads it."""

    @property
    def template(self) -> str:
        """Name of the chat template; setting it changes what ``chat`` writes around the turns.

        ``system_message`` stays, as in the original.
        """
        return self.conv_template.name

    @template.setter
    def template(self, name: str) -> None:
        self.conv_template = get_conv_template(name)

    @property
    def num_image_token(self) -> int:
        """Tokens that stand for one tile (``K``); follows from the sizes in the configuration."""
        return self.config.num_image_token

    @num_image_token.setter
    def num_image_token(self, value: int) -> None:
        self._require("num_image_token", value, "set config.force_image_size")

    @property
    def ps_version(self) -> str:
        """Version of the pixel shuffle, ``"v1"`` or ``"v2"``."""
        return self.config.ps_version

    @ps_version.setter
    def ps_version(self, version: str) -> None:
        if version not in ("v1", "v2"):
            raise ValueError(f"ps_version is {version!r}, want 'v1' or 'v2'")
        self.config.ps_version = version

    @property
    def select_layer(self) -> int:
        """Hidden state of the vision tower that is projected; -1 is the last."""
        return self.config.select_layer

    @select_layer.setter
    def select_layer(self, index: int) -> None:
        self.config.select_layer = index

    @property
    def downsample_ratio(self) -> float:
        """Of the pixel shuffle, per side; the projector's width is made for it."""
        return self.config.downsample_ratio

    @downsample_ratio.setter
    def downsample_ratio(self, value: float) -> None:
        self._require("downsample_ratio", value, "build a model with another projector")

    @property
    def patch_size(self) -> int:
        """Side of the vision tower's patches in pixels."""
        return self.config.vision_config.patch_size

    @patch_size.setter
    def patch_size(self, value: int) -> None:
        self._require("patch_size", value, "build a model with another vision tower")

    @property
    def llm_arch_name(self) -> str:
        """Class of the language model, ``LlamaForCausalLM`` for one."""
        unwrap = getattr(self.language_model, "get_base_model", None)  # out of its LoRA wrapper
        return type(self.language_model if unwrap is None else unwrap()).__name__

    @property
    def lm_head(self) -> nn.Module:
        """The vocabulary projection of the language model."""
        head: nn.Module = self.language_model.get_output_embeddings()
        return head

    def _require(self, name: str, value: float, instead: str) -> None:
        """Settings that follow from others may be set to what they are."""
        present = getattr(self, name)
        if value != present:
            raise ValueError(
                f"{name} is {present} in this model and cannot become {value}: {instead}"
            )
