"""Schema drift: what a file looks like, what counts as a change, what is refused, and how it is accepted."""

from __future__ import annotations

import datetime as dt
import json
import random
import time
from typing import TYPE_CHECKING

import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st

from data_assets import checks, drift, ingest, landing
from data_assets.cli import main
from data_assets.config import PipelineConfig, load_config
from data_assets.drift import Column, Schema, SeenFile
from data_assets.errors import ConfigurationError
from data_assets.storage import DayLog, Lake

if TYPE_CHECKING:
    from pathlib import Path

DAY = dt.date(2024, 3, 1)
LATER = dt.date(2024, 3, 2)


def settings(**sections: dict[str, object]) -> PipelineConfig:
    return PipelineConfig(**sections)  # type: ignore[arg-type]


def observed(folder: Path, name: str, content: str | pl.DataFrame, config: PipelineConfig | None = None) -> Schema:
    config = config or settings()
    path = folder / name
    if isinstance(content, pl.DataFrame):
        content.write_parquet(path)
    else:
        path.write_text(content, encoding="utf-8")
    records = ingest.open_records(path, name, config, folder, require_columns=False)
    return drift.observe(records, name, config)


def families(schema: Schema) -> dict[str, str]:
    return {c.name: c.types[0] for c in schema.columns}


# ---- What a file looks like ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "family"),
    [
        (["1", " -2 ", "+3"], "integer"),
        (["1", "2.5", "1e3"], "number"),
        (["true", "False", " TRUE"], "boolean"),
        (["2024-01-31", "2024-01-31T10:20:30Z", "2024-01-31 10:20"], "time"),
        (['{""a"": 1}', "[]"], "nested"),
        (["a", "1", "2024"], "integer"),  # most of it is: the bad cell is the quarantine's matter
        (["a", "b", "3"], "text"),
        (["", "NA", " NULL "], "empty"),
        (["31/01/2024 10:20", "01/02/2024 00:00"], "time"),
    ],
)
def test_the_family_of_a_column_of_text(tmp_path: Path, cells: list[str], family: str) -> None:
    config = settings(source={"timestamp_formats": ("%d/%m/%Y %H:%M",)})
    rows = "".join(f'x,"{cell}"\n' for cell in cells)
    assert families(observed(tmp_path, "a.csv", "y,c\n" + rows, config))["c"] == family


def test_native_types_and_text_in_parquet(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "i": pl.Series([1, None], dtype=pl.UInt8), "n": [1.5, 2.0], "d": [DAY, DAY], "b": [True, None],
            "s": [{"x": 1}, None], "raw": [b"\xff", b"x"], "nothing": pl.Series([None, None], dtype=pl.Null),
            "digits": ["1", "2"], "kind": pl.Series(["a", "b"], dtype=pl.Categorical),
        }
    )  # fmt: skip
    found = observed(tmp_path, "a.parquet", frame)
    assert families(found) == {
        "i": "integer", "n": "number", "d": "time", "b": "boolean", "s": "nested", "raw": "text",
        "nothing": "empty", "digits": "integer", "kind": "text",
    }  # fmt: skip
    assert {c.name: c.nulls for c in found.columns if c.nulls} == {"i": 0.5, "b": 0.5, "s": 0.5, "nothing": 1.0}


def test_keys_of_json_that_nothing_reads_are_known_by_name(tmp_path: Path) -> None:
    found = observed(tmp_path, "a.jsonl", '{"user_id": 1, "other": 2}\n{"user_id": 2, "metadata": {"a": 1}}\n')
    assert families(found) == {"user_id": "integer", "other": "empty", "metadata": "nested"}
    assert not found.headed


def test_epochs_are_times_where_the_mapping_says_so(tmp_path: Path) -> None:
    config = settings(source={"timestamp_formats": ("epoch_s",)})
    found = families(observed(tmp_path, "a.csv", "session_start,value\n1700000000,1700000000\n", config))
    assert found == {"session_start": "time", "value": "integer"}


def test_event_types_are_followed_up_to_fifty(tmp_path: Path) -> None:
    def of(count: int) -> tuple[str, ...] | None:
        return observed(tmp_path, "a.csv", "Event_Type\n" + "".join(f"t{n:02}\n" for n in range(count))).event_types

    assert of(2) == ("t00", "t01")
    assert len(of(50) or ()) == 50
    assert of(51) is None


def test_malformed_and_empty_records_are_no_sample(tmp_path: Path) -> None:
    found = observed(tmp_path, "a.csv", "a,b\n1,2\n1,2,3,4\n,\n3,4\n")
    assert (found.rows, [c.nulls for c in found.columns]) == (2, [0.0, 0.0])


def test_wide_files_are_sampled_shorter(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(2_000)]
    frame = pl.DataFrame({name: range(700) for name in names})
    assert observed(tmp_path, "a.parquet", frame).rows == 500


CELLS = {"integer": ["1", "-20"], "time": ["2024-03-01 10:00:00"], "text": ["x", "y z"], "": ["", "NA"]}


@tries(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from(sorted(CELLS))] * 3), min_size=1, max_size=30), st.randoms())
def test_observations_against_counting_by_hand(kinds: list[tuple[str, ...]], chance: random.Random) -> None:
    import tempfile
    from pathlib import Path

    lines = [",".join(chance.choice(CELLS[k]) for k in row) + ",end" for row in kinds]
    with tempfile.TemporaryDirectory() as folder:
        found = observed(Path(folder), "a.csv", "a,b,c,d\n" + "".join(f"{x}\n" for x in lines))
    assert Schema.from_json(found.to_json()) == found
    for number in range(3):
        column = [row[number] for row in kinds]
        given_kinds = [k for k in column if k]
        assert found.columns[number].nulls == round(1 - len(given_kinds) / len(column), 4)
        most = {k for k in given_kinds if given_kinds.count(k) > len(given_kinds) / 2} or {"text"}
        assert set(found.columns[number].types) == (most if given_kinds else {"empty"})


# ---- What changed --------------------------------------------------------------------------------------------------


def columns(*names: str, **types: drift.Family) -> tuple[Column, ...]:
    """Columns without nulls on 1,000 rows."""
    all_types: dict[str, drift.Family] = {**dict.fromkeys(names, "text"), **types}
    return tuple(Column(name, (family,), 0.0, 1_000) for name, family in all_types.items())


def changes(before: Schema, now: Schema, config: PipelineConfig | None = None, day: dt.date = DAY) -> list[str]:
    found = drift.compare(before, now, config or settings(), day)
    return [f"{c.kind} {c.column} {c.policy}" for c in found]


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"value": "integer"}, {"value": "number"}, []),
        ({"value": "number"}, {"value": "integer"}, []),
        ({"value": "empty"}, {"value": "text"}, []),
        ({"value": "number"}, {"value": "empty"}, []),
        ({"value": "number"}, {"value": "text"}, ["type_change value fail"]),
        ({"session_start": "time"}, {"session_start": "integer"}, ["type_change session_start fail"]),
        ({"metadata": "nested"}, {"metadata": "text"}, []),  # becomes text anyway
        ({"event_type": "text"}, {"event_type": "integer"}, []),
        ({"other": "number"}, {"other": "text"}, ["type_change other warn"]),  # nothing reads it
        ({"value": "number", "other": "text"}, {}, ["missing_column value fail", "missing_column other warn"]),
        ({}, {"other": "text"}, ["new_column other warn"]),
        ({"a": "text", "b": "text"}, {"b": "text", "a": "text"}, []),
    ],
)
def test_what_is_a_change(before: dict[str, drift.Family], now: dict[str, drift.Family], expected: list[str]) -> None:
    assert changes(Schema(columns("user_id", **before)), Schema(columns("user_id", **now))) == expected


def test_user_ids_may_change_their_type_where_they_are_text() -> None:
    before, now = Schema(columns(user_id="integer")), Schema(columns(user_id="text"))
    assert changes(before, now) == ["type_change user_id fail"]
    assert changes(before, now, settings(source={"types": {"user_id": "string"}})) == []


def test_columns_that_sql_reads_are_read() -> None:
    config = settings(source={"columns": {"value": {"sql": "CAST(Quantity AS DOUBLE) * 2"}}})
    assert changes(Schema(columns("x", quantity="number")), Schema(columns("x")), config) == [
        "missing_column quantity fail"
    ]


def test_policies() -> None:
    before, now = Schema(columns("x", value="number")), Schema(columns("y", value="text"))
    config = settings(schema_drift={"new_column": "fail", "missing_column": "accept", "type_change": "warn"})
    assert changes(before, now, config) == ["type_change value warn", "new_column y fail"]


@pytest.mark.parametrize(
    ("rows", "before", "now", "jumps"),
    [
        (1_000, 0.0, 0.3, True),
        (1_000, 0.0, 0.15, False),  # below null_rate_jump
        (1_000, 0.9, 0.1, False),  # a fall
        (3, 0.0, 1.0, False),  # by chance
        (10, 0.0, 1.0, True),
        (0, 0.0, 0.0, False),
    ],
)
def test_missing_values(rows: int, before: float, now: float, jumps: bool) -> None:
    known, found = (Schema((Column("value", ("number",), share, rows),), rows=rows) for share in (before, now))
    assert changes(known, found) == (["null_rate value warn"] if jumps else [])


def test_a_key_of_json_may_be_missing_by_chance() -> None:
    before = Schema((Column("value", ("number",), 0.5, 100), Column("user_id", ("integer",), 0.0, 100)), rows=100)

    def without_value(rows: int) -> Schema:
        return Schema((Column("user_id", ("integer",), 0.0, rows),), rows=rows, headed=False)

    assert changes(before, without_value(2)) == []
    assert changes(before, without_value(100)) == ["missing_column value fail"]


def test_new_event_types() -> None:
    before, now = (Schema(columns("event_type"), types) for types in (("view",), ("click", "view")))
    assert changes(before, now) == ["new_event_type event_type warn"]
    assert changes(before, now, settings(quality={"required_event_types": ("click", "view")})) == []
    too_many = Schema(columns("event_type"), None)
    assert changes(before, too_many) == changes(too_many, now) == []


def test_names_from_files_are_shown_escaped() -> None:
    [change] = drift.compare(Schema(columns("a")), Schema(columns("a", "b\x1b[31m\n")), settings(), DAY)
    assert change.text == "the column 'b\\x1b[31m\\n' (text) is new"


# ---- The judgement over all files ----------------------------------------------------------------------------------


def seen(path: str, schema: Schema, day: dt.date = DAY) -> SeenFile:
    return SeenFile(path, day, schema)


def test_a_refused_file_is_not_what_the_next_is_compared_with() -> None:
    whole, torn = Schema(columns("user_id", "value")), Schema(columns("user_id"))
    files = [seen("a", whole), seen("b", torn), seen("c", torn, LATER), seen("d", whole, LATER)]
    found, known = drift.judge(reversed(files), None, settings())
    assert {path: drift.fails(of_file) for path, of_file in found.items()} == {"b": True, "c": True}
    assert known == whole


def test_senders_that_take_turns_are_reported_once() -> None:
    config = settings(schema_drift={"missing_column": "warn"})
    turns = [Schema(columns("user_id", "value")), Schema(columns("user_id", other="integer"))]
    found, known = drift.judge([seen(f"{n:02}", turns[n % 2]) for n in range(10)], None, config)
    # 01 lacks value and has other, 02 lacks other, which was new in 01; after that both are known.
    assert [(path, [c.kind for c in of_file]) for path, of_file in found.items()] == [
        ("01", ["missing_column", "new_column"]),
        ("02", ["missing_column"]),
    ]
    assert known is not None
    assert [(c.name, c.optional) for c in known.columns] == [("user_id", False), ("value", True), ("other", True)]


def test_files_without_columns_say_nothing() -> None:
    header_only = Schema(tuple(Column(c.name, ("empty",)) for c in columns("user_id", "value")))
    files = [seen("a", Schema(())), seen("b", header_only), seen("c", Schema(columns("user_id", value="number")))]
    files += [seen("d", header_only), seen("e", Schema(())), seen("f", Schema(columns("user_id", value="text")))]
    found, _ = drift.judge(files, None, settings())
    assert list(found) == ["f"], "a header without rows does not make the types forgotten"


def test_everything_is_compared_with_the_accepted_schema() -> None:
    accepted = Schema((Column("user_id", ("text",)), Column("new", ("integer", "text"), since=LATER)))
    old, new = Schema(columns("user_id")), Schema(columns("user_id", new="integer"))
    files = [seen("a", old), seen("b", old, LATER), seen("c", new, LATER), seen("d", Schema(columns("user_id", "x")))]
    found, known = drift.judge(files, accepted, settings())
    assert {path: [c.kind for c in of_file] for path, of_file in found.items()} == {
        "b": ["missing_column"],
        "d": ["new_column"],
    }
    assert known == accepted


def schemas() -> st.SearchStrategy[Schema]:
    column = st.builds(
        lambda name, family, nulls: (name, family, nulls),
        st.sampled_from(["user_id", "value", "event_type", "x", "on", "1", "~", "a: b #", "ключ", "\x07"]),
        st.sampled_from(["empty", "integer", "number", "time", "text", "nested"]),
        st.sampled_from([0.0, 0.1, 0.5, 0.9876, 1.0]),
    )

    def build(found: list[tuple[str, drift.Family, float]], rows: int, types: list[str], headed: bool) -> Schema:
        made = tuple(Column(n, (f,), 1.0 if f == "empty" else s, rows) for n, f, s in found)
        return Schema(made, tuple(sorted(types)), rows, headed)

    return st.builds(
        build,
        st.lists(column, max_size=5, unique_by=lambda c: c[0]),
        st.sampled_from([1, 10, 1_000]),
        st.lists(st.sampled_from(["view", "click", "no", "é"]), unique=True),
        st.booleans(),
    )


FILES = st.lists(st.tuples(schemas(), st.sampled_from([DAY, LATER])), min_size=1, max_size=6)
STRICT = {"new_column": "fail", "type_change": "fail", "null_rate": "fail", "new_event_type": "fail"}


@tries(deadline=None)
@given(FILES)
def test_nothing_differs_from_what_was_accepted(tmp_path_factory: pytest.TempPathFactory, found: list) -> None:
    """Also after it was written and read again."""
    config = settings(schema_drift=STRICT)
    files = [seen(str(n), schema, day) for n, (schema, day) in enumerate(found)]
    agreed = drift.accept(files, None, config)
    path = tmp_path_factory.getbasetemp() / "schema.yaml"
    drift.write_accepted(path, agreed)
    again = drift.read_accepted(path)
    assert again == agreed
    assert drift.judge(files, again, config)[0] == {}


@tries(deadline=None)
@given(FILES, st.randoms())
def test_the_judgement_does_not_depend_on_the_order_it_is_given(found: list, chance: random.Random) -> None:
    files = [seen(str(n), schema, day) for n, (schema, day) in enumerate(found)]
    shuffled = chance.sample(files, len(files))
    assert drift.judge(files, None, settings()) == drift.judge(shuffled, None, settings())


@tries(deadline=None)
@given(FILES, st.data())
def test_accepting_some_files_refuses_none_that_passed(found: list, data: st.DataObject) -> None:
    config = settings(schema_drift=STRICT)
    files = [seen(str(n), schema, day) for n, (schema, day) in enumerate(found)]
    before, known = drift.judge(files, None, config)
    chosen = data.draw(st.lists(st.sampled_from(files), min_size=1, unique_by=lambda f: f.path))
    unchanged = [f for f in files if f.path not in before]
    after, _ = drift.judge(files, drift.accept(chosen, known, config, unchanged), config)
    missing = {path for path, of_file in after.items() if any(c.kind != "null_rate" for c in of_file)}
    assert missing <= before.keys() - {f.path for f in chosen}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("columns: {a: {type: int}}\n", "columns.a.type"),
        ("columns: {a: {type: text, nulls: 2}}\n", "columns.a.nulls"),
        ("columns: {a: {type: text, nuls: 0}}\n", "columns.a.nuls"),
        ("columns: {a: {type: text}, a: {type: text}}\n", "stands there twice"),
        ("colums: {}\n", "columns"),
        ("- a\n", "not a mapping"),
    ],
)
def test_an_accepted_schema_that_cannot_be_used_says_where(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said) as problem:
        drift.read_accepted(path)
    assert problem.value.hint


# ---- Ledger, days and commands -------------------------------------------------------------------------------------

HEADER = "user_id,session_start,event_type,value\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in the working directory: two good days, and one whose value is called something else."""
    (tmp_path / "pipeline.yaml").write_text("start_date: 2024-03-01\nsource: {settle_seconds: 0}\n")
    raw = tmp_path / "data" / "raw"
    raw.mkdir(parents=True)
    for day in (1, 4):
        rows = "".join(f"{n},2024-03-0{day} 10:00:00,view,{n}.5\n" for n in range(1, 6))
        (raw / f"2024-03-0{day}.csv").write_text(HEADER + rows)
    (raw / "2024-03-03.csv").write_text(HEADER.replace("value", "amount") + "1,2024-03-03 10:00:00,view,1.5\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def due(folder: Path) -> list[str]:
    config = load_config(folder / "pipeline.yaml", env={})
    lake = Lake(config.lake_dir)
    ledger = landing.refresh(config, lake, now_ns=time.time_ns()).ledger
    return list(landing.stale_days(ledger, DayLog(config.lake_dir), first=DAY, last=dt.date(2024, 3, 31)))


def finish(folder: Path, *days: str) -> None:
    config = load_config(folder / "pipeline.yaml", env={})
    marks = landing.fingerprints(landing.refresh(config, Lake(config.lake_dir), now_ns=time.time_ns()).ledger)
    for day in days:
        DayLog(config.lake_dir).finish(day, marks[day])


def test_what_makes_a_day_due(folder: Path) -> None:
    finish(folder, "2024-03-01", "2024-03-04")
    assert due(folder) == ["2024-03-03"]
    strict = "start_date: 2024-03-01\nsource: {settle_seconds: 0}\nschema_drift: {missing_column: %s}\n"
    (folder / "pipeline.yaml").write_text(strict % "warn")
    finish(folder, "2024-03-03")
    assert due(folder) == [], "a day that is only warned about is not made again"
    (folder / "pipeline.yaml").write_text(strict % "fail")
    assert due(folder) == ["2024-03-03"], "a stricter policy takes effect"
    others = columns("event_type", user_id="integer", session_start="time", amount="number")
    others += (Column("value", ("time",), optional=True),)
    drift.write_accepted(folder / "schema.yaml", Schema(others))
    assert due(folder) == ["2024-03-01", "2024-03-04"], "so does an accepted schema"
    (folder / "schema.yaml").unlink()
    assert due(folder) == ["2024-03-03"]


def test_a_look_at_unchanged_files_judges_nothing_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = due(folder)
    judged: list[object] = []
    monkeypatch.setattr(landing, "judge", lambda ledger, _config: judged.append(1) or ledger)
    assert due(folder) == before
    assert not judged
    (folder / "schema.yaml").write_text("columns: {}\n")
    due(folder)
    assert judged


def test_a_refused_day_is_named_accepted_and_made(folder: Path) -> None:
    def cli(*args: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, list(args))
        return done.exit_code, done.output

    code, out = cli("run")
    assert code == 1
    assert "2 of 3 days done" in out
    assert "2024-03-03.csv: its schema is not that of the files before: the column 'value' is missing" in out
    assert "data-assets schema accept 2024-03-03.csv (or set schema_drift.missing_column to warn)" in out
    code, out = cli("status", "--json")
    found = json.loads(out)
    assert (code, found["days_to_do"]) == (1, ["2024-03-03"])
    assert [(c["kind"], c["column"], c["policy"]) for c in found["schema_changes"]] == [
        ("missing_column", "value", "fail"),
        ("new_column", "amount", "warn"),
    ]
    log = DayLog(folder / "data" / "lake")
    of_day = {f.name: f for f in log.findings("raw_events", "2024-03-03")}
    assert (of_day["schema_drift"].passed, of_day["schema_drift"].severity) == (False, "ERROR")
    assert [f.passed for f in log.findings("raw_events", "2024-03-04") if f.name == "schema_drift"] == [True]

    code, out = cli("schema", "accept", "2024-03-3.csv")
    assert (code, "Nearest: 2024-03-03.csv" in out) == (2, True)
    code, out = cli("schema", "accept", "data/raw/2024-03-03.csv")
    assert code == 0, out
    assert (folder / "schema.yaml").read_text().count("optional: true") == 2
    code, out = cli("schema", "show", "--json")
    assert json.loads(out)["changes"] == []
    assert "value" in cli("schema", "show")[1]
    code, out = cli("run", "--json")
    assert (code, json.loads(out)["days"], json.loads(out)["failed"]) == (0, 1, {})
    assert cli("status")[0] == 0


def test_the_check_of_a_day() -> None:
    warned = drift.changes_to_json([drift.Change("new_column", "x", "warn", "the column 'x' is new")])
    files = pl.DataFrame({"path": ["a", "b"], "drift": [None, warned]}, schema={"path": pl.String, "drift": pl.String})
    finding = checks.schema_drift(files)
    assert (finding.passed, finding.severity, finding.observed) == (False, "WARN", "b: the column 'x' is new")
    assert checks.schema_drift(files.head(1)).passed
