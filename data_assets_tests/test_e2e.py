"""The project as its user meets it: a real `dagster dev` on real files, asked through the GraphQL that its UI uses.

Here: start, one day by hand, a range by backfill, files found by the sensor, and a clean end. Not here: what the figures
should be in general (``test_graph.py``, ``test_metrics.py``).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent
DAYS = [f"2024-03-0{n}" for n in range(1, 5)]
DROPPED = "2024-03-06"
TABLES = [
    "raw_events",
    "quarantined_events",
    "session_metrics",
    "outliers",
    "event_distribution",
    "summary_statistics",
    "daily_kpis",
    "daily_report",
]
PIPELINE = """\
data_dir: data
start_date: 2024-02-26
source: {deduplicate: exact, settle_seconds: 0.5}
quality: {max_quarantine_rate: 0.5}
"""
# Dagster's own, every one: the first of the command itself, the others because the history is new.
UNAVOIDABLE = [
    r".*SupersessionWarning: Function `dev_command` is superseded and its usage is discouraged\. Use 'dg dev' instead\.",
    r".* - dagster\.daemon\.EventLogConsumerDaemon - WARNING - No cursor for event type DagsterEventType\.RUN_FAILURE, "
    r"ignoring older events",
    r".* - dagster\.daemon\.EventLogConsumerDaemon - WARNING - No cursor for event type DagsterEventType\.RUN_SUCCESS, "
    r"ignoring older events",
]
PATIENCE = 240.0  # seconds for each thing awaited; only a broken or a very slow machine needs them

LOCATIONS = """{workspaceOrError {... on Workspace {locationEntries {
    name loadStatus locationOrLoadError {__typename ... on PythonError {message stack}}}}}}"""
LAUNCH = """mutation($p: ExecutionParams!) {launchPipelineExecution(executionParams: $p) {
    __typename ... on LaunchRunSuccess {run {runId}} ... on PythonError {message}}}"""
BACKFILL = """mutation($b: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $b) {
    __typename ... on LaunchBackfillSuccess {backfillId} ... on PythonError {message}}}"""
BACKFILL_STATUS = """query($id: String!) {partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill {status numPartitions error {message} runs(limit: 100) {runId}}}}"""
RUNS = """{runsOrError {... on Runs {results {
    runId status pipelineName tags {key value} stepStats {stepKey status attempts {startTime}}}}}}"""
SENSOR = """query($s: SensorSelector!) {sensorOrError(sensorSelector: $s) {
    ... on Sensor {defaultStatus minIntervalSeconds sensorState {status ticks(limit: 50) {status error {message}}}}}}"""
ASSET = """query($k: AssetKeyInput!, $days: [String!]) {assetOrError(assetKey: $k) {... on Asset {
    assetMaterializations(partitions: $days) {partition runId metadataEntries {
        label ... on IntMetadataEntry {intValue}}}}}}"""
CHECK = """query($k: AssetKeyInput!, $name: String!, $day: String) {
    assetCheckExecutions(assetKey: $k, checkName: $name, partition: $day, limit: 1) {
        status partition evaluation {success metadataEntries {label ... on TextMetadataEntry {text}}}}}"""
EVENTS = """query($id: ID!) {logsForRun(runId: $id, limit: 1000) {... on EventConnection {events {
    ... on MessageEvent {eventType}}}}}"""
REPOSITORY = {"repositoryLocationName": "data_assets", "repositoryName": "__repository__"}


def _day_file(day: str, users: int) -> str:
    """``users`` good rows, the first of them twice, and one without a readable start time."""
    rows = [
        f"{n + 1},{day}T08:00:{n % 60:02d},{day}T08:30:00,{'buy' if n % 2 else 'view'},{n}.5,note" for n in range(users)
    ]
    return "\n".join(
        [
            "user_id,session_start,session_end,event_type,value,metadata",
            *rows,
            rows[0],
            f"99,soon,{day}T09:00:00,view,1,",
            "",
        ]
    )


def _write(folder: Path, day: str, users: int) -> None:
    temporary = folder / f".{day}.csv.tmp"
    temporary.write_text(_day_file(day, users), encoding="utf-8")
    temporary.rename(folder / f"events_{day}.csv")


def _alive(leader: int) -> list[str]:
    """Processes in the session of ``leader``, where /proc tells; what ended and was only not reaped does not count."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, _group, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in {"Z", "X"}:
                found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
    return found


@dataclass
class Dev:
    """A running `dagster dev`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def said(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(encoding="utf-8", errors="replace"))

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            body = json.dumps({"query": query, "variables": variables})
            connection.request("POST", "/graphql", body, {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def wait(self, what: str, look: Callable[[], Any]) -> Any:
        """Ask until the answer is neither None nor empty."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"dagster dev ended while waiting for {what}:\n{self.said()}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                if found := look():
                    return found
            time.sleep(0.5)
        pytest.fail(f"{what}: not within {PATIENCE:.0f} s\n{self.said()[-8000:]}")

    def locations(self) -> list[dict[str, Any]] | None:
        entries = self.ask(LOCATIONS)["workspaceOrError"]["locationEntries"]
        return entries if entries and all(e["loadStatus"] == "LOADED" for e in entries) else None

    def runs(self) -> dict[str, dict[str, Any]]:
        runs = self.ask(RUNS)["runsOrError"]["results"]
        return {r["runId"]: r | {"tags": {t["key"]: t["value"] for t in r["tags"]}} for r in runs}

    def finished(self, run_id: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            run = self.runs()[run_id]
            return run if run["status"] in {"SUCCESS", "FAILURE", "CANCELED"} else None

        run: dict[str, Any] = self.wait(f"the end of run {run_id}", look)
        assert run["status"] == "SUCCESS", (run, self.said()[-8000:])
        return run

    def run_over(self, first: str, last: str) -> dict[str, Any]:
        """The finished run that the sensor asked for, over exactly these days."""

        def look() -> list[str]:
            return [
                run_id
                for run_id, run in self.runs().items()
                if run["tags"].get("dagster/sensor_name") == "raw_files"
                and run["tags"].get("dagster/asset_partition_range_start") == first
                and run["tags"].get("dagster/asset_partition_range_end") == last
            ]

        [run_id] = self.wait(f"a run of the sensor over {first} to {last}", look)
        return self.finished(run_id)

    def made(self, table: str, days: list[str]) -> dict[str, list[dict[str, Any]]]:
        """Materialisations of each day, latest first, with their whole numbers."""
        found = self.ask(ASSET, k={"path": [table]}, days=days)["assetOrError"]["assetMaterializations"]
        return {
            day: [
                {"run": m["runId"]} | {e["label"]: e["intValue"] for e in m["metadataEntries"] if "intValue" in e}
                for m in found
                if m["partition"] == day
            ]
            for day in days
        }


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "pipeline.yaml").write_text(PIPELINE, encoding="utf-8")
    raw = tmp_path / "data" / "raw"
    raw.mkdir(parents=True)
    for n, day in enumerate(DAYS):
        _write(raw, day, users=10 + n)
    time.sleep(0.6)  # settled, so that the sensor's first tick takes them all
    return tmp_path


@pytest.fixture
def dev(project: Path) -> Iterator[Dev]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DAGSTER_", "DATA_ASSETS_", "PYTHONWARNINGS"))}
    env = kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    log = project / "dev.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port)],
            cwd=project,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # shells ignore it for `&`
        )
    try:
        yield Dev(process, port, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def test_dagster_dev_from_the_first_file_to_a_clean_end(project: Path, dev: Dev) -> None:
    reports = project / "data" / "reports"
    raw = project / "data" / "raw"

    # The code location loads, and the sensor makes what lies there without being asked.
    [location] = dev.wait("the code location", dev.locations)
    assert location["name"] == "data_assets"
    assert location["locationOrLoadError"]["__typename"] == "RepositoryLocation", location
    first_run = dev.run_over(DAYS[0], DAYS[-1])
    assert first_run["pipelineName"] == "all_days"
    assert sorted(p.name for p in reports.iterdir() if (p / "report.html").exists()) == DAYS

    # One day by hand.
    shutil.rmtree(reports / DAYS[0])
    launched = dev.ask(
        LAUNCH,
        p={
            "selector": REPOSITORY | {"pipelineName": "all_days"},
            "runConfigData": {},
            "mode": "default",
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": DAYS[0]}]},
        },
    )["launchPipelineExecution"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    dev.finished(launched["run"]["runId"])
    assert (reports / DAYS[0] / "report.html").exists()

    # A range by backfill, of every partitioned asset; a file for yet another day lands meanwhile.
    for day in DAYS[1:]:
        shutil.rmtree(reports / day)
    started = dev.ask(
        BACKFILL,
        b={"assetSelection": [{"path": [name]} for name in TABLES], "partitionNames": DAYS[1:], "fromFailure": False},
    )["launchPartitionBackfill"]
    assert started["__typename"] == "LaunchBackfillSuccess", started
    _write(raw, DROPPED, users=20)

    def backfilled() -> dict[str, Any] | None:
        found = dev.ask(BACKFILL_STATUS, id=started["backfillId"])["partitionBackfillOrError"]
        return found if found["status"] not in {"REQUESTED", "CANCELING", "COMPLETING", "FAILING"} else None

    backfill = dev.wait("the backfill", backfilled)
    assert backfill["status"] == "COMPLETED_SUCCESS", backfill
    assert backfill["numPartitions"] == 3
    [backfill_run] = backfill["runs"]  # single_run: one run for the whole range
    dropped_run = dev.run_over(DROPPED, DROPPED)

    # What the UI shows of it: materialisations and checks, day by day.
    for table in TABLES:
        made = dev.made(table, [*DAYS, DROPPED])
        assert {m["run"] for m in made[DAYS[0]]} == {first_run["runId"], launched["run"]["runId"]}, table
        for day in DAYS[1:]:
            assert [m["run"] for m in made[day]] == [backfill_run["runId"], first_run["runId"]], (table, day)
        assert [m["run"] for m in made[DROPPED]] == [dropped_run["runId"]], table
    counts = {day: 10 + n for n, day in enumerate(DAYS)} | {DROPPED: 20}
    for day, users in counts.items():
        shown = dev.made("raw_events", [day])[day][0]
        assert (shown["rows_in"], shown["valid"], shown["quarantined"], shown["duplicate"]) == (users + 2, users, 1, 1)
        for name, observed in {
            "contract": f"{users} rows as declared",
            "conservation": f"{users + 2} rows in = {users} valid + 1 quarantined + 1 duplicates",
            "quarantine_rate": f"{1 / (users + 2):.2%} of {users + 2} rows (limit 50.00%)",
        }.items():
            [execution] = dev.ask(CHECK, k={"path": ["raw_events"]}, name=name, day=day)["assetCheckExecutions"]
            assert (execution["status"], execution["partition"]) == ("SUCCEEDED", day)
            assert execution["evaluation"]["success"] is True
            assert execution["evaluation"]["metadataEntries"] == [{"label": "observed", "text": observed}]

    # Nobody ran anything else, and no step had to be tried twice or in a process of its own.
    runs = dev.runs()
    assert set(runs) == {r["runId"] for r in (first_run, launched["run"], backfill_run, dropped_run)}, runs
    assert {len(step["attempts"]) for run in runs.values() for step in run["stepStats"]} == {1}
    for run_id in runs:
        events = dev.ask(EVENTS, id=run_id)["logsForRun"]["events"]
        assert "RUN_SUCCESS" in {e.get("eventType") for e in events}
        assert not [e for e in events if "STEP_WORKER" in (e.get("eventType") or "")]
    sensor = dev.ask(SENSOR, s=REPOSITORY | {"sensorName": "raw_files"})["sensorOrError"]
    assert (sensor["defaultStatus"], sensor["sensorState"]["status"]) == ("RUNNING", "RUNNING")
    assert sensor["minIntervalSeconds"] == 30
    assert {t["status"] for t in sensor["sensorState"]["ticks"]} <= {"SUCCESS", "SKIPPED", "STARTED"}

    # Ctrl-C: everything ends, and the history stays where dagster.yaml has it.
    dev.process.send_signal(signal.SIGINT)
    assert dev.process.wait(60) == 0, dev.said()[-4000:]
    deadline = time.monotonic() + 10
    while (left := _alive(dev.process.pid)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    assert not list(project.glob(".tmp_dagster_home_*"))
    assert (project / ".dagster" / "history" / "runs.db").exists()
    with duckdb.connect(project / "data" / "warehouse.duckdb", read_only=True) as warehouse:
        kept = warehouse.execute("SELECT date::VARCHAR, valid, users, rows_in FROM daily_kpis ORDER BY date").fetchall()
    assert kept == [(day, users, users, users + 2) for day, users in counts.items()]

    # And the terminal shows no warning but Dagster's own.
    said = dev.said().splitlines()
    warned = [line for line in said if re.search(r"warning|error|critical|traceback", line, re.IGNORECASE)]
    assert [line for line in warned if not any(re.fullmatch(p, line) for p in UNAVOIDABLE)] == []
    assert len(warned) == len(UNAVOIDABLE), warned
