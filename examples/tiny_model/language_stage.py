"""Pre-train the tiny language model on conversations about images that nobody has drawn.

    python -m examples.tiny_model.language_stage --out work_dirs/pretrain_tiny/llm

A real chat model is stitched from a language model that can talk already. This one is trained on
the conversations of ``records.py``, each image token being the sum of the embeddings of what it
would show (``label_embeddings.py``) with a little noise, as a vision tower gives it. Looking things
up, counting and spelling out are trained here, at a fraction of the price. Writes a Llama with its
tokenizer into ``OUT``.
"""

import argparse
import itertools
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from examples.tiny_model.common import stream
from examples.tiny_model.label_embeddings import GROUPS, NUM_TOKENS, LabelEmbeddings, label_image
from examples.tiny_model.muon import MuonWithAdamW
from examples.tiny_model.other_questions import ORDINALS
from examples.tiny_model.precision import has_bf16_products, matrix_precision
from examples.tiny_model.records import FAMILIES, make_sample
from examples.tiny_model.scene_questions import plural
from examples.tiny_model.tokenizer import train_tokenizer
from internvl_chat.checkpoint.tokenizer import add_special_tokens
from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.model.constants import (
    IGNORE_INDEX,
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
)
from internvl_chat.model.conversation import get_conv_template
from internvl_chat.model.modeling_internvl_chat import splice_image_features
from internvl_chat.model.presets import load_preset
from internvl_chat.model.vocabulary_loss import VocabularyLoss

logger = logging.getLogger(__name__)

MUON_PEAK, ADAM_PEAK = 1.6e-3, 2e-3
"""Highest rates. At two and at five times Muon's, looking up comes later."""
NOISE = 0.1
"""Standard deviation of the noise on each number of an image token's embedding."""
TOKEN_SIZE = 5.0
"""Length of a token embedding at the start."""
HEAD_GAIN = 0.06
"""Output embeddings at the start, relative to the input embeddings."""
_FIRST_RECORD = 1_000_000  # away from the records that the recipe trains on


@dataclass(frozen=True)
class Item:
    """One record: ids, labels and loss weights (T,); classes (N, K, G) and edges (N, K, 4)."""

    input_ids: Tensor
    labels: Tensor
    weights: Tensor
    classes: Tensor
    edges: Tensor
    family: str


class Conversations(Dataset[Item]):
    """Record ``i`` of the stage; a function of seed and index."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int, length: int) -> None:
        self._tokenizer, self._seed, self._length = tokenizer, seed, length
        self._template = get_conv_template("Hermes-2")
        self._image = f"{IMG_START_TOKEN}{IMG_CONTEXT_TOKEN * NUM_TOKENS}{IMG_END_TOKEN}\n"

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Item:
        rng = stream(self._seed, "language", index)
        family = rng.choices(list(FAMILIES), [f.share for f in FAMILIES.values()])[0]
        sample = make_sample(self._seed + 1, family, "train", _FIRST_RECORD + index)
        turns = [(question.text, question.answer) for question in sample.questions]
        turns[0] = (self._image * len(sample.specs) + turns[0][0], turns[0][1])
        rendered = self._template.render(turns)
        tokens = self._tokenizer(
            rendered.text, add_special_tokens=False, return_offsets_mapping=True
        )
        ids = torch.tensor(tokens["input_ids"])
        starts = torch.tensor([start for start, _ in tokens["offset_mapping"]])
        labels = torch.full_like(ids, IGNORE_INDEX)
        weights = torch.zeros(len(ids))
        for span in rendered.answers:
            supervised = (starts >= span.start) & (starts < span.end)
            labels[supervised] = ids[supervised]
            weights[supervised] = float(supervised.sum()) ** -0.5
        shown = [label_image(spec) for spec in sample.specs]
        classes = [torch.from_numpy(labels.classes) for labels in shown]
        edges = [torch.from_numpy(labels.edges) for labels in shown]
        return Item(
            ids,
            labels,
            weights,
            torch.stack(classes) if classes else torch.zeros(0, NUM_TOKENS, len(GROUPS)).long(),
            torch.stack(edges) if edges else torch.zeros(0, NUM_TOKENS, 4),
            family,
        )


@dataclass(frozen=True)
class Batch:
    """Right-padded ids, labels and loss weights (B, T), all images, the family of each row."""

    input_ids: Tensor
    labels: Tensor
    weights: Tensor
    classes: Tensor
    edges: Tensor
    families: tuple[str, ...]


def collate(items: list[Item]) -> Batch:
    """Pad the records of one step."""

    def pad(rows: list[Tensor], value: int) -> Tensor:
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    return Batch(
        input_ids=pad([item.input_ids for item in items], 0),
        labels=pad([item.labels for item in items], IGNORE_INDEX),
        weights=pad([item.weights for item in items], 0),
        classes=torch.cat([item.classes for item in items]),
        edges=torch.cat([item.edges for item in items]),
        families=tuple(item.family for item in items),
    )


@dataclass(frozen=True)
class SortedPool:
    """Collate function: a pool of records cut into batches of about equal length."""

    batch_size: int

    def __call__(self, items: list[Item]) -> list[Batch]:
        items = sorted(items, key=lambda item: len(item.input_ids))
        starts = range(0, len(items), self.batch_size)
        return [collate(items[start : start + self.batch_size]) for start in starts]


def embeddings_by_token(
    tokenizer: PreTrainedTokenizerBase, label_embeddings: LabelEmbeddings
) -> dict[int, Tensor]:
    """For each token that names labels, the sum of their embeddings: {token id: (D,)}.

    A word alone and behind a blank are two tokens; so are "star" and "stars".
    """
    found: dict[int, Tensor] = {}
    for group, labels in GROUPS.items():
        if group in ("row", "column"):  # never told by number
            continue
        words = ORDINALS if group in ("place", "order") else labels
        for word, label in zip(words, labels, strict=False):
            for spelling in (word, f"a {word}", plural(word), f"a {plural(word)}"):
                tokens = tokenizer(spelling, add_special_tokens=False)["input_ids"]
                tokens = tokens[1:] if spelling.startswith("a ") else tokens
                if len(tokens) == 1:
                    embedding = label_embeddings.vector(group, label)
                    found[tokens[0]] = found.get(tokens[0], 0) + embedding
    return found


def fresh_llm(
    config: InternVLChatConfig,
    tokenizer: PreTrainedTokenizerBase,
    label_embeddings: LabelEmbeddings,
) -> LlamaForCausalLM:
    """A Llama whose tokens, read and written, start at the embeddings of the labels they name.

    "Red" in a question and red in an image are thus alike from the first step, which is most of
    what looking things up needs.
    """
    llm: Any = config.llm_config
    llm.vocab_size = len(tokenizer)
    llm.bos_token_id = tokenizer.convert_tokens_to_ids("<|im_start|>")
    llm.eos_token_id, llm.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model = LlamaForCausalLM(llm)
    with torch.no_grad():
        for module in model.model.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        # Every block starts as the identity: what a token is stays readable in all of them.
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        table = model.model.embed_tokens.weight
        table.copy_(nn.functional.normalize(torch.randn_like(table), dim=1))
        for token, embedding in embeddings_by_token(tokenizer, label_embeddings).items():
            table[token] = 0.3 * table[token] + nn.functional.normalize(embedding, dim=0)
        table.copy_(TOKEN_SIZE * nn.functional.normalize(table, dim=1))
        model.lm_head.weight.copy_(HEAD_GAIN * table)
    return model


def rate(step: int, steps: int, warmup: int = 40) -> float:
    """Share of the highest rates: linear warm-up, then linear to zero."""
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    label_embeddings: LabelEmbeddings,
    *,
    seed: int,
    steps: int,
    batch_size: int = 16,
    pool: int = 4,
    log_every: int = 20,
) -> None:
    """Train in place; a function of the arguments.

    Raises:
        FloatingPointError: the loss is infinite or no number.
    """
    records = Conversations(tokenizer, seed, steps * batch_size)
    loader = DataLoader(
        records, batch_size=pool * batch_size, num_workers=1, collate_fn=SortedPool(batch_size)
    )
    image_token = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
    vocabulary_loss = VocabularyLoss()
    optimizer = MuonWithAdamW(
        model, model.model.layers.parameters(), muon_peak=MUON_PEAK, adam_peak=ADAM_PEAK
    )
    model.train()
    start = time.monotonic()
    smooth: dict[str, float] = {}
    for step, batch in enumerate(itertools.chain.from_iterable(loader)):
        image_embeds = label_embeddings.encode(batch.classes, batch.edges)
        image_embeds = image_embeds + NOISE * torch.randn_like(image_embeds)
        with matrix_precision():
            embeds = model.get_input_embeddings()(batch.input_ids)
            slots = (batch.input_ids == image_token).flatten().nonzero()[:, 0]
            embeds = splice_image_features(embeds, image_embeds, slots)
            hidden = model.model(inputs_embeds=embeds).last_hidden_state.float()
        supervised = batch.labels[:, 1:] != IGNORE_INDEX
        weights = batch.weights[:, 1:][supervised]
        loss = vocabulary_loss(
            hidden[:, :-1][supervised], batch.labels[:, 1:][supervised], model.lm_head, weights
        )
        loss = loss / weights.sum()
        if not loss.isfinite():
            raise FloatingPointError(f"step {step + 1}: the loss is {loss.item()}")
        loss.backward()
        optimizer.step(rate(step, steps))
        rows = supervised.nonzero()[:, 0]
        assert vocabulary_loss.row_losses is not None
        for family in set(batch.families):
            mine = torch.tensor([name == family for name in batch.families])[rows]
            value = vocabulary_loss.row_losses[mine].mean().item()
            smooth[family] = 0.95 * smooth.get(family, value) + 0.05 * value
        if (step + 1) % log_every == 0:
            report = " ".join(f"{family} {value:.3f}" for family, value in sorted(smooth.items()))
            logger.info("step %d, %.0f s: %s", step + 1, time.monotonic() - start, report)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="tiny", help="shape of the chat model")
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    config = load_preset(args.preset)
    if not isinstance(config, InternVLChatConfig):
        parser.error(f"--preset {args.preset} is no chat model")
    tokenizer = train_tokenizer(args.out, seed=args.seed)
    add_special_tokens(tokenizer)
    tokenizer.save_pretrained(args.out)
    llm: Any = config.llm_config
    label_embeddings = LabelEmbeddings(llm.hidden_size)
    model = fresh_llm(config, tokenizer, label_embeddings)
    if has_bf16_products():
        model.set_attn_implementation("eager")  # short rows: plain bf16 products beat the kernel
    train(model, tokenizer, label_embeddings, seed=args.seed, steps=args.steps)
    model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
