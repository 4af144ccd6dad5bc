"""``extract``, ``replace-llm`` and ``resize-pos-embed``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from internvl_chat.checkpoint.load import build_model
from internvl_chat.checkpoint.resize import resize_position_embedding
from internvl_chat.checkpoint.surgery.extract import extract
from internvl_chat.checkpoint.surgery.merge import merge_lora
from internvl_chat.checkpoint.surgery.replace import replace_llm
from internvl_chat.checkpoint.surgery.resize import resize_pos_embed
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model import InternVisionModel
from tests.support.checkpoints import LLM, config_for, randomised, tiny_tokenizer
from tests.support.lora_checkpoints import load_fp32, logits_for, save_base, save_lora


def same_weights(first: Path, second: Path) -> bool:
    one, two = (load_file(path / "model.safetensors") for path in (first, second))
    return one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


def test_parts_are_what_they_were_and_make_the_same_model_again(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    assert extract("vit", str(base), str(tmp_path / "vit")) == 43
    extract("llm", str(base), str(tmp_path / "llm"), max_shard_bytes=20_000)
    extract("mlp", str(base), str(tmp_path / "mlp.safetensors"))
    extract("mlp", str(base), str(tmp_path / "mlp.pth"))
    model = load_fp32(base)
    vit = InternVisionModel.from_pretrained(tmp_path / "vit")
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        wanted = model.vision_model(pixels).last_hidden_state
        assert vit.eval()(pixels).last_hidden_state.equal(wanted)
        llm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm").eval()
        ids = torch.tensor([[1, 2, 3]])
        assert llm(ids).logits.equal(model.language_model(ids).logits)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "llm")) == len(load_tokenizer(str(base)))
    assert json.loads((tmp_path / "llm/config.json").read_text())["architectures"] == [
        "LlamaForCausalLM"
    ]
    readable = tmp_path.stat().st_mode & 0o444
    assert (tmp_path / "mlp.safetensors").stat().st_mode & 0o444 == readable
    mlp = load_file(tmp_path / "mlp.safetensors")
    pth = torch.load(tmp_path / "mlp.pth", weights_only=True)
    assert all(model.mlp1.state_dict()[name].equal(value) for name, value in mlp.items())
    assert mlp.keys() == pth.keys() == model.mlp1.state_dict().keys()
    build = config_for(
        vision_path=str(tmp_path / "vit"),
        mlp_path=str(tmp_path / "mlp.pth"),
        llm_path=str(tmp_path / "llm"),
    )
    again = build_model(build, load_tokenizer(str(tmp_path / "llm")))
    assert logits_for(again).equal(logits_for(model))


def test_lora_is_merged_into_what_is_extracted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=True, vision=0, mlp=True)
    merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))
    for kind in ("lora", "merged"):
        extract("llm", str(tmp_path / kind), str(tmp_path / f"llm-{kind}"))
        extract("mlp", str(tmp_path / kind), str(tmp_path / f"mlp-{kind}.safetensors"))
    assert "LoRA weights of the llm are merged" in caplog.text
    assert "LoRA weights of the mlp" not in caplog.text
    assert same_weights(tmp_path / "llm-lora", tmp_path / "llm-merged")
    first, second = (load_file(tmp_path / f"mlp-{k}.safetensors") for k in ("lora", "merged"))
    assert all(first[name].equal(second[name]) for name in first)


def test_a_tied_language_model(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", llm={"tie_word_embeddings": True})
    extract("llm", str(base), str(tmp_path / "llm"))
    assert "lm_head.weight" not in load_file(tmp_path / "llm/model.safetensors")
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm").eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert llm(ids).logits.equal(load_fp32(base).language_model(ids).logits)


def test_extract_refuses(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    (tmp_path / "taken.pth").write_text("mine")
    for part, output, message in (
        ("tower", "out", "no part 'tower'. Give vit, mlp or llm"),
        ("mlp", "taken.pth", "exists and is not overwritten"),
        ("mlp", "mlp", "'mlp' is no name of a weight file"),
        ("vit", "taken.pth/vit", "cannot be created"),
    ):
        with pytest.raises(ConfigError, match=message):
            extract(part, str(base), str(tmp_path / output))
    assert (tmp_path / "taken.pth").read_text() == "mine"
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        extract("vit", str(tmp_path / "nowhere"), str(tmp_path / "out"))


def test_the_working_directory_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_base(tmp_path / "base")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for name in (".", str(tmp_path / "empty")):
        with pytest.raises(ConfigError, match="is the working directory"):
            extract("vit", str(base), name)
    assert (tmp_path / "empty").is_dir()


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    extract("llm", str(base), str(tmp_path / "llm"))
    with pytest.raises(CheckpointError, match="model_type is 'llama', wanted 'internvl_chat'"):
        extract("vit", str(tmp_path / "llm"), str(tmp_path / "out"))


@pytest.mark.parametrize("damage", ["missing", "surplus", "empty", "truncated"])
def test_incomplete_weights(tmp_path: Path, damage: str) -> None:
    base = save_base(tmp_path / "base")
    path = base / "model.safetensors"
    weights = load_file(path)
    name = "vision_model.encoder.layers.1.mlp.fc1.bias"
    if damage == "missing":
        del weights[name]
    elif damage == "surplus":
        weights["vision_model.encoder.layers.9.mlp.fc1.bias"] = torch.zeros(2)
    else:
        weights[name] = torch.zeros(0)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        save_file(weights, path, metadata={"format": "pt"})
    message = {
        "missing": r"1 missing: vision_model\.encoder\.layers\.1\.mlp\.fc1\.bias",
        "surplus": r"1 surplus: vision_model\.encoder\.layers\.9",
        "empty": "1 of zero size",
        "truncated": "truncated: ",
    }[damage]
    with pytest.raises(CheckpointError, match=message):
        extract("llm", str(base), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def save_llm(directory: Path, **changes: object) -> None:
    values = {**LLM, **changes}
    values.pop("model_type")
    randomised(LlamaForCausalLM(LlamaConfig(**values)), 5).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)


def test_a_model_gets_its_own_language_model_back(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", system_message="Be brief.")
    extract("llm", str(base), str(tmp_path / "llm"))
    report = replace_llm(str(base), str(tmp_path / "llm"), str(tmp_path / "new"))
    assert (report.new_tokens, report.new_projector) == (0, False)
    assert same_weights(base, tmp_path / "new")
    assert load_fp32(tmp_path / "new").config.system_message == "Be brief."


def test_another_language_model(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    (base / "generation_config.json").write_text('{"eos_token_id": 256}')
    save_llm(tmp_path / "llm", vocab_size=259, num_hidden_layers=1)
    (tmp_path / "llm/generation_config.json").write_text('{"eos_token_id": 17}')
    report = replace_llm(str(base), str(tmp_path / "llm"), str(tmp_path / "new"))
    assert report.new_tokens == 9
    model = load_fp32(tmp_path / "new")
    before, llm = (
        load_file(base / "model.safetensors"),
        load_file(tmp_path / "llm/model.safetensors"),
    )
    rows = model.get_input_embeddings().weight
    assert rows.shape == (268, 16)
    assert rows[:259].equal(llm["model.embed_tokens.weight"])
    assert (rows[259:] - llm["model.embed_tokens.weight"].mean(0)).abs().max() < 1e-6
    assert model.mlp1[1].weight.equal(before["mlp1.1.weight"])
    assert model.language_model.config.num_hidden_layers == 1
    generation = json.loads((tmp_path / "new/generation_config.json").read_text())
    assert generation == {"eos_token_id": 17}  # ids of the new tokenizer, not of the old one
    assert load_tokenizer(str(tmp_path / "new")).convert_tokens_to_ids("<IMG_CONTEXT>") == 261
    logits_for(model)


def test_a_wider_language_model_needs_a_new_projector(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_llm(tmp_path / "llm", hidden_size=32, vocab_size=259)
    new = [str(base), str(tmp_path / "llm"), str(tmp_path / "new")]
    with pytest.raises(
        CheckpointError, match=r"ends in 16 numbers a token, .* takes 32.*--new-mlp"
    ):
        replace_llm(*new)
    replace_llm(*new, new_mlp=True, seed=4)
    first = load_file(tmp_path / "new/model.safetensors")["mlp1.1.weight"]
    assert first.shape == (32, 48)
    replace_llm(new[0], new[1], str(tmp_path / "other"), new_mlp=True, seed=5)
    other = load_file(tmp_path / "other/model.safetensors")["mlp1.1.weight"]
    assert not first.equal(other)
    assert 0.1 < first.abs().max() <= 48**-0.5


def test_the_template_must_belong_to_the_tokenizer(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", system_message="Speak ChatML.")
    save_llm(tmp_path / "llm", vocab_size=257)
    tiny_tokenizer(end_of_turn=False).save_pretrained(tmp_path / "llm")
    new = [str(base), str(tmp_path / "llm"), str(tmp_path / "new")]
    with pytest.raises(ConfigError, match="'Hermes-2' ends turns with"):
        replace_llm(*new)
    replace_llm(*new, template="internvl_zh")
    new_model = load_fp32(tmp_path / "new")
    assert new_model.conv_template.name == "internvl_zh"
    assert new_model.system_message == ""  # not the one that went with the former template


def test_positions_for_another_image_size(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", torch_dtype="float32")
    report = resize_pos_embed(str(base), str(tmp_path / "new"), 56)
    assert (report.old_image_size, report.new_image_size, report.num_image_token) == (28, 56, 16)
    name = "vision_model.embeddings.position_embedding"
    old, new = (load_file(path / "model.safetensors") for path in (base, tmp_path / "new"))
    assert new[name].equal(resize_position_embedding(old[name], 64))
    assert all(new[key].equal(old[key]) for key in old if key != name)
    # The old model, fed images of the new size, interpolates as it runs.
    model = load_fp32(base)
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        wanted = model.extract_feature(pixels)
        found = load_fp32(tmp_path / "new").extract_feature(pixels)
    assert (wanted - found).abs().max() < 1e-5
    processor = json.loads((tmp_path / "new/preprocessor_config.json").read_text())
    assert processor["size"] == processor["crop_size"] == 56


def test_an_image_size_that_does_not_divide(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    with pytest.raises(ConfigError, match=r"60 is no multiple of 14 .* Try 56"):
        resize_pos_embed(str(base), str(tmp_path / "new"), 60)


def test_a_wrong_resize_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path / "base")

    def flipped(weight: torch.Tensor, num_patches: int) -> torch.Tensor:
        return resize_position_embedding(weight, num_patches).flip(1)

    monkeypatch.setattr("internvl_chat.checkpoint.resize.resize_position_embedding", flipped)
    with pytest.raises(CheckpointError, match="resized embeddings differ from interpolated ones"):
        resize_pos_embed(str(base), str(tmp_path / "new"), 56)
    assert not (tmp_path / "new").exists()
