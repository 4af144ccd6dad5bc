"""The page: components, and what happens when they are used. The work is done elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import gradio as gr

from internvl_chat.web.answering import (
    DEFAULT_GENERATION,
    MAX_NEW_TOKENS,
    Answering,
    GenerationSettings,
)
from internvl_chat.web.conversation import Conversation, QuestionError
from internvl_chat.web.limits import (
    MAX_FRAMES,
    QuestionLimits,
    check_question,
    look_at_uploads,
    whole,
)
from internvl_chat.web.messages import as_messages
from internvl_chat.web.session_requests import SessionRequests

ERROR_SECONDS: Final = 20
DAY_SECONDS: Final = 24 * 3600
CSS: Final = """
.gradio-container > main { width: 100%; max-width: 1280px !important; margin: 0 auto; }
.bot .image-container img { max-height: 400px; width: 400px; object-fit: contain; }
#title h1 { margin: 0; font-size: 1.25rem; }
#title p { margin: 0; opacity: 0.8; }
/* It would publish the image elsewhere; the page's policy forbids that anyhow. */
.gradio-container button[aria-label="Share"] { display: none; }
"""


def theme() -> gr.Theme:
    """Gradio's own, in a font whose files of both weights are whole in Gradio 6.31's package."""
    font = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))
    return gr.themes.Default(font=(font, "ui-sans-serif", "system-ui", "sans-serif"))


class Page:
    """Handlers of the page's events.

    Args:
        answering: the checkpoints.
        limits: of a question.
        uploads: Gradio's folder of this server's files; drawings go there too.
    """

    def __init__(self, answering: Answering, limits: QuestionLimits, uploads: Path) -> None:
        self.answering = answering
        self.limits = limits
        self.uploads = uploads
        self.requests = SessionRequests()

    def ask(
        self,
        message: dict[str, Any] | None,
        num_frames: float,
        conversation: Conversation,
        request: gr.Request,
    ) -> tuple[Any, ...]:
        """Check a question and show it; the next step answers it."""
        typed, files = (message or {}).get("text") or "", (message or {}).get("files") or []
        try:
            check_question(typed, self.limits)
            media = look_at_uploads(
                files, root=self.uploads, num_frames=whole(num_frames, "frames"), limits=self.limits
            )
            asked = conversation.ask(typed, media)
            self.requests.add(_session(request))
        except QuestionError as err:
            raise _told(err) from err
        return ({"text": "", "files": []}, *self._shown(asked))

    def regenerate(self, conversation: Conversation, request: gr.Request) -> tuple[Any, ...]:
        """Take the last answer back; the next step answers its question again."""
        try:
            asked = conversation.again()
            self.requests.add(_session(request))
        except QuestionError as err:
            raise _told(err) from err
        return self._shown(asked)

    def answer(
        self,
        temperature: float,
        top_p: float,
        max_new_tokens: float,
        box_picture: float,  # a name of the page's API, where clients may write it
        conversation: Conversation,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Answer the waiting question, if there is one, piece by piece."""
        session = _session(request)
        handle = self.requests.start(session)
        current = True
        try:
            if conversation.pending is None:
                yield self._shown(conversation)
                return
            generation = GenerationSettings(
                temperature=temperature,
                top_p=top_p,
                max_new_tokens=whole(max_new_tokens, "max_new_tokens"),
            )
            steps = self.answering.stream(
                conversation,
                generation,
                handle.stop_event.is_set,
                drawings=self.uploads / "drawings",
                box_image=whole(box_picture or 0, "the number of the image"),
            )
            # Closed at once when the client has gone: the generation ends with it.
            with closing(steps):
                for step in steps:
                    if handle.discarded:
                        break
                    yield self._shown(step)
        except QuestionError as err:
            raise _told(err) from err
        finally:
            current = self.requests.close(session, handle)
        if handle.discarded and current:
            # A step may have been on its way while the conversation was cleared.
            yield self._shown(Conversation())

    def stop(self, request: gr.Request) -> None:
        """End the answer that is being written or waited for; what is there of it stays."""
        self.requests.stop(_session(request))

    def clear(self, request: gr.Request) -> tuple[Any, ...]:
        """Forget the conversation, an answer in progress included."""
        self.requests.stop(_session(request), discard=True)
        return self._shown(Conversation())

    def forget(self, request: gr.Request) -> None:
        """The page was closed."""
        self.requests.forget(_session(request))

    def _shown(self, conversation: Conversation) -> tuple[Any, ...]:
        """The state and what every chat shows of it."""
        places = range(len(self.answering.checkpoints))
        return (conversation, *(as_messages(conversation, place) for place in places))


def _session(request: gr.Request) -> str:
    return request.session_hash or ""


def _told(err: QuestionError) -> gr.Error:
    # The message is shown as HTML.
    text = html.escape(str(err), quote=False)
    return gr.Error(text, duration=ERROR_SECONDS, print_exception=False)


def build_page(page: Page) -> gr.Blocks:
    """Lay the components out and connect them.

    Events named ``ask``, ``answer``, ``regenerate``, ``stop`` and ``clear`` are the API: ``ask``
    (or ``regenerate``) first, then ``answer``.
    """
    names = page.answering.names
    with gr.Blocks(
        title="internvl-chat demo",
        analytics_enabled=False,
        fill_height=True,
        fill_width=True,
        delete_cache=(3600, DAY_SECONDS),
    ) as blocks:
        conversation = gr.State(Conversation())
        gr.Markdown(f"# internvl-chat demo\n{_introduction(names)}", elem_id="title")
        with gr.Row(equal_height=True):
            chats = [_chat(name, place, len(names)) for place, name in enumerate(names)]
        box = gr.MultimodalTextbox(
            elem_id="question",
            file_count="multiple",
            file_types=["image", "video"],
            sources=["upload"],
            placeholder="Ask something; add images or a video with the paper clip",
            show_label=False,
            autofocus=True,
            max_plain_text_length=page.limits.max_question_chars,
        )
        with gr.Row():
            stop = gr.Button("Stop", variant="stop", size="md", min_width=80, elem_id="stop")
            again = gr.Button("Regenerate", size="md", min_width=80, elem_id="regenerate")
            clear = gr.Button("Clear", size="md", min_width=80, elem_id="clear")
        temperature, top_p, max_new_tokens, num_frames, box_image = _settings()
        shown = [conversation, *chats]
        settings = [temperature, top_p, max_new_tokens, box_image, conversation]
        # Checking decodes images: two at a time, while a model may be busy.
        checks: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "check"}
        # What is wrong is told in a corner; Gradio's own sign would cover the conversation.
        checks |= {"show_progress": "hidden", "show_progress_on": box}
        asked = box.submit(
            page.ask, [box, num_frames, conversation], [box, *shown], api_name="ask", **checks
        )
        retried = again.click(page.regenerate, conversation, shown, api_name="regenerate", **checks)
        # One queue for all questions, in the order in which they came; one is answered at a time.
        model: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        model["show_progress"] = "minimal"  # the place in the queue
        asked.success(page.answer, settings, shown, api_name="answer", **model)
        retried.success(page.answer, settings, shown, api_visibility="private", **model)
        # Not queued: these must come through while the queue is busy.
        stop.click(page.stop, api_name="stop", queue=False)
        clear.click(page.clear, outputs=shown, api_name="clear", queue=False)
        for chat in chats:  # the same by the button of the chat itself
            chat.clear(page.clear, outputs=shown, api_visibility="private", queue=False)
        blocks.unload(page.forget)
    return blocks


def _introduction(names: list[str]) -> str:
    if len(names) == 1:
        return f"You are talking to **{html.escape(names[0])}**."
    told = " and ".join(f"**{html.escape(name)}**" for name in names)
    return f"Every question goes to {told}."


def _chat(name: str, place: int, count: int) -> gr.Chatbot:
    return gr.Chatbot(
        label=name,
        show_label=count > 1,  # the page's title names the only one
        elem_id=f"chat-{place}",
        height="62vh",
        min_height=320,
        buttons=["copy", "copy_all"],
        allow_tags=False,
        feedback_options=None,
        placeholder="No question yet" if count == 1 else f"Answers of {name}",
        min_width=280,
    )


def _settings() -> tuple[gr.Slider, gr.Slider, gr.Slider, gr.Slider, gr.Number]:
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        with gr.Row():
            temperature = gr.Slider(
                0,
                2,
                value=DEFAULT_GENERATION.temperature,
                step=0.05,
                label="Temperature",
                info="0: always the likeliest token",
            )
            top_p = gr.Slider(0.05, 1, value=DEFAULT_GENERATION.top_p, step=0.05, label="Top p")
            max_new_tokens = gr.Slider(
                1,
                MAX_NEW_TOKENS,
                value=DEFAULT_GENERATION.max_new_tokens,
                step=1,
                label="Longest answer",
                info="in tokens",
            )
        with gr.Row():
            num_frames = gr.Slider(
                1, MAX_FRAMES, value=8, step=1, label="Frames", info="taken of a video"
            )
            box_image = gr.Number(
                0,
                label="Draw boxes on image",
                info="1 is the conversation's first, 0 its newest",
                precision=0,
                minimum=0,
            )
    return temperature, top_p, max_new_tokens, num_frames, box_image
