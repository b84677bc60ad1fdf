"""The metrics, by hand, against the oracle, and where arithmetic could go wrong.

Here: ``data_assets/metrics.py`` on frames made in memory. Not here: the SQL it is compared with (``oracle.py``), the
asset checks that use its invariants, runs of the whole graph.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import date, datetime, timedelta
from fractions import Fraction
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from data_assets import engine, filling, metrics, quantities
from data_assets.contracts import tables
from data_assets.errors import ContractError
from data_assets_tests import oracle
from data_assets_tests.peaks import answer_and_growth

DAY = date(2024, 5, 1)
NOON = datetime(2024, 5, 1, 12)  # noqa: DTZ001 - the contract's times carry no zone
SCHEMAS = {kind: tables(kind)["raw_events"].schema for kind in ("int64", "string")}
CI = settings(max_examples=60, derandomize=True, deadline=None, database=None)


def event(user=1, start=0.0, end=None, kind="a", value=None, metadata=None):
    """One raw event; start and end in seconds after noon."""
    return {
        "user_id": user,
        "session_start": NOON + timedelta(seconds=start),
        "session_end": None if end is None else NOON + timedelta(seconds=end),
        "event_type": kind,
        "value": value,
        "metadata": metadata,
    }


def frame(*events, kind="int64"):
    """The raw_events table of these events."""
    rows = [{**e, "source_file": "a.csv", "source_line": line} for line, e in enumerate(events, 2)]
    return pl.LazyFrame(rows, schema=SCHEMAS[kind])


def values(*numbers):
    return frame(*(event(value=v) for v in numbers))


def all_tables(events, *, precision=2, factor=1.5, figures=None):
    """Every table made from the events, collected, by name."""
    sessions = metrics.session_metrics(events, precision, figures)
    distribution = metrics.event_distribution(events)
    outlying = metrics.outliers(events, factor, figures).collect()
    n = events.collect().height
    late = n // 2
    counts = metrics.RowCounts(
        rows_in=n + 3,
        valid=n,
        quarantined=2,
        duplicate=1,
        late=late,
        late_max_days=2 * bool(late),
        late_row_days=late + bool(late),
    )
    kpis = metrics.daily_kpis(
        events,
        sessions,
        distribution,
        outlier_count=outlying.height,
        counts=counts,
        precision=precision,
        figures=figures,
    )
    return {
        "session_metrics": sessions.collect(),
        "outliers": outlying,
        "event_distribution": distribution.collect(),
        "summary_statistics": metrics.summary_statistics(events, figures).collect(),
        "daily_kpis": kpis.collect(),
    }


def durations(events):
    """How long every event lasted, both ways."""
    held = events.collect()
    starts = held["session_start"].to_physical()
    keys = filling.Keys.of((held["user_id"].min(), held["user_id"].max()), (starts.min(), starts.max()))
    found = pl.concat(part.rows for part in filling.durations(events, held.height)).collect()
    if keys is not None:
        by_keys = pl.concat(part.rows for part in filling.durations(events, held.height, keys=keys)).collect()
        assert_frame_equal(by_keys.select(found.columns), found, check_row_order=False, check_exact=True)
    return found


def by_line(events):
    """Filled duration in seconds by source_line."""
    found = durations(events).select("source_line", "duration_us")
    return {line: None if us is None else us / 1e6 for line, us in found.iter_rows()}


# ---- By hand -----------------------------------------------------------------------------------------------------


def test_missing_end_takes_the_next_known_one_of_the_same_user():
    events = frame(
        event(1, 0),  # takes 40 from line 4: the smallest (start, end) from its own start on
        event(1, 20, 90),
        event(1, 10, 40),
        event(2, 5, 6),  # another user's
        event(1, 30),  # nothing known from here on
        event(1, 20),  # a tie with line 3 counts as "not before"
    )
    assert by_line(events) == {2: 40.0, 3: 70.0, 4: 30.0, 5: 1.0, 6: None, 7: 70.0}


def test_fill_takes_the_smallest_end_among_equal_starts():
    assert by_line(frame(event(1, 0), event(1, 10, 99), event(1, 10, 11), event(1, 10, 50)))[2] == 11.0


def test_filled_end_may_lie_before_the_start_that_it_fills():
    assert by_line(frame(event(1, 10), event(1, 20, 5)))[2] == -5.0


def test_fill_of_times_that_are_no_single_days():
    far = 86_400.0 * 365 * 5_000
    events = frame(event(1, -far / 3), event(1, far, far + 1), *(event(user, 0) for user in range(2, 70)))
    found = by_line(events)
    assert found.pop(2) == far + 1 + far / 3
    assert found.pop(3) == 1.0
    assert set(found.values()) == {None}


def test_durations_keep_every_row_and_column():
    events = frame(event(1, 0), event(1, 0), event(1, 5, 6)).with_columns(extra=pl.lit("x"))
    found = durations(events)
    assert set(found.columns) == {*events.collect_schema().names(), "duration_us"} - {"session_start", "session_end"}
    assert found.schema["duration_us"] == pl.Int64
    assert found["duration_us"].sort().to_list() == [1_000_000, 6_000_000, 6_000_000]


@pytest.mark.parametrize(
    ("users", "starts", "keys"),
    [
        ((-3, 4), (100, 199), filling.Keys(-3, 100, 100)),
        ((0, 2**62 - 2), (5, 6), filling.Keys(0, 5, 2)),  # 2**63 - 2 keys
        ((0, 2**62 - 1), (5, 6), None),  # one too many for 64 bits
        (("a", "b"), (5, 6), None),
        ((None, None), (None, None), None),
    ],
)
def test_a_day_has_keys_where_64_bits_hold_them(users, starts, keys):
    assert filling.Keys.of(users, starts) == keys


def test_session_metrics_by_hand():
    events = frame(
        event(2, 0, 10, value=1.25),
        event(1, 0, 0, value=0.1),  # an anomaly
        event(2, 0, -4),  # another
        event(1, 5, 12.345, value=0.2),
        event(3, 0),  # no end, no value
    )
    assert metrics.session_metrics(events, 2).collect().rows() == [
        (1, 2, 3.67, 7.34, 7.34, 0.3, 0.15, 1),  # of 3.6725 and 7.345, whose half goes to the even 7.34
        (2, 2, 3.0, 10.0, 10.0, 1.25, 1.25, 1),
        (3, 1, None, None, None, None, None, 0),
    ]


def test_rounding_is_half_to_even_and_without_minus_zero():
    found = metrics.session_metrics(frame(event(1, value=0.125), event(2, value=0.375), event(3, value=-0.001)), 2)
    totals = found.collect()["total_value"].to_list()
    assert totals == [0.12, 0.38, 0.0]
    assert math.copysign(1, totals[2]) == 1


def test_outliers_by_hand():
    numbers = [1.0, 2.0, 3.0, 4.0, None, 100.0, -50.0]
    # sorted -50 1 2 3 4 100: q1 1.25, median 2.5, q3 3.75, so the fences are -2.5 and 7.5
    std = statistics.stdev(v for v in numbers if v is not None)
    found = metrics.outliers(values(*numbers).with_columns(extra=pl.lit("x")), 1.5).collect()
    assert found.columns[-6:] == ["outlier_score", "iqr_lower", "iqr_upper", "extra", "source_file", "source_line"]
    assert found.select("value", "outlier_score", "iqr_lower", "iqr_upper", "source_line").rows() == [
        (100.0, round(97.5 / std, 6), -2.5, 7.5, 7),
        (-50.0, round(-52.5 / std, 6), -2.5, 7.5, 8),
    ]


def test_a_value_on_the_fence_is_no_outlier():
    numbers = values(0.0, 0.0, 1.0, 1.0, 2.5)  # q1 0, q3 1: the upper fence at 1.5 is 2.5
    assert metrics.outliers(numbers, 1.5).collect().is_empty()
    assert metrics.outliers(numbers, 1.49).collect()["value"].to_list() == [2.5]


def test_event_distribution_by_hand():
    kinds = ["b"] * 3 + ["c"] * 3 + ["a"] * 2
    found = metrics.event_distribution(frame(*(event(kind=k) for k in kinds))).collect()
    # chi-square (1/9 + 1/9 + 4/9) / (8/3) = 0.25; with 2 degrees of freedom p = exp(-0.125)
    same = (0.25, 2, float(f"{math.exp(-0.125):.10g}"), 0.125)
    assert found.rows() == [
        ("b", 3, 0.375, 0.375, *same),
        ("c", 3, 0.375, 0.75, *same),
        ("a", 2, 0.25, 1.0, *same),
    ]


def test_one_event_type_has_nothing_to_compare():
    found = metrics.event_distribution(frame(event(), event())).collect()
    assert found.rows() == [("a", 2, 1.0, 1.0, 0.0, 0, 1.0, None)]


def test_summary_statistics_by_hand():
    events = frame(
        event(10, 0, 2, "a", 0.1, "x"),
        event(9, 0.5, None, "b", 0.2, None),
        event(9, 1, 2.5, "b", None, "ü"),
        kind="int64",
    )
    none = (None, None, None)
    std = round(statistics.stdev([2, 2, 1.5]), 6)
    assert metrics.summary_statistics(events).collect().rows() == [
        ("duration", 3, 0, 1.833333, std, "1.5", 1.75, 2.0, 2.0, "2.0", 2),
        ("event_type", 3, 0, None, None, "a", *none, "b", 2),
        ("metadata", 2, 1, None, None, "x", *none, "ü", 2),
        ("session_end", 2, 1, None, None, "2024-05-01T12:00:02", *none, "2024-05-01T12:00:02.500000", 2),
        ("session_start", 3, 0, None, None, "2024-05-01T12:00:00", *none, "2024-05-01T12:00:01", 3),
        ("user_id", 3, 0, None, None, "9", *none, "10", 2),
        ("value", 2, 1, 0.15, 0.070711, "0.1", 0.125, 0.15000000000000002, 0.17500000000000002, "0.2", 2),
    ]


def test_daily_kpis_by_hand():
    events = frame(event(1, 0, 10, value=1.0), event(1, 0, -2, value=0.25), event(2, 0))
    found = all_tables(events)["daily_kpis"].row(0, named=True)
    assert found == {
        "rows_in": 6,
        "valid": 3,
        "quarantined": 2,
        "duplicate": 1,
        "late": 1,
        "late_max_days": 2,
        "late_mean_days": 2.0,
        "users": 2,
        "sessions": 3,
        "events": 3,
        "value": 1.25,
        "avg_duration": 4.0,
        "median_duration": 4.0,
        "anomalies": 1,
        "outliers": 0,
    }


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_an_empty_day(kind):
    found = all_tables(frame(kind=kind))
    assert {n: t.height for n, t in found.items()} == {
        "session_metrics": 0,
        "outliers": 0,
        "event_distribution": 0,
        "summary_statistics": 7,
        "daily_kpis": 1,
    }
    assert set(found["summary_statistics"]["count"]) == {0}
    assert found["daily_kpis"].select("value", "avg_duration", "median_duration", "users", "events").row(0) == (
        None,
        None,
        None,
        0,
        0,
    )
    for name, table in found.items():
        assert table.schema == tables(kind)[name].schema


# ---- Against the oracle ------------------------------------------------------------------------------------------

starts = st.one_of(st.integers(0, 5), st.integers(0, 86_399_000_000).map(lambda us: us / 1e6))
lengths = st.one_of(st.none(), st.integers(-3, 3), st.integers(-(10**9), 10**10).map(lambda us: us / 1e6))
quarters = st.integers(-4000, 4000).map(lambda q: q / 4)  # fences are exact, so no last bit decides what lies outside
decimals = st.integers(-(10**8), 10**8).map(lambda c: c / 1e4)
labels = st.sampled_from(["a", "b", "ä", "Z", "", " ", "a'b", "\U0001f600"])


@st.composite
def days(draw, numbers):
    """(user id kind, events of one day)."""
    kind = draw(st.sampled_from(["int64", "string"]))
    users = st.integers(-2, 3) if kind == "int64" else labels
    chosen = st.one_of(st.none(), numbers) if draw(st.booleans()) else draw(st.sampled_from([st.none(), numbers]))
    events = draw(
        st.lists(
            st.tuples(users, starts, lengths, labels, chosen, st.one_of(st.none(), labels)), min_size=1, max_size=40
        )
    )
    return kind, [
        event(user, start, None if length is None else start + length, label, value, metadata)
        for user, start, length, label, value, metadata in events
    ]


def compare_all(kind, events, con):
    raw = frame(*events, kind=kind)
    found = all_tables(raw)
    n, late = len(events), len(events) // 2
    arrow = raw.collect().with_columns(date=pl.lit(DAY)).to_arrow()
    con.register("events", arrow)
    counts = (
        f"(SELECT DATE '{DAY}' AS date, {n + 3} AS rows_in, {n} AS valid, "
        f"2 AS quarantined, 1 AS duplicate, {late} AS late, {2 * bool(late)} AS late_max_days, "
        f"{late + bool(late)} AS late_row_days)"
    )
    for name, query in (
        ("session_metrics", oracle.session_metrics()),
        ("outliers", oracle.outliers()),
        ("event_distribution", oracle.event_distribution()),
        ("summary_statistics", oracle.summary_statistics()),
        ("daily_kpis", oracle.daily_kpis(counts=counts)),
    ):
        assert found[name].schema == tables(kind)[name].schema, name
        tables(kind)[name].pandera().validate(found[name])
        oracle.compare(found[name], oracle.rows(con, query, DAY))


@CI
@given(days(quarters))
@example(("int64", [event()]))
@example(("string", [event("a", 0, 0, value=0.0), event("a", 0, 0, value=-0.0)]))
def test_every_table_agrees_with_the_oracle(day):
    with duckdb.connect() as con:
        compare_all(*day, con)


@CI
@given(days(decimals))
def test_sums_of_decimals_agree_with_the_oracle(day):
    kind, events = day
    raw = frame(*events, kind=kind)
    with duckdb.connect() as con:
        con.register("events", raw.collect().with_columns(date=pl.lit(DAY)).to_arrow())
        sessions = metrics.session_metrics(raw, 4).collect()
        oracle.compare(sessions, oracle.rows(con, oracle.session_metrics(precision=4), DAY))
        oracle.compare(metrics.summary_statistics(raw).collect(), oracle.rows(con, oracle.summary_statistics(), DAY))


def test_the_oracle_takes_many_days_at_once():
    days_ = [DAY, DAY + timedelta(days=1)]
    events = [frame(event(1, 0, 5, value=1.0), event(1, 1)), frame(event(1, 0, 7, value=2.0))]
    both = pl.concat([e.with_columns(date=pl.lit(d)) for d, e in zip(days_, events, strict=True)]).collect()
    with duckdb.connect() as con:
        con.register("events", both.to_arrow())
        for day, of_day in zip(days_, events, strict=True):
            oracle.compare(
                metrics.session_metrics(of_day, 2).collect(), oracle.rows(con, oracle.session_metrics(), day)
            )


def test_compare_names_the_cell_that_differs():
    with pytest.raises(AssertionError, match=r"row 1, b: 2\.0, the oracle says None"):
        oracle.compare(pl.DataFrame({"a": [1, 2], "b": [1.0, 2.0]}), [(1, 1.0), (2, None)])
    with pytest.raises(AssertionError, match="1 rows, the oracle has 0"):
        oracle.compare(pl.DataFrame({"a": [1]}), [])


# ---- Arithmetic --------------------------------------------------------------------------------------------------


@CI
@given(days(quarters), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(day, rng):
    kind, events = day
    shuffled = list(events)
    rng.shuffle(shuffled)
    one, other = all_tables(frame(*events, kind=kind)), all_tables(frame(*shuffled, kind=kind))
    keys = ["user_id", "session_start", "session_end", "event_type", "value", "metadata"]
    for found in (one, other):  # outliers come in the order of the input, and lines are numbered anew
        found["outliers"] = found["outliers"].drop("source_line").sort(keys)
    for name, table in one.items():
        assert table.equals(other[name]), name


finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


@CI
@given(days(decimals), st.integers(1, 6), st.sampled_from(["lazy", "streaming"]))
def test_all_ways_of_working_on_a_day_give_the_same_bytes(day, part_rows, mode):
    kind, events = day
    raw = frame(*events, kind=kind)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(filling, "PART_ROWS", part_rows)
        patch.setattr(filling, "HELD_ROWS", part_rows)
        patch.setattr(quantities, "MOST_DISTINCT", part_rows)
        patch.setattr(quantities, "FIRST_ROWS", part_rows)
        patch.setattr(quantities, "PIECE_ROWS", part_rows)
        patch.setattr(quantities, "SEGMENT_ROWS", part_rows)
        patch.setattr(metrics, "MOST_USERS", part_rows)
        patch.setattr(metrics, "USERS_ROW_GROUP", part_rows)
        patch.setattr(metrics, "MOST_TEXT", part_rows)
        scratch, file = Path(folder) / "scratch", Path(folder) / "day.parquet"
        raw.collect().write_parquet(file, row_group_size=part_rows)
        in_parts = all_tables(raw, figures=metrics.DayFigures(raw, mode, scratch))
        by_footer = all_tables(raw, figures=metrics.DayFigures(pl.scan_parquet(file), mode, scratch, file))
        in_pieces = all_tables(raw)
        eager = metrics.DayFigures(raw, "eager", scratch)
        on_disk = metrics.session_metrics(raw, 2, eager, hold=False).collect()
        del eager
        assert not list(scratch.glob("*"))
    for name, table in all_tables(raw).items():
        assert_frame_equal(in_parts[name], table, check_exact=True)
        assert_frame_equal(in_pieces[name], table, check_exact=True)
        assert_frame_equal(by_footer[name], table, check_exact=True)
    assert_frame_equal(on_disk, in_parts["session_metrics"], check_exact=True)
    with engine.for_rows(0):
        of_few = all_tables(raw)
    for name, table in of_few.items():
        assert_frame_equal(in_parts[name], table, check_exact=True)


def test_counted_values_are_let_go_of_and_scanned_anew():
    raw = frame(*(event(value=value) for value in (1.5, 2.0, 1.5, None)))
    figures = metrics.DayFigures(raw)
    assert figures.values.count == 3

    def held_rows():
        counted = figures.counted_values.collect().group_by("number").agg(pl.col("times").sum()).sort("number")
        assert counted.rows() == [(None, 1), (1.5, 2), (2.0, 1)]
        return figures.counted_values.collect().height

    assert held_rows() == 3
    figures.forget_counts()
    assert held_rows() == 4


def test_a_part_with_more_users_than_others_is_worked_on_in_pieces(monkeypatch, tmp_path):
    monkeypatch.setattr(filling, "PART_ROWS", 100)
    users = pl.DataFrame({"user_id": range(20_000)})
    crowded = users.filter(pl.col("user_id").hash() % 10 == 3).head(900)["user_id"].to_list()
    raw = frame(*(event(user=user) for user in [*crowded, *range(-100, 0)]))
    parts = [part.rows.collect() for part in filling.durations(raw, 1_000, tmp_path)]
    assert sorted(user for part in parts for user in part["user_id"]) == sorted([*crowded, *range(-100, 0)])
    assert max(part.height for part in parts) < 400


@pytest.mark.parametrize("mode", ["lazy", "streaming"])
def test_counts_of_the_parts_of_a_day_do_not_pile_up(monkeypatch, tmp_path, mode):
    monkeypatch.setattr(filling, "PART_ROWS", 50)
    monkeypatch.setattr(quantities, "MOST_DISTINCT", 100)
    held: list[int] = []

    def merged(tallies: list[pl.DataFrame]) -> pl.DataFrame:
        held.append(sum(some.height for some in tallies))
        return together(tallies)

    together = quantities.merged
    monkeypatch.setattr(quantities, "merged", merged)
    raw = frame(*(event(user=row, end=60.0 * (row % 40)) for row in range(5_000)))
    figures = metrics.DayFigures(raw, mode, tmp_path)
    assert (figures.durations.count, figures.durations.unique) == (5_000, 40)
    assert 100 < max(held) <= 100 + 40


def test_the_figures_of_a_user_do_not_depend_on_who_else_is_there():
    """Divided by a constant, several rows are multiplied by its reciprocal, which now and then rounds otherwise."""
    users = [event(user=user, end=user * 0.005, value=user * 0.005) for user in range(1, 400)]
    together = metrics.session_metrics(frame(*users), 2).collect()
    alone = pl.concat([metrics.session_metrics(frame(user), 2).collect() for user in users])
    assert_frame_equal(alone, together, check_exact=True)


@CI
@given(st.lists(finite, min_size=1, max_size=30), st.randoms(use_true_random=False))
@example([1e19, -1e19, 5.0], random.Random(1))
@example([9e18, 0.1], random.Random(1))
@example([1.7e308, -1.7e308, 1.0], random.Random(1))
def test_sums_of_any_doubles(numbers, rng):
    exact = sum(map(Fraction, numbers))
    rng.shuffle(numbers)
    try:
        expected = float(exact)
    except OverflowError:
        with pytest.raises(ContractError, match=r"1\.8e308"):
            metrics.session_metrics(values(*numbers), 9).collect()
        return
    huge = [v for v in numbers if abs(v) >= quantities.FIXED_LIMIT]
    if abs(sum(map(Fraction, huge))) > Fraction(sys.float_info.max):
        return
    found = metrics.session_metrics(values(*numbers), 9).collect().row(0, named=True)
    scale = max(1.0, abs(expected))
    assert found["total_value"] == pytest.approx(expected, abs=1e-15 * scale + 1e-9 * len(numbers))
    assert found["mean_value"] == pytest.approx(
        expected / len(numbers), abs=(1e-15 * scale + 1e-9 * len(numbers)) / len(numbers) + 1e-9
    )


def test_whole_numbers_sum_exactly_where_floats_do_not():
    numbers = [2.0**53, 1.0, 1.0, -(2.0**53), 0.1, 0.2]
    random.Random(5).shuffle(numbers)
    assert metrics.session_metrics(values(*numbers), 9).collect()["total_value"].item() == 2.3


def test_one_users_huge_value_leaves_the_others_exact():
    events = frame(event(1, value=1e300), event(1, value=1.0), event(2, value=0.1), event(2, value=0.2), event(3))
    found = metrics.session_metrics(events, 2).select("total_value", "mean_value").collect()
    assert found.rows() == [(1e300, 5e299), (0.3, 0.15), (None, None)]


@CI
@given(st.lists(st.one_of(finite, st.integers(-5, 5).map(float)), min_size=1, max_size=60))
@example([0.1234567890123] * 3)
@example([0.1234567890123, 0.12345678901230001])
@example([1e-300, 3e-300])
@example([1.7e308, -1.7e308, 0.0])
def test_std_and_quartiles_of_any_doubles(numbers):
    column = values(*numbers).select("value")
    found = quantities.describe(quantities.frequencies(column, len(numbers)))
    assert quantities.describe(quantities.one_by_one(column), len({n + 0.0 for n in numbers})) == found
    ordered = sorted(numbers)
    for probability, q in zip((0.25, 0.5, 0.75), found.quartiles, strict=True):
        at = (len(ordered) - 1) * probability
        low, high = Fraction(ordered[math.floor(at)]), Fraction(ordered[math.ceil(at)])
        expected = low + (high - low) * Fraction(at - math.floor(at))
        assert abs(Fraction(q) - expected) <= Fraction(1e-15) * max(abs(low), abs(high)) + Fraction(5e-324)
    if len(numbers) == 1:
        assert found.std is None
    elif min(numbers) == max(numbers):
        assert found.std == 0
    elif max(numbers) / 2 - min(numbers) / 2 > 1e-280:
        mean = sum(map(Fraction, numbers)) / len(numbers)
        variance = sum((Fraction(v) - mean) ** 2 for v in numbers) / (len(numbers) - 1)
        assert abs(Fraction(found.std or 0.0) ** 2 / variance - 1) < Fraction(1, 10**9)


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0, 2, 6]))
@example(2.5, 0)
@example(-0.004, 2)
@example(1e308, 6)
def test_one_number_is_rounded_as_a_column_is(number, decimals):
    column = pl.DataFrame({"x": [number]}).select(quantities.rounded(pl.col("x"), decimals)).item()
    found = quantities.round_one(number, decimals)
    assert (found, math.copysign(1, found)) == (column, math.copysign(1, column))


@CI
@given(*[st.lists(st.one_of(st.none(), st.sampled_from([-0.0, 0.0, 1.5, -2.0, 1e300]), finite), max_size=9)] * 2)
def test_two_counts_come_to_that_of_both(some, others):
    first, second = (quantities.tally(pl.LazyFrame({"x": x}, schema={"x": pl.Float64})) for x in (some, others))
    found = quantities.merged([first, second])
    assert dict(found.iter_rows()) == Counter([*some, *others])
    assert found[quantities.NUMBER].to_list() == sorted(set(some + others), key=lambda x: (x is not None, x))


@CI
@given(
    st.integers(-(10**15), 10**15),
    st.lists(st.one_of(st.none(), st.integers(0, 40))),
    st.sampled_from([1_000_000, 3_000_000, 500_000, 999_999]),
)
def test_times_that_are_whole_seconds_apart_are_marked_in_their_place(first, steps, step):
    times = [first, *(n if n is None else first + n * step for n in steps)]
    known = [time for time in times if time is not None]
    column = pl.LazyFrame({"x": times}, schema={"x": pl.Int64})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantities, "FIRST_ROWS", 3)
        found = quantities.count_seconds(column, len(times), min(known), max(known))
    are_whole = all((time - min(known)) % 1_000_000 == 0 for time in known)
    assert found == (len(set(known)) if are_whole else None)


def test_times_too_far_apart_are_not_marked():
    column = pl.LazyFrame({"x": [0, 10**12]})
    assert quantities.count_seconds(column, 2, 0, 10**12) is None
    assert quantities.count_seconds(pl.LazyFrame({"x": [0, 10**12 - 10**6]}), 2, 0, 10**12 - 10**6) == 2


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 1000, 4097])
def test_order_statistics_pick_the_sorted_column(count):
    rng = random.Random(count)
    numbers = [
        rng.choice([rng.gauss(0, 1e3), rng.lognormvariate(0, 20), float(rng.randint(-3, 3))]) for _ in range(count)
    ]
    ranks = sorted({rng.randrange(count) for _ in range(20)})
    column = values(*numbers, None).select("value").drop_nulls()
    for rows in (quantities.frequencies(column, count), quantities.one_by_one(column)):
        found = quantities._order_statistics(rows, ranks)
        assert found == {r: sorted(numbers)[r] for r in ranks}


def test_durations_sum_beyond_64_bits():
    far = 2.5e11  # the year 9946
    events = frame(*[event(1, 0, far)] * 100)  # 2.5e19 microseconds
    found = metrics.session_metrics(events, 2).collect().row(0, named=True)
    assert found["avg_duration"] == found["max_duration"] == far


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    for of_events in (
        lambda e: metrics.session_metrics(e, 2),
        lambda e: metrics.outliers(e, 1.5),
        metrics.summary_statistics,
    ):
        with pytest.raises(ContractError, match="not a number"):
            of_events(values(1.0, bad, None))


def test_a_duration_beyond_64_bits_is_refused():
    end = pl.lit(2**63 - 1, pl.Int64).cast(pl.Datetime("us"))
    with pytest.raises(ContractError, match="292,000 years"):
        metrics.session_metrics(frame(event(1, -(60.0 * 10**9))).with_columns(session_end=end), 2)


# Critical values of the chi-square distribution to three decimals, Abramowitz & Stegun, table 26.8.
@pytest.mark.parametrize(
    ("df", "chi_square", "p"),
    [(1, 3.84146, 0.05), (1, 10.8276, 0.001), (2, 5.99146, 0.05), (3, 11.3449, 0.01), (10, 18.3070, 0.05),
     (29, 42.5570, 0.05), (30, 50.8922, 0.01), (100, 124.342, 0.05)],
)  # fmt: skip
def test_chi_square_tail_at_the_critical_values_of_tables(df, chi_square, p):
    assert metrics.chi_square_tail(chi_square, df) == pytest.approx(p, rel=2e-5)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 99, 100, 4999, 5000])
def test_chi_square_tail_is_a_tail(df):
    points = sorted([0.0, 1e-9, 0.5, df / 2, df, df + math.sqrt(2 * df), 2 * df, 10 * df + 100, 1e6, 1e8])
    tails = [metrics.chi_square_tail(x, df) for x in points]
    assert tails[0] == 1.0
    assert tails[-1] == 0.0
    assert tails == sorted(tails, reverse=True)
    if df > 1:  # the density is minus the slope
        x, step = float(df), 1e-4 * df
        slope = (metrics.chi_square_tail(x - step, df) - metrics.chi_square_tail(x + step, df)) / (2 * step)
        density = math.exp((df / 2 - 1) * math.log(x / 2) - x / 2 - math.lgamma(df / 2)) / 2
        assert slope == pytest.approx(density, rel=1e-4)


def test_chi_square_tail_without_freedom():
    assert metrics.chi_square_tail(0.0, 0) == 1.0
    assert metrics.chi_square_tail(1.0, 0) == 0.0


def test_thousands_of_event_types():
    kinds = [f"t{i:04}" for i in range(5000)] + ["t0000"] * 200_000
    events = pl.LazyFrame({"event_type": kinds}).with_columns(
        pl.lit(None, dtype).alias(name) for name, dtype in SCHEMAS["int64"].items() if name != "event_type"
    )
    found = metrics.event_distribution(events).collect()
    assert found["chi_square"][0] > 9e8
    assert found["p_value"][0] == 0.0
    assert found["cumulative"][-1] == 1.0
    assert 0.97 < found["cramers_v"][0] < 1


THREADS = """
import hashlib, io, sys
import polars as pl
from data_assets_tests.test_metrics import all_tables
digest = hashlib.sha256()
for table in all_tables(pl.scan_parquet(sys.argv[1])).values():
    table.write_parquet(buffer := io.BytesIO())
    digest.update(buffer.getvalue())
sys.stdout.write(f"{pl.thread_pool_size()} {digest.hexdigest()}")
"""


def test_same_bytes_on_any_number_of_threads(tmp_path):
    rng = random.Random(7)
    events = [
        event(rng.randrange(50), s := rng.randrange(80_000), s + rng.randrange(-5, 900) if rng.random() < 0.9 else None,
              rng.choice("abc"), rng.gauss(0, 1e6) ** 3 if rng.random() < 0.9 else None)
        for _ in range(20_000)
    ]  # fmt: skip
    path = tmp_path / "events.parquet"
    frame(*events).collect().write_parquet(path, row_group_size=1000)
    outputs = set()
    for threads in ("1", "2", "4"):
        done = subprocess.run(
            [sys.executable, "-c", THREADS, str(path)],
            env={**os.environ, "POLARS_MAX_THREADS": threads, "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        used, digest = done.stdout.split()
        assert used == threads
        outputs.add(digest)
    assert len(outputs) == 1


WARM = """
from data_assets import duplicates, metrics
from data_assets.engine import set_switches
set_switches()
import polars as pl
events = pl.scan_parquet(path)
figures = metrics.DayFigures(events.head(100), "streaming", path.parent / "scratch")
metrics.session_metrics(figures.events, 2, figures).collect()
"""
LABELS_ASKED = """
figures = metrics.DayFigures(events, "streaming", path.parent / "scratch", path)
answer = figures.bounds["metadata count"] + figures.unique("metadata")
"""
SESSIONS_ASKED = """
figures = metrics.DayFigures(events, "streaming", path.parent / "scratch", path)
answer = metrics.session_metrics(events, 2, figures).collect()["total_sessions"].sum()
"""
REPEATS_ASKED = """
(path.parent / "apart").mkdir()
kept, _ = duplicates.split(events, ["user_id", "session_start", "metadata"], path.parent / "apart")
answer = kept.select(pl.len()).collect().item()
"""
TWICE_ASKED = "events = pl.concat([events, events])" + REPEATS_ASKED


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory")
@pytest.mark.parametrize(
    ("asked", "rows", "length", "answer", "most"),
    [
        (LABELS_ASKED, 400_000, 1_000, 800_000, 300),
        (LABELS_ASKED, 4_000_000, 20, 8_000_000, 350),
        (REPEATS_ASKED, 4_000_000, 20, 4_000_000, 180),
        (TWICE_ASKED, 2_000_000, 20, 2_000_000, 350),
        (SESSIONS_ASKED, 4_000_000, 1, 4_000_000, 500),
    ],
    ids=["long texts", "texts that are all different", "no duplicates", "all twice", "one user"],
)
def test_little_is_held_of_a_day_unlike_others(tmp_path, asked, rows, length, answer, most):
    """140, 208, 88, 260 and 351 MB, where they took 1,230, 595, 292, 458 and 999, and more the longer the day."""
    number = pl.int_range(rows)
    day = pl.select(
        user_id=number // 100 if length > 1 else pl.lit(7, pl.Int64),
        session_start=pl.datetime(2024, 3, 1) + pl.duration(milliseconds=number),
        session_end=pl.when(number % 50 != 7).then(pl.datetime(2024, 3, 1, 8)),
        event_type=pl.lit("view"),
        value=1.0,
        metadata=number.hash().cast(pl.String).str.pad_end(length, "x"),
        source_file=pl.lit("a.csv"),
        source_line=number,
    )
    day.write_parquet(tmp_path / "day.parquet", compression_level=1, row_group_size=65_536)
    answered, grown = answer_and_growth(WARM, asked, tmp_path / "day.parquet")
    assert answered == answer
    assert grown < most
