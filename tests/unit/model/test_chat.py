"""chat, batch_chat and generate: prompts, placeholders, stopping, histories."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast

from internvl_chat import InternVLChatModel
from internvl_chat.model.chat import (
    control_ids,
    cut_at_stop,
    decode_answer,
    decode_tokens,
    expand_image_tags,
    pad_id,
    stop_settings,
)
from tests.support.models import make_config, make_model, make_tokenizer

GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def model() -> InternVLChatModel:
    return make_model(make_config(system_message="S"))


class Recorder:
    """Stands in for ``generate``: keeps its arguments, returns given ids."""

    def __init__(self, replies: list[list[int]]) -> None:
        self.replies = replies
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, pixel_values: Tensor | None, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any
    ) -> Tensor:
        self.calls.append(
            {"pixels": pixel_values, "ids": input_ids, "mask": attention_mask, **kwargs}
        )
        return torch.tensor(self.replies)


def record(model: InternVLChatModel, tokenizer: PreTrainedTokenizerFast, *replies: str) -> Recorder:
    ids = [tokenizer(reply)["input_ids"] for reply in replies]
    longest = max(map(len, ids))
    recorder = Recorder([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in ids])
    model.generate = recorder  # type: ignore[method-assign]
    return recorder


def prompts(recorder: Recorder, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    call = recorder.calls[-1]
    return [
        tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(call["ids"], call["mask"], strict=True)
    ]


def ask(question: str) -> str:
    return (
        f"<|im_start|>system\nS<|im_end|><|im_start|>user\n{question}<|im_end|>"
        "<|im_start|>assistant\n"
    )


def image(tiles: int = 1) -> str:
    return "<img>" + "<IMG_CONTEXT>" * (4 * tiles) + "</img>"


def test_prompt_of_one_image(model: InternVLChatModel, tokenizer: PreTrainedTokenizerFast) -> None:
    recorder = record(model, tokenizer, " A dog. <|im_end|>")
    settings = dict(GREEDY)
    answer = model.chat(tokenizer, torch.zeros(1, 3, 16, 16), "What?", settings)
    assert answer == "A dog."
    assert prompts(recorder, tokenizer) == [ask(f"{image()}\nWhat?")]
    assert settings == GREEDY
    call = recorder.calls[0]
    assert call["eos_token_id"] == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert (call["max_new_tokens"], call["do_sample"]) == (8, False)
    assert model.img_context_token_id == tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")


def test_tag_is_not_added_twice_and_tiles_go_to_it(
    model: InternVLChatModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    recorder = record(model, tokenizer, "x<|im_end|>")
    model.chat(tokenizer, torch.zeros(3, 3, 16, 16), "See <image> there", GREEDY)
    assert prompts(recorder, tokenizer) == [ask(f"See {image(3)} there")]


def test_several_images_in_order_over_history_and_question(
    model: InternVLChatModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    recorder = record(model, tokenizer, "b<|im_end|>")
    history = [("<image>\none", "a")]
    answer, new = model.chat(
        tokenizer,
        torch.zeros(3, 3, 16, 16),
        "<image>\ntwo",
        GREEDY,
        history=history,
        return_history=True,
        num_patches_list=[2, 1],
    )
    assert answer == "b"
    assert new == [("<image>\none", "a"), ("<image>\ntwo", "b")]
    assert history == [("<image>\none", "a")]
    text = ask(f"{image(2)}\none") + "a<|im_end|><|im_start|>user\n"
    assert prompts(recorder, tokenizer) == [
        f"{text}{image(1)}\ntwo<|im_end|><|im_start|>assistant\n"
    ]


def test_history_without_a_tag_gets_it_in_front(
    model: InternVLChatModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    recorder = record(model, tokenizer, "b<|im_end|>")
    _, new = model.chat(
        tokenizer,
        torch.zeros(1, 3, 16, 16),
        "two",
        GREEDY,
        history=[("one", "a")],
        return_history=True,
    )
    assert prompts(recorder, tokenizer)[0].startswith(ask(f"{image()}\none"))
    assert new == [("<image>\none", "a"), ("two", "b")]


def test_pure_text(model: InternVLChatModel, tokenizer: PreTrainedTokenizerFast) -> None:
    recorder = record(model, tokenizer, "Hello<|im_end|>")
    answer, history = model.chat(tokenizer, None, "Hi", GREEDY, history=None, return_history=True)
    assert (answer, history) == ("Hello", [("Hi", "Hello")])
    assert prompts(recorder, tokenizer) == [ask("Hi")]
    assert recorder.calls[0]["pixels"] is None


def test_answers_keep_boxes_and_are_cut_at_the_end_mark(
    model: InternVLChatModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    record(model, tokenizer, "<ref>a cat</ref><box>[[1, 2, 3, 4]]</box><|im_end|>and on")
    answer = model.chat(tokenizer, None, "Where?", GREEDY)
    assert answer == "<ref>a cat</ref><box>[[1, 2, 3, 4]]</box>"


def test_disagreeing_counts_are_errors(
    model: InternVLChatModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    pixels = torch.zeros(3, 3, 16, 16)
    with pytest.raises(ValueError, match=r"num_patches_list \[1, 1\] sums to 2, but .* 3 tiles"):
        model.chat(tokenizer, pixels, "<image><image>", GREEDY, num_patches_list=[1, 1])
    with pytest.raises(ValueError, match=r"1 <image> tags in .* 2 images: \[1, 2\]"):
        model.chat(tokenizer, pixels, "<image>", GREEDY, num_patches_list=[1, 2])
    with pytest.raises(ValueError, match=r"1 <image> tags .* 0 images"):
        model.chat(tokenizer, None, "<image>", GREEDY)
    with pytest.raises(ValueError, match="3 tiles do not go evenly over 2 questions"):
        model.batch_chat(tokenizer, pixels, ["a", "b"], GREEDY)
    with pytest.raises(ValueError, match="1 entries for 2 questions"):
        model.batch_chat(tokenizer, pixels, ["a", "b"], GREEDY, num_patches_list=[3])
    with pytest.raises(ValueError, match="sums to 2, but pixel_values holds 3 tiles"):
        model.batch_chat(tokenizer, pixels, ["a", "b"], GREEDY, num_patches_list=[1, 1])
    with pytest.raises(ValueError, match="history has 1 entries for 2 questions"):
        model.batch_chat(tokenizer, None, ["a", "b"], GREEDY, history=[[]])


def test_a_prompt_without_room_for_an_answer_is_an_error(
    model: InternVLChatModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    limit = model.config.get_text_config().max_position_embeddings
    told = f"the model's maximum context length is {limit} tokens"
    with pytest.raises(ValueError, match=told):
        model.chat(tokenizer, None, "a" * limit, {"max_new_tokens": 2})
    with pytest.raises(ValueError, match=told):
        model.batch_chat(tokenizer, None, ["a", "b" * limit], {"max_new_tokens": 2})


def test_batch_prompts_are_padded_left(
    model: InternVLChatModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    recorder = record(model, tokenizer, "1<|im_end|>", "22<|im_end|>", "3<|im_end|>")
    side = tokenizer.padding_side
    answers, histories = model.batch_chat(
        tokenizer,
        torch.zeros(4, 3, 16, 16),
        ["one", "none", "<image> two <image>"],
        GREEDY,
        num_patches_list=[1, 0, [2, 1]],
        history=[[], [("h", "k")], []],
        return_history=True,
    )
    assert answers == ["1", "22", "3"]
    assert histories[0] == [("<image>\none", "1")]
    assert histories[1] == [("h", "k"), ("none", "22")]
    assert tokenizer.padding_side == side
    assert prompts(recorder, tokenizer) == [
        ask(f"{image()}\none"),
        ask("h") + "k<|im_end|><|im_start|>user\nnone<|im_end|><|im_start|>assistant\n",
        ask(f"{image(2)} two {image(1)}"),
    ]
    mask = recorder.calls[0]["mask"]
    assert (mask.diff(dim=1) >= 0).all()
    assert (mask[:, -1] == 1).all()


def test_batch_answers_are_those_of_chat(
    model: InternVLChatModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    pixels = torch.randn(3, 3, 16, 16)
    questions = ["a", "a much longer question than that", "see <image> there"]
    single = [
        model.chat(tokenizer, pixels[i : i + 1], question, GREEDY)
        for i, question in enumerate(questions)
    ]
    assert model.batch_chat(tokenizer, pixels, questions, GREEDY) == single
    assert len(set(single)) == 3


def test_generation_stops_at_the_end_of_turn(model: InternVLChatModel) -> None:
    ids = torch.tensor([[5, 6, 7]])
    reply = model.generate(None, ids, **GREEDY, eos_token_id=279)[0].tolist()
    assert len(reply) == 8
    stopped = model.generate(None, ids, **GREEDY, eos_token_id=[reply[2]])[0].tolist()
    assert stopped == reply[: reply.index(reply[2]) + 1]


def test_stop_text_where_the_tokenizer_has_no_such_token(
    model: InternVLChatModel,
) -> None:
    tokenizer = make_tokenizer()
    model = make_model(make_config(template="phi3-chat", system_message="S"))
    recorder = record(model, tokenizer, "yes<|end|>no")
    assert model.chat(tokenizer, None, "q", GREEDY) == "yes"
    call = recorder.calls[0]
    assert call["stop_strings"] == ["<|end|>"]
    assert call["tokenizer"] is tokenizer
    assert call["eos_token_id"] == tokenizer.eos_token_id


def test_generate_equals_stepping_without_a_cache(model: InternVLChatModel) -> None:
    model.img_context_token_id = 260
    pixels = torch.randn(2, 3, 16, 16)
    ids = torch.tensor([[9, 260, 260, 260, 260, 8], [260, 260, 260, 260, 7, 6]])
    found = model.generate(pixels, ids, max_new_tokens=5, do_sample=False, eos_token_id=279)
    text = ids
    for _ in range(5):
        with torch.no_grad():
            best = model(pixel_values=pixels, input_ids=text).logits[:, -1].argmax(-1)
        text = torch.cat([text, best[:, None]], dim=1)
    assert torch.equal(found, text[:, 6:])


def test_generate_takes_features_and_either_kind_of_settings(model: InternVLChatModel) -> None:
    model.img_context_token_id = 260
    pixels = torch.randn(1, 3, 16, 16)
    ids = torch.tensor([[260, 260, 260, 260, 7]])
    expected = model.generate(pixels, ids, max_new_tokens=4, do_sample=False)
    features = model.extract_feature(pixels)
    found = model.generate(None, ids, visual_features=features, generation_config=dict(GREEDY))
    assert torch.equal(found[:, :4], expected)
    settings = GenerationConfig(max_new_tokens=4, do_sample=False)
    assert torch.equal(model.generate(pixels, ids, generation_config=settings), expected)
    with pytest.raises(ValueError, match="generate needs input_ids"):
        model.generate(pixels)


def test_streamer_in_the_settings(
    model: InternVLChatModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.ids: list[int] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    streamer = Streamer()
    settings = {**GREEDY, "streamer": streamer}
    answer = model.chat(tokenizer, None, "hi", settings)
    assert streamer.ended
    assert len(streamer.ids) == 8 or streamer.ids[-1] in {257}
    assert answer == model.chat(tokenizer, None, "hi", GREEDY)


def test_bos_only_where_the_template_has_one() -> None:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "</s>"
    first = tokenizer("<|im_start|>")["input_ids"][0]
    for template, start in (("internlm2-chat", tokenizer.bos_token_id), ("Hermes-2", first)):
        model = make_model(make_config(template=template))
        recorder = record(model, tokenizer, "a<|im_end|>")
        model.chat(tokenizer, None, "q", GREEDY)
        assert recorder.calls[0]["ids"][0, 0] == start


def test_control_tokens_are_no_text_and_other_special_tokens_are() -> None:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "</s>"
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert control_ids(tokenizer) == {bos, eos, tokenizer.pad_token_id}
    ids = [bos, *tokenizer("<box>[1]</box>")["input_ids"], eos, tokenizer.pad_token_id]
    assert decode_answer(tokenizer, ids, ("<|im_end|>",)) == "<box>[1]</box>"
    assert decode_tokens(tokenizer, ids[1:-2]) == "<box>[1]</box>"
    tokenizer.bos_token = None
    assert None not in control_ids(tokenizer)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two", ("x",), ("one two", False)),
        ("one two", (), ("one two", False)),
        ("one two three", ("three", "two"), ("one ", True)),
        ("aab", ("ab", "aab"), ("", True)),
    ],
)
def test_the_first_of_the_stop_strings_ends_the_text(
    text: str, stop: tuple[str, ...], expected: tuple[str, bool]
) -> None:
    assert cut_at_stop(text, stop) == expected


def test_stop_settings_by_token_or_by_text() -> None:
    tokenizer = make_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stop_settings(tokenizer, "<|im_end|>", {}) == {"eos_token_id": [end]}
    given = {"eos_token_id": [5, end]}
    assert stop_settings(tokenizer, "<|im_end|>", given) == {"eos_token_id": [end, 5]}
    by_text = stop_settings(tokenizer, "<|end|>", {"eos_token_id": 5})
    assert (by_text["eos_token_id"], by_text["stop_strings"]) == ([5], ["<|end|>"])


def test_padding_is_with_whatever_token_there_is() -> None:
    tokenizer = make_tokenizer()
    assert pad_id(tokenizer) == tokenizer.pad_token_id
    tokenizer.pad_token = None
    assert pad_id(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    assert pad_id(tokenizer) == 0


def test_image_tags_become_tokens() -> None:
    tokens = ("<i>", "*", "</i>")
    expanded = expand_image_tags("a <image> b <image>", [2, 1], 3, tokens)
    assert expanded == "a <i>******</i> b <i>***</i>"
    assert expand_image_tags("a", [], 3, tokens) == "a"
