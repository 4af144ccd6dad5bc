"""docs/install.md: what it types without network, and the containers that do the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.page_runs import copy_of_clone
from tests.support.pages import ROOT, commands, page_text

PAGE = "docs/install.md"
CONTAINERS = ROOT / "tools/container"


def typed(*parts: str) -> str:
    """The page's one command that holds all of these."""
    (found,) = {one.text for one in commands(PAGE) if all(part in one.text for part in parts)}
    return found


def pins() -> dict[str, str]:
    """The pinned versions that apply to this machine."""
    found = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        one = Requirement(line) if not line.startswith("#") else None
        if one is not None and (one.marker is None or one.marker.evaluate()):
            (specifier,) = one.specifier
            found[canonicalize_name(one.name)] = specifier.version
    return found


def write_empty_wheel(folder: Path, name: str, version: str) -> None:
    """A wheel that pip installs, and that holds nothing."""
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        about = f"{stem}.dist-info"
        archive.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")


def shell(line: str, folder: Path, **settings: str) -> None:
    pip = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    done = subprocess.run(
        ["sh", "-eu", "-c", line],
        cwd=folder,
        env={**kept, **pip, **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_a_folder_of_wheels_installs_without_network(tmp_path: Path) -> None:
    """The two commands of the page; empty wheels stand for the gigabytes of the others."""
    clone, index, other = copy_of_clone(tmp_path / "clone"), tmp_path / "index", tmp_path / "other"
    index.mkdir()
    other.mkdir()
    for name, version in pins().items():
        write_empty_wheel(index, name, version)
        write_empty_wheel(index, name, f"{int(version.split('.')[0]) + 1}.0")  # newer, not pinned
    # 0 is pip's way to ask for no isolation: the build backend is this environment's.
    shell(
        typed("pip wheel", "-r requirements.txt"),
        clone,
        PIP_FIND_LINKS=str(index),
        PIP_NO_BUILD_ISOLATION="0",
    )
    for name in ("wheels", "requirements.txt"):
        (clone / name).rename(other / name)
    shell(typed("--no-index"), other, PIP_TARGET=str(tmp_path / "site"))
    installed = {
        canonicalize_name(path.name.removesuffix(".dist-info").rpartition("-")[0]): (
            path.name.removesuffix(".dist-info").rpartition("-")[2]
        )
        for path in (tmp_path / "site").glob("*.dist-info")
    }
    assert installed.pop("internvl-chat")
    beside = pins().keys() - installed.keys()
    assert beside <= {"tokenizers", "huggingface-hub", "ninja"}, "of other packages' own"
    assert installed == {name: version for name, version in pins().items() if name not in beside}
    assert (tmp_path / "site/internvl_chat/_resources/shell/lib/launch.sh").is_file()


def test_every_extra_is_on_the_page() -> None:
    _, _, declared = (ROOT / "setup.py").read_text("utf-8").partition("extras_require=")
    extras = re.findall(r'^        "(\w+)": \[', declared, re.M)
    assert len(extras) > 8
    (table,) = re.findall(r"\| extra \| for \|\n(.*?)\n\n", page_text(PAGE), re.S)
    assert [name for name in extras if f"`{name}`" not in table] == []


# ------------------------------------------------------------------ containers


def joined(path: Path) -> list[str]:
    """Lines without comments, continued ones joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    return re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines()


def installs(words: str) -> list[str]:
    found = re.findall(r"pip install .*?(?= && |$)", words, re.M)
    return [one.replace('${TORCH_INDEX:+--index-url "$TORCH_INDEX"} ', "") for one in found]


INSTALLS = (
    """pip install "$(grep '^torch==' requirements.txt)\"""",
    "pip install --constraint requirements.txt dist/internvl_chat-*.whl",
)


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_containers_install_as_the_page_does(name: str) -> None:
    text = "\n".join(joined(CONTAINERS / name))
    assert tuple(installs(text)) == INSTALLS
    assert set(INSTALLS) <= {one.text for one in commands(PAGE)}
    assert any(f"tools/container/{name}" in one.text for one in commands(PAGE))
    assert "python:3.11-slim-bookworm" in text, "the Python that the tests run on"


def test_containers_copy_what_is_there() -> None:
    """Of the clone, and of what the command before the build has made."""
    assert [one.text for one in commands(PAGE)].count("pip wheel --no-deps --wheel-dir dist .") == 2
    docker = [line.split()[1:] for line in joined(CONTAINERS / "Dockerfile") if "COPY " in line]
    section = "\n".join(joined(CONTAINERS / "apptainer.def")).split("%files\n")[1]
    apptainer = [line.split() for line in section.split("%")[0].splitlines() if line.strip()]
    for copied in (docker, apptainer):
        assert [source for source, _ in copied] == ["requirements.txt", "dist/internvl_chat-*.whl"]
        assert all(target.endswith("/") for _, target in copied), "of several files, a folder"
    assert (ROOT / "requirements.txt").is_file()
    ignored = (CONTAINERS / "Dockerfile.dockerignore").read_text().splitlines()[1:]
    assert ignored == ["*", *(f"!{source}" for source, _ in docker)]


def test_instructions_are_known() -> None:
    words = [line.split()[0] for line in joined(CONTAINERS / "Dockerfile") if line.strip()]
    assert words == ["FROM", "RUN", "ARG", "ENV", "WORKDIR", "COPY", "COPY", "RUN", "CMD"]
    sections = [line for line in joined(CONTAINERS / "apptainer.def") if line[:1] == "%"]
    assert sections == ["%files", "%post", "%environment", "%runscript"]
    post = "\n".join(joined(CONTAINERS / "apptainer.def")).split("%post\n")[1].split("\n%")[0]
    runs = [
        line.removeprefix("RUN ") for line in joined(CONTAINERS / "Dockerfile") if "RUN " in line
    ]
    for script in (post, *runs):
        subprocess.run(["sh", "-n", "-c", script], check=True)
