"""A small corpus of everything that the page of ``data report`` has to show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support import tokenizers

YELLOW, BLUE = (250, 220, 30), (90, 140, 180)
EVIL_NAME = 'boxes "<b>&</script>'
EVIL = (
    "<script>document.title='run'</script>",
    "</script><img src=x onerror=\"document.title='run'\"> & \"quotes\" 'too' <!-- ]]>",
)
WIDE_BOX, TALL_BOX = (0.1, 0.2, 0.3, 0.5), (0.5, 0.8, 0.9, 0.95)
FLAGS = (
    *("--force_image_size", "56", "--dynamic_image_size", "True", "--max_dynamic_patch", "6"),
    *("--use_thumbnail", "True", "--min_num_frame", "4", "--max_num_frame", "7"),
    *("--max_seq_length", "1500"),
)
"""4 tokens a tile."""
NUM_GOOD, NUM_BAD = 30, 4
"""Records of the first dataset."""


def turns(*texts: str) -> list[dict[str, str]]:
    """A conversation of questions and answers in turn."""
    roles = ("human", "gpt")
    return [{"from": roles[n % 2], "value": text} for n, text in enumerate(texts)]


def write_corpus(folder: Path) -> Path:
    """Images, two datasets, a tokenizer at ``folder/tokenizer``; returns the meta JSON."""
    tokenizers.byte_level().save_pretrained(folder / "tokenizer")
    _image(folder / "wide.png", (400, 160), WIDE_BOX)
    _image(folder / "tall.png", (120, 360), TALL_BOX)
    frames = [Image.new("RGB", (64, 36), (level, level, level)) for level in range(0, 240, 20)]
    frames[0].save(folder / "v.gif", save_all=True, append_images=frames[1:], duration=100)
    _write(folder / "boxes.jsonl", [*_good(), *_bad()])
    _write(folder / "plain.jsonl", [{"conversations": turns(f"Hi {n}", "Ho")} for n in range(12)])
    table = {
        EVIL_NAME: _entry(folder, "boxes.jsonl", NUM_GOOD + NUM_BAD, repeat_time=1.5),
        "plain": _entry(folder, "plain.jsonl", 12, repeat_time=0.5),
    }
    meta = folder / "meta.json"
    meta.write_text(json.dumps(table), encoding="utf-8")
    return meta


def _good() -> list[dict[str, Any]]:
    named = [
        {
            "image": "wide.png",
            "conversations": turns("Where?", "[0.100, 0.200, 0.300, 0.500]", "And?", "There. "),
        },
        {
            "image": "tall.png",
            "conversations": turns(
                "<image>\nFind it.", "<ref>yellow 黄色</ref><box>[[500, 800, 900, 950]]</box>"
            ),
        },
        {
            "image": ["wide.png", "tall.png"],
            "conversations": turns("A <image> B <image>", "[0.5, 0.8, 0.9, 0.95]"),
        },
        {"video": "v.gif", "conversations": turns("<video>\nWhat happens?", "It grows lighter.")},
        {"conversations": turns(*EVIL)},
        {"conversations": turns("Long " + "word " * 100, "answer " * 400)},
        {"conversations": turns("请描述。", "图中有一个黄色的方块。😀")},
    ]
    filler = [{"conversations": turns(f"Count to {n}.", "1 " * n)} for n in range(1, 24)]
    return [*named, *filler]


def _bad() -> list[dict[str, Any] | str]:
    return [
        {"conversations": turns(EVIL[0], "")},
        {"image": "nowhere.png", "conversations": turns("Missing", "x")},
        f'{{"broken": "{EVIL[0]}',
        {"conversations": []},
    ]


def _image(path: Path, size: tuple[int, int], box: tuple[float, float, float, float]) -> None:
    image = Image.new("RGB", size, BLUE)
    corners = [round(v * side) for v, side in zip(box, size * 2, strict=True)]
    image.paste(YELLOW, tuple(corners))
    image.save(path)


def _write(path: Path, rows: list[Any]) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _entry(folder: Path, name: str, length: int, *, repeat_time: float) -> dict[str, Any]:
    return {
        "root": str(folder),
        "annotation": str(folder / name),
        "data_augment": False,
        "repeat_time": repeat_time,
        "length": length,
    }
