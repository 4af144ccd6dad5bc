"""What ``data check`` says: one finding, and the counts of a dataset."""

from __future__ import annotations

from dataclasses import dataclass

from internvl_chat.data.check.codes import Severity, check_of
from internvl_chat.errors import printable


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, where, and how to mend it."""

    code: str
    severity: Severity
    dataset: str | None
    file: str
    line: int | None
    """From 1; None for what concerns the whole file or the meta."""
    message: str
    mend: str

    @property
    def where(self) -> str:
        """``file:line``, or the file."""
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def as_text(self) -> str:
        """``file:line: CODE message — mend``."""
        return f"{self.where}: {self.code} {self.message} — {self.mend}"


def finding(
    code: str,
    message: str,
    mend: str | None = None,
    *,
    dataset: str | None,
    file: str,
    line: int | None = None,
) -> Finding:
    """A finding with the severity, and failing ``mend`` the mend, of its code's row."""
    row = check_of(code)
    message = " ".join(message.split()).removesuffix(".")
    name = None if dataset is None else printable(dataset)
    mend = printable(mend or row.mend)
    return Finding(code, row.severity, name, printable(file), line, printable(message), mend)


@dataclass
class CheckedCounts:
    """A row of the table."""

    dataset: str
    num_records: int
    num_ok: int
    """Records about which nothing was found."""
    num_warned: int
    """Records with warnings only."""
    num_bad: int
    """Records with an error."""
    num_tokens: int | None
    """None without a tokenizer."""
    num_images: int

    @classmethod
    def before(cls, dataset: str, num_records: int, *, counts_tokens: bool) -> CheckedCounts:
        """Of a dataset of which no record was looked at yet."""
        return cls(dataset, num_records, 0, 0, 0, 0 if counts_tokens else None, 0)
