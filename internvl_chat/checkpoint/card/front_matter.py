"""The YAML between two lines of dashes that begins a card."""

from __future__ import annotations

import re
from typing import Any

import yaml

_FENCED = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
KEPT = ("license", "license_name", "license_link", "language")
"""Keys that a model has from its base."""


def split(text: str) -> tuple[dict[str, Any], str]:
    """A card's front matter and the rest; no values where there is none, or no YAML."""
    match = _FENCED.match(text)
    if match is None:
        return {}, text
    try:
        values = yaml.safe_load(match[1])
    except yaml.YAMLError:
        values = None
    return (values if isinstance(values, dict) else {}), text[match.end() :]


def joined(values: dict[str, Any], body: str) -> str:
    """A card."""
    matter = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{matter}---\n\n{body.strip()}\n"


def kept(values: dict[str, Any]) -> dict[str, Any]:
    """Licence and language, where a base's card says them."""
    return {key: values[key] for key in KEPT if values.get(key) is not None}
