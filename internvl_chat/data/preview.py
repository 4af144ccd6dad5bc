"""One record as the model sees it, from the code that training runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from rich.text import Text

from internvl_chat.config import DataConfig
from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.dataset import Loaded, SampleLoader
from internvl_chat.data.encode import Encoder
from internvl_chat.data.meta import DatasetSpec, load_datasets
from internvl_chat.data.mixture import open_annotation
from internvl_chat.data.record_json import MAX_RECORD_BYTES
from internvl_chat.errors import ConfigError
from internvl_chat.model.constants import IGNORE_INDEX, IMG_CONTEXT_TOKEN
from internvl_chat.model.suggestions import suggest

MARKS: Final = ("{+", "+}")
"""Before and behind what is supervised, as of words added in ``git diff --word-diff``."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A loaded record and where it stands."""

    dataset: str
    file: str
    line: int
    loaded: Loaded

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        encoded = self.loaded.encoded
        return {
            "dataset": self.dataset,
            "file": self.file,
            "line": self.line,
            "text": encoded.text,
            "input_ids": encoded.input_ids.tolist(),
            "labels": encoded.labels.tolist(),
            "num_images": len(self.loaded.num_tiles),
            "num_tiles": sum(self.loaded.num_tiles),
            "image_sizes": [list(size) for size in self.loaded.image_sizes],
            "length": len(encoded.input_ids),
            "truncated": encoded.truncated,
        }

    def as_text(self, tokenizer: Any, *, marked: bool = False) -> Text:
        """For reading: what is supervised is green, runs of image tokens are shortened.

        Args:
            tokenizer: that encoded it.
            marked: also put what is supervised between MARKS, for where colours do not show.
        """
        opening, closing = MARKS if marked else ("", "")
        fields = self.as_dict()
        supervised = sum(label != IGNORE_INDEX for label in fields["labels"])
        shown = Text(f"{self.file}:{self.line}", style="bold")
        shown.append(
            f"  {self.dataset}\n{fields['length']} tokens, {supervised} supervised"
            f"{f' ({opening}…{closing})' if marked else ''}"
            f"{', truncated' if fields['truncated'] else ''}; "
            f"{fields['num_images']} images {fields['image_sizes']}, "
            f"{fields['num_tiles']} tiles\n",
            style="dim",
        )
        pairs = zip(fields["input_ids"], fields["labels"], strict=True)
        for is_supervised, run in groupby(pairs, key=lambda pair: pair[1] != IGNORE_INDEX):
            text = tokenizer.decode([token for token, _ in run], skip_special_tokens=False)
            if is_supervised:
                shown.append(f"{opening}{_shorten(text)}{closing}", style="green")
            else:
                shown.append(_shorten(text))
        return shown


def _shorten(text: str) -> str:
    pieces = []
    for is_context, run in groupby(text.split(IMG_CONTEXT_TOKEN), key=lambda piece: not piece):
        found = list(run)
        pieces.append(f"{IMG_CONTEXT_TOKEN}x{len(found) + 1}" if is_context else "".join(found))
    return "".join(pieces)


def preview(
    config: DataConfig, tokenizer: Any, *, dataset: str | None, index: str
) -> Iterator[Preview]:
    """Load records of a dataset.

    Args:
        config: as training's.
        tokenizer: with the image tokens added.
        dataset: a name of the meta JSON; may be None if it has one only.
        index: ``i``, or ``i:j`` for records i to j-1, counted from 0.

    Raises:
        ConfigError: no such dataset or record.
        BadRecordError: while iterating, for a record that training would skip.
    """
    spec = _choose(load_datasets(config), dataset)
    file = open_annotation(spec)
    numbers = _numbers(index, len(file), spec.name)
    encoder = Encoder(tokenizer, config.encode)
    loader = SampleLoader(encoder, config.media, train=False)
    return _Previews(spec, file, loader, numbers)


class _Previews(Iterator[Preview]):
    """An iterator that goes on after a bad record, unlike a generator."""

    def __init__(
        self, spec: DatasetSpec, file: AnnotationFile, loader: SampleLoader, numbers: range
    ) -> None:
        self._spec, self._file, self._loader = spec, file, loader
        self._numbers = iter(numbers)

    def __next__(self) -> Preview:
        number = next(self._numbers)
        raw, where = self._file.read(number, most=MAX_RECORD_BYTES + 1)
        return Preview(
            dataset=self._spec.name,
            file=self._file.path,
            line=self._file.line(number),
            loaded=self._loader.load(raw, self._spec, where=where),
        )


def _choose(specs: list[DatasetSpec], name: str | None) -> DatasetSpec:
    table = {spec.name: spec for spec in specs}
    known = ", ".join(table)
    if name is None:
        if len(specs) == 1:
            return specs[0]
        raise ConfigError("the meta names several datasets", fix=f"Choose --dataset: {known}.")
    if name not in table:
        fix = f"{suggest(name, table)} Known: {known}.".lstrip()
        raise ConfigError(f"no dataset {name!r}", where="--dataset", fix=fix)
    return table[name]


def _numbers(index: str, total: int, name: str) -> range:
    first, colon, last = index.partition(":")
    try:
        begin = int(first or 0)
        end = (int(last) if last else total) if colon else begin + 1
    except ValueError as err:
        raise ConfigError(
            f"{index!r} is no record", where="--index", fix="Write i or i:j, counted from 0."
        ) from err
    if not 0 <= begin < end or begin >= total or (not colon and end > total):
        raise ConfigError(
            f"{index} is not within the {total} records of {name}",
            where="--index",
            fix=f"Count from 0 to {total - 1}.",
        )
    return range(begin, min(end, total))
