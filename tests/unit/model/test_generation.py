"""What makes the model generative to transformers and PEFT, and what generate takes and refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModelForCausalLM, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import GenerationConfig

from internvl_chat import InternVLChatModel
from tests.support.models import CONTEXT_ID, make_batch, make_config, make_model

GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": 279}


def prompt(model: InternVLChatModel) -> dict[str, Tensor]:
    batch = make_batch(model.num_image_token)
    del batch["labels"]
    return batch


def through_forward(model: InternVLChatModel, batch: dict[str, Tensor], length: int) -> Tensor:
    """Greedy by whole forward passes, without a cache: (B, length)."""
    ids = batch["input_ids"]
    for _ in range(length):
        with torch.no_grad():
            logits = model(pixel_values=batch["pixel_values"], input_ids=ids).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids[:, batch["input_ids"].shape[1] :]


def test_it_is_generative_to_transformers() -> None:
    model = make_model()
    assert InternVLChatModel.can_generate()
    assert model.generation_config is model.language_model.generation_config
    assert model.generation_config.eos_token_id == 2


def test_greedy_is_what_forward_says() -> None:
    model = make_model()
    batch = prompt(model)
    expected = through_forward(model, batch, 4)
    assert torch.equal(model.generate(**batch, **GREEDY), expected)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    pixels = batch["pixel_values"]
    found = model.generate(pixels, inputs_embeds=embeds, **GREEDY)
    assert torch.equal(found, expected)


def test_settings_are_the_models_own() -> None:
    """Set on the model, on its language model, or in place; and a call says otherwise."""
    model = make_model()
    batch = prompt(model)
    model.generation_config = GenerationConfig(max_new_tokens=3, eos_token_id=279)
    assert model.generate(**batch).shape == (2, 3)
    model.generation_config.max_new_tokens = 2
    assert model.generate(**batch).shape == (2, 2)
    model.language_model.generation_config.max_new_tokens = 5
    assert model.generate(**batch).shape == (2, 5)
    own = GenerationConfig(max_new_tokens=1, eos_token_id=279)
    assert model.generate(**batch, generation_config=own).shape == (2, 1)
    assert model.generate(**batch, max_new_tokens=1).shape == (2, 1)


@pytest.mark.parametrize("lora", [0, 2])
def test_settings_travel_with_the_checkpoint(lora: int, tmp_path: Path) -> None:
    model = make_model(make_config(use_llm_lora=lora))
    model.generation_config.max_new_tokens = 3
    model.generation_config.repetition_penalty = 1.5
    model.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(tmp_path)
    assert (tmp_path / "generation_config.json").is_file()
    for _ in range(2):  # the second load in a process is like the first
        again = InternVLChatModel.from_pretrained(tmp_path)
        assert again.generation_config.repetition_penalty == 1.5
        assert again.generation_config.eos_token_id == [2, 7]
        again.img_context_token_id = CONTEXT_ID
        assert again.generate(**prompt(again)).shape[1] <= 3
    given = GenerationConfig(max_new_tokens=1)
    again = InternVLChatModel.from_pretrained(tmp_path, generation_config=given)
    assert again.generation_config.max_new_tokens == 1
    os.remove(tmp_path / "generation_config.json")
    again = InternVLChatModel.from_pretrained(tmp_path)
    assert again.generation_config.repetition_penalty is None
    # transformers looks at the top of config.json; these are the language model's
    assert (again.generation_config.bos_token_id, again.generation_config.eos_token_id) == (1, 2)


def test_settings_without_an_end_take_the_language_models(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 6}')
    again = InternVLChatModel.from_pretrained(tmp_path)
    assert again.generation_config.max_new_tokens == 6
    assert again.generation_config.eos_token_id == 2


def test_pefts_class_for_causal_lms_takes_it() -> None:
    """Its prompt tuning, too: the virtual tokens reach both forward and generate, images stay."""
    model = make_model()
    batch = prompt(model)
    with torch.no_grad():
        plain = model(**batch).logits[:, -1]
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    wrapped = get_peft_model(model, settings).eval()
    assert isinstance(wrapped, PeftModelForCausalLM)
    with torch.no_grad():
        expected = wrapped(**batch).logits[:, -1]
        other = wrapped(**{**batch, "pixel_values": batch["pixel_values"] + 1}).logits[:, -1]
    assert not torch.allclose(expected, plain, atol=1e-3)
    assert not torch.allclose(expected, other, atol=1e-3)
    output = wrapped.generate(
        **batch, **GREEDY, return_dict_in_generate=True, output_logits=True, use_cache=True
    )
    torch.testing.assert_close(output.logits[0], expected, rtol=1e-4, atol=1e-4)
    assert output.sequences.shape == (2, 4)  # without the prompt, as ever
    assert torch.equal(wrapped.generate(**batch, **GREEDY), output.sequences)
    with wrapped.disable_adapter():
        found = wrapped.generate(**batch, **GREEDY)
    assert torch.equal(found, through_forward(model, batch, 4))


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_wrapper_that_prepares_the_inputs_is_asked(use_cache: bool) -> None:
    model = make_model()
    batch = prompt(model)
    expected = model.generate(**batch, **GREEDY)
    steps: list[set[str]] = []
    own = model.prepare_inputs_for_generation

    def prepare(*args: Any, **kwargs: Any) -> Any:
        inputs = own(*args, **kwargs)
        steps.append({name for name, value in inputs.items() if value is not None})
        return inputs

    model.prepare_inputs_for_generation = prepare  # type: ignore[method-assign]
    features = model.extract_feature(batch["pixel_values"])
    found = model.generate(**batch, **GREEDY, use_cache=use_cache)
    assert torch.equal(found, expected)
    # The images come with the prompt; without a cache that is every time.
    assert ["pixel_values" in names for names in steps] == [True, *[not use_cache] * 3]
    batch["visual_features"] = features
    del batch["pixel_values"]
    assert torch.equal(model.generate(**batch, **GREEDY), expected)


@pytest.mark.parametrize("where", ["call", "config", "model"])
@pytest.mark.parametrize("name", ["assistant_model", "prompt_lookup_num_tokens"])
def test_assisted_generation_is_refused(name: str, where: str) -> None:
    model = make_model()
    value: Any = make_model().language_model if name == "assistant_model" else 3
    kwargs: dict[str, Any] = {**prompt(model), **GREEDY}
    if where == "call" or name == "assistant_model":
        kwargs[name] = value
    elif where == "config":
        kwargs["generation_config"] = GenerationConfig(**{name: value})
    else:
        setattr(model.generation_config, name, value)
    with pytest.raises(ValueError, match=f"{name}: assisted generation.*not supported"):
        model.generate(**kwargs)


def test_text_comes_in_one_form() -> None:
    model = make_model()
    batch = prompt(model)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    for text in ({}, {"input_ids": batch["input_ids"], "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="input_ids or inputs_embeds, and one of them only"):
            model.generate(batch["pixel_values"], **text)
