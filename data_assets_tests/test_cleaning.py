"""Cleaning: each policy by hand and against plain Python or SQL, the lookup file, and a whole run with all of them.

Here: ``data_assets/cleaning.py``, the statistics by event type in ``metrics.py`` that it uses, the two policies that
are rules of ingest, and what staging and the ledger make of them. Not here: runs without cleaning (``test_graph.py``).
"""

from __future__ import annotations

import datetime as dt
import json
import math
import random
import statistics
from fractions import Fraction

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dagster import AssetKey, AssetRecordsFilter
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_assets import cleaning, ingest, landing, metrics, quantities, staging
from data_assets.config import PipelineConfig, load_config
from data_assets.contracts import tables
from data_assets.errors import ConfigurationError
from data_assets.storage import Lake

NOON = dt.datetime(2024, 5, 1, 12)  # noqa: DTZ001 - the contract's times carry no zone
SCHEMA = tables()["raw_events"].schema
CI = settings(max_examples=60, derandomize=True, deadline=None, database=None)


def frame(*rows, files=1):
    """Events of (user, seconds after noon, type, value), in as many scans as there are files to be."""
    made = [
        {
            "user_id": user, "session_start": NOON + dt.timedelta(seconds=start), "session_end": None,
            "event_type": kind, "value": value, "metadata": f"m{line}", "source_file": "a.csv", "source_line": line,
        }
        for line, (user, start, kind, value) in enumerate(rows, 2)
    ]  # fmt: skip
    whole = pl.DataFrame(made, schema=SCHEMA)
    size = max(1, math.ceil(len(rows) / files))
    return pl.concat([whole[i : i + size].lazy() for i in range(0, max(len(rows), 1), size)])


def values(*numbers):
    return frame(*((1, n, "a", value) for n, value in enumerate(numbers)))


def done(cleaned, *names):
    """The named columns as tuples (a single one as values), and the impact; what is not named is as it was."""
    found = cleaned.events.collect(engine="streaming")
    assert found["source_line"].to_list() == list(range(2, found.height + 2))
    rows = found.select(names).rows()
    return [row[0] for row in rows] if len(names) == 1 else rows, cleaned.rows


# ---- By hand -----------------------------------------------------------------------------------------------------


def test_values_beyond_the_bounds_are_clipped_or_flagged():
    events = values(-3.0, 0.0, None, 10.0, 10.5)
    assert done(cleaning.clip_values(events, 0, 10), "value") == ([0, 0, None, 10, 10], {"clipped_values": 2})
    assert done(cleaning.clip_values(events, None, 10), "value") == ([-3, 0, None, 10, 10], {"clipped_values": 1})
    assert done(cleaning.clip_values(events, None, None), "value")[1] == {"clipped_values": 0}
    flagged = [(-3, True), (0, False), (None, False), (10, False), (10.5, True)]
    assert done(cleaning.flag_values(events, 0, 10), "value", "value_out_of_range") == (flagged, {"flagged_values": 2})
    assert done(cleaning.flag_values(events, 0, None), "value_out_of_range")[1] == {"flagged_values": 1}


def test_missing_values_are_filled():
    rows = [
        (1, 0, "a", None), (1, 5, "a", 4.0), (2, 6, "b", None), (1, 7, "a", None),
        (1, 6, "a", 1.0), (2, 7, "a", 2.5), (3, 8, "c", None),
    ]  # fmt: skip
    events = frame(*rows)
    filled, impact = done(cleaning.fill_values(events, -1.5), "value")
    assert filled == [-1.5, 4, -1.5, -1.5, 1, 2.5, -1.5]
    assert impact == {"filled_values": 4, "still_missing_values": 0}
    # b and c have no value; the mean of a is 7.5 / 3, its median 2.5.
    assert done(cleaning.fill_values(events, "mean"), "value") == (
        [2.5, 4, None, 2.5, 1, 2.5, None],
        {"filled_values": 2, "still_missing_values": 2},
    )
    assert done(cleaning.fill_values(events, "median"), "value")[0] == [2.5, 4, None, 2.5, 1, 2.5, None]
    # User 1 at 7 s takes what stood at 6 s, though its line comes later; at 0 s there is nothing before.
    assert done(cleaning.fill_values(events, "previous"), "value") == (
        [None, 4, None, 1, 1, 2.5, None],
        {"filled_values": 1, "still_missing_values": 3},
    )


def test_at_the_same_time_the_line_before_is_the_previous_one():
    events = frame((1, 0, "a", 1.0), (1, 0, "a", None), (1, 0, "a", 3.0), (1, 0, "a", None), (2, 0, "a", None))
    assert done(cleaning.fill_values(events, "previous"), "value")[0] == [1, 1, 3, 3, None]


def test_standardised_values():
    events = frame(
        (1, 0, "a", 2.0), (1, 0, "a", 4.0), (1, 0, "b", 5.0), (1, 0, "b", 5.0), (1, 0, "c", 1.0), (1, 0, "a", None)
    )
    half = round(math.sqrt(0.5), 6)
    assert done(cleaning.standardise(events, "zscore"), "value_zscore") == (
        [-half, half, None, None, None, None],
        {"standardised_values": 2},
    )
    assert done(cleaning.standardise(events, "minmax"), "value_minmax")[0] == [0, 1, None, None, None, None]


def test_the_lookup_is_joined_as_text_and_adds_no_row():
    table = pl.DataFrame({"__cleaning_key": ["7", "01"], "lookup_x": ["seven", "one"], "lookup_n": [7, 1]})
    events = frame((7, 0, "a", 1.0), (1, 0, "a", 1.0), (7, 0, "b", 1.0))
    found = [("seven", 7), (None, None), ("seven", 7)]
    assert done(cleaning.look_up(events, "user_id", table), "lookup_x", "lookup_n") == (found, {"lookup_unmatched": 1})


@pytest.mark.parametrize("name", ["value_zscore", "__cleaning_base"])
def test_a_source_column_called_like_an_added_one_gets_a_number(name):
    events = values(1.0, 2.0).with_columns(pl.lit("theirs").alias(name), pl.lit("too").alias(f"{name}_2"))
    cleaned = cleaning.standardise(events, "zscore").events.collect()
    assert cleaned.select(f"{name}_3", f"{name}_2").row(0) == ("theirs", "too")
    assert cleaned["value_zscore"].dtype == pl.Float64


@pytest.mark.parametrize("how", [0.0, "mean", "median", "previous"])
def test_a_day_without_rows(how):
    events = tables()["raw_events"].empty().lazy()
    assert done(cleaning.fill_values(events, how), "value") == ([], {"filled_values": 0, "still_missing_values": 0})
    for scale in ("zscore", "minmax"):
        assert done(cleaning.standardise(events, scale), f"value_{scale}") == ([], {"standardised_values": 0})


# ---- Against plain Python and SQL --------------------------------------------------------------------------------

CENTS = st.none() | st.integers(-100_000, 100_000).map(lambda cents: cents / 100)
TINY = Fraction(2) ** -1000  # differences below may count as none
DOUBLES = st.none() | st.floats(allow_nan=False, allow_infinity=False)


def days(numbers):
    row = st.tuples(st.integers(1, 3), st.integers(0, 4), st.sampled_from("abc"), numbers)
    return st.lists(row, max_size=25)


def by_type(rows):
    """Values of each type that has any."""
    found = {}
    for _, _, kind, value in rows:
        if value is not None:
            found.setdefault(kind, []).append(value)
    return found


@CI
@given(days(CENTS), st.integers(1, 3), st.integers(1, 3))
@example([(1, 0, "a", None), (1, 0, "a", 0.5)], 2, 1)
def test_filling_agrees_with_plain_python_and_sql(tmp_path_factory, rows, files, parts):
    events = frame(*rows, files=files)
    known = by_type(rows)
    means = {kind: float(Fraction(sum(round(v * 100) for v in vs), 100 * len(vs))) for kind, vs in known.items()}
    medians = {kind: statistics.median(vs) for kind, vs in known.items()}
    for how, of_type in (("mean", means), ("median", medians)):
        filled, impact = done(cleaning.fill_values(events, how), "value")
        wanted = [of_type.get(k) if v is None else v for _, _, k, v in rows]
        assert [v is None for v in filled] == [v is None for v in wanted]
        for mine, theirs in zip(filled, wanted, strict=True):
            assert mine == theirs or mine == pytest.approx(theirs, rel=1e-15)
        assert impact["still_missing_values"] == filled.count(None)
    with duckdb.connect() as con:
        con.register("events", events.with_row_index("n").collect())
        theirs = con.sql(
            "SELECT coalesce(value, last_value(value IGNORE NULLS) OVER "
            "(PARTITION BY user_id ORDER BY session_start, n "
            "ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)) FROM events ORDER BY n"
        ).fetchall()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleaning, "SORTED_ROWS", max(1, len(rows) // parts))
        patch.setattr(quantities, "SEGMENT_ROWS", 10)
        filled, impact = done(cleaning.fill_values(events, "previous", tmp_path_factory.mktemp("parts")), "value")
    assert filled == [row[0] for row in theirs]
    assert impact["still_missing_values"] == filled.count(None)
    assert impact["filled_values"] == sum(row[3] is None for row in rows) - filled.count(None)


@CI
@given(days(DOUBLES), st.randoms(use_true_random=False))
@example([(1, 0, "a", 1.7e308), (1, 0, "a", -1.7e308), (1, 0, "b", 1e-300), (1, 0, "b", 3e-300)], random.Random(1))
@example(
    [(1, 0, "a", 1e18), (1, 0, "a", 2e19), (1, 0, "b", 0.1), (1, 0, "b", -0.0), (1, 0, "b", 0.3)], random.Random(1)
)
def test_scores_of_any_doubles_agree_with_fractions(rows, rng):
    expected = {"zscore": [], "minmax": []}
    known = {kind: [Fraction(v) for v in vs] for kind, vs in by_type(rows).items()}
    for _, _, kind, value in rows:
        of_type = known.get(kind, [])
        span = max(of_type) - min(of_type) if of_type else 0
        if value is None or span < TINY:
            for wanted in expected.values():
                wanted.append(None if value is None or span == 0 else math.nan)
            continue
        mean = sum(of_type) / len(of_type)
        variance = sum((x - mean) ** 2 for x in of_type) / (len(of_type) - 1)
        deviation = Fraction(value) - mean
        expected["zscore"].append(math.copysign(math.sqrt(deviation * deviation / variance), deviation))
        expected["minmax"].append(float((Fraction(value) - min(of_type)) / span))
    shuffled = rng.sample(rows, len(rows))
    for how, wanted in expected.items():
        found, impact = done(cleaning.standardise(frame(*rows), how), f"value_{how}")
        for mine, theirs in zip(found, wanted, strict=True):
            if theirs is None:
                assert mine is None
            elif not math.isnan(theirs):
                assert mine == pytest.approx(theirs, abs=2e-6)
        assert impact == {"standardised_values": sum(v is not None for v in found)}
        again, _ = done(cleaning.standardise(frame(*shuffled), how), f"value_{how}")
        assert sorted(zip(shuffled, again, strict=True), key=repr) == sorted(zip(rows, found, strict=True), key=repr)
    means, medians = metrics.type_means(frame(*rows)), metrics.type_medians(frame(*rows))
    for kind, of_type in known.items():
        row = means.row(by_predicate=pl.col("event_type") == kind, named=True)
        mean = float(sum(of_type) / len(of_type))
        assert row["mean"] == pytest.approx(mean, rel=1e-12, abs=1e-9)
        assert row["low"] <= row["mean"] <= row["high"]
        middle = medians.row(by_predicate=pl.col("event_type") == kind)[1]
        assert middle == pytest.approx(float(statistics.median(of_type)), rel=1e-15)


def test_thousands_of_values_and_types_stay_in_order():
    rng = random.Random(5)
    rows = [
        (rng.randrange(50), i, f"t{rng.randrange(400)}", rng.choice([None, rng.gauss(0, 9)])) for i in range(40_000)
    ]
    events = frame(*rows, files=7)
    medians = {kind: statistics.median(vs) for kind, vs in by_type(rows).items()}
    filled, _ = done(cleaning.fill_values(events, "median"), "value")
    assert filled == pytest.approx([medians[k] if v is None else v for _, _, k, v in rows], rel=1e-12)
    last, previous = {}, []
    for user, _, _, value in rows:
        last[user] = last.get(user) if value is None else value
        previous.append(last[user])
    assert done(cleaning.fill_values(events, "previous"), "value")[0] == previous


def test_a_long_day_is_read_no_more_often_for_its_length(tmp_path, monkeypatch):
    monkeypatch.setattr(cleaning, "SORTED_ROWS", 20)
    reads = []

    def seen(rows):
        reads.append(rows.height)
        return rows

    rows = [(number % 90, number, "a", None if number % 3 else 1.0) for number in range(1_000)]
    events = frame(*rows).map_batches(seen)
    filled, impact = done(cleaning.fill_values(events, "previous", tmp_path), "value")
    assert impact == {"filled_values": filled.count(1.0) - 334, "still_missing_values": filled.count(None)}
    assert sum(reads) <= 5 * len(rows)


# ---- The rules of ingest -----------------------------------------------------------------------------------------


def test_drop_quarantines_and_other_bounds_do_not(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("user_id,session_start,event_type,value\n1,2024-05-01,a,\n1,2024-05-01,a,5\n1,2024-05-01,a,x\n")

    def reasons(**section):
        config = PipelineConfig(quality={"value_max": 4}, cleaning=section)
        records = ingest.open_records(path, "a.csv", config, tmp_path)
        return ingest.classify(records, "a.csv", dt.date(2024, 5, 1), config).collect()["reasons"].to_list()

    assert reasons() == [[], ["value_out_of_range"], ["unreadable_value"]]
    assert reasons(missing_value="drop") == [["missing_value"], ["value_out_of_range"], ["unreadable_value"]]
    assert reasons(bounds="clip") == reasons(bounds="flag") == [[], [], ["unreadable_value"]]


# ---- Configuration and the lookup file ---------------------------------------------------------------------------


def test_what_the_section_takes(tmp_path):
    (tmp_path / "p.yaml").write_text(
        "cleaning:\n  missing_value: {constant: 0}\n  lookup: {file: l.csv, key: user_id}\n"
    )
    config = load_config(tmp_path / "p.yaml", {"DATA_ASSETS_CLEANING__BOUNDS": "clip"})
    assert config.cleaning.missing_value.constant == 0
    assert (config.cleaning.bounds, config.cleaning.lookup.file) == ("clip", tmp_path / "l.csv")
    env = {"DATA_ASSETS_CLEANING__MISSING_VALUE": '{"constant": -1.5}'}
    assert load_config(tmp_path / "p.yaml", env).cleaning.missing_value.constant == -1.5
    assert PipelineConfig.model_validate(json.loads(config.model_dump_json())) == config
    moved = load_config(tmp_path / "p.yaml", {"DATA_ASSETS_CLEANING__LOOKUP__FILE": "/elsewhere/l.csv"})
    plain = load_config(tmp_path / "p.yaml", {})
    assert moved.mapping_fingerprint() == plain.mapping_fingerprint() != config.mapping_fingerprint()
    (tmp_path / "p.yaml").write_text("cleaning: {lookup: null}\n")
    assert load_config(tmp_path / "p.yaml", {}).cleaning == PipelineConfig().cleaning


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"missing_value": "meen"}, ["cleaning.missing_value", "nearest: mean", "{constant: number}"]),
        ({"missing_value": {"constant": "0"}}, ["cleaning.missing_value", "not a finite number"]),
        ({"missing_value": {"constant": True}}, ["not a finite number"]),
        ({"missing_value": {"constat": 1}}, ["no such policy"]),
        ({"bounds": "cut"}, ["cleaning.bounds", "quarantine or clip or flag"]),
        ({"standardise": "zscor"}, ["cleaning.standardise", "Nearest: zscore"]),
        ({"lookup": {"file": "a.xlsx"}}, ["cleaning.lookup.file", "neither in .csv nor in .parquet"]),
        ({"lookup": {"fiel": "a.csv"}}, ["cleaning.lookup.fiel", "Nearest: cleaning.lookup.file"]),
        ({"lookup": {"key": "value"}}, ["cleaning.lookup.key"]),
        ({"lookup": {"columns": ["a", "a"]}}, ["cleaning.lookup.columns", "twice"]),
    ],
)
def test_what_the_section_refuses(tmp_path, section, words):
    (tmp_path / "p.yaml").write_text(json.dumps({"cleaning": section}))
    with pytest.raises(ConfigurationError) as problem:
        load_config(tmp_path / "p.yaml", {})
    for word in words:
        assert word in str(problem.value)


def test_dropping_rows_of_a_source_without_values_is_refused(tmp_path):
    (tmp_path / "p.yaml").write_text("source: {columns: {value: null}}\ncleaning: {missing_value: drop}\n")
    with pytest.raises(ConfigurationError, match="would refuse every row"):
        load_config(tmp_path / "p.yaml", {})


def lookup_of(tmp_path, content, name="l.csv", **section):
    if isinstance(content, pl.DataFrame):
        content.write_parquet(tmp_path / name)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    return cleaning.read_lookup(PipelineConfig(cleaning={"lookup": {"file": tmp_path / name, **section}}))


def test_a_lookup_from_csv_is_text_and_from_parquet_has_its_types(tmp_path):
    assert cleaning.read_lookup(PipelineConfig()) is None
    found = lookup_of(tmp_path, b"\xef\xbb\xbfevent_type,n,kind\nview,1,x\n,2,y\nbuy,,\n,3,z\n")
    assert found.rows() == [("view", "1", "x"), ("buy", None, None)]
    assert found.columns[1:] == ["lookup_n", "lookup_kind"]
    typed = pl.DataFrame({"id": [7, None], "since": [dt.date(2024, 1, 1), None], "no": [[1], [2]]})
    section = {"key": "user_id", "file_key": "id", "columns": ["since"]}
    found = lookup_of(tmp_path, typed, "l.parquet", **section)
    assert found.rows() == [("7", dt.date(2024, 1, 1))]


def test_times_of_an_offset_in_a_lookup_are_in_utc(tmp_path):
    since = pa.array([0], pa.int64()).cast(pa.timestamp("us", "+05:30"))
    pq.write_table(pa.table({"event_type": ["view"], "since": since}), tmp_path / "l.parquet")
    found = lookup_of(tmp_path, None, "l.parquet")
    assert found.schema["lookup_since"] == pl.Datetime("us", "UTC")


@pytest.mark.parametrize(
    ("content", "name", "section", "words"),
    [
        (None, "none.csv", {}, ["none.csv", "cannot be read"]),
        (b"", "l.csv", {}, ["cannot be read"]),
        (b"event_type,n\nview,1,2\n", "l.csv", {}, ["cannot be read"]),
        (b"event_type,n\nview,\xff\n", "l.csv", {}, ["cannot be read"]),
        (b"PAR1 and no more", "l.parquet", {}, ["cannot be read"]),
        (b"event_typ,n\nview,1\n", "l.csv", {}, ["no column event_type", "event_typ, n", "cleaning.lookup.file_key"]),
        (b"event_type,n\nview,1\n", "l.csv", {"columns": ["m"]}, ["no column m", "cleaning.lookup.columns"]),
        (b"event_type\nview\n", "l.csv", {}, ["no column beside event_type"]),
        (b"event_type,n\nvi\x1bew,1\nbuy,1\nvi\x1bew,2\n", "l.csv", {}, ["1 keys more than once", "vi\\\\x1bew"]),
        (pl.DataFrame({"event_type": [1.0], "n": [1]}), "l.parquet", {}, ["keys of type Float64"]),
        (pl.DataFrame({"event_type": ["a"], "n": [[1]]}), "l.parquet", {}, ["column n of type List"]),
        (pl.DataFrame({"event_type": ["a"], "n": [b"1"]}), "l.parquet", {}, ["column n of type Binary"]),
    ],
)
def test_lookups_that_are_refused(tmp_path, content, name, section, words):
    with pytest.raises(ConfigurationError) as problem:
        lookup_of(tmp_path, content, name, **section)
    for word in words:
        assert word in str(problem.value)
    assert "What to do" in str(problem.value)


# ---- The whole graph ---------------------------------------------------------------------------------------------

SETTINGS = """
data_dir: data
start_date: 2024-03-01
source: {settle_seconds: 0, deduplicate: exact, extra_columns: keep}
quality: {value_min: 0, value_max: 100, max_quarantine_rate: 1}
"""
ALL_ON = """
cleaning:
  bounds: clip
  missing_value: mean
  standardise: zscore
  lookup: {file: types.csv}
"""
HEADER = "user_id,session_start,event_type,value,lookup_region\n"
FIRST = "1,2024-03-01 10:00:00,view,10,mine\n1,2024-03-01 10:00:00,view,10,mine\n1,2024-03-01 11:00:00,view,,mine\n"
SECOND = "2,2024-03-01 09:00:00,buy,900,mine\n2,2024-03-01 09:30:00,view,-5,mine\nx,2024-03-01 09:40:00,view,1,mine\n"


@pytest.fixture
def project(project_at, tmp_path):
    root = tmp_path / "project"
    (root / "data/raw").mkdir(parents=True)
    (root / "pipeline.yaml").write_text(SETTINGS + ALL_ON)
    (root / "types.csv").write_text("event_type,region\nview,north\n")
    (root / "data/raw/a_2024-03-01.csv").write_text(HEADER + FIRST)
    (root / "data/raw/b_2024-03-01.csv").write_text(HEADER + SECOND)
    (root / "data/raw/c_2024-03-02.csv").write_text(HEADER)
    return project_at(root, root)


def test_a_run_with_everything_on(project):
    assert project.run("2024-03-01", "2024-03-02").success
    # 10, missing and -5, which is clipped to 0, are views: their mean is 5; 900 is clipped to 100.
    events = project.table("raw_events", ["2024-03-01"])
    shown = ("value", "value_zscore", "lookup_region", "lookup_region_2", "source_file", "source_line")
    assert events.select(shown).rows() == [
        (10.0, 1.0, "north", "mine", "a_2024-03-01.csv", 2),
        (5.0, 0.0, "north", "mine", "a_2024-03-01.csv", 4),
        (100.0, None, None, "mine", "b_2024-03-01.csv", 2),
        (0.0, -1.0, "north", "mine", "b_2024-03-01.csv", 3),
    ]
    assert project.table("session_metrics", ["2024-03-01"])["total_value"].to_list() == [15.0, 100.0]
    rows = {
        "clipped_values": 2, "filled_values": 1, "still_missing_values": 0, "lookup_unmatched": 1,
        "standardised_values": 3,
    }  # fmt: skip
    policies = {"bounds": "clip", "missing_value": "mean", "lookup": "event_type", "standardise": "zscore"}
    assert cleaning.noted_impact(project.lake.notes("raw_events", "2024-03-01")) == cleaning.Impact(policies, rows)
    asked = AssetRecordsFilter(AssetKey("raw_events"), asset_partitions=["2024-03-01"])
    metadata = project.instance.fetch_materializations(asked, limit=1).records[0].asset_materialization.metadata
    assert {name: metadata[name].value for name in rows} == rows
    sums = {name: metadata[name].value for name in ("rows_in", "valid", "quarantined", "duplicate")}
    assert sums == {"rows_in": 6, "valid": 4, "quarantined": 1, "duplicate": 1}
    assert project.table("raw_events", ["2024-03-02"]).is_empty()


def test_another_content_of_the_lookup_makes_the_days_due_and_reads_no_file(project):
    assert project.run("2024-03-01", "2024-03-02").success
    assert project.stale() == []
    (project.root / "types.csv").write_text("event_type,region\nbuy,south\n")
    looked = landing.refresh(project.config, project.lake, now_ns=2**62)
    assert looked.read == ()
    assert project.stale() == ["2024-03-01", "2024-03-02"]
    assert project.run("2024-03-01", "2024-03-02").success
    assert project.stale() == []
    assert project.table("raw_events", ["2024-03-01"])["lookup_region"].to_list() == [None, None, "south", None]

    before = project.table("raw_events", ["2024-03-01"])
    (project.root / "types.csv").unlink()
    assert project.stale() == ["2024-03-01", "2024-03-02"]
    result = project.run("2024-03-01", "2024-03-02")
    assert not result.success
    assert "types.csv cannot be read" in project.log.refusals("raw_events", ["2024-03-01"])["2024-03-01"]
    assert project.lake.scan(project.tables["raw_events"], ["2024-03-01"]).collect().equals(before.drop("date"))


def staged(root, extra, tmp_path):
    (root / "pipeline.yaml").write_text(SETTINGS + extra)
    config = load_config(root / "pipeline.yaml", env={})
    ledger = landing.refresh(config, Lake(config.lake_dir), now_ns=2**62).ledger
    scratch = tmp_path / f"scratch{len(list(tmp_path.iterdir()))}"
    scratch.mkdir()
    found, refused = staging.stage(config, ledger, ["2024-03-01"], scratch)
    assert refused == {}
    return found["2024-03-01"]


def test_no_row_is_lost_whatever_is_on(project, tmp_path):
    off = staged(project.root, "", tmp_path)
    assert off.cleaning == cleaning.Impact()
    assert "cleaning" not in off.notes
    dropped = staged(project.root, "cleaning: {missing_value: drop, bounds: flag}\n", tmp_path)
    assert dropped.cleaning.rows == {"flagged_values": 2, "dropped_values": 1}
    assert dropped.cleaning.policies == {"bounds": "flag", "missing_value": "drop"}
    settings_ = (
        "{bounds: clip, missing_value: median, standardise: minmax}",
        "{bounds: flag, missing_value: previous, standardise: zscore}",
        "{missing_value: {constant: 2}}",
    )
    others = [staged(project.root, f"cleaning: {section}\n", tmp_path) for section in settings_]
    for day in (off, dropped, *others):
        sums = staging.sums(day.by_file)
        assert sums["rows_in"] == sums["valid"] + sums["quarantined"] + sums["duplicate"] == 6
        assert day.valid.collect().height == sums["valid"]
        assert day.quarantined.collect().height == sums["quarantined"]
    assert others[2].cleaning.policies == {"missing_value": "constant 2"}
