"""The jobs that make days and weeks, and their schedules.

Here: what a run consists of and how it is executed. Not here: when files ask for one (``sensors.py``).

One process does all steps of a run, one after the other: each of them already uses every core, and a process per step
would import everything again (docs/decisions/0003).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import getpass
import time
import uuid
from collections.abc import Collection, Iterator  # Dagster looks at a schedule's annotations
from pathlib import Path
from typing import TYPE_CHECKING

from dagster import (
    AssetSelection,
    DagsterRunStatus,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    RunRequest,
    RunsFilter,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorEvaluationContext,
    SkipReason,
    define_asset_job,
    in_process_executor,
    job,
    op,
    schedule,
    sensor,
)
from filelock import FileLock, Timeout

from data_assets import landing, periods
from data_assets.errors import visible
from data_assets.partitions import contiguous_ranges, days_between
from data_assets.retries import (
    FAILURE,
    PARTITION,
    PROCESS,
    RANGE_END,
    RANGE_START,
    STARTED_BY,
    days_of,
    lock_of,
    locks_folder,
)
from data_assets.runs import ALIVE
from data_assets.storage import DayLog, Lake

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun, JobDefinition, SensorDefinition
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
    from filelock import BaseFileLock

    from data_assets.config import PipelineConfig

BEGINS_WITHIN_SECONDS = 300
BUDGET_SECONDS = 40.0  # a tick is cut off by Dagster after 60 s; files not reached wait for the next one
ALL_DAYS = "all_days"
WEEKS, WEEKLY = "weeks", "weekly_report"
UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


def range_tags(first: str, last: str) -> dict[str, str]:
    """Run tags that ask for every day from ``first`` to ``last``, both included."""
    return {RANGE_START: first, RANGE_END: last}


def build_job() -> UnresolvedAssetJobDefinition:
    """Files to reports: the whole graph for a day or a range of days."""
    return define_asset_job(
        ALL_DAYS,
        selection=AssetSelection.all() - AssetSelection.assets(WEEKLY),
        executor_def=in_process_executor,
        description="Everything from the raw files to the reports, for a day or a range of days.",
    )


def build_schedule(config: PipelineConfig, job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """Yesterday's day, once a day at ``schedule.hour:schedule.minute``; else the days that are due, as configured.

    Not ``build_schedule_from_partitioned_job``: it asks for the last partition, which is today's unfinished day here.
    """
    every = config.schedule.cron_schedule
    if every is not None:
        return _due_days_schedule(config, job, every)

    @schedule(
        name="yesterday",
        job=job,
        cron_schedule=f"{config.schedule.minute} {config.schedule.hour} * * *",
        execution_timezone=config.timezone,
        default_status=_status(config),
        description="Makes yesterday's day once it is over. The sensor raw_files makes days as their files land.",
    )
    def yesterday(context: ScheduleEvaluationContext) -> RunRequest:
        now = context.scheduled_execution_time.astimezone(config.zone)
        day = (now.date() - dt.timedelta(days=1)).isoformat()
        return RunRequest(run_key=day, tags=range_tags(day, day))

    return yesterday


def _status(config: PipelineConfig) -> DefaultScheduleStatus:
    return DefaultScheduleStatus.RUNNING if config.schedule.enabled else DefaultScheduleStatus.STOPPED


def _due_days_schedule(
    config: PipelineConfig, job: UnresolvedAssetJobDefinition, cron_schedule: str
) -> ScheduleDefinition:
    """What the sensor does, at the times of ``schedule.every`` or ``schedule.cron`` instead of when files land."""

    @schedule(
        name="due_days",
        job=job,
        cron_schedule=cron_schedule,
        execution_timezone=config.timezone,
        default_status=_status(config),
        description="Makes the days whose files are new or changed since they were made, at the configured times.",
    )
    def due_days(context: ScheduleEvaluationContext) -> Iterator[RunRequest | SkipReason]:
        due = set(due_now(config)) - running_days(context.instance)
        if not due:
            yield SkipReason("Every day is made from the files that lie there, or a run is making it.")
        at = context.scheduled_execution_time.isoformat()
        for first, last in contiguous_ranges(due, config.runs.max_days):
            yield RunRequest(run_key=f"{at}:{first}..{last}", tags=range_tags(first, last))

    return due_days


def due_now(config: PipelineConfig) -> dict[str, str]:
    """After a look at the raw folder: days to make, with the fingerprint that they should have."""
    looked = landing.refresh(config, Lake(config.lake_dir), now_ns=time.time_ns(), budget_seconds=BUDGET_SECONDS)
    today = dt.datetime.now(config.zone).date()
    return landing.stale_days(looked.ledger, DayLog(config.lake_dir), first=config.start_date, last=today)


def running_days(instance: DagsterInstance) -> set[str]:
    """Days that any unfinished run is to make, whoever started it: sensor, schedule, UI or command line."""
    days: set[str] = set()
    for run in instance.get_runs(RunsFilter(statuses=UNFINISHED)):
        one = run.tags.get(PARTITION)
        first, last = run.tags.get(RANGE_START, one), run.tags.get(RANGE_END, one)
        if first and last:
            days.update(days_between(dt.date.fromisoformat(first), dt.date.fromisoformat(last)))
    return days


def build_weekly_job() -> UnresolvedAssetJobDefinition:
    """The reports of weeks. A job of its own: a run has partitions of one kind, and days must not wait for weeks."""
    return define_asset_job(
        WEEKS,
        selection=AssetSelection.assets(WEEKLY),
        executor_def=in_process_executor,
        description="The reports of a week or a range of weeks, from the days' stored tables.",
    )


def build_weekly_schedule(config: PipelineConfig, job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """Half an hour after ``schedule.hour:schedule.minute``, the finished weeks whose days are newer than their report.

    Every day, not on Mondays alone: late files change weeks that are long over.
    """
    minutes = (config.schedule.hour * 60 + config.schedule.minute + 30) % (24 * 60)

    @schedule(
        name="finished_weeks",
        job=job,
        cron_schedule=f"{minutes % 60} {minutes // 60} * * *",
        execution_timezone=config.timezone,
        default_status=DefaultScheduleStatus.RUNNING,
        description="Makes the reports of finished weeks in which a day was made since.",
    )
    def finished_weeks(context: ScheduleEvaluationContext) -> Iterator[RunRequest | SkipReason]:
        now = context.scheduled_execution_time.astimezone(config.zone)
        due = periods.due_weeks(config, now.date())
        if not due:
            yield SkipReason("Every finished week has a report that is newer than its days'.")
        for first, last in periods.ranges_of_weeks(due):
            yield RunRequest(run_key=f"{now.date()}:{first}..{last}", tags=range_tags(first, last))

    return finished_weeks


def build_retention(config: PipelineConfig) -> tuple[JobDefinition, ScheduleDefinition]:
    """Takes away what is too old, once a day, an hour after ``schedule.hour:schedule.minute``."""
    from data_assets import retention

    @op(name="take_away", description="What `data-assets retention` shows: docs/retention.md.")
    def take_away(context) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - Dagster reads no quoted annotation
        now = dt.datetime.now(dt.UTC)
        found = retention.apply(config, now.astimezone(config.zone).date(), running_days(context.instance))
        history = retention.apply_history(config, context.instance, now)
        for plan in (found, history):
            for thing in plan.goes:
                context.log.info("gone: %s %s, %d bytes", thing.kind, visible(thing.name), thing.size)
            for thing in plan.stays:
                context.log.warning("stays: %s %s: %s", thing.kind, visible(thing.name), visible(thing.why))

    @job(name="retention", executor_def=in_process_executor, description="Takes away what is older than configured.")
    def retention_job() -> None:
        take_away()

    daily = ScheduleDefinition(
        name="retention_daily",
        job=retention_job,
        cron_schedule=f"{config.schedule.minute} {(config.schedule.hour + 1) % 24} * * *",
        execution_timezone=config.timezone,
        default_status=DefaultScheduleStatus.RUNNING if config.retention.daily else DefaultScheduleStatus.STOPPED,
        description="Once a day, what is older than `retention:` allows.",
    )
    return retention_job, daily


@contextlib.contextmanager
def alive(data_dir: Path) -> Iterator[dict[str, str]]:
    """The tag of a run in this process, which others can tell from the run of a dead one.

    The daemon watches the processes that it starts; a run of the command line has nobody. It holds a lock, which the
    system lets go when the process dies, and names it in its tag.
    """
    folder = data_dir / ".alive"
    folder.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    with FileLock(folder / name, timeout=0):
        yield {ALIVE: name, STARTED_BY: f"{getpass.getuser()} on the command line"}
    (folder / name).unlink(missing_ok=True)


def end_dead_runs(instance: DagsterInstance, data_dir: Path) -> list[str]:
    """Mark runs whose process is gone as failed, so that they neither keep the pool nor hide their days.

    Dagster sees the end of a run's process as long as the code server that started it lives; after a restart of that,
    or of the machine, it would show the run as started for ever. The daemon makes such runs again.

    Returns:
        The runs' ids.
    """
    ended = []
    unfinished = instance.get_run_records(RunsFilter(statuses=UNFINISHED))
    _sweep_locks(instance, {record.dagster_run.run_id for record in unfinished})
    for record in unfinished:
        run = record.dagster_run
        lock = _lock_of_living(instance, data_dir, run)
        if lock is None:
            waits = run.tags.get(PROCESS) != run.run_id and days_of(run)  # other jobs hold no lock
            if waits and time.time() - (record.start_time or time.time()) > BEGINS_WITHIN_SECONDS:
                _end(instance, run, "It was started, but no step of it ever began: its process is gone.")
                ended.append(run.run_id)
            continue
        try:
            with lock:
                _end(instance, run, "Its process is gone: killed, or ended by a restart.")
                ended.append(run.run_id)
        except Timeout:
            continue
        Path(lock.lock_file).unlink(missing_ok=True)
    return ended


def _sweep_locks(instance: DagsterInstance, unfinished: Collection[str]) -> None:
    """Remove the lock files of runs that are over."""
    folder = locks_folder(instance)
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.name not in unfinished and time.time() - file.stat().st_mtime > BEGINS_WITHIN_SECONDS:
            file.unlink(missing_ok=True)


def _lock_of_living(instance: DagsterInstance, data_dir: Path, run: DagsterRun) -> BaseFileLock | None:
    """The lock that the run's process holds if it lives; None when there is none, or only that of the run before it."""
    if run.tags.get(PROCESS) == run.run_id:
        lock = lock_of(instance, run.run_id)
        return lock if Path(lock.lock_file).exists() else None  # else it runs on another machine
    name = run.tags.get(ALIVE)
    return FileLock(data_dir / ".alive" / name, timeout=0) if name and not run.parent_run_id else None


def _end(instance: DagsterInstance, run: DagsterRun, why: str) -> None:
    instance.add_run_tags(run.run_id, {FAILURE: "killed"})
    instance.report_run_failed(run, why)


def build_dead_runs_sensor(config: PipelineConfig) -> SensorDefinition:
    """Ends runs whose process is gone, whether or not the sensor for files is switched on."""

    @sensor(
        name="dead_runs",
        minimum_interval_seconds=30,
        default_status=DefaultSensorStatus.RUNNING,
        description="Ends runs whose process is gone, as after a restart of the machine; the daemon makes them again.",
    )
    def dead_runs(context: SensorEvaluationContext) -> SkipReason:
        ended = end_dead_runs(context.instance, config.data_dir)
        return SkipReason(f"Ended: {', '.join(ended)}" if ended else "Every run that is under way has its process.")

    return dead_runs
