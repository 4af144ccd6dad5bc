"""The loss of a call that asks for no logits is the loss of the logits, whatever the model is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from internvl_chat import InternVLChatModel
from internvl_chat.model.vocabulary_loss import logits_are_the_heads
from tests.support.models import CONTEXT_ID, make_batch, make_config, make_model

Change = Callable[[InternVLChatModel], Any]


def loss_and_logits(model: Any, batch: dict[str, Tensor], **kwargs: Any) -> tuple[Tensor, Any]:
    output = model(**batch, **kwargs)
    return output.loss, output.logits


def assert_same_loss(model: Any, batch: dict[str, Tensor], changed: Tensor | None = None) -> None:
    """Without logits as with them; and not what ``changed`` was before the model was changed."""
    with torch.no_grad():
        expected, logits = loss_and_logits(model, batch)
        found, none = loss_and_logits(model, batch, return_logits=False)
    assert logits is not None
    assert none is None
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert changed is None or not torch.allclose(found, changed, rtol=1e-3)


def plain_loss(model: InternVLChatModel, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).loss


def test_the_fast_way_is_taken_where_it_may_be() -> None:
    """A language model alone, and in the wrapper of LoRA."""
    model = make_model()
    assert logits_are_the_heads(model.language_model)
    model.wrap_llm_lora(r=2)
    assert logits_are_the_heads(model.language_model)
    asked: list[Any] = []
    decoder = model.get_decoder()
    decoder.register_forward_hook(lambda *_: asked.append("decoder"))
    model._bare_language_model().lm_head.register_forward_hook(lambda *_: asked.append("head"))
    assert_same_loss(model, make_batch(model.num_image_token))


# ---------------------------------------------------------------- parts kept elsewhere


@pytest.mark.parametrize(
    "elsewhere",
    [
        ["language_model"],
        ["language_model.lm_head"],
        ["language_model.model"],
        ["language_model.model.norm", "language_model.lm_head"],
        ["language_model.model.layers.1"],
        ["vision_model", "mlp1"],
    ],
    ids=", ".join,
)
@pytest.mark.parametrize("tied", [False, True])
def test_parts_on_disk(elsewhere: list[str], tied: bool, tmp_path: Path) -> None:
    """The offloaded weights are on the meta device: read there, they are memory never written."""
    model = make_model(make_config(llm={"tie_word_embeddings": tied}))
    if tied:
        model.tie_weights()
    batch = make_batch(model.num_image_token)
    expected = plain_loss(model, batch)
    parts = {"vision_model", "mlp1", "language_model"}
    if not any(name == "language_model" for name in elsewhere):
        inner = "language_model.model."
        parts = {"vision_model", "mlp1", "language_model.lm_head"}
        parts |= {inner + name for name in ("embed_tokens", "layers.0", "layers.1", "norm")}
        parts.add(inner + "rotary_emb")
    places: dict[str, Any] = {
        part: "disk" if any(part.startswith(name) for name in elsewhere) else "cpu"
        for part in sorted(parts)
    }
    dispatched = dispatch_model(
        model, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True
    )
    assert tied or any(parameter.is_meta for parameter in dispatched.parameters())
    for _ in range(2):
        with torch.no_grad():
            found = dispatched(**batch, return_logits=False).loss
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_all_of_it_offloaded_to_the_cpu() -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    expected = plain_loss(model, batch)
    cpu_offload(model, execution_device=torch.device("cpu"))
    torch.testing.assert_close(
        model(**batch, return_logits=False).loss, expected, rtol=1e-5, atol=1e-6
    )


# ---------------------------------------------------------------- more than decoder and head


def doubled_by_a_hook(model: InternVLChatModel) -> None:
    def double(_: nn.Module, __: Any, output: Any) -> Any:
        output.logits = output.logits * 2
        return output

    model.language_model.register_forward_hook(double)


def moved_before_by_a_hook(model: InternVLChatModel) -> None:
    def move(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "inputs_embeds": kwargs["inputs_embeds"] + 1}

    model.language_model.register_forward_pre_hook(move, with_kwargs=True)


def with_virtual_tokens(model: InternVLChatModel) -> None:
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model.language_model = get_peft_model(model.language_model, settings)


def with_a_lora_head(model: InternVLChatModel) -> None:
    settings = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["lm_head"], init_lora_weights=False
    )
    model.language_model = get_peft_model(model.language_model, settings)


def with_a_trained_copy_of_the_head(model: InternVLChatModel) -> None:
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=["q_proj"],
        modules_to_save=["lm_head"],
        init_lora_weights=False,
    )
    model.language_model = get_peft_model(model.language_model, settings)


@pytest.mark.parametrize(
    "change",
    [doubled_by_a_hook, moved_before_by_a_hook, with_a_lora_head, with_a_trained_copy_of_the_head],
    ids=lambda change: change.__name__,
)
def test_what_hangs_on_the_language_model_counts(change: Change) -> None:
    model = make_model()
    batch = make_batch(model.num_image_token)
    before = plain_loss(model, batch)
    change(model)
    assert_same_loss(model, batch, before)


def test_virtual_tokens_of_the_language_model_are_not_left_out() -> None:
    """They make it longer than its labels: the plain call says so, and this one must."""
    model = make_model()
    with_virtual_tokens(model)
    assert not logits_are_the_heads(model.language_model)


def test_the_adapter_of_each_row_is_asked_for() -> None:
    model = make_model()
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    model.language_model = get_peft_model(model.language_model, settings)
    model.eval()
    batch = make_batch(model.num_image_token)
    names = ["__base__", "__base__"]
    with torch.no_grad():
        expected = model(**batch, adapter_names=names).loss
        found = model(**batch, adapter_names=names, return_logits=False).loss
        assert not torch.allclose(model(**batch).loss, expected, rtol=1e-3)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "llm",
    [
        {"model_type": "cohere", "logit_scale": 0.0625},
        {"model_type": "gemma2", "final_logit_softcapping": 2.0, "head_dim": 8},
        {"model_type": "granite", "logits_scaling": 8.0},
        {"model_type": "gpt_neox"},
        {"model_type": "phi", "partial_rotary_factor": 1.0},
        {"model_type": "opt", "ffn_dim": 40, "word_embed_proj_dim": 24},
        {"model_type": "bert", "is_decoder": True},
        {"model_type": "roberta", "is_decoder": True},
        {"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ],
    ids=lambda llm: str(llm["model_type"]),
)
def test_other_language_models(llm: dict[str, Any]) -> None:
    """Scaled and capped logits, a bias, and heads that are more than their last layer."""
    extra = {} if llm["model_type"] == "gpt2" else {"pad_token_id": 0}
    model = make_model(make_config(llm={**llm, **extra}))
    batch = make_batch(model.num_image_token)
    assert model.img_context_token_id == CONTEXT_ID
    assert_same_loss(model, batch)
    rows = model.vocabulary_loss.row_losses
    assert rows is not None
    torch.testing.assert_close(rows.mean(), plain_loss(model, batch))
