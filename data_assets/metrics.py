"""What a day came to: sessions, outliers, distribution, summary and KPIs, as pure functions of its raw events.

Here: Polars functions from one day's ``raw_events`` (and tables made from it) to the tables below it. Not here: what
makes an event valid (``ingest/``), how missing ends are filled (``filling.py``), the columns and types of the tables
(``contracts.py``), what must hold between them (``checks.py``), where they are stored (``io_managers.py``), how a day
compares with others (``report/``).

Arithmetic, so that the same rows in any order and on any number of threads give the same bytes:

- A sum of values is taken in fixed point: each double is split into whole part and fraction, the fraction rounded to
  1e-9, both added up as 128-bit integers. That is exact for whole numbers, and for values of up to nine decimals while
  they are below 4.5 million (above, a double itself no longer holds nine decimals). Values of 9e18 and more do not fit:
  those are collected and added up exactly as Python integers, user by user, slower but as deterministic.
- Durations are added up as 128-bit integers of microseconds. Means are such a sum divided by the count.
- A standard deviation takes two passes: the deviations from the mean are scaled by a power of two to at most 1, their
  squares rounded to 2**-90 and added up as integers.
- Quantiles pick exact order statistics and interpolate between them in NumPy's way.
- Results are rounded once, at the end, half to even as Polars does it on doubles; minus zero becomes zero. A sum that
  exceeds a double is a ContractError, as is a value that is not finite.

Only aggregates are collected inside these functions (counts, bounds, one row per user, event type or bin) and the rows
of some users at a time; a day of up to two million rows is one such part.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import polars as pl

from data_assets import filling
from data_assets.contracts import Table, UserIdType, tables
from data_assets.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SECOND_US = 1_000_000
FIXED = 1_000_000_000  # fixed point: units of a sum of values
FIXED_LIMIT = 9e18  # from here on the whole part of a value exceeds 64 bits
SQUARE_BITS = 90  # squares of at most 1 in units of 2**-90: 2**36 rows fit into 128 bits
HALVING_LIMIT = 1e290  # above, differences of values could exceed a double
HALVING = 2.0**-60
INT64_MAX = 2**63 - 1
SUBNORMAL_BITS = 1074  # every double is a whole multiple of 2**-1074
BIN_SHIFT = 40  # bins of order statistics: sign, exponent and the first 12 bits of the mantissa
SUMMARY_DECIMALS = 6
PROPORTION_DECIMALS = 9
HALF = Fraction(1, 2)
QUARTERS = (Fraction(1, 4), HALF, Fraction(3, 4))

USER, START, END, VALUE, TYPE = "user_id", "session_start", "session_end", "value", "event_type"


@dataclass(frozen=True)
class RowCounts:
    """What became of the day's physical records; the conservation law ties the first four together.

    Attributes:
        rows_in: physical records of the day.
        valid, quarantined, duplicate: what they became, ``rows_in = valid + quarantined + duplicate``.
        late: those from files whose home day is later.
        late_max_days, late_row_days: by how many days at most, and those days added up over the late records.
    """

    rows_in: int
    valid: int
    quarantined: int
    duplicate: int
    late: int
    late_max_days: int
    late_row_days: int


# ---- Tables ------------------------------------------------------------------------------------------------------


class DayFigures:
    """What several tables of a day rest on, found out when first asked for and then kept: a few numbers, no rows.

    Args:
        events: raw_events of one day.
        scratch: a folder for the parts of a day that is too long to hold; without it every day is held.
    """

    def __init__(self, events: pl.LazyFrame, scratch: Path | None = None) -> None:
        self.events = events
        self.scratch = scratch
        self._durations: Numbers | None = None

    @cached_property
    def bounds(self) -> dict[str, int]:
        """``rows``, and ``magnitude``: the largest absolute value, 0 without values. One scan.

        Raises:
            ContractError: a value is not finite, or a duration does not fit into 64 bits of microseconds.
        """
        start, end, value = pl.col(START), pl.col(END), pl.col(VALUE)
        found = self.events.select(
            rows=pl.len(),
            first_start=start.min().cast(pl.Int64),
            last_start=start.max().cast(pl.Int64),
            first_end=end.min().cast(pl.Int64),
            last_end=end.max().cast(pl.Int64),
            magnitude=value.abs().max(),
            finite=value.is_finite().all(),
        )
        bounds = found.collect(engine="streaming").row(0, named=True)
        if bounds["first_end"] is not None and (
            max(bounds["last_end"] - bounds["first_start"], bounds["last_start"] - bounds["first_end"]) > INT64_MAX
        ):
            raise ContractError(
                "raw_events: a session lasts longer than 292,000 years; microseconds in 64 bits cannot hold it.",
                "Look for an absurd session_end, often an epoch in the wrong unit; see source.timestamp_formats.",
                table="raw_events",
            )
        if not bounds["finite"]:
            raise _not_finite(VALUE)
        return {"rows": bounds["rows"], "magnitude": bounds["magnitude"] or 0.0}

    @cached_property
    def values(self) -> Numbers:
        """The column ``value``."""
        return _numbers(self.events.select(VALUE), VALUE)

    @property
    def durations(self) -> Numbers:
        """The durations in microseconds, missing ends filled; left behind by :meth:`sessions`."""
        if self._durations is None:
            self.sessions(precision=0)
        return cast("Numbers", self._durations)

    def sessions(self, precision: int) -> pl.DataFrame:
        """The table session_metrics: see :func:`session_metrics`."""
        rows, magnitude = self.bounds["rows"], self.bounds["magnitude"]
        columns = self.events.select(USER, START, END, VALUE)
        users = [_table("session_metrics", self.events).empty()]
        with contextlib.ExitStack() as stack:
            lengths = _Kept(stack.enter_context(_folder(self.scratch)) if self.scratch else None)
            for part in filling.durations(columns, rows, self.scratch):
                users.append(_sessions(part, precision, magnitude))
                lengths.add(part.select("duration_us"))
            self._durations = _numbers(lengths.scan(), "duration_us")
        return pl.concat(users).sort(USER)


class _Kept:
    """Frames that are put aside: in memory, or below a folder when there is one."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._frames: list[pl.LazyFrame] = []

    def add(self, frame: pl.DataFrame) -> None:
        """One more."""
        if self.folder is None:
            self._frames.append(frame.lazy())
            return
        path = self.folder / f"{len(self._frames):06d}.parquet"
        frame.write_parquet(path, compression="uncompressed", statistics=False)
        self._frames.append(pl.scan_parquet(path, glob=False, hive_partitioning=False))

    def scan(self) -> pl.LazyFrame:
        """All of them."""
        return pl.concat(self._frames)


@contextlib.contextmanager
def _folder(scratch: Path) -> Iterator[Path]:
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        yield Path(folder)


def session_metrics(events: pl.LazyFrame, precision: int, figures: DayFigures | None = None) -> pl.LazyFrame:
    """One row per user: how many sessions, how long, how much value, how many anomalies.

    Durations are in seconds, missing ends filled (``filling.py``). ``avg_duration`` and ``max_duration`` are over all
    known durations, ``min_duration`` over the positive ones; a duration of zero or less counts as an anomaly, an
    unknown one as none. ``total_value`` and ``mean_value`` are null for a user without values. See the module's notes
    on exact sums.

    Args:
        events: raw_events of one day.
        precision: decimals that the five floats are rounded to.
        figures: those of the same day, where they are known.

    Returns:
        The table session_metrics, sorted by user_id.
    """
    made = (figures or DayFigures(events)).sessions(precision)
    return _table("session_metrics", events).conform(made.lazy())


def _sessions(timed: pl.DataFrame, precision: int, magnitude: float) -> pl.DataFrame:
    """Rows of session_metrics for some users, in no promised order."""
    duration = pl.col("duration_us")
    longest, shortest = timed.select(duration.max().alias("max"), duration.min().alias("min")).row(0)
    is_long = max(abs(longest or 0), abs(shortest or 0)) * timed.height > INT64_MAX
    is_large = (magnitude + 1) * FIXED * timed.height >= INT64_MAX // 2
    per_user = (
        timed.lazy()
        .group_by(USER)
        .agg(
            pl.len().cast(pl.Int64).alias("total_sessions"),
            duration.count().alias("timed"),
            duration.cast(pl.Int128 if is_long else pl.Int64).sum().alias("duration_sum"),
            duration.max().alias("longest"),
            duration.filter(duration > 0).min().alias("shortest"),
            (duration <= 0).sum().cast(pl.Int64).alias("anomaly_count"),
            _fixed(pl.col(VALUE), pl.Int128 if is_large else pl.Int64).sum().alias("value_sum"),
            pl.col(VALUE).count().alias("valued"),
        )
    )
    value_sum = pl.col("value_sum").cast(pl.Int128).cast(pl.Float64)
    total = value_sum / FIXED
    mean = value_sum / (pl.col("valued").cast(pl.Float64) * FIXED)
    if magnitude >= FIXED_LIMIT:
        per_user = per_user.join(_huge_totals(timed.lazy()), on=USER, how="left")
        total = total + pl.col("huge_total").fill_null(0.0)
        mean = pl.when(pl.col("huge_total").is_null()).then(mean).otherwise(total / pl.col("valued"))
    seconds = pl.col("duration_sum").cast(pl.Int128).cast(pl.Float64) / (pl.col("timed").cast(pl.Float64) * SECOND_US)
    return per_user.select(
        USER,
        "total_sessions",
        rounded(pl.when(pl.col("timed") > 0).then(seconds), precision).alias("avg_duration"),
        rounded(pl.col("longest") / SECOND_US, precision).alias("max_duration"),
        rounded(pl.col("shortest") / SECOND_US, precision).alias("min_duration"),
        rounded(pl.when(pl.col("valued") > 0).then(total), precision).alias("total_value"),
        rounded(pl.when(pl.col("valued") > 0).then(mean), precision).alias("mean_value"),
        "anomaly_count",
    ).collect()


def outliers(events: pl.LazyFrame, factor: float, figures: DayFigures | None = None) -> pl.LazyFrame:
    """The events whose value lies outside the fences ``q1 - factor * IQR`` and ``q3 + factor * IQR``.

    q1, median and q3 by linear interpolation (NumPy's default). ``outlier_score`` is (value - median) / sample
    standard deviation of the day, rounded to 6 decimals; null when the deviation is 0. The fences are not rounded.
    Columns beyond the contract pass through; a source column named like one of the three new ones gives way to it.

    Returns:
        The table outliers, rows in the order of ``events``.
    """
    of_day = (figures or DayFigures(events)).values
    value = pl.col(VALUE)
    low, high = fences(of_day.quartiles, factor)
    lower, upper = pl.lit(low, pl.Float64), pl.lit(high, pl.Float64)
    if of_day.std:
        median = of_day.quartiles[1]
        score = (value - median) / of_day.std
        if of_day.magnitude > HALVING_LIMIT:
            score = value / of_day.std - median / of_day.std
    else:
        score = pl.lit(None, pl.Float64)
    frame = events.filter((value < lower) | (value > upper)).with_columns(
        rounded(score, SUMMARY_DECIMALS).alias("outlier_score"),
        lower.alias("iqr_lower"),
        upper.alias("iqr_upper"),
    )
    return _table("outliers", events).conform(frame)


def event_distribution(events: pl.LazyFrame) -> pl.LazyFrame:
    """One row per event type, most frequent first, and a test of whether all are equally frequent.

    ``proportion`` and ``cumulative`` are shares of the day's events, 9 decimals; the last ``cumulative`` is 1.
    ``chi_square`` is Pearson's statistic against equal shares, k * sum(count**2) / n - n, 6 decimals;
    ``degrees_of_freedom`` = k - 1; ``p_value`` is its upper tail (:func:`chi_square_tail`), 10 significant digits;
    ``cramers_v`` = sqrt(chi_square / (n * (k - 1))), 6 decimals. With one event type there is nothing to compare:
    chi_square 0, p_value 1, cramers_v null. A day without events gives an empty table.

    Returns:
        The table event_distribution, by count descending, then name.
    """
    contract = _table("event_distribution", events)
    counts = (
        events.group_by(TYPE)
        .agg(pl.len().cast(pl.Int64).alias("count"))
        .sort("count", TYPE, descending=[True, False])
        .collect(engine="streaming")
    )
    if counts.is_empty():
        return contract.empty().lazy()
    n, k = int(counts["count"].sum()), counts.height
    squares = sum(c * c for c in counts["count"].to_list())
    chi_square = (k * squares - n * n) / n  # whole numbers until the division
    v = math.sqrt(chi_square / (n * (k - 1))) if k > 1 else None
    frame = counts.lazy().with_columns(
        rounded(pl.col("count") / n, PROPORTION_DECIMALS).alias("proportion"),
        rounded(pl.col("count").cum_sum() / n, PROPORTION_DECIMALS).alias("cumulative"),
        rounded(pl.lit(chi_square), SUMMARY_DECIMALS).alias("chi_square"),
        pl.lit(k - 1, pl.Int64).alias("degrees_of_freedom"),
        pl.lit(float(f"{chi_square_tail(chi_square, k - 1):.10g}")).alias("p_value"),
        rounded(pl.lit(v, pl.Float64), SUMMARY_DECIMALS).alias("cramers_v"),
    )
    return contract.conform(frame)


def summary_statistics(events: pl.LazyFrame, figures: DayFigures | None = None) -> pl.LazyFrame:
    """One row for each contract column of raw_events but its source, and one for ``duration`` in seconds.

    value and duration have mean and std (sample, 6 decimals; std null below two values) and quartiles (linear
    interpolation, not rounded). User ids, times and texts have count, null_count, min, max and n_unique. min and max
    are text: numbers in the shortest form that reads back as the same number, times in ISO 8601, texts by code point.
    session_end is described as it came, duration after the filling of ends. A day without events has counts of 0.

    Returns:
        The table summary_statistics, sorted by column_name.
    """
    known = figures or DayFigures(events)
    rows = [
        *_summary_of_labels(events),
        _summary_of_numbers("value", known.values, 1),
        _summary_of_numbers("duration", known.durations, SECOND_US),
    ]
    contract = _table("summary_statistics", events)
    return contract.conform(pl.LazyFrame(rows, schema=contract.schema, orient="row").sort("column_name"))


def daily_kpis(
    events: pl.LazyFrame,
    sessions: pl.LazyFrame,
    distribution: pl.LazyFrame,
    *,
    outlier_count: int,
    counts: RowCounts,
    precision: int,
    figures: DayFigures | None = None,
) -> pl.LazyFrame:
    """What the day came to, in one row.

    Args:
        events: raw_events of the day; value, average and median duration come from it, not from rounded figures.
        sessions: session_metrics of the day; users, sessions and anomalies are its sums.
        distribution: event_distribution of the day; events is its sum.
        outlier_count: rows of outliers.
        counts: what became of the day's records.
        precision: decimals of late_mean_days, value (the events' unit), avg_duration and median_duration (seconds).
        figures: those of the same day, where they are known.

    Returns:
        The table daily_kpis: one row, also for a day without events; figures over nothing are null.
    """
    of_users = sessions.select(
        pl.len().alias("users"), pl.col("total_sessions").sum(), pl.col("anomaly_count").sum()
    ).collect(engine="streaming")
    users, total_sessions, anomalies = of_users.row(0)
    total_events = distribution.select(pl.col("count").sum()).collect(engine="streaming").item()
    known = figures or DayFigures(events)
    value, duration = known.values, known.durations
    average = median = None
    if duration.count:
        average = _round(_double(duration.total / duration.count / SECOND_US), precision)
        median = _round(duration.quartiles[1] / SECOND_US, precision)
    row = {
        "rows_in": counts.rows_in,
        "valid": counts.valid,
        "quarantined": counts.quarantined,
        "duplicate": counts.duplicate,
        "late": counts.late,
        "late_max_days": counts.late_max_days,
        "late_mean_days": _round(counts.late_row_days / counts.late, precision) if counts.late else None,
        "users": users,
        "sessions": total_sessions,
        "events": total_events,
        "value": _round(_double(value.total), precision) if value.count else None,
        "avg_duration": average,
        "median_duration": median,
        "anomalies": anomalies,
        "outliers": outlier_count,
    }
    contract = _table("daily_kpis", events)
    return contract.conform(pl.LazyFrame([row], schema=contract.schema))


# ---- Values by event type ----------------------------------------------------------------------------------------


def type_means(events: pl.LazyFrame) -> pl.DataFrame:
    """The values of each event type; rows without a type are left out.

    Returns:
        One row per type, sorted: ``event_type``, ``nulls`` and ``count`` (int64), ``low``, ``high`` and ``mean``
        (float64, null where count is 0). The mean is of the exact sum in fixed point; see the module's notes.
    """
    value = pl.col(VALUE)
    known = events.select(TYPE, VALUE).filter(pl.col(TYPE).is_not_null())
    found = (
        known.group_by(TYPE)
        .agg(
            value.null_count().cast(pl.Int64).alias("nulls"),
            value.count().cast(pl.Int64).alias("count"),
            value.min().alias("low") + 0.0,
            value.max().alias("high") + 0.0,
            _fixed(value).sum().alias("total"),
        )
        .collect(engine="streaming")
        .sort(TYPE)
    )
    totals = {kind: Fraction(total, FIXED) for kind, total in found.select(TYPE, "total").iter_rows()}
    if not found.filter(pl.max_horizontal(pl.col("low").abs(), pl.col("high").abs()) >= FIXED_LIMIT).is_empty():
        huge = known.filter(value.abs() >= FIXED_LIMIT).collect(engine="streaming")
        for (kind,), group in huge.group_by(TYPE):
            totals[str(kind)] += _exact_sum(group[VALUE])
    means = [
        min(max(float(totals[kind] / count), low), high) if count else None
        for kind, count, low, high in found.select(TYPE, "count", "low", "high").iter_rows()
    ]
    return found.drop("total").with_columns(pl.Series("mean", means, pl.Float64))


def type_medians(events: pl.LazyFrame) -> pl.DataFrame:
    """``event_type`` and ``median`` (float64) of each event type that has a value, sorted.

    Exact and without sorting the values, as the order statistics of the day: one scan counts the rows of each bin, a
    second one those of each value in the bins that hold a middle.
    """
    values = events.select(TYPE, VALUE, _bin(VALUE).alias("bin")).drop_nulls()
    bins = (
        values.group_by(TYPE, "bin")
        .agg(pl.len().cast(pl.Int64).alias("size"))
        .collect(engine="streaming")
        .sort(TYPE, "bin")
        .with_columns(end=pl.col("size").cum_sum().over(TYPE), count=pl.col("size").sum().over(TYPE))
        .with_columns(start=pl.col("end") - pl.col("size"), low=(pl.col("count") - 1) // 2, high=pl.col("count") // 2)
    )
    # The middle is one rank, or two that follow each other: nothing lies between the bins that hold them.
    middle = bins.filter((pl.col("start") <= pl.col("high")) & (pl.col("end") > pl.col("low")))
    of_types = middle.group_by(TYPE).agg(pl.col("start").min(), pl.col("low", "high").first())
    found = (
        values.join(middle.lazy().select(TYPE, "bin"), on=[TYPE, "bin"], how="semi", build_side="force_right")
        .group_by(TYPE, VALUE)
        .agg(pl.len().cast(pl.Int64).alias("size"))
        .collect(engine="streaming")
        .join(of_types, on=TYPE)
        .sort(TYPE, VALUE)
        .with_columns(end=pl.col("start") + pl.col("size").cum_sum().over(TYPE))
        .group_by(TYPE, maintain_order=True)
        .agg(
            pl.col(VALUE).filter(pl.col("end") > pl.col("low")).first().alias("lower"),
            pl.col(VALUE).filter(pl.col("end") > pl.col("high")).first().alias("upper"),
        )
    )
    medians = [_between(low, high, 0.5) for low, high in found.select("lower", "upper").iter_rows()]
    return found.select(TYPE).with_columns(pl.Series("median", medians, pl.Float64))


def type_spreads(events: pl.LazyFrame, types: pl.DataFrame) -> pl.DataFrame:
    """Mean and sample standard deviation of HALF of each value: no difference of halves exceeds a double.

    Unlike the mean in ``types``, this one is good for values of any size, for it is corrected by the second pass.

    Args:
        events: raw_events of one day.
        types: their :func:`type_means`.

    Returns:
        One row per type that has a value, sorted: ``event_type``, ``half_mean``, ``half_std`` (null below two values).
    """
    known = types.filter(pl.col("count") > 0)
    exponents = [
        max(math.frexp(max(high / 2 - mean / 2, mean / 2 - low / 2))[1], -1000)
        for low, high, mean in known.select("low", "high", "mean").iter_rows()
    ]
    scaled = known.select(
        TYPE,
        center=pl.col("mean") / 2,
        scale=pl.Series([math.ldexp(1.0, -e) for e in exponents], dtype=pl.Float64),
    )
    first, second = _moments((pl.col(VALUE) / 2 - pl.col("center")) * pl.col("scale"))
    found = (
        events.select(TYPE, VALUE)
        .drop_nulls()
        .join(scaled.lazy(), on=TYPE)
        .group_by(TYPE)
        .agg(first, second)
        .collect(engine="streaming")
        .sort(TYPE)
    )
    rows = []
    for mean, count, exponent, first_, second_ in zip(
        known["mean"], known["count"], exponents, found["first"], found["second"], strict=True
    ):
        correction = Fraction(first_, count << SQUARE_BITS) * Fraction(2) ** exponent
        std = _scaled_std(first_, second_, count) * 2.0**exponent if count > 1 else None
        rows.append((float(Fraction(mean) / 2 + correction), std))
    return known.select(TYPE).with_columns(
        pl.Series("half_mean", [m for m, _ in rows], pl.Float64),
        pl.Series("half_std", [s for _, s in rows], pl.Float64),
    )


# ---- Statistics --------------------------------------------------------------------------------------------------


def chi_square_tail(chi_square: float, degrees_of_freedom: int) -> float:
    """The chance that a chi-square variable of whole degrees of freedom is at least ``chi_square``.

    Exact finite sums: Abramowitz & Stegun, Handbook of Mathematical Functions, 26.4.4 (odd) and 26.4.5 (even), with
    their terms in logarithms, so that thousands of degrees and large statistics neither overflow nor lose the tail.
    With no degree of freedom the variable is 0, so the chance is 1 at 0, else 0.
    """
    if chi_square <= 0:
        return 1.0
    if degrees_of_freedom == 0:
        return 0.0
    half = chi_square / 2
    is_odd = degrees_of_freedom % 2
    powers = [i + 0.5 for i in range((degrees_of_freedom - 1) // 2)] if is_odd else range(degrees_of_freedom // 2)
    log_half = math.log(half)
    logs = [a * log_half - half - math.lgamma(a + 1) for a in powers]
    tail = math.erfc(math.sqrt(half)) if is_odd else 0.0
    if logs:
        largest = max(logs)
        tail += math.exp(largest + math.log(math.fsum(math.exp(x - largest) for x in logs)))
    return min(tail, 1.0)


def fences(quartiles: Sequence[float], factor: float) -> tuple[float | None, float | None]:
    """Tukey's fences ``(q1 - factor * IQR, q3 + factor * IQR)`` of (q1, median, q3); (None, None) without quartiles.

    Nothing lies outside a fence of None.
    """
    if not quartiles:
        return None, None
    q1, _, q3 = quartiles
    return q1 - factor * (q3 - q1), q3 + factor * (q3 - q1)


# ---- Parts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Total:
    """How many values are not null, and their exact sum."""

    count: int
    total: Fraction


@dataclass(frozen=True)
class Numbers:
    """One column of numbers: nulls left out; quartiles (q1, median, q3) empty and the rest None where undefined.

    Attributes:
        rows: with the nulls.
        count: without them.
        unique: different numbers.
    """

    rows: int
    count: int
    unique: int
    total: Fraction
    low: float | None
    high: float | None
    quartiles: tuple[float, ...]
    std: float | None

    @property
    def magnitude(self) -> float:
        """The largest absolute value, 0 without values."""
        return max(abs(self.low or 0.0), abs(self.high or 0.0))


def _table(name: str, events: pl.LazyFrame) -> Table:
    """The contract with ``user_id`` of the events' type."""
    kind: UserIdType = "string" if events.collect_schema()[USER] == pl.String else "int64"
    return tables(kind)[name]


def _fixed(value: pl.Expr, dtype: type[pl.DataType] = pl.Int128) -> pl.Expr:
    """Finite doubles as multiples of 1e-9, in 128 bits unless 64 are enough; those of FIXED_LIMIT and more as null."""
    value = pl.when(value.abs() < FIXED_LIMIT).then(value)
    whole = value.cast(pl.Int64)
    fraction = ((value - whole.cast(pl.Float64)) * FIXED).round().cast(pl.Int64)
    return whole.cast(dtype) * FIXED + fraction.cast(dtype)


def _exact_sum(values: Iterable[float]) -> Fraction:
    """The exact sum of finite doubles."""
    total = 0
    for value in values:
        numerator, denominator = value.as_integer_ratio()
        total += numerator << (SUBNORMAL_BITS + 1 - denominator.bit_length())
    return Fraction(total, 1 << SUBNORMAL_BITS)


def _huge_totals(events: pl.LazyFrame) -> pl.LazyFrame:
    """``user_id`` and ``huge_total``, the sum of the values that :func:`_fixed` leaves out, of users who have any."""
    huge = events.select(USER, VALUE).filter(pl.col(VALUE).abs() >= FIXED_LIMIT).collect(engine="streaming")
    of_users: dict[int | str, list[float]] = {}
    for user, value in huge.iter_rows():
        of_users.setdefault(user, []).append(value)
    totals = {USER: list(of_users), "huge_total": [_double(_exact_sum(v)) for v in of_users.values()]}
    return pl.LazyFrame(totals, schema={USER: huge.schema[USER], "huge_total": pl.Float64})


def _total(frame: pl.LazyFrame, column: str) -> _Total:
    """Count and exact sum of a column, Int64 or Float64, nulls left out."""
    x = pl.col(column)
    if frame.collect_schema()[column] == pl.Int64:
        count, total = frame.select(x.count().alias("n"), x.cast(pl.Int128).sum()).collect(engine="streaming").row(0)
        return _Total(count, Fraction(total))
    magnitude = _magnitude(frame, column)
    count, total = frame.select(x.count().alias("n"), _fixed(x).sum()).collect(engine="streaming").row(0)
    exact = Fraction(total, FIXED)
    if magnitude >= FIXED_LIMIT:
        huge = frame.select(x).filter(x.abs() >= FIXED_LIMIT).collect(engine="streaming")
        exact += _exact_sum(huge[column])
    return _Total(count, exact)


def _magnitude(frame: pl.LazyFrame, column: str) -> float:
    """The largest absolute value of a Float64 column, 0 without values.

    Raises:
        ContractError: a value is not finite.
    """
    x = pl.col(column)
    largest, finite = (
        frame.select(x.abs().max(), x.is_finite().all().alias("finite")).collect(engine="streaming").row(0)
    )
    if not finite:
        raise _not_finite(column)
    return largest or 0.0


def _not_finite(column: str) -> ContractError:
    return ContractError(
        f"{column}: a value is infinite or not a number.",
        "ingest quarantines such rows; was the partition written by something else? Materialize raw_events again.",
        table="raw_events",
    )


def _numbers(frame: pl.LazyFrame, column: str) -> Numbers:
    """Everything about one column, Int64 or Float64, in a handful of scans of it."""
    x = pl.col(column)
    known = _total(frame, column)
    count, total = known.count, known.total
    rows, unique, low, high = (
        frame.select(pl.len(), x.drop_nulls().n_unique().alias("unique"), x.min().alias("low"), x.max().alias("high"))
        .collect(engine="streaming")
        .row(0)
    )
    if not count:
        return Numbers(rows, 0, 0, Fraction(0), None, None, (), None)
    quartiles = _quantiles(frame, column, count, QUARTERS)
    std = _std(frame.select(x.cast(pl.Float64)), count, float(total / count), (float(low), float(high)))
    return Numbers(rows, count, unique, total, low, high, quartiles, std)


def _std(frame: pl.LazyFrame, count: int, mean: float, bounds: tuple[float, float]) -> float | None:
    """The sample standard deviation of the one Float64 column; None below two values.

    Two passes: ``mean`` comes from the first; the sum of deviations corrects for its rounding. Deviations are scaled
    by a power of two to at most 1, so that their squares fit a fixed point whatever the values' size.
    """
    low, high = bounds
    if count < 2:
        return None
    if low == high:
        return 0.0
    shrink = HALVING if max(abs(low), abs(high)) > HALVING_LIMIT else 1.0
    center = min(max(mean, low), high) * shrink
    exponent = max(math.frexp(max(high * shrink - center, center - low * shrink))[1], -1000)
    deviation = (pl.first() * shrink - center) * math.ldexp(1.0, -exponent)
    first, second = frame.select(_moments(deviation)).collect(engine="streaming").row(0)
    scaled = _scaled_std(first, second, count)
    return _double(Fraction(scaled) * Fraction(2) ** exponent / Fraction(shrink))


def _moments(deviation: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """``first`` and ``second``: sums of deviations of at most 1, and of their squares, in units of 2**-SQUARE_BITS."""
    unit = float(1 << SQUARE_BITS)
    return (
        (deviation * unit).cast(pl.Int128).sum().alias("first"),
        (deviation * deviation * unit).cast(pl.Int128).sum().alias("second"),
    )


def _scaled_std(first: int, second: int, count: int) -> float:
    """The sample standard deviation from the sums of :func:`_moments`, in the deviations' unit."""
    unit = 1 << SQUARE_BITS
    variance = (Fraction(second, unit) - Fraction(first * first, unit * unit * count)) / (count - 1)
    return math.sqrt(max(variance, Fraction(0)))


def _quantiles(frame: pl.LazyFrame, column: str, count: int, probabilities: Sequence[Fraction]) -> tuple[float, ...]:
    """Quantiles of the ``count`` > 0 values that are not null, by linear interpolation as NumPy's default does it."""
    positions = [(count - 1) * p for p in probabilities]
    ranks = {r for h in positions for r in (math.floor(h), math.ceil(h))}
    at = _order_statistics(frame, column, sorted(ranks))
    return tuple(_between(at[math.floor(h)], at[math.ceil(h)], float(h - math.floor(h))) for h in positions)


def _between(low: float, high: float, share: float) -> float:
    """The point ``share`` of the way from ``low`` to ``high``, by NumPy's formula; no minus zero."""
    if low == high or share == 0:
        return float(low) + 0.0
    difference = high - low
    if math.isinf(difference):
        return low * (1 - share) + high * share
    return float(low + difference * share if share < HALF else high - difference * (1 - share)) + 0.0


def _order_statistics(frame: pl.LazyFrame, column: str, ranks: Sequence[int]) -> dict[int, float]:
    """The values at the ascending 0-based ``ranks`` of the sorted column, nulls left out.

    Exact and without sorting the column: one scan counts the rows of each bin (a bin is the leading bits of the double,
    so bins are in the values' order), a second one the rows of each value in the few bins that hold a rank.
    """
    values = frame.select(pl.col(column)).drop_nulls()
    sizes = (
        values.group_by(_bin(column).alias("bin"))
        .agg(pl.len().cast(pl.Int64).alias("size"))
        .sort("bin")
        .collect(engine="streaming")
        .with_columns(start=pl.col("size").cum_sum() - pl.col("size"))
    )
    rank = pl.DataFrame({"rank": ranks}, schema={"rank": pl.Int64})
    wanted = rank.join_asof(sizes, left_on="rank", right_on="start").select("bin", "start", "size").unique().sort("bin")
    inside = (
        values.filter(_bin(column).is_in(wanted["bin"].to_list()))
        .group_by(column)
        .agg(pl.len().cast(pl.Int64).alias("size"))
        .sort(column)
        .collect(engine="streaming")
        .with_columns(before=pl.col("size").cum_sum() - pl.col("size"))
    )
    # Ranks count all rows, `before` only those in wanted bins: what the bins left out hold is the difference.
    skipped = wanted.with_columns(skipped=pl.col("start") - (pl.col("size").cum_sum() - pl.col("size")))
    within = rank.join_asof(skipped, left_on="rank", right_on="start").select(
        "rank", at=pl.col("rank") - pl.col("skipped")
    )
    found = within.join_asof(inside, left_on="at", right_on="before")
    return dict(zip(found["rank"].to_list(), found[column].to_list(), strict=True))


def _bin(column: str) -> pl.Expr:
    """The leading bits of the doubles, as whole numbers in the order of the values."""
    bits = pl.col(column).cast(pl.Float64).reinterpret(dtype=pl.Int64)
    ordered = pl.when(bits < 0).then(pl.lit(-INT64_MAX - 1, pl.Int64) - bits).otherwise(bits)
    return ordered // (1 << BIN_SHIFT)


def _summary_of_labels(events: pl.LazyFrame) -> list[tuple[object, ...]]:
    """Rows of summary_statistics for what is no quantity: user ids, times, texts."""
    iso = "%Y-%m-%dT%H:%M:%S%.6f"

    def text(x: pl.Expr, name: str) -> pl.Expr:
        if name in (START, END):
            return x.dt.to_string(iso).str.strip_suffix(".000000")
        return x.cast(pl.String)

    names = (USER, START, END, TYPE, "metadata")
    figures = {
        (name, figure): expression.alias(f"{name} {figure}")
        for name in names
        for figure, expression in (
            ("count", pl.col(name).count()),
            ("nulls", pl.col(name).null_count()),
            ("min", text(pl.col(name).min(), name)),
            ("max", text(pl.col(name).max(), name)),
            ("unique", pl.col(name).drop_nulls().n_unique()),
        )
    }
    found = dict(zip(figures, events.select(*figures.values()).collect(engine="streaming").row(0), strict=True))
    none = (None, None, None)
    return [
        (
            n,
            found[n, "count"],
            found[n, "nulls"],
            None,
            None,
            found[n, "min"],
            *none,
            found[n, "max"],
            found[n, "unique"],
        )
        for n in names
    ]


def _summary_of_numbers(name: str, of_day: Numbers, unit: int) -> tuple[object, ...]:
    """The row of summary_statistics for one column, its numbers divided by ``unit``."""
    if of_day.low is None or of_day.high is None:
        return (name, 0, of_day.rows, None, None, None, None, None, None, None, 0)
    return (
        name,
        of_day.count,
        of_day.rows - of_day.count,
        _round(_double(of_day.total / of_day.count / unit), SUMMARY_DECIMALS),
        None if of_day.std is None else _round(of_day.std / unit, SUMMARY_DECIMALS),
        repr(of_day.low / unit + 0.0),
        *(q / unit for q in of_day.quartiles),
        repr(of_day.high / unit + 0.0),
        of_day.unique,
    )


def rounded(number: pl.Expr, decimals: int) -> pl.Expr:
    """Rounded half to even, without minus zero."""
    rounded = number.round(decimals, mode="half_to_even")
    return pl.when(rounded == 0).then(0.0).otherwise(rounded)


def _round(number: float, decimals: int) -> float:
    """One number rounded as :func:`rounded` rounds columns."""
    return float(pl.select(rounded(pl.lit(number), decimals)).item())


def _double(number: Fraction) -> float:
    """The nearest double.

    Raises:
        ContractError: there is none; the number is too large.
    """
    try:
        return float(number)
    except OverflowError:
        raise ContractError(
            "value: a sum exceeds the largest double, 1.8e308.",
            "Bound the values with quality.value_min and quality.value_max, so that absurd ones are quarantined.",
            table="raw_events",
        ) from None
