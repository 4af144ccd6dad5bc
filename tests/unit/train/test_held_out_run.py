"""Runs that hold records out of their training data and stop early, in one process."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.cli.command import main as cli
from internvl_chat.train.finetune import main
from tests.support.training import (
    largest_difference,
    logged,
    train_arguments,
    weights,
    write_dataset,
    write_tiny_chat_model,
)

ADAPTER = "adapter_model.safetensors"
# So high a rate that it soon gets worse.
STOPPING = {
    "val_split": 0.25,
    "eval_steps": 1,
    "early_stopping_patience": 2,
    "max_steps": 20,
    "learning_rate": 0.3,
    "save_strategy": "steps",
    "save_total_limit": 2,
    "freeze_llm": True,
    "freeze_backbone": True,
    "use_llm_lora": 4,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_chat_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve records in one dataset, one in another."""
    folder = tmp_path_factory.mktemp("data")
    kinds = ("text", "image", "two", "rounds") * 3
    entries = json.loads(write_dataset(folder, kinds, name="shapes").read_text())
    entries |= json.loads(write_dataset(folder, ("image",), name="single").read_text())
    path = folder / "meta.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """The entry point sets logging up for a process of its own."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def status(output_dir: Path) -> dict[str, Any]:
    return json.loads((output_dir / "status.json").read_text())


def held_out(output_dir: Path) -> list[dict[str, Any]]:
    lines = (output_dir / "held_out.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_that_stops_early(
    model: Path, meta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_dir = tmp_path / "out"
    argv = train_arguments(model, meta, output_dir, **STOPPING)
    assert main(argv) == 0
    told = capsys.readouterr().err
    assert "shapes  12 records  held out         3             9 samples an epoch" in told
    assert "single   1 records  held out      none             1 samples an epoch" in told
    assert "validation: 3 records of 1 dataset, every step and in the end; stops after 2" in told
    losses = logged(output_dir, "eval_loss")
    assert logged(output_dir, "eval_loss/shapes") == losses
    best, last = losses.index(min(losses)) + 1, len(losses)
    assert last == best + 2 < 20
    sentence = f"stopped early at step {last} of 20: eval_loss has not improved for 2 evaluations"
    assert sentence in told
    assert f"best validation: eval_loss {min(losses):.4f} at step {best}" in told
    assert f"that of step {best}, which validated best" in told
    found = status(output_dir)
    assert (found["status"], found["stopped_early"]) == ("complete", sentence)
    assert found["best"] == {"step": best, "metric": "eval_loss", "value": min(losses)}
    assert cli(["status", str(output_dir)]) == 0
    shown = capsys.readouterr().out
    assert f"{sentence}; best eval_loss {min(losses):.4f} at step {best}" in shown
    results = json.loads((output_dir / "train_results.json").read_text())
    assert (results["global_step"], results["planned_steps"]) == (last, 20)

    # The best adapter and the last checkpoint are what is left.
    left = {path.name for path in output_dir.glob("checkpoint-*")}
    assert left == {f"checkpoint-{best}", f"checkpoint-{last}"}
    result = weights(output_dir, ADAPTER)
    assert largest_difference(result, weights(output_dir / f"checkpoint-{best}", ADAPTER)) == 0
    assert largest_difference(result, weights(output_dir / f"checkpoint-{last}", ADAPTER)) > 0

    # Again: complete, refused, or on from where it stopped.
    assert main(argv) == 0
    assert f"is complete already (stopped early at step {last} of 20)" in capsys.readouterr().err
    assert main([*argv, "--max_steps", "30"]) == 0
    assert "to go on to step 30 raise --early_stopping_patience" in capsys.readouterr().err
    for flags, difference in (
        (["--val_split", "0.5"], "--val_split 0.25 -> 0.5"),
        (["--val_split_seed", "1"], "--val_split_seed 42 -> 1"),
        (["--max_samples", "4"], "--max_samples none -> 4"),
        (["--early_stopping_patience", "1"], "--early_stopping_patience 2 -> 1"),
        (["--max_steps", str(last)], f"steps 20 -> {last}"),
    ):
        assert main([*argv, *flags]) == 2, flags
        assert difference in capsys.readouterr().err
    assert largest_difference(result, weights(output_dir, ADAPTER)) == 0
    assert main([*argv, "--early_stopping_patience", "3"]) == 0
    told = capsys.readouterr().err
    assert f"going on from {output_dir}/checkpoint-{last}" in told
    assert f"stopped early at step {last + 1} of 20" in told


def test_a_run_that_was_killed_counts_on(model: Path, meta: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert main(train_arguments(model, meta, whole, **{**STOPPING, "save_total_limit": 20})) == 0
    losses = logged(whole, "eval_loss")
    best, last = losses.index(min(losses)) + 1, len(losses)
    # In the middle of its patience, and between its stop and its last word.
    for step in (last - 1, last):
        output_dir = tmp_path / f"from{step}"
        for kept in {best, step}:
            shutil.copytree(whole / f"checkpoint-{kept}", output_dir / f"checkpoint-{kept}")
        assert main(train_arguments(model, meta, output_dir, **STOPPING)) == 0
        assert logged(output_dir, "eval_loss") == losses
        assert logged(output_dir) == logged(whole)
        again, once = (weights(folder, ADAPTER) for folder in (output_dir, whole))
        assert largest_difference(again, once) == 0
        assert status(output_dir)["best"]["step"] == best


def test_what_is_held_out_depends_on_the_data_only(
    model: Path, meta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = {"val_split": 2, "max_steps": 1, "eval_strategy": "epoch"}
    turned = tmp_path / "turned.json"
    entries = {
        name: {**entry, "repeat_time": 2.5} for name, entry in json.loads(meta.read_text()).items()
    }
    turned.write_text(json.dumps(dict(reversed(entries.items()))))
    for name, path, options in (
        ("plain", meta, {}),
        ("other", turned, {"seed": 9, "use_packed_ds": True, "dataloader_num_workers": 1}),
    ):
        argv = train_arguments(model, path, tmp_path / name, **split, **options)
        assert main(argv) == 0, capsys.readouterr().err
    lines = held_out(tmp_path / "plain")
    assert held_out(tmp_path / "other") == lines
    capsys.readouterr()
    asked = ["eval", "prompts", "--meta", str(turned), "--held-out", str(tmp_path / "plain")]
    assert cli([*asked, "--json"]) == 0
    questions = json.loads(capsys.readouterr().out)
    rows = [one["id"].removeprefix("shapes/").partition("#")[0] for one in questions]
    assert list(dict.fromkeys(rows)) == [str(one["record"]) for one in lines]
    assert [one["dataset"] for one in lines] == ["shapes", "shapes"]
    assert {Path(one["file"]).name for one in lines} == {"records.jsonl"}
    first, second = (logged(tmp_path / name, "eval_loss") for name in ("plain", "other"))
    assert len(first) == len(second) == 1
    capsys.readouterr()
    assert main(train_arguments(model, meta, tmp_path / "few", **split, max_samples=4)) == 0
    told = capsys.readouterr().err
    assert "shapes  4 of 12 records  held out         2             2 samples an epoch" in told
    assert all(one["line"] <= 4 for one in held_out(tmp_path / "few"))


def test_the_best_of_several_evaluations_is_one_that_was_saved(
    model: Path, meta: Path, tmp_path: Path
) -> None:
    options = {**STOPPING, "early_stopping_patience": 9, "max_steps": 4, "save_steps": 3}
    output_dir = tmp_path / "out"
    assert main(train_arguments(model, meta, output_dir, **options)) == 0
    losses = logged(output_dir, "eval_loss")
    assert len(losses) == 4
    step = min((3, 4), key=lambda number: losses[number - 1])
    assert status(output_dir)["best"] == {
        "step": step,
        "metric": "eval_loss",
        "value": losses[step - 1],
    }
    result = weights(output_dir, ADAPTER)
    assert largest_difference(result, weights(output_dir / f"checkpoint-{step}", ADAPTER)) == 0


def test_nothing_to_hold_out(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = write_dataset(tmp_path / "data", ("image",))
    assert main(train_arguments(model, meta, tmp_path / "out", val_split=0.1)) == 3
    assert "--val_split 0.1 finds nothing to hold out" in capsys.readouterr().err


def test_held_out_records_that_are_bad(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = write_dataset(tmp_path / "data", ("image",) * 12)
    options = {"val_split": 2, "max_steps": 1, "max_bad_ratio": 0.5}
    assert main(train_arguments(model, meta, tmp_path / "good", **options)) == 0
    lines = [one["line"] for one in held_out(tmp_path / "good")]
    annotation = tmp_path / "data/shapes/records.jsonl"
    records = [json.loads(text) for text in annotation.read_text().splitlines()]
    codes = {}
    for count in (1, 2):
        records[lines[count - 1] - 1]["conversations"][1]["value"] = ""  # by the image as before
        annotation.write_text("".join(json.dumps(record) + "\n" for record in records))
        output_dir = tmp_path / f"{count} bad"
        codes[count] = main(train_arguments(model, meta, output_dir, **options))
        journal = (output_dir / "bad_samples.jsonl").read_text().splitlines()
        assert [json.loads(text)["line"] for text in journal] == lines[:count]
    assert codes == {1: 0, 2: 3}
    assert [one["line"] for one in held_out(tmp_path / "1 bad")] == lines[1:]
    assert "all records that --val_split holds out are bad" in capsys.readouterr().err
