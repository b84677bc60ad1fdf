"""The sensor that sees files land and asks for exactly the days they touch.

Here: one tick, as a pure function, and the sensor around it. Not here: the ledger (``landing.py``) or the runs
(``jobs.py``).

What is done is known from the lake (``DayLog.finished``), not from the cursor: the cursor only remembers what was asked
for and is not finished yet, so a day that fails is asked for once for each content of its files, not at every tick.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagster import (
    DefaultSensorStatus,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from data_assets import disk, landing
from data_assets.errors import RawFolderMissingError, StorageFullError, visible
from data_assets.jobs import BUDGET_SECONDS, range_tags, running_days
from data_assets.partitions import contiguous_ranges, days_of
from data_assets.report.text import plural
from data_assets.storage import DayLog, Lake

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

    from data_assets.config import PipelineConfig

INTERVAL_SECONDS = 30


@dataclass(frozen=True)
class Tick:
    """What a tick asks for: ranges of days with a key each, and what the next tick must remember."""

    ranges: tuple[tuple[str, str, str], ...]
    cursor: str


def decide(stale: Mapping[str, str], cursor: str | None, running: set[str], longest: int = 366) -> Tick:
    """Which days to ask for now.

    Args:
        stale: days whose tables are not made from what lies there now, with the fingerprint they should have.
        cursor: what the last tick remembered.
        running: days that a run is working on; they are looked at again when it has ended.
        longest: the most days of a range; what is longer is cut.
    """
    before: dict[str, Any] = json.loads(cursor) if cursor else {"generation": 0, "asked": {}}
    asked = {day: mark for day, mark in before["asked"].items() if stale.get(day) == mark}
    due = {day: mark for day, mark in stale.items() if asked.get(day) != mark and day not in running}
    # Dagster never starts a second run with the same key, so content A, B, A again needs a third one.
    generation = before["generation"] + bool(due)
    ranges = tuple((first, last, f"{generation}:{first}..{last}") for first, last in contiguous_ranges(due, longest))
    return Tick(ranges, json.dumps({"generation": generation, "asked": asked | due}, sort_keys=True))


def build_sensor(config: PipelineConfig, job: UnresolvedAssetJobDefinition) -> SensorDefinition:
    """Looks at the raw directory and asks for one run per contiguous range of days that changed."""

    @sensor(
        name="raw_files",
        job=job,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=DefaultSensorStatus.RUNNING if config.sensor.enabled else DefaultSensorStatus.STOPPED,
        description="New, changed, removed and late files in the raw directory re-run exactly the days they touch.",
    )
    def raw_files(context: SensorEvaluationContext) -> SensorResult:
        lake = Lake(config.lake_dir)
        try:
            looked = landing.refresh(config, lake, now_ns=time.time_ns(), budget_seconds=BUDGET_SECONDS)
        except RawFolderMissingError as problem:
            return SensorResult(skip_reason=SkipReason(str(problem)), cursor=context.cursor)
        for path, reason in looked.listing.ignored.items():
            context.log.warning("%s is left alone: %s", visible(path), reason)
        today = dt.datetime.now(config.zone).date()
        stale = landing.stale_days(looked.ledger, DayLog(config.lake_dir), first=config.start_date, last=today)
        tick = decide(stale, context.cursor, running_days(context.instance) if stale else set(), config.runs.max_days)
        if tick.ranges:
            days = days_of([(first, last) for first, last, _ in tick.ranges])
            try:
                disk.check_room(config, landing.files_of(looked.ledger, days)["path"].unique())
            except StorageFullError as problem:  # they are asked for once there is room
                return SensorResult(skip_reason=SkipReason(str(problem)), cursor=context.cursor)
        requests = [RunRequest(run_key=key, tags=range_tags(first, last)) for first, last, key in tick.ranges]
        still = {
            "still changing": plural(len(looked.listing.settling), "file"),
            "waiting for the next look": plural(len(looked.left), "file"),
            "asked for and not done yet": plural(len(stale), "day"),
        }
        left = "".join(f"; {many} {what}" for what, many in still.items() if not many.startswith("0 "))
        quiet = SkipReason(f"{plural(len(looked.listing.files), 'file')}, nothing new to make{left}")
        return SensorResult(run_requests=requests, skip_reason=None if requests else quiet, cursor=tick.cursor)

    return raw_files
