"""The alignment stage: what is asked, how it is weighed, how the rates run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from internvl_chat.checkpoint.tokenizer import add_special_tokens
from internvl_chat.data.constants import IGNORE_INDEX, IMG_CONTEXT_TOKEN
from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.model.modeling_intern_vit import InternVisionModel
from internvl_chat.model.presets import load_preset
from playground.demo import align_stage
from playground.demo.align_stage import (
    AlignmentRecords,
    Item,
    SortedPool,
    align,
    fresh_model,
    make_optimizers,
    rate,
)
from playground.demo.cells import NOTHING
from playground.demo.records import FAMILIES
from playground.demo.tokenizer import train_tokenizer

NUM_IMAGE_TOKEN = 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    made = train_tokenizer(tmp_path_factory.mktemp("tokenizer"), seed=0)
    add_special_tokens(made)
    return made


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_preset("tiny")
    assert isinstance(config, InternVLChatConfig)
    folder = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    InternVisionModel(config.vision_config).save_pretrained(folder)
    return folder


def answers(item: Item) -> list[torch.Tensor]:
    """Positions of each learnt stretch."""
    learnt = (item.labels != IGNORE_INDEX).nonzero()[:, 0]
    breaks = (learnt.diff() > 1).nonzero()[:, 0] + 1
    return list(learnt.tensor_split(breaks.tolist()))


def test_cell_questions_come_first_and_have_one_piece_a_token(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    records = AlignmentRecords(tokenizer, NUM_IMAGE_TOKEN, seed=0, length=9000)
    for index in range(12):
        item = records[index]
        assert item.family == "cells"
        assert {len(stretch) for stretch in answers(item)} == {NUM_IMAGE_TOKEN + 1}
        assert tokenizer.unk_token_id not in item.input_ids.tolist()
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert all(item.labels[stretch[-1]] == end for stretch in answers(item))


def test_later_records_are_of_all_families_and_every_answer_weighs_by_its_root(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    records = AlignmentRecords(tokenizer, NUM_IMAGE_TOKEN, seed=0, length=9000)
    items = [records[align_stage.CELL_RECORDS + i] for i in range(200)]
    assert {item.family for item in items} == {"cells", *FAMILIES}
    nothing = tokenizer.convert_tokens_to_ids(NOTHING)
    context = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
    for item in items:
        slots = int((item.input_ids == context).sum())
        assert slots == NUM_IMAGE_TOKEN * len(item.pixels)
        for stretch in answers(item):
            assert torch.equal(item.labels[stretch], item.input_ids[stretch])
            shows = torch.ones(len(stretch))
            if item.family == "cells":
                shows[item.labels[stretch] == nothing] = align_stage.NOTHING_WEIGHT
            torch.testing.assert_close(item.weights[stretch], shows / shows.sum() ** 0.5)
        assert not item.weights[item.labels == IGNORE_INDEX].any()


def test_a_record_is_a_function_of_seed_and_index(tokenizer: PreTrainedTokenizerBase) -> None:
    one, same, other = (
        AlignmentRecords(tokenizer, NUM_IMAGE_TOKEN, seed=seed, length=9000)[5000]
        for seed in (0, 0, 1)
    )
    assert torch.equal(one.input_ids, same.input_ids)
    assert torch.equal(one.pixels, same.pixels)
    assert one.input_ids.tolist() != other.input_ids.tolist()


def test_a_pool_is_cut_into_batches_of_about_equal_length(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    records = AlignmentRecords(tokenizer, NUM_IMAGE_TOKEN, seed=0, length=9000)
    items = [records[5000 + i] for i in range(8)]
    batches = SortedPool(4)(items)
    assert [batch.input_ids.shape[0] for batch in batches] == [4, 4]
    lengths = sorted(len(item.input_ids) for item in items)
    assert [batch.input_ids.shape[1] for batch in batches] == [lengths[3], lengths[7]]
    pixels = sum(len(item.pixels) for item in items)
    assert sum(len(batch.pixels) for batch in batches) == pixels


def test_rates_rise_fall_and_end_at_nothing() -> None:
    rates = [rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 40)
    assert max(rates) == rates[40] == 1
    assert rates[400] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.01


def test_the_tower_stays_as_it_is_until_it_joins(
    tokenizer: PreTrainedTokenizerBase, vision: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(align_stage, "CELL_RECORDS", 2)
    torch.manual_seed(0)
    model = fresh_model("tiny", vision, tokenizer)
    trained = {
        id(p) for o, _ in make_optimizers(model) for g in o.param_groups for p in g["params"]
    }
    assert trained == {id(parameter) for parameter in model.parameters()}
    tower = {name: value.clone() for name, value in model.vision_model.state_dict().items()}
    projector = model.mlp1[-1].weight.detach().clone()

    def moved() -> bool:
        now = model.vision_model.state_dict()
        return any(not torch.equal(now[name], value) for name, value in tower.items())

    monkeypatch.setattr(align_stage, "TOWER_JOINS", 2.0)
    align(model, tokenizer, seed=0, steps=2, batch_size=2, pool=1)
    assert not torch.equal(model.mlp1[-1].weight, projector)
    assert not moved()
    monkeypatch.setattr(align_stage, "TOWER_JOINS", 0.5)
    align(model, tokenizer, seed=0, steps=2, batch_size=2, pool=1)
    assert moved()
