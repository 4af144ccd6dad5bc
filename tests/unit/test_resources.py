"""Files of the package that are no code: where they lie, their names, copies of them."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest

from internvl_chat import resources
from internvl_chat.cli import main
from internvl_chat.errors import ConfigError
from internvl_chat.resources import (
    copy_resources,
    find_zero_file,
    is_zero_name,
    resource_root,
    zero_files,
    zero_name,
)
from internvl_chat.shipped import OF_A_CLONE, SHIPPED, shipped_files
from internvl_chat.train.zero import read_zero_file
from tests.support.training import ROOT


def test_names_are_made_of_the_files() -> None:
    assert {name: path.name for name, path in zero_files().items()} == {
        "zero1": "zero_stage1_config.json",
        "zero2": "zero_stage2_config.json",
        "zero2_offload": "zero_stage2_offload_config.json",
        "zero3": "zero_stage3_config.json",
        "zero3_34b": "zero_stage3_config_34b.json",
        "zero3_offload": "zero_stage3_offload_config.json",
    }
    assert zero_name("zero_stage0") == "zero0"
    assert [zero_name(stem) for stem in ("ds_config", "zero_config", "zero_stage_config")] == [
        *(None, None, None)
    ]


@pytest.mark.parametrize("name", ["zero3", "ZeRO3", "zero3-offload"])
def test_a_name_is_read_as_its_file(name: str) -> None:
    path = find_zero_file(name)
    assert read_zero_file(name) == json.loads(path.read_text())
    assert read_zero_file(name) == read_zero_file(str(path))


def test_a_file_of_the_name_goes_first_and_a_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero3").mkdir()
    assert read_zero_file("zero3")["zero_optimization"]["stage"] == 3
    (tmp_path / "zero1").write_text('{"zero_optimization": {"stage": 2}}')
    assert read_zero_file("zero1") == {"zero_optimization": {"stage": 2}}
    assert not is_zero_name("zero1")
    assert not any(map(is_zero_name, ("zero3.json", "a/zero3", "~zero3")))


def test_unknown_names_and_missing_files_list_the_names() -> None:
    listed = ", ".join(zero_files())
    with pytest.raises(ConfigError) as caught:
        read_zero_file("zero3_ofload")
    assert str(caught.value) == (
        f"--deepspeed: 'zero3_ofload' is neither a file here nor one of the names {listed}. "
        "Did you mean zero3_offload?"
    )
    with pytest.raises(ConfigError, match="Give one of them, or the path of a file") as caught:
        read_zero_file("stage")
    with pytest.raises(ConfigError) as caught:
        read_zero_file("shell/zero.json")
    assert str(caught.value) == (
        "--deepspeed shell/zero.json: cannot be read (No such file or directory). "
        f"By name, without a file: {listed}."
    )


def test_a_package_without_its_files_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resource_root() == ROOT
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "internvl_chat")
    with pytest.raises(ConfigError, match="Install the package from its wheel"):
        resource_root()


def test_what_is_shipped_exists_and_is_tidy(tmp_path: Path) -> None:
    for name in SHIPPED:
        if name != "examples/configs/" or (ROOT / name).is_dir():
            assert any(file.startswith(name) for file in shipped_files(ROOT)), name
    for name in OF_A_CLONE:
        assert (ROOT / name).is_file()
    for name in ("shell/lib/a.sh", "shell/lib/.a.sh.swp", "shell/lib/__pycache__/a.pyc", "shell/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert shipped_files(tmp_path) == ["shell/lib/a.sh"]


def test_recipes_writes_what_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    total = len(shipped_files(ROOT))
    assert main(["recipes", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: {total} of {total} files written.\n"
    for name in shipped_files(ROOT):
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes()
    recipe = "shell/lib/launch.sh"
    assert (folder / recipe).stat().st_mode & stat.S_IXUSR
    (folder / recipe).unlink()
    (folder / "run.py").write_text("mine")
    assert main(["recipes", str(folder)]) == 1
    assert capsys.readouterr().out == (
        f"{folder}: 1 of {total} files written, {total - 2} there already, 1 left that differ:\n"
        "  run.py\nWrite into another folder to compare, or move them away.\n"
    )
    assert (folder / "run.py").read_text() == "mine"
    assert main(["recipes", str(folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["written"], report["kept"]) == ([], ["run.py"])


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ConfigError, match="a file stands where a folder is to be"):
            copy_resources(place)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/shell").touch()
    with pytest.raises(ConfigError, match="a file stands where a folder is to be"):
        copy_resources(tmp_path / "mine")
    long = tmp_path / ("x" * 300)
    with pytest.raises(ConfigError) as caught:
        copy_resources(long)
    assert str(caught.value).startswith(f"{long}: cannot be written: ")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/run.py").symlink_to(tmp_path / "nowhere")
    assert copy_resources(tmp_path / "links").kept == ("run.py",)
    assert not (tmp_path / "nowhere").exists()


def test_recipes_lists_files_and_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--list"]) == 0
    shown = capsys.readouterr().out
    files, names = shown.split("\n--deepspeed by name:\n")
    assert files.split() == shipped_files(ROOT)
    assert re.findall(r"^  (\S+) +(\S+)$", names, re.M) == [
        (name, os.path.relpath(path, ROOT)) for name, path in zero_files().items()
    ]
    for wrong in (["recipes"], ["recipes", "--list", "folder"]):
        assert main(wrong) == 2
        assert "want a folder to write into, or --list" in capsys.readouterr().err
