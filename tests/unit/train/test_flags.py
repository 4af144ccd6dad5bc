"""The help of ``train``: every flag in a group, nothing that the parser does not know."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from internvl_chat.train import flags as module
from internvl_chat.train.argument_file import SECTIONS
from internvl_chat.train.arguments import DataArguments, ModelArguments, RunOptions
from internvl_chat.train.assumed import SHOWN
from internvl_chat.train.flags import GROUPS, OTHER, flags, help_text
from internvl_chat.train.parsing import _defaults, _parser, other_flags
from tests.support.training import environment

OURS = (ModelArguments, DataArguments, RunOptions)


def test_every_flag_of_ours_is_in_a_group() -> None:
    groups = {**GROUPS, OTHER: ""}
    for kind in OURS:
        names = [field.name for field in dataclasses.fields(kind)]
        assert set(kind.starts) <= set(names)
        assert names[0] in kind.starts
        assert set(kind.starts.values()) <= set(groups)
        assert [name for name in names if flags()[name].group not in groups] == []
    assert flags()["use_backbone_lora"].group == "lora"
    assert flags()["max_packed_tiles"].group == "data"


def test_the_table_of_transformers_flags_is_the_parsers() -> None:
    defaults = _defaults(_parser())
    listed = [module._LINE.fullmatch(line) for line in module._COMMON.strip().splitlines()]
    table = {match[2]: match[4] for match in listed if match}
    assert len(table) == len(listed)
    known = {name: defaults[name] for name in table}
    shown = {name: None if value is None else str(value) for name, value in known.items()}
    shown["optim"] = table["optim"]  # an enum, by its value
    assert table == {**shown, "output_dir": None}
    assert set(SHOWN) <= set(flags())
    own = {field.name for kind in OURS for field in dataclasses.fields(kind)}
    assert not own & set(table)


def test_kinds_are_the_parsers() -> None:
    actions = {action.dest: action for action in reversed(_parser()._actions)}
    for name, flag in flags().items():
        choices = actions[name].choices
        if flag.kind == "BOOL" or flag.kind.startswith("{"):
            assert not choices or set(map(str, choices)) == set(flag.choices), name
        else:
            assert flag.kind != "INT" or actions[name].type is int, name


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_help_fits_and_shows_every_group_in_order(width: int) -> None:
    text = help_text(width)
    assert max(map(len, text.splitlines())) <= max(width, 80)
    titles = [line for line in text.splitlines() if line in GROUPS.values()]
    assert titles == list(GROUPS.values())
    assert "--use_llm_lora INT" in text
    assert "[*1e-4 for LoRA" in " ".join(text.split())


def test_help_all_adds_the_rest() -> None:
    rest = other_flags(80)
    both = help_text(80) + rest
    missing = [
        action.dest for action in _parser()._actions if f"--{action.dest} " not in both + " "
    ]
    assert missing == []
    assert max(map(len, rest.splitlines())) <= 80
    assert "--learning_rate" not in rest.replace("`learning_rate", "")
    assert "--label_smoothing_factor FLOAT" in rest
    assert "Another name of --grad_checkpoint." in rest
    assert "Refused: --fsdp is not supported." in " ".join(rest.split())
    assert "[[]]" not in rest


def test_sections_of_a_file_are_no_flags() -> None:
    assert not set(SECTIONS) & {action.dest for action in _parser()._actions}


def test_they_are_read_without_torch() -> None:
    code = (
        "import sys, internvl_chat.train.flags as f; f.help_text(80); "
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert done.stdout == "set()\n", done.stderr
