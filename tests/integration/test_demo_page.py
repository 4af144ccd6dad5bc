"""The demo page over HTTP, as programs use it: answers, limits, files, load, separate users."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason='the demo page needs pip install -e ".[demo]"')

import httpx
from gradio_client.exceptions import AppError
from PIL import Image

from internvl_chat.web.limits import QuestionLimits
from internvl_chat.web.server import Serving, serve
from tests.support.demo_app import (
    GREYS,
    LIMIT_SECONDS,
    TINY,
    Recording,
    User,
    Wire,
    chats,
    draw_shape,
    files_of,
    load,
    said,
    wait_for_queue,
    wait_until,
)
from tests.support.uploads import write_bomb, write_sound


@pytest.fixture(scope="module")
def answering() -> Recording:
    return Recording(load("internvl-chat-tiny", TINY))


class Watch:
    """Notes the hosts that this process looks up or connects to while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.hosts: set[str] = set()
        sys.addaudithook(self._note)  # stays for good: Python has no way to take one away

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "socket.getaddrinfo":
            self.hosts.add(str(arguments[0]))
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            self.hosts.add(str(arguments[1][0]))


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def serving(answering: Recording, watch: Watch) -> Iterator[Serving]:
    watch.on = True
    with serve(answering, limits=QuestionLimits(max_upload_mb=1)) as running:
        yield running
    watch.on = False


@pytest.fixture
def star(tmp_path: Path) -> Path:
    return draw_shape(tmp_path / "star.png", "star", "red")


@pytest.fixture
def circle(tmp_path: Path) -> Path:
    return draw_shape(tmp_path / "circle.png", "circle", "blue")


# -- answers -----------------------------------------------------------------------------------


def test_a_conversation_with_images(serving: Serving, star: Path, circle: Path) -> None:
    user = User(serving)
    assert user.say("What is 2 plus 3?") == "5"
    assert user.say("What shape is red?", star) == "star"
    assert user.say("Where is the red star?") == "top left"
    user.client.predict(api_name="/clear")
    assert user.say("How many shapes are in the second picture?", star, circle) == "1"
    user.client.predict(api_name="/clear")
    user.ask("<video>\nWhat is this?", GREYS, num_frames=3)
    chat = user.answer()
    assert [Path(path).name for path in files_of(chat, "user")] == ["greys.mp4"]
    assert chat[-1]["role"] == "assistant"


def test_boxes_are_drawn_on_the_image(serving: Serving, star: Path) -> None:
    user = User(serving)
    user.ask("Give the box of <ref>red star</ref>.", star)
    chat = user.answer()
    assert said(chat).startswith("&lt;ref>red star&lt;/ref>&lt;box>[[")
    (path,) = files_of(chat, "assistant")
    answer = httpx.get(f"{serving.url}gradio_api/file={path}")
    assert answer.headers["content-type"] == "image/png"
    with Image.open(path) as drawn:
        assert drawn.size == (512, 512)


def test_regenerate_and_clear(serving: Serving, star: Path) -> None:
    user = User(serving)
    with pytest.raises(AppError, match="no answer to regenerate"):
        user.client.predict(api_name="/regenerate")
    assert user.say("What is 2 plus 3?") == "5"
    assert user.say("What shape is red?", star) == "star"
    waiting = chats(user.client.predict(api_name="/regenerate"))[0]
    assert [message["role"] for message in waiting] == ["user", "assistant", "user", "user"]
    chat = user.answer()
    assert said(chat) == "star"
    assert chat[:-1] == waiting
    assert user.client.predict(api_name="/clear") == []
    user.ask("What is 2 plus 3?")
    assert len(user.answer()) == 2


# -- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "name", "problem"),
    [
        ("  ", None, "The question is empty"),
        ("<image> or <image>?", "star.png", "tags for 2 images and 0 videos, but 1 image"),
        ("Why?", "text.jpg", "text.jpg is no image that can be read"),
        ("Why?", "bomb.png", "bomb.png has too many pixels"),
        ("Why?", "cut.jpg", "cut.jpg is cut off"),
        ("Why?", "sound.mp4", "sound.mp4 is no video that can be decoded, or has no frames"),
        ("Why?", "notes.txt", "Invalid file type"),
        ("x" * 20_001, None, "20001 characters; at most 20000"),
    ],
)
def test_what_cannot_be_asked_is_told_and_the_talk_goes_on(
    serving: Serving, star: Path, tmp_path: Path, question: str, name: str | None, problem: str
) -> None:
    for text in ("text.jpg", "notes.txt"):
        (tmp_path / text).write_text("no image")
    write_bomb(tmp_path / "bomb.png")
    write_sound(tmp_path / "sound.mp4")
    Image.effect_noise((200, 200), 90).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:4000])
    user = User(serving)
    assert user.say("What shape is red?", star) == "star"
    with pytest.raises(AppError) as caught:
        user.ask(question, *([tmp_path / name] if name else []))
    told = str(caught.value).replace("&lt;", "<")
    assert problem in told
    assert str(serving.uploads) not in told
    assert user.say("Where is the red star?") == "top left"


def test_numbers_out_of_bounds_are_told(serving: Serving) -> None:
    user = User(serving)
    user.ask("What is 2 plus 3?")
    with pytest.raises(AppError, match=r"temperature|minimum|bounds|greater"):
        user.client.predict(-3, 1, 64, 0, api_name="/answer")
    assert user.say("What is 2 plus 3?") == "5"


def test_large_uploads_are_refused_while_they_come(serving: Serving) -> None:
    def upload(size: int) -> httpx.Response:
        return httpx.post(
            f"{serving.url}gradio_api/upload", files={"files": ("a.mp4", b"x" * size)}
        )

    assert upload(1024 * 1024).status_code == 200
    before = _all_files(serving)
    refused = upload(1024 * 1024 + 1)
    assert refused.status_code == 413
    assert "maximum allowed size" in refused.text
    assert _all_files(serving) == before


# -- safety --------------------------------------------------------------------------------------


def test_the_page_names_no_other_host(serving: Serving) -> None:
    answer = httpx.get(serving.url)
    assert answer.status_code == 200
    hosts = set(re.findall(r"(?:https?:|(?<=[\"'(]))//([\w.-]+(?::\d+)?)", answer.text))
    assert hosts == {serving.url.split("/")[2]}
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    config = httpx.get(f"{serving.url}config").json()
    assert config["analytics_enabled"] is False


def test_it_listens_on_the_loopback_only(serving: Serving) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", serving.url)
    port = int(serving.url.rsplit(":", 1)[1].strip("/"))
    hexadecimal = f":{port:04X}"
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(hexadecimal)
    ]
    assert listening in ([f"0100007F{hexadecimal}"], [])  # [] where there is no /proc
    assert serving.share_url is None


OUTSIDE = ("/etc/passwd", str(TINY / "config.json"), "pretrained/internvl-chat-tiny/config.json")


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_file_is_given_out_that_was_not_uploaded(serving: Serving, path: str) -> None:
    ways = (path, f"{serving.uploads}/../..{path}", path.replace("/", "%2F"), f"/.{path}")
    with httpx.Client(base_url=serving.url) as client:
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/"):
            for way in ways:
                answer = client.get(f"{route}{way}")
                assert answer.status_code in (403, 404), f"{route}{way}"
                assert "root:" not in answer.text
                assert "llm_config" not in answer.text


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_file_is_read_that_was_not_uploaded(serving: Serving, path: str) -> None:
    # By hand: gradio_client would upload the file of its own machine.
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    before = _all_files(serving)
    with Wire(serving, "reads") as wire:
        for files in ([file], [{**file, "orig_name": "a.png", "mime_type": "image/png"}]):
            wire.join("ask", {"text": "Why?", "files": files}, 8, None)
            told = wire.wait_for("process_completed")
            assert told["success"] is False
            assert "llm_config" not in str(told)
            assert "root:" not in str(told)
    assert _all_files(serving) == before, "nothing was copied to where it could be fetched"
    assert User(serving).say("What is 2 plus 3?") == "5"


def test_no_file_is_fetched_for_a_client(serving: Serving, star: Path) -> None:
    user = User(serving)
    user.say("What shape is red?", star)
    url = f"{serving.url}theme.css"
    message = {"text": "Why?", "files": [{"path": url, "meta": {"_type": "gradio.FileData"}}]}
    body = {"data": [message, 8, None]}
    assert httpx.post(f"{serving.url}gradio_api/call/ask", json=body).status_code == 403
    assert httpx.get(f"{serving.url}gradio_api/file={url}").status_code == 404


@pytest.mark.parametrize("name", ["page.html", "drawing.svg", "script.js"])
def test_an_upload_never_becomes_a_page(serving: Serving, name: str) -> None:
    script = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    upload = httpx.post(f"{serving.url}gradio_api/upload", files={"files": (name, script)})
    (path,) = upload.json()
    answer = httpx.get(f"{serving.url}gradio_api/file={path}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_users_see_nothing_of_each_other(serving: Serving, star: Path, circle: Path) -> None:
    ann, ben = User(serving), User(serving)
    assert ann.say("What shape is red?", star) == "star"
    assert ben.say("What is 2 plus 3?") == "5"
    ben.ask("What shape is blue?", circle)
    chat = ben.answer()
    assert said(chat) == "circle"
    assert "star" not in json.dumps(chat)
    ann.ask("Where is the red star?")
    assert "circle" not in json.dumps(ann.answer())
    ben.client.predict(api_name="/clear")
    assert said(ann.answer()) == "top left", "the same, nothing was waiting"


@pytest.mark.parametrize("way", ["run", "api"])
def test_nobody_gets_past_the_queue(serving: Serving, answering: Recording, way: str) -> None:
    before = len(answering.started)
    with Wire(serving, "hurries") as wire:
        wire.join("ask", {"text": "Talk", "files": []}, 8, None)
        wire.wait_for("process_completed")
        body = {"data": [0, 1, 64, 0, None], "session_hash": "hurries"}
        assert wire.client.post(f"gradio_api/{way}/answer", json=body).status_code == 404
    assert len(answering.started) == before


# -- load ----------------------------------------------------------------------------------------

NUM_USERS = 20


def test_twenty_users_at_once(serving: Serving, answering: Recording, tmp_path: Path) -> None:
    kinds = ("star", "circle", "square", "triangle", "cross")
    colors = ("red", "blue", "green", "black")
    wanted = [(kind, color) for kind in kinds for color in colors]
    assert len(wanted) == NUM_USERS
    users = [User(serving) for _ in wanted]
    with ThreadPoolExecutor(NUM_USERS) as threads:
        for number, (user, (kind, color)) in enumerate(zip(users, wanted, strict=True)):
            image = draw_shape(tmp_path / f"user{number}.png", kind, color)
            user.ask(f"What shape is {color}?", image)
        # The first is held at the model until all have joined, one after the other.
        before = len(answering.started)
        answering.gate.clear()
        jobs = []
        for number, user in enumerate(users):
            jobs.append(user.submit())
            # An empty queue says nothing: the first may not have come yet.
            wait_until(lambda: len(answering.started) > before, "the first is at the model")
            wait_for_queue(serving, number)
        barrier = threading.Barrier(NUM_USERS)

        def go_on(number: int) -> tuple[str, str]:
            barrier.wait(LIMIT_SECONDS)
            first = said(chats(jobs[number].result(LIMIT_SECONDS))[0])
            return first, users[number].say(f"What color is the {wanted[number][0]}?")

        going = [threads.submit(go_on, number) for number in range(NUM_USERS)]
        answering.gate.set()
        assert [each.result() for each in going] == wanted
    started = answering.started[before:]
    firsts = [(f"What shape is {c}?", f"user{n}.png") for n, (_, c) in enumerate(wanted)]
    assert started[:NUM_USERS] == firsts, "first come, first served"
    assert {name for _, name in started[NUM_USERS:]} == {name for _, name in firsts}


def test_nothing_was_asked_of_another_host(serving: Serving, watch: Watch) -> None:
    """Last in this file: the start of the page and all that the tests above did counts."""
    User(serving).say("What is 2 plus 3?")
    assert watch.hosts
    assert watch.hosts <= {"127.0.0.1", "localhost", "::1"}


def _all_files(serving: Serving) -> set[Path]:
    return {path for path in serving.uploads.rglob("*") if path.is_file()}
