"""What ingest costs beside the bare engines: one CSV or JSON file of a day into valid and quarantined Parquet.

Here: `python -m benchmarks.ingest [ROWS [ROUNDS]]`. Each case runs in a process of its own, cases interleaved, and the
best of the rounds is printed: CPU seconds, wall seconds, peak memory above the imports, rows per CPU second and the
ratio to bare Polars. The file is made deterministically. Not here: whole days (``days.py``).
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DAY = "2024-03-01"
CONFIG = {"start_date": "2024-01-01", "timezone": "UTC"}
FORMAT = "%Y-%m-%d %H:%M:%S"
TYPED = {
    "duckdb": """SELECT TRY_CAST(user_id AS BIGINT) AS u, TRY_CAST(session_start AS TIMESTAMP) AS s,
        TRY_CAST(session_end AS TIMESTAMP) AS e, event_type AS t, TRY_CAST(value AS DOUBLE) AS v
        FROM read_csv('{source}', all_varchar = true, header = true)""",
    "chdb": """SELECT toInt64OrNull(user_id) AS u, parseDateTimeOrNull(session_start, '%Y-%m-%d %H:%i:%s') AS s,
        parseDateTimeOrNull(session_end, '%Y-%m-%d %H:%i:%s') AS e, event_type AS t, toFloat64OrNull(value) AS v
        FROM file('{source}', CSVWithNames, 'user_id String, session_start String, session_end String,
        event_type String, value String')""",
}
VALID = "u IS NOT NULL AND s IS NOT NULL AND t != '' AND v IS NOT NULL"


def make(path: Path, rows: int, quoted: int = 0, within: str = "", form: str = FORMAT) -> None:
    """``rows`` events of one day, five columns; every ``quoted``-th event type in quotes, ``within`` at its end.

    ``form``: of the times.
    """
    import polars as pl

    with path.open("wb") as out:
        out.write(b"user_id,session_start,session_end,event_type,value\n")
        for first in range(0, rows, 1_000_000):
            n = pl.int_range(first, min(first + 1_000_000, rows), eager=True).alias("n").to_frame().lazy()
            key = (pl.col("n") * 2_654_435_761) % 4_294_967_296
            start = pl.datetime(2024, 3, 1) + pl.duration(seconds=key % 86_400)
            kind = pl.concat_str(pl.lit("type_"), (key // 7 % 12).cast(pl.String))
            if quoted:
                kind = (
                    pl.when(pl.col("n") % quoted == 0)
                    .then(pl.concat_str(pl.lit('"'), kind, pl.lit(f'{within}"')))
                    .otherwise(kind)
                )
            frame = n.select(
                key // 5 % 1_000_000,
                start.dt.strftime(form).alias("s"),
                (start + pl.duration(seconds=key // 3 % 7_200)).dt.strftime(form).alias("e"),
                kind.alias("k"),
                ((key % 100_000) / 100).alias("v"),
            )
            out.write(frame.collect().write_csv(include_header=False, quote_style="never").encode())


def make_json(path: Path, rows: int, kind: str) -> None:
    """The same events as objects; ``differ``: every third lacks an end, ``nested``: each has an object within."""
    make(plain := path.with_suffix(".csv"), rows)
    with plain.open(encoding="utf-8") as source, path.open("w", encoding="utf-8") as out:
        for number, event in enumerate(csv.DictReader(source)):
            record = {**event, "user_id": int(event["user_id"]), "value": float(event["value"])}
            if kind == "differ" and number % 3 == 0:
                del record["session_end"]
            if kind == "nested":
                record["metadata"] = {"page": f"/a/{number % 99}", "items": [number % 7, {"new": number % 2 == 0}]}
            start = ",\n" if number else "["
            out.write(start * (path.suffix == ".json") + json.dumps(record) + "\n" * (path.suffix == ".jsonl"))
        out.write("]" * (path.suffix == ".json"))


def polars_typed(source: Path, folder: Path) -> int:
    """Bare Polars: text to types to Parquet, no rules, no split, no count."""
    import polars as pl

    columns = ("user_id", "session_start", "session_end", "event_type", "value")
    if source.suffix == ".jsonl":
        scan = pl.scan_ndjson(source, schema=dict.fromkeys(columns, pl.String))
    else:
        scan = pl.scan_csv(source, infer_schema=False)
    frame = scan.select(
        pl.col("user_id").cast(pl.Int64, strict=False),
        *(pl.col(c).str.to_datetime(FORMAT, strict=False, cache=False) for c in ("session_start", "session_end")),
        "event_type",
        pl.col("value").cast(pl.Float64, strict=False),
    )
    frame.sink_parquet(folder / "out.parquet", compression="zstd", compression_level=1, row_group_size=131_072)
    return -1


def duckdb_typed(source: Path, folder: Path, *conditions: str) -> int:
    """Bare DuckDB, likewise; a scan and a file for each of ``conditions``."""
    import duckdb

    with duckdb.connect() as connection:
        for number, where in enumerate(conditions or ("true",)):
            connection.execute(
                f"COPY (SELECT * FROM ({TYPED['duckdb'].format(source=source)}) WHERE {where}) "
                f"TO '{folder}/{number}.parquet' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
            )
    return -1


def duckdb_split(source: Path, folder: Path) -> int:
    """The valid rows and the others."""
    return duckdb_typed(source, folder, VALID, f"NOT ({VALID})")


def chdb_typed(source: Path, folder: Path, *conditions: str) -> int:
    """ClickHouse's engine in the process, likewise."""
    import chdb

    for number, where in enumerate(conditions or ("true",)):
        chdb.query(
            f"SELECT * FROM ({TYPED['chdb'].format(source=source)}) WHERE {where} "
            f"INTO OUTFILE '{folder}/{number}.parquet' FORMAT Parquet "
            "SETTINGS output_format_parquet_compression_method='zstd'"
        )
    return -1


def chdb_split(source: Path, folder: Path) -> int:
    """The valid rows and the others."""
    return chdb_typed(source, folder, VALID, f"NOT ({VALID})")


def ours(source: Path, folder: Path) -> int:
    """The project's reader: every record typed, judged, split by day, counted on the bytes."""
    import datetime as dt

    from data_assets import ingest
    from data_assets.config import PipelineConfig

    config = PipelineConfig.model_validate(CONFIG)
    day = dt.date.fromisoformat(DAY)
    records = ingest.open_records(source, source.name, config, folder)
    ingest.split_file(records, source.name, day, [day], config, folder)
    return records.physical_rows


CASES = {
    "bare Polars, typed": (polars_typed, "plain.csv"),
    "bare DuckDB, typed": (duckdb_typed, "plain.csv"),
    "bare DuckDB, typed and split": (duckdb_split, "plain.csv"),
    "bare ClickHouse (chdb), typed": (chdb_typed, "plain.csv"),
    "bare ClickHouse (chdb), typed and split": (chdb_split, "plain.csv"),
    "data_assets, fast lane": (ours, "plain.csv"),
    "data_assets, times ending in Z": (ours, "zulu.csv"),
    "data_assets, times of 32 characters": (ours, "offset.csv"),
    "data_assets, quotes in 1 line of 1,000": (ours, "some.csv"),
    "data_assets, quotes in every line": (ours, "all.csv"),
    "data_assets, a line end in every record": (ours, "long.csv"),
    "bare Polars, JSON lines, nested, typed": (polars_typed, "nested.jsonl"),
    "data_assets, JSON lines, flat and alike": (ours, "flat.jsonl"),
    "data_assets, JSON lines, keys differ": (ours, "differ.jsonl"),
    "data_assets, JSON lines, nested": (ours, "nested.jsonl"),
    "data_assets, JSON array, nested": (ours, "nested.json"),
}
FILES = {
    "plain.csv": (0, ""),
    "zulu.csv": (0, "", "%Y-%m-%dT%H:%M:%SZ"),
    "offset.csv": (0, "", "%Y-%m-%dT%H:%M:%S%.6f+00:00"),
    "some.csv": (1_000, ""),
    "all.csv": (1, ""),
    "long.csv": (1, "\n"),
}  # the last goes through the exact lane, as all JSON does that is not flat
IMPORTS = ("polars", "pyarrow.parquet", "duckdb", "data_assets.ingest", "data_assets.config")


def child(case: str, source: str) -> None:
    """One case in this process; prints CPU seconds, wall seconds and peak MB above the imports."""
    for name in (*IMPORTS, *(["chdb"] if "chdb" in case else [])):
        importlib.import_module(name)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far may be that of the process that started this one
    imported, started, cpu = _peak_mb(), time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(dir=Path(source).parent) as folder:
        CASES[case][0](Path(source), Path(folder))
        cpu, wall = time.process_time() - cpu, time.monotonic() - started
    sys.stdout.write(f"{cpu} {wall} {_peak_mb() - imported}\n")


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main(rows: int, rounds: int, wanted: str) -> None:
    """All cases, interleaved."""
    cases = {c: v for c, v in CASES.items() if wanted in c and ("chdb" not in c or importlib.util.find_spec("chdb"))}
    best: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in {kind for _, kind in cases.values()}:
            if name in FILES:
                make(Path(folder) / name, rows, *FILES[name])
            else:
                make_json(Path(folder) / name, rows, name.partition(".")[0])
        for _ in range(rounds):
            for case, (_, kind) in cases.items():
                command = [sys.executable, "-m", "benchmarks.ingest", "--child", case, f"{folder}/{kind}"]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ).stdout
                figures = [float(x) for x in out.split()]
                best[case] = min(best.get(case, figures), figures)
    base = best.get("bare Polars, typed", [0.0])[0]
    for case, (cpu, wall, memory) in best.items():
        ratio = f"{cpu / base:5.2f} x" if base else ""
        sys.stdout.write(
            f"{case:38s} {cpu:7.2f} CPU-s {wall:7.2f} s {memory:6.0f} MB {rows / cpu:12,.0f}/CPU-s {ratio}\n"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3])
    else:
        arguments = sys.argv[1:]
        main(
            int(arguments[0]) if arguments else 1_000_000,
            int(arguments[1]) if arguments[1:] else 3,
            arguments[2] if arguments[2:] else "",
        )
