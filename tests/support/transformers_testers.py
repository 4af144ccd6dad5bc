"""Our models for the common tests of transformers' own repository.

No test of ours: ``tests/integration/test_transformers_own_tests.py`` puts this file beside those
tests, which come with transformers' source distribution, and runs it there.
"""

from __future__ import annotations

import unittest
from typing import Any, ClassVar

import torch
from transformers.models.auto import modeling_auto

import internvl_chat
from internvl_chat import InternVisionConfig, InternVisionModel, InternVLChatConfig

from .test_modeling_common import (  # type: ignore[import-not-found]
    ModelTesterMixin,
    floats_tensor,
    ids_tensor,
)

IMAGE_TOKEN, WORD = 5, 7
SIZE, NUM_IMAGE_TOKEN = 16, 4
VISION = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "image_size": SIZE,
    "patch_size": 4,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
# By these tables the tests know which models take labels, and which have none.
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["internvl_chat"] = "InternVLChatModel"
modeling_auto.MODEL_MAPPING_NAMES["intern_vit_6b"] = "InternVisionModel"


class InternVLChatModel(internvl_chat.InternVLChatModel):
    """Ours, which knows its image token from the beginning; the tests go by the class's name."""

    _auto_class = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.img_context_token_id = IMAGE_TOKEN


class ChatTester:
    """Shapes and inputs of a chat model."""

    is_training = True
    batch_size = 3
    seq_length = 11
    num_hidden_layers = 2
    hidden_size = 32
    num_attention_heads = 4
    image_size = SIZE
    vocab_size = 99
    vision_config = VISION
    text_config = TEXT

    def __init__(self, llm: dict[str, Any], **kwargs: Any) -> None:
        self.llm, self.kwargs = llm, kwargs

    def get_config(self) -> InternVLChatConfig:
        return InternVLChatConfig(
            vision_config=VISION,
            llm_config={**TEXT, **self.llm},
            template="Hermes-2",
            **self.kwargs,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[InternVLChatConfig, dict[str, Any]]:
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        ids[ids == IMAGE_TOKEN] = WORD
        ids[:, 1 : 1 + NUM_IMAGE_TOKEN] = IMAGE_TOKEN
        return self.get_config(), {
            "pixel_values": floats_tensor([self.batch_size, 3, SIZE, SIZE]),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }


class ChatTests(ModelTesterMixin):
    """The common tests, for a chat model."""

    all_model_classes = (InternVLChatModel,)
    _is_composite = True
    test_can_init_all_missing_weights_before_2023 = True
    llm: ClassVar[dict[str, Any]] = {"model_type": "llama"}
    settings: ClassVar[dict[str, Any]] = {}

    def setUp(self) -> None:
        self.model_tester = ChatTester(self.llm, **self.settings)

    def _prepare_for_class(self, inputs: Any, model_class: Any, return_labels: bool = False) -> Any:
        """The kernels are compared on text alone, which has no image tokens with us."""
        inputs = super()._prepare_for_class(inputs, model_class, return_labels)
        if "pixel_values" not in inputs and "input_ids" in inputs:
            ids = inputs["input_ids"]
            inputs["input_ids"] = ids.masked_fill(ids == IMAGE_TOKEN, WORD)
        return inputs

    @unittest.skip("the mixin of generation's tests is not in the source distribution")
    def test_generation_tester_mixin_inheritance(self) -> None: ...

    @unittest.skip("no head on a base model: the parts are vision tower, projector, causal LM")
    def test_model_base_model_prefix(self) -> None: ...

    @unittest.skip("pixel_values comes first in forward, as in the original")
    def test_model_main_input_name(self) -> None: ...


class LlamaChatTest(ChatTests, unittest.TestCase):
    """As V1-2."""


class Qwen2ChatTest(ChatTests, unittest.TestCase):
    """Tied embeddings, the later pixel shuffle."""

    llm: ClassVar = {"model_type": "qwen2", "tie_word_embeddings": True}
    settings: ClassVar = {"ps_version": "v2"}


class VisionTester:
    """Shapes and inputs of a vision tower."""

    is_training = True
    batch_size = 3
    seq_length = 17
    num_hidden_layers = 2
    hidden_size = 32
    num_attention_heads = 4
    image_size = SIZE

    def get_config(self) -> InternVisionConfig:
        return InternVisionConfig(**VISION)

    def prepare_config_and_inputs_for_common(self) -> tuple[InternVisionConfig, dict[str, Any]]:
        return self.get_config(), {"pixel_values": floats_tensor([self.batch_size, 3, SIZE, SIZE])}


class VisionTest(ModelTesterMixin, unittest.TestCase):
    """The common tests, for a vision tower."""

    all_model_classes = (InternVisionModel,)
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        self.model_tester = VisionTester()

    @unittest.skip("its embeddings are of patches, no table")
    def test_model_get_set_embeddings(self) -> None: ...
