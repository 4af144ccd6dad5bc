"""A tree like a user's after the guide's downloads, with models of a few thousand weights.

``shell/`` and ``internvl_chat/`` are links to the repository; ``pretrained/`` holds checkpoints of
the published classes, file layout and key names at the paths the recipes expect, ``playground/``
the nine datasets with a few records each. The guide's commands then run in it as they stand.
"""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from internvl_chat.model.configuration_intern_vit import InternVisionConfig
from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.model.constants import SPECIAL_TOKENS
from internvl_chat.model.modeling_intern_vit import InternVisionModel
from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

ROOT = Path(__file__).resolve().parents[2]
VISION_WIDTH, LLM_WIDTH = 32, 32
RECORDS = 8
"""Per dataset; 9 x 8 = 72 samples."""

CHATML = ("<|im_start|>", "<|im_end|>")
TEXT = (
    "The quick brown fox jumps over the lazy dog.",
    "What is shown in the picture? A red square on a white ground.",
    "How many bars are there? There are three bars, the highest is 42.",
    "Please describe the image in detail and answer in one word: yes or no.",
    "system user assistant 0123456789",
)


def make_tree(root: Path) -> Path:
    """Lay everything out under ``root`` and return it."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("shell", "internvl_chat"):
        (root / name).symlink_to(ROOT / name, target_is_directory=True)
    make_checkpoints(root / "pretrained")
    make_playground(root)
    return root


def make_checkpoints(root: Path) -> None:
    """InternViT with the projector beside it, the Yi LLM, and V1-2-Plus made of all three."""
    torch.manual_seed(0)
    llm_path = root / "Nous-Hermes-2-Yi-34B"
    vocab_size = write_tokenizer(llm_path)
    llm = LlamaForCausalLM(llm_config(vocab_size))
    llm.to(torch.bfloat16).save_pretrained(llm_path)

    vision_path = root / "InternViT-6B-448px-V1-2"
    vision = InternVisionModel(vision_config())
    vision.to(torch.bfloat16).save_pretrained(vision_path)

    chat_path = root / "InternVL-Chat-V1-2-Plus"
    vocab_size = write_tokenizer(chat_path, added=SPECIAL_TOKENS)
    config = InternVLChatConfig(
        vision_config=vision_config(),
        llm_config=llm_config(vocab_size + len(SPECIAL_TOKENS)),
        force_image_size=448,
        template="Hermes-2",
        ps_version="v1",
    )
    chat = InternVLChatModel(config)
    chat.to(torch.bfloat16).save_pretrained(chat_path)

    mlp_path = vision_path / "mlp_projector" / "hermes_2_yi_34b.pth"
    mlp_path.parent.mkdir()
    torch.save(chat.mlp1.state_dict(), mlp_path)


def vision_config() -> InternVisionConfig:
    """InternViT-6B-448px-V1-2 with two layers of width 32: still 1024 patches an image."""
    return InternVisionConfig(
        image_size=448,
        patch_size=14,
        hidden_size=VISION_WIDTH,
        intermediate_size=2 * VISION_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        qk_normalization=True,
        norm_type="rms_norm",
    )


def llm_config(vocab_size: int) -> LlamaConfig:
    """Yi-34B's kind of Llama, two layers of width 32."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=LLM_WIDTH,
        intermediate_size=2 * LLM_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rope_theta=5e6,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=4,
        pad_token_id=0,
        tie_word_embeddings=False,
    )


def write_tokenizer(folder: Path, *, added: tuple[str, ...] = ()) -> int:
    """A sentencepiece tokenizer with the files and the settings of Nous-Hermes-2-Yi-34B.

    Args:
        folder: where ``tokenizer.model`` and its configuration go.
        added: special tokens on top, as in a published chat checkpoint.

    Returns:
        Pieces of the sentencepiece model, ``added`` not counted.
    """
    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        bos_piece="<|startoftext|>",
        eos_piece="<|endoftext|>",
        user_defined_symbols=list(CHATML),
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids = {piece: model.piece_to_id(piece) for piece in ("<unk>", "<|startoftext|>", *CHATML)}
    ids |= {token: model.get_piece_size() + i for i, token in enumerate(added)}
    decoder = {
        str(i): {"content": token, "special": True, "normalized": False, "lstrip": False}
        | {"rstrip": False, "single_word": False}
        for token, i in ids.items()
    }
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<unk>",
        "unk_token": "<unk>",
        "legacy": True,
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    if added:
        table = {token: ids[token] for token in added}
        (folder / "added_tokens.json").write_text(json.dumps(table, indent=2))
    return int(model.get_piece_size())


def make_playground(root: Path) -> None:
    """The files that ``shell/data/internvl_1_2_finetune.json`` names, with a few records each."""
    meta = json.loads((ROOT / "shell/data/internvl_1_2_finetune.json").read_text())
    for number, (name, entry) in enumerate(meta.items()):
        folder = root / entry["root"] / "images"
        folder.mkdir(parents=True, exist_ok=True)
        annotation = root / entry["annotation"]
        annotation.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for i in range(RECORDS):
            record: dict[str, object] = {"id": i, "conversations": conversation(name, i)}
            if i % 4 != 3:  # every fourth is text only
                image = f"{name}-{i}.png"
                Image.new("RGB", (40 + i, 30), (25 * number, 30 * i, 90)).save(folder / image)
                record["image"] = f"images/{image}"
            lines.append(json.dumps(record, ensure_ascii=False))
        annotation.write_text("\n".join(lines) + "\n", encoding="utf-8")


def conversation(name: str, i: int) -> list[dict[str, str]]:
    """One or two rounds; the tag only where there is an image."""
    tag = "<image>\n" if i % 4 != 3 else ""
    turns = [
        {"from": "human", "value": f"{tag}What is shown in the picture?"},
        {"from": "gpt", "value": f"A red square, number {i} of {name}."},
    ]
    if i % 2:
        turns += [
            {"from": "human", "value": "How many bars are there?"},
            {"from": "gpt", "value": f"There are {i} bars."},
        ]
    return turns
