"""What a run leaves loads as it is and is what was trained: adapters, merges, full models."""

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
from peft import PeftModel

from internvl_chat.checkpoint.surgery.merge import merge_lora
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.model import InternVLChatModel
from internvl_chat.model.conversation import get_conv_template
from tests.support.greedy import tokens
from tests.support.search_path import search_path
from tests.support.training import ROOT, environment, train_arguments, weights, write_dataset

BASE = ROOT / "pretrained/internvl-chat-tiny"
LORA = {"freeze_llm": True, "freeze_mlp": True, "freeze_backbone": True, "use_llm_lora": 2}
BOTH = {**LORA, "use_backbone_lora": 2, "freeze_mlp": False}

STRANGER = """
import json, sys
import torch
from transformers import AutoModel, AutoTokenizer
sys.path.insert(0, sys.argv[1])
from tokens_of import tokens
probe = json.load(open(sys.argv[2]))
found = {}
for folder in sys.argv[3:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == probe["image_token_id"]
    found[folder] = tokens(model, probe)
assert not any(name.split(".")[0] == "internvl_chat" for name in sys.modules)
print(json.dumps(found))
"""


def probe_of(directory: Path) -> dict[str, Any]:
    """Prompts with an image of noise each."""
    tokenizer = load_tokenizer(str(directory))
    config = json.loads((directory / "config.json").read_text())
    template = get_conv_template(config["template"])
    side = config["force_image_size"] // config["vision_config"]["patch_size"]
    image = "<img>" + "<IMG_CONTEXT>" * (side * side // 4) + "</img>\n"
    questions = ["What colour?", "How many shapes are there?", "Where is the red star?", "Why?"]
    return {
        "prompts": [
            tokenizer(template.render([(image + q, None)]).text, add_special_tokens=False)[
                "input_ids"
            ]
            for q in questions
        ],
        "seeds": list(range(len(questions))),
        "image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        "stop": tokenizer.convert_tokens_to_ids(template.stop_str),
    }


class Chain:
    """Runs that build on each other, and the tokens that each one's trained model gave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta = write_dataset(folder, ["image", "text", "rounds", "image"] * 3)
        self.probe = folder / "probe.json"
        self.probe.write_text(json.dumps(probe_of(BASE)))
        self.trained: dict[str, list[list[int]]] = {}

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def train(self, name: str, model: Path, *, learning_rate: float = 3e-3, **options: Any) -> None:
        argv = train_arguments(
            model,
            self.meta,
            self / name,
            force_image_size=112,
            max_seq_length=512,
            learning_rate=learning_rate,
            max_steps=4,
            save_strategy="steps",
            save_steps=4,
            **options,
        )
        answers = self / f"{name}.answers.json"
        command = [sys.executable, "-m", "tests.integration.chain_worker"]
        done = subprocess.run(
            [*command, str(self.probe), str(answers), *argv],
            capture_output=True,
            text=True,
            timeout=900,
            env=environment(),
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        self.trained[name] = json.loads(answers.read_text())

    def loaded(self, *names: str) -> dict[str, list[list[int]]]:
        """Tokens of checkpoints in a process that is offline and cannot import the package."""
        (self.folder / "alone").mkdir(exist_ok=True)
        shutil.copy(ROOT / "tests/support/greedy.py", self.folder / "alone/tokens_of.py")
        paths = [str(self / name) for name in names]
        done = subprocess.run(
            [sys.executable, "-P", "-c", STRANGER, str(self / "alone"), str(self.probe), *paths],
            capture_output=True,
            text=True,
            timeout=900,
            cwd=self.folder / "alone",
            env={
                **os.environ,
                "PYTHONPATH": search_path(),
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "HF_MODULES_CACHE": str(self / "modules"),
            },
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found = json.loads(done.stdout.splitlines()[-1])
        return {name: found[path] for name, path in zip(names, paths, strict=True)}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """adapter -> continued -> merged -> full -> adapter again -> merged again."""
    chain = Chain(tmp_path_factory.mktemp("chain"))
    chain.train("adapter", BASE, learning_rate=2e-2, **LORA)
    chain.train("continued", chain / "adapter", seed=8, learning_rate=2e-2, **LORA)
    merge_lora(str(chain / "continued"), str(chain / "merged"), dtype=torch.float32)
    chain.train("full", chain / "merged", freeze_backbone=True)
    chain.train("second", chain / "full", seed=9, learning_rate=2e-2, **BOTH)
    merge_lora(str(chain / "second"), str(chain / "merged-again"))
    return chain


@pytest.fixture(scope="module")
def loaded(chain: Chain) -> dict[str, list[list[int]]]:
    """All kinds of checkpoint in one stranger's process."""
    return chain.loaded(
        "adapter",
        "adapter/checkpoint-4",
        "continued",
        "merged",
        "full",
        "full/checkpoint-4",
        "second",
        "merged-again",
    )


@pytest.mark.parametrize("name", ["adapter", "continued", "full", "second"])
def test_a_stranger_gets_the_trainers_tokens(
    chain: Chain, loaded: dict[str, list[list[int]]], name: str
) -> None:
    assert loaded[name] == chain.trained[name]


@pytest.mark.parametrize("name", ["adapter", "full"])
def test_a_checkpoint_on_the_way_loads_too(
    chain: Chain, loaded: dict[str, list[list[int]]], name: str
) -> None:
    assert loaded[f"{name}/checkpoint-4"] == chain.trained[name]


def test_merged_models_give_the_adapters_tokens(
    chain: Chain, loaded: dict[str, list[list[int]]]
) -> None:
    assert loaded["merged"] == chain.trained["continued"]
    assert loaded["merged-again"] == chain.trained["second"]


def test_every_run_learned_something(chain: Chain) -> None:
    """Otherwise the comparisons above could not fail."""
    runs = list(chain.trained.values())
    assert all(one != two for number, one in enumerate(runs) for two in runs[:number])


def test_adapters_are_adapters(chain: Chain) -> None:
    base = (BASE / "model.safetensors").stat().st_size
    for name in ("adapter", "continued", "second"):
        files = {path.name for path in (chain / name).glob("*.safetensors")}
        assert files == {"adapter_model.safetensors"}
    for name in ("adapter", "adapter/checkpoint-4", "continued"):
        size = (chain / name / "adapter_model.safetensors").stat().st_size
        assert size <= 0.02 * base, "2 % of its base"
    names = weights(chain / "continued", "adapter_model.safetensors")
    assert len(names) == 2 * 7 * 4, "continued, not wrapped again"
    assert not any("base_model.model.base_model" in name for name in names)


def test_peft_reads_every_adapter(chain: Chain) -> None:
    probe = json.loads(chain.probe.read_text())
    for name, base in (("adapter", BASE), ("continued", BASE), ("second", chain / "full")):
        model = InternVLChatModel.from_pretrained(base, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, str(chain / name)).eval()
        assert tokens(model.get_base_model(), probe) == chain.trained[name], name
