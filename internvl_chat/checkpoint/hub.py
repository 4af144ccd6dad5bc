"""Models on the hub: wherever a model's directory may be named, so may ``ORG/NAME[@REVISION]``.

:func:`local_model` is the one way from a name to files. They come into huggingface_hub's own cache
by its own functions, so ``HF_HOME``, ``HF_HUB_CACHE``, ``HF_ENDPOINT``, ``HF_TOKEN``,
``HF_HUB_OFFLINE`` and ``TRANSFORMERS_OFFLINE`` mean what they mean elsewhere, a connection that
breaks is taken up again, files that arrived before a process died stay, and processes that want the
same file wait for the one that fetches it. Only files that are read are fetched: never a pickle
where there are safetensors, and no code.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from internvl_chat.checkpoint.hub_errors import not_in_cache, told
from internvl_chat.checkpoint.hub_names import (
    HubName,
    cache_folder,
    cached_snapshot,
    hub_name,
    name_of_snapshot,
    repo_folder,
)
from internvl_chat.checkpoint.hub_progress import download_bar, interruptible, with_bars
from internvl_chat.errors import CheckpointError

logger = logging.getLogger(__name__)

Need = Literal["settings", "model"]
"""Configuration and tokenizer; or the weights, too."""

_CONFIG: Final = "config.json"
_SAFETENSORS: Final = ("model.safetensors.index.json", "model.safetensors")
_PICKLES: Final = ("pytorch_model.bin.index.json", "pytorch_model.bin")
_ADAPTER_CONFIG: Final = "adapter_config.json"  # as model/adapter.py, which imports torch
_ADAPTERS: Final = ("adapter_model.safetensors", "adapter_model.bin")
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
SETTINGS: Final = (
    *(_CONFIG, "generation_config.json", "preprocessor_config.json", _ADAPTER_CONFIG),
    *(*_TOKENIZERS, "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", _SAFETENSORS[0], _PICKLES[0]),
    "README.md",  # the card, whose licence goes into the card of what is trained
)
"""The small files at a repository's root that anything here reads."""
_OF_LANGUAGE_MODELS: Final = ("vocab_size", "llm_config", "text_config")
"""Keys of a configuration that say that there is a tokenizer."""


def local_model(name: str | os.PathLike[str], need: Need = "model") -> str:
    """Where a model lies on this machine; one on the hub is brought into the hub's cache first.

    An adapter's base that is a model on the hub comes along.

    Args:
        name: a directory, or a model on the hub; see :func:`hub_names.hub_name`.
        need: what of it will be read.

    Returns:
        The directory; a path as it was given, whether it is there or not.

    Raises:
        CheckpointError: no such model on the hub, no right to it, no way to it, or no room.
    """
    found = hub_name(name)
    if found is None:
        directory = os.fspath(name)
        _tell_of_namesake(directory)
    elif found.file is not None:
        raise CheckpointError(
            f"names the file {found.file}", where=str(found), fix=f"Give the model: {found.repo}."
        )
    else:
        directory = str(_fetched(found, need))
    _fetch_base(Path(directory), need)
    return directory


def local_code(name: str | os.PathLike[str]) -> str:
    """Where a model's configuration, tokenizer and Python files lie, which are only ever read.

    Of one on the hub they are brought into the hub's cache first, without its weights.

    Raises:
        CheckpointError: as :func:`local_model`.
    """
    directory = local_model(name, "settings")
    pinned = name_of_snapshot(directory)
    if hub_name(name) is None or pinned is None or is_offline():
        return directory
    code = [file for file in _sizes(pinned) if file.endswith(".py") or file.startswith("LICENSE")]
    return str(_download(pinned, code, {})) if code else directory


def local_file(name: str) -> str:
    """Where a file of weights lies: a path, or ``hf://ORG/NAME[@REVISION]/FILE`` on the hub.

    Raises:
        CheckpointError: as :func:`local_model`, or the name says no file.
    """
    found = hub_name(name)
    if found is None:
        return name
    if found.file is None:
        raise CheckpointError(
            "is a model, and a file of it is wanted",
            where=str(found),
            fix=f"Name the file: hf://{found}/FILE.safetensors.",
        )
    snapshot = cached_snapshot(found)
    is_there = snapshot is not None and (snapshot / found.file).is_file()
    if snapshot is not None and is_there and (found.commit or is_offline()):
        return str(snapshot / found.file)
    if is_offline():
        raise not_in_cache(found)
    model = replace(found, file=None)
    snapshot = _download(found, [found.file], {})
    if not (snapshot / found.file).is_file():
        raise CheckpointError(f"the model {model.short} has no such file", where=str(found))
    return str(snapshot / found.file)


def cached_model(name: str) -> str:
    """As :func:`local_model`, from what is on this machine: asks no network.

    A name of which the cache holds nothing comes back as it is.
    """
    found = hub_name(name)
    snapshot = cached_snapshot(found) if found else None
    if found is None or snapshot is None:
        return name
    return str(snapshot / found.file if found.file else snapshot)


def is_offline() -> bool:
    """Whether the environment forbids to ask the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


# ---- fetching -----------------------------------------------------------------------------------


def _fetched(name: HubName, need: Need) -> Path:
    """The snapshot with what is needed; what is complete and cannot change is not asked for."""
    snapshot = cached_snapshot(name)
    if is_offline():
        if snapshot is None or not _holds(snapshot, need, strict=False):
            raise not_in_cache(name, is_incomplete=snapshot is not None)
        return snapshot
    if name.commit and snapshot is not None and _holds(snapshot, need, strict=True):
        return snapshot
    snapshot = _download(name, SETTINGS, {})
    if need == "settings" or _holds(snapshot, need, strict=True):
        return snapshot
    pinned = replace(name, revision=snapshot.name)
    sizes = _sizes(pinned)
    wanted = [file for file in _weight_files(sizes, snapshot) if file in sizes]
    if not wanted and not (snapshot / _CONFIG).is_file():
        raise CheckpointError("holds no model", where=str(name), fix="Check the name.")
    return _download(pinned, wanted, sizes) if wanted else snapshot


def _download(name: HubName, files: Collection[str], sizes: Mapping[str, int]) -> Path:
    """Bring files into the cache.

    Args:
        name: of the model.
        files: at its root, or by their path in it; those it lacks are passed over.
        sizes: bytes by name, where they are known: told before, and compared with the free space.

    Returns:
        The folder of the commit.
    """
    from huggingface_hub import snapshot_download

    before = cached_snapshot(name)
    missing = [one for one in files if before is None or not (before / one).exists()]
    if sizes and missing:
        _announce(name, sum(sizes[one] for one in missing), len(missing))
    with told(name, cache_folder()), with_bars():
        folder = interruptible(
            lambda stop: snapshot_download(
                name.repo,
                revision=name.revision,
                allow_patterns=[glob.escape(one) for one in files],
                tqdm_class=download_bar(name.short if sizes else None, stop),
            )
        )
    return Path(folder)


def _announce(name: HubName, num_bytes: int, num_files: int) -> None:
    """Raises:
    CheckpointError: they do not fit onto the disk.
    """
    place = cache_folder()
    free = _free_bytes(place)
    if free is not None and num_bytes > free:
        raise CheckpointError(
            f"{in_units(num_bytes)} are to be downloaded, and {in_units(free)} are free in {place}",
            where=name.short,
            fix="Make room, or set HF_HOME to a folder on a larger disk.",
        )
    what = f"{in_units(num_bytes)} in {num_files} files"
    logger.info("%s: downloading %s into %s", name.short, what, place)


def _free_bytes(place: Path) -> int | None:
    for folder in (place, *place.parents):  # the cache may not be there yet
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def in_units(num_bytes: float) -> str:
    """For people: powers of 1000, as the hub counts."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def _sizes(name: HubName) -> dict[str, int]:
    """Bytes by file, of those at a repository's root."""
    from huggingface_hub import HfApi

    with told(name, cache_folder()):
        tree = list(HfApi().list_repo_tree(name.repo, revision=name.revision))
    return {entry.path: entry.size for entry in tree if hasattr(entry, "size")}


# ---- which files --------------------------------------------------------------------------------


def _weight_files(present: Collection[str], snapshot: Path) -> list[str]:
    """Files of weights in the order of ``tensor_files.open_weights``; shards as their index says.

    Args:
        present: names of what there is.
        snapshot: folder with the small ones of them.
    """
    beside = [name for name in _ADAPTERS if name in present][:1]  # told to lie beside a model
    for index, single in (_SAFETENSORS, _PICKLES):
        if index in present:
            return [*_shards(snapshot / index), *beside]
        if single in present:
            return [single, *beside]
    return beside


def _shards(index: Path) -> Iterator[str]:
    """What an index lists; nothing where it is none, which reading the weights tells."""
    try:
        found = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    yield from sorted(one for one in found if isinstance(one, str))


def files_read(snapshot: Path) -> set[str]:
    """Names of the files in a folder of the cache that are those of its model here.

    Others may have brought more of the repository into it, so a digest goes by these.
    """
    present = {path.name for path in snapshot.iterdir()}
    return present & {*SETTINGS, *_weight_files(present, snapshot)}


def _holds(snapshot: Path, need: Need, *, strict: bool) -> bool:
    """Whether a folder of the cache has what is needed.

    Args:
        snapshot: that other programs may have filled in part.
        need: of :func:`local_model`.
        strict: a language model's tokenizer must be there, too.
    """
    present = {path.name for path in snapshot.iterdir() if path.exists()}
    has_tokenizer = not present.isdisjoint(_TOKENIZERS)
    has_config = not present.isdisjoint((_CONFIG, _ADAPTER_CONFIG))
    if strict and not has_tokenizer:
        config = _values(snapshot / _CONFIG)
        if not has_config or not config.keys().isdisjoint(_OF_LANGUAGE_MODELS):
            return False
    if need == "settings":
        return has_config or has_tokenizer
    weights = _weight_files(present, snapshot)
    return has_config and bool(weights) and present.issuperset(weights)


# ---- adapters and namesakes ---------------------------------------------------------------------


def _fetch_base(adapter: Path, need: Need) -> None:
    """The model on the hub that an adapter was trained on; loading finds it in the cache.

    Raises:
        CheckpointError: it is not to be had.
    """
    if not (adapter / _ADAPTER_CONFIG).is_file():
        return
    from internvl_chat.model.adapter import find_adapter_base

    values = _values(adapter / _ADAPTER_CONFIG)
    try:
        named, found = find_adapter_base(adapter, values)
    except ValueError:
        return  # told by those who read it
    revision = values.get("revision")
    is_beside = isinstance(revision, str) and revision and "@" not in named
    base = hub_name(f"{named}@{revision}" if is_beside else named)
    if base is None or (found is not None and name_of_snapshot(found) is None):
        return
    try:
        _fetched(base, need)
    except CheckpointError as err:
        where = f"{adapter / _ADAPTER_CONFIG}: base_model_name_or_path {err.where}"
        raise type(err)(err.problem, where=where, fix=err.fix) from err


def _values(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _tell_of_namesake(path: str) -> None:
    """A directory goes before the model of that name, which may be the one that was meant."""
    if path.count("/") == 1 and os.path.isdir(path) and repo_folder(path).is_dir():
        logger.info(
            "%s is the directory here; the model of that name on the hub is hf://%s", path, path
        )
