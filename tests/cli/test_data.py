"""``internvl-chat data …`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl_chat.cli import main
from tests.support import tokenizers


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERNVL_CHAT_CACHE", str(tmp_path / "cache"))
    tokenizers.byte_level().save_pretrained(tmp_path / "tokenizer")
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    rows: list[dict[str, Any]] = [
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
        {
            "image": "a.png",
            "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "é"}],
        },
        {"conversations": [{"from": "human", "value": "Hi"}]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {
        "root": str(tmp_path),
        "annotation": str(tmp_path / "a.jsonl"),
        "data_augment": False,
        "repeat_time": 1,
        "length": 3,
    }
    (tmp_path / "meta.json").write_text(json.dumps({"one": entry, "two": entry}))
    return tmp_path


def run(folder: Path, *options: str) -> int:
    return main(
        [
            "data",
            "preview",
            str(folder / "meta.json"),
            *("--tokenizer", str(folder / "tokenizer")),
            *("--conv-style", "Hermes-2"),
            *("--num-image-token", "2"),
            *("--max-seq-length", "2048"),
            *("--force-image-size", "14"),
            *options,
        ]
    )


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--dataset", "two", "--index", "0:2", "--json") == 0
    text, image = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(image) == [
        "dataset",
        "file",
        "line",
        "text",
        "input_ids",
        "labels",
        "num_images",
        "num_tiles",
        "image_sizes",
        "length",
        "truncated",
    ]
    tokenizer = tokenizers.byte_level()
    for one in (text, image):
        expected = tokenizer(one["text"], add_special_tokens=False)["input_ids"]
        assert one["input_ids"] == expected
        assert one["length"] == len(expected) == len(one["labels"])
    assert image["text"].endswith(
        "<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT></img>\nWhat?<|im_end|>"
        "<|im_start|>assistant\né<|im_end|>"
    )
    supervised = [label for label in image["labels"] if label != -100]
    assert supervised == tokenizer("é<|im_end|>", add_special_tokens=False)["input_ids"]
    assert (image["dataset"], image["file"], image["line"]) == ("two", str(folder / "a.jsonl"), 2)
    assert (image["num_images"], image["num_tiles"], image["image_sizes"]) == (1, 1, [[20, 10]])
    assert (text["num_images"], text["num_tiles"], text["image_sizes"]) == (0, 0, [])
    assert image["truncated"] is False


def test_for_reading(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--dataset", "one", "--index", "1") == 0
    shown = capsys.readouterr().out
    assert "<IMG_CONTEXT>x2</img>" in shown
    assert "1 images [[20, 10]], 1 tiles" in shown


def test_what_is_supervised_is_marked_where_no_colours_show(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--dataset", "one", "--index", "1")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    assert run(folder, *arguments) == 0  # into a pipe
    plain = capsys.readouterr().out
    assert "supervised ({+…+}); 1 images" in plain
    assert plain.endswith("<|im_start|>assistant\n{+é<|im_end|>+}\n")
    assert plain.count("{+") == 2
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert run(folder, *arguments) == 0
    coloured = capsys.readouterr().out
    assert "32mé<|im_end|>\x1b[0m" in coloured
    assert "{+" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(folder, *arguments) == 0
    assert "{+é<|im_end|>+}" in capsys.readouterr().out


def test_a_bad_record_is_reported_and_the_others_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "--dataset", "one", "--index", "1:3", "--json") == 3
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert err == f"error: {folder / 'a.jsonl'}:3: 1 turns: the last question has no answer\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "tow"], "no dataset 'tow'. Did you mean 'two'? Known: one, two."),
        ([], "the meta names several datasets. Choose --dataset: one, two."),
        (["--dataset", "one", "--index", "3"], "3 is not within the 3 records of one"),
        (["--dataset", "one", "--index", "x"], "'x' is no record"),
        (["--dataset", "one", "--index", "2:1"], "2:1 is not within"),
        (["--dataset", "one", "--conv-style", "Hermes"], "Did you mean 'Hermes-2'"),
        (["--dataset", "one", "--tokenizer", "nowhere"], "nowhere: no such directory"),
    ],
)
def test_wrong_use(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(folder, *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


def test_settings_come_from_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder / "model"
    tokenizers.byte_level().save_pretrained(model)
    config = {
        "model_type": "internvl_chat",
        "template": "internvl2_5",
        "force_image_size": 28,
        "downsample_ratio": 0.5,
        "vision_config": {"patch_size": 7, "image_size": 14},
    }
    (model / "config.json").write_text(json.dumps(config))
    command = ["data", "preview", str(folder / "meta.json"), "--model", str(model)]
    assert main([*command, "--dataset", "one", "--index", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["text"].count("<IMG_CONTEXT>") == 4
    assert "<|im_end|>\n<|im_start|>user" in shown["text"]
    assert main([*command[:3], "--model", str(folder)]) == 2
    assert "no config.json in it" in capsys.readouterr().err


def test_index_takes_the_flags_of_the_job(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "index", str(folder / "meta.json"), "--tokenizer", str(folder / "tokenizer")]
    command += ["--max-bad-ratio", "0.5"]
    counted = folder / "cache"
    for flags, files in (
        (["--max_seq_length", "512"], 1),
        (["--max-seq-length", "512"], 1),  # the same, in the verb's own spelling
        (["--max_seq_length", "500"], 2),
    ):
        assert main([*command, *flags]) == 0
        assert len(list(counted.glob("a-*.lengths.npy"))) == files
    assert main([*command, "--max_seq_lenth", "512"]) == 2
    assert "max_seq_length" in capsys.readouterr().err


def test_index_fills_the_cache(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "index", str(folder / "meta.json"), "--tokenizer", str(folder / "tokenizer")]
    assert main([*command, "--max-bad-ratio", "0.5"]) == 0
    assert "6 samples of 2 datasets" in capsys.readouterr().out
    assert list((folder / "cache").glob("a-*.offsets"))
    assert len(list((folder / "cache").glob("a-*.lengths.npy"))) == 1  # the same file twice
    assert main(command) == 3
    assert "are bad, more than --max_bad_ratio 0.01 allows" in capsys.readouterr().err
