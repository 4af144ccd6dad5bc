"""The file of answers of a file of questions: told from other files, appended to, put in order.

A row is ``{"line": n, …, "answer": …}`` or ``{"line": n, …, "error": …}``. While questions are
answered rows are appended, so that an interruption costs none; in the end there is one row a line,
in the order of the lines.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import logging
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

from internvl_chat.chat.question_lines import BLANK, QuestionSource
from internvl_chat.data.bad_record import BadRecordError
from internvl_chat.data.encodings import BOM
from internvl_chat.data.record_json import load_record
from internvl_chat.errors import ConfigError, printable
from internvl_chat.files import written_aside

logger = logging.getLogger(__name__)

ASKED: Final[tuple[str, ...]] = ("id", "question", "image", "images", "video")
"""Keys of a question that its row repeats, so that rows can be asked as questions."""
_KEPT: Final = {"id", "question"}  # also where they are null or empty
_MEDIA: Final = ("image", "images", "video")
_START: Final = b'{"line": '
_ANOTHER: Final = "Name a new file, or the --out of an earlier start."

Row = dict[str, Any]


class AnswerFile:
    """``--out``. Building it changes nothing; as a context it is open for rows.

    Args:
        path: the file, new or that of an earlier start.
        questions: status of the file of questions, which is no place for answers.

    Raises:
        ConfigError: it is the file of questions, holds something else, or cannot be written.
    """

    def __init__(self, path: Path, questions: os.stat_result | None = None) -> None:
        self.path = path
        self._real = Path(os.path.realpath(path))  # a link stays one
        self.answered: dict[int, Row] = {}
        """The rows with an answer, by number of the line; as far as they repeat the question."""
        self._file: BinaryIO | None = None
        try:
            self._is_regular = self._look(questions)
        except OSError as err:
            raise self._unwritable(err) from err

    def _look(self, questions: os.stat_result | None) -> bool:
        """Whether it is, or will be, a file that can be read again."""
        if self.path.exists() and not (self.path.is_file() or self.path.is_dir()):
            self._real = self.path  # a pipe or a device: nothing to go on with
            return False
        folder = self._real.parent
        if not folder.is_dir():
            raise ConfigError(
                f"there is no folder {folder} for {self.path}",
                where="--out",
                fix="Make it, or correct the path.",
            )
        try:
            status = os.stat(self._real)
        except FileNotFoundError:
            if not os.access(folder, os.W_OK | os.X_OK):
                raise ConfigError(f"no file can be made in {folder}", where="--out") from None
            return True
        if stat.S_ISDIR(status.st_mode):
            raise ConfigError(f"{self.path} is a folder", where="--out", fix="Name a file in it.")
        if questions is not None and os.path.samestat(status, questions):
            raise ConfigError(
                f"{self.path} is the file of questions itself", where="--out", fix="Name another."
            )
        if not os.access(self._real, os.R_OK | os.W_OK):
            raise ConfigError(f"{self.path} may not be read and written", where="--out")
        with open(self._real, "rb") as file:
            for _, row, _ in self._rows(file):
                if "answer" in row:
                    kept = {key: row[key] for key in ASKED if key in row}
                    self.answered[row["line"]] = kept
        return True

    def _rows(self, file: Iterable[bytes]) -> Iterator[tuple[int, Row, bytes]]:
        """(byte at which it ends, row, its bytes) of each that was not cut short.

        Raises:
            ConfigError: a line is no row.
        """
        position = 0
        for number, line in enumerate(file, start=1):
            position += len(line)
            if not line.strip(BLANK):
                continue
            raw = line.removeprefix(BOM) if number == 1 else line
            where = f"{self.path}:{number}"
            try:
                row, _ = load_record(raw, where=where)
            except BadRecordError as err:
                # The write that an interruption cut; earlier versions wrote on behind it.
                if raw.startswith(_START) or (_START.startswith(raw) and line[-1:] != b"\n"):
                    continue
                raise _no_row(where) from err
            if not _is_row(row):
                raise _no_row(where)
            yield position, row, raw

    def require_same(self, line: bytes, number: int, shown: str) -> None:
        """Compare a line with the question that was answered there; nothing to say of others.

        Args:
            line: of the file of questions.
            number: its number.
            shown: what messages call that file.

        Raises:
            ConfigError: it asks something else.
        """
        answered = self.answered.get(number)
        if answered is None:
            return
        try:
            record, _ = load_record(line, where=shown)
        except BadRecordError:
            record = None
        asked = repeated(record) if isinstance(record, dict) else {}
        seen = _MEDIA if "question" in answered else ()  # a row that repeats it repeats these too
        if any(asked.get(key) != answered.get(key) for key in {*answered, *seen}):
            raise ConfigError(
                f"{self.path} answers another question than {shown}:{number} asks",
                where="--out",
                fix="Name a new file.",
            )

    def __enter__(self) -> AnswerFile:
        """Open it, without a row that was cut short.

        Raises:
            ConfigError: it cannot be written, or another process is writing it.
        """
        try:
            self._file = open(self._real, "ab" if self._is_regular else "wb")
            if self._is_regular:
                _lock(self._file, self.path)
                self._finish_last_row()
        except OSError as err:
            raise self._unwritable(err) from err
        return self

    def _finish_last_row(self) -> None:
        with open(self._real, "r+b") as file:
            newest = None
            for newest in self._rows(file):  # noqa: B007 - the last one is wanted
                pass
            end, _, last = newest or (0, {}, b"\n")
            file.truncate(end)
            if not last.endswith(b"\n"):
                file.seek(end)
                file.write(b"\n")

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows, as they were given to people: no character is written as ``\\uXXXX``.

        Raises:
            ConfigError: the disk is full, or the reader of a pipe has gone.
        """
        assert self._file is not None
        text = "".join(json.dumps(_printable(row), ensure_ascii=False) + "\n" for row in rows)
        try:
            self._file.write(text.encode("utf-8"))
            self._file.flush()
        except OSError as err:
            raise self._unwritable(err) from err

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        try:
            if self._is_regular:
                self._put_in_order()
        except OSError as failure:
            logger.warning("%s is not put in order: %s", self.path, failure.strerror)
        with contextlib.suppress(OSError):  # of a full disk, told by write()
            self._file.close()

    def _put_in_order(self) -> None:
        """One row a line, by number; of several an answer counts, else the newest."""
        newest: dict[int, tuple[bool, bytes]] = {}
        numbers, num_bytes = [], 0
        with open(self._real, "rb") as file:
            for _, row, raw in self._rows(file):
                number, is_answer = row["line"], "answer" in row
                numbers.append(number)
                num_bytes += len(raw)
                if is_answer or not newest.get(number, (False, b""))[0]:
                    newest[number] = (is_answer, raw.rstrip(BLANK))
        ascending = all(one < other for one, other in itertools.pairwise(numbers))
        if ascending and num_bytes == self._real.stat().st_size:
            return
        with written_aside(self._real) as aside:
            aside.write_bytes(b"".join(newest[number][1] + b"\n" for number in sorted(newest)))
            shutil.copymode(self._real, aside)

    def _unwritable(self, err: OSError) -> ConfigError:
        return ConfigError(f"{self.path} cannot be written: {err.strerror}", where="--out")


def repeated(record: dict[str, Any], raw: bytes = b"") -> Row:
    """What a row repeats of a question.

    Args:
        record: the question.
        raw: its line, for an ``id`` as it is written there.
    """
    row = {key: record[key] for key in ASKED if record.get(key) or key in record.keys() & _KEPT}
    if isinstance(row.get("id"), float) and raw:  # may be an integer of more than 64 bits
        row["id"] = json.loads(raw, parse_constant=lambda name: None)["id"]
    return row


def require_same_questions(source: QuestionSource, out: AnswerFile) -> None:
    """Compare the questions that are at hand with those that ``out`` answers.

    Raises:
        ConfigError: a line asks something else, or is not there any more.
    """
    for number, line in enumerate(source.known_lines, start=1):
        out.require_same(line, number, source.shown)
    beyond = [number for number in out.answered if number > len(source.known_lines)]
    if beyond and source.num_questions is not None:
        raise ConfigError(
            f"{out.path} answers line {min(beyond)}, and {source.shown} has "
            f"{len(source.known_lines)} lines: it belongs to other questions",
            where="--out",
            fix="Name a new file.",
        )


def _lock(file: BinaryIO, path: Path) -> None:
    """Keep the file for this process until it is closed.

    Raises:
        ConfigError: another one has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        file.close()
        raise ConfigError(
            f"{path} is being written by another start", where="--out", fix="Name a new file."
        ) from err
    except OSError as err:  # a file system without locks
        logger.info("%s: not locked (%s)", path, err.strerror)


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("line"), int):
        return False
    is_number = row["line"] is not True and row["line"] > 0
    return is_number and any(isinstance(row.get(key), str) for key in ("answer", "error"))


def _printable(row: Row) -> Row:
    return {key: printable(val) if isinstance(val, str) else val for key, val in row.items()}


def _no_row(where: str) -> ConfigError:
    return ConfigError("no line of answers", where=where, fix=_ANOTHER)
