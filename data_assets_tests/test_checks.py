"""Every check, on a day that keeps it and on a day with one bad row that it must catch."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import polars as pl
import pytest
from dagster import AssetKey, AssetSpec, DagsterInstance, DailyPartitionsDefinition, Definitions

from data_assets import checks, staging
from data_assets.config import PipelineConfig
from data_assets.contracts import tables
from data_assets.storage import DayLog, Finding, parquet_options

TABLES = tables("int64")
NOON = dt.datetime.fromisoformat("2024-03-01T12:00:00")


def events(**changed: object) -> pl.DataFrame:
    row = {
        "user_id": 1,
        "session_start": NOON,
        "session_end": NOON,
        "event_type": "view",
        "value": 1.0,
        "metadata": None,
        "source_file": "a.csv",
        "source_line": 2,
    }
    return pl.DataFrame([row, row | changed], schema=TABLES["raw_events"].schema)


def rows(table: str, *given: dict[str, object]) -> pl.LazyFrame:
    return pl.DataFrame(list(given), schema=TABLES[table].schema).lazy()


SESSIONS = {
    "user_id": 1, "total_sessions": 2, "avg_duration": 1.0, "max_duration": 1.0, "min_duration": 1.0,
    "total_value": 1.0, "mean_value": 1.0, "anomaly_count": 0,
}  # fmt: skip
TYPES = {
    "event_type": "view", "count": 2, "proportion": 1.0, "cumulative": 1.0, "chi_square": 0.0,
    "degrees_of_freedom": 0, "p_value": 1.0, "cramers_v": None,
}  # fmt: skip
STATISTICS = {
    "column_name": "value", "count": 2, "null_count": 0, "mean": 1.0, "std": 0.0, "min": "1.0", "p25": 1.0,
    "p50": 1.0, "p75": 1.0, "max": "1.0", "n_unique": 1,
}  # fmt: skip
OUTLIER = {
    "user_id": 1, "session_start": NOON, "session_end": None, "event_type": "view", "value": 9.0, "metadata": None,
    "outlier_score": 3.0, "iqr_lower": 0.0, "iqr_upper": 2.0, "source_file": "a.csv", "source_line": 2,
}  # fmt: skip
KPIS = {
    "rows_in": 3, "valid": 2, "quarantined": 1, "duplicate": 0, "late": 0, "late_max_days": 0,
    "late_mean_days": None, "users": 1, "sessions": 2, "events": 2,
    "value": 2.0, "avg_duration": 1.0, "median_duration": 1.0, "anomalies": 0, "outliers": 0,
}  # fmt: skip


DUPLICATE = {"source_file": "a.csv", "source_line": 3, "duplicate_of_file": "a.csv", "duplicate_of_line": 2}


def by_file(**changed: int) -> pl.DataFrame:
    row = {
        "path": "a.csv",
        "content_hash": "x",
        "rows": 100,
        "valid": 97,
        "quarantined": 2,
        "duplicate": 1,
        "late": 0,
        "late_days": 0,
    }
    return pl.DataFrame([row | changed], schema=staging.BY_FILE)


@pytest.mark.parametrize(
    ("table", "good", "bad"),
    [
        ("raw_events", {}, {"event_type": None}),
        ("raw_events", {}, {"source_line": 0}),
        ("duplicate_events", DUPLICATE, DUPLICATE | {"duplicate_of_line": 0}),
        ("daily_kpis", KPIS, KPIS | {"late_max_days": None}),
        ("session_metrics", SESSIONS, SESSIONS | {"total_sessions": 0, "user_id": 2}),
        ("session_metrics", SESSIONS, SESSIONS),  # the same user twice
        ("outliers", OUTLIER, OUTLIER | {"iqr_lower": None}),
        ("event_distribution", TYPES, TYPES | {"event_type": "x", "proportion": 1.5}),
        ("summary_statistics", STATISTICS, STATISTICS | {"column_name": "x", "n_unique": -1}),
        ("daily_kpis", KPIS, KPIS | {"users": -1}),
    ],
)
def test_contract_catches_one_bad_row(table: str, good: dict[str, object], bad: dict[str, object]) -> None:
    contract = TABLES[table]
    if table == "raw_events":
        assert checks.contract(contract, events().lazy()).passed
        found = checks.contract(contract, events(**bad).lazy())
    else:
        assert checks.contract(contract, rows(table, good)).passed
        found = checks.contract(contract, rows(table, good, bad))
    assert not found.passed
    assert found.severity == "ERROR"


def test_contract_sees_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "BATCH_ROWS", 1)
    contract = TABLES["session_metrics"]
    users = [SESSIONS | {"user_id": n} for n in range(5)]
    assert checks.contract(contract, rows("session_metrics", *users)).passed
    assert not checks.contract(contract, rows("session_metrics", *users, SESSIONS | {"anomaly_count": -1})).passed
    repeated = checks.contract(contract, rows("session_metrics", *users, SESSIONS | {"user_id": 4}))
    assert not repeated.passed
    assert "different keys" in repeated.observed
    assert checks.contract(contract, rows("session_metrics", *reversed(users))).passed
    apart = checks.contract(contract, rows("session_metrics", *users, SESSIONS | {"user_id": 0}))
    assert apart.observed == "6 rows have 5 different keys"


@pytest.mark.parametrize("reasons", [[], ["no_such_reason"], ["missing_user_id", "no_such_reason"]])
def test_quarantine_needs_known_reasons(reasons: list[str]) -> None:
    def quarantined(codes: list[str]) -> pl.LazyFrame:
        row = {
            "source_file": "a", "source_line": 1, "reasons": codes, "record": "x", "home_day": dt.date(2024, 3, 1)
        }  # fmt: skip
        return rows("quarantined_events", row)

    table = TABLES["quarantined_events"]
    assert checks.known_reasons(table, quarantined(["missing_user_id", "unreadable_value"])).passed
    assert not checks.known_reasons(table, quarantined(reasons)).passed


def test_conservation_names_the_file_that_lost_a_row() -> None:
    assert checks.conservation(by_file()).passed
    found = checks.conservation(by_file(valid=96))
    assert not found.passed
    assert "a.csv with 100 rows against 99" in found.observed


def test_conservation_is_per_file_not_in_total() -> None:
    both = pl.concat([by_file(valid=96), by_file(valid=98).with_columns(path=pl.lit("b.csv"))])
    assert not checks.conservation(both).passed


def duplicate(**changed: object) -> dict[str, object]:
    return DUPLICATE | changed


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "0 rows listed, 1 dropped"),  # a dropped row that is not shown
        ([duplicate(), duplicate(source_line=4)], "2 rows listed, 1 dropped"),
        ([duplicate(source_file="b.csv")], "2 files differ, first a.csv"),  # the sum is right
        ([duplicate(duplicate_of_line=7)], "0 of the 1 rows they repeat are kept"),
        ([duplicate(duplicate_of_file="b.csv")], "0 of the 1 rows they repeat are kept"),
    ],
)
def test_originals_kept_catches_one_bad_row(tmp_path: Path, given: list[dict[str, object]], words: str) -> None:
    valid = events().head(1).lazy()
    assert checks.originals_kept(rows("duplicate_events", duplicate()), valid, by_file(), tmp_path).passed
    found = checks.originals_kept(rows("duplicate_events", *given), valid, by_file(), tmp_path)
    assert not found.passed
    assert words in found.observed


def test_originals_of_many_duplicates_are_looked_for_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "COMPARED_ROWS", 4)
    valid = pl.concat([events(source_line=line).tail(1) for line in range(2, 12)]).lazy()
    given = [duplicate(source_line=20 + line, duplicate_of_line=line) for line in (2, 2, 5, 7, 11, 11)]
    found = checks.originals_kept(rows("duplicate_events", *given), valid, by_file(duplicate=6), tmp_path)
    assert found.passed
    assert found.observed == "6 rows listed, 6 dropped; 4 of the 4 rows they repeat are kept"
    given[3] |= {"duplicate_of_line": 12}
    found = checks.originals_kept(rows("duplicate_events", *given), valid, by_file(duplicate=6), tmp_path)
    assert not found.passed
    assert found.observed.endswith("3 of the 4 rows they repeat are kept")


def ledger(*errors: str | None) -> pl.DataFrame:
    """A file for each of ``errors``."""
    empty = TABLES["landed_files"].empty()
    names = pl.DataFrame({"path": [f"{n:02}.csv" for n in range(len(errors))], "error": errors}, schema_overrides={
        "error": pl.String
    })  # fmt: skip
    return pl.concat([empty, names], how="diagonal")


def test_every_file_usable_names_the_files_that_are_not() -> None:
    assert checks.every_file_usable(ledger()).passed
    assert checks.every_file_usable(ledger(None, None)).passed
    found = checks.every_file_usable(ledger(None, "01.csv is torn", "the mapping does not fit"))
    assert (found.passed, found.severity) == (False, "ERROR")
    assert found.observed == "2 of 3 files: 01.csv is torn; 02.csv: the mapping does not fit"
    many = checks.every_file_usable(ledger(*["torn"] * 30)).observed
    assert many.startswith("30 of 30 files (the first 10): 00.csv: torn; ")
    assert many.endswith("; 09.csv: torn")


def test_no_missing_days_warns_and_names_the_days() -> None:
    assert checks.no_missing_days([]).passed
    found = checks.no_missing_days([f"2024-03-{n}" for n in range(10, 31)])
    assert (found.passed, found.severity) == (False, "WARN")
    assert found.observed.startswith("no rows for 21 days in between (the first 10): 2024-03-10, ")
    assert found.observed.endswith(", 2024-03-19")


def test_quarantine_rate() -> None:
    assert checks.quarantine_rate(by_file(), 0.02).passed
    assert not checks.quarantine_rate(by_file(quarantined=3), 0.02).passed
    assert checks.quarantine_rate(by_file().clear(), 0.0).passed


def test_counts_that_differ_by_one() -> None:
    assert checks.equal("x", ("sessions", 5), ("events", 5)).passed
    found = checks.equal("x", ("sessions", 5), ("events", 6))
    assert not found.passed
    assert found.observed == "5 sessions ≠ 6 events"


@pytest.mark.parametrize("value", [0.0, 1.0, 2.0])
def test_an_outlier_inside_its_fences(value: float) -> None:
    assert checks.outside_fences(rows("outliers", OUTLIER)).passed
    assert not checks.outside_fences(rows("outliers", OUTLIER, OUTLIER | {"value": value})).passed


def test_proportions() -> None:
    halves = [
        TYPES | {"event_type": t, "count": 1, "proportion": 0.5, "cumulative": c} for t, c in (("a", 0.5), ("b", 1))
    ]
    assert checks.proportions_sum_to_one(rows("event_distribution", *halves).collect()).passed
    assert checks.proportions_sum_to_one(TABLES["event_distribution"].empty()).passed
    for wrong in ({"proportion": 0.5001}, {"cumulative": 0.9999}):
        frame = rows("event_distribution", halves[0], halves[1] | wrong).collect()
        assert not checks.proportions_sum_to_one(frame).passed


def test_column_counts() -> None:
    frame = rows("summary_statistics", STATISTICS).collect()
    assert checks.column_counts(frame, 2).passed
    assert not checks.column_counts(frame, 3).passed


@pytest.mark.parametrize("wrong", ["rows_in", "sessions", "events", "valid"])
def test_kpis_agree(wrong: str) -> None:
    assert checks.kpis_agree(KPIS).passed  # type: ignore[arg-type]
    assert not checks.kpis_agree(KPIS | {wrong: KPIS[wrong] + 1}).passed  # type: ignore[operator, arg-type]


def test_every_day_done_fails_the_run_and_names_the_day(tmp_path) -> None:
    config = PipelineConfig(data_dir=tmp_path, start_date=dt.date(2024, 3, 1))
    partitions = DailyPartitionsDefinition("2024-03-01")
    [done] = checks.completeness_checks(config, ["raw_events"], partitions)
    log = DayLog(config.lake_dir)
    log.record("raw_events", "2024-03-02", [Finding("x", passed=False, observed="too bad")], refused="too bad")
    spec = AssetSpec("raw_events", partitions_def=partitions)
    job = Definitions(assets=[spec], asset_checks=[done]).resolve_implicit_global_asset_job_def()
    tags = {"dagster/asset_partition_range_start": "2024-03-01", "dagster/asset_partition_range_end": "2024-03-03"}
    with DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, tags=tags, raise_on_error=False)
        assert not result.success
        found = {e.partition: e for e in result.get_asset_check_evaluations()}
        assert {day: e.passed for day, e in found.items()} == {
            "2024-03-01": True, "2024-03-02": False, "2024-03-03": True
        }  # fmt: skip
        assert found["2024-03-02"].metadata["observed"].value == "too bad"
        log.record("raw_events", "2024-03-02", [])
        assert job.execute_in_process(instance=instance, tags=tags, raise_on_error=False).success


def test_a_failed_check_says_what_to_do_and_has_its_figure() -> None:
    of_file = pl.DataFrame({"rows": [60], "quarantined": [30]})
    failed = checks.metadata_of("raw_events", checks.quarantine_rate(of_file, 0.02), "2024-03-02")
    assert failed["observed"].value == "50.00% of 60 rows (limit 2.00%)"
    assert "data-assets quarantine show --day 2024-03-02." in failed["what_to_do"].value
    assert failed["share"].value == 0.5
    passed = checks.metadata_of("raw_events", checks.quarantine_rate(of_file, 0.5), "2024-03-02")
    assert set(passed) == {"observed", "share"}
    for table, name in (("publish/daily_kpis", "checksum"), ("daily_report", "every_day_done")):
        assert checks.metadata_of(table, Finding(name, passed=False, observed="x"))["what_to_do"].value


def test_one_file_and_one_day_are_not_called_files_and_days() -> None:
    ledger = pl.DataFrame({"path": ["a.csv"], "drift": [None]}, schema={"path": pl.String, "drift": pl.String})
    assert checks.schema_drift(ledger).observed == "1 file with the schema known before"
    assert checks.no_missing_days(["2024-03-02"]).observed == "no rows for 1 day in between: 2024-03-02"


def test_every_check_is_declared_for_the_asset_that_it_judges() -> None:
    partitions = DailyPartitionsDefinition("2024-03-01")
    for table in TABLES:
        names = [spec.name for spec in checks.specs(table, partitions)]
        assert len(names) == len(set(names))
        assert all(spec.blocking and spec.description for spec in checks.specs(table, partitions))
        assert all(spec.asset_key == AssetKey(table) for spec in checks.specs(table, partitions))


@pytest.mark.parametrize("name", ["raw_events", "outliers"])
def test_the_footer_of_a_file_tells_of_one_bad_row(tmp_path: Path, name: str) -> None:
    table, path = TABLES[name], tmp_path / "day.parquet"
    row = {column: value for column, value in OUTLIER.items() if column in table.names}
    good = pl.concat([rows(name, row).collect()] * 4)
    good.write_parquet(path, **parquet_options(8) | {"row_group_size": 2})
    unread = good.lazy().head(0)
    assert checks.contract(table, unread, path).observed == "4 rows as declared"
    for column in table.columns:
        bad = [] if column.nullable else [None]
        bad += [column.minimum - 1] if column.minimum is not None else []
        bad += [column.maximum + 1] if column.maximum is not None else []
        for value in bad:
            third = pl.int_range(pl.len()) == 2
            worse = pl.when(third).then(pl.lit(value, column.dtype)).otherwise(column.name).alias(column.name)
            good.with_columns(worse).write_parquet(path, **parquet_options(8) | {"row_group_size": 2})
            found = checks.contract(table, pl.scan_parquet(path), path)
            assert not found.passed, (column.name, value)
            assert column.name in found.observed


@pytest.mark.parametrize("name", ["raw_events", "outliers"])
def test_a_file_without_rows_or_of_nulls_is_looked_at(tmp_path: Path, name: str) -> None:
    table, path = TABLES[name], tmp_path / "day.parquet"
    table.empty().write_parquet(path, **parquet_options(8))
    assert checks.contract(table, pl.scan_parquet(path), path).observed == "0 rows as declared"
    nulls = pl.DataFrame({n: [None] * 3 for n in table.names}, schema=table.schema)
    nulls.write_parquet(path, **parquet_options(8))
    assert not checks.contract(table, pl.scan_parquet(path), path).passed


def test_a_footer_tells_of_times_that_python_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "day.parquet"
    far = rows("outliers", OUTLIER).with_columns(session_start=pl.lit(10**18).cast(pl.Datetime("us")))
    far.collect().write_parquet(path, **parquet_options(8))
    assert checks.contract(TABLES["outliers"], far.head(0), path).observed == "1 row as declared"


def test_a_footer_without_statistics_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "day.parquet"
    bad = rows("outliers", OUTLIER).with_columns(user_id=pl.lit(None, pl.Int64))
    bad.collect().write_parquet(path, statistics=False)
    assert not checks.contract(TABLES["outliers"], pl.scan_parquet(path), path).passed


@pytest.mark.parametrize(("name", "row"), [("session_metrics", SESSIONS), ("outliers", OUTLIER), ("daily_kpis", KPIS)])
def test_the_quick_look_at_a_contract_passes_nothing_that_pandera_refuses(name: str, row: dict[str, object]) -> None:
    table = TABLES[name]
    good = rows(name, row).collect()
    assert good.select(table.kept).item()
    assert table.is_kept(good)
    assert table.has_schema(good.with_columns(surplus=1).schema) == table.is_open
    for column in table.columns:
        null = good.with_columns(pl.lit(None, column.dtype).alias(column.name))
        bad = [good.drop(column.name), good.with_columns(pl.lit([1]).alias(column.name))]
        bad += [] if column.nullable else [null]
        for bound, step in ((column.minimum, -1), (column.maximum, 1)):
            if bound is not None:
                bad.append(good.with_columns(pl.lit(bound + step).cast(column.dtype).alias(column.name)))
        for frame in bad:
            assert not (table.has_schema(frame.schema) and frame.select(table.kept).item()), (column.name, frame)
            assert not (table.has_schema(frame.schema) and table.is_kept(frame)), (column.name, frame)
            assert not checks.contract(table, frame.lazy()).passed
        assert null.select(table.kept).item() == column.nullable == checks.contract(table, null.lazy()).passed
        assert table.is_kept(null) == column.nullable
