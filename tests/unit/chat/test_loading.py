"""Loading for inference: places, numbers, what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BitsAndBytesConfig

from internvl_chat.chat import load_image, load_model, load_video, split_model
from internvl_chat.chat.session import ChatSession
from internvl_chat.checkpoint.artifacts import preprocessor_config
from internvl_chat.checkpoint.surgery.export import export
from internvl_chat.config import DecodeConfig, NormalizeType
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model import InternVLChatConfig, InternVLChatModel
from internvl_chat.model.constants import NORMALIZATION
from tests.support.lora_checkpoints import logits_for, save_base, save_lora
from tests.support.training import write_tiny_chat_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_chat_model(tmp_path_factory.mktemp("chat") / "model"))


def test_on_a_cpu_in_fp32_by_default(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model, tokenizer = load_model(checkpoint)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.device == torch.device("cpu")
    assert not model.training
    answer = model.chat(tokenizer, None, "Hello", {"max_new_tokens": 3})
    assert isinstance(answer, str)


def test_dtype_and_kernel_are_taken(checkpoint: str) -> None:
    model, _ = load_model(
        checkpoint, dtype=torch.bfloat16, device="cpu", attn_implementation="eager"
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.language_model.config._attn_implementation == "eager"
    assert model.vision_model.config._attn_implementation == "eager"


def test_parts_on_disk_answer_like_the_whole_in_memory(checkpoint: str, tmp_path: Path) -> None:
    whole, tokenizer = load_model(checkpoint, device="cpu")
    places = {
        name: "disk" if ".layers." in name else "cpu" for name in split_model(whole.config, 1)
    }
    parted, _ = load_model(checkpoint, device_map=places, offload_dir=str(tmp_path / "disk"))
    assert parted.hf_device_map["language_model.model.layers.0"] == "disk"
    side = whole.config.force_image_size
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, side, side)
    for pixel_values, question in ((pixels, "What?"), (None, "Hello")):
        answers = [
            model.chat(tokenizer, pixel_values, question, {"max_new_tokens": 6, "do_sample": False})
            for model in (whole, parted)
        ]
        assert answers[0] == answers[1]


def test_settings_that_exclude_each_other(checkpoint: str) -> None:
    with pytest.raises(ConfigError, match="device and device_map exclude"):
        load_model(checkpoint, device="cpu", device_map="auto")
    with pytest.raises(ConfigError, match="device and gpus exclude"):
        load_model(checkpoint, device="cpu", gpus=2)
    four_bits = BitsAndBytesConfig(load_in_4bit=True)
    with pytest.raises(ConfigError, match="load_in_8bit and quantization_config"):
        load_model(checkpoint, load_in_8bit=True, quantization_config=four_bits)


def test_a_number_of_gpus(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="gpus: 2 asked for, 0 found"):
        load_model(checkpoint, gpus=2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = InternVLChatConfig.from_pretrained(checkpoint)
    maps = []

    def loaded(path: str, **options: Any) -> torch.nn.Module:
        maps.append(options["device_map"])
        return InternVLChatModel(config)

    monkeypatch.setattr(InternVLChatModel, "from_pretrained", loaded)
    load_model(checkpoint, gpus=2)
    assert maps == [split_model(config, 2)]


def test_lora_layers_inside_a_checkpoint_are_not_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_lora(save_base(tmp_path / "base"), tmp_path / "lora", adapter_only=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="carries LoRA layers inside, which cannot be spread"):
        load_model(str(tmp_path / "lora"), gpus=2)


def test_no_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read \(No such file"):
        load_model(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"1 missing: language_model\.model\.norm\.weight"),
        ("surplus", r"1 surplus: mlp1\.9\.bias"),
        ("empty", "1 of zero size: language_model"),
        ("truncated", r"truncated: \d+ bytes where its header promises"),
        (
            "llama",
            r"model_type is 'llama', wanted 'internvl_chat'\. Give a chat checkpoint of this",
        ),
        ("template", "no chat template 'Hermes-3'"),
    ],
)
def test_broken_checkpoints_are_told_before_a_weight_is_read(
    checkpoint: str, tmp_path: Path, damage: str, message: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    break_checkpoint(broken, damage)
    with pytest.raises(CheckpointError, match=message):
        load_model(str(broken))


@pytest.mark.parametrize("adapter_only", [True, False])
def test_lora_layers_stay_as_they_are_in_int8(tmp_path: Path, adapter_only: bool) -> None:
    base = save_base(tmp_path / "base")
    saved = save_lora(base, tmp_path / "lora", adapter_only=adapter_only)
    model, _ = load_model(str(tmp_path / "lora"), device="cpu", load_in_8bit=True)
    lora = [p.dtype for name, p in model.named_parameters() if "lora_" in name]
    assert set(lora) == {torch.float32}
    assert any(p.dtype == torch.int8 for p in model.parameters())
    wanted = logits_for(saved)
    assert (logits_for(model) - wanted).abs().max() < 0.2 * wanted.std()


def test_an_adapter_on_offloaded_weights_is_refused(tmp_path: Path) -> None:
    """PEFT's layers find no weights there: the logits were no numbers."""
    saved = save_lora(save_base(tmp_path / "base"), tmp_path / "lora", adapter_only=True)
    places = dict.fromkeys(split_model(saved.config, 1), "cpu")
    # Where there is a GPU the weights would be bf16, also those that do not lie on it.
    everywhere, _ = load_model(str(tmp_path / "lora"), device_map=places, dtype=torch.float32)
    assert (logits_for(everywhere) - logits_for(saved)).abs().max() < 1e-5
    places["language_model.model.layers.0"] = "disk"
    with pytest.raises(
        CheckpointError, match=r"does not work on offloaded weights\. Merge it first"
    ):
        load_model(str(tmp_path / "lora"), device_map=places, offload_dir=str(tmp_path / "disk"))


def test_quantised_lora_layers_are_refused(tmp_path: Path) -> None:
    save_lora(save_base(tmp_path / "base"), tmp_path / "lora", adapter_only=False)
    settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    with pytest.raises(ValueError, match=r"lora_A.* was quantised"):
        load_model(str(tmp_path / "lora"), device="cpu", quantization_config=settings)


def test_a_checkpoint_saved_in_int8(checkpoint: str, tmp_path: Path) -> None:
    model, tokenizer = load_model(checkpoint, device="cpu", load_in_8bit=True)
    model.save_pretrained(tmp_path / "int8")
    tokenizer.save_pretrained(tmp_path / "int8")
    again, _ = load_model(str(tmp_path / "int8"), device="cpu")
    weight = again.language_model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.int8
    settings = {"max_new_tokens": 6, "do_sample": False}
    answers = [each.chat(tokenizer, None, "Hello", settings) for each in (model, again)]
    assert answers[0] == answers[1]
    with pytest.raises(CheckpointError, match="its weights are quantised"):
        export(str(tmp_path / "int8"), str(tmp_path / "new"))


@pytest.mark.parametrize(("damage", "message"), [("missing", "1 missing"), ("surplus", "left ov")])
def test_auto_model_makes_no_weights_up(
    checkpoint: str, tmp_path: Path, damage: str, message: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    break_checkpoint(broken, damage)
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(broken)
    _, report = AutoModel.from_pretrained(broken, output_loading_info=True)
    assert bool(report["missing_keys"]) == (damage == "missing")


def break_checkpoint(directory: Path, damage: str) -> None:
    config = directory / "config.json"
    path = directory / "model.safetensors"
    if damage in ("llama", "template"):
        key = {"llama": "model_type", "template": "template"}[damage]
        value = {"llama": "llama", "template": "Hermes-3"}[damage]
        config.write_text(json.dumps({**json.loads(config.read_text()), key: value}))
        return
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
        return
    weights = load_file(path)
    name = "language_model.model.norm.weight"
    if damage == "surplus":
        weights["mlp1.9.bias"] = torch.zeros(3)
    elif damage == "empty":
        weights[name] = torch.zeros(0)
    else:
        del weights[name]
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(("skipped", "warns"), [(["lm_head"], True), (["vision_model"], False)])
def test_four_bits_in_the_vision_tower_are_warned_of(
    skipped: list[str], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    from internvl_chat.chat.loading import _warn_of_four_bits

    with caplog.at_level(logging.WARNING):
        _warn_of_four_bits(BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skipped))
    assert ("nonsensical" in caplog.text) == warns


@pytest.mark.parametrize("kind", ["imagenet", "clip", "siglip"])
def test_images_are_normalised_as_in_training(
    checkpoint: str, tmp_path: Path, kind: NormalizeType
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    processor = preprocessor_config(28, kind)
    (copy / "preprocessor_config.json").write_text(json.dumps(processor))
    model, tokenizer = load_model(str(copy))
    session = ChatSession(model, tokenizer, {})
    Image.new("RGB", (28, 28), (10, 200, 90)).save(tmp_path / "a.png")
    frames = [Image.new("RGB", (28, 28), (20 * number, 0, 90)) for number in range(2)]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    session.add_image(str(tmp_path / "a.png"))
    session.add_video(str(tmp_path / "b.gif"), num_segments=2)
    tiles = session.take("What?").tiles
    assert tiles is not None
    mean, std = NORMALIZATION[kind]
    wanted = [(value / 255 - m) / s for value, m, s in zip((10, 200, 90), mean, std, strict=True)]
    assert tiles[0, :, 0, 0].tolist() == pytest.approx(wanted, abs=1e-5)
    assert tiles[1, 1, 0, 0].item() == pytest.approx(-mean[1] / std[1], abs=1e-5)


def test_pixel_statistics_that_training_does_not_know(
    checkpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    path = copy / "preprocessor_config.json"
    path.unlink()
    assert load_model(str(copy))[0].config.normalize_type == "imagenet"
    assert "statistics" not in caplog.text
    path.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}))
    assert load_model(str(copy))[0].config.normalize_type == "imagenet"
    assert "unknown pixel statistics [0.1, 0.2, 0.3, 1, 1, 1]; ImageNet's are used" in caplog.text


def test_images_are_read_as_in_training(checkpoint: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    Image.new("RGBA", (28, 28), (0, 0, 0, 0)).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = Image.new("RGB", (28, 28), "white")
    sideways.paste("black", (0, 0, 28, 14))  # above as stored, to the right as shown
    sideways.save(tmp_path / "b.jpg", exif=exif, quality=100)
    for name in ("1", "2"):
        (tmp_path / "frames").mkdir(exist_ok=True)
        shutil.copyfile(tmp_path / "a.png", tmp_path / f"frames/{name}.png")

    def seen() -> list[bool]:
        """Is the transparent one white, the frame of a video too, the other one turned?"""
        model, tokenizer = load_model(str(copy))
        session = ChatSession(model, tokenizer, {})
        session.add_image(str(tmp_path / "a.png"))
        session.add_video(str(tmp_path / "frames"), num_segments=1)
        session.add_image(str(tmp_path / "b.jpg"))
        tiles = session.take("What?").tiles
        assert tiles is not None
        for number, path in ((0, "a.png"), (2, "b.jpg")):
            assert load_image(str(tmp_path / path), model=model).equal(tiles[number : number + 1])
        video = load_video(str(tmp_path / "frames"), num_segments=1, model=model)[0]
        assert video.equal(tiles[1:2])
        white = [bool(tile[0, 14, 14] > 2) for tile in tiles[:2]]
        return [*white, bool(tiles[2, 0, 4, 4] > 2)]

    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps(preprocessor_config(28, "imagenet")))
    assert seen() == [False, False, False]
    for rule in (DecodeConfig.as_shown(), DecodeConfig.as_shown(image_backend="fast")):
        path.write_text(json.dumps(preprocessor_config(28, "imagenet", rule)))
        assert seen() == [True, True, True]
    path.write_text(json.dumps({"apply_exif_orientation": "yes", "image_backend": "turbo"}))
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json: .*Want true.*turbo"):
        load_model(str(copy))
