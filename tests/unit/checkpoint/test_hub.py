"""Models on the hub: which names are one, what is fetched, what is told when that fails."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save

from internvl_chat.checkpoint import hub as fetching
from internvl_chat.checkpoint.hub import (
    cached_model,
    local_code,
    local_file,
    local_model,
)
from internvl_chat.checkpoint.hub_commits import current_commit, pinned_model
from internvl_chat.checkpoint.hub_errors import NoRoomError
from internvl_chat.checkpoint.hub_names import (
    as_path,
    hub_name,
    last_part,
    name_of_snapshot,
    path_hint,
    portable_name,
)
from internvl_chat.checkpoint.hub_progress import (
    StoppedError,
    download_bar,
    interruptible,
    with_bars,
)
from internvl_chat.checkpoint.identity import model_identity
from internvl_chat.checkpoint.sources import require_config, resolve_adapter_base
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.errors import CheckpointError
from internvl_chat.evaluation.fingerprints import checkpoint_fingerprint
from tests.support.checkpoints import tiny_tokenizer
from tests.support.hub import Hub, fill_cache
from tests.support.hub_fixtures import go_offline

NAME = "Org/Model"
CONFIG = json.dumps({"model_type": "internvl_chat", "llm_config": {}}).encode()
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
SHARDS = {
    "model-1.safetensors": save({"a": torch.zeros(5000)}),
    "model-2.safetensors": save({"b": torch.ones(1)}),
}
MODEL = {
    "config.json": CONFIG,
    "tokenizer.json": b"{}",
    "README.md": b"about it",
    "model.safetensors.index.json": INDEX.encode(),
    **SHARDS,
}
OTHERS = {
    "pytorch_model.bin": b"a pickle",
    "consolidated.safetensors": b"the same again",
    "modeling_x.py": b"raise SystemExit",
    "LICENSE.txt": b"free",
    "onnx/model.safetensors": b"of another program",
}


def told(name: str, need: fetching.Need = "model") -> str:
    with pytest.raises(CheckpointError) as caught:
        local_model(name, need)
    assert caught.value.exit_code == 2
    return str(caught.value)


def names_in(directory: str) -> set[str]:
    return {path.name for path in Path(directory).iterdir()}


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "repo", "revision", "file"),
    [
        ("Org/Model", "Org/Model", None, None),
        ("Org/Model-1.2_b@main", "Org/Model-1.2_b", "main", None),
        ("Org/Model@refs/pr/1", "Org/Model", "refs/pr/1", None),
        ("hf://Org/Model", "Org/Model", None, None),
        ("hf:/Org/Model@v1", "Org/Model", "v1", None),  # what pathlib makes of it
        ("hf://Org/Model@v1/sub/mlp.pth", "Org/Model", "v1", "sub/mlp.pth"),
        ("hf://Org/Model@refs/pr/1/mlp.pth", "Org/Model", "refs/pr/1", "mlp.pth"),
    ],
)
def test_a_name_is_a_model(text: str, repo: str, revision: str | None, file: str | None) -> None:
    found = hub_name(text)
    assert found is not None
    assert (found.repo, found.revision, found.file) == (repo, revision, file)


@pytest.mark.parametrize(
    "text",
    [
        *("model", "./Org/Model", "../Model", "/Org/Model", "~/Model", "a/b/c", "Org/Model/", "."),
        *("Org/Model--1", "Org/..", "Org/Mod..el", "Org/Model.git", "-Org/Model", "Org /Model", ""),
        *("here/Model", "here/there", "Org/Model@", "https://huggingface.co/Org/Model"),
    ],
)
def test_a_path_is_none(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistyped ones, too: they ask no network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here/there").mkdir(parents=True)
    assert hub_name(text) is None
    assert local_model(text) == text


def test_a_mistyped_path_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretrained").mkdir()
    with pytest.raises(CheckpointError) as caught:
        require_config("pretrained/Model")
    assert str(caught.value) == (
        "pretrained/Model: no such directory. Correct the path; the model of that name on the hub "
        "is hf://pretrained/Model (the folder pretrained is here, so it is taken for a path)."
    )
    assert path_hint("./x") == "Correct the path, or give a model on the hub as ORG/NAME."


def test_a_directory_goes_before_the_model_of_its_name(
    hub_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fill_cache(hub_cache, NAME, MODEL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    with caplog.at_level(logging.INFO):
        assert local_model(NAME) == NAME
    assert f"{NAME} is the directory here; the model of that name on the hub is hf://" in (
        caplog.text
    )
    pinned = name_of_snapshot(local_model(f"hf://{NAME}"))
    assert hub_name(str(pinned)) == pinned  # also where its folder is here


def test_what_a_model_is_called() -> None:
    assert last_part("Org/Model@v1") == last_part("hf://Org/Model") == "Model"
    assert as_path("hf://Org/Model@refs/pr/1") == "Org/Model@refs-pr-1"
    assert as_path("work_dirs/my/run") == "work_dirs/my/run"


# ---- fetching -----------------------------------------------------------------------------------


def test_needed_files_are_fetched_once_and_no_others(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add(NAME, MODEL | OTHERS)
    settings = local_model(NAME, "settings")
    assert names_in(settings) == set(MODEL) - set(SHARDS)
    with caplog.at_level(logging.INFO):
        assert local_model(NAME) == settings
    assert names_in(settings) == set(MODEL)
    assert "downloading 20.1 kB in 2 files into" in caplog.text
    hub.requests.clear()
    assert local_model(NAME) == settings
    assert [path for _, path, _ in hub.requests] == [f"/api/models/{NAME}/revision/main"]
    hub.requests.clear()
    assert local_model(pinned_model(NAME)) == settings
    assert len(hub.requests) == 1  # what the branch is; a commit is not asked for


def test_pickles_are_fetched_where_there_is_nothing_else(hub: Hub) -> None:
    files = {"config.json": b"{}", "pytorch_model.bin": b"a pickle", "training_args.bin": b"code"}
    hub.add(NAME, files)
    assert names_in(local_model(NAME)) == {"config.json", "pytorch_model.bin"}


def test_code_is_fetched_for_who_copies_it_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, MODEL | OTHERS)
    place = local_code(NAME)
    assert names_in(place) == (set(MODEL) - set(SHARDS)) | {"modeling_x.py", "LICENSE.txt"}
    go_offline(monkeypatch)
    assert local_code(NAME) == place
    assert local_code("./pretrained/x") == "./pretrained/x"


def test_a_branch_moves(hub: Hub) -> None:
    repository = hub.add(NAME, MODEL)
    first = local_model(NAME)
    second = repository.push({**MODEL, "tokenizer.json": b"[]"})
    assert name_of_snapshot(local_model(NAME)) == hub_name(f"{NAME}@{second}")
    assert local_model(portable_name(first)) == first
    assert current_commit(hub_name(NAME)) == second  # type: ignore[arg-type]


def test_a_connection_that_breaks_is_taken_up_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.add(NAME, MODEL)
    hub.cuts_after = 15_000
    place = local_model(NAME)
    ranges = [ranged for method, path, ranged in hub.requests if "/cdn/" in path and ranged]
    assert ranges == ["bytes=15000-"]
    assert (Path(place) / "model-1.safetensors").read_bytes() == MODEL["model-1.safetensors"]


def test_what_arrived_before_a_process_died_stays(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import file_download

    hub.add(NAME, MODEL)
    real = file_download.http_get

    def dies(url: str, file: Any, **options: Any) -> None:
        if "/cdn/" in url:
            raise ConnectionError("the network is gone")
        real(url, file, **options)

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", dies)
        error = told(NAME)
    assert error.endswith(
        f"its download from {hub.address} broke off (the network is gone). Start again, files that "
        "have arrived whole are kept; or, where there is network, download with: "
        f"hf download {NAME} --revision {pinned_model(NAME).partition('@')[2]}"
    )
    hub.requests.clear()
    local_model(NAME)
    assert [
        path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path
    ] == []
    assert len(hub.asked("GET", "/cdn/")) == 1


def test_a_file_of_a_model(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, {"mlp/one.safetensors": SHARDS["model-2.safetensors"], "config.json": b"{}"})
    place = local_file(f"hf://{NAME}/mlp/one.safetensors")
    assert Path(place).read_bytes() == SHARDS["model-2.safetensors"]
    assert local_file("./mlp.pth") == "./mlp.pth"
    assert local_file(portable_name(place)) == place
    go_offline(monkeypatch)
    assert local_file(f"hf://{NAME}/mlp/one.safetensors") == place
    for name, problem in (
        (NAME, "is a model, and a file of it is wanted. Name the file: hf://Org/Model/FILE"),
        (f"hf://{NAME}/two.pth", "hf download Org/Model"),
    ):
        with pytest.raises(CheckpointError) as caught:
            local_file(name)
        assert problem in str(caught.value)
    assert "names the file x.pth. Give the model: Org/Model" in told(f"hf://{NAME}/x.pth")


# ---- a cache alone ------------------------------------------------------------------------------


def test_a_cache_is_enough_without_network(hub_cache: Path) -> None:
    snapshot = fill_cache(hub_cache, NAME, MODEL)
    assert local_model(NAME) == local_model(portable_name(str(snapshot))) == str(snapshot)
    assert cached_model(NAME) == str(snapshot)
    assert portable_name(str(snapshot)) == f"{NAME}@{snapshot.name}"


@pytest.mark.parametrize("lost", ["model-2.safetensors", "config.json"])
def test_a_part_of_a_model_is_none(hub_cache: Path, lost: str) -> None:
    fill_cache(hub_cache, NAME, {name: one for name, one in MODEL.items() if name != lost})
    assert told(NAME) == (
        f"{NAME}: no such directory, and the model of that name is only in part in the hub's cache "
        "while HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set. On a machine with network, "
        f"download with: hf download {NAME}"
    )


def test_offline_and_not_there(hub_cache: Path) -> None:
    assert told(f"{NAME}@v1") == (
        f"{NAME}@v1: no such directory, and the model of that name is not in the hub's cache while "
        "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set. On a machine with network, "
        f"download with: hf download {NAME} --revision v1"
    )
    assert cached_model(NAME) == NAME


def test_a_tokenizer_from_a_cache(hub_cache: Path, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    files = {path.name: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()}
    fill_cache(hub_cache, NAME, files)
    assert len(load_tokenizer(NAME)) == len(tiny_tokenizer())


def test_a_copy_is_the_same_model(hub_cache: Path, tmp_path: Path) -> None:
    """Whatever else other programs have brought into the cache."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in MODEL.items():
        (copy / name).write_bytes(content)
    snapshot = fill_cache(hub_cache, NAME, MODEL | OTHERS)
    assert model_identity(snapshot) == model_identity(copy)
    assert checkpoint_fingerprint(str(snapshot)) == checkpoint_fingerprint(str(copy))


@pytest.mark.parametrize("revision", [None, "v1"])
@pytest.mark.parametrize("written", [False, True])
def test_an_adapter_names_its_base(
    hub: Hub, tmp_path: Path, revision: str | None, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In PEFT's own way, or behind the name."""
    repository = hub.add(NAME, MODEL)
    first = repository.branches["main"]
    repository.branches["v1"] = first
    second = repository.push({**MODEL, "tokenizer.json": b"[]"})
    at = f"@{revision}" if written and revision else ""
    values = {"base_model_name_or_path": f"{NAME}{at}", "revision": None if written else revision}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="not in the hub's cache"):
        resolve_adapter_base(tmp_path)
    assert local_model(tmp_path) == str(tmp_path)
    base = resolve_adapter_base(tmp_path)
    go_offline(monkeypatch)
    assert local_model(tmp_path) == str(tmp_path)
    assert base.name == (first if revision else second)
    assert set(MODEL) == names_in(str(base))


def test_a_base_is_brought_though_its_folder_is_here(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add(NAME, MODEL).branches["main"]
    monkeypatch.chdir(tmp_path)
    Path("Org").mkdir()
    adapter = Path("Org/mine")
    adapter.mkdir()
    values = {"base_model_name_or_path": NAME, "revision": commit}
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    local_model(adapter)
    assert resolve_adapter_base(adapter).name == commit


def test_an_adapter_on_the_hub_brings_its_base(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add(NAME, MODEL | OTHERS).branches["main"]
    values = {"base_model_name_or_path": NAME, "revision": commit}
    files = {
        "adapter_config.json": json.dumps(values).encode(),
        "adapter_model.safetensors": SHARDS["model-2.safetensors"],
        "checkpoint-1/adapter_model.safetensors": b"an earlier one",
    }
    hub.add("Org/Adapter", files)
    settings = local_model("Org/Adapter", "settings")
    assert names_in(settings) == {"adapter_config.json"}
    assert names_in(str(resolve_adapter_base(Path(settings)))) == set(MODEL) - set(SHARDS)
    place = local_model("Org/Adapter")
    assert names_in(place) == {"adapter_config.json", "adapter_model.safetensors"}
    assert names_in(str(resolve_adapter_base(Path(place)))) == set(MODEL)
    go_offline(monkeypatch)
    assert local_model("Org/Adapter") == place


def test_an_adapter_whose_base_is_not_to_be_had(hub_cache: Path, tmp_path: Path) -> None:
    values = {"base_model_name_or_path": NAME, "revision": "v1"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    error = told(str(tmp_path))
    assert error.startswith(
        f"{tmp_path}/adapter_config.json: base_model_name_or_path {NAME}@v1: no such directory, and"
    )
    assert error.endswith(f"hf download {NAME} --revision v1")


# ---- what goes wrong ----------------------------------------------------------------------------


def test_there_is_no_such_model(hub: Hub) -> None:
    assert told("Org/None") == (
        "Org/None: no such directory, and no such model on the hub. Correct the name; a private "
        "model needs `hf auth login` (or HF_TOKEN)."
    )


def test_there_is_no_such_revision(hub: Hub) -> None:
    hub.add(NAME, MODEL)
    assert told(f"{NAME}@v9") == (
        f"{NAME}@v9: the model has no revision v9. Its branches, tags and commits: "
        f"{hub.address}/{NAME}/commits."
    )


def test_a_licence_is_to_be_accepted(hub: Hub) -> None:
    hub.add(NAME, MODEL).is_gated = True
    assert told(NAME) == (
        f"{NAME}: the model is gated. Accept the licence at {hub.address}/{NAME}, then "
        "`hf auth login` (or set HF_TOKEN)."
    )


def test_the_hub_is_not_reached(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, MODEL)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    error = told(NAME)
    assert f"{NAME}: no such directory, and http://127.0.0.1:1 cannot be reached" in error
    assert f"download with: hf download {NAME}" in error
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    place = local_model(NAME)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert local_model(NAME) == place  # what is here is enough


def test_there_is_no_room_for_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, MODEL)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "20.1 kB are to be downloaded, and 1 kB are free in" in told(NAME)
    assert not hub.asked("GET", "/cdn/")


def test_the_disk_fills_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download

    hub.add(NAME, MODEL)

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(file_download, "http_get", fails)
    with pytest.raises(NoRoomError) as caught:
        local_model(NAME)
    assert caught.value.exit_code == 7
    assert str(caught.value).startswith(f"{NAME}: No space left on device in ")


def test_the_cache_is_somebody_elses(
    hub: Hub, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, MODEL)
    hub_cache.parent.mkdir()
    hub_cache.write_text("a file")
    assert "cannot be written into the hub's cache" in told(NAME)
    hub_cache.unlink()
    hub_cache.symlink_to("/proc/nobody/hub")  # where nothing can be made
    assert "cannot be written into the hub's cache" in told(NAME)


def test_lines_tell_how_far_it_has_come(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = iter([0.0, 10.0, 31.0])
    monkeypatch.setattr("internvl_chat.checkpoint.hub_progress.time.monotonic", seconds.__next__)
    bar = download_bar("Org/Model", threading.Event())(
        name="huggingface_hub.snapshot_download", total=4_000_000_000
    )
    with caplog.at_level(logging.INFO):
        bar.update(1_000_000_000)
        bar.update(500_000_000)
    assert [one.message for one in caplog.records] == ["Org/Model: 1.50 of 4.00 GB are here"]


def test_bars_are_shown_though_transformers_puts_them_out() -> None:
    from huggingface_hub import utils

    utils.disable_progress_bars()
    try:
        with with_bars():
            assert not utils.are_progress_bars_disabled()
        assert utils.are_progress_bars_disabled()
    finally:
        utils.enable_progress_bars()


def test_a_cache_behind_a_link(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = fill_cache(hub_cache, NAME, MODEL)
    (tmp_path / "link").symlink_to(hub_cache)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "link"))
    assert portable_name(local_model(NAME)) == f"{NAME}@{snapshot.name}"
    for place in (snapshot, tmp_path / "link" / snapshot.relative_to(hub_cache)):
        assert portable_name(str(place)) == f"{NAME}@{snapshot.name}"
        file = f"hf://{NAME}@{snapshot.name}/config.json"
        assert portable_name(str(place / "config.json")) == file


def test_ctrl_c_waits_for_no_file() -> None:
    """The threads of a download end with the next piece that arrives."""
    stopped = threading.Event()

    def work(stop: threading.Event) -> None:
        bar = download_bar(None, stop)(name="huggingface_hub.snapshot_download", total=10)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(60)
        with pytest.raises(StoppedError):
            bar.update(1)
        stopped.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interruptible(work)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.wait(60)
