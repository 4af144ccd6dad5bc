"""MVBench: whether the first word of an answer and ``(a)`` contain each other.

Source: ``check_ans`` of https://github.com/OpenGVLab/Ask-Anything (video_chat2, mvbench.ipynb).
"""

from __future__ import annotations

from collections.abc import Sequence

from internvl_chat.evaluation.metrics.letters import named_letter


def truth_of(candidates: Sequence[str], answer: str | float) -> str:
    """``(B) text``: of equal candidates the last counts, ``(@)`` if none is the answer."""
    letters = [letter_of(number) for number, text in enumerate(candidates) if text == answer]
    return f"({letters[-1] if letters else '@'}) {answer}"


def letter_of(number: int) -> str:
    """0 is A."""
    return chr(ord("A") + number)


def is_match(reply: str, truth: str) -> bool:
    """The original's rule: an empty reply is right, and so is the article of ``A man``."""
    said = reply.replace("Answer: ", "").lower().split(" ")[0]
    wanted = truth.lower().split(" ")[0]
    return said.replace(".", "") in wanted or wanted in said


def names_truth(reply: str, candidates: Sequence[str], truth: str) -> bool:
    """Whether a reply names the right option by letter or text, and no other."""
    options = {letter_of(number): text for number, text in enumerate(candidates)}
    return f"({named_letter(reply, options) or '?'})" == truth.split(" ")[0]
