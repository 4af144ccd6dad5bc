"""Slurm's compressed host lists."""

from __future__ import annotations

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.train.slurm import expand_nodelist


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-2,5]", ["n1", "n2", "n5"]),
        ("gpu-[08-10],login", ["gpu-08", "gpu-09", "gpu-10", "login"]),
        ("r[1-2]n[1,3]", ["r1n1", "r1n3", "r2n1", "r2n3"]),
        ("a-1.example.org,b", ["a-1.example.org", "b"]),
        ("n[007]-ib", ["n007-ib"]),
    ],
)
def test_expand_nodelist(text: str, hosts: list[str]) -> None:
    assert expand_nodelist(text) == hosts


@pytest.mark.parametrize("text", ["n[1-2", "n[a-b]", "n1]", ""])
def test_expand_nodelist_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="Set MASTER_ADDR"):
        expand_nodelist(text)
