"""Images and videos as the tiles that ``model.chat`` takes, cut by the code of training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from internvl_chat.chat.media_errors import told_for_inference
from internvl_chat.config import (
    MAX_IMAGE_PIXELS,
    DecodeConfig,
    ImageConfig,
    NormalizeType,
    VideoBackend,
)
from internvl_chat.data import images, pixels, video
from internvl_chat.data.storage import read_bytes
from internvl_chat.data.tiles import least_size


def image_config_of(config: Any) -> ImageConfig:
    """How a chat model's configuration says that images become tiles.

    ``normalize_type`` and the rule by which files become RGB are what ``load_model`` found in
    ``preprocessor_config.json``.
    """
    normalize_type: NormalizeType = getattr(config, "normalize_type", "imagenet")
    return ImageConfig.of_checkpoint(
        config, normalize_type=normalize_type, decode=DecodeConfig.of_preprocessor(vars(config))
    )


def load_tiles(
    image: str | bytes | Image.Image,
    config: ImageConfig,
    *,
    where: str = "",
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> Tensor:
    """One image by a model's settings (:func:`image_config_of`).

    Args:
        image: a file's path or its bytes, or an image of any mode.
        config: the settings.
        where: what messages call it; a path is its own name.
        max_pixels: a file of more pixels is refused before it is decoded.

    Returns:
        (n, 3, S, S) float32.

    Raises:
        BadRecordError: the file is missing, too large or no image.
    """
    with told_for_inference():
        tiles = _cut(image, config, where, max_pixels)
    return pixels.normalize_pixels(tiles, normalize_type=config.normalize_type)


def _cut(
    image: str | bytes | Image.Image, config: ImageConfig, where: str, max_pixels: int
) -> Tensor:
    """(n, 3, S, S) uint8; arguments are those of :func:`load_tiles`."""
    most = config.max_dynamic_patch
    if isinstance(image, Image.Image):
        rgb = images.to_rgb(image, path=where or "the image", decode=config.decode)
        return pixels.preprocess(rgb, config, max_tiles=most)
    name = where or (image if isinstance(image, str) else "the image")
    raw = read_bytes(image, where=name) if isinstance(image, str) else image
    decoded = images.decode_image(
        raw,
        where=name,
        path=name,
        max_pixels=max_pixels,
        decode=config.decode,
        fit=lambda size: least_size(size, config, max_tiles=most),
    )
    size = decoded.geometry.size
    return pixels.preprocess(decoded.pixels, config, max_tiles=most, size=size)


def load_image(
    image: str | Image.Image,
    *,
    model: Any = None,
    image_size: int = 448,
    max_num: int = 1,
    use_thumbnail: bool = True,
    normalize_type: NormalizeType = "imagenet",
) -> Tensor:
    """One image, resized and normalised.

    Args:
        image: a file, or an image of any mode.
        model: of ``load_model``: the image is read as in its training, and the other settings are
            the model's. Without one, as the published checkpoints read it: alpha dropped, EXIF
            orientation ignored.
        image_size: S, the model's ``force_image_size``.
        max_num: with more than one, the image is cut into up to so many square tiles.
        use_thumbnail: add the whole image as the last tile where there are several.
        normalize_type: pixel statistics that the model was trained with.

    Returns:
        (n, 3, S, S) float32.

    Raises:
        BadRecordError: the file is missing, too large or no image.
    """
    if model is not None:
        return load_tiles(image, image_config_of(model.config))
    config = ImageConfig.squeezed(
        image_size=image_size,
        max_tiles=max_num,
        use_thumbnail=use_thumbnail,
        normalize_type=normalize_type,
        decode=DecodeConfig.as_stored(),
    )
    return load_tiles(image, config)


def load_video(
    path: str,
    *,
    model: Any = None,
    num_segments: int = 8,
    bound: tuple[float, float] | None = None,
    image_size: int = 448,
    normalize_type: NormalizeType = "imagenet",
    video_backend: VideoBackend | None = None,
) -> tuple[Tensor, list[int]]:
    """Frames of a video, one tile each, from the middles of equal stretches of time.

    Args:
        path: a video file, an animated GIF, WebP or PNG, or a folder of images.
        model: of ``load_model``: frames are made tiles as in its training; the settings below that
            are about images are the model's then.
        num_segments: number of frames; a shorter video repeats some.
        bound: start and end in seconds.
        image_size: S.
        normalize_type: pixel statistics that the model was trained with.
        video_backend: library that reads video files; None takes the one that is installed.

    Returns:
        (num_segments, 3, S, S) float32 and ``num_patches_list``, a 1 for each frame.

    Raises:
        BadRecordError: no video, a damaged one, no frame, or a bound outside.
        ConfigError: the library is not installed.
    """
    if model is not None:
        config = replace(image_config_of(model.config), dynamic_image_size=False)
    else:
        config = ImageConfig.squeezed(
            image_size=image_size,
            max_tiles=1,
            use_thumbnail=False,
            normalize_type=normalize_type,
            decode=DecodeConfig.as_stored(),
        )
    with told_for_inference():
        opened = video.open_video(path, where=path, backend=video_backend, decode=config.decode)
        chosen = video.choose_frames(
            opened,
            clip=bound,
            min_num_frame=num_segments,
            max_num_frame=num_segments,
            rng=None,
            where=path,
        )
        frames = opened.frames(chosen)
    tiles = [load_tiles(frame, config) for frame in frames]
    return torch.cat(tiles), [1] * len(tiles)
