"""The entry point in one process: what is left behind, exit codes, one clear error."""

from __future__ import annotations

import json
import logging
import resource
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from internvl_chat.checkpoint.artifacts import preprocessor_config
from internvl_chat.cli.command import main as cli
from internvl_chat.config import DecodeConfig
from internvl_chat.data.dataset import SftDataset
from internvl_chat.data.epoch_plan import EpochPlan
from internvl_chat.model import InternVLChatModel
from internvl_chat.train.finetune import main
from internvl_chat.train.last_words import chat_command
from tests.support.training import (
    largest_difference,
    logged,
    train_arguments,
    weights,
    write_dataset,
    write_tiny_chat_model,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_chat_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kinds = ("text", "image", "two", "rounds")
    return write_dataset(tmp_path_factory.mktemp("data"), kinds)


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


def test_a_run_and_the_same_again(model: Path, meta: Path, tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    argv = train_arguments(model, meta, output_dir, report_to="tensorboard", max_steps=2)
    assert main(argv) == 0
    assert status(output_dir)["status"] == "complete"
    assert status(output_dir)["exit_code"] == 0
    assert len(logged(output_dir)) == 2
    for rate, seconds in zip(
        logged(output_dir, "samples_per_second"), logged(output_dir, "step_seconds"), strict=True
    ):
        assert rate * seconds == pytest.approx(2)
    arguments = json.loads((output_dir / "arguments.json").read_text())
    assert arguments["global_batch_size"] == 2
    assert arguments["arguments"]["meta_path"] == str(meta)
    assert "torch" in arguments["versions"]
    assert list(output_dir.glob("runs/*/events.out.tfevents.*"))
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"):
        assert (output_dir / name).is_file()

    written = (output_dir / "model.safetensors").stat().st_mtime_ns
    said = (output_dir / "arguments.json").read_bytes()
    assert main(argv) == 0
    assert main([*argv, "--max_steps", "3"]) == 2, "there is no checkpoint to go on from"
    assert main([*argv, "--seed", "8"]) == 2
    assert (output_dir / "model.safetensors").stat().st_mtime_ns == written
    assert (output_dir / "arguments.json").read_bytes() == said


def test_a_finished_folder_is_complete_goes_on_or_refuses(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    meta = write_dataset(tmp_path / "data", ("text", "image", "two", "rounds"))
    output_dir = tmp_path / "out"
    options = {
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "linear",
    }
    options["report_to"] = "tensorboard"
    argv = train_arguments(model, meta, output_dir, **options)
    assert main(argv) == 0
    told = capsys.readouterr().err
    assert "finished: 2 steps in " in told
    assert f"talk to it: {chat_command(output_dir)}\n" in told.splitlines(keepends=True)[-1]
    assert ask_as_told(told) == 0
    assert logged(output_dir, "learning_rate") == [1e-3, 5e-4]
    kept = {path: path.read_bytes() for path in output_dir.glob("*.json") if path.stem != "status"}

    # Nothing would be trained: exit 2, what differs, and what to do.
    shutil.copytree(tmp_path / "data", tmp_path / "more")
    other = write_dataset(tmp_path / "more", ("text", "image", "two", "rounds", "text"))
    lora = ["--use_llm_lora", "4", "--freeze_llm", "True"]
    for flags, difference in (
        (["--learning_rate", "1e-5"], "--learning_rate 0.001 -> 1e-05"),
        (["--max_steps", "1"], "steps 2 -> 1"),
        (
            ["--meta_path", str(other)],
            f"annotation {tmp_path}/data/shapes/records.jsonl (4 records",
        ),
        ([*lora, "--max_steps", "4"], "--freeze_llm False -> True; --use_llm_lora 0 -> 4"),
    ):
        assert main([*argv, *flags]) == 2, flags
        told = capsys.readouterr().err
        assert difference in told
        assert "OUTPUT_DIR=…" in told
        assert "--overwrite_output_dir True" in told
    # What changes nothing: complete, and said to be.
    moved = shutil.copytree(tmp_path / "data", tmp_path / "moved") / "shapes.json"
    assert (
        main([*argv, "--logging_steps", "7", "--meta_path", str(moved), "--report_to", "none"]) == 0
    )
    told = capsys.readouterr().err
    assert f"{output_dir} is complete already (2 steps)" in told
    assert "without effect on the model: --logging_steps 1 -> 7" in told
    assert {path: path.read_bytes() for path in kept} == kept

    # More steps and another rate: it goes on, and the new rate counts from there.
    longer = ["--max_steps", "4", "--learning_rate", "1e-4", "--save_steps", "2"]
    assert main([*argv, *longer]) == 0
    told = capsys.readouterr().err
    assert f"going on from {output_dir}/checkpoint-2: 2 of 4 steps are done, 2 left" in told
    assert "--learning_rate 0.001 -> 0.0001: from step 3 on this run's learning rate" in told
    assert "finished: 4 steps, 2 of them in " in told
    assert "do not match" not in told
    steps = {path.name for path in output_dir.glob("checkpoint-*")}
    assert steps == {"checkpoint-1", "checkpoint-2", "checkpoint-4"}, "the new --save_steps counts"
    assert logged(output_dir, "learning_rate") == pytest.approx([1e-3, 5e-4, 5e-5, 2.5e-5])
    said = json.loads((output_dir / "arguments.json").read_text())
    assert (said["arguments"]["learning_rate"], said["from_step"]) == (1e-4, 2)
    assert [part["arguments"]["learning_rate"] for part in said["earlier"]] == [1e-3]
    assert json.loads((output_dir / "checkpoint-1/arguments.json").read_text())["earlier"] == []
    (folder,) = (output_dir / "runs").iterdir()
    curve = EventAccumulator(str(folder)).Reload()
    assert [point.step for point in curve.Scalars("train/loss")] == [1, 2, 3, 4]


def test_an_unfinished_run_by_the_same_rules(
    model: Path, meta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_dir = tmp_path / "out"
    saving = {
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 3,
        "lr_scheduler_type": "linear",
    }
    argv = train_arguments(model, meta, output_dir, **saving)
    assert main(argv) == 0
    rates, before = logged(output_dir, "learning_rate"), logged(output_dir)
    # As if it had been killed in step 3, with damage to the manifest of its last checkpoint.
    for path in [*output_dir.glob("*.json"), *output_dir.glob("*.safetensors")]:
        path.unlink()
    shutil.rmtree(output_dir / "checkpoint-3")
    manifest = output_dir / "checkpoint-2/manifest.json"
    manifest.write_text(manifest.read_text().replace('"size"', '"sise"', 1))

    assert main([*argv, "--weight_decay", "0.1"]) == 2
    told = capsys.readouterr().err
    assert f"{output_dir}/checkpoint-1 was written with other arguments: --weight_decay 0.0" in told
    assert main([*argv, "--max_steps", "1"]) == 2
    assert "steps 3 -> 1" in capsys.readouterr().err
    assert not (output_dir / "arguments.json").exists()
    split = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2"]
    assert main([*argv, *split]) == 0
    told = capsys.readouterr().err
    assert "passing over" in told
    assert "wants a size and a sha256" in told
    assert "going on from" in told
    assert "WARNING internvl_chat.train.resuming: --" not in told
    assert logged(output_dir, "learning_rate") == rates
    assert logged(output_dir) == pytest.approx(before, rel=1e-4)


def test_a_disk_that_is_full_in_the_middle_of_a_run(
    model: Path, meta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_dir = tmp_path / "out"
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    weights = (model / "model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (weights + 4096, before[1]))  # not for the optimizer
    try:
        code = main(train_arguments(model, meta, output_dir, **saving))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 7
    told = capsys.readouterr().err
    assert "Traceback" not in told
    (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {output_dir}: cannot be written any more: ")
    assert line.endswith("it starts anew.")
    assert (status(output_dir)["status"], status(output_dir)["exit_code"]) == ("failed", 7)
    assert not list(output_dir.glob("checkpoint-*"))


def ask_as_told(told: str) -> int:
    """Type the command that a run's last line shows, with a question; returns its exit code."""
    words = shlex.split(told.split("talk to it: ")[1].splitlines()[0])
    return cli([*words[words.index("chat") :], "Say ooo", "--max-new-tokens", "2"])


def test_starting_anew_keeps_the_old_until_the_first_save(
    model: Path, meta: Path, tmp_path: Path
) -> None:
    output_dir = tmp_path / "out"
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    assert main(train_arguments(model, meta, output_dir, **saving)) == 0
    shutil.copytree(output_dir / "checkpoint-2", output_dir / "checkpoint-9")

    anew = {**saving, "overwrite_output_dir": True, "save_total_limit": 1}
    broken = {**anew, "learning_rate": 1e30, "optim": "sgd", "max_grad_norm": 0}
    assert main(train_arguments(model, meta, output_dir, **broken)) == 5
    assert (output_dir / "checkpoint-2").is_dir()
    assert (output_dir / "checkpoint-9").is_dir()

    before = (output_dir / "checkpoint-2/model.safetensors").stat().st_mtime_ns
    assert main(train_arguments(model, meta, output_dir, **anew, seed=8)) == 0
    assert not (output_dir / "checkpoint-9").exists()
    assert (output_dir / "checkpoint-2/model.safetensors").stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"meta_path": "/nonexistent/meta.json"}, 2, "--meta_path /nonexistent/meta.json: no such"),
        ({"learning_rate": "fast"}, 2, "invalid float value: 'fast'"),
        ({"resume_from_checkpoint": True}, 4, "no valid checkpoint to continue from"),
        ({"resume_from_checkpoint": "/nonexistent"}, 4, "/nonexistent: cannot be continued"),
        ({"learning_rate": 1e30, "optim": "sgd", "max_grad_norm": 0}, 5, "at step"),
    ],
)
def test_exit_codes(
    model: Path,
    meta: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    code: int,
    message: str,
) -> None:
    output_dir = tmp_path / "out"
    output_dir.mkdir()
    (output_dir / "mine.txt").write_text("kept")
    assert main(train_arguments(model, meta, output_dir, **options)) == code
    printed = capsys.readouterr().err
    assert f"error: {message}" in printed or message in printed
    assert "Traceback" not in printed
    assert status(output_dir)["exit_code"] == code
    assert message in status(output_dir)["error"]
    assert (output_dir / "mine.txt").read_text() == "kept"
    assert not (output_dir / "model.safetensors").exists()


def test_a_folder_that_nobody_can_write_into(
    model: Path, meta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_arguments(model, meta, Path("/proc/run"))) == 2
    told = capsys.readouterr().err
    assert "error: --output_dir /proc/run: cannot be written into (No such file" in told
    assert "Traceback" not in told


def test_malformed_meta(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = tmp_path / "meta.json"
    meta.write_text('{"shapes": {"root": "x"}}')
    assert main(train_arguments(model, meta, tmp_path / "out")) == 3
    assert 'entry "shapes"' in capsys.readouterr().err


def test_too_many_bad_records(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = write_dataset(tmp_path / "data", ["text", "image", "image"])
    annotation = tmp_path / "data/shapes/records.jsonl"
    lines = annotation.read_text().splitlines()
    annotation.write_text("\n".join([lines[0], "{broken", lines[2]]) + "\n")
    assert main(train_arguments(model, meta, tmp_path / "out")) == 3
    assert "records.jsonl" in capsys.readouterr().err
    former = (tmp_path / "out/bad_samples.jsonl").read_text()
    assert '"line":2' in former

    # Mended as the message says: what was bad is told no more.
    annotation.write_text("\n".join([lines[0], lines[1], lines[2]]) + "\n")
    assert main(train_arguments(model, meta, tmp_path / "out")) == 0
    assert "skipped records: none" in capsys.readouterr().err
    results = json.loads((tmp_path / "out/train_results.json").read_text())
    assert results["bad_samples"] == {}
    assert not (tmp_path / "out/bad_samples.jsonl").exists()
    assert (tmp_path / "out/bad_samples.earlier.jsonl").read_text() == former


def test_tolerated_bad_records_are_in_the_summary(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    meta = write_dataset(tmp_path / "data", ["text", "image", "image"])
    annotation = tmp_path / "data/shapes/records.jsonl"
    lines = annotation.read_text().splitlines()
    annotation.write_text("\n".join([lines[0], "{broken", lines[2]]) + "\n")
    argv = train_arguments(model, meta, tmp_path / "out", max_bad_ratio=0.5)
    assert main(argv) == 0
    results = json.loads((tmp_path / "out/train_results.json").read_text())
    assert results["bad_samples"] == {"shapes": 1}


def test_template_of_another_tokenizer(
    model: Path, meta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = train_arguments(model, meta, tmp_path / "out", conv_style="phi3-chat")
    assert main(argv) == 2
    assert "<|end|>" in capsys.readouterr().err


def test_an_adapter_that_peft_alone_wrote_is_continued(
    model: Path, meta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = "language_model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    wrapped = get_peft_model(
        InternVLChatModel.from_pretrained(model),
        LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=layers),
    )
    adapter = tmp_path / "adapter"
    wrapped.save_pretrained(adapter)
    path = adapter / "adapter_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(model)})
    )
    assert not (adapter / "config.json").exists()
    frozen = {"freeze_llm": True, "freeze_mlp": True, "freeze_backbone": True}
    argv = train_arguments(adapter, meta, tmp_path / "out", **frozen, use_llm_lora=4, max_steps=2)
    assert main(argv) == 0
    assert ask_as_told(capsys.readouterr().err) == 0
    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file(tmp_path / "out/adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)


def test_pixel_statistics_are_the_checkpoints_and_others_are_told(
    model: Path, meta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    processor = preprocessor_config(28, "clip")
    (copy / "preprocessor_config.json").write_text(json.dumps(processor))
    argv = train_arguments(copy, meta, tmp_path / "one", max_steps=1, normalize_type="imagenet")
    assert main(argv) == 0
    told = capsys.readouterr().err
    assert f"--normalize_type imagenet goes before {copy}, which was made with clip" in told
    assert "apply_exif_orientation False -> True, rgba_background_color None -> [255" in told
    saved = json.loads((tmp_path / "one/preprocessor_config.json").read_text())
    assert DecodeConfig.of_preprocessor(saved) == DecodeConfig.as_shown()
    rule = DecodeConfig.as_shown(image_backend="fast", apply_exif_orientation=False)
    processor = preprocessor_config(28, "clip", rule)
    (copy / "preprocessor_config.json").write_text(json.dumps(processor))
    flags = {"image_backend": "fast", "apply_exif_orientation": False}
    argv = train_arguments(copy, meta, tmp_path / "two", max_steps=1, **flags)
    assert main(argv) == 0
    told = capsys.readouterr().err
    assert "goes before" not in told
    assert "image files become RGB by another rule" not in told
    saved = json.loads((tmp_path / "two/preprocessor_config.json").read_text())
    assert saved == processor


def test_missing_weights(model: Path, meta: Path, tmp_path: Path, capsys: Any) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            (broken / path.name).write_bytes(path.read_bytes())
    assert main(train_arguments(broken, meta, tmp_path / "out")) == 2
    assert str(broken) in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--use_llm_lora" in shown
    assert "internvl-chat train examples/configs" in shown


def test_far_into_a_packed_run_only_its_own_epochs_are_planned(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Uninterrupted and resumed are the same bit for bit."""
    meta = write_dataset(tmp_path / "data", ("text",) * 13)
    planned: list[int] = []
    plan = SftDataset.plan

    def counted(self: SftDataset, epoch: int, **given: Any) -> EpochPlan:
        planned.append(epoch)
        whole = plan(self, epoch, **given)
        # As in data of many windows, epochs are not of one length: here every other one is shorter.
        return replace(whole, num_steps=whole.num_steps - epoch % 2)

    monkeypatch.setattr(SftDataset, "plan", counted)
    options = {
        "use_packed_ds": True,
        "max_packed_tokens": 256,
        "per_device_train_batch_size": 1,
        "max_steps": 40,
        "save_strategy": "steps",
        "save_steps": 30,
        "logging_steps": 1,
    }
    once, again = tmp_path / "once", tmp_path / "again"
    assert main(train_arguments(model, meta, once, **options)) == 0
    assert "run: 40 steps in about " in capsys.readouterr().err
    position = json.loads((once / "checkpoint-30/data_position.json").read_text())
    state = json.loads((once / "trainer_state.json").read_text())
    begun = position["epoch"]
    assert planned == list(range(state["num_train_epochs"]))
    assert begun > 3
    assert state["epoch"] > begun

    shutil.copytree(once / "checkpoint-30", again / "checkpoint-30")
    planned.clear()
    assert main(train_arguments(model, meta, again, **options)) == 0
    assert planned == [0, *range(begun, state["num_train_epochs"])]
    assert logged(again) == logged(once)
    assert largest_difference(weights(once), weights(again)) == 0
    assert json.loads((again / "trainer_state.json").read_text())["epoch"] == state["epoch"]
