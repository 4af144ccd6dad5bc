"""The page's file: template, style and script put together, written as the samples come.

Nothing of it is loaded from anywhere, and its Content-Security-Policy lets nothing be: style and
script are admitted by their digests, so that markup in somebody's text could not run even if it
got out of its place.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from internvl_chat.data.report.charts import WIDE, Histogram
from internvl_chat.errors import ConfigError
from internvl_chat.files import written_aside

GENERATOR: Final = "internvl-chat data report"
_FOLDER: Final = Path(__file__).with_name("template")
_HEAD_BYTES: Final = 4096


@dataclass(frozen=True, kw_only=True)
class DatasetCharts:
    """Histograms of a dataset; None where it has nothing to show."""

    name: str
    tokens: Histogram | None
    tiles: Histogram | None


def check_output(path: Path) -> None:
    """Refuse to write over what is no report.

    Raises:
        ConfigError: it is a directory, or a file of another kind.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a directory", where="--output", fix="Name a file in it.")
    if path.exists():
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
        if f'content="{GENERATOR}"'.encode() not in head:
            raise ConfigError(
                f"{path} exists and is no report", where="--output", fix="Name another file."
            )


def write_page(path: Path, content: dict[str, Any], samples: Iterable[str]) -> int:
    """Write the page; nothing stands under its name until it is whole.

    Args:
        path: an ``.html`` file; a report that has the name is replaced.
        content: what the template names. Values are escaped, and read only when their place in the
            page has come: the bad records after the samples.
        samples: what the gallery holds, one after the other, as :func:`json_text` writes it.

    Returns:
        Bytes written.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = "{:,}".format
    environment.filters["percent"] = percent
    style, script = (_read(name) for name in ("report.css", "report.js"))
    parts = environment.get_template("report.html").generate(
        **content,
        generator=GENERATOR,
        policy=security_policy(style, script),
        style=style,
        script=script,
        wide=WIDE,
        samples=samples,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        # A lone surrogate (of a file name, say) becomes \udcff, which JSON reads as one.
        with open(aside, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            for part in parts:
                file.write(part)
        return aside.stat().st_size


def security_policy(style: str, script: str) -> str:
    """Only this style, this script and images within the page; nothing is ever asked for."""
    return "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src 'sha256-{_digest(style)}'",
            f"script-src 'sha256-{_digest(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
        )
    )


def json_text(value: object) -> str:
    """JSON fit for a ``<script>`` element: no ``<`` ends or opens anything."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def percent(share: float) -> str:
    """A share 0-1 in words.

    >>> [percent(share) for share in (0.0, 0.0002, 0.0123, 0.25, 1.0)]
    ['0 %', '< 0.1 %', '1.2 %', '25 %', '100 %']
    """
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
