"""``data:`` URLs: the forms that browsers take, and no others."""

from __future__ import annotations

import base64

import pytest

from internvl_chat.data.data_urls import (
    DataUrl,
    DataUrlError,
    forgiving_base64,
    is_data_url,
    percent_decoded,
    read_data_url,
)

RAW = bytes(range(256)) * 3
PLAIN = base64.b64encode(RAW).decode()


@pytest.mark.parametrize(
    "body",
    [
        PLAIN,
        base64.encodebytes(RAW).decode(),
        base64.encodebytes(RAW).decode().replace("\n", "\r\n"),
        base64.encodebytes(RAW).decode().replace("\n", "%0A"),
        "".join(f"%{ord(one):02x}" for one in PLAIN),
        PLAIN.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        f" {PLAIN[:7]}\t{PLAIN[7:]}\f ",
        PLAIN.rstrip("="),
        f"{PLAIN}#fragment",
    ],
)
def test_one_file_in_many_forms(body: str) -> None:
    assert read_data_url(f"data:image/png;base64,{body}") == DataUrl("image/png", RAW)


@pytest.mark.parametrize(
    ("url", "media_type", "raw"),
    [
        ("DATA:IMAGE/PNG;BASE64,YQ==", "image/png", b"a"),
        ("\n data:image/png;base64,YQ== \n", "image/png", b"a"),
        ("data:image/png;charset=utf-8;name=a.png;base64,YQ==", "image/png", b"a"),
        ("data: image/png ; base64,YQ==", "image/png", b"a"),
        ("data:;base64,YQ==", "", b"a"),
        ("data:base64,YQ==", "base64", b"YQ=="),
        ("data:image/png;base64;x,YQ==", "image/png", b"YQ=="),
        ("data:,", "", b""),
        ("data:image/svg+xml,%3Csvg%20a='1,2'/%3E", "image/svg+xml", b"<svg a='1,2'/>"),
        ("data:text/plain,100%+%zz%4%", "text/plain", b"100%+%zz%4%"),
        ("data:,a%00%ff", "", b"a\x00\xff"),
        ("data:,\u00e9", "", b"\xc3\xa9"),
        ("data:;base64,YR==", "", b"a"),  # bits beyond the last byte are passed over
    ],
)
def test_types_parameters_and_escapes(url: str, media_type: str, raw: bytes) -> None:
    assert is_data_url(url)
    assert read_data_url(url) == DataUrl(media_type, raw)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("data:image/png;base64", "without a comma"),
        ("data:", "without a comma"),
        ("image/png;base64,YQ==", "no data: URL"),
        ("data:;base64,YQ=", "'=' at character 3"),
        ("data:;base64,YQ===", "'=' at character 3"),
        ("data:;base64,YQ==YQ==", "'=' at character 3"),
        ("data:;base64,Y", "ends within a byte"),
        ("data:;base64,Y-Q_", "'-' at character 2"),
        ("data:;base64,YQ%", "'%' at character 3"),
        ("data:;base64,YQ\u00a0==", "at character 3"),
    ],
)
def test_broken_ones(url: str, problem: str) -> None:
    with pytest.raises(DataUrlError, match=problem):
        read_data_url(url)


def test_parts() -> None:
    assert forgiving_base64("") == b""
    assert percent_decoded("") == b""
    assert percent_decoded("%") == b"%"
    assert percent_decoded("%41%4") == b"A%4"
    assert percent_decoded("%%41") == b"%A"
    assert percent_decoded("%2541") == b"%41"  # once only
    assert percent_decoded("\ud800") == b"?"  # half an emoji, out of JSON
    assert not is_data_url("database.png")
    assert not is_data_url("")
