"""From the files that hold some days to those days: every file split once, rows counted by file, duplicates dropped.

Here: putting the files of a day together. Not here: reading one file (``ingest/``), changing values (``cleaning.py``),
knowing which files hold which days (``landing.py``) or publishing (``assets.py``). No Dagster.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from data_assets import cleaning, duplicates, ingest, progress, telemetry
from data_assets.contracts import tables
from data_assets.engine import for_rows, scan_named
from data_assets.errors import ConfigurationError, ContractError, SourceFileError, visible
from data_assets.landing import by_day, files_of, fingerprints, read_retired, take_split
from data_assets.storage import Lake, row_group, rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from data_assets.config import PipelineConfig

MOST_SCANS = 64
BY_FILE = pl.Schema(
    {
        "path": pl.String(),
        "content_hash": pl.String(),
        "rows": pl.Int64(),
        "valid": pl.Int64(),
        "quarantined": pl.Int64(),
        "duplicate": pl.Int64(),
        "late": pl.Int64(),
        "late_days": pl.Int64(),
    }
)


@dataclass(frozen=True)
class StagedDay:
    """One day, read but not published.

    Attributes:
        valid: rows of raw_events, in the order of the files' paths and of their lines.
        quarantined: rows of quarantined_events, same order.
        duplicates: rows of duplicate_events, same order; None when duplicates are kept as events.
        by_file: one row per file of the day, with the schema ``BY_FILE``; ``rows`` is the ledger's count, ``late_days``
            the days from this day to the file's home day, 0 when it is not later.
        fingerprint: what the day is made from (``landing.fingerprints``).
        cleaning: what was changed in ``valid``.
        ready: the file that ``valid`` scans, where it is what the lake will hold (``storage.DayFrame``).
    """

    valid: pl.LazyFrame
    quarantined: pl.LazyFrame
    duplicates: pl.LazyFrame | None
    by_file: pl.DataFrame
    fingerprint: str
    cleaning: cleaning.Impact
    ready: Path | None

    @property
    def notes(self) -> dict[str, str]:
        """What later assets need to know of the day beside its rows, as text to keep with it."""
        made = {"fingerprint": self.fingerprint, "by_file": json.dumps(self.by_file.to_dicts())}
        return made | self.cleaning.notes


def sums(by_file: pl.DataFrame) -> dict[str, int]:
    """What became of the day's records, over all files: rows_in, valid, quarantined, duplicate and late.

    And ``late_max_days``, by how many days the latest are late, and ``late_row_days``, those days of all late rows
    added up.
    """
    days = pl.when(pl.col("late") > 0).then("late_days")
    totals = by_file.select_seq(
        pl.sum("rows").alias("rows_in"),
        pl.sum("valid", "quarantined", "duplicate", "late"),
        days.max().fill_null(0).alias("late_max_days"),
        (pl.col("late") * pl.col("late_days")).sum().alias("late_row_days"),
    )
    return {name: int(total) for name, total in totals.to_dicts()[0].items()}


def noted_files(notes: Mapping[str, str]) -> pl.DataFrame:
    """The ``by_file`` of a published day, from its notes.

    Raises:
        ContractError: another version of the project wrote them.
    """
    found = json.loads(notes["by_file"])
    if any(file.keys() != BY_FILE.keys() for file in found):
        raise ContractError(
            "raw_events: the day was made by another version of the project, which counted other things by file.",
            "Run the day again from raw_events on: data-assets run --from DAY",
            table="raw_events",
        )
    return pl.DataFrame(found, schema=BY_FILE)


def stage(
    config: PipelineConfig, ledger: pl.DataFrame, days: Sequence[str], scratch: Path
) -> tuple[dict[str, StagedDay], dict[str, str]]:
    """Read the given days (ISO) from their files, each file once.

    Returns:
        The days that could be read, and the days that could not, with the reason.
    """
    try:
        lookup = cleaning.read_lookup(config)
    except ConfigurationError as problem:
        return {}, dict.fromkeys(days, str(problem))
    rows = files_of(ledger, list(days))
    of_days, marks = by_day(rows), fingerprints(rows)
    refused: dict[str, str] = {}
    refusals = rows.select("day", error=pl.coalesce("error", "drift_error")).drop_nulls("error")
    for day, error in refusals.iter_rows():
        refused.setdefault(day.isoformat(), error)
    folders: dict[str, Path] = {}
    retired = read_retired(Lake(config.lake_dir))
    for number, ((path,), group) in enumerate(rows.group_by("path", maintain_order=True)):
        wanted = [d for d in group["day"] if d.isoformat() not in refused]
        if not wanted:
            continue
        if str(path) in retired and not (config.raw_dir / str(path)).exists():
            refused.update({d.isoformat(): _retired(str(path), retired[str(path)]) for d in wanted})
            continue
        progress.step("raw_events", str(path))
        folder = folders[str(path)] = scratch / f"{number:06d}"
        is_all = len(wanted) == 1 and of_days[wanted[0]].height == 1
        is_all &= config.source.deduplicate == "none" and lookup is None
        try:
            with telemetry.timed(str(path)):
                home, digest, mapping = group.select_seq("home_day", "content_hash", "mapping").row(0)
                records = take_split(config, str(path), digest, mapping, folder)
                if records is not None:
                    ingest.finish_split(records, str(path), home, wanted, config, folder)
                    continue
                folder.mkdir()
                records = ingest.open_records(config.raw_dir / str(path), str(path), config, folder, verify=False)
                with for_rows(records.physical_rows):
                    ingest.split_file(records, str(path), home, wanted, config, folder, is_all=is_all)
        except (SourceFileError, ConfigurationError) as problem:
            refused.update({d.isoformat(): str(problem) for d in wanted})
    staged = {
        day: _day(config, of_days[dt.date.fromisoformat(day)], folders, day, marks.get(day, ""), scratch, lookup)
        for day in days
        if day not in refused
    }
    return staged, refused


def _retired(path: str, found: Mapping[str, Any]) -> str:
    """Why a day that holds a retired file is not made again."""
    where = f"moved to {visible(found['where'])}" if found["where"] else "deleted"
    return (
        f"{visible(path)} was {where} by retention on {found['when']}, so the day cannot be made again.\n"
        "  What to do: Nothing, if its tables are good as they are. Else put the file back and run the day."
    )


def _day(
    config: PipelineConfig,
    files: pl.DataFrame,
    folders: dict[str, Path],
    day: str,
    fingerprint: str,
    scratch: Path,
    lookup: pl.DataFrame | None,
) -> StagedDay:
    contracts = tables(config.source.types.user_id)
    files = files.sort("path")
    parts = {
        kind: {path: _parts(folders[path] / kind / f"{ingest.DAY}={day}") for path in files["path"]}
        for kind in ingest.KINDS
    }
    of_files = [_of_file(path, parts["valid"][path], parts["mended"][path]) for path in files["path"]]
    of_valid = [scan for scan in of_files if scan is not None]
    valid = _together(contracts["raw_events"].empty(), of_valid, scratch)
    read = {path: rows_of([*parts["valid"][path], *parts["mended"][path]]) for path in files["path"]}
    kept, repeated = read, None
    if config.source.deduplicate != "none":
        folder = scratch / f"day={day}"
        folder.mkdir()
        valid, repeated = duplicates.split(valid, _duplicate_key(config, valid.collect_schema().names()), folder)
        counted = valid.group_by("source_file").len().collect(engine="streaming")
        kept = dict(counted.iter_rows())
    by_file = pl.DataFrame(
        [
            {
                "path": row["path"],
                "content_hash": row["content_hash"],
                "rows": row["rows"],
                "valid": kept.get(row["path"], 0),
                "quarantined": rows_of(parts["quarantined"][row["path"]]),
                "duplicate": read[row["path"]] - kept.get(row["path"], 0),
                "late": row["rows"] if row["home_day"] > row["day"] else 0,
                "late_days": max(0, (row["home_day"] - row["day"]).days),
            }
            for row in files.to_dicts()
        ],
        schema=BY_FILE,
    )
    refused = [scan_named(p) for found in parts["quarantined"].values() for p in found]
    quarantined = _together(contracts["quarantined_events"].empty(), refused, scratch)
    cleaned, impact = cleaning.clean(valid, quarantined, config, lookup)
    of_day = [path for kind in ("valid", "mended") for found in parts[kind].values() for path in found]
    is_ready = [path.name for path in of_day] == [ingest.WHOLE_DAY] and cleaned is valid and repeated is None
    return StagedDay(cleaned, quarantined, repeated, by_file, fingerprint, impact, of_day[0] if is_ready else None)


def _of_file(path: str, plain: list[Path], mended: list[Path]) -> pl.LazyFrame | None:
    """One file's valid rows, those that took a second look among the others; ``None`` when it has none."""
    scans = [
        pl.concat([scan_named(p) for p in paths]).drop("source_file", strict=False)
        for paths in (plain, mended)
        if paths
    ]
    if not scans:
        return None
    rows = scans[0] if len(scans) == 1 else scans[0].merge_sorted(scans[1], key="source_line", maintain_order=True)
    *columns, line = rows.collect_schema().names()
    return rows.select(*columns, pl.lit(path).alias("source_file"), line)


def _together(empty: pl.DataFrame, scans: list[pl.LazyFrame], scratch: Path) -> pl.LazyFrame:
    """The rows of all files, in this order. Files may differ in extra columns.

    Of many some at a time are put together on disk first: over thousands of scans each query takes minutes to plan.
    """
    if not scans:
        return empty.lazy()
    while len(scans) > MOST_SCANS:
        together = []
        for first in range(0, len(scans), MOST_SCANS):
            path = scratch / f"{uuid.uuid4().hex}.parquet"
            some = pl.concat(scans[first : first + MOST_SCANS], how="diagonal")
            size = row_group(len(some.collect_schema()))
            some.sink_parquet(path, compression="uncompressed", row_group_size=size)
            together.append(scan_named(path))
        scans = together
    return pl.concat(scans, how="diagonal") if len(scans) > 1 else scans[0]


def _parts(folder: Path) -> list[Path]:
    """The files of one kind and day. Of mended ones only those that hold rows: merging in costs memory."""
    found = sorted(folder.glob("*.parquet"))
    return [path for path in found if folder.parent.name != "mended" or rows_of([path])]


def _duplicate_key(config: PipelineConfig, columns: Sequence[str]) -> list[str]:
    """The columns whose values make two rows of a day the same."""
    chosen = config.source.deduplicate
    if chosen == "exact":
        return [c for c in columns if c not in ("source_file", "source_line")]
    return list(chosen)
