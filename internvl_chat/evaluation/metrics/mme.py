"""MME: replies as they are stored, read as yes or no, and counted per image.

Source: https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation
(calculation.py), and ``post_processing`` of the InternVL evaluator (eval/mme/eval.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from internvl_chat.evaluation.metrics.first_verdict import first_verdict

Label = Literal["yes", "no", "other"]

_CHINESE = re.compile("[\u4e00-\u9fa5]")
_FIELDS = 4


def stored(reply: str) -> str:
    """A reply as the answer file holds it: lower case, ``true`` and 是 said as yes, no Chinese."""
    text = reply.replace("\n", "").replace("不是", "No").replace("是", "Yes").replace("否", "No")
    text = text.lower().replace("true", "yes").replace("false", "no")
    return _CHINESE.sub("", text)


def reading(text: str) -> Label:
    """What a stored reply says; only its first four characters count.

    A blank counts as a character, and ``not``, ``know`` and ``none`` say no.
    """
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


@dataclass(frozen=True)
class TaskCount:
    """Of the lines of one task: image, prompt, truth and stored reply, tab-separated."""

    readings: tuple[Label | None, ...]
    """None: the line has another number of fields and is left out of the accuracy."""
    right: tuple[bool, ...]
    """By line."""
    left_out: tuple[str, ...]
    """Lines with another number of fields."""
    bad_truths: int
    """Lines whose truth is neither yes nor no; the original stops at one."""

    @classmethod
    def of(cls, lines: Sequence[str]) -> TaskCount:
        """Read lines; two that follow each other are about the same image."""
        readings: list[Label | None] = []
        right, left_out, bad = [], [], 0
        for line in lines:
            fields = line.split("\t")
            if len(fields) != _FIELDS:
                readings.append(None)
                right.append(False)
                left_out.append(line)
                continue
            truth, label = fields[2].lower(), reading(fields[3])
            bad += truth not in ("yes", "no")
            readings.append(label)
            right.append(label == truth and label != "other")
        return cls(tuple(readings), tuple(right), tuple(left_out), bad)

    @classmethod
    def by_verdicts(cls, pairs: Sequence[tuple[str, str]]) -> TaskCount:
        """Of (truth, stored reply): the reply counts by its first yes or no, wherever it stands."""
        truths = [truth.lower() for truth, _ in pairs]
        names: dict[bool | None, Label] = {True: "yes", False: "no", None: "other"}
        labels = tuple(names[first_verdict(reply)] for _, reply in pairs)
        right = tuple(a == b != "other" for a, b in zip(labels, truths, strict=True))
        return cls(labels, right, (), sum(one not in ("yes", "no") for one in truths))

    @property
    def accuracy(self) -> float:
        """Right lines over those with four fields; 0 without one."""
        counted = len(self.readings) - len(self.left_out)
        return sum(self.right) / counted if counted else 0.0

    @property
    def accuracy_plus(self) -> float:
        """Images with two right lines over all images."""
        pairs = [self.right[start : start + 2] for start in range(0, len(self.right), 2)]
        return pairs.count((True, True)) / len(pairs) if pairs else 0.0

    @property
    def score(self) -> float:
        """0 to 200."""
        return self.accuracy * 100 + self.accuracy_plus * 100
