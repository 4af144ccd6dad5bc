"""The two parts' own trainings: what they start from, what they are asked, that they learn."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from examples.tiny_model import vision_stage
from examples.tiny_model.label_embeddings import NUM_TOKENS, LabelEmbeddings
from examples.tiny_model.language_stage import (
    Conversations,
    Item,
    SortedPool,
    embeddings_by_token,
    fresh_llm,
    rate,
    train,
)
from examples.tiny_model.muon import orthogonalize
from examples.tiny_model.projector import build_projector
from examples.tiny_model.records import FAMILIES
from examples.tiny_model.tokenizer import train_tokenizer
from internvl_chat.checkpoint.tokenizer import add_special_tokens
from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.model.constants import IGNORE_INDEX, IMG_CONTEXT_TOKEN
from internvl_chat.model.modeling_internvl_chat import InternVLChatModel
from internvl_chat.model.presets import load_preset


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    made = train_tokenizer(tmp_path_factory.mktemp("tokenizer"), seed=0)
    add_special_tokens(made)
    return made


def tiny() -> InternVLChatConfig:
    config = load_preset("tiny")
    assert isinstance(config, InternVLChatConfig)
    return config


def answers(item: Item) -> list[torch.Tensor]:
    """Positions of each supervised stretch."""
    supervised = (item.labels != IGNORE_INDEX).nonzero()[:, 0]
    breaks = (supervised.diff() > 1).nonzero()[:, 0] + 1
    return list(supervised.tensor_split(breaks.tolist()))


def test_conversations_are_of_all_families_and_every_answer_weighs_by_its_root(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    records = Conversations(tokenizer, seed=0, length=100)
    items = [records[i] for i in range(100)]
    assert {item.family for item in items} == set(FAMILIES)
    context = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
    for item in items:
        assert int((item.input_ids == context).sum()) == NUM_TOKENS * len(item.classes)
        assert len(item.classes) == len(item.edges)
        for stretch in answers(item):
            assert torch.equal(item.labels[stretch], item.input_ids[stretch])
            wanted = torch.full((len(stretch),), len(stretch) ** -0.5)
            torch.testing.assert_close(item.weights[stretch], wanted)
        assert not item.weights[item.labels == IGNORE_INDEX].any()


def test_a_record_is_a_function_of_seed_and_index(tokenizer: PreTrainedTokenizerBase) -> None:
    one, same, other = (Conversations(tokenizer, seed, 100)[50] for seed in (0, 0, 1))
    assert torch.equal(one.input_ids, same.input_ids)
    assert torch.equal(one.classes, same.classes)
    assert one.input_ids.tolist() != other.input_ids.tolist()


def test_a_pool_is_cut_into_batches_of_about_equal_length(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    records = Conversations(tokenizer, seed=0, length=100)
    items = [records[i] for i in range(8)]
    batches = SortedPool(4)(items)
    assert [batch.input_ids.shape[0] for batch in batches] == [4, 4]
    lengths = sorted(len(item.input_ids) for item in items)
    assert [batch.input_ids.shape[1] for batch in batches] == [lengths[3], lengths[7]]
    assert sum(len(b.classes) for b in batches) == sum(len(item.classes) for item in items)


def test_tokens_start_at_the_embeddings_of_the_labels_they_name(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    label_embeddings = LabelEmbeddings(256)
    codes = embeddings_by_token(tokenizer, label_embeddings)
    config = tiny()
    words = fresh_llm(config, tokenizer, label_embeddings).get_input_embeddings().weight.detach()

    def piece(text: str) -> int:
        (found,) = tokenizer(text, add_special_tokens=False)["input_ids"]
        return int(found)

    red, star = label_embeddings.vector("color", "red"), label_embeddings.vector("kind", "star")
    assert torch.equal(codes[piece("red")], red)
    cosine = torch.cosine_similarity
    assert cosine(words[piece("red")], red, dim=0) > 0.9
    assert abs(cosine(words[piece("red")], star, dim=0)) < 0.2
    # A number names counts and values, but no column; the places of letters are ordinals.
    three = codes[piece("3")]
    assert torch.dot(three, label_embeddings.vector("value", "3")) == pytest.approx(4, abs=1e-4)
    assert torch.dot(three, label_embeddings.vector("column", "3")) == pytest.approx(0, abs=1e-4)
    assert torch.dot(three, label_embeddings.vector("place", "3")) == pytest.approx(0, abs=1e-4)


def test_the_language_model_learns(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    label_embeddings = LabelEmbeddings(256)
    config = tiny()
    config.llm_config.num_hidden_layers = 1
    model = fresh_llm(config, tokenizer, label_embeddings)
    with caplog.at_level("INFO"):
        train(
            model, tokenizer, label_embeddings, seed=0, steps=60, batch_size=4, pool=1, log_every=10
        )
    reports = [r.getMessage() for r in caplog.records if r.getMessage().startswith("step")]
    losses = [
        sum(float(word) for word in report.split(": ")[1].split()[1::2]) for report in reports
    ]
    assert losses[-1] < 0.8 * losses[0]


def test_rates_rise_fall_and_end_at_nothing() -> None:
    rates = [rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 40)
    assert max(rates) == 1
    assert 0 < rates[-1] < 0.01


def test_the_vision_tower_learns_to_give_label_embeddings() -> None:
    config = tiny().vision_config
    config.num_hidden_layers = 1
    label_embeddings = LabelEmbeddings(256)
    batch = next(vision_stage.batches(1, "heldout", 8, 1, 0))
    pixels = vision_stage.normalize(batch["pixels"])
    losses = []
    for steps in (1, 25):
        plan = vision_stage.Schedule(steps=steps, batch_size=8, workers=0)
        model = vision_stage.pretrain_vision(config, 256, seed=0, plan=plan)
        with torch.no_grad():
            losses.append(vision_stage.label_loss(model(pixels), batch, label_embeddings).item())
    assert losses[1] < 0.7 * losses[0]


def test_the_loss_wants_the_label_embeddings_and_nothing_else() -> None:
    label_embeddings = LabelEmbeddings(256)
    batch = next(vision_stage.batches(0, "heldout", 64, 1, 0))
    right = label_embeddings.encode(batch["classes"], batch["edges"])
    best = vision_stage.label_loss(right, batch, label_embeddings)
    for wrong in (
        0.8 * right,
        right + 0.05 * torch.randn_like(right),
        right + label_embeddings.rest[0],
    ):
        assert vision_stage.label_loss(wrong, batch, label_embeddings) > best + 0.01
    scores = vision_stage.accuracies(right, batch, label_embeddings)
    assert scores.pop("waves") < 1e-5
    assert set(scores.values()) == {1.0}


def test_the_projector_is_the_chat_models() -> None:
    config = tiny()
    config.vision_config.num_hidden_layers = config.llm_config.num_hidden_layers = 1
    mlp1 = InternVLChatModel(config).mlp1.state_dict()
    built = build_projector(4 * config.vision_config.hidden_size, config.llm_config.hidden_size)
    assert {name: value.shape for name, value in built.state_dict().items()} == {
        name: value.shape for name, value in mlp1.items()
    }


def test_an_orthogonal_update_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((20, 30), (30, 20)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert 0.5 < values.min() < values.max() < 1.5
