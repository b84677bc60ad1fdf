"""The reports in plain text, for mail and terminals: the verdict first, no line wider than a terminal.

Here: the text version of a day and of a period, from the same figures as the pages. Not here: the wording of single
figures (``text.py``, ``view.py``, ``period_view.py``). Foreign text is cut, and what is invisible in it is shown.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from data_assets.errors import visible
from data_assets.report import period_view, text, view
from data_assets.report.period import LEVELS

if TYPE_CHECKING:
    from data_assets.report.model import Figures, Finding, Level
    from data_assets.report.period import PeriodFigures

WIDTH = 78
LONGEST_LINE = 400
MARKS: dict[Level, str] = {"fail": "✕", "warn": "!", "info": "i", "ok": "✓"}
MOST_ROWS = 8
MOST_FILES = 10


def day(figures: Figures) -> str:
    """The report of a day."""
    c = figures.conservation
    mark = MARKS[view.LEVELS[figures.verdict]]
    lines = _top(f"{text.long_date(figures.day)} ({text.short(figures.timezone, 40)})", mark, figures.verdict)
    lines += _wrapped(figures.sentence)
    lines += _section("Today")
    lines += _table(
        ("", "", "change", "usual"),
        [
            (h.label, text.figure(h.value, h.kind), view.change(h) + (" unusual" if h.is_unusual else ""),
             text.span(h.low, h.high, h.kind))
            for h in figures.headline
        ],
    )  # fmt: skip
    lines += _findings("What needs a look", figures.findings)
    lines += _section("Event mix")
    lines += _table(
        ("", "count", "share"),
        [
            (text.short(s.event_type, 40) if s.event_type is not None
             else text.plural(figures.event_mix.others, "other type"), text.count(s.count), text.percent(s.proportion))
            for s in figures.event_mix.shares[:MOST_ROWS]
        ],
    )  # fmt: skip
    lines += _section("Data quality")
    lines += _wrapped(
        f"{text.count(c.rows_in)} rows in = {text.count(c.valid)} valid + {text.count(c.quarantined)} quarantined + "
        f"{text.count(c.duplicate)} duplicate"
    )
    lines += _table(
        None,
        [(text.short(r["reason"], 40), text.count(r["rows"])) for r in figures.quarantine_reasons[:MOST_ROWS]],
        indent="    ",
    )
    facts = {
        "late rows": view.late(figures),
        "duplicates": view.duplicates(figures),
        "schema": text.short(figures.schema, 300),
        "cleaning": view.cleaning(figures),
        "days without rows": view.without_rows(figures),
        "checks": f"{sum(x.passed for x in figures.checks)} of {len(figures.checks)} passed",
    }
    lines += [line for name, words in facts.items() for line in _wrapped(f"{name}: {words}")]
    lines += _section("Files")
    lines += _table(
        ("", "rows", "read by"),
        [
            (text.short(f["path"], 40), text.count(f["rows"]), text.short(f["lane"], 10))
            for f in figures.files[:MOST_FILES]
        ],
    )
    if len(figures.files) > MOST_FILES:
        lines.append(f"  and {len(figures.files) - MOST_FILES} more")
    return _joined(lines)


def period(figures: PeriodFigures) -> str:
    """The report of a period."""
    mark = MARKS[LEVELS[figures.verdict]]
    title = f"{text.period(figures.first, figures.last)} ({text.short(figures.timezone, 40)})"
    lines = _top(title, mark, figures.verdict)
    lines += _wrapped(figures.sentence)
    lines += _section("Period")
    lines += _table(
        ("", "", "change", "trend"),
        [
            (n.label, text.figure(n.value, n.kind), period_view.change(n), period_view.slope(n))
            for n in figures.headline
        ],
    )
    lines += _findings("What needs a look", figures.findings)
    if figures.callouts:
        lines += _section("Out of line")
        for found in figures.callouts[:MOST_ROWS]:
            value = text.figure(found.value, found.kind)
            words = f"{text.short_date(found.day)}: {found.label} {value}, {period_view.callout(found)}"
            lines += _wrapped(words)
        if len(figures.callouts) > MOST_ROWS:
            lines.append(f"  and {len(figures.callouts) - MOST_ROWS} more")
    lines += _section("Weekdays")
    lines += _wrapped(period_view.weekday_sentence(figures))
    lines += _section("Event types")
    lines += _table(
        ("", "count", "change"),
        [
            (text.short(t.event_type, 40), text.count(t.count), period_view.type_state(t))
            for t in figures.types[:MOST_ROWS]
        ],
    )
    if figures.runs is not None:
        lines += _section("Runs (UTC)")
        lines += _table(
            ("", "by", "status", "time", "peak", "slowest"),
            [
                (f"{r.started_at:%Y-%m-%d %H:%M}", r.started_by, r.status, text.seconds(r.seconds),
                 f"{text.count(r.peak_mb)} MB", r.slowest)
                for r in figures.runs[:period_view.MOST_RUNS]
            ],
        )  # fmt: skip
    return _joined(lines)


def _top(title: str, mark: str, verdict: str) -> list[str]:
    return [f"{mark} {verdict.upper()}", title, ""]


def _section(title: str) -> list[str]:
    return ["", title, "-" * len(title)]


def _wrapped(words: str) -> list[str]:
    return textwrap.wrap(words, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _findings(title: str, findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return []
    lines = _section(title)
    for found in findings[: view.MOST_FINDINGS]:
        words = f"{MARKS[found.level]} {text.short(found.title, 120)}: {text.short(found.detail, 240)}"
        lines += _wrapped(words)
    if len(findings) > view.MOST_FINDINGS:
        lines.append(f"  and {len(findings) - view.MOST_FINDINGS} more")
    return lines


def _table(head: Sequence[str] | None, rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """The first column left, the others right, each as wide as its widest cell."""
    cells = [*([head] if head else []), *rows]
    if not rows:
        return [f"{indent}{text.DASH}"]
    widths = [max(len(row[i]) for row in cells) for i in range(len(rows[0]))]
    return [f"{indent}{row[0]:<{widths[0]}}{_right(row[1:], widths[1:])}".rstrip() for row in cells]


def _right(cells: Iterable[str], widths: Iterable[int]) -> str:
    return "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(visible(line, LONGEST_LINE) for line in lines) + "\n"
