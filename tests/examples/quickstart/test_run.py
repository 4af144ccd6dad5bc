"""Phases, folders and mistakes; nothing is trained and no model is loaded."""

import json
import platform
import shlex
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from examples.annotations import write_json
from examples.quickstart import run as module
from examples.quickstart.plan import (
    BUDGETS,
    MODEL,
    RECIPE,
    RunFiles,
    data_files,
    next_commands,
    training_command,
)
from examples.quickstart.questions import write_replies
from examples.quickstart.run import Quickstart, main, next_free, parse
from examples.quickstart.scoring import Reply
from internvl_chat.train.batch_plan import BatchPlan

ROOT = Path(__file__).parents[3]


def quickstart(tmp_path: Path, budget: str = "small") -> Quickstart:
    return Quickstart(
        run=RunFiles(folder=tmp_path / "run"),
        files=data_files(tmp_path / "playground", BUDGETS[budget]),
        model=tmp_path / "model",
        budget=BUDGETS[budget],
        console=Console(quiet=True),
    )


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Phases replaced by ones that only leave their files; the names of those that ran."""
    ran: list[str] = []

    def ask(console: Console, model: Path, files: object, replies: Path) -> None:
        ran.append(replies.stem)
        answer = "7" if replies.stem == "after" else "1"
        write_replies(
            replies,
            [
                Reply(
                    dataset="digits", identity=i, images=(), question="?", truth="7", answer=answer
                )
                for i in "ab"
            ],
        )

    def train(command: Any) -> int:
        ran.append("train")
        log = [{"step": 1, "loss": 1.0}]
        state = {"global_step": 1, "log_history": log}
        write_json(Path(command.settings["OUTPUT_DIR"]) / "trainer_state.json", state)
        return 0

    monkeypatch.setattr(module, "make_data", lambda *_: ran.append("data"))
    monkeypatch.setattr(module, "ask", ask)
    monkeypatch.setattr(module, "train", train)
    return ran


def test_a_run_leaves_result_and_report(tmp_path: Path, phases: list[str]) -> None:
    assert quickstart(tmp_path).start() == 0
    assert phases == ["data", "before", "train", "after"]
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["before"] == {"digits": 0.0}
    assert result["after"] == {"digits": 1.0}
    assert list(result["seconds"]) == ["data", "before", "train", "after", "total"]
    assert (result["budget"], result["optimizer_steps"]) == ("small", 1)
    low, high = result["interval"]["digits"]
    assert 0 < low < 1 == high
    page = (tmp_path / "run/report.html").read_text()
    assert "Training loss</h2>" in page
    for told in (platform.python_version(), version("torch"), str(date.today().year), "commit"):
        assert told in page
    assert f"--compare {tmp_path / 'run/model'}" in page


def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, phases: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good_train = module.train
    monkeypatch.setattr(module, "train", lambda command: 130)
    assert quickstart(tmp_path).start() == 130
    assert not (tmp_path / "run/result.json").exists()
    monkeypatch.setattr(module, "train", good_train)
    assert quickstart(tmp_path).start() == 0
    assert phases == ["data", "before", "train", "after"]


def test_a_run_with_other_settings_is_not_mixed_up(tmp_path: Path, phases: list[str]) -> None:
    quickstart(tmp_path)._open()
    with pytest.raises(module.WrongUse, match=r"unfinished run with.*small.*asked for are.*full"):
        quickstart(tmp_path, "full").start()
    assert phases == []


def _model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_a_finished_run_is_shown_and_left_alone(
    tmp_path: Path, phases: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dir", str(tmp_path / "run"), "--model", str(_model(tmp_path / "model"))]
    arguments += ["--playground", str(tmp_path / "playground"), "--budget", "small"]
    assert main(arguments) == 0
    made = (tmp_path / "run/result.json").read_bytes()
    phases.clear()
    assert main(arguments) == 0
    assert phases == []
    shown = capsys.readouterr().out
    assert "sh shell/quickstart.sh --again" in shown
    assert "+100.0 (+7.0 to +100.0)" in shown
    assert (tmp_path / "run/result.json").read_bytes() == made
    assert main([*arguments, "--again"]) == 0
    assert phases == ["data", "before", "train", "after"]
    assert (tmp_path / "run-2/result.json").is_file()
    assert (tmp_path / "run/result.json").read_bytes() == made


def test_the_next_free_folder_is_numbered(tmp_path: Path) -> None:
    assert next_free(tmp_path / "q") == tmp_path / "q"
    for name in ("q", "q-2"):
        (tmp_path / name).mkdir()
    assert next_free(tmp_path / "q") == tmp_path / "q-3"


def test_a_missing_model_and_an_unknown_budget_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(tmp_path / "none")]) == 2
    assert "no checkpoint here" in capsys.readouterr().err
    assert main(["--budget", "huge"]) == 2
    assert "'huge'" in capsys.readouterr().err


def test_the_environment_gives_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICKSTART_DIR", "elsewhere")
    monkeypatch.setenv("QUICKSTART_BUDGET", "small")
    args = parse([])
    assert (args.dir, args.budget) == (Path("elsewhere"), "small")


def test_each_budget_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUICKSTART_DIR", raising=False)
    monkeypatch.delenv("QUICKSTART_BUDGET", raising=False)
    assert parse([]).dir == Path("work_dirs/quickstart")
    assert parse(["--budget", "small"]).dir == Path("work_dirs/quickstart-small")


def test_another_budgets_finished_run_is_not_taken_for_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"budget": "small", "model": MODEL.as_posix()}
    (tmp_path / "state.json").write_text(json.dumps({"settings": settings, "seconds": {}}))
    (tmp_path / "result.json").write_text("{}")
    assert main(["--dir", str(tmp_path), "--budget", "full"]) == 2
    told = capsys.readouterr().err
    assert "holds a finished run with {'budget': 'small'" in told
    assert "QUICKSTART_DIR" in told


def test_the_command_is_the_second_recipe_with_a_batch_that_divides() -> None:
    command = training_command(
        model=Path("m"), meta=Path("meta.json"), output_dir=Path("out"), max_steps=6
    )
    assert command.arguments[:2] == ["sh", RECIPE]
    assert Path(RECIPE).is_file()
    assert command.arguments[-2:] == ["--max_steps", "6"]
    settings = command.settings
    assert "zero_stage3" in settings["DEEPSPEED_CONFIG"]
    assert Path(settings["DEEPSPEED_CONFIG"]).is_file()
    BatchPlan(
        global_batch_size=int(settings["BATCH_SIZE"]),
        micro_batch_size=int(settings["PER_DEVICE_BATCH_SIZE"]),
        world_size=int(settings["GPUS"]),
    )


def test_a_result_of_an_earlier_release_is_shown_without_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"before": {"digits": 0.1}, "after": {"digits": 0.9}, "seconds": {"total": 60}}
    result |= {"budget": "full", "optimizer_steps": 1}
    module.show_result(Console(width=120), RunFiles(folder=tmp_path), result)
    assert "+80.0" in capsys.readouterr().out


def test_the_page_names_commands_for_this_run(tmp_path: Path) -> None:
    command = training_command(
        model=Path("m"), meta=Path("a b.json"), output_dir=Path("out/model"), max_steps=6
    )
    asked, compared, again = next_commands(
        before=Path("m"), after=Path("out/model"), image="0.png", training=command
    )
    assert "internvl-chat chat --model out/model --image 0.png 'Which digit is this?'" in asked.text
    assert "internvl-chat demo --model m --compare out/model" in compared.text
    assert "META_PATH='a b.json'" in again.text
    assert "OUTPUT_DIR=out/model-2" in again.text  # the run's own stays


def test_budgets_have_their_own_data_folders() -> None:
    names = {data_files(Path("playground"), budget).name for budget in BUDGETS.values()}
    assert names == {"quickstart", "quickstart-small"}


def test_the_documented_command_is_the_one_that_trains() -> None:
    page = (ROOT / "docs/custom_dataset.md").read_text(encoding="utf-8")
    (block,) = (b for b in page.split("```") if f"MODEL_PATH={MODEL.as_posix()}" in b)
    documented = shlex.split(block.removeprefix("sh").replace("\\\n", " "))
    command = training_command(
        model=MODEL,
        meta=Path("work_dirs/bins/meta.train.json"),
        output_dir=Path("work_dirs/mine"),
        max_steps=None,
    )
    settings = [f"{key}={value}" for key, value in command.settings.items()]
    assert documented == [*settings, *command.arguments]
