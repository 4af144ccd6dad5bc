"""Files that a server must refuse, small enough to be written in a test."""

from __future__ import annotations

import struct
import wave
import zlib
from pathlib import Path


def write_bomb(path: Path, side: int = 60_000) -> None:
    """A PNG of a few bytes that claims side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def write_sound(path: Path) -> None:
    """A file that a video player opens, and that has no frame."""
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\0\0" * 8000)
