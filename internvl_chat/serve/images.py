"""Images' URLs -> the images' files -> tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from torch import Tensor

from internvl_chat.data.data_urls import DataUrlError, is_data_url, read_data_url
from internvl_chat.data.schema import BadRecordError
from internvl_chat.serve.refusals import RequestError
from internvl_chat.serve.remote import RemoteImages
from internvl_chat.serve.settings import MB, RequestLimits
from internvl_chat.serve.turns import SentImage

_UNKNOWN_KINDS: Final = ("", "application/octet-stream", "binary/octet-stream")
"""Types that leave open what a file is; its first bytes say it anyway."""


async def fetch_remote(
    images: Sequence[SentImage], limits: RequestLimits, remote: RemoteImages | None
) -> list[SentImage | bytes]:
    """Replace URLs of other machines by the files behind them; data URLs stay as they are.

    Args:
        images: of one request.
        limits: of their number, and of the bytes of all files together.
        remote: how other machines are asked; None: not at all.

    Raises:
        RequestError: too many, another kind of URL, too large, or not to be had.
    """
    if len(images) > limits.max_images:
        raise RequestError(
            f"{len(images)} images; this server takes {limits.max_images} a request (--max-images)",
            status=413,
            param="messages",
        )
    found: list[SentImage | bytes] = []
    num_bytes = 0
    for image in images:
        url, where = image.url, image.where
        if is_data_url(url):
            found.append(image)
            continue
        scheme = url.partition(":")[0].lower()
        if scheme not in ("http", "https"):
            raise RequestError(
                f"{where}: {scheme[:20]!r} URLs are not served; want data:image/...;base64,...",
                param=where,
            )
        if remote is None:
            raise RequestError(
                f"{where}: this server fetches no images from other machines; send the image "
                "itself as data:image/...;base64,... or start the server with "
                "--allow-remote-images",
                param=where,
                code="remote_images_not_allowed",
            )
        raw = await remote.fetch(url, where)
        num_bytes += len(raw)
        if num_bytes > limits.max_request_bytes:
            raise RequestError(
                f"the images' files are larger than {limits.max_request_bytes / MB:g} MB "
                "together (--max-request-mb)",
                status=413,
                param=where,
            )
        found.append(raw)
    return found


def decode_data_url(image: SentImage, limits: RequestLimits) -> bytes:
    """The file in ``data:image/...;base64,...``, percent escapes and line breaks as in a browser.

    Raises:
        RequestError: something else, broken base64, or too large.
    """
    where = image.where
    try:
        found = read_data_url(image.url)
    except DataUrlError as err:
        raise RequestError(
            f"{where}: {err}; want data:image/...;base64,...", param=where, code="bad_image"
        ) from err
    kind = found.media_type
    if not (kind in _UNKNOWN_KINDS or kind.startswith("image/")):
        raise RequestError(
            f"{where}: the type is {kind[:60]!r}; want data:image/...;base64,...",
            param=where,
            code="bad_image",
        )
    if len(found.raw) > limits.max_image_bytes:
        raise RequestError(
            f"{where}: the image's file is larger than {limits.max_image_bytes / MB:g} MB "
            "(--max-image-mb)",
            status=413,
            param=where,
        )
    return found.raw


def tiles_of_file(
    raw: bytes, where: str, limits: RequestLimits, cut: Callable[[bytes, str, int], Tensor]
) -> Tensor:
    """Decode an image's file and cut it.

    Args:
        raw: the file.
        where: what messages call it.
        limits: of its pixels.
        cut: makes (n, 3, S, S) of a file, its name and the most pixels.

    Raises:
        RequestError: no image, broken, of a format that is not decoded here, or too many pixels.
    """
    try:
        return cut(raw, "the image", limits.max_upload_pixels)
    except BadRecordError as err:
        status = 413 if err.code == "TOO_MANY_PIXELS" else 400
        raise RequestError(
            f"{where}: {err.problem}", status=status, param=where, code="bad_image"
        ) from err
