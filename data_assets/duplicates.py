"""Which rows of a day are duplicates, and of which row.

Here: telling kept rows from duplicates, streaming. Not here: which columns make rows the same or what is counted by
file (``staging.py``), nor the table's columns (``contracts.py``). No Dagster.

Rows with the same key have the same hash, so only rows that share theirs are compared by the key itself. Which rows are
equal never rests on the hash: a stranger could write rows that collide. However many repeat, some are in memory at a
time: they are parted by their hash to be compared, and what each repeats waits on disk by where it stands in the day.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from data_assets.engine import scan_named
from data_assets.quantities import MOST_PARTS, parts_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

HASHED_ROWS = 500_000  # so many hashes are compared at a time, 12 bytes each
COMPARED_ROWS = 131_072  # so many rows are compared by all of their key at a time
SPAN_ROWS = 1_048_576  # of so many rows what they repeat is put into their order at a time
PLACE = ("source_file", "source_line")
OF_PLACE = ("duplicate_of_file", "duplicate_of_line")
_ROW, _HASH, _SPAN, _IS_REPEAT = "__row", "__hash", "__span", "__is_repeat"  # files have columns called "row"
_FIRSTS = {"__first_file": pl.String(), "__first_line": pl.Int64()}


def split(rows: pl.LazyFrame, key: Sequence[str], folder: Path) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """The rows without their duplicates, and the duplicates with the place of their first row.

    Of rows with the same key the first stays. A null equals a null, and 0.0 equals -0.0.

    Args:
        rows: any columns, among them ``source_file`` and ``source_line``; read several times.
        key: the columns whose values make two rows the same.
        folder: an empty folder for the two results, which are lazy scans of files in it.

    Returns:
        The kept rows; and ``source_file``, ``source_line``, ``duplicate_of_file``, ``duplicate_of_line``. Both in the
        order of ``rows``.
    """
    places = rows.select(PLACE)
    firsts = _firsts(rows, key, folder)
    if firsts is None:
        of_places = (pl.col(name).alias(of) for name, of in zip(PLACE, OF_PLACE, strict=True))
        return rows, places.with_columns(of_places).clear()
    kept, duplicates = folder / "kept.parquet", folder / "duplicates.parquet"
    file, line = _FIRSTS
    pl.concat([rows, firsts], how="horizontal").filter(pl.col(line).is_null()).drop(_FIRSTS).sink_parquet(
        kept, compression="zstd", compression_level=1
    )
    repeats = pl.concat([places, firsts], how="horizontal").filter(pl.col(line).is_not_null())
    repeats.rename({file: OF_PLACE[0], line: OF_PLACE[1]}).sink_parquet(duplicates)
    return scan_named(kept), scan_named(duplicates)


def _firsts(rows: pl.LazyFrame, key: Sequence[str], folder: Path) -> pl.LazyFrame | None:
    """Of each row, in their order, file and line of the first one with the same key; nulls where it is that itself.

    ``None`` when no row repeats another.
    """
    count = int(rows.select(pl.len()).collect(engine="streaming").item())
    found: dict[int, list[Path]] = {}
    for number, some in enumerate(_compared(rows.with_row_index(_ROW), count, key, folder)):
        for (span,), part in _repeats(some, key).partition_by(_SPAN, as_dict=True, include_key=False).items():
            path = folder / f"found-{span:06d}-{number:06d}.ipc"
            part.write_ipc(path, compat_level=pl.CompatLevel.oldest())  # newer ones write the whole part's texts
            found.setdefault(span, []).append(path)
    if not found:
        return None
    paths, none = [], pl.DataFrame(schema={_ROW: pl.get_index_type(), **_FIRSTS})
    for span, first in enumerate(range(0, count, SPAN_ROWS)):
        every = pl.int_range(first, min(first + SPAN_ROWS, count), dtype=pl.get_index_type(), eager=True).alias(_ROW)
        parts = [pl.read_ipc(path) for path in found.get(span, [])]
        paths.append(folder / f"firsts-{span:06d}.parquet")
        told = every.to_frame().join(pl.concat([none, *parts]), on=_ROW, how="left", maintain_order="left")
        told.drop(_ROW).write_parquet(paths[-1], compression_level=1)
        for path in found.pop(span, []):
            path.unlink()
    return scan_named(paths)


def _repeats(some: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """The rows that are not the first with their key, by ``__row``, where that is found, and in which span they lie."""
    firsts = (pl.col(name).first().over(key).alias(of) for name, of in zip(PLACE, _FIRSTS, strict=True))
    is_repeat = (pl.col(_ROW) != pl.col(_ROW).first().over(key)).alias(_IS_REPEAT)
    span = (pl.col(_ROW) // SPAN_ROWS).alias(_SPAN)
    return some.sort(_ROW).select(_ROW, *firsts, span, is_repeat).filter(_IS_REPEAT).drop(_IS_REPEAT)


def _compared(numbered: pl.LazyFrame, count: int, key: Sequence[str], folder: Path) -> Iterator[pl.DataFrame]:
    """Place and key of all rows that may repeat another or be repeated, some of them at a time, with all like them."""
    wanted = numbered.select(list(dict.fromkeys((_ROW, *PLACE, *key))))
    alike = _alike(numbered.select(_ROW, _hash(key).alias(_HASH)), count, folder)
    if alike is None:
        parts = min(MOST_PARTS, -(-count // COMPARED_ROWS))
        with parts_on_disk(wanted, count, _hash(key) % parts, folder) as found:
            for part in found:
                yield part.collect(engine="streaming")
    elif not alike.is_empty():
        yield wanted.join(alike.lazy(), on=_ROW, how="semi").collect(engine="streaming")


def _alike(hashed: pl.LazyFrame, count: int, folder: Path) -> pl.DataFrame | None:
    """``__row`` of the rows that share their hash, looked for some hashes at a time; ``None``: they are too many."""
    is_shared = pl.col(_HASH).is_duplicated()
    if count <= COMPARED_ROWS:
        return hashed.collect(engine="streaming").filter(is_shared).select(_ROW)
    found = [pl.DataFrame(schema={_ROW: pl.get_index_type()})]
    with parts_on_disk(hashed, count, pl.col(_HASH) % min(MOST_PARTS, -(-count // HASHED_ROWS)), folder) as parts:
        for part in parts:
            found.append(part.collect(engine="streaming").filter(is_shared).select(_ROW))
            if sum(some.height for some in found) > COMPARED_ROWS:
                return None
    return pl.concat(found)


def _hash(key: Sequence[str]) -> pl.Expr:
    """Equal for rows with the same key: nulls, 0.0 and -0.0 included."""
    return pl.struct(key).hash()
