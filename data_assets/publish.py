"""A day of a table in PostgreSQL: replaced whole, by binary COPY, and compared with the lake before it counts.

Here: tables from the contracts (DDL), what a table that is there already may look like, the transaction that replaces a
day, and how credentials are found (the environment) and kept out of every message. Not here: which days may be
published (``assets.py``), the keys of the configuration (``config.py``), or reading (``query.py``).

One transaction a day: an advisory lock for table and day, DELETE, COPY in bounded batches, and sums that must be those
of the rows which were sent. A publisher that dies, or a server that goes away, leaves the day as it was.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import polars as pl

from data_assets.contracts import TIMESTAMP, Column
from data_assets.errors import (
    ConfigurationError,
    ContractError,
    DayFailedError,
    PostgresUnavailableError,
    StorageBusyError,
    visible,
)
from data_assets.storage import MOST_AT_ONCE, REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import psycopg
    from psycopg import sql

    from data_assets.config import PipelineConfig, PostgresConfig
    from data_assets.contracts import Table
    from data_assets.storage import DayLog

PREFIX = "postgres"  # of the assets' keys
DSN_VARIABLE = "DATA_ASSETS_POSTGRES_DSN"
MARK = "Written by data_assets."  # ends the comment of every table that was made here
BATCH_ROWS = 65_536
BATCH_BYTES = 16_000_000  # of a batch of long texts, before it is encoded
SAFE_SUM = 1e290  # floats beyond it are left out of the sums, which would overflow

TYPES: Mapping[pl.DataType, str] = {
    pl.Int64(): "bigint",
    pl.Float64(): "double precision",
    pl.String(): "text",
    pl.Date(): "date",
    TIMESTAMP: "timestamp without time zone",
    pl.Boolean(): "boolean",
}

Send: TypeAlias = "Callable[[str, pl.LazyFrame], Published]"


@dataclass(frozen=True)
class Published:
    """What stands in PostgreSQL for a day, as compared before the commit."""

    rows: int
    sums: Mapping[str, Any]


def connection_text() -> str:
    """The DSN of the environment; empty when only PGHOST and its kin say where the server is."""
    return os.environ.get(DSN_VARIABLE, "")


def _secrets() -> list[str]:
    """Texts that no message may hold: the DSN itself and every password, as written and as percent-encoded."""
    from urllib.parse import quote

    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    dsn = connection_text()
    found = [dsn, os.environ.get("PGPASSWORD", "")]
    with contextlib.suppress(psycopg.Error):
        parts = conninfo_to_dict(dsn)
        found += [str(parts.get(name) or "") for name in ("password", "sslpassword")]
    return sorted({form for text in found if text for form in (text, quote(text, safe=""))}, key=len, reverse=True)


def _said(error: BaseException) -> str:
    """The server's or the driver's words, without secrets, on one line."""
    text = " ".join(str(error).split())
    for secret in _secrets():
        text = text.replace(secret, "(hidden)")
    return visible(text, 400)


@contextlib.contextmanager
def connect(config: PostgresConfig) -> Iterator[psycopg.Connection]:
    """A connection to the server that the environment names.

    Raises:
        ConfigurationError: psycopg is not installed, or the DSN cannot be read.
        PostgresUnavailableError: the server cannot be reached, refuses the login, or goes away.
    """
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
    except ImportError as error:
        raise ConfigurationError(
            "postgres is configured, but psycopg is not installed.", "pip install 'data_assets[postgres]'"
        ) from error
    try:
        conninfo_to_dict(connection_text())
    except psycopg.Error:
        raise ConfigurationError(
            f"${DSN_VARIABLE} is not a connection string that PostgreSQL's library can read (it is not shown).",
            "Write it as postgresql://user:password@host:5432/database, with special characters percent-encoded.",
        ) from None
    settings: dict[str, Any] = {
        "connect_timeout": math.ceil(config.connect_timeout_seconds),
        "tcp_user_timeout": math.ceil(config.connect_timeout_seconds * 1000),  # a server that vanished is noticed
        "application_name": "data_assets",
        "client_encoding": "UTF8",
    }
    try:
        connection = psycopg.connect(connection_text(), **settings)
    except psycopg.Error as error:
        raise PostgresUnavailableError(
            f"PostgreSQL cannot be reached: {_said(error)}",
            f"Check that the server runs, and ${DSN_VARIABLE} or PGHOST, PGPORT, PGUSER, PGDATABASE, PGPASSWORD.",
        ) from None
    try:
        with contextlib.closing(connection):
            yield connection
    except psycopg.OperationalError as error:
        raise PostgresUnavailableError(
            f"PostgreSQL went away or gave up: {_said(error)}",
            "The day that was being published is as it was. Look at the server's log, then run again.",
        ) from None


def published_names(config: PipelineConfig) -> list[str]:
    """The assets that stand for tables in PostgreSQL, as ``postgres/<table>``; none when nothing is published."""
    return [f"{PREFIX}/{name}" for name in config.postgres.tables] if config.publishes else []


def mark(table: str) -> str:
    """Where the day log notes what was published of a table."""
    return f"published/{table}"


def unpublished_days(config: PipelineConfig, log: DayLog) -> list[str]:
    """Finished days of which PostgreSQL does not have every table as it was last made."""
    if not config.publishes:
        return []
    there = [log.finished(mark(name)) for name in config.postgres.tables]
    made = {day: found for day, found in log.finished().items() if found != REFUSED}
    return [day for day, found in made.items() if any(days.get(day) != found for days in there)]


# --- tables --------------------------------------------------------------------------------------------------------


def columns(table: Table, schema: Mapping[str, pl.DataType]) -> tuple[Column, ...]:
    """The columns in PostgreSQL: ``date``, then those of ``schema`` with what the contract says of them.

    Args:
        table: the contract; columns beyond it (``source.extra_columns``, ``cleaning.lookup``) may be null.
        schema: names and types of the rows.

    Raises:
        ContractError: a column has a type that PostgreSQL has no equal of here.
    """
    declared = {c.name: c for c in table.columns}
    found = [Column("date", pl.Date(), "the day")]
    for name, dtype in schema.items():
        kind = _widened(dtype)
        if kind not in TYPES:
            raise ContractError(
                f"{table.name}: the column {visible(name, 60)} of type {dtype} cannot be published.",
                f"Leave {table.name} out of postgres.tables, or the column out of the source.",
                table=table.name,
            )
        found.append(declared.get(name) or Column(name, kind, "a column of the source", nullable=True))
    return tuple(found)


def _widened(dtype: pl.DataType) -> pl.DataType:
    """The type that holds every value of ``dtype`` and has an equal in PostgreSQL."""
    if dtype.is_integer() and dtype not in (pl.UInt64, pl.Int128, pl.UInt128):
        return pl.Int64()
    if dtype.is_float():
        return pl.Float64()
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is None and dtype.time_unit != "ns":
        return TIMESTAMP
    return pl.String() if isinstance(dtype, pl.Categorical | pl.Enum) else dtype


def _name(config: PostgresConfig, table: Table) -> sql.Identifier:
    """Values beside it stand as literals, never as parameters: a name may hold ``%s``, which psycopg takes for one."""
    from psycopg import sql

    return sql.Identifier(config.schema_name, table.name)


def ddl(config: PostgresConfig, table: Table, wanted: Sequence[Column]) -> list[sql.Composed]:
    """What makes the table: its columns, its key or an index by day, and comments.

    A table with a key gets the primary key (date, key). The others are read and replaced by day: a BRIN index on date,
    which costs COPY nothing that could be measured.
    """
    from psycopg import sql

    name = _name(config, table)
    parts: list[sql.Composable] = [
        sql.SQL("{} {}{}").format(
            sql.Identifier(c.name), sql.SQL(TYPES[c.dtype]), sql.SQL("" if c.nullable else " NOT NULL")
        )
        for c in wanted
    ]
    if table.key:
        key = sql.SQL(", ").join(sql.Identifier(k) for k in ("date", *table.key))
        parts.append(sql.SQL("PRIMARY KEY ({})").format(key))
    statements = [sql.SQL("CREATE TABLE {} ({})").format(name, sql.SQL(", ").join(parts))]
    if not table.key:
        statements.append(sql.SQL("CREATE INDEX ON {} USING brin (date) WITH (autosummarize = on)").format(name))
    comment = sql.Literal(f"{table.description} {MARK}")
    statements.append(sql.SQL("COMMENT ON TABLE {} IS {}").format(name, comment))
    return statements + [_comment(config, table, c) for c in wanted]


def _comment(config: PostgresConfig, table: Table, column: Column) -> sql.Composed:
    from psycopg import sql

    place = sql.Identifier(config.schema_name, table.name, column.name)
    return sql.SQL("COMMENT ON COLUMN {} IS {}").format(place, sql.Literal(column.description))


_DESCRIBE = """
SELECT attname, format_type(atttypid, atttypmod), attnotnull AND NOT atthasdef AND attgenerated = '',
       attnotnull, attgenerated
FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""


def prepare(connection: psycopg.Connection, config: PostgresConfig, table: Table, wanted: Sequence[Column]) -> None:
    """Make the table, or see whether the one that is there may be used; one transaction.

    Raises:
        ContractError: a table is there which ``if_table_exists`` or ``drift`` does not let us use.
    """
    from psycopg import sql

    qualified = _name(config, table).as_string(connection)
    with _transaction(connection, config, table, None):
        if connection.execute("SHOW server_encoding").fetchone() != ("UTF8",):
            raise ContractError(
                "The PostgreSQL database is not in UTF8, so it cannot hold every text.",
                "Publish into a database made with ENCODING 'UTF8'.",
                table=table.name,
            )
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(config.schema_name)))
        there = connection.execute(_DESCRIBE, [qualified]).fetchall()
        if not there:
            for statement in ddl(config, table, wanted):
                connection.execute(statement)
            return
        comment = connection.execute("SELECT obj_description(to_regclass(%s), 'pg_class')", [qualified]).fetchone()
        if config.if_table_exists == "fail" and not str((comment or ("",))[0] or "").endswith(MARK):
            raise ContractError(
                f"PostgreSQL has a table {visible(qualified)} that data_assets did not make.",
                "Nothing was changed. Rename or drop that table, choose another postgres.schema_name, or say "
                "postgres.if_table_exists: append or replace to write into it.",
                table=table.name,
            )
        for column in _drifted(qualified, config, table, wanted, there):
            added = sql.SQL("ALTER TABLE {} ADD COLUMN {} {}").format(
                _name(config, table), sql.Identifier(column.name), sql.SQL(TYPES[column.dtype])
            )
            connection.execute(added)
            connection.execute(_comment(config, table, column))


def _drifted(
    qualified: str, config: PostgresConfig, table: Table, wanted: Sequence[Column], there: Sequence[tuple[Any, ...]]
) -> list[Column]:
    """Columns to add to the table that is there.

    Raises:
        ContractError: the table differs in a way that ``drift`` does not allow.
    """
    have = {name: kind for name, kind, *_ in there}
    names = {c.name for c in wanted}
    missing = [c for c in wanted if c.name not in have]
    problems = [
        f"{visible(c.name, 60)} is {have[c.name]}, not {TYPES[c.dtype]}"
        for c in wanted
        if c.name in have and have[c.name] != TYPES[c.dtype]
    ]
    problems += [f"{visible(c[0], 60)} is computed there" for c in there if c[0] in names and c[4]]
    problems += [
        f"{visible(c[0], 60)} must have a value, and rows from here have none" for c in there
        if c[0] not in names and c[2]
    ]  # fmt: skip
    problems += [
        f"{visible(c[0], 60)} must have a value there, and may be null here" for c in there
        for w in wanted if w.name == c[0] and w.nullable and c[3]
    ]  # fmt: skip
    if config.drift == "fail":
        problems += [f"{visible(c.name, 60)} is missing" for c in missing]
        problems += [f"{visible(c[0], 60)} is not ours" for c in there if c[0] not in names and not c[2]]
    if problems:
        raise ContractError(
            f"The PostgreSQL table {visible(qualified)} has other columns than {table.name}: {'; '.join(problems)}.",
            "Nothing was changed. Alter or drop that table, then run the days again"
            + ("; postgres.drift: add_columns adds missing ones." if missing and config.drift == "fail" else "."),
            table=table.name,
        )
    return missing


@contextlib.contextmanager
def publisher(config: PostgresConfig, table: Table) -> Iterator[Send]:
    """What publishes days of a table over one connection; the table is made, or looked at, with the first of them.

    Raises:
        DataAssetsError: as ``connect``; the function also as ``prepare`` and ``publish_day``.
    """
    with connect(config) as connection:
        prepared: tuple[Column, ...] = ()

        def send(day: str, frame: pl.LazyFrame) -> Published:
            nonlocal prepared
            wanted = columns(table, frame.collect_schema())
            if wanted != prepared:
                prepare(connection, config, table, wanted)
                prepared = wanted
            return publish_day(connection, config, table, day, frame)

        yield send


# --- a day ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _transaction(
    connection: psycopg.Connection, config: PostgresConfig, table: Table, day: str | None
) -> Iterator[None]:
    """One transaction, alone with this table and day among all publishers.

    Raises:
        StorageBusyError: another one holds it for longer than ``lock_timeout_seconds``.
    """
    import psycopg

    name = _name(config, table).as_string(connection)
    try:
        with connection.transaction():
            milliseconds = str(math.ceil(config.lock_timeout_seconds * 1000))
            connection.execute("SELECT set_config('lock_timeout', %s, true)", [milliseconds])
            lock = f"data_assets/{name}/{day or 'columns'}"
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [lock])
            yield
    except psycopg.errors.LockNotAvailable:
        raise StorageBusyError(
            f"{visible(name)} of {day or 'any day'} is held by another session of PostgreSQL "
            f"(waited {config.lock_timeout_seconds:.0f} s).",
            "Nothing was changed. Wait for the other publisher, or look at pg_locks for one that hangs.",
        ) from None
    except (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, psycopg.NotSupportedError) as error:
        raise DayFailedError(
            f"PostgreSQL refused {table.name} of {day or 'any day'}: {_said(error)}",
            "The day is as it was. Mend what the server names (a right, a constraint, a NUL character in a text), "
            "then run the day again.",
            table=table.name,
            day=day or "",
        ) from None


def publish_day(
    connection: psycopg.Connection, config: PostgresConfig, table: Table, day: str, frame: pl.LazyFrame
) -> Published:
    """Make ``day`` of the table in PostgreSQL the rows of ``frame``, streamed, in one transaction.

    Returns:
        What stands there now, as the server counted it before the commit.

    Raises:
        DayFailedError: the server refused a row, or counted other rows than were sent; the day is as it was.
        StorageBusyError: another publisher held the day for too long.
    """
    from psycopg import sql

    wanted = columns(table, frame.collect_schema())
    name, date = _name(config, table), dt.date.fromisoformat(day)
    rows = frame.select(pl.lit(date).alias("date"), *(pl.col(c.name).cast(c.dtype) for c in wanted if c.name != "date"))
    with _transaction(connection, config, table, day):
        if config.if_table_exists == "append":
            if _has_day(connection, name, date):
                return _as_it_is(connection, config, table, wanted, day, rows)
        else:
            connection.execute(sql.SQL("DELETE FROM {} WHERE date = {}").format(name, sql.Literal(date)))
        sent = _copy(connection, name, wanted, rows)
        found = server_sums(connection, config, table, wanted, day)
        if not same(sent, found):
            raise DayFailedError(
                f"PostgreSQL holds other rows of {table.name} of {day} than were sent: {differences(sent, found)}.",
                "The day is as it was. Look for a trigger, a rule or row security on the table.",
                table=table.name,
                day=day,
            )
    return found


def _has_day(connection: psycopg.Connection, name: sql.Identifier, date: dt.date) -> bool:
    from psycopg import sql

    asked = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE date = {})").format(name, sql.Literal(date))
    return connection.execute(asked).fetchone() == (True,)


def _as_it_is(
    connection: psycopg.Connection,
    config: PostgresConfig,
    table: Table,
    wanted: Sequence[Column],
    day: str,
    rows: pl.LazyFrame,
) -> Published:
    """The day that is there already, when it is the one to be appended."""
    expected = Sums(wanted)
    for batch in _batches(rows):
        expected.add(batch)
    found = server_sums(connection, config, table, wanted, day)
    if not same(expected.result(), found):
        raise DayFailedError(
            f"PostgreSQL has other rows of {table.name} of {day} already: {differences(expected.result(), found)}.",
            "Nothing was changed, for postgres.if_table_exists is append. Delete the day there, or say replace.",
            table=table.name,
            day=day,
        )
    return found


def _batches(rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """The rows in order, in pieces that are bounded in rows and, nearly, in bytes.

    A slice at a time, which a scan of Parquet answers with one row group: ``collect_batches`` reads ahead of a server
    that is slower than the disk, and its memory grows with the day.
    """
    for first in range(0, rows.select(pl.len()).collect(engine="streaming").item(), MOST_AT_ONCE):
        batch = rows.slice(first, MOST_AT_ONCE).collect(engine="streaming")
        pieces = max(math.ceil(batch.height / BATCH_ROWS), math.ceil(batch.estimated_size() / BATCH_BYTES))
        yield from batch.iter_slices(max(1, math.ceil(batch.height / max(pieces, 1))))


def _copy(
    connection: psycopg.Connection, name: sql.Identifier, wanted: Sequence[Column], rows: pl.LazyFrame
) -> Published:
    """Send the rows; what was sent, summed up on the way."""
    from pgpq import ArrowToPostgresBinaryEncoder
    from psycopg import sql

    newest = pl.CompatLevel.newest()  # string views: one copy of every text less
    encoder = ArrowToPostgresBinaryEncoder(
        rows.head(0).collect(engine="in-memory").to_arrow(compat_level=newest).schema
    )
    sums = Sums(wanted)
    names = sql.SQL(", ").join(sql.Identifier(c.name) for c in wanted)
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(name, names)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(encoder.write_header())
        for batch in _batches(rows):
            for part in batch.to_arrow(compat_level=newest).to_batches():
                copy.write(encoder.write_batch(part))
            sums.add(batch)
        copy.write(encoder.finish())
    return sums.result()


# --- sums ----------------------------------------------------------------------------------------------------------


class Sums:
    """What a day's rows come to, batch by batch; the same figures as ``server_sums`` asks of the server.

    The rows, and for each column by its type: whole numbers their sum, other numbers their sum (compared up to
    rounding), times and days the first and the last, texts their bytes, truths how many; for a column that may be null
    also how many values it has.
    """

    def __init__(self, wanted: Sequence[Column]) -> None:
        self._asked = [
            figure.alias(name)
            for c in wanted
            if c.name != "date"
            for name, (figure, _) in _figures(c).items()
        ]  # fmt: skip
        self._rows = 0
        self._found: dict[str, Any] = {name: None for c in wanted if c.name != "date" for name in _figures(c)}

    def add(self, batch: pl.DataFrame) -> None:
        """Count a batch in."""
        self._rows += batch.height
        if not batch.height:
            return
        for name, value in batch.select(self._asked).row(0, named=True).items():
            self._found[name] = _joined(name, self._found[name], value)

    def result(self) -> Published:
        """What was counted so far."""
        return Published(self._rows, {n: _plain(n, v) for n, v in self._found.items()})


def _joined(name: str, before: Any, now: Any) -> Any:  # noqa: ANN401 - a number, a day or a time
    if before is None or now is None:
        return now if before is None else before
    kind = name.rpartition(" ")[2]
    return min(before, now) if kind == "first" else max(before, now) if kind == "last" else before + now


def _figures(column: Column) -> dict[str, tuple[pl.Expr, str]]:
    """The figures of a column by name, each for Polars and for PostgreSQL (``{}`` stands for the column)."""
    value, dtype, n = pl.col(column.name), column.dtype, column.name
    found: dict[str, tuple[pl.Expr, str]] = {}
    if column.nullable:
        found[f"{n} values"] = value.count(), "count({})"
    if dtype == pl.Int64:
        found[f"{n} sum"] = value.cast(pl.Int128).sum(), "sum({})"
    elif dtype == pl.Float64:
        usual = value.filter(value.abs() <= SAFE_SUM)
        found[f"{n} float"] = usual.sum(), f"sum({{}}) FILTER (WHERE abs({{}}) <= {SAFE_SUM:g})"
        found[f"{n} size"] = usual.abs().sum(), ""  # how far rounding may go; the server is not asked
    elif dtype == pl.String:
        found[f"{n} bytes"] = value.str.len_bytes().cast(pl.Int64).sum(), "sum(octet_length({}))"
    elif dtype == pl.Boolean:
        found[f"{n} true"] = value.sum().cast(pl.Int64), "count(*) FILTER (WHERE {})"
    else:
        found[f"{n} first"] = value.min(), "min({})"
        found[f"{n} last"] = value.max(), "max({})"
    return found


def _plain(name: str, value: Any) -> Any:  # noqa: ANN401 - a number, a day or a time
    """No rows and no values sum up to 0 here, and to null there."""
    if name.endswith(("first", "last")):
        return value
    return float(value or 0) if name.endswith(("float", "size")) else int(value or 0)


def server_sums(
    connection: psycopg.Connection, config: PostgresConfig, table: Table, wanted: Sequence[Column], day: str
) -> Published:
    """What the server has of the day, in the figures of ``Sums``."""
    from psycopg import sql

    asked = {
        name: sql.SQL(text).format(*[sql.Identifier(c.name)] * text.count("{}"))
        for c in wanted
        if c.name != "date"
        for name, (_, text) in _figures(c).items()
        if text
    }
    statement = sql.SQL("SELECT count(*), {} FROM {} WHERE date = {}").format(
        sql.SQL(", ").join(asked.values()), _name(config, table), sql.Literal(dt.date.fromisoformat(day))
    )
    rows, *found = connection.execute(statement).fetchone() or (0,)
    return Published(rows, {name: _plain(name, value) for name, value in zip(asked, found, strict=True)})


def same(sent: Published, found: Published) -> bool:
    """Are these the same rows, as far as the figures tell? Sums of floats may differ by rounding."""
    return not differences(sent, found)


def differences(sent: Published, found: Published) -> str:
    """The figures that differ, in words; empty when none does."""
    shown = [] if sent.rows == found.rows else [f"{found.rows:,} rows, not {sent.rows:,}"]
    for name, value in found.sums.items():
        expected = sent.sums[name]
        if name.endswith(" float"):
            size = sent.sums[f"{name.removesuffix(' float')} size"]
            if math.isclose(value, expected, rel_tol=0, abs_tol=1e-9 * size):
                continue
        if value != expected:
            shown.append(f"{visible(name, 70)} {value}, not {expected}")
    return "; ".join(shown)


# --- reading -------------------------------------------------------------------------------------------------------


def stored_columns(connection: psycopg.Connection, config: PostgresConfig, table: str) -> dict[str, pl.DataType]:
    """The columns of a table that is there, with their types here; none when it is not there.

    A type that has no equal here is read as text.
    """
    from psycopg import sql

    kinds = {kind: dtype for dtype, kind in TYPES.items()}
    qualified = sql.Identifier(config.schema_name, table).as_string(connection)
    there = connection.execute(_DESCRIBE, [qualified]).fetchall()
    return {name: kinds.get(kind, pl.String()) for name, kind, *_ in there}


def stored_rows(
    connection: psycopg.Connection, config: PostgresConfig, table: str, stored: Mapping[str, pl.DataType], at_once: int
) -> Iterator[list[tuple[Any, ...]]]:
    """The rows of a table that is there, some at once, read only."""
    from psycopg import sql

    asked = sql.SQL(", ").join(
        sql.SQL("{}::{}").format(sql.Identifier(name), sql.SQL(TYPES[dtype])) for name, dtype in stored.items()
    )
    connection.read_only = True
    with connection.cursor(name="rows", binary=True) as cursor:
        cursor.execute(sql.SQL("SELECT {} FROM {}").format(asked, sql.Identifier(config.schema_name, table)))
        while rows := cursor.fetchmany(at_once):
            yield rows
