"""The projector's start: which words an image token gets, and what pulls it there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from examples.quickstart.digits import split_scans
from examples.smollm2.projector_start import (
    GROUPS,
    UNKNOWN,
    Views,
    accuracy,
    digit_words,
    embedding_table,
    fit,
    scene_words,
    start_loss,
)
from examples.tiny_model.common import COLOR_NAMES, stream
from examples.tiny_model.label_embeddings import token_at
from examples.tiny_model.scene import KINDS, sample_scene


def vectors(width: int = 32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    mean = 3 * torch.randn(width)  # as in real tables: all words lie in about one direction
    return {group: mean + torch.randn(len(words), width) for group, words in GROUPS.items()}


def test_every_shape_names_the_token_that_it_stands_on() -> None:
    scene = sample_scene(stream(5, "smollm2", "start", 3))
    _, words = scene_words(5, 3)
    named = (words[:, :2] != UNKNOWN).all(1)
    assert int(named.sum()) == len(scene.shapes)
    for shape in scene.shapes:
        color, kind, digit = words[token_at(shape.x, shape.y)].tolist()
        assert (COLOR_NAMES[color], KINDS[kind], digit) == (shape.color, shape.kind, UNKNOWN)


def test_a_digit_names_all_tokens() -> None:
    scans, _ = split_scans(5)
    _, words = digit_words(5, 7, scans)
    assert set(words[:, 2].tolist()) == {scans[7].digit}
    assert (words[:, :2] == UNKNOWN).all()


def test_the_loss_is_least_at_the_words_themselves() -> None:
    words = vectors()
    middle = torch.cat(list(words.values())).mean(0)
    labels = torch.tensor([[2, 4, UNKNOWN], [UNKNOWN, UNKNOWN, 7], [UNKNOWN] * 3])
    right = torch.stack([(words["color"][2] + words["kind"][4]) / 2, words["digit"][7], middle])
    wrong = torch.stack([(words["color"][3] + words["kind"][4]) / 2, words["digit"][6], middle])
    far = torch.cat([right[:2], 10 * middle[None]])
    least = start_loss(right, labels, words, middle)
    assert least < 0.5
    assert start_loss(wrong, labels, words, middle) > least + 1
    assert start_loss(far, labels, words, middle) > least + 1


def test_fitting_finds_the_words_of_features_that_tell_them() -> None:
    words = vectors()
    middle = torch.cat(list(words.values())).mean(0)
    torch.manual_seed(1)
    labels = torch.full((120, 4, len(GROUPS)), UNKNOWN)
    labels[:60, :, 0] = torch.randint(len(COLOR_NAMES), (60, 4))
    labels[60:, :, 2] = torch.randint(10, (60, 1)).expand(-1, 4)
    features = torch.zeros(120, 4, 20)
    features[:60].scatter_(2, labels[:60, :, :1], 1)
    features[60:].scatter_(2, labels[60:, :, 2:] + len(COLOR_NAMES), 1)
    projector = nn.Sequential(nn.LayerNorm(20), nn.Linear(20, 32), nn.GELU(), nn.Linear(32, 32))
    views = Views(features, labels)
    before = accuracy(projector, views, words, middle)
    fit(projector, views, words, middle, epochs=40, batch_size=20)
    after = accuracy(projector, views, words, middle)
    assert before["color"] < 0.5
    assert before["digit"] < 0.5
    assert after["color"] > 0.95
    assert after["digit"] > 0.95


def test_embeddings_are_found_in_the_shard_that_holds_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"embed_tokens\.weight"):
        embedding_table(tmp_path)
    save_file({"lm_head.weight": torch.ones(2, 2)}, tmp_path / "model-1.safetensors")
    table = torch.arange(6.0).reshape(3, 2).bfloat16()
    save_file({"model.embed_tokens.weight": table}, tmp_path / "model-2.safetensors")
    assert torch.equal(embedding_table(tmp_path), table.float())
