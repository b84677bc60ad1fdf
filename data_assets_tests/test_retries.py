"""What is tried again and what is not, and what a run's tags say of it.

Here: kinds of failures, the guard in runs of this process, and runs of killed command lines. Not here: runs that the
daemon starts again (``test_deploy.py``), or where PostgreSQL goes away (``test_publish.py``).
"""

from __future__ import annotations

import datetime as dt
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import filelock
import polars as pl
import psycopg
import pytest
from dagster import (
    AssetKey,
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    Failure,
    RetryPolicy,
    build_run_status_sensor_context,
)

from data_assets import assets, cli, failures, jobs, partitions, retries
from data_assets.errors import (
    ConfigurationError,
    ContractError,
    DayFailedError,
    MissingColumnsError,
    PostgresUnavailableError,
    SourceFileError,
    StorageBusyError,
)

ROOT = Path(__file__).parents[1]
DAY = "2024-03-01"
HEADER = "user_id,session_start,session_end,event_type,value,metadata\n"


def caused(error, cause):
    error.__cause__ = cause
    return error


def full_disk():
    """What the engines themselves raise on a disk that is full, of which every Linux has one."""
    found = []
    for write in (
        lambda: pl.LazyFrame({"a": list(range(200_000))}).sink_parquet("/dev/full"),
        lambda: duckdb.sql("COPY (SELECT * FROM range(200000)) TO '/dev/full'"),
        lambda: Path("/dev/full").write_text("x" * 100_000),
    ):
        with pytest.raises((pl.exceptions.PolarsError, duckdb.Error, OSError)) as caught:
            write()
        found.append(caught.value)
    return found


def no_server():
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect("host=127.0.0.1 port=1 connect_timeout=2")
    return caught.value


def held(tmp_path):
    """What DuckDB says of a file that another process holds."""
    path = tmp_path / "held.duckdb"
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(duckdb.IOException) as caught:
            duckdb.connect(path)
        other.stdin.close()
    return caught.value


FAMILY = [
    (StorageBusyError("w", "h"), "transient"),
    (PostgresUnavailableError("w", "h"), "transient"),
    (ConfigurationError("w", "h"), "configuration"),
    (ContractError("w", "h", table="t"), "data"),
    (DayFailedError("w", "h", table="t", day=DAY), "data"),
    (SourceFileError("w", "h", path="p"), "data"),
    (MissingColumnsError("p", ["a"], ["b"]), "data"),
]
SYSTEM = [
    *((OSError(number, os.strerror(number)), "transient") for number in (errno.EIO, errno.EAGAIN, errno.ESTALE)),
    (TimeoutError(), "transient"),
    (ConnectionResetError(), "transient"),
    (filelock.Timeout("a.lock"), "transient"),
    *(
        (OSError(number, os.strerror(number)), "storage")
        for number in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOENT, errno.EMFILE)
    ),
]
OTHERS = [
    (Failure("no day", allow_retries=False), "data"),
    (MemoryError(), "configuration"),
    (duckdb.OutOfMemoryException("no more"), "configuration"),
    (KeyboardInterrupt(), "killed"),
    (ZeroDivisionError(), "bug"),
    (KeyError("soon"), "bug"),
    (pl.exceptions.ColumnNotFoundError("no such"), "bug"),
    (caused(RuntimeError("wrapped"), ZeroDivisionError()), "bug"),
    (caused(RuntimeError("wrapped"), StorageBusyError("w", "h")), "transient"),
    (caused(SourceFileError("w", "h", path="p"), OSError(errno.EIO, "")), "transient"),
    (caused(SourceFileError("w", "h", path="p"), OSError(errno.EACCES, "")), "storage"),
    (caused(SourceFileError("w", "h", path="p"), ValueError()), "data"),
    (caused(DayFailedError("w", "h", table="t", day=DAY), OSError(errno.EIO, "")), "data"),
]


@pytest.mark.parametrize(("error", "kind"), [*FAMILY, *SYSTEM, *OTHERS], ids=lambda e: repr(e)[:60])
def test_each_failure_has_its_kind(error, kind):
    assert failures.kind_of(error) == kind


def test_kinds_of_what_the_engines_really_raise(tmp_path):
    assert [failures.kind_of(error) for error in full_disk()] == ["storage"] * 3
    assert failures.kind_of(no_server()) == "transient"
    assert failures.kind_of(held(tmp_path)) == "transient"
    (tmp_path / "text.duckdb").write_text("no database " * 1000)
    with pytest.raises(duckdb.Error) as damaged:
        duckdb.connect(tmp_path / "text.duckdb")
    assert failures.kind_of(damaged.value) == "storage"


def test_causes_that_go_in_a_circle_end():
    one, other = RuntimeError("a"), RuntimeError("b")
    one.__cause__, other.__cause__ = other, one
    assert failures.kind_of(one) == "bug"


def test_every_kind_is_explained():
    assert set(failures.MEANINGS) == set(failures.KINDS)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["DagsterExecutionStepExecutionError", "StorageBusyError"], "transient"),
        (["DagsterUserCodeLoadError", "ConfigurationError"], "configuration"),
        (["Failure"], "data"),
        (["ZeroDivisionError"], "bug"),
        ([], "bug"),
    ],
)
def test_what_is_left_of_an_error_in_the_history_has_a_kind_too(names, kind):
    assert failures.kind_of_recorded(names) == kind


# --- in a run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, project_at):
    raw = tmp_path / "data" / "raw"
    raw.mkdir(parents=True)
    (tmp_path / "pipeline.yaml").write_text("start_date: 2024-02-26\nsource: {settle_seconds: 0}\n")
    rows = [f"{n},{DAY}T08:00:{n:02d},{DAY}T09:00:00,{'buy' if n % 2 else 'view'},{n},\n" for n in range(20)]
    (raw / f"events_{DAY}.csv").write_text(HEADER + "".join(rows))
    return project_at(tmp_path, tmp_path)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(retries, "POLICY", RetryPolicy(max_retries=3, delay=0.01))


def tags_of(project, result):
    return project.instance.get_run_by_id(result.run_id).tags


def attempts(result, step):
    """How often a step was begun."""
    started = {DagsterEventType.STEP_START, DagsterEventType.STEP_RESTARTED}
    return sum(e.event_type in started and e.step_key == step for e in result.all_events)


def failing(times, error):
    """A function that raises the first ``times`` times, and then is ``real``."""
    left = [times]

    def make(real):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] >= 0:
                raise error
            return real(*args, **kwargs)

        return call

    return make


@pytest.mark.parametrize(
    ("error", "times", "tried", "kind"),
    [
        (OSError(errno.EIO, "the disk says no"), 2, 3, None),
        (StorageBusyError("held", "wait"), 1, 2, None),
        (StorageBusyError("held", "wait"), 9, 2, "transient"),  # it has waited for minutes each time
        (OSError(errno.ESTALE, "gone"), 9, 4, "transient"),
        (OSError(errno.ENOSPC, "full"), 1, 1, "storage"),
        (ZeroDivisionError("a bug"), 1, 1, "bug"),
        (ConfigurationError("wrong", "mend it"), 1, 1, "data"),  # of one day: it is refused, and no day is left
    ],
    ids=lambda p: repr(p)[:40],
)
def test_only_what_can_heal_is_tried_again(project, quick, monkeypatch, error, times, tried, kind):
    monkeypatch.setattr(assets.metrics, "event_distribution", failing(times, error)(assets.metrics.event_distribution))
    result = project.run(DAY, only=["landed_files", "raw_events", "quarantined_events", "event_distribution"])
    assert attempts(result, "event_distribution") == tried
    assert result.success is (kind is None)
    tags = tags_of(project, result)
    assert tags.get(retries.FAILURE) == kind
    assert (tags[retries.STARTED_BY], tags[retries.DAYS]) == ("the UI", DAY)
    if kind is None:
        assert project.materialized("event_distribution") == [DAY]


@pytest.mark.parametrize(("method", "step"), [("write", "ingest"), ("current", "session_metrics")])
def test_the_storage_is_inside_the_guard_too(project, quick, monkeypatch, method, step):
    from data_assets.storage import Lake

    if step == "session_metrics":
        assert project.run(DAY, only=["landed_files", "raw_events", "quarantined_events"]).success
    real = getattr(Lake, method)
    only = ["session_metrics"] if step == "session_metrics" else ["landed_files", "raw_events", "quarantined_events"]
    monkeypatch.setattr(Lake, method, failing(1, OSError(errno.EIO, "once"))(real))
    if step == "ingest":  # the ledger is written by landed_files, which has its own attempts
        monkeypatch.setattr(
            Lake, method, lambda self, contract, *rest: _once(self, real, contract, rest, OSError(errno.EIO, "once"))
        )
        _once.left = 1
    result = project.run(DAY, only=only)
    assert result.success
    assert attempts(result, step) == 2


def _once(lake, real, contract, rest, error):
    if contract.name == "quarantined_events" and _once.left:
        _once.left -= 1
        raise error
    return real(lake, contract, *rest)


def test_the_wait_grows_and_is_spread_and_ends():
    waits = [[retries.POLICY.calculate_delay(n + 1) for _ in range(200)] for n in range(retries.POLICY.max_retries)]
    assert [max(of) <= most for of, most in zip(waits, (2, 6, 14, 30, 62), strict=True)] == [True] * 5
    assert all(min(of) < max(of) / 2 for of in waits)
    assert max(waits[4]) > 14  # else the longest would be no longer than the third


def test_a_run_in_place_of_a_failed_one_does_not_keep_its_kind(project, quick, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(assets.metrics, "outliers", failing(9, ZeroDivisionError())(assets.metrics.outliers))
        failed = project.run(DAY)
    inherited = {retries.FAILURE: tags_of(project, failed)[retries.FAILURE]}
    assert inherited == {retries.FAILURE: "bug"}
    again = _job(project).execute_in_process(
        instance=project.instance, tags=jobs.range_tags(DAY, DAY) | inherited, raise_on_error=False
    )
    assert again.success
    assert tags_of(project, again)[retries.FAILURE] == retries.NO_FAILURE


def _job(project):
    from data_assets.definitions import build_definitions

    return build_definitions(project.config).resolve_job_def(jobs.ALL_DAYS)


@pytest.mark.parametrize(
    ("tags", "who"),
    [
        ({}, "the UI"),
        ({"dagster/sensor_name": "raw_files"}, "sensor raw_files"),
        ({"dagster/schedule_name": "yesterday"}, "schedule yesterday"),
        ({"dagster/backfill": "abcd"}, "backfill abcd"),
        ({retries.STARTED_BY: "kim on the command line"}, "kim on the command line"),
    ],
)
def test_who_started_a_run(tags, who):
    assert retries.started_by(tags) == who


@pytest.mark.parametrize(
    ("tags", "days"),
    [
        ({}, ""),
        ({retries.PARTITION: "2024-03-01"}, "2024-03-01"),
        (jobs.range_tags("2024-03-01", "2024-03-01"), "2024-03-01"),
        (jobs.range_tags("2024-03-01", "2024-03-09"), "2024-03-01 to 2024-03-09"),
    ],
)
def test_which_days_a_run_is_to_make(tags, days):
    assert retries.days_in_words(DagsterRun(job_name="all_days", tags=tags)) == days


# --- killed --------------------------------------------------------------------------------------------------------


def evaluate_failure_sensor(project, run):
    """What the daemon does with the sensor when it sees the failed run."""
    [event] = [
        r.event_log_entry.dagster_event
        for r in project.instance.get_records_for_run(run.run_id, of_type=DagsterEventType.RUN_FAILURE).records
    ]
    context = build_run_status_sensor_context(
        "failure_kinds", event, project.instance, project.instance.get_run_by_id(run.run_id)
    ).for_run_failure()
    retries.build_failure_sensor()(context)
    return project.instance.get_run_by_id(run.run_id).tags.get(retries.FAILURE)


def test_a_run_whose_process_is_gone_is_named_killed(project):
    run = project.instance.create_run_for_job(_job(project), tags=jobs.range_tags(DAY, DAY))
    project.instance.report_run_failed(run, "Run process terminated by signal 9 (SIGKILL).")
    assert evaluate_failure_sensor(project, run) == "killed"


def test_a_run_that_failed_by_itself_keeps_its_kind(project, quick, monkeypatch):
    monkeypatch.setattr(assets.metrics, "outliers", failing(9, ZeroDivisionError())(assets.metrics.outliers))
    run = project.instance.get_run_by_id(project.run(DAY).run_id)
    assert evaluate_failure_sensor(project, run) == "bug"


def test_the_process_of_a_run_holds_its_lock_until_it_comes_to_the_next(project, quick, monkeypatch):
    seen = []

    def look(*args):
        [run] = project.instance.get_runs(jobs.RunsFilter(statuses=jobs.UNFINISHED))
        assert run.tags[retries.PROCESS] == run.run_id
        assert jobs.end_dead_runs(project.instance, project.config.data_dir) == []
        seen.append(run.run_id)
        raise ZeroDivisionError

    monkeypatch.setattr(assets.metrics, "event_distribution", look)
    only = ["landed_files", "raw_events", "quarantined_events", "event_distribution"]
    for _ in range(2):
        project.run(DAY, only=only)
    first, second = (retries.lock_of(project.instance, run_id) for run_id in seen)
    with first:
        pass
    with pytest.raises(filelock.Timeout):
        second.acquire()


def test_a_run_is_ended_when_its_process_is_gone_and_only_then(project):
    def run(parent=None, **tags):
        made = project.instance.create_run_for_job(
            _job(project),
            tags=jobs.range_tags(DAY, DAY) | tags,
            status=DagsterRunStatus.STARTED,
            root_run_id=parent,
            parent_run_id=parent,
        )
        return made.run_id

    def mark(run_id):
        project.instance.add_run_tags(run_id, {retries.PROCESS: run_id})
        return retries.lock_of(project.instance, run_id)

    gone, here, elsewhere = run(), run(), run()
    Path(mark(gone).lock_file).touch()  # as the end of a process leaves it: the file, and nobody who holds it
    mark(elsewhere)  # another machine has its lock
    inherited = run(gone, **{retries.PROCESS: gone, jobs.ALIVE: "of the run before"})
    with mark(here):
        assert jobs.end_dead_runs(project.instance, project.config.data_dir) == [gone]
    runs = {r.run_id: r for r in project.instance.get_runs()}
    assert {r.run_id for r in runs.values() if r.status == DagsterRunStatus.STARTED} == {here, elsewhere, inherited}
    assert runs[gone].tags[retries.FAILURE] == "killed"


def test_the_locks_of_runs_that_are_over_are_swept(project, monkeypatch):
    over, new = retries.lock_of(project.instance, "over"), retries.lock_of(project.instance, "new")
    for lock in (over, new):
        Path(lock.lock_file).touch()
    long_ago = time.time() - jobs.BEGINS_WITHIN_SECONDS - 1
    os.utime(over.lock_file, (long_ago, long_ago))
    jobs.end_dead_runs(project.instance, project.config.data_dir)
    assert [p.name for p in retries.locks_folder(project.instance).iterdir()] == ["new"]


def test_a_run_that_never_came_to_its_first_step_is_ended_after_a_while(project, monkeypatch):
    job = _job(project)
    days = project.instance.create_run_for_job(job, tags=jobs.range_tags(DAY, DAY), status=DagsterRunStatus.STARTING)
    other = project.instance.create_run_for_job(job, status=DagsterRunStatus.STARTING)
    for run in (days, other):
        started = DagsterEvent(DagsterEventType.RUN_START.value, job_name=run.job_name)
        project.instance.report_dagster_event(started, run.run_id)
    assert jobs.end_dead_runs(project.instance, project.config.data_dir) == []
    monkeypatch.setattr(jobs, "BEGINS_WITHIN_SECONDS", -1)
    assert jobs.end_dead_runs(project.instance, project.config.data_dir) == [days.run_id]


FOUR_DAYS = partitions.days_between(dt.date(2024, 3, 1), dt.date(2024, 3, 4))
RUN = [sys.executable, "-m", "data_assets.cli", "run"]


def _ended_in_third_run(folder, number):
    """Real processes: four days, a run each; what the command says that gets the signal in its third, its exit code."""
    raw = folder / "data" / "raw"
    raw.mkdir(parents=True)
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / "pipeline.yaml").write_text("start_date: 2024-02-26\nsource: {settle_seconds: 0}\nruns: {max_days: 1}\n")
    for day in FOUR_DAYS:
        (raw / f"events_{day}.csv").write_text(HEADER + f"1,{day}T08:00:00,{day}T09:00:00,buy,1,\n")
    with subprocess.Popen(
        RUN, cwd=folder, env=_kept(), stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as first:  # fmt: skip
        for line in first.stderr:
            if line.startswith(b"2024-03-03"):
                break
        deadline = time.monotonic() + 60
        while not _unfinished(folder) and time.monotonic() < deadline:  # its third run has begun
            time.sleep(0.01)
        first.send_signal(number)
        said, more = first.communicate()
    return said.decode(), more.decode(), first.returncode


def _kept():
    return {k: v for k, v in os.environ.items() if not k.startswith(("DAGSTER_", "DATA_ASSETS_"))}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_command_line_that_is_asked_to_end_begins_no_other_run(tmp_path, number):
    said, more, code = _ended_in_third_run(tmp_path, number)
    assert code == 1
    assert "run 4 of 4" not in more
    made, left = re.search(r"^(\d) of 4 days done.*^FAILED (\S+)", said, re.MULTILINE | re.DOTALL).groups()
    assert (made, left) in (("2", "2024-03-03"), ("3", "2024-03-04"))  # by whether the third still came to its end
    assert f"(keeps what it had): {cli.INTERRUPTED}" in said
    done = subprocess.run(RUN, cwd=tmp_path, env=_kept(), capture_output=True, text=True, check=False)
    assert f"{4 - int(made)} of {4 - int(made)} days done" in done.stdout


def test_a_killed_command_line_is_named_and_the_next_does_only_the_rest(tmp_path):
    """Killed in the third run, the next one makes the third and the fourth."""
    _ended_in_third_run(tmp_path, signal.SIGKILL)
    done = subprocess.run(RUN, cwd=tmp_path, env=_kept(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if " run " in line] == [
        "2024-03-03 to 2024-03-03: run 1 of 2",
        "2024-03-04 to 2024-03-04: run 2 of 2",
    ]
    with _history(tmp_path) as instance:
        runs = list(reversed(instance.get_runs()))
        assert [r.tags[retries.RANGE_START] for r in runs] == [*FOUR_DAYS[:3], *FOUR_DAYS[2:]]
        assert [r.status for r in runs if r.tags.get(retries.FAILURE) == "killed"] == [DagsterRunStatus.FAILURE]
        assert [r.tags[retries.FAILURE] for r in runs if retries.FAILURE in r.tags] == ["killed"]
        assert {r.tags[retries.STARTED_BY].partition(" ")[2] for r in runs} == {"on the command line"}
        assert sorted(instance.get_materialized_partitions(AssetKey("daily_report"))) == FOUR_DAYS


def _history(folder):
    """Dagster's history below ``folder``, whose settings name their folders relative to it."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        return DagsterInstance.from_config(str(folder))
    finally:
        os.chdir(here)


def _unfinished(folder):
    with _history(folder) as instance:
        return [r for r in instance.get_runs() if r.tags[retries.RANGE_START] == "2024-03-03" and not r.is_finished]


def test_ranges_are_cut():
    first, last = "2024-02-27", "2024-03-03"
    days = partitions.days_between(dt.date.fromisoformat(first), dt.date.fromisoformat(last))
    parts = [("2024-02-27", "2024-02-29"), ("2024-03-01", "2024-03-03")]
    assert partitions.contiguous_ranges(days, 3) == parts
    assert partitions.contiguous_ranges([*days, "2024-03-05"], 3) == [*parts, ("2024-03-05", "2024-03-05")]
    assert partitions.contiguous_ranges(days) == [(first, last)]
    assert partitions.cut([(first, last), ("2024-04-01", "2024-04-01")], 3) == [*parts, ("2024-04-01", "2024-04-01")]
    assert partitions.cut([], 3) == []
