"""The custom dataset: no scan on both sides, images as described, records as documented."""

import random
from pathlib import Path

import numpy as np
from PIL import Image

from examples.annotations import read_jsonl
from examples.quickstart.digits import (
    NUM_TRAIN,
    QUESTIONS,
    SIDE,
    Look,
    Scan,
    draw_scan,
    sample_look,
    split_scans,
    write_digits,
)


def _dot(row: int, column: int) -> Scan:
    shades = np.zeros((8, 8))
    shades[row, column] = 16
    return Scan(index=0, shades=shades, digit=1)


def _darkest(image: Image.Image) -> tuple[float, float]:
    """Middle of the ink, (x, y) in pixels."""
    ink = 255 - np.asarray(image.convert("L"), dtype=np.float64)
    ink -= ink.min()
    ys, xs = np.indices(ink.shape) + 0.5
    return float((ink * xs).sum() / ink.sum()), float((ink * ys).sum() / ink.sum())


def test_every_scan_is_in_one_split() -> None:
    train, held_out = split_scans(7)
    assert (len(train), len(held_out)) == (NUM_TRAIN, 397)
    assert sorted(scan.index for scan in train + held_out) == list(range(1797))
    assert [scan.index for scan in split_scans(7)[0]] == [scan.index for scan in train]
    assert [scan.index for scan in split_scans(8)[0]] != [scan.index for scan in train]


def test_every_digit_is_held_out_often_enough_to_be_scored() -> None:
    counts = np.bincount([scan.digit for scan in split_scans(7)[1]], minlength=10)
    assert counts.min() >= 25


def test_a_plain_image_has_paper_and_ink_where_the_scan_has() -> None:
    image = draw_scan(_dot(0, 0), Look())
    assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")
    assert image.getpixel((SIDE - 1, SIDE - 1)) == (235, 235, 235)
    # 11 pixels a cell, one empty cell around, one pixel of rest: the first cell's middle is 17.5.
    x, y = _darkest(image)
    assert abs(x - 17.5) < 0.3
    assert abs(y - 17.5) < 0.3


def test_looks_move_turn_and_zoom_about_the_middle() -> None:
    def middle(look: Look) -> tuple[float, float]:
        return _darkest(draw_scan(_dot(4, 7), look))

    x0, y0 = middle(Look())
    x1, y1 = middle(Look(shift=(5, -8)))
    assert abs(x1 - x0 - 5) < 0.3
    assert abs(y1 - y0 + 8) < 0.3
    x2, _ = middle(Look(zoom=0.5))
    assert abs((x2 - 56) - 0.5 * (x0 - 56)) < 0.3
    # A quarter turn against the clock takes what is on the right to the top.
    x3, y3 = middle(Look(degrees=90))
    assert abs(x3 - 56) < 7
    assert abs(y3 - (112 - x0)) < 0.5


def test_sampled_looks_keep_ink_darker_than_paper() -> None:
    rng = random.Random(0)
    looks = [sample_look(rng) for _ in range(200)]
    assert max(look.ink for look in looks) + 60 < min(look.paper for look in looks)


def test_written_records_are_the_documented_format(tmp_path: Path) -> None:
    train, held_out = write_digits(
        tmp_path / "data", tmp_path / "notes", seed=7, looks=2, num_train=3, num_held_out=2
    )
    assert (train.length, held_out.length) == (6, 2)
    records = read_jsonl(train.annotation)
    scans = split_scans(7)[0][:3]
    assert [r["id"] for r in records] == [
        f"digits-{scan.index:04d}_{look}" for scan in scans for look in range(2)
    ]
    first = records[0]
    assert set(first) == {"id", "image", "width", "height", "conversations"}
    human, gpt = first["conversations"]
    assert human["from"] == "human"
    assert human["value"].removeprefix("<image>\n") in QUESTIONS
    assert gpt == {"from": "gpt", "value": str(scans[0].digit)}
    for record in records + read_jsonl(held_out.annotation):
        with Image.open(train.root / record["image"]) as image:
            assert image.size == (record["width"], record["height"]) == (112, 112)
    held_out_scans = {scan.index for scan in split_scans(7)[1]}
    assert all(
        int(Path(record["image"]).stem.split("_")[0]) in held_out_scans
        for record in read_jsonl(held_out.annotation)
    )
