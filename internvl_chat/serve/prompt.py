"""A conversation and its images -> what the engine reads, by the functions of ``model.chat``.

The prompt is made by those very functions, so that the answers are those of ``model.chat``.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from internvl_chat.chat.context import context_length
from internvl_chat.chat.media import image_config_of, load_tiles
from internvl_chat.config import MAX_IMAGE_PIXELS
from internvl_chat.data.encode import template_marks
from internvl_chat.data.images import require_backend
from internvl_chat.errors import ConfigError
from internvl_chat.model.chat import expand_image_tags, prompt_ids
from internvl_chat.model.constants import (
    IMAGE_TAG,
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
)
from internvl_chat.model.conversation import Template
from internvl_chat.serve.batch import EncodedPrompt
from internvl_chat.serve.refusals import RequestError
from internvl_chat.serve.turns import ChatTurns, CheckText

_IMAGE_TOKENS: Final = (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN)
_CHARACTERS_PER_TOKEN: Final = 64
"""No text holds more on average; longer ones are refused before they are tokenized."""


class ReservedText:
    """What a client must not write: it would become an image, a turn or the end of one.

    Refused are ``<image>``, the image tokens, the marks and role names of the template, the end of
    a text, and all special tokens of the form ``<|...|>``. Others (``<ref>``, ``<box>``, ``<s>``,
    ``<filename>``) are text that people write on purpose. The tokenizer decides in the end:
    whatever it turns into a token that is refused (by normalising, for one) is refused too.

    Args:
        tokenizer: the checkpoint's.
        template: the checkpoint's.
        lock: held while the tokenizer is called.
    """

    def __init__(self, tokenizer: Any, template: Template, lock: threading.Lock) -> None:
        self._tokenizer = tokenizer
        self._lock = lock
        special = [
            str(token)
            for token in tokenizer.added_tokens_decoder.values()
            if token.special and (str(token).startswith("<|") or str(token) == tokenizer.eos_token)
        ]
        roles = (*template.roles, template.open_role or "")
        opening = template.system_template.split("{system_message}")[0]
        spoken = [text.strip() for text in (*roles, opening)]
        tokens = (*_IMAGE_TOKENS, *template_marks(template), *special)
        texts = (IMAGE_TAG, *tokens, *spoken)
        self._texts = tuple(dict.fromkeys(text for text in texts if text))
        ids = {tokenizer.convert_tokens_to_ids(token) for token in tokens}
        self._ids = ids - {None, tokenizer.unk_token_id}

    def check(self, text: str, where: str) -> None:
        """Refuse text that holds any of it.

        Raises:
            RequestError: names what was found.
        """
        found = next((reserved for reserved in self._texts if reserved in text), None)
        if found is None:
            with self._lock:
                ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            token = next((token for token in ids if token in self._ids), None)
            if token is not None:
                found = self._tokenizer.convert_ids_to_tokens(token)
        if found is not None:
            raise RequestError(
                f"{where} holds {found!r}, which this model reads as a control token. Spell it "
                "differently; images are given as image_url parts",
                param=where,
                code="reserved_text",
            )


class Prompter:
    """Makes prompts for one model. Its methods may be called from several threads.

    Args:
        model: an InternVLChatModel.
        tokenizer: the checkpoint's.

    Raises:
        ConfigError: the tokenizer lacks the image tokens, or the model does not say its context.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template: Template = model.conv_template
        self._system: str = model.system_message
        self._num_image_token: int = model.num_image_token
        self._settings = image_config_of(model.config)
        require_backend(self._settings.decode)
        context_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
        if context_id is None or context_id == tokenizer.unk_token_id:
            raise ConfigError(f"the tokenizer does not know {IMG_CONTEXT_TOKEN}", where="--model")
        self._context_id: int = context_id
        length = context_length(model.config)
        if length is None:
            raise ConfigError(
                "llm_config has no max_position_embeddings, the length of its context",
                where="--model",
            )
        self.context_length = length
        """Tokens of prompt and answer together."""
        # Encoding may change a fast tokenizer's settings, which must not happen in two threads.
        self._lock = threading.Lock()
        self._reserved = ReservedText(tokenizer, self._template, self._lock)

    def text_check(self) -> CheckText:
        """What is called with every text of one request and its place.

        It raises RequestError for reserved text, and for more text than could fit, before work is
        put into it.
        """
        limit = _CHARACTERS_PER_TOKEN * self.context_length
        num_characters = 0

        def check(text: str, where: str) -> None:
            nonlocal num_characters
            num_characters += len(text)
            if num_characters > limit:
                raise RequestError(
                    f"This model's maximum context length is {self.context_length} tokens. "
                    f"However, your prompt is too long: it holds more than {limit} characters, "
                    f"which make more than {self.context_length} tokens. Please reduce the length "
                    "of the messages.",
                    param="messages",
                    code="context_length_exceeded",
                )
            self._reserved.check(text, where)

        return check

    def cut(
        self, image: bytes | Image.Image, where: str = "", max_pixels: int = MAX_IMAGE_PIXELS
    ) -> Tensor:
        """The tiles of one image as the checkpoint says.

        Args:
            image: a file, or what was decoded already.
            where: what messages call it.
            max_pixels: a file of more pixels is refused before it is decoded.

        Returns:
            (n, 3, S, S) float32.

        Raises:
            BadRecordError: no image, broken or too many pixels.
        """
        return load_tiles(image, self._settings, where=where, max_pixels=max_pixels)

    def prompt(self, turns: ChatTurns, tiles: Sequence[Tensor]) -> EncodedPrompt:
        """Write the conversation as ids.

        Args:
            turns: passed by :meth:`text_check`.
            tiles: of each image, (n, 3, S, S).

        Raises:
            RequestError: longer than the context, which must take one token of the answer too.
        """
        system = self._system if turns.system_message is None else turns.system_message
        text = self._template.render(turns.turns, system).text
        counts = [len(one) for one in tiles]
        text = expand_image_tags(text, counts, self._num_image_token, _IMAGE_TOKENS)
        with self._lock:
            ids = prompt_ids(self._tokenizer, text, self._template.bos_in_training)
        if len(ids) >= self.context_length:
            # In OpenAI's and Anthropic's words, by which LiteLLM and LangChain know what it is.
            raise RequestError(
                f"This model's maximum context length is {self.context_length} tokens, answer "
                f"included. However, your prompt is too long: it is {len(ids)} tokens long "
                f"({sum(counts) * self._num_image_token} of them for {len(counts)} images). "
                "Please reduce the length of the messages.",
                param="messages",
                code="context_length_exceeded",
            )
        num_slots, wanted = ids.count(self._context_id), sum(counts) * self._num_image_token
        assert num_slots == wanted, (num_slots, wanted)
        return EncodedPrompt(ids, torch.cat(list(tiles)) if tiles else None)
