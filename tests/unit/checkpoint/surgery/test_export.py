"""``export``: other files, the same model; and transformers' own class."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, InternVLForConditionalGeneration

from internvl_chat.checkpoint.skeleton import skeleton_of
from internvl_chat.checkpoint.surgery import native
from internvl_chat.checkpoint.surgery.export import export
from internvl_chat.checkpoint.surgery.extract import extract
from internvl_chat.checkpoint.surgery.native import chat_template
from internvl_chat.checkpoint.tokenizer import add_special_tokens
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model import InternVLChatConfig
from internvl_chat.model.conversation import TEMPLATES
from tests.support.checkpoints import tiny_tokenizer
from tests.support.lora_checkpoints import load_fp32, logits_for, save_base, save_lora
from tests.support.search_path import search_path

CHANGED = {"transformers_version", "_commit_hash"}
PUBLISHED = Path(__file__).parents[2] / "model/published_v1_2_config.json"


def test_pytorch_files_become_safetensors_of_a_size(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    torch.save(weights, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    report = export(str(base), str(tmp_path / "new"), max_shard_bytes=20_000)
    assert (report.tensors, report.merged, report.logits) == (len(weights), 0, 0.0)
    found: dict[str, torch.Tensor] = {}
    for path in sorted((tmp_path / "new").glob("model-0*.safetensors")):
        assert path.stat().st_size < 24_000
        found |= load_file(path)
    assert found.keys() == weights.keys()
    assert all(found[name].equal(value) for name, value in weights.items())
    load_fp32(tmp_path / "new")


def test_another_dtype(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    export(str(base), str(tmp_path / "half"), dtype=torch.float16)
    old, new = (load_file(p / "model.safetensors") for p in (base, tmp_path / "half"))
    assert all(new[name].equal(value.half()) for name, value in old.items())
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "float16"


def test_a_sentencepiece_model_goes_along(tmp_path: Path) -> None:
    """Beside ``tokenizer.json``, for programs that read nothing else."""
    base = save_base(tmp_path / "base")
    (base / "tokenizer.model").write_bytes(b"pieces")
    export(str(base), str(tmp_path / "new"))
    extract("llm", str(base), str(tmp_path / "llm"))
    for name in ("new", "llm"):
        assert (tmp_path / name / "tokenizer.model").read_bytes() == b"pieces"


def test_numbers_beyond_the_range_of_a_dtype(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["mlp1.3.bias"][2] = 1e6
    torch.save(weights, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"mlp1\.3\.bias.*not a number in float16"):
        export(str(base), str(tmp_path / "new"), dtype=torch.float16)
    assert not (tmp_path / "new").exists()


def test_the_public_layout_has_the_published_keys(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=False)
    assert export(str(tmp_path / "lora"), str(tmp_path / "new")).merged == 26
    values = json.loads((tmp_path / "new/config.json").read_text())
    published = json.loads(PUBLISHED.read_text())
    made_up = {"image_fold", "lora_notes"}  # of the fixture, for keys that nobody knows
    assert published.keys() - values.keys() <= {"_commit_hash"} | made_up
    assert values["use_llm_lora"] == values["use_backbone_lora"] == 0
    assert not any("lora" in name for name in load_file(tmp_path / "new/model.safetensors"))


def test_a_checkpoint_as_published_round_trips(tmp_path: Path) -> None:
    """Shards of ``.bin`` files of transformers 4.37's time, with buffers that are computed now."""
    old, new, again = (tmp_path / name for name in ("published", "new", "again"))
    old.mkdir()
    shutil.copyfile(PUBLISHED, old / "config.json")
    config = InternVLChatConfig.from_pretrained(old)
    tokenizer = tiny_tokenizer()
    add_special_tokens(tokenizer)
    tokenizer.save_pretrained(old)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator).bfloat16()
        for name, shape in skeleton_of(config).shapes.items()
    }
    half = len(weights) // 2
    shards = [dict(list(weights.items())[:half]), dict(list(weights.items())[half:])]
    shards[1]["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    for number, shard in enumerate(shards):
        torch.save(shard, old / f"pytorch_model-{number}.bin")
    places = {name: f"pytorch_model-{n}.bin" for n, shard in enumerate(shards) for name in shard}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (old / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    export(str(old), str(new))
    found = load_file(new / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(found[name].equal(value) for name, value in weights.items())
    published, written = (json.loads((p / "config.json").read_text()) for p in (old, new))
    for key in published.keys() - {"auto_map", "llm_config", "vision_config", "architectures"}:
        assert key in CHANGED or written[key] == published[key], key
    assert written["auto_map"].keys() >= published["auto_map"].keys() - {"AutoTokenizer"}
    AutoModel.from_pretrained(old, dtype="auto").save_pretrained(again)
    found = load_file(again / "model.safetensors")
    assert all(found[name].equal(value) for name, value in weights.items())


VARIANTS: list[dict[str, Any]] = [
    {},
    {"vision": {"norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False}},
    {"llm": {"tie_word_embeddings": True}, "select_layer": -2},
    {"llm": {"model_type": "qwen2"}, "template": "internvl2_5"},
    {"template": "phi3-chat", "dynamic_image_size": True, "use_thumbnail": True},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_transformers_own_class_computes_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    base = save_base(tmp_path / "base", ps_version="v2", **changes)
    report = export(str(base), str(tmp_path / "native"), layout="native")
    assert report.logits is not None
    assert report.logits < 2e-5
    native = InternVLForConditionalGeneration.from_pretrained(
        tmp_path / "native", dtype=torch.float32
    ).eval()
    native.num_image_token = native.config.image_seq_length
    native.config.image_size = 28
    native.config.image_token_id = 7
    difference = (logits_for(native) - logits_for(load_fp32(base))).abs().max()
    assert difference < 2e-5


def test_an_adapter_of_a_v2_model_is_merged_on_the_way(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", ps_version="v2")
    save_lora(base, tmp_path / "lora", adapter_only=True, ps_version="v2")
    report = export(str(tmp_path / "lora"), str(tmp_path / "native"), layout="native")
    assert report.merged == 26
    assert report.logits is not None
    assert report.logits < 2e-5


@pytest.mark.parametrize("lora", [False, True])
def test_a_wrong_export_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    source = save_base(tmp_path / "base", ps_version="v2")
    if lora:
        save_lora(source, tmp_path / "lora", adapter_only=True, ps_version="v2")
        source = tmp_path / "lora"

    def always_q(self: native.QkvSlice, start: int, stop: int) -> torch.Tensor:
        return self.source.read(start, stop)

    monkeypatch.setattr(native.QkvSlice, "read", always_q)
    with pytest.raises(CheckpointError, match="what was written computes something else"):
        export(str(source), str(tmp_path / "native"), layout="native")
    assert not (tmp_path / "native").exists()


SCRIPT = """
import sys
from transformers import AutoModelForImageTextToText, AutoTokenizer
model, info = AutoModelForImageTextToText.from_pretrained(sys.argv[1], output_loading_info=True)
assert type(model).__name__ == "InternVLForConditionalGeneration"
assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert tokenizer.context_image_token == "<IMG_CONTEXT>", tokenizer
assert tokenizer.context_image_token_id == model.config.image_token_id
assert not any(name.split(".")[0] == "internvl_chat" for name in sys.modules)
"""


def test_a_process_without_this_package_loads_the_native_layout(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", ps_version="v2")
    export(str(base), str(tmp_path / "native"), layout="native")
    subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, str(tmp_path / "native")],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": search_path(), "HF_HUB_OFFLINE": "1"},
        timeout=600,
    )
    names = {path.name for path in (tmp_path / "native").iterdir()}
    assert not any(name.endswith(".py") for name in names)
    generation = json.loads((tmp_path / "native/generation_config.json").read_text())
    assert generation["eos_token_id"] == [258, 256]  # <|im_end|>, </s>
    image = json.loads((tmp_path / "native/preprocessor_config.json").read_text())
    assert image["image_mean"] == [0.485, 0.456, 0.406]
    assert (image["size"], image["crop_to_patches"]) == ({"height": 28, "width": 28}, False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "pixel shuffle v1: transformers' class has v2 only"),
        ({"ps_version": "v2", "pad2square": True}, "images are padded to a square"),
        ({"ps_version": "v2", "template": "internvl_zh"}, "begins with a BOS token"),
        ({"ps_version": "v2", "vision": {"layer_norm_eps": 1e-5}}, "q and k norms with epsilon"),
        ({"ps_version": "v2", "force_image_size": 56}, "run resize-pos-embed first"),
        ({"ps_version": "v2", "dynamic_image_size": True}, "without a thumbnail"),
        (
            {"ps_version": "v2", "llm": {"model_type": "cohere", "logit_scale": 0.5}},
            "changes its logits after the head",
        ),
    ],
)
def test_what_the_native_class_cannot_represent(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    base = save_base(tmp_path / "base", **changes)
    with pytest.raises(CheckpointError, match=reason):
        export(str(base), str(tmp_path / "native"), layout="native")
    assert not (tmp_path / "native").exists()


def test_an_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no layout 'gguf'\. Give internvl_chat or native"):
        export("anything", str(tmp_path / "new"), layout="gguf")


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_chat_template_writes_what_training_wrote(tmp_path: Path, name: str) -> None:
    template = TEMPLATES[name]
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat_template(template, None)
    tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    image = {"type": "image"}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [image, {"type": "text", "text": 'Who "is"\n{this}?'}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    turns = [('<IMG_CONTEXT>\nWho "is"\n{this}?', "A cat."), ("Sure?", None)]
    wanted = template.render(turns).text
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked == wanted
    system = [{"role": "system", "content": "Short!"}]
    asked = tokenizer.apply_chat_template(
        system + messages, tokenize=False, add_generation_prompt=True
    )
    assert asked == template.render(turns, "Short!").text
