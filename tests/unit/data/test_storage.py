"""Files of a root: on disk, in archives, in stores; and what is no file."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import socket
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from internvl_chat.data import archives, storage
from internvl_chat.data.archives import open_archive
from internvl_chat.data.images import load_image
from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.storage import exists, read_bytes, resolve_path
from internvl_chat.errors import DatasetError

FILES = {f"cats/{number}.txt": f"cat {number}".encode() * 9 for number in range(30)}
FILES |= {"ä/图.txt": b"odd", "top.txt": b"top", "empty.txt": b""}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVL_CHAT_CACHE", str(tmp_path / "cache"))
    archives._opened.cache_clear()


def write_zip(path: Path, files: dict[str, bytes] = FILES, method: int = 8) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("cats/", b"")
        for name, raw in files.items():
            archive.writestr(name, raw)
    return str(path)


def write_tar(path: Path, files: dict[str, bytes] = FILES, layout: int = tarfile.GNU_FORMAT) -> str:
    with tarfile.open(path, "w", format=layout) as archive:
        for name, raw in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return str(path)


def refused(path: str, match: str = "") -> BadRecordError:
    with pytest.raises(BadRecordError, match=match) as caught:
        read_bytes(path, where="a.jsonl:3")
    assert str(caught.value).startswith("a.jsonl:3: ")
    return caught.value


# -- on disk --------------------------------------------------------------------------------------


def test_what_is_no_file_is_told_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert refused(str(tmp_path / "s")).code == "UNREADABLE_FILE"
    assert "it is a named pipe" in refused(str(tmp_path / "pipe.jpg")).problem
    assert "it is a folder" in refused(str(tmp_path / "folder.jpg")).problem
    assert "it is a device" in refused("/dev/zero").problem
    assert refused(str(tmp_path / "gone.jpg")).code == "MISSING_FILE"
    assert refused(str(tmp_path / ("n" * 300))).code == "UNREADABLE_FILE"
    assert "surrogates not allowed" in refused(str(tmp_path / "\ud800.jpg")).problem


@pytest.mark.parametrize(
    "name",
    [
        "https://example.org/a.png",
        "s3://bucket/a.png",
        "file:///etc/a.png",
        "data:image/png;base64,AAAA",
        "data:image/png;base64," + "A" * 2_000_000,
    ],
)
def test_a_url_for_a_path_is_told_as_such_and_not_at_length(tmp_path: Path, name: str) -> None:
    path = resolve_path(str(tmp_path), name, where="a:1")
    with pytest.raises(BadRecordError, match="URLs are not fetched") as caught:
        read_bytes(path, where="a:1")
    assert len(str(caught.value)) < 1100
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


def test_a_name_with_nul_is_a_bad_record(tmp_path: Path) -> None:
    with pytest.raises(BadRecordError, match="NUL character"):
        resolve_path(str(tmp_path), "a\0.jpg", where="")
    assert "null byte" in refused(str(tmp_path / "a\0b")).problem
    assert not exists(str(tmp_path / "a\0b"))


def test_a_file_beyond_the_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(storage.MAX_FILE_BYTES + 1)  # a hole: no bytes on disk
    assert refused(str(tmp_path / "huge.jpg"), "2147483649 bytes").code == "FILE_TOO_LARGE"
    monkeypatch.setattr(storage, "MAX_FILE_BYTES", 100)
    packed = write_zip(tmp_path / "a.zip", {"large.txt": bytes(101)})
    assert refused(f"{packed}/large.txt").code == "FILE_TOO_LARGE"


# -- archives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["deflated", "stored", "gnu", "pax", "ustar"])
def test_a_root_may_be_an_archive(kind: str, tmp_path: Path) -> None:
    if kind in ("deflated", "stored"):
        root = write_zip(tmp_path / "a.zip", method=8 if kind == "deflated" else 0)
    else:
        layout = {
            "gnu": tarfile.GNU_FORMAT,
            "pax": tarfile.PAX_FORMAT,
            "ustar": tarfile.USTAR_FORMAT,
        }
        root = write_tar(tmp_path / "a.tar", layout=layout[kind])
    for name, raw in FILES.items():
        assert read_bytes(resolve_path(root, name, where=""), where="") == raw
    below = resolve_path(f"{root}/cats/", "./7.txt", where="")
    assert read_bytes(below, where="") == FILES["cats/7.txt"]
    for there in (root, f"{root}/", f"{root}/cats", f"{root}/cats/", f"{root}/top.txt"):
        assert exists(there), there
    assert not exists(f"{root}/dogs")
    assert not exists(f"{root}/cats/31.txt")


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_long_names(write: Any, tmp_path: Path) -> None:
    name = "/".join(["folder" * 20] * 3) + "/" + "n" * 200
    root = write(tmp_path / "a", {name: b"found"})
    assert read_bytes(f"{root}/{name}", where="") == b"found"


def test_a_missing_member_is_told_with_near_names(tmp_path: Path) -> None:
    root = write_zip(tmp_path / "a.zip")
    assert "Did you mean 'cats/3.txt'?" in str(refused(f"{root}/3.txt"))
    assert "Did you mean 'top.txt'?" in str(refused(f"{root}/other/top.txt"))
    assert "Did you mean 'cats/" in str(refused(f"{root}/cats/31.txt"))
    assert f"has {len(FILES)} files" in str(refused(f"{root}/zzzzzzzz"))
    assert refused(f"{root}/zzzzzzzz").code == "MISSING_FILE"


def test_paths_do_not_leave_an_archive(tmp_path: Path) -> None:
    root = write_zip(tmp_path / "a.zip", {"../out.txt": b"x", "/abs.txt": b"x", "a/../b.txt": b"b"})
    (tmp_path / "out.txt").write_text("secret")
    for path in ("../out.txt", "a/../../out.txt", "/etc/passwd"):
        with pytest.raises(BadRecordError, match="lies outside"):
            resolve_path(root, path, where="")
    assert open_archive(root).read("b.txt") == b"b"
    for name in ("../out.txt", "/abs.txt", "abs.txt", "out.txt"):
        with pytest.raises(archives.NoMemberError):
            open_archive(root).read(name)


def test_links_in_a_tar_stay_within_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("real/a.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"real"))
        links = {
            "hard.txt": (tarfile.LNKTYPE, "real/a.txt"),
            "b/s.txt": (tarfile.SYMTYPE, "../real/a.txt"),
        }
        links |= {"out.txt": (tarfile.SYMTYPE, "/etc/passwd"), "up.txt": (tarfile.SYMTYPE, "../x")}
        for name, (kind, target) in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    assert (
        read_bytes(f"{path}/hard.txt", where="")
        == read_bytes(f"{path}/b/s.txt", where="")
        == b"real"
    )
    for name in ("out.txt", "up.txt"):
        assert refused(f"{path}/{name}").code == "MISSING_FILE"


def test_damaged_and_unreadable_archives(tmp_path: Path) -> None:
    whole = Path(write_zip(tmp_path / "a.zip", {"a.txt": bytes(range(256)) * 40}, method=0))
    raw = whole.read_bytes()
    place = raw.index(bytes(range(256)))
    whole.write_bytes(raw[:place] + b"\xff" + raw[place + 1 :])
    assert "checksum is wrong" in refused(f"{whole}/a.txt").problem
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(write_tar(tmp_path / "w.tar", {"a.txt": bytes(9000)})).read_bytes()[:4000])
    assert "is damaged: unexpected end of data" in refused(f"{cut}/a.txt").problem
    (tmp_path / "b.txt").write_text("text")
    assert "no zip or tar archive" in refused(f"{tmp_path}/b.txt/a.txt").problem
    (tmp_path / "broken.zip").write_bytes(raw[:-30] + b"PK\5\6" + bytes(18))
    assert refused(f"{tmp_path}/broken.zip/a.txt").code in ("UNREADABLE_FILE", "MISSING_FILE")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "b.txt", "b.txt")
    assert "compressed tar" in refused(f"{tmp_path}/a.tar.gz/b.txt").problem
    write_zip(tmp_path / "lzma.zip", {"a.txt": b"x"}, method=zipfile.ZIP_LZMA)
    assert "another method than deflate" in refused(f"{tmp_path}/lzma.zip/a.txt").problem


def test_a_member_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path: Path) -> None:
    path = Path(write_zip(tmp_path / "a.zip", {"a.txt": bytes(50_000_000)}))
    raw = bytearray(path.read_bytes())
    directory = raw.rindex(b"PK\1\2")
    raw[directory + 24 : directory + 28] = (10).to_bytes(4, "little")
    path.write_bytes(raw)
    assert "11 of its 10 bytes" in refused(f"{path}/a.txt").problem


def test_the_index_is_built_once_and_anew_for_a_changed_file(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.txt": b"one"})
    assert read_bytes(f"{path}/a.txt", where="") == b"one"
    (index,) = (tmp_path / "cache").glob("*.members.npy")
    before = index.stat().st_mtime_ns
    archives._opened.cache_clear()
    assert read_bytes(f"{path}/a.txt", where="") == b"one"
    assert index.stat().st_mtime_ns == before
    write_tar(tmp_path / "a.tar", {"a.txt": b"two!"})
    archives._opened.cache_clear()
    assert read_bytes(f"{path}/a.txt", where="") == b"two!"


class _Members(Dataset[bytes]):
    def __init__(self, root: str) -> None:
        self.root, self.names = root, sorted(FILES)
        read_bytes(f"{root}/{self.names[0]}", where="")  # open before the workers are forked

    def __len__(self) -> int:
        return 20 * len(self.names)

    def __getitem__(self, index: int) -> bytes:
        return read_bytes(f"{self.root}/{self.names[index % len(self.names)]}", where="")


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_forked_workers_read_the_same_archive(write: Any, tmp_path: Path) -> None:
    members = _Members(write(tmp_path / "a"))
    loader: Any = DataLoader(
        members, batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    names = sorted(FILES)
    assert list(loader) == [FILES[names[index % len(names)]] for index in range(len(members))]


# -- stores ---------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Any:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_a_root_may_be_a_store(memory: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    memory.pipe("/photos/cats/a.png", buffer.getvalue())
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats/a.png").write_bytes(buffer.getvalue())
    packed = write_zip(tmp_path / "p.zip", {"in/cats/a.png": buffer.getvalue()})
    for root in (
        "memory://photos/",
        "memory://photos",
        f"file://{tmp_path}",
        f"zip://in::file://{packed}",
    ):
        place = resolve_path(root, "./cats/a.png", where="")
        assert np.asarray(load_image(place)).mean(axis=(0, 1)).tolist() == [255, 0, 0], root
        assert exists(place)
        assert not exists(resolve_path(root, "cats/b.png", where=""))
        assert refused(resolve_path(root, "cats/b.png", where="")).code == "MISSING_FILE"
        for path in ("../secret", "cats/../../x", "/etc/passwd", "http://host/a.png", "a::b"):
            with pytest.raises(BadRecordError, match="lies outside"):
                resolve_path(root, path, where="")


def test_a_store_whose_package_is_missing_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match=r"Protocol not known|fsspec cannot open it"):
        read_bytes("nosuchstore://bucket/a.png", where="")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(DatasetError, match=r"pip install .*storage") as caught:
        read_bytes("s3://bucket/a.png", where="")
    assert not isinstance(caught.value, BadRecordError)


def test_a_stores_own_failures_are_bad_records(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/a.png", b"x")
    failures: list[Exception] = [RuntimeError("denied"), OSError("no such bucket"), KeyError("x")]
    for failure in failures:

        def fail(*_: Any, failure: Exception = failure, **__: Any) -> bytes:
            raise failure

        monkeypatch.setattr(type(memory), "cat_file", fail)
        assert refused("memory://a.png").code == "UNREADABLE_FILE"
    waits: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waits.append)

    def reset(*_: Any, **__: Any) -> bytes:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    monkeypatch.setattr(type(memory), "cat_file", reset)
    assert "reset" in refused("memory://a.png").problem
    assert waits == [0.1, 0.4, 1.6]


def try_damaged_archives(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Outcomes of reading members of archives with bytes changed, lost or added."""
    draw, outcomes = random.Random(seed), {"as written": 0, "refused": 0, "otherwise": 0}
    whole = [Path(write(folder / "whole")).read_bytes() for write in (write_zip, write_tar)]
    for number in range(count):
        data = bytearray(draw.choice(whole))
        for _ in range(draw.randint(1, 5)):
            place = draw.randrange(len(data))
            if draw.random() < 0.5:  # in the directory of a zip, the header of a tar
                place = draw.randrange(max(len(data) - 3000, 0), len(data))
            data[place : place + draw.choice([0, 1, 4, 500])] = draw.randbytes(
                draw.choice([0, 1, 4])
            )
        path = folder / f"{number}.archive"
        path.write_bytes(data)
        for name in draw.sample(sorted(FILES), 3):
            try:
                found = read_bytes(f"{path}/{name}", where="a.jsonl:1")
            except BadRecordError:
                outcomes["refused"] += 1
            else:
                outcomes["as written" if found == FILES[name] else "otherwise"] += 1
        path.unlink()
    return outcomes


def test_damaged_archives_are_read_or_refused(tmp_path: Path) -> None:
    outcomes = try_damaged_archives(tmp_path, 150, seed=3)
    assert outcomes["as written"] > 50
    assert outcomes["refused"] > 50
    # tar keeps no checksum of what is in its members
    assert outcomes["otherwise"] < 30
