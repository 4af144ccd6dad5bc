"""Chat templates: a conversation written as one string, and which part of it is supervised.

A template is a record of strings; rendering is one pure function for all of them. The same record
serves training (the spans of the answers become labels) and chat (the string ends where the
assistant starts to speak). This file travels inside checkpoints: it needs the standard library and
its neighbours only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .suggestions import suggest


@dataclass(frozen=True)
class Span:
    """Characters ``text[start:end]`` of a rendered conversation."""

    start: int
    end: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as the language model reads it."""

    text: str
    answers: tuple[Span, ...]
    """For each answered turn, the answer and its end-of-turn mark: what training supervises."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """The strings around the turns of a conversation."""

    name: str
    system_message: str
    """Used where a conversation brings no system message of its own."""
    system_template: str
    """``str.format`` over ``system_message``; with its separator it opens the text."""
    system_sep: str
    roles: tuple[str, str]
    """What precedes a question and an answer."""
    question_sep: str
    answer_sep: str
    """What follows an answer; begins with ``stop_str``."""
    stop_str: str
    """The end-of-turn mark: supervised after each answer, and where generation stops."""
    open_role: str | None = None
    """What precedes an answer yet to be generated; ``roles[1]`` unless it differs."""
    bos_in_training: bool = False
    """Whether the tokenizer's beginning-of-sequence token precedes the text in training."""

    def __post_init__(self) -> None:
        if not self.stop_str or not self.answer_sep.startswith(self.stop_str):
            raise ValueError(
                f"template {self.name!r}: answer_sep {self.answer_sep!r} must begin with "
                f"stop_str {self.stop_str!r}"
            )

    @property
    def sep(self) -> str:
        """The separator after a turn of the assistant."""
        return self.answer_sep

    def render(
        self, turns: Sequence[tuple[str, str | None]], system: str | None = None
    ) -> Rendered:
        """Write the turns as one string.

        Args:
            turns: (question, answer) pairs. The last answer may be ``None``: the text then ends
                where the assistant starts to speak.
            system: the system message; ``None`` takes the template's own.

        Returns:
            The text and, for each answer, the span of answer and end-of-turn mark.

        Raises:
            ValueError: there are no turns, or an answer other than the last is ``None``.
        """
        if not turns:
            raise ValueError("a conversation needs at least one turn")
        message = self.system_message if system is None else system
        text = self.system_template.format(system_message=message) + self.system_sep
        answers: list[Span] = []
        for number, (question, answer) in enumerate(turns):
            text += self.roles[0] + question + self.question_sep
            if answer is None:
                if number != len(turns) - 1:
                    raise ValueError(f"turn {number} has no answer and is not the last")
                text += self.roles[1] if self.open_role is None else self.open_role
                break
            text += self.roles[1]
            start = len(text)
            text += answer + self.stop_str
            answers.append(Span(start, len(text)))
            text += self.answer_sep[len(self.stop_str) :]
        return Rendered(text, tuple(answers))


_INTERNVL_SYSTEM_MESSAGE = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。"
)
_INTERNVL2_5_SYSTEM_MESSAGE = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位"
    "联合开发的多模态大语言模型。"
)

_RECORDS = (
    Template(
        name="Hermes-2",
        system_message=_INTERNVL_SYSTEM_MESSAGE,
        system_template="<|im_start|>system\n{system_message}",
        system_sep="<|im_end|>",
        roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
        question_sep="<|im_end|>",
        answer_sep="<|im_end|>",
        stop_str="<|im_end|>",
    ),
    Template(
        name="internlm2-chat",
        system_message=_INTERNVL_SYSTEM_MESSAGE,
        system_template="<|im_start|>system\n{system_message}",
        system_sep="<|im_end|>",
        roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
        question_sep="<|im_end|>",
        answer_sep="<|im_end|>",
        stop_str="<|im_end|>",
        bos_in_training=True,
    ),
    Template(
        name="internvl2_5",
        system_message=_INTERNVL2_5_SYSTEM_MESSAGE,
        system_template="<|im_start|>system\n{system_message}",
        system_sep="<|im_end|>\n",
        roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
        question_sep="<|im_end|>\n",
        answer_sep="<|im_end|>\n",
        stop_str="<|im_end|>",
    ),
    Template(
        name="phi3-chat",
        system_message=_INTERNVL_SYSTEM_MESSAGE,
        system_template="<|system|>\n{system_message}",
        system_sep="<|end|>",
        roles=("<|user|>\n", "<|assistant|>\n"),
        question_sep="<|end|>",
        answer_sep="<|end|>",
        stop_str="<|end|>",
    ),
    Template(
        name="smollm2",
        system_message="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        system_template="<|im_start|>system\n{system_message}",
        system_sep="<|im_end|>\n",
        roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
        question_sep="<|im_end|>\n",
        answer_sep="<|im_end|>\n",
        stop_str="<|im_end|>",
    ),
    Template(
        name="internvl_zh",
        system_message="",
        system_template="{system_message}",
        system_sep=" ",
        roles=("<human>: ", "<bot>: "),
        open_role="<bot>:",
        question_sep=" ",
        answer_sep="</s>",
        stop_str="</s>",
        bos_in_training=True,
    ),
)


def _by_name(records: Sequence[Template]) -> dict[str, Template]:
    table: dict[str, Template] = {}
    for record in records:
        if record.name in table:
            raise ValueError(f"two templates are named {record.name!r}")
        table[record.name] = record
    return table


TEMPLATES: dict[str, Template] = _by_name(_RECORDS)
"""Every template by name; a new one is a record in ``_RECORDS``."""


def get_conv_template(name: str) -> Template:
    """Look a template up.

    Raises:
        ValueError: no template has this name; the message offers the closest ones.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    hint = suggest(name, TEMPLATES, limit=3, cutoff=0.4)
    known = f"Known: {', '.join(TEMPLATES)}"
    raise ValueError(f"no chat template {name!r}. {f'{hint} {known}'.lstrip()}")
