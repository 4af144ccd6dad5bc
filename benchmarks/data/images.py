"""Samples per second of processor time, from JPEG files to what a worker hands over.

Systems take turns, each in a process of its own with one thread, on records of one image and one to
three rounds of text. Processor time is what a worker costs, whatever else the machine does:

- **plain**: the straightforward way: ``Image.open``, ``convert("RGB")``, Pillow's bicubic to
  448 x 448, to float, minus the mean, by the standard deviation; ids and labels by our encoder.
- **pillow**, **fast**: our ``SampleLoader`` with that ``--image_backend``, from the JSON line and
  the file, as training does.

The breakdown times the steps of each alone; differences are those of the pixels to plain's, in
levels of 255. Example::

    python benchmarks/data/images.py --rounds 3
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without an installation

from benchmarks.common import machine, median_and_all, report, run_child, table
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.config import DecodeConfig, EncodeConfig, ImageConfig, MediaConfig
from internvl_chat.data.dataset import SampleLoader
from internvl_chat.data.encode import Encoder
from internvl_chat.data.expand import expand_record
from internvl_chat.data.images import decode_image
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.pixels import resize
from internvl_chat.data.schema import parse_record
from internvl_chat.data.tiles import least_size
from internvl_chat.model.constants import NORMALIZATION

SIDE = 448
SYSTEMS = ("plain", "pillow", "fast")
SIZES = ((640, 480), (1280, 960))
TOKENIZER = Path(__file__).resolve().parents[2] / "pretrained/internvl-chat-tiny"
TEXT = (
    "the image shows a small red house beside two large trees near water while people walk "
    "under an old bridge with many signs and their text says open from nine until noon"
)
TARGET = 2.5


def photo(rng: np.random.Generator, width: int, height: int) -> bytes:
    """A JPEG of quality 88: noise of seven octaves, grain and lines of text; 70 or 210 KB."""
    total = rng.normal(0, 0.03, (height, width, 3)).astype(np.float32)
    for octave in range(1, 8):
        cells = rng.random((max(2, 2**octave * height // width), 2**octave, 3)) / 1.5**octave
        for channel in range(3):
            layer = Image.fromarray(cells[:, :, channel].astype(np.float32))
            total[:, :, channel] += np.asarray(
                layer.resize((width, height), Image.Resampling.BICUBIC)
            )
    total = (total - total.min()) / (total.max() - total.min()) * 255
    image = Image.fromarray(total.astype(np.uint8))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(18)
    for _ in range(10):
        place = (int(rng.integers(width - 200)), int(rng.integers(height - 30)))
        draw.text(place, "Invoice 4711, total 12.50 EUR", fill="black", font=font)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def write_records(folder: Path, size: tuple[int, int], count: int) -> list[bytes]:
    """JPEG files and their records, one to three rounds of 20 to 60 words each."""
    rng, draw = np.random.default_rng(size[0]), random.Random(size[0])
    lines = []
    for number in range(count):
        name = f"{size[0]}-{number}.jpg"
        (folder / name).write_bytes(photo(rng, *size))
        turns = []
        for _ in range(draw.randint(1, 3)):
            for role in ("human", "gpt"):
                text = " ".join(draw.choices(TEXT.split(), k=draw.randint(20, 60)))
                turns.append({"from": role, "value": text})
        lines.append(json.dumps({"id": number, "image": name, "conversations": turns}).encode())
    return lines


def image_config(backend: str) -> ImageConfig:
    """One tile of 448 pixels."""
    rule = DecodeConfig.as_shown(image_backend="fast" if backend == "fast" else "pillow")
    return ImageConfig.squeezed(
        image_size=SIDE, max_tiles=1, use_thumbnail=False, normalize_type="imagenet", decode=rule
    )


def encoder() -> Encoder:
    """Hermes-2, 256 tokens an image, at most 2048."""
    return Encoder(
        load_tokenizer(str(TOKENIZER)),
        EncodeConfig(
            conv_style="Hermes-2", system_message=None, num_image_token=256, max_seq_length=2048
        ),
    )


def plain_decode(path: Path) -> Image.Image:
    """Open and convert."""
    with Image.open(path) as image:
        return image.convert("RGB")


def plain_normalise(image: Image.Image) -> torch.Tensor:
    """(3, S, S) float32, step by step as torchvision's ToTensor and Normalize compute it."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in NORMALIZATION["imagenet"])
    pixels = torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1).contiguous()
    scaled = pixels.to(torch.float32).div(255)
    return scaled.clone().sub_(mean).div_(std)


def plain_resize(image: Image.Image) -> Image.Image:
    """Pillow's bicubic."""
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def tokenize(encode: Encoder, spec: DatasetSpec, config: ImageConfig, line: bytes) -> Any:
    """A record's ids and labels."""
    record = parse_record(line, where="")
    expanded = expand_record(record, spec, config, where="")
    return encode.encode(expanded.turns, expanded.num_tiles, system=None, where="")


def one_pass(system: str, folder: Path, lines: list[bytes]) -> Callable[[], None]:
    """A call that makes every sample once."""
    encode, config = encoder(), image_config(system)
    spec = DatasetSpec(name="photos", root=str(folder), annotation="photos.jsonl")
    names = [folder / json.loads(line)["image"] for line in lines]
    media = MediaConfig(
        images=config,
        min_num_frame=8,
        max_num_frame=32,
        strict_root=False,
        max_image_pixels=10**8,
        video_backend="decord",
    )
    loader = SampleLoader(encode, media, train=True)

    def ours() -> None:
        for line in lines:
            loader.load(line, spec, where="", rng=random.Random(0))

    def plain() -> None:
        for line, path in zip(lines, names, strict=True):
            plain_normalise(plain_resize(plain_decode(path)))
            tokenize(encode, spec, config, line)

    return plain if system == "plain" else ours


def milliseconds(work: Callable[[Any], Any], items: list[Any]) -> float:
    """Per item; the fastest of three passes."""
    times = []
    for _ in range(3):
        begin = time.process_time()
        for item in items:
            work(item)
        times.append(time.process_time() - begin)
    return 1000 * min(times) / len(items)


def breakdown(system: str, folder: Path, lines: list[bytes]) -> dict[str, Any]:
    """Milliseconds of each step, and the pixels' difference to plain's."""
    config, encode = image_config(system), encoder()
    spec = DatasetSpec(name="photos", root=str(folder), annotation="photos.jsonl")
    paths = [folder / json.loads(line)["image"] for line in lines]

    def decode(path: Path) -> Image.Image:
        return decode_image(
            path.read_bytes(),
            where="",
            path=str(path),
            decode=config.decode,
            fit=lambda size: least_size(size, config, max_tiles=1),
        ).rgb

    is_plain = system == "plain"
    decoded = [plain_decode(path) if is_plain else decode(path) for path in paths]
    wanted = [np.asarray(plain_resize(plain_decode(path))).astype(int) for path in paths]
    if is_plain:
        steps = {
            "decode": milliseconds(plain_decode, paths),
            "resize": milliseconds(plain_resize, decoded),
            "normalise": milliseconds(plain_normalise, [plain_resize(one) for one in decoded]),
        }
        found = wanted
    else:
        steps = {
            "decode": milliseconds(decode, paths),
            "resize": milliseconds(lambda one: resize(one, SIDE, SIDE), decoded),
            "normalise": 0.0,  # on the device
        }
        found = [resize(one, SIDE, SIDE).permute(1, 2, 0).numpy().astype(int) for one in decoded]
    steps["tokenize"] = milliseconds(lambda line: tokenize(encode, spec, config, line), lines)
    difference = [np.abs(one - other) for one, other in zip(found, wanted, strict=True)]
    return {
        "steps": steps,
        "largest": int(max(one.max() for one in difference)),
        "mean": float(np.mean([one.mean() for one in difference])),
    }


def measure(arguments: argparse.Namespace) -> None:
    """One system at one size, in this process."""
    torch.set_num_threads(1)
    folder = Path(arguments.folder)
    lines = (folder / f"{arguments.width}.jsonl").read_bytes().splitlines()
    work = one_pass(arguments.system, folder, lines)
    work()  # first-call buffers, and the files into memory
    begin = time.process_time()
    for _ in range(arguments.passes):
        work()
    seconds = time.process_time() - begin
    rate = arguments.passes * len(lines) / seconds
    report({"rate": rate, **breakdown(arguments.system, folder, lines)})


def compare(arguments: argparse.Namespace) -> bool:
    """Print the tables; whether the targets were reached."""
    print(machine(), flush=True)
    reached = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in SIZES:
            lines = write_records(folder, size, arguments.samples)
            (folder / f"{size[0]}.jsonl").write_bytes(b"\n".join(lines))
            runs: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
            for _ in range(arguments.rounds):
                for system in SYSTEMS:
                    options = ["--system", system, "--width", str(size[0]), "--folder", name]
                    options += ["--passes", str(arguments.passes)]
                    log = folder / "log.txt"
                    runs[system].append(run_child(Path(__file__), options, threads=1, log_path=log))
            reached &= show(size, runs)
    return reached


def show(size: tuple[int, int], runs: dict[str, list[dict[str, Any]]]) -> bool:
    """One size's table; whether fast reaches the target."""
    rates = {name: [run["rate"] for run in found] for name, found in runs.items()}
    # of the same round: what else the machine does then slows down both
    ratios = {
        name: statistics.median(
            own / other for own, other in zip(found, rates["plain"], strict=True)
        )
        for name, found in rates.items()
    }
    rows = []
    for name, found in runs.items():
        steps = {
            step: statistics.median(run["steps"][step] for run in found)
            for step in found[0]["steps"]
        }
        rows.append(
            [
                name,
                median_and_all(rates[name], 1),
                f"{ratios[name]:.2f}",
                *(f"{value:.2f}" for value in steps.values()),
                f"{found[0]['largest']} / {found[0]['mean']:.3f}",
            ]
        )
    header = ["system", "samples/s", "ratio", "decode ms", "resize ms", "normalise ms"]
    print(f"\n{size[0]} x {size[1]}\n")
    print(table([*header, "tokenize ms", "difference max / mean"], rows), flush=True)
    return ratios["fast"] >= TARGET


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=40, help="per size")
    parser.add_argument("--passes", type=int, default=5, help="over them, per measurement")
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.system:
        measure(arguments)
        return 0
    reached = compare(arguments)
    print(f"\nfast at least {TARGET} times plain at both sizes: {'yes' if reached else 'NO'}")
    return 0 if reached else 1


if __name__ == "__main__":
    raise SystemExit(main())
