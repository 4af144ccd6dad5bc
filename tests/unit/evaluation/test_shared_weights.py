"""When ranks on a CPU share a converted copy of the weights, and what it holds."""

from __future__ import annotations

import logging
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from internvl_chat.checkpoint.sources import find_sources
from internvl_chat.checkpoint.tensor_files import numel
from internvl_chat.config import SourceConfig
from internvl_chat.evaluation.shared_weights import _converted, _is_copied, shared_weights
from tests.support.evaluation.scripted import ALONE
from tests.support.training import ROOT

MODEL = str(ROOT / "pretrained/internvl-chat-tiny")
TWO = replace(ALONE, world_size=2, launcher="pytorch")
STORED = next(iter(find_sources(SourceConfig.whole(MODEL)).tensors.values())).dtype
OTHER = torch.bfloat16 if torch.float32 == STORED else torch.float32


def test_only_what_would_be_copied_is_converted() -> None:
    assert _is_copied(MODEL, OTHER, TWO)
    assert not _is_copied(MODEL, STORED, TWO)
    assert not _is_copied(MODEL, OTHER, ALONE)
    assert not _is_copied(MODEL, OTHER, replace(TWO, device=torch.device("cuda", 0)))
    with shared_weights(MODEL, OTHER, ALONE) as path:
        assert path == MODEL


def test_the_same_values_in_another_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = _converted(MODEL, OTHER)
    assert found is not None
    assert found.is_relative_to(tmp_path)
    before = find_sources(SourceConfig.whole(MODEL)).tensors
    after = find_sources(SourceConfig.whole(str(found))).tensors
    assert set(after) == set(before)
    for name, source in after.items():
        assert source.dtype == OTHER
        length = numel(source.shape)
        wanted = before[name].read(0, length).to(OTHER)
        assert torch.equal(source.read(0, length), wanted)


def test_without_room_each_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with caplog.at_level(logging.WARNING):
        assert _converted(MODEL, OTHER) is None
    assert "each rank holds a copy of the weights; TMPDIR names another" in caplog.text
    assert list(tmp_path.iterdir()) == []
