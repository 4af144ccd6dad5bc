"""What training and surgery write, under the last transformers 4: the same ids, answers, logits.

transformers 4.57.6 is laid over the environment's packages, once, in pytest's cache folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from internvl_chat.checkpoint.artifacts import write_tokenizer
from internvl_chat.checkpoint.surgery.export import export
from internvl_chat.checkpoint.tokenizer import add_special_tokens, load_tokenizer
from tests.integration.transformers4_worker import describe
from tests.support.checkpoints import tiny_tokenizer
from tests.support.lora_checkpoints import save_base, save_lora
from tests.support.overlay import overlay
from tests.support.search_path import search_path
from tests.support.training import ROOT

VERSION = "4.57.6"
PACKAGES = (f"transformers=={VERSION}", "tokenizers==0.22.2", "huggingface_hub==0.36.2")
OLD = ROOT / "tests/fixtures/commit_7c68937/base"
SHIPPED = ROOT / "pretrained/internvl-chat-tiny"
ROPES: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "phi3": {
        "model_type": "phi3",
        "pad_token_id": 0,
        "original_max_position_embeddings": 64,
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.5, 1.0],
            "long_factor": [3.0, 2.0],
        },
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 4,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e3},
        },
    },
    "partial": {"model_type": "phi", "partial_rotary_factor": 0.5, "rope_theta": 2e4},
}


@pytest.fixture(scope="module")
def transformers4(request: pytest.FixtureRequest) -> Path:
    """A folder for PYTHONPATH."""
    return overlay(request, "transformers4", PACKAGES)


def write_tokenizers(folder: Path) -> None:
    """Of other classes, as training saves them."""
    sources = folder.parent / "sources"
    for name in ("GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer"):
        source = sources / name
        source.mkdir(parents=True)
        settings: dict[str, Any] = {"tokenizer_class": name, "eos_token": "</s>"}
        if name == "LlamaTokenizer":  # as our earlier versions wrote it
            shutil.copy(SHIPPED / "tokenizer.json", source)
            settings |= {"eos_token": "<|im_end|>", "bos_token": "<s>", "add_prefix_space": False}
        else:
            vocabulary = tiny_tokenizer().get_vocab()
            (source / "vocab.json").write_text(json.dumps(vocabulary))
            (source / "merges.txt").write_text("#version: 0.2\n")
            settings["additional_special_tokens"] = ["<|im_start|>", "<|im_end|>"]
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
        (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
        tokenizer = load_tokenizer(str(source))
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
        add_special_tokens(tokenizer)
        target = folder / name
        target.mkdir()
        write_tokenizer(tokenizer, target, LlamaConfig(max_position_embeddings=123))


def write_adapters(folder: Path) -> None:
    """One under PEFT's former file name and keys, and one that lacks a weight."""
    for name in ("adapter_bin", "refused_adapter"):
        shutil.copytree(folder / "adapter", folder / name)
        path = folder / name / "adapter_model.safetensors"
        weights = load_file(path)
        if name == "refused_adapter":
            del weights[next(key for key in weights if "lora_B" in key)]
            save_file(weights, path)
        else:
            lora = re.compile(r"(?<=lora_[AB])\.weight$")
            named = {lora.sub(".default.weight", key): value for key, value in weights.items()}
            torch.save(named, path.with_suffix(".bin"))
            path.unlink()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories by what they stand for."""
    folder = tmp_path_factory.mktemp("written") / "checkpoints"
    base = save_base(folder / "base")
    save_base(folder / "bfloat16", dtype=torch.bfloat16)
    save_lora(base, folder / "adapter", adapter_only=True, mlp=True)
    save_lora(base, folder / "adapter_shuffling_otherwise", adapter_only=True, ps_version="v2")
    save_lora(base, folder / "lora_inside", adapter_only=False)
    export(str(base), str(folder / "sharded"), max_shard_bytes=20_000)
    second = save_base(folder / "second_shuffle", ps_version="v2", force_image_size=28)
    export(str(second), str(folder / "native"), layout="native")
    for name, llm in ROPES.items():
        save_base(folder / name, llm=llm)
    export(str(OLD), str(folder / "renewed"))
    write_adapters(folder)
    own_head = save_base(folder / "refused_own_head") / "config.json"
    values = json.loads(own_head.read_text())
    values["llm_config"]["tie_word_embeddings"] = True  # which the weights contradict
    own_head.write_text(json.dumps(values))
    save_base(folder / "refused_gemma2", llm={"model_type": "gemma2", "head_dim": 4})
    write_tokenizers(folder)
    return {path.name: path for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def found4(
    transformers4: Path, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the worker found under transformers 4."""
    folder = tmp_path_factory.mktemp("found")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "PYTHONPATH": search_path(transformers4, ROOT),
        "HF_HOME": str(folder / "home"),  # nothing is there that transformers 5 has copied
        "HF_HUB_OFFLINE": "1",
    }
    directories = list(map(str, checkpoints.values()))
    worker = Path(__file__).with_name("transformers4_worker.py")
    done = subprocess.run(
        [sys.executable, str(worker), str(folder / "found.json"), *directories],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((folder / "found.json").read_text())
    assert result["version"] == VERSION
    return {Path(directory).name: values for directory, values in result["found"].items()}


NAMES = (
    "adapter",
    "adapter_bin",
    "adapter_shuffling_otherwise",
    "base",
    "bfloat16",
    "GPT2Tokenizer",
    "LlamaTokenizer",
    "lora_inside",
    "native",
    "Qwen2Tokenizer",
    "renewed",
    "second_shuffle",
    "sharded",
    *ROPES,
)


REFUSED = {
    "refused_adapter": "weights 1 missing: ",
    "refused_gemma2": "sees other images under transformers 4",
    "refused_own_head": "transformers 4 would drop it",
}


def test_every_directory_has_a_test(checkpoints: dict[str, Path]) -> None:
    assert set(checkpoints) == {*NAMES, *REFUSED}


def test_what_would_answer_otherwise_is_refused(found4: dict[str, Any]) -> None:
    for name, reason in REFUSED.items():
        assert reason in found4[name]["error"], name


@pytest.mark.parametrize("name", NAMES)
def test_the_same_under_transformers_4(
    name: str, checkpoints: dict[str, Path], found4: dict[str, Any]
) -> None:
    ours, theirs = describe(str(checkpoints[name])), found4[name]
    assert theirs["ids"] == theirs["slow_ids"] == ours["ids"] == ours["slow_ids"]
    assert theirs["inputs"] == ["attention_mask", "input_ids"]
    mine, other = (torch.tensor(values.pop("logits", [])) for values in (ours, theirs))
    # The same kernels in the same order: 0 on the machine where it was measured.
    torch.testing.assert_close(other, mine, rtol=0, atol=1e-5)
    assert theirs == ours


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "LlamaTokenizer", "Qwen2Tokenizer"])
def test_ids_are_those_of_the_source(name: str, checkpoints: dict[str, Path]) -> None:
    source = load_tokenizer(str(checkpoints[name].parent.parent / "sources" / name))
    add_special_tokens(source)
    saved = load_tokenizer(str(checkpoints[name]))
    for text in ("The answer is 42.", " two  spaces\n", "<|im_start|>user\na<img></img>"):
        assert saved(text)["input_ids"] == source(text)["input_ids"]
    assert saved.model_max_length == 123
    assert saved.chat_template == "{{ messages[0]['content'] }}"
