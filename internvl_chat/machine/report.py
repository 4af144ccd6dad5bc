"""The report of ``internvl-chat env``: gathered, and written for people and for programs."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from internvl_chat.errors import printable
from internvl_chat.machine.hardware import gpus_by_driver, hardware, usable_cores
from internvl_chat.machine.packages import (
    NEEDED,
    OPTIONAL,
    PROBED,
    module_of,
    too_old_or_new,
    version_of,
)
from internvl_chat.quiet import ENVIRONMENT as SET_BY_US

PROBES_FILE: Final = Path(__file__).with_name("probes.py")
PROBE_SECONDS: Final = 60.0
"""How long a package may take to be imported."""

VARIABLES: Final = re.compile(
    r"INTERNVL_CHAT_\w+|CUDA_\w+|NVIDIA_VISIBLE_DEVICES|HIP_VISIBLE_DEVICES|HF_\w+|HUGGINGFACE_\w+"
    r"|TRANSFORMERS_\w+|TOKENIZERS_PARALLELISM|OMP_NUM_THREADS|MKL_NUM_THREADS|NCCL_\w+|GLOO_\w+"
    r"|TORCH_\w+|PYTORCH_\w+|DS_\w+|PYTHONPATH|LD_LIBRARY_PATH|LD_PRELOAD|VIRTUAL_ENV|CONDA_PREFIX"
    r"|MASTER_ADDR|MASTER_PORT|RANK|LOCAL_RANK|WORLD_SIZE|SLURM_(?:JOB_ID|NNODES|NTASKS|NODELIST)"
    r"|WANDB_\w+|MLFLOW_\w+|TRACKIO_\w+|LMUData|TMPDIR|(?:HTTPS?|NO|ALL)_PROXY",
    re.IGNORECASE,
)
"""Environment variables that change what a run does."""
_SECRET: Final = re.compile(r"TOKEN$|KEY|SECRET|PASSW|CREDENTIAL|_USERNAME", re.IGNORECASE)


def gather(
    revision: str | None,
    root: Path,
    version: str,
    *,
    resources: Path | None = None,
    imports_all: bool = False,
) -> dict[str, Any]:
    """All that the report holds. Whatever is broken is a line in it, never an error.

    Args:
        revision: commit of the code, None outside a repository.
        root: folder of the repository or of site-packages, above the package.
        version: of this package.
        resources: where recipes and other files to start from lie; ``root`` if None.
        imports_all: import every package to see whether it works, not machine code alone.
    """
    versions = {name: version_of(name) for name in (*NEEDED, *(one.package for one in OPTIONAL))}
    asked = versions if imports_all else PROBED
    probed = probe_all([name for name in asked if versions[name] is not None])
    found = hardware()
    torch: dict[str, Any] = probed.get("torch", {})
    recipes = (resources or root) / "shell"
    in_checkout = (root / "setup.py").is_file()
    optional = {
        one.package: {
            "version": versions[one.package],
            "extra": one.brought_by or None,
            "for": one.purpose,
            "mend": one.mend(in_checkout=in_checkout),
        }
        for one in OPTIONAL
    }
    return {
        "internvl-chat": {
            "version": version,
            "commit": revision,
            "folder": str(root / "internvl_chat"),
            "recipes": str(recipes) if recipes.is_dir() else None,
        },
        "python": {
            "version": platform.python_version(),
            "executable": sys.executable,
            "platform": platform.platform(),
        },
        "packages": {name: versions[name] for name in NEEDED},
        "optional": optional,
        "hardware": {**found, "gpus": torch.get("gpus") or gpus_by_driver()},
        "torch": {name: value for name, value in torch.items() if name not in ("gpus", "error")},
        "kernels": _kernels(versions, probed),
        "readers": _readers(versions, probed),
        "environment": dict(_variables(os.environ)),
        "problems": list(_problems(versions, probed, found, torch)),
    }


# ---- asking -------------------------------------------------------------------------------------


def probe_all(packages: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What each package says of itself when it is imported, all at a time; ``error`` if it fails.

    Each has a process of its own, so that no package can take the report down.
    """
    names = list(packages)
    with ThreadPoolExecutor(max_workers=max(usable_cores() or 2, 2)) as threads:
        return dict(zip(names, threads.map(probe, names), strict=True))


def probe(package: str) -> dict[str, Any]:
    """What one package says, or its ``error``."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        done = subprocess.run(
            [sys.executable, str(PROBES_FILE), module_of(package)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"importing it took more than {PROBE_SECONDS:.0f} seconds"}
    except OSError as err:
        return {"error": f"no process for it: {err.strerror}"}
    if done.returncode < 0:
        return {"error": f"importing it ended the process by signal {-done.returncode}"}
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode:
        return {"error": lines[-1].strip() if lines else f"exit code {done.returncode}"}
    try:
        facts = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        facts = None
    return facts if isinstance(facts, dict) else {"error": "it said nothing that can be read"}


def _state(
    package: str, versions: Mapping[str, str | None], probed: Mapping[str, dict[str, Any]]
) -> str | None:
    """``1.2.3``, or why it does not work; None where it is not installed."""
    version = versions[package]
    if version is None:
        return None
    error = probed.get(package, {}).get("error")
    return f"{version}, broken: {error}" if error else version


def _kernels(
    versions: Mapping[str, str | None], probed: Mapping[str, dict[str, Any]]
) -> dict[str, str | None]:
    torch = probed.get("torch", {})
    flash = _state("flash-attn", versions, probed)
    capable = [gpu for gpu in torch.get("gpus", ()) if float(gpu.get("compute_capability", 0)) >= 8]
    if flash and "broken" not in flash and not capable:
        flash += ", but no GPU that it runs on (Ampere or newer)"
    four = _state("bitsandbytes", versions, probed)
    device = probed.get("bitsandbytes", {}).get("device")
    if four and device:
        four += f", tried on {device}"
    return {
        "attention": "sdpa, eager" if "error" not in torch and torch else None,
        "flash_attention_2": flash,
        "int8 and 4 bits": four,
    }


def _readers(
    versions: Mapping[str, str | None], probed: Mapping[str, dict[str, Any]]
) -> dict[str, str | None]:
    found = {name: _state(name, versions, probed) for name in ("decord", "av", "torchcodec")}
    for name, key in (("av", "codecs"), ("pillow", "formats")):
        state = _state(name, versions, probed)
        details = probed.get(name, {}).get(key)
        found[name] = f"{state} ({', '.join(details)})" if state and details else state
    found["simplejpeg"] = _state("simplejpeg", versions, probed)
    return {
        "videos: decord": found["decord"],
        "videos: pyav": found["av"],
        "videos: torchcodec": found["torchcodec"],
        "images: pillow": found["pillow"],
        "images: simplejpeg": found["simplejpeg"],
    }


def _problems(
    versions: Mapping[str, str | None],
    probed: Mapping[str, dict[str, Any]],
    found: Mapping[str, Any],
    torch: Mapping[str, Any],
) -> Iterator[str]:
    """What keeps something from working, with its mend."""
    yield from too_old_or_new()
    for package, facts in probed.items():
        if "error" in facts:
            yield (
                f"{package} {versions[package]} cannot be imported: {facts['error']}. "
                f"pip install --force-reinstall {package}"
            )
    if not any(versions[name] for name in ("decord", "av", "torchcodec")):
        yield 'no library reads videos: pip install "internvl-chat[video]", --video_backend pyav'
    if found.get("driver") and torch.get("version") and not torch.get("gpus"):
        why = "this torch is a CPU build" if not torch.get("cuda") else "torch sees none"
        yield (
            f"there is an NVIDIA driver ({found['driver']}), but {why}: install the build of torch "
            "for your CUDA, and look at CUDA_VISIBLE_DEVICES"
        )


def _variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What is set of :data:`VARIABLES`, secrets hidden."""
    for name, value in sorted(environment.items()):
        if not VARIABLES.fullmatch(name) or SET_BY_US.get(name) == value:
            continue
        if _SECRET.search(name):
            yield name, "(set, not shown)"
        else:
            yield name, re.sub(r"(\w+://)[^/@\s]+@", r"\1***@", printable(value))


# ---- writing ------------------------------------------------------------------------------------


def as_text(report: Mapping[str, Any]) -> str:
    """The report for people."""
    lines = [
        *_own(report["internvl-chat"], report["python"]),
        *_block("Hardware", _hardware(report["hardware"], report["torch"])),
        *_block("Packages", report["packages"]),
        *_block("Kernels", report["kernels"]),
        *_block("Readers", report["readers"]),
        *_optional(report["optional"]),
        *_block("Environment", report["environment"]),
        "",
        "Problems" if report["problems"] else "Problems: none",
    ]
    for problem in report["problems"]:
        lines += textwrap.wrap(
            problem, 96, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False
        )
    return printable("\n".join(lines))


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report to be pasted into a bug report; the home folder is written ``~``."""
    text = as_text(report)
    home = os.path.expanduser("~")
    if len(home) > 1:
        text = text.replace(home, "~")
    return f"<details><summary>internvl-chat env</summary>\n\n```text\n{text}\n```\n\n</details>"


def _own(own: Mapping[str, Any], python: Mapping[str, Any]) -> Iterator[str]:
    commit = own["commit"] or ""
    changed = "+ (changed)" if commit.endswith("+") else ""
    shown = f", commit {commit.rstrip('+')[:12]}{changed}" if commit else ""
    yield f"internvl-chat {own['version']}{shown}"
    yield f"  folder      {own['folder']}"
    copies = "internvl-chat recipes FOLDER writes them"
    recipes = f"{own['recipes']} ({copies.replace('them', 'a copy')})" if own["recipes"] else copies
    yield f"  recipes     {recipes}"
    yield f"  Python      {python['version']}, {python['executable']}"
    yield f"  system      {python['platform']}"


def _hardware(found: Mapping[str, Any], torch: Mapping[str, Any]) -> dict[str, Any]:
    build = "CUDA " + torch["cuda"] if torch.get("cuda") else ""
    build = build or ("ROCm " + torch["hip"] if torch.get("hip") else "CPU")
    rows: dict[str, Any] = {
        "CPU": f"{found['cpu']}, {found['cores']} cores usable",
        "memory": f"{found['memory_gib']} GiB",
        "free disk": f"{found['free_disk_gib']} GiB here",
        "torch's build": build if torch.get("version") else None,
        "GPU driver": found["driver"] or "none",
        "GPUs": None if found["gpus"] else "none",
    }
    for number, gpu in enumerate(found["gpus"]):
        bf16 = {True: ", bf16", False: ", no bf16"}.get(gpu.get("bf16"), "")
        rows[f"GPU {number}"] = (
            f"{gpu['name']}, {gpu['memory_gib']} GiB, compute capability "
            f"{gpu['compute_capability']}{bf16}"
        )
    if found["gpus"]:
        del rows["GPUs"]
    extra = [f"{name} {torch[name]}" for name in ("cudnn", "nccl") if torch.get(name)]
    if extra:
        rows["libraries"] = ", ".join(extra)
    return rows


def _block(title: str, rows: Mapping[str, Any]) -> Iterator[str]:
    if not rows:
        return
    width = max(11, *map(len, rows))
    yield ""
    yield title
    for name, value in rows.items():
        yield f"  {name:<{width}} {'missing' if value is None else value}"


def _optional(optional: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    width = max(map(len, optional))
    yield ""
    yield "Optional"
    for name, one in optional.items():
        state = one["version"] or f"missing: {one['mend']}"
        yield f"  {name:<{width}} {state} ({one['for']})"
