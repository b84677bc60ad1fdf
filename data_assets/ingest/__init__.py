"""One file in; its valid and its refused records out, every physical record accounted for.

Here: the room's front door, nothing else. Behind it, one module each: ``opening`` (which format, decompression),
``delimited`` and ``exact`` (CSV, fast and careful), ``jsontext``, ``columnar`` (Parquet), ``mapping`` (ours to theirs),
``values`` (text to types), ``classify`` (what is valid, what is refused and why). Not here: which files there are
(``landing.py``), duplicates across files and the tables themselves (``assets.py``), where they lie (``storage.py``).
"""

from data_assets.ingest.classify import (
    DAY,
    KINDS,
    WHOLE_DAY,
    all_at_sight,
    classify,
    count_days,
    finish_split,
    split_file,
    split_unseen,
)
from data_assets.ingest.mapping import check_required
from data_assets.ingest.opening import detect_format, open_records
from data_assets.ingest.records import Records

__all__ = [
    "DAY",
    "KINDS",
    "WHOLE_DAY",
    "Records",
    "all_at_sight",
    "check_required",
    "classify",
    "count_days",
    "detect_format",
    "finish_split",
    "open_records",
    "split_file",
    "split_unseen",
]
