"""Dagster's history in SQLite: an event log with connections that stay open, runs whose log is read from its start.

Here: the storage classes that ``dagster.yaml`` names. Not here: what is logged (Dagster) or the project's own data
(``storage.py``).

The stock storage opens a connection for each of the thousands of events of a range run and closes it again, and SQLite
empties its write-ahead log to the disk at every close. It also composes each statement anew, makes the same event a
text two or three times, and asks each time which columns there are. Kept open and prepared, the same database costs a
fraction (docs/decisions/0003 has the figures); its files stay the ones that the stock class reads and writes.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from dagster._core.events import (
    ASSET_CHECK_EVENTS,
    ASSET_EVENTS,
    EVENT_TYPE_TO_PIPELINE_RUN_STATUS,
    DagsterEventType,
)
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, AssetKeyTable, SqlEventLogStorageTable
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.runs import SqliteRunStorage
from sqlalchemy import bindparam, create_engine, event
from sqlalchemy.pool import QueuePool

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dagster import EventLogEntry
    from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationPlanned
    from dagster._serdes import ConfigurableClassData
    from sqlalchemy.engine import Connection, Engine

_CONSUMER_CURSOR = "EVENT_LOG_CONSUMER_CURSOR-"
KEPT_OPEN = 8  # databases (one a run, and the index); older ones are closed
BUSY_TIMEOUT_SECONDS = 60
_MIRRORED = ASSET_EVENTS | ASSET_CHECK_EVENTS | EVENT_TYPE_TO_PIPELINE_RUN_STATUS.keys()
_INSERT = SqlEventLogStorageTable.insert()
_ASSET, _CHECK = AssetKeyTable.c, AssetCheckExecutionsTable.c
_UPDATE_ASSET = AssetKeyTable.update().where(_ASSET.asset_key == bindparam("of_asset"))
_UPDATE_CHECK = AssetCheckExecutionsTable.update().where(
    _CHECK.asset_key == bindparam("of_asset"),
    _CHECK.check_name == bindparam("of_check"),
    _CHECK.run_id == bindparam("of_run"),
    _CHECK.partition.is_not_distinct_from(bindparam("of_partition")),
)


class RunStorage(SqliteRunStorage):
    """As SqliteRunStorage, but the daemon that re-executes crashed runs starts at the beginning of a new event log.

    The stock one warns, at the first start, that it ignores what was logged before; here nothing is ignored.
    """

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:  # noqa: ANN401
        """What Dagster calls with the ``config`` of dagster.yaml."""
        return cls.from_local(inst_data=inst_data, **config_value)

    def get_cursor_values(self, keys: set[str]) -> Mapping[str, str]:
        """The stored cursors; 0, the start, for the daemon's that are not stored yet."""
        return {key: "0" for key in keys if key.startswith(_CONSUMER_CURSOR)} | dict(super().get_cursor_values(keys))


class PooledSqliteEventLogStorage(SqliteEventLogStorage):
    """As SqliteEventLogStorage, with one open connection per database and a write-ahead log that is synced in batches.

    A crash of the process loses nothing. A power cut may lose the last events of a run, never the database: the tables
    themselves are synced by ``storage.py`` and do not depend on the event log.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engines: dict[str, Engine] = {}
        self._tables: set[str] = set()
        self._has_columns = False
        super().__init__(base_dir, inst_data)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:  # noqa: ANN401
        """What Dagster calls with the ``config`` of dagster.yaml."""
        return cls(inst_data=inst_data, **config_value)

    def has_table(self, table_name: str) -> bool:
        """Whether the index has a table; asked for every event, so a yes is remembered."""
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

    def _has_asset_key_index_cols_on_connection(self, conn: Connection) -> bool:
        if not self._has_columns:
            self._has_columns = super()._has_asset_key_index_cols_on_connection(conn)
        return self._has_columns

    def store_event(self, event: EventLogEntry) -> None:
        """As the stock one: into the run's database, and into the index what is asked for across runs."""
        row = self._event_to_row(event)
        with self.run_connection(event.run_id) as connection:
            connection.execute(_INSERT, row)
        kind = event.dagster_event_type
        if kind not in _MIRRORED:
            return
        is_stored = kind not in ASSET_CHECK_EVENTS
        with self.index_transaction() as connection:
            event_id = connection.execute(_INSERT, row).lastrowid
            if kind in ASSET_EVENTS:
                self._store_asset_event_tags(connection, [event], [event_id])
                self._store_asset_event(connection, event, event_id)
            elif kind == DagsterEventType.ASSET_CHECK_EVALUATION and event.run_id:
                is_stored = _is_evaluation_stored(connection, row, event, event_id)
        if not is_stored:
            self.store_asset_check_event(event, event_id)

    def _store_asset_event(self, conn: Connection, event: EventLogEntry, event_id: int) -> None:
        values = self._get_asset_entry_values(event, event_id, self._has_asset_key_index_cols_on_connection(conn))
        key = event.get_dagster_event().asset_key
        if key and values and not conn.execute(_UPDATE_ASSET, values | {"of_asset": key.to_string()}).rowcount:
            conn.execute(AssetKeyTable.insert(), values | {"asset_key": key.to_string()})

    def _store_asset_check_evaluation_planned(self, event: EventLogEntry, event_id: int | None) -> None:
        planned = cast("AssetCheckEvaluationPlanned", event.get_dagster_event().event_specific_data)
        row = self._event_to_row(event)
        days = planned.partitions_subset.get_partition_keys() if planned.partitions_subset else [None]
        of_all = {
            "asset_key": planned.asset_key.to_string(),
            "check_name": planned.check_name,
            "run_id": event.run_id,
            "execution_status": AssetCheckExecutionRecordStatus.PLANNED.value,
            "evaluation_event": row["event"],
            "evaluation_event_timestamp": row["timestamp"],
            "evaluation_event_storage_id": event_id,
        }
        with self.index_connection() as connection:
            connection.execute(AssetCheckExecutionsTable.insert(), [of_all | {"partition": day} for day in days])

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._db_lock:
            engine = self._engine(shard)
            if shard not in self._initialized_dbs:
                self._initdb(engine)
                self._initialized_dbs.add(shard)
            with engine.connect() as connection, connection.begin():
                yield connection

    def _engine(self, shard: str) -> Engine:
        engine = self._engines.pop(shard, None)
        if engine is not None and not os.access(self.path_for_shard(shard), os.F_OK):
            engine.dispose()  # the run was deleted from the history
            self._initialized_dbs.discard(shard)
            engine = None
        if engine is None:
            engine = create_engine(
                self.conn_string_for_shard(shard),
                poolclass=QueuePool,
                pool_size=1,
                connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
            )
            event.listen(engine, "connect", _sync_in_batches)
        self._engines[shard] = engine  # the most recently used one stands last
        while len(self._engines) > KEPT_OPEN:
            self._engines.pop(next(iter(self._engines))).dispose()
        return engine

    def step_log_size(self, run_id: str) -> int:
        """Bytes of the log of a run's steps; what it made of assets stands in the index."""
        path = Path(self.path_for_shard(run_id))
        return path.stat().st_size if path.exists() else 0

    def drop_step_log(self, run_id: str) -> None:
        """Take the log of a run's steps away; the UI goes on to know what the run made, and when."""
        engine = self._engines.pop(run_id, None)
        if engine is not None:
            engine.dispose()
        self._initialized_dbs.discard(run_id)
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path_for_shard(run_id)}{suffix}").unlink(missing_ok=True)

    def dispose(self) -> None:
        """Close every connection."""
        while self._engines:
            self._engines.popitem()[1].dispose()
        super().dispose()


def _is_evaluation_stored(connection: Connection, row: Mapping[str, Any], event: EventLogEntry, event_id: int) -> bool:
    """Put what a check found in the one place that was planned for it; False where there is not exactly one."""
    found = event.get_dagster_event().asset_check_evaluation_data
    target, status = found.target_materialization_data, AssetCheckExecutionRecordStatus
    values = {
        "of_asset": found.asset_key.to_string(),
        "of_check": found.check_name,
        "of_run": event.run_id,
        "of_partition": found.partition,
        "execution_status": (status.SUCCEEDED if found.passed else status.FAILED).value,
        "evaluation_event": row["event"],
        "evaluation_event_timestamp": row["timestamp"],
        "evaluation_event_storage_id": event_id,
        "materialization_event_storage_id": target.storage_id if target else None,
    }
    return connection.execute(_UPDATE_CHECK, values).rowcount == 1


def _sync_in_batches(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's connection
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()
