"""The shell recipes without a cluster: the command they build, what they refuse, how they end."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from internvl_chat.train.batch_plan import BatchPlan
from tests.support.training import write_dataset

ROOT = Path(__file__).resolve().parents[2]
NAME = "internvl_chat_v1_2_hermes2_yi34b_448_res"
REPRODUCE = f"shell/internvl1.2/hermes2_yi34b/{NAME}_finetune.sh"
FULL = f"shell/internvl1.2/2nd_finetune/{NAME}_2nd_finetune_full.sh"
LORA = f"shell/internvl1.2/2nd_finetune/{NAME}_2nd_finetune_lora.sh"
RECIPES = (REPRODUCE, FULL, LORA)

SHELLS = [
    pytest.param(command, marks=pytest.mark.skipif(not shutil.which(command[0]), reason="absent"))
    for command in (["dash"], ["bash", "--posix"], ["busybox", "sh"], ["sh"])
]

OF_A_NEW_MODEL = shlex.split(
    "--conv_style Hermes-2 --force_image_size 448 --down_sample_ratio 0.5 --vision_select_layer -1 "
    "--ps_version v1 --dynamic_image_size False --use_thumbnail False --max_dynamic_patch 1"
)
TRAINED_IN_ALL = shlex.split(
    "--max_seq_length 2048 --group_by_length True --do_train True --bf16 True "
    "--grad_checkpoint True --num_train_epochs 1 --learning_rate 1e-5 --weight_decay 0.05 "
    "--warmup_ratio 0.03 --lr_scheduler_type cosine --eval_strategy no --save_strategy steps "
    "--save_steps 200 --logging_steps 1 --report_to tensorboard"
)
ZERO = ["--deepspeed", "shell/deepspeed/zero_stage3_config_34b.json"]
STITCHED = shlex.split(
    "--vision_path ./pretrained/InternViT-6B-448px-V1-2 "
    "--mlp_path ./pretrained/InternViT-6B-448px-V1-2/mlp_projector/hermes_2_yi_34b.pth "
    "--llm_path ./pretrained/Nous-Hermes-2-Yi-34B "
    "--meta_path shell/data/internvl_1_2_finetune.json"
)
SECOND = shlex.split(
    "--model_name_or_path ./pretrained/InternVL-Chat-V1-2-Plus "
    "--meta_path shell/data/internvl_1_2_finetune_custom.json"
)


def environment(**settings: str) -> dict[str, str]:
    """A clean environment with only these settings of the recipes."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return kept | settings


def run(
    recipe: str,
    *arguments: str,
    shell: list[str] | None = None,
    cwd: Path = ROOT,
    **settings: str,
) -> subprocess.CompletedProcess[str]:
    script = recipe if cwd == ROOT else str(ROOT / recipe)
    return subprocess.run(
        [*(shell or ["sh"]), script, *arguments],
        cwd=cwd,
        env=environment(**settings),
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
    )


def dry_run(recipe: str, *arguments: str, **settings: str) -> list[str]:
    """The words of the command a recipe would run, environment prefix left out."""
    done = run(recipe, *arguments, DRY_RUN="1", **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, "one line, to be pasted"
    words = shlex.split(done.stdout)
    assert words[0] == f"PYTHONPATH={ROOT}"
    return words[1:]


def value(words: list[str], flag: str) -> str:
    """What argparse would take: the last occurrence."""
    return words[len(words) - words[::-1].index(flag)]


def fake_python(folder: Path, body: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


# ------------------------------------------------------------------ the command that comes out


@pytest.mark.parametrize("shell", SHELLS)
def test_first_command_of_the_guide(shell: list[str]) -> None:
    done = run(
        REPRODUCE,
        shell=shell,
        PARTITION="your partition",
        GPUS="32",
        PER_DEVICE_BATCH_SIZE="8",
        DRY_RUN="1",
    )
    name = f"{NAME}_finetune"
    assert done.stderr == ""
    assert shlex.split(done.stdout) == [
        *(f"PYTHONPATH={ROOT}", "srun", "-p", "your partition", f"--job-name={name}"),
        *("--gres=gpu:8", "--nodes=4", "--ntasks=32", "--ntasks-per-node=8", "--cpus-per-task=10"),
        *("--kill-on-bad-exit=1", "python", "-u", "internvl_chat/train/finetune.py"),
        *(*STITCHED, *ZERO, "--per_device_train_batch_size", "8"),
        *("--gradient_accumulation_steps", "2", "--dataloader_num_workers", "4"),
        *("--output_dir", f"work_dirs/internvl_chat_v1_2/{name}", *OF_A_NEW_MODEL),
        *TRAINED_IN_ALL,
        *("--freeze_backbone", "False", "--freeze_mlp", "False", "--freeze_llm", "False"),
        *("--drop_path_rate", "0.4", "--save_total_limit", "3"),
    ]


def test_first_command_with_64_gpus() -> None:
    words = dry_run(REPRODUCE, PARTITION="p", GPUS="64", PER_DEVICE_BATCH_SIZE="8")
    assert {"--nodes=8", "--ntasks=64", "--ntasks-per-node=8"} <= set(words)
    assert value(words, "--gradient_accumulation_steps") == "1"
    assert words == dry_run(REPRODUCE, PARTITION="p"), "the defaults are the guide's"


@pytest.mark.parametrize("shell", SHELLS)
def test_second_command_of_the_guide(shell: list[str]) -> None:
    done = run(FULL, shell=shell, PARTITION="your partition", GPUS="16", DRY_RUN="1")
    name = f"{NAME}_2nd_finetune_full"
    assert shlex.split(done.stdout) == [
        *(f"PYTHONPATH={ROOT}", "srun", "-p", "your partition", f"--job-name={name}"),
        *("--gres=gpu:8", "--nodes=2", "--ntasks=16", "--ntasks-per-node=8", "--cpus-per-task=10"),
        *("--kill-on-bad-exit=1", "python", "-u", "internvl_chat/train/finetune.py"),
        *(*SECOND, *ZERO, "--per_device_train_batch_size", "4"),
        *("--gradient_accumulation_steps", "2", "--dataloader_num_workers", "4"),
        *("--output_dir", f"work_dirs/internvl_chat_v1_2/{name}", *TRAINED_IN_ALL),
        *("--freeze_backbone", "True", "--freeze_mlp", "False", "--freeze_llm", "False"),
        *("--drop_path_rate", "0.0", "--save_total_limit", "1"),
    ]


@pytest.mark.parametrize("shell", SHELLS)
def test_third_command_of_the_guide(shell: list[str]) -> None:
    done = run(LORA, shell=shell, GPUS="2", DRY_RUN="1")
    name = f"{NAME}_2nd_finetune_lora"
    assert shlex.split(done.stdout) == [
        *(f"PYTHONPATH={ROOT}", "torchrun", "--standalone", "--nnodes=1", "--nproc-per-node=2"),
        *("--local-addr=127.0.0.1", "internvl_chat/train/finetune.py"),
        *(*SECOND, *ZERO, "--per_device_train_batch_size", "4"),
        *("--gradient_accumulation_steps", "2", "--dataloader_num_workers", "4"),
        *("--output_dir", f"work_dirs/internvl_chat_v1_2/{name}", *TRAINED_IN_ALL),
        *("--freeze_backbone", "True", "--freeze_mlp", "True", "--freeze_llm", "True"),
        *("--use_llm_lora", "16", "--drop_path_rate", "0.0", "--save_total_limit", "1"),
    ]


def test_settings_reach_the_command() -> None:
    words = dry_run(
        FULL,
        PARTITION="a",
        GPUS="4",
        GPUS_PER_NODE="2",
        BATCH_SIZE="24",
        PER_DEVICE_BATCH_SIZE="2",
        CPUS_PER_TASK="3",
        NUM_WORKERS="0",
        QUOTA_TYPE="reserved",
        SRUN_ARGS="--time=10 --exclude=n[3-4] *",
        OUTPUT_DIR="out dir",
        META_PATH="my meta.json",
        MODEL_PATH="./pretrained/InternVL-Chat-V1-2",
        DEEPSPEED_CONFIG="zero.json",
        PYTHON="/opt/my python",
    )
    script = words.index("internvl_chat/train/finetune.py")
    assert words[script - 5 : script] == [
        *("--time=10", "--exclude=n[3-4]", "*", "/opt/my python", "-u")
    ]
    assert words[5:11] == [
        *("--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--cpus-per-task=3"),
        *("--kill-on-bad-exit=1", "--quotatype=reserved"),
    ]
    expected = {
        "--gradient_accumulation_steps": "3",
        "--per_device_train_batch_size": "2",
        "--dataloader_num_workers": "0",
        "--output_dir": "out dir",
        "--meta_path": "my meta.json",
        "--model_name_or_path": "./pretrained/InternVL-Chat-V1-2",
        "--deepspeed": "zero.json",
    }
    assert {flag: value(words, flag) for flag in expected} == expected


def test_extra_arguments_come_last() -> None:
    words = dry_run(LORA, "--learning_rate", "2e-5", "--run_name", 'it\'s a "run" $HOME')
    assert words[-4:] == ["--learning_rate", "2e-5", "--run_name", 'it\'s a "run" $HOME']
    assert value(words, "--learning_rate") == "2e-5"


def test_unset_quota_type_and_empty_gres_pass_no_flag() -> None:
    words = dry_run(FULL, PARTITION="p", QUOTA_TYPE="", GRES="")
    assert not [word for word in words if word.startswith(("--quotatype", "--gres"))]
    assert "--gres=gpu:a100:8" in dry_run(FULL, PARTITION="p", GRES="gpu:a100:8")


def test_launcher_decides_over_partition() -> None:
    assert dry_run(LORA, PARTITION="p", LAUNCHER="pytorch")[0] == "torchrun"
    assert dry_run(LORA, LAUNCHER="slurm")[:2] == [
        *("srun", f"--job-name={NAME}_2nd_finetune_lora")
    ]
    assert dry_run(LORA, PARTITION="")[0] == "torchrun"


def test_a_job_smaller_than_a_node_takes_a_part_of_it() -> None:
    words = dry_run(REPRODUCE, PARTITION="p", GPUS="2")
    assert {"--gres=gpu:2", "--nodes=1", "--ntasks=2", "--ntasks-per-node=2"} <= set(words)


def test_torchrun_on_several_machines() -> None:
    settings = {"GPUS": "16", "MASTER_ADDR": "a.example", "NODE_RANK": "1"}
    words = dry_run(FULL, **settings)
    assert words[:7] == [
        *("torchrun", "--nnodes=2", "--node-rank=1", "--nproc-per-node=8"),
        *("--master-addr=a.example", "--master-port=29500", "internvl_chat/train/finetune.py"),
    ]
    assert "--master-port=12345" in dry_run(FULL, MASTER_PORT="12345", **settings)


def test_master_port_is_honoured_on_one_machine() -> None:
    assert dry_run(LORA, MASTER_PORT="12345")[:6] == [
        *("torchrun", "--nnodes=1", "--nproc-per-node=2", "--master-addr=127.0.0.1"),
        *("--master-port=12345", "--local-addr=127.0.0.1"),
    ]


def test_python_starts_torchrun_as_its_module() -> None:
    assert dry_run(LORA, PYTHON="/x/python")[:4] == [
        *("/x/python", "-m", "torch.distributed.run", "--standalone")
    ]


def test_from_another_folder_shipped_files_are_found_and_data_stays_relative(
    tmp_path: Path,
) -> None:
    done = run(LORA, cwd=tmp_path, DRY_RUN="1")
    words = shlex.split(done.stdout)
    assert str(ROOT / "internvl_chat/train/finetune.py") in words
    shipped = ROOT / "shell"
    assert value(words, "--deepspeed") == str(shipped / "deepspeed/zero_stage3_config_34b.json")
    assert value(words, "--meta_path") == str(shipped / "data/internvl_1_2_finetune_custom.json")
    assert value(words, "--model_name_or_path") == "./pretrained/InternVL-Chat-V1-2-Plus"
    assert not any(tmp_path.iterdir()), "a dry run leaves nothing behind"


@pytest.mark.parametrize("recipe", RECIPES)
def test_shipped_files_exist(recipe: str) -> None:
    words = dry_run(recipe, PARTITION="p")
    for flag in ("--meta_path", "--deepspeed"):
        assert (ROOT / value(words, flag)).is_file()
    assert (ROOT / recipe).stat().st_mode & 0o111, "also runs as ./recipe.sh"


# ------------------------------------------------------------------ which model


def test_parts_in_place_of_a_chat_checkpoint_and_back() -> None:
    parts = {"VISION_PATH": "vit", "MLP_PATH": "mlp.pth", "LLM_PATH": "llm"}
    words = dry_run(LORA, **parts)
    assert "--model_name_or_path" not in words
    assert [value(words, f"--{part}_path") for part in ("vision", "mlp", "llm")] == [
        *("vit", "mlp.pth", "llm")
    ]
    words = dry_run(REPRODUCE, PARTITION="p", MODEL_PATH="chat")
    assert value(words, "--model_name_or_path") == "chat"
    assert not {"--vision_path", "--mlp_path", "--llm_path"} & set(words)


@pytest.mark.parametrize("recipe", RECIPES)
def test_image_size_template_and_tiling_are_given_to_new_models_only(recipe: str) -> None:
    parts = {"VISION_PATH": "vit", "MLP_PATH": "mlp.pth", "LLM_PATH": "llm"}
    words = dry_run(recipe, PARTITION="p", GPUS="4", **parts)
    start = words.index("--conv_style")
    assert words[start : start + len(OF_A_NEW_MODEL)] == OF_A_NEW_MODEL
    words = dry_run(recipe, PARTITION="p", GPUS="4", MODEL_PATH="chat")
    assert not set(OF_A_NEW_MODEL[::2]) & set(words)
    words = dry_run(recipe, "--force_image_size", "224", PARTITION="p", GPUS="4", MODEL_PATH="chat")
    assert words[-2:] == ["--force_image_size", "224"]


def test_another_llm_does_not_get_the_default_projector() -> None:
    done = run(REPRODUCE, PARTITION="p", LLM_PATH="other-llm", DRY_RUN="1")
    words = shlex.split(done.stdout)
    assert "--mlp_path" not in words
    assert value(words, "--vision_path") == "./pretrained/InternViT-6B-448px-V1-2"
    assert "no MLP_PATH, the projector starts from random weights" in done.stderr


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("settings", "problem", "mend"),
    [
        (
            {"BATCH_SIZE": "100", "PER_DEVICE_BATCH_SIZE": "4", "GPUS": "16", "PARTITION": "p"},
            "BATCH_SIZE=100 is not PER_DEVICE_BATCH_SIZE x GPUS x n = 4 x 16 x n",
            "nearest that work: BATCH_SIZE=64 or BATCH_SIZE=128",
        ),
        (
            {"BATCH_SIZE": "12", "GPUS": "2"},
            "BATCH_SIZE=12 is not PER_DEVICE_BATCH_SIZE x GPUS x n = 4 x 2 x n",
            "BATCH_SIZE=8 or BATCH_SIZE=16; or keep 12 with PER_DEVICE_BATCH_SIZE=3 or 6",
        ),
        (
            {"BATCH_SIZE": "6", "GPUS": "2"},
            "BATCH_SIZE=6 is not",
            "nearest that work: BATCH_SIZE=8; or keep 6 with PER_DEVICE_BATCH_SIZE=3",
        ),
        (
            {"GPUS": "12", "BATCH_SIZE": "48", "PARTITION": "p"},
            "GPUS=12 is no multiple of GPUS_PER_NODE=8",
            "GPUS=8 or GPUS=16",
        ),
        ({"GPUS": "0"}, "GPUS=0 is no whole number above zero", "GPUS=1 or more"),
        ({"BATCH_SIZE": "1e2"}, "BATCH_SIZE=1e2 is no whole number", "BATCH_SIZE=1 or more"),
        ({"GPUS_PER_NODE": "x"}, "GPUS_PER_NODE=x is no whole number", ""),
        ({"CPUS_PER_TASK": "-1"}, "CPUS_PER_TASK=-1 is no whole number", ""),
        (
            {"LAUNCHER": "mpi"},
            "LAUNCHER=mpi is unknown",
            "LAUNCHER=slurm (srun) or LAUNCHER=pytorch",
        ),
        ({"GPUS": "16"}, "16 with GPUS_PER_NODE=8 are 2 machines", "PARTITION=name to use Slurm"),
        ({"MODEL_PATH": "a", "LLM_PATH": "b"}, "MODEL_PATH=a and parts", "MODEL_PATH for a chat"),
        ({"LLM_PATH": "b"}, "needs VISION_PATH and LLM_PATH", "set both"),
        ({"PYTHON": "/no/such/python"}, "/no/such/python is not on PATH", "set PYTHON"),
    ],
)
@pytest.mark.parametrize("shell", SHELLS[:2])
def test_mistakes_are_told_with_their_mend(
    shell: list[str], settings: dict[str, str], problem: str, mend: str, tmp_path: Path
) -> None:
    recipe = FULL if "PARTITION" in settings else LORA
    done = run(recipe, shell=shell, cwd=tmp_path, **{"BATCH_SIZE": "64", **settings})
    assert done.returncode == 2
    assert done.stdout == ""
    assert problem in done.stderr
    assert mend in done.stderr
    assert not any(tmp_path.iterdir()), "nothing is made before the settings are right"


BATCH_SIZES = (1, 2, 3, 5, 6, 7, 8, 12, 16, 18, 24, 30, 60, 64, 97, 128, 360, 512, 1000)
GRID = list(itertools.product(range(1, 10), range(1, 6), BATCH_SIZES))
"""GPUS, PER_DEVICE_BATCH_SIZE, BATCH_SIZE"""

PLAN_EACH = """
set -eu
. "$lib/launch.sh"
while read -r GPUS PER_DEVICE_BATCH_SIZE BATCH_SIZE; do
    plan=$( (plan_batch && echo "$accumulation") 2>&1 ) || plan="$? $plan"
    echo $plan
done
"""


def answer_of_batch_plan(gpus: int, micro: int, total: int) -> list[int]:
    """The accumulation steps; or exit code 2 and all numbers of the values that would work."""
    try:
        plan = BatchPlan(global_batch_size=total, micro_batch_size=micro, world_size=gpus)
    except ValueError as err:
        return [2, *numbers_after("Nearest that work: ", str(err))]
    return [plan.accumulation_steps]


def numbers_after(words: str, text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text.split(words)[1])]


def answer_of_launcher(line: str) -> list[int]:
    if line.isdigit():
        return [int(line)]
    return [int(line.split()[0]), *numbers_after("nearest that work: ", line)]


def test_batch_sums_agree_with_the_trainer() -> None:
    done = subprocess.run(
        ["sh", "-c", PLAN_EACH],
        input="".join("{} {} {}\n".format(*case) for case in GRID),
        env=environment(lib=str(ROOT / "shell/lib"), recipe="grid"),
        text=True,
        capture_output=True,
        check=True,
    )
    found = [answer_of_launcher(line) for line in done.stdout.splitlines()]
    expected = [answer_of_batch_plan(*case) for case in GRID]
    assert dict(zip(GRID, found, strict=True)) == dict(zip(GRID, expected, strict=True))
    assert [len(answer) > 1 for answer in found].count(False) > 100  # both kinds are in the grid
    assert answer_of_batch_plan(2, 4, 130) == [2, 128, 136, 130, 1, 5]


def test_going_round_the_batch_sum_is_said() -> None:
    done = run(LORA, "--per_device_train_batch_size=2", DRY_RUN="1")
    assert done.returncode == 0
    assert "--per_device_train_batch_size goes round BATCH_SIZE=16" in done.stderr


def test_help_names_the_settings() -> None:
    done = run(LORA, "--help")
    assert done.returncode == 0
    for name in shlex.split(
        "GPUS GPUS_PER_NODE PARTITION QUOTA_TYPE SRUN_ARGS CPUS_PER_TASK BATCH_SIZE OUTPUT_DIR "
        "PER_DEVICE_BATCH_SIZE MASTER_ADDR MASTER_PORT META_PATH MODEL_PATH LAUNCHER DRY_RUN"
    ):
        assert name in done.stdout


# ------------------------------------------------------------------ running


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("status", [0, 1, 3, 99, 137])
def test_exit_status_comes_through_the_log(shell: list[str], status: int, tmp_path: Path) -> None:
    python = fake_python(tmp_path, f"echo out; echo err >&2; exit {status}")
    output = tmp_path / "a dir" / "run"
    done = run(LORA, shell=shell, PYTHON=python, OUTPUT_DIR=str(output))
    assert done.returncode == status
    assert done.stdout == "out\nerr\n"
    assert (f"exit status {status}" in done.stderr) == (status != 0)
    command, *printed = (output / "training_log.txt").read_text().splitlines()
    assert printed == ["out", "err"]
    assert "torch.distributed.run --standalone" in command


def test_log_is_continued_and_nothing_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "training_log.txt").write_text("of the first try\n")
    python = fake_python(tmp_path, 'echo "second try"')
    run(LORA, PYTHON=python, OUTPUT_DIR=str(tmp_path))
    lines = (tmp_path / "training_log.txt").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("of the first try", "second try")
    assert (tmp_path / "checkpoint-2").is_dir()


def test_log_follows_an_output_dir_among_the_arguments(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "echo hello")
    for arguments in (["--output_dir", "one"], ["--output_dir=two"]):
        run(LORA, *arguments, cwd=tmp_path, PYTHON=python)
    for name in ("one", "two"):
        assert "hello" in (tmp_path / name / "training_log.txt").read_text()
    assert not (tmp_path / "work_dirs").exists()


def test_srun_is_run_and_its_status_returned(tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s|" "$@"\nexit 9\n')
    srun.chmod(0o755)
    done = run(
        FULL,
        OUTPUT_DIR=str(tmp_path / "out"),
        PARTITION="your partition",
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )
    assert done.returncode == 9
    assert done.stdout.startswith("-p|your partition|--job-name=")


def test_missing_files_are_a_warning_before_the_job_queues(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "exit 0")
    done = run(LORA, cwd=tmp_path, PYTHON=python, META_PATH="./my.json")
    assert done.returncode == 0
    assert f"./my.json is not seen from {tmp_path}" in done.stderr
    assert "./pretrained/InternVL-Chat-V1-2-Plus is not seen" in done.stderr


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What started the tests in the background may ignore SIGINT, and no shell can trap that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("whole_group", [False, True], ids=["script", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
@pytest.mark.parametrize("shell", SHELLS)
def test_a_signal_reaches_the_trainer_once(
    shell: list[str], number: signal.Signals, whole_group: bool, tmp_path: Path
) -> None:
    if whole_group and shutil.which("setsid") is None:
        pytest.skip("no setsid: a signal to the group arrives twice")
    body = "trap 'echo stopping' TERM\ntrap 'echo stopping' INT\necho ready\nn=0\n"
    body += "while [ $n -lt 5 ]; do sleep 0.1; n=$((n + 1)); done\nexit 99"
    process = subprocess.Popen(
        [*shell, str(ROOT / LORA)],
        env=environment(PYTHON=fake_python(tmp_path, body), OUTPUT_DIR=str(tmp_path / "out")),
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    if whole_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 99
    assert out == "stopping\n"


def test_a_process_left_behind_does_not_hold_the_script(tmp_path: Path) -> None:
    python = fake_python(tmp_path, 'sleep 60 &\necho $! > "$PID_FILE"\nexit 5')
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    done = run(LORA, cwd=tmp_path, PYTHON=python, PID_FILE=str(pid_file))
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert done.returncode == 5
    assert time.monotonic() - started < 30


# ------------------------------------------------------------------ the files themselves


def test_shellcheck() -> None:
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    scripts = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "shell").rglob("*.sh"))
    done = subprocess.run(
        [shellcheck, *scripts], cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout


ZERO3 = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": 1e9,
    "stage3_prefetch_bucket_size": 1e9,
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}
ON_CPU = {"device": "cpu", "pin_memory": True}


@pytest.mark.parametrize(
    ("name", "zero"),
    [
        ("zero_stage1_config", {"stage": 1}),
        ("zero_stage2_config", {"stage": 2}),
        ("zero_stage2_offload_config", {"stage": 2, "offload_optimizer": ON_CPU}),
        ("zero_stage3_config", ZERO3 | {"stage3_param_persistence_threshold": 1e7}),
        ("zero_stage3_config_34b", ZERO3),
        (
            "zero_stage3_offload_config",
            ZERO3 | {"offload_optimizer": ON_CPU, "offload_param": ON_CPU},
        ),
    ],
)
def test_zero_files(name: str, zero: dict[str, object]) -> None:
    config = json.loads((ROOT / f"shell/deepspeed/{name}.json").read_text())
    assert zero.items() <= config["zero_optimization"].items()
    if zero["stage"] == 3:
        assert config["zero_optimization"] == zero
    assert config["optimizer"] == {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": "auto"},
    }
    for key in (
        *("gradient_clipping", "gradient_accumulation_steps", "train_batch_size"),
        "train_micro_batch_size_per_gpu",
    ):
        assert config[key] == "auto"
    assert config["bf16"]["enabled"] == "auto"


@pytest.mark.parametrize("name", ["internvl_1_2_finetune", "internvl_1_2_finetune_custom"])
def test_the_nine_datasets(name: str) -> None:
    meta = json.loads((ROOT / f"shell/data/{name}.json").read_text())
    told = [
        (dataset, entry["root"].removeprefix("playground/data/"), entry["length"])
        for dataset, entry in meta.items()
    ]
    assert told == [
        ("sharegpt4v_instruct_gpt4-vision_cap100k", "", 102025),
        ("llava_instruct_150k_zh", "coco/", 157712),
        ("sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k", "", 665058),
        ("dvqa_train_200k", "dvqa/", 200000),
        ("chartqa_train_18k", "chartqa/", 18317),
        ("ai2d_train_12k", "ai2d/", 12413),
        ("docvqa_train_10k", "docvqa/", 10211),
        ("geoqa+", "geoqa+/", 72318),
        ("synthdog_en", "synthdog-en/", 29765),
    ]
    assert sum(length for _, _, length in told) == 1_267_819
    for dataset, entry in meta.items():
        assert entry["annotation"] == f"playground/opensource/{dataset}.jsonl"
        assert (entry["data_augment"], entry["repeat_time"]) == (False, 1)


def test_the_plain_lora_recipe_trains_the_shipped_model_as_it_was_made(tmp_path: Path) -> None:
    done = run(
        LORA,
        *("--max_steps", "1", "--bf16", "False", "--save_strategy", "no"),
        PYTHON=sys.executable,
        GPUS="1",
        BATCH_SIZE="1",
        PER_DEVICE_BATCH_SIZE="1",
        NUM_WORKERS="0",
        DEEPSPEED_CONFIG="",
        MODEL_PATH="pretrained/internvl-chat-tiny",
        META_PATH=str(write_dataset(tmp_path, ["image", "image"])),
        OUTPUT_DIR=str(tmp_path / "out"),
        OMP_NUM_THREADS="1",
        INTERNVL_CHAT_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stdout
    assert "goes before" not in done.stdout
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["force_image_size"], config["vision_config"]["image_size"]) == (112, 112)
    assert (tmp_path / "out/adapter_model.safetensors").is_file()
    assert not (tmp_path / "out/model.safetensors").exists()
