"""Which packages are there, what each is for, and which extra brings those that are not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Final

NEEDED: Final = (
    *("torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes"),
    *("tensorboard", "safetensors", "tokenizers", "huggingface-hub", "sentencepiece"),
    *("numpy", "pillow", "typer"),
)
"""Packages without which something of the core fails, most telling first."""


@dataclass(frozen=True)
class OptionalPackage:
    """A package that something beyond the core needs."""

    package: str
    purpose: str
    brought_by: str = ""
    """The extra of this package; empty for ``pip install PACKAGE``."""

    def mend(self, *, in_checkout: bool) -> str:
        """The command that installs it.

        Args:
            in_checkout: this package lies in its repository, where it is installed from.
        """
        if not self.brought_by:
            return f"pip install {self.package}"
        where = (
            f'-e ".[{self.brought_by}]"' if in_checkout else f'"internvl-chat[{self.brought_by}]"'
        )
        return f"pip install {where}"


OPTIONAL: Final = (
    OptionalPackage("flash-attn", "attention kernel, needs a GPU", "flash"),
    OptionalPackage("decord", "videos"),
    OptionalPackage("av", "videos", "video"),
    OptionalPackage("torchcodec", "videos"),
    OptionalPackage("simplejpeg", "--image_backend fast", "fast"),
    OptionalPackage("fsspec", "images at s3://, gs://, ...", "storage"),
    OptionalPackage("gradio", "demo", "demo"),
    OptionalPackage("fastapi", "serve", "serve"),
    OptionalPackage("uvicorn", "serve", "serve"),
    OptionalPackage("httpx", "eval: judges", "eval"),
    OptionalPackage("openpyxl", "eval: tables", "eval"),
    OptionalPackage("pandas", "eval", "eval"),
    OptionalPackage("pyarrow", "Parquet", "parquet"),
    OptionalPackage("sacrebleu", "eval: BLEU", "eval"),
    OptionalPackage("rouge-score", "eval: ROUGE", "eval"),
    OptionalPackage("scikit-learn", "quickstart", "quickstart"),
    OptionalPackage("wandb", "--report_to wandb"),
    OptionalPackage("trackio", "--report_to trackio"),
    OptionalPackage("mlflow", "--report_to mlflow"),
)

PROBED: Final = (
    *("torch", "numpy", "pillow", "bitsandbytes", "flash-attn", "decord", "av", "torchcodec"),
    "simplejpeg",
)
"""Those that are imported to see whether they work: they hold machine code, which fails on another
machine than the one it was built for."""
_MODULES: Final = {"pillow": "PIL", "scikit-learn": "sklearn"}


def module_of(package: str) -> str:
    """What is imported of a package."""
    return _MODULES.get(package, package.replace("-", "_"))


def version_of(package: str) -> str | None:
    """Its version by its metadata, without importing it; None where it is not installed.

    What is there, but says nothing readable of itself, is ``unknown``.
    """
    try:
        return metadata.version(package) or "unknown"
    except metadata.PackageNotFoundError:
        return None
    except (KeyError, ValueError, TypeError, OSError):
        return "unknown"


def too_old_or_new() -> Iterator[str]:
    """A line for each installed package whose version this package does not promise to work with.

    Where ``packaging`` is missing nobody can tell.
    """
    try:
        from packaging.requirements import InvalidRequirement, Requirement
        from packaging.version import InvalidVersion

        wanted = metadata.requires("internvl-chat") or []
    except (ImportError, metadata.PackageNotFoundError, OSError, ValueError):
        return
    for text in wanted:
        if re.search(r"\bextra\b", text):
            continue
        try:
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate():
                continue
            version = version_of(requirement.name)
            fits = version is None or requirement.specifier.contains(version, prereleases=True)
        except (InvalidRequirement, InvalidVersion):
            continue
        if version is None:
            yield f"{requirement.name} is missing: pip install '{requirement}'"
        elif not fits and version != "unknown":
            yield (
                f"{requirement.name} {version} is none of {requirement.specifier}: "
                f"pip install '{requirement}'"
            )
