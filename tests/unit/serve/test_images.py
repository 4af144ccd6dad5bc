"""URLs of images."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from urllib.parse import quote

import pytest
import torch
from PIL import Image

from internvl_chat.config import DecodeConfig
from internvl_chat.data.images import decode_image
from internvl_chat.serve.images import decode_data_url, fetch_remote, tiles_of_file
from internvl_chat.serve.refusals import RequestError
from internvl_chat.serve.remote import RemoteImages
from internvl_chat.serve.settings import RequestLimits
from internvl_chat.serve.turns import SentImage
from tests.support.serving import data_url, shape_image

LIMITS = RequestLimits(max_image_bytes=20_000, max_upload_pixels=20_000)


def load(url: str) -> Image.Image:
    (found,) = asyncio.run(fetch_remote([SentImage(url, "image 1")], LIMITS, None))
    assert isinstance(found, SentImage)
    decoded: list[Image.Image] = []

    def cut(raw: bytes, name: str, max_pixels: int) -> torch.Tensor:
        rule = DecodeConfig.as_shown()
        image = decode_image(raw, where=name, path=name, max_pixels=max_pixels, decode=rule)
        decoded.append(image.rgb)
        return torch.zeros(1)

    tiles_of_file(decode_data_url(found, LIMITS), "image 1", LIMITS, cut)
    return decoded[0]


@pytest.mark.parametrize("kind", ["png", "webp", "gif", "bmp"])
def test_kinds_of_files(kind: str) -> None:
    image = shape_image().resize((64, 64))
    assert load(data_url(image, kind)).size == (64, 64)
    assert load(data_url(image, kind)).mode == "RGB"


def test_pixels_arrive() -> None:
    assert load(data_url(shape_image())).tobytes() == shape_image().tobytes()
    assert load(data_url(shape_image(), "jpeg")).size == shape_image().size


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("data:image/png;base64", base64.encodebytes),
        ("DATA:image/PNG;name=a.png;BASE64", lambda raw: base64.b64encode(raw).rstrip(b"=")),
        ("data:;base64", base64.b64encode),
        ("data:application/octet-stream;base64", base64.b64encode),
        ("data:image/png;base64", lambda raw: quote(base64.b64encode(raw), safe="").encode()),
        ("data:image/png", lambda raw: quote(raw).encode()),
    ],
)
def test_forms_that_browsers_take(head: str, body: Callable[[bytes], bytes]) -> None:
    assert load(f"{head},{body(PNG).decode()}").tobytes() == shape_image().tobytes()


def data(raw: bytes, head: str = "data:image/png;base64") -> str:
    return f"{head},{base64.b64encode(raw).decode()}"


def postscript() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, format="EPS")
    return file.getvalue()


PNG = base64.b64decode(data_url(shape_image()).partition(",")[2])


@pytest.mark.parametrize(
    ("url", "status", "problem"),
    [
        ("file:///etc/passwd", 400, "'file' URLs are not served"),
        ("/etc/passwd", 400, "URLs are not served"),
        ("ftp://host/a.png", 400, "'ftp' URLs"),
        ("http://example.com/a.png", 400, "fetches no images from other machines"),
        ("HTTPS://example.com/a.png", 400, "--allow-remote-images"),
        ("data:image/png,abc", 400, "the image is no image that can be read: it is text"),
        ("data:text/html;base64,YQ==", 400, "want data:image/...;base64"),
        ("data:image/png;base64", 400, "want data:image/...;base64"),
        ("data:image/png;base64,YQ=", 400, "broken base64"),
        ("data:image/png;base64,Y-Q=", 400, "broken base64"),
        ("data:image/png;base64,é", 400, "broken base64"),
        (data(b"no image"), 400, "the image is no image that can be read: it is text"),
        (data(b"<html>"), 400, "it is an HTML page"),
        (data(PNG, "data:text/html;base64"), 400, "the type is 'text/html'"),
        (data(PNG[: len(PNG) // 2]), 400, "the image cannot be decoded"),
        (data(postscript()), 400, "it is PostScript (EPS)"),
        (data(bytes(20_001)), 413, "larger than 0.02 MB"),
        (data_url(Image.new("RGB", (200, 101))), 413, "20200 pixels, more than 20000"),
    ],
)
def test_what_is_no_image(url: str, status: int, problem: str) -> None:
    with pytest.raises(RequestError) as caught:
        load(url)
    assert caught.value.status == status
    assert problem in caught.value.message
    assert caught.value.message.startswith("image 1: ")


def test_a_file_of_the_largest_size_is_taken() -> None:
    assert load(data(PNG + bytes(20_000 - len(PNG)))).size == shape_image().size


class Remote(RemoteImages):
    """Has 5 bytes behind every URL."""

    async def fetch(self, url: str, where: str) -> bytes:
        assert url == "http://other/a.png"
        return b"12345"


def test_files_of_other_machines_are_limited_together() -> None:
    limits = RequestLimits(max_request_bytes=10)
    remote = Remote(max_bytes=5)
    urls = ["http://other/a.png", "data:image/png;base64,", "http://other/a.png"]
    images = [SentImage(url, f"image {number}") for number, url in enumerate(urls, start=1)]
    found = asyncio.run(fetch_remote(images, limits, remote))
    assert found == [b"12345", images[1], b"12345"]
    with pytest.raises(RequestError, match="together") as caught:
        asyncio.run(fetch_remote([*images, SentImage(urls[0], "image 4")], limits, remote))
    assert (caught.value.status, caught.value.param) == (413, "image 4")


def test_too_many_images() -> None:
    with pytest.raises(RequestError, match="3 images; this server takes 2") as caught:
        asyncio.run(fetch_remote([SentImage("data:x", "")] * 3, RequestLimits(max_images=2), None))
    assert (caught.value.status, caught.value.param) == (413, "messages")
