"""What reading video files in a process of their own costs, against decord in this process.

    python benchmarks/data/video_process.py [--seconds 10] [--repeats 7]

Clips of 640 x 360 and 1280 x 720 are written with PyAV into a temporary folder. Per clip and number
of frames: median milliseconds to open the file and read the frames of training (the middles of
equal intervals) as Pillow images, by ``open_video`` with a warm reader process, and by
``decord.VideoReader`` with ``get_batch`` as this package did before there was one. The two take
turns. ``ratio`` is ours / decord's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import decord
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from internvl_chat.config import VideoBackend  # noqa: E402
from internvl_chat.data.video import choose_frames, open_video  # noqa: E402
from internvl_chat.data.videos.process import ReaderProcess  # noqa: E402
from tests.support.clips import write_clip  # noqa: E402


def by_process(path: str, count: int, backend: VideoBackend) -> list[Image.Image]:
    """As training reads them."""
    video = open_video(path, where="", backend=backend)
    chosen = choose_frames(
        video, clip=None, min_num_frame=count, max_num_frame=count, rng=None, where=""
    )
    return video.frames(chosen)


def by_decord(path: str, count: int) -> list[Image.Image]:
    """The straightforward way: no look at times, seeks or damage."""
    reader = decord.VideoReader(path, num_threads=1)
    total = len(reader)
    chosen = [(2 * n + 1) * total // (2 * count) for n in range(count)]
    return [Image.fromarray(frame) for frame in reader.get_batch(chosen).asnumpy()]


def milliseconds(reads: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median of each; they take turns, so that a busy moment hits all."""
    taken: dict[str, list[float]] = {name: [] for name in reads}
    for _ in range(repeats + 1):
        for name, read in reads.items():
            begin = time.perf_counter()
            read()
            taken[name].append(1000 * (time.perf_counter() - begin))
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    reader = ReaderProcess()
    with tempfile.TemporaryDirectory() as folder:
        print("clip | frames | decord here, ms | reader process, ms | ratio | pyav, ms | ratio")
        for size in ((640, 360), (1280, 720)):
            for gop in (50, 250):
                path = str(
                    write_clip(
                        Path(folder) / f"{size[1]}-{gop}.mp4",
                        num_frames=25 * options.seconds,
                        size=size,
                        gop=gop,
                        options={"preset": "veryfast"},
                    )
                )
                for count in (8, 32):
                    reads: dict[str, Callable[[], object]] = {
                        "plain": lambda p=path, n=count: by_decord(p, n),
                        "ours": lambda p=path, n=count: by_process(p, n, "decord"),
                        "pyav": lambda p=path, n=count: by_process(p, n, "pyav"),
                    }
                    found = milliseconds(reads, options.repeats)
                    print(
                        f"{size[0]} x {size[1]}, key frame every {gop} | {count} | "
                        f"{found['plain']:.0f} | {found['ours']:.0f} | "
                        f"{found['ours'] / found['plain']:.2f} | {found['pyav']:.0f} | "
                        f"{found['pyav'] / found['plain']:.2f}",
                        flush=True,
                    )
        path = str(next(Path(folder).iterdir()))
        begin = time.perf_counter()
        reader.ask(
            {"seconds": 60, "backend": "decord", "path": path.encode().hex(), "numbers": None}
        )
        reader.answer()
        print(f"first file of a reader process: {time.perf_counter() - begin:.2f} s")
        reader.close()


if __name__ == "__main__":
    main()
