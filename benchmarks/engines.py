"""The pipeline's tables by hand, for bare engines: what `pipeline.py` holds the project against.

Here: one function per engine, from a file of five columns (CSV, where everything is text, or Parquet, typed) to Parquet
files in a folder: ``raw_events``, ``quarantined``, ``session_metrics``, ``outliers``, ``event_distribution``,
``summary_statistics``. Events and what is taken from them have the file and the line that they stood in, as the
project's have. Written as somebody who knows the engine would, with neither checks nor ledger, reasons of
refused rows, atomic publishing, report or event log. Each function imports its engine itself, so that the interpreter
of another environment can run it, and calls ``done`` with the name of each of STEPS when that is finished. Not here:
measuring (``pipeline.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FORMAT = "%Y-%m-%d %H:%M:%S"
NAMES = ("user_id", "session_start", "session_end", "event_type", "value")
TIMES = ("session_start", "session_end")
LABELS = ("user_id", "session_start", "session_end", "event_type")
STEPS = ("ingest", "session metrics", "outliers", "event distribution", "summary statistics")
FACTOR = 1.5
PART_ROWS = 262_144


def bare_polars(source: Path, folder: Path, done: Callable[[str], None]) -> None:
    """Polars, streaming, with this project's design.

    Each row with its file and line, two sinks of one scan, users in parts on disk, counted values.
    """
    import os

    os.environ.setdefault("POLARS_CSV_CHUNK_SIZE", "1048576")
    import polars as pl

    if source.suffix == ".parquet":
        typed = pl.scan_parquet(source, row_index_name="source_line", row_index_offset=1)
    else:
        typed = pl.scan_csv(source, infer_schema=False, row_index_name="source_line", row_index_offset=2).with_columns(
            pl.col("user_id").cast(pl.Int64, strict=False),
            *(pl.col(c).str.to_datetime(FORMAT, strict=False, cache=False) for c in TIMES),
            pl.col("value").cast(pl.Float64, strict=False),
        )
    typed = typed.with_columns(pl.col("source_line").cast(pl.Int64), source_file=pl.lit(source.name))
    good = pl.all_horizontal(pl.col("user_id", "session_start", "event_type", "value").is_not_null())
    how: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "row_group_size": 524_288, "lazy": True}
    copied = pl.concat_str("event_type", pl.lit("")).alias("event_type")  # else it holds the buffer it was read from
    sinks = [
        typed.filter(good).sink_parquet(folder / "raw_events.parquet", **how),
        typed.filter(~good).with_columns(copied).sink_parquet(folder / "quarantined.parquet", **how),
    ]
    pl.collect_all(sinks, engine="streaming")
    done("ingest")
    events = pl.scan_parquet(folder / "raw_events.parquet")
    labels = events.select(
        x
        for c in LABELS
        for x in (
            pl.col(c).count().alias(f"{c} count"),
            pl.col(c).null_count().alias(f"{c} null_count"),
            pl.col(c).min().cast(pl.String).alias(f"{c} min"),
            pl.col(c).max().cast(pl.String).alias(f"{c} max"),
            pl.col(c).drop_nulls().n_unique().alias(f"{c} n_unique"),
        )
    )
    of_labels = labels.collect(engine="streaming").to_dicts()[0]
    rows = of_labels["session_start count"]
    done("summary statistics")
    of_duration = _polars_figures(_polars_sessions(events, folder, rows))
    done("session metrics")
    values = events.group_by(x="value").agg(n=pl.len().cast(pl.Int64))
    of_value = _polars_figures(values.collect(engine="streaming"))
    names = ("count", "null_count", "min", "max", "n_unique")
    summary = [{"column_name": c, **{n: of_labels[f"{c} {n}"] for n in names}} for c in LABELS]
    summary += [{"column_name": "value", **of_value}, {"column_name": "duration", **of_duration}]
    for row in summary:
        row["min"], row["max"] = str(row["min"]), str(row["max"])
    pl.DataFrame(summary, infer_schema_length=None).write_parquet(folder / "summary_statistics.parquet")
    done("summary statistics")
    span = FACTOR * (of_value["p75"] - of_value["p25"])
    low, high = of_value["p25"] - span, of_value["p75"] + span
    events.filter((pl.col("value") < low) | (pl.col("value") > high)).with_columns(
        outlier_score=((pl.col("value") - of_value["p50"]) / of_value["std"]).round(6)
    ).sink_parquet(folder / "outliers.parquet")
    done("outliers")
    events.group_by("event_type").agg(pl.len().cast(pl.Int64).alias("count")).sort(
        "count", descending=True
    ).with_columns(proportion=pl.col("count") / pl.col("count").sum()).sink_parquet(
        folder / "event_distribution.parquet"
    )
    done("event distribution")


def _polars_sessions(events: Any, folder: Path, rows: int) -> Any:  # noqa: ANN401 - the engine is not imported here
    """Writes session_metrics, some users at a time; returns how often each duration occurs."""
    import polars as pl

    key, duration = ["user_id", "session_start", "session_end"], pl.col("duration")
    count = max(1, rows // PART_ROWS)
    parts = [events.select(*key, "value").collect(engine="streaming")]
    if count > 1:
        parts.clear()
        events.select(*key, "value", part=pl.col("user_id").hash() % count).sink_parquet(
            pl.PartitionBy(folder / "parts", key="part", include_key=False), mkdir=True, row_group_size=16_384,
            compression="uncompressed", statistics=False,
        )  # fmt: skip
    users, lengths = [], []
    for part in parts or (pl.read_parquet(path) for path in (folder / "parts").rglob("*.parquet")):
        end = pl.col("session_end")
        timed = (
            part.sort(key, nulls_last=False)
            .with_columns(next=end.backward_fill(), owner=pl.when(end.is_not_null()).then("user_id").backward_fill())
            .with_columns(session_end=pl.when(pl.col("owner") == pl.col("user_id")).then("next"))
            .with_columns(duration=(end - pl.col("session_start")).dt.total_microseconds() / 1e6)
        )
        users.append(
            timed.group_by("user_id").agg(
                total_sessions=pl.len().cast(pl.Int64),
                avg_duration=duration.mean().round(2),
                max_duration=duration.max().round(2),
                min_duration=pl.when(duration > 0).then(duration).min().round(2),
                total_value=pl.col("value").sum().round(2),
                mean_value=pl.col("value").mean().round(2),
                anomaly_count=(duration <= 0).sum().cast(pl.Int64),
            )
        )
        lengths.append(timed.group_by(x="duration").agg(n=pl.len().cast(pl.Int64)))
    pl.concat(users).sort("user_id").write_parquet(folder / "session_metrics.parquet")
    return pl.concat(lengths).group_by("x").agg(pl.col("n").sum())


def _polars_figures(counted: Any) -> dict[str, Any]:  # noqa: ANN401 - the engine is not imported here
    """What a column comes to, from how often (``n``) each of its values (``x``) occurs."""
    known = counted.drop_nulls("x").sort("x")
    x, n, ends = known["x"], known["n"], known["n"].cum_sum()
    count = int(n.sum())
    mean = (x * n).sum() / count

    def quantile(share: float) -> float:
        place = (count - 1) * share
        low, high = (float(x[int(ends.search_sorted(int(at), side="right"))]) for at in (place, -(-place // 1)))
        return low + (high - low) * (place - int(place))

    return {
        "count": count,
        "null_count": int(counted["n"].sum()) - count,
        "mean": mean,
        "std": float((((x - mean) ** 2 * n).sum() / (count - 1)) ** 0.5),
        "min": float(x[0]),
        "max": float(x[-1]),
        **{f"p{share * 100:.0f}": quantile(share) for share in (0.25, 0.5, 0.75)},
        "n_unique": known.height,
    }


FILLED = """SELECT user_id, session_start, value, coalesce(session_end, first_value(session_end IGNORE NULLS) OVER (
    PARTITION BY user_id ORDER BY session_start, session_end NULLS FIRST
    ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING)) AS session_end FROM {events}"""


def bare_duckdb(source: Path, folder: Path, done: Callable[[str], None]) -> None:
    """DuckDB's SQL: the typed rows once to Parquet, the tables from that."""
    import duckdb

    to = "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
    events = f"'{folder}/raw_events.parquet'"
    place = f"'{source.name}' AS source_file"
    if source.suffix == ".parquet":
        typed = (
            f"SELECT * EXCLUDE file_row_number, {place}, file_row_number + 1 AS source_line "
            f"FROM read_parquet('{source}', file_row_number = true)"
        )
    else:
        casts = ", ".join(
            f"TRY_CAST({c} AS {t}) AS {c}"
            for c, t in zip(NAMES, ("BIGINT", "TIMESTAMP", "TIMESTAMP", "VARCHAR", "DOUBLE"), strict=True)
        )
        line = "row_number() OVER () + 1 AS source_line"
        typed = f"SELECT {casts}, {place}, {line} FROM read_csv('{source}', all_varchar = true, header = true)"
    good = "user_id IS NOT NULL AND session_start IS NOT NULL AND event_type IS NOT NULL AND value IS NOT NULL"
    numbers = """count({c}) AS count, count(*) - count({c}) AS null_count, avg({c}) AS mean, stddev_samp({c}) AS std,
        min({c})::VARCHAR AS min, quantile_cont({c}, 0.25) AS p25, quantile_cont({c}, 0.5) AS p50,
        quantile_cont({c}, 0.75) AS p75, max({c})::VARCHAR AS max, count(DISTINCT {c}) AS n_unique"""
    label = """count({c}) AS count, count(*) - count({c}) AS null_count, min({c})::VARCHAR AS min,
        max({c})::VARCHAR AS max, count(DISTINCT {c}) AS n_unique"""
    filled = FILLED.format(events=events)
    duration = "(epoch_us(session_end) - epoch_us(session_start)) / 1e6"
    timed = f"SELECT user_id, value, {duration} AS duration FROM ({filled})"
    with duckdb.connect() as connection:
        run = connection.execute
        run(f"SET preserve_insertion_order = {source.suffix != '.parquet'}")  # lines of CSV are counted as they come
        run(f"CREATE TEMP VIEW typed AS {typed}")
        run(f"COPY (SELECT * FROM typed WHERE {good}) TO {events} {to}")
        run(f"COPY (SELECT * FROM typed WHERE NOT coalesce({good}, false)) TO '{folder}/quarantined.parquet' {to}")
        done("ingest")
        run(
            f"""COPY (SELECT user_id, count(*) AS total_sessions, round(avg(duration), 2) AS avg_duration,
            round(max(duration), 2) AS max_duration, round(min(duration) FILTER (duration > 0), 2) AS min_duration,
            round(sum(value), 2) AS total_value, round(avg(value), 2) AS mean_value,
            count(*) FILTER (duration <= 0) AS anomaly_count FROM ({timed}) GROUP BY user_id ORDER BY user_id)
            TO '{folder}/session_metrics.parquet' {to}"""
        )
        done("session metrics")
        parts = [f"SELECT '{c}' AS column_name, {label.format(c=c)} FROM {events}" for c in LABELS]
        parts += [f"SELECT 'value' AS column_name, {numbers.format(c='value')} FROM {events}"]
        parts += [f"SELECT 'duration' AS column_name, {numbers.format(c='duration')} FROM ({timed})"]
        run(f"CREATE TEMP TABLE summary AS {' UNION ALL BY NAME '.join(parts)}")
        run(f"COPY summary TO '{folder}/summary_statistics.parquet' {to}")
        done("summary statistics")
        found = run("SELECT p25, p50, p75, std FROM summary WHERE column_name = 'value'").fetchone()
        p25, p50, p75, std = found or (0.0, 0.0, 0.0, 1.0)
        low, high = p25 - FACTOR * (p75 - p25), p75 + FACTOR * (p75 - p25)
        run(
            f"COPY (SELECT *, round((value - {p50}) / {std}, 6) AS outlier_score FROM {events} "
            f"WHERE value < {low} OR value > {high}) TO '{folder}/outliers.parquet' {to}"
        )
        done("outliers")
        run(
            f"COPY (SELECT *, count / sum(count) OVER () AS proportion FROM (SELECT event_type, count(*) AS count "
            f"FROM {events} GROUP BY event_type) ORDER BY count DESC) TO '{folder}/event_distribution.parquet' {to}"
        )
        done("event distribution")


def bare_chdb(source: Path, folder: Path, done: Callable[[str], None]) -> None:
    """ClickHouse's engine in the process; its own SQL, the same tables."""
    import chdb

    def run(query: str, name: str, more: str = "") -> None:
        chdb.query(
            f"{query} INTO OUTFILE '{folder}/{name}.parquet' FORMAT Parquet "
            "SETTINGS output_format_parquet_compression_method='zstd', join_use_nulls=1, union_default_mode='ALL'"
            f"{more}"
        )

    events = f"file('{folder}/raw_events.parquet', Parquet)"
    place = f"'{source.name}' AS source_file"
    if source.suffix == ".parquet":
        typed = f"SELECT *, {place}, _row_number + 1 AS source_line FROM file('{source}', Parquet)"
    else:
        typed = f"""SELECT toInt64OrNull(user_id) AS user_id,
            parseDateTimeOrNull(session_start, '%Y-%m-%d %H:%i:%s') AS session_start,
            parseDateTimeOrNull(session_end, '%Y-%m-%d %H:%i:%s') AS session_end, event_type,
            toFloat64OrNull(value) AS value, {place}, rowNumberInAllBlocks() + 2 AS source_line
            FROM file('{source}', CSVWithNames, 'user_id String, session_start String,
            session_end String, event_type String, value String')"""
    good = "user_id IS NOT NULL AND session_start IS NOT NULL AND event_type IS NOT NULL AND value IS NOT NULL"
    in_order = "" if source.suffix == ".parquet" else ", max_threads=1"  # else lines of CSV are counted as they happen
    run(f"SELECT * FROM ({typed}) WHERE {good}", "raw_events", in_order)
    run(f"SELECT * FROM ({typed}) WHERE NOT ({good})", "quarantined", in_order)
    done("ingest")
    filled = f"""SELECT user_id, session_start AS s, value, ifNull(session_end, first_value(session_end) OVER (
        PARTITION BY user_id ORDER BY session_start, session_end NULLS FIRST
        ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING)) AS e FROM {events}"""
    timed = f"SELECT user_id, value, dateDiff('second', s, e)::Nullable(Float64) AS duration FROM ({filled})"
    run(
        f"""SELECT user_id, count() AS total_sessions, round(avg(duration), 2) AS avg_duration,
        round(max(duration), 2) AS max_duration, round(minIf(duration, duration > 0), 2) AS min_duration,
        round(sum(value), 2) AS total_value, round(avg(value), 2) AS mean_value,
        countIf(duration <= 0) AS anomaly_count FROM ({timed}) GROUP BY user_id ORDER BY user_id""",
        "session_metrics",
    )
    done("session metrics")
    nothing = "NULL::Nullable(Float64)"
    parts = [
        f"""SELECT '{c}' AS column_name, count({c}) AS count, count() - count({c}) AS null_count, {nothing} AS mean,
        {nothing} AS std, toString(min({c})) AS min, {nothing} AS p25, {nothing} AS p50, {nothing} AS p75,
        toString(max({c})) AS max, uniqExact({c}) AS n_unique FROM {events}"""
        for c in LABELS
    ]
    parts += [
        f"""SELECT '{c}' AS column_name, count({c}) AS count, count() - count({c}) AS null_count, avg({c}) AS mean,
        stddevSamp({c}) AS std, toString(min({c})) AS min, quantileExactInclusive(0.25)({c}) AS p25,
        quantileExactInclusive(0.5)({c}) AS p50, quantileExactInclusive(0.75)({c}) AS p75, toString(max({c})) AS max,
        uniqExact({c}) AS n_unique FROM {table}"""
        for c, table in (("value", events), ("duration", f"({timed})"))
    ]
    run(" UNION ALL ".join(parts), "summary_statistics")
    done("summary statistics")
    row = chdb.query(
        f"SELECT p25, p50, p75, std FROM file('{folder}/summary_statistics.parquet') WHERE column_name = 'value'",
        "CSV",
    )
    p25, p50, p75, std = (float(x) for x in str(row).strip().split(","))
    low, high = p25 - FACTOR * (p75 - p25), p75 + FACTOR * (p75 - p25)
    run(
        f"SELECT *, round((value - {p50}) / {std}, 6) AS outlier_score FROM {events} "
        f"WHERE value < {low} OR value > {high}",
        "outliers",
    )
    done("outliers")
    run(
        f"SELECT event_type, count() AS count, count / sum(count) OVER () AS proportion FROM {events} "
        "GROUP BY event_type ORDER BY count DESC",
        "event_distribution",
    )
    done("event distribution")


def tutorial_pandas(source: Path, folder: Path, done: Callable[[str], None]) -> None:
    """Pandas in the way that tutorials show: the whole day in memory, groups with lambdas."""
    import pandas as pd

    frame = pd.read_parquet(source) if source.suffix == ".parquet" else pd.read_csv(source)
    frame["user_id"] = pd.to_numeric(frame["user_id"], errors="coerce").astype("Int64")
    for column in TIMES:
        frame[column] = pd.to_datetime(frame[column], errors="coerce")
    frame["value"] = pd.to_numeric(frame["value"], errors="coerce")
    frame["source_file"] = source.name
    frame["source_line"] = frame.index + (1 if source.suffix == ".parquet" else 2)
    good = frame[["user_id", "session_start", "event_type", "value"]].notna().all(axis=1)
    frame[~good].to_parquet(folder / "quarantined.parquet", index=False)
    events = frame[good]
    events.to_parquet(folder / "raw_events.parquet", index=False)
    done("ingest")
    timed = events.sort_values(["user_id", "session_start", "session_end"], na_position="first")
    timed["session_end"] = timed.groupby("user_id")["session_end"].transform(lambda x: x.bfill())
    timed["duration"] = (timed["session_end"] - timed["session_start"]).dt.total_seconds()
    users = timed.groupby("user_id").agg(
        total_sessions=("session_start", "size"),
        avg_duration=("duration", "mean"),
        max_duration=("duration", "max"),
        min_duration=("duration", lambda x: x[x > 0].min()),
        total_value=("value", "sum"),
        mean_value=("value", "mean"),
        anomaly_count=("duration", lambda x: (x <= 0).sum()),
    )
    users.round(2).reset_index().to_parquet(folder / "session_metrics.parquet", index=False)
    done("session metrics")
    rows = []
    for name in (*LABELS, "value", "duration"):
        column = timed["duration"] if name == "duration" else events[name]
        row = {"column_name": name, "count": column.count(), "null_count": column.isna().sum()}
        row |= {"min": str(column.min()), "max": str(column.max()), "n_unique": column.nunique()}
        if name in ("value", "duration"):
            quantiles = column.quantile([0.25, 0.5, 0.75])
            row |= {"mean": column.mean(), "std": column.std()}
            row |= dict(zip(("p25", "p50", "p75"), quantiles, strict=True))
        rows.append(row)
    pd.DataFrame(rows).to_parquet(folder / "summary_statistics.parquet", index=False)
    done("summary statistics")
    value = events["value"]
    p25, p50, p75 = value.quantile([0.25, 0.5, 0.75])
    span = FACTOR * (p75 - p25)
    outliers = events[(value < p25 - span) | (value > p75 + span)].copy()
    outliers["outlier_score"] = ((outliers["value"] - p50) / value.std()).round(6)
    outliers.to_parquet(folder / "outliers.parquet", index=False)
    done("outliers")
    types = events["event_type"].value_counts().rename_axis("event_type").reset_index(name="count")
    types["proportion"] = types["count"] / types["count"].sum()
    types.to_parquet(folder / "event_distribution.parquet", index=False)
    done("event distribution")
