"""The judge against a server on this machine that does what a script says."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.evaluation.judge import (
    JudgeLimits,
    JudgeRequest,
    OpenAIJudge,
    ask_all,
    ask_until,
    open_judge,
)
from internvl_chat.evaluation.judge_cache import JudgeCache
from internvl_chat.evaluation.judge_endpoint import (
    JudgeFailure,
    JudgePacer,
    JudgeReply,
    endpoint_url,
    parse_refusal,
    parse_reply,
    retry_after_seconds,
)
from internvl_chat.evaluation.judge_prompts import load_judge_prompts
from internvl_chat.evaluation.task import Question, ScoreInput
from internvl_chat.evaluation.tasks.tsv.choice import MMSTAR
from tests.support.evaluation.judge_server import Said, judge_server, refused, said

KEY = "sk-very-secret"
QUICK = JudgeLimits(reply_seconds=5, pause_seconds=0.01, longest_pause_seconds=0.04)
IMPATIENT = JudgeLimits(
    reply_seconds=0.2, most_tries=2, pause_seconds=0.01, longest_pause_seconds=0.02
)
Make = Callable[..., OpenAIJudge]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Builds judges that end with the test."""
    judges = []

    def build(
        url: str, *, limits: JudgeLimits = QUICK, name: str = "m", **more: Any
    ) -> OpenAIJudge:
        judge = OpenAIJudge(
            name,
            base_url=url,
            api_key=KEY,
            prompts=load_judge_prompts(),
            cache=JudgeCache(more.pop("replies", None)),
            limits=limits,
            **more,
        )
        judges.append(judge)
        return judge

    yield build
    for judge in judges:
        judge.close()


def request(prediction: str = "It is.", *, temperature: float = 0) -> JudgeRequest:
    fields = {"question": "Is it red?", "prediction": prediction}
    return JudgeRequest(key="yes_no", fields=fields, temperature=temperature, max_tokens=16)


def ask(judge: OpenAIJudge, prediction: str = "It is.") -> str | None:
    one = request(prediction)
    return judge.ask(one.key, one.fields, temperature=0, max_tokens=16)


def prediction_of(body: Mapping[str, Any]) -> str:
    return body["messages"][-1]["content"].rpartition("\nAnswer: ")[2].split("\n")[0]


def test_a_request_and_its_reply(make: Make) -> None:
    with judge_server(lambda number, body: said("Yes")) as server:
        judge = make(server.url, name="gpt-4-turbo")
        assert ask(judge) == "Yes"
    (body,) = server.bodies
    assert list(body) == ["model", "messages", "temperature", "max_tokens"]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("gpt-4-1106-preview", 0, 16)
    assert [one["role"] for one in body["messages"]] == ["user"]
    assert server.texts()[0].endswith(
        "Now your task\nQuestion: Is it red?\nAnswer: It is.\nYour reply:"
    )
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert judge.summary() == {
        "name": "gpt-4-turbo",
        "version": "gpt-4-1106-preview",
        "endpoint": "other",
        "prompts_sha256": load_judge_prompts().sha256(),
        "num_replies": 1,
        "num_without_reply": 0,
        "without_reply": {},
        "retries": {},
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "cost_usd": 0.00016,
        "this_session": {
            "num_replies": 1,
            "prompt_tokens": 10,
            "completion_tokens": 2,
            "cost_usd": 0.00016,
        },
    }


def test_many_at_once_come_back_in_order_and_equal_ones_are_asked_once(make: Make) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Said:
        return Said(body=said(prediction_of(body)).body, after_seconds=0.1)

    words = [f"word {number % 16}" for number in range(40)]
    with judge_server(script) as server:
        judge = make(server.url)
        assert ask_all(judge, [request(word) for word in words]) == words
    assert len(server.bodies) == 16
    assert 1 < server.most_running <= 8
    assert ask_all(judge, []) == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (refused(429), "http 429"),
        (refused(500), "http 500"),
        (refused(503), "http 503"),
        (Said(body=b"<html>busy</html>"), "garbage"),
        (Said(body=b"\xff\xfe{"), "garbage"),
        (Said(body=b'{"choices": []}'), "garbage"),
        (Said(body=b'{"choices": [{"message": {"content": 7}}]}'), "garbage"),
        (Said(body=b"[" * 100_000), "garbage"),
        (said(""), "empty"),
        (said(None), "empty"),
        (said(" \n"), "empty"),
        (Said(breaks=True), "connection broken"),
    ],
)
def test_what_passes_is_tried_again_and_what_stays_is_counted(
    make: Make, bad: Said, reason: str
) -> None:
    with judge_server(lambda number, body: bad if number < 2 else said("No")) as server:
        judge = make(server.url)
        assert ask(judge) == "No"
        assert judge.summary()["retries"] == {reason: 2}
        assert len(server.bodies) == 3
    with judge_server(lambda number, body: bad) as server:
        judge = make(server.url)
        assert ask(judge) is None
        summary = judge.summary()
        assert (summary["without_reply"], summary["retries"]) == ({reason: 1}, {reason: 4})
        assert len(server.bodies) == 5


@pytest.mark.parametrize(
    "hang", [Said(after_seconds=0.6), Said(body=b"x" * 99, between_seconds=0.1)]
)
def test_a_hang_ends(make: Make, hang: Said) -> None:
    with judge_server(lambda number, body: hang) as server:
        judge = make(server.url, limits=IMPATIENT)
        assert ask(judge) is None
        assert judge.summary()["without_reply"] == {"timeout": 1}


def test_nothing_there_is_left_alone_after_a_while(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    judge = make(url, limits=IMPATIENT)
    assert ask_all(judge, [request(str(number)) for number in range(50)]) == [None] * 50
    counts = judge.summary()["without_reply"]
    assert sum(counts.values()) == 50
    assert 5 <= counts["unreachable"] < 14
    assert counts["not asked after: unreachable"] == 50 - counts["unreachable"]
    assert [record.getMessage() for record in caplog.records] == [
        "the judge is asked nothing more: unreachable"
    ]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refused(401, f"Incorrect API key: {KEY}"), "http 401, key refused"),
        (refused(404), "http 404, no such model or address"),
        (refused(429, "insufficient_quota"), "http 429, quota used up"),
        (refused(429, Retry_After="3600"), "http 429, wants 3600 s"),
    ],
)
def test_what_no_patience_mends_is_asked_once(
    make: Make, answer: Said, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with judge_server(lambda number, body: answer) as server:
        judge = make(server.url)
        assert [ask(judge, "a"), ask(judge, "b")] == [None, None]
        assert len(server.bodies) == 1
    summary = judge.summary()
    assert summary["without_reply"] == {reason: 1, f"not asked after: {reason}": 1}
    assert KEY not in caplog.text + json.dumps(summary)


def test_a_request_that_is_refused_leaves_the_others_alone(make: Make) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Said:
        bad = int(prediction_of(body)) % 2
        return refused(400, "too long") if bad else said("Yes")

    with judge_server(script) as server:
        judge = make(server.url)
        replies = ask_all(judge, [request(str(number)) for number in range(20)])
        assert replies == ["Yes", None] * 10
        assert len(server.bodies) == 20
    assert judge.summary()["without_reply"] == {"http 400": 10}


def test_retry_after_is_kept_by_all(make: Make) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Said:
        return refused(429, Retry_After="0.5") if number == 0 else said("Yes")

    with judge_server(script) as server:
        judge = make(server.url, limits=JudgeLimits(most_at_once=1, pause_seconds=0.01))
        assert ask_all(judge, [request("a"), request("b")]) == ["Yes", "Yes"]
        assert server.times[1] - server.times[0] >= 0.5


def test_a_name_that_newer_models_want(make: Make) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Said:
        if "max_tokens" in body:
            return refused(400, "Use 'max_completion_tokens' instead.")
        return said(str(body["max_completion_tokens"]))

    with judge_server(script) as server:
        judge = make(server.url)
        assert [ask(judge, "a"), ask(judge, "b")] == ["16", "16"]
        assert len(server.bodies) == 3


def test_replies_are_kept_and_nothing_is_asked_twice(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "run/judge.jsonl"
    requests = [request(f"word {number}") for number in range(6)]
    with judge_server(lambda number, body: said(prediction_of(body))) as server:
        first = make(server.url, replies=path, name="gpt-4o-mini")
        assert ask_all(first, requests[:4]) == ["word 0", "word 1", "word 2", "word 3"]
        lines = path.read_text().splitlines(keepends=True)
        assert len(lines) == 4
        assert set(json.loads(lines[0])) == {
            *("sha256", "key", "model", "temperature", "max_tokens", "reply"),
            *("prompt_tokens", "completion_tokens"),
        }
        path.write_text("".join(lines)[:-9])  # killed while writing the fourth
        again = make(server.url, replies=path, name="gpt-4o-mini")
        assert ask_all(again, requests) == [f"word {number}" for number in range(6)]
        assert len(server.bodies) == 4 + 3
        other = make(server.url, replies=path, name="gpt-4o-mini")
        assert ask_all(other, requests) == [f"word {number}" for number in range(6)]
        assert ask_all(other, [request("word 0", temperature=0.5)]) == ["word 0"]
        assert len(server.bodies) == 4 + 3 + 1
    summary = other.summary()
    assert (summary["num_replies"], summary["this_session"]["num_replies"]) == (7, 1)
    assert (summary["prompt_tokens"], summary["completion_tokens"]) == (70, 14)
    assert summary["cost_usd"] == 0.000019
    assert KEY not in path.read_text()


def test_a_file_that_holds_something_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "judge.jsonl"
    path.write_bytes(b'\xff\xfe\n[]\n{"sha256": "a"}\n{"sha256": "b", "reply": 3}\n\n')
    cache = JudgeCache(path)
    assert len(cache) == 0
    assert caplog.messages == [f"{path}: 4 lines are no replies, they will be asked again"]
    reply = JudgeReply(text="\ud800 \n é", prompt_tokens=1, completion_tokens=2)
    cache.put("c", "yes_no", {"model": "m"}, reply)
    cache.close()
    assert JudgeCache(path).get("c") == reply
    with pytest.raises(ConfigError, match="the judge's replies cannot be kept"):
        JudgeCache(path / "below")


def test_an_answer_that_is_no_unicode_reaches_the_judge(make: Make) -> None:
    with judge_server(lambda number, body: said("Unknown")) as server:
        assert ask(make(server.url), "\ud800") == "Unknown"
        assert prediction_of(server.bodies[0]) == "\ud800"


def test_unreadable_replies_are_asked_for_again_hotter(make: Make) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Said:
        patience = {"easy": 0.0, "hard": 1.0, "never": 9.0}[prediction_of(body)]
        return said("0.5" if body["temperature"] >= patience else "well")

    def read(text: str) -> float | None:
        return None if text == "well" else float(text)

    with judge_server(script) as server:
        requests = [request(word) for word in ("hard", "easy", "never")]
        found = ask_until(make(server.url), requests, read, temperatures=(0, 0.5, 1, 1.5))
        assert found == [0.5, 0.5, None]
        hot = sorted((prediction_of(body), body["temperature"]) for body in server.bodies)
        assert hot == [
            ("easy", 0),
            *(("hard", one) for one in (0, 0.5, 1)),
            *(("never", one) for one in (0, 0.5, 1, 1.5)),
        ]


class Parrot:
    """The simplest judge there is."""

    name = "parrot"

    def ask(
        self, key: str, fields: Mapping[str, str], *, temperature: float, max_tokens: int
    ) -> str | None:
        return f"{key} {fields['prediction']} {temperature} {max_tokens}"


def test_any_object_with_ask_is_a_judge() -> None:
    assert ask_all(Parrot(), [request("a"), request("b", temperature=1)]) == [
        "yes_no a 0 16",
        "yes_no b 1 16",
    ]
    assert ask_until(Parrot(), [request("a")], lambda text: None, temperatures=(0, 1)) == [None]


def test_the_crowd_is_halved_and_grows_again() -> None:
    now = 0.0
    pacer = JudgePacer(8, pause_seconds=1, longest_pause_seconds=3, clock=lambda: now)
    busy = JudgeFailure(
        reason="http 429", verdict="retry", is_overload=True, retry_after_seconds=None
    )
    told = JudgeFailure(reason="", verdict="retry", is_overload=True, retry_after_seconds=7)
    good = JudgeReply(text="a", prompt_tokens=0, completion_tokens=0)
    burst = [pacer.enter() for _ in range(8)]
    now = 1.0
    for began in burst:
        pacer.leave(began, busy)
    assert pacer.limit == 4  # a burst counts once
    limits = []
    for number in range(4):
        now += 10
        pacer.leave(pacer.enter(), told if number == 3 else busy)
        limits.append(pacer.limit)
    assert limits == [2, 1, 1, 1]
    now += 10
    for _ in range(40):
        pacer.leave(pacer.enter(), good)
    assert pacer.limit == 8


def test_the_crowd_pauses_longer_with_each_refusal() -> None:
    began = time.monotonic()
    pacer = JudgePacer(1, pause_seconds=0.05, longest_pause_seconds=0.1)
    busy = JudgeFailure(reason="", verdict="retry", is_overload=True, retry_after_seconds=None)
    for _ in range(4):
        pacer.leave(pacer.enter(), busy)
    pacer.enter()
    assert time.monotonic() - began >= 0.05 + 0.1 + 0.1 + 0.1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3), ("0.25", 0.25), ("-4", 0), ("soon", None), ("", None), ("nan", None), ("inf", None)],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_seconds({"retry-after": value}, now=0) == seconds
    assert retry_after_seconds({}, now=0) is None


def test_retry_after_a_date() -> None:
    date = {"retry-after": "Thu, 01 Jan 1970 00:02:00 GMT"}
    assert retry_after_seconds(date, now=50) == 70
    assert retry_after_seconds(date, now=500) == 0


def test_parts_and_missing_counts() -> None:
    parts = [{"type": "text", "text": "Ye"}, {"type": "text", "text": "s"}, {"type": "other"}]
    raw = json.dumps(
        {"choices": [{"message": {"content": parts}}], "usage": {"prompt_tokens": "3"}}
    )
    reply = parse_reply(raw.encode())
    assert reply == JudgeReply(text="Yes", prompt_tokens=0, completion_tokens=0)
    assert parse_refusal(418, {}, b"").verdict == "skip"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://host/v1", "https://host/v1/chat/completions"),
        ("https://host/v1/", "https://host/v1/chat/completions"),
        ("http://host:8000/v1/chat/completions", "http://host:8000/v1/chat/completions"),
        ("http://host", "http://host/chat/completions"),
    ],
)
def test_urls(given: str, url: str) -> None:
    assert endpoint_url(given) == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("host/v1", "want http"),
        ("ftp://host/v1", "want http"),
        ("http://host:99999/v1", "Port out of range"),
        ("http://[host/v1", "is none"),
        (f"https://me:{KEY}@host/v1", "A key belongs in OPENAI_API_KEY"),
        (f"https://host/v1?key={KEY}", "A key belongs in OPENAI_API_KEY"),
    ],
)
def test_urls_that_are_none_or_hold_a_key(url: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        endpoint_url(url)
    assert words.lower() in str(caught.value).lower()
    assert KEY not in str(caught.value)


def test_a_key_with_a_line_end_is_not_repeated(make: Make) -> None:
    with pytest.raises(ConfigError, match="line ends") as caught:
        open_judge("m", api_key=f"{KEY}\nx", environ={})
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "environ", "expected"),
    [
        ({}, {}, None),
        ({"name": None}, {"OPENAI_API_KEY": KEY}, None),
        ({"name": "exact_matching"}, {"OPENAI_API_KEY": KEY}, None),
        ({}, {"OPENAI_API_KEY": KEY}, ("gpt-4o", "https://api.openai.com/v1")),
        ({"api_key": KEY}, {}, ("gpt-4o", "https://api.openai.com/v1")),
        (
            {"base_url": "http://a/v1"},
            {"OPENAI_BASE_URL": "http://b/v1"},
            ("gpt-4o", "http://a/v1"),
        ),
        ({}, {"OPENAI_BASE_URL": "http://b/v1"}, ("gpt-4o", "http://b/v1")),
        ({}, {"OPENAI_API_BASE": "http://c/v1/chat/completions"}, ("gpt-4o", "http://c/v1")),
        (
            {},
            {"OPENAI_API_KEY": KEY, "LOCAL_LLM": "mine", "OPENAI_API_BASE": " "},
            ("mine", "https://api.openai.com/v1"),
        ),
    ],
)
def test_which_judge(
    options: dict[str, Any], environ: dict[str, str], expected: tuple[str, str] | None
) -> None:
    judge = open_judge(**{"name": "gpt-4o", **options}, environ=environ)
    if expected is None:
        assert judge is None
        return
    assert judge is not None
    assert (judge.name, judge._endpoint.url) == (expected[0], f"{expected[1]}/chat/completions")
    assert judge.summary()["endpoint"] == ("OpenAI" if "openai.com" in expected[1] else "other")
    judge.close()


def test_no_judge_says_why(caplog: pytest.LogCaptureFixture) -> None:
    assert open_judge("gpt-4o", environ={}) is None
    assert caplog.messages == ["no judge: neither OPENAI_API_KEY nor OPENAI_BASE_URL is set"]


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="most_tries of the judge is 0"):
        JudgeLimits(most_tries=0)


def test_the_key_is_nowhere_in_the_logs(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with judge_server(lambda number, body: refused(403, f"bad {KEY}")) as server:
        judge = make(server.url)
        assert ask(judge) is None
    assert KEY not in caplog.text
    assert KEY not in repr(judge.summary()) + repr(vars(judge))


# -- is it there? ---------------------------------------------------------------------------------


def test_each_attempt_at_the_same_temperature_is_asked(make: Make, tmp_path: Path) -> None:
    """Three tries are three requests, and a second run takes all of them from the file."""
    replies = tmp_path / "judge.jsonl"
    with judge_server(lambda number, body: said("hm" if number < 2 else "Yes")) as server:
        for _ in range(2):
            judge = make(server.url, replies=replies)
            found = ask_until(
                judge,
                [request()],
                lambda text: text if text == "Yes" else None,
                temperatures=(0, 0, 0),
            )
            assert found == ["Yes"]
            judge.close()
    assert [body["temperature"] for body in server.bodies] == [0, 0, 0]
    assert len({json.loads(line)["sha256"] for line in replies.open()}) == 3


def test_multiple_choice_tries_three_times(make: Make) -> None:
    """At the same temperature, as VLMEvalKit does: the file of replies must not answer for it."""
    row = {"index": 0, "question": "Which?", "A": "red", "B": "blue", "answer": "A"}
    question = Question(id="0", prompt="Which?", record=row)
    assert MMSTAR.score is not None
    for num_unread, hit, num_asked in ((2, 1.0, 3), (0, 1.0, 1)):
        with judge_server(
            lambda number, body, n=num_unread: said("no idea" if number < n else "A")
        ) as server:
            given = ScoreInput(
                questions=[question],
                answers={"0": "hm"},
                rules="official",
                judge=make(server.url),
            )
            assert MMSTAR.score(given).per_sample == {"0": hit}
        assert len(server.bodies) == num_asked


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (said("Hello!"), ""),
        (said(""), ""),
        (refused(429), ""),
        (refused(400), ""),
        (refused(401), "http 401, key refused"),
        (refused(404), "http 404, no such model or address"),
        (refused(429, "insufficient_quota"), "http 429, quota used up"),
        (refused(500), "http 500"),
        (Said(body=b"<html>"), "garbage"),
        (Said(breaks=True), "connection broken"),
    ],
)
def test_a_word_finds_out_whether_a_judge_answers(make: Make, reply: Said, reason: str) -> None:
    with judge_server(lambda number, body: reply) as server:
        judge = make(server.url)
        assert judge.absence() == reason
    assert server.texts()[0] == "hello"
    assert len(server.bodies) == (
        3 if reason in ("http 500", "garbage", "connection broken") else 1
    )
    assert judge.summary()["num_replies"] == judge.summary()["num_without_reply"] == 0


def test_silence_is_waited_for_once(make: Make) -> None:
    with judge_server(lambda number, body: Said(after_seconds=0.6)) as server:
        judge = make(server.url, limits=IMPATIENT)
        assert judge.absence() == "timeout"
    assert len(server.bodies) == 1


def test_nobody_there(make: Make) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        judge = make(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        assert judge.absence() == "unreachable"


def test_a_judge_with_kept_replies_is_not_asked_a_word(make: Make, tmp_path: Path) -> None:
    with judge_server(lambda number, body: said("Yes")) as server:
        judge = make(server.url, replies=tmp_path / "judge.jsonl")
        ask(judge)
        judge.close()
    again = make("http://127.0.0.1:9/v1", replies=tmp_path / "judge.jsonl")
    assert again.absence() == ""
    assert ask(again) == "Yes"


def test_requests_go_through_the_proxy_of_the_environment() -> None:
    """The server plays the proxy: it is asked for the whole URL of the other."""
    with judge_server(lambda number, body: said("Yes")) as server:
        environ = {
            "OPENAI_BASE_URL": "http://judge.invalid/v1",
            "EVAL_PROXY": server.url.removesuffix("/v1"),
        }
        judge = open_judge("m", environ=environ, limits=QUICK)
        assert judge is not None
        assert judge.absence() == ""
        judge.close()
    assert server.headers[0]["host"] == "judge.invalid"
    with pytest.raises(ConfigError, match="EVAL_PROXY: the judge's proxy cannot be used"):
        open_judge("m", environ={"OPENAI_API_KEY": "k", "EVAL_PROXY": "no proxy"})
