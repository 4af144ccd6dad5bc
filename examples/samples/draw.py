"""Draw the pictures, the clip and the records that README and docs use.

``python -m examples.samples.draw examples`` writes ``image1.jpg``, ``image2.jpg`` and
``red-panda.mp4`` (the names of the user guide's samples) and ``samples/``, the same every time.
Everything is drawn here; no picture of others is among them. The clip needs PyAV.
"""

import argparse
import base64
import csv
import json
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from examples.annotations import DatasetEntry, Record, conversation, write_jsonl, write_meta
from examples.tiny_model.common import stream
from examples.tiny_model.records import Sample, conversation_record, draw, make_sample
from examples.tiny_model.scene import Scene, Shape
from examples.tiny_model.words import sample_sign

ROOT = Path("examples/samples")
SEED = 7
QUALITY = 90
TRAIN = ("shapes", "shapes", "grounding", "charts", "reading", "pairs", "text", "shapes")
"""Families of the records, one each."""
HELD_OUT = ("shapes", "charts", "reading", "shapes")
NUM_FRAMES, RATE, WIDTH, HEIGHT = 32, 8, 160, 112


def sign() -> Image.Image:
    """``image1.jpg``: a sign with print to read."""
    return draw(sample_sign(stream(SEED, "image1")))


def scene() -> Image.Image:
    """``image2.jpg``: a red star, a blue circle and a green square."""
    shapes = (
        Shape(kind="star", color="red", x=42, y=42, radius=13.0, fill=(216, 32, 32)),
        Shape(kind="circle", color="blue", x=98, y=70, radius=10.5, fill=(32, 72, 214)),
        Shape(kind="square", color="green", x=14, y=98, radius=8.0, fill=(34, 150, 48)),
    )
    return draw(Scene(background=(172, 172, 172), shapes=shapes))


def panda(frame: int) -> Image.Image:
    """A red panda's face that walks from left to right over a meadow and blinks."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (168, 206, 232))
    pencil = ImageDraw.Draw(image)
    pencil.rectangle((0, 70, WIDTH, HEIGHT), fill=(96, 158, 72))
    x, y = 36 + 88 * frame / (NUM_FRAMES - 1), 58 + 4 * (frame % 4 in (1, 2))
    rust, cream, dark = (178, 72, 34), (244, 226, 204), (52, 28, 22)

    def circle(dx: float, dy: float, radius: float, fill: tuple[int, int, int]) -> None:
        pencil.ellipse((x + dx - radius, y + dy - radius, x + dx + radius, y + dy + radius), fill)

    for side in (-1, 1):
        circle(side * 20, -20, 10, rust)
        circle(side * 20, -20, 6, cream)
    circle(0, 0, 27, rust)
    for side in (-1, 1):
        circle(side * 14, 8, 9, cream)
        circle(side * 10, -12, 4, cream)
        if frame % 16 in (7, 8):
            pencil.line((x + side * 10 - 4, y - 3, x + side * 10 + 4, y - 3), dark, 2)
        else:
            circle(side * 10, -3, 4, dark)
    circle(0, 12, 8, cream)
    circle(0, 9, 4, dark)
    return image


def write_clip(path: Path) -> None:
    """Four seconds of the red panda, H.264 in MP4; one thread, so that every run is the same."""
    import av

    with av.open(str(path), "w") as file:
        video: Any = file.add_stream("libx264", rate=RATE, options={"crf": "28"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.thread_count = 1
        for number in range(NUM_FRAMES):
            file.mux(video.encode(av.VideoFrame.from_image(panda(number))))
        file.mux(video.encode())


def _saved(folder: Path, families: Sequence[str], split: str) -> Iterator[tuple[Record, Sample]]:
    """The records of these families, their images written below ``folder/images``."""
    for index, family in enumerate(families):
        sample = make_sample(SEED, family, "heldout", 100 * (split == "heldout") + index)
        count = len(sample.images)
        names = [f"{split}_{index}{'abc'[i] if count > 1 else ''}.jpg" for i in range(count)]
        for image, name in zip(sample.images, names, strict=True):
            image.save(folder / "images" / name, quality=QUALITY)
        yield conversation_record(f"{split}-{index}", names, sample.questions), sample


def write_records(folder: Path) -> None:
    """Records to train on, others held out, and the meta JSON of each."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, families in (("records", TRAIN), ("heldout", HELD_OUT)):
        records = [record for record, _ in _saved(folder, families, name)]
        write_jsonl(folder / f"{name}.jsonl", records)
        entry = DatasetEntry(
            name="samples" if name == "records" else name,
            root=ROOT / "images",
            annotation=ROOT / f"{name}.jsonl",
            length=len(records),
        )
        write_meta(folder / ("meta.json" if name == "records" else "heldout.json"), [entry])


def write_others(folder: Path) -> None:
    """Questions for ``chat --batch``, a JSON array, chats of another framework, a TSV benchmark."""
    asked = ("What shape is red?", "What color is the circle?", "How many shapes are there?")
    lines = [
        {"id": number, "question": question, "image": "examples/image2.jpg"}
        for number, question in enumerate(asked)
    ]
    write_jsonl(folder / "questions.jsonl", [*lines, {"id": 3, "question": "What is 2 plus 3?"}])
    names = sorted(path.name for path in (folder / "images").glob("heldout_*.jpg"))
    array = [
        {
            "id": name,
            "image": name,
            "conversations": conversation(("<image>\nIs this a drawing?", "yes")),
        }
        for name in names
    ]
    (folder / "array.json").write_text(json.dumps(array, indent=1) + "\n", encoding="utf-8")
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"<image>{question}"},
                {"role": "assistant", "content": answer},
            ],
            "images": ["image2.jpg"],
        }
        for question, answer in zip(asked, ("star", "blue", "3"), strict=True)
    ]
    (folder / "chats.json").write_text(json.dumps(chats, indent=1) + "\n", encoding="utf-8")
    with open(folder / "shapes.tsv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(("index", "question", "A", "B", "answer", "category", "image"))
        buffer = BytesIO()
        scene().save(buffer, "JPEG", quality=QUALITY)
        encoded = base64.b64encode(buffer.getvalue()).decode()
        rows = (
            ("What shape is red?", "circle", "star", "B", "shape"),
            ("What color is the circle?", "blue", "red", "A", "color"),
            ("What color is the square?", "white", "green", "B", "color"),
        )
        # An index in place of the picture: the same as that row's.
        for number, row in enumerate(rows):
            table.writerow((number, *row, encoded if number == 0 else 0))


def main(argv: Sequence[str] | None = None) -> None:
    """Write everything below the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder
    write_records(folder / "samples")
    sign().save(folder / "image1.jpg", quality=QUALITY)
    scene().save(folder / "image2.jpg", quality=QUALITY)
    write_clip(folder / "red-panda.mp4")
    write_others(folder / "samples")


if __name__ == "__main__":
    main()
