"""Steps recorded as CUDA graphs: the answers are those of the plain loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from internvl_chat.chat import load_image, load_model
from internvl_chat.model.static_cache import has_used_attention
from internvl_chat.model.static_decoding import CudaRecorder, StaticDecoder, recorder_of
from internvl_chat.serve.engine import Engine
from internvl_chat.serve.settings import EngineSettings
from tests.support.serving import LIMIT_SECONDS, TINY, chat, put, tiny
from tests.unit.serve.test_engine import CONVERSATIONS, question

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = ["What shape is red?", "Where is it?", "What can you do?", "Describe the picture."]
GREEDY: dict[str, Any] = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}


LEAST_FREE = 1 << 30
"""Bytes: recording wants 256 MiB, the model, its prompts and cuBLAS some."""


@pytest.fixture
def loaded() -> Iterator[tuple[Any, Any]]:
    """The tiny model in fp32."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here: there is nothing to record steps with")
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < LEAST_FREE:
        pytest.skip(f"{free >> 20} MiB are free: others use the GPU, and no step would be recorded")
    yield load_model(str(TINY), device="cuda", dtype=torch.float32)
    torch.cuda.empty_cache()


def answers(model: Any, tokenizer: Any, settings: dict[str, Any], rows: int = 3) -> list[str]:
    pixels = load_image(str(ROOT / "examples/image2.jpg"), model=model).to(
        model.device, model.dtype
    )
    torch.manual_seed(5)
    tiles = torch.cat([pixels] * rows)
    asked = [QUESTIONS[row % 4] for row in range(rows)]
    return model.batch_chat(  # type: ignore[no-any-return]
        tokenizer, tiles, asked, settings, num_patches_list=[len(pixels)] * rows
    )


def plain(model: Any, tokenizer: Any, settings: dict[str, Any], rows: int = 3) -> list[str]:
    model.static_decoding = False
    found = answers(model, tokenizer, settings, rows)
    model.static_decoding = None
    return found


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 1.3, "top_p": 0.9}])
def test_tokens_are_those_of_the_plain_loop(
    loaded: tuple[Any, Any], rows: int, sampling: dict[str, Any]
) -> None:
    model, tokenizer = loaded
    settings = {**GREEDY, **sampling}
    wanted = plain(model, tokenizer, settings, rows)
    for _ in range(3):
        assert answers(model, tokenizer, settings, rows) == wanted
    assert model.static_decoder.num_recorded == 1


def test_answers_that_outgrow_their_places(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    settings = {**GREEDY, "max_new_tokens": 500, "min_new_tokens": 500}
    wanted = plain(model, tokenizer, settings)
    assert answers(model, tokenizer, settings) == wanted
    assert answers(model, tokenizer, settings) == wanted
    assert model.static_decoder.num_recorded >= 3


def test_adapters_and_other_weights_are_noticed(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    targets = r"language_model.*(q_proj|up_proj)"
    wrapped: Any = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.eval()
    assert answers(model, tokenizer, GREEDY) == plain(model, tokenizer, GREEDY)
    with wrapped.disable_adapter():
        assert answers(model, tokenizer, GREEDY) == plain(model, tokenizer, GREEDY)
    wrapped.merge_adapter()
    assert answers(model, tokenizer, GREEDY) == plain(model, tokenizer, GREEDY)
    assert model.static_decoder.num_recorded == 3


def test_bf16_repeats_itself(loaded: tuple[Any, Any]) -> None:
    """The step that runs before one is recorded gives what the recorded one gives."""
    model, tokenizer = loaded
    model.bfloat16()
    first = answers(model, tokenizer, GREEDY)
    assert [answers(model, tokenizer, GREEDY) for _ in range(2)] == [first] * 2
    assert model.static_decoder.num_recorded == 1
    width = model.language_model.config.head_dim
    assert has_used_attention(torch.bfloat16, model.device, width) in (True, False)


def test_bf16_is_as_exact_as_the_plain_loop(device: torch.device) -> None:
    """Told the same tokens, recorded steps are at most twice as far from fp32 as eager ones.

    Their tokens need not be the same: where two are as likely as each other but for bf16's
    rounding, eager steps of one row and of several differ, too.
    """
    model, _ = load_model(str(TINY), device=device, dtype=torch.float32)
    told = torch.randint(5, 250, (3, 48), generator=torch.Generator().manual_seed(0)).to(device)
    begun = 16
    with torch.no_grad():
        exact = model.language_model(told).logits[:, begun:]
        llm = model.bfloat16().language_model
        read = llm(told[:, :begun], use_cache=True).past_key_values
        layers = [(layer.keys.clone(), layer.values.clone()) for layer in read.layers]
        decoder = StaticDecoder(recorder_of)
        decoder.begin(llm, layers, [0, 0, 0])
        recorded, eager = [], []
        for token in told[:, begun:].T:
            recorded.append(decoder.step(llm, token).clone())
            eager.append(llm(token[:, None], past_key_values=read, use_cache=True).logits[:, -1])
    assert decoder.num_recorded == (1 if device.type == "cuda" else 0)
    off, allowed = ((torch.stack(found, 1) - exact).abs().max() for found in (recorded, eager))
    assert 0 < off <= 2 * allowed + 2**-8 * exact.abs().max()


def test_rows_of_the_server(loaded: tuple[Any, Any]) -> None:
    """They come and go on a thread of their own."""
    engine = Engine(*loaded, EngineSettings(max_batch_size=3))
    asked = [put(engine, question(*conversation))[0] for conversation in CONVERSATIONS]
    engine.start()
    for told in asked:
        told.finished()
    engine.stop(0)
    assert engine.join(LIMIT_SECONDS)
    wanted = [chat(tiny(), *conversation) for conversation in CONVERSATIONS]
    assert [told.text for told in asked] == wanted
    assert loaded[0]._static_decoder.num_recorded >= 1


def test_two_models_at_the_same_time(loaded: tuple[Any, Any]) -> None:
    """As the page's --compare asks them: one records while the other draws random numbers."""
    others = load_model(str(TINY), device="cuda", dtype=torch.float32)
    settings = {**GREEDY, "do_sample": True}

    def ask(pair: tuple[Any, Any]) -> int:
        for rows in (1, 2, 3, 5, 9):
            assert all(answers(*pair, settings, rows))
        return int(pair[0].static_decoder.num_recorded)

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(ask, [loaded, others])) == [5, 5]


def test_a_gpu_that_is_not_the_current_one(loaded: tuple[Any, Any]) -> None:
    """Nothing waits for the current one's stream instead."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU here")
    second = load_model(str(TINY), device="cuda:1", dtype=torch.float32)
    assert torch.cuda.current_device() == 0
    for rows in (1, 3):
        assert answers(*second, GREEDY, rows) == plain(*loaded, GREEDY, rows)
    assert second[0].static_decoder.num_recorded == 2


def test_a_plain_loop_samples_beside_one_that_records(loaded: tuple[Any, Any]) -> None:
    others = load_model(str(TINY), device="cuda", dtype=torch.float32, compile=False)
    settings = {**GREEDY, "do_sample": True}

    def ask(pair: tuple[Any, Any]) -> bool:
        return all(all(answers(*pair, settings, rows)) for rows in (1, 2, 3, 5, 9))

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(ask, [loaded, others])) == [True, True]


def test_an_answer_under_autocast_leaves_nothing_behind(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    wanted = plain(model, tokenizer, GREEDY)
    with torch.autocast("cuda", torch.bfloat16):
        first = answers(model, tokenizer, GREEDY)
    assert answers(model, tokenizer, GREEDY) == wanted
    with torch.autocast("cuda", torch.bfloat16):
        assert answers(model, tokenizer, GREEDY) == first


def waits(number: torch.Tensor) -> torch.Tensor:
    """CUDA gives a recording up where it is waited for."""
    number.add_(number.item())
    return number


def is_interrupted(number: torch.Tensor) -> torch.Tensor:
    number.add_(1)
    raise KeyboardInterrupt


def is_interrupted_once_given_up(number: torch.Tensor) -> torch.Tensor:
    try:
        return waits(number)
    except RuntimeError:
        raise KeyboardInterrupt from None


@pytest.mark.parametrize("step", [waits, is_interrupted, is_interrupted_once_given_up])
def test_random_numbers_after_a_recording_that_failed(
    step: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    device = torch.device("cuda", torch.cuda.current_device())
    undisturbed = torch.Generator(device).manual_seed(5)
    torch.manual_seed(5)

    def assert_same_numbers() -> None:
        found = torch.rand(1000, device=device)
        assert torch.equal(found, torch.rand(1000, device=device, generator=undisturbed))

    assert_same_numbers()
    number = torch.ones(1, device=device)
    recorder = CudaRecorder(device)
    recorder.warm_up(lambda: number.add_(1))
    recorder.warm_up(lambda: number.mul_(3))
    before = recorder.record(lambda: number.mul_(3))  # of 6, and not run
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        recorder.record(lambda: step(number))
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert_same_numbers()
    assert before().item() == 18.0
    assert_same_numbers()
    after = recorder.record(lambda: number.add_(1))
    assert after().item() == 19.0
    assert before().item() == 57.0
    assert_same_numbers()
    torch.cuda.empty_cache()


def test_sampling_where_a_step_cannot_be_recorded(
    loaded: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The answer amid which that turns out is that of the plain loop, and so are later ones."""
    model, tokenizer = loaded
    settings = {**GREEDY, "do_sample": True, "temperature": 1.3}
    wanted = plain(model, tokenizer, settings)

    def wait(module: Any, inputs: Any, output: torch.Tensor) -> None:
        output.sum().item()

    hook = model.language_model.lm_head.register_forward_hook(wait)
    with caplog.at_level(logging.WARNING):
        assert answers(model, tokenizer, settings) == wanted
    assert "steps are not recorded" in caplog.text
    assert answers(model, tokenizer, settings) == wanted
    assert model.static_decoder.num_recorded == 0
    hook.remove()
    assert answers(model, tokenizer, settings) == wanted
    assert model.static_decoder.num_recorded == 1
