"""The report on disk.

Here: writing the page, its summary and the CSV files so that a reader never sees half a file, and making text harmless
to spreadsheets, which run cells that look like formulas. Not here: what is in them (``page.py``).
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from data_assets.engine import chosen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from data_assets.report.model import Report

# Spreadsheets skip white space, byte order marks and full-width forms on their way to a formula.
FORMULA = r"^(?:[\t\r\n]|[\s\x00\u{feff}]*[=+\-@＝＋－＠])"  # noqa: RUF001  the full-width forms are meant


def write(report: Report, folder: Path) -> None:
    """All files of the report into ``folder``: each is finished beside its place and then put there in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    # A line for each of its parts: what is indented throughout, Python writes without the help of C.
    parts = (f"{json.dumps(name)}: {json.dumps(part, allow_nan=False)}" for name, part in report.summary.items())
    summary = "{\n" + ",\n".join(parts) + "\n}\n"
    with _replacing(folder, [*report.csvs, "report.txt", "summary.json", "report.html"]) as places:
        for name, rows in report.csvs.items():
            harmless(rows).sink_csv(places[name], engine=chosen())
        places["report.txt"].write_text(report.text, encoding="utf-8", newline="\n")
        places["summary.json"].write_text(summary, encoding="utf-8", newline="\n")
        places["report.html"].write_text(report.html, encoding="utf-8", newline="\n")


def harmless(rows: pl.LazyFrame) -> pl.LazyFrame:
    """``rows`` for people with spreadsheets: a text or heading that looks like a formula gets a leading apostrophe.

    Nested and binary columns, which CSV does not know, become text.
    """
    return rows.select_seq(_harmless(tuple(rows.collect_schema().items())))


@lru_cache(maxsize=64)  # days have the same columns
def _harmless(schema: tuple[tuple[str, pl.DataType], ...]) -> list[pl.Expr]:
    names, taken = [], {name for name, _ in schema}
    for name, _ in schema:
        safe = f"'{name}" if _is_formula(name) else name
        while safe in names or (safe != name and safe in taken):
            safe = f"'{safe}"
        names.append(safe)
    return [_text(name, dtype).alias(safe) for (name, dtype), safe in zip(schema, names, strict=True)]


def _is_formula(heading: str) -> bool:
    return bool(pl.select(pl.lit(heading).str.contains(FORMULA)).item())


def _text(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if isinstance(dtype, pl.Struct):
        column = column.struct.json_encode()
    elif dtype.is_nested():
        column = pl.struct(name).struct.json_encode()
    elif isinstance(dtype, pl.Binary):
        column = column.bin.encode("hex")
    elif isinstance(dtype, pl.Categorical | pl.Enum | pl.Null):
        column = column.cast(pl.String)
    elif not isinstance(dtype, pl.String):
        return column
    return pl.when(column.str.contains(FORMULA)).then(pl.concat_str(pl.lit("'"), column)).otherwise(column)


@contextmanager
def _replacing(folder: Path, names: list[str]) -> Iterator[dict[str, Path]]:
    """Temporary places for ``names``; at the end all of them are synced and moved in order, or removed on an error."""
    token = secrets.token_hex(8)
    places = {name: folder / f".{name}.{token}.tmp" for name in names}
    try:
        yield places
        for place in places.values():
            _sync(place)
        for name, place in places.items():
            place.replace(folder / name)
        if os.name == "posix":
            _sync(folder)
    finally:
        for place in places.values():
            place.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() or os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
