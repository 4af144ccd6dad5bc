"""FLOPs of the published model, every number worked out by hand, and what counts as none.

Per block of Yi-34B (width 7168, MLP 20480, 56 heads of 128, 8 key/value heads):

- query, output: 7168 x 7168 = 51,380,224 each; key, value: 7168 x 1024 = 7,340,032 each;
- gate, up, down: 7168 x 20480 = 146,800,640 each; together 557,842,432, in 60 blocks
  33,470,545,920 weights: 66,941,091,840 FLOPs a token and pass;
- a pair of tokens: 2 x 7168 for the score, 2 x 7168 for the sum, 28,672; in 60 blocks 1,720,320.

Output layer: 64000 x 7168 = 458,752,000 weights.

Per block of InternViT-6B (width 3200, MLP 12800): 3 x 3200 x 3200 + 3200 x 3200 + 2 x 3200 x 12800
= 122,880,000, in 45 blocks 5,529,600,000 weights. A tile has 1024 patches and the class token:

- weights: 2 x 5,529,600,000 x 1025 = 11,335,680,000,000;
- attention: 4 x 3200 x 45 = 576,000 a pair, 1025 x 1025 = 1,050,625 pairs: 605,160,000,000;
- patches: 3 x 14 x 14 x 3200 = 1,881,600 weights, 2 x that x 1024 = 3,853,516,800.

Projector: 12800 x 7168 + 7168 x 7168 = 143,130,624 weights on 256 tokens: 73,282,879,488.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from internvl_chat import InternVLChatModel
from internvl_chat.costs.flops import ModelFlops, PassFlops
from internvl_chat.costs.parameters import full_numel
from internvl_chat.model.presets import load_preset

BLOCKS = 66_941_091_840
PAIR = 1_720_320
HEAD = 917_504_000
TOWER = 11_335_680_000_000 + 605_160_000_000
PATCHES = 3_853_516_800
PROJECTOR = 73_282_879_488


def build(**config: Any) -> InternVLChatModel:
    values = load_preset("InternVL-Chat-V1-2")
    for name, value in config.items():
        setattr(values, name, value)
    with torch.device("meta"):
        return InternVLChatModel(values)


@pytest.fixture(scope="module")
def v1_2() -> InternVLChatModel:
    return build()


def count(model: InternVLChatModel, *, vision: bool, projector: bool, llm: bool) -> ModelFlops:
    model.vision_model.requires_grad_(vision)
    model.mlp1.requires_grad_(projector)
    model.language_model.requires_grad_(llm)
    return ModelFlops.of_model(model)


def test_everything_trains(v1_2: InternVLChatModel) -> None:
    flops = count(v1_2, vision=True, projector=True, llm=True)
    assert flops == ModelFlops(
        per_token=PassFlops(BLOCKS, 2 * BLOCKS, BLOCKS),
        per_pair=PassFlops(PAIR, 2 * PAIR, PAIR),
        per_target=PassFlops(HEAD, 2 * HEAD),
        per_tile=PassFlops(
            TOWER + PATCHES + PROJECTOR,
            2 * TOWER + PATCHES + 2 * PROJECTOR,  # no gradient of the pixels
            TOWER,
        ),
    )
    # One image of 256 tokens and 244 tokens of text, 100 of them supervised: 125,250 pairs.
    assert flops.of_batch([500], 1, 100) == (
        500 * 200_823_275_520 + 125_250 * 5_160_960 + 100 * 2_752_512_000 + 36_050_075_672_064
    )
    assert flops.of_batch([500], 1, 100) == 137_383_374_872_064  # 137 TFLOP


def test_frozen_vision_tower(v1_2: InternVLChatModel) -> None:
    flops = count(v1_2, vision=False, projector=True, llm=True)
    assert flops.per_tile == PassFlops(TOWER + PATCHES + PROJECTOR, 2 * PROJECTOR)
    assert flops.per_tile.total == 12_164_542_155_264
    assert flops.per_token == PassFlops(BLOCKS, 2 * BLOCKS, BLOCKS)


def test_projector_alone(v1_2: InternVLChatModel) -> None:
    flops = count(v1_2, vision=False, projector=True, llm=False)
    assert flops.per_tile == PassFlops(TOWER + PATCHES + PROJECTOR, 2 * PROJECTOR)
    # Gradients of inputs go through the LLM to the projector; none of its weights has one.
    assert flops.per_token == PassFlops(BLOCKS, BLOCKS, BLOCKS)
    assert flops.per_pair == PassFlops(PAIR, 2 * PAIR, PAIR)
    assert flops.per_target == PassFlops(HEAD, HEAD)


def test_nothing_trains(v1_2: InternVLChatModel) -> None:
    flops = count(v1_2, vision=False, projector=False, llm=False)
    assert flops.per_tile == PassFlops(TOWER + PATCHES + PROJECTOR)
    assert flops.per_token == PassFlops(BLOCKS)
    assert flops.per_pair == PassFlops(PAIR)
    assert flops.per_target == PassFlops(HEAD)


def test_head_alone(v1_2: InternVLChatModel) -> None:
    count(v1_2, vision=False, projector=False, llm=False)
    v1_2.get_output_embeddings().requires_grad_(True)
    flops = ModelFlops.of_model(v1_2)
    assert flops.per_token == PassFlops(BLOCKS)
    assert flops.per_target == PassFlops(HEAD, HEAD)  # of its weight, none of its input


def test_last_layers_of_the_vision_tower(v1_2: InternVLChatModel) -> None:
    count(v1_2, vision=False, projector=False, llm=False)
    v1_2.vision_model.encoder.layers[-4:].requires_grad_(True)
    flops = ModelFlops.of_model(v1_2)
    # A block: 2 x 122,880,000 x 1025 and 4 x 3200 x 1,050,625.
    block = 251_904_000_000 + 13_448_000_000
    assert flops.per_tile == PassFlops(
        TOWER + PATCHES + PROJECTOR, 4 * 2 * block + PROJECTOR, 4 * block
    )
    assert flops.per_token == PassFlops(BLOCKS, BLOCKS, BLOCKS)


def test_lora_of_the_llm() -> None:
    """Rank 16. A: 6 x 7168 x 16 + 20480 x 16 = 1,015,808 a block; B: 2 x 7168 x 16 + 2 x 1024 x 16
    + 2 x 20480 x 16 + 7168 x 16 = 1,032,192; together 122,880,000, as the adapter file holds.

    Nothing before block 0 trains, so its query, key and value (66,060,288 weights, and 344,064 of
    their A) have no gradient of the input.
    """
    model = build(use_llm_lora=16)
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    assert sum(full_numel(p) for p in model.parameters() if p.requires_grad) == 122_880_000
    flops = ModelFlops.of_model(model)
    assert flops.per_tile == PassFlops(TOWER + PATCHES + PROJECTOR)
    forward = BLOCKS + 245_760_000
    assert flops.per_token == PassFlops(
        forward, BLOCKS - 132_120_576 + 491_520_000 - 688_128, forward
    )
    assert flops.per_token.total == 134_486_654_976
    assert flops.per_pair == PassFlops(PAIR, 2 * PAIR, PAIR)
    assert flops.per_target == PassFlops(HEAD, HEAD)


def test_work_with_and_without_recomputation(v1_2: InternVLChatModel) -> None:
    flops = count(v1_2, vision=False, projector=True, llm=True)
    plain, again = flops.work(recompute=False), flops.work(recompute=True)
    assert plain.per_token == 3 * BLOCKS + 3 * HEAD
    assert again.per_token == 4 * BLOCKS + 3 * HEAD
    assert (plain.per_pair, again.per_pair) == (3 * PAIR, 4 * PAIR)
    assert plain.per_tile == again.per_tile == TOWER + PATCHES + 3 * PROJECTOR
    assert plain.text([2, 3]).tolist() == [
        2 * plain.per_token + 3 * plain.per_pair,
        3 * plain.per_token + 6 * plain.per_pair,
    ]
    assert plain.vision([0, 7]).tolist() == [0, 7 * plain.per_tile]


def test_partitioned_and_packed_weights_count_whole() -> None:
    weight: Any = nn.Parameter(torch.zeros(0))
    weight.ds_shape = (5, 2)  # what ZeRO-3 leaves on a rank
    assert full_numel(weight) == 10
    packed: Any = nn.Parameter(torch.zeros(10, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = torch.empty(5, 4)  # bitsandbytes: two in a byte
    assert full_numel(packed) == 20
