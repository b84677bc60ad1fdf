"""How long each event lasted, where a missing end is filled from the same user's next one; some users at a time.

Here: parting a day by users, on disk, and filling within a part. Not here: what is made of the
durations (``metrics.py``). Whatever the day's length, the rows of one part are in memory at a time; a user with more
rows than that (who stands for all that are not known, or is no person) is parted by time.

A missing end takes that of the same user's row with the smallest (start, end) among those whose end is known and whose
start is not before its own; where there is none it stays null. The order of rows plays no part.

A user and a start make one whole number, the key: the user's number times the span of starts plus the start's place in
it. Keys of one user stand together in order of their starts, and only keys are sorted, several times faster than rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from data_assets.engine import chosen
from data_assets.quantities import INT64_MAX, MOST_PARTS, parts_on_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PART_ROWS = 196_608  # how many rows of a long day are worked on at a time; smaller pieces cost more than they save
HELD_ROWS = 2_097_152  # and of a day that is held, so that what is made of them is little beside it
USER, START, END, DURATION = "user_id", "session_start", "session_end", "duration_us"
_KEY, _NEXT = "__key", "__next"
_SAMPLED = 1_000  # so many rows of each piece show where pieces end
_CROWDED = 2  # a part of so many times the rows of others is looked at for users who have too many


class Part(NamedTuple):
    """Some events, held, how long each lasted, and whether all events of their users are among them."""

    rows: pl.LazyFrame
    is_whole: bool = True


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


def durations(events: pl.LazyFrame, rows: int, scratch: Path | None = None, keys: Keys | None = None) -> Iterator[Part]:
    """How long each event lasted, missing ends filled, in parts that share no user but those not whole; some are empty.

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
    if keys is None:
        ways = _Ways(pl.col(USER), pl.col(START), _by_own_keys, (pl.col(USER).hash() // 4).cast(pl.Int64))
    else:
        fill = partial(_by_keys, keys=keys)
        ways = _Ways(keys.number, pl.col(_KEY) % keys.span, fill, pl.col(_KEY), keys.span, keys.user)
        timed = keys.put(timed)
    if scratch is None:
        return map(ways.filled, _pieces(timed.collect(engine=chosen()), ways, HELD_ROWS))
    return _in_parts(timed, rows, scratch, ways)


class _Ways(NamedTuple):
    """How the events of a part are told apart, and filled.

    Attributes:
        user: what tells users apart; ``lowest`` is to be added where that is a number, counted from 0.
        start: in microseconds.
        fill: fills the events of some users, all of theirs.
        place: whole numbers, those of a user between two multiples of ``span``.
    """

    user: pl.Expr
    start: pl.Expr
    fill: Callable[[pl.DataFrame], pl.LazyFrame]
    place: pl.Expr
    span: int = 1
    lowest: int | None = None

    def filled(self, rows: pl.DataFrame) -> Part:
        return Part(self.fill(rows))


def _in_parts(events: pl.LazyFrame, rows: int, scratch: Path, ways: _Ways) -> Iterator[Part]:
    count = min(MOST_PARTS, -(-rows // PART_ROWS))
    with parts_on_disk(events, rows, ways.user.hash() % count, scratch) as parts:
        for part in parts:
            some, height = part, int(part.select(pl.len()).collect(engine=chosen()).item())
            if height > _CROWDED * max(PART_ROWS, rows // count):
                sizes = part.group_by(ways.user.alias(USER)).agg(pl.len()).collect(engine=chosen())
                large = sizes.filter(pl.col("len") > _CROWDED * PART_ROWS)
                for user, size in large.iter_rows():
                    named = pl.lit(user if ways.lowest is None else user + ways.lowest, large[USER].dtype).alias(USER)
                    yield from _of_one(part.filter(ways.user == user), named, size, scratch, ways.start)
                some = part.filter(~ways.user.is_in(large[USER].to_list()))
            pieces = _pieces(some.collect(engine=chosen()), ways, 2 * PART_ROWS)
            yield from map(ways.filled, pieces)  # which holds no piece while what was made of it is used


def _of_one(events: pl.LazyFrame, user: pl.Expr, rows: int, scratch: Path, start: pl.Expr) -> Iterator[Part]:
    """The events of one user parted by time, the latest first: each part leaves its first end to those before it."""
    bounds = events.select(start.min().alias("first"), start.max().alias("last"))
    first, last = bounds.collect(engine=chosen()).row(0)
    count, span = min(MOST_PARTS, -(-rows // PART_ROWS)), last - first + 1
    place = start - first
    from_last = 2 * MOST_PARTS - 1 - place // -(-span // count)  # of three digits each: parts come by their names
    later = None
    with parts_on_disk(events, rows, from_last, scratch) as parts:
        for part in parts:
            some = part.with_columns(place.alias(_KEY)).drop(START, strict=False).collect(engine=chosen())
            yield Part(_filled(some, span, later).drop(_KEY).lazy().with_columns(user), is_whole=False)
            ended = some.filter(pl.col(DURATION).is_not_null())
            if not ended.is_empty():
                earliest = ended.filter(pl.col(_KEY) == pl.col(_KEY).min())
                later = earliest.select(_KEY, pl.col(DURATION).min()).head(1)


def _pieces(rows: pl.DataFrame, ways: _Ways, most: int) -> Iterator[pl.DataFrame]:
    """The rows, some users at a time, all of theirs: about ``most`` rows, where no user has more."""
    pieces = -(-rows.height // most)
    if pieces <= 1:
        yield rows
        return
    place = rows.select(ways.place).to_series()
    some = place.gather_every(max(1, rows.height // (pieces * _SAMPLED))).sort()
    cuts = {cut - cut % ways.span for cut in some.gather_every(-(-some.len() // pieces)).slice(1)}
    for low, high in pairwise([0, *sorted(cuts - {0}), None]):
        yield rows.filter(place >= low if high is None else place.is_between(low, high, closed="left"))


def _by_keys(rows: pl.DataFrame, keys: Keys) -> pl.LazyFrame:
    return _filled(rows, keys.span).lazy().with_columns((keys.number + keys.user).alias(USER)).drop(_KEY)


def _by_own_keys(rows: pl.DataFrame) -> pl.LazyFrame:
    """The same with keys of the users who miss an end; other users' rows have null."""
    users = rows.filter(pl.col(DURATION).is_null()).select(USER).unique().with_row_index("number")
    if users.is_empty():
        return rows.drop(START).lazy()
    first, last = rows.select_seq(pl.col(START).min().alias("first"), pl.col(START).max().alias("last")).row(0)
    span = last - first + 1
    kind = pl.Int64 if users.height * span <= INT64_MAX else pl.Int128
    numbers = rows.select(USER).join(users, on=USER, how="left", maintain_order="left")["number"]
    start = pl.col(START).cast(kind) - pl.lit(first, kind)
    key = (pl.lit(numbers).cast(kind) * pl.lit(span, kind) + start).alias(_KEY)
    return _filled(rows.with_columns(key).drop(START), span).drop(_KEY).lazy()


def _filled(rows: pl.DataFrame, span: int, later: pl.DataFrame | None = None) -> pl.DataFrame:
    """The rows with missing durations filled; all rows of a user must be there.

    The first key of a row with an end, from that of a missing one on, tells where its end stands. ``later``: the first
    key and duration with an end among rows of the same user that are not here.
    """
    is_open, keys = rows[DURATION].is_null(), rows[_KEY]
    places = is_open.arg_true()
    if places.is_empty():
        return rows
    ended = keys.filter(~is_open) if later is None else pl.concat([keys.filter(~is_open), later[_KEY]])
    ended = ended.drop_nulls().sort(multithreaded=False)  # in several threads: the same time, twice the CPU
    open_ = keys.gather(places)
    asked = open_.unique().sort(multithreaded=False)
    next_ = ended.gather(ended.search_sorted(asked), null_on_oob=True)
    del ended  # what is freed here is what is needed below
    of_users = pl.lit(span, asked.dtype)
    found = pl.DataFrame({_KEY: asked, _NEXT: next_}).filter(pl.col(_KEY) // of_users == pl.col(_NEXT) // of_users)
    timed = rows.select(_KEY, DURATION) if later is None else pl.concat([rows.select(_KEY, DURATION), later])
    lasted = (
        timed.lazy()
        .join(found.lazy().select(pl.col(_NEXT).alias(_KEY)), on=_KEY, how="semi")
        .group_by(_KEY)
        .agg(pl.col(DURATION).min())
        .collect(engine=chosen())
    )
    until = (pl.col(_NEXT) - pl.col(_KEY) + pl.col(DURATION)).cast(pl.Int64)
    answers = found.join(lasted, left_on=_NEXT, right_on=_KEY).select(_KEY, until.alias(DURATION))
    filled = open_.to_frame().join(answers, on=_KEY, how="left", maintain_order="left")[DURATION]
    return rows.with_columns(rows[DURATION].scatter(places, filled))
