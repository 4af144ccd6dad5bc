"""Pictures and videos as the tiles that ``model.chat`` takes, cut by the code of training."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from internvl_chat.data import images, video
from internvl_chat.data.images import ImageSettings
from internvl_chat.model.constants import NormalizeType


def image_settings(config: Any) -> ImageSettings:
    """How a chat model's configuration says that pictures become tiles.

    ``normalize_type`` is what ``load_model`` found in ``preprocessor_config.json``.
    """
    return ImageSettings(
        image_size=config.force_image_size or config.vision_config.image_size,
        pad2square=config.pad2square,
        dynamic_image_size=config.dynamic_image_size,
        use_thumbnail=config.use_thumbnail,
        min_dynamic_patch=config.min_dynamic_patch,
        max_dynamic_patch=config.max_dynamic_patch,
        normalize_type=getattr(config, "normalize_type", "imagenet"),
    )


def load_tiles(image: str | Image.Image, settings: ImageSettings) -> Tensor:
    """One picture by a model's settings (:func:`image_settings`); (n, 3, S, S) float32."""
    if isinstance(image, str):
        picture = images.load_image(image, where=image)
    else:
        picture = images.to_rgb(image, where="load_image")
    tiles = images.preprocess(picture, settings, max_tiles=settings.max_dynamic_patch)
    return images.normalize_pixels(tiles, normalize_type=settings.normalize_type)


def load_image(
    image: str | Image.Image,
    *,
    image_size: int = 448,
    max_num: int = 1,
    use_thumbnail: bool = True,
    normalize_type: NormalizeType = "imagenet",
) -> Tensor:
    """One picture, resized and normalised.

    Args:
        image: a file, or a picture of any mode.
        image_size: S, the model's ``force_image_size``.
        max_num: with more than one, the picture is cut into up to so many square tiles.
        use_thumbnail: add the whole picture as the last tile where there are several.
        normalize_type: pixel statistics that the model was trained with.

    Returns:
        (n, 3, S, S) float32.

    Raises:
        BadRecordError: the file is missing, too large or no picture.
    """
    settings = ImageSettings(
        image_size=image_size,
        dynamic_image_size=max_num > 1,
        use_thumbnail=use_thumbnail,
        max_dynamic_patch=max_num,
        normalize_type=normalize_type,
    )
    return load_tiles(image, settings)


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
        path: a video file, a ``.gif`` or a folder of pictures.
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
