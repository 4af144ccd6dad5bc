"""Chat templates: a conversation written as one string, and which part of it is supervised.

A template is a record of strings; rendering is one pure function for all of them. The same record
serves training (the spans of the answers become labels) and chat (the string ends where the
assistant starts to speak). This file travels inside checkpoints: it needs the standard library and
its neighbours only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

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

    def copy(self) -> ConversationTemplate:
        """A conversation in this template, without turns."""
        return ConversationTemplate(
            **{field.name: getattr(self, field.name) for field in fields(self)}
        )

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


_Message = dict[str, str]
_Values = dict[str, Any]


class ConversationTemplate(Template):
    """A template that is filled message by message, as scripts for the original code do it.

    It belongs to whoever asked for it: attributes and messages may be changed. Rendering
    (:meth:`Template.render`) does not look at the messages.
    """

    messages: list[list[Any]]
    """(role, text) pairs; the text is ``None`` where the role is to speak."""
    offset: ClassVar[int] = 0
    """Messages that are examples; none of our templates has some."""
    stop_token_ids: ClassVar[list[int] | None] = None
    """Depend on the tokenizer: ask it for ``stop_str``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.messages = []

    def __setattr__(self, name: str, value: Any) -> None:
        """Unlike in a template, attributes change."""
        object.__setattr__(self, name, value)

    @property
    def sep2(self) -> str | None:
        """The separator after an answer, where it is not that after a question."""
        return None if self.answer_sep == self.question_sep else self.answer_sep

    def set_system_message(self, system_message: str) -> None:
        """Replace the system message."""
        object.__setattr__(self, "system_message", system_message)

    def append_message(self, role: str, message: str | None) -> None:
        """Add a turn; ``None`` for an answer that is yet to come."""
        self.messages.append([role, message])

    def update_last_message(self, message: str | None) -> None:
        """Fill in the answer that has come."""
        self.messages[-1][1] = message

    def get_prompt(self) -> str:
        """The text of system message and messages, in any order of roles.

        An empty message, as in the original, is one that is yet to come.
        """
        text = self.system_template.format(system_message=self.system_message) + self.system_sep
        for role, message in self.messages:
            speaks = role == self.roles[1]
            if message:
                text += role + message + (self.answer_sep if speaks else self.question_sep)
            else:
                text += self.open_role if speaks and self.open_role is not None else role
        return text

    def copy(self) -> ConversationTemplate:
        """The same again, to be changed apart."""
        other = super().copy()
        other.messages = [list(pair) for pair in self.messages]
        return other

    def to_openai_api_messages(self) -> list[_Message]:
        """The messages that there are, as OpenAI's chat completions have them."""
        turns = [
            {"role": "assistant" if role == self.roles[1] else "user", "content": message}
            for role, message in self.messages
            if message is not None
        ]
        return [{"role": "system", "content": self.system_message}, *turns]

    def to_gradio_chatbot(self) -> list[list[str | None]]:
        """Pairs of a question and its answer, ``None`` where it is yet to come."""
        texts = [message for _, message in self.messages]
        return [[*texts[start : start + 2], None][:2] for start in range(0, len(texts), 2)]

    def dict(self) -> _Values:
        """Name, system message, roles and messages."""
        return {
            "template_name": self.name,
            "system_message": self.system_message,
            "roles": self.roles,
            "messages": self.messages,
            "offset": 0,
        }


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


conv_templates = TEMPLATES
"""The original's name for them."""


def get_conv_template(name: str) -> ConversationTemplate:
    """Look a template up; what is returned may be filled and changed.

    Raises:
        ValueError: no template has this name; the message offers the closest ones.
    """
    if name in TEMPLATES:
        return TEMPLATES[name].copy()
    hint = suggest(name, TEMPLATES, limit=3, cutoff=0.4)
    known = f"Known: {', '.join(TEMPLATES)}"
    raise ValueError(f"no chat template {name!r}. {f'{hint} {known}'.lstrip()}")
