"""Learning rates by part: which parameter gets which, and what becomes of a checkpoint's groups."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from internvl_chat.errors import CheckpointError
from internvl_chat.train.arguments import ModelArguments, trainable_config
from internvl_chat.train.checkpoints import continue_schedule, load_optimizer
from internvl_chat.train.effects import settled
from internvl_chat.train.finetune import main
from internvl_chat.train.rates import (
    NAMES,
    PartRates,
    RateMeter,
    grouping,
    names_by_group,
    part_rates,
    rate_problems,
    split_groups,
    unused_rates,
    usual_groups,
)
from internvl_chat.train.trainer_arguments import TrainArguments
from internvl_chat.train.update_rule import update_problems
from internvl_chat.train.zero import zero_config
from tests.support.training import logged, train_arguments, weights, write_dataset
from tests.support.training import write_tiny_chat_model as write_model

BY_PART = {"vision_lr": 4e-3, "mlp_lr": 2e-3, "vit_layer_decay_rate": 0.5}
SHORT = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), ("text", "image", "two", "rounds"))


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """The entry point sets logging up for a process of its own."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


# ---- which rate ---------------------------------------------------------------------------------


def rates(**changes: Any) -> PartRates:
    values = {"base": {"vision": 1.0, "mlp": 3.0, "llm": 5.0}, "decay": 0.5, "num_layers": 4}
    return PartRates(**{**values, **changes})


@pytest.mark.parametrize(
    ("name", "group", "rate"),
    [
        ("vision_model.embeddings.position_embedding", "vision embeddings", 0.5**5),
        ("vision_model.embeddings.patch_embedding.weight", "vision embeddings", 0.5**5),
        ("vision_model.encoder.layers.0.ls1", "vision layer 0", 0.5**4),
        ("vision_model.encoder.layers.3.mlp.fc1.weight", "vision layer 3", 0.5),
        (
            "vision_model.base_model.model.encoder.layers.2.attn.qkv.lora_A.default.weight",
            "vision layer 2",
            0.5**2,
        ),
        ("mlp1.1.weight", "mlp", 3.0),
        ("language_model.model.layers.0.mlp.up_proj.weight", "llm", 5.0),
        ("language_model.base_model.model.lm_head.weight", "llm", 5.0),
        ("module.language_model.model.norm.weight", "llm", 5.0),
    ],
)
def test_the_rate_of_a_parameter(name: str, group: str, rate: float) -> None:
    assert rates().group_of(name) == group
    assert rates().rate_of(name) == rate
    part = group.split()[0]
    flat = rates(decay=1.0)
    assert (flat.group_of(name), flat.rate_of(name)) == (part, flat.base[part])


def test_without_the_options_there_is_nothing_to_split() -> None:
    usual = {"learning_rate": 1e-5, "vision_lr": None, "vit_layer_decay_rate": 1.0}
    assert part_rates(usual, 4) is None
    assert part_rates({"learning_rate": 1e-5}, 4) is None  # of an earlier version
    found = part_rates({**usual, "mlp_lr": 0.0}, 4)
    assert found is not None
    assert found.base == {"vision": 1e-5, "mlp": 0.0, "llm": 1e-5}
    words = [grouping(a) for a in (usual, {"llm_lr": 1e-5}, {"vit_layer_decay_rate": 0.9})]
    assert words == ["one learning rate", "rates by part", "rates by part and layer"]


def test_the_figures_of_a_step() -> None:
    names = [["vision_model.encoder.layers.3.ls1"], ["vision_model.encoder.layers.2.ls1"]]
    meter = RateMeter([*names, ["mlp1.1.weight"], []], rates(), 3.0)
    assert meter.read([0.05, 0.025, 0.3, 0.0]) == {
        "learning_rate": 0.3,
        "learning_rate/vision": 0.05,
        "learning_rate/mlp": 0.3,
    }
    meter = RateMeter(names, rates(), 2.0)  # that no part follows: a tenth of it by now
    assert meter.read([0.05, 0.025])["learning_rate"] == pytest.approx(0.2)
    meter = RateMeter(names, rates(base={"vision": 0.0}), 2.0)
    assert meter.read([0.0, 0.0])["learning_rate"] == 0


# ---- what is told -------------------------------------------------------------------------------

FROZEN = {"freeze_mlp": True, "freeze_backbone": True}


@pytest.mark.parametrize(
    ("arguments", "trains", "told"),
    [
        ({"vision_lr": 1e-5}, {}, "--vision_lr 1e-05: the vision tower is frozen (--freeze_back"),
        ({"mlp_lr": 1e-5}, {}, "--mlp_lr 1e-05: the projector is frozen (--freeze_mlp True)"),
        ({"vit_layer_decay_rate": 0.9}, {}, "--vit_layer_decay_rate 0.9: the vision tower is"),
        ({"llm_lr": 0}, {"freeze_llm": True, "freeze_mlp": False}, "--llm_lr 0: the LLM is frozen"),
        ({"llm_lr": 1e-5}, {}, None),
        ({"llm_lr": 1e-5}, {"freeze_llm": True, "use_llm_lora": 4}, None),
        ({"llm_lr": 1e-5}, {"freeze_llm": True, "unfreeze_lm_head": True}, None),
        ({"vision_lr": 1e-5}, {"use_backbone_lora": 4}, None),
        ({"vit_layer_decay_rate": 0.9}, {"unfreeze_vit_layers": -1}, None),
    ],
)
def test_a_rate_of_what_is_frozen(
    arguments: dict[str, float], trains: dict[str, Any], told: str | None
) -> None:
    trainable = trainable_config(ModelArguments(**{**FROZEN, **trains}))
    problems = list(rate_problems(arguments, trainable))
    assert len(problems) == (told is not None)
    assert all(problem.startswith(told or "") for problem in problems)


def test_what_peft_stores_whole_may_train() -> None:
    lora = {"freeze_llm": True, "use_llm_lora": 4, "freeze_backbone": True}
    trainable = trainable_config(ModelArguments(**lora))
    arguments = {"vision_lr": 1e-5}
    assert len(list(rate_problems(arguments, trainable))) == 1
    assert list(rate_problems(arguments, trainable, stored_whole=["vision_model"])) == []
    (problem,) = unused_rates(arguments, ["language_model.lm_head.weight", "mlp1.1.weight"])
    assert problem.startswith("--vision_lr 1e-05: the vision tower is frozen")
    assert list(unused_rates(arguments, ["vision_model.encoder.layers.0.ls1"])) == []


@pytest.mark.parametrize("module", ["vision_model", "lm_head"])
def test_a_module_that_trains_beside_an_adapter(
    model: Path, meta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    lora = {"freeze_llm": True, "freeze_backbone": True, "use_llm_lora": 2}
    options = {**lora, "modules_to_save": module, "vision_lr": 1e-5, "max_steps": 1}
    trains = module == "vision_model"
    out = tmp_path / "out"
    assert main(train_arguments(model, meta, out, **options)) == (0 if trains else 2)
    told = "lr 1e-05" if trains else "--vision_lr 1e-05: the vision tower is frozen"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--vision_lr", "-1e-5"], "--vision_lr -1e-05: want a number >= 0."),
        (["--llm_lr", "nan"], "--llm_lr nan: want a number >= 0."),
        (["--mlp_lr", "inf"], "--mlp_lr inf: want a number >= 0."),
        (["--vit_layer_decay_rate", "0"], "--vit_layer_decay_rate 0.0: want a factor above 0"),
        (["--vit_layer_decay_rate", "1.1"], "--vit_layer_decay_rate 1.1: want a factor above 0"),
        (["--vit_layer_decay_rate", "nan"], "--vit_layer_decay_rate nan: want a factor above 0"),
        (["--vision_lr", "1", "--freeze_backbone", "True"], "the vision tower is frozen"),
        (["--aligner_lr", "1e-5"], "unknown argument --aligner_lr: it is --mlp_lr here."),
        (
            ["--vision_lr", "1e-5", "--optim", "lomo"],
            "--optim lomo updates the weights in its own way, at one rate",
        ),
    ],
)
def test_refused(
    model: Path,
    meta: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    told: str,
) -> None:
    assert main([*train_arguments(model, meta, tmp_path / "out"), *flags]) == 2
    assert told in capsys.readouterr().err


def test_an_optimizer_of_deepspeeds_own_would_have_one_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from internvl_chat.train import zero

    monkeypatch.setattr(zero, "can_build_cpu_adam", lambda device: True)
    source = {
        "optimizer": {"type": "AdamW"},
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    }
    values = {
        **{"bf16": False, "fp16": False, "learning_rate": 1e-5, "adam_epsilon": 1e-8},
        **{"weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999},
    }
    device = torch.device("cpu")
    assert "optimizer" in (zero_config(source, values, device) or {})
    assert "optimizer" not in (zero_config(source, {**values, "mlp_lr": 1e-4}, device) or {})


@pytest.mark.parametrize(("section", "instead"), [("optimizer", "optim"), ("scheduler", "lr_sch")])
def test_what_a_deepspeed_file_makes_has_one_rate(
    tmp_path: Path, section: str, instead: str
) -> None:
    train = TrainArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, mlp_lr=1e-4)
    train.deepspeed = {section: {"type": "Lamb"}}
    (problem,) = update_problems(train)
    assert f"the {section} of the --deepspeed file (Lamb) has one rate for all" in problem
    assert f"Remove it from the file; --{instead}" in problem
    train.mlp_lr = None
    assert list(update_problems(train)) == []


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ({"learning_rate": 1.0}, {"learning_rate": 1.0, "mlp_lr": 1.0}, True),
        ({"learning_rate": 1.0}, {"learning_rate": 1.0, "mlp_lr": 2.0}, False),
        (
            {"learning_rate": 1.0},
            {"learning_rate": 9.0, "vision_lr": 1.0, "mlp_lr": 1.0, "llm_lr": 1.0},
            True,
        ),
        (
            {"learning_rate": 8.0, "vision_lr": 1.0, "mlp_lr": 2.0, "llm_lr": 3.0},
            {"learning_rate": 9.0, "vision_lr": 1.0, "mlp_lr": 2.0, "llm_lr": 3.0},
            True,
        ),
    ],
)
def test_rates_that_come_to_the_same(
    first: dict[str, float], second: dict[str, float], equal: bool
) -> None:
    unset = dict.fromkeys(("vision_lr", "mlp_lr", "llm_lr"))
    assert (settled({**unset, **first}) == settled({**unset, **second})) is equal


# ---- groups of other runs -----------------------------------------------------------------------


class Parts(nn.Module):
    """A few parameters under a chat model's names; those of one group do not follow each other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision_model = nn.Module()
        self.vision_model.embeddings = nn.Linear(3, 3)
        self.vision_model.encoder = nn.Module()
        self.vision_model.encoder.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.vision_model.after = nn.Linear(3, 3)
        self.mlp1 = nn.Linear(3, 3)
        self.language_model = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.vision_model.embeddings(x)
        for layer in self.vision_model.encoder.layers:
            x = layer(x)
        return self.language_model(self.mlp1(self.vision_model.after(x)))


def optimizer_of(model: Parts, split: PartRates | None) -> torch.optim.Optimizer:
    """As the trainer makes it."""
    named = dict(model.named_parameters())
    groups = [{"params": [named[n] for n in names]} for names in usual_groups(named.items())]
    found = torch.optim.AdamW(groups, lr=1e-3)
    if split is not None:
        split_groups(found, named.items(), split)
    return found


def step(model: Parts, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


SPLIT = rates(num_layers=2)
OTHER = rates(decay=1.0)


@pytest.mark.parametrize(("before", "now"), [(None, SPLIT), (SPLIT, None), (SPLIT, OTHER)])
def test_state_follows_its_parameter_into_other_groups(
    before: PartRates | None, now: PartRates | None
) -> None:
    model = Parts()
    former = optimizer_of(model, before)
    step(model, former)
    moments = {
        name: former.state[parameter]["exp_avg"].clone()
        for name, parameter in model.named_parameters()
    }
    saved = former.state_dict()
    found = optimizer_of(model, now)
    groups = names_by_group(found, model.named_parameters())
    load_optimizer(found, model, saved, where="checkpoint-1")
    assert names_by_group(found, model.named_parameters()) == groups
    assert [NAMES in group for group in found.param_groups] == [now is not None] * len(groups)
    for name, parameter in model.named_parameters():
        assert torch.equal(found.state[parameter]["exp_avg"], moments[name])
    step(model, found)  # and it goes on
    again = optimizer_of(model, now)
    load_optimizer(again, model, found.state_dict(), where="checkpoint-2")


def test_groups_that_nobody_can_name_are_refused() -> None:
    model = Parts()
    saved = torch.optim.AdamW(list(model.parameters())[:3]).state_dict()
    with pytest.raises(CheckpointError, match=r"checkpoint-1: its optimizer groups .* --vision_lr"):
        load_optimizer(optimizer_of(model, SPLIT), model, saved, where="checkpoint-1")


def test_schedules_go_on_over_another_number_of_groups() -> None:
    model = Parts()
    one, many = optimizer_of(model, None), optimizer_of(model, SPLIT)
    first = [group["lr"] for group in many.param_groups]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda n: 1 / (n + 1)) for o in (one, many)]
    schedules[0].last_epoch = 3
    continue_schedule(schedules[1], schedules[0].state_dict(), step=3, base=first)
    assert [group["lr"] for group in many.param_groups] == [rate / 4 for rate in first]
    continue_schedule(schedules[0], schedules[1].state_dict(), step=3)
    assert [group["lr"] for group in one.param_groups] == [1e-3 / 4] * 2
    plateaus = [torch.optim.lr_scheduler.ReduceLROnPlateau(o) for o in (one, many)]
    plateaus[0].num_bad_epochs = 3
    continue_schedule(plateaus[1], plateaus[0].state_dict(), step=3, base=first)
    assert plateaus[1].num_bad_epochs == 3
    assert len(plateaus[1].min_lrs) == len(first)
    continue_schedule(plateaus[1], schedules[0].state_dict(), step=3, base=first)
    assert [group["lr"] for group in many.param_groups] == first


# ---- whole runs ---------------------------------------------------------------------------------


def by_hand(name: str) -> tuple[float, float]:
    """Learning rate and weight decay of a parameter of the tiny model, which has three layers."""
    decay = 0.0 if name.endswith(("bias", "norm.weight", "ls1", "ls2", "mlp1.0.weight")) else 0.1
    decay = 0.0 if "layernorm" in name or ".norm" in name else decay
    if name.startswith("mlp1."):
        return 2e-3, decay
    if name.startswith("language_model."):
        return 1e-3, decay
    layers = {".layers.2.": 0.5, ".layers.1.": 0.25, ".layers.0.": 0.125}
    factor = next((value for layer, value in layers.items() if layer in name), 0.0625)
    return 4e-3 * factor, decay


def test_a_step_is_that_of_adamw_with_groups_by_hand(
    model: Path, meta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(train_arguments(model, meta, out, **SHORT, **BY_PART)) == 0
    told = capsys.readouterr().err
    assert "lr 0.00025 to 0.002" in told
    assert "lr/vision 0.002  lr/" in told
    saved = torch.load(out / "checkpoint-1/optimizer.pt", weights_only=True)
    names = [name for group in saved["param_groups"] for name in group[NAMES]]
    before, after = weights(model), weights(out)
    assert sorted(names) == sorted(after)
    for number, name in enumerate(names):
        weight = nn.Parameter(before[name].clone())
        weight.grad = saved["state"][number]["exp_avg"] / (1 - 0.9)  # after one step
        rate, decay = by_hand(name)
        torch.optim.AdamW([weight], lr=rate, weight_decay=decay, eps=1e-8).step()
        torch.testing.assert_close(after[name], weight.data, rtol=2e-6, atol=2e-7)
        assert not torch.equal(after[name], before[name])


def test_rates_come_go_and_change_as_a_run_goes_on(
    model: Path, meta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = train_arguments(model, meta, out, **SHORT)
    assert main(argv) == 0
    plain = torch.load(out / "checkpoint-1/optimizer.pt", weights_only=True)
    assert [sorted(group.keys() & {NAMES, "lr"}) for group in plain["param_groups"]] == [["lr"]] * 2
    assert main([*argv, "--max_steps", "2", "--vision_lr", "0", "--mlp_lr", "5e-3"]) == 0
    told = capsys.readouterr().err
    assert "--vision_lr none -> 0.0; --mlp_lr none -> 0.005: from step 2 on this run's" in told
    assert "--vision_lr 0: the vision tower stays as it is" in told
    first, second = (weights(out / f"checkpoint-{n}") for n in (1, 2))
    moved = {name: not torch.equal(first[name], second[name]) for name in first}
    assert moved == {name: not name.startswith("vision_model.") for name in first}
    assert main([*argv, "--max_steps", "3"]) == 0
    assert logged(out, "learning_rate") == [1e-3] * 3
    assert logged(out, "learning_rate/mlp") == [5e-3]
    third = torch.load(out / "checkpoint-3/optimizer.pt", weights_only=True)
    assert [state["step"].item() for state in third["state"].values()] == [3.0] * len(first)
    # What is finished is not finished at another rate.
    assert main([*argv, "--max_steps", "3", "--llm_lr", "1e-6"]) == 2
    assert "--llm_lr none -> 1e-06" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        {"optim": "adafactor"},
        {"optim": "sgd", "lr_scheduler_type": "reduce_lr_on_plateau", "eval_steps": 1},
        {"optim": "adamw_bnb_8bit", "freeze_backbone": True, "unfreeze_vit_layers": -1},
    ],
)
def test_other_optimizers_and_schedules(
    model: Path, meta: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    if "eval_steps" in options:
        options = {**options, "eval_meta_path": meta}
    out = tmp_path / "out"
    argv = train_arguments(model, meta, out, **{**SHORT, **BY_PART, **options, "mlp_lr": 0.0})
    assert main(argv) == 0
    assert main([*argv, "--max_steps", "2"]) == 0
    assert logged(out, "learning_rate/vision") == [2e-3] * 2
    before, after = weights(model), weights(out)
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("mlp1.")} <= still
    assert any(name.startswith("vision_model.encoder.layers.2") for name in before.keys() - still)
    assert any(name.startswith("language_model.") for name in before.keys() - still)
