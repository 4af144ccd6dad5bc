"""What ``run.py`` takes for a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from internvl_chat.cli.run import find_checkpoint
from internvl_chat.errors import ConfigError


def test_a_folder_of_results_hides_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``run.py`` writes to ``./NAME``: the same command must go on where it was."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretrained/NAME").mkdir(parents=True)
    (tmp_path / "pretrained/NAME/config.json").write_text("{}")
    (tmp_path / "NAME").mkdir()
    assert find_checkpoint("NAME") == "pretrained/NAME"
    (tmp_path / "NAME/adapter_config.json").write_text("{}")
    assert find_checkpoint("NAME") == "NAME"
    (tmp_path / "empty").mkdir()
    assert find_checkpoint("empty") == "empty"  # what it lacks is said when it is read
    with pytest.raises(ConfigError, match="no folder none and no pretrained/none"):
        find_checkpoint("none")
