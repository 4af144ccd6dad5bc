"""The page's file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from internvl_chat.data.report.bad_groups import ALL_EXAMPLES, EXAMPLES, BadGroups
from internvl_chat.data.report.page import GENERATOR, check_output, json_text, security_policy
from internvl_chat.data.schema import BadRecordError
from internvl_chat.errors import ConfigError


def test_json_ends_no_script() -> None:
    value = {"</script><script>": ["<!--", "]]>", "a & b", '"', "\u2028", "前"]}
    text = json_text(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == value
    assert "前" in text


def test_the_policy_names_style_and_script_by_digest() -> None:
    policy = security_policy("a{}", "b()")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    digest = base64.b64encode(hashlib.sha256(b"b()").digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in policy
    assert "connect-src" not in rules  # as default-src


def test_a_report_may_be_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    check_output(path)
    path.write_text("<html>my own</html>")
    with pytest.raises(ConfigError, match=r"a\.html exists and is no report"):
        check_output(path)
    path.write_text(f'<meta name="generator" content="{GENERATOR}">')
    check_output(path)
    with pytest.raises(ConfigError, match="is a directory"):
        check_output(tmp_path)


def test_template_and_script_load_nothing() -> None:
    folder = Path(check_output.__code__.co_filename).with_name("template")
    texts = {path.name: path.read_text("utf-8") for path in folder.iterdir()}
    assert set(texts) == {"report.html", "report.css", "report.js"}
    for text in texts.values():
        addresses = re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s\"']*", text)
        assert set(addresses) <= {"http://www.w3.org/2000/svg", "//www.w3.org/2000/svg"}
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    assert "</script" not in texts["report.js"]
    assert not re.search(r"\sstyle=|\son[a-z]+=", texts["report.html"])


def test_bad_records_by_code_do_not_grow_without_end() -> None:
    groups = BadGroups()
    for number in range(1000):
        for dataset in ("one", "two"):
            err = BadRecordError("JSON", f"problem {number}", where=f"a.jsonl:{number}", fix="Mend")
            group = groups.add(dataset, err)
            if groups.wants_example(group):
                groups.add_example(group, err, b"x" * 100_000)
    first, second = groups.groups()
    assert (first.dataset, first.code, first.num_bad, first.fix) == ("one", "JSON", 1000, "Mend")
    assert len(first.examples) == len(second.examples) == EXAMPLES
    assert first.examples[0].where == "a.jsonl:0"
    assert len(first.examples[0].record) < 2000
    assert groups.num_bad == 2000


def test_every_code_keeps_its_first_record() -> None:
    groups = BadGroups()
    for number in range(ALL_EXAMPLES):
        for _ in range(2):
            err = BadRecordError(f"CODE{number}", "p", where=f"a:{number}")
            group = groups.add("one", err)
            if groups.wants_example(group):
                groups.add_example(group, err, "é".encode("latin-1"))
    assert len(groups.groups()) == ALL_EXAMPLES
    assert min(len(group.examples) for group in groups.groups()) == 1
    assert groups.groups()[0].examples[0].record == "\ufffd"
