"""The code samples of the user guide, letter for letter, on the shipped tiny model.

``samples/`` holds them as the guide prints them. What a sample takes for granted is supplied from
outside: the checkpoint behind its published name, a device. Pictures and video are shipped where it
looks for them.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training import ROOT

SAMPLES = Path(__file__).with_name("samples")
TINY = ROOT / "pretrained/internvl-chat-tiny"
PUBLISHED = "OpenGVLab/InternVL-Chat-V1-2-Plus"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with the shipped examples; ``.cuda()`` leaves things where they are."""
    (tmp_path / "examples").mkdir()
    for name in ("image1.jpg", "image2.jpg", "red-panda.mp4"):
        shutil.copy(ROOT / "examples" / name, tmp_path / "examples" / name)
    monkeypatch.chdir(tmp_path)
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *args, **kwargs: self)
        monkeypatch.setattr(torch.nn.Module, "cuda", lambda self, *args, **kwargs: self)
    return tmp_path


def source(name: str) -> str:
    return (SAMPLES / f"{name}.py").read_text(encoding="utf-8").replace(PUBLISHED, TINY.as_posix())


def run(name: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a sample; returns what it has defined."""
    names = {} if names is None else names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(source(name), name, "exec"), names)
    return names


def test_samples_name_the_published_checkpoint_once_each() -> None:
    files = sorted(path.stem for path in SAMPLES.glob("*.py"))
    assert len(files) == 11
    for name in files:
        code = (SAMPLES / f"{name}.py").read_text(encoding="utf-8")
        assert code.count(PUBLISHED) == (name != "streaming")


def test_load_in_16_bit(place: Path) -> None:
    model = run("load_16_bit")["model"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training


def test_load_in_8_bit(place: Path) -> None:
    model = run("load_8_bit")["model"]
    layer = model.language_model.model.layers[0]
    assert layer.self_attn.q_proj.weight.dtype == torch.int8
    for kept in (model.language_model.lm_head, model.mlp1[1]):
        assert kept.weight.dtype == torch.bfloat16


def test_pure_text(place: Path) -> None:
    names = run("pure_text")
    assert [question for question, _ in names["history"]] == [
        "Hello, who are you?",
        "Can you tell me a story?",
    ]
    assert all(isinstance(answer, str) and answer for _, answer in names["history"])


def test_single_image_and_its_streamed_answer(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run("single_image")
    assert names["pixel_values"].shape == (1, 3, 112, 112)
    asked = names["model"].chat(
        names["tokenizer"], names["pixel_values"], "What shape is red?", {"max_new_tokens": 8}
    )
    assert asked == "star"
    capsys.readouterr()
    run("streaming", names)
    names["thread"].join(timeout=60)
    # The streamer gives the text as it is decoded, chat() cuts and strips it at the end.
    assert names["generated_text"].replace("<|im_end|>", "").strip() == names["response"]
    assert capsys.readouterr().out == names["generated_text"]


def test_single_image_multi_round(place: Path) -> None:
    names = run("single_image_multi_round")
    questions = [question for question, _ in names["history"]]
    assert questions[1] == "Please write a poem according to the image."
    assert len(names["history"]) == 2


@pytest.mark.parametrize(("name", "pictures"), [("combined_images", 1), ("separate_images", 2)])
def test_two_images(place: Path, name: str, pictures: int) -> None:
    names = run(name)
    assert names["pixel_values"].shape[0] == 2
    assert names["history"][0][0].count("<image>") == pictures
    assert len(names["history"]) == 2


def test_batch_equals_one_by_one(place: Path) -> None:
    names = run("batch")
    settings = names["generation_config"]
    for question, pixels, answer in zip(
        names["questions"], names["pixel_values"].split(1), names["responses"], strict=True
    ):
        assert names["model"].chat(names["tokenizer"], pixels, question, settings) == answer


def test_video(place: Path) -> None:
    names = run("video")
    assert names["num_patches_list"] == [1] * 8
    assert names["pixel_values"].shape == (8, 3, 112, 112)
    assert names["history"][0][0].startswith("Frame1: <image>\nFrame2: <image>\n")
    assert len(names["history"]) == 2
