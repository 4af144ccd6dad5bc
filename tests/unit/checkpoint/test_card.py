"""The model card: what it says, that a hub reads it, and whose README.md it is."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from PIL import Image

from internvl_chat.checkpoint.card.files import CARD_NAME, is_replaceable, write_run_card
from internvl_chat.checkpoint.surgery.export import export
from internvl_chat.checkpoint.surgery.merge import merge_lora
from tests.support.lora_checkpoints import save_base, save_lora
from tests.support.search_path import search_path

ARGUMENTS: dict[str, Any] = {
    "model_name_or_path": "/home/alice/secret/tiny-base",
    "meta_path": "/home/alice/secret/meta.json",
    "output_dir": "/home/alice/secret/out",
    "deepspeed": "/home/alice/secret/zero1.json",
    "max_steps": 4,
    "num_train_epochs": 3.0,
    "learning_rate": 0.001,
    "freeze_llm": True,
    "freeze_backbone": True,
    "freeze_mlp": True,
    "use_llm_lora": 4,
    "use_backbone_lora": 0,
    "load_best_model_at_end": False,
    "hub_token": "hf_secret",
}
GIVEN = ("model_name_or_path", "meta_path", "output_dir", "deepspeed", "use_llm_lora")


def entry(name: str, **changes: Any) -> dict[str, Any]:
    root = "/home/alice/secret/photos"
    usual = {"repeat_time": 1, "weight": 1.0, "max_samples": None, "max_dynamic_patch": None}
    return {"name": name, "root": root, "annotation": root, "records": 60, **usual, **changes}


def write_run(folder: Path, *, results: dict[str, Any] | None = None, **changes: Any) -> Path:
    """What a run leaves beside its model."""
    arguments = {**ARGUMENTS, **changes.pop("arguments", {})}
    record = {
        "arguments": arguments,
        "given": {key: arguments[key] for key in GIVEN},
        "world_size": 2,
        "global_batch_size": 8,
        "versions": {"internvl-chat": "0.1.0", "torch": "2.13.0"},
        "git_revision": "0123456789abcdef+",
        "command": ["/home/alice/secret/bin/internvl-chat"],
        "contents": {"meta_path": [entry("photos"), entry("odd | name", repeat_time=0.5)]},
        "from_step": 0,
        "earlier": [],
        **changes,
    }
    log = [
        *({"step": step, "loss": 5.0 - step} for step in range(1, 5)),
        {"step": 2, "eval_loss": 1.25, "eval_loss/a": 1.0, "eval_loss/b": 1.5},
        {"step": 4, "eval_loss": 2.5},
    ]
    log.sort(key=lambda one: one["step"])
    state = {"global_step": 4, "log_history": log, "best_global_step": 2}
    state["best_model_checkpoint"] = "/home/alice/secret/out/checkpoint-2"
    found = {"bad_samples": {"photos": 3}, "global_step": 4} if results is None else results
    for name, values in (
        ("arguments.json", record),
        ("trainer_state.json", state),
        ("train_results.json", found),
    ):
        (folder / name).write_text(json.dumps(values))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder of a whole model with the files of a run; the model itself is not needed."""
    folder = tmp_path / "my_model"
    folder.mkdir()
    (folder / "config.json").write_text('{"template": "Hermes-2", "force_image_size": 28}')
    return write_run(folder)


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / CARD_NAME)


def test_it_says_what_the_run_was(run: Path) -> None:
    write_run_card(run)
    card = card_of(run)
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": "tiny-base",
        "base_model_relation": "finetune",
        "datasets": ["photos"],
        "tags": ["internvl", "internvl-chat", "vision-language", "custom_code", "lora"],
    }
    for told in (
        "# my_model",
        "fine-tuned from `tiny-base`",
        "| photos | 60 | 1 |",
        r"| odd \| name | 60 | 0.5 |",
        "Records skipped as unfit: photos 3.",
        "Trained: language model (LoRA of rank 4).",
        "| learning_rate | 0.001 |",
        "| max_steps | 4 |",
        "| deepspeed | zero1.json |",
        "| global batch size | 8 samples on 2 processes |",
        "| training loss | 1.0000 at step 4 |",
        "| validation loss | 2.5000 at step 4 |",
        "| commit | 0123456789ab with local changes |",
        "| tiles | 28 x 28 pixels |",
        'path = "my_model"',
    ):
        assert told in card.content, told
    for secret in ("alice", "secret", "num_train_epochs", os.path.expanduser("~"), "weights |"):
        assert secret not in card.content, secret


def test_the_best_of_a_run_has_its_own_scores(run: Path) -> None:
    write_run(run, arguments={"load_best_model_at_end": True})
    write_run_card(run)
    text = card_of(run).content
    assert "| weights | those of step 2, which validated best |" in text
    assert "| training loss | 3.0000 at step 2 |" in text
    assert "| validation loss | 1.2500 at step 2 |" in text
    assert "| validation loss, b | 1.5000 |" in text


def test_a_checkpoint_on_the_way_has_no_best(run: Path) -> None:
    write_run(run, results={}, arguments={"load_best_model_at_end": True})
    write_run_card(run)
    assert "which validated best" not in card_of(run).content


def test_a_run_that_went_on_otherwise_says_so(run: Path) -> None:
    before = {
        "arguments": {**ARGUMENTS, "learning_rate": 0.1, "output_dir": "/home/alice/secret/x"},
        "global_batch_size": 4,
        "from_step": 0,
    }
    write_run(run, earlier=[before], from_step=3)
    write_run_card(run)
    told = "Otherwise up to step 3: `learning_rate` 0.1; `global batch size` 4."
    assert told in card_of(run).content


def test_while_a_run_goes_on_the_model_is_the_former_ones(run: Path) -> None:
    former = json.loads((run / "arguments.json").read_text())
    write_run(run, arguments={"learning_rate": 7.0}, of_finished_model=former)
    write_run_card(run)
    assert "| learning_rate | 0.001 |" in card_of(run).content


def test_a_model_on_the_hub_is_named_by_its_id(run: Path) -> None:
    commit = "0" * 40
    write_run(run, arguments={"model_name_or_path": f"OpenGVLab/InternVL-Chat-V1-2@{commit}"})
    write_run_card(run)
    assert card_of(run).data.base_model == "OpenGVLab/InternVL-Chat-V1-2"


def test_parts_on_this_machine_are_named_by_their_folders(run: Path) -> None:
    parts = {"model_name_or_path": None, "vision_path": "/home/alice/vit", "llm_path": "a b"}
    write_run(run, arguments=parts)
    write_run_card(run)
    card = card_of(run)
    assert card.data.base_model is None  # "a b" is no name that a hub takes
    assert "fine-tuned from `vit` + `a b`" in card.content


def test_a_licence_comes_from_the_base(run: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    matter = "license: other\nlicense_name: yi\nlicense_link: LICENSE\nlanguage: en\ntags: [x]"
    (base / CARD_NAME).write_text(f"---\n{matter}\n---\n# Base\n")
    write_run(run, arguments={"model_name_or_path": str(base)})
    write_run_card(run)
    data = card_of(run).data.to_dict()
    kept = {key: data.get(key) for key in ("license", "license_name", "license_link", "language")}
    assert kept == {
        "license": "other",
        "license_name": "yi",
        "license_link": "LICENSE",
        "language": "en",
    }
    assert "x" not in data["tags"]


def test_scores_of_benchmarks_beside_the_model(run: Path) -> None:
    folder = run / "results/a_b/own"
    folder.mkdir(parents=True)
    score = {"task": "own", "n": 12, "rules": {"later": {"printed": "accuracy 0.5"}}}
    (folder / "score.json").write_text(json.dumps(score))
    write_run_card(run)
    assert "| own | later: accuracy 0.5 (12 questions) |" in card_of(run).content


def test_a_table_of_scores_is_told_by_its_figures_and_once(run: Path) -> None:
    table = {"printed": "     n  exact\nall  1  1.0\n", "metrics": {"exact": 1.0, "anls": 2 / 3}}
    other = {"printed": "accuracy 0.5\n", "metrics": {"accuracy": 0.5}}
    for task, rules in (
        ("own", {"2024": table, "later": table}),
        ("pope", {"a": table, "b": other}),
    ):
        folder = run / f"results/{task}"
        folder.mkdir(parents=True)
        (folder / "score.json").write_text(json.dumps({"task": task, "n": 1, "rules": rules}))
    write_run_card(run)
    text = card_of(run).content
    assert "| own | exact 1.0000, anls 0.6667 (1 questions) |" in text
    assert "| pope | a: exact 1.0000, anls 0.6667; b: accuracy 0.5 (1 questions) |" in text


def test_a_card_of_ours_is_written_anew_and_no_other(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = run / CARD_NAME
    write_run_card(run)
    write_run(run, results={"bad_samples": {}})
    write_run_card(run)
    assert "unfit: none" in path.read_text()
    path.write_text(edited := path.read_text().replace("# my_model", "# My fine model"))
    write_run_card(run)
    assert path.read_text() == edited
    assert "is kept as it is: no model card is written" in caplog.text


def test_pefts_template_is_no_card(run: Path) -> None:
    model = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(2, 2)), LoraConfig(target_modules="0")
    )
    model.save_pretrained(run)
    template = (run / CARD_NAME).read_text()
    assert template.count("More Information Needed") > 20
    filled_in = template.replace("[More Information Needed]", "Mine", 1)
    assert [is_replaceable(text) for text in ("", filled_in, "# Mine")] == [True, False, False]
    write_run_card(run)
    assert "# my_model" in (run / CARD_NAME).read_text()


def test_an_adapter_that_went_on_is_still_one_of_its_base(run: Path, tmp_path: Path) -> None:
    first = tmp_path / "first try"
    first.mkdir()
    (first / "adapter_config.json").write_text("{}")
    write_run(run, arguments={"model_name_or_path": str(first)})
    config: dict[str, Any] = {"base_model_name_or_path": "acme/tiny", "revision": "0" * 40}
    config["modules_to_save"] = ["mlp1"]
    (run / "adapter_config.json").write_text(json.dumps(config))
    write_run_card(run)
    card = card_of(run)
    assert card.data.base_model == "acme/tiny"
    for told in (
        "A LoRA adapter for `acme/tiny`",
        'from_pretrained("acme/tiny", revision=revision',
        "language model (LoRA of rank 4), `mlp1` (whole, beside the LoRA).",
        "It went on from the adapter `first try`.",
    ):
        assert told in card.content, told


def test_names_are_quoted_for_shell_and_python(tmp_path: Path) -> None:
    folder = tmp_path / 'Zoë\'s "best" model'
    folder.mkdir()
    write_run_card(write_run(folder))
    text = card_of(folder).content
    lines = [one for one in text.splitlines() if one.startswith(("internvl-chat ", "path = "))]
    assert shlex.split(lines[0])[:4] == ["internvl-chat", "chat", "--model", folder.name]
    assert shlex.split(lines[1])[-1] == folder.name
    assert ast.literal_eval(lines[2].removeprefix("path = ").partition("  #")[0]) == folder.name


def test_folders_that_no_run_wrote_get_no_card(tmp_path: Path) -> None:
    write_run_card(tmp_path)
    assert not (tmp_path / CARD_NAME).exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``adapter`` of a run on ``tiny-base``, ``merged``, and ``again`` exported from that."""
    folder = tmp_path_factory.mktemp("made")
    base = save_base(folder / "tiny-base")
    (base / CARD_NAME).write_text("---\nlicense: mit\n---\n")
    save_lora(base, folder / "adapter", adapter_only=True)
    write_run(folder / "adapter", arguments={"model_name_or_path": str(base)})
    write_run_card(folder / "adapter")
    merge_lora(str(folder / "adapter"), str(folder / "merged"), check="weights")
    export(str(folder / "merged"), str(folder / "again"))
    export(str(base), str(folder / "copy"))
    return folder


@pytest.mark.parametrize(
    ("name", "library", "relation"),
    [("adapter", "peft", "adapter"), ("merged", "transformers", "merge")],
)
def test_adapter_and_merge_name_their_base(
    made: Path, name: str, library: str, relation: str
) -> None:
    data = card_of(made / name).data
    assert (data.library_name, data.license, data.base_model) == (library, "mit", "tiny-base")
    assert data.to_dict()["base_model_relation"] == relation


def test_what_a_card_says_of_training_travels(made: Path) -> None:
    merged, again = card_of(made / "merged"), card_of(made / "again")
    for told in ("| photos | 60 | 1 |", "| learning_rate | 0.001 |", "| validation loss | 2.5000"):
        assert told in merged.content
        assert told in again.content
    assert again.data.to_dict()["base_model_relation"] == "merge"
    assert "1. `merge-lora` of `adapter` + `tiny-base`" in again.content
    assert "1. `export --layout internvl_chat` of `merged`" in again.content
    assert str(made) not in again.content


def test_other_files_of_a_model_are_no_training(made: Path) -> None:
    card = card_of(made / "copy")
    assert card.data.base_model == "tiny-base"
    assert "base_model_relation" not in card.data.to_dict()
    assert "`tiny-base` in other files" in card.content
    assert "## Settings" not in card.content


@pytest.mark.slow
def test_the_code_of_an_adapters_card_runs(made: Path) -> None:
    """In a process that sees what travels, and PEFT."""
    blocks = [one.split("```")[0] for one in card_of(made / "adapter").content.split("```python")]
    Image.new("RGB", (20, 30), "red").save(made / "image.jpg")
    (made / "usage.py").write_text("\n".join(blocks[1:]) + "\nprint(type(model).__name__)\n")
    done = subprocess.run(
        [sys.executable, "-P", "usage.py"],
        cwd=made,
        env={**os.environ, "PYTHONPATH": search_path(), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Do you wish" not in done.stdout  # to run the code that was just run
    assert done.stdout.splitlines()[-1] == "PeftModel"
