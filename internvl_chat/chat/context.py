"""How long a prompt is, and how long it may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from internvl_chat.errors import ConfigError
from internvl_chat.model.chat import expand_image_tags
from internvl_chat.model.constants import IMG_CONTEXT_TOKEN, IMG_END_TOKEN, IMG_START_TOKEN

_IMAGE_TOKENS: Final = (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN)
_CHARACTERS_PER_TOKEN: Final = 64
"""No text holds more on average; longer ones are refused before they are tokenized."""


class PromptTooLongError(ConfigError):
    """A prompt that the model's context cannot take: positions that no training has seen."""


def context_length(config: Any) -> int | None:
    """Tokens of prompt and answer together; None if a chat model's configuration does not say."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) else None


def count_tokens(
    model: Any, tokenizer: Any, turns: Sequence[tuple[str, str | None]], num_patches: Sequence[int]
) -> int:
    """Tokens that ``model.chat`` makes of a conversation.

    Args:
        turns: (question, answer) pairs, the last without an answer; a tag for each image.
        num_patches: tiles of each image.

    Raises:
        PromptTooLongError: there is so much text that it need not be counted.
        ValueError: another number of tags than of images.
    """
    text = model.conv_template.render(turns, model.system_message).text
    limit = context_length(model.config)
    if limit is not None and len(text) > _CHARACTERS_PER_TOKEN * limit:
        raise too_long(f"{len(text)} characters", limit)
    text = expand_image_tags(text, num_patches, model.num_image_token, _IMAGE_TOKENS)
    # As ``prompt_ids``, without transformers' own warning about lengths.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    has_bos = model.conv_template.bos_in_training and tokenizer.bos_token_id is not None
    return len(ids) + has_bos


def require_room(model: Any, num_tokens: int, num_patches: Sequence[int]) -> int | None:
    """Tokens that are left for the answer; None where there is no limit.

    Args:
        num_tokens: of the prompt, image tokens included.
        num_patches: tiles of each image.

    Raises:
        PromptTooLongError: none is left.
    """
    limit = context_length(model.config)
    if limit is None:
        return None
    if num_tokens >= limit:
        of_images = sum(num_patches) * model.num_image_token
        shares = f" ({of_images} of them for {_images(len(num_patches))})" if num_patches else ""
        raise too_long(f"{num_tokens} tokens{shares}", limit)
    return limit - num_tokens


def require_room_for_frames(config: Any, num_frames: int) -> None:
    """Refuse a video before its frames, or the model's weights, are read.

    Args:
        config: a chat model's.
        num_frames: of the video, for the model.

    Raises:
        PromptTooLongError: they alone are longer than the context.
    """
    limit = context_length(config)
    num_tokens = num_frames * config.num_image_token
    if limit is not None and num_tokens >= limit:
        raise too_long(f"{num_tokens} tokens for {num_frames} frames", limit)


def too_long(length: str, limit: int) -> PromptTooLongError:
    """The error; proxies and clients recognise "maximum context length"."""
    return PromptTooLongError(
        f"the prompt has {length}, and the model's maximum context length is {limit} tokens, "
        "answer included",
        fix="Ask with less text, fewer images or fewer frames.",
    )


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
