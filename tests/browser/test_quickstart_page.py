"""The quickstart's page as somebody sees it, opened from disk in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")

from examples.quickstart.cards import image_data  # noqa: E402
from examples.quickstart.commands import Command, wrapped  # noqa: E402
from examples.quickstart.report import ReportInput, render_report  # noqa: E402
from tests.examples.quickstart.replies import replies  # noqa: E402
from tests.support.page_looks import SCHEMES, WIDTHS, pale_texts, scroll_width  # noqa: E402
from tests.support.training import ROOT  # noqa: E402

expect = sync_api.expect
RECIPE = f"shell/{'a_recipe_with_a_long_name_' * 4}.sh"
COMMAND = wrapped(["sh", RECIPE, "--data", "a b"], {"OUTPUT_DIR": "work_dirs/run"})


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of seven datasets, with a command that is longer than a phone's line."""
    names = ("digits", "shapes", "a_dataset_with_a_long_name", "text")
    before = [one for name in names for one in replies("1" * 20 + "7" * 40, name)]
    after = [one for name in names for one in replies("7" * 50 + "1" * 10, name)]
    given = ReportInput(
        before=before,
        after=after,
        log=[{"step": step, "loss": 9 / step, "loss/digits": 5 / step} for step in range(1, 80)],
        seconds={"data": 5.0, "train": 300.0},
        made=["2026-11-27 01:05 UTC", "commit 0123456789 with changes", "A CPU, 2 cores, 8 GB"],
        facts={"model after": "work_dirs/" + "deep/" * 20, "versions": "torch 2, " * 20},
        commands=[Command(title="Ask", text="echo hello"), Command(title="Again", text=COMMAND)],
    )
    path = tmp_path_factory.mktemp("quickstart") / "report.html"
    picture = str(ROOT / "examples/image1.jpg")
    path.write_text(render_report(given, lambda _: image_data(picture)), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    page = browser.new_page()
    complaints: list[str] = []
    asked_for: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked_for.append(request.url))
    page.goto(address)
    yield page
    assert complaints == []
    assert [url for url in asked_for if not url.startswith((address, "data:"))] == []
    page.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_the_screen_and_can_be_read(page: Any, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    assert scroll_width(page) == width
    assert pale_texts(page) == []
    on_phone = width < 700
    for kind, count in (("on-phone", 2), ("on-wide", 2)):
        charts = page.locator(f"svg.{kind}")
        expect(charts).to_have_count(count)
        expect(charts.first).to_be_visible(visible=(kind == "on-phone") == on_phone)
    row = page.get_by_role("row").filter(has_text="a_dataset_with_a_long_name")
    cells = row.get_by_role("cell").all()
    tops = {round(cell.bounding_box()["y"]) for cell in cells}
    assert len(tops) > 2 if on_phone else len(tops) < 3  # a block of lines, or a line
    page.emulate_media(color_scheme="light")


# Clipboards are there, are not there (a page of another machine, without TLS), refuse.
WRITES = "navigator.clipboard.writeText = async (text) => { window.copied = text; }"
ABSENT = "Object.defineProperty(navigator, 'clipboard', {value: undefined})"
REFUSES = "navigator.clipboard.writeText = async () => { throw new DOMException('no') }"
HEARS = """addEventListener('copy', (event) => {
    window.copied = getSelection().toString() || event.target.value; })"""


@pytest.mark.parametrize("clipboard", [WRITES, ABSENT, REFUSES])
def test_a_command_is_copied_as_it_is(page: Any, clipboard: str) -> None:
    page.evaluate(f"() => {{ {clipboard}; {HEARS}; }}")
    button = page.get_by_role("button", name="Copy the command: Again")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_text("Copied")
    expect(page.get_by_role("status").last).to_have_text("Copied")
    assert page.evaluate("window.copied") == COMMAND
    expect(button).to_be_focused()


def test_without_any_clipboard_the_command_is_selected(page: Any) -> None:
    page.evaluate(f"() => {{ {ABSENT}; document.execCommand = () => false; }}")
    button = page.get_by_role("button", name="Copy the command: Ask")
    button.click()
    expect(button).to_have_text("Selected: Ctrl+C")
    assert page.evaluate("getSelection().toString()") == "echo hello"


def test_filters_and_links_by_keyboard(page: Any) -> None:
    cards = page.locator(".card:visible")
    whole = cards.count()
    page.get_by_role("radio", name="all").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="wrong after")).to_be_checked()
    assert 0 < cards.count() < whole
    page.get_by_role("link", name="Commands").press("Enter")
    expect(page.get_by_role("heading", name="Go on from here")).to_be_in_viewport()
