# ruff: noqa: DTZ001 - wall times are what the tables hold
"""Parquet: any physical type is read or refused, a damaged file is refused whole, paths reach into nested columns.

Here: files written by Polars and by pyarrow for one purpose each. Not here: what becomes of the values
(test_ingest.py).
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_assets import ingest
from data_assets.config import PipelineConfig
from data_assets.errors import SourceFileError
from data_assets.ingest import columnar
from data_assets_tests.peaks import answer_and_growth

HOME = dt.date(2024, 5, 5)
BAD = Path(__file__).parents[2] / "shared/data/nasty/parquet-testing/bad_data"


def config(**source):
    return PipelineConfig(source={"required": [], "types": {"user_id": "string"}, "extra_columns": "keep", **source})


def classified(tmp_path, table, **source):
    if isinstance(table, pl.DataFrame):
        table.write_parquet(tmp_path / "a.parquet")
    else:
        pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps="int96" in table.column_names)
    plan = config(**source)
    records = ingest.open_records(tmp_path / "a.parquet", "a.parquet", plan, tmp_path)
    ingest.split_file(records, "a.parquet", HOME, None, plan, tmp_path / "out")
    counted = ingest.count_days(records, "a.parquet", plan)
    frame = ingest.classify(records, "a.parquet", HOME, plan).collect(engine="streaming")
    written = [pl.read_parquet(f, hive_partitioning=False).height for f in (tmp_path / "out").rglob("*.parquet")]
    assert frame.height == records.physical_rows == sum(written) == counted["rows"].sum()
    return frame


TYPES = {
    "decimal": (pa.decimal128(38, 9), decimal.Decimal("1.500000000")),
    "decimal256": (pa.decimal256(50, 2), decimal.Decimal("1.50")),
    "int96": (pa.timestamp("ns"), dt.datetime(2024, 1, 1, 10)),
    "time": (pa.time64("us"), dt.time(10, 20)),
    "time32": (pa.time32("ms"), dt.time(10, 20)),
    "duration": (pa.duration("us"), dt.timedelta(hours=1)),
    "date": (pa.date32(), dt.date(2024, 1, 1)),
    "zoned": (pa.timestamp("us", "Europe/Berlin"), dt.datetime(2024, 1, 1, 10, tzinfo=dt.UTC)),
    "offset": (pa.timestamp("us", "-02:15"), dt.datetime(2024, 1, 1, 10, tzinfo=dt.UTC)),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), "a"),
    "uint64": (pa.uint64(), 2**64 - 1),
    "float16": (pa.float16(), 1.5),
    "binary": (pa.binary(), b"\xff\x00"),
    "fixed": (pa.binary(2), b"\xff\x00"),
    "null": (pa.null(), None),
    "list": (pa.list_(pa.int8()), [1, None]),
    "fixed_list": (pa.list_(pa.int8(), 2), [1, 2]),
    "struct": (pa.struct({"a": pa.list_(pa.struct({"b": pa.decimal128(5, 2)}))}), {"a": [{"b": decimal.Decimal(1)}]}),
    "map": (pa.map_(pa.string(), pa.int64()), [("k", 1)]),
    "map of numbers": (pa.map_(pa.int32(), pa.binary()), [(1, b"\xff")]),
    "binary_in_list": (pa.list_(pa.binary()), [b"\xff"]),
    "times": (pa.struct({"t": pa.time64("us"), "d": pa.duration("us")}), {"t": dt.time(1), "d": dt.timedelta(1)}),
    "large": (pa.large_string(), "x"),
    "view": (pa.string_view(), "x"),
    "bool": (pa.bool_(), True),
}  # fmt: skip


BYTES = st.sampled_from([0, *range(0x7E, 0xC4), *range(0xDE, 0x100)])
NOT_POLARS = ("decimal256",)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("ours", ["user_id", "session_start", "event_type", "value", "metadata", "extra"])
def test_every_type_in_every_place(tmp_path, kind, ours):
    """Read or refused; when it is read, no row is lost, and those without a value are empty."""
    dtype, value = TYPES[kind]
    columns = {} if ours == "extra" else {ours: kind}
    table = pa.table({kind: pa.array([value, None, value], dtype), "x": [1, None, 3]})
    if kind in NOT_POLARS:
        with pytest.raises(SourceFileError, match="Parquet"):
            classified(tmp_path, table, columns=columns)
        return
    frame = classified(tmp_path, table, columns=columns)
    assert ["empty_row" in r for r in frame["reasons"].to_list()] == [False, True, False]
    assert [json.loads(r)["x"] for r in frame["record"].to_list()] == [1, None, 3]


@pytest.mark.parametrize("rows", [0, 3])
def test_no_columns_and_no_rows(tmp_path, rows):
    assert classified(tmp_path, pa.table({"a": pa.array([1] * rows, pa.int8())})).height == rows
    (tmp_path / "none").mkdir()
    assert classified(tmp_path / "none", pl.DataFrame()).height == 0


@pytest.mark.parametrize(
    ("most_bytes", "most_pieces", "pieces"),
    [(1, 100_000, 217), (800, 1_000, 9), (800, 8, 4), (800, 3, 0), (1 << 20, 1_000, 0)],
)
def test_large_row_groups_are_read_in_pieces(tmp_path, monkeypatch, most_bytes, most_pieces, pieces):
    """Every row once and in its place, whether the pieces are single rows, row groups, or the whole file."""
    rows = pl.DataFrame({"value": range(217), "event_type": [f"type {n}" for n in range(217)]})
    path = tmp_path / "rows.parquet"
    with pq.ParquetWriter(path, rows.to_arrow().schema) as out:
        for first, count in ((0, 50), (50, 0), (50, 100), (150, 1), (151, 66)):
            out.write_table(rows.slice(first, count).to_arrow())
    monkeypatch.setattr(columnar, "_PIECE_BYTES", most_bytes)
    monkeypatch.setattr(columnar, "_COLUMN_BYTES", 0)
    monkeypatch.setattr(columnar, "_MOST_PIECES", most_pieces)
    scan = columnar._scan(path, pq.read_metadata(path))
    assert scan.explain(optimized=False).count("SLICE[") == pieces
    assert scan.collect(engine="streaming").equals(rows)
    assert scan.with_row_index().filter(pl.col("value") >= 100).collect()["index"].to_list() == list(range(100, 217))


def test_bytes_and_durations_become_text(tmp_path):
    frame = pl.DataFrame(
        {"event_type": [b"buy", b"\xff"], "value": [dt.timedelta(1)] * 2, "m": [{"b": [b"a", b"\xfe", None]}, None]}
    )
    got = classified(tmp_path, frame, columns={"metadata": "m", "value": None, "user_id": "value"})
    assert got["event_type"].to_list() == ["buy", "\\xff"]
    assert got["user_id"].to_list() == ["P1D", "P1D"]
    assert got["metadata"].to_list() == [json.dumps({"b": ["a", "\\xfe", None]}, separators=(",", ":")), None]


@pytest.mark.parametrize("unit", ["ms", "us"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
@pytest.mark.parametrize("far", [2**63 - 1, -(2**63) + 1, 253_402_300_800_000_000])
def test_a_time_beyond_all_years_costs_its_row_alone(tmp_path, unit, zone, far):
    """DuckDB and PostgreSQL say "infinity" so, for what has no end; the engine cannot convert it."""
    noon = 1_704_189_600 * {"ms": 1_000, "us": 1_000_000}[unit]
    times = pa.array([noon, far, noon], pa.int64()).cast(pa.timestamp(unit, zone))
    table = pa.table(
        {
            "user_id": ["1", "2", None],
            "session_start": times,
            "session_end": times,
            "event_type": ["a", "b", "c"],
            "valid_to": pa.array([far] * 3, pa.int64()).cast(pa.timestamp(unit, zone)),
            "since": pa.array([2**31 - 1] * 3, pa.int32()).cast(pa.date32()),
        }
    )
    frame = classified(tmp_path, table, required=["user_id", "session_start"])
    start, end = "unreadable_session_start", "unreadable_session_end"
    assert frame["reasons"].to_list() == [[], [start, end], ["missing_user_id"]]
    assert frame["session_start"].to_list() == [dt.datetime(2024, 1, 2, 10), None, dt.datetime(2024, 1, 2, 10)]
    assert (frame["valid_to"].unique().to_list(), frame["since"].unique().to_list()) == ([str(far)], [str(2**31 - 1)])
    assert json.loads(frame["record"][1])["session_end"] == str(far)


def test_a_date_beyond_all_years_costs_its_row_alone(tmp_path):
    days = pa.array([19_724, 2**31 - 1, -(2**31) + 1], pa.int32()).cast(pa.date32())
    frame = classified(tmp_path, pa.table({"session_start": days, "event_type": ["a", "b", "c"]}))
    assert frame["session_start"].to_list() == [dt.datetime(2024, 1, 2), None, None]
    assert frame["reasons"].to_list() == [[], ["unreadable_session_start"], ["unreadable_session_start"]]


@pytest.mark.parametrize("far", [2**63 - 1, -(2**63) + 1])
@pytest.mark.parametrize("ours", ["metadata", "user_id", "extra"])
def test_so_does_one_within_a_struct_or_a_list(tmp_path, far, ours):
    noon, day = 1_704_189_600_000_000, 2**31 - 1
    times = pa.array([noon, far], pa.int64()).cast(pa.timestamp("us"))
    days = pa.array([day, 0], pa.int32()).cast(pa.date32())
    lists = [pa.ListArray.from_arrays([0, 1, 2], times), pa.FixedSizeListArray.from_arrays(days, 1)]
    deep = pa.StructArray.from_arrays([pa.array([1, 2]), times, *lists], names=["n", "until", "list", "days"])
    table = pa.table({"user_id": ["1", "2"], "event_type": ["a", None], "deep": deep})
    if ours != "extra":
        table = table.rename_columns(["who", "event_type", "deep"])
    frame = classified(tmp_path, table, required=["event_type"], columns={} if ours == "extra" else {ours: "deep"})
    first = {"n": 1, "until": "2024-01-02 10:00:00.000000", "list": ["2024-01-02 10:00:00.000000"], "days": [str(day)]}
    second = {"n": 2, "until": str(far), "list": [str(far)], "days": ["1970-01-01"]}
    shown = frame["deep" if ours == "extra" else ours].to_list()
    assert [json.loads(text) for text in shown] == [first, second]
    assert [json.loads(text)["deep"] for text in frame["record"]] == [first, second]
    assert frame["reasons"].to_list() == [[], ["missing_event_type"]]


@pytest.mark.parametrize(
    ("sql", "texts"),
    [
        ("CAST(until AS VARCHAR)", ["2024-01-02 10:00:00.000000", "+201970-01-01 00:00:00.000000", None]),
        ("CONCAT(day, 'x')", ["2024-01-02x", "+201970-01-01x", "x"]),
        ("CAST(deep.until AS VARCHAR)", ["2024-01-02 10:00:00.000000", "+201970-01-01 00:00:00.000000", None]),
        ("CASE WHEN until > day THEN 'after' ELSE 'not' END", ["after", "not", "not"]),
        ("CASE WHEN until > '2100-01-01'::date THEN 'open' ELSE 'closed' END", ["closed", "open", "closed"]),
        ("CAST(EXTRACT(YEAR FROM until) AS VARCHAR)", ["2024", "201970", None]),
    ],
)
def test_sql_over_a_time_beyond_all_years(tmp_path, sql, texts):
    """To compare it is what such times are for, so it stays the last of all."""
    times = pa.array([1_704_189_600_000_000, 2**63 - 1, None], pa.int64()).cast(pa.timestamp("us"))
    days = pa.array([19_724, 2**31 - 1, None], pa.int32()).cast(pa.date32())
    deep = pa.StructArray.from_arrays([times], names=["until"])
    table = pa.table({"user_id": ["1", "2", "3"], "until": times, "day": days, "deep": deep})
    frame = classified(tmp_path, table, columns={"metadata": {"sql": sql}, "session_end": {"sql": "until"}})
    assert frame["metadata"].to_list() == texts
    assert frame["reasons"].to_list() == [[], ["unreadable_session_end"], []]


@pytest.mark.parametrize("zone", ["+05:30", "-02:15", "Z", "Mars/Olympus"])
def test_a_zone_that_the_engine_does_not_know(tmp_path, capfd, zone):
    """PyArrow writes offsets so; the times are those of UTC in any case."""
    noon, far = dt.datetime(2024, 1, 2, 12, tzinfo=dt.UTC), 2**63 - 1
    starts = pa.array([noon, noon + dt.timedelta(hours=12), None]).cast(pa.timestamp("us", zone))
    ends = pa.array([0, far, None], pa.int64()).cast(pa.timestamp("ms", zone))
    lists = [pa.ListArray.from_arrays([0, 1, 2, 3], starts), pa.FixedSizeListArray.from_arrays(ends, 1)]
    deep = pa.StructArray.from_arrays([starts, *lists], names=["at", "list", "ends"])
    maps = pa.MapArray.from_arrays([0, 1, 2, 3], ["a", "b", "c"], starts)
    table = pa.table({"session_start": starts, "session_end": ends, "deep": deep, "maps": maps, "user_id": starts})
    frame = classified(tmp_path, table, required=["session_start"], columns={"event_type": "deep.at"})
    assert frame["session_start"].to_list() == [dt.datetime(2024, 1, 2, 12), dt.datetime(2024, 1, 3), None]
    assert frame["session_end"].to_list() == [dt.datetime(1970, 1, 1), None, None]
    assert frame["reasons"].to_list() == [[], ["unreadable_session_end"], ["missing_session_start"]]
    first = "2024-01-02 12:00:00.000000+00:00"
    assert (frame["user_id"][0], frame["event_type"][0]) == (first, first)
    shown = {"at": first, "list": [first], "ends": ["1970-01-01 00:00:00.000+00:00"]}
    assert json.loads(frame["deep"][0]) == json.loads(frame["record"][0])["deep"] == shown
    assert json.loads(frame["maps"][0]) == [{"key": "a", "value": first}]
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize("rows", [1, 3, 20_000])
def test_maps_and_lists_of_times_of_such_a_zone(tmp_path, capfd, rows):
    """Whatever the engine reads at a time: of one row it makes a single value."""
    times = pa.array([dt.datetime(2024, 1, 2, 12, tzinfo=dt.UTC)] * rows).cast(pa.timestamp("us", "+05:30"))
    maps = pa.MapArray.from_arrays(range(rows + 1), ["a"] * rows, times)
    lists = pa.ListArray.from_arrays(range(rows + 1), times)
    frame = classified(tmp_path, pa.table({"session_start": times, "maps": maps, "lists": lists}))
    assert set(frame["maps"]) == {'[{"key":"a","value":"2024-01-02 12:00:00.000000+00:00"}]'}
    assert set(frame["lists"]) == {'["2024-01-02 12:00:00.000000+00:00"]'}
    assert set(frame["session_start"]) == {dt.datetime(2024, 1, 2, 12)}
    assert "panicked" not in capfd.readouterr().err


def test_times_of_day_keep_their_fractions(tmp_path):
    moments = pa.array([37_230_000_000_000, 37_230_000_005_000, None], pa.time64("ns"))
    deep = pa.StructArray.from_arrays([moments], names=["at"])
    frame = classified(tmp_path, pa.table({"event_type": moments, "more": moments, "deep": deep, "x": ["a"] * 3}))
    texts = ["10:20:30", "10:20:30.000005", None]
    assert frame["event_type"].to_list() == frame["more"].to_list() == texts
    assert [json.loads(record)["more"] for record in frame["record"]] == texts
    assert json.loads(frame["deep"][1]) == json.loads(frame["record"][1])["deep"] == {"at": "10:20:30.000005"}


def test_a_duration_that_sql_makes_is_text(tmp_path):
    moments = pa.array([dt.datetime(2024, 1, 1, 10), dt.datetime(2024, 1, 2, 11, 30)])
    table = pa.table({"a": moments, "b": pa.array([dt.datetime(2024, 1, 1)] * 2)})
    frame = classified(tmp_path, table, columns={"metadata": {"sql": "a - b"}})
    assert frame["metadata"].to_list() == ["PT10H", "P1DT11H30M"]


FLOATS = {
    12.0: "12", -0.0: "0", -7.0: "-7", 2.0**53: "9007199254740992", 1.5: "1.5", 2.0**60: "1.152921504606847e+18",
    float("nan"): None, float("inf"): None, float("-inf"): None,
}  # fmt: skip


def test_floats_as_texts(tmp_path):
    """As pandas writes whole numbers of which one is missing: neither 12.0 nor NaN is anybody's name."""
    floats = pl.Series([*FLOATS, None], dtype=pl.Float64)
    frame = pl.DataFrame({"user_id": floats, "event_type": floats, "metadata": floats, "more": floats, "n": 1})
    got = classified(tmp_path, frame, required=["user_id", "event_type"])
    texts = [*FLOATS.values(), None]
    assert [got[n].to_list() for n in ("user_id", "event_type", "metadata", "more")] == [texts] * 4
    missing, infinite = ["missing_user_id", "missing_event_type"], ["missing_event_type", "unreadable_user_id"]
    assert got["reasons"].to_list() == [*[[]] * 6, missing, infinite, infinite, missing]
    small = classified(tmp_path, frame.select(pl.col("user_id").cast(pl.Float32)))
    assert small["user_id"].head(3).to_list() == texts[:3]
    whole = classified(tmp_path, frame.select("user_id"), types={"user_id": "int64"})
    assert whole["user_id"].to_list() == [12, 0, -7, 2**53, *[None] * 6]
    assert whole["reasons"].to_list() == [
        *[[]] * 4, ["unreadable_user_id"], ["unreadable_user_id"], ["empty_row"], *[["unreadable_user_id"]] * 2,
        ["empty_row"],
    ]  # fmt: skip


def test_decimal_users_are_whole_numbers_digit_by_digit(tmp_path):
    numbers = [2**53 + 1, 2**53, 2**63 - 1, 2**63, -7]
    frame = classified(
        tmp_path,
        pa.table({"user_id": pa.array([decimal.Decimal(n) for n in numbers], pa.decimal128(38, 0))}),
        types={"user_id": "int64"},
    )
    assert frame["user_id"].to_list() == [2**53 + 1, 2**53, 2**63 - 1, None, -7]
    parts = [decimal.Decimal(text) for text in ("1.00000000000000000001", "7", "-0.5")]
    frame = classified(
        tmp_path, pa.table({"user_id": pa.array(parts, pa.decimal128(38, 20))}), types={"user_id": "int64"}
    )
    assert frame["user_id"].to_list() == [None, 7, None]
    assert frame["reasons"][0].to_list() == ["unreadable_user_id"]


@pytest.mark.parametrize(("sql", "why"), [("n * n", "overflow in decimal"), ("n / (n - n)", "division by zero")])
@pytest.mark.parametrize("ours", ["session_start", "value", "metadata"])
def test_sql_that_cannot_be_computed_is_no_damage(tmp_path, sql, why, ours):
    table = pa.table({"user_id": ["1"], "n": pa.array([decimal.Decimal(10) ** 27], pa.decimal128(38, 10))})
    pq.write_table(table, tmp_path / "a.parquet")
    plan = config(columns={ours: {"sql": f"CAST({sql} AS VARCHAR)"}})
    records = ingest.open_records(tmp_path / "a.parquet", "a.parquet", plan, tmp_path)
    with pytest.raises(SourceFileError, match=rf'a.parquet: SQL under source.columns .*{why}.*col\("n"\)') as refusal:
        ingest.split_file(records, "a.parquet", HOME, None, plan, tmp_path / "out")
    assert "CAST(x AS DOUBLE)" in refusal.value.hint


def test_text_kept_as_a_dictionary_is_read_as_text(tmp_path):
    texts = {
        "user_id": ["1", "2", "x"],
        "session_start": ["2024-01-04 10:00:00", "2024-01-05T10:00:00Z", "2024-01-06 10:00:00"],
        "event_type": ["view", "", "NULL"],
        "value": ["1.5", "2", "much"],
        "other": ["a", "b", None],
    }
    required = {"required": ["user_id", "event_type"], "types": {"user_id": "int64"}}
    plain = classified(tmp_path, pa.table(texts), **required)
    coded = classified(tmp_path, pa.table({n: pa.array(t).dictionary_encode() for n, t in texts.items()}), **required)
    assert coded.equals(plain)
    assert plain["reasons"].to_list() == [
        [],
        ["missing_event_type"],
        ["missing_event_type", "unreadable_user_id", "unreadable_value"],
    ]


def test_a_file_that_only_is_called_parquet_is_said_to_be_another(tmp_path):
    (tmp_path / "a.parquet").write_text("user_id,session_start\n")
    with pytest.raises(
        SourceFileError, match=r"(?s)is no readable Parquet file.*It does not begin as Parquet files do"
    ):
        ingest.open_records(tmp_path / "a.parquet", "a.parquet", config(), tmp_path)


@pytest.mark.parametrize("extra_columns", ["keep", "drop"])
def test_columns_called_like_ours_stay_as_they_are(tmp_path, extra_columns):
    """A record is told as it stood, whatever its columns are called."""
    theirs = {"day": "Tue", "record": 7, "reasons": "none", "home_day": True}
    row = {"user_id": 1, "session_start": dt.datetime(2024, 1, 2, 10), "event_type": "a", **theirs}
    table = pl.DataFrame([row, row | {"user_id": None, "day": "Wed"}], infer_schema_length=None)
    kept = {"extra_columns": extra_columns, "required": ["user_id"], "types": {"user_id": "int64"}}
    frame = classified(tmp_path, table, **kept)
    assert frame["reasons"].to_list() == [[], ["missing_user_id"]]
    assert {n: json.loads(frame["record"][1])[n] for n in theirs} == theirs | {"day": "Wed"}
    (valid,) = [pl.read_parquet(f, hive_partitioning=False) for f in (tmp_path / "out/valid").rglob("*.parquet")]
    assert ("day" in valid.columns) == (extra_columns == "keep")


def test_odd_names(tmp_path):
    names = ["", " A ", "a", "__line", "a.b", 'q"', "\n\x1b[31m", "☃", "n" * 5000]
    frame = classified(tmp_path, pl.DataFrame({name: [1] for name in names}))
    assert frame.height == 1
    assert len(json.loads(frame["record"][0])) == len(names)


def test_equal_names_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(SourceFileError, match="Parquet"):
        classified(tmp_path, table)


def test_paths_into_structs_and_lists(tmp_path):
    frame = pl.DataFrame(
        {"actor": [{"ID": 7, "tags": [{"t": "x"}]}, {"ID": None, "tags": []}, None], "a.b": ["p", "q", None]}
    )
    columns = {"user_id": "actor.id", "event_type": "Actor.tags.0.t", "metadata": "a.b", "session_start": "actor.no"}
    got = classified(tmp_path, frame, columns=columns)
    assert got["user_id"].to_list() == ["7", None, None]
    assert got["event_type"].to_list() == ["x", None, None]
    assert got["metadata"].to_list() == ["p", "q", None]
    assert got["reasons"].to_list() == [[], [], ["empty_row"]]


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_damage_in_the_middle_of_a_column_is_found_before_anything_is_used(tmp_path, compression):
    """One flipped byte in the data of a column that nothing maps; the checksum is what tells."""
    table = pa.table({"user_id": list(range(5000)), "other": [f"text {i % 977}" for i in range(5000)]})
    path = tmp_path / "b.parquet"
    pq.write_table(table, path, compression=compression, write_page_checksum=True, use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 0x01
    path.write_bytes(content)
    with pytest.raises(SourceFileError, match=r"Nothing of it is used") as refusal:
        ingest.open_records(path, "b.parquet", config(), tmp_path)
    assert refusal.value.hint


@pytest.mark.parametrize("cut", range(0, 100, 9))
def test_cut_anywhere(tmp_path, cut):
    pl.DataFrame({"user_id": range(1000)}).write_parquet(tmp_path / "c.parquet")
    content = (tmp_path / "c.parquet").read_bytes()
    kept = max(1, len(content) * cut // 100)
    for damaged in (content[:kept], content[:4] + content[-kept:]):
        (tmp_path / "c.parquet").write_bytes(damaged)
        with pytest.raises(SourceFileError, match="Parquet"):
            ingest.open_records(tmp_path / "c.parquet", "c.parquet", config(), tmp_path)


@pytest.mark.skipif(not BAD.is_dir(), reason=f"{BAD} is absent")
@pytest.mark.parametrize("name", ["ARROW-GH-45185", "ARROW-RS-GH-6229-LEVELS", "PARQUET-1481", "ARROW-GH-47662"])
def test_files_that_others_damaged(name):
    with pytest.raises(SourceFileError, match="Parquet"):
        ingest.open_records(BAD / f"{name}.parquet", "a.parquet", config(), BAD)


@settings(max_examples=300, deadline=None)
@given(st.lists(BYTES, max_size=5).map(bytes) | st.text().map(str.encode))
@example(bytes([0xE0, 0x9F, 0x80]))
@example(bytes([0xED, 0xA0, 0x80]))
@example(bytes([0xF4, 0x90, 0x80, 0x80]))
def test_bytes_that_are_utf8_are_known_from_their_digits(content):
    try:
        expected = content.decode()
    except UnicodeDecodeError:
        expected = "\\x" + content.hex()
    frame = pl.DataFrame({"a": [content]}, schema={"a": pl.Binary})
    assert frame.select(columnar._plain(pl.col("a"), pl.Binary())).item() == expected


OPEN = """
from data_assets import ingest
from data_assets.config import PipelineConfig
plan = PipelineConfig()
records = ingest.open_records(path, path.name, plan, path.parent, verify=False)
"""
COUNT = 'answer = ingest.count_days(records, path.name, plan)["rows"].sum()'
SPLIT = 'answer = ingest.split_unseen(records, path.name, plan, path.parent / "split")["rows"].sum()'


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory")
@pytest.mark.parametrize(("asked", "most"), [(COUNT, 80), (SPLIT, 250)], ids=["count", "split"])
def test_long_row_groups_are_counted_and_split_with_few_of_their_rows_held(tmp_path, asked, most):
    """To count: where the engine may take a scan's pieces in any order, it takes all of them: 130 MB, and it grows."""
    rows = 16_000_000
    day = pl.select(pl.int_range(rows).alias("user_id")).lazy()
    day = day.with_columns(session_start=dt.datetime(2024, 3, 1), event_type=pl.lit("view"), value=1.0)
    day.sink_parquet(tmp_path / "a.parquet", row_group_size=2_000_000)
    answered, grown = answer_and_growth(OPEN, asked, tmp_path / "a.parquet")
    assert answered == rows
    assert grown < most
