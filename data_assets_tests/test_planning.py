"""`plan` and `init`: what is said of a file before anything is made of it.

Here: samples of files in every format against the whole files, predictions against what the ordinary reader finds, and
guessed configurations, which must load and read the file they were guessed from. Not here: reading itself
(``test_ingest.py``).
"""

from __future__ import annotations

import decimal
import gzip
import json
import os
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from data_assets import guessing, ingest, landing, memory, planning, runs
from data_assets.cli import main
from data_assets.config import PipelineConfig, load_config
from data_assets.storage import Lake

HEADER = "user_id,session_start,session_end,event_type,value,metadata"
REAL = Path(__file__).parents[2] / "shared" / "data" / "real"


def line(n, *, bad=False, text="m"):
    day, hour = 1 + n * 20 // 200_000, n % 24
    return f"{'x' if bad else n % 500},2024-01-{day:02d} {hour:02d}:00:00,,view,{n % 10},{text}{n:020d}{'.' * 30}"


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """200,000 records of 20 days in each format, each 50th of them without a readable user; larger than a sample."""
    folder = tmp_path_factory.mktemp("big")
    lines = [line(n, bad=n % 50 == 0) for n in range(200_000)]
    text = "\n".join([HEADER, *lines]) + "\n"
    (folder / "plain.csv").write_text(text)
    (folder / "wide.csv").write_bytes(text.encode("utf-16"))
    quoted = (x.replace(",m", ',"m\n') + '"' for x in lines)
    (folder / "quoted.csv").write_text("\n".join([HEADER, *quoted]) + "\n")
    (folder / "packed.csv.gz").write_bytes(gzip.compress(text.encode(), 1))
    rows = [dict(zip(HEADER.split(","), x.split(","), strict=True)) for x in lines]
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "array.json").write_text(json.dumps(rows))
    pl.DataFrame(rows).write_parquet(folder / "table.parquet")
    return folder


def only(config, path, relative):
    """The plan of one file."""
    (plan,) = planning.plan_files(config, [(path, relative)])
    return plan


def cli(*args):
    done = CliRunner().invoke(main, list(args))
    assert done.exit_code in (0, 1, 2), done.output
    return done


@pytest.mark.parametrize(
    ("name", "form", "blocks"),
    [
        ("plain.csv", "csv", True),
        ("wide.csv", "csv", False),
        ("quoted.csv", "csv", False),
        ("packed.csv.gz", "csv.gz", False),
        ("lines.jsonl", "jsonl", True),
        ("array.json", "json", False),
        ("table.parquet", "parquet", True),
    ],
)
def test_a_sample_predicts_the_whole_file(big, tmp_path, name, form, blocks):
    config = PipelineConfig(data_dir=tmp_path / "data")
    found = only(config, big / name, name)
    assert (found.error, found.format, bool(found.sample)) == (None, form, True)
    assert found.sampled_rows < 150_000
    assert found.rows == pytest.approx(200_000, rel=0.03)
    assert found.rows_exact == (form == "parquet")
    assert found.reject_rate == pytest.approx(0.02, abs=0.001)
    assert set(found.reasons) == {"unreadable_user_id"}  # nothing was cut in the middle of a record
    assert found.delimiter == ("," if form.startswith("csv") else None)
    assert found.lane == ("exact" if name in ("array.json", "quoted.csv") else "fast")
    assert ("2024-01-20" in found.days) == blocks  # the end of the file was looked at
    assert found.encoding == {"wide.csv": "utf-16-le", "table.parquet": "binary"}.get(name, "utf-8")
    assert not (tmp_path / "data").exists()


def test_a_small_file_is_told_exactly_and_agrees_with_the_reader(tmp_path):
    raw = tmp_path / "data/raw"
    raw.mkdir(parents=True)
    (raw / "a.csv").write_text("\n".join([HEADER, *(line(n, bad=n % 7 == 0) for n in range(1000)), "short,row"]))
    config = PipelineConfig(data_dir=tmp_path / "data")
    found = only(config, raw / "a.csv", "a.csv")
    assert (found.sample, found.rows, found.rows_exact, found.refused) == ("", 1001, True, 144)
    assert found.reasons == {"unreadable_user_id": 143, "malformed_record": 1}
    records = ingest.open_records(raw / "a.csv", "a.csv", config, tmp_path)
    counted = ingest.count_days(records, "a.csv", config)
    assert sum(found.days.values()) == counted["rows"].sum()


@pytest.mark.parametrize(("good", "bad"), [("}, {", "} {"), ("}, {", "},, {"), ('"7"', "oops"), ("[", "[oops,")])
def test_a_broken_array_is_refused(big, tmp_path, good, bad):
    broken = tmp_path / "broken.json"
    broken.write_text((big / "array.json").read_text().replace(good, bad, 1))
    found = only(PipelineConfig(data_dir=tmp_path), broken, broken.name)
    assert "not valid JSON" in found.error


def test_plan_says_days_new_changed_and_as_made_and_writes_nothing(tmp_path, monkeypatch, project_at):
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "pipeline.yaml").write_text("start_date: 2024-01-01\nsource: {settle_seconds: 0}\n")
    one = tmp_path / "data/raw/one.csv"
    one.write_text(f"{HEADER}\n{line(0)}\n{line(10_000)}\n")
    monkeypatch.chdir(tmp_path)
    project = project_at(tmp_path, tmp_path)
    project.run("2024-01-01", "2024-01-02")
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    done = cli("plan", "--json")
    assert done.exit_code == 0
    (as_made,) = json.loads(done.stdout)["files"]
    assert (as_made["new"], as_made["changed"]) == ([], [])
    assert as_made["unchanged"] == ["2024-01-01", "2024-01-02"]
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before

    one.write_text(f"{HEADER}\n{line(0)}\n{line(190_000)}\n")
    os.utime(one, ns=(1, 1))
    (again,) = json.loads(cli("plan", str(one), "--json").stdout)["files"]
    assert (again["new"], again["changed"], again["unchanged"]) == (["2024-01-20"], ["2024-01-01"], [])
    words = cli("plan").stdout
    assert "2, 2024-01-01 to 2024-01-20: 1 new, 1 changed, 0 as made" in words
    assert cli("status").exit_code == 0  # now the ledger knows the file as it is, and the day is still to be made
    assert "2, 2024-01-01 to 2024-01-20: 1 new, 1 changed, 0 as made" in cli("plan").stdout


@pytest.mark.parametrize(("limit", "mode"), [("auto", "eager"), ("1MB", "streaming")])
def test_plan_says_how_each_day_will_be_worked_on_and_the_run_does_so(tmp_path, monkeypatch, project_at, limit, mode):
    (tmp_path / "data/raw").mkdir(parents=True)
    settings = f"start_date: 2024-01-01\nsource: {{settle_seconds: 0}}\nmemory: {{limit: {limit}}}\n"
    (tmp_path / "pipeline.yaml").write_text(settings + "quality: {max_quarantine_rate: 1}\n")
    lines = [*(line(n) for n in range(40)), line(10_000), line(20_000, bad=True)]
    (tmp_path / "data/raw/a.csv").write_text("\n".join([HEADER, *lines]))
    monkeypatch.chdir(tmp_path)
    (found,) = json.loads(cli("plan", "--json").stdout)["files"]
    decisions = found["decisions"]
    assert [d["mode"] for d in decisions.values()] == [mode, mode]
    assert [d["needed"] for d in decisions.values()] == [memory.needed(40), memory.needed(1)]
    assert (decisions["2024-01-01"]["available"] == 0) == (limit == "1MB")
    words = cli("plan").stdout
    assert f"  memory   {mode}: holding the day would take 0 MB" in words
    assert "(2024-01-01, the largest of 2 days)" in words

    project_at(tmp_path, tmp_path).run("2024-01-01", "2024-01-02")
    (of_run,) = runs.read(load_config().lake_dir).filter(pl.col("decision").is_not_null()).unique("decision").to_dicts()
    assert (of_run["decision"], of_run["predicted_mb"]) == (mode, pytest.approx(memory.needed(40) / 1e6, abs=0.001))


def test_what_holding_a_day_takes_is_foretold_from_a_sample_too(big, tmp_path):
    found = only(PipelineConfig(data_dir=tmp_path / "data"), big / "table.parquet", "table.parquet")
    assert sum(d.needed for d in found.decisions.values()) == pytest.approx(memory.needed(196_000), rel=0.01)
    texts = PipelineConfig.model_validate({"data_dir": tmp_path / "data", "source": {"types": {"user_id": "string"}}})
    as_text = only(texts, big / "table.parquet", "table.parquet")
    assert sum(d.needed for d in as_text.decisions.values()) == pytest.approx(memory.needed(200_000, 3.0), rel=0.01)


@pytest.mark.parametrize(
    ("seen", "rows", "scale", "low", "high"),
    [
        (0, 0, 1, 0, 0),
        (40, 60, 1, 40, 40),  # the sample is the whole
        (1_000, 100_000, 100, 1_000, 1_000),  # all came up many times
        (100, 100, 50, 5_000, 5_000),  # none came up twice
        (93_700, 100_000, 100, 730_000, 780_000),  # 100,000 draws of 750,000 users bring up about 93,700
    ],
)
def test_users_of_a_file_are_foretold_from_how_often_they_come_up_in_the_sample(seen, rows, scale, low, high):
    assert low <= planning._of_all(seen, rows, scale) <= high


def test_plan_says_how_the_schema_differs_from_that_of_the_files_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "data/raw"
    raw.mkdir(parents=True)
    (tmp_path / "pipeline.yaml").write_text("source: {settle_seconds: 0}\n")
    columns, row = "user_id,session_start,event_type,value", "1,2024-03-0{},view,{}\n"
    (raw / "a_2024-03-01.csv").write_text(columns + "\n" + row.format(1, "1.5") * 50)
    assert cli("status").exit_code == 0  # the ledger knows the first file
    (tmp_path / "b.csv").write_text(columns + ",more\n" + (row.format(2, "2.5").strip() + ",x\n") * 50)
    (tmp_path / "c.csv").write_text(columns + "\n" + row.format(2, "much") * 50)
    more, other = cli("plan", "b.csv"), cli("plan", "c.csv")
    assert (more.exit_code, more.output.count("  schema   warn: ")) == (0, 1)
    assert (other.exit_code, other.output.count("  schema   fail: ")) == (1, 1)
    assert [c["kind"] for c in json.loads(cli("plan", "c.csv", "--json").output)["files"][0]["changes"]] == [
        "type_change"
    ]


def test_schemas_of_a_folder_are_compared_as_the_run_will_compare_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "data/raw"
    raw.mkdir(parents=True)
    (tmp_path / "pipeline.yaml").write_text("source: {settle_seconds: 0}\n")
    columns, row = "user_id,session_start,event_type,value", "1,2024-03-0{},view,{}\n"
    for day, name in ((1, "a"), (2, "b"), (4, "d")):
        (raw / f"{name}_2024-03-0{day}.csv").write_text(columns + "\n" + row.format(day, "1.5") * 200)
    (raw / "c_2024-03-03.csv").write_text(columns + ",more\n" + (row.format(3, "2.5").strip() + ",x\n") * 200)
    (raw / "e_2024-03-05.csv").write_text(columns + "\n" + row.format(5, "much") * 200)

    def planned():
        return {f["path"]: [c["kind"] for c in f["changes"]] for f in json.loads(cli("plan", "--json").stdout)["files"]}

    before = planned()
    assert before == {
        "a_2024-03-01.csv": [],
        "b_2024-03-02.csv": [],
        "c_2024-03-03.csv": ["new_column"],
        "d_2024-03-04.csv": ["missing_column"],
        "e_2024-03-05.csv": ["type_change"],  # d was let pass without the column, so from then on it may be missing
    }
    assert cli("status").exit_code == 1
    changes = landing.open_changes(landing.read_ledger(Lake(load_config().lake_dir)))
    assert {path: [c.kind for c in found] for path, found in changes.items()} == {p: k for p, k in before.items() if k}
    assert planned() == before  # what the ledger has of a file itself counts no more


def test_plan_says_what_all_files_come_to(tmp_path, monkeypatch, project_at):
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "data/raw"
    raw.mkdir(parents=True)
    (tmp_path / "pipeline.yaml").write_text("start_date: 2024-01-01\nsource: {settle_seconds: 0}\n")
    (raw / "a.csv").write_text("\n".join([HEADER, line(0), line(10_000)]))
    project_at(tmp_path, tmp_path).run("2024-01-01", "2024-01-02")
    (raw / "b.csv").write_text("\n".join([HEADER, line(1), line(2, bad=True), line(20_000)]))
    (raw / "c.csv").write_text("nothing\n1\n")
    done = cli("plan")
    assert done.exit_code == 1
    said = done.stdout.partition("in all: ")[2].splitlines()
    assert said[:4] == [
        "3 files, 1 of them REFUSED",
        "  rows     5",
        "  days     3, 2024-01-01 to 2024-01-03: 1 new, 1 changed, 1 as made",
        "  refused  1 of 5 records looked at",
    ]
    assert said[4].endswith("(2024-01-01, the largest of 2 days)")  # 2024-01-02 is as made: no run would work on it
    total = json.loads(cli("plan", "--json").stdout)["in_all"]
    assert (total["new"], total["changed"], total["unchanged"]) == (["2024-01-03"], ["2024-01-01"], ["2024-01-02"])
    assert {day: d["needed"] for day, d in total["decisions"].items()} == {
        "2024-01-01": memory.needed(2),  # a row of each file
        "2024-01-03": memory.needed(1),
    }
    assert said[5] == f"  a run    up to about {total['seconds']:.0f} CPU-s and {total['memory_mb']} MB"
    (raw / "b.csv").unlink()
    assert "in all" not in cli("plan", str(raw / "a.csv")).stdout


@pytest.mark.parametrize("name", ["a.csv", "a_2024-01-09.csv"])
@pytest.mark.parametrize("kind", ["int64", "string"])
@pytest.mark.parametrize("lines", [[], [line(0), line(1), line(10_000)], [line(0), line(1, bad=True)]])
def test_a_small_file_that_reads_at_first_sight_is_foretold_as_by_every_rule(tmp_path, monkeypatch, name, kind, lines):
    (tmp_path / name).write_text("\n".join([HEADER, *lines]))
    os.utime(tmp_path / name, ns=(10**18, 10**18))
    config = PipelineConfig.model_validate({"data_dir": tmp_path / "data", "source": {"types": {"user_id": kind}}})
    monkeypatch.setattr(memory, "available", lambda _config: 10**9)
    seen, at_sight = [], ingest.all_at_sight
    monkeypatch.setattr(ingest, "all_at_sight", lambda *args: seen.append(at_sight(*args)) or seen[-1])
    quick = only(config, tmp_path / name, name)
    assert (seen[0] is not None) == (bool(lines) and (kind == "string" or not lines[-1].startswith("x")))
    monkeypatch.setattr(ingest, "all_at_sight", lambda *_: None)
    assert quick == only(config, tmp_path / name, name)


def test_plan_knows_a_day_as_made_where_a_lookup_is_configured(tmp_path, monkeypatch, project_at):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/raw").mkdir(parents=True)
    lookup = tmp_path / "users.csv"
    lookup.write_text("event_type,kind\nview,page\n")
    settings = "cleaning: {lookup: {file: users.csv, key: event_type}}\n"
    (tmp_path / "pipeline.yaml").write_text(f"start_date: 2024-01-01\nsource: {{settle_seconds: 0}}\n{settings}")
    (tmp_path / "data/raw/a.csv").write_text(f"{HEADER}\n{line(0)}\n")
    project_at(tmp_path, tmp_path).run("2024-01-01", "2024-01-01")

    def found():
        return [json.loads(cli("plan", "--json").stdout)["files"][0][name] for name in ("changed", "unchanged")]

    assert found() == [[], ["2024-01-01"]]
    lookup.write_text("event_type,kind\nview,screen\n")
    assert found() == [["2024-01-01"], []]


def test_a_file_that_is_gone_when_it_is_looked_at_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text(f"{HEADER}\n{line(0)}\n")
    config = PipelineConfig(data_dir=tmp_path / "data")
    gone, there = planning.plan_files(config, [(tmp_path / name, name) for name in ("gone.csv", "a.csv")])
    assert gone.error.startswith("gone.csv cannot be opened: No such file or directory.")
    assert (gone.is_refused, there.is_refused, there.rows) == (True, False, 1)


@pytest.mark.parametrize("column", ["value", "session_end", "metadata"])
@pytest.mark.parametrize("rows", [2, 20_000])
def test_a_file_whose_values_the_sql_cannot_be_computed_over_is_refused(tmp_path, rows, column):
    """As a run refuses it, also where the file is too long to be held."""
    numbers = pl.DataFrame({"n": [decimal.Decimal(10) ** 27] * rows}, schema={"n": pl.Decimal(38, 10)})
    frame = numbers.with_columns(user_id=1, session_start=pl.lit("2024-01-01"), event_type=pl.lit("a"))
    frame.write_parquet(tmp_path / "a.parquet")
    config = PipelineConfig(data_dir=tmp_path / "data", source={"columns": {column: {"sql": "n * n"}}})
    plan = only(config, tmp_path / "a.parquet", "a.parquet")
    assert plan.is_refused
    assert plan.error.startswith("a.parquet: SQL under source.columns cannot be computed over its values: overflow")


def test_times_of_an_offset_in_a_long_file_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.delenv("POLARS_IGNORE_TIMEZONE_PARSE_ERROR", raising=False)
    rows = planning.WHOLE_ROWS + 1
    starts = pa.array([1_704_189_600] * rows, pa.int64()).cast(pa.timestamp("s")).cast(pa.timestamp("us", "+05:30"))
    table = pa.table({"user_id": range(rows), "session_start": starts, "event_type": ["a"] * rows})
    pq.write_table(table, tmp_path / "a.parquet")
    proposal = guessing.propose([tmp_path / "a.parquet"], tmp_path)
    assert [(plan.error, dict(plan.events)) for plan in proposal.plans] == [(None, {"2024-01-02": rows})]


def test_init_leaves_the_first_day_open_where_no_start_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("who,what\n1,view\n2,click\n")
    found = guessing.propose([Path("x.csv")], Path("data/raw"))
    assert "session_start" in found.unknown
    (tmp_path / "pipeline.yaml").write_text(found.text)
    assert load_config(env={}, cwd=tmp_path).start_date.isoformat() == "1900-01-01"


def test_status_names_the_files_that_are_too_new(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "pipeline.yaml").write_text("source: {settle_seconds: 3600}\n")
    for number in range(12):
        (tmp_path / f"data/raw/{number:02d}.csv").write_text(f"{HEADER}\n{line(0)}\n")
    names = ", ".join(f"{number:02d}.csv" for number in range(10))
    assert f"too new, read once they no longer change: {names} and 2 more" in cli("status").stdout


def test_plan_says_what_is_refused_and_exits_with_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("userid,session_start,event_type,endd\n1,2024-01-01,view,\n")
    (tmp_path / "b.gz").write_bytes(b"")
    (tmp_path / "\x1bname.csv").write_text(HEADER + "\n")
    done = cli("plan", ".")
    assert done.exit_code == 1
    assert "user_id <- (the file has no such column; nearest: userid)" in done.stdout
    assert "REFUSED  a.csv: required column(s) missing: user_id" in done.stdout
    assert "\x1b" not in done.stdout
    assert "\\x1bname.csv" in done.stdout
    assert cli("plan", "b.gz").exit_code == 1  # its name tells no format
    assert cli("plan", "nowhere.csv").exit_code == 2
    (tmp_path / "pipeline.yaml").write_text('source: {columns: {value: {sql: "nowhere + 1"}}}\n')
    wrong = cli("plan", "a.csv")
    assert (wrong.exit_code, "nowhere" in wrong.stderr) == (2, True)


# ---- init --------------------------------------------------------------------------------------------------------


def guessed(tmp_path, monkeypatch, name, text, code=0):
    """The configuration that is written for a file of this text, loaded, and the plan with it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    done = cli("init", name)
    assert done.exit_code == code, done.output
    config = load_config(env={}, cwd=tmp_path)
    return config, only(config, tmp_path / name, name), done.stdout


def table(columns, rows, delimiter=","):
    return "\n".join(delimiter.join(map(str, row)) for row in [columns, *rows]) + "\n"


def test_init_guesses_names_types_formats_and_decimal_commas(tmp_path, monkeypatch):
    rows = [(f"K-{n % 9}", f"{n % 28 + 1:02d}/02/2024 10:{n % 60:02d}", "buy" if n % 2 else "sell", f"{n},5")
            for n in range(200)]  # fmt: skip
    text = table(["Customer ID", "Invoice Date", "Action", "Total Amount"], rows, ";")
    config, plan, _ = guessed(tmp_path, monkeypatch, "x.csv", text)
    mapping = config.source.columns
    assert (mapping.user_id, mapping.session_start) == ("Customer ID", "Invoice Date")
    assert (mapping.session_end, mapping.event_type, mapping.value) == (None, "Action", "Total Amount")
    assert config.source.types.user_id == "string"
    assert config.source.timestamp_formats == ("%d/%m/%Y %H:%M",)
    assert config.source.csv.decimal_comma
    assert config.start_date.isoformat() == "2024-02-01"
    assert (plan.error, plan.refused, plan.rows, plan.delimiter) == (None, 0, 200, ";")
    assert "AMBIGUOUS" not in (tmp_path / "pipeline.yaml").read_text()


@pytest.mark.parametrize(
    ("when", "formats", "ambiguous"),
    [
        ("2024-02-05T10:00:00Z", (), False),
        ("1707127200", ("epoch_s",), False),
        ("1707127200000", ("epoch_ms",), False),
        ("1707127200000000", ("epoch_us",), False),
        ("1707127200000000000", ("epoch_ns",), False),
        ("05/02/2024", ("%d/%m/%Y",), True),
        ("02/25/2024 01:05 PM", ("%m/%d/%Y %I:%M %p",), False),
        ("25.02.2024 10:00:01", ("%d.%m.%Y %H:%M:%S%.f",), False),
        ("2024/02/25 10:00:01.250", ("%Y/%m/%d %H:%M:%S%.f",), False),
        ("20240225", ("%Y%m%d",), False),
        ("25/Feb/2024:10:00:00 +0000", ("%d/%b/%Y:%H:%M:%S %z",), False),
    ],
)
def test_init_finds_the_format_of_times(tmp_path, monkeypatch, when, formats, ambiguous):
    text = table(["user", "event_time", "event"], [(1, when, "a"), (2, when, "b"), (3, when, "a")])
    config, plan, _ = guessed(tmp_path, monkeypatch, "x.csv", text)
    assert config.source.timestamp_formats == formats
    assert (plan.error, plan.refused, next(iter(plan.days))[:7]) == (None, 0, "2024-02")
    assert ("AMBIGUOUS" in (tmp_path / "pipeline.yaml").read_text()) == ambiguous


def test_init_leaves_out_columns_whose_names_no_configuration_can_hold(tmp_path, monkeypatch):
    """As what macOS lays beside a file, a `._name.csv`, begins with; its words look like a description."""
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_bytes(b"user_id,session_start,event_type,note\0\n1,2024-03-01,view,some words\n")
    found = guessing.propose([Path("x.csv")], Path("data/raw"))
    assert "\\0" not in found.text
    assert (found.plans[0].error, found.plans[0].refused) == (None, 0)


def test_init_looks_at_no_more_columns_than_anybody_would(tmp_path, monkeypatch):
    """One object of a hundred thousand keys is some program's settings; to look at all took an hour."""
    record = {f"key{n}": {str(m): "2024-03-01" for m in range(10)} for n in range(10_000)}
    monkeypatch.chdir(tmp_path)
    Path("x.json").write_text(json.dumps([{"user_id": 1, "session_start": "2024-03-01", **record}]))
    looked = []
    profile = guessing._profile
    monkeypatch.setattr(guessing, "_profile", lambda column: looked.append(column.name) or profile(column))
    found = guessing.propose([Path("x.json")], Path("data/raw"))
    assert (len(looked), looked[:2]) == (2_000, ["user_id", "session_start"])
    assert found.plans[0].rows == 1


@pytest.mark.parametrize(
    ("second", "dtype", "form"),
    [
        (1.0, pl.Float64(), "epoch_s"), (1e3, pl.Float64(), "epoch_ms"), (1, pl.Int32(), "epoch_s"),
        (1, pl.Decimal(18, 6), "epoch_s"),
    ],
)  # fmt: skip
def test_init_finds_seconds_since_1970_in_numbers(tmp_path, monkeypatch, second, dtype, form):
    monkeypatch.chdir(tmp_path)
    starts = pl.Series("ts", [(1_707_127_200 + n // 4) * second for n in range(60)], dtype=dtype)
    who = pl.DataFrame({"user": [f"u{n % 7}" for n in range(60)], "event": ["a", "b"] * 30, "meta": [{"x": 1}] * 60})
    who.with_columns(starts).write_parquet("x.parquet")
    found = guessing.propose([Path("x.parquet")], Path("data/raw"))
    (tmp_path / "pipeline.yaml").write_text(found.text)
    config = load_config(tmp_path / "pipeline.yaml")
    assert (config.source.columns.session_start, config.source.timestamp_formats) == ("ts", (form,))
    assert [(plan.error, plan.refused, dict(plan.days)) for plan in found.plans] == [(None, 0, {"2024-02-05": 60})]
    assert "0 different" not in found.text


def test_init_reaches_into_json_and_leaves_strangers_names_harmless(tmp_path, monkeypatch):
    rows = [{"actor": {"id": n % 5, "login": "x"}, "created_at": "2024-02-05T10:00:00Z", "type\n: {": f"t{n % 3}"}
            for n in range(30)]  # fmt: skip
    config, plan, _ = guessed(tmp_path, monkeypatch, "x.jsonl", "\n".join(map(json.dumps, rows)))
    assert config.source.columns.user_id in ("actor.id", "actor.login")
    assert config.source.columns.event_type == "type\n: {"
    assert (plan.error, plan.refused) == (None, 0)


def test_init_reads_a_file_without_header(tmp_path, monkeypatch):
    text = table([17, "2024-02-05 10:00:00", "view"], [(n, "2024-02-06 10:00:00", "viewbuy"[n % 2 * 4 :][:4])
                                                       for n in range(40)])  # fmt: skip
    config, _, out = guessed(tmp_path, monkeypatch, "x.csv", text, code=1)
    assert not config.source.csv.header
    assert (config.source.columns.session_start, config.source.columns.event_type) == ("column_2", "column_3")
    assert "source.columns.user_id could not be guessed; it may be: " in out
    assert "column_1" in out


def test_init_says_what_it_cannot_guess_and_the_rest_still_loads(tmp_path, monkeypatch):
    text = table(["when", "colour", "n"], [("2024-02-05", c, n) for n, c in enumerate(["red", "blue", "red"])])
    config, _, out = guessed(tmp_path, monkeypatch, "x.csv", text, code=1)
    assert "source.columns.user_id could not be guessed; it may be: colour, n" in out
    written = (tmp_path / "pipeline.yaml").read_text()
    assert "# user_id: ?" in written
    assert config.source.columns.session_start == "when"


def test_init_names_stray_days_and_does_not_begin_with_them(tmp_path, monkeypatch):
    rows = [(n, f"2024-02-{n % 20 + 1:02d} 10:00:00", "a") for n in range(400)] + [(1, "2001-01-01 00:00:00", "a")]
    config, plan, _ = guessed(tmp_path, monkeypatch, "x.csv", table(["user", "time", "event"], rows))
    assert config.start_date.isoformat() == "2024-02-01"
    assert plan.reasons == {"before_start_date": 1}


def test_init_overwrites_only_when_told_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text(table(["user", "time", "event"], [(1, "2024-02-05", "a"), (2, "2024-02-05", "a")]))
    (tmp_path / "pipeline.yaml").write_text("start_date: 2020-01-01\n")
    refused = cli("init", "x.csv")
    assert (refused.exit_code, "--force" in refused.stderr) == (2, True)
    assert (tmp_path / "pipeline.yaml").read_text() == "start_date: 2020-01-01\n"
    assert cli("init", "x.csv", "--force").exit_code == 0
    assert load_config(env={}, cwd=tmp_path).source.columns.user_id == "user"
    assert cli("init", "nowhere.csv", "--force").exit_code == 2
    (tmp_path / "empty").mkdir()
    assert cli("init", "empty", "--force").exit_code == 2


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data sets are not here")
@pytest.mark.parametrize(
    ("folder", "user", "start"),
    [
        ("wikiticker", "user", "time"),
        ("sepsis", "Case ID", "Complete Timestamp"),
        ("airline_stats", "TailNum", "FlightDate"),
        ("nyc_yellow_taxi", "vendor_id", "pickup_datetime"),
    ],
)
def test_init_on_real_files_reads_nearly_all_of_them(tmp_path, folder, user, start):
    files = guessing.files_to_look_at([REAL / folder])
    found = guessing.propose(files, Path("data/raw"))
    assert not found.unknown
    (tmp_path / "pipeline.yaml").write_text(found.text)
    config = load_config(env={}, cwd=tmp_path)
    assert (config.source.columns.user_id, config.source.columns.session_start) == (user, start)
    plans = planning.plan_files(config, [(path, path.name) for path in files])
    assert max(p.reject_rate for p in plans) < 0.01
