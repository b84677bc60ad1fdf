"""What goes into the report, what comes out of it, and every figure in between, as frozen records.

Here: types only. Not here: how they are computed (``figures.py``, ``bins.py``) or shown (``view.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import polars as pl

    from data_assets.metrics import DayFigures

Number = float | int
Kind = Literal["count", "amount", "seconds", "rate"]
Level = Literal["fail", "warn", "info", "ok"]
Verdict = Literal["All clear", "Worth a look", "Needs attention"]


@dataclass(frozen=True)
class CheckResult:
    """One asset check as it came out; ``severity`` is ``ERROR`` or ``WARN`` and counts only when it failed."""

    asset: str
    name: str
    passed: bool
    severity: str
    observed: str

    @property
    def level(self) -> Level:
        """How the result is shown."""
        if self.passed:
            return "ok"
        return "warn" if self.severity.upper() == "WARN" else "fail"


@dataclass(frozen=True)
class DayInput:
    """Everything the report of one day is made from.

    Attributes:
        kpis: the day's row of daily_kpis.
        history: rows of daily_kpis with ``date``, ascending, of the ``trend_days`` before; may lack days.
        events: what the day's raw_events come to; its rows are only ever aggregated.
        quarantine_reasons: ``reason``, ``rows``.
        files: ``path``, ``rows``, ``valid``, ``quarantined``, ``duplicate``, ``late`` (rows), ``late_days``,
            ``content_hash``, and from the ledger ``lane``, ``lane_reason`` (null when it no longer knows the file).
        without_rows: days for which nothing landed, between the first that rows landed for and this one.
        policies: which cleaning was on, and its setting in words.
        policy_rows: how many rows each of them touched.
    """

    day: date
    timezone: str
    kpis: Mapping[str, Number | None]
    history: pl.DataFrame
    trend_days: int
    session_metrics: pl.LazyFrame
    outliers: pl.LazyFrame
    event_distribution: pl.DataFrame
    summary_statistics: pl.DataFrame
    events: DayFigures
    quarantine_reasons: pl.DataFrame
    files: pl.DataFrame
    without_rows: Sequence[date]
    policies: Mapping[str, str]
    policy_rows: Mapping[str, int]
    checks: Sequence[CheckResult]
    max_quarantine_rate: float
    versions: Mapping[str, str]
    outlier_factor: float


@dataclass(frozen=True)
class Report:
    """The finished report, of a day or of a period.

    Attributes:
        verdict: the day in two or three words.
        sentence: why, in one sentence made of our own words and numbers only.
        html: the page; self-contained, without script.
        text: the same in plain text, for mail and terminals.
        summary: every figure on the page, fit for JSON.
        csvs: file name -> rows. ``write`` makes their text harmless to spreadsheets; the frames are as they came.
    """

    verdict: Verdict
    sentence: str
    html: str
    text: str
    summary: dict[str, Any]
    csvs: Mapping[str, pl.LazyFrame]


@dataclass(frozen=True)
class Headline:
    """One headline number against the days before it.

    Attributes:
        median: median of the earlier days that have the number; null without any.
        low, high: the usual range, median ± 3 · 1.4826 · MAD; null with fewer than five earlier days.
        days: how many earlier days have the number.
        change: (value - median) / median; for a rate, value - median; null where that is undefined.
    """

    key: str
    label: str
    kind: Kind
    value: Number | None
    median: Number | None
    low: Number | None
    high: Number | None
    days: int
    change: float | None
    is_unusual: bool


@dataclass(frozen=True)
class TrendDay:
    """One day of the trend; ``is_missing`` tells a day left out from a day before the first that is known."""

    day: date
    is_missing: bool
    figures: Mapping[str, Number | None]


@dataclass(frozen=True)
class Finding:
    """One line of what needs a look."""

    level: Level
    title: str
    detail: str


@dataclass(frozen=True)
class Bin:
    """Events from ``start`` (inclusive) to ``end`` (exclusive)."""

    start: float
    end: float
    count: int


@dataclass(frozen=True)
class Histogram:
    """Counts by bins without gaps.

    Attributes:
        count: events in the bins.
        left_out: events that have no place on the scale (durations of zero or less on a log scale).
        is_open_low, is_open_high: whether the first or last bin holds everything beyond its edge too.
        median, lower, upper: lines to draw, where known.
    """

    kind: Kind
    is_log: bool
    bins: Sequence[Bin]
    count: int
    left_out: int
    is_open_low: bool
    is_open_high: bool
    median: float | None
    lower: float | None
    upper: float | None


@dataclass(frozen=True)
class EventShare:
    """One row of the event mix; ``event_type`` is null for all the types that are not listed."""

    event_type: str | None
    count: int
    proportion: float | None
    cumulative: float | None


@dataclass(frozen=True)
class EventMix:
    """How the events spread: the most frequent types, the others as one row, the test against equal shares."""

    shares: Sequence[EventShare]
    types: int
    others: int
    events: int
    chi_square: float | None
    degrees_of_freedom: int | None
    p_value: float | None
    cramers_v: float | None


@dataclass(frozen=True)
class Conservation:
    """Where every row went; ``unaccounted`` is what the parts fall short of the whole by."""

    rows_in: int
    valid: int
    quarantined: int
    duplicate: int
    late: int
    unaccounted: int
    files_not_adding_up: int


@dataclass(frozen=True)
class Figures:
    """Every figure of the page, so that cards, tables and summary.json cannot disagree."""

    day: date
    timezone: str
    verdict: Verdict
    sentence: str
    kpis: Mapping[str, Number | None]
    headline: Sequence[Headline]
    findings: Sequence[Finding]
    trend: Sequence[TrendDay]
    missing_days: Sequence[date]
    without_rows: Sequence[date]
    duration_histogram: Histogram
    value_histogram: Histogram
    summary_statistics: Sequence[Mapping[str, Any]]
    event_mix: EventMix
    outlier_share: float | None
    outlier_factor: float
    top_outliers: Sequence[Mapping[str, Any]]
    top_anomalies: Sequence[Mapping[str, Any]]
    users_with_anomalies: int
    conservation: Conservation
    max_quarantine_rate: float
    quarantine_reasons: Sequence[Mapping[str, Any]]
    schema: str | None
    policies: Mapping[str, str]
    policy_rows: Mapping[str, int]
    checks: Sequence[CheckResult]
    files: Sequence[Mapping[str, Any]]
    versions: Mapping[str, str]
    definitions: Mapping[str, str]
