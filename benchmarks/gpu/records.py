"""Training data made on the spot: a JPEG and a conversation of log-normal length.

Four of five records have a picture of 640 x 480, the fifth is text only.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = "the bar shape many are there color picture shapes first second word black green red white"
"""Each one token of the tiny model's tokenizer, so that words count tokens."""
META = "meta.json"
"""Written last."""
SPREAD = 0.7
"""Sigma of the log-normal."""
TEXT_ONLY_EVERY = 5


def write_records(folder: Path, *, num_records: int, answer_tokens: int, longest: int) -> Path:
    """Write images, records and meta; returns the meta's path.

    Args:
        folder: made anew.
        num_records: how many.
        answer_tokens: median length of an answer; questions have a quarter of it.
        longest: most tokens of an answer.
    """
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    words = WORDS.split()
    annotation = folder / "train.jsonl"
    with annotation.open("w", encoding="utf-8") as file:
        for number in range(num_records):
            length = int(np.clip(rng.lognormal(np.log(answer_tokens), SPREAD), 8, longest))
            question = " ".join(rng.choice(words, max(4, length // 4)))
            record: dict[str, object] = {"id": number}
            if number % TEXT_ONLY_EVERY:
                name = f"images/{number:05d}.jpg"
                _write_photo(folder / name, rng)
                record |= {"image": name, "width": 640, "height": 480}
                question = f"<image>\n{question}"
            answer = " ".join(rng.choice(words, length))
            record["conversations"] = [
                {"from": "human", "value": f"{question}?"},
                {"from": "gpt", "value": f"{answer}."},
            ]
            file.write(json.dumps(record) + "\n")
    meta = folder / META
    entry = {
        "root": str(folder),
        "annotation": str(annotation),
        "data_augment": False,
        "repeat_time": 1,
        "length": num_records,
    }
    meta.write_text(json.dumps({"speed": entry}), "utf-8")
    return meta


def _write_photo(path: Path, rng: np.random.Generator) -> None:
    """Smooth noise: structure that JPEG keeps, about 60 kB."""
    noise = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=88)
