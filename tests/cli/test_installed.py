"""The package as others get it: wheel and sdist, built, compared, and used without the clone."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from internvl_chat.shipped import PACKED, shipped_files
from internvl_chat.train import versions
from internvl_chat.train.versions import git_revision
from tests.support.page_runs import copy_of_clone, files_of_clone
from tests.support.search_path import search_path
from tests.support.training import ROOT, environment

NAME = "internvl_chat_v1_2_hermes2_yi34b_448_res_2nd_finetune_lora"
LORA = f"shell/internvl1.2/2nd_finetune/{NAME}.sh"
TINY = ROOT / "pretrained/internvl-chat-tiny"
STRAYS = (
    *("work_dirs/run/model.safetensors", ".venv/lib/x.py", "internvl_chat/__pycache__/old.pyc"),
    *("playground/data/coco/a.jpg", "pretrained/other/config.json", ".mypy_cache/x.json"),
    *("tests/__pycache__/a.pyc", "build/lib/internvl_chat/gone.py", "shell/data/.meta.json.swp"),
    "build/lib/internvl_chat/_resources/shell/gone.sh",
)
"""What a clone in use holds beside its files."""
BUILD = """
import sys
from setuptools import build_meta
target, *hooks = sys.argv[1:]  # which the hooks change
for hook in hooks:
    getattr(build_meta, f"build_{hook}")(target)
"""


def build(source: Path, target: Path, *hooks: str) -> None:
    """Run hooks of the build backend as ``pip`` and ``build`` do, without network."""
    target.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD, str(target), *hooks]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@dataclass(frozen=True, kw_only=True)
class Built:
    """What was built from a clone in use."""

    clone: Path
    wheel: Path
    sdist: Path
    site: Path
    """The wheel, installed: nothing of it needs more than to be unpacked."""

    def run(self, *command: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a folder, with the installed package and no clone."""
        settings = environment(**more, PYTHONPATH=search_path(self.site))
        settings["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{settings['PATH']}"
        return subprocess.run(
            command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=600
        )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    clone = copy_of_clone(folder / "clone")
    for name in STRAYS:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("stray")
    build(clone, folder / "dist", "sdist", "wheel")
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return Built(clone=clone, wheel=wheel, sdist=sdist, site=folder / "site")


def test_the_wheel_holds_the_package_and_what_it_ships(built: Built) -> None:
    package = {name for name in files_of_clone() if name.startswith("internvl_chat/")}
    shipped = {f"internvl_chat/{PACKED}/{name}": name for name in shipped_files(ROOT)}
    found = {name: raw for name, raw in contents(built.wheel).items() if ".dist-info/" not in name}
    assert found.keys() == package | shipped.keys()
    for name, raw in found.items():
        assert raw == (ROOT / shipped.get(name, name)).read_bytes(), name


def test_the_sdist_holds_the_clone_and_builds_the_same_wheel(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    found = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    made = {name for name in found if name.startswith("internvl_chat.egg-info/")}
    assert found - made - {"PKG-INFO", "setup.cfg"} == set(files_of_clone())
    build(source, tmp_path / "dist", "wheel")
    assert contents(tmp_path / "dist" / built.wheel.name) == contents(built.wheel)


def test_an_editable_installation_finds_the_originals(built: Built, tmp_path: Path) -> None:
    build(built.clone, tmp_path / "dist", "editable")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert not [name for name in contents(wheel) if PACKED in name]
    assert not (built.clone / "internvl_chat" / PACKED).exists()


def test_recipes_out_of_a_wheel_start_the_installed_package(built: Built, tmp_path: Path) -> None:
    done = built.run(sys.executable, "-m", "internvl_chat", "recipes", ".", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert set(shipped_files(ROOT)) <= written
    torchrun = built.run("sh", LORA, cwd=tmp_path, DRY_RUN="1", DEEPSPEED_CONFIG="zero3")
    assert torchrun.stderr == ""
    words = shlex.split(torchrun.stdout)
    assert (words[0], words[5:7]) == ("torchrun", ["-m", "internvl_chat.train.finetune"])
    assert words[words.index("--deepspeed") + 1] == "zero3"
    srun = built.run("sh", LORA, cwd=tmp_path, DRY_RUN="1", PARTITION="p", GPUS="4")
    assert "python -u -m internvl_chat.train.finetune --model" in srun.stdout
    elsewhere = built.run("sh", str(tmp_path / LORA), cwd=built.site, DRY_RUN="1")
    for name in re.findall(r"--(?:meta_path|deepspeed) (\S+)", elsewhere.stdout):
        assert Path(name).is_relative_to(tmp_path)
        assert Path(name).is_file()
    asked = built.run("sh", "evaluate.sh", "ckpt", "pope", cwd=tmp_path, DRY_RUN="1", GPUS="2")
    assert shlex.split(asked.stdout)[0] == "torchrun"


def test_a_recipe_without_the_package_says_so(built: Built, tmp_path: Path) -> None:
    built.run(sys.executable, "-m", "internvl_chat", "recipes", ".", cwd=tmp_path)
    bare = tmp_path / "bin/python"
    bare.parent.mkdir()
    bare.write_text(
        f'#!/bin/sh\ncase $1 in -c) exec "{sys.executable}" -ISc "$2" ;; esac\nexit 3\n'
    )
    bare.chmod(0o755)
    done = built.run("sh", LORA, cwd=tmp_path, PYTHON=str(bare), DEEPSPEED_CONFIG="")
    assert f"warning: {bare} has no internvl_chat; activate" in done.stderr


USED = """
import sys
from internvl_chat.cli import main
from internvl_chat.cli.command import VERBS
for verb in VERBS:
    assert main([verb, "--help"]) == 0, verb
assert main(["recipes", "."]) == 0
assert main(["train", *sys.argv[1:]]) == 0
import internvl_chat
print("\\n" + internvl_chat.__file__)
"""


def test_a_wheel_alone_trains_by_name_in_an_empty_folder(built: Built, tmp_path: Path) -> None:
    arguments = shlex.split(
        "--model_name_or_path pretrained/internvl-chat-tiny --meta_path examples/samples/meta.json "
        "--output_dir zero3 --deepspeed zero3 --max_steps 1 --per_device_train_batch_size 1 "
        "--freeze_backbone True --freeze_mlp True --freeze_llm True --use_llm_lora 2 "
        "--save_strategy no --report_to none"
    )
    cache = str(tmp_path / "cache")
    done = built.run(
        sys.executable, "-c", USED, *arguments, cwd=tmp_path, INTERNVL_CHAT_CACHE=cache
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert Path(done.stdout.splitlines()[-1]).is_relative_to(built.site)
    record = json.loads((tmp_path / "zero3/arguments.json").read_text())
    assert record["given"]["deepspeed"] == "zero3"
    assert record["arguments"]["deepspeed"]["zero_optimization"]["stage"] == 3
    assert record["git_revision"] is None


# ------------------------------------------------------------------ machines that lack something

MACHINES = {
    ("linux", "x86_64"): {"decord", "deepspeed", "bitsandbytes"},
    ("linux", "aarch64"): {"av", "deepspeed", "bitsandbytes"},
    ("darwin", "arm64"): {"av", "bitsandbytes"},
    ("darwin", "x86_64"): {"av"},
    ("win32", "AMD64"): {"decord", "bitsandbytes"},
    ("win32", "ARM64"): {"av", "bitsandbytes"},
}
"""What has wheels there of the packages that not every machine has; looked up on PyPI."""


def wanted(requirements: Iterable[Requirement], platform: tuple[str, str], python: str) -> set[str]:
    values = {"sys_platform": platform[0], "platform_machine": platform[1], "extra": ""}
    values |= {"python_version": python, "python_full_version": f"{python}.1"}
    found = [one.name for one in requirements if not one.marker or one.marker.evaluate(values)]
    assert len(found) == len(set(found)), "two versions of one package"
    return set(found)


@pytest.mark.parametrize("platform", MACHINES)
def test_each_machine_gets_what_there_is_for_it(built: Built, platform: tuple[str, str]) -> None:
    (metadata,) = (raw for name, raw in contents(built.wheel).items() if name.endswith("/METADATA"))
    ranges = [
        Requirement(one) for one in Parser().parsestr(metadata.decode()).get_all("Requires-Dist")
    ]
    pins = [
        Requirement(line)
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    not_everywhere = set().union(*MACHINES.values())
    for python in ("3.10", "3.11", "3.12", "3.13", "3.14"):
        for requirements in (ranges, pins):
            assert wanted(requirements, platform, python) & not_everywhere == MACHINES[platform]
        assert wanted(ranges, platform, python) <= {canonicalize_name(one.name) for one in pins}
    for one in ranges:
        chosen = [pin for pin in pins if canonicalize_name(pin.name) == canonicalize_name(one.name)]
        for pin in chosen:
            (version,) = (specifier.version for specifier in pin.specifier)
            assert one.specifier.contains(version), f"{pin} is outside of {one}"


def test_who_lacks_decord_deepspeed_and_bitsandbytes_can_train_and_chat(tmp_path: Path) -> None:
    tiny = ["--model", str(TINY)]
    clip = [*tiny, "--max-new-tokens", "2", "--video", str(ROOT / "examples/red-panda.mp4")]
    meta = str(ROOT / "examples/samples/meta.json")
    run = ["train", "--model_name_or_path", str(TINY), "--meta_path", meta, "--output_dir"]
    commands = {
        "clip": ["chat", *clip, "What?"],
        "decord": ["chat", *clip, "--video-backend", "decord", "What?"],
        "preview": ["data", "preview", meta, *tiny, "--video-backend", "decord"],
        "int8": ["chat", *tiny, "--load-in-8bit", "What?"],
        "zero": [*run, str(tmp_path / "zero"), "--deepspeed", "zero1"],
        "both": [*run, str(tmp_path / "no"), "--video_backend", "decord", "--learning_rate", "-1"],
        "trained": [
            *(*run, str(tmp_path / "run"), "--max_steps", "1", "--use_llm_lora", "2"),
            *("--per_device_train_batch_size", "1", "--freeze_llm", "True"),
            *("--freeze_mlp", "True", "--freeze_backbone", "True", "--report_to", "none"),
        ],
    }
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tests/cli/bare_worker.py")),
            *("decord,deepspeed,bitsandbytes", json.dumps([*commands.values()])),
        ],
        cwd=ROOT,  # the meta's paths begin there
        env=environment(INTERNVL_CHAT_CACHE=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = dict(zip(commands, map(json.loads, done.stdout.splitlines()), strict=True))
    codes = {name: one["code"] for name, one in told.items()}
    assert codes == {name: 0 if name in ("clip", "trained") else 2 for name in commands}, told
    note = "videos are read by PyAV: decord is not installed\n"
    assert told["clip"]["stderr"].startswith(note)
    assert note in told["trained"]["stderr"]
    for name in ("decord", "preview", "both"):
        assert (
            "decord is not installed. pip install decord (Linux on x86-64, Windows)"
            in (told[name]["stderr"])
        )
    assert "2 problems in the arguments" in told["both"]["stderr"]
    assert "int8 needs bitsandbytes, which is not installed" in told["int8"]["stderr"]
    assert "--deepspeed: DeepSpeed is not installed" in told["zero"]["stderr"]


# ------------------------------------------------------------------ the rest


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("zero", ["zero1", "zero2_offload", "zero3_offload"])
def test_a_recipe_out_of_a_wheel_trains(built: Built, tmp_path: Path, zero: str) -> None:
    built.run(sys.executable, "-m", "internvl_chat", "recipes", ".", cwd=tmp_path)
    settings = {
        **{"MODEL_PATH": "pretrained/internvl-chat-tiny", "OUTPUT_DIR": "out"},
        **{"META_PATH": "examples/samples/meta.json", "DEEPSPEED_CONFIG": zero, "GPUS": "2"},
        **{"BATCH_SIZE": "2", "PER_DEVICE_BATCH_SIZE": "1", "NUM_WORKERS": "0"},
        "INTERNVL_CHAT_CACHE": str(tmp_path / "cache"),
    }
    done = built.run("sh", LORA, "--max_steps", "1", "--bf16", "False", cwd=tmp_path, **settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "finished: 1 steps" in done.stdout


def test_the_commit_of_another_repository_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a project, say, in whose folder the environment lies."""
    package = tmp_path / "project/.venv/internvl_chat"
    package.mkdir(parents=True)
    git = ["git", "-C", str(tmp_path / "project"), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    (package / "versions.py").touch()
    monkeypatch.setattr(versions, "__file__", str(package / "versions.py"))
    assert git_revision() is None
    subprocess.run([*git, "add", "-f", "."], check=True)
    assert git_revision() is not None


# ------------------------------------------------------------------ reaching out of the package

OUTSIDE = re.compile(r"(?:^|[/\"' ])(?:examples|tools|tests|benchmarks|shell)/[\w.]")
REACH_OUT = {
    "train/finetune.py",  # started by its path, it puts the package's folder on sys.path
    "shipped.py",  # the one list of what is taken along
    "resources.py",  # finds it
    "cli/env.py",  # tells where the package lies, and
    "machine/report.py",  # whether that is a clone
    "cli/data_author.py",  # the help's examples are of a clone, and of what `recipes` writes,
    "train/flags.py",  # as are these
}


def texts_of(tree: ast.Module) -> Iterator[ast.Constant]:
    """Texts in the code; not docstrings and help."""
    idle = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in idle:
            yield node


def test_no_module_reaches_out_of_the_package() -> None:
    found = {}
    for path in sorted((ROOT / "internvl_chat").rglob("*.py")):
        name = path.relative_to(ROOT / "internvl_chat").as_posix()
        source = path.read_text("utf-8")
        texts = [node.value for node in texts_of(ast.parse(source)) if OUTSIDE.search(node.value)]
        climbs = re.findall(r"__file__.*?(?:\.parents\[\d+\]|\.parent\.parent)", source)
        if (texts or climbs) and name not in REACH_OUT:
            found[name] = texts + climbs
    assert found == {}
