"""How the engine is set before it reads a file, and which of its two ways of working is asked for.

Here: Polars' switches, which bound its memory, but for the last; none of them is documented, so each was measured on
the pinned version (docs/decisions/0008) and an operator's own setting wins. How files are scanned, and how a long scan
is bounded. And whether queries stream, which they do unless the day at hand has few rows. Not here: what is read
(``ingest/``), how a long day is worked on (``memory.py``).
"""

from __future__ import annotations

import contextlib
import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import polars as pl

FEW_ROWS = 10_000  # held as they are: a query over them takes 0.1 ms, while only to begin to stream takes 0.8
_CHOSEN: ContextVar[Literal["streaming", "in-memory"]] = ContextVar("engine", default="streaming")

SWITCHES = {
    "POLARS_CSV_CHUNK_SIZE": "1048576",  # bytes parsed at a time: half the memory, at the same speed
    # Parquet: how much is read ahead, and how much of it is worked on at a time; together half the memory of a rewrite.
    "POLARS_ROW_GROUP_PREFETCH_SIZE": "1",
    "POLARS_PARQUET_DECODE_TARGET_VALUES_PER_THREAD": "50000",
    # Where a disk is slow: how much waits between the engine's steps, and how many batches may wait to be written.
    "POLARS_DEFAULT_DISTRIBUTOR_BUFFER_SIZE": "1",
    "POLARS_DEFAULT_LINEARIZER_BUFFER_SIZE": "1",
    "POLARS_INFLIGHT_SINK_MORSEL_LIMIT": "16",
    # Parquet's times of a zone like +05:30, which else stop the process' thread; columnar.py has them in UTC.
    "POLARS_IGNORE_TIMEZONE_PARSE_ERROR": "1",
}


def set_switches() -> None:
    """Set those that are not set; they are looked at when a file is opened, so this comes before it."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)


def scan_named(paths: Path | list[Path]) -> pl.LazyFrame:
    """Parquet files by their names as they are: no character of a name is a pattern, no folder a column."""
    import polars as pl

    set_switches()
    return pl.scan_parquet(paths, glob=False, hive_partitioning=False)


def in_pieces(scan: pl.LazyFrame, sizes: Iterable[int]) -> pl.LazyFrame:
    """All rows of a Parquet scan, so many at a time: of one scan the engine takes up several row groups at once.

    Only for what keeps the order of the rows. To sort or to group them the engine reads all pieces at once: over 60
    million rows that held 416 MB where the scan itself held 55, over 244 million 1,839.

    Args:
        scan: at least one row.
        sizes: the rows of each piece, best some to a row group; a thousand pieces take the engine 0.2 s to plan.
    """
    import polars as pl

    slices, first = [], 0
    for size in sizes:
        slices.append(scan.slice(first, size))
        first += size
    return pl.concat(slices)


def chosen() -> Literal["streaming", "in-memory"]:
    """The engine to collect with; both give the same rows.

    Every query names one (a test holds it): where none is named Polars streams, which takes 0.8 ms to begin. In memory
    much of a small query is to hand its expressions over to the engine's threads, 0.1 ms; ``select_seq`` and
    ``with_columns_seq`` do without, and to one that streams they are the same as ``select`` and ``with_columns``.
    """
    return _CHOSEN.get()


@contextlib.contextmanager
def for_rows(rows: int) -> Iterator[None]:
    """Within the block, queries are over so many rows."""
    token = _CHOSEN.set("in-memory" if rows <= FEW_ROWS else "streaming")
    try:
        yield
    finally:
        _CHOSEN.reset(token)
