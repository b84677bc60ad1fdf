"""Static SVG that reads well at every width: no script, no style attribute, no colour, only classes of ``report.css``.

Here: the only place that builds markup; every attribute and text goes through ``escape``. Not here: what a chart says
(``view.py``), colours (``report.css``) and the tables (``report.html.j2``).

The layout: an outer ``<svg>`` without a viewBox, as wide as its place and of fixed height, with x in per cent and y in
pixels, so that text keeps its size; paths stand in a nested ``<svg>`` whose viewBox is stretched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from data_assets.errors import visible
from data_assets.report.bins import nice_step

if TYPE_CHECKING:
    from markupsafe import Markup

    from data_assets.report.model import Histogram, Level, Number

SPARK = 36
CHART = 136
PLOT = 112  # where a chart's base line lies
TOP = 22
FULL = 1000  # width of a nested viewBox
LABELS_APART = 15
MOST_FEET = 92  # more weekends than these cannot be told apart
WORDY_DAYS = 31  # more days than this go without a hover text each
ICONS: dict[Level, tuple[str, ...]] = {
    "fail": ("M6.6 1.8h6.8l4.8 4.8v6.8l-4.8 4.8H6.6l-4.8-4.8V6.6z", "M7 7l6 6M13 7l-6 6"),
    "warn": ("M10 2.2L18.4 17H1.6z", "M10 7.8v4.4M10 14.5v.1"),
    "ok": ("M10 1.8a8.2 8.2 0 1 0 .01 0z", "M6.2 10.3l2.6 2.6 5-5.4"),
    "info": ("M10 1.8a8.2 8.2 0 1 0 .01 0z", "M10 9.2v5M10 6v.1"),
}


@dataclass(frozen=True)
class Slot:
    """One day's place on the x axis; ``hover`` is what it says in words."""

    tick: str
    name: str
    is_weekend: bool
    is_missing: bool


@dataclass(frozen=True)
class Axis:
    """How values are worded, and the unit in which they are round."""

    word: Callable[[float], str]
    unit: float = 1.0


@dataclass(frozen=True)
class Mark:
    """A vertical line with a label at a value."""

    at: float
    label: str


def escape(value: object) -> Markup:
    """``value`` as text that cannot be anything else, what is invisible in it made visible."""
    import markupsafe

    text = str(value)
    return markupsafe.escape(text if text.isprintable() else visible(text, len(text) * 10))


def tag(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """One element. Attributes of None are left out, ``_`` stands for ``-``, ``cls`` for ``class``."""
    import markupsafe

    shown = "".join(
        f' {_attribute(key)}="{_n(value) if isinstance(value, float) else _escaped(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(escape(c) if not isinstance(c, markupsafe.Markup) else c for c in children)
    return markupsafe.Markup(f"<{name}{shown}>{inner}</{name}>" if inner else f"<{name}{shown}/>")  # noqa: S704  escaped


@cache
def _attribute(key: str) -> str:
    return "class" if key == "cls" else key if key in {"viewBox", "preserveAspectRatio"} else key.replace("_", "-")


@lru_cache(maxsize=1_024)  # most are the same in every picture
def _escaped(value: str) -> str:
    return str(escape(value))


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"


def _pc(share: float) -> str:
    return f"{_n(share * 100)}%"


def _chart(height: int, label: str, parts: Sequence[Markup], cls: str = "ch") -> Markup:
    return tag("svg", *parts, cls=cls, width="100%", height=height, role="img", aria_label=label)


def _paths(height: int, *paths: Markup) -> Markup:
    return tag("svg", *paths, width="100%", height=height, viewBox=f"0 0 {FULL} {height}", preserveAspectRatio="none")


def _scale(low: float, high: float, top: float, bottom: float) -> Callable[[float], float]:
    """From a value to y; halved on the way, because the range of two finite numbers may be infinite."""
    half = high / 2 - low / 2

    def y(value: float) -> float:
        share = (value / 2 - low / 2) / half if half else 0.5
        return bottom - min(max(share, 0.0), 1.0) * (bottom - top)

    return y


def _line(
    values: Sequence[Number | None], x: Callable[[int], float], y: Callable[[float], float]
) -> tuple[str, list[int]]:
    """The path through all known values, broken at gaps, and the places that stand alone between two gaps."""
    path, alone = "", []
    for i, value in enumerate(values):
        if value is None:
            continue
        is_start = i == 0 or values[i - 1] is None
        if is_start and (i + 1 == len(values) or values[i + 1] is None):
            alone.append(i)
            continue
        path += f"{'M' if is_start else 'L'}{_n(x(i) * FULL)} {_n(y(value))}"
    return path, alone


def icon(level: Level) -> Markup:
    """Shape for a level; decoration beside its word."""
    return tag("svg", *(tag("path", d=d) for d in ICONS[level]), cls="ic", viewBox="0 0 20 20", aria_hidden="true")


def spark(values: Sequence[Number | None], band: tuple[Number, Number] | None, *, is_loud: bool, label: str) -> Markup:
    """A line of days with the usual range behind it; the last one is marked."""
    known = [v for v in values if v is not None]
    if not known:
        return _chart(SPARK, label, [tag("line", cls="gr", x1=0, x2="100%", y1=18, y2=18)])
    y = _scale(min([*known, *(band or ())]), max([*known, *(band or ())]), 5, SPARK - 5)
    step = 0.94 / max(len(values) - 1, 1)

    def x(i: int) -> float:
        return 0.02 + i * step if len(values) > 1 else 0.96

    path, alone = _line(values, x, y)
    parts = []
    if band:
        parts.append(tag("rect", cls="band", x=0, width="100%", y=y(band[1]), height=max(y(band[0]) - y(band[1]), 1.0)))
    if path:
        parts.append(_paths(SPARK, tag("path", cls="ln", d=path)))
    last = len(values) - 1
    parts += [tag("circle", cls="dot", cx=_pc(x(i)), cy=y(values[i] or 0), r="1.5") for i in alone if i != last]
    if values[last] is not None:
        cls = "pt hot" if is_loud else "pt"
        parts.append(tag("circle", cls=cls, cx=_pc(x(last)), cy=y(values[last] or 0), r="3.5"))
    return _chart(SPARK, label, parts)


def _frame(slots: Sequence[Slot], *, has_foot: bool = True) -> list[Markup]:
    """Weekends, gaps, base line and the first, middle and last day's name."""
    width = 1 / len(slots)
    parts = []
    if has_foot and len(slots) <= MOST_FEET:
        parts = [
            tag("rect", cls="we", x=_pc(i * width), width=_pc(width), y=PLOT, height=4)
            for i, s in enumerate(slots)
            if s.is_weekend
        ]
    parts += [
        tag("text", "×", cls="ax gap", x=_pc((i + 0.5) * width), y=PLOT - 5, text_anchor="middle")
        for i, s in enumerate(slots)
        if s.is_missing
    ]
    parts.append(tag("line", cls="base", x1=0, x2="100%", y1=PLOT, y2=PLOT))
    ticks = [(0, "0%", None), (len(slots) - 1, "100%", "end")]
    if len(slots) > 4:
        ticks.insert(1, (len(slots) // 2, _pc((len(slots) // 2 + 0.5) * width), "middle"))
    if len(slots) == 1:
        ticks = ticks[1:]
    parts += [tag("text", slots[i].tick, cls="ax", x=x, y=CHART - 6, text_anchor=anchor) for i, x, anchor in ticks]
    return parts


def _grid(low: float, high: float, y: Callable[[float], float], axis: Axis) -> list[Markup]:
    step = nice_step((high - low) / axis.unit, 3) * axis.unit
    if not step or not math.isfinite(low / step):
        return []
    first = math.ceil(low / step - 1e-9)
    values = [i * step for i in range(first, first + 5) if i * step <= high + step * 1e-9]
    parts = []
    for value in values:
        parts.append(tag("line", cls="gr", x1=0, x2="100%", y1=y(value), y2=y(value)))
        parts.append(tag("text", axis.word(value), cls="ax", x=0, y=y(value) + 4, dx=-7, text_anchor="end"))
    return parts


def day_bars(
    slots: Sequence[Slot], stacks: Sequence[Sequence[Number] | None], classes: Sequence[str], axis: Axis, label: str
) -> Markup:
    """Stacked bars from zero, one for each day; None is no bar."""
    top = max((sum(s) for s in stacks if s), default=0)
    y = _scale(0, top or 1, TOP, PLOT)
    width = 1 / len(slots)
    parts = _grid(0, top, y, axis)
    for place, cls in enumerate(classes):
        path = ""
        for i, stack in enumerate(stacks):
            if stack and stack[place]:
                low, high = y(sum(stack[:place])), y(sum(stack[: place + 1]))
                left, right = (i + 0.12) * width * FULL, (i + 0.88) * width * FULL
                path += f"M{_n(left)} {_n(low)}V{_n(high)}H{_n(right)}V{_n(low)}z"
        if path:
            parts.append(_paths(CHART, tag("path", cls=cls, d=path)))
    last = stacks[-1]
    if last and sum(last):
        parts.append(
            tag("text", axis.word(sum(last)), cls="lab", x="100%", y=max(y(sum(last)) - 6, 12.0), text_anchor="end")
        )
    return _chart(CHART, label, [*parts, *_frame(slots)], "ch gut")


def day_line(  # noqa: PLR0913 - what a chart can show beside the line
    slots: Sequence[Slot],
    values: Sequence[Number | None],
    axis: Axis,
    label: str,
    *,
    band: tuple[Number, Number] | None = None,
    ceiling: Mark | None = None,
    is_loud: bool = False,
    loud_days: Collection[int] = (),
) -> Markup:
    """A line through the days, its usual range as a band, a ceiling as a dashed line, the last day labelled.

    ``loud_days`` are the places of earlier days that are marked too.
    """
    known = [v for v in values if v is not None]
    width = 1 / len(slots)
    parts: list[Markup] = []
    if known:
        reach = [*known, *(band or ()), *([ceiling.at] if ceiling else [])]
        low, high = min(reach), max(reach)
        if low == high:
            low, high = (0, high * 2 or 1) if low >= 0 else (low * 2, 0)
        pad = (high / 2 - low / 2) / 6
        y = _scale(0 if low >= 0 and low <= high / 4 else low - pad, high, TOP, PLOT - 4)
        bottom = 0 if low >= 0 and low <= high / 4 else low - pad
        path, alone = _line(values, lambda i: (i + 0.5) * width, y)
        if band:
            height = max(y(band[0]) - y(band[1]), 1.0)
            parts.append(tag("rect", cls="band", x=0, width="100%", y=y(band[1]), height=height))
        parts += _grid(bottom, high, y, axis)
        if ceiling:
            parts.append(tag("line", cls="lim", x1=0, x2="100%", y1=y(ceiling.at), y2=y(ceiling.at)))
            parts.append(tag("text", ceiling.label, cls="lab hot", x=0, dx=4, y=y(ceiling.at) - 5))
        if path:
            parts.append(_paths(CHART, tag("path", cls="ln", d=path)))
        is_wordy = len(slots) <= WORDY_DAYS
        last = len(values) - 1
        for i, value in enumerate(values):
            is_marked = i == last or i in loud_days
            if value is None or not (is_marked or is_wordy or i in alone):
                continue
            hover = [tag("title", f"{slots[i].name}: {axis.word(value)}")] if is_wordy else []
            cls = "dot" if not is_marked else "pt hot" if i in loud_days or is_loud else "pt"
            radius = 4 if is_marked else 2
            parts.append(tag("circle", *hover, cls=cls, cx=_pc((i + 0.5) * width), cy=y(value), r=radius))
        now = values[last]
        if now is not None:
            above = y(now) - 9
            parts.append(
                tag("text", axis.word(now), cls="lab hot" if is_loud else "lab", x="100%",
                    y=above if above > 10 else y(now) + 18, text_anchor="end")
            )  # fmt: skip
    return _chart(CHART, label, [*parts, *_frame(slots)], "ch gut")


def histogram(figures: Histogram, word: Callable[[float], str], marks: Sequence[Mark], label: str) -> Markup:
    """Bars from zero, those wholly beyond a fence marked; lines at ``marks``; ticks where the scale is round."""
    height, base, top = 190, 160, 40
    bins = figures.bins
    start, end = bins[0].start, bins[-1].end
    y = _scale(0, max(b.count for b in bins), top, base)

    def place(value: float) -> float:
        if end <= start:
            return 0.5
        if figures.is_log:
            return math.log(value / start) / math.log(end / start)
        return (value / 2 - start / 2) / (end / 2 - start / 2)

    highest = max(b.count for b in bins)
    parts = _grid(0, highest, y, Axis(lambda v: f"{v:,.0f}" if v == int(v) else ""))
    width = 1 / len(bins)
    for i, b in enumerate(bins):
        if not b.count:
            continue
        is_beyond = (figures.upper is not None and b.start >= figures.upper) or (
            figures.lower is not None and b.end <= figures.lower
        )
        tall = max(base - y(b.count), 1.0)
        reach = _reach(figures, i, word)
        parts.append(
            tag("rect", tag("title", f"{reach}: {b.count:,}"), cls="bar hot" if is_beyond else "bar",
                x=_pc((i + 0.04) * width), width=_pc(0.92 * width), y=base - tall, height=tall)
        )  # fmt: skip
    parts.append(tag("line", cls="base", x1=0, x2="100%", y1=base, y2=base))
    shown = [(place(m.at), m.label) for m in marks if figures.is_log is False or m.at > 0]
    shown = sorted((p, w) for p, w in shown if 0 <= p <= 1)
    for row, (p, words) in enumerate(shown):
        level = 10 + LABELS_APART * (row % 3)
        parts.append(tag("line", cls="mk", x1=_pc(p), x2=_pc(p), y1=level + 3, y2=base))
        is_left = p > 0.55
        parts.append(
            tag("text", words, cls="lab", x=_pc(p), y=level + 2, dx=-5 if is_left else 5,
                text_anchor="end" if is_left else None)
        )  # fmt: skip
    for tick in _log_ticks(start, end) if figures.is_log else _ticks(start, end):
        p = place(tick)
        anchor = None if p < 0.04 else "end" if p > 0.96 else "middle"
        parts.append(tag("line", cls="base", x1=_pc(p), x2=_pc(p), y1=base, y2=base + 4))
        parts.append(tag("text", word(tick), cls="ax", x=_pc(p), y=base + 18, text_anchor=anchor))
    return _chart(height, label, parts, "ch gut")


def _reach(figures: Histogram, place: int, word: Callable[[float], str]) -> str:
    b = figures.bins[place]
    if b.start == b.end:
        return word(b.start)
    if place == 0 and figures.is_open_low:
        return f"below {word(b.end)}"
    if place == len(figures.bins) - 1 and figures.is_open_high:
        return f"{word(b.start)} and more"
    return f"{word(b.start)} to {word(b.end)}"


def _ticks(start: float, end: float) -> list[float]:
    step = nice_step(end - start, 6)
    if not step:
        return [start]
    first = math.ceil(start / step - 1e-9)
    return [v for i in range(8) if (v := (first + i) * step) <= end + step * 1e-9]


def _log_ticks(start: float, end: float) -> list[float]:
    """Durations that people know, at most seven of them."""
    known = [s * 10.0**p for p in range(-6, 0) for s in (1, 2, 5)]
    known += [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400, 172800, 432000, 864000]
    known += [86400 * 10.0**p for p in range(2, 12)]
    inside = [k for k in known if start <= k <= end]
    whole = [k for k in inside if k in (0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 43200) or k >= 864000]
    return whole[:: -(-len(whole) // 7)] if len(inside) > 7 else inside


def share_bar(share: float, tick: float | None = None, *, is_loud: bool = False) -> Markup:
    """A bar in a table's cell beside the number it shows, hence silent; ``tick`` marks a share to compare with."""
    parts = [
        tag("rect", cls="trk", width="100%", height=10, y=3, rx=2),
        tag("rect", cls="bar hot" if is_loud else "bar", width=_pc(min(max(share, 0), 1)), height=10, y=3, rx=2),
    ]
    if tick is not None:
        parts.append(tag("line", cls="mk", x1=_pc(tick), x2=_pc(tick), y1=0, y2=16))
    return tag("svg", *parts, cls="cb", width="100%", height=16, aria_hidden="true")


def parts_bar(parts: Sequence[tuple[float, str]], label: str) -> Markup:
    """One bar in parts, each a share and its class, from left to right."""
    drawn, left = [tag("rect", cls="trk", width="100%", height=18)], 0.0
    for share, cls in parts:
        if share > 0:
            drawn.append(tag("rect", cls=cls, x=_pc(left), width=_pc(max(share, 0.002)), height=18))
            left += share
    return _chart(18, label, drawn, "ch parts")
