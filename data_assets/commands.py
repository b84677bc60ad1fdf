"""Commands that run nothing in Dagster: `init`, `plan`, `metrics`, `quarantine list | show | export`; what they share.

Here: their arguments, words and exit codes. Not here: `quarantine replay`, which is a run (``cli.py``), and the work
itself (``guessing.py``, ``planning.py``, ``quarantine.py``).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data_assets import logs
from data_assets.config import load_config
from data_assets.errors import UsageError, visible
from data_assets.reasons import REASONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dagster import DagsterInstance

    from data_assets.planning import FilePlan, Total
    from data_assets.quarantine import Filters

SHOWN_FILES = 20
SHOWN_COLUMNS = 30


def as_day(_ctx: click.Context, _param: click.Parameter, value: str | None) -> dt.date | None:
    """A day on the command line, as ``callback`` of an option or argument."""
    if value is None:
        return None
    try:
        return dt.date.fromisoformat(value)
    except ValueError as error:
        raise click.BadParameter(f"{visible(value, 40)!r} is not a day; write it as 2024-01-31.") from error


@contextlib.contextmanager
def opened_instance() -> Iterator[DagsterInstance]:
    """Dagster's history as `dagster dev` in this folder uses it: $DAGSTER_HOME, else ./dagster.yaml.

    Where there is neither, one that is gone afterwards, and tells Dagster's makers nothing, as it would by default.
    """
    import logging

    from dagster._cli.utils import TMP_DAGSTER_HOME_PREFIX, get_possibly_temporary_instance_for_cli
    from dagster._core.instance import InstanceRef
    from dagster._core.instance.config import is_dagster_home_set
    from dagster._core.secrets.env_file import get_env_var_dict

    quiet = logging.getLogger("data_assets.instance")
    quiet.setLevel(logging.CRITICAL)
    here = Path.cwd()
    named = is_dagster_home_set() or "DAGSTER_HOME" in get_env_var_dict(str(here))
    with contextlib.ExitStack() as stack:
        chosen = None
        if not named and not (here / "dagster.yaml").exists():
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix=TMP_DAGSTER_HOME_PREFIX, dir=here))
            chosen = InstanceRef.from_dir(home, overrides={"telemetry": {"enabled": False}})
        yield stack.enter_context(get_possibly_temporary_instance_for_cli("data-assets", chosen, quiet))


def _show_lines(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.with_resource(logs.on_terminal())


verbose = click.option(
    "-v", "--verbose", is_flag=True, expose_value=False, callback=_show_lines, help="show log lines on standard error"
)
"""The option that shows log lines, for any command that runs something."""


# --- metrics -------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--textfile", type=click.Path(path_type=Path), metavar="PATH", help="write there instead, all at once")
@click.pass_obj
def metrics(config_path: Path | None, textfile: Path | None) -> None:
    """Figures for Prometheus: days, rows, runs, disk. Reads what is stored, and looks at no raw file.

    With --textfile PATH, which ends in .prom, for the textfile collector of node_exporter.
    """
    from data_assets import exposition

    text = exposition.exposed(load_config(config_path), dt.datetime.now(dt.UTC))
    if textfile is None:
        click.echo(text, nl=False)
        return
    try:
        exposition.write(textfile, text)
    except OSError as error:
        raise UsageError(
            f"{visible(str(textfile))} cannot be written ({error.strerror}).", "Choose a folder."
        ) from error


# --- quarantine ----------------------------------------------------------------------------------------------------


def narrowed(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which records are meant."""
    for option in (
        click.option("--to", "last", callback=as_day, metavar="DAY", help="last day, included"),
        click.option("--from", "first", callback=as_day, metavar="DAY", help="first day"),
        click.option("--day", callback=as_day, metavar="DAY", help="this day alone"),
        click.option("--file", "files", multiple=True, metavar="PATH", help="path below the raw folder; * and ? match"),
        click.option("--reason", "reasons", multiple=True, type=click.Choice(list(REASONS)), metavar="REASON",
                     help="a reason such as missing_user_id; may be given more than once"),
    ):  # fmt: skip
        command = option(command)
    return command


def filters_of(
    *,
    reasons: tuple[str, ...],
    files: tuple[str, ...],
    day: dt.date | None,
    first: dt.date | None,
    last: dt.date | None,
) -> Filters:
    """The options as filters.

    Raises:
        UsageError: they contradict each other.
    """
    from data_assets.quarantine import Filters

    if day is not None and (first or last):
        raise UsageError("--day together with --from or --to.", "Use one or the other.")
    if first and last and last < first:
        raise UsageError(f"--to {last} is before --from {first}.", "Swap them.")
    return Filters(reasons, files, day or first, day or last)


# --- retention -----------------------------------------------------------------------------------------------------


@click.command()
@click.option("--apply", "is_applied", is_flag=True, help="take away what is shown")
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
@click.pass_obj
def retention(config_path: Path | None, is_applied: bool, as_json: bool) -> None:
    """What is older than `retention:` of pipeline.yaml allows, and why some of it stays; with --apply, take it away."""
    from data_assets import retention as keeping
    from data_assets.jobs import running_days

    config = load_config(config_path)
    now = dt.datetime.now(dt.UTC)
    today = now.astimezone(config.zone).date()
    with opened_instance() as instance:
        busy = running_days(instance)
        if is_applied:
            found = [keeping.apply(config, today, busy), keeping.apply_history(config, instance, now)]
        else:
            found = [keeping.plan(config, today, busy), keeping.plan_history(config, instance, now)]
    goes, stays = ([thing for plan in found for thing in getattr(plan, name)] for name in ("goes", "stays"))
    if as_json:
        things = {"applied": is_applied, "goes": [asdict(t) for t in goes], "stays": [asdict(t) for t in stays]}
        click.echo(json.dumps(things))
        return
    if not config.retention.is_set:
        click.echo("Everything is kept for ever: pipeline.yaml has no age under `retention:` (docs/retention.md).")
        return
    for thing in goes:
        verb = "gone" if is_applied else "goes"
        click.echo(f"{verb}   {thing.kind:<11} {visible(thing.name)}  {thing.size / 1e6:,.1f} MB")
    for thing in stays:
        click.echo(f"stays  {thing.kind:<11} {visible(thing.name)}: {visible(thing.why)}")
    verb = "went" if is_applied else "would go; `data-assets retention --apply` takes them away"
    size = sum(thing.size for thing in goes) / 1e6
    click.echo(f"{len(goes):,} things, {size:,.1f} MB, {verb}. {len(stays):,} stay for a reason.")


@click.group(invoke_without_command=True)
@narrowed
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
@click.pass_context
def quarantine(ctx: click.Context, /, as_json: bool, **chosen: Any) -> None:
    """The records that were refused: list, show, export or replay them. Without more: list."""
    if ctx.invoked_subcommand is None:
        _list(ctx.obj, filters_of(**chosen), as_json=as_json)
    elif as_json or any(chosen.values()):
        raise UsageError("An option before the subcommand.", f"Write: quarantine {ctx.invoked_subcommand} [options]")


@quarantine.command("list")
@narrowed
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
@click.pass_obj
def list_(config_path: Path | None, /, as_json: bool, **chosen: Any) -> None:
    """How many records were refused, by reason, file and day, most first."""
    _list(config_path, filters_of(**chosen), as_json=as_json)


def _list(config_path: Path | None, filters: Filters, *, as_json: bool) -> None:
    from data_assets import quarantine as kept
    from data_assets.storage import Lake

    records = kept.find(Lake(load_config(config_path).lake_dir), filters)
    rows = kept.by_reason_file_day(records, only=filters.reasons)
    if as_json:
        click.echo(rows.write_json())
        return
    total = kept.count(records)
    if total:
        print_table(rows)
    click.echo(
        f"{total:,} records are in quarantine; one with several reasons stands in several lines. "
        "See them: data-assets quarantine show"
        if total
        else "No such record is in quarantine."
    )


@quarantine.command()
@narrowed
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="records to show")
@click.option("--json", "as_json", is_flag=True, help="print them whole, as JSON")
@click.pass_obj
def show(config_path: Path | None, /, limit: int, as_json: bool, **chosen: Any) -> None:
    """The records themselves, each with its file, its line and every reason in words."""
    from data_assets import quarantine as kept
    from data_assets.storage import Lake

    records = kept.find(Lake(load_config(config_path).lake_dir), filters_of(**chosen))
    rows = records.head(limit).collect(engine="streaming")
    if as_json:
        click.echo(rows.write_json())
        return
    width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 120
    for row in rows.iter_rows(named=True):
        click.echo(f"{visible(row['source_file'])}, line {row['source_line']:,} ({row['day']}): "
                   f"{kept.in_words(row['reasons'])}")  # fmt: skip
        click.echo(f"    {visible(row['record'][:width], max(20, width - 4))}")
    total = kept.count(records)
    click.echo(f"{rows.height:,} of {total:,} records." if total else "No such record is in quarantine.")


@quarantine.command()
@click.argument("target", metavar="OUT.csv", type=click.Path(path_type=Path, dir_okay=False))
@narrowed
@click.option("--json", "as_json", is_flag=True, help="print what was written as JSON")
@click.pass_obj
def export(config_path: Path | None, /, target: Path, as_json: bool, **chosen: Any) -> None:
    """Write the records to OUT.csv, harmless to spreadsheets."""
    from data_assets import quarantine as kept
    from data_assets.storage import Lake

    written = kept.export(kept.find(Lake(load_config(config_path).lake_dir), filters_of(**chosen)), target)
    said = {"file": str(target), "records": written}
    click.echo(json.dumps(said) if as_json else f"{written:,} records written to {visible(str(target))}.")


def outcome_in_words(result: Mapping[str, Any], *, dry_run: bool) -> list[str]:
    """What `quarantine replay` found and did."""
    from data_assets.partitions import contiguous_ranges

    found, outcome = result["replay"], result.get("outcome")
    if not found["records"]:
        return ["No such record is in quarantine."]
    ranges = contiguous_ranges(found["days"])
    days = ", ".join(a if a == b else f"{a} to {b}" for a, b in ranges)
    lines = []
    if found["unchanged"]:
        lines.append(
            f"{len(found['unchanged'])} of the days that hold such records are left alone: neither their files nor the "
            "configuration changed since, so they would come out the same."
        )
    if dry_run:
        lines.append(f"{len(found['days'])} days would be made again: {days}." if days else "No day would be made.")
    elif outcome is None:
        lines.append("Nothing to replay. Mend the mapping, the rule or the file first: data-assets quarantine show")
    else:
        before, now = outcome["sums_before"], outcome["sums_now"]
        lines += [
            f"{len(found['days'])} days made again: {days}.",
            f"Of {outcome['before']:,} records {outcome['came_through']:,} came through and "
            f"{outcome['still_refused']:,} remain in quarantine"
            + (f"; {outcome['gone']:,} no longer stand in their files as they did." if outcome["gone"] else "."),
            *(f"  {r}: {outcome['reasons_before'].get(r, 0):,} -> {outcome['reasons_now'].get(r, 0):,}"
              for r in REASONS if r in outcome["reasons_before"] or r in outcome["reasons_now"]),
            "All rows of these days, before: " + _sums(before),
            "All rows of these days, now:    " + _sums(now),
        ]  # fmt: skip
        if result["days_left"]:
            lines.append(
                f"{len(result['days_left']):,} other days were made from other files or another configuration than "
                "there is now. Make them: data-assets run"
            )
    return lines


def _sums(sums: Mapping[str, int]) -> str:
    return (
        f"{sums['rows_in']:,} = {sums['valid']:,} valid + {sums['quarantined']:,} quarantined "
        f"+ {sums['duplicate']:,} duplicates."
    )


# --- plan ----------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
@click.pass_obj
def plan(config_path: Path | None, paths: tuple[Path, ...], as_json: bool) -> None:
    """What a run would do with each FILE or DIR (default: the raw folder). Writes nothing.

    Of a large file only a sample is read; what is predicted from it says so. Exits with 1 when a file would be refused.
    """
    from data_assets import planning

    config = load_config(config_path)
    files: list[tuple[Path, str]] = []
    ignored: dict[str, str] = {}
    for path in paths or (config.raw_dir,):
        if path.is_dir():
            there, listing = planning.files_below(config, path, time.time_ns())
            ignored |= listing.ignored
            files += [(there.raw_dir / file.path, file.path) for file in listing.files]
        else:
            files.append((path, planning.relative_path(config, path)))
    with click.progressbar(files, label="looking", file=sys.stderr, hidden=as_json or not sys.stderr.isatty()) as bar:
        plans = planning.plan_files(config, bar, today=dt.datetime.now(config.zone).date())
    total = planning.in_all(config, plans)
    if as_json:
        of_files = [asdict(p) | {"reject_rate": p.reject_rate} for p in plans]
        click.echo(json.dumps({"files": of_files, "ignored": ignored, "in_all": asdict(total)}))
    elif not plans:
        click.echo("There is no file to plan for.")
    else:
        shown = [line for p in plans[:SHOWN_FILES] for line in _plan_in_words(p)]
        shown += [f"{len(plans) - SHOWN_FILES:,} more files: --json has them all"] if len(plans) > SHOWN_FILES else []
        shown += [f"ignored: {visible(name)}: {why}" for name, why in ignored.items()]
        shown += _total_in_words(total) if len(plans) > 1 else []
        click.echo("\n".join(shown))
    sys.exit(1 if total.unusable else 0)


def _total_in_words(total: Total) -> list[str]:
    lines = [f"in all: {total.files:,} files" + (f", {total.unusable:,} of them REFUSED" if total.unusable else "")]
    lines.append(f"  rows     {'' if total.rows_exact else 'about '}{total.rows:,}")
    days = sorted((*total.new, *total.changed, *total.unchanged, *total.to_come))
    lines += _days_in_words(total, days)
    lines.append(f"  refused  {total.refused:,} of {total.sampled_rows:,} records looked at")
    return [*lines, *_needs_in_words(total)]


def _plan_in_words(found: FilePlan) -> list[str]:
    about = "" if found.rows_exact else "about "
    lines = [f"{visible(found.path)} ({found.size / 1e6:,.1f} MB)"]
    if found.format:
        delimiter = f", fields parted by {found.delimiter!r}" if found.delimiter else ""
        lane = f"{found.lane} lane" + (f" ({found.lane_reason})" if found.lane_reason else "")
        lines.append(f"  format   {found.format}, {found.encoding}{delimiter}; {lane}")
        lines.append(f"  rows     {about}{found.rows:,}" + (f"; looked at {found.sample}" if found.sample else ""))
        lines += _columns_in_words(found)
    if found.error:
        return [*lines, "  REFUSED  " + found.error.replace("\n", "\n         ")]
    lines += _days_in_words(found, list(found.days), " in the sample" if found.sample else "")
    reasons = "".join(f"\n             {n:,} {r}: {REASONS.get(r, r)}" for r, n in found.reasons.items())
    lines.append(f"  refused  {found.refused:,} of {found.sampled_rows:,} records"
                 + (f" ({found.reject_rate:.2%})" if found.sampled_rows else "")
                 + (" of the sample" if found.sample else "") + reasons)  # fmt: skip
    lines += [f"  schema   {change.policy}: {change.text}" for change in found.changes]
    return lines + _needs_in_words(found)


def _days_in_words(found: FilePlan | Total, days: Sequence[str], where: str = "") -> list[str]:
    if not days:
        return []
    states = {"new": found.new, "changed": found.changed, "as made": found.unchanged}
    told = [f"{len(those):,} {state}" for state, those in states.items()]
    told += [f"{len(found.to_come):,} to come"] if found.to_come else []
    return [f"  days     {len(days):,}{where}, {days[0]} to {days[-1]}: {', '.join(told)}"]


def _needs_in_words(found: FilePlan | Total) -> list[str]:
    """How the days would be worked on, for each way the day that would take most, and what a run would take."""
    lines = []
    for mode in dict.fromkeys(decision.mode for decision in found.decisions.values()):
        days = {day: decision for day, decision in found.decisions.items() if decision.mode == mode}
        day, most = max(days.items(), key=lambda item: item[1].needed)
        of_days = f"{day}, the largest of {len(days):,} days" if len(days) > 1 else day
        lines.append(f"  memory   {most.words} ({of_days})")
    return [*lines, f"  a run    up to about {found.seconds:,.0f} CPU-s and {found.memory_mb:,} MB"]


def _columns_in_words(found: FilePlan) -> list[str]:
    lines = []
    for ours, theirs in found.columns.items():
        near = found.missing.get(ours)
        absent = "(none)" if near is None else "(the file has no such column" + (
            f"; nearest: {', '.join(visible(n, 60) for n in near)})" if near else ")"
        )  # fmt: skip
        lines.append(f"  column   {ours} <- {absent if theirs is None else visible(theirs, 100)}")
    if found.unmapped:
        more = len(found.unmapped) - SHOWN_COLUMNS
        lines.append("  not read " + ", ".join(visible(c, 60) for c in found.unmapped[:SHOWN_COLUMNS])
                     + (f" and {more} more" if more > 0 else ""))  # fmt: skip
    return lines


# --- init ----------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("paths", nargs=-1, metavar="[FILE]...", type=click.Path(path_type=Path, exists=True))
@click.option("--force", is_flag=True, help="replace a pipeline.yaml that is there")
@click.option("--json", "as_json", is_flag=True, help="print what was guessed as JSON")
def init(paths: tuple[Path, ...], force: bool, as_json: bool) -> None:
    """Write a commented pipeline.yaml into this folder, guessed from your FILEs (default: those in data/raw).

    Exits with 1 when a column that a run needs could not be guessed.
    """
    from data_assets import guessing
    from data_assets.storage import write_atomically

    target, raw = Path("pipeline.yaml"), Path("data/raw")
    if target.exists() and not force:
        raise UsageError("There is a pipeline.yaml in this folder.", "Replace it with --force, or go elsewhere.")
    files = guessing.files_to_look_at(paths or (raw,))
    if not files:
        raise UsageError("There is no file to look at.", "Name one: data-assets init FILE")
    found = guessing.propose(files, raw)
    write_atomically(target, found.text)
    if as_json:
        click.echo(json.dumps({"file": str(target), "unknown": found.unknown, "text": found.text}))
    else:
        click.echo(f"{target} is written from a look at {len(files)} file(s). Read it, then: data-assets plan")
        for ours, near in found.unknown.items():
            shown = ", ".join(visible(n, 60) for n in near)
            click.echo(f"source.columns.{ours} could not be guessed; " + (f"it may be: {shown}" if near else "set it."))
    sys.exit(1 if found.unknown else 0)


def print_table(rows: Any) -> None:  # noqa: ANN401 - a polars frame, which is not imported for --help
    """The first rows of a frame as a table for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name, dtype in rows.schema.items():
        table.add_column(Text(visible(name)), justify="right" if dtype.is_numeric() else "left")
    for row in rows.head(200).iter_rows():
        table.add_row(*(Text("" if cell is None else visible(str(cell))) for cell in row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if rows.height > 200:
        click.echo(f"200 of {rows.height:,} rows; all of them: --format csv")
