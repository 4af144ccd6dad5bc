"""PEFT's adapters on the whole model, by the properties that PEFT asks of any causal LM.

Every kind has to change the answers, be switched off, saved and loaded, train (with checkpointing
of either sort, in both towers), merge and come apart again, and stand beside a second one; the
loss without logits has to be that of the logits under each. The everyday kinds are in every run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn

from internvl_chat import InternVLChatModel
from tests.support.models import CONTEXT_ID, make_batch, make_config, make_model

BOTH_TOWERS = ["qkv", "q_proj", "v_proj"]

GREEDY: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": 279}


def lora(**kwargs: Any) -> Any:
    settings = {"target_modules": BOTH_TOWERS, "init_lora_weights": False, **kwargs}
    return peft.LoraConfig(**settings)


def ia3() -> Any:
    return peft.IA3Config(
        target_modules=["qkv", "k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        init_ia3_weights=False,
    )


EVERYDAY: dict[str, Callable[[], Any]] = {
    "lora": lora,
    "lora_of_the_head": lambda: lora(target_modules=["lm_head", "embed_tokens", "q_proj"]),
    "lora_and_whole_modules": lambda: lora(modules_to_save=["mlp1", "lm_head"]),
    "dora": lambda: lora(use_dora=True),
    "ia3": ia3,
    "prompt_tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    "prefix_tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "lora_of_all": lambda: lora(target_modules="all-linear"),
    "rslora": lambda: lora(use_rslora=True),
    "tokens": lambda: lora(trainable_token_indices=[1, 2]),
    "loha": lambda: peft.LoHaConfig(target_modules=BOTH_TOWERS, init_weights=False),
    "lokr": lambda: peft.LoKrConfig(target_modules=BOTH_TOWERS, init_weights=False),
    "vera": lambda: peft.VeraConfig(target_modules=["q_proj"], init_weights=False),
    "oft": lambda: peft.OFTConfig(
        target_modules=["q_proj", "qkv"], oft_block_size=4, init_weights=False
    ),
    "boft": lambda: peft.BOFTConfig(
        target_modules=["q_proj", "qkv"], boft_block_size=4, init_weights=False
    ),
    "p_tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16),
}
KINDS = [
    *EVERYDAY,
    *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS),
]
LAYERED = [kind for kind in KINDS if "tuning" not in str(kind)]


def settings_of(kind: str, causal: bool = True) -> Any:
    settings = {**EVERYDAY, **OTHERS}[kind]()
    if causal:
        settings.task_type = "CAUSAL_LM"
    return settings


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_model(make_config(llm={"hidden_size": 32})).save_pretrained(folder)
    return folder


def load(base: Path) -> InternVLChatModel:
    model = InternVLChatModel.from_pretrained(base)
    model.img_context_token_id = CONTEXT_ID
    return model


def wrap(base: Path, kind: str, causal: bool = True) -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(load(base), settings_of(kind, causal)).eval()  # type: ignore[return-value]


def prompt(model: Any) -> dict[str, Tensor]:
    batch = make_batch(4)
    del batch["labels"]
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def last_logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits[:, -1]


def first_scores(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The logits behind the first token that ``generate`` writes."""
    output = model.generate(**batch, **GREEDY, return_dict_in_generate=True, output_logits=True)
    assert output.sequences.shape == (2, 3)
    return output.logits[0]


def assert_close(found: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=atol)


def is_close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_it_changes_the_answers_and_can_be_switched_off(kind: str, base: Path) -> None:
    plain, wrapped = load(base), wrap(base, kind)
    batch = prompt(plain)
    before, after = last_logits(plain, batch), last_logits(wrapped, batch)
    assert not is_close(after, before)
    assert_close(first_scores(wrapped, batch), after)
    other = {**batch, "pixel_values": batch["pixel_values"] + 1}
    assert not is_close(last_logits(wrapped, other), after), "the images were left out"
    with wrapped.disable_adapter():
        assert_close(last_logits(wrapped, batch), before)
        assert_close(first_scores(wrapped, batch), before)
    assert_close(last_logits(wrapped, batch), after)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [True, False])
def test_saved_and_loaded(kind: str, causal: bool, base: Path, tmp_path: Path) -> None:
    if not causal and "tuning" in kind:
        pytest.skip("prompt learning is of a task")
    wrapped = wrap(base, kind, causal)
    batch = prompt(wrapped)
    expected = last_logits(wrapped, batch)
    wrapped.save_pretrained(tmp_path / "adapter")
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert files == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    values = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == str(base)
    again = PeftModel.from_pretrained(load(base), str(tmp_path / "adapter")).eval()
    assert_close(last_logits(again, batch), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_trains_with_and_without_logits(kind: str, base: Path) -> None:
    wrapped = wrap(base, kind).train()
    for module in wrapped.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = make_batch(4)
    found: list[tuple[float, dict[str, Tensor]]] = []
    for return_logits in (True, False):
        wrapped.zero_grad()
        loss = wrapped(**batch, return_logits=return_logits).loss
        loss.backward()
        trained = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
        found.append((loss.item(), {n: p.grad.clone() for n, p in trained.items()}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-3, atol=1e-5)
    assert any(gradient.abs().max() > 0 for gradient in found[0][1].values())


@pytest.mark.parametrize("kind", LAYERED)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_leaves_no_layer_without_gradient(
    kind: str, use_reentrant: bool, base: Path
) -> None:
    """In the vision tower, too, whose inputs need no gradient of their own."""
    wrapped = wrap(base, kind).train()
    wrapped.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    wrapped.enable_input_require_grads()
    wrapped(**make_batch(4)).loss.backward()
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    towers = {name.split(".")[2] for name, p in trained.items() if p.grad.abs().max() > 0}
    assert towers >= {"language_model", "vision_model"} or kind in ("lora_of_the_head", "vera")


@pytest.mark.parametrize("kind", LAYERED)
def test_merges_and_comes_apart(kind: str, base: Path, tmp_path: Path) -> None:
    wrapped: Any = wrap(base, kind)
    batch = prompt(wrapped)
    expected = last_logits(wrapped, batch)
    wrapped.merge_adapter()
    assert_close(last_logits(wrapped, batch), expected, atol=2e-3)
    wrapped.unmerge_adapter()
    assert_close(last_logits(wrapped, batch), expected, atol=2e-3)
    merged = wrapped.merge_and_unload()
    assert type(merged) is InternVLChatModel
    assert_close(last_logits(merged, batch), expected, atol=2e-3)
    assert set(merged.state_dict()) == set(load(base).state_dict())
    merged.save_pretrained(tmp_path / "merged")
    assert_close(last_logits(load(tmp_path / "merged"), batch), expected, atol=2e-3)


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "prompt_tuning"])
def test_two_of_a_kind(kind: str, base: Path) -> None:
    wrapped = wrap(base, kind)
    batch = prompt(wrapped)
    first = last_logits(wrapped, batch)
    torch.manual_seed(2)
    wrapped.add_adapter("second", settings_of(kind))
    assert_close(last_logits(wrapped, batch), first)
    wrapped.set_adapter("second")
    wrapped.eval()
    second = last_logits(wrapped, batch)
    assert not is_close(second, first)
    wrapped.set_adapter("default")
    assert_close(last_logits(wrapped, batch), first)
    wrapped.delete_adapter("second")
    assert_close(last_logits(wrapped, batch), first)


def test_rows_of_one_batch_with_adapters_of_their_own(base: Path) -> None:
    wrapped = wrap(base, "lora")
    batch = prompt(wrapped)
    with torch.no_grad():
        mixed = wrapped(**batch, adapter_names=["__base__", "default"]).logits[:, -1]
    assert_close(mixed[1], last_logits(wrapped, batch)[1])
    with wrapped.disable_adapter():
        # The images' features are of a batch of its own: the second row's tile is the adapter's.
        assert_close(mixed[0], last_logits(wrapped, batch)[0])


def test_prepared_for_training_in_few_bits(base: Path) -> None:
    model = prepare_model_for_kbit_training(load(base))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    wrapped = get_peft_model(model, settings_of("lora")).train()  # type: ignore[arg-type]
    wrapped(**make_batch(4)).loss.backward()
    missing = [n for n, p in wrapped.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_prompt_tuning_finds_the_token_table_whatever_shapes_there_are(base: Path) -> None:
    """PEFT guesses by shape, in the first part, which is the vision tower: 96 rows, as its qkv."""
    model = make_model(make_config(llm={"vocab_size": 96}))
    wrapped = get_peft_model(model, settings_of("prompt_tuning"))
    assert wrapped.word_embeddings is model.get_input_embeddings()
    wrapped(input_ids=torch.tensor([[1, 2, 3]]))
