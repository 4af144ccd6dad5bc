"""Own records as a benchmark: what is asked, what is printed, what the files hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.held_out import HeldOutRecord, write_held_out
from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.video import choose_frames, open_video
from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.evaluation.own_records import NUM_SEGMENTS
from internvl_chat.evaluation.pixels import TileRule, load_frames, load_tiles
from internvl_chat.evaluation.task import (
    DataRoot,
    ExportInput,
    Question,
    Score,
    ScoreInput,
    TaskSpec,
)
from internvl_chat.evaluation.tasks.own import task_of_records
from tests.support.evaluation.own import record, write_own, write_own_meta, write_records

NOWHERE = DataRoot(folder=Path("/nowhere"), lmu_data=Path("/nowhere"))


def questions_of(task: TaskSpec) -> list[Question]:
    return task.load(NOWHERE, "2024")


def loaded(tmp_path: Path, *records: dict[str, Any], **options: Any) -> list[Question]:
    path = write_records(tmp_path / "mine.jsonl", list(records))
    return questions_of(task_of_records(path, **options))


def scored(task: TaskSpec, answers: dict[str, str]) -> Score:
    assert task.score is not None
    given = ScoreInput(questions=questions_of(task), answers=answers, rules="2024")
    return task.score(given)


# ---- what is asked --------------------------------------------------------------------------


def test_a_record_is_asked_as_it_is_trained(tmp_path: Path) -> None:
    task = task_of_records(write_own(tmp_path), metrics=["exact", "exact", "iou"])
    assert (task.id, task.title, task.metric) == ("own-colors", "colors.jsonl", "exact, iou")
    assert [(one.path, one.is_folder) for one in task.data] == [
        (str(tmp_path / "colors.jsonl"), False),
        (str(tmp_path), True),
    ]
    assert task.judge is None
    first, *_, last = questions_of(task)
    assert (first.id, first.prompt) == ("c0", "<image>\nWhich color is this?")
    assert first.images[0].open().size == (28, 20)
    assert first.images[0].label == "images/red.png"
    assert first.record == {
        "dataset": "colors",
        "references": ["red"],
        "fields": {"id": "c0", "skill": "color"},
    }
    assert (last.prompt, last.images, last.earlier) == ("What comes after nine?", (), ())


def test_every_round_is_a_question_with_the_earlier_ones_before_it(tmp_path: Path) -> None:
    turns = ["<image>\nWhat?", "a cat", "And <image> here?", "a dog", "Which is larger?", "the dog"]
    conversations = [
        {"from": "gpt" if n % 2 else "human", "value": text} for n, text in enumerate(turns)
    ]
    asked = loaded(
        tmp_path,
        {
            "id": 7,
            "image": ["a.png", "b.png"],
            "system": "Be brief.",
            "conversations": conversations,
        },
        record(8, "Hm?", "yes"),
    )
    assert [one.id for one in asked] == ["7#0", "7#1", "7#2", "8"]
    assert [one.prompt for one in asked[:3]] == turns[::2]
    assert [one.record["references"] for one in asked[:3]] == [["a cat"], ["a dog"], ["the dog"]]
    assert [[image.label for image in one.images] for one in asked] == [
        ["a.png"],
        ["a.png", "b.png"],
        ["a.png", "b.png"],
        [],
    ]
    assert asked[1].earlier == (("<image>\nWhat?", "a cat"),)
    assert asked[2].earlier == (("<image>\nWhat?", "a cat"), ("And <image> here?", "a dog"))
    assert [one.system_message for one in asked] == ["Be brief."] * 3 + [None]


@pytest.mark.parametrize("identities", [["a", "a"], ["a", None], [None, None]])
def test_rows_are_numbered_where_ids_are_missing_or_double(
    tmp_path: Path, identities: list[str | None]
) -> None:
    records = [record(one, "Hm?", "yes") for one in identities]
    for one in records:
        if one["id"] is None:
            del one["id"]
    assert [one.id for one in loaded(tmp_path, *records)] == ["0", "1"]


def test_images_are_sought_beside_the_file_or_below_root(tmp_path: Path) -> None:
    one = record("a", "Hm?", "yes", image="x/y.png")
    (beside,) = loaded(tmp_path, one)
    (below,) = loaded(tmp_path, one, root=tmp_path / "elsewhere")
    assert beside.images[0].path == str(tmp_path / "x/y.png")  # type: ignore[attr-defined]
    assert below.images[0].path == str(tmp_path / "elsewhere/x/y.png")  # type: ignore[attr-defined]


def test_a_video_is_asked_with_numbered_frames(tmp_path: Path) -> None:
    (asked,) = loaded(
        tmp_path, record("v", "<video>\nWhat happens?", "rain", video="v.mp4", clip=[1, 2.5])
    )
    frames = [f"Frame{n}: <image>\n" for n in range(1, NUM_SEGMENTS + 1)]
    assert asked.prompt == "".join(frames) + "What happens?"
    assert asked.video is not None
    assert (asked.video.path, asked.video.bounds) == (str(tmp_path / "v.mp4"), (1.0, 2.5))


def test_several_answers_may_be_right(tmp_path: Path) -> None:
    path = write_records(
        tmp_path / "mine.jsonl", [record("a", "?", "ten", references=["ten", "10"])]
    )
    task = task_of_records(path)
    assert scored(task, {"a": "10"}).metrics == {"exact": 1.0}
    assert scored(task, {"a": "9"}).metrics == {"exact": 0.0}


def test_a_meta_brings_its_datasets(tmp_path: Path) -> None:
    task = task_of_records(write_own_meta(tmp_path), meta=True)
    assert [Path(one.path).name for one in task.data] == [
        "colors.jsonl",
        "boxes.jsonl",
        tmp_path.name,
    ]
    asked = questions_of(task)
    assert [one.id for one in asked][-3:] == ["colors/t0", "boxes/b0", "boxes/b1"]
    assert asked[-2].record["references"] == ["<ref>it</ref><box>[[500, 250, 1000, 1000]]</box>"]
    assert asked[-1].record["references"] == ["<box>[[0, 0, 500, 500]]</box>"]


def test_the_tile_limit_of_a_meta_is_its_datasets(tmp_path: Path) -> None:
    """With --dynamic, and unless --max-num says otherwise; a record's images are cut alike."""
    path = write_own_meta(tmp_path)
    meta = json.loads(path.read_text())
    meta["boxes"]["max_dynamic_patch"] = 6
    path.write_text(json.dumps(meta))
    asked = questions_of(task_of_records(path, meta=True))
    assert {one.id.split("/")[0]: one.max_tiles for one in asked} == {"colors": None, "boxes": 6}
    rule = TileRule(side=4, max_tiles=12, has_thumbnail=False, normalize_type="imagenet")
    whole = replace(rule, max_tiles=None)
    num_tiles = {one.id: load_tiles(one, rule, "each")[1] for one in asked if one.images}
    assert num_tiles["colors/c0"] == [12]  # 28 x 20 pixels, as 4 x 3
    assert num_tiles["boxes/b0"] == [6]
    assert load_tiles(asked[-1], whole, "each")[1] == [1]


def test_frames_are_those_of_training_and_chat(tmp_path: Path) -> None:
    """The middles of equal stretches: MVBench's own rule takes others."""
    frames = [Image.new("RGB", (4, 4), (10 * n, 0, 0)) for n in range(20)]
    path = tmp_path / "clip.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0)
    clip = {"video": "clip.gif", "clip": [0.5, 1.4]}
    file = write_records(tmp_path / "v.jsonl", [record("v", "<video>\nWhat?", "rain", **clip)])
    asked = questions_of(task_of_records(file))[0]
    assert asked.video is not None
    video = open_video(str(path), where="v")
    wanted = choose_frames(
        video, clip=(0.5, 1.4), min_num_frame=8, max_num_frame=8, rng=None, where="v"
    )
    shown = [frame.tobytes() for frame in load_frames(asked.video)]
    assert shown == [frame.tobytes() for frame in video.frames(wanted)]
    of_mvbench = load_frames(replace(asked.video, is_of_training=False))
    assert shown != [frame.tobytes() for frame in of_mvbench]
    (tmp_path / "folder").mkdir()
    frames[0].save(tmp_path / "folder/1.png")
    timeless = replace(asked.video, path=str(tmp_path / "folder"))
    with pytest.raises(BadRecordError, match='"clip" needs a video with a frame rate'):
        load_frames(timeless)


def test_a_share_of_a_dataset_is_its_first_records(tmp_path: Path) -> None:
    path = write_own_meta(tmp_path)
    meta = json.loads(path.read_text())
    meta["colors"]["repeat_time"], meta["boxes"]["repeat_time"] = 0.5, 3
    path.write_text(json.dumps(meta))
    asked = questions_of(task_of_records(path, meta=True))
    assert [one.id for one in asked] == [
        "colors/c0",
        "colors/c1",
        "colors/c2",
        "boxes/b0",
        "boxes/b1",
    ]


def test_a_limit_of_a_dataset_counts_before_its_share(tmp_path: Path) -> None:
    path = write_own_meta(tmp_path)
    meta = json.loads(path.read_text())
    meta["colors"] |= {"repeat_time": 0.5, "max_samples": 4}
    path.write_text(json.dumps(meta))
    asked = questions_of(task_of_records(path, meta=True))
    assert [one.id for one in asked if "colors" in one.id] == ["colors/c0", "colors/c1"]


# ---- what a run held out --------------------------------------------------------------------


def held_out_run(folder: Path, data: Path, rows: dict[str, list[int]]) -> Path:
    """A run's folder that names these records of the datasets in ``data``."""
    records = [
        HeldOutRecord.of(name, AnnotationFile(data / f"{name}.jsonl"), row)
        for name, chosen in rows.items()
        for row in chosen
    ]
    folder.mkdir(parents=True)
    write_held_out(folder, records)
    return folder


def test_only_what_a_run_held_out_is_asked(tmp_path: Path) -> None:
    meta = write_own_meta(tmp_path / "data")
    run = held_out_run(tmp_path / "my run", tmp_path / "data", {"colors": [2, 6]})
    # What training repeats or leaves out of the rest says nothing of these.
    entries = json.loads(meta.read_text())
    entries["colors"] |= {"repeat_time": 0.2, "max_samples": 3}
    meta.write_text(json.dumps(entries))
    for given in (run, run / "held_out.jsonl"):
        task = task_of_records(meta, meta=True, held_out=given)
        assert task.id == "own-meta-held-out-of-my run"
        assert [one.id for one in questions_of(task)] == ["colors/c2", "colors/t0"]
    assert [Path(one.path).name for one in task.data] == ["colors.jsonl", "data"]


def test_other_files_than_a_run_had_are_refused(tmp_path: Path) -> None:
    meta = write_own_meta(tmp_path / "data")
    run = held_out_run(tmp_path / "run", tmp_path / "data", {"colors": [0, 6]})
    colors = tmp_path / "data/colors.jsonl"
    lines = colors.read_text().splitlines(keepends=True)
    colors.write_text("".join(lines[1:]))
    with pytest.raises(DatasetError, match=r"colors\.jsonl: 2 of the 2 records .* that of line 1"):
        questions_of(task_of_records(meta, meta=True, held_out=run))
    entries = json.loads(meta.read_text())
    meta.write_text(json.dumps({"boxes": entries["boxes"]}))
    with pytest.raises(ConfigError, match=r"holds out of colors, which .*meta\.json has not"):
        task_of_records(meta, meta=True, held_out=run)
    for given, message in (
        (tmp_path / "data", "there is no .*data/held_out.jsonl. Give the OUTPUT_DIR of a run with"),
        (tmp_path / "gone", "there is no .*gone"),
    ):
        with pytest.raises(ConfigError, match=message):
            task_of_records(meta, meta=True, held_out=given)
    with pytest.raises(DatasetError, match=r"data/boxes\.jsonl:1: does not name a record by"):
        task_of_records(meta, meta=True, held_out=tmp_path / "data/boxes.jsonl")
    with pytest.raises(ConfigError, match="--held-out: is a part of a meta JSON's records"):
        task_of_records(colors, held_out=run)


# ---- mistakes -------------------------------------------------------------------------------


def test_bad_records_are_told_by_file_and_line(tmp_path: Path) -> None:
    records = [
        record(0, "fine", "yes"),
        record(1, "<image> <image>", "no", image="a.png"),
        record(2, "Hm?", "yes", image="../out.png"),
        record(3, "Hm?", "yes", references="yes"),
    ]
    with pytest.raises(DatasetError) as caught:
        loaded(tmp_path, *records)
    first, *others = str(caught.value).splitlines()
    assert first == "3 records cannot be asked:"
    name = tmp_path / "mine.jsonl"
    assert [line.split(": ")[0].strip() for line in others] == [f"{name}:{n}" for n in (2, 3, 4)]
    assert '2 <image> placeholders, 1 file in "image"' in others[0]
    assert '"references" is no list of strings' in others[2]


def test_many_bad_records_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("this is no record\n" * 12)
    with pytest.raises(DatasetError, match="12 records cannot be asked") as caught:
        questions_of(task_of_records(path))
    assert str(caught.value).endswith("\n  and 2 more")


def test_references_belong_to_one_round(tmp_path: Path) -> None:
    rounds = record(0, "a?", "b", references=["b"])
    rounds["conversations"] *= 2
    with pytest.raises(DatasetError, match='"references" in a record of 2 rounds'):
        loaded(tmp_path, rounds)


def test_pixel_boxes_need_the_size(tmp_path: Path) -> None:
    path = write_own_meta(tmp_path)
    lines = (tmp_path / "boxes.jsonl").read_text().replace('"width": 28, ', "")
    (tmp_path / "boxes.jsonl").write_text(lines)
    with pytest.raises(DatasetError, match='Give the record "width" and "height"'):
        questions_of(task_of_records(path, meta=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["exakt"]}, "no metric 'exakt'. Did you mean exact"),
        ({"metrics": []}, "no metric"),
        ({"meta": True, "root": "."}, "names the root of each dataset"),
        ({"meta": True}, "no such meta file"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of_records(tmp_path / "absent.json", **options)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        questions_of(task_of_records(tmp_path / "absent.jsonl"))


# ---- what comes out -------------------------------------------------------------------------

ANSWERS = {
    "c0": "Red.",
    "c1": "blue",
    "c2": "green",
    "c3": "blue",
    "c4": "",
    "c5": "blue",
    "t0": "10",
}


def test_a_file_is_scored_with_a_confusion_table(tmp_path: Path) -> None:
    score = scored(task_of_records(write_own(tmp_path)), ANSWERS)
    assert score.metrics == {"exact": 4 / 7}
    assert score.per_sample == dict(zip(ANSWERS, [1, 0, 1, 1, 0, 1, 0], strict=True))
    assert score.printed == (
        "     n   exact\n"
        "all  7  0.5714\n"
        "\n"
        "exact: truth down, answer across\n"
        "truth \\ answer  red  blue  green  ten  (empty)  10\n"
        "red               1     1      0    0        1   0\n"
        "blue              0     2      0    0        0   0\n"
        "green             0     0      1    0        0   0\n"
        "ten               0     0      0    0        0   1\n"
    )
    assert score.notes == ()


def test_a_meta_is_scored_by_dataset(tmp_path: Path) -> None:
    task = task_of_records(write_own_meta(tmp_path), meta=True, metrics=["iou", "exact", "bleu"])
    answers = {f"colors/{name}": answer for name, answer in ANSWERS.items()}
    answers["boxes/b0"] = "<ref>it</ref><box>[[500, 250, 1000, 625]]</box>"
    answers["boxes/b1"] = "<box>[[0, 0, 100, 500]]</box>"
    score = scored(task, answers)
    table = score.printed.split("\n\n")[0].splitlines()
    assert [line.split()[:5] for line in table] == [
        ["n", "iou@0.5", "iou", "exact", "bleu"],
        ["colors", "7", "-", "-", "0.5714"],
        ["boxes", "2", "0.5000", "0.3500", "0.0000"],
        ["all", "9", "0.5000", "0.3500", "0.4444"],
    ]
    assert score.metrics["colors|iou"] is None
    assert score.metrics["boxes|iou@0.5"] == score.metrics["iou@0.5"] == 0.5
    assert score.metrics["exact"] == 4 / 9
    assert score.per_sample == {"boxes/b0": 1.0, "boxes/b1": 0.0}
    assert score.notes == (
        "iou: 7 of 9 questions left out, whose truth holds no box",
        "bleu: sacrebleu with the tokenizer 13a",
    )


def test_results_may_be_told_apart_by_a_field(tmp_path: Path) -> None:
    score = scored(task_of_records(write_own(tmp_path), by="skill"), ANSWERS)
    assert score.metrics == {"exact": 4 / 7, "color|exact": 4 / 6, "text|exact": 0.0}
    assert score.printed.splitlines()[:4] == [
        "       n   exact",
        "color  6  0.6667",
        "text   1  0.0000",
        "all    7  0.5714",
    ]


def test_perfect_answers_in_any_order(tmp_path: Path) -> None:
    task = task_of_records(write_own(tmp_path), metrics=["exact", "rouge"])
    asked = questions_of(task)
    answers = {one.id: one.record["references"][0] for one in asked}
    assert task.score is not None
    for order in (asked, asked[::-1]):
        score = task.score(ScoreInput(questions=order, answers=answers, rules="2024"))
        assert score.metrics["exact"] == score.metrics["rouge1"] == 1.0


def test_without_a_judge_a_line_says_so(tmp_path: Path) -> None:
    task = task_of_records(write_own(tmp_path), metrics=["judge"])
    assert task.judge == "gpt-4-turbo"
    score = scored(task, ANSWERS)
    assert score.metrics == {"judge": None}
    assert score.notes == ("judge: 7 of 7 questions not graded, there is no judge",)


def test_files_are_read_back(tmp_path: Path) -> None:
    task = task_of_records(write_own(tmp_path))
    asked, score = questions_of(task), scored(task, ANSWERS)
    files = task.export(
        ExportInput(
            questions=asked,
            answers=ANSWERS,
            checkpoint="a/b",
            stamp="261126120000",
            rules="2024",
            score=score,
        )
    )
    ((name, content),) = files.items()
    assert name == "own_261126120000.jsonl"
    assert isinstance(content, str)
    lines = [json.loads(line) for line in content.splitlines()]
    assert lines[0] == {
        "id": "c0",
        "dataset": "colors",
        "images": ["images/red.png"],
        "question": "Which color is this?",
        "references": ["red"],
        "answer": "Red.",
        "score": 1.0,
    }
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    array = tmp_path / "answers.json"
    array.write_text(json.dumps(lines))
    assert task.read_answers([path], asked) == task.read_answers([array], asked) == ANSWERS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "zz", "answer": "a"}', "which no question is called"),
        ('{"answer": "a"}', 'has no "id"'),
        ('{"id": "c0"}', 'has no "answer"'),
        ("[]", "is no JSON object"),
    ],
)
def test_unfit_answer_files_are_refused(tmp_path: Path, line: str, message: str) -> None:
    task = task_of_records(write_own(tmp_path))
    path = tmp_path / "answers.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DatasetError, match=message) as caught:
        task.read_answers([path], questions_of(task))
    assert f"{path}:1" in str(caught.value)
