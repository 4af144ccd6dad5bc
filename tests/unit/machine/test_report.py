"""``internvl-chat env``: whatever is broken is a line of the report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.machine import report as module
from internvl_chat.machine.hardware import ask, gpus_by_driver, memory_gib
from internvl_chat.machine.packages import NEEDED, OPTIONAL, PROBED, module_of, version_of
from internvl_chat.machine.report import as_markdown, as_text, gather, probe
from tests.support.search_path import search_path
from tests.support.training import ROOT


def put_package(folder: Path, name: str, code: str, metadata: str = "Version: 1.0\n") -> None:
    """A package that is installed, as far as anybody can see."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\n{metadata}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is looked at before all others, by this process and its children."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", search_path(tmp_path, ROOT))
    return tmp_path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that takes seconds is imported."""
    monkeypatch.setattr(module, "PROBED", ("decord", "av", "simplejpeg", "torch"))


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise RuntimeError('built for another machine')", "built for another machine"),
        ("import os; os.kill(os.getpid(), 9)", "ended the process by signal 9"),
        ("raise SystemExit(3)", "exit code 3"),
        ("import os; os._exit(0)", "nothing that can be read"),
        ("1 +", "SyntaxError"),
    ],
)
def test_a_broken_package_is_its_own_line(site: Path, code: str, error: str) -> None:
    put_package(site, "decord", code)
    assert error in probe("decord")["error"]


def test_one_that_hangs_is_given_up(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_package(site, "decord", "import threading; threading.Event().wait()")
    monkeypatch.setattr(module, "PROBE_SECONDS", 1.0)
    assert probe("decord") == {"error": "importing it took more than 1 seconds"}


def test_the_report_survives_broken_packages_and_names_the_mend(site: Path, quick: None) -> None:
    put_package(site, "torch", "raise OSError('libcudart.so.12: cannot open')")
    put_package(site, "decord", "import nosuch")
    put_package(site, "simplejpeg", "", metadata="")  # says no version
    report = gather("abc123+", ROOT, "0.1.0")
    text = as_text(report)
    assert "torch 1.0 cannot be imported: OSError: libcudart.so.12: cannot open" in text.replace(
        "\n    ", " "
    )
    assert "videos: decord     1.0, broken: ModuleNotFoundError: No module named 'nosuch'" in text
    assert version_of("simplejpeg") == "unknown"
    assert "internvl-chat 0.1.0, commit abc123+ (changed)" in text
    assert "attention         missing" in text
    json.dumps(report)


def test_what_is_missing_comes_with_the_extra_that_brings_it(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "probe_all", lambda names: {})
    there = module.version_of
    monkeypatch.setattr(
        module, "version_of", lambda name: None if name in ("gradio", "wandb") else there(name)
    )
    text = as_text(gather(None, ROOT, "0.1.0"))
    assert re.search(r'^  gradio +missing: pip install -e "\.\[demo\]" \(demo\)$', text, re.M)
    assert re.search(r"^  wandb +missing: pip install wandb \(--report_to wandb\)$", text, re.M)
    installed = as_text(gather(None, Path("/site-packages"), "0.1.0"))
    assert 'missing: pip install "internvl-chat[demo]"' in installed
    assert "recipes     internvl-chat recipes FOLDER writes them" in installed


def test_the_extras_are_those_of_setup_py() -> None:
    text = (ROOT / "setup.py").read_text("utf-8")
    for one in OPTIONAL:
        if one.brought_by:
            listed = re.search(rf'"{one.brought_by}": \[(.*?)\]', text, re.S)
            assert listed
            assert f'"{one.package}>=' in listed[1], one
    assert set(PROBED) <= {*NEEDED, *(one.package for one in OPTIONAL)}
    assert (module_of("pillow"), module_of("flash-attn")) == ("PIL", "flash_attn")


def test_variables_are_shown_and_secrets_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "HF_TOKEN": "hf_abc",
        "WANDB_API_KEY": "abc",
        "HTTPS_PROXY": "http://me:word@host:1",
        "CUDA_VISIBLE_DEVICES": "0",
        "SOMETHING_ELSE": "x",
        "HF_HOME": os.fsdecode(b"/a\xff"),
        "TRANSFORMERS_VERBOSITY": "error",  # set by this program itself
    }
    assert dict(module._variables(values)) == {
        "CUDA_VISIBLE_DEVICES": "0",
        "HF_HOME": "/a\\udcff",
        "HF_TOKEN": "(set, not shown)",
        "HTTPS_PROXY": "http://***@host:1",
        "WANDB_API_KEY": "(set, not shown)",
    }


def test_a_gpu_that_torch_does_not_see_is_a_problem() -> None:
    def problems(torch: dict[str, Any]) -> str:
        versions = {"decord": "1"}
        return " ".join(module._problems(versions, {}, {"driver": "550.1"}, torch))

    assert "this torch is a CPU build" in problems({"version": "2", "cuda": None, "gpus": []})
    assert "torch sees none" in problems({"version": "2", "cuda": "12.8", "gpus": []})
    assert "driver" not in problems({"version": "2", "cuda": "12.8", "gpus": [{}]})


def test_gpus_are_shown_as_torch_and_as_the_driver_tell_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'NVIDIA H100, 81559, 9.0'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    gpu = {"name": "NVIDIA H100", "memory_gib": 79.6, "compute_capability": "9.0"}
    assert gpus_by_driver() == [gpu]
    found = {"cpu": "c", "cores": 1, "memory_gib": 1, "free_disk_gib": 1, "driver": "550"}
    rows = module._hardware({**found, "gpus": [{**gpu, "bf16": True}]}, {"cuda": "12.8"})
    assert rows["GPU 0"] == "NVIDIA H100, 79.6 GiB, compute capability 9.0, bf16"
    assert ask("no-such-program") is None
    assert (memory_gib() or 0) > 0


def test_the_pasted_form_hides_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(ROOT.parent))
    monkeypatch.setattr(module, "probe_all", lambda names: {})
    text = as_markdown(gather(None, ROOT, "0.1.0"))
    assert text.startswith("<details>")
    assert f"~/{ROOT.name}/internvl_chat" in text
    assert str(ROOT) not in text.replace(sys.executable, "")


def test_the_verb_imports_no_torch() -> None:
    code = (
        "import sys, internvl_chat.machine.report as r; r.probe_all = lambda names: {}\n"
        "from internvl_chat.cli import main\ncode = main(['env', '--json'])\n"
        "print({'torch', 'transformers'} & set(sys.modules)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "set()"
    assert json.loads("\n".join(lines))["internvl-chat"]["recipes"].endswith("/shell")
