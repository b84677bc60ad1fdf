"""How an asset's days reach the lake and the warehouse, and how they come back.

Here: the IO managers, a table's days as they are loaded, and how Dagster shows them: a contract (column schema,
lineage), metadata of days. Not here: files, transactions and locks (``storage.py``), nor what is computed
(``metrics.py``).

An asset hands over a mapping of day to frame. Days that it refused are left out, and only the days that were written
are recorded as materialised. Inputs are mappings too: a day that was refused or never written is missing from them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
from dagster import AssetKey as Key
from dagster import (
    ConfigurableIOManager,
    InputContext,
    IOManager,
    MetadataValue,
    OutputContext,
    ResourceDependency,
    TableColumn,
    TableColumnConstraints,
    TableColumnDep,
    TableColumnLineage,
    TableConstraints,
    TableSchema,
)
from dagster._core.execution.context.metadata_logging import AssetMetadataHandle, OutputMetadataAccumulator
from dagster._core.execution.context.system import StepExecutionContext
from dagster_duckdb import DuckDBResource
from dagster_polars import BasePolarsUPathIOManager
from pydantic import Field
from upath import UPath

from data_assets import retries, telemetry
from data_assets.contracts import Table, UserIdType, tables
from data_assets.storage import DayFrame, DayLog, Lake, Version, Warehouse, scan_versions


class Days(dict[str, pl.LazyFrame]):
    """The days of a table as they were loaded: each a frame, of which nothing is read yet.

    Attributes:
        versions: of a table of the lake, what each day is read from; it never changes, also when the day is made anew.
    """

    def __init__(self, frames: Mapping[str, pl.LazyFrame], versions: Mapping[str, Version] | None = None) -> None:
        super().__init__(frames)
        self.versions = versions or {}

    def rows(self, day: str) -> int:
        """How many rows the day has; 0 when it is not there."""
        return self.versions[day].rows if day in self.versions else 0


def column_schema(contract: Table) -> TableSchema:
    """The contract as Dagster's column schema."""

    def column(name: str, kind: str, description: str, *, nullable: bool) -> TableColumn:
        constraints = TableColumnConstraints(nullable=nullable, unique=contract.key == (name,))
        return TableColumn(name, kind, description, constraints)

    columns = [column(c.name, _type_name(c.dtype), c.description, nullable=c.nullable) for c in contract.columns]
    if contract.store == "warehouse":
        columns.insert(0, column("date", "Date", "the day", nullable=False))
    key = [f"unique within a day: {', '.join(contract.key)}"] if contract.key else []
    return TableSchema(columns, TableConstraints(other=key))


def _type_name(dtype: pl.DataType) -> str:
    """A type for people: the unit of times is the same everywhere.

    >>> _type_name(pl.Datetime("us"))
    'Datetime'
    """
    return "Datetime" if isinstance(dtype, pl.Datetime) else str(dtype)


def column_lineage(contract: Table) -> TableColumnLineage | None:
    """Which columns of the tables above each column is computed from; None when the contract names none."""
    deps = {
        c.name: [TableColumnDep(Key(s.split(".")[0]), s.split(".")[1]) for s in c.source]
        for c in contract.columns
        if c.source
    }
    return TableColumnLineage(deps) if deps else None


def _frames(context: OutputContext, obj: object) -> Mapping[str, Any]:
    """The days of an output, each a LazyFrame, DataFrame or DayFrame; a lone frame belongs to the run's only day."""
    frames = obj if isinstance(obj, dict) else {context.asset_partition_key: obj}
    surplus = sorted(set(frames) - set(context.asset_partition_keys))
    if surplus:
        raise ValueError(f"{context.asset_key.to_user_string()} returned days that were not asked for: {surplus[:5]}")
    return frames


def _record_only(context: OutputContext, days: list[str]) -> None:
    """Let Dagster record these days of the range as materialised, and no others.

    Dagster has no partial success of a range (dagster#21072): it records every day of the run unless the output's
    subset, which has no public setter, is narrowed. A test holds this against new versions.
    """
    context._asset_partitions_subset = context.asset_partitions_def.subset_with_partition_keys(days)


def note_days(step: StepExecutionContext, noted: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    """Add metadata to the materialisations that a step is to record.

    As ``add_asset_metadata``, which takes one day at a time: each time it lists all days of the run and copies all that
    was noted before, so that what a day costs grows with the length of the range.

    Args:
        step: the step.
        noted: metadata by table and day.
    """
    every = dict(step._metadata_accumulator.per_output_metadata)
    for (table, day), metadata in noted.items():
        handle = AssetMetadataHandle(asset_key=Key.from_user_string(table), partition_key=day)
        every[handle] = {**every.get(handle, {}), **metadata}
    step._metadata_accumulator = OutputMetadataAccumulator(per_output_metadata=every)


def _missing(context: InputContext, found: Days) -> str:
    days = sorted(set(context.asset_partition_keys) - set(found))
    return f"{context.asset_key.to_user_string()} has no usable data for {days[:5]}"


def _as_asked(context: InputContext, found: Days) -> Days | pl.LazyFrame:
    """All days as a mapping; the only day as a frame where the input is annotated so."""
    if context.dagster_type.typing_type is not pl.LazyFrame:
        return found
    if len(found) != 1:
        raise ValueError(_missing(context, found))
    return next(iter(found.values()))


class LakeIOManager(BasePolarsUPathIOManager):
    """Days in the lake: streamed to Parquet, replaced atomically, read through pointers to immutable versions."""

    extension: ClassVar[str | None] = ".parquet"  # type: ignore[misc]  # dagster-polars asks for a ClassVar
    base_dir: str | None = Field(default=None, description="folder of the lake")
    user_id: str = Field(default="int64", description="type of user_id: int64 or string")
    lock_timeout: float = Field(default=600.0, gt=0, description="seconds to wait for another writer of the same day")

    @property
    def lake(self) -> Lake:
        """The store behind this manager."""
        return Lake(self._folder, self.lock_timeout)

    @property
    def _folder(self) -> Path:
        if self.base_dir is None:
            raise ValueError("base_dir is not set")
        return Path(self.base_dir)

    def contract(self, context: OutputContext | InputContext) -> Table:
        """The contract of the asset that is being stored or loaded."""
        user_id: UserIdType = "string" if self.user_id == "string" else "int64"
        return tables(user_id)[context.asset_key.path[-1]]

    @retries.guarded_method
    def handle_output(self, context: OutputContext, obj: object) -> None:
        """Write each day; see the module's docstring."""
        contract = self.contract(context)
        written: dict[str, Version] = {}
        for day, value in _frames(context, obj).items():
            given = value if isinstance(value, DayFrame) else DayFrame(value.lazy(), {})
            with telemetry.blamed(), telemetry.timed(day):
                written[day] = self.lake.write(contract, day, given.frame, given.notes, given.ready)
            telemetry.wrote(contract.name, day, written[day].rows, written[day].size)
        figures = {(contract.name, day): self._metadata(contract, day, version) for day, version in written.items()}
        note_days(context.step_context, figures)
        _record_only(context, list(written))

    def _metadata(self, contract: Table, day: str, version: Version) -> dict[str, Any]:
        return {
            "dagster/partition_row_count": version.rows,
            "size_bytes": version.size,
            "path": MetadataValue.path(str(self.lake.folder(contract.name, day) / "data.parquet")),
        }

    @retries.guarded_method
    def load_input(self, context: InputContext) -> Days | pl.LazyFrame:
        """The days that are there and were not refused; nothing is read yet."""
        contract, days = self.contract(context), list(context.asset_partition_keys)
        refused = DayLog(self._folder).refusals(contract.name, days)
        found = ((d, self.lake.current(contract.name, d)) for d in days if d not in refused)
        versions = {d: version for d, version in found if version is not None}
        frames = {d: scan_versions(contract, [version]) for d, version in versions.items()}
        return _as_asked(context, Days(frames, versions))

    def write_df_to_path(self, context: OutputContext, df: pl.DataFrame, path: UPath) -> None:
        """Not used: days are written by ``handle_output``, because a path alone cannot be replaced safely."""
        raise NotImplementedError(f"{path} of {context.asset_key} is written by handle_output")

    def sink_df_to_path(self, context: OutputContext, df: pl.LazyFrame, path: UPath) -> None:
        """Not used, as ``write_df_to_path``."""
        raise NotImplementedError(f"{path} of {context.asset_key} is written by handle_output")

    def scan_df_from_path(self, path: UPath, context: InputContext, partition_key: str | None = None) -> pl.LazyFrame:
        """Not used: days are read by ``load_input``, through their pointers."""
        raise NotImplementedError(f"{path} of {context.asset_key} is read by load_input")


class WarehouseIOManager(ConfigurableIOManager):
    """Days in DuckDB tables: delete and insert by name in one transaction for all days of the run."""

    duckdb: ResourceDependency[DuckDBResource]
    lake: ResourceDependency[LakeIOManager]
    trend_days: int = Field(default=14, description="days that the comparison view looks back")
    lock_timeout: float = Field(default=600.0, gt=0, description="seconds to wait for another writer")

    @property
    def warehouse(self) -> Warehouse:
        """The store behind this manager."""
        return Warehouse(
            Path(self.duckdb.database),
            self.lake.lake,
            user_id="string" if self.lake.user_id == "string" else "int64",
            trend_days=self.trend_days,
            lock_timeout=self.lock_timeout,
            # Not get_connection: it waits 100 s by its own clock, and leaves the file open when its body raises.
            settings=self.duckdb.connection_config,
        )

    @retries.guarded_method
    def handle_output(self, context: OutputContext, obj: object) -> None:
        """Write the days; see the module's docstring."""
        contract = self.lake.contract(context)
        with telemetry.blamed():
            rows = self.warehouse.replace(contract, _frames(context, obj))
        for day, count in rows.items():
            telemetry.wrote(contract.name, day, count)
        said = {"dagster/table_name": contract.name}
        figures = {(contract.name, day): {"dagster/partition_row_count": count} | said for day, count in rows.items()}
        note_days(context.step_context, figures)
        _record_only(context, list(rows))

    @retries.guarded_method
    def load_input(self, context: InputContext) -> Days | pl.LazyFrame:
        """The days that are there and were not refused."""
        contract, days = self.lake.contract(context), list(context.asset_partition_keys)
        refused = DayLog(self.lake.lake.root).refusals(contract.name, days)
        return _as_asked(context, Days(self.warehouse.scan(contract, [d for d in days if d not in refused])))


class ReportFiles(IOManager):
    """Records which days have a report; the files themselves are written by ``report.write``, atomically.

    Likewise days in PostgreSQL, which ``publish.publish_day`` has committed.
    """

    def handle_output(self, context: OutputContext, obj: object) -> None:
        """Record the days of ``obj``; there is nothing left to write."""
        _record_only(context, list(_frames(context, obj)))

    def load_input(self, context: InputContext) -> None:
        """Reports and what is published are for people: no asset reads them."""
        raise NotImplementedError(f"{context.asset_key.to_user_string()} is not an input")
