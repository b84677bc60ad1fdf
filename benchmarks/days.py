"""What days cost: a year of the demo's flights, and a range against single runs.

Here: `python -m benchmarks.days [CASE ...]`, run from the project's folder after `make demo` made the environment. Each
case runs in processes of its own, in a fresh folder, and prints wall seconds, CPU seconds (user and system, with
children) and peak memory. Not here: bare engines (``pipeline.py``), small days beside Dagster's own share
(``scale.py``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
CLI = (sys.executable, "-m", "data_assets.cli")


@contextlib.contextmanager
def project() -> Iterator[Path]:
    """A folder with the project's settings and the flights in it."""
    from data_assets.config import load_config
    from data_assets.demo import land

    with tempfile.TemporaryDirectory() as folder:
        for name in ("pipeline.yaml", "dagster.yaml"):
            shutil.copy(ROOT / name, folder)
        land(load_config(Path(folder) / "pipeline.yaml"))
        time.sleep(2.5)  # the settle window
        yield Path(folder)


def measure(command: tuple[str, ...], folder: Path) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MB of one command."""
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def show(case: str, wall: float, cpu: float, memory: float) -> None:
    """One line of the result."""
    sys.stdout.write(f"{case:58s} {wall:8.1f} s wall {cpu:8.1f} CPU-s {memory:7.0f} MB\n")
    sys.stdout.flush()


def year() -> None:
    """365 days, files to reports, in one run."""
    with project() as folder:
        show("365 days, files to reports, one run", *measure((*CLI, "run"), folder))


def month() -> None:
    """The first 30 days in one run, then each in a run of its own."""
    with project() as folder:
        show("30 days in one run", *measure((*CLI, "run", "--from", "2013-01-01", "--to", "2013-01-30"), folder))
    with project() as folder:
        show("1 day in one run", *measure((*CLI, "run", "--from", "2013-01-02"), folder))
    with project() as folder:
        runs = [measure((*CLI, "run", "--from", f"2013-01-{day:02}"), folder) for day in range(1, 31)]
        show("30 days in 30 runs", sum(r[0] for r in runs), sum(r[1] for r in runs), max(r[2] for r in runs))


def imports() -> None:
    """What loading the code location costs."""
    code = "from data_assets.definitions import defs; defs().get_repository_def()"
    best = min((measure((sys.executable, "-c", code), ROOT) for _ in range(3)), key=lambda m: m[1])
    show("import data_assets.definitions and build them (best of 3)", *best)


TICK = """
import datetime as dt
import time
from pathlib import Path
import polars as pl
from data_assets import drift, landing
from data_assets.config import PipelineConfig, SourceConfig
from data_assets.contracts import LANDED_FILES
from data_assets.storage import DayLog, Lake
config = PipelineConfig(data_dir=Path("many"), source=SourceConfig(settle_seconds=0))
lake, log = Lake(config.lake_dir), DayLog(config.lake_dir)
config.raw_dir.mkdir(parents=True)
for n in range(100_000):
    folder = config.raw_dir / f"{n % 100:02}"
    folder.mkdir(exist_ok=True)
    row = f"{n},2024-03-{n % 28 + 1:02},view"
    (folder / f"{n:06}.csv").write_text(f"user_id,session_start,event_type\\n{row}\\n")
# The ledger as a first look would leave it: reading every file is not what is measured here.
rows = [
    {"path": f.path, "size": f.size, "mtime_ns": f.mtime_ns, "content_hash": f"{number:032x}", "format": "csv",
     "encoding": "utf-8", "home_day": dt.date(2024, 3, number % 28 + 1), "day": dt.date(2024, 3, number % 28 + 1),
     "rows": 1, "mapping": config.mapping_fingerprint(), "error": None,
     "schema": None, "drift": None, "drift_error": None}
    for number, f in enumerate(landing.list_files(config, time.time_ns()).files)
]
ledger = pl.DataFrame(rows, schema=LANDED_FILES.schema).sort("path", "day")
lake.write(LANDED_FILES, None, ledger.lazy(), {"drift": drift.rules(config)})
for day, mark in landing.fingerprints(ledger).items():
    log.finish(day, mark)
for _ in range(3):
    started = time.process_time()
    looked = landing.refresh(config, lake, now_ns=time.time_ns())
    stale = landing.stale_days(looked.ledger, log, first=config.start_date, last=dt.date(2025, 1, 1))
    print(f"a look at {len(looked.listing.files):,} unchanged files: {time.process_time() - started:.2f} CPU-s, "
          f"{len(looked.read)} read, {len(stale)} days stale")
"""


def ticks() -> None:
    """What a sensor tick does, over 100,000 files that did not change."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run((sys.executable, "-c", TICK), cwd=folder, check=True)


CASES: dict[str, Callable[[], None]] = {f.__name__: f for f in (imports, year, month, ticks)}

if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        CASES[name]()
