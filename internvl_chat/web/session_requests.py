"""Who waits for or gets an answer, so that another request can end it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from internvl_chat.web.conversation import QuestionError


@dataclass
class SessionRequest:
    """One question of a session, from the queue to its answer."""

    stop_event: threading.Event = field(default_factory=threading.Event)
    running: bool = False
    discarded: bool = False
    """The conversation was cleared: nobody wants to see the answer."""


class SessionRequests:
    """The open request of each session; safe to use from several threads.

    Kept here and not in the session's state, which a running answer replaces.
    """

    def __init__(self) -> None:
        self._open: dict[str, SessionRequest] = {}
        self._lock = threading.Lock()

    def add(self, session: str) -> None:
        """Before a question joins the queue.

        Raises:
            QuestionError: the session's last question is being answered now.
        """
        with self._lock:
            held = self._open.get(session)
            if held is not None and held.running and not held.discarded:
                raise QuestionError("An answer is still being written. Wait for it, or stop it.")
            self._open[session] = SessionRequest()

    def start(self, session: str) -> SessionRequest:
        """When the queue has come to the question; an unknown session gets one of its own."""
        with self._lock:
            request = self._open.setdefault(session, SessionRequest())
            request.running = True
            return request

    def close(self, session: str, request: SessionRequest) -> bool:
        """When the answer is there, or nobody waits for it any more.

        Returns:
            Whether the session has asked nothing else in the meantime.
        """
        request.stop_event.set()
        with self._lock:
            if self._open.get(session) is not request:
                return False
            del self._open[session]
            return True

    def stop(self, session: str, *, discard: bool = False) -> None:
        """End the session's answer at the next token, also one that still waits."""
        with self._lock:
            request = self._open.get(session)
            if request is not None:
                request.discarded |= discard
                request.stop_event.set()

    def forget(self, session: str) -> None:
        """The session has ended: its page was closed."""
        with self._lock:
            request = self._open.get(session)
            if request is not None:
                request.stop_event.set()
                if not request.running:
                    del self._open[session]

    def stop_all(self) -> None:
        """End every answer: the server goes down."""
        with self._lock:
            for request in self._open.values():
                request.stop_event.set()

    def __contains__(self, session: str) -> bool:
        return session in self._open
