"""What the chat shows."""

from __future__ import annotations

import pytest

from internvl_chat.web.conversation import Answer, Conversation, MediaItem
from internvl_chat.web.messages import as_markdown, as_messages


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<ref>a</ref><box>[[1]]</box>", "&lt;ref>a&lt;/ref>&lt;box>[[1]]&lt;/box>"),
        ("<script>x</script> &lt;b>", "&lt;script>x&lt;/script> &amp;lt;b>"),
        ("**bold** `a<b` 1 < 2", "**bold** `a<b` 1 &lt; 2"),
        ("```\n<b>\n```\n<b>", "```\n<b>\n```\n&lt;b>"),
        ("```\n<b> not closed", "```\n<b> not closed"),
    ],
)
def test_tags_are_shown_as_written(text: str, shown: str) -> None:
    assert as_markdown(text) == shown


def test_each_chat_has_its_own_answers() -> None:
    image = MediaItem(path="/up/one.png")
    answers = [
        Answer(text="<box>", drawing="/up/drawn.png", caption="Boxes on image 1 of 2"),
        Answer(text="", problem="Too long."),
    ]
    conversation = Conversation().ask("Why?", [image]).answered(answers).ask("And?", [])
    asked = [
        {"role": "user", "content": {"path": "/up/one.png", "alt_text": "one.png"}},
        {"role": "user", "content": "Why?"},
    ]
    waiting = {"role": "user", "content": "And?"}
    told = ["&lt;box>", {"path": "/up/drawn.png", "alt_text": "Boxes on image 1 of 2"}]
    told.append("*Boxes on image 1 of 2*")
    said = [{"role": "assistant", "content": content} for content in told]
    assert as_messages(conversation, 0) == [*asked, *said, waiting]
    said = [{"role": "assistant", "content": "⚠️ Too long."}]
    assert as_messages(conversation, 1) == [*asked, *said, waiting]


@pytest.mark.parametrize(
    ("answer", "contents"),
    [
        (Answer(text="So", stopped=True), ["So", "*(stopped)*"]),
        (Answer(stopped=True), ["*(stopped)*"]),
        (Answer(finished=False), ["…"]),
        (Answer(), ["*(the model said nothing)*"]),
    ],
)
def test_ends_of_answers(answer: Answer, contents: list[str]) -> None:
    shown = as_messages(Conversation().ask("Why?", []).answered([answer]), 0)[1:]
    assert [message["content"] for message in shown] == contents
