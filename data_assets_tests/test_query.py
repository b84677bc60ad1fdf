"""One SQL session over everything, and the lake as others read it.

Here: ``data_assets.connect()``, `data-assets query`, every statement of docs/query.md, the notebook, and plain readers
of the lake. Not here: how a day comes to PostgreSQL (``test_publish.py``).
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path

import duckdb
import polars as pl
import pytest
from click.testing import CliRunner
from pyarrow import dataset

import data_assets
from data_assets.cli import main
from data_assets.config import load_config
from data_assets.query import VIEWS

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "fixtures"
PAGE = (ROOT / "docs/query.md").read_text(encoding="utf-8")
DAYS = [f"2024-03-0{n}" for n in range(1, 10)]


@pytest.fixture(scope="module")
def made(project_at, tmp_path_factory, postgres_server):
    """The fixtures after a run that published two tables; not to be changed."""
    root = tmp_path_factory.mktemp("query") / "project"
    shutil.copytree(FIXTURES, root, ignore=shutil.ignore_patterns("data", ".dagster", "*.py", "expected"))
    with (root / "pipeline.yaml").open("a", encoding="utf-8") as out:
        out.write("\npostgres:\n  schema_name: 'a \"q\"'\n  tables: [daily_kpis, raw_events]\n")
    project = project_at(root, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_ASSETS_POSTGRES_DSN", postgres_server)
        assert project.run(DAYS[0], DAYS[-1]).success
        yield project
    import psycopg

    with psycopg.connect(postgres_server) as connection:
        connection.execute('DROP SCHEMA "a ""q""" CASCADE')


def ask(project, *arguments):
    return CliRunner().invoke(main, ["--config", str(project.root / "pipeline.yaml"), "query", *arguments])


STATEMENTS = re.findall(r"^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("statement", STATEMENTS, ids=range(len(STATEMENTS)))
def test_every_statement_of_the_page_works(made, statement):
    done = ask(made, statement, "--json")
    assert done.exit_code == 0, done.output
    if "here.date" in statement:
        rows = json.loads(done.output)
        assert [row["date"] for row in rows] == DAYS
        assert all(row["events"] == row["there"] for row in rows)


def test_the_page_names_every_table_and_view(made):
    with data_assets.connect(made.config) as connection:
        names = {name for (name,) in connection.sql("SHOW TABLES").fetchall()}
        assert names == {*made.tables, *VIEWS, "daily_kpis_compared", "pipeline_runs"}
        assert all(f"`{name}`" in PAGE for name in names)


def test_the_views_say_what_the_tables_hold(made):
    with data_assets.connect(made.root / "pipeline.yaml") as connection:
        per_day = connection.sql("SELECT date, events FROM events_per_day").fetchall()
        kpis = made.table("daily_kpis", DAYS)
        assert per_day == kpis.filter(pl.col("events") > 0).select("date", "events").rows()
        assert connection.sql("SELECT date::VARCHAR FROM latest_day").fetchall() == [(DAYS[-1],)]
        reasons = made.table("quarantined_events", DAYS)["reasons"].explode().drop_nulls()
        assert connection.sql("SELECT sum(rows) FROM quarantine_reasons").fetchall() == [(len(reasons),)]
        assert connection.sql("SELECT sum(rows) FROM files").fetchall() == [(made.ledger()["rows"].sum(),)]


def test_a_project_without_data_has_every_table_empty(tmp_path):
    with data_assets.connect(load_config(env={}, cwd=tmp_path)) as connection:
        for name in (*VIEWS, "raw_events", "daily_kpis", "landed_files"):
            assert connection.sql(f'SELECT * FROM "{name}"').fetchall() == []
    assert list(tmp_path.iterdir()) == []


def test_postgres_is_read_as_often_as_it_is_named_and_not_written(made):
    with data_assets.connect(made.config, postgres=True) as connection:
        there = connection.sql('SELECT * FROM pg."a ""q""".raw_events').pl()
        here = made.table("raw_events", DAYS)
        assert there.sort(pl.all()).equals(here.select(there.columns).sort(pl.all()))
        twice = "SELECT count(*) FROM pg.raw_events AS a JOIN pg.raw_events AS b USING (date, source_file, source_line)"
        assert connection.sql(twice).fetchall() == [(here.height,)]
        with pytest.raises(duckdb.Error):
            connection.execute("DELETE FROM pg.raw_events").fetchall()


def test_postgres_that_is_away_matters_only_to_statements_that_name_it(made, monkeypatch):
    monkeypatch.setenv("DATA_ASSETS_POSTGRES_DSN", "postgresql://me:hunter2@127.0.0.1:1/db")
    assert ask(made, "SELECT count(*) FROM raw_events").exit_code == 0
    done = ask(made, "SELECT count(*) FROM pg.raw_events")
    assert done.exit_code == 1
    assert "cannot be reached" in done.output
    assert "hunter2" not in done.output


def test_a_session_neither_blocks_a_run_nor_sees_it(made, project_at, tmp_path):
    project = project_at(made.root, tmp_path / "project")
    with data_assets.connect(project.config) as connection:
        before = connection.sql("SELECT * FROM session_metrics").fetchall()
        kept = connection.sql("SELECT count(*) FROM raw_events").fetchall()
        project.warehouse.lock_timeout = 5
        empty = project.tables["session_metrics"].empty().lazy()
        assert project.warehouse.replace(project.tables["session_metrics"], dict.fromkeys(DAYS, empty))
        project.lake.write(project.tables["raw_events"], DAYS[0], project.tables["raw_events"].empty().lazy(), {})
        assert connection.sql("SELECT * FROM session_metrics").fetchall() == before != []
        assert connection.sql("SELECT count(*) FROM raw_events").fetchall() == kept
    with data_assets.connect(project.config) as connection:
        assert connection.sql("SELECT * FROM session_metrics").fetchall() == []
    assert list(project.config.scratch_dir.iterdir()) == []


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM raw_events", "DROP TABLE warehouse.daily_kpis", "COPY (SELECT 1) TO 'x.csv'", "FROM '/etc/passwd'",
     "INSTALL postgres", "ATTACH 'x.duckdb'", "SET enable_external_access = true"],
)  # fmt: skip
def test_nothing_can_be_changed_or_reached(made, statement):
    with data_assets.connect(made.config) as connection, pytest.raises(duckdb.Error):
        connection.execute(statement).fetchall()


def test_query_writes_every_format(made, tmp_path):
    statement = "SELECT date, reasons FROM quarantined_events ORDER BY date, source_line"
    csv, table = ask(made, statement, "--format", "csv"), ask(made, statement)
    assert csv.output.splitlines()[0] == "date,reasons"
    assert "missing_user_id" in table.output
    target = tmp_path / "x.parquet"
    assert ask(made, statement, "--format", "parquet", "--output", str(target)).exit_code == 0
    assert pl.read_parquet(target).height == len(csv.output.splitlines()) - 1 == len(json.loads(
        ask(made, statement, "--format", "json").output))  # fmt: skip
    assert ask(made, statement, "--output", str(tmp_path / "x.csv")).exit_code == 0
    assert (tmp_path / "x.csv").read_text(encoding="utf-8") == csv.output
    assert ask(made, statement, "--format", "parquet").exit_code == 2
    assert ask(made, statement, "--output", str(tmp_path / "no" / "x.csv")).exit_code == 2


def test_the_notebook_runs(made, monkeypatch):
    monkeypatch.setenv("DATA_ASSETS_CONFIG", str(made.root / "pipeline.yaml"))
    app = runpy.run_path(str(ROOT / "docs/notebooks/a_day.py"))["app"]
    _, found = app.run()
    assert str(found["chosen"]) == DAYS[-1]
    assert found["kinds"]["count"].sum() == made.table("raw_events", [DAYS[-1]]).height
    assert found["busiest"].height
    assert found["reasons"].height
    found["connection"].close()


# ---- The lake, without this project ------------------------------------------------------------------------------


def plain_pyarrow(folder):
    files = [str(p) for p in sorted(folder.glob("date=*/data.parquet"))]
    found = dataset.dataset(files, format="parquet", partitioning="hive", partition_base_dir=str(folder))
    return pl.from_arrow(found.to_table())


def plain_duckdb(folder):
    with duckdb.connect() as connection:
        return connection.sql(f"FROM read_parquet('{folder}/*/data.parquet', hive_partitioning = true)").pl()


def plain_polars(folder):
    return pl.scan_parquet(folder / "*/data.parquet", hive_partitioning=True).collect()


def plain_spark(folder):
    sql = pytest.importorskip("pyspark.sql", reason="Spark is not installed: its reader was not tried")
    spark = sql.SparkSession.builder.master("local[1]").getOrCreate()
    try:
        rows = spark.read.option("basePath", str(folder)).parquet(f"{folder}/date=*/data.parquet")
        return pl.DataFrame([r.asDict() for r in rows.collect()], infer_schema_length=None)
    finally:
        spark.stop()


@pytest.mark.parametrize("read", [plain_pyarrow, plain_duckdb, plain_polars, plain_spark])
@pytest.mark.parametrize("table", ["raw_events", "quarantined_events", "outliers"])
def test_others_read_the_lake_without_this_project(made, read, table):
    found = read(made.config.lake_dir / table)
    found = found.with_columns(pl.col("date").cast(pl.String).str.to_date())
    expected = made.table(table, DAYS)
    order = ["date", "source_file", "source_line"]
    assert found.select(expected.columns).cast(dict(expected.schema)).sort(order).equals(expected.sort(order))
