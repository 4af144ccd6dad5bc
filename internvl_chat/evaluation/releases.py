"""Official releases of benchmarks, read into the rows that the tasks' files have; writes nothing.

Formats: the layout's are those of docs/eval_data.md; the releases' are their authors'.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.evaluation.sources import read_json, read_jsonl, read_text, read_tsv, require
from internvl_chat.evaluation.tasks.wording import LETTER_EN, SHORT

CHOICES = "ABCDE"
MME_PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
MME_COGNITION = (
    *("commonsense_reasoning", "numerical_calculation"),
    *("text_translation", "code_reasoning"),
)
_SURROGATE = re.compile("[\ud800-\udfff]")
POPE_CATEGORIES = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Layout:
    """What a task's folder shall hold, by path below the folder that holds ``data/``."""

    files: Mapping[str, str | bytes]
    """Path -> content."""
    links: Mapping[str, Path]
    """Path -> file or folder of the release, used as it is."""


class Release:
    """A folder, or a single file, that somebody has downloaded and unpacked."""

    def __init__(self, source: Path) -> None:
        if not source.exists():
            raise ConfigError("is not there", where=str(source), fix="SRC is what was downloaded.")
        self.source = source.resolve()

    def file(self, *names: str) -> Path:
        """The file of one of these names, anywhere below; the first name goes first.

        Raises:
            ConfigError: there is none, or two lie equally deep.
        """
        found = self.maybe_file(*names)
        if found is None:
            raise ConfigError(
                f"holds no {' or '.join(names)}", where=str(self.source), fix="Unpack it there."
            )
        return found

    def maybe_file(self, *names: str) -> Path | None:
        """The same, or None."""
        return self._find(names, folders=False)

    def maybe_folder(self, *names: str) -> Path | None:
        """The folder of one of these names (``test/png`` too), the source itself included."""
        for name in names:
            if (
                self.source.is_dir()
                and self.source.parts[-len(Path(name).parts) :] == Path(name).parts
            ):
                return self.source
        return self._find(names, folders=True)

    def folder(self, *names: str) -> Path:
        """The same.

        Raises:
            ConfigError: there is none.
        """
        found = self.maybe_folder(*names)
        if found is None:
            raise ConfigError(
                f"holds no folder {' or '.join(names)}", where=str(self.source), fix="Unpack it."
            )
        return found

    def _find(self, names: Sequence[str], *, folders: bool) -> Path | None:
        if self.source.is_file():
            return self.source if not folders and self.source.name in names else None
        for name in names:
            parts = Path(name).parts
            within = self._below[0 if folders else 1].get(parts[-1], ())
            found = [path for path in within if path.parts[-len(parts) :] == parts]
            found.sort(key=lambda path: (len(path.parts), str(path)))
            if len(found) > 1 and len(found[0].parts) == len(found[1].parts):
                raise ConfigError(
                    f"{found[0]} and {found[1]} are both called {name}",
                    where=str(self.source),
                    fix="Name the folder that holds the right one.",
                )
            if found:
                return found[0]
        return None

    @cached_property
    def _below(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        """Folders and files by name; one walk, for there may be 100,000 images."""
        folders: dict[str, list[Path]] = {}
        files: dict[str, list[Path]] = {}
        for base, inner, names in os.walk(self.source):
            for table, found in ((folders, inner), (files, names)):
                for name in found:
                    table.setdefault(name, []).append(Path(base) / name)
        return folders, files


Reader = Callable[[Release], Layout]


def jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON lines, characters as they are; lone surrogates, which no file can hold, escaped."""
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    return "".join(_SURROGATE.sub(lambda one: f"\\u{ord(one[0]):04x}", one) + "\n" for one in texts)


def linked(release: Release, folders: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Image folders that the release has; those that it lacks are left to the user."""
    found = {path: release.maybe_folder(*names) for path, names in folders.items()}
    return {path: folder for path, folder in found.items() if folder is not None}


def _rows(content: Any, name: str | None, path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Objects of a list, or of the list under a key, with their place."""
    items = content
    if name is not None:
        if not isinstance(content, dict):
            raise DatasetError("is no JSON object", where=str(path))
        items = require(content, name, str(path))
    if not isinstance(items, list):
        raise DatasetError(f"{name or 'the content'} is no list", where=str(path))
    for number, item in enumerate(items):
        where = f"{path}, record {number}"
        if not isinstance(item, dict):
            raise DatasetError("is no JSON object", where=where)
        yield item, where


def most_common(answers: Sequence[str]) -> str:
    """The answer that most people gave, the earliest of those with equal numbers."""
    return Counter(answers).most_common(1)[0][0] if answers else ""


def mme(release: Release) -> Layout:
    """Question lists in the place of the original evaluator's, from either layout of the release.

    A task's folder holds images and one text file for each, or ``images/`` and
    ``questions_answers_YN/``.
    """
    files: dict[str, str | bytes] = {}
    links = {}
    for task in (*MME_PERCEPTION, *MME_COGNITION):
        folder = release.folder(task)
        inner = folder / "questions_answers_YN"
        texts, images = (inner, folder / "images") if inner.is_dir() else (folder, folder)
        lines = []
        for path in sorted(texts.glob("*.txt")):
            image = _image_of(path.stem, images)
            lines += [f"{image}\t{question}\t{label}\n" for question, label in _mme_pair(path)]
        if not lines:
            raise DatasetError("holds no text files with questions", where=str(texts))
        files[f"eval/mme/Your_Results/{task}.txt"] = "".join(lines)
        links[f"data/mme/MME_Benchmark_release_version/{task}"] = images
    return Layout(files, links)


def _image_of(stem: str, images: Path) -> str:
    names = [f"{stem}{ending}" for ending in (".jpg", ".png", ".jpeg")]
    found = [name for name in names if (images / name).is_file()]
    if not found:
        raise DatasetError(f"no image {' or '.join(names)}", where=str(images))
    return found[0]


def _mme_pair(path: Path) -> list[tuple[str, str]]:
    """The two questions about an image, the one that is answered by Yes first."""
    pairs = []
    for line in read_text(path).splitlines():
        if not line.strip():
            continue
        question, _, label = line.strip().rpartition("\t")
        if label not in ("Yes", "No") or not question:
            raise DatasetError("want question, tab, Yes or No", where=str(path))
        pairs.append((question.strip(), label))
    if len(pairs) != 2:
        raise DatasetError(f"holds {len(pairs)} questions, want 2", where=str(path))
    return sorted(pairs, key=lambda pair: pair[1] != "Yes")


def okvqa(release: Release) -> Layout:
    """From the official questions and annotations (VQA format)."""
    questions = release.file("OpenEnded_mscoco_val2014_questions.json")
    annotations = release.file("mscoco_val2014_annotations.json")
    answers = _vqa_answers(annotations)
    rows = []
    for record, where in _rows(read_json(questions), "questions", questions):
        name = f"COCO_val2014_{int(require(record, 'image_id', where)):012d}.jpg"
        rows.append(_vqa_row(f"data/okvqa/val2014/{name}", record, where, answers))
    return Layout(
        {"data/okvqa/okvqa_val.jsonl": jsonl(rows)},
        {
            "data/okvqa/mscoco_val2014_annotations.json": annotations,
            **linked(release, {"data/okvqa/val2014": ["val2014"]}),
        },
    )


def _vqa_answers(path: Path) -> dict[Any, str]:
    answers = {}
    for record, where in _rows(read_json(path), "annotations", path):
        given = [str(require(one, "answer", where)) for one in require(record, "answers", where)]
        answers[require(record, "question_id", where)] = most_common(given)
    return answers


def _vqa_row(
    image: str, record: Mapping[str, Any], where: str, answers: Mapping[Any, str]
) -> dict[str, Any]:
    identity = require(dict(record), "question_id", where)
    if identity not in answers:
        raise DatasetError(f"question_id {identity!r} has no annotation", where=where)
    question = require(dict(record), "question", where)
    return {
        "image": image,
        "question": question,
        "question_id": identity,
        "answer": answers[identity],
    }


def _vqa_annotations(rows: Iterable[tuple[Any, Sequence[str]]]) -> str:
    """The annotation file of the VQA format."""
    annotations = [
        {"question_id": identity, "answers": [{"answer": answer} for answer in answers]}
        for identity, answers in rows
    ]
    return json.dumps({"annotations": annotations}, ensure_ascii=False)


def _textvqa_records(release: Release) -> list[tuple[dict[str, Any], str]]:
    path = release.file("TextVQA_0.5.1_val.json", "TextVQA_0.5_val.json")
    return list(_rows(read_json(path), "data", path))


def _textvqa_row(record: dict[str, Any], where: str, tail: str = "") -> dict[str, Any]:
    answers = [str(one) for one in require(record, "answers", where)]
    return {
        "image": f"data/textvqa/train_images/{require(record, 'image_id', where)}.jpg",
        "question": f"{require(record, 'question', where)}{tail}",
        "question_id": require(record, "question_id", where),
        "answer": most_common(answers),
    }


def _textvqa_common(release: Release, records: Sequence[tuple[dict[str, Any], str]]) -> Layout:
    annotations = _vqa_annotations(
        (require(record, "question_id", where), require(record, "answers", where))
        for record, where in records
    )
    return Layout(
        {"data/textvqa/textvqa_val_annotations.json": annotations},
        linked(release, {"data/textvqa/train_images": ["train_images"]}),
    )


def textvqa(release: Release) -> Layout:
    """From ``TextVQA_0.5.1_val.json``."""
    records = _textvqa_records(release)
    common = _textvqa_common(release, records)
    rows = [_textvqa_row(record, where) for record, where in records]
    return Layout({"data/textvqa/textvqa_val.jsonl": jsonl(rows), **common.files}, common.links)


def textvqa_ocr(release: Release) -> Layout:
    """The same with the Rosetta tokens of ``TextVQA_Rosetta_OCR_v0.2_val.json``."""
    path = release.file("TextVQA_Rosetta_OCR_v0.2_val.json")
    tokens = {
        require(record, "image_id", where): require(record, "ocr_tokens", where)
        for record, where in _rows(read_json(path), "data", path)
    }
    records = _textvqa_records(release)
    rows = []
    for record, where in records:
        image = require(record, "image_id", where)
        if image not in tokens:
            raise DatasetError(f"{path.name} has no image_id {image!r}", where=where)
        tail = f"\nReference OCR token: {', '.join(map(str, tokens[image]))}"
        rows.append(_textvqa_row(record, where, tail))
    common = _textvqa_common(release, records)
    files = {"data/textvqa/textvqa_val_llava.jsonl": jsonl(rows), **common.files}
    return Layout(files, common.links)


def vizwiz_val(release: Release) -> Layout:
    """From ``val.json``; a question's id is its number in the file."""
    path = release.file("val.json")
    rows, given = [], []
    for number, (record, where) in enumerate(_rows(read_json(path), None, path)):
        answers = [str(require(one, "answer", where)) for one in require(record, "answers", where)]
        given.append((number, answers))
        rows.append(
            {
                "image": f"data/vizwiz/val/{require(record, 'image', where)}",
                "question": require(record, "question", where),
                "question_id": number,
                "answer": most_common(answers),
            }
        )
    return Layout(
        {
            "data/vizwiz/vizwiz_val.jsonl": jsonl(rows),
            "data/vizwiz/vizwiz_val_annotations.json": _vqa_annotations(given),
        },
        linked(release, {"data/vizwiz/val": ["val"]}),
    )


def vizwiz_test(release: Release) -> Layout:
    """From ``test.json``; a question's id is its image's path."""
    path = release.file("test.json")
    rows = []
    for record, where in _rows(read_json(path), None, path):
        image = f"data/vizwiz/test/{require(record, 'image', where)}"
        question = require(record, "question", where)
        rows.append({"image": image, "question": question, "question_id": image})
    return Layout(
        {"data/vizwiz/vizwiz_test.jsonl": jsonl(rows)},
        linked(release, {"data/vizwiz/test": ["test"]}),
    )


def chartqa(*halves: str) -> Reader:
    """From ``test_human.json`` and ``test_augmented.json``; ids are numbers in the file."""

    images = "data/chartqa/ChartQA Dataset/test/png"

    def read(release: Release) -> Layout:
        files = {}
        for half in halves:
            path = release.file(f"test_{half}.json")
            rows = [
                {
                    "image": f"{images}/{require(one, 'imgname', where)}",
                    "question": require(one, "query", where),
                    "question_id": number,
                    "answer": require(one, "label", where),
                }
                for number, (one, where) in enumerate(_rows(read_json(path), None, path))
            ]
            files[f"data/chartqa/test_{half}.jsonl"] = jsonl(rows)
        return Layout(files, linked(release, {images: ["test/png", "png"]}))

    return read


def docvqa(split: str) -> Reader:
    """From ``{split}_v1.0.json``, whose images lie in ``documents/``."""

    def read(release: Release) -> Layout:
        path = release.file(f"{split}_v1.0.json", f"{split}_v1.0_withQT.json")
        rows = _document_rows(path, f"data/docvqa/{split}", "image")
        links = linked(
            release, {f"data/docvqa/{split}/documents": [f"{split}/documents", "documents"]}
        )
        if split == "val":
            links["data/docvqa/val/val_v1.0.json"] = path
        return Layout({f"data/docvqa/{split}.jsonl": jsonl(rows)}, links)

    return read


def infovqa(split: str) -> Reader:
    """From ``infographicsVQA_{split}_v1.0*.json``."""

    def read(release: Release) -> Layout:
        ending = "_withQT" if split == "val" else ""
        name = f"infographicsVQA_{split}_v1.0{ending}.json"
        path = release.file(name)
        images = "data/infographicsvqa/infographicsvqa_images"
        rows = _document_rows(path, images, "image_local_name")
        links = linked(release, {images: ["infographicsvqa_images"]})
        if split == "val":
            links[f"data/infographicsvqa/{name}"] = path
        return Layout({f"data/infographicsvqa/{split}.jsonl": jsonl(rows)}, links)

    return read


def _document_rows(path: Path, images: str, image_field: str) -> Iterator[dict[str, Any]]:
    for record, where in _rows(read_json(path), "data", path):
        row = {
            "image": f"{images}/{require(record, image_field, where)}",
            "question": require(record, "question", where),
            "question_id": require(record, "questionId", where),
        }
        if "answers" in record:  # not in test
            row["answer"] = record["answers"]
        yield row


def gqa(release: Release) -> Layout:
    """From ``testdev_balanced_questions.json``."""
    path = release.file("testdev_balanced_questions.json")
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError("is no JSON object", where=str(path))
    rows = [
        {
            "image": f"data/gqa/images/{require(one, 'imageId', f'{path}, {identity}')}.jpg",
            "question": require(one, "question", f"{path}, {identity}"),
            "question_id": identity,
            "answer": require(one, "answer", f"{path}, {identity}"),
        }
        for identity, one in content.items()
    ]
    return Layout(
        {"data/gqa/llava_gqa_testdev_balanced_qwen_format.jsonl": jsonl(rows)},
        {
            "data/gqa/testdev_balanced_questions.json": path,
            **linked(release, {"data/gqa/images": ["images"]}),
        },
    )


def scienceqa(release: Release) -> Layout:
    """Test questions with an image, in the order of ``pid_splits.json``."""
    path = release.file("problems.json")
    problems = read_json(path)
    order = require(read_json(release.file("pid_splits.json")), "test", "pid_splits.json")
    rows = []
    for identity in order:
        where = f"{path}, {identity}"
        problem = require(problems, str(identity), str(path))
        if not require(problem, "image", where):
            continue
        rows.append(
            {
                "image": f"data/scienceqa/images/test/{identity}/{problem['image']}",
                "question": require(problem, "question", where),
                "choices": require(problem, "choices", where),
                "answer": require(problem, "answer", where),
                "hint": problem.get("hint", ""),
            }
        )
    images = linked(release, {"data/scienceqa/images/test": ["images/test", "test"]})
    return Layout({"data/scienceqa/scienceqa_test_img.jsonl": jsonl(rows)}, images)


def pope(release: Release) -> Layout:
    """From ``coco_pope_{category}.json``, JSON lines; ids are numbers over all three."""
    rows: list[dict[str, Any]] = []
    labels = {}
    for category in POPE_CATEGORIES:
        path = release.file(f"coco_pope_{category}.json")
        labels[f"data/pope/coco/{path.name}"] = path
        for record, where in read_jsonl(path):
            rows.append(
                {
                    "question_id": len(rows),
                    "image": require(record, "image", where),
                    "text": f"{require(record, 'text', where)}\n{SHORT}",
                    "category": category,
                }
            )
    images = linked(release, {"data/pope/val2014": ["val2014"]})
    return Layout({"data/pope/llava_pope_test.jsonl": jsonl(rows)}, {**labels, **images})


def seed(release: Release) -> Layout:
    """From ``SEED-Bench.json``; a video question's frame is ``{type id}_{question id}.png``."""
    path = release.file("SEED-Bench.json")
    rows = []
    for record, where in _rows(read_json(path), "questions", path):
        identity = str(require(record, "question_id", where))
        if require(record, "data_type", where) == "image":
            image = f"SEED-Bench-image/{require(record, 'data_id', where)}"
        else:
            kind = require(record, "question_type_id", where)
            image = f"SEED-Bench-video-image/{kind}_{identity}.png"
        options = [
            f"{letter}. {require(record, f'choice_{letter.lower()}', where)}" for letter in "ABCD"
        ]
        text = "\n".join([require(record, "question", where), *options, LETTER_EN])
        answer = require(record, "answer", where)
        rows.append({"image": image, "text": text, "question_id": identity, "answer": answer})
    folders = {
        f"data/SEED/{name}": [name] for name in ("SEED-Bench-image", "SEED-Bench-video-image")
    }
    return Layout(
        {"data/SEED/seed.jsonl": jsonl(rows)},
        {"data/SEED/SEED-Bench.json": path, **linked(release, folders)},
    )


def mmvp(release: Release) -> Layout:
    """``Questions.csv`` as it is."""
    path = release.file("Questions.csv")
    header = next(csv.reader(io.StringIO(read_text(path))), [])
    missing = {"Question", "Options", "Correct Answer"} - set(header)
    if missing:
        raise DatasetError(f"has no column {', '.join(sorted(missing))}", where=f"{path}:1")
    images = linked(release, {"data/MMVP/MMVP Images": ["MMVP Images"]})
    return Layout({}, {"data/MMVP/Questions.csv": path, **images})


def mmvet(release: Release) -> Layout:
    """From ``mm-vet.json``: ``v1_{number}`` -> imagename, question, answer, capability."""
    path = release.file("mm-vet.json")
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError("is no JSON object", where=str(path))
    rows = []
    for name, record in content.items():
        where = f"{path}, {name}"
        prefix, _, number = name.partition("_")
        if prefix != "v1" or not number.isdecimal():
            raise DatasetError("want v1_0, v1_1, ...", where=where)
        image, text = require(record, "imagename", where), require(record, "question", where)
        rows.append({"question_id": int(number), "image": image, "text": text})
    images = linked(release, {"data/mm-vet/images": ["images"]})
    return Layout(
        {"data/mm-vet/llava-mm-vet.jsonl": jsonl(rows)},
        {"data/mm-vet/mm-vet.json": path, **images},
    )


def ai2d(release: Release) -> Layout:
    """From VLMEvalKit's ``AI2D_TEST.tsv``, images included."""
    path = release.file("AI2D_TEST.tsv")
    records = list(read_tsv(path))
    cells = {require(one, "index", where): require(one, "image", where) for one, where in records}
    files: dict[str, str | bytes] = {}
    rows = []
    for record, where in records:
        index, image = record["index"], record["image"]
        raw = _decoded(cells.get(image, image), where)  # a cell may be the index of another row
        ending = ".png" if raw.startswith(b"\x89PNG") else ".jpg"
        name = f"data/ai2diagram/AI2D_TEST/{index}{ending}"
        options = [f"{one}. {record[one]}" for one in CHOICES if record.get(one)]
        files[name] = raw
        rows.append(
            {
                "image": name,
                "question": "\n".join([require(record, "question", where), *options, LETTER_EN]),
                "question_id": int(index) if index.isdecimal() else index,
                "answer": require(record, "answer", where),
            }
        )
    return Layout({"data/ai2diagram/test_vlmevalkit.jsonl": jsonl(rows), **files}, {})


def _decoded(cell: str, where: str) -> bytes:
    try:
        return base64.b64decode(cell, validate=True)
    except (binascii.Error, ValueError) as err:
        raise DatasetError(f"the image is no base64 ({err})", where=where) from err


def as_it_is(files: Mapping[str, str], folders: Mapping[str, str] | None = None) -> Reader:
    """A release that has the layout already: its files and folders are linked into place.

    Args:
        files: path in the layout -> name in the release; must be there.
        folders: the same; must be there.
    """

    def read(release: Release) -> Layout:
        links = {path: release.file(name) for path, name in files.items()}
        links |= {path: release.folder(name) for path, name in (folders or {}).items()}
        return Layout({}, links)

    return read


def mmmu(release: Release) -> Layout:
    """Parquet, arrow or JSON lines in a folder for each subject: linked as a whole."""
    subject = release.folder("Accounting")
    return Layout({}, {"data/MMMU": subject.parent})


def mvbench(release: Release) -> Layout:
    """The folder of JSON files and the folder of videos."""
    return Layout(
        {},
        {
            "data/MVBench/json": release.file("action_sequence.json").parent,
            "data/MVBench/video": release.folder("video"),
        },
    )
