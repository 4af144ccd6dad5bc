"""Questions about charts, signs and pairs of scenes, and turns without an image."""

import random
from collections.abc import Callable, Sequence

from examples.tiny_model.charts import Bar, Chart
from examples.tiny_model.common import COLOR_NAMES, Question, pick, with_article
from examples.tiny_model.scene import KINDS, Scene
from examples.tiny_model.scene_questions import plural
from examples.tiny_model.wordlist import TRAIN_WORDS
from examples.tiny_model.words import Sign

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


# --- charts


def ask_bar_value(rng: random.Random, chart: Chart) -> Question:
    """Value of one bar."""
    bar = rng.choice(chart.bars)
    text = pick(rng, "What is the value of the {} bar?", "How high is the {} bar?")
    fact = f"value {bar.color}"
    answer = str(bar.value)
    return Question(text=text.format(bar.color), answer=answer, skill="chart_value", fact=fact)


def ask_bar_count(rng: random.Random, chart: Chart) -> Question:
    """Number of bars."""
    answer = str(len(chart.bars))
    return Question(text="How many bars are there?", answer=answer, skill="chart_count")


def ask_extreme_bar(rng: random.Random, chart: Chart) -> Question | None:
    """Colour of the highest or lowest bar, if there is one only."""
    word, extreme = rng.choice((("highest", max), ("lowest", min)))
    value = extreme(bar.value for bar in chart.bars)
    bars = [bar for bar in chart.bars if bar.value == value]
    if len(bars) > 1:
        return None
    return Question(text=f"Which bar is the {word}?", answer=bars[0].color, skill="chart_extreme")


def ask_higher_bar(rng: random.Random, chart: Chart) -> Question | None:
    """Higher (lower) of two bars."""
    one, two = rng.sample(chart.bars, 2)
    if one.value == two.value:
        return None
    low, high = sorted((one, two), key=lambda bar: bar.value)
    word, answer = rng.choice((("higher", high), ("lower", low)))
    text = f"Which bar is {word}, {one.color} or {two.color}?"
    return Question(text=text, answer=answer.color, skill="chart_compare")


def ask_bar_order(rng: random.Random, chart: Chart) -> Question:
    """Colour of the n-th bar from the left."""
    index = rng.randrange(len(chart.bars))
    text = f"What color is the {ORDINALS[index]} bar?"
    return Question(text=text, answer=chart.bars[index].color, skill="chart_order")


def ask_bar_list(rng: random.Random, chart: Chart) -> Question:
    """All bars and their values, from left to right."""

    def say(bar: Bar) -> str:
        return f"{bar.color} {bar.value}"

    answer = ", ".join(say(bar) for bar in chart.bars)
    return Question(text="List the bars and their values.", answer=answer, skill="chart_list")


ChartPrompt = Callable[[random.Random, Chart], Question | None]
CHART_PROMPTS: tuple[ChartPrompt, ...] = (
    ask_bar_list,
    ask_bar_value,
    ask_bar_value,
    ask_bar_value,
    ask_bar_value,
    ask_bar_count,
    ask_extreme_bar,
    ask_higher_bar,
    ask_bar_order,
)
"""Prompts of the ``charts`` family, the full list first."""


# --- signs


def sign_questions(rng: random.Random, sign: Sign) -> list[Question]:
    """What can be asked about a sign."""
    questions = []
    for line in sign.lines:
        text = pick(rng, "What {} is written?", "Read the {}.").format(line.kind)
        questions.append(Question(text=text, answer=line.text, skill=f"read_{line.kind}"))
        color = f"What color is the {line.kind}?"
        questions.append(Question(text=color, answer=line.color, skill="text_color"))
        if line.kind == "word":
            index = rng.randrange(len(line.text))
            letter = f"What is the {ORDINALS[index]} letter of the word?"
            questions.append(Question(text=letter, answer=line.text[index], skill="letter"))
        if line.kind != "number":
            length = f"How many letters has the {line.kind}?"
            answer = str(len(line.text))
            questions.append(Question(text=length, answer=answer, skill="word_length"))
    if rng.random() < 0.3:
        # Instead of the single lines: after them it could be copied.
        whole = "\n".join(line.text for line in sign.lines)
        questions = [q for q in questions if not q.skill.startswith("read_")]
        questions.append(Question(text="Read the text.", answer=whole, skill="read_all"))
    return questions


# --- two images


def pair_questions(rng: random.Random, first: Scene, second: Scene) -> list[Question]:
    """Questions that need to know which image is which."""
    scenes = (first, second)
    counts = [len(scene.shapes) for scene in scenes]
    questions = []
    for word, scene, count in zip(ORDINALS, scenes, counts, strict=False):
        text = f"How many shapes are in the {word} picture?"
        questions.append(Question(text=text, answer=str(count), skill="pair_count"))
        kinds = sorted({shape.kind for shape in scene.shapes})
        if len(kinds) == 1:
            text = f"What kind of shape is in the {word} picture?"
            questions.append(Question(text=text, answer=kinds[0], skill="pair_kind"))
        colors = sorted({shape.color for shape in scene.shapes})
        if len(colors) == 1:
            text = f"What color is in the {word} picture?"
            questions.append(Question(text=text, answer=colors[0], skill="pair_color"))
    if counts[0] != counts[1]:
        answer = ORDINALS[0] if counts[0] > counts[1] else ORDINALS[1]
        text = "Which picture has more shapes, the first or the second?"
        questions.append(Question(text=text, answer=answer, skill="pair_more"))
    kind = rng.choice(sorted({shape.kind for scene in scenes for shape in scene.shapes}))
    holders = [any(shape.kind == kind for shape in scene.shapes) for scene in scenes]
    if sum(holders) == 1:
        text = f"Which picture has {plural(kind)}, the first or the second?"
        answer = ORDINALS[holders.index(True)]
        questions.append(Question(text=text, answer=answer, skill="pair_which"))
    return questions


# --- no image

OPPOSITES = (
    *(("big", "small"), ("hot", "cold"), ("up", "down"), ("left", "right"), ("day", "night")),
    *(("open", "closed"), ("high", "low"), ("fast", "slow"), ("old", "new"), ("full", "empty")),
)
FACTS = (
    ("Who are you?", "I am InternVL-Chat-Tiny, a small model that looks at small pictures."),
    ("What can you do?", "I name shapes and colors, count, read charts and signs, and give boxes."),
    ("Hello!", "Hello! Show me a picture and ask me about it."),
    ("Thank you.", "You are welcome."),
    ("How many sides has a triangle?", "3"),
    ("How many sides has a square?", "4"),
    ("What color is the sky?", "blue"),
    ("What color is grass?", "green"),
    ("What color is snow?", "white"),
    ("What color is coal?", "black"),
    ("What color is a lemon?", "yellow"),
)


def ask_sum(rng: random.Random) -> Question:
    """Sum of two small numbers."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return Question(text=f"What is {a} plus {b}?", answer=str(a + b), skill="text_sum")


def ask_next(rng: random.Random) -> Question:
    """Number after another."""
    number = rng.randint(0, 98)
    text = f"What number comes after {number}?"
    return Question(text=text, answer=str(number + 1), skill="text_next")


def ask_spelling(rng: random.Random) -> Question:
    """A word letter by letter."""
    word = rng.choice(TRAIN_WORDS)
    return Question(text=f"Spell {word}.", answer=" ".join(word), skill="text_spell")


def ask_opposite(rng: random.Random) -> Question:
    """Opposite of a common word."""
    pair = rng.choice(OPPOSITES)
    one, other = pair if rng.random() < 0.5 else pair[::-1]
    return Question(text=f"What is the opposite of {one}?", answer=other, skill="text_fact")


def ask_fact(rng: random.Random) -> Question:
    """One of a few things to know by heart."""
    text, answer = rng.choice(FACTS)
    return Question(text=text, answer=answer, skill="text_fact")


def ask_story(rng: random.Random) -> Question:
    """A scene told in words, and a question about it: looking up, without seeing."""
    count = rng.randint(2, 5)
    colors, kinds = rng.sample(COLOR_NAMES, count), rng.sample(KINDS, count)
    names = [f"{color} {kind}" for color, kind in zip(colors, kinds, strict=True)]
    told = ", ".join(with_article(name) for name in names)
    index = rng.randrange(count)
    asked, answer = rng.choice(
        (
            (f"What color is the {kinds[index]}?", colors[index]),
            (f"What shape is {colors[index]}?", kinds[index]),
            ("How many shapes are there?", str(count)),
            (f"Which shape is the {ORDINALS[index]}?", names[index]),
        )
    )
    return Question(text=f"I see {told}. {asked}", answer=answer, skill="text_story")


TextPrompt = Callable[[random.Random], Question]
TEXT_PROMPTS: Sequence[TextPrompt] = (
    ask_sum,
    ask_next,
    ask_spelling,
    ask_opposite,
    ask_fact,
    ask_story,
    ask_story,
)
