"""What lies in the raw directory: the ledger of files and days, and which days need work.

Here: listing, hashing and counting files, the ledger's fingerprints, what is stale, and the parts of files that were
split while they were counted (docs/decisions/0009), until they are taken. Not here: reading rows (``ingest/``),
keeping the ledger's file (``storage.py``) or starting runs (``sensors.py``, ``cli.py``).

The ledger is a cache of the files: lost, it is made again; two writers at once do work twice and agree.
"""

from __future__ import annotations

import bisect
import datetime as dt
import fnmatch
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import polars as pl

from data_assets import disk, drift, ingest
from data_assets.contracts import LANDED_FILES
from data_assets.engine import for_rows
from data_assets.errors import ConfigurationError, RawFolderMissingError, SourceFileError, StorageFullError, visible
from data_assets.storage import content_hash, scratch_folder, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from data_assets.config import PipelineConfig
    from data_assets.storage import DayLog, Lake

SPLIT_ROWS = 262_144  # of a file of so many records a pass less counts
MOST_SPLIT = 1_000  # so many shorter ones a look splits: their parts lie about until they are taken
SPLIT_OF = "split.json"  # beside the parts: what they are parts of
SPLIT_FIELDS = ("columns", "physical_rows", "format", "encoding", "lane", "reason")
RETIRED = ".retired.json"  # beside the lake's tables: ledger rows of files that retention took away
DATE_IN_NAME = re.compile(r"(?<!\d)(\d{4})([-_.]?)(\d{2})\2(\d{2})(?!\d)")


@dataclass(frozen=True)
class LandedFile:
    """A file as the directory shows it: path below the raw directory, bytes, modification time (ns since 1970)."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Listing:
    """What a look at the raw directory found.

    Attributes:
        files: files to read, by path.
        settling: files that changed less than ``settle_seconds`` ago and wait for the next look.
        ignored: names that are left alone, with the reason.
    """

    files: tuple[LandedFile, ...]
    settling: tuple[str, ...]
    ignored: Mapping[str, str]


@dataclass(frozen=True)
class Refresh:
    """The ledger after a look at the raw directory.

    Attributes:
        ledger: the table ``landed_files``.
        listing: what the directory held.
        read: files that were opened because they were new or changed.
        left: new or changed files that the time budget left for the next look.
    """

    ledger: pl.DataFrame
    listing: Listing
    read: tuple[str, ...]
    left: tuple[str, ...]


def list_files(config: PipelineConfig, now_ns: int) -> Listing:
    """Look at the raw directory, without opening a file. Links, pipes and devices are not followed."""
    root = config.raw_dir
    wanted = _pattern(tuple(config.source.patterns))
    settle_ns = int(config.source.settle_seconds * 1e9)
    files, settling, ignored = [], [], {}
    for entry, relative in _walk(root, ""):
        if entry.name[0] in "._" or entry.name.endswith((".tmp", ".part")):
            continue
        shown = relative.encode("utf-8", "backslashreplace").decode("utf-8")
        if shown != relative:
            ignored[shown] = "its name is not UTF-8"
        elif not entry.is_file(follow_symlinks=False):
            ignored[shown] = "it is not a regular file"
        elif not wanted.match(relative):
            ignored[shown] = "no pattern of source.patterns matches its name"
        elif not _tells_format(relative):
            ignored[shown] = "its name tells no format that can be read"
        else:
            found = entry.stat(follow_symlinks=False)
            if abs(now_ns - found.st_mtime_ns) < settle_ns:  # a time far ahead is another clock's, and says nothing
                settling.append(relative)
            files.append(LandedFile(relative, found.st_size, found.st_mtime_ns))
    return Listing(tuple(sorted(files, key=lambda f: f.path)), tuple(sorted(settling)), ignored)


def _walk(root: Path, prefix: str) -> Iterator[tuple[os.DirEntry[str], str]]:
    try:
        entries = list(os.scandir(root))
    except FileNotFoundError:
        return
    except OSError as problem:  # not to be taken for a folder whose files were removed
        raise SourceFileError(
            f"The folder {visible(str(root))} cannot be read: {visible(problem.strerror or str(problem))}.",
            "Let the user who runs this read it. Until then nothing is done, and every day keeps what it had.",
            path=prefix,
        ) from problem
    for entry in entries:
        relative = f"{prefix}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            if entry.name[0] not in "._":
                yield from _walk(Path(entry.path), f"{relative}/")
        else:
            yield entry, relative


def _pattern(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """One expression for all patterns, in capitals or not. ``**/`` also matches no folder at all, as shells have it."""
    flat = {p.removeprefix("**/") for p in patterns} | set(patterns)
    return re.compile("|".join(fnmatch.translate(p) for p in sorted(flat)), re.IGNORECASE)


def _tells_format(relative: str) -> bool:
    """Whether the name says how to read the file; a backup called ``day.csv.bak`` matches a pattern and does not."""
    try:
        ingest.detect_format(Path(relative))
    except SourceFileError:
        return False
    return True


def refresh(
    config: PipelineConfig,
    lake: Lake,
    *,
    now_ns: int,
    budget_seconds: float = float("inf"),
    progress: Callable[[str], None] = lambda _path: None,
    is_made_next: Callable[[str], bool] = lambda _path: False,
) -> Refresh:
    """Bring the ledger up to date with the raw directory.

    Costs a directory scan, a hash of each new or changed file, and one pass over the start times of those whose content
    is new. Files that are still settling keep their old ledger rows, so a reader never sees half of one.

    Args:
        config: where to look, and how files are read.
        lake: where the ledger is kept.
        now_ns: the time of the look, ns since 1970; decides only what is still settling.
        budget_seconds: files that are not reached in this time are left for the next look.
        progress: called with each path before it is read.
        is_made_next: whether this process makes the days of a file next: then it is split by the pass that counts its
            rows, and the parts are kept for ``take_split``.
    """
    deadline = time.monotonic() + budget_seconds
    old = read_ledger(lake)
    listing = list_files(config, now_ns)
    retired = retired_rows(lake).filter(~pl.col("path").is_in([f.path for f in listing.files]))
    if not config.raw_dir.exists() and not old.filter(~pl.col("path").is_in(retired["path"].implode())).is_empty():
        raise RawFolderMissingError(
            f"The folder {visible(str(config.raw_dir))} is not there; files read from it so far: "
            f"{old['path'].n_unique():,}.",
            "Is its disk mounted? Nothing is done and every day keeps what it had. If all files are really gone, make "
            "the folder again, empty.",
            path="",
        )
    mapping = mapping_mark(config)
    keep, todo = _compare(old, listing, mapping)
    known = (
        {row["path"]: row for row in old.select("path", "content_hash", "mapping").unique().to_dicts()} if todo else {}
    )
    parts, read, left, settling = [keep, retired], [], [], set(listing.settling)
    split = {file.path for file in todo if is_made_next(file.path)}
    split = split if split and _has_room(config, split) else set()
    for file in todo:
        if file.path in settling or time.monotonic() > deadline:
            left.append(file.path)
            continue
        progress(file.path)
        digest = _digest(config.raw_dir / file.path)
        before = known.get(file.path)
        rows = old.clear() if before is None else old.filter(pl.col("path") == file.path)
        if before is not None and before["content_hash"] == digest and _reads_alike(before["mapping"], mapping):
            parts.append(
                rows.with_columns(
                    mtime_ns=pl.lit(file.mtime_ns, pl.Int64), size=pl.lit(file.size, pl.Int64), mapping=pl.lit(mapping)
                )
            )
            continue
        read.append(file.path)
        least = SPLIT_ROWS if len(read) > MOST_SPLIT else 1
        parts.append(_read_file(config, file, digest, mapping, rows, least if file.path in split else None))
    parts.append(old.filter(pl.col("path").is_in(left)))
    rules = drift.rules(config)
    version = lake.current(LANDED_FILES.name, None)
    judged_alike = old.is_empty() or (version is not None and version.notes.get("drift") == rules)
    ledger = pl.concat(parts).sort("path", "day")
    if not (judged_alike and ledger.equals(old)):
        ledger = judge(ledger, config)
        lake.write(LANDED_FILES, None, ledger.lazy(), {"drift": rules})
    return Refresh(ledger, listing, tuple(read), tuple(p for p in left if p not in settling))


def retired_rows(lake: Lake) -> pl.DataFrame:
    """Ledger rows of the files that retention took away; they count as if the files were still there."""
    found = read_retired(lake)
    rows = [{name: row.get(name) for name in LANDED_FILES.names} for file in found.values() for row in file["rows"]]
    dates = [pl.col(name).str.to_date("%Y-%m-%d") for name in ("home_day", "day")]
    texts = {n: pl.String() if t == pl.Date else t for n, t in LANDED_FILES.schema.items()}
    return pl.DataFrame(rows, schema=texts).with_columns(dates)


def read_retired(lake: Lake) -> dict[str, dict[str, Any]]:
    """The files that retention took away, by path: ``when`` (ISO day), ``where`` (a path or null), ``rows``."""
    try:
        found: dict[str, dict[str, Any]] = json.loads((lake.root / RETIRED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def retire(lake: Lake, rows: pl.DataFrame, when: dt.date, targets: Mapping[str, Path | None]) -> None:
    """Note, for good, that files are about to be taken away.

    Args:
        lake: where it is noted.
        rows: their rows of the ledger.
        when: today.
        targets: path to where the file is moved; ``None``: it is deleted.
    """
    found = read_retired(lake)
    texts = rows.with_columns(pl.col("home_day", "day").dt.to_string())
    for (path,), of_file in texts.group_by("path", maintain_order=True):
        if path in targets:
            where = targets[path]
            found[path] = {
                "when": when.isoformat(),
                "where": None if where is None else str(where),
                "rows": of_file.to_dicts(),
            }
    write_atomically(lake.root / RETIRED, json.dumps(found, sort_keys=True))


def unretire(lake: Lake, paths: Collection[str]) -> None:
    """Forget that these files were taken away: they are there again."""
    found = {path: file for path, file in read_retired(lake).items() if path not in paths}
    write_atomically(lake.root / RETIRED, json.dumps(found, sort_keys=True))


def read_ledger(lake: Lake) -> pl.DataFrame:
    """The ledger as last written; empty when it was lost or has another version's columns (it is then made again)."""
    found = lake.current(LANDED_FILES.name, None)
    if found is None or not found.path.exists():
        return LANDED_FILES.empty()
    ledger = pl.read_parquet(found.path, glob=False, hive_partitioning=False)
    return ledger if ledger.schema == LANDED_FILES.schema else LANDED_FILES.empty()


def seen_files(ledger: pl.DataFrame) -> list[drift.SeenFile]:
    """The files whose schema counts: those that can be read and whose mapping works."""
    usable = ledger.filter(pl.col("error").is_null() & pl.col("schema").is_not_null())
    files = usable.unique("path", keep="first", maintain_order=True).select("path", "home_day", "schema")
    schemas = {text: drift.Schema.from_json(text) for text in files["schema"].unique()}
    return [drift.SeenFile(path, day, schemas[text]) for path, day, text in files.iter_rows()]


def judge(ledger: pl.DataFrame, config: PipelineConfig) -> pl.DataFrame:
    """The ledger with what each file's schema differs in, in ``drift`` and ``drift_error``."""
    accepted = drift.read_accepted(config.schema_drift.accepted)
    changes, _ = drift.judge(seen_files(ledger), accepted, config)
    found = pl.DataFrame(
        [
            (path, drift.changes_to_json(of_file), drift.refusal(path, of_file) if drift.fails(of_file) else None)
            for path, of_file in changes.items()
        ],
        schema={"path": pl.String, "drift": pl.String, "drift_error": pl.String},
        orient="row",
    )
    joined = ledger.drop("drift", "drift_error").join(found, on="path", how="left", maintain_order="left")
    return joined.select(LANDED_FILES.names)


def open_changes(ledger: pl.DataFrame) -> dict[str, list[drift.Change]]:
    """The files whose schema differs from what is accepted, or was let pass before, with how; by path."""
    drifted = ledger.filter(pl.col("drift").is_not_null()).unique("path", keep="first", maintain_order=True)
    return {path: drift.changes_from_json(text) for path, text in drifted.select("path", "drift").iter_rows()}


def _compare(old: pl.DataFrame, listing: Listing, mapping: str) -> tuple[pl.DataFrame, list[LandedFile]]:
    """Ledger rows of files that look the same, and the files that do not."""
    seen = pl.DataFrame(
        {
            "path": [f.path for f in listing.files],
            "size": [f.size for f in listing.files],
            "mtime_ns": [f.mtime_ns for f in listing.files],
        },
        schema={"path": pl.String, "size": pl.Int64, "mtime_ns": pl.Int64},
    )
    current = old.filter((pl.col("mapping") == mapping) & (pl.col("content_hash") != ""))
    key = ["path", "size", "mtime_ns"]
    keep = current.join(seen, on=key, how="semi", maintain_order="left")
    todo = seen.join(current, on=key, how="anti", maintain_order="left")
    return keep, [LandedFile(*row) for row in todo.iter_rows()]


def mapping_mark(config: PipelineConfig) -> str:
    """What decides, beside a day's files, what its tables hold: the configuration, then the lookup file's content.

    A lookup that cannot be read counts as a content of its own: its days are due, and are refused with the reason.
    """
    lookup = config.cleaning.lookup.file
    return config.mapping_fingerprint() + ("" if lookup is None else f":{_digest(lookup)}")


def _reads_alike(one: str, other: str) -> bool:
    """Whether two mappings count the rows of a file alike; the lookup plays no part in that."""
    return one.partition(":")[0] == other.partition(":")[0]


def _digest(path: Path) -> str:
    """The content's hash; empty when the file cannot be opened, which is looked at again each time."""
    try:
        return content_hash(path)
    except OSError:
        return ""


def _has_room(config: PipelineConfig, paths: Iterable[str]) -> bool:
    """Whether what is kept until it is taken leaves enough room for the rest of the work."""
    try:
        disk.check_room(config, paths)
    except StorageFullError:
        return False
    return True


@functools.cache
def _of_this_process() -> str:
    return secrets.token_hex(8)


def _kept_split(config: PipelineConfig, path: str, digest: str, mapping: str) -> Path:
    """Where the parts of a file are kept; what another process left behind is not looked at, and swept some day."""
    known = hashlib.blake2b("\0".join((path, digest, mapping)).encode(), digest_size=16)
    return config.scratch_dir / f"split-{_of_this_process()}-{known.hexdigest()}"


def split_bytes(config: PipelineConfig, files: pl.DataFrame) -> int:
    """How much of the files (rows of the ledger) lies there in parts."""
    keys = files.select("path", "content_hash", "mapping").unique().iter_rows()
    return sum(part.stat().st_size for key in keys for part in _kept_split(config, *key).rglob("*.parquet"))


def drop_splits(config: PipelineConfig, files: pl.DataFrame | None = None) -> None:
    """Remove the parts that were not taken: those of some files (rows of the ledger), or all of this process."""
    kept: Iterable[Path] = config.scratch_dir.glob(f"split-{_of_this_process()}-*")
    if files is not None:
        kept = (_kept_split(config, *key) for key in files.select("path", "content_hash", "mapping").iter_rows())
    for folder in kept:
        if folder.exists():
            shutil.rmtree(folder)


def take_split(config: PipelineConfig, path: str, digest: str, mapping: str, folder: Path) -> ingest.Records | None:
    """The parts of a file that the look at it has split, moved to ``folder``; for ``ingest.finish_split``.

    Returns:
        The file as it was split; ``None`` when it was not, or the parts were taken before.
    """
    try:
        _kept_split(config, path, digest, mapping).rename(folder)
    except FileNotFoundError:
        return None
    told = json.loads((folder / SPLIT_OF).read_text(encoding="utf-8"))
    return ingest.Records(frame=pl.LazyFrame(), **told | {"columns": tuple(told["columns"])})


def _split(records: ingest.Records, config: PipelineConfig, path: str, folder: Path) -> pl.DataFrame | None:
    """Split the file into ``folder``, if that can be: the rows of its days, as ``ingest.count_days`` has them."""
    counts = ingest.split_unseen(records, path, config, folder)
    if counts is not None:
        told = {name: getattr(records, name) for name in SPLIT_FIELDS}
        (folder / SPLIT_OF).write_text(json.dumps(told), encoding="utf-8")
    return counts


def _read_file(
    config: PipelineConfig, file: LandedFile, digest: str, mapping: str, before: pl.DataFrame, split_from: int | None
) -> pl.DataFrame:
    """The ledger rows of one file: its days and their rows, or why it cannot be used.

    A file that can no longer be read still touches the days that it held ``before``: they keep what they had. One of
    ``split_from`` records or more is split in passing.
    """
    modified = dt.datetime.fromtimestamp(file.mtime_ns / 1e9, tz=config.zone).date()
    home = home_day_in_name(file.path)
    error = lane = why = schema = None
    encoding, form = "binary", ingest.detect_format(Path(file.path))
    counts = pl.DataFrame(schema={"day": pl.Date, "rows": pl.Int64})
    with scratch_folder(config.scratch_dir) as scratch:
        try:
            records = ingest.open_records(config.raw_dir / file.path, file.path, config, scratch, require_columns=False)
            encoding, form, lane, why = records.encoding, records.format, records.lane, records.reason
            with for_rows(records.physical_rows):
                schema = drift.observe(records, file.path, config).to_json()
                is_split = split_from is not None and records.physical_rows >= split_from
                split = _split(records, config, file.path, scratch / "split") if is_split else None
                counts = ingest.count_days(records, file.path, config) if split is None else split
            _check_count(file.path, records.physical_rows, int(counts["rows"].sum()))
            ingest.check_required(records, file.path, config)
            kept = _kept_split(config, file.path, digest, mapping)
            if split is not None and not kept.exists():
                (scratch / "split").rename(kept)
        except (SourceFileError, ConfigurationError) as problem:  # e.g. the mapping's SQL does not fit this file
            error = str(problem)
            counts = before.select("day", "rows") if counts.is_empty() else counts
    first = counts["day"].drop_nulls().min()
    home = home or (first if isinstance(first, dt.date) else modified)
    home = max(home, config.start_date)
    known = pl.col("day") >= config.start_date
    by_day = (
        counts.with_columns(day=pl.when(known).then("day").otherwise(pl.lit(home)))
        .group_by("day")
        .agg(pl.col("rows").sum())
    )
    if by_day.is_empty():
        by_day = pl.DataFrame({"day": [home], "rows": [0]}, schema={"day": pl.Date, "rows": pl.Int64})
    return by_day.select_seq(
        path=pl.lit(file.path),
        size=pl.lit(file.size, pl.Int64),
        mtime_ns=pl.lit(file.mtime_ns, pl.Int64),
        content_hash=pl.lit(digest),
        format=pl.lit(form),
        encoding=pl.lit(encoding),
        lane=pl.lit(lane, pl.String),
        lane_reason=pl.lit(why, pl.String),
        home_day=pl.lit(home),
        day="day",
        rows="rows",
        mapping=pl.lit(mapping),
        error=pl.lit(error, pl.String),
        schema=pl.lit(schema, pl.String),
        drift=pl.lit(None, pl.String),
        drift_error=pl.lit(None, pl.String),
    )


def _check_count(path: str, physical: int, counted: int) -> None:
    """The rows of all days are the file's physical records, which were counted apart from the parser."""
    if physical != counted:
        raise SourceFileError(
            f"{visible(path)} holds {physical:,} records, but {counted:,} were read from it.",
            "No row may be lost, so none is taken. Keep the file and report it: this is a fault of data_assets.",
            path=path,
        )


def home_day_in_name(path: str) -> dt.date | None:
    """The date in a file's name, else in the nearest folder's name; None when there is none.

    >>> home_day_in_name("2024/events_20240131.csv")
    datetime.date(2024, 1, 31)
    """
    for part in reversed(PurePosixPath(path).parts):
        for found in DATE_IN_NAME.finditer(part):
            try:
                return dt.date(int(found[1]), int(found[3]), int(found[4]))
            except ValueError:  # 2024-13-45 is a number, not a date
                continue
    return None


def fingerprints(ledger: pl.DataFrame) -> dict[str, str]:
    """What each day is made from, one short hash a day: its files' paths, contents and home days, and the mapping.

    And why a file is refused for its schema: accepting it makes its days due, and so does a policy or an accepted
    schema that refuses days which are finished. A change that is only warned about makes nothing due.
    """
    lines = ledger.sort("day", "path").select(
        pl.col("day").dt.to_string(),
        line=pl.concat_str(
            "path",
            "content_hash",
            pl.col("home_day").dt.to_string(),
            "mapping",
            "drift_error",
            separator="\0",
            ignore_nulls=True,
        ),
    )
    return {
        day: hashlib.blake2b("\n".join(line for _, line in group).encode(), digest_size=8).hexdigest()
        for day, group in groupby(lines.iter_rows(), key=itemgetter(0))
    }


def stale_days(ledger: pl.DataFrame, log: DayLog, *, first: dt.date, last: dt.date) -> dict[str, str]:
    """Days between ``first`` and ``last`` whose tables were not made from the files that lie there now.

    Returns:
        Day (ISO) to the fingerprint its tables should have; a day whose files were all removed has the fingerprint "".
    """
    now = fingerprints(ledger)
    finished = log.finished()
    due = {day: now.get(day, "") for day in sorted(now.keys() | finished.keys())}
    return {
        day: mark
        for day, mark in due.items()
        if first.isoformat() <= day <= last.isoformat() and finished.get(day) != mark
    }


def files_without_rows(ledger: pl.DataFrame) -> list[str]:
    """Paths of files that can be read and hold no record."""
    rows = ledger.filter(pl.col("error").is_null()).group_by("path").agg(pl.col("rows").sum())
    return rows.filter(pl.col("rows") == 0)["path"].sort().to_list()


def landed_days(ledger: pl.DataFrame) -> list[dt.date]:
    """Days that rows landed for, ascending."""
    return ledger.filter(pl.col("rows") > 0)["day"].unique().sort().to_list()


def rows_to_come(ledger: pl.DataFrame, *, today: dt.date) -> dict[str, int]:
    """Rows that landed of each day (ISO) after ``today``; they are made once their day begins."""
    found = ledger.filter(pl.col("day") > today).group_by("day").agg(pl.sum("rows")).filter(pl.col("rows") > 0)
    return {day.isoformat(): rows for day, rows in found.sort("day").iter_rows()}


def missing_days(landed: Sequence[dt.date], *, last: dt.date) -> list[str]:
    """Days between the first and the last (at most ``last``) of the ``landed_days`` that are not among them."""
    known = landed[: bisect.bisect_right(landed, last)]
    every = range((known[-1] - known[0]).days) if known else ()
    return [d.isoformat() for d in sorted({known[0] + dt.timedelta(days=n) for n in every}.difference(known))]


def by_day(files: pl.DataFrame) -> Mapping[dt.date, pl.DataFrame]:
    """Rows of the ledger day by day; none for a day that has none."""
    found = files.partition_by("day", as_dict=True, maintain_order=True)
    return defaultdict(files.clear, {day: rows for (day,), rows in found.items()})


def files_of(ledger: pl.DataFrame, days: list[str]) -> pl.DataFrame:
    """The ledger's rows for the given days (ISO)."""
    wanted = pl.Series(days, dtype=pl.String).str.to_date("%Y-%m-%d")
    return ledger.filter(pl.col("day").is_in(wanted.implode()))
