"""Real data sets of others, each from its files through the command line to every table, against plain SQL.

Here: one mapping per data set (``benchmarks/mappings``), DuckDB's own reading of the same files, and every table cell
by cell. Not here: the flights of the demo (``test_flights.py``), files made to be hard to read (``test_ingest.py``).
The data lies beside the project and is not copied into it; where it is absent these tests are skipped, saying so.
Those that take longer are run with ``-m slow``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl
import pytest

from data_assets_tests import oracle

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data" / "real"
MAPPINGS = ROOT / "benchmarks" / "mappings"
CSV = "read_csv('{path}', header = true, all_varchar = true, delim = '{delimiter}', quote = '\"', escape = '\"')"
# For a file of CRLF whose last line ends in LF, at which DuckDB stops otherwise. It may drop lines; they are counted.
LENIENT = CSV.removesuffix(")") + ", strict_mode = false)"
JSON_LINES = (
    "read_json('{path}', format = 'newline_delimited', columns = {{user: 'VARCHAR', time: 'VARCHAR', "
    "channel: 'VARCHAR', delta: 'DOUBLE', page: 'VARCHAR'}})"
)
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is absent")


@dataclass(frozen=True)
class DataSet:
    """One data set as DuckDB reads it: SQL from its columns to each of ours.

    Attributes:
        start: the ``start_date`` of its mapping.
        rows: what lies there.
        line: a row's physical line.
        is_distinct: whether its mapping drops equal rows.
    """

    name: str
    start: str
    rows: int
    user_id: str
    session_start: str
    event_type: str
    value: str
    metadata: str = "NULL::VARCHAR"
    session_end: str = "NULL::TIMESTAMP"
    reader: str = CSV
    delimiter: str = ","
    line: str = "row_number() OVER () + 1"
    is_distinct: bool = False

    def read(self, path):
        """Every row of a file with its place and our columns."""
        is_array = path.suffix == ".json"
        reader = "read_json('{path}', format = 'array')" if is_array else self.reader
        ours = ("user_id", "session_start", "session_end", "event_type", "value", "metadata")
        return f"""
            SELECT '{path.name}' AS source_file, row_number() OVER () AS number,
                {"1" if is_array else self.line} AS source_line,
                {", ".join(f"{getattr(self, name)} AS {name}" for name in ours)}
            FROM {reader.format(path=path, delimiter=self.delimiter)}
        """


def blank(column):
    """Null where the text means no value."""
    return f"(CASE WHEN trim({column}) NOT IN ('', 'NA', 'NULL') THEN {column} END)"


SETS = [
    DataSet(
        "covid_italy_daily", "2021-01-01", 20 * 21,
        user_id="codice_regione::BIGINT", session_start="data::TIMESTAMP", event_type=blank("denominazione_regione"),
        value="nuovi_positivi::DOUBLE", metadata=blank("note"),
    ),
    DataSet(
        "wikiticker", "2015-09-01", 39_244,
        user_id=blank('"user"'), session_start='"time"::TIMESTAMP', event_type=blank("channel"), value="delta",
        metadata=blank("page"), reader=JSON_LINES, line="row_number() OVER ()",
    ),
    DataSet(
        "airline_stats", "2014-01-01", 19_492,
        user_id=blank("TailNum"), event_type=blank("Carrier"), value="ArrDelay::DOUBLE",
        session_start="FlightDate::TIMESTAMP + to_minutes(CRSDepTime // 100 * 60 + CRSDepTime % 100)",
        metadata="concat(Origin, '-', Dest, ' ', FlightNum)",
        reader="read_parquet('{path}')", line="row_number() OVER ()", is_distinct=True,
    ),
    DataSet(
        "nyc_yellow_taxi", "2018-01-01", 40_000,
        user_id="pickup_location_id::BIGINT", session_start="pickup_datetime::TIMESTAMP",
        session_end="dropoff_datetime::TIMESTAMP", event_type="payment_type::VARCHAR", value="total_amount::DOUBLE",
        reader=LENIENT, is_distinct=True,
    ),
    DataSet(
        "sepsis", "2013-01-01", 15_214,
        user_id="""nullif(trim("Case ID"), '')""",
        session_start="""strptime("Complete Timestamp", '%Y/%m/%d %H:%M:%S.%g')""",
        event_type=blank("Activity"), value=blank("CRP") + "::DOUBLE", metadata=blank('"org:group"'), delimiter=";",
    ),
    DataSet(
        "chicago_taxi", "2013-01-01", 15_002,
        user_id=blank("company"), session_start="make_timestamp(trip_start_timestamp::BIGINT * 1000000)",
        session_end=f"make_timestamp((trip_start_timestamp::BIGINT + {blank('trip_seconds')}::BIGINT) * 1000000)",
        event_type=blank("payment_type"), value="fare::DOUBLE",
    ),
]  # fmt: skip
QUICK = ("covid_italy_daily", "wikiticker")


@pytest.fixture(
    scope="module",
    params=[pytest.param(s, id=s.name, marks=() if s.name in QUICK else pytest.mark.slow) for s in SETS],
)
def made(request, project_at, tmp_path_factory):
    """The data set in a project of its own, run by the command line in a process of its own."""
    root = tmp_path_factory.mktemp(request.param.name)
    shutil.copy(MAPPINGS / f"{request.param.name}.yaml", root / "pipeline.yaml")
    shutil.copytree(REAL / request.param.name, root / "data" / "raw")
    command = [sys.executable, "-m", "data_assets.cli", "run", "--json"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    project = project_at(root, root)
    project.set, project.summary = request.param, json.loads(done.stdout)
    project.days = sorted(project.log.finished())
    return project


@pytest.fixture(scope="module")
def theirs(made):
    """The same files read and judged by DuckDB alone, which knows nothing of the project."""
    found = made.set
    with duckdb.connect() as con:
        files = sorted(p for p in made.raw.iterdir() if p.is_file())
        whole = " UNION ALL ".join(f"({found.read(path)})" for path in files)
        con.sql(f"""
            CREATE TABLE given AS WITH typed AS ({whole}), home AS (
                SELECT source_file, greatest(DATE '{found.start}', coalesce(
                    try_strptime(regexp_extract(source_file, '[0-9]{{8}}'), '%Y%m%d')::DATE,
                    min(session_start)::DATE)) AS home
                FROM typed GROUP BY source_file
            )
            SELECT *,
                CASE WHEN session_start >= DATE '{found.start}' THEN session_start::DATE ELSE home END AS date,
                list_filter([
                    CASE WHEN user_id IS NULL THEN 'missing_user_id' END,
                    CASE WHEN session_start IS NULL THEN 'missing_session_start' END,
                    CASE WHEN event_type IS NULL THEN 'missing_event_type' END,
                    CASE WHEN session_start < DATE '{found.start}' THEN 'before_start_date' END
                ], lambda r: r IS NOT NULL) AS reasons
            FROM typed JOIN home USING (source_file)
        """)
        first = "row_number() OVER (PARTITION BY date, user_id, session_start, session_end, event_type, value, metadata"
        first += " ORDER BY source_file, number) > 1" if found.is_distinct else ") < 0"
        con.sql(f"CREATE TABLE valid AS SELECT *, {first} AS is_double FROM given WHERE len(reasons) = 0")
        con.sql("""
            CREATE TABLE events AS SELECT date, user_id, session_start, session_end, event_type, value, metadata,
                source_file, source_line FROM valid WHERE NOT is_double
        """)
        con.sql("""
            CREATE TABLE counts AS SELECT date, count(*) AS rows_in,
                (SELECT count(*) FROM valid v WHERE v.date = given.date AND NOT is_double) AS valid,
                count(*) FILTER (len(reasons) > 0) AS quarantined,
                (SELECT count(*) FROM valid v WHERE v.date = given.date AND is_double) AS duplicate,
                count(*) FILTER (home > date) AS late, greatest(max(home - date), 0) AS late_max_days,
                coalesce(sum(home - date) FILTER (home > date), 0) AS late_row_days
            FROM given GROUP BY date
        """)
        yield con


def test_the_totals_are_the_oracles(made, theirs):
    totals = theirs.sql("SELECT sum(rows_in), sum(valid), sum(quarantined), sum(duplicate) FROM counts").fetchall()[0]
    names = ("rows_in", "valid", "quarantined", "duplicate")
    assert tuple(made.summary[n] for n in names) == totals
    assert totals[0] == sum(totals[1:]) == made.set.rows
    assert totals[1] > 9_000 or made.set.name == "covid_italy_daily"
    days = [str(d) for (d,) in theirs.sql("SELECT date FROM counts ORDER BY date").fetchall()]
    assert set(days) <= set(made.days)
    assert made.summary["failed"] == {}


def test_every_event_is_the_oracles(made, theirs):
    order = ["date", "source_file", "source_line", "session_start", "user_id", "event_type", "value"]
    wanted = theirs.sql("SELECT * FROM events ORDER BY " + ", ".join(f"{c} NULLS FIRST" for c in order)).fetchall()
    oracle.compare(made.table("raw_events", made.days).sort(order, nulls_last=False), wanted)


def test_every_refusal_is_the_oracles(made, theirs):
    ours = made.table("quarantined_events", made.days).sort("source_file", "source_line")
    wanted = theirs.sql("""
        SELECT date, source_file, source_line, reasons FROM given WHERE len(reasons) > 0
        ORDER BY source_file, source_line
    """).fetchall()
    assert ours.select("date", "source_file", "source_line", pl.col("reasons")).rows() == wanted


@pytest.mark.parametrize("name", ["session_metrics", "event_distribution", "summary_statistics", "daily_kpis"])
def test_every_cell_is_the_oracles(made, theirs, name):
    ours = made.table(name, made.days)
    wanted = oracle.rows(theirs, getattr(oracle, name)())
    if name in ("daily_kpis", "summary_statistics"):  # days in between without a row have their lines too
        dates = {row[0] for row in wanted}
        ours = ours.filter(pl.col("date").is_in(sorted(dates)))
    oracle.compare(ours, wanted)


def test_every_outlier_is_the_oracles(made, theirs):
    keys = ["date", "source_file", "source_line", "session_start", "user_id", "value"]
    ours = made.table("outliers", made.days)
    wanted = pl.DataFrame(oracle.rows(theirs, oracle.outliers()), schema=ours.schema, orient="row")
    oracle.compare(ours.sort(keys), wanted.sort(keys).rows())
