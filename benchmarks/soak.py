"""An hour of the real daemon while everything around it goes wrong; then every row, table and alert is looked at.

Here: `python -m benchmarks.soak --minutes 60 --seed 7 [--folder F]`. A project of its own with the real `dagster dev`,
a mail server and a web server on loopback. Files arrive every few seconds: new, changed, late, of many days, written
slowly in place, broken in several ways and mended after a while. Processes of runs are killed at random, both receivers
go down and come up. At the end: every row of every file exactly once, the tables equal to those of a fresh run, every
alert fired and resolved once, and what memory and history did meanwhile. What was seen is kept in ``seen.jsonl``, so
`--judge F` judges it again. Exits with 1 when something does not hold. Not here: single faults (the tests of each).
"""

from __future__ import annotations

import argparse
import collections
import csv
import datetime as dt
import email
import email.policy
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
HEADER = "user_id,session_start,session_end,event_type,value\n"
FIRST = dt.date(2024, 1, 1)
QUIET_SHARE = 0.75  # of the time; then nothing new goes wrong
SETTLED_SECONDS = 420
KINDS = ("columns", "gzip", "parquet", "rate")
CONFIG = """start_date: 2024-01-01
source: {settle_seconds: 2}
alerts:
  deadline: null
  update_minutes: 1
  channels: {hook: {url_env: SOAK_HOOK}, mail: {url_env: SOAK_MAIL}}
"""


# ---- Receivers ---------------------------------------------------------------------------------------------------


class Receivers:
    """A web and a mail server that note what they get; both can be away."""

    def __init__(self, note: Any) -> None:  # noqa: ANN401 - a callable
        self.note = note
        self.hook_port, self.mail_port = _free_port(), _free_port()
        self._web: ThreadingHTTPServer | None = None
        self._mail: Any = None

    def start(self) -> None:
        """Be there."""
        from aiosmtpd.controller import Controller

        note = self.note

        class Hook(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                note("hook", **body["alert"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing on the terminal."""

        class Mail:
            async def handle_DATA(self, _server: object, _session: object, envelope: Any) -> str:  # noqa: ANN401, N802
                mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
                note("mail", id=mail["X-Data-Assets-Message"], state=mail["X-Data-Assets-State"], title=mail["Subject"])
                return "250 OK"

        if self._web is None:
            self._web = ThreadingHTTPServer(("127.0.0.1", self.hook_port), Hook)
            threading.Thread(target=self._web.serve_forever, daemon=True).start()
            self._mail = Controller(Mail(), hostname="127.0.0.1", port=self.mail_port)
            self._mail.start()

    def stop(self) -> None:
        """Be away."""
        if self._web is not None:
            self._web.shutdown()
            self._web.server_close()
            self._mail.stop()
            self._web = None

    @property
    def is_up(self) -> bool:
        """Whether both are there."""
        return self._web is not None


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# ---- What happens ------------------------------------------------------------------------------------------------


@dataclass
class Soak:
    """The project, its daemon, and what was done to it."""

    root: Path
    seconds: float
    chance: random.Random
    started: float = 0.0
    days: int = 0
    rows: int = 0
    broken: dict[str, tuple[str, float]] = field(default_factory=dict)
    good: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.raw = self.root / "data" / "raw"
        self.seen = (self.root / "seen.jsonl").open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def note(self, what: str, **figures: object) -> None:
        """Keep what was seen or done."""
        with self._lock:
            self.seen.write(json.dumps({"at": round(time.time() - self.started, 2), "what": what} | figures) + "\n")
            self.seen.flush()

    def day(self, number: int) -> str:
        return (FIRST + dt.timedelta(days=number)).isoformat()

    def lines(self, day: str, count: int) -> str:
        """Rows that no other file has."""
        text = []
        for _ in range(count):
            self.rows += 1
            start = f"{day} {self.rows % 24:02}:{self.rows % 60:02}:00"
            end = "" if self.rows % 17 == 0 else f"{day} 23:59:{self.rows % 60:02}"
            text.append(f"{self.rows % 50},{start},{end},type_{self.rows % 5},{self.rows}.5\n")
        return "".join(text)

    def put(self, name: str, content: bytes) -> None:
        """A whole file at once."""
        hidden = self.raw / f".{name}"
        hidden.write_bytes(content)
        hidden.rename(self.raw / name)

    def put_slowly(self, name: str, content: bytes) -> None:
        """A file that grows in place."""
        step = max(1, len(content) // 5)
        with (self.raw / name).open("wb") as out:
            for first in range(0, len(content), step):
                out.write(content[first : first + step])
                out.flush()
                time.sleep(0.7)

    def arrive(self) -> None:
        """One more file, or another content of one."""
        kind = self.chance.choices(["new", "changed", "late", "many", "slow", "broken"], [40, 12, 12, 6, 10, 20])[0]
        if kind in ("changed", "late") and not self.good:
            kind = "new"
        if kind == "changed":
            name = self.chance.choice(self.good)
            self.put(name, ((self.raw / name).read_text() + self.lines(name[:10], 7)).encode())
        elif kind == "late":
            day, of = self.day(self.days - 1), self.chance.choice(self.good)[:10]
            name = f"{day}_late_{self.rows}.csv"
            self.put(name, (HEADER + self.lines(of, 5)).encode())
        else:
            day = self.day(self.days)
            self.days += 1
            name = f"{day}.csv"
            text = HEADER + self.lines(day, self.chance.randint(20, 400))
            if kind == "many":
                text += "".join(self.lines(self.day(n), 4) for n in range(max(0, self.days - 6), self.days - 1))
            if kind == "broken":
                how = self.chance.choice(KINDS)
                name, content = self.damaged(how, day, text)
                self.broken[name] = (day, time.time() + self.chance.uniform(60, 240))
                self.put(name, content)
                self.note("broken", name=name, how=how, day=day)
                return
            (self.put_slowly if kind == "slow" else self.put)(name, text.encode())
            self.good.append(name)
        self.note("arrived", name=name, how=kind)

    def damaged(self, how: str, day: str, text: str) -> tuple[str, bytes]:
        """A file that cannot be used, or a day with too many rows that cannot."""
        if how == "columns":
            return f"{day}.csv", b"who,when\n1,2\n"
        if how == "gzip":
            return f"{day}.csv.gz", b"\x1f\x8b\x08\x00broken"
        if how == "parquet":
            return f"{day}.parquet", b"PAR1 and no more"
        return f"{day}.csv", (text + "x,,,,\n" * 400).encode()

    def mend(self, *, everything: bool) -> None:
        """Put good files in place of those that were broken for long enough."""
        for name, (day, until) in list(self.broken.items()):
            if everything or time.time() > until:
                del self.broken[name]
                if name != f"{day}.csv":
                    (self.raw / name).unlink()
                self.put(f"{day}.csv", (HEADER + self.lines(day, 60)).encode())
                self.good.append(f"{day}.csv")
                self.note("mended", name=name, day=day)

    def kill_a_run(self, daemon: psutil.Process) -> bool:
        """SIGKILL one process that runs a run."""
        found = []
        for process in daemon.children(recursive=True):
            try:
                if any("spawn_main" in part for part in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        if not found:
            return False
        process = self.chance.choice(found)
        process.kill()
        self.note("killed", pid=process.pid)
        return True

    def sample(self, daemon: psutil.Process) -> None:
        """Memory of the processes, and what lies on the disk."""
        memory: collections.Counter[str] = collections.Counter()
        handles: collections.Counter[str] = collections.Counter()
        for process in [daemon, *daemon.children(recursive=True)]:
            try:
                words = " ".join(process.cmdline())
                names = ("spawn_main", "webserver", "daemon run", "code-server", "api grpc")
                name = next((n for n in names if n in words), "dev")
                memory[name] += process.memory_info().rss >> 20
                handles[name] += process.num_fds()
            except psutil.Error:
                continue
        sizes = {name: _size(self.root / path) for name, path in PLACES.items()}
        runs = len(list((self.root / ".dagster" / "history" / "runs").glob("*-*.db")))
        self.note("sample", memory=memory, handles=handles, sizes=sizes, runs=runs, files=len(self.good))


PLACES = {"history": ".dagster", "lake": "data/lake", "alerts": "data/alerts", "logs": "data/logs", "raw": "data/raw",
          "scratch": "data/.scratch"}  # fmt: skip


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*") if folder.exists() else ():
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def soak(root: Path, minutes: float, seed: int) -> None:
    """Everything up to the end of the daemon."""
    (root / "data" / "raw").mkdir(parents=True)
    shutil.copy(ROOT / "dagster.yaml", root)
    (root / "pipeline.yaml").write_text(CONFIG, encoding="utf-8")
    this = Soak(root, minutes * 60, random.Random(seed))
    receivers = Receivers(this.note)
    receivers.start()
    environment = os.environ | {
        "SOAK_HOOK": f"json://127.0.0.1:{receivers.hook_port}/",
        "SOAK_MAIL": f"mailto://127.0.0.1:{receivers.mail_port}?from=a@example.com&to=b@example.com&mode=insecure",
        "DAGSTER_HOME": str(root),
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-m", "dagster", "dev", "-m", "data_assets.definitions", "-h", "127.0.0.1"]
    this.started = time.time()
    with (root / "daemon.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "-p", str(_free_port())], cwd=root, env=environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            _trouble(this, receivers, psutil.Process(process.pid))
            _settle(this, receivers, psutil.Process(process.pid))
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            receivers.stop()


def _trouble(this: Soak, receivers: Receivers, daemon: psutil.Process) -> None:
    """Files, kills and receivers that come and go, until most of the time is over."""
    begin = time.time() + 25
    next_file = next_kill = next_flip = begin
    next_sample = time.time() + 30
    while time.time() - this.started < this.seconds * QUIET_SHARE:
        now = time.time()
        if now >= next_sample:
            this.sample(daemon)
            next_sample = now + 30
        if now >= next_file:
            this.arrive()
            next_file = time.time() + this.chance.uniform(3, 9)
        this.mend(everything=False)
        if now >= next_kill:
            next_kill = now + (this.chance.uniform(40, 120) if this.kill_a_run(daemon) else 0.3)
        if now >= next_flip:
            (receivers.stop if receivers.is_up else receivers.start)()
            this.note("receivers", up=receivers.is_up)
            next_flip = now + (this.chance.uniform(60, 150) if receivers.is_up else this.chance.uniform(20, 90))
        time.sleep(0.2)


def _settle(this: Soak, receivers: Receivers, daemon: psutil.Process) -> None:
    """Everything is mended; good files go on until the end, then until nothing is left to do or to tell."""
    receivers.start()
    this.mend(everything=True)
    this.note("receivers", up=True)
    last_file, waited = 0.0, time.time() + SETTLED_SECONDS
    while True:
        now = time.time()
        over = now - this.started >= this.seconds
        if int(now) % 30 == 0:
            this.sample(daemon)
        if not over and now - last_file > 20:
            name = f"{this.day(this.days)}.csv"
            this.days += 1
            this.put(name, (HEADER + this.lines(name[:10], 50)).encode())
            this.note("arrived", name=name, how="new")
            last_file, waited = now, now + SETTLED_SECONDS
        if over and (_is_idle(this.root) or now > waited):
            this.note("settled", idle=_is_idle(this.root), seconds=round(now - this.started))
            return
        time.sleep(1)


def _is_idle(root: Path) -> bool:
    """Whether every day is made from what lies there, and nobody has to be told anything."""
    from data_assets import landing
    from data_assets.config import load_config
    from data_assets.storage import DayLog, Lake

    config = load_config(root / "pipeline.yaml")
    lake = Lake(config.lake_dir)
    ledger = landing.refresh(config, lake, now_ns=time.time_ns()).ledger
    stale = landing.stale_days(ledger, DayLog(config.lake_dir), first=config.start_date, last=dt.date(2100, 1, 1))
    told = json.loads((config.data_dir / "alerts" / "state.json").read_text(encoding="utf-8"))
    return not stale and not told["incidents"]


# ---- Judgement ---------------------------------------------------------------------------------------------------


def judge(root: Path) -> list[tuple[str, bool, str]]:
    """What must hold: name, whether it does, and what was found."""
    seen = [json.loads(line) for line in (root / "seen.jsonl").read_text(encoding="utf-8").splitlines()]
    return [*_rows_once(root), *_as_fresh(root), *_told(seen), *_flat(seen)]


def _rows_once(root: Path) -> list[tuple[str, bool, str]]:
    """Every row of every file exactly once, counted by Python's csv and by another engine than made the tables."""
    import duckdb

    expected = {}
    for path in sorted((root / "data" / "raw").glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as lines:
            expected[path.name] = sum(1 for _ in csv.reader(lines)) - 1
    lake = root / "data" / "lake"
    place = "read_parquet('{}/date=*/data.parquet', union_by_name = true)"
    both = " UNION ALL ".join(
        f"SELECT source_file, source_line FROM {place.format(lake / table)}"
        for table in ("raw_events", "quarantined_events")
    )
    with duckdb.connect() as connection:
        found = dict(connection.execute(f"SELECT source_file, count(*) FROM ({both}) GROUP BY 1").fetchall())
        twice = connection.execute(
            f"SELECT count(*) FROM (SELECT 1 FROM ({both}) GROUP BY source_file, source_line HAVING count(*) > 1)"
        ).fetchone()
    wrong = {name: (expected.get(name), found.get(name)) for name in expected.keys() | found.keys()
             if expected.get(name, 0) != found.get(name, 0)}  # fmt: skip
    total = f"{len(expected):,} files, {sum(expected.values()):,} rows"
    return [
        (
            "every row of every file is in the tables",
            not wrong,
            f"{total}; {len(wrong)} files differ {dict(list(wrong.items())[:5])}",
        ),
        ("no row is there twice", twice == (0,), f"{twice[0] if twice else None} rows"),
    ]


def _as_fresh(root: Path) -> list[tuple[str, bool, str]]:
    """The tables are those of one run over the files as they lie there now."""
    import duckdb

    from data_assets.contracts import tables

    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name)
        shutil.copytree(root / "data" / "raw", fresh / "data" / "raw")
        shutil.copy(ROOT / "dagster.yaml", fresh)
        (fresh / "pipeline.yaml").write_text(CONFIG.partition("alerts:")[0], encoding="utf-8")
        command = [sys.executable, "-m", "data_assets.cli", "run", "--json"]
        subprocess.run(
            command, cwd=fresh, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"DAGSTER_HOME": str(fresh)}
        )
        differ = []
        for table in ("raw_events", "quarantined_events", "outliers"):
            here, there = (_versions(place / "data" / "lake" / table) for place in (root, fresh))
            differ += [f"{table} {day}" for day in here.keys() | there.keys() if here.get(day) != there.get(day)]
        kept = [name for name, table in tables().items() if table.store == "warehouse"]
        with duckdb.connect() as connection:
            connection.execute(f"ATTACH '{root / 'data' / 'warehouse.duckdb'}' AS here (READ_ONLY)")
            connection.execute(f"ATTACH '{fresh / 'data' / 'warehouse.duckdb'}' AS there (READ_ONLY)")
            for table in kept:
                for one, other in (("here", "there"), ("there", "here")):
                    query = f"SELECT count(*) FROM (FROM {one}.{table} EXCEPT ALL FROM {other}.{table})"
                    row = connection.execute(query).fetchone()
                    differ += [f"{table}: {row[0]} rows only {one}"] if row and row[0] else []
    return [("the tables are those of a fresh run", not differ, f"{len(differ)} differences {differ[:5]}")]


def _versions(table: Path) -> dict[str, str]:
    """The content's name of each day."""
    return {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))["file"]
        for path in table.glob("date=*/.current.json")
    }


def _told(seen: list[dict[str, Any]]) -> list[tuple[str, bool, str]]:
    """Every incident was fired once and resolved once, at each receiver; what was over before it was told, once."""
    result = []
    for channel in ("hook", "mail"):
        messages = [s for s in seen if s["what"] == channel]
        states: dict[str, list[str]] = collections.defaultdict(list)
        for message in {m["id"]: m for m in messages}.values():
            states[message["id"].partition(".")[0]].append(message["state"])
        doubled = len(messages) - len({m["id"] for m in messages})
        wrong = [i for i, s in states.items() if s.count("resolved") != 1 or s.count("firing") > 1]
        unfired = [i for i, s in states.items() if "firing" not in s]
        text = (
            f"{len(messages)} messages of {len(states)} incidents; {len(wrong)} not so {wrong[:5]}; "
            f"{len(unfired)} told only when over; {doubled} delivered twice with the same id"
        )
        result.append((f"{channel}: every incident fired and resolved once", not wrong and bool(states), text))
    return result


def _flat(seen: list[dict[str, Any]]) -> list[tuple[str, bool, str]]:
    """Memory of the long-lived processes at the end against after the first quarter; the history by run."""
    samples = [s for s in seen if s["what"] == "sample"]
    if len(samples) < 8:
        return [("memory stays flat", False, f"only {len(samples)} samples")]
    quarter = len(samples) // 4
    result = []
    for name in ("daemon run", "webserver", "api grpc", "code-server"):
        early, late = (
            sorted(s["memory"].get(name, 0) for s in part)[quarter // 2]
            for part in (samples[quarter : 2 * quarter], samples[-quarter:])
        )
        if early or late:
            result.append((f"memory of {name} stays flat", late <= early * 1.25 + 20, f"{early} MB, then {late} MB"))
    first, last = samples[quarter], samples[-1]
    runs = max(1, last["runs"] - first["runs"])
    grown = {k: (last["sizes"][k] - first["sizes"][k]) / runs / 1000 for k in last["sizes"]}
    text = ", ".join(f"{name} {size:,.0f} KB" for name, size in grown.items())
    early = (samples[2 * quarter]["sizes"]["history"] - first["sizes"]["history"]) / max(
        1, samples[2 * quarter]["runs"] - first["runs"]
    )
    late = (last["sizes"]["history"] - samples[2 * quarter]["sizes"]["history"]) / max(
        1, last["runs"] - samples[2 * quarter]["runs"]
    )
    result.append(
        ("the history grows no faster by run", late <= early * 1.5, f"{last['runs']} runs; growth by run: {text}")
    )
    return result


def main() -> None:
    """Soak, then judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="a new folder that is kept")
    parser.add_argument("--judge", type=Path, metavar="FOLDER", help="judge a soak that was made")
    asked = parser.parse_args()
    root = asked.judge or asked.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    if asked.judge is None:
        root.mkdir(parents=True, exist_ok=True)
        soak(root, asked.minutes, asked.seed)
    seen = collections.Counter(json.loads(line)["what"] for line in (root / "seen.jsonl").read_text().splitlines())
    found = judge(root)
    sys.stdout.write(f"{dict(seen)}\n\n| what | holds | found |\n|---|---|---|\n")
    sys.stdout.write("".join(f"| {name} | {'yes' if holds else 'NO'} | {text} |\n" for name, holds, text in found))
    raise SystemExit(0 if all(holds for _, holds, _ in found) else 1)


if __name__ == "__main__":
    main()
