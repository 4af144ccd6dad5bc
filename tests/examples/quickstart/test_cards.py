"""Which questions are shown, and how."""

import pytest

from examples.quickstart.cards import (
    CUSTOM_CARDS,
    GENERAL_CARDS,
    card,
    choose,
    pair_up,
    readable,
)
from tests.examples.quickstart.replies import PIXEL, replies, reply


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
