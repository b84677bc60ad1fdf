"""Every figure of a period's report, computed once from the days' rows of daily_kpis and event_distribution.

Here: totals and how they compare with the days before, trends, the weekday pattern, changes by event type, days out of
line, the verdict. Not here: a single day (``figures.py``), wording of charts (``period_view.py``).

Sums of distinct users do not exist for a period, so users are the median of its days; so is the median duration. A sum
is compared by its mean per known day, so that a missing day is no decline.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Literal

import polars as pl

from data_assets.report import text
from data_assets.report.figures import HEADLINES, LEAST_DAYS, MAD_TO_SD, SPREADS, with_rate
from data_assets.report.model import Finding, Kind, Number, Verdict

if TYPE_CHECKING:
    from data_assets.report.model import Level
    from data_assets.runs import RunSummary

LONGEST = 366
LOOK_BACK_DAYS = 56
LEAST_WEEKS = 5
RECENT_DAYS = 14
LEAST_RECENT = 7
LEAST_PATTERN_DAYS = 14
PATTERN_DAYS = 28
MEAN_DEVIATION_TO_SD = 1.2533
CLEAR = 1.96
MOST_TYPES = 12
MOST_NAMED = 7
REFUSED = "Refused"
SUMS = ("events", "value", "outliers")
LABELS = {"users": "Users a day"}
DayVerdict = Verdict | Literal["Refused"]
LEVELS: Mapping[str, Level] = {"All clear": "ok", "Worth a look": "warn", "Needs attention": "fail", REFUSED: "fail"}
DEFINITIONS: Mapping[str, str] = {
    "Totals": "Events, value and outliers: sums over the days. Users and median duration: the median of the days' "
    "figures, because neither can be added up. Quarantine rate: quarantined rows divided by rows in, over all days.",
    "Change": "Against as many days right before: means per known day for sums, else the figures themselves.",
    "Trend": "The Theil–Sen slope: the median of (xⱼ − xᵢ) / (j − i) over pairs of days; from 14 days on, over pairs "
    "of the same weekday (Hirsch, Slack and Smith 1982). Clear: Mann and Kendall's test finds it at the 5% level "
    "(|z| > 1.96, corrected for ties and continuity, days taken as independent).",
    "Out of line": "Beyond median ± 3 · s. The median is that of the same weekday in the 8 weeks before, when at least "
    "five are known; else of the 14 days before, when at least seven are. s = 1.4826 · MAD · √(n / (n − 1)) · "
    "√(1 + π / 2n), with the MAD (Rousseeuw and Croux 1993) over all weekdays, each against its own median; the roots "
    "make up for a median of only n values. A MAD of zero is replaced by the mean absolute deviation · 0.845 (Iglewicz "
    "and Hoaglin 1993). Of days that differ by chance alone, one to two in a hundred lie beyond.",
    "Weekday pattern": "Medians of the weekday's days in the period, or in the 28 days up to its end if it is shorter.",
    "Change by event type": "Mean count per known day, in the period and in as many days before; the share's change in "
    "percentage points.",
    "Missing day": "A day without daily_kpis; left out of every figure, never counted as zero.",
}


@dataclass(frozen=True)
class PeriodInput:
    """Everything the report of a period is made from.

    Attributes:
        kpis: rows of daily_kpis with ``date``, of the days from ``needed_from`` to ``last``; may lack days.
        types: ``date``, ``event_type``, ``count`` of the same days.
        verdicts: what the days' own reports say; may lack days.
        runs: the runs that made these days, the newest first; None unless asked for, because they bring the clock in.
    """

    first: date
    last: date
    timezone: str
    kpis: pl.DataFrame
    types: pl.DataFrame
    verdicts: Mapping[date, DayVerdict]
    versions: Mapping[str, str]
    runs: Sequence[RunSummary] | None = None


@dataclass(frozen=True)
class Trend:
    """A slope per week; ``is_clear`` when it is told from chance, ``per_week`` null with fewer than five days."""

    per_week: float | None
    is_clear: bool


@dataclass(frozen=True)
class PeriodNumber:
    """One headline number of the period.

    Attributes:
        before: the same figure of as many days before, per known day for sums as ``compared`` is; null without any.
        change: (compared - before) / before; for a rate the difference; null where that is undefined.
    """

    key: str
    label: str
    kind: Kind
    value: Number | None
    compared: Number | None
    before: Number | None
    change: float | None
    trend: Trend


@dataclass(frozen=True)
class Callout:
    """A day's number outside its usual range; ``days`` tells of how many days and ``baseline`` of which."""

    day: date
    key: str
    label: str
    kind: Kind
    value: Number
    low: float
    high: float
    score: float | None
    baseline: Literal["weekday", "recent"]
    days: int


@dataclass(frozen=True)
class PeriodDay:
    """One day of the period; no figures when it is missing."""

    day: date
    verdict: DayVerdict | None
    figures: Mapping[str, Number | None]

    @property
    def is_missing(self) -> bool:
        """Whether the day has no figures."""
        return not self.figures


@dataclass(frozen=True)
class Weekday:
    """Medians of one weekday, 0 being Monday."""

    weekday: int
    days: int
    events: Number | None
    users: Number | None
    median_duration: Number | None
    value: Number | None


@dataclass(frozen=True)
class TypeChange:
    """Mean count per known day of an event type; ``before`` and the changes are null without days to compare with."""

    event_type: str
    count: int
    per_day: float
    before: float | None
    change: float | None
    share: float | None
    share_change: float | None


@dataclass(frozen=True)
class PeriodFigures:
    """Every figure of the page, so that cards, tables and summary.json cannot disagree."""

    first: date
    last: date
    timezone: str
    verdict: Verdict
    sentence: str
    headline: Sequence[PeriodNumber]
    findings: Sequence[Finding]
    days: Sequence[PeriodDay]
    missing_days: Sequence[date]
    verdicts: Mapping[str, int]
    totals: Mapping[str, int]
    callouts: Sequence[Callout]
    weekdays: Sequence[Weekday]
    weekday_days: int
    types: Sequence[TypeChange]
    type_count: int
    versions: Mapping[str, str]
    definitions: Mapping[str, str]
    runs: Sequence[RunSummary] | None


def needed_from(first: date, last: date) -> date:
    """The first day whose figures a period's report needs."""
    return first - timedelta(days=max((last - first).days + 1, LOOK_BACK_DAYS))


def summarise(period: PeriodInput) -> tuple[PeriodFigures, pl.DataFrame]:
    """Every figure of the period, and the change of every event type as a table."""
    known = {row["date"]: with_rate(row) for row in period.kpis.iter_rows(named=True)}
    length = (period.last - period.first).days + 1
    span = [period.first + timedelta(days=n) for n in range(length)]
    before = [period.first - timedelta(days=n) for n in range(length, 0, -1)]
    days = [PeriodDay(d, period.verdicts.get(d), known.get(d, {})) for d in span]
    missing = [d.day for d in days if d.is_missing]
    callouts = out_of_line(known, span)
    types = type_changes(period.types, [d for d in span if d in known], [d for d in before if d in known])
    weekdays, weekday_days = weekday_pattern(known, period.last, length)
    totals = {
        name: sum(int(d.figures.get(name) or 0) for d in days)
        for name in ("rows_in", "valid", "quarantined", "duplicate", "late")
    }
    counted = {v: n for v in LEVELS if (n := sum(d.verdict == v for d in days))}
    findings = _findings(days, missing, callouts, totals)
    levels = {f.level for f in findings}
    verdict: Verdict = "Needs attention" if "fail" in levels else "Worth a look" if "warn" in levels else "All clear"
    headline = [_number(key, label, kind, known, span, before) for key, label, kind in HEADLINES]
    figures = PeriodFigures(
        first=period.first,
        last=period.last,
        timezone=period.timezone,
        verdict=verdict,
        sentence=_sentence(days, missing, counted, callouts, totals),
        headline=headline,
        findings=findings,
        days=days,
        missing_days=missing,
        verdicts=counted,
        totals=totals,
        callouts=callouts,
        weekdays=weekdays,
        weekday_days=weekday_days,
        types=[TypeChange(**row) for row in types.head(MOST_TYPES).to_dicts()],
        type_count=types.height,
        versions=dict(sorted(period.versions.items())),
        definitions=DEFINITIONS,
        runs=period.runs,
    )
    return figures, types


# ---- Headline numbers --------------------------------------------------------------------------------------------


def _number(
    key: str, label: str, kind: Kind, known: Mapping[date, Mapping[str, Number | None]], span: Sequence[date],
    before: Sequence[date],
) -> PeriodNumber:  # fmt: skip
    now, compared = _figure(key, known, span)
    _, was = _figure(key, known, before)
    change = None
    if compared is not None and was is not None:
        change = compared - was if kind == "rate" else (compared - was) / abs(was) if was else None
    series = [(d, v) for d in span if (v := known.get(d, {}).get(key)) is not None]
    return PeriodNumber(
        key, LABELS.get(key, label), kind, now, compared, was, text.finite(change), trend(series, len(span))
    )


def _figure(
    key: str, known: Mapping[date, Mapping[str, Number | None]], days: Sequence[date]
) -> tuple[Number | None, Number | None]:
    """The number of some days, and what of it is comparable between periods."""
    if key == "quarantine_rate":
        rows = sum(known[d].get("rows_in") or 0 for d in days if d in known)
        rate = sum(known[d].get("quarantined") or 0 for d in days if d in known) / rows if rows else None
        return rate, rate
    values = [v for d in days if (v := known.get(d, {}).get(key)) is not None]
    if not values:
        return None, None
    if key in SUMS:
        total = sum(values) if all(isinstance(v, int) for v in values) else text.finite(_sum(values))
        return total, text.finite(math.fsum(v / len(values) for v in values))
    middle = statistics.median(values)
    return middle, middle


def _sum(values: Sequence[Number]) -> float:
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def trend(series: Sequence[tuple[date, Number]], length: int) -> Trend:
    """The Theil–Sen slope per week of a series over a period of ``length`` days, as ``DEFINITIONS`` has it."""
    if len(series) < LEAST_DAYS:
        return Trend(None, is_clear=False)
    seasons: dict[int, list[tuple[int, Number]]] = {}
    for day, value in series:
        season = day.weekday() if length >= LEAST_PATTERN_DAYS else 0
        seasons.setdefault(season, []).append((day.toordinal(), value))
    slopes, concordance, variance = [], 0, 0.0
    for of_season in seasons.values():
        values = [v for _, v in of_season]
        for place, (at, value) in enumerate(of_season):
            for later, other in of_season[place + 1 :]:
                slopes.append((other / 2 - value / 2) / (later - at) * 2)
                concordance += (other > value) - (other < value)
        n = len(values)
        ties = [values.count(v) for v in set(values)]
        variance += (n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18
    if not slopes:
        return Trend(None, is_clear=False)
    sign = (concordance > 0) - (concordance < 0)
    is_clear = variance > 0 and (abs(concordance) - 1) / math.sqrt(variance) > CLEAR and bool(sign)
    return Trend(text.finite(statistics.median(slopes) * 7), is_clear=is_clear)


# ---- Days out of line --------------------------------------------------------------------------------------------


def out_of_line(known: Mapping[date, Mapping[str, Number | None]], span: Sequence[date]) -> list[Callout]:
    """The numbers of these days that lie outside their usual range, the furthest first."""
    found = []
    for day in span:
        for key, label, kind in HEADLINES:
            value = known.get(day, {}).get(key)
            groups, baseline = _baseline(known, day, key)
            if value is None or not groups:
                continue
            center, spread = statistics.median(groups[0]), robust_spread(groups)
            low, high = center - SPREADS * spread, center + SPREADS * spread
            slack = 1e-9 * max(abs(low), abs(high))  # rounding is not news
            if math.isfinite(slack) and not low - slack <= value <= high + slack:
                low = max(low, 0.0) if kind in ("count", "rate") else low
                score = (value - center) / spread if spread else None
                found.append(Callout(day, key, label, kind, value, low, high, score, baseline, len(groups[0])))
    return sorted(found, key=lambda c: (-abs(c.score) if c.score is not None else -math.inf, c.day, c.key))


def _baseline(
    known: Mapping[date, Mapping[str, Number | None]], day: date, key: str
) -> tuple[list[list[Number]], Literal["weekday", "recent"]]:
    """Earlier values to compare a day with: its weekday's, then each other weekday's; or the days before as one group.

    Nothing when too few are known.
    """

    def values(places: range) -> list[Number]:
        return [v for n in places if (v := known.get(day - timedelta(days=n), {}).get(key)) is not None]

    weekdays = [values(range(start, LOOK_BACK_DAYS + 1, 7)) for start in (7, 1, 2, 3, 4, 5, 6)]
    if len(weekdays[0]) >= LEAST_WEEKS:
        return [w for w in weekdays if len(w) >= LEAST_WEEKS], "weekday"
    recent = values(range(1, RECENT_DAYS + 1))
    return ([recent] if len(recent) >= LEAST_RECENT else []), "recent"


def robust_spread(groups: Sequence[Sequence[Number]]) -> float:
    """How far a new value usually lies from the median of the first group; all groups tell of the scatter."""
    away: list[float] = []
    for values in groups:
        center = statistics.median(values)
        deviations = sorted(abs(v - center) for v in values)
        away += deviations[len(deviations) % 2 :]  # of an odd number one is the median itself and tells nothing
    n = len(groups[0])
    known = math.sqrt(n / (n - 1)) * math.sqrt(1 + math.pi / (2 * n))
    mad = statistics.median(away) * MAD_TO_SD
    return (mad or math.fsum(a / len(away) for a in away) * MEAN_DEVIATION_TO_SD) * known


# ---- Weekdays and event types ------------------------------------------------------------------------------------


def weekday_pattern(
    known: Mapping[date, Mapping[str, Number | None]], last: date, length: int
) -> tuple[list[Weekday], int]:
    """Medians by weekday, and over how many days; nothing when fewer than fourteen are known."""
    span = [last - timedelta(days=n) for n in range(max(length, PATTERN_DAYS))]
    days = [d for d in span if d in known]
    if len(days) < LEAST_PATTERN_DAYS:
        return [], len(days)

    def middle(weekday: int, key: str) -> Number | None:
        values = [v for d in days if d.weekday() == weekday and (v := known[d].get(key)) is not None]
        return statistics.median(values) if values else None

    return [
        Weekday(
            w, sum(d.weekday() == w for d in days), middle(w, "events"), middle(w, "users"),
            middle(w, "median_duration"), middle(w, "value"),
        )
        for w in range(7)
    ], len(days)  # fmt: skip


def type_changes(types: pl.DataFrame, span: Sequence[date], before: Sequence[date]) -> pl.DataFrame:
    """Each event type's counts in known days ``span`` against those in known days ``before``, largest change first."""

    def counts(days: Sequence[date], name: str) -> pl.DataFrame:
        chosen = types.filter(pl.col("date").is_in(list(days)))
        return chosen.group_by("event_type").agg(pl.col("count").sum().alias(name))

    joined = counts(span, "count").join(counts(before, "was"), on="event_type", how="full", coalesce=True)
    joined = joined.with_columns(pl.col("count", "was").fill_null(0).cast(pl.Int64))
    per_day = pl.col("count") / max(len(span), 1)
    was = pl.col("was") / len(before) if before else pl.lit(None, pl.Float64)
    share = _share("count")
    return (
        joined.with_columns(per_day=per_day, before=was, share=share)
        .with_columns(
            change=pl.col("per_day") - pl.col("before"),
            share_change=share - _share("was") if before else pl.lit(None, pl.Float64),
        )
        .sort([pl.col("change").abs().fill_null(0), "count", "event_type"], descending=[True, True, False])
        .select("event_type", "count", "per_day", "before", "change", "share", "share_change")
    )


def _share(name: str) -> pl.Expr:
    total = pl.col(name).sum()
    return pl.when(total > 0).then(pl.col(name) / total)


# ---- Verdict -----------------------------------------------------------------------------------------------------


def _findings(
    days: Sequence[PeriodDay], missing: Sequence[date], callouts: Sequence[Callout], totals: Mapping[str, int]
) -> list[Finding]:
    found = []
    lost = totals["rows_in"] - totals["valid"] - totals["quarantined"] - totals["duplicate"]
    if lost:
        found.append(Finding("fail", "Rows do not add up", f"{text.count(lost)} of them are not accounted for"))
    for verdict in (REFUSED, "Needs attention", "Worth a look"):
        of_verdict = [d.day for d in days if d.verdict == verdict]
        if of_verdict:
            title = f"{verdict}: {text.plural(len(of_verdict), 'day')}"
            found.append(Finding(LEVELS[verdict], title, _named(of_verdict)))
    if missing:
        title = f"Missing: {text.plural(len(missing), 'day')}"
        found.append(Finding("warn", title, f"{_named(missing)}; left out of every figure"))
    if callouts:
        called = sorted({c.day for c in callouts})
        title = f"{text.plural(len(callouts), 'number')} out of line"
        found.append(Finding("warn", title, _named(called)))
    return found


def _named(days: Sequence[date]) -> str:
    """At most seven days by name."""
    return text.days(days) if len(days) <= MOST_NAMED else f"{text.days(days[:MOST_NAMED])} …"


def _sentence(
    days: Sequence[PeriodDay],
    missing: Sequence[date],
    counted: Mapping[str, int],
    callouts: Sequence[Callout],
    totals: Mapping[str, int],
) -> str:
    """Our words and numbers only."""
    parts = [f"{text.count(len(days) - len(missing))} of {text.plural(len(days), 'day')} have figures"]
    parts += [f"{text.count(number)} {verdict.lower()}" for verdict, number in counted.items()]
    whole = totals["valid"] + totals["quarantined"] + totals["duplicate"] == totals["rows_in"]
    parts.append(f"{text.plural(totals['rows_in'], 'row')} in, {'' if whole else 'not '}every one accounted for")
    if callouts:
        parts.append(f"{text.plural(len(callouts), 'number')} out of line")
    return "; ".join(parts) + "."
