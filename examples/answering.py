"""Ask a chat model about image files: one tile an image, greedy answers, a batch at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from internvl_chat.chat import load_image

MAX_NEW_TOKENS = 64


def load_pixels(paths: Sequence[str | Path], image_size: int) -> Tensor | None:
    """Images as one (N, 3, S, S) float tensor, one tile each; None without images.

    Raises:
        BadRecordError: a file is missing or no image.
    """
    if not paths:
        return None
    return torch.cat([load_image(str(path), image_size=image_size) for path in paths])


@torch.inference_mode()
def answer_batch(
    model: Any, tokenizer: Any, prompts: Sequence[str], images: Sequence[Sequence[str | Path]]
) -> list[str]:
    """Greedy answers to questions that are generated together.

    Args:
        model: an InternVLChatModel in eval mode.
        tokenizer: its tokenizer.
        prompts: human turns with their ``<image>`` tags.
        images: files of each prompt, in the order of its tags.
    """
    files = [path for paths in images for path in paths]
    pixels = load_pixels(files, model.config.image_size)
    return list(
        model.batch_chat(
            tokenizer,
            None if pixels is None else pixels.to(model.device, model.dtype),
            list(prompts),
            {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False},
            num_patches_list=[[1] * len(paths) for paths in images],
        )
    )
