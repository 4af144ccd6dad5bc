"""Make what the recipe stitches to the vision tower: a projector and a language model.

    python -m playground.demo.align_stage --vision VISION --out WORK/align

The tower is frozen. First come questions about each image token (``cells.py``), then the demo's
own records with a share of those. Writes ``tokenizer`` files and a Llama into ``OUT/llm`` and the
projector into ``OUT/mlp.safetensors``: the recipe's ``--llm_path`` and ``--mlp_path``.
"""

import argparse
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from internvl_chat.checkpoint.tokenizer import add_special_tokens
from internvl_chat.data.constants import (
    IGNORE_INDEX,
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
)
from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.model.conversation import get_conv_template
from internvl_chat.model.modeling_intern_vit import InternVisionModel
from internvl_chat.model.modeling_internvl_chat import InternVLChatModel
from internvl_chat.model.presets import load_preset
from playground.demo.cells import CellQuestion, cell_sample
from playground.demo.common import SIDE, stream
from playground.demo.muon import Muon
from playground.demo.records import FAMILIES, make_sample
from playground.demo.tokenizer import train_tokenizer
from playground.demo.vision_stage import normalize

logger = logging.getLogger(__name__)

CELLS_ONLY = 0.25
"""Share of the steps that ask about cells alone; afterwards a record in seven does."""
CELL_SHARE = 0.15
MUON_PEAK, ADAM_PEAK = 8e-3, 4e-3
PROJECTOR_GAIN = 0.3
"""Of the projector's last layer at the start. Its output then is of the size of the token
embeddings; a larger one turns into a constant that hides what differs between tokens."""
_FIRST_RECORD = 1_000_000  # away from the records that the recipe trains on


@dataclass(frozen=True)
class Item:
    """One record: ids and labels (T,), pixels (N, S, S, 3) uint8."""

    input_ids: Tensor
    labels: Tensor
    pixels: Tensor


class AlignmentRecords(Dataset[Item]):
    """Record ``i`` of the stage; a function of seed and index."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, num_image_token: int, seed: int, length: int
    ) -> None:
        self._tokenizer, self._seed, self._length = tokenizer, seed, length
        self._template = get_conv_template("Hermes-2")
        context = IMG_CONTEXT_TOKEN * num_image_token
        self._image = f"{IMG_START_TOKEN}{context}{IMG_END_TOKEN}\n"

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Item:
        rng = stream(self._seed, "align", index)
        if index < CELLS_ONLY * self._length or rng.random() < CELL_SHARE:
            image, questions = cell_sample(rng)
            return self._cell_item(image, questions)
        family = rng.choices(list(FAMILIES), [f.share for f in FAMILIES.values()])[0]
        sample = make_sample(self._seed + 1, family, "train", _FIRST_RECORD + index)
        turns = [(question.text, question.answer) for question in sample.questions]
        turns[0] = (self._image * len(sample.images) + turns[0][0], turns[0][1])
        rendered = self._template.render(turns)
        tokens = self._tokenizer(
            rendered.text, add_special_tokens=False, return_offsets_mapping=True
        )
        ids = torch.tensor(tokens["input_ids"])
        starts = torch.tensor([start for start, _ in tokens["offset_mapping"]])
        labels = torch.full_like(ids, IGNORE_INDEX)
        for span in rendered.answers:
            learnt = (starts >= span.start) & (starts < span.end)
            labels[learnt] = ids[learnt]
        return Item(ids, labels, _stack(sample.images))

    def _cell_item(self, image: Image.Image, questions: list[CellQuestion]) -> Item:
        """Answers are given by piece, one a cell: text would merge and split them."""
        end = [self._piece(self._template.stop_str)]
        open_turn = "".join((self._template.roles[0], self._template.question_sep))
        open_turn_length = len(open_turn) + len(self._template.roles[1])
        system_length = len(self._template.render([("", None)]).text) - open_turn_length
        ids: list[int] = []
        labels: list[int] = []
        for number, question in enumerate(questions):
            text = self._image + question.text if number == 0 else question.text
            prompt = self._template.render([(text, None)]).text[system_length if number else 0 :]
            asked = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
            answer = [self._piece(word) for word in question.answer] + end
            ids += asked + answer
            labels += [IGNORE_INDEX] * len(asked) + answer
        return Item(torch.tensor(ids), torch.tensor(labels), _stack((image,)))

    def _piece(self, word: str) -> int:
        bare = len(word) == 1 or word.startswith("<")
        piece = word if bare else f"\N{LOWER ONE EIGHTH BLOCK}{word}"
        return int(self._tokenizer.convert_tokens_to_ids(piece))


def _stack(images: tuple[Image.Image, ...]) -> Tensor:
    if not images:
        return torch.zeros(0, SIDE, SIDE, 3, dtype=torch.uint8)
    return torch.from_numpy(np.stack([np.array(image) for image in images]))


def collate(items: list[Item]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids and labels (B, T), and all pixels."""
    ids = nn.utils.rnn.pad_sequence([item.input_ids for item in items], batch_first=True)
    labels = nn.utils.rnn.pad_sequence(
        [item.labels for item in items], batch_first=True, padding_value=IGNORE_INDEX
    )
    return ids, labels, torch.cat([item.pixels for item in items])


def fresh_model(preset: str, vision: Path, tokenizer: PreTrainedTokenizerBase) -> InternVLChatModel:
    """The chat model around a trained tower, its other weights scaled by their fan-in."""
    config = load_preset(preset)
    if not isinstance(config, InternVLChatConfig):
        raise ValueError(f"preset {preset!r} is no chat model")
    llm = config.llm_config
    llm.vocab_size = len(tokenizer)
    llm.bos_token_id = tokenizer.convert_tokens_to_ids("<|im_start|>")
    llm.eos_token_id, llm.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model = InternVLChatModel(config, vision_model=InternVisionModel.from_pretrained(vision))
    model.img_context_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
    with torch.no_grad():
        for module in [*model.language_model.model.layers.modules(), *model.mlp1]:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        model.mlp1[-1].weight.mul_(PROJECTOR_GAIN)
    model.vision_model.requires_grad_(False)
    return model


def make_optimizers(model: InternVLChatModel) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices of blocks and projector, AdamW for the rest, with peak rates."""
    matrices = [*model.language_model.model.layers.parameters(), *model.mlp1.parameters()]
    matrices = [p for p in matrices if p.ndim == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    adamw = torch.optim.AdamW(others, lr=ADAM_PEAK, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return [(Muon(matrices, lr=MUON_PEAK, weight_decay=0.02), MUON_PEAK), (adamw, ADAM_PEAK)]


def rate(step: int, steps: int, warmup: int = 40) -> float:
    """Share of the peak rates: linear warm-up, then half a cosine to a twentieth."""
    return min(1.0, (step + 1) / warmup) * max(0.05, 0.5 * (1 + math.cos(math.pi * step / steps)))


def align(
    model: InternVLChatModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    steps: int,
    batch_size: int = 16,
    log_every: int = 20,
) -> None:
    """Train projector and language model in place; a function of the arguments.

    Raises:
        FloatingPointError: the loss is infinite or no number.
    """
    records = AlignmentRecords(tokenizer, model.num_image_token, seed, steps * batch_size)
    loader = DataLoader(records, batch_size=batch_size, num_workers=1, collate_fn=collate)
    optimizers = make_optimizers(model)
    model.train()
    start, smooth = time.monotonic(), 0.0
    for step, (ids, labels, pixels) in enumerate(loader):
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate(step, steps)
        flags = torch.ones(len(pixels), dtype=torch.long)
        loss = model(
            pixel_values=normalize(pixels) if len(pixels) else None,
            input_ids=ids,
            labels=labels,
            image_flags=flags if len(pixels) else None,
        ).loss
        if not loss.isfinite():
            raise FloatingPointError(f"step {step + 1}: the loss is {loss.item()}")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        smooth = loss.item() if step == 0 else 0.9 * smooth + 0.1 * loss.item()
        if (step + 1) % log_every == 0:
            seconds = time.monotonic() - start
            logger.info("step %d, %.0f s, loss %.3f", step + 1, seconds, smooth)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="tiny", help="shape of the chat model")
    parser.add_argument("--vision", type=Path, required=True, help="the trained tower")
    parser.add_argument("--out", type=Path, required=True, help="gets llm/ and mlp.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(args.out / "llm", seed=args.seed)
    add_special_tokens(tokenizer)
    tokenizer.save_pretrained(args.out / "llm")
    model = fresh_model(args.preset, args.vision, tokenizer)
    align(model, tokenizer, seed=args.seed, steps=args.steps)
    model.language_model.save_pretrained(args.out / "llm")
    projector = {f"mlp1.{name}": value for name, value in model.mlp1.state_dict().items()}
    save_file(projector, args.out / "mlp.safetensors")


if __name__ == "__main__":
    main()
