"""Figures for Prometheus, in its text format.

Here: which gauges there are and where each comes from. Not here: the command (``commands.py``) or the dashboard over
them (``deploy/grafana``). It reads what is stored (the ledger, the lake's pointers, the day log, pipeline_runs, the
incidents), opens no raw file and waits for no run, so it may be called every minute.

No label has a value out of a file or a day: there are as many series after years as on the first day.
"""

from __future__ import annotations

import datetime as dt
import shutil
from typing import TYPE_CHECKING

import polars as pl

from data_assets import incidents, landing, runs, staging
from data_assets.contracts import LANDED_FILES
from data_assets.storage import REFUSED, DayLog, Lake, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from prometheus_client import CollectorRegistry, Gauge

    from data_assets.config import PipelineConfig

PREFIX = "data_assets_"
WINDOWS = (1, 7, 28)
OUTCOMES = ("valid", "quarantined", "duplicate")


class _Gauges:
    """A registry of our own: the library's default one also tells about the process that asks."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry

        self.registry: CollectorRegistry = CollectorRegistry()

    def new(self, name: str, description: str, *labels: str) -> Gauge:
        from prometheus_client import Gauge

        return Gauge(PREFIX + name, description, labels, registry=self.registry)

    def put(self, name: str, description: str, value: float | None) -> None:
        """A gauge without labels; None leaves it out."""
        if value is not None:
            self.new(name, description).set(value)


def exposed(config: PipelineConfig, now: dt.datetime) -> str:
    """Every gauge as text. ``now`` has a zone."""
    from importlib.metadata import version

    from prometheus_client import generate_latest

    gauges = _Gauges()
    gauges.new("info", "The version of data_assets.", "version").labels(version("data_assets")).set(1)
    gauges.put("collected_timestamp_seconds", "When these figures were collected.", now.timestamp())
    _of_days(gauges, config, now)
    _of_run(gauges, config)
    _of_alerts(gauges, config)
    _of_disk(gauges, config)
    return generate_latest(gauges.registry).decode()


def _of_days(gauges: _Gauges, config: PipelineConfig, now: dt.datetime) -> None:
    lake, log, today = Lake(config.lake_dir), DayLog(config.lake_dir), now.astimezone(config.zone).date()
    ledger = landing.read_ledger(lake)
    files = gauges.new("files", "Files in the ledger, by whether they can be used.", "state")
    broken = ledger.filter(pl.col("error").is_not_null())["path"].n_unique()
    files.labels("usable").set(ledger["path"].n_unique() - broken)
    files.labels("unusable").set(broken)
    finished = log.finished()
    done = sorted(day for day, mark in finished.items() if mark != REFUSED)
    days = gauges.new("days", "Days by state: done, due (to be made), refused, missing (no rows landed).", "state")
    days.labels("done").set(len(done))
    days.labels("due").set(len(landing.stale_days(ledger, log, first=config.start_date, last=today)))
    days.labels("refused").set(len(finished) - len(done))
    days.labels("missing").set(len(landing.missing_days(landing.landed_days(ledger), last=today)))
    if not done:
        return
    last = dt.date.fromisoformat(done[-1])
    midnight = dt.datetime.combine(last, dt.time(), config.zone)
    gauges.put("last_finished_day_timestamp_seconds", "When the latest finished day began.", midnight.timestamp())
    _of_rows(gauges, lake, last, done)


def _of_rows(gauges: _Gauges, lake: Lake, last: dt.date, done: list[str]) -> None:
    rows = gauges.new("rows", "Rows of the latest finished day and of the 7 and 28 days up to it.", "outcome", "window")
    rate = gauges.new("quarantine_ratio", "Quarantined rows divided by rows in, over the same days.", "window")
    late = gauges.new("late_rows", "Rows from files that came after their day, over the same days.", "window")
    span = [day for day in done if (last - dt.date.fromisoformat(day)).days < WINDOWS[-1]]
    sums = {day: staging.sums(staging.noted_files(notes)) for day in span if (notes := lake.notes("raw_events", day))}
    for length in WINDOWS:
        window = f"{length}d"
        inside = [found for day, found in sums.items() if (last - dt.date.fromisoformat(day)).days < length]
        for outcome in OUTCOMES:
            rows.labels(outcome, window).set(sum(found[outcome] for found in inside))
        rows_in = sum(found["rows_in"] for found in inside)
        late.labels(window).set(sum(found["late"] for found in inside))
        if rows_in:
            rate.labels(window).set(sum(found["quarantined"] for found in inside) / rows_in)


def _of_run(gauges: _Gauges, config: PipelineConfig) -> None:
    last = runs.last(config.lake_dir)
    if last is None:
        return
    started = last.started_at.replace(tzinfo=dt.UTC).timestamp()
    gauges.put("last_run_timestamp_seconds", "When the last run began.", started)
    gauges.put("last_run_duration_seconds", "Wall time of the last run.", last.seconds)
    gauges.put("last_run_cpu_seconds", "Processor time of the last run.", last.cpu_seconds)
    gauges.put("last_run_peak_bytes", "Largest resident memory of the last run.", last.peak_mb * 2**20)
    gauges.put("last_run_days", "Days that the last run was to make.", last.days)
    gauges.put("last_run_days_refused", "Days that the last run refused.", last.days_refused)
    gauges.put("last_run_success", "1 if no stage of the last run failed or refused every day.", last.status == "done")
    took = gauges.new("last_run_stage_seconds", "Wall time of each stage of the last run.", "stage")
    peak = gauges.new("last_run_stage_peak_bytes", "Largest resident memory in each stage of the last run.", "stage")
    for stage, seconds in last.stages.items():
        took.labels(stage).set(seconds)
        peak.labels(stage).set(last.stage_peaks_mb[stage] * 2**20)


def _of_alerts(gauges: _Gauges, config: PipelineConfig) -> None:
    """What the last look for alerts found; nothing where nobody ever looked, or the book is damaged."""
    lock, book = (config.data_dir / incidents.FOLDER / name for name in (incidents.LOCK, incidents.STATE))
    if not lock.exists():
        return
    try:  # the book is begun with the first incident
        known, waiting = incidents.loads(book.read_text(encoding="utf-8")) if book.exists() else ([], {})
    except ValueError:
        return
    open_ones = gauges.new("incidents", "Incidents that are open, as of the last look for alerts.", "severity")
    for severity in incidents.SEVERITIES:
        open_ones.labels(severity).set(sum(i.resolved is None and i.cause.severity == severity for i in known))
    gauges.put("alert_channels_unreached", "Channels that did not take their last message.", len(waiting))
    gauges.put("alerts_last_look_timestamp_seconds", "When what is wrong was last looked at.", lock.stat().st_mtime)


def _of_disk(gauges: _Gauges, config: PipelineConfig) -> None:
    ledger = Lake(config.lake_dir).current(LANDED_FILES.name, None)
    gauges.put("ledger_bytes", "Size of the ledger.", ledger.size if ledger else 0)
    stored = config.warehouse_path
    gauges.put("warehouse_bytes", "Size of the warehouse.", stored.stat().st_size if stored.exists() else 0)
    place = next(folder for folder in (config.data_dir, *config.data_dir.parents) if folder.exists())
    disk = shutil.disk_usage(place)
    gauges.put("disk_free_bytes", "Free space where the data lies.", disk.free)
    gauges.put("disk_size_bytes", "All space where the data lies.", disk.total)


def write(path: Path, text: str) -> None:
    """Replace the file at once, for a collector that may read at any time, and readable by its user.

    Raises:
        OSError: it cannot be written.
    """
    write_atomically(path, text, durable=False)
