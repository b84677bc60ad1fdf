"""The floor under a run: the project's own graph with nothing in it, so what remains is what Dagster writes down.

Here: the twin of the graph, with as many assets, steps, days and checks, whose functions return at once; `python -m
benchmarks.floor FOLDER FIRST LAST` runs it over a range of days, with the settings in FOLDER, and prints what that took
as JSON. Not here: what stands beside it (``scale.py``).
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckExecutionContext,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetsDefinition,
    AssetSpec,
    DagsterInstance,
    Definitions,
    MaterializeResult,
    Output,
    asset_check,
    define_asset_job,
    in_process_executor,
    multi_asset,
)

from benchmarks.pipeline import memory_mb
from data_assets.cli import QUIET
from data_assets.config import load_config
from data_assets.definitions import build_definitions
from data_assets.jobs import ALL_DAYS, WEEKLY, range_tags


def twin(definitions: Definitions) -> Definitions:
    """The same assets and checks, with nothing in them; without the report of weeks, which has a job of its own."""
    real = [a for a in definitions.assets or () if isinstance(a, AssetsDefinition)]
    of_days = [a for a in real if WEEKLY not in {key.to_user_string() for key in a.keys}]
    return Definitions(
        assets=[_asset(a) for a in of_days],
        asset_checks=[_check(spec) for c in definitions.asset_checks or () for spec in c.check_specs],
        jobs=[define_asset_job(ALL_DAYS, executor_def=in_process_executor)],
    )


def _asset(real: AssetsDefinition) -> AssetsDefinition:
    specs = [AssetSpec(s.key, deps=s.deps, partitions_def=s.partitions_def) for s in real.specs]
    checks = list(real.check_specs)

    @multi_asset(name=f"empty_{real.op.name}", specs=specs, check_specs=checks, backfill_policy=real.backfill_policy)
    def empty(context: AssetExecutionContext) -> Iterator[Any]:
        for spec in specs:
            yield MaterializeResult(asset_key=spec.key)
        for spec in checks:
            yield Output(None, output_name=spec.get_python_identifier())
            yield from _passed(context, spec)

    return empty


def _check(spec: AssetCheckSpec) -> Any:  # noqa: ANN401 - Dagster's decorator
    @asset_check(asset=spec.asset_key, name=spec.name, partitions_def=spec.partitions_def)
    def empty(context: AssetCheckExecutionContext) -> Iterator[Any]:
        yield from _passed(context, spec)
        yield Output(None)

    return empty


def _passed(
    context: AssetExecutionContext | AssetCheckExecutionContext, spec: AssetCheckSpec
) -> Iterator[AssetCheckEvaluation]:
    """The check, passed on each day."""
    for day in context.partition_keys if spec.partitions_def is not None else (None,):
        yield AssetCheckEvaluation(
            asset_key=spec.asset_key,
            check_name=spec.name,
            passed=True,
            partition=day,
            metadata={"observed": "nothing"},
        )


def main(folder: str, first: str, last: str) -> None:
    """Run the twin in this process."""
    os.chdir(folder)
    job = twin(build_definitions(load_config(Path("pipeline.yaml")))).resolve_job_def(ALL_DAYS)
    with DagsterInstance.from_config(".") as instance:
        started, cpu = time.monotonic(), time.process_time()
        done = job.execute_in_process(instance=instance, run_config=QUIET, tags=range_tags(first, last))
        cpu, wall = time.process_time() - cpu, time.monotonic() - started
        events = len(instance.all_logs(done.run_id))
    told = {"cpu": cpu, "wall": wall, "peak": memory_mb("VmHWM"), "steps": len(job.graph.nodes), "events": events}
    sys.stdout.write(f"\n{json.dumps(told)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
