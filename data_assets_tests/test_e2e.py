"""The project as its user meets it: a real `dagster dev` on real files, asked through the GraphQL that its UI uses.

Here: start, files found by the sensor, one day by hand, a range by backfill, and a clean end. Not here: what the
figures should be in general (``test_graph.py``, ``test_metrics.py``).
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

from data_assets.checks import CHECKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent
DAYS = [f"2024-03-0{n}" for n in range(1, 5)]
DROPPED = "2024-03-06"
COUNTS = {day: 10 + n for n, day in enumerate(DAYS)} | {DROPPED: 20}  # valid rows, each of a user of its own
TABLES = [
    "raw_events",
    "quarantined_events",
    "duplicate_events",
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
# Dagster's own, before it reads a file of the project; `dg dev` has none.
UNAVOIDABLE = (
    r".*SupersessionWarning: Function `dev_command` is superseded and its usage is discouraged\. Use 'dg dev' instead."
)
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
CHECKED_DAYS = """{assetNodes {assetKey {path} assetChecksOrError {... on AssetChecks {checks {
    name partitionStatuses {... on AssetCheckTimePartitionStatuses {ranges {status startKey endKey}}}}}}}}"""
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
    """A running `dagster dev` or `dg dev`."""

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
            assert self.process.poll() is None, f"it ended while waiting for {what}:\n{self.said()}"
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

    def launch(self, day: str) -> dict[str, Any]:
        """Materialise one day through the job, and wait for it."""
        params = {
            "selector": REPOSITORY | {"pipelineName": "all_days"},
            "runConfigData": {},
            "mode": "default",
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": day}]},
        }
        launched = self.ask(LAUNCH, p=params)["launchPipelineExecution"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return self.finished(launched["run"]["runId"])

    def start_backfill(self, days: list[str]) -> str:
        """Ask for these days of every partitioned asset, as "Materialize all" does."""
        params = {"assetSelection": [{"path": [name]} for name in TABLES], "partitionNames": days, "fromFailure": False}
        started = self.ask(BACKFILL, b=params)["launchPartitionBackfill"]
        assert started["__typename"] == "LaunchBackfillSuccess", started
        backfill: str = started["backfillId"]
        return backfill

    def backfilled(self, backfill: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found = self.ask(BACKFILL_STATUS, id=backfill)["partitionBackfillOrError"]
            return found if found["status"] not in {"REQUESTED", "CANCELING", "COMPLETING", "FAILING"} else None

        found: dict[str, Any] = self.wait("the backfill", look)
        return found

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


def _hear_ctrl_c() -> None:
    """A shell that starts the tests in the background has them, and so their children, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "pipeline.yaml").write_text(PIPELINE, encoding="utf-8")
    raw = tmp_path / "data" / "raw"
    raw.mkdir(parents=True)
    for day in DAYS:
        _write(raw, day, COUNTS[day])
    time.sleep(0.6)  # settled, so that the sensor's first tick takes them all
    return tmp_path


@pytest.fixture
def dev(project: Path) -> Iterator[Dev]:
    with _started(project, "-m", "dagster", "dev") as running:
        yield running


@contextlib.contextmanager
def _started(project: Path, *command: str) -> Iterator[Dev]:
    """The UI with no variable of Dagster's or the project's in its environment, as `python <command>`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DAGSTER_", "DATA_ASSETS_", "PYTHONWARNINGS"))}
    env = kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    log = project / "dev.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *command, "-h", "127.0.0.1", "-p", str(port)],
            cwd=project,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 - it takes no lock that another thread could hold
        )
    try:
        yield Dev(process, port, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def test_dagster_dev_from_the_first_file_to_a_clean_end(project: Path, dev: Dev) -> None:
    raw, reports = project / "data" / "raw", project / "data" / "reports"

    # The code location loads, and the sensor makes what lies there without being asked.
    [location] = dev.wait("the code location", dev.locations)
    assert location["name"] == "data_assets"
    assert location["locationOrLoadError"]["__typename"] == "RepositoryLocation", location
    first = dev.run_over(DAYS[0], DAYS[-1])
    assert sorted(p.name for p in reports.iterdir() if (p / "report.html").exists()) == DAYS

    # One day by hand, then a range by backfill; a file for yet another day lands meanwhile.
    shutil.rmtree(reports)
    by_hand = dev.launch(DAYS[0])
    assert (reports / DAYS[0] / "report.html").exists()
    backfill_id = dev.start_backfill(DAYS[1:])
    _write(raw, DROPPED, COUNTS[DROPPED])
    backfill = dev.backfilled(backfill_id)
    assert (backfill["status"], backfill["numPartitions"]) == ("COMPLETED_SUCCESS", 3), backfill
    [ranged] = backfill["runs"]  # single_run: one for the whole range
    dropped = dev.run_over(DROPPED, DROPPED)
    assert sorted(p.name for p in reports.iterdir() if (p / "report.html").exists()) == [*DAYS, DROPPED]

    # What the UI shows of it. Nobody ran anything else.
    runs = [run["runId"] for run in (first, by_hand, ranged, dropped)]
    _expect_materialisations(dev, *runs)
    _expect_checks(dev)
    _expect_runs(dev, runs)
    sensor = dev.ask(SENSOR, s=REPOSITORY | {"sensorName": "raw_files"})["sensorOrError"]
    assert (sensor["defaultStatus"], sensor["sensorState"]["status"]) == ("RUNNING", "RUNNING")
    assert sensor["minIntervalSeconds"] == 30
    assert {t["status"] for t in sensor["sensorState"]["ticks"]} <= {"SUCCESS", "SKIPPED", "STARTED"}

    # Ctrl-C: everything ends, and the history and the figures stay.
    _stop(dev)
    assert not list(project.glob(".tmp_dagster_home_*"))
    assert (project / ".dagster" / "history" / "runs.db").exists()
    with duckdb.connect(project / "data" / "warehouse.duckdb", read_only=True) as warehouse:
        kept = warehouse.execute("SELECT date::VARCHAR, valid, users, rows_in FROM daily_kpis ORDER BY date").fetchall()
    assert kept == [(day, users, users, users + 2) for day, users in COUNTS.items()]

    # And the terminal shows no warning but that of the command itself.
    [warned] = _warnings(dev)
    assert re.fullmatch(UNAVOIDABLE, warned)


def test_dg_dev_keeps_its_history_and_warns_of_nothing(project: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", project)
    (project / "data_assets").symlink_to(ROOT / "data_assets")  # dg asks for the code to lie in its project
    dg = str(Path(sys.executable).parent / "dg")
    with _started(project, dg, "dev") as first:
        first.wait("the code location", first.locations)
        run = first.run_over(DAYS[0], DAYS[-1])
        _stop(first)
        assert _warnings(first) == []
    with _started(project, dg, "dev") as again:
        again.wait("the code location", again.locations)
        assert list(again.runs()) == [run["runId"]]
        _stop(again)
        assert _warnings(again) == []


def _warnings(dev: Dev) -> list[str]:
    lines = dev.said().splitlines()
    return [line for line in lines if re.search(r"warning|error|critical|traceback", line, re.IGNORECASE)]


def _expect_materialisations(dev: Dev, first: str, by_hand: str, ranged: str, dropped: str) -> None:
    for table in TABLES:
        made = dev.made(table, list(COUNTS))
        expected = {DAYS[0]: [by_hand, first]} | {day: [ranged, first] for day in DAYS[1:]} | {DROPPED: [dropped]}
        assert {day: [m["run"] for m in found] for day, found in made.items()} == expected, table
    for day, found in dev.made("raw_events", list(COUNTS)).items():
        users = COUNTS[day]
        shown = tuple(found[0][name] for name in ("rows_in", "valid", "quarantined", "duplicate"))
        assert shown == (users + 2, users, 1, 1), day


def _expect_checks(dev: Dev) -> None:
    for day, users in COUNTS.items():
        for name, observed in {
            "contract": f"{users} rows as declared",
            "conservation": f"{users + 2} rows in = {users} valid + 1 quarantined + 1 duplicates",
            "quarantine_rate": f"{1 / (users + 2):.2%} of {users + 2} rows (limit 50.00%)",
        }.items():
            [execution] = dev.ask(CHECK, k={"path": ["raw_events"]}, name=name, day=day)["assetCheckExecutions"]
            assert (execution["status"], execution["partition"]) == ("SUCCEEDED", day)
            assert execution["evaluation"]["success"] is True
            assert {"label": "observed", "text": observed} in execution["evaluation"]["metadataEntries"]

    seen = []
    for node in dev.ask(CHECKED_DAYS)["assetNodes"]:
        for check in node["assetChecksOrError"].get("checks", []):
            if check["partitionStatuses"] is not None and check["name"] != "every_day_done":  # that: one a range
                ranges = [(r["status"], r["startKey"], r["endKey"]) for r in check["partitionStatuses"]["ranges"]]
                assert ranges == [("SUCCEEDED", DAYS[0], DAYS[-1]), ("SUCCEEDED", DROPPED, DROPPED)], (node, check)
                seen.append((node["assetKey"]["path"][0], check["name"]))
    assert sorted(seen) == sorted((check.table, check.name) for check in CHECKS)


def _expect_runs(dev: Dev, expected: list[str]) -> None:
    """These and no others; each in one process, without a step that was tried twice."""
    runs = dev.runs()
    assert set(runs) == set(expected), runs
    for run_id, run in runs.items():
        assert {len(step["attempts"]) for step in run["stepStats"]} == {1}
        kinds = {event.get("eventType") for event in dev.ask(EVENTS, id=run_id)["logsForRun"]["events"]}
        assert "RUN_SUCCESS" in kinds
        assert not [kind for kind in kinds if kind and kind.startswith("STEP_WORKER")], run


def _stop(dev: Dev) -> None:
    dev.process.send_signal(signal.SIGINT)
    assert dev.process.wait(60) == 0, dev.said()[-4000:]
    deadline = time.monotonic() + 10
    while (left := _alive(dev.process.pid)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
