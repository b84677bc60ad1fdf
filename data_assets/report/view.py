"""From figures to what the page says and draws.

Here: titles that state the finding, charts with their spoken labels. Not here: the figures (``figures.py``), markup
(``svgkit.py``) and the order of the page (``report.html.j2``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_assets.report import svgkit, text

if TYPE_CHECKING:
    from markupsafe import Markup

    from data_assets.report.model import Figures, Headline, Histogram, Kind, Level, Number, TrendDay, Verdict

LEVELS: dict[Verdict, Level] = {"All clear": "ok", "Worth a look": "warn", "Needs attention": "fail"}
SATURDAY = 5
MOST_FINDINGS = 8
MOST_FILES = 40
MOST_REASONS = 20
MOST_CHECKS = 60
MOST_COLUMNS = 40
EVEN, FAIRLY_EVEN, VERY_UNEVEN = 0.1, 0.3, 0.6  # Cramér's V
SMALLEST_P = 0.01


@dataclass(frozen=True)
class Card:
    """One headline number as shown; one that is unusual stands out, and says why in words."""

    key: str
    label: str
    kind: Kind
    value: Number | None
    change: str
    usual: str
    chart: Markup
    is_hot: bool


@dataclass(frozen=True)
class Panel:
    """One chart with the sentence that it proves; ``chart`` is None when there is nothing to draw."""

    title: str
    subtitle: str
    chart: Markup | None
    note: str = ""


@dataclass(frozen=True)
class Page:
    """All that the template needs beyond the figures."""

    level: Level
    cards: Sequence[Card]
    trend: Sequence[Panel]
    distributions: Sequence[Panel]
    mix_sentence: str
    mix_bars: Sequence[Markup]
    outlier_sentence: str
    conservation_bar: Markup
    reason_bars: Sequence[Markup]
    late: str
    duplicates: str
    cleaning: str
    without_rows: str


def page(figures: Figures) -> Page:
    """The whole page."""
    return Page(
        level=LEVELS[figures.verdict],
        cards=[_card(h, figures.trend) for h in figures.headline],
        trend=_trend(figures),
        distributions=[_durations(figures.duration_histogram), _values(figures)],
        mix_sentence=mix_sentence(figures),
        mix_bars=_mix_bars(figures),
        outlier_sentence=_outliers(figures),
        conservation_bar=_conservation(figures),
        reason_bars=_reason_bars(figures),
        late=late(figures),
        duplicates=duplicates(figures),
        cleaning=cleaning(figures),
        without_rows=without_rows(figures),
    )


def change(headline: Headline) -> str:
    """How the number compares with the median, in a few characters."""
    if headline.days == 0:
        return "no earlier day"
    if headline.value is None:
        return f"none; median {text.figure(headline.median, headline.kind)}"
    if headline.change is None:
        was = text.figure(headline.median, headline.kind)
        return "as before" if headline.value == headline.median else f"median {was}"
    return text.change(headline.change, headline.kind)


def _band(headline: Headline) -> tuple[Number, Number] | None:
    return None if headline.low is None or headline.high is None else (headline.low, headline.high)


def _usual(headline: Headline) -> str:
    return (
        "no usual range yet"
        if headline.low is None
        else f"usual {text.span(headline.low, headline.high, headline.kind)}"
    )


def _card(headline: Headline, trend: Sequence[TrendDay]) -> Card:
    values = [d.figures.get(headline.key) for d in trend]
    value = text.figure(headline.value, headline.kind)
    words = "unusual, " if headline.is_unusual else ""
    label = f"{headline.label} over {text.plural(len(values), 'day')}; now {value}, {words}{_usual(headline)}."
    chart = svgkit.spark(values, _band(headline), is_loud=headline.is_unusual, label=label)
    change_ = change(headline) + (" unusual" if headline.is_unusual else "")
    return Card(headline.key, headline.label, headline.kind, headline.value, change_, _usual(headline), chart,
                is_hot=headline.is_unusual)  # fmt: skip


# ---- Trend -------------------------------------------------------------------------------------------------------


def _axis(headline: Headline) -> svgkit.Axis:
    if headline.kind == "seconds":
        return svgkit.Axis(text.seconds, text.unit(headline.value or headline.median or 1))
    if headline.kind == "rate":
        return svgkit.Axis(lambda share: f"{share * 100:.3g}%")
    return svgkit.Axis(text.compact)


def _slots(trend: Sequence[TrendDay]) -> list[svgkit.Slot]:
    return [
        svgkit.Slot(text.tick_date(d.day), text.short_date(d.day), d.day.weekday() >= SATURDAY, d.is_missing)
        for d in trend
    ]


def _trend(figures: Figures) -> list[Panel]:
    slots = _slots(figures.trend)
    by_key = {h.key: h for h in figures.headline}
    subtitles = {
        "quarantine_rate": "quarantined share of rows in",
        "median_duration": "median of the day’s durations",
        "users": "distinct users a day",
        "value": "sum of value a day",
        "outliers": "events outside the fences a day",
    }
    return [_rows_in(figures, slots), *(_line(figures, slots, by_key[k], words) for k, words in subtitles.items())]


def _rows_in(figures: Figures, slots: Sequence[svgkit.Slot]) -> Panel:
    def stack(day: TrendDay) -> list[Number] | None:
        parts = [day.figures.get(k) for k in ("valid", "duplicate", "quarantined")]
        return [p or 0 for p in parts] if any(p is not None for p in parts) else None

    rows = text.count(figures.conservation.rows_in)
    return Panel(
        f"{text.plural(figures.conservation.rows_in, 'row')} came in",
        "valid, duplicate and quarantined rows a day",
        svgkit.day_bars(
            slots,
            [stack(d) for d in figures.trend],
            ["bar", "dup", "bar hot"],
            svgkit.Axis(text.compact),
            f"Rows in per day, stacked as valid, duplicate and quarantined; this day {rows}.",
        ),
    )


def _line(figures: Figures, slots: Sequence[svgkit.Slot], headline: Headline, subtitle: str) -> Panel:
    values = [d.figures.get(headline.key) for d in figures.trend]
    value = text.figure(headline.value, headline.kind)
    if headline.value is None:
        title = f"{headline.label}: none on this day"
    elif headline.low is None or headline.high is None:
        title = f"{headline.label}: {value}"
    elif headline.is_unusual:
        title = f"{headline.label}: {'above' if headline.value > headline.high else 'below'} the usual range"
    else:
        title = f"{headline.label}: in the usual range"
    ceiling = None
    if headline.key == "quarantine_rate":
        ceiling = svgkit.Mark(figures.max_quarantine_rate, f"limit {text.limit(figures.max_quarantine_rate)}")
        is_over = (headline.value or 0) > figures.max_quarantine_rate
        title = f"{headline.label}: {value}, above the limit" if is_over else title
        if max((v for v in values if v is not None), default=figures.max_quarantine_rate) < ceiling.at / 8:
            ceiling = None  # far away: it would flatten the line
            subtitle += f"; the limit of {text.limit(figures.max_quarantine_rate)} is far above"
    chart = svgkit.day_line(
        slots,
        values,
        _axis(headline),
        f"{headline.label} per day; this day {value}; {_usual(headline)}.",
        band=_band(headline),
        ceiling=ceiling,
        is_loud=headline.is_unusual or (ceiling is not None and (headline.value or 0) > ceiling.at),
    )
    return Panel(title, subtitle, chart)


# ---- Distributions -----------------------------------------------------------------------------------------------


def _durations(figures: Histogram) -> Panel:
    verb = "has" if figures.left_out == 1 else "have"
    left_out = f"{text.plural(figures.left_out, 'duration')} of zero or less {verb} no place on this scale."
    note = left_out if figures.left_out else ""
    if not figures.bins:
        return Panel("No duration above zero", "events by duration, log scale", None, note)
    median = text.seconds(figures.median)
    title = f"Half of the durations are {median} or less" if figures.median is not None else "Durations"
    marks = [svgkit.Mark(figures.median, f"median {median}")] if figures.median is not None else []
    first, last = text.seconds(figures.bins[0].start), text.seconds(figures.bins[-1].end)
    label = f"{text.plural(figures.count, 'event')} by duration, from {first} to {last}; median {median}."
    return Panel(title, "events by duration, log scale", svgkit.histogram(figures, text.seconds, marks, label), note)


def _values(figures: Figures) -> Panel:
    bins = figures.value_histogram
    if not bins.bins:
        return Panel("No event has a value", "events by value", None)
    median, lower, upper = (text.amount(v) for v in (bins.median, bins.lower, bins.upper))
    outliers = figures.kpis.get("outliers")
    title = f"Half of the values are {median} or less" if bins.median is not None else "Values"
    if outliers:
        title += f"; {text.count(outliers)} {'lies' if outliers == 1 else 'lie'} outside the fences"
    lines = ((bins.lower, f"fence {lower}"), (bins.median, f"median {median}"), (bins.upper, f"fence {upper}"))
    marks = [svgkit.Mark(at, words) for at, words in lines if at is not None]
    ends = [w for w, is_open in (("first", bins.is_open_low), ("last", bins.is_open_high)) if is_open]
    verb = "bars hold" if len(ends) > 1 else "bar holds"
    note = f"The {' and '.join(ends)} {verb} everything beyond too." if ends else ""
    label = f"{text.plural(bins.count, 'event')} by value; median {median}, fences {lower} and {upper}."
    return Panel(title, "events by value", svgkit.histogram(bins, text.compact, marks, label), note)


def statistic(row: Mapping[str, Any], name: str) -> str:
    """One cell of the summary statistics, in the unit of its column."""
    value = row.get(name)
    column = row["column_name"]
    if name in ("count", "null_count", "n_unique"):
        return text.count(value)
    if name in ("min", "max"):
        number = _parsed(value) if row.get("mean") is not None else None
        if number is None:
            return text.short(value, 24)
        value = number
    if column == "duration":
        return text.seconds(value)
    if column in ("session_start", "session_end"):
        return text.seconds(value) if name == "std" else text.clock(value)
    return text.amount(value)


def _parsed(value: object) -> Number | None:
    try:
        return text.finite(float(str(value)))
    except ValueError:
        return None


# ---- Event mix, outliers, quality --------------------------------------------------------------------------------


def mix_sentence(figures: Figures) -> str:
    """The event mix in words: V says how uneven, p hardly anything."""
    mix = figures.event_mix
    if not mix.types:
        return "There are no events."
    top = mix.shares[0]
    if mix.types == 1:
        return "All events are of one type."
    first = f"{text.count(mix.types)} types; the most frequent makes up {text.percent(top.proportion)}."
    if mix.chi_square is None or mix.cramers_v is None:
        return first
    v = mix.cramers_v
    word = "even" if v < EVEN else "fairly even" if v < FAIRLY_EVEN else "uneven"
    word = "very uneven" if v >= VERY_UNEVEN else word
    is_tiny = mix.p_value is not None and mix.p_value < SMALLEST_P
    p = f"p < {SMALLEST_P}" if is_tiny else f"p = {text.effect(mix.p_value)}"
    degrees = text.plural(mix.degrees_of_freedom or 0, "degree")
    return (
        f"{first} Against equal shares: χ² = {text.amount(mix.chi_square)} on {degrees} of freedom ({p}), "
        f"Cramér’s V = {text.effect(v)}: {word}. "
        "With many rows every mix differs from equal shares, so read V, not p."
    )


def _mix_bars(figures: Figures) -> list[Markup]:
    shares = figures.event_mix.shares
    top = max((s.proportion or 0 for s in shares), default=0) or 1
    equal = 1 / figures.event_mix.types / top if figures.event_mix.types > 1 else None
    tick = equal if equal is not None and equal <= 1 else None
    return [svgkit.share_bar((s.proportion or 0) / top, tick if s.event_type is not None else None) for s in shares]


def _outliers(figures: Figures) -> str:
    number, events = figures.kpis.get("outliers"), figures.kpis.get("events")
    if not events:
        return "There are no events."
    if figures.value_histogram.lower is None:
        return "No event has a value, so there are no fences."
    lower, upper = text.amount(figures.value_histogram.lower), text.amount(figures.value_histogram.upper)
    return (
        f"{text.count(number)} of {text.plural(int(events), 'event')} ({text.percent(figures.outlier_share)}) have a "
        f"value outside {lower} to {upper} (quartiles ± {figures.outlier_factor:g} · IQR)."
    )


def _conservation(figures: Figures) -> Markup:
    c = figures.conservation
    whole = max(c.rows_in, c.valid + c.quarantined + c.duplicate, 1)
    parts = [(c.valid / whole, "bar"), (c.duplicate / whole, "dup"), (c.quarantined / whole, "bar hot")]
    return svgkit.parts_bar(
        parts,
        f"{text.count(c.rows_in)} rows in: {text.count(c.valid)} valid, {text.count(c.duplicate)} duplicate, "
        f"{text.count(c.quarantined)} quarantined.",
    )


def _reason_bars(figures: Figures) -> list[Markup]:
    rows = [int(r["rows"] or 0) for r in figures.quarantine_reasons[:MOST_REASONS]]
    top = max(rows, default=0) or 1
    return [svgkit.share_bar(r / top, is_loud=True) for r in rows]


def late(figures: Figures) -> str:
    """How many rows came late, and by how many days."""
    number = figures.conservation.late
    if not number:
        return "no row"
    most, mean = figures.kpis.get("late_max_days"), figures.kpis.get("late_mean_days")
    if not most or mean is None:
        return text.count(number)
    return f"{text.count(number)}; {text.plural(int(most), 'day')} at most, {text.amount(mean)} on average"


def duplicates(figures: Figures) -> str:
    """How many rows were dropped because they repeat another."""
    c = figures.conservation
    return f"{text.count(c.duplicate)} ({text.percent(c.duplicate / c.rows_in)})" if c.duplicate else "no row"


def cleaning(figures: Figures) -> str:
    """Which policies were on, and what they changed."""
    if not figures.policies:
        return "nothing is configured"
    settings = ", ".join(f"{name} {setting}" for name, setting in figures.policies.items())
    rows = ", ".join(f"{text.count(n)} {name.replace('_', ' ')}" for name, n in figures.policy_rows.items())
    return f"{settings}: {rows}" if rows else settings


def without_rows(figures: Figures) -> str:
    """For which days nothing landed."""
    return text.days(figures.without_rows) if figures.without_rows else "no day"
