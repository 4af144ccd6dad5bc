"""Generated text records of 1-3 rounds, some 850 characters each: what the benchmarks read."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

_TEXT = (
    "the of and to in is image shows a man standing next to blue car while holding an umbrella "
    "his left hand there are several people walking on street behind him traffic light has "
    "turned green what kind object can be seen near window describe picture detail question "
    "answer number chart value between year according table which color largest percentage "
    "because however looking carefully we find that approximately building mountain river sky "
    "kitchen wooden surface"
)
_BLOCK_RECORDS = 100_000


def write_records(path: Path, count: int) -> None:
    """Write ``count`` records; from 100,000 on they come again."""
    rng = random.Random(0)
    known = _TEXT.split()
    block = path.with_name(path.name + ".block")
    with open(block, "w", encoding="utf-8") as handle:
        for number in range(min(count, _BLOCK_RECORDS)):
            turns = []
            for _ in range(rng.choice((1, 1, 2, 3))):
                question = " ".join(rng.choices(known, k=rng.randint(5, 20)))
                words = int(min(300, max(5, rng.lognormvariate(3.7, 0.8))))
                answer = " ".join(rng.choices(known, k=words))
                turns.append({"from": "human", "value": f"{question}?"})
                turns.append({"from": "gpt", "value": f"{answer} {rng.randint(0, 99999)}."})
            handle.write(json.dumps({"id": number, "conversations": turns}) + "\n")
    with open(path, "wb") as target:
        for _ in range(-(-count // _BLOCK_RECORDS)):
            with open(block, "rb") as source:
                shutil.copyfileobj(source, target, 1 << 22)
    block.unlink()


def as_array(lines: Path, path: Path) -> None:
    """The same records as a JSON array."""
    with open(lines, "rb") as source, open(path, "wb") as target:
        target.write(b"[")
        for number, line in enumerate(source):
            target.write((b",\n" if number else b"\n") + line.rstrip(b"\n"))
        target.write(b"\n]")
