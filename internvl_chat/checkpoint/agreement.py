"""Whether the parts of a chat checkpoint belong together: tokenizer, vocabulary, image tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from internvl_chat.errors import CheckpointError
from internvl_chat.model.constants import IMG_CONTEXT_TOKEN, IMG_END_TOKEN, IMG_START_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig


def require_tokenizer_fits(
    tokenizer: PreTrainedTokenizerBase, config: InternVLChatConfig, where: str
) -> None:
    """Each id that the tokenizer gives must have a row, and an image must have its tokens.

    A vocabulary with more rows than tokens is padded, which is usual and fine.

    Args:
        tokenizer: as saved beside the weights: nothing is added to it here.
        config: of the checkpoint; its language model's vocabulary is that of its weights.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: they do not belong together.
    """
    vocabulary = tokenizer.get_vocab()
    llm_config: Any = config.llm_config
    rows = llm_config.vocab_size
    beyond = sorted((index, token) for token, index in vocabulary.items() if index >= rows)
    if beyond:
        index, token = beyond[0]
        raise CheckpointError(
            f"its tokenizer and its weights do not belong together: {len(beyond)} tokens have no "
            f"row in the embedding of {rows} rows, the first is {token!r} with id {index}",
            where=where,
            fix="Put the tokenizer there that the weights were trained with. New tokens get their "
            "rows in a training (internvl-chat train).",
        )
    lacking = [
        token
        for token in (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN)
        if token not in vocabulary
    ]
    if lacking:
        raise CheckpointError(
            f"its tokenizer has no {' and no '.join(lacking)}: it is not a chat model's",
            where=where,
            fix="Put the tokenizer there that the weights were trained with.",
        )
