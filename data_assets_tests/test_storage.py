"""The stores under what goes wrong: processes that are killed, that meet, that hold a file; readers during rewrites.

Here: ``data_assets/storage.py`` on real files and in real processes. Not here: what reaches it through Dagster
(``test_io_managers.py``).
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest

from data_assets import assets, metrics, storage
from data_assets.contracts import tables
from data_assets.errors import ContractError, StorageBusyError
from data_assets.storage import (
    GRACE_SECONDS,
    REFUSED,
    DayLog,
    Finding,
    Lake,
    Undo,
    Warehouse,
    fsync_path,
    scratch_folder,
    sweep_scratch,
    write_atomically,
)

DAY, NEXT = "2024-05-06", "2024-05-07"
RECORDS, EVENTS, SESSIONS = (tables()[n] for n in ("quarantined_events", "raw_events", "session_metrics"))
KILLS = 12


class Both:
    """The lake and the warehouse behind the same three calls. Its source is also run in child processes."""

    def __init__(self, which, folder):
        self.is_lake = which == "lake"
        self.contract = tables()["quarantined_events" if self.is_lake else "session_metrics"]
        self.number = "source_line" if self.is_lake else "total_sessions"
        self.lake = Lake(Path(folder) / "lake", lock_timeout=60)
        self.warehouse = Warehouse(Path(folder) / "warehouse.duckdb", self.lake, lock_timeout=60)

    def version(self, number):
        """A day whose every row holds the number, and whose height follows from it."""
        fill = {"Int64": 0, "Float64": 0.5, "String": "some text", "List(String)": ["a", "b"], "Date": None}
        columns = {name: pl.lit(fill[str(kind)], kind) for name, kind in self.contract.schema.items()}
        columns[self.number] = pl.lit(number, pl.Int64)
        key = "source_file" if self.is_lake else "user_id"
        columns[key] = pl.col("row").cast(self.contract.schema[key])
        return pl.LazyFrame({"row": range(2000 + number % 7)}).select(e.alias(name) for name, e in columns.items())

    def write(self, day, frame):
        if self.is_lake:
            self.lake.write(self.contract, day, frame, {})
        else:
            self.warehouse.replace(self.contract, {day: frame})

    def read(self, day):
        if self.is_lake:
            return self.lake.scan(self.contract, [day]).collect()
        return self.warehouse.scan(self.contract, [day])[day].collect()

    def whole(self, frame):
        """The number of the version that the frame is, which must be all of it and nothing else."""
        (number,) = frame[self.number].unique().to_list()
        key = frame["source_file" if self.is_lake else "user_id"]
        assert key.n_unique() == frame.height == 2000 + number % 7
        return number


CHILD = f"""
import resource, sys, time
from pathlib import Path
import polars as pl
from data_assets.contracts import tables
from data_assets import storage
from data_assets.storage import Lake, Warehouse

{inspect.getsource(Both)}

def slowly(frame):
    from polars.io.plugins import register_io_source

    rows = frame.collect()

    def source(with_columns, predicate, n_rows, batch_size):
        began = time.monotonic()
        yield rows.head(100)
        time.sleep(0.4)
        yield rows.tail(-100)
        print(began, time.monotonic(), flush=True)

    return register_io_source(source, schema=rows.schema)

which, folder, day, number, mode = sys.argv[1:]
both, number = Both(which, folder), int(number)
if mode == "once":
    frame = slowly(both.version(number))
    print("ready", flush=True)
    sys.stdin.readline()
    both.write(day, frame)
if mode == "disk full":
    limit = 2**11 if both.is_lake else 2**19
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        both.write(day, pl.concat([both.version(n) for n in range(20)]))
    except Exception as error:
        print(error)
while mode == "on and on":
    both.write(day, both.version(number))
    print(number, flush=True)
    number += 1
"""
HOLD_LOCK = "from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire()"
HOLD_DUCKDB = "import duckdb; connection = duckdb.connect(sys.argv[1])"


@contextlib.contextmanager
def child(code, *arguments):
    """A process that is gone at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"POLARS_MAX_THREADS": "1"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def held(how, path):
    with child(f"import sys; {how}; print('held', flush=True); sys.stdin.read()", path) as process:
        assert process.stdout.readline() == "held\n"
        yield process


@pytest.fixture(params=["lake", "warehouse"])
def both(request, tmp_path):
    return Both(request.param, tmp_path)


def which(both):
    return "lake" if both.is_lake else "warehouse"


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


# ---- several processes -------------------------------------------------------------------------------------------


def test_a_writer_killed_at_any_moment_leaves_the_old_day_or_the_new_one(both, tmp_path):
    """What was acknowledged is there; what was not is there whole or not at all; the next writer is not hindered."""
    moments = random.Random(2024)
    both.write(NEXT, both.version(1))
    number = 100
    for _ in range(KILLS):
        with child(CHILD, which(both), tmp_path, DAY, number, "on and on") as writer:
            acknowledged = [int(writer.stdout.readline())]
            time.sleep(moments.uniform(0, 0.08))
            writer.kill()
            acknowledged += [int(line) for line in writer.stdout]
        with both.warehouse.reader() as connection:  # before any writer could have tidied up
            outside = both.whole(connection.sql(f"FROM {both.contract.name} WHERE date = '{DAY}'").pl())
        assert outside in (acknowledged[-1], acknowledged[-1] + 1)
        assert both.whole(both.read(DAY)) == outside
        number = outside + 1
        if both.is_lake:
            plain = duckdb.sql(f"FROM '{both.lake.folder(both.contract.name, DAY)}/data.parquet'").pl()
            assert both.whole(plain) in (acknowledged[-1], acknowledged[-1] + 1)
    both.write(DAY, both.version(7))
    assert both.whole(both.read(DAY)) == 7
    assert both.whole(both.read(NEXT)) == 1


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A warehouse whose last checkpoint is to be told apart: its files right before, and the database after it."""
    both, saved = Both("warehouse", tmp_path), tmp_path / "before"

    class Engine:
        def __init__(self, real):
            self.real = real

        def cursor(self):
            return self.real.cursor()

        def execute(self, statement):
            if statement.startswith("DETACH"):
                shutil.copytree(tmp_path, saved, ignore=shutil.ignore_patterns("before"), dirs_exist_ok=True)
            return self.real.execute(statement)

    started = storage._started
    monkeypatch.setattr(storage, "_started", lambda *given: Engine(started(*given)))
    for number in range(1, 5):
        both.write(DAY, both.version(number))
    monkeypatch.setattr(storage, "_started", started)
    return both, saved


def test_a_checkpoint_that_was_killed_while_it_wrote_over_a_block_is_undone(interrupted, tmp_path):
    both, saved = interrupted
    path = both.warehouse.path
    before, after = bytearray((saved / path.name).read_bytes()), path.read_bytes()
    told = json.loads((saved / f"{path.name}.undo").read_bytes().partition(b"\n")[0])
    for block in told["blocks"]:  # of each the first page alone came to be written
        at = storage.BLOCKS + block * told["size"]
        assert before[at : at + 4096] != after[at : at + 4096]
        before[at : at + 4096] = after[at : at + 4096]
    path.write_bytes(before)
    for ending in (".wal", ".undo"):
        shutil.copy(saved / f"{path.name}{ending}", tmp_path)
    with duckdb.connect() as other, pytest.raises(duckdb.Error, match="Corrupt database"):
        other.execute(f"ATTACH '{path}' AS torn (READ_ONLY)")
    with both.warehouse.reader() as connection:
        assert both.whole(connection.sql(f"FROM {both.contract.name} WHERE date = '{DAY}'").pl()) == 4
    assert not Undo(path).path.exists()
    both.write(DAY, both.version(5))
    assert both.whole(both.read(DAY)) == 5


def test_a_checkpoint_that_came_to_its_end_is_not_undone(interrupted, tmp_path):
    both, saved = interrupted
    path = both.warehouse.path
    assert not Undo(path).path.exists()
    shutil.copy(saved / f"{path.name}.undo", tmp_path)
    content = path.read_bytes()
    with both.warehouse.reader():
        assert path.read_bytes() == content
    assert both.whole(both.read(DAY)) == 4
    shutil.copy(saved / f"{path.name}.undo", tmp_path)
    path.unlink()  # as somebody may who wants it made again
    assert both.warehouse.scan(both.contract, [DAY]) == {}
    both.write(DAY, both.version(5))
    assert both.whole(both.read(DAY)) == 5


def test_two_writers_of_one_day_take_turns(both, tmp_path):
    arguments = (which(both), tmp_path, DAY)
    with child(CHILD, *arguments, 1, "once") as one, child(CHILD, *arguments, 2, "once") as two:
        for process in (one, two):
            assert process.stdout.readline() == "ready\n"
        turns = []
        for process in (one, two):
            process.stdin.write("go\n")
            process.stdin.flush()
        for number, process in ((1, one), (2, two)):
            began, ended = map(float, process.stdout.readline().split())
            turns.append((began, ended, number))
            assert process.wait(timeout=30) == 0
    (_, first_ended, _), (second_began, _, last) = sorted(turns)
    assert first_ended <= second_began
    assert both.whole(both.read(DAY)) == last


def test_a_reader_during_rewrites_sees_only_whole_versions(tmp_path):
    both = Both("lake", tmp_path)
    seen = []
    with child(CHILD, "lake", tmp_path, DAY, 1, "on and on") as writer:
        assert writer.stdout.readline() == "1\n"
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            seen.append(both.whole(both.read(DAY)))
            if len(seen) % 20 == 0:
                with both.warehouse.reader() as connection:
                    seen.append(both.whole(connection.sql("FROM quarantined_events").pl()))
    assert seen == sorted(seen)
    assert len(set(seen)) > 5


def test_a_full_disk_keeps_the_old_day_and_is_named(both, tmp_path):
    both.write(DAY, both.version(1))
    with child(CHILD, which(both), tmp_path, DAY, 2, "disk full") as writer:
        said, _ = writer.communicate()
    assert "File too large" in said
    assert both.whole(both.read(DAY)) == 1
    assert not list(tmp_path.rglob("*.tmp"))
    both.write(DAY, both.version(3))
    assert both.whole(both.read(DAY)) == 3


# ---- the lake ----------------------------------------------------------------------------------------------------


def versions_of(lake, contract=RECORDS):
    return sorted(p.name for p in (lake.folder(contract.name, DAY) / ".versions").iterdir())


def test_a_scan_holds_the_version_that_it_found(tmp_path):
    both = Both("lake", tmp_path)
    both.write(DAY, both.version(1))
    scan = both.lake.scan(RECORDS, [DAY])
    both.write(DAY, both.version(2))
    assert both.whole(scan.collect()) == 1


def test_a_scan_of_an_old_day_survives_its_replacement(tmp_path):
    """The grace runs from the replacement: a version's own age says nothing about who reads it."""
    both = Both("lake", tmp_path)
    both.write(DAY, both.version(1))
    age(both.lake.current(RECORDS.name, DAY).path, 2 * GRACE_SECONDS)
    scan = both.lake.scan(RECORDS, [DAY])
    both.write(DAY, both.version(2))
    assert both.whole(scan.collect()) == 1


def test_old_versions_and_torn_files_are_swept_after_their_grace(tmp_path):
    both = Both("lake", tmp_path)
    folder = both.lake.folder(RECORDS.name, DAY)
    for number in (1, 2, 3):
        both.write(DAY, both.version(number))
    assert len(versions_of(both.lake)) == 3
    old, torn, young = (folder / ".versions" / n for n in (versions_of(both.lake)[0], ".torn.tmp", ".young.tmp"))
    if old == both.lake.current(RECORDS.name, DAY).path:
        old = old.with_name(versions_of(both.lake)[1])
    link = folder / ".link.tmp"
    for path in (torn, young, link):
        path.touch()
    for path in (old, torn, link):
        age(path, GRACE_SECONDS + 60)
    both.write(DAY, both.version(3))
    assert [p.exists() for p in (old, torn, link, young)] == [False, False, False, True]
    assert len(versions_of(both.lake)) == 3  # the current one, one in its grace, and the young torn file
    assert both.whole(both.read(DAY)) == 3


def test_the_current_version_is_never_swept_however_old_it_is(tmp_path):
    both = Both("lake", tmp_path)
    both.write(DAY, both.version(1))
    age(both.lake.current(RECORDS.name, DAY).path, 9 * GRACE_SECONDS)
    with pytest.raises(ContractError):
        both.write(DAY, both.version(2).drop("record"))
    both.write(NEXT, both.version(2))
    assert both.whole(both.read(DAY)) == 1


def test_a_refused_first_write_leaves_nothing_behind(tmp_path):
    both = Both("lake", tmp_path)
    with pytest.raises(ContractError):
        both.write(DAY, both.version(1).with_columns(more=1))
    assert files_below(tmp_path) == []
    assert both.lake.days(RECORDS.name) == []


def test_days_and_notes(tmp_path):
    lake = Lake(tmp_path)
    assert lake.days("raw_events") == []
    assert lake.current("raw_events", DAY) is None
    assert lake.notes("raw_events", DAY) == {}
    assert lake.scan(EVENTS, [DAY]).collect().schema == EVENTS.schema
    version = lake.write(EVENTS, NEXT, EVENTS.empty().lazy(), {"é": "ü"})
    lake.write(EVENTS, DAY, EVENTS.empty().lazy(), {})
    (tmp_path / "raw_events" / "date=2024-05-08").mkdir()  # begun by a writer that was killed
    assert lake.days("raw_events") == [DAY, NEXT]
    assert lake.notes("raw_events", NEXT) == {"é": "ü"}
    assert lake.current("raw_events", NEXT) == version
    assert (version.rows, version.size) == (0, version.path.stat().st_size)


def test_several_days_are_one_scan_in_the_given_order(tmp_path):
    both = Both("lake", tmp_path)
    both.write(DAY, both.version(1))
    both.write(NEXT, both.version(2))
    found = both.lake.scan(RECORDS, [NEXT, "2024-05-08", DAY]).collect()
    assert found["source_line"].rle().struct.unnest().rows() == [(2002, 2), (2001, 1)]


def test_a_busy_lake_day_says_so_and_its_neighbour_is_free(tmp_path):
    both = Both("lake", tmp_path)
    both.write(DAY, both.version(1))
    both.lake.lock_timeout = 0.2
    with held(HOLD_LOCK, both.lake.folder(RECORDS.name, DAY) / ".lock"):
        with pytest.raises(StorageBusyError, match=f"quarantined_events/date={DAY} is being written") as busy:
            both.write(DAY, both.version(2))
        both.write(NEXT, both.version(3))
        assert both.whole(both.read(DAY)) == 1  # readers never wait
    assert busy.value.retryable
    assert "Nothing was changed" in busy.value.hint
    assert both.whole(both.read(DAY)) == 1
    both.write(DAY, both.version(4))


# ---- the warehouse -----------------------------------------------------------------------------------------------


@pytest.fixture
def filled(tmp_path):
    """A warehouse with a day of each kind of table, below a folder whose name is a pattern."""
    lake = Lake(tmp_path / "[a]*'s" / "lake")
    warehouse = Warehouse(lake.root.parent / "warehouse.duckdb", lake, lock_timeout=20)
    lake.write(RECORDS, DAY, Both("lake", tmp_path).version(1), {})
    lake.write(EVENTS, DAY, EVENTS.empty().lazy(), {})
    lake.write(EVENTS, NEXT, EVENTS.empty().lazy().with_columns(country=pl.lit(None, pl.String)), {})
    lake.write(tables()["landed_files"], None, tables()["landed_files"].empty().lazy(), {})
    warehouse.replace(SESSIONS, {DAY: Both("warehouse", tmp_path).version(1)})
    return warehouse


def test_a_reader_sees_every_table_that_was_written(filled):
    with filled.reader() as connection:
        found = {name: connection.sql(f"FROM {name}").pl() for (name,) in connection.sql("SHOW TABLES").fetchall()}
    assert {name: frame.height for name, frame in found.items()} == {
        "landed_files": 0, "quarantined_events": 2001, "raw_events": 0, "session_metrics": 2001,
    }  # fmt: skip
    assert found["quarantined_events"]["date"].unique().to_list() == [date.fromisoformat(DAY)]
    assert found["raw_events"].columns == [*EVENTS.names[:-2], "source_file", "source_line", "country", "date"]


def test_what_was_not_committed_is_gone_and_the_file_is_free_again(filled):
    with filled.connect() as connection:
        connection.begin()
        connection.execute("DELETE FROM session_metrics")
    with duckdb.connect(str(filled.path)) as outside:
        assert outside.execute("SELECT count(*) FROM session_metrics").fetchall() == [(2001,)]
    assert filled.query_days(SESSIONS, [DAY]).height == 2001


def test_a_connection_in_this_process_is_waited_for_like_another_process(filled):
    impatient = Warehouse(filled.path, filled.lake, lock_timeout=0.2)
    with (
        duckdb.connect(str(filled.path)),
        pytest.raises(StorageBusyError, match="held by another process or connection"),
        impatient.connect(),
    ):
        raise AssertionError
    assert impatient.query_days(SESSIONS, [DAY]).height == 2001


def test_duckdb_is_started_once_for_a_warehouse(filled):
    before = storage._started.cache_info()
    for _ in range(3):
        assert filled.query_days(SESSIONS, [DAY]).height == 2001
    after = storage._started.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (3, 0)


def test_duckdb_is_let_go_of_after_many_rows(filled, monkeypatch):
    assert filled.query_days(SESSIONS, [DAY]).height == 2001
    assert storage._started.cache_info().currsize == 1
    monkeypatch.setattr(storage, "MOST_AT_ONCE", 2_000)
    day = filled.scan(SESSIONS, [DAY])[DAY].collect(engine="streaming")
    assert day.height == 2001
    assert storage._started.cache_info().currsize == 0
    assert filled.query_days(SESSIONS, [DAY]).height == 2001
    filled.replace(SESSIONS, {DAY: day})
    assert storage._started.cache_info().currsize == 0


def test_the_views_in_the_file_show_what_a_reader_shows(filled):
    with duckdb.connect(str(filled.path), read_only=True) as outside, filled.reader() as inside:
        for name in ("landed_files", "quarantined_events", "raw_events", "session_metrics"):
            assert inside.sql(f"FROM {name}").fetchall() == outside.sql(f"FROM {name}").fetchall()


def test_a_reader_before_anything_was_written_is_empty(tmp_path):
    with Warehouse(tmp_path / "no.duckdb", Lake(tmp_path / "lake")).reader() as connection:
        assert connection.sql("SHOW TABLES").fetchall() == []
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM session_metrics",
        "DELETE FROM warehouse.session_metrics",
        "DROP TABLE warehouse.session_metrics",
        "CREATE TABLE warehouse.mine (a INT)",
        "ATTACH '{folder}/warehouse.duckdb' AS again",
        "ATTACH '{folder}/lake/new.duckdb' AS new",
        "COPY (SELECT 1) TO '{folder}/new.csv'",
        "COPY (SELECT 1) TO '{folder}/lake/new.parquet'",
        "COPY (SELECT 1) TO '{folder}/lake/quarantined_events/date=2024-05-06/data.parquet'",
        "EXPORT DATABASE '{folder}/lake/everything'",
        "SELECT * FROM read_text('{folder}/secret.txt')",
        "SELECT * FROM read_text('{folder}/lake/../secret.txt')",
        "SELECT * FROM read_text('{folder}/lake/link.txt')",
        "SELECT * FROM read_text('{folder}/lake2/secret.txt')",
        "SELECT * FROM glob('{folder}/*')",
        "FROM '/etc/passwd'",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "LOAD httpfs",
    ],
)
def test_a_reader_can_change_nothing_and_read_no_other_file(filled, statement):
    folder = filled.path.parent
    (folder / "secret.txt").write_text("secret")
    (folder / "lake2").mkdir()
    (folder / "lake2" / "secret.txt").write_text("secret")
    (folder / "lake" / "link.txt").symlink_to(folder / "secret.txt")
    before = {name: (folder / name).read_bytes() for name in files_below(folder)}
    refused = (
        duckdb.BinderException,
        duckdb.PermissionException,
        duckdb.InvalidInputException,
        duckdb.CatalogException,
        duckdb.ResourceInUseException,
    )
    with filled.reader() as connection, pytest.raises(refused):
        connection.execute(statement.format(folder=str(folder).replace("'", "''"))).fetchall()
    assert {name: (folder / name).read_bytes() for name in files_below(folder)} == before


def test_days_come_back_in_the_order_in_which_they_were_written(tmp_path):
    both = Both("warehouse", tmp_path)
    rows = both.version(1).collect().sample(fraction=1, shuffle=True, seed=1)
    both.warehouse.replace(SESSIONS, {NEXT: both.version(2), DAY: rows.lazy()})
    found = both.warehouse.query_days(SESSIONS, [NEXT, DAY])
    assert found.columns == ["date", *SESSIONS.names]
    assert found["date"].is_sorted()
    assert found.head(rows.height).drop("date").equals(rows)
    assert found.tail(-rows.height)["total_sessions"].unique().to_list() == [2]


def test_a_day_or_a_table_or_a_file_that_never_was_is_missing(tmp_path):
    both = Both("warehouse", tmp_path)
    assert both.warehouse.scan(SESSIONS, [DAY]) == {}
    assert both.warehouse.query_days(SESSIONS, [DAY]).schema == {"date": pl.Date} | SESSIONS.schema
    assert files_below(tmp_path) == []
    both.write(DAY, SESSIONS.empty().lazy())
    assert set(both.warehouse.scan(SESSIONS, [DAY, NEXT])) == {DAY}
    assert both.warehouse.scan(tables()["daily_kpis"], [DAY]) == {}


def test_many_rows_are_written_and_read_in_batches_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MOST_AT_ONCE", 700)
    monkeypatch.setattr(storage, "BATCH", 700)
    both = Both("warehouse", tmp_path)
    rows = both.version(1).collect().reverse()
    both.warehouse.replace(SESSIONS, {DAY: rows.lazy(), NEXT: SESSIONS.empty().lazy()})
    found = both.warehouse.scan(SESSIONS, [DAY, NEXT])
    assert found[DAY].collect(engine="streaming").equals(rows)
    assert found[NEXT].collect().equals(SESSIONS.empty())
    assert found[DAY].select("user_id").head(5).collect().equals(rows.select("user_id").head(5))
    assert found[DAY].filter(pl.col("user_id") == 3).select("user_id").collect().to_series().to_list() == [3]
    assert found[DAY].select(pl.len()).collect().item() == rows.height
    with both.warehouse.connect():
        pass  # the file is free again


def test_a_warehouse_of_an_older_version_gets_the_columns_that_it_lacks(tmp_path):
    """As if made before daily_kpis knew by how many days rows are late; its days have nulls there until made again."""
    warehouse = Both("warehouse", tmp_path).warehouse
    contract = tables()["daily_kpis"]
    numbers = {n: 7 if t == pl.Int64 else 1.5 for n, t in contract.schema.items()}
    row = pl.DataFrame([numbers], schema=contract.schema)
    warehouse.replace(contract, {DAY: row.lazy(), NEXT: row.lazy()})
    new = ["late_max_days", "late_mean_days"]
    with duckdb.connect(str(warehouse.path)) as connection:
        for name in new:
            connection.execute(f"ALTER TABLE daily_kpis DROP COLUMN {name}")
    old = row.with_columns(pl.lit(None, contract.schema[n]).alias(n) for n in new)
    assert warehouse.scan(contract, [DAY])[DAY].collect().equals(old), "also before anything is written"
    with warehouse.reader() as connection:
        assert connection.sql("SELECT count(DISTINCT kpi) FROM daily_kpis_compared").fetchall() == [(13,)]

    warehouse.replace(contract, {NEXT: row.lazy()})

    found = {day: frame.collect() for day, frame in warehouse.scan(contract, [DAY, NEXT]).items()}
    assert found[DAY].equals(old)
    assert found[NEXT].equals(row)
    for names in (row.columns, warehouse.query_days(contract, [DAY]).columns[1:]):
        assert names == list(contract.names), "in the contract's order, not in that of the file"
    with warehouse.reader() as connection:
        assert connection.sql("SELECT count(DISTINCT kpi) FROM daily_kpis_compared").fetchall() == [(15,)]
    with duckdb.connect(str(warehouse.path)) as connection:
        assert connection.sql("SELECT count(DISTINCT kpi) FROM daily_kpis_compared").fetchall() == [(15,)]
        comment = (
            "SELECT comment FROM duckdb_columns() WHERE column_name = 'late_max_days' AND table_name = 'daily_kpis'"
        )
        assert "0 when none is late" in connection.sql(comment).fetchall()[0][0]


@pytest.mark.parametrize("change", ["ALTER mean_value TYPE VARCHAR", "ADD COLUMN mood VARCHAR"])
def test_a_warehouse_of_another_version_of_the_project_is_left_alone(tmp_path, change):
    both = Both("warehouse", tmp_path)
    both.write(DAY, both.version(1))
    with duckdb.connect(str(both.warehouse.path)) as connection:
        connection.execute(f"ALTER TABLE session_metrics {change}")
    with pytest.raises(ContractError, match=r"session_metrics in warehouse\.duckdb has other columns"):
        both.write(DAY, both.version(2))
    with both.warehouse.reader() as connection:
        assert connection.sql("SELECT DISTINCT total_sessions FROM session_metrics").fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("how", "suffix", "call"),
    [
        (HOLD_DUCKDB, "", Warehouse.connect),
        (HOLD_DUCKDB, "", Warehouse.reader),
        (HOLD_LOCK, ".lock", Warehouse.connect),
    ],
    ids=["foreign process, write", "foreign process, read", "own process, write"],
)
def test_a_busy_warehouse_says_so_after_the_deadline(tmp_path, how, suffix, call):
    both = Both("warehouse", tmp_path)
    both.write(DAY, both.version(1))
    both.warehouse.lock_timeout = 0.5
    with held(how, f"{both.warehouse.path}{suffix}"):
        began = time.monotonic()
        with (
            pytest.raises(StorageBusyError, match=r"warehouse\.duckdb is held by another process") as busy,
            call(both.warehouse),
        ):
            pass
        assert 0.4 < time.monotonic() - began < 10
    assert busy.value.retryable
    assert busy.value.hint.startswith("Close the program")
    both.warehouse.lock_timeout = 20
    assert both.whole(both.read(DAY)) == 1


def test_a_warehouse_that_becomes_free_in_time_is_used(tmp_path):
    both = Both("warehouse", tmp_path)
    both.write(DAY, both.version(1))
    with held(HOLD_DUCKDB, both.warehouse.path) as holder:
        release = threading.Timer(0.4, holder.stdin.close)
        release.start()
        both.write(DAY, both.version(2))
        release.join()
    assert both.whole(both.read(DAY)) == 2


def test_a_file_that_is_no_warehouse_is_not_waited_for(tmp_path):
    both = Both("warehouse", tmp_path)
    both.warehouse.path.write_text("something else, long enough to have a header" * 500)
    with pytest.raises(duckdb.IOException, match="not a valid DuckDB"), both.warehouse.connect():
        pass


# ---- the day log -------------------------------------------------------------------------------------------------

BAD = Finding("rows_conserved", passed=False, observed="3 rows of 4")
ODD = Finding("volume", passed=False, observed="10 times the usual", severity="WARN")


def test_the_day_log_tells_findings_and_refusals(tmp_path):
    log = DayLog(tmp_path)
    assert log.findings("raw_events", DAY) == []
    assert log.refusals("raw_events", [DAY]) == {}
    log.record("raw_events", DAY, [BAD, ODD], refused="rows_conserved: 3 rows of 4")
    log.record("raw_events", NEXT, [ODD])
    log.record("outliers", DAY, [])
    assert log.findings("raw_events", DAY) == [BAD, ODD]
    assert log.refusals("raw_events", [DAY, NEXT, "2024-05-08"]) == {DAY: "rows_conserved: 3 rows of 4"}
    assert log.refusals("outliers", [DAY]) == {}
    log.record("raw_events", DAY, [])
    assert log.findings("raw_events", DAY) == []
    assert log.refusals("raw_events", [DAY]) == {}


def test_a_refused_day_is_not_finished_until_a_run_finishes_it(tmp_path):
    log = DayLog(tmp_path)
    log.finish(DAY, "a")
    log.record("outliers", DAY, [BAD], refused="why")
    log.record("outliers", NEXT, [BAD], refused="why")
    assert log.finished() == {DAY: REFUSED, NEXT: REFUSED}
    log.record("outliers", DAY, [])
    assert log.finished()[DAY] == REFUSED, "what stands below was not made"
    log.finish(DAY, "a")
    assert log.finished() == {DAY: "a", NEXT: REFUSED}


def test_the_day_log_tells_what_is_finished(tmp_path):
    log = DayLog(tmp_path)
    assert log.finished() == {}
    log.finish(NEXT, "b")
    log.finish(DAY, "a")
    log.finish(NEXT, "c")
    assert list(log.finished().items()) == [(DAY, "a"), (NEXT, "c")]
    (tmp_path / ".days" / "finished" / ".2024-05-08.json.0.tmp").touch()  # of a writer that was killed
    assert set(log.finished()) == {DAY, NEXT}


@pytest.mark.parametrize("torn", ["", "{", "\0\0\0\0"])
def test_a_torn_entry_of_the_day_log_is_as_good_as_lost(tmp_path, torn):
    log = DayLog(tmp_path)
    log.record("raw_events", DAY, [BAD], refused="why")
    log.finish(DAY, "a")
    for path in (tmp_path / ".days").rglob(f"{DAY}.json"):
        path.write_text(torn)
    assert log.refusals("raw_events", [DAY]) == {}
    assert log.findings("raw_events", DAY) == []
    assert log.finished() == {}


def test_the_day_log_is_no_table_of_the_lake(tmp_path):
    both = Both("lake", tmp_path)
    DayLog(both.lake.root).record("quarantined_events", DAY, [BAD])
    assert both.lake.days("quarantined_events") == []
    with both.warehouse.reader() as connection:
        assert connection.sql("SHOW TABLES").fetchall() == []


# ---- small files and folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_write_atomically_replaces_the_whole_text(tmp_path, durable):
    path = tmp_path / "new" / "note.json"
    for text in ("long " * 1000, "é\n", ""):
        write_atomically(path, text, durable=durable)
        assert path.read_text(encoding="utf-8") == text
    assert files_below(tmp_path) == ["new/note.json"]


def test_a_failed_write_atomically_keeps_the_old_text(tmp_path):
    path = tmp_path / "note.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new" * 10_000 + "\ud800")
    assert path.read_text() == "old"
    assert files_below(tmp_path) == ["note.json"]


def test_a_reader_of_write_atomically_finds_one_text_or_the_other(tmp_path):
    path = tmp_path / "note.json"
    texts = {"a" * 200_000, "b" * 100_000}
    write_atomically(path, min(texts))
    stop = threading.Event()

    def rewrite():
        while not stop.is_set():
            for text in texts:
                write_atomically(path, text, durable=False)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        seen, deadline = set(), time.monotonic() + 60
        while seen != texts and time.monotonic() < deadline:  # a busy machine lets the writer wait
            seen |= {path.read_text() for _ in range(300)}
        assert seen == texts
    finally:
        stop.set()
        writer.join()


def test_fsync_takes_files_and_folders(tmp_path):
    (tmp_path / "file").touch()
    fsync_path(tmp_path / "file")
    fsync_path(tmp_path)
    with pytest.raises(FileNotFoundError):
        fsync_path(tmp_path / "none")


def test_scratch_folders_go_and_what_killed_runs_left_is_swept(tmp_path):
    scratch = tmp_path / "scratch"
    sweep_scratch(scratch)
    with scratch_folder(scratch) as one, scratch_folder(scratch) as two:
        assert one != two
        (one / "file").touch()
    assert list(scratch.iterdir()) == []
    for name in ("old", "young"):
        (scratch / name).mkdir()
        (scratch / name / "file").touch()
    age(scratch / "old", GRACE_SECONDS + 60)
    sweep_scratch(scratch)
    assert [p.name for p in scratch.iterdir()] == ["young"]


def test_a_footer_tells_of_whole_numbers_and_times(tmp_path: Path) -> None:
    lowest = -(2**63)
    rows = pl.DataFrame(
        {
            "n": [3, None, lowest, 7, None, None],
            "t": [5, 1, 2, 9, 9, 8],
            "x": 1.5,
            "nulls": pl.Series([None] * 6, dtype=pl.Int64),
            "blank": pl.Series([None] * 6, dtype=pl.String),
            "text": [None] * 5 + ["a"],
        }
    ).with_columns(pl.col("t").cast(pl.Datetime("us")) + pl.duration(days=3_652_059 * 3))  # beyond the year 9999
    path = tmp_path / "rows.parquet"
    rows.write_parquet(path, row_group_size=2)
    t = rows["t"].to_physical()
    assert storage.whole_numbers(path, rows.columns) == {
        "n": (3, 3, lowest, 7),
        "t": (6, 0, t.min(), t.max()),
        "nulls": (0, 6, None, None),
        "blank": (0, 6, None, None),
    }
    assert storage.whole_numbers(path, ["t"]).keys() == {"t"}
    rows.clear().write_parquet(path)
    assert storage.whole_numbers(path, ["n", "t"]) == {"n": (0, 0, None, None), "t": (0, 0, None, None)}
    rows.write_parquet(path, statistics=False)
    assert storage.whole_numbers(path, rows.columns) == {}


def test_a_table_with_long_texts_is_the_same_file_whichever_way_its_day_is_worked_on(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "LEAST_GROUP", 2)
    monkeypatch.setattr(storage, "GROUP_BYTES", 2_000)
    table = tables()["outliers"]
    rows = pl.LazyFrame({"n": range(90)}).select(
        pl.lit(None, dtype).alias(name) if name != "metadata" else pl.format("{} " + "x" * 200, "n").alias(name)
        for name, dtype in table.schema.items()
    )
    names = set()
    for mode in ("eager", "streaming"):
        made = assets._made_once(table, rows, metrics.DayFigures(rows, mode), tmp_path / f"{mode}.parquet")
        version = Lake(tmp_path / mode).write(table, "2024-03-01", made.frame, {}, made.ready)
        names.add(version.path.name)  # after its bytes
        assert pq.read_metadata(version.path).num_row_groups == 10
    assert len(names) == 1


def test_refused_rows_which_have_their_records_with_them_come_in_smaller_row_groups(tmp_path):
    """Of as many as of other rows a day that is refused by half took half as much memory again."""
    most = {
        table.name: storage.written_as(table, table.empty().lazy())["row_group_size"] for table in (EVENTS, RECORDS)
    }
    assert most == {"raw_events": storage.ROW_GROUP, "quarantined_events": storage.GROUP_BYTES // storage.RECORD_BYTES}
    assert most["quarantined_events"] * 4 == most["raw_events"]
