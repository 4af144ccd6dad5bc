"""``export --code`` where published checkpoints load: transformers 4.37.2, their own classes.

transformers 4.37.2 is laid over the environment's packages, once, in pytest's cache folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl_chat.checkpoint.surgery.export import export
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.model import InternVLChatModel
from tests.integration.transformers437_worker import GREEDY, QUESTIONS, images
from tests.support.lora_checkpoints import save_lora
from tests.support.overlay import overlay
from tests.support.published import save_published
from tests.support.search_path import search_path
from tests.support.training import ROOT

pytestmark = pytest.mark.slow

VERSION = "4.37.2"
PACKAGES = (f"transformers=={VERSION}", "tokenizers==0.15.2", "huggingface_hub==0.25.2")
NAMES = ("published", "whole", "adapter", "own_tokenizer", "tied")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported checkpoints by what they stand for; ``X.source`` is what X was made of."""
    folder = tmp_path_factory.mktemp("exported")
    published = save_published(folder / "published")
    ours = folder / "ours"
    export(str(published), str(ours))
    save_lora(ours, folder / "adapter.source", adapter_only=True)
    export(str(ours), str(folder / "whole"), code=str(published), max_shard_bytes=50_000)
    export(str(folder / "adapter.source"), str(folder / "adapter"), code=str(published))
    bare = save_published(folder / "bare")
    (bare / "tokenizer.model").unlink()
    export(str(ours), str(folder / "own_tokenizer"), code=str(bare))
    tied = save_published(folder / "tied.source", tie_word_embeddings=True)
    export(str(tied), str(folder / "tied"), code=str(tied))
    return folder


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "PYTHONPATH": search_path(overlay(request, "transformers437", PACKAGES)),
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
    }
    worker = Path(__file__).with_name("transformers437_worker.py")
    directories = [str(folder / name) for name in (*NAMES, "ours")]
    done = subprocess.run(
        [sys.executable, str(worker), str(folder / "found.json"), *directories],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((folder / "found.json").read_text())
    assert result["version"] == VERSION
    return {Path(directory).name: values for directory, values in result["found"].items()}


@pytest.mark.parametrize("name", NAMES)
def test_its_own_code_answers_as_ours_does(name: str, folder: Path, found: dict[str, Any]) -> None:
    source = folder / f"{name}.source"
    source = source if source.is_dir() else folder / "ours"
    model = InternVLChatModel.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(source))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    wanted = [
        model.chat(tokenizer, pixels, question, {**GREEDY, "eos_token_id": end})
        for pixels in images(model.config.image_size)
        for question in QUESTIONS
    ]
    assert found[name]["amiss"] == {}
    assert found[name]["code"] == "transformers_modules"
    assert found[name]["fast"] == wanted
    assert len(set(wanted)) > 1


def test_our_own_code_says_what_it_needs(found: dict[str, Any]) -> None:
    assert "needs transformers 4.48 or newer, here is 4.37.2" in found["ours"]["error"]
