"""Datasets with every kind of fault, four instances each, and the same without: the clean twin.

The four instances of a kind stand in four files that are written differently: JSON lines; an
indented array; lines ended by CRLF behind a byte-order mark, with blank lines between, in Chinese;
and the spelling ``messages``/``role``/``content``. Faulty records stand first, last and between
clean ones.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from tests.support.training import ROOT

Json = dict[str, Any]
VIDEO = ROOT / "tests" / "unit" / "data" / "greys.mp4"
SIZES = ((64, 48), (40, 60), (50, 50), (30, 20))


@dataclass
class Place:
    """Where a record is written and what it may use."""

    folder: Path
    k: int
    """Which of the four instances, and files."""
    serial: int
    """A number of its own, so that no two records are equal."""

    def turn(self, is_user: bool, text: str, **extra: Any) -> Json:
        if self.k == 3:
            return {"role": "user" if is_user else "assistant", "content": text, **extra}
        return {"from": "human" if is_user else "gpt", "value": text, **extra}

    def turns(self, *texts: str) -> list[Json]:
        return [self.turn(number % 2 == 0, text) for number, text in enumerate(texts)]

    @property
    def key(self) -> str:
        return "messages" if self.k == 3 else "conversations"

    def record(self, *texts: str, **fields: Any) -> Json:
        return {"id": f"r{self.serial}", **fields, self.key: self.turns(*texts)}

    def question(self, text: str = "") -> str:
        chinese = f"图里第{self.serial}个物体是什么？"
        return f"{text}{chinese if self.k == 2 else f'What is object {self.serial} here?'}"

    def answer(self) -> str:
        return f"一只猫，编号{self.serial}。" if self.k == 2 else f"It is cat {self.serial}."

    def image(self, name: str | None = None, **options: Any) -> str:
        """A good picture; its name."""
        name = name or f"images/{self.serial}.{'png' if self.k % 2 else 'jpg'}"
        return draw(self.folder / "root", name, self.serial, SIZES[self.k], **options)

    def good(self) -> Json:
        """A clean record; which sort goes round."""
        width, height = SIZES[self.k]
        sort = self.serial % 5
        if sort == 0:
            return self.record(self.question(), self.answer())
        if sort == 1:
            image = self.image()
            return self.record(
                self.question("<image>\n"), self.answer(), image=image, width=width, height=height
            )
        if sort == 2:
            images = [self.image(), self.image(f"images/b{self.serial}.png")]
            return self.record(
                self.question("<image> <image>\n"),
                self.answer(),
                self.question("And "),
                self.answer(),
                image=images,
                width=[width, width],
                height=[height, height],
            )
        if sort == 3:
            name = f"videos/{self.serial}.mp4"
            copy(VIDEO, self.folder / "root" / name)
            return self.record(self.question("<video>\n"), self.answer(), video=name)
        box = (
            "<ref>cat</ref><box>[[10, 20, 300, 400], [5, 6, 7, 8]]</box> and [0.1, 0.2, 0.3, 0.45]"
        )
        return self.record(self.question(), f"{self.answer()} {box}", image=[self.image()])


def draw(
    root: Path,
    name: str,
    seed: int,
    size: tuple[int, int],
    *,
    mode: str = "RGB",
    orientation: int | None = None,
    image_format: str | None = None,
) -> str:
    """Write a picture; returns its name."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, size, 0 if mode == "P" else None)
    rng = random.Random(seed)
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        left, top = rng.randrange(size[0]), rng.randrange(size[1])
        ink: Any = rng.randrange(256) if len(image.getbands()) == 1 else None
        ink = ink if ink is not None else tuple(rng.randrange(256) for _ in image.getbands())
        pen.rectangle((left, top, left + 9, top + 7), fill=ink)
    options: Json = {}
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(path, format=image_format, **options)
    return name


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy(source, target)


@dataclass(frozen=True)
class Kind:
    """A kind of fault and how its instances are made."""

    name: str
    codes: tuple[str, ...]
    make: Callable[[Place], Json | bytes | list[Json]]
    """A record; bytes that are no record; or several records of which the last is faulty."""
    in_array: bool = True
    """Whether a JSON array can hold it."""
    needs: str = ""
    """``decode`` or ``tokens``: what the check must be asked for."""


def _file(place: Place, name: str, content: bytes) -> str:
    path = place.folder / "root" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return name


def _with_image(place: Place, name: str, *texts: str, **fields: Any) -> Json:
    texts = texts or (place.question("<image>\n"), place.answer())
    if place.k == 2:  # one of several
        return place.record(
            place.question("<image><image>"), *texts[1:], image=[place.image(), name], **fields
        )
    return place.record(*texts, image=name, **fields)


def _missing(p: Place) -> Json:
    name = ["gone.jpg", "images/gone.png", "无/图.jpg", "images"][p.k]
    return _with_image(p, f"{p.serial}{name}" if p.k else f"images/{p.serial}{name}")


def _truncated(p: Place) -> Json:
    name = f"images/t{p.serial}.{['jpg', 'png', 'jpg', 'webp'][p.k]}"
    p.image(name)
    path = p.folder / "root" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size * [50, 60, 70, 40][p.k] // 100])
    return _with_image(p, name)


def _no_image(p: Place) -> Json:
    content = [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b"<html>" + b"<p>Sign in to continue</p>" * 90 + b"</html>",
        b'{"error": "quota exceeded"}',
    ][p.k]
    return _with_image(p, _file(p, f"images/n{p.serial}.jpg", content))


def _roles(p: Place) -> Json:
    orders = [(1, 1, 0), (1, 0, 0, 1), (1, 0, 1), (0, 0, 1, 0)]
    turns = [p.turn(bool(user), f"{p.question()} {i}") for i, user in enumerate(orders[p.k])]
    return {"id": f"r{p.serial}", p.key: turns}


def _empty_answer(p: Place) -> Json:
    empty = ["", "  ", "\n\t", "\u3000"][p.k]
    if p.k % 2:
        return p.record(p.question(), p.answer(), p.question("So "), empty)
    return p.record(p.question(), empty)


def _missing_tag(p: Place) -> Json:
    images = [p.image(f"images/m{p.serial}-{i}.png") for i in range(2 + p.k % 2)]
    return p.record(
        p.question("<image>\n"), p.answer(), p.question("Then "), p.answer(), image=images
    )


def _surplus_tag(p: Place) -> Json:
    question = p.question(["<image>\n<image>\n", "<image> ", "<image>" * 3, "See <image>: "][p.k])
    if p.k == 1:
        return p.record(question, p.answer())  # no file at all
    if p.k == 3:
        return p.record(question, p.answer(), f"<image> {p.question()}", "x", image=p.image())
    return p.record(question, p.answer(), image=p.image())


def _control(p: Place) -> Json:
    token = ["<|im_end|>", "<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>"][p.k]
    if p.k == 1:
        return p.record(p.question(token), p.answer())
    if p.k == 2:
        return p.record(p.question(), p.answer(), system=f"Be {token} brief.")
    return p.record(p.question(), p.answer(), p.question("So "), f"{p.answer()}{token}")


def _template(p: Place) -> Json:
    answer = p.answer()
    texts = [
        (f"[INST] {p.question()} [/INST]", answer),
        (p.question(), f"USER: {p.question()} ASSISTANT: {answer}"),
        (p.question(), f"{answer}\n### Human: {p.question()}"),
        (f"<start_of_turn>user\n{p.question()}<end_of_turn>", answer),
    ]
    return p.record(*texts[p.k])


def _loss_mark(p: Place) -> Json:
    mark: Json = [{"loss": False}, {"weight": 0}, {"train": False}, {"loss_mask": 0}][p.k]
    record = p.record(p.question(), p.answer())
    if p.k == 3:
        return {**record, "loss_scale": 0.0}
    record[p.key][1].update(mark)
    return record


def _media_key(p: Place) -> Json:
    fields: Json = [
        {"videos": ["v.mp4"]},
        {"image_path": "images/a.png"},
        {"image_url": "https://example.com/a.jpg"},
        {"Image": "images/a.png"},
    ][p.k]
    return p.record(p.question(), p.answer(), **fields)


def _video(p: Place) -> Json:
    raw = VIDEO.read_bytes()
    content = [raw[: len(raw) // 2], b"no video at all" * 99, raw[:300], bytes(4096)][p.k]
    return p.record(
        p.question(), p.answer(), video=_file(p, f"videos/broken{p.serial}.mp4", content)
    )


def _video_as_image(p: Place) -> Json:
    name = f"videos/v{p.serial}.{['mp4', 'MP4', 'webm', 'avi'][p.k]}"
    copy(VIDEO, p.folder / "root" / name)
    return _with_image(p, name)


def _outside(p: Place) -> Json:
    draw(p.folder, "outside.jpg", 0, (8, 8))
    name = ["../outside.jpg", str(p.folder / "outside.jpg"), "images/../../outside.jpg", "../x.mp4"]
    if p.k == 3:
        return p.record(p.question(), p.answer(), video=name[3])
    return _with_image(p, name[p.k])


def _boxes(*texts: str) -> Callable[[Place], Json]:
    def make(p: Place) -> Json:
        text = texts[p.k]
        if p.k == 1:
            return p.record(f"Where is {text}? {p.question()}", p.answer(), image=p.image())
        return p.record(p.question(), f"{p.answer()} {text}", image=p.image())

    return make


def _repeated(p: Place) -> Json:
    loops = [
        "the cat sat on the mat and then " * 12,
        "0 1 2 " * 30,
        "我不知道这是什么东西。" * 12,
        " ".join(f"Row {i % 2} of the long table says that all is well today." for i in range(9)),
    ]
    if p.k == 3:
        return p.record(loops[3] + p.question(), p.answer())
    return p.record(p.question(), f"{p.answer()} {loops[p.k]}")


def _duplicate(p: Place) -> list[Json]:
    first = p.record(p.question(), p.answer(), image=p.image())
    again: Json = dict(reversed(list(first.items())))
    again["id"] = f"r{p.serial}-again"
    if p.k == 0:
        again["image"] = [first["image"]]
    if p.k == 1:
        again["messages"] = [
            {"role": {"human": "user", "gpt": "assistant"}[t["from"]], "content": t["value"]}
            for t in again.pop("conversations")
        ]
    if p.k == 2:
        again["image"] = f"./{first['image']}"
    return [first, again]


def _same_id(p: Place) -> list[Json]:
    return [{**p.record(p.question(text), p.answer()), "id": f"x{p.serial}"} for text in ("", "B ")]


def _nan(p: Place) -> bytes:
    record = json.dumps(p.record(p.question(), p.answer(), score=1234567, extra_id=None))
    word = ["NaN", "Infinity", "-Infinity", "NaN"][p.k]
    return record.replace("1234567", word).encode()


def _bad_json(p: Place) -> bytes:
    text = json.dumps(p.record(p.question(), p.answer()))
    return [text[:-5], text.replace('"', "'"), text.replace(": [", ": [,"), f"{text} {text}"][
        p.k
    ].encode()


def _not_utf8(p: Place) -> bytes:
    text = json.dumps(p.record("Wo ist das Café?", f"Über {p.serial}."), ensure_ascii=False)
    return text.encode(["latin-1", "cp1252", "cp1252", "latin-1"][p.k])


def _schema(p: Place) -> Json:
    record = p.record(p.question(), p.answer())
    return [
        {"id": 1, "text": "no turns"},
        {**record, "image": 3},
        {**record, p.key: [p.turn(True, "q"), {**p.turn(False, ""), "value": ["a"]}]},
        {**record, "image": [p.image(), p.image("images/2.png")], "width": [5], "height": [5]},
    ][p.k]


def _with_boxes(**options: Any) -> Callable[[Place], Json]:
    def make(p: Place) -> Json:
        ending = "png" if "mode" in options else "jpg"
        chosen = {key: values[p.k] for key, values in options.items()}
        name = p.image(f"images/e{p.serial}.{ending}", **chosen)
        box = "<box>[[1, 2, 3, 4]]</box>" if p.k % 2 else "[0.1, 0.2, 0.5, 0.6]"
        return p.record(p.question(), f"{p.answer()} {box}", image=name)

    return make


def _ending(p: Place) -> Json:
    ending, true = [("jpg", "PNG"), ("png", "JPEG"), ("jpg", "WEBP"), ("PNG", "GIF")][p.k]
    name = p.image(f"images/w{p.serial}.{ending}", image_format=true)
    return _with_image(p, name)


def _size(p: Place) -> Json:
    width, height = SIZES[p.k]
    stated = [(height, width), (width, height + 1), (width * 2, height * 2), (1, 1)][p.k]
    name = p.image()
    return p.record(p.question(), p.answer(), image=name, width=stated[0], height=stated[1])


def _long(num_words: int, *, in_answer: bool, image: bool) -> Callable[[Place], Json]:
    def make(p: Place) -> Json:
        rng = random.Random(p.serial)
        words = " ".join(f"w{rng.randrange(10**6)}" for _ in range(num_words))
        fields = {"image": p.image()} if image else {}
        if in_answer:
            return p.record(p.question(), f"{p.answer()} {words}", **fields)
        return p.record(f"{words} {p.question('<image>' if image else '')}", p.answer(), **fields)

    return make


KINDS: tuple[Kind, ...] = (
    Kind("missing image", ("MISSING_FILE",), _missing),
    Kind(
        "empty image",
        ("NOT_AN_IMAGE",),
        lambda p: _with_image(p, _file(p, f"images/0{p.serial}.jpg", b"")),
    ),
    Kind(
        "truncated image",
        ("TRUNCATED_IMAGE", "BROKEN_IMAGE", "NOT_AN_IMAGE"),
        _truncated,
        needs="decode",
    ),
    Kind("no image", ("NOT_AN_IMAGE",), _no_image, needs="decode"),
    Kind("video as image", ("VIDEO_AS_IMAGE",), _video_as_image),
    Kind("wrong ending", ("EXTENSION",), _ending, needs="decode"),
    Kind("wrong size", ("SIZE_DIFFERS",), _size, needs="decode"),
    Kind("path out of root", ("OUTSIDE_ROOT",), _outside),
    Kind("unreadable video", ("BROKEN_VIDEO", "NOT_A_VIDEO"), _video, needs="decode"),
    Kind("order of roles", ("TURNS",), _roles),
    Kind(
        "last question unanswered", ("TURNS",), lambda p: p.record(*[p.question()] * (1 + 2 * p.k))
    ),
    Kind(
        "unknown role",
        ("ROLE",),
        lambda p: {
            p.key: [
                p.turn(True, p.question()),
                {"from": ["bot", "GPT-4", "模型", "tool"][p.k], "value": "x"},
            ]
        },
    ),
    Kind("empty answer", ("EMPTY_ANSWER",), _empty_answer),
    Kind("missing tag", ("TAG_MISMATCH",), _missing_tag),
    Kind("surplus tag", ("TAG_MISMATCH",), _surplus_tag),
    Kind(
        "tag in answer",
        ("TAG_IN_ANSWER",),
        lambda p: p.record(p.question(), f"{p.answer()} <image>", image=p.image()),
    ),
    Kind("control token", ("CONTROL_TOKEN",), _control),
    Kind("schema", ("SCHEMA",), _schema),
    Kind("bad JSON", ("JSON",), _bad_json, in_array=False),
    Kind("not UTF-8", ("NOT_UTF8",), _not_utf8, in_array=False),
    Kind("NaN", ("NAN",), _nan),
    Kind("media under another key", ("MEDIA_KEY",), _media_key),
    Kind(
        "unknown key",
        ("UNKNOWN_KEY",),
        lambda p: p.record(
            p.question(), p.answer(), **{["widht", "conversation", "目标", "rejected"][p.k]: "x"}
        ),
    ),
    Kind("loss mark", ("LOSS_MARK",), _loss_mark),
    Kind(
        "stray tag",
        ("STRAY_TAG",),
        lambda p: p.record(
            p.question(["<video>\n", "<|image_pad|>", "<image_1> ", "<ImageHere>"][p.k]),
            p.answer(),
        ),
    ),
    Kind("literal img", ("IMG_TAG",), lambda p: p.record(p.question(), f"{p.answer()} <img>")),
    Kind(
        "sentence mark",
        ("SENTENCE_MARK", "CONTROL_TOKEN"),  # it may be a token of the tokenizer besides
        lambda p: p.record(p.question(), p.answer() + ["</s>", "<s>", "</s>", "<s>"][p.k]),
    ),
    Kind("other template", ("OTHER_TEMPLATE",), _template),
    Kind("repeated text", ("REPETITION",), _repeated),
    Kind(
        "malformed box",
        ("BOX_MALFORMED",),
        _boxes(
            "<box>[[1, 2, 3]]</box>",
            "<box>[1, 2, 3, 4]</box>",
            "<box>(1,2),(3,4)</box>",
            "<box>[[0.1, 0.2, 0.3, 0.4]]</box>",
        ),
    ),
    Kind(
        "box out of range",
        ("BOX_RANGE",),
        _boxes(
            "<box>[[1, 2, 3, 1001]]</box>",
            "<box>[[-1, 2, 3, 10]]</box>",
            "<box>[[1, 2, 3, 4], [100, 200, 640, 1480]]</box>",
            "<ref>猫</ref><box>[[1,2,30000,40000]]</box>",
        ),
    ),
    Kind(
        "inverted box",
        ("BOX_INVERTED",),
        _boxes(
            "<box>[[30, 2, 3, 100]]</box>",
            "[0.5, 0.2, 0.3, 0.9]",
            "[[0.1, 0.2, 0.3, 0.4], [0.1, 0.9, 0.3, 0.2]]",
            "<box>[[1, 2, 3, 4], [5, 6, 5, 9]]</box>",
        ),
    ),
    Kind("duplicate record", ("DUPLICATE_RECORD",), _duplicate),
    Kind("duplicate id", ("DUPLICATE_ID",), _same_id),
    Kind(
        "transparency with boxes",
        ("ALPHA_WITH_BOXES",),
        _with_boxes(mode=("RGBA", "LA", "RGBA", "RGBA")),
        needs="decode",
    ),
    Kind(
        "orientation with boxes",
        ("EXIF_WITH_BOXES",),
        _with_boxes(orientation=(6, 3, 8, 2)),
        needs="decode",
    ),
    Kind("text cut", ("TEXT_CUT",), _long(200, in_answer=True, image=False), needs="tokens"),
    Kind("all masked", ("NO_LABEL",), _long(200, in_answer=False, image=False), needs="tokens"),
    Kind("image cut", ("IMAGE_CUT",), _long(200, in_answer=False, image=True), needs="tokens"),
)


@dataclass
class Corpus:
    """What was written."""

    meta: Path
    expected: set[tuple[str, str, int | None]] = field(default_factory=set)
    """(file, one of the kind's codes joined by |, line)."""
    needs: dict[tuple[str, str, int | None], str] = field(default_factory=dict)


def write_corpus(folder: Path, *, faulty: bool, kinds: tuple[Kind, ...] = KINDS) -> Corpus:
    """Write the corpus, or its clean twin, below ``folder``; paths in it are absolute."""
    (folder / "root" / "images").mkdir(parents=True)
    corpus = Corpus(folder / "meta.json")
    table: Json = {}
    for k, name in enumerate(("lines", "array", "windows", "openai", "more")):
        own = [(kind, k) for kind in kinds if k != 1 or kind.in_array]
        if name == "more":
            own = [(kind, 1) for kind in kinds if not kind.in_array]
        path = folder / f"{name}.{'json' if name == 'array' else 'jsonl'}"
        length = _write_file(folder, path, own, 10_000 * (k + 1), corpus, faulty)
        table[name] = {
            "root": str(folder / "root"),
            "annotation": str(path),
            "data_augment": False,
            "repeat_time": 1,
            "length": length,
        }
    corpus.meta.write_text(json.dumps(table, indent=1))
    return corpus


def _write_file(
    folder: Path,
    path: Path,
    own: list[tuple[Kind, int]],
    serial: int,
    corpus: Corpus,
    faulty: bool,
) -> int:
    rows: list[tuple[bytes, Kind | None]] = []
    for number, (kind, k) in enumerate(own):
        place = Place(folder, k, serial + 10 * number)
        made = kind.make(place) if faulty else place.good()
        records = made if isinstance(made, list) else [made]
        for record in records:
            is_last = record is records[-1]
            raw = record if isinstance(record, bytes) else _dump(record, k)
            rows.append((raw, kind if is_last and faulty else None))
        if number + 1 < len(own):  # the last row of the file is faulty
            good = Place(folder, k, serial + 10 * number + 1 + number % 5).good()
            rows.append((_dump(good, k), None))
    _lay_out(path, rows, corpus)
    return len(rows)


def _dump(record: Json, k: int) -> bytes:
    return json.dumps(record, ensure_ascii=k == 0).encode()


def _lay_out(path: Path, rows: list[tuple[bytes, Kind | None]], corpus: Corpus) -> None:
    lines: list[bytes] = []
    is_array, is_windows = path.suffix == ".json", path.stem == "windows"
    if is_array:
        lines.append(b"[")
    for number, (raw, kind) in enumerate(rows):
        if is_windows and number % 3 == 1:
            lines += [b"", b"   "]
        if is_array:
            pretty = json.dumps(json.loads(raw), indent=2, ensure_ascii=False).encode().split(b"\n")
            comma = b"," if number + 1 < len(rows) else b""
            pretty[-1] += comma
        else:
            pretty = [raw]
        if kind is not None:
            key = (str(path), "|".join(kind.codes), len(lines) + 1)
            corpus.expected.add(key)
            corpus.needs[key] = kind.needs
        lines += pretty
    if is_array:
        lines.append(b"]")
    end = b"\r\n" if is_windows else b"\n"
    text = end.join(lines) + (b"" if path.stem == "openai" else end)
    path.write_bytes(b"\xef\xbb\xbf" + text if is_windows else text)
