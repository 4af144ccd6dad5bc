"""What the page says of machine, time and code."""

import os
from datetime import datetime, timezone
from pathlib import Path

from examples.quickstart.surroundings import commit, hardware, made_at, named_versions, processor


def test_the_processor_has_a_name_everywhere(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU: 3 GHz\nflags\t: fpu\n")
    assert processor(info) == "Some CPU: 3 GHz"
    assert processor(tmp_path / "none")  # macOS
    assert f"{os.cpu_count()} core" in hardware()


def test_a_commit_is_short_and_says_when_files_differ() -> None:
    assert commit("0123456789abcdef0123") == "commit 0123456789"
    assert commit("0123456789abcdef0123+") == "commit 0123456789 with changes"
    assert commit(None) == "no git repository"


def test_the_time_has_its_zone_and_versions_their_names() -> None:
    assert made_at(datetime(2026, 11, 27, 1, 5, tzinfo=timezone.utc)) == "2026-11-27 01:05 UTC"
    assert named_versions({"python": "3.11", "torch": "2"}) == "python 3.11, torch 2"
