"""The demo page with two checkpoints over HTTP: side by side, and answers that are ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason='the demo page needs pip install -e ".[demo]"')

import httpx
from gradio_client.exceptions import AppError

from internvl_chat.errors import ConfigError
from internvl_chat.web.answering import Answering
from internvl_chat.web.server import Serving, serve
from tests.support.demo_app import (
    LIMIT_SECONDS,
    TINY,
    Recording,
    User,
    Wire,
    chats,
    draw_shape,
    load,
    load_babbler,
    said,
    wait_for_queue,
    wait_until,
)


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The tiny model, which says little, and random weights, which talk until they are stopped."""
    return Recording(load("tiny", TINY), load_babbler(tmp_path_factory.mktemp("babbler")))


@pytest.fixture(scope="module")
def serving(answering: Recording) -> Iterator[Serving]:
    with serve(answering) as running:
        yield running


def test_a_tunnel_is_opened_on_request_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_SHARE", "True")  # somebody's habit is no request
    opened: list[int] = []

    def tunnel(*_: object, local_port: int, **__: object) -> str:
        opened.append(local_port)
        return "https://abc.elsewhere.org"

    monkeypatch.setattr("gradio.networking.setup_tunnel", tunnel)
    with serve(Answering([])) as running:
        assert opened == []
        assert running.share_url is None
    with serve(Answering([]), share=True) as running:
        assert opened == [httpx.URL(running.url).port]
        assert running.share_url == "https://abc.elsewhere.org"

    def broken(*_: object, **__: object) -> str:
        raise RuntimeError("Could not get share link")

    monkeypatch.setattr("gradio.networking.setup_tunnel", broken)
    with (
        pytest.raises(ConfigError, match="the public link was not opened"),
        serve(Answering([]), share=True),
    ):
        pass


def test_two_checkpoints_side_by_side(serving: Serving, tmp_path: Path) -> None:
    assert "Every question goes to both" in httpx.get(serving.url).text
    star = draw_shape(tmp_path / "star.png", "star", "red")
    user = User(serving)
    user.ask("What shape is red?", star)
    first, second = chats(user.submit(max_new_tokens=9).result(LIMIT_SECONDS))
    assert said(first) == "star"
    assert said(second) not in ("", "star")
    user.ask("Where is the red star?")
    first, second = chats(user.submit(max_new_tokens=9).result(LIMIT_SECONDS))
    assert said(first) == "top left"
    assert len(first) == len(second) == 5  # an image, two questions, two answers


def test_stop_ends_the_generation(serving: Serving, answering: Recording) -> None:
    user = User(serving)
    user.ask("Talk")
    job = user.submit(max_new_tokens=2000)
    wait_until(lambda: len(job.outputs()) > 1, "the answer is streamed")
    with pytest.raises(AppError, match="still being written"):
        user.ask("And?")
    user.client.predict(api_name="/stop")
    part = said(chats(job.result(LIMIT_SECONDS))[-1])
    assert part.endswith("*(stopped)*")
    wait_until(lambda: answering.going == 0, "the generation has ended")
    whole = User(serving).say("Talk", max_new_tokens=2000)
    assert "stopped" not in whole
    assert len(part) < len(whole)
    assert user.say("More", max_new_tokens=3), "the conversation goes on"


def test_stop_and_clear_reach_a_waiting_question(serving: Serving, answering: Recording) -> None:
    users = [User(serving) for _ in range(3)]
    answering.gate.clear()
    jobs = []
    for number, user in enumerate(users):
        user.ask("Talk")
        jobs.append(user.submit(max_new_tokens=2000))
        wait_for_queue(serving, number)
    users[0].client.predict(api_name="/stop")
    users[1].client.predict(api_name="/stop")
    users[2].client.predict(api_name="/clear")
    answering.gate.set()
    for job in jobs[:2]:
        told = [said(chat) for chat in chats(job.result(LIMIT_SECONDS))]
        assert told == ["*(stopped)*", "*(stopped)*"]
    assert chats(jobs[2].result(LIMIT_SECONDS)) == [[], []]


def test_clear_in_the_middle_of_an_answer(serving: Serving, answering: Recording) -> None:
    user = User(serving)
    user.ask("Talk")
    job = user.submit(max_new_tokens=2000)
    wait_until(lambda: len(job.outputs()) > 1, "the answer is streamed")
    assert chats(user.client.predict(api_name="/clear")) == [[], []]
    assert chats(job.result(LIMIT_SECONDS)) == [[], []]
    wait_until(lambda: answering.going == 0, "the generation has ended")
    user.ask("Hello")
    assert len(user.answer(max_new_tokens=3)) == 2, "nothing is left of the first question"


def test_a_closed_page_leaves_no_request_behind(serving: Serving) -> None:
    with Wire(serving, "fades") as wire:
        wire.join("ask", {"text": "Talk", "files": []}, 8, None)
        wire.wait_for("process_completed")
        assert "fades" in serving.page.requests
        # A page keeps this open; its end is how the server learns that the page is gone.
        with wire.client.stream("GET", "gradio_api/heartbeat/fades") as beats:
            next(beats.iter_raw())
    wait_until(lambda: "fades" not in serving.page.requests, "the request is gone")


def test_a_client_that_leaves_ends_its_answer(serving: Serving, answering: Recording) -> None:
    before = answering.unfinished
    with Wire(serving, "leaves") as wire:
        wire.join("ask", {"text": "Talk", "files": []}, 8, None)
        wire.wait_for("process_completed")
        wire.join("answer", 0, 1, 2000, 0, None)
        wire.wait_for("process_generating")
    wait_until(lambda: answering.going == 0, "the generation has ended")
    assert answering.unfinished == before + 1, "and not by itself"
    assert User(serving).say("Hello", max_new_tokens=3)
