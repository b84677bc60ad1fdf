"""The cases at the edges: many small days, many days in a file, many files, odd days, and how cost grows.

Here: `python -m benchmarks.scale [CASE ...] [--rounds N] [--write]`. Each project is made in a folder of its own, the
same each time, and what is measured are the project's own commands, each a process: CPU seconds (user and system, with
children), wall seconds, peak memory of the whole process. CPU seconds are the figures to trust; of several rounds the
best counts. ``--write`` puts the tables into docs/benchmarks.md. Not here: one day beside bare engines
(``pipeline.py``), the demo's year (``days.py``), how well memory is foretold (``memory.py``).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import pipeline
from benchmarks.days import CLI, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


SETTINGS = """data_dir: data
start_date: 2021-01-01
timezone: UTC
source: {{settle_seconds: 0, required: [user_id, session_start, event_type, value]}}
runs: {{max_days: {max_days}}}
"""
ODD_SETTINGS = """data_dir: data
start_date: 2021-01-01
timezone: UTC
memory: {{limit: 521MB}}
quality: {{max_quarantine_rate: 1}}
source: {{settle_seconds: 0{source}}}
cleaning: {{{cleaning}}}
"""
ODD_SOURCE = {
    "users": ", types: {user_id: string}",
    "twice": ", deduplicate: exact",
    "columns": ", extra_columns: keep",
}
ODD_CLEANING = {"gaps": "missing_value: previous"}
HEADER = "user_id,session_start,session_end,event_type,value\n"
SMALL_DAYS, SMALL_ROWS = 365, 20
FIRST = dt.date(2022, 1, 1)
LAST = FIRST + dt.timedelta(days=SMALL_DAYS - 1)
FILES = 100_000  # under the sensor
TICKS = 3  # warm ones
MINUTE = "Dagster gives it 60 s"


@dataclass(frozen=True)
class Row:
    """A line of a table: CPU seconds, wall seconds, peak MB of the process, and what else there is to say."""

    what: str
    cpu: float
    wall: float
    peak: float
    said: str = ""


# ---- Projects ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def project(make: str, *sizes: int | str, max_days: int = 31, form: str = "csv") -> Iterator[Path]:
    """A folder with settings, and the raw files that one of MAKERS makes in a process of its own.

    A child's peak memory begins at that of the process that starts it, so this one stays small.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(pipeline.ROOT / "dagster.yaml", folder)
        (folder / "pipeline.yaml").write_text(SETTINGS.format(max_days=max_days), encoding="utf-8")
        (folder / "data" / "raw").mkdir(parents=True)
        of_form = [form] if form != "csv" else []
        subprocess.run((*_child(make, folder / "data" / "raw", *sizes), *of_form), check=True, cwd=pipeline.ROOT)
        yield folder


def _child(what: str, folder: Path, *more: int | str) -> tuple[str, ...]:
    return (sys.executable, "-m", "benchmarks.scale", "--child", what, str(folder), *map(str, more))


def small_days(raw: Path, days: int, rows: int) -> None:
    """A file a day."""
    for number in range(days):
        day = FIRST + dt.timedelta(days=number)
        (raw / f"{day}.csv").write_text(HEADER + _lines(number * rows, rows, day), encoding="utf-8")


def small_files(raw: Path, files: int, rows: int, days: int) -> None:
    """Many files; not more than 1,000 in a folder."""
    for number in range(files):
        folder = raw / f"{number // 1_000:03}"
        folder.mkdir(exist_ok=True)
        day = dt.date(2024, 3, 1) + dt.timedelta(days=number % days)
        (folder / f"{number:06}.csv").write_text(HEADER + _lines(number * rows, rows, day), encoding="utf-8")


def one_file(raw: Path, rows: int, users: int, days: int, form: str = "csv") -> None:
    """One file of so many days."""
    pipeline.make(raw / f"events.{form}", rows, users, days)


def _lines(first: int, rows: int, day: dt.date) -> str:
    lines = []
    for n in range(first, first + rows):
        start = dt.datetime.combine(day, dt.time()) + dt.timedelta(seconds=n * 2_654_435_761 % 79_200)
        end = "" if n % 50 == 7 else f"{start + dt.timedelta(seconds=n * 40_503 % 7_200)}"
        lines.append(f"{n % 7},{start},{end},type_{n % 5},{n * 7_919 % 10_000 / 100}\n")
    return "".join(lines)


def _command(what: str, folder: Path, *arguments: str, said: str = "") -> Row:
    wall, cpu, peak = measure((*CLI, *arguments), folder)
    sys.stderr.write(f"{what}: {cpu:.1f} CPU-s, {wall:.1f} s, {peak:.0f} MB\n")
    return Row(what, cpu, wall, peak, said)


def _told(command: tuple[str, ...]) -> dict[str, Any]:
    """What a child says of itself, as JSON on its last line."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=pipeline.ROOT)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _best(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: row.cpu)


# ---- Many small days ---------------------------------------------------------------------------------------------


def days(rounds: int) -> list[Row]:
    """365 days of 20 rows, a file each; beside them the floor: what a graph with nothing in it costs in Dagster."""
    runs: dict[str, list[Row]] = {}
    floors: list[dict[str, Any]] = []
    # All projects stay until the end: for minutes after thousands of files were deleted, ext4 takes longer to make new.
    with contextlib.ExitStack() as projects:

        def another(most: int) -> Path:
            return projects.enter_context(project("small_days", SMALL_DAYS, SMALL_ROWS, max_days=most))

        for number in range(rounds):
            folder = another(366)
            _keep(runs, _command(f"{SMALL_DAYS} days, one run", folder, "run"))
            _keep(runs, _command("start-up: a run with nothing to do", folder, "run"))
            floor_of = (sys.executable, "-m", "benchmarks.floor", str(another(366)), str(FIRST), str(LAST))
            floors.append(_told(floor_of))
            if number == 0:
                for most, words in ((7, "runs of seven days"), (1, "a run per day")):
                    _keep(runs, _command(f"{SMALL_DAYS} days, {words}", another(most), "run"))
    best = {what: _best(rows) for what, rows in runs.items()}
    floor = min(floors, key=lambda f: f["cpu"])
    one, start = best[f"{SMALL_DAYS} days, one run"], best["start-up: a run with nothing to do"]
    words = f"{floor['steps']} steps, {floor['events']:,} events, no data; its run alone"
    return [
        *best.values(),
        Row("floor: an empty graph, one run", floor["cpu"], floor["wall"], floor["peak"], words),
        Row("beyond: one run - start-up - floor", *(a - b - c for a, b, c in
            ((one.cpu, start.cpu, floor["cpu"]), (one.wall, start.wall, floor["wall"]))), 0.0,
            f"{(one.cpu - start.cpu - floor['cpu']) / SMALL_DAYS * 1e3:.0f} ms a day"),
    ]  # fmt: skip


def _keep(kept: dict[str, list[Row]], row: Row) -> None:
    kept.setdefault(row.what, []).append(row)


# ---- Many days in a file, many files -----------------------------------------------------------------------------


def thousand(_: int) -> list[Row]:
    """100,000 rows of 1,000 days in one file, beside the same rows of one day."""
    rows = []
    for days_, words in ((1_000, "1,000 days"), (1, "one day")):
        with project("one_file", 100_000, 1_000, days_) as folder:
            rows += _looked_and_made(f"one file of 100,000 rows, {words}", folder)
    return rows


def files(_: int) -> list[Row]:
    """10,000 files of 10 rows, all of one day."""
    with project("small_files", 10_000, 10, 1) as folder:
        return _looked_and_made("10,000 files of one day", folder)


def _looked_and_made(words: str, folder: Path) -> list[Row]:
    return [
        _command(f"{words}: `plan`", folder, "plan", "--json"),
        _command(f"{words}: landing (`status`)", folder, "status", "--json"),
        _command(f"{words}: `run`", folder, "run"),
        _command(f"{words}: `plan` when all is made", folder, "plan", "--json"),
    ]


def ticks(_: int) -> list[Row]:
    """The sensor, until it knows every one of 100,000 files; then with nothing new."""
    with project("small_files", FILES, 1, 28) as folder:
        told = _told(_child("tick", folder, FILES))
    rows = []
    for found, words in ((told["cold"], "new to it"), (told["warm"], "all known")):
        cpu, wall = (max(t[at] for t in found) for at in (0, 1))
        said = f"the longest of {len(found)}, together {sum(t[0] for t in found):,.0f} CPU-s; {MINUTE}"
        rows.append(Row(f"a tick over {FILES:,} files, {words}", cpu, wall, told["peak"], said))
    return rows


def tick(folder: Path, files_: int) -> dict[str, Any]:
    """Ticks of the real sensor until every file is known, as the daemon asks for them; then of one that knows all."""
    import os

    from dagster import DagsterInstance, build_sensor_context

    from data_assets import landing
    from data_assets.config import load_config
    from data_assets.definitions import build_definitions
    from data_assets.storage import DayLog, Lake

    os.chdir(folder)
    config = load_config(folder / "pipeline.yaml")
    definitions = build_definitions(config)
    sensor = definitions.resolve_sensor_def("raw_files")
    repository = definitions.get_repository_def()
    times: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
    with DagsterInstance.from_config(str(folder)) as instance:
        cursor: str | None = None

        def once(of: str) -> None:
            nonlocal cursor
            started, cpu = time.monotonic(), time.process_time()
            context = build_sensor_context(instance=instance, cursor=cursor, repository_def=repository)
            cursor = sensor.evaluate_tick(context).cursor
            times[of].append((time.process_time() - cpu, time.monotonic() - started))
            sys.stderr.write(f"{of} tick {len(times[of])}: {times[of][-1][0]:.1f} CPU-s, {times[of][-1][1]:.1f} s\n")

        lake = Lake(config.lake_dir)
        while landing.read_ledger(lake)["path"].n_unique() < files_:
            once("cold")
        log = DayLog(config.lake_dir)
        for day, mark in landing.fingerprints(landing.read_ledger(lake)).items():
            log.finish(day, mark)
        for _ in range(TICKS):
            once("warm")
    return times | {"peak": pipeline.memory_mb("VmHWM")}


# ---- Days unlike others ------------------------------------------------------------------------------------------

KINDS = {
    "usual": "100 rows a user, 12 event types",
    "crowd": "half of the rows are of one user",
    "users": "each row is of another user, a text",
    "texts": "1,000 characters of metadata in each row",
    "labels": "metadata of 28 characters, no two alike",
    "types": "each tenth row has an event type of its own",
    "values": "no two values are alike",
    "twice": "each row comes twice; `deduplicate: exact`",
    "gaps": "each tenth row has no value; `missing_value: previous`",
    "bad": "half of the rows have no readable start",
    "columns": "300 more columns, which are kept",
}


def odd_day(raw: Path, kind: str, rows: int) -> None:
    """A Parquet file that is like that of ``pipeline.make`` but in one thing."""
    import polars as pl
    import pyarrow.parquet as pq

    pipeline.make(raw / "usual.parquet", rows)
    if kind == "usual":
        return
    rows //= 1 + (kind == "twice")
    number = pl.col("n")
    key, random = (number * 2_654_435_761) % 4_294_967_296, number.hash(7)
    text = random.cast(pl.String).str.pad_start(20, "0")
    new: dict[str, list[pl.Expr]] = {
        "crowd": [pl.when(number % 2 == 0).then(7).otherwise("user_id").alias("user_id")],
        "users": [pl.concat_str(text, number.cast(pl.String)).alias("user_id")],
        "texts": [pl.concat_str(text, pl.lit("y" * 980)).alias("metadata")],
        "labels": [pl.concat_str(pl.lit("request-"), text).alias("metadata")],
        "types": [pl.when(number % 10 == 0).then(text).otherwise("event_type").alias("event_type")],
        "values": [((random % 2**53) / 2**53 * 1e6).alias("value")],
        "twice": [],
        "gaps": [pl.when(number % 10 != 0).then("value").alias("value")],
        "bad": [pl.when(random % 2 == 0).then(pl.col("session_start").dt.to_string()).alias("session_start")],
        "columns": [((key + i) % 100_000 / 10 ** (i % 2)).alias(f"extra_{i:03}") for i in range(300)],
    }
    scan = pl.scan_parquet(raw / "usual.parquet").with_row_index("n").with_columns(pl.col("n").cast(pl.Int64))
    changed = scan.with_columns(*new[kind]).drop("n")
    step = 50_000 if kind in ("texts", "columns") else 1_000_000
    with pq.ParquetWriter(raw / "day.parquet", changed.head(1).collect().to_arrow().schema, compression="zstd") as out:
        for first in range(0, rows, step):
            some = changed.slice(first, step).collect().to_arrow()
            for _ in range(2 if kind == "twice" else 1):
                out.write_table(some)
    (raw / "usual.parquet").unlink()


def odd(_: int) -> list[Row]:
    """Days of 5 million rows, each unlike others in one thing; `memory: {limit: 521MB}`."""
    found = []
    for kind, words in KINDS.items():
        rows = {"texts": 2_000_000, "columns": 500_000}.get(kind, 5_000_000)
        with project("odd_day", kind, rows) as folder:
            how = ODD_SETTINGS.format(source=ODD_SOURCE.get(kind, ""), cleaning=ODD_CLEANING.get(kind, ""))
            (folder / "pipeline.yaml").write_text(how, encoding="utf-8")
            found.append(_command(f"{rows:,} rows, {kind}", folder, "run", said=words))
    return found


# ---- How cost grows ----------------------------------------------------------------------------------------------


def growth(rounds: int) -> list[Row]:
    """Ten times the rows, the users, the days; the ratio is that of the CPU seconds above a run of one row."""
    sizes = {
        "1 row": (1, 1, 1),
        "1,000,000 rows, 10,000 users": (1_000_000, 10_000, 1),
        "10,000,000 rows, 10,000 users (rows x 10)": (10_000_000, 10_000, 1),
        "1,000,000 rows, 100,000 users (users x 10)": (1_000_000, 100_000, 1),
        "10 days of 10,000 rows": (100_000, 1_000, 10),
        "100 days of 10,000 rows (days x 10)": (1_000_000, 1_000, 100),
    }
    kept: dict[str, list[Row]] = {}
    for _ in range(max(2, rounds)):  # the first run of all finds cold files
        for words, (rows, users, days_) in sizes.items():
            with project("one_file", rows, users, days_, max_days=366) as folder:
                _keep(kept, _command(words, folder, "run"))
    best = {what: _best(rows) for what, rows in kept.items()}
    alone = best.pop("1 row")
    names = list(best)
    against = {names[1]: names[0], names[2]: names[0], names[4]: names[3]}
    found = [Row("1 row", alone.cpu, alone.wall, alone.peak, "what a run costs by itself")]
    for name, row in best.items():
        before = best.get(against.get(name, ""))
        said = "" if before is None else f"{(row.cpu - alone.cpu) / (before.cpu - alone.cpu):.1f} x: {before.what}"
        found.append(Row(row.what, row.cpu, row.wall, row.peak, said))
    return found


# ---- The page ----------------------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[..., None]] = {f.__name__: f for f in (small_days, small_files, one_file, odd_day)}
CASES: dict[str, tuple[str, Callable[[int], list[Row]]]] = {
    "days": ("365 small days", days),
    "thousand": ("A file of 1,000 days", thousand),
    "files": ("10,000 files in one day", files),
    "ticks": ("100,000 files under the sensor", ticks),
    "odd": ("Days unlike others", odd),
    "growth": ("How cost grows", growth),
}


def in_words(rows: list[Row]) -> list[str]:
    """The rows as a Markdown table."""
    lines = ["| what | CPU | wall | whole process | |", "|---|---|---|---|---|"]
    for row in rows:
        peak = f"{row.peak:,.0f} MB" if row.peak else ""
        lines.append(f"| {row.what} | {row.cpu:,.1f} s | {row.wall:,.1f} s | {peak} | {row.said} |")
    return lines


def main() -> None:
    """The cases that are named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("cases", nargs="*", choices=(*CASES, []), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=1, help="of `days` and `growth`; the best of them counts")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    asked = parser.parse_args()
    for name in asked.cases or CASES:
        title, case = CASES[name]
        table = in_words(case(asked.rounds))
        sys.stdout.write("\n".join([title, "", *table, "", ""]))
        sys.stdout.flush()
        if asked.write:
            command = f"python -m benchmarks.scale {name} --rounds {asked.rounds}"
            pipeline.write_section(title, [pipeline.taken(command), "", *table])


def _child_main(what: str, folder: str, *sizes: str) -> None:
    if what in MAKERS:
        MAKERS[what](Path(folder), *(int(size) if size.isdigit() else size for size in sizes))
    else:
        sys.stdout.write(f"\n{json.dumps(tick(Path(folder), int(sizes[0])))}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child_main(*sys.argv[2:])
    else:
        main()
