"""Settings in, datasets out: the order in which the parts of the data path are put together."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from internvl_chat.data.bad_samples import BadSamples
from internvl_chat.data.dataset import SampleLoader, SftDataset
from internvl_chat.data.encode import Encoder, EncodeSettings
from internvl_chat.data.images import MAX_IMAGE_PIXELS, ImageSettings, resolve_path
from internvl_chat.data.lengths import Lengths, token_lengths
from internvl_chat.data.meta import DatasetSpec, load_meta
from internvl_chat.data.mixture import Mixture
from internvl_chat.data.schema import BadRecordError, parse_record
from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.model.constants import NormalizeType
from internvl_chat.model.conversation import get_conv_template

logger = logging.getLogger(__name__)

_PROBES = 8  # records per dataset whose files are looked for before anything else


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """All that the data path needs to know of a run; names as the training arguments'."""

    meta_path: str
    conv_style: str = "Hermes-2"
    system_message: str | None = None
    """Replaces the template's own; a record's ``system`` goes before both."""
    num_image_token: int = 256
    max_seq_length: int = 2048
    force_image_size: int = 448
    pad2square: bool = False
    dynamic_image_size: bool = False
    use_thumbnail: bool = False
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 1
    min_num_frame: int = 8
    max_num_frame: int = 32
    normalize_type: NormalizeType = "imagenet"
    use_data_resampling: bool = False
    max_bad_ratio: float = 0.01
    strict_root: bool = False
    max_image_pixels: int = MAX_IMAGE_PIXELS
    length_processes: int | None = None
    """Processes that count tokens; by default one per core, at most 32."""

    def encode_settings(self) -> EncodeSettings:
        """The part that decides ids.

        Raises:
            ConfigError: no template is named ``conv_style``.
        """
        try:
            template = get_conv_template(self.conv_style)
        except ValueError as err:
            raise ConfigError(str(err), where="--conv_style") from err
        return EncodeSettings(
            template=template,
            num_image_token=self.num_image_token,
            max_seq_length=self.max_seq_length,
            system=self.system_message,
        )

    def image_settings(self) -> ImageSettings:
        """The part that decides pixels."""
        return ImageSettings(
            image_size=self.force_image_size,
            pad2square=self.pad2square,
            dynamic_image_size=self.dynamic_image_size,
            use_thumbnail=self.use_thumbnail,
            min_dynamic_patch=self.min_dynamic_patch,
            max_dynamic_patch=self.max_dynamic_patch,
            normalize_type=self.normalize_type,
            min_num_frame=self.min_num_frame,
            max_num_frame=self.max_num_frame,
            strict_root=self.strict_root,
            max_image_pixels=self.max_image_pixels,
        )


def build_train_dataset(
    settings: DataSettings,
    tokenizer: Any,
    *,
    output_dir: str | os.PathLike[str] | None,
    seed: int,
    is_main: bool = True,
) -> SftDataset:
    """Everything of a run's data that can be decided before training.

    Reads the meta JSON, indexes and counts the annotation files (once per machine), journals bad
    records into ``output_dir/bad_samples.jsonl``. Needs no process group and no device; every rank
    calls it and gets the same dataset.

    Args:
        settings: what the data path needs to know.
        tokenizer: with the image tokens added.
        output_dir: None journals nothing.
        seed: of order, augmentation and frames.
        is_main: whether this rank reports and journals what counting found.

    Raises:
        DatasetError: the meta is wrong, files are missing, or too many records are bad.
        ConfigError: unknown template, or a tokenizer without the image tokens.
    """
    encoder = Encoder(tokenizer, settings.encode_settings())
    specs = load_meta(settings.meta_path)
    _warn_idle_settings(specs, settings)
    journal = None if output_dir is None else Path(output_dir) / "bad_samples.jsonl"
    return _build(
        specs,
        encoder,
        settings,
        train=True,
        seed=seed,
        journal=journal,
        resample=settings.use_data_resampling,
        is_main=is_main,
    )


def build_eval_dataset(
    settings: DataSettings, tokenizer: Any, *, is_main: bool = True
) -> SftDataset:
    """As :func:`build_train_dataset` for validation: no augmentation, each record once.

    Bad records are journalled nowhere, but too many still stop the run.
    """
    encoder = Encoder(tokenizer, settings.encode_settings())
    specs = load_meta(settings.meta_path)
    return _build(
        specs,
        encoder,
        settings,
        train=False,
        seed=0,
        journal=None,
        resample=False,
        is_main=is_main,
    )


def _build(
    specs: list[DatasetSpec],
    encoder: Encoder,
    settings: DataSettings,
    *,
    train: bool,
    seed: int,
    journal: Path | None,
    resample: bool,
    is_main: bool,
) -> SftDataset:
    images = settings.image_settings()
    mixture = Mixture(specs, whole=not train)
    for spec, file in zip(mixture.specs, mixture.files, strict=True):
        if is_main:
            _check_length(spec, len(file))
        _probe_files(spec, mixture, images)
    bad = BadSamples(
        num_records=sum(len(file) for file in mixture.files),
        max_bad_ratio=settings.max_bad_ratio,
        path=journal,
        datasets=[spec.name for spec in mixture.specs],
    )
    lengths = []
    for number, (spec, file) in enumerate(zip(mixture.specs, mixture.files, strict=True)):
        counted = token_lengths(
            spec,
            file,
            encoder,
            images,
            is_main=is_main,
            num_processes=settings.length_processes,
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
        SampleLoader(encoder, images, train=train),
        bad,
        seed=seed,
        resample=resample,
    )


def _warn_idle_settings(specs: list[DatasetSpec], settings: DataSettings) -> None:
    for spec in specs:
        if spec.weight != 1 and not settings.use_data_resampling:
            logger.warning(
                '%s: entry "%s": weight has no effect without --use_data_resampling',
                settings.meta_path,
                spec.name,
            )
        if spec.max_dynamic_patch is not None and not settings.dynamic_image_size:
            logger.warning(
                '%s: entry "%s": max_dynamic_patch has no effect without --dynamic_image_size',
                settings.meta_path,
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


def _probe_files(spec: DatasetSpec, mixture: Mixture, images: ImageSettings) -> None:
    """Stop now if the files of a dataset are not where its root says.

    Looks for the files of a few records spread over the dataset: one missing file is a bad record,
    all of them missing is a wrong ``root``.
    """
    file = mixture.files[mixture.specs.index(spec)]
    looked, missing = 0, ""
    for number in np.linspace(0, len(file) - 1, min(_PROBES, len(file)), dtype=np.int64):
        raw, where = file.read(int(number))
        try:
            record = parse_record(raw, where=where)
            names = [record.video] if record.video else record.images
            paths = [resolve_path(spec.root, str(name), where=where) for name in names]
        except BadRecordError:
            continue
        if any(os.path.exists(path) for path in paths):
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
    for text, count in list(counted.warnings.items())[:3]:
        logger.warning('dataset "%s": %d records: %s', spec.name, count, text)
