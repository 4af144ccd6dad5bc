"""What a user decides about a run of benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from internvl_chat.checkpoint.hub import cached_model
from internvl_chat.checkpoint.hub_names import as_path
from internvl_chat.errors import ConfigError
from internvl_chat.evaluation.task import DataRoot, Rules, ScoreFormat, TableFormat, TaskSpec

V1_1 = "internvl-chat-v1-1"
"""In the name of the one model that VLMEvalKit asked with five beams in 2024."""
V1_1_BEAMS = 5
DEFAULT_MAX_NUM = 6
_COUNTS = ("batch_size", "limit", "num_beams", "max_new_tokens", "max_num", "num_segments", "top_k")
LARGE_MODEL_PARAMETERS = 20_000_000_000
"""Above this the original asks with one beam."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How the tasks of one command are asked."""

    checkpoint: str
    """A directory, or a model on the hub."""
    folder: Path
    """Of this checkpoint's results; each task has a folder in it."""
    export_folder: Path | None
    """Where files in the original's formats go; beside the answers if None."""
    root: DataRoot
    rules: Rules | None
    """None: each task's first."""
    batch_size: int | None
    """Questions per forward pass; None: chosen by length and dtype."""
    limit: int | None
    """Only the first so many questions."""
    seed: int
    """Of sampling."""
    num_beams: int | None
    """None: one, or what ``uses_original_beams`` says."""
    uses_original_beams: bool
    """The original's default and its beam rule go where ``num_beams`` is None."""
    temperature: float
    """Above 0 an answer is sampled."""
    samples: bool
    """Of tasks whose evaluator has the flag (MME): sample at the checkpoint's temperature."""
    top_k: int | None
    """Sampled tokens are among so many likeliest; None: the task's, or the checkpoint's."""
    top_p: float | None
    """... among the likeliest of so much probability together."""
    max_new_tokens: int | None
    """None: the task's."""
    dynamic: bool
    """Cut images into tiles."""
    max_num: int | None
    """Most tiles of an image, with ``dynamic``; None: the task's, else 6."""
    num_segments: int | None
    """Frames of a video; None: the task's."""
    load_in_8bit: bool
    load_in_4bit: bool
    compile: bool
    """On a GPU the steps of an answer are recorded once and replayed."""
    spread: bool
    """One process, the model over all GPUs."""
    use_cpu: bool
    dtype: str | None
    """Of the weights; None: bfloat16 on a GPU, float32 on a CPU."""
    workers: int | None
    """Threads that read images ahead of the model; None: 4 for a GPU, 0 on a CPU, whose cores the
    model itself keeps busy."""
    is_scored: bool
    """Otherwise only answers and files in the original's formats are written."""
    shows_answers: bool
    """Each answer is shown as it comes."""
    table_format: TableFormat
    """Of the TSV family's tables of answers."""
    score_format: ScoreFormat
    """... and of its tables of scores."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"is {value}", where=_flag(name), fix="Give 1 or more.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"is {self.top_p}", where="--top-p", fix="Give 0 < p <= 1.")
        if self.temperature < 0:
            raise ConfigError(
                f"is {self.temperature}", where="--temperature", fix="Give 0 or more."
            )
        if self.load_in_8bit and self.load_in_4bit:
            raise ConfigError(
                "exclude each other", where="--load-in-8bit and --load-in-4bit", fix="Give one."
            )

    @property
    def directory(self) -> str:
        """Where the checkpoint lies; a model on the hub has been brought into the cache."""
        return cached_model(self.checkpoint)

    def rules_of(self, task: TaskSpec) -> Rules:
        """The rules that a task is asked and first scored by."""
        return self.rules if self.rules in task.rules else task.rules[0]

    def beams_of(self, task: TaskSpec, num_parameters: int | None) -> tuple[int, str]:
        """Number of beams, and why.

        Args:
            task: that is asked.
            num_parameters: logical ones, quantised weights counted as what they stand for; needed
                with ``uses_original_beams``.
        """
        if not self.uses_original_beams:
            given = self.num_beams or 1
            return given, "--num-beams" if self.num_beams else "one by default"
        if self.dynamic:
            return 1, "the original's rule: one with --dynamic"
        if num_parameters is not None and num_parameters > LARGE_MODEL_PARAMETERS:
            billions = num_parameters / 1e9
            return 1, f"the original's rule: one above 20e9 parameters, here {billions:.1f}e9"
        if self.num_beams is not None:
            return self.num_beams, "--num-beams"
        if (self.rules or task.rules[0]) != "2024":
            return 1, "the original's default"
        if task.suite == "vlmevalkit":
            if V1_1 in PurePath(self.checkpoint).name.lower():
                return V1_1_BEAMS, "VLMEvalKit's of 2024 for InternVL-Chat-V1-1"
            return 1, "the original's default"
        return task.original_beams, "the original's default in 2024"

    def generation_of(self, task: TaskSpec, num_beams: int) -> dict[str, Any]:
        """Settings of generation as the original names them, for people and for ``run.json``."""
        return task.generation_under(self.rules_of(task)).settings(
            num_beams=num_beams,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            samples=self.samples and task.original_flags.get("--sample", False),
            top_k=self.top_k,
            top_p=self.top_p,
        )

    @property
    def most_tiles(self) -> int | None:
        """Of an image whose question does not say otherwise; None without ``dynamic``."""
        return (self.max_num or DEFAULT_MAX_NUM) if self.dynamic else None


def generate_keywords(settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings as ``generate`` takes them: what only sampling reads is left out of greedy."""
    if settings["do_sample"]:
        return {name: value for name, value in settings.items() if value is not None}
    idle = {"temperature", "top_k", "top_p"}
    return {name: value for name, value in settings.items() if name not in idle}


def results_folder(out_dir: Path, checkpoint: str, *, reasons: bool = False) -> Path:
    """``{out_dir}/{parent}_{name}`` of the last two parts of the checkpoint's path.

    With ``reasons`` (``--cot``) its name ends in ``_cot``.
    """
    parts = [part for part in Path(as_path(checkpoint)).parts if part not in ("/", ".", "..")]
    return out_dir / "_".join([*parts[-2:], *(["cot"] if reasons else [])])


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
