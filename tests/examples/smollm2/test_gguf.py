"""GGUF -> safetensors: weights, tokenizer and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from examples.smollm2.gguf import convert_gguf, read_facts
from internvl_chat.errors import CheckpointError, ConfigError

gguf = pytest.importorskip("gguf")

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<file_sep>"]
MERGES = ["Ġ Ġ", "Ġ t", "h e", "Ġt he"]
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def byte_alphabet() -> list[str]:
    """GPT-2's printable characters for the 256 bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def tiny_llama(vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        max_position_embeddings=96,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def interleave_heads(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """The row order of q and k inside GGUF: rotary pairs side by side."""
    rows, columns = weight.shape
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def write_gguf(path: Path, model: LlamaForCausalLM, tokens: list[str], *, pre: str) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("A Tiny One")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL if t in CONTROL else gguf.TokenType.NORMAL for t in tokens]
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)

    def add(name: str, tensor: torch.Tensor, num_heads: int | None = None) -> None:
        values = tensor.detach().float().numpy()
        writer.add_tensor(name, interleave_heads(values, num_heads) if num_heads else values)

    add("token_embd.weight", model.model.embed_tokens.weight)
    add("output_norm.weight", model.model.norm.weight)
    add("output.weight", model.lm_head.weight)
    for index, layer in enumerate(model.model.layers):
        block = f"blk.{index}"
        add(f"{block}.attn_norm.weight", layer.input_layernorm.weight)
        add(f"{block}.ffn_norm.weight", layer.post_attention_layernorm.weight)
        attention, mlp = layer.self_attn, layer.mlp
        add(f"{block}.attn_q.weight", attention.q_proj.weight, config.num_attention_heads)
        add(f"{block}.attn_k.weight", attention.k_proj.weight, config.num_key_value_heads)
        add(f"{block}.attn_v.weight", attention.v_proj.weight)
        add(f"{block}.attn_output.weight", attention.o_proj.weight)
        add(f"{block}.ffn_gate.weight", mlp.gate_proj.weight)
        add(f"{block}.ffn_up.weight", mlp.up_proj.weight)
        add(f"{block}.ffn_down.weight", mlp.down_proj.weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    tokens = CONTROL + byte_alphabet() + [pair.replace(" ", "") for pair in MERGES]
    model = tiny_llama(len(tokens))
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, model, tokens, pre="smollm")
    return path, model


@pytest.fixture(scope="module")
def converted(
    source: tuple[Path, LlamaForCausalLM], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return convert_gguf(source[0], tmp_path_factory.mktemp("out") / "tiny", dtype="float32")


def test_logits_are_those_of_the_model_that_was_written(
    source: tuple[Path, LlamaForCausalLM], converted: Path
) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32)
    input_ids = torch.tensor([[5, 9, 200, 3, 77]])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(input_ids).logits, source[1](input_ids).logits, rtol=0, atol=1e-6
        )


def test_config_has_no_trace_of_the_file_it_came_from(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rms_norm_eps"] == 1e-05
    assert config["rope_parameters"]["rope_theta"] == 50000.0
    assert "quantization_config" not in config
    assert "A Tiny One" not in json.dumps(config)
    assert not converted.with_name("tiny.partial").exists()


def test_tokenizer_cuts_digits_one_by_one_and_keeps_control_tokens(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    # GPT-2's cut would leave one space with the digit: a, Ġ, Ġ, 1, 2.
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert tokenizer.tokenize("<|im_start|> the<file_sep>") == [
        "<|im_start|>",
        "Ġthe",
        "<file_sep>",
    ]
    assert tokenizer.is_fast
    assert tokenizer.model_max_length == 96
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_facts_come_from_the_header(source: tuple[Path, LlamaForCausalLM]) -> None:
    facts = read_facts(source[0])
    assert facts.architecture == "llama"
    assert facts.pre_tokenizer == "smollm"
    assert facts.control_tokens == tuple(CONTROL)


def test_bfloat16_is_stored_on_request(
    source: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    target = convert_gguf(source[0], tmp_path / "half", dtype="bfloat16")
    assert json.loads((target / "config.json").read_text("utf-8"))["dtype"] == "bfloat16"


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(CheckpointError, match=r"model.gguf: not a GGUF file: it begins with b'PK"):
        convert_gguf(path, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no such file"):
        convert_gguf(tmp_path / "none.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_directory_with_files_is_left_alone(
    source: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    (tmp_path / "keep.txt").write_text("mine", "utf-8")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        convert_gguf(source[0], tmp_path)
    assert (tmp_path / "keep.txt").read_text("utf-8") == "mine"


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "bert")
    writer.add_token_list(["a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="architecture 'bert', want 'llama'"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out")


def test_tool_reports_a_user_error_without_a_traceback(tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "tools" / "gguf_to_safetensors.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "none.gguf", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "none.gguf: no such file" in done.stderr
    assert "Traceback" not in done.stderr
