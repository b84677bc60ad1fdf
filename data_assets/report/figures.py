"""Every figure of the report, computed once.

Here: comparison with the days before, what needs a look, the verdict, top tens, conservation. Not here: the histograms'
bins (``bins.py``), wording of charts and markup (``view.py``, ``svgkit.py``).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import polars as pl

from data_assets.engine import chosen
from data_assets.report import text
from data_assets.report.bins import duration_histogram, value_histogram
from data_assets.report.model import (
    CheckResult,
    Conservation,
    DayInput,
    EventMix,
    EventShare,
    Figures,
    Finding,
    Headline,
    Kind,
    Number,
    TrendDay,
    Verdict,
)

HEADLINES: tuple[tuple[str, str, Kind], ...] = (
    ("events", "Events", "count"),
    ("users", "Users", "count"),
    ("median_duration", "Median duration", "seconds"),
    ("value", "Total value", "amount"),
    ("outliers", "Outliers", "count"),
    ("quarantine_rate", "Quarantine rate", "rate"),
)
TREND_FIGURES = ("rows_in", "valid", "quarantined", "duplicate", "quarantine_rate", "users", "events",
                 "median_duration", "value", "outliers")  # fmt: skip
MOST_EVENT_TYPES = 12
MOST_ROWS = 10
LEAST_DAYS = 5
SPREADS = 3
MAD_TO_SD = 1.4826
DEFINITIONS: Mapping[str, str] = {
    "Day": "Rows belong to the day of their session_start in the time zone above, whatever file they came in. A row "
    "whose start cannot be read belongs to its file's home day.",
    "Rows in": "Physical records of the day in all files; each is exactly one of valid, quarantined or duplicate.",
    "Events": "Rows that kept every rule. An event counts as one session.",
    "Users": "Distinct user_id among the day's events.",
    "Quarantine rate": "Quarantined rows divided by rows in.",
    "Duration": "session_end minus session_start. A missing end is taken from the same user's next row that has one.",
    "Anomaly": "A duration of zero or less.",
    "Total value": "Sum of value over the day's events.",
    "Outlier": "An event whose value lies below q1 − f · IQR or above q3 + f · IQR (linear quartiles, f configured). "
    "Where values are skewed, a few per cent of a healthy day lie there; look at the change.",
    "Outlier score": "(value − median) / sample standard deviation of the day.",
    "Usual range": "Median ± 3 · 1.4826 · MAD of the earlier days in the trend; it takes at least five of them.",
    "Unusual": "Outside the usual range, or absent although the earlier days have it.",
    "Cramér’s V": "√(χ² / (n · degrees of freedom)) against equal shares: 0 all types equally frequent, 1 only one.",
    "Late rows": "Rows that came in a file whose home day is later than theirs; how late is the days between the two.",
    "Missing day": "A day after the first known one in the trend without daily_kpis; left out, never counted as zero.",
    "Day without rows": "A day between the first and this one for which no file holds a row.",
    "Cleaning": "What the configuration changes in valid rows, and how many of them each policy touched.",
    "Read by": "fast: the engine alone. exact: record by record, because the file needs it. mixed: both.",
}


def summarise(day: DayInput) -> Figures:
    """Every figure of the day."""
    kpis = {name: text.finite(value) for name, value in day.kpis.items() if name != "date"}
    trend = _trend(day, kpis)
    earlier = [d for d in trend[:-1] if d.figures]
    headline = [_headline(key, label, kind, trend[-1].figures, earlier) for key, label, kind in HEADLINES]
    missing = [d.day for d in trend if d.is_missing]
    conservation = _conservation(kpis, day.files)
    findings = _findings(day, headline, missing, conservation)
    verdict = _verdict(findings)
    described = {row["column_name"]: row for row in day.summary_statistics.to_dicts()}
    of_value = described.get("value", {})
    lower, upper = _fences(day, of_value)
    events = kpis.get("events")
    outliers = kpis.get("outliers")
    anomalies, users_with_anomalies = _top_anomalies(day.session_metrics)
    return Figures(
        day=day.day,
        timezone=day.timezone,
        verdict=verdict,
        sentence=_sentence(conservation, headline, findings, missing),
        kpis=kpis,
        headline=headline,
        findings=findings,
        trend=trend,
        missing_days=missing,
        without_rows=sorted(day.without_rows),
        duration_histogram=duration_histogram(day.events.lengths, _number(kpis.get("median_duration"))),
        value_histogram=value_histogram(day.events, median=_number(of_value.get("p50")), lower=lower, upper=upper),
        summary_statistics=list(described.values()),
        event_mix=_mix(day.event_distribution),
        outlier_share=outliers / events if events and outliers is not None else None,
        outlier_factor=day.outlier_factor,
        top_outliers=_top_outliers(day.outliers),
        top_anomalies=anomalies,
        users_with_anomalies=users_with_anomalies,
        conservation=conservation,
        max_quarantine_rate=day.max_quarantine_rate,
        quarantine_reasons=_rows(day.quarantine_reasons.sort(["rows", "reason"], descending=[True, False])),
        schema=next((c.observed for c in day.checks if c.name == "schema_drift"), None),
        policies=dict(sorted(day.policies.items())),
        policy_rows=dict(sorted(day.policy_rows.items())),
        checks=sorted(day.checks, key=_check_order),
        files=_rows(day.files.sort("path")),
        versions=dict(sorted(day.versions.items())),
        definitions=DEFINITIONS,
    )


def _number(value: object) -> float | None:
    number = text.finite(value)
    return None if number is None else float(number)


def _rows(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dicts()


def _check_order(check: CheckResult) -> tuple[int, str, str]:
    return (("fail", "warn", "info", "ok").index(check.level), check.asset, check.name)


# ---- The days before ---------------------------------------------------------------------------------------------


def with_rate(row: Mapping[str, object]) -> dict[str, Number | None]:
    """The trend's figures of a row of daily_kpis, and its quarantine rate."""
    known = {name: text.finite(row.get(name)) for name in TREND_FIGURES}
    rows_in, quarantined = known["rows_in"], known["quarantined"]
    known["quarantine_rate"] = quarantined / rows_in if rows_in and quarantined is not None else None
    return known


def _trend(day: DayInput, kpis: Mapping[str, Number | None]) -> list[TrendDay]:
    """The window's days in order, this day last. Days before the first known one are not missing."""
    window = [day.day - timedelta(days=back) for back in range(day.trend_days, 0, -1)]
    known = {row["date"]: row for row in day.history.iter_rows(named=True)} if day.history.width else {}
    first = min((d for d in window if d in known), default=day.day)
    past = [
        TrendDay(d, is_missing=d not in known and d > first, figures=with_rate(known[d]) if d in known else {})
        for d in window
    ]
    return [*past, TrendDay(day.day, is_missing=False, figures=with_rate(kpis))]


def _headline(
    key: str, label: str, kind: Kind, today: Mapping[str, Number | None], earlier: Sequence[TrendDay]
) -> Headline:
    value = today.get(key)
    past = [p for d in earlier if (p := d.figures.get(key)) is not None]
    if not past:
        return Headline(key, label, kind, value, None, None, None, 0, None, False)
    median = statistics.median(past)
    low = high = None
    is_unusual = False
    if len(past) >= LEAST_DAYS:
        spread = SPREADS * MAD_TO_SD * statistics.median(abs(p - median) for p in past)
        low, high = median - spread, median + spread
        if kind in ("count", "rate"):
            low = max(low, 0)
        slack = 1e-9 * max(abs(low), abs(high))  # rounding is not news
        is_outside = value is None or not low - slack <= value <= high + slack
        is_unusual = is_outside and math.isfinite(slack) and (value is not None or bool(today.get("events")))
    change = None
    if value is not None and kind == "rate":
        change = value - median
    elif value is not None and median:
        change = (value - median) / abs(median)
    low, high = text.finite(low), text.finite(high)
    return Headline(key, label, kind, value, median, low, high, len(past), text.finite(change), is_unusual)


# ---- Verdict -----------------------------------------------------------------------------------------------------


def _conservation(kpis: Mapping[str, Number | None], files: pl.DataFrame) -> Conservation:
    def whole(name: str) -> int:
        return int(kpis.get(name) or 0)

    parts = whole("valid") + whole("quarantined") + whole("duplicate")
    odd = int((files["rows"] != files["valid"] + files["quarantined"] + files["duplicate"]).sum())
    return Conservation(
        whole("rows_in"), whole("valid"), whole("quarantined"), whole("duplicate"), whole("late"),
        whole("rows_in") - parts, odd,
    )  # fmt: skip


def _findings(
    day: DayInput, headline: Sequence[Headline], missing: Sequence[date], conservation: Conservation
) -> list[Finding]:
    found = []
    if conservation.unaccounted or conservation.files_not_adding_up:
        found.append(
            Finding(
                "fail",
                "Rows do not add up",
                f"{text.count(conservation.unaccounted)} more came in than are valid, quarantined or duplicate; "
                f"{text.plural(conservation.files_not_adding_up, 'file')} not accounted for",
            )
        )
    failed = [c for c in day.checks if not c.passed]
    found += [
        Finding(
            c.level,
            f"{c.asset}: {c.name}",
            f"check {'warned' if c.level == 'warn' else 'failed'} – {c.observed or 'nothing observed'}",
        )
        for c in sorted(failed, key=_check_order)
    ]
    found += [f for h in headline if (f := _headline_finding(h, day.max_quarantine_rate)) is not None]
    events = headline[0]
    if not conservation.rows_in and not events.is_unusual and (events.low is None or events.low > 0):
        found.append(Finding("warn", "No rows came in", "no file holds rows of this day"))
    if missing:
        names = ", ".join(text.short_date(d) for d in missing[:5]) + (" …" if len(missing) > 5 else "")
        found.append(
            Finding(
                "info",
                f"{text.plural(len(missing), 'earlier day')} without figures",
                f"{names}: left out of the medians, drawn as a gap (×)",
            )
        )
    first = day.day - timedelta(days=day.trend_days)
    empty = [d for d in day.without_rows if d >= first and d not in missing and d != day.day]
    if empty:
        found.append(
            Finding(
                "info", f"{text.plural(len(empty), 'earlier day')} without rows", f"{text.days(empty)}: nothing landed"
            )
        )
    return sorted(found, key=lambda f: ("fail", "warn", "info", "ok").index(f.level))


def _headline_finding(headline: Headline, max_quarantine_rate: float) -> Finding | None:
    value = text.figure(headline.value, headline.kind)
    notes = []
    is_over = headline.key == "quarantine_rate" and (headline.value or 0) > max_quarantine_rate
    if is_over:
        notes.append(f"above the limit of {text.limit(max_quarantine_rate)}")
    if headline.is_unusual:
        notes.append(f"unusual, the usual range is {text.span(headline.low, headline.high, headline.kind)}")
    if not notes:
        return None
    return Finding("fail" if is_over else "warn", f"{headline.label}: {value}", "; ".join(notes))


def _verdict(findings: Sequence[Finding]) -> Verdict:
    levels = {f.level for f in findings}
    return "Needs attention" if "fail" in levels else "Worth a look" if "warn" in levels else "All clear"


def _sentence(
    conservation: Conservation, headline: Sequence[Headline], findings: Sequence[Finding], missing: Sequence[date]
) -> str:
    """Our words and numbers only: this sentence travels to places that do not escape."""
    rows = text.plural(conservation.rows_in, "row")
    if not conservation.rows_in and not conservation.unaccounted:
        parts = ["No rows came in"]
    elif conservation.unaccounted or conservation.files_not_adding_up:
        parts = [f"{rows} in, not every one accounted for"]
    else:
        parts = [f"{rows} in, every one accounted for" if conservation.rows_in > 1 else f"{rows} in, accounted for"]
    for level, word in (("fail", "failed"), ("warn", "warned")):
        number = sum(f.level == level and f.detail.startswith("check ") for f in findings)
        if number:
            parts.append(f"{text.plural(number, 'check')} {word}")
    if any("above the limit" in f.detail and not f.detail.startswith("check ") for f in findings):
        parts.append(f"{text.percent(headline[-1].value)} of the rows are quarantined, more than allowed")
    unusual = sum(h.is_unusual for h in headline)
    if unusual:
        parts.append(
            f"{unusual} of {len(headline)} headline numbers {'is' if unusual == 1 else 'are'} outside "
            f"{'its' if unusual == 1 else 'their'} usual range"
        )
    elif any(h.low is not None for h in headline):
        parts.append("every headline number is in its usual range")
    else:
        days = max(h.days for h in headline)
        parts.append(
            f"only {text.plural(days, 'earlier day')} to compare with" if days else "no earlier day to compare with"
        )
    if missing:
        parts.append(f"{text.plural(len(missing), 'earlier day')} {'is' if len(missing) == 1 else 'are'} missing")
    return "; ".join(parts) + "."


# ---- Tables ------------------------------------------------------------------------------------------------------


def _fences(day: DayInput, of_value: Mapping[str, object]) -> tuple[float | None, float | None]:
    """The day's own fences where an outlier carries them, else from the quartiles."""
    carried = day.outliers.select("iqr_lower", "iqr_upper").head(1).collect(engine=chosen())
    if carried.height:
        return _number(carried["iqr_lower"][0]), _number(carried["iqr_upper"][0])
    q1, q3 = (_number(of_value.get(quartile)) for quartile in ("p25", "p75"))
    if q1 is None or q3 is None:
        return None, None
    reach = day.outlier_factor * (q3 - q1)
    return _number(q1 - reach), _number(q3 + reach)


def _mix(distribution: pl.DataFrame) -> EventMix:
    ordered = distribution.sort(["count", "event_type"], descending=[True, False], multithreaded=False)
    top = ordered.head(MOST_EVENT_TYPES)
    shares = [
        EventShare(row["event_type"], row["count"], _number(row["proportion"]), _number(row["cumulative"]))
        for row in top.iter_rows(named=True)
    ]
    events = int(ordered["count"].sum())
    rest = ordered.slice(MOST_EVENT_TYPES)
    if rest.height:
        number = int(rest["count"].sum())
        shares.append(EventShare(None, number, number / events if events else None, 1.0))
    test = ordered.row(0, named=True) if ordered.height else {}
    return EventMix(
        shares=shares,
        types=ordered.height,
        others=rest.height,
        events=events,
        chi_square=_number(test.get("chi_square")),
        degrees_of_freedom=test.get("degrees_of_freedom"),
        p_value=_number(test.get("p_value")),
        cramers_v=_number(test.get("cramers_v")),
    )


def _top_outliers(outliers: pl.LazyFrame) -> list[dict[str, Any]]:
    columns = ["user_id", "session_start", "event_type", "value", "outlier_score", "iqr_lower", "iqr_upper",
               "source_file", "source_line"]  # fmt: skip
    keys = [pl.col("outlier_score").abs(), pl.col("value").abs(), "source_file", "source_line"]
    # All rows of a bad day at once are much to sort; the tenth score leaves few of them.
    best = outliers.select(pl.col("outlier_score").abs().top_k(MOST_ROWS)).collect(engine=chosen()).to_series()
    found = outliers.select(columns)
    if best.count() == MOST_ROWS:
        found = found.filter(pl.col("outlier_score").abs() >= best.min())
    ordered = found.sort(keys, descending=[True, True, False, False], nulls_last=True)
    return _rows(ordered.head(MOST_ROWS).collect(engine=chosen()))


def _top_anomalies(metrics: pl.LazyFrame) -> tuple[list[dict[str, Any]], int]:
    found = metrics.filter(pl.col("anomaly_count") > 0)
    ordered = found.sort(["anomaly_count", "total_sessions", "user_id"], descending=[True, True, False])
    top, number = pl.collect_all([ordered.head(MOST_ROWS), found.select(pl.len())], engine=chosen())
    return _rows(top), int(number.item())
