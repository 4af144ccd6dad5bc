"""The structure of the package, read from its source: imports, names, settings, lengths, words."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PRIVATE_WORDS = re.compile(
    r"\b(picture|learnt|stand[_ -]?in|code[_ ]?book|dustbin|rubbish|farewell)s?\b", re.IGNORECASE
)
"""Words that the field says otherwise: image, supervised, dummy image, label embeddings, ..."""

LEVELS = (
    {"errors", "files", "config", "quiet", "shipped"},
    {"model"},
    {"resources", "machine"},
    {"costs"},
    {"data", "checkpoint"},
    {"chat"},
    {"train", "serve", "web"},
    {"evaluation"},
    {"cli"},
)
"""Rooms from the ground up; imports point downwards, never to another room of the same level."""

GENERAL = {"name", "path", "model", "seed", "index", "id", "type", "role", "content", "text"}
"""Names of fields that mean something else in every class."""


@dataclass
class House:
    """What the source of a package says of its structure."""

    imports: dict[str, set[str]] = field(default_factory=dict)
    """Module -> modules of the package that it imports, anywhere in it."""
    classes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Class name -> modules that define one."""
    defaults: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Field name -> classes that give it a default."""
    functions: dict[str, int] = field(default_factory=dict)
    """``module.function`` -> lines."""
    lines: dict[str, int] = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)
    """Module -> private words in it."""


def read_house(package: Path) -> House:
    """Parse every module of a package."""
    sources = {_module_name(path, package): path.read_text("utf-8") for path in _files(package)}
    house = House()
    for module, source in sources.items():
        tree = ast.parse(source)
        house.lines[module] = source.count("\n")
        house.words[module] = [match[0] for match in PRIVATE_WORDS.finditer(source)]
        is_package = any(name.startswith(f"{module}.") for name in sources)
        parent = module if is_package else module.rpartition(".")[0]
        found = {target for node in ast.walk(tree) for target in _imported(node, parent)}
        house.imports[module] = {name for name in found if name in sources and name != module}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                house.classes[node.name].append(module)
                for name in _fields_with_default(node):
                    house.defaults[name].add(f"{module}.{node.name}")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                house.functions[f"{module}.{node.name}"] = length
    return house


def circles(imports: Mapping[str, set[str]]) -> list[set[str]]:
    """Groups of modules each of which reaches all others of its group."""
    reach = {module: _reachable(module, imports) for module in imports}
    groups = [
        {other for other in reach[module] if module in reach.get(other, ())}
        for module in imports
        if module in reach[module]
    ]
    return [group for number, group in enumerate(groups) if group not in groups[:number]]


def room_of(module: str) -> str:
    """``internvl_chat.data.meta`` -> ``data``."""
    return module.split(".")[1] if "." in module else ""


def level_of(room: str) -> int | None:
    """Height of a room; None for what is none (``__main__``)."""
    return next((level for level, rooms in enumerate(LEVELS) if room in rooms), None)


def _files(package: Path) -> Iterator[Path]:
    return (path for path in sorted(package.rglob("*.py")) if "__pycache__" not in path.parts)


def _module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(node: ast.AST, parent: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        above = parent.split(".")
        base = ".".join([*above[: len(above) - node.level + 1], *([base] if base else [])])
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


def _fields_with_default(node: ast.ClassDef) -> list[str]:
    described = " ".join(ast.unparse(part) for part in [*node.decorator_list, *node.bases])
    if not re.search(r"dataclass|Struct|BaseModel|NamedTuple", described):
        return []
    return [
        statement.target.id
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and statement.value is not None
        and not ast.unparse(statement.annotation).startswith("ClassVar")
    ]


def _reachable(module: str, imports: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [*imports[module]]
    while waiting:
        other = waiting.pop()
        if other not in seen:
            seen.add(other)
            waiting += imports.get(other, ())
    return seen
