"""Names that scripts written for the original's model code use; found in its public files."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from internvl_chat.model import InternVisionModel, InternVLChatModel
from internvl_chat.model.conversation import TEMPLATES, conv_templates, get_conv_template
from tests.support.models import make_batch, make_config, make_model, make_tokenizer

MODEL_ATTRIBUTES = """config conv_template downsample_ratio img_context_token_id language_model
    llm_arch_name lm_head mlp1 num_image_token num_samples patch_size ps_version select_layer
    system_message template vision_model"""
"""``InternVLChatModel``: what its constructor sets, and the properties of its later versions."""

METHODS = {
    "forward": """pixel_values input_ids attention_mask position_ids image_flags past_key_values
        labels use_cache output_attentions output_hidden_states return_dict""",
    "generate": """pixel_values input_ids attention_mask visual_features generation_config
        output_hidden_states return_dict""",
    "chat": """tokenizer pixel_values question generation_config history return_history
        num_patches_list IMG_START_TOKEN IMG_END_TOKEN IMG_CONTEXT_TOKEN verbose""",
    "batch_chat": """tokenizer pixel_values questions generation_config num_patches_list history
        return_history IMG_START_TOKEN IMG_END_TOKEN IMG_CONTEXT_TOKEN verbose image_counts""",
    "extract_feature": "pixel_values",
    "pixel_shuffle": "x scale_factor",
    "wrap_backbone_lora": "r lora_alpha lora_dropout",
    "wrap_llm_lora": "r lora_alpha lora_dropout",
    "get_input_embeddings": "",
    "get_output_embeddings": "",
}
"""Methods with their parameters, in the original's order."""

CONFIG_ATTRIBUTES = """vision_config llm_config use_backbone_lora use_llm_lora pad2square
    select_layer force_image_size downsample_ratio template dynamic_image_size use_thumbnail
    ps_version min_dynamic_patch max_dynamic_patch"""
VISION_METHODS = {
    "forward": "pixel_values output_hidden_states return_dict pixel_embeds",
    "resize_pos_embeddings": "old_size new_size patch_size",
    "get_input_embeddings": "",
}
VISION_ATTRIBUTES = """embeddings.class_embedding embeddings.patch_embedding
    embeddings.position_embedding embeddings.embed_dim embeddings.image_size embeddings.patch_size
    embeddings.num_patches embeddings.num_positions encoder.layers encoder.gradient_checkpointing"""
CONVERSATION_ATTRIBUTES = """name system_template system_message roles messages offset sep sep2
    stop_str stop_token_ids get_prompt set_system_message append_message update_last_message
    to_gradio_chatbot to_openai_api_messages copy dict"""
"""``Conversation``; but for ``sep_style``, the number of a branch in the original's rendering."""

GREEDY = {"max_new_tokens": 4, "do_sample": False}


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.fixture(scope="module")
def model() -> InternVLChatModel:
    return make_model()


@pytest.mark.parametrize("name", MODEL_ATTRIBUTES.split())
def test_attribute_of_the_model(name: str, model: InternVLChatModel) -> None:
    assert hasattr(model, name)


@pytest.mark.parametrize("name", METHODS)
def test_method_of_the_model(name: str) -> None:
    names = METHODS[name].split()
    assert parameters(getattr(InternVLChatModel, name))[: len(names)] == names


@pytest.mark.parametrize("name", VISION_METHODS)
def test_method_of_the_vision_tower(name: str) -> None:
    names = VISION_METHODS[name].split()
    assert parameters(getattr(InternVisionModel, name))[: len(names)] == names


@pytest.mark.parametrize("path", VISION_ATTRIBUTES.split())
def test_attribute_of_the_vision_tower(path: str, model: InternVLChatModel) -> None:
    found: Any = model.vision_model
    for name in path.split("."):
        assert hasattr(found, name)
        found = getattr(found, name)


@pytest.mark.parametrize("name", CONFIG_ATTRIBUTES.split())
def test_attribute_of_the_configuration(name: str, model: InternVLChatModel) -> None:
    assert hasattr(model.config, name)


@pytest.mark.parametrize("name", CONVERSATION_ATTRIBUTES.split())
def test_attribute_of_a_conversation(name: str) -> None:
    assert hasattr(get_conv_template("Hermes-2"), name)


def test_values_are_the_configurations() -> None:
    model = make_model(make_config(ps_version="v2", select_layer=-2))
    assert (model.ps_version, model.select_layer, model.downsample_ratio) == ("v2", -2, 0.5)
    assert (model.patch_size, model.num_image_token, model.num_samples) == (4, 4, 0)
    assert model.llm_arch_name == "LlamaForCausalLM"
    assert model.lm_head is model.get_output_embeddings()
    model.wrap_llm_lora(r=2)
    assert model.llm_arch_name == "LlamaForCausalLM"
    embeddings = model.vision_model.embeddings
    assert (embeddings.image_size, embeddings.num_patches, embeddings.num_positions) == (16, 16, 17)
    assert embeddings.embed_dim == 32


def test_no_name_is_saved_twice(model: InternVLChatModel) -> None:
    heads = [name for name in model.state_dict() if "lm_head" in name]
    assert heads == ["language_model.lm_head.weight"]


def test_settings_that_are_changed_take_effect() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    pixels = make_batch(model.num_image_token)["pixel_values"][:1]
    before = model.extract_feature(pixels)
    model.ps_version = "v2"
    assert not model.extract_feature(pixels).equal(before)
    model.ps_version, model.select_layer = "v1", 1
    assert not model.extract_feature(pixels).equal(before)
    assert (model.config.ps_version, model.config.select_layer) == ("v1", 1)
    model.select_layer = -1
    assert model.extract_feature(pixels).equal(before)
    wanted = make_model(make_config(template="internvl2_5", system_message=model.system_message))
    model.template = "internvl2_5"
    assert model.template == model.conv_template.name == "internvl2_5"
    answers = [m.chat(tokenizer, pixels, "Hi", GREEDY) for m in (model, wanted)]
    assert answers[0] == answers[1]


def test_settings_that_follow_from_others_are_not_changed_in_silence() -> None:
    model = make_model()
    model.num_image_token, model.downsample_ratio, model.patch_size = 4, 0.5, 4
    with pytest.raises(ValueError, match=r"num_image_token is 4 .* cannot become 16: set config"):
        model.num_image_token = 16
    with pytest.raises(ValueError, match=r"downsample_ratio is 0\.5"):
        model.downsample_ratio = 0.25
    with pytest.raises(ValueError, match="patch_size is 4"):
        model.patch_size = 14
    with pytest.raises(ValueError, match="want 'v1' or 'v2'"):
        model.ps_version = "v3"
    model.config.force_image_size = 32  # as the original's training script has it, in this order
    model.num_image_token = int((32 // 4) ** 2 * 0.5**2)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_conversation_writes_what_the_template_renders(name: str) -> None:
    template = get_conv_template(name)
    template.system_message = "Be brief."
    for question, answer in (("Hi", "Hello."), ("Why?", None)):
        template.append_message(template.roles[0], question)
        template.append_message(template.roles[1], answer)
    turns = [("Hi", "Hello."), ("Why?", None)]
    assert template.get_prompt() == TEMPLATES[name].render(turns, "Be brief.").text
    template.update_last_message("So.")
    whole = TEMPLATES[name].render([("Hi", "Hello."), ("Why?", "So.")], "Be brief.").text
    assert template.get_prompt() == whole
    assert template.dict()["messages"][-1] == [template.roles[1], "So."]


def test_conversations_are_apart() -> None:
    first = conv_templates["Hermes-2"].copy()
    first.set_system_message("Mine.")
    first.append_message(first.roles[0], "Hi")
    second = first.copy()
    second.append_message(second.roles[1], None)
    assert [len(one.messages) for one in (first, second)] == [1, 2]
    assert second.system_message == "Mine."
    fresh = get_conv_template("Hermes-2")
    assert fresh.messages == []
    assert fresh.system_message == TEMPLATES["Hermes-2"].system_message != "Mine."
    assert second.to_openai_api_messages() == [
        {"role": "system", "content": "Mine."},
        {"role": "user", "content": "Hi"},
    ]
    assert second.to_gradio_chatbot() == [["Hi", None]]
    assert (fresh.sep, fresh.sep2) == ("<|im_end|>", None)
    assert get_conv_template("internvl_zh").sep2 == "</s>"


def test_the_originals_generate_by_hand(model: InternVLChatModel) -> None:
    """A prompt from ``conv_template``, ``generate`` with all keywords of the original's."""
    tokenizer, batch = make_tokenizer(), make_batch(model.num_image_token)
    pixels = batch["pixel_values"][:1]
    template = model.conv_template.copy()
    template.system_message = model.system_message
    template.append_message(template.roles[0], "<image>\nHi")
    template.append_message(template.roles[1], None)
    image = "<img>" + "<IMG_CONTEXT>" * model.num_image_token + "</img>"
    inputs = tokenizer(template.get_prompt().replace("<image>", image, 1), return_tensors="pt")
    model.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    output = model.generate(
        pixel_values=pixels,
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        visual_features=None,
        generation_config=None,
        output_hidden_states=None,
        return_dict=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(template.sep),
        **GREEDY,
    )
    reply = tokenizer.batch_decode(output, skip_special_tokens=True)[0]
    wanted = model.chat(tokenizer, pixels, "Hi", GREEDY)
    assert reply.split(template.sep)[0].strip() == wanted


def test_image_counts_is_num_patches_list(model: InternVLChatModel) -> None:
    tokenizer, batch = make_tokenizer(), make_batch(model.num_image_token)
    pixels = torch.cat([batch["pixel_values"], batch["pixel_values"][:1]])
    questions, counts = ["One", "Two"], [2, 1]
    settings = {"tokenizer": tokenizer, "pixel_values": pixels, "generation_config": GREEDY}
    old = model.batch_chat(**settings, image_counts=counts, questions=questions)
    assert old == model.batch_chat(**settings, num_patches_list=counts, questions=questions)
    with pytest.raises(ValueError, match="image_counts, not both"):
        model.batch_chat(
            **settings, image_counts=counts, num_patches_list=counts, questions=questions
        )


def test_checkpointing_as_the_originals_training_script_switches_it_on() -> None:
    model = make_model().train()
    batch = make_batch(model.num_image_token)
    gradients = []
    for value in (False, True):
        model.vision_model.encoder.gradient_checkpointing = value
        assert [layer.gradient_checkpointing for layer in model.vision_model.encoder.layers] == [
            value
        ] * 3
        model.zero_grad()
        model(**batch).loss.backward()
        gradients.append(model.vision_model.embeddings.patch_embedding.weight.grad.clone())
    assert gradients[0].equal(gradients[1])
    model.gradient_checkpointing_enable()
    assert model.vision_model.encoder.gradient_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.vision_model.encoder.gradient_checkpointing
