"""``internvl-chat demo``: a chat page for one checkpoint, or for two side by side."""

from __future__ import annotations

import signal
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from internvl_chat.cli.options import Compile, verb_app
from internvl_chat.errors import ConfigError
from internvl_chat.web.limits import QuestionLimits

app = verb_app()


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="A checkpoint's directory, or ORG/NAME on the hub.")],
    compare: Annotated[
        str | None, typer.Option(help="A second model, which gets the same questions.")
    ] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    share: Annotated[
        bool, typer.Option("--share", help="Open a public link through Gradio's servers.")
    ] = False,
    examples: Annotated[
        Path | None,
        typer.Option(help="Questions to click, as for chat --batch; else shipped ones."),
    ] = None,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Of an image or video.")] = (
        QuestionLimits.max_upload_mb
    ),
    device: Annotated[str | None, typer.Option(help="Default: the first GPU, or cpu.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Spread the model over so many.")] = None,
    load_in_8bit: Annotated[bool, typer.Option(help="int8 by bitsandbytes.")] = False,
    load_in_4bit: Annotated[bool, typer.Option(help="nf4, of the language model alone.")] = False,
    compile: Compile = True,
) -> None:
    """Open a page for asking about images and videos, with streamed answers and drawn boxes.

    Example: internvl-chat demo --model pretrained/internvl-chat-tiny

    With --compare (say, a model before and after fine-tuning) both answer side by side. The page is
    to be had on this machine only, unless --host or --share says otherwise.
    """
    if find_spec("gradio") is None:
        raise ConfigError(
            "the demo page needs gradio",
            where="demo",
            fix='pip install "internvl-chat[demo]"',
        )
    from internvl_chat.web.examples import read_examples
    from internvl_chat.web.loading import load
    from internvl_chat.web.server import (  # seconds: after the arguments were seen to be right
        free_port,
        serve,
    )

    port = free_port(host, port)
    own_examples = None if examples is None else read_examples(examples)
    paths = [model] if compare is None else [model, compare]
    quantised = {"load_in_8bit": load_in_8bit, "load_in_4bit": load_in_4bit}
    answering = load(paths, device=device, gpus=gpus, compile=compile, **quantised)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    limits = QuestionLimits(max_upload_mb=max_upload_mb)
    with serve(
        answering, host=host, port=port, share=share, limits=limits, examples=own_examples
    ) as serving:
        typer.echo(f"The page is at {serving.url}")
        if serving.share_url:
            typer.echo(f"For everybody: {serving.share_url}")
        typer.echo("Ctrl-C ends it.", err=True)
        ended.wait()
