"""What the page says of machine, time and code."""

from datetime import datetime, timezone

import pytest

from examples.quickstart.surroundings import commit, hardware, made_at, named_versions
from internvl_chat.machine import hardware as machine


def test_the_machine_is_told_as_far_as_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_name", lambda: "Some CPU")
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    monkeypatch.setattr(machine, "memory_gib", lambda: 7.6)
    assert hardware() == "Some CPU, 2 cores, 8 GiB of memory"
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    monkeypatch.setattr(machine, "memory_gib", lambda: None)
    assert hardware() == "Some CPU, 1 core"


def test_a_commit_is_short_and_says_when_files_differ() -> None:
    assert commit("0123456789abcdef0123") == "commit 0123456789"
    assert commit("0123456789abcdef0123+") == "commit 0123456789 with changes"
    assert commit(None) == "no git repository"


def test_the_time_has_its_zone_and_versions_their_names() -> None:
    assert made_at(datetime(2026, 11, 27, 1, 5, tzinfo=timezone.utc)) == "2026-11-27 01:05 UTC"
    assert named_versions({"python": "3.11", "torch": "2"}) == "python 3.11, torch 2"
