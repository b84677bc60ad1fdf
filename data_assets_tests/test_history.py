"""The event log with open connections: same files, same answers as the stock storage, from several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from dagster import AssetKey, AssetMaterialization, DagsterInstance, job, op
from dagster._core.storage.event_log import SqliteEventLogStorage

from data_assets.history import KEPT_OPEN, PooledSqliteEventLogStorage

ROOT = Path(__file__).parents[1]


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
