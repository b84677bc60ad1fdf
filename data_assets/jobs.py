"""The job that makes days, and the daily schedule.

Here: what a run consists of and how it is executed. Not here: when files ask for one (``sensors.py``).

One process does all steps of a run, one after the other: each of them already uses every core, and a process per step
would import everything again (docs/decisions/0003).
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from dagster import (
    AssetSelection,
    DefaultScheduleStatus,
    RunRequest,
    ScheduleEvaluationContext,
    define_asset_job,
    in_process_executor,
    schedule,
)

if TYPE_CHECKING:
    from dagster import ScheduleDefinition
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

    from data_assets.config import PipelineConfig

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
ALL_DAYS = "all_days"


def range_tags(first: str, last: str) -> dict[str, str]:
    """Run tags that ask for every day from ``first`` to ``last``, both included."""
    return {RANGE_START: first, RANGE_END: last}


def build_job() -> UnresolvedAssetJobDefinition:
    """Files to reports: the whole graph for a day or a range of days."""
    return define_asset_job(
        ALL_DAYS,
        selection=AssetSelection.all(),
        executor_def=in_process_executor,
        description="Everything from the raw files to the reports, for a day or a range of days.",
    )


def build_schedule(config: PipelineConfig, job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """Yesterday's day, once a day at ``schedule.hour:schedule.minute`` in the configured zone.

    Not ``build_schedule_from_partitioned_job``: it asks for the last partition, which is today's unfinished day here.
    """

    @schedule(
        name="yesterday",
        job=job,
        cron_schedule=f"{config.schedule.minute} {config.schedule.hour} * * *",
        execution_timezone=config.timezone,
        default_status=DefaultScheduleStatus.STOPPED,
        description="Makes yesterday's day once it is over. The sensor raw_files makes days as their files land.",
    )
    def yesterday(context: ScheduleEvaluationContext) -> RunRequest:
        now = context.scheduled_execution_time.astimezone(config.zone)
        day = (now.date() - dt.timedelta(days=1)).isoformat()
        return RunRequest(run_key=day, tags=range_tags(day, day))

    return yesterday
