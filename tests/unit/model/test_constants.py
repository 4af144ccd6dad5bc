"""Values that published checkpoints and other tools rely on, written out."""

from __future__ import annotations

import ast
from typing import get_args

import torch

from internvl_chat.config import NormalizeType
from internvl_chat.model import constants
from tests.support.models import CODE_FOLDER


def test_ignored_labels_are_those_of_torch() -> None:
    assert torch.nn.CrossEntropyLoss().ignore_index == constants.IGNORE_INDEX == -100


def test_special_tokens_in_the_order_of_published_vocabularies() -> None:
    assert (
        *("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>"),
        *("<ref>", "</ref>", "<box>", "</box>"),
    ) == constants.SPECIAL_TOKENS


def test_every_kind_of_pixel_statistics_has_mean_and_deviation() -> None:
    assert set(constants.NORMALIZATION) == set(get_args(NormalizeType))
    assert constants.NORMALIZATION["imagenet"] == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert constants.NORMALIZATION["siglip"] == ((0.5,) * 3, (0.5,) * 3)
    for mean, deviation in constants.NORMALIZATION.values():
        assert len(mean) == len(deviation) == 3


def test_each_is_written_down_once_in_the_package() -> None:
    """Nothing else in the package assigns -100, ``"<image>"`` or the first of the statistics."""
    found: dict[str, list[str]] = {}
    for path in CODE_FOLDER.parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.UnaryOp | ast.Constant):
                text = ast.unparse(node)
                if text in ("-100", "'<image>'", "0.485", "0.4814546"):
                    found.setdefault(text, []).append(path.name)
    assert found == {text: ["constants.py"] for text in found}
    assert len(found) == 4
