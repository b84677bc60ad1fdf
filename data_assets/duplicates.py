"""Which rows of a day are duplicates, and of which row.

Here: telling kept rows from duplicates, streaming. Not here: which columns make rows the same or what is counted by
file (``staging.py``), nor the table's columns (``contracts.py``). No Dagster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from data_assets.quantities import MOST_PARTS, parts_on_disk

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HASHED_ROWS = 500_000  # so many hashes are compared at a time, 16 bytes each
BUCKET_ROWS = 2_000_000  # how many rows are compared by all of their key at a time: bounds memory
PLACE = ("source_file", "source_line")


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
    numbered = rows.with_row_index("row")
    repeats = _repeats(numbered, key, folder)
    kept, duplicates = rows, folder / "duplicates.parquet"
    if repeats.height:
        numbered.join(repeats.lazy(), on="row", how="anti", maintain_order="left").drop("row").sink_parquet(
            folder / "kept.parquet", compression="zstd", compression_level=1
        )
        kept = pl.scan_parquet(folder / "kept.parquet", glob=False, hive_partitioning=False)
    places = numbered.select("row", *PLACE)
    firsts = places.join(repeats.lazy().select(row="first").unique(), on="row", how="semi").select(
        first="row", duplicate_of_file="source_file", duplicate_of_line="source_line"
    )
    places.join(repeats.lazy(), on="row", maintain_order="left").join(firsts, on="first", maintain_order="left").select(
        *PLACE, "duplicate_of_file", "duplicate_of_line"
    ).sink_parquet(duplicates)
    return kept, pl.scan_parquet(duplicates, glob=False, hive_partitioning=False)


def _repeats(numbered: pl.LazyFrame, key: Sequence[str], folder: Path) -> pl.DataFrame:
    """``row`` and ``first``, the number of the first row with the same key, of every row that is not the first.

    Rows with the same key have the same hash, so only rows that share theirs are compared by the key itself. Which rows
    are equal never rests on the hash: a stranger could write rows that collide.
    """
    alike = _alike(numbered.select("row", hash=_hash(key)), folder)
    buckets = -(-alike.height // BUCKET_ROWS)
    found = [pl.DataFrame(schema={"row": pl.get_index_type(), "first": pl.get_index_type()})]
    for bucket in range(buckets):
        some = alike.lazy().filter(pl.col("hash") % buckets == bucket).select("row")
        found.append(
            numbered.join(some, on="row", how="semi")
            .select("row", first=pl.col("row").min().over(key))
            .filter(pl.col("row") != pl.col("first"))
            .collect(engine="streaming")
        )
    return pl.concat(found).sort("row")


def _alike(hashed: pl.LazyFrame, folder: Path) -> pl.DataFrame:
    """``row`` and ``hash`` of the rows that share their hash, looked for some hashes at a time, parted on disk."""
    rows = int(hashed.select(pl.len()).collect(engine="streaming").item())
    is_shared = pl.col("hash").is_duplicated()
    if rows <= HASHED_ROWS:
        return hashed.collect(engine="streaming").filter(is_shared)
    count = min(MOST_PARTS, -(-rows // HASHED_ROWS))
    with parts_on_disk(hashed, rows, pl.col("hash") % count, folder) as parts:
        return pl.concat(part.collect(engine="streaming").filter(is_shared) for part in parts)


def _hash(key: Sequence[str]) -> pl.Expr:
    """Equal for rows with the same key: nulls, 0.0 and -0.0 included."""
    return pl.struct(key).hash()
