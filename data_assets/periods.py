"""From the stored tables to the report of a period and the page of all reports; which weeks are due.

Here: what the weekly asset, its schedule and `data-assets report --from --to` have in common, without Dagster. Not
here: what the reports say (``report/``), or a single day's report, which is made of the run's tables (``assets.py``).
"""

from __future__ import annotations

import datetime as dt
import functools
from typing import TYPE_CHECKING

from data_assets import report, runs
from data_assets.contracts import tables
from data_assets.partitions import days_between
from data_assets.storage import REFUSED, DayLog, Lake, Warehouse

if TYPE_CHECKING:
    from pathlib import Path

    from data_assets.config import PipelineConfig


@functools.cache
def versions() -> dict[str, str]:
    """Versions that a report's figures depend on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("data_assets", "polars", "duckdb")}


def folder(config: PipelineConfig, first: dt.date, last: dt.date) -> Path:
    """Where the report of a period lies."""
    return config.reports_dir / report.PERIODS / f"{first}_{last}"


def build(config: PipelineConfig, first: dt.date, last: dt.date, *, with_runs: bool = False) -> report.Report:
    """The report of the days from ``first`` to ``last`` as they are stored now.

    ``with_runs``: with what the runs took that made these days, by which the same days no longer give the same bytes.
    """
    warehouse = Warehouse(config.warehouse_path, Lake(config.lake_dir), user_id=config.source.types.user_id)
    contracts, span = tables(config.source.types.user_id), days_between(report.needed_from(first, last), last)
    types = warehouse.query_days(contracts["event_distribution"], span)
    return report.build_period(
        report.PeriodInput(
            first=first,
            last=last,
            timezone=config.timezone,
            kpis=warehouse.query_days(contracts["daily_kpis"], span),
            types=types.select("date", "event_type", "count"),
            verdicts=report.verdicts(config.reports_dir, _refused(config), days_between(first, last)),
            versions=versions(),
            runs=_runs(config, first, last) if with_runs else None,
        )
    )


def _runs(config: PipelineConfig, first: dt.date, last: dt.date) -> list[runs.RunSummary]:
    """The runs that were to make a day of the period, the newest first."""
    found = runs.summaries(runs.read(config.lake_dir))
    return [r for r in found if r.first_day and r.last_day and r.first_day <= last and r.last_day >= first]


def write(
    config: PipelineConfig, first: dt.date, last: dt.date, *, with_runs: bool = False
) -> tuple[report.Report, Path]:
    """Build the report of a period and put it in its place."""
    built, place = build(config, first, last, with_runs=with_runs), folder(config, first, last)
    report.write(built, place)
    return built, place


def rebuild_index(config: PipelineConfig) -> Path:
    """Make the page of all days again."""
    return report.rebuild(config.reports_dir, _refused(config), config.timezone)


def _refused(config: PipelineConfig) -> set[str]:
    return {day for day, mark in DayLog(config.lake_dir).finished().items() if mark == REFUSED}


def due_weeks(config: PipelineConfig, today: dt.date) -> list[dt.date]:
    """Mondays of finished weeks with a day whose report is newer than the week's, ascending."""
    changed: dict[dt.date, int] = {}
    for day, when in report.written(config.reports_dir).items():
        monday = day - dt.timedelta(days=day.weekday())
        changed[monday] = max(changed.get(monday, 0), when)
    week = dt.timedelta(days=7)
    return [
        monday
        for monday, when in sorted(changed.items())
        if monday + week <= today and when > report.written_at(folder(config, monday, monday + week - dt.timedelta(1)))
    ]


def ranges_of_weeks(mondays: list[dt.date]) -> list[tuple[str, str]]:
    """Weeks as ranges (first Monday, last Monday); a gap of a week begins a new range."""
    ranges: list[list[dt.date]] = []
    for monday in mondays:
        if ranges and monday - ranges[-1][1] == dt.timedelta(days=7):
            ranges[-1][1] = monday
        else:
            ranges.append([monday, monday])
    return [(first.isoformat(), last.isoformat()) for first, last in ranges]
