"""The judge against ``internvl-chat serve``: our own server is an endpoint like any other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from internvl_chat.evaluation.judge import JudgeLimits, JudgeRequest, ask_all, open_judge
from tests.integration.test_serve import KEY, MODEL, Serving
from tests.support.serving import TINY, chat, tiny

PROMPTS = "yes_no: '{question} ({prediction})'\n"
QUICK = JudgeLimits(pause_seconds=0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The shipped model; one question at a time and one that waits, the others are refused."""
    log = tmp_path_factory.mktemp("serve") / "log"
    serving = Serving(TINY, log, "--max-batch-size", "1", "--max-queue", "1", key=KEY)
    yield serving
    serving.close()


def request(number: int) -> JudgeRequest:
    fields = {"question": "What can you do?", "prediction": str(number)}
    return JudgeRequest(key="yes_no", fields=fields, temperature=0, max_tokens=8)


def test_a_crowd_is_served_in_the_end(
    server: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    prompts, replies = tmp_path / "prompts.yaml", tmp_path / "judge.jsonl"
    prompts.write_text(PROMPTS)
    environ = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": KEY}
    requests = [request(number) for number in range(12)]
    judge = open_judge(MODEL, prompts=prompts, replies=replies, limits=QUICK, environ=environ)
    assert judge is not None
    found = ask_all(judge, requests)
    summary = judge.summary()
    judge.close()
    asked = [f"What can you do? ({number})" for number in range(12)]
    assert found == [chat(tiny(), ((text, None),), [], max_new_tokens=8) for text in asked]
    assert summary["num_replies"] == 12
    assert summary["without_reply"] == {}
    assert set(summary["retries"]) <= {"http 429"}
    assert summary["prompt_tokens"] > 12 * 10
    assert 0 < summary["completion_tokens"] <= 12 * 8
    assert KEY not in caplog.text + replies.read_text()

    again = open_judge(MODEL, prompts=prompts, replies=replies, environ={"OPENAI_API_KEY": "no"})
    assert again is not None
    assert ask_all(again, requests) == found  # kept, nothing is asked
    again.close()


@pytest.mark.parametrize(
    ("name", "key", "reason"),
    [
        (MODEL, "sk-other", "http 401, key refused"),
        ("gpt-4o", KEY, "http 404, no such model or address"),
    ],
)
def test_a_wrong_key_or_model_is_asked_once(
    server: Serving, name: str, key: str, reason: str
) -> None:
    judge = open_judge(name, base_url=f"{server.url}/v1", api_key=key, environ={})
    assert judge is not None
    assert ask_all(judge, [request(0)]) == [None]
    assert judge.summary()["without_reply"] == {reason: 1}
    judge.close()
