"""What ``load_config`` accepts, what it refuses, and in which words; YAML and TOML alike."""

from __future__ import annotations

import datetime as dt
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_assets.config import (
    COLUMNS,
    ConstantValue,
    PathPattern,
    PipelineConfig,
    SourceConfig,
    SqlExpression,
    describe,
    find_config,
    load_config,
)
from data_assets.errors import ConfigurationError

Settings = dict[str, object]


def _toml(value: object) -> str:
    if value is None:
        return "false"  # TOML has no null
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dt.date):
        return value.isoformat()
    return json.dumps(value).replace("Infinity", "inf")


class Writer:
    """Writes settings as YAML or TOML."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind

    def __call__(self, settings: Settings) -> Path:
        file = self.folder / f"pipeline.{self.kind}"
        if self.kind == "toml":
            text = "".join(f"{json.dumps(k)} = {_toml(v)}\n" for k, v in settings.items())
        else:
            text = yaml.safe_dump(settings)
        file.write_text(text, encoding="utf-8")
        return file


@pytest.fixture(params=["yaml", "yml", "toml"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Writer:
    return Writer(tmp_path, request.param)


def nested(key: str, value: object) -> Settings:
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def refused(path: Path | None = None, env: dict[str, str] | None = None, cwd: Path | None = None) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load_config(path, env or {}, cwd)
    return caught.value


def test_defaults_without_a_file(tmp_path: Path) -> None:
    config = load_config(env={}, cwd=tmp_path)
    assert config.data_dir == tmp_path / "data"
    assert config.raw_dir == tmp_path / "data/raw"
    assert config.lake_dir == tmp_path / "data/lake"
    assert config.warehouse_path == tmp_path / "data/warehouse.duckdb"
    assert config.reports_dir == tmp_path / "data/reports"
    assert config.scratch_dir == tmp_path / "data/.scratch"
    assert config.start_date == dt.date(2024, 1, 1)
    assert config.zone.key == "UTC"
    assert config.source.columns.as_mapping() == {c: c for c in COLUMNS}
    assert config.source.null_values == ("", "NA", "NULL")
    assert config.source.required == ("user_id", "session_start", "event_type")
    assert (config.schedule.hour, config.schedule.minute) == (1, 0)
    assert (config.precision, config.trend_days, config.outliers.factor) == (2, 14, 1.5)
    assert config.schema_drift.missing_column == "fail"
    assert config.memory.limit_bytes is None


def test_the_design_example(write: Writer) -> None:
    file = write(
        {
            "data_dir": "data",
            "start_date": dt.date(2010, 12, 1),
            "timezone": "Europe/London",
            "source": {
                "directory": "../in",
                "columns": {
                    "user_id": "CustomerID",
                    "session_end": None,
                    "event_type": {"value": "sale"},
                    "value": {"sql": "CAST(Quantity AS DOUBLE)"},
                    "metadata": {"path": r"shop-(\d+)"},
                },
                "types": {"user_id": "string"},
                "timestamp_formats": ["%d/%m/%Y %H:%M", "epoch_ms"],
                "csv": {"delimiter": ";", "encoding": "latin1", "header": False, "decimal_comma": True},
                "deduplicate": ["user_id", "session_start"],
            },
            "memory": {"limit": "1.5GiB"},
        }
    )
    config = load_config(file, {})
    columns = config.source.columns
    assert columns.user_id == "CustomerID"
    assert columns.session_start == "session_start"
    assert columns.session_end is None
    assert columns.event_type == ConstantValue(value="sale")
    assert columns.value == SqlExpression(sql="CAST(Quantity AS DOUBLE)")
    assert columns.metadata == PathPattern(path=r"shop-(\d+)")
    assert config.source.csv.encoding == "iso8859-1"
    assert config.source.deduplicate == ("user_id", "session_start")
    assert config.raw_dir == file.parent.resolve().parent / "in"
    assert config.memory.limit_bytes == 1_610_612_736
    assert config.zone.key == "Europe/London"


BAD: list[tuple[str, object, list[str]]] = [
    ("precision", 10, ["10", "less than or equal to 9", "whole number, at least 0, at most 9"]),
    ("precision", True, ["True", "no numbers"]),
    ("precision", "many", ["'many'", "whole number"]),
    ("trend_days", 0, ["at least 1, at most 366"]),
    ("start_date", "2024-02-31", ["2024-02-31", "YYYY-MM-DD"]),
    ("start_date", 20240101, ["20240101", "YYYY-MM-DD"]),
    ("timezone", "Europe/Berln", ["no time zone", "Europe/Berlin"]),
    ("timezone", "../etc/passwd", ["no time zone"]),
    ("timezone", "localtime", ["no time zone"]),
    ("data_dir", " ", ["not blank", "path"]),
    ("outliers.factor", 0, ["greater than 0"]),
    ("outliers.factor", float("inf"), ["finite"]),
    ("memory.limit", "lots", ["'lots'", "not a size", "512MB"]),
    ("memory.limit", "12KB", ["too small"]),
    ("memory.margin", 1, ["less than 1"]),
    ("schedule.hour", 24, ["at most 23"]),
    ("schedule.minute", -1, ["at least 0"]),
    ("quality.max_quarantine_rate", 1.01, ["at most 1"]),
    ("quality.required_event_types", [], ["say null"]),
    ("schema_drift.new_column", "warm", ["'warm'", "warn or fail or accept", "Nearest: warn"]),
    ("source.csv.delimiter", ";;", ["';;'", "auto or one character"]),
    ("source.csv.delimiter", '"', ["auto or one character"]),
    ("source.csv.thousands", "_", ["none of the characters"]),
    ("source.csv.thousands", ".", ["same as the decimal mark"]),
    ("source.csv.encoding", "utf-88", ["'utf-88'", "nearest: utf-8"]),
    ("source.csv.encoding", "hex", ["no text encoding"]),
    ("source.csv.header", "perhaps", ["'perhaps'", "true or false"]),
    ("source.types.user_id", "int", ["int64 or string", "Nearest: int64"]),
    ("source.columns.value", {"sq": "x"}, ["unknown form sq", "nearest: sql"]),
    ("source.columns.value", {"sql": " "}, ["sql is blank"]),
    ("source.columns.value", {"sql": 1}, ["sql is not text"]),
    ("source.columns.value", {"path": "("}, ["no regular expression"]),
    ("source.columns.value", {"path": "abc"}, ["0 groups"]),
    ("source.columns.value", {"path": "(a)", "sql": "b"}, ["exactly one"]),
    ("source.columns.value", 5, ["{sql: expression}"]),
    ("source.columns.value", "", ["not blank"]),
    ("source.columns.user_id", None, ["user_id cannot be required"]),
    ("source.required", ["user"], ["'user' is not one of our columns", "nearest: user_id"]),
    ("source.required", ["user_id", "user_id"], ["twice"]),
    ("source.null_values", ["NA", False], ["item 2 is False", "quotes"]),
    ("source.null_values", "NA", ["not a list", "list of texts"]),
    ("source.patterns", [], ["at least 1", "1 or more"]),
    ("source.patterns", ["../*.csv"], ["leaves the folder"]),
    ("source.timestamp_formats", ["epoch"], ["no % directive", "nearest: epoch_s"]),
    ("source.timestamp_formats", ["%Q"], ["unknown directive %Q"]),
    ("source.timestamp_formats", ["%Y-%"], ["unknown directive %"]),
    ("source.timestamp_formats", ["%H:%M:%S.%f"], ["unknown directive %f", "%.f"]),
    ("source.timestamp_formats", ["%H:%M %Z"], ["unknown directive %Z", "%z"]),
    ("source.deduplicate", "exakt", ["nearest: exact", "none, exact, or a list"]),
    ("source.deduplicate", [], ["say none"]),
    ("source.deduplicate", ["session_strat"], ["nearest: session_start"]),
    ("source.column_naming", "lowercase", ["none or lower or upper or capitalize", "Nearest: lower"]),
    ("source.extra_columns", "hold", ["drop or keep"]),
    ("source.settle_seconds", -1, ["at least 0"]),
    ("source", 5, ["not a section"]),
]


@pytest.mark.parametrize(("key", "value", "words"), BAD)
def test_a_bad_value_is_named_with_what_is_allowed(write: Writer, key: str, value: object, words: list[str]) -> None:
    file = write(nested(key, value))
    error = refused(file)
    text = str(error)
    expected = "source.required" if key == "source.columns.user_id" else key
    assert str(file) in text
    assert f"{expected} = " in text
    assert "Allowed: " in text
    assert error.key == expected
    assert error.file == file
    for word in words:
        assert word in text


def test_bounds_in_the_wrong_order(write: Writer) -> None:
    text = str(refused(write({"quality": {"value_min": 5, "value_max": 1}})))
    assert "quality.value_max = 1: smaller than quality.value_min, which is 5" in text


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("precison", "precision"),
        ("Precision", "precision"),
        ("source.csv.delimeter", "source.csv.delimiter"),
        ("delimiter", "source.csv.delimiter"),
        ("source.cvs", "source.csv"),
        ("source.columns.userid", "source.columns.user_id"),
        ("_env_file", ""),
        ("model_config", ""),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(write: Writer, key: str, near: str) -> None:
    text = str(refused(write(nested(key, "x"))))
    assert f"{key} = 'x': no such key" in text
    assert "Allowed: " in text
    if near:
        assert f"Nearest: {near}" in text


def test_all_problems_are_listed(write: Writer) -> None:
    error = refused(
        write({"precision": 99, "colour": 1, "source": {"csv": {"header": "x"}}}), {"DATA_ASSETS_NOPE": "1"}
    )
    assert "4 problems" in error.what
    for key in ("precision = 99", "colour = 1", "source.csv.header = 'x'", "DATA_ASSETS_NOPE"):
        assert key in error.what


def test_a_secret_is_never_printed(write: Writer) -> None:
    settings: Settings = {
        "postgres": {"db_password": "hunter2", "url": "postgres://me:hunter2@host/db"},
        "api_token": "hunter2",
    }
    text = str(refused(write(settings), {"DATA_ASSETS_CLIENT_SECRET": "hunter2"}))
    assert "hunter2" not in text
    assert "db_password" in text
    assert "api_token" in text
    assert "DATA_ASSETS_CLIENT_SECRET" in text


def test_environment_beats_file(write: Writer) -> None:
    file = write({"precision": 99, "source": {"csv": {"delimiter": ";", "header": False}}})
    config = load_config(
        file,
        {
            "DATA_ASSETS_PRECISION": "3",
            "DATA_ASSETS_SOURCE__CSV__DELIMITER": r"\t",
            "DATA_ASSETS_SOURCE__PATTERNS": '["*.csv"]',
            "DATA_ASSETS_SOURCE__COLUMNS__VALUE": '{"sql": "a + b"}',
            "DATA_ASSETS_SOURCE__COLUMNS__METADATA": "null",
            "DATA_ASSETS_SOURCE__DIRECTORY": "in",
            "DATA_ASSETS_QUALITY": '{"value_min": 1, "value_max": 4}',
            "DATA_ASSETS_QUALITY__VALUE_MAX": "5",
            "DATA_ASSETS_START_DATE": "2020-01-01",
            "OTHER": "x",
        },
    )
    assert config.precision == 3
    assert config.source.csv.delimiter == "\t"
    assert config.source.csv.header is False
    assert config.source.patterns == ("*.csv",)
    assert config.source.columns.value == SqlExpression(sql="a + b")
    assert config.source.columns.metadata is None
    assert config.raw_dir == file.parent / "in"
    assert (config.quality.value_min, config.quality.value_max) == (1, 5)
    assert config.start_date == dt.date(2020, 1, 1)


def test_environment_replaces_a_columns_form(write: Writer) -> None:
    file = write({"source": {"columns": {"value": {"sql": "a"}}}})
    env = {"DATA_ASSETS_SOURCE": '{"columns": {"value": {"value": "1"}}}'}
    assert load_config(file, env).source.columns.value == ConstantValue(value="1")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("DATA_ASSETS_PRECISION", "x", ["environment variable DATA_ASSETS_PRECISION", "precision = 'x'", "Allowed"]),
        ("DATA_ASSETS_PRECISON", "1", ["no such setting", "Nearest: DATA_ASSETS_PRECISION"]),
        ("DATA_ASSETS_SOURCE_CSV_DELIMITER", ";", ["Nearest: DATA_ASSETS_SOURCE__CSV__DELIMITER"]),
        ("data_assets_precision", "1", ["no such setting", "Nearest: DATA_ASSETS_PRECISION"]),
        ("DATA_ASSETS_SOURCE__PATTERNS", "*.csv", ["not a list", "as JSON"]),
        ("DATA_ASSETS_SOURCE__PATTERNS", '["*.csv"', ["not valid JSON"]),
        ("DATA_ASSETS_QUALITY", "[1]", ["not a section"]),
        ("DATA_ASSETS_QUALITY", '{"rate": 1}', ["quality.rate", "no such key"]),
        ("DATA_ASSETS_QUALITY", '{"value_min": 1, "value_min": 2}', ["not valid JSON"]),
        (
            "DATA_ASSETS_QUALITY",
            '{"max_quarantine_rate": 2}',
            ["environment variable DATA_ASSETS_QUALITY", "at most 1"],
        ),
    ],
)
def test_a_bad_variable(tmp_path: Path, name: str, value: str, words: list[str]) -> None:
    text = str(refused(env={name: value}, cwd=tmp_path))
    for word in words:
        assert word in text


def test_where_the_file_is_looked_for(tmp_path: Path) -> None:
    assert find_config(None, {}, tmp_path) is None
    for number, name in enumerate(("pipeline.toml", "pipeline.yml", "pipeline.yaml", "other.yaml", "named.yaml")):
        separator = " = " if name.endswith("toml") else ": "
        (tmp_path / name).write_text(f"precision{separator}{number}\n")
    both = str(refused(cwd=tmp_path))
    assert "pipeline.yaml and pipeline.yml and pipeline.toml" in both
    env = {"DATA_ASSETS_CONFIG": "other.yaml"}
    assert load_config(None, env, tmp_path).precision == 3
    assert load_config(Path("named.yaml"), env, tmp_path).precision == 4
    for name, number in (("pipeline.yaml", 2), ("pipeline.yml", 1), ("pipeline.toml", 0)):
        for other in {"pipeline.yaml", "pipeline.yml", "pipeline.toml"} - {name}:
            (tmp_path / other).rename(tmp_path / f"{other}.off")
        assert load_config(None, {"DATA_ASSETS_CONFIG": ""}, tmp_path).precision == number
        for other in {"pipeline.yaml", "pipeline.yml", "pipeline.toml"} - {name}:
            (tmp_path / f"{other}.off").rename(tmp_path / other)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/p.yaml").write_text("data_dir: store\nsource: {directory: /srv/in}\n")
    config = load_config(Path("etc/p.yaml"), {}, tmp_path)
    assert config.data_dir == tmp_path / "etc/store"
    assert config.raw_dir == Path("/srv/in")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.yaml", "precision: 2\nsource: {csv: [}\n", ["line 2, column"]),
        ("p.yaml", "precision: 2\n\tx: 1\n", ["line 2"]),
        ("p.yaml", "precision: 2\ntrend_days: 3\nprecision: 3\n", ["line 3", "precision stands there twice"]),
        ("p.yaml", "source:\n  csv: {header: true, header: false}\n", ["line 2", "header stands there twice"]),
        ("p.yaml", "start_date: 2024-02-31\n", ["line 1", "not a valid timestamp"]),
        ("p.yaml", "a: &a [x]\nb: *a\n", ["line 2", "aliases"]),
        ("p.yaml", "a: &a [*a]\n", ["aliases"]),
        ("p.yaml", "x: !!python/object/apply:os.getcwd []\n", ["line 1", "could not determine a constructor"]),
        ("p.yaml", "- a\n", ["not a mapping"]),
        ("p.yaml", "a: 1\n---\nb: 2\n", ["line 2"]),
        ("p.yaml", "a: 1\nb: \x01\n", ["line 2"]),
        ("p.yaml", "[" * 100_000, ["nested too deeply"]),
        ("p.toml", "precision = 2\nprecision = 3\n", ["line 2"]),
        ("p.toml", "precision = \n", ["line 1"]),
        ("p.toml", "x = " + "[" * 100_000, ["nested too deeply"]),
        ("p.json", "{}", [".yaml, .yml or .toml"]),
        ("p.yaml", "#" * 1_000_001, ["larger than 1000000 bytes"]),
    ],
)
def test_a_file_that_cannot_be_parsed(tmp_path: Path, name: str, text: str, words: list[str]) -> None:
    file = tmp_path / name
    file.write_text(text)
    error = refused(file)
    assert str(file) in str(error)
    assert error.file == file
    for word in words:
        assert word in str(error)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "does not exist" in str(refused(tmp_path / "none.yaml"))
    assert "does not exist" in str(refused(env={"DATA_ASSETS_CONFIG": "none.yaml"}, cwd=tmp_path))
    (tmp_path / "dir.yaml").mkdir()
    assert "is not a file" in str(refused(tmp_path / "dir.yaml"))
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    assert "line 2: not UTF-8" in str(refused(tmp_path / "latin.yaml"))


@pytest.mark.parametrize("text", ["", "# nothing\n", "source:\n", "\ufeffprecision: 2\n"])
def test_an_empty_file_or_section_is_the_defaults(tmp_path: Path, text: str) -> None:
    (tmp_path / "pipeline.yaml").write_text(text, encoding="utf-8")
    assert load_config(None, {}, tmp_path) == load_config(None, {}, tmp_path)
    assert load_config(None, {}, tmp_path).mapping_fingerprint() == PipelineConfig().mapping_fingerprint()


def test_keys_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("2: x\non: y\n")
    text = str(refused(tmp_path / "p.yaml"))
    assert "2 = 'x': no such key" in text
    assert "True = 'y'" in text


def test_frozen_hashable_and_serialisable(write: Writer) -> None:
    config = load_config(write({"source": {"columns": {"value": {"sql": "a"}}, "deduplicate": ["user_id"]}}), {})
    assert {config: 1}[pickle.loads(pickle.dumps(config))] == 1  # noqa: S301
    again = PipelineConfig.model_validate(json.loads(config.model_dump_json()))
    assert again == config
    assert hash(again) == hash(config)
    with pytest.raises(ValueError, match="frozen"):
        config.precision = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        config.source.csv.header = False  # type: ignore[misc]


MEANS = [
    {"DATA_ASSETS_SOURCE__COLUMNS__VALUE": "amount"},
    {"DATA_ASSETS_SOURCE__COLUMNS__VALUE": '{"sql": "amount"}'},
    {"DATA_ASSETS_SOURCE__COLUMNS__VALUE": '{"value": "amount"}'},
    {"DATA_ASSETS_SOURCE__TYPES__USER_ID": "string"},
    {"DATA_ASSETS_SOURCE__TIMESTAMP_FORMATS": '["epoch_s", "epoch_ms"]'},
    {"DATA_ASSETS_SOURCE__TIMESTAMP_FORMATS": '["epoch_ms", "epoch_s"]'},
    {"DATA_ASSETS_SOURCE__NULL_VALUES": '["-"]'},
    {"DATA_ASSETS_SOURCE__CSV__DECIMAL_COMMA": "true"},
    {"DATA_ASSETS_SOURCE__DEDUPLICATE": "exact"},
    {"DATA_ASSETS_QUALITY__VALUE_MIN": "0"},
    {"DATA_ASSETS_TIMEZONE": "Europe/Paris"},
    {"DATA_ASSETS_START_DATE": "2023-01-01"},
    {"DATA_ASSETS_PRECISION": "3"},
    {"DATA_ASSETS_OUTLIERS__FACTOR": "3"},
    {"DATA_ASSETS_CLEANING__MISSING_VALUE": "mean"},
    {"DATA_ASSETS_CLEANING__MISSING_VALUE": '{"constant": 1}'},
    {"DATA_ASSETS_CLEANING__BOUNDS": "flag"},
    {"DATA_ASSETS_CLEANING__STANDARDISE": "minmax"},
    {"DATA_ASSETS_CLEANING__LOOKUP__COLUMNS": '["a"]'},
]
DOES_NOT_MEAN = [
    {"DATA_ASSETS_DATA_DIR": "/elsewhere"},
    {"DATA_ASSETS_SOURCE__DIRECTORY": "/elsewhere"},
    {"DATA_ASSETS_CLEANING__LOOKUP__FILE": "/elsewhere/types.csv"},
    {"DATA_ASSETS_SOURCE__SETTLE_SECONDS": "9"},
    {"DATA_ASSETS_MEMORY__LIMIT": "1GB"},
    {"DATA_ASSETS_TREND_DAYS": "7"},
    {"DATA_ASSETS_SCHEDULE__HOUR": "3"},
    {"DATA_ASSETS_SCHEMA_DRIFT__TYPE_CHANGE": "warn"},
    {"DATA_ASSETS_SOURCE__NULL_VALUES": '["NULL", "", "NA"]'},
    {"DATA_ASSETS_SOURCE__REQUIRED": '["event_type", "session_start", "user_id"]'},
]


def test_the_fingerprint_follows_the_meaning(tmp_path: Path) -> None:
    plain = load_config(env={}, cwd=tmp_path).mapping_fingerprint()
    prints = [load_config(env=env, cwd=tmp_path).mapping_fingerprint() for env in MEANS]
    assert len({plain, *prints}) == len(MEANS) + 1
    assert {load_config(env=env, cwd=tmp_path).mapping_fingerprint() for env in DOES_NOT_MEAN} == {plain}
    assert len(plain) == 16
    int(plain, 16)


def test_describe_has_every_key_once() -> None:
    rows = describe()
    keys = [row.key for row in rows]
    assert len(keys) == len(set(keys))
    assert {"source.csv.delimiter", "quality.value_min", "schedule.hour", "source.columns.user_id"} <= set(keys)
    assert all(row.type and row.description and row.default for row in rows)
    by_key = {row.key: row for row in rows}
    assert by_key["precision"].type == "whole number, at least 0, at most 9"
    assert json.loads(by_key["source.null_values"].default) == ["", "NA", "NULL"]
    assert by_key["source.directory"].default == "null"


def test_neither_import_nor_construction_reads_the_environment(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text("nonsense: 1\n")
    code = "from data_assets.config import PipelineConfig; assert PipelineConfig().precision == 2"
    env = {**os.environ, "DATA_ASSETS_PRECISION": "x", "PRECISION": "7"}
    env["PYTHONPATH"] = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)


def test_fractions_and_zones_of_the_engine_are_formats() -> None:
    formats = ("%Y/%m/%d %H:%M:%S%.3f", "%d.%m.%y %H:%M:%S%.f%:z", "%T%6f".replace("%T", "%H"))
    assert SourceConfig(timestamp_formats=formats).timestamp_formats == formats


CHANNEL = {"ops": {"url_env": "OPS_URL"}}
WRONG_ALERTS: list[tuple[Settings, str]] = [
    ({"channels": {"ops": {"url": "OPS_URL"}}}, "channel ops has no key 'url', nearest: url_env"),
    ({"channels": {"ops": {"url_env": "slack://T0KEN/x"}}}, "the name of an environment variable, not the address"),
    ({"channels": {"ops": {"url_env": "DATA_ASSETS_OPS"}}}, "begin its name with DATA_ASSETS_ALERT_"),
    ({"channels": {"o p s": {"url_env": "OPS"}}}, "'o p s' is no name for a channel"),
    ({"rules": [{"when": ["run_faild"]}]}, "rule 1, when: no 'run_faild', nearest: run_failed"),
    ({"rules": [{"when": ["run_failed"], "chanels": ["ops"]}]}, "rule 1 has no key 'chanels', nearest: channels"),
    ({"rules": [{"when": [{"kpi": "row_in", "below": 1}]}]}, "rule 1, kpi: no 'row_in', nearest: rows_in"),
    ({"rules": [{"when": [{"kpi": "rows_in"}]}]}, "rule 1: rows_in has no bound"),
    ({"channels": CHANNEL, "rules": [{"when": ["run_failed"], "channels": ["opps"]}]}, "no 'opps', nearest: ops"),
    ({"rules": [{"when": ["run_failed"], "quiet_hours": {"from": "22:00", "til": "7"}}]}, "has no key 'til'"),
    ({"rules": [{"when": ["run_failed"], "digest": "24:00"}]}, "'24:00' is not a time of day"),
    ({"rules": ["run_failed"]}, "rule 1 is not a mapping with when, severity"),
    ({"deadline": "soon"}, "'soon' is not a time of day"),
    ({"base_url": "https://user:T0KEN@example.com"}, "holds no login"),
]


@pytest.mark.parametrize(("alerts", "words"), WRONG_ALERTS, ids=lambda v: v if isinstance(v, str) else "")
def test_wrong_alerts_are_refused_in_words_without_secrets(write: Writer, alerts: Settings, words: str) -> None:
    problem = str(refused(write({"alerts": alerts})))
    assert words in problem
    assert "T0KEN" not in problem


def test_times_of_day_as_yaml_and_toml_have_them(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "alerts: {deadline: 06:30, rules: [{when: [run_failed], digest: 8:00, "
        "quiet_hours: {from: 22:00, to: '07:00'}}]}"
    )
    (tmp_path / "b.toml").write_text("[alerts]\ndeadline = 06:30:00\n")
    found = load_config(tmp_path / "a.yaml", env={}).alerts
    rule = found.rules[0]
    assert (found.deadline, rule.digest) == (dt.time(6, 30), dt.time(8))
    assert rule.quiet_hours is not None
    assert (rule.quiet_hours.start, rule.quiet_hours.end) == (dt.time(22), dt.time(7))
    assert load_config(tmp_path / "b.toml", env={}).alerts.deadline == dt.time(6, 30)


def test_a_channels_address_in_the_environment_is_no_setting_and_is_not_shown(tmp_path: Path) -> None:
    address = "slack://T0KEN/x"
    load_config(env={"DATA_ASSETS_ALERT_OPS": address}, cwd=tmp_path)
    assert "T0KEN" not in str(refused(env={"DATA_ASSETS_ALRET_OPS": address}, cwd=tmp_path))
    env = {"DATA_ASSETS_ALERTS__CHANNELS": json.dumps(CHANNEL)}
    assert load_config(env=env, cwd=tmp_path).alerts.channels["ops"].url_env == "OPS_URL"
