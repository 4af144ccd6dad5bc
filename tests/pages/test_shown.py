"""What the pages show of data, results and figures is what the programs write."""

from __future__ import annotations

import json
import re

import pytest

from tests.pins.cli_worker import options
from tests.support.pages import PAGES, ROOT, blocks, page_text, prose


def json_of(page: str, key: str) -> dict[str, object]:
    (block,) = (one for one in blocks(page) if one.language == "json" and f'"{key}"' in one.text)
    return json.loads(block.text)


@pytest.mark.parametrize("page", PAGES)
def test_json_is_json(page: str) -> None:
    for block in blocks(page):
        if block.language == "json":
            try:
                json.loads(block.text)
            except json.JSONDecodeError:  # JSON lines
                for line in block.text.splitlines():
                    json.loads(line)


@pytest.mark.parametrize("page", ["docs/custom_dataset.md", "docs/data.md", "playground/README.md"])
def test_metas_have_the_keys_of_metas(page: str) -> None:
    """Else a reader who copies one is warned about it at once."""
    metas = [json.loads(one.text) for one in blocks(page) if '"annotation"' in one.text]
    assert metas
    for entry in (entry for meta in metas for entry in meta.values()):
        assert set(entry) == {"root", "annotation", "data_augment", "repeat_time", "length"}


def test_the_quickstarts_figures_agree() -> None:
    result = json_of("docs/quickstart.md", "before")
    shown = [f"{100 * result[phase]['digits']:.1f} %" for phase in ("before", "after")]  # type: ignore[index]
    seconds = result["seconds"]
    assert isinstance(seconds, dict)
    assert abs(sum(seconds.values()) - 2 * seconds["total"]) <= 2  # rounded one by one
    text = " ".join(prose("README.md").split())
    assert f"{seconds['total'] / 60:.1f} minutes after installation" in text
    assert f"digits {shown[0]} before and {shown[1]} after" in text


def test_the_tiny_models_figures_are_those_of_its_making() -> None:
    run = json.loads((ROOT / "pretrained/internvl-chat-tiny/run.json").read_text())
    groups = run["heldout"]["groups"]
    card = page_text("pretrained/internvl-chat-tiny/README.md")
    rows = dict(re.findall(r"^\| (\w+) \| ([\d.]+)% \|", card, re.MULTILINE))
    assert rows == {name: f"{100 * value:.1f}" for name, value in groups.items()}
    text = " ".join(prose("README.md").split())
    assert groups["color"] == groups["kind"] == 1
    assert "it names 100 % of the colours and shapes" in text
    assert f"counts {100 * groups['count']:.1f} %" in text
    assert f"{100 * groups['boxes']:.1f} % of its boxes" in text
    assert round(100 * groups["reading"]) == 99
    assert "reads 99 % of the bars, words and numbers" in text
    millions = f"{run['parameters']['total'] / 1e6:.1f} M weights"
    assert millions in text
    for page in ("docs/tiny_model.md", "pretrained/internvl-chat-tiny/README.md"):
        assert millions in " ".join(prose(page).split())
    seconds = dict(
        re.findall(r"^\| (\w+) \|.*\| ([\d,]+) \|$", page_text("docs/tiny_model.md"), re.M)
    )
    for part, value in run["seconds"].items():
        assert seconds[part] == f"{value:,}"


def test_the_table_of_answers_is_the_scorers() -> None:
    """tests/unit/evaluation/test_own_task.py holds the same text against the scorer."""
    (block,) = (one for one in blocks("docs/custom_dataset.md") if "truth \\ answer" in one.text)
    source = (ROOT / "tests/unit/evaluation/test_own_task.py").read_text("utf-8")
    for line in block.text.splitlines():
        assert json.dumps(f"{line}\n")[1:-1] in source


def test_recipes_table_has_the_recipes_numbers() -> None:
    """README's table against what the scripts set."""
    rows = re.findall(r"^\| \[`[^`]+`\]\((shell/\S+)\) \|(.*)\|$", page_text("README.md"), re.M)
    assert len(rows) == 3
    for path, cells in rows:
        script = (ROOT / path).read_text("utf-8")
        _, gpus, batch, per_device, rate, length = [cell.strip() for cell in cells.split("|")]
        for name, value in (
            ("GPUS", gpus.split()[0]),
            ("BATCH_SIZE", batch),
            ("PER_DEVICE_BATCH_SIZE", per_device),
        ):
            assert f"{name}=${{{name}:-{value}}}" in script, f"{path}: {name} is not {value}"
        common = script + (ROOT / "shell/lib/internvl_chat_v1_2.sh").read_text("utf-8")
        assert f"--learning_rate {rate}" in common
        assert f"--max_seq_length {length}" in common


@pytest.mark.parametrize("verb", ["serve", "demo"])
def test_tables_of_options_have_their_defaults(verb: str) -> None:
    page = {"serve": "docs/serve.md", "demo": "docs/demo_page.md"}[verb]
    defaults = {
        name: one.get("default")
        for one in options()[f"internvl-chat {verb}"]
        for name in one["names"]
    }
    compared = 0
    for names, shown in re.findall(r"^\| (`--[^|]*) \| ([^|]*) \|", page_text(page), re.MULTILINE):
        values = [value.strip("` ") for value in shown.split(",")]
        for name, value in zip(re.findall(r"`(--[\w-]+)`", names), values, strict=False):
            # A pair of flags, of which the page has the one that is off, has one default.
            if defaults[name] is not None and not name.startswith("--no-"):
                assert value == str(defaults[name]), f"{page}: {name}"
                compared += 1
    assert compared >= {"serve": 8, "demo": 2}[verb]


@pytest.mark.parametrize("page", ["docs/recipes.md", "docs/slurm.md"])
def test_tables_of_settings_have_their_defaults(page: str) -> None:
    """Numbers and names that are the same for all recipes."""
    scripts = "".join(path.read_text("utf-8") for path in (ROOT / "shell/lib").glob("*.sh"))
    table = page_text(page).split("| setting | default |")[1]
    compared = 0
    for name, shown in re.findall(r"^\| `([A-Z_]+)` \| (\d+|`[\w./]+`) \|", table, re.M):
        value = shown.strip("`").replace("/NAME", "/$recipe")
        shipped = r"(?:\$\{shipped\})?(?:\./)?"
        assert re.search(rf"\$\{{{name}:?-{shipped}{re.escape(value)}\}}", scripts), (
            f"{name}={shown}"
        )
        compared += 1
    assert compared >= {"docs/recipes.md": 6, "docs/slurm.md": 1}[page]
