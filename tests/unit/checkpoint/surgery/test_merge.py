"""``merge-lora``: the merged checkpoint is the adapter's model, and nothing else gets through."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from internvl_chat.chat import load_model
from internvl_chat.checkpoint.manifest import verify_manifest
from internvl_chat.checkpoint.surgery.lora_merge import MergedLoraWeight
from internvl_chat.checkpoint.surgery.merge import merge_lora
from internvl_chat.checkpoint.surgery.write import verify_weights
from internvl_chat.errors import CheckpointError, ConfigError
from tests.support.lora_checkpoints import load_fp32, logits_for, save_base, save_lora

TOLERANCE = 2e-5
"""fp32, five layers, logits of size 1: measured 3e-6."""


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("adapter_only", [True, False])
@pytest.mark.parametrize(("llm", "vision", "mlp"), [(4, 0, False), (0, 2, False), (4, 2, True)])
def test_the_merged_model_is_the_adapters(
    tmp_path: Path, adapter_only: bool, llm: int, vision: int, mlp: bool
) -> None:
    base = save_base(tmp_path / "base")
    saved = save_lora(
        base, tmp_path / "lora", adapter_only=adapter_only, llm=llm, vision=vision, mlp=mlp
    )
    report = merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))
    assert report.merged == (14 if llm else 0) + (12 if vision else 0)
    assert report.logits is not None
    assert report.logits.exact < TOLERANCE
    assert report.logits.effect > 0.01
    merged = load_fp32(tmp_path / "merged")
    assert (logits_for(merged) - logits_for(saved)).abs().max() < TOLERANCE
    assert (logits_for(merged) - logits_for(load_fp32(base))).abs().max() > 0.01
    names = load_file(tmp_path / "merged/model.safetensors").keys()
    assert not any("lora" in name or "base_" in name for name in names)
    assert (merged.config.use_llm_lora, merged.config.use_backbone_lora) == (0, 0)
    assert verify_manifest(tmp_path / "merged") == []


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "mistral", "phi3"])
def test_other_language_models(tmp_path: Path, kind: str) -> None:
    """Biases, norms in the heads, and layers that hold several projections in one."""
    base = save_base(tmp_path / "base", llm={"model_type": kind, "pad_token_id": 0})
    saved = save_lora(base, tmp_path / "lora", adapter_only=True)
    merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))
    assert (logits_for(load_fp32(tmp_path / "merged")) - logits_for(saved)).abs().max() < TOLERANCE


def test_both_layouts_give_the_same_weights(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    for kind in (True, False):
        save_lora(base, tmp_path / f"lora-{kind}", adapter_only=kind)
        merge_lora(str(tmp_path / f"lora-{kind}"), str(tmp_path / f"merged-{kind}"))
    first, second = (load_file(tmp_path / f"merged-{k}/model.safetensors") for k in (True, False))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_layers_wrapped_before_peft_0_7(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=False)
    merge_lora(str(tmp_path / "lora"), str(tmp_path / "new"))
    weights = load_file(tmp_path / "lora/model.safetensors")
    old = {name.replace(".base_layer.", "."): value for name, value in weights.items()}
    assert old.keys() != weights.keys()
    save_file(old, tmp_path / "lora/model.safetensors", metadata={"format": "pt"})
    merge_lora(str(tmp_path / "lora"), str(tmp_path / "old"))
    first, second = (load_file(tmp_path / f"{k}/model.safetensors") for k in ("new", "old"))
    assert all(first[name].equal(second[name]) for name in first)


def test_the_sum_is_rounded_once(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    save_lora(base, tmp_path / "lora", adapter_only=True, dtype=torch.bfloat16)
    report = merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))
    assert report.logits is not None
    assert report.logits.exact < TOLERANCE < report.logits.stored < report.logits.effect
    adapter = load_file(tmp_path / "lora/adapter_model.safetensors")
    layer = "language_model.model.layers.1.mlp.down_proj"
    down, up = (adapter[f"base_model.model.{layer}.lora_{x}.weight"].float() for x in "AB")
    weight = load_file(base / "model.safetensors")[f"{layer}.weight"]
    merged = load_file(tmp_path / "merged/model.safetensors")[f"{layer}.weight"]
    assert merged.dtype == torch.bfloat16
    assert merged.equal((weight.float() + 2 * up @ down).bfloat16())
    assert json.loads((tmp_path / "merged/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_whole_model_in_another_dtype_is_rounded_and_not_wrong(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=True)
    report = merge_lora(str(tmp_path / "lora"), str(tmp_path / "half"), dtype=torch.float16)
    assert report.logits is not None
    assert report.logits.exact < TOLERANCE < report.logits.stored < report.logits.effect
    weights = load_file(tmp_path / "half/model.safetensors").values()
    assert {weight.dtype for weight in weights} == {torch.float16}


def test_an_effect_that_rounding_drowns_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    save_lora(base, tmp_path / "lora", adapter_only=True, dtype=torch.bfloat16)
    weights = load_file(tmp_path / "lora/adapter_model.safetensors")
    small = {n: v * (1e-4 if "lora_B" in n else 1) for n, v in weights.items()}
    save_file(small, tmp_path / "lora/adapter_model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))
    assert "its effect may be lost" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        merge_lora(str(tmp_path / "lora"), str(tmp_path / "fp32"), dtype=torch.float32)
    assert "its effect may be lost" not in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": 3},
        {"use_rslora": True},
        {"alpha_pattern": {r"layers\.1\..*": 1, "q_proj": 5}},
        {"lora_alpha": 6, "alpha_pattern": {"mlp.fc1": 0.5}},
    ],
)
def test_scales_are_those_of_peft(tmp_path: Path, changes: dict[str, Any]) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=True, vision=0 if "alpha" in changes else 2)
    change_json(tmp_path / "lora/adapter_config.json", **changes)
    merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))
    peft = PeftModel.from_pretrained(load_fp32(base), str(tmp_path / "lora"))
    wanted = peft.merge_and_unload().state_dict()
    found = load_file(tmp_path / "merged/model.safetensors")
    assert all((wanted[name] - value).abs().max() < 1e-5 for name, value in found.items())
    untouched = load_file(base / "model.safetensors")
    assert any((untouched[name] - value).abs().max() > 1e-3 for name, value in found.items())


def test_the_adapters_own_settings_win(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", ps_version="v2")
    save_lora(base, tmp_path / "lora", adapter_only=True, ps_version="v1")
    merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))
    assert load_fp32(tmp_path / "merged").config.ps_version == "v1"


def test_an_adapter_that_peft_alone_wrote(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    settings = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "fc1"])
    model = get_peft_model(load_fp32(base), settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(tmp_path / "lora")
    assert not (tmp_path / "lora/config.json").exists()
    change_json(tmp_path / "lora/adapter_config.json", base_model_name_or_path=str(base))
    wanted = logits_for(model.get_base_model())
    merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))
    assert (logits_for(load_fp32(tmp_path / "merged")) - wanted).abs().max() < TOLERANCE
    loaded, tokenizer = load_model(str(tmp_path / "lora"), device="cpu")
    assert (logits_for(loaded) - wanted).abs().max() < TOLERANCE
    assert tokenizer.convert_tokens_to_ids("</box>") == 267


def test_nothing_to_merge(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    with pytest.raises(CheckpointError, match="has no LoRA weights to merge"):
        merge_lora(str(base), str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_a_second_merge_of_the_same_adapter_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=True)
    merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))
    change_json(
        tmp_path / "lora/adapter_config.json", base_model_name_or_path=str(tmp_path / "merged")
    )
    with pytest.raises(CheckpointError, match="it would count twice"):
        merge_lora(str(tmp_path / "lora"), str(tmp_path / "twice"))


def test_lora_layers_in_lora_layers_are_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=False, vision=0)
    path = tmp_path / "lora/model.safetensors"
    inner = "language_model.base_model.model."
    twice = {
        name.replace(inner, inner + "base_model.model."): value
        for name, value in load_file(path).items()
    }
    save_file(twice, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="LoRA layers were wrapped in LoRA layers"):
        merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))
    save_lora(tmp_path / "base", tmp_path / "one", adapter_only=True)
    change_json(
        tmp_path / "one/adapter_config.json", base_model_name_or_path=str(tmp_path / "lora")
    )
    with pytest.raises(CheckpointError, match="its base model carries an adapter itself"):
        merge_lora(str(tmp_path / "one"), str(tmp_path / "merged"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', wanted 'LORA'"),
        ({"use_dora": True}, "DoRA's magnitudes do not belong to the settings"),
        ({"bias": "all"}, "bias is set, it trained biases"),
    ],
)
def test_other_adapters_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=True)
    change_json(tmp_path / "lora/adapter_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))


def test_broken_adapters(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=True, vision=0)
    path = tmp_path / "lora/adapter_model.safetensors"
    weights = load_file(path)
    layer = "base_model.model.language_model.model.layers.0.self_attn.q_proj"

    def complaint(values: dict[str, torch.Tensor]) -> str:
        save_file(values, path, metadata={"format": "pt"})
        with pytest.raises(CheckpointError) as caught:
            merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))
        assert not (tmp_path / "merged").exists()
        return str(caught.value)

    half = {name: v for name, v in weights.items() if name != f"{layer}.lora_B.weight"}
    assert "layers.0.self_attn.q_proj has no lora_B" in complaint(half)
    narrow = weights | {f"{layer}.lora_A.weight": torch.zeros(4, 3)}
    assert "lora_A is 4x3, wanted 4x16" in complaint(narrow)
    empty = weights | {f"{layer}.lora_A.weight": torch.zeros(4, 0)}
    assert "1 of zero size" in complaint(empty)
    stray = weights | {f"{layer.replace('q_proj', 'z_proj')}.lora_A.weight": torch.zeros(4, 16)}
    assert "z_proj has no weight" in complaint(stray)
    broken = weights | {f"{layer}.lora_A.weight": torch.full((4, 16), torch.nan)}
    assert "infinite or not a number" in complaint(broken)


def test_auto_model_makes_no_adapter_weights_up(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=True)
    path = tmp_path / "lora/adapter_model.safetensors"
    weights = load_file(path)
    del weights["base_model.model.language_model.model.layers.0.mlp.up_proj.lora_B.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lora: weights 1 missing: .*up_proj\.lora_B"):
        load_fp32(tmp_path / "lora")


def test_a_rank_that_is_not_the_configurations(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=False)
    change_json(tmp_path / "lora/config.json", use_llm_lora=8)
    with pytest.raises(CheckpointError, match="LoRA of rank 4, the configuration says 8"):
        merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("dear diary")
    for taken in ("mine", "mine/notes.txt"):
        with pytest.raises(ConfigError, match="exists and is not overwritten"):
            merge_lora(str(tmp_path / "lora"), str(tmp_path / taken))
    assert (tmp_path / "mine/notes.txt").read_text() == "dear diary"
    (tmp_path / "new").mkdir()  # an empty one may be filled
    merge_lora(str(tmp_path / "lora"), str(tmp_path / "new"))


def test_a_wrong_merge_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=True)

    def half_scaled(self: MergedLoraWeight, start: int, stop: int) -> torch.Tensor:
        width = self.shape[1]
        base_rows = self.base.read(0, self.shape[0] * width).view(self.shape)
        return (base_rows + self.exact(0, self.shape[0])).div(2).view(-1)[start:stop]

    monkeypatch.setattr(MergedLoraWeight, "read", half_scaled)
    with pytest.raises(CheckpointError, match="merged wrongly: off by"):
        merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_a_scale_that_peft_does_not_share_is_found_by_the_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=True)
    monkeypatch.setattr(
        "internvl_chat.checkpoint.surgery.lora_merge.AdapterScales.of", lambda *_: 1.0
    )
    with pytest.raises(CheckpointError, match="logits differ from the adapter's by"):
        merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=True)

    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(ConfigError, match=r"0\.0 GB are free"):
        merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged"))


def test_little_memory_leaves_the_check_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=True)
    monkeypatch.setattr(
        "internvl_chat.checkpoint.surgery.merge.fits_in_memory", lambda sources: False
    )
    with caplog.at_level(logging.WARNING):
        assert merge_lora(str(tmp_path / "lora"), str(tmp_path / "merged")).logits is None
    assert "only the weights are checked" in caplog.text


def test_shards_and_provenance(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_lora(base, tmp_path / "lora", adapter_only=True)
    told: list[tuple[int, int]] = []
    merge_lora(
        str(tmp_path / "lora"),
        str(tmp_path / "merged"),
        max_shard_bytes=20_000,
        progress=lambda done, total: told.append((done, total)),
    )
    shards = sorted((tmp_path / "merged").glob("model-*.safetensors"))
    assert len(shards) == len(told) > 3
    assert told[-1][0] == told[-1][1]
    assert max(sum(v.nbytes for v in load_file(s).values()) for s in shards) <= 20_000
    index = json.loads((tmp_path / "merged/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == told[-1][1]
    load_fp32(tmp_path / "merged")
    readable = (tmp_path / "merged").stat().st_mode & 0o444
    assert {shard.stat().st_mode & 0o444 for shard in shards} == {readable}
    (entry,) = json.loads((tmp_path / "merged/provenance.json").read_text())["history"]
    assert entry["command"] == "merge-lora"
    assert entry["merged_weights"] == 26
    assert entry["scales"] == [2.0]
    # What is done to the result is noted after it.
    save_lora(tmp_path / "merged", tmp_path / "next", adapter_only=True, seed=9)
    merge_lora(str(tmp_path / "next"), str(tmp_path / "final"))
    history = json.loads((tmp_path / "final/provenance.json").read_text())["history"]
    assert [entry["command"] for entry in history] == ["merge-lora"] * 2


def test_what_was_written_is_compared(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    from internvl_chat.checkpoint.tensor_files import open_weights

    weights = load_file(base / "model.safetensors")
    weights["mlp1.1.weight"][3, 3] += 1e-6
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"mlp1\.1\.weight: was not written as it was read"):
        verify_weights(open_weights(base), tmp_path / "model.safetensors")


MEMORY_SCRIPT = """
import sys
from internvl_chat.checkpoint.surgery.merge import merge_lora
def peak():
    line = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
small, large = sys.argv[1:]
merge_lora(small + "/lora", small + "/merged", check="weights")  # what it imports is not measured
before = peak()
merge_lora(large + "/lora", large + "/merged", check="weights", max_shard_bytes=32 * 2**20)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_a_file_not_of_the_model(tmp_path: Path) -> None:
    llm = {"vocab_size": 30_000, "hidden_size": 512, "intermediate_size": 2048}
    small, large = tmp_path / "small", tmp_path / "large"
    save_base(small / "base")
    save_base(large / "base", llm={**llm, "num_hidden_layers": 20})
    for place in (small, large):
        save_lora(place / "base", place / "lora", adapter_only=True, vision=0)
    size = (large / "base/model.safetensors").stat().st_size
    assert size > 400 * 2**20
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, str(small), str(large)],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    # The largest file (one tensor of 61 MB) and chunks of some megabytes: measured 0.26-0.35.
    assert int(done.stdout) < 0.6 * size
