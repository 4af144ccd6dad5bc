from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internvl_chat.data.encode import Encoder
from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.tokenization import TextTokenizer
from internvl_chat.errors import ConfigError
from internvl_chat.model.constants import IGNORE_INDEX
from tests.support import tokenizers
from tests.support.configs import encode_config

KINDS = ["byte_level", "slow", "slow_not_legacy", "slow_rewriting", "converted"]
TEXTS = [
    "Plain.",
    " begins with a space",
    "\n\nbegins with lines",
    "  two  spaces  inside ",
    "!? punctuation",
    "你好，世界 é 😀👍🏽 naïve",
    "<ref>cat</ref><box>[[1, 2, 3, 4]]</box>",
    "x < y <img> </s>",
    "½ ﬁ Ｈ",
]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return make(request.param, tmp_path)


def make(kind: str, folder: Path) -> Any:
    if kind == "byte_level":
        return tokenizers.byte_level()
    if kind == "converted":
        return tokenizers.converted(folder)
    rewriting = kind == "slow_rewriting"
    return tokenizers.slow(
        folder, "nmt_nfkc" if rewriting else "identity", legacy=kind != "slow_not_legacy"
    )


def encoder(tokenizer: Any, **changes: Any) -> Encoder:
    values = {"num_image_token": 3, "system_message": "S.", **changes}
    return Encoder(tokenizer, encode_config(**values))


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# -- offsets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_the_tokenizers_and_offsets_cover_the_text(tokenizer: Any, text: str) -> None:
    wrapped = f"<|im_start|>user\n{text}<|im_end|>"
    tokens = TextTokenizer(tokenizer).encode(wrapped)
    assert tokens.ids.tolist() == ids_of(tokenizer, wrapped)
    assert (tokens.starts[1:] >= tokens.starts[:-1]).all()
    assert (tokens.ends >= tokens.starts).all()
    covered = np.zeros(len(wrapped), dtype=bool)
    for start, end in zip(tokens.starts, tokens.ends, strict=True):
        covered[start:end] = True
    missed = "".join(c for c, seen in zip(wrapped, covered, strict=True) if not seen)
    assert not missed.strip()
    end_of_turn = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    (place,) = np.flatnonzero(tokens.ids == end_of_turn)
    assert (tokens.starts[place], tokens.ends[place]) == (len(wrapped) - 10, len(wrapped))


def test_trimmed_offsets_are_not_relied_on() -> None:
    tokens = TextTokenizer(tokenizers.byte_level()).encode("a\n\n red")
    assert list(zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True)) == [
        (0, 1),
        (1, 3),
        (3, 7),
    ]


def test_bytes_of_one_character_all_cover_it(tmp_path: Path) -> None:
    for tokenizer in (tokenizers.slow(tmp_path), tokenizers.byte_level()):
        tokens = TextTokenizer(tokenizer).encode("a😀b")
        spans = set(zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True))
        assert (1, 2) in spans
        assert int(((tokens.starts == 1) & (tokens.ends == 2)).sum()) == 4


def test_counting_equals_encoding(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = TextTokenizer(tokenizer)
    expected = [len(ids_of(tokenizer, text)) for text in TEXTS]
    assert wrapped.count_batch(TEXTS) == expected
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert wrapped.count_batch(TEXTS) == expected


def test_the_fingerprint_tells_tokenizers_apart(tmp_path: Path) -> None:
    made = {kind: tmp_path / kind for kind in KINDS}
    for folder in made.values():
        folder.mkdir()
    prints = [TextTokenizer(make(kind, folder)).fingerprint() for kind, folder in made.items()]
    assert len(set(prints)) == len(prints)
    grown = tokenizers.byte_level()
    grown.add_tokens(["<more>"])
    assert TextTokenizer(grown).fingerprint() != prints[0]
    assert TextTokenizer(tokenizers.byte_level()).fingerprint() == prints[0]


# -- ids and labels -----------------------------------------------------------------------------


def test_exact_ids_and_labels() -> None:
    tokenizer = tokenizers.byte_level(merges=False)
    special = {t: tokenizer.convert_tokens_to_ids(t) for t in tokenizer.added_tokens_encoder}
    start, end = special["<|im_start|>"], special["<|im_end|>"]

    def raw(text: str) -> list[int]:
        return ids_of(tokenizer, text)

    context, first, last = special["<IMG_CONTEXT>"], special["<img>"], special["</img>"]
    encoded = encoder(tokenizer).encode([("<image>\nQ?", " A.")], [2])
    head = [start, *raw("system\nS."), end, start, *raw("user\n")]
    image = [first, *[context] * 6, last]
    question = [*raw("\nQ?"), end, start, *raw("assistant\n")]
    answer = [*raw(" A."), end]
    assert encoded.input_ids.tolist() == head + image + question + answer
    ignored = [IGNORE_INDEX] * len(head + image + question)
    assert encoded.labels.tolist() == ignored + answer
    assert encoded.text == (
        "<|im_start|>system\nS.<|im_end|><|im_start|>user\n<img>"
        + "<IMG_CONTEXT>" * 6
        + "</img>\nQ?<|im_end|><|im_start|>assistant\n A.<|im_end|>"
    )
    assert not encoded.truncated


def test_ids_equal_those_of_the_whole_text_in_one_call(tokenizer: Any) -> None:
    """Placeholders are tokenized once and repeated: that must not show."""
    turns = [("<image>\n<image> Compare 你好", " One. "), ("And <image>?", "\nTwo 😀")]
    encoded = encoder(tokenizer).encode(turns, [1, 2, 1])
    assert encoded.text.count("<IMG_CONTEXT>") == 12
    assert encoded.input_ids.tolist() == ids_of(tokenizer, encoded.text)


@pytest.mark.parametrize("answer", TEXTS[:7])
def test_labels_are_answers_and_end_of_turn(tokenizer: Any, answer: str) -> None:
    turns = [("What 你?", answer), ("More", answer + "!")]
    encoded = encoder(tokenizer).encode(turns)
    supervised = encoded.labels != IGNORE_INDEX
    assert (encoded.labels[supervised] == encoded.input_ids[supervised]).all()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (encoded.labels == end).sum() == 2
    # Each run of labels, decoded, is the answer: nothing more, nothing less.
    borders = np.flatnonzero(np.diff(np.concatenate([[0], supervised.astype(int), [0]])))
    runs = [encoded.labels[a:b].tolist() for a, b in borders.reshape(-1, 2)]
    assert [run[-1] for run in runs] == [end, end]
    decoded = ["".join(text_of(tokenizer, run[:-1]).split()) for run in runs]
    expected = ["".join(a.split()) for _, a in turns]
    if "nmt_nfkc" in str(getattr(tokenizer, "vocab_file", "")):
        expected = [text.replace("，", ",") for text in expected]
    assert decoded == expected


def text_of(tokenizer: Any, ids: list[int]) -> str:
    """Text of ids, byte pieces included, which Python tokenizers do not put together."""
    if tokenizer.is_fast:
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    raw = b""
    for piece in tokenizer.convert_ids_to_tokens(ids):
        is_byte = piece.startswith("<0x")
        raw += bytes([int(piece[3:5], 16)]) if is_byte else piece.replace("▁", " ").encode()
    return raw.decode()


def test_a_token_across_the_border_belongs_to_the_answer() -> None:
    tokenizer = tokenizers.byte_level()  # joins the template's newline with the answer's
    encoded = encoder(tokenizer).encode([("Q", "\n\nA")])
    double = tokenizer.convert_tokens_to_ids("ĊĊ")
    supervised = encoded.labels[encoded.labels != IGNORE_INDEX].tolist()
    assert supervised == [double, *ids_of(tokenizer, "\nA<|im_end|>")]


def test_pad_equal_to_eos_changes_nothing() -> None:
    tokenizer = tokenizers.byte_level()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    tokenizer.pad_token = tokenizer.eos_token = "<|im_end|>"
    encoded = encoder(tokenizer).encode([("Q", "A"), ("Q", "A")])
    assert (encoded.labels == tokenizer.pad_token_id).sum() == 2
    assert (encoded.input_ids == tokenizer.pad_token_id).sum() == 5


def test_a_beginning_token_where_the_template_wants_one(tmp_path: Path) -> None:
    tokenizer = tokenizers.slow(tmp_path)
    encoded = encoder(tokenizer, conv_style="internlm2-chat").encode([("Q", "A")])
    plain = encoder(tokenizer).encode([("Q", "A")])
    assert encoded.input_ids.tolist() == [tokenizer.bos_token_id, *plain.input_ids.tolist()]
    assert encoded.labels.tolist() == [IGNORE_INDEX, *plain.labels.tolist()]
    assert encoded.text == "<s>" + plain.text


def test_system_messages() -> None:
    tokenizer = tokenizers.byte_level()
    assert "system\nS.<" in encoder(tokenizer).encode([("Q", "A")]).text
    assert "system\nR.<" in encoder(tokenizer).encode([("Q", "A")], system="R.").text
    assert "system\n你是由" in encoder(tokenizer, system_message=None).encode([("Q", "A")]).text


# -- limits -------------------------------------------------------------------------------------


def test_text_beyond_the_limit_is_cut() -> None:
    tokenizer = tokenizers.byte_level()
    whole = encoder(tokenizer).encode([("Q", "A long answer")])
    total = len(whole.input_ids)
    cut = encoder(tokenizer, max_seq_length=total - 4).encode([("Q", "A long answer")])
    assert cut.truncated
    assert cut.input_ids.tolist() == whole.input_ids[:-4].tolist()
    assert cut.labels.tolist() == whole.labels[:-4].tolist()
    assert cut.text == whole.text
    exact = encoder(tokenizer, max_seq_length=total).encode([("Q", "A long answer")])
    assert not exact.truncated


def test_a_cut_that_leaves_no_label_or_removes_an_image() -> None:
    tokenizer = tokenizers.byte_level()
    for limit, turns, tiles, code in [
        (40, [("Q" * 50, "A")], [], "NO_LABEL"),
        (60, [("<image>" + "Q" * 50, "A"), ("<image>", "B")], [1, 1], "IMAGE_CUT"),
    ]:
        with pytest.raises(BadRecordError, match=r"^a\.jsonl:3: ") as caught:
            encoder(tokenizer, max_seq_length=limit).encode(turns, tiles, where="a.jsonl:3")
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("style", "text", "mark"),
    [
        ("phi3-chat", "a <|end|> b", "<|end|>"),
        ("phi3-chat", "<|user|>", "<|user|>"),
        ("internvl_zh", "</s>", "</s>"),
    ],
)
def test_control_tokens_of_the_template_in_the_text(style: str, text: str, mark: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        encoder(tokenizers.byte_level(), conv_style=style).encode([("Q", text)], where="a:1")
    assert f"a:1: the text holds {mark}, a control token of template {style}" in str(caught.value)


def test_images_and_tags_must_match() -> None:
    with pytest.raises(BadRecordError, match="1 <image> placeholders, 2 images"):
        encoder(tokenizers.byte_level()).encode([("<image>", "A")], [1, 1])


def test_a_tokenizer_without_the_image_tokens() -> None:
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    )
    with pytest.raises(ConfigError, match="does not keep <img> <IMG_CONTEXT> </img> in one piece"):
        encoder(bare)


def test_lengths_are_those_of_encoding(tokenizer: Any) -> None:
    conversations = [
        ([("Hi", "Hello")], []),
        ([("<image>\nHi 你好", " Hello 😀" * 5)], [2]),
        ([("Q" * 200, "A")], []),
        ([("<image>" + "Q" * 30, "A" * 90)], [1]),
    ]
    one = encoder(tokenizer, max_seq_length=110)
    rendered = [one.render(turns) for turns, _ in conversations]
    found = one.lengths(rendered, [tiles for _, tiles in conversations], ["a:1"] * 4)
    for (turns, tiles), result in zip(conversations, found, strict=True):
        if isinstance(result, BadRecordError):
            with pytest.raises(BadRecordError) as caught:
                one.encode(turns, tiles)
            assert caught.value.code == result.code
        else:
            encoded = one.encode(turns, tiles)
            assert result == (len(encoded.input_ids), encoded.truncated)
