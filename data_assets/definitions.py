"""Puts everything together for Dagster; the only module that sees all others.

Here: ``defs``, which Dagster calls when it loads the code location. Not here: anything that could be wrong on its own.
The configuration is read when ``defs`` is called, not when this module is imported.
"""

from __future__ import annotations

import warnings

from dagster import BetaWarning, Definitions, PreviewWarning, definitions, in_process_executor
from dagster_duckdb import DuckDBResource

from data_assets import memory
from data_assets.config import PipelineConfig, load_config

# Used on purpose, pinned and tested: backfill policies (beta), partitioned checks (preview).
warnings.filterwarnings("ignore", category=BetaWarning)
warnings.filterwarnings("ignore", category=PreviewWarning)

TABLES_WITH_DAYS = (
    "raw_events",
    "session_metrics",
    "outliers",
    "event_distribution",
    "summary_statistics",
    "daily_kpis",
    "daily_report",
)


def build_definitions(config: PipelineConfig) -> Definitions:
    """The whole project for one configuration."""
    memory.settle_allocator(config.memory)  # before the modules that load Polars
    from data_assets import alerts, assets, checks, jobs, retries, sensors
    from data_assets.io_managers import LakeIOManager, ReportFiles, WarehouseIOManager
    from data_assets.partitions import daily_partitions
    from data_assets.publish import published_names

    partitions = daily_partitions(config)
    job, weekly = jobs.build_job(), jobs.build_weekly_job()
    keeping = [jobs.build_retention(config)] if config.retention.is_set else []
    duckdb = DuckDBResource(database=str(config.warehouse_path))
    lake = LakeIOManager(base_dir=str(config.lake_dir), user_id=config.source.types.user_id)
    return Definitions(
        assets=assets.build_assets(config),
        asset_checks=checks.completeness_checks(config, [*TABLES_WITH_DAYS, *published_names(config)], partitions),
        jobs=[job, weekly, *(kept for kept, _ in keeping)],
        executor=in_process_executor,  # also of the job behind Materialize and backfills: docs/decisions/0003
        schedules=[
            jobs.build_schedule(config, job),
            jobs.build_weekly_schedule(config, weekly),
            *(daily for _, daily in keeping),
        ],
        sensors=[
            sensors.build_sensor(config, job),
            jobs.build_dead_runs_sensor(config),
            retries.build_failure_sensor(),
            alerts.build_sensor(config),
        ],
        resources={
            "lake": lake,
            "warehouse": WarehouseIOManager(duckdb=duckdb, lake=lake, trend_days=config.trend_days),
            "reports": ReportFiles(),
            "postgres": ReportFiles(),
        },
    )


@definitions
def defs() -> Definitions:
    """What Dagster loads: the project as the configuration in force has it."""
    return build_definitions(load_config())
