"""Generation with images, over the language model's own.

Shapes: ``B`` rows, ``T`` tokens, ``N`` tiles, ``K`` tokens per tile, ``D`` width.

This file travels inside checkpoints, so it imports nothing of its package but its neighbours.
"""

from __future__ import annotations

import functools
import logging
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin

from .decoding_choice import has_memory_for, is_padded_left, static_keywords, why_not
from .decoding_loop import continue_rows
from .static_decoding import StaticDecoder, drawing

logger = logging.getLogger(__name__)

_IMAGES = ("pixel_values", "image_flags", "visual_features")

_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


_MAKING = threading.Lock()
"""Two threads that ask a model its first question share one decoder, which one of them gets."""


class GenerateMixin:
    """``generate`` and its settings, of a model with a ``language_model``.

    The class that has it names transformers' ``GenerationMixin`` among its own bases, behind
    ``PreTrainedModel``: by that transformers and PEFT know that a model generates.
    """

    language_model: Any
    device: torch.device
    training: bool
    _embed: Any
    static_decoding: bool | None = None
    """Whether answers are decoded by steps that are recorded once and replayed: where it helps,
    that is on a GPU, by default; never; or (True) on a CPU too, where nothing is gained.
    ``generate``'s ``disable_compile=True`` is the same as False for one answer."""
    _static_decoder: StaticDecoder | None = None
    _told: str | None = None

    @property
    def static_decoder(self) -> StaticDecoder | None:
        """Keeps what was recorded from answer to answer; None if this model is decoded without.

        ``model.static_decoder.release()`` gives its memory back.
        """
        if self.static_decoding is False:
            return None
        learned = getattr(self.language_model, "active_peft_config", None)
        if getattr(learned, "is_prompt_learning", False):
            reason: str | None = "it has learned prompts"
        else:
            on_cpu = self.static_decoding is True
            reason = why_not(self._bare_language_model(), on_cpu=on_cpu, loaded=self)
        if reason is not None:
            if self.device.type == "cuda" and not self.training and reason != self._told:
                logger.warning("answers are decoded eagerly, step by step: %s", reason)
            self._told = reason
            return None
        with _MAKING:
            if self._static_decoder is None:
                self._static_decoder = StaticDecoder()
            return self._static_decoder

    def _bare_language_model(self) -> Any:
        """The causal LM itself, out of its LoRA wrapper if it has one."""
        unwrap = getattr(self.language_model, "get_base_model", None)
        return self.language_model if unwrap is None else unwrap()

    @property
    def generation_config(self) -> GenerationConfig:
        """How to generate where ``generate`` is not told; the language model's own."""
        return self._bare_language_model().generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        modules: dict[str, nn.Module] = vars(self).get("_modules", {})
        if "language_model" in modules:  # PreTrainedModel sets one before there is a part
            self._bare_language_model().generation_config = value

    def complete_generation_config(self) -> None:
        """Fill in the end, start and padding tokens that a settings file leaves out.

        transformers looks for them at the top of ``config.json``; they are in ``llm_config``.
        """
        own = GenerationConfig.from_model_config(self._bare_language_model().config)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self.generation_config, name, None) is None:
                setattr(self.generation_config, name, getattr(own, name, None))

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """See transformers. The images come with the prompt and not again with every token."""
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, past_key_values=past_key_values, **kwargs
        )
        if num_cached_tokens(past_key_values) and not kwargs.get("is_first_iteration", False):
            inputs = {key: value for key, value in inputs.items() if key not in _IMAGES}
        return inputs

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        visual_features: Tensor | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue text with images.

        Args:
            pixel_values: (N, 3, S, S) or ``None``.
            input_ids: (B, T), padded on the left.
            attention_mask: (B, T), 1 on real tokens; ``None`` for none padded.
            visual_features: (N, K, D), what ``extract_feature`` gave, in place of pixels.
            generation_config: for the language model's ``generate``, instead of the model's own;
                a dict is a set of keywords.
            output_hidden_states: goes there too.
            return_dict: the original's keyword, which decides nothing: ``generate`` always
                asks the language model for named outputs, and returns them itself with
                ``return_dict_in_generate``.
            inputs_embeds: (B, T, D) in place of ``input_ids``.
            **kwargs: go there too.

        Returns:
            (B, new tokens) ids, without the prompt; or what ``return_dict_in_generate`` asks for.

        Raises:
            ValueError: no text, or both kinds; or assisted generation is asked for.
        """
        if isinstance(generation_config, dict):
            kwargs, generation_config = {**generation_config, **kwargs}, None
        self._refuse_assisted(kwargs, generation_config)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("generate needs input_ids or inputs_embeds, and one of them only")
        kwargs.setdefault("use_cache", True)
        if output_hidden_states is not None:
            kwargs["output_hidden_states"] = output_hidden_states
        kwargs["generation_config"] = generation_config
        if self._others_prepare_inputs() and input_ids is not None:
            return self._generate_as_prepared(
                input_ids,
                attention_mask=attention_mask,
                pixel_values=pixel_values,
                visual_features=visual_features,
                **kwargs,
            )
        embeds = self._embed(
            input_ids, pixel_values, visual_features=visual_features, inputs_embeds=inputs_embeds
        )
        if attention_mask is None:
            attention_mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        return self._generate_from(embeds, attention_mask, kwargs)

    def _generate_from(self, embeds: Tensor, attention_mask: Tensor, kwargs: dict[str, Any]) -> Any:
        """By the language model, whose steps are recorded where they can be."""
        prompt = {"inputs_embeds": embeds, "attention_mask": attention_mask}
        decoder = self.static_decoder
        if decoder is None:
            with self._drawing(kwargs):
                return self.language_model.generate(**prompt, **kwargs)
        with decoder.claimed() as is_free:
            asked = kwargs
            if is_free and is_padded_left(attention_mask):
                kwargs = self._decoded_by(decoder, embeds, kwargs)
            with self._drawing(kwargs) if kwargs is asked else nullcontext():
                return self.language_model.generate(**prompt, **kwargs)

    def _drawing(self, keywords: dict[str, Any]) -> AbstractContextManager[None]:
        """Keeps other models from recording while transformers' own loop samples."""
        given = getattr(keywords.get("generation_config"), "do_sample", None)
        values = keywords.get("do_sample"), given, self.generation_config.do_sample
        return drawing() if next((x for x in values if x is not None), False) else nullcontext()

    def _decoded_by(
        self, decoder: StaticDecoder, embeds: Tensor, keywords: dict[str, Any]
    ) -> dict[str, Any]:
        """Keywords of the language model's ``generate``, by which it decodes fast if it can."""
        config = keywords["generation_config"]
        given = {name: value for name, value in keywords.items() if name != "generation_config"}
        model = self._bare_language_model()
        found = static_keywords(model, embeds, given, config)
        if found is None:
            return keywords
        config_rows = getattr(config, "num_return_sequences", None)
        rows = len(embeds) * (given.get("num_return_sequences") or config_rows or 1)
        if not has_memory_for(model, rows, embeds.shape[1], decoder.num_bytes):
            decoder.release()
            return keywords
        loop = functools.partial(continue_rows, decoder=decoder, streamer=given.get("streamer"))
        return {**found, "generation_config": config, "custom_generate": loop}

    def _refuse_assisted(self, kwargs: dict[str, Any], config: GenerationConfig | None) -> None:
        for name in _ASSISTED:
            given = kwargs.get(name), getattr(config or self.generation_config, name, None)
            if any(value is not None for value in given):
                raise ValueError(
                    f"{name}: assisted generation, which drafts from the prompt's ids, is not "
                    "supported for prompts with images; generate without it, the greedy answer is "
                    "the same"
                )

    def _others_prepare_inputs(self) -> bool:
        """Whether a wrapper put its own method in the place of ours, as PEFT's prompt tuning does.

        Its virtual tokens come in there, so that method has to be asked.
        """
        ours = type(self).prepare_inputs_for_generation
        return getattr(self.prepare_inputs_for_generation, "__func__", None) is not ours

    def _generate_as_prepared(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """Through :meth:`forward`, token by token; the prompt's ids are cut off."""
        given = {key: value for key, value in kwargs.items() if value is not None}
        given.setdefault("attention_mask", torch.ones_like(input_ids))
        with self._drawing(kwargs):
            output = GenerationMixin.generate(self, input_ids, **given)  # type: ignore[arg-type]
        length = input_ids.shape[1]
        if isinstance(output, Tensor):
            return output[:, length:]
        output.sequences = output.sequences[:, length:]
        return output


def num_cached_tokens(past_key_values: Any) -> int:
    """Tokens in a language model's cache, of the old kind too (a tuple of keys and values)."""
    if past_key_values is None:
        return 0
    if isinstance(past_key_values, tuple):
        return past_key_values[0][0].shape[-2]
    return int(past_key_values.get_seq_length())
