"""Configs tell all that is wrong with them when they are built; flags reach them one to one."""

from __future__ import annotations

import ast
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args

import pytest

from internvl_chat import config
from internvl_chat.config import ORDER_RULE, NormalizeType, OrderConfig, SourceConfig
from internvl_chat.errors import ConfigError
from internvl_chat.model.constants import NORMALIZATION
from internvl_chat.train import arguments
from internvl_chat.train.arguments import DataArguments, ModelArguments
from tests.support.configs import build_config, image_config, media_config, order_config
from tests.support.training import ROOT

CONFIGS = [kind for kind in vars(config).values() if is_dataclass(kind) and isinstance(kind, type)]


def problems(make: Any, **flags: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        make(**flags)
    return caught.value.problems


def test_where_the_weights_come_from() -> None:
    make = arguments.source_config
    assert make(ModelArguments(model_name_or_path="a")) == SourceConfig.whole("a")
    assert SourceConfig.whole("a").tokenizer_path == "a"
    parts = SourceConfig.parts(vision_path="v", llm_path="l", mlp_path=None)
    assert make(ModelArguments(vision_path="v", llm_path="l")) == parts
    assert parts.tokenizer_path == "l"
    for flags, said in (
        ({}, "no model: give --model_name_or_path, or --vision_path and --llm_path"),
        ({"llm_path": "l"}, "--vision_path is missing"),
        ({"mlp_path": "m", "vision_path": "v"}, "--llm_path is missing"),
        (
            {"model_name_or_path": "a", "mlp_path": "m", "llm_path": "l"},
            "yet --llm_path and --mlp_path given too",
        ),
    ):
        assert said in str(problems(lambda **f: make(ModelArguments(**f)), **flags))


def test_what_trains() -> None:
    def make(**flags: Any) -> config.TrainableConfig:
        return arguments.trainable_config(ModelArguments(**flags))

    frozen = {"freeze_llm": True, "freeze_mlp": True, "freeze_backbone": True}
    assert make().parts == {"llm", "mlp", "backbone"}
    assert make(**frozen, use_llm_lora=16).parts == {"llm_lora"}
    assert make(**frozen, unfreeze_vit_layers=-2, unfreeze_lm_head=True).parts == {
        "vit_layers",
        "lm_head",
    }
    assert "nothing trains" in problems(make, **frozen)[0]
    found = problems(make, use_llm_lora=-1, use_backbone_lora=8, unfreeze_lm_head=True)
    assert [text.split()[0] for text in found] == [
        "--use_llm_lora",
        "--use_llm_lora",
        "--use_backbone_lora",
        "--unfreeze_lm_head",
    ]


def test_several_problems_are_one_error() -> None:
    found = problems(image_config, force_image_size=0, min_dynamic_patch=3, max_dynamic_patch=2)
    assert found == (
        "--force_image_size 0: want a number > 0.",
        "--min_dynamic_patch 3 and --max_dynamic_patch 2: want 1 <= smallest <= largest.",
    )
    assert str(ConfigError.listing(found)) == (
        "2 problems in the arguments:\n- " + "\n- ".join(found)
    )


@pytest.mark.parametrize(
    ("make", "flags", "message"),
    [
        (media_config, {"max_image_pixels": 0}, "--max_image_pixels 0: want a number > 0"),
        (media_config, {"min_num_frame": 9, "max_num_frame": 8}, "--min_num_frame 9"),
        (image_config, {"normalize_type": "coco"}, "want one of imagenet, clip, siglip"),
        (build_config, {"model_name_or_path": "a", "drop_path_rate": 1.0}, "0 <= rate < 1"),
        (build_config, {"model_name_or_path": "a", "down_sample_ratio": 0.75}, "1 over a whole"),
        (build_config, {"model_name_or_path": "a", "down_sample_ratio": 2.0}, "0 < ratio <= 1"),
        (order_config, {"mode": "packed", "max_packed_tiles": 0}, "--max_packed_tiles 0"),
    ],
)
def test_out_of_range(make: Any, flags: dict[str, Any], message: str) -> None:
    assert message in str(problems(make, **flags))


def test_statistics_have_one_set_of_names() -> None:
    assert get_args(NormalizeType) == tuple(NORMALIZATION)


def test_no_field_has_a_default_and_none_is_declared_twice() -> None:
    names = [field.name for kind in CONFIGS for field in fields(kind)]
    assert all(field.default is MISSING for kind in CONFIGS for field in fields(kind))
    assert sorted({name for name in names if names.count(name) > 1}) == ["images"]


def test_packing_takes_its_limits_only_where_it_packs() -> None:
    packed = DataArguments(use_packed_ds=True, max_packed_tokens=512, max_packed_tiles=6)
    assert arguments.order_config(packed, grouped=True, drop_last=True) == OrderConfig(
        mode="packed", max_packed_tokens=512, max_packed_tiles=6, drop_last=True, rule=ORDER_RULE
    )
    assert arguments.order_config(DataArguments(), grouped=True, drop_last=False) == OrderConfig(
        mode="grouped",
        max_packed_tokens=None,
        max_packed_tiles=None,
        drop_last=False,
        rule=ORDER_RULE,
    )


def test_an_option_is_handed_on_in_two_files_only() -> None:
    """A new image option touches the flags, its config and the module that uses it."""
    built_in = set()
    for path in (ROOT / "internvl_chat").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            named = node.func if isinstance(node, ast.Call) else None
            if isinstance(named, ast.Name) and named.id in {kind.__name__ for kind in CONFIGS}:
                built_in.add(path.relative_to(ROOT / "internvl_chat").as_posix())
    assert built_in <= {"config.py", "train/arguments.py"}
