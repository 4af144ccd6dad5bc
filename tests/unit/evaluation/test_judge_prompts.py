"""The judges' texts, ours and a user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.evaluation.judge_prompts import CATEGORIES, FIELDS, load_judge_prompts


def fields_of(key: str) -> dict[str, str]:
    values = {name: f"[{name} with {{question}} and {{0}}]" for name in FIELDS[key]}
    return {**values, "category": "conv"} if "category" in values else values


@pytest.mark.parametrize("key", FIELDS)
def test_fields_come_last_and_once_and_keep_their_braces(key: str) -> None:
    fields = fields_of(key)
    text = load_judge_prompts().messages(key, fields)[-1]["content"]
    task = text.partition("现在请完成任务" if key == "choice_cn" else "Now your task")[2]
    for name, value in fields.items():
        if name != "category":
            assert (text.count(value), task.count(value)) == (1, 1)
    examples = text.count("\n例") if key == "choice_cn" else text.count("\nExample ")
    assert examples >= 2
    assert text.endswith("你的回复:" if key == "choice_cn" else "Your reply:")


def test_llava_bench_has_a_system_message_and_a_rule_for_each_category() -> None:
    prompts = load_judge_prompts()
    seen = set()
    for category in CATEGORIES:
        fields = {**fields_of("llava_bench"), "category": category}
        messages = prompts.messages("llava_bench", fields)
        assert [one["role"] for one in messages] == ["system", "user"]
        assert "{rule}" not in messages[1]["content"]
        seen.add(messages[1]["content"])
    assert len(seen) == 3
    with pytest.raises(ConfigError, match="category 'all', the prompt 'llava_bench' has rules for"):
        prompts.messages("llava_bench", {**fields_of("llava_bench"), "category": "all"})


def test_wrong_fields_are_our_mistake() -> None:
    with pytest.raises(ValueError, match=r"yes_no with fields \['answer'\]"):
        load_judge_prompts().messages("yes_no", {"answer": "a"})
    with pytest.raises(ValueError, match="nothing with fields"):
        load_judge_prompts().messages("nothing", {})


def test_a_users_texts_replace_ours(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "yes_no: |\n  Is it {question}? {prediction} {other}\n"
        "mmvet:\n  system: Be fair.\n  user: '{question} {ground_truth} {prediction}'\n"
    )
    ours, mine = load_judge_prompts(), load_judge_prompts(path)
    filled = {"question": "{prediction}", "prediction": "p"}
    assert mine.messages("yes_no", filled) == [
        {"role": "user", "content": "Is it {prediction}? p {other}"}
    ]
    filled = {"question": "q", "ground_truth": "g", "prediction": "p"}
    assert mine.messages("mmvet", filled) == [
        {"role": "system", "content": "Be fair."},
        {"role": "user", "content": "q g p"},
    ]
    assert mine.messages("choice_en", fields_of("choice_en")) == ours.messages(
        "choice_en", fields_of("choice_en")
    )
    assert mine.sha256() != ours.sha256() == load_judge_prompts().sha256()
    assert mine.sha256("choice_en") == ours.sha256("choice_en")
    assert mine.sha256("mmvet") != ours.sha256("mmvet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no table of prompts. Its keys are choice_en, choice_cn, yes_no"),
        ("a: [", "is no YAML"),
        ("yesno: a", "no judge is called 'yesno'. Did you mean 'yes_no'? Keys: choice_en"),
        ("yes_no: '{question}'", ", 'yes_no': {prediction} not in the text. The judge would"),
        ("yes_no: 3", "want a text, or an object of user, system and rules"),
        ("yes_no: {user: 3}", '"user" and "system" are texts'),
        ("mmvet: {user: a, rules: [b]}", '"rules" maps categories to texts'),
        ("llava_bench: '{rule}{context}{question}{answer_1}{answer_2}'", "no rule for complex, co"),
    ],
)
def test_a_users_file_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_judge_prompts(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_users_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--judge-prompts wants a YAML file"):
        load_judge_prompts(tmp_path / "none.yaml")
