"""Every table once: columns, types, keys, rules and descriptions.

Here: the contracts, and what is derived from them without Dagster (Polars schemas, empty frames, pandera models, DuckDB
DDL, the docs table). Not here: how rows come into being (``ingest/``, ``metrics.py``), where tables are stored
(``storage.py``), or how Dagster shows a schema (``io_managers.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from data_assets.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pandera.polars as pa

UserIdType = Literal["int64", "string"]
Store = Literal["lake", "warehouse", "journal"]

TIMESTAMP = pl.Datetime("us")


@dataclass(frozen=True)
class Column:
    """One column: its name, Polars type, meaning, and the rules that its values keep.

    Attributes:
        nullable: whether nulls may stand in it.
        minimum, maximum: inclusive bounds of its values, if any.
        source: the columns of upstream tables it is computed from, as ``table.column``.
    """

    name: str
    dtype: pl.DataType
    description: str
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    source: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table: its columns in order, its key (unique within a day) and where it is kept.

    Attributes:
        key: columns whose values are unique within a day; empty when rows may repeat.
        is_open: whether columns beyond the contract may follow (``source.extra_columns: keep``).
        is_partitioned: whether a day is one partition of it.
    """

    name: str
    description: str
    store: Store
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    is_open: bool = False
    is_partitioned: bool = True

    @cached_property
    def schema(self) -> pl.Schema:
        """Column names and Polars types, in order."""
        return pl.Schema({c.name: c.dtype for c in self.columns})

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Column names, in order."""
        return tuple(c.name for c in self.columns)

    def empty(self) -> pl.DataFrame:
        """A frame with the contract's columns and no rows."""
        return self._empty.clone()

    @cached_property
    def _empty(self) -> pl.DataFrame:
        return self.schema.to_frame()

    def conform(self, frame: pl.LazyFrame, day: str | None = None) -> pl.LazyFrame:
        """``frame`` with its columns in the contract's order; what does not fit is refused, never coerced.

        Raises:
            ContractError: a column is missing, surplus (unless the table is open) or of another type.
        """
        found = frame.collect_schema()
        expected = self.schema
        missing = [n for n in expected if n not in found]
        surplus = [n for n in found if n not in expected]
        other = [f"{n} is {found[n]}, not {t}" for n, t in expected.items() if n in found and found[n] != t]
        problems = (
            ([f"missing: {', '.join(missing)}"] if missing else [])
            + ([f"not in the contract: {', '.join(surplus)}"] if surplus and not self.is_open else [])
            + other
        )
        if problems:
            raise ContractError(
                f"{self.name}: the frame breaks the table's contract ({'; '.join(problems)}).",
                "Nothing was written. Compare the function that made the frame with contracts.py.",
                table=self.name,
                day=day,
            )
        ordered = list(expected) if not self.is_open else self._open_order(surplus)
        return frame.select(ordered)

    def _open_order(self, surplus: list[str]) -> list[str]:
        """The contract's order, extra columns before the columns that say where a row came from."""
        tail = [n for n in self.names if n in ("source_file", "source_line")]
        return [n for n in self.names if n not in tail] + surplus + tail

    def has_schema(self, found: Mapping[str, pl.DataType]) -> bool:
        """Whether these are the columns and types of the contract, in any order."""
        surplus = len(found) - len(self.columns)
        return (self.is_open or not surplus) and all(found.get(c.name) == c.dtype for c in self.columns)

    @cached_property
    def ruled(self) -> list[str]:
        """The columns whose values have to keep a rule, beside being of their type."""
        return [
            c.name
            for c in self.columns
            if not c.nullable or c.minimum is not None or c.maximum is not None or c.name in self.key
        ]

    @cached_property
    def kept(self) -> pl.Expr:
        """Whether the ``ruled`` columns hold nothing against the contract; where they seem to, ``pandera`` tells what.

        A twentieth of what pandera costs for a day of a few rows, and pandera need not be imported.
        """
        key = pl.struct(self.key) if len(self.key) > 1 else pl.col(list(self.key))
        is_unique = [key.n_unique() == pl.len()] if self.key else []
        return pl.all_horizontal([*self._rules(pl.col), *is_unique])

    def is_kept(self, rows: pl.DataFrame) -> bool:
        """The same of few rows, without a query."""
        return self.has_kept(rows.get_column) and not (self.key and rows.select(self.key).n_unique() != rows.height)

    def has_kept(self, column: Callable[[str], pl.Series]) -> bool:
        """Whether the values of each column keep its own rules."""
        return all(self._rules(column))

    def _rules(self, column: Callable[[str], Any]) -> Iterator[Any]:
        """Each rule of a column as a truth value, or as the expression of one."""
        for c in self.columns:
            if not c.nullable:
                yield column(c.name).null_count() == 0
            if c.minimum is not None:
                yield (column(c.name) >= c.minimum).all()
            if c.maximum is not None:
                yield (column(c.name) <= c.maximum).all()

    def pandera(self) -> pa.DataFrameSchema:
        """The contract as a pandera schema; validate a collected frame with it (a LazyFrame skips the data checks)."""
        import pandera.polars as pa

        def column(c: Column) -> pa.Column:
            checks = []
            if c.minimum is not None:
                checks.append(pa.Check.ge(c.minimum))
            if c.maximum is not None:
                checks.append(pa.Check.le(c.maximum))
            return pa.Column(c.dtype, checks=checks, nullable=c.nullable, description=c.description)

        return pa.DataFrameSchema(
            {c.name: column(c) for c in self.columns},
            strict=not self.is_open,
            unique=list(self.key) or None,
            name=self.name,
        )

    def duckdb_columns(self) -> dict[str, str]:
        """Column names and DuckDB types of a warehouse table, in order; ``date`` comes first."""
        return {"date": "DATE"} | {c.name: DUCKDB_TYPES[c.dtype] for c in self.columns}

    def ddl(self) -> str:
        """DuckDB's CREATE TABLE for a warehouse table, comments not included."""
        nullable = {c.name for c in self.columns if c.nullable}
        columns = [
            f'"{name}" {kind}{"" if name in nullable else " NOT NULL"}' for name, kind in self.duckdb_columns().items()
        ]
        return f'CREATE TABLE IF NOT EXISTS "{self.name}" ({", ".join(columns)})'

    def comments(self) -> list[str]:
        """DuckDB's COMMENT ON statements for the table and its columns."""

        def text(value: str) -> str:
            return "'" + value.replace("'", "''") + "'"

        return [
            f'COMMENT ON TABLE "{self.name}" IS {text(self.description)}',
            f"COMMENT ON COLUMN \"{self.name}\".date IS 'the day'",
            *(f'COMMENT ON COLUMN "{self.name}"."{c.name}" IS {text(c.description)}' for c in self.columns),
        ]


INT = pl.Int64()
FLOAT = pl.Float64()
TEXT = pl.String()
DAY = pl.Date()
DUCKDB_TYPES: Mapping[pl.DataType, str] = {
    INT: "BIGINT",
    FLOAT: "DOUBLE",
    TEXT: "VARCHAR",
    DAY: "DATE",
    TIMESTAMP: "TIMESTAMP",
    pl.Boolean(): "BOOLEAN",
    pl.List(TEXT): "VARCHAR[]",
}

LANDED_FILES = Table(
    "landed_files",
    "The ledger of the raw directory: one row for each file and each day that it holds rows of. It tells which days "
    "are due, and is made again from the files at any time.",
    "lake",
    (
        Column("path", TEXT, "path below the raw directory, with forward slashes"),
        Column("size", INT, "bytes on disk", minimum=0),
        Column("mtime_ns", INT, "modification time, nanoseconds since 1970 UTC"),
        Column("content_hash", TEXT, "SHA-256 of the file's bytes, hex; empty when it cannot be opened"),
        Column("format", TEXT, "csv, json, jsonl or parquet, with .gz or .zst when compressed"),
        Column("encoding", TEXT, "text encoding, or binary"),
        Column("lane", TEXT, "who reads it: fast (the engine), exact (Python), mixed; null if unusable", nullable=True),
        Column("lane_reason", TEXT, "why it is not the fast lane; empty when it is", nullable=True),
        Column("home_day", DAY, "the day that rows without a readable start time belong to"),
        Column("day", DAY, "a day that the file holds rows of"),
        Column("rows", INT, "physical records of that day in the file", minimum=0),
        Column("mapping", TEXT, "fingerprint of the configuration, and of the lookup file if there is one"),
        Column("error", TEXT, "why the file cannot be used; null when it can", nullable=True),
        Column(
            "schema", TEXT, "columns, types, missing shares and event types of the file's head, JSON", nullable=True
        ),
        Column("drift", TEXT, "how that differs from the files before or the accepted schema, JSON", nullable=True),
        Column("drift_error", TEXT, "why the file is refused for that; null when it is not", nullable=True),
    ),
    key=("path", "day"),
    is_partitioned=False,
)

SOURCE = (
    Column("source_file", TEXT, "path of the file below the raw directory"),
    Column("source_line", INT, "physical line on which the record starts (row number for Parquet)", minimum=1),
)

RAW_EVENTS = Table(
    "raw_events",
    "Every valid event of the day, typed, in file order. All figures come from it; what was refused stands in "
    "quarantined_events.",
    "lake",
    (
        Column("user_id", INT, "the user"),
        Column("session_start", TIMESTAMP, "start, in the configured time zone, stored without zone"),
        Column("session_end", TIMESTAMP, "end, same zone; null when the source has none", nullable=True),
        Column("event_type", TEXT, "kind of event"),
        Column("value", FLOAT, "the event's number; finite", nullable=True),
        Column("metadata", TEXT, "anything else the source says, as text", nullable=True),
        *SOURCE,
    ),
    is_open=True,
)

QUARANTINED_EVENTS = Table(
    "quarantined_events",
    "Every refused record of the day: where it stood, every reason, and the record itself. After a fix: "
    "data-assets quarantine replay.",
    "lake",
    (
        *SOURCE,
        Column("reasons", pl.List(TEXT), "every reason that holds, as codes"),
        Column("record", TEXT, "the record as it stood"),
        Column("home_day", DAY, "the home day of its file"),
    ),
)

DUPLICATE_EVENTS = Table(
    "duplicate_events",
    "Every record that was dropped because the day has an earlier one that counts as the same, and where that one is.",
    "lake",
    (
        *SOURCE,
        Column("duplicate_of_file", TEXT, "file of the first such record, which is kept in raw_events"),
        Column("duplicate_of_line", INT, "line of the first such record (row number for Parquet)", minimum=1),
    ),
)

SESSION_METRICS = Table(
    "session_metrics",
    "The day's users, a row each: sessions, durations, values. An event counts as one session; missing ends are filled "
    "backward within the user.",
    "warehouse",
    (
        Column("user_id", INT, "the user", source=("raw_events.user_id",)),
        Column("total_sessions", INT, "rows of the user", minimum=1, source=("raw_events.user_id",)),
        Column("avg_duration", FLOAT, "mean duration, seconds", nullable=True,
               source=("raw_events.session_start", "raw_events.session_end")),
        Column("max_duration", FLOAT, "longest duration, seconds", nullable=True,
               source=("raw_events.session_start", "raw_events.session_end")),
        Column("min_duration", FLOAT, "shortest positive duration, seconds", nullable=True, minimum=0,
               source=("raw_events.session_start", "raw_events.session_end")),
        Column("total_value", FLOAT, "sum of value; null when the user has none", nullable=True,
               source=("raw_events.value",)),
        Column("mean_value", FLOAT, "mean of value", nullable=True, source=("raw_events.value",)),
        Column("anomaly_count", INT, "durations of zero or less", minimum=0,
               source=("raw_events.session_start", "raw_events.session_end")),
    ),
    key=("user_id",),
)  # fmt: skip

OUTLIERS = Table(
    "outliers",
    "The day's events whose value is far from the others (outside the IQR fences), and how far.",
    "lake",
    (
        *(replace(c, source=(f"raw_events.{c.name}",)) for c in RAW_EVENTS.columns if c not in SOURCE),
        Column("outlier_score", FLOAT, "(value - median) / sample standard deviation of the day", nullable=True,
               source=("raw_events.value",)),
        Column("iqr_lower", FLOAT, "lower fence, q1 - factor * IQR", source=("raw_events.value",)),
        Column("iqr_upper", FLOAT, "upper fence, q3 + factor * IQR", source=("raw_events.value",)),
        *(replace(c, source=(f"raw_events.{c.name}",)) for c in SOURCE),
    ),
    is_open=True,
)  # fmt: skip

EVENT_DISTRIBUTION = Table(
    "event_distribution",
    "How the day's events spread over the event types, most frequent first.",
    "warehouse",
    (
        Column("event_type", TEXT, "kind of event", source=("raw_events.event_type",)),
        Column("count", INT, "events of the type", minimum=1, source=("raw_events.event_type",)),
        Column("proportion", FLOAT, "share of the day's events", minimum=0, maximum=1,
               source=("raw_events.event_type",)),
        Column("cumulative", FLOAT, "running share in this order", minimum=0, maximum=1,
               source=("raw_events.event_type",)),
        Column("chi_square", FLOAT, "Pearson's chi-square against equal shares", nullable=True, minimum=0,
               source=("raw_events.event_type",)),
        Column("degrees_of_freedom", INT, "event types less one", minimum=0, source=("raw_events.event_type",)),
        Column("p_value", FLOAT, "chance of such a chi-square under equal shares", nullable=True, minimum=0, maximum=1,
               source=("raw_events.event_type",)),
        Column("cramers_v", FLOAT, "effect size, sqrt(chi-square / (n * df))", nullable=True, minimum=0, maximum=1,
               source=("raw_events.event_type",)),
    ),
    key=("event_type",),
)  # fmt: skip

SUMMARY_STATISTICS = Table(
    "summary_statistics",
    "The columns of raw_events, a row each: count, nulls, mean, quartiles, extremes of the day. Duration is in "
    "seconds, times are ISO 8601 text.",
    "warehouse",
    (
        Column("column_name", TEXT, "which column of raw_events, or duration (seconds)"),
        Column("count", INT, "values that are not null", minimum=0),
        Column("null_count", INT, "nulls", minimum=0),
        Column("mean", FLOAT, "mean, numbers only", nullable=True),
        Column("std", FLOAT, "sample standard deviation, numbers only", nullable=True, minimum=0),
        Column("min", TEXT, "smallest value, as text", nullable=True),
        Column("p25", FLOAT, "first quartile, linear interpolation, numbers only", nullable=True),
        Column("p50", FLOAT, "median, linear interpolation, numbers only", nullable=True),
        Column("p75", FLOAT, "third quartile, linear interpolation, numbers only", nullable=True),
        Column("max", TEXT, "largest value, as text", nullable=True),
        Column("n_unique", INT, "distinct values that are not null", minimum=0),
    ),
    key=("column_name",),
)

DAILY_KPIS = Table(
    "daily_kpis",
    "The day in one row: rows in and what became of them, users, events, durations, value. Trends come from it.",
    "warehouse",
    (
        Column("rows_in", INT, "physical records of the day", minimum=0),
        Column("valid", INT, "records that became events", minimum=0, source=("raw_events.user_id",)),
        Column("quarantined", INT, "records refused", minimum=0, source=("quarantined_events.record",)),
        Column("duplicate", INT, "records dropped as duplicates", minimum=0),
        Column("late", INT, "records from files whose home day is later", minimum=0),
        Column("late_max_days", INT, "days from this day to the latest such home day; 0 when none is late", minimum=0),
        Column("late_mean_days", FLOAT, "mean of those days over the late records; null when none is late",
               nullable=True, minimum=1),
        Column("users", INT, "distinct users", minimum=0, source=("session_metrics.user_id",)),
        Column("sessions", INT, "sessions; an event counts as one", minimum=0,
               source=("session_metrics.total_sessions",)),
        Column("events", INT, "events, all types", minimum=0, source=("event_distribution.count",)),
        Column("value", FLOAT, "sum of value", nullable=True, source=("raw_events.value",)),
        Column("avg_duration", FLOAT, "mean duration, seconds", nullable=True,
               source=("raw_events.session_start", "raw_events.session_end")),
        Column("median_duration", FLOAT, "median duration, seconds", nullable=True,
               source=("raw_events.session_start", "raw_events.session_end")),
        Column("anomalies", INT, "durations of zero or less", minimum=0, source=("session_metrics.anomaly_count",)),
        Column("outliers", INT, "events outside the IQR fences", minimum=0, source=("outliers.value",)),
    ),
)  # fmt: skip


PIPELINE_RUNS = Table(
    "pipeline_runs",
    "One row for each run and stage: what it took. History of the machine, not data: times and run ids stand in it.",
    "journal",
    (
        Column("run_id", TEXT, "Dagster's id of the run"),
        Column("started_by", TEXT, "who asked for it: a sensor, schedule or backfill, the UI, or a person by name"),
        Column("stage", TEXT, "the asset; raw_events also makes quarantined_events and duplicate_events"),
        Column("first_day", DAY, "first day of the run", nullable=True),
        Column("last_day", DAY, "last day of the run", nullable=True),
        Column("days", INT, "days of the run", minimum=0),
        Column("days_refused", INT, "days that the stage refused", minimum=0),
        Column("started_at", TIMESTAMP, "when the stage began, UTC"),
        Column("seconds", FLOAT, "wall time", minimum=0),
        Column("cpu_seconds", FLOAT, "processor time of all threads", minimum=0),
        Column("peak_mb", FLOAT, "the process's largest resident memory during the stage, MB", minimum=0),
        Column("rows_in", INT, "rows that the stage was given", nullable=True, minimum=0),
        Column("rows_out", INT, "rows that it wrote to its table", nullable=True, minimum=0),
        Column("bytes_read", INT, "bytes of the raw files that it read, as they lie on the disk", nullable=True,
               minimum=0),
        Column("bytes_written", INT, "bytes of the files that it wrote", nullable=True, minimum=0),
        Column("files", INT, "raw files", nullable=True, minimum=0),
        Column("decision", TEXT, "how the days were computed to fit the memory", nullable=True),
        Column("predicted_mb", FLOAT, "the memory that was expected, MB", nullable=True, minimum=0),
        Column("status", TEXT, "done, refused (no day could be done) or failed"),
        Column("error_kind", TEXT, "why it failed or refused days: a check or a kind of error", nullable=True),
    ),
    is_partitioned=False,
)  # fmt: skip


@cache
def tables(user_id: UserIdType = "int64") -> Mapping[str, Table]:
    """Every table by name, with ``user_id`` of the configured type."""
    all_tables = (
        LANDED_FILES, RAW_EVENTS, QUARANTINED_EVENTS, DUPLICATE_EVENTS, SESSION_METRICS, OUTLIERS, EVENT_DISTRIBUTION,
        SUMMARY_STATISTICS, DAILY_KPIS,
    )  # fmt: skip
    if user_id == "int64":
        return {t.name: t for t in all_tables}
    return {
        t.name: replace(t, columns=tuple(replace(c, dtype=TEXT) if c.name == "user_id" else c for c in t.columns))
        for t in all_tables
    }
