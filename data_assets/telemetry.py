"""What a stage of a run takes: time, processor time, memory, rows, bytes.

Here: measuring, and ``note``, by which code that a stage calls adds a figure without being handed anything. Not here:
where the figures are kept (``runs.py``) and how lines are written (``logs.py``). No Dagster: ``assets.py`` says which
run it is.

The peak of a stage is sampled. The system's own high-water mark is exact and used where the stage raised it, but it
must not be reset between stages (/proc/self/clear_refs): that resets what the system tells others of the process
(ru_maxrss) too, and /usr/bin/time would report a run at less than it took (docs/decisions/0006).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import math
import os
import threading
import time
import traceback
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from data_assets import logs, runs
from data_assets.contracts import PIPELINE_RUNS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from data_assets.config import PipelineConfig

SAMPLE_SECONDS = 0.05  # a fifth of a percent of a processor
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20
REFUSED, FAILED, DONE = "refused", "failed", "done"
_FIGURES = frozenset(PIPELINE_RUNS.names)
_current: ContextVar[Stage | None] = ContextVar("telemetry_stage", default=None)


class PeakMemory:
    """The largest resident memory of this process inside the block: ``mb``, known at its end.

    Where there is no /proc, it is the largest of the process so far.
    """

    def __init__(self) -> None:
        self.mb = 0.0
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._mark = _high_water_mb()
        self.mb = _resident_mb()
        self._sampler.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.mb = max(self.mb, _resident_mb())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sampler.join()
        mark = _high_water_mb()
        self.mb = mark if mark > self._mark else max(self.mb, _resident_mb())


def _resident_mb() -> float:
    try:
        descriptor = os.open("/proc/self/statm", os.O_RDONLY)
    except FileNotFoundError:
        return _high_water_mb()
    try:
        return int(os.read(descriptor, 200).split()[1]) * _PAGE_MB
    finally:
        os.close(descriptor)


def _high_water_mb() -> float:
    """Since the process began; ru_maxrss may be that of the process that started this one."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        import resource
        import sys

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


@dataclass(frozen=True)
class Run:
    """Which run a stage belongs to.

    Attributes:
        started_by: who asked for it, in words, as in the run's tags.
        days: the days (ISO) that it is to make, ascending.
    """

    run_id: str
    started_by: str
    days: tuple[str, ...] = ()


@dataclass
class Stage:
    """A stage that is being measured.

    Attributes:
        figures: what was noted; names that pipeline_runs does not have go to the log alone.
        causes: the kinds of errors and checks for which days were refused, with their days.
        seconds: of each day and file that was timed.
    """

    name: str
    run: Run
    figures: dict[str, Any] = field(default_factory=dict)
    causes: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def note(self, **figures: object) -> None:
        """Set figures; a later value takes the place of an earlier one, None changes nothing."""
        self.figures |= {name: value for name, value in figures.items() if value is not None}

    def add(self, **figures: float) -> None:
        """Add to figures."""
        for name, value in figures.items():
            self.figures[name] = self.figures.get(name, 0) + value


def note(**figures: object) -> None:
    """Set figures of the stage that runs, if any: columns of pipeline_runs, or others for the log alone.

    Say ``decision`` and ``predicted_mb`` for how its days fit the memory. Never a value out of a file.
    """
    stage = _current.get()
    if stage is not None:
        stage.note(**figures)


def add(**figures: float) -> None:
    """Add to figures of the stage that runs, if any."""
    stage = _current.get()
    if stage is not None:
        stage.add(**figures)


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Time a day or a file of the stage that runs, for its line in the log; a second time adds to the first."""
    stage, started = _current.get(), time.monotonic()
    try:
        yield
    finally:
        if stage is not None:
            stage.seconds[what] = stage.seconds.get(what, 0.0) + time.monotonic() - started


def seconds_of(what: str) -> float | None:
    """How long a day or file took so far; None if nobody timed it."""
    stage = _current.get()
    return stage.seconds.get(what) if stage is not None else None


def wrote(table: str, day: str, rows: int | None = None, size: int | None = None) -> None:
    """A day of a table was written: a line in the log, and rows and bytes of the stage that runs."""
    stage = _current.get()
    if stage is None:
        return
    if rows is not None and table == stage.name:
        stage.add(rows_out=rows)
    if size is not None:
        stage.add(bytes_written=size)
    seconds = stage.seconds.get(day) if table == stage.name else None
    logs.write(logging.INFO, "day written", day=day, table=table, rows=rows, bytes=size, seconds=seconds)


def refused(day: str, cause: str, **figures: object) -> None:
    """A day was refused, for the check or the kind of error ``cause``: an error in the log."""
    stage = _current.get()
    if stage is None:
        return
    stage.causes.setdefault(cause, []).append(day)
    logs.write(logging.ERROR, "day refused", day=day, cause=cause, **figures)


@contextlib.contextmanager
def blamed() -> Iterator[None]:
    """Note the kind of an error that breaks the stage from outside its own code, where it is stored."""
    try:
        yield
    except BaseException as problem:
        note(error_kind=type(problem).__name__)
        raise


@contextlib.contextmanager
def stage(name: str, config: PipelineConfig, run: Run) -> Iterator[Stage]:
    """Measure the block as a stage of the run; at its end, however it ends, a row of pipeline_runs and a line."""
    import structlog

    logs.start(config)
    this, outer = Stage(name, run), _current.get()
    _current.set(this)
    started_at, started, cpu = dt.datetime.now(dt.UTC), time.monotonic(), time.process_time()
    memory, problem = PeakMemory(), None
    with structlog.contextvars.bound_contextvars(run_id=run.run_id, asset=name):
        try:
            with memory:
                yield this
        except BaseException as error:
            problem = error
            raise
        finally:
            _current.set(outer)
            row = _row(this, problem) | {
                "started_at": started_at.replace(tzinfo=None),
                "seconds": round(time.monotonic() - started, 3),
                "cpu_seconds": round(time.process_time() - cpu, 3),
                "peak_mb": round(memory.mb, 1),
            }
            _report(this, row, problem)
            try:
                runs.append(config.lake_dir, row)
            except OSError as error:  # the run does not fail for want of its history
                logs.tell(logging.WARNING, "pipeline_runs not written", why=error.strerror)


def _row(this: Stage, problem: BaseException | None) -> dict[str, Any]:
    refused_days = {day for days in this.causes.values() for day in days}
    status = DONE
    if problem is not None:
        status = REFUSED if this.run.days and refused_days >= set(this.run.days) else FAILED
    kind = max(this.causes, key=lambda cause: len(this.causes[cause]), default=None)
    return dict.fromkeys(PIPELINE_RUNS.names) | {
        "run_id": this.run.run_id,
        "started_by": this.run.started_by,
        "stage": this.name,
        "first_day": dt.date.fromisoformat(this.run.days[0]) if this.run.days else None,
        "last_day": dt.date.fromisoformat(this.run.days[-1]) if this.run.days else None,
        "days": len(this.run.days),
        "days_refused": len(refused_days),
        "status": status,
        "error_kind": kind if status != FAILED else this.figures.get("error_kind", type(problem).__name__),
        **{name: _finite(value) for name, value in this.figures.items() if name in _FIGURES - {"error_kind"}},
    }


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _report(this: Stage, row: dict[str, Any], problem: BaseException | None) -> None:
    for cause, days in this.causes.items():
        logs.tell(logging.ERROR, "days refused", cause=cause, days=len(days), first_day=days[0], last_day=days[-1])
    extra = {name: value for name, value in this.figures.items() if name not in row}
    known = {"run_id", "stage", "started_at"}
    figures = {name: value for name, value in row.items() if name not in known} | extra
    if row["status"] == FAILED and problem is not None:
        logs.tell(logging.ERROR, "stage failed", **figures, where=_where(problem))
    else:
        logs.tell(logging.INFO, "stage done", **figures)


def _where(problem: BaseException) -> str | None:
    """The last line of ours that the error came through. Its text is not for logs: it may quote data."""
    ours = Path(__file__).parent
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if Path(f.filename).is_relative_to(ours)]
    return f"{Path(frames[-1].filename).relative_to(ours)}:{frames[-1].lineno}" if frames else None
