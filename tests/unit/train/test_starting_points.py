"""Runs that start from a model on the hub: pinned by commit, and found again from elsewhere."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from internvl_chat.chat import load_model
from internvl_chat.checkpoint.identity import model_identity
from internvl_chat.train.finetune import main
from tests.support.hub import Hub, Repository, files_in
from tests.support.hub_fixtures import go_offline
from tests.support.training import train_arguments, write_dataset, write_tiny_chat_model

NAME = "Org/Tiny"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two states of one model."""
    folder = tmp_path_factory.mktemp("models")
    return [write_tiny_chat_model(folder / f"{seed}", seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), ("text", "image"))


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """The entry point sets logging up for a process of its own."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture
def repository(hub: Hub, models: list[Path]) -> Repository:
    return hub.add(NAME, files_in(models[0]))


def lora(meta: Path, output_dir: Path, model: str = NAME, **options: Any) -> list[str]:
    return train_arguments(
        model,  # type: ignore[arg-type]
        meta,
        output_dir,
        **{
            "use_llm_lora": 2,
            "freeze_llm": True,
            "freeze_backbone": True,
            "freeze_mlp": True,
            "max_steps": 2,
            "save_strategy": "steps",
            "save_steps": 1,
            **options,
        },
    )


def record(output_dir: Path) -> dict[str, Any]:
    return json.loads((output_dir / "arguments.json").read_text())


def test_a_run_keeps_its_commit_and_its_adapter_names_it(
    repository: Repository,
    models: list[Path],
    meta: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, output_dir = repository.branches["main"], tmp_path / "out"
    assert main(lora(meta, output_dir)) == 0
    told = record(output_dir)
    assert told["arguments"]["model_name_or_path"] == f"{NAME}@{first}"
    assert told["given"]["model_name_or_path"] == NAME
    assert told["contents"]["model_name_or_path"] == model_identity(models[0])
    for directory in (output_dir, output_dir / "checkpoint-1"):
        adapter = json.loads((directory / "adapter_config.json").read_text())
        assert (adapter["base_model_name_or_path"], adapter["revision"]) == (NAME, first)

    second = repository.push(files_in(models[1]))
    require_base_of(output_dir, models[0], tmp_path / "elsewhere", monkeypatch)
    capfd.readouterr()
    assert main(lora(meta, output_dir)) == 0
    error = capfd.readouterr().err
    assert "is complete already (2 steps)" in error
    assert f"{NAME} is commit {second} on the hub now; this goes on with {first}" in error
    assert main(lora(meta, output_dir, max_steps=3)) == 0
    assert record(output_dir)["arguments"]["model_name_or_path"] == f"{NAME}@{first}"

    assert main(lora(meta, output_dir, f"{NAME}@{second}", max_steps=4)) == 2
    difference = f"--model_name_or_path {NAME}@{first} -> {NAME}@{second}"
    assert difference in capfd.readouterr().err
    # The same files under another name are the same model.
    assert main(lora(meta, output_dir, str(models[0]), max_steps=3)) == 0


def require_base_of(
    adapter: Path, base: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load an adapter on a machine that has nothing of its base, then without network."""
    wanted = load_file(base / "model.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(elsewhere))
        model, _ = load_model(str(adapter))
        found = dict(model.named_parameters())
        name = "language_model.model.embed_tokens.weight"
        assert found[name].equal(wanted[name].float())
        go_offline(patch)
        load_model(str(adapter))


def test_parts_of_a_model_come_from_the_hub(
    hub: Hub,
    models: list[Path],
    meta: Path,
    tmp_path: Path,
) -> None:
    from internvl_chat.checkpoint.surgery.extract import extract

    for part, place in (("vit", "vit"), ("llm", "llm"), ("mlp", "mlp.safetensors")):
        extract(part, str(models[0]), str(tmp_path / place))  # type: ignore[arg-type]
    vision = hub.add("Org/ViT", files_in(tmp_path / "vit"))
    llm = hub.add("Org/LLM", files_in(tmp_path / "llm"))
    mlp = hub.add("Org/MLP", {"mlp/one.safetensors": (tmp_path / "mlp.safetensors").read_bytes()})
    argv = train_arguments(
        "",  # type: ignore[arg-type]
        meta,
        tmp_path / "out",
        vision_path="Org/ViT@main",
        llm_path="Org/LLM",
        mlp_path="hf://Org/MLP/mlp/one.safetensors",
        max_steps=1,
        use_llm_lora=2,
        freeze_llm=True,
        freeze_backbone=True,
    )[2:]
    assert main(argv) == 0
    told = record(tmp_path / "out")["arguments"]
    assert told["vision_path"] == f"Org/ViT@{vision.branches['main']}"
    assert told["llm_path"] == f"Org/LLM@{llm.branches['main']}"
    assert told["mlp_path"] == f"hf://Org/MLP@{mlp.branches['main']}/mlp/one.safetensors"


def test_a_missing_model_is_told_with_its_flag(
    hub: Hub,
    meta: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(lora(meta, tmp_path / "out", "Org/None")) == 2
    error = capfd.readouterr().err
    assert "--model_name_or_path Org/None: no such directory, and no such model on the hub" in error


def test_weights_wait_for_the_checks(
    repository: Repository,
    hub: Hub,
    tmp_path: Path,
) -> None:
    assert main(lora(tmp_path / "no_meta.json", tmp_path / "out")) == 2
    assert hub.asked("GET", "config.json")
    assert not hub.asked("GET", "safetensors")


def test_a_run_of_model_and_data_alone_keeps_its_commit_too(
    repository: Repository,
    models: list[Path],
    meta: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [*("--model_name_or_path", NAME), *("--meta_path", str(meta)), *("--max_steps", "1")]
    assert main([*argv, "--report_to", "none"], assumes=True) == 0
    repository.push(files_in(models[1]))
    assert main([*argv, "--report_to", "none"], assumes=True) == 0
    assert "work_dirs/Tiny_tuned is complete already" in capfd.readouterr().err
