"""Releases brought into the layout; what the tasks then read of it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.evaluation.prepare import PREPARATIONS, prepare
from internvl_chat.evaluation.registry import TASKS
from internvl_chat.evaluation.releases.release import most_common
from internvl_chat.evaluation.releases.yes_no import MME_COGNITION, MME_PERCEPTION
from internvl_chat.evaluation.sources import ImageFile
from internvl_chat.evaluation.task import DataRoot
from tests.support.evaluation.releases import RELEASES, write

EMPTY = {"mmmu-dev", "mmmu-val", "mmmu-test", "mvbench"}
"""Whose invented release has no readable questions."""
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "download"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_preparation_has_a_release_here() -> None:
    assert set(RELEASES) == set(PREPARATIONS)


@pytest.mark.parametrize("task_id", PREPARATIONS)
def test_what_is_prepared_is_what_the_task_reads(task_id: str, source: Path, work: Path) -> None:
    RELEASES[task_id](source)
    before = snapshot(source)
    written = prepare(task_id, source, work)
    assert written
    assert all(path.exists() and path.is_relative_to(work) for path in written)
    assert snapshot(source) == before
    assert prepare(task_id, source, work) == []  # all in place
    if task_id not in TASKS or task_id in EMPTY:
        return
    task = TASKS[task_id]
    for file in task.data:
        assert (work / file.path).exists(), file.path
    questions = task.load(DataRoot(folder=work, lmu_data=work), task.rules[0])
    assert questions
    for one in questions:
        for image in one.images:
            if isinstance(image, ImageFile):
                assert Path(image.path).is_file()


def test_pope(source: Path, work: Path) -> None:
    RELEASES["pope"](source)
    prepare("pope", source, work)
    assert [
        (row["question_id"], row["category"])
        for row in rows(work / "data/pope/llava_pope_test.jsonl")
    ] == [
        (0, "random"),
        (1, "random"),
        (2, "popular"),
        (3, "popular"),
        (4, "adversarial"),
        (5, "adversarial"),
    ]
    assert rows(work / "data/pope/llava_pope_test.jsonl")[1] == {
        "question_id": 1,
        "image": "COCO_val2014_000000000001.jpg",
        "text": f"Is there a random in the image?\n{SHORT}",
        "category": "random",
    }
    labels = work / "data/pope/coco/coco_pope_random.json"
    assert labels.is_symlink()
    assert [row["label"] for row in rows(labels)] == ["yes", "no"]


def test_mme_from_both_layouts(source: Path, work: Path) -> None:
    RELEASES["mme"](source)
    written = prepare("mme", source, work)
    assert len(written) == 14 * 2
    for number, task in enumerate((*MME_PERCEPTION, *MME_COGNITION)):
        ending = "png" if number % 2 else "jpg"
        assert (work / f"eval/mme/Your_Results/{task}.txt").read_text() == "".join(
            f"{name}.{ending}\tIs {name} {colour}? Please answer yes or no.\t{label}\n"
            for name in ("0001", "0002")
            for colour, label in (("red", "Yes"), ("green", "No"))
        )
        images = work / "data/mme/MME_Benchmark_release_version" / task
        assert (images / f"0001.{ending}").is_file()


@pytest.mark.parametrize(
    ("task_id", "path", "expected"),
    [
        (
            "vqa-okvqa-val",
            "data/okvqa/okvqa_val.jsonl",
            {
                "image": "data/okvqa/val2014/COCO_val2014_000000000042.jpg",
                "question": "What breed is this?",
                "question_id": 425,
                "answer": "dog",
            },
        ),
        (
            "vqa-textvqa-val",
            "data/textvqa/textvqa_val.jsonl",
            {
                "image": "data/textvqa/train_images/a1.jpg",
                "question": "what brand?",
                "question_id": 7,
                "answer": "dog",
            },
        ),
        (
            "vqa-textvqa-val-ocr",
            "data/textvqa/textvqa_val_llava.jsonl",
            {
                "image": "data/textvqa/train_images/a1.jpg",
                "question": "what brand?\nReference OCR token: ACME, est., 1900",
                "question_id": 7,
                "answer": "dog",
            },
        ),
        (
            "vqa-vizwiz-val",
            "data/vizwiz/vizwiz_val.jsonl",
            {
                "image": "data/vizwiz/val/VizWiz_val_00000000.jpg",
                "question": "What is this?",
                "question_id": 0,
                "answer": "dog",
            },
        ),
        (
            "vqa-vizwiz-test",
            "data/vizwiz/vizwiz_test.jsonl",
            {
                "image": "data/vizwiz/test/VizWiz_test_00000000.jpg",
                "question": "What is this?",
                "question_id": "data/vizwiz/test/VizWiz_test_00000000.jpg",
            },
        ),
        (
            "vqa-chartqa-test-human",
            "data/chartqa/test_human.jsonl",
            {
                "image": "data/chartqa/ChartQA Dataset/test/png/0001.png",
                "question": "Which human share?",
                "question_id": 0,
                "answer": "23.5%",
            },
        ),
        (
            "vqa-docvqa-val",
            "data/docvqa/val.jsonl",
            {
                "image": "data/docvqa/val/documents/abcd0001_1.png",
                "question": "Total?",
                "question_id": 71,
                "answer": ["$12.50", "12.50"],
            },
        ),
        (
            "vqa-docvqa-test",
            "data/docvqa/test.jsonl",
            {
                "image": "data/docvqa/test/documents/abcd0001_1.png",
                "question": "Total?",
                "question_id": 71,
            },
        ),
        (
            "vqa-infovqa-val",
            "data/infographicsvqa/val.jsonl",
            {
                "image": "data/infographicsvqa/infographicsvqa_images/10.jpeg",
                "question": "How many?",
                "question_id": 81,
                "answer": ["12"],
            },
        ),
        (
            "vqa-gqa-testdev",
            "data/gqa/llava_gqa_testdev_balanced_qwen_format.jsonl",
            {
                "image": "data/gqa/images/n1.jpg",
                "question": "Is it indoors?",
                "question_id": "20001",
                "answer": "no",
            },
        ),
        (
            "scienceqa",
            "data/scienceqa/scienceqa_test_img.jsonl",
            {
                "image": "data/scienceqa/images/test/5/image.png",
                "question": "Which is solid?",
                "choices": ["milk", "rock"],
                "answer": 1,
                "hint": "Look.",
            },
        ),
        (
            "mmvet",
            "data/mm-vet/llava-mm-vet.jsonl",
            {"question_id": 0, "image": "v1_0.png", "text": "How many boats?"},
        ),
        (
            "vqa-ai2d-test",
            "data/ai2diagram/test_vlmevalkit.jsonl",
            {
                "image": "data/ai2diagram/AI2D_TEST/7.png",
                "question": f"What does F point at?\nA. root\nB. leaf\nC. stem\nD. seed\n{LETTER}",
                "question_id": 7,
                "answer": "C",
            },
        ),
        (
            "seed",
            "data/SEED/seed.jsonl",
            {
                "image": "SEED-Bench-image/1_2",
                "text": f"How many cups?\nA. 1\nB. 2\nC. 3\nD. 4\n{LETTER}",
                "question_id": "9001",
                "answer": "B",
            },
        ),
    ],
)
def test_the_first_row(
    task_id: str, path: str, expected: dict[str, Any], source: Path, work: Path
) -> None:
    RELEASES[task_id](source)
    prepare(task_id, source, work)
    assert rows(work / path)[0] == expected


def test_videos_of_seed_are_frames(source: Path, work: Path) -> None:
    RELEASES["seed"](source)
    prepare("seed", source, work)
    assert rows(work / "data/SEED/seed.jsonl")[1]["image"] == "SEED-Bench-video-image/10_v1.png"


def test_annotations_in_the_vqa_format(source: Path, work: Path) -> None:
    RELEASES["vqa-vizwiz-val"](source)
    prepare("vqa-vizwiz-val", source, work)
    content = json.loads((work / "data/vizwiz/vizwiz_val_annotations.json").read_text())
    answers = [{"answer": one} for one in ["corgi"] * 4 + ["dog"] * 6]
    assert content == {"annotations": [{"question_id": 0, "answers": answers}]}


def test_a_single_file_is_a_release_without_images(source: Path, work: Path) -> None:
    RELEASES["vqa-gqa-testdev"](source)
    file = source / "questions/testdev_balanced_questions.json"
    written = prepare("vqa-gqa-testdev", file, work)
    assert [path.name for path in written] == [
        "llava_gqa_testdev_balanced_qwen_format.jsonl",
        "testdev_balanced_questions.json",
    ]


def test_two_splits_share_a_folder(source: Path, work: Path) -> None:
    RELEASES["vqa-docvqa-val"](source)
    prepare("vqa-docvqa-val", source, work)
    prepare("vqa-docvqa-test", source, work)
    assert sorted(path.name for path in (work / "data/docvqa/val").iterdir()) == [
        "documents",
        "val_v1.0.json",
    ]


def test_nothing_is_overwritten(source: Path, work: Path) -> None:
    RELEASES["vqa-textvqa-val"](source)
    mine = work / "data/textvqa/textvqa_val.jsonl"
    write(mine, "mine")
    with pytest.raises(ConfigError) as caught:
        prepare("vqa-textvqa-val", source, work)
    assert str(caught.value) == (
        f"{work}: data/textvqa/textvqa_val.jsonl exists with other content. "
        "Move it away, or prepare into another folder with --out."
    )
    assert snapshot(work) == {"data/textvqa/textvqa_val.jsonl": b"mine"}


def test_a_dangling_link_is_not_overwritten(source: Path, work: Path) -> None:
    RELEASES["mmvp"](source)
    (work / "data/MMVP").mkdir(parents=True)
    (work / "data/MMVP/MMVP Images").symlink_to(work / "gone")
    with pytest.raises(ConfigError, match="MMVP Images exists with other content"):
        prepare("mmvp", source, work)


def test_unknown_tasks(source: Path, work: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare("scienceqq", source, work)
    assert str(caught.value) == (
        "TASK: no preparation for 'scienceqq'. Did you mean scienceqa? docs/eval_data.md says "
        "which files each task reads and where they lie."
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("task_id", "lacking", "words"),
    [
        ("pope", "output/coco/coco_pope_popular.json", "holds no coco_pope_popular.json. Unpack"),
        ("mme", "MME/count/images/0001.png", "no image 0001.jpg or 0001.png or 0001.jpeg"),
        ("vqa-textvqa-val", "TextVQA_0.5.1_val.json", "holds no TextVQA_0.5.1_val.json or TextVQA"),
    ],
)
def test_files_that_lack(task_id: str, lacking: str, words: str, source: Path, work: Path) -> None:
    RELEASES[task_id](source)
    (source / lacking).unlink()
    with pytest.raises((ConfigError, DatasetError)) as caught:
        prepare(task_id, source, work)
    assert words in str(caught.value)
    assert not work.exists()


def test_a_source_that_is_not_there(source: Path, work: Path) -> None:
    with pytest.raises(ConfigError, match=r"download: is not there. SRC is what was downloaded"):
        prepare("pope", source, work)


@pytest.mark.parametrize(
    ("task_id", "path", "content", "words"),
    [
        ("scienceqa", "problems.json", "{", "is no JSON"),
        ("scienceqa", "problems.json", {}, 'has no "5"'),
        ("vqa-vizwiz-val", "val.json", {}, "the content is no list"),
        ("vqa-vizwiz-val", "val.json", [3], "val.json, record 0: is no JSON object"),
        ("vqa-vizwiz-val", "val.json", [{}], 'val.json, record 0: has no "answers"'),
        ("vqa-infovqa-test", "infographicsVQA_test_v1.0.json", [], "is no JSON object"),
        ("vqa-gqa-testdev", "questions/testdev_balanced_questions.json", [], "is no JSON object"),
        ("mmvet", "mm-vet.json", {"v2_a": {}}, "mm-vet.json, v2_a: want v1_0, v1_1, ..."),
        ("mmvet", "mm-vet.json", [], "is no JSON object"),
        ("mme", "MME/existence/0001.txt", "Is it?\tMaybe\n", "want question, tab, Yes or No"),
        ("mme", "MME/existence/0001.txt", "Is it?\tYes\n", "holds 1 questions, want 2"),
        (
            "mmvp",
            "Questions.csv",
            "a,b\n",
            "Questions.csv:1: has no column Correct Answer, Options",
        ),
        ("mmvp", "Questions.csv", "", "has no column"),
        ("vqa-ai2d-test", "AI2D_TEST.tsv", "index\tquestion\timage\n1\ta\t%%\n", "is no base64"),
        (
            "vqa-okvqa-val",
            "mscoco_val2014_annotations.json",
            {"annotations": []},
            "record 0: question_id 425 has no annotation",
        ),
        (
            "vqa-textvqa-val-ocr",
            "TextVQA_Rosetta_OCR_v0.2_val.json",
            {"data": []},
            "has no image_id 'a1'",
        ),
    ],
)
def test_releases_that_are_malformed(
    task_id: str, path: str, content: Any, words: str, source: Path, work: Path
) -> None:
    RELEASES[task_id](source)
    write(source / path, content)
    with pytest.raises(DatasetError) as caught:
        prepare(task_id, source, work)
    assert words in str(caught.value)
    assert str(source) in str(caught.value)
    assert not work.exists()


def test_a_name_that_occurs_twice(source: Path, work: Path) -> None:
    for part in ("a", "b"):
        RELEASES["scienceqa"](source / part)
    with pytest.raises(ConfigError, match=r"are both called problems.json. Name the folder"):
        prepare("scienceqa", source, work)


def test_characters_that_no_file_can_hold(source: Path, work: Path) -> None:
    RELEASES["mmvet"](source)
    record = {"v1_3": {"imagename": "é.png", "question": "\ud800?", "answer": "a"}}
    write(source / "mm-vet.json", record)
    prepare("mmvet", source, work)
    raw = (work / "data/mm-vet/llava-mm-vet.jsonl").read_text("utf-8")
    assert raw == '{"question_id": 3, "image": "é.png", "text": "�?"}\n'


def test_most_common() -> None:
    assert most_common(["b", "a", "a", "b"]) == "b"
    assert most_common([]) == ""


def test_refcoco(source: Path, work: Path) -> None:
    RELEASES["refcoco"](source)
    written = prepare("refcoco-testA", source / "refcoco", work)
    assert [path.relative_to(work).as_posix() for path in written] == [
        "data/refcoco/refcoco_testA.jsonl"
    ]
    assert rows(written[0]) == [
        {
            "image": "data/coco/train2014/COCO_train2014_000000000009.jpg",
            "sent": f"left mug testA {n}",
            "bbox": [10.5, 20.0, 110.5, 70.25],
            "height": 480,
            "width": 640,
        }
        for n in range(2)
    ]
    whole = prepare("refcoco", source, work)
    assert len(whole) == 8  # seven files more and the images
    assert (work / "data/coco/train2014").is_symlink()


class Command:
    """What a pickle of an attacker holds."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_runs_nothing(source: Path, work: Path, tmp_path: Path) -> None:
    RELEASES["refcoco"](source)
    marker = tmp_path / "ran"
    place = source / "refcoco/refs(unc).p"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        bad = pickle.dumps([{"split": "val", "x": Command(marker)}], protocol=protocol)
        place.write_bytes(bad)
        with pytest.raises(DatasetError, match=r"no pickle of plain values \(it names .*system\)"):
            prepare("refcoco-val", source, work)
    place.write_bytes(f"(S'touch {marker}'\nios\nsystem\n.".encode())  # the oldest form
    with pytest.raises(DatasetError, match=r"it names os.system"):
        prepare("refcoco-val", source, work)
    assert not marker.exists()
    assert not work.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no pickle of plain values"),
        (b"garbage", "no pickle of plain values"),
        (b"\x80\x02Q.", "no pickle of plain values"),
        (pickle.dumps({"a": 1}), "the content is no list"),
        (pickle.dumps([7]), "record 0: is no JSON object"),
        (pickle.dumps([{"split": "train"}]), "holds no reference of the split val"),
        (pickle.dumps([{"split": "val", "ann_id": 8}]), "has no ann_id 8"),
        (pickle.dumps([{"split": "val", "ann_id": [8]}]), r"has no ann_id \[8\]"),
        (
            pickle.dumps([{"split": "val", "ann_id": 77, "image_id": 9, "sentences": ["x"]}]),
            'a sentence has no text "sent"',
        ),
        (
            pickle.dumps([{"split": "val", "ann_id": 77, "image_id": 9, "sentences": 5}]),
            '"sentences" is no list',
        ),
    ],
)
def test_malformed_references(source: Path, work: Path, content: bytes, told: str) -> None:
    RELEASES["refcoco"](source)
    (source / "refcoco/refs(unc).p").write_bytes(content)
    with pytest.raises(DatasetError, match=told):
        prepare("refcoco-val", source, work)
    assert not work.exists()
