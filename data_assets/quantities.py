"""One column of numbers and what it comes to, exactly: sum, quartiles, deviation, how many different ones.

Here: sums in fixed point, order statistics, standard deviations. Not here: which columns are described and in which
unit (``metrics.py``), nor how numbers are shown (``report/``).

A column comes as different numbers with how often each occurs, while those are few enough to hold (MOST_DISTINCT):
that is one scan, and all else follows from it. Otherwise it is scanned several times, and only bins of it are held.
Both ways the same whole numbers are added up, so both give the same results; ``metrics.py`` says how sums are taken.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from data_assets.engine import chosen
from data_assets.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MOST_DISTINCT = 1_000_000  # a table of so many numbers takes 16 MB
FIRST_ROWS, PIECE_ROWS = 1_048_576, 4_194_304
MOST_PARTS = 128  # so many files the engine keeps open; of more parts it makes several files each, slow to read
FIXED = 1_000_000_000  # fixed point: units of a sum of values
FIXED_LIMIT = 9e18  # from here on the whole part of a value exceeds 64 bits
SQUARE_BITS = 90  # squares of at most 1 in units of 2**-90: 2**36 rows fit into 128 bits
HALVING_LIMIT = 1e290  # above, differences of values could exceed a double
INT64_MAX = 2**63 - 1
HALF = Fraction(1, 2)
QUARTERS = (Fraction(1, 4), HALF, Fraction(3, 4))
SECOND_US = 1_000_000
NUMBER, TIMES = "number", "times"  # a column on its way here, and how often each of its rows counts
_HALVING = 2.0**-60
_SUBNORMAL_BITS = 1074  # every double is a whole multiple of 2**-1074
_BIN_SHIFT = 40  # bins of order statistics: sign, exponent and the first 12 bits of the mantissa
SEGMENT_ROWS = 2**25  # so many rows are parted at a time: what the engine notes of a file's row groups adds up
_PART_BATCH = 8_192  # what waits of each part until it is written: twice as much takes 30 MB more
_PART_SHARE = 4  # a part on disk may hold this many times fewer different values than MOST_DISTINCT


@dataclass(frozen=True)
class Numbers:
    """One column of numbers: nulls left out; quartiles (q1, median, q3) empty and the rest None where undefined.

    Attributes:
        rows: with the nulls.
        count: without them.
        unique: different numbers.
        whole: all are whole numbers.
    """

    rows: int
    count: int
    unique: int
    whole: bool
    total: Fraction
    low: float | None
    high: float | None
    quartiles: tuple[float, ...]
    std: float | None

    @property
    def magnitude(self) -> float:
        """The largest absolute value, 0 without values."""
        return max(abs(self.low or 0.0), abs(self.high or 0.0))


def frequencies(column: pl.LazyFrame, rows: int) -> pl.DataFrame:
    """The values of a frame's only column, each once and in order, as ``number``, with how often, as ``times`` (int64).

    So many rows at a time: over all of them at once the engine sometimes holds most rows on their way.
    """
    return deque(_growing(column, rows, PIECE_ROWS), maxlen=1).pop()


def few_frequencies(column: pl.LazyFrame, rows: int) -> pl.DataFrame | None:
    """The same, given up where more than MOST_DISTINCT values are different, or will be by the look of the first."""
    most = MOST_DISTINCT if rows <= 2 * MOST_DISTINCT else MOST_DISTINCT // 2
    found = None
    for found in _growing(column, rows, FIRST_ROWS):
        if found.height > most:
            return None
        most = MOST_DISTINCT
    return found


def _growing(column: pl.LazyFrame, rows: int, first_rows: int) -> Iterator[pl.DataFrame]:
    """The frequencies in a first piece, in two, and so on."""
    found = tally(column.head(first_rows))
    yield found
    for first in range(first_rows, rows, PIECE_ROWS):
        found = merged([found, tally(column.slice(first, PIECE_ROWS))])
        yield found


def tally(column: pl.LazyFrame) -> pl.DataFrame:
    """The same over all rows at once: sorted, in a fraction of the time that a hash table of many values takes."""
    runs = _collected(column).to_series().sort(multithreaded=False).rle().struct
    return pl.DataFrame({NUMBER: runs.field("value"), TIMES: runs.field("len").cast(pl.Int64)})


def merged(tallies: list[pl.DataFrame]) -> pl.DataFrame:
    """Several of the same as one; the list is empty then. All are in order, so nothing is looked up."""
    while len(tallies) > 1:
        some = tallies.pop(0)
        tallies.append(_of_both(some, tallies.pop(0)))
    return tallies.pop()


def _of_both(some: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    number, times, again = pl.col(NUMBER), pl.col(TIMES), pl.col("again")
    is_second = number.eq_missing(number.shift()) & (pl.int_range(pl.len()) > 0)  # row of a number that both have
    more = pl.when(again.shift(-1, fill_value=False)).then(times.shift(-1)).otherwise(0)
    every = some.merge_sorted(others, NUMBER).lazy().with_columns(is_second.alias("again"))
    return every.with_columns(times + more).filter(~again).drop("again").collect(engine="in-memory")


def one_by_one(column: pl.LazyFrame) -> pl.LazyFrame:
    """The same for numbers that are too many to be told apart: each row counts once."""
    return column.select(pl.first().alias(NUMBER), pl.lit(1, pl.Int64).alias(TIMES))


def describe(column: pl.LazyFrame | pl.DataFrame, unique: int | None = None) -> Numbers:
    """Everything about one column.

    Args:
        column: ``number``, Int64 or finite Float64, and ``times``, Int64: a DataFrame where every number (and null)
            stands once and in order, a LazyFrame where they are scanned.
        unique: how many different numbers a LazyFrame holds.
    """
    known, (rows, count, low, high, whole) = _held(column) if isinstance(column, pl.DataFrame) else _scanned(column)
    if not count:
        return Numbers(rows, 0, 0, True, Fraction(0), None, None, (), None)
    total = _total(known.lazy(), max(abs(low), abs(high)))
    if isinstance(known, pl.DataFrame):
        unique = known.height
    at = _order_statistics(known, sorted(_ranks(count)))
    quartiles = tuple(between(at[math.floor(h)], at[math.ceil(h)], float(h - math.floor(h))) for h in _places(count))
    std = _std(known.lazy(), count, float(total / count), (float(low), float(high)))
    return Numbers(rows, count, unique or 0, whole, total, low, high, quartiles, std)


def _held(column: pl.DataFrame) -> tuple[pl.DataFrame, tuple[Any, ...]]:
    """The numbers without null, in order, and: rows, those without null, the lowest, the highest, if all are whole."""
    known = column.slice(column[NUMBER].null_count())
    number = known[NUMBER]
    whole = bool((number == number.floor()).all())
    return known, (column[TIMES].sum(), known[TIMES].sum(), number.min(), number.max(), whole)


def _scanned(column: pl.LazyFrame) -> tuple[pl.LazyFrame, tuple[Any, ...]]:
    """The same, in no order."""
    number, times = pl.col(NUMBER), pl.col(TIMES)
    figures = column.select_seq(
        times.sum().alias("rows"),
        times.filter(number.is_not_null()).sum(),
        number.min().alias("low"),
        number.max().alias("high"),
        (number == number.floor()).all().alias("whole"),
    )
    return column.filter(number.is_not_null()), _collected(figures).row(0)


def fingerprint(text: pl.Expr) -> pl.Expr:
    """128 bits that stand for a text, null for null; for counting texts, which may be long, by 16 bytes each.

    That two of 250 million different texts share theirs has a chance of 1 in 10**22.
    """
    high, low = text.hash(0).reinterpret(dtype=pl.Int64), pl.concat_str(pl.lit("."), text).hash(1)
    both = high.cast(pl.Int128) * pl.lit(2**64, pl.Int128) + low.cast(pl.Int128)
    return pl.when(text.is_not_null()).then(both)


def count_distinct(column: pl.LazyFrame, rows: int, scratch: Path | None) -> int:
    """How many different values, nulls left out, a frame's only column holds.

    Args:
        column: the values.
        rows: how many rows it has.
        scratch: a folder, in parts below which more than MOST_DISTINCT are counted; without it all are held at once.
    """
    if scratch is None:
        return _known(frequencies(column, rows))
    held = few_frequencies(column, rows)
    if held is not None:
        return _known(held)
    count = min(MOST_PARTS, -(-rows * _PART_SHARE // MOST_DISTINCT))
    found = 0
    with parts_on_disk(column, rows, pl.first().hash() % count, scratch) as parts:
        for part in parts:
            found += _collected(part).to_series().drop_nulls().n_unique()
    return found


def count_seconds(times: pl.LazyFrame, rows: int, low: int, high: int) -> int | None:
    """How many different times a frame's only column holds, where they are whole seconds apart, and not too far.

    Each is marked in its place, which takes half of what sorting them does.

    Args:
        times: microseconds, nulls left out.
        rows: how many rows the frame has.
        low: the earliest.
        high: the latest.

    Returns:
        ``None`` where another way has to count them.
    """
    if high - low >= MOST_DISTINCT * SECOND_US:
        return None
    seen = pl.zeros((high - low) // SECOND_US + 1, dtype=pl.UInt8, eager=True)
    for first in range(0, rows, FIRST_ROWS):
        away = _collected(times.slice(first, FIRST_ROWS)).to_series().drop_nulls() - low
        places = away // SECOND_US
        if not (places * SECOND_US == away).all():
            return None
        seen.scatter(places, 1)
    return int(seen.sum())


def _known(held: pl.DataFrame) -> int:
    return held.height - held[NUMBER].null_count()


@contextlib.contextmanager
def parts_on_disk(frame: pl.LazyFrame, rows: int, key: pl.Expr, scratch: Path) -> Iterator[Iterator[pl.LazyFrame]]:
    """The frame parted by ``key``, one of MOST_PARTS whole numbers; the block gets the parts, each gone with the next.

    On disk they are in Arrow's own format: Parquet takes a third more CPU to write, for files that are soon gone.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for first in range(0, max(1, rows), SEGMENT_ROWS):
            frame.slice(first, SEGMENT_ROWS).with_columns(key.cast(pl.UInt32).alias("__part")).sink_ipc(
                pl.PartitionBy(Path(folder) / f"{first:015d}", key="__part", include_key=False),
                mkdir=True,
                record_batch_size=_PART_BATCH,
                compat_level=pl.CompatLevel.oldest(),  # newer ones write all of the buffers that texts lie in
            )
        found: dict[str, list[Path]] = {}
        for path in sorted(Path(folder).rglob("*.ipc")):
            found.setdefault(path.parent.name, []).append(path)
        yield _one_by_one(found[name] for name in sorted(found))


def _one_by_one(parts: Iterable[list[Path]]) -> Iterator[pl.LazyFrame]:
    for files in parts:
        yield pl.scan_ipc(files, glob=False, hive_partitioning=False)
        for path in files:
            path.unlink()


def _collected(frame: pl.LazyFrame) -> pl.DataFrame:
    return frame.collect(engine=chosen())


# ---- Sums --------------------------------------------------------------------------------------------------------


def fixed(value: pl.Expr) -> pl.Expr:
    """Finite doubles as multiples of 1e-9, in 128 bits; those of FIXED_LIMIT and more are null."""
    whole, fraction = whole_and_fraction(value)
    return whole.cast(pl.Int128) * FIXED + fraction


def whole_and_fraction(value: pl.Expr, magnitude: float = math.inf) -> tuple[pl.Expr, pl.Expr]:
    """The whole parts of finite doubles, and what is beside them in multiples of 1e-9, in 64 bits each.

    Args:
        value: those of FIXED_LIMIT and more come to null.
        magnitude: what none of them exceeds, either way.
    """
    if magnitude >= FIXED_LIMIT:
        value = pl.when(value.abs() < FIXED_LIMIT).then(value)
    whole = value.cast(pl.Int64)
    return whole, ((value - whole.cast(pl.Float64)) * FIXED).round().cast(pl.Int64)


def exact_sum(values: Iterable[float]) -> Fraction:
    """The exact sum of finite doubles."""
    total = 0
    for value in values:
        numerator, denominator = value.as_integer_ratio()
        total += numerator << (_SUBNORMAL_BITS + 1 - denominator.bit_length())
    return Fraction(total, 1 << _SUBNORMAL_BITS)


def double(number: Fraction) -> float:
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


def _total(known: pl.LazyFrame, magnitude: float) -> Fraction:
    """The exact sum of the numbers that are not null, none of them larger than ``magnitude`` either way."""
    number, times = pl.col(NUMBER), pl.col(TIMES).cast(pl.Int128)
    if known.collect_schema()[NUMBER] == pl.Int64:
        return Fraction(_collected(known.select((number.cast(pl.Int128) * times).sum())).item())
    total = Fraction(_collected(known.select((fixed(number) * times).sum())).item(), FIXED)
    if magnitude >= FIXED_LIMIT:
        huge = _collected(known.filter(number.abs() >= FIXED_LIMIT))
        total += sum((exact_sum((value,)) * often for value, often in huge.iter_rows()), Fraction(0))
    return total


# ---- Deviation ---------------------------------------------------------------------------------------------------


def moments(deviation: pl.Expr, times: pl.Expr | None = None) -> tuple[pl.Expr, pl.Expr]:
    """``first`` and ``second``: sums of deviations of at most 1, and of their squares, in units of 2**-SQUARE_BITS."""
    unit = float(1 << SQUARE_BITS)
    first, second = ((x * unit).cast(pl.Int128) for x in (deviation, deviation * deviation))
    if times is not None:
        first, second = first * times.cast(pl.Int128), second * times.cast(pl.Int128)
    return first.sum().alias("first"), second.sum().alias("second")


def scaled_std(first: int, second: int, count: int) -> float:
    """The sample standard deviation from the sums of :func:`moments`, in the deviations' unit."""
    unit = 1 << SQUARE_BITS
    variance = (Fraction(second, unit) - Fraction(first * first, unit * unit * count)) / (count - 1)
    return math.sqrt(max(variance, Fraction(0)))


def _std(known: pl.LazyFrame, count: int, mean: float, bounds: tuple[float, float]) -> float | None:
    """The sample standard deviation; None below two values.

    Two passes: ``mean`` comes from the first; the sum of deviations corrects for its rounding. Deviations are scaled
    by a power of two to at most 1, so that their squares fit a fixed point whatever the values' size.
    """
    low, high = bounds
    if count < 2:
        return None
    if low == high:
        return 0.0
    shrink = _HALVING if max(abs(low), abs(high)) > HALVING_LIMIT else 1.0
    center = min(max(mean, low), high) * shrink
    exponent = max(math.frexp(max(high * shrink - center, center - low * shrink))[1], -1000)
    deviation = (pl.col(NUMBER).cast(pl.Float64) * shrink - center) * math.ldexp(1.0, -exponent)
    first, second = _collected(known.select_seq(moments(deviation, pl.col(TIMES)))).row(0)
    return double(Fraction(scaled_std(first, second, count)) * Fraction(2) ** exponent / Fraction(shrink))


# ---- Order -------------------------------------------------------------------------------------------------------


def between(low: float, high: float, share: float) -> float:
    """The point ``share`` of the way from ``low`` to ``high``, by NumPy's formula; no minus zero."""
    if low == high or share == 0:
        return float(low) + 0.0
    difference = high - low
    if math.isinf(difference):
        return low * (1 - share) + high * share
    return float(low + difference * share if share < HALF else high - difference * (1 - share)) + 0.0


def _places(count: int) -> list[Fraction]:
    """Where the quartiles of ``count`` sorted numbers lie, by NumPy's default."""
    return [(count - 1) * p for p in QUARTERS]


def _ranks(count: int) -> set[int]:
    return {rank for place in _places(count) for rank in (math.floor(place), math.ceil(place))}


def _order_statistics(known: pl.LazyFrame | pl.DataFrame, ranks: Sequence[int]) -> dict[int, float]:
    """The numbers at the ascending 0-based ``ranks`` of the sorted column.

    Exact and without sorting a column that is scanned: one scan counts the rows of each bin (a bin is the leading bits
    of the double, so bins are in the numbers' order), a second one the rows of each number in the few bins that hold a
    rank.
    """
    numbers, places = known, list(ranks)
    if isinstance(numbers, pl.LazyFrame):
        bins = _in_order(numbers.group_by(bin_of(NUMBER).alias(NUMBER)).agg(pl.col(TIMES).sum()))
        ends = bins[TIMES].cum_sum()
        of_rank = _holding(ranks, ends)
        wanted = of_rank.unique().sort()
        # Ranks count all rows, what is counted below only those in wanted bins: the bins left out come before.
        rows = bins[TIMES].gather(wanted)
        left_out = dict(zip(wanted, ends.gather(wanted) - rows.cum_sum(), strict=True))
        places = [rank - left_out[place] for rank, place in zip(ranks, of_rank, strict=True)]
        inside = numbers.filter(bin_of(NUMBER).is_in(bins[NUMBER].gather(wanted).to_list()))
        numbers = _in_order(inside.group_by(NUMBER).agg(pl.col(TIMES).sum()))
    found = numbers[NUMBER].gather(_holding(places, numbers[TIMES].cum_sum()))
    return dict(zip(ranks, found.to_list(), strict=True))


def _in_order(counted: pl.LazyFrame) -> pl.DataFrame:
    """The rows sorted by their number."""
    return _collected(counted.sort(NUMBER))


def _holding(ranks: Sequence[int], ends: pl.Series) -> pl.Series:
    """Which of the sorted numbers hold the ranks; ``ends``: how many rows there are up to each number, it included."""
    return ends.search_sorted(pl.Series(ranks, dtype=pl.Int64), side="right")


def bin_of(column: str) -> pl.Expr:
    """The leading bits of the doubles, as whole numbers in the order of the values."""
    bits = pl.col(column).cast(pl.Float64).reinterpret(dtype=pl.Int64)
    ordered = pl.when(bits < 0).then(pl.lit(-INT64_MAX - 1, pl.Int64) - bits).otherwise(bits)
    return ordered // (1 << _BIN_SHIFT)


# ---- Rounding ----------------------------------------------------------------------------------------------------


def divided(number: pl.Expr, by: float) -> pl.Expr:
    """Divided row by row: to divide by one number the engine multiplies several rows by its reciprocal, but not one.

    So what a row comes to would depend on those beside it.
    """
    return number / (number.is_null().cast(pl.Float64) * 0.0 + by)


def rounded(number: pl.Expr, decimals: int) -> pl.Expr:
    """Rounded half to even, without minus zero."""
    rounded = number.round(decimals, mode="half_to_even")
    return pl.when(rounded == 0).then(0.0).otherwise(rounded)


def round_one(number: float, decimals: int) -> float:
    """One number rounded as :func:`rounded` rounds columns: by the engine's arithmetic, without a query."""
    shifted = number * 10.0**decimals
    return round(shifted) / 10.0**decimals + 0.0 if math.isfinite(shifted) else number
