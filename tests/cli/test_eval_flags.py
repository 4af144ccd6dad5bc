"""Every command line of the guide, and every flag of the originals, is taken and does what it says.

The lists were made by going through the guide's section Evaluation and the originals' own options.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.cli import main
from internvl_chat.cli.run import main as run_main
from internvl_chat.errors import ConfigError
from internvl_chat.evaluation import opening
from internvl_chat.evaluation.registry import TASKS
from internvl_chat.evaluation.settings import RunSettings
from tests.support.evaluation.every_task import LMU_DATA, write_every_task
from tests.support.evaluation.judge_server import judge_server, said
from tests.support.training import ROOT

MODEL = str(ROOT / "pretrained/internvl-chat-tiny")
GUIDE = """
mme
vqa-okvqa-val
vqa-textvqa-val-ocr
vqa-textvqa-val
vqa-vizwiz-val
vqa-vizwiz-test
vqa-chartqa-test
vqa-docvqa-val
vqa-docvqa-test
vqa-ai2d-test
vqa-infovqa-val
vqa-infovqa-test
vqa-gqa-testdev
scienceqa
pope
tiny_lvlm
mmmu-val
mmmu-test
mmvet
mmbench-dev-en
mmbench-test-en
mmbench-dev-cn
mmbench-test-cn
ccbench-dev
seed
mmvp
llava-bench
refcoco
mvbench --load-in-8bit
"""
"""What follows ``sh evaluate.sh CHECKPOINT`` in the guide."""
FLAGS = """
pope --checkpoint OTHER
vqa --datasets okvqa_val,textvqa_val
pope --batch-size 1
pope --num-workers 1
pope --num-beams 5
pope --temperature 0.0
pope --temperature 0.7
pope --out-dir results
pope --seed 0
pope --dynamic
pope --dynamic --max-num 6
mvbench --dynamic --max-num 1
pope --load-in-8bit
pope --load-in-4bit
pope --auto
vqa-okvqa-val --few-shot 0
vqa-gqa-testdev --few-shot 4
mvbench --num_segments 16
mvbench --num-segments 8
scienceqa --cot --rules later
pope --cot --rules later
mme --root ./Your_Results
mme --top-k 50 --top-p 0.9
mme --top_k 50 --top_p 0.9 --num_beams 5
mme --sample True
mme --sample False
refcoco --sample False
refcoco-testA --sample True
"""
"""All that the original evaluators take, in both states of theirs."""
RUN_PY = """
--data MathVista_MINI --model MODEL --verbose
--data HallusionBench --model MODEL --verbose
--data MMStar --model MODEL --verbose
--data OCRBench --model MODEL --verbose
--data MMMU_DEV_VAL --model MODEL --verbose
--data RealWorldQA --model MODEL --verbose
--data MMVet --model MODEL --verbose
--data LLaVABench --model MODEL --verbose
--data MMStar OCRBench --model MODEL --work-dir out
--data MMStar --model MODEL --mode all
--data MMStar --model MODEL --mode infer
--data MMStar --model MODEL --nproc 4
--data MMStar --model MODEL --api-nproc 32
--data MMStar --model MODEL --retry 6
--data MMStar --model MODEL --judge exact_matching
--data MMStar --model MODEL --judge gpt-4-0125
--data MMStar --model MODEL --judge-args {"nproc":2,"retry":3,"timeout":30,"model":"gpt-4o"}
--data MMStar --model MODEL --judge-base-url http://127.0.0.1:9/v1 --judge-key k
--data MMStar --model MODEL --judge-api-nproc 2 --judge-retry 3 --judge-timeout 20
--data MMStar --model MODEL --ignore
--data MMStar --model MODEL --keep-failed
--data MMStar --model MODEL --rerun
--data MMStar --model MODEL --reuse
--data MMStar --model MODEL --reuse-aux all
--data MMStar --model MODEL --reuse-aux infer
--data MMStar --model MODEL --reuse-aux none
--data MMStar --model MODEL --nframe 8 --pack --use-subtitle
"""
"""VLMEvalKit's, of both states."""


def listed(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines()]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of all tasks; nothing is asked here."""
    root = tmp_path_factory.mktemp("all")
    write_every_task(root)
    return root


@pytest.fixture
def work(everything: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(everything)
    monkeypatch.setenv("LMUData", str(everything / LMU_DATA))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "PRED_FORMAT", "EVAL_FORMAT"):
        monkeypatch.delenv(name, raising=False)
    return everything


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunSettings, list[Any]]]:
    """What would be asked: settings and tasks of each run."""
    found: list[tuple[RunSettings, list[Any]]] = []

    def note(runs: Any, tasks: Any, judges: Any) -> int:
        found.extend((settings, tasks) for settings in runs)
        return 0

    monkeypatch.setattr("internvl_chat.cli.eval.run_on_ranks", note)
    monkeypatch.setattr("internvl_chat.cli.run.run_on_ranks", note)
    return found


@pytest.mark.parametrize("argv", listed(GUIDE), ids=lambda argv: argv[0])
def test_the_guides_tasks(work: Path, argv: list[str], started: list[Any]) -> None:
    assert main(["eval", "run", "--original-beams", MODEL, *argv]) == 0
    ((settings, tasks),) = started
    assert [task.id for task in tasks] == [argv[0]]
    assert settings.load_in_8bit is ("--load-in-8bit" in argv)


@pytest.mark.parametrize("argv", listed(FLAGS), ids=" ".join)
def test_the_originals_flags(work: Path, argv: list[str], started: list[Any]) -> None:
    argv = [MODEL if word == "OTHER" else word for word in argv]
    assert main(["eval", "run", "--original-beams", MODEL, *argv]) == 0
    ((settings, tasks),) = started
    assert tasks
    beams = settings.beams_of(tasks[0], 10**7)[0]
    assert beams == (1 if {"--dynamic", "later", "mvbench"} & set(argv) else 5)


@pytest.mark.parametrize("argv", listed(RUN_PY), ids=" ".join)
def test_vlmevalkits_options(work: Path, argv: list[str], started: list[Any]) -> None:
    assert run_main([MODEL if word == "MODEL" else word for word in argv]) == 0
    ((settings, tasks),) = started
    assert tasks[0].suite == "vlmevalkit"
    assert settings.is_scored is ("infer" not in argv or "--reuse-aux" in argv)


@pytest.mark.parametrize("flags", [[], ["--no-compile"]], ids=["recorded", "step by step"])
@pytest.mark.parametrize("program", ["eval run", "run.py"])
def test_answers_are_decoded_step_by_step_where_it_is_asked(
    work: Path, tmp_path: Path, flags: list[str], program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to the model that answers."""
    found: list[Any] = []

    def load(*given: Any, **options: Any) -> Any:
        found.append(load_model(*given, **options)[0].static_decoding)
        raise ConfigError("that will do")

    load_model = opening.load_model
    monkeypatch.setattr(opening, "load_model", load)
    if program == "run.py":
        code = run_main(["--data", "MMStar", "--model", MODEL, "--work-dir", str(tmp_path), *flags])
    else:
        code = main(["eval", "run", MODEL, "pope", "--out-dir", str(tmp_path), *flags])
    assert code == 2
    assert found == [False if flags else None]


def test_the_lists_know_all_tasks() -> None:
    named = {argv[0] for argv in listed(GUIDE)} | {argv[1] for argv in listed(RUN_PY)}
    parts = {f"vqa-chartqa-test-{half}" for half in ("human", "augmented")} | {"mmmu-dev"}
    parts |= {name for name in TASKS if name.startswith("refcoco")}
    assert named | parts == set(TASKS)


def test_datasets_take_the_tasks_place(work: Path, started: list[Any]) -> None:
    for keys in ("okvqa_val,gqa_testdev_llava", "chartqa_test_human,chartqa_test_augmented"):
        assert main(["eval", "run", MODEL, "vqa", "--datasets", keys]) == 0
    assert [[task.id for task in tasks] for _, tasks in started] == [
        ["vqa-okvqa-val", "vqa-gqa-testdev"],
        ["vqa-chartqa-test"],
    ]


def test_another_checkpoint_takes_the_arguments_place(work: Path, started: list[Any]) -> None:
    assert main(["eval", "run", "no/such", "pope", "--checkpoint", MODEL]) == 0
    settings, _ = started[0]
    assert settings.checkpoint == MODEL
    assert settings.folder.name == "pretrained_internvl-chat-tiny"


def test_sampling_of_mme(work: Path, started: list[Any]) -> None:
    """Any text is true in the original, ``False`` too; here ``False`` is what it says."""
    for value in ("True", "False"):
        flags = ["--sample", value, "--top-k", "7", "--top-p", "0.5"]
        assert main(["eval", "run", MODEL, "mme", *flags]) == 0
    found = [settings.generation_of(tasks[0], 1) for settings, tasks in started]
    assert [one["do_sample"] for one in found] == [True, False]
    assert [(one["top_k"], one["top_p"]) for one in found] == [(7, 0.5)] * 2
    assert "temperature" not in found[0]


def test_max_num_of_videos_later(work: Path, tmp_path: Path, started: list[Any]) -> None:
    from internvl_chat.evaluation.runner import _as_asked
    from internvl_chat.evaluation.scoring import load_questions

    wanted = {("2024", None): None, ("later", None): 1, ("later", 3): None}
    for (rules, max_num), most in wanted.items():
        more = ["--max-num", str(max_num)] if max_num else []
        argv = ["eval", "run", MODEL, "mvbench", "--dynamic", "--rules", rules, *more]
        assert main(argv) == 0
        settings, tasks = started[-1]
        one = load_questions(tasks[0], settings.root, settings.rules_of(tasks[0]))[0]
        assert _as_asked(one, settings).max_tiles == most
        assert settings.most_tiles == (max_num or 6)


def test_mmes_lists_from_another_folder(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("eval/mme/Your_Results", tmp_path / "lists")
    first = tmp_path / "lists/existence.txt"
    first.write_text(first.read_text("utf-8").replace("Is there", "Do you see"), "utf-8")
    argv = ["eval", "prompts", "mme", "--limit", "1", "--json"]
    assert main([*argv, "--root", str(tmp_path / "lists")]) == 0
    assert "Do you see" in json.loads(capsys.readouterr().out)[0]["prompt"]
    assert main([*argv, "--root", "./Your_Results"]) == 0  # of eval/mme, as in the original
    assert "Do you see" not in capsys.readouterr().out
    assert main([*argv, "--root", "none"]) == 2
    assert "no folder none and no eval/mme/none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "note"),
    [
        (["vqa-okvqa-val", "--few-shot", "4"], "note: --few-shot has no effect, as in the ori"),
        (["refcoco-val", "--sample", "True"], "note: --sample has no effect, as in the orig"),
        (["pope", "--top-k", "9"], "note: --top-k has no effect on greedy answers"),
        (["mme", "--sample", "True", "--top-k", "9"], None),
    ],
)
def test_a_line_says_what_has_no_effect(
    work: Path,
    argv: list[str],
    note: str | None,
    started: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["eval", "run", MODEL, *argv]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(told) == (note is not None)
    assert note is None or told[0].startswith(note)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["pope", "--cot"], "pope has no chain of thought under the rules of 2024. Add --rules la"),
        (["scienceqa", "--cot", "--rules", "2024"], "under the rules of 2024. Add --rules later"),
        (["mmvp", "pope", "--cot", "--rules", "later"], "--cot: mmvp cannot be asked with a chain"),
        (
            ["pope", "--few-shot", "0"],
            "--few-shot: is no flag of pope. Leave it out; it is of vqa-",
        ),
        (["pope", "--sample", "True"], "--sample: is no flag of pope. Leave it out; it is of mme,"),
        (["mme", "--sample", "maybe"], "--sample: is 'maybe'. Give true or false."),
        (["mme", "--top-p", "2"], "--top-p: is 2.0. Give 0 < p <= 1."),
        (["pope", "--root", "x"], "--root: is of own records, and there are none"),
        (["vqa", "--datasets", "okvqa_vla"], "no data set 'okvqa_vla'. Did you mean okvqa_val or"),
        (["vqa", "--datasets", " , "], "--datasets: is empty"),
    ],
)
def test_refused(
    work: Path, argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "run", MODEL, *argv]) == 2
    assert told in re.sub(r"\s+", " ", capsys.readouterr().err.replace("fix: ", ""))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--config", "c.json"], "--config: describes models and data sets by the toolkit's own"),
        (["--data-config", "{}"], "--data-config: describes data sets by the toolkit's own"),
        (["--use-verifier"], "--use-verifier: asks a verifier model that the toolkit ships"),
        (["--use-vllm"], "--use-vllm: has another engine answer"),
        (["--api-mode"], "--api-mode: asks models behind an endpoint"),
        (["--base-url", "http://x"], "--base-url: is of models behind an endpoint"),
        (["--judge-args", "{"], "--judge-args: is no JSON"),
        (["--judge-args", "[]"], "--judge-args: is no JSON object"),
        (["--judge-args", '{"temperature": 0}'], "--judge-args: temperature cannot be set"),
        (["--judge-args", '{"nproc": "2"}'], "--judge-args: nproc is '2', want a number"),
        ([], "--model: is missing"),
    ],
)
def test_run_py_says_why_not(
    work: Path, argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", MODEL] if argv else []
    assert run_main(["--data", "MMStar", *model, *argv]) == 2
    assert told in capsys.readouterr().err


def test_formats_of_tables_come_from_the_environment(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is written, and read again by ``--mode eval``."""
    argv = ["--data", "MMStar", "--model", MODEL, "--judge", "exact_matching"]
    shown = set()
    for table, score in (("xlsx", "csv"), ("tsv", "json"), ("json", "csv")):
        monkeypatch.setenv("PRED_FORMAT", table)
        monkeypatch.setenv("EVAL_FORMAT", score)
        folder = Path(f"out-{table}/internvl-chat-tiny")
        assert run_main([*argv, "--work-dir", str(folder.parent)]) == 0
        names = {path.name for path in folder.iterdir() if path.is_file()}
        stem = "internvl-chat-tiny_MMStar"
        endings = {f"{stem}.{table}", f"{stem}_exact_matching_result.{table}"}
        assert names == {*endings, f"{stem}_acc.{score}"}
        shutil.rmtree(folder / "MMStar")  # so that the table alone is there
        capsys.readouterr()
        assert run_main([*argv, "--work-dir", str(folder.parent), "--mode", "eval"]) == 0
        shown.add(capsys.readouterr().out)
    assert len(shown) == 1
    monkeypatch.setenv("PRED_FORMAT", "csv")
    assert run_main(argv) == 2
    assert "PRED_FORMAT: is 'csv'. Set xlsx, tsv, json." in re.sub(
        r"\s+fix: ", " ", capsys.readouterr().err
    )


def test_a_chain_of_thought_end_to_end(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--cot", "--rules", "later"]
    short = ["--max-new-tokens", "3", "--out-dir", "thought"]
    assert main(["eval", "run", MODEL, "scienceqa", "pope", *flags, *short]) == 0
    folder = Path("thought/pretrained_internvl-chat-tiny_cot/scienceqa")
    line = json.loads((folder / "answers.jsonl").read_text("utf-8").splitlines()[0])
    assert line["prompt"] == (
        "Your task is to answer the question below. Give step by step reasoning before you answer, "
        'and when you\'re ready to answer, please use the format "Final answer: .."\n\n'
        "Question:\n\nLook at the image.\nWhich is a solid?\nA. milk\nB. rock"
    )
    answers = folder / "answers.jsonl"
    lines = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    for line in lines:
        line["answer"] = "Milk is A, rock is B. It does not flow.\nFINAL ANSWER:\nB\nA"
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    capsys.readouterr()
    assert main(["eval", "score", "scienceqa", str(answers), "--cot", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rules"]["later"]["per_sample"]["0"] == 1.0
    assert report["rules"]["2024"] == report["rules"]["later"]
    assert report["notes"] == [
        "--cot is of the later evaluators: under 2024 stands the score of later"
    ]
    assert main(["eval", "prompts", "pope", *flags, "--json", "--limit", "1"]) == 0
    shown = json.loads(capsys.readouterr().out)[0]
    assert shown["prompt"].endswith("Question:\n\nIs there a blue circle?")
    assert shown["settings"]["max_new_tokens"] == 4096


def test_rerun_asks_the_judge_anew(
    work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With --mode eval, too, where nothing but the judge is asked."""
    argv = ["--data", "MMStar", "--model", MODEL, "--work-dir", str(tmp_path), "--judge", "m"]
    with judge_server(lambda number, body: said("A")) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert run_main(argv) == 0
        first = [text for text in server.texts() if text != "hello"]
        assert first
        assert run_main([*argv, "--mode", "eval"]) == 0
        assert [text for text in server.texts() if text != "hello"] == first
        assert run_main([*argv, "--mode", "eval", "--rerun"]) == 0
        again = [text for text in server.texts() if text != "hello"]
    assert sorted(again) == sorted([*first, *first])
