"""The program that decodes video files, in a process of its own that may crash, hang and be killed.

``process.py`` starts it. A request is a line of JSON on stdin; the answer, on stdout, is a line of
JSON and the bytes that it announces. It is one file and imports nothing of the package, so that it
starts in 0.3 s.

Every reader gives a frame only if it is the one asked for, whole: where the decoder lost, repeated
or patched an image, ``DamagedError`` is raised instead. FFmpeg tells such things to its log only,
so the log is read, too: this process's stderr is a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, Protocol

import numpy as np

_F_SETPIPE_SZ: Final = 1031  # of linux/fcntl.h
_SOON_DECODED: Final = 3000
"""Frames that are read in order sooner than one would look into whether seeks are exact."""
_FARTHEST_REORDER: Final = 32
"""Frames; H.264 and HEVC allow 16."""
_TRIED_JUMPS: Final = 8
_LARGEST_INDEX: Final = 1 << 28
"""Bytes of an MP4's tables: a day of video has less."""
_LONGEST_SECONDS: Final = 1e9
"""Times beyond it are FFmpeg's mark for none."""
_JUMP_FRAMES: Final = 12
"""What a seek costs decord, in decoded frames: it decodes the first one twice and looks around."""

_DECODER_LINE: Final = re.compile(r"^\[(\w[\w,.]*) @ 0x[0-9a-f]+\] (.*)")
_CONTAINERS: Final = re.compile(r"mov|matroska|webm|avi|flv|asf|mpeg(ts)?$|ogg|rm|nut|mxf|swscaler")
# What demuxers say of the image data; much else that they say is about tags, audio and indexes.
_CUT_OFF: Final = re.compile(
    r"partial file|read error|truncated|ended prematurely|corrupt|mismatch", re.I
)
# Errors by name that whole videos show as well: encoders that forget to tell of a dropped
# reference, and images before an open GOP's key frame after a seek, which are not used.
_HARMLESS: Final = re.compile(
    r"mmco: unref short|co located POCs|reference frames? .*exceeds|increasing reorder buffer"
    r"|missing reference \w+, default|missing during reorder|could not find ref with poc"
    r"|first slice .* missing|SEI type|oversized PPS|packed B-frames|deprecated pixel format"
    r"|last message repeated",
    re.I,
)


class DamagedError(Exception):
    """The file, or a frame that was asked for, cannot be decoded."""

    code = "BROKEN_VIDEO"


class TooLargeError(DamagedError):
    """Frames of more pixels than allowed."""

    code = "TOO_MANY_PIXELS"


class MissingReaderError(DamagedError):
    """The library is not there, or does not load."""

    code = "NO_READER"


class DecoderLog:
    """What FFmpeg wrote to this process's stderr, a file, since the last look."""

    def clear(self) -> None:
        """Begin anew."""
        with contextlib.suppress(OSError):  # a terminal, where a person tries this program
            os.ftruncate(2, 0)
            os.lseek(2, 0, os.SEEK_SET)

    def refuse_damage(self) -> None:
        """Raises:
        DamagedError: the decoder reported something that means lost or patched frames.
        """
        try:
            size = os.fstat(2).st_size
            raw = os.pread(2, min(size, 1 << 16), 0) if size else b""
        except OSError:
            return
        for line in raw.decode("utf-8", "replace").splitlines():
            if found := _DECODER_LINE.match(line):
                source, message = found.groups()
                if _CONTAINERS.match(source):
                    is_damage = _CUT_OFF.search(message)
                else:
                    is_damage = None if _HARMLESS.search(message) else found
                if is_damage:
                    raise DamagedError(f"is damaged: {source}: {message.strip()}")


class Reader(Protocol):
    """An open video file."""

    times: np.ndarray | None
    """(n + 1,) float64 seconds, ascending: of every frame, the first at 0, and the end of the last;
    None where the file does not say."""
    num_frames: int
    rate: float | None

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 of these frames, upright; ``numbers`` ascend.

        Raises:
            DamagedError: one of them cannot be had.
        """


def usable_times(starts: np.ndarray, end: float) -> np.ndarray | None:
    """Times from the first frame on; None where they are none.

    Args:
        starts: (n,) as the container gives them, ascending.
        end: of the last frame as stated. Durations are stated in decoding order, so among reordered
            frames this may be another's: it counts where the last frame clearly rests.
    """
    if len(starts) == 0 or not np.isfinite(starts).all() or np.abs(starts).max() > _LONGEST_SECONDS:
        return None
    if (np.diff(starts) <= 0).any():
        return None
    last = end - starts[-1] if np.isfinite(end) else 0.0
    if len(starts) > 1:
        mean = (starts[-1] - starts[0]) / (len(starts) - 1)
        last = last if last > 2 * mean else mean
    return np.append(starts, starts[-1] + (last if last > 0 else 0.04)) - starts[0]


def refuse_shuffled(shown: np.ndarray) -> None:
    """Look at the times of frames in decoding order.

    Raises:
        DamagedError: one is shown far from its turn, which no decoder could reorder: decord, which
            counts, would hand out another.
    """
    turns = np.argsort(np.argsort(shown, kind="stable"), kind="stable")
    if np.abs(turns - np.arange(len(shown))).max(initial=0) > _FARTHEST_REORDER:
        raise DamagedError("is damaged: its times are out of order")


def usable_rate(rate: float | None) -> float | None:
    """Frames per second; None for what cannot be one."""
    return float(rate) if rate and np.isfinite(rate) and 0 < rate < 1e6 else None


def mp4_has_closed_groups(path: str, num_packets: int, keys: np.ndarray) -> bool | None:
    """Whether all that is decoded after a key frame is also shown after it, by the file's tables.

    Args:
        path: of any video file.
        num_packets: that its video stream holds.
        keys: numbers of the key frames in decoding order.

    Returns:
        None where this cannot be told: no MP4 or MOV, or one in fragments.

    Raises:
        DamagedError: the tables are.
    """
    try:
        with open(path, "rb") as file:
            moov = _find_moov(file)
        for trak in _boxes(moov, b"trak"):
            media = next(_boxes(trak, b"mdia"))
            if next(_boxes(media, b"hdlr"))[8:12] != b"vide":
                continue
            table = next(_boxes(next(_boxes(media, b"minf")), b"stbl"))
            decoded = _runs(next(_boxes(table, b"stts")), ">u4", num_packets)
            offsets = next(_boxes(table, b"ctts"), None)
            if decoded is None or offsets is None:  # without ctts the orders are the same
                return None if decoded is None else True
            delays = _runs(offsets, ">i4", num_packets)
            if delays is None:
                return None
            shown = np.concatenate([[0], np.cumsum(decoded)[:-1]]) + delays
            refuse_shuffled(shown)
            earliest_after = np.minimum.accumulate(shown[::-1])[::-1]
            return bool((earliest_after[keys] >= shown[keys]).all())
    except (OSError, ValueError, IndexError, StopIteration, struct.error):
        pass  # damaged tables: FFmpeg decides whether it makes something of them
    return None


def _find_moov(file: BinaryIO) -> bytes:
    """Raises:
    ValueError: the file has none at its top level.
    """
    place, size = 0, file.seek(0, os.SEEK_END)
    while place + 8 <= size:
        file.seek(place)
        header = file.read(16)
        length, kind = struct.unpack_from(">I4s", header)
        if length == 1:
            (length,) = struct.unpack_from(">Q", header, 8)
        if kind == b"moov":
            file.seek(place + 8)
            return file.read(min(length, _LARGEST_INDEX))
        place += length if length >= 8 else size
    raise ValueError("no moov box")


def _boxes(raw: bytes, wanted: bytes) -> Iterator[bytes]:
    """Contents of the boxes of a kind that lie directly in this content."""
    place = 0
    while place + 8 <= len(raw):
        length, kind = struct.unpack_from(">I4s", raw, place)
        if length < 8:
            return
        if kind == wanted:
            yield raw[place + 8 : place + length]
        place += length


def _runs(box: bytes, kind: str, total: int) -> np.ndarray | None:
    """(total,) values of a run-length table (stts, ctts); None if it is for another number."""
    (count,) = struct.unpack_from(">I", box, 4)
    pairs = np.frombuffer(box, dtype=[("n", ">u4"), ("value", kind)], count=count, offset=8)
    if int(pairs["n"].sum(dtype=np.int64)) != total:
        return None
    return np.repeat(pairs["value"].astype(np.int64), pairs["n"])


class DecordReader:
    """decord 0.6, kept from handing out neighbours.

    It finds a frame by counting from a key frame on. The count is off where a file hides its first
    frames (edit lists), has no presentation times, or has open GOPs; such a file is read in order,
    which is always right.
    """

    def __init__(self, path: str, head: bytes, log: DecoderLog) -> None:
        try:
            import decord
        except (ImportError, OSError, RuntimeError) as err:
            raise MissingReaderError(f"decord does not load: {err}") from err
        if _is_transport_stream(head):
            raise DamagedError(
                "is an MPEG transport stream, in which decord takes one frame for another; "
                'copy it with "ffmpeg -i FILE -c copy FILE.mp4", or use --video_backend pyav'
            )
        decord.logging.set_level(decord.logging.ERROR)
        self._decord, self._path, self._log = decord, path, log
        self._reader = self._open()
        self.rate = usable_rate(self._reader.get_avg_fps())
        table = self._reader.get_frame_timestamp(range(len(self._reader))).astype(np.float64)
        self._keys = np.asarray(self._reader.get_key_indices())
        if len(self._keys) == 0 or self._keys[0] > 0:
            raise DamagedError("begins in the middle: its first frames have no key frame")
        # Where the file gives no times, these are numbers of another order of magnitude.
        has_times = bool(np.abs(table).max(initial=0) < _LONGEST_SECONDS)
        hidden = int((table[:, 0] < -1e-6).sum()) if has_times else 0
        times = usable_times(table[hidden:, 0], float(table[-1, 1])) if has_times else None
        self.times, self.num_frames = times, len(table) - hidden
        self._only_next = times is None or hidden > 0
        self._jumps_are_exact = mp4_has_closed_groups(path, len(table), self._keys)
        self._place = 0
        log.refuse_damage()

    def _open(self) -> Any:
        try:
            return self._decord.VideoReader(self._path, num_threads=1, fault_tol=0)
        except (self._decord.DECORDError, RuntimeError, AssertionError) as err:
            self._log.refuse_damage()
            raise DamagedError(f"cannot be opened: {_decords_reason(err)}") from err

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        if not numbers:
            return
        try:
            jumps = self._jumps(numbers)
            if not jumps and self._place > numbers[0]:
                self._reader, self._place = self._open(), 0
            for number in numbers:
                if jumps:
                    self._reader.seek_accurate(number)
                else:
                    self._go_in_order(number)
                yield self._next()
                self._place = number + 1
        except (self._decord.DECORDError, RuntimeError, StopIteration) as err:
            self._log.refuse_damage()
            raise DamagedError(f"cannot be decoded: {_plain(err)}") from err

    def _next(self) -> np.ndarray:
        frame = self._reader.next().asnumpy()
        self._log.refuse_damage()
        if frame.ndim != 3:
            raise DamagedError("cannot be decoded: a frame is missing")
        return frame

    def _go_in_order(self, number: int) -> None:
        """Decode up to a frame without a seek; decord seeks when a key frame lies between."""
        if self._only_next:
            while self._place < number:
                self._next()
                self._place += 1
            return
        for key in self._keys[(self._keys > self._place) & (self._keys <= number)].tolist():
            self._reader.seek_accurate(key - 1)
            self._next()
            self._place = key
        self._reader.seek_accurate(number)
        self._place = number

    def _jumps(self, numbers: Sequence[int]) -> bool:
        """Whether to seek: where much decoding is saved, and decord's count is right after it."""
        if self._only_next or (self._jumps_are_exact is None and numbers[-1] < _SOON_DECODED):
            return False
        groups = np.searchsorted(self._keys, numbers, side="right") - 1
        last_of = dict(zip(groups.tolist(), numbers, strict=True))
        cost = sum(n - int(self._keys[g]) + 1 + _JUMP_FRAMES for g, n in last_of.items())
        if numbers[-1] + 1 <= 1.5 * cost:
            return False
        if self._jumps_are_exact is None:
            self._jumps_are_exact = self._try_jumps()
        return self._jumps_are_exact

    def _try_jumps(self) -> bool:
        """Whether the first key frames are the same images when sought as when read in order."""
        self._reader, self._place = self._open(), 0
        sought = self._open()
        for key in self._keys[1 : 1 + _TRIED_JUMPS].tolist():
            self._go_in_order(key)
            wanted = self._next()
            self._place = key + 1
            sought.seek_accurate(key)
            if not np.array_equal(sought.next().asnumpy(), wanted):
                return False
        return True


class PyavReader:
    """PyAV: every frame is recognised by its own time stamp."""

    def __init__(self, path: str, head: bytes, log: DecoderLog) -> None:
        try:
            import av
        except (ImportError, OSError) as err:
            raise MissingReaderError(f"PyAV does not load: {err}") from err
        av.logging.set_level(av.logging.ERROR)
        av.logging.restore_default_callback()
        self._errors: Any = (av.error.FFmpegError, ValueError, RuntimeError)
        self._av, self._path, self._log = av, path, log
        self._container, self._stream = self._open()
        self.rate = usable_rate(float(self._stream.average_rate or 0))
        try:
            packets = [p for p in self._container.demux(self._stream) if p.size]
        except self._errors as err:
            raise DamagedError(f"cannot be read: {_plain(err)}") from err
        if any(packet.is_corrupt for packet in packets):
            raise DamagedError("is damaged: it is cut off, or a part of it cannot be read")
        if not packets or not packets[0].is_keyframe:
            raise DamagedError("begins in the middle: its first frames have no key frame")
        shown = [packet for packet in packets if not packet.is_discard]
        self.num_frames = len(shown)
        self._index_times(packets, shown)
        self._decoded: Iterator[Any] | None = None
        self._place = 0
        log.refuse_damage()

    def _open(self) -> tuple[Any, Any]:
        try:
            container = self._av.open(self._path)
            stream = container.streams.best("video")
        except self._errors as err:
            raise DamagedError(f"cannot be opened: {_plain(err)}") from err
        if stream is None:
            raise DamagedError("cannot be opened: it has no video stream")
        stream.codec_context.thread_count = 1
        return container, stream

    def _index_times(self, packets: list[Any], shown: list[Any]) -> None:
        self.times: np.ndarray | None = None
        self._number: dict[int, int] = {}
        if any(packet.pts is None for packet in shown):
            return
        refuse_shuffled(np.array([packet.pts for packet in shown]))
        ordered = sorted(shown, key=lambda packet: packet.pts)
        base = float(self._stream.time_base)
        starts = np.array([packet.pts * base for packet in ordered])
        last = ordered[-1]
        self.times = usable_times(starts, starts[-1] + (last.duration or 0) * base)
        if self.times is None:
            return
        self._number = {packet.pts: number for number, packet in enumerate(ordered)}
        keys = [(p.pts, p.pts if p.dts is None else p.dts) for p in packets if p.is_keyframe]
        self._keys = sorted(key for key in keys if key[0] is not None)

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        try:
            if self.times is None:
                yield from self._read_by_count(numbers)
                return
            wanted_pts = {number: pts for pts, number in self._number.items()}
            for number in numbers:
                pixels = self._upright(self._find(wanted_pts[number], number))
                self._log.refuse_damage()
                yield pixels
        except self._errors as err:
            self._log.refuse_damage()
            raise DamagedError(f"cannot be decoded: {_plain(err)}") from err

    def _read_by_count(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        self._container, self._stream = self._open()
        wanted = set(numbers)
        found = 0
        for place, frame in enumerate(self._container.decode(self._stream)):
            if place in wanted:
                self._refuse_corrupt(frame)
                pixels = self._upright(frame)
                self._log.refuse_damage()
                yield pixels
                found += 1
                if found == len(wanted):
                    return
        raise DamagedError(f"cannot be decoded: {len(wanted) - found} frames are missing")

    def _find(self, pts: int, number: int) -> Any:
        """The frame with this time stamp, from where the decoder stands or the key before it."""
        key = max((key for key in self._keys if key[0] <= pts), default=self._keys[0])
        is_elsewhere = number < self._place or self._number.get(key[0], 0) > self._place
        if self._decoded is None or is_elsewhere:
            self._decoded = self._decoded_from(key[0])
        for place in (None, key[1], "start"):  # some containers seek too far, by either stamp
            if place is not None:
                self._decoded = self._decoded_from(place)
            frame = _decode_until(pts, self._decoded)
            if frame is not None:
                self._refuse_corrupt(frame)
                self._place = number + 1
                return frame
        self._decoded = None
        self._log.refuse_damage()
        assert self.times is not None, "read() has asked"
        raise DamagedError(f"cannot be decoded: the frame at {self.times[number]:.2f} s is missing")

    def _decoded_from(self, place: int | Literal["start"]) -> Iterator[Any]:
        """Frames from the last key frame before this time stamp on, or from a fresh start."""
        if place == "start":
            self._container, self._stream = self._open()
        else:
            self._container.seek(place, stream=self._stream, backward=True)
        return iter(self._container.decode(self._stream))

    def _refuse_corrupt(self, frame: Any) -> None:
        if frame.is_corrupt:
            self._log.refuse_damage()
            raise DamagedError("is damaged: a frame is decoded in part only")

    def _upright(self, frame: Any) -> np.ndarray:
        # decord's filters scale bicubic, which here concerns the colours' lower resolution.
        pixels = frame.reformat(format="rgb24", interpolation="BICUBIC").to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, k=round(frame.rotation / 90) % 4))


def _decode_until(pts: int, frames: Iterator[Any]) -> Any | None:
    """The frame with this time stamp, or None if later ones come."""
    for frame in frames:
        if frame.pts == pts:
            return frame
        if frame.pts is not None and frame.pts > pts:
            break
    return None


class TorchcodecReader:
    """torchcodec; its index of times is not public, so they are read off decoded frames once."""

    def __init__(self, path: str, head: bytes, log: DecoderLog) -> None:
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, OSError, RuntimeError) as err:
            raise MissingReaderError(f"torchcodec does not load: {_plain(err)}") from err
        self._errors = (RuntimeError, ValueError, IndexError)
        try:
            self._decoder = VideoDecoder(
                path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
            )
            self.num_frames = len(self._decoder)
            self.rate = usable_rate(self._decoder.metadata.average_fps)
            frames = [self._decoder.get_frame_at(i) for i in range(self.num_frames)]
        except self._errors as err:
            raise DamagedError(f"cannot be opened: {_plain(err)}") from err
        starts = np.array([frame.pts_seconds for frame in frames], dtype=np.float64)
        end = starts[-1] + frames[-1].duration_seconds if frames else 0.0
        self.times = usable_times(starts, end)
        self._log = log
        log.refuse_damage()

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        try:
            for number in numbers:
                pixels = self._decoder.get_frame_at(number).data.numpy()
                self._log.refuse_damage()
                yield pixels
        except self._errors as err:
            raise DamagedError(f"cannot be decoded: {_plain(err)}") from err


READERS: Final[dict[str, Any]] = {
    "decord": DecordReader,
    "pyav": PyavReader,
    "torchcodec": TorchcodecReader,
}


def _is_transport_stream(head: bytes) -> bool:
    return any(head[s : s + 1] == head[s + n : s + n + 1] == b"G" for s, n in ((0, 188), (4, 192)))


def _decords_reason(err: BaseException) -> str:
    if "cannot find video stream" in str(err):
        return (
            "it has no video stream, or one that decord cannot decode (AV1, for example, "
            "--video_backend pyav can)"
        )
    if "av_read_frame failed" in str(err):
        return "it is cut off, or a part of it cannot be read"
    if str(err).startswith("Error reading"):
        return "decord knows no such container, or its index is missing (a cut-off download?)"
    return _plain(err)


def _plain(err: BaseException) -> str:
    """The first line of a message without addresses, times and places in a library's source."""
    line = (str(err).strip().splitlines() or [type(err).__name__])[0]
    line = re.sub(r"^(\[[\d:]+\] \S+:\d+: )+", "", line)
    return line if len(line) <= 200 else line[:197] + "..."


class RequestLoop:
    """Answers requests until stdin ends."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self._requests, self._answers = requests, answers
        self._log = DecoderLog()
        self._key: tuple[Any, ...] = ()
        self._reader: Reader | None = None
        self._file: BinaryIO | None = None

    def run(self) -> None:
        """One request after the other."""
        for line in self._requests:
            request = json.loads(line)
            self._log.clear()
            try:
                self._answer(request)
            except DamagedError as err:
                self._key, self._reader = (), None
                self._send({"code": err.code, "problem": str(err), "bytes": 0})
            signal.alarm(0)

    def _answer(self, request: dict[str, Any]) -> None:
        signal.alarm(request["seconds"])
        reader = self._open(request["backend"], os.fsdecode(bytes.fromhex(request["path"])))
        if request["numbers"] is None:
            times = np.zeros(1) if reader.times is None else reader.times.astype(np.float64)
            held = {"num_frames": reader.num_frames, "rate": reader.rate}
            self._send({**held, "bytes": times.nbytes}, times.data)
            self._send({"bytes": 0})
            return
        for frame in reader.read(request["numbers"]):
            height, width = frame.shape[:2]
            if height * width > request["max_pixels"]:
                raise TooLargeError(f"has frames of {width} x {height} pixels")
            self._send({"size": [width, height], "bytes": frame.nbytes}, frame.data)
            signal.alarm(request["seconds"])
        self._send({"bytes": 0})

    def _open(self, backend: str, path: str) -> Reader:
        try:
            status = os.stat(path)
            key = (backend, path, status.st_ino, status.st_size, status.st_mtime_ns)
            if self._reader is not None and key == self._key:
                return self._reader
            self._reader = None
            file = open(path, "rb")  # noqa: SIM115 - held as long as the reader
            head = file.read(256)
        except OSError as err:
            raise DamagedError(f"cannot be read: {err.strerror}") from err
        # Names that are no UTF-8, which the libraries do not take, are opened by number.
        named = path if path.isprintable() else f"/proc/self/fd/{file.fileno()}"
        self._reader = READERS[backend](named, head, self._log)
        self._key, self._file = key, file
        return self._reader

    def _send(self, header: dict[str, Any], payload: Any = b"") -> None:
        self._answers.write(json.dumps(header).encode() + b"\n")
        self._answers.write(payload)
        self._answers.flush()


def main() -> None:
    """Take over this process's streams and serve."""
    # What libraries print goes to the log; the answers have the stream for themselves.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(OSError):
        fcntl.fcntl(answers, _F_SETPIPE_SZ, 1 << 20)
    # Where memory ends, this process is to go and not the one that trains.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        RequestLoop(sys.stdin.buffer, answers).run()
    except BrokenPipeError:
        os._exit(0)  # nobody listens any more


if __name__ == "__main__":
    # Started by file name: its folder is no place to import from.
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) != os.path.dirname(__file__)]
    main()
