"""The closest names, and how they are offered."""

from __future__ import annotations

from internvl_chat.model import close_names, suggest

KNOWN = ("freeze_llm", "freeze_mlp", "Hermes-2")


def test_the_closest_comes_first() -> None:
    assert close_names("freze_llm", KNOWN) == ["freeze_llm"]
    assert close_names("freze_llm", KNOWN, limit=3) == ["freeze_llm", "freeze_mlp"]


def test_case_does_not_count() -> None:
    assert close_names("HERMES2", KNOWN) == ["Hermes-2"]
    assert close_names("FREEZE_LLM", KNOWN) == ["freeze_llm"]


def test_the_cutoff_is_a_similarity() -> None:
    """``xy`` and ``xz`` share 2 of 4 characters."""
    assert close_names("xy", ["xz"]) == []
    assert close_names("xy", ["xz"], cutoff=0.5) == ["xz"]
    assert close_names("q", KNOWN, cutoff=0.0) != []
    assert close_names("q", []) == []


def test_as_a_question() -> None:
    assert suggest("freze_llm", KNOWN) == "Did you mean 'freeze_llm'?"
    assert suggest("freze_llm", KNOWN, limit=2) == "Did you mean 'freeze_llm' or 'freeze_mlp'?"
    assert suggest("freze_llm", KNOWN, write=str) == "Did you mean freeze_llm?"
    assert suggest("zzz", KNOWN) == ""


def test_any_iterable_will_do() -> None:
    assert suggest("on", (name for name in ("one", "two"))) == "Did you mean 'one'?"
