"""``internvl-chat eval``, ``evaluate.sh`` and ``run.py`` as they are typed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.cli import main
from internvl_chat.cli.run import main as run_main
from internvl_chat.cli.run import read_env_file
from internvl_chat.evaluation import registry
from internvl_chat.evaluation.spreadsheets import write_xlsx
from internvl_chat.evaluation.task import RULES
from tests.support.evaluation.pope import write_pope
from tests.support.evaluation.scripted import SUMS, write_sums
from tests.support.evaluation.tsv import write_mmstar, write_ocrbench
from tests.support.training import ROOT, environment

MODEL = str(ROOT / "pretrained/internvl-chat-tiny")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with POPE and sums, and both in the registry."""
    write_pope(tmp_path, num_images=2)
    write_sums(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry.TASKS, "sums", SUMS)
    return tmp_path


def say(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["eval", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_list(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = say(capsys, "list", "--json")
    assert code == 0
    rows = {row["id"]: row for row in json.loads(out)}
    assert set(rows) == set(registry.TASKS)
    keys = {"id", "suite", "data", "metric", "max_new_tokens", "judge", "published"}
    assert all(set(row) == keys for row in rows.values())
    assert rows["pope"]["data"][0] == {
        "path": "data/pope/llava_pope_test.jsonl",
        "present": True,
    }
    (work / "data/pope/llava_pope_test.jsonl").unlink()
    code, out, _ = say(capsys, "list")
    assert re.search(r"^pope .* missing: data/pope/llava_pope_test.jsonl$", out, re.M)
    assert re.search(r"^sums .* data is here$", out, re.M)


def test_prompts(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "data/pope/val2014").rename(work / "elsewhere")  # images are not read
    code, out, _ = say(capsys, "prompts", "pope", "--json", "--limit", "2")
    assert code == 0
    rows = json.loads(out)
    assert len(rows) == 2
    assert rows[0] == {
        "id": "0",
        "prompt": "Is there a blue circle?\nAnswer the question using a single word or phrase. ",
        "images": ["data/pope/val2014/COCO_val2014_000000000000.jpg"],
        "settings": {
            "num_beams": 1,
            "max_new_tokens": 100,
            "do_sample": False,
            "temperature": 0.0,
            "min_new_tokens": 1,
        },
    }
    code, out, _ = say(capsys, "prompts", "pope", "--json", "--rules", "later")
    assert json.loads(out)[0]["prompt"].endswith("phrase.")
    assert say(capsys, "prompts", "pope")[1].startswith("0  ['data/pope")


def test_run_then_score(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = say(capsys, "run", MODEL, "pope", "sums", "--max-new-tokens", "4")
    assert code == 0, err
    assert "results: results/pretrained_internvl-chat-tiny/pope" in out
    folder = work / "results/pretrained_internvl-chat-tiny/pope"
    score = json.loads((folder / "score.json").read_text())
    code, out, _ = say(capsys, "score", "pope", str(folder / "answers.jsonl"), "--json")
    assert code == 0
    told: dict[str, Any] = json.loads(out)
    assert told == score
    assert list(told["rules"]) == list(RULES)
    exported = next(folder.glob("pope_*.json"))
    assert json.loads(say(capsys, "score", "pope", str(exported), "--json")[1]) == score
    code, out, _ = say(capsys, "score", "pope", str(folder), "--rules", "later")
    assert code == 0
    assert "Overall F1: " in out
    code, _, err = say(capsys, "run", MODEL, "pope", "--num-beams", "2")
    assert code == 2
    assert "num_beams is 1 there, 2 here" in err


def test_an_unreadable_image_and_missing_answers_are_exit_code_1(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = work / "data/pope/val2014/COCO_val2014_000000000001.jpg"
    image.write_bytes(b"none")
    code, out, _ = say(capsys, "run", MODEL, "pope", "--max-new-tokens", "2", "--out-dir", "r")
    assert code == 1
    assert "3 questions could not be asked" in out
    answers = "r/pretrained_internvl-chat-tiny/pope/answers.jsonl"
    code, out, err = say(capsys, "score", "pope", answers, "--json")
    assert code == 1
    assert json.loads(out)["n"] == 6
    assert "error: 3 answers are missing: 3, 4, 5" in err


def test_flags_may_be_written_with_underscores(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--num_beams", "1", "--out_dir=r", "--max_num", "2", "--num_segments", "4"]
    code, _, err = say(capsys, "run", MODEL, "sums", *flags, "--check-only")
    assert code == 0, err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["run", MODEL, "pop"], "no task 'pop'. Did you mean pope?"),
        (["score", "pop", "a"], "no task 'pop'"),
        (["prompts", "pop"], "no task 'pop'"),
        (["run", "no/model", "sums"], "no/model: no such directory"),
        (["run", MODEL, "sums", "--batch-size", "few"], "--batch-size: is 'few'"),
        (["run", MODEL, "sums", "--rules", "2023"], "--rules: '2023' are none"),
        (["run", MODEL, "sums", "--device", "tpu"], "--device: is 'tpu'"),
        (["score", "sums", "no.json"], "no.json: no such file"),
        (["run", MODEL, "sums", "--nosuch"], "--nosuch"),
    ],
)
def test_mistakes_are_exit_code_2(
    work: Path, argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = say(capsys, *argv)
    assert code == 2
    assert told in err
    assert "Traceback" not in err


@pytest.mark.parametrize("argv", [["run", "no/model", "pope"], ["score", "pope", "a"]])
def test_missing_data_is_named_before_anything_else(
    work: Path, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (work / "data/pope/coco").iterdir():
        path.unlink()
    code, _, err = say(capsys, *argv)
    assert code == 2
    assert err.count("JSON lines: label yes or no") == 3
    assert "data/pope/coco/coco_pope_random.json (file of pope)" in err


# -- evaluate.sh ----------------------------------------------------------------------------------


def shell(
    *argv: str, cwd: Path, script: str = "evaluate.sh", **settings: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(ROOT / script), *argv],
        cwd=cwd,
        env=environment(PYTHON=sys.executable, **settings),
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_command_is_the_originals(tmp_path: Path) -> None:
    done = shell("a b", "pope", "--dynamic", cwd=tmp_path, DRY_RUN="1", MASTER_PORT="7")
    assert done.stdout.endswith(
        "-m torch.distributed.run --nnodes=1 --node_rank=0 --master_addr=127.0.0.1 "
        "--nproc_per_node=8 --master_port=7 -m internvl_chat eval run "
        "--original-beams 'a b' pope --dynamic\n"
    )


@pytest.mark.parametrize("argv", [["m", "mme"], ["m", "pope", "--auto"]])
def test_one_process_where_the_original_takes_one(tmp_path: Path, argv: list[str]) -> None:
    done = shell(*argv, cwd=tmp_path, DRY_RUN="1", script="evalulate.sh")
    assert "distributed" not in done.stdout
    assert done.stdout.endswith(f"eval run --original-beams {' '.join(argv)}\n")


def test_the_script_knows_the_single_process_tasks() -> None:
    text = (ROOT / "evaluate.sh").read_text()
    named = re.search(r"case \$task in (.*)\) GPUS=1", text)
    assert named is not None
    single = {name for name, task in registry.TASKS.items() if task.single_process}
    assert single <= set(named[1].split(" | "))


@pytest.mark.parametrize(
    ("argv", "settings", "told"),
    [
        (["m"], {}, "no task is named"),
        ([], {}, "evaluate.sh CHECKPOINT TASK"),
        (["m", "pope"], {"GPUS": "x"}, "GPUS=x is no whole number"),
    ],
)
def test_mistakes_of_the_script(
    tmp_path: Path, argv: list[str], settings: dict[str, str], told: str
) -> None:
    done = shell(*argv, cwd=tmp_path, **settings)
    assert done.returncode == 2
    assert told in done.stdout + done.stderr


@pytest.mark.distributed
def test_two_processes_and_the_exit_codes(tmp_path: Path) -> None:
    write_pope(tmp_path, num_images=2)
    done = shell(MODEL, "pop", cwd=tmp_path, GPUS="2")
    assert done.returncode == 2
    assert "Did you mean pope?" in done.stderr
    (tmp_path / "data/pope/val2014/COCO_val2014_000000000001.jpg").write_bytes(b"none")
    port = str(20000 + os.getpid() % 20000)
    flags = ("--num-beams", "1", "--max-new-tokens", "3")
    done = shell(MODEL, "pope", *flags, cwd=tmp_path, GPUS="2", MASTER_PORT=port)
    assert done.returncode == 1, done.stderr
    assert "3 questions could not be asked" in done.stdout
    assert "Traceback" not in done.stderr


# -- run.py ---------------------------------------------------------------------------------------


def test_run_py(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "pretrained").mkdir()
    (work / "pretrained/Tiny").symlink_to(MODEL)
    argv = ["--data", "sums", "--model", "Tiny", "--verbose", "--work-dir", "out"]
    assert run_main(argv) == 0
    out = capsys.readouterr().out
    assert "easy/0: " in out
    assert len(list((work / "out/Tiny").glob("sums_*.json"))) == 1
    assert (work / "out/Tiny/sums/answers.jsonl").exists()
    assert run_main([*argv, "--mode", "eval"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert run_main(["--data", "sums", "--model", "No", "--judge", "exact_matching"]) == 2
    assert "no folder No and no pretrained/No" in capsys.readouterr().err
    assert run_main(["--data", "smus", "--model", "Tiny"]) == 2
    assert "Did you mean" in capsys.readouterr().err


def test_run_py_resumes_beside_its_own_results(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default the results of NAME are in ./NAME, where a checkpoint of this name might be."""
    (work / "pretrained").mkdir()
    (work / "pretrained/Tiny").symlink_to(MODEL)
    argv = ["--data", "sums", "--model", "Tiny"]
    assert run_main(argv) == 0
    assert (work / "Tiny/sums/answers.jsonl").exists()
    assert run_main(argv) == 0, capsys.readouterr().err


def test_run_py_scores_without_the_checkpoint_and_goes_on_after_a_mistake(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "lmu").mkdir()
    write_mmstar(work / "lmu")
    write_ocrbench(work / "lmu")
    monkeypatch.setenv("LMUData", str(work / "lmu"))
    rows = [{"index": number, "prediction": "ABCD"[number % 4]} for number in range(12)]
    table = work / "Gone/Gone_MMStar.xlsx"
    table.parent.mkdir()
    table.write_bytes(write_xlsx(("index", "prediction"), rows))
    argv = ["--data", "OCRBench", "MMStar", "--model", "Gone", "--judge", "exact_matching"]
    assert run_main([*argv, "--mode", "eval", "--reuse-aux", "all"]) == 2
    captured = capsys.readouterr()
    assert "Gone_OCRBench.xlsx: no such file" in captured.err
    assert "Overall                  1.0" in captured.out
    assert '"none","1.0"' in (work / "Gone/Gone_MMStar_acc.csv").read_text()
    assert (work / "Gone/Gone_MMStar_exact_matching_result.xlsx").exists()
    assert run_main(argv) == 2  # to be asked it must be there
    assert "no config.json in it" in capsys.readouterr().err


def test_run_py_refuses_two_models_or_data_sets_of_a_name(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("a", "b"):
        (work / folder / "Tiny").mkdir(parents=True)
        (work / folder / "Tiny/config.json").write_text("{}")
        write_mmstar(work / folder)
    argv = ["--data", "a/MMStar.tsv", "--model", "a/Tiny", "b/Tiny", "--judge", "exact_matching"]
    assert run_main(argv) == 2
    assert "a/Tiny and b/Tiny would share Tiny" in capsys.readouterr().err
    twice = ["--data", "a/MMStar.tsv", "b/MMStar.tsv", "--model", MODEL]
    assert run_main(twice) == 2
    assert "b/MMStar.tsv and another are both called MMStar" in capsys.readouterr().err


def test_run_py_reads_settings_from_a_file(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "# ours\nexport LMUData='lmu'\nMMEVAL_ROOT=\nOPENAI_API_KEY = \"of the file\"\nno line\n"
    (work / ".env").write_text(text, encoding="utf-8")
    assert read_env_file(work / ".env") == {"LMUData": "lmu", "OPENAI_API_KEY": "of the file"}
    monkeypatch.setenv("OPENAI_API_KEY", "of the environment")
    monkeypatch.setenv("LMUData", "to be restored")
    monkeypatch.delenv("LMUData")
    assert run_main(["--data", "smus", "--model", "Tiny"], env_file=work / ".env") == 2
    assert os.environ["LMUData"] == "lmu"  # noqa: SIM112
    assert os.environ["OPENAI_API_KEY"] == "of the environment"


def test_run_py_stands_at_the_root() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "--help"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "--mode {all,infer,eval}" in done.stdout


@pytest.mark.distributed
def test_torchruns_last_lines_are_our_message(tmp_path: Path) -> None:
    """Its exit code is 1 whatever ours is, and its traceback comes last: the reason ends it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*launcher, str(ROOT / "run.py"), "--data", "MMSta", "--model", "x", "--verbose"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    lines = done.stderr.rstrip().splitlines()
    reason = "error: TASK: no task 'MMSta'. Did you mean MMStar"
    assert lines[-2].startswith(f"  traceback : {reason}")
    assert set(lines[-1]) == {"="}
    # Of the processes themselves one speaks.
    assert sum(line.startswith(reason) for line in lines) == 1
