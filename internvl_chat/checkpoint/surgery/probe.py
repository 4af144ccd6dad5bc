"""The same question put to two models: do their logits agree?"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from internvl_chat.checkpoint.tensor_files import TensorSource, numel
from internvl_chat.errors import CheckpointError
from internvl_chat.model.chat import DEFAULT_TEMPLATE
from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.model.constants import (
    IMAGE_TAG,
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
)
from internvl_chat.model.conversation import get_conv_template
from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

LOGIT_TOLERANCE = 1e-5
"""Of the largest logit (or of 1, where that is smaller): fp32 sums in another order."""
_QUESTION = f"{IMAGE_TAG}\nWhat is in this image, and where?"


@dataclass(frozen=True)
class Probe:
    """One image of noise and a question about it."""

    pixel_values: Tensor
    """(1, 3, S, S) float32."""
    input_ids: Tensor
    """(1, T)."""
    image_token_id: int


def make_probe(config: InternVLChatConfig, tokenizer: Any) -> Probe:
    """The question in the checkpoint's template; the same for the same checkpoint."""
    size = config.image_size
    channels = config.vision_config.num_channels
    generator = torch.Generator().manual_seed(0)
    prompt = get_conv_template(config.template or DEFAULT_TEMPLATE).render([(_QUESTION, None)]).text
    tokens = IMG_CONTEXT_TOKEN * config.num_image_token
    prompt = prompt.replace(IMAGE_TAG, IMG_START_TOKEN + tokens + IMG_END_TOKEN)
    return Probe(
        torch.randn(1, channels, size, size, generator=generator),
        torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]]),
        tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN),
    )


@torch.no_grad()
def logits_of(model: Any, probe: Probe) -> Tensor:
    """(1, T, V) float32 of a model with our or transformers' InternVL interface."""
    if isinstance(model, InternVLChatModel):
        model.img_context_token_id = probe.image_token_id
    ids = probe.input_ids
    output = model(
        pixel_values=probe.pixel_values, input_ids=ids, attention_mask=torch.ones_like(ids)
    )
    return output.logits.float()


def logits_of_checkpoint(path: str, probe: Probe) -> Tensor:
    """(1, T, V): load a chat checkpoint in fp32, run it, free its memory."""
    model = InternVLChatModel.from_pretrained(path, dtype=torch.float32).eval()
    logits = logits_of(model, probe)
    del model
    gc.collect()  # modules hold each other: their memory is needed for the next model
    return logits


def largest_difference(first: Tensor, second: Tensor) -> float:
    """Largest absolute difference of two sets of logits."""
    return float((first - second).abs().max())


def tolerance_for(logits: Tensor) -> float:
    """What two fp32 evaluations of the same model may differ by."""
    return LOGIT_TOLERANCE * max(1.0, float(logits.abs().max()))


def require_same(
    wanted: Tensor, found: Tensor, *, exact: bool, where: str, fix: str = "Please report this."
) -> float:
    """Compare what was written with the checkpoint it was made of, by what both compute.

    Args:
        wanted: output of the checkpoint in fp32.
        found: output of what was written, in fp32.
        exact: no weight was rounded on the way, so only the order of sums may differ.
        where: the checkpoint, for messages.
        fix: what to do where they differ.

    Returns:
        Their largest difference.

    Raises:
        CheckpointError: they differ though the weights do not.
    """
    difference = largest_difference(wanted, found)
    # Rounded weights are other weights; their bits were compared before.
    if exact and not difference <= tolerance_for(wanted):
        raise CheckpointError(
            f"what was written computes something else: outputs differ by {difference:.2e}, more "
            f"than {tolerance_for(wanted):.0e}",
            where=where,
            fix=f"What was written stays aside and was not put in place. {fix}",
        )
    return difference


def fits_in_memory(tensors: Iterable[TensorSource]) -> bool:
    """Whether the model can be run in fp32 here, some room left."""
    needed = 4 * sum(numel(source.shape) for source in tensors)
    return 1.2 * needed + 2**30 < psutil.virtual_memory().available
