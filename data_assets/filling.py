"""How long each event lasted, where a missing end is filled from the same user's next one; some users at a time.

Here: parting a day by users, on disk, and filling within a part. Not here: what is made of the
durations (``metrics.py``). Whatever the day's length, the rows of one part are in memory at a time.

A missing end takes that of the same user's row with the smallest (start, end) among those whose end is known and whose
start is not before its own; where there is none it stays null. The order of rows plays no part.

A user and a start make one whole number, the key: the user's number times the span of starts plus the start's place in
it. Keys of one user stand together in order of their starts, and only keys are sorted, several times faster than rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import polars as pl

from data_assets.engine import chosen
from data_assets.quantities import INT64_MAX, MOST_PARTS, parts_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PART_ROWS = 196_608  # how many rows of a long day are worked on at a time; a user's rows stay together
USER, START, END, DURATION = "user_id", "session_start", "session_end", "duration_us"
_KEY, _NEXT, _PIECE = "__key", "__next", "__piece"


@dataclass(frozen=True)
class Keys:
    """How keys are made of all users and starts of a day, where 64 bits hold them: a row is a quarter shorter so.

    Attributes:
        user: the lowest one.
        start: the earliest one, in microseconds since 1970.
        span: of starts, in microseconds.
    """

    user: int
    start: int
    span: int

    @classmethod
    def of(cls, users: tuple[object, object], starts: tuple[object, object]) -> Keys | None:
        """Those of a day by the lowest and highest of both; None where they do not fit, or users are no numbers."""
        (low, high), (first, last) = users, starts
        if not (isinstance(low, int) and isinstance(high, int) and isinstance(first, int) and isinstance(last, int)):
            return None
        span = last - first + 1
        return cls(low, first, span) if (high - low + 1) * span <= INT64_MAX else None

    def put(self, events: pl.LazyFrame) -> pl.LazyFrame:
        """The key in place of user and start."""
        key = (pl.col(USER) - self.user) * self.span + (pl.col(START) - self.start)
        return events.with_columns(key.alias(_KEY)).drop(USER, START)

    @property
    def number(self) -> pl.Expr:
        """The user's, from 0."""
        return pl.col(_KEY) // self.span


def durations(
    events: pl.LazyFrame, rows: int, scratch: Path | None = None, keys: Keys | None = None
) -> Iterator[pl.DataFrame]:
    """How long each event lasted, missing ends filled, in parts that share no user; some may be empty.

    Args:
        events: a day, with ``user_id``, ``session_start``, ``session_end`` and any other columns. The span of its
            times fits into 64 bits of microseconds.
        rows: how many they are.
        scratch: where the parts are kept meanwhile; without it the day is one part.
        keys: those of the day; without them each part makes its own.

    Returns:
        Every row of ``events`` with its ``user_id`` and other columns but the two times, in no promised order, and
        ``duration_us`` (int64, microseconds, null where there is no end) in place of any source column of that name.
    """
    lasted = (pl.col(END) - pl.col(START)).dt.total_microseconds()
    timed = events.with_columns(pl.col(START).to_physical(), lasted.alias(DURATION)).drop(END)
    if keys is None:  # map holds no part while what was made of it is used
        return map(_by_own_keys, _parts(timed, pl.col(USER), rows, scratch))
    return map(partial(_by_keys, keys=keys), _parts(keys.put(timed), keys.number, rows, scratch))


def _parts(events: pl.LazyFrame, user: pl.Expr, rows: int, scratch: Path | None) -> Iterator[pl.DataFrame]:
    if scratch is None:
        yield events.collect(engine=chosen())
        return
    count = min(MOST_PARTS, -(-rows // PART_ROWS))
    with parts_on_disk(events, rows, user.hash() % count, scratch) as parts:
        for part in parts:
            yield from _pieces(part.collect(engine=chosen()), user.hash() // count)


def _pieces(part: pl.DataFrame, rest: pl.Expr) -> Iterator[pl.DataFrame]:
    """The rows of a part, some users at a time, by what is left of their hash."""
    pieces = -(-part.height // (2 * PART_ROWS))  # smaller ones cost more than they save
    if pieces == 1:
        yield part
        return
    part = part.with_columns((rest % pieces).cast(pl.UInt16).alias(_PIECE))
    for piece in range(pieces):
        yield part.filter(pl.col(_PIECE) == piece).drop(_PIECE)


def _by_keys(rows: pl.DataFrame, keys: Keys) -> pl.DataFrame:
    return _filled(rows, keys.span).with_columns((keys.number + keys.user).alias(USER)).drop(_KEY)


def _by_own_keys(rows: pl.DataFrame) -> pl.DataFrame:
    """The same with keys of the users who miss an end; other users' rows have null."""
    users = rows.filter(pl.col(DURATION).is_null()).select(USER).unique().with_row_index("number")
    if users.is_empty():
        return rows.drop(START)
    first, last = rows.select_seq(pl.col(START).min().alias("first"), pl.col(START).max().alias("last")).row(0)
    span = last - first + 1
    kind = pl.Int64 if users.height * span <= INT64_MAX else pl.Int128
    numbers = rows.select(USER).join(users, on=USER, how="left", maintain_order="left")["number"]
    start = pl.col(START).cast(kind) - pl.lit(first, kind)
    key = (pl.lit(numbers).cast(kind) * pl.lit(span, kind) + start).alias(_KEY)
    return _filled(rows.with_columns(key).drop(START), span).drop(_KEY)


def _filled(rows: pl.DataFrame, span: int) -> pl.DataFrame:
    """The rows with missing durations filled; all rows of a user must be there. Rows that had one come first.

    The first key of a row with an end, from that of a missing one on, tells where its end stands.
    """
    is_open = pl.col(DURATION).is_null()
    open_ = rows.filter(is_open)
    if open_.is_empty():
        return rows
    closed = rows.filter(~is_open)
    in_order = closed[_KEY].drop_nulls().sort(multithreaded=False)  # in several threads: the same time, twice the CPU
    asked = open_[_KEY].unique().sort(multithreaded=False)
    next_ = in_order.gather(in_order.search_sorted(asked), null_on_oob=True)
    of_users = pl.lit(span, asked.dtype)
    found = pl.DataFrame({_KEY: asked, _NEXT: next_}).filter(pl.col(_KEY) // of_users == pl.col(_NEXT) // of_users)
    lasted = (
        closed.select(_KEY, DURATION)
        .join(found.select(pl.col(_NEXT).alias(_KEY)).unique(), on=_KEY)
        .group_by(_KEY)
        .agg(pl.col(DURATION).min())
    )
    until = (pl.col(_NEXT) - pl.col(_KEY) + pl.col(DURATION)).cast(pl.Int64)
    answers = found.join(lasted, left_on=_NEXT, right_on=_KEY).select(_KEY, until.alias(DURATION))
    answered = open_.drop(DURATION).join(answers, on=_KEY, how="left")
    return pl.concat([closed, answered.select(closed.columns)])
