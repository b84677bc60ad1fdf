"""What goes when it is old, what stays and why, and that the days of what went are left as they are.

Here: ``data_assets/retention.py``, the ledger's side of it, `data-assets retention`, Dagster's history. Not here: what
a run makes of files (``test_graph.py``).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from click.testing import CliRunner
from dagster import AssetKey, DagsterInstance
from filelock import FileLock

from data_assets import landing, retention
from data_assets.cli import main
from data_assets.errors import StorageBusyError
from data_assets_tests.conftest import ROOT, Project

HEADER = "user_id,session_start,session_end,event_type,value\n"
TODAY = dt.date(2024, 6, 1)
OLD, NEW = "2024-03-01", "2024-05-30"


def rows(day, count=3, user=1):
    return "".join(f"{user},{day} 10:0{n}:00,{day} 10:05:00,view,{n}.5\n" for n in range(count))


@pytest.fixture
def project(tmp_path, project_at):
    """Two made days, an old one and one of yesterday; settings of ``retention`` as given."""

    def make(settings="raw: 30", files=None, run=True):
        (tmp_path / "data" / "raw").mkdir(parents=True)
        (tmp_path / "pipeline.yaml").write_text(
            f"start_date: 2024-01-01\nsource: {{settle_seconds: 0}}\nretention: {{{settings}}}\n"
        )
        files = files or {f"{OLD}.csv": HEADER + rows(OLD), f"{NEW}.csv": HEADER + rows(NEW)}
        for name, text in files.items():
            (tmp_path / "data" / "raw" / name).write_text(text)
        made = project_at(tmp_path, tmp_path)
        if run:
            for day in made.stale():
                assert made.run(day).success
        return made

    return make


def names(things):
    return [(thing.kind, thing.name) for thing in things]


def why(found, name):
    return next(thing.why for thing in found.stays if thing.name == name)


def tables_of(project, day):
    return {name: project.table(name, [day]) for name in ("raw_events", "session_metrics", "daily_kpis")}


# ---- Raw files ---------------------------------------------------------------------------------------------------


def test_nothing_goes_unless_an_age_is_set(project):
    made = project("daily: false")
    assert retention.plan(made.config, TODAY) == retention.Plan()


def test_an_old_file_goes_and_its_day_stays_as_it_is(project):
    made = project()
    before = tables_of(made, OLD)
    found = retention.apply(made.config, TODAY)
    assert names(found.goes) == [("raw", f"{OLD}.csv")]
    assert sorted(p.name for p in made.raw.iterdir()) == [f"{NEW}.csv"]
    assert made.stale() == []
    assert landing.files_of(made.ledger(), [OLD])["path"].to_list() == [f"{OLD}.csv"]
    for name, table in tables_of(made, OLD).items():
        assert table.equals(before[name])
    assert retention.apply(made.config, TODAY).goes == []


def test_a_plan_takes_nothing_away(project):
    made = project()
    assert names(retention.plan(made.config, TODAY).goes) == [("raw", f"{OLD}.csv")]
    assert (made.raw / f"{OLD}.csv").exists()


def test_a_file_is_as_old_as_its_newest_day(project):
    made = project(files={"both.csv": HEADER + rows(OLD) + rows(NEW)})
    found = retention.plan(made.config, TODAY)
    assert (found.goes, found.stays) == ([], [])


def test_a_file_whose_day_is_not_made_stays(project):
    made = project(run=False)
    made.ledger()
    assert "not made" in why(retention.apply(made.config, TODAY), f"{OLD}.csv")
    assert (made.raw / f"{OLD}.csv").exists()


def test_a_file_that_changed_since_its_day_was_made_stays(project):
    made = project()
    (made.raw / f"{OLD}.csv").write_text(HEADER + rows(OLD, 5))
    assert "changed" in why(retention.apply(made.config, TODAY), f"{OLD}.csv")  # though the ledger does not know it yet
    assert (made.raw / f"{OLD}.csv").exists()
    assert made.stale() == [OLD]
    assert "not made" in why(retention.apply(made.config, TODAY), f"{OLD}.csv")


def test_a_file_that_cannot_be_used_stays(project):
    made = project(files={f"{OLD}.csv": "who,when\n1,2\n"}, run=False)
    made.ledger()
    assert "cannot be used" in why(retention.apply(made.config, TODAY), f"{OLD}.csv")


def test_a_file_of_which_a_row_is_not_accounted_for_stays(project):
    made = project()
    pointer = made.lake.folder("raw_events", OLD) / ".current.json"
    noted = json.loads(pointer.read_text())
    files = json.loads(noted["notes"]["by_file"])
    files[0]["valid"] -= 1
    noted["notes"]["by_file"] = json.dumps(files)
    pointer.write_text(json.dumps(noted))
    assert "accounted" in why(retention.apply(made.config, TODAY), f"{OLD}.csv")


def test_a_file_of_a_day_that_a_run_works_on_stays(project):
    made = project()
    assert "working on" in why(retention.apply(made.config, TODAY, {OLD}), f"{OLD}.csv")


def test_a_late_file_for_a_retired_day_is_refused_with_what_to_do(project):
    made = project()
    before = tables_of(made, OLD)
    retention.apply(made.config, TODAY)
    (made.raw / f"{NEW}_late.csv").write_text(HEADER + rows(OLD, 2, user=7))
    assert OLD in made.stale()
    made.run(OLD)
    reason = made.log.refusals("raw_events", [OLD])[OLD]
    assert f"{OLD}.csv was deleted by retention on 2024-06-01" in reason
    assert "put the file back" in reason
    for name, table in tables_of(made, OLD).items():
        assert table.equals(before[name])


def test_a_file_that_is_put_back_counts_again(project):
    made = project()
    text = (made.raw / f"{OLD}.csv").read_text()
    retention.apply(made.config, TODAY)
    (made.raw / f"{OLD}.csv").write_text(text)
    (made.raw / f"{NEW}_late.csv").write_text(HEADER + rows(OLD, 2, user=7))
    assert OLD in made.stale()
    assert made.run(OLD).success
    assert made.table("raw_events", [OLD]).height == 5
    assert landing.read_retired(made.lake) != {}
    retention.apply(made.config, dt.date(2024, 3, 2))  # nothing is old, but what came back is forgotten
    assert landing.read_retired(made.lake) == {}


def test_another_mapping_leaves_a_retired_day_alone(project):
    made = project()
    retention.apply(made.config, TODAY)
    text = (made.root / "pipeline.yaml").read_text()
    (made.root / "pipeline.yaml").write_text(text + "precision: 3\n")
    again = Project(made.root, made.instance)
    assert again.stale() == [NEW]


def test_a_lost_ledger_still_knows_retired_files(project):
    made = project()
    retention.apply(made.config, TODAY)
    for path in sorted(made.lake.folder("landed_files", None).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert made.stale() == []
    assert made.ledger().height == 2


def test_files_are_moved_and_checked(project):
    made = project("raw: 30, raw_move_to: attic")
    text = (made.raw / f"{OLD}.csv").read_bytes()
    retention.apply(made.config, TODAY)
    assert (made.root / "attic" / f"{OLD}.csv").read_bytes() == text
    assert not (made.raw / f"{OLD}.csv").exists()
    assert landing.read_retired(made.lake)[f"{OLD}.csv"]["where"].endswith(f"attic/{OLD}.csv")


def test_a_file_that_changes_while_files_go_stays_and_counts_again(project, monkeypatch):
    other = "2024-03-02"
    made = project(files={f"{day}.csv": HEADER + rows(day) for day in (OLD, other, NEW)})
    note = landing.retire

    def note_and_change(*args):
        note(*args)
        with (made.raw / f"{OLD}.csv").open("a") as file:
            file.write(rows(OLD))

    monkeypatch.setattr(landing, "retire", note_and_change)
    found = retention.apply(made.config, TODAY)
    assert names(found.goes) == [("raw", f"{other}.csv")]
    assert "changed" in why(found, f"{OLD}.csv")
    assert made.stale() == [OLD]
    assert landing.files_of(made.ledger(), [OLD])["rows"].to_list() == [6]


def test_many_files_are_noted_some_at_a_time(project, monkeypatch):
    monkeypatch.setattr(retention, "NOTED_FILES", 2)
    days = [f"2024-03-0{n}" for n in range(1, 6)]
    made = project(files={f"{day}.csv": HEADER + rows(day) for day in days})
    assert names(retention.apply(made.config, TODAY).goes) == [("raw", f"{day}.csv") for day in days]
    assert sorted(landing.read_retired(made.lake)) == [f"{day}.csv" for day in days]
    assert (list(made.raw.iterdir()), made.stale()) == ([], [])


@pytest.mark.parametrize("step", ["retire", "unlink"])
def test_a_killed_retention_is_finished_by_the_next(project, step):
    """SIGKILL right before or right after the note that a file is retired."""
    made = project("raw: 30, raw_move_to: attic")
    before = tables_of(made, OLD)
    program = textwrap.dedent(f"""
        import datetime as dt, os, pathlib, signal
        from data_assets import landing, retention
        from data_assets.config import load_config
        def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
        if {step!r} == "retire": landing.retire = die
        else: pathlib.Path.unlink = lambda self, **_: die() if self.parent.name == "raw" else None
        retention.apply(load_config(pathlib.Path("pipeline.yaml")), dt.date(2024, 6, 1))
    """)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=made.root, check=False, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert (made.raw / f"{OLD}.csv").exists()
    assert made.stale() == []
    assert names(retention.apply(made.config, TODAY).goes) == [("raw", f"{OLD}.csv")]
    assert not (made.raw / f"{OLD}.csv").exists()
    assert made.stale() == []
    for name, table in tables_of(made, OLD).items():
        assert table.equals(before[name])


def test_two_at_once_do_not_get_into_each_others_way(project):
    made = project()
    with FileLock(made.config.data_dir / ".retention.lock"), pytest.raises(StorageBusyError, match="at work"):
        retention.apply(made.config, TODAY)


# ---- Days --------------------------------------------------------------------------------------------------------


def test_lake_days_go_and_the_figures_stay(project):
    made = project("raw: 30, lake: 30")
    kept = "its raw files are still there, and go by what the day says of them"
    found = retention.apply(made.config, TODAY)
    assert names(found.goes) == [("raw", f"{OLD}.csv")]
    assert why(found, f"raw_events {OLD}") == kept
    found = retention.apply(made.config, TODAY)
    assert ("lake", f"raw_events {OLD}") in names(found.goes)
    assert made.lake.days("raw_events") == [NEW]
    assert made.table("daily_kpis", [OLD]).height == 1
    assert made.stale() == []
    with made.warehouse.reader() as connection:
        assert connection.execute("SELECT count(*) FROM raw_events").fetchone() == (3,)
    assert not made.run(OLD).success
    assert "retention" in made.log.refusals("raw_events", [OLD])[OLD]
    assert made.table("daily_kpis", [OLD]).height == 1


def test_reports_go_and_the_index_knows(project):
    made = project("reports: 30")
    assert OLD in (made.config.reports_dir / "index.html").read_text()
    assert names(retention.apply(made.config, TODAY).goes) == [("report", OLD)]
    assert sorted(p.name for p in made.config.reports_dir.iterdir() if p.is_dir() and p.name[:2] == "20") == [NEW]
    assert f'href="{OLD}/report.html"' not in (made.config.reports_dir / "index.html").read_text()
    assert made.stale() == []


def test_old_months_of_run_records_go(project):
    made = project("run_records: 30")
    folder = made.config.lake_dir / "pipeline_runs"
    (folder / "2024-03.jsonl").write_text("{}\n")
    (folder / "2024-05.jsonl").write_text("{}\n")
    assert names(retention.apply(made.config, TODAY).goes) == [("run records", "2024-03.jsonl")]
    assert not (folder / "2024-03.jsonl").exists()
    assert (folder / "2024-05.jsonl").exists()


# ---- Dagster's history -------------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    text = (ROOT / "dagster.yaml").read_text().replace(": .dagster", f": {home}")
    (home / "dagster.yaml").write_text(text)
    with DagsterInstance.from_config(str(home)) as instance:
        yield instance


def test_superseded_runs_go_and_days_stay_made(project, on_disk):
    made = project("history: 10", run=False)
    made.instance = on_disk
    made.stale()
    first, second, other = (made.run(day).run_id for day in (OLD, OLD, NEW))
    now = dt.datetime.now(dt.UTC)
    assert retention.plan_history(made.config, on_disk, now) == retention.Plan()
    later = now + dt.timedelta(days=11)
    found = retention.apply_history(made.config, on_disk, later)
    assert [(t.kind, t.name) for t in found.goes] == [("run", first), ("run log", second), ("run log", other)]
    assert on_disk.get_run_by_id(first) is None
    assert on_disk.get_run_by_id(second) is not None
    assert made.materialized("raw_events") == [OLD, NEW]
    assert on_disk.get_latest_materialization_event(AssetKey("daily_report")) is not None
    again = retention.apply_history(made.config, on_disk, later)
    assert [t.kind for t in again.goes if t.kind == "run"] == []


# ---- The command -------------------------------------------------------------------------------------------------


def call(project, *arguments):
    environment = {"DAGSTER_HOME": str(project.root)}
    with contextlib.chdir(project.root):  # where the folders of dagster.yaml are: in one for all tests, two would meet
        return CliRunner().invoke(main, ["--config", str(project.root / "pipeline.yaml"), *arguments], env=environment)


def test_the_command_shows_first_and_takes_away_when_told(project):
    made = project()
    (made.root / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    shown = call(made, "retention")
    assert shown.exit_code == 0, shown.output
    assert f"goes   raw         {OLD}.csv" in shown.output
    assert "--apply` takes them away" in shown.output
    assert (made.raw / f"{OLD}.csv").exists()
    done = json.loads(call(made, "retention", "--apply", "--json").output)
    assert f"{OLD}.csv" in [thing["name"] for thing in done["goes"]]
    assert not (made.raw / f"{OLD}.csv").exists()


def test_without_an_age_the_command_says_so(project):
    made = project("daily: false", run=False)
    (made.root / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    assert "Everything is kept for ever" in call(made, "retention").output


def test_the_job_does_what_the_command_does(project):
    from data_assets.definitions import build_definitions

    made = project("raw: 30, daily: true")
    job = build_definitions(made.config).resolve_job_def("retention")
    assert job.execute_in_process(instance=made.instance).success
    assert not (made.raw / f"{OLD}.csv").exists()
    assert not (made.raw / f"{NEW}.csv").exists()  # by the real date, both are old
