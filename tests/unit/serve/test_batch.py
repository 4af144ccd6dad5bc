"""Rows that join and leave: what is computed for one is what it would be alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from internvl_chat.chat import load_model
from internvl_chat.model import static_decoding
from internvl_chat.serve.batch import (
    Batch,
    EncodedPrompt,
    StaticRows,
    decode,
    fast_rows,
    prefill,
)
from tests.support.checkpoints import randomised
from tests.support.training import write_tiny_chat_model

# fp32, two layers: other sizes of batch change the order of sums; measured 2e-6.
CLOSE = {"atol": 2e-5, "rtol": 0.0}


def numbered(mask: list[list[int]], first: float) -> Batch:
    """One layer with one head of width 1; the keys of real positions count up."""
    ones = torch.tensor(mask)
    keys = (torch.arange(ones.numel()).view(ones.shape) + first) * ones
    layer = keys.float().view(*ones.shape, 1).unsqueeze(1)
    return Batch(((layer, -layer),), ones)


def test_joining_pads_the_shorter_on_the_left() -> None:
    joined = numbered([[1, 1]], 1).join(numbered([[0, 1, 1]], 10))
    assert joined.mask.tolist() == [[0, 1, 1], [0, 1, 1]]
    keys, values = joined.layers[0]
    assert keys[:, 0, :, 0].tolist() == [[0, 1, 2], [0, 11, 12]]
    torch.testing.assert_close(values, -keys)


def test_leaving_drops_what_nobody_uses() -> None:
    batch = numbered([[1, 1, 1], [0, 0, 1], [0, 1, 1]], 1)
    kept = batch.keep([2, 1])
    assert kept.mask.tolist() == [[1, 1], [0, 1]]
    assert kept.layers[0][0][:, 0, :, 0].tolist() == [[8, 9], [0, 6]]
    assert batch.mask.shape == (3, 3)  # left as it was


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Mistral with a window shorter than the prompts."""
    llm: dict[str, Any] = {"model_type": request.param}
    if request.param == "mistral":
        llm |= {"sliding_window": 5, "head_dim": 4}
    path = write_tiny_chat_model(tmp_path_factory.mktemp(request.param), llm=llm)
    loaded, tokenizer = load_model(str(path), device="cpu")
    randomised(loaded)
    loaded.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    return loaded


def prompt(model: Any, length: int, num_tiles: int = 0) -> EncodedPrompt:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, 256, (length,), generator=generator).tolist()
    for tile in range(num_tiles):
        start = 2 + tile * (model.num_image_token + 1)
        ids[start : start + model.num_image_token] = [
            model.img_context_token_id
        ] * model.num_image_token
    tiles = torch.randn(num_tiles, 3, 28, 28, generator=generator) if num_tiles else None
    return EncodedPrompt(ids, tiles)


def alone(model: Any, one: EncodedPrompt, tokens: list[int]) -> torch.Tensor:
    """(V,) logits behind prompt and tokens, by the whole model without a cache."""
    output = model(
        pixel_values=one.tiles,
        input_ids=torch.tensor([one.ids + tokens]),
        use_cache=False,
    )
    return output.logits[0, -1]


@torch.no_grad()
def test_rows_come_and_go(model: Any) -> None:
    long, short, shown = prompt(model, 19), prompt(model, 3), prompt(model, 14, num_tiles=2)
    batch, logits = prefill(model, [short, shown], pad_id=0)
    torch.testing.assert_close(logits[0], alone(model, short, []), **CLOSE)
    torch.testing.assert_close(logits[1], alone(model, shown, []), **CLOSE)
    batch, logits = decode(model, batch, [5, 6])
    torch.testing.assert_close(logits[0], alone(model, short, [5]), **CLOSE)
    torch.testing.assert_close(logits[1], alone(model, shown, [6]), **CLOSE)
    newer, logits = prefill(model, [long], pad_id=0)
    torch.testing.assert_close(logits[0], alone(model, long, []), **CLOSE)
    batch, logits = decode(model, batch.join(newer), [7, 8, 9])
    for row, (one, tokens) in enumerate([(short, [5, 7]), (shown, [6, 8]), (long, [9])]):
        torch.testing.assert_close(logits[row], alone(model, one, tokens), **CLOSE)
    batch, logits = decode(model, batch.keep([0, 1]), [1, 2])
    assert batch.mask.shape == (2, 14 + 3)  # the longest has left, and its width with it
    for row, (one, tokens) in enumerate([(short, [5, 7, 1]), (shown, [6, 8, 2])]):
        torch.testing.assert_close(logits[row], alone(model, one, tokens), **CLOSE)


@torch.no_grad()
def test_rows_at_fixed_addresses_come_and_go(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that joins takes the place of one that left; they move as they grow and get few."""
    monkeypatch.setattr(static_decoding, "_LEAST_PLACES", 4)
    monkeypatch.setattr(model, "static_decoding", True)
    first = {number: prompt(model, 2 + number) for number in range(4)}
    batch, _ = prefill(model, list(first.values()), pad_id=0)
    rows = fast_rows(model, batch, 8)
    if model.language_model.config.model_type == "mistral":
        assert rows is batch  # its window is shorter than its context
        return
    assert isinstance(rows, StaticRows)
    assert fast_rows(model, batch, 65) is batch
    texts: dict[int, tuple[EncodedPrompt, list[int]]] = {n: (p, []) for n, p in first.items()}

    def step() -> None:
        tokens = [number + len(said) for number, (_, said) in texts.items()]
        _, logits = decode(model, rows, tokens)
        for row, ((one, said), token) in enumerate(zip(texts.values(), tokens, strict=True)):
            said.append(token)
            torch.testing.assert_close(logits[row], alone(model, one, said), **CLOSE)

    def keep(*numbers: int) -> None:
        names = list(texts)
        assert rows.keep([names.index(number) for number in numbers]) is rows
        left = {number: texts[number] for number in numbers}
        texts.clear()
        texts.update(left)

    def join(number: int, length: int) -> None:
        texts[number] = prompt(model, length), []
        assert rows.join(prefill(model, [texts[number][0]], pad_id=0)[0]) is rows

    step()
    keep(0, 2, 3)
    assert rows.decoder._slots == [0, 2, 3]
    step()
    join(4, 4)
    assert rows.decoder._slots == [0, 2, 3, 1]
    step()
    join(5, 19)
    join(6, 2)
    assert rows.decoder._cut == (8, 20)
    step()
    keep(6, 3)
    assert (rows.decoder._cut, rows.decoder._slots) == ((2, 12), [0, 1])
    for _ in range(6):
        step()


def test_without_memory_for_them_rows_stay_as_they_are(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "static_decoding", True)
    batch, _ = prefill(model, [prompt(model, 4)], pad_id=0)

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(static_decoding.StaticDecoder, "join", full)
    assert fast_rows(model, batch, 8) is batch
    monkeypatch.undo()
    monkeypatch.setattr(model, "static_decoding", True)
    monkeypatch.setattr("internvl_chat.serve.batch.has_memory_for", lambda *_: False)
    assert fast_rows(model, batch, 8) is batch
    assert model.static_decoder.num_bytes == 0


def test_a_wrong_number_of_tiles_is_told(model: Any) -> None:
    broken = EncodedPrompt(prompt(model, 14, num_tiles=2).ids, torch.zeros(1, 3, 28, 28))
    with pytest.raises(ValueError, match="8 image tokens"):
        prefill(model, [broken], pad_id=0)
