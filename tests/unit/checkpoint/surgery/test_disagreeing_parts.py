"""Checkpoints whose parts disagree: every reader takes them the same way, or refuses them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from internvl_chat.chat import load_model
from internvl_chat.checkpoint.load import build_model, require_complete
from internvl_chat.checkpoint.surgery import extract as extraction
from internvl_chat.checkpoint.surgery.export import export
from internvl_chat.checkpoint.surgery.extract import extract
from internvl_chat.checkpoint.surgery.merge import merge_lora
from internvl_chat.checkpoint.surgery.replace import replace_llm
from internvl_chat.checkpoint.surgery.resize import resize_pos_embed
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.errors import CheckpointError, ConfigError
from tests.support.checkpoints import config_for, stitch_config
from tests.support.lora_checkpoints import load_fp32, logits_for, save_base, save_lora

TOLERANCE = 2e-5
EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
Weights = dict[str, Tensor]


def change_json(path: Path, *keys: str, **values: object) -> None:
    """Change a JSON object, or the one inside it that the keys lead to."""
    whole = json.loads(path.read_text())
    inner = whole
    for key in keys:
        inner = inner[key]
    inner.update(values)
    path.write_text(json.dumps(whole))


@pytest.fixture
def two_heads(tmp_path: Path) -> Path:
    """``tie_word_embeddings`` beside a head of its own, as some merges leave it."""
    base = save_base(tmp_path / "base")
    change_json(base / "config.json", "llm_config", tie_word_embeddings=True)
    return base


def test_a_head_of_its_own_is_kept_by_every_reader(two_heads: Path, tmp_path: Path) -> None:
    wanted = logits_for(load_fp32(two_heads))  # transformers' own rule
    trained = build_model(config_for(two_heads), load_tokenizer(str(two_heads)))
    assert logits_for(trained).equal(wanted)
    assert trained.config.llm_config.tie_word_embeddings is False

    for number, write in enumerate(
        (
            lambda out: export(str(two_heads), out),
            lambda out: export(str(two_heads), out, max_shard_bytes=20_000),
            lambda out: resize_pos_embed(str(two_heads), out, 28),
        )
    ):
        out = tmp_path / f"out-{number}"
        write(str(out))
        assert logits_for(load_fp32(out)).equal(wanted)
        values = json.loads((out / "config.json").read_text())
        assert values["llm_config"]["tie_word_embeddings"] is False


def test_a_head_of_its_own_in_a_language_model_alone(two_heads: Path, tmp_path: Path) -> None:
    whole = load_fp32(two_heads)
    extract("llm", str(two_heads), str(tmp_path / "llm"))
    ids = torch.arange(5, 25)[None]
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "llm", dtype=torch.float32).eval()
    assert isinstance(alone, LlamaForCausalLM)
    assert alone(ids).logits.equal(whole.language_model(ids).logits)

    change_json(tmp_path / "llm/config.json", tie_word_embeddings=True)  # as if found so
    replace_llm(str(two_heads), str(tmp_path / "llm"), str(tmp_path / "replaced"))
    assert logits_for(load_fp32(tmp_path / "replaced")).equal(logits_for(whole))
    extract("vit", str(two_heads), str(tmp_path / "vit"))
    extract("mlp", str(two_heads), str(tmp_path / "mlp.pth"))
    stitched = build_model(stitch_config(tmp_path), load_tokenizer(str(two_heads)))
    assert logits_for(stitched).equal(logits_for(whole))


def test_equal_heads_stay_one(tmp_path: Path) -> None:
    """PyTorch files always hold both names of a tied weight."""
    base = save_base(tmp_path / "base", llm={"tie_word_embeddings": True})
    weights = load_file(base / "model.safetensors")
    save_file({**weights, HEAD: weights[EMBEDDING].clone()}, base / "model.safetensors")
    model = build_model(config_for(base), load_tokenizer(str(base)))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert export(str(base), str(tmp_path / "out")).tensors == len(weights)


def test_the_lora_of_a_model_with_two_heads(two_heads: Path, tmp_path: Path) -> None:
    for kind in (True, False):
        saved = save_lora(two_heads, tmp_path / f"lora-{kind}", adapter_only=kind)
        assert (
            logits_for(load_fp32(tmp_path / f"lora-{kind}")) - logits_for(saved)
        ).abs().max() == 0
        merge_lora(str(tmp_path / f"lora-{kind}"), str(tmp_path / f"merged-{kind}"))
        merged = load_fp32(tmp_path / f"merged-{kind}")
        assert (logits_for(merged) - logits_for(saved)).abs().max() < TOLERANCE


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_an_adapter_that_stores_one_of_two_tied_weights(tmp_path: Path, module: str) -> None:
    """PEFT's ``modules_to_save`` parts them: the other one keeps the base's values."""
    base = save_base(tmp_path / "base", llm={"tie_word_embeddings": True})
    lora = tmp_path / "lora"
    save_lora(base, lora, adapter_only=True)
    weights = load_file(lora / "adapter_model.safetensors")
    name = EMBEDDING if module == "embed_tokens" else HEAD
    changed = load_file(base / "model.safetensors")[EMBEDDING] * 0.5
    save_file({**weights, f"base_model.model.{name}": changed}, lora / "adapter_model.safetensors")
    change_json(lora / "adapter_config.json", modules_to_save=[module])
    merge_lora(str(lora), str(tmp_path / "merged"))
    wanted, found = logits_for(load_fp32(lora)), logits_for(load_fp32(tmp_path / "merged"))
    assert (wanted - found).abs().max() < TOLERANCE
    assert (found - logits_for(load_fp32(base))).abs().max() > 0.01


def _bin(directory: Path, weights: Weights) -> None:
    torch.save(weights, directory / "adapter_model.bin")
    (directory / "adapter_model.safetensors").unlink()


def _with_the_adapters_name(directory: Path, weights: Weights) -> None:
    """As ``model.state_dict()`` has them."""
    renamed = {
        key.replace(".weight", ".default.weight")
        if ".lora_" in key
        else key.replace(".mlp1.", ".mlp1.modules_to_save.default."): value
        for key, value in weights.items()
    }
    save_file(renamed, directory / "adapter_model.safetensors")


def _without_prefix(directory: Path, weights: Weights) -> None:
    renamed = {key.removeprefix("base_model.model."): value for key, value in weights.items()}
    save_file(renamed, directory / "adapter_model.safetensors")


@pytest.mark.parametrize("change", [_bin, _with_the_adapters_name, _without_prefix])
@pytest.mark.parametrize("bare", [False, True])
def test_adapters_in_other_files_and_names(
    tmp_path: Path, change: Callable[[Path, Weights], None], bare: bool
) -> None:
    base = save_base(tmp_path / "base")
    lora = tmp_path / "lora"
    saved = save_lora(base, lora, adapter_only=True, mlp=True)
    change(lora, load_file(lora / "adapter_model.safetensors"))
    if bare:  # PEFT writes no configuration of the model
        (lora / "config.json").unlink()
    assert logits_for(load_model(str(lora))[0]).equal(logits_for(saved))
    merge_lora(str(lora), str(tmp_path / "merged"))
    found = logits_for(load_fp32(tmp_path / "merged"))
    assert (found - logits_for(saved)).abs().max() < TOLERANCE
    continued = build_model(
        config_for(
            lora, use_llm_lora=4, use_backbone_lora=2, freeze_llm=True, freeze_backbone=True
        ),
        load_tokenizer(str(lora)),
    )
    assert logits_for(continued).equal(logits_for(saved))


def test_a_pickle_that_runs_code_is_no_adapter(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    lora = tmp_path / "lora"
    save_lora(base, lora, adapter_only=True)
    (lora / "adapter_model.safetensors").unlink()
    torch.save({"weights": Path("a class that is not a tensor")}, lora / "adapter_model.bin")
    for use in (lambda: load_model(str(lora)), lambda: merge_lora(str(lora), str(tmp_path / "m"))):
        with pytest.raises(
            CheckpointError, match=r"adapter_model\.bin.*no plain PyTorch state dict"
        ):
            use()


@pytest.mark.parametrize("bare", [False, True])
def test_an_adapter_that_lacks_a_layer(tmp_path: Path, bare: bool) -> None:
    base = save_base(tmp_path / "base")
    lora = tmp_path / "lora"
    save_lora(base, lora, adapter_only=True)
    weights = load_file(lora / "adapter_model.safetensors")
    layer = next(key for key in weights if ".lora_A." in key).split(".lora_A.")[0]
    kept = {key: value for key, value in weights.items() if not key.startswith(layer)}
    save_file(kept, lora / "adapter_model.safetensors")
    if bare:
        (lora / "config.json").unlink()
    with pytest.raises(CheckpointError, match="1 layers that target_modules names have no LoRA"):
        merge_lora(str(lora), str(tmp_path / "merged"))
    with pytest.raises((CheckpointError, ValueError), match="missing"):
        load_model(str(lora))


def test_an_adapter_of_another_rank_than_its_configuration(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    lora = tmp_path / "lora"
    save_lora(base, lora, adapter_only=True, vision=0)
    change_json(lora / "adapter_config.json", r=8, lora_alpha=16)
    with pytest.raises(CheckpointError, match="has a LoRA of rank 4, the configuration says 8"):
        merge_lora(str(lora), str(tmp_path / "merged"))


def test_a_tokenizer_with_more_tokens_than_rows(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    tokenizer = load_tokenizer(str(base))
    rows = len(tokenizer)
    tokenizer.add_tokens(["wombat", "quokka"])
    tokenizer.save_pretrained(base)
    message = f"2 tokens have no row in the embedding of {rows} rows, the first is 'wombat'"
    for use in (lambda: load_model(str(base)), lambda: export(str(base), str(tmp_path / "out"))):
        with pytest.raises(CheckpointError, match=message):
            use()
    model = build_model(config_for(base), load_tokenizer(str(base)))  # a training gives them rows
    assert model.get_input_embeddings().weight.shape[0] == rows + 2


def test_a_tokenizer_without_image_tokens(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    kept = json.loads((base / "tokenizer.json").read_text())
    kept["added_tokens"] = [t for t in kept["added_tokens"] if t["content"] != "<IMG_CONTEXT>"]
    (base / "tokenizer.json").write_text(json.dumps(kept))
    change_json(base / "tokenizer_config.json", extra_special_tokens=[])
    with pytest.raises(CheckpointError, match="its tokenizer has no <IMG_CONTEXT>"):
        load_model(str(base))


def test_two_sets_of_weights_in_one_folder(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    export(str(base), str(tmp_path / "shards"), max_shard_bytes=20_000)
    for path in (tmp_path / "shards").glob("model*"):
        shutil.copy(path, base)
    for use in (lambda: require_complete(str(base)), lambda: load_model(str(base))):
        with pytest.raises(CheckpointError, match=r"two sets of weights: model\.safetensors, and"):
            use()


@pytest.mark.parametrize(
    ("keys", "change", "told"),
    [
        ((), {"select_layer": -99}, "select_layer is -99"),
        ((), {"downsample_ratio": 0}, "zero"),
        ((), {"dtype": "float99"}, "float99"),
        (("llm_config",), {"hidden_act": "nope"}, "'nope'"),
        (("llm_config",), {"num_attention_heads": 3}, "attention heads"),
        (("llm_config",), {"head_dim": 99}, "head_dim"),
        (("llm_config",), {"rope_parameters": {"rope_type": "nope"}}, "'nope'"),
        (("vision_config",), {"num_attention_heads": 5}, "num_attention_heads=5"),
    ],
)
def test_configurations_that_no_model_can_be_made_of(
    tmp_path: Path, keys: tuple[str, ...], change: dict[str, object], told: str
) -> None:
    base = save_base(tmp_path / "base")
    change_json(base / "config.json", *keys, **change)
    for use in (lambda: load_model(str(base)), lambda: export(str(base), str(tmp_path / "out"))):
        with pytest.raises(CheckpointError, match=told):
            use()


def test_a_tokenizer_that_leaves_ids_out(tmp_path: Path) -> None:
    """A training gives rows to the highest id, not to as many as there are tokens."""
    base = save_base(tmp_path / "base")
    values = json.loads((base / "tokenizer.json").read_text())
    values["model"]["vocab"]["\u0120far"] = 290
    (base / "tokenizer.json").write_text(json.dumps(values))
    model = build_model(config_for(base), load_tokenizer(str(base)))
    assert model.get_input_embeddings().weight.shape[0] == 291


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"version": "1.0", "model": {"type": "Nope"}, "added_tokens": []}']
)
def test_tokenizers_that_the_library_cannot_read(tmp_path: Path, text: str) -> None:
    base = save_base(tmp_path / "base")
    (base / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot be loaded as a tokenizer"):
        load_tokenizer(str(base))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON"),
        ("[]", "is no JSON object"),
        ('{"eos_token_id": "x"}', "eos_token_id is 'x', wanted a token's id"),
        ('{"max_new_tokens": -3}', "max_new_tokens"),
        ('{"cache_implementation": "nope"}', "cache_implementation"),
    ],
)
def test_generation_settings_that_are_none(tmp_path: Path, text: str, told: str) -> None:
    base = save_base(tmp_path / "base")
    (base / "generation_config.json").write_text(text)
    for use in (
        lambda: load_model(str(base)),
        lambda: export(str(base), str(tmp_path / "out")),
        lambda: build_model(config_for(base), load_tokenizer(str(base))),
    ):
        with pytest.raises(CheckpointError, match=rf"generation_config\.json: .*{told}"):
            use()


@pytest.mark.parametrize("keys", [(), ("llm_config",)])
def test_quantised_weights(tmp_path: Path, keys: tuple[str, ...]) -> None:
    base = save_base(tmp_path / "base")
    change_json(
        base / "config.json", *keys, quantization_config={"quant_method": "gptq", "bits": 4}
    )
    for use in (
        lambda: export(str(base), str(tmp_path / "out")),
        lambda: build_model(config_for(base), load_tokenizer(str(base))),
    ):
        with pytest.raises(CheckpointError, match="its weights are quantised"):
            use()
    with pytest.raises(ConfigError, match="GPTQ"):
        load_model(str(base))


def test_damaged_image_settings_are_named_where_they_are(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    (base / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"base/preprocessor_config\.json: is no JSON"):
        export(str(base), str(tmp_path / "out"))


@pytest.mark.parametrize("adapter_only", [False, True])
def test_lora_over_pytorch_files(tmp_path: Path, adapter_only: bool) -> None:
    """Their tensors are read as they lie in memory, which a merge must not change."""
    base = save_base(tmp_path / "base")
    saved = save_lora(base, tmp_path / "lora", adapter_only=adapter_only)
    holder = base if adapter_only else tmp_path / "lora"
    torch.save(load_file(holder / "model.safetensors"), holder / "pytorch_model.bin")
    (holder / "model.safetensors").unlink()
    merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))
    found = logits_for(load_fp32(tmp_path / "merged"))
    assert (found - logits_for(saved)).abs().max() < TOLERANCE


def test_weights_of_eight_bits_are_written(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["mlp1.1.weight"] = weights["mlp1.1.weight"].to(torch.float8_e4m3fn)
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    export(str(base), str(tmp_path / "out"))
    assert logits_for(load_fp32(tmp_path / "out")).equal(logits_for(load_fp32(base)))
    weights["mlp1.1.weight"] = (weights["mlp1.1.weight"].float() / 0).to(torch.float8_e4m3fn)
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="infinite or not a number"):
        export(str(base), str(tmp_path / "out2"))


@pytest.mark.parametrize(
    ("keys", "change", "told"),
    [
        ((), {"force_image_size": "x"}, "force_image_size is 'x', wanted a number of pixels"),
        ((), {"use_llm_lora": "4"}, "use_llm_lora is '4', wanted a rank"),
        ((), {"dynamic_image_size": "no"}, "dynamic_image_size is 'no', wanted true or false"),
        ((), {"system_message": 5}, "system_message is 5, wanted a text"),
        (("llm_config",), {"pad_token_id": 99_999}, "Padding_idx"),
        ((), {"use_llm_lora": 4}, "no LoRA weights for it|missing"),
    ],
)
def test_values_that_nothing_can_be_made_of(
    tmp_path: Path, keys: tuple[str, ...], change: dict[str, object], told: str
) -> None:
    base = save_base(tmp_path / "base")
    change_json(base / "config.json", *keys, **change)
    for use in (
        lambda: load_model(str(base)),
        lambda: export(str(base), str(tmp_path / "out")),
        lambda: replace_llm(str(base), str(base), str(tmp_path / "replaced")),
    ):
        with pytest.raises(CheckpointError, match=told):
            use()


@pytest.mark.parametrize("part", ["llm", "vit"])
def test_a_part_that_computes_something_else_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    base = save_base(tmp_path / "base")
    write = extraction._write_config

    def write_another(config: Any, tensors: Any, directory: Path, dtype: Any) -> None:
        write(config, tensors, directory, dtype)
        change_json(directory / "config.json", hidden_act="relu")

    monkeypatch.setattr(extraction, "_write_config", write_another)
    with pytest.raises(CheckpointError, match="what was written computes something else"):
        extract(part, str(base), str(tmp_path / part))
    assert not (tmp_path / part).exists()
