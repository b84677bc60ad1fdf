"""The whole graph on the small days in ``fixtures/``: every cell, every failure, every promise about runs.

Here: runs of the job ``all_days`` in this process, and the command line on the same days. Expected are the tables in
``fixtures/expected`` and those of the SQL oracle. Not here: how one file is read (``test_ingest.py``), single metrics
(``test_metrics.py``), a real month (``test_flights.py``), real processes.
"""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner
from dagster import AssetCheckSeverity, AssetKey, AssetRecordsFilter, build_schedule_context

from data_assets import checks, engine, ingest, metrics, staging
from data_assets.cli import main
from data_assets.config import COLUMNS, load_config
from data_assets.definitions import TABLES_WITH_DAYS, build_definitions
from data_assets.jobs import RANGE_END, RANGE_START, range_tags
from data_assets.reasons import REASONS
from data_assets.report import text
from data_assets.storage import REFUSED, scratch_folder, whole_numbers
from data_assets_tests import oracle

FIXTURES = Path(__file__).parent.parent / "fixtures"
EXPECTED = FIXTURES / "expected"
DAYS = [f"2024-03-0{n}" for n in range(1, 10)]
EMPTY_DAYS = ["2024-03-02", "2024-03-08"]  # a file with a header only; no file at all
WAREHOUSE = ("session_metrics", "event_distribution", "summary_statistics", "daily_kpis")
LAKE = ("raw_events", "quarantined_events", "duplicate_events", "outliers")
BELOW = ("session_metrics", "outliers", "event_distribution", "summary_statistics", "daily_kpis", "daily_report")


@pytest.fixture(scope="module")
def made(project_at, tmp_path_factory):
    """The fixtures after one run of all their days. Not to be changed: ``again`` is for that."""
    source = tmp_path_factory.mktemp("source") / "project"
    shutil.copytree(FIXTURES, source, ignore=shutil.ignore_patterns("data", ".dagster", "*.py", "expected"))
    project = project_at(source, source)
    opened = []
    real = ingest.open_records

    def counting(path, relative, *args, **kwargs):
        opened.append((relative, kwargs.get("require_columns", True)))
        return real(path, relative, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "open_records", counting)
        project.result = project.run(DAYS[0], DAYS[-1])
    project.opened = opened
    return project


@pytest.fixture
def again(made, project_at, tmp_path):
    """The same project with everything that was made, in a folder where it may be changed."""
    return project_at(made.root, tmp_path / "project")


def expected(name, schema):
    """A file of fixtures/expected, typed as the project's table."""
    with (EXPECTED / f"{name}.csv").open(encoding="utf-8", newline="") as source:
        header, *rows = list(csv.reader(source))
    assert header == list(schema)
    frame = pl.DataFrame({n: pl.Series([r[i] or None for r in rows], dtype=pl.String) for i, n in enumerate(header)})
    return frame.select(_typed(name, dtype) for name, dtype in schema.items()).rows()


def _typed(name, dtype):
    if dtype == pl.Datetime:
        return pl.col(name).str.replace("T", " ", literal=True).str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us")
    return pl.col(name).str.to_date() if dtype == pl.Date else pl.col(name).cast(dtype)


def _days(name):
    """The oracle describes no columns where there are no rows; the project says that there are none."""
    return [d for d in DAYS if d not in EMPTY_DAYS] if name == "summary_statistics" else DAYS


def partition_bytes(project):
    """Every Parquet file that readers outside see, by its place."""
    return {
        str(path.relative_to(project.config.lake_dir)): path.read_bytes()
        for path in project.config.lake_dir.glob("*/date=*/data.parquet")
    }


# ---- What the tables hold ----------------------------------------------------------------------------------------


def test_the_run_succeeds_and_every_day_is_done(made):
    assert [e.message for e in made.result.all_events if e.is_failure] == []
    assert made.result.success
    assert sorted(made.log.finished()) == DAYS
    assert made.stale() == []
    for name in (*TABLES_WITH_DAYS, "quarantined_events", "duplicate_events"):
        assert made.materialized(name) == DAYS
    assert all((made.config.reports_dir / day / "report.html").stat().st_size > 1_000 for day in DAYS)


@pytest.mark.parametrize("name", ["raw_events", "duplicate_events", "outliers", *WAREHOUSE])
def test_every_cell_is_as_expected(made, name):
    found = made.table(name, _days(name))
    oracle.compare(found, expected(name, found.schema))


def test_quarantined_rows_are_as_expected(made):
    found = made.table("quarantined_events", DAYS)
    shown = found.select("date", "source_file", "source_line", pl.col("reasons").list.join(" "))
    assert shown.rows() == expected("quarantined_events", shown.schema)
    records = {
        line: text
        for file, line, text in found.select("source_file", "source_line", "record").rows()
        if "03.csv" in file
    }
    assert records[4] == "201,2024-03-03 08:05:00,2024-03-03 08:06:00,view"
    assert records[5] == ""
    assert records[16] == r"202,2024-03-03 09:20:00,2024-03-03 09:21:00,view,2,caf\xe9"
    assert found["home_day"].to_list() == found["date"].to_list()


def test_the_first_day_worked_out_by_hand(made):
    # User 101: 600 s; 08:30 until the next known end 09:05, 2100 s; 300 s; late 1800 s. 102: 0, -300 and 3600 s.
    assert made.table("session_metrics", DAYS[:1]).drop("date").rows() == [
        (101, 4, 1200.0, 2100.0, 300.0, 41.5, 10.38, 0),
        (102, 3, 1100.0, 3600.0, 3600.0, 115.0, 38.33, 2),
        (103, 2, 1200.5, 1200.5, 1200.5, None, None, 0),
        (104, 2, 600.0, 1200.0, 0.0, 21.5, 10.75, 0),
    ]


@pytest.mark.parametrize("name", ["outliers", *WAREHOUSE])
def test_every_cell_is_the_oracles(made, name):
    """The same SQL over the lake's own Parquet: what the metrics make of what was really stored."""
    with duckdb.connect() as con:
        con.sql(f"CREATE VIEW events AS SELECT * FROM {oracle.events_of_lake(str(made.config.lake_dir))}")
        con.sql(
            "CREATE VIEW counts AS SELECT date, rows_in, valid, quarantined, duplicate, late, late_max_days, "
            "coalesce(late * late_mean_days, 0)::BIGINT AS late_row_days "
            f"FROM read_csv('{EXPECTED / 'daily_kpis.csv'}')"
        )
        theirs = oracle.rows(con, getattr(oracle, name)())
    oracle.compare(made.table(name, _days(name)), theirs)


def test_empty_days_have_empty_tables_and_a_report(made):
    for day in EMPTY_DAYS:
        for name in (*LAKE, "session_metrics", "event_distribution"):
            assert made.table(name, [day]).is_empty()
        described = made.table("summary_statistics", [day]).drop("date", "column_name")
        assert described.unique().rows() == [(0, 0, None, None, None, None, None, None, None, 0)]


def test_every_row_is_accounted_for_by_file_and_day(made):
    found = []
    for day in DAYS:
        notes = staging.noted_files(made.lake.notes("raw_events", day))
        found += [(dt.date.fromisoformat(day), *row) for row in notes.drop("content_hash").rows()]
    schema = pl.Schema({"date": pl.Date} | {n: t for n, t in staging.BY_FILE.items() if n != "content_hash"})
    wanted = expected("files", schema)
    assert found == wanted
    assert all(rows == valid + quarantined + duplicate for _, _, rows, valid, quarantined, duplicate, *_ in wanted)
    # And against the stored rows themselves, and against the files.
    for name, column in (("raw_events", 3), ("quarantined_events", 4), ("duplicate_events", 5)):
        stored = made.table(name, DAYS).group_by("date", "source_file").len().rows()
        stored = {(day, file): rows for day, file, rows in stored}
        assert stored == {(row[0], row[1]): row[column] for row in wanted if row[column]}
    by_path = {path: sum(r[2] for r in wanted if r[1] == path) for _, path, *_ in wanted}
    assert by_path == dict(made.ledger().group_by("path").agg(pl.sum("rows")).iter_rows())


def test_each_format_and_compression_occurs(made):
    kinds = {f"{kind}{packed}" for kind in ("csv", "json", "jsonl", "parquet") for packed in ("", ".gz", ".zst")}
    assert set(made.ledger()["format"]) == kinds


def test_each_reason_occurs(made, tmp_path):
    """The three that need a column to be required: the dirty day again, with all columns required."""
    quarantined = made.table("quarantined_events", DAYS)
    reasons = set(quarantined["reasons"].explode())
    strict = load_config(made.root / "pipeline.yaml", env={"DATA_ASSETS_SOURCE__REQUIRED": json.dumps(COLUMNS)})
    days = ["2024-03-03"]
    ledger = made.ledger().filter(pl.col("day") == dt.date(2024, 3, 3))
    with scratch_folder(tmp_path) as scratch:
        staged, refused = staging.stage(strict, ledger, days, scratch)
        assert refused == {}
        more = set(staged[days[0]].quarantined.select(pl.col("reasons").explode()).collect()["reasons"])
    assert reasons == set(REASONS) - {"missing_session_end", "missing_value", "missing_metadata"}
    assert more == set(REASONS)


def test_the_generator_makes_the_committed_files(tmp_path):
    spec = importlib.util.spec_from_file_location("make_fixtures", FIXTURES / "make_fixtures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(tmp_path)
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert names == sorted(module.contents())

    def content(path):  # compressors may pack the same content differently from version to version
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        elif path.suffix == ".zst":
            data = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
        return pl.read_parquet(data).to_dict(as_series=False) if ".parquet" in path.name else data

    for name in names:
        assert content(tmp_path / name) == content(FIXTURES / "raw" / name), name


def test_the_golden_summary_of_the_first_report(made):
    """To accept a change: UPDATE_GOLDEN=1 pytest data_assets_tests/test_graph.py -k golden, and read the diff."""
    golden = EXPECTED / "summary_2024-03-01.json"
    summary = json.loads((made.config.reports_dir / DAYS[0] / "summary.json").read_text(encoding="utf-8"))
    assert summary.pop("versions")["data_assets"]
    for name in ("duration_histogram", "value_histogram"):  # their edges are powers of ten in floats
        bins = summary.pop(name)["bins"]
        assert sum(b["count"] for b in bins) > 0
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert summary == json.loads(golden.read_text(encoding="utf-8"))


def test_the_golden_page_of_the_first_report(made):
    """The whole page, but for the versions at its end; accepted like the summary."""
    folder, golden = made.config.reports_dir / DAYS[0], EXPECTED / "report_2024-03-01.html"
    page = (folder / "report.html").read_text(encoding="utf-8")
    for version in json.loads((folder / "summary.json").read_text(encoding="utf-8"))["versions"].values():
        page = page.replace(f">{version}<", "><")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(page, encoding="utf-8")
    assert page == golden.read_text(encoding="utf-8")


# ---- What a run promises -----------------------------------------------------------------------------------------


def test_a_file_is_opened_once_for_all_its_days(made):
    """Once by the look at it, and where that could not split it, once more; 2024-03-04's file holds two days."""
    paths = sorted(made.ledger()["path"].unique())
    assert sorted(path for path, is_run in made.opened if not is_run) == paths
    again = [path for path, is_run in made.opened if is_run]
    assert len(again) == len(set(again)) < len(paths)
    assert made.ledger().filter(pl.col("path") == "events_2024-03-04.jsonl.gz").height == 2


@pytest.mark.parametrize("length", ["few rows", "many rows"])
def test_same_input_same_bytes_whatever_the_order_the_folder_and_the_way(
    made, project_at, tmp_path, monkeypatch, length
):
    if length == "many rows":  # as if each day were too long to be held
        monkeypatch.setattr(engine, "FEW_ROWS", -1)
        monkeypatch.setattr("data_assets.assets.FEW_ROWS", -1)
        monkeypatch.setattr("data_assets.assets.CSV_ROWS", 1)
        monkeypatch.setattr("data_assets.memory.EAGER_ROWS", -1)
        monkeypatch.setattr("data_assets.storage.MOST_AT_ONCE", 2)
        monkeypatch.setattr("data_assets.storage.BATCH", 2)
    asked: list[Path] = []
    monkeypatch.setattr(metrics, "whole_numbers", lambda path, names: asked.append(path) or whole_numbers(path, names))
    source = shutil.copytree(made.root, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("data"))
    other = project_at(source, source)
    for day in reversed(DAYS):
        assert other.run(day).success
    days = reversed(DAYS) if length == "many rows" else []
    assert asked == [other.lake.current("raw_events", day).path for day in days]  # the footer, once a day
    assert ("lazy" in metadata(other, "session_metrics", DAYS[0])["memory"]) == (length == "many rows")
    ours, theirs = partition_bytes(made), partition_bytes(other)
    assert len(ours) == len(LAKE) * len(DAYS)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    for name in WAREHOUSE:
        assert made.table(name, DAYS).equals(other.table(name, DAYS)), name
    assert made.log.finished() == other.log.finished()
    for day in DAYS:
        first, second = ((one.config.reports_dir / day / "outliers.csv").read_bytes() for one in (made, other))
        assert first == second, day


def test_a_bad_day_does_not_cost_the_good_ones(again):
    before = {name: again.table(name, DAYS) for name in (*LAKE, *WAREHOUSE)}
    report = {day: (again.config.reports_dir / day / "report.html").read_bytes() for day in DAYS}
    (again.raw / "more_2024-03-06.csv").write_text("who,when\n1,2024-03-06 10:00:00\n")
    (again.raw / "more_2024-03-07.csv").write_text(
        "user_id,session_start,event_type\n" + "x,2024-03-07 10:00:00,view\n" * 9
    )
    (again.raw / "more_2024-03-01.csv").write_text("user_id,session_start,event_type\n199,2024-03-01 10:00:00,view\n")
    assert again.stale() == ["2024-03-01", "2024-03-06", "2024-03-07"]

    result = again.run(DAYS[0], DAYS[-1])

    assert not result.success
    good = [d for d in DAYS if d not in ("2024-03-06", "2024-03-07")]
    over = [d for d in DAYS if d != "2024-03-06"]  # over the limit: shown, with nothing built on it
    assert again.materialized("raw_events") == again.materialized("quarantined_events") == over
    for name in BELOW:
        assert again.materialized(name) == good, name
    assert again.stale() == ["2024-03-06", "2024-03-07"]
    # The bad days keep what they had; the good ones are new.
    for name in (*LAKE, *WAREHOUSE):
        is_shown = name in ("raw_events", "quarantined_events", "duplicate_events")
        days = ["2024-03-06"] if is_shown else ["2024-03-06", "2024-03-07"]
        kept = before[name].filter(pl.col("date").is_in([dt.date.fromisoformat(d) for d in days]))
        assert again.table(name, days).equals(kept), name
    for day in ("2024-03-06", "2024-03-07"):
        assert (again.config.reports_dir / day / "report.html").read_bytes() == report[day]
        assert again.log.finished()[day] == REFUSED
    assert again.table("daily_kpis", DAYS[:1])["valid"].to_list() == [12]
    assert (again.config.reports_dir / DAYS[0] / "report.html").read_bytes() != report[DAYS[0]]
    assert again.table("quarantined_events", ["2024-03-07"]).height == 9
    # Shown as failed, with the reason.
    columns = "more_2024-03-06.csv: required column(s) missing: user_id, session_start, event_type"
    rate = "quarantine_rate: 75.00% of 12 rows (limit 60.00%)"
    assert columns in again.log.refusals("raw_events", DAYS)["2024-03-06"]
    failed = {e.step_key: e.event_specific_data.error.message for e in result.all_events if e.is_step_failure}
    assert set(failed) == {f"{name}_every_day_done" for name in TABLES_WITH_DAYS}
    for message in failed.values():
        assert "2 of 9 days refused; they keep what they had" in message
        assert columns in message
        assert rate in message
    judged = {
        (e.asset_key.to_user_string(), e.check_name, e.partition): e.passed
        for e in result.get_asset_check_evaluations()
    }
    assert judged["landed_files", "every_file_usable", None] is False
    for name in TABLES_WITH_DAYS:
        assert judged[name, "every_day_done", "2024-03-06"] is False
        assert judged[name, "every_day_done", "2024-03-07"] is False
    assert judged["raw_events", "quarantine_rate", "2024-03-07"] is False
    assert judged["raw_events", "quarantine_rate", "2024-03-01"] is True

    # A later run of a downstream table alone finds the refusal, not the old rows of the day or the bad ones.
    for day, reason in (("2024-03-06", columns), ("2024-03-07", rate)):
        later = again.run(day, only=["session_metrics"])
        assert not later.success
        messages = "\n".join(e.event_specific_data.error.message for e in later.all_events if e.is_step_failure)
        assert f"raw_events of {day} was refused" in messages
        assert reason in messages
        assert "Mend the cause named above" in messages
    assert again.table("session_metrics", ["2024-03-07"]).equals(
        before["session_metrics"].filter(date=dt.date(2024, 3, 7))
    )

    # Mended: the same range is done, and nothing is left.
    (again.raw / "more_2024-03-06.csv").unlink()
    (again.raw / "more_2024-03-07.csv").unlink()
    assert again.stale() == ["2024-03-06", "2024-03-07"], "refused, though made of the files that lie there"
    assert again.run("2024-03-06", "2024-03-07").success
    assert again.stale() == []
    assert again.table("daily_kpis", DAYS[1:]).equals(before["daily_kpis"].filter(pl.col("date") > dt.date(2024, 3, 1)))


def test_when_no_day_is_good_nothing_below_runs(again):
    (again.raw / "more_2024-03-06.csv").write_text("who,when\n1,2024-03-06 10:00:00\n")
    result = again.run("2024-03-06")
    assert not result.success
    failed = {e.step_key: e.event_specific_data.error.message for e in result.all_events if e.is_step_failure}
    assert list(failed) == ["ingest"]
    assert "required column(s) missing" in failed["ingest"]
    assert again.materialized("raw_events") == []


def test_changed_removed_and_late_files_rerun_exactly_the_days_they_touch(again, monkeypatch):
    first = again.raw / "events_2024-03-01.csv"
    first.write_text(first.read_text().replace("95,far out", "94,far out"))
    assert again.stale() == ["2024-03-01"]
    (again.raw / "events_2024-03-07.csv.zst").unlink()  # holds a row of the day before, too
    assert again.stale() == ["2024-03-01", "2024-03-06", "2024-03-07"]
    late = "user_id,session_start,event_type,value\n998,2024-03-04 23:00:00,view,1\n999,2024-03-05 00:00:00,view,1\n"
    (again.raw / "late_2024-03-09.csv").write_text(late)
    due = ["2024-03-01", "2024-03-04", "2024-03-05", "2024-03-06", "2024-03-07"]
    assert again.stale() == due
    os.utime(again.raw / "events_2024-03-03.csv")  # touched, not changed
    assert again.stale() == due

    monkeypatch.chdir(again.root)
    done = CliRunner().invoke(main, ["run", "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert (summary["days"], len(summary["runs"]), summary["failed"]) == (5, 2, {})
    assert again.stale() == []
    kpis = again.table("daily_kpis", DAYS).select(pl.col("date").dt.day(), "rows_in", "late", "value").rows()
    assert kpis[0] == (1, 11, 1, 177.0)
    assert kpis[3:7] == [(4, 6, 1, -1.25), (5, 7, 1, 40.25), (6, 4, 0, 3.0), (7, 0, 0, None)]


def test_a_run_where_dagster_has_no_settings_tells_nobody_and_leaves_nothing(again, monkeypatch):
    """By default it writes what it would tell into the home folder, and says so amid the output."""
    home = again.root / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(again.root)
    before = set(again.root.iterdir())
    done = CliRunner().invoke(main, ["run", "--from", "2024-03-01", "--to", "2024-03-01"])
    assert (done.exit_code, "elemetry" in done.output) == (0, False)
    assert set(again.root.iterdir()) == before


def test_a_late_file_changes_its_days_and_no_other(again):
    """Not a byte of another day in lake and reports, not a row in the warehouse; and how late the rows are."""
    before, tables = partition_bytes(again), {name: again.table(name, DAYS) for name in WAREHOUSE}
    reports = {day: (again.config.reports_dir / day / "report.html").read_bytes() for day in DAYS}
    header, row = "user_id,session_start,event_type\n", "{user},2024-03-04 23:00:00,view\n"
    (again.raw / "late_2024-03-06.csv").write_text(header + "".join(row.format(user=n) for n in range(3)))
    (again.raw / "late_2024-03-09.csv").write_text(header + row.format(user=7) + "8,2024-03-02 23:00:00,view\n")
    due = ["2024-03-02", "2024-03-04"]
    assert again.stale() == due
    for day in due:
        assert again.run(day).success
    assert again.stale() == []

    after = partition_bytes(again)
    changed = {name.split("/")[1] for name in before if after[name] != before[name]}
    assert changed == {f"date={day}" for day in due}
    others = ~pl.col("date").is_in([dt.date.fromisoformat(day) for day in due])
    for name, table in tables.items():
        assert again.table(name, DAYS).filter(others).equals(table.filter(others)), name
    for day in DAYS:
        same = (again.config.reports_dir / day / "report.html").read_bytes() == reports[day]
        assert same == (day not in due), day
    kpis = again.table("daily_kpis", due).select("rows_in", "late", "late_max_days", "late_mean_days").rows()
    assert kpis == [(1, 1, 7, 7.0), (9, 4, 5, 2.75)]


def test_a_key_keeps_the_first_row_over_all_files_of_the_day(again, cli, monkeypatch):
    """Late files come first when their path does; and what is kept changes when deduplication is switched off."""
    (again.raw / "a_2024-03-09.csv").write_text("user_id,session_start,event_type\n701,2024-03-07 23:00:00,click\n")
    monkeypatch.setenv("DATA_ASSETS_SOURCE__DEDUPLICATE", '["user_id"]')
    done = json.loads(cli("run", "--from", "2024-03-07", "--json").stdout)
    assert (done["rows_in"], done["valid"], done["quarantined"], done["duplicate"]) == (4, 2, 0, 2)
    ask = ("query", "SELECT * EXCLUDE date FROM duplicate_events WHERE date = '2024-03-07'", "--format", "csv")
    zst = "events_2024-03-07.csv.zst"
    assert cli(*ask).stdout.splitlines()[1:] == [f"{zst},2,a_2024-03-09.csv,2", f"{zst},3,a_2024-03-09.csv,2"]
    with duckdb.connect(str(again.config.warehouse_path)) as con:
        assert con.sql("SELECT count(*) FROM duplicate_events WHERE date = '2024-03-07'").fetchall() == [(2,)]

    monkeypatch.setenv("DATA_ASSETS_SOURCE__DEDUPLICATE", "none")
    done = json.loads(cli("run", "--from", "2024-03-07", "--json").stdout)
    assert (done["valid"], done["duplicate"]) == (4, 0)
    assert len(cli(*ask).stdout.splitlines()) == 1, "an event again, so no duplicate any more"
    names = {
        key.to_user_string() for key in build_definitions(load_config()).resolve_asset_graph().get_all_asset_keys()
    }
    assert "duplicate_events" not in names


# ---- What Dagster shows ------------------------------------------------------------------------------------------


def test_every_asset_says_what_it_is(made):
    graph = build_definitions(made.config).resolve_asset_graph()
    names = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert names == {*TABLES_WITH_DAYS, "quarantined_events", "duplicate_events", "landed_files", "weekly_report"}
    for name in names:
        node = graph.get(AssetKey(name))
        assert len(node.description) > 20
        assert node.owners
        assert node.kinds
        assert node.group_name in {"ingest", "metrics", "report"}
        if name in ("daily_report", "weekly_report"):
            continue
        columns = {c.name: c for c in node.metadata["dagster/column_schema"].columns}
        declared = made.tables[name].columns
        assert [c for c in columns if c != "date" or made.tables[name].store == "lake"] == [c.name for c in declared]
        for column in declared:
            assert columns[column.name].description == column.description
            assert columns[column.name].constraints.nullable == column.nullable


def test_every_check_says_what_it_promises(made):
    graph = build_definitions(made.config).resolve_asset_graph()
    keys = {(key.asset_key.to_user_string(), key.name) for key in graph.asset_check_keys}
    declared = {(c.table, c.name) for c in (*checks.CHECKS, *checks.LEDGER_CHECKS)}
    assert keys == declared | {(name, "every_day_done") for name in TABLES_WITH_DAYS}
    for key in graph.asset_check_keys:
        spec = graph.get_check_spec(key)
        assert len(spec.description) > 20
        assert spec.blocking == (key.name != "every_day_done" and key.asset_key != AssetKey("landed_files"))


def metadata(project, name, day):
    """What the UI shows of the latest materialisation of an asset's day."""
    wanted = AssetRecordsFilter(AssetKey(name), asset_partitions=[day])
    found = project.instance.fetch_materializations(wanted, limit=1)
    return {k: v.value for k, v in found.records[0].asset_materialization.metadata.items()}


def test_figures_in_the_metadata_are_numbers(made):
    raw = metadata(made, "raw_events", "2024-03-03")
    assert {k: raw[k] for k in ("rows_in", "valid", "quarantined", "duplicate", "late", "files")} == {
        "rows_in": 24, "valid": 9, "quarantined": 14, "duplicate": 1, "late": 0, "files": 1,
    }  # fmt: skip
    assert raw["quarantine_rate"] == pytest.approx(14 / 24)
    assert raw["dagster/partition_row_count"] == 9
    kpis = metadata(made, "daily_kpis", "2024-03-01")
    assert kpis["median_duration"] == 900.0
    assert kpis["late_share"] == metadata(made, "daily_report", "2024-03-01")["late_share"] == pytest.approx(1 / 11)
    assert metadata(made, "daily_kpis", "2024-03-08")["late_share"] == 0.0
    assert metadata(made, "duplicate_events", "2024-03-03")["dagster/partition_row_count"] == 1
    assert metadata(made, "session_metrics", "2024-03-01")["anomalies"] == 2
    assert metadata(made, "outliers", "2024-03-01")["iqr_upper"] == 13.75
    for name in ("raw_events", "session_metrics", "outliers", "event_distribution", "summary_statistics", "daily_kpis"):
        plain = {
            k: v
            for k, v in metadata(made, name, "2024-03-01").items()
            if k not in ("path", "top", "events_by_hour", "memory", "dagster/table_name")
        }
        assert plain
        assert all(isinstance(v, int | float) for v in plain.values()), (name, plain)


def test_every_figure_agrees_everywhere(made):
    """Card, table, text, CSV, summary.json, DuckDB, and the metadata that the UI shows, of every day."""
    columns = {"events": 1, "users": 5, "median_duration": 6, "value": 7, "outliers": 8, "quarantine_rate": 4}
    for day in DAYS:
        folder = made.config.reports_dir / day
        html = (folder / "report.html").read_text(encoding="utf-8")
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        (stored,) = made.table("daily_kpis", [day]).drop("date").to_dicts()
        rate = stored["quarantined"] / stored["rows_in"] if stored["rows_in"] else None
        stored = {name: value for name, value in stored.items() if value is not None}
        assert {n: v for n, v in summary["kpis"].items() if v is not None} == stored

        headline = {h["key"]: h["value"] for h in summary["headline"]}
        assert headline == {name: stored.get(name) if name != "quarantine_rate" else rate for name in columns}
        shown = {h["key"]: text.figure(h["value"], h["kind"]) for h in summary["headline"]}
        assert dict(re.findall(r'data-figure="(\w+)">([^<]*)<', html)) == shown
        cells = re.findall(r'class="n">([^<]*)<', re.search(r'<tr class="now">(.*?)</tr>', html)[1])
        assert {name: cells[place] for name, place in columns.items()} == shown
        plain = (folder / "report.txt").read_text(encoding="utf-8")
        assert all(value in plain for value in shown.values())

        with (folder / "session_metrics.csv").open(encoding="utf-8", newline="") as source:
            users = list(csv.DictReader(source))
        assert len(users) == stored["users"]
        assert sum(int(u["anomaly_count"]) for u in users) == stored["anomalies"]
        assert len((folder / "outliers.csv").read_text(encoding="utf-8").splitlines()) - 1 == stored["outliers"]
        with (folder / "event_distribution.csv").open(encoding="utf-8", newline="") as source:
            kinds = {k["event_type"].removeprefix("'"): int(k["count"]) for k in csv.DictReader(source)}
        assert sum(kinds.values()) == stored["events"] == summary["event_mix"]["events"]
        assert made.table("event_distribution", [day])["count"].to_list() == list(kinds.values())

        told = metadata(made, "daily_report", day)
        assert {n: told[n] for n in columns if n in told} == {n: v for n, v in headline.items() if v is not None}
        assert all(f"| {value}" in told["figures"] for value in shown.values())
        kpis = metadata(made, "daily_kpis", day)
        assert {n: kpis[n] for n in stored} == stored
        raw = metadata(made, "raw_events", day)
        assert {n: raw[n] for n in ("rows_in", "valid", "quarantined")} == {
            n: stored[n] for n in ("rows_in", "valid", "quarantined")
        }


def test_metadata_in_markdown_is_short_enough_to_be_shown_in_line(made):
    for name in (*TABLES_WITH_DAYS, "quarantined_events"):
        for day in DAYS:
            pictures = {k: v for k, v in metadata(made, name, day).items() if isinstance(v, str) and k != "path"}
            assert all(len(v) < 1_000 for v in pictures.values()), (name, day)
    assert set(metadata(made, "daily_report", DAYS[0])) >= {"figures", "trend", "durations", "values", "path"}


def test_the_report_states_what_was_found_about_the_day(made):
    def said(day):
        return json.loads((made.config.reports_dir / day / "summary.json").read_text(encoding="utf-8"))

    ledger = made.ledger()
    for day in DAYS:
        summary = said(day)
        of_day = ledger.filter(pl.col("day") == dt.date.fromisoformat(day))
        assert {(f["path"], f["lane"], f["lane_reason"]) for f in summary["files"]} == set(
            of_day.select("path", "lane", "lane_reason").iter_rows()
        )
        (kpis,) = made.table("daily_kpis", [day]).to_dicts()
        assert sum(f["late"] for f in summary["files"]) == kpis["late"]
        drift = next((c["observed"] for c in summary["checks"] if c["name"] == "schema_drift"), None)
        assert drift is not None
        assert summary["schema"] == drift
    assert said("2024-03-09")["without_rows"] == ["2024-03-02", "2024-03-08"]
    assert "2024-03-08" not in said("2024-03-07")["without_rows"]


def test_the_report_states_what_cleaning_did(again):
    settings_file = again.root / "pipeline.yaml"
    settings_file.write_text(settings_file.read_text(encoding="utf-8") + "cleaning: {missing_value: {constant: 0}}\n")
    again.__post_init__()
    assert again.run(DAYS[0]).success
    folder = again.config.reports_dir / DAYS[0]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    filled = metadata(again, "raw_events", DAYS[0])["filled_values"]
    assert filled > 0
    assert summary["policies"] == {"missing_value": "constant 0"}
    assert summary["policy_rows"]["filled_values"] == filled
    words = f"missing_value constant 0: {filled} filled values"
    assert words in (folder / "report.html").read_text(encoding="utf-8")
    assert words in (folder / "report.txt").read_text(encoding="utf-8").replace("\n    ", " ")


def test_weeks_are_made_apart_from_days(again):
    """Among them the week in which the first day lies; the days' job knows nothing of weeks."""
    definitions = build_definitions(again.config)
    assert "weekly_report" not in {
        k.to_user_string() for k in definitions.resolve_job_def("all_days").asset_layer.executable_asset_keys
    }
    run = definitions.resolve_job_def("weeks").execute_in_process(
        instance=again.instance, tags=range_tags("2024-02-26", "2024-03-04"), raise_on_error=False
    )
    assert run.success
    assert again.materialized("weekly_report") == ["2024-02-26", "2024-03-04"]
    folder = again.config.reports_dir / "periods" / "2024-02-26_2024-03-03"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    stored = again.table("daily_kpis", DAYS[:3])
    assert summary["missing_days"] == [f"2024-02-2{n}" for n in range(6, 10)]
    assert summary["totals"]["rows_in"] == stored["rows_in"].sum()
    told = metadata(again, "weekly_report", "2024-02-26")
    assert told["events"] == stored["events"].sum()
    assert told["verdict"] == summary["verdict"]
    for name in ("events", "users", "value"):
        assert told[name] == next(h["value"] for h in summary["headline"] if h["key"] == name)
    index = (again.config.reports_dir / "index.html").read_text(encoding="utf-8")
    assert "periods/2024-02-26_2024-03-03/report.html" in index
    assert all(f'"{day}/report.html"' in index for day in DAYS)


def test_the_schedule_asks_for_finished_weeks_once(again):
    definitions = build_definitions(again.config)
    schedule = definitions.resolve_schedule_def("finished_weeks")

    def asked(when):
        context = build_schedule_context(again.instance, dt.datetime.fromisoformat(when))
        told = schedule.evaluate_tick(context)
        return [(r.tags[RANGE_START], r.tags[RANGE_END]) for r in told.run_requests or ()]

    assert asked("2024-03-10T01:30:00+00:00") == [("2024-02-26", "2024-02-26")]
    assert asked("2024-03-11T01:30:00+00:00") == [("2024-02-26", "2024-03-04")]
    weeks = definitions.resolve_job_def("weeks")
    assert weeks.execute_in_process(instance=again.instance, tags=range_tags("2024-02-26", "2024-03-04")).success
    assert asked("2024-03-12T01:30:00+00:00") == []
    assert again.run("2024-03-05").success
    assert asked("2024-03-12T01:30:00+00:00") == [("2024-03-04", "2024-03-04")]


def test_a_refused_day_is_marked_on_the_page_of_all_days(again):
    (again.raw / "more_2024-03-06.csv").write_text("who,when\n1,2024-03-06 10:00:00\n")
    assert not again.run("2024-03-06").success
    index = (again.config.reports_dir / "index.html").read_text(encoding="utf-8")
    assert '<a class="r" href="2024-03-06/report.html">' in index


def test_every_check_is_recorded_for_every_day(made):
    found = made.result.get_asset_check_evaluations()
    events = [e for e in found if e.asset_key != AssetKey("landed_files")]
    seen = {
        (e.asset_key.to_user_string(), e.check_name, e.partition) for e in events if e.check_name != "every_day_done"
    }
    assert seen == {(c.table, c.name, day) for c in checks.CHECKS for day in DAYS}
    # The files of 2024-03-05 differ from those before, and that of 2024-03-07, which holds a row of the day before.
    warned = {(e.check_name, e.partition, e.severity.value) for e in events if not e.passed}
    assert warned == {("schema_drift", f"2024-03-0{day}", "WARN") for day in (5, 6, 7)}
    of_files = {e.check_name: e for e in found if e.asset_key == AssetKey("landed_files")}
    assert of_files["every_file_usable"].passed
    missing = of_files["no_missing_days"]
    assert (missing.passed, missing.severity) == (False, AssetCheckSeverity.WARN)
    assert missing.metadata["observed"].value == "no rows for 2 days in between: 2024-03-02, 2024-03-08"


# ---- The command line --------------------------------------------------------------------------------------------


@pytest.fixture
def cli(again, monkeypatch):
    """Calls data-assets in the project's folder."""
    monkeypatch.chdir(again.root)
    return lambda *args: CliRunner().invoke(main, list(args))


def test_cli_status_query_and_report_of_what_was_made(cli):
    status = cli("status", "--json")
    assert status.exit_code == 0
    found = json.loads(status.stdout)
    assert (found["files"], found["rows"], found["days_done"], found["days_to_do"]) == (16, 62, 9, [])
    assert found["days_missing"] == ["2024-03-02", "2024-03-08"]
    assert "62 rows" in cli("status").stdout

    counted = cli("query", "SELECT count(*) AS n FROM raw_events", "--json")
    assert (counted.exit_code, json.loads(counted.stdout)) == (0, [{"n": 41}])
    shown = cli("query", "SELECT source_line, reasons FROM quarantined_events WHERE source_line = 17")
    assert "missing_user_id" in shown.stdout
    as_csv = cli(
        "query", "SELECT source_line, reasons FROM quarantined_events WHERE source_line = 16", "--format", "csv"
    )
    assert as_csv.stdout.splitlines() == ["source_line,reasons", '16,"[""malformed_record""]"']

    week = ("report", "--from", "2024-03-01", "--to", "2024-03-07")
    assert cli(*week).stdout.rstrip().endswith("periods/2024-03-01_2024-03-07/report.html")
    assert json.loads(cli(*week, "--json").stdout)["totals"]["rows_in"] > 0
    assert cli(*week, "--text").stdout.splitlines()[1] == "1 March to 7 March 2024 (UTC)"
    assert "Friday, 1 March 2024" in cli("report", "2024-03-01", "--text").stdout
    assert cli("report").stdout.rstrip().endswith("reports/index.html")

    report = cli("report", "2024-03-01")
    assert report.exit_code == 0
    assert report.stdout.rstrip().endswith("2024-03-01/report.html")
    assert json.loads(cli("report", "2024-03-01", "--json").stdout)["kpis"]["valid"] == 11

    nothing = cli("run")
    assert (nothing.exit_code, "Nothing to do" in nothing.stdout) == (0, True)
    assert json.loads(cli("run", "--json").stdout)["days"] == 0


def test_cli_says_1_when_a_day_failed(cli, again):
    (again.raw / "more_2024-03-06.csv").write_text("who,when\n1,2024-03-06 10:00:00\n")
    run = cli("run", "--json")
    assert run.exit_code == 1
    found = json.loads(run.stdout)
    assert list(found["failed"]) == ["2024-03-06"]
    assert "required column(s) missing" in found["failed"]["2024-03-06"]
    status = cli("status", "--json")
    assert status.exit_code == 1
    assert "required column(s) missing" in json.loads(status.stdout)["days_failed"]["2024-03-06"]
    words = cli("status").stdout
    assert "FAILED 2024-03-06 (keeps what it had)" in words
    assert json.loads(cli("report", "2024-03-06", "--json").stdout)["kpis"]["valid"] == 4  # as before


def test_cli_tells_of_rows_whose_days_are_still_to_come(cli, again):
    head = "user_id,session_start,event_type\n"
    (again.raw / "ahead.csv").write_text(f"{head}1,2162-11-20 10:00:00,a\n2,2162-11-20 11:00:00,a\n3,2162-11-23,a\n")
    for command in ("run", "status"):
        result = cli(command)
        assert result.exit_code == 0
        assert "3 rows wait for their days to begin: 2162-11-20, 2162-11-23." in result.stdout
        assert json.loads(cli(command, "--json").stdout)["rows_to_come"] == {"2162-11-20": 2, "2162-11-23": 1}
    plan = cli("plan").stdout
    assert "2, 2162-11-20 to 2162-11-23: 0 new, 0 changed, 0 as made, 2 to come" in plan.partition("in all: ")[0]
    total = json.loads(cli("plan", "--json").stdout)["in_all"]
    assert (total["new"], total["to_come"]) == ([], ["2162-11-20", "2162-11-23"])
    assert not set(total["to_come"]) & set(total["decisions"])


def test_cli_waits_for_a_file_that_landed_a_moment_ago(again, cli, monkeypatch):
    """Also when it is told the days: they must not be made, in silence, without the file."""
    monkeypatch.setenv("DATA_ASSETS_SOURCE__SETTLE_SECONDS", "1")
    (again.raw / "late_2024-03-07.csv").write_text("user_id,session_start,event_type\n1,2024-03-07 09:00:00,view\n")
    run = cli("run", "--from", "2024-03-07", "--json")
    assert (run.exit_code, json.loads(run.stdout)["valid"]) == (0, 3)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "--from", "2024-03-99"], "is not a day"),
        (["run", "--to", "2024-03-01"], "--to without --from"),
        (["run", "--from", "2024-03-05", "--to", "2024-03-04"], "Swap them"),
        (["run", "--from", "2024-02-01"], "not within the days"),
        (["query", "SELEC 1"], "error: "),
        (["query", "DELETE FROM warehouse.daily_kpis"], "read-only"),
        (["report", "2024-03-31"], "There is no report of 2024-03-31"),
        (["report", "--from", "2024-03-01"], "of one day or of a period"),
        (["report", "--from", "2024-03-05", "--to", "2024-03-04"], "Swap them"),
        (["report", "--from", "2023-03-05", "--to", "2024-03-05"], "longer than 366 days"),
        (["report", "--from", "2024-04-01", "--to", "2024-04-02"], "No day from 2024-04-01 to 2024-04-02 is made"),
        (["--config", "nowhere.yaml", "status"], "nowhere.yaml"),
        (["frobnicate"], "No such command"),
    ],
)
def test_cli_says_2_when_used_wrongly(made, monkeypatch, args, words):
    monkeypatch.chdir(made.root)
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
