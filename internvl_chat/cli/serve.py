"""``internvl-chat serve``: an OpenAI-style endpoint for one checkpoint."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Any

import typer

from internvl_chat.checkpoint.hub_names import last_part
from internvl_chat.cli.options import Compile, verb_app
from internvl_chat.errors import ConfigError
from internvl_chat.serve.settings import MB, EngineSettings, RequestLimits, ServerSettings

_ENGINE, _LIMITS = EngineSettings(), RequestLimits()


def _positive(text: str) -> Any:
    """An option that counts something."""
    return typer.Option(min=1, help=text)


_RECEIVE = _positive("For a request's head to arrive, and for its body.")
_LOG = typer.Option(help="A line for each request on stderr, without its contents.")

app = verb_app()


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="A checkpoint's directory, or ORG/NAME on the hub.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    served_model_name: Annotated[
        str | None, typer.Option(help="Name for clients; the directory's by default.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="INTERNVL_CHAT_API_KEY", help="Clients must send it."),
    ] = None,
    max_batch_size: Annotated[
        int, _positive("Answers generated at once.")
    ] = _ENGINE.max_batch_size,
    max_queue: Annotated[int, _positive("Requests that may wait for those.")] = _ENGINE.max_queue,
    max_images: Annotated[int, _positive("Images of a request.")] = _LIMITS.max_images,
    max_image_mb: Annotated[int, _positive("File of an image.")] = _LIMITS.max_image_bytes // MB,
    max_request_mb: Annotated[int, _positive("Body of a request.")] = (
        _LIMITS.max_request_bytes // MB
    ),
    receive_seconds: Annotated[int, _RECEIVE] = int(_LIMITS.receive_seconds),
    allow_remote_images: Annotated[
        bool, typer.Option("--allow-remote-images", help="Fetch http(s) URLs of images.")
    ] = False,
    log_requests: Annotated[bool, _LOG] = True,
    shutdown_seconds: Annotated[
        int, typer.Option(min=0, help="For running answers, after SIGINT or SIGTERM.")
    ] = 30,
    device: Annotated[str | None, typer.Option(help="Default: the first GPU, or cpu.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Spread the model over so many.")] = None,
    load_in_8bit: Annotated[bool, typer.Option(help="int8 by bitsandbytes.")] = False,
    load_in_4bit: Annotated[bool, typer.Option(help="nf4, of the language model alone.")] = False,
    compile: Compile = True,
) -> None:
    """Serve a model to clients of OpenAI's chat completions.

    Example: internvl-chat serve --model pretrained/internvl-chat-tiny --port 8000
    """
    _require_packages()
    settings = ServerSettings(
        host=host,
        port=port,
        model_name=served_model_name or last_part(model),
        api_key=api_key,
        allow_remote_images=allow_remote_images,
        shutdown_seconds=shutdown_seconds,
        log_requests=log_requests,
        engine=EngineSettings(max_batch_size=max_batch_size, max_queue=max_queue),
        limits=_limits(max_images, max_image_mb, max_request_mb, receive_seconds),
    )
    quantised = {"load_in_8bit": load_in_8bit, "load_in_4bit": load_in_4bit}
    placed: Any = {"device": device, "gpus": gpus, "compile": compile, **quantised}
    from internvl_chat.serve.launch import serve_checkpoint  # the model's code, and fastapi

    serve_checkpoint(
        model,
        settings,
        on_ready=lambda url: typer.echo(f"{settings.model_name} is served at {url}/v1"),
        **placed,
    )


def _limits(
    max_images: int, max_image_mb: int, max_request_mb: int, receive_seconds: int
) -> RequestLimits:
    return RequestLimits(
        max_images=max_images,
        max_image_bytes=max_image_mb * MB,
        max_request_bytes=max_request_mb * MB,
        receive_seconds=receive_seconds,
    )


def _require_packages() -> None:
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serving needs {' and '.join(missing)}, not installed here",
            where="internvl-chat serve",
            fix='pip install "internvl-chat[serve]"',
        )
