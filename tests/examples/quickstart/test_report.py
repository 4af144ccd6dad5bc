"""The page from made-up replies and a made-up log."""

import re
from html.parser import HTMLParser

import pytest

from examples.quickstart.report import (
    CUSTOM_CARDS,
    GENERAL_CARDS,
    ReportInput,
    card,
    choose,
    dataset_series,
    pair_up,
    readable,
    render_report,
)
from examples.quickstart.scoring import Reply

PIXEL = "data:image/png;base64,AAAA"


def reply(identity: str, answer: str, *, dataset: str = "digits", truth: str = "7") -> Reply:
    images = () if dataset == "text" else (f"{identity}.png",)
    return Reply(
        dataset=dataset,
        identity=identity,
        images=images,
        question="Which digit is this?",
        truth=truth,
        answer=answer,
    )


def replies(answers: str, dataset: str = "digits") -> list[Reply]:
    return [reply(f"{dataset}-{i}", answer, dataset=dataset) for i, answer in enumerate(answers)]


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


def test_replies_are_joined_by_question_not_by_place() -> None:
    before, after = replies("123"), replies("456")
    pairs = pair_up(before, after[::-1])
    assert [(p.before.answer, p.after.answer) for p in pairs] == [
        ("1", "4"),
        ("2", "5"),
        ("3", "6"),
    ]
    with pytest.raises(ValueError, match="3 replies before and 2 after"):
        pair_up(before, after[:2])
    with pytest.raises(ValueError, match="not about the same"):
        pair_up(before, [after[0], after[0], after[1]])


def test_shown_are_the_custom_dataset_first_and_some_mistakes() -> None:
    general = pair_up(replies("7" * 20, "shapes"), replies("7" * 18 + "11", "shapes"))
    custom = pair_up(replies("7" * 40), replies("1" * 20 + "7" * 20))
    chosen = choose(general + custom)
    assert [pair.after.dataset for pair in chosen] == (
        ["digits"] * CUSTOM_CARDS + ["shapes"] * GENERAL_CARDS
    )
    assert sum(not pair.after.is_right for pair in chosen[:CUSTOM_CARDS]) == CUSTOM_CARDS // 3
    assert sum(not pair.after.is_right for pair in chosen[CUSTOM_CARDS:]) == 2
    only_wrong = choose(pair_up(replies("1" * 40), replies("1" * 40)))
    assert len(only_wrong) == CUSTOM_CARDS


def test_boxes_are_drawn_at_their_place() -> None:
    truth = "<ref>red star</ref><box>[[100, 200, 300, 400]]</box>"
    after = reply("a", "<box>[[110, 200, 310, 400]]</box>", dataset="grounding", truth=truth)
    before = reply("a", "red", dataset="grounding", truth=truth)
    drawn = card(pair_up([before], [after])[0], lambda path: PIXEL)
    assert '<rect class="hit" x="110" y="200" width="200" height="200"/>' in drawn
    assert '<rect class="truth" x="100" y="200" width="200" height="200"/>' in drawn
    assert 'class="card right changed"' in drawn
    wrong = reply("a", "<box>[[900, 900, 999, 999]]</box>", dataset="grounding", truth=truth)
    assert 'class="miss"' in card(pair_up([before], [wrong])[0], lambda path: PIXEL)


def test_text_is_escaped_cut_and_without_marks() -> None:
    assert readable("<ref>a</ref> & <script>") == "a &amp; &lt;script&gt;"
    assert readable("Locate <ref>red star</ref>.") == "Locate red star."
    assert readable("x" * 200) == "x" * 119 + "…"


def test_losses_by_dataset_start_with_the_custom_one() -> None:
    log = [{"step": 50, "loss/a": 1.0, "loss/digits": 2.0}, {"step": 100, "loss/digits": 1.0}]
    series = dataset_series(log)
    assert [(one.name, one.points) for one in series] == [
        ("digits", ((50, 2.0), (100, 1.0))),
        ("a", ((50, 1.0),)),
    ]
