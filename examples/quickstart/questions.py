"""Held-out records as questions to ask, and answers as lines of a file. Torch is not imported."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from examples.annotations import Record, image_paths, read_jsonl, read_meta, write_jsonl
from examples.quickstart.scoring import Reply

IMAGE_TAG = "<image>"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One held-out question."""

    dataset: str
    identity: str
    images: tuple[str, ...]
    """Paths of the images, in order; empty for text only."""
    prompt: str
    """The human turn as the annotation has it, ``<image>`` tags included."""
    truth: str

    @property
    def key(self) -> str:
        """The id of the question in the benchmark."""
        return f"{self.dataset}/{self.identity}"

    def answered(self, answer: str) -> Reply:
        """The question with what the model said."""
        return Reply(
            dataset=self.dataset,
            identity=self.identity,
            images=self.images,
            question=self.prompt.replace(IMAGE_TAG, "").strip(),
            truth=self.truth,
            answer=answer,
        )


def load_questions(meta_path: Path) -> list[Asked]:
    """The first question of every record of every dataset, in the files' order."""
    return [
        _asked(entry.name, entry.root, record)
        for entry in read_meta(meta_path)
        for record in read_jsonl(entry.annotation)
    ]


def _asked(dataset: str, root: Path, record: Record) -> Asked:
    question, answer = record["conversations"][:2]
    return Asked(
        dataset=dataset,
        identity=record["id"],
        images=tuple((root / path).as_posix() for path in image_paths(record)),
        prompt=question["value"],
        truth=answer["value"],
    )


def read_answers(results: Path) -> dict[str, str]:
    """What the benchmark's run answered, by :attr:`Asked.key`."""
    (path,) = results.glob("*/answers.jsonl")
    return {line["id"]: line.get("answer", "") for line in read_jsonl(path)}


def write_replies(path: Path, replies: Iterable[Reply]) -> None:
    """One reply a line, with whether it is right for whoever reads the file."""
    write_jsonl(path, ({**asdict(reply), "right": reply.is_right} for reply in replies))


def read_replies(path: Path) -> list[Reply]:
    """What :func:`write_replies` wrote."""
    return [
        Reply(
            **{key: value for key, value in line.items() if key not in ("right", "images")},
            images=tuple(line["images"]),
        )
        for line in read_jsonl(path)
    ]
