"""A config in, datasets out: the order in which the parts of the data path are put together."""

from __future__ import annotations

import logging
import os
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from internvl_chat.config import DataConfig, HeldOutConfig
from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.bad_samples import JOURNAL, BadSamples
from internvl_chat.data.dataset import SampleLoader, SftDataset
from internvl_chat.data.encode import Encoder
from internvl_chat.data.held_out import RecordPart, draw_held_out
from internvl_chat.data.lengths import Lengths, token_lengths
from internvl_chat.data.meta import DatasetSpec, load_datasets
from internvl_chat.data.mixture import Mixture, open_annotation
from internvl_chat.data.record_json import MAX_RECORD_BYTES
from internvl_chat.data.same_media import media_of_records
from internvl_chat.data.schema import BadRecordError, parse_record
from internvl_chat.data.storage import exists, resolve_path
from internvl_chat.errors import DatasetError

logger = logging.getLogger(__name__)

_PROBES = 8  # records per dataset whose files are looked for before anything else
_TOLD_REMARKS = 10  # per dataset, the most frequent first


def build_train_dataset(
    config: DataConfig,
    tokenizer: Any,
    *,
    output_dir: str | os.PathLike[str] | None,
    seed: int,
    is_main: bool = True,
    num_processes: int | None = None,
) -> SftDataset:
    """Everything of a run's data that can be decided before training.

    Reads the meta JSON, indexes and counts the annotation files (once per machine), journals bad
    records into ``output_dir/bad_samples.jsonl``. Needs no process group and no device; every rank
    calls it and gets the same dataset.

    Args:
        config: what the data path needs to know.
        tokenizer: with the image tokens added.
        output_dir: None journals nothing.
        seed: of order, augmentation and frames.
        is_main: whether this rank reports and journals what counting found.
        num_processes: that count tokens; by default one per core, at most 32.

    Raises:
        DatasetError: the meta is wrong, files are missing, or too many records are bad.
        ConfigError: unknown template, or a tokenizer without the image tokens.
    """
    build = _Build(
        config,
        Encoder(tokenizer, config.encode),
        seed=seed,
        journal=None if output_dir is None else Path(output_dir) / JOURNAL,
        is_main=is_main,
        num_processes=num_processes,
    )
    specs = load_datasets(config)
    _warn_idle_settings(specs, config)
    return build.counted(specs, None, whole=False).train()


def build_split_datasets(
    config: DataConfig,
    held_out: HeldOutConfig,
    tokenizer: Any,
    *,
    output_dir: str | os.PathLike[str] | None,
    seed: int,
    is_main: bool = True,
) -> tuple[SftDataset, SftDataset]:
    """As :func:`build_train_dataset`, with a part of the records held out for validation.

    Args:
        config, tokenizer, output_dir, seed, is_main: as there.
        held_out: how much, and by which seed.

    Returns:
        What is trained on, and the held-out records, each once, without augmentation; datasets
        that give none are not in it.

    Raises:
        DatasetError: as there; or no dataset can give a record, or one would give all it has.
    """
    build = _Build(
        config,
        Encoder(tokenizer, config.encode),
        seed=seed,
        journal=None if output_dir is None else Path(output_dir) / JOURNAL,
        is_main=is_main,
    )
    specs = load_datasets(config)
    _warn_idle_settings(specs, config)
    counted = build.counted(specs, held_out, whole=False)
    return counted.train(), counted.held_out()


def build_eval_dataset(config: DataConfig, tokenizer: Any, *, is_main: bool = True) -> SftDataset:
    """As :func:`build_train_dataset` for validation: no augmentation, each record once.

    Bad records are journalled nowhere, but too many still stop the run.
    """
    build = _Build(config, Encoder(tokenizer, config.encode), is_main=is_main)
    return build.counted(load_datasets(config), None, whole=True).evaluation()


@dataclass(frozen=True)
class _Build:
    """What is the same for all datasets that are built together."""

    config: DataConfig
    encoder: Encoder
    _: KW_ONLY
    seed: int = 0
    journal: Path | None = None
    is_main: bool = True
    num_processes: int | None = None

    def counted(
        self, specs: list[DatasetSpec], held_out: HeldOutConfig | None, *, whole: bool
    ) -> _Counted:
        """Open the files, choose what is held out and count tokens.

        Args:
            specs: the datasets.
            held_out: None holds nothing out.
            whole: every record once, whatever ``repeat_time`` says.
        """
        files = [open_annotation(spec) for spec in specs]
        parts = None if held_out is None else _without_held_out(specs, files, held_out)
        mixture = Mixture(specs, files, parts=parts, whole=whole)
        for spec, file in zip(mixture.specs, mixture.files, strict=True):
            if self.is_main:
                _check_length(spec, file.num_in_file)
            _probe_files(spec, mixture)
        counted = _Counted(self, mixture, self._bad_samples(mixture), [])
        for number, (spec, file) in enumerate(zip(mixture.specs, mixture.files, strict=True)):
            lengths = token_lengths(
                spec,
                file,
                self.encoder,
                self.config.media,
                is_main=self.is_main,
                num_processes=self.num_processes,
            )
            add_counted(counted.bad, mixture, number, lengths, journal=self.is_main)
            if self.is_main:
                _report(spec, lengths)
            counted.lengths.append(lengths)
        counted.bad.check()
        return counted

    def _bad_samples(self, mixture: Mixture) -> BadSamples:
        return BadSamples(
            num_records=sum(len(file) for file in mixture.files),
            max_bad_ratio=self.config.max_bad_ratio,
            path=self.journal,
            datasets=[spec.name for spec in mixture.specs],
        )


@dataclass(frozen=True)
class _Counted:
    """Datasets with their counts."""

    build: _Build
    mixture: Mixture
    bad: BadSamples
    lengths: list[Lengths]

    def train(self) -> SftDataset:
        """The mixture, augmented and drawn as a run asks."""
        return self._dataset(self.mixture, self.lengths, self.bad, train=True)

    def evaluation(self) -> SftDataset:
        """The mixture as it is."""
        return self._dataset(self.mixture, self.lengths, self.bad, train=False)

    def held_out(self) -> SftDataset:
        """What the mixture leaves out.

        Raises:
            DatasetError: no held-out record can be asked.
        """
        found = [number for number in range(len(self.lengths)) if self._gives_good_ones(number)]
        if not found:
            raise DatasetError(
                "all records that --val_split holds out are bad",
                where=str(self.build.journal or self.build.config.meta_path),
                fix="Mend them, hold out more, or give another --val_split_seed.",
            )
        mixture = self.mixture.held_out(found)
        bad = self.build._bad_samples(mixture)
        lengths = [self.lengths[number] for number in found]
        for number, one in enumerate(lengths):
            add_counted(bad, mixture, number, one, journal=False)  # it is told already
        return self._dataset(mixture, lengths, bad, train=False)

    def _gives_good_ones(self, number: int) -> bool:
        """Whether any held-out record of a dataset can be asked; says so if none of them can."""
        part = self.mixture.parts[number]
        good = self.lengths[number].tokens[part.held_out] >= 0
        if len(good) and not good.any() and self.build.is_main:
            name = self.mixture.specs[number].name
            logger.warning('dataset "%s": all held-out records are bad, none is asked', name)
        return bool(good.any())

    def _dataset(
        self, mixture: Mixture, lengths: list[Lengths], bad: BadSamples, *, train: bool
    ) -> SftDataset:
        return SftDataset(
            mixture,
            lengths,
            SampleLoader(self.build.encoder, self.build.config.media, train=train),
            bad,
            seed=self.build.seed,
            resample=train and self.build.config.use_data_resampling,
        )


def add_counted(
    bad: BadSamples, mixture: Mixture, number: int, lengths: Lengths, *, journal: bool
) -> None:
    """Take over the bad records that counting a dataset has found."""
    first, file = mixture.first_record(number), mixture.files[number]
    found = [(first + record, file.line(record), err) for record, err in lengths.bad]
    bad.add_counted(number, found, journal=journal)


def _without_held_out(
    specs: list[DatasetSpec], files: list[AnnotationFile], config: HeldOutConfig
) -> list[RecordPart]:
    """What is left to train on.

    Raises:
        DatasetError: no dataset can give a record, or one would give all it has.
    """
    media = [(spec.root, media_of_records(file)) for spec, file in zip(specs, files, strict=True)]
    drawn = draw_held_out(media, config)
    for spec, file, numbers in zip(specs, files, drawn, strict=True):
        if len(numbers) == len(file):
            raise DatasetError(
                f"all of its {len(file)} records show images that --val_split holds out of "
                "other datasets; none is left to train on",
                where=f'dataset "{spec.name}"',
                fix="Hold out less, or drop the dataset.",
            )
    if not any(map(len, drawn)):
        raise DatasetError(
            f"--val_split {config.amount:g} finds nothing to hold out: every dataset has one "
            "record, or one image in more than half of its records",
            fix="Give held-out records with --eval_meta_path.",
        )
    return [RecordPart(len(file), one) for file, one in zip(files, drawn, strict=True)]


def _warn_idle_settings(specs: list[DatasetSpec], config: DataConfig) -> None:
    for spec in specs:
        if spec.weight != 1 and not config.use_data_resampling:
            logger.warning(
                '%s: entry "%s": weight has no effect without --use_data_resampling',
                config.meta_path,
                spec.name,
            )
        if spec.max_dynamic_patch is not None and not config.media.images.dynamic_image_size:
            logger.warning(
                '%s: entry "%s": max_dynamic_patch has no effect without --dynamic_image_size',
                config.meta_path,
                spec.name,
            )


def _check_length(spec: DatasetSpec, num_records: int) -> None:
    if spec.length is not None and spec.length != num_records:
        logger.warning(
            'dataset "%s": length says %d, %s holds %d records; going on with %d',
            spec.name,
            spec.length,
            spec.annotation,
            num_records,
            num_records,
        )


def _probe_files(spec: DatasetSpec, mixture: Mixture) -> None:
    """Stop now if the files of a dataset are not where its root says.

    Looks for the files of a few records spread over the dataset: one missing file is a bad record,
    all of them missing is a wrong ``root``.
    """
    file = mixture.files[mixture.specs.index(spec)]
    looked, missing = 0, ""
    for number in np.linspace(0, len(file) - 1, min(_PROBES, len(file)), dtype=np.int64):
        raw, where = file.read(int(number), most=MAX_RECORD_BYTES + 1)
        try:
            record = parse_record(raw, where=where)
            names = [record.video] if record.video else record.images
            paths = [resolve_path(spec.root, str(name), where=where) for name in names]
        except BadRecordError:
            continue
        if any(exists(path) for path in paths):
            return
        if paths:
            looked, missing = looked + 1, f"{where} names {paths[0]}"
    if looked:
        raise DatasetError(
            f"none of the image files of {looked} records looked at exists; {missing}",
            where=f'dataset "{spec.name}"',
            fix=f'Correct its "root" ({spec.root}) in the meta JSON or put the files there.',
        )


def _report(spec: DatasetSpec, counted: Lengths) -> None:
    good = counted.tokens[counted.tokens >= 0]
    logger.info(
        'dataset "%s": %d records, %d bad, %d tokens (mean %.0f, max %d), %d truncated, '
        "%d leading answers dropped",
        spec.name,
        len(counted.tokens),
        len(counted.bad),
        int(good.sum(dtype=np.int64)),
        float(good.mean()) if len(good) else 0.0,
        int(good.max(initial=0)),
        counted.num_truncated,
        counted.num_dropped_leading_answers,
    )
    for text, count in list(counted.warnings.items())[:_TOLD_REMARKS]:
        logger.warning('dataset "%s": %d records: %s', spec.name, count, text)
