"""Yes or no as a reader takes an answer: by the first word that says one of them.

MME and POPE look at the first characters, or for three spellings of no; what they cannot read they
count as wrong, or as yes.
"""

from __future__ import annotations

import re

_VERDICT = re.compile(r"\b(?:(?P<yes>yes|yeah|true)|no|not|nope|none|false|\w+n['’]t)\b", re.I)


def first_verdict(answer: str) -> bool | None:
    """Whether an answer says yes; None where it says neither.

    >>> [first_verdict(text) for text in ("YES.", "There isn't any", "I know it", "")]
    [True, False, None, None]
    """
    found = _VERDICT.search(answer)
    return None if found is None else found["yes"] is not None
