"""The quarantine as a product: which records were refused and why, and which days a replay of them has to make.

Here: questions to the lake's ``quarantined_events``, its export for people, and what a replay moves. Not here: why a
record is refused (``ingest/classify.py``), words and tables on a terminal (``commands.py``), or the run (``cli.py``).
"""

from __future__ import annotations

import datetime as dt
import fnmatch
import uuid
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import polars as pl

from data_assets import ingest, staging
from data_assets.contracts import QUARANTINED_EVENTS, tables
from data_assets.errors import UsageError, visible
from data_assets.landing import files_of
from data_assets.reasons import REASONS
from data_assets.report.files import harmless
from data_assets.storage import fsync_path, scratch_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from data_assets.config import PipelineConfig
    from data_assets.storage import Lake

_TABLE = QUARANTINED_EVENTS.name
_DAY_IN_PATH = r"date=([0-9]{4}-[0-9]{2}-[0-9]{2})[/\\]\.versions"
Pairs = set[tuple[str, str]]


@dataclass(frozen=True)
class Filters:
    """Which records are meant; what is empty or ``None`` does not narrow.

    Attributes:
        reasons: codes of which at least one holds.
        files: paths below the raw directory, with ``*`` and ``?``.
        first, last: days, both included.
    """

    reasons: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    first: dt.date | None = None
    last: dt.date | None = None


def find(lake: Lake, filters: Filters) -> pl.LazyFrame:
    """The records that the filters mean, in the order of day, file and line: ``day`` and the table's columns.

    The versions are resolved now: what a run writes later is not seen by the frame.
    """
    first, last = filters.first or dt.date.min, filters.last or dt.date.max
    days = [d for d in lake.days(_TABLE) if first.isoformat() <= d <= last.isoformat()]
    versions = [v.path for v in (lake.current(_TABLE, d) for d in days) if v is not None and v.rows]
    if not versions:
        return QUARANTINED_EVENTS.empty().lazy().select(pl.lit(None, pl.Date).alias("day"), "*")
    found = pl.scan_parquet(versions, glob=False, hive_partitioning=False, include_file_paths="__path").select(
        pl.col("__path").str.extract(_DAY_IN_PATH).str.to_date("%Y-%m-%d").alias("day"), *QUARANTINED_EVENTS.names
    )
    if filters.files:
        names = found.select(pl.col("source_file").unique()).collect(engine="streaming")["source_file"]
        meant = [n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in filters.files)]
        found = found.filter(pl.col("source_file").is_in(meant))
    if filters.reasons:
        wanted = pl.lit(list(filters.reasons), pl.List(pl.String))
        found = found.filter(pl.col("reasons").list.set_intersection(wanted).list.len() > 0)
    return found


def count(records: pl.LazyFrame) -> int:
    """How many records."""
    return int(records.select(pl.len()).collect(engine="streaming").item())


def by_reason_file_day(records: pl.LazyFrame, *, only: Collection[str] = ()) -> pl.DataFrame:
    """``reason``, ``source_file``, ``day``, ``records``, most first; a record counts for each of its reasons.

    ``only``: reasons that were asked for; others that hold for the same records are left out.
    """
    exploded = records.select("reasons", "source_file", "day").explode("reasons").rename({"reasons": "reason"})
    if only:
        exploded = exploded.filter(pl.col("reason").is_in(list(only)))
    return (
        exploded.group_by("reason", "source_file", "day")
        .agg(pl.len().cast(pl.Int64).alias("records"))
        .sort("records", "reason", "source_file", "day", descending=[True, False, False, False])
        .collect(engine="streaming")
    )


def in_words(reasons: Iterable[str]) -> str:
    """What the codes mean.

    >>> in_words(["missing_user_id"])
    'no user id'
    """
    return "; ".join(REASONS.get(code, code) for code in reasons)


def export(records: pl.LazyFrame, target: Path) -> int:
    """Write the records as CSV, streamed; a reader finds the old file or the whole new one. Returns how many.

    Text that a spreadsheet would run as a formula gets a leading apostrophe, as in the report's files.

    Raises:
        UsageError: the place cannot be written.
    """
    words = pl.col("reasons").list.eval(pl.element().replace(REASONS)).list.join("; ")
    rows = records.select(
        "day", "source_file", "source_line", pl.col("reasons").list.join("; "), words.alias("in_words"), "record",
        "home_day",
    )  # fmt: skip
    total = count(records)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        harmless(rows).sink_csv(temporary, engine="streaming")
        fsync_path(temporary)
        temporary.replace(target)
        fsync_path(target.absolute().parent)
    except OSError as problem:
        raise UsageError(
            f"{visible(str(target))} cannot be written: {visible(problem.strerror or str(problem))}.",
            "Name a file in a folder that exists and may be written.",
        ) from problem
    finally:
        temporary.unlink(missing_ok=True)
    return total


# --- replay --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replay:
    """Which days a replay makes.

    Attributes:
        days: the days (ISO) to make: those that hold the records and whose files or mapping changed since, and those
            that exchange records with them.
        unchanged: days that hold such records, but whose files and mapping are as they were: they would come out the
            same.
        records: how many records the filters mean.
    """

    days: tuple[str, ...]
    unchanged: tuple[str, ...]
    records: int


@dataclass(frozen=True)
class Outcome:
    """What a replay did to the records that it was for, and to its days.

    Attributes:
        before: records that the filters meant.
        came_through: those that are refused no more: they are valid now, or duplicates.
        still_refused: those that are still in the quarantine.
        gone: those whose file was changed or removed, and that do not stand there as they did.
        reasons_before, reasons_now: records of the replayed days by reason.
        sums_before, sums_now: ``staging.sums`` of the replayed days.
    """

    before: int
    came_through: int
    still_refused: int
    gone: int
    reasons_before: Mapping[str, int] = field(default_factory=dict)
    reasons_now: Mapping[str, int] = field(default_factory=dict)
    sums_before: Mapping[str, int] = field(default_factory=dict)
    sums_now: Mapping[str, int] = field(default_factory=dict)


def days_to_replay(
    config: PipelineConfig, lake: Lake, ledger: pl.DataFrame, stale: Collection[str], filters: Filters, *, last: dt.date
) -> Replay:
    """The smallest set of days whose new tables lose and double no row.

    A record that is read in another way may belong to another day. So the days that records leave or reach are made
    with the days that were asked for, and so on until nothing crosses the border. Costs one pass over the start times
    of each file that touches these days and was read with another mapping.

    Args:
        config: as it is now.
        lake: what was made before.
        ledger: as of now.
        stale: days whose tables were not made from what lies there now.
        filters: the records that are meant.
        last: days after this one (today) wait until they come.
    """
    records = find(lake, filters)
    holding = records.group_by("day").agg(pl.len()).collect(engine="streaming").sort("day")
    held = [day.isoformat() for day in holding["day"]]
    made = _made(lake)
    files_by_day: dict[str, set[str]] = {}
    for path, found in made.items():
        for day in found:
            files_by_day.setdefault(day, set()).add(path)
    for path, day in ledger.select("path", "day").iter_rows():
        files_by_day.setdefault(day.isoformat(), set()).add(path)
    days = {d for d in held if d in stale}
    todo, seen, pairs = set(days), set[str](), Pairs()
    while todo:
        for path in sorted({p for d in todo for p in files_by_day.get(d, ())} - seen):
            seen.add(path)
            pairs |= _moves(config, lake, ledger.filter(pl.col("path") == path), path, made.get(path, {}), stale)
        todo = {d for pair in pairs if days & set(pair) for d in pair} - days
        days |= todo
    within = sorted(d for d in days if config.start_date.isoformat() <= d <= last.isoformat())
    unchanged = [d for d in held if d not in days]
    return Replay(tuple(within), tuple(unchanged), int(holding["len"].sum()))


def _made(lake: Lake) -> dict[str, dict[str, dict[str, Any]]]:
    """What became of the rows of each file, by its path and the days that were made of it."""
    made: dict[str, dict[str, dict[str, Any]]] = {}
    for day in lake.days("raw_events"):
        for row in staging.noted_files(lake.notes("raw_events", day)).to_dicts():
            made.setdefault(row["path"], {})[day] = row
    return made


def _moves(
    config: PipelineConfig,
    lake: Lake,
    now: pl.DataFrame,
    path: str,
    before: Mapping[str, Mapping[str, Any]],
    stale: Collection[str],
) -> Pairs:
    """Pairs of days between which records of one file move.

    ``now`` are its rows of the ledger, ``before`` what became of its rows on the days that were made of it.
    """
    after = [day.isoformat() for day in now["day"]]
    hashes = {row["content_hash"] for row in before.values()} | set(now["content_hash"])
    everything = set(product({*before, *after}, repeat=2))
    if now.is_empty() or len(hashes) > 1:  # lines of another content cannot be compared
        return everything
    if any(day not in stale for day in before):  # so the file was read with the mapping of now
        return set()
    if now["error"].is_not_null().any():  # its days will be refused and keep what they have
        return set()
    if str(now["format"][0]).split(".")[0] == "json":  # many records may begin on one line
        return everything
    contracts = tables(config.source.types.user_id)
    places = [
        lake.scan(contracts[table], [day])
        .filter(pl.col("source_file") == path)
        .select("source_line", pl.lit(day).str.to_date("%Y-%m-%d").alias("before"))
        for table in ("raw_events", _TABLE)
        for day in before
    ]
    if not places:
        return set()
    with scratch_folder(config.scratch_dir) as scratch:
        records = ingest.open_records(config.raw_dir / path, path, config, scratch, require_columns=False)
        moved = (
            ingest.classify(records, path, now["home_day"][0], config)
            .select("source_line", "day")
            .join(pl.concat(places), on="source_line", how="left")
            .filter(pl.col("day").ne_missing(pl.col("before")))
            .select("before", "day")
            .unique()
            .collect(engine="streaming")
        )
    dropped = [day for day, row in before.items() if row["duplicate"]]
    pairs = Pairs()
    for old, new in moved.iter_rows():
        # A record that stands nowhere was dropped as a duplicate, on one of the days that had some.
        pairs |= {(day, new.isoformat()) for day in ([old.isoformat()] if old else dropped)}
    return pairs


@dataclass(frozen=True)
class Before:
    """The replayed records and days as they stood before the run, to be compared with what came of it."""

    records: pl.LazyFrame
    hashes: Mapping[str, str]
    reasons: Mapping[str, int]
    sums: Mapping[str, int]
    days: tuple[str, ...]


def look(lake: Lake, days: Iterable[str], filters: Filters) -> Before:
    """What the days of a replay hold before it; cheap, because the lake keeps versions."""
    chosen = tuple(days)
    found = [staging.noted_files(lake.notes("raw_events", d)) for d in chosen if lake.notes("raw_events", d)]
    files = pl.concat([staging.BY_FILE.to_frame(), *found])
    records = find(lake, filters).filter(_on(chosen))
    hashes = dict(files.select("path", "content_hash").iter_rows())
    return Before(records, hashes, _reasons(lake, chosen), staging.sums(files), chosen)


def _on(days: Iterable[str]) -> pl.Expr:
    return pl.col("day").is_in([dt.date.fromisoformat(d) for d in days])


def _reasons(lake: Lake, days: Collection[str]) -> dict[str, int]:
    found = by_reason_file_day(find(lake, Filters()).filter(_on(days)))
    counted = found.group_by("reason").agg(pl.sum("records")).sort(["records", "reason"], descending=[True, False])
    return dict(counted.iter_rows())


def compare(lake: Lake, ledger: pl.DataFrame, before: Before) -> Outcome:
    """What became of the records of a replay, and of its days.

    A record is known again by file and line, in JSON files (where many may begin on one line) also by its text.
    """
    forms = dict(files_of(ledger, list(before.days)).select("path", "format").unique().iter_rows())
    hashes = dict(ledger.select("path", "content_hash").unique().iter_rows())
    by_text = [path for path, form in forms.items() if form.split(".")[0] == "json"]
    same = [path for path, digest in before.hashes.items() if hashes.get(path) == digest]
    key = pl.when(pl.col("source_file").is_in(by_text) | ~pl.col("source_file").is_in(same)).then("record")

    def counted(records: pl.LazyFrame) -> pl.LazyFrame:
        return records.group_by("source_file", "source_line", key.alias("key")).agg(pl.len().cast(pl.Int64).alias("n"))

    fates = (
        counted(before.records)
        .join(
            counted(find(lake, Filters())),
            on=["source_file", "source_line", "key"],
            how="left",
            nulls_equal=True,
            suffix="_now",
        )
        .select(
            pl.col("source_file").is_in(same).alias("same"),
            "n",
            still=pl.min_horizontal("n", pl.col("n_now").fill_null(0)),
        )
        .group_by("same")
        .agg(pl.sum("n", "still"))
        .collect(engine="streaming")
    )
    total = int(fates["n"].sum())
    still = int(fates["still"].sum())
    left = {bool(row["same"]): int(row["n"] - row["still"]) for row in fates.to_dicts()}
    after = look(lake, before.days, Filters())
    return Outcome(
        before=total,
        came_through=left.get(True, 0),
        still_refused=still,
        gone=left.get(False, 0),
        reasons_before=before.reasons,
        reasons_now=after.reasons,
        sums_before=before.sums,
        sums_now=after.sums,
    )
