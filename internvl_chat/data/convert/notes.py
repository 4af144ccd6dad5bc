"""What a conversion did besides converting: nothing is left out in silence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

MAX_PLACES = 20


class UnfitRecordError(Exception):
    """A record that the other format has no way to say; it is left out, counted and told.

    Args:
        reason: short and the same for records of a kind, by which they are counted.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Notes:
    """Counts and first places, in memory that does not grow with the file."""

    kept: Counter[str] = field(default_factory=Counter)
    """Key -> records that carry it on although training does not read it."""
    left: Counter[str] = field(default_factory=Counter)
    """Key or kind of value -> how often it was left out of a record."""
    changes: Counter[str] = field(default_factory=Counter)
    """What else was changed -> how often."""
    left_records: Counter[str] = field(default_factory=Counter)
    """Reason -> records left out."""
    places: list[str] = field(default_factory=list)
    """``file:line: reason`` of the first of them."""

    def leave_record(self, where: str, reason: str, told: str | None = None) -> None:
        """Count a record that is left out.

        Args:
            where: ``file:line``.
            reason: by which it is counted.
            told: what is said of this one, if it says more.
        """
        self.left_records[reason] += 1
        if len(self.places) < MAX_PLACES:
            self.places.append(f"{where}: {told or reason}")

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "keys_kept": dict(self.kept),
            "left_out": dict(self.left),
            "changes": dict(self.changes),
            "records_left_out": dict(self.left_records),
            "places": self.places,
        }

    def as_lines(self) -> list[str]:
        """For people: nothing where there is nothing to tell."""
        lines = []
        if self.kept:
            lines.append(f"carried on, not read by training: {_counts(self.kept)}")
        if self.left:
            lines.append(f"left out: {_counts(self.left)}")
        lines += [f"{text}: {count}" for text, count in self.changes.most_common()]
        if self.left_records:
            lines.append(f"records left out: {sum(self.left_records.values())}")
            lines += [f"  {count} x {why}" for why, count in self.left_records.most_common(10)]
            lines += [f"  {place}" for place in self.places]
        return lines


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{key} ({count})" for key, count in counter.most_common())
