"""``tokenizer.json`` as the tokenizers library of transformers 4.37 (0.15) reads it."""

from __future__ import annotations

import copy
import json
import logging
from typing import Any

logger = logging.getLogger(__name__)

_PROBES = ("The answer is 42, not 17.", " two  spaces\nand\ttabs", "中文 naïve Ω 😀", "")


def spell_for_old_tokenizers(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The same tokenizer in the spelling that versions before 0.19 knew, which all newer ones read.

    Merges become texts; a ``Metaspace`` that does not split becomes the normaliser it stands for.
    What has no older spelling is left as it is, with a warning.

    Args:
        values: of ``tokenizer.json``.
        where: of the file, for messages.
    """
    older = copy.deepcopy(values)
    reasons = [*_old_merges(older.get("model") or {}), *_old_metaspace(older)]
    if not reasons and not _cuts_alike(values, older):
        reasons.append("it would cut text otherwise")
    if not reasons:
        return older
    logger.warning(
        "%s needs tokenizers 0.20 or newer, transformers 4.45 that is (%s)",
        where,
        "; ".join(reasons),
    )
    return values


def _old_merges(model: dict[str, Any]) -> list[str]:
    merges = model.get("merges")
    if not merges or isinstance(merges[0], str):
        return []
    if any(" " in piece for pair in merges for piece in pair):
        return ["merges of pieces with spaces in them"]
    model["merges"] = [" ".join(pair) for pair in merges]
    return []


def _old_metaspace(values: dict[str, Any]) -> list[str]:
    """Changes pre-tokeniser and decoder in place; says what cannot be changed."""
    for step in _steps(values.get("decoder"), "decoders"):
        if step.get("type") == "Metaspace":
            step.setdefault("add_prefix_space", step.get("prepend_scheme") != "never")
            step.pop("split", None)
    pre_tokenizer = values.get("pre_tokenizer")
    for step in _steps(pre_tokenizer, "pretokenizers"):
        if step.get("type") != "Metaspace":
            continue
        if step.pop("split", True):
            step.setdefault("add_prefix_space", step.get("prepend_scheme") != "never")
        elif step is not pre_tokenizer or step.get("prepend_scheme") == "first":
            return ["a prefix space at the beginning of the text only"]
        else:
            values["pre_tokenizer"] = None
            values["normalizer"] = _as_normalizer(values.get("normalizer"), step)
    return []


def _as_normalizer(normalizer: dict[str, Any] | None, metaspace: dict[str, Any]) -> dict[str, Any]:
    space = metaspace["replacement"]
    steps: list[dict[str, Any]] = [] if normalizer is None else [normalizer]
    if metaspace.get("prepend_scheme") == "always":
        steps.append({"type": "Prepend", "prepend": space})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": space})
    return {"type": "Sequence", "normalizers": steps}


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """A part, or what a sequence of them consists of."""
    if part is None:
        return []
    return list(part[key]) if part.get("type") == "Sequence" else [part]


def _cuts_alike(newer: dict[str, Any], older: dict[str, Any]) -> bool:
    from tokenizers import Tokenizer

    one, two = (Tokenizer.from_str(json.dumps(values)) for values in (newer, older))
    pieces = [token["content"] for token in newer.get("added_tokens") or []]
    texts = [*_PROBES, *(f"a {piece} b{piece}" for piece in pieces[:50])]
    return all(one.encode(text).ids == two.encode(text).ids for text in texts)
