"""InternVLChatModel: pixel shuffle, placement of tiles, loss, text-only batches, checkpointing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvl_chat import InternVLChatModel
from internvl_chat.model.modeling_internvl_chat import (
    find_image_slots,
    pixel_shuffle,
    splice_image_features,
)
from tests.support.models import CONTEXT_ID, make_batch, make_config, make_model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_same_gradients(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6
) -> None:
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        worst = (found[name] - gradient).abs().max().item()
        assert worst <= tolerance * max(1.0, gradient.abs().max().item()), (name, worst)


def full_loss(
    model: InternVLChatModel,
    batch: dict[str, Tensor],
    weight: Tensor | None = None,
    denominator: float | None = None,
) -> Tensor:
    """The definition: all logits, shifted by one, weighted mean of cross entropies."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    mask = (labels != -100).float().flatten()
    weights = mask if weight is None else mask * weight[:, 1:].flatten()
    return (losses * weights).sum() / (weights.sum() if denominator is None else denominator)


@contextmanager
def train_mode(model: nn.Module) -> Iterator[None]:
    model.train()
    model.zero_grad()
    yield
    model.eval()


# ---------------------------------------------------------------- pixel shuffle


def test_pixel_shuffle_by_index() -> None:
    """y[n, h2, w2, dw*2C + dh*C + c] = x[n, 2*w2 + dw, 2*h2 + dh, c] for v1; v2 swaps h2, w2."""
    x = torch.randn(2, 4, 6, 3)
    v1, v2 = pixel_shuffle(x, 0.5, version="v1"), pixel_shuffle(x, 0.5, version="v2")
    assert v1.shape == (2, 3, 2, 12)
    assert v2.shape == (2, 2, 3, 12)
    for w2 in range(2):
        for h2 in range(3):
            for dw in range(2):
                for dh in range(2):
                    channels = slice((2 * dw + dh) * 3, (2 * dw + dh) * 3 + 3)
                    source = x[:, 2 * w2 + dw, 2 * h2 + dh]
                    assert torch.equal(v1[:, h2, w2, channels], source)
                    assert torch.equal(v2[:, w2, h2, channels], source)


def test_pixel_shuffle_follows_the_configuration() -> None:
    x = torch.randn(1, 4, 4, 8)
    for version in ("v1", "v2"):
        model = make_model(make_config(ps_version=version))
        assert torch.equal(model.pixel_shuffle(x), pixel_shuffle(x, 0.5, version=version))


def test_extract_feature() -> None:
    model = make_model()
    pixels = torch.randn(3, 3, 16, 16)
    tokens = model.vision_model(pixels).last_hidden_state[:, 1:].view(3, 4, 4, 32)
    expected = model.mlp1(pixel_shuffle(tokens, 0.5, version="v1").reshape(3, 4, 128))
    assert torch.equal(model.extract_feature(pixels), expected)
    assert expected.shape == (3, model.num_image_token, 24)


def test_extract_feature_of_another_size_and_layer() -> None:
    model = make_model(make_config(select_layer=-2, force_image_size=24))
    assert model.num_image_token == 9
    pixels = torch.randn(1, 3, 24, 24)
    states = model.vision_model(pixels, output_hidden_states=True).hidden_states
    tokens = states[-2][:, 1:].view(1, 6, 6, 32)
    expected = model.mlp1(model.pixel_shuffle(tokens).flatten(1, 2))
    assert torch.equal(model.extract_feature(pixels), expected)
    with pytest.raises(ValueError, match="are 5 x 5 patches of 4; want multiples of 2"):
        model.extract_feature(torch.randn(1, 3, 20, 20))


# ---------------------------------------------------------------- placement


def test_state_dict_names() -> None:
    names = set(make_model().state_dict())
    assert {name.split(".")[0] for name in names} == {"vision_model", "language_model", "mlp1"}
    assert {name for name in names if name.startswith("mlp1")} == {
        f"mlp1.{index}.{kind}" for index in (0, 1, 3) for kind in ("weight", "bias")
    }
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in names
    assert "language_model.lm_head.weight" in names


def test_slots_are_positions_in_the_flattened_rows() -> None:
    ids = torch.tensor([[5, 9, 9, 5], [9, 5, 5, 9]])
    settings = {"image_token_id": 9, "num_image_token": 2}
    assert find_image_slots(ids, num_tiles=2, **settings).tolist() == [1, 2, 4, 7]
    with pytest.raises(ValueError, match=r"4 image .*by row: \[2, 2\].*1 tiles give 2 .*\(2 each"):
        find_image_slots(ids, num_tiles=1, **settings)
    none = find_image_slots(ids, image_token_id=7, num_tiles=0, num_image_token=2)
    assert none.shape == (0,)


def test_splice_writes_in_reading_order_and_leaves_its_input() -> None:
    text = torch.zeros(2, 4, 3)
    before = text.clone()
    image = torch.arange(1, 13).float().view(2, 2, 3)
    out = splice_image_features(text, image, torch.tensor([1, 2, 4, 7]))
    assert torch.equal(text, before)
    assert out[0, :, 0].tolist() == [0, 1, 4, 0]
    assert out[1, :, 0].tolist() == [7, 0, 0, 10]


def test_flagged_tiles_are_dropped() -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    expected = model(**batch).logits
    pixels = batch["pixel_values"]
    padded = torch.stack([pixels[0], torch.full_like(pixels[0], 9.0), pixels[1]])
    for flags in (torch.tensor([1, 0, 1]), torch.tensor([[1], [0], [1]])):
        found = model(**{**batch, "pixel_values": padded, "image_flags": flags}).logits
        torch.testing.assert_close(found, expected)


def test_count_mismatch_states_both_counts() -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    with pytest.raises(ValueError, match=r"8 image tokens .*by row: \[4, 4\].*3 tiles give 12"):
        model(**{**batch, "pixel_values": torch.zeros(3, 3, 16, 16)})


def test_unset_context_token_is_named() -> None:
    model = make_model()
    model.img_context_token_id = None
    with pytest.raises(ValueError, match=r"Set model\.img_context_token_id"):
        model(**make_batch(model.num_image_token))


def test_images_change_only_what_follows_them() -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    other = {**batch, "pixel_values": batch["pixel_values"] + 1}
    difference = (model(**batch).logits - model(**other).logits).abs().amax(-1)
    assert difference[:, :2].max() == 0
    assert difference[:, 2:].min() > 0


# ---------------------------------------------------------------- loss


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("denominator", [None, 3.5])
def test_loss_equals_its_definition(weighted: bool, denominator: float | None) -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    weight = torch.rand(batch["labels"].shape) if weighted else None
    settings: dict[str, Any] = {"loss_weight": weight, "loss_denominator": denominator}
    with train_mode(model):
        expected = full_loss(model, batch, weight, denominator)
        expected.backward()
        expected_gradients = gradients(model)
    for asked in ({"return_logits": False}, {"return_logits": True}, {}):
        with train_mode(model):
            outputs = model(**batch, **settings, **asked)
            outputs.loss.backward()
            assert (outputs.logits is not None) is asked.get("return_logits", True)
            assert outputs.loss.dtype == torch.float32
            assert abs(outputs.loss.item() - expected.item()) < 1e-6 * expected.item()
            assert_same_gradients(gradients(model), expected_gradients)


def test_denominator_may_be_a_tensor_or_the_trainers() -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    expected = model(**batch, loss_denominator=7.0).loss
    assert torch.equal(model(**batch, loss_denominator=torch.tensor(7.0)).loss, expected)
    assert torch.equal(model(**batch, num_items_in_batch=torch.tensor(7)).loss, expected)


@pytest.mark.parametrize("return_logits", [False, True])
@pytest.mark.parametrize("denominator", [None, 0.0, 5.0])
def test_nothing_supervised_is_zero_and_touches_every_parameter(
    denominator: float | None, return_logits: bool
) -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    batch["labels"].fill_(-100)
    with train_mode(model):
        loss = model(**batch, loss_denominator=denominator, return_logits=return_logits).loss
        loss.backward()
        found = gradients(model)
    assert loss.item() == 0
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert all(gradient.abs().max() == 0 for gradient in found.values())


def test_zero_denominator_with_supervised_rows_is_zero() -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    loss = model(**batch, loss_weight=torch.zeros(2, 18)).loss
    assert loss.item() == 0


def test_padding_changes_nothing() -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    expected = model(**batch).loss
    padded = {
        "pixel_values": batch["pixel_values"],
        "input_ids": F.pad(batch["input_ids"], (0, 3)),
        "labels": F.pad(batch["labels"], (0, 3), value=-100),
        "attention_mask": F.pad(torch.ones(2, 18, dtype=torch.long), (0, 3)),
    }
    torch.testing.assert_close(model(**padded).loss, expected)


@pytest.mark.parametrize("return_logits", [False, True])
def test_rows_losses_of_the_last_call(return_logits: bool) -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    model.train()
    loss = model(**batch, return_logits=return_logits).loss
    rows = model.vocabulary_loss.row_losses
    assert rows is not None
    assert rows.shape == (18,)
    torch.testing.assert_close(rows.mean(), loss.detach())


def test_tuple_output_and_input_checks() -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    outputs = model(**batch, return_dict=False)
    assert torch.equal(outputs[0], model(**batch).loss)
    model.config.return_dict = False
    assert torch.equal(model(**batch)[0], outputs[0])
    assert torch.equal(model(**batch, return_dict=True).loss, outputs[0])
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model(pixel_values=batch["pixel_values"])


def test_logits_to_keep() -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    del batch["labels"]
    assert model(**batch, logits_to_keep=1).logits.shape == (2, 1, 280)


# ---------------------------------------------------------------- text-only batches


def test_text_only_training_batch_adds_exactly_zero() -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    text = {"input_ids": batch["input_ids"].clamp(max=200), "labels": batch["labels"]}
    language = model.language_model(input_ids=text["input_ids"]).logits
    with train_mode(model):
        loss = model(**text).loss
        loss.backward()
        found = gradients(model)
    torch.testing.assert_close(model(**text).logits, language)
    assert set(found) == {name for name, _ in model.named_parameters()}
    vision = [g for n, g in found.items() if not n.startswith("language_model.")]
    assert all(gradient.count_nonzero() == 0 for gradient in vision)
    assert found["language_model.lm_head.weight"].abs().max() > 0


def test_all_tiles_flagged_off_adds_exactly_zero() -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    text = {"input_ids": batch["input_ids"].clamp(max=200), "labels": batch["labels"]}
    expected = model(**text).loss
    with train_mode(model):
        pixels = torch.randn(1, 3, 16, 16)
        loss = model(**text, pixel_values=pixels, image_flags=torch.tensor([0])).loss
        loss.backward()
        found = gradients(model)
    torch.testing.assert_close(loss, expected)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert found["mlp1.1.weight"].count_nonzero() == 0


def count_vision_calls(model: InternVLChatModel) -> list[int]:
    calls: list[int] = []
    model.vision_model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_text_only_pays_for_the_vision_tower_only_where_needed() -> None:
    model = make_model()
    calls = count_vision_calls(model)
    ids = torch.randint(0, 200, (1, 6))
    model(input_ids=ids)
    assert calls == []
    model.train()
    model(input_ids=ids, labels=ids)
    assert calls == [1]
    model.vision_model.requires_grad_(False)
    model.mlp1.requires_grad_(False)
    model(input_ids=ids, labels=ids)
    assert calls == [1]


# ---------------------------------------------------------------- kernels, checkpointing, parts


def run_gradients(model: InternVLChatModel, batch: dict[str, Tensor]) -> tuple[float, Any]:
    with train_mode(model):
        loss = model(**batch).loss
        loss.backward()
        return loss.item(), gradients(model)


def test_eager_equals_sdpa() -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    loss, expected = run_gradients(model, batch)
    model.set_attn_implementation("eager")
    assert model.language_model.config._attn_implementation == "eager"
    eager_loss, found = run_gradients(model, batch)
    assert abs(eager_loss - loss) < 1e-6 * loss
    assert_same_gradients(found, expected)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    """Drop path included: the recomputation sees the same random numbers."""
    model = make_model(make_config(vision={"drop_path_rate": 0.5}))
    batch = make_batch(model.num_image_token)
    torch.manual_seed(3)
    loss, expected = run_gradients(model, batch)
    model.gradient_checkpointing_enable()
    assert model.vision_model.encoder.layers[0].gradient_checkpointing
    assert model.language_model.model.layers[0].gradient_checkpointing
    recomputed: list[int] = []
    model.vision_model.encoder.layers[1].attn.register_forward_hook(lambda *_: recomputed.append(1))
    torch.manual_seed(3)
    checkpointed, found = run_gradients(model, batch)
    assert len(recomputed) == 2
    assert checkpointed == loss
    assert_same_gradients(found, expected, tolerance=0)


def test_embeddings_are_the_language_models() -> None:
    model = make_model()
    llm = model.language_model
    assert model.get_input_embeddings() is llm.model.embed_tokens
    assert model.get_output_embeddings() is llm.lm_head
    assert model.get_decoder() is llm.model
    table = nn.Embedding(290, 24)
    model.set_input_embeddings(table)
    assert llm.model.embed_tokens is table


@pytest.mark.parametrize("lora", [0, 2])
def test_resize_token_embeddings(lora: int) -> None:
    model = make_model(make_config(use_llm_lora=lora))
    ids = torch.randint(0, 200, (1, 6))
    before = model(input_ids=ids).logits
    model.resize_token_embeddings(285, mean_resizing=False)
    assert model.config.llm_config.vocab_size == 285
    assert model.get_input_embeddings().weight.shape == (285, 24)
    after = model(input_ids=ids).logits
    assert after.shape == (1, 6, 285)
    torch.testing.assert_close(after[..., :280], before)


@pytest.mark.parametrize("lora", [0, 2])
def test_input_require_grads_reach_a_vision_tower_that_is_trained(lora: int) -> None:
    """A frozen one would run a backward pass for nothing."""
    model = make_model(make_config(use_llm_lora=2, use_backbone_lora=lora))
    if not lora:
        model.vision_model.requires_grad_(False)
    model.mlp1.requires_grad_(False)
    hooks = [len(m._forward_hooks) for m in model.modules()]
    for _ in range(2):
        model.enable_input_require_grads()
    features = model.extract_feature(torch.randn(1, 3, 16, 16))
    assert features.requires_grad is bool(lora)
    assert model.get_input_embeddings()(torch.tensor([1])).requires_grad
    model.disable_input_require_grads()
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert not model.get_input_embeddings()(torch.tensor([1])).requires_grad


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_every_lora_layer_gets_a_gradient_under_checkpointing(use_reentrant: bool) -> None:
    model = make_model(make_config(use_llm_lora=2, use_backbone_lora=2))
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    batch = make_batch(model.num_image_token)
    with train_mode(model):
        model(**batch).loss.backward()
        found = gradients(model)
    lora = {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert {name.split(".")[0] for name in lora} == {"vision_model", "language_model"}
    assert {name for name in found if found[name].abs().max() > 0} >= lora


def test_supplied_parts_keep_their_weights() -> None:
    donor = make_model()
    expected = copy.deepcopy(donor.state_dict())
    model = InternVLChatModel(donor.config, donor.vision_model, donor.language_model)
    for name, tensor in model.state_dict().items():
        if not name.startswith("mlp1"):
            assert torch.equal(tensor, expected[name]), name


# ---------------------------------------------------------------- LoRA


def test_lora_layout_and_freezing() -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    before = model(**batch).logits
    model.wrap_llm_lora(r=3, lora_alpha=6)
    model.wrap_backbone_lora(r=2)
    assert (model.config.use_llm_lora, model.config.use_backbone_lora) == (3, 2)
    torch.testing.assert_close(model(**batch).logits, before)  # B starts at zero
    names = set(model.state_dict())
    llm = "language_model.base_model.model.model.layers.0."
    vit = "vision_model.base_model.model.encoder.layers.0."
    assert llm + "self_attn.q_proj.lora_A.default.weight" in names
    assert llm + "self_attn.q_proj.base_layer.weight" in names
    assert vit + "attn.qkv.lora_B.default.weight" in names
    wrapped = {
        n.split(".lora_A")[0].split("layers.0.")[1] for n in names if ".0." in n and "lora_A" in n
    }
    assert wrapped == {
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        *("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
    }
    assert not any("lm_head.lora" in name for name in names)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n for n in names if "lora_" in n or n.startswith("mlp1")}
    with pytest.raises(ValueError, match="LlamaForCausalLM has LoRA layers already"):
        model.wrap_llm_lora(r=3)


def test_lora_trains_with_a_frozen_head() -> None:
    model = make_model(make_config(use_llm_lora=2))
    batch = make_batch(model.num_image_token)
    _, expected = run_gradients(model, batch)
    with train_mode(model):
        for module in model.modules():  # the same dropout masks are not to be had: switch it off
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        first = model(**batch).loss
        first.backward()
        found = gradients(model)
    with train_mode(model):
        full_loss(model, batch).backward()
        assert_same_gradients(found, gradients(model))
    assert "language_model.base_model.model.lm_head.weight" not in found
    assert set(found) == set(expected)


def test_context_token_ids_do_not_train_their_embedding() -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    _, found = run_gradients(model, batch)
    assert found["language_model.model.embed_tokens.weight"][CONTEXT_ID].count_nonzero() == 0
