"""What a day costs from its file to all of its tables, beside bare engines that make the same tables by hand.

Here: `python -m benchmarks.pipeline ROWS [--rounds N] [--source csv|parquet] [--only TEXT] [--limit MB] [--write]`.
The day is generated, the same each time. Each case runs in a process of its own, cases interleaved, and the best of
the rounds counts: CPU seconds, wall seconds, peak memory above the imports. Before it is measured each case makes a
day of 1,000 rows, so that nobody pays for what is done once. The tables of all cases are compared. ``--write`` puts
the figures into docs/benchmarks.md. Not here: what the bare engines do (``engines.py``), ingest alone
(``ingest.py``), many days (``days.py``).

chdb and pandas are no dependencies of this project, and chdb brings pandas, which other libraries import where they
find it: both take part where the variable OTHERS_PYTHON names an interpreter that has them; what is missing is said.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import importlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import engines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import polars as pl

    from data_assets.config import PipelineConfig

    Done = Callable[[str], None]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
DAY = "2024-03-01"
CHUNK = 1_000_000
ROWS_OF_A_USER = 100
BARE = "bare Polars"
GRAPH = "data_assets, the whole graph"
REST = "all else"


@dataclass(frozen=True, order=True)
class Measured:
    """One case: CPU and wall seconds, the peak in MB above the imports and in all, and CPU seconds by step."""

    cpu: float
    wall: float
    above: float
    whole: float
    steps: dict[str, float] = field(compare=False)


# ---- The day -----------------------------------------------------------------------------------------------------


def make(path: Path, rows: int, users: int = 0, days: int = 1) -> None:
    """``rows`` events, one day after the other up to DAY; 2 % without an end, 1 % far out, 0.1 % without a user.

    ``users``: how many there are in all days together; 0: one in 100 rows.
    """
    import pyarrow.parquet as pq

    users = users or max(1, rows // ROWS_OF_A_USER)
    if path.suffix == ".parquet":
        chunks = (chunk.to_arrow() for chunk in _chunks(rows, users, days))
        first = next(chunks)
        with pq.ParquetWriter(path, first.schema, compression="zstd") as out:
            out.write_table(first)
            for chunk in chunks:
                out.write_table(chunk)
        return
    with path.open("wb") as text:
        text.write((",".join(engines.NAMES) + "\n").encode())
        for chunk in _chunks(rows, users, days):
            chunk.write_csv(text, include_header=False, quote_style="never", datetime_format=engines.FORMAT)


def _chunks(rows: int, users: int, days: int) -> Iterator[pl.DataFrame]:
    import polars as pl

    n = pl.col("n")
    key = (n * 2_654_435_761) % 4_294_967_296
    first = dt.datetime.fromisoformat(DAY) - dt.timedelta(days=days - 1)
    start = pl.lit(first) + pl.duration(days=n * days // rows, seconds=key % 86_400)
    value = (key // 11 % 100_000) / 100
    for first in range(0, rows, CHUNK):
        yield (
            pl.int_range(first, min(first + CHUNK, rows), eager=True)
            .alias("n")
            .to_frame()
            .lazy()
            .select(
                user_id=pl.when(n % 1_000 != 999).then(key // 5 % users),
                session_start=start,
                session_end=pl.when(n % 50 != 7).then(start + pl.duration(seconds=key // 3 % 7_200)),
                event_type=pl.concat_str(pl.lit("type_"), (key // 7 % 12).cast(pl.String)),
                value=pl.when(n % 100 == 42).then(value * 50).otherwise(value),
            )
            .collect()
        )


# ---- The project -------------------------------------------------------------------------------------------------


def _configured(source: Path, folder: Path) -> PipelineConfig:
    """A project in ``folder`` with the file as its raw data."""
    from data_assets.config import PipelineConfig

    raw = folder / "data" / "raw"
    raw.mkdir(parents=True)
    (raw / f"{DAY}{source.suffix}").hardlink_to(source)
    return PipelineConfig.model_validate(
        {
            "data_dir": folder / "data",
            "start_date": "2024-01-01",
            "timezone": "UTC",
            "source": {"settle_seconds": 0, "required": ["user_id", "session_start", "event_type", "value"]},
        }
    )


def dagster_graph(source: Path, folder: Path, _done: Done) -> None:
    """The project as it runs: ledger, ingest, metrics, checks, warehouse, report, event log on disk."""
    from dagster import DagsterInstance

    from data_assets.cli import QUIET
    from data_assets.definitions import build_definitions
    from data_assets.jobs import ALL_DAYS, range_tags

    home = folder.parent / "home"  # one history for the day of 1,000 rows and the measured one
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text(
        (ROOT / "dagster.yaml").read_text().replace(": .dagster", f": {home}"), encoding="utf-8"
    )
    job = build_definitions(_configured(source, folder)).resolve_job_def(ALL_DAYS)
    with DagsterInstance.from_config(str(home)) as instance:
        if not job.execute_in_process(instance=instance, run_config=QUIET, tags=range_tags(DAY, DAY)).success:
            raise SystemExit(f"{source.name}: the run failed")


def steps_of_graph(lake: Path) -> dict[str, float]:
    """CPU seconds of each step, from the history of the run."""
    from data_assets import runs

    steps: dict[str, float] = {}
    for stage, cpu in runs.read(lake).select("stage", "cpu_seconds").iter_rows():
        step = "ingest" if stage in {"landed_files", "raw_events"} else stage.replace("_", " ")
        step = step if step in engines.STEPS else REST
        steps[step] = steps.get(step, 0.0) + cpu
    return steps


def functions_alone(source: Path, folder: Path, done: Done) -> None:
    """The same functions and stores, without Dagster, checks and report."""
    from data_assets import landing, metrics, staging
    from data_assets.contracts import tables
    from data_assets.storage import Lake, Warehouse, scratch_folder

    config = _configured(source, folder)
    lake, known = Lake(config.lake_dir), tables()
    warehouse = Warehouse(config.warehouse_path, lake)
    ledger = landing.refresh(config, lake, now_ns=time.time_ns(), is_made_next=lambda _: True).ledger
    with scratch_folder(config.scratch_dir) as scratch:
        staged, refused = staging.stage(config, ledger, [DAY], scratch)
        if refused:
            raise SystemExit(str(refused))
        day = staged[DAY]
        lake.write(known["raw_events"], DAY, day.valid, day.notes, day.ready)
        lake.write(known["quarantined_events"], DAY, day.quarantined, {})
    done("ingest")
    events = lake.scan(known["raw_events"], [DAY])
    figures = metrics.DayFigures(events, "lazy", config.scratch_dir)
    users = metrics.session_metrics(events, config.precision, figures).collect()
    done("session metrics")
    lake.write(known["outliers"], DAY, metrics.outliers(events, config.outliers.factor, figures), {})
    done("outliers")
    types = metrics.event_distribution(events, figures).collect()
    done("event distribution")
    summary = metrics.summary_statistics(events, figures).collect()
    done("summary statistics")
    kpis = metrics.daily_kpis(
        events,
        users.lazy(),
        types.lazy(),
        outlier_count=lake.current("outliers", DAY).rows,  # type: ignore[union-attr]  # written above
        counts=metrics.RowCounts(**staging.sums(day.by_file)),
        precision=config.precision,
        figures=figures,
    )
    made = {"session_metrics": users, "event_distribution": types, "summary_statistics": summary, "daily_kpis": kpis}
    for name, frame in made.items():
        warehouse.replace(known[name], {DAY: frame.lazy()})
    done(REST)


OURS = ("data_assets.definitions", "data_assets.assets", "data_assets.cli", "pyarrow.dataset")
CASES: dict[str, tuple[Callable[[Path, Path, Done], None], tuple[str, ...]]] = {
    GRAPH: (dagster_graph, OURS),
    "data_assets, its functions alone": (functions_alone, OURS),
    BARE: (engines.bare_polars, ("polars",)),
    "bare DuckDB": (engines.bare_duckdb, ("duckdb",)),
    "bare ClickHouse (chdb)": (engines.bare_chdb, ("chdb",)),
    "pandas, as tutorials write it": (engines.tutorial_pandas, ("pandas", "pyarrow.parquet")),
}
OTHERS = tuple(CASES)[-2:]


# ---- One case in a process ---------------------------------------------------------------------------------------


def _settle() -> None:
    """As the command line and the code location do before they load Polars."""
    from data_assets.config import PipelineConfig
    from data_assets.memory import settle_allocator

    settle_allocator(PipelineConfig().memory)


def child(case: str, source: Path, small: Path, folder: Path) -> None:
    """One case in this process; prints what is Measured, as JSON."""
    run, needed = CASES[case]
    if needed is OURS:
        _settle()
    for name in needed:
        importlib.import_module(name)
    imported = memory_mb("VmRSS")
    (folder / "warm").mkdir()
    (folder / "out").mkdir()
    run(small, folder / "warm", lambda _: None)
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    steps: dict[str, float] = {}
    started, before = time.monotonic(), time.process_time()
    marked = before

    def done(step: str) -> None:
        nonlocal marked
        now = time.process_time()
        steps[step] = steps.get(step, 0.0) + now - marked
        marked = now

    run(source, folder / "out", done)
    cpu, wall = time.process_time() - before, time.monotonic() - started
    peak = memory_mb("VmHWM")
    if case == GRAPH:
        steps = steps_of_graph(folder / "out" / "data" / "lake")
    steps[REST] = steps.get(REST, 0.0) + cpu - sum(steps.values())
    told = Measured(cpu, wall, peak - imported, peak, steps)
    sys.stdout.write(f"\n{json.dumps(asdict(told))}\n")


def memory_mb(what: str) -> float:
    """VmRSS (now) or VmHWM (the peak) of this process."""
    return int(Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0]) / 1024


def _python(case: str) -> str | None:
    """The interpreter for a case; None when what it needs is not there."""
    return os.environ.get("OTHERS_PYTHON") if case in OTHERS else sys.executable


def key_sums(folder: Path, *, ours: bool) -> dict[str, float]:
    """Sums over every table, by which two makers of the tables are compared."""
    import polars as pl

    from data_assets.contracts import tables
    from data_assets.storage import Lake, Warehouse

    if ours:
        lake = Lake(folder / "data" / "lake")
        warehouse = Warehouse(folder / "data" / "warehouse.duckdb", lake)
    read: dict[str, pl.LazyFrame] = {}
    for name in ("raw_events", "quarantined_events", "session_metrics", "outliers", "event_distribution",
                 "summary_statistics"):  # fmt: skip
        if not ours:
            read[name] = pl.scan_parquet(folder / f"{name.removesuffix('_events') if 'quar' in name else name}.parquet")
        elif tables()[name].store == "lake":
            read[name] = lake.scan(tables()[name], [DAY])
        else:
            read[name] = warehouse.query_days(tables()[name], [DAY]).lazy()
    users = ("total_sessions", "avg_duration", "max_duration", "min_duration", "total_value", "mean_value")
    figures = ("count", "null_count", "mean", "std", "p25", "p50", "p75", "n_unique")
    sums = [
        read["raw_events"].select(
            pl.len().alias("valid"),
            pl.sum("value"),
            pl.sum("user_id"),
            pl.col("source_file").n_unique(),
            pl.sum("source_line"),
            (pl.col("source_line") * pl.col("user_id") % 1_000_003).sum().alias("user_id by source_line"),
        ),
        read["quarantined_events"].select(
            pl.len().alias("quarantined"), pl.sum("source_line").alias("quarantined source_line")
        ),
        read["session_metrics"].select(pl.len().alias("users"), pl.sum(*users, "anomaly_count")),
        read["outliers"].select(pl.len().alias("outliers"), pl.sum("outlier_score")),
        read["event_distribution"].select(pl.len().alias("types"), pl.sum("proportion"), pl.col("count").max()),
        *(
            read["summary_statistics"]
            .filter(pl.col("column_name") == name)
            .select(pl.col(c).cast(pl.Float64).alias(f"{name} {c}") for c in figures)
            for name in ("value", "duration")
        ),
        *(
            read["summary_statistics"]
            .filter(pl.col("column_name") == name)
            .select(pl.col(c).cast(pl.Float64).alias(f"{name} {c}") for c in ("count", "null_count", "n_unique"))
            for name in engines.LABELS
        ),
    ]
    found: dict[str, float] = {}
    for part in pl.collect_all(sums, engine="streaming"):
        found |= {name: float(x) for name, x in part.to_dicts()[0].items()}
    return found


def differences(these: dict[str, float], those: dict[str, float]) -> list[str]:
    """Sums of both that differ by more than rounding: engines round halves differently."""
    return [
        f"{name}: {these[name]} against {those[name]}"
        for name in those
        if name in these and not math.isclose(these[name], those[name], rel_tol=1e-6)
    ]


@contextlib.contextmanager
def limited(megabytes: int | None) -> Iterator[list[str]]:
    """Words before a command that hold it and its children to so much memory; the kernel kills what takes more.

    Linux, with the right to make a control group; page cache counts too, but gives way.
    """
    if megabytes is None:
        yield []
        return
    first = Path("/sys/fs/cgroup/memory")
    older = first.is_dir()
    group = (first if older else first.parent) / f"benchmark-{os.getpid()}"
    group.mkdir()
    try:
        limit = group / ("memory.limit_in_bytes" if older else "memory.max")
        limit.write_text(str(megabytes * 1_000_000), encoding="ascii")
        yield ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]
    finally:
        group.rmdir()


def measured(rows: int, kind: str, rounds: int, wanted: str, limit: int | None) -> dict[str, Measured]:
    """The best round of each case, by CPU."""
    best: dict[str, Measured] = {}
    tables: dict[str, dict[str, float]] = {}
    cases = {case: _python(case) for case in CASES if wanted in case}
    for case in [case for case, python in cases.items() if python is None]:
        del cases[case]
        sys.stdout.write(f"{case}: not installed, left out\n")
    with tempfile.TemporaryDirectory() as place, limited(limit) as words:
        source, small = Path(place) / f"day.{kind}", Path(place) / f"small.{kind}"
        make(source, rows)
        make(small, 1_000)
        os.sync()  # else the disk is still busy with what was made while the first case writes
        for number in range(rounds):
            for case, python in cases.items():
                with tempfile.TemporaryDirectory(dir=place) as folder:
                    command = [
                        *words,
                        str(python),
                        "-m",
                        "benchmarks.pipeline",
                        "--child",
                        case,
                        str(source),
                        str(small),
                        folder,
                    ]
                    done = subprocess.run(
                        command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=_environment(case)
                    )
                    figures = Measured(**json.loads(done.stdout.splitlines()[-1]))
                    best[case] = min(best.get(case, figures), figures)
                    if number == 0:
                        tables[case] = key_sums(Path(folder) / "out", ours=case.startswith("data_assets"))
    first = next(iter(tables))
    wrong = [f"{c} differs from {first}: {x}" for c in tables for x in differences(tables[c], tables[first])]
    if wrong:
        raise SystemExit("\n".join(wrong))
    return best


def _environment(case: str) -> dict[str, str]:
    """Another interpreter takes nothing of this one's."""
    taken = ("PYTHONPATH", "PYTHONHOME") if case in OTHERS else ()
    return {name: value for name, value in os.environ.items() if name not in taken}


# ---- The page ----------------------------------------------------------------------------------------------------


def in_words(rows: int, best: dict[str, Measured]) -> list[str]:
    """The figures as two Markdown tables."""
    base = best.get(BARE)
    lines = [
        "| what | CPU | wall | peak above imports | whole process | rows/CPU-s | to bare Polars |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, found in best.items():
        figures = (
            f"{found.cpu:.2f} s",
            f"{found.wall:.2f} s",
            f"{found.above:,.0f} MB",
            f"{found.whole:,.0f} MB",
            f"{rows / found.cpu:,.0f}",
            f"{found.cpu / base.cpu:.2f}" if base else "",
        )
        lines.append(f"| {' | '.join((case, *figures))} |")
    lines += [
        "",
        f"| CPU seconds | {' | '.join((*engines.STEPS, REST))} |",
        f"|---{'|---' * (len(engines.STEPS) + 1)}|",
    ]
    for case, found in best.items():
        steps = (f"{found.steps.get(step, 0.0):.2f}" for step in (*engines.STEPS, REST))
        lines.append(f"| {' | '.join((case, *steps))} |")
    return lines


def machine() -> str:
    """What the figures were taken on, in a sentence."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / (1 << 20)
    libraries = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("polars", "duckdb", "dagster", "pyarrow"))
    return (
        f"{os.cpu_count()} cores ({model[1] if model else platform.machine()}), {memory:.0f} GiB, "
        f"Python {platform.python_version()}, {libraries}; load of the machine {os.getloadavg()[1]:.1f}"
    )


def taken(command: str) -> str:
    """When, on what and by which command figures were taken."""
    return f"{dt.datetime.now(dt.UTC):%d %B %Y}, {machine()}. `{command}`"


INTRODUCTION = """# Benchmarks

From one file of a day to all of its tables, beside bare engines that make the same tables by hand-written code, without
ledger, checks, reasons of refused rows, atomic publishing, event log and report; Polars with this project's design.
Each row has its file and line in all of them (before 23 November 2026 in Polars alone). Each case in a process of its
own, warmed up with 1,000 rows, cases interleaved, the best round by CPU; the tables of all cases were compared. CPU
seconds are the figures to trust. The engines' code: `benchmarks/engines.py`. What single steps cost:
[figures.md](figures.md).

`whole process` is its largest resident memory, the pages of the libraries' files included. A limit is enforced by the
kernel, which ends what exceeds it; it counts what the process allocates and the files that it is the first to read. Its
MB are of 1,000,000 bytes, all others of 1,048,576: 521 MB are 497 of those.

By step: what several tables rest on counts for the first that asks for it. In ours `ingest` is the ledger too, with its
hash and its count of records, and `all else` is KPIs, the report and what is around the steps.

The machine is a virtual one that gives free memory back to its host: to touch a gigabyte took 0.5 CPU seconds where it
had been in use just before, and 3.3 where not. So before the cases of 10 million rows and more that are of 22 November
2026 a file of at least 20 GB was read by hand to fill the page cache. Its processors run at half their speed at times;
figures of such an hour compare with those of the same table only.
"""


def write_section(title: str, lines: list[str], page: Path = PAGE) -> None:
    """Put a section into the page, in place of an earlier one with the same title."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    _, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    kept = {s.partition("\n")[0]: s.partition("\n")[2].strip("\n") for s in sections}
    kept[title] = "\n".join(lines)
    body = "".join(f"## {name}\n\n{content.strip()}\n\n" for name, content in kept.items())
    page.write_text(f"{INTRODUCTION}\n{body.rstrip()}\n", encoding="utf-8")


def main() -> None:
    """One size and format."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline")
    parser.add_argument("rows", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--source", choices=("csv", "parquet"), default="csv")
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases whose name holds it")
    parser.add_argument("--limit", type=int, metavar="MB", help="memory of each case, enforced by the kernel")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    asked = parser.parse_args()
    best = measured(asked.rows, asked.source, asked.rounds, asked.only, asked.limit)
    table = in_words(asked.rows, best)
    sys.stdout.write("\n".join(table) + "\n")
    if asked.write:
        only = f" --only '{asked.only}'" if asked.only else ""
        only += f" --limit {asked.limit}" if asked.limit else ""
        command = f"python -m benchmarks.pipeline {asked.rows} --source {asked.source} --rounds {asked.rounds}{only}"
        form = {"csv": "CSV", "parquet": "Parquet"}[asked.source]
        within = f" within {asked.limit} MB" if asked.limit else ""
        write_section(f"{asked.rows:,} rows of {form}{within}", [taken(command), "", *table])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, *paths = sys.argv[2:]
        child(name, *map(Path, paths))
    else:
        main()
