"""A config in, datasets out: the order in which the parts of the data path are put together."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from internvl_chat.config import DataConfig
from internvl_chat.data.bad_samples import JOURNAL, BadSamples
from internvl_chat.data.dataset import SampleLoader, SftDataset
from internvl_chat.data.encode import Encoder
from internvl_chat.data.lengths import Lengths, token_lengths
from internvl_chat.data.meta import DatasetSpec, load_meta
from internvl_chat.data.mixture import Mixture
from internvl_chat.data.record_json import MAX_RECORD_BYTES
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
    encoder = Encoder(tokenizer, config.encode)
    specs = load_meta(config.meta_path)
    _warn_idle_settings(specs, config)
    journal = None if output_dir is None else Path(output_dir) / JOURNAL
    return _build(
        specs,
        encoder,
        config,
        train=True,
        seed=seed,
        journal=journal,
        resample=config.use_data_resampling,
        is_main=is_main,
        num_processes=num_processes,
    )


def build_eval_dataset(config: DataConfig, tokenizer: Any, *, is_main: bool = True) -> SftDataset:
    """As :func:`build_train_dataset` for validation: no augmentation, each record once.

    Bad records are journalled nowhere, but too many still stop the run.
    """
    encoder = Encoder(tokenizer, config.encode)
    specs = load_meta(config.meta_path)
    return _build(
        specs,
        encoder,
        config,
        train=False,
        seed=0,
        journal=None,
        resample=False,
        is_main=is_main,
        num_processes=None,
    )


def _build(
    specs: list[DatasetSpec],
    encoder: Encoder,
    config: DataConfig,
    *,
    train: bool,
    seed: int,
    journal: Path | None,
    resample: bool,
    is_main: bool,
    num_processes: int | None,
) -> SftDataset:
    mixture = Mixture(specs, whole=not train)
    for spec, file in zip(mixture.specs, mixture.files, strict=True):
        if is_main:
            _check_length(spec, len(file))
        _probe_files(spec, mixture)
    bad = BadSamples(
        num_records=sum(len(file) for file in mixture.files),
        max_bad_ratio=config.max_bad_ratio,
        path=journal,
        datasets=[spec.name for spec in mixture.specs],
    )
    lengths = []
    for number, (spec, file) in enumerate(zip(mixture.specs, mixture.files, strict=True)):
        counted = token_lengths(
            spec,
            file,
            encoder,
            config.media,
            is_main=is_main,
            num_processes=num_processes,
        )
        first = mixture.first_record(number)
        bad.add_counted(
            number,
            [(first + record, file.line(record), err) for record, err in counted.bad],
            journal=is_main,
        )
        if is_main:
            _report(spec, counted)
        lengths.append(counted)
    bad.check()
    return SftDataset(
        mixture,
        lengths,
        SampleLoader(encoder, config.media, train=train),
        bad,
        seed=seed,
        resample=resample,
    )


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
