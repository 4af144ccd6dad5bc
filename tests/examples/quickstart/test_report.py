"""The page from made-up replies and a made-up log."""

import base64
import hashlib
import re
from html.parser import HTMLParser

from examples.quickstart.commands import Command
from examples.quickstart.report import PARTS, ReportInput, dataset_series, render_report
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
        made=["2026-11-27 01:05 UTC", "commit 0123456789"],
        facts={"model": "a<b"},
        commands=[Command(title="Again", text="GPUS=2 sh x.sh --a 'b c'")],
    )


class _Checker(HTMLParser):
    """Collects addresses and names, and checks that tags are closed in order."""

    VOID = frozenset(("meta", "link", "img", "input", "line", "circle", "rect", "polyline", "br"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

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
    assert set(checker.addresses) - {f"#{name}" for name in PARTS} == {PIXEL, "data:,"}
    assert set(PARTS) <= set(checker.ids)
    assert len(set(checker.ids)) == len(checker.ids)
    assert "http" not in page.replace("http-equiv", "")
    assert "@import" not in page
    assert "url(" not in page
    assert "a&lt;b" in page
    assert "sh x.sh --a &#x27;b c&#x27;" in page


def cells_of(page: str, dataset: str) -> list[str]:
    """Texts of the dataset's row in the table."""
    (row,) = re.findall(rf">{dataset}</th>(.*?)</tr>", page)
    texts = [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]
    return [text.replace("\N{NARROW NO-BREAK SPACE}", " ") for text in texts]


def test_the_table_shows_counts_shares_points_and_their_interval() -> None:
    page = render_report(report_input(replies("1117"), replies("7771")), lambda path: PIXEL)
    minus = "\N{MINUS SIGN}"
    assert cells_of(page, "digits") == [
        "4",
        "25.0 %",
        "75.0 %",
        f"+50.0 ({minus}39.9 to +90.9)",
        "no difference",
        "",
    ]
    assert "3:23" in page  # 203 s


def test_noise_is_no_difference_and_red_is_for_what_is_worse() -> None:
    """One of 300 more wrong, 30 of 300 more wrong, and 86 points better."""
    before = replies("7" * 300, "noise") + replies("7" * 300, "worse") + replies("1" * 50)
    after = replies("7" * 299 + "1", "noise") + replies("7" * 270 + "1" * 30, "worse")
    page = render_report(report_input(before, after + replies("7" * 43 + "1" * 7)), lambda _: PIXEL)
    for dataset, word, tone in (
        ("noise", "no difference", "same"),
        ("worse", "worse", "loss"),
        ("digits", "better", "gain"),
    ):
        assert cells_of(page, dataset)[4] == word
        (row,) = re.findall(rf">{dataset}</th>(.*?)</tr>", page)
        assert f'class="verdict {tone}"' in row
        assert f'class="shift {tone}"' in row
    assert cells_of(page, "noise")[3].startswith("\N{MINUS SIGN}0.3 (")
    assert "at least one of 3 datasets would look changed in 14 % of runs" in page


def test_when_where_and_from_what_it_was_made() -> None:
    page = render_report(report_input(replies("1"), replies("7")), lambda path: PIXEL)
    assert "<span>2026-11-27 01:05 UTC</span> <span>commit 0123456789</span>" in page
    assert "<dt>model</dt><dd>a&lt;b</dd>" in page
    assert "train 3:23" in page


def test_style_and_script_are_those_that_the_policy_admits() -> None:
    page = render_report(report_input(replies("1"), replies("7")), lambda path: PIXEL)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_losses_by_dataset_start_with_the_custom_one() -> None:
    log = [{"step": 50, "loss/a": 1.0, "loss/digits": 2.0}, {"step": 100, "loss/digits": 1.0}]
    series = dataset_series(log)
    assert [(one.name, one.points) for one in series] == [
        ("digits", ((50, 2.0), (100, 1.0))),
        ("a", ((50, 1.0),)),
    ]
