"""The quarantine as people use it: what is listed, shown, exported, and what comes through when it is replayed.

Here: a small project that is run, mended and replayed by the command line; expected is a fresh run over everything. Not
here: why a record is refused (``test_ingest.py``).
"""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter

import polars as pl
import pytest
from click.testing import CliRunner

from data_assets import quarantine, staging
from data_assets.cli import main
from data_assets.reasons import REASONS

CONFIG = """
start_date: 2024-03-01
source: {{settle_seconds: 0{source}}}
quality: {{max_quarantine_rate: 1{quality}}}
schema_drift: {{missing_column: warn, type_change: warn}}
{more}
"""
HEADER = "user_id,session_start,session_end,event_type,value\n"
# Three days; times written day first are unreadable at first, so they count for the home day, 2024-03-01.
A = HEADER + (
    "1,2024-03-01 10:00:00,2024-03-01 10:10:00,view,1\n"
    "2,01/03/2024 11:00,,view,2\n"
    "3,02/03/2024 11:00,,=HYPERLINK(1),3\n"
    "4,2024-03-02 09:00:00,,view,4\n"
    "x,2024-03-02 09:00:00,,view,5\n"
    "6,2024-03-03 09:00:00,,view,6\n"
)
B = HEADER + "7,2024-03-03 23:30:00,,view,7\n8,2024-03-03 23:40:00,,view,none\n9,2024-03-04 23:30:00,,view,9\n"
# All on one line: lines do not tell these records apart.
C = json.dumps(
    [{"user_id": u, "session_start": f"2024-03-05 1{u}:00:00", "event_type": "view", "value": v} for u, v in
     [(1, 1), (2, "much"), (3, "more"), (4, 50)]]
)  # fmt: skip
TABLES = (
    "raw_events", "quarantined_events", "session_metrics", "outliers", "event_distribution", "summary_statistics",
    "daily_kpis",
)  # fmt: skip
DAYS = [f"2024-03-0{n}" for n in range(1, 6)]


def configure(root, source="", quality="", more=""):
    (root / "pipeline.yaml").write_text(CONFIG.format(source=source, quality=quality, more=more))


@pytest.fixture(scope="module")
def made(project_at, tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "project"
    raw = root / "data/raw"
    raw.mkdir(parents=True)
    (raw / "a_2024-03-01.csv").write_text(A)
    (raw / "b.csv").write_text(B)
    (raw / "c.json").write_text(C)
    configure(root)
    project = project_at(root, root)
    assert project.run(DAYS[0], DAYS[-1]).success
    return project


@pytest.fixture
def again(made, tmp_path, monkeypatch):
    """The project where it may be changed, and the command line in its folder."""
    root = tmp_path / "project"
    shutil.copytree(made.root, root)
    monkeypatch.chdir(root)
    return root


def cli(*args):
    done = CliRunner().invoke(main, list(args))
    assert done.exit_code in (0, 1, 2), done.output
    return done


def replay(*args):
    done = cli("quarantine", "replay", "--json", *args)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def fresh(project_at, root, tmp_path):
    """The same files and configuration, everything made from nothing."""
    other = tmp_path / "fresh"
    shutil.copytree(root, other, ignore=shutil.ignore_patterns("lake", "warehouse*", "reports", ".*"))
    project = project_at(other, other)
    project.run(DAYS[0], DAYS[-1])
    return project


def assert_as_fresh(project_at, root, tmp_path, days):
    """Every table of the days is what a run over everything makes, and no record is lost or there twice."""
    expected, found = fresh(project_at, root, tmp_path), project_at(root, root)
    for table in TABLES:
        assert found.table(table, days).equals(expected.table(table, days)), table
    # Over all days, replayed or not, each physical record stands once.
    for project in (found, expected):
        notes = [staging.noted_files(project.lake.notes("raw_events", d)) for d in DAYS]
        assert sum(staging.sums(n)["rows_in"] for n in notes) == 13
    keys = [
        Counter(pl.concat([p.table(t, DAYS).select("source_file", "source_line") for t in TABLES[:2]]).rows())
        for p in (found, expected)
    ]
    assert keys[0] == keys[1]


def test_the_list_counts_each_reason_by_file_and_day_most_first(made, monkeypatch):
    monkeypatch.chdir(made.root)
    rows = json.loads(cli("quarantine", "--json").stdout)
    assert rows == json.loads(cli("quarantine", "list", "--json").stdout)
    assert [tuple(r.values()) for r in rows] == [
        ("unreadable_session_start", "a_2024-03-01.csv", "2024-03-01", 2),
        ("unreadable_value", "c.json", "2024-03-05", 2),
        ("unreadable_user_id", "a_2024-03-01.csv", "2024-03-02", 1),
        ("unreadable_value", "b.csv", "2024-03-03", 1),
    ]
    assert "6 records are in quarantine" in cli("quarantine").stdout


@pytest.mark.parametrize(
    ("args", "lines"),
    [
        (["--reason", "unreadable_value"], [3, 1, 1]),
        (["--reason", "unreadable_value", "--reason", "unreadable_user_id"], [6, 3, 1, 1]),
        (["--file", "?.csv"], [3]),
        (["--file", "*.csv", "--to", "2024-03-02"], [3, 4, 6]),
        (["--day", "2024-03-02"], [6]),
        (["--from", "2024-03-03"], [3, 1, 1]),
        (["--limit", "2"], [3, 4]),
        (["--reason", "empty_row"], []),
    ],
)
def test_show_prints_the_records_that_are_meant(made, monkeypatch, args, lines):
    monkeypatch.chdir(made.root)
    rows = json.loads(cli("quarantine", "show", "--json", *args).stdout)
    assert [r["source_line"] for r in rows] == lines
    words = cli("quarantine", "show", *args).stdout
    for row in rows:
        assert f"{row['source_file']}, line {row['source_line']} ({row['day']})" in words
        assert all(REASONS[r] in words for r in row["reasons"])
        assert row["record"] in words


def test_strangers_text_is_harmless_on_a_terminal_and_in_a_spreadsheet(again, tmp_path):
    target = tmp_path / "out.csv"
    target.write_text("old")
    (again / "data/raw/b.csv").write_text(
        HEADER + f'=cmd(),2024-03-03 10:00:00,,view,1\n"9,2024-03-04\n\x1b[2J,{"y" * 5000},,view,1\n'
    )
    assert cli("run").exit_code == 0
    shown = cli("quarantine", "show", "--file", "b.csv").stdout
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown
    assert max(len(line) for line in shown.splitlines() if line.startswith("    ")) == 120
    whole = json.loads(cli("quarantine", "show", "--file", "b.csv", "--json").stdout)
    assert max(len(row["record"]) for row in whole) > 5000

    done = cli("quarantine", "export", str(target))
    assert (done.exit_code, "8 records written" in done.stdout) == (0, True)
    with target.open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    assert len(rows) == 8
    records = [r["record"] for r in rows if r["source_file"] == "b.csv"]
    assert records[:2] == ["'=cmd(),2024-03-03 10:00:00,,view,1", '"9,2024-03-04']
    assert {r["in_words"] for r in rows if r["reasons"] == "unreadable_value"} == {REASONS["unreadable_value"]}
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


def test_an_export_that_cannot_be_written_says_so_and_leaves_nothing(again):
    done = cli("quarantine", "export", "nowhere/out.csv")
    assert done.exit_code == 2
    assert "cannot be written" in done.stderr


def test_without_a_fix_nothing_is_made_again(again):
    found = replay()
    assert (found["replay"]["days"], len(found["replay"]["unchanged"]), "run" in found) == ([], 4, False)
    assert "would come out the same" in cli("quarantine", "replay").stdout


def test_a_mended_mapping_replays_the_days_of_the_records_and_those_they_move_to(again, project_at, tmp_path):
    configure(again, source=', timestamp_formats: ["%d/%m/%Y %H:%M"]')
    asked = ("--reason", "unreadable_session_start")
    dry = replay("--dry-run", *asked)
    assert dry["replay"]["days"] == ["2024-03-01", "2024-03-02"]  # line 4 belongs to the second
    assert "2024-03-01 to 2024-03-02" in cli("quarantine", "replay", "--dry-run", *asked).stdout

    found = replay(*asked)
    outcome = found["outcome"]
    assert [outcome[k] for k in ("before", "came_through", "still_refused", "gone")] == [2, 2, 0, 0]
    assert (outcome["reasons_before"], outcome["reasons_now"]) == (
        {"unreadable_session_start": 2, "unreadable_user_id": 1}, {"unreadable_user_id": 1},
    )  # fmt: skip
    assert outcome["sums_before"]["rows_in"] == outcome["sums_now"]["rows_in"] == 5
    assert found["days_left"] == ["2024-03-03", "2024-03-04", "2024-03-05"]
    assert_as_fresh(project_at, again, tmp_path, ["2024-03-01", "2024-03-02"])


def test_rows_that_change_places_bring_their_days_along(again, project_at, tmp_path):
    """Each of two days gives one row to the next: their counts hardly change, but their rows do."""
    configure(again, more="timezone: Europe/Berlin", source=", timestamp_formats: ['%Y-%m-%d %H:%M:%SZ']")
    raw = again / "data/raw/b.csv"
    zulu = "".join(f"{n},2024-03-0{n} 23:30:00Z,,view,{'none' if n == 2 else n}\n" for n in (1, 2, 3))
    raw.write_text(HEADER + zulu)
    configure(again, more="timezone: UTC")
    assert cli("run").exit_code == 0
    configure(again, more="timezone: Europe/Berlin")
    found = replay("--file", "b.csv")
    assert found["replay"]["days"] == ["2024-03-01", "2024-03-02", "2024-03-03", "2024-03-04"]
    assert found["outcome"]["still_refused"] == 1
    assert_as_fresh(project_at, again, tmp_path, found["replay"]["days"])


def test_a_mended_rule_counts_records_that_share_a_line(again, project_at, tmp_path):
    configure(again, quality=", value_max: 10")
    assert cli("run").exit_code == 0
    configure(again, quality=", value_max: 100")
    found = replay("--file", "c.json")
    outcome = found["outcome"]
    assert found["replay"]["days"] == ["2024-03-05"]
    assert [outcome[k] for k in ("before", "came_through", "still_refused")] == [3, 1, 2]
    assert_as_fresh(project_at, again, tmp_path, ["2024-03-05"])


def test_a_mended_file_says_which_records_no_longer_stand_there(again, project_at, tmp_path):
    (again / "data/raw/b.csv").write_text(B.replace("none", "8"))
    found = replay("--reason", "unreadable_value")
    outcome = found["outcome"]
    assert found["replay"] == {
        "days": ["2024-03-03", "2024-03-04"], "unchanged": ["2024-03-05"], "records": 3,
    }  # fmt: skip
    assert [outcome[k] for k in ("before", "came_through", "still_refused", "gone")] == [1, 0, 0, 1]
    assert outcome["sums_now"]["valid"] == outcome["sums_before"]["valid"] + 1
    assert found["days_left"] == []
    assert_as_fresh(project_at, again, tmp_path, DAYS)


def test_a_day_that_fails_keeps_its_records(again):
    configure(again, source=", columns: {value: price}, required: [user_id, session_start, event_type, value]")
    done = cli("quarantine", "replay", "--json", "--reason", "unreadable_user_id")
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert "required column(s) missing" in found["run"]["failed"]["2024-03-02"]
    assert [found["outcome"][k] for k in ("before", "came_through", "still_refused")] == [1, 0, 1]


def test_a_dropped_duplicate_does_not_bring_other_days_along(again, project_at, tmp_path):
    (again / "data/raw/b.csv").write_text(B + "9,2024-03-04 23:30:00,,view,9\n")
    (again / "data/raw/a_2024-03-01.csv").write_text(A.rsplit("6,", 1)[0])
    configure(again, source=", deduplicate: exact")
    assert cli("run").exit_code == 0
    configure(again)
    found = replay("--file", "b.csv")
    assert found["replay"]["days"] == [
        "2024-03-03"
    ]  # the duplicate stays on its day, which is due but was not asked for
    assert "2024-03-04" in found["days_left"]
    found = fresh(project_at, again, tmp_path).table("raw_events", ["2024-03-03"])
    assert project_at(again, again).table("raw_events", ["2024-03-03"]).equals(found)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--reason", "no_such"], "no_such"),
        (["--day", "2024-03-99"], "is not a day"),
        (["--day", "2024-03-01", "--to", "2024-03-02"], "one or the other"),
        (["--from", "2024-03-02", "--to", "2024-03-01"], "Swap them"),
    ],
)
def test_wrong_filters_are_said(made, monkeypatch, args, words):
    monkeypatch.chdir(made.root)
    done = cli("quarantine", "list", *args)
    assert (done.exit_code, words in done.stderr) == (2, True)
    assert cli("quarantine", "--json", "show").exit_code == 2


def test_an_empty_lake_has_an_empty_quarantine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert json.loads(cli("quarantine", "--json").stdout) == []
    assert "No such record" in cli("quarantine", "show").stdout
    assert "No such record" in cli("quarantine", "replay").stdout
    assert quarantine.in_words(["malformed_record", "unheard_of"]).endswith("; unheard_of")
