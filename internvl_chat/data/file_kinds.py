"""What a file is that is no image: an error page, a pointer, a format that is not read."""

from __future__ import annotations

import re
from typing import Final

_HEIC: Final = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF: Final = {b"avif", b"avis"}
# (first bytes, what that is); the first that fits counts.
_MAGIC: Final = (
    (b"\xff\xd8\xff", "a damaged JPEG"),
    (b"\x89PNG\r\n\x1a\n", "a damaged PNG"),
    (b"GIF8", "a damaged GIF"),
    (b"%PDF-", "a PDF document"),
    (b"%!PS", "PostScript (EPS)"),
    (b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    (b"8BPS", "a Photoshop file (PSD)"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "a JPEG XL image, which is not read here"),
    (b"\xff\x0a", "a JPEG XL image, which is not read here"),
    (b"\x00\x00\x01\x00", "an icon (ICO), which is not read here"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)"),
    (b"DDS ", "a DirectDraw surface (DDS)"),
    (b"v/1\x01", "an OpenEXR image, which is not read here"),
    (b"#?RADIANCE", "a Radiance HDR image, which is not read here"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    (b"FLV\x01", "a video (FLV)"),
    (b"\x00\x00\x01\xba", "a video (MPEG)"),
    (b"\x00\x00\x01\xb3", "a video (MPEG)"),
    (b"0&\xb2u\x8ef\xcf\x11", "a video (Windows Media)"),
    (b"OggS", "an Ogg file (sound or video)"),
    (b"ID3", "sound (MP3)"),
    (b"fLaC", "sound (FLAC)"),
    (b"PK\x03\x04", "a zip archive (or an Office document)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"BZh", "bzip2-compressed data"),
    (b"\xfd7zXZ\x00", "xz-compressed data"),
    (b"(\xb5/\xfd", "zstd-compressed data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"PAR1", "a Parquet table"),
    (b"ARROW1", "an Arrow table"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a Windows program"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x00\x05\x16\x07", "a macOS companion file (AppleDouble), beside the real one"),
    (b"Mac OS X  ", "a macOS companion file"),
)
_RIFF: Final = {b"AVI ": "a video (AVI)", b"WAVE": "sound (WAV)", b"WEBP": "a damaged WebP"}
_LFS: Final = b"version https://git-lfs.github.com/spec/"
_TAG: Final = re.compile(rb"<(?P<name>!doctype\s+html|html|head|body|svg|[a-z][\w:-]*)[\s>]", re.I)
_LIST: Final = re.compile(rb"#EXTM3U|ffconcat|\s*<\?xml|[^\0]*(<MPD|\nc=IN IP)", re.IGNORECASE)
"""What FFmpeg takes for a list (HLS, concat, IMF, DASH, SDP), whatever stands behind it."""
KIND_BYTES: Final = 4096
"""What is looked at of a file."""


def kind_of(raw: bytes) -> str:
    """What a file is whose content no decoder took, as the end of "it is …".

    A function of the first 4 KiB: the same file is told alike in every run.

    Args:
        raw: the file, or its beginning.
    """
    if not raw:
        return "an empty file (0 bytes)"
    head = raw[:KIND_BYTES]
    if not head.strip(b"\0"):
        return "filled with zero bytes"
    if head.startswith(_LFS):
        return "a git-LFS pointer: the file itself was not fetched (git lfs pull)"
    if head[4:8] == b"ftyp":
        return _of_iso_media(head)
    if head.startswith(b"RIFF"):
        return _RIFF.get(head[8:12], "a RIFF file of an unknown kind")
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive"
    text = _as_text(head)
    if text is not None:
        return _of_text(text)
    if _LIST.match(head):
        return "a list of other files with bytes in it that are no text"
    return f"of an unknown kind (begins {_shown(head)})"


def _of_iso_media(head: bytes) -> str:
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[place : place + 4] for place in range(16, end, 4))}
    if head[8:12] in _AVIF or brands & _AVIF:
        return "an AVIF image that this Pillow cannot decode"
    if head[8:12] in _HEIC:
        return "a HEIC image, which is not read here: convert it to JPEG"
    if head[8:12] == b"crx ":
        return "a camera's raw image (CR3): convert it to JPEG"
    return "a video (MP4 or QuickTime)"


def _as_text(head: bytes) -> bytes | None:
    """The beginning as UTF-8 if it is text, else None."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return head[: len(head) // 2 * 2].decode("utf-16").encode("utf-8", "replace")
        except UnicodeDecodeError:
            return None
    body = head.removeprefix(b"\xef\xbb\xbf")
    text = body.decode("utf-8", "ignore")  # the last character may be cut
    num_lost = len(body) - len(text.encode())
    is_control = any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text)
    return None if is_control or num_lost > 3 + len(body) // 20 else text.encode()


def _of_text(text: bytes) -> str:
    start = text.lstrip()
    if not start:
        return "blank text"
    found = _TAG.search(start[:1024]) if start.startswith(b"<") else None
    if found is not None:
        name = found["name"].lower()
        if name in (b"html", b"head", b"body") or name.startswith(b"!doctype"):
            return "an HTML page, such as a download's error message"
        if b"<svg" in start.lower():
            return "an SVG drawing, which is not read here: render it to PNG"
        return "XML"
    if start.startswith(b"data:image/"):
        return "a data: URL: decode its base64 into the file"
    if start.startswith((b"{", b"[")):
        return f"JSON or other text (begins {_quoted(start)})"
    return f"text (begins {_quoted(start)})"


def _quoted(text: bytes) -> str:
    line = text.decode("utf-8", "replace").split("\n", 1)[0].strip()
    return repr(line if len(line) <= 40 else line[:37] + "...")


def _shown(head: bytes) -> str:
    return head[:8].hex(" ")
