"""What files may hold that somebody else sends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """Bounds of a file that is received; training data has its own, ``--max_image_pixels``."""

    max_upload_pixels: int = 50_000_000
    """Width x height of an image by its header, before it is decoded: 150 MB as RGB."""
