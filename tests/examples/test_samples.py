"""The shipped pictures, clip and records are what their program draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.samples.draw import main, panda
from internvl_chat.data.meta import load_meta
from tests.support.pages import ROOT

EXAMPLES = ROOT / "examples"
LIMIT_BYTES = 300_000


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("drawn")
    main([str(folder)])
    return folder


def test_texts_are_the_same(drawn: Path) -> None:
    names = sorted(path.name for path in (drawn / "samples").iterdir() if path.suffix[:4] == ".jso")
    assert names == [
        *("array.json", "chats.json", "heldout.json", "heldout.jsonl", "meta.json"),
        *("questions.jsonl", "records.jsonl"),
    ]
    for name in names:
        text = (drawn / "samples" / name).read_text("utf-8")
        assert text == (EXAMPLES / "samples" / name).read_text("utf-8"), name


def test_pictures_are_the_same(drawn: Path) -> None:
    """To a few levels: decoders and fonts may differ between versions of their libraries."""
    paths = sorted(drawn.rglob("*.jpg"))
    assert len(paths) > 12
    for path in paths:
        shipped = EXAMPLES / path.relative_to(drawn)
        pixels = [np.asarray(Image.open(one).convert("RGB"), np.int16) for one in (path, shipped)]
        assert np.abs(pixels[0] - pixels[1]).mean() < 1, path


def test_the_clip_shows_a_walking_panda() -> None:
    av = pytest.importorskip("av")
    with av.open(str(EXAMPLES / "red-panda.mp4")) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 32
    for number in (0, 31):
        wanted = np.asarray(panda(number), np.int16)
        assert np.abs(frames[number].astype(np.int16) - wanted).mean() < 8


def test_they_are_small_and_their_origin_is_told() -> None:
    pictures = [path for path in EXAMPLES.rglob("*") if path.suffix in (".jpg", ".png", ".mp4")]
    assert sum(path.stat().st_size for path in pictures) < LIMIT_BYTES
    page = (EXAMPLES / "README.md").read_text("utf-8")
    folders = [path for path in EXAMPLES.iterdir() if path.is_dir() and path.name[0].isalpha()]
    for path in (*(one for one in pictures if one.parent == EXAMPLES), *folders):
        assert f"`{path.name}{'/' * path.is_dir()}`" in page, path


def test_the_metas_are_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("meta.json", "heldout.json"):
        (spec,) = load_meta(Path("examples/samples") / name)
        lines = Path(spec.annotation).read_text("utf-8").splitlines()
        assert spec.length == len(lines)
        for line in lines:
            images = json.loads(line).get("image", [])
            for image in [images] if isinstance(images, str) else images:
                assert (Path(spec.root) / image).is_file()
