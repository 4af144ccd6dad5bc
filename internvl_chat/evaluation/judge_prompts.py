"""What judges are asked: the texts of ``judge_prompts.yaml``, or a user's own in their place."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from internvl_chat.errors import ConfigError
from internvl_chat.model.suggestions import suggest

FIELDS: Mapping[str, tuple[str, ...]] = {
    "choice_en": ("question", "options", "prediction"),
    "choice_cn": ("question", "options", "prediction"),
    "yes_no": ("question", "prediction"),
    "mmvet": ("question", "ground_truth", "prediction"),
    "llava_bench": ("context", "question", "answer_1", "answer_2", "category"),
    "mathvista_extract": ("question", "response"),
}
"""What a request of each key must hand over. ``category`` (``conv``, ``detail``, ``complex``)
chooses the text of ``{rule}`` and may be left out of the prompt."""

CATEGORIES = ("conv", "detail", "complex")
"""Of LLaVA-Bench."""


@dataclass(frozen=True, kw_only=True)
class JudgePrompt:
    """One of the texts."""

    user: str
    system: str | None
    rules: Mapping[str, str]
    """Category -> the text of ``{rule}``."""

    def fill(self, fields: Mapping[str, str]) -> list[dict[str, str]]:
        """Chat messages. Braces inside of fields stay what they are: one pass, no ``format``."""
        values = dict(fields)
        if self.rules:
            values["rule"] = self.rules[fields["category"]]
        slots = re.compile("{(" + "|".join(map(re.escape, values)) + ")}")
        texts = {"system": self.system, "user": self.user}
        return [
            {"role": role, "content": slots.sub(lambda slot: values[slot[1]], text)}
            for role, text in texts.items()
            if text is not None
        ]


class JudgePrompts:
    """All of the texts, by key."""

    def __init__(self, prompts: Mapping[str, JudgePrompt]) -> None:
        self._prompts = dict(prompts)

    def messages(self, key: str, fields: Mapping[str, str]) -> list[dict[str, str]]:
        """The chat messages of one request.

        Raises:
            ValueError: a scorer asks with a key or fields that do not exist.
            ConfigError: the data has a category without a rule.
        """
        if key not in self._prompts or set(fields) != set(FIELDS[key]):
            raise ValueError(f"{key} with fields {sorted(fields)}; there are {dict(FIELDS)}")
        prompt = self._prompts[key]
        if prompt.rules and fields["category"] not in prompt.rules:
            raise ConfigError(
                f"the data has the category {fields['category']!r}, the prompt {key!r} has rules "
                f"for {', '.join(sorted(prompt.rules))}",
                where="--judge-prompts",
                fix=f'Give a file with "{key}" and a rule for it, or mend the data.',
            )
        return prompt.fill(fields)

    def sha256(self, key: str | None = None) -> str:
        """Hash of one text, or of all: equal hashes are equal words."""
        chosen = self._prompts if key is None else {key: self._prompts[key]}
        content = {
            name: {"user": one.user, "system": one.system, "rules": dict(one.rules)}
            for name, one in chosen.items()
        }
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()


def load_judge_prompts(path: Path | None = None) -> JudgePrompts:
    """The package's texts; keys that a user's file holds go before them.

    Args:
        path: of ``--judge-prompts``: YAML, the same keys, all of them or some.

    Raises:
        ConfigError: the file cannot be read, has an unknown key, or a text lacks a field.
    """
    own = files("internvl_chat.evaluation").joinpath("judge_prompts.yaml")
    prompts = _parse(own.read_text("utf-8"), "judge_prompts.yaml")
    if path is not None:
        try:
            text = path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as err:
            raise ConfigError(
                f"cannot be read ({err})", where=str(path), fix="--judge-prompts wants a YAML file."
            ) from err
        prompts |= _parse(text, str(path))
    return JudgePrompts(prompts)


def _parse(text: str, where: str) -> dict[str, JudgePrompt]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ConfigError(f"is no YAML ({err})", where=where) from err
    if not isinstance(content, dict) or not content:
        known = ", ".join(FIELDS)
        raise ConfigError("is no table of prompts", where=where, fix=f"Its keys are {known}.")
    return {key: _parse_one(key, value, where) for key, value in content.items()}


def _parse_one(key: object, value: Any, where: str) -> JudgePrompt:
    if key not in FIELDS or not isinstance(key, str):
        near = suggest(str(key), FIELDS)
        raise ConfigError(
            f"no judge is called {key!r}", where=where, fix=f"{near} Keys: {', '.join(FIELDS)}."
        )
    where = f"{where}, {key!r}"
    parts = {"user": value} if isinstance(value, str) else value
    if not isinstance(parts, dict) or set(parts) - {"user", "system", "rules"}:
        raise ConfigError(
            "want a text, or an object of user, system and rules", where=where, fix="Rewrite it."
        )
    user, system, rules = parts.get("user"), parts.get("system"), parts.get("rules") or {}
    if not isinstance(user, str) or not isinstance(system, str | None):
        raise ConfigError('"user" and "system" are texts', where=where, fix="Quote them.")
    if not isinstance(rules, dict) or not all(isinstance(one, str) for one in rules.values()):
        raise ConfigError('"rules" maps categories to texts', where=where, fix="Quote them.")
    wanted = [*(name for name in FIELDS[key] if name != "category"), *(["rule"] if rules else [])]
    both = user + (system or "")
    missing = [f"{{{name}}}" for name in wanted if f"{{{name}}}" not in both]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not in the text", where=where, fix="The judge would not see it."
        )
    lacking = set(CATEGORIES) - set(rules)
    if "{rule}" in both and lacking:
        raise ConfigError(
            f"no rule for {', '.join(sorted(lacking))}", where=where, fix="{rule} stands for it."
        )
    stripped = {str(name): one.strip() for name, one in rules.items()}
    return JudgePrompt(
        user=user.rstrip("\n"), system=system.rstrip("\n") if system else None, rules=stripped
    )
