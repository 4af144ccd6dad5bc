"""Serve the page: on one address, from a folder of its own, with nothing fetched from elsewhere."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from internvl_chat.errors import ConfigError
from internvl_chat.web.answering import Answering
from internvl_chat.web.examples import ExampleQuestion, shipped_examples
from internvl_chat.web.limits import QuestionLimits

if TYPE_CHECKING:
    from gradio import Blocks

    from internvl_chat.web.page import Page

_PREFIX: Final = "internvl-chat-demo-"


@dataclass(frozen=True, kw_only=True)
class Serving:
    """A page that answers."""

    url: str
    share_url: str | None
    uploads: Path
    """The only folder whose files are read and given out."""
    page: Page


def free_port(host: str, port: int) -> int:
    """A port to listen on.

    Args:
        host: a name or address of this machine.
        port: 0 for any.

    Raises:
        ConfigError: the host is not of this machine, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except (OSError, UnicodeError) as err:  # a name that no machine can have is a UnicodeError
        is_taken = isinstance(err, OSError) and err.errno in (errno.EADDRINUSE, errno.EACCES)
        fix = "Leave out --port to get a free one."
        raise ConfigError(
            f"cannot listen on {host}:{port}: {getattr(err, 'strerror', None) or err}",
            where="--host, --port",
            fix=fix if is_taken else "Give --host a name or an address of this machine.",
        ) from err


@contextmanager
def serve(
    answering: Answering,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    share: bool = False,
    limits: QuestionLimits | None = None,
    examples: Sequence[ExampleQuestion] | None = None,
) -> Iterator[Serving]:
    """Run the page in threads of this process; on leaving, end it and delete its files.

    Sets ``GRADIO_TEMP_DIR`` and ``NO_PROXY`` for the duration: Gradio reads them at many places.

    Args:
        answering: the checkpoints.
        host, port: where to listen; port 0 takes a free one.
        share: open a public tunnel through Gradio's servers.
        limits: of a question.
        examples: questions to click; by default shipped ones that suit the models.

    Raises:
        ConfigError: the address cannot be used, or the tunnel was not opened.
    """
    limits = limits or QuestionLimits()
    if examples is None:
        sizes = [checkpoint.model.config.image_size for checkpoint in answering.checkpoints]
        examples = shipped_examples(min(sizes, default=0), compared=len(sizes) > 1)
    folder = os.environ.get("GRADIO_TEMP_DIR", "")
    assert _PREFIX not in folder, f"one page a process: another one serves from {folder}"
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        uploads = Path(folder).resolve()
        # Gradio asks its own server whether it is up; a proxy would answer in its place.
        no_proxy = ",".join(filter(None, (os.environ.get("NO_PROXY"), host, "localhost")))
        with _environment(GRADIO_TEMP_DIR=str(uploads), NO_PROXY=no_proxy, no_proxy=no_proxy):
            # Not before: Gradio looks at GRADIO_TEMP_DIR when it is imported, too, and makes a
            # folder there. The default one belongs to whoever used it first on this machine.
            from internvl_chat.web.layout import build_page
            from internvl_chat.web.page import Page

            page = Page(answering, limits, uploads, examples)
            blocks = build_page(page)
            # api_open=False: no request goes past the queue.
            blocks.queue(api_open=False)
            try:
                url, share_url = _launch(blocks, host, port, share, limits, uploads)
                yield Serving(url=url, share_url=share_url, uploads=uploads, page=page)
            finally:
                page.requests.stop_all()
                blocks.close(verbose=False)


def _launch(
    blocks: Blocks, host: str, port: int, share: bool, limits: QuestionLimits, uploads: Path
) -> tuple[str, str | None]:
    from starlette.middleware import Middleware

    from internvl_chat.web.guard import Guard
    from internvl_chat.web.layout import CSS, HEAD, theme

    _, url, share_url = blocks.launch(
        server_name=host,
        server_port=free_port(host, port),
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        inbrowser=False,
        show_error=False,  # a programming error's text may name files
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        # An empty list would make Gradio read GRADIO_ALLOWED_PATHS; the uploads' own folder would
        # make it show an uploaded HTML file as a page of this server. So: what does not exist.
        allowed_paths=[str(uploads / "nothing")],
        max_file_size=limits.max_upload_mb * 1024 * 1024,
        app_kwargs={"middleware": [Middleware(Guard)]},
        css=CSS,
        head=HEAD,
        theme=theme(),
    )
    if share and not share_url:
        raise ConfigError(
            "the public link was not opened",
            where="--share",
            fix="Check the network, or forward the port with ssh -L.",
        )
    return url, share_url


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
