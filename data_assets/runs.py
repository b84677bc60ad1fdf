"""The table pipeline_runs: what each stage of each run took, appended as it ends.

Here: how a row is written, how the rows are read, and what the last run came to. Not here: what is measured
(``telemetry.py``) or shown (``cli.py``).

Rows are lines of JSON in one file a month below the lake. A line is appended in one write, so several runs may do so at
once, and a run that dies leaves the stages that it finished; what became of it Dagster's history knows. A line that a
power cut tore is passed over.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from data_assets.contracts import DUCKDB_TYPES, PIPELINE_RUNS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import duckdb


ALIVE = "data_assets/alive"
"""The tag of a run that the command line executes."""


def append(lake: Path, row: Mapping[str, Any]) -> None:
    """Add a row, with the columns of the contract; on the disk once this returns.

    Raises:
        OSError: it cannot be written.
    """
    if row.keys() != set(PIPELINE_RUNS.names):
        raise ValueError(f"not the columns of {PIPELINE_RUNS.name}: {sorted(row.keys() ^ set(PIPELINE_RUNS.names))}")
    place = lake / PIPELINE_RUNS.name / f"{row['started_at']:%Y-%m}.jsonl"
    place.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(row, default=lambda value: value.isoformat(), allow_nan=False)
    descriptor = os.open(place, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, f"{chr(10) if is_torn else ''}{text}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def query(lake: Path, *, months: int | None = None) -> str | None:
    """The table as DuckDB reads it from its files; None when there is none."""
    folder = (lake / PIPELINE_RUNS.name).resolve()
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        return None
    chosen = [folder / "*.jsonl"] if months is None else files[-months:]
    paths = ", ".join("'" + str(path).replace("'", "''") + "'" for path in chosen)
    columns = ", ".join(f"{c.name}: '{DUCKDB_TYPES[c.dtype]}'" for c in PIPELINE_RUNS.columns)
    return (
        f"SELECT * FROM read_json([{paths}], format = 'newline_delimited', ignore_errors = true, "  # noqa: S608
        f"columns = {{{columns}}}) WHERE run_id IS NOT NULL AND stage IS NOT NULL AND started_at IS NOT NULL"
    )


def add_to(connection: duckdb.DuckDBPyConnection, lake: Path) -> None:
    """Make the table readable in a session, as it is now, if there is one."""
    select = query(lake)
    if select is not None:
        connection.register(PIPELINE_RUNS.name, _read(connection, select).to_arrow())


def read(lake: Path, *, months: int | None = None) -> pl.DataFrame:
    """Every row, the oldest first; or those of the last ``months`` in which there are any."""
    import duckdb

    select = query(lake, months=months)
    if select is None:
        return PIPELINE_RUNS.empty()
    with duckdb.connect() as connection:
        return _read(connection, select)


def _read(connection: duckdb.DuckDBPyConnection, select: str) -> pl.DataFrame:
    found = pl.from_arrow(connection.sql(f"{select} ORDER BY started_at, run_id").to_arrow_table())
    if not isinstance(found, pl.DataFrame):
        raise TypeError("an Arrow table became a Series")
    return found.cast(PIPELINE_RUNS.schema)


@dataclass(frozen=True)
class RunSummary:
    """What a run came to, over its stages.

    Attributes:
        started_at: UTC, of its first stage.
        seconds: from the start of its first stage to the end of its last.
        rows_in, rows_out: records of the raw files, and those of them that became events; None when it read none.
        status: done, refused (a stage did no day) or failed, as far as its stages have come.
        stages: seconds of each stage, in their order; those of a stage that was tried again added up.
    """

    run_id: str
    started_by: str
    first_day: dt.date | None
    last_day: dt.date | None
    days: int
    days_refused: int
    started_at: dt.datetime
    seconds: float
    cpu_seconds: float
    peak_mb: float
    rows_in: int | None
    rows_out: int | None
    files: int | None
    status: str
    error_kind: str | None
    stages: Mapping[str, float]
    stage_peaks_mb: Mapping[str, float]

    @property
    def slowest(self) -> str:
        """The stage that took longest."""
        return max(self.stages, key=lambda name: self.stages[name])


def last(lake: Path) -> RunSummary | None:
    """What the last run came to; it may have begun in the month before."""
    return next(iter(summaries(read(lake, months=2))), None)


def summaries(rows: pl.DataFrame) -> list[RunSummary]:
    """What each run came to, the newest first."""
    found = [_summary(of_run) for of_run in rows.partition_by("run_id", maintain_order=True)]
    return sorted(found, key=lambda run: run.started_at, reverse=True)


def _summary(rows: pl.DataFrame) -> RunSummary:
    stages = rows.sort("started_at").to_dicts()
    first = stages[0]
    latest = {stage["stage"]: stage for stage in stages}  # a stage that was tried again ended as its last try did
    wrong = [stage for stage in latest.values() if stage["status"] != "done"]
    read = latest.get("raw_events", {})
    seconds: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for stage in stages:
        seconds[stage["stage"]] = seconds.get(stage["stage"], 0.0) + stage["seconds"]
        peaks[stage["stage"]] = max(peaks.get(stage["stage"], 0.0), stage["peak_mb"])
    end = max(stage["started_at"] + dt.timedelta(seconds=stage["seconds"]) for stage in stages)
    return RunSummary(
        **{name: first[name] for name in ("run_id", "started_by", "first_day", "last_day", "days", "started_at")},
        days_refused=max(stage["days_refused"] for stage in latest.values()),
        seconds=round((end - first["started_at"]).total_seconds(), 3),
        cpu_seconds=round(sum(stage["cpu_seconds"] for stage in stages), 3),
        peak_mb=max(peaks.values()),
        rows_in=read.get("rows_in"),
        rows_out=read.get("rows_out"),
        files=read.get("files"),
        status=next((s["status"] for s in wrong if s["status"] == "failed"), wrong[0]["status"] if wrong else "done"),
        error_kind=next((s["error_kind"] for s in (*wrong, *latest.values()) if s["error_kind"]), None),
        stages=seconds,
        stage_peaks_mb=peaks,
    )


def in_words(run: RunSummary) -> str:
    """A run in one line."""
    span = (
        ""
        if run.first_day is None
        else f", {run.first_day}" + (f" to {run.last_day}" if run.last_day != run.first_day else "")
    )
    rows = "" if run.rows_in is None else f"{run.rows_in:,} rows in, {run.rows_out or 0:,} out, "
    refused = f", {run.days_refused:,} days refused" if run.days_refused else ""
    why = f" ({run.error_kind})" if run.error_kind else ""
    return (
        f"last run: {run.status}{why}{refused}; {run.started_at:%Y-%m-%d %H:%M} UTC by {run.started_by}{span}: {rows}"
        f"{run.seconds:,.1f} s, peak {run.peak_mb:,.0f} MB, slowest {run.slowest} {run.stages[run.slowest]:,.1f} s "
        f"(run {run.run_id[:8]})"
    )
