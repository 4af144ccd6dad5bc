"""What README and docs name is there: options, verbs, files, links, modules, settings."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from internvl_chat.cli.run_options import make_parser
from tests.pins.cli_worker import commands as verbs_commands
from tests.pins.cli_worker import options
from tests.support.page_runs import files_of_clone
from tests.support.pages import PAGES, ROOT, commands, inline_code, page_text, prose

OPTION = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")
OF_OTHERS = {
    "huggingface-cli": {"--resume-download", "--local-dir-use-symlinks"},
    "hf": {"--local-dir"},
    "Slurm": {
        *(
            "--cpus-per-task",
            "--dependency",
            "--exclude",
            "--gpus-per-task",
            "--gres",
            "--job-name",
        ),
        *(
            "--kill-on-bad-exit",
            "--nodes",
            "--ntasks",
            "--ntasks-per-node",
            "--partition",
            "--signal",
        ),
        *("--quotatype", "--time"),
    },
    "transformers serve": {"--trust-remote-code"},
    "vllm": {
        *("--chat-template", "--enable-lora", "--limit-mm-per-prompt", "--lora-modules"),
        *("--max-model-len", "--trust-remote-code"),
    },
    "tensorboard": {"--logdir"},
    "pip": {
        *("--constraint", "--dest", "--find-links", "--index-url", "--no-build-isolation"),
        *("--no-deps", "--no-index", "--wheel-dir"),
    },
    "docker": {"--build-arg", "--gpus", "--rm", "--shm-size", "--user"},
    "apptainer": {"--nv"},
}
"""Options of other people's programs that the pages name."""
REFUSED_BY_RUN = {
    *("--config", "--data-config", "--use-verifier", "--use-vllm", "--api-mode"),
    *("--base-url", "--key"),
}
OF_A_RUN = ("work_dirs/", "playground/", "pretrained/", "downloads/", "results/", "data/", "eval/")
"""Folders whose content downloads and runs make."""
TAKE_DATA_FLAGS = ("check", "report", "preview", "index")
"""Verbs of ``data`` that take training's data flags beside their own."""
PLACEHOLDERS = {"internvl_chat/cli/NAME.py", "tools/x.py"}
NO_SETTINGS = {"NEW_DIR", "SKIP_ERR"}
"""A folder of the user's; VLMEvalKit's, of which the page says that it is not needed."""
OF_LIBRARIES = {
    *(
        "CUDA_HOME",
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "MAX_JOBS",
        "PWD",
        "TMPDIR",
        "TORCH_EXTENSIONS_DIR",
    ),
    *("TORCH_INDEX", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "USER"),
}
"""Settings that libraries, compilers and shells read; ``TORCH_INDEX`` the Dockerfile."""


@functools.cache
def verbs() -> dict[str, set[str]]:
    """By verb (``data check``; the program itself is ````), its options."""
    return {
        words.removeprefix("internvl-chat").strip(): {name for one in all_ for name in one["names"]}
        for words, all_ in options().items()
    }


@functools.cache
def scripts_options() -> set[str]:
    """Options that the programs beside the package declare."""
    files = [
        path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
    ]
    files += [ROOT / "tests/slurm/cluster.py", ROOT / "tests/pins/snapshot.py"]
    return set(re.findall(r'"(--[a-z][\w-]*)"', "".join(path.read_text("utf-8") for path in files)))


def options_of(parser: object) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}  # type: ignore[attr-defined]


def plain(name: str) -> str:
    """Underscores will do where the program has dashes, and the other way round."""
    return name.replace("_", "-")


@functools.cache
def train_options() -> set[str]:
    """Of ``train``; older spellings stand as literals in its code."""
    code = "".join(path.read_text("utf-8") for path in (ROOT / "internvl_chat/train").glob("*.py"))
    return verbs()["train"] | set(re.findall(r'"(--[\w-]+)"', code))


def verbs_options(name: str) -> set[str]:
    """Of a verb; ``plan`` takes those of ``train``, too."""
    if name == "plan":
        return train_options() | verbs()["plan"]
    return train_options() if name == "train" else verbs()[name]


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page: str) -> None:
    known = set().union(*verbs().values(), *OF_OTHERS.values())
    known |= train_options() | scripts_options() | REFUSED_BY_RUN
    known |= options_of(make_parser()) | options_of(get_args_parser())
    known = {plain(name) for name in known}
    assert (
        sorted({name for name in OPTION.findall(page_text(page)) if plain(name) not in known}) == []
    )


def programs_of(text: str) -> Iterator[tuple[set[str], str]]:
    """The options of our programs in a command, and the part of it that they are typed in."""
    for part in re.split(r"\s*(?:&&|\||>)\s*", text.replace("\\\n", " ")):
        if found := re.search(r"(?:internvl-chat|-m internvl_chat) (.*)", part):
            words = found[1].split()
            name = max(
                (" ".join(words[:n]) for n in (0, 1, 2) if " ".join(words[:n]) in verbs()), key=len
            )
            yield verbs_options(name), found[1]
        elif found := re.search(r"(?:shell/internvl1\.2/\S+|train/finetune\.py)(.*)", part):
            yield train_options(), found[1]
        elif found := re.search(r"\bevaluate\.sh(.*)", part):
            yield verbs()["eval run"], found[1]
        elif found := re.search(r"\brun\.py(.*)", part):
            yield options_of(make_parser()), found[1]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_has_its_own_programs_options(page: str) -> None:
    """Those in the text and those that no test runs, too."""
    for typed in [*inline_code(page), *(one.text for one in commands(page))]:
        for known, text in programs_of(typed):
            names = {"--help", *(plain(name) for name in known)}
            if known in (verbs().get(f"data {name}") for name in TAKE_DATA_FLAGS):
                names |= {plain(name) for name in train_options()}
            assert [one for one in OPTION.findall(text) if plain(one) not in names] == [], typed


@pytest.mark.parametrize("page", PAGES)
def test_verbs_exist(page: str) -> None:
    groups = {name.split()[0] for name in verbs() if " " in name}
    typed = [*inline_code(page), *(one.text for one in commands(page))]
    for text in typed:
        for found in re.finditer(
            r"(?<![\w./-])internvl-chat ([a-z][\w-]*)(?: ([a-z][\w-]*))?", text
        ):
            first, second = found[1], found[2]
            assert first in verbs(), f"{page}: {text}"
            if first in groups and second:
                assert f"{first} {second}" in verbs(), f"{page}: {text}"


PLACEHOLDER = re.compile(
    r"…|<[a-z][\w -]*>|\[--|"
    r"\b(?:CHECKPOINT|OUTPUT_DIR|META|MODEL|COMMAND|TASK|OUT|IN|SRC|DIR|FILE|NAME)\b(?!=)"
)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_no_command_holds_a_placeholder(page: str) -> None:
    """Not in those that no test runs, either."""
    assert [one for one in commands(page) if PLACEHOLDER.search(one.text)] == []


def tracked(name: str) -> bool:
    """Whether the repository has the file, folder or pattern."""
    return (ROOT / name).exists() or any(ROOT.glob(name))


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page: str) -> None:
    """Whatever begins with a folder of the repository is in it, in text and commands."""
    texts = [*inline_code(page), *(one.text for one in commands(page))]
    names = {
        name.rstrip(".").removeprefix("./")
        for text in texts
        for name in re.findall(r"(?<![\w/.{-])(?:[\w.+-]+/)+[\w.+*-]*(?![\w{…])", text)
    }
    own = [name for name in names if name[0] != "." and (ROOT / name.split("/")[0]).is_dir()]
    made = (*OF_A_RUN, "shell/mine/")
    missing = [name for name in own if not tracked(name) and not name.startswith(made)]
    assert sorted(set(missing) - PLACEHOLDERS) == []


def anchors(page: Path) -> set[str]:
    """GitHub's names of the headings."""
    found = re.findall(r"^#+ (.*)$", prose(page.relative_to(ROOT).as_posix()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_modules_exist(page: str) -> None:
    for code in inline_code(page):
        for dotted in re.findall(r"\binternvl_chat(?:\.\w+)+", code):
            parts = dotted.split(".")
            name = next(
                (n for n in range(len(parts), 0, -1) if tracked("/".join(parts[:n]) + ".py")), None
            )
            if name is None:
                assert tracked("/".join(parts)), f"{page}: {dotted}"
            elif name < len(parts):
                text = (ROOT / ("/".join(parts[:name]) + ".py")).read_text("utf-8")
                wanted = rf"^(?:def|class) {parts[name]}\b|^{parts[name]}\b.*="
                assert re.search(wanted, text, re.MULTILINE), f"{page}: {dotted}"


@functools.cache
def sources() -> str:
    """All code: what the pages say of settings must be read somewhere."""
    listed = [one for one in files_of_clone() if one.endswith((".py", ".sh")) or one[:4] == ".ci/"]
    read = [ROOT / name for name in listed if not name.startswith("tests/pages/")]
    return "".join(path.read_text("utf-8") for path in read if path.is_file())


@pytest.mark.parametrize("page", PAGES)
def test_settings_of_the_environment_are_read(page: str) -> None:
    named = set()
    for text in [*inline_code(page), *(one.text for one in commands(page))]:
        named |= set(re.findall(r"(?:^|\s)([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?==|$|,)", text))
        named |= set(re.findall(r"\$\{?([A-Z][A-Z0-9_]+)\b", text))
    assert [
        name
        for name in sorted(named - NO_SETTINGS - OF_LIBRARIES)
        if not re.search(rf"\b{name}\b", sources())
    ] == []


def test_extras_exist() -> None:
    setup = (ROOT / "setup.py").read_text("utf-8")
    for page in PAGES:
        for extras in re.findall(r"pip install [^\n`]*?\[([\w,]+)\]", page_text(page)):
            assert [one for one in extras.split(",") if f'"{one}": [' not in setup] == [], page


def test_words_of_a_command_are_readable() -> None:
    """A quote that is not closed would hide what follows from these tests."""
    for page in PAGES:
        for command in commands(page):
            if command.text.count("\n") < 3:
                shlex.split(command.text)


def test_modules_of_the_rooms_exist() -> None:
    """docs/architecture.md names each in the row of its room."""
    rows = re.findall(r"^\| `(\w+)/` \| (.*) \|$", page_text("docs/architecture.md"), re.MULTILINE)
    assert len(rows) >= 9
    package = ROOT / "internvl_chat"
    for room, text in rows:
        others = {"chat", "train/"}  # of which evaluation/'s row tells
        for name in re.findall(r"`([a-z_0-9*]+/?)`", text):
            found = [*package.glob(f"{room}/**/{name}"), *package.glob(f"{room}/**/{name}.py")]
            assert found or name in others, f"{room}/: {name}"


def test_examples_of_the_help_have_their_verbs_options() -> None:
    """Every verb has one."""
    for words, command in verbs_commands():
        if hasattr(command, "commands"):
            continue
        name = " ".join(words)
        paragraphs = [" ".join(one.split()) for one in (command.help or "").split("\n\n")]
        examples = [one.removeprefix("Example: ") for one in paragraphs if "Example: " in one]
        assert examples, name
        for example in examples:
            assert example.startswith(f"internvl-chat {name}"), example
            known = {plain(one) for one in verbs_options(name)}
            assert [one for one in OPTION.findall(example) if plain(one) not in known] == [], (
                example
            )


WRITES = re.compile(
    r"(?:\bOUTPUT_DIR=|--output_dir |--fix |merge-lora \S+ |extract \w+ \S+ |json2jsonl \S+ |"
    r"replace-llm \S+ \S+ |resize-pos-embed \S+ |convert-boxes \S+ |data export .*\.jsonl |"
    r"data import (?:--from \w+ )?\S+ |internvl-chat export \S+ |cp -r \S+ |"
    r"--out )(\S+)"
)


def test_no_two_commands_write_to_one_place() -> None:
    """A reader who goes from page to page in one clone would be refused the second."""
    places: dict[str, list[str]] = {}
    for page in PAGES:
        for one in commands(page):
            for place in WRITES.findall(one.text.replace("\\\n", " ")):
                places.setdefault(place, []).append(one.where)
    assert len(places) > 20
    assert {place: where for place, where in places.items() if len(where) > 1} == {}
