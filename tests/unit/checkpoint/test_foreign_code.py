"""A checkpoint that names Python code of its own: it is loaded without, or refused, never run."""

from __future__ import annotations

import ast
import builtins
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.chat import load_model
from internvl_chat.checkpoint.sources import llm_config_of, read_chat_config
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.errors import CheckpointError
from tests.support.training import ROOT, write_tiny_chat_model

CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig, PreTrainedTokenizerFast, PreTrainedModel
class Config(LlamaConfig): model_type = "of_its_own"
class Tokenizer(PreTrainedTokenizerFast): pass
class Model(PreTrainedModel): pass
"""


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that the code would leave; whoever is asked on stdin says yes."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    yield tmp_path / "was_run"
    assert not (tmp_path / "was_run").exists()


@pytest.fixture
def model(tmp_path: Path, mark: Path) -> Path:
    """A checkpoint whose every JSON file names that code."""
    folder = write_tiny_chat_model(tmp_path / "model")
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    classes = {
        "AutoConfig": "own.Config",
        "AutoModel": "own.Model",
        "AutoModelForCausalLM": "own.Model",
        "AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"],
        "AutoProcessor": "own.Tokenizer",
        "AutoImageProcessor": "own.Tokenizer",
    }
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        values = {**json.loads((folder / name).read_text()), "auto_map": classes}
        for part in ("vision_config", "llm_config"):
            if part in values:
                values[part]["auto_map"] = classes
        (folder / name).write_text(json.dumps(values))
    return folder


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_classes_that_transformers_has_are_taken(model: Path) -> None:
    assert load_tokenizer(str(model)).is_fast
    assert type(read_chat_config(model)).__name__ == "InternVLChatConfig"
    loaded, _ = load_model(str(model))
    assert type(loaded).__module__.startswith("internvl_chat.")


def test_a_tokenizer_that_only_its_code_can_load_is_refused(model: Path) -> None:
    change(model / "tokenizer_config.json", tokenizer_class="Tokenizer")
    change(model / "config.json", model_type="of_its_own")
    with pytest.raises(CheckpointError, match="Python code of its own, which is not run here"):
        load_tokenizer(str(model))


def test_a_language_model_that_only_its_code_can_load_is_refused(
    model: Path, tmp_path: Path
) -> None:
    llm = tmp_path / "llm"
    shutil.copytree(model, llm)
    values = json.loads((llm / "config.json").read_text())
    own = {"auto_map": values["auto_map"], "model_type": "of_its_own"}
    (llm / "config.json").write_text(json.dumps(own))
    with pytest.raises(CheckpointError, match="transformers cannot read this configuration"):
        llm_config_of(llm)


def test_every_auto_class_is_told_not_to_ask() -> None:
    """``**options`` are the tokenizer's, which the tests above see at work."""
    found = []
    for path in sorted((ROOT / "internvl_chat").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = ast.unparse(node.func.value)
            if owner.startswith("Auto") and node.func.attr in ("from_pretrained", "from_config"):
                told = {word.arg: ast.unparse(word.value) for word in node.keywords}
                found.append((path.name, owner, told.get("trust_remote_code", told.get(None))))
    assert found == [
        ("sources.py", "AutoConfig", "False"),
        ("tokenizer.py", "AutoTokenizer", "options"),
    ]
