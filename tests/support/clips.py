"""Small videos whose frames tell their own number, written with PyAV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

BITS = 10
_DARK, _LIGHT = 20, 235


def numbered_frame(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """(height, width, 3) uint8: the number in blocks of black and white above a moving texture."""
    y, x = np.mgrid[0:height, 0:width]
    frame = np.stack([2 * x + 3 * number, 2 * y + number, (x - 2 * number) * y // 16], axis=-1)
    frame = (frame % 256).astype(np.uint8)
    block = width // BITS
    for bit in range(BITS):
        value = _LIGHT if number >> bit & 1 else _DARK
        frame[: height // 3, bit * block : (bit + 1) * block] = value
    return frame


def number_of(image: Image.Image | np.ndarray) -> int | None:
    """What :func:`numbered_frame` wrote; None where it cannot be read."""
    frame = np.asarray(image)
    height, width = frame.shape[:2]
    block, number = width // BITS, 0
    for bit in range(BITS):
        left = bit * block
        mean = frame[4 : height // 3 - 4, left + 2 : left + block - 2].mean()
        if 70 < mean < 185:
            return None
        number |= int(mean > 128) << bit
    return number


def write_clip(
    path: Path,
    *,
    num_frames: int = 50,
    rate: Fraction | int = 25,
    seconds: Sequence[float] | None = None,
    codec: str = "libx264",
    gop: int = 12,
    b_frames: int = 2,
    size: tuple[int, int] = (96, 64),
    options: Mapping[str, str] | None = None,
    container: Mapping[str, str] | None = None,
    rotation: int | None = None,
) -> Path:
    """Write a video file.

    Args:
        path: its ending chooses the container.
        num_frames: numbered from 0.
        rate: frames a second, where ``seconds`` is None.
        seconds: when each frame appears.
        codec, gop, b_frames, options: of the encoder.
        size: width and height.
        container: options of the muxer.
        rotation: degrees by which a player turns it anticlockwise.
    """
    if seconds is None:
        seconds = [float(i / Fraction(rate)) for i in range(num_frames)]
    with av.open(str(path), "w", options=dict(container or {})) as file:
        stream: Any = file.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.gop_size, context.thread_count = gop, 1
        if codec in ("libx264", "mpeg4"):
            context.max_b_frames = b_frames
        base = Fraction(1, 25) if path.suffix == ".avi" else Fraction(1, 1000)
        context.time_base = base
        for number, second in enumerate(seconds):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, *size), "rgb24")
            frame.time_base, frame.pts = base, round(second / base)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    if rotation is not None:
        _rotate_mp4(path, rotation)
    return path


def shift_clip(source: Path, target: Path, seconds: float) -> Path:
    """Copy the packets to other times; frames before 0 are hidden by an edit list (MP4)."""
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as write:
        stream = read.streams.video[0]
        copy = write.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.dts is None or packet.pts is None or packet.time_base is None:
                continue
            ticks = round(seconds / packet.time_base)
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
            packet.stream = copy
            write.mux(packet)
    return target


def _rotate_mp4(path: Path, degrees: int) -> None:
    """Write the matrix of the video's track header, as phones do."""
    raw = bytearray(path.read_bytes())
    place = raw.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of fields
    one = 1 << 16
    matrix = {90: (0, -one, one, 0), 180: (-one, 0, 0, -one), 270: (0, one, -one, 0)}[degrees]
    a, b, c, d = matrix
    fields = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    for field in fields:
        raw[place : place + 4] = field.to_bytes(4, "big", signed=True)
        place += 4
    path.write_bytes(raw)
