"""Steps at fixed addresses, recorded and replayed: the tokens are those of the plain loop."""

from __future__ import annotations

import contextlib
import copy
import logging
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from internvl_chat import InternVLChatModel
from internvl_chat.model import decoding_loop, generation, static_decoding
from internvl_chat.model.decoding_choice import bytes_of_token, static_keywords, why_not, window_of
from internvl_chat.model.static_cache import (
    MASKED,
    USED,
    attention_of_steps,
    masked_attention,
    used_places,
)
from internvl_chat.model.static_decoding import (
    CudaRecorder,
    StaticDecoder,
    drawing,
    recorder_of,
    round_places,
    round_rows,
)
from tests.support.models import make_batch, make_config, make_model, make_tokenizer

GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}


class FakeGraphs:
    """Records as CUDA graphs do: without running, and into one tensor ever after."""

    def __init__(self, problem: str = "") -> None:
        self.problem = problem
        self.num_warm, self.num_replayed, self.num_forgotten = 0, 0, 0

    def forget(self) -> None:
        self.num_forgotten += 1

    def warm_up(self, step: Callable[[], Tensor]) -> Tensor:
        self.num_warm += 1
        return step()

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        if self.problem:
            raise RuntimeError(self.problem)
        result: list[Tensor] = []

        def replay() -> Tensor:
            self.num_replayed += 1
            logits = step()
            if not result:
                result.append(logits)
            return result[0].copy_(logits)

        return replay


def with_graphs(model: InternVLChatModel, graphs: FakeGraphs) -> StaticDecoder:
    model.static_decoding = True
    model._static_decoder = StaticDecoder(lambda device: graphs)
    return model._static_decoder


def prompts(model: InternVLChatModel, rows: int = 3, length: int = 18) -> dict[str, Tensor]:
    """Padded on the left by another length a row, images in the first and last."""
    batch = make_batch(model.num_image_token, rows=rows, length=length)
    del batch["labels"]
    mask = torch.ones_like(batch["input_ids"])
    for row in range(rows):
        mask[row, : min(row, 2)] = 0
    return {**batch, "attention_mask": mask}


def both(model: InternVLChatModel, ask: Callable[[], Any]) -> tuple[Any, Any]:
    """What is answered step by step, and by steps at fixed addresses; from one seed."""
    found = []
    for static in (False, True):
        model.static_decoding = static
        torch.manual_seed(0)
        found.append(ask())
    return found[0], found[1]


def is_used(model: InternVLChatModel) -> bool:
    decoder = model._static_decoder
    return decoder is not None and bool(decoder.lengths)


@pytest.mark.parametrize("kind", ["llama", "gemma", "granite", "mistral", "phi3", "qwen2", "qwen3"])
def test_tokens_are_those_of_the_plain_loop(kind: str) -> None:
    """fp32; rows of other lengths end at other steps."""
    llm = {"model_type": kind, "pad_token_id": 0}
    model = make_model(make_config(llm=llm | ({"head_dim": 6} if kind != "phi3" else {})))
    batch = prompts(model)
    free = model.generate(**batch, **GREEDY, eos_token_id=279)
    first = free[:, 0].tolist()
    ends = [token for token in free[:, 2:9].flatten().tolist() if token not in first] or [279]
    settings = {**GREEDY, "eos_token_id": ends}
    plain, static = both(model, lambda: model.generate(**batch, **settings))
    assert torch.equal(plain, static)
    assert is_used(model)
    sampled = {**settings, "do_sample": True, "temperature": 1.5, "top_p": 0.9}
    plain, static = both(model, lambda: model.generate(**batch, **sampled))
    assert torch.equal(plain, static)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.5},
        {"num_return_sequences": 2, "do_sample": True},
        {"min_new_tokens": 9, "eos_token_id": list(range(200))},
        {"max_time": 60.0},
        {"no_repeat_ngram_size": 2},
    ],
)
def test_settings_mean_the_same(settings: dict[str, Any]) -> None:
    model = make_model()
    batch = prompts(model)
    asked = {**GREEDY, "eos_token_id": 279, **settings}
    plain, static = both(model, lambda: model.generate(**batch, **asked))
    assert torch.equal(plain, static)
    assert is_used(model)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2},
        {"use_cache": False},
        {"disable_compile": True},
        {"return_dict_in_generate": True, "output_scores": True},
        {"cache_implementation": "static"},
        {"output_hidden_states": True, "return_dict_in_generate": True},
        {"prefill_chunk_size": None, "penalty_alpha": None, "num_beams": 3},
    ],
)
def test_what_wants_another_loop_gets_it(settings: dict[str, Any]) -> None:
    model = make_model()
    batch = prompts(model)
    asked = {**GREEDY, "eos_token_id": 279, **settings}
    plain, other = both(model, lambda: model.generate(**batch, **asked))
    first = getattr(plain, "sequences", plain)
    assert torch.equal(first, getattr(other, "sequences", other))
    assert not is_used(model)


class Told:
    """A streamer."""

    def __init__(self) -> None:
        self.pieces: list[list[int]] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        assert value.device.type == "cpu"
        self.pieces.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


class Asked(StoppingCriteria):
    """Ends after some tokens."""

    def __init__(self, last: int) -> None:
        self.lengths: list[int] = []
        self.last = last

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.lengths.append(input_ids.shape[1])
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.last)


def test_chat_with_history_images_streams_and_stops() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    told: list[Told] = []
    asked: list[Asked] = []

    def ask() -> Any:
        told.append(Told())
        asked.append(Asked(7))
        streamed = model.chat(
            tokenizer,
            pixels,
            "<image>\nand this?",
            {
                **GREEDY,
                "streamer": told[-1],
                "stopping_criteria": StoppingCriteriaList([asked[-1]]),
            },
            history=[("<image>\nWhat is it?", "a star")],
            return_history=True,
            num_patches_list=[1, 1],
        )
        return streamed, model.batch_chat(
            tokenizer, pixels, ["What?", "What is this one?"], GREEDY, num_patches_list=[1, 1]
        )

    plain, static = both(model, ask)
    assert plain == static
    assert told[0].pieces == told[1].pieces
    assert asked[0].lengths == asked[1].lengths == list(range(1, len(told[0].pieces)))
    assert [one.ended for one in told] == [1, 1]


def test_stop_strings() -> None:
    """transformers does not hand the tokenizer on to a loop that is not its own."""
    model, tokenizer = make_model(), make_tokenizer()
    batch = prompts(model, rows=1)
    free = model.generate(**batch, **GREEDY, eos_token_id=279)
    texts = [tokenizer.decode([token]) for token in free[0, 1:-1].tolist()]
    text = next(text for text in texts if text.isascii() and text.isprintable() and text)
    asked = {**GREEDY, "eos_token_id": 279, "stop_strings": [text], "tokenizer": tokenizer}
    plain, static = both(model, lambda: model.generate(**batch, **asked))
    assert torch.equal(plain, static)
    assert static.shape[1] < 12
    assert is_used(model)
    del asked["tokenizer"]
    with pytest.raises(ValueError, match="stop_strings need the tokenizer"):
        model.generate(**batch, **asked)


def test_the_second_step_of_a_size_is_recorded_and_others_replayed() -> None:
    model = make_model()
    graphs = FakeGraphs()
    decoder = with_graphs(model, graphs)
    batch = prompts(model)
    settings = {**GREEDY, "eos_token_id": 279}
    first = model.generate(**batch, **settings)
    assert (graphs.num_warm, decoder.num_recorded, graphs.num_replayed) == (1, 1, 10)
    assert torch.equal(model.generate(**batch, **settings), first)
    assert (graphs.num_warm, decoder.num_recorded, graphs.num_replayed) == (1, 1, 21)
    short = model.generate(**batch, **{**settings, "max_new_tokens": 2})
    assert torch.equal(short, first[:, :2])
    model.static_decoding = False
    assert torch.equal(model.generate(**batch, **settings), first)
    assert graphs.num_replayed == 22


def test_rows_move_when_their_places_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_decoding, "_LEAST_PLACES", 4)
    model = make_model()
    batch = prompts(model)
    asked = {**GREEDY, "max_new_tokens": 40, "eos_token_id": 279}
    plain = model.generate(**batch, **asked)
    graphs = FakeGraphs()
    decoder = with_graphs(model, graphs)
    for _ in range(2):
        assert torch.equal(model.generate(**batch, **asked), plain)
    # 18 to 57 tokens: 20, 24, 28, 32, 40, 48, 56, 64 places; the memory grew with the first
    # answer, so that what was recorded before the last growth was of former addresses.
    assert (graphs.num_warm, decoder.num_recorded) == (15, 15)
    assert graphs.num_forgotten > 0
    assert decoder.lengths == [18 + 39, 17 + 39, 16 + 39]


def test_no_more_is_recorded_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_decoding, "_MAX_RECORDED", 2)
    model = make_model()
    decoder = with_graphs(model, FakeGraphs())
    settings = {**GREEDY, "eos_token_id": 279}
    for rows in (5, 3, 1, 2, 5):
        model.generate(**prompts(model, rows=rows), **settings)
    assert len(decoder._recorded) == 2
    assert decoder.num_recorded == 5


def test_nothing_is_replayed_of_other_weights() -> None:
    model = make_model()
    decoder = with_graphs(model, FakeGraphs())
    batch = prompts(model)
    settings = {**GREEDY, "eos_token_id": 279}
    model.generate(**batch, **settings)
    projection = model.language_model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        projection.weight.mul_(-3)  # in place: the same step reads it
    changed = model.generate(**batch, **settings)
    assert decoder.num_recorded == 1
    projection.weight = torch.nn.Parameter(projection.weight.clone())
    assert torch.equal(model.generate(**batch, **settings), changed)
    assert decoder.num_recorded == 2
    model.double()
    model.generate(**{**batch, "pixel_values": batch["pixel_values"].double()}, **settings)
    assert decoder.num_recorded == 3


def test_adapters() -> None:
    """Not merged, merged, switched off, and scaled otherwise: each is recorded anew."""
    model = make_model()
    targets = r"language_model.*(q_proj|up_proj)"
    wrapped: Any = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.eval()
    decoder = with_graphs(model, FakeGraphs())
    batch = prompts(model)
    settings = {**GREEDY, "eos_token_id": 279}

    def agree() -> int:
        before = decoder.num_recorded
        model.static_decoding = False
        plain = wrapped.generate(**batch, **settings)
        model.static_decoding = True
        assert torch.equal(wrapped.generate(**batch, **settings), plain)
        return decoder.num_recorded - before

    assert agree() == 1
    assert agree() == 0
    layer = model.language_model.model.layers[0].self_attn.q_proj
    layer.scaling["default"] = 9.0
    assert agree() == 1
    with wrapped.disable_adapter():
        assert agree() == 1
    wrapped.merge_adapter()
    assert agree() == 1
    model_with_lora_inside = make_model(make_config(use_llm_lora=2))
    batch = prompts(model_with_lora_inside)
    plain, static = both(
        model_with_lora_inside, lambda: model_with_lora_inside.generate(**batch, **settings)
    )
    assert torch.equal(plain, static)
    assert is_used(model_with_lora_inside)


def test_a_step_that_cannot_be_recorded_runs_as_before(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    graphs = FakeGraphs("operation not permitted when stream is capturing")
    decoder = with_graphs(model, graphs)
    batch = prompts(model)
    settings = {**GREEDY, "eos_token_id": 279, "do_sample": True}
    with caplog.at_level(logging.WARNING):
        plain, first = both(model, lambda: model.generate(**batch, **settings))
        again = both(model, lambda: model.generate(**batch, **settings))[1]
    assert torch.equal(plain, first)
    assert torch.equal(first, again)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not permitted when stream is capturing" in caplog.text
    assert decoder.num_recorded == 0


def test_without_memory_to_record_with_the_next_answer_tries_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    graphs = FakeGraphs()
    decoder = with_graphs(model, graphs)
    batch = prompts(model)
    settings = {**GREEDY, "eos_token_id": 279}
    record = graphs.record

    def full(step: Any) -> Any:
        monkeypatch.setattr(graphs, "record", record)
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(graphs, "record", full)
    first = model.generate(**batch, **settings)
    assert (decoder.num_recorded, "no memory to record steps with" in caplog.text) == (0, True)
    assert torch.equal(model.generate(**batch, **settings), first)
    assert decoder.num_recorded == 1


class FakeCuda:
    """What PyTorch is on a GPU, as far as recording goes: a capture that has failed cannot be
    ended, and leaves the stream, the allocator and the generator of random numbers behind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_invalid = False
        self.stream = "before"
        self.recording_to: list[Any] = []
        self.released: list[Any] = []
        self.generator = FakeGenerator()
        self.num_pools = 0
        place = contextlib.nullcontext()
        for name, value in {
            "Stream": lambda device: "of recordings",
            "graph_pool_handle": self.new_pool,
            "current_stream": lambda device: self.stream,
            "current_device": lambda: 0,
            "device": lambda device: place,
            "set_stream": self.set_stream,
            "CUDAGraph": lambda: self,
            "graph": self.graph,
            "default_generators": (self.generator,),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocation)
        monkeypatch.setattr(
            torch._C, "_cuda_releasePool", lambda _, pool: self.released.append(pool)
        )

    def new_pool(self) -> tuple[int, int]:
        self.num_pools += 1
        return 0, self.num_pools

    def set_stream(self, stream: str) -> None:
        self.stream = stream

    def reset(self) -> None:
        """Of a graph."""

    def end_allocation(self, device: int, pool: tuple[int, int]) -> None:
        if pool not in self.recording_to:
            raise RuntimeError("not currently recording to mempool_id")
        self.recording_to.remove(pool)

    @contextlib.contextmanager
    def graph(self, graph: Any, *, pool: Any, stream: str, capture_error_mode: str) -> Any:
        before, self.stream = self.stream, stream
        self.recording_to.append(pool)
        self.generator.is_recorded = True
        try:
            yield
        finally:
            if self.is_invalid:
                self.is_invalid = False
                raise RuntimeError("operation failed due to a previous error during capture")
            self.end_allocation(0, pool)
            self.generator.is_recorded = False
            self.stream = before


class FakeGenerator:
    def __init__(self, offset: int = 0) -> None:
        self.offset, self.is_recorded = offset, False

    def clone_state(self) -> FakeGenerator:
        return FakeGenerator(self.offset)

    def graphsafe_set_state(self, other: FakeGenerator) -> None:
        self.offset, self.is_recorded = other.offset, other.is_recorded


@pytest.mark.parametrize("ended_by", [ValueError, KeyboardInterrupt, None])
@pytest.mark.parametrize("is_invalid", [True, False])
def test_a_recording_that_failed_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, ended_by: type[BaseException] | None, is_invalid: bool
) -> None:
    cuda = FakeCuda(monkeypatch)
    cuda.generator.offset = 8
    recorder = CudaRecorder(torch.device("cuda", 0))
    logits = torch.zeros(1)

    def step() -> Tensor:
        cuda.is_invalid = is_invalid
        if ended_by is not None:
            raise ended_by
        return logits

    fails = is_invalid or ended_by is not None
    expected: Any = RuntimeError if is_invalid else ended_by
    with pytest.raises(expected) if fails else contextlib.nullcontext():
        recorder.record(step)
    assert (cuda.stream, cuda.recording_to) == ("before", [])
    assert (cuda.generator.offset, cuda.generator.is_recorded) == (8, False)
    assert cuda.released == ([(0, 1)] if is_invalid else [])
    recorder.record(lambda: logits)
    assert cuda.num_pools == (2 if fails else 1)


def test_a_failed_recording_is_cleared_up_by_older_pytorch_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Up to 2.8 the function has another name; checkpoints, with this code, load there."""
    cuda = FakeCuda(monkeypatch)
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    former = "_cuda_endAllocateCurrentStreamToPool"
    monkeypatch.setattr(torch._C, former, cuda.end_allocation, raising=False)
    cuda.is_invalid = True
    with pytest.raises(RuntimeError, match="during capture"):
        CudaRecorder(torch.device("cuda", 0)).record(lambda: torch.zeros(1))
    assert (cuda.stream, cuda.recording_to, cuda.released) == ("before", [], [(0, 1)])


def test_in_inference_mode_and_out_of_it() -> None:
    model = make_model()
    with_graphs(model, FakeGraphs())
    batch = prompts(model)
    settings = {**GREEDY, "eos_token_id": 279}
    with torch.inference_mode():
        inside = model.generate(**batch, **settings)
    assert torch.equal(model.generate(**batch, **settings), inside)
    with torch.inference_mode():
        assert torch.equal(model.generate(**batch, **settings), inside)


def test_memory_is_given_back_and_copies_begin_anew() -> None:
    model = make_model()
    decoder = with_graphs(model, FakeGraphs())
    batch = prompts(model)
    settings = {**GREEDY, "eos_token_id": 279}
    found = model.generate(**batch, **settings)
    # 2 layers, keys and values, 4 x 256 places, 2 heads of 6, fp32.
    assert decoder.num_bytes == 2 * 2 * 4 * 256 * 2 * 6 * 4
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(decoder))):
        other = getattr(copied, "_static_decoder", copied)
        assert other is not decoder
        assert other.num_bytes == 0
    decoder.release()
    assert decoder.num_bytes == 0
    assert torch.equal(model.generate(**batch, **settings), found)
    assert decoder.num_recorded == 2


def test_a_small_answer_lets_a_large_ones_memory_go(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    decoder = with_graphs(model, FakeGraphs())
    settings = {**GREEDY, "eos_token_id": 279}
    for kept, left in ((1 << 29, 20), (0, 4)):
        monkeypatch.setattr(static_decoding, "_KEPT_ELEMENTS", kept)
        model.generate(**prompts(model, rows=17), **settings)
        small = model.generate(**prompts(model), **settings)
        assert decoder.num_bytes == 2 * 2 * left * 256 * 2 * 6 * 4
        model.generate(**prompts(model, rows=5), **settings)
        assert torch.equal(model.generate(**prompts(model), **settings), small)


def test_when_the_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt is read again with the decoder's memory given back; what fails then, fails."""
    model = make_model()
    decoder = with_graphs(model, FakeGraphs())
    batch = prompts(model)
    settings = {**GREEDY, "eos_token_id": 279}
    found = model.generate(**batch, **settings)
    forward = model.language_model.forward

    def full(*args: Any, **kwargs: Any) -> Any:
        if decoder.num_bytes:
            raise torch.OutOfMemoryError("full")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.language_model, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):  # the prompt fits now, the first step does not
        model.generate(**batch, **settings)
    assert decoder.num_bytes == 0
    monkeypatch.undo()
    assert torch.equal(model.generate(**batch, **settings), found)


def test_a_window_is_for_the_plain_loop_once_it_is_passed() -> None:
    llm = {"model_type": "mistral", "sliding_window": 24, "head_dim": 6}
    model = make_model(make_config(llm=llm))
    batch = prompts(model)
    assert window_of(model.language_model.config) == 24
    for length, used in ((6, True), (7, False)):
        settings = {**GREEDY, "eos_token_id": 279, "max_new_tokens": length}
        model._static_decoder = None
        plain, static = both(model, lambda s=settings: model.generate(**batch, **s))  # type: ignore[misc]
        assert torch.equal(plain, static)
        assert is_used(model) is used


def test_which_models_are_not_decoded_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    llm = model.language_model
    assert why_not(llm, on_cpu=True) is None
    assert why_not(llm, on_cpu=False) == "it is on the CPU"
    assert model.static_decoder is None
    llm.train()
    assert why_not(llm, on_cpu=True) == "it is in training mode"
    llm.eval()
    config = llm.config
    for name, value, told in [
        ("model_type", "opt", "language models of type opt are not among"),
        ("_attn_implementation", "eager", "attn_implementation is eager"),
        ("rope_parameters", {"rope_type": "dynamic"}, "(dynamic) depend on the length"),
        ("layer_types", ["full_attention", "sliding_attention"], "full_attention, sliding"),
        ("layer_types", ["chunked_attention"], "its layers are of chunked_attention"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(config, name, value, raising=False)
            assert told in str(why_not(llm, on_cpu=True))
    llm.quantization_method = "bitsandbytes"
    assert why_not(llm, on_cpu=True) == "its weights are quantized"
    del llm.quantization_method
    model.static_decoding = True
    assert model.static_decoder is not None
    model.is_quantized = True  # as transformers marks what it loads in 8 bits: not the parts
    assert model.static_decoder is None
    model.static_decoding, model._told = None, None
    del model.is_quantized
    llm.lm_head.to("meta")
    assert why_not(llm, on_cpu=True) == "it is spread over several devices"
    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(InternVLChatModel, "device", torch.device("cuda"))
        assert [model.static_decoder for _ in range(3)] == [None] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "answers are decoded eagerly, step by step: it is spread over several devices"
    ]


def test_learned_prefixes_are_not_decoded_so() -> None:
    model = make_model()
    model.static_decoding = True
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model.language_model = get_peft_model(model.language_model, prefix)
    assert model.static_decoder is None


def test_keywords_are_left_as_they_were() -> None:
    model = make_model()
    embeds = torch.zeros(65, 3, 24)
    llm = model.language_model
    given = {"max_new_tokens": 3, "streamer": object(), "tokenizer": object()}
    assert static_keywords(llm, embeds, given, None) is None  # too many rows
    found = static_keywords(llm, embeds[:64], given, None)
    assert found == {name: given[name] for name in ("max_new_tokens", "streamer")}
    llm.generation_config.num_beams = 4
    assert static_keywords(llm, embeds[:4], given, None) is None


def test_sizes() -> None:
    rows = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 8: 8, 9: 12, 16: 16, 17: 20, 64: 64}
    assert {number: round_rows(number) for number in rows} == rows
    places = {1: 256, 256: 256, 257: 512, 1024: 1024, 1025: 1280, 1281: 1536, 5000: 5120}
    assert {number: round_places(number) for number in places} == places
    assert all(n <= round_places(n) <= max(256, n + max(256, n // 4)) for n in range(1, 9000))
    model = make_model()
    assert bytes_of_token(model.language_model) == 2 * 2 * 2 * 6 * 4
    assert recorder_of(torch.device("cpu")) is None


def test_attention_of_shared_heads_reads_no_place_that_is_not_in_use() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 1, 8, generator=generator)
    keys, values = torch.randn(2, 2, 2, 5, 8, generator=generator)
    used = torch.tensor([5, 3], dtype=torch.int32)
    mask = (torch.arange(5) < used[:, None])[:, None, None]
    found, _ = masked_attention(torch.nn.Module(), query, keys, values, mask)
    for row, length in enumerate((5, 3)):
        for head in range(4):
            key, value = keys[row, head // 2, :length], values[row, head // 2, :length]
            weights = (query[row, head] @ key.T / 8**0.5).softmax(-1)
            torch.testing.assert_close(found[row, 0, head], (weights @ value)[0])
    assert used_places(used, 5)[0, 0].tolist() == [[0, 1, 2], [0, 5, 10], [5, 3, 0]]
    with pytest.raises(ValueError, match="attention with softcap has no static cache here"):
        masked_attention(torch.nn.Module(), query, keys, values, mask, softcap=30.0)


@pytest.mark.parametrize(
    "given",
    [
        {"attention_mask": torch.tensor([[1, 1, 0, 1] + [1] * 14, [1] * 17 + [0]])},
        {"position_ids": torch.arange(18).expand(2, 18) * 2},
    ],
)
def test_rows_that_are_no_prompts_padded_on_the_left(given: dict[str, Tensor]) -> None:
    """A token's place is its position; where it is not, the plain loop answers."""
    model = make_model()
    batch = {**prompts(model, rows=2), **given}
    settings = {**GREEDY, "eos_token_id": 279}
    plain, other = both(model, lambda: model.generate(**batch, **settings))
    assert torch.equal(plain, other)
    assert not is_used(model)


def test_a_question_amid_another_is_answered_step_by_step() -> None:
    """From a callback, say, or from another thread."""
    model = make_model()
    decoder = with_graphs(model, FakeGraphs())
    batch = prompts(model)
    settings = {**GREEDY, "eos_token_id": 279}
    wanted = model.generate(**batch, **settings)
    inner: list[Tensor] = []

    class Asking(Told):
        def put(self, value: Tensor) -> None:
            inner.append(model.generate(**batch, **settings))

    outer = model.generate(
        **{name: value[:1] for name, value in batch.items()}, **settings, streamer=Asking()
    )
    assert torch.equal(outer, wanted[:1])
    assert len(inner) == 13
    assert all(torch.equal(one, wanted) for one in inner)
    assert decoder.num_recorded == 2


def test_other_threads_are_not_led_astray() -> None:
    """They see the kernel's name during a step of ours, which runs their calls as SDPA does."""
    model = make_model()
    batch = prompts(model)
    llm = model.language_model
    embeds = model.get_input_embeddings()(batch["input_ids"])
    told = {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}
    wanted = llm(**told).logits
    one = llm(input_ids=batch["input_ids"][:, :1]).logits
    for name in (MASKED, USED):
        with attention_of_steps(llm, name):
            assert llm.config._attn_implementation == name
            real = batch["attention_mask"].bool()
            torch.testing.assert_close(llm(**told).logits[real], wanted[real])
            torch.testing.assert_close(llm(input_ids=batch["input_ids"][:, :1]).logits, one)
        assert llm.config._attn_implementation == "sdpa"


def test_the_cpu_waits_for_the_device_that_the_tokens_are_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not for the process's current one: a model on the second GPU would be read too early."""
    recorded: list[Any] = []

    class Event:
        def record(self, stream: Any = None) -> None:
            recorded.append(stream)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: ("stream of", device))
    decoding_loop._event_of(torch.device("cuda", 1))
    assert recorded == [("stream of", torch.device("cuda", 1))]


def test_under_autocast_nothing_is_recorded() -> None:
    """Its casts of the weights live as long as it does; a recorded step would read them after."""
    model = make_model()
    decoder = with_graphs(model, FakeGraphs())
    batch = prompts(model)
    settings = {**GREEDY, "eos_token_id": 279}
    with torch.autocast("cpu", torch.bfloat16):
        assert model.static_decoder is None
        plain, static = both(model, lambda: model.generate(**batch, **settings))
    assert torch.equal(plain, static)
    assert decoder.num_recorded == 0
    assert model.static_decoder is decoder


def test_nothing_is_recorded_while_a_plain_loop_samples() -> None:
    """It draws from the generator that a recording has to itself; after it, recording goes on."""
    model, other = make_model(), make_model()
    decoder = with_graphs(model, FakeGraphs())
    batch = prompts(model)
    settings = {**GREEDY, "eos_token_id": 279}
    wanted = model.generate(**batch, **settings, disable_compile=True)
    found: list[int] = []

    class Asking(Told):
        def put(self, value: Tensor) -> None:
            assert torch.equal(model.generate(**batch, **settings), wanted)
            found.append(decoder.num_recorded)

    one = {name: value[:1] for name, value in batch.items()}
    short = {**settings, "max_new_tokens": 2}
    other.generate(**one, **{**short, "do_sample": True}, streamer=Asking())
    assert found == [0, 0, 0]
    other.generate(**one, **short, streamer=Asking())
    assert found[3:] == [1, 1, 1]
    with pytest.raises(ZeroDivisionError), drawing():
        raise ZeroDivisionError
    assert not static_decoding._DRAWING


class PooledGraphs(FakeGraphs):
    """Refuses, as PyTorch does, a pool all of whose graphs are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.is_spent = False
        self.alive = 0

    def forget(self) -> None:
        super().forget()
        self.is_spent, self.alive = False, 0

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        if self.is_spent:
            raise RuntimeError("INTERNAL ASSERT FAILED: it->second->use_count > 0")
        self.alive += 1
        return _Graph(self, super().record(step))


class _Graph:
    def __init__(self, pool: PooledGraphs, replay: Callable[[], Tensor]) -> None:
        self.pool, self.replay = pool, replay

    def __call__(self) -> Tensor:
        return self.replay()

    def __del__(self) -> None:
        self.pool.alive -= 1
        self.pool.is_spent = self.pool.alive == 0


def test_memory_of_graphs_that_are_all_gone_is_not_recorded_into(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Answers of one step are never recorded, and push out the one that was."""
    monkeypatch.setattr(static_decoding, "_MAX_RECORDED", 2)
    model = make_model()
    graphs = PooledGraphs()
    decoder = with_graphs(model, graphs)
    settings = {**GREEDY, "eos_token_id": 279}
    model.generate(**prompts(model, rows=9), **settings)
    assert (decoder.num_recorded, graphs.alive) == (1, 1)
    for rows in (1, 2, 4):
        model.generate(**prompts(model, rows=rows), **{**settings, "max_new_tokens": 2})
    assert (decoder.num_recorded, graphs.num_forgotten > 1) == (1, True)
    model.generate(**prompts(model, rows=8), **settings)
    assert decoder.num_recorded == 2


@pytest.mark.parametrize(
    "said", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"]
)
def test_a_recording_without_memory_by_any_name_is_tried_again(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA and cuBLAS say it in words only."""
    model = make_model()
    graphs = FakeGraphs(said)
    decoder = with_graphs(model, graphs)
    batch = prompts(model)
    settings = {**GREEDY, "eos_token_id": 279}
    first = model.generate(**batch, **settings)
    forgotten, graphs.problem = graphs.num_forgotten, ""
    assert forgotten > 0
    assert torch.equal(model.generate(**batch, **settings), first)
    assert decoder.num_recorded == 1


@pytest.mark.parametrize("zeroes", [False, True])
def test_a_prompt_that_failed_midway_is_read_from_the_start(
    zeroes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``zeroes``: as some versions of transformers reset a cache."""
    model = make_model()
    decoder = with_graphs(model, FakeGraphs())
    batch = prompts(model)
    settings = {**GREEDY, "eos_token_id": 279}
    found = model.generate(**batch, **settings)
    last = model.language_model.model.layers[-1]
    forward = last.forward

    def full(*args: Any, **kwargs: Any) -> Any:
        if decoder.num_bytes and args[0].shape[1] > 1:
            raise torch.OutOfMemoryError("full")
        return forward(*args, **kwargs)

    def reset(layer: Any) -> None:
        if layer.is_initialized:
            layer.keys.zero_()
            layer.values.zero_()

    monkeypatch.setattr(last, "forward", full)
    if zeroes:
        monkeypatch.setattr(DynamicLayer, "reset", reset)
    assert torch.equal(model.generate(**batch, **settings), found)
    assert decoder.num_bytes > 0


def test_another_thread_amid_a_step_is_told_nothing_wrong() -> None:
    model = make_model()
    for name in (MASKED, USED):
        with attention_of_steps(model.language_model, name):
            assert why_not(model.language_model, on_cpu=True) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_a_mask_of_any_type(dtype: torch.dtype) -> None:
    model = make_model()
    batch = prompts(model)
    batch["attention_mask"] = batch["attention_mask"].to(dtype)
    settings = {**GREEDY, "eos_token_id": 279}
    plain, static = both(model, lambda: model.generate(**batch, **settings))
    assert torch.equal(plain, static)
    assert is_used(model)


def test_two_threads_with_the_first_question_share_one_decoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model()
    model.static_decoding = True
    found: list[Any] = []
    other = threading.Thread(target=lambda: found.append(model.static_decoder))

    def slow() -> StaticDecoder:
        if not other.ident:
            other.start()
            other.join(0.2)  # it gets nowhere before this one is there
        return StaticDecoder()

    monkeypatch.setattr(generation, "StaticDecoder", slow)
    found.append(model.static_decoder)
    other.join(20)
    assert found[0] is found[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, torch.OutOfMemoryError])
def test_what_ends_an_answer_amid_it_leaves_the_next_one_alone(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step, in the one that is recorded, and in one that is replayed."""
    monkeypatch.setattr(static_decoding, "_LEAST_PLACES", 4)
    model = make_model()
    decoder = with_graphs(model, FakeGraphs())
    batch = prompts(model)
    settings = {**GREEDY, "eos_token_id": 279}
    wanted = model.generate(**batch, **settings, disable_compile=True)
    last = model.language_model.model.layers[-1].mlp
    forward = last.forward

    for passes in range(9):
        left = [passes]

        def failing(*args: Any, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] == -1:
                raise error("amid it")
            return forward(*args)

        monkeypatch.setattr(last, "forward", failing)
        with contextlib.suppress(error):
            model.generate(**batch, **settings)
        monkeypatch.setattr(last, "forward", forward)
        assert model.language_model.config._attn_implementation == "sdpa"
        assert torch.equal(model.generate(**batch, **settings), wanted)
    assert decoder.num_recorded > 0
