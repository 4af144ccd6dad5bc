"""Bad records by code: how many, which comes first, and a few to look at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from internvl_chat.data.schema import BadRecordError

EXAMPLES: Final = 10
"""Of a dataset and code."""
ALL_EXAMPLES: Final = 400
"""Of the page."""
LONGEST_RECORD: Final = 1500
"""Characters of a record that are shown."""


@dataclass(frozen=True, kw_only=True)
class BadExample:
    """One bad record."""

    where: str
    problem: str
    record: str
    """Its line, perhaps cut."""


@dataclass(kw_only=True)
class BadGroup:
    """Bad records of a dataset with the same code."""

    dataset: str
    code: str
    fix: str
    num_bad: int = 0
    examples: list[BadExample] = field(default_factory=list)


class BadGroups:
    """Collects them; memory does not grow with the number of bad records."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], BadGroup] = {}
        self._room = ALL_EXAMPLES

    def add(self, dataset: str, err: BadRecordError) -> BadGroup:
        """Count one."""
        group = self._groups.get((dataset, err.code))
        if group is None:
            group = BadGroup(dataset=dataset, code=err.code, fix=err.fix or "")
            self._groups[dataset, err.code] = group
        group.num_bad += 1
        return group

    def wants_example(self, group: BadGroup) -> bool:
        """Whether one more of the group is to be shown."""
        return len(group.examples) < (EXAMPLES if self._room > 0 else 1)

    def add_example(self, group: BadGroup, err: BadRecordError, raw: bytes) -> None:
        """Show a record."""
        text = raw[: 4 * LONGEST_RECORD].decode("utf-8", errors="replace")
        cut = len(raw) > 4 * LONGEST_RECORD or len(text) > LONGEST_RECORD
        group.examples.append(
            BadExample(
                where=err.where or "",
                problem=err.problem,
                record=text[:LONGEST_RECORD] + (" …" if cut else ""),
            )
        )
        self._room -= 1

    @property
    def num_bad(self) -> int:
        """All of them."""
        return sum(group.num_bad for group in self._groups.values())

    def groups(self) -> list[BadGroup]:
        """By dataset in the order they came, frequent codes first."""
        names = list(dict.fromkeys(dataset for dataset, _ in self._groups))
        return sorted(
            self._groups.values(),
            key=lambda group: (names.index(group.dataset), -group.num_bad, group.code),
        )


def first_places(groups: Iterable[BadGroup]) -> dict[str, list[BadGroup]]:
    """Groups by dataset."""
    table: dict[str, list[BadGroup]] = {}
    for group in groups:
        table.setdefault(group.dataset, []).append(group)
    return table
