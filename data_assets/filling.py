"""How long each event lasted, where a missing end is filled from the same user's next one; some users at a time.

Here: parting a day by users, on disk, and filling within a part. Not here: what is made of the
durations (``metrics.py``). Whatever the day's length, the rows of one part are in memory at a time.

A missing end takes that of the same user's row with the smallest (start, end) among those whose end is known and whose
start is not before its own; where there is none it stays null. The order of rows plays no part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from data_assets.quantities import INT64_MAX, MOST_PARTS, parts_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PART_ROWS = 262_144  # how many rows of a long day are worked on at a time; a user's rows stay together
USER, START, END = "user_id", "session_start", "session_end"
_KEY, _FOUND, _LEAST, _CODE = "__key", "__found", "__least", "__code"


def durations(events: pl.LazyFrame, rows: int, scratch: Path | None = None) -> Iterator[pl.DataFrame]:
    """The events with missing ends filled, and their duration, in parts that share no user.

    Args:
        events: a day, with ``user_id``, ``session_start``, ``session_end`` and any other columns. The span of its
            times fits into 64 bits of microseconds.
        rows: how many they are.
        scratch: where the parts are kept meanwhile; without it the day is one part.

    Yields:
        Every row and column of ``events``, in no promised order, with ``session_end`` filled and ``duration_us``
        (int64, microseconds, null where there is no end) added in place of any source column of that name.
    """
    duration = (pl.col(END) - pl.col(START)).dt.total_microseconds().alias("duration_us")
    for part in _parts(events, rows, scratch):
        yield filled(part).with_columns(duration)


def _parts(events: pl.LazyFrame, rows: int, scratch: Path | None) -> Iterator[pl.DataFrame]:
    if scratch is None:
        yield events.collect(engine="streaming")
        return
    count = min(MOST_PARTS, -(-rows // PART_ROWS))
    with parts_on_disk(events, pl.col(USER).hash() % count, scratch) as parts:
        for path in parts:
            yield pl.read_parquet(path, glob=False, hive_partitioning=False)
            path.unlink()


def filled(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with missing ends filled; all rows of a user must be there. Rows that had an end come first.

    Those of users who miss one are looked up by one whole number a row, of the user's number and the start: sorting
    one such column is several times faster than sorting three.
    """
    is_open = pl.col(END).is_null()
    open_ = rows.filter(is_open)
    if open_.is_empty():
        return rows
    closed = rows.filter(~is_open)
    users = open_.select(USER).unique().with_row_index(_CODE)
    known = closed.select(USER, START, END).join(users, on=USER)
    asked = open_.with_columns(_numbers_of(open_, users))
    starts = pl.concat([known[START], asked[START]])
    begun = starts.to_physical().to_frame("s")
    first, last = begun.select(pl.col("s").min(), last=pl.col("s").max()).row(0)
    span = last - first + 1
    if users.height * span > INT64_MAX:  # not one day's times
        ranks = starts.rank("dense").cast(pl.Int64)
        known, asked = known.with_columns(s=ranks[: known.height]), asked.with_columns(s=ranks[known.height :])
        span, first = rows.height + 1, 0
    else:
        known, asked = (f.with_columns(s=pl.col(START).to_physical()) for f in (known, asked))
    key = (pl.col(_CODE).cast(pl.Int64) * span + (pl.col("s") - first)).alias(_KEY)
    return _looked_up(closed, asked.with_columns(key), known.select(key.alias(_FOUND), END).sort(_FOUND), span)


def _numbers_of(rows: pl.DataFrame, users: pl.DataFrame) -> pl.Series:
    """The users' numbers, row by row."""
    return rows.select(USER).join(users, on=USER, how="left", maintain_order="left")[_CODE]


def _looked_up(closed: pl.DataFrame, asked: pl.DataFrame, known: pl.DataFrame, span: int) -> pl.DataFrame:
    """``closed``, then ``asked`` with the ends that ``known``, sorted by its key, holds for them."""
    key = pl.col(_FOUND)
    twice = known.filter((key == key.shift(1)) | (key == key.shift(-1))).group_by(_FOUND).agg(pl.col(END).min())
    answers = (
        asked.select(_KEY)
        .unique()
        .sort(_KEY)
        .join_asof(known, left_on=_KEY, right_on=_FOUND, strategy="forward", coalesce=False)
        .filter(key // span == pl.col(_KEY) // span)
        .join(twice.rename({END: _LEAST}), on=_FOUND, how="left")
        .select(_KEY, pl.coalesce(_LEAST, END).alias(END))
    )
    answered = asked.drop(END).join(answers, on=_KEY, how="left").select(closed.columns)
    return pl.concat([closed, answered])
