"""What the reports cost: `python -m benchmarks.reports`. CPU seconds, sizes, memory; each case in a process of its own.

Here: building a typical day, a day at scale (90 days of trend, 200,000 outliers, 5,000 event types), a week, a year and
the page of ten years. The frames are made deterministically, before the clock starts; ``cold`` is the first build of a
process with its imports, ``warm`` the median of five more. Not here: whole runs (``days.py``).
"""

from __future__ import annotations

import importlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

DAY = date(2025, 11, 19)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def day_at_scale() -> object:
    """The typical day with 200,000 outliers, 5,000 types of 64 characters and 90 days before it."""
    import polars as pl

    from data_assets_tests import test_report as days

    small = days.day_of(6_000, trend_days=90)
    outliers = pl.concat([small.outliers.collect()] * (200_000 // small.outliers.collect().height + 1)).head(200_000)
    counts = Counter({f"type_{i:04}_{'x' * 54}": 5_000 - i for i in range(5_000)})
    return replace(small, outliers=outliers.lazy(), event_distribution=days.distribution(counts))


def tables_of(day: object) -> None:
    """What stands before the report in the graph."""
    from data_assets import metrics

    for frame in (metrics.session_metrics(day.events.events, 2), metrics.outliers(day.events.events, 1.5)):
        frame.collect(engine="streaming")
    metrics.summary_statistics(day.events.events)


def case(name: str) -> dict[str, float]:
    """One case, measured in this process."""
    from data_assets_tests import test_report as days

    if name in ("typical", "scale"):
        given = days.day_of(48_000) if name == "typical" else day_at_scale()
    else:
        from data_assets_tests.test_period import weeks_of

        first = DAY - timedelta(days=6 if name == "week" else 364)
        given = weeks_of(first, DAY) if name in ("week", "year") else None
    tables_of(days.day_of(48_000))  # a run has made the day's tables by then, and the engine keeps what that took
    before = peak_mb()
    for module in [m for m in sys.modules if m.startswith(("data_assets.report", "jinja2", "markupsafe"))]:
        del sys.modules[module]
    cpu = time.process_time()
    report = importlib.import_module("data_assets.report")
    imported = time.process_time() - cpu
    index = importlib.import_module("data_assets.report.index")
    if name == "index":
        verdicts = {DAY - timedelta(days=n): "All clear" for n in range(3_652)}
        build = lambda: index.build(verdicts, [], set(), "UTC")  # noqa: E731
    else:
        chosen = report.build if name in ("typical", "scale") else report.build_period
        build = lambda: chosen(given).html  # noqa: E731
    times = []
    for _ in range(6):
        cpu = time.process_time()
        html = build()
        times.append(time.process_time() - cpu)
    return {
        "import_ms": imported * 1e3, "cold_ms": times[0] * 1e3, "warm_ms": statistics.median(times[1:]) * 1e3,
        "size_kb": len(html.encode()) / 1e3, "memory_mb": peak_mb() - before,
    }  # fmt: skip


def rebuild_of_ten_years() -> dict[str, float]:
    """The page of ten years made again after one more day: the reports are looked at, not read."""
    from data_assets import report

    with tempfile.TemporaryDirectory() as folder:
        for n in range(3_652):
            place = Path(folder) / str(DAY - timedelta(days=n))
            place.mkdir()
            (place / "summary.json").write_text(json.dumps({"day": place.name, "verdict": "All clear"}))
        report.rebuild(Path(folder), [], "UTC")
        cpu = time.process_time()
        report.rebuild(Path(folder), [], "UTC")
        return {"rebuild_ms": (time.process_time() - cpu) * 1e3}


def main() -> None:
    if len(sys.argv) > 1:
        found = rebuild_of_ten_years() if sys.argv[1] == "rebuild" else case(sys.argv[1])
        print(json.dumps({k: round(v, 1) for k, v in found.items()}))
        return
    for name in ("typical", "scale", "week", "year", "index", "rebuild"):
        runs = [
            json.loads(
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.reports", name], capture_output=True, text=True, check=True
                ).stdout
            )
            for _ in range(3)
        ]
        print(f"{name:<8}", "  ".join(f"{key} {min(r[key] for r in runs):.0f}" for key in runs[0]))


if __name__ == "__main__":
    main()
