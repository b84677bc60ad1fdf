"""Numbers, durations and dates as people read them.

Here: pure functions from a value to text, the same in every locale; what is missing or not a number is an en dash.
Not here: sentences about a day (``view.py``, ``figures.py``) and escaping (``svgkit.py``, ``page.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING

from data_assets.errors import visible

if TYPE_CHECKING:
    from data_assets.report.model import Kind, Number

DASH = "–"
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
UNREADABLE = 1e15  # from here on digits are noise
UNITS = ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"), (0.001, "ms"))
SMALLEST_SHARE = 0.0001
THOUSAND = 1_000
ROUNDING = 1e-6


def finite(value: object) -> Number | None:
    """``value`` when it is a finite number, else None; a truth value is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def _sign(text: str) -> str:
    return text.replace("-", "−", 1) if text.startswith("-") else text


def count(value: object) -> str:
    """A whole number with thousands separators."""
    number = finite(value)
    return DASH if number is None else _sign(f"{round(number):,}")


def amount(value: object) -> str:
    """A number with as many decimals as its size deserves."""
    number = finite(value)
    if number is None:
        return DASH
    size = abs(number)
    if size >= UNREADABLE:
        return _sign(f"{number:.3g}")
    if size >= 10_000 or number == int(number):
        return _sign(f"{number:,.0f}")
    if size >= 1:
        return _sign(f"{number:,.2f}")
    return _sign(f"{number:.3g}")


def seconds(value: object) -> str:
    """A duration in the unit that leaves it between one and a few hundred."""
    number = finite(value)
    if number is None:
        return DASH
    if number == 0:
        return "0 s"
    size = abs(number)
    scale = unit(size)
    shown = size / scale
    if shown >= UNREADABLE:
        digits = f"{shown:.3g}"
    elif shown >= 10 or shown == int(shown):
        digits = f"{shown:,.0f}"
    else:
        digits = f"{shown:.1f}" if shown >= 1 else f"{shown:.2g}"
    return f"{'−' if number < 0 else ''}{digits} {dict(UNITS)[scale]}"


def unit(value: float) -> float:
    """The seconds in the unit that ``seconds`` would choose."""
    size = abs(value)
    return next((scale for scale, name in UNITS if size >= scale * (2 if name == "days" else 1)), UNITS[-1][0])


def clock(value: object) -> str:
    """Seconds since midnight as a time of day; days past midnight are added."""
    number = finite(value)
    if number is None:
        return DASH
    days, rest = divmod(round(number), 86_400)
    shown = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return shown if not days else f"{shown} {'+' if days > 0 else '−'}{abs(days)} d"


def percent(value: object) -> str:
    """A share in per cent, two decimals; what is there but rounds to nothing says so."""
    number = finite(value)
    if number is None:
        return DASH
    if 0 < number < SMALLEST_SHARE:
        return "<0.01%"
    return _sign(f"{number * 100:,.2f}%")


def limit(value: float) -> str:
    """A configured share in per cent, no more decimals than it has."""
    return f"{value * 100:.6g}%"


def compact(value: float) -> str:
    """A number for an axis: 48k, 1.2M."""
    size = abs(value)
    if size >= 1e15:
        return _sign(f"{value:.1e}")
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= scale:
            return _sign(f"{value / scale:.3g}{letter}")
    return _sign(f"{value:.3g}")


def score(value: object) -> str:
    """A standardised distance, one decimal."""
    number = finite(value)
    return DASH if number is None else _sign(f"{number:,.1f}" if abs(number) < UNREADABLE else f"{number:.2g}")


def effect(value: object) -> str:
    """An effect size or a probability, two decimals."""
    number = finite(value)
    return DASH if number is None else f"{number:.2f}"


FIGURES: dict[Kind, Callable[[object], str]] = {"count": count, "amount": amount, "seconds": seconds, "rate": percent}


def figure(value: object, kind: Kind) -> str:
    """A headline number in the way of its kind."""
    return FIGURES[kind](value)


def span(low: Number | None, high: Number | None, kind: Kind) -> str:
    """A range of headline numbers; counts are rounded inward, so that what is outside also looks it."""
    if low is None or high is None:
        return DASH
    if kind == "count":
        low, high = math.ceil(low - ROUNDING), math.floor(high + ROUNDING)
    is_plain = kind == "amount" and THOUSAND <= max(abs(low), abs(high)) < UNREADABLE
    first, last = ((count if is_plain else FIGURES[kind])(v) for v in (low, high))
    if first == last or (kind == "count" and low > high):
        return last
    number, _, unit_ = first.partition(" ")
    return f"{number if unit_ and last.endswith(' ' + unit_) else first} – {last}"


def change(share: Number, kind: Kind) -> str:
    """A relative change in a few characters; that of a rate, which is a difference, in percentage points."""
    arrow = "▲" if share > 0 else "▼" if share < 0 else "■"
    size = abs(share) * 100
    if kind == "rate":
        return f"{arrow} {size:.2f} pts"
    return f"{arrow} {size:,.1f}%" if size < 100 else f"{arrow} {compact(size)}%"


def long_date(day: date) -> str:
    """Wednesday, 19 November 2025."""
    return f"{WEEKDAYS[day.weekday()]}, {day.day} {MONTHS[day.month - 1]} {day.year}"


def short_date(day: date) -> str:
    """Wed 19 Nov."""
    return f"{WEEKDAYS[day.weekday()][:3]} {day.day} {MONTHS[day.month - 1][:3]}"


def tick_date(day: date) -> str:
    """19 Nov."""
    return f"{day.day} {MONTHS[day.month - 1][:3]}"


def period(first: date, last: date) -> str:
    """19 November to 3 December 2025; a year only once where both are of it."""
    begin = f"{first.day} {MONTHS[first.month - 1]}" + (f" {first.year}" if first.year != last.year else "")
    end = f"{last.day} {MONTHS[last.month - 1]} {last.year}"
    return f"{begin} to {end}" if first != last else end


def days(named: Sequence[date], most: int = 7) -> str:
    """Days by name; of more than ``most``, their number and the last ones; an en dash for none."""
    if not named:
        return DASH
    shown = ", ".join(short_date(d) for d in named[-most:])
    return f"{count(len(named))}, the last of them {shown}" if len(named) > most else shown


def short(value: object, length: int = 80) -> str:
    """Any text cut to ``length`` characters, what is invisible in it made visible; an empty one is an en dash."""
    if value is None:
        return DASH
    text = str(value)
    return visible(text, length) if text else DASH


def plural(number: int, one: str, many: str | None = None) -> str:
    """``1 row``, ``2 rows``."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"
