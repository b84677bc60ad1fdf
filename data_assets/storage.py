"""Where tables are kept and how a day is replaced whole: the lake (Parquet), the warehouse (DuckDB), the day log.

Here: files, locks, transactions, pointers and what a checkpoint writes over, without Dagster. Not here: what the tables
hold (``contracts.py``), how an asset's result reaches them (``io_managers.py``), which days need work (``landing.py``).

The lake keeps immutable versions named by their content and one small pointer per partition. A reader resolves the
pointer once and then holds names that never change, so it sees the old day or the new day and never waits. The file
``data.parquet`` beside it is a hard link to the same version, for readers outside this project.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import hashlib
import io
import json
import math
import os
import random
import re
import shutil
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import polars as pl
from filelock import FileLock, Timeout

from data_assets import runs
from data_assets.contracts import PIPELINE_RUNS, Table, tables
from data_assets.engine import chosen, set_switches
from data_assets.errors import ContractError, StorageBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import duckdb

    from data_assets.contracts import UserIdType

POINTER = ".current.json"
VERSIONS = ".versions"
FINISHED = "finished"
REFUSED = "refused"  # in place of a fingerprint: no content of the files matches it, so the day stays due
BATCH = 65_536  # about so many rows go into the warehouse, or come out of it, at a time
WAREHOUSE_MEMORY = "128MB"  # else it keeps what it wrote: 40 MB more at 2.4 million users, at the same CPU
MOST_AT_ONCE = 262_144  # so many come out of it at once
HEADERS, BLOCKS = (8_192, 4_096), 12_288  # of a DuckDB file: length and place of its two headers, place of its blocks
GRACE_SECONDS = 24 * 3600  # a version that nobody points to is kept this long, for readers that already opened it
ROW_GROUP, LEAST_GROUP = 524_288, 16_384  # small enough to prune and to stream, measured in docs/decisions/0002
GROUP_CELLS, GROUP_BYTES = 2**22, 64 << 20  # of more than 8 columns, or of long texts, a row group has fewer rows
RECORD, RECORD_BYTES = "record", 512  # what a refused row is taken to hold of texts
LOOKED_AT = 100  # so many rows tell how long the texts are


def written_as(contract: Table, frame: pl.LazyFrame) -> dict[str, Any]:
    """How a day of a table is written, for ``sink_parquet``; the same for the same rows in the same order."""
    length = RECORD_BYTES if RECORD in contract.names else 0.0  # the texts of other tables are few
    return parquet_options(len(frame.collect_schema()), text_length(frame) if contract.is_open else length)


def parquet_options(columns: int, text_length: float = 0.0) -> dict[str, Any]:
    """How a day of so many columns is written, and of texts that are so long together, for ``sink_parquet``."""
    size = max(LEAST_GROUP, min(row_group(columns), int(GROUP_BYTES // max(1.0, text_length))))
    return {"compression": "zstd", "compression_level": 1, "statistics": True, "row_group_size": size}


def arrow_schema(schema: pl.Schema) -> dict[str, str]:
    """What a Parquet file of this schema says of its columns' types, to be said of enumerations written as texts."""
    file = io.BytesIO()
    pl.DataFrame(schema=schema).write_parquet(file)
    file.seek(0)
    return {name: text for name, text in pl.read_parquet_metadata(file).items() if name == "ARROW:schema"}


def text_length(frame: pl.LazyFrame) -> float:
    """Mean bytes of the texts of a row, all columns together, by the first rows; the same for the same rows."""
    texts = [name for name, dtype in frame.collect_schema().items() if dtype == pl.String]
    lengths = frame.select(texts).head(LOOKED_AT).select(pl.all().str.len_bytes().mean())
    return sum(mean or 0.0 for mean in lengths.collect(engine=chosen()).row(0)) if texts else 0.0


def row_group(columns: int) -> int:
    """The rows of a row group that has so many columns, if its texts are short."""
    return max(LEAST_GROUP, min(ROW_GROUP, GROUP_CELLS // max(1, columns)))


def fsync_path(path: Path) -> None:
    """Force a file's bytes, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def content_hash(path: Path) -> str:
    """SHA-256 of the file's bytes, hex: what processors have an instruction for, twice as fast as BLAKE2b there."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a small text file; a reader finds the old text or the new one.

    Args:
        path: the file; its folder is made.
        text: the new content.
        durable: whether the new text must survive a power cut once this returns.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("w", encoding="utf-8") as out:
            out.write(text)
            if durable:
                out.flush()
                os.fsync(out.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_path(path.parent)


@dataclass(frozen=True)
class Version:
    """One immutable version of a partition: its file, its rows and what was noted when it was written."""

    path: Path
    rows: int
    size: int
    notes: Mapping[str, str]


class Lake:
    """Parquet partitions below ``root``: ``<table>/date=YYYY-MM-DD/data.parquet``, or ``<table>/data.parquet``."""

    def __init__(self, root: Path, lock_timeout: float = 600.0) -> None:
        set_switches()
        self.root = root
        self.lock_timeout = lock_timeout

    def folder(self, table: str, day: str | None) -> Path:
        """The partition's folder."""
        return self.root / table if day is None else self.root / table / f"date={day}"

    def current(self, table: str, day: str | None) -> Version | None:
        """The version that readers see now; None when the partition was never written."""
        folder = self.folder(table, day)
        try:
            found = json.loads((folder / POINTER).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Version(folder / VERSIONS / found["file"], found["rows"], found["size"], found["notes"])

    def notes(self, table: str, day: str) -> Mapping[str, str]:
        """What was noted when the day was written; empty when it never was."""
        version = self.current(table, day)
        return version.notes if version else {}

    def days(self, table: str) -> list[str]:
        """Days that have a partition, ascending."""
        try:
            names = [entry.name for entry in (self.root / table).iterdir()]
        except FileNotFoundError:
            return []
        found = (n.removeprefix("date=") for n in names if n.startswith("date="))
        return sorted(d for d in found if (self.folder(table, d) / POINTER).exists())

    def scan(self, contract: Table, days: Iterable[str | None]) -> pl.LazyFrame:
        """The rows of the given days in one scan; days that were never written add none."""
        versions = [v for v in (self.current(contract.name, d) for d in days) if v is not None]
        return scan_versions(contract, versions) if versions else contract.empty().lazy()

    def write(
        self,
        contract: Table,
        day: str | None,
        frame: pl.LazyFrame,
        notes: Mapping[str, str],
        ready: Path | None = None,
    ) -> Version:
        """Replace a partition by ``frame``, streamed; on any failure the old version stays.

        A file that already is what would be written (``ready``, see ``DayFrame``) is taken over.

        Raises:
            ContractError: the frame's columns or types are not the contract's.
            StorageBusyError: another writer holds the partition for longer than the deadline.
        """
        frame = contract.conform(frame, day)
        folder = self.folder(contract.name, day)
        versions = folder / VERSIONS
        versions.mkdir(parents=True, exist_ok=True)
        with self._locked(folder):
            temporary = versions / f".{uuid.uuid4().hex}.tmp"
            try:
                if ready is None:
                    # Opened here: of a query that failed, the engine may open a path after it was taken away below.
                    with temporary.open("xb") as file:
                        frame.sink_parquet(file, **written_as(contract, frame))
                else:
                    shutil.move(ready, temporary)
                fsync_path(temporary)
                rows = rows_of([temporary])
                version = Version(
                    versions / f"{content_hash(temporary)}.parquet", rows, temporary.stat().st_size, notes
                )
                temporary.replace(version.path)
            finally:
                temporary.unlink(missing_ok=True)
            fsync_path(versions)
            before = self.current(contract.name, day)
            if before is not None:  # its grace begins now, however old it is: a reader may just have resolved it
                with contextlib.suppress(FileNotFoundError):
                    os.utime(before.path)
            self._point(folder, version)
            self._sweep(folder, keep=version.path)
        return version

    def _point(self, folder: Path, version: Version) -> None:
        """Make ``version`` the current one: the pointer first (our readers), then the link (everybody else's)."""
        pointer = {"file": version.path.name, "rows": version.rows, "size": version.size, "notes": dict(version.notes)}
        link = folder / f".{uuid.uuid4().hex}.tmp"
        try:
            link.hardlink_to(version.path)
            write_atomically(folder / POINTER, json.dumps(pointer, sort_keys=True))
            link.replace(folder / "data.parquet")
        finally:
            # POSIX: renaming a link over another link to the same file does nothing, so the name may remain.
            link.unlink(missing_ok=True)
        fsync_path(folder)

    def _sweep(self, folder: Path, keep: Path) -> None:
        """Drop versions and torn temporary files that nobody can still be reading."""
        for path in (*(folder / VERSIONS).iterdir(), *folder.glob(".*.tmp")):
            if path != keep and time.time() - path.stat().st_mtime > GRACE_SECONDS:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        try:
            with FileLock(folder / ".lock", timeout=self.lock_timeout):
                yield
        except Timeout as error:
            raise StorageBusyError(
                f"{folder.parent.name}/{folder.name} is being written by another run "
                f"(waited {self.lock_timeout:.0f} s).",
                "Nothing was changed. Wait for that run, or look for one that hangs, then run the day again.",
            ) from error


def scan_versions(contract: Table, versions: Iterable[Version]) -> pl.LazyFrame:
    """The rows of some versions of a table, at least one, in one scan."""
    return pl.scan_parquet(
        [v.path for v in versions],
        glob=False,
        hive_partitioning=False,
        missing_columns="insert" if contract.is_open else "raise",
        extra_columns="ignore" if contract.is_open else "raise",
    )


@dataclass(frozen=True)
class DayFrame:
    """A day's rows on their way to the lake.

    Attributes:
        frame: the rows.
        notes: what is to be noted beside them, text to text.
        ready: a file of exactly these rows and columns, written as days are, that may be taken away.
    """

    frame: pl.LazyFrame
    notes: Mapping[str, str]
    ready: Path | None = None


@dataclass(frozen=True)
class Finding:
    """What a check of one table and day found.

    Attributes:
        observed: the finding in words and figures, escaped, fit for people.
        severity: ERROR when numbers below would be wrong, else WARN.
        figures: numbers behind it, by name, to be followed over the days.
    """

    name: str
    passed: bool
    observed: str
    severity: Literal["ERROR", "WARN"] = "ERROR"
    figures: Mapping[str, float] = field(default_factory=dict)


class DayLog:
    """What became of each day: what each table's checks found, whether it was refused, and which input is finished.

    Kept as small files below the lake (``.days/``), so that a later run of a downstream table knows that the day above
    it was refused, and ``run`` and the sensor know what is left to do. Lost files cost at most work done again.
    """

    def __init__(self, lake_root: Path) -> None:
        self.root = lake_root / ".days"

    def record(
        self, table: str, day: str, findings: Sequence[Finding], refused: str | None = None, *, is_due: bool = True
    ) -> None:
        """Note what the checks of ``table`` found for ``day``, and why the day was refused, if it was.

        A refused day is due until a run finishes it, also when the files are again those of the last good run: what
        stands below would otherwise stay refused with nothing left to do. Not so when ``is_due`` is False: a day that
        could not be published needs to be published, not to be made.
        """
        content = {"refused": refused, "findings": [vars(f) for f in findings]}
        write_atomically(self.root / table / f"{day}.json", json.dumps(content, sort_keys=True), durable=False)
        if refused is not None and is_due and self._mark(FINISHED, day) != REFUSED:
            self.finish(day, REFUSED)

    def refusals(self, table: str, days: Iterable[str]) -> dict[str, str]:
        """Those of ``days`` that the table refused, with the reasons."""
        found = ((day, self._read(table, day)) for day in days)
        return {day: noted["refused"] for day, noted in found if noted and noted["refused"]}

    def findings(self, table: str, day: str) -> list[Finding]:
        """What the checks found when the day was last worked on."""
        noted = self._read(table, day)
        return [Finding(**f) for f in noted["findings"]] if noted else []

    def finish(self, day: str, fingerprint: str, of: str = FINISHED) -> None:
        """Note that every table of ``day`` was made from the input with this fingerprint; or ``of`` something else."""
        write_atomically(self.root / of / f"{day}.json", json.dumps({"fingerprint": fingerprint}))

    def finished(self, of: str = FINISHED) -> dict[str, str]:
        """Days that were worked on, with the fingerprint of the input they are finished with, or ``REFUSED``."""
        try:
            names = [entry.name for entry in (self.root / of).iterdir()]
        except FileNotFoundError:
            return {}
        days = sorted(n.removesuffix(".json") for n in names if n.endswith(".json") and not n.startswith("."))
        found = ((day, self._mark(of, day)) for day in days)
        return {day: mark for day, mark in found if mark is not None}

    def _mark(self, of: str, day: str) -> str | None:
        noted = self._read(of, day)
        return noted["fingerprint"] if noted else None

    def _read(self, table: str, day: str) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads((self.root / table / f"{day}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # torn by a power cut: as good as lost
            return None
        return content


class Undo:
    """What a checkpoint of DuckDB overwrites in place, kept in ``<database>.undo`` until the checkpoint is done.

    DuckDB writes rows beside those that are there, and the header that points to them last. But new pieces of its
    catalogue, 4 KB each, go into free places of the blocks where the present ones lie, and such a block is written
    whole, over itself: who is killed in the middle of that leaves a file that no longer opens. See decision 0002.

    To save holds the database open until the end of the block: closing a file gives up the locks of the process on it.
    """

    def __init__(self, database: Path) -> None:
        self.database = database
        self.path = database.with_name(f"{database.name}.undo")
        self._held: int | None = None
        self._headers = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def save(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Keep the blocks that the next checkpoint may write over; ``connection`` uses the database."""
        if self._held is None:
            self._held = os.open(self.database, os.O_RDONLY)
        headers = os.pread(self._held, *HEADERS)
        found = connection.execute("SELECT block_id FROM pragma_metadata_info() WHERE free_blocks > 0").fetchall()
        if headers == self._headers or not found:
            return
        [(size,)] = connection.execute(
            "SELECT block_size FROM pragma_database_size() WHERE database_name = current_database()"
        ).fetchall()
        blocks = [block for (block,) in found]
        told = {"headers": hashlib.sha256(headers).hexdigest(), "size": size, "blocks": blocks}
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        try:
            with temporary.open("wb") as out:
                out.write(json.dumps(told).encode() + b"\n")
                for block in blocks:
                    out.write(os.pread(self._held, size, BLOCKS + block * size))
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_path(self.path.parent)
        self._headers = headers

    def restore(self) -> None:
        """Put the blocks back, if the header still points to them. Nobody may have the database open."""
        try:
            kept = self.path.open("rb")
        except FileNotFoundError:
            return
        with kept, contextlib.suppress(FileNotFoundError), self.database.open("r+b") as database:  # it may be gone
            told = json.loads(kept.readline())
            if hashlib.sha256(os.pread(database.fileno(), *HEADERS)).hexdigest() == told["headers"]:
                for block in told["blocks"]:
                    os.pwrite(database.fileno(), kept.read(told["size"]), BLOCKS + block * told["size"])
                os.fsync(database.fileno())
        self.drop()

    def drop(self) -> None:
        """The checkpoint is done."""
        self.path.unlink(missing_ok=True)


class Warehouse:
    """The DuckDB file: small tables with a ``date`` column, and views over the lake.

    One writer at a time: our own processes queue at a lock file; a foreign process that holds DuckDB's own lock is
    waited for until the deadline.
    """

    def __init__(
        self,
        path: Path,
        lake: Lake,
        *,
        user_id: UserIdType = "int64",
        trend_days: int = 14,
        lock_timeout: float = 600.0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.lake = lake
        self.tables = tables(user_id)
        self.trend_days = trend_days
        self.lock_timeout = lock_timeout
        self.settings = tuple(sorted((settings or {}).items()))

    @contextlib.contextmanager
    def connect(self, *, writes: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that nobody else of ours has at the same time.

        Args:
            writes: it is for more than reading; a commit of many rows is a checkpoint.

        Raises:
            StorageBusyError: somebody else has the file open for longer than the deadline.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._locked())
            undo = stack.enter_context(Undo(self.path))
            engine = _started(self.path, self.settings, os.getpid())
            stack.callback(_detach, engine, undo)  # others may have the file then
            self._attach(engine, self.path)
            connection = stack.enter_context(contextlib.closing(engine.cursor()))
            connection.execute("USE warehouse")
            if writes:
                undo.save(connection)
            yield connection
            log = self.path.with_name(f"{self.path.name}.wal")
            if log.exists() and log.stat().st_size:  # to detach will be a checkpoint
                undo.save(connection)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else of ours writes meanwhile; what a checkpoint that was interrupted has overwritten is put back."""
        try:
            lock = FileLock(f"{self.path}.lock", timeout=self.lock_timeout).acquire()
        except Timeout as error:
            raise self._busy() from error
        with lock:
            Undo(self.path).restore()
            yield

    def _busy(self) -> StorageBusyError:
        return StorageBusyError(
            f"{self.path.name} is held by another process or connection (waited {self.lock_timeout:.0f} s).",
            "Close the program that has the file open (its process number stands in the error above), then run again.",
        )

    @contextlib.contextmanager
    def reader(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that sees every table, can change nothing that is stored and reaches no other file.

        Lake tables are read through their pointers, so a run may replace days meanwhile, and through Arrow: a folder
        that DuckDB may read is a folder that it may write.

        Raises:
            StorageBusyError: a run holds the warehouse for longer than the deadline.
        """
        if Undo(self.path).path.exists():
            with self._locked():
                pass
        connection = self._session(self.path, lambda _: None)
        try:
            yield connection
        finally:
            connection.close()

    def session(
        self, scratch: Path, complete: Callable[[duckdb.DuckDBPyConnection], None]
    ) -> duckdb.DuckDBPyConnection:
        """As ``reader``, but of a copy of the warehouse, so that no run waits for it; the caller closes it.

        Args:
            scratch: where the copy lies until it is open; it has no name from then on, and is gone with the session.
            complete: adds what else is to be seen, before nothing can be reached any more.

        Raises:
            StorageBusyError: a run writes for longer than the deadline.
        """
        if not self.path.exists():
            return self._session(self.path, complete)
        with scratch_folder(scratch) as folder:
            copied = folder / "copy.duckdb"
            with self._locked():
                for ending in ("", ".wal"):  # a killed run leaves a log, which belongs to the file
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copyfile(f"{self.path}{ending}", f"{copied}{ending}")
            return self._session(copied, complete)

    def _session(self, path: Path, complete: Callable[[duckdb.DuckDBPyConnection], None]) -> duckdb.DuckDBPyConnection:
        import duckdb

        connection = duckdb.connect()
        try:
            if path.exists():
                self._attach(connection, path, "(READ_ONLY)")
                self._show(connection)
            for contract in self.tables.values():
                if contract.store == "lake":
                    days: list[str | None] = list(self.lake.days(contract.name)) if contract.is_partitioned else [None]
                    versions = [v for v in (self.lake.current(contract.name, d) for d in days) if v is not None]
                    if versions:
                        connection.register(contract.name, _dataset([v.path for v in versions], contract))
            runs.add_to(connection, self.lake.root)
            complete(connection)
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
        except BaseException:
            connection.close()
            raise
        return connection

    def _attach(self, connection: duckdb.DuckDBPyConnection, path: Path, how: str = "") -> None:
        """Attach the file as ``warehouse``, as soon as no other process, and nothing else in this one, holds it."""
        import duckdb

        deadline = time.monotonic() + self.lock_timeout
        while True:
            try:
                connection.execute(f"ATTACH {_literal(str(path))} AS warehouse {how}").fetchall()
                break
            except (duckdb.IOException, duckdb.ResourceInUseException) as error:
                if isinstance(error, duckdb.IOException) and "lock" not in str(error).lower():
                    raise
                if time.monotonic() > deadline:
                    raise self._busy() from error
                time.sleep(0.05 + 0.2 * random.random())  # noqa: S311 - spreads waiting writers, guards nothing

    def _show(self, connection: duckdb.DuckDBPyConnection) -> None:
        """The attached tables under their own names."""
        for (name,) in connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE database_name = 'warehouse' AND table_name[1] != '_'"
        ).fetchall():
            statement = f'CREATE VIEW "{name}" AS SELECT * FROM warehouse."{name}"'  # noqa: S608 - our own names
            connection.execute(statement).fetchall()
        if _has_table(connection, "daily_kpis"):
            connection.execute(
                f"CREATE VIEW daily_kpis_compared AS {_COMPARED.format(days=self.trend_days)}"
            ).fetchall()

    def replace(self, contract: Table, frames: Mapping[str, pl.LazyFrame | pl.DataFrame]) -> dict[str, int]:
        """Replace the given days of a table in one transaction; on any failure all of them stay as they were.

        Returns:
            Rows written, by day.

        Raises:
            ContractError: a frame's columns or types are not the contract's, or a rule of the table is broken.
        """
        import duckdb

        rows: dict[str, int] = {}
        with self.connect(writes=True) as connection:
            is_new = not _has_table(connection, contract.name)  # to ask within the transaction would end it
            connection.begin()
            try:
                self._create(connection, contract, is_new=is_new)
                connection.execute(
                    f'DELETE FROM "{contract.name}" WHERE date IN (SELECT unnest(?::DATE[]))',  # noqa: S608 - own name
                    [list(frames)],
                ).fetchall()
                # DuckDB takes the variable for a table; what is registered instead is held until the transaction ends.
                for _incoming in _dated(contract, frames, rows):
                    connection.execute(f'INSERT INTO "{contract.name}" BY NAME SELECT * FROM _incoming').fetchall()  # noqa: S608
                connection.execute(
                    "DELETE FROM _written_days WHERE table_name = ? AND date IN (SELECT unnest(?::DATE[]))",
                    [contract.name, list(frames)],
                ).fetchall()
                connection.execute(
                    "INSERT INTO _written_days SELECT ?, unnest(?::DATE[])", [contract.name, list(frames)]
                ).fetchall()
                connection.commit()
            except duckdb.ConstraintException as error:
                connection.rollback()
                raise ContractError(
                    f"{contract.name}: a rule of the table is broken: {str(error).splitlines()[0]}",
                    "Nothing was written. Compare the function that made the frame with contracts.py.",
                    table=contract.name,
                ) from error
            except BaseException:
                with contextlib.suppress(duckdb.Error):  # a commit that failed has rolled back already
                    connection.rollback()
                raise
            self._create_views(connection)
        if sum(rows.values()) > MOST_AT_ONCE:
            _started.cache_clear()
        return rows

    def scan(self, contract: Table, days: Sequence[str]) -> dict[str, pl.LazyFrame]:
        """The given days of a table; a day that was never written is missing from the result, an empty day is not.

        Many rows are read when they are asked for, in batches and no more columns than are needed. Until they are read
        to their end nobody else has the warehouse.
        """
        if not self.path.exists():
            return {}
        with self.connect() as connection:
            if not _has_table(connection, contract.name):
                return {}
            counted = connection.execute(
                f'SELECT w.date, (SELECT count(*) FROM "{contract.name}" AS t WHERE t.date = w.date) '  # noqa: S608
                "FROM _written_days AS w WHERE table_name = ? AND date IN (SELECT unnest(?::DATE[]))",
                [contract.name, list(days)],
            ).fetchall()
            rows = {day.isoformat(): count for day, count in counted}
            if sum(rows.values()) > MOST_AT_ONCE:
                return {day: self._later(contract, day) for day in days if day in rows}
            frame = _select(connection, contract, days)
        parts = frame.partition_by("date", as_dict=True, include_key=False, maintain_order=True)
        found = {key[0].isoformat(): part for key, part in parts.items()}
        empty = contract.empty()
        return {day: found.get(day, empty).lazy() for day in days if day in rows}

    def _later(self, contract: Table, day: str) -> pl.LazyFrame:
        """One day, in the order in which it was written, read when it is asked for."""
        from polars.io.plugins import register_io_source

        def batches(
            names: list[str] | None, predicate: pl.Expr | None, most: int | None, _size: int | None
        ) -> Iterator[pl.DataFrame]:
            left = most
            with contextlib.ExitStack() as stack:
                stack.callback(_started.cache_clear)  # of so many rows, see there
                connection = stack.enter_context(self.connect())
                have = {name for name, *_ in connection.execute(f'DESCRIBE "{contract.name}"').fetchall()}
                wanted = [n for n in names or contract.names if n in have]
                listed = ", ".join(f'"{n}"' for n in wanted) or "date"
                # Without ORDER BY, which would hold all rows: a scan of one table keeps the order of insertion.
                query = f'SELECT {listed} FROM "{contract.name}" WHERE date = $day'  # noqa: S608
                for batch in connection.sql(query, params={"day": day}).to_arrow_reader(BATCH):
                    frame = _as_declared(batch, contract, names or contract.names)
                    frame = frame if predicate is None else frame.filter(predicate)
                    frame = frame if left is None else frame.head(left)
                    left = None if left is None else left - frame.height
                    yield frame
                    if left == 0:
                        return

        return register_io_source(batches, schema=contract.schema)

    def query_days(self, contract: Table, days: Sequence[str]) -> pl.DataFrame:
        """Rows of the given days with their ``date``, days ascending, each in the order in which it was written."""
        empty = contract.empty().insert_column(0, pl.Series("date", [], dtype=pl.Date))
        if not self.path.exists():
            return empty
        with self.connect() as connection:
            return _select(connection, contract, days) if _has_table(connection, contract.name) else empty

    def _create(self, connection: duckdb.DuckDBPyConnection, contract: Table, *, is_new: bool) -> None:
        connection.execute(_WRITTEN_DAYS)
        if is_new:
            for statement in (contract.ddl(), *contract.comments()):
                connection.execute(statement)
            return
        found = {name: kind for name, kind, *_ in connection.execute(f'DESCRIBE "{contract.name}"').fetchall()}
        expected = contract.duckdb_columns()
        if not found.items() <= expected.items():
            raise ContractError(
                f"{contract.name} in {self.path.name} has other columns than this version of the project writes.",
                "Move the warehouse file away and run the days again: it is rebuilt from the lake.",
                table=contract.name,
            )
        missing = [name for name in expected if name not in found]
        # An older version's table: null in its days until they are made again. DuckDB adds no column with a constraint.
        for name in missing:
            connection.execute(f'ALTER TABLE "{contract.name}" ADD COLUMN "{name}" {expected[name]}')
        for statement in contract.comments() if missing else ():
            connection.execute(statement)

    def _create_views(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Views over the lake and the comparison of days, made again only when their text changed."""
        views = self._views(connection)
        mark = hashlib.blake2b(json.dumps(views).encode(), digest_size=8).hexdigest()
        if _has_table(connection, "_views") and connection.execute("SELECT mark FROM _views").fetchall() == [(mark,)]:
            return
        connection.begin()
        for name, statement in views.items():
            connection.execute(f'CREATE OR REPLACE VIEW "{name}" AS {statement}')
        connection.execute("CREATE OR REPLACE TABLE _views AS SELECT ? AS mark", [mark])
        connection.commit()

    def _views(self, connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
        views = {}
        for contract in self.tables.values():
            if contract.store == "lake" and next((self.lake.root / contract.name).rglob("data.parquet"), None):
                pattern = "*/data.parquet" if contract.is_partitioned else "data.parquet"
                views[contract.name] = _over((self.lake.root / contract.name).resolve(), pattern, contract)
        history = runs.query(self.lake.root)
        if history is not None:
            views[PIPELINE_RUNS.name] = history
        if _has_table(connection, "daily_kpis"):
            views["daily_kpis_compared"] = _COMPARED.format(days=self.trend_days)
        return views


@functools.lru_cache(maxsize=1)
def _started(_warehouse: Path, settings: tuple[tuple[str, Any], ...], _process: int) -> duckdb.DuckDBPyConnection:
    """DuckDB without a file, kept for the next use of the same warehouse: to start it takes 16 ms, to attach a file 1.

    Not after many rows: it would keep 60 MB of what 2.4 million users took.
    """
    import duckdb

    engine = duckdb.connect(config=dict(settings))
    engine.execute(f"SET memory_limit = '{WAREHOUSE_MEMORY}'")
    return engine


# Which days of which table were written: tells an empty day from one that never was. Changes with the rows, if at all.
_WRITTEN_DAYS = "CREATE TABLE IF NOT EXISTS _written_days (table_name VARCHAR NOT NULL, date DATE NOT NULL)"

_COMPARED = """
WITH long AS (
    UNPIVOT (SELECT date, COLUMNS(* EXCLUDE date)::DOUBLE FROM daily_kpis) ON COLUMNS(* EXCLUDE date)
    INTO NAME kpi VALUE value
), before AS (
    SELECT now.date, now.kpi, now.value, median(earlier.value) AS usual, list(earlier.value) AS earlier_values
    FROM long AS now LEFT JOIN long AS earlier
      ON earlier.kpi = now.kpi AND earlier.date < now.date AND earlier.date >= now.date - INTERVAL {days} DAY
    GROUP BY ALL
), spread AS (
    SELECT *, 1.4826 * list_median([abs(v - usual) FOR v IN earlier_values IF v IS NOT NULL]) AS robust_spread
    FROM before
)
SELECT date, kpi, value, usual, robust_spread,
       CASE WHEN len(earlier_values) >= 5 THEN abs(value - usual) > 3 * robust_spread END AS is_unusual
FROM spread
"""


def _dated(
    contract: Table, frames: Mapping[str, pl.LazyFrame | pl.DataFrame], rows: dict[str, int]
) -> Iterator[pl.DataFrame]:
    """The days' rows with their ``date``, in batches, small days put together: an insert costs as much as 100 rows.

    ``rows`` is given each day's height.
    """
    held: list[pl.DataFrame] = []
    for day, frame in frames.items():
        rows[day] = 0
        date = pl.Series("date", [dt.date.fromisoformat(day)])
        there = contract.conform(frame.lazy(), day)
        if isinstance(frame, pl.DataFrame):
            batches: Iterable[pl.DataFrame] = there.collect(engine="in-memory").iter_slices(BATCH)
        else:
            batches = there.collect_batches(chunk_size=BATCH, maintain_order=True)
        for batch in batches:
            rows[day] += batch.height
            held.append(batch.insert_column(0, date.new_from_index(0, batch.height)))
            if sum(part.height for part in held) >= BATCH:
                yield pl.concat(held)
                held.clear()
    if held:
        yield pl.concat(held)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _over(folder: Path, pattern: str, contract: Table) -> str:
    """A query over the Parquet files of a lake table; their day comes from the folder's name."""
    escaped = re.sub(r"[*?[]", r"[\g<0>]", str(folder))
    files = _literal(f"{escaped}/{pattern}")
    options = ", hive_partitioning = true, hive_types = {'date': DATE}" if contract.is_partitioned else ""
    return f"SELECT * FROM read_parquet({files}{options}{', union_by_name = true' if contract.is_open else ''})"  # noqa: S608


def _dataset(paths: Sequence[Path], contract: Table) -> Any:  # noqa: ANN401 - pyarrow has no types
    """The same as a lazy Arrow data set."""
    import pyarrow as pa
    from pyarrow import dataset, parquet

    schema = pa.unify_schemas([parquet.read_schema(p) for p in (paths if contract.is_open else paths[:1])])
    partitioning = None
    if contract.is_partitioned:
        date = pa.schema([("date", pa.date32())])
        schema = pa.schema([f for f in schema if f.name != "date"] + list(date))
        partitioning = dataset.partitioning(date, flavor="hive")
    return dataset.dataset([str(p) for p in paths], schema=schema, format="parquet", partitioning=partitioning)


def _select(connection: duckdb.DuckDBPyConnection, contract: Table, days: Sequence[str]) -> pl.DataFrame:
    """Rows of some days with their ``date``."""
    query = f'SELECT * FROM "{contract.name}" WHERE date IN (SELECT unnest(?::DATE[])) ORDER BY date, rowid'  # noqa: S608
    return _as_declared(
        connection.sql(query, params=[list(days)]).to_arrow_table(), contract, ["date", *contract.names]
    )


def _as_declared(found: Any, contract: Table, names: Sequence[str]) -> pl.DataFrame:  # noqa: ANN401 - no types
    """Rows of Arrow with these columns, in the contract's types; null where an older version's table has none."""
    frame = pl.from_arrow(found)
    if not isinstance(frame, pl.DataFrame):
        raise TypeError("an Arrow table became a Series")
    types = {"date": pl.Date(), **contract.schema}
    return frame.select(
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(types[name]).alias(name) for name in names
    )


def _detach(engine: duckdb.DuckDBPyConnection, undo: Undo) -> None:
    """Let go of the warehouse, which is a checkpoint where something was written."""
    engine.execute("DETACH DATABASE IF EXISTS warehouse")
    undo.drop()


def _has_table(connection: duckdb.DuckDBPyConnection, name: str) -> bool:
    """Whether there is such a table: asking for nothing of it costs a tenth of asking the catalogue."""
    import duckdb

    try:
        connection.execute(f'SELECT 1 FROM "{name}" LIMIT 0').fetchall()  # noqa: S608 - own name
    except duckdb.CatalogException:
        return False
    return True


_FLOATS = ("FLOAT", "DOUBLE")
_NUMBERS = ("INT32", "INT64", *_FLOATS)


def rows_of(files: Iterable[Path]) -> int:
    """The rows of Parquet files, by their footers; for the engine to begin a scan takes twenty times as long."""
    from pyarrow import parquet

    return sum(parquet.read_metadata(path).num_rows for path in files)


def extremes(path: Path, names: Sequence[str]) -> dict[str, pl.Series] | None:
    """The lowest and the highest number of each row group in these columns, by the footer of a Parquet file.

    And a null where values are missing, which is all that is told of columns of other types; and of floats, whose
    extremes leave it out, what is not a number, as it might be there. ``None`` where the footer does not tell, or of no
    number.
    """
    told = _statistics(path)
    columns = {}
    for name in names:
        if name not in told:
            return None
        column, found = told[name]
        if not all(s is not None and s.has_null_count for s in found):
            return None
        known: list[float] = []
        if column.physical_type in _NUMBERS and column.logical_type.type in {"NONE", "INT"}:
            known = [end for s in found if s.has_min_max for end in (s.min, s.max)]
            if not known or not all(s.has_min_max or not s.num_values for s in found):
                return None
            known += [math.nan] if column.physical_type in _FLOATS else []
        columns[name] = pl.Series(name, [*known, None] if any(s.null_count for s in found) else known)
    return columns


def whole_numbers(path: Path, names: Sequence[str]) -> dict[str, tuple[int, int, int | None, int | None]]:
    """Of columns of whole numbers, times or nulls: how many there are, nulls, the lowest, the highest; by the footer.

    Times are told in their unit since 1970. Any other column, or of which the footer tells less, is left out.
    """
    columns = {}
    for name, (column, found) in _statistics(path).items():
        is_number = column.physical_type == "INT64" and column.logical_type.type in {"NONE", "INT", "TIMESTAMP"}
        is_told = all(
            s is not None and s.has_null_count and (not s.num_values or (is_number and s.has_min_max)) for s in found
        )
        if name in names and is_told:
            ends = [(s.min_raw, s.max_raw) for s in found if s.num_values]
            columns[name] = (
                sum(s.num_values for s in found),
                sum(s.null_count for s in found),
                min((low for low, _ in ends), default=None),
                max((high for _, high in ends), default=None),
            )
    return columns


def rows_within(path: Path, names: Sequence[str], most_bytes: int) -> int:
    """How many rows of these columns of a Parquet file are so many bytes, by its footer; at least a thousandth."""
    from pyarrow import parquet

    footer = parquet.read_metadata(path)
    groups = (footer.row_group(number) for number in range(footer.num_row_groups))
    chunks = (group.column(place) for group in groups for place in range(group.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names)
    rows = int(footer.num_rows)
    return max(1, -(-rows // 1_000), min(rows, rows * most_bytes // max(1, int(size))))


def _statistics(path: Path) -> dict[str, tuple[Any, list[Any]]]:
    """By column of a Parquet file its type and what the footer tells of each row group, as pyarrow has them."""
    from pyarrow import parquet

    footer = parquet.read_metadata(path)
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    columns = [footer.schema.column(place) for place in range(footer.num_columns)]
    return {c.path: (c, [group.column(place).statistics for group in groups]) for place, c in enumerate(columns)}


@contextlib.contextmanager
def scratch_folder(scratch: Path) -> Iterator[Path]:
    """A folder of one's own below ``scratch``, removed at the end."""
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        yield Path(folder)


def sweep_scratch(scratch: Path, older_than_seconds: float = GRACE_SECONDS) -> None:
    """Remove what killed runs left in the scratch folder."""
    if not scratch.is_dir():
        return
    for entry in os.scandir(scratch):
        if time.time() - entry.stat().st_mtime > older_than_seconds:
            shutil.rmtree(entry.path, ignore_errors=False)
