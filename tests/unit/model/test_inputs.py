"""No input is dropped in silence: images, placeholders, labels, keywords count or are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from internvl_chat import InternVisionConfig, InternVisionModel, InternVLChatModel
from tests.support.models import CONTEXT_ID, VISION, make_batch, make_config, make_model


@pytest.fixture(scope="module")
def model() -> InternVLChatModel:
    return make_model()


@pytest.fixture
def batch(model: InternVLChatModel) -> dict[str, Tensor]:
    return make_batch(model.num_image_token)


# ---------------------------------------------------------------- images


def test_images_beside_embeddings_count(model: InternVLChatModel, batch: dict[str, Tensor]) -> None:
    """The placeholders are found by their embedding, as transformers' own models find them."""
    expected = model(**batch)
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    found = model(**batch, inputs_embeds=embeds)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)
    before = embeds.clone()
    features = model.extract_feature(batch.pop("pixel_values"))
    found = model(**batch, inputs_embeds=embeds, visual_features=features)
    torch.testing.assert_close(found.logits, expected.logits)
    assert torch.equal(embeds, before)
    with pytest.raises(ValueError, match=r"8 image tokens .* but 1 tiles"):
        model(inputs_embeds=embeds, pixel_values=torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"0 image tokens .* but 2 tiles give 8"):
        model(inputs_embeds=embeds + 1, pixel_values=torch.zeros(2, 3, 16, 16))


def test_placeholders_without_images_are_refused(model: InternVLChatModel) -> None:
    ids = torch.tensor([[5, CONTEXT_ID, 6, 7], [5, 6, CONTEXT_ID, CONTEXT_ID]])
    said = r"3 image tokens in input_ids \(by row: \[1, 2\]\), but no pixel_values"
    with pytest.raises(ValueError, match=said):
        model(input_ids=ids)
    with pytest.raises(ValueError, match=said):
        model.generate(input_ids=ids, max_new_tokens=1)
    cache = model(input_ids=ids.clamp(max=8), use_cache=True).past_key_values
    model(input_ids=ids[:, :1] * 0 + CONTEXT_ID, past_key_values=cache)  # written by the model


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (16, 32)])
def test_tiles_of_another_size_name_both(model: InternVLChatModel, size: tuple[int, int]) -> None:
    said = f"the tiles have {size[0]} x {size[1]} pixels, and the model takes 16 x 16"
    batch = make_batch(model.num_image_token)
    batch["pixel_values"] = torch.zeros(2, 3, *size)
    with pytest.raises(ValueError, match=said):
        model(**batch)
    del batch["labels"]
    with pytest.raises(ValueError, match=said):
        model.generate(**batch, max_new_tokens=1)


def test_pixels_and_features_of_another_shape(model: InternVLChatModel) -> None:
    ids = torch.full((1, 8), CONTEXT_ID)
    for pixels in (torch.zeros(1, 2, 3, 16, 16), torch.zeros(3, 16, 16), torch.zeros(1, 1, 16, 16)):
        with pytest.raises(ValueError, match=r"pixel_values has shape .*, want \(tiles, 3, 16, 16"):
            model(pixel_values=pixels, input_ids=ids)
    for features in (torch.zeros(1, 8, 24), torch.zeros(8, 24)):
        with pytest.raises(ValueError, match=r"visual_features has shape .*, want \(tiles, 4, wid"):
            model(visual_features=features, input_ids=ids)


@pytest.mark.parametrize("name", ["pixel_values_videos", "image_grid_thw", "images", "image_sizes"])
def test_images_under_other_names_are_refused(model: InternVLChatModel, name: str) -> None:
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(TypeError, match=f"{name} is not known: tiles are pixel_values"):
        model(input_ids=ids, **{name: torch.zeros(1)})
    model(input_ids=ids, **{name: None})  # named by a wrapper that has none


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("return_logits", [True, False])
def test_shifted_labels_take_the_place_of_labels(
    model: InternVLChatModel, batch: dict[str, Tensor], return_logits: bool
) -> None:
    expected = model(**batch).loss
    labels = batch.pop("labels")
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    other = labels.roll(3, dims=1)
    for beside in ({}, {"labels": labels}, {"labels": other}):
        output = model(**batch, **beside, shift_labels=shifted, return_logits=return_logits)
        torch.testing.assert_close(output.loss, expected)
    changed = model(**batch, labels=labels, shift_labels=other, return_logits=return_logits).loss
    assert not torch.allclose(changed, expected, rtol=1e-3)


# ---------------------------------------------------------------- outputs by configuration


@pytest.mark.parametrize("return_logits", [True, False])
@pytest.mark.parametrize("place", ["config", "llm_config", "call"])
def test_outputs_by_configuration(place: str, return_logits: bool) -> None:
    model = make_model(make_config(attn_implementation="eager"))
    batch = make_batch(model.num_image_token)
    asked = {"output_hidden_states": True, "output_attentions": True}
    plain = model(**batch, return_logits=return_logits)
    assert (plain.hidden_states, plain.attentions) == (None, None)
    call = {}
    if place == "call":
        call = asked
    else:
        config = model.config if place == "config" else model.config.llm_config
        for name, value in asked.items():
            setattr(config, name, value)
        refused = dict.fromkeys(asked, False)
        other = model(**batch, return_logits=return_logits, **refused)
        assert (other.hidden_states, other.attentions) == (None, None)
    output = model(**batch, return_logits=return_logits, **call)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 18, 24)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 18, 18)] * 2


@pytest.mark.parametrize("return_logits", [True, False])
def test_tuples_inside_by_configuration(return_logits: bool) -> None:
    """As in published files of transformers 4.37's time: what comes out goes by our own level."""
    model = make_model(make_config(llm={"return_dict": False}, vision={"return_dict": False}))
    batch = make_batch(model.num_image_token)
    expected = make_model()(**batch, return_logits=return_logits)
    found = model(**batch, return_logits=return_logits)
    torch.testing.assert_close(found.loss, expected.loss)
    del batch["labels"]
    assert model.generate(**batch, max_new_tokens=2, eos_token_id=279).shape == (2, 2)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_vision_outputs_by_configuration(kernel: str) -> None:
    tower = InternVisionModel(InternVisionConfig(**VISION, attn_implementation=kernel)).eval()
    pixels = torch.randn(2, 3, 16, 16)
    plain = tower(pixels)
    assert (plain.hidden_states, plain.attentions) == (None, None)
    asked = tower(pixels, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(asked.last_hidden_state, plain.last_hidden_state)
    assert [tuple(state.shape) for state in asked.hidden_states] == [(2, 17, 32)] * 4
    assert [tuple(weights.shape) for weights in asked.attentions] == [(2, 4, 17, 17)] * 3
    for weights in asked.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 17))
    tower.set_attn_implementation("eager")
    tower.config.output_hidden_states = tower.config.output_attentions = True
    assert len(tower(pixels).hidden_states) == 4
    assert len(tower(pixels).attentions) == 3
    assert tower(pixels, output_attentions=False).attentions is None
    tower.config.return_dict = False
    assert isinstance(tower(pixels), tuple)
    assert torch.equal(tower(pixels, return_dict=True)[0], tower(pixels)[0])


def test_the_chat_model_asks_its_tower_for_nothing_more() -> None:
    """Whatever its configuration says: those states would be held for nobody."""
    model = make_model(make_config(vision={"output_hidden_states": True, "return_dict": False}))
    seen = []
    model.vision_model.register_forward_hook(lambda _, __, output: seen.append(output))
    model(**make_batch(model.num_image_token))
    assert seen[0].hidden_states is None


def test_unknown_keywords_of_the_vision_tower() -> None:
    tower = InternVisionModel(InternVisionConfig(**VISION)).eval()
    pixels = torch.randn(1, 3, 16, 16)
    for name in ("bool_masked_pos", "interpolate_pos_encoding", "select_layers"):
        with pytest.raises(TypeError, match=f"InternVisionModel takes no {name}"):
            tower(pixels, **{name: True})
    assert torch.equal(tower(pixels, attention_mask=None)[0], tower(pixels)[0])
    with pytest.raises(ValueError, match="pixel_values or pixel_embeds, and one of them only"):
        tower(pixels, pixel_embeds=tower.embeddings(pixels))
