"""The asset graph: each asset gets its days, calls one function of the core, has the result judged, and hands it over.

Here: assets, their descriptions and metadata, and how a range of days goes on when one of them is refused. Not here:
what the data means (``ingest/``, ``metrics.py``, ``report/``), the judgements (``checks.py``) or storage
(``io_managers.py``).
"""

import contextlib
import datetime as dt
import functools
import inspect
import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
from dagster import (
    AssetCheckEvaluation,
    AssetCheckResult,
    AssetCheckSeverity,
    AssetDep,
    AssetExecutionContext,
    AssetIn,
    AssetKey,
    AssetOut,
    AssetsDefinition,
    AssetSpec,
    BackfillPolicy,
    DailyPartitionsDefinition,
    DataVersion,
    Failure,
    FreshnessPolicy,
    MaterializeResult,
    MetadataValue,
    Output,
    TableRecord,
    TimeWindowPartitionMapping,
    asset,
    map_asset_specs,
    multi_asset,
)

from data_assets import (
    checks,
    cleaning,
    disk,
    landing,
    logs,
    memory,
    metrics,
    periods,
    progress,
    publish,
    report,
    retries,
    staging,
    telemetry,
)
from data_assets.config import PipelineConfig
from data_assets.contracts import LANDED_FILES, Table, tables
from data_assets.engine import FEW_ROWS, chosen, for_rows, in_pieces, scan_named
from data_assets.errors import DataAssetsError, DayFailedError, visible
from data_assets.io_managers import Days, column_lineage, column_schema, note_days
from data_assets.partitions import daily_partitions, days_between, weekly_partitions
from data_assets.storage import (
    DayFrame,
    DayLog,
    Finding,
    Lake,
    Warehouse,
    scratch_folder,
    sweep_scratch,
    written_as,
)

OWNERS = ["team:data"]
WAREHOUSE_POOL = "warehouse"
SAMPLE_ROWS = 1_000
MOST_FIGURES = 4_096  # how many days a process remembers the figures of: about a kilobyte each
MOST_HELD = 500_000  # how many rows of small days it holds with them, about 100 bytes each
CSV_ROWS = 131_072  # of a long table, read at once to be written as CSV; a whole row group takes twice the memory
TOLD_FILES = 20  # files that the event log names in a run; each line there costs a millisecond


@dataclass(frozen=True)
class Computed:
    """What an asset made of one day: the rows, the judgement on them, and figures to show."""

    frame: pl.LazyFrame | pl.DataFrame | DayFrame
    findings: Sequence[Finding]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Outcome:
    """The days of a run, as far as they came."""

    frames: dict[str, Any] = field(default_factory=dict)
    findings: dict[tuple[str, str], Sequence[Finding]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    metadata: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def note(self, table: str, day: str, metadata: Mapping[str, Any]) -> None:
        """Figures to show with a table's day."""
        self.metadata.setdefault((table, day), {}).update(metadata)

    def reason(self) -> str:
        return "\n".join(f"{day}: {why}" for day, why in self.refused.items())


def _measured(config: PipelineConfig, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have an asset's function measured as a stage of its run, with what Dagster stores of it in between."""

    def decorate(compute: Callable[..., Any]) -> Callable[..., Any]:
        @contextlib.contextmanager
        def measured(context: AssetExecutionContext, inputs: Mapping[str, Any]) -> Iterator[None]:
            with telemetry.stage(name, config, _run_of(context)) as stage:
                events = inputs.get("raw_events")
                if events is not None:
                    stage.note(rows_in=sum(events.rows(day) for day in events))
                yield

        @functools.wraps(compute)
        def steps(context: AssetExecutionContext, **inputs: Any) -> Iterator[Any]:
            with measured(context, inputs):
                yield from compute(context, **inputs)

        @functools.wraps(compute)
        def whole(context: AssetExecutionContext, **inputs: Any) -> Any:  # noqa: ANN401 - what the asset returns
            with measured(context, inputs):
                return compute(context, **inputs)

        return steps if inspect.isgeneratorfunction(compute) else whole

    return decorate


def _run_of(context: AssetExecutionContext) -> telemetry.Run:
    """The run, for its history; its days by its tags, because landed_files has no partitions of its own."""
    tags = context.run.tags
    one = tags.get(retries.PARTITION)
    first, last = tags.get(retries.RANGE_START, one), tags.get(retries.RANGE_END, one)
    days = days_between(dt.date.fromisoformat(first), dt.date.fromisoformat(last)) if first and last else []
    return telemetry.Run(context.run.run_id, retries.started_by(tags), tuple(days))


def _cause(findings: Sequence[Finding]) -> str:
    """The names of the checks that refuse a day, for logs."""
    return ",".join(sorted({f.name for f in findings if not f.passed and f.severity == "ERROR"}))


def _failed(findings: Sequence[Finding]) -> str | None:
    """Why a day is refused, when an ERROR finding failed."""
    failed = [f"{f.name}: {f.observed}" for f in findings if not f.passed and f.severity == "ERROR"]
    return "; ".join(failed) or None


def _conclude(
    context: AssetExecutionContext, outcome: _Outcome, outputs: Mapping[str, Mapping[str, Any]]
) -> Iterator[AssetCheckEvaluation | Output[Any]]:
    """Hand over the days, record the judgements on them, and fail the step when no good day is left for those below."""
    if any(outputs.values()):
        note_days(context.get_step_execution_context(), outcome.metadata)
        for name, frames in outputs.items():
            yield Output(dict(frames), output_name=name)
        for output_name in checks.output_names({table for table, _ in outcome.findings}):
            yield Output(None, output_name=output_name)
    yield from checks.evaluations(context.instance, outcome.findings, stop=False)
    if not any(set(frames) - set(outcome.refused) for frames in outputs.values()):
        raise Failure(f"No day could be done.\n{outcome.reason()}", allow_retries=False)


def _compute_days(
    context: AssetExecutionContext,
    config: PipelineConfig,
    table: Table,
    compute: Callable[[str], Computed],
    raw_events: Days,
) -> Iterator[AssetCheckEvaluation | Output[Any]]:
    """Run ``compute`` for each day of the run; a day that is refused does not cost the others."""
    log, outcome = DayLog(config.lake_dir), _Outcome()
    days = list(context.partition_keys)
    for day in days:
        progress.step(table.name, day)
        found: Sequence[Finding] = ()
        cause = ""
        try:
            with telemetry.timed(day), for_rows(raw_events.rows(day)):
                computed = compute(day)
        except DataAssetsError as problem:
            if problem.retryable:
                raise
            reason: str | None = str(problem)
            cause = type(problem).__name__
        else:
            found = computed.findings
            outcome.findings[table.name, day] = found
            reason, cause = _failed(found), _cause(found)
            if reason is None:
                outcome.frames[day] = computed.frame
                outcome.note(table.name, day, computed.metadata)
        log.record(table.name, day, found, reason)
        if reason is not None:
            outcome.refused[day] = reason
            telemetry.refused(day, cause)
    lineage = column_lineage(table)
    if lineage is not None:  # the same for all days, and each copy is stored in the event log
        outcome.note(table.name, days[-1], {"dagster/column_lineage": lineage})
    yield from _conclude(context, outcome, {"result": outcome.frames})


def _need(table: str, days: Days, day: str, log: DayLog) -> pl.LazyFrame:
    """The day of an upstream table.

    Raises:
        DayFailedError: it was refused, or never made.
    """
    if day in days:
        return days[day]
    refused = log.refusals(table, [day]).get(day)
    if refused is None:
        what, hint = f"{table} of {day} was never made.", f"Materialise {table} of this day first."
    else:
        what, hint = f"{table} of {day} was refused: {refused}", "Mend the cause named above, then run the day again."
    raise DayFailedError(what, hint, table=table, day=day)


class _Figures:
    """What the assets of a run share of a day's events, and how each day is worked on."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self.decisions: dict[str, memory.Decision] = {}
        self._known: dict[Path, metrics.DayFigures] = {}
        self._latest: metrics.DayFigures | None = None
        self._held = 0
        self._available: int | None = None

    def of(self, raw_events: Days, day: str, log: DayLog) -> metrics.DayFigures:
        """The figures of a day as it was loaded, with its events.

        Raises:
            DayFailedError: it was refused, or never made.
        """
        events, version = _need("raw_events", raw_events, day, log), raw_events.versions[day]
        known = self._known.get(version.path)
        if known is None:
            if len(self._known) >= MOST_FIGURES:
                self._known.clear()
                self._held = 0
            rows = version.rows
            if rows <= FEW_ROWS and self._held + rows <= MOST_HELD:
                events = events.collect(engine=chosen()).lazy()
                self._held += rows
            self.decisions[day] = decision = self._decide(events, rows)
            if decision.needed == max(other.needed for other in self.decisions.values()):
                telemetry.note(decision=decision.mode, predicted_mb=decision.needed / 1e6)
            file = version.path if rows > FEW_ROWS else None  # of few rows a query is quicker than a footer
            if self._latest is not None:  # of many days together the counts would come to gigabytes
                self._latest.forget_counts()
            self._latest = known = metrics.DayFigures(events, decision.mode, self.config.scratch_dir, file)
            self._known[version.path] = known
        return known

    def _decide(self, events: pl.LazyFrame, rows: int) -> memory.Decision:
        """How the day is worked on, by what there is now."""
        length = None
        if self.config.source.types.user_id == "string":
            texts = events.select(pl.col("user_id").head(SAMPLE_ROWS).str.len_bytes().mean())
            length = texts.collect(engine=chosen()).item() or 0.0
        if rows > FEW_ROWS or self._available is None:  # a short day does not change what there is
            self._available = memory.available(self.config.memory)
        return memory.decide(rows, memory.needed(rows, length), self._available, self.config.memory)


def backfills(config: PipelineConfig) -> BackfillPolicy:
    """A backfill is cut into runs of so many days; those that are done stay done when one is killed."""
    return BackfillPolicy.multi_run(config.runs.max_days)


def build_assets(config: PipelineConfig) -> list[AssetsDefinition]:
    """Every asset of the graph, for one configuration."""
    partitions, figures = daily_partitions(config), _Figures(config)
    made = [
        _landed_files(config),
        _raw_events(config, partitions),
        _session_metrics(config, partitions, figures),
        _outliers(config, partitions, figures),
        _event_distribution(config, partitions, figures),
        _summary_statistics(config, partitions, figures),
        _daily_kpis(config, partitions, figures),
        _daily_report(config, partitions, figures),
        _weekly_report(config),
        *(_published(config, partitions, name) for name in (config.postgres.tables if config.publishes else ())),
    ]
    return list(map_asset_specs(lambda spec: _kept_fresh(config, spec), made))


def _kept_fresh(config: PipelineConfig, spec: AssetSpec) -> AssetSpec:
    """The asset with its freshness policy, if one is configured."""
    windows = getattr(config.freshness, spec.key.to_user_string(), None)
    if windows is None or windows.fail_after_hours is None:
        return spec
    warn = windows.warn_after_hours
    policy = FreshnessPolicy.time_window(
        fail_window=dt.timedelta(hours=windows.fail_after_hours),
        warn_window=None if warn is None else dt.timedelta(hours=warn),
    )
    return spec.replace_attributes(freshness_policy=policy)


def _landed_files(config: PipelineConfig) -> AssetsDefinition:
    @asset(
        name=LANDED_FILES.name,
        description=LANDED_FILES.description,
        group_name="ingest",
        owners=OWNERS,
        kinds={"polars", "parquet"},
        metadata={"dagster/column_schema": column_schema(LANDED_FILES)},
        check_specs=checks.ledger_specs(),
    )
    @retries.guarded
    @_measured(config, LANDED_FILES.name)
    def landed_files(
        context: AssetExecutionContext,
    ) -> Iterator[MaterializeResult[None]]:
        days = set(_run_of(context).days)  # of a file whose name tells none of them the rows are only counted
        looked = landing.refresh(
            config,
            Lake(config.lake_dir),
            now_ns=time.time_ns(),
            is_made_next=lambda path: str(landing.home_day_in_name(path)) in days,
        )
        broken = looked.ledger.filter(pl.col("error").is_not_null())
        _tell_files(looked.listing.ignored, broken)
        rows = int(looked.ledger["rows"].sum())
        telemetry.note(
            rows_out=looked.ledger.height,
            files=looked.ledger["path"].n_unique(),
            files_read=len(looked.read),
            files_unusable=broken["path"].n_unique(),
        )
        today = dt.datetime.now(config.zone).date()
        judged = (
            checks.every_file_usable(looked.ledger),
            checks.no_missing_days(landing.missing_days(landing.landed_days(looked.ledger), last=today)),
        )
        yield MaterializeResult(
            # A day is due by the fingerprint of its own files. With a new version each time the UI would call every
            # day unsynced after each run, and offer to make it again.
            data_version=DataVersion("ledger"),
            metadata={
                "files": looked.ledger["path"].n_unique(),
                "days": looked.ledger["day"].n_unique(),
                "rows": rows,
                "files_read": len(looked.read),
                "files_settling": len(looked.listing.settling),
                "files_ignored": len(looked.listing.ignored),
                "files_unusable": broken["path"].n_unique(),
                "dagster/row_count": looked.ledger.height,
            },
            check_results=[
                AssetCheckResult(
                    check_name=f.name,
                    passed=f.passed,
                    severity=AssetCheckSeverity(f.severity),
                    metadata=checks.metadata_of(LANDED_FILES.name, f),
                )
                for f in judged
            ],
        )

    return landed_files


def _tell_files(ignored: Mapping[str, str], broken: pl.DataFrame) -> None:
    """Which files are left alone or cannot be used, and why; beyond the first ones in the file of log lines alone."""
    found = [(logging.WARNING, "file ignored", path, reason) for path, reason in ignored.items()]
    of_broken = broken.unique("path", keep="first", maintain_order=True).select("path", "error").iter_rows()
    found += [(logging.ERROR, "file refused", path, logs.reason_of(error)) for path, error in of_broken]
    for number, (level, event, path, reason) in enumerate(found):
        (logs.tell if number < TOLD_FILES else logs.write)(level, event, file=path, reason=reason)


def _asset(config: PipelineConfig, options: dict[str, Any]) -> Callable[[Callable[..., Any]], AssetsDefinition]:
    """Dagster's decorator, around a measured function; typed here because its overloads take no ``Any`` for data."""
    decorator: Callable[[Callable[..., Any]], AssetsDefinition] = asset(**options)

    def decorate(compute: Callable[..., Any]) -> AssetsDefinition:
        name = options["key"].to_user_string() if "key" in options else options.get("name", compute.__name__)
        return decorator(retries.guarded(_measured(config, name)(compute)))

    return decorate


def _options(
    config: PipelineConfig, table: Table, partitions: DailyPartitionsDefinition, group: str, *inputs: str
) -> dict[str, Any]:
    """What the assets of one table each have in common."""
    in_warehouse = table.store == "warehouse"
    return {
        "name": table.name,
        "description": table.description,
        "group_name": group,
        "owners": OWNERS,
        "kinds": {"polars", "duckdb" if in_warehouse else "parquet"},
        "io_manager_key": table.store,
        "partitions_def": partitions,
        "backfill_policy": backfills(config),
        "pool": WAREHOUSE_POOL if in_warehouse else None,
        "check_specs": checks.specs(table.name, partitions),
        "metadata": {"dagster/column_schema": column_schema(table)},
        "ins": {name: AssetIn(dagster_type=Any) for name in inputs},
        "dagster_type": Any,
    }


def _judge_ingest(
    config: PipelineConfig, contracts: Mapping[str, Table], found: staging.StagedDay, drifted: Finding
) -> dict[str, tuple[Finding, ...]]:
    """What is found about a day that was read, by table."""
    valid, quarantined, repeated = (contracts[n] for n in ("raw_events", "quarantined_events", "duplicate_events"))
    return {
        valid.name: (
            checks.contract(valid, found.valid, found.ready),
            checks.conservation(found.by_file),
            checks.quarantine_rate(found.by_file, config.quality.max_quarantine_rate),
            drifted,
        ),
        quarantined.name: (checks.known_reasons(quarantined, found.quarantined),),
        repeated.name: tuple(_judge_duplicates(config, repeated, found)),
    }


def _raw_events(config: PipelineConfig, partitions: DailyPartitionsDefinition) -> AssetsDefinition:
    contracts = tables(config.source.types.user_id)
    valid, quarantined, repeated = (contracts[n] for n in ("raw_events", "quarantined_events", "duplicate_events"))
    made = (valid, quarantined) if config.source.deduplicate == "none" else (valid, quarantined, repeated)

    def out(table: Table) -> AssetOut:
        return AssetOut(
            dagster_type=Any,
            description=table.description,
            group_name="ingest",
            owners=OWNERS,
            kinds={"polars", "parquet"},
            io_manager_key="lake",
            metadata={"dagster/column_schema": column_schema(table)},
        )

    @multi_asset(
        name="ingest",
        outs={t.name: out(t) for t in made},
        deps=[LANDED_FILES.name],
        check_specs=[spec for t in made for spec in checks.specs(t.name, partitions)],
        partitions_def=partitions,
        backfill_policy=backfills(config),
    )
    @retries.guarded
    @_measured(config, valid.name)
    def ingest_days(context: AssetExecutionContext) -> Iterator[AssetCheckEvaluation | Output[Any]]:
        sweep_scratch(config.scratch_dir)
        outcome, days = _Outcome(), list(context.partition_keys)
        lake = Lake(config.lake_dir)
        ledger = landing.refresh(config, lake, now_ns=time.time_ns()).ledger
        files = landing.files_of(ledger, days)
        by_day = landing.by_day(files)
        with scratch_folder(config.scratch_dir) as scratch, contextlib.ExitStack() as at_end:
            at_end.callback(landing.drop_splits, config, files)
            disk.check_room(config, files["path"].unique(), landing.split_bytes(config, files))
            staged, outcome.refused = staging.stage(config, ledger, days, scratch)
            _tell_read(files, outcome.refused)
            refused_frames: dict[str, DayFrame] = {}
            repeated_frames: dict[str, DayFrame] = {}
            for day in days:
                drifted = checks.schema_drift(by_day[dt.date.fromisoformat(day)])
                if day not in staged:
                    if _failed([drifted]):
                        outcome.findings[valid.name, day] = (drifted,)
                    continue
                found = staged[day]
                progress.step(valid.name, day)
                sums = staging.sums(found.by_file)
                with telemetry.timed(day), for_rows(sums["rows_in"]):
                    if sums["valid"] <= FEW_ROWS:  # asked for twice below
                        found = replace(found, valid=found.valid.collect(engine=chosen()).lazy())
                    judged = _judge_ingest(config, contracts, found, drifted)
                telemetry.add(
                    rows_in=sums["rows_in"], rows_quarantined=sums["quarantined"], rows_duplicate=sums["duplicate"]
                )
                outcome.findings |= {(table, day): findings for table, findings in judged.items() if findings}
                findings = [finding for of_table in judged.values() for finding in of_table]
                reason = _failed(findings)
                if _failed([f for f in findings if f.name != checks.QUARANTINE_RATE]) is None:
                    # A day with too many quarantined rows is shown, so that one can see them; nothing is built on it.
                    outcome.frames[day] = DayFrame(staged[day].valid, found.notes, found.ready)
                    refused_frames[day] = DayFrame(found.quarantined, {})
                    repeated_frames |= _duplicates_to_write(lake, repeated, day, found)
                    with for_rows(sums["rows_in"]):
                        _describe_ingest(outcome, day, found, sums, (valid.name, quarantined.name))
                if reason is not None:
                    telemetry.refused(day, _cause(findings), **sums)
                    too_many = any(f.name == checks.QUARANTINE_RATE and not f.passed for f in findings)
                    outcome.refused[day] = f"{reason}{_why_refused(day, found)}" if too_many else reason
            _record_ingest(config, [t.name for t in made], days, outcome)
            frames = {valid.name: outcome.frames, quarantined.name: refused_frames, repeated.name: repeated_frames}
            yield from _conclude(context, outcome, {t.name: frames[t.name] for t in made})

    return ingest_days


def _tell_read(files: pl.DataFrame, refused: Mapping[str, str]) -> None:
    """What was read of which file, and which days could not be read for the sake of one.

    Args:
        files: the ledger's rows of the run's days.
        refused: days that could not be read.
    """
    by_file = files.group_by("path", maintain_order=True).agg(
        pl.col("size", "lane", "error").first(), pl.sum("rows"), days=pl.len()
    )
    telemetry.note(files=by_file.height, bytes_read=int(by_file["size"].sum()))
    for file in by_file.to_dicts():
        if file["error"] is None:
            took = telemetry.seconds_of(file["path"])
            figures = {"rows": file["rows"], "bytes": file["size"], "days": file["days"], "engine": file["lane"]}
            logs.write(logging.INFO, "file read", file=file["path"], seconds=took, **figures)
    for day in refused:
        of_day = files.filter(pl.col("day") == dt.date.fromisoformat(day))
        drifted, broken = (of_day.filter(pl.col(name).is_not_null()) for name in ("drift_error", "error"))
        cause = "unusable_file" if broken.height else "schema_drift" if drifted.height else "unreadable_file"
        named = (broken if broken.height else drifted if drifted.height else of_day)["path"].to_list()
        telemetry.refused(day, cause, files=named)


def _record_ingest(config: PipelineConfig, tables_made: Sequence[str], days: Sequence[str], outcome: _Outcome) -> None:
    """Note what became of the days; a refusal refuses them for raw_events, which comes first."""
    log = DayLog(config.lake_dir)
    for day in days:
        for table in tables_made:
            refused = outcome.refused.get(day) if table == tables_made[0] else None
            log.record(table, day, outcome.findings.get((table, day), ()), refused)
    if outcome.refused:  # what stands below may not run at all, and the page of all days is made there
        periods.rebuild_index(config)


def _judge_duplicates(config: PipelineConfig, table: Table, found: staging.StagedDay) -> tuple[Finding, ...]:
    """What the checks of duplicate_events find; nothing when duplicates are events."""
    if found.duplicates is None:
        return ()
    kept = checks.originals_kept(found.duplicates, found.valid, found.by_file, config.scratch_dir)
    return checks.contract(table, found.duplicates), kept


def _duplicates_to_write(lake: Lake, table: Table, day: str, found: staging.StagedDay) -> dict[str, DayFrame]:
    """The day of duplicate_events; nothing when duplicates are events.

    A day that was made when ``source.deduplicate`` said otherwise is emptied: what it lists is an event now.
    """
    if found.duplicates is not None:
        return {day: DayFrame(found.duplicates, {})}
    before = lake.current(table.name, day)
    if before is not None and before.rows:
        lake.write(table, day, table.empty().lazy(), {})
    return {}


def _why_refused(day: str, found: staging.StagedDay) -> str:
    """The commonest reasons of a day's quarantined rows, and how to see those rows."""
    reasons = ", ".join(f"{r['reason']} {r['rows']:,}" for r in count_reasons(found.quarantined).head(3).to_dicts())
    return (
        f": {reasons}.\n  What to do: See the rows: data-assets quarantine show --day {day}. Then correct source.* in "
        "pipeline.yaml or ask the sender; or accept them: quality.max_quarantine_rate."
    )


def _describe_ingest(
    outcome: _Outcome,
    day: str,
    found: staging.StagedDay,
    sums: Mapping[str, int],
    tables_made: tuple[str, str],
) -> None:
    valid, quarantined = tables_made
    rate = sums["quarantined"] / sums["rows_in"] if sums["rows_in"] else 0.0
    figures = {
        **{name: figure for name, figure in sums.items() if name != "late_row_days"},  # only half of a mean
        "quarantine_rate": round(rate, 6),
        "files": found.by_file.height,
        **found.cleaning.rows,
        "events_by_hour": MetadataValue.md(report.histogram_markdown(_by_hour(found.valid))),
    }
    outcome.note(valid, day, figures)
    reasons = count_reasons(found.quarantined) if sums["quarantined"] else pl.DataFrame()
    why = dict(reasons.iter_rows()) or None
    logs.write(logging.INFO, "day read", day=day, **sums, files=found.by_file.height, reasons=why)
    if reasons.is_empty():
        return
    records = [TableRecord({"reason": r["reason"], "rows": r["rows"]}) for r in reasons.head(8).to_dicts()]
    outcome.note(quarantined, day, {"reasons": MetadataValue.table(records)})


def _by_hour(events: pl.LazyFrame) -> list[int]:
    """Events that start in each of the day's 24 hours."""
    hour = pl.col("session_start").to_physical() // 3_600_000_000  # half of what dt.hour() costs
    hours = [0] * 24
    for since_1970, count in events.group_by(hour.alias("hour")).len().collect(engine=chosen()).iter_rows():
        hours[since_1970 % 24] += count
    return hours


def count_reasons(quarantined: pl.LazyFrame) -> pl.DataFrame:
    """Rows by ``reason``, most frequent first; a row with several reasons counts for each."""
    return (
        quarantined.select(pl.col("reasons").explode(empty_as_null=False, keep_nulls=False).alias("reason"))
        .group_by("reason")
        .len("rows")
        .sort(["rows", "reason"], descending=[True, False])
        .with_columns(pl.col("rows").cast(pl.Int64))
        .collect(engine="streaming")  # a day of few events may have many of these
    )


def _height(frame: pl.LazyFrame) -> int:
    return int(frame.select(pl.len()).collect(engine=chosen()).item())


def _session_metrics(
    config: PipelineConfig, partitions: DailyPartitionsDefinition, figures: _Figures
) -> AssetsDefinition:
    table = tables(config.source.types.user_id)["session_metrics"]

    @_asset(config, _options(config, table, partitions, "metrics", "raw_events"))
    def session_metrics(context: AssetExecutionContext, raw_events: Days) -> Iterator[Any]:
        log = DayLog(config.lake_dir)
        held = 0  # users of the days so far, which all wait to be stored together

        def compute(day: str) -> Computed:
            nonlocal held
            of_day = figures.of(raw_events, day, log)
            made = metrics.session_metrics(of_day.events, config.precision, of_day, hold=held < metrics.MOST_USERS)
            table_of_day = made.collect(engine=chosen()) if of_day.rows <= FEW_ROWS else made  # to store few: no stream
            users = table_of_day.lazy()
            sums = users.select(pl.len(), pl.sum("total_sessions", "anomaly_count")).collect(engine=chosen())
            count, sessions, anomalies = sums.row(0)
            held += count
            agree = checks.equal("sessions_equal_events", ("sessions", sessions), ("events", of_day.rows))
            return Computed(
                table_of_day,
                [checks.contract(table, users), agree],
                {
                    "users": count,
                    "sessions": sessions,
                    "anomalies": anomalies,
                    "memory": MetadataValue.text(figures.decisions[day].words),
                },
            )

        yield from _compute_days(context, config, table, compute, raw_events)

    return session_metrics


def _made_once(table: Table, frame: pl.LazyFrame, of_day: metrics.DayFigures, path: Path) -> DayFrame:
    """A table of the lake that is judged and then written: held, or, of a day that is not held, already a file."""
    if of_day.mode == "eager":
        return DayFrame(frame.collect(engine=chosen()).lazy(), {})
    rows = table.conform(frame)
    rows.sink_parquet(path, **written_as(table, rows))
    return DayFrame(scan_named(path), {}, path)


def _outliers(config: PipelineConfig, partitions: DailyPartitionsDefinition, figures: _Figures) -> AssetsDefinition:
    table = tables(config.source.types.user_id)["outliers"]

    @_asset(config, _options(config, table, partitions, "metrics", "raw_events"))
    def outliers(context: AssetExecutionContext, raw_events: Days) -> Iterator[Any]:
        log = DayLog(config.lake_dir)

        def compute(day: str, scratch: Path) -> Computed:
            of_day = figures.of(raw_events, day, log)
            found = metrics.outliers(of_day.events, config.outliers.factor, of_day)
            made = _made_once(table, found, of_day, scratch / day)
            rows = made.frame
            fences = rows.select("iqr_lower", "iqr_upper").head(1).collect(engine=chosen()).to_dicts()
            return Computed(
                made,
                [checks.contract(table, rows, made.ready), checks.outside_fences(rows)],
                {"outliers": _height(rows), **(fences[0] if fences else {})},
            )

        with scratch_folder(config.scratch_dir) as scratch:
            yield from _compute_days(context, config, table, functools.partial(compute, scratch=scratch), raw_events)

    return outliers


def _event_distribution(
    config: PipelineConfig, partitions: DailyPartitionsDefinition, figures: _Figures
) -> AssetsDefinition:
    table = tables(config.source.types.user_id)["event_distribution"]

    @_asset(config, _options(config, table, partitions, "metrics", "raw_events"))
    def event_distribution(context: AssetExecutionContext, raw_events: Days) -> Iterator[Any]:
        log = DayLog(config.lake_dir)

        def compute(day: str) -> Computed:
            of_day = figures.of(raw_events, day, log)
            types = metrics.event_distribution(of_day.events, of_day).collect(engine=chosen())
            counted = ("counted events", int(types["count"].sum()))
            found = [
                checks.contract(table, types.lazy()),
                checks.equal("counts_equal_events", counted, ("events", _height(of_day.events))),
                checks.proportions_sum_to_one(types),
            ]
            shown: dict[str, Any] = {"event_types": types.height}
            if types.height:
                top = types.head(8).select_seq("event_type", "count", "proportion").iter_rows()
                records = [
                    TableRecord({"event_type": visible(kind, 60), "count": count, "proportion": share})
                    for kind, count, share in top
                ]
                shown["top"] = MetadataValue.table(records)
            return Computed(types, found, shown)

        yield from _compute_days(context, config, table, compute, raw_events)

    return event_distribution


def _summary_statistics(
    config: PipelineConfig, partitions: DailyPartitionsDefinition, figures: _Figures
) -> AssetsDefinition:
    table = tables(config.source.types.user_id)["summary_statistics"]

    @_asset(config, _options(config, table, partitions, "metrics", "raw_events"))
    def summary_statistics(context: AssetExecutionContext, raw_events: Days) -> Iterator[Any]:
        log = DayLog(config.lake_dir)

        def compute(day: str) -> Computed:
            of_day = figures.of(raw_events, day, log)
            statistics = metrics.summary_statistics(of_day.events, of_day).collect(engine=chosen())
            counts = checks.column_counts(statistics, of_day.rows)
            value = next(row for row in statistics.iter_rows(named=True) if row["column_name"] == "value")
            return Computed(
                statistics,
                [checks.contract(table, statistics.lazy()), counts],
                {f"value_{name}": value[name] for name in ("mean", "p50") if value[name] is not None},
            )

        yield from _compute_days(context, config, table, compute, raw_events)

    return summary_statistics


def _daily_kpis(config: PipelineConfig, partitions: DailyPartitionsDefinition, figures: _Figures) -> AssetsDefinition:
    table = tables(config.source.types.user_id)["daily_kpis"]

    inputs = ("raw_events", "session_metrics", "outliers", "event_distribution")

    @_asset(config, _options(config, table, partitions, "report", *inputs))
    def daily_kpis(
        context: AssetExecutionContext,
        raw_events: Days,
        session_metrics: Days,
        outliers: Days,
        event_distribution: Days,
    ) -> Iterator[Any]:
        log = DayLog(config.lake_dir)

        def compute(day: str) -> Computed:
            of_day = figures.of(raw_events, day, log)
            counts = metrics.RowCounts(**staging.sums(staging.noted_files(raw_events.versions[day].notes)))
            _need("outliers", outliers, day, log)
            row = metrics.daily_kpis(
                of_day.events,
                _need("session_metrics", session_metrics, day, log),
                _need("event_distribution", event_distribution, day, log),
                outlier_count=outliers.rows(day),
                counts=counts,
                precision=config.precision,
                figures=of_day,
            ).collect(engine=chosen())
            kpis = row.to_dicts()[0]
            shown = {name: figure for name, figure in kpis.items() if figure is not None}
            shown["late_share"] = _late_share(kpis)
            return Computed(row, [checks.contract(table, row.lazy()), checks.kpis_agree(kpis)], shown)

        yield from _compute_days(context, config, table, compute, raw_events)

    return daily_kpis


def _late_share(kpis: Mapping[str, Any]) -> float:
    """Which share of the day's records is late; 0 for a day without any."""
    return float(kpis["late"] / kpis["rows_in"]) if kpis["rows_in"] else 0.0


NO_REASONS = {"reason": pl.String, "rows": pl.Int64}
REPORT_TABLES = (
    "raw_events",
    "quarantined_events",
    "session_metrics",
    "outliers",
    "event_distribution",
    "summary_statistics",
)


def _daily_report(config: PipelineConfig, partitions: DailyPartitionsDefinition, figures: _Figures) -> AssetsDefinition:
    options = {
        "description": "The day's report for people: a page with the verdict first, its figures as JSON, CSV files.",
        "group_name": "report",
        "owners": OWNERS,
        "kinds": {"jinja", "html"},
        "partitions_def": partitions,
        "backfill_policy": backfills(config),
        "ins": {name: AssetIn(dagster_type=Any) for name in (*REPORT_TABLES, "daily_kpis")},
        "io_manager_key": "reports",
        "dagster_type": Any,
        "pool": WAREHOUSE_POOL,
    }

    @_asset(config, options)
    def daily_report(  # noqa: PLR0913, PLR0917 - one input per table that the report shows
        context: AssetExecutionContext,
        raw_events: Days,
        quarantined_events: Days,
        session_metrics: Days,
        outliers: Days,
        event_distribution: Days,
        summary_statistics: Days,
        daily_kpis: Days,
    ) -> Iterator[Any]:
        inputs = {
            "raw_events": raw_events,
            "quarantined_events": quarantined_events,
            "session_metrics": session_metrics,
            "outliers": outliers,
            "event_distribution": event_distribution,
            "summary_statistics": summary_statistics,
            "daily_kpis": daily_kpis,
        }
        yield from _write_reports(context, config, figures, inputs)

    return daily_report


def _history(config: PipelineConfig, days: Sequence[str]) -> pl.DataFrame:
    """Rows of daily_kpis from ``trend_days`` before the first day to the last, with their dates."""
    first, last = dt.date.fromisoformat(min(days)), dt.date.fromisoformat(max(days))
    warehouse = Warehouse(config.warehouse_path, Lake(config.lake_dir), user_id=config.source.types.user_id)
    span = days_between(first - dt.timedelta(days=config.trend_days), last)
    return warehouse.query_days(tables(config.source.types.user_id)["daily_kpis"], span)


def _write_reports(
    context: AssetExecutionContext, config: PipelineConfig, figures: _Figures, inputs: Mapping[str, Days]
) -> Iterator[Any]:
    log, raw_events, outcome = DayLog(config.lake_dir), inputs["raw_events"], _Outcome()
    history, ledger = _history(config, list(context.partition_keys)), landing.read_ledger(Lake(config.lake_dir))
    landed, by_day, dates = landing.landed_days(ledger), landing.by_day(ledger), history["date"].to_list()
    for day in context.partition_keys:
        progress.step("daily_report", day)
        try:
            found = {name: _need(name, days, day, log) for name, days in inputs.items()}
        except DataAssetsError as problem:
            outcome.refused[day] = str(problem)
            telemetry.refused(day, type(problem).__name__)
            log.record("daily_report", day, (), str(problem))
            continue
        this = dt.date.fromisoformat(day)
        first, end = (bisect_left(dates, at) for at in (this - dt.timedelta(days=config.trend_days), this))
        before = history.slice(first, end - first)
        made = raw_events.versions[day]
        rows, notes = made.rows, made.notes
        with telemetry.timed(day), for_rows(rows):
            if rows <= FEW_ROWS:
                found |= {name: found[name].collect(engine=chosen()).lazy() for name in ("session_metrics", "outliers")}
            events = figures.of(raw_events, day, log)
            given = _day_input(config, this, found, events, before, notes, by_day[this], landed)
            built = report.build(given)
            if (many := inputs["outliers"].rows(day)) > CSV_ROWS:
                few = in_pieces(found["outliers"], (min(CSV_ROWS, many - at) for at in range(0, many, CSV_ROWS)))
                built = replace(built, csvs={**built.csvs, "outliers.csv": few})
            report.write(built, config.reports_dir / day)
        telemetry.wrote("daily_report", day, size=len(built.html.encode()))
        log.record("daily_report", day, ())
        log.finish(day, notes["fingerprint"])
        outcome.frames[day] = None
        outcome.note("daily_report", day, _report_metadata(config, day, built, given))
    periods.rebuild_index(config)
    yield from _conclude(context, outcome, {"result": outcome.frames})


def _day_input(  # noqa: PLR0913, PLR0917 - what a report is made of
    config: PipelineConfig,
    day: dt.date,
    found: Mapping[str, pl.LazyFrame],
    events: metrics.DayFigures,
    before: pl.DataFrame,
    notes: Mapping[str, str],
    of_day: pl.DataFrame,
    landed: Sequence[dt.date],
) -> report.DayInput:
    """What the report tells of a day; ``of_day``: its rows of the ledger; ``landed``: days that have rows."""
    log, impact = DayLog(config.lake_dir), cleaning.noted_impact(notes)
    kpis = found["daily_kpis"].collect(engine=chosen()).to_dicts()[0]
    repeated = () if config.source.deduplicate == "none" else ("duplicate_events",)
    judged = [
        report.CheckResult(table, f.name, f.passed, f.severity, f.observed)
        for table in (*REPORT_TABLES, *repeated, "daily_kpis")
        for f in log.findings(table, day.isoformat())
    ]
    return report.DayInput(
        day=day,
        timezone=config.timezone,
        kpis=kpis,
        history=before,
        trend_days=config.trend_days,
        session_metrics=found["session_metrics"],
        outliers=found["outliers"],
        event_distribution=found["event_distribution"].collect(engine=chosen()),
        summary_statistics=found["summary_statistics"].collect(engine=chosen()),
        events=events,
        quarantine_reasons=count_reasons(found["quarantined_events"])
        if kpis["quarantined"]
        else pl.DataFrame(schema=NO_REASONS),
        files=_with_lanes(staging.noted_files(notes), of_day),
        without_rows=[dt.date.fromisoformat(d) for d in landing.missing_days(landed, last=day)],
        policies=impact.policies,
        policy_rows=impact.rows,
        checks=judged,
        max_quarantine_rate=config.quality.max_quarantine_rate,
        versions=periods.versions(),
        outlier_factor=config.outliers.factor,
    )


def _with_lanes(files: pl.DataFrame, of_day: pl.DataFrame) -> pl.DataFrame:
    """A day's files with how each was read; the engine's join of a single file takes 0.5 ms."""
    columns = of_day.select_seq("path", "content_hash", "lane", "lane_reason")
    known = {(path, digest): (lane, reason) for path, digest, lane, reason in columns.iter_rows()}
    found = [known.get(file, (None, None)) for file in files.select_seq("path", "content_hash").iter_rows()]
    return files.with_columns_seq(
        lane=pl.Series([lane for lane, _ in found], dtype=pl.String),
        lane_reason=pl.Series([reason for _, reason in found], dtype=pl.String),
    )


def _report_metadata(config: PipelineConfig, day: str, built: report.Report, given: report.DayInput) -> dict[str, Any]:
    valid = [*given.history["valid"].to_list(), given.kpis["valid"]]
    return {
        "verdict": built.verdict,
        "summary": MetadataValue.text(built.sentence),
        "figures": MetadataValue.md(report.figures_markdown(built.summary)),
        "trend": MetadataValue.md(report.sparkline_markdown(valid)),
        "durations": MetadataValue.md(_bins(built, "duration_histogram")),
        "values": MetadataValue.md(_bins(built, "value_histogram")),
        **_numbers(built),
        "late_share": _late_share(given.kpis),
        "html_bytes": len(built.html.encode()),
        "path": MetadataValue.path(str(config.reports_dir / day / "report.html")),
    }


def _numbers(built: report.Report) -> dict[str, float]:
    """The headline numbers, under their names."""
    return {h["key"]: h["value"] for h in built.summary["headline"] if h["value"] is not None}


def _bins(built: report.Report, name: str) -> str:
    return report.histogram_markdown([b["count"] for b in built.summary[name]["bins"]])


# The first week may begin before the first day.
OF_THE_WEEK = TimeWindowPartitionMapping(allow_nonexistent_upstream_partitions=True)


def _weekly_report(config: PipelineConfig) -> AssetsDefinition:
    options = {
        "description": "The week's report for people, Monday to Sunday: trends, the weekday pattern, what changed.",
        "group_name": "report",
        "owners": OWNERS,
        "kinds": {"jinja", "html"},
        "partitions_def": weekly_partitions(config),
        "backfill_policy": backfills(config),
        "deps": [AssetDep("daily_report", partition_mapping=OF_THE_WEEK)],
        "pool": WAREHOUSE_POOL,
    }

    @_asset(config, options)
    def weekly_report(context: AssetExecutionContext) -> None:
        for monday in context.partition_keys:
            progress.step("weekly_report", monday)
            first = dt.date.fromisoformat(monday)
            built, folder = periods.write(config, first, first + dt.timedelta(days=6))
            days = [d["figures"].get("valid") for d in built.summary["days"]]
            metadata = {
                "verdict": built.verdict,
                "summary": MetadataValue.text(built.sentence),
                "trend": MetadataValue.md(report.sparkline_markdown(days)),
                **_numbers(built),
                "out_of_line": len(built.summary["callouts"]),
                "html_bytes": len(built.html.encode()),
                "path": MetadataValue.path(str(folder / "report.html")),
            }
            context.add_asset_metadata(metadata, asset_key="weekly_report", partition_key=monday)
        periods.rebuild_index(config)

    return weekly_report


def _published(config: PipelineConfig, partitions: DailyPartitionsDefinition, name: str) -> AssetsDefinition:
    """The table again in PostgreSQL. After the report: a server that is away must not keep a day from its readers."""
    table = tables(config.source.types.user_id)[name]
    key = AssetKey([publish.PREFIX, name])
    options = {
        "key": key,
        "description": f"{table.description} In PostgreSQL, as {config.postgres.schema_name}.{name}.",
        "group_name": "publish",
        "owners": OWNERS,
        "kinds": {"postgres"},
        "io_manager_key": "postgres",
        "partitions_def": partitions,
        "backfill_policy": backfills(config),
        "check_specs": checks.published_specs(key, partitions),
        "metadata": {"dagster/column_schema": column_schema(table)},
        "ins": {name: AssetIn(dagster_type=Any)},
        "deps": ["daily_report"],
        "dagster_type": Any,
    }

    @_asset(config, options)
    def published(context: AssetExecutionContext, **inputs: Days) -> Iterator[Any]:
        yield from _publish_days(context, config, table, inputs[name])

    return published


def _publish_days(
    context: AssetExecutionContext, config: PipelineConfig, table: Table, frames: Days
) -> Iterator[AssetCheckEvaluation | Output[Any]]:
    """Publish each day of the run that was not refused; days before one at which the server goes away stay done."""
    name = f"{publish.PREFIX}/{table.name}"
    log, lake, outcome = DayLog(config.lake_dir), Lake(config.lake_dir), _Outcome()
    days = list(context.partition_keys)
    try:
        with publish.publisher(config.postgres, table) as send:
            for day in days:
                progress.step(name, day)
                with telemetry.timed(day):
                    reason, found = _publish_day(log, table, day, frames, send)
                log.record(name, day, found, reason, is_due=False)
                if found:
                    outcome.findings[name, day] = found
                if reason is not None:
                    outcome.refused[day] = reason
                    telemetry.refused(day, _cause(found) or DayFailedError.__name__)
                    continue
                telemetry.wrote(name, day, _height(frames[day]))
                log.finish(day, lake.notes("raw_events", day)["fingerprint"], publish.mark(table.name))
                outcome.frames[day] = None
                outcome.note(name, day, {"dagster/partition_row_count": _height(frames[day])})
    except DataAssetsError as problem:
        for day in days:
            if day not in outcome.frames and day not in outcome.refused:
                log.record(name, day, (), str(problem), is_due=False)
        raise
    yield from _conclude(context, outcome, {"result": outcome.frames})


def _publish_day(
    log: DayLog, table: Table, day: str, frames: Days, send: publish.Send
) -> tuple[str | None, Sequence[Finding]]:
    """Publish a day: why it was refused, if it was, and what its checks found."""
    try:
        frame = _need(table.name, frames, day, log)
    except DayFailedError as problem:
        return str(problem), ()
    try:
        there = send(day, frame)
    except DataAssetsError as problem:
        if problem.retryable:
            raise
        return str(problem), checks.not_published(problem)
    return None, checks.published(_height(frame), there)
