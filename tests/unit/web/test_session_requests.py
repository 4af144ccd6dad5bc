"""Requests of sessions: stop reaches what waits and what runs, and nobody else's."""

from __future__ import annotations

import pytest

from internvl_chat.web.conversation import QuestionError
from internvl_chat.web.session_requests import SessionRequests


def test_stop_reaches_the_sessions_own_answer_only() -> None:
    requests = SessionRequests()
    requests.add("ann")
    requests.stop("ann")  # waits still
    ann, ben = requests.start("ann"), requests.start("ben")
    assert ann.stop_event.is_set()
    assert not ben.stop_event.is_set()
    requests.stop("nobody")
    requests.stop_all()
    assert ben.stop_event.is_set()


def test_one_answer_at_a_time_in_a_session() -> None:
    requests = SessionRequests()
    requests.add("ann")
    requests.add("ann")  # asked anew before the queue came to it
    running = requests.start("ann")
    with pytest.raises(QuestionError, match="still being written"):
        requests.add("ann")
    assert requests.close("ann", running)
    requests.add("ann")


def test_after_clear_the_next_question_may_come_at_once() -> None:
    requests = SessionRequests()
    requests.add("ann")
    old = requests.start("ann")
    requests.stop("ann", discard=True)
    assert old.discarded
    assert old.stop_event.is_set()
    requests.add("ann")
    assert not requests.close("ann", old), "the new request stays"
    assert not requests.start("ann").stop_event.is_set()


def test_nothing_is_left_of_a_closed_page() -> None:
    requests = SessionRequests()
    requests.add("ann")
    assert "ann" in requests
    requests.forget("ann")
    assert "ann" not in requests
    running = requests.start("ben")
    requests.forget("ben")
    assert running.stop_event.is_set()
    requests.close("ben", running)
    assert "ben" not in requests
