"""Ours to theirs: where each of our columns comes from in one opened file.

Here: names, SQL expressions, constants, values from the path, and what is missing. Not here: how their values become
our types (``values.py``), and what is valid (``classify.py``).
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
from polars.exceptions import PanicException

from data_assets.config import ConstantValue, CsvConfig, PathPattern, SqlExpression
from data_assets.errors import ConfigurationError, MissingColumnsError, nearest, visible
from data_assets.ingest import values
from data_assets.ingest.records import HELPERS, Records, rename

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from data_assets.config import PipelineConfig

_CAST = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|(?P<cast>\bCAST\s*\()""", re.IGNORECASE)
_CLOCK = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|(?P<clock>\bNOW\s*\(|\b(?:CURRENT_DATE|(?:CURRENT_|LOCAL)TIME(?:STAMP)?)\b)""",
    re.IGNORECASE,
)
_PIECE = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|[()]|\bAS\b""", re.IGNORECASE)
_USUAL_FORMS = {"Date": "%Y-%m-%d", "Time": "%H:%M:%S"}  # else the engine takes that of the first text of each batch


@dataclass(frozen=True)
class Source:
    """Where one of our columns comes from.

    Attributes:
        value: the source's value, not yet of our type; ``None`` when the file has none.
        dtype: its type.
        uses: the file's columns that it is made of.
        names: for SQL, the columns that it reads, as it spells them; ``bound`` provides them.
        unreadable: for SQL, whether something in it could not read a text that was there.
    """

    value: pl.Expr | None
    dtype: pl.DataType
    uses: tuple[str, ...] = ()
    names: tuple[tuple[str, pl.Expr], ...] = ()
    unreadable: pl.Expr | None = None


def find(name: str, columns: Sequence[str], naming: str) -> str | None:
    """The file's column that ``name`` means, as it stands or in the spelling before ``column_naming``."""
    if name in columns:
        return name
    renamed = rename(name, naming)
    return renamed if renamed in columns else None


def wanted_columns(config: PipelineConfig) -> tuple[str, ...]:
    """The names (after ``column_naming``) of the source columns that the mapping reads."""
    found: dict[str, None] = {}
    for name, theirs in config.source.columns.as_mapping().items():
        if isinstance(theirs, str):
            roots: Sequence[str] = (theirs,)
        elif isinstance(theirs, SqlExpression):
            roots = _parse(name, theirs.sql).meta.root_names()
        else:
            roots = ()
        found.update(dict.fromkeys(rename(r, config.source.column_naming) for r in roots))
    return tuple(found)


def required_columns(config: PipelineConfig) -> tuple[str, ...]:
    """The source's columns, by their names in the mapping, that a file cannot do without."""
    mapping = config.source.columns.as_mapping()
    required = (mapping[name] for name in config.source.required)
    return tuple(theirs for theirs in required if isinstance(theirs, str))


def check_required(records: Records, relative: str, config: PipelineConfig) -> None:
    """Refuse a file without the columns that the mapping requires.

    Raises:
        MissingColumnsError: naming them all.
    """
    if not records.columns:
        return
    naming = config.source.column_naming
    missing = [theirs for theirs in required_columns(config) if find(theirs, records.columns, naming) is None]
    if missing:
        raise MissingColumnsError(relative, missing, records.columns)


def sources(records: Records, relative: str, config: PipelineConfig) -> dict[str, Source]:
    """Each of our columns with where it comes from in this file.

    Raises:
        ConfigurationError: an SQL expression does not fit the file's columns.
    """
    schema = records.frame.collect_schema()
    naming = config.source.column_naming
    result = {}
    for name, theirs in config.source.columns.as_mapping().items():
        source = Source(None, pl.String())
        if isinstance(theirs, str):
            found = find(theirs, records.columns, naming)
            if found is not None:
                source = Source(pl.col(found), schema[found], (found,))
        elif isinstance(theirs, ConstantValue):
            source = Source(pl.lit(theirs.value), pl.String())
        elif isinstance(theirs, PathPattern):
            match = re.search(theirs.path, relative)
            source = Source(pl.lit(match[1] if match else None, pl.String), pl.String())
        elif isinstance(theirs, SqlExpression) and records.columns:
            source = _from_sql(name, theirs.sql, records, schema, config)
        result[name] = source
    return result


def bound(frame: pl.LazyFrame, found: Iterable[Source]) -> pl.LazyFrame:
    """The frame with the columns that SQL reads, as it spells them, texts that mean "no value" null.

    They may hide columns of the file, so what is taken from those directly has to be taken before.
    """
    names = {name: column for source in found for name, column in source.names}
    return frame.with_columns(column.alias(name) for name, column in names.items()) if names else frame


def numbers_in(records: Records, config: PipelineConfig) -> CsvConfig:
    """How numbers are written in the file's texts: in JSON 1.234 is a little over one, whatever CSV files have."""
    return CsvConfig() if records.format.startswith("json") else config.source.csv


def blank_to_null(column: pl.Expr, nulls: Sequence[str]) -> pl.Expr:
    """Text without the texts that mean "no value", also when spaces stand around them.

    Only values that begin or end with a space are trimmed: trimming all costs more than reading the numbers in them.
    """
    if not nulls:
        return column
    spaced = pl.when((column < "!") | column.str.ends_with(" ")).then(column).str.strip_chars()
    return pl.when(~(column.is_in(nulls) | spaced.is_in(nulls).fill_null(value=False))).then(column)


def lenient(sql: str) -> str:
    """The expression with every CAST made a TRY_CAST: one bad cell must cost its row, not the file.

    >>> lenient("CAST(a AS INT) + length('CAST(')")
    "TRY_CAST(a AS INT) + length('CAST(')"
    """
    return _CAST.sub(lambda m: "TRY_CAST(" if m["cast"] else m[0], sql)


def _casts(sql: str) -> Iterator[tuple[str, str]]:
    """Every CAST in the expression: what it reads, and the cast itself."""
    for match in _CAST.finditer(sql):
        if not match["cast"]:
            continue
        depth, split = 1, -1
        for piece in _PIECE.finditer(sql, match.end()):
            depth += {"(": 1, ")": -1}.get(piece[0], 0)
            if depth == 1 and piece[0].upper() == "AS":
                split = piece.start()
            if depth == 0:
                yield lenient(sql[match.end() : split]), lenient(sql[match.start() : piece.end()])
                break


def _times(name: str, sql: str, expression: pl.Expr, columns: Sequence[str]) -> tuple[pl.Expr, list[pl.Expr]]:
    """The expression with DATE, TIME and STRPTIME null where they cannot read a text, and of each whether that is so.

    SQL has no word for it, as it has TRY_CAST, so it is said where the engine lets an expression be written as JSON.
    """
    written = expression.meta.serialize(format="json")
    if '"Strptime"' not in written:
        return expression, []
    tree = json.loads(written)
    found = []
    for node in _nodes(tree):
        kind = node.get("function")
        if not isinstance(kind, dict) or "Strptime" not in kind.get("StringExpr", ()):
            continue
        target, how = kind["StringExpr"]["Strptime"]
        how["strict"] = False
        how["format"] = how["format"] or _USUAL_FORMS.get(str(target["Literal"]))
        if how["format"] is None:
            raise _refused(name, sql, "say the form of the times: STRPTIME(x, '%Y-%m-%d %H:%M:%S')", columns)
        found.append(node)
    try:
        failed = [_of_json(node["input"][0]).is_not_null() & _of_json({"Function": node}).is_null() for node in found]
        expression = _of_json(tree)
    except pl.exceptions.ComputeError as problem:
        raise _refused(name, sql, "it is too deep for one that reads times; make it shorter", columns) from problem
    if any(pl.select(reads).item() for reads in failed if not reads.meta.root_names()):
        raise _refused(name, sql, "a date or time that stands in it cannot be read", columns)
    return expression, failed


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - JSON
    """All objects at any depth, the inner ones after those that hold them."""
    if isinstance(tree, dict):
        yield tree
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(part)


def _of_json(tree: Any) -> pl.Expr:  # noqa: ANN401 - JSON
    return pl.Expr.deserialize(io.StringIO(json.dumps(tree)), format="json")


def _parse(name: str, sql: str) -> pl.Expr:
    try:
        return pl.sql_expr(lenient(sql))
    except (pl.exceptions.PolarsError, PanicException) as problem:
        said = str(problem) if "TRY_CAST" in sql else str(problem).replace("TRY_CAST(", "CAST(")  # see lenient
        raise _refused(name, sql, said, ()) from problem


def _from_sql(
    name: str, sql: str, records: Records, schema: Mapping[str, pl.DataType], config: PipelineConfig
) -> Source:
    """The expression over the file's columns; names may be spelled as in the file's header."""
    expression = _parse(name, sql)
    if "strict_cast" in str(expression):
        raise _refused(name, sql, "write CAST(x AS type) instead of x::type", records.columns)
    if any(found["clock"] for found in _CLOCK.finditer(sql)):
        raise _refused(
            name, sql, "it asks the clock, so the same file would be other events each time", records.columns
        )
    if '"Explode":{' in expression.meta.serialize(format="json"):
        raise _refused(name, sql, "it makes several rows of one", records.columns)
    names: dict[str, pl.Expr] = {}
    uses = []
    for root in dict.fromkeys(expression.meta.root_names()):
        found = find(root, records.columns, config.source.column_naming)
        if found is None:
            near = ", ".join(visible(c, 60) for c in nearest(root, records.columns))
            missing = f"the file has no column {visible(root)}" + (f" (nearest: {near})" if near else "")
            raise _refused(name, sql, missing, records.columns)
        uses.append(found)
        plain = values.times_in(pl.col(found), schema[found], values.convertible)
        names[root] = blank_to_null(plain, config.source.null_values) if schema[found] == pl.String else plain
        if schema[found].is_integer():
            names[root] = plain.cast(_wide(schema[found]))
    expression, failed = _times(name, sql, expression, records.columns)
    seen = {root: _wide(schema[use]) for root, use in zip(names, uses, strict=True)}
    # A text, even an empty one, has the engine say what it makes of no text whatever.
    sample = pl.DataFrame({r: ["" if dtype == pl.String else None, None] for r, dtype in seen.items()}, schema=seen)
    try:
        probe = sample.select(expression)
    except (pl.exceptions.PolarsError, PanicException) as problem:
        raise _refused(name, sql, str(problem).partition("\n")[0], records.columns) from problem
    if names and probe.height != sample.height:
        raise _refused(name, sql, "it makes one value of many rows", records.columns)
    failed += [pl.sql_expr(arg).is_not_null() & pl.sql_expr(cast).is_null() for arg, cast in _casts(sql)]
    unreadable = pl.any_horizontal(failed) if failed else None
    return Source(expression, probe.dtypes[0], tuple(uses), tuple(names.items()), unreadable)


def _wide(dtype: pl.DataType) -> pl.DataType:
    """The type that SQL sees: the engine computes within that of a column, where 100 * 100 of 8 bits wraps around."""
    if dtype in (pl.UInt64, pl.UInt128):
        return pl.Int128()
    return pl.Int64() if dtype.is_integer() and dtype != pl.Int128 else dtype


def _refused(name: str, sql: str, why: str, columns: Sequence[str]) -> ConfigurationError:
    shown = ", ".join(visible(c, 60) for c in columns if c not in HELPERS)
    return ConfigurationError(
        f"source.columns.{name}: the SQL expression {visible(sql)!r} cannot be used: {visible(why).rstrip('.')}."
        + (f" The file has: {shown}." if shown else ""),
        "Correct the expression; columns of CSV and JSON files are text, so numbers need CAST(x AS DOUBLE), dates "
        "DATE(x) and times STRPTIME(x, '%Y-%m-%d %H:%M:%S').",
        key=f"source.columns.{name}",
    )
