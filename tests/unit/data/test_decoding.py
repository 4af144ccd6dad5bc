"""Image files become RGB by one rule: as viewers show them, or as they are stored."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from internvl_chat.config import DecodeConfig
from internvl_chat.data.images import (
    FORMATS,
    DecodedImage,
    decode_image,
    load_image,
    open_image,
    read_geometry,
    to_rgb,
)
from internvl_chat.data.schema import BadRecordError

SHOWN, STORED = DecodeConfig.as_shown(), DecodeConfig.as_stored()
ORIENTATION = 0x0112


def decoded(raw: bytes, rule: DecodeConfig = SHOWN) -> DecodedImage:
    return decode_image(raw, where="a.jsonl:1", path="a", decode=rule)


def pixels(raw: bytes, rule: DecodeConfig = SHOWN) -> np.ndarray:
    return np.asarray(decoded(raw, rule).rgb).astype(int)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


# -- EXIF orientation -----------------------------------------------------------------------------


def upright() -> Image.Image:
    """48 x 32: red top left, green top right, blue bottom left, white bottom right."""
    image = Image.new("RGB", (48, 32), "white")
    image.paste("red", (0, 0, 24, 16))
    image.paste("lime", (24, 0, 48, 16))
    image.paste("blue", (0, 16, 24, 32))
    return image


HOW_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def stored_as(orientation: int, kind: str) -> bytes:
    method = HOW_STORED[orientation]
    image = upright() if method is None else upright().transpose(method)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 95} if kind in ("JPEG", "MPO", "WEBP", "AVIF") else {}
    if kind == "MPO":
        options["save_all"] = True
    return saved(image, kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_viewers_turn_them(
    orientation: int, kind: str, tmp_path: Path
) -> None:
    raw = stored_as(orientation, kind)
    found = decoded(raw)
    assert found.rgb.size == found.geometry.size == (48, 32)
    assert found.geometry.stored_size == ((32, 48) if orientation >= 5 else (48, 32))
    assert np.abs(np.asarray(found.rgb).astype(int) - np.asarray(upright())).mean() < 12
    (tmp_path / "a").write_bytes(raw)
    assert read_geometry(str(tmp_path / "a"), where="", decode=SHOWN) == found.geometry


def test_a_checkpoint_without_the_keys_sees_images_as_stored() -> None:
    raw = stored_as(6, "JPEG")
    assert decoded(raw, STORED).geometry.size == decoded(raw, STORED).rgb.size == (32, 48)


def test_metadata_behind_the_pixels_of_a_png_counts() -> None:
    raw = stored_as(6, "PNG")
    place = raw.index(b"eXIf") - 4
    end = place + 12 + int.from_bytes(raw[place : place + 4], "big")
    moved = raw[:place] + raw[end:-12] + raw[place:end] + raw[-12:]
    assert decoded(moved).rgb.size == decoded(moved).geometry.size == (48, 32)


@pytest.mark.parametrize(
    "value", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0", b""]
)
def test_damaged_metadata_turns_nothing(value: bytes) -> None:
    assert decoded(saved(upright(), "JPEG", exif=value)).rgb.size == (48, 32)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_orientation_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert decoded(saved(upright(), "JPEG", exif=exif)).geometry.orientation == 1


# -- transparency ---------------------------------------------------------------------------------


def see_through() -> Image.Image:
    """A red square on black that shows only where it is red; its rim is half transparent."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((255, 0, 0, 128), (1, 1, 7, 7))
    image.paste((255, 0, 0, 255), (2, 2, 6, 6))
    return image


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "GIF"])
def test_transparency_is_white(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    raw = saved(see_through(), kind, **options)
    shown = pixels(raw)
    assert shown[0, 0].tolist() == [255, 255, 255]
    assert np.abs(shown[4, 4] - [255, 0, 0]).max() <= 8
    if kind not in ("GIF", "AVIF"):
        assert np.abs(shown[1, 1] - [255, 127, 127]).max() <= 1
        assert pixels(raw, STORED)[1, 1].tolist() == [255, 0, 0]
        assert pixels(raw, STORED)[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa", "P"])
def test_every_mode_with_alpha(mode: str) -> None:
    image = see_through()
    if mode == "P":
        image = image.quantize()
    elif mode == "La":
        image = image.convert("LA").convert("La")
    elif mode == "PA":
        image = image.convert("RGB").quantize().convert("PA")
        image.putalpha(see_through().getchannel("A"))
    else:
        image = image.convert(mode)
    shown = np.asarray(to_rgb(image, decode=SHOWN)).astype(int)
    assert shown[0, 0].tolist() == [255, 255, 255]
    assert shown[4, 4].tolist() != [255, 255, 255]


def png(colour_type: int, depth: int, row: bytes, transparent: bytes) -> bytes:
    """A PNG of one row of two pixels with a tRNS chunk."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", 2, 1, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"tRNS", transparent)
        + chunk(b"IDAT", zlib.compress(b"\0" + row))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("colour_type", "depth", "row", "transparent"),
    [
        (0, 1, b"\x40", b"\0\0"),  # black is transparent, then white
        (0, 1, b"\x80", b"\0\1"),
        (0, 2, b"\x60", b"\0\1"),  # 1 of 3 is transparent, then 2
        (0, 4, b"\x3a", b"\0\3"),
        (0, 8, b"\x33\xaa", b"\0\x33"),
        (0, 16, b"\x12\x34\xaa\xaa", b"\x12\x34"),
        (2, 8, b"\1\2\3\xaa\xaa\xaa", b"\0\1\0\2\0\3"),
        (2, 16, b"\1\0\2\0\3\0\xaa\xaa\xaa\xaa\xaa\xaa", b"\1\0\2\0\3\0"),
    ],
)
def test_one_transparent_colour(
    colour_type: int, depth: int, row: bytes, transparent: bytes
) -> None:
    shown = pixels(png(colour_type, depth, row, transparent))
    assert shown[0, 0].tolist() == [255, 255, 255]
    wanted = {(0, 1, b"\x40"): 255, (0, 1, b"\x80"): 0}.get((colour_type, depth, row), 170)
    assert shown[0, 1].tolist() == [wanted] * 3


# -- deep greys, other colours, animations --------------------------------------------------------


def test_sixteen_bits_are_scaled_by_their_range() -> None:
    deep = Image.fromarray(np.array([[0, 255, 32896, 65535]], dtype=np.uint16))
    for kind in ("PNG", "TIFF", "PPM"):
        assert pixels(saved(deep, kind))[0, :, 0].tolist() == [0, 1, 128, 255], kind
    assert pixels(b"Pf\n2 1\n-1.0\n" + struct.pack("<2f", 0, 0.5))[0, :, 0].tolist() == [0, 128]
    dark = Image.fromarray(np.array([[0, 200]], dtype=np.uint16))
    assert pixels(saved(dark, "PNG"))[0, :, 0].tolist() == [0, 1]  # as a viewer shows it


def test_floats_are_scaled_and_what_is_no_number_is_black() -> None:
    def of(*values: float) -> list[int]:
        image = Image.fromarray(np.array([values], dtype=np.float32))
        return pixels(saved(image, "TIFF"))[0, :, 0].tolist()

    assert of(0, 0.5, 1) == [0, 128, 255]
    assert of(-3, 100, 255) == [0, 100, 255]
    assert of(0, 2e5, 1e6) == [0, 51, 255]
    assert of(float("nan"), 0.5, float("inf")) == [0, 128, 0]


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr", "1", "HSV"])
def test_other_colour_spaces(mode: str) -> None:
    if mode == "HSV":
        image = Image.new("RGB", (4, 4), (250, 5, 5)).convert("HSV")
        shown = np.asarray(to_rgb(image))
    else:
        kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG" if mode == "1" else "TIFF"
        if mode == "LAB":
            image = Image.merge("LAB", [Image.new("L", (4, 4), v) for v in (136, 208, 195)])
        else:
            image = Image.new("RGB", (4, 4), (250, 5, 5)).convert(mode)
        shown = pixels(saved(image, kind))
    assert shown[2, 2, 0] > 200 or mode == "1"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    raw = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert pixels(raw)[4, 4].tolist() == [255, 0, 0]


# -- what is no image -----------------------------------------------------------------------------

NO_IMAGES = {
    "an empty file (0 bytes)": b"",
    "filled with zero bytes": bytes(3000),
    "a git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "an HTML page": b"\n <!DOCTYPE html>\n<html><head><svg></svg></head></html>",
    "an SVG drawing": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "XML": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    'JSON or other text (begins \'{"error"': b'{"error": "not found"}',
    "text (begins 'Not found')": b"Not found\nsorry",
    "text (begins 'caf  la crme')": "café à la crème".encode("latin-1"),
    "a HEIC image": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
    "a video (MP4": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(40),
    "a video (Matroska": b"\x1aE\xdf\xa3" + bytes(40),
    "a video (AVI)": b"RIFF\0\0\0\0AVI LIST" + bytes(40),
    "a PDF document": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "a zip archive": b"PK\x03\x04" + bytes(40),
    "gzip-compressed": b"\x1f\x8b\x08\0" + bytes(40),
    "a NumPy array": b"\x93NUMPY\x01\0" + bytes(40),
    "a Photoshop file": b"8BPS\0\1" + bytes(40),
    "a JPEG XL image": b"\xff\x0a" + bytes(40),
    "a data: URL": b"data:image/png;base64,iVBORw0KGgo=",
    "of an unknown kind (begins 01 02 03 04 ff fe 00 80)": b"\1\2\3\4\xff\xfe\0\x80" * 9,
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_a_file_that_is_no_image_says_what_it_is(kind: str, tmp_path: Path) -> None:
    raw = NO_IMAGES[kind]
    path = tmp_path / "a.jpg"
    path.write_bytes(raw)
    with pytest.raises(BadRecordError) as caught:
        load_image(str(path), where="a.jsonl:1")
    assert caught.value.code == "NOT_AN_IMAGE"
    assert f"a.jpg is no image that can be read: it is {kind}" in caught.value.problem
    assert "0x" not in caught.value.problem
    for read in (lambda: open_image(raw, where="", path="a"), lambda: decoded(raw)):
        with pytest.raises(BadRecordError, match="it is "):
            read()
    with pytest.raises(BadRecordError, match="it is "):
        read_geometry(str(path), where="", decode=SHOWN)


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "ICO", "PDF", "SGI"])
def test_formats_that_pillow_would_read_or_hand_on_are_not(kind: str) -> None:
    assert kind not in FORMATS
    with pytest.raises(BadRecordError) as caught:
        decoded(saved(Image.new("RGB", (16, 16)), kind))
    assert caught.value.code == "NOT_AN_IMAGE"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("behind", [False, True])
def test_a_png_with_long_text_is_read(compressed: bool, behind: bool, tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a" * 2_500_000, zip=compressed)
    raw = saved(upright(), "PNG", pnginfo=text)
    if behind:
        name = b"zTXt" if compressed else b"tEXt"
        place = raw.index(name) - 4
        end = place + 12 + int.from_bytes(raw[place : place + 4], "big")
        raw = raw[:place] + raw[end:-12] + raw[place:end] + raw[-12:]
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, Image.MAX_IMAGE_PIXELS
    assert np.array_equal(pixels(raw), np.asarray(upright()))
    (tmp_path / "a.png").write_bytes(raw)
    assert read_geometry(str(tmp_path / "a.png"), where="", decode=SHOWN).size == (48, 32)
    after = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, Image.MAX_IMAGE_PIXELS
    assert limits == after


# -- the keys -------------------------------------------------------------------------------------


def test_keys_of_the_preprocessor_come_back() -> None:
    for rule in (SHOWN, STORED, DecodeConfig.as_shown(image_backend="fast")):
        assert DecodeConfig.of_preprocessor(rule.stored()) == rule
    assert DecodeConfig.of_preprocessor({"size": 448}) == STORED
    grey = DecodeConfig.of_preprocessor({"rgba_background_color": [9, 9, 9]})
    assert pixels(saved(see_through(), "PNG"), grey)[0, 0].tolist() == [9, 9, 9]
