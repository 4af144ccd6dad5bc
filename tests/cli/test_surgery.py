"""Checkpoint surgery as a user types it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from internvl_chat.checkpoint.surgery.merge import LogitCheck, MergeReport
from internvl_chat.cli import main
from internvl_chat.cli.merge_lora import describe
from internvl_chat.cli.options import parse_size
from tests.support.lora_checkpoints import load_fp32, logits_for, save_base, save_lora
from tests.support.search_path import search_path
from tests.support.training import ROOT, environment


def test_merge_then_chat_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_base(tmp_path / "base")
    saved = save_lora(base, tmp_path / "lora", adapter_only=True)
    new = str(tmp_path / "merged")
    assert main(["merge-lora", str(tmp_path / "lora"), new, "--max-shard-size", "20kb"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{new}: OK: 26 weights merged, each compared with ")
    assert (logits_for(load_fp32(tmp_path / "merged")) - logits_for(saved)).abs().max() < 2e-5
    assert main(["merge-lora", str(tmp_path / "lora"), new]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert main(["merge-lora", new, new + "2", "--json"]) == 2
    assert "no LoRA weights to merge" in capsys.readouterr().err


def test_reports_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(save_base(tmp_path / "base", ps_version="v2"))

    def report(*words: str) -> dict[str, object]:
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    out = [str(tmp_path / name) for name in "abcde"]
    assert report("extract", "llm", base, out[0]) == {"output": out[0], "tensors": 21}
    assert report("resize-pos-embed", base, out[1], "56")["num_image_token"] == 16
    assert report("replace-llm", base, out[0], out[2])["new_tokens"] == 0
    assert report("export", base, out[3], "--dtype", "bfloat16")["merged"] == 0
    logits = report("export", base, out[4], "--layout", "native")["logits"]
    assert isinstance(logits, float)
    assert logits < 2e-5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "base", "out", "--max-shard-size", "big"], "'big' is no size"),
        (["export", "base", "out", "--max-shard-size", "0GB"], "'0GB' is no size"),
        (["export", "base", "out", "--dtype", "int8"], "--dtype: 'int8' is none"),
        (["export", "base", "out", "--layout", "native"], "pixel shuffle v1"),
        *(
            (["export", "base", "out", "--adapter-for", "base", *option], f"{option[0]}: says noth")
            for option in (["--code", "base"], ["--layout", "native"], ["--dtype", "float32"])
        ),
        (["merge-lora", "base", "out", "--check", "no"], "'no' is no check"),
        (["extract", "ear", "base", "out"], "no part 'ear'"),
        (["resize-pos-embed", "base", "out", "29"], "29 is no multiple of 14"),
        (["json2jsonl", "base/config.json"], "is no JSON array"),
        (["json2jsonl", "nowhere.json"], "cannot be read"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    save_base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    assert main(words) in (2, 3)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("size", "wanted"), [("5GB", 5 * 10**9), ("500 MB", 5 * 10**8), ("2G", 2 * 10**9), ("7", 7)]
)
def test_sizes(size: str, wanted: int) -> None:
    assert parse_size(size) == wanted


def test_the_scripts_of_the_tools_folder(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    (tmp_path / "a.json").write_text('[{"id": 1}]')
    for words in (
        ["extract_mlp.py", str(base), "mlp.pth"],
        ["json2jsonl.py", "a.json"],
    ):
        done = subprocess.run(
            [sys.executable, str(ROOT / "tools" / words[0]), *words[1:]],
            cwd=tmp_path,
            env=environment(PYTHONPATH=search_path()),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.jsonl").read_text() == '{"id":1}\n'
    assert (tmp_path / "mlp.pth").is_file()


def test_every_verb_has_a_script() -> None:
    scripts = {path.stem for path in (ROOT / "tools").glob("[!_]*.py")} - {"gguf_to_safetensors"}
    assert scripts == {
        "merge_lora",
        "extract_vit",
        "extract_mlp",
        "extract_llm",
        "replace_llm",
        "resize_pos_embed",
        "export",
        "json2jsonl",
    }
    for script in scripts:
        text = (ROOT / "tools" / f"{script}.py").read_text()
        words = re.findall(r'"([a-z0-9-]+)"', text.split("run_verb(")[1])
        assert main([*words, "--help"]) == 0, script


@pytest.mark.parametrize(
    ("logits", "begins"),
    [
        (LogitCheck(exact=1e-6, stored=1e-3, effect=2.0), "OK: 5 weights merged"),
        (LogitCheck(exact=1e-6, stored=3e-3, effect=3e-3), "CHECK: 5 weights merged"),
        (None, "OK: 5 weights merged"),
    ],
)
def test_a_merge_ends_with_a_verdict(logits: LogitCheck | None, begins: str) -> None:
    told = describe(MergeReport(merged=5, logits=logits))
    assert told.startswith(begins)
    assert ("rounding hides" in told) == begins.startswith("CHECK")
    assert ("were not run" in told) == (logits is None)
