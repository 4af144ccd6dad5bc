"""The page's components, how they are connected, and how they look."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gradio as gr

from internvl_chat.web.answering import DEFAULT_GENERATION, MAX_NEW_TOKENS
from internvl_chat.web.conversation import Conversation
from internvl_chat.web.limits import MAX_FRAMES
from internvl_chat.web.page import Page

DAY_SECONDS: Final = 24 * 3600
CSS: Final = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
HEAD: Final = f"<script>{Path(__file__).with_name('page.js').read_text(encoding='utf-8')}</script>"
_HINT: Final = (
    "Ask about an image, a video, several of them, or nothing but text. "
    "Add files with the paper clip, or drop or paste them."
)


def theme() -> gr.Theme:
    """Gradio's own, in a font whose files of both weights are whole in Gradio 6.31's package."""
    font = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))
    return gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="stone",
        font=(font, "ui-sans-serif", "system-ui", "sans-serif"),
    ).set(
        # Gradio's own are too pale to be read by everybody.
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
    )


@dataclass(frozen=True, kw_only=True)
class Controls:
    """Components that events come from or go to."""

    conversation: gr.State
    chats: list[gr.Chatbot]
    examples: list[gr.Button]
    box: gr.MultimodalTextbox
    stop: gr.Button
    again: gr.Button
    clear: gr.Button
    num_frames: gr.Slider
    generation: tuple[gr.Slider, gr.Slider, gr.Slider, gr.Number]
    """Temperature, top p, longest answer, and the image that boxes are drawn on."""


def build_page(page: Page) -> gr.Blocks:
    """Lay the components out and connect them.

    Events named ``ask``, ``answer``, ``regenerate``, ``stop`` and ``clear`` are the API: ``ask``
    (or ``regenerate``) first, then ``answer``.
    """
    checkpoints = page.answering.checkpoints
    count = len(checkpoints)
    with gr.Blocks(
        title="internvl-chat demo",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(3600, DAY_SECONDS),
    ) as blocks:
        conversation = gr.State(Conversation())
        gr.HTML(_title(page), elem_id="title", padding=False)
        with gr.Row(equal_height=True, elem_id="chats", elem_classes=f"of-{count}"):
            chats = [_chat(one.name, place, count) for place, one in enumerate(checkpoints)]
        examples = _examples(page)
        box = gr.MultimodalTextbox(
            label="Question",
            elem_id="question",
            file_count="multiple",
            file_types=["image", "video"],
            sources=["upload"],
            placeholder="Ask something; add images or a video with the paper clip",
            show_label=False,
            autofocus=True,
            max_plain_text_length=page.limits.max_question_chars,
        )
        with gr.Row(elem_id="actions"):
            stop = gr.Button("Stop", size="md", min_width=80, elem_id="stop", visible=False)
            again = gr.Button("Regenerate", size="md", min_width=80, elem_id="regenerate")
            clear = gr.Button("Clear", size="md", min_width=80, elem_id="clear")
        temperature, top_p, max_new_tokens, num_frames, box_image = _settings()
        controls = Controls(
            conversation=conversation,
            chats=chats,
            examples=examples,
            box=box,
            stop=stop,
            again=again,
            clear=clear,
            num_frames=num_frames,
            generation=(temperature, top_p, max_new_tokens, box_image),
        )
        _connect(page, controls)
        blocks.unload(page.forget)
    return blocks


_PRIVATE: Final[dict[str, Any]] = {"api_visibility": "private"}


def _connect(page: Page, on: Controls) -> None:
    """Say what each control does."""
    shown = [on.conversation, *on.chats]
    # One queue for all questions, in the order in which they came; one is answered at a time.
    model: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
    model["show_progress"] = "minimal"  # the place in the queue
    # Not queued: these must come through while the queue is busy.
    at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    look: dict[str, Any] = {"outputs": on.stop, **_PRIVATE, **at_once}
    for number, asked in enumerate(_asking(page, on, shown)):
        asked.success(page.show_stop, **look)
        api = _PRIVATE if number else {"api_name": "answer"}
        settings = [*on.generation, on.conversation]
        answered = asked.success(page.answer, settings, shown, **api, **model)
        answered.then(page.show_stop, **look)  # one that failed is over as well
    on.stop.click(page.stop, api_name="stop", **at_once)
    on.clear.click(page.clear, outputs=shown, api_name="clear", **at_once)
    for chat in on.chats:  # the same by the button of the chat itself
        chat.clear(page.clear, outputs=shown, **_PRIVATE, **at_once)


def _asking(page: Page, on: Controls, shown: list[Any]) -> list[Any]:
    """The events by which a question begins to wait for its answer."""
    # Checking decodes images: two at a time, while a model may be busy.
    checks: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "check"}
    # What is wrong is told in a corner; Gradio's own sign would cover the conversation.
    checks |= {"show_progress": "hidden", "show_progress_on": on.box}
    typed = [on.box, on.num_frames, on.conversation]
    clicked = [on.num_frames, on.conversation]
    return [
        on.box.submit(page.ask, typed, [on.box, *shown], api_name="ask", **checks),
        on.again.click(page.regenerate, on.conversation, shown, api_name="regenerate", **checks),
        *(
            button.click(page.example_asker(number), clicked, shown, **_PRIVATE, **checks)
            for number, button in enumerate(on.examples)
        ),
    ]


def _title(page: Page) -> str:
    checkpoints = page.answering.checkpoints
    lines = "".join(
        f"<li><b>{html.escape(one.name)}</b> · {html.escape(' · '.join(one.facts))}</li>"
        for one in checkpoints
    )
    every = "" if len(checkpoints) == 1 else "<p>Every question goes to both.</p>"
    return f"<h1>internvl-chat demo</h1><ul>{lines}</ul>{every}"


def _chat(name: str, place: int, count: int) -> gr.Chatbot:
    told = _HINT if count == 1 else f"The answers of **{html.escape(name)}** come here."
    return gr.Chatbot(
        label=name,
        show_label=count > 1,  # the page's title names the only one
        elem_id=f"chat-{place}",
        elem_classes="chat",
        height=None,  # page.css: as high as its answers, up to the window's
        buttons=["copy", "copy_all"],
        allow_tags=False,
        feedback_options=None,
        placeholder=told,
        min_width=280,
    )


def _examples(page: Page) -> list[gr.Button]:
    """A button for each; page.css hides them once something was asked."""
    if not page.examples:
        return []
    with gr.Column(elem_id="examples"):
        gr.HTML("<h2>Try one of these</h2>", padding=False)
        with gr.Row(elem_id="example-list"):
            return [
                gr.Button(
                    one.shown,
                    icon=_icon(one.files),
                    elem_classes="example" if _icon(one.files) else "example text-only",
                    size="md",
                    min_width=80,
                )
                for one in page.examples
            ]


def _icon(files: tuple[Path, ...]) -> str | None:
    shown = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}
    return next((str(file) for file in files if file.suffix.lower() in shown), None)


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
