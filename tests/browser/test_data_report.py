"""The page of ``data report`` as somebody sees it, opened from disk in a real browser."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from internvl_chat.cli import main  # noqa: E402
from internvl_chat.model.constants import IGNORE_INDEX  # noqa: E402
from tests.support import tokenizers  # noqa: E402
from tests.support.page_looks import SCHEMES, WIDTHS, pale_texts, scroll_width  # noqa: E402
from tests.support.report_corpus import (  # noqa: E402
    BLUE,
    EVIL,
    EVIL_NAME,
    FLAGS,
    NUM_GOOD,
    TALL_BOX,
    WIDE_BOX,
    YELLOW,
    write_corpus,
)

expect = sync_api.expect
NUM_SAMPLES = NUM_GOOD + 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, and the page about it."""
    folder = tmp_path_factory.mktemp("report")
    meta = write_corpus(folder)
    command = ["data", "report", str(meta), "-o", str(folder / "report.html")]
    with mock.patch.dict(os.environ, INTERNVL_CHAT_CACHE=str(folder / "cache")):
        assert main([*command, "--tokenizer", str(folder / "tokenizer"), *FLAGS]) == 0
    return folder


@dataclass
class OpenReport:
    """A tab with the page; notes what should not happen."""

    page: Any
    address: str
    complaints: list[str] = field(default_factory=list)
    asked_for: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.asked_for.append(request.url))
        self.page.goto(self.address)

    @property
    def cards(self) -> Any:
        """Samples on the screen."""
        return self.page.locator("article.sample")

    @property
    def position(self) -> Any:
        """Which of how many are shown."""
        return self.page.locator("output.position")

    def find(self, words: str) -> Any:
        """Search for words that one sample has; its card."""
        self.page.get_by_label("Search").fill(words)
        self.page.get_by_label("Search").press("Enter")  # waits for no more letters
        expect(self.position).to_contain_text("found")
        expect(self.cards).to_have_count(1)
        return self.cards.first


@pytest.fixture
def report(browser: Any, folder: Path) -> Iterator[OpenReport]:
    opened = OpenReport(browser.new_page(), (folder / "report.html").as_uri())
    yield opened
    assert opened.complaints == []
    own = (opened.address, "data:")
    assert [url for url in opened.asked_for if not url.startswith(own)] == []
    assert opened.page.title() == "meta.json: data report"
    opened.page.close()


def test_pages_filters_and_order(report: OpenReport) -> None:
    expect(report.position).to_have_text(f"1–8 of {NUM_SAMPLES} samples")
    expect(report.cards).to_have_count(8)
    following = report.page.get_by_role("button", name="Next").first
    for _ in range(4):
        following.click()
    expect(report.position).to_have_text(f"33–{NUM_SAMPLES} of {NUM_SAMPLES} samples")
    expect(following).to_have_attribute("aria-disabled", "true")
    report.page.get_by_role("button", name="Previous").first.click()
    expect(report.position).to_have_text(f"25–32 of {NUM_SAMPLES} samples")
    report.page.get_by_role("combobox", name="Dataset").select_option("plain")
    expect(report.position).to_have_text(f"1–6 of 6 found among {NUM_SAMPLES}")
    assert set(report.page.locator(".chip").all_inner_texts()) == {"plain"}
    report.page.get_by_role("combobox", name="Dataset").select_option(EVIL_NAME)
    expect(report.position).to_contain_text(f"of {NUM_GOOD} found")
    for choice, number in (("boxes", 3), ("frames", 1), ("cut", 1), ("images", 3), ("remarks", 1)):
        report.page.get_by_role("combobox", name="Show").select_option(choice)
        expect(report.cards).to_have_count(number)
    report.page.get_by_role("combobox", name="Show").select_option("")
    report.page.get_by_role("combobox", name="Order").select_option("long")
    facts = [text.split()[0] for text in report.page.locator(".facts").all_inner_texts()]
    lengths = [int(text.replace(",", "")) for text in facts]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == 1500
    report.page.get_by_label("Search").fill("no such words")
    expect(report.position).to_have_text("No sample is like that")


def test_search_reads_text_place_and_file(report: OpenReport) -> None:
    assert "方块" in report.find("黄色的方块").inner_text()
    expect(report.find("boxes.jsonl:4").locator(".where")).to_contain_text("boxes.jsonl:4")
    report.page.get_by_label("Search").fill("V.GIF")
    expect(report.cards).to_have_count(1)
    expect(report.cards.locator("figure")).to_have_count(7)


def place_inside(inner: Any, outer: Any) -> tuple[float, ...]:
    """Left, top, right and bottom of one element as shares of another, of one moment.

    Pictures are decoded after their card is there, and move what stands beside them when
    they get their size: wait for all of the page, then measure both in one call.
    """
    page = outer.page
    page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth)")
    return tuple(
        outer.evaluate(
            """(image, box) => {
                const [out, own] = [image, box].map((node) => node.getBoundingClientRect());
                const x = (value) => (value - out.x) / out.width;
                const y = (value) => (value - out.y) / out.height;
                return [x(own.left), y(own.top), x(own.right), y(own.bottom)];
            }""",
            inner.element_handle(),
        )
    )


def test_boxes_lie_where_they_should(report: OpenReport) -> None:
    for words, box, number in (
        ("[0.100, 0.200", WIDE_BOX, 0),
        ("<ref>yellow", TALL_BOX, 0),
        ("[0.5, 0.8,", TALL_BOX, 1),  # of two images the one before the box
    ):
        card = report.find(words)
        image, drawn = card.locator("figure img").nth(number), card.locator(".box")
        expect(drawn).to_have_count(1)
        place = place_inside(drawn, image)
        assert np.allclose(place, box, atol=0.01)
        # What it encloses is the yellow rectangle, on the screen as well.
        marked = card.locator(f"[data-mark='{drawn.get_attribute('data-mark')}']").last
        report.page.mouse.move(0, 0)
        with Image.open(io.BytesIO(image.screenshot())) as shot:
            screen = np.asarray(shot.convert("RGB")).astype(int)
        height, width = screen.shape[:2]
        x, y = (box[0] + box[2]) / 2 * width, (box[1] + box[3]) / 2 * height
        assert np.abs(screen[int(y), int(x)] - YELLOW).max() < 30
        outside = min(box[2] + 0.08, 0.97) * width
        assert np.abs(screen[int(y), int(outside)] - BLUE).max() < 40
        marked.hover()
        expect(drawn).to_have_class(re.compile(r"\blit\b"))
    report.page.get_by_role("checkbox", name="boxes").uncheck()
    expect(drawn).to_be_hidden()


def test_shapes_tiles_and_frames(report: OpenReport) -> None:
    card = report.find("[0.100, 0.200")
    report.page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth)")
    box = card.locator("figure img").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(400 / 160, rel=0.02)
    expect(card.locator("figcaption")).to_have_text("wide.png 400 × 160, 3 × 1 tiles and the whole")
    expect(card.locator(".tile-borders line.dash")).to_have_count(2)
    frames = report.find("grows lighter").locator("figure")
    expect(frames).to_have_count(7)
    levels = []
    for number in range(7):
        with Image.open(io.BytesIO(frames.nth(number).locator("img").screenshot())) as shot:
            levels.append(np.asarray(shot.convert("L")).mean())
    assert levels == sorted(levels)
    assert levels[6] - levels[0] > 60


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (1, "[0.100, 0.200"),
        (2, "<ref>yellow"),
        (4, "grows lighter"),
        (5, "document.title"),
        (6, "boxes.jsonl:6"),
        (7, "请描述"),
    ],
)
def test_coloured_text_is_what_has_labels(
    report: OpenReport, folder: Path, line: int, words: str
) -> None:
    """Compared with what ``data preview --json`` tells, decoded."""
    with mock.patch.dict(os.environ, INTERNVL_CHAT_CACHE=str(folder / "cache")):
        shown = _preview(folder, line - 1)
    tokenizer = tokenizers.byte_level()
    learned = [token for token in shown["labels"] if token != IGNORE_INDEX]
    card = report.find(words)
    spans = card.locator(".text .supervised")
    texts = spans.evaluate_all("spans => spans.map(span => span.textContent)")
    assert "".join(texts) == tokenizer.decode(learned)
    kept = card.locator(".text :is(.prompt, .supervised, .times)")
    parts = kept.evaluate_all("spans => spans.map(span => [span.className, span.textContent])")
    text = ""
    for number, (kind, part) in enumerate(parts):
        times = int(part[1:].replace(",", "")) - 1 if kind == "times" else 1
        text += parts[number - 1][1] * times if kind == "times" else part
    assert text == tokenizer.decode(shown["input_ids"])
    green, grey = (
        card.locator(f".text .{kind}").first.evaluate("span => getComputedStyle(span).color")
        for kind in ("supervised", "prompt")
    )
    assert green == "rgb(20, 101, 59)"
    assert grey == "rgb(102, 99, 92)"


def _preview(folder: Path, index: int) -> dict[str, Any]:
    """The record by the path of training."""
    from internvl_chat.cli.data_check import check_settings
    from internvl_chat.data.preview import preview

    config, tokenizer = check_settings(str(folder / "meta.json"), folder / "tokenizer", FLAGS)
    (one,) = preview(config, tokenizer, dataset=EVIL_NAME, index=str(index))
    return one.as_dict()


def test_markup_in_records_is_text(report: OpenReport) -> None:
    card = report.find("document.title")
    for evil in EVIL:
        assert evil in card.locator(".text").evaluate("text => text.textContent")
    expect(card.locator(".chip")).to_have_text(EVIL_NAME)
    assert card.locator("img, script, b").count() == 0
    bad = report.page.locator("#bad")
    expect(bad.locator("h3").first).to_have_text(EVIL_NAME)
    for summary in bad.locator("summary").all():
        summary.click()
    assert EVIL[0] in bad.inner_text()
    assert "boxes.jsonl:32" in bad.inner_text()
    assert bad.locator("script, img").count() == 0
    # Even if it got out of its place: neither markup nor addresses are let in.
    policy = report.page.locator("meta[http-equiv]").get_attribute("content")
    assert policy.startswith("default-src 'none'")
    came = "fetch('https://example.com').then(() => 'came', () => 'refused')"
    assert report.page.evaluate(came) == "refused"
    said = report.page.evaluate(
        "() => { try { document.body.innerHTML = '<p>'; return 'taken' }"
        " catch { return 'refused' } }"
    )
    assert said == "refused"
    report.asked_for.clear()
    assert any("example.com" in complaint for complaint in report.complaints)
    report.complaints.clear()  # of these two trials


def test_long_texts_are_folded(report: OpenReport) -> None:
    card = report.find("boxes.jsonl:6")
    expect(card.locator(".remarks")).to_have_text("TEXT_CUT: the text is cut at 1500 tokens")
    assert card.locator(".cut").count() > 0
    rest = card.locator(".middle .rest").first
    expect(rest).to_be_hidden()
    unfold = card.get_by_role("button", name=re.compile(r"Show [\d,]+ characters more")).first
    unfold.focus()
    report.page.keyboard.press("Enter")
    expect(rest).to_be_visible()


def test_most_frames_of_a_video_are_folded_in_the_text(report: OpenReport) -> None:
    card = report.find("grows lighter")
    said = card.locator(".text").inner_text()
    assert [f"Frame{number}:" in said for number in range(1, 8)] == [
        *[True] * 2,
        *[False] * 4,
        True,
    ]
    card.get_by_role("button", name="Show 4 frames more").click()
    said = card.locator(".text").inner_text()
    assert [said.count(f"Frame{number}:") for number in range(1, 8)] == [1] * 7


def test_by_keyboard_alone(report: OpenReport) -> None:
    press = report.page.keyboard.press
    press("Tab")
    expect(report.page.get_by_text("Skip to the gallery")).to_be_focused()
    press("Enter")
    focused = ""
    for _ in range(12):
        press("Tab")
        focused = report.page.evaluate(
            "document.activeElement.id || document.activeElement.textContent"
        )
        if focused == "search":
            break
    assert focused == "search"
    report.page.keyboard.type("count to")
    expect(report.position).to_contain_text("of 23 found")
    for _ in range(20):
        press("Tab")
        focused = report.page.evaluate("document.activeElement.textContent")
        if "Next" in focused:
            break
    press("Enter")
    expect(report.position).to_contain_text("9–16 of 23")
    assert "Next" in report.page.evaluate("document.activeElement.textContent")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_the_screen_and_can_be_read(report: OpenReport, width: int, scheme: str) -> None:
    report.page.set_viewport_size({"width": width, "height": 900})
    report.page.emulate_media(color_scheme=scheme)
    report.page.get_by_role("combobox", name="Show").select_option("cut")
    assert scroll_width(report.page) == width
    for selector in (".text .prompt", ".text .supervised", ".text .cut", ".where", ".remarks"):
        expect(report.page.locator(selector).first).to_be_visible()
    assert pale_texts(report.page) == []
    # Nothing of the table is beyond the edge: on a phone a row is a block of lines.
    panel = report.page.get_by_role("region", name="Table of datasets")
    assert panel.evaluate("panel => panel.scrollWidth <= panel.clientWidth")
    cells = panel.get_by_role("row").nth(1).get_by_role("cell").all()
    assert len({round(cell.bounding_box()["y"]) for cell in cells}) == (3 if width < 700 else 1)
    report.page.emulate_media(color_scheme="light")
