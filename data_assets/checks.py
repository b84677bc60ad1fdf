"""What must hold for a day before anything is built on it.

Here: every asset check (its name, description and whether it blocks), and the functions that judge a day. Not here:
where the judgement is acted upon (``assets.py`` runs these before a day is published), or the arithmetic
(``metrics.py``).

A check that runs after the write cannot keep a bad day out, and Dagster's own blocking stops a whole range for one bad
day. So a day is judged before it is published, per day; docs/decisions/0001 has the reasons.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import polars as pl
from dagster import (
    AssetCheckEvaluation,
    AssetCheckExecutionContext,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetKey,
    AssetRecordsFilter,
    DagsterEventType,
    DagsterInstance,
    DailyPartitionsDefinition,
    Failure,
    MetadataValue,
    Output,
    asset_check,
)
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

from data_assets import drift, retries
from data_assets.config import PipelineConfig
from data_assets.contracts import Table
from data_assets.duplicates import PLACE
from data_assets.engine import chosen
from data_assets.errors import DataAssetsError, visible
from data_assets.publish import Published
from data_assets.quantities import MOST_PARTS, parts_on_disk
from data_assets.reasons import REASONS
from data_assets.report.text import plural
from data_assets.storage import DayLog, Finding, extremes, rows_of

QUARANTINE_RATE = "quarantine_rate"
MOST_TARGETS = 100_000
COMPARED_ROWS = 500_000  # so many places of rows are compared at a time
# Materialisations that checks of this process were about, by the id in the event log: two steps ask for each of them.
_TARGETS: WeakKeyDictionary[DagsterInstance, dict[int, AssetCheckEvaluationTargetMaterializationData]] = (
    WeakKeyDictionary()
)
BATCH_ROWS = 131_072  # how many rows are looked at at a time: bounds the memory


@dataclass(frozen=True)
class Check:
    """A check of one table: its name, what it promises, and what to do when it fails."""

    table: str
    name: str
    promise: str
    todo: str = (
        "This is a fault of the program, not of your files. The day keeps what it had; run it again, and if it fails "
        "again, report it with the text below."
    )

    @property
    def description(self) -> str:
        """For the UI."""
        return f"{self.promise} If it fails: {self.todo[0].lower()}{self.todo[1:]}"


CHECKS: tuple[Check, ...] = (
    Check("raw_events", "contract", "Columns, types, nulls and bounds are as contracts.py declares them."),
    Check(
        "raw_events",
        "conservation",
        "Per file, physical rows = valid + quarantined + duplicates: no row is lost.",
        "The file may have changed while it was read. Run the day again; if it fails again, report it.",
    ),
    Check(
        "raw_events",
        QUARANTINE_RATE,
        "The share of quarantined rows is at most quality.max_quarantine_rate.",
        "See the rows and their reasons: data-assets quarantine show --day DAY. Then correct source.* in pipeline.yaml "
        "or ask the sender; or accept them: quality.max_quarantine_rate.",
    ),
    Check(
        "raw_events",
        "schema_drift",
        "The files have the columns, types and event types of those before them.",
        "If the change is right, accept it: data-assets schema accept. If not, ask the sender for the file as it was.",
    ),
    Check("quarantined_events", "contract", "Columns and types as declared; every reason is a known code."),
    Check("duplicate_events", "contract", "Columns, types, nulls and bounds are as contracts.py declares them."),
    Check("duplicate_events", "originals_kept", "Per file, as many rows as were dropped; each names a kept row."),
    Check("session_metrics", "contract", "Columns, types, nulls, bounds and one row per user, as declared."),
    Check("session_metrics", "sessions_equal_events", "The users' total_sessions add up to the rows of raw_events."),
    Check("outliers", "contract", "Columns, types, nulls and bounds are as declared."),
    Check("outliers", "outside_fences", "Every row's value lies below iqr_lower or above iqr_upper."),
    Check("event_distribution", "contract", "Columns, types, nulls, bounds and one row per event type, as declared."),
    Check("event_distribution", "counts_equal_events", "The counts add up to the rows of raw_events."),
    Check("event_distribution", "proportions_sum_to_one", "The proportions add up to 1, the last cumulative is 1."),
    Check("summary_statistics", "contract", "Columns, types, nulls, bounds and one row per column, as declared."),
    Check("summary_statistics", "counts_equal_events", "For every column, values and nulls add up to the rows."),
    Check("daily_kpis", "contract", "Columns, types, nulls and bounds are as declared; one row."),
    Check("daily_kpis", "kpis_agree", "Rows in = valid + quarantined + duplicate; sessions and events = valid rows."),
)


LEDGER_CHECKS: tuple[Check, ...] = (
    Check(
        "landed_files",
        "every_file_usable",
        "Every file in the raw directory can be read and fits the mapping.",
        "The days of the files below are not made, all others are. data-assets status says what to do for each file.",
    ),
    Check(
        "landed_files",
        "no_missing_days",
        "Every day from the first to the last that rows landed for has rows.",
        "Ask the sender for the files of these days. No other day waits for them.",
    ),
)
NOT_PUBLISHED = (
    "PostgreSQL has the day as it was. Run it again; if it fails again, look whether somebody else writes that table."
)
PUBLISHED_CHECKS: tuple[Check, ...] = (
    Check("", "row_count", "PostgreSQL has as many rows of the day as the table here.", NOT_PUBLISHED),
    Check(
        "",
        "checksum",
        "Per column, the server's sums over the day are those of the rows here, asked before the commit.",
        NOT_PUBLISHED,
    ),
)
DONE = Check(
    "",
    "every_day_done",
    "Every day that the run was asked for was computed; a refused one keeps what it had.",
    "Each refused day has its reason below, and what to do. The other days of the run are done.",
)
SHOWN = 10  # how many files or days a finding names


def ledger_specs() -> list[AssetCheckSpec]:
    """The checks of landed_files. They do not block: a bad file costs its own days, a missing day none."""
    return [AssetCheckSpec(c.name, asset=c.table, description=c.description) for c in LEDGER_CHECKS]


def specs(table: str, partitions: DailyPartitionsDefinition) -> list[AssetCheckSpec]:
    """The checks of a table as Dagster declares them."""
    return [
        AssetCheckSpec(c.name, asset=c.table, description=c.description, blocking=True, partitions_def=partitions)
        for c in CHECKS
        if c.table == table
    ]


def published_specs(key: AssetKey, partitions: DailyPartitionsDefinition) -> list[AssetCheckSpec]:
    """The checks of a table in PostgreSQL as Dagster declares them."""
    return [
        AssetCheckSpec(c.name, asset=key, description=c.description, blocking=True, partitions_def=partitions)
        for c in PUBLISHED_CHECKS
    ]


def output_names(tables: Collection[str]) -> list[str]:
    """What Dagster calls the outputs of these tables' checks; a step must give each of them, with no value."""
    published = [f"{t.replace('/', '__')}_{c.name}" for t in tables if "/" in t for c in PUBLISHED_CHECKS]
    return [f"{c.table}_{c.name}" for c in CHECKS if c.table in tables] + published


def evaluations(
    instance: DagsterInstance, findings: Mapping[tuple[str, str], Sequence[Finding]], *, stop: bool
) -> Iterator[AssetCheckEvaluation]:
    """Findings, by table and day, as Dagster records them.

    Each names the day's latest materialisation: one that names none counts as outdated once there is any, and the UI
    shows the day as never checked.

    Args:
        instance: where the materialisations are recorded; ask after the days were handed over.
        findings: what was found, by table and day.
        stop: whether a failed one stops the whole step; False while other days of the range go on.
    """
    targets = _latest_materialisations(instance, findings)
    for (table, day), found in findings.items():
        for finding in found:
            yield AssetCheckEvaluation(
                asset_key=AssetKey.from_user_string(table),
                check_name=finding.name,
                passed=finding.passed,
                severity=AssetCheckSeverity(finding.severity),
                metadata=metadata_of(table, finding, day),
                partition=day,
                blocking=stop,
                target_materialization_data=targets.get((table, day)),
            )


def metadata_of(table: str, finding: Finding, day: str = "DAY") -> dict[str, MetadataValue]:
    """A finding as the UI shows it: in words, what to do if it failed, and its figures, which the UI plots."""
    said: dict[str, MetadataValue] = {"observed": MetadataValue.text(finding.observed)}
    if not finding.passed:
        every = {(c.table, c.name): c for c in (*CHECKS, *LEDGER_CHECKS, *PUBLISHED_CHECKS, DONE)}
        check = every.get((table, finding.name)) or every["", finding.name]
        said["what_to_do"] = MetadataValue.text(check.todo.replace("DAY", day))
    return said | {name: MetadataValue.float(figure) for name, figure in finding.figures.items()}


def _latest_materialisations(
    instance: DagsterInstance, days: Collection[tuple[str, str]]
) -> dict[tuple[str, str], AssetCheckEvaluationTargetMaterializationData]:
    """The latest materialisation of each table's day, where there is one."""
    latest: dict[tuple[str, str], AssetCheckEvaluationTargetMaterializationData] = {}
    known = _TARGETS.setdefault(instance, {})
    for table in dict.fromkeys(table for table, _ in days):
        key = AssetKey.from_user_string(table)
        wanted = {day for name, day in days if name == table}
        ids = instance.get_latest_storage_id_by_partition(key, DagsterEventType.ASSET_MATERIALIZATION, wanted)
        new = [storage_id for storage_id in ids.values() if storage_id not in known]
        if len(known) + len(new) > MOST_TARGETS:
            known.clear()
            new = list(ids.values())
        chosen = AssetRecordsFilter(key, storage_ids=new)
        for record in instance.fetch_materializations(chosen, limit=len(new)).records if new else ():
            known[record.storage_id] = AssetCheckEvaluationTargetMaterializationData(
                storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
            )
        latest |= {(table, day): known[storage_id] for day, storage_id in ids.items() if storage_id in known}
    return latest


def contract(table: Table, frame: pl.LazyFrame, written: Path | None = None) -> Finding:
    """Does the day keep the table's contract?

    The rows themselves are seen: few rows at once, those without a key in one query, others, or when something is
    wrong, in batches. A key is unique over all batches, not only within each. Of a file just written, its footer tells
    of each row group how many nulls there are and the extremes: where these keep the contract, all rows do.

    Args:
        table: the contract.
        frame: the rows.
        written: the file that holds exactly these rows, if there is one.
    """
    rows = batches = 0
    last, is_rising = None, len(table.key) == 1  # a key that only rises is unique; else all of them are held
    looked = frame.select(table.ruled) if table.ruled and table.has_schema(frame.collect_schema()) else frame
    if looked is not frame and (not table.key or chosen() == "in-memory"):
        is_kept, height = _at_once(table, looked, written)
        if is_kept:
            return Finding("contract", passed=True, observed=f"{plural(height, 'row')} as declared")
    for batch in looked.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
        if looked is frame or not batch.select(table.kept).item():
            found = frame.slice(rows, batch.height).collect(engine=chosen())
            violations = _violations(table, found)
            if violations is not None:
                return Finding("contract", passed=False, observed=violations)
        rows, batches = rows + batch.height, batches + 1
        if is_rising and batch.height:
            key = batch[table.key[0]]
            is_rising = (last is None or last < key[0]) and bool((key.slice(1) > key.head(-1)).all())
            last = key[-1]
    if table.key and batches > 1 and not is_rising:
        keys = frame.select(pl.struct(table.key).n_unique()).collect(engine=chosen()).item()
        if keys != rows:
            return Finding("contract", passed=False, observed=f"{rows:,} rows have {keys:,} different keys")
    return Finding("contract", passed=True, observed=f"{plural(rows, 'row')} as declared")


def _at_once(table: Table, looked: pl.LazyFrame, written: Path | None) -> tuple[bool, int]:
    """Whether the rows seem to keep the contract, and how many they are."""
    if chosen() == "in-memory":
        few = looked.collect(engine=chosen())
        return table.is_kept(few), few.height
    if written is not None and (told := extremes(written, table.ruled)) and table.has_kept(told.__getitem__):
        return True, rows_of([written])
    is_kept, height = looked.select(table.kept, pl.len()).collect(engine=chosen()).row(0)
    return is_kept, height


def _violations(table: Table, batch: pl.DataFrame) -> str | None:
    """What breaks the contract, in pandera's words; None when it finds nothing."""
    import pandera.errors
    from pandera.config import ValidationDepth, config_context

    try:
        with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):
            table.pandera().validate(batch, lazy=True)
    except pandera.errors.SchemaErrors as problem:
        cases = problem.failure_cases.select(pl.col("column", "check", "failure_case").cast(pl.String)).unique()
        shown = "; ".join(
            f"{r['column'] or 'table'}: {visible(r['check'], 60)} fails for {visible(str(r['failure_case']), 40)}"
            for r in cases.head(3).to_dicts()
        )
        return f"{cases.height} kinds of violations: {shown}"
    return None


def known_reasons(table: Table, frame: pl.LazyFrame) -> Finding:
    """The contract of the quarantine: as ``contract``, and every row has reasons, all of them known codes."""
    if chosen() == "in-memory" and frame.select(pl.len()).collect(engine=chosen()).item() == 0:  # as on most days
        return contract(table, frame)
    unknown = (
        frame.select(
            (
                (pl.col("reasons").list.len() == 0)
                | ~pl.col("reasons").list.eval(pl.element().is_in(list(REASONS))).list.all()
            )
            .fill_null(value=True)
            .sum()
        )
        .collect(engine=chosen())
        .item()
    )
    if unknown:
        return Finding("contract", passed=False, observed=f"{unknown:,} rows have no reason or an unknown one")
    return contract(table, frame)


def conservation(by_file: pl.DataFrame) -> Finding:
    """Is every physical row of the day accounted for?

    Args:
        by_file: ``path``, ``rows``, ``valid``, ``quarantined``, ``duplicate``; one row per file of the day.
    """
    accounted = by_file["valid"] + by_file["quarantined"] + by_file["duplicate"]
    is_wrong = by_file["rows"] != accounted
    total = by_file.select_seq(pl.sum("rows", "valid", "quarantined", "duplicate")).row(0)
    sums = f"{total[0]:,} rows in = {total[1]:,} valid + {total[2]:,} quarantined + {total[3]:,} duplicates"
    if not is_wrong.any():
        return Finding("conservation", passed=True, observed=sums)
    first = by_file.filter(is_wrong).row(0, named=True)
    return Finding(
        "conservation",
        passed=False,
        observed=(
            f"{sums.replace('=', 'against')}; {is_wrong.sum()} of {by_file.height} files do not add up, first "
            f"{visible(first['path'])} with {first['rows']:,} rows against "
            f"{first['valid'] + first['quarantined'] + first['duplicate']:,}. It may have changed while it was read."
        ),
    )


def originals_kept(duplicates: pl.LazyFrame, valid: pl.LazyFrame, by_file: pl.DataFrame, scratch: Path) -> Finding:
    """Is every dropped row there, and the row that it repeats kept?

    Args:
        duplicates: rows of duplicate_events.
        valid: rows of raw_events.
        by_file: ``path`` and ``duplicate``, the rows that each file lost.
        scratch: a folder, below which many rows are parted to be compared.
    """
    listed = duplicates.group_by(path="source_file").agg(listed=pl.len()).collect(engine=chosen())
    wrong = by_file.join(listed, on="path", how="full", coalesce=True).filter(
        pl.col("duplicate").fill_null(0) != pl.col("listed").fill_null(0)
    )
    named = duplicates.select(source_file="duplicate_of_file", source_line="duplicate_of_line")
    there = valid.select(PLACE)
    if listed["listed"].sum() <= COMPARED_ROWS:
        originals, kept = _originals(named, there)
    else:
        both = pl.concat([named.with_columns(is_named=True), there.with_columns(is_named=False)])
        rows = _height(both)
        key = pl.col("source_line") % min(MOST_PARTS, -(-rows // COMPARED_ROWS))
        with parts_on_disk(both, rows, key, scratch) as parts:
            found = [
                _originals(*(part.filter(of).select(PLACE) for of in ("is_named", ~pl.col("is_named"))))
                for part in parts
            ]
        originals, kept = (sum(counts) for counts in zip(*found, strict=True))
    observed = (
        f"{int(listed['listed'].sum()):,} rows listed, {int(by_file['duplicate'].sum()):,} dropped; "
        f"{kept:,} of the {originals:,} rows they repeat are kept"
    )
    if not wrong.is_empty():
        observed += f"; {wrong.height} files differ, first {visible(wrong.sort('path')['path'][0])}"
    return Finding("originals_kept", passed=wrong.is_empty() and originals == kept, observed=observed)


def _originals(named: pl.LazyFrame, there: pl.LazyFrame) -> tuple[int, int]:
    """How many different places are named, and how many of these are there."""
    named = named.unique()
    return _height(named), _height(there.join(named, on=PLACE, how="semi").unique())


def _height(frame: pl.LazyFrame) -> int:
    return int(frame.select(pl.len()).collect(engine=chosen()).item())


def every_file_usable(ledger: pl.DataFrame) -> Finding:
    """Can every file of the ledger be used? Names those that cannot, with the reason (which is escaped already)."""
    broken = ledger.filter(pl.col("error").is_not_null()).unique("path").sort("path")
    if broken.is_empty():
        return Finding("every_file_usable", passed=True, observed=f"files: {ledger['path'].n_unique():,}")
    reasons = {visible(path): error for path, error in broken.head(SHOWN).select("path", "error").iter_rows()}
    named = "; ".join(error if path in error else f"{path}: {error}" for path, error in reasons.items())
    return Finding(
        "every_file_usable",
        passed=False,
        observed=f"{broken.height:,} of {ledger['path'].n_unique():,} files{_and_more(broken.height)}: {named}",
    )


def no_missing_days(missing: Sequence[str]) -> Finding:
    """Are there rows for every day of the range that landed? ``missing``: days (ISO) without, ascending."""
    if not missing:
        return Finding("no_missing_days", passed=True, observed="none", severity="WARN")
    named = ", ".join(missing[:SHOWN])
    return Finding(
        "no_missing_days",
        passed=False,
        observed=f"no rows for {plural(len(missing), 'day')} in between{_and_more(len(missing))}: {named}",
        severity="WARN",
    )


def _and_more(count: int) -> str:
    return f" (the first {SHOWN})" if count > SHOWN else ""


def quarantine_rate(by_file: pl.DataFrame, limit: float) -> Finding:
    """Is the share of quarantined rows at most ``limit``? A day without rows passes."""
    rows, refused = by_file.select_seq(pl.sum("rows", "quarantined")).row(0)
    rate = refused / rows if rows else 0.0
    observed = f"{rate:.2%} of {rows:,} rows (limit {limit:.2%})"
    return Finding(QUARANTINE_RATE, rate <= limit, observed, figures={"share": round(rate, 6)})


def schema_drift(files: pl.DataFrame) -> Finding:
    """Have the day's files the schema of the files before them? A change that is only warned about is no error.

    Args:
        files: the ledger's rows of the day, with ``path`` and ``drift``.
    """
    changes = [
        (path, c) for path, text in files.select_seq("path", "drift").iter_rows() for c in drift.changes_from_json(text)
    ]
    if not changes:
        observed = f"{plural(files.height, 'file')} with the schema known before"
        return Finding("schema_drift", passed=True, observed=observed)
    changes.sort(key=lambda found: found[1].policy != "fail")
    shown = "; ".join(f"{visible(path, 60)}: {c.text}" for path, c in changes[:5])
    more = f"; and {len(changes) - 5} more: data-assets schema show" if len(changes) > 5 else ""
    failing = drift.fails(c for _, c in changes)
    return Finding("schema_drift", passed=False, observed=shown + more, severity="ERROR" if failing else "WARN")


def equal(name: str, left: tuple[str, int], right: tuple[str, int]) -> Finding:
    """Are two counts equal? Each is given with what it counts."""
    sign = "=" if left[1] == right[1] else "≠"
    return Finding(name, passed=left[1] == right[1], observed=f"{left[1]:,} {left[0]} {sign} {right[1]:,} {right[0]}")


def outside_fences(outliers: pl.LazyFrame) -> Finding:
    """Does every outlier lie outside the fences that its row states?"""
    inside = (pl.col("value") >= pl.col("iqr_lower")) & (pl.col("value") <= pl.col("iqr_upper"))
    rows, wrong = outliers.select_seq(pl.len(), inside.fill_null(value=True).sum()).collect(engine=chosen()).row(0)
    return Finding("outside_fences", passed=wrong == 0, observed=f"{rows - wrong:,} of {rows:,} outside their fences")


def proportions_sum_to_one(distribution: pl.DataFrame) -> Finding:
    """Do the shares add up to 1, up to their rounding to nine decimals? A day without events passes."""
    if distribution.is_empty():
        return Finding("proportions_sum_to_one", passed=True, observed="no events")
    total, last = float(distribution["proportion"].sum()), float(distribution["cumulative"][-1])
    allowed = 1e-9 * (distribution.height + 1)
    passed = abs(total - 1) <= allowed and abs(last - 1) <= allowed
    return Finding("proportions_sum_to_one", passed=passed, observed=f"sum {total:.9f}, last cumulative {last:.9f}")


def column_counts(statistics: pl.DataFrame, rows: int) -> Finding:
    """Do values and nulls of every described column add up to the rows?"""
    counted = statistics["count"] + statistics["null_count"]
    wrong = statistics["column_name"].filter(counted != rows).to_list()
    observed = f"{statistics.height} columns of {plural(rows, 'row')}" + (
        f"; wrong: {', '.join(wrong)}" if wrong else ""
    )
    return Finding("counts_equal_events", passed=not wrong, observed=observed)


def kpis_agree(kpis: Mapping[str, int]) -> Finding:
    """Do the day's figures agree with one another?"""
    accounted = kpis["valid"] + kpis["quarantined"] + kpis["duplicate"]
    passed = kpis["rows_in"] == accounted and kpis["sessions"] == kpis["valid"] == kpis["events"]
    observed = (
        f"{kpis['rows_in']:,} rows in, {accounted:,} accounted for; {kpis['valid']:,} valid, "
        f"{kpis['sessions']:,} sessions, {kpis['events']:,} events"
    )
    return Finding("kpis_agree", passed=passed, observed=observed)


def published(rows: int, there: Published) -> tuple[Finding, ...]:
    """What the checks of a day find that stands in PostgreSQL: it was compared before the commit."""
    observed = f"{len(there.sums)} figures agree" + "".join(
        f"; {visible(name, 60)} {value}" for name, value in there.sums.items() if name.endswith("sum")
    )
    return (
        equal("row_count", ("rows here", rows), ("rows in PostgreSQL", there.rows)),
        Finding("checksum", passed=True, observed=observed),
    )


def not_published(problem: DataAssetsError) -> tuple[Finding, ...]:
    """The same for a day that was refused; it is there as it was."""
    return (Finding("checksum", passed=False, observed=problem.what),)


def completeness_checks(
    config: PipelineConfig, tables: Sequence[str], partitions: DailyPartitionsDefinition
) -> list[AssetChecksDefinition]:
    """For each asset, the check that ends a run as failed when a day of its range was refused.

    It does not block: by then the other days have gone on to their reports.
    """
    return [_completeness(config, table, partitions) for table in tables]


def _completeness(config: PipelineConfig, table: str, partitions: DailyPartitionsDefinition) -> AssetChecksDefinition:
    @asset_check(
        asset=AssetKey.from_user_string(table),
        name=DONE.name,
        description=DONE.description,
        blocking=False,
        partitions_def=partitions,
    )
    @retries.guarded
    def every_day_done(context: AssetCheckExecutionContext) -> Iterator[AssetCheckEvaluation | Output[None]]:
        days = list(context.partition_keys)
        refused = DayLog(config.lake_dir).refusals(table, days)
        results = {
            (table, day): [Finding(DONE.name, passed=day not in refused, observed=refused.get(day, "done"))]
            for day in days
        }
        yield from evaluations(context.instance, results, stop=False)
        if refused:
            raise Failure(
                f"{table}: {len(refused)} of {len(days)} days refused; they keep what they had.\n"
                + "\n".join(f"{day}: {reason}" for day, reason in refused.items()),
                allow_retries=False,
            )
        yield Output(None)

    return every_day_done
