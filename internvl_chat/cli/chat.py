"""``internvl-chat chat``: one answer, a conversation, or a file of questions."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from internvl_chat.cli.options import VideoReader, verb_app
from internvl_chat.errors import ConfigError

if TYPE_CHECKING:
    from internvl_chat.chat.session import ChatSession, Reply


app = verb_app()


@app.command()
def chat(
    model: Annotated[str, typer.Option(help="Directory of the checkpoint.")],
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
    video_backend: VideoReader = "decord",
    device: Annotated[str | None, typer.Option(help="Default: the first GPU, or cpu.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Spread the model over so many.")] = None,
    load_in_8bit: Annotated[bool, typer.Option(help="int8 by bitsandbytes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object an answer.")] = False,
) -> None:
    """Ask a model about images and videos.

    Example: internvl-chat chat --model pretrained/internvl-chat-tiny --image a.jpg "What is red?"

    With --batch, every line of the file is {"question": ..., "image": FILE or [FILES], "video":
    FILE, "id": anything}; --out gets {"line": n, "id": ..., "question": ..., "answer": ...} for
    each, or "error" in place of the answer. Lines that --out already answers are not asked again.
    """
    _check_files(batch, out, question, image or [], video or [])
    generation: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    if temperature > 0:
        generation["temperature"] = temperature
    from transformers.utils.logging import disable_progress_bar

    from internvl_chat.chat.interactive import converse
    from internvl_chat.chat.loading import (
        load_model,  # seconds: after the arguments were seen to be right
    )
    from internvl_chat.chat.session import ChatSession

    disable_progress_bar()  # of loading: the terminal is for the conversation
    loaded, tokenizer = load_model(model, device=device, gpus=gpus, load_in_8bit=load_in_8bit)
    session = ChatSession(loaded, tokenizer, generation, video_backend=video_backend)
    if batch is not None and out is not None:
        raise typer.Exit(_answer_file(session, batch, out, num_segments, batch_size))
    for path in image or ():
        session.add_image(path)
    for path in video or ():
        session.add_video(path, num_segments=num_segments)
    if question is not None:
        _ask(session, question, as_json)
    else:
        converse(
            session,
            _lines(),
            ask=lambda line: _ask(session, line, as_json),
            tell=lambda text: typer.echo(text, err=True),
            num_segments=num_segments,
        )


def _check_files(
    batch: str | None, out: Path | None, question: str | None, image: list[str], video: list[str]
) -> None:
    """Find what is wrong before seconds go into loading a model."""
    if batch is not None and (question is not None or image or video):
        raise ConfigError(
            "--batch takes questions and images from its file",
            where="--batch",
            fix="Leave out the question, --image and --video.",
        )
    if (batch is None) != (out is None):
        raise ConfigError("--batch and --out go together", where="--batch")
    for option, paths in (("--image", image), ("--video", video)):
        for path in paths:
            if not Path(path).exists():
                raise ConfigError(f"no such file: {path}", where=option)
    if batch not in (None, "-"):
        _open(str(batch))


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
        f"{reply.first_token_seconds:.2f} s",
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
    return json.dumps(told, ensure_ascii=False)


def _lines() -> Iterator[str]:
    """What is typed, until its end; with a prompt and the commands where that is a terminal."""
    prompt = "> " if sys.stdin.isatty() else ""
    if prompt:
        from internvl_chat.chat.interactive import HELP

        typer.echo(HELP, err=True)
    while True:
        try:
            yield input(prompt)
        except EOFError:
            return


def _answer_file(
    session: ChatSession, path: str, out: Path, num_segments: int, batch_size: int
) -> int:
    """Answer what has no answer yet, with a bar; returns 1 if a line could not be answered."""
    import time

    from rich.console import Console
    from rich.progress import Progress

    from internvl_chat.chat.batch import answer_file

    lines = sys.stdin if path == "-" else _open(path)
    total = len(lines) if isinstance(lines, list) else None
    begin = time.perf_counter()
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("answering", total=total)
        report = answer_file(
            session,
            lines,
            path,
            out,
            num_segments=num_segments,
            batch_size=batch_size,
            progress=lambda count: bar.advance(task, count),
        )
    seconds = time.perf_counter() - begin
    typer.echo(
        f"{report.answered} answered, {report.failed} failed, "
        f"{report.answered / seconds:.1f} answers/s",
        err=True,
    )
    return 1 if report.failed else 0


def _open(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as err:
        raise ConfigError(f"{path} cannot be read: {err.strerror}", where="--batch") from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"{path} is no UTF-8 ({err.reason})", where="--batch") from err
