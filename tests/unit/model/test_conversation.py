"""Templates: exact texts and exact spans."""

from __future__ import annotations

import dataclasses

import pytest

from internvl_chat.model.conversation import TEMPLATES, Span, Template, get_conv_template

SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
    "英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
SYSTEM_2_5 = (
    "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
SYSTEM_SMOLLM2 = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TURNS = [("Hi", " Hello."), ("Why?", "")]
OPEN = [("Hi", "Hello."), ("Why?", None)]

CASES = {
    "Hermes-2": (
        f"<|im_start|>system\n{SYSTEM}<|im_end|><|im_start|>user\nHi<|im_end|>"
        "<|im_start|>assistant\n Hello.<|im_end|><|im_start|>user\nWhy?<|im_end|>"
        "<|im_start|>assistant\n<|im_end|>",
        [" Hello.<|im_end|>", "<|im_end|>"],
        f"<|im_start|>system\n{SYSTEM}<|im_end|><|im_start|>user\nHi<|im_end|>"
        "<|im_start|>assistant\nHello.<|im_end|><|im_start|>user\nWhy?<|im_end|>"
        "<|im_start|>assistant\n",
    ),
    "internvl2_5": (
        f"<|im_start|>system\n{SYSTEM_2_5}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n Hello.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n",
        [" Hello.<|im_end|>", "<|im_end|>"],
        f"<|im_start|>system\n{SYSTEM_2_5}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "phi3-chat": (
        f"<|system|>\n{SYSTEM}<|end|><|user|>\nHi<|end|><|assistant|>\n Hello.<|end|>"
        "<|user|>\nWhy?<|end|><|assistant|>\n<|end|>",
        [" Hello.<|end|>", "<|end|>"],
        f"<|system|>\n{SYSTEM}<|end|><|user|>\nHi<|end|><|assistant|>\nHello.<|end|>"
        "<|user|>\nWhy?<|end|><|assistant|>\n",
    ),
    "internvl_zh": (
        " <human>: Hi <bot>:  Hello.</s><human>: Why? <bot>: </s>",
        [" Hello.</s>", "</s>"],
        " <human>: Hi <bot>: Hello.</s><human>: Why? <bot>:",
    ),
}
CASES["internlm2-chat"] = CASES["Hermes-2"]
CASES["smollm2"] = tuple(  # the same separators under another system message
    part.replace(SYSTEM_2_5, SYSTEM_SMOLLM2) if isinstance(part, str) else part
    for part in CASES["internvl2_5"]
)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_text_and_answer_spans(name: str) -> None:
    text, answers, prompt = CASES[name]
    template = get_conv_template(name)
    rendered = template.render(TURNS)
    assert rendered.text == text
    assert [rendered.text[s.start : s.end] for s in rendered.answers] == answers
    assert template.render(OPEN).text == prompt


def test_spans_are_character_offsets_of_answer_and_end_mark() -> None:
    rendered = get_conv_template("internvl_zh").render([("a", "bc")])
    assert rendered.text == " <human>: a <bot>: bc</s>"
    assert rendered.answers == (Span(19, 25),)


def test_open_turn_has_no_span_and_ends_where_training_text_continues() -> None:
    for template in TEMPLATES.values():
        prompt = template.render([("q", None)])
        assert prompt.answers == ()
        assert template.render([("q", "a")]).text.startswith(prompt.text)


def test_system_message_replaces_the_templates_own() -> None:
    rendered = get_conv_template("Hermes-2").render([("q", "a")], system="Be {brief}.")
    assert rendered.text.startswith("<|im_start|>system\nBe {brief}.<|im_end|><|im_start|>user\nq")
    assert get_conv_template("internvl_zh").render([("q", None)], "Sys").text.startswith("Sys <hum")


def test_separators_and_bos() -> None:
    assert get_conv_template("Hermes-2").sep == "<|im_end|>"
    assert get_conv_template("internvl2_5").sep == "<|im_end|>\n"
    assert {t.name: t.stop_str for t in TEMPLATES.values()} == {
        "Hermes-2": "<|im_end|>",
        "internlm2-chat": "<|im_end|>",
        "internvl2_5": "<|im_end|>",
        "phi3-chat": "<|end|>",
        "smollm2": "<|im_end|>",
        "internvl_zh": "</s>",
    }
    with_bos = {t.name for t in TEMPLATES.values() if t.bos_in_training}
    assert with_bos == {"internlm2-chat", "internvl_zh"}


def test_mistakes_are_named() -> None:
    template = get_conv_template("Hermes-2")
    with pytest.raises(ValueError, match="at least one turn"):
        template.render([])
    with pytest.raises(ValueError, match="turn 0 has no answer and is not the last"):
        template.render([("q", None), ("q", "a")])
    with pytest.raises(ValueError, match=r"no chat template 'hermes2'\. Did you mean 'Hermes-2'"):
        get_conv_template("hermes2")
    with pytest.raises(ValueError, match="must begin with stop_str"):
        dataclasses.replace(template, answer_sep="\n<|im_end|>")


def test_a_template_is_a_frozen_record() -> None:
    template = TEMPLATES["Hermes-2"]
    assert isinstance(template, Template)
    with pytest.raises(dataclasses.FrozenInstanceError):
        template.stop_str = "x"  # type: ignore[misc]
