"""The engine without HTTP: who is answered when, with what, and who is spared by others' trouble.

Nothing here waits for time to pass: questions that must come while others run are put from within
the engine's own calls, on its thread, between two steps.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from internvl_chat.chat import load_model, split_model
from internvl_chat.errors import ConfigError
from internvl_chat.serve import engine as engine_module
from internvl_chat.serve.batch import Batch, EncodedPrompt
from internvl_chat.serve.engine import (
    Engine,
    Failed,
    Finished,
    GenerationRequest,
    Piece,
    QueueFullError,
    StoppingError,
)
from internvl_chat.serve.prompt import Prompter
from internvl_chat.serve.sampling import Sampler
from internvl_chat.serve.settings import EngineSettings
from tests.support.serving import (
    LIMIT_SECONDS,
    TINY,
    Told,
    chat,
    endless,
    put,
    sampling,
    shape_image,
    tiny,
    turns_of,
)

STAR, CIRCLE = shape_image(), shape_image("circle", "blue")
STAR_TWICE = torch.zeros(2, 3, 112, 112)  # tiles for a prompt that holds one
LONG = "What can you do?"  # the endless model's answer has many different words
Turns = tuple[tuple[str, str | None], ...]


def question(
    turns: Turns | str, images: list[Image.Image] | None = None, **settings: Any
) -> GenerationRequest:
    """Greedy, 48 tokens, unless ``settings`` say otherwise."""
    turns = ((turns, None),) if isinstance(turns, str) else turns
    prompter = Prompter(*tiny())
    prompt = prompter.prompt(turns_of(turns), [prompter.cut(i) for i in images or []])
    greedy = {"max_tokens": 48, "sampling": sampling(temperature=0), "stop": ()}
    return GenerationRequest(prompt=prompt, **{**greedy, **settings})


class Engines:
    """Makes engines, and ends them."""

    def __init__(self) -> None:
        self.made: list[Engine] = []

    def __call__(self, loaded: tuple[Any, Any], **settings: int) -> Engine:
        """One that is not started yet: what is put before is taken together."""
        self.made.append(Engine(*loaded, EngineSettings(**settings)))
        return self.made[-1]


@pytest.fixture
def engines() -> Iterator[Engines]:
    made = Engines()
    yield made
    for engine in made.made:
        engine.stop(0)
        if engine.is_alive:
            assert engine.join(LIMIT_SECONDS)


CONVERSATIONS: list[tuple[Turns, list[Image.Image]]] = [
    ((("What is 2 plus 3?", None),), []),
    ((("<image>\nWhat shape is red?", None),), [STAR]),
    ((("<image>\nWhere is the blue circle?", None),), [CIRCLE]),
    ((("<image>\nGive the box of <ref>red star</ref>.", None),), [STAR]),
    ((("<image>\n<image>\nHow many shapes are in the second picture?", None),), [STAR, CIRCLE]),
    ((("<image>\nWhat shape is red?", "star"), ("Where is the red star?", None)), [STAR]),
    ((("What can you do?", None),), []),
    ((("What color is the circle?\n<image>", None),), [CIRCLE]),
]


@pytest.mark.parametrize(
    ("max_batch_size", "prefill_tokens", "static"),
    [
        (8, 4096, False),
        (3, 4096, False),
        (3, 100, False),
        (1, 1, False),
        (8, 4096, True),
        (3, 100, True),
    ],
)
def test_answers_are_those_of_chat_one_by_one(
    max_batch_size: int,
    prefill_tokens: int,
    static: bool,
    engines: Engines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Text only, one and two images and several turns in one batch, whose rows come and go."""
    monkeypatch.setattr(tiny()[0], "static_decoding", static)
    engine = engines(tiny(), max_batch_size=max_batch_size, prefill_tokens=prefill_tokens)
    asked = [put(engine, question(*conversation))[0] for conversation in CONVERSATIONS]
    engine.start()
    ends = [told.finished() for told in asked]
    monkeypatch.undo()
    wanted = [chat(tiny(), *conversation) for conversation in CONVERSATIONS]
    assert [told.text for told in asked] == wanted
    assert "star" in wanted  # the model sees: equal nonsense would prove nothing
    assert len(set(wanted)) >= 6
    assert {end.reason for end in ends} == {"stop"}
    assert ends[1].num_tokens == 2  # the word and the end of the turn
    assert engine.stats().answered == len(asked)


def test_a_model_in_two_places_answers_alike(engines: Engines, tmp_path: Path) -> None:
    """Some blocks on disk, so that tensors have to be brought together, as over several GPUs."""
    blocks = ("layers.1", "layers.2")
    places = {
        name: "disk" if name.endswith(blocks) else "cpu"
        for name in split_model(tiny()[0].config, 1)
    }
    parted = load_model(str(TINY), device_map=places, offload_dir=str(tmp_path))
    assert "disk" in parted[0].hf_device_map.values()
    engine = engines(parted, max_batch_size=3)
    asked = [put(engine, question(*conversation))[0] for conversation in CONVERSATIONS[:4]]
    engine.start()
    told = [one.finished() and one.text for one in asked]
    assert told == [chat(tiny(), *conversation) for conversation in CONVERSATIONS[:4]]


def test_a_question_joins_answers_that_run(engines: Engines) -> None:
    """The newcomer's whole answer comes while the older one goes on, and both are undisturbed."""
    engine = engines(endless(), max_batch_size=2)
    newcomer, ended_at = Told(), []

    def watch(number: int) -> None:
        if number == 3:
            engine.submit(question(LONG, max_tokens=5), newcomer)
        if newcomer.has_ended and not ended_at:
            ended_at.append(number)

    older = Told(watch)
    engine.start()
    engine.submit(question("<image>\nWhat shape is red?", [STAR], max_tokens=60), older)
    assert older.finished() == Finished("length", 60)
    assert newcomer.finished() == Finished("length", 5)
    assert ended_at[0] < 25  # of 60: it did not wait for the older one's end
    turns = (("<image>\nWhat shape is red?", None),)
    assert older.text == chat(endless(), turns, [STAR], max_new_tokens=60)
    assert newcomer.text == chat(endless(), ((LONG, None),), [], max_new_tokens=5)


def test_first_come_first_served(engines: Engines) -> None:
    """Also past a long prompt, which has to be read alone."""
    engine = engines(tiny(), max_batch_size=2, prefill_tokens=100)
    lengths = [5, 300, 5, 5, 200, 5]
    order: list[int] = []
    asked = []
    for place, length in enumerate(lengths):
        told = Told(lambda number, place=place: order.append(place) if number == 1 else None)
        engine.submit(question("7" * length, max_tokens=3), told)
        asked.append(told)
    engine.start()
    for told in asked:
        told.end()
    assert order == sorted(order)
    assert len(order) == len(lengths)


def test_answers_go_on_between_two_prompts_that_are_read(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[str] = []

    def record(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(model: Any, rows: Any, last: Any) -> Any:
            passes.append(f"{name} {len(rows if name == 'read' else last)}")
            return function(model, rows, last)

        return recorded

    monkeypatch.setattr(engine_module, "prefill", record("read", engine_module.prefill))
    monkeypatch.setattr(engine_module, "decode", record("go on", engine_module.decode))
    engine = engines(endless(), max_batch_size=4, prefill_tokens=2 * 20)
    asked = [put(engine, question("7" * length, max_tokens=6))[0] for length in (1, 2, 9, 90, 1)]
    engine.start()
    for told in asked:
        told.finished()
    assert passes[:6] == ["read 2", "go on 2", "read 1", "go on 3", "read 1", "go on 4"]
    assert passes.count("read 1") == 3  # the fifth, once a row was free


def test_every_row_has_its_own_length_stop_and_temperature(engines: Engines) -> None:
    whole = chat(endless(), ((LONG, None),), [], max_new_tokens=60)
    assert whole.startswith("I name shapes and colors, count")
    engine = engines(endless())
    wild = {"temperature": 1.5, "top_p": 0.9}
    asked = {
        "one": question(LONG, max_tokens=1),
        "seven": question(LONG, max_tokens=7),
        "stopped": question(LONG, max_tokens=60, stop=("xyz", "colors", " count")),
        "split": question(LONG, max_tokens=60, stop=("s and c",)),  # over several tokens
        "unstopped": question(LONG, max_tokens=60, stop=("xyz",)),
        "seed 1": question(LONG, sampling=sampling(**wild, seed=1)),
        "seed 2": question(LONG, sampling=sampling(**wild, seed=2)),
        "seed 1 again": question(LONG, sampling=sampling(**wild, seed=1)),
    }
    told = {name: put(engine, one)[0] for name, one in asked.items()}
    engine.start()
    ends = {name: one.finished() for name, one in told.items()}
    text = {name: one.text for name, one in told.items()}
    assert ends["one"] == Finished("length", 1)
    assert ends["seven"] == Finished("length", 7)
    assert ends["unstopped"] == Finished("length", 60)
    assert (text["stopped"], ends["stopped"].reason) == ("I name shapes and", "stop")
    assert (text["split"], ends["split"].reason) == ("I name shape", "stop")
    assert text["unstopped"] == whole
    assert whole.startswith(text["seven"])
    assert text["seed 1"] == text["seed 1 again"] != text["seed 2"]
    alone, _ = put(engine, asked["seed 1"])
    alone.finished()
    assert alone.text == text["seed 1"]


def test_a_cancelled_answer_frees_its_row(engines: Engines) -> None:
    engine = engines(endless(), max_batch_size=1)

    def watch(number: int) -> None:
        if number == 3:
            running.cancel()
            never.cancel()

    told = Told(watch)
    running = engine.submit(question(LONG, max_tokens=1500), told)
    untold, never = put(engine, question(LONG, max_tokens=1500))
    after, _ = put(engine, question(LONG, max_tokens=4))
    engine.start()
    assert after.finished() == Finished("length", 4)
    assert told.num_pieces == 3
    assert not told.has_ended
    assert untold.num_pieces == 0
    assert engine.stats().cancelled == 2
    running.cancel()  # again, and after the end: nothing
    assert engine.stats().cancelled == 2


def test_one_of_many_rows_is_cancelled(engines: Engines) -> None:
    """The row in the middle leaves; its neighbours' answers are whole."""
    engine = engines(endless())
    cancel: list[Any] = []
    told = [Told(), Told(lambda number: cancel[0].cancel() if number == 2 else None), Told()]
    texts = ("Describe", "List all shapes", LONG)
    handles = [
        engine.submit(question(text, max_tokens=40), one)
        for text, one in zip(texts, told, strict=True)
    ]
    cancel.append(handles[1])
    engine.start()
    for place in (0, 2):
        told[place].finished()
        turns = ((texts[place], None),)
        assert told[place].text == chat(endless(), turns, [], max_new_tokens=40)
    assert told[1].num_pieces == 2


def test_the_queue_is_bounded(engines: Engines) -> None:
    engine = engines(tiny(), max_batch_size=2, max_queue=1)
    asked = [put(engine, question("Hi", max_tokens=2))[0] for _ in range(3)]
    assert not engine.has_place()
    with pytest.raises(QueueFullError):
        put(engine, question("Hi"))
    assert engine.stats().waiting == 3
    engine.start()
    for told in asked:
        told.finished()
    put(engine, question("Hi"))[0].finished()


def test_has_place_counts_those_before(engines: Engines) -> None:
    engine = engines(tiny(), max_batch_size=2, max_queue=1)
    put(engine, question("Hi"))
    assert engine.has_place(1)
    assert not engine.has_place(2)


def with_tiles(text: str, tiles: torch.Tensor | None) -> GenerationRequest:
    """Image tokens of one image, and other tiles."""
    whole = question(text, [STAR], max_tokens=5)
    return dataclasses.replace(whole, prompt=EncodedPrompt(whole.prompt.ids, tiles))


def broken() -> GenerationRequest:
    """Image tokens without an image."""
    return with_tiles("<image>\nWhat shape is red?", None)


def test_a_prompt_that_cannot_be_read_fails_alone(
    engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engines(tiny())
    before, _ = put(engine, question("<image>\nWhat shape is red?", [STAR]))
    bad, _ = put(engine, with_tiles("<image>\nWhat?", STAR_TWICE))
    after, _ = put(engine, question("What is 2 plus 3?"))
    engine.start()
    assert isinstance(bad.end(), Failed)
    before.finished(), after.finished()
    assert (before.text, after.text) == ("star", "5")
    assert "ValueError" in caplog.text  # with its traceback
    assert "16 image tokens" in caplog.text
    stats = engine.stats()
    assert (stats.failed, stats.answered, stats.running) == (1, 2, 0)
    assert isinstance(put(engine, broken())[0].end(), Failed)
    assert "16 image tokens in input_ids (by row: [16]), but no pixel_values" in caplog.text


@pytest.mark.parametrize("static", [False, True])
def test_a_step_that_fails_ends_its_answers_and_no_others(
    static: bool,
    engines: Engines,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(endless()[0], "static_decoding", static)
    engine = engines(endless(), max_batch_size=2)
    language_model = endless()[0].language_model
    forward = language_model.forward

    def fail(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(language_model, "forward", forward)
        raise RuntimeError("out of memory, say")

    first = Told(
        lambda number: monkeypatch.setattr(language_model, "forward", fail) if number == 2 else None
    )
    engine.submit(question(LONG, max_tokens=30), first)
    second, _ = put(engine, question("Describe", max_tokens=30))
    third, _ = put(engine, question(LONG, max_tokens=6))
    engine.start()
    assert first.end() == second.end() == Failed("generation failed; the server's log says why")
    assert third.finished() == Finished("length", 6)
    assert third.text == chat(endless(), ((LONG, None),), [], max_new_tokens=6)
    assert "out of memory, say" in caplog.text
    assert engine.stats().failed == 2


def test_rows_that_cannot_be_joined_are_told_once_each(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that have joined already when another one fails."""
    engine = engines(endless())
    join, joined = Batch.join, []

    def fail(self: Batch, other: Batch) -> Batch:
        joined.append(1)
        if len(joined) == 1:
            return join(self, other)
        raise RuntimeError("no memory for both")

    monkeypatch.setattr(Batch, "join", fail)
    prompts = [question(LONG), question("Describe"), question("List all shapes")]
    bad = with_tiles("<image>", STAR_TWICE)
    asked = [put(engine, one)[0] for one in (*prompts, bad)]  # so that each is read alone
    engine.start()
    assert [type(told.end()) for told in asked] == [Failed] * 4
    put(engine, question(LONG, max_tokens=2))[0].finished()
    assert not any(told.has_ended for told in asked)  # no second end
    assert engine.stats().failed == 4


def test_the_row_is_free_when_the_end_is_told(engines: Engines) -> None:
    engine = engines(tiny())
    all_stats = []
    told = threading.Event()

    def tell(event: Any) -> None:
        if isinstance(event, Finished):
            all_stats.append(engine.stats())
            told.set()

    engine.submit(question("What is 2 plus 3?"), tell)
    engine.start()
    assert told.wait(LIMIT_SECONDS)
    assert (all_stats[0].running, all_stats[0].answered) == (0, 1)


def test_a_row_without_a_next_token_fails_alone(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, drawn = Sampler.draw, []

    def fail(self: Sampler, logits: torch.Tensor) -> int:
        drawn.append(1)
        return draw(self, logits.log() if len(drawn) == 3 else logits)  # log: no numbers

    monkeypatch.setattr(Sampler, "draw", fail)
    engine = engines(endless())
    greedy, _ = put(engine, question(LONG, max_tokens=9))
    bad, _ = put(engine, question(LONG, max_tokens=9, sampling=sampling(seed=1)))
    engine.start()
    assert isinstance(bad.end(), Failed)
    assert greedy.finished() == Finished("length", 9)


class _Unforeseen(BaseException):
    """Nothing that the engine knows."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_was_not_foreseen_ends_the_engine_but_leaves_nobody_waiting(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines(endless(), max_batch_size=1)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise _Unforeseen

    monkeypatch.setattr(endless()[0].language_model, "forward", fail)
    asked = [put(engine, question(LONG))[0] for _ in range(3)]
    engine.start()
    for told in asked:
        assert told.end() == Failed("the server's engine has stopped")
    assert engine.join(LIMIT_SECONDS)
    with pytest.raises(StoppingError):
        put(engine, question(LONG))


def test_answers_may_finish_when_it_is_told_to_stop(engines: Engines) -> None:
    engine = engines(endless(), max_batch_size=1)
    first = Told(lambda number: engine.stop(LIMIT_SECONDS) if number == 2 else None)
    engine.submit(question(LONG, max_tokens=20), first)
    second, _ = put(engine, question(LONG, max_tokens=4))
    engine.start()
    assert first.finished() == Finished("length", 20)
    assert second.finished() == Finished("length", 4)
    assert engine.join(LIMIT_SECONDS)
    with pytest.raises(StoppingError):
        put(engine, question(LONG))


def test_beyond_the_time_they_are_ended(engines: Engines) -> None:
    engine = engines(endless(), max_batch_size=1)
    first = Told(lambda number: engine.stop(0) if number == 2 else None)
    engine.submit(question(LONG, max_tokens=1500), first)
    second, _ = put(engine, question(LONG))
    engine.start()
    for told in (first, second):
        assert told.end() == Failed("the server is shutting down", is_shutdown=True)
    assert first.num_pieces == 2
    assert engine.join(LIMIT_SECONDS)


def test_pieces_come_one_by_one(engines: Engines) -> None:
    """Each is told before the next token is made: the first does not wait for the last."""
    engine = engines(endless())
    seen: list[str] = []
    told = threading.Event()

    def tell(event: Any) -> None:
        if isinstance(event, Piece):
            seen.append(event.text)
        else:
            told.set()

    engine.submit(question(LONG, max_tokens=12), tell)
    engine.start()
    assert told.wait(LIMIT_SECONDS)
    assert "".join(seen) == chat(endless(), ((LONG, None),), [], max_new_tokens=12)
    assert len(seen) >= 8


def test_models_with_a_state_of_another_kind_are_refused() -> None:
    text = SimpleNamespace(layer_types=["linear_attention", "full_attention"])
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    with pytest.raises(ConfigError, match="with linear_attention cannot be served"):
        Engine(model, None, EngineSettings())


def test_a_template_whose_end_is_no_token(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then its text ends the answer, as in ``model.chat``."""
    model, tokenizer = endless()
    word = "colors,"
    assert tokenizer.convert_tokens_to_ids(word) == tokenizer.unk_token_id
    template = dataclasses.replace(model.conv_template, stop_str=word, answer_sep=word)
    monkeypatch.setattr(model, "conv_template", template)
    told, _ = put(engine := engines(endless()), question(LONG))
    engine.start()
    assert told.finished().reason == "stop"
    assert told.text == chat(endless(), ((LONG, None),), []) == "I name shapes and"
