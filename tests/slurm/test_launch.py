"""The recipes' launcher on a real cluster and under torchrun, with a trainer that only meets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_ends import end, start_recipe
from tests.slurm.cluster import Cluster
from tests.support.training import write_dataset, write_tiny_chat_model

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]
NAME = "internvl_chat_v1_2_hermes2_yi34b_448_res_2nd_finetune"
FULL = f"shell/internvl1.2/2nd_finetune/{NAME}_full.sh"
LORA = f"shell/internvl1.2/2nd_finetune/{NAME}_lora.sh"
TIMEOUT = 600
"""Seconds; a run takes 10 on two idle cores, most of it importing torch in every rank."""


def start(
    recipe: str, output: Path, *, before: tuple[str, ...] = (), **settings: str
) -> subprocess.Popen[str]:
    """Start a recipe with the meeting trainer; its log will be under ``output``."""
    settings = {
        "PYTHON": sys.executable,
        "TRAINER": "tests/slurm/meet.py",
        "OUTPUT_DIR": str(output),
        "OMP_NUM_THREADS": "1",
        **settings,
    }
    return subprocess.Popen(
        [*before, "sh", recipe],
        cwd=ROOT,
        env={**os.environ, **settings},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, what each rank said (by rank), everything printed."""
    out, err = process.communicate(timeout=TIMEOUT)
    said = [json.loads(line) for line in out.splitlines() if line.startswith('{"rank"')]
    return process.returncode, sorted(said, key=lambda one: int(one["rank"])), out + err


def overlap(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    """Whether all ranks of both jobs were up at one moment."""
    return max(one["started"] for one in first + second) < min(
        one["ended"] for one in first + second
    )


def test_two_jobs_on_nodes_whose_names_do_not_resolve(cluster: Cluster, tmp_path: Path) -> None:
    settings = {"PARTITION": "train", "GPUS": "2", "GPUS_PER_NODE": "1", "MEET_SECONDS": "15"}
    jobs = [start(FULL, tmp_path / name, **settings, **cluster.environment) for name in ("a", "b")]
    results = [finish(job) for job in jobs]
    for status, said, text in results:
        assert status == 0, text
        assert [one["rank"] for one in said] == [0, 1]
        assert [one["node"] for one in said] == ["n1", "n2"]
        assert {one["launcher"] for one in said} == {"slurm"}
        assert {one["sum"] for one in said} == {1}
    (_, first, _), (_, second, _) = results
    assert overlap(first, second), "the jobs ran one after the other: nothing was shown"
    assert first[0]["master"] != second[0]["master"]
    assert {one["master"].split(":")[0] for one in first} == {"127.0.0.1"}, "n1's NodeAddr"


def test_master_address_and_port_from_the_environment(cluster: Cluster, tmp_path: Path) -> None:
    settings = {"PARTITION": "train", "GPUS": "2", "GPUS_PER_NODE": "1"}
    master = {"MASTER_ADDR": "localhost", "MASTER_PORT": "28123"}
    status, said, text = finish(
        start(FULL, tmp_path / "out", **settings, **master, **cluster.environment)
    )
    assert status == 0, text
    assert [one["master"] for one in said] == ["localhost:28123"] * 2


def test_a_killed_rank_ends_the_job_on_all_nodes(cluster: Cluster, tmp_path: Path) -> None:
    settings = {"PARTITION": "train", "GPUS": "2", "GPUS_PER_NODE": "1", "MEET_CRASH": "kill"}
    status, _, text = finish(start(FULL, tmp_path / "out", **settings, **cluster.environment))
    assert status != 0
    assert "n2: task 1: Killed" in text
    assert "n2: task 1: Killed" in (tmp_path / "out" / "training_log.txt").read_text()
    cluster.wait_until_idle()


def test_an_exit_code_comes_through_srun_and_the_log(cluster: Cluster, tmp_path: Path) -> None:
    settings = {"PARTITION": "train", "GPUS": "2", "GPUS_PER_NODE": "2", "MEET_CRASH": "exit"}
    status, _, text = finish(start(LORA, tmp_path / "out", **settings, **cluster.environment))
    # srun reports the highest status; rank 0 is ended by SIGTERM (143) because rank 1 left with 5.
    assert status in (5, 143), text
    assert "task 1: Exited with exit code 5" in text


def test_an_unknown_partition_is_refused_by_slurm(cluster: Cluster, tmp_path: Path) -> None:
    settings = {"PARTITION": "your partition", "GPUS": "2"}
    status, _, text = finish(start(LORA, tmp_path / "out", **settings, **cluster.environment))
    assert status == 1
    assert "invalid partition specified: your partition" in text


def test_two_jobs_at_once_under_torchrun_where_the_host_has_no_address(tmp_path: Path) -> None:
    before = _nameless_host()
    jobs = [
        start(LORA, tmp_path / name, before=before, GPUS="2", MEET_SECONDS="15")
        for name in ("a", "b")
    ]
    results = [finish(job) for job in jobs]
    for status, said, text in results:
        assert status == 0, text
        assert [one["rank"] for one in said] == [0, 1]
        assert {one["launcher"] for one in said} == {"pytorch"}
    (_, first, _), (_, second, _) = results
    assert overlap(first, second), "the jobs ran one after the other: nothing was shown"
    assert first[0]["master"] != second[0]["master"]


def test_a_crash_comes_through_torchrun_and_the_log(tmp_path: Path) -> None:
    status, _, text = finish(start(LORA, tmp_path / "out", GPUS="2", MEET_CRASH="exit"))
    assert status == 1, "torchrun's own status for a failed rank"
    assert "exitcode  : 5" in text
    assert "exitcode  : 5" in (tmp_path / "out" / "training_log.txt").read_text()


def _nameless_host() -> tuple[str, ...]:
    """A prefix under which the host's name resolves to nothing, where the system allows it."""
    unshare = shutil.which("unshare")
    prefix = ("unshare", "--uts", "sh", "-c", 'hostname no-such-host && exec "$@"', "sh")
    if unshare is None:
        return ()
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if tried.returncode == 0 else ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "saves", "code", "verdict"),
    [
        (signal.SIGTERM, "False", 143, "interrupted"),
        (signal.SIGINT, "False", 130, "interrupted"),
        (signal.SIGTERM, "True", 99, "saved"),
    ],
)
def test_a_signal_to_the_script_ends_the_ranks_with_their_last_word(
    number: signal.Signals, saves: str, code: int, verdict: str, cluster: Cluster, tmp_path: Path
) -> None:
    """srun alone kills its tasks at SIGTERM and Ctrl-C, before they can say anything."""
    model = write_tiny_chat_model(tmp_path / "model")
    meta = write_dataset(tmp_path / "data", ("text", "image") * 4)
    process = start_recipe(
        (model, meta),
        tmp_path / "out",
        *("--enable_jit_checkpoint", saves),
        **{"PARTITION": "train", "GPUS_PER_NODE": "1", "CPUS_PER_TASK": "1"},
        **cluster.environment,
    )
    found, said = end(process, at="step 3/", tell=lambda: process.send_signal(number))
    assert found == code, said
    status = json.loads((tmp_path / "out" / "status.json").read_text())
    assert (status["status"], status["exit_code"], status["rank"]) == (verdict, code, 0)
    cluster.wait_until_idle()


def test_a_mistake_is_the_last_thing_said(cluster: Cluster, tmp_path: Path) -> None:
    process = start_recipe(
        (tmp_path / "no-model", tmp_path / "none.json"),
        tmp_path / "out",
        **{"PARTITION": "train", "GPUS_PER_NODE": "2", "CPUS_PER_TASK": "1"},
        **cluster.environment,
    )
    said, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2, said
    assert f"--meta_path {tmp_path}/none.json: no such file" in said
    after = said[said.index("training ended with exit status 2") :]
    assert "none.json: no such file" in after, "again after what srun says"
    assert "srun: error" not in after
