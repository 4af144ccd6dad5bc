"""The code blocks of README and docs, and what each of their commands needs.

A command that cannot be run everywhere says so to the reader, in a comment: ``# needs 64 GPUs``,
``# takes minutes``. At a command's end it is about that command; on a line of its own about all
that follow in the block, up to the next such line.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "pretrained/README.md",
    "pretrained/internvl-chat-tiny/README.md",
    "playground/README.md",
    "examples/README.md",
    "benchmarks/README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
)
LANGUAGES = {"sh", "python", "json", "text", "none", "console"}
"""``console``: a session shown, prompts and all, which is not for copying."""

NEEDS = {
    "GPUs": r"needs (?:a|\d+) GPUs?\b",
    "cluster": r"needs a cluster\b",
    "weights": r"needs \d+ GB\b",
    "time": r"takes (?:minutes|hours|an hour)\b",
    "network": r"needs the network\b",
    "root": r"needs root\b",
    "wheels": r"needs the wheels\b",
    "image": r"needs the image\b",
    "judge": r"needs a judge\b",
    "data": r"needs (?:the (?:downloads|releases|nine datasets)|\S+'s release|RefCOCO and COCO)\b",
    "file": r"needs a (?:GGUF file|checkpoint)\b",
}
"""What a command may need, by the words that tell the reader; of several the first counts."""
_SAYS_SO = re.compile(r"\b(?:needs|takes)\b")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of a shell block; for Python the whole block."""

    page: str
    line: int
    """Of its first line in the page, from 1."""
    text: str
    need: str | None = None
    """A key of ``NEEDS``."""

    @property
    def where(self) -> str:
        """``docs/data.md:12``."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    """Of its first line within the fence."""
    language: str
    text: str

    @property
    def script(self) -> str | None:
        """The file that the block is to be saved as: it begins ``#!`` and names it next."""
        if not self.text.startswith("#!"):
            return None
        named = re.search(r"^# (\S+\.(?:sh|py))\b", self.text, re.MULTILINE)
        assert named, f"{self.page}:{self.line}: a script whose second comment names no file"
        return named[1]

    @property
    def commands(self) -> tuple[Command, ...]:
        """In their order; none of a script, which is a file and no command."""
        if self.language == "python":
            first = self.text.split("\n", 1)[0]
            need = need_of(first, f"{self.page}:{self.line}") if first.startswith("#") else None
            return (Command(page=self.page, line=self.line, text=self.text, need=need),)
        if self.language != "sh" or self.script:
            return ()
        return tuple(_commands(self))


def need_of(comment: str, where: str) -> str | None:
    """What the comment says that a command needs.

    Raises:
        ValueError: it says so in words that ``NEEDS`` does not know.
    """
    for need, words in NEEDS.items():
        if re.search(words, comment):
            return need
    if _SAYS_SO.search(comment):
        raise ValueError(f"{where}: {comment!r}: use words of NEEDS in tests/support/pages.py")
    return None


def _commands(block: Block) -> Iterator[Command]:
    """Join continued lines and quotes over several lines; read the comments."""
    general, waiting, first = None, "", 0
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        where = f"{block.page}:{number}"
        if not waiting and line.lstrip().startswith("#"):
            general = need_of(line, where) or general
            continue
        if not waiting and not line.strip():
            continue
        first = first if waiting else number
        waiting += line + "\n"
        if line.endswith("\\") or not _is_whole(waiting):
            continue
        text, comment = _without_comment(waiting.rstrip("\n"))
        own = need_of(comment, where) if comment else None
        yield Command(page=block.page, line=first, text=text, need=own or general)
        waiting = ""
    assert not waiting, f"{block.page}:{first}: a command that does not end"


def _is_whole(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True


def _without_comment(text: str) -> tuple[str, str]:
    """The command and the comment behind it."""
    for found in re.finditer(r"\s+# ", text):
        if _is_whole(text[: found.start()]):
            return text[: found.start()], text[found.end() :]
    return text, ""


@functools.cache
def page_text(page: str) -> str:
    """The page as it is in the working tree."""
    return (ROOT / page).read_text("utf-8")


@functools.cache
def blocks(page: str) -> tuple[Block, ...]:
    """All fenced blocks of a page.

    Raises:
        ValueError: a fence without a language of ``LANGUAGES``, in which commands could hide.
    """
    found: list[Block] = []
    opened: tuple[int, str] | None = None
    inside: list[str] = []
    for number, line in enumerate(page_text(page).splitlines(), start=1):
        fence = re.match(r"\s*```\s*(\S*)", line)
        if fence is None:
            inside.append(line)
        elif opened is None:
            if fence[1] not in LANGUAGES:
                raise ValueError(
                    f"{page}:{number}: a block of {fence[1] or 'no language'}; "
                    f"want one of {', '.join(sorted(LANGUAGES))}"
                )
            opened, inside = (number + 1, fence[1]), []
        else:
            text = "".join(f"{one}\n" for one in inside)
            found.append(Block(page=page, line=opened[0], language=opened[1], text=text))
            opened = None
    assert opened is None, f"{page}: a block that does not end"
    return tuple(found)


def commands(page: str) -> list[Command]:
    """All commands of a page."""
    return [command for block in blocks(page) for command in block.commands]


def prose(page: str) -> str:
    """The page without its fenced blocks, every line where it was."""

    def blank(block: re.Match[str]) -> str:
        return "\n" * block[0].count("\n")

    return re.sub(r"^\s*```.*?^\s*```$", blank, page_text(page), flags=re.DOTALL | re.MULTILINE)


def inline_code(page: str) -> list[str]:
    """What stands between backticks outside of blocks."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]
