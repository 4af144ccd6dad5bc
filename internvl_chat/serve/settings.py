"""What a server allows, checked before the model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from internvl_chat.chat.limits import UploadLimits
from internvl_chat.errors import ConfigError

MB = 10**6


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How many answers are generated at once."""

    max_batch_size: int = 8
    """Rows of the running batch."""
    max_queue: int = 64
    """Requests that may wait beyond those."""
    prefill_tokens: int = 4096
    """Rows x longest prompt read in one pass. Between two passes every running answer gets a token,
    so this bounds how long a new prompt holds the others up; a longer prompt is read alone."""

    def __post_init__(self) -> None:
        _require_positive(self, "max_batch_size", "max_queue", "prefill_tokens")


@dataclass(frozen=True, kw_only=True)
class RequestLimits(UploadLimits):
    """What one request may hold; beyond it the answer is 413."""

    max_images: int = 16
    max_image_bytes: int = 20 * MB
    """Of one image's file, decoded from base64."""
    max_request_bytes: int = 64 * MB
    """Of the whole body, base64 and all."""
    receive_seconds: float = 30
    """For a request's head to come, and then for its body; beyond it the answer is 408."""

    def __post_init__(self) -> None:
        _require_positive(
            *(self, "max_images", "max_image_bytes", "max_upload_pixels", "max_request_bytes"),
            "receive_seconds",
        )


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where a server listens, whom it answers, and what it allows."""

    host: str
    port: int
    """0 takes a free one."""
    model_name: str
    """For clients."""
    api_key: str | None
    """Clients must send it; None: whoever reaches the server may ask."""
    allow_remote_images: bool
    """Fetch http(s) URLs."""
    shutdown_seconds: int
    """For running answers, after SIGINT or SIGTERM."""
    log_requests: bool
    """A line for each request on stderr."""
    engine: EngineSettings
    limits: RequestLimits

    def __post_init__(self) -> None:
        if self.api_key == "":
            raise ConfigError(
                "the key is empty", where="--api-key", fix="Leave it out or choose one."
            )


def _require_positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value <= 0:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{name} is {value}, want a number > 0", where=option)
