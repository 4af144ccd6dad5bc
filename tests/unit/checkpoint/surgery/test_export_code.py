"""``export --code``: the files of the published checkpoint that training began with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl_chat.checkpoint.skeleton import skeleton_of
from internvl_chat.checkpoint.surgery.export import export
from internvl_chat.checkpoint.surgery.merged import open_merged
from internvl_chat.checkpoint.surgery.old_tokenizers import spell_for_old_tokenizers
from internvl_chat.checkpoint.surgery.published_code import read_code
from internvl_chat.checkpoint.surgery.published_layout import (
    CHAT_TEMPLATE_NAME,
    merged_values,
    require_code_fits,
)
from internvl_chat.checkpoint.surgery.remembered import remembered_code
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model import InternVLChatConfig
from tests.support.lora_checkpoints import save_lora
from tests.support.published import CODE, save_published

SMALL = ("config.json", "tokenizer_config.json", "added_tokens.json", "generation_config.json")


def changed(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    found = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``published``, and ``trained``: the same as training leaves it, in our own files."""
    folder = tmp_path_factory.mktemp("folders")
    published = save_published(folder / "published")
    export(str(published), str(folder / "trained"))
    weights = load_file(folder / "trained/model.safetensors")
    weights["mlp1.3.bias"] += 1
    save_file(weights, folder / "trained/model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def published(tmp_path: Path, folders: Path) -> Path:
    return Path(shutil.copytree(folders / "published", tmp_path / "published"))


@pytest.fixture
def ours(tmp_path: Path, folders: Path) -> Path:
    return Path(shutil.copytree(folders / "trained", tmp_path / "trained"))


def test_code_configuration_and_tokenizer_are_the_published_ones(
    tmp_path: Path, published: Path, ours: Path
) -> None:
    for name in ("modeling_internvl_chat.py", "conversation.py", "setup.py"):
        with open(published / name, "a") as file:
            file.write(f"\nopen({str(tmp_path / 'was_run')!r}, 'w')\nraise SystemExit(3)\n")
    (published / "model.safetensors").unlink()  # the weights need not be there
    report = export(str(ours), str(tmp_path / "new"), code=str(published))
    assert report.logits == 0.0
    for name in (*SMALL, "tokenizer.model", *(file.name for file in CODE.glob("*.py"))):
        old, new = ((folder / name).read_bytes() for folder in (published, tmp_path / "new"))
        same = json.loads(old) == json.loads(new) if name.endswith(".json") else old == new
        assert same, name
    assert not (tmp_path / "was_run").exists()
    code = {path.name for path in (tmp_path / "new").glob("*.py")}  # nothing names setup.py
    assert code == {path.name for path in CODE.glob("*.py")}
    assert not (tmp_path / "new/tokenizer.json").exists()
    found, wanted = (load_file(f / "model.safetensors") for f in (tmp_path / "new", ours))
    assert found.keys() == wanted.keys()
    assert all(found[name].equal(value) for name, value in wanted.items())
    template = (tmp_path / "new" / CHAT_TEMPLATE_NAME).read_text()
    assert '"<image>\\n"' in template
    assert "你是由上海人工智能实验室" in template


def hub_cache(folder: Path) -> Path:
    """A folder as huggingface_hub keeps it: links to files beside it."""
    blobs, snapshot = (folder.with_name("models--o--n") / name for name in ("blobs", "snapshots/1"))
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / str(number), snapshot))
    return snapshot


def test_what_training_changed_is_said(tmp_path: Path, published: Path, ours: Path) -> None:
    changed(ours / "config.json", max_dynamic_patch=3, use_thumbnail=True)
    code = str(hub_cache(published))
    export(str(ours), str(tmp_path / "new"), code=code, dtype=torch.bfloat16)
    assert not any(path.is_symlink() for path in (tmp_path / "new").iterdir())
    old, new = (json.loads((f / "config.json").read_text()) for f in (published, tmp_path / "new"))
    assert new["llm_config"] == {**old["llm_config"], "torch_dtype": "bfloat16"}
    assert new["vision_config"] == {**old["vision_config"], "torch_dtype": "bfloat16"}
    expected = {**old, "max_dynamic_patch": 3, "use_thumbnail": True, "torch_dtype": "bfloat16"}
    assert {**new, "llm_config": 0, "vision_config": 0} == {
        **expected,
        "llm_config": 0,
        "vision_config": 0,
    }


def test_an_adapter_is_merged_and_a_cut_is_indexed(
    tmp_path: Path, published: Path, ours: Path
) -> None:
    save_lora(ours, tmp_path / "lora", adapter_only=True)
    report = export(
        str(tmp_path / "lora"), str(tmp_path / "new"), code=str(published), max_shard_bytes=20_000
    )
    assert report.merged == 22
    index = json.loads((tmp_path / "new/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == load_file(published / "model.safetensors").keys()


def test_a_tied_head_is_written_under_both_names(tmp_path: Path) -> None:
    """The published class ties nothing as it is loaded: a head that no file holds stays random."""
    published = save_published(tmp_path / "published", tie_word_embeddings=True)
    weights = load_file(published / "model.safetensors")
    assert "language_model.lm_head.weight" not in weights
    export(str(published), str(tmp_path / "new"), code=str(published))
    weights = load_file(tmp_path / "new/model.safetensors")
    head = weights["language_model.lm_head.weight"]
    assert head.equal(weights["language_model.model.embed_tokens.weight"])
    assert open_merged(str(tmp_path / "new")).config.llm_config.tie_word_embeddings  # one, here


def test_another_tokenizer_is_written_for_old_versions(
    tmp_path: Path, published: Path, ours: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (published / "tokenizer.model").unlink()
    export(str(ours), str(tmp_path / "new"), code=str(published))
    assert "holds no tokenizer: the model's own is written" in caplog.text
    written = json.loads((tmp_path / "new/tokenizer.json").read_text())
    assert all(isinstance(merge, str) for merge in written["model"]["merges"])
    text = "The square is red.<|im_end|> 你好"
    ids = [load_tokenizer(str(f))(text)["input_ids"] for f in (ours, tmp_path / "new")]
    assert ids[0] == ids[1]
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert "added_tokens.json" not in names


def test_a_run_remembers_where_it_began(
    tmp_path: Path, published: Path, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"arguments": {"model_name_or_path": "published"}}  # as it was typed, in tmp_path
    (ours / "provenance.json").unlink()
    with pytest.raises(CheckpointError, match=r"nothing says with which.*Give --code the folder"):
        remembered_code(str(ours))
    with pytest.raises(CheckpointError, match="no such directory"):
        remembered_code(str(ours / "mistyped"))
    (ours / "arguments.json").write_text(json.dumps(record))
    merged = tmp_path / "merged"
    merged.mkdir()
    history = {"history": [{"checkpoint": "gone"}, {"checkpoint": f"{ours} on elsewhere"}]}
    (merged / "provenance.json").write_text(json.dumps(history))
    monkeypatch.chdir(tmp_path)
    for folder in (ours, merged, published):
        assert Path(remembered_code(str(folder))).resolve() == published
    export(str(ours), str(tmp_path / "new"), code="base")
    code = (published / "conversation.py").read_text()
    assert (tmp_path / "new/conversation.py").read_text() == code
    (published / "conversation.py").unlink()
    with pytest.raises(CheckpointError, match=r"there is no conversation\.py in published"):
        export(str(ours), str(tmp_path / "again"), code="base")


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _with_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def _with_link(folder: Path) -> None:
    (folder / "conversation.py").unlink()
    (folder.parent / "elsewhere.py").write_text("")
    (folder / "conversation.py").symlink_to(folder.parent / "elsewhere.py")


MAPPED = "modeling_internvl_chat.InternVLChatModel"
UNFIT: dict[str, tuple[Callable[[Path], None], str]] = {
    "no configuration": (_without("config.json"), r"no config\.json in it"),
    "no modelling file": (
        _without("modeling_internvl_chat.py"),
        r"names the module 'modeling_internvl_chat', and there is no modeling_internvl_chat\.py",
    ),
    "an import is missing": (
        _without("conversation.py"),
        r"modeling_internvl_chat\.py: names the module 'conversation'.*Download all \*\.py",
    ),
    "no Python": (
        _with_text("conversation.py", "import dataclasses", "import <html>"),
        r"conversation\.py:3: is no Python",
    ),
    "another class": (
        _with_text("modeling_internvl_chat.py", "class InternVLChatModel", "class Model"),
        "looks for the class InternVLChatModel in it",
    ),
    "a link out of the folder": (_with_link, "is a link to .*elsewhere.py, outside the folder"),
    "code elsewhere": (
        _with_text("config.json", MAPPED, f"OpenGVLab/InternVL-Chat-V1-2--{MAPPED}"),
        "code of another repository that is not in this folder",
    ),
    "a path": (_with_text("config.json", MAPPED, f"../{MAPPED}"), "code that is not in this"),
    "no code": (_with_text("config.json", "auto_map", "automap"), "it comes without code"),
    "transformers' class": (
        _with_text("config.json", '["InternVLChatModel"]', '["InternVLForConditionalGeneration"]'),
        "--layout native",
    ),
    "no such template": (
        _with_text("conversation.py", "Hermes-2", "Hermes-3"),
        "no chat template 'Hermes-2', which this model was trained with",
    ),
    "other weights": (
        lambda folder: save_file({"head.weight": torch.ones(1)}, folder / "model.safetensors"),
        r"1 weights of it that are not here: head\.weight; 56 weights that it has not",
    ),
}


def require_fit(published: Path, values: dict[str, Any]) -> None:
    """The check of ``export``, for the model of a configuration."""
    config = InternVLChatConfig(**values)
    require_code_fits(read_code(str(published)), config, skeleton_of(config).shapes, "here")


def test_another_prompt_is_told(published: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = json.loads((published / "config.json").read_text())
    require_fit(published, values)
    assert caplog.text == ""
    require_fit(published, {**values, "system_message": "Be brief."})
    assert "has the system message '你是由上海" in caplog.text
    assert "training wrote 'Be brief.'" in caplog.text
    assert CHAT_TEMPLATE_NAME in caplog.text


@pytest.mark.parametrize("kind", UNFIT)
def test_code_that_does_not_fit_is_refused(published: Path, kind: str) -> None:
    config = json.loads((published / "config.json").read_text())
    spoil, message = UNFIT[kind]
    changed(published / "config.json")  # on one line, as the texts above look for it
    spoil(published)
    with pytest.raises(CheckpointError, match=message):
        require_fit(published, config)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (
            "vision_config",
            {"norm_type": "layer_norm"},
            "norm_type is 'layer_norm' here and 'rms_norm' there, and it reads no norm_type",
        ),
        (
            "llm_config",
            {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
            "the language model is a Qwen2ForCausalLM here and a LlamaForCausalLM there",
        ),
    ],
)
def test_a_model_that_the_code_computes_otherwise(
    published: Path, part: str, values: dict[str, Any], message: str
) -> None:
    config = json.loads((published / "config.json").read_text())
    config[part] |= values
    with pytest.raises(CheckpointError, match=message):
        require_fit(published, config)


def test_the_native_layout_takes_no_code(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="transformers' own class takes no code along"):
        export("anything", str(tmp_path / "new"), layout="native", code="any")


def test_values_keep_their_published_spelling() -> None:
    published = {"torch_dtype": "x", "llm_config": {"model_type": "llama", "rope_theta": 5}, "o": 1}
    theirs = {"llm_config": {"model_type": "llama", "rope_parameters": {"rope_theta": 5}}, "o": 1}
    same = merged_values(published, theirs, theirs)
    assert same == published
    ours = {"llm_config": {"model_type": "llama", "rope_parameters": {"rope_theta": 7}}, "new": 2}
    assert merged_values(published, ours, theirs) == {
        "torch_dtype": "x",
        "llm_config": {
            "model_type": "llama",
            "rope_theta": 5,
            "rope_parameters": {"rope_theta": 7},
        },
        "new": 2,
    }


def test_a_tokenizer_without_an_older_spelling_stays(caplog: pytest.LogCaptureFixture) -> None:
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    values = {"version": "1.0", "added_tokens": [], "pre_tokenizer": metaspace, "model": model}
    assert spell_for_old_tokenizers(values, "tokenizer.json") == values
    assert "needs tokenizers 0.20 or newer" in caplog.text
    never = {**values, "pre_tokenizer": {**metaspace, "prepend_scheme": "never"}}
    older = spell_for_old_tokenizers(never, "tokenizer.json")
    assert older["model"]["merges"] == ["a b"]
    assert older["pre_tokenizer"] is None
