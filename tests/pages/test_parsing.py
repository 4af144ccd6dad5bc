"""How blocks become commands, and what cannot hide in them."""

from __future__ import annotations

import pytest

from tests.support import pages
from tests.support.pages import Block, Command, blocks, need_of


def of(text: str) -> list[tuple[str, str | None]]:
    block = Block(page="p.md", line=3, language="sh", text=text)
    return [(one.text, one.need) for one in block.commands]


def test_comments_say_what_is_needed() -> None:
    assert of(
        "a --b 'c # d'   # e\n# needs 64 GPUs\nf\n# further words\ng # takes minutes, or more\nh\n"
    ) == [("a --b 'c # d'", None), ("f", "GPUs"), ("g", "time"), ("h", "GPUs")]


def test_lines_that_go_on() -> None:
    block = Block(page="p.md", line=3, language="sh", text="a \\\n  b\n\ncurl -d '{\n}' x\nc\n")
    assert block.commands == (
        Command(page="p.md", line=3, text="a \\\n  b"),
        Command(page="p.md", line=6, text="curl -d '{\n}' x"),
        Command(page="p.md", line=8, text="c"),
    )


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match=r"p\.md:3: '# needs luck': use words of NEEDS"):
        need_of("# needs luck", "p.md:3")


def test_a_script_is_a_file() -> None:
    block = Block(page="p.md", line=3, language="sh", text="#!/bin/sh\n# my/run.sh\nls\n")
    assert block.script == "my/run.sh"
    assert block.commands == ()


def test_a_block_names_its_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "page_text", lambda page: "text\n```\nrm x\n```\n")
    with pytest.raises(ValueError, match=r"q\.md:2: a block of no language"):
        blocks.__wrapped__("q.md")
