"""Parquet files.

Here: opening one, which reads every page once and so refuses a damaged file before anything of it is used; paths into
nested columns; rows as text for the quarantine. Not here: what the values mean (``values.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.exceptions import PanicException

from data_assets.engine import in_pieces, scan_named
from data_assets.errors import SourceFileError, visible
from data_assets.ingest import values
from data_assets.ingest.mapping import wanted_columns
from data_assets.ingest.records import LINE, MALFORMED, Records, column_names, no_rows, rename
from data_assets.memory import NUMBER_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from data_assets.config import PipelineConfig

_BATCH = 16_384
_PIECE_BYTES, _COLUMN_BYTES = 14 << 20, 200 << 10  # of a row group, read at a time; to take up a column has its cost
_MAGIC = b"PAR1"
_NO_TEXT = (pl.Binary, pl.Duration, pl.Map, pl.Categorical, pl.Enum, pl.BaseExtension)
_UUID_GROUPS = ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))
_MOST_PIECES = 1_000  # over more of them the engine plans for long
_UTF8_IN_HEX = (  # the engine's cast from bytes to text gives up the file at the first byte that is not UTF-8
    r"^(?:[0-7].|(?:c[2-9a-f]|d.|e0[ab].|e[1-9a-cef][89ab].|ed[89].|f0[9ab].[89ab].|f[1-3](?:[89ab].){2}|f48.[89ab].)"
    r"[89ab].)*$"
)


def open_parquet(path: Path, relative: str, config: PipelineConfig, name: str, *, verify: bool) -> Records:
    """Open a Parquet file. Its rows are read later, by the engine; ``verify`` has every page looked at now.

    Raises:
        SourceFileError: it is no Parquet file, or damaged, or of a kind that cannot be read.
    """
    if path.stat().st_size == 0:
        return Records(no_rows(), (), 0, name, "binary", "fast", "")
    try:
        footer = _footer(path, verify=verify)
        scan = _scan(path, footer)
        schema = pl.Schema(scan.collect_schema())
        schema.to_frame()
    except (pl.exceptions.PolarsError, PanicException, OSError, pa.ArrowException, UnicodeDecodeError) as problem:
        raise unreadable(relative, path, problem) from problem
    columns = column_names(schema.names(), config.source.column_naming)
    given = zip(schema.items(), columns, strict=True)
    uuids = _uuids(footer)
    renamed = scan.select(
        (_uuid(pl.col(theirs)) if theirs in uuids else _plain(pl.col(theirs), dtype)).alias(ours)
        for (theirs, dtype), ours in given
    )
    renamed = with_known_zones(renamed)
    source = dict(renamed.collect_schema())
    paths = {name: column for name in wanted_columns(config) if (column := _reach(name, source, config)) is not None}
    frame = renamed.with_row_index(LINE, offset=1).with_columns(
        pl.col(LINE).cast(pl.Int64),
        pl.lit(value=False).alias(MALFORMED),
        *(column.alias(path) for path, column in paths.items()),
    )
    empty = pl.all_horizontal([pl.col(c).is_null() for c in columns]) if columns else pl.lit(value=True)
    record = pl.struct([_shown(c, t) for c, t in source.items()]).struct.json_encode() if columns else pl.lit("{}")
    return Records(frame, (*columns, *paths), footer.num_rows, name, "binary", "fast", "", record, empty)


def _footer(path: Path, *, verify: bool) -> pq.FileMetaData:
    """What the file tells of its rows; to verify it, every page is read by another engine than reads them later.

    Polars looks at no checksum, and mends levels that are wrong. It costs about a tenth of what the rows cost later.
    """
    with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
        footer = file.metadata
        if not verify or not footer.num_columns:
            return footer
        found = sum(batch.num_rows for batch in file.iter_batches(batch_size=_BATCH, use_threads=False))
    pa.default_memory_pool().release_unused()  # what is read later is read by the other engine
    if found != footer.num_rows:
        msg = f"its footer tells of {footer.num_rows:,} rows, but {found:,} are there"
        raise pa.ArrowInvalid(msg)
    return footer


def _scan(path: Path, footer: pq.FileMetaData) -> pl.LazyFrame:
    """The file's rows; large row groups a piece at a time, since the engine takes up several whole ones at once."""
    scan = scan_named(path)
    every = (footer.row_group(number) for number in range(footer.num_row_groups))
    groups = [group for group in every if group.num_rows > 0]
    sizes = [max(group.total_byte_size, group.num_rows * group.num_columns * NUMBER_BYTES) for group in groups]
    most = max(_PIECE_BYTES, _COLUMN_BYTES * footer.num_columns)
    pieces = [max(1, -(-size // most)) for size in sizes]
    if sum(pieces) > _MOST_PIECES:
        pieces = [1] * len(groups)
    if max(sizes, default=0) <= most or len(groups) > _MOST_PIECES:
        return scan
    steps = [-(-group.num_rows // count) for group, count in zip(groups, pieces, strict=True)]
    return in_pieces(
        scan,
        (
            min(step, group.num_rows - at)
            for group, step in zip(groups, steps, strict=True)
            for at in range(0, group.num_rows, step)
        ),
    )


def _reach(path: str, source: Mapping[str, pl.DataType], config: PipelineConfig) -> pl.Expr | None:
    """What stands at ``actor.id`` or ``items.0.id`` in structs and lists; ``None`` where nothing can."""
    if path in source:
        return None
    first, *steps = path.split(".")
    if not steps or first not in source:
        return None
    column, dtype = pl.col(first), source[first]
    for step in steps:
        if isinstance(dtype, pl.Struct):
            fields = {rename(f.name, config.source.column_naming): f for f in dtype.fields}
            field = fields.get(rename(step, config.source.column_naming))
            if field is None:
                return None
            column, dtype = column.struct.field(field.name), cast("pl.DataType", field.dtype)
        elif isinstance(dtype, pl.List | pl.Array) and step.isascii() and step.isdecimal():
            get = column.list.get if isinstance(dtype, pl.List) else column.arr.get
            column, dtype = get(int(step), null_on_oob=True), cast("pl.DataType", dtype.inner)
        else:
            return None
    return column


def unreadable(relative: str, path: Path, problem: BaseException) -> SourceFileError:
    """The refusal of a Parquet file that the engine cannot read."""
    hint = (
        "The file is cut short or damaged, or has a column of a type that is not read here (intervals, "
        "decimals of over 38 digits). Ask the sender for it again, or remove it."
    )
    if path.exists() and not _is_parquet(path):
        hint = (
            "It does not begin as Parquet files do. Give it the ending of what it is, .csv for instance, or remove it."
        )
    return SourceFileError(
        f"{visible(relative)} is no readable Parquet file: {visible(str(problem))}. Nothing of it is used.",
        hint,
        path=relative,
    )


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _uuids(footer: pq.FileMetaData) -> set[str]:
    """The columns of UUIDs, which are 16 bytes to the engine; not those within others."""
    leaves = (footer.schema.column(number) for number in range(footer.num_columns))
    return {leaf.path for leaf in leaves if leaf.logical_type.type == "UUID" and leaf.path == leaf.name}


def _uuid(column: pl.Expr) -> pl.Expr:
    digits = column.bin.encode("hex")
    return pl.concat_str([digits.str.slice(at, n) for at, n in _UUID_GROUPS], separator="-")


def _plain(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """A column without the types that cannot become text: bytes are text where they are UTF-8, else hexadecimal.

    A map becomes a list of its entries, as JSON has no keys but texts. Text that a writer kept as a dictionary is text.
    A type that a writer made of another, such as arrow.json, is that other one.
    """
    if isinstance(dtype, pl.BaseExtension):
        column, dtype = column.ext.storage(), cast("pl.DataType", dtype.ext_storage())
    if isinstance(dtype, pl.Categorical | pl.Enum) or not any(_has(dtype, odd) for odd in _NO_TEXT):
        return column.cast(pl.String) if isinstance(dtype, pl.Categorical | pl.Enum) else column
    if isinstance(dtype, pl.Map):
        entry = pl.Struct({"key": dtype.key, "value": dtype.value})
        return _plain(column.map.entries(), pl.List(entry))
    if isinstance(dtype, pl.Struct):
        fields = [_plain(column.struct.field(f.name), cast("pl.DataType", f.dtype)).alias(f.name) for f in dtype.fields]
        return pl.when(column.is_not_null()).then(pl.struct(fields))
    if isinstance(dtype, pl.List | pl.Array):
        listed = column.arr.to_list() if isinstance(dtype, pl.Array) else column
        return listed.list.eval(_plain(pl.element(), cast("pl.DataType", dtype.inner)))
    if dtype == pl.Duration:
        return column.dt.to_string("iso")
    digits = column.bin.encode("hex")
    is_text = digits.str.contains(_UTF8_IN_HEX)
    text = pl.when(is_text).then(column).otherwise(pl.lit(b"")).cast(pl.String)
    return pl.when(is_text).then(text).otherwise(pl.lit("\\x") + digits)


def with_known_zones(frame: pl.LazyFrame) -> pl.LazyFrame:
    """The frame with times of zones that the engine does not know, as +05:30 that PyArrow writes, in UTC."""
    given = {name: (pl.col(name), dtype) for name, dtype in frame.collect_schema().items()}
    known = {name: values.times_in(column, dtype, _in_known_zone) for name, (column, dtype) in given.items()}
    return frame.with_columns(column.alias(name) for name, column in known.items() if column is not given[name][0])


def _in_known_zone(column: pl.Expr, dtype: pl.Datetime | pl.Date) -> pl.Expr:
    zone = dtype.time_zone if isinstance(dtype, pl.Datetime) else None
    if zone is None:
        return column
    try:
        pl.Series(dtype=pl.Datetime("us")).dt.replace_time_zone(zone)
    except pl.exceptions.ComputeError:
        return column.dt.convert_time_zone("UTC")
    return column


def _shown(name: str, dtype: pl.DataType) -> pl.Expr:
    """A column in a form that JSON can hold."""
    column = pl.col(name)
    if dtype.is_nested():
        return values.times_in(column, dtype, values.text).alias(name)
    if dtype.is_numeric() and not dtype.is_decimal() and dtype not in (pl.Int128, pl.UInt128):
        return column
    return column if dtype == pl.Boolean else values.text(column, dtype)


def _has(dtype: pl.DataType | type[pl.DataType], wanted: type[pl.DataType]) -> bool:
    """Whether the type is ``wanted`` or holds it at any depth."""
    if isinstance(dtype, pl.Struct):
        return any(_has(cast("pl.DataType", field.dtype), wanted) for field in dtype.fields)
    if isinstance(dtype, pl.List | pl.Array):
        return _has(cast("pl.DataType", dtype.inner), wanted)
    if isinstance(dtype, pl.Map) and wanted is not pl.Map:
        return any(_has(cast("pl.DataType", part), wanted) for part in (dtype.key, dtype.value))
    return dtype == wanted or isinstance(dtype, wanted)
