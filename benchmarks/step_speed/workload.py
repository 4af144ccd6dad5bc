"""The data and the model that all systems train: files on disk, the same for each.

37.14 M parameters: InternViT 8 x 320 at 224/14 (64 image tokens), Llama 6 x 512, vocabulary 8192.
Samples hold one 320x240 JPEG and a question with an answer; the text is log-normal in length,
clipped to 20-400 tokens, and about 46 % of all tokens are supervised.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY_SIZE = 8192
NUM_IMAGE_TOKEN = 64
IMAGE_SIZE = 224
SYSTEM_MESSAGE = "You are a helpful assistant."
MAX_PACKED_TOKENS = 1024
MICRO_BATCH_SIZE = 4
"""Rows per step of the padded systems; a pack of 1024 tokens holds about as many."""

LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.0
MAX_GRAD_NORM = 1.0
BETAS = (0.9, 0.999)
SEED = 0
"""Of the trainer's order of samples, which the bare loop's batches follow."""

VISION: dict[str, Any] = {
    "hidden_size": 320,
    "num_hidden_layers": 8,
    "num_attention_heads": 5,
    "intermediate_size": 1280,
    "image_size": IMAGE_SIZE,
    "patch_size": 14,
    "qk_normalization": True,
    "qkv_bias": False,
    "norm_type": "rms_norm",
    "layer_norm_eps": 1e-6,
}
LLM: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>")
ADDED_PAIRS = ("<ref>", "</ref>", "<box>", "</box>")


@dataclass(frozen=True)
class Workload:
    """Where the parts of the workload lie."""

    root: Path

    @property
    def model_dir(self) -> Path:
        """Our checkpoint, tokenizer included."""
        return self.root / "model"

    @property
    def meta_path(self) -> Path:
        """Meta JSON of the one dataset."""
        return self.root / "meta.json"

    @property
    def annotation_path(self) -> Path:
        """JSONL records."""
        return self.root / "train.jsonl"

    def records(self) -> list[dict[str, Any]]:
        """All records."""
        return [json.loads(line) for line in self.annotation_path.read_text("utf-8").splitlines()]


def make_workload(root: Path, *, num_samples: int, seed: int) -> Workload:
    """Write tokenizer, model, images and records under ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    workload = Workload(root)
    rng = np.random.default_rng(seed)
    lexicon = _lexicon(rng, 20_000)
    tokenizer = _train_tokenizer(lexicon, rng)
    _write_model(workload, tokenizer, seed)
    _write_records(workload, num_samples, rng, lexicon, tokenizer)
    _write_meta(workload, num_samples)
    return workload


def _write_model(workload: Workload, tokenizer: Tokenizer, seed: int) -> None:
    """A model of random weights, with its tokenizer.

    Raises:
        ValueError: the tokenizer has not VOCABULARY_SIZE tokens.
    """
    import torch
    from transformers import PreTrainedTokenizerFast

    from internvl_chat import InternVLChatConfig, InternVLChatModel

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=CHATML[1],
        eos_token=CHATML[2],
        pad_token=CHATML[0],
        unk_token=CHATML[0],
        additional_special_tokens=[*ADDED, *ADDED_PAIRS],
        model_max_length=2048,
    )
    if len(wrapped) != VOCABULARY_SIZE:
        raise ValueError(f"tokenizer has {len(wrapped)} tokens, want {VOCABULARY_SIZE}")
    torch.manual_seed(seed)
    config = InternVLChatConfig(
        vision_config=VISION,
        llm_config=LLM,
        force_image_size=IMAGE_SIZE,
        downsample_ratio=0.5,
        template="Hermes-2",
        ps_version="v2",
    )
    InternVLChatModel(config).save_pretrained(workload.model_dir)
    wrapped.save_pretrained(workload.model_dir)


def _write_records(
    workload: Workload,
    num_samples: int,
    rng: np.random.Generator,
    lexicon: list[str],
    tokenizer: Tokenizer,
) -> None:
    """The images and a record about each."""
    (workload.root / "images").mkdir(exist_ok=True)
    with workload.annotation_path.open("w", encoding="utf-8") as file:
        for index in range(num_samples):
            name = f"images/{index:04d}.jpg"
            (workload.root / name).write_bytes(_photo(rng))
            question, answer = _question_and_answer(rng, lexicon, tokenizer)
            record = {
                "id": index,
                "image": name,
                "width": 320,
                "height": 240,
                "system": SYSTEM_MESSAGE,
                "conversations": [
                    {"from": "human", "value": f"<image>\n{question}"},
                    {"from": "gpt", "value": answer},
                ],
            }
            file.write(json.dumps(record) + "\n")


def _write_meta(workload: Workload, num_samples: int) -> None:
    meta = {
        "speed": {
            "root": str(workload.root),
            "annotation": str(workload.annotation_path),
            "data_augment": False,
            "repeat_time": 1,
            "length": num_samples,
        }
    }
    workload.meta_path.write_text(json.dumps(meta, indent=1), "utf-8")


def _lexicon(rng: np.random.Generator, size: int) -> list[str]:
    """Pronounceable words, most of two or three syllables."""
    onsets = ["b", "br", "c", "ch", "d", "f", "g", "gl", "h", "k", "l", "m", "n", "p", "pr", "r"]
    onsets += ["s", "st", "t", "tr", "v", "w"]
    vowels, codas = ["a", "e", "i", "o", "u", "ea", "ou"], ["", "n", "r", "s", "t", "l", "nd", "ck"]
    words: dict[str, None] = {}
    while len(words) < size:
        syllables = int(rng.choice([1, 2, 2, 3, 3, 4]))
        parts = [
            rng.choice(onsets) + rng.choice(vowels) + rng.choice(codas) for _ in range(syllables)
        ]
        words["".join(parts)] = None
    return list(words)


def _draw(rng: np.random.Generator, lexicon: list[str], number: int) -> list[str]:
    """Words with a Zipf-like frequency."""
    ranks = (len(lexicon) ** rng.random(number)).astype(int) - 1
    return [lexicon[rank] for rank in ranks]


def _train_tokenizer(lexicon: list[str], rng: np.random.Generator) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[*CHATML, *ADDED, *ADDED_PAIRS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(_draw(rng, lexicon, 400_000))], trainer)
    return tokenizer


def _question_and_answer(
    rng: np.random.Generator, lexicon: list[str], tokenizer: Tokenizer
) -> tuple[str, str]:
    """Text of a log-normal number of tokens; about two thirds of it is the answer."""
    total = int(np.clip(rng.lognormal(np.log(130), 0.6), 20, 400))
    answer_tokens = max(4, round(total * float(np.clip(rng.normal(0.72, 0.08), 0.3, 0.9))))
    question = _text(rng, lexicon, tokenizer, max(4, total - answer_tokens))
    return question + "?", _text(rng, lexicon, tokenizer, answer_tokens) + "."


def _text(
    rng: np.random.Generator, lexicon: list[str], tokenizer: Tokenizer, num_tokens: int
) -> str:
    words: list[str] = []
    have = 0
    while have < num_tokens:
        word = _draw(rng, lexicon, 1)[0]
        have += len(tokenizer.encode(" " + word).ids)
        words.append(word)
    return " ".join(words).capitalize()


def _photo(rng: np.random.Generator) -> bytes:
    """A 320x240 JPEG with structure at several scales."""
    canvas = np.zeros((240, 320, 3))
    for side in (4, 16, 64):
        noise = rng.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8)
        canvas += np.asarray(Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC))
    buffer = io.BytesIO()
    Image.fromarray((canvas / 3).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
