"""The projector's start: which labels an image token gets, and what pulls it there."""

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
    digit_labels,
    embedding_table,
    fit,
    scene_labels,
    start_loss,
)
from examples.tiny_model.common import COLOR_NAMES, stream
from examples.tiny_model.label_embeddings import token_at
from examples.tiny_model.scene import KINDS, sample_scene


def vectors(width: int = 32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    mean = 3 * torch.randn(width)  # as in real tables: all tokens lie in about one direction
    return {group: mean + torch.randn(len(labels), width) for group, labels in GROUPS.items()}


def test_every_shape_names_the_token_that_it_stands_on() -> None:
    scene = sample_scene(stream(5, "smollm2", "start", 3))
    _, labels = scene_labels(5, 3)
    named = (labels[:, :2] != UNKNOWN).all(1)
    assert int(named.sum()) == len(scene.shapes)
    for shape in scene.shapes:
        color, kind, digit = labels[token_at(shape.x, shape.y)].tolist()
        assert (COLOR_NAMES[color], KINDS[kind], digit) == (shape.color, shape.kind, UNKNOWN)


def test_a_digit_names_all_tokens() -> None:
    scans, _ = split_scans(5)
    _, labels = digit_labels(5, 7, scans)
    assert set(labels[:, 2].tolist()) == {scans[7].digit}
    assert (labels[:, :2] == UNKNOWN).all()


def test_the_loss_is_least_at_the_embeddings_themselves() -> None:
    embeddings = vectors()
    middle = torch.cat(list(embeddings.values())).mean(0)
    labels = torch.tensor([[2, 4, UNKNOWN], [UNKNOWN, UNKNOWN, 7], [UNKNOWN] * 3])
    right = torch.stack(
        [(embeddings["color"][2] + embeddings["kind"][4]) / 2, embeddings["digit"][7], middle]
    )
    wrong = torch.stack(
        [(embeddings["color"][3] + embeddings["kind"][4]) / 2, embeddings["digit"][6], middle]
    )
    far = torch.cat([right[:2], 10 * middle[None]])
    least = start_loss(right, labels, embeddings, middle)
    assert least < 0.5
    assert start_loss(wrong, labels, embeddings, middle) > least + 1
    assert start_loss(far, labels, embeddings, middle) > least + 1


def test_fitting_finds_the_labels_of_features_that_tell_them() -> None:
    embeddings = vectors()
    middle = torch.cat(list(embeddings.values())).mean(0)
    torch.manual_seed(1)
    labels = torch.full((120, 4, len(GROUPS)), UNKNOWN)
    labels[:60, :, 0] = torch.randint(len(COLOR_NAMES), (60, 4))
    labels[60:, :, 2] = torch.randint(10, (60, 1)).expand(-1, 4)
    features = torch.zeros(120, 4, 20)
    features[:60].scatter_(2, labels[:60, :, :1], 1)
    features[60:].scatter_(2, labels[60:, :, 2:] + len(COLOR_NAMES), 1)
    projector = nn.Sequential(nn.LayerNorm(20), nn.Linear(20, 32), nn.GELU(), nn.Linear(32, 32))
    views = Views(features, labels)
    before = accuracy(projector, views, embeddings, middle)
    fit(projector, views, embeddings, middle, epochs=40, batch_size=20)
    after = accuracy(projector, views, embeddings, middle)
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
