"""What happens when the page's components are used. The work is done elsewhere."""

from __future__ import annotations

import html
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import gradio as gr

from internvl_chat.web.answering import Answering, GenerationSettings
from internvl_chat.web.conversation import Conversation, QuestionError
from internvl_chat.web.examples import ExampleQuestion
from internvl_chat.web.limits import QuestionLimits, check_question, look_at_uploads, whole
from internvl_chat.web.messages import as_messages
from internvl_chat.web.session_requests import SessionRequests

ERROR_SECONDS: Final = 20


class Page:
    """Handlers of the page's events.

    Args:
        answering: the checkpoints.
        limits: of a question.
        uploads: Gradio's folder of this server's files; drawings go there too.
        examples: questions to click.
    """

    def __init__(
        self,
        answering: Answering,
        limits: QuestionLimits,
        uploads: Path,
        examples: Sequence[ExampleQuestion] = (),
    ) -> None:
        self.answering = answering
        self.limits = limits
        self.uploads = uploads
        self.examples = tuple(examples)
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
        shown = self._asked(typed, files, num_frames, conversation, request)
        return ({"text": "", "files": []}, *shown)

    def example_asker(self, number: int) -> Callable[..., tuple[Any, ...]]:
        """The same for a question of the page's own; its files become uploads like others."""
        example = self.examples[number]
        folder = self.uploads / "examples" / str(number)

        # A function of its own, not a partial one: of those Gradio does not see the types.
        def ask_example(
            num_frames: float, conversation: Conversation, request: gr.Request
        ) -> tuple[Any, ...]:
            folder.mkdir(parents=True, exist_ok=True)
            # Each time: what lies in the folder of uploads is deleted when it is a day old.
            files = [str(shutil.copy(file, folder)) for file in example.files]
            return self._asked(example.question, files, num_frames, conversation, request)

        return ask_example

    def _asked(
        self,
        typed: str,
        files: list[str],
        num_frames: float,
        conversation: Conversation,
        request: gr.Request,
    ) -> tuple[Any, ...]:
        try:
            check_question(typed, self.limits)
            media = look_at_uploads(
                files, root=self.uploads, num_frames=whole(num_frames, "frames"), limits=self.limits
            )
            asked = conversation.ask(typed, media)
            self.requests.add(_session(request))
        except QuestionError as err:
            raise _told(err) from err
        return self._shown(asked)

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

    def show_stop(self, request: gr.Request) -> dict[str, Any]:
        """Whether there is something to stop; what the session's requests say, whoever asks."""
        return gr.update(visible=_session(request) in self.requests)

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
