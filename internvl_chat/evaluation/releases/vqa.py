"""Releases of the VQA family: questions and annotations of several formats."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.releases.release import (
    Layout,
    Reader,
    Release,
    jsonl,
    linked,
    most_common,
    rows_of,
)
from internvl_chat.evaluation.sources import read_json, require


def okvqa(release: Release) -> Layout:
    """From the official questions and annotations (VQA format)."""
    questions = release.file("OpenEnded_mscoco_val2014_questions.json")
    annotations = release.file("mscoco_val2014_annotations.json")
    answers = _vqa_answers(annotations)
    rows = []
    for record, where in rows_of(read_json(questions), "questions", questions):
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
    for record, where in rows_of(read_json(path), "annotations", path):
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
    return list(rows_of(read_json(path), "data", path))


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
        for record, where in rows_of(read_json(path), "data", path)
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
    for number, (record, where) in enumerate(rows_of(read_json(path), None, path)):
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
    for record, where in rows_of(read_json(path), None, path):
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
                for number, (one, where) in enumerate(rows_of(read_json(path), None, path))
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
    for record, where in rows_of(read_json(path), "data", path):
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
