"""Official releases as their authors pack them, a row or two each, invented."""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
from pathlib import Path
from typing import Any

from PIL import Image

from internvl_chat.evaluation.releases.yes_no import MME_COGNITION, MME_PERCEPTION
from internvl_chat.evaluation.tasks.refcoco import REFCOCO

TEN = ["corgi"] * 4 + ["dog"] * 6


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def image(path: Path, kind: str = "png") -> bytes:
    """A tiny drawn image, also on disk."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (200, 30, 30)).save(file, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())
    return file.getvalue()


def write_mme(root: Path) -> None:
    """Half of the tasks flat, half with folders of images and questions."""
    for number, task in enumerate((*MME_PERCEPTION, *MME_COGNITION)):
        for name in ("0002", "0001"):
            pair = "".join(
                f"Is {name} {colour}? Please answer yes or no.\t{label}\n"
                for colour, label in (("green", "No"), ("red", "Yes"))
            )
            folder = root / "MME" / task
            inner = number % 2 == 1
            write(folder / ("questions_answers_YN" if inner else "") / f"{name}.txt", pair)
            image(folder / ("images" if inner else "") / f"{name}.{'png' if inner else 'jpg'}")


def write_okvqa(root: Path) -> None:
    image(root / "coco/val2014/COCO_val2014_000000000042.jpg", "jpeg")
    questions = [{"image_id": 42, "question": "What breed is this?", "question_id": 425}]
    write(root / "OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    answers = [{"answer": one, "raw_answer": one, "answer_id": 1} for one in TEN]
    annotations = [{"question_id": 425, "image_id": 42, "answers": answers}]
    write(root / "mscoco_val2014_annotations.json", {"annotations": annotations})


def write_textvqa(root: Path) -> None:
    image(root / "train_images/a1.jpg", "jpeg")
    record = {"question_id": 7, "image_id": "a1", "question": "what brand?", "answers": TEN}
    write(root / "TextVQA_0.5.1_val.json", {"data": [record]})
    tokens = {"image_id": "a1", "ocr_tokens": ["ACME", "est.", "1900"], "ocr_info": []}
    write(root / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": [tokens]})


def write_vizwiz(root: Path) -> None:
    answers = [{"answer": one, "answer_confidence": "yes"} for one in TEN]
    for split in ("val", "test"):
        name = f"VizWiz_{split}_00000000.jpg"
        image(root / split / name, "jpeg")
        record = {"image": name, "question": "What is this?"}
        write(root / f"{split}.json", [record | ({"answers": answers} if split == "val" else {})])


def write_chartqa(root: Path) -> None:
    image(root / "ChartQA Dataset/test/png/0001.png")
    image(root / "ChartQA Dataset/val/png/0002.png")
    for half in ("human", "augmented"):
        record = {"imgname": "0001.png", "query": f"Which {half} share?", "label": "23.5%"}
        write(root / f"ChartQA Dataset/test/test_{half}.json", [record])


def write_docvqa(root: Path) -> None:
    for split in ("val", "test"):
        image(root / split / "documents/abcd0001_1.png")
        record = {"questionId": 71, "question": "Total?", "image": "documents/abcd0001_1.png"}
        record |= {"answers": ["$12.50", "12.50"]} if split == "val" else {}
        content = {"dataset_name": "docvqa", "dataset_split": split, "data": [record]}
        write(root / split / f"{split}_v1.0.json", content)


def write_infovqa(root: Path) -> None:
    image(root / "infographicsvqa_images/10.jpeg", "jpeg")
    record = {"questionId": 81, "question": "How many?", "image_local_name": "10.jpeg"}
    test = {"dataset_name": "infographicVQA", "data": [record]}
    write(root / "infographicsVQA_test_v1.0.json", test)
    val = {"dataset_name": "infographicVQA", "data": [{**record, "answers": ["12"]}]}
    write(root / "infographicsVQA_val_v1.0_withQT.json", val)


def write_gqa(root: Path) -> None:
    image(root / "images/n1.jpg", "jpeg")
    question = {
        "imageId": "n1",
        "question": "Is it indoors?",
        "answer": "no",
        "isBalanced": True,
        "types": {"structural": "verify", "semantic": "global", "detailed": "place"},
        "groups": {"global": None, "local": "a"},
        "semantic": [{"operation": "verify", "argument": "indoors", "dependencies": []}],
    }
    write(root / "questions/testdev_balanced_questions.json", {"20001": question})


def write_scienceqa(root: Path) -> None:
    image(root / "images/test/5/image.png")
    asked = {"question": "Which is solid?", "choices": ["milk", "rock"], "answer": 1}
    problems = {
        "4": {**asked, "image": None, "hint": ""},
        "5": {**asked, "image": "image.png", "hint": "Look."},
        "6": {**asked, "image": "image.png", "hint": ""},
    }
    write(root / "problems.json", problems)
    write(root / "pid_splits.json", {"test": ["5", "4"], "train": ["6"]})


def write_pope(root: Path) -> None:
    image(root / "val2014/COCO_val2014_000000000001.jpg", "jpeg")
    for category in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": number,
                "image": "COCO_val2014_000000000001.jpg",
                "text": f"Is there a {thing} in the image?",
                "label": label,
            }
            for number, (thing, label) in enumerate((("fork", "yes"), (category, "no")), start=1)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write(root / f"output/coco/coco_pope_{category}.json", lines)


def write_seed(root: Path) -> None:
    image(root / "SEED-Bench-image/1_2", "jpeg")
    image(root / "SEED-Bench-video-image/10_v1.png")
    choices = {
        f"choice_{letter}": word for letter, word in zip("abcd", ("1", "2", "3", "4"), strict=True)
    }
    shown = {**choices, "question": "How many cups?", "answer": "B"}
    questions = [
        {
            **shown,
            "question_id": "9001",
            "question_type_id": 5,
            "data_type": "image",
            "data_id": "1_2",
        },
        {
            **shown,
            "question_id": "v1",
            "question_type_id": 10,
            "data_type": "video",
            "data_id": "a.webm",
        },
    ]
    kinds = {"Instances Counting": 5, "Action Recognition": 10}
    write(root / "SEED-Bench.json", {"question_type": kinds, "questions": questions})


def write_mmvp(root: Path) -> None:
    for number in (1, 2):
        image(root / f"MMVP Images/{number}.jpg", "jpeg")
    rows = "1,Open or shut?,(a) Open (b) Shut,(a)\n2,Open or shut?,(a) Open (b) Shut,(b)\n"
    write(root / "Questions.csv", f"lndex,Question,Options,Correct Answer\n{rows}")


def write_mmvet(root: Path) -> None:
    image(root / "images/v1_0.png")
    record = {
        "imagename": "v1_0.png",
        "question": "How many boats?",
        "answer": "2",
        "capability": [],
    }
    write(root / "mm-vet.json", {"v1_0": record})


def write_ai2d(root: Path) -> None:
    cell = base64.b64encode(image(root / "spare/a.png")).decode()
    file = io.StringIO()
    table = csv.writer(file, delimiter="\t", lineterminator="\n")
    table.writerow(["index", "question", "A", "B", "C", "D", "answer", "image"])
    table.writerow(["7", "What does F point at?", "root", "leaf", "stem", "seed", "C", "8"])
    table.writerow(["8", "Which?", "A", "B", "", "", "A", cell])
    write(root / "AI2D_TEST.tsv", file.getvalue())


def write_mmbench(root: Path) -> None:
    cell = base64.b64encode(image(root / "spare/a.jpg", "jpeg")).decode()
    names = ("mmbench_dev_20230712", "mmbench_test_en_20231003", "mmbench_dev_cn_20231003")
    for name in (*names, "mmbench_test_cn_20231003", "CCBench_legacy"):
        head = "index question hint A B C D answer category image source l2-category comment split"
        cells = ["12", "What?", "", "soup", "cake", "", "", "B", "c", cell, "s", "l", "", "dev"]
        write(root / f"{name}.tsv", "\t".join(head.split()) + "\n" + "\t".join(cells) + "\n")


def write_llava_bench(root: Path) -> None:
    image(root / "images/001.jpg", "jpeg")
    question = {"question_id": 0, "image": "001.jpg", "category": "conv", "text": "Season?"}
    write(root / "questions.jsonl", json.dumps(question) + "\n")
    caption = {"id": "001", "image": "001.jpg", "caption": "A lake."}
    write(root / "context.jsonl", json.dumps(caption) + "\n")
    answer = {
        "question_id": 0,
        "text": "Autumn.",
        "answer_id": "x",
        "model_id": "g",
        "metadata": {},
    }
    write(root / "answers_gpt4.jsonl", json.dumps(answer) + "\n")


def write_tiny_lvlm(root: Path) -> None:
    groups = ("Visual_Reasoning", "Visual_Perception", "Visual_Knowledge_Acquisition")
    for group in (*groups, "Visual_Commonsense", "Object_Hallucination"):
        image(root / "updated_datasets" / group / "1.png")
        row = {"image_path": "1.png", "question": "What is written?", "gt_answers": ["open"]}
        write(root / "updated_datasets" / group / "dataset.json", [row])


def write_mvbench(root: Path) -> None:
    write(root / "json/action_sequence.json", [])
    write(root / "video/star/readme.txt", "")


def write_mmmu(root: Path) -> None:
    write(root / "MMMU/Accounting/validation-00000-of-00001.parquet", "")


def write_refcoco(root: Path) -> None:
    """The three sets, references pickled as Python 2 did it: two sentences a reference."""
    image(root / "train2014/COCO_train2014_000000000009.jpg", "jpeg")
    images = [
        {
            "id": 9,
            "file_name": "COCO_train2014_000000000009.jpg",
            "height": 480,
            "width": 640,
        }
    ]
    annotations = [{"id": 77, "image_id": 9, "bbox": [10.5, 20.0, 100.0, 50.25]}]
    for name, author, splits in (
        ("refcoco", "unc", ("train", "val", "testA", "testB")),
        ("refcoco+", "unc", ("train", "val", "testA", "testB")),
        ("refcocog", "umd", ("train", "val", "test")),
    ):
        write(root / name / "instances.json", {"images": images, "annotations": annotations})
        references = [
            {
                "ref_id": number,
                "ann_id": 77,
                "image_id": 9,
                "category_id": 1,
                "file_name": "COCO_train2014_000000000009_77.jpg",
                "split": split,
                "sent_ids": [2 * number, 2 * number + 1],
                "sentences": [
                    {
                        "sent_id": 2 * number + n,
                        "raw": f"Left mug, {split}!",
                        "sent": f"left mug {split} {n}",
                        "tokens": ["left", "mug", split],
                    }
                    for n in range(2)
                ],
            }
            for number, split in enumerate(splits)
        ]
        (root / name / f"refs({author}).p").write_bytes(pickle.dumps(references, protocol=2))


RELEASES = {
    "mme": write_mme,
    "vqa-okvqa-val": write_okvqa,
    "vqa-textvqa-val": write_textvqa,
    "vqa-textvqa-val-ocr": write_textvqa,
    "vqa-vizwiz-val": write_vizwiz,
    "vqa-vizwiz-test": write_vizwiz,
    "vqa-chartqa-test": write_chartqa,
    "vqa-chartqa-test-human": write_chartqa,
    "vqa-chartqa-test-augmented": write_chartqa,
    "vqa-docvqa-val": write_docvqa,
    "vqa-docvqa-test": write_docvqa,
    "vqa-ai2d-test": write_ai2d,
    "vqa-infovqa-val": write_infovqa,
    "vqa-infovqa-test": write_infovqa,
    "vqa-gqa-testdev": write_gqa,
    "scienceqa": write_scienceqa,
    "pope": write_pope,
    "tiny_lvlm": write_tiny_lvlm,
    "mmmu-dev": write_mmmu,
    "mmmu-val": write_mmmu,
    "mmmu-test": write_mmmu,
    "mmvet": write_mmvet,
    "mmbench-dev-en": write_mmbench,
    "mmbench-test-en": write_mmbench,
    "mmbench-dev-cn": write_mmbench,
    "mmbench-test-cn": write_mmbench,
    "ccbench-dev": write_mmbench,
    "seed": write_seed,
    "mmvp": write_mmvp,
    "llava-bench": write_llava_bench,
    "mvbench": write_mvbench,
    **{task.id: write_refcoco for task in REFCOCO},
}
"""Task id -> what writes its release into a folder."""
