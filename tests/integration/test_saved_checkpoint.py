"""A checkpoint that training wrote, in a process that cannot import this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from internvl_chat.checkpoint.load import build_model
from internvl_chat.checkpoint.save import save_checkpoint_files
from internvl_chat.checkpoint.tokenizer import add_special_tokens, load_tokenizer
from tests.support.checkpoints import save_parts, stitch_config
from tests.support.search_path import search_path


def test_a_process_without_this_package_loads_it(tmp_path: Path) -> None:
    save_parts(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path / "llm"))
    added = add_special_tokens(tokenizer)
    model = build_model(stitch_config(tmp_path), tokenizer, num_new_tokens=added)
    directory = tmp_path / "chat"
    directory.mkdir()
    save_checkpoint_files(model, tokenizer, directory)
    script = (
        "import sys, torch; from transformers import AutoModel\n"
        "m = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert not any(n.split('.')[0] == 'internvl_chat' for n in sys.modules)\n"
        "torch.save(m.state_dict(), sys.argv[2])\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": search_path(),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    subprocess.run(
        [sys.executable, "-P", "-c", script, str(directory), str(tmp_path / "state.pt")],
        check=True,
        cwd=tmp_path,
        env=environment,
        timeout=600,
        capture_output=True,
    )
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
