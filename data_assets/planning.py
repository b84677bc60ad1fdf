"""What a run would do with files, told from a sample of each and without writing anything into the project.

Here: the sample (head, blocks from the middle and the end), what the ordinary reader makes of it, what that predicts of
the whole file, and what a run over all of them would take. Not here: reading (``ingest/``), a first configuration
(``guessing.py``), or the words on the terminal (``commands.py``).

A file that is small is its own sample, and what is said of it is exact.
"""

from __future__ import annotations

import codecs
import datetime as dt
import io
import json
import math
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TextIO, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data_assets import drift, ingest, memory
from data_assets.config import ConstantValue, PathPattern, SqlExpression
from data_assets.engine import FEW_ROWS, for_rows, scan_named
from data_assets.errors import SourceFileError, nearest
from data_assets.ingest import columnar
from data_assets.ingest.compressed import CODECS, codec_of, decompress
from data_assets.ingest.delimited import guess_delimiter
from data_assets.ingest.mapping import sources
from data_assets.ingest.opening import cannot_open
from data_assets.ingest.records import collected
from data_assets.landing import fingerprints, home_day_in_name, list_files, mapping_mark, read_ledger, seen_files
from data_assets.storage import DayLog, Lake

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from data_assets.config import ColumnSource, PipelineConfig
    from data_assets.ingest.mapping import Source
    from data_assets.landing import Listing

WHOLE_BYTES = 8 << 20
WHOLE_PACKED_BYTES = 1 << 20
HEAD_BYTES = 4 << 20
BLOCK_BYTES = 512 << 10
BLOCKS = 8
MOST_LINES_OF_A_RECORD = 1_000
WHOLE_ROWS = 150_000
PARQUET_SLICES = 5
PARQUET_SLICE_ROWS = 10_000
_DECODER = json.JSONDecoder()
_BROKEN_FACTOR = 10
_SNIFFED_CHARACTERS = 256 << 10
_JUDGED = ("day", "user_id", "reasons")
_COUNTED = pl.Schema({"day": pl.Date(), "reasons": pl.List(pl.String()), "n": pl.Int64()})

# Measured with `python -m benchmarks.memory`: two cores, five columns, 100,000 to 10 million rows of one day. Beyond
# what a day is held for it takes no more, however many rows it has. A day and a file are from `python -m
# benchmarks.scale` (1,000 days in one file, 10,000 files of one day), the exact lane from `run --json` of 500,000
# quoted rows (6.3 CPU-s) and as many JSON lines with nested values (7.1).
_START_SECONDS = 4.0
_FAST_SECONDS_PER_ROW = 1.2e-6
_EXACT_SECONDS_PER_ROW = 7e-6
_SECONDS_PER_FILE = 0.01
_SECONDS_PER_DAY = 0.12
_SECONDS_PER_USER_DAY = 1e-6
_START_MB = 350
_BYTES_PER_ROW_OF_A_DAY = 75
_BYTES_PER_USER_DAY = 200
_WIDE = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True)
class Sample:
    """A part of a file that the ordinary reader can open, or the whole file.

    Attributes:
        path: where it lies.
        relative: the name to open it under; without the ending of a compression that is undone.
        words: what it consists of; empty when it is the whole file.
        share: what part of the content it is, by bytes (Parquet: by rows); 1 when it is whole.
        rows: the rows of the whole file where they are known without reading it (Parquet).
    """

    path: Path
    relative: str
    words: str = ""
    share: float = 1.0
    rows: int | None = None


@dataclass(frozen=True)
class FilePlan:
    """What is known or predicted of one file.

    Attributes:
        path: below the raw directory, or as it was given.
        size: bytes on disk.
        error: why it would be refused; ``None`` when it can be used.
        format, encoding, delimiter, lane, lane_reason: how it is read.
        sample: what was looked at; empty: all of it.
        rows: physical records; predicted unless ``rows_exact``.
        columns: ours to theirs; ``None`` where the file has none.
        missing: our columns whose source the file lacks, with the nearest names that it has.
        unmapped: the file's columns that nothing reads.
        days: day (ISO) to records in the sample.
        new, changed, unchanged: those days by what a run would find: never made; made, but not with this file as it is
            now; made with it.
        to_come: those days that have not begun; they are made once they have.
        sampled_rows: records in the sample.
        refused: of these, how many would be quarantined.
        reasons: reason to records of the sample.
        changes: what its schema differs in from that of the files before, or the accepted one.
        events: day to the valid records that the whole file has of it.
        user_days: how many users the whole file has, counted for each day.
        user_length: mean bytes of a user_id; ``None`` for whole numbers.
        memory_mb, seconds: what a run over this file alone would take: the peak of its process, CPU seconds.
        decisions: how it would work on each of those days, by what memory there is now.
    """

    path: str
    size: int
    error: str | None = None
    format: str = ""
    encoding: str = ""
    delimiter: str | None = None
    lane: str = ""
    lane_reason: str = ""
    sample: str = ""
    rows: int = 0
    rows_exact: bool = True
    columns: Mapping[str, str | None] = field(default_factory=dict)
    missing: Mapping[str, list[str]] = field(default_factory=dict)
    unmapped: tuple[str, ...] = ()
    days: Mapping[str, int] = field(default_factory=dict)
    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    to_come: tuple[str, ...] = ()
    sampled_rows: int = 0
    refused: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    changes: tuple[drift.Change, ...] = ()
    events: Mapping[str, int] = field(default_factory=dict)
    user_days: int = 0
    user_length: float | None = None
    memory_mb: int = 0
    seconds: float = 0.0
    decisions: Mapping[str, memory.Decision] = field(default_factory=dict)

    @property
    def is_refused(self) -> bool:
        """Whether a run would not take it."""
        return self.error is not None or drift.fails(self.changes)

    @property
    def reject_rate(self) -> float:
        """The share of the sample's records that would be quarantined."""
        return self.refused / self.sampled_rows if self.sampled_rows else 0.0


# --- what to look at -----------------------------------------------------------------------------------------------


def files_below(config: PipelineConfig, folder: Path, now_ns: int) -> tuple[PipelineConfig, Listing]:
    """The files that a run would read if ``folder`` were the raw directory, and the configuration with it so."""
    there = config.model_copy(update={"source": config.source.model_copy(update={"directory": folder.absolute()})})
    return there, list_files(there, now_ns)


def relative_path(config: PipelineConfig, path: Path) -> str:
    """The path below the raw directory; of a file that lies elsewhere, its name."""
    try:
        return path.absolute().relative_to(config.raw_dir.absolute()).as_posix()
    except ValueError:
        return path.name


# --- the sample ----------------------------------------------------------------------------------------------------


def take_sample(path: Path, relative: str, encoding: str, folder: Path) -> Sample:
    """A sample of the file in ``folder``; the file itself when it is small.

    Args:
        path: the file.
        relative: its path below the raw directory, which tells its format.
        encoding: ``source.csv.encoding``.
        folder: an existing folder for the sample.

    Raises:
        SourceFileError: its name tells no format, or it cannot be opened, or decompressed.
    """
    kind, _, packed = ingest.detect_format(Path(relative)).partition(".")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as problem:
        raise cannot_open(relative, problem) from problem
    codec = codec_of(f".{packed}" if packed else "", start)
    if kind == "parquet":
        return Sample(path, relative) if codec or size == 0 else _parquet_sample(path, relative, folder)
    if size <= (WHOLE_PACKED_BYTES if codec else WHOLE_BYTES):
        return Sample(path, relative)
    stem, dot, suffix = relative.rpartition(".")
    plain = stem if f"{dot}{suffix.lower()}" in CODECS else relative
    target = folder / f"sample{Path(plain).suffix}"
    content, total = _unpacked_head(path, codec, relative, folder) if codec else _head(path, size)
    if total <= len(content):
        target.write_bytes(content)
        return Sample(target, plain)
    parts = _parts(kind, content, encoding, None if codec else path)
    if not any(parts):
        return Sample(path, relative)
    target.write_bytes(b"".join(parts))
    taken = sum(map(len, parts))
    words = f"the first {len(parts[0]) / 1e6:.1f} MB"
    words += f" and {len(parts) - 1} blocks of {BLOCK_BYTES / 1e6:.1f} MB up to the end" if len(parts) > 1 else ""
    return Sample(target, plain, words, min(1.0, taken / total))


def _parts(kind: str, content: bytes, encoding: str, plain: Path | None) -> list[bytes]:
    """Whole records of the head and, of a plain file, blocks further on; nothing when not even one is whole."""
    wide = next(((bom, name) for bom, name in _WIDE if content.startswith(bom)), None)
    if wide is None and re.fullmatch(r"utf-?(16|32).*", encoding):
        wide = (b"", encoding)
    if kind == "json":
        return [_whole_values(content, wide)]
    if wide:
        return [_whole_lines_of(content, *wide)]
    head = _cut(content, from_start=False)
    if _quotes_run_on(head):
        return [_cut_outside_quotes(head)]
    if plain is None:
        return [head]
    blocks = _blocks(plain, plain.stat().st_size)
    return [head] if any(map(_quotes_run_on, blocks)) else [head, *blocks]


def _head(path: Path, size: int) -> tuple[bytes, int]:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES), size


def _unpacked_head(path: Path, codec: str, relative: str, folder: Path) -> tuple[bytes, int]:
    """The first bytes of the content, and how many it seems to have in all: by what these came from."""
    size = path.stat().st_size
    parts: list[bytes] = []
    length = 0
    try:
        with pa.OSFile(str(path), "rb") as raw, pa.CompressedInputStream(raw, codec) as stream:
            while length < 2 * HEAD_BYTES and (block := stream.read(BLOCK_BYTES)):
                parts.append(block)
                length += len(block)
            ended = length < 2 * HEAD_BYTES
            total = length if ended else max(length + 1, round(length * size / max(1, raw.tell())))
    except (OSError, pa.ArrowException):
        decompress(path, codec, folder / "content", relative)  # raises the refusal that a run would give
        raise
    return b"".join(parts), total


def _blocks(path: Path, size: int) -> list[bytes]:
    """Blocks between the head and the end, the last one up to it, cut at line ends."""
    step = (size - HEAD_BYTES - BLOCK_BYTES) // (BLOCKS - 1)
    blocks = []
    with path.open("rb") as file:
        for number in range(BLOCKS):
            file.seek(size - BLOCK_BYTES if number == BLOCKS - 1 else HEAD_BYTES + number * step)
            block = _cut(file.read(BLOCK_BYTES), from_start=True)
            blocks.append(block if number == BLOCKS - 1 else _cut(block, from_start=False))
    return blocks


def _cut(block: bytes, *, from_start: bool) -> bytes:
    """``block`` without the line that it begins (``from_start``) or ends in the middle of."""
    end = b"\n" if b"\n" in block else b"\r"
    if end not in block:
        return b"" if from_start else block
    return block[block.index(end) + 1 :] if from_start else block[: block.rindex(end) + 1]


def _cut_outside_quotes(block: bytes) -> bytes:
    """``block`` up to the last line end that is in no quoted field; all of it when the last lines have none."""
    end, quotes = len(block), block.count(b'"')
    for _ in range(MOST_LINES_OF_A_RECORD):
        if quotes % 2 == 0:
            return block[:end]
        before = block.rfind(b"\n", 0, end - 1) + 1
        quotes -= block.count(b'"', before, end)
        end = before
    return block


def _quotes_run_on(block: bytes) -> bool:
    """Whether a quoted field seems to hold a line end, so that a line end may be no end of a record."""
    return b'"' in block and any(line.count(b'"') % 2 for line in block.split(b"\n"))


def _whole_lines_of(content: bytes, bom: bytes, encoding: str) -> bytes:
    text = content.removeprefix(bom).decode(encoding, "ignore")
    return bom + text[: text.rfind("\n") + 1 or len(text)].encode(encoding, "ignore")


def _whole_values(content: bytes, wide: tuple[bytes, str] | None) -> bytes:
    """As many whole elements of an array, or objects, as the text begins with; nothing when not even one is whole."""
    bom, encoding = wide or (b"", "utf-8")
    text = content.removeprefix(bom).decode(encoding, "ignore").removeprefix("\ufeff")
    position = begin = len(text) - len(text.lstrip())
    is_array = text.startswith("[", begin)
    position += is_array
    end = longest = 0
    while True:
        mark = re.compile(r"[\s,]*" if is_array else r"\s*").match(text, position)
        position = mark.end() if mark else position
        try:
            _, after = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        longest, end, position = max(longest, after - position), after, after
    if end and len(text) - end > _BROKEN_FACTOR * longest + BLOCK_BYTES:
        return content  # not cut off but broken: the reader shall say so
    return bom + (text[:end] + ("]" if is_array else "\n")).encode(encoding) if end else b""


def _parquet_sample(path: Path, relative: str, folder: Path) -> Sample:
    """Some slices of the rows, by the footer; a small file is its own sample."""
    try:
        with pq.ParquetFile(path) as file:
            rows = int(file.metadata.num_rows)
        if rows <= WHOLE_ROWS:
            return Sample(path, relative, rows=rows)
        scan = scan_named(path)
        step = (rows - PARQUET_SLICE_ROWS) // (PARQUET_SLICES - 1)
        target = folder / "sample.parquet"
        slices = [
            scan.slice(number * step, PARQUET_SLICE_ROWS).collect(engine="streaming")
            for number in range(PARQUET_SLICES)
        ]
        pl.concat(slices).write_parquet(target)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, pa.ArrowException) as problem:
        raise columnar.unreadable(relative, path, problem) from problem
    taken = PARQUET_SLICES * PARQUET_SLICE_ROWS
    return Sample(target, relative, f"{taken:,} rows from all over the file", taken / rows, rows)


# --- the plan ------------------------------------------------------------------------------------------------------


def plan_files(
    config: PipelineConfig, files: Iterable[tuple[Path, str]], *, today: dt.date = dt.date.max
) -> list[FilePlan]:
    """What a run would make of these files. Reads the ledger; writes to a temporary folder alone.

    The schema of each is compared as a run compares it: with those of the files before it, in the ledger and of these.

    Args:
        config: what ``pipeline.yaml`` says.
        files: where each lies, and its path below the raw directory.
        today: the last day that has begun.

    Raises:
        ConfigurationError: the mapping's SQL cannot work with one of them.
    """
    known = _known(config, today)
    plans, seen = [], []
    for path, relative in files:
        plan, schema = _plan_file(config, path, relative, known)
        plans.append(plan)
        seen += [] if schema is None else [schema]
    planned = {plan.path for plan in plans}
    others = [file for file in seen_files(known.ledger) if file.path not in planned]
    changes, _ = drift.judge([*others, *seen], drift.read_accepted(config.schema_drift.accepted), config)
    return [replace(plan, changes=changes.get(plan.path, ())) for plan in plans]


@dataclass(frozen=True)
class _Known:
    """What is the same for all files of a plan.

    Attributes:
        ledger: the table ``landed_files``.
        as_landed: path to the size and modification time that the ledger has of it, as the mapping is now.
        finished: the days that were made.
        made: those of them that are made from what the ledger has now.
        available: bytes that there are to hold a day.
        today: the last day that has begun.
    """

    ledger: pl.DataFrame
    as_landed: Mapping[str, tuple[int, int]]
    finished: Collection[str]
    made: Collection[str]
    available: int
    today: str


def _known(config: PipelineConfig, today: dt.date) -> _Known:
    ledger = read_ledger(Lake(config.lake_dir))
    same = ledger.filter(mapping=pl.lit(mapping_mark(config))).select("path", "size", "mtime_ns")
    as_landed = {path: (size, mtime_ns) for path, size, mtime_ns in same.iter_rows()}
    marks, finished = fingerprints(ledger), DayLog(config.lake_dir).finished()
    made = {day for day, mark in finished.items() if marks.get(day) == mark}
    return _Known(ledger, as_landed, finished.keys(), made, memory.available(config.memory), today.isoformat())


def _plan_file(
    config: PipelineConfig, path: Path, relative: str, known: _Known
) -> tuple[FilePlan, drift.SeenFile | None]:
    """What would become of one file, but for the changes of its schema, and that; a file that is refused has none."""
    plan = FilePlan(relative, 0)
    with tempfile.TemporaryDirectory(prefix="data-assets-plan-") as name:
        folder = Path(name)
        try:
            sample = take_sample(path, relative, config.source.csv.encoding, folder)
            stat = path.stat()
            plan = replace(plan, size=stat.st_size)
            records = ingest.open_records(sample.path, sample.relative, config, folder, require_columns=False)
            plan = _read_as(config, plan, sample, records)
            ingest.check_required(records, relative, config)
            with for_rows(records.physical_rows):
                home, judged = _judged(config, relative, records, stat)
                plan = _foretold(config, plan, judged, home)
                schema = drift.SeenFile(relative, home, drift.observe(records, relative, config))
        except SourceFileError as problem:
            return replace(plan, error=str(problem)), None
    is_as_landed = known.as_landed.get(relative) == (stat.st_size, stat.st_mtime_ns)
    made = known.made if is_as_landed else set[str]()
    begun = [day for day in plan.days if day <= known.today]
    needs = _needs(config, [plan], begun, known.available)
    plan = replace(
        plan,
        new=tuple(day for day in begun if day not in known.finished),
        changed=tuple(day for day in begun if day in known.finished and day not in made),
        unchanged=tuple(day for day in begun if day in made),
        to_come=tuple(day for day in plan.days if day > known.today),
        **needs._asdict(),
    )
    return plan, schema


def _read_as(config: PipelineConfig, known: FilePlan, sample: Sample, records: ingest.Records) -> FilePlan:
    """How the file is read, and what its columns become."""
    kind = ingest.detect_format(Path(known.path)).partition(".")
    delimiter = None
    if kind[0] == "csv" and records.columns:
        delimiter = config.source.csv.delimiter
        if delimiter == "auto":
            with open_text(sample.path, records) as text:
                delimiter = guess_delimiter(text.read(_SNIFFED_CHARACTERS))
    found = sources(records, known.path, config)
    mapping = config.source.columns.as_mapping()
    columns = {ours: _origin(theirs, found[ours]) for ours, theirs in mapping.items()}
    missing = {
        ours: nearest(theirs, records.columns)
        for ours, theirs in mapping.items()
        if isinstance(theirs, str) and columns[ours] is None
    }
    used = {column for source in found.values() for column in source.uses}
    whole = not sample.words
    rows = sample.rows if sample.rows is not None else round(records.physical_rows / sample.share)
    return replace(
        known,
        format=records.format.partition(".")[0] + kind[1] + kind[2],
        encoding=records.encoding,
        delimiter=delimiter,
        lane=records.lane,
        lane_reason=records.reason,
        sample=sample.words,
        rows=rows,
        rows_exact=whole or sample.rows is not None,
        sampled_rows=records.physical_rows,
        columns=columns,
        missing=missing,
        unmapped=tuple(c for c in records.columns if c not in used),
    )


def open_text(path: Path, records: ingest.Records) -> TextIO:
    """The sample's text, decoded as its reader did; a compressed file through its decompression."""
    raw: BinaryIO = path.open("rb")
    codec = codec_of("", raw.read(4))
    raw.seek(0)
    if codec is not None:
        raw = cast("BinaryIO", pa.CompressedInputStream(raw, codec))
    return io.TextIOWrapper(raw, encoding=records.encoding, errors="replace", newline="")


def _origin(theirs: ColumnSource, source: Source) -> str | None:
    """Where one of our columns comes from, in words; ``None`` when the file has nothing for it."""
    if isinstance(theirs, SqlExpression):
        return f"sql: {theirs.sql}" if source.value is not None else None
    if isinstance(theirs, ConstantValue):
        return f"always {theirs.value!r}"
    if isinstance(theirs, PathPattern):
        return f"path: {theirs.path}"
    return source.uses[0] if source.uses else None


def _judged(
    config: PipelineConfig, relative: str, records: ingest.Records, stat: os.stat_result
) -> tuple[dt.date, pl.LazyFrame]:
    """The day of rows that tell none, as the ledger has it, and of each row ``day``, ``user_id`` and ``reasons``.

    And ``metadata`` where it comes from SQL, which may fail over the file's values.
    """
    home = home_day_in_name(relative)
    rows = ingest.all_at_sight(records, relative, config)
    if home is None and records.physical_rows:
        days = ingest.count_days(records, relative, config) if rows is None else collected([rows], relative)[0]
        first = days["day"].drop_nulls().min()
        home = first if isinstance(first, dt.date) else None
    home = max(home or dt.datetime.fromtimestamp(stat.st_mtime, tz=config.zone).date(), config.start_date)
    if rows is not None:
        return home, rows.select("day", "user_id", reasons=pl.lit([], pl.List(pl.String())))
    computed = ["metadata"] if isinstance(config.source.columns.metadata, SqlExpression) else []
    judged = ingest.classify(records, relative, home, config).select(*_JUDGED, *computed)
    return home, collected([judged], relative)[0].lazy() if records.physical_rows <= FEW_ROWS else judged


def _foretold(config: PipelineConfig, plan: FilePlan, judged: pl.LazyFrame, home: dt.date) -> FilePlan:
    """The plan with what would become of the records."""
    counted = pl.DataFrame({"day": [home], "reasons": [[]], "n": [0]}, schema=_COUNTED)
    scale = plan.rows / max(1, plan.sampled_rows)
    user_days, length = 0, None
    if plan.sampled_rows:
        valid = judged.filter(pl.col("reasons").list.len() == 0)
        counted, users, _ = collected(
            [
                judged.group_by("day", "reasons").agg(pl.len().cast(pl.Int64).alias("n")),
                valid.select(
                    pl.struct("day", "user_id").n_unique(),
                    pl.len().alias("rows"),
                    length=pl.col("user_id").cast(pl.String).str.len_bytes().mean(),
                ),
                judged.select(pl.exclude(_JUDGED).null_count()),
            ],
            plan.path,
        )
        user_days, valid_rows, length = users.row(0)
        user_days = _of_all(user_days, valid_rows, scale)
    is_refused = pl.col("reasons").list.len() > 0
    refused, valid_days = counted.filter(is_refused), counted.filter(~is_refused).sort("day")
    reasons = (
        refused.explode("reasons")
        .group_by(reason="reasons")
        .agg(pl.sum("n"))
        .sort(["n", "reason"], descending=[True, False])
    )
    days = counted.group_by("day").agg(pl.sum("n")).sort("day")
    return replace(
        plan,
        days={day.isoformat(): n for day, n in days.iter_rows()},
        refused=int(refused["n"].sum()),
        reasons=dict(reasons.iter_rows()),
        events={day.isoformat(): round(n * scale) for day, n in valid_days.select("day", "n").iter_rows()},
        user_days=user_days,
        user_length=(length or 0.0) if config.source.types.user_id == "string" else None,
    )


def _of_all(seen: int, rows: int, scale: float) -> int:
    """How many different ones the whole has, of which a sample of so many rows has ``seen``, the whole ``scale`` of it.

    As if each row drew one of them by lot: a sample in which hardly any comes again is one of very many, a sample in
    which all do has them all.
    """
    if scale <= 1 or seen >= rows:
        return round(seen * scale)
    low, high = float(seen), float(seen) * rows
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if _drawn(middle, rows) < seen else (low, middle)
    return round(_drawn(high, rows * scale))


def _drawn(of: float, draws: float) -> float:
    """How many different ones so many draws out of ``of`` bring to light, on average."""
    return -of * math.expm1(-draws / of)


# --- what a run would take ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Total:
    """Several files together, as one run would find them.

    Attributes:
        files, unusable: how many there are, and how many of them a run would refuse.
        rows: physical records of the others; predicted unless ``rows_exact``.
        new, changed, unchanged: the days of the others; one that any file changes is changed.
        to_come: those that have not begun.
        sampled_rows, refused: records looked at, and how many of these would be quarantined.
        seconds, memory_mb, decisions: what a run would take for the days that are new or changed.
    """

    files: int
    unusable: int
    rows: int
    rows_exact: bool
    new: tuple[str, ...]
    changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    to_come: tuple[str, ...]
    sampled_rows: int
    refused: int
    seconds: float
    memory_mb: int
    decisions: Mapping[str, memory.Decision]


def in_all(config: PipelineConfig, plans: Sequence[FilePlan]) -> Total:
    """What a run over all of these files would find and take."""
    usable = [plan for plan in plans if not plan.is_refused]
    new = {day for plan in usable for day in plan.new}
    changed = {day for plan in usable for day in plan.changed}
    due = new | changed
    read = [plan for plan in usable if not due.isdisjoint(plan.days)]
    return Total(
        files=len(plans),
        unusable=len(plans) - len(usable),
        rows=sum(plan.rows for plan in usable),
        rows_exact=all(plan.rows_exact for plan in usable),
        new=tuple(sorted(new)),
        changed=tuple(sorted(changed)),
        unchanged=tuple(sorted({day for plan in usable for day in plan.unchanged} - due)),
        to_come=tuple(sorted({day for plan in usable for day in plan.to_come})),
        sampled_rows=sum(plan.sampled_rows for plan in usable),
        refused=sum(plan.refused for plan in usable),
        **_needs(config, read, due, memory.available(config.memory))._asdict(),
    )


class _Needs(NamedTuple):
    """What one run takes, CPU seconds and the peak of its process, and how it would work on each day."""

    seconds: float
    memory_mb: int
    decisions: dict[str, memory.Decision]


def _needs(config: PipelineConfig, plans: Iterable[FilePlan], days: Collection[str], available: int) -> _Needs:
    """What a run over these files takes that makes these of their days."""
    events: Counter[str] = Counter()
    seconds, user_days, lengths = _START_SECONDS + _SECONDS_PER_DAY * len(days), 0, []
    for plan in plans:
        events.update({day: n for day, n in plan.events.items() if day in days})
        user_days += plan.user_days
        cost = _EXACT_SECONDS_PER_ROW if plan.lane == "exact" else _FAST_SECONDS_PER_ROW
        seconds += _SECONDS_PER_FILE + cost * plan.rows
        lengths += [] if plan.user_length is None else [plan.user_length]
    held = min(max(events.values(), default=0), memory.EAGER_ROWS)
    length = max(lengths, default=None)
    return _Needs(
        seconds=round(seconds + _SECONDS_PER_USER_DAY * user_days, 1),
        memory_mb=round(_START_MB + (_BYTES_PER_ROW_OF_A_DAY * held + _BYTES_PER_USER_DAY * user_days) / 1e6),
        decisions={
            day: memory.decide(rows, memory.needed(rows, length), available, config.memory)
            for day, rows in sorted(events.items())
        },
    )
