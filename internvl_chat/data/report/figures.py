"""Numbers of a dataset: exact from the token lengths, the rest measured on records of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from internvl_chat.config import MediaConfig
from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.encode import Encoder
from internvl_chat.data.expand import expand_record, needs_sizes
from internvl_chat.data.lengths import Lengths
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.report.tallies import Tally, merged, sum_of_first, tally
from internvl_chat.data.schema import BadRecordError, Record, parse_record
from internvl_chat.model.constants import IGNORE_INDEX

PROBED: Final = 2000
"""Records of a dataset that are encoded for what the lengths do not hold; all of a smaller one."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number, or what it is by records spread over the dataset."""

    value: int
    is_exact: bool


@dataclass(frozen=True, kw_only=True)
class DatasetFigures:
    """What a dataset holds; each record counts once, whatever ``repeat_time`` is."""

    name: str
    annotation: str
    num_records: int
    num_in_file: int
    """More than ``num_records`` where ``max_samples`` leaves some out."""
    repeat_time: float
    num_samples: int
    """That an epoch takes."""
    epoch_tokens: int
    token_lengths: Tally
    """Of the good records."""
    tile_counts: Tally
    num_images: Measured
    num_supervised: Measured
    """Supervised tokens."""
    num_truncated: int
    num_bad: int
    remarks: tuple[tuple[str, int], ...]
    """Remark and its number of records; the most frequent ones."""

    @property
    def num_good(self) -> int:
        """Records that are trained on."""
        return self.token_lengths.num_records


def dataset_figures(
    spec: DatasetSpec, file: AnnotationFile, lengths: Lengths, encoder: Encoder, media: MediaConfig
) -> DatasetFigures:
    """Count a dataset.

    Args:
        spec, file: the dataset.
        lengths: its counts.
        encoder, media: as they were counted with.
    """
    num_samples = spec.num_samples(len(file))
    tokens = tally(lengths.tokens, lengths.tokens)
    tiles = tally(lengths.tiles, lengths.tokens)
    num_images, num_supervised = _measure(spec, file, lengths, encoder, media)
    if not media.images.dynamic_image_size:  # one tile each
        num_images = Measured(value=tiles.total, is_exact=True)
    return DatasetFigures(
        name=spec.name,
        annotation=file.path,
        num_records=len(file),
        num_in_file=file.num_in_file,
        repeat_time=spec.repeat_time,
        num_samples=num_samples,
        epoch_tokens=sum_of_first(lengths.tokens, num_samples),
        token_lengths=tokens,
        tile_counts=tiles,
        num_images=num_images,
        num_supervised=num_supervised,
        num_truncated=lengths.num_truncated,
        num_bad=len(lengths.bad),
        remarks=tuple(lengths.warnings.items()),
    )


def together(figures: Sequence[DatasetFigures]) -> DatasetFigures:
    """Of all datasets."""
    return DatasetFigures(
        name="All datasets",
        annotation="",
        num_records=sum(one.num_records for one in figures),
        num_in_file=sum(one.num_in_file for one in figures),
        repeat_time=1,
        num_samples=sum(one.num_samples for one in figures),
        epoch_tokens=sum(one.epoch_tokens for one in figures),
        token_lengths=merged([one.token_lengths for one in figures]),
        tile_counts=merged([one.tile_counts for one in figures]),
        num_images=_total([one.num_images for one in figures]),
        num_supervised=_total([one.num_supervised for one in figures]),
        num_truncated=sum(one.num_truncated for one in figures),
        num_bad=sum(one.num_bad for one in figures),
        remarks=(),
    )


def _total(parts: Sequence[Measured]) -> Measured:
    return Measured(
        value=sum(one.value for one in parts), is_exact=all(one.is_exact for one in parts)
    )


def _measure(
    spec: DatasetSpec, file: AnnotationFile, lengths: Lengths, encoder: Encoder, media: MediaConfig
) -> tuple[Measured, Measured]:
    """(images, supervised tokens), of records spread evenly over the file."""
    total = len(file)
    numbers = np.unique(np.linspace(0, total - 1, min(PROBED, total)).round().astype(np.int64))
    seen = images = supervised = 0
    left_out = False
    for number in numbers.tolist():
        if lengths.tokens[number] < 0:
            continue
        raw, where = file.read(number)
        try:
            record = parse_record(raw, where=where)
            learned = _num_supervised(record, spec, encoder, media, int(lengths.tiles[number]))
        except BadRecordError:
            left_out = True
            continue
        seen += 1
        supervised += learned
        images += int(lengths.tiles[number]) if record.video else len(record.images)
    exact = len(numbers) == total and not left_out
    good = int((lengths.tokens[:] >= 0).sum()) if not exact else seen
    scale = good / seen if seen else 0
    return (
        Measured(value=round(images * scale), is_exact=exact),
        Measured(value=round(supervised * scale), is_exact=exact),
    )


def _num_supervised(
    record: Record, spec: DatasetSpec, encoder: Encoder, media: MediaConfig, num_tiles: int
) -> int:
    """Supervised tokens of a good record, of whose images only the number of tiles is known."""
    sizes = record.sizes
    if sizes is None and needs_sizes(record, spec, media.images):
        # Boxes in the text as they are written are a few tokens shorter or longer.
        spec = replace(spec, box_format="keep")
    expanded = expand_record(
        record,
        spec,
        replace(media.images, dynamic_image_size=False),
        sizes=sizes,
        num_frames=num_tiles if record.video else 0,
        where="",
    )
    # Which image has how many of the tiles does not matter: no image is cut, so all of them stand
    # before the place where the text is.
    ones = len(expanded.num_tiles) - 1
    spread = (num_tiles - ones, *(1 for _ in range(ones))) if expanded.num_tiles else ()
    encoded = encoder.encode(expanded.turns, spread, system=record.system)
    return int((encoded.labels != IGNORE_INDEX).sum())
