"""The page of all days, ``reports/index.html``: a calendar of verdicts that links every day and period.

Here: what the reports in the folder say, the page, and its rebuilding under a lock. Not here: the reports themselves.

Verdicts are read from each report's summary.json, once: what was read is kept in ``.index.json``, a cache by the
file's time of change. Lost, it is made again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock

from data_assets.report import text
from data_assets.report.page import render
from data_assets.report.period import LEVELS, REFUSED
from data_assets.storage import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from data_assets.report.period import DayVerdict

PAGE = "index.html"
CACHE = ".index.json"
PERIODS = "periods"
LOCK_SECONDS = 120
DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
CLASSES: Mapping[str, str] = {"All clear": "o", "Worth a look": "w", "Needs attention": "a", REFUSED: "r"}


@dataclass(frozen=True)
class Period:
    """A period's report: its folder below the reports, its days and what it says."""

    folder: str
    first: date
    last: date
    verdict: str


@dataclass(frozen=True)
class Month:
    """A month's cells: day, class of its verdict (empty: no report), whether there is a report to link."""

    title: str
    offset: int
    cells: Sequence[tuple[date, str, bool]]


@dataclass(frozen=True)
class Year:
    """A year's months, and how many of its days have which verdict."""

    year: int
    months: Sequence[Month]
    counts: Mapping[str, int]


def rebuild(folder: Path, refused: Iterable[str], timezone: str) -> Path:
    """Make the page again from what lies in ``folder`` now.

    The lock is held from the look to the page, so of two runs that end together the later one sees both.

    Args:
        folder: where the reports lie.
        refused: days (ISO) whose last run refused them.
        timezone: of the days.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".index.lock", timeout=LOCK_SECONDS):
        days, periods = look(folder)
        html = build(days, periods, {date.fromisoformat(d) for d in refused}, timezone)
        write_atomically(folder / PAGE, html, durable=False)
    return folder / PAGE


def look(folder: Path) -> tuple[dict[date, DayVerdict], list[Period]]:
    """What the reports in the folder say, by day, and the reports of periods."""
    before = _cached(folder / CACHE)
    now: dict[str, dict[str, Any]] = {}
    for prefix, place in (("", folder), (f"{PERIODS}/", folder / PERIODS)):
        for entry in sorted(place.iterdir()) if place.is_dir() else ():
            mark = written_at(entry)
            if not mark:
                continue
            name = prefix + entry.name
            known = before.get(name)
            now[name] = known if known and known["mark"] == mark else {"mark": mark, **_said(entry / "summary.json")}
    if now != before:
        write_atomically(folder / CACHE, json.dumps(now), durable=False)
    days: dict[date, DayVerdict] = {}
    periods = []
    for name, said in now.items():
        if "day" in said:
            days[date.fromisoformat(said["day"])] = cast("DayVerdict", said["verdict"])
        elif "first" in said:
            first, last = date.fromisoformat(said["first"]), date.fromisoformat(said["last"])
            periods.append(Period(name, first, last, said["verdict"]))
    return dict(sorted(days.items())), sorted(periods, key=lambda p: (p.last, p.first), reverse=True)


def verdicts(folder: Path, refused: Collection[str], days: Iterable[str]) -> dict[date, DayVerdict]:
    """What the reports of some days (ISO) say; a refused day counts as such. Days without a report are left out."""
    found: dict[date, DayVerdict] = {}
    for day in days:
        said = REFUSED if day in refused else _said(folder / day / "summary.json").get("verdict")
        if said is not None:
            found[date.fromisoformat(day)] = cast("DayVerdict", said)
    return found


def written(folder: Path) -> dict[date, int]:
    """When each day's report was written, ns since 1970."""
    found = ((entry.name, written_at(entry)) for entry in (folder.iterdir() if folder.is_dir() else ()))
    return {date.fromisoformat(name): when for name, when in found if when and DAY.fullmatch(name)}


def written_at(report: Path) -> int:
    """When a report was written, ns since 1970; 0 when there is none."""
    try:
        return (report / "summary.json").stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _cached(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def _said(path: Path) -> dict[str, Any]:
    """Days and verdict of a summary; nothing of a file that is none of ours or not there."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(summary, dict) or summary.get("verdict") not in LEVELS:
        return {}
    return {name: str(summary[name]) for name in ("day", "first", "last", "verdict") if name in summary}


def build(days: Mapping[date, DayVerdict], periods: Sequence[Period], refused: set[date], timezone: str) -> str:
    """The page, from verdicts by day; ``refused`` days count as such even where an older report stands."""
    return render(
        "index.html.j2", years=years(days, refused), periods=periods, days=days, latest=max(days, default=None),
        timezone=timezone, levels=LEVELS, classes=CLASSES,
    )  # fmt: skip


def years(days: Mapping[date, DayVerdict], refused: set[date]) -> list[Year]:
    """Every month from the first day to the last, the newest year first; days before, after and between are empty."""
    every = sorted(days.keys() | refused)
    if not every:
        return []
    first, last = every[0], every[-1]
    span = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    found = []
    for year, of_year in groupby(span, key=lambda d: d.year):
        counts: dict[str, int] = {}
        months = []
        for month, of_month in groupby(of_year, key=lambda d: d.month):
            cells = []
            for day in of_month:
                said = REFUSED if day in refused else days.get(day)
                counts[said or "No report"] = counts.get(said or "No report", 0) + 1
                cells.append((day, CLASSES[said] if said else "", day in days))
            months.append(Month(text.MONTHS[month - 1], cells[0][0].weekday() + 1, cells))
        order = [*CLASSES, "No report"]
        found.append(Year(year, months, {name: counts[name] for name in order if name in counts}))
    return found[::-1]
