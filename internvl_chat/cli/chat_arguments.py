"""What can be wrong in a call of ``internvl-chat chat``, found before the model is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from internvl_chat.cli.options import VideoReader
from internvl_chat.config import video_backend_problem
from internvl_chat.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from internvl_chat.chat.answer_file import AnswerFile
    from internvl_chat.chat.question_lines import QuestionSource

_TEMPERATURES = (0.001, 100.0)
"""Below, its quotients overflow; above, all tokens are as likely."""
_SHORT_BYTES = 500
"""Fewer fit into every context."""


def check_arguments(
    batch: str | None,
    out: Path | None,
    question: str | None,
    images: list[str],
    videos: list[str],
    temperature: float,
    video_backend: VideoReader,
) -> tuple[QuestionSource, AnswerFile] | None:
    """Look at everything that needs no model.

    Returns:
        The questions of ``--batch`` and the file for their answers; None without.

    Raises:
        ConfigError: names the option.
    """
    low, high = _TEMPERATURES
    if temperature != 0 and not low <= temperature <= high:  # NaN too
        raise ConfigError(
            f"{temperature:g} is no temperature",
            where="--temperature",
            fix=f"Give 0, or {low:g} to {high:g}.",
        )
    if problem := video_backend_problem(video_backend):
        raise ConfigError(problem, where="--video-backend")
    if batch is not None and (question is not None or images or videos):
        raise ConfigError(
            "--batch takes questions and images from its file",
            where="--batch",
            fix="Leave out the question, --image and --video.",
        )
    if batch is not None and out is not None:
        return _open_batch(batch, out)
    if (batch is None) != (out is None):
        raise ConfigError("--batch and --out go together", where="--batch")
    if question is None and sys.stdin is None:
        raise ConfigError("standard input is closed", where="chat", fix="Give a question.")
    if question is not None:
        _check_question(question, len(images), bool(videos))
    for path in images:
        _check_image(path)
    for path in videos:
        _check_video(path, video_backend)
    return None


def _open_batch(batch: str, out: Path) -> tuple[QuestionSource, AnswerFile]:
    from internvl_chat.chat.answer_file import AnswerFile, require_same_questions
    from internvl_chat.chat.question_lines import open_questions

    questions = open_questions(batch)
    answers = AnswerFile(out, questions.status)
    require_same_questions(questions, answers)
    return questions, answers


def _check_question(question: str, num_images: int, has_videos: bool) -> None:
    from internvl_chat.chat.typed_text import require_text
    from internvl_chat.model.constants import IMAGE_TAG

    try:
        require_text(question)
    except ValueError as err:
        raise ConfigError(str(err), where="question") from err
    num_tags = question.count(IMAGE_TAG)
    if num_tags and not has_videos and num_tags != num_images:
        raise ConfigError(
            f"{num_tags} {IMAGE_TAG} tags in the question, {num_images} images",
            where="question",
            fix="Write one for each --image, or none.",
        )


def _check_image(path: str) -> None:
    from internvl_chat.data.images import load_image

    with _blamed("--image"):
        load_image(path)


def _check_video(path: str, backend: VideoReader) -> None:
    from internvl_chat.data.video import open_video

    with _blamed("--video"):
        open_video(path, where=path, backend=backend).frames([0])


def check_room(model: str, question: str | None, num_frames: int) -> None:
    """Refuse what no context of the model can take, before minutes go into its weights.

    Args:
        model: directory of the checkpoint, or a model on the hub.
        question: counted if it has as many bytes as the context has tokens.
        num_frames: of all videos.

    Raises:
        CheckpointError: there is no checkpoint.
        ConfigError: the question, or the frames, are longer than the context.
    """
    num_bytes = len((question or "").encode())
    if not num_frames and num_bytes < _SHORT_BYTES:
        return
    from internvl_chat.chat.context import context_length, require_room_for_frames, too_long
    from internvl_chat.checkpoint.hub import local_model
    from internvl_chat.checkpoint.sources import read_chat_config
    from internvl_chat.checkpoint.tokenizer import load_tokenizer

    model = local_model(model, "settings")
    config = read_chat_config(model)
    require_room_for_frames(config, num_frames)
    limit = context_length(config)
    if limit is not None and question is not None and num_bytes >= limit:
        tokenizer = load_tokenizer(model)
        num_tokens = len(tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"])
        if num_tokens >= limit:
            raise too_long(f"{num_tokens} tokens in the question alone", limit)


@contextmanager
def _blamed(option: str) -> Iterator[None]:
    """Let the block's errors speak of an option; only a wrong path is wrong use."""
    from internvl_chat.chat.media_errors import told_for_inference
    from internvl_chat.data.bad_record import BadRecordError

    try:
        with told_for_inference():
            yield
    except DatasetError as err:
        is_path = isinstance(err, BadRecordError) and err.code == "MISSING_FILE"
        kind = ConfigError if is_path else DatasetError
        raise kind(err.problem, where=option, fix=err.fix) from err
    except ConfigError as err:
        raise ConfigError(err.problem, where=option, fix=err.fix) from err
