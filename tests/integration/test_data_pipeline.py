"""From a meta JSON on disk to batches, as training runs it."""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from internvl_chat.config import DataConfig, OrderMode
from internvl_chat.data import lengths as lengths_module
from internvl_chat.data.build import build_eval_dataset, build_train_dataset
from internvl_chat.data.collate import Collator
from internvl_chat.data.dataset import SftDataset
from internvl_chat.data.sampler import Pack, StepBatchSampler
from internvl_chat.errors import DatasetError
from internvl_chat.train import arguments
from internvl_chat.train.arguments import DataArguments
from tests.support import tokenizers
from tests.support.clips import write_clip
from tests.support.configs import data_config, order_config

SIZE = 16
Records = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVL_CHAT_CACHE", str(tmp_path / "cache"))


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def records(folder: Path, count: int = 12) -> Records:
    """Text, one image, two images, in turn; lengths differ."""
    (folder / "images").mkdir(exist_ok=True)
    made: Records = []
    for number in range(count):
        record: dict[str, Any] = {"conversations": turns("Q" * (number % 5), "A" * (number + 1))}
        names = [f"{number}_{k}.png" for k in range(number % 3)]
        for name in names:
            values = np.random.default_rng(number).integers(0, 255, (9 + number, 20, 3))
            Image.fromarray(values.astype(np.uint8)).save(folder / "images" / name)
        if names:
            record["image"] = names[0] if len(names) == 1 else names
        made.append(record)
    return made


def write(folder: Path, made: Records, **changes: Any) -> DataConfig:
    flags = {name: changes.pop(name) for name in list(changes) if hasattr(DataArguments, name)}
    (folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in made))
    entry = {
        "root": str(folder / "images"),
        "annotation": str(folder / "train.jsonl"),
        "data_augment": False,
        "repeat_time": 1,
        "length": len(made),
        **changes,
    }
    (folder / "meta.json").write_text(json.dumps({"demo": entry}))
    config = data_config(
        meta_path=str(folder / "meta.json"), num_image_token=4, force_image_size=SIZE, **flags
    )
    return replace(config, encode=replace(config.encode, system_message="S."))


def build(folder: Path, config: DataConfig, **changes: Any) -> SftDataset:
    return build_train_dataset(
        config, tokenizers.byte_level(), output_dir=folder / "out", seed=1, **changes
    )


def journal(folder: Path) -> list[dict[str, Any]]:
    path = folder / "out" / "bad_samples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def batches(
    dataset: SftDataset, mode: OrderMode, *, num_workers: int = 0, **changes: Any
) -> list[Any]:
    sampler = StepBatchSampler(
        lambda epoch: dataset.plan(
            epoch, global_batch_size=4, order=order_config(mode, max_packed_tokens=200)
        ),
        rank=0,
        world_size=1,
        micro_batch_size=2,
        accumulation=2,
        **changes,
    )
    collator = Collator(pad_token_id=0, packed=mode == "packed")
    return list(
        DataLoader(dataset, batch_sampler=sampler, collate_fn=collator, num_workers=num_workers)
    )


# -- good data ----------------------------------------------------------------------------------


def test_samples_are_what_was_planned(tmp_path: Path) -> None:
    dataset = build(tmp_path, write(tmp_path, records(tmp_path)))
    assert len(dataset) == 12
    for index in range(len(dataset)):
        (example,) = dataset[Pack((index,))]
        assert len(example.input_ids) == dataset.lengths[index]
        assert len(example.num_tiles) == dataset.tiles[index] == index % 3
        assert (example.sample_index, example.dataset_id) == (index, 0)
        assert example.where == f"{tmp_path / 'train.jsonl'}:{index + 1}"
        if index % 3:
            assert example.pixel_values is not None
            assert example.pixel_values.shape == (index % 3, 3, SIZE, SIZE)
        else:
            assert example.pixel_values is None
    assert journal(tmp_path) == []


@pytest.mark.parametrize("mode", ["random", "grouped", "packed"])
def test_batches_do_not_depend_on_workers(tmp_path: Path, mode: OrderMode) -> None:
    dataset = build(tmp_path, write(tmp_path, records(tmp_path), data_augment=True))
    alone = batches(dataset, mode)
    for with_workers in (batches(dataset, mode, num_workers=2),):
        assert len(alone) == len(with_workers) > 0
        for one, other in zip(alone, with_workers, strict=True):
            assert one.keys() == other.keys()
            for key, value in one.items():
                same = torch.equal(value, other[key]) if torch.is_tensor(value) else None
                assert same if same is not None else value == other[key], key
    seen = sorted(index for batch in alone for index in batch["sample_ids"].tolist())
    assert sorted(set(seen)) == list(range(12))


def test_an_epoch_changes_augmentation_but_not_text(tmp_path: Path) -> None:
    dataset = build(tmp_path, write(tmp_path, records(tmp_path), data_augment=True))
    pack = Pack((1,))
    first, again = dataset[pack][0], dataset[pack][0]
    dataset.set_epoch(1)
    later = dataset[pack][0]
    assert torch.equal(first.pixel_values, again.pixel_values)  # type: ignore[arg-type]
    assert not torch.equal(first.pixel_values, later.pixel_values)  # type: ignore[arg-type]
    assert torch.equal(first.input_ids, later.input_ids)


def test_fillers_complete_the_last_step(tmp_path: Path) -> None:
    dataset = build(tmp_path, write(tmp_path, records(tmp_path, 10)))
    last = batches(dataset, "random")[-1]
    assert (last["loss_weight"].sum(dim=1) == 0).tolist() == [True, True]


def test_dynamic_tiles_are_counted_from_the_stated_size(tmp_path: Path) -> None:
    made = records(tmp_path)
    for number, record in enumerate(made):
        if isinstance(record.get("image"), str):
            record.update(width=20, height=9 + number)
    config = write(tmp_path, made, dynamic_image_size=True, use_thumbnail=True, max_dynamic_patch=4)
    dataset = build(tmp_path, config)
    assert max(dataset.tiles) > 1
    for index in range(len(dataset)):
        (example,) = dataset[Pack((index,))]
        assert example.sample_index == index
        assert sum(example.num_tiles) == dataset.tiles[index]
        assert len(example.input_ids) == dataset.lengths[index]


def test_boxes_are_converted_on_the_fly(tmp_path: Path) -> None:
    made = records(tmp_path)
    made[1]["conversations"] = turns("Where?", "At [10, 5, 20, 10].")
    dataset = build(tmp_path, write(tmp_path, made, box_format="pixel_to_1000"))
    (example,) = dataset[Pack((1,))]
    text = tokenizers.byte_level().decode(example.input_ids)
    assert "At <box>[[500, 500, 1000, 1000]]</box>." in text
    assert len(example.input_ids) == dataset.lengths[1]


def test_a_video_of_a_folder(tmp_path: Path) -> None:
    made = records(tmp_path)
    frames = tmp_path / "images" / "clip"
    frames.mkdir()
    for number in range(5):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(frames / f"{number}.png")
    made.append({"video": "clip", "conversations": turns("What?", "Nothing.")})
    dataset = build(tmp_path, write(tmp_path, made, min_num_frame=2, max_num_frame=3))
    (example,) = dataset[Pack((12,))]
    assert example.num_tiles == (1, 1, 1)
    assert len(example.input_ids) == dataset.lengths[12]
    assert "Frame3: <img>" in tokenizers.byte_level().decode(example.input_ids)


def test_video_files_by_either_reader(tmp_path: Path) -> None:
    """The flag reaches counting and loading; a damaged file is a bad record of both."""
    made = records(tmp_path)
    raw = write_clip(tmp_path / "images" / "a.mp4", seconds=[0, 1, 1.04, 1.08, 5, 6]).read_bytes()
    write_clip(tmp_path / "images" / "a.ts")
    (tmp_path / "images" / "cut.mp4").write_bytes(raw[: len(raw) // 2])
    made.append({"video": "a.mp4", "clip": [4.0, 7.0], "conversations": turns("What?", "That.")})
    made += [{"video": name, "conversations": turns("?", "!")} for name in ("a.ts", "cut.mp4")]
    for backend, num_bad in (("decord", 2), ("pyav", 1)):
        config = write(
            tmp_path,
            made,
            min_num_frame=2,
            max_num_frame=3,
            max_bad_ratio=1.0,
            video_backend=backend,
        )
        dataset = build(tmp_path, config)
        (example,) = dataset[Pack((12,))]
        assert example.num_tiles == (1, 1, 1)  # those at 1.08, 5 and 6 s
        assert len(example.input_ids) == dataset.lengths[12]
        assert int((dataset.lengths[:] < 0).sum()) == num_bad


def test_validation_takes_records_once_and_unaugmented(tmp_path: Path) -> None:
    config = write(tmp_path, records(tmp_path), data_augment=True, repeat_time=2)
    dataset = build_eval_dataset(config, tokenizers.byte_level())
    assert len(dataset) == 12
    first = dataset[Pack((1,))][0].pixel_values
    dataset.set_epoch(1)
    assert torch.equal(first, dataset[Pack((1,))][0].pixel_values)  # type: ignore[arg-type]


# -- lengths ------------------------------------------------------------------------------------


def test_lengths_are_counted_once_and_alike_by_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, records(tmp_path, 30))
    counted = []
    original = lengths_module._count
    monkeypatch.setattr(
        lengths_module, "_count", lambda *args: counted.append(args) or original(*args)
    )
    first = build(tmp_path, config)
    second = build(tmp_path, config)
    assert len(counted) == 1
    assert first.lengths.tolist() == second.lengths.tolist()
    monkeypatch.setattr(lengths_module, "_CHUNK_RECORDS", 7)
    monkeypatch.setenv("INTERNVL_CHAT_CACHE", str(tmp_path / "other"))
    parallel = build(tmp_path, config, num_processes=2)
    assert len(counted) == 2
    assert parallel.lengths.tolist() == first.lengths.tolist()


def test_another_template_or_limit_counts_anew(tmp_path: Path) -> None:
    config = write(tmp_path, records(tmp_path))
    first = build(tmp_path, config)
    for changed in ({"system_message": "longer"}, {"num_image_token": 5}, {"max_seq_length": 50}):
        other = build(tmp_path, replace(config, encode=replace(config.encode, **changed)))
        assert other.lengths.tolist() != first.lengths.tolist()


@pytest.mark.parametrize("limit", [None, 4, 2])
def test_the_flag_bounds_the_tiles_of_a_pack(tmp_path: Path, limit: int | None) -> None:
    dataset = build(tmp_path, write(tmp_path, records(tmp_path)))
    flags = DataArguments(use_packed_ds=True, max_packed_tokens=2000, max_packed_tiles=limit)
    order = arguments.order_config(flags, grouped=False, drop_last=False)
    plan = dataset.plan(0, global_batch_size=1, order=order)
    packs = [pack.indices for step in range(plan.num_steps) for pack in plan.packs(step)]
    assert sorted(index for pack in packs for index in pack) == list(range(len(dataset)))
    tiles = [sum(int(dataset.tiles[index]) for index in pack) for pack in packs]
    assert max(tiles) == limit if limit else max(tiles) == sum(tiles)


# -- bad data -----------------------------------------------------------------------------------


def test_bad_records_are_left_out_of_the_plan_and_journalled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = records(tmp_path)
    made[3] = {"conversations": turns("Q", "")}
    made[5] = {"conversations": turns("<image>", "A")}
    config = write(tmp_path, made, max_bad_ratio=0.5)
    dataset = build(tmp_path, config)
    assert [i for i, length in enumerate(dataset.lengths) if length < 0] == [3, 5]
    assert dataset.bad_samples.counts == {"demo": 2}
    assert [(one["dataset"], one["line"], one["code"]) for one in journal(tmp_path)] == [
        ("demo", 4, "EMPTY_ANSWER"),
        ("demo", 6, "TAG_MISMATCH"),
    ]
    assert journal(tmp_path)[0]["file"] == str(tmp_path / "train.jsonl")
    planned = dataset.plan(0, global_batch_size=2, order=order_config()).samples.tolist()
    assert sorted(planned) == [0, 1, 2, 4, 6, 7, 8, 9, 10, 11]
    again = build(tmp_path, config)
    assert len(journal(tmp_path)) == 2  # not written again
    with (tmp_path / "out/bad_samples.jsonl").open("a") as file:
        file.write(json.dumps(journal(tmp_path)[0]) + "\n")  # what another rank may write too
        file.write('{"dataset": "demo", "fi')  # a line that a crash cut short
    assert again.bad_samples.journalled() == {"demo": 2}


def test_a_folder_that_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    monkeypatch.chdir(folder)
    made = records(Path())
    made[4]["image"] = "none.png"
    config = write(Path(), made, max_bad_ratio=0.5, dynamic_image_size=True)
    monkeypatch.chdir(tmp_path)  # so that all paths hold its name
    config = replace(config, meta_path=str(folder / "meta.json"))
    dataset = build(folder, config)
    assert len(dataset[Pack((1,))][0].input_ids) == dataset.lengths[1] > 0
    assert dataset.lengths[4] < 0
    assert "caf\\udce9" in journal(folder)[0]["reason"]
    assert dataset.bad_samples.journalled() == {"demo": 1}
    build(folder, config)
    assert len(journal(folder)) == 1


def test_only_the_main_rank_says_that_a_length_is_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = write(tmp_path, records(tmp_path), length=99)
    build(tmp_path, config, is_main=False)
    assert "length says 99" not in caplog.text
    build(tmp_path, config)
    assert "length says 99" in caplog.text


def test_a_missing_image_is_replaced_by_the_next_good_sample(tmp_path: Path) -> None:
    made = records(tmp_path)
    (tmp_path / "images" / "7_0.png").unlink()
    dataset = build(tmp_path, write(tmp_path, made, max_bad_ratio=0.5))
    planned = int(dataset.lengths[7])
    (example,) = dataset[Pack((7,))]
    expected = next(i % 12 for i in range(8, 19) if dataset.lengths[i % 12] <= planned)
    assert example.sample_index == expected
    assert len(example.input_ids) <= planned
    assert dataset[Pack((7,))][0].sample_index == expected
    (entry,) = journal(tmp_path)
    assert (entry["line"], entry["code"]) == (8, "MISSING_FILE")
    assert "7_0.png" in entry["reason"]
    assert dataset.bad_samples.total == 1


def test_a_pack_never_grows_beyond_its_limit(tmp_path: Path) -> None:
    made = records(tmp_path)
    for record in made[:3]:
        record["image"] = "gone.png"
    dataset = build(tmp_path, write(tmp_path, made, max_bad_ratio=1.0))
    for pack in (Pack((0, 1, 2, 4)), Pack((2, 11))):
        examples = dataset[pack]
        indices = [example.sample_index for example in examples]
        assert len(set(indices)) == len(indices)
        assert not {0, 1, 2} & set(indices)
        planned = sum(int(dataset.lengths[i]) for i in pack.indices)
        assert sum(len(example.input_ids) for example in examples) <= planned


def test_too_many_bad_records_stop_the_run(tmp_path: Path) -> None:
    made = records(tmp_path)
    made[3] = {"conversations": turns("Q", "")}
    with pytest.raises(DatasetError) as caught:
        build(tmp_path, write(tmp_path, made))
    assert caught.value.exit_code == 3
    assert "1 of 12 records are bad, more than --max_bad_ratio 0.01 allows" in str(caught.value)
    assert "1 x EMPTY_ANSWER" in str(caught.value)
    assert "train.jsonl:4: the answer in turn 1 is empty" in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_missing_images_stop_the_run_from_a_worker(
    tmp_path: Path, num_workers: int
) -> None:
    made = records(tmp_path)
    for record in made[4:8]:
        record["image"] = "gone.png"
    dataset = build(tmp_path, write(tmp_path, made, max_bad_ratio=0.1))
    with pytest.raises(DatasetError) as caught:
        batches(dataset, "random", num_workers=num_workers)
    text = str(caught.value)
    # The second one is too many; another worker may have counted one more by then, and not yet
    # written down why.
    number = "2" if num_workers == 0 else "[234]"
    rule = "of 12 records are bad, more than --max_bad_ratio 0.1 allows"
    assert re.search(rf"{number} {rule}", text)
    assert re.search(rf"{number} x MISSING_FILE", text)
    assert "Traceback" not in text


def test_a_wrong_root_is_found_before_anything_else(tmp_path: Path) -> None:
    config = write(tmp_path, records(tmp_path), root=str(tmp_path))
    with pytest.raises(DatasetError) as caught:
        build(tmp_path, config)
    assert 'dataset "demo": none of the image files of' in str(caught.value)
    assert f'Correct its "root" ({tmp_path})' in str(caught.value)


def test_a_wrong_length_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build(tmp_path, write(tmp_path, records(tmp_path), length=13))
    assert "length says 13" in caplog.text
    assert "holds 12 records" in caplog.text


def test_settings_without_effect_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        build(tmp_path, write(tmp_path, records(tmp_path), weight=2))
    assert "weight has no effect without --use_data_resampling" in caplog.text


def test_resampling_reaches_the_plan(tmp_path: Path) -> None:
    config = write(tmp_path, records(tmp_path), use_data_resampling=True)
    dataset = build(tmp_path, config)
    assert sorted(
        dataset.plan(0, global_batch_size=4, order=order_config()).samples.tolist()
    ) == list(range(12))
