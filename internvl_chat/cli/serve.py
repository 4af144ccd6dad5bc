"""``internvl-chat serve``: an OpenAI-style endpoint for one checkpoint."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from internvl_chat.cli.options import verb_app
from internvl_chat.errors import ConfigError

logger = logging.getLogger(__name__)

_PREPARING_THREADS = 2


app = verb_app()


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="Directory of the checkpoint.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    served_model_name: Annotated[
        str | None, typer.Option(help="Name for clients; the directory's by default.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="INTERNVL_CHAT_API_KEY", help="Clients must send it."),
    ] = None,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Answers generated at once.")] = 8,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that may wait for those.")] = 64,
    max_images: Annotated[int, typer.Option(min=1, help="Pictures of a request.")] = 16,
    max_image_mb: Annotated[int, typer.Option(min=1, help="File of a picture.")] = 20,
    max_request_mb: Annotated[int, typer.Option(min=1, help="Body of a request.")] = 64,
    allow_remote_images: Annotated[
        bool, typer.Option("--allow-remote-images", help="Fetch http(s) URLs of pictures.")
    ] = False,
    shutdown_seconds: Annotated[
        int, typer.Option(min=0, help="For running answers, after SIGINT or SIGTERM.")
    ] = 30,
    device: Annotated[str | None, typer.Option(help="Default: the first GPU, or cpu.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Spread the model over so many.")] = None,
    load_in_8bit: Annotated[bool, typer.Option(help="int8 by bitsandbytes.")] = False,
) -> None:
    """Serve a model to clients of OpenAI's chat completions.

    Example: internvl-chat serve --model pretrained/internvl-chat-tiny --port 8000
    """
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serving needs {' and '.join(missing)}, not installed here",
            where="internvl-chat serve",
            fix='In the repository: pip install -e ".[serve]"',
        )
    if api_key == "":
        raise ConfigError("the key is empty", where="--api-key", fix="Leave it out or choose one.")
    from internvl_chat.serve.settings import MB, EngineSettings, RequestLimits

    settings = EngineSettings(max_batch_size=max_batch_size, max_queue=max_queue)
    limits = RequestLimits(
        max_images=max_images,
        max_image_bytes=max_image_mb * MB,
        max_request_bytes=max_request_mb * MB,
    )
    from transformers.utils.logging import disable_progress_bar

    from internvl_chat.chat.loading import (
        load_model,  # seconds: after the arguments were seen to be right
    )
    from internvl_chat.serve.app import Service, create_app
    from internvl_chat.serve.engine import Engine
    from internvl_chat.serve.prompt import Prompter
    from internvl_chat.serve.remote import RemoteImages
    from internvl_chat.serve.server import Server, bind, is_open, url_of
    from internvl_chat.serve.server import serve as run

    place = bind(host, port)  # before the model: a port that is taken is told at once
    disable_progress_bar()
    loaded, tokenizer = load_model(model, device=device, gpus=gpus, load_in_8bit=load_in_8bit)
    engine = Engine(loaded, tokenizer, settings)
    service = Service(
        engine=engine,
        prompter=Prompter(loaded, tokenizer),
        model_name=served_model_name or Path(model).resolve().name,
        executor=ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="prepare"),
        limits=limits,
        remote=RemoteImages(max_bytes=limits.max_image_bytes) if allow_remote_images else None,
        api_key=api_key,
    )
    url = url_of(place)
    if api_key is None and is_open(place):
        logger.warning("%s is open to whoever reaches it: no --api-key", url)
    engine.start()
    server = Server(
        create_app(service),
        engine,
        grace_seconds=shutdown_seconds,
        on_ready=lambda: typer.echo(f"{service.model_name} is served at {url}/v1"),
    )
    run(server, place, engine)
