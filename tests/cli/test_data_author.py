"""The verbs by which datasets are made, as a user types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl_chat.cli import main
from internvl_chat.data.meta import load_meta
from tests.support.search_path import ROOT, search_path

BOXES = ["data", "convert-boxes"]
TURNS = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a [0.1, 0.2, 0.3, 0.4]"}]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_convert_boxes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(here / "a.jsonl", [{"conversations": TURNS}, {"conversations": 1}])
    assert main([*BOXES, "a.jsonl", "b.jsonl", "--from", "unit", "--to", "1000"]) == 0
    assert capsys.readouterr().out == "b.jsonl: 2 records, 1 changed, 1 boxes converted\n"
    assert "<box>[[100, 200, 300, 400]]</box>" in (here / "b.jsonl").read_text()
    assert main([*BOXES, "b.jsonl", "c.jsonl", "--from", "1000", "--to", "unit", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_converted"] == 1
    for options, told in (
        ("b.jsonl --from unit --to 1000", "error: b.jsonl: exists and is not overwritten"),
        ("d.jsonl --from unit --to unit", "error: --from and --to: both are unit. Give two."),
        ("d.jsonl --from units --to 1000", "--from: 'units' is none of unit, 1000, pixel. Did you"),
    ):
        assert main(["data", "convert-boxes", "a.jsonl", *options.split()]) == 2
        assert told in capsys.readouterr().err


def test_import_and_export(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"instruction": "Hi", "input": "", "output": "Ho"}]
    write_rows(here / "a.jsonl", rows)
    assert main(["data", "import", "--from", "alpaca", "a.jsonl", "data/own.jsonl"]) == 0
    out = capsys.readouterr().out
    assert "data/own.jsonl: 1 records of 1 read" in out
    assert load_meta("data/own.meta.json")[0].length == 1
    assert main(["data", "export", "--to", "alpaca", "data/own.jsonl", "back.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_records"] == 1
    assert json.loads((here / "back.jsonl").read_text()) == rows[0]
    write_rows(here / "b.jsonl", [*rows, {"instruction": "Hi"}])
    assert main(["data", "import", "--from", "alpaca", "b.jsonl", "b.own.jsonl"]) == 1
    assert 'b.jsonl:2: "output" is missing' in capsys.readouterr().out
    for verb, told in (
        ("import --from alpacca a.jsonl c.jsonl", "Did you mean 'alpaca'?"),
        ("import --from csv a.jsonl c.jsonl --column answer", "Write image=NAME"),
        (
            "export --to csv data/own.jsonl c.csv --embed",
            "--embed --to csv: has no place for bytes",
        ),
    ):
        assert main(["data", *verb.split()]) == 2
        assert told in capsys.readouterr().err


def test_from_a_folder_to_halves(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "photos").mkdir()
    for number in range(10):
        Image.new("RGB", (8, 4), (number, 0, 0)).save(here / f"photos/{number}.png")
    assert main(["data", "init", "photos"]) == 0
    assert "training refuses them" in capsys.readouterr().out
    table = here / "photos" / "questions.csv"
    text = table.read_text("utf-8-sig").replace(",\n", ",red\n")
    assert text.count("red") == 10
    table.write_text(text, "utf-8")
    assert main(["data", "init", "photos", "--csv", "photos/questions.csv"]) == 0
    capsys.readouterr()
    assert main(["data", "split", "photos/meta.json", "--val", "0.2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("photos: 8 train, 2 val\n")
    assert [spec.length for spec in load_meta("photos/meta.val.json")] == [2]
    assert main(["data", "stats", "photos/meta.train.json"]) == 0
    assert "photos: 8 records" in capsys.readouterr().out
    assert main(["data", "stats", "photos/photos.val.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["photos.val"]["records"] == 2


def test_layout(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "layout"]) == 2
    assert "playground: no such folder" in capsys.readouterr().err
    (here / "playground").mkdir()
    assert main(["data", "layout", "--convert", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["complete"], report["converted"], len(report["datasets"])) == (False, [], 9)


@pytest.mark.parametrize("verb", ["json2jsonl", "data convert-boxes --from unit --to 1000"])
def test_a_terminated_verb_leaves_nothing_half_written(here: Path, verb: str) -> None:
    source = here / "a.json"
    record = json.dumps({"conversations": TURNS, "filler": "x" * 1000})
    source.write_text("[" + ",".join([record] * 50_000) + "]")
    command = [sys.executable, "-m", "internvl_chat", *verb.split(), "a.json", "new.jsonl"]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": search_path(ROOT)})
    try:
        deadline = time.monotonic() + 60
        while not list(here.glob(".new.*.partial.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
        process.wait()
    assert [path.name for path in here.iterdir()] == ["a.json"]
