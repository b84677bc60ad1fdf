"""Log lines: who gets which, that each comes once, that several processes may write, and that nothing leaks into them.

Here: lines of real runs, and the jq programs of docs/logs.md. Not here: what is measured (``test_telemetry.py``).
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from data_assets import logs, telemetry
from data_assets.cli import main
from data_assets.config import load_config
from data_assets.errors import MissingColumnsError

ROOT = Path(__file__).parents[1]
DAY = "2024-03-01"
RUN = telemetry.Run("run-1", "cli", (DAY,))
MARK = "zqxj"
HEADER = "user_id,session_start,session_end,event_type,value\n"


def lines(config):
    return [json.loads(line) for line in config.log_path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path):
    """Makes a project's folder with files."""

    def make(files, settings=""):
        (tmp_path / "data" / "raw").mkdir(parents=True, exist_ok=True)
        (tmp_path / "pipeline.yaml").write_text(
            f"data_dir: data\nstart_date: 2024-03-01\nsource: {{settle_seconds: 0}}\n{settings}"
        )
        for name, content in files.items():
            (tmp_path / "data" / "raw" / name).write_text(content)
        return tmp_path

    return make


def day_of(day, rows):
    return HEADER + "".join(f"{n},{day} 10:00:00,{day} 10:05:00,view,{n}\n" for n in range(rows))


# ---- Lines -------------------------------------------------------------------------------------------------------


def test_a_line_has_what_it_belongs_to_first_and_only_what_json_knows(folder):
    config = load_config(folder({}) / "pipeline.yaml", env={})
    with telemetry.stage("raw_events", config, RUN):
        logs.write(
            logging.INFO, "odd", file="a\nb\u202e", day=DAY, rows=3, share=1 / 3, none=None, nan=float("nan"),
            many=list(range(100)), long="x" * 1000, ok=True, nested={"a": 1.23456},
        )  # fmt: skip
    odd, done = lines(config)
    assert list(odd)[:7] == ["at", "level", "event", "run_id", "asset", "day", "file"]
    assert (odd["run_id"], odd["asset"], odd["file"]) == ("run-1", "raw_events", "a\\nb\\u202e")
    assert odd | {"rows": 3, "share": 0.333, "nan": None, "ok": True, "nested": {"a": 1.235}} == odd
    assert "none" not in odd
    assert (len(odd["many"]), len(odd["long"])) == (20, 300)
    assert (done["event"], done["status"], done["days"]) == ("stage done", "done", 1)


def test_a_stage_that_breaks_says_where_and_not_what(folder):
    config = load_config(folder({}) / "pipeline.yaml", env={})
    with pytest.raises(MissingColumnsError), telemetry.stage("raw_events", config, RUN):
        raise MissingColumnsError("a.csv", ["user_id"], [MARK])
    (line,) = lines(config)
    assert (line["event"], line["level"], line["error_kind"]) == ("stage failed", "error", "MissingColumnsError")
    with pytest.raises(AttributeError), telemetry.stage("raw_events", config, RUN):
        logs.reason_of(None)
    assert re.fullmatch(r"logs\.py:\d+", lines(config)[-1]["where"])
    assert MARK not in config.log_path.read_text()


def test_the_reason_of_a_refused_file_leaves_its_header_out():
    problem = MissingColumnsError("a.csv", ["user_id"], [MARK])
    assert MARK in str(problem)
    assert logs.reason_of(str(problem)) == "a.csv: required column(s) missing: user_id."


def test_the_level_decides_what_is_written(folder):
    config = load_config(folder({}, "logs: {level: ERROR}") / "pipeline.yaml", env={})
    with telemetry.stage("raw_events", config, RUN):
        logs.tell(logging.WARNING, "no")
        logs.write(logging.ERROR, "yes")
    assert [line["event"] for line in lines(config)] == ["yes"]


def test_no_file_when_none_is_wanted(folder):
    config = load_config(folder({}, "logs: {file: false}") / "pipeline.yaml", env={})
    with telemetry.stage("raw_events", config, RUN):
        pass
    assert not config.log_path.parent.exists()


def test_a_log_that_cannot_be_written_is_said_once_and_the_run_goes_on(folder, capfd):
    root = folder({})
    (root / "data" / "logs").write_text("a file where the folder should be")
    with telemetry.stage("raw_events", load_config(root / "pipeline.yaml", env={}), RUN):
        logs.write(logging.INFO, "one")
    assert capfd.readouterr().err.count("the log cannot be written") == 1
    (root / "data" / "logs").unlink()
    config = load_config(root / "pipeline.yaml", env={"DATA_ASSETS_LOGS__KEPT_FILES": "3"})
    with telemetry.stage("raw_events", config, RUN):
        shutil.rmtree(config.log_path.parent)
        config.log_path.parent.write_text("")
        logs.write(logging.INFO, "one")
        logs.write(logging.INFO, "two")
    assert capfd.readouterr().err.count("the log cannot be written") == 1


def test_another_project_in_the_same_process_has_its_own_file(folder, tmp_path):
    first = load_config(folder({}) / "pipeline.yaml", env={})
    second = load_config(tmp_path / "pipeline.yaml", env={"DATA_ASSETS_DATA_DIR": str(tmp_path / "other")})
    for config, name in ((first, "a"), (second, "b"), (first, "c")):
        with telemetry.stage(name, config, RUN):
            pass
    assert [line["asset"] for line in lines(first)] == ["a", "c"]
    assert [line["asset"] for line in lines(second)] == ["b"]


def test_lines_of_other_loggers_of_the_project_are_written_too(folder):
    config = load_config(folder({}) / "pipeline.yaml", env={})
    with telemetry.stage("raw_events", config, RUN):
        logging.getLogger("data_assets.elsewhere").warning("%s is\nlate", "it")
    assert (
        lines(config)[0] | {"event": "it is\\nlate", "level": "warning", "logger": "data_assets.elsewhere"}
        == lines(config)[0]
    )


def test_several_processes_write_and_rotate_without_losing_a_line(folder):
    root = folder({}, "logs: {max_megabytes: 0.05, kept_files: 50}")
    code = """
import logging, sys
from pathlib import Path
from data_assets import logs
from data_assets.config import load_config
logs.start(load_config(Path(sys.argv[1]), env={}))
for number in range(500):
    logs.write(logging.INFO, "line", who=sys.argv[2], number=number, filler="x" * 100)
"""
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(root / "pipeline.yaml"), str(n)], cwd=ROOT) for n in range(3)
    ]
    assert [process.wait(120) for process in started] == [0, 0, 0]
    files = [p for p in (root / "data" / "logs").iterdir() if not p.name.startswith(".")]
    found = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert sorted((line["who"], line["number"]) for line in found) == [
        (str(w), n) for w in range(3) for n in range(500)
    ]
    assert len(files) > 3
    assert max(path.stat().st_size for path in files) < 51_000


# ---- Runs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def instance(tmp_path):
    """A history as dagster.yaml has it, as far as logs are concerned."""
    from dagster import DagsterInstance

    home = tmp_path / "home"
    home.mkdir()
    settings = yaml.safe_load((ROOT / "dagster.yaml").read_text())["python_logs"]
    (home / "dagster.yaml").write_text(yaml.safe_dump({"python_logs": settings, "telemetry": {"enabled": False}}))
    with DagsterInstance.from_config(str(home)) as opened:
        yield opened


def messages(instance, run_id):
    """Log lines in the event log, of code and not of Dagster."""
    return [e.user_message for e in instance.all_logs(run_id) if not e.is_dagster_event]


def test_each_line_comes_once_and_those_of_days_stay_out_of_the_event_log(folder, instance):
    from data_assets_tests.conftest import Project

    files = {f"events_2024-03-0{n}.csv": day_of(f"2024-03-0{n}", 5) for n in (1, 2, 3)} | {
        "notes_2024-03-04.csv": "a\n1\n"
    }
    project = Project(folder(files), instance)
    result = project.run("2024-03-01", "2024-03-04")
    told, written = messages(instance, result.run_id), lines(project.config)
    stages = [line["asset"] for line in written if line["event"] == "stage done"]
    assert len(stages) == len(set(stages)) == 8
    for stage in stages:
        assert len([m for m in told if m.startswith(f"stage done: asset {stage},")]) == 1
    assert len([m for m in told if m.startswith("file refused: ")]) == 1
    assert len([m for m in told if m.startswith("days refused: ")]) == 7
    assert not [m for m in told if m.startswith(("day ", "file read"))]
    refused = [line for line in written if line["event"] == "day refused"]
    assert (refused[0]["day"], refused[0]["cause"]) == ("2024-03-04", "unusable_file")
    assert refused[0]["files"] == ["notes_2024-03-04.csv"]
    assert len({(line["asset"], line["day"]) for line in refused}) == len(refused) == 7
    read = [line for line in written if line["event"] == "day read"]
    assert [(line["day"], line["rows_in"], line["valid"]) for line in read] == [
        (f"2024-03-0{n}", 5, 5) for n in (1, 2, 3)
    ]
    assert {line["run_id"] for line in written} == {result.run_id}
    assert len([line for line in written if line["event"] == "file read"]) == 3


def test_the_terminal_shows_stages_when_asked_and_nothing_more_otherwise(folder):
    root = folder({"events_2024-03-01.csv": day_of(DAY, 3)})
    for options, stages in (
        (["-v", "run", "--from", DAY], 8),
        (["run", "-v", "--from", DAY], 8),
        (["run", "--from", DAY], 0),
    ):
        result = CliRunner().invoke(main, ["--config", str(root / "pipeline.yaml"), *options])
        assert result.exit_code == 0, result.output
        assert result.stderr.count("stage done") == stages
        assert "stage done" not in result.stdout
        assert "day written" not in result.stderr
    assert not logs.is_on_terminal()


def test_no_value_of_a_file_and_no_secret_stands_in_a_log(folder, instance, monkeypatch):
    """Every kind of refusal, with a mark in each value, header and secret; names of files are not values."""
    from dagster import RetryPolicy

    from data_assets.publish import DSN_VARIABLE
    from data_assets_tests.conftest import Project

    monkeypatch.setenv(DSN_VARIABLE, f"postgresql://{MARK}user:{MARK}pass@127.0.0.1:9/{MARK}db?connect_timeout=1")
    good = f"{MARK}1,2024-03-01 10:00:00,2024-03-01 10:05:00,{MARK}view,1,{MARK}\n"
    header = HEADER.replace("value", "value,metadata")
    files = {
        "events_2024-03-01.csv": header + good * 20 + f"{MARK}2,,{MARK}\n" + ",".join([MARK] * 6) + "\n",
        "events_2024-03-02.csv": header + f"{MARK}3,2024-03-02 {MARK},x,{MARK},{MARK},{MARK}\n" * 5,
        "events_2024-03-03.csv": f"{MARK}3,2024-03-03 10:00:00,2024-03-03 10:05:00,{MARK}\n" * 5,
        "events_2024-03-04.json": f'[{{"user_id": "{MARK}", "session_start": {MARK}',
        "events_2024-03-05.csv": header.replace("value", f"{MARK}value") + good.replace("03-01", "03-05"),
        "events_2024-03-06.csv": header + good.replace("03-01", "03-06").replace("view", "new") * 3,
        "events_2024-03-07.parquet": f"PAR1{MARK}",
        f"events_2024-03-08.{'csv.gz'}": MARK,
    }  # fmt: skip
    settings = "postgres: {connect_timeout_seconds: 1}\nschema_drift: {new_event_type: fail, new_column: fail}\n"
    root = folder(files, settings)
    text = (
        (root / "pipeline.yaml").read_text().replace("settle_seconds: 0", "settle_seconds: 0, types: {user_id: string}")
    )
    (root / "pipeline.yaml").write_text(text)
    monkeypatch.setattr("data_assets.retries.POLICY", RetryPolicy(max_retries=1, delay=0.01))
    project = Project(root, instance)
    result = project.run("2024-03-01", "2024-03-08", only=[
        "landed_files", "raw_events", "quarantined_events", "session_metrics", "outliers", "event_distribution",
        "summary_statistics", "daily_kpis", "daily_report",
    ])  # fmt: skip
    written = project.config.log_path.read_text()
    found = lines(project.config)
    causes = {line.get("cause") for line in found}
    assert {"unusable_file", "quarantine_rate", "schema_drift"} <= causes, causes
    assert MARK not in written
    assert not [m for m in messages(instance, result.run_id) if MARK in m]
    assert (
        MARK
        not in (project.config.lake_dir / "pipeline_runs")
        .joinpath(next(p.name for p in (project.config.lake_dir / "pipeline_runs").iterdir()))
        .read_text()
    )
    shown = CliRunner().invoke(main, ["-v", "--config", str(root / "pipeline.yaml"), "run", "--from", "2024-03-01"])
    assert f"{MARK}pass" not in shown.output
    assert f"{MARK}user" not in project.config.log_path.read_text()


# ---- docs/logs.md ------------------------------------------------------------------------------------------------


def programs():
    """The commands of the page, by the question above them."""
    page = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"^(\S[^\n]*?\?)[^?]*?\n```sh\n(jq .*?)\n```", page, re.MULTILINE | re.DOTALL))
    assert len(found) == page.count("```sh\njq ")
    return found


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed: the programs of docs/logs.md were not run")
def test_the_programs_of_the_page_answer_their_questions(folder, project_at):
    files = {f"events_2024-03-0{n}.csv": day_of(f"2024-03-0{n}", 20) for n in range(1, 8)}
    files["events_2024-03-05.csv"] = day_of("2024-03-05", 3)
    files["events_2024-03-06.csv"] = day_of("2024-03-06", 10) + ",2024-03-06 10:00:00,,view,1\n" * 10
    files["events_2024-03-07.csv"] = "a,b\n1,2\n"
    root = folder(files)
    project = project_at(root, root)
    project.run("2024-03-01", "2024-03-07")

    def answer(beginning):
        (program,) = [text for question, text in programs().items() if question.startswith(beginning)]
        done = subprocess.run(["bash", "-c", program], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert answer("Which days") == ["2024-03-05 3 rows, usual 20"]
    (slowest,) = answer("What took longest")
    assert re.fullmatch(r"[a-z_]+ [\d.]+ s, peak [\d.]+ MB", slowest)
    refused = [line.split("\t")[1:] for line in answer("What was refused")]
    assert ["landed_files", "events_2024-03-07.csv"] in [line[:2] for line in refused]
    assert ["raw_events", "2024-03-06", "quarantine_rate"] in refused
    assert answer("Why were rows") == ["10 missing_user_id"]
