"""The demo page as somebody sees it: a real browser, a real model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason='the demo page needs pip install -e ".[demo]"')
sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")

from PIL import Image  # noqa: E402

from internvl_chat.web.drawing import COLOURS  # noqa: E402
from internvl_chat.web.limits import QuestionLimits  # noqa: E402
from internvl_chat.web.server import Serving, serve  # noqa: E402
from tests.support.demo_app import (  # noqa: E402
    TINY,
    Recording,
    draw_shape,
    load,
    load_babbler,
    wait_until,
)

expect = sync_api.expect


class Tab:
    """An open page, with the addresses of everything that it asked for."""

    def __init__(self, browser: Any, serving: Serving) -> None:
        self.serving = serving
        self.asked_for: list[str] = []
        self.page = browser.new_page()
        self.page.on("request", lambda request: self.asked_for.append(request.url))
        self.page.goto(serving.url)
        self.box = self.page.locator("#question textarea")
        expect(self.box).to_be_visible()

    def upload(self, *files: Path) -> None:
        """Add images to the question; returns when their thumbnails are there."""
        thumbnails = self.page.locator("#question .thumbnail-item")
        before = thumbnails.count()
        self.page.set_input_files("#question input[type=file]", [str(file) for file in files])
        expect(thumbnails).to_have_count(before + len(files))

    def ask(self, question: str, *files: Path) -> None:
        """Type a question and send it."""
        if files:
            self.upload(*files)
        self.box.fill(question)
        self.box.press("Enter")

    def answers(self, place: int = 0) -> Any:
        """Texts of a chat's answers."""
        return self.page.locator(f"#chat-{place} [data-testid=bot]")

    def questions(self, place: int = 0) -> Any:
        """Texts and images of a chat's questions."""
        return self.page.locator(f"#chat-{place} [data-testid=user]")

    def images(self, place: int = 0) -> Any:
        """Images in a chat's answers."""
        return self.page.locator(f"#chat-{place} .bot img")


@pytest.fixture
def tab(browser: Any) -> Iterator[Tab]:
    """The tiny model alone."""
    with serve(Recording(load("tiny", TINY)), limits=QuestionLimits(max_upload_mb=1)) as serving:
        opened = Tab(browser, serving)
        yield opened
        opened.page.close()


@pytest.fixture
def star(tmp_path: Path) -> Path:
    return draw_shape(tmp_path / "star.png", "star", "red")


def test_a_box_is_asked_for_and_drawn(tab: Tab, star: Path) -> None:
    tab.ask("Give the box of <ref>red star</ref>.", star)
    expect(tab.questions().last).to_have_text("Give the box of <ref>red star</ref>.")
    expect(tab.answers().first).to_contain_text("<ref>red star</ref><box>[[")
    image = tab.images().first
    expect(image).to_be_visible()
    wait_until(
        lambda: image.evaluate("image => image.complete && image.naturalWidth") == 512,
        "the drawn image has come",
    )
    # A box round the top left quarter, in the first colour, as it is on the screen.
    with Image.open(io.BytesIO(image.screenshot())) as shown:
        screen = shown.convert("RGB")
    lines = [
        (x / screen.width, y / screen.height)
        for x in range(screen.width)
        for y in range(screen.height)
        if max(abs(a - b) for a, b in zip(screen.getpixel((x, y)), COLOURS[0], strict=True)) < 8
    ]
    assert len(lines) > 200
    assert max(x for x, _ in lines) < 0.35
    assert max(y for _, y in lines) < 0.35
    tab.ask("Where is the red star?")
    expect(tab.answers().last).to_have_text("top left")
    assert tab.page.title() == "internvl-chat demo"
    own = (tab.serving.url, "data:", "blob:")
    assert [url for url in tab.asked_for if not url.startswith(own)] == []


def test_regenerate_and_clear(tab: Tab, star: Path) -> None:
    tab.ask("What shape is red?", star)
    expect(tab.answers().last).to_have_text("star")
    answering = tab.serving.page.answering
    assert isinstance(answering, Recording)
    assert len(answering.started) == 1
    tab.page.click("#regenerate")
    wait_until(lambda: len(answering.started) == 2, "the model is asked again")
    expect(tab.answers()).to_have_count(1)
    expect(tab.answers().last).to_have_text("star")
    tab.page.click("#clear")
    expect(tab.answers()).to_have_count(0)
    expect(tab.questions()).to_have_count(0)
    tab.ask("What is 2 plus 3?")
    expect(tab.answers().last).to_have_text("5")
    tab.page.locator("#chat-0 button[aria-label=Clear]").click()  # the chat's own button
    expect(tab.answers()).to_have_count(0)
    tab.page.click("#regenerate")
    expect(tab.page.get_by_text("There is no answer to regenerate yet.")).to_be_visible()


def test_mistakes_are_told_and_the_talk_goes_on(tab: Tab, star: Path, tmp_path: Path) -> None:
    tab.ask("What shape is red?", star)
    expect(tab.answers().last).to_have_text("star")
    (tmp_path / "broken.jpg").write_text("no image")
    tab.ask("What is this?", tmp_path / "broken.jpg")
    told = tab.page.get_by_text("broken.jpg is no image that can be read: it is text")
    expect(told).to_be_visible()
    expect(tab.box).to_have_value("What is this?")
    expect(tab.answers().last).to_be_visible()  # nothing covers the conversation
    tab.page.locator("#question .thumbnail-item button").first.click()
    tab.ask("<image> What?")
    expect(tab.page.get_by_text("Write <image> or <video> once for each")).to_be_visible()
    (tmp_path / "large.png").write_bytes(b"x" * 1_100_000)
    tab.page.set_input_files("#question input[type=file]", str(tmp_path / "large.png"))
    expect(tab.page.get_by_text("maximum")).to_be_visible()
    tab.ask("Where is the red star?")
    expect(tab.answers().last).to_have_text("top left")


def test_two_side_by_side_streamed_and_stopped(browser: Any, star: Path, tmp_path: Path) -> None:
    answering = Recording(load("after", TINY), load_babbler(tmp_path))
    with serve(answering) as serving:
        tab = Tab(browser, serving)
        expect(tab.page.locator("#chat-0")).to_contain_text("after")
        expect(tab.page.locator("#chat-1")).to_contain_text("babbler")
        assert tab.page.evaluate(  # both of one moment: the page may still move
            """() => {
                const [left, right] = [0, 1].map(
                    (place) => document.querySelector(`#chat-${place}`).getBoundingClientRect());
                return left.top === right.top && left.right <= right.left;
            }"""
        )
        tab.page.get_by_text("Settings").click()
        tab.page.get_by_label("number input for Longest answer").fill("2000")
        tab.ask("What shape is red?", star)
        # The first has long finished while the second goes on.
        growing = tab.answers(1).first
        wait_until(lambda: len(growing.inner_text()) > 20, "the answer is streamed")
        early = len(growing.inner_text())
        wait_until(lambda: len(growing.inner_text()) > early, "it grows")
        expect(tab.answers(0).first).to_have_text("star")
        assert answering.going == 1
        tab.page.click("#stop")
        expect(tab.answers(1).last).to_contain_text("(stopped)")
        wait_until(lambda: answering.going == 0, "the generation has ended")
        tab.page.get_by_label("number input for Longest answer").fill("4")
        tab.ask("Where is the red star?")
        expect(tab.answers(0).last).to_have_text("top left")
        wait_until(lambda: answering.going == 0, "the second has said its four tokens")
        # Who closes the page ends the answer.
        tab.page.get_by_label("number input for Longest answer").fill("2000")
        unfinished = answering.unfinished
        tab.ask("And now?")
        wait_until(lambda: len(tab.answers(1).last.inner_text()) > 20, "the answer is streamed")
        tab.page.close()
        wait_until(lambda: answering.going == 0, "the generation has ended")
        assert answering.unfinished == unfinished + 1
