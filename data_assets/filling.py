"""How long each event lasted, where a missing end is filled from the same user's next one; some users at a time.

Here: parting a day by users, on disk, and filling within a part. Not here: what is made of the
durations (``metrics.py``). Whatever the day's length, the rows of one part are in memory at a time.

A missing end takes that of the same user's row with the smallest (start, end) among those whose end is known and whose
start is not before its own; where there is none it stays null. The order of rows plays no part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from data_assets.engine import chosen
from data_assets.quantities import INT64_MAX, MOST_PARTS, parts_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PART_ROWS = 262_144  # how many rows of a long day are worked on at a time; a user's rows stay together
USER, START, END = "user_id", "session_start", "session_end"
_KEY, _NEXT = "__key", "__next"


def durations(events: pl.LazyFrame, rows: int, scratch: Path | None = None) -> Iterator[pl.DataFrame]:
    """The events with missing ends filled, and their duration, in parts that share no user; some may be empty.

    Args:
        events: a day, with ``user_id``, ``session_start``, ``session_end`` and any other columns. The span of its
            times fits into 64 bits of microseconds.
        rows: how many they are.
        scratch: where the parts are kept meanwhile; without it the day is one part.

    Returns:
        Every row and column of ``events``, in no promised order, with ``session_end`` filled and ``duration_us``
        (int64, microseconds, null where there is no end) added in place of any source column of that name.
    """
    return map(_timed, _parts(events, rows, scratch))  # which holds no part while the next is read


def _timed(part: pl.DataFrame) -> pl.DataFrame:
    return filled(part).with_columns(duration_us=(pl.col(END) - pl.col(START)).dt.total_microseconds())


def _parts(events: pl.LazyFrame, rows: int, scratch: Path | None) -> Iterator[pl.DataFrame]:
    if scratch is None:
        yield events.collect(engine=chosen())
        return
    count = min(MOST_PARTS, -(-rows // PART_ROWS))
    with parts_on_disk(events, rows, pl.col(USER).hash() % count, scratch) as parts:
        for part in parts:
            of_part = part.select(pl.len()).collect(engine=chosen()).item()
            pieces = max(1, -(-of_part // (2 * PART_ROWS)))  # smaller ones cost more than they save
            for piece in range(pieces):  # to read a part again for each of them takes less memory than to hold it
                wanted = pl.lit(value=True) if pieces == 1 else pl.col(USER).hash() // count % pieces == piece
                yield part.filter(wanted).collect(engine=chosen())


def filled(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with missing ends filled; all rows of a user must be there. Rows that had an end come first.

    A user and a start make one whole number a row, and only these numbers are sorted, which is several times faster
    than sorting rows: the first one from that of a missing end on tells where its end stands.
    """
    is_open = pl.col(END).is_null()
    open_ = rows.filter(is_open)
    if open_.is_empty():
        return rows
    closed = rows.filter(~is_open)
    known, asked, span = _keys(closed, open_)
    in_order = known.drop_nulls().sort()
    keys = asked.unique().sort()
    next_ = in_order.gather(in_order.search_sorted(keys), null_on_oob=True)
    found = pl.DataFrame({_KEY: keys, _NEXT: next_}).filter(pl.col(_KEY) // span == pl.col(_NEXT) // span)
    ends = (
        closed.select(END, known.alias(_NEXT))
        .join(found.select(_NEXT).unique(), on=_NEXT)
        .group_by(_NEXT)
        .agg(pl.col(END).min())
    )
    answers = found.join(ends, on=_NEXT).select(_KEY, END)
    answered = open_.drop(END).with_columns(asked.alias(_KEY)).join(answers, on=_KEY, how="left")
    return pl.concat([closed, answered.select(closed.columns)])


def _keys(closed: pl.DataFrame, open_: pl.DataFrame) -> tuple[pl.Series, pl.Series, int]:
    """For each row the user's number times ``span`` plus the start's, so that numbers of one user stand together.

    A row without an end of a user who misses none has null.
    """
    begun = pl.concat([closed[START], open_[START]]).to_physical()
    first, last = _bounds(begun)
    span = last - first + 1
    users = pl.concat([closed[USER], open_[USER]])
    if users.dtype == pl.Int64 and (_bounds(users)[1] - _bounds(users)[0] + 1) * span <= INT64_MAX:
        numbers = users - users.min()
    else:  # only the users who miss an end are numbered
        of_users = open_.select(USER).unique().with_row_index("number").with_columns(pl.col("number").cast(pl.Int64))
        numbers = users.to_frame(USER).join(of_users, on=USER, how="left", maintain_order="left")["number"]
        if of_users.height * span > INT64_MAX:  # not one day's times
            begun, first, span = begun.rank("dense").cast(pl.Int64), 0, closed.height + open_.height + 1
    both = numbers * span + (begun - first)
    return both[: closed.height], both[closed.height :], span


def _bounds(numbers: pl.Series) -> tuple[int, int]:
    low, high = numbers.min(), numbers.max()
    if not (isinstance(low, int) and isinstance(high, int)):
        raise TypeError(numbers.dtype)
    return low, high
