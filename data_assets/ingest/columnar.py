"""Parquet files.

Here: opening one, and its rows as text for the quarantine. Not here: what its values mean (``values.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.exceptions import PanicException

from data_assets.errors import SourceFileError, visible
from data_assets.ingest.records import EMPTY, LINE, MALFORMED, RECORD, Records, column_names, no_rows

if TYPE_CHECKING:
    from pathlib import Path

    from data_assets.config import PipelineConfig


def open_parquet(path: Path, relative: str, config: PipelineConfig, name: str) -> Records:
    """Open a Parquet file: its footer is read now, its rows later.

    Raises:
        SourceFileError: it is no Parquet file, or damaged.
    """
    if path.stat().st_size == 0:
        return Records(no_rows(), (), 0, name, "binary", "fast", "")
    try:
        with pq.ParquetFile(path) as file:
            rows = int(file.metadata.num_rows)
        scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        schema = scan.collect_schema()
    except (pl.exceptions.PolarsError, PanicException, OSError, pa.ArrowException) as problem:
        raise unreadable(relative, problem) from problem
    columns = column_names(schema.names(), config.source.column_naming)
    source = dict(zip(columns, schema.dtypes(), strict=True))
    renamed = scan.rename(dict(zip(schema.names(), columns, strict=True)))
    empty = pl.all_horizontal([pl.col(c).is_null() for c in columns]) if columns else pl.lit(value=True)
    frame = renamed.with_row_index(LINE, offset=1).with_columns(
        pl.col(LINE).cast(pl.Int64),
        pl.struct([_shown(c, t) for c, t in source.items()]).struct.json_encode().alias(RECORD)
        if columns
        else pl.lit("{}").alias(RECORD),
        pl.lit(value=False).alias(MALFORMED),
        empty.alias(EMPTY),
    )
    return Records(frame, columns, rows, name, "binary", "fast", "")


def unreadable(relative: str, problem: BaseException) -> SourceFileError:
    """The refusal of a Parquet file that the engine cannot read."""
    return SourceFileError(
        f"{visible(relative)} is no readable Parquet file: {visible(str(problem))}. Nothing of it is used.",
        "The file is cut short or damaged. Ask the sender for it again, or remove it.",
        path=relative,
    )


def _shown(name: str, dtype: pl.DataType) -> pl.Expr:
    """A column in a form that JSON can hold."""
    column = pl.col(name)
    if dtype == pl.Binary:
        return column.bin.encode("hex").alias(name)
    if dtype.is_nested():
        if _has(dtype, pl.Binary):
            return pl.when(column.is_not_null()).then(pl.lit(f"<{dtype}>")).alias(name)
        return column
    if dtype.is_numeric() and not dtype.is_decimal() and dtype not in (pl.Int128, pl.UInt128):
        return column
    return column if dtype in (pl.String, pl.Boolean) else column.cast(pl.String)


def _has(dtype: pl.DataType | type[pl.DataType], wanted: type[pl.DataType]) -> bool:
    """Whether the type is ``wanted`` or holds it at any depth."""
    if isinstance(dtype, pl.Struct):
        return any(_has(cast("pl.DataType", field.dtype), wanted) for field in dtype.fields)
    if isinstance(dtype, pl.List | pl.Array):
        return _has(cast("pl.DataType", dtype.inner), wanted)
    return dtype == wanted
