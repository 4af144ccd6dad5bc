"""What ``data check`` says: one finding, and the counts of a dataset."""

from __future__ import annotations

from dataclasses import dataclass

from internvl_chat.data.check.codes import Severity, check_of


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
    return Finding(code, row.severity, dataset, file, line, message, mend or row.mend)


@dataclass
class DatasetCounts:
    """A row of the table."""

    dataset: str
    records: int = 0
    ok: int = 0
    """Records about which nothing was found."""
    warned: int = 0
    """Records with warnings only."""
    bad: int = 0
    """Records with an error."""
    tokens: int | None = None
    """None without a tokenizer."""
    num_images: int = 0
