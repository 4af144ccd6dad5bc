"""The HTTP routes. What waits for the model waits in the engine; nothing here blocks the loop."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from internvl_chat.data.data_urls import is_data_url
from internvl_chat.serve.batch import EncodedPrompt
from internvl_chat.serve.bodies import BodyReader
from internvl_chat.serve.engine import (
    Engine,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Piece,
    QueueFullError,
    RequestHandle,
    StoppingError,
)
from internvl_chat.serve.images import decode_data_url, fetch_remote, tiles_of_file
from internvl_chat.serve.metrics import (
    CONTENT_TYPE,
    PREFIX,
    AnswerFigures,
    HttpFigures,
    engine_lines,
    process_lines,
    sample,
)
from internvl_chat.serve.observation import Observed, RequestTrace, process_figures
from internvl_chat.serve.openapi import openapi_schema
from internvl_chat.serve.prompt import Prompter
from internvl_chat.serve.protocol import ChatCompletionRequest, read_request, require_model
from internvl_chat.serve.reference_page import PAGE_HEADERS, reference_page
from internvl_chat.serve.refusals import RequestError
from internvl_chat.serve.remote import RemoteImages
from internvl_chat.serve.replies import (
    ReplyWriter,
    Usage,
    count_usage,
    event,
    model_info,
    model_list,
)
from internvl_chat.serve.sampling import SamplingParams
from internvl_chat.serve.settings import RequestLimits
from internvl_chat.serve.turns import ChatTurns, SentImage, read_turns


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the routes work with."""

    engine: Engine
    prompter: Prompter
    model_name: str
    executor: Executor
    """Parses, decodes and tokenizes; its number of threads bounds the memory of images."""
    limits: RequestLimits
    remote: RemoteImages | None = None
    api_key: str | None = None
    model_info: Mapping[str, str] = field(default_factory=dict)
    """Labels of the figure ``model_info``."""


def create_app(service: Service) -> ASGIApp:
    """The application: :data:`internvl_chat.serve.observation.PATHS`, watched and counted."""
    # Its own pages load a script from another host.
    app = FastAPI(title="internvl-chat", docs_url=None, redoc_url=None, openapi_url=None)
    routes = _Routes(service)
    app.add_api_route("/health", routes.health, methods=["GET", "HEAD"])
    app.add_api_route("/metrics", routes.metrics, methods=["GET", "HEAD"])
    app.add_api_route("/openapi.json", routes.schema, methods=["GET", "HEAD"])
    app.add_api_route("/docs", routes.reference, methods=["GET", "HEAD"])
    app.add_api_route("/v1/models", routes.models, methods=["GET", "HEAD"])
    one_model = "/v1/models/{name:path}"  # a name may hold slashes
    app.add_api_route(one_model, routes.model, methods=["GET", "HEAD"])
    app.add_api_route(one_model, routes.delete_model, methods=["DELETE"])
    app.add_api_route("/v1/chat/completions", routes.chat_completions, methods=["POST"])
    app.add_exception_handler(RequestError, _tell_request_error)
    app.add_exception_handler(HTTPException, _tell_http_error)
    app.add_exception_handler(500, _tell_bug)
    return Observed(app, routes.http, routes.answers)


def _tell_request_error(request: Request, err: Exception) -> Response:
    assert isinstance(err, RequestError)
    RequestTrace.of(request.scope).error_code = err.code or str(err.status)
    headers = {"Retry-After": "1"} if err.status in (429, 503) else {}
    if err.status == 408:
        headers["Connection"] = "close"  # nothing more is expected to come
    return JSONResponse(err.body(), err.status, headers)


def _tell_http_error(request: Request, err: Exception) -> Response:
    """A wrong path or method."""
    assert isinstance(err, HTTPException)
    asked = f"{request.method} {request.url.path}"
    if err.status_code == 404:
        text = f"Invalid URL ({asked}): /docs lists what there is"
    elif err.status_code == 405:
        text = f"Not allowed to {asked.replace(' ', ' on ')}: want another method"
    else:
        text = f"{asked}: {err.detail}"
    problem = RequestError(text, status=err.status_code)
    RequestTrace.of(request.scope).error_code = problem.code or str(problem.status)
    return JSONResponse(problem.body(), err.status_code, err.headers)


def _tell_bug(request: Request, err: Exception) -> Response:
    """Our own mistake; uvicorn logs the traceback."""
    RequestTrace.of(request.scope).error_code = "internal_error"
    return JSONResponse(RequestError("internal error", status=500).body(), 500)


class _EventQueue:
    """Events of one answer, handed from the engine's thread to this event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def tell(self, event: Event) -> None:
        """Called on the engine's thread."""
        if not self._loop.is_closed():  # closed: at shutdown, when nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Event:
        return await self._events.get()


@dataclass(frozen=True)
class _RunningRequest:
    """A chat completion whose answer is under way."""

    is_stream: bool
    answer: _EventQueue
    handle: RequestHandle
    replies: ReplyWriter
    trace: RequestTrace

    def usage(self, finished: Finished) -> Usage:
        """The usage of a whole answer."""
        self.trace.finish_reason = finished.reason
        return count_usage(self.trace.num_prompt_tokens, finished.num_tokens)

    def failure(self, failed: Failed) -> RequestError:
        """The error in place of what is missing of an answer."""
        err = RequestError(failed.problem, status=503 if failed.is_shutdown else 500)
        self.trace.finish_reason, self.trace.error_code = "error", str(err.status)
        return err


class _EventStream(StreamingResponse):
    """A stream that frees its row however it ends; ``listen_for_disconnect`` ends it too."""

    def __init__(self, asked: _RunningRequest) -> None:
        super().__init__(_stream(asked), media_type="text/event-stream")
        self.headers["Cache-Control"] = "no-cache"
        self._handle = asked.handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._handle.cancel()


class _Routes:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._created = int(time.time())
        self._bodies = BodyReader(service.limits)
        self._num_preparing = 0
        self._num_fetching = 0
        self.http = HttpFigures()
        self.answers = AnswerFigures(service.model_name)
        self._schema = openapi_schema(service.model_name, has_key=service.api_key is not None)
        self._reference = reference_page(self._schema)

    async def health(self) -> Response:
        """200 with the engine's counts; 503 if it has stopped."""
        engine = self._service.engine
        stats = engine.stats()
        told = {"status": "ok" if engine.is_alive else "stopped", **asdict(stats)}
        told["waiting"] += self._num_preparing
        told["receiving"] = len(self._bodies)
        return JSONResponse(told, 200 if engine.is_alive else 503)

    async def metrics(self) -> Response:
        """What Prometheus asks for."""
        stats = self._service.engine.stats()
        lines = [
            *self._engine_lines(stats.running, stats.waiting + self._num_preparing),
            *self.answers.lines(),
            *self.http.lines(),
            *process_lines(**process_figures()),
        ]
        return Response("\n".join(lines) + "\n", media_type=CONTENT_TYPE)

    def _engine_lines(self, running: int, waiting: int) -> Iterator[str]:
        name, tokens = self._service.model_name, self._service.engine.token_counts()
        labels = {"model_name": name, **self._service.model_info}
        yield from sample(f"{PREFIX}model_info", "gauge", "The model that is served.", 1, **labels)
        yield from engine_lines(
            name,
            gauges={
                "num_requests_running": ("Answers that are being generated.", running),
                "num_requests_waiting": ("Requests that wait for the model.", waiting),
                "num_requests_receiving": ("Bodies that have not come whole.", len(self._bodies)),
            },
            tokens={
                "prompt_tokens_total": ("Tokens read, of images too.", tokens["prompt"]),
                "generation_tokens_total": ("Tokens generated.", tokens["generation"]),
            },
        )

    async def schema(self) -> Response:
        """The interface for programs."""
        return JSONResponse(self._schema)

    async def reference(self) -> Response:
        """The interface for people, in one page that loads nothing else."""
        return HTMLResponse(self._reference, headers=PAGE_HEADERS)

    async def models(self, request: Request) -> Response:
        """The one model."""
        self._check_key(request)
        return JSONResponse(model_list(self._service.model_name, self._created))

    async def model(self, name: str, request: Request) -> Response:
        """The one model, by its name."""
        self._check_key(request)
        require_model(name, self._service.model_name)
        return JSONResponse(model_info(name, self._created))

    async def delete_model(self, name: str, request: Request) -> Response:
        """Refused."""
        self._check_key(request)
        require_model(name, self._service.model_name)
        raise RequestError(f"model {name!r} cannot be deleted", status=403, param="model")

    async def chat_completions(self, request: Request) -> Response:
        """Answer, at once or as a stream."""
        self._check_key(request)
        self._check_place()
        asked = await self._ask(request)
        if asked.is_stream:
            return _EventStream(asked)
        try:
            return await _whole(asked, request)
        finally:
            asked.handle.cancel()

    def _check_key(self, request: Request) -> None:
        key = self._service.api_key
        if key is None:
            return
        given = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, f"Bearer {key}".encode()):
            raise RequestError("wrong or missing API key (Authorization: Bearer ...)", status=401)

    def _check_place(self) -> None:
        """Turn away early what would find no place, before its images are read."""
        if not self._service.engine.has_place(self._num_preparing):
            raise _queue_full()

    @contextmanager
    def _preparing(self) -> Iterator[None]:
        """While a request that has come whole is worked on, it takes a place in the queue."""
        self._check_place()
        self._num_preparing += 1
        try:
            yield
        finally:
            self._num_preparing -= 1

    async def _ask(self, request: Request) -> _RunningRequest:
        trace = RequestTrace.of(request.scope)
        body = await self._bodies.read(request)
        asked, prompt, trace.num_images = await self._prepare(body)
        trace.num_prompt_tokens = len(prompt.ids)
        answer = _EventQueue()
        try:
            handle = self._service.engine.submit(self._generation(asked, prompt), answer.tell)
        except QueueFullError as err:
            raise _queue_full() from err
        except StoppingError as err:
            raise RequestError("the server takes no more requests", status=503) from err
        replies = ReplyWriter(
            id=f"chatcmpl-{trace.hex_id}",
            model=self._service.model_name,
            created=int(time.time()),
            include_usage=asked.include_usage,
        )
        trace.handle = handle
        return _RunningRequest(asked.stream, answer, handle, replies, trace)

    async def _prepare(self, body: bytes) -> tuple[ChatCompletionRequest, EncodedPrompt, int]:
        loop, service = asyncio.get_running_loop(), self._service
        with self._preparing():
            asked, turns = await loop.run_in_executor(service.executor, self._read, body)
        files = await self._fetch(turns.images)
        with self._preparing():
            prompt = await loop.run_in_executor(service.executor, self._encode, turns, files)
        return asked, prompt, len(turns.images)

    async def _fetch(self, images: Sequence[SentImage]) -> list[SentImage | bytes]:
        """Ask other machines, which may be slow; who waits for them takes no place in the queue."""
        is_slow = not all(is_data_url(image.url) for image in images)
        if is_slow and not self._service.engine.has_place(self._num_fetching):
            raise _queue_full()
        self._num_fetching += 1
        try:
            return await fetch_remote(images, self._service.limits, self._service.remote)
        finally:
            self._num_fetching -= 1

    def _read(self, body: bytes) -> tuple[ChatCompletionRequest, ChatTurns]:
        asked = read_request(body, self._service.model_name)
        return asked, read_turns(asked.messages, self._service.prompter.text_check())

    def _encode(self, turns: ChatTurns, files: Sequence[SentImage | bytes]) -> EncodedPrompt:
        """Cut the images, one decoded at a time, and write the prompt."""
        limits, prompter = self._service.limits, self._service.prompter
        tiles = []
        for image, file in zip(turns.images, files, strict=True):
            raw = file if isinstance(file, bytes) else decode_data_url(file, limits)
            tiles.append(tiles_of_file(raw, image.where, limits, prompter.cut))
        return prompter.prompt(turns, tiles)

    def _generation(self, asked: ChatCompletionRequest, prompt: EncodedPrompt) -> GenerationRequest:
        room = self._service.prompter.context_length - len(prompt.ids)
        most = asked.most_tokens
        return GenerationRequest(
            prompt=prompt,
            max_tokens=room if most is None else min(most, room),
            sampling=SamplingParams(
                temperature=asked.temperature, top_p=asked.top_p, seed=asked.seed
            ),
            stop=tuple(asked.stop),
        )


def _queue_full() -> RequestError:
    return RequestError("too many requests wait (--max-queue); try again later", status=429)


async def _whole(asked: _RunningRequest, request: Request) -> Response:
    """Wait for the answer, or for the client to go away."""
    answer = asyncio.create_task(_collect(asked))
    gone = asyncio.create_task(_until_disconnected(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            return Response(status_code=499)  # nobody reads it
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


async def _until_disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _collect(asked: _RunningRequest) -> Response:
    text = ""
    while True:
        told = await asked.answer.next()
        if isinstance(told, Piece):
            text += told.text
        elif isinstance(told, Finished):
            body = asked.replies.completion(text, told.reason, asked.usage(told))
            return Response(body.model_dump_json(), media_type="application/json")
        else:
            raise asked.failure(told)


async def _stream(asked: _RunningRequest) -> AsyncIterator[bytes]:
    yield asked.replies.opening()
    while True:
        told = await asked.answer.next()
        if isinstance(told, Piece):
            yield asked.replies.piece(told.text)
        elif isinstance(told, Finished):
            yield asked.replies.closing(told.reason, asked.usage(told))
            return
        else:
            yield event(orjson.dumps(asked.failure(told).body()))  # the status was sent long ago
            return
