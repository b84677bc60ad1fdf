"""The daily and weekly partitions, and days as ranges.

Here: the partitions definitions, and the arithmetic of days. Not here: which days hold data (``landing.py``).
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dagster import DailyPartitionsDefinition, WeeklyPartitionsDefinition

    from data_assets.config import PipelineConfig


def daily_partitions(config: PipelineConfig) -> DailyPartitionsDefinition:
    """One partition a day from ``start_date`` to today (included: files of today are worked on as they come)."""
    from dagster import DailyPartitionsDefinition

    return DailyPartitionsDefinition(start_date=config.start_date.isoformat(), timezone=config.timezone, end_offset=1)


def weekly_partitions(config: PipelineConfig) -> WeeklyPartitionsDefinition:
    """One partition a week, named by its Monday, from the week of ``start_date`` to the last one that is over."""
    from dagster import WeeklyPartitionsDefinition

    monday = config.start_date - dt.timedelta(days=config.start_date.weekday())
    return WeeklyPartitionsDefinition(start_date=monday.isoformat(), timezone=config.timezone, day_offset=1)


def contiguous_ranges(days: Iterable[str], longest: int | None = None) -> list[tuple[str, str]]:
    """Days (ISO) as ranges (first, last), both inclusive, ascending; a gap of a day begins a new range.

    Args:
        days: in any order.
        longest: a range of more days than this is cut.
    """
    ranges: list[list[dt.date]] = []
    for day in sorted({dt.date.fromisoformat(d) for d in days}):
        follows = bool(ranges) and day - ranges[-1][1] == dt.timedelta(days=1)
        if follows and (longest is None or (day - ranges[-1][0]).days < longest):
            ranges[-1][1] = day
        else:
            ranges.append([day, day])
    return [(first.isoformat(), last.isoformat()) for first, last in ranges]


def cut(ranges: Iterable[tuple[str, str]], longest: int) -> list[tuple[str, str]]:
    """The ranges, each in parts of at most ``longest`` days, in order."""
    spans = (days_between(dt.date.fromisoformat(first), dt.date.fromisoformat(last)) for first, last in ranges)
    return [(days[n], days[: n + longest][-1]) for days in spans for n in range(0, len(days), longest)]


def days_of(ranges: Iterable[tuple[str, str]]) -> list[str]:
    """Every day of the ranges (first, last), as ISO text."""
    return [
        d for first, last in ranges for d in days_between(dt.date.fromisoformat(first), dt.date.fromisoformat(last))
    ]


def days_between(first: dt.date, last: dt.date) -> list[str]:
    """Every day from ``first`` to ``last``, both included, as ISO text."""
    return [(first + dt.timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]
