"""What transformers 4 would read otherwise, or not at all, in the small files of a checkpoint.

That it reads them alike: tests/integration/test_transformers4.py, where it can be had.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, PretrainedConfig

from internvl_chat.checkpoint.artifacts import write_config, write_tokenizer
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.model import InternVLChatConfig
from internvl_chat.model.configuration_internvl_chat import spell_for_transformers_4
from tests.support.checkpoints import tiny_tokenizer
from tests.support.models import make_config
from tests.support.training import ROOT


def written(directory: Path, name: str) -> dict[str, Any]:
    values = json.loads((directory / name).read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


def source_of(directory: Path, **settings: Any) -> Path:
    """The shipped vocabulary under another ``tokenizer_config.json``."""
    shipped = ROOT / "pretrained/internvl-chat-tiny/tokenizer.json"
    (directory / "tokenizer.json").write_bytes(shipped.read_bytes())
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def test_a_tokenizer_of_another_class(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    source_of(
        source,
        tokenizer_class="LlamaTokenizer",
        bos_token="<s>",
        eos_token="<|im_end|>",
        auto_map={"AutoTokenizer": ["tokenization_other.OtherTokenizer", None]},
        additional_special_tokens=["<img>", "</img>"],
    )
    tokenizer = load_tokenizer(str(source), max_seq_length=77)
    target = tmp_path / "target"
    target.mkdir()
    write_tokenizer(tokenizer, target, LlamaConfig(max_position_embeddings=640))
    values = written(target, "tokenizer_config.json")
    wanted = {
        "additional_special_tokens": ["<img>", "</img>"],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 640,  # the context, not what one run cut its texts to
        "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    assert {key: values.get(key) for key in wanted} == wanted
    left = {"auto_map", "extra_special_tokens", "is_local", "local_files_only"}
    assert not left & values.keys()
    again = load_tokenizer(str(target))
    text = "<img> two  spaces <|im_end|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.extra_special_tokens == ["<img>", "</img>"]


def test_prefix_space_is_what_the_vocabulary_file_says(tmp_path: Path) -> None:
    """transformers 4 changes the tokenizer to what ``tokenizer_config.json`` says."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True
    write_tokenizer(tokenizer, tmp_path, LlamaConfig())
    assert written(tmp_path, "tokenizer.json")["pre_tokenizer"]["add_prefix_space"] is False
    assert written(tmp_path, "tokenizer_config.json")["add_prefix_space"] is False


def test_a_context_that_no_configuration_names(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 99
    write_tokenizer(tokenizer, tmp_path, PretrainedConfig())
    assert written(tmp_path, "tokenizer_config.json")["model_max_length"] == 99


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONG = {"rope_type": "longrope", "short_factor": [1.5] * 3, "long_factor": [3.0] * 3}


@pytest.mark.parametrize(
    ("llm", "wanted"),
    [
        ({"rope_theta": 5e6}, {"rope_theta": 5e6}),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
        ),
        (
            {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
            {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        ),
        (
            {
                "model_type": "phi3",
                "pad_token_id": 0,
                "rope_parameters": {**LONG, "rope_theta": 1e4},
            },
            {
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1.5] * 3,
                    "long_factor": [3.0] * 3,
                }
            },
        ),
        (
            {"model_type": "phi", "partial_rotary_factor": 0.5},
            {"partial_rotary_factor": 0.5, "architectures": ["PhiForCausalLM"]},
        ),
        (
            {
                "model_type": "gemma3_text",
                "head_dim": 6,
                "layer_types": ["full_attention", "sliding_attention"],
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 2e3},
                },
            },
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 2e3,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            },
        ),
    ],
)
def test_rotary_settings_under_both_names(
    llm: dict[str, Any], wanted: dict[str, Any], tmp_path: Path
) -> None:
    config = make_config(llm=llm)
    config.save_pretrained(tmp_path / "chat")
    values = written(tmp_path / "chat", "config.json")["llm_config"]
    assert {key: values.get(key) for key in wanted} == wanted
    again = InternVLChatConfig.from_pretrained(tmp_path / "chat")
    assert rope_of(again.llm_config) == rope_of(config.llm_config)
    write_config(config.llm_config, tmp_path / "llm")
    values = written(tmp_path / "llm", "config.json")
    assert {key: values.get(key) for key in wanted} == wanted
    again = type(config.llm_config).from_pretrained(tmp_path / "llm")
    assert rope_of(again) == rope_of(config.llm_config)


def rope_of(config: Any) -> dict[str, Any]:
    """Without the former name of ``rope_type``, which transformers 5 keeps beside it."""
    return {key: value for key, value in config.rope_parameters.items() if key != "type"}


def test_nothing_is_made_up_for_a_configuration_without_rotation() -> None:
    values = {"model_type": "intern_vit_6b", "dtype": "bfloat16"}
    spell_for_transformers_4(values)
    assert values == {
        "model_type": "intern_vit_6b",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }
