"""One contract for both stores: what an asset hands over is what the asset below gets, whole, or nothing changes.

Here: the IO managers through Dagster's own ``materialize``, on real files. Not here: processes that are killed or that
meet (``test_storage.py``), the project's own asset graph.
"""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import sys
import tempfile
import time
from datetime import date, datetime, timedelta
from pathlib import Path

import duckdb
import polars as pl
import pytest
from dagster import (
    AssetIn,
    AssetKey,
    BackfillPolicy,
    DagsterInstance,
    DailyPartitionsDefinition,
    asset,
    materialize,
)
from dagster_duckdb import DuckDBResource
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from polars.io.plugins import register_io_source

from data_assets.contracts import tables
from data_assets.errors import ContractError, StorageBusyError
from data_assets.io_managers import LakeIOManager, WarehouseIOManager
from data_assets.storage import DayFrame, DayLog, Finding

# Dagster's own call, whenever one resource holds another.
pytestmark = pytest.mark.filterwarnings(r"ignore:InitResourceContext\.dagster_run is deprecated:DeprecationWarning")

MON, TUE, WED = "2024-05-06", "2024-05-07", "2024-05-08"
PARTITIONS = DailyPartitionsDefinition(start_date=MON, end_date="2024-05-13")
EPOCH = datetime.fromisoformat("2000-01-01")
INT_MIN, INT_MAX = -(2**63), 2**63 - 1


class Store:
    """A table's asset and an asset below it, on the project's resources in one folder."""

    def __init__(self, folder: Path, table: str, user_id: str = "int64"):
        self.contract = tables(user_id)[table]
        self.lake = LakeIOManager(base_dir=str(folder / "lake"), user_id=user_id, lock_timeout=20)
        self.warehouse = WarehouseIOManager(
            duckdb=DuckDBResource(database=str(folder / "warehouse.duckdb")), lake=self.lake, lock_timeout=20
        )
        self.instance = DagsterInstance.ephemeral(tempdir=str(folder))
        self.log = DayLog(folder / "lake")
        self._given: object = None
        self._seen: object = None

        @asset(
            name=table,
            partitions_def=PARTITIONS,
            io_manager_key=self.contract.store,
            backfill_policy=BackfillPolicy.single_run(),
        )
        def upstream():
            return self._given

        below = {
            "ins": {"found": AssetIn(table)},
            "partitions_def": PARTITIONS,
            "backfill_policy": BackfillPolicy.single_run(),
        }

        @asset(name="all_days", **below)
        def all_days(found: dict[str, pl.LazyFrame]) -> None:
            self._seen = {day: frame.collect() for day, frame in found.items()}

        @asset(name="one_day", **below)
        def one_day(found: pl.LazyFrame) -> None:
            self._seen = found.collect()

        self._assets = [upstream, all_days, one_day]

    def _run(self, name: str, first: str, last: str):
        return materialize(
            self._assets,
            selection=[name],
            resources={"lake": self.lake, "warehouse": self.warehouse},
            instance=self.instance,
            tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
        )

    def write(self, value: object, first: str = MON, last: str | None = None) -> None:
        self._given = value
        assert self._run(self.contract.name, first, last or first).success

    def read(self, first: str = MON, last: str = WED) -> dict[str, pl.DataFrame]:
        self._run("all_days", first, last)
        return self._seen

    def read_one(self, day: str) -> pl.DataFrame:
        self._run("one_day", day, day)
        return self._seen

    def recorded(self) -> set[str | None]:
        """Days of the materialisations in the event log; None for one of the whole table."""
        found = self.instance.fetch_materializations(AssetKey(self.contract.name), limit=100).records
        days = {r.partition_key for r in found}
        assert self.instance.get_materialized_partitions(AssetKey(self.contract.name)) == days - {None}
        return days

    def metadata(self, day: str) -> dict[str, object]:
        found = self.instance.fetch_materializations(AssetKey(self.contract.name), limit=100).records
        return next(r for r in found if r.partition_key == day).asset_materialization.metadata

    def sample(self, seed: int, rows: int = 5) -> pl.DataFrame:
        """Rows that differ with the seed in every column."""
        make = {
            pl.Int64(): lambda n: n,
            pl.Float64(): lambda n: n / 7,
            pl.String(): str,
            pl.Date(): lambda n: date(2000, 1, 1) + timedelta(days=n),
            pl.Datetime("us"): lambda n: EPOCH + timedelta(microseconds=n),
            pl.List(pl.String()): lambda n: [str(n), "x"],
        }
        numbers = [1000 * seed + n for n in range(rows)]
        return pl.DataFrame(
            {name: [make[kind](n) for n in numbers] for name, kind in self.contract.schema.items()},
            schema=self.contract.schema,
        )


def breaks_halfway(frame: pl.DataFrame) -> pl.LazyFrame:
    """Hands over its rows, then fails, while it is streamed."""

    def source(with_columns, predicate, n_rows, batch_size):
        yield frame
        raise RuntimeError("the source broke")

    return register_io_source(source, schema=frame.schema)


def bits(value):
    """Equal only for the same value: tells -0.0 from 0.0, and finds NaN equal to itself."""
    return struct.pack(">d", value) if isinstance(value, float) else value


def same(left: pl.DataFrame, right: pl.DataFrame) -> bool:
    return left.schema == right.schema and [[bits(v) for v in row] for row in left.rows()] == [
        [bits(v) for v in row] for row in right.rows()
    ]


@contextlib.contextmanager
def held_by_another_process(path: Path):
    code = "import sys, duckdb; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield
        process.stdin.close()


@pytest.fixture(params=["quarantined_events", "session_metrics"], ids=["lake", "warehouse"])
def store(request, tmp_path):
    return Store(tmp_path, request.param)


# ---- what comes back ---------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["", " ", "\n", '",;', "İß𝔘🙂e\u0301", "null", "\ufeff"]
)
VALUES = {
    pl.Int64(): st.integers(INT_MIN, INT_MAX) | st.sampled_from([INT_MIN, INT_MAX, 0, -1]),
    pl.Float64(): st.floats() | st.sampled_from([-0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2]),
    pl.String(): TEXT,
    pl.Date(): st.dates(),
    pl.Datetime("us"): st.datetimes()
    | st.sampled_from([datetime.fromisoformat("0001-01-01"), datetime.fromisoformat("9999-12-31T23:59:59.999999")]),
    pl.List(pl.String()): st.lists(TEXT, max_size=3),
}


@st.composite
def frames(draw, table):
    """The type of user_id, and rows for three days: any value of the type, null where the contract allows it."""
    user_id = draw(st.sampled_from(["int64", "string"]))
    contract = tables(user_id)[table]
    row = st.tuples(*(VALUES[c.dtype] | st.none() if c.nullable else VALUES[c.dtype] for c in contract.columns))
    days = st.lists(row, max_size=4).map(lambda rows: pl.DataFrame(rows, schema=contract.schema, orient="row"))
    return user_id, draw(st.fixed_dictionaries({MON: days, TUE: days, WED: days}))


@pytest.mark.parametrize("table", ["raw_events", "quarantined_events", "session_metrics", "summary_statistics"])
@settings(max_examples=8, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
@given(data=st.data())
def test_every_value_comes_back_bit_for_bit(table, data):
    """Two runs for each example, so nothing is shrunk: the examples are small as they are."""
    user_id, written = data.draw(frames(table))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), table, user_id)
        store.write(written, MON, WED)
        found = store.read()
        assert list(found) == [MON, TUE, WED]
        for day, frame in written.items():
            assert same(found[day], frame), day


def test_a_lone_frame_belongs_to_the_only_day_and_comes_back_as_one(store):
    store.write(store.sample(1).lazy(), TUE)
    assert same(store.read_one(TUE), store.sample(1))
    assert store.recorded() == {TUE}
    assert store.metadata(TUE)["dagster/partition_row_count"].value == 5


def test_the_same_day_twice_is_the_same_day(store):
    store.write({MON: store.sample(1), TUE: store.sample(2)}, MON, TUE)
    store.write({MON: store.sample(1)}, MON)
    found = store.read()
    assert same(found[MON], store.sample(1))
    assert same(found[TUE], store.sample(2))


def test_a_lake_day_made_again_has_the_same_bytes(tmp_path):
    store = Store(tmp_path, "raw_events")
    path = tmp_path / "lake" / "raw_events" / f"date={MON}" / "data.parquet"
    store.write(store.sample(1, rows=20_000), MON)
    first = path.read_bytes()
    store.write(store.sample(2), MON)
    assert path.read_bytes() != first
    store.write(store.sample(1, rows=20_000).lazy(), MON)
    assert path.read_bytes() == first


def test_a_new_day_replaces_the_old_one_and_leaves_its_neighbours(store):
    store.write({MON: store.sample(1), TUE: store.sample(2, rows=9), WED: store.sample(3)}, MON, WED)
    store.write({TUE: store.sample(4, rows=2)}, TUE)
    found = store.read()
    assert same(found[MON], store.sample(1))
    assert same(found[TUE], store.sample(4, rows=2))
    assert same(found[WED], store.sample(3))


def test_an_empty_day_is_written_and_a_day_never_written_is_not(store):
    store.write({MON: store.sample(1), TUE: store.sample(1)}, MON, TUE)
    store.write({TUE: store.contract.empty()}, TUE)
    found = store.read()
    assert set(found) == {MON, TUE}
    assert same(found[TUE], store.contract.empty())
    assert store.recorded() == {MON, TUE}
    assert store.metadata(TUE)["dagster/partition_row_count"].value == 0


def test_columns_land_under_their_names_in_the_contracts_order(store):
    store.write(store.sample(1).select(reversed(store.contract.names)), MON)
    assert same(store.read_one(MON), store.sample(1))


def test_an_open_table_keeps_columns_beyond_the_contract(tmp_path):
    store = Store(tmp_path, "raw_events")
    store.write({MON: store.sample(1).with_columns(country=pl.lit("é")), TUE: store.sample(2)}, MON, TUE)
    found = store.read()
    assert found[MON]["country"].to_list() == ["é"] * 5
    assert found[MON].columns[-2:] == ["source_file", "source_line"]
    assert same(found[MON].drop("country"), store.sample(1))
    assert same(found[TUE], store.sample(2))


# ---- what is refused or breaks -----------------------------------------------------------------------------------

BREACHES = {
    "missing": (lambda frame: frame.drop(frame.columns[1]), "missing: "),
    "surplus": (lambda frame: frame.with_columns(more=1), "not in the contract: more"),
    "other type": (lambda frame: frame.with_columns(pl.col(pl.Int64).cast(pl.Int32)), "is Int32, not Int64"),
    "only nulls": (lambda frame: frame.with_columns(pl.lit(None).alias(frame.columns[0])), "is Null, not "),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_frame_that_breaks_the_contract_changes_nothing(store, breach):
    store.write({MON: store.sample(1)})
    change, message = BREACHES[breach]
    for day in (MON, TUE):
        with pytest.raises(ContractError, match=message) as caught:
            store.write({day: change(store.sample(2))}, day)
        assert (caught.value.table, caught.value.day) == (store.contract.name, day)
    assert {day: same(frame, store.sample(1)) for day, frame in store.read().items()} == {MON: True}
    assert store.recorded() == {MON}


def test_a_null_where_the_warehouse_allows_none_is_refused(tmp_path):
    store = Store(tmp_path, "session_metrics")
    store.write({MON: store.sample(1)})
    bad = store.sample(2).with_columns(user_id=pl.lit(None, pl.Int64))
    with pytest.raises(ContractError, match="NOT NULL"):
        store.write({MON: store.sample(3), TUE: bad}, MON, TUE)
    assert {day: same(frame, store.sample(1)) for day, frame in store.read().items()} == {MON: True}


def test_a_failure_while_streaming_keeps_the_old_day(store):
    store.write({MON: store.sample(1)})
    for day in (MON, TUE):
        with pytest.raises(RuntimeError, match="the source broke"):
            store.write({day: breaks_halfway(store.sample(2, rows=1000))}, day)
    assert {day: same(frame, store.sample(1)) for day, frame in store.read().items()} == {MON: True}
    assert store.recorded() == {MON}
    store.write({MON: store.sample(3)})
    assert same(store.read_one(MON), store.sample(3))


def test_a_range_whose_second_day_fails_keeps_that_day_whole(store):
    store.write({day: store.sample(n) for n, day in enumerate((MON, TUE, WED))}, MON, WED)
    with pytest.raises(RuntimeError, match="the source broke"):
        store.write({MON: store.sample(7), TUE: breaks_halfway(store.sample(8)), WED: store.sample(9)}, MON, WED)
    found = store.read()
    new = store.sample(7) if store.contract.store == "lake" else store.sample(0)  # the warehouse: all days or none
    assert same(found[MON], new)
    assert same(found[TUE], store.sample(1))
    assert same(found[WED], store.sample(2))


def test_nothing_torn_stays_after_a_failure(tmp_path):
    store = Store(tmp_path, "quarantined_events")
    with pytest.raises(RuntimeError, match="the source broke"):
        store.write({MON: breaks_halfway(store.sample(1))})
    ours = (p for p in tmp_path.rglob("*") if p.is_file() and p.parent.name != "alive")  # Dagster's run has its lock
    assert [p.name for p in ours if p.name != ".lock"] == []


def test_the_warehouse_file_is_free_again_while_the_error_of_a_failed_write_is_still_held(tmp_path):
    store = Store(tmp_path, "session_metrics")
    store.write({MON: store.sample(1)})
    with pytest.raises(RuntimeError, match="the source broke") as caught:
        store.write({MON: breaks_halfway(store.sample(2))})
    # Another configuration is refused while any connection of this process is open.
    with duckdb.connect(str(tmp_path / "warehouse.duckdb"), read_only=True) as reader:
        assert reader.sql("SELECT count(*) FROM session_metrics").fetchall() == [(5,)]
    assert caught.value is not None


# ---- days of a range ---------------------------------------------------------------------------------------------


def test_a_day_left_out_of_a_range_is_not_recorded(store):
    """Holds Dagster to the private name that ``_record_only`` sets."""
    store.write({MON: store.sample(1), WED: store.sample(3)}, MON, WED)
    assert store.recorded() == {MON, WED}
    assert set(store.read()) == {MON, WED}
    assert store.metadata(WED)["dagster/partition_row_count"].value == 5


def test_days_that_were_not_asked_for_are_refused(store):
    with pytest.raises(ValueError, match=rf"not asked for: \['{WED}'\]"):
        store.write({MON: store.sample(1), WED: store.sample(3)}, MON, TUE)
    assert store.read() == {}
    assert store.recorded() == set()


def test_a_refused_day_is_missing_below_until_it_is_good_again(store):
    store.write({MON: store.sample(1), TUE: store.sample(2)}, MON, TUE)
    store.log.record(store.contract.name, MON, [Finding("rows", passed=False, observed="none")], refused="no rows")
    assert set(store.read()) == {TUE}
    with pytest.raises(ValueError, match=rf"{store.contract.name} has no usable data for \['{MON}'\]"):
        store.read_one(MON)
    store.log.record(store.contract.name, MON, [Finding("rows", passed=True, observed="5")])
    assert set(store.read()) == {MON, TUE}


# ---- beside the rows ---------------------------------------------------------------------------------------------


def test_notes_travel_with_the_lake_day(tmp_path):
    store = Store(tmp_path, "raw_events")
    store.write({MON: DayFrame(store.sample(1).lazy(), {"files": "{}"}), TUE: store.sample(2)}, MON, TUE)
    assert store.lake.lake.notes("raw_events", MON) == {"files": "{}"}
    assert store.lake.lake.notes("raw_events", TUE) == {}
    path = Path(store.metadata(MON)["path"].value)
    assert store.metadata(MON)["size_bytes"].value == path.stat().st_size


def test_readers_outside_read_plain_parquet_and_plain_duckdb(tmp_path):
    lake, warehouse = Store(tmp_path, "quarantined_events"), Store(tmp_path, "session_metrics")
    lake.write({MON: lake.sample(1), TUE: lake.sample(2, rows=3)}, MON, TUE)
    warehouse.write({MON: warehouse.sample(1)})
    lake.write({MON: lake.sample(4, rows=2)})
    path = tmp_path / "lake" / "quarantined_events" / "*" / "data.parquet"
    by_day = "SELECT date::VARCHAR, count(*), min(source_line) FROM {} GROUP BY 1 ORDER BY 1"
    expected = [(MON, 2, 4000), (TUE, 3, 2000)]
    assert duckdb.sql(by_day.format(f"read_parquet('{path}')")).fetchall() == expected
    with duckdb.connect(str(tmp_path / "warehouse.duckdb"), read_only=True) as connection:
        assert connection.sql(by_day.format("quarantined_events")).fetchall() == expected
        assert connection.sql(
            "SELECT date::VARCHAR, sum(total_sessions) FROM session_metrics GROUP BY 1"
        ).fetchall() == [(MON, 5 * 1000 + 10)]


def test_a_foreign_process_is_waited_for_only_until_the_deadline(tmp_path):
    """dagster-duckdb's own connection would retry for 100 seconds whatever our deadline is."""
    store = Store(tmp_path, "session_metrics")
    store.write({MON: store.sample(1)})
    store.warehouse = WarehouseIOManager(duckdb=store.warehouse.duckdb, lake=store.lake, lock_timeout=0.3)
    with held_by_another_process(tmp_path / "warehouse.duckdb"):
        began = time.monotonic()
        with pytest.raises(StorageBusyError, match=r"warehouse\.duckdb is held by another process"):
            store.write({MON: store.sample(2)})
        assert time.monotonic() - began < 10
    assert same(store.read_one(MON), store.sample(1))


def test_the_pointer_names_the_file_that_stands_beside_it(tmp_path):
    store = Store(tmp_path, "raw_events")
    store.write({MON: store.sample(1)})
    folder = tmp_path / "lake" / "raw_events" / f"date={MON}"
    pointer = json.loads((folder / ".current.json").read_text())
    version = folder / ".versions" / pointer["file"]
    assert version.samefile(folder / "data.parquet")
    assert (pointer["rows"], pointer["size"]) == (5, version.stat().st_size)
