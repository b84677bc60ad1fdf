"""Which rows are duplicates and of which row: by hand, and against DuckDB's window functions."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_assets import duplicates

SCHEMA = pl.Schema(
    {
        "user_id": pl.Int64(),
        "session_start": pl.Datetime("us"),
        "value": pl.Float64(),
        "metadata": pl.String(),
        "source_file": pl.String(),
        "source_line": pl.Int64(),
    }
)
KEYS = [["user_id"], ["user_id", "value"], ["metadata"], ["user_id", "session_start", "value", "metadata"]]


def split(frame: pl.DataFrame, key: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    with tempfile.TemporaryDirectory() as folder:
        kept, dropped = duplicates.split(frame.lazy(), key, Path(folder))
        return kept.collect(), dropped.collect()


def by_sql(frame: pl.DataFrame, key: list[str]) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """The same from plain SQL: kept rows, and duplicates with their first row, in the order of file and line."""
    window = f"(PARTITION BY {', '.join(key)} ORDER BY source_file, source_line)"
    with duckdb.connect() as connection:
        connection.register("given", frame.to_arrow())
        connection.sql(f"""
            CREATE TABLE numbered AS SELECT *, row_number() OVER {window} AS number,
                first_value(source_file) OVER {window} AS of_file, first_value(source_line) OVER {window} AS of_line
            FROM given
        """)
        kept = connection.sql(
            f"SELECT {', '.join(SCHEMA)} FROM numbered WHERE number = 1 ORDER BY source_file, source_line"
        )
        dropped = connection.sql("""
            SELECT source_file, source_line, of_file, of_line FROM numbered WHERE number > 1
            ORDER BY source_file, source_line
        """)
        return kept.fetchall(), dropped.fetchall()


ROW = st.tuples(
    st.none() | st.integers(0, 2),
    st.none() | st.sampled_from([dt.datetime.fromisoformat(f"2024-03-01T12:00:0{n}") for n in range(2)]),
    st.none() | st.sampled_from([0.0, -0.0, 1.5]),
    st.none() | st.sampled_from(["", "a", "null", "\x00"]),
)


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(st.lists(st.lists(ROW, max_size=6), max_size=4), st.sampled_from(KEYS), st.integers(1, 9), st.integers(1, 5))
@example([[(None, None, None, None)], [(None, None, None, None)]], KEYS[-1], 1, 1)
@example([[(1, None, 0.0, "a"), (1, None, -0.0, "a")]], KEYS[1], 1, 1)
def test_duplicates_are_those_of_a_window_in_sql(files, key, compared_rows, span_rows):
    """Within a file and across files; nulls are equal; a few rows are compared and put into order at a time."""
    rows = [(*row, f"{name}.csv", line) for name, file in enumerate(files) for line, row in enumerate(file, 2)]
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "HASHED_ROWS", 2)
        patch.setattr(duplicates, "COMPARED_ROWS", compared_rows)
        patch.setattr(duplicates, "SPAN_ROWS", span_rows)
        kept, dropped = split(frame, key)
    wanted_kept, wanted_dropped = by_sql(frame, key)
    assert kept.rows() == wanted_kept
    assert dropped.rows() == wanted_dropped
    assert kept.height + dropped.height == frame.height


def test_rows_that_only_share_a_hash_are_no_duplicates(monkeypatch):
    """A collision cannot be had for the asking, so here every hash is the same."""
    monkeypatch.setattr(duplicates, "_hash", lambda _key: (pl.int_range(pl.len()) * 0).cast(pl.UInt64))
    rows = [(user, None, None, text, "a.csv", line) for line, (user, text) in enumerate([(1, "x"), (2, "x"), (1, "x")])]
    kept, dropped = split(pl.DataFrame(rows, schema=SCHEMA, orient="row"), ["user_id", "metadata"])
    assert (kept["source_line"].to_list(), dropped.rows()) == ([0, 1], [("a.csv", 2, "a.csv", 0)])


def test_three_of_a_kind_all_name_the_first():
    frame = pl.DataFrame(
        [
            (1, None, 1.0, "x", "a.csv", 2),
            (2, None, 1.0, "x", "a.csv", 3),
            (1, None, 1.0, "x", "b.csv", 2),
            (1, None, 1.0, "x", "b.csv", 9),
        ],
        schema=SCHEMA,
        orient="row",
    )
    kept, dropped = split(frame, ["user_id", "value"])
    assert kept["source_line"].to_list() == [2, 3]
    assert dropped.rows() == [("b.csv", 2, "a.csv", 2), ("b.csv", 9, "a.csv", 2)]


def test_a_source_may_call_its_columns_as_it_likes(tmp_path):
    names = ["user_id", "row", "hash", "duplicate_of_line", "source_file", "source_line"]
    rows = [(1, "a", 2, 3, "a.csv", 2), (1, "a", 2, 3, "a.csv", 3), (1, "b", 2, 3, "a.csv", 4)]
    frame = pl.DataFrame(rows, schema=names, orient="row")
    kept, dropped = duplicates.split(frame.lazy(), names[:4], tmp_path)
    assert kept.collect().rows() == [rows[0], rows[2]]
    assert dropped.collect().rows() == [("a.csv", 3, "a.csv", 2)]


def test_the_first_row_stays_among_rows_that_a_batch_cannot_hold(tmp_path):
    """Many row groups of many files, read in parallel: the kept rows are those of a plain loop, in its order."""
    parts = []
    for number in range(3):
        path = tmp_path / f"{number}.parquet"
        rows = pl.select(
            user_id=(pl.int_range(40_000) * (number + 7)) % 9_973,
            source_file=pl.lit(f"{number}.csv"),
            source_line=pl.int_range(2, 40_002),
        )
        rows.write_parquet(path, row_group_size=1_000)
        parts.append(pl.scan_parquet(path))
    everything = pl.concat(parts).collect()
    first: dict[int, tuple[str, int]] = {}
    wanted = []
    for user, *place in everything.rows():
        if first.setdefault(user, tuple(place)) != tuple(place):
            wanted.append((*place, *first[user]))
    (tmp_path / "day").mkdir()
    kept, dropped = duplicates.split(pl.concat(parts), ["user_id"], tmp_path / "day")
    assert dropped.collect().rows() == wanted
    assert [tuple(r) for r in kept.collect().select("source_file", "source_line").rows()] == list(first.values())
