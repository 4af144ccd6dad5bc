"""Where the recipes, DeepSpeed files, metas and examples of this package lie, and how they are
named.

They lie beside the package in a clone, which an editable installation uses, too, and inside it in a
wheel (``shipped.py``).
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from internvl_chat.errors import ConfigError
from internvl_chat.model.suggestions import suggest
from internvl_chat.shipped import PACKED, shipped_files

_PACKAGE: Final = Path(__file__).resolve().parent
_ZERO_FOLDER: Final = "shell/deepspeed"


def resource_root() -> Path:
    """The folder that ``shell/`` and the others lie in.

    Raises:
        ConfigError: somebody has moved the package away from them.
    """
    packed = _PACKAGE / PACKED
    for root in (packed, _PACKAGE.parent):
        if (root / _ZERO_FOLDER).is_dir():
            return root
    raise ConfigError(
        f"the recipes of this package are neither in {packed} nor in {_PACKAGE.parent}",
        fix="Install the package from its wheel or from a whole clone.",
    )


# ---- copies to start from -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CopiedResources:
    """What became of the files of :func:`copy_resources`, by their paths in the folder."""

    written: tuple[str, ...]
    same: tuple[str, ...]
    """There already, with the same content."""
    kept: tuple[str, ...]
    """There already, with another content, and left as they are."""


def copy_resources(folder: Path) -> CopiedResources:
    """Write recipes, metas and examples into a folder; a file that is there stays as it is.

    Args:
        folder: made where it is not there.

    Raises:
        ConfigError: a file stands where a folder is to be, or nothing can be written.
    """
    root = resource_root()
    found: dict[str, list[str]] = {"written": [], "same": [], "kept": []}
    for name in shipped_files(root):
        content, target = (root / name).read_bytes(), folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                file.write(content)
            if name.endswith(".sh"):  # also runs as ./recipe.sh; a wheel keeps no such mode
                mode = target.stat().st_mode
                target.chmod(mode | (mode & 0o444) >> 2)
            state = "written"
        except FileExistsError as err:
            if err.filename is not None and Path(err.filename) != target:
                raise _unwritable(err, folder) from err
            state = "same" if target.is_file() and target.read_bytes() == content else "kept"
        except OSError as err:
            raise _unwritable(err, folder) from err
        found[state].append(name)
    return CopiedResources(**{state: tuple(names) for state, names in found.items()})


def _unwritable(err: OSError, folder: Path) -> ConfigError:
    if err.errno in (errno.EEXIST, errno.ENOTDIR):
        return ConfigError(
            f"a file stands where a folder is to be ({err.filename})",
            where=str(folder),
            fix="Name another folder.",
        )
    name = os.path.relpath(err.filename, folder) if err.filename else "."
    problem = "cannot be written" if name == "." else f"{name} cannot be written"
    return ConfigError(f"{problem}: {err.strerror}", where=str(folder), fix="Name another folder.")


# ---- DeepSpeed files by name --------------------------------------------------------------------


def zero_name(stem: str) -> str | None:
    """``zero_stage3_offload_config`` -> ``zero3_offload``; None for files of another kind."""
    zero, stage, *kind = [*stem.split("_"), ""]
    if zero != "zero" or not re.fullmatch(r"stage\d", stage):
        return None
    return "_".join([f"zero{stage[-1]}", *(word for word in kind if word not in ("config", ""))])


def zero_files() -> dict[str, Path]:
    """Name -> DeepSpeed file, of all that are shipped."""
    folder = resource_root() / _ZERO_FOLDER
    named = ((zero_name(path.stem), path) for path in folder.glob("*.json"))
    return dict(sorted((name, path) for name, path in named if name is not None))


def is_zero_name(source: str) -> bool:
    """Whether ``--deepspeed`` gives a name: one plain word that is no file where the user stands.

    A folder of that name is none either: runs are called zero3, too.
    """
    return re.fullmatch(r"[\w-]+", source) is not None and not Path(source).is_file()


def find_zero_file(name: str) -> Path:
    """The shipped DeepSpeed file of that name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    files = zero_files()
    found = files.get(name.lower().replace("-", "_"))
    if found is None:
        raise ConfigError(
            f"{name!r} is neither a file here nor one of the names {', '.join(files)}",
            where="--deepspeed",
            fix=suggest(name, files, write=str) or "Give one of them, or the path of a file.",
        )
    return found
