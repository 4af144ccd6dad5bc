"""Rows for new tokens and position embeddings for another grid, whole and by ranges."""

from __future__ import annotations

import pytest
import torch

from internvl_chat.checkpoint.resize import (
    GrownRows,
    ResizedPositions,
    mean_of_rows,
    resize_position_embedding,
)
from internvl_chat.checkpoint.tensor_files import MemoryTensor
from internvl_chat.model import InternVisionConfig, InternVisionModel


def source(value: torch.Tensor) -> MemoryTensor:
    return MemoryTensor("test", value)


def test_new_rows_are_the_mean_of_the_old_ones() -> None:
    old = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    grown = GrownRows(source(old), num_rows=4, first_new_token=2, num_new_tokens=2)
    assert grown.shape == (4, 2)
    assert grown.read(0, 8).tolist() == [1, 10, 3, 30, 2, 20, 2, 20]


def test_every_range_agrees_with_the_whole() -> None:
    old = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    grown = GrownRows(source(old), num_rows=7, first_new_token=5, num_new_tokens=2)
    whole = grown.read(0, 21)
    assert whole.dtype == torch.bfloat16
    for start in range(21):
        for stop in range(start + 1, 22):
            assert grown.read(start, stop).equal(whole[start:stop])


def test_padding_rows_of_new_tokens_are_overwritten_and_others_stay() -> None:
    # Tokens 0 and 1 are old, 2 was just added, 3 is padding of the published matrix.
    old = torch.tensor([[1.0], [3.0], [-7.0], [-9.0]])
    grown = GrownRows(source(old), num_rows=4, first_new_token=2, num_new_tokens=1)
    assert grown.read(0, 4).tolist() == [1, 3, 2, -9]
    assert old[2].item() == -7.0


def test_the_mean_is_not_taken_in_bf16() -> None:
    old = torch.full((4096, 1), 1.0, dtype=torch.bfloat16)
    old[0] = 5.0
    assert mean_of_rows(source(old), 4096).item() == pytest.approx(1 + 4 / 4096, abs=1e-7)


def test_position_embeddings_as_the_model_itself_resizes_them() -> None:
    config = InternVisionConfig(
        image_size=28, patch_size=7, hidden_size=6, num_attention_heads=2, num_hidden_layers=1
    )
    model = InternVisionModel(config)
    embeddings = model.embeddings
    with torch.no_grad():
        torch.nn.init.normal_(embeddings.position_embedding)
    old = embeddings.position_embedding.detach().clone()
    model.resize_pos_embeddings(28, 42, 7)
    want = embeddings.position_embedding.detach()
    resized = resize_position_embedding(old, 36)
    assert resized.shape == (1, 37, 6)
    assert resized.equal(want)
    assert resized[0, 0].equal(old[0, 0])
    by_parts = ResizedPositions(source(old), num_patches=36)
    assert torch.cat([by_parts.read(0, 100), by_parts.read(100, 222)]).equal(want.flatten())


def test_no_square_grid() -> None:
    with pytest.raises(ValueError, match="no square grids: 6 and 9 patches"):
        resize_position_embedding(torch.zeros(1, 7, 2), 9)
