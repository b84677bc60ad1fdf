"""The edge between Dagster and the project: what can heal is tried again, and a run's tags say why it failed.

Here: one guard, around each asset's function and each IO manager's method, the tags of a run, and the sensor that names
runs whose process is gone. Not here: what kind a failure is (``failures.py``), or the runs that the daemon starts in
place of killed ones (``run_retries`` in dagster.yaml; docs/operation.md).

There is no ``retry_policy`` on the assets: Dagster's would try a bug and a cancelled run again as well.
"""

import contextlib
import datetime as dt
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckExecutionContext,
    AssetExecutionContext,
    Backoff,
    DagsterInstance,
    DagsterInvariantViolationError,
    DagsterRun,
    DefaultSensorStatus,
    InputContext,
    Jitter,
    OutputContext,
    RetryPolicy,
    RetryRequested,
    RunFailureSensorContext,
    SensorDefinition,
    run_failure_sensor,
)
from filelock import FileLock
from sqlalchemy.exc import SQLAlchemyError

from data_assets.errors import StorageBusyError
from data_assets.failures import Kind, as_disk_error, kind_of, kind_of_recorded

# Up to 2, 6, 14, 30 and 62 seconds, each at random from 0 on: two minutes at most, about one on average.
# A lock is tried again once: it has been waited for already, for minutes.
POLICY = RetryPolicy(max_retries=5, delay=2, backoff=Backoff.EXPONENTIAL, jitter=Jitter.FULL)
FAILURE = "data_assets/failure"
NO_FAILURE = "none"
STARTED_BY = "data_assets/started_by"
DAYS = "data_assets/days"
RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
PARTITION = "dagster/partition"
PROCESS = ".dagster/data_assets_process"
"""The tag of a run that a process works on: the run's own id, and the name of the lock that the process holds.

The UI hides tags with Dagster's dot: this one is for machines."""
_held: dict[str, FileLock] = {}

Context = AssetExecutionContext | AssetCheckExecutionContext | InputContext | OutputContext


@contextlib.contextmanager
def edge(context: Context) -> Iterator[None]:
    """Turn what can heal into a retry, and write the kind of what has failed for good into the run's tags."""
    found = _running(context)
    if found is None:  # somebody reads a table outside a run
        yield
        return
    instance, run, attempt = found
    try:
        _begin(instance, run)
        yield
    except BaseException as problem:
        kind = kind_of(problem)
        most = min(1 if isinstance(problem, StorageBusyError) else POLICY.max_retries, POLICY.max_retries)
        if kind == "transient" and attempt < most:
            raise RetryRequested(most, POLICY.calculate_delay(attempt + 1)) from problem
        if kind != "killed":  # a run that was cancelled says so itself
            # The history may lie on the disk that is full: then the failure itself is what must be told.
            with contextlib.suppress(SQLAlchemyError, OSError):
                instance.add_run_tags(run.run_id, {FAILURE: kind})
        said = as_disk_error(problem) if kind == "storage" else None
        if said is not None:
            raise said from problem
        raise


def _running(context: Context) -> tuple[DagsterInstance, DagsterRun, int] | None:
    if isinstance(context, InputContext | OutputContext):
        try:
            step = context.step_context
        except DagsterInvariantViolationError:
            return None
        return step.instance, step.dagster_run, step.previous_attempt_count
    op = context.op_execution_context
    return op.instance, op.run, op.retry_number


def guarded(compute: Callable[..., Any]) -> Callable[..., Any]:
    """``compute``, a function of an asset or a check with the context first, inside the edge."""
    if inspect.isgeneratorfunction(compute):

        @functools.wraps(compute)
        def events(context: Any, **inputs: Any) -> Iterator[Any]:  # noqa: ANN401 - Dagster's own annotations hold
            with edge(context):
                yield from compute(context, **inputs)

        return events

    @functools.wraps(compute)
    def result(context: Any, **inputs: Any) -> Any:  # noqa: ANN401
        with edge(context):
            return compute(context, **inputs)

    return result


def guarded_method(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` of an IO manager, with the context first, inside the edge."""

    @functools.wraps(method)
    def result(self: Any, context: Any, *given: Any) -> Any:  # noqa: ANN401
        with edge(context):
            return method(self, context, *given)

    return result


def _begin(instance: DagsterInstance, run: DagsterRun) -> None:
    """At a run's first step: hold its lock, and say who started it and over how many days, and that it has not failed.

    The system lets go of the lock when the process dies, however that happens (``jobs.end_dead_runs``). A run that is
    made in place of a failed one inherits its tags.
    """
    if run.run_id in _held:
        return
    while _held:  # this process has come to its next run
        _held.popitem()[1].release()
    lock = lock_of(instance, run.run_id)
    lock.acquire()
    _held[run.run_id] = lock
    days = days_in_words(run)
    tags = {PROCESS: run.run_id, STARTED_BY: started_by(run.tags)} | ({DAYS: days} if days else {})
    tags |= {FAILURE: NO_FAILURE} if FAILURE in run.tags else {}
    if new := {name: value for name, value in tags.items() if run.tags.get(name) != value}:
        instance.add_run_tags(run.run_id, new)


def lock_of(instance: DagsterInstance, run_id: str) -> FileLock:
    """The lock that the process of a run holds; it lies with the history, which tells of the run."""
    folder = locks_folder(instance)
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / run_id, timeout=0, thread_local=False)


def locks_folder(instance: DagsterInstance) -> Path:
    """Where the locks are, each called by the id of its run."""
    return Path(instance.storage_directory()) / "alive"


def started_by(tags: Mapping[str, str]) -> str:
    """Who asked for a run, in words."""
    for tag, who in (
        (STARTED_BY, ""),
        ("dagster/sensor_name", "sensor "),
        ("dagster/schedule_name", "schedule "),
        ("dagster/backfill", "backfill "),
    ):
        if tag in tags:
            return f"{who}{tags[tag]}"
    return "the UI"


def days_of(run: DagsterRun) -> int:
    """How many days (or weeks' worth of them) a run is to make; 0 when it has no partition."""
    one = run.tags.get(PARTITION)
    first, last = run.tags.get(RANGE_START, one), run.tags.get(RANGE_END, one)
    return (dt.date.fromisoformat(last) - dt.date.fromisoformat(first)).days + 1 if first and last else 0


def days_in_words(run: DagsterRun) -> str:
    """The days of a run, for its tag; "" when it has none."""
    one = run.tags.get(PARTITION, "")
    first, last = run.tags.get(RANGE_START, one), run.tags.get(RANGE_END, one)
    return first if first == last else f"{first} to {last}"


def build_failure_sensor() -> SensorDefinition:
    """Names the kind of failed runs that could not do so themselves, because their process was gone."""

    @run_failure_sensor(
        name="failure_kinds",
        default_status=DefaultSensorStatus.RUNNING,
        description="Writes the tag data_assets/failure of runs whose process ended without a word: killed.",
    )
    def failure_kinds(context: RunFailureSensorContext) -> None:
        run = context.instance.get_run_by_id(context.dagster_run.run_id)
        parent = run and run.parent_run_id and context.instance.get_run_by_id(run.parent_run_id)
        inherited = parent.tags.get(FAILURE) if parent else None
        if run is None or run.tags.get(FAILURE, NO_FAILURE) not in {NO_FAILURE, inherited}:
            return
        context.instance.add_run_tags(run.run_id, {FAILURE: _kind_of_run(context)})

    return failure_kinds


def _kind_of_run(context: RunFailureSensorContext) -> Kind:
    """Killed, unless the history has an error that a living process wrote."""
    event = context.failure_event.event_specific_data
    steps = [e.step_failure_data.error for e in context.get_step_failure_events()]
    told = [name for error in (getattr(event, "error", None), *steps) for name in _names(error)]
    return kind_of_recorded(told) if told and "DagsterExecutionInterruptedError" not in told else "killed"


def _names(error: Any) -> Iterator[str]:  # noqa: ANN401 - Dagster's record of an error
    while error is not None:
        yield error.cls_name or ""
        error = error.cause
