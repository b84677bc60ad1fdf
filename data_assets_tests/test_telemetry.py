"""What a stage took is measured truly, noted by whoever runs in it, and kept in pipeline_runs.

Here: telemetry, the journal of runs, ``status`` and the report of a period. Not here: log lines (``test_logs.py``),
figures for Prometheus (``test_exposition.py``).
"""

from __future__ import annotations

import datetime as dt
import getpass
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from data_assets import query, runs, telemetry
from data_assets.cli import main
from data_assets.config import load_config
from data_assets.contracts import PIPELINE_RUNS

FIXTURES = Path(__file__).parent.parent / "fixtures"
DAY = "2024-03-01"
RUN = telemetry.Run("run-1", "cli", (DAY,))
MB = 1 << 20
STAGES = [
    "landed_files", "raw_events", "session_metrics", "outliers", "event_distribution", "summary_statistics",
    "daily_kpis", "daily_report",
]  # fmt: skip


@pytest.fixture
def config(tmp_path):
    (tmp_path / "pipeline.yaml").write_text("data_dir: data\n")
    return load_config(tmp_path / "pipeline.yaml", env={})


@pytest.fixture(scope="module")
def made(project_at, tmp_path_factory):
    """Two days of the fixtures, made; not to be changed."""
    root = tmp_path_factory.mktemp("history") / "project"
    shutil.copytree(FIXTURES, root, ignore=shutil.ignore_patterns("data", ".dagster", "*.py", "expected"))
    project = project_at(root, root)
    assert project.run(DAY, "2024-03-02").success
    return project


def rows(config):
    return runs.read(config.lake_dir).to_dicts()


# ---- Measuring ---------------------------------------------------------------------------------------------------


def allocate(megabytes):
    block = bytearray(megabytes * MB)
    block[:: os.sysconf("SC_PAGE_SIZE")] = b"x" * len(block[:: os.sysconf("SC_PAGE_SIZE")])
    return block


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells the peak of a part of a process")
def test_the_peak_is_that_of_the_stage_and_not_of_one_before(config):
    code = f"""
import resource, time
from pathlib import Path
from data_assets import telemetry
from data_assets.config import load_config
from data_assets_tests.test_telemetry import RUN, allocate
config = load_config(Path({str(config.data_dir.parent / "pipeline.yaml")!r}), env={{}})
for name, megabytes in (("large", 300), ("small", 100), ("none", 0)):
    with telemetry.stage(name, config, RUN):
        block = allocate(megabytes)
        time.sleep(0.3)
        del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    peak = {row["stage"]: row["peak_mb"] for row in rows(config)}
    assert 295 < peak["large"] - peak["none"] < 330
    assert 95 < peak["small"] - peak["none"] < 130
    # What others are told of the process is not made smaller by measuring it.
    assert float(done.stdout) >= peak["large"] - 1


def test_time_and_processor_time_are_told_apart(config):
    with telemetry.stage("asleep", config, RUN):
        time.sleep(0.3)
    with telemetry.stage("busy", config, RUN):
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
    asleep, busy = rows(config)
    assert asleep["seconds"] >= 0.3 > asleep["cpu_seconds"]
    assert busy["seconds"] >= busy["cpu_seconds"] >= 0.3


def test_code_within_a_stage_notes_figures_without_being_handed_anything(config):
    telemetry.note(rows_in=1)  # outside of any stage: nobody listens
    telemetry.add(rows_in=1)
    telemetry.wrote("raw_events", DAY, 1, 1)
    telemetry.refused(DAY, "nobody")
    with telemetry.stage("raw_events", config, RUN) as stage:
        telemetry.note(decision="streaming", predicted_mb=12.5, engine="polars", rows_in=None)
        telemetry.note(predicted_mb=float("nan"))
        telemetry.note(predicted_mb=13.5)
        telemetry.add(rows_in=2)
        telemetry.add(rows_in=3)
        telemetry.wrote("raw_events", DAY, 7, 100)
        telemetry.wrote("quarantined_events", DAY, 5, 10)
        with telemetry.stage("inner", config, RUN):
            telemetry.note(files=9)
        stage.note(files=1)
    inner, outer = sorted(rows(config), key=lambda row: row["stage"])
    assert (inner["files"], inner["rows_in"]) == (9, None)
    assert outer | {"rows_in": 5, "rows_out": 7, "bytes_written": 110, "decision": "streaming", "files": 1} == outer
    assert outer["predicted_mb"] == 13.5


def test_a_figure_that_is_no_number_does_not_break_the_row(config):
    with telemetry.stage("raw_events", config, RUN):
        telemetry.note(predicted_mb=float("nan"))
    assert rows(config)[0]["predicted_mb"] is None


def test_how_a_stage_ended(config):
    with telemetry.stage("fine", config, RUN):
        pass
    two = telemetry.Run("run-1", "cli", (DAY, "2024-03-02"))
    with telemetry.stage("partly", config, two):
        telemetry.refused(DAY, "quarantine_rate")

    def refuse():
        telemetry.refused(DAY, "conservation")
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"), telemetry.stage("refused", config, RUN):
        refuse()
    with pytest.raises(ZeroDivisionError), telemetry.stage("failed", config, RUN):
        raise ZeroDivisionError
    with pytest.raises(OSError, match="disk"), telemetry.stage("stored", config, RUN), telemetry.blamed():
        raise OSError("disk")
    found = {row["stage"]: (row["status"], row["days_refused"], row["error_kind"]) for row in rows(config)}
    assert found == {
        "fine": ("done", 0, None),
        "partly": ("done", 1, "quarantine_rate"),
        "refused": ("refused", 1, "conservation"),
        "failed": ("failed", 0, "ZeroDivisionError"),
        "stored": ("failed", 0, "OSError"),
    }


# ---- The journal -------------------------------------------------------------------------------------------------


def row(number=0, **figures):
    at = dt.datetime.fromisoformat("2026-01-31T23:59:00") + dt.timedelta(minutes=number)
    base = {"run_id": f"run-{number}", "started_by": "cli", "stage": "raw_events", "days": 1, "days_refused": 0,
            "started_at": at, "seconds": 1.0, "cpu_seconds": 1.0, "peak_mb": 1.0, "status": "done"}  # fmt: skip
    return dict.fromkeys(PIPELINE_RUNS.names) | base | figures


def test_rows_come_back_as_they_were_and_in_their_order(tmp_path):
    assert runs.read(tmp_path).schema == PIPELINE_RUNS.schema
    assert runs.last(tmp_path) is None
    given = [row(0, first_day=dt.date(2024, 3, 1), rows_in=2**40), row(1), row(2, decision="it's ø")]
    for one in (given[2], given[0], given[1]):
        runs.append(tmp_path, one)
    assert runs.read(tmp_path).to_dicts() == given
    assert sorted(p.name for p in (tmp_path / "pipeline_runs").iterdir()) == ["2026-01.jsonl", "2026-02.jsonl"]
    assert runs.read(tmp_path, months=1).to_dicts() == given[1:]
    PIPELINE_RUNS.pandera().validate(runs.read(tmp_path))


def test_a_row_with_other_columns_is_refused(tmp_path):
    with pytest.raises(ValueError, match="surplus"):
        runs.append(tmp_path, row() | {"surplus": 1})


@pytest.mark.parametrize("torn", [b'{"run_id": "run-9", "sta', b"\x00\x00\x00", b"[1, 2]\n", b'{"run_id": "x"}\n'])
def test_a_torn_line_costs_itself_alone(tmp_path, torn):
    runs.append(tmp_path, row(0))
    place = tmp_path / "pipeline_runs" / "2026-01.jsonl"
    with place.open("ab") as out:
        out.write(torn)
    assert runs.read(tmp_path).height == 1
    runs.append(tmp_path, row(0, stage="outliers"))
    assert sorted(runs.read(tmp_path)["stage"]) == ["outliers", "raw_events"]


def test_a_row_of_an_older_version_lacks_what_it_did_not_know(tmp_path):
    runs.append(tmp_path, row(0))
    place = tmp_path / "pipeline_runs" / "2026-01.jsonl"
    old = json.loads(place.read_text())
    del old["decision"]
    place.write_text(json.dumps(old | {"gone": 1}) + "\n")
    assert runs.read(tmp_path).to_dicts() == [row(0)]


def test_many_processes_append_at_once(tmp_path):
    code = """
import sys
from pathlib import Path
from data_assets import runs
from data_assets_tests.test_telemetry import row
for number in range(40):
    runs.append(Path(sys.argv[1]), row(0, run_id=sys.argv[2], stage=f"stage-{number}", error_kind="x" * 3000))
"""
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), f"run-{n}"], cwd=Path(__file__).parents[1])
        for n in range(3)
    ]
    assert [process.wait(120) for process in started] == [0, 0, 0]
    found = runs.read(tmp_path)
    assert found.select("run_id", "stage").n_unique() == found.height == 120


def test_a_stage_that_cannot_leave_its_row_is_no_failure(config, capfd):
    config.data_dir.mkdir()
    config.lake_dir.write_text("a file where the lake should be")
    with telemetry.stage("raw_events", config, RUN):
        pass
    lines = [json.loads(line) for line in config.log_path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["stage done", "pipeline_runs not written"]


def test_a_killed_run_leaves_the_stages_that_it_finished(config):
    code = f"""
import os, signal
from pathlib import Path
from data_assets import telemetry
from data_assets.config import load_config
from data_assets_tests.test_telemetry import RUN
config = load_config(Path({str(config.data_dir.parent / "pipeline.yaml")!r}), env={{}})
with telemetry.stage("landed_files", config, RUN):
    pass
with telemetry.stage("raw_events", config, RUN):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == -9
    assert [r["stage"] for r in rows(config)] == ["landed_files"]


def test_a_stage_that_was_tried_again_ended_as_its_last_try_did(tmp_path):
    runs.append(tmp_path, row(0, run_id="a", stage="landed_files", peak_mb=5.0))
    runs.append(tmp_path, row(1, run_id="a", status="failed", error_kind="StorageBusyError", seconds=30.0))
    runs.append(tmp_path, row(2, run_id="a", rows_in=10, rows_out=8, seconds=4.5, peak_mb=7.5))
    found = runs.last(tmp_path)
    assert (found.status, found.error_kind, found.seconds, found.peak_mb) == ("done", None, 124.5, 7.5)
    assert (found.rows_in, found.rows_out, found.slowest, found.stages["raw_events"]) == (10, 8, "raw_events", 34.5)


# ---- A run of the graph ------------------------------------------------------------------------------------------


def test_every_stage_of_a_run_has_a_row(made):
    found = {r["stage"]: r for r in rows(made.config)}
    assert sorted(found) == sorted(STAGES)
    for stage in found.values():
        assert (stage["started_by"], stage["status"], stage["days"]) == ("the UI", "done", 2)
        assert (stage["first_day"], stage["last_day"]) == (dt.date(2024, 3, 1), dt.date(2024, 3, 2))
        assert stage["seconds"] > 0
        assert 50 < stage["peak_mb"] < 5_000
    kpis = made.table("daily_kpis", [DAY, "2024-03-02"])
    events = found["raw_events"]
    assert (events["rows_in"], events["rows_out"]) == (kpis["rows_in"].sum(), kpis["valid"].sum())
    files = made.ledger().filter(made.ledger()["day"].is_in([dt.date(2024, 3, 1), dt.date(2024, 3, 2)]))
    assert events["files"] == files["path"].n_unique()
    assert events["bytes_read"] == sum((made.raw / path).stat().st_size for path in files["path"].unique())
    assert found["session_metrics"]["rows_in"] == events["rows_out"]
    assert found["session_metrics"]["rows_out"] == made.table("session_metrics", [DAY, "2024-03-02"]).height


def test_the_table_is_seen_by_query_and_by_duckdb_itself(made):
    with query.connect(made.config) as session:
        assert session.sql("SELECT count(*) FROM pipeline_runs WHERE status = 'done'").fetchall() == [(len(STAGES),)]
        assert session.sql("SELECT * FROM pipeline_runs").columns == list(PIPELINE_RUNS.names)
    with duckdb.connect(str(made.config.warehouse_path), read_only=True) as connection:
        assert connection.sql("SELECT count(DISTINCT stage) FROM pipeline_runs").fetchall() == [(len(STAGES),)]


def test_query_knows_the_table_before_the_first_run(config):
    with query.connect(config) as session:
        assert session.sql("SELECT count(*) FROM pipeline_runs").fetchall() == [(0,)]


def test_a_day_that_is_refused_counts_in_every_stage_below(made, project_at, tmp_path):
    again = project_at(made.root, tmp_path / "project")
    (again.raw / "events_2024-03-01.csv").write_text("user_id,session_start,event_type\n,,\n" * 50)
    assert not again.run(DAY, DAY).success
    newest = [r for r in rows(again.config) if r["run_id"] != rows(made.config)[0]["run_id"]]
    refused = {r["stage"]: (r["status"], r["error_kind"]) for r in newest if r["days_refused"]}
    assert refused["raw_events"] == ("refused", "quarantine_rate")


def test_who_started_a_run_stands_in_its_history_as_in_its_tags(made, project_at, tmp_path):
    root = tmp_path / "project"
    shutil.copytree(made.root, root)
    result = CliRunner().invoke(main, ["--config", str(root / "pipeline.yaml"), "run", "--from", DAY, "--json"])
    run_id = json.loads(result.stdout)["runs"][0]
    [who] = {r["started_by"] for r in rows(load_config(root / "pipeline.yaml", env={})) if r["run_id"] == run_id}
    assert who == f"{getpass.getuser()} on the command line"


def test_status_shows_the_last_run(made):
    config = str(made.root / "pipeline.yaml")
    said = CliRunner().invoke(main, ["--config", config, "status", "--json"]).stdout
    last = json.loads(said)["last_run"]
    assert (last["status"], last["days"], set(last["stages"])) == ("done", 2, set(STAGES))
    line = CliRunner().invoke(main, ["--config", config, "status"]).stdout.splitlines()[-1]
    assert line.startswith("last run: done; ")
    assert f"{last['rows_in']:,} rows in, {last['rows_out']:,} out" in line
    assert f"slowest {max(last['stages'], key=last['stages'].get)}" in line


def test_the_report_of_a_period_tells_of_runs_only_when_asked(made, project_at, tmp_path):
    again = project_at(made.root, tmp_path / "project")
    folder = again.config.reports_dir / "periods" / "2024-03-01_2024-03-02"
    command = ["--config", str(again.root / "pipeline.yaml"), "report", "--from", DAY, "--to", "2024-03-02"]

    def files(*options):
        assert CliRunner().invoke(main, [*command, *options]).exit_code == 0
        return {p.name: p.read_bytes() for p in folder.iterdir()}

    def without_run():
        again.run("2024-03-03")  # another run that does not touch these days
        return files()

    plain = files()
    shown = files("--runs")
    run = runs.last(made.config.lake_dir)
    assert {name for name in plain if plain[name] != shown[name]} == {"report.html", "report.txt", "summary.json"}
    assert [r["run_id"] for r in json.loads(shown["summary.json"])["runs"]] == [run.run_id]
    assert f"{run.peak_mb:,.0f} MB" in shown["report.html"].decode()
    assert run.slowest in shown["report.txt"].decode()
    assert without_run() == plain
    alone = CliRunner().invoke(main, ["--config", str(again.root / "pipeline.yaml"), "report", DAY, "--runs"])
    assert alone.exit_code == 2
