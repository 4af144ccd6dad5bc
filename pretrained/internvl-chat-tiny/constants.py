"""Tokens and numbers that the data path, the model and the checkpoints agree on."""

from __future__ import annotations

from typing import Final

IGNORE_INDEX: Final = -100
"""Label of a position that does not enter the loss (torch's cross-entropy default)."""

IMG_START_TOKEN: Final = "<img>"
IMG_END_TOKEN: Final = "</img>"
IMG_CONTEXT_TOKEN: Final = "<IMG_CONTEXT>"
"""One copy stands for one projected image token."""
QUAD_START_TOKEN: Final = "<quad>"
QUAD_END_TOKEN: Final = "</quad>"
REF_START_TOKEN: Final = "<ref>"
REF_END_TOKEN: Final = "</ref>"
BOX_START_TOKEN: Final = "<box>"
BOX_END_TOKEN: Final = "</box>"

SPECIAL_TOKENS: Final[tuple[str, ...]] = (
    IMG_START_TOKEN,
    IMG_END_TOKEN,
    IMG_CONTEXT_TOKEN,
    QUAD_START_TOKEN,
    QUAD_END_TOKEN,
    REF_START_TOKEN,
    REF_END_TOKEN,
    BOX_START_TOKEN,
    BOX_END_TOKEN,
)
"""Added to a tokenizer that lacks them, in this order (published V1-2 vocabularies have it)."""

IMAGE_TAG: Final = "<image>"
VIDEO_TAG: Final = "<video>"

NORMALIZATION: Final[dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.4814546, 0.4578275, 0.40821073), (0.2686295, 0.2613025, 0.2757711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation of R, G, B in 0-1."""
