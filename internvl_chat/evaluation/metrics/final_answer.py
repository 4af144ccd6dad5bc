"""The answer at the end of a chain of thought.

Source: ``extract_answer`` of today's InternVL evaluators (``--cot`` of ScienceQA and POPE).
"""

from __future__ import annotations

import re

_STATED = re.compile(r"(?:final answer:|answer:)\s*(.*)", re.IGNORECASE)


def final_answer(text: str) -> str:
    r"""What follows the first ``Final answer:`` or ``Answer:`` on its line; else the whole text.

    White space behind the colon may hold newlines.

    >>> final_answer("It floats.\nFinal answer:\nB\nSo it is.")
    'B'
    """
    found = _STATED.search(text)
    return found[1].strip() if found else text
