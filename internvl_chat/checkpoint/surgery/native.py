"""The layout of transformers' own ``InternVLForConditionalGeneration``.

Names and settings: transformers ``models/internvl`` (modeling, configuration, processing). Programs
that know no remote code (transformers' own server, vLLM, exporters) run such a checkpoint.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import InternVLConfig, InternVLVisionConfig, PreTrainedTokenizerBase

from internvl_chat.checkpoint.artifacts import PREPROCESSOR_NAME, write_tokenizer
from internvl_chat.checkpoint.sources import GENERATION_NAME, read_json
from internvl_chat.checkpoint.tensor_files import TensorSource
from internvl_chat.files import write_json
from internvl_chat.model.chat import DEFAULT_TEMPLATE
from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.model.constants import (
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
    VIDEO_TAG,
)
from internvl_chat.model.conversation import Template, get_conv_template
from internvl_chat.model.vocabulary_loss import LOGIT_SETTINGS

_NATIVE_NORM_EPS = 1e-6
"""Of the native q and k norms, which take none from the configuration."""

_RENAMED = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    (r"^vision_model\.embeddings\.class_embedding$", "model.vision_tower.embeddings.cls_token"),
    (
        r"^vision_model\.embeddings\.position_embedding$",
        "model.vision_tower.embeddings.position_embeddings",
    ),
    (
        r"^vision_model\.embeddings\.patch_embedding\.",
        "model.vision_tower.embeddings.patch_embeddings.projection.",
    ),
    (r"^vision_model\.encoder\.layers\.", "model.vision_tower.encoder.layer."),
    (r"(vision_tower\.encoder\.layer\.\d+)\.attn\.proj\.", r"\1.attention.projection_layer."),
    (r"(vision_tower\.encoder\.layer\.\d+)\.attn\.", r"\1.attention."),
    (r"(vision_tower\.encoder\.layer\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(vision_tower\.encoder\.layer\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"(vision_tower\.encoder\.layer\.\d+)\.ls([12])$", r"\1.lambda_\2"),
)
_QKV = re.compile(r"^(.*\.attention)\.qkv\.(weight|bias)$")


@dataclass(frozen=True)
class QkvSlice:
    """The q, k or v rows of a vision tower's common projection."""

    source: TensorSource
    """(3C, C) or (3C,)."""
    number: int
    """0 for q, 1 for k, 2 for v."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.source.shape[0] // 3, *self.source.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    @property
    def where(self) -> str:
        return self.source.where

    def read(self, start: int, stop: int) -> Tensor:
        begin = self.number * torch.Size(self.shape).numel()
        return self.source.read(begin + start, begin + stop)


def reasons_against(config: InternVLChatConfig, tensors: dict[str, TensorSource]) -> list[str]:
    """Why transformers' class cannot represent this model; empty if it can."""
    vision, llm = config.vision_config, config.llm_config
    shifting = [key for key in LOGIT_SETTINGS if getattr(llm, key, None) not in (None, 1, 1.0)]
    unknown = [name for name in tensors if native_name(name) == name]
    template = get_conv_template(config.template or DEFAULT_TEMPLATE)
    checks = (
        (
            config.ps_version != "v2",
            f"pixel shuffle {config.ps_version}: transformers' class has v2 only, whose image "
            "tokens come in another order than this model was trained with",
        ),
        (
            vision.qk_normalization and vision.layer_norm_eps != _NATIVE_NORM_EPS,
            f"q and k norms with epsilon {vision.layer_norm_eps}, there always {_NATIVE_NORM_EPS}",
        ),
        (
            vision.image_size != config.image_size,
            f"position embeddings for {vision.image_size} pixels and tiles of {config.image_size}: "
            "run resize-pos-embed first",
        ),
        (
            config.pad2square,
            "images are padded to a square, which transformers' image processor does not do",
        ),
        (bool(shifting), f"the language model changes its logits after the head ({shifting})"),
        (bool(unknown), f"tensors that its language model class does not have: {unknown[:3]}"),
        (
            config.dynamic_image_size and not config.use_thumbnail,
            "several tiles without a thumbnail: transformers' image processor always adds one",
        ),
        (template.bos_in_training, f"template {template.name!r} begins with a BOS token"),
    )
    return [reason for holds, reason in checks if holds]


def native_name(name: str) -> str:
    """A parameter's name there; the name itself where there is none."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def native_tensors(tensors: dict[str, TensorSource]) -> dict[str, TensorSource]:
    """All tensors under their names there, q, k and v apart."""
    result: dict[str, TensorSource] = {}
    for name, source in tensors.items():
        renamed = native_name(name)
        match = _QKV.match(renamed)
        if match is None:
            result[renamed] = source
        else:
            for number, letter in enumerate("qkv"):
                result[f"{match[1]}.{letter}_proj.{match[2]}"] = QkvSlice(source, number)
    return result


def native_config(config: InternVLChatConfig, image_token_id: int) -> InternVLConfig:
    """The configuration of the same model for transformers' class."""
    vision = config.vision_config
    llm: Any = config.llm_config
    text = llm.to_dict()
    text["tie_word_embeddings"] = bool(llm.tie_word_embeddings)
    return InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=vision.hidden_size,
            num_hidden_layers=vision.num_hidden_layers,
            num_attention_heads=vision.num_attention_heads,
            attention_bias=vision.qkv_bias,
            use_qk_norm=vision.qk_normalization,
            intermediate_size=vision.intermediate_size,
            hidden_act=vision.hidden_act,
            hidden_dropout_prob=vision.dropout,
            attention_dropout=vision.attention_dropout,
            projection_dropout=vision.dropout,
            initializer_range=vision.initializer_range,
            norm_type=vision.norm_type,
            layer_norm_eps=vision.layer_norm_eps,
            image_size=[vision.image_size] * 2,
            patch_size=[vision.patch_size] * 2,
            num_channels=vision.num_channels,
            layer_scale_init_value=vision.initializer_factor,
        ),
        text_config=text,
        image_token_id=image_token_id,
        image_seq_length=config.num_image_token,
        downsample_ratio=config.downsample_ratio,
        vision_feature_layer=config.select_layer,
        tie_word_embeddings=bool(llm.tie_word_embeddings),
        architectures=["InternVLForConditionalGeneration"],
    )


def chat_template(
    template: Template, system_message: str | None, *, image: str = IMG_CONTEXT_TOKEN + "\n"
) -> str:
    """The template as Jinja, for ``processor.apply_chat_template``.

    Args:
        template: of the model.
        system_message: in place of the template's.
        image: how an image is written; by default as the context token, which the processor
            expands, and a newline.
    """
    system = template.system_message if system_message is None else system_message
    open_role = template.roles[1] if template.open_role is None else template.open_role
    content = (
        "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'image' -%}{{- image -}}"
        "{%- elif part['type'] == 'video' -%}{{- video -}}"
        "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}"
    )
    before, after = template.system_template.split("{system_message}")
    return (
        "{%- set image = " + _quoted(image) + " -%}"
        "{%- set video = " + _quoted(VIDEO_TAG + "\n") + " -%}"
        "{{- " + _quoted(before) + " -}}"
        "{%- if messages and messages[0]['role'] == 'system' -%}"
        "{%- set message = messages[0] -%}" + content + "{%- else -%}"
        "{{- " + _quoted(system) + " -}}{%- endif -%}"
        "{{- " + _quoted(after + template.system_sep) + " -}}"
        "{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
        "{{- " + _quoted(template.roles[0]) + " -}}" + content + "{{- "
        "" + _quoted(template.question_sep) + " -}}"
        "{%- elif message['role'] == 'assistant' -%}"
        "{{- " + _quoted(template.roles[1]) + " -}}" + content + "{{- "
        "" + _quoted(template.answer_sep) + " -}}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- " + _quoted(open_role) + " -}}{%- endif -%}"
    )


def _quoted(text: str) -> str:
    """A Jinja string literal."""
    return json.dumps(text, ensure_ascii=False)


def write_processor(
    config: InternVLChatConfig, tokenizer: PreTrainedTokenizerBase, source: Path, directory: Path
) -> None:
    """Write tokenizer, preprocessing and chat template, for ``AutoProcessor``.

    The processor's class needs torchvision, so the files are written here and not by it.

    Args:
        config: of the chat model.
        tokenizer: its tokenizer.
        source: directory of its ``preprocessor_config.json``.
        directory: to write to.
    """
    write_tokenizer(tokenizer, directory, config)
    _change_json(
        directory / "tokenizer_config.json",
        extra_special_tokens={
            "start_image_token": IMG_START_TOKEN,
            "end_image_token": IMG_END_TOKEN,
            "context_image_token": IMG_CONTEXT_TOKEN,
            "video_token": VIDEO_TAG,
        },
        processor_class="InternVLProcessor",
        padding_side="left",
    )
    statistics = read_json(source / PREPROCESSOR_NAME)
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": statistics["image_mean"],
        "image_std": statistics["image_std"],
        "processor_class": "InternVLProcessor",
        "resample": statistics.get("resample", 3),
        "rescale_factor": 1 / 255,
        "size": {"height": config.image_size, "width": config.image_size},
    }
    tiling = config.dynamic_image_size
    image = {
        **pixels,
        "crop_to_patches": tiling,
        "image_processor_type": "GotOcr2ImageProcessor",
        "max_patches": config.max_dynamic_patch if tiling else 1,
        "min_patches": config.min_dynamic_patch if tiling else 1,
    }
    video = {**pixels, "video_processor_type": "InternVLVideoProcessor"}
    processor = {
        "image_seq_length": config.num_image_token,
        "processor_class": "InternVLProcessor",
    }
    for name, values in (
        (PREPROCESSOR_NAME, image),
        ("video_preprocessor_config.json", video),
        ("processor_config.json", processor),
    ):
        write_json(directory / name, values)
    template = get_conv_template(config.template or DEFAULT_TEMPLATE)
    text = chat_template(template, getattr(config, "system_message", None))
    (directory / "chat_template.jinja").write_text(text, encoding="utf-8")


def write_generation_config(
    config: InternVLChatConfig, tokenizer: PreTrainedTokenizerBase, source: Path, directory: Path
) -> None:
    """Write when to stop: at the template's end of turn, and where the source says."""
    path = source / GENERATION_NAME
    values = read_json(path) if path.is_file() else {}
    template = get_conv_template(config.template or DEFAULT_TEMPLATE)
    ends = values.get("eos_token_id", tokenizer.eos_token_id)
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    stop = tokenizer.convert_tokens_to_ids(template.stop_str)
    values["eos_token_id"] = [stop, *(end for end in ends if end != stop)]
    values.setdefault("pad_token_id", tokenizer.pad_token_id)
    write_json(directory / GENERATION_NAME, values)


def _change_json(path: Path, **changes: Any) -> None:
    write_json(path, {**read_json(path), **changes})
