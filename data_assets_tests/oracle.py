"""A second opinion on every metric: the tables again, computed by DuckDB from SQL that shares no line with the project.

Here: SQL texts from an ``events`` relation with a ``date`` column to each table, for all days at once, and a
comparison cell by cell. Not here: the tests that use them (``test_metrics.py``, whole-graph tests), the project's own
arithmetic (``data_assets/metrics.py``, not imported on purpose), how files are read (the ingest tests).

The methods differ where they can: a missing end is the minimum of (start, end) structs in a range window; sums are
DuckDB decimals; quantiles are quantile_cont; the chi-square tail is one minus the power series of the lower
incomplete gamma function. Rounding is half to even on x * 10**digits, as the contract says.

Limits: finite values below 1e18 in size, durations below 292,000 years; p_value is good to 1e-9, not to ten digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb
    import polars as pl

Row = tuple[Any, ...]
EVENT_COLUMNS = ("user_id", "session_start", "session_end", "event_type", "value", "metadata")
SOURCE_COLUMNS = ("source_file", "source_line")


def events_of_lake(lake: str) -> str:
    """The relation ``source`` for a lake of ``raw_events/date=YYYY-MM-DD/*.parquet``."""
    pattern = f"{lake}/raw_events/date=*/*.parquet".replace("'", "''")
    return f"(SELECT * FROM read_parquet('{pattern}', hive_partitioning = true, hive_types = {{'date': DATE}}))"


def half_even(x: str, digits: int) -> str:
    """``x`` rounded to ``digits`` decimals, halves to even, no minus zero."""
    scaled = f"(({x}) * 1e{digits})"
    rounded = (
        f"(CASE WHEN abs({scaled}) >= 4503599627370496 THEN {scaled} "
        f"WHEN abs({scaled} - trunc({scaled})) = 0.5 THEN 2 * round({scaled} / 2) ELSE round({scaled}) END)"
    )
    return f"(CASE WHEN {rounded} = 0 THEN 0 ELSE {rounded} / 1e{digits} END)"


def durations(source: str = "events") -> str:
    """date, user_id, value and duration_us (BIGINT, microseconds, null where there is no end) of every event."""
    return f"""
        SELECT date, user_id, value,
            epoch_us(coalesce(session_end, next_known.e)) - epoch_us(session_start) AS duration_us
        FROM (
            SELECT date, user_id, value, session_start, session_end,
                min(CASE WHEN session_end IS NOT NULL THEN {{'s': session_start, 'e': session_end}} END) OVER (
                    PARTITION BY date, user_id ORDER BY session_start
                    RANGE BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING
                ) AS next_known
            FROM {source}
        )
    """


def session_metrics(source: str = "events", precision: int = 2) -> str:
    """date and the columns of session_metrics, by date and user_id."""
    return f"""
        WITH sums AS (
            SELECT date, user_id, count(*) AS total_sessions,
                CAST(sum(CAST(duration_us AS HUGEINT)) AS DOUBLE) / (count(duration_us) * 1e6) AS avg_duration,
                max(duration_us) / 1e6 AS max_duration,
                min(duration_us) FILTER (duration_us > 0) / 1e6 AS min_duration,
                CAST(sum(CAST(value AS DECIMAL(38, 9))) AS DOUBLE) AS total_value,
                CAST(sum(CAST(round(value * 1e9) AS HUGEINT)) AS DOUBLE) / (count(value) * 1e9) AS mean_value,
                count(*) FILTER (duration_us <= 0) AS anomaly_count
            FROM ({durations(source)}) GROUP BY date, user_id
        )
        SELECT date, user_id, total_sessions,
            {half_even("avg_duration", precision)} AS avg_duration,
            {half_even("max_duration", precision)} AS max_duration,
            {half_even("min_duration", precision)} AS min_duration,
            {half_even("total_value", precision)} AS total_value,
            {half_even("mean_value", precision)} AS mean_value,
            anomaly_count
        FROM sums ORDER BY date, user_id
    """


def _value_quartiles(source: str, factor: float) -> str:
    """Per date: median, std and the fences of value."""
    return f"""
        SELECT date, q[2] AS median, std,
            q[1] - {factor!r} * (q[3] - q[1]) AS iqr_lower, q[3] + {factor!r} * (q[3] - q[1]) AS iqr_upper
        FROM (
            SELECT date, quantile_cont(value, [0.25::DOUBLE, 0.5::DOUBLE, 0.75::DOUBLE]) AS q,
                CASE WHEN min(value) = max(value) THEN 0 ELSE stddev_samp(value) END AS std
            FROM {source} WHERE value IS NOT NULL GROUP BY date
        )
    """


def outliers(source: str = "events", factor: float = 1.5, extra: Sequence[str] = ()) -> str:
    """date and the columns of outliers (``extra`` source columns before the last two), by date, file and line."""
    front = ", ".join(f'e."{c}"' for c in EVENT_COLUMNS)
    back = ", ".join(f'e."{c}"' for c in (*extra, *SOURCE_COLUMNS))
    score = half_even("(e.value - s.median) / nullif(s.std, 0)", 6)
    return f"""
        SELECT e.date, {front}, {score} AS outlier_score, s.iqr_lower, s.iqr_upper, {back}
        FROM {source} e JOIN ({_value_quartiles(source, factor)}) s ON e.date = s.date
        WHERE e.value < round(s.iqr_lower, 9) OR e.value > round(s.iqr_upper, 9) -- quantile_cont is off by bits
        ORDER BY e.date, e.source_file, e.source_line
    """


def event_distribution(source: str = "events") -> str:
    """date and the columns of event_distribution, by date, count descending and event_type."""
    # P(a, h) = sum over j of h**(a + j) * exp(-h) / gamma(a + j + 1); the terms peak near a + j = h.
    terms = "range(0, CAST(ceil(h) + 60 * sqrt(h + 1) + 200 AS BIGINT))"
    series = f"list_sum(list_transform({terms}, lambda j: exp((a + j) * ln(h) - h - lgamma(a + j + 1))))"
    return f"""
        WITH counts AS (
            SELECT date, event_type, count(*) AS "count" FROM {source} GROUP BY date, event_type
        ), days AS (
            SELECT date, sum("count") AS n, count(*) AS k FROM counts GROUP BY date
        ), tests AS (
            SELECT date, n, k, sum(("count" - n / k) ** 2 / (n / k)) AS chi_square
            FROM counts JOIN days USING (date) GROUP BY date, n, k
        ), tails AS (
            SELECT *, CASE
                WHEN k = 1 OR h = 0 THEN 1.0
                WHEN h > a + 50 * sqrt(a) + 700 THEN 0.0
                ELSE greatest(0.0, least(1.0, 1.0 - {series}))
            END AS p_value
            FROM (SELECT *, chi_square / 2 AS h, (k - 1) / 2 AS a FROM tests)
        )
        SELECT date, event_type, "count",
            {half_even('"count" / n', 9)} AS proportion,
            {half_even('sum("count") OVER (PARTITION BY date ORDER BY "count" DESC, event_type) / n', 9)} AS cumulative,
            {half_even("chi_square", 6)} AS chi_square,
            CAST(k - 1 AS BIGINT) AS degrees_of_freedom,
            p_value,
            {half_even("sqrt(chi_square / (n * nullif(k - 1, 0)))", 6)} AS cramers_v
        FROM counts JOIN tails USING (date)
        ORDER BY date, "count" DESC, event_type
    """


def summary_statistics(source: str = "events") -> str:
    """date and the columns of summary_statistics, by date and column_name; days without events have no rows."""

    def label(name: str) -> str:
        def text(x: str) -> str:
            if name not in ("session_start", "session_end"):
                return f"CAST({x} AS VARCHAR)"
            return f"replace(strftime({x}, '%Y-%m-%dT%H:%M:%S.%f'), '.000000', '')"

        return f"""
            SELECT date, '{name}' AS column_name, count({name}) AS "count", count(*) - count({name}) AS null_count,
                NULL::DOUBLE AS mean, NULL::DOUBLE AS std, {text(f"min({name})")} AS "min",
                NULL::DOUBLE AS p25, NULL::DOUBLE AS p50, NULL::DOUBLE AS p75, {text(f"max({name})")} AS "max",
                count(DISTINCT {name}) AS n_unique
            FROM {source} GROUP BY date
        """

    def number(name: str, x: str, exact: str, unit: str, relation: str) -> str:
        return f"""
            SELECT date, '{name}', n, nulls, {half_even("mean", 6)}, {half_even("std", 6)},
                CAST(low AS VARCHAR), q[1] / {unit}, q[2] / {unit}, q[3] / {unit}, CAST(high AS VARCHAR), n_unique
            FROM (
                SELECT date, count({x}) AS n, count(*) - count({x}) AS nulls, {exact} AS mean,
                    (CASE WHEN count({x}) < 2 THEN NULL WHEN min({x}) = max({x}) THEN 0
                        ELSE stddev_samp(CAST({x} AS DOUBLE)) END) / {unit} AS std,
                    min({x}) / {unit} + 0.0 AS low, max({x}) / {unit} + 0.0 AS high,
                    quantile_cont(CAST({x} AS DOUBLE), [0.25::DOUBLE, 0.5::DOUBLE, 0.75::DOUBLE]) AS q,
                    count(DISTINCT {x}) AS n_unique
                FROM {relation} GROUP BY date
            )
        """

    value_mean = "CAST(sum(CAST(round(value * 1e9) AS HUGEINT)) AS DOUBLE) / (count(value) * 1e9)"
    duration_mean = "CAST(sum(CAST(duration_us AS HUGEINT)) AS DOUBLE) / (count(duration_us) * 1e6)"
    parts = [label(name) for name in EVENT_COLUMNS if name != "value"]
    parts.append(number("value", "value", value_mean, "1e0", source))
    parts.append(number("duration", "duration_us", duration_mean, "1e6", f"({durations(source)})"))
    return f"SELECT * FROM ({' UNION ALL '.join(parts)}) ORDER BY date, column_name"


def daily_kpis(source: str = "events", counts: str = "counts", precision: int = 2, factor: float = 1.5) -> str:
    """date and the columns of daily_kpis for every day of ``counts``.

    Args:
        counts: a relation of date, rows_in, valid, quarantined, duplicate, late, late_max_days, late_row_days.
    """
    return f"""
        WITH of_events AS (
            SELECT date, count(DISTINCT user_id) AS users, count(*) AS events,
                CAST(sum(CAST(value AS DECIMAL(38, 9))) AS DOUBLE) AS total
            FROM {source} GROUP BY date
        ), of_durations AS (
            SELECT date, count(*) FILTER (duration_us <= 0) AS anomalies,
                CAST(sum(CAST(duration_us AS HUGEINT)) AS DOUBLE) / (count(duration_us) * 1e6) AS average,
                quantile_cont(CAST(duration_us AS DOUBLE), 0.5::DOUBLE) / 1e6 AS median
            FROM ({durations(source)}) GROUP BY date
        ), of_outliers AS (
            SELECT date, count(*) AS outliers FROM ({outliers(source, factor)}) GROUP BY date
        )
        SELECT date, rows_in, valid, quarantined, duplicate, late, late_max_days,
            {half_even("CAST(late_row_days AS DOUBLE) / nullif(late, 0)", precision)} AS late_mean_days,
            coalesce(users, 0) AS users, coalesce(events, 0) AS sessions, coalesce(events, 0) AS events,
            {half_even("total", precision)} AS "value",
            {half_even("average", precision)} AS avg_duration,
            {half_even("median", precision)} AS median_duration,
            coalesce(anomalies, 0) AS anomalies, coalesce(outliers, 0) AS outliers
        FROM {counts} LEFT JOIN of_events USING (date) LEFT JOIN of_durations USING (date)
            LEFT JOIN of_outliers USING (date)
        ORDER BY date
    """


def rows(con: duckdb.DuckDBPyConnection, sql: str, day: date | None = None) -> list[Row]:
    """The rows of a query from this module; with ``day`` only that day's, and without the date column."""
    found: list[Row] = con.sql(sql).fetchall()
    return found if day is None else [r[1:] for r in found if r[0] == day]


def compare(frame: pl.DataFrame, expected: Sequence[Row], float_tol: float = 1e-9) -> None:
    """Every cell of ``frame`` against ``expected``, row by row in order.

    Floats agree within ``float_tol`` * max(1, size); all else is equal, null only with null.

    Raises:
        AssertionError: naming up to ten cells with row, column, both values and the frame's whole row.
    """
    found = frame.rows()
    problems = []
    if len(found) != len(expected):
        problems.append(f"{len(found)} rows, the oracle has {len(expected)}")
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=False)):
        if len(ours) != len(theirs):
            problems.append(f"row {number}: {len(ours)} columns ({frame.columns}), the oracle has {len(theirs)}")
            break
        problems += [
            f"row {number}, {name}: {a!r}, the oracle says {b!r}; row: {ours}"
            for name, a, b in zip(frame.columns, ours, theirs, strict=True)
            if not _same(a, b, float_tol)
        ]
    if problems:
        more = f"\n... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise AssertionError("\n".join(problems[:10]) + more)


def _same(a: object, b: object, float_tol: float) -> bool:
    if a is None or b is None:
        return a is b
    if isinstance(a, float) or isinstance(b, float):
        x, y = float(a), float(b)  # type: ignore[arg-type]
        return x == y or abs(x - y) <= float_tol * max(1.0, abs(x), abs(y))
    return a == b
