"""``internvl-chat data …``: the verbs by which datasets are made and brought into shape, thin."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from internvl_chat.cli.completion import record_formats
from internvl_chat.cli.options import cleaned_up_when_terminated
from internvl_chat.errors import ConfigError

if TYPE_CHECKING:
    from internvl_chat.data.boxes import BoxForm
    from internvl_chat.data.convert.files import Progress
    from internvl_chat.data.convert.importing import Format

_FORMAT_LIST = "llava, openai, sharegpt, alpaca, csv, parquet, coco or refcoco"

AsJson = Annotated[bool, typer.Option("--json", help="Report as a JSON object.")]
ImageRootOption = Annotated[
    Path | None,
    typer.Option("--root", metavar="DIR", help="Folder of image paths; by default the file's own."),
]
ImportMeta = Annotated[
    Path | None,
    typer.Option(help="Meta JSON that gets the entry; a new OUT.meta.json by default."),
]
DatasetName = Annotated[
    str | None, typer.Option(help="Of the dataset in the meta JSON; the file's or folder's else.")
]
CommonQuestion = Annotated[
    str | None,
    typer.Option(help="Asked where the source has none; {} is COCO's category, RefCOCO's text."),
]
TableColumn = Annotated[
    list[str] | None,
    typer.Option(help="Of tables: image=, question=, answer=, system= or id=NAME; repeatable."),
]
GroupColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Of tables: rows that follow each other and agree in it are one conversation; a row "
        "is a record else.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add these verbs to ``internvl-chat data``."""
    app.command("convert-boxes")(convert_boxes)
    app.command("import")(import_)
    app.command("export")(export)
    app.command("split")(split)
    app.command("init")(init)
    app.command("stats")(stats)
    app.command("layout")(layout)


def convert_boxes(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="JSONL file, JSON array or meta JSON.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="New file; of a meta JSON a folder.")
    ],
    source_form: Annotated[str, typer.Option("--from", help="unit, 1000 or pixel.")],
    target_form: Annotated[str, typer.Option("--to", help="unit, 1000 or pixel.")],
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Images' folder: sizes for pixels that records do not state."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rewrite boxes: 0-1 floats (unit), <box> elements in 0-1000 (1000) or pixels (pixel).

    Example: internvl-chat data convert-boxes refcoco.jsonl refcoco_1000.jsonl --from unit --to 1000
    """
    from internvl_chat.data.boxes import BOX_FORMS
    from internvl_chat.data.convert.box_files import convert_file, convert_meta
    from internvl_chat.data.convert.sources import is_meta

    for option, form in (("--from", source_form), ("--to", target_form)):
        _require_choice(option, form, BOX_FORMS)
    forms = (cast("BoxForm", source_form), cast("BoxForm", target_form))
    with bar("converting") as progress:
        if is_meta(source):
            reports = convert_meta(source, target, forms, progress)
        else:
            reports = [convert_file(source, target, forms, root=root, progress=progress)]
    for report in reports:
        _echo(report, as_json)


def import_(
    source: Annotated[Path, typer.Argument(metavar="IN", help="File; a folder for some formats.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="New .jsonl.")],
    source_format: Annotated[
        str, typer.Option("--from", help=f"{_FORMAT_LIST}.", autocompletion=record_formats)
    ],
    root: ImageRootOption = None,
    meta: ImportMeta = None,
    name: DatasetName = None,
    question: CommonQuestion = None,
    column: TableColumn = None,
    group: GroupColumn = None,
    split: Annotated[str, typer.Option(help="Of RefCOCO's release.")] = "train",
    train_masked: Annotated[
        bool, typer.Option("--train-masked", help="Learn answers marked as not to be learned.")
    ] = False,
    sizes: Annotated[
        bool, typer.Option("--sizes", help="State width and height, read from images' headers.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make records and a meta JSON out of another format; what is left out is told.

    Records that cannot be taken go to OUT.left.jsonl with the reason; the exit code is then 1.

    Example: internvl-chat data import --from sharegpt chats.json data/chats.jsonl --root images
    """
    from internvl_chat.data.convert.importing import FORMATS, ImportPlan, import_records

    _require_choice("--from", source_format, FORMATS)
    plan = ImportPlan(
        source=source,
        target=target,
        source_format=cast("Format", source_format),
        image_root=root,
        meta_path=meta,
        dataset_name=name,
        common_question=question,
        named_columns=_columns(column or ()),
        group_column=group,
        reference_split=split,
        train_masked=train_masked,
        state_sizes=sizes,
    )
    with bar("importing") as progress:
        report = import_records(plan, progress)
    _echo(report, as_json)
    raise typer.Exit(1 if report.notes.left_records else 0)


def export(
    source: Annotated[Path, typer.Argument(metavar="IN", help="JSONL file or JSON array.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="New file.")],
    target_format: Annotated[
        str, typer.Option("--to", help=f"{_FORMAT_LIST}.", autocompletion=record_formats)
    ],
    root: ImageRootOption = None,
    embed: Annotated[
        bool | None,
        typer.Option(
            "--embed/--paths",
            help="Images as bytes, or by their paths; bytes in parquet, paths else, by default.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write records in another format; what is left out is told.

    The exit code is 1 if records were left out.

    Example: internvl-chat data export --to sharegpt mine.jsonl mine_sharegpt.json
    """
    from internvl_chat.data.convert.exporting import ExportPlan, export_records
    from internvl_chat.data.convert.importing import FORMATS

    _require_choice("--to", target_format, FORMATS)
    if embed and target_format not in ("openai", "parquet"):
        raise ConfigError("has no place for bytes", where=f"--embed --to {target_format}")
    plan = ExportPlan(
        records=source,
        written=target,
        target_format=cast("Format", target_format),
        images_below=root,
        embed=target_format == "parquet" if embed is None else embed,
    )
    with bar("exporting") as progress:
        report = export_records(plan, progress)
    _echo(report, as_json)
    raise typer.Exit(1 if report.notes.left_records else 0)


def split(
    source: Annotated[Path, typer.Argument(metavar="META|JSONL", help="What is cut in two.")],
    val: Annotated[
        float, typer.Option(help="Share of the records held out; from 1 on their number.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="The same one gives the same halves.")] = 0,
    by: Annotated[
        str,
        typer.Option(
            help="What is never in both halves: image, content (of its file), record, or a field "
            "of the records."
        ),
    ] = "image",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For the new files; beside the source else.")
    ] = None,
    root: ImageRootOption = None,
    as_json: AsJson = False,
) -> None:
    """Hold records out: two files and two meta JSONs, no image in both.

    Example: internvl-chat data split photos/meta.json --val 0.1
    """
    from internvl_chat.data.convert.splitting import split_records

    with bar("splitting") as progress:
        report = split_records(
            source, out, share=val, seed=seed, by=by, root=root, progress=progress
        )
    _echo(report, as_json)


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of images.")],
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Table with image, question, answer.")
    ] = None,
    question: Annotated[
        str, typer.Option(help="Asked where the table has none.")
    ] = "Describe this image.",
    name: DatasetName = None,
    as_json: AsJson = False,
) -> None:
    """Make annotation.jsonl and meta.json in a folder of images, from a table or to be filled in.

    Example: internvl-chat data init photos --csv photos/questions.csv
    """
    from internvl_chat.data.convert.skeleton import make_skeleton

    with bar("reading") as progress:
        report = make_skeleton(folder, table=csv, question=question, name=name, progress=progress)
    _echo(report, as_json)
    raise typer.Exit(1 if report.notes.left_records else 0)


def stats(
    source: Annotated[Path, typer.Argument(metavar="META|JSONL", help="What is counted.")],
    as_json: AsJson = False,
) -> None:
    """Count records, images, rounds, words, boxes and sizes by dataset; no image is opened.

    Example: internvl-chat data stats shell/data/internvl_1_2_finetune.json
    """
    from internvl_chat.data.convert.counting import as_table, count_datasets

    with bar("counting") as progress:
        found = count_datasets(source, progress)
    if as_json:
        typer.echo(json.dumps({one.name: one.as_dict() for one in found}, ensure_ascii=False))
    else:
        typer.echo(as_table(found))


def layout(
    root: Annotated[Path, typer.Option(metavar="DIR", help="The guide's folder.")] = Path(
        "playground"
    ),
    convert: Annotated[
        bool,
        typer.Option(
            "--convert", help="First SynthDoG-EN's Parquet to images, OCR-VQA's images to .jpg."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Hold playground/ against the guide's tree: what is there, missing, to be moved or converted.

    The exit code is 1 if something is missing.

    Example: internvl-chat data layout --root playground
    """
    from internvl_chat.data.convert.layout import check_layout
    from internvl_chat.data.convert.layout_images import convert_layout

    if not root.is_dir():
        raise ConfigError("no such folder", where=str(root), fix="Name it with --root.")
    converted = []
    if convert:
        with bar("converting") as progress:
            converted = convert_layout(root, progress)
    with bar("looking") as progress:
        report = check_layout(root, progress)
    if as_json:
        done = [one.as_dict() for one in converted]
        typer.echo(json.dumps(report.as_dict() | {"converted": done}, ensure_ascii=False))
    else:
        typer.echo("\n".join([*(one.as_text() for one in converted), report.as_text()]))
    raise typer.Exit(0 if report.is_complete else 1)


@contextmanager
def bar(title: str) -> Iterator[Progress]:
    """A bar on stderr where that is a terminal; SIGTERM leaves no half-written file."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with (
        cleaned_up_when_terminated(),
        Bar(*columns, console=console, disable=not console.is_terminal, transient=True) as shown,
    ):
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=max(total, 1))


def _echo(report: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        typer.echo(report.as_text())


def _require_choice(option: str, value: str, choices: Sequence[str]) -> None:
    from internvl_chat.model.suggestions import suggest

    if value not in choices:
        raise ConfigError(
            f"{value!r} is none of {', '.join(choices)}",
            where=option,
            fix=suggest(value, choices) or None,
        )


def _columns(pairs: Sequence[str]) -> dict[str, str]:
    columns = {}
    for pair in pairs:
        role, equals, name = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"{pair!r} is none", where="--column", fix="Write image=NAME.")
        columns[role] = name
    return columns
