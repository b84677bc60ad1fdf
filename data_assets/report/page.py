"""One day or period in, the finished report out.

Here: ``build``, ``build_period``, the Jinja environment (escaping always on, what is invisible made visible, nothing
but an en dash for what is missing), the content security policy, the JSON summary. Not here: the words and charts
(``view.py``, ``period_view.py``, ``plaintext.py``), the figures (``figures.py``, ``period.py``), writing to disk
(``files.py``).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, time
from functools import cache
from typing import TYPE_CHECKING, Any

import polars as pl

from data_assets.errors import visible
from data_assets.report import period, period_view, plaintext, text, view
from data_assets.report.figures import summarise
from data_assets.report.model import DayInput, Figures, Report

if TYPE_CHECKING:
    from jinja2 import Environment

    from data_assets.report.period import PeriodFigures, PeriodInput

STYLE = "report.css"
LONGEST = 2_000


def build(day: DayInput) -> Report:
    """The report of one day: a pure function, so the same day gives the same bytes."""
    figures = summarise(day)
    return Report(
        verdict=figures.verdict,
        sentence=figures.sentence,
        html=_html(figures),
        text=plaintext.day(figures),
        summary=_summary(figures),
        csvs={
            "session_metrics.csv": day.session_metrics,
            "outliers.csv": day.outliers,
            "event_distribution.csv": day.event_distribution.lazy(),
        },
    )


def build_period(days: PeriodInput) -> Report:
    """The report of a period: a pure function as ``build`` is."""
    figures, types = period.summarise(days)
    inside = days.kpis.filter(pl.col("date").is_between(days.first, days.last)).sort("date")
    return Report(
        verdict=figures.verdict,
        sentence=figures.sentence,
        html=render(
            "period.html.j2",
            f=figures,
            v=period_view.page(figures),
            view=period_view,
            levels=period.LEVELS,
            weekdays=text.WEEKDAYS,
        ),
        text=plaintext.period(figures),
        summary={name: value for name, value in _summary(figures).items() if (name, value) != ("runs", None)},
        csvs={"days.csv": inside.lazy(), "event_types.csv": types.lazy()},
    )


def _summary(figures: Figures | PeriodFigures) -> dict[str, Any]:
    return {"schema_version": 1, **plain(figures)}


def plain(value: object) -> Any:  # noqa: ANN401  JSON is Any
    """``value`` as JSON knows it: dates and times as ISO 8601, null for what is no finite number."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return text.finite(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(v) for v in value]
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _finalize(value: object) -> object:
    """The last gate before a value is escaped: nothing missing, not a number or invisible gets through."""
    if value is None or (isinstance(value, float) and text.finite(value) is None):
        return text.DASH
    if type(value) is str and not value.isprintable():  # markup is a subclass and is ours
        return visible(value, LONGEST)
    return value


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("data_assets.report", "."),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for filter_ in (text.count, text.amount, text.seconds, text.clock, text.percent, text.score, text.figure,
                    text.long_date, text.short_date, text.short, text.plural, text.limit, text.change,
                    text.days):  # fmt: skip
        environment.filters[filter_.__name__] = filter_
    return environment


@cache
def _policy() -> str:
    style = _environment().get_template(STYLE).render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _html(figures: Figures) -> str:
    return render("report.html.j2", f=figures, v=view.page(figures), view=view)


def render(template: str, **given: object) -> str:
    """A page from one of the templates beside this file."""
    from data_assets.report import svgkit

    found = _environment().get_template(template)
    return found.render(**given, icon=svgkit.icon, policy=_policy(), dash=text.DASH) + "\n"
