"""What is old enough to go: raw files, days of the lake, reports, Dagster's history, the records of runs.

Here: which things may go and why the others stay, and taking them away so that a crash at any point only leaves work
for the next time. Not here: how the ledger goes on without a file (``landing.py``), when this runs (``jobs.py``) or how
it is shown (``commands.py``).

A raw file goes only when each of its rows is accounted for in days that are finished: the notes of every day that it
touches name it with its present content and as many rows as became valid, quarantined or duplicates. It is noted as
retired before it is taken away, and from then on counts as if it were still there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import json
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from filelock import FileLock, Timeout

from data_assets import landing, periods
from data_assets.contracts import PIPELINE_RUNS, tables
from data_assets.errors import StorageBusyError, visible
from data_assets.storage import POINTER, DayLog, Lake, content_hash, fsync_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from dagster import DagsterInstance

    from data_assets.config import PipelineConfig

NOTED_FILES = 1_000  # so many are noted as retired at a time: each time all that ever were are written
MOST_RUNS = 1_000  # of Dagster's history at a time


@dataclass(frozen=True)
class Thing:
    """Something that may go.

    Attributes:
        kind: raw, lake, report, run, run log or run records.
        name: path, table and day, or id.
        size: bytes on disk; 0 where nobody knows.
        why: why it stays; empty when it goes.
    """

    kind: str
    name: str
    size: int = 0
    why: str = ""


@dataclass
class Plan:
    """What goes, and what is old enough and stays all the same."""

    goes: list[Thing] = field(default_factory=list)
    stays: list[Thing] = field(default_factory=list)

    def add(self, thing: Thing) -> None:
        """Sort it in."""
        (self.stays if thing.why else self.goes).append(thing)


def plan(config: PipelineConfig, today: dt.date, busy: Collection[str] = ()) -> Plan:
    """What would go today, Dagster's history aside.

    Args:
        config: ``retention`` of pipeline.yaml.
        today: in the configured zone.
        busy: days (ISO) that a run is working on; nothing of theirs goes.
    """
    found, ages = Plan(), config.retention
    if ages.raw is not None:
        for thing in _raw_files(config, today - dt.timedelta(days=ages.raw), busy):
            found.add(thing)
    if ages.lake is not None:
        for thing in _lake_days(config, today - dt.timedelta(days=ages.lake), busy):
            found.add(thing)
    if ages.reports is not None:
        for folder in _days_below(config.reports_dir, "", today - dt.timedelta(days=ages.reports)):
            found.add(Thing("report", folder.name, _size(folder)))
    if ages.run_records is not None:
        last = f"{today - dt.timedelta(days=ages.run_records):%Y-%m}"
        for path in sorted((config.lake_dir / PIPELINE_RUNS.name).glob("*.jsonl")):
            if path.stem < last:
                found.add(Thing("run records", path.name, path.stat().st_size))
    return found


def apply(config: PipelineConfig, today: dt.date, busy: Collection[str] = ()) -> Plan:
    """Take away what :func:`plan` names.

    Raises:
        StorageBusyError: somebody else is at it.
        OSError: something cannot be taken away; what went before is gone.
    """
    with _alone(config):
        _forget_returned(config)
        found = plan(config, today, busy)
        wanted, found.goes = found.goes, []
        raw, left = [thing.name for thing in wanted if thing.kind == "raw"], set[str]()
        for first in range(0, len(raw), NOTED_FILES):
            left |= _take_raw(config, raw[first : first + NOTED_FILES], today)
        for thing in wanted:
            if thing.kind == "raw" and thing.name in left:
                found.stays.append(replace(thing, why="it changed since the last look at the folder"))
                continue
            found.goes.append(thing)
            if thing.kind == "lake":
                table, day = thing.name.split(" ")
                _take_folder(Lake(config.lake_dir).folder(table, day))
            elif thing.kind == "report":
                _take_folder(config.reports_dir / thing.name)
            elif thing.kind == "run records":
                (config.lake_dir / PIPELINE_RUNS.name / thing.name).unlink()
        if any(thing.kind == "report" for thing in found.goes):
            periods.rebuild_index(config)
    return found


@contextlib.contextmanager
def _alone(config: PipelineConfig) -> Iterator[None]:
    config.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(config.data_dir / ".retention.lock", timeout=0):
            yield
    except Timeout as problem:
        raise StorageBusyError("Another retention is at work.", "Wait for it, then look again.") from problem


# ---- Raw files ---------------------------------------------------------------------------------------------------


def _raw_files(config: PipelineConfig, before: dt.date, busy: Collection[str]) -> Iterator[Thing]:
    lake = Lake(config.lake_dir)
    ledger = landing.read_ledger(lake)
    finished, marks = DayLog(config.lake_dir).finished(), landing.fingerprints(ledger)
    retired = landing.read_retired(lake)

    @functools.cache
    def noted(day: str) -> dict[tuple[str, str], dict[str, int]]:
        """What the day says of its files, by path and content."""
        files = json.loads(lake.notes("raw_events", day).get("by_file", "[]"))
        return {(file["path"], file["content_hash"]): file for file in files}

    for (path,), rows in ledger.group_by("path", maintain_order=True):
        place = config.raw_dir / str(path)
        newest = max([*rows["day"], *rows["home_day"]])
        if newest >= before or (str(path) in retired and not place.exists()):
            continue
        yield Thing("raw", str(path), int(rows["size"][0]), _why_kept(rows, finished, marks, busy, noted))


def _why_kept(
    rows: pl.DataFrame,
    finished: dict[str, str],
    marks: dict[str, str],
    busy: Collection[str],
    noted: Callable[[str], Mapping[tuple[str, str], Mapping[str, int]]],
) -> str:
    """Why a file stays; empty when every row of it is accounted for."""
    path, content = rows["path"][0], rows["content_hash"][0]
    if rows["error"].is_not_null().any() or rows["drift_error"].is_not_null().any():
        return "it cannot be used, so none of its rows is in a table"
    for day, count in rows.select("day", "rows").iter_rows():
        text = day.isoformat()
        if text in busy:
            return f"a run is working on {text}"
        if finished.get(text) != marks.get(text):
            return f"{text} is not made from the files as they are now"
        of_file = noted(text).get((path, content))
        if of_file is None:
            return f"raw_events of {text} does not name it: was that day taken away before?"
        if count != of_file["valid"] + of_file["quarantined"] + of_file["duplicate"]:
            return f"not every row of it is accounted for in {text}"
    return ""


def _take_raw(config: PipelineConfig, paths: Sequence[str], today: dt.date) -> set[str]:
    """Note some files as retired, then delete or move them; those that stay are no longer what the ledger knows."""
    lake, seen, targets = Lake(config.lake_dir), dict[str, os.stat_result](), dict[str, Path | None]()
    rows = landing.read_ledger(lake).filter(pl.col("path").is_in(paths))
    for path, content in rows.select("path", "content_hash").unique(maintain_order=True).iter_rows():
        place = config.raw_dir / path
        if not place.exists():
            continue
        found = place.stat()
        if content_hash(place) != content:
            continue
        target = None if config.retention.raw_move_to is None else config.retention.raw_move_to / path
        if target is not None:
            _copy(place, target, content)
        seen[path], targets[path] = found, target
    landing.retire(lake, rows, today, targets)
    left = set(paths) - targets.keys()
    for path, found in seen.items():
        place = config.raw_dir / path
        now = place.stat()
        if (now.st_size, now.st_mtime_ns) == (found.st_size, found.st_mtime_ns):
            place.unlink()
        else:  # it counts as put back
            left.add(path)
    for folder in {(config.raw_dir / path).parent for path in targets}:
        fsync_path(folder)
    return left


def _copy(place: Path, target: Path, content: str) -> None:
    """The file again at ``target``, safely on that disk; a file of that name is there at once or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.copy2(place, temporary)
    fsync_path(temporary)
    if content_hash(temporary) != content:
        raise OSError(f"{visible(str(target))} could not be written as it was read")
    temporary.replace(target)
    fsync_path(target.parent)


def _forget_returned(config: PipelineConfig) -> None:
    """Files that were put back are no longer retired."""
    lake = Lake(config.lake_dir)
    back = [path for path in landing.read_retired(lake) if (config.raw_dir / path).exists()]
    if back:
        landing.unretire(lake, back)


# ---- Days --------------------------------------------------------------------------------------------------------


def _lake_days(config: PipelineConfig, before: dt.date, busy: Collection[str]) -> Iterator[Thing]:
    lake, finished = Lake(config.lake_dir), DayLog(config.lake_dir).finished()
    ledger = landing.read_ledger(lake)
    marks = landing.fingerprints(ledger)
    there = set[str]() if config.retention.raw is None else _days_with_raw(config, ledger)
    kept = [name for name, table in tables(config.source.types.user_id).items() if table.store == "lake"]
    for table in kept:
        for folder in _days_below(config.lake_dir / table, "date=", before):
            if not (folder / POINTER).exists():
                continue
            day, why = folder.name.removeprefix("date="), ""
            if day in busy:
                why = "a run is working on it"
            elif finished.get(day) != marks.get(day, ""):
                why = "it is not made from the files as they are now"
            elif day in there:
                why = "its raw files are still there, and go by what the day says of them"
            yield Thing("lake", f"{table} {day}", _size(folder), why)


def _days_with_raw(config: PipelineConfig, ledger: pl.DataFrame) -> set[str]:
    """The days (ISO) of which a raw file is still there."""
    paths = [path for path in ledger["path"].unique() if (config.raw_dir / path).exists()]
    return set(ledger.filter(pl.col("path").is_in(paths))["day"].dt.to_string())


def _days_below(root: Path, prefix: str, before: dt.date) -> list[Path]:
    """Folders named by a day before ``before``, ascending."""
    found = []
    for path in root.iterdir() if root.exists() else ():
        try:
            day = dt.date.fromisoformat(path.name.removeprefix(prefix))
        except ValueError:
            continue
        if path.name.startswith(prefix) and day < before:
            found.append(path)
    return sorted(found)


def _take_folder(folder: Path) -> None:
    """The pointer first, so that no reader is led to a file that is gone."""
    (folder / POINTER).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ---- Dagster's history -------------------------------------------------------------------------------------------


def plan_history(config: PipelineConfig, instance: DagsterInstance, now: dt.datetime) -> Plan:
    """Runs that ended too long ago, at most MOST_RUNS, oldest first.

    A run that still is the one by which the UI knows a day as made stays; of such a run only the log of its steps goes,
    where the storage can do that (``history.PooledSqliteEventLogStorage``).
    """
    from dagster import DagsterRunStatus, RunsFilter

    found = Plan()
    if config.retention.history is None:
        return found
    before = now - dt.timedelta(days=config.retention.history)
    ended = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
    records = instance.get_run_records(
        RunsFilter(statuses=ended, updated_before=before), limit=MOST_RUNS, order_by="id", ascending=True
    )
    current = _current_runs(instance) if records else set()
    for record in records:
        run = record.dagster_run.run_id
        if run not in current:
            found.add(Thing("run", run))
        elif (size := _step_log_size(instance, run)) is None:
            found.add(Thing("run", run, 0, "a day is known as made by it"))
        elif size:
            found.add(Thing("run log", run, size))
    return found


def apply_history(config: PipelineConfig, instance: DagsterInstance, now: dt.datetime) -> Plan:
    """Take away what :func:`plan_history` names."""
    found = plan_history(config, instance, now)
    for thing in found.goes:
        if thing.kind == "run":
            instance.delete_run(thing.name)
        else:
            instance.event_log_storage.drop_step_log(thing.name)  # type: ignore[attr-defined]  # looked up before
    return found


def _step_log_size(instance: DagsterInstance, run: str) -> int | None:
    """Bytes of a run's own log; None where it is not kept apart."""
    measure = getattr(instance.event_log_storage, "step_log_size", None)
    return None if measure is None else int(measure(run))


def _current_runs(instance: DagsterInstance) -> set[str]:
    """Runs that made the latest version of any day of any asset."""
    from dagster import AssetRecordsFilter, DagsterEventType

    current: set[str] = set()
    for key in instance.all_asset_keys():
        event = instance.get_latest_materialization_event(key)
        if event is not None:
            current.add(event.run_id)
        ids = instance.get_latest_storage_id_by_partition(key, DagsterEventType.ASSET_MATERIALIZATION)
        for part in _parts(sorted(ids.values())):
            chosen = AssetRecordsFilter(key, storage_ids=part)
            current |= {r.run_id for r in instance.fetch_materializations(chosen, limit=len(part)).records}
    return current


def _parts(numbers: list[int], most: int = 500) -> Iterable[list[int]]:
    return (numbers[first : first + most] for first in range(0, len(numbers), most))
