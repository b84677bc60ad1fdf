"""From the figures of a period to what its page says and draws.

Here: titles that state the finding, charts with their spoken labels. Not here: the figures (``period.py``), markup
(``svgkit.py``) and the order of the page (``period.html.j2``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_assets.report import svgkit, text
from data_assets.report.period import LEVELS, PATTERN_DAYS
from data_assets.report.view import MOST_FINDINGS, SATURDAY, Card, Panel

if TYPE_CHECKING:
    from markupsafe import Markup

    from data_assets.report.model import Level, Number
    from data_assets.report.period import Callout, PeriodFigures, PeriodNumber, TypeChange

MOST_CALLOUTS = 20
OPEN_TABLE_DAYS = 31
MOST_TABLE_DAYS = 92
MOST_RUNS = 50
SUBTITLES = {
    "quarantine_rate": "quarantined share of rows in",
    "median_duration": "median of each day’s durations",
    "users": "distinct users a day",
    "value": "sum of value a day",
    "outliers": "events outside the fences a day",
}


@dataclass(frozen=True)
class Page:
    """All that the template needs beyond the figures."""

    level: Level
    title: str
    cards: Sequence[Card]
    trend: Sequence[Panel]
    weekday_sentence: str
    weekday_bars: Sequence[Markup]
    type_sentence: str
    type_bars: Sequence[Markup]
    most_findings: int = MOST_FINDINGS


def page(figures: PeriodFigures) -> Page:
    """The whole page."""
    return Page(
        level=LEVELS[figures.verdict],
        title=text.period(figures.first, figures.last),
        cards=[_card(figures, n) for n in figures.headline],
        trend=_panels(figures),
        weekday_sentence=weekday_sentence(figures),
        weekday_bars=_bars([w.events for w in figures.weekdays]),
        type_sentence=type_sentence(figures),
        type_bars=_bars([t.per_day for t in figures.types]),
    )


def change(number: PeriodNumber) -> str:
    """How the number compares with as many days before."""
    return text.change(number.change, number.kind) if number.change is not None else "no days before"


def slope(number: PeriodNumber) -> str:
    """The trend in a few words."""
    per_week = number.trend.per_week
    if per_week is None:
        return "too few days for a trend"
    if not number.trend.is_clear:
        return "no clear trend"
    size = text.figure(abs(per_week), number.kind) if number.kind != "rate" else f"{abs(per_week) * 100:.2f} pts"
    return f"{'rising' if per_week > 0 else 'falling'} by {size} a week"


def callout(found: Callout) -> str:
    """Why a number is out of line."""
    where = f"the {found.days} {text.WEEKDAYS[found.day.weekday()]}s before"
    where = where if found.baseline == "weekday" else f"the {found.days} days before"
    return f"usual {text.span(found.low, found.high, found.kind)} by {where}"


def _card(figures: PeriodFigures, number: PeriodNumber) -> Card:
    values = [d.figures.get(number.key) for d in figures.days]
    shown = text.figure(number.value, number.kind)
    label = f"{number.label} over {text.plural(len(values), 'day')}: {shown}, {slope(number)}."
    called = len({c.day for c in figures.callouts if c.key == number.key})
    chart = svgkit.spark(values, None, is_loud=False, label=label)
    first, second = change(number), slope(number)
    if called:
        first, second = f"{text.plural(called, 'day')} out of line", f"{first}; {second}"
    return Card(number.key, number.label, number.kind, number.value, first, second, chart, is_hot=bool(called))


def _panels(figures: PeriodFigures) -> list[Panel]:
    slots = [
        svgkit.Slot(text.tick_date(d.day), text.short_date(d.day), d.day.weekday() >= SATURDAY, d.is_missing)
        for d in figures.days
    ]
    stacks: list[list[Number] | None] = [
        [d.figures.get(k) or 0 for k in ("valid", "duplicate", "quarantined")] if d.figures else None
        for d in figures.days
    ]
    rows = text.plural(figures.totals["rows_in"], "row")
    label = f"Rows in per day, stacked as valid, duplicate and quarantined; {rows} in all."
    bars = svgkit.day_bars(slots, stacks, ["bar", "dup", "bar hot"], svgkit.Axis(text.compact), label)
    lines = [_line(figures, slots, number) for number in figures.headline if number.key in SUBTITLES]
    return [Panel(f"{rows} came in", "valid, duplicate and quarantined rows a day", bars), *lines]


def _line(figures: PeriodFigures, slots: Sequence[svgkit.Slot], number: PeriodNumber) -> Panel:
    called = {c.day for c in figures.callouts if c.key == number.key}
    places = {i for i, d in enumerate(figures.days) if d.day in called}
    values = [d.figures.get(number.key) for d in figures.days]
    out = f"; {text.plural(len(called), 'day')} out of line" if called else ""
    label = f"{number.label} per day; {slope(number)}{out}."
    axis = svgkit.Axis(text.compact)
    if number.kind == "seconds":
        axis = svgkit.Axis(text.seconds, text.unit(number.value or 1))
    elif number.kind == "rate":
        axis = svgkit.Axis(lambda share: f"{share * 100:.3g}%")
    chart = svgkit.day_line(slots, values, axis, label, loud_days=places)
    return Panel(f"{number.label}: {slope(number)}", SUBTITLES[number.key] + out, chart)


def weekday_sentence(figures: PeriodFigures) -> str:
    """Which weekday is the busiest, and which the quietest."""
    known = [(w.events, text.WEEKDAYS[w.weekday]) for w in figures.weekdays if w.events is not None]
    if not known:
        return "A weekday pattern takes fourteen days with figures."
    most, least = max(known, key=lambda k: k[0]), min(known, key=lambda k: k[0])
    span = "the period" if len(figures.days) >= PATTERN_DAYS else f"the {PATTERN_DAYS} days up to its end"
    first = f"Medians by weekday over {span}, of which {text.plural(figures.weekday_days, 'day')} have figures."
    if most[0] == least[0]:
        return f"{first} Every weekday has as many events."
    share = (most[0] - least[0]) / most[0]
    return f"{first} {most[1]}s have the most events; {least[1]}s the fewest, {text.percent(share)} less."


def type_sentence(figures: PeriodFigures) -> str:
    """How many types there are, and what they are compared with."""
    if not figures.types:
        return "There are no events."
    compared = all(t.change is not None for t in figures.types)
    how = "the largest change in events a day first" if compared else "there are no days before to compare with"
    return f"{text.plural(figures.type_count, 'event type')}; {how}."


def type_state(found: TypeChange) -> str:
    """Whether a type is new or gone, else its relative change."""
    if found.before is None:
        return text.DASH
    if not found.before:
        return "new"
    if not found.count:
        return "gone"
    return text.change((found.change or 0) / found.before, "count")


def _bars(values: Sequence[Number | None]) -> list[Markup]:
    top = max((v for v in values if v is not None), default=0) or 1
    return [svgkit.share_bar((v or 0) / top) for v in values]
