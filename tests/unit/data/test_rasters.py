"""Files that Pillow hands to other programs, or that plugins brought, are opened by no reader."""

from __future__ import annotations

import ast
import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import EpsImagePlugin, Image

from internvl_chat.chat import media
from internvl_chat.config import DecodeConfig
from internvl_chat.data.bad_record import BadRecordError
from internvl_chat.data.convert.media import data_url, shown_size
from internvl_chat.data.images import load_image, open_image, read_geometry
from internvl_chat.data.video import open_video
from internvl_chat.evaluation.sources import EncodedImage, ImageFile
from tests.support.training import ROOT

AS_SHOWN = DecodeConfig.as_shown()

READERS: dict[str, Callable[[Path], Any]] = {
    "training": lambda path: load_image(str(path)),
    "header": lambda path: open_image(str(path), where=""),
    "lengths": lambda path: read_geometry(str(path), where="", decode=AS_SHOWN),
    "chat": lambda path: media.load_image(str(path)),
    "frames": lambda path: open_video(str(path.parent), where="").frames([0]),
    "evaluation": lambda path: ImageFile(str(path)).open(),
    "evaluation of tables": lambda path: EncodedImage(
        base64.b64encode(path.read_bytes()).decode(), label="row 1", jpeg_quality=90
    ).open(),
}


class _PluginImage(Image.Image):
    """What a plugin that some package registered would make of a file."""


@pytest.fixture(params=["EPS", "plugin"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> Path:
    """A file named .jpg that no decoder of Pillow's own reads; a test that opens it fails."""
    path = tmp_path / "a.jpg"
    Image.init()

    def opened(*_: Any) -> Any:
        pytest.fail("was opened")

    if request.param == "EPS":
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4)).save(buffer, format="EPS")
        path.write_bytes(buffer.getvalue())
        monkeypatch.setattr(EpsImagePlugin, "Ghostscript", opened)
        monkeypatch.setitem(Image.OPEN, "EPS", (opened, Image.OPEN["EPS"][1]))
    else:
        path.write_bytes(b"FOREIGN!" * 9)
        monkeypatch.setitem(Image.OPEN, "FRGN", (opened, lambda head: head.startswith(b"FOR")))
        monkeypatch.setattr(Image, "ID", [*Image.ID, "FRGN"])
    return path


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_opens_it(foreign: Path, reader: str) -> None:
    with pytest.raises(BadRecordError, match="is no image that can be read"):
        READERS[reader](foreign)


def test_neither_do_converters(foreign: Path) -> None:
    assert shown_size(foreign) is None
    assert data_url(foreign.read_bytes(), "a.jpg").startswith("data:image/jpeg;")


def test_one_place_opens_images() -> None:
    found = []
    for path in sorted((ROOT / "internvl_chat").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                found.append((path.name, [word.arg for word in node.keywords]))
    assert found == [("images.py", ["formats"])]
