"""Who waits for or gets an answer, so that another request can end it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from internvl_chat.web.conversation import QuestionError


@dataclass
class Ticket:
    """One question's way through the queue."""

    stop: threading.Event = field(default_factory=threading.Event)
    running: bool = False
    discarded: bool = False
    """The conversation was cleared: nobody wants to see the answer."""


class Tickets:
    """The open ticket of each session; safe to use from several threads.

    Kept here and not in the session's state, which a running answer replaces.
    """

    def __init__(self) -> None:
        self._open: dict[str, Ticket] = {}
        self._lock = threading.Lock()

    def take(self, session: str) -> None:
        """Before a question joins the queue.

        Raises:
            QuestionError: the session's last question is being answered now.
        """
        with self._lock:
            held = self._open.get(session)
            if held is not None and held.running and not held.discarded:
                raise QuestionError("An answer is still being written. Wait for it, or stop it.")
            self._open[session] = Ticket()

    def start(self, session: str) -> Ticket:
        """When the queue has come to the question; an unknown session gets a ticket of its own."""
        with self._lock:
            ticket = self._open.setdefault(session, Ticket())
            ticket.running = True
            return ticket

    def close(self, session: str, ticket: Ticket) -> bool:
        """When the answer is there, or nobody waits for it any more.

        Returns:
            Whether the session has asked nothing else in the meantime.
        """
        ticket.stop.set()
        with self._lock:
            if self._open.get(session) is not ticket:
                return False
            del self._open[session]
            return True

    def stop(self, session: str, *, discard: bool = False) -> None:
        """End the session's answer at the next token, also one that still waits."""
        with self._lock:
            ticket = self._open.get(session)
            if ticket is not None:
                ticket.discarded |= discard
                ticket.stop.set()

    def forget(self, session: str) -> None:
        """The session has ended: its page was closed."""
        with self._lock:
            ticket = self._open.get(session)
            if ticket is not None:
                ticket.stop.set()
                if not ticket.running:
                    del self._open[session]

    def stop_all(self) -> None:
        """End every answer: the server goes down."""
        with self._lock:
            for ticket in self._open.values():
                ticket.stop.set()

    def __contains__(self, session: str) -> bool:
        return session in self._open
