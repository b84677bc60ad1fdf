"""The files in ``deploy/``: they agree with each other, and processes started by their commands survive what comes.

Here: units, containers and settings as text; then code server, daemon and both webservers with the history in a real
PostgreSQL, as an unprivileged user, killed one after the other. Not here: ``dagster dev`` (``test_e2e.py``), or images,
which need a Docker daemon to be built.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNITS = {path.stem.removeprefix("data-assets-"): path for path in (DEPLOY / "systemd").glob("*.service")}
INSTALLED = "/srv/data_assets"
NOBODY = 65534
PATIENCE = 240.0
DAYS = [f"2024-03-{n:02d}" for n in range(1, 22)]
ONE = "2024-03-22"
HEADER = "user_id,session_start,session_end,event_type,value,metadata\n"
# The days of a run are few, so that a backfill has several; and what is polled is polled often.
PIPELINE = """\
start_date: 2024-02-26
source: {settle_seconds: 0}
runs: {max_days: 7}
sensor: {enabled: false}
freshness: {raw_events: {fail_after_hours: 30, warn_after_hours: 26}}
"""


def unit(name):
    """A unit's settings: of each key the values, in their order."""
    found: dict[str, list[str]] = {}
    for line in UNITS[name].read_text(encoding="utf-8").splitlines():
        key, sign, value = line.partition("=")
        if sign and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
OURS = ("code", "daemon", "webserver", "viewer")


# --- the files -----------------------------------------------------------------------------------------------------


def test_there_is_a_unit_and_a_container_for_each_process():
    assert sorted(UNITS) == sorted(OURS)
    assert set(COMPOSE) == {*OURS, "postgres"}


@pytest.mark.parametrize("name", OURS)
def test_containers_run_the_commands_of_the_units(name):
    [command] = unit(name)["ExecStart"]
    here = command.removeprefix(f"{INSTALLED}/.venv/bin/").replace(f"{INSTALLED}/deploy/", "/project/")
    assert re.sub(r"--host [\d.]+", "--host 127.0.0.1", COMPOSE[name]["command"]) == here


@pytest.mark.parametrize("name", OURS)
def test_units_are_unprivileged_bounded_and_listen_on_this_machine_alone(name):
    settings = unit(name)
    assert settings["User"] == ["data_assets"]
    assert settings["NoNewPrivileges"] == ["yes"]
    assert settings["ProtectSystem"] == ["strict"]
    assert settings["CapabilityBoundingSet"] == [""]
    assert settings["Restart"] == ["always"]
    assert re.fullmatch(r"\d+G", settings["MemoryMax"][0])
    assert ("--host 127.0.0.1" in settings["ExecStart"][0]) == (name != "daemon")


@pytest.mark.parametrize("name", OURS)
def test_containers_are_unprivileged_bounded_and_watched(name):
    service = COMPOSE[name]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert re.fullmatch(r"\dg", service["mem_limit"])
    assert service["healthcheck"]["test"][0] == "CMD"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert "USER data_assets" in (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()[-1]


def test_no_file_holds_a_password():
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            secrets = re.findall(r"(?i)password\w*(?:=|: )(?!\{env)(\S+)|://[^:\s]+:([^@\s]+)@", text)
            assert {one or other for one, other in secrets} <= {"CHANGE-ME", "${DAGSTER_POSTGRES_PASSWORD:?set"}, path


def test_the_settings_are_those_of_the_project_but_for_the_history():
    theirs, ours = (
        yaml.safe_load(p.read_text(encoding="utf-8")) for p in (ROOT / "dagster.yaml", DEPLOY / "dagster.yaml")
    )
    for name in ("run_storage", "event_log_storage", "schedule_storage", "local_artifact_storage", "compute_logs"):
        del theirs[name]
    history = ours.pop("storage")["postgres"]["postgres_db"]
    assert history["password"] == {"env": "DAGSTER_POSTGRES_PASSWORD"}
    assert ours == theirs


def test_workspaces_name_the_location_as_the_project_does():
    [loaded] = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))["load_from"]
    for name, host in (("workspace.yaml", "localhost"), ("compose-workspace.yaml", "code")):
        [served] = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))["load_from"]
        assert served["grpc_server"]["location_name"] == loaded["python_module"]["location_name"]
        assert served["grpc_server"]["host"] == host
        assert f"--port {served['grpc_server']['port']}" in unit("code")["ExecStart"][0]


def test_the_proxy_asks_for_a_login_before_each_webserver():
    sites = re.findall(
        r"^[\w.-]+ \{\n(.*?)^\}", (DEPLOY / "Caddyfile").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    ports = [re.search(r"reverse_proxy 127\.0\.0\.1:(\d+)", site)[1] for site in sites]
    assert ports == [re.search(r"--port (\d+)", unit(name)["ExecStart"][0])[1] for name in ("webserver", "viewer")]
    assert all("basic_auth {" in site for site in sites)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_takes_the_units(tmp_path):
    binaries = Path(sys.executable).parent
    for name, path in UNITS.items():
        text = path.read_text(encoding="utf-8").replace(f"{INSTALLED}/.venv/bin", str(binaries))
        text = text.replace("User=data_assets\nGroup=data_assets\n", "")
        (tmp_path / f"data-assets-{name}.service").write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.glob("*.service")))],
        capture_output=True, text=True, check=False, env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "data-assets" in line]
    assert (done.returncode, ours) == (0, [])


# --- the processes -------------------------------------------------------------------------------------------------

RUNS = """{runsOrError(limit: 100) {... on Runs {results {runId status jobName: pipelineName parentRunId
    tags {key value} stepStats {stepKey status}}}}}"""
LOGS = """query($id: ID!) {logsForRun(runId: $id, limit: 5000) {... on EventConnection {events {
    ... on MessageEvent {eventType message stepKey}}}}}"""
LOCATION = """{workspaceOrError {... on Workspace {locationEntries {name loadStatus
    locationOrLoadError {__typename}}}}}"""
LAUNCH = """mutation($p: ExecutionParams!) {launchPipelineExecution(executionParams: $p) {
    __typename ... on LaunchRunSuccess {run {runId}} ... on PythonError {message}}}"""
BACKFILL = """mutation($b: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $b) {
    __typename ... on LaunchBackfillSuccess {backfillId} ... on PythonError {message}}}"""
BACKFILL_STATUS = """query($id: String!) {partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill {status}}}"""
RELOAD = """mutation {reloadRepositoryLocation(repositoryLocationName: "data_assets") {__typename}}"""
FRESH = "{assetNodes {assetKey {path} freshnessStatusInfo {freshnessStatus}}}"
IN_IPV6 = "0000000000000000FFFF0000"  # of an IPv4 address, as the kernel prints it
REPOSITORY = {"repositoryLocationName": "data_assets", "repositoryName": "__repository__"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def alive(leader):
    """Processes in the session of ``leader``: what systemd would find in the unit's control group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, _group, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in {"Z", "X"}:
                found.append(int(stat.parent.name))
    return found


def unprivileged():
    """The words before a command that make it run as nobody, who may read the interpreter wherever it lies."""
    if os.getuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("as root without setpriv")
    only = "-all,+dac_read_search"
    user = ("--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--no-new-privs")
    return ["setpriv", *user, f"--inh-caps={only}", f"--ambient-caps={only}", f"--bounding-set={only}"]


@dataclass
class Site:
    """A folder as deploy/README.md sets it up, and the processes of its units."""

    root: Path
    url: str
    history: dict[str, str]
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    def command(self, text):
        text = text.replace(f"{INSTALLED}/.venv/bin", str(Path(sys.executable).parent)).replace(
            INSTALLED, str(self.root)
        )
        for port, ours in self.ports.items():
            text = text.replace(port, str(ours))
        return shlex.split(text)

    @property
    def env(self):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DAGSTER_", "DATA_ASSETS_", "PYTHONWARNINGS"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return kept | {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": "/nonexistent"} | self.history

    def start(self, name):
        """Start a unit, and wait as its ExecStartPost does."""
        settings = unit(name)
        env = self.env | dict(setting.split("=", 1) for setting in settings["Environment"])
        env["DAGSTER_HOME"] = env["DAGSTER_HOME"].replace(INSTALLED, str(self.root))
        [command] = settings["ExecStart"]
        with (self.root / f"{name}.log").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                [*unprivileged(), *self.command(command)],
                cwd=self.root, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )  # fmt: skip
        for post in settings.get("ExecStartPost", ()):
            subprocess.run(self.command(post), env=env, check=True, timeout=PATIENCE, capture_output=True)

    def end(self, name, number):
        """As systemd ends a unit with KillMode=mixed: the signal to its process, and death to what is left after it."""
        assert unit(name)["KillMode"] == ["mixed"]
        leader = self.processes.pop(name)
        leader.send_signal(number)
        code = leader.wait(60)
        for pid in alive(leader.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return code

    def said(self):
        logs = sorted(self.root.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}" for log in logs)

    def get(self, port, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[port], timeout=60)
        try:
            connection.request("POST" if body else "GET", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def ask(self, query, port="3000", **variables):
        _, answer = self.get(port, "/graphql", json.dumps({"query": query, "variables": variables}))
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def wait(self, what, look):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if found := look():
                    return found
            time.sleep(0.3)
        pytest.fail(f"{what}: not within {PATIENCE:.0f} s\n{self.said()}")

    def runs(self):
        """All runs, oldest first."""
        runs = self.ask(RUNS)["runsOrError"]["results"]
        return [r | {"tags": {t["key"]: t["value"] for t in r["tags"]}} for r in reversed(runs)]

    def run(self, run_id):
        return next(r for r in self.runs() if r["runId"] == run_id)

    def ended(self, run_id):
        def look():
            run = self.run(run_id)
            return run if run["status"] in {"SUCCESS", "FAILURE", "CANCELED"} else None

        return self.wait(f"the end of run {run_id}", look)

    def launch(self, *days, port="3000"):
        tags = {"dagster/asset_partition_range_start": days[0], "dagster/asset_partition_range_end": days[-1]}
        params = {
            "selector": REPOSITORY | {"pipelineName": "all_days"}, "runConfigData": {}, "mode": "default",
            "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in tags.items()]},
        }  # fmt: skip
        return self.ask(LAUNCH, port, p=params)["launchPipelineExecution"]

    def events(self, run_id):
        return [e for e in self.ask(LOGS, id=run_id)["logsForRun"]["events"] if e]

    def in_the_middle(self, run_id):
        """Wait until the run has ingested its days, and give its process."""

        def look():
            events = self.events(run_id)
            pids = re.findall(r"Executing steps in process \(pid: (\d+)\)", " ".join(e["message"] for e in events))
            done = [e["stepKey"] for e in events if e["eventType"] == "STEP_SUCCESS"]
            return int(pids[0]) if pids and any(key and key.startswith("ingest") for key in done) else None

        return self.wait(f"the middle of run {run_id}", look)

    def retried(self, run_id):
        """The run that the daemon made in place of another."""
        return self.wait(
            f"the run in place of {run_id}",
            lambda: next((r["runId"] for r in self.runs() if r["parentRunId"] == run_id), None),
        )

    def reports(self):
        return sorted(p.parent.name for p in (self.root / "data" / "reports").glob("2*/report.html"))


@pytest.fixture(scope="module")
def site(postgres_server):
    import psycopg

    root = Path(tempfile.mkdtemp(prefix="data-assets-site-"))  # pytest's own folders are closed to other users
    database = f"dagster_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {database} LOGIN PASSWORD 'a-b-c'")
        connection.execute(f"CREATE DATABASE {database} OWNER {database}")
    server = urlsplit(postgres_server)
    place = server.netloc.rpartition("@")[2]
    url = f"postgresql://{database}:a-b-c@{place}/{database}" + (f"?{server.query}" if server.query else "")
    names = {"HOST": server.hostname or "", "DB": database, "USER": database, "PASSWORD": "a-b-c"}
    history = {f"DAGSTER_POSTGRES_{name}": value for name, value in names.items()}
    ports = {port: free_port() for port in ("4266", "3000", "3001")}
    found = Site(root, url, history, ports)
    (root / "pipeline.yaml").write_text(PIPELINE)
    (root / "deploy").mkdir()
    served = (DEPLOY / "workspace.yaml").read_text().replace("4266", str(ports["4266"]))
    (root / "deploy" / "workspace.yaml").write_text(served)
    (root / "home").mkdir()
    settings = (DEPLOY / "dagster.yaml").read_text().replace("poll_interval_seconds: 30", "poll_interval_seconds: 2")
    settings = settings.replace("port: 5432", f"port: {server.port or 5432}")
    if sockets := parse_qs(server.query).get("host"):  # our own server has no port, but a socket
        settings = settings.replace("port: 5432", f"port: 5432\n      params: {{host: {sockets[0]}}}")
    (root / "home" / "dagster.yaml").write_text(settings)
    raw = root / "data" / "raw"
    raw.mkdir(parents=True)
    for day in (*DAYS, ONE):
        rows = [f"{n},{day}T08:00:00,{day}T09:00:00,{'buy' if n % 2 else 'view'},{n},\n" for n in range(30)]
        (raw / f"events_{day}.csv").write_text(HEADER + "".join(rows))
    if os.getuid() == 0:
        for path in (root, *root.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    for name in OURS:
        found.start(name)
    yield found
    for name in list(found.processes):
        found.end(name, signal.SIGKILL)
    shutil.rmtree(root)
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {database} WITH (FORCE)")
        connection.execute(f"DROP ROLE {database}")


@pytest.mark.slow
@pytest.mark.e2e
class TestProcesses:
    """In this order: each test begins where the one before it ended, with all four processes alive."""

    def test_all_answer(self, site):
        site.wait("the location", lambda: _loaded(site, "3000"))
        site.wait("the viewers' location", lambda: _loaded(site, "3001"))
        for port in ("3000", "3001"):
            status, info = site.get(port, "/server_info")
            assert (status, set(info)) == (
                200,
                {"dagster_webserver_version", "dagster_version", "dagster_graphql_version"},
            )
        for name in ("code", "daemon"):
            check = COMPOSE[name]["healthcheck"]["test"][1:]
            command = [str(Path(sys.executable).parent / check[0]), *check[1:]]
            command = [str(site.ports.get(word, word)) for word in command]
            env = site.env | {"DAGSTER_HOME": str(site.root / "home")}
            site.wait(
                f"health of {name}",
                lambda c=command, e=env: subprocess.run(c, env=e, capture_output=True, check=False).returncode == 0,
            )

    def test_nobody_runs_them_and_nobody_hears_them_from_outside(self, site):
        listening = {}
        for table in ("tcp", "tcp6"):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                address, port = line.split()[1].split(":")
                if line.split()[3] == "0A" and int(port, 16) in site.ports.values():
                    listening.setdefault(int(port, 16), set()).add(address.removeprefix(IN_IPV6))
        assert listening == {port: {"0100007F"} for port in site.ports.values()}
        if os.getuid() == 0:
            for process in site.processes.values():
                for pid in alive(process.pid):
                    assert Path(f"/proc/{pid}").stat().st_uid == NOBODY

    def test_a_day_is_made_and_stands_in_postgresql(self, site):
        launched = site.launch(ONE)
        assert launched["__typename"] == "LaunchRunSuccess", launched.get("message")
        run = site.ended(launched["run"]["runId"])
        assert run["status"] == "SUCCESS", site.said()
        assert (run["tags"]["data_assets/started_by"], run["tags"]["data_assets/days"]) == ("the UI", ONE)
        assert site.reports() == [ONE]
        import psycopg

        with psycopg.connect(site.url) as connection:
            assert connection.execute("SELECT run_id, status FROM runs").fetchall() == [(run["runId"], "SUCCESS")]
        assert not list((site.root / "home").rglob("*.db"))

    def test_viewers_see_everything_and_start_nothing(self, site):
        assert len(site.ask(RUNS, "3001")["runsOrError"]["results"]) == 1
        refused = site.launch(ONE, port="3001")
        assert refused["__typename"] == "UnauthorizedError", refused
        assert len(site.runs()) == 1

    def test_the_daemon_watches_freshness(self, site):
        def look():
            nodes = site.ask(FRESH)["assetNodes"]
            found = {n["assetKey"]["path"][-1]: n["freshnessStatusInfo"] for n in nodes}
            assert found["outliers"] is None
            return found["raw_events"] and found["raw_events"]["freshnessStatus"] == "HEALTHY"

        site.wait("freshness", look)

    def test_a_backfill_goes_on_where_a_killed_run_stopped(self, site):
        """Three runs of seven days. The second is killed, and so is the one in its place: the third time it is made."""
        params = {"assetSelection": [{"path": [n]} for n in TABLES], "partitionNames": DAYS, "fromFailure": False}
        started = site.ask(BACKFILL, b=params)["launchPartitionBackfill"]
        assert started["__typename"] == "LaunchBackfillSuccess", started

        def of_backfill():
            return [r for r in site.runs() if r["tags"].get("dagster/backfill") == started["backfillId"]]

        def second():
            return next((r["runId"] for r in of_backfill() if _first(r) == DAYS[7]), None)

        killed = site.wait("the second run", second)
        os.kill(site.in_the_middle(killed), signal.SIGKILL)
        again = site.retried(killed)
        os.kill(_process_of(site, again), signal.SIGKILL)
        healed = site.retried(again)
        assert site.ended(healed)["status"] == "SUCCESS", site.said()
        done = site.wait(
            "the backfill",
            lambda: next(
                (s for s in [site.ask(BACKFILL_STATUS, id=started["backfillId"])["partitionBackfillOrError"]["status"]]
                 if s not in {"REQUESTED", "COMPLETING", "CANCELING", "FAILING"}), None),
        )  # fmt: skip
        assert done == "COMPLETED_SUCCESS"
        runs = of_backfill()
        assert sorted((_first(r), r["status"]) for r in runs) == [
            (DAYS[0], "SUCCESS"),
            (DAYS[7], "FAILURE"),
            (DAYS[7], "FAILURE"),
            (DAYS[7], "SUCCESS"),
            (DAYS[14], "SUCCESS"),
        ]
        # From where it stopped: what the killed run had finished is not done again.
        assert "ingest" not in {s["stepKey"] for s in site.run(again)["stepStats"]}
        assert site.reports() == [*DAYS, ONE]
        for dead in (killed, again):
            kind = site.wait("the kind of failure", lambda d=dead: site.run(d)["tags"].get("data_assets/failure"))
            assert kind == "killed"
        assert site.run(healed)["tags"].get("data_assets/failure") in {None, "none"}

    def test_a_reload_of_the_code_costs_no_run(self, site):
        """The run goes on in the server that it was started in, of which the new one does not know."""
        run_id = site.launch(*DAYS)["run"]["runId"]
        site.in_the_middle(run_id)
        site.ask(RELOAD)
        assert site.ended(run_id)["status"] == "SUCCESS", site.said()
        assert not [r for r in site.runs() if r["parentRunId"] == run_id]

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "restarted"])
    def test_a_code_server_that_ends_takes_its_runs_along_and_they_come_back(self, site, number):
        run_id = site.launch(*DAYS)["run"]["runId"]
        os.kill(site.in_the_middle(run_id), signal.SIGSTOP)  # else it ends well while the server stops in its own time
        site.end("code", number)
        site.start("code")  # systemd's Restart=always, or the second half of its restart
        healed = site.retried(run_id)
        assert site.ended(healed)["status"] == "SUCCESS", site.said()
        assert site.run(run_id)["status"] == "FAILURE"
        kind = site.wait("the kind of failure", lambda: site.run(run_id)["tags"].get("data_assets/failure"))
        assert kind == "killed"

    def test_a_daemon_that_was_killed_takes_up_what_waits(self, site):
        site.end("daemon", signal.SIGKILL)
        run_id = site.launch(ONE)["run"]["runId"]
        assert site.run(run_id)["status"] == "QUEUED"
        site.start("daemon")
        assert site.ended(run_id)["status"] == "SUCCESS", site.said()

    def test_all_end_cleanly(self, site):
        for name in ("viewer", "webserver", "daemon", "code"):
            assert site.end(name, signal.SIGINT) == 0, (name, site.said())


TABLES = (
    "raw_events", "quarantined_events", "session_metrics", "outliers", "event_distribution", "summary_statistics",
    "daily_kpis", "daily_report",
)  # fmt: skip


def _first(run):
    return run["tags"].get("dagster/asset_partition_range_start")


def _loaded(site, port):
    [entry] = site.ask(LOCATION, port)["workspaceOrError"]["locationEntries"]
    return entry["loadStatus"] == "LOADED" and entry["locationOrLoadError"]["__typename"] == "RepositoryLocation"


def _process_of(site, run_id):
    """The process of a run, as soon as there is one."""

    def look():
        found = re.findall(r"in process \(pid: (\d+)\)", " ".join(e["message"] for e in site.events(run_id)))
        return int(found[0]) if found else None

    return site.wait(f"the process of run {run_id}", look)
