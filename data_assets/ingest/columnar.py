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
_FLOATS = (pl.Float16, pl.Float32, pl.Float64)
_CHANGED = (*_FLOATS, pl.Binary, pl.Duration, pl.Map, pl.Categorical, pl.Enum, pl.BaseExtension)
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
    source = dict(renamed.collect_schema())
    paths = {name: column for name in wanted_columns(config) if (column := _reach(name, source, config)) is not None}
    frame = renamed.with_row_index(LINE, offset=1).with_columns(
        pl.col(LINE).cast(pl.Int64),
        pl.lit(value=False).alias(MALFORMED),
        *(column.alias(path) for path, column in paths.items()),
    )
    empty = pl.all_horizontal([pl.col(c).is_null() for c in columns]) if columns else pl.lit(value=True)
    return Records(frame, (*columns, *paths), footer.num_rows, name, "binary", "fast", "", _record(source), empty)


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
    scan = scan_in_known_zones(path)
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
    """A column without what cannot become text: bytes are text where they are UTF-8, else hexadecimal.

    A map becomes a list of its entries, as JSON has no keys but texts. Text that a writer kept as a dictionary is text.
    A type that a writer made of another, such as arrow.json, is that other one. A float that is not a number is none:
    so pandas and NumPy write that there is no value.
    """
    if isinstance(dtype, pl.BaseExtension):
        column, dtype = column.ext.storage(), cast("pl.DataType", dtype.ext_storage())
    if not any(_has(dtype, changed) for changed in _CHANGED):
        return column
    if isinstance(dtype, pl.Map):
        entry = pl.Struct({"key": dtype.key, "value": dtype.value})
        return _plain(column.map.entries(), pl.List(entry))
    if isinstance(dtype, pl.Struct):
        fields = [_plain(column.struct.field(f.name), cast("pl.DataType", f.dtype)).alias(f.name) for f in dtype.fields]
        return pl.when(column.is_not_null()).then(pl.struct(fields))
    if isinstance(dtype, pl.List | pl.Array):
        listed = column.arr.to_list() if isinstance(dtype, pl.Array) else column
        return listed.list.eval(_plain(pl.element(), cast("pl.DataType", dtype.inner)))
    return _plain_value(column, dtype)


def _plain_value(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype.is_float():
        return column.fill_nan(None)
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return column.cast(pl.String)
    if dtype == pl.Duration:
        return column.dt.to_string("iso")
    digits = column.bin.encode("hex")
    is_text = digits.str.contains(_UTF8_IN_HEX)
    text = pl.when(is_text).then(column).otherwise(pl.lit(b"")).cast(pl.String)
    return pl.when(is_text).then(text).otherwise(pl.lit("\\x") + digits)


def scan_in_known_zones(path: Path) -> pl.LazyFrame:
    """A Parquet file's rows; times of zones that the engine does not know, as +05:30 that PyArrow writes, in UTC.

    They are changed while they are read: the engine gives up on a map or list of them that it holds as one value.
    """
    scan = scan_named(path)
    given = scan.collect_schema()
    known = pl.Schema({name: _of_known_zone(dtype) for name, dtype in given.items()})
    if known == given:
        return scan
    casts = pl.ScanCastOptions(datetime_cast="convert-timezone")
    return pl.scan_parquet(path, glob=False, hive_partitioning=False, schema=known, cast_options=casts)


def _of_known_zone(dtype: pl.DataType) -> pl.DataType:
    """The type with UTC in place of a zone that is not known, at any depth; not in a map's keys, as none are cast."""
    if isinstance(dtype, pl.Struct):
        return pl.Struct({f.name: _of_known_zone(cast("pl.DataType", f.dtype)) for f in dtype.fields})
    if isinstance(dtype, pl.List | pl.Array):
        inner = _of_known_zone(cast("pl.DataType", dtype.inner))
        return pl.Array(inner, dtype.size) if isinstance(dtype, pl.Array) else pl.List(inner)
    if isinstance(dtype, pl.Map):
        return pl.Map(dtype.key, _of_known_zone(cast("pl.DataType", dtype.value)))
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None and not _is_known(dtype.time_zone):
        return pl.Datetime(dtype.time_unit, "UTC")
    return dtype


def _is_known(zone: str) -> bool:
    try:
        pl.Series(dtype=pl.Datetime("us")).dt.replace_time_zone(zone)
    except pl.exceptions.ComputeError:
        return False
    return True


def _record(source: Mapping[str, pl.DataType]) -> pl.Expr:
    """A row as JSON; the numbers of one that holds an infinity, which JSON has not, as texts."""
    if not source:
        return pl.lit("{}")
    encoded, spelled = (
        pl.struct([_shown(c, t, is_finite=finite) for c, t in source.items()]).struct.json_encode()
        for finite in (True, False)
    )
    infinite = [pl.col(c).is_infinite() for c, t in source.items() if t.is_float()]
    return pl.when(pl.any_horizontal(infinite)).then(spelled).otherwise(encoded) if infinite else encoded


def _shown(name: str, dtype: pl.DataType, *, is_finite: bool) -> pl.Expr:
    """A column in a form that JSON can hold."""
    column = pl.col(name)
    if dtype.is_nested():
        return values.times_in(column, dtype, values.text).alias(name)
    if dtype.is_float() and not is_finite:
        return column.cast(pl.String)
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
