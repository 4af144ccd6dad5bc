"""Records as training reads them -> questions, and which of a meta JSON's are held out.

A question is asked as it was trained: earlier rounds of its record stand before it, with the true
answers, whatever the model would have said there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from internvl_chat.config import DecodeConfig, ImageConfig
from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.expand import expand_record
from internvl_chat.data.held_out import HELD_OUT, HeldOutRecord, read_held_out
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.mixture import open_annotation
from internvl_chat.data.schema import BadRecordError, Record, parse_record
from internvl_chat.data.storage import resolve_path
from internvl_chat.data.video import expand_video_tag
from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.evaluation.sources import ImageFile
from internvl_chat.evaluation.task import ImageSource, Question, VideoClip
from internvl_chat.model.constants import IMAGE_TAG

NUM_SEGMENTS = 8
"""Frames of a video."""
_IDENTITIES = ("id", "question_id", "index")
_OF_TRAINING = {"conversations", "messages", "image", "images", "video", "width", "height"}


@dataclass(frozen=True, kw_only=True)
class HeldOutPart:
    """What a run with ``--val_split`` has held out of a meta JSON's records."""

    path: Path
    """The run's ``held_out.jsonl``."""
    records: Mapping[str, Sequence[HeldOutRecord]]
    """By dataset, in the list's order."""

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> HeldOutPart:
        """From a run's folder, or from the file.

        Raises:
            ConfigError: the folder is none of such a run.
            DatasetError: as of :func:`read_held_out`.
        """
        file = Path(os.path.abspath(path))
        file = file / HELD_OUT if file.is_dir() else file
        if not file.exists():
            raise ConfigError(
                f"there is no {file}",
                where="--held-out",
                fix=f"Give the OUTPUT_DIR of a run with --val_split, or its {HELD_OUT}.",
            )
        records: dict[str, list[HeldOutRecord]] = {}
        for one in read_held_out(file):
            records.setdefault(one.dataset, []).append(one)
        return cls(path=file, records=records)

    @property
    def run_name(self) -> str:
        """What the run is called: as its folder."""
        return self.path.parent.name if self.path.name == HELD_OUT else self.path.stem

    def specs_of(
        self, specs: Sequence[DatasetSpec], *, meta: str | os.PathLike[str]
    ) -> tuple[DatasetSpec, ...]:
        """The datasets that give records.

        Raises:
            ConfigError: a dataset that gave some is not in the meta JSON.
        """
        missing = sorted(self.records.keys() - {spec.name for spec in specs})
        if missing:
            raise ConfigError(
                f"{self.path} holds out of {', '.join(missing)}, which {os.fspath(meta)} has not",
                where="--held-out",
                fix="Give the meta JSON that the run was trained with.",
            )
        return tuple(spec for spec in specs if spec.name in self.records)

    def rows_of(self, spec: DatasetSpec) -> list[int]:
        """Numbers of a dataset's held-out records in its file.

        Raises:
            DatasetError: other records stand there than were held out.
        """
        file = AnnotationFile(spec.annotation)
        moved = [one for one in self.records[spec.name] if not one.is_in(file)]
        if moved:
            raise DatasetError(
                f"{len(moved)} of the {len(self.records[spec.name])} records that {self.path} "
                f"holds out are other ones now, first that of line {moved[0].line}",
                where=spec.annotation,
                fix="Give the files that the run was trained on: which of these it has not seen, "
                "nobody can tell.",
            )
        return [one.record for one in self.records[spec.name]]


def read_questions(
    spec: DatasetSpec, problems: list[str], *, rows: Sequence[int] | None = None
) -> list[Question]:
    """Questions of one annotation file.

    Args:
        spec: the dataset.
        problems: what is wrong with bad records is added to it.
        rows: numbers of the records to ask, from 0, in the whole file; by default those that
            training takes.
    """
    if rows is None:
        lines = open_annotation(spec)
        rows = range(min(spec.num_samples(len(lines)), len(lines)))
    else:
        lines = AnnotationFile(spec.annotation)
    questions: list[Question] = []
    for row, identity in zip(rows, _identities(lines, rows), strict=True):
        raw, where = lines.read(row)
        try:
            questions += _questions_of(raw, spec, identity, where)
        except BadRecordError as err:
            problems.append(str(err))
    return questions


def _identities(lines: AnnotationFile, rows: Sequence[int]) -> list[str]:
    """The records' own ids where all have one and no two the same; else their numbers from 0."""
    own = []
    for row in rows:
        try:
            record = orjson.loads(lines.read(row)[0])
        except orjson.JSONDecodeError:
            record = None  # told when the record is parsed
        known = record if isinstance(record, dict) else {}
        own.append(next((str(known[name]) for name in _IDENTITIES if name in known), ""))
    return own if all(own) and len(set(own)) == len(own) else [str(row) for row in rows]


def _questions_of(raw: bytes, spec: DatasetSpec, identity: str, where: str) -> list[Question]:
    record = parse_record(raw, where=where)
    fields: dict[str, Any] = orjson.loads(raw)
    turns = _turns(record, spec, where)
    references = _references(fields, turns, where)
    images = tuple(
        ImageFile(resolve_path(spec.root, path, where=where), shown=path) for path in record.images
    )
    known = {
        key: value
        for key, value in fields.items()
        if isinstance(value, str | int | float) and key not in _OF_TRAINING
    }
    return [
        Question(
            id=f"{identity}#{number}" if len(turns) > 1 else identity,
            prompt=question,
            images=_images_up_to(images, turns, number),
            video=_video(record, spec, where),
            earlier=turns[:number],
            system_message=record.system,
            max_tiles=spec.max_dynamic_patch,
            record={"dataset": spec.name, "references": references or [answer], "fields": known},
        )
        for number, (question, answer) in enumerate(turns)
    ]


def _turns(record: Record, spec: DatasetSpec, where: str) -> tuple[tuple[str, str], ...]:
    """Rounds as training writes them: frames of a video numbered, boxes from 0 to 1000."""
    if record.video is not None:
        return tuple((expand_video_tag(q, NUM_SEGMENTS), a) for q, a in record.turns)
    if spec.box_format == "keep":
        return record.turns
    if spec.box_format == "pixel_to_1000" and record.images and record.sizes is None:
        raise BadRecordError(
            "BOX",
            f"box_format {spec.box_format} needs the size of each image",
            where=where,
            fix='Give the record "width" and "height".',
        )
    images = ImageConfig.squeezed(
        image_size=448,
        max_tiles=1,
        use_thumbnail=False,
        normalize_type="imagenet",
        decode=DecodeConfig.as_stored(),
    )
    return expand_record(record, spec, images, sizes=record.sizes, where=where).turns


def _references(
    fields: Mapping[str, Any], turns: Sequence[tuple[str, str]], where: str
) -> list[str]:
    """The optional list ``references``: all right answers, the record's own among them or not."""
    listed = fields.get("references")
    if listed is None:
        return []
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise BadRecordError("SCHEMA", '"references" is no list of strings', where=where)
    if len(turns) > 1:
        raise BadRecordError(
            "SCHEMA",
            f'"references" in a record of {len(turns)} rounds',
            where=where,
            fix="Split it into records of one round.",
        )
    return listed


def _images_up_to(
    images: tuple[ImageSource, ...], turns: Sequence[tuple[str, str]], number: int
) -> tuple[ImageSource, ...]:
    """Images of the rounds up to this one."""
    return images[: sum(question.count(IMAGE_TAG) for question, _ in turns[: number + 1])]


def _video(record: Record, spec: DatasetSpec, where: str) -> VideoClip | None:
    if record.video is None:
        return None
    path = resolve_path(spec.root, record.video, where=where)
    return VideoClip(path=path, num_segments=NUM_SEGMENTS, bounds=record.clip, is_of_training=True)
