"""A fast tokenizer with the pieces of a sentencepiece model, as the slow one of old cut text.

Published InternVL-Chat and Yi checkpoints have a ``tokenizer.model`` and no ``tokenizer.json``.
transformers 5 turns such a file into byte-pair merges whatever its kind, and puts a space before
the text even if the model says not to (``add_dummy_prefix``). Here the model's own kind, prefix
rule and normalisation are kept, with the two behaviours of transformers 4's ``LlamaTokenizer``:
``legacy`` puts the prefix before every stretch of text between special tokens, otherwise only the
beginning of the text gets one.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.checkpoint.sources import read_json
from internvl_chat.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MODEL_NAME = "tokenizer.model"
_CONFIG_NAME = "tokenizer_config.json"
_ADDED_NAME = "added_tokens.json"
_SPACE = "\u2581"
_UNIGRAM, _BPE = 1, 2
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_CLASSES = {"LlamaTokenizer", "LlamaTokenizerFast", "YiTokenizer", "InternLM2Tokenizer"}
_PROBES = ("The answer is 42, not 17.", "two  spaces\nand\ttabs", "中文 naïve Ω 😀", " x")


def is_sentencepiece_directory(directory: Path) -> bool:
    """Whether the tokenizer is a Llama-style sentencepiece model without a fast counterpart."""
    if not (directory / MODEL_NAME).is_file() or (directory / "tokenizer.json").is_file():
        return False
    path = directory / _CONFIG_NAME
    declared = read_json(path).get("tokenizer_class") if path.is_file() else None
    return declared is None or declared in _CLASSES


def load_sentencepiece(directory: Path, **options: Any) -> PreTrainedTokenizerBase:
    """Build the tokenizer of a directory for which :func:`is_sentencepiece_directory` holds.

    Args:
        directory: with ``tokenizer.model`` and, mostly, ``tokenizer_config.json``.
        **options: for ``from_pretrained``.

    Raises:
        CheckpointError: the model is broken or of a kind that is not supported, or added tokens
            do not follow the model's pieces.
    """
    from transformers import PreTrainedTokenizerFast

    path = directory / _CONFIG_NAME
    config = read_json(path) if path.is_file() else {}
    proto = _read_proto(directory / MODEL_NAME)
    backend = _backend(proto, directory / MODEL_NAME, legacy=config.get("legacy") is not False)
    _add_tokens(backend, _added_tokens(directory, config), str(directory))
    _set_ends(backend, proto, config)
    _compare(backend, directory / MODEL_NAME, bool(proto.normalizer_spec.add_dummy_prefix))
    defaults = {
        "unk_token": proto.trainer_spec.unk_piece,
        "bos_token": proto.trainer_spec.bos_piece,
        "eos_token": proto.trainer_spec.eos_piece,
    }
    config = {**defaults, **config, "tokenizer_class": "PreTrainedTokenizerFast"}
    for key in ("auto_map", "sp_model_kwargs", "legacy", "added_tokens_decoder"):
        config.pop(key, None)
    with tempfile.TemporaryDirectory() as folder:
        backend.save(f"{folder}/tokenizer.json")
        Path(folder, _CONFIG_NAME).write_text(json.dumps(config))
        for name in ("special_tokens_map.json", "chat_template.jinja"):
            if (directory / name).is_file():
                shutil.copyfile(directory / name, f"{folder}/{name}")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **options)
    tokenizer.name_or_path = str(directory)
    return tokenizer


def _read_proto(path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as err:
        raise CheckpointError(
            "is no sentencepiece model", where=str(path), fix="Download it again."
        ) from err
    return proto


def _backend(proto: Any, path: Path, *, legacy: bool) -> Tokenizer:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
    )

    kind, byte_fallback = proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback
    scores = [(piece.piece, piece.score) for piece in proto.pieces]
    unknown = proto.trainer_spec.unk_id
    if kind == _UNIGRAM:
        model: Any = models.Unigram(scores, unk_id=unknown, byte_fallback=byte_fallback)
    elif kind == _BPE:
        model = models.BPE(
            {piece: number for number, (piece, _) in enumerate(scores)},
            _merges(proto),
            unk_token=scores[unknown][0],
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    else:
        raise CheckpointError(
            f"sentencepiece model_type {kind}: only unigram and BPE are supported",
            where=str(path),
        )
    backend = Tokenizer(model)
    spec = proto.normalizer_spec
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if legacy and spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    steps.append(normalizers.Replace(" ", _SPACE))
    backend.normalizer = normalizers.Sequence(steps)
    if not legacy:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=_SPACE, prepend_scheme="first", split=False
        )
    decoding: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix or not legacy:
        decoding.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(decoding)
    backend.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL)
            for piece in proto.pieces
            if piece.type in (_CONTROL, _USER_DEFINED)
        ]
    )
    return backend


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Byte-pair merges that cut text as sentencepiece does.

    sentencepiece joins the two neighbours whose joined piece scores best, however that piece came
    about in training, so each way to split a piece into two pieces is a merge of the piece's score.
    """
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}
    merges = [
        (-score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    merges.sort(key=lambda merge: merge[0])  # stable: ties stay in the order of the pieces
    return [(left, right) for _, left, right in merges]


def _added_tokens(directory: Path, config: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """(id, flags) of the tokens beside the model, from either of the files that list them."""
    listed = {int(number): dict(flags) for number, flags in _decoder(config).items()}
    path = directory / _ADDED_NAME
    if path.is_file():
        for content, number in read_json(path).items():
            listed.setdefault(int(number), {"content": content, "normalized": False})
    return sorted(listed.items())


def _decoder(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    decoder = config.get("added_tokens_decoder")
    return decoder if isinstance(decoder, dict) else {}


def _add_tokens(
    backend: Tokenizer, tokens: Iterable[tuple[int, dict[str, Any]]], where: str
) -> None:
    from tokenizers import AddedToken

    for number, flags in tokens:
        flags = {key: value for key, value in flags.items() if key != "__type"}
        content = flags.pop("content")
        # A token that is normalised would be looked for with the prefix space in front.
        token = AddedToken(content, **{**flags, "normalized": False})
        add = backend.add_special_tokens if flags.get("special") else backend.add_tokens
        add([token])
        if backend.token_to_id(content) != number:
            raise CheckpointError(
                f"added token {content!r} should be id {number} and would be "
                f"{backend.token_to_id(content)}",
                where=where,
                fix="Check that tokenizer.model belongs to these files.",
            )


def _set_ends(backend: Tokenizer, proto: Any, config: dict[str, Any]) -> None:
    """Tokens put around a text: by default, as LlamaTokenizer does, one at its beginning."""
    from tokenizers import processors

    def text(key: str, fallback: str) -> str:
        value = config.get(key) or fallback
        return value["content"] if isinstance(value, dict) else value

    bos = text("bos_token", proto.trainer_spec.bos_piece)
    eos = text("eos_token", proto.trainer_spec.eos_piece)
    before = f"{bos} " if config.get("add_bos_token", True) else ""
    after = f" {eos}" if config.get("add_eos_token", False) else ""
    used = [(token, backend.token_to_id(token)) for token in {bos, eos}]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{before}$A{after}",
        pair=f"{before}$A{after} {before}$B{after}",
        special_tokens=[(token, number) for token, number in used if number is not None],
    )


def _compare(backend: Tokenizer, path: Path, has_prefix: bool) -> None:
    """Warn if ordinary text is cut otherwise than by sentencepiece itself."""
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in _PROBES:
        ids = backend.encode(text, add_special_tokens=False).ids
        want = reference.encode(text)
        # Without legacy a prefix is put in front even where the model has none.
        if ids != want and (has_prefix or ids[1:] != want):
            logger.warning("%s: %r is cut into %s, by sentencepiece into %s", path, text, ids, want)
