"""Tickets: stop reaches what waits and what runs, and nobody else's."""

from __future__ import annotations

import pytest

from internvl_chat.web.conversation import QuestionError
from internvl_chat.web.session_requests import Tickets


def test_stop_reaches_the_sessions_own_answer_only() -> None:
    tickets = Tickets()
    tickets.take("ann")
    tickets.stop("ann")  # waits still
    ann, ben = tickets.start("ann"), tickets.start("ben")
    assert ann.stop.is_set()
    assert not ben.stop.is_set()
    tickets.stop("nobody")
    tickets.stop_all()
    assert ben.stop.is_set()


def test_one_answer_at_a_time_in_a_session() -> None:
    tickets = Tickets()
    tickets.take("ann")
    tickets.take("ann")  # asked anew before the queue came to it
    ticket = tickets.start("ann")
    with pytest.raises(QuestionError, match="still being written"):
        tickets.take("ann")
    assert tickets.close("ann", ticket)
    tickets.take("ann")


def test_after_clear_the_next_question_may_come_at_once() -> None:
    tickets = Tickets()
    tickets.take("ann")
    old = tickets.start("ann")
    tickets.stop("ann", discard=True)
    assert old.discarded
    assert old.stop.is_set()
    tickets.take("ann")
    assert not tickets.close("ann", old), "the new ticket stays"
    assert not tickets.start("ann").stop.is_set()


def test_nothing_is_left_of_a_closed_page() -> None:
    tickets = Tickets()
    tickets.take("ann")
    assert "ann" in tickets
    tickets.forget("ann")
    assert "ann" not in tickets
    running = tickets.start("ben")
    tickets.forget("ben")
    assert running.stop.is_set()
    tickets.close("ben", running)
    assert "ben" not in tickets
