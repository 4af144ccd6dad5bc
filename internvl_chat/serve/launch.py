"""From settings and a checkpoint to a server that answers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from transformers.utils.logging import disable_progress_bar

from internvl_chat import __version__
from internvl_chat.chat import loading
from internvl_chat.serve.app import Service, create_app
from internvl_chat.serve.engine import Engine
from internvl_chat.serve.observation import logging_requests
from internvl_chat.serve.prompt import Prompter
from internvl_chat.serve.remote import RemoteImages
from internvl_chat.serve.server import Server, bind, is_open, serve, url_of
from internvl_chat.serve.settings import ServerSettings

logger = logging.getLogger(__name__)

_PREPARING_THREADS: Final = 2


def serve_checkpoint(
    path: str, settings: ServerSettings, *, on_ready: Callable[[str], None], **load_options: Any
) -> None:
    """Load a checkpoint and answer until SIGINT or SIGTERM.

    Args:
        path: of the checkpoint.
        settings: where and for whom.
        on_ready: told the server's URL when connections are taken.
        **load_options: of ``load_model``.

    Raises:
        ConfigError: the address cannot be used, or the model cannot be served.
        CheckpointError: no checkpoint.
    """
    place = bind(settings.host, settings.port)  # before the model: a taken port is told at once
    disable_progress_bar()
    model, tokenizer = loading.load_model(path, **load_options)
    engine = Engine(model, tokenizer, settings.engine)
    prompter = Prompter(model, tokenizer)
    limits = settings.limits
    remote = RemoteImages(max_bytes=limits.max_image_bytes)
    service = Service(
        engine=engine,
        prompter=prompter,
        model_name=settings.model_name,
        executor=ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="prepare"),
        limits=limits,
        remote=remote if settings.allow_remote_images else None,
        api_key=settings.api_key,
        model_info={
            "version": __version__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "max_model_len": str(prompter.context_length),
        },
    )
    url = url_of(place)
    if settings.api_key is None and is_open(place):
        logger.warning("%s is open to whoever reaches it: no --api-key", url)
    engine.start()
    server = Server(
        create_app(service),
        engine,
        grace_seconds=settings.shutdown_seconds,
        receive_seconds=limits.receive_seconds,
        on_ready=lambda: on_ready(url),
    )
    with logging_requests(is_wanted=settings.log_requests):
        serve(server, place, engine)
