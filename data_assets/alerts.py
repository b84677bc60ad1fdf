"""Telling people: looks at what is wrong, keeps the incidents on disk, and sends what is due to each channel.

Here: one round of looking and sending, the sensor that makes a round every half minute, failed runs as Dagster knows
them, and Apprise. Not here: what counts as wrong (``causes.py``), which messages are due (``incidents.py``) or what
they say (``messages.py``).

A round never fails or delays a run: it has no part in one, its waits are bounded, and a receiver that is away is tried
again later. Whoever makes a round holds a lock; another one at the same time does nothing. What a receiver took is
noted before the next message goes out, so a killed process repeats at most one message, with the same id.
"""

import contextlib
import datetime as dt
import logging
import os
import random
import re
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagster import (
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    sensor,
)
from filelock import FileLock, Timeout

from data_assets import causes as looking
from data_assets import errors, incidents, messages, quarantine
from data_assets.causes import FailedRun, Reader, Runs
from data_assets.config import PipelineConfig
from data_assets.errors import DataAssetsError, UsageError, visible
from data_assets.incidents import SEVERITIES, Cause, Incident, Message
from data_assets.jobs import UNFINISHED, WEEKS
from data_assets.partitions import days_between
from data_assets.retries import FAILURE, PARTITION, RANGE_END, RANGE_START
from data_assets.storage import Lake, write_atomically

INTERVAL_SECONDS = 30
SENSOR_BUDGET_SECONDS = 30.0  # a tick is cut off by Dagster after 60 s
COMMAND_BUDGET_SECONDS = 10.0
FIRST_RETRY_SECONDS = 30.0
LAST_RETRY_SECONDS = 900.0
LOOK_BACK_DAYS = 30
MOST_RUNS = 300
RESTART_SECONDS = 600.0  # a killed run that Dagster promised to start again is waited for this long
SAMPLES = 3
WAITS_IN_A_ROW = 4  # a mail takes several answers; together they may take this many times the time for one
_KILLED = frozenset({"UNEXPECTED_TERMINATION", "RUN_WORKER_RESTART", "START_TIMEOUT"})
_OURS = frozenset(name for name, what in vars(errors).items() if isinstance(what, type))


@dataclass
class Book:
    """What is kept on disk: the incidents, and how delivery to each channel stands.

    ``unsaved`` says why it is in memory alone: a disk that is full is to be told of, too.
    """

    path: Path
    incidents: list[Incident] = field(default_factory=list)
    channels: dict[str, dict[str, Any]] = field(default_factory=dict)
    unsaved: str = ""

    @classmethod
    def open(cls, config: PipelineConfig) -> "Book":
        """The book as it was left; a damaged one is put aside and begun anew, so that everything is told again."""
        path = config.data_dir / incidents.FOLDER / incidents.STATE
        try:
            return cls(path, *incidents.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls(path)
        except ValueError:
            path.replace(path.with_name(f"{incidents.STATE}.damaged"))
            return cls(path)

    def save(self) -> None:
        """Write it; a disk that does not take it is noted."""
        try:
            write_atomically(self.path, incidents.dumps(self.incidents, self.channels))
            self.unsaved = ""
        except OSError as problem:
            self.unsaved = visible(problem.strerror or str(problem))


@dataclass(frozen=True)
class Round:
    """What a round came to: incidents that are open, messages sent, channels that were not reached just now.

    ``channels`` has those that wait for another try.
    """

    open: Sequence[Incident]
    waiting: int
    sent: Sequence[str]
    failed: Mapping[str, str]
    channels: Mapping[str, Mapping[str, Any]]
    unsaved: str = ""

    def in_words(self) -> str:
        """One line."""
        parts = [f"{len(self.open)} open"]
        if self.sent:
            parts.append(f"{len(self.sent)} sent")
        if self.waiting:
            parts.append(f"{self.waiting} waiting")
        parts += [f"{channel} not reached ({problem})" for channel, problem in self.failed.items()]
        parts += [f"not written down ({self.unsaved})"] if self.unsaved else []
        return "alerts: " + ", ".join(parts)


@contextlib.contextmanager
def _alone(config: PipelineConfig, timeout: float) -> Iterator[None]:
    """Nobody else makes a round meanwhile.

    Raises:
        Timeout: somebody does.
        DataAssetsError: nothing can be written there.
    """
    folder = config.data_dir / incidents.FOLDER
    lock = folder / incidents.LOCK
    try:
        folder.mkdir(exist_ok=True)
        lock.touch()
    except OSError as problem:
        raise DataAssetsError(
            f"{visible(str(folder))} cannot be written: {visible(problem.strerror or str(problem))}.",
            "Let the user who runs this write there; what was told is kept in it.",
        ) from problem
    with FileLock(lock, timeout=timeout):
        yield


class Teller:
    """Makes rounds, and remembers from one to the next what was read, and what could not be written."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self._reader = Reader()
        self._book: Book | None = None

    def make_round(
        self,
        instance: DagsterInstance | None,
        *,
        now: dt.datetime,
        budget_seconds: float,
        lock_timeout: float = 0.0,
        deliver: bool = True,
        at_once: bool = False,
    ) -> Round | None:
        """Look at what is wrong, and send what is due.

        Args:
            instance: Dagster's history; None leaves incidents about runs as they are.
            now: the time, with a zone.
            budget_seconds: no message is begun after this time.
            lock_timeout: wait this long for another one's round.
            deliver: whether to send anything.
            at_once: whether to try channels again that failed a moment ago.

        Returns:
            None when another one was at it.

        Raises:
            DataAssetsError: nothing can be written where the book is kept.
        """
        now = now.astimezone(self.config.zone)
        if not self.config.data_dir.exists():
            return Round((), 0, (), {}, {})
        try:
            with _alone(self.config, lock_timeout):
                book = self._book if self._book is not None and self._book.unsaved else Book.open(self.config)
                self._book = book
                self._look(book, instance, now)
                if at_once:
                    book.channels = {name: state | {"next": now.isoformat()} for name, state in book.channels.items()}
                due = incidents.due(book.incidents, self.config.alerts, now) if deliver else []
                sent, failed = _deliver(self.config, book, due, now, budget_seconds) if due else ([], {})
        except Timeout:
            return None
        open_ones = [i for i in book.incidents if i.resolved is None]
        open_ones.sort(key=lambda i: (-SEVERITIES.index(i.cause.severity), i.since, i.id))
        return Round(open_ones, len(due) - len(sent), sent, failed, book.channels, book.unsaved)

    def _look(self, book: Book, instance: DagsterInstance | None, now: dt.datetime) -> None:
        """Bring the incidents up to date; the book is written when that changed anything."""
        alerts = self.config.alerts
        before = (book.incidents, book.channels)
        runs = runs_of(instance, now) if instance is not None else None
        found, held = looking.causes(self._reader.read(self.config, now, runs), self.config, now)
        if instance is not None:
            held |= _of_other_histories(instance, book.incidents, now)
        book.incidents = incidents.forget(incidents.reconcile(book.incidents, found, now, held), alerts)
        book.channels = {name: state for name, state in book.channels.items() if name in alerts.channels}
        if (book.incidents, book.channels) != before or book.unsaved:
            book.save()


def _of_other_histories(instance: DagsterInstance, known: Sequence[Incident], now: dt.datetime) -> set[tuple[str, str]]:
    """Failed runs that this history does not know, so that it cannot tell whether they healed."""
    since = (now - dt.timedelta(days=LOOK_BACK_DAYS)).astimezone(dt.UTC).isoformat()
    return {
        (i.cause.condition, day)
        for i in known
        if i.cause.condition == "run_failed" and i.resolved is None and i.changed > since
        if instance.get_run_by_id(i.cause.items[-1]) is None
        for day in i.cause.days or ("",)
    }


# ---- Sending -------------------------------------------------------------------------------------------------------


def _deliver(
    config: PipelineConfig, book: Book, due: Sequence[Message], now: dt.datetime, budget_seconds: float
) -> tuple[list[str], dict[str, str]]:
    """Send messages, each channel's in their order until one fails; that channel then waits longer each time."""
    deadline = time.monotonic() + budget_seconds
    sent: list[str] = []
    failed: dict[str, str] = {}
    for message in due:
        channel = message.channel
        state = book.channels.get(channel, {})
        if channel in failed or time.monotonic() > deadline:
            continue
        if state and now < dt.datetime.fromisoformat(state["next"]):
            continue
        problem = send(config, message)
        if problem is None:
            sent.append(message.id)
            book.incidents = incidents.was_told(book.incidents, message, now)
            book.incidents = incidents.forget(book.incidents, config.alerts)
            book.channels.pop(channel, None)
        else:
            failed[channel] = problem
            failures = state.get("failures", 0) + 1
            book.channels[channel] = {
                "failures": failures,
                "since": state.get("since", now.isoformat(timespec="seconds")),
                "next": (now + wait(failures)).isoformat(timespec="seconds"),
                "problem": problem,
            }
        book.save()
    return sent, failed


def wait(failures: int) -> dt.timedelta:
    """How long to leave a channel alone after this many failures in a row: doubled each time, full jitter."""
    most = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 16))
    return dt.timedelta(seconds=random.uniform(0, most))  # noqa: S311 - spreads retries, guards nothing


def send(config: PipelineConfig, message: Message) -> str | None:
    """Send one message; returns why it was not taken, without any part of the address."""
    variable = config.alerts.channels[message.channel].url_env
    url = os.environ.get(variable, "").strip()
    if not url:
        return f"the environment variable {variable} is not set"
    import apprise

    seconds = config.alerts.timeout_seconds
    asset = apprise.AppriseAsset(
        app_id="data_assets",
        app_desc="data_assets",
        storage_mode="memory",
        service_timeout=WAITS_IN_A_ROW * seconds,
        pgp_autogen=False,
        pem_autogen=False,
    )
    with _listening() as heard:
        receiver = apprise.Apprise.instantiate(url, asset=asset, suppress_exceptions=True)
        if receiver is None:
            return f"{variable} holds no address that Apprise can use"
        receiver.socket_connect_timeout = receiver.socket_read_timeout = seconds
        _mark(receiver, config, message)
        form: messages.Format = receiver.resolve_format(None).value
        samples = {i.id: _samples(config, i.cause) for i, state in message.entries if state != "resolved"}
        service = apprise.Apprise(asset=asset)
        service.add(receiver)
        taken = service.notify(
            title=messages.title(config, message),
            body=messages.body(config, message, form, samples),
            notify_type=messages.kind(config, message),
            body_format=form,
        )
    return None if taken else without_secrets("; ".join(heard) or "not taken", url)


def _mark(receiver: Any, config: PipelineConfig, message: Message) -> None:  # noqa: ANN401 - Apprise has no types here
    """Give machines what they need to tell messages apart, where a service has a place for it."""
    incident = message.entries[0][0].id
    if receiver.schema in ("json", "jsons"):
        receiver.payload_extras["alert"] = messages.fields(config, message)
    if receiver.schema in ("json", "jsons", "mailto", "mailtos"):
        state = "digest" if message.is_digest else message.entries[0][1]
        receiver.headers |= {"X-Data-Assets-Message": message.id, "X-Data-Assets-State": state}
    if receiver.schema in ("mailto", "mailtos") and not message.is_digest:  # mail programs show it as one thread
        receiver.headers["References"] = f"<{incident}@data_assets.invalid>"
    if receiver.schema == "pagerduty" and not receiver.dedup:
        receiver.dedup = incident


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    """What Apprise warns of while it sends; it goes nowhere else, because it may name the address."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logger, ear = logging.getLogger("apprise"), Ear(logging.WARNING)
    propagates = logger.propagate
    logger.addHandler(ear)
    logger.propagate = False
    try:
        yield heard
    finally:
        logger.removeHandler(ear)
        logger.propagate = propagates


def without_secrets(words: str, url: str) -> str:
    """``words`` without any part of an address, whichever of them is the secret.

    >>> without_secrets("failed at hooks.example", "json://token@hooks.example/T0K3N")
    'failed at ***'
    """
    whole = urllib.parse.unquote(url)
    parts = {p for text in (url, whole) for p in (text, *re.split(r"[:/@?&=,;\s]+", text)) if len(p) > 2}
    for part in sorted(parts - {"json", "jsons", "mailto", "mailtos"}, key=len, reverse=True):
        words = words.replace(part, "***")
    return visible(words, 200)


def _samples(config: PipelineConfig, cause: Cause) -> list[str]:
    """Some quarantined records of the newest day, when the configuration lets them out."""
    if not config.alerts.include_samples or cause.condition != "quarantine_rate" or not cause.days:
        return []
    day = dt.date.fromisoformat(cause.days[-1])
    found = quarantine.find(Lake(config.lake_dir), quarantine.Filters(first=day, last=day))
    return [
        f"{visible(row['source_file'], 80)}, line {row['source_line']} ({', '.join(row['reasons'])}): "
        f"{visible(row['record'] or '', 200)}"
        for row in found.head(SAMPLES).collect(engine="streaming").to_dicts()
    ]


def test_message(config: PipelineConfig, channel: str, now: dt.datetime) -> Message:
    """A message that says that it is none.

    Raises:
        UsageError: there is no such channel.
    """
    if channel not in config.alerts.channels:
        near = ", ".join(errors.nearest(channel, config.alerts.channels)) or ", ".join(config.alerts.channels)
        raise UsageError(
            f"There is no channel {visible(channel, 60)!r}.",
            f"There is: {near}." if near else "Add one under alerts.channels in pipeline.yaml.",
        )
    at = now.astimezone(dt.UTC).isoformat(timespec="seconds")
    cause = Cause(
        "test", "test", "landed_files", "a test", "info", (), (), "Somebody asked for this message.",
        "Nothing is wrong.", "data-assets alerts",
    )  # fmt: skip
    return Message(channel, ((Incident(f"test-{int(now.timestamp())}", cause, at, at), "firing"),))


# ---- Runs ----------------------------------------------------------------------------------------------------------

_WHY: dict[str, tuple[str, str]] = {}  # of a run that ended; it does not change


def runs_of(instance: DagsterInstance, now: dt.datetime) -> Runs:
    """The failed runs of the last days, and what is being worked on."""
    after = now - dt.timedelta(days=LOOK_BACK_DAYS)
    chosen = RunsFilter(statuses=[DagsterRunStatus.FAILURE], updated_after=after.astimezone(dt.UTC))
    failed = []
    for record in instance.get_run_records(chosen, limit=MOST_RUNS):
        run, ended = record.dagster_run, record.end_time or record.update_timestamp.timestamp()
        if run.tags.get("dagster/auto_retry_run_id"):
            continue  # what became of it, the run that took its place tells
        if run.job_name == WEEKS and _went_well_since(instance, run.job_name, ended):
            continue
        waits = run.is_complete_and_waiting_to_retry and now.timestamp() - ended < RESTART_SECONDS
        reason = run.tags.get("dagster/failure_reason")
        failed.append(
            FailedRun(
                run.run_id,
                run.job_name,
                () if run.job_name == WEEKS else days_of(run.tags),
                record.start_time or ended,
                ended,
                was_killed=run.tags.get(FAILURE) == "killed" or reason in _KILLED,
                is_settled=not waits,
            )
        )
    busy = {d for run in instance.get_runs(RunsFilter(statuses=UNFINISHED)) for d in days_of(run.tags)}
    return Runs(failed, frozenset(busy), lambda run_id: why(instance, run_id))


def _went_well_since(instance: DagsterInstance, job: str, ended: float) -> bool:
    after = dt.datetime.fromtimestamp(ended, tz=dt.UTC)
    chosen = RunsFilter(job_name=job, statuses=[DagsterRunStatus.SUCCESS], updated_after=after)
    return bool(instance.get_run_ids(chosen, limit=1))


def days_of(tags: Mapping[str, str]) -> tuple[str, ...]:
    """The days that a run is to make."""
    one = tags.get(PARTITION)
    first, last = tags.get(RANGE_START, one), tags.get(RANGE_END, one)
    if not first or not last:
        return ()
    return tuple(days_between(dt.date.fromisoformat(first), dt.date.fromisoformat(last)))


def why(instance: DagsterInstance, run_id: str) -> tuple[str, str]:
    """The step that failed first ("" when none did), and the reason."""
    if run_id not in _WHY:
        _WHY[run_id] = _why(instance, run_id)
    return _WHY[run_id]


def _why(instance: DagsterInstance, run_id: str) -> tuple[str, str]:
    steps = instance.get_records_for_run(run_id, of_type=DagsterEventType.STEP_FAILURE, limit=1).records
    if steps and (event := steps[0].event_log_entry.dagster_event) is not None:
        error = event.step_failure_data.error
        while error is not None and error.cause is not None:
            error = error.cause
        named = error.cls_name or "an error" if error is not None else "an error"
        is_ours = named in _OURS or named == "Failure" or named.endswith(("OSError", "PermissionError", "FoundError"))
        # Another library's words may quote what stands in the files; they are in the run's log.
        words = error.message.strip() if error is not None and is_ours else f"{named}; its words are in the run's log"
        return event.step_key or "", re.sub(rf"^[\w.]*{re.escape(named)}: ", "", words)
    runs = instance.get_records_for_run(run_id, of_type=DagsterEventType.RUN_FAILURE, limit=1).records
    message = runs[0].event_log_entry.dagster_event.message if runs and runs[0].event_log_entry.dagster_event else None
    return "", message or "the run ended without saying why"


# ---- The sensor ----------------------------------------------------------------------------------------------------


def build_sensor(config: PipelineConfig) -> SensorDefinition:
    """Looks and sends every half minute; asks for no run."""
    teller = Teller(config)

    @sensor(
        name="alerts",
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=DefaultSensorStatus.RUNNING if config.alerts.channels else DefaultSensorStatus.STOPPED,
        description="Tells the channels of pipeline.yaml what is wrong, once for each cause, and when it is over.",
    )
    def alerts(context: SensorEvaluationContext) -> SkipReason:
        now = dt.datetime.now(config.zone)
        made = teller.make_round(context.instance, now=now, budget_seconds=SENSOR_BUDGET_SECONDS)
        if made is not None and made.failed:
            context.log.warning(made.in_words())
        return SkipReason("alerts: another process is at it" if made is None else made.in_words())

    return alerts
