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
of some users at a time; a day of up to ten million rows may be one such part.
"""

from __future__ import annotations

import datetime as dt
import math
import shutil
import tempfile
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from data_assets import filling, quantities
from data_assets.contracts import Table, UserIdType, tables
from data_assets.engine import chosen, scan_named
from data_assets.errors import ContractError
from data_assets.quantities import (
    FIXED,
    FIXED_LIMIT,
    HALVING_LIMIT,
    INT64_MAX,
    NUMBER,
    SECOND_US,
    SQUARE_BITS,
    TIMES,
    Numbers,
    between,
    bin_of,
    divided,
    double,
    exact_sum,
    fixed,
    moments,
    round_one,
    rounded,
    scaled_std,
    whole_and_fraction,
)
from data_assets.storage import rows_within, whole_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from data_assets.memory import Mode

SUMMARY_DECIMALS = 6
PROPORTION_DECIMALS = 9
MOST_TYPES = 1_000  # so many event types are kept with the figures of a day
MOST_TEXT = 16 << 20  # bytes of labels that are read at a time
MOST_COUNTED = 262_144  # so many different values are, with how often each occurs, 4 MB
USERS_ROW_GROUP = 8_192  # of parts on disk, each sorted: of a range of users the others' row groups are not read
MOST_USERS = 131_072  # so many rows of session_metrics are held at a time, 10 MB, of a day in parts
STEPS_PER_DECADE = 240  # of the durations' histogram: can be made coarser by any of its divisors

USER, START, END, VALUE, TYPE = "user_id", "session_start", "session_end", "value", "event_type"
LABELS = (USER, START, END, TYPE, "metadata")


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


@dataclass(frozen=True)
class Lengths:
    """How the durations of a day spread, in microseconds.

    Attributes:
        low, high: the shortest and the longest one above zero; None without any.
        not_positive: events whose duration is zero or less.
        steps: events by ``floor(log10(duration) * STEPS_PER_DECADE)``.
    """

    low: int | None
    high: int | None
    not_positive: int
    steps: Mapping[int, int]


class DayFigures:
    """What several tables of a day rest on, found out when first asked for and then kept: a few numbers, no rows.

    And until :meth:`forget_counts` how often each value occurs, where few are different.

    Args:
        events: raw_events of one day.
        mode: how, see ``memory.py``.
        scratch: a folder for the parts of a day that is not held as a whole.
        file: the Parquet file of which ``events`` are all rows, if they are; its footer spares a scan.
    """

    def __init__(
        self, events: pl.LazyFrame, mode: Mode = "eager", scratch: Path | None = None, file: Path | None = None
    ) -> None:
        self.events = events
        self.mode = mode
        self._file = file
        self._scratch = scratch
        self._parts = None if mode == "eager" else scratch
        self._many = scratch if mode == "streaming" else None
        self._types: pl.DataFrame | None = None
        self._counted: pl.DataFrame | None = None
        self._of_sessions: tuple[Numbers, Lengths, int] | None = None
        self._users: _Users | None = None  # its files are read after it was made

    @cached_property
    def bounds(self) -> dict[str, Any]:
        """By label and figure, as ``user_id min``: count, nulls, min, max; of few rows unique too.

        Times are microseconds since 1970.
        """
        told: dict[str, tuple[Any, ...]] = {}
        if self._file is not None:
            told |= whole_numbers(self._file, [name for name in LABELS if name != TYPE])
        figures = {
            f"{name} {figure}": expression
            for name in LABELS
            if name not in (TYPE, *told)
            for figure, expression in (
                ("count", pl.col(name).count()),
                ("nulls", pl.col(name).null_count()),
                ("min", _number(name).min()),
                ("max", _number(name).max()),
                ("unique", pl.col(name).drop_nulls().n_unique()),
            )
            if figure != "unique" or chosen() == "in-memory"  # of few rows: a query of its own costs more
        }
        steps = range(0, max(1, self.rows), self._step) if figures else ()
        found = [self.events.slice(n, self._step).select_seq(**figures).collect(engine=chosen()) for n in steps]
        if len(found) > 1:
            sums, lows, highs = pl.col("^.* (count|nulls)$").sum(), pl.col("^.* min$").min(), pl.col("^.* max$").max()
            found = [pl.concat(found).select_seq(sums, lows, highs)]
        bounds = found[0].row(0, named=True) if found else {}
        kinds, often = self.types.get_columns()  # counted anew each time where they are many
        count = int(often.filter(kinds.is_not_null()).sum())
        told[TYPE] = (count, self.rows - count, kinds.min(), kinds.max())
        for name, figure in told.items():
            bounds |= zip((f"{name} {what}" for what in ("count", "nulls", "min", "max")), figure, strict=True)
        return bounds

    @property
    def types(self) -> pl.DataFrame:
        """``event_type`` and ``count`` (int64): how often each occurs, in no promised order. Kept when few."""
        if self._types is not None:
            return self._types
        counted = self.events.group_by(TYPE).agg(pl.len().cast(pl.Int64).alias("count")).collect(engine=chosen())
        if counted.height <= MOST_TYPES:
            self._types = counted
        return counted

    @cached_property
    def _step(self) -> int:
        """So many rows at a time the labels are read; fewer than all where texts are long."""
        if self._file is None:
            return max(1, self.rows)
        texts = [name for name, dtype in self.events.collect_schema().items() if name in LABELS and dtype == pl.String]
        return rows_within(self._file, [name for name in texts if name != TYPE], MOST_TEXT)

    @cached_property
    def rows(self) -> int:
        """How many events the day has."""
        return int(self.events.select(pl.len()).collect(engine=chosen()).item())

    @cached_property
    def values(self) -> Numbers:
        """The column ``value``.

        Raises:
            ContractError: one is infinite or not a number.
        """
        column = self.events.select(VALUE)
        count = quantities.frequencies if self._many is None else quantities.few_frequencies
        held = count(column, self.rows)
        is_finite = (
            column.select(pl.first().is_finite().all()).collect(engine=chosen()).item()
            if held is None
            else held[NUMBER].is_finite().all()
        )
        if not is_finite:
            raise ContractError(
                f"{VALUE}: a value is infinite or not a number.",
                "ingest quarantines such rows; was the partition written by something else? "
                "Materialize raw_events again.",
                table="raw_events",
            )
        if held is None:
            unique = quantities.count_distinct(column, self.rows, self._many)
            return quantities.describe(quantities.one_by_one(column), unique)
        self._counted = held if held.height <= MOST_COUNTED else None
        return quantities.describe(held)

    @property
    def counted_values(self) -> pl.LazyFrame:
        """The values as ``number`` with how often each occurs as ``times``, perhaps more than once."""
        return quantities.one_by_one(self.events.select(VALUE)) if self._counted is None else self._counted.lazy()

    def forget_counts(self) -> None:
        """Let go of the counted values, which are no few numbers; whoever asks for them again has them scanned."""
        self._counted = None

    @property
    def durations(self) -> Numbers:
        """The durations in microseconds, missing ends filled."""
        return self._left_by_sessions[0]

    @property
    def lengths(self) -> Lengths:
        """How the durations spread, missing ends filled."""
        return self._left_by_sessions[1]

    def unique(self, label: str) -> int:
        """How many different values a column that is no quantity has."""
        if label == USER:
            return self._left_by_sessions[2]
        if label == TYPE:
            return self.types[TYPE].count()
        known = self.bounds.get(f"{label} unique") if self.bounds[f"{label} count"] else 0
        if known is None and label in (START, END):
            low, high = (self.bounds[f"{label} {figure}"] for figure in ("min", "max"))
            times = self.events.select(pl.col(label).to_physical())
            known = quantities.count_seconds(times, self.rows, low, high)
        if known is not None:
            return int(known)
        column = self.events.select(label)
        if column.collect_schema()[label] != pl.String:
            return quantities.count_distinct(column, self.rows, self._many)
        column = column.select(quantities.fingerprint(pl.col(label)))
        if self._step >= self.rows or self._scratch is None:
            return quantities.count_distinct(column, self.rows, self._scratch)
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            for first in range(0, self.rows, self._step):
                some = column.slice(first, self._step).collect(engine=chosen())
                some.write_ipc(Path(folder) / f"{first:015d}.ipc")
            kept = pl.scan_ipc(sorted(Path(folder).iterdir()), glob=False)
            return quantities.count_distinct(kept, self.rows, self._scratch)

    @property
    def _left_by_sessions(self) -> tuple[Numbers, Lengths, int]:
        if self._of_sessions is None:
            self.sessions(precision=0)
        if self._of_sessions is None:
            raise AssertionError
        return self._of_sessions

    def sessions(self, precision: int, *, hold: bool = True) -> pl.LazyFrame:
        """The table session_metrics: see :func:`session_metrics`. Of very many users it is read from disk.

        Raises:
            ContractError: a duration does not fit into 64 bits of microseconds.
        """
        bounds = self.bounds
        spans = [
            bounds[f"{late} max"] - bounds[f"{early} min"]
            for late, early in ((END, START), (START, END))
            if bounds["session_end count"]
        ]
        if any(span > INT64_MAX for span in spans):
            raise ContractError(
                "raw_events: a session lasts longer than 292,000 years; microseconds in 64 bits cannot hold it.",
                "Look for an absurd session_end, often an epoch in the wrong unit; see source.timestamp_formats.",
                table="raw_events",
            )
        columns = self.events.select(USER, START, END, VALUE)
        keys = filling.Keys.of(*((bounds[f"{name} min"], bounds[f"{name} max"]) for name in (USER, START)))
        self._users = users = _Users(_table("session_metrics", self.events).empty(), self._parts)
        scratch = None if hold else self._scratch
        with ExitStack() as stack:
            lengths = _Durations(self._many, stack, is_day_held=self._parts is None)
            shared, magnitude = [], self.values.magnitude
            for part in filling.durations(columns, self.rows, self._parts, keys):
                added_up = _added_up(part.rows, magnitude, is_whole=part.is_whole)
                if part.is_whole:
                    users.add(_sessions(added_up, precision, magnitude))
                else:
                    shared.append(added_up.collect(engine=chosen()))
                lengths.add(part.rows.select("duration_us"))
                del part, added_up  # before the next is read
            if shared:
                users.add(_sessions(_put_together(shared), precision, magnitude))
            self._of_sessions = lengths.numbers(), lengths.spread(), users.count
        return users.in_order(scratch)


class _Users:
    """Rows of session_metrics, added part by part; on disk where they are too many to hold.

    The files live as long as this object.
    """

    def __init__(self, empty: pl.DataFrame, scratch: Path | None) -> None:
        self.count = 0
        self._scratch = scratch
        self._held = [empty]
        self._parts: list[Path] = []
        self._folder: Path | None = None

    def add(self, rows: pl.DataFrame) -> None:
        """Those of some users, which no other part has."""
        self.count += rows.height
        self._held.append(rows)
        if self._scratch is not None and sum(part.height for part in self._held) > MOST_USERS:
            self._parts.append(self._written(f"part-{len(self._parts):06d}", pl.concat(self._held)))
            self._held = [rows.clear()]

    def in_order(self, scratch: Path | None = None) -> pl.LazyFrame:
        """All of them, sorted by user_id; with a folder for them on disk even if they could be held."""
        if not self._parts:
            rows = pl.concat(self._held)
            self._held.clear()
            self._scratch = scratch
            return rows.sort(USER).lazy() if scratch is None else scan_named([self._written("users", rows)])
        self._parts.append(self._written(f"part-{len(self._parts):06d}", pl.concat(self._held)))
        self._held.clear()
        every = scan_named(self._parts)
        # Users come into the parts by chance, so the first one's stand for all.
        some = scan_named(self._parts[:1]).select(pl.col(USER).sort()).collect(engine=chosen()).to_series()
        step = max(1, some.len() // len(self._parts))
        bounds = [None, *some.gather_every(step)[1:], None]
        user, sorted_ones = pl.col(USER), []
        for number, (low, high) in enumerate(pairwise(bounds)):
            inside = pl.lit(value=True) if low is None else user >= low
            inside = inside if high is None else inside & (user < high)
            rows = every.filter(inside).collect(engine=chosen())
            sorted_ones.append(self._written(f"sorted-{number:06d}", rows))
        for path in self._parts:
            path.unlink()
        return scan_named(sorted_ones)

    def _written(self, name: str, rows: pl.DataFrame) -> Path:
        if self._folder is None:
            if self._scratch is None:
                raise AssertionError
            self._scratch.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(dir=self._scratch))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"{name}.parquet"
        rows.sort(USER).write_parquet(path, compression="uncompressed", row_group_size=USERS_ROW_GROUP)
        return path


class _Durations:
    """Durations with how often each occurs, part by part; with a folder on disk where they are too many to hold.

    Of a day that is held they are put together once, after the last part, when the day's rows are gone. Of others so
    many parts come that their counts, of much the same durations, would fill more than any part.
    """

    def __init__(self, scratch: Path | None, stack: ExitStack, *, is_day_held: bool) -> None:
        self.scratch = scratch
        self._stack = stack
        self._most = math.inf if is_day_held else quantities.MOST_DISTINCT  # of more they are put together
        self._folder: Path | None = None
        self._held: list[pl.DataFrame] = []
        self._written: list[Path] = []

    def add(self, durations: pl.LazyFrame) -> None:
        """Those of some events, as the only column."""
        self._held.append(quantities.tally(durations))
        if sum(some.height for some in self._held) <= self._most:
            return
        held = self._together()
        if self.scratch is None or held.height <= quantities.MOST_DISTINCT // 2:
            self._most = max(self._most, 2 * held.height)
            return
        if self._folder is None:
            self.scratch.mkdir(parents=True, exist_ok=True)
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir=self.scratch)))
        path = self._folder / f"{len(self._written):06d}.parquet"
        held.write_parquet(path, compression="uncompressed", statistics=False)
        self._written.append(path)
        self._held.clear()

    def _together(self) -> pl.DataFrame:
        """What is held, as one."""
        if self._held:
            self._held.append(quantities.merged(self._held))
            return self._held[0]
        return pl.DataFrame(schema={NUMBER: pl.Int64, TIMES: pl.Int64})

    def _all(self) -> pl.LazyFrame:
        """Every duration, perhaps more than once."""
        written = [scan_named(path) for path in self._written]
        return pl.concat([*written, self._together().lazy()])

    def numbers(self) -> Numbers:
        """What they come to."""
        if not self._written:
            return quantities.describe(self._together())
        column = self._all().select(NUMBER)
        rows = int(column.select(pl.len()).collect(engine=chosen()).item())
        return quantities.describe(self._all(), quantities.count_distinct(column, rows, self.scratch))

    def spread(self) -> Lengths:
        """How they spread."""
        us, times = pl.col(NUMBER), pl.col(TIMES)
        place = (us.cast(pl.Float64).log(10) * STEPS_PER_DECADE).floor().cast(pl.Int32).alias("step")
        bounds, steps = pl.collect_all(
            [
                self._all().select_seq(
                    low=us.filter(us > 0).min(), high=us.filter(us > 0).max(), others=times.filter(us <= 0).sum()
                ),
                self._all().filter(us > 0).group_by(place).agg(times.sum()),
            ],
            engine=chosen(),
        )
        low, high, others = bounds.row(0)
        return Lengths(low, high, others, dict(steps.sort("step", multithreaded=False).iter_rows()))


def session_metrics(
    events: pl.LazyFrame, precision: int, figures: DayFigures | None = None, *, hold: bool = True
) -> pl.LazyFrame:
    """One row per user: how many sessions, how long, how much value, how many anomalies.

    Durations are in seconds, missing ends filled (``filling.py``). ``avg_duration`` and ``max_duration`` are over all
    known durations, ``min_duration`` over the positive ones; a duration of zero or less counts as an anomaly, an
    unknown one as none. ``total_value`` and ``mean_value`` are null for a user without values. See the module's notes
    on exact sums.

    Args:
        events: raw_events of one day.
        precision: decimals that the five floats are rounded to.
        figures: those of the same day, where they are known.
        hold: whether the table may be held until it is stored; else it waits on disk, where the figures know one.

    Returns:
        The table session_metrics, sorted by user_id.
    """
    made = (figures or DayFigures(events)).sessions(precision, hold=hold)
    return _table("session_metrics", events).conform(made)


def _added_up(timed: pl.LazyFrame, magnitude: float, *, is_whole: bool) -> pl.LazyFrame:
    """What the events of some users come to, a row each; not ``is_whole``: there are more of them elsewhere.

    ``huge`` lists the values that ``fixed`` leaves out, where there may be some.
    """
    duration = pl.col("duration_us")
    extent = timed.select_seq(duration.max().alias("max"), duration.min().alias("min"), pl.len())
    longest, shortest, rows = extent.collect(engine=chosen()).row(0)
    is_long = not is_whole or max(abs(longest or 0), abs(shortest or 0)) * rows > INT64_MAX
    is_large = not is_whole or magnitude * rows >= INT64_MAX // 2
    whole, fraction = whole_and_fraction(pl.col(VALUE), magnitude)
    per_user = timed.group_by(USER).agg(
        pl.len().cast(pl.Int64).alias("total_sessions"),
        duration.count().alias("timed"),
        duration.cast(pl.Int128 if is_long else pl.Int64).sum().alias("duration_sum"),
        duration.max().alias("longest"),
        pl.when(duration > 0).then(duration).min().alias("shortest"),  # a filter in a group costs three times that
        (duration <= 0).sum().cast(pl.Int64).alias("anomaly_count"),
        # Two sums in 64 bits take two thirds of the time of one in 128.
        whole.cast(pl.Int128 if is_large else pl.Int64).sum().alias("value_whole"),
        fraction.sum().alias("value_fraction"),
        pl.col(VALUE).count().alias("valued"),
    )
    if magnitude < FIXED_LIMIT:
        return per_user
    huge = timed.filter(pl.col(VALUE).abs() >= FIXED_LIMIT).group_by(USER).agg(huge=VALUE)
    return per_user.join(huge, on=USER, how="left")


def _put_together(parts: Sequence[pl.DataFrame]) -> pl.LazyFrame:
    """The same of users who stand in several."""
    sums = ("total_sessions", "timed", "duration_sum", "anomaly_count", "value_whole", "value_fraction", "valued")
    every = pl.concat(parts)
    huge = [pl.col("huge").explode(empty_as_null=False).drop_nulls()] if "huge" in every.columns else []
    return every.lazy().group_by(USER).agg(pl.sum(*sums), pl.max("longest"), pl.min("shortest"), *huge)


def _sessions(per_user: pl.LazyFrame, precision: int, magnitude: float) -> pl.DataFrame:
    """Rows of session_metrics of what ``_added_up`` tells, in no promised order."""
    value_sum = (pl.col("value_whole").cast(pl.Int128) * FIXED + pl.col("value_fraction")).cast(pl.Float64)
    total = divided(value_sum, FIXED)
    mean = value_sum / (pl.col("valued").cast(pl.Float64) * FIXED)
    if magnitude >= FIXED_LIMIT:
        held = per_user.collect(engine=chosen())
        per_user = held.lazy().join(_huge_totals(held.filter(pl.col("huge").list.len() > 0)), on=USER, how="left")
        total = total + pl.col("huge_total").fill_null(0.0)
        mean = pl.when(pl.col("huge_total").is_null()).then(mean).otherwise(total / pl.col("valued"))
    seconds = pl.col("duration_sum").cast(pl.Int128).cast(pl.Float64) / (pl.col("timed").cast(pl.Float64) * SECOND_US)
    return per_user.select_seq(
        USER,
        "total_sessions",
        rounded(pl.when(pl.col("timed") > 0).then(seconds), precision).alias("avg_duration"),
        rounded(divided(pl.col("longest"), SECOND_US), precision).alias("max_duration"),
        rounded(divided(pl.col("shortest"), SECOND_US), precision).alias("min_duration"),
        rounded(pl.when(pl.col("valued") > 0).then(total), precision).alias("total_value"),
        rounded(pl.when(pl.col("valued") > 0).then(mean), precision).alias("mean_value"),
        "anomaly_count",
    ).collect(engine=chosen())


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
        score = divided(value - median, of_day.std)
        if of_day.magnitude > HALVING_LIMIT:
            score = divided(value, of_day.std) - median / of_day.std
    else:
        score = pl.lit(None, pl.Float64)
    frame = events.filter((value < lower) | (value > upper)).with_columns_seq(
        rounded(score, SUMMARY_DECIMALS).alias("outlier_score"),
        lower.alias("iqr_lower"),
        upper.alias("iqr_upper"),
    )
    return _table("outliers", events).conform(frame)


def event_distribution(events: pl.LazyFrame, figures: DayFigures | None = None) -> pl.LazyFrame:
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
    counts = (figures or DayFigures(events)).types.sort("count", TYPE, descending=[True, False], multithreaded=False)
    if counts.is_empty():
        return contract.empty().lazy()
    n, k = int(counts["count"].sum()), counts.height
    squares = sum(c * c for c in counts["count"].to_list())
    chi_square = (k * squares - n * n) / n  # whole numbers until the division
    v = math.sqrt(chi_square / (n * (k - 1))) if k > 1 else None
    frame = counts.lazy().with_columns_seq(
        rounded(divided(pl.col("count"), n), PROPORTION_DECIMALS).alias("proportion"),
        rounded(divided(pl.col("count").cum_sum(), n), PROPORTION_DECIMALS).alias("cumulative"),
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
        *_summary_of_labels(known),
        _summary_of_numbers("value", known.values, 1),
        _summary_of_numbers("duration", known.durations, SECOND_US),
    ]
    contract = _table("summary_statistics", events)
    rows.sort(key=lambda row: str(row[0]))
    return contract.conform(pl.LazyFrame(rows, schema=contract.schema, orient="row"))


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
    of_users = sessions.select_seq(
        pl.len().alias("users"), pl.col("total_sessions").sum(), pl.col("anomaly_count").sum()
    ).collect(engine=chosen())
    users, total_sessions, anomalies = of_users.row(0)
    total_events = distribution.select(pl.col("count").sum()).collect(engine=chosen()).item()
    known = figures or DayFigures(events)
    value, duration = known.values, known.durations
    average = median = None
    if duration.count:
        average = round_one(double(duration.total / duration.count / SECOND_US), precision)
        median = round_one(duration.quartiles[1] / SECOND_US, precision)
    row = {
        "rows_in": counts.rows_in,
        "valid": counts.valid,
        "quarantined": counts.quarantined,
        "duplicate": counts.duplicate,
        "late": counts.late,
        "late_max_days": counts.late_max_days,
        "late_mean_days": round_one(counts.late_row_days / counts.late, precision) if counts.late else None,
        "users": users,
        "sessions": total_sessions,
        "events": total_events,
        "value": round_one(double(value.total), precision) if value.count else None,
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
            fixed(value).sum().alias("total"),
        )
        .collect(engine=chosen())
        .sort(TYPE)
    )
    totals = {kind: Fraction(total, FIXED) for kind, total in found.select(TYPE, "total").iter_rows()}
    if not found.filter(pl.max_horizontal(pl.col("low").abs(), pl.col("high").abs()) >= FIXED_LIMIT).is_empty():
        huge = known.filter(value.abs() >= FIXED_LIMIT).collect(engine=chosen())
        for (kind,), group in huge.group_by(TYPE):
            totals[str(kind)] += exact_sum(group[VALUE])
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
    values = events.select(TYPE, VALUE, bin_of(VALUE).alias("bin")).drop_nulls()
    bins = (
        values.group_by(TYPE, "bin")
        .agg(pl.len().cast(pl.Int64).alias("size"))
        .collect(engine=chosen())
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
        .collect(engine=chosen())
        .join(of_types, on=TYPE)
        .sort(TYPE, VALUE)
        .with_columns(end=pl.col("start") + pl.col("size").cum_sum().over(TYPE))
        .group_by(TYPE, maintain_order=True)
        .agg(
            pl.col(VALUE).filter(pl.col("end") > pl.col("low")).first().alias("lower"),
            pl.col(VALUE).filter(pl.col("end") > pl.col("high")).first().alias("upper"),
        )
    )
    medians = [between(low, high, 0.5) for low, high in found.select("lower", "upper").iter_rows()]
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
    first, second = moments((pl.col(VALUE) / 2 - pl.col("center")) * pl.col("scale"))
    found = (
        events.select(TYPE, VALUE)
        .drop_nulls()
        .join(scaled.lazy(), on=TYPE)
        .group_by(TYPE)
        .agg(first, second)
        .collect(engine=chosen())
        .sort(TYPE)
    )
    rows = []
    for mean, count, exponent, first_, second_ in zip(
        known["mean"], known["count"], exponents, found["first"], found["second"], strict=True
    ):
        correction = Fraction(first_, count << SQUARE_BITS) * Fraction(2) ** exponent
        std = scaled_std(first_, second_, count) * 2.0**exponent if count > 1 else None
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


def _number(name: str) -> pl.Expr:
    """A label as it is compared; Python's datetime, which times would become, ends with the year 9999."""
    return pl.col(name).cast(pl.Int64) if name in (START, END) else pl.col(name)


def _table(name: str, events: pl.LazyFrame) -> Table:
    """The contract with ``user_id`` of the events' type."""
    kind: UserIdType = "string" if events.collect_schema()[USER] == pl.String else "int64"
    return tables(kind)[name]


def _huge_totals(held: pl.DataFrame) -> pl.LazyFrame:
    """``user_id`` and ``huge_total``, the sum of the values that ``fixed`` leaves out, of users who have any."""
    totals = [double(exact_sum(values)) for values in held["huge"]]
    return held.lazy().select(USER, huge_total=pl.Series(totals, dtype=pl.Float64))


def _summary_of_labels(figures: DayFigures) -> list[tuple[object, ...]]:
    """Rows of summary_statistics for what is no quantity: user ids, times, texts."""

    def bound(name: str, figure: str) -> str | None:
        found = figures.bounds[f"{name} {figure}"]
        if found is None or name not in (START, END):
            return None if found is None else str(found)
        try:
            return (dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=found)).isoformat()  # noqa: DTZ001 - the day's
        except OverflowError:  # Python's years end with 9999
            text = pl.select(pl.lit(found, pl.Int64).cast(pl.Datetime("us")).dt.to_string("%Y-%m-%dT%H:%M:%S%.6f"))
            return str(text.item()).removesuffix(".000000")

    none = (None, None, None)
    return [
        (
            name,
            figures.bounds[f"{name} count"],
            figures.bounds[f"{name} nulls"],
            None,
            None,
            bound(name, "min"),
            *none,
            bound(name, "max"),
            figures.unique(name),
        )
        for name in LABELS
    ]


def _summary_of_numbers(name: str, of_day: Numbers, unit: int) -> tuple[object, ...]:
    """The row of summary_statistics for one column, its numbers divided by ``unit``."""
    if of_day.low is None or of_day.high is None:
        return (name, 0, of_day.rows, None, None, None, None, None, None, None, 0)
    return (
        name,
        of_day.count,
        of_day.rows - of_day.count,
        round_one(double(of_day.total / of_day.count / unit), SUMMARY_DECIMALS),
        None if of_day.std is None else round_one(of_day.std / unit, SUMMARY_DECIMALS),
        repr(of_day.low / unit + 0.0),
        *(q / unit for q in of_day.quartiles),
        repr(of_day.high / unit + 0.0),
        of_day.unique,
    )
