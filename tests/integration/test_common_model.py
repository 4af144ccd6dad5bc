"""What transformers asks of any of its models, asked of ours, in several shapes.

The properties are those of the common tests in transformers' repository (``test_modeling_common``
and ``test_utils`` of generation). ``test_transformers_own_tests.py`` runs the former themselves.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from internvl_chat import InternVLChatConfig, InternVLChatModel
from tests.support.models import CONTEXT_ID, make_batch, make_config, make_model

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {
        "llm": {"model_type": "qwen2", "tie_word_embeddings": True},
        "vision": {"norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False},
        "ps_version": "v2",
        "select_layer": -2,
    },
    "lora_inside": {"use_llm_lora": 2, "use_backbone_lora": 2},
    "scaled_logits": {"llm": {"model_type": "cohere", "logit_scale": 0.25, "pad_token_id": 0}},
}

NEW: dict[str, Any] = {
    "max_new_tokens": 5,
    "eos_token_id": 279,
    "pad_token_id": 0,
    "suppress_tokens": [CONTEXT_ID],
}


def build(config: InternVLChatConfig) -> InternVLChatModel:
    model = make_model(config)
    model.tie_weights()
    return model


@pytest.fixture(params=list(SHAPES))
def model(request: pytest.FixtureRequest) -> InternVLChatModel:
    return build(make_config(**copy.deepcopy(SHAPES[request.param])))


@pytest.fixture
def batch() -> dict[str, Tensor]:
    batch = make_batch(4)
    del batch["labels"]
    return batch


def logits_of(model: Any, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(**batch, **kwargs).logits


def reload(model: InternVLChatModel, folder: Path, **kwargs: Any) -> InternVLChatModel:
    model.save_pretrained(folder)
    again = InternVLChatModel.from_pretrained(folder, **kwargs)
    again.img_context_token_id = CONTEXT_ID
    return again


def padded_left(batch: dict[str, Tensor], by: int) -> dict[str, Tensor]:
    ids = torch.nn.functional.pad(batch["input_ids"], (by, 0), value=0)
    mask = torch.nn.functional.pad(torch.ones_like(batch["input_ids"]), (by, 0), value=0)
    return {**batch, "input_ids": ids, "attention_mask": mask}


# ---------------------------------------------------------------- weights and files


def test_saved_twice_it_is_the_same(
    model: InternVLChatModel, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    expected = logits_of(model, batch)
    again = model
    for name in ("once", "twice", "again"):  # loading puts the dtype into the configuration
        again = reload(again, tmp_path / name)
    torch.testing.assert_close(logits_of(again, batch), expected)
    for name in ("config.json", "generation_config.json"):
        two, three = (tmp_path / folder / name for folder in ("twice", "again"))
        assert two.read_text() == three.read_text()


def test_state_dict_alone(model: InternVLChatModel, batch: dict[str, Tensor]) -> None:
    expected = logits_of(model, batch)
    config = copy.deepcopy(model.config)
    again = InternVLChatModel.from_pretrained(None, config=config, state_dict=model.state_dict())
    again.img_context_token_id = CONTEXT_ID
    torch.testing.assert_close(logits_of(again, batch), expected)


def test_missing_weights_are_made_as_fresh_ones(model: InternVLChatModel) -> None:
    """On the meta device first, as transformers fills in what a state dict lacks."""
    if model.config.use_llm_lora:
        pytest.skip("PEFT initialises its layers itself, when they are put in")
    config = copy.deepcopy(model.config)
    again = InternVLChatModel.from_pretrained(None, config=config, state_dict={})
    fresh = InternVLChatModel(copy.deepcopy(model.config))
    found, expected = again.state_dict(), fresh.state_dict()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert not found[name].is_meta, name
        spread = [0.0 if t.numel() == 1 else t.float().std().item() for t in (found[name], tensor)]
        assert spread[0] == pytest.approx(spread[1], rel=0.5, abs=1e-3), name
        if spread[1] == 0:
            assert torch.equal(found[name], tensor), name


def test_tied_weights_stay_tied(model: InternVLChatModel, tmp_path: Path) -> None:
    def is_tied(model: InternVLChatModel) -> bool:
        table: Any = model.get_input_embeddings()
        head: Any = model.get_output_embeddings()
        return table.weight is head.weight

    expected = bool(model.config.llm_config.tie_word_embeddings)
    assert is_tied(model) is expected
    assert is_tied(reload(model, tmp_path)) is expected
    assert is_tied(copy.deepcopy(model)) is expected
    model.resize_token_embeddings(290, mean_resizing=False)
    assert is_tied(model) is expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loaded_in_another_dtype(
    model: InternVLChatModel, batch: dict[str, Tensor], dtype: torch.dtype, tmp_path: Path
) -> None:
    again = reload(model, tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}
    assert logits_of(again, batch).isfinite().all()


def test_meta_device_and_back(model: InternVLChatModel) -> None:
    """Nothing but parameters and buffers holds numbers that a move would leave behind."""
    with torch.device("meta"):
        empty = InternVLChatModel(copy.deepcopy(model.config))
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    loose = [
        (name, key)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
    assert loose == []
    assert empty.extract_feature(torch.zeros(1, 3, 16, 16, device="meta")).shape == (1, 4, 24)


# ---------------------------------------------------------------- forward


def test_the_same_every_time(model: InternVLChatModel, batch: dict[str, Tensor]) -> None:
    assert torch.equal(logits_of(model, batch), logits_of(model, batch))
    model.train()
    model.eval()
    assert torch.equal(logits_of(model, batch), logits_of(model, batch))


def test_tuples_hold_what_the_dictionary_holds(
    model: InternVLChatModel, batch: dict[str, Tensor]
) -> None:
    for asked in ({}, {"output_hidden_states": True}, {"labels": batch["input_ids"]}):
        whole, parts = model(**batch, **asked), model(**batch, **asked, return_dict=False)
        assert isinstance(parts, tuple)
        assert len(parts) == len(whole.to_tuple())
        assert torch.equal(parts[0], whole[0])


def test_a_row_does_not_depend_on_its_batch(
    model: InternVLChatModel, batch: dict[str, Tensor]
) -> None:
    expected = logits_of(model, batch)
    for row in range(2):
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        torch.testing.assert_close(logits_of(model, alone)[0], expected[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(
    model: InternVLChatModel, batch: dict[str, Tensor], side: str
) -> None:
    expected = logits_of(model, batch)
    pads = (3, 0) if side == "left" else (0, 3)
    ids = torch.nn.functional.pad(batch["input_ids"], pads)
    mask = torch.nn.functional.pad(torch.ones_like(batch["input_ids"]), pads)
    padded = {**batch, "input_ids": ids, "attention_mask": mask}
    found = logits_of(model, padded, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    found = found[:, 3:] if side == "left" else found[:, :-3]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_kernels_agree(model: InternVLChatModel, batch: dict[str, Tensor]) -> None:
    expected = logits_of(model, batch)
    for kernel in ("eager", "sdpa", {"vision_config": "eager", "llm_config": "sdpa"}):
        model.set_attn_implementation(kernel)
        torch.testing.assert_close(logits_of(model, batch), expected, rtol=1e-4, atol=1e-4)


def test_hidden_states_and_attentions_carry_gradients(
    model: InternVLChatModel, batch: dict[str, Tensor]
) -> None:
    model.requires_grad_(True)
    model.set_attn_implementation("eager")
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3
    assert len(output.attentions) == 2
    kept = (output.hidden_states[0], output.attentions[0])
    for state in kept:
        state.retain_grad()
    output.logits.flatten()[0].backward()
    assert all(state.grad is not None for state in kept)


@pytest.mark.parametrize("use_reentrant", [None, True, False])
def test_checkpointing_trains_the_same_weights(
    model: InternVLChatModel, batch: dict[str, Tensor], use_reentrant: bool | None
) -> None:
    model.requires_grad_(True)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            how = None if use_reentrant is None else {"use_reentrant": use_reentrant}
            model.gradient_checkpointing_enable(how)
        model(**batch, labels=batch["input_ids"]).loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append({n for n, g in gradients.items() if g.abs().max() > 1e-9})
    assert found[0] == found[1]
    model.gradient_checkpointing_disable()
    layers = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
    assert not any(layer.gradient_checkpointing for layer in layers)


def test_embeddings_can_be_looked_up_and_replaced(model: InternVLChatModel) -> None:
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(table, torch.nn.Embedding)
    assert isinstance(head, torch.nn.Linear)
    model.set_input_embeddings(torch.nn.Embedding(10, 24))
    assert model.get_input_embeddings().num_embeddings == 10
    model.set_output_embeddings(torch.nn.Linear(24, 10, bias=False))
    assert model.get_output_embeddings().out_features == 10


# ---------------------------------------------------------------- generation


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sample": {"do_sample": True, "top_k": 5},
    "beam": {"do_sample": False, "num_beams": 3},
    "beam_sample": {"do_sample": True, "num_beams": 2},
    "several": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
}


@pytest.mark.parametrize("way", list(WAYS))
def test_ways_to_generate(model: InternVLChatModel, batch: dict[str, Tensor], way: str) -> None:
    settings = {**NEW, **WAYS[way]}
    torch.manual_seed(0)
    found = model.generate(**batch, **settings)
    assert found.shape == (2 * settings.get("num_return_sequences", 1), 5)
    assert int(found.max()) < 280
    torch.manual_seed(0)
    output = model.generate(
        **batch,
        **settings,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_hidden_states=True,
    )
    assert torch.equal(output.sequences, found)
    assert len(output.scores) == len(output.logits) == len(output.hidden_states) == 5


@pytest.mark.parametrize("cache", ["dynamic", "static", "own dynamic", "own static", "none"])
def test_caches_change_nothing(
    model: InternVLChatModel, batch: dict[str, Tensor], cache: str
) -> None:
    expected = model.generate(**batch, **NEW, do_sample=False)
    text = model.config.get_text_config()
    kwargs: dict[str, Any] = {
        "dynamic": {"cache_implementation": "dynamic"},
        "static": {"cache_implementation": "static"},
        "own dynamic": {"past_key_values": DynamicCache(config=text)},
        "own static": {"past_key_values": StaticCache(config=text, max_cache_len=64)},
        "none": {"use_cache": False},
    }[cache]
    if cache == "none":
        with torch.no_grad():
            ids = batch["input_ids"]
            for _ in range(5):
                logits = logits_of(model, {**batch, "input_ids": ids}, use_cache=False)
                logits[..., CONTEXT_ID] = -torch.inf
                ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        found = ids[:, -5:]
    else:
        found = model.generate(**batch, **NEW, **kwargs, do_sample=False, disable_compile=True)
    assert torch.equal(found, expected)


def test_left_padding_changes_no_answer(model: InternVLChatModel, batch: dict[str, Tensor]) -> None:
    expected = model.generate(**batch, **NEW, do_sample=False)
    found = model.generate(**padded_left(batch, 4), **NEW, do_sample=False)
    assert torch.equal(found, expected)


def test_goes_on_from_a_cache(model: InternVLChatModel, batch: dict[str, Tensor]) -> None:
    """Two steps at once are the steps one after the other; the images are read once."""
    whole = logits_of(model, batch)
    with torch.no_grad():
        head = {**batch, "input_ids": batch["input_ids"][:, :10]}
        first = model(**head, use_cache=True)
        second = model(input_ids=batch["input_ids"][:, 10:], past_key_values=first.past_key_values)
    found = torch.cat([first.logits, second.logits], dim=1)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


def test_embeddings_are_as_good_as_ids(model: InternVLChatModel, batch: dict[str, Tensor]) -> None:
    embeds = model.get_input_embeddings()(batch["input_ids"])
    others = {"pixel_values": batch["pixel_values"], "inputs_embeds": embeds}
    torch.testing.assert_close(logits_of(model, others), logits_of(model, batch))
    found = model.generate(**others, **NEW, do_sample=False)
    assert torch.equal(found, model.generate(**batch, **NEW, do_sample=False))
