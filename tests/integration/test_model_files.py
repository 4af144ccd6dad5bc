"""What ``save_pretrained`` writes is enough to run the model without this package."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from internvl_chat import InternVLChatModel
from internvl_chat.checkpoint.artifacts import write_model_code
from internvl_chat.model.configuration_intern_vit import AUTO_MAP as VISION_AUTO_MAP
from internvl_chat.model.configuration_internvl_chat import AUTO_MAP
from tests.support.models import (
    CODE_FOLDER,
    CONTEXT_ID,
    code_files,
    make_batch,
    make_config,
    make_model,
    make_tokenizer,
)
from tests.support.training import ROOT

CODE_FILES = code_files()
SHIPPED = ROOT / "pretrained/internvl-chat-tiny"

STRANGER = """
import sys
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
model = AutoModel.from_pretrained(
    folder, torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
).eval()
assert "internvl_chat" not in sys.modules, "the package was found: this test proves nothing"
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
batch = torch.load(folder + "/batch.pt")
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, use_fast=False)
settings = dict(max_new_tokens=6, do_sample=False)
reply, history = model.chat(
    tokenizer, batch["pixel_values"][:1], "Hi", settings, history=None, return_history=True
)
model.img_context_token_id = batch.pop("context_id")
with torch.no_grad():
    logits = model(**batch).logits
causal = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
assert type(causal).__module__ == type(model).__module__
model.save_pretrained(folder + "/again")
torch.save({"logits": logits, "reply": reply, "history": history}, folder + "/result.pt")
"""


def save(model: InternVLChatModel, folder: Path) -> dict[str, Tensor]:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    batch = make_batch(model.num_image_token)
    torch.save({**batch, "context_id": CONTEXT_ID}, folder / "batch.pt")
    return batch


def code_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.py")}


def test_files_and_auto_map(tmp_path: Path) -> None:
    save(make_model(), tmp_path)
    assert {"config.json", "model.safetensors"} <= set(os.listdir(tmp_path))
    assert code_in(tmp_path) == CODE_FILES
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["InternVLChatModel"]
    for reference in config["auto_map"].values():
        module, name = reference.split(".")
        assert f"class {name}(" in (tmp_path / f"{module}.py").read_text()


def test_our_own_saving_takes_the_same_files(tmp_path: Path) -> None:
    write_model_code(tmp_path)
    assert code_in(tmp_path) == CODE_FILES


def test_the_shipped_model_carries_the_present_code() -> None:
    """If not: ``write_model_code`` writes it anew."""
    assert code_in(SHIPPED) == CODE_FILES
    for name in CODE_FILES:
        assert (SHIPPED / name).read_text() == (CODE_FOLDER / name).read_text(), name


def test_code_files_import_only_torch_transformers_and_each_other() -> None:
    outside = set()
    for name in CODE_FILES:
        for node in ast.walk(ast.parse((CODE_FOLDER / name).read_text())):
            if isinstance(node, ast.Import):
                outside |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= 1
                outside |= set() if node.level else {(node.module or "").split(".")[0]}
    foreign = outside - set(sys.stdlib_module_names)
    # What transformers needs itself, and peft inside a try, for LoRA only.
    assert foreign == {"torch", "transformers", "safetensors", "huggingface_hub", "peft"}


@pytest.mark.parametrize("target", sorted({*AUTO_MAP.values(), *VISION_AUTO_MAP.values()}))
def test_a_file_that_auto_map_names_imports_all_it_needs_itself(target: str) -> None:
    """transformers 4 copies a local checkpoint's code no deeper than that."""
    name = f"{target.partition('.')[0]}.py"
    nodes = ast.walk(ast.parse((CODE_FOLDER / name).read_text()))
    direct = {f"{n.module}.py" for n in nodes if isinstance(n, ast.ImportFrom) and n.level}
    assert direct | {name} == code_files(name)


def test_a_transformers_that_is_too_old_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    path = CODE_FOLDER / "configuration_intern_vit.py"  # all others import it first
    spec = importlib.util.spec_from_file_location("travelled", path)
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.47.1")
    with pytest.raises(ImportError, match=r"needs transformers 4\.48 or newer, here is 4\.47\.1"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("lora", [0, 2])
def test_a_process_without_the_package_runs_it(lora: int, tmp_path: Path) -> None:
    folder, away = tmp_path / "checkpoint", tmp_path / "elsewhere"
    folder.mkdir()
    away.mkdir()
    model = make_model(make_config(use_llm_lora=lora))
    batch = save(model, folder)
    (away / "stranger.py").write_text(STRANGER)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment.update(HF_HOME=str(tmp_path / "cache"), HF_HUB_OFFLINE="1")
    run = subprocess.run(
        [sys.executable, "-I", "stranger.py", str(folder)],
        cwd=away,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result = torch.load(folder / "result.pt")
    with torch.no_grad():
        torch.testing.assert_close(result["logits"], model(**batch).logits)
    reply = model.chat(
        make_tokenizer(), batch["pixel_values"][:1], "Hi", {"max_new_tokens": 6, "do_sample": False}
    )
    assert result["reply"] == reply
    assert result["history"] == [("<image>\nHi", reply)]
    assert set(os.listdir(folder / "again")) >= CODE_FILES


def test_the_guides_device_map_loads_and_chats(tmp_path: Path) -> None:
    """The guide's split over GPUs, names of other language models included; a disk for a GPU."""
    model = make_model()
    save(model, tmp_path)
    names = ["vision_model", "mlp1"]
    names += [
        f"language_model.{name}"
        for name in (
            "model.tok_embeddings",
            "model.embed_tokens",
            "output",
            "model.norm",
            "lm_head",
            "model.layers.0",
        )
    ]
    device_map = {**dict.fromkeys(names, "cpu"), "language_model.model.layers.1": "disk"}
    split = InternVLChatModel.from_pretrained(
        tmp_path, device_map=device_map, offload_folder=tmp_path / "offload"
    ).eval()
    arguments = (torch.randn(1, 3, 16, 16), "Hi", {"max_new_tokens": 4, "do_sample": False})
    assert split.chat(make_tokenizer(), *arguments) == model.chat(make_tokenizer(), *arguments)


def test_int8_leaves_head_and_projector_alone(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    save(make_model(), tmp_path)
    model = InternVLChatModel.from_pretrained(
        tmp_path, torch_dtype=torch.bfloat16, load_in_8bit=True, low_cpu_mem_usage=True
    ).eval()
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["language_model.lm_head"] == "Linear"
    assert kinds["mlp1.1"] == kinds["mlp1.3"] == "Linear"
    assert kinds["language_model.model.layers.0.mlp.up_proj"] == "Linear8bitLt"
    assert kinds["vision_model.encoder.layers.0.attn.qkv"] == "Linear8bitLt"
