"""Every option that takes a model takes one on the hub: walked, so that none is forgotten."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
import typer

from internvl_chat.checkpoint.sources import find_sources
from internvl_chat.cli.command import VERBS, main
from internvl_chat.cli.run import main as run_py
from internvl_chat.cli.run_options import make_parser
from internvl_chat.config import SourceConfig
from internvl_chat.train.arguments import ModelArguments
from internvl_chat.train.record import MODEL_PATHS
from tests.support.hub import Hub, files_in, fill_cache
from tests.support.training import ROOT

TINY = "pretrained/internvl-chat-tiny"
ID = "Some/Model"
"""In nobody's cache: that it is looked for there shows that the option takes it."""
WALK: dict[str, list[list[str]]] = {
    "chat --model": [["chat", "--model", ID, "?"]],
    "serve --model": [["serve", "--model", ID, "--port", "0", "--device", "cpu"]],
    "demo --model": [["demo", "--model", ID]],
    "demo --compare": [["demo", "--model", TINY, "--compare", ID]],
    "merge-lora checkpoint": [["merge-lora", ID, "OUT"]],
    "extract checkpoint": [[*("extract", part), ID, "OUT"] for part in ("vit", "mlp", "llm")],
    "replace-llm checkpoint": [["replace-llm", ID, TINY, "OUT"]],
    "replace-llm llm": [["replace-llm", TINY, ID, "OUT"]],
    "resize-pos-embed checkpoint": [["resize-pos-embed", ID, "OUT", "448"]],
    "export checkpoint": [["export", ID, "OUT"]],
    "export --code": [["export", TINY, "OUT", "--code", ID]],
    "export --adapter-for": [["export", TINY, "OUT", "--adapter-for", ID]],
    "data preview --model": [["data", "preview", "meta.json", "--model", ID]],
    "data preview --tokenizer": [
        ["data", "preview", "meta.json", "--tokenizer", ID],
        ["data", "preview", "meta.json", "--model", TINY, "--tokenizer", ID],
    ],
    "data index --model": [["data", "index", "meta.json", "--model", ID]],
    "data index --tokenizer": [["data", "index", "meta.json", "--tokenizer", ID]],
    "data check --tokenizer": [
        ["data", "check", "meta.json", "--tokenizer", ID],
        ["data", "check", "meta.json", "--model", ID],
    ],
    "data report --model": [
        ["data", "report", "meta.json", "--model", ID, "-o", "OUT"],
        ["data", "report", "meta.json", "--tokenizer", ID, "-o", "OUT"],
    ],
    "eval run checkpoint": [["eval", "run", ID, "--jsonl", "records.jsonl", "--metric", "exact"]],
    "eval run --checkpoint": [
        ["eval", "run", TINY, "--checkpoint", ID, "--jsonl", "records.jsonl", "--metric", "exact"]
    ],
}
ENTRY = {"data_augment": False, "repeat_time": 1}
SPEAKS_OF_MODELS = re.compile(r"model|checkpoint|tokenizer|\bllm\b|weights", re.IGNORECASE)
TAKES_NONE = {
    "chat --load-in-4bit",
    "demo --load-in-4bit",
    "serve --load-in-4bit",
    "chat --gpus",
    "chat --load-in-8bit",
    "demo --gpus",
    "serve --gpus",
    "serve --served-model-name",
    "demo --load-in-8bit",
    "serve --load-in-8bit",
    "merge-lora --check",
    "extract part",
    "status --quick",
    "plan --mfu",
    "eval run --auto",
    "eval run --judge",
    "eval run --load-in-4bit",
    "eval run --load-in-8bit",
    "eval score --judge",
    "eval run --original-beams",
    "eval run --sample",
}
"""Options that speak of models and take none."""


def parameters(command: object, words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(``verb --option``, all that is said of it) of a verb and its own verbs."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from parameters(inner, (*words, name))
    if not getattr(command, "commands", None):
        for one in getattr(command, "params", ()):
            name = one.opts[0] if one.param_type_name == "option" else one.name
            yield " ".join((*words, name)), f"{name} {getattr(one, 'help', '') or ''}"


def test_all_that_take_a_model_are_walked() -> None:
    found = {}
    for verb in VERBS:
        app = import_module(f"internvl_chat.cli.{verb.replace('-', '_')}").app
        found |= dict(parameters(typer.main.get_command(app), (verb,)))
    speaking = {name for name, text in found.items() if SPEAKS_OF_MODELS.search(text)}
    assert speaking - TAKES_NONE == set(WALK)
    assert set(found) >= TAKES_NONE
    paths = {one.name for one in fields(ModelArguments) if one.name.endswith("_path")}
    assert paths == set(MODEL_PATHS)
    of_run_py = {one.dest for one in make_parser()._actions if "checkpoint" in str(one.help)}
    assert of_run_py == {"model"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_cache: Path) -> Path:
    """A folder with data and, by its name, the tiny model; the cache is empty."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretrained").mkdir()
    (tmp_path / TINY).symlink_to(ROOT / TINY)
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
    record = {"id": 1, "conversations": turns}
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n")
    entry = {"root": "", "annotation": "records.jsonl", "length": 1, **ENTRY}
    (tmp_path / "meta.json").write_text(json.dumps({"one": entry}))
    return tmp_path


WORDS = [words for several in WALK.values() for words in several]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_an_option_takes_a_model_on_the_hub(
    words: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(words)
    error = capsys.readouterr().err
    assert f"{ID}: no such directory, and the model of that name is not in the hub's cache" in error
    assert f"download with: hf download {ID}" in error
    assert code == 2
    assert not (place / "OUT").exists()


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_mistyped_path_asks_no_network(
    words: list[str], place: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word if word != ID else "./pretrained/x" for word in words]) == 2
    assert "pretrained/x" in capsys.readouterr().err
    assert hub.requests == []


def test_run_py_takes_a_model_on_the_hub(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "index\tquestion\tanswer\timage\n0\t?\tA\t" + "A" * 80 + "\n"
    (place / "One.tsv").write_text(rows)
    monkeypatch.setenv("LMUData", str(place))
    assert run_py(["--data", "One.tsv", "--model", ID]) == 2
    assert f"download with: hf download {ID}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "check"),
    [
        (["chat", "--model", "Org/Tiny", "What?"], lambda out, _: out.strip()),
        (
            ["extract", "mlp", "Org/Tiny@main", "OUT.safetensors"],
            lambda _, place: (place / "OUT.safetensors").is_file(),
        ),
        (
            ["data", "check", "meta.json", "--tokenizer", "Org/Tiny"],
            lambda out, _: "0 errors" in out,
        ),
    ],
    ids=["chat", "extract", "data check"],
)
def test_a_cache_serves_without_network(
    words: list[str],
    check: Callable[[str, Path], bool],
    place: Path,
    hub_cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    snapshot = fill_cache(hub_cache, "Org/Tiny", files_in(ROOT / TINY))
    assert main(words) == 0
    sources = find_sources(SourceConfig.whole(str(snapshot)))
    assert sources.where == f"Org/Tiny@{snapshot.name}"  # what provenance.json is told
    assert check(capsys.readouterr().out, place)


def test_an_evaluation_names_the_commit(
    place: Path, hub: Hub, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    repository = hub.add("Org/Tiny", files_in(ROOT / TINY))
    commit = repository.branches["main"]
    words = ["eval", "run", "Org/Tiny", "--jsonl", "records.jsonl", "--metric", "exact"]
    with caplog.at_level(logging.INFO, logger="internvl_chat.checkpoint.hub"):
        assert main(words) == 0
    assert "Org/Tiny@" in caplog.text
    assert ": downloading 11.1 MB in 1 files into" in caplog.text
    (card,) = (place / "results/Org_Tiny").glob("*/run.json")
    assert json.loads(card.read_text())["checkpoint"] == f"Org/Tiny@{commit}"
    # The branch moves: the same command goes on where it was.
    repository.push(files_in(ROOT / TINY) | {"generation_config.json": b"{}"})
    assert main(words) == 0
    assert json.loads(card.read_text())["checkpoint"] == f"Org/Tiny@{commit}"
    assert f"this goes on with {commit}, which it began with" in caplog.text
