"""Images and videos as the tiles that ``model.chat`` takes, cut by the code of training."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from internvl_chat.config import ImageConfig, NormalizeType
from internvl_chat.data import images, pixels, video


def image_config_of(config: Any) -> ImageConfig:
    """How a chat model's configuration says that images become tiles.

    ``normalize_type`` is what ``load_model`` found in ``preprocessor_config.json``.
    """
    normalize_type: NormalizeType = getattr(config, "normalize_type", "imagenet")
    return ImageConfig.of_checkpoint(config, normalize_type=normalize_type)


def load_tiles(image: str | Image.Image, config: ImageConfig) -> Tensor:
    """One image by a model's settings (:func:`image_config_of`); (n, 3, S, S) float32."""
    if isinstance(image, str):
        rgb = images.load_image(image, where=image)
    else:
        rgb = images.to_rgb(image, where="load_image")
    tiles = pixels.preprocess(rgb, config, max_tiles=config.max_dynamic_patch)
    return pixels.normalize_pixels(tiles, normalize_type=config.normalize_type)


def load_image(
    image: str | Image.Image,
    *,
    image_size: int = 448,
    max_num: int = 1,
    use_thumbnail: bool = True,
    normalize_type: NormalizeType = "imagenet",
) -> Tensor:
    """One image, resized and normalised.

    Args:
        image: a file, or an image of any mode.
        image_size: S, the model's ``force_image_size``.
        max_num: with more than one, the image is cut into up to so many square tiles.
        use_thumbnail: add the whole image as the last tile where there are several.
        normalize_type: pixel statistics that the model was trained with.

    Returns:
        (n, 3, S, S) float32.

    Raises:
        BadRecordError: the file is missing, too large or no image.
    """
    config = ImageConfig.squeezed(
        image_size=image_size,
        max_tiles=max_num,
        use_thumbnail=use_thumbnail,
        normalize_type=normalize_type,
    )
    return load_tiles(image, config)


def load_video(
    path: str,
    *,
    num_segments: int = 8,
    bound: tuple[float, float] | None = None,
    image_size: int = 448,
    normalize_type: NormalizeType = "imagenet",
) -> tuple[Tensor, list[int]]:
    """Frames of a video, one tile each, from the middles of equal stretches.

    Args:
        path: a video file, a ``.gif`` or a folder of images.
        num_segments: number of frames; a shorter video repeats some.
        bound: start and end in seconds.
        image_size: S.
        normalize_type: pixel statistics that the model was trained with.

    Returns:
        (num_segments, 3, S, S) float32 and ``num_patches_list``, a 1 for each frame.

    Raises:
        BadRecordError: no video, no frame, or a bound outside.
    """
    opened = video.open_video(path, where=path)
    chosen = video.choose_frames(
        opened,
        clip=bound,
        min_num_frame=num_segments,
        max_num_frame=num_segments,
        rng=None,
        where=path,
    )
    tiles = [
        load_image(frame, image_size=image_size, normalize_type=normalize_type)
        for frame in opened.frames(chosen)
    ]
    return torch.cat(tiles), [1] * len(tiles)
