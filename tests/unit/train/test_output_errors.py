"""An OUTPUT_DIR that cannot be written into."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from internvl_chat.errors import ConfigError
from internvl_chat.train.metrics import NonFiniteError
from internvl_chat.train.output_errors import (
    OutputError,
    require_writable,
    telling_of_output,
    writing_problem,
)


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    require_writable(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []
    (tmp_path / "a/b/mine").write_text("kept")
    require_writable(tmp_path / "a/b")
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["mine"]


def file_in_the_way(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


def dangling_link(tmp_path: Path) -> Path:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere/at/all")
    return tmp_path / "link"


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        (lambda tmp: file_in_the_way(tmp), "File exists"),
        (lambda tmp: file_in_the_way(tmp) / "run", "Not a directory"),
        (lambda tmp: dangling_link(tmp), "File exists"),
        (lambda tmp: Path("/proc/run"), "No such file or directory"),  # nobody may write there
        (lambda tmp: tmp / ("n" * 300), "File name too long"),
        (lambda tmp: tmp / "a\0b", "null"),
    ],
)
def test_what_is_wrong_from_the_start(
    tmp_path: Path, folder: Callable[[Path], Path], reason: str
) -> None:
    output_dir = folder(tmp_path)
    with pytest.raises(ConfigError) as caught:
        require_writable(output_dir)
    assert caught.value.exit_code == 2
    assert f"--output_dir {output_dir}: cannot be written into" in str(caught.value)
    assert reason in str(caught.value)


def full(work: Callable[[], object], limit: int = 1000) -> BaseException:
    """What is raised where files may have no more than ``limit`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        work()
    except (OSError, RuntimeError, SafetensorError) as err:
        return err
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    raise AssertionError("it was written")


def test_every_library_is_understood(tmp_path: Path) -> None:
    large = torch.zeros(10_000)
    for work in (
        lambda: torch.save(large, tmp_path / "optimizer.pt"),
        lambda: save_file({"a": large}, tmp_path / "model.safetensors"),
        lambda: (tmp_path / "text").write_text("a" * 10_000),
    ):
        err = full(work)
        found = writing_problem(err, tmp_path)
        assert found is not None, repr(err)
        assert "too large" in found[1] or "to its end" in found[1]
    library = Exception("No space left on device (os error 28)")  # tokenizers raises no other
    assert writing_problem(library, tmp_path) == (str(tmp_path), "No space left on device")
    outer = RuntimeError("of a library")
    outer.__cause__ = OSError(errno.EROFS, "read-only", str(tmp_path / "x"))
    assert writing_problem(outer, tmp_path) == (f"{tmp_path}/x", "Read-only file system")
    copy = OSError(errno.ENOSPC, "full", "/package/chat.py", None, "/cache/chat.py")
    assert writing_problem(copy, tmp_path) == ("/cache/chat.py", "No space left on device")
    sent = OSError("Caught OSError in DataLoader worker process 0.\nOSError: [Errno 28] No space")
    assert writing_problem(sent, tmp_path) == (str(tmp_path), "No space left on device")


@pytest.mark.parametrize(
    "err",
    [
        ValueError("a bug"),
        KeyboardInterrupt(),
        FileNotFoundError(errno.ENOENT, "gone", "/elsewhere/data.jsonl"),
        PermissionError(errno.EACCES, "not yours", "/elsewhere/data.jsonl"),
        RuntimeError("unable to write to file </torch_1>: No space left on device (os error 28)"),
        Exception("no such thing (os error 2)"),
    ],
)
def test_other_errors_stay_what_they_are(err: BaseException, tmp_path: Path) -> None:
    assert writing_problem(err, tmp_path) is None
    with pytest.raises(type(err)) as caught, telling_of_output(tmp_path, is_main=True):
        raise err
    assert caught.value is err


def test_the_line_says_where_it_goes_on_and_makes_room_for_the_status(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-4.incomplete").mkdir()

    def fail() -> None:
        raise OSError(errno.ENOSPC, "full", str(tmp_path / "checkpoint-4.incomplete/a"))

    with pytest.raises(OutputError) as caught, telling_of_output(tmp_path, is_main=False):
        fail()
    assert (tmp_path / "checkpoint-4.incomplete").is_dir()
    with pytest.raises(OutputError) as caught, telling_of_output(tmp_path, is_main=True):
        fail()
    assert not (tmp_path / "checkpoint-4.incomplete").exists()
    told = str(caught.value)
    assert told.startswith(
        f"{tmp_path}/checkpoint-4.incomplete/a: cannot be written any more: No space left on "
        "device. Make room or mend the disk ("
    )
    assert told.endswith("start the same command again: it goes on from checkpoint-2.")
    assert "\n" not in told
    with pytest.raises(NonFiniteError), telling_of_output(tmp_path, is_main=True):
        raise NonFiniteError("loss is nan")
