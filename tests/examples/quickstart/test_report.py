"""The page from made-up replies and a made-up log."""

import re
from html.parser import HTMLParser

from examples.quickstart.report import ReportInput, dataset_series, render_report
from examples.quickstart.scoring import Reply
from tests.examples.quickstart.replies import PIXEL, replies


def report_input(before: list[Reply], after: list[Reply]) -> ReportInput:
    log = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0},
        {"step": 2, "loss/text": 0.5, "loss/digits": 1.5},
    ]
    return ReportInput(
        before=before,
        after=after,
        log=log,
        seconds={"train": 203.0, "before": 41.2},
        facts={"model": "a<b"},
        command="GPUS=2 sh x.sh --a 'b c'",
    )


class _Checker(HTMLParser):
    """Collects addresses and checks that tags are closed in order."""

    VOID = frozenset(("meta", "img", "input", "line", "circle", "rect", "polyline", "br"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_outside() -> None:
    before = replies("1777") + replies("77", "text")
    after = replies("7771") + replies("71", "text")
    page = render_report(report_input(before, after), lambda path: PIXEL)
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert set(checker.addresses) == {PIXEL}
    assert "http" not in page.replace("http-equiv", "")
    assert "@import" not in page
    assert "url(" not in page
    assert "a&lt;b" in page
    assert "sh x.sh --a &#x27;b c&#x27;" in page


def test_the_table_shows_counts_shares_and_points() -> None:
    page = render_report(report_input(replies("1117"), replies("7771")), lambda path: PIXEL)
    row = re.search(r'<tr class="custom">(.*?)</tr>', page)
    assert row is not None
    cells = re.findall(r"<td[^>]*>([^<]*)<", row[1])[:5]
    assert [cell.replace("\N{NARROW NO-BREAK SPACE}", " ") for cell in cells] == [
        "digits",
        "4",
        "25.0 %",
        "75.0 %",
        "+50.0",
    ]
    assert "3:23" in page  # 203 s


def test_losses_by_dataset_start_with_the_custom_one() -> None:
    log = [{"step": 50, "loss/a": 1.0, "loss/digits": 2.0}, {"step": 100, "loss/digits": 1.0}]
    series = dataset_series(log)
    assert [(one.name, one.points) for one in series] == [
        ("digits", ((50, 2.0), (100, 1.0))),
        ("a", ((50, 1.0),)),
    ]
