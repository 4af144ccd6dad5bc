"""What a benchmark is: where its questions are, how they are asked, how answers become numbers.

A task is a value. Asking, sharding, resuming and files are the runner's; a task that needs an
exception there wants a new field here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from PIL import Image

from internvl_chat.config import DecodeConfig
from internvl_chat.data.storage import is_folder
from internvl_chat.model.constants import IMAGE_TAG

AS_STORED = DecodeConfig.as_stored()
"""How files become RGB where no checkpoint says otherwise."""

Rules = Literal["2024", "later", "official"]
"""Whose behaviour: the evaluators of July 2024, which gave the published numbers; today's; or the
metric as its authors define it, where a bug of the evaluators moves the score."""
RULES: tuple[Rules, ...] = get_args(Rules)
Suite = Literal["internvl", "vlmevalkit"]
TableFormat = Literal["xlsx", "tsv", "json"]
ScoreFormat = Literal["csv", "json"]
Tiling = Literal["each", "enlarge_first"]
"""``each``: all images of a question, tiled alike. ``enlarge_first`` (MMMU): the first
alone; with ``--dynamic`` the first at twice its size, tiled, then the others with a tile each, all
under one tag."""


class ImageSource(Protocol):
    """An image that is read when it is needed, in whatever process needs it."""

    @property
    def label(self) -> str:
        """The path that people are shown."""

    def open(self, decode: DecodeConfig = AS_STORED) -> Image.Image:
        """Read it, as RGB.

        Args:
            decode: the checkpoint's rule.

        Raises:
            BadRecordError: missing, or no image.
        """


@dataclass(frozen=True, kw_only=True)
class VideoClip:
    """Frames of a video, one image each."""

    path: str
    """A video file, or a folder of frames."""
    num_segments: int
    bounds: tuple[float, float] | None = None
    """Start and end in seconds."""
    frames_per_second: float | None = None
    """Of a folder of frames, which are numbered from 1; None for a file, which says it itself."""
    is_of_training: bool = False
    """Frames are chosen as training and ``chat`` do it, not as MVBench does."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One thing to ask, before the chat template."""

    id: str
    """The data's own, or the row's number from 0; ``{key}/`` in front where a task has several
    files."""
    prompt: str
    """``<image>`` where an image belongs; without a tag, ``chat`` puts the images first."""
    images: tuple[ImageSource, ...] = ()
    video: VideoClip | None = None
    earlier: tuple[tuple[str, str], ...] = ()
    """(question, answer) rounds before the prompt, whose images come first in ``images``."""
    system_message: str | None = None
    """In place of the checkpoint's own."""
    max_tiles: int | None = None
    """Most tiles of an image with ``--dynamic``, where the data or its evaluator say so; what the
    user says goes before it."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What scoring and the answer files need of the data: JSON values, no image."""

    @property
    def num_image_tags(self) -> int:
        """Of the prompt and the rounds before it."""
        return sum(text.count(IMAGE_TAG) for text in (*(q for q, _ in self.earlier), self.prompt))


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How answers are generated, unless the user says otherwise."""

    max_new_tokens: int
    min_new_tokens: int | None = 1
    """None where the original says neither this nor a temperature (MME, the TSV family)."""
    num_beams: int = 1
    """Of the original's default; its beam rule and the user go before it."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Other keywords of ``generate`` that the original passes (``top_k`` of MME)."""

    def settings(
        self,
        *,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        samples: bool = False,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> dict[str, Any]:
        """As the original names them, for people and for ``run.json``; None is the benchmark's.

        Args:
            num_beams, max_new_tokens, temperature, top_k, top_p: what the user says.
            samples: at the temperature of the checkpoint, where the user gives none.
        """
        limits = {"top_k": top_k, "top_p": top_p}
        found: dict[str, Any] = {
            **self.extra,
            **{name: value for name, value in limits.items() if value is not None},
            "num_beams": num_beams or self.num_beams,
            "max_new_tokens": max_new_tokens or self.max_new_tokens,
            "do_sample": temperature > 0 or samples,
        }
        if self.min_new_tokens is not None:
            found["min_new_tokens"] = self.min_new_tokens
        if self.min_new_tokens is not None or temperature > 0:
            found["temperature"] = temperature
        return found


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file or folder that a task needs."""

    path: str
    """Below the working directory; below ``LMUData`` for the TSV family."""
    format: str
    """One sentence: what a row looks like, or what the folder holds."""
    is_folder: bool = False
    substitutes: tuple[str, ...] = ()
    """Paths of which one serves as well."""

    def is_in(self, place: Path) -> bool:
        """Whether it, or a substitute, is below a folder."""
        paths = [place / one for one in (self.path, *self.substitutes)]
        return any(is_folder(str(one)) if self.is_folder else one.exists() for one in paths)


@dataclass(frozen=True, kw_only=True)
class DataRoot:
    """Where data lies."""

    folder: Path
    """Holds ``data/``: the working directory."""
    lmu_data: Path
    """Holds the TSV files: ``$LMUData``, by default ``~/LMUData``."""

    def of(self, suite: Suite) -> Path:
        """The folder that a suite's paths are relative to."""
        return self.folder if suite == "internvl" else self.lmu_data


class Judge(Protocol):
    """A model that is asked about answers; replaceable by anything that maps text to text."""

    name: str

    def ask(
        self, key: str, fields: Mapping[str, str], *, temperature: float, max_tokens: int
    ) -> str | None:
        """Its reply to a prompt of ``judge_prompts.yaml``; None where none could be had.

        Args:
            key: of the prompt.
            fields: what stands in it.
            temperature, max_tokens: of the reply.
        """


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a set of answers is worth under one set of rules."""

    metrics: Mapping[str, float | None]
    """By name, as the original counts them (0-1 or percent); None for a mean of nothing."""
    printed: str
    """Character by character what the original prints around and after scoring, without the lines
    that name files."""
    per_sample: Mapping[str, float]
    """By question id; pairs and groups count at each of their members."""
    notes: tuple[str, ...] = ()
    """What is missing or doubtful, for people: no judge, unreadable answers, ..."""
    replies: Mapping[str, str] = field(default_factory=dict)
    """The judge's, by question id, where the answer files hold them."""
    added_columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By question id: what the original adds to its table of answers (``hit``, ``log``, ...)."""


@dataclass(frozen=True, kw_only=True)
class ScoreInput:
    """All that a scorer is handed."""

    questions: Sequence[Question]
    """In the data's order; all of the task's, or the first ``--limit`` of them."""
    answers: Mapping[str, str]
    """By question id, as generated; complete, in the order of the answer file."""
    rules: Rules
    judge: Judge | None = None
    unanswered: frozenset[str] = frozenset()
    """Questions whose answer is empty because there is none: wrong in POPE and MVBench too, which
    read an empty answer as yes and as right."""


@dataclass(frozen=True, kw_only=True)
class ExportInput:
    """What the files in the original's formats are made of."""

    questions: Sequence[Question]
    answers: Mapping[str, str]
    checkpoint: str
    """Path as given; ``parent`` and ``name`` are its last two parts."""
    stamp: str
    """``%y%m%d%H%M%S``"""
    rules: Rules
    score: Score | None = None
    judge_name: str | None = None
    """As it was asked for; it stands in names of files."""
    table_format: TableFormat = "xlsx"
    score_format: ScoreFormat = "csv"


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One benchmark as its command line id names it."""

    id: str
    suite: Suite
    title: str
    """For people: ``OK-VQA validation``."""
    data: tuple[DataFile, ...]
    load: Callable[[DataRoot, Rules], list[Question]]
    """Reads the questions, with references, and no image.

    Raises DatasetError for a file that is missing or malformed, with file and line.
    """
    generation: Generation
    generation_by_rules: Mapping[Rules, Generation] = field(default_factory=dict)
    """Where a set of rules generates otherwise than ``generation``."""
    metric: str
    """Of the table in the docs: ``VQA accuracy``."""
    score: Callable[[ScoreInput], Score] | None
    """None where only a server can score: then the submission file is all."""
    rules: tuple[Rules, ...] = ("2024",)
    """Sets of rules that differ in prompts or scores; the first is the default. A set that is not
    here means the same as the first, but for the original's number of beams."""
    rule_differences: Mapping[Rules, str] = field(default_factory=dict)
    """Of each set but the first: one sentence of the docs on what it changes against the first."""
    export: Callable[[ExportInput], Mapping[str, str | bytes]]
    """File name -> content: the original's answer files and the server's submission."""
    read_answers: Callable[[Sequence[Path], Sequence[Question]], dict[str, str]]
    """Reads answer files that the original evaluator (or VLMEvalKit) wrote.

    Raises DatasetError for a file that does not fit the questions.
    """
    judge: str | None = None
    """The judge model of 2024, where one is part of the metric."""
    judge_by_rules: Mapping[Rules, str] = field(default_factory=dict)
    """Where a set of rules has another judge by default."""
    single_process: bool = False
    """As the original runs it; ``GPUS`` is then 1."""
    original_beams: int = 5
    """What ``--num-beams`` was in 2024 where nobody gave it, before the beam rule; one in the TSV
    family."""
    original_flags: Mapping[str, bool] = field(default_factory=dict)
    """Flags that this task's evaluator alone has, and whether they have an effect there."""
    reasoning: TaskSpec | None = None
    """The same task as ``--cot`` asks and reads it; None where the original has no such flag."""
    tiling: Tiling = "each"
    """Which images are shown, and in how many tiles; see :data:`Tiling`."""
    published: str = ""
    """The guide's number, as it prints it."""
    source: str = ""
    """The official rule: paper, repository or server."""

    def generation_under(self, rules: Rules) -> Generation:
        """How answers are generated by a set of rules."""
        return self.generation_by_rules.get(rules, self.generation)

    def judge_under(self, rules: Rules | None) -> str | None:
        """The judge model of a set of rules; None: of the first."""
        return self.judge if rules is None else self.judge_by_rules.get(rules, self.judge)
