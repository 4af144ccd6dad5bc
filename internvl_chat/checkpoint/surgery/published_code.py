"""The code of a published checkpoint, taken along as files: read as text, never run.

transformers, told to trust remote code, loads the classes that ``auto_map`` names and what their
files import from beside them. A copy is complete or it is refused: a file that is missing would be
noticed by whoever loads the result, much later.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_imports

from internvl_chat.checkpoint.sources import CONFIG_NAME, read_json, require_config
from internvl_chat.errors import CheckpointError
from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig

MODELING_CLASS = "InternVLChatModel"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
_LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt")
_SNAPSHOTS = "snapshots"
"""Folder of huggingface_hub's cache whose entries are links to ``blobs`` beside it."""


@dataclass(frozen=True, kw_only=True)
class PublishedCode:
    """What a published checkpoint's folder says of its code."""

    directory: Path
    values: dict[str, Any]
    """Its ``config.json``, as it is spelled there."""
    files: tuple[Path, ...]
    """The model's Python files."""
    tokenizer_files: tuple[Path, ...]
    """Python files of its tokenizer; most have none."""

    @property
    def identifiers(self) -> frozenset[str]:
        """All names, attributes, arguments and strings in the model's files."""
        return frozenset().union(*(_identifiers(file) for file in self.files))

    def copy_to(self, directory: Path) -> None:
        """Copy the model's files, and the licence they are under where the folder holds it."""
        licences = [self.directory / name for name in _LICENSES]
        for file in (*self.files, *(path for path in licences if path.is_file())):
            shutil.copyfile(file, directory / file.name)


def read_code(path: str) -> PublishedCode:
    """Look at a folder with the code of a published InternVL-Chat; its weights need not be there.

    Raises:
        CheckpointError: no such model, a file that ``auto_map`` or another file names is missing,
            is no Python or lies outside the folder, or a class is not where it is said to be.
    """
    directory = Path(path)
    values = read_json(require_config(directory))
    where = str(directory / CONFIG_NAME)
    kind, classes = values.get("model_type"), values.get("architectures") or []
    if kind != InternVLChatConfig.model_type or classes[:1] != [MODELING_CLASS]:
        raise CheckpointError(
            f"is the configuration of {kind!r} with architectures {classes}, wanted "
            f"{InternVLChatConfig.model_type!r} with [{MODELING_CLASS!r}]",
            where=where,
            fix="Give --code the folder of the InternVL-Chat checkpoint that training began with "
            "(transformers' own class needs no code: --layout native).",
        )
    auto_map = values.get("auto_map")
    if not isinstance(auto_map, dict) or not {"AutoConfig", "AutoModel"} <= auto_map.keys():
        raise CheckpointError(
            "its auto_map names no AutoConfig and AutoModel: it comes without code",
            where=where,
            fix="Download config.json and the *.py files of the published checkpoint.",
        )
    files = _files_of(directory, _targets(auto_map), where)
    return PublishedCode(
        directory=directory,
        values=values,
        files=files,
        tokenizer_files=_tokenizer_files(directory),
    )


def _tokenizer_files(directory: Path) -> tuple[Path, ...]:
    path = directory / TOKENIZER_CONFIG_NAME
    auto_map = read_json(path).get("auto_map") if path.is_file() else None
    if not auto_map:
        return ()
    targets = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    return _files_of(directory, _targets({"AutoTokenizer": targets}), str(path))


def _targets(auto_map: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(key, "module.Class") pairs; a tokenizer has two, of which one may be null."""
    found: list[tuple[str, Any]] = []
    for key, value in auto_map.items():
        several = value if isinstance(value, list | tuple) else [value]
        found += [(key, target) for target in several if target is not None]
    return found


def _files_of(directory: Path, targets: Iterable[tuple[str, Any]], where: str) -> tuple[Path, ...]:
    """The files that classes lie in and all that these import from beside them."""
    waiting: list[tuple[str, str]] = []
    for key, target in targets:
        parts = target.split(".") if isinstance(target, str) else []
        if len(parts) != 2 or not all(part.isidentifier() for part in parts):
            another = " of another repository" if "--" in str(target) else ""
            raise CheckpointError(
                f"auto_map names {target!r} for {key}: code{another} that is not in this folder",
                where=where,
                fix='Want "file.Class"; put the file beside it.',
            )
        module, name = parts
        _require_class(_inside(directory, module, where), name)
        waiting.append((module, where))
    found: dict[str, Path] = {}
    while waiting:
        module, named_by = waiting.pop()
        if module in found:
            continue
        file = found[module] = _inside(directory, module, named_by)
        waiting += [(other, str(file)) for other in sorted(get_relative_imports(file))]
    return tuple(found[module] for module in sorted(found))


def _inside(directory: Path, module: str, named_by: str) -> Path:
    """A module's file, which must be a regular one of this folder (or of its hub cache).

    Raises:
        CheckpointError: it is not.
    """
    file = directory / f"{module}.py"
    if not module.isidentifier() or not file.is_file():
        raise CheckpointError(
            f"names the module {module!r}, and there is no {module}.py in {directory}",
            where=named_by,
            fix="Download all *.py files of the published checkpoint.",
        )
    home = directory.resolve()
    cached = directory.absolute()
    if cached.parent.name == _SNAPSHOTS:
        home = cached.parent.parent.resolve()  # snapshots/REVISION/file -> ../../blobs/HASH
    if not file.resolve().is_relative_to(home):
        raise CheckpointError(
            f"is a link to {file.resolve()}, outside the folder",
            where=str(file),
            fix="Put the file itself there.",
        )
    _parse(file)
    return file


def _parse(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError) as err:
        line = f":{err.lineno}" if isinstance(err, SyntaxError) and err.lineno else ""
        raise CheckpointError(
            f"is no Python ({err.args[0]})",
            where=f"{file}{line}",
            fix="Download it again.",
        ) from err
    except OSError as err:
        raise CheckpointError(f"cannot be read ({err.strerror})", where=str(file)) from err


def _require_class(file: Path, name: str) -> None:
    defined: set[str] = set()
    for node in ast.walk(_parse(file)):
        if isinstance(node, ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
    if name not in defined:
        raise CheckpointError(
            f"auto_map looks for the class {name} in it, which it does not define",
            where=str(file),
            fix="Check that config.json and the *.py files are of one checkpoint.",
        )


def _identifiers(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(_parse(file)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def template_values(code: PublishedCode, name: str) -> dict[str, Any] | None:
    """What the code says of a chat template, as far as it stands there literally.

    Args:
        code: of the checkpoint.
        name: of the template.

    Returns:
        The keywords of the call that makes a template of that name, ``None`` for what is no
        literal; ``None`` without such a call.
    """
    for file in code.files:
        for node in ast.walk(_parse(file)):
            if not isinstance(node, ast.Call):
                continue
            found = _literals(node)
            if found.get("name") == name:
                return found
    return None


def _literals(call: ast.Call) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for keyword in call.keywords:
        try:
            found[str(keyword.arg)] = ast.literal_eval(keyword.value)
        except ValueError:
            found[str(keyword.arg)] = None  # an enumeration's member, say
    return found
