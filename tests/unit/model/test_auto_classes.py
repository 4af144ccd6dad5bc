"""The package's model among transformers' Auto classes, whatever is imported first."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from internvl_chat.model.auto_classes import WATCHED
from tests.support.training import ROOT, environment

MODEL = Path("internvl_chat/model")
LOADS = f"""
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
config = AutoConfig.from_pretrained({str(ROOT / "pretrained/internvl-chat-tiny")!r})
assert type(config).__module__.startswith("internvl_chat."), type(config)
for auto in (AutoModel, AutoModelForCausalLM):
    model = auto.from_config(config)
    assert type(model).__module__.startswith("internvl_chat."), type(model)
"""


def run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_no_model_library() -> None:
    run(
        "import internvl_chat, sys, internvl_chat.model.conversation, internvl_chat.config\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )


@pytest.mark.parametrize(
    "first",
    [
        "import internvl_chat\nfrom transformers import AutoConfig",
        "import internvl_chat\nfrom transformers import LlamaConfig, pipeline",
        "import transformers.models.auto.modeling_auto, internvl_chat",
        "from internvl_chat import InternVLChatModel",
        "import internvl_chat.model.adapter",
        "import internvl_chat.model.configuration_intern_vit",
        "import internvl_chat.model.modeling_internvl_chat",
    ],
)
def test_auto_classes_know_the_model(first: str) -> None:
    run(first + LOADS)


def imports_of(path: Path) -> set[str]:
    """Modules that a file imports when it is imported itself, ``.x`` for a neighbour."""
    names = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_all_modules_that_may_be_half_imported_are_watched() -> None:
    needed, left = set(), ["modeling_internvl_chat", "modeling_intern_vit"]
    while left:
        name = left.pop()
        if name not in needed:
            needed.add(name)
            found = imports_of(ROOT / MODEL / f"{name}.py")
            left += [one[1:] for one in found if one.startswith(".")]
    waiting = {
        name
        for name in needed
        if any(one.startswith("transformers") for one in imports_of(ROOT / MODEL / f"{name}.py"))
    }
    assert waiting == set(WATCHED)
