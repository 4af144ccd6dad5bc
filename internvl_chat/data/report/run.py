"""A config in, a page out: the order in which the parts are put together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from internvl_chat import __version__
from internvl_chat.config import DataConfig
from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.dataset import SampleLoader
from internvl_chat.data.encode import Encoder
from internvl_chat.data.lengths import Lengths, token_lengths
from internvl_chat.data.meta import DatasetSpec, load_datasets
from internvl_chat.data.mixture import open_annotation
from internvl_chat.data.record_json import MAX_RECORD_BYTES
from internvl_chat.data.report.bad_groups import BadGroups, first_places
from internvl_chat.data.report.charts import SMALL, WIDE, histogram
from internvl_chat.data.report.figures import DatasetFigures, dataset_figures, together
from internvl_chat.data.report.gallery import gallery_sample
from internvl_chat.data.report.page import DatasetCharts, check_output, json_text, write_page
from internvl_chat.data.report.sampling import choose_samples
from internvl_chat.data.schema import BadRecordError
from internvl_chat.model.conversation import Template

_MARK: Final = re.compile(r"<[^<>\s]+>")

GALLERY_BYTES: Final = 40_000_000
"""The gallery ends here: a page that a browser opens at once."""

Progress = Callable[[str, int, int], None]
"""Told what is done, how many of it and of how many."""


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A dataset with its counts."""

    spec: DatasetSpec
    file: AnnotationFile
    lengths: Lengths


@dataclass(kw_only=True)
class WrittenReport:
    """What came of it."""

    path: Path
    num_bytes: int
    num_datasets: int
    num_shown: int
    num_bad: int
    """Bad records by their text, and those among the chosen whose files are."""


class DataReport:
    """The page about the datasets of a meta JSON.

    Args:
        config: as training's.
        tokenizer: with the image tokens added.
        num_samples: of the gallery.
        seed: of their choice.
        settings: (name, value) of what else the page says of how it was made.
        progress: told how far it is.

    Raises:
        UserError: the meta, an annotation file or the template is wrong.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Any,
        *,
        num_samples: int,
        seed: int,
        settings: Sequence[tuple[str, str]] = (),
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        self.config, self.num_samples, self.seed = config, num_samples, seed
        self.settings, self.progress = tuple(settings), progress
        self._encoder = Encoder(tokenizer, config.encode)
        self._specs = load_datasets(config)
        self._bad, self._unloadable = BadGroups(), BadGroups()
        self._shown = self._left_out = 0

    def write(self, path: Path) -> WrittenReport:
        """Count, choose, load and write.

        Args:
            path: the page; a report that has the name is replaced.

        Raises:
            ConfigError: something else has the name.
        """
        check_output(path)
        opened = [self._open(spec) for spec in self._specs]
        figures = list(self._figures(opened))
        chosen = choose_samples(
            [one.lengths.tokens for one in opened],
            [min(one.num_samples, one.num_records) for one in figures],
            num_samples=self.num_samples,
            seed=self.seed,
        )
        content = {
            **self._numbers(figures),
            "bad": self._bad.groups(),
            "bad_by_dataset": first_places(self._bad.groups()),
            "num_bad": self._bad.num_bad,
            "unloadable": self._unloadable,
            "gallery": self,
            "num_chosen": len(chosen),
        }
        num_bytes = write_page(path, content, self._samples(opened, chosen))
        return WrittenReport(
            path=path,
            num_bytes=num_bytes,
            num_datasets=len(opened),
            num_shown=self._shown,
            num_bad=self._bad.num_bad + self._unloadable.num_bad,
        )

    @property
    def num_shown(self) -> int:
        """Samples written so far."""
        return self._shown

    @property
    def num_left_out(self) -> int:
        """Chosen samples for which there was no room."""
        return self._left_out

    def _open(self, spec: DatasetSpec) -> _Opened:
        file = open_annotation(spec)
        lengths = token_lengths(spec, file, self._encoder, self.config.media)
        for number, err in lengths.bad:
            group = self._bad.add(spec.name, err)
            if self._bad.wants_example(group):
                self._bad.add_example(group, err, file.read(number, most=MAX_RECORD_BYTES + 1)[0])
        return _Opened(spec=spec, file=file, lengths=lengths)

    def _figures(self, opened: Sequence[_Opened]) -> Iterator[DatasetFigures]:
        for place, one in enumerate(opened):
            self.progress(f"counting {one.spec.name}", place, len(opened))
            yield dataset_figures(one.spec, one.file, one.lengths, self._encoder, self.config.media)

    def _numbers(self, figures: Sequence[DatasetFigures]) -> dict[str, Any]:
        everything = together(figures)
        return {
            "title": Path(self.config.meta_path).name,
            "meta_path": self.config.meta_path,
            "version": __version__,
            "turn_starts": json_text(turn_starts(self._encoder.template)),
            "settings": (*self._own_settings(), *self.settings),
            "figures": figures,
            "everything": everything,
            "charts": [self._charts(one, SMALL) for one in figures],
            "all_charts": self._charts(everything, WIDE),
            "all_small_charts": self._charts(everything, SMALL),
        }

    def _charts(self, figures: DatasetFigures, size: tuple[int, int]) -> DatasetCharts:
        return DatasetCharts(
            name=figures.name,
            tokens=histogram(
                figures.token_lengths,
                title=figures.name,
                x_label="tokens",
                size=size,
                limit=self.config.encode.max_seq_length,
            ),
            tiles=histogram(figures.tile_counts, title=figures.name, x_label="tiles", size=size)
            if figures.tile_counts.largest
            else None,
        )

    def _own_settings(self) -> tuple[tuple[str, str], ...]:
        encode, images = self.config.encode, self.config.media.images
        tiles = "one tile each"
        if images.dynamic_image_size:
            more = " and a thumbnail" if images.use_thumbnail else ""
            tiles = f"{images.min_dynamic_patch} to {images.max_dynamic_patch} tiles{more}"
        return (
            ("template", encode.conv_style),
            ("longest sample", f"{encode.max_seq_length:,} tokens"),
            ("images", tiles),
            ("tile", f"{images.image_size} pixels, {encode.num_image_token} tokens"),
            ("seed", str(self.seed)),
        )

    def _samples(
        self, opened: Sequence[_Opened], chosen: Sequence[tuple[int, int]]
    ) -> Iterator[str]:
        loader = SampleLoader(self._encoder, self.config.media, train=False)
        room = GALLERY_BYTES
        for place, (dataset, record) in enumerate(chosen):
            one = opened[dataset]
            raw, where = one.file.read(record)
            self.progress("loading samples", place + 1, len(chosen))
            try:
                loaded = loader.load(raw, one.spec, where=where)
            except BadRecordError as err:
                group = self._unloadable.add(one.spec.name, err)
                if self._unloadable.wants_example(group):
                    self._unloadable.add_example(group, err, raw)
                continue
            sample = gallery_sample(
                loaded, one.spec, self._encoder, self.config.media.images, where=where
            )
            text = json_text(sample.as_json())
            room -= len(text.encode("utf-8", errors="backslashreplace"))
            if room < 0:
                self._left_out = len(chosen) - place
                return
            self._shown += 1
            yield text


def turn_starts(template: Template) -> list[str]:
    """Marks that a turn of the template begins with; empty where they are plain words."""
    found = [_MARK.match(role) for role in template.roles]
    return list(dict.fromkeys(match[0] for match in found if match))
