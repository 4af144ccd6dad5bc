"""Damaged image files: decoded or refused, never a crash, a hang or an address in the reason.

``python -m tests.unit.data.test_image_fuzz 10000`` tries so many; the tests some hundreds.
"""

from __future__ import annotations

import io
import random
import signal
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from internvl_chat.config import DecodeConfig
from internvl_chat.data.images import decode_image
from internvl_chat.data.schema import BadRecordError

MAX_PIXELS = 1_000_000
SECONDS = 10
RULES = (
    DecodeConfig.as_shown(),
    DecodeConfig.as_stored(),
    DecodeConfig.as_shown(image_backend="fast"),
)


def seeds() -> list[bytes]:
    """A small file of each format, mode and layout."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(rng.integers(0, 256, (24, 32), dtype=np.uint8)))
    deep = Image.fromarray(rng.integers(0, 65536, (24, 32), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    cases: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {"exif": exif}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb.convert("L"), "JPEG", {}),
        (rgb, "MPO", {"save_all": True, "append_images": [rgb]}),
        (alpha, "PNG", {"exif": exif}),
        (rgb.quantize(), "PNG", {"transparency": 3}),
        (deep, "PNG", {}),
        (rgb, "PNG", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        (alpha, "WEBP", {}),
        (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        (rgb, "GIF", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        (rgb, "BMP", {}),
        (rgb.convert("1"), "BMP", {}),
        (alpha, "TIFF", {"compression": "tiff_deflate"}),
        (rgb, "TIFF", {"exif": exif}),
        (deep, "TIFF", {"compression": "tiff_lzw"}),
        (rgb.convert("F"), "TIFF", {}),
        (rgb.convert("YCbCr"), "TIFF", {"compression": "jpeg"}),
        (rgb, "AVIF", {}),
        (alpha, "JPEG2000", {}),
        (rgb, "PPM", {}),
        (deep, "PPM", {}),
    ]
    found = []
    for image, kind, options in cases:
        buffer = io.BytesIO()
        image.save(buffer, format=kind, **options)
        found.append(buffer.getvalue())
    return found


def mutated(raw: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """One to four changes of the kinds that files suffer, or that somebody makes on purpose."""
    data = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(max(len(data), 1))
        kind = draw.randrange(9)
        if kind == 0:
            data = data[:place]
        elif kind == 1:
            data[place : place + 1] = bytes([draw.randrange(256)])
        elif kind == 2:
            data[place : place + draw.randint(1, 40)] = b""
        elif kind == 3:
            data[place:place] = draw.randbytes(draw.randint(1, 40))
        elif kind == 4:
            data[place : place + 4] = draw.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"])
        elif kind == 5:
            size = draw.choice([1, 2, 255, 65535, 2**31 - 1, 40_000])
            data[place : place + 4] = struct.pack(draw.choice("<>") + "I", size)
        elif kind == 6:
            head = min(place, 64)  # where sizes and counts stand
            data[head : head + 2] = draw.randbytes(2)
        elif kind == 7:
            other = draw.choice(others)
            data = data[:place] + other[draw.randrange(len(other)) :]
        else:
            data[place : place + 8] = draw.choice(others)[:8]
    return bytes(data)


@contextmanager
def ended_after(seconds: int) -> Iterator[None]:
    """A hang becomes an error."""

    def give_up(number: int, frame: object) -> None:
        raise AssertionError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(raw: bytes, rule: DecodeConfig) -> str:
    """``ok``, or the code of the reason."""
    try:
        with ended_after(SECONDS):
            found = decode_image(
                raw,
                where="a.jsonl:1",
                path="a.jpg",
                max_pixels=MAX_PIXELS,
                decode=rule,
                fit=lambda size: (16, 16),
            )
    except BadRecordError as err:
        refused = err
    else:
        width, height = found.geometry.stored_size
        assert 0 < width * height <= MAX_PIXELS
        assert found.rgb.mode == "RGB"
        assert found.rgb.tobytes()
        return "ok"
    assert " at 0x" not in refused.problem, refused.problem
    assert refused.problem.startswith("a.jpg "), refused.problem
    return refused.code


def try_mutations(count: int, seed: int) -> Counter[str]:
    """Outcomes of so many files under each rule, which must agree on what is readable."""
    draw, files = random.Random(seed), seeds()
    outcomes: Counter[str] = Counter()
    limit = Image.MAX_IMAGE_PIXELS
    for _ in range(count):
        raw = mutated(draw.choice(files), files, draw)
        told = [outcome(raw, rule) for rule in RULES]
        assert len({one == "ok" for one in told}) == 1, (told, raw[:64])
        outcomes[told[0]] += 1
    assert limit == Image.MAX_IMAGE_PIXELS
    return outcomes


def test_seeds_are_whole() -> None:
    for raw in seeds():
        assert {outcome(raw, rule) for rule in RULES} == {"ok"}


@pytest.mark.filterwarnings("ignore")
def test_mutations_are_decoded_or_refused() -> None:
    outcomes = try_mutations(400, seed=1)
    assert outcomes["ok"] > 20
    assert outcomes["NOT_AN_IMAGE"] > 20
    assert outcomes["TRUNCATED_IMAGE"] + outcomes["BROKEN_IMAGE"] > 20


def test_a_file_cut_at_any_place_is_never_taken_for_whole() -> None:
    for raw in seeds():
        is_still = raw[:2] in (b"\xff\xd8", b"P6", b"P5", b"BM") or raw[:4] == b"\x89PNG"
        if is_still and b"MPF" not in raw and b"acTL" not in raw:
            for place in range(0, len(raw) * 3 // 4, 97):
                assert outcome(raw[:place], RULES[0]) != "ok", (raw[:8], place)


if __name__ == "__main__":
    print(try_mutations(int(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 7))
