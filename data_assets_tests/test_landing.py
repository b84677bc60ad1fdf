"""The ledger: what is listed, counted and stale after files come, change, go and arrive late; and the sensor's tick."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Literal

import polars as pl
import pyarrow.parquet as pq
import pytest
from dagster import DagsterInstance, DagsterRunStatus, build_sensor_context

from data_assets import engine, jobs, landing, sensors, staging, storage
from data_assets.config import PipelineConfig, SourceConfig
from data_assets.contracts import LANDED_FILES, tables
from data_assets.definitions import build_definitions
from data_assets.errors import StorageFullError
from data_assets.jobs import running_days
from data_assets.storage import DayLog, Lake

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "user_id,session_start,session_end,event_type,value\n"
FIRST, LAST = dt.date(2024, 3, 1), dt.date(2024, 3, 31)


@pytest.fixture
def config(tmp_path: Path) -> PipelineConfig:
    found = PipelineConfig(data_dir=tmp_path, start_date=FIRST, source=SourceConfig(settle_seconds=0))
    found.raw_dir.mkdir(parents=True)
    return found


def drop(config: PipelineConfig, name: str, *days: str, user: int = 1) -> Path:
    path = config.raw_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(f"{user},{day} 10:00:00,,view,1\n" for day in days))
    return path


def look(config: PipelineConfig) -> landing.Refresh:
    return landing.refresh(config, Lake(config.lake_dir), now_ns=time.time_ns())


def stale(config: PipelineConfig) -> set[str]:
    return set(landing.stale_days(look(config).ledger, DayLog(config.lake_dir), first=FIRST, last=LAST))


def finish(config: PipelineConfig) -> None:
    """As if every stale day had been run."""
    log = DayLog(config.lake_dir)
    for day, mark in landing.stale_days(look(config).ledger, log, first=FIRST, last=LAST).items():
        log.finish(day, mark)


def test_the_ledger_has_a_row_for_each_file_and_day(config: PipelineConfig) -> None:
    drop(config, "2024-03-02.csv", "2024-03-01", "2024-03-02", "2024-03-02", "nonsense", "1999-01-01")
    ledger = look(config).ledger
    assert ledger.schema == LANDED_FILES.schema
    # The unreadable start and the one before start_date count for the home day, which the file's name tells.
    assert ledger.select("day", "rows", "home_day").rows() == [
        (dt.date(2024, 3, 1), 1, dt.date(2024, 3, 2)),
        (dt.date(2024, 3, 2), 4, dt.date(2024, 3, 2)),
    ]
    assert Lake(config.lake_dir).current("landed_files", None) is not None


def test_a_name_that_tells_no_format_is_ignored_and_named(config: PipelineConfig) -> None:
    drop(config, "2024-03-02.csv", "2024-03-02")
    drop(config, "2024-03-02.csv.bak", "2024-03-02")
    looked = look(config)
    assert looked.ledger["path"].to_list() == ["2024-03-02.csv"]
    assert looked.listing.ignored == {"2024-03-02.csv.bak": "its name tells no format that can be read"}


def test_a_file_that_could_not_be_opened_is_looked_at_again(config: PipelineConfig) -> None:
    """Letting it be read changes neither its size nor its time."""
    drop(config, "2024-03-02.csv", "2024-03-02")
    ledger = look(config).ledger
    unread = ledger.with_columns(content_hash=pl.lit(""), error=pl.lit("cannot be opened"), rows=pl.lit(0, pl.Int64))
    Lake(config.lake_dir).write(LANDED_FILES, None, unread.lazy(), {})
    assert look(config).ledger.equals(ledger)
    assert look(config).read == ()


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("events_2024-03-05.csv", dt.date(2024, 3, 5)),
        ("20240305.csv", dt.date(2024, 3, 5)),
        ("date=2024-03-05/part.csv", dt.date(2024, 3, 5)),
        ("2024-03-06/x_2024_03_05.csv", dt.date(2024, 3, 5)),
        ("2024-13-45.csv", None),
        ("order_120240305.csv", None),
    ],
)
def test_home_day_in_a_name(name: str, home: dt.date | None) -> None:
    assert landing.home_day_in_name(name) == home


def test_home_day_without_a_date_in_the_name(config: PipelineConfig) -> None:
    drop(config, "events.csv", "2024-03-09", "2024-03-07", "?")
    nothing = drop(config, "nothing.csv", "?")
    os.utime(nothing, (dt.datetime(2024, 3, 20, tzinfo=dt.UTC).timestamp(),) * 2)
    homes = dict(look(config).ledger.select("path", "home_day").iter_rows())
    assert homes == {"events.csv": dt.date(2024, 3, 7), "nothing.csv": dt.date(2024, 3, 20)}


def test_exactly_the_days_that_a_file_touches_are_stale(config: PipelineConfig) -> None:
    drop(config, "a.csv", "2024-03-01", "2024-03-02")
    drop(config, "b.csv", "2024-03-04")
    assert stale(config) == {"2024-03-01", "2024-03-02", "2024-03-04"}
    finish(config)
    assert stale(config) == set()
    drop(config, "late.csv", "2024-03-02")
    assert stale(config) == {"2024-03-02"}, "a late row re-runs its day"
    finish(config)
    drop(config, "a.csv", "2024-03-01", "2024-03-03", user=7)
    assert stale(config) == {"2024-03-01", "2024-03-02", "2024-03-03"}, "the old days and the new ones"
    finish(config)
    (config.raw_dir / "b.csv").unlink()
    assert stale(config) == {"2024-03-04"}, "a removed file re-runs its day, which is empty now"
    finish(config)
    assert stale(config) == set()


def test_a_touched_file_with_the_same_content_changes_nothing(config: PipelineConfig) -> None:
    path = drop(config, "a.csv", "2024-03-01")
    finish(config)
    os.utime(path, (0, 0))
    looked = look(config)
    assert (looked.read, stale(config)) == ((), set())


def test_content_that_changes_under_the_same_size_is_seen(config: PipelineConfig) -> None:
    path = drop(config, "a.csv", "2024-03-01", user=1)
    finish(config)
    before = path.stat()
    drop(config, "a.csv", "2024-03-01", user=2)
    assert path.stat().st_size == before.st_size
    assert stale(config) == {"2024-03-01"}


def test_another_mapping_makes_every_day_stale(config: PipelineConfig) -> None:
    drop(config, "a.csv", "2024-03-01")
    finish(config)
    assert stale(config.model_copy(update={"precision": 5})) == {"2024-03-01"}


def test_a_lost_ledger_is_made_again(config: PipelineConfig) -> None:
    drop(config, "a.csv", "2024-03-01")
    first = look(config).ledger
    finish(config)
    for name in (".current.json", "data.parquet"):
        (config.lake_dir / "landed_files" / name).unlink()
    assert look(config).ledger.equals(first)
    assert stale(config) == set()


def test_names_that_are_not_looked_at(config: PipelineConfig) -> None:
    for name in (".hidden.csv", "_x.csv", "a.csv.tmp", "a.csv.part", "_folder/a.csv", ".folder/a.csv"):
        drop(config, name, "2024-03-01")
    (config.raw_dir / "notes.doc").write_text("x")
    os.mkfifo(config.raw_dir / "pipe.csv")
    (config.raw_dir / "link.csv").symlink_to("/etc/hostname")
    odd = drop(config, "a[1]*.csv", "2024-03-02")
    listing = landing.list_files(config, time.time_ns())
    assert [f.path for f in listing.files] == [odd.name]
    assert set(listing.ignored) == {"notes.doc", "pipe.csv", "link.csv"}, "nothing is skipped silently"
    assert stale(config) == {"2024-03-02"}


def test_a_file_that_still_changes_waits(config: PipelineConfig) -> None:
    slow = config.model_copy(update={"source": SourceConfig(settle_seconds=60)})
    path = drop(slow, "a.csv", "2024-03-01")
    looked = look(slow)
    assert (looked.listing.settling, looked.ledger.height) == (("a.csv",), 0)
    os.utime(path, (time.time() - 61,) * 2)
    assert stale(slow) == {"2024-03-01"}


def test_a_budget_leaves_files_for_the_next_look(config: PipelineConfig) -> None:
    for n in range(3):
        drop(config, f"{n}.csv", f"2024-03-0{n + 1}")
    nothing = landing.refresh(config, Lake(config.lake_dir), now_ns=time.time_ns(), budget_seconds=-1)
    assert len(nothing.left) == 3
    assert stale(config) == {"2024-03-01", "2024-03-02", "2024-03-03"}


def test_a_file_without_a_required_column_says_so_and_touches_its_days(config: PipelineConfig) -> None:
    (config.raw_dir / "x.csv").write_text("userid,session_start,event_type\n1,2024-03-05,view\n")
    ledger = look(config).ledger
    [(day, error)] = ledger.select("day", "error").rows()
    assert day == dt.date(2024, 3, 5)
    assert "user_id" in error
    assert "userid" in error
    assert "Nearest names: user_id -> userid?" in error


def test_a_file_that_breaks_keeps_touching_the_days_it_held(config: PipelineConfig) -> None:
    path = config.raw_dir / "a.parquet"
    pl.DataFrame({"user_id": [1], "session_start": ["2024-03-03"], "event_type": ["x"]}).write_parquet(path)
    finish(config)
    path.write_bytes(b"PAR1 this is no Parquet file PAR1")
    assert stale(config) == {"2024-03-03"}
    assert look(config).ledger["error"].null_count() == 0


SOUND = "{n},{day} 10:00:00,,view,1\n"
LONG = {  # files whose days are counted and split in one pass, by how many of their rows are of which day
    "of one day": [("2024-03-02", 3_000)],
    "with a late day": [("2024-03-02", 2_000), ("2024-03-01", 3)],
    "of several days": [("2024-03-01", 600), ("2024-03-02", 900), ("2024-03-03", 900)],
    "with rows that take a second look": [("2024-03-02", 2_000), (" 2024-03-02", 2)],
    "with refused rows": [("2024-03-02", 2_000), ("nonsense", 2), ("1999-01-01", 1)],
}


@pytest.mark.parametrize("deduplicate", ["none", "exact"])
@pytest.mark.parametrize("rows", LONG.values(), ids=LONG)
@pytest.mark.parametrize("wide", [False, True])
def test_a_file_is_split_by_the_look_at_it_and_the_parts_are_taken_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[tuple[str, int]],
    deduplicate: Literal["none", "exact"],
    wide: bool,
) -> None:
    if wide:  # row groups of so few rows as texts of this length allow
        monkeypatch.setattr(engine, "FEW_ROWS", 0)
        monkeypatch.setattr(storage, "LEAST_GROUP", 2)
        monkeypatch.setattr(storage, "GROUP_BYTES", 500)
    source = SourceConfig(settle_seconds=0, deduplicate=deduplicate)
    config = PipelineConfig(data_dir=tmp_path, start_date=FIRST, source=source)
    config.raw_dir.mkdir()
    lines = [SOUND.format(n=n, day=day) for day, count in rows for n in range(count)]
    path = config.raw_dir / "2024-03-02.csv"
    path.write_text(HEADER + "".join(lines))
    counted = look(config).ledger
    lake = Lake(tmp_path / "other")
    split = landing.refresh(config, lake, now_ns=time.time_ns(), is_made_next=lambda _: True).ledger
    assert split.equals(counted)
    parts = [path for path in config.scratch_dir.glob("split-*/**/*.parquet") if path.is_file()]
    assert landing.split_bytes(config, split) == sum(path.stat().st_size for path in parts) > 0
    days = [day.isoformat() for day in split["day"]]
    made = []
    for name in ("taken", "again"):
        (tmp_path / name).mkdir()
        staged, refused = staging.stage(config, split, days, tmp_path / name)
        assert not refused
        assert not list(config.scratch_dir.glob("split-*"))
        assert not landing.split_bytes(config, split)
        written = Lake(tmp_path / name / "lake")
        of_days = []
        for day, s in staged.items():
            refused_rows = s.quarantined.collect()
            version = written.write(tables()["raw_events"], day, s.valid, {}, s.ready)  # named after its bytes
            of_days.append((version.path.name, version.rows, refused_rows.to_dicts(), s.by_file.to_dicts()))
            with pq.ParquetFile(version.path) as file:
                assert (file.num_row_groups > 1) == (wide and version.rows > storage.GROUP_BYTES // 20)
        made.append(of_days)
    assert made[0] == made[1]


def test_parts_of_another_content_are_not_taken_and_many_files_or_a_full_disk_make_none(
    config: PipelineConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lake = Lake(config.lake_dir)
    drop(config, "2024-03-02.csv", "2024-03-02", user=1)
    landing.refresh(config, lake, now_ns=time.time_ns(), is_made_next=lambda _: True)
    drop(config, "2024-03-02.csv", "2024-03-02", user=2)
    ledger = look(config).ledger
    staged, _ = staging.stage(config, ledger, ["2024-03-02"], tmp_path)
    assert staged["2024-03-02"].valid.collect()["user_id"].to_list() == [2]
    assert len(list(config.scratch_dir.glob("split-*"))) == 1  # swept some day
    monkeypatch.setattr(landing, "MOST_SPLIT", -1)
    drop(config, "2024-03-04.csv", "2024-03-04")
    assert landing.refresh(config, lake, now_ns=time.time_ns(), is_made_next=lambda _: True).read == ("2024-03-04.csv",)
    assert len(list(config.scratch_dir.glob("split-*"))) == 1
    monkeypatch.undo()
    monkeypatch.setattr(landing.disk, "check_room", lambda *_: _raise(StorageFullError("full", "", path=tmp_path)))
    drop(config, "2024-03-03.csv", "2024-03-03")
    assert landing.refresh(config, lake, now_ns=time.time_ns(), is_made_next=lambda _: True).read == ("2024-03-03.csv",)
    assert len(list(config.scratch_dir.glob("split-*"))) == 1
    landing.drop_splits(config, ledger)  # which knows the file's later content alone
    assert len(list(config.scratch_dir.glob("split-*"))) == 1
    landing.drop_splits(config)
    assert not list(config.scratch_dir.glob("split-*"))


def _raise(problem: Exception) -> None:
    raise problem


def test_missing_days(config: PipelineConfig) -> None:
    drop(config, "a.csv", "2024-03-01", "2024-03-04")
    drop(config, "empty_2024-03-02.csv")
    assert landing.missing_days(landing.landed_days(look(config).ledger), last=LAST) == ["2024-03-02", "2024-03-03"]
    assert landing.files_without_rows(look(config).ledger) == ["empty_2024-03-02.csv"]


def test_a_look_at_many_unchanged_files_is_cheap(config: PipelineConfig) -> None:
    for n in range(300):
        drop(config, f"{n}.csv", "2024-03-01")
    assert len(look(config).read) == 300
    assert look(config).read == ()


# ---- The sensor ----------------------------------------------------------------------------------------------------


def test_a_tick_asks_once_for_each_content() -> None:
    first = sensors.decide({"2024-03-01": "a", "2024-03-02": "b", "2024-03-05": "c"}, None, set())
    assert [r[:2] for r in first.ranges] == [("2024-03-01", "2024-03-02"), ("2024-03-05", "2024-03-05")]
    again = sensors.decide({"2024-03-01": "a", "2024-03-02": "b", "2024-03-05": "c"}, first.cursor, set())
    assert again.ranges == ()
    failed = sensors.decide({"2024-03-05": "c"}, again.cursor, set())
    assert failed.ranges == (), "a day that failed is not asked for again"
    changed = sensors.decide({"2024-03-05": "d"}, failed.cursor, set())
    back = sensors.decide({"2024-03-05": "c"}, changed.cursor, set())
    keys = {r[2] for tick in (first, changed, back) for r in tick.ranges}
    assert len(keys) == 4, "content A, B, A again has three different run keys"


def test_a_tick_leaves_days_alone_that_a_run_is_working_on() -> None:
    busy = sensors.decide({"2024-03-01": "a"}, None, {"2024-03-01"})
    assert busy.ranges == ()
    assert sensors.decide({"2024-03-01": "a"}, busy.cursor, set()).ranges != ()


def test_the_cursor_stays_small() -> None:
    days = {f"2024-{m:02}-{d:02}": "0123456789abcdef" for m in range(1, 13) for d in range(1, 29)}
    asked = sensors.decide(days, None, set())
    done = sensors.decide({}, asked.cursor, set())
    assert json.loads(done.cursor)["asked"] == {}


def test_the_sensor_asks_for_the_days_of_new_files(config: PipelineConfig) -> None:
    drop(config, "a.csv", "2024-03-01", "2024-03-02", "2024-03-06")
    repository = build_definitions(config).get_repository_def()
    sensor = repository.get_sensor_def("raw_files")
    with DagsterInstance.ephemeral() as instance:
        with build_sensor_context(instance=instance, repository_def=repository) as context:
            tick = sensor.evaluate_tick(context)
        tags = [
            (r.tags["dagster/asset_partition_range_start"], r.tags["dagster/asset_partition_range_end"])
            for r in tick.run_requests or []
        ]
        assert tags == [("2024-03-01", "2024-03-02"), ("2024-03-06", "2024-03-06")]
        with build_sensor_context(instance=instance, cursor=tick.cursor, repository_def=repository) as context:
            quiet = sensor.evaluate_tick(context)
        assert not quiet.run_requests
        assert "nothing new to make" in (quiet.skip_message or "")


def test_the_sensor_sees_days_of_runs_in_progress(config: PipelineConfig) -> None:
    job = build_definitions(config).resolve_job_def("all_days")
    tags = {"dagster/asset_partition_range_start": "2024-03-01", "dagster/asset_partition_range_end": "2024-03-03"}
    with DagsterInstance.ephemeral() as instance:
        instance.create_run_for_job(job, tags=tags, status=DagsterRunStatus.STARTED)
        # Materialize in the UI: another job, one day.
        instance.create_run_for_job(job, tags={"dagster/partition": "2024-03-09"}, status=DagsterRunStatus.STARTING)
        instance.create_run_for_job(job, tags={"dagster/partition": "2024-03-10"}, status=DagsterRunStatus.SUCCESS)
        found = running_days(instance)
    assert found == {"2024-03-01", "2024-03-02", "2024-03-03", "2024-03-09"}


KILLED = """
import os, signal, sys
from pathlib import Path
from data_assets.jobs import ALIVE, alive
with alive(Path(sys.argv[1])) as tag:
    print(tag[ALIVE], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_run_of_a_killed_command_line_is_ended(config: PipelineConfig) -> None:
    job = build_definitions(config).resolve_job_def("all_days")
    command = (sys.executable, "-c", KILLED, config.data_dir)
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -9
    with DagsterInstance.ephemeral() as instance, jobs.alive(config.data_dir) as living:
        tags = {jobs.ALIVE: killed.stdout.strip(), "dagster/partition": "2024-03-01"}
        dead = instance.create_run_for_job(job, tags=tags, status=DagsterRunStatus.STARTED)
        other = instance.create_run_for_job(job, tags=living, status=DagsterRunStatus.STARTED)
        daemons = instance.create_run_for_job(job, status=DagsterRunStatus.STARTED)
        assert jobs.end_dead_runs(instance, config.data_dir) == [dead.run_id]
        statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses == {
        dead.run_id: DagsterRunStatus.FAILURE,
        other.run_id: DagsterRunStatus.STARTED,
        daemons.run_id: DagsterRunStatus.STARTED,
    }


def test_the_schedule_asks_for_yesterday(config: PipelineConfig) -> None:
    from dagster import build_schedule_context

    schedule = build_definitions(config).get_repository_def().get_schedule_def("yesterday")
    context = build_schedule_context(scheduled_execution_time=dt.datetime(2024, 3, 10, 1, tzinfo=dt.UTC))
    [request] = schedule.evaluate_tick(context).run_requests or []
    assert request.tags["dagster/asset_partition_range_start"] == "2024-03-09"
    assert request.tags["dagster/asset_partition_range_end"] == "2024-03-09"


def test_a_file_of_a_clock_far_ahead_is_read(config: PipelineConfig) -> None:
    """Its time says nothing of whether it is being written; one that is a little ahead may be."""
    slow = config.model_copy(update={"source": SourceConfig(settle_seconds=60)})
    now = 1_700_000_000_000_000_000
    for name, ahead in (("far.csv", 86_400), ("near.csv", 10), ("past.csv", -86_400)):
        path = slow.raw_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("user_id,session_start,event_type,value\n")
        os.utime(path, ns=(now, now + ahead * 1_000_000_000))
    assert landing.list_files(slow, now).settling == ("near.csv",)


def test_patterns_take_names_in_capitals_too(config: PipelineConfig) -> None:
    for name in ("EXPORT.CSV", "Sub/More.Json.GZ", "notes.md"):
        path = config.raw_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    listing = landing.list_files(config, 2 * 10**18)
    assert [f.path for f in listing.files] == ["EXPORT.CSV", "Sub/More.Json.GZ"]
    assert list(listing.ignored) == ["notes.md"]
