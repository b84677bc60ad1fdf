"""How the engine is set before it reads a file.

Here: Polars' switches that bound its memory; none of them is documented, so each was measured on the pinned version
(docs/figures.md) and an operator's own setting wins. Not here: what is read (``ingest/``).
"""

from __future__ import annotations

import os

SWITCHES = {
    "POLARS_CSV_CHUNK_SIZE": "1048576",  # bytes parsed at a time: half the memory, at the same speed
    # Parquet: how much is read ahead, and how much of it is worked on at a time; together half the memory of a rewrite.
    "POLARS_ROW_GROUP_PREFETCH_SIZE": "1",
    "POLARS_IDEAL_MORSEL_SIZE": "16384",
    "POLARS_PARQUET_DECODE_TARGET_VALUES_PER_THREAD": "50000",
}


def bound_memory() -> None:
    """Set the switches that are not set; they are looked at when a file is opened, so this comes before it."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
