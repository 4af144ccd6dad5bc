"""The parts of the GPU benchmarks that need no GPU: lines read, rows compared, kernels sorted."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_train
from benchmarks.gpu.batches import Step, collate_steps, segment_lengths
from benchmarks.gpu.checkpoint import make_checkpoint
from benchmarks.gpu.host_samples import HostSamples, busy_frame, place_of, shares
from benchmarks.gpu.kernels import Kernel, busy_seconds, class_of, longest_kernels, seconds_by_class
from benchmarks.gpu.plain_loop import step_flops
from benchmarks.gpu.processes import ChildError, follow, start
from benchmarks.gpu.records import write_records
from benchmarks.gpu.rows import ROWS, Workplace
from benchmarks.gpu.sizes import SIZES
from benchmarks.gpu.table import complete, show_profiles, show_table, verdicts
from benchmarks.gpu.trained import read_step, summarize
from internvl_chat.chat import load_model
from internvl_chat.costs.flops import ModelFlops, PassFlops
from internvl_chat.data.balance import V1_2_RATES
from internvl_chat.train.attention import register_attention
from internvl_chat.train.callbacks import format_step
from internvl_chat.train.distributed import init_distributed
from internvl_chat.train.parsing import parse
from internvl_chat.train.preparation import prepare_run

LOGGED = {
    "loss": 6.93,
    "learning_rate": 1e-5,
    "grad_norm": 1.2,
    "tokens_per_second": 16884.4,
    "samples_per_second": 20.0,
    "padding_share": 0.012,
    "data_wait_share": 0.03,
    "step_seconds": 0.4849,
    "peak_memory_gib": 27.03,
    "mfu": 0.321,
}


def test_the_trainers_own_lines_are_read() -> None:
    step = read_step(format_step(3, 1_000_000, LOGGED) + "\n")
    assert step == {
        "step": 3,
        "loss": 6.93,
        "tokens_per_second": 16884,
        "padding": 0.012,
        "wait": 0.03,
        "step_seconds": 0.48,
        "peak_gib": 27.03,
        "mfu": 0.321,
    }
    assert read_step("step 3/12  eval_loss 2.1\n") is None
    assert read_step("no step\n") is None


def test_figures_are_those_of_the_steps_that_count() -> None:
    steps = [
        {"tokens_per_second": 10.0, "step_seconds": 9.0, "peak_gib": 9.0, "mfu": 0.01},
        {"tokens_per_second": 1000.0, "step_seconds": 1.0, "peak_gib": 2.0, "mfu": 0.2},
        {"tokens_per_second": 2000.0, "step_seconds": 1.0, "peak_gib": 3.0, "mfu": 0.4},
    ]
    found = summarize(steps, skip=1)
    assert found["tokens_per_second"] == 1500
    assert found["step_seconds"] == 1
    assert found["peak_gib"] == 3
    assert found["mfu"] == pytest.approx(0.3)
    assert "wait" not in found
    # Where the tokens of a step are known, its seconds are not those rounded for the log.
    exact = summarize(steps, skip=1, step_tokens=[90, 1100, 1900])
    assert exact["all_step_seconds"] == [1.1, 0.95]
    assert exact["tokens_per_second"] == pytest.approx(3000 / 2.05)
    assert summarize(steps, skip=3) == {}


def test_rows_are_compared_with_the_plain_row_of_the_same_batches() -> None:
    measured = {
        "plain": {"tokens_per_second": 1000.0, "flops_per_second": 3e14, "executed_ratio": 1.3},
        "plain-norecompute": {"tokens_per_second": 1250.0, "step_seconds": 0.8},
        "packed-zero3": {"tokens_per_second": 900.0, "step_seconds": 1.1, "mfu": 0.27},
        "packed-zero2-norecompute": {"tokens_per_second": 1000.0, "step_seconds": 1.0},
        "grouped-zero3": {"tokens_per_second": 500.0, "step_seconds": 2.0},
        "packed-none": {"note": "no step counted"},
    }
    rows = complete(measured, peak=1e15, matmul=8e14)
    assert [row["of_plain"] for row in rows.values()] == [1, 1, 0.9, 0.8, None, None]
    assert rows["plain"]["mfu"] == pytest.approx(0.3)
    assert rows["plain"]["of_matmul"] == pytest.approx(1.3 * 0.375)
    assert rows["packed-zero3"]["of_matmul"] == pytest.approx(1.3 * 0.27e15 / 8e14)
    assert verdicts(rows) == [
        ("packed-zero3: 0.90 of the plain loop (>= 0.85)", True),
        ("plain: MFU 30.0% (>= 35%)", False),
    ]
    shown = show_table(rows)
    assert "| `packed-zero3` | our trainer, packed, ZeRO-3 | 900 | 0.90 | 1.100 | 27.0% |" in shown
    assert "no step counted" in shown


def test_lora_steps_are_short_or_near_a_matrix_product() -> None:
    rows = {
        "plain": {"tokens_per_second": 8000.0, "step_seconds": 0.5, "of_matmul": 0.6},
        "packed-zero3": {"tokens_per_second": 1000.0, "step_seconds": 8.0, "of_matmul": 0.2},
        "packed-none": {"tokens_per_second": 4000.0, "step_seconds": 8.0, "of_matmul": 0.55},
    }
    assert verdicts(rows, lora=True) == [
        ("packed-zero3: 8.0 s for 8,000 tokens (<= 5 s)", False),
        ("packed-none: 0.55 of a matrix product (>= 0.5)", True),
    ]


def test_what_is_executed_holds_what_is_computed_again() -> None:
    count = ModelFlops(
        per_token=PassFlops(2.0, 4.0, 2.0),
        per_pair=PassFlops(0.5, 1.0, 0.5),
        per_target=PassFlops(10.0, 20.0),
        per_tile=PassFlops(100.0, 0.0),
    )
    batch = {
        "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
        "labels": torch.tensor([[-100, 5, 5], [-100, -100, -100]]),
        "pixel_values": torch.zeros(1, 3, 2, 2),
    }
    model = 4 * 6 + 7 * 1.5 + 2 * 30 + 100
    assert step_flops(count, [Step([batch])], False) == (model, model)
    assert step_flops(count, [Step([batch])], True) == (model, model + 4 * 2 + 7 * 0.5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_NTT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix products"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, cutlass", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "communication"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor", "optimizer"),
        ("Memcpy DtoD (Device -> Device)", "copies and casts"),
        (
            "void at::native::unrolled_elementwise_kernel<direct_copy_kernel_cuda>",
            "copies and casts",
        ),
        ("void at::native::vectorized_elementwise_kernel<4, MulFunctor", "elementwise and norms"),
        ("void at::native::reduce_kernel<512, 1, ReduceOp<MeanOps>>", "elementwise and norms"),
        ("void (anonymous namespace)::softMaxForward<float>", "vocabulary loss"),
        ("void at::native::indexSelectLargeIndex<c10::BFloat16>", "indexing"),
        ("void mystery", "other"),
    ],
)
def test_kernels_are_sorted_by_what_they_do(name: str, kind: str) -> None:
    assert class_of(name) == kind


def test_time_without_a_kernel_is_what_none_of_them_covers() -> None:
    kernels = [Kernel("gemm", 0, 4e6), Kernel("Memcpy", 3e6, 5e6), Kernel("gemm", 8e6, 9e6)]
    assert busy_seconds(kernels) == 6
    assert seconds_by_class(kernels) == {"matrix products": 5.0, "copies and casts": 2.0}
    assert longest_kernels(kernels, 1) == [("gemm", 2, 5.0)]
    profile = {
        "step_seconds": 10.0,
        "by_class": seconds_by_class(kernels),
        "idle": 4.0,
        "num_kernels": 3,
        "host": shares(Counter({("deepspeed", "deepspeed/a.py:f"): 3, ("torch", "torch"): 1})),
    }
    shown = show_profiles({"plain": {"profile": profile}, "packed-none": {"profile": None}})
    assert "| matrix products | 5000.0 ms (50%) |" in shown
    assert "| no kernel runs | 4000.0 ms (40%) |" in shown
    assert "host of `plain`, 4 samples: deepspeed 75%, torch 25%\n  deepspeed/a.py:f 75%" in shown


def test_the_host_is_found_where_it_is(made: Path) -> None:
    """In a function of the package, on this thread; a thread of Python's own is passed over."""
    samples, waits = HostSamples(), threading.Event()
    waiting = threading.Thread(target=waits.wait)
    waiting.start()
    samples.start()
    for _ in range(200):
        load_model(str(made / "model-tiny"), device="cpu")
        if samples.summary()["samples"] >= 5:
            break
    samples.stop()
    waits.set()
    found = samples.summary()
    assert found["packages"].keys() & {"internvl_chat", "transformers"}
    assert sum(found["packages"].values()) == pytest.approx(1)
    assert all(".py:" in function or function == "torch" for function in found["functions"])
    assert "internvl_chat/chat/loading.py" not in str(place_of(sys._getframe()))


def test_threads_that_python_has_not_started_are_looked_at_first() -> None:
    here = sys._getframe()
    own = threading.get_ident()
    assert busy_frame({own: here}, own) is here
    foreign = here.f_back
    assert foreign is not None
    assert busy_frame({own: here, 12345: foreign}, own) is foreign


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy's checkpoint and data."""
    folder = tmp_path_factory.mktemp("speed")
    make_checkpoint(folder, "tiny")
    write_records(folder / "data", num_records=10, answer_tokens=24, longest=128)
    return folder


def workplace(folder: Path, size: str = "tiny") -> Workplace:
    return Workplace(
        size=SIZES[size],
        model_dir=folder / "model-tiny",
        meta_path=folder / "data" / "meta.json",
        on_gpu=False,
        pack_tokens=256,
        packs_per_step=2,
        grouped_per_step=4,
        grouped_micro_batch=2,
    )


def test_a_checkpoint_of_random_weights_loads(made: Path) -> None:
    model, tokenizer = load_model(str(made / "model-tiny"), device="cpu")
    norms = [p for n, p in model.named_parameters() if n.endswith("norm.weight")]
    assert all(torch.equal(norm, torch.ones_like(norm)) for norm in norms)
    weight = model.language_model.model.layers[0].mlp.up_proj.weight
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(weight[0], weight[1])
    answer = model.chat(tokenizer, None, "Hello", {"max_new_tokens": 2, "do_sample": False})
    assert isinstance(answer, str)


def test_records_have_a_jpeg_each_but_every_fifth(made: Path) -> None:
    lines = (made / "data/train.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [number for number, r in enumerate(records) if "image" not in r] == [0, 5]
    assert len(list((made / "data/images").glob("*.jpg"))) == 8


@pytest.mark.parametrize("size", ["tiny", "tiny-lora"])
def test_every_row_is_a_run_that_the_trainer_takes(made: Path, size: str) -> None:
    pytest.importorskip("deepspeed")
    place = workplace(made, size)
    for row in ROWS.values():
        args = parse(place.arguments(row, made / "run"), device=torch.device("cpu"))
        assert args.data.use_packed_ds == row.packed
        assert args.model.grad_checkpoint == row.recompute
        assert bool(args.train.deepspeed) == bool(row.zero)
        assert args.model.use_llm_lora == SIZES[size].lora_rank


def test_the_plain_loops_batches_are_a_runs(made: Path) -> None:
    register_attention()
    cpu, state = torch.device("cpu"), init_distributed(use_cpu=True)
    for name in ("plain", "plain-grouped"):
        args = parse(workplace(made).arguments(ROWS[name], made / "batches"), device=cpu)
        prepared = prepare_run(args, state)
        steps = collate_steps(args, prepared, state, V1_2_RATES, 2)
        assert [len(step.batches) for step in steps] == [2, 2]
        batch = steps[0].batches[0]
        assert (batch.get("cu_seq_lens_q") is not None) == ROWS[name].packed
        assert steps[0].tokens == sum(sum(segment_lengths(batch)) for batch in steps[0].batches)
        assert 0 < steps[0].supervised < steps[0].tokens
        with pytest.raises(ValueError, match=r"the data have \d steps, 9 wanted: more --records"):
            collate_steps(args, prepared, state, V1_2_RATES, 9)


def test_a_child_is_read_until_it_is_done_and_ended(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    script = "print('one', flush=True); print('two', flush=True); import time; time.sleep(600)"
    told: list[str] = []

    def is_done(line: str) -> bool:
        told.append(line.strip())
        return line == "two\n"

    words = ["-c", script]
    assert follow(start(words), log_path=log, limit_seconds=60, is_done=is_done) == "done"
    assert told == ["one", "two"]
    assert log.read_text() == "one\ntwo\n"
    assert (
        follow(start(words), log_path=log, limit_seconds=0.1, is_done=lambda line: False) == "time"
    )
    quick = start(["-c", "pass"])
    assert follow(quick, log_path=log, limit_seconds=60, is_done=lambda line: False) == "ended"
    with pytest.raises(ChildError, match="exit code 3"):
        follow(
            start(["-c", "import sys; sys.exit(3)"]),
            log_path=log,
            limit_seconds=60,
            is_done=lambda line: False,
        )


def test_a_child_that_waits_begins_with_its_turn(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    child = start(["-c", "import sys; sys.stdin.read(); print('begun')"], waits=True)
    assert child.poll() is None
    assert follow(child, log_path=log, limit_seconds=60, is_done=lambda line: False) == "ended"
    assert log.read_text() == "begun\n"


def test_rows_beyond_the_budget_are_left_out(
    tmp_path: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--folder", str(made), "--size", "tiny", "--device", "cpu", "--records", "10"]
    words += ["--no_card", "--budget", "0", "--rows", "packed-none", "grouped-none"]
    assert gpu_train.main(words) == 1
    assert "left out, the budget of 0 s is spent: packed-none, grouped-none" in (
        capsys.readouterr().err
    )
    assert gpu_train.main([*words, "--steps", "3", "--skip", "3"]) == 2


@pytest.mark.slow
def test_the_plain_loop_does_the_trainers_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their losses agree, step by step."""
    report = tmp_path / "figures.json"
    words = ["--folder", str(tmp_path / "speed"), "--size", "tiny", "--device", "cpu"]
    words += ["--records", "60", "--steps", "3", "--skip", "1", "--workers", "0", "--profile"]
    words += ["--rows", "plain", "packed-none", "--json", str(report)]
    assert gpu_train.main(words) == 0
    rows = json.loads(report.read_text("utf-8"))["rows"]
    plain, ours = rows["plain"], rows["packed-none"]
    assert ours["losses"] == pytest.approx(plain["losses"], abs=1e-4)  # the log has four digits
    assert ours["of_plain"] > 0
    assert all(row["profile"]["num_kernels"] > 100 for row in (plain, ours))
    assert "| `packed-none` |" in capsys.readouterr().out
