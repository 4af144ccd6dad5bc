"""Images' URLs -> the images' files -> tiles."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence

from torch import Tensor

from internvl_chat.data.schema import BadRecordError
from internvl_chat.serve.refusals import RequestError
from internvl_chat.serve.remote import RemoteImages
from internvl_chat.serve.settings import MB, RequestLimits


async def fetch_remote(
    urls: Sequence[str], limits: RequestLimits, remote: RemoteImages | None
) -> list[str | bytes]:
    """Replace URLs of other machines by the files behind them; data URLs stay as they are.

    Args:
        urls: of the images of one request.
        limits: of their number, and of the bytes of all files together.
        remote: how other machines are asked; None: not at all.

    Raises:
        RequestError: too many, another kind of URL, too large, or not to be had.
    """
    if len(urls) > limits.max_images:
        raise RequestError(
            f"{len(urls)} images; this server takes {limits.max_images} a request (--max-images)",
            status=413,
            param="messages",
        )
    found: list[str | bytes] = []
    num_bytes = 0
    for number, url in enumerate(urls):
        where = place_of(number)
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            found.append(url)
            continue
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


def place_of(number: int) -> str:
    """What messages call the request's image of this number, from 0."""
    return f"image {number + 1}"


def decode_data_url(url: str, where: str, limits: RequestLimits) -> bytes:
    """The file in ``data:image/...;base64,...``.

    Raises:
        RequestError: something else, broken base64, or too large.
    """
    head, comma, data = url.partition(",")
    kind, *parameters = head.partition(":")[2].lower().split(";")
    if not comma or not kind.startswith("image/") or "base64" not in parameters:
        raise RequestError(f"{where}: want data:image/...;base64,...", param=where)
    if len(data) // 4 * 3 - data[-2:].count("=") > limits.max_image_bytes:
        raise RequestError(
            f"{where}: the image's file is larger than {limits.max_image_bytes / MB:g} MB "
            "(--max-image-mb)",
            status=413,
            param=where,
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as err:
        raise RequestError(f"{where}: broken base64: {err}", param=where) from err


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
