"""Everything that is wrong now, found in what is stored: one cause for what has one remedy, however many days it costs.

Here: reading the ledger, the day log and the newest reports' figures, and the causes that they show. Not here: which
runs failed (``alerts.py`` asks Dagster), since when (``incidents.py``) or whom to tell.

Nothing is computed again: checks, drift and unusual figures are those that the runs and the reports found. A look
reads only the notes that changed since the last look of the process.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
import shlex
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import polars as pl

from data_assets import drift, landing
from data_assets.config import KpiBounds
from data_assets.errors import visible
from data_assets.incidents import SEVERITIES, Cause
from data_assets.partitions import days_between
from data_assets.publish import published_names
from data_assets.report import text
from data_assets.storage import FINISHED, REFUSED, DayLog, Finding, Lake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from data_assets.config import PipelineConfig

TABLES = (
    "raw_events", "quarantined_events", "duplicate_events", "session_metrics", "outliers", "event_distribution",
    "summary_statistics", "daily_kpis", "daily_report",
)  # fmt: skip
"""Tables of a day in the order of the graph: what the first of them was refused for is why the others were."""
SHOWN_TEXT = 600
FRESH_NS = 2_000_000_000  # a folder changed this lately may change again without its time changing

_KIND = {"quarantine_rate": "quarantine_rate", "schema_drift": "schema_drift"}
_FILE = re.compile(r"^.*?\.(?:csv|tsv|txt|json|jsonl|ndjson|parquet|pq)(?:\.(?:gz|zst))?(?=[:,\s]|$)", re.IGNORECASE)
_VARYING = re.compile(r"0x[0-9a-f]+|\d[\d,.]*", re.IGNORECASE)
_BELOW = re.compile(r"[\w/]+ of \d{4}-\d\d-\d\d was refused: ")
_VALUES = (  # where the texts of errors and checks begin to quote what stands in the files
    (re.compile(r"\. The file has: .*", re.DOTALL), "."),
    (re.compile(r" fails for .*", re.DOTALL), " fails"),
    (re.compile(r"Nearest names: .*?\?\. ", re.DOTALL), ""),
)


@dataclass(frozen=True)
class Note:
    """What the day log holds of a table's day: why it was refused, which checks failed or warned, and when."""

    refused: str | None
    failed: tuple[Finding, ...]
    mark: str | None
    at: float


@dataclass(frozen=True)
class FailedRun:
    """A run that ended badly and was not started again.

    Attributes:
        days: days (ISO) that it was to make; none when it makes no days.
        started, ended: seconds since 1970.
        was_killed: whether its process ended, and no step of it failed.
        is_settled: False while it may be started again by itself.
    """

    id: str
    job: str
    days: tuple[str, ...]
    started: float
    ended: float
    was_killed: bool
    is_settled: bool = True


@dataclass(frozen=True)
class Runs:
    """What Dagster knows of the runs.

    Attributes:
        failed: those that failed, without those that a later run of the same made good.
        busy: days (ISO) that an unfinished run is to make.
        why: the step and the reason of a failed run, by its id.
    """

    failed: Sequence[FailedRun]
    busy: frozenset[str]
    why: Callable[[str], tuple[str, str]]


@dataclass(frozen=True)
class Known:
    """What is known now; everything that ``causes`` judges.

    Attributes:
        notes: by table and day.
        figures: summary.json of the newest days that are over.
        runs: None when Dagster was not asked.
        folder_problem: why the raw folder cannot be listed.
    """

    ledger: pl.DataFrame
    notes: Mapping[str, Mapping[str, Note]]
    figures: Mapping[str, Mapping[str, Any]]
    runs: Runs | None = None
    folder_problem: str | None = None


# ---- Reading -------------------------------------------------------------------------------------------------------


class Reader:
    """Reads what is stored, and remembers it from look to look."""

    def __init__(self) -> None:
        self._folders: dict[Path, tuple[int, dict[str, tuple[tuple[int, int], Note]]]] = {}

    def read(self, config: PipelineConfig, now: dt.datetime, runs: Runs | None) -> Known:
        """What is known at ``now`` (in the project's zone)."""
        root = DayLog(config.lake_dir).root
        notes = {table: self._table(root / table) for table in (*TABLES, *published_names(config), FINISHED)}
        first = config.start_date.isoformat()
        done = [d for d, n in notes[FINISHED].items() if n.mark != REFUSED and first <= d < now.date().isoformat()]
        figures = {day: found for day in sorted(done)[-config.alerts.kpi_days :] if (found := _summary(config, day))}
        ledger = landing.read_ledger(Lake(config.lake_dir))
        return Known(ledger, notes, figures, runs, _folder_problem(config) if done else None)

    def _table(self, folder: Path) -> dict[str, Note]:
        """The notes of one table by day; files that did not change are not read again."""
        try:
            changed = folder.stat().st_mtime_ns
        except FileNotFoundError:
            return {}
        seen, before = self._folders.get(folder, (0, {}))
        if seen != changed or time.time_ns() - changed < FRESH_NS:
            now: dict[str, tuple[tuple[int, int], Note]] = {}
            for entry in os.scandir(folder):
                if entry.name.startswith(".") or not entry.name.endswith(".json"):
                    continue
                day = entry.name.removesuffix(".json")
                try:
                    stat = entry.stat()
                    identity = (stat.st_ino, stat.st_mtime_ns)
                    known = before.get(day)
                    if known is not None and known[0] == identity:
                        now[day] = known
                    elif (note := _note(folder / entry.name, stat.st_mtime)) is not None:
                        now[day] = (identity, note)
                except FileNotFoundError:
                    continue
            before = now
            self._folders[folder] = (changed, before)
        return {day: note for day, (_, note) in sorted(before.items())}


def _note(path: Path, at: float) -> Note | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # torn by a power cut: as good as lost, see DayLog
        return None
    failed = tuple(Finding(**f) for f in found.get("findings", ()) if not f["passed"])
    return Note(found.get("refused"), failed, found.get("fingerprint"), at)


def _summary(config: PipelineConfig, day: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((config.reports_dir / day / "summary.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # removed by hand: nothing to judge
        return None
    return found


def _folder_problem(config: PipelineConfig) -> str | None:
    try:
        os.scandir(config.raw_dir).close()
    except OSError as problem:
        return f"The raw folder cannot be listed: {visible(problem.strerror or str(problem))}."
    return None


# ---- Judging -------------------------------------------------------------------------------------------------------


def causes(known: Known, config: PipelineConfig, now: dt.datetime) -> tuple[list[Cause], set[tuple[str, str]]]:
    """What is wrong at ``now`` (in the project's zone).

    Returns:
        The causes, each key once, in the order of their keys; and what cannot be judged now: a condition and a day, or
        "" for any day.
    """
    held: set[tuple[str, str]] = set()
    found = [
        *_unusable(known, config),
        *_drifted(known, config),
        *_absent(known, config, now),
        *_refused(known, config, held),
        *_warned(known, config),
        *_figures(known, config),
    ]
    if known.runs is None:
        held.add(("run_failed", ""))
    else:
        found += _runs(known, known.runs, config, now)
    by_key: dict[str, Cause] = {}
    for cause in found:
        by_key[cause.key] = _together(by_key[cause.key], cause) if cause.key in by_key else cause
    return [by_key[key] for key in sorted(by_key)], held


def _together(one: Cause, other: Cause) -> Cause:
    """Two findings of one cause; the words are those of the later days."""
    words = one if one.days[-1:] > other.days[-1:] else other
    return replace(
        words,
        severity=max(one.severity, other.severity, key=SEVERITIES.index),
        days=tuple(sorted({*one.days, *other.days})),
        items=tuple(dict.fromkeys((*one.items, *other.items))),
        is_settled=one.is_settled or other.is_settled,
    )


def shown(words: str, *, samples: bool) -> str:
    """A reason as it may leave the house: without what it quotes from the files, unless ``samples`` may be sent."""
    if not samples:
        for pattern, instead in _VALUES:
            words = pattern.sub(instead, words)
    return visible(words, SHOWN_TEXT)


def alike(words: str) -> str:
    """Eight hex digits, the same for two errors that differ in the file's name and in numbers alone.

    >>> alike("a_1.csv: line 7 is no text.") == alike("b_2.csv: line 93 is no text.")
    True
    """
    line = words.partition("\n")[0].partition(". The file has: ")[0]
    line = _VARYING.sub("#", _FILE.sub("FILE", line))
    return hashlib.blake2b(line.encode(), digest_size=4).hexdigest()


def _parted(reason: str, config: PipelineConfig) -> tuple[str, str]:
    """What is wrong, and what to do, from the text of an error."""
    what, _, hint = reason.partition("\n  What to do: ")
    samples = config.alerts.include_samples
    return shown(what, samples=samples), shown(hint, samples=samples)


def _unusable_cause(error: str, config: PipelineConfig, days: Sequence[str], items: Sequence[str]) -> Cause:
    what, hint = _parted(error, config)
    return Cause(
        f"unusable_file/{alike(error)}", "unusable_file", "landed_files", "input that cannot be used", "error",
        tuple(days), tuple(items), what, hint, "data-assets status",
    )  # fmt: skip


def _unusable(known: Known, config: PipelineConfig) -> Iterator[Cause]:
    if known.folder_problem is not None:
        yield Cause(
            "unusable_file/folder", "unusable_file", "landed_files", "the raw folder", "error", (), (),
            known.folder_problem, "Let the user who runs this list it; until then nothing is made.",
            f"ls -ld {shlex.quote(str(config.raw_dir))}",
        )  # fmt: skip
    broken = known.ledger.filter(pl.col("error").is_not_null()).select("path", "error", "day").sort("path", "day")
    for path, error, day in broken.iter_rows():
        yield _unusable_cause(error, config, [day.isoformat()], [visible(path)])


def _drifted(known: Known, config: PipelineConfig) -> Iterator[Cause]:
    """Changed schemas, by kind of change. What is only warned about in a file that is refused anyway is left out."""
    changed = known.ledger.filter(pl.col("drift").is_not_null()).select("path", "day", "drift").sort("path", "day")
    for path, day, noted in changed.iter_rows():
        changes = drift.changes_from_json(noted)
        failing = drift.fails(changes)
        by_kind: dict[str, list[str]] = {}
        for change in changes:
            if not failing or change.policy == "fail":
                is_value = change.kind == "new_event_type" and not config.alerts.include_samples
                words = "an event type that no file had before" if is_value else change.text
                by_kind.setdefault(change.kind, []).append(words)
        for kind, texts in by_kind.items():
            yield Cause(
                f"schema_drift/{kind}", "schema_drift", "landed_files",
                f"the files' schema: {kind.replace('_', ' ')}", "error" if failing else "warning",
                (day.isoformat(),), (visible(path),), visible("; ".join(dict.fromkeys(texts)), SHOWN_TEXT),
                "If it is right, accept it; if not, ask the sender for the file as it was."
                + (" Until then the days keep what they had." if failing else ""),
                f"data-assets schema accept {shlex.quote(visible(path))}",
            )  # fmt: skip


def _absent(known: Known, config: PipelineConfig, now: dt.datetime) -> Iterator[Cause]:
    """Days without rows: in between, and at the end. Those of a file that cannot be used are told of there."""
    today = now.date()
    broken = {d.isoformat() for d in known.ledger.filter(pl.col("error").is_not_null())["day"]}
    missing = [d for d in landing.missing_days(landing.landed_days(known.ledger), last=today) if d not in broken]
    if missing:
        yield Cause(
            "missing_day/landed_files", "missing_day", "landed_files", "days without rows", "warning", tuple(missing),
            (), f"No rows landed for {text.plural(len(missing), 'day')} in between.",
            "Ask the sender for the files of these days.", "data-assets status",
        )  # fmt: skip
    deadline = config.alerts.deadline
    if deadline is None:
        return
    if deadline == "schedule":
        deadline = dt.time(config.schedule.hour, config.schedule.minute)
    last = known.ledger.filter((pl.col("rows") > 0) & (pl.col("day") <= today))["day"].max()
    if not isinstance(last, dt.date):
        return
    awaited = today - dt.timedelta(days=1 if now.time() >= deadline else 2)
    late = [d for d in days_between(last + dt.timedelta(days=1), awaited) if d not in broken]
    if late:
        yield Cause(
            "late_day/landed_files", "late_day", "landed_files", "days that are late", "error", tuple(late), (),
            f"No rows landed after {last}; the last day was due by {deadline:%H:%M} on the day after it.",
            "Ask the sender; look whether the raw folder is the right one.", "data-assets status",
        )  # fmt: skip


def _refused(known: Known, config: PipelineConfig, held: set[tuple[str, str]]) -> Iterator[Cause]:
    """Why days are refused, from the first table of each that was."""
    drifted = known.ledger.filter(pl.col("drift_error").is_not_null())
    told = {d.isoformat() for d in drifted["day"]}
    for day, table, note in refusals(known, config):
        failed = [f for f in note.failed if f.severity == "ERROR"]
        if not failed and table == TABLES[0]:
            yield _unusable_cause(note.refused or "", config, [day], ())
        elif not failed:
            what, hint = _parted(note.refused or "", config)
            yield Cause(
                f"check_failed/{table}/{alike(what)}", "check_failed", table, f"{table} cannot be made", "error",
                (day,), (), what, hint, f"data-assets run --from {day}",
            )  # fmt: skip
        for finding in failed:
            if finding.name != "schema_drift":
                yield _failed_check(table, day, finding, note, config)
            elif day not in told:  # accepted or mended, and not made again yet: the incident goes on until then
                held.add(("schema_drift", day))


def refusals(known: Known, config: PipelineConfig) -> Iterator[tuple[str, str, Note]]:
    """Each refused day with the first table that refused it, and its note; days ascending."""
    first: dict[str, tuple[str, Note]] = {}
    for table in (*TABLES, *published_names(config)):
        for day, note in known.notes.get(table, {}).items():
            # Refused for what is above it: told of there, or made again just now.
            if note.refused is not None and not _BELOW.match(note.refused) and day >= config.start_date.isoformat():
                first.setdefault(day, (table, note))
    for day, (table, note) in sorted(first.items()):
        yield day, table, note


def _failed_check(table: str, day: str, finding: Finding, note: Note, config: PipelineConfig) -> Cause:
    condition = _KIND.get(finding.name, "check_failed")
    what, hint = _parted(note.refused or "", config)
    is_rate = condition == "quarantine_rate"
    observed = (
        what if is_rate and len(note.failed) == 1 else shown(finding.observed, samples=config.alerts.include_samples)
    )
    return Cause(
        f"{condition}/{table}/{finding.name}", condition, table, f"{table}: {finding.name}", "error", (day,), (),
        f"{day}: {observed.removeprefix(f'{finding.name}: ')}",
        hint or "The day keeps what it had. Mend the cause, then run it again.",
        f"data-assets quarantine show --day {day}" if is_rate else f"data-assets run --from {day}",
    )  # fmt: skip


def _warned(known: Known, config: PipelineConfig) -> Iterator[Cause]:
    """Checks that warn; a schema's are known from the ledger."""
    for table in (*TABLES, *published_names(config)):
        for day, note in known.notes.get(table, {}).items():
            for finding in note.failed:
                if finding.severity == "WARN" and finding.name != "schema_drift":
                    observed = shown(finding.observed, samples=config.alerts.include_samples)
                    yield Cause(
                        f"check_warned/{table}/{finding.name}", "check_warned", table, f"{table}: {finding.name}",
                        "warning", (day,), (), f"{day}: {observed}", "The day is made; look at its report.",
                        f"data-assets report {day}",
                    )  # fmt: skip


def _figures(known: Known, config: PipelineConfig) -> Iterator[Cause]:
    """Figures of the newest days outside their usual range, as the reports have it, or outside the rules' bounds."""
    bounds = {w.condition: w for rule in config.alerts.rules for w in rule.when if isinstance(w, KpiBounds)}
    for day, summary in known.figures.items():
        unusual = [line for line in summary["headline"] if line["is_unusual"]]
        if unusual:
            each = (
                f"{line['label']}: {text.figure(line['value'], line['kind'])}, "
                f"usual {text.span(line['low'], line['high'], line['kind'])}"
                for line in unusual
            )
            yield Cause(
                "kpi_unusual/daily_kpis", "kpi_unusual", "daily_kpis", "figures outside their usual range", "warning",
                (day,), (), f"{day}: {'; '.join(each)}.", "Look at the day's report.", f"data-assets report {day}",
            )  # fmt: skip
        figures = summary["kpis"]
        rate = figures["quarantined"] / figures["rows_in"] if figures["rows_in"] else None
        for condition, bound in bounds.items():
            found = rate if bound.kpi == "quarantine_rate" else figures.get(bound.kpi)
            if found is None:
                continue
            if (bound.below is not None and found < bound.below) or (bound.above is not None and found > bound.above):
                wanted = " and ".join(
                    f"{words} {limit:g}"
                    for words, limit in (("at least", bound.below), ("at most", bound.above))
                    if limit is not None
                )
                yield Cause(
                    f"kpi/daily_kpis/{condition}", condition, "daily_kpis", f"{bound.kpi} outside its bounds", "error",
                    (day,), (), f"{day}: {bound.kpi} is {found:,.6g}; it has to be {wanted}.",
                    "Look at the day's report.", f"data-assets report {day}",
                )  # fmt: skip


def _runs(known: Known, runs: Runs, config: PipelineConfig, now: dt.datetime) -> Iterator[Cause]:
    """Failed runs that left work undone which no other cause tells of."""
    if not runs.failed:
        return
    stale = landing.stale_days(known.ledger, DayLog(config.lake_dir), first=config.start_date, last=now.date())
    tables = (*TABLES, *published_names(config))
    for run in runs.failed:
        left = [d for d in run.days if not _is_healed(known, run, d, tables, is_due=d in stale)]
        if run.days and not left:
            continue
        step, reason = runs.why(run.id)
        is_settled = run.is_settled and not (left and runs.busy.issuperset(left))
        where = f"in {step}" if step else "outside of any step"
        yield Cause(
            f"run_failed/{run.job}/{step or 'process'}/{alike(reason)}", "run_failed", step or run.job,
            f"a run of {run.job} failed {where}", "error", tuple(left), (run.id,),
            shown(reason, samples=config.alerts.include_samples),
            "Its days keep what they had. Look at the run, then make them again.",
            f"data-assets run --from {left[0]} --to {left[-1]}" if left else "data-assets run",
            is_settled,
        )  # fmt: skip


def _is_healed(known: Known, run: FailedRun, day: str, tables: Iterable[str], *, is_due: bool) -> bool:
    """Whether a day of a failed run needs nobody: finished since, refused for a reason that is told, or untouched."""
    finished = known.notes.get(FINISHED, {}).get(day)
    if finished is not None and finished.mark != REFUSED and finished.at >= run.started:
        return True
    notes = [known.notes.get(table, {}).get(day) for table in tables]
    if any(note is not None and note.refused is not None and note.at >= run.started for note in notes):
        return True
    return run.was_killed and not is_due
