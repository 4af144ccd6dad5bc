"""The demo page as somebody sees it: a real browser, a real model."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace
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
from tests.support.page_looks import SCHEMES, WIDTHS, pale_texts, scroll_width  # noqa: E402

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

    def example(self, name: str) -> Any:
        """A question to click."""
        return self.page.get_by_role("button", name=name)

    def images(self, place: int = 0) -> Any:
        """Images in a chat's answers."""
        return self.page.locator(f"#chat-{place} .bot img")


def colour_of(element: Any) -> tuple[int, ...]:
    """Red, green and blue of what is behind a text."""
    colour = element.evaluate("element => getComputedStyle(element).backgroundColor")
    return tuple(map(int, re.findall(r"\d+", colour)[:3]))


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
    for button in ("#regenerate", "#clear", "#stop"):  # there is nothing left for them to do
        expect(tab.page.locator(button)).not_to_be_visible()
    expect(tab.example("How many shapes are there?")).to_be_visible()


def test_mistakes_are_told_and_the_talk_goes_on(tab: Tab, star: Path, tmp_path: Path) -> None:
    tab.ask("What shape is red?", star)
    expect(tab.answers().last).to_have_text("star")
    (tmp_path / "broken.jpg").write_text("no image")
    tab.ask("What is this?", tmp_path / "broken.jpg")
    told = tab.page.get_by_text("broken.jpg is no image that can be read: it is text")
    expect(told).to_be_visible()
    expect(tab.page.locator("#stop")).to_have_count(0)  # nothing runs
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
        stop = tab.page.get_by_role("button", name="Stop")
        expect(stop).to_be_visible()
        red, green, blue = colour_of(stop)
        assert max(red, green, blue) - min(red, green, blue) < 32, "grey, not red"
        expect(tab.page.locator("#regenerate")).not_to_be_visible()
        early = len(growing.inner_text())
        wait_until(lambda: len(growing.inner_text()) > early, "it grows")
        expect(tab.answers(0).first).to_have_text("star")
        assert answering.going == 1
        tab.page.click("#stop")
        expect(tab.answers(1).last).to_contain_text("(stopped)")
        wait_until(lambda: answering.going == 0, "the generation has ended")
        expect(stop).to_have_count(0)
        expect(tab.page.locator("#regenerate")).to_be_visible()
        tab.page.get_by_label("number input for Longest answer").fill("4")
        tab.ask("Where is the red star?")
        expect(tab.answers(0).last).to_have_text("top left")
        wait_until(lambda: answering.going == 0, "the second has said its four tokens")
        expect(stop).to_have_count(0)
        # Who closes the page ends the answer.
        tab.page.get_by_label("number input for Longest answer").fill("2000")
        unfinished = answering.unfinished
        tab.ask("And now?")
        wait_until(lambda: len(tab.answers(1).last.inner_text()) > 20, "the answer is streamed")
        tab.page.close()
        wait_until(lambda: answering.going == 0, "the generation has ended")
        assert answering.unfinished == unfinished + 1


def test_an_example_is_clicked_and_answered(tab: Tab) -> None:
    facts = tab.page.locator("#title li").inner_text()
    assert facts == "tiny · 5.5 M parameters · float32 · CPU · images of 112 pixels"
    expect(tab.page.locator("#chat-0")).to_contain_text("Ask about an image")
    example = tab.example("Where is the red star? Draw its box.")
    image = example.locator("img")
    wait_until(lambda: image.evaluate("i => i.complete && i.naturalWidth") == 112, "its image")
    example.click()
    expect(tab.questions().last).to_have_text("Give the box of <ref>red star</ref>.")
    expect(tab.answers().first).to_contain_text("<ref>red star</ref><box>[[260, 270, 490, 490]]")
    expect(tab.images().first).to_be_visible()
    expect(example).not_to_be_visible()  # room for the answers
    expect(tab.page.locator("#stop")).to_have_count(0)
    tab.ask("What color is the circle?")  # the talk goes on about the example's image
    expect(tab.answers().last).to_have_text("blue")
    tab.page.click("#clear")
    example = tab.example("What is 2 plus 3?")
    example.focus()
    tab.page.keyboard.press("Enter")
    expect(tab.answers().last).to_have_text("5")


@pytest.fixture(scope="module")
def pair() -> Iterator[Serving]:
    """Two models, which are one."""
    tiny = load("before", TINY)
    with serve(Recording(tiny, replace(tiny, name="after"))) as serving:
        yield serving


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_the_screen_and_can_be_read(
    browser: Any, pair: Serving, width: int, scheme: str
) -> None:
    tab = Tab(browser, pair)
    page = tab.page
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    page.reload()  # Gradio looks at the colour scheme as it starts
    expect(tab.example("Which digit is this?")).to_be_visible()
    assert scroll_width(page) == width
    assert pale_texts(page) == []
    tab.example("How many shapes are there?").click()
    for place in (0, 1):
        expect(tab.answers(place).last).to_have_text("3")
    page.get_by_text("Settings").click()
    expect(page.get_by_text("taken of a video")).to_be_visible()
    assert scroll_width(page) == width
    assert pale_texts(page) == []
    # With both answers there, the question's field is still on the screen.
    expect(page.get_by_role("textbox", name="Question")).to_be_in_viewport()
    page.close()


def test_a_screen_reader_finds_names(browser: Any, pair: Serving) -> None:
    tab = Tab(browser, pair)
    expect(tab.page.get_by_role("heading", name="internvl-chat demo")).to_be_visible()
    expect(tab.page.get_by_role("listitem")).to_have_count(2)
    tab.example("Where is the red star? Draw its box.").click()
    box = tab.page.get_by_role("textbox", name="Question")
    expect(box).to_be_visible()
    large = tab.page.get_by_role("button", name="Image: small_shapes.png. Show it large")
    expect(large).to_have_count(2)
    drawn = tab.page.get_by_role("button", name="Image: the answer's boxes drawn. Show it large")
    expect(drawn).to_have_count(2)
    tab.page.close()
