"""The event log with open connections: same files, same answers as the stock storage, from several threads."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from dagster import (
    AssetCheckEvaluation,
    AssetCheckSpec,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    BackfillPolicy,
    DagsterInstance,
    DagsterInvariantViolationError,
    DailyPartitionsDefinition,
    MaterializeResult,
    Output,
    asset,
    job,
    materialize,
    op,
)
from dagster._core.storage.event_log import SqliteEventLogStorage

from data_assets.history import KEPT_OPEN, PooledSqliteEventLogStorage

if TYPE_CHECKING:
    from dagster import EventLogEntry

ROOT = Path(__file__).parents[1]
DAYS = DailyPartitionsDefinition("2024-01-01", end_date="2024-01-04")
RANGE = {"dagster/asset_partition_range_start": "2024-01-01", "dagster/asset_partition_range_end": "2024-01-03"}


@op
def note(context) -> None:
    for number in range(5):
        context.log_event(AssetMaterialization("a", partition=str(number)))


@job
def notes() -> None:
    note()


def instance_in(folder: Path) -> DagsterInstance:
    """An instance with the storages of the project's dagster.yaml, below ``folder``."""
    config = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    kept = {name: config[name] for name in ("run_storage", "event_log_storage", "schedule_storage", "telemetry")}
    for name in ("run_storage", "event_log_storage", "schedule_storage"):
        kept[name]["config"]["base_dir"] = str(folder / kept[name]["config"]["base_dir"])
    folder.mkdir(exist_ok=True)
    (folder / "dagster.yaml").write_text(yaml.safe_dump(kept))
    return DagsterInstance.from_config(str(folder))


def test_what_is_written_the_stock_storage_reads(tmp_path: Path) -> None:
    with instance_in(tmp_path) as instance:
        assert isinstance(instance.event_log_storage, PooledSqliteEventLogStorage)
        run = notes.execute_in_process(instance=instance)
        assert sorted(instance.get_materialized_partitions(AssetKey("a"))) == ["0", "1", "2", "3", "4"]
        before = [event.dagster_event_type for event in instance.all_logs(run.run_id)]
    stock = SqliteEventLogStorage(str(tmp_path / ".dagster/history/runs"))
    after = [event.dagster_event.event_type for event in stock.get_logs_for_run(run.run_id) if event.dagster_event]
    assert len(after) > 5
    assert [e.value for e in after] == [e.value for e in before if e is not None]


def test_more_runs_than_open_databases_read_by_several_threads(tmp_path: Path) -> None:
    with instance_in(tmp_path) as instance:
        runs = [notes.execute_in_process(instance=instance).run_id for _ in range(KEPT_OPEN + 2)]
        with ThreadPoolExecutor(4) as threads:
            counts = list(threads.map(lambda run: len(instance.all_logs(run)), runs * 3, timeout=60))
        assert len(set(counts)) == 1
        assert counts[0] > 5


def test_a_deleted_run_is_not_kept_open(tmp_path: Path) -> None:
    with instance_in(tmp_path) as instance:
        run = notes.execute_in_process(instance=instance)
        instance.delete_run(run.run_id)
        assert instance.get_runs() == []
        assert instance.all_logs(run.run_id) == []


@asset(
    partitions_def=DAYS,
    backfill_policy=BackfillPolicy.single_run(),
    check_specs=[AssetCheckSpec(name, asset="days", partitions_def=DAYS) for name in ("of_days", "failing")],
)
def days(context) -> Iterator[Any]:
    context.log_event(AssetObservation("days", partition="2024-01-02", metadata={"seen": "'é"}))
    yield MaterializeResult(metadata={"rows": 3}, tags={"a": "b"})
    for name in ("of_days", "failing"):
        yield Output(None, output_name=f"days_{name}")
        for day in context.partition_keys:
            yield AssetCheckEvaluation(
                asset_key=AssetKey("days"),
                check_name=name,
                passed=name != "failing",
                partition=day,
                metadata={"observed": "x"},
            )


@asset(check_specs=[AssetCheckSpec("whole", asset="lone"), AssetCheckSpec("left_out", asset="lone")])
def lone() -> MaterializeResult:
    return MaterializeResult(check_results=[])


@asset(check_specs=[AssetCheckSpec("whole", asset="broken")])
def broken() -> MaterializeResult:
    raise ValueError("x" * 5_000)


def what_happened(folder: Path) -> list[EventLogEntry]:
    """The events of three runs, two of which failed, as the stock storage keeps them."""
    folder.mkdir()
    with DagsterInstance.local_temp(str(folder)) as instance:
        runs = [
            materialize([days], instance=instance, tags=RANGE),
            materialize([lone], instance=instance, raise_on_error=False),
            materialize([broken], instance=instance, raise_on_error=False),
        ]
        return [event for run in runs for event in instance.all_logs(run.run_id)]


def stored(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, by database and table; without the time at which it was put there."""
    rows = {}
    for path in sorted(folder.glob("*.db")):
        with closing(sqlite3.connect(path)) as connection:
            for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                info = connection.execute(f"PRAGMA table_info({table})").fetchall()
                columns = ", ".join(
                    f'"{name}"' for _, name, *_ in info if not name.startswith(("create_", "migration_"))
                )
                query = f"SELECT {columns} FROM {table} ORDER BY 1"
                rows[f"{path.stem} {table}"] = connection.execute(query).fetchall()
    return rows


def test_every_row_is_the_one_that_the_stock_storage_writes(tmp_path: Path) -> None:
    events = what_happened(tmp_path / "instance")
    kinds = {event.dagster_event.event_type_value for event in events if event.dagster_event}
    assert {"ASSET_MATERIALIZATION", "ASSET_OBSERVATION", "ASSET_MATERIALIZATION_PLANNED"} <= kinds
    assert {"ASSET_CHECK_EVALUATION", "ASSET_CHECK_EVALUATION_PLANNED", "PIPELINE_FAILURE"} <= kinds
    first = next(e for e in events if e.dagster_event and e.dagster_event.event_type_value == "ASSET_CHECK_EVALUATION")
    unplanned = first._replace(run_id="another")
    runless = first._replace(run_id="")
    found = {}
    for kind in (SqliteEventLogStorage, PooledSqliteEventLogStorage):
        storage = kind(str(tmp_path / kind.__name__))
        for event in (*events, first, unplanned, runless):
            storage.store_event(event)
        storage.dispose()
        found[kind] = stored(tmp_path / kind.__name__)
    assert len(found[SqliteEventLogStorage]["index asset_check_executions"]) > 6
    assert len(found[SqliteEventLogStorage]["index asset_keys"]) == 3
    assert found[SqliteEventLogStorage]["index asset_event_tags"]
    assert found[PooledSqliteEventLogStorage] == found[SqliteEventLogStorage]


def test_a_check_that_was_planned_twice_is_an_error_as_it_is_in_the_stock_storage(tmp_path: Path) -> None:
    events = what_happened(tmp_path / "instance")
    storage = PooledSqliteEventLogStorage(str(tmp_path / "log"))
    planned = [e for e in events if e.dagster_event and "CHECK_EVALUATION_PLANNED" in e.dagster_event.event_type_value]
    last = next(e for e in events if e.dagster_event and e.dagster_event.event_type_value == "ASSET_CHECK_EVALUATION")
    for event in planned:
        storage.store_event(event)
    with storage.index_connection() as connection:
        connection.exec_driver_sql("DROP INDEX idx_asset_check_executions_unique")
        connection.exec_driver_sql(
            "INSERT INTO asset_check_executions (asset_key, check_name, run_id, partition) "
            "SELECT asset_key, check_name, run_id, partition FROM asset_check_executions"
        )
    with pytest.raises(DagsterInvariantViolationError, match="Updated 2 rows"):
        storage.store_event(last)
    storage.dispose()
