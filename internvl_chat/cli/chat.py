"""``internvl-chat chat``: one answer, a conversation, or a file of questions."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from internvl_chat.checkpoint.hub_commits import pinned_model
from internvl_chat.cli.chat_arguments import check_arguments, check_room
from internvl_chat.cli.options import INSTALLED_VIDEO_READER, Compile, VideoReader, verb_app
from internvl_chat.config import video_note
from internvl_chat.errors import ConfigError

if TYPE_CHECKING:
    from internvl_chat.chat.answer_file import AnswerFile
    from internvl_chat.chat.question_lines import QuestionSource
    from internvl_chat.chat.session import ChatSession, Reply


app = verb_app()


@app.command()
def chat(
    model: Annotated[str, typer.Option(help="A checkpoint's directory, or ORG/NAME on the hub.")],
    question: Annotated[str | None, typer.Argument(help="Without one: a conversation.")] = None,
    image: Annotated[list[str] | None, typer.Option(help="An image; may be repeated.")] = None,
    video: Annotated[list[str] | None, typer.Option(help="A video; may be repeated.")] = None,
    batch: Annotated[
        str | None, typer.Option(help="JSONL of questions, or - for standard input.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSONL of the answers, with --batch.")] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Questions answered at a time, with --batch.")
    ] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    num_segments: Annotated[int, typer.Option(min=1, help="Frames of a video.")] = 8,
    video_backend: VideoReader = INSTALLED_VIDEO_READER,
    device: Annotated[str | None, typer.Option(help="Default: the first GPU, or cpu.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Spread the model over so many.")] = None,
    load_in_8bit: Annotated[bool, typer.Option(help="int8 by bitsandbytes.")] = False,
    load_in_4bit: Annotated[bool, typer.Option(help="nf4, of the language model alone.")] = False,
    compile: Compile = True,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object an answer.")] = False,
) -> None:
    """Ask a model about images and videos.

    Example: internvl-chat chat --model pretrained/internvl-chat-tiny --image a.jpg "What is red?"

    With --batch, every line of the file is {"question": ..., "image": FILE or [FILES], "video":
    FILE, "id": anything}; --out gets {"line": n, "id": ..., "question": ..., "answer": ...} for
    each, or "error" in place of the answer. Lines that --out already answers are not asked again.
    """
    images, videos = image or [], video or []
    questions = check_arguments(batch, out, question, images, videos, temperature, video_backend)
    model = pinned_model(model)
    if videos and (note := video_note(video_backend)):
        typer.echo(note, err=True)
    check_room(model, question, num_segments * len(videos))
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer that it cannot spell ends nothing
        sys.stdout.reconfigure(errors="backslashreplace")
    generation: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    if temperature > 0:
        generation["temperature"] = temperature
    quantised = {"load_in_8bit": load_in_8bit, "load_in_4bit": load_in_4bit}
    placed: Any = {"device": device, "gpus": gpus, "compile": compile, **quantised}
    session = _load_session(generation, model, video_backend, **placed)
    if questions is not None:
        raise typer.Exit(_answer_file(session, *questions, num_segments, batch_size, as_json))
    for path in images:
        session.add_image(path)
    for path in videos:
        session.add_video(path, num_segments=num_segments)
    if question is not None:
        _ask(session, question, as_json)
    else:
        _converse(session, num_segments, as_json)


def _load_session(
    generation: dict[str, Any], path: str, video_backend: VideoReader, **options: Any
) -> ChatSession:
    """Seconds, after the arguments were seen to be right."""
    from transformers.utils.logging import disable_progress_bar

    from internvl_chat.chat.loading import load_model
    from internvl_chat.chat.session import ChatSession

    disable_progress_bar()  # of loading: the terminal is for the conversation
    model, tokenizer = load_model(path, **options)
    return ChatSession(model, tokenizer, generation, video_backend=video_backend)


def _converse(session: ChatSession, num_segments: int, as_json: bool) -> None:
    from internvl_chat.chat.interactive import converse

    converse(
        session,
        _lines(),
        ask=lambda line: _ask(session, line, as_json),
        tell=lambda text: typer.echo(text, err=True),
        num_segments=num_segments,
    )


def _ask(session: ChatSession, question: str, as_json: bool) -> None:
    try:
        if as_json:
            typer.echo(_to_json(question, session.ask(question)))
            return
        reply = session.ask(question, lambda text: typer.echo(text, nl=False))
    except ValueError as err:
        raise ConfigError(str(err), where="question") from err
    typer.echo()
    rate = reply.num_tokens / reply.seconds
    typer.echo(
        f"{reply.num_tokens} tokens, {rate:.1f} tokens/s, first after "
        f"{reply.first_token_seconds:.2f} s"
        f"{', ended by the context of the model' if reply.ended_by_context else ''}",
        err=True,
    )


def _to_json(question: str, reply: Reply) -> str:
    told = {
        "question": question,
        "answer": reply.text,
        "num_tokens": reply.num_tokens,
        "seconds": round(reply.seconds, 3),
        "first_token_seconds": round(reply.first_token_seconds, 3),
    }
    is_utf8 = "utf" in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    return json.dumps(told, ensure_ascii=not is_utf8)


def _lines() -> Iterator[str]:
    """What is typed, until its end; with a prompt and the commands where that is a terminal.

    Bytes that are no UTF-8 are escaped as Python does: the question is refused, not the rest.
    """
    from internvl_chat.chat.question_lines import read_lines, standard_input

    if not sys.stdin.isatty():
        for line in read_lines(standard_input("chat")):
            yield line.decode("utf-8", "surrogateescape")
        return
    from internvl_chat.chat.interactive import HELP

    typer.echo(HELP, err=True)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def _answer_file(
    session: ChatSession,
    questions: QuestionSource,
    answers: AnswerFile,
    num_segments: int,
    batch_size: int,
    as_json: bool,
) -> int:
    """Answer what has no answer yet, with a bar; returns 1 if a line could not be answered."""
    import time

    from rich.console import Console
    from rich.progress import Progress

    from internvl_chat.chat.batch import answer_file

    begin = time.perf_counter()
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("answering", total=questions.num_questions)
        report = answer_file(
            session,
            questions,
            answers,
            num_segments=num_segments,
            batch_size=batch_size,
            progress=lambda count: bar.advance(task, count),
        )
    seconds = time.perf_counter() - begin
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report)))
    before = ""
    if report.answered_before:
        before = f"; {report.answered_before} were answered in {answers.path} before"
    typer.echo(
        f"{report.answered} answered, {report.failed} failed, "
        f"{report.answered / seconds:.1f} answers/s{before}",
        err=True,
    )
    return 1 if report.failed else 0
