"""How well `plan` and the choice of a way to work on a day foretell memory and time.

Here: `python -m benchmarks.memory [ROWS ...] [--write]`: a day of so many rows, CSV and Parquet, of few and of many
users. What `data-assets plan` says of it; what `data-assets run` then takes, a process of its own; and what holding the
day takes (``eager``, whatever would be chosen) above the imports, again in a process of its own, beside what
``data_assets/memory.py`` foretells. The constants of that module and of ``planning.py`` are checked by this. Not here:
speed beside other engines (``pipeline.py``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import pipeline, scale
from benchmarks.days import CLI, measure

ROWS = (100_000, 1_000_000, 3_000_000, 10_000_000)
FEW_USERS = 1_000
ROWS_OF_ONE_OF_MANY = 10
NOTE = (
    "The times of these days are whole seconds. What holding a day takes at most is foretold: where no two durations",
    "are alike it takes that ([decision 0008](decisions/0008-memory.md)).",
)


@dataclass(frozen=True)
class Foretold:
    """One day: what was foretold and what it took; MB, CPU seconds."""

    rows: int
    users: int
    form: str
    mode: str
    plan_mb: float
    run_mb: float
    plan_cpu: float
    run_cpu: float
    hold_mb: float
    held_mb: float


def foretold(rows: int, users: int, form: str) -> Foretold:
    """Plan, run and hold one day."""
    with scale.project("one_file", rows, users, 1, form=form) as folder:
        said = subprocess.run((*CLI, "plan", "--json"), cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
        plan: dict[str, Any] = json.loads(said.stdout)["files"][0]
        decision = plan["decisions"][pipeline.DAY]
        _, cpu, peak = measure((*CLI, "run"), folder)
        command = (sys.executable, "-m", "benchmarks.memory", "--child", str(folder))
        done = subprocess.run(command, cwd=pipeline.ROOT, check=True, stdout=subprocess.PIPE, text=True)
    held, needed = float(done.stdout.splitlines()[-1]), decision["needed"] / 1e6
    return Foretold(
        rows, users, form, decision["mode"], plan["memory_mb"], peak, plan["seconds"], cpu, needed, held
    )  # fmt: skip


def hold(folder: Path) -> None:
    """Hold the day that lies in the folder's lake, in this process; prints the peak MB above the imports."""
    from data_assets import metrics
    from data_assets.contracts import tables
    from data_assets.storage import Lake

    events = Lake(folder / "data" / "lake").scan(tables()["raw_events"], [pipeline.DAY])
    small = metrics.DayFigures(events.head(1_000), "eager")
    metrics.session_metrics(small.events, 2, small).collect()
    imported = pipeline.memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    figures = metrics.DayFigures(events, "eager")
    metrics.session_metrics(events, 2, figures).collect()
    metrics.outliers(events, 1.5, figures).collect(engine="streaming")
    metrics.summary_statistics(events, figures).collect()
    sys.stdout.write(f"\n{pipeline.memory_mb('VmHWM') - imported}\n")


def in_words(found: list[Foretold]) -> list[str]:
    """The figures as a Markdown table."""
    lines = [
        "| rows | users | file | `plan` | the run | `plan` | the run | held: foretold | held: taken | decision |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for f in found:
        cells = (
            f"{f.rows:,}", f"{f.users:,}", f.form, f"{f.plan_mb:,.0f} MB", f"{f.run_mb:,.0f} MB",
            f"{f.plan_cpu:,.1f} CPU-s", f"{f.run_cpu:,.1f} CPU-s", f"{f.hold_mb:,.0f} MB", f"{f.held_mb:,.0f} MB",
            f.mode,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """The sizes that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    parser.add_argument("rows", nargs="*", type=int, default=ROWS)
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    asked = parser.parse_args()
    found = []
    for rows in asked.rows:
        for users in (FEW_USERS, rows // ROWS_OF_ONE_OF_MANY):
            for form in ("csv", "parquet"):
                found.append(foretold(rows, users, form))
                sys.stderr.write(f"{found[-1]}\n")
    table = in_words(found)
    sys.stdout.write("\n".join(table) + "\n")
    if asked.write:
        command = "python -m benchmarks.memory " + " ".join(map(str, asked.rows))
        pipeline.write_section(
            "How well memory and time are foretold", [pipeline.taken(command), "", *NOTE, "", *table]
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        hold(Path(sys.argv[2]))
    else:
        main()
