# ruff: noqa: DTZ001 - wall times are what the tables hold
"""Ingest: one file in, every physical record accounted for.

Here: small inputs written by hand, one for each rule; the nasty files of others (skipped when absent); the two CSV
lanes against each other. Not here: which files there are (test_landing.py), duplicates and tables.
"""

from __future__ import annotations

import datetime as dt
import gzip
import json
import re
from decimal import Decimal
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from data_assets import ingest
from data_assets.config import PipelineConfig
from data_assets.contracts import QUARANTINED_EVENTS, tables
from data_assets.engine import FEW_ROWS
from data_assets.errors import ConfigurationError, MissingColumnsError, SourceFileError
from data_assets.ingest import delimited, exact, values
from data_assets.ingest.mapping import lenient
from data_assets.ingest.records import Records, column_names

DATA = Path(__file__).parents[2] / "shared" / "data"
NASTY = DATA / "nasty"
HOME = dt.date(2024, 5, 5)
HEADER = "user_id,session_start,session_end,event_type,value,metadata\n"
ROW = "1,2024-01-01 10:00:00,2024-01-01 10:05:00,buy,1.5,x"


def config(quality=None, timezone="UTC", **source):
    return PipelineConfig(source=source, quality=quality or {}, timezone=timezone)


def opened(tmp_path, content, name="a.csv", settings=None):
    settings = settings or config()
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return ingest.open_records(path, name, settings, tmp_path)


def classified(tmp_path, content, name="a.csv", **options):
    settings = config(**options)
    records = opened(tmp_path, content, name, settings)
    frame = ingest.classify(records, name, HOME, settings).collect(engine="streaming")
    assert frame.height == records.physical_rows
    counted = ingest.count_days(records, name, settings)
    assert counted["rows"].sum() == records.physical_rows
    return frame


def reasons(tmp_path, content, name="a.csv", **options):
    return classified(tmp_path, content, name, **options)["reasons"].to_list()


def split(records, name, folder, settings, days=None):
    ingest.split_file(records, name, HOME, days, settings, folder)
    return parts_in(folder)


def parts_in(folder):
    """By day the valid rows, without their file, which not all parts name, and the refused ones."""

    def side(*kinds):
        files = sorted(f for kind in kinds for f in (folder / kind).rglob("*.parquet"))
        parts = {day: [pl.read_parquet(f, hive_partitioning=False) for f in files if f.parent.name == day]
                 for day in sorted({f.parent.name for f in files})}  # fmt: skip
        unnamed = ("source_file",) if "valid" in kinds else ()
        parts = {day: [f.drop(*unnamed, strict=False) for f in frames] for day, frames in parts.items()}
        return {day: pl.concat(frames).sort("source_line") for day, frames in parts.items()}

    return side("valid", "mended"), side("quarantined")


# ---- names and formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.csv", "csv"), ("a.TSV", "csv"), ("a.txt.gz", "csv.gz"), ("b.json.zst", "json.zst"), ("c.ndjson", "jsonl"),
        ("d.jsonl.gz", "jsonl.gz"), ("e.pq", "parquet"), ("x.2024-01-01.parquet", "parquet"),
    ],
)  # fmt: skip
def test_the_name_tells_the_format(name, expected):
    assert ingest.detect_format(Path(name)) == expected


@pytest.mark.parametrize("name", ["a", "a.gz", "a.xlsx", "csv"])
def test_other_names_are_refused(name):
    with pytest.raises(SourceFileError, match="no format"):
        ingest.detect_format(Path(name))


def test_header_names_become_unique_and_never_helpers():
    assert column_names(["A", "a", "", "__line", " b "], "lower") == ("a", "a_2", "column_3", "__line_2", "b")


@pytest.mark.parametrize("name", ["a[1]*?.csv", "day=2024-01-01/été ☃.csv", "{x}~$HOME.csv"])
def test_file_names_are_taken_literally(tmp_path, name):
    frame = classified(tmp_path, HEADER + ROW + "\n", name)
    assert frame["reasons"].to_list() == [[]]
    assert frame["source_file"].to_list() == [name]


# ---- CSV shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_every_kind_of_line_end(tmp_path, end, last):
    text = end.join([HEADER.strip(), ROW, ROW.replace("1,", "2,", 1)]) + (end if last else "")
    frame = classified(tmp_path, text)
    assert frame["reasons"].to_list() == [[], []]
    assert frame["user_id"].to_list() == [1, 2]
    assert frame["source_line"].to_list() == [2, 3]
    assert frame["metadata"].to_list() == ["x", "x"]
    assert frame["record"].to_list()[0] == ROW


def test_mixed_line_ends_count_alike(tmp_path):
    frame = classified(tmp_path, HEADER + f"{ROW}\r\n{ROW}\n{ROW}\r{ROW}")
    assert frame["source_line"].to_list() == [2, 3, 4, 5]
    assert frame["reasons"].to_list() == [[]] * 4


@pytest.mark.parametrize(("lane", "extra"), [("fast", ""), ("mixed", '"q"'), ("exact", "\0")])
def test_short_long_blank_and_empty_records(tmp_path, lane, extra):
    lines = [ROW + extra, "1,2", ROW + ",7", "", ",,,,,", ROW]
    records = opened(tmp_path, HEADER + "\n".join(lines) + "\n")
    assert records.lane == lane
    frame = ingest.classify(records, "a.csv", HOME, config()).collect()
    assert frame["reasons"].to_list() == [
        [],
        ["malformed_record"],
        ["malformed_record"],
        ["empty_row"],
        ["empty_row"],
        [],
    ]
    assert frame["record"].to_list() == lines
    assert frame["day"].to_list() == [dt.date(2024, 1, 1), HOME, HOME, HOME, HOME, dt.date(2024, 1, 1)]


def test_a_short_and_a_long_record_do_not_cancel_out(tmp_path):
    settings = config()
    records = opened(tmp_path, HEADER + f"{ROW}\n1,2,3,4,5\n{ROW},7\n")
    valid, refused = split(records, "a.csv", tmp_path / "out", settings)
    assert sum(f.height for f in valid.values()) == 1
    assert [f["source_line"].to_list() for f in refused.values()] == [[3, 4]]


@pytest.mark.parametrize("content", ["", "\n\n", "\r\n", HEADER, HEADER.strip(), "\ufeff" + HEADER])
@pytest.mark.parametrize("name", ["a.csv"])
def test_no_records(tmp_path, content, name):
    settings = config()
    records = opened(tmp_path, content, name)
    assert records.physical_rows == 0
    assert ingest.classify(records, name, HOME, settings).collect().height == 0
    assert split(records, name, tmp_path / "out", settings) == ({}, {})
    assert (tmp_path / "out" / "valid").is_dir()


def test_without_a_header(tmp_path):
    columns = {c: f"column_{i}" for i, c in enumerate(HEADER.strip().split(","), 1)}
    frame = classified(tmp_path, f"{ROW}\n{ROW}\n", csv={"header": False}, columns=columns)
    assert frame["source_line"].to_list() == [1, 2]
    quoted = classified(tmp_path, f'{ROW}\n{ROW[:-1]}"y"\n', "b.csv", csv={"header": False}, columns=columns)
    assert quoted["metadata"].to_list() == ["x", "y"]
    assert quoted["source_line"].to_list() == [1, 2]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path, delimiter):
    text = (HEADER + ROW + "\n").replace(",", delimiter)
    assert reasons(tmp_path, text) == [[]]
    assert reasons(tmp_path, text.replace("buy", '"buy,;|"'), "b.csv") == [[]]


@pytest.mark.parametrize("delimiter", ["§", "~", " "])
def test_any_delimiter_when_it_is_given(tmp_path, delimiter):
    text = (HEADER + ROW.replace(" ", "T") + "\n").replace(",", delimiter)
    assert reasons(tmp_path, text, csv={"delimiter": delimiter}) == [[]]


def test_a_quoted_record_over_several_lines(tmp_path):
    frame = classified(tmp_path, HEADER + '1,2024-01-01,,buy,,"a ""b"",\r\n\n c"\n' + ROW + "\n")
    assert frame["metadata"].to_list() == ['a "b",\r\n\n c', "x"]
    assert frame["source_line"].to_list() == [2, 5]
    assert frame["record"].to_list()[0] == '1,2024-01-01,,buy,,"a ""b"",\r\n\n c"'


@pytest.mark.parametrize("bad", ['1,"2024-01-01,,buy,,', '1,2024-01-01,,"buy" x,,', '"', '1,2,"3,4,5,6'])
def test_a_broken_quote_costs_one_line(tmp_path, bad):
    lines = [ROW] * 3000 + [bad] + [ROW] * 3000
    frame = classified(tmp_path, HEADER + "\n".join(lines) + "\n")
    refused = frame.filter(pl.col("reasons").list.len() > 0)
    assert refused.rows() == [] or refused.select("source_line", "record", "reasons").rows() == [
        (3002, bad, ["malformed_record"])
    ]
    assert refused.height == 1


def test_two_broken_quotes_do_not_take_what_is_between(tmp_path):
    bad = '1,"2024-01-01,,buy,,x'
    frame = classified(tmp_path, HEADER + "\n".join([bad, ROW, ROW, bad, ROW]) + "\n")
    assert frame["reasons"].list.len().to_list() == [1, 0, 0, 1, 0]


def test_a_stray_quote_inside_a_field_is_text(tmp_path):
    frame = classified(tmp_path, HEADER + '1,2024-01-01,,5" disk,,\n')
    assert frame["event_type"].to_list() == ['5" disk']
    assert frame["reasons"].to_list() == [[]]


def test_nul_and_very_long_fields(tmp_path):
    frame = classified(tmp_path, HEADER + f"1,2024-01-01,,a\0b,,\n1,2024-01-01,,b,,{'y' * 3_000_000}\n")
    assert frame["reasons"].to_list() == [[], []]
    assert frame["metadata"].str.len_bytes().to_list() == [None, 3_000_000]


# ---- encodings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("utf-8", "utf-8"), ("utf-8-sig", "utf-8"), ("cp1252", "cp1252"), ("utf-16", "utf-16-le"),
        ("utf-32", "utf-32-le"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", ["café", '"café"'])
def test_encodings_are_found(tmp_path, encoding, found, text):
    content = (HEADER + ROW.replace("buy", text) + "\n").encode(encoding)
    records = opened(tmp_path, content)
    assert records.encoding == found
    frame = ingest.classify(records, "a.csv", HOME, config()).collect()
    assert frame["event_type"].to_list() == ["café"]
    assert frame["reasons"].to_list() == [[]]


def test_bytes_that_cp1252_lacks(tmp_path):
    frame = classified(tmp_path, HEADER.encode() + b"1,2024-01-01,,a\x81\xe9,,\n")
    assert frame["event_type"].to_list() == ["a\x81é"]


def test_one_broken_byte_does_not_turn_the_file_into_cp1252(tmp_path):
    good = ROW.replace("buy", "größe").encode()
    frame = classified(tmp_path, HEADER.encode() + b"\n".join([good, good, b"1,2024-01-01,,\xff,,", good]))
    assert frame["event_type"].to_list() == ["größe", "größe", None, "größe"]
    assert frame["reasons"].to_list() == [[], [], ["malformed_record"], []]
    assert frame["record"].to_list()[2] == "1,2024-01-01,,\\xff,,"


def test_letters_far_from_the_broken_bytes_count_too(tmp_path):
    """Of a file that is looked at in blocks, one good letter in the first, hundreds in another, then broken bytes."""
    plain, good, broken = ROW.encode(), ROW.replace("buy", "größe").encode(), ROW.encode().replace(b"buy", b"\xe9")
    content = b"\n".join(
        [HEADER.encode().strip(), good, *[plain] * 10_000, *[good] * 300, *[plain] * 10_000, *[broken] * 5]
    )
    assert opened(tmp_path, content).encoding == "utf-8"
    assert opened(tmp_path, content.replace("ö".encode(), b"\xf6").replace("ß".encode(), b"\xdf")).encoding == "cp1252"


def test_a_configured_encoding_that_cannot_be(tmp_path):
    with pytest.raises(SourceFileError, match="shift_jis"):
        opened(tmp_path, HEADER.encode() + b"\x81", settings=config(csv={"encoding": "shift_jis"}))


# ---- values -----------------------------------------------------------------------------------------------------


def one(tmp_path, column, text, **options):
    row = dict(zip(HEADER.strip().split(","), ROW.split(","), strict=True)) | {column: text}
    content = HEADER + ",".join('"' + v.replace('"', '""') + '"' for v in row.values()) + "\n"
    frame = classified(tmp_path, content, **options)
    return frame[column][0], frame["reasons"][0].to_list()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7), ("+7", 7), ("-7", -7), (" 7\t", 7), ("007", 7), ("9223372036854775807", 2**63 - 1), ("2.0", None),
        ("1_000", None), ("0x10", None), ("9223372036854775808", None), ("1e3", None), ("٣", None), ("", None),
        ("NA", None), (" ", None), ("1 2", None),
    ],
)  # fmt: skip
def test_user_ids(tmp_path, text, value):
    why = [] if value is not None else ["missing_user_id" if text.strip() in ("", "NA") else "unreadable_user_id"]
    assert one(tmp_path, "user_id", text) == (value, why)


@pytest.mark.parametrize(("text", "why"), [("a-7", []), ("", ["missing_user_id"]), ("NULL", ["missing_user_id"])])
def test_user_ids_as_text(tmp_path, text, why):
    assert one(tmp_path, "user_id", text, types={"user_id": "string"}) == (text if not why else None, why)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5", 1.5), (" -1e3 ", -1000.0), (".5", 0.5), ("", None), ("NULL", None), ("inf", None), ("-Infinity", None),
        ("nan", None), ("1e400", None), ("1,5", None), ("1_0", None), ("abc", None),
    ],
)  # fmt: skip
def test_values(tmp_path, text, value):
    why = [] if value is not None or text in ("", "NULL") else ["unreadable_value"]
    assert one(tmp_path, "value", text) == (value, why)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,5", 1.5), ("1.234,5", 1234.5), ("1.234", 1234.0), ("1234", 1234.0), ("1.5", None), ("1.23,4", None)],
)
def test_decimal_comma(tmp_path, text, value):
    why = [] if value is not None else ["unreadable_value"]
    assert one(tmp_path, "value", text, csv={"decimal_comma": True}) == (value, why)


@pytest.mark.parametrize(
    ("mark", "comma", "text", "value"),
    [
        (",", False, "1,234.5", 1234.5), (",", False, "-12,345,678", -12345678.0), (",", False, "1,23", None),
        (",", False, "1234.5", 1234.5), (",", False, " 1,234 ", 1234.0), ("'", False, "1'234", 1234.0),
        (" ", True, "1 234,5", 1234.5), ("\u202f", True, "1\u202f234,5", 1234.5), (" ", True, "1.234,5", None),
    ],
)  # fmt: skip
def test_thousands(tmp_path, mark, comma, text, value):
    why = [] if value is not None else ["unreadable_value"]
    assert one(tmp_path, "value", text, csv={"decimal_comma": comma, "thousands": mark}) == (value, why)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-03-01", (2024, 3, 1)), ("2024-03-01 10:20", (2024, 3, 1, 10, 20)),
        ("2024-03-01T10:20:30", (2024, 3, 1, 10, 20, 30)), (" 2024-03-01 10:20:30 ", (2024, 3, 1, 10, 20, 30)),
        ("2024-03-01 10:20:30.5", (2024, 3, 1, 10, 20, 30, 500000)),
        ("2024-03-01T10:20:30.123456789Z", (2024, 3, 1, 10, 20, 30, 123456)),
        ("2024-03-01T10:20:30Z", (2024, 3, 1, 10, 20, 30)), ("2024-03-01T10:20:30+02:00", (2024, 3, 1, 8, 20, 30)),
        ("2024-03-01T10:20:30-0230", (2024, 3, 1, 12, 50, 30)), ("2024-03-01T10:20Z", (2024, 3, 1, 10, 20)),
        ("2024-03-01 10:20:30 UTC", (2024, 3, 1, 10, 20, 30)), ("2024-03-01 10:20:30+02", (2024, 3, 1, 8, 20, 30)),
        ("2024-02-30", None), ("2024-03-01 24:00:60", None), ("2024-03-01 10:00:60", None),
        ("2024-03-01 24:00:00", None), ("2024-03-01T10:20:60Z", None), ("01.03.2024", None), ("1709287200", None),
        ("2024-03-01T10:20:30+24:00", None), ("soon", None), ("2024-3-1", None),
    ],
)  # fmt: skip
def test_times(tmp_path, text, value):
    why = [] if value else ["unreadable_session_end"]
    assert one(tmp_path, "session_end", text) == (dt.datetime(*value) if value else None, why)


@pytest.mark.parametrize(
    ("text", "formats", "value"),
    [
        ("05/04/2024 7:08", ["%d/%m/%Y %H:%M"], (2024, 4, 5, 7, 8)),
        ("05/04/2024", ["%d/%m/%Y %H:%M", "%m/%d/%Y", "%d/%m/%Y"], (2024, 5, 4)),
        ("13/04/2024", ["%d/%m/%Y %H:%M", "%m/%d/%Y", "%d/%m/%Y"], (2024, 4, 13)),
        ("1709287200", ["epoch_s"], (2024, 3, 1, 10)), ("1709287200.25", ["epoch_s"], (2024, 3, 1, 10, 0, 0, 250000)),
        ("1709287200123", ["epoch_ms"], (2024, 3, 1, 10, 0, 0, 123000)),
        ("1709287200123456", ["epoch_us"], (2024, 3, 1, 10, 0, 0, 123456)), ("253402300800000000", ["epoch_us"], None),
        ("1709287200123456789", ["epoch_ns"], (2024, 3, 1, 10, 0, 0, 123456)),
        ("-1", ["epoch_ns"], (1969, 12, 31, 23, 59, 59, 999999)),
        ("9223372036854775807", ["epoch_s"], None), ("2024-03-01T10:00:00Z", ["epoch_s", "%d/%m/%Y"], (2024, 3, 1, 10)),
        ("01/03/2024 12:00 +0200", ["%d/%m/%Y %H:%M %z"], (2024, 3, 1, 10)),
        ("10:00:60 01/03/2024", ["%H:%M:%S %d/%m/%Y"], None),
        ("01/03/2024 12:00:60 +0200", ["%d/%m/%Y %H:%M:%S %z"], None),
    ],
)  # fmt: skip
def test_times_in_configured_formats(tmp_path, text, formats, value):
    why = [] if value else ["unreadable_session_end"]
    got = one(tmp_path, "session_end", text, timestamp_formats=formats)
    assert got == (dt.datetime(*value) if value else None, why)


@pytest.mark.parametrize(
    ("number", "dtype", "form", "microsecond"),
    [
        (1_709_287_200, pl.Int32(), "epoch_s", 0), (1_709_287_200, pl.UInt32(), "epoch_s", 0),
        (1_709_287_200, pl.UInt64(), "epoch_s", 0), (1_709_287_200.25, pl.Float64(), "epoch_s", 250_000),
        (Decimal("1709287200.25"), pl.Decimal(38, 18), "epoch_s", 250_000),
        (1_709_287_200_123, pl.UInt64(), "epoch_ms", 123_000), (1_709_287_200_123_456, pl.Int64(), "epoch_us", 123_456),
        (1_709_287_200_123_456_789, pl.UInt64(), "epoch_ns", 123_456),
        (Decimal(1_709_287_200_123_456_789), pl.Decimal(38, 0), "epoch_ns", 123_456),
    ],
)  # fmt: skip
def test_times_as_native_numbers(number, dtype, form, microsecond):
    frame = pl.LazyFrame({"when": pl.Series([number, None], dtype=dtype)})
    read = values.time(frame, "when", dtype, [form], "UTC").collect()["when"]
    assert read.to_list() == [dt.datetime(2024, 3, 1, 10, 0, 0, microsecond), None]


@pytest.mark.parametrize(
    ("formats", "hour"), [(["%Y%m%d"], (2024, 1, 31)), (["%Y%m%d", "epoch_s"], (2024, 1, 31)),
                          (["epoch_s", "%Y%m%d"], (1970, 8, 23, 6, 15, 31))],
)  # fmt: skip
def test_native_numbers_are_read_by_the_formats_in_order(formats, hour):
    frame = pl.LazyFrame({"when": pl.Series([20_240_131, None], dtype=pl.Int32())})
    read = values.time(frame, "when", pl.Int32(), formats, "UTC").collect()["when"]
    assert read.to_list() == [dt.datetime(*hour), None]


def test_times_in_the_configured_zone(tmp_path):
    for text, hour in (("2024-07-01T10:00:00Z", 12), ("2024-07-01 10:00", 10), ("2024-07-01T10:00:00-02:00", 14)):
        assert one(tmp_path, "session_end", text, timezone="Europe/Berlin")[0] == dt.datetime(2024, 7, 1, hour)
    for form, text, hour in (
        ("%Y-%m-%dT%H:%M:%SZ", "2024-07-01T10:00:00Z", 12), ("%a %b %d %H:%M UTC %Y", "Mon Jul 01 10:00 UTC 2024", 12),
        ("%d.%m.%Y %H:%M GMT", "01.07.2024 10:00 GMT", 12), ("ZUTC %d.%m.%Y %H:%M", "ZUTC 01.07.2024 10:00", 10),
    ):  # fmt: skip
        got = one(tmp_path, "session_end", text, timezone="Europe/Berlin", timestamp_formats=[form])
        assert got == (dt.datetime(2024, 7, 1, hour), [])
    frame = classified(tmp_path, HEADER + "1,2024-07-01T23:30:00Z,,a,,\n", timezone="Europe/Berlin")
    assert frame["day"].to_list() == [dt.date(2024, 7, 2)]


FORMS = (
    ((), "%Y-%m-%d %H:%M:%S"),
    (("2024-03-01",), "%Y-%m-%d"),
    (("2024-03-01 10:20",), "%Y-%m-%d %H:%M"),
    (("2024-03-01T10:20:30",), "%Y-%m-%dT%H:%M:%S"),
    (("2024-03-01 10:20:30.123",), "%Y-%m-%d %H:%M:%S.%3f"),
    (("2024-03-01 10:20:30,123456",), "%Y-%m-%d %H:%M:%S,%6f"),
    (("2024-03-01T10:20:30.1234567Z",), "%Y-%m-%dT%H:%M:%S%.fZ"),
    (("2024-03-01T10:20Z",), "%Y-%m-%dT%H:%MZ"),
    (("2024-03-01T10:20:30.123456-02:30",), "%Y-%m-%dT%H:%M:%S.%6f-02:30"),
    (("2024-03-01 10:20:30+02",), "%Y-%m-%d %H:%M:%S+02"),
    (("2024-03-01 10:20:30 UTC",), "%Y-%m-%d %H:%M:%S UTC"),
    (("2024-03-01 10:20:30.12+00", "2024-03-01 10:20:30+00"), "%Y-%m-%d %H:%M:%S%.f+00"),
    (("2024-03-01T10:20:30+00:00", "2024-03-01T10:20:30.5+01:00"), "%Y-%m-%dT%H:%M:%S%.f%#z"),
)


@pytest.mark.parametrize(("texts", "form"), FORMS)
def test_the_form_of_a_columns_first_values(texts, form):
    assert values.common_form(pl.Series(["", "NULL", *texts, None], dtype=pl.String)) == form
    read = pl.DataFrame({"x": texts}, schema={"x": pl.String}).select(values.quick_time(pl.col("x"), (), "UTC", form))
    assert read.null_count().item() == 0


PARTS = {
    "year": ("2024", "1969", "0000", "0001", "9999"), "month": ("03", "02", "12", "13", " 3", "3"),
    "day": ("01", "29", "30", "31", " 1"), "mark": (" ", "T", "t", "  "), "hour": ("10", "00", "23", "24", " 1"),
    "minute": ("20", "00", "59", "60", " 2"), "second": ("30", "", "59", "60", " 3"), "point": (".", ","),
    "fraction": ("", "5", "123", "123456", "1234567", "123456789012"),
    "offset": ("", "Z", "z", " UTC", "+00:00", "+02:00", "-0230", "+02", " +0000", "+24:00", "+14:60", "Z "),
}  # fmt: skip


def time_by_hand(parts):
    """What ISO 8601 says a text of these PARTS is, in UTC; None where it says nothing."""
    year, month, day, _, hour, minute, second, _, fraction, offset = parts
    ahead = re.fullmatch(r"(?:[Zz]|UTC|[+-](..):?(..)?)?", offset.strip()).groups(default="0")
    hours, minutes = map(int, ahead)
    behind = dt.timedelta(hours=hours, minutes=minutes) * (1 if "-" in offset else -1)
    try:
        wall = dt.datetime(
            *map(int, (year, month, day, hour, minute, second or 0, (second and fraction).ljust(6, "0")[:6]))
        )
        return wall + behind if hours < 24 and minutes < 60 else None
    except (ValueError, OverflowError):
        return None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*map(st.sampled_from, PARTS.values())), min_size=1, max_size=40))
def test_which_form_is_most_common_changes_nothing(parts):
    texts = []
    for year, month, day, mark, hour, minute, second, point, fraction, offset in parts:
        seconds = f":{second}{point + fraction if fraction else ''}" if second else ""
        texts.append(f"{year}-{month}-{day}{mark}{hour}:{minute}{seconds}{offset}")
    frame, results = pl.LazyFrame({"x": texts}), []
    for _, form in FORMS:
        read = frame.with_columns(quick=values.quick_time(pl.col("x"), (), "UTC", form))
        quick, result = values.time(read, "x", pl.String(), (), "UTC", form).select("quick", "x").collect()
        assert all(a is None or a == b for a, b in zip(quick, result, strict=True)), form
        results.append(result.to_list())
    assert all(result == results[0] for result in results)
    for of_text, found, text in zip(parts, results[0], texts, strict=True):
        if re.match(r"(?!0000)\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(?!:? )", text):  # elsewhere the engine's own reading counts
            assert found == time_by_hand(of_text), text


def test_a_number_that_means_no_value(tmp_path):
    assert one(tmp_path, "value", "-999", null_values=["", "-999"]) == (None, [])
    assert one(tmp_path, "user_id", "-999", null_values=["-999"]) == (None, ["missing_user_id"])


def test_every_reason_that_holds_is_listed(tmp_path):
    assert reasons(tmp_path, HEADER + "x,zz,zz,,zz,\n") == [
        [
            "missing_event_type", "unreadable_user_id", "unreadable_session_start", "unreadable_session_end",
            "unreadable_value",
        ]
    ]  # fmt: skip


def test_quality_rules(tmp_path):
    text = HEADER + "1,2023-12-31,,buy,5,\n1,2024-01-01,,sell,11,\n1,2024-01-01,,buy,,\n1,2024-01-01,,buy,-1,\n"
    rules = {"value_min": 0, "value_max": 10, "required_event_types": ["buy"]}
    frame = classified(tmp_path, text, quality=rules)
    assert frame["reasons"].to_list() == [
        ["before_start_date"], ["value_out_of_range", "unknown_event_type"], [], ["value_out_of_range"],
    ]  # fmt: skip
    assert frame["day"].to_list()[0] == HOME


def test_required_can_be_anything_or_nothing(tmp_path):
    text = HEADER + ",2024-01-01,,,,\n"
    assert reasons(tmp_path, text, required=[]) == [[]]
    assert reasons(tmp_path, text, required=["session_end", "value", "metadata"]) == [
        ["missing_session_end", "missing_value", "missing_metadata"]
    ]


# ---- mapping ----------------------------------------------------------------------------------------------------


def test_columns_from_everywhere(tmp_path):
    header = "CustomerID,When,Quantity,UnitPrice,Country\n"
    text = header + "A1,2024-01-01,2,1.5,UK\nA2,2024-01-01,x,1,UK\nA3,2024-01-01,,1,UK\n"
    columns = {
        "user_id": "customerid", "session_start": "When", "session_end": None, "event_type": {"path": r"/(\w+)_"},
        "value": {"sql": "CAST(Quantity AS DOUBLE) * CAST(UnitPrice AS DOUBLE)"}, "metadata": {"value": "shop"},
    }  # fmt: skip
    frame = classified(tmp_path, text, "in/web_1.csv", columns=columns, types={"user_id": "string"})
    assert frame["value"].to_list() == [3.0, None, None]
    assert frame["reasons"].to_list() == [[], ["unreadable_value"], []]
    assert frame["event_type"].to_list() == ["web"] * 3
    assert frame["metadata"].to_list() == ["shop"] * 3


@pytest.mark.parametrize(
    ("sql", "values"),
    [
        ("EXTRACT(DAY FROM DATE(metadata))", [5.0, None, None, None]),
        ("EXTRACT(DAY FROM STRPTIME(metadata, '%d/%m/%Y'))", [None, 3.0, None, None]),
        ("EXTRACT(HOUR FROM TIME(metadata))", [None, None, 17.0, None]),
        ("CASE WHEN metadata LIKE '%/%' THEN EXTRACT(DAY FROM STRPTIME(metadata, '%d/%m/%Y')) ELSE 1 END",
         [1.0, 3.0, 1.0, 1.0]),
    ],
)  # fmt: skip
def test_sql_reads_dates_and_times_row_by_row(tmp_path, sql, values):
    """What it cannot read costs its row, and is the same whichever text the engine sees first."""
    texts = ["2024-04-05", "03/04/2024", "17:30:00", "soon"]
    for order in (range(4), range(3, -1, -1)):
        rows = "".join(f"1,2024-01-01,,buy,,{texts[n]}\n" for n in order)
        frame = classified(tmp_path, HEADER + rows, columns={"value": {"sql": sql}})
        assert frame["value"].to_list() == [values[n] for n in order]
        failed = [[] if "CASE" in sql or values[n] is not None else ["unreadable_value"] for n in order]
        assert [r for r, n in zip(frame["reasons"].to_list(), order, strict=True)] == failed


@pytest.mark.parametrize(
    "sql",
    [
        "CAST(nope AS DOUBLE)", "value +", "sum(TRY_CAST(value AS DOUBLE))", "value::DOUBLE", "f(value)",
        "UNNEST(STRING_TO_ARRAY(value, '.'))", "NOW()", "CASE WHEN value = '1' THEN CURRENT_DATE END",
        "Current_Timestamp", "current_time", "LOCALTIME", "LOCALTIMESTAMP",
        "EXTRACT(DAY FROM CAST(metadata AS DATE))", "EXTRACT(DAY FROM TIMESTAMP(metadata))", "DATE('2024-13-01')",
        f"CASE {' '.join(f'WHEN value = {n} THEN EXTRACT(DAY FROM DATE(metadata))' for n in range(200))} END",
    ],
)  # fmt: skip
def test_sql_that_does_not_fit_names_the_key(tmp_path, sql):
    settings = config(columns={"value": {"sql": sql}})
    with pytest.raises(ConfigurationError) as caught:
        ingest.classify(opened(tmp_path, HEADER + ROW + "\n", settings=settings), "a.csv", HOME, settings)
    assert caught.value.key == "source.columns.value"


def test_sql_over_a_column_that_is_not_there_names_the_nearest(tmp_path):
    settings = config(columns={"value": {"sql": "CAST(valeu AS DOUBLE)"}})
    with pytest.raises(ConfigurationError, match=r"no column valeu \(nearest: value\)"):
        ingest.classify(opened(tmp_path, HEADER + ROW + "\n", settings=settings), "a.csv", HOME, settings)


def test_sql_may_name_what_it_may_not_ask(tmp_path):
    sql = """CASE WHEN metadata = 'NOW()' THEN 'Explode' || "now" || "current_date" END"""
    text = "user_id,session_start,event_type,now,current_date,metadata\n1,2024-01-01,a,b,c,NOW()\n"
    assert classified(tmp_path, text, columns={"metadata": {"sql": sql}})["metadata"].to_list() == ["Explodebc"]


def test_casts_in_quotes_stay():
    assert lenient("cast (a AS INT) || 'CAST(' || \"CAST(\"") == "TRY_CAST(a AS INT) || 'CAST(' || \"CAST(\""


def test_missing_columns_are_named_with_the_nearest(tmp_path):
    with pytest.raises(MissingColumnsError, match="user_id -> userid"):
        opened(tmp_path, HEADER.replace("user_id", "userid") + ROW + "\n")
    assert reasons(tmp_path, "user_id,session_start,event_type\n1,2024-01-01,a\n", "b.csv") == [[]]


def test_extra_columns_are_kept_when_asked_for(tmp_path):
    text = HEADER.replace("metadata", "Extra,source_file") + ROW + ",mine\n"
    settings = config(extra_columns="keep")
    frame = classified(tmp_path, text, extra_columns="keep")
    assert frame.columns[6:10] == ["extra", "source_file_2", "source_file", "source_line"]
    assert frame.select("extra", "source_file_2").rows() == [("x", "mine")]
    valid, _ = split(opened(tmp_path, text), "a.csv", tmp_path / "out", settings)
    tables()["raw_events"].conform(next(iter(valid.values())).lazy().with_columns(source_file=pl.lit("a.csv")))


# ---- JSON -------------------------------------------------------------------------------------------------------

EVENT = '{"user_id":1,"session_start":"2024-01-01","event_type":"a","value":1.50,"metadata":{"b":[1.0,null,"é"]}}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", f"{EVENT}\n\n{EVENT}\r\n"), ("a.json", f"\ufeff{EVENT}\n{EVENT}"),
        ("a.json", f"[{EVENT},\n\n{EVENT}]"),
        ("a.json", json.dumps([json.loads(EVENT)] * 2, indent=1)), ("a.json", EVENT + EVENT),
    ],
)  # fmt: skip
def test_json_lines_and_arrays(tmp_path, name, content):
    frame = classified(tmp_path, content, name)
    assert frame["reasons"].to_list() == [[], []]
    assert frame["value"].to_list() == [1.5, 1.5]
    assert frame["metadata"].to_list() == ['{"b":[1.0,null,"é"]}'] * 2


def test_json_one_pretty_object(tmp_path):
    assert reasons(tmp_path, json.dumps(json.loads(EVENT), indent=2), "a.json") == [[]]


@pytest.mark.parametrize(
    "bad",
    ["{", "[1]", "5", '{"user_id":NaN}', '{"user_id":1} {"user_id":2}', '"x"', "null", "[" * 100_000, '{"a":"\xff"}'],
)
def test_a_bad_json_line_is_one_malformed_record(tmp_path, bad):
    frame = classified(tmp_path, f"{EVENT}\n{bad}\n{EVENT}\n".encode("latin-1" if "\xff" in bad else "utf-8")
                       .replace(b"\xe9", "é".encode()), "a.jsonl")  # fmt: skip
    assert frame["reasons"].to_list() == [[], ["malformed_record"], []]
    assert frame["source_line"].to_list() == [1, 2, 3]


@pytest.mark.parametrize(
    "content",
    [
        f"[{EVENT},\n{EVENT}",
        f"[{EVENT}] x",
        f"[{EVENT},]",
        "5",
        '"x"',
        f"[{EVENT} {EVENT}]",
        "{",
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_broken_array_is_refused_whole(tmp_path, content):
    with pytest.raises(SourceFileError, match="not valid JSON") as caught:
        opened(tmp_path, content.encode("latin-1") if content == "\xff" else content, "a.json")
    assert caught.value.line is not None


def test_array_elements_that_are_no_objects(tmp_path):
    frame = classified(tmp_path, f"[{EVENT},\n1, [2],\n" + '{"user_id": Infinity}, {}]', "a.json")
    assert frame["reasons"].to_list() == [[], *[["malformed_record"]] * 3, ["empty_row"]]
    assert frame["source_line"].to_list() == [1, 2, 2, 3, 3]


def test_json_nested_paths_and_new_keys(tmp_path):
    lines = [{"actor": {"id": 7}, "at": "2024-01-01", "kind": "a"}, {"at": "2024-01-01", "kind": True, "new": [1]}]
    columns = {"user_id": "actor.id", "session_start": "at", "event_type": "kind"}
    content = "\n".join(map(json.dumps, lines))
    frame = classified(tmp_path, content, "a.jsonl", columns=columns, extra_columns="keep")
    assert frame["user_id"].to_list() == [7, None]
    assert frame["event_type"].to_list() == ["a", "true"]
    assert frame["new"].to_list() == [None, "[1]"]
    assert frame["reasons"].to_list() == [[], ["missing_user_id"]]


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("a;b;c\n1;2;3\n", "parted by ';'"),
        ("<html>\n<body>Not found</body>\n", "a web page"),
        ("a|b\n1|2\n", "parted by '|'"),
    ],
)
def test_a_header_of_one_column_tells_what_the_file_is(tmp_path, content, hint):
    with pytest.raises(MissingColumnsError) as caught:
        opened(tmp_path, content, settings=config(csv={"delimiter": ","}))
    assert hint in caught.value.hint


def test_json_without_a_required_key(tmp_path):
    with pytest.raises(MissingColumnsError):
        opened(tmp_path, '{"user_id":1,"event_type":"a"}\n', "a.jsonl")
    assert reasons(tmp_path, "x\n", "b.jsonl") == [["malformed_record"]]
    assert (
        reasons(tmp_path, "", "c.jsonl") == reasons(tmp_path, "[]", "c.json") == reasons(tmp_path, " ", "d.json") == []
    )


def test_half_a_character_in_json(tmp_path):
    frame = classified(tmp_path, EVENT.replace('"a"', '"\\ud800"') + "\n", "a.jsonl")
    assert frame["event_type"].to_list() == ["\\ud800"]


# ---- Parquet and compression ------------------------------------------------------------------------------------


def parquet(tmp_path, frame, name="a.parquet"):
    frame.write_parquet(tmp_path / name)
    return (tmp_path / name).read_bytes()


def test_parquet_with_its_own_types(tmp_path):
    frame = pl.DataFrame(
        {
            "User_ID": pl.Series([1, 2**63, None, 4], dtype=pl.UInt64),
            "session_start": pl.Series([dt.datetime(2024, 1, 1, 23, 30)] * 4, dtype=pl.Datetime("ns", "UTC")),
            "session_end": [dt.date(2024, 1, 2)] * 4,
            "event_type": pl.Series(["a", "b", None, "a"], dtype=pl.Categorical),
            "value": [1.5, float("nan"), float("inf"), None],
            "metadata": [{"x": 1}, {"x": None}, None, {"x": 2}],
        }
    )  # fmt: skip
    got = classified(tmp_path, parquet(tmp_path, frame), "a.parquet", timezone="Europe/Berlin")
    assert got["session_start"].to_list() == [dt.datetime(2024, 1, 2, 0, 30)] * 4
    assert got["session_end"].to_list() == [dt.datetime(2024, 1, 2)] * 4
    assert got["user_id"].to_list() == [1, None, None, 4]
    assert got["metadata"].to_list() == ['{"x":1}', '{"x":null}', None, '{"x":2}']
    assert got["reasons"].to_list() == [
        [],
        ["unreadable_user_id"],
        ["missing_user_id", "missing_event_type", "unreadable_value"],
        [],
    ]
    assert got["source_line"].to_list() == [1, 2, 3, 4]
    assert json.loads(got["record"][0])["user_id"] == 1
    assert [json.loads(record)["value"] for record in got["record"]] == [1.5, None, "inf", None]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1.0, 2.5, None], [1, None, None]),
        ([1.0, 2.5, float("nan")], [1, None, None]),
        (["1", "x", ""], [1, None, None]),
    ],
)
def test_parquet_user_ids_of_other_types(tmp_path, ids, expected):
    frame = pl.DataFrame({"user_id": ids, "session_start": [1704103200] * 3, "event_type": ["a"] * 3})
    got = classified(tmp_path, parquet(tmp_path, frame), "a.parquet", timestamp_formats=["epoch_s"])
    assert got["user_id"].to_list() == expected
    assert got["reasons"].to_list() == [[], ["unreadable_user_id"], ["missing_user_id"]]
    assert got["session_start"].to_list() == [dt.datetime(2024, 1, 1, 10)] * 3


@pytest.mark.parametrize(
    ("sql", "numbers", "dtype", "value"),
    [
        ("n * n", 100, pl.Int8(), 10_000), ("n + 1", 127, pl.Int8(), 128), ("-n", 200, pl.UInt8(), -200),
        ("n * n", 300, pl.Int16(), 90_000), ("n * 1000", 2_147_483_647, pl.Int32(), 2_147_483_647_000),
        ("n - 9", 5, pl.UInt32(), -4), ("n - 30", 10, pl.UInt64(), -20), ("n / 4", 10, pl.UInt64(), 2.5),
        ("n", 2**64 - 1, pl.UInt64(), 2.0**64), ("CAST(n AS DOUBLE) / 4", 10, pl.Int64(), 2.5),
    ],
)  # fmt: skip
def test_sql_over_native_integers_does_not_wrap_around(tmp_path, sql, numbers, dtype, value):
    frame = pl.DataFrame({"user_id": [1], "session_start": ["2024-03-01"], "event_type": ["a"]}).with_columns(
        pl.Series("n", [numbers], dtype=dtype)
    )
    got = classified(tmp_path, parquet(tmp_path, frame), "a.parquet", columns={"value": {"sql": sql}})
    assert (got["value"].to_list(), got["reasons"].to_list()) == ([value], [[]])


def test_a_comma_in_csv_numbers_changes_none_in_json(tmp_path):
    line = '{"user_id": 1, "session_start": "2024-03-01", "event_type": "a", "value": %s}\n'
    content = "".join(line % number for number in ("1.234", "1.5", "12", '"1,5"'))
    for text, name in ((content, "a.jsonl"), ("[" + ",".join(content.splitlines()) + "]", "a.json")):
        got = classified(tmp_path, text, name, csv={"decimal_comma": True})
        assert got["value"].to_list() == [1.234, 1.5, 12.0, None]
        assert got["reasons"].to_list() == [[], [], [], ["unreadable_value"]]


def test_parquet_types_that_are_made_of_others(tmp_path):
    """UUIDs are 16 bytes to the engine, and JSON is a type of its own."""
    user = "00112233-4455-6677-8899-aabbccddeeff"
    notes = pa.array(['{"a": 1}', None], pa.json_(pa.string()))
    table = pa.table({
        "user_id": pa.array([bytes.fromhex(user.replace("-", "")), None], pa.uuid()),
        "session_start": pa.array([dt.datetime(2024, 3, 1)] * 2),
        "event_type": ["a", "b"], "metadata": notes, "more": pa.StructArray.from_arrays([notes], names=["notes"]),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    got = classified(tmp_path, (tmp_path / "a.parquet").read_bytes(), "a.parquet", types={"user_id": "string"})
    assert got["user_id"].to_list() == [user, None]
    assert got["metadata"].to_list() == ['{"a": 1}', None]
    records = [json.loads(text) for text in got["record"]]
    assert [(r["user_id"], r["metadata"], r["more"]) for r in records] == [
        (user, '{"a": 1}', {"notes": '{"a": 1}'}),
        (None, None, {"notes": None}),
    ]


def test_a_parquet_row_of_nulls_is_empty(tmp_path):
    frame = pl.DataFrame({"user_id": [None, 1], "session_start": [None, "2024-01-01"], "event_type": [None, "a"]})
    assert reasons(tmp_path, parquet(tmp_path, frame), "a.parquet") == [["empty_row"], []]


@pytest.mark.parametrize("cut", [0.3, 0.99])
def test_a_cut_parquet_file_is_refused(tmp_path, cut):
    content = parquet(tmp_path, pl.DataFrame({"user_id": range(1000)}))
    with pytest.raises(SourceFileError, match="Parquet"):
        opened(tmp_path, content[: int(len(content) * cut)], "b.parquet")


def packed(content, codec):
    if codec == "gzip":
        return gzip.compress(content)
    return pa.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize(("codec", "suffix"), [("gzip", ".gz"), ("zstd", ".zst"), ("gzip", "")])
def test_compressed_files(tmp_path, codec, suffix):
    records = opened(tmp_path, packed((HEADER + ROW + "\n").encode(), codec), "a.csv" + suffix)
    assert records.format == ("csv.gz" if codec == "gzip" else "csv.zst")
    assert records.physical_rows == 1


@pytest.mark.parametrize(("codec", "suffix"), [("gzip", ".gz"), ("zstd", ".zst")])
@pytest.mark.parametrize("damage", ["cut", "flip", "plain", "tail"])
def test_damaged_compressed_files_are_refused(tmp_path, codec, suffix, damage):
    plain = (HEADER + "".join(f"{i},2024-01-01,,e{i * 7919 % 1000},,\n" for i in range(5000))).encode()
    content = packed(plain, codec)
    middle = len(content) // 2
    content = {
        "cut": content[:-20], "flip": content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :],
        "plain": plain, "tail": content + b"garbage",
    }[damage]  # fmt: skip
    if damage == "flip" and codec == "zstd":
        pytest.skip("pa.compress writes no checksum")
    with pytest.raises(SourceFileError, match="cannot be decompressed"):
        opened(tmp_path, content, "a.csv" + suffix)


# ---- splitting --------------------------------------------------------------------------------------------------


def many(days=5, rows=40_000):
    lines = [f"{i},2024-01-0{1 + i % days} 10:00:00,,{'a' if i % 97 else ''},{i}.5,m{i}" for i in range(rows)]
    return HEADER + "\n".join(lines) + "\n"


@pytest.mark.parametrize("quote", ["", '"'])
def test_split_keeps_file_order_and_every_row(tmp_path, quote):
    settings = config()
    records = opened(tmp_path, many().replace("m7\n", f"{quote}m7{quote}\n"))
    valid, refused = split(records, "a.csv", tmp_path / "out", settings)
    assert sorted(valid) == [f"__day=2024-01-0{d}" for d in range(1, 6)]
    assert sum(f.height for f in (*valid.values(), *refused.values())) == records.physical_rows == 40_000
    for frame in (*valid.values(), *refused.values()):
        assert frame["source_line"].is_sorted()
    for frame in valid.values():
        assert frame.schema == pl.Schema({n: t for n, t in tables()["raw_events"].schema.items() if n != "source_file"})
    for frame in refused.values():
        assert frame.schema == QUARANTINED_EVENTS.schema
    counted = ingest.count_days(records, "a.csv", settings)
    by_day = {f"__day={d}": valid[f"__day={d}"].height + refused[f"__day={d}"].height for d in counted["day"].to_list()}
    assert by_day == {f"__day={d}": n for d, n in counted.rows()}


def test_split_writes_the_same_bytes_twice_and_only_the_days_asked_for(tmp_path):
    settings = config()
    records = opened(tmp_path, many())
    everything = []
    for run in ("one", "two"):
        split(records, "a.csv", tmp_path / run, settings, [dt.date(2024, 1, 2), dt.date(2024, 1, 3)])
        folder = tmp_path / run
        everything.append({f.relative_to(folder): f.read_bytes() for f in folder.rglob("*.parquet")})
    assert everything[0] == everything[1]
    assert {p.parent.name for p in everything[0]} == {"__day=2024-01-02", "__day=2024-01-03"}


def test_the_scratch_folder_is_the_only_place_written_to(tmp_path):
    source, scratch = tmp_path / "raw", tmp_path / "scratch"
    source.mkdir()
    scratch.mkdir()
    (source / "a.csv").write_text(HEADER + ROW.replace("x", "\0"))
    ingest.open_records(source / "a.csv", "a.csv", config(), scratch)
    assert [p.name for p in source.iterdir()] == ["a.csv"]
    assert list(scratch.rglob("*.parquet"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SourceFileError, match="cannot be opened"):
        ingest.open_records(tmp_path / "a.csv", "a.csv", config(), tmp_path)


# ---- the lanes agree --------------------------------------------------------------------------------------------

CELL = st.sampled_from(["", "1", " 2 ", "NA", "x", "é", "2024-01-01", "2024-01-01T10:00:00Z", "1.5", "a b", "0", "☃☃"])
ODD = st.sampled_from(
    ['"a"', '""', '"a ""b"", c"', '"', 'a"b', '"a" b', ' "a"', '"2024-01-01"', "\ufffd", "\udcff", '"\n"']
)
LINE = st.lists(CELL, min_size=0, max_size=4).map(",".join)
ODD_LINE = st.lists(CELL | ODD, min_size=0, max_size=4).map(",".join)
ABOVE = st.sampled_from(["", "Report of May\n", "a,b,c,d\n\nx\n", "x\n\n\n"])


def _rows(records):
    """What the lanes must agree on: everything of a whole record, place and text and judgement of the others."""
    frame = ingest.classify(records, "a.csv", HOME, config()).collect(engine="streaming")
    assert frame.height == records.physical_rows
    whole = ~pl.col("reasons").list.contains("malformed_record")
    return frame.select("source_line", "record", "reasons", "day"), frame.filter(whole)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(LINE, max_size=12) | st.lists(ODD_LINE, max_size=12), st.sampled_from(["\n", "\r\n"]), st.booleans(), ABOVE
)
@example(["", ""], "\n", True, "")
@example(['"a', "b", 'c",2,3'], "\n", True, "")
def test_both_lanes_agree(tmp_path_factory, lines, end, last, above):
    tmp_path = tmp_path_factory.mktemp("lanes")
    text = above + end.join(["user_id,session_start,event_type", *lines]) + (end if last else "")
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    settings_ = config(csv={"delimiter": ",", "encoding": "utf-8"})
    fast = delimited.open_csv(path, "a.csv", settings_, tmp_path, "csv")
    shape = exact.Shape(",", text.count("\n") + (not text.endswith("\n")), above.rstrip("\n").count("\n") + bool(above))
    frame, columns, rows = exact.read_all(path, "a.csv", settings_, tmp_path, shape)
    slow = Records(frame, columns, rows, "csv", "utf-8", "exact", "asked for")
    assert fast.lane in ("fast", "mixed")
    assert fast.columns == slow.columns
    for one, other in zip(_rows(fast), _rows(slow), strict=True):
        assert_frame_equal(one, other)


SOUND = "{},2024-01-02 10:00:00,2024-01-02 11:00:00,buy,1.5,x"
FIELDS = (
    ["1", " 1", "01", "1.0", "", "NA", "9223372036854775808", "x"],
    [
        "2024-01-02 10:00:00",
        "2024-01-03T10:00:00Z",
        " 2024-01-02 10:00:00",
        "2024-01-02 10:00:60",
        "",
        "NULL",
        "1999-01-01",
    ],
    ["2024-01-02 11:00:00", "", "NA", "soon", "2024-01-02"],
    ["buy", "", " NA ", "ü", " buy "],
    ["1.5", "", "inf", "nan", "NA", "-7", " 2 ", "1e999", "1e5"],
    ["x", "", "NA"],
)
RULES = (
    {},
    {"types": {"user_id": "string"}},
    {"timestamp_formats": ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S"]},
    {"required": ["user_id", "session_start", "event_type", "value", "metadata"]},
    {"null_values": ["NA"]},
    {"required": ["user_id"]},
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([3, 10_000]),
    st.lists(st.tuples(*map(st.sampled_from, FIELDS)), max_size=60),
    st.sampled_from(RULES),
)
@example(10_000, [("1", "", "", "buy", "1.5", "x")], {"required": ["user_id"]})  # counts on the home day
def test_a_first_look_comes_to_the_same_as_every_rule(tmp_path_factory, sound, odd, source):
    """A file of mostly sound rows is split by the short rules and, for what those leave, by all; one by one, by all."""
    tmp_path = tmp_path_factory.mktemp("quick")
    lines = [SOUND.format(n) for n in range(sound)]
    for number, fields in enumerate(odd):
        lines.insert(number * 150, ",".join(fields))
    settings_ = config(LOOK, **source)
    records = opened(tmp_path, HEADER + "\n".join(lines), settings=settings_)
    assert_split_as_judged(records, "a.csv", tmp_path / "out", settings_)


TYPED = (
    [1, None, -1, 2**63 - 1],
    [dt.datetime(2024, 1, 2, 10), None, dt.datetime(2024, 1, 3, 0, 0, 0, 1), dt.datetime(1999, 1, 1)],
    [dt.datetime(2024, 1, 2, 11, tzinfo=dt.UTC), None, dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, dt.UTC)],
    ["buy", None, "", " NA ", "ü"],
    [1.5, None, float("inf"), float("nan"), -7.0, 1e5],
    ["x", None, ""],
)
KINDS = {
    "user_id": [pl.Int64, pl.UInt64, pl.Float64, pl.String],
    "session_start": [pl.Datetime("us"), pl.Datetime("ns"), pl.Date, pl.String],
    "session_end": [pl.Datetime("us", "UTC"), pl.Datetime("ms", "Asia/Tokyo"), pl.Date],
    "event_type": [pl.String, pl.Categorical],
    "value": [pl.Float64, pl.Float32, pl.Int64],
    "metadata": [pl.String],
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([3, 2_000]),
    st.lists(st.tuples(*map(st.sampled_from, TYPED)), max_size=40),
    st.tuples(*map(st.sampled_from, KINDS.values())),
    st.sampled_from(RULES),
)
def test_a_first_look_at_typed_columns_does_too(tmp_path_factory, sound, odd, kinds, source):
    """The same of Parquet, whatever types its columns have."""
    tmp_path = tmp_path_factory.mktemp("typed")
    rows = [(1, TYPED[1][0], TYPED[2][0], "buy", 1.5, "x")] * sound
    for number, fields in enumerate(odd):
        rows.insert(number * 50, fields)
    plain = pl.DataFrame(rows, schema={name: of_name[0] for name, of_name in KINDS.items()}, orient="row")
    typed = plain.select(pl.col(n).cast(k, strict=False) for n, k in zip(KINDS, kinds, strict=True))
    typed.write_parquet(tmp_path / "a.parquet")
    settings_ = config(LOOK, **source)
    records = ingest.open_records(tmp_path / "a.parquet", "a.parquet", settings_, tmp_path)
    assert_split_as_judged(records, "a.parquet", tmp_path / "out", settings_)


LOOK = {"value_min": -5, "value_max": 100, "required_event_types": ["buy", "ü"]}


def assert_split_as_judged(records, name, out, settings_):
    """The split file holds what every rule says of every record; so it does where its days were not known before."""
    judged = ingest.classify(records, name, HOME, settings_).collect()
    assert_as_judged(*split(records, name, out / "known", settings_), judged)
    counted = ingest.split_unseen(records, name, settings_, out / "unseen")
    if counted is None:
        assert not (out / "unseen").exists()
        return
    assert_frame_equal(counted, ingest.count_days(records, name, settings_))
    ingest.finish_split(records, name, HOME, None, settings_, out / "unseen")
    assert_as_judged(*parts_in(out / "unseen"), judged)


def assert_as_judged(valid, refused, judged):
    for side, is_valid in ((valid, True), (refused, False)):
        of_days = judged.filter((pl.col("reasons").list.len() == 0) == is_valid).group_by("day").len()
        assert {day: f.height for day, f in side.items()} == {f"__day={day}": n for day, n in of_days.iter_rows()}
    if not valid:
        assert judged.filter(pl.col("reasons").list.len() == 0).is_empty()
        return
    names = pl.concat(valid.values()).columns
    assert_frame_equal(
        pl.concat(valid.values()).sort("source_line"),
        judged.filter(pl.col("reasons").list.len() == 0).sort("source_line").select(names),
    )
    seen = (
        pl.concat(refused.values()).sort("source_line") if refused else judged.head(0).select(QUARANTINED_EVENTS.names)
    )
    assert_frame_equal(seen, judged.filter(pl.col("reasons").list.len() > 0).sort("source_line").select(seen.columns))


def test_a_first_look_at_json_with_keys_that_nothing_reads(tmp_path):
    lines = (f'{{"user_id":{n},"session_start":"2024-01-02","event_type":"buy","other":{n}}}' for n in range(10_000))
    valid, refused = split(opened(tmp_path, "\n".join(lines), "a.jsonl"), "a.jsonl", tmp_path / "out", config())
    assert (sum(f.height for f in valid.values()), refused) == (10_000, {})


PIECE = st.sampled_from(['"', '""', ",", "\n", "\r\n", "\r", "a", "1", "é", "\0", " "])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECE, max_size=60).map("".join))
def test_no_lane_loses_a_character(tmp_path_factory, body):
    """The records, put together again, are the file; so no line is lost and none is taken twice."""
    tmp_path = tmp_path_factory.mktemp("exact")
    path = tmp_path / "a.csv"
    path.write_bytes(b"user_id,session_start,event_type\n" + body.encode())
    records = ingest.open_records(path, "a.csv", config(csv={"delimiter": ","}), tmp_path)
    rows = records.frame.with_columns(records.record.alias("__record")).sort("__line").collect()
    assert rows.height == records.physical_rows
    bare = [piece for piece in "".join(rows["__record"].to_list()) if piece not in "\r\n"]
    assert bare == [c for c in body if c not in "\r\n"]
    assert rows["__line"].is_unique().all()


# ---- what others wrote ------------------------------------------------------------------------------------------


def nasty(*endings):
    return sorted(p for p in NASTY.rglob("*") if p.is_file() and p.name.lower().endswith(endings))


def _permissive(columns):
    free = [c for c in columns if c.strip() and "." not in c and "\0" not in c] or [None]
    constant = {"value": "x"}
    return {
        "user_id": free[0],
        "session_start": free[-1],
        "session_end": None,
        "event_type": constant,
        "value": None,
    }


ABSENT = pytest.mark.skipif(not NASTY.is_dir(), reason=f"{NASTY} is absent")
READABLE = (".csv", ".txt", ".tsv", ".json", ".jsonl", ".ndjson", ".csv.gz", ".json.gz", ".zst", ".parquet")
TOO_LARGE = "large_string_map.brotli.parquet"  # 2 GiB in one cell
SCALARS = ("lonely", "string_space", "string_empty")  # valid JSON, but no record
READ_ALL_THE_SAME = ("ARROW-GH-43605",)  # a bit width of 0 for a dictionary of one value; every reader takes it


@ABSENT
@pytest.mark.parametrize(
    "path", [p for p in nasty(*READABLE) if p.name != TOO_LARGE], ids=lambda p: p.relative_to(NASTY).as_posix()
)
def test_nasty_files_conserve_their_rows(tmp_path, path):
    relative = path.relative_to(NASTY).as_posix()
    plain = config(required=[], types={"user_id": "string"})
    try:
        columns = ingest.open_records(path, relative, plain, tmp_path).columns
        wide = config(required=[], types={"user_id": "string"}, columns=_permissive(columns), extra_columns="keep")
        records = ingest.open_records(path, relative, wide, tmp_path)
        counted = ingest.count_days(records, relative, wide)
        valid, refused = split(records, relative, tmp_path / "out", wide)
    except SourceFileError:
        assert not path.name.startswith("y_") or any(part in path.name for part in SCALARS)
        return
    assert "bad_data" not in relative or path.stem in READ_ALL_THE_SAME
    assert sum(f.height for f in (*valid.values(), *refused.values())) == records.physical_rows
    assert counted["rows"].sum() == records.physical_rows
    if path.name.startswith("n_"):
        assert not valid


@ABSENT
@pytest.mark.parametrize(
    "path", [p for p in nasty(".json") if p.name.startswith(("y_object", "y_structure"))], ids=lambda p: p.stem
)
def test_json_objects_read_as_json_says(tmp_path, path):
    expected = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(expected, dict) or not any(v not in (None, "") for v in expected.values()):
        pytest.skip("no object with something in it")
    settings_ = config(required=[], column_naming="none", extra_columns="keep")
    records = ingest.open_records(path, path.name, settings_, tmp_path)
    (row,) = records.frame.collect().to_dicts()
    assert row["__malformed"] is row["__empty"] is False
    wanted = {key.strip() or "column": value for key, value in expected.items()}
    for key, value in wanted.items():  # numbers are kept as they were written
        assert (row[key] if value is None or isinstance(value, str) else json.loads(row[key])) == value


@ABSENT
@pytest.mark.parametrize("path", [p for p in nasty(".json") if p.parent.name == "json"], ids=lambda p: p.stem)
def test_csv_files_read_as_their_json_says(tmp_path, path):
    source = next((p for p in path.parent.parent.glob(f"csv*/{path.stem}.csv")), None)
    if source is None or path.parent.name != "json" or path.stem == "location_coordinates":
        pytest.skip("no CSV file beside it, or bytes in no encoding")
    expected = json.loads(path.read_text())
    tables_ = config(required=[], column_naming="none", csv={"delimiter": ","})
    records = ingest.open_records(source, source.name, tables_, tmp_path)
    rows = [list(r) for r in records.frame.select(records.columns).collect().rows()]
    if expected and isinstance(expected[0], list):
        rows = [list(records.columns), *rows]
    else:
        expected = [list(r.values()) for r in expected]
    assert rows == expected or path.stem in ("all-empty", "empty-one-column")  # blank lines have no fields


@pytest.mark.parametrize("extra_columns", ["keep", "drop"])
@pytest.mark.parametrize("mapped", ["at", "day"])
def test_a_column_called_day_is_one_like_others(tmp_path, extra_columns, mapped):
    """Of a file with a row that is refused, all rules are asked; nothing of ours may stand where a column did."""
    other = {"at": "day", "day": "at"}[mapped]
    rows = [f"{user},2024-01-02 10:00:00,view,1,Tue" for user in (1, 2, "x")]
    content = "\n".join([f"user_id,{mapped},event_type,value,{other}", *rows])
    columns = {"session_start": mapped}
    frame = classified(tmp_path, content, columns=columns, extra_columns=extra_columns)
    assert frame["reasons"].to_list() == [[], [], ["unreadable_user_id"]]
    assert frame["record"][2] == "x,2024-01-02 10:00:00,view,1,Tue"
    assert frame["day"].unique().to_list() == [dt.date(2024, 1, 2)]
    settings = config(columns=columns, extra_columns=extra_columns)
    records = opened(tmp_path, content, settings=settings)
    ingest.split_file(records, "a.csv", HOME, None, settings, tmp_path / "out")
    written = {p.parent.parent.name: pl.read_parquet(p, hive_partitioning=False) for p in tmp_path.rglob("out/*/*/*")}
    assert (written["valid"].height, written["quarantined"].height) == (2, 1)
    assert (other in written["valid"].columns) == (extra_columns == "keep")


# ---- the look at the bytes, and what is written in one go -------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.text('a,;\n\r\0"é', min_size=1, max_size=30), st.integers(0, 3), st.integers(1, 9), st.sampled_from(",;"))
@example("a,a\na,\n,", 1, 4, ",")
@example("a,a\r\na;\r\n", 1, 4, ",")
def test_the_look_sees_what_plain_python_sees_whatever_the_blocks(tmp_path_factory, text, per_line, block, delimiter):
    path = tmp_path_factory.mktemp("look") / "a.csv"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_BLOCK", block)
        look = delimited.scan_bytes(path, delimiter, per_line)
    lines = text.removesuffix("\n").split("\n")
    bare = len(re.findall("\r(?!\n)", text))
    assert look.even == all(line.count(delimiter) == per_line for line in lines)
    assert look.lines == text.count("\n") + bare + (text[-1] not in "\r\n")
    assert (look.quoted, look.nul, look.bare_cr, look.utf8) == ('"' in text, "\0" in text, bare > 0, True)


def test_a_day_written_in_one_go_says_text_of_its_file_to_every_reader(tmp_path):
    """The engine writes the one name as an enumeration; nobody who reads the file is to notice."""
    name = "in/Käufe 'é\".csv"
    settings_, rows = config(), FEW_ROWS + 1
    records = opened(tmp_path, HEADER + f"{ROW}\n" * rows, name, settings_)
    day = dt.date(2024, 1, 1)
    ingest.split_file(records, name, HOME, [day], settings_, tmp_path / "out", is_all=True)
    [path] = (tmp_path / "out" / "valid").rglob("*.parquet")
    schema = tables()["raw_events"].schema
    assert pl.read_parquet_schema(path) == schema
    assert pl.scan_parquet(path).filter(source_file=name).select(pl.len()).collect(engine="streaming").item() == rows
    told, plain = pq.read_schema(path), pl.DataFrame(schema=schema)
    plain.write_parquet(tmp_path / "plain.parquet")
    assert told == pq.read_schema(tmp_path / "plain.parquet")
    of_file = duckdb.execute("SELECT DISTINCT source_file, typeof(source_file) FROM read_parquet(?)", [str(path)])
    assert of_file.fetchall() == [(name, "VARCHAR")]
