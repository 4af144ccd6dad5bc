"""Records -> tensors: the thin part of the data path that opens files."""

from __future__ import annotations

import logging
import multiprocessing
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from internvl_chat.config import MediaConfig, OrderConfig
from internvl_chat.data.bad_record import bad_if_unreadable
from internvl_chat.data.bad_samples import BadSamples
from internvl_chat.data.encode import Encoded, Encoder
from internvl_chat.data.expand import ExpandedRecord, expand_record
from internvl_chat.data.held_out import HeldOutRecord
from internvl_chat.data.images import DecodedImage, decode_image, require_backend
from internvl_chat.data.lengths import Lengths
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.mixture import Mixture
from internvl_chat.data.orientation import ImageGeometry, sizes_as_shown, turn_boxes
from internvl_chat.data.per_sample import PerSample
from internvl_chat.data.pixels import jpeg_augment, preprocess
from internvl_chat.data.sampler import EpochPlan, Pack, plan_epoch
from internvl_chat.data.schema import BadRecordError, Record, parse_record
from internvl_chat.data.storage import read_bytes, resolve_path
from internvl_chat.data.tiles import count_tiles, least_size
from internvl_chat.data.video import choose_frames, open_video
from internvl_chat.errors import DatasetError

logger = logging.getLogger(__name__)

_SEARCH_CHUNK = 4096


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample as the collator takes it."""

    input_ids: Tensor
    """(T,) int64."""
    labels: Tensor
    """(T,) int64; IGNORE_INDEX where nothing is supervised."""
    pixel_values: Tensor | None
    """(n, 3, S, S) uint8 tiles in reading order; None for text."""
    num_tiles: tuple[int, ...]
    """Tiles per image."""
    dataset_id: int
    sample_index: int
    """Of the sample these tensors hold; differs from the planned one if that was bad."""
    where: str
    """``file:line``."""
    truncated: bool
    padding: bool = False
    """Completes the last step: nothing of it is supervised."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A record with its images and its encoding: what ``data preview`` shows."""

    record: Record
    encoded: Encoded
    pixel_values: Tensor | None
    num_tiles: tuple[int, ...]
    image_sizes: tuple[tuple[int, int], ...]
    """(width, height) of each image as shown."""


class SampleLoader:
    """Builds one sample of one dataset.

    Args:
        encoder: template, tokenizer and limits.
        media: sizes, tiling, frames, limits.
        train: draw augmentations and video frames; otherwise neither is random.
    """

    def __init__(self, encoder: Encoder, media: MediaConfig, *, train: bool) -> None:
        require_backend(media.images.decode)
        self.encoder, self.media, self.train = encoder, media, train

    def load(
        self, raw: bytes, spec: DatasetSpec, *, where: str, rng: random.Random | None = None
    ) -> Loaded:
        """Read a record's images and encode it.

        Args:
            raw: the record's JSON.
            spec: its dataset.
            where: ``file:line``, for messages.
            rng: for augmentation and frames; needed in training.

        Raises:
            BadRecordError: anything about the record or its files is wrong.
        """
        with bad_if_unreadable(where):
            return self._load(raw, spec, where, rng)

    def _load(self, raw: bytes, spec: DatasetSpec, where: str, rng: random.Random | None) -> Loaded:
        record = parse_record(raw, where=where)
        images = self._images(record, spec, where, rng)
        sizes = tuple(image.geometry.size for image in images)
        expanded = expand_record(
            record,
            spec,
            self.media.images,
            sizes=record.sizes or sizes,
            num_frames=len(images) if record.video else 0,
            where=where,
        )
        if record.sizes:
            expanded = self._as_shown(expanded, record, spec, images, where)
        encoded = self.encoder.encode(
            expanded.turns, expanded.num_tiles, system=record.system, where=where
        )
        tiles = self._tiles(images, expanded.num_tiles, record, spec, where, rng)
        return Loaded(
            record=record,
            encoded=encoded,
            pixel_values=_joined(tiles),
            num_tiles=expanded.num_tiles,
            image_sizes=sizes,
        )

    def _images(
        self, record: Record, spec: DatasetSpec, where: str, rng: random.Random | None
    ) -> list[DecodedImage]:
        limit = self.media.max_image_pixels
        if record.video is None:
            return [self._image(path, record, spec, where) for path in record.images]
        video = open_video(
            self._path(record.video, spec, where),
            where=where,
            max_pixels=limit,
            backend=self.media.video_backend,
            decode=self.media.images.decode,
        )
        chosen = choose_frames(
            video,
            clip=record.clip,
            min_num_frame=self.media.min_num_frame,
            max_num_frame=self.media.max_num_frame,
            rng=rng if self.train else None,
            where=where,
        )
        return [
            DecodedImage(pixels=frame, geometry=ImageGeometry(stored_size=frame.size))
            for frame in video.frames(chosen)
        ]

    def _image(self, path: str, record: Record, spec: DatasetSpec, where: str) -> DecodedImage:
        place = self._path(path, spec, where)
        settings = self.media.images
        budget = settings.tile_budget(len(record.images), spec.max_dynamic_patch)
        is_augmented = self.train and spec.data_augment  # of the pixels as they are
        return decode_image(
            read_bytes(place, where=where),
            where=where,
            path=place,
            max_pixels=self.media.max_image_pixels,
            decode=settings.decode,
            fit=None if is_augmented else lambda size: least_size(size, settings, max_tiles=budget),
        )

    def _as_shown(
        self,
        expanded: ExpandedRecord,
        record: Record,
        spec: DatasetSpec,
        images: Sequence[DecodedImage],
        where: str,
    ) -> ExpandedRecord:
        """Turn what the record says of stored images; counting ahead went by the stated sizes."""
        geometries = [image.geometry for image in images]
        assert record.sizes is not None
        if not any(map(ImageGeometry.is_stored_size, geometries, record.sizes)):
            return expanded
        settings = self.media.images
        budget = settings.tile_budget(len(images), spec.max_dynamic_patch)
        shown = sizes_as_shown(record.sizes, geometries)
        return replace(
            expanded,
            turns=turn_boxes(expanded.turns, record.sizes, geometries, where=where),
            num_tiles=tuple(count_tiles(size, settings, max_tiles=budget) for size in shown),
        )

    def _path(self, path: str, spec: DatasetSpec, where: str) -> str:
        return resolve_path(spec.root, path, where=where, strict=self.media.strict_root)

    def _tiles(
        self,
        images: Sequence[DecodedImage],
        num_tiles: Sequence[int],
        record: Record,
        spec: DatasetSpec,
        where: str,
        rng: random.Random | None,
    ) -> list[Tensor]:
        budget = self.media.images.tile_budget(len(record.images), spec.max_dynamic_patch)
        tiles = []
        for number, (decoded, planned) in enumerate(zip(images, num_tiles, strict=True)):
            image, size = decoded.pixels, decoded.geometry.size
            if self.train and spec.data_augment and rng is not None:
                image = jpeg_augment(decoded.rgb, rng)
            # A video's frames are one tile each, however large.
            most = 1 if record.video else budget
            pixels = preprocess(image, self.media.images, max_tiles=most, size=size)
            if len(pixels) != planned:
                stated = record.sizes[number] if record.sizes else "no size"
                raise BadRecordError(
                    "SIZE_MISMATCH",
                    f"the record states {stated}, the image is {size}: {planned} tiles "
                    f"were planned, it has {len(pixels)}",
                    where=where,
                    fix='Correct "width" and "height".',
                )
            tiles.append(pixels)
        return tiles


def _joined(tiles: Sequence[Tensor]) -> Tensor | None:
    """All tiles; those of a single image as they are, without a copy."""
    if len(tiles) == 1:
        return tiles[0]
    return torch.cat(list(tiles)) if tiles else None


class SftDataset(Dataset[list[Example]]):
    """The samples of a run; indexed by :class:`Pack`.

    Args:
        mixture: the datasets.
        lengths: counts per dataset, in the mixture's order.
        loader: builds a sample.
        bad_samples: the policy for bad records.
        seed: of augmentation and video frames.
        resample: draw datasets by the square root of their size.
    """

    def __init__(
        self,
        mixture: Mixture,
        lengths: Sequence[Lengths],
        loader: SampleLoader,
        bad_samples: BadSamples,
        *,
        seed: int = 0,
        resample: bool = False,
    ) -> None:
        self.mixture, self.loader, self.bad_samples = mixture, loader, bad_samples
        self.seed, self.resample = seed, resample
        self.lengths = mixture.expand([one.tokens for one in lengths])
        """(len(self),) int32 ids by sample; negative for bad ones."""
        self._counted = tuple(lengths)
        # Shared with workers that were forked before the epoch changed.
        self._epoch = multiprocessing.Value("q", 0)

    def __len__(self) -> int:
        return len(self.mixture)

    @cached_property
    def tiles(self) -> PerSample:
        """(len(self),) int32 image tiles by sample; put together when they are asked for."""
        return self.mixture.expand([one.tiles for one in self._counted])

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """Names by ``dataset_id``."""
        return tuple(spec.name for spec in self.mixture.specs)

    def held_out_records(self) -> list[HeldOutRecord]:
        """Those that the mixture's parts hold out and that can be asked."""
        return self.mixture.held_out_records([one.tokens for one in self._counted])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's augmentations, also in workers that already run."""
        self._epoch.value = epoch

    def plan(self, epoch: int, *, global_batch_size: int, order: OrderConfig) -> EpochPlan:
        """The order of an epoch; see :func:`plan_epoch`."""
        indices = None
        if self.resample:
            indices = self.mixture.resample(self.lengths, seed=self.seed, epoch=epoch)
        return plan_epoch(
            self.lengths,
            seed=self.seed,
            epoch=epoch,
            global_batch_size=global_batch_size,
            mode=order.mode,
            max_packed_tokens=order.max_packed_tokens,
            tiles=self.tiles,
            max_packed_tiles=order.max_packed_tiles,
            indices=indices,
            drop_last=order.drop_last,
            rule=order.rule,
        )

    def __getitem__(self, pack: Pack | int) -> list[Example]:
        """The samples of a pack.

        A bad sample is journalled and replaced by the next good one that is not longer; a pack that
        has none to offer goes without. All of it depends on the data only, not on workers.

        Raises:
            BadRatioError: too many records are bad.
        """
        if isinstance(pack, int):
            pack = Pack((pack,))
        taken: set[int] = set()
        examples = []
        for index in pack.indices:
            example = self._good_example(index, pack, taken)
            if example is not None:
                examples.append(example)
                taken.add(example.sample_index)
        if not examples:
            raise DatasetError(f"no good sample to put in place of samples {list(pack.indices)}")
        return examples

    def _good_example(self, index: int, pack: Pack, taken: set[int]) -> Example | None:
        planned = index
        for _ in range(len(self) + 1):
            dataset, record = self.mixture.locate(index)
            try:
                example = self._example(index, dataset, record, padding=pack.padding)
            except BadRecordError as err:
                number = self.mixture.first_record(dataset) + record
                line = self.mixture.files[dataset].line(record)
                self.bad_samples.add(dataset, number, line, err)
            else:
                self.bad_samples.seen()
                return example
            following = self._next_good(index, planned, pack, taken)
            if following is None:
                return None
            index = following
        return None

    def _next_good(self, index: int, planned: int, pack: Pack, taken: set[int]) -> int | None:
        """The first sample after ``index``, around the end, that fits where ``planned`` stood."""
        avoid = taken.union(pack.indices)
        limit = int(self.lengths[planned])
        shortest, longest = self._extremes
        if len(pack.indices) == 1 and limit <= shortest:
            limit = longest  # nothing is as short: a row may grow, a pack may not
        total = len(self)
        stop = planned if index < planned else planned + total
        for first in range(index + 1, stop, _SEARCH_CHUNK):
            places = np.arange(first, min(first + _SEARCH_CHUNK, stop)) % total
            lengths = self.lengths[places]
            for place in places[(lengths >= 0) & (lengths <= limit)].tolist():
                if place not in avoid:
                    return place
        return None

    @cached_property
    def _extremes(self) -> tuple[int, int]:
        """Length of the shortest and of the longest good sample."""
        found = [values[values >= 0] for _, values in self.lengths.blocks()]
        return min(int(v.min()) for v in found if len(v)), max(int(v.max(initial=0)) for v in found)

    def _example(self, index: int, dataset: int, record: int, *, padding: bool) -> Example:
        raw, where = self.mixture.files[dataset].read(record)
        spec = self.mixture.specs[dataset]
        rng = random.Random(f"{self.seed}:{self._epoch.value}:{index}")
        loaded = self.loader.load(raw, spec, where=where, rng=rng)
        return Example(
            input_ids=torch.from_numpy(loaded.encoded.input_ids),
            labels=torch.from_numpy(loaded.encoded.labels),
            pixel_values=loaded.pixel_values,
            num_tiles=loaded.num_tiles,
            dataset_id=dataset,
            sample_index=index,
            where=where,
            truncated=loaded.encoded.truncated,
            padding=padding,
        )
