"""Files to import and what comes of them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from internvl_chat.data.convert.exporting import ExportPlan, RecordsExport, export_records
from internvl_chat.data.convert.importing import Format, ImportPlan, ImportReport, import_records

Row = dict[str, Any]


def png(color: str = "red", size: tuple[int, int] = (8, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def png_url(color: str = "red") -> str:
    return f"data:image/png;base64,{base64.b64encode(png(color)).decode()}"


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), "utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read_rows(path: Path) -> list[Row]:
    if path.suffix == ".json":
        rows: list[Row] = json.loads(path.read_text("utf-8"))
        return rows
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def bring_in(
    source: Path,
    target: Path,
    source_format: Format,
    *,
    root: Path | None = None,
    meta: Path | None = None,
    name: str | None = None,
    question: str | None = None,
    columns: Mapping[str, str] | None = None,
    group: str | None = None,
    split: str = "train",
    train_masked: bool = False,
    state_sizes: bool = False,
) -> ImportReport:
    return import_records(
        ImportPlan(
            source=source,
            target=target,
            source_format=source_format,
            image_root=root,
            meta_path=meta,
            dataset_name=name,
            common_question=question,
            named_columns=columns or {},
            group_column=group,
            reference_split=split,
            train_masked=train_masked,
            state_sizes=state_sizes,
        )
    )


def send_out(
    source: Path,
    target: Path,
    target_format: Format,
    *,
    root: Path | None = None,
    embed: bool = False,
) -> RecordsExport:
    return export_records(
        ExportPlan(
            records=source,
            written=target,
            target_format=target_format,
            images_below=root,
            embed=embed,
        )
    )


def there_and_back(
    folder: Path, rows: list[Any], form: Format, *, embed: bool = False, ending: str = ".jsonl"
) -> tuple[list[Row], ImportReport, RecordsExport]:
    """Import rows and export them again."""
    source = write_rows(folder / f"in{ending}", rows)
    there = bring_in(source, folder / "own" / "own.jsonl", form)
    meta = json.loads((folder / "own" / "own.meta.json").read_text())
    back = send_out(
        folder / "own" / "own.jsonl",
        folder / f"back{ending}",
        form,
        root=Path(meta["own"]["root"]),
        embed=embed,
    )
    return read_rows(folder / f"back{ending}"), there, back
