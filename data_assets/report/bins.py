"""The day's events as bins: rows never leave Polars, only counts do.

Here: the two histograms. Not here: how they are drawn (``svgkit.py``) and the sparkline-sized picture for Dagster
(``pictures.py``).
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import polars as pl

from data_assets.engine import chosen
from data_assets.metrics import STEPS_PER_DECADE
from data_assets.quantities import NUMBER, TIMES
from data_assets.report.model import Bin, Histogram
from data_assets.report.text import finite

if TYPE_CHECKING:
    from data_assets.metrics import DayFigures, Lengths

MOST_BINS = 40
BINS_PER_DECADE = (40, 20, 16, 12, 10, 8, 6, 5, 4, 3, 2, 1)  # divisors of those that Lengths has
MICROSECONDS = 1_000_000
HUGE = 1e300  # from here on differences overflow


def duration_histogram(lengths: Lengths, median: float | None) -> Histogram:
    """Durations above zero on a log scale; the others are counted as left out."""
    bins: list[Bin] = []
    if lengths.low is not None and lengths.high is not None:
        decades = math.log10(lengths.high) - math.log10(lengths.low)
        steps = next((s for s in BINS_PER_DECADE if decades * s < MOST_BINS - 1), 1)
        counts: Counter[int] = Counter()
        for step, count in lengths.steps.items():
            counts[step * steps // STEPS_PER_DECADE] += count
        first, last = min(counts), max(counts)
        edges = [10 ** (i / steps) / MICROSECONDS for i in range(first, last + 2)]
        bins = [Bin(a, b, counts[first + i]) for i, (a, b) in enumerate(pairwise(edges))]
    count = sum(b.count for b in bins)
    return Histogram("seconds", True, bins, count, lengths.not_positive, False, False, median, None, None)


def nice_step(span: float, most: int) -> float:
    """The smallest of 1, 2, 2.5 or 5 times a power of ten that covers ``span`` in ``most`` steps; 0 when none does."""
    if not (span > 0 and math.isfinite(span)):
        return 0.0
    base = 10.0 ** math.floor(math.log10(span / most)) if span / most > 0 else 0.0
    return next((f * base for f in (1, 2, 2.5, 5, 10, 20) if base and span / (f * base) <= most), 0.0)


def value_histogram(events: DayFigures, *, median: float | None, lower: float | None, upper: float | None) -> Histogram:
    """Values on a linear scale around the fences; what lies far beyond them is in the first and last bin."""
    value, values = pl.col(NUMBER), events.values
    low, high = finite(values.low), finite(values.high)
    bins: list[Bin] = []
    is_open_low = is_open_high = False
    if low is not None and high is not None:
        first, last = _range(low, high, lower, upper)
        step = nice_step(last - first, 32)
        if values.whole and step:
            step = max(step, 1.0)
        is_drawable = step and first + step != first and last + step != last and max(abs(first), abs(last)) < HUGE
        if not is_drawable:
            first, step, size = low, 0.0, 1
            place = value.is_null().cast(pl.Int32)
        else:
            first = math.floor(first / step) * step
            size = math.floor((last - first) / step) + 1
            # Halved: the difference of two finite numbers may be infinite, that of their halves is not.
            halves = (value / 2 - first / 2) / step * 2
            place = halves.floor().clip(0, size - 1).cast(pl.Int32)
        placed = events.counted_values.group_by(place.alias("bin")).agg(pl.col(TIMES).sum())
        counts = dict(placed.collect(engine=chosen()).iter_rows())
        edges = [first + i * step for i in range(size + 1)]
        bins = [Bin(a, b, counts.get(i, 0)) for i, (a, b) in enumerate(pairwise(edges))]
        is_open_low, is_open_high = low < first, bool(step) and high >= edges[-1]
    return Histogram(
        "amount", False, bins, sum(b.count for b in bins), 0, is_open_low, is_open_high, median, lower, upper
    )


def _range(low: float, high: float, lower: float | None, upper: float | None) -> tuple[float, float]:
    """What to draw: everything, unless that would squeeze what lies between the fences."""
    if lower is None or upper is None or not 0 < upper - lower < math.inf:
        return low, high
    span = upper - lower
    return max(low, lower - span / 4), min(high, upper + span / 4)
