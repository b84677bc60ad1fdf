"""Two small pictures and a table as Markdown, for the metadata that Dagster shows beside a materialisation.

Here: SVG in a data address, transparent and in two mid-tones that can be read on light and dark, under 1,000 characters
because Dagster shows no more in line, and values from data files as code, so that no browser sees a link or an image in
them. Not here: the report's own charts (``svgkit.py``).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from data_assets.report import text
from data_assets.report.model import Bin, Number

CALM = "#6b7f95"
LOUD = "#d9622b"
MOST_POINTS = 60
MOST_BARS = 40
HUGE = 1e300  # sums of more would overflow
WIDTH = 180
HEIGHT = 36
MOST_TYPES = 3
LONGEST_VALUE = 24


def _markdown(words: str, body: str) -> str:
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{HEIGHT}'>{body}</svg>"
    address = base64.b64encode(svg.encode()).decode("ascii")
    return f"![{words}](data:image/svg+xml;base64,{address})"


def sparkline_markdown(values: Sequence[Number | None]) -> str:
    """The last sixty values as a line, the newest marked; a missing one is a gap."""
    recent = [text.finite(v) for v in values[-MOST_POINTS:]]
    known = [v for v in recent if v is not None]
    if not known:
        return _markdown("no values", "")
    low, high = min(known), max(known)
    half = high / 2 - low / 2  # the difference itself may be infinite
    step = (WIDTH - 8) / max(len(recent) - 1, 1)
    points = [
        None if v is None else (round(4 + i * step), round(31 - 26 * ((v / 2 - low / 2) / half)) if half else 18)
        for i, v in enumerate(recent)
    ]
    path = ""
    for i, point in enumerate(points):
        if point is None:
            continue
        is_start = i == 0 or points[i - 1] is None
        # A zero-length line with a round cap is a dot: a day between two gaps stays visible.
        is_alone = is_start and (i + 1 == len(points) or points[i + 1] is None)
        path += f"{'M' if is_start else 'L'}{point[0]} {point[1]}" + ("h0" if is_alone else "")
    line = f"<path d='{path}' fill='none' stroke='{CALM}' stroke-width='2' stroke-linecap='round'/>"
    last = points[-1]
    dot = f"<circle cx='{last[0]}' cy='{last[1]}' r='3' fill='{LOUD}'/>" if last else ""
    words = f"{text.plural(len(recent), 'value')}, {text.compact(low)} to {text.compact(high)}, last "
    return _markdown(words + (text.compact(known[-1]) if recent[-1] is not None else text.DASH), line + dot)


def histogram_markdown(bins: Sequence[Bin | Number | None]) -> str:
    """Counts as bars, the highest marked; neighbours are added up until at most forty are left."""
    counts = [min(max(text.finite(b.count if isinstance(b, Bin) else b) or 0, 0), HUGE) for b in bins]
    group = -(-len(counts) // MOST_BARS) or 1
    grouped = [sum(counts[i : i + group]) for i in range(0, len(counts), group)]
    top = max(grouped, default=0)
    if not top:
        return _markdown("no values", "")
    width = (WIDTH - 8) / len(grouped)
    peak = grouped.index(top)

    def bars(places: Sequence[int]) -> str:
        return "".join(
            f"M{round(4 + (i + 0.5) * width)} 34v-{max(round(30 * (grouped[i] / top)), 1)}"
            for i in places
            if grouped[i]
        )

    stroke = f"stroke-width='{max(round(width) - 1, 2)}'"
    rest = [i for i in range(len(grouped)) if i != peak]
    body = f"<path d='{bars(rest)}' stroke='{CALM}' {stroke}/><path d='{bars([peak])}' stroke='{LOUD}' {stroke}/>"
    words = f"{text.plural(len(grouped), 'bin')}, {text.compact(sum(grouped))} in all, highest {text.compact(top)}"
    return _markdown(words, body)


def figures_markdown(summary: Mapping[str, Any]) -> str:
    """A day's headline numbers and its most frequent event types as a table, from the report's summary."""
    rows = ["| | | usual |", "|---|--:|--:|"]
    for h in summary["headline"]:
        value = text.figure(h["value"], h["kind"]) + (" unusual" if h["is_unusual"] else "")
        rows.append(f"| {h['label']} | {value} | {text.span(h['low'], h['high'], h['kind'])} |")
    shares = [s for s in summary["event_mix"]["shares"][:MOST_TYPES] if s["event_type"] is not None]
    return "\n".join([*rows, *(f"| {code(s['event_type'])} | {text.count(s['count'])} | |" for s in shares)])


def code(value: str) -> str:
    """A value as Markdown code: nothing in it is markup, a link or the end of a table's cell."""
    shown = text.short(value, LONGEST_VALUE).replace("`", "’").replace("|", "¦")
    return f"`{shown}`"
