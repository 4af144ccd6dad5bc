"""The tokenizer: found on disk, given the special tokens, checked against the template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from internvl_chat.checkpoint.hub import local_model
from internvl_chat.checkpoint.hub_names import path_hint
from internvl_chat.checkpoint.sentencepiece_files import (
    is_sentencepiece_directory,
    load_sentencepiece,
)
from internvl_chat.checkpoint.sources import is_bare_adapter, resolve_adapter_base
from internvl_chat.errors import Attempt, CheckpointError, ConfigError, UserError
from internvl_chat.model.constants import SPECIAL_TOKENS
from internvl_chat.model.conversation import get_conv_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_FOREIGN_CODE: Final = {"local_files_only": True, "trust_remote_code": False}
"""For every ``from_pretrained`` of an Auto class: without it transformers asks on stdin whether to
run the code that a checkpoint names, and a script's "y" for something else would answer."""
TOKENIZER_FILES = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
)
"""Sets of files that hold a vocabulary; one complete set makes a tokenizer.

Given less, transformers does not complain: most of its classes then start with an empty vocabulary.
"""


def load_tokenizer(
    path: str, *, use_fast: bool | None = None, max_seq_length: int | None = None
) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Args:
        path: a model's directory, with ``tokenizer.json`` or a sentencepiece ``tokenizer.model``;
            or a model on the hub.
        use_fast: kept for the original recipes, without effect: transformers 5 knows fast
            tokenizers only. Out of sentencepiece files one is built that cuts text as they say.
        max_seq_length: becomes ``model_max_length``.

    Returns:
        The tokenizer, padding on the right. Without a padding token it pads with its end token.

    Raises:
        CheckpointError: files are missing or cannot be read.
    """
    from transformers import AutoTokenizer

    directory = find_tokenizer(local_model(path, "settings"))
    options: dict[str, Any] = {**NO_FOREIGN_CODE, "padding_side": "right"}
    if use_fast is not None:
        options["use_fast"] = use_fast
    if max_seq_length is not None:
        options["model_max_length"] = max_seq_length
    with Attempt() as attempt:  # the tokenizers library raises plain exceptions
        if is_sentencepiece_directory(directory):
            tokenizer = load_sentencepiece(directory, **options)
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(directory), **options)
    if attempt.error is not None:
        raise _unreadable(directory, attempt.error) from attempt.error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise CheckpointError("has neither a padding nor an end token", where=str(directory))
    return tokenizer


def _unreadable(directory: Path, err: Exception) -> Exception:
    if isinstance(err, UserError):
        return err
    if "trust_remote_code" in str(err):
        return CheckpointError(
            "its tokenizer is Python code of its own, which is not run here",
            where=str(directory),
            fix="Put a tokenizer.json there: save it once as a fast tokenizer.",
        )
    reason = next(iter(str(err).strip().splitlines()), type(err).__name__)
    return CheckpointError(
        f"cannot be loaded as a tokenizer ({reason})",
        where=str(directory),
        fix="Check that its files are complete and, if need be, download them again.",
    )


def has_tokenizer(directory: Path) -> bool:
    """Whether the directory itself holds the files of a tokenizer; they are not read."""
    return any(all((directory / name).is_file() for name in names) for names in TOKENIZER_FILES)


def find_tokenizer(path: str | Path) -> Path:
    """The directory whose tokenizer :func:`load_tokenizer` takes: the given one, or its base's.

    The base's where PEFT alone wrote the directory and put no tokenizer there. Reads no vocabulary.

    Raises:
        CheckpointError: there are no tokenizer files, or the adapter's base is not there.
    """
    directory = Path(path)
    if has_tokenizer(directory):
        return directory
    if is_bare_adapter(directory):
        return find_tokenizer(resolve_adapter_base(directory))
    if not directory.is_dir():
        raise CheckpointError("no such directory", where=str(path), fix=path_hint(path))
    raise CheckpointError(
        "no tokenizer in it",
        where=str(path),
        fix=f"Copy the tokenizer's files there: {_sets_of_files()}.",
    )


def _sets_of_files() -> str:
    return " or ".join(" and ".join(names) for names in TOKENIZER_FILES)


def add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Add those of ``SPECIAL_TOKENS`` that the tokenizer lacks, in their order.

    Returns:
        How many were added; the last ids of the tokenizer are theirs.
    """
    vocabulary = tokenizer.get_vocab()
    lacking = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    before = len(tokenizer)
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    added = len(tokenizer) - before
    if added != len(lacking):
        raise CheckpointError(f"took {added} of the {len(lacking)} tokens it lacks: {lacking}")
    return added


def check_template_tokens(tokenizer: PreTrainedTokenizerBase, template_name: str) -> None:
    """The template's end-of-turn mark and the image tokens must each be one token.

    Raises:
        ConfigError: the template does not belong to the tokenizer (or is unknown).
    """
    try:
        template = get_conv_template(template_name)
    except ValueError as err:
        raise ConfigError(str(err), where="--conv_style") from err
    ids = tokenizer(template.stop_str, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ConfigError(
            f"template {template_name!r} ends turns with {template.stop_str!r}, which this "
            f"tokenizer cuts into {len(ids)} tokens: the model could never stop",
            where="--conv_style",
            fix="Choose the template that belongs to the language model.",
        )
    for token in SPECIAL_TOKENS:
        if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1:
            raise ConfigError(f"the tokenizer cuts {token!r} into several tokens")
