"""What image tokens show, and the embeddings of the labels."""

import math

import numpy as np
import pytest
import torch

from examples.tiny_model.charts import Bar, Chart
from examples.tiny_model.common import stream
from examples.tiny_model.label_embeddings import (
    GROUP_NAMES,
    GROUPS,
    NOTHING,
    NUM_TOKENS,
    UNKNOWN,
    LabelEmbeddings,
    TokenLabels,
    label_image,
    token_at,
    waves,
)
from examples.tiny_model.scene import MANY, Scene, Shape, sample_scene
from examples.tiny_model.vision_stage import sample_spec
from examples.tiny_model.words import Line, Sign, sample_glyphs
from internvl_chat.model.modeling_internvl_chat import pixel_shuffle

GREY = (150, 150, 150)


def shown(labels: TokenLabels, token: int) -> dict[str, str]:
    """Labels of a token in words, without its place."""
    indices = labels.classes[token].tolist()
    words = {name: GROUPS[name][i] for name, i in zip(GROUP_NAMES, indices, strict=True) if i >= 0}
    for name in ("row", "column"):
        del words[name]
    return {name: word for name, word in words.items() if "_" not in name}


def test_tokens_are_numbered_as_the_model_shuffles_them() -> None:
    # An image whose patches hold their own number, through the model's own shuffle.
    grid = torch.arange(64).view(1, 8, 8, 1)
    tokens = pixel_shuffle(grid, 0.5, version="v1").flatten(1, 2)[0]
    for x, y in ((0, 0), (111, 0), (0, 111), (60, 30), (111.9, 111.9)):
        patch = int(y // 14) * 8 + int(x // 14)
        assert patch in tokens[token_at(x, y)].tolist()


def test_a_scene_is_told_shape_by_shape() -> None:
    shapes = (
        Shape(kind="star", color="red", x=14, y=98, radius=8.0, fill=(0, 0, 0)),
        Shape(kind="circle", color="red", x=70, y=42, radius=13.0, fill=(0, 0, 0)),
    )
    labels = label_image(Scene(background=GREY, shapes=shapes))
    star, circle, empty = (token_at(x, y) for x, y in ((14, 98), (70, 42), (100, 100)))
    common = {"color": "red", "total": "2"}
    assert shown(labels, star) == {"kind": "star", "size": "small", **common}
    assert shown(labels, circle) == {"kind": "circle", "size": "large", **common}
    assert shown(labels, empty) == {"total": "2"}
    indices = labels.classes[circle].tolist()
    digits = [i for name, i in zip(GROUP_NAMES, indices, strict=True) if "_" in name]
    assert digits == [5, 1, 2, 6, 7, 4, 4, 9]  # 57, 29, 83 and 55 of 112 pixels
    np.testing.assert_allclose(labels.edges[circle] * 112, [57, 29, 83, 55], rtol=1e-6)
    assert np.isnan(labels.edges[empty]).all()


def test_what_is_not_known_of_a_full_image_is_left_open() -> None:
    many = label_image(sample_scene(stream(0, "many"), counts=MANY))
    assert (many.classes[:, GROUP_NAMES.index("total")] == UNKNOWN).all()
    sheet = label_image(sample_glyphs(stream(0, "sheet")))
    assert (sheet.classes[:, GROUP_NAMES.index("glyph")] >= 0).all()
    assert (sheet.classes[:, GROUP_NAMES.index("place")] == UNKNOWN).all()


def test_every_token_of_a_bars_column_tells_the_bar() -> None:
    bars = (
        Bar(color="blue", value=3, fill=(0, 0, 0), box=(15, 76, 27, 105)),
        Bar(color="red", value=10, fill=(0, 0, 0), box=(99, 9, 111, 105)),
    )
    chart = Chart(background=GREY, bars=bars, left=13, bottom=105, unit=9.6)
    labels = label_image(chart)
    for y in (10, 40, 70, 100):
        told = {"color": "blue", "kind": "bar", "value": "3", "order": "1", "total": "2"}
        assert shown(labels, token_at(20, y)) == told
        assert shown(labels, token_at(105, y))["value"] == "10"
        assert shown(labels, token_at(50, y)) == {"total": "2"}


def test_a_sign_is_told_glyph_by_glyph() -> None:
    line = Line(
        kind="word",
        text="BAT",
        color="red",
        fill=(0, 0, 0),
        size=22,
        bold=False,
        x=28,
        y=42,
        offsets=((0, 0),) * 3,
    )
    labels = label_image(Sign(background=GREY, lines=(line,)))
    told = [shown(labels, token_at(x, 42)) for x in (42, 70, 98)]
    assert [(t["glyph"], t["place"]) for t in told] == [("B", "1"), ("A", "2"), ("T", "3")]
    assert {(t["line"], t["length"], t["color"]) for t in told} == {("word", "3", "red")}
    assert shown(labels, token_at(10, 42)) == {}


def test_what_is_encoded_can_be_decoded() -> None:
    label_embeddings = LabelEmbeddings(256)
    for index in range(40):
        labels = label_image(sample_spec(stream(0, "codes", index)))
        classes, edges = torch.from_numpy(labels.classes), torch.from_numpy(labels.edges)
        groups, found_waves, rest = label_embeddings.decode(label_embeddings.encode(classes, edges))
        for strengths, target in zip(groups, classes.unbind(-1), strict=True):
            wanted = torch.zeros_like(strengths)
            rows = (target >= 0).nonzero()[:, 0]
            wanted[rows, target[rows]] = 1
            torch.testing.assert_close(strengths, wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(found_waves, waves(edges), atol=1e-5, rtol=0)
        assert rest.abs().max() < 1e-5


def test_nothing_and_unknown_add_nothing() -> None:
    label_embeddings = LabelEmbeddings(256)
    edges = torch.full((NUM_TOKENS, 4), math.nan)
    for label in (NOTHING, UNKNOWN):
        classes = torch.full((NUM_TOKENS, len(GROUPS)), label)
        assert not label_embeddings.encode(classes, edges).any()


def test_label_embeddings_are_a_function_of_width_and_seed() -> None:
    assert torch.equal(LabelEmbeddings(256).labels, LabelEmbeddings(256).labels)
    assert not torch.equal(LabelEmbeddings(256).labels, LabelEmbeddings(256, seed=1).labels)
    with pytest.raises(ValueError, match="width 64 <"):
        LabelEmbeddings(64)
