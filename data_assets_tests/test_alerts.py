"""What is told, to whom and how often: causes and incidents by hand, and real runs with a real mail and web server.

Here: the whole way from a broken file to what a receiver got. Not here: whether checks find what they should
(``test_checks.py``), or which settings are refused (``test_config.py``).
"""

from __future__ import annotations

import datetime as dt
import email
import email.policy
import json
import os
import random
import resource
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import pytest
from aiosmtpd.controller import Controller
from click.testing import CliRunner
from dagster import DagsterInstance, DefaultSensorStatus, SkipReason, build_sensor_context
from filelock import FileLock

from data_assets import alerts, causes, drift, incidents, messages
from data_assets.cli import main
from data_assets.config import load_config
from data_assets.contracts import LANDED_FILES
from data_assets.incidents import Cause, Message
from data_assets.storage import FINISHED, DayLog, Finding

UTC = dt.UTC
NOON = dt.datetime(2024, 3, 5, 12, tzinfo=UTC)
MINUTE = dt.timedelta(minutes=1)
HEADER = "user_id,session_start,session_end,event_type,value\n"
HOSTILE = "`</td><script>alert(1)</script>*_[x](http://evil)\u202e @everyone <!channel>\r\nBcc: evil@example.com"


def rows(day, count=40):
    return HEADER + "".join(f"{n},{day} {n % 24:02}:00:00,{day} {n % 24:02}:30:00,view,{n}.5\n" for n in range(count))


# ---- Receivers ---------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Webhook:
    """A web server that keeps what it was sent, can refuse it, and can go away and come back on the same port."""

    def __init__(self):
        self.got, self.port, self.status, self.delay, self.server = [], free_port(), 200, 0.0, None
        self.tries = 0
        self.url = f"json://user:T0KENSECRET@127.0.0.1:{self.port}/hook"
        self.up()

    def up(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.tries += 1
                time.sleep(outer.delay)
                if outer.status == 200:
                    outer.got.append((json.loads(body), dict(self.headers)))
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def down(self):
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    @property
    def told(self):
        return [(payload["alert"]["state"], payload["alert"].get("condition")) for payload, _ in self.got]


@pytest.fixture
def webhook():
    server = Webhook()
    yield server
    server.down()


@pytest.fixture
def mailbox():
    """A mail server; ``messages`` are parsed."""

    class Keep:
        def __init__(self):
            self.messages = []

        async def handle_DATA(self, server, session, envelope):  # noqa: N802 - aiosmtpd's name
            parsed = email.message_from_bytes(envelope.content, policy=email.policy.default)
            self.messages.append((parsed, list(envelope.rcpt_tos)))
            return "250 OK"

    keep = Keep()
    controller = Controller(keep, hostname="127.0.0.1", port=free_port())
    controller.start()
    keep.url = f"mailto://127.0.0.1:{controller.port}?from=pipeline@example.com&to=ops@example.com&mode=insecure"
    yield keep
    controller.stop()


# ---- A project ---------------------------------------------------------------------------------------------------


@pytest.fixture
def project(project_at, tmp_path, monkeypatch):
    """A folder with a webhook as its only channel; ``settings`` are added to those of the alerts."""

    def make(url=None, settings="", days=(), deadline="null", rest=""):
        root = tmp_path / "project"
        (root / "data/raw").mkdir(parents=True, exist_ok=True)
        (root / "pipeline.yaml").write_text(
            "start_date: 2024-03-01\nsource: {settle_seconds: 0}\n"
            f"alerts:\n  deadline: {deadline}\n  update_minutes: 0\n"
            + ("  channels: {ops: {url_env: OPS_URL}}\n" if url else "")
            + (f"  {settings}\n" if settings else "")
            + rest
        )
        for day in days:
            (root / f"data/raw/{day}.csv").write_text(rows(day))
        if url:
            monkeypatch.setenv("OPS_URL", url)
        return project_at(root, root)

    return make


def look(project, now=None, **options):
    """One round, as the sensor makes it."""
    options = {"budget_seconds": 20.0, "now": now or dt.datetime.now(UTC)} | options
    return alerts.Teller(project.config).make_round(project.instance, **options)


def cause(key="check_failed/raw_events/contract", days=("2024-03-01",), **changes):
    values = {
        "condition": key.split("/")[0], "asset": "raw_events", "title": "raw_events: contract", "severity": "error",
        "items": (), "reason": "it is so", "todo": "mend it", "command": "data-assets run",
    }  # fmt: skip
    return Cause(key, days=tuple(days), **(values | changes))


def settings_of(tmp_path, text):
    (tmp_path / "pipeline.yaml").write_text(f"start_date: 2024-03-01\nalerts: {text}\n")
    return load_config(tmp_path / "pipeline.yaml", env={})


TWO = "{channels: {ops: {url_env: A}, boss: {url_env: B}}, update_minutes: 60}"


def states(found):
    return [(m.channel, s) for m in found for _, s in m.entries]


# ---- Incidents ---------------------------------------------------------------------------------------------------


def test_a_cause_fires_once_and_is_resolved_once_in_each_channel(tmp_path):
    rules = settings_of(tmp_path, TWO).alerts
    known = incidents.reconcile([], [cause()], NOON)
    found = incidents.due(known, rules, NOON)
    assert states(found) == [("ops", "firing"), ("boss", "firing")]
    for message in found:
        known = incidents.was_told(known, message, NOON)
    for later in range(1, 5):
        known = incidents.reconcile(known, [cause()], NOON + later * MINUTE)
        assert incidents.due(known, rules, NOON + later * MINUTE) == []
    known = incidents.reconcile(known, [], NOON + 9 * MINUTE)
    found = incidents.due(known, rules, NOON + 9 * MINUTE)
    assert states(found) == [("ops", "resolved"), ("boss", "resolved")]
    known = incidents.was_told(known, found[0], NOON)
    assert len(incidents.forget(known, rules)) == 1  # boss has not heard yet
    known = incidents.was_told(known, found[1], NOON)
    assert incidents.forget(known, rules) == []


def test_the_same_cause_coming_back_is_another_incident(tmp_path):
    rules = settings_of(tmp_path, "{channels: {ops: {url_env: A}}}").alerts
    known = incidents.reconcile([], [cause()], NOON)
    known = incidents.was_told(known, incidents.due(known, rules, NOON)[0], NOON)
    known = incidents.reconcile(known, [], NOON + MINUTE)
    known = incidents.reconcile(known, [cause()], NOON + 2 * MINUTE)
    found = incidents.due(known, rules, NOON + 2 * MINUTE)
    assert states(found) == [("ops", "resolved"), ("ops", "firing")]
    assert len({m.id for m in found} | {i.id for i in known}) == 4


def test_growth_is_an_update_but_not_too_often(tmp_path):
    rules = settings_of(tmp_path, "{channels: {ops: {url_env: A}}, update_minutes: 60}").alerts
    known = incidents.reconcile([], [cause()], NOON)
    known = incidents.was_told(known, incidents.due(known, rules, NOON)[0], NOON)
    for minute, days in ((1, ["2024-03-02"]), (2, ["2024-03-02", "2024-03-03"])):
        known = incidents.reconcile(known, [cause(days=days)], NOON + minute * MINUTE)
        assert incidents.due(known, rules, NOON + minute * MINUTE) == []
    (message,) = incidents.due(known, rules, NOON + 60 * MINUTE)
    assert message.entries[0][1] == "updated"
    assert message.entries[0][0].cause.days == ("2024-03-01", "2024-03-02", "2024-03-03")  # those that were mended too
    known = incidents.was_told(known, message, NOON + 60 * MINUTE)
    known = incidents.reconcile(known, [cause(days=["2024-03-03"], reason="other words")], NOON + 180 * MINUTE)
    assert incidents.due(known, rules, NOON + 180 * MINUTE) == []  # fewer days and other words are no news


def test_what_is_over_before_it_could_be_sent_is_one_message(tmp_path):
    config = settings_of(tmp_path, "{channels: {ops: {url_env: A}}}")
    known = incidents.reconcile(incidents.reconcile([], [cause()], NOON), [], NOON + MINUTE)
    (message,) = incidents.due(known, config.alerts, NOON + 2 * MINUTE)
    fields = messages.fields(config, message)
    assert (fields["state"], fields["announced"]) == ("resolved", False)
    assert "over before this could be sent" in messages.body(config, message, "text", {})


def test_what_may_heal_by_itself_neither_fires_nor_ends(tmp_path):
    waiting = cause(is_settled=False)
    assert incidents.reconcile([], [waiting], NOON) == []
    known = incidents.reconcile([], [cause()], NOON)
    assert [i.resolved for i in incidents.reconcile(known, [waiting], NOON + MINUTE)] == [None]


def test_what_cannot_be_judged_stays_as_it_is():
    known = incidents.reconcile([], [cause("run_failed/all_days/x"), cause("schema_drift/new_column/x")], NOON)
    held = {("run_failed", ""), ("schema_drift", "2024-03-01")}
    assert [i.resolved for i in incidents.reconcile(known, [], NOON, held)] == [None, None]
    other = {("schema_drift", "2024-03-09")}
    assert None not in [i.resolved for i in incidents.reconcile(known, [], NOON, other)]


def test_quiet_hours_hold_everything_but_the_critical(tmp_path):
    rules = settings_of(
        tmp_path,
        "{channels: {ops: {url_env: A}}, rules: ["
        "{when: [run_failed], severity: critical, quiet_hours: {from: 22:00, to: '07:00'}},"
        "{when: [check_failed], quiet_hours: {from: 22:00, to: '07:00'}}]}",
    ).alerts
    night = dt.datetime(2024, 3, 5, 23, tzinfo=UTC)
    known = incidents.reconcile([], [cause(), cause("run_failed/all_days/x")], night)
    (message,) = incidents.due(known, rules, night)
    assert message.entries[0][0].cause.condition == "run_failed"
    assert len(incidents.due(known, rules, night + dt.timedelta(hours=7, minutes=59))) == 1
    assert len(incidents.due(known, rules, night + dt.timedelta(hours=8))) == 2


def test_a_digest_gathers_a_day_in_one_message(tmp_path):
    config = settings_of(
        tmp_path,
        "{channels: {ops: {url_env: A}}, rules: [{when: [check_failed, missing_day], digest: 08:00}]}",
    )
    known = incidents.reconcile([], [cause(), cause("missing_day/landed_files")], NOON)
    known = incidents.reconcile(known, [cause()], NOON + MINUTE)
    assert incidents.due(known, config.alerts, NOON + 2 * MINUTE) == []
    morning = dt.datetime(2024, 3, 6, 8, tzinfo=UTC)
    (message,) = incidents.due(known, config.alerts, morning)
    assert message.is_digest
    assert sorted(state for _, state in message.entries) == ["firing", "resolved"]
    assert messages.title(config, message) == "[digest] data_assets: 1 firing, 1 resolved"
    known = incidents.was_told(known, message, morning)
    assert incidents.due(known, config.alerts, morning + dt.timedelta(days=1)) == []


def test_the_first_rule_that_fits_holds_and_a_channel_without_one_hears_nothing(tmp_path):
    rules = settings_of(
        tmp_path,
        "{channels: {ops: {url_env: A}, boss: {url_env: B}}, rules: [{when: [run_failed], channels: [boss]},"
        "{when: [check_failed], channels: [ops], severity: info}, {when: [check_failed], channels: [ops]}]}",
    ).alerts
    known = incidents.reconcile([], [cause(), cause("kpi_unusual/daily_kpis/x")], NOON)
    assert states(incidents.due(known, rules, NOON)) == [("ops", "firing")]
    assert incidents.severity_of(rules, known[0], "ops") == "info"


def test_the_book_comes_back_as_it_was_written():
    known = incidents.reconcile([], [cause(days=[f"2024-03-{n:02}" for n in range(1, 20)], items=("a", "b"))], NOON)
    known = incidents.was_told(known, Message("ops", ((known[0], "firing"),)), NOON)
    text = incidents.dumps(known, {"ops": {"failures": 1}})
    assert incidents.loads(text) == (known, {"ops": {"failures": 1}})
    assert len(text) < 1_500  # days are kept as ranges
    for torn in (text[:100], "[]", '{"version": 0, "incidents": [], "channels": {}}'):
        with pytest.raises(ValueError, match=r".+"):
            incidents.loads(torn)


# ---- Causes, by hand ---------------------------------------------------------------------------------------------


def ledger(*files):
    """Rows of landed_files from (path, day, rows, error)."""
    full = [
        dict.fromkeys(LANDED_FILES.names)
        | {"path": p, "day": dt.date.fromisoformat(d), "rows": n, "error": e, "content_hash": p, "mapping": "m"}
        for p, d, n, e in files
    ]
    return pl.DataFrame(full, schema=LANDED_FILES.schema)


def judged(tmp_path, text="{deadline: null}", *, at=NOON, **known):
    config = settings_of(tmp_path, text)
    values = {"ledger": ledger(), "notes": {}, "figures": {}} | known
    found, held = causes.causes(causes.Known(**values), config, at)
    return {c.key: c for c in found}, held


def note(refused=None, *failed, at=0.0, mark=None):
    return causes.Note(refused, tuple(failed), mark, at)


def test_files_broken_alike_are_one_cause_and_others_are_another(tmp_path):
    same = [(f"d/a_{n:03}.csv", f"2024-03-{n:02}", 0, f"d/a_{n:03}.csv: line {n} is no text.") for n in range(1, 29)]
    found, _ = judged(tmp_path, ledger=ledger(*same, ("b.csv", "2024-03-29", 0, "b.csv cannot be opened: Denied.")))
    assert sorted(len(c.items) for c in found.values()) == [1, 28]
    assert {c.condition for c in found.values()} == {"unusable_file"}


def test_a_refused_day_tells_the_first_table_that_refused_it(tmp_path):
    bad = Finding("contract", passed=False, observed="1 kinds of violations: x: y fails for secret")
    notes = {
        "session_metrics": {"2024-03-01": note("contract: x", bad), "2024-03-02": note("contract: x", bad)},
        "daily_kpis": {"2024-03-01": note("session_metrics of 2024-03-01 was refused: contract: x")},
    }
    found, _ = judged(tmp_path, notes=notes)
    assert list(found) == ["check_failed/session_metrics/contract"]
    (it,) = found.values()
    assert it.days == ("2024-03-01", "2024-03-02")
    assert "secret" not in str(it)
    found, _ = judged(tmp_path, "{deadline: null, include_samples: true}", notes=notes)
    assert "secret" in str(found)


def test_a_day_refused_for_what_is_above_it_is_no_cause(tmp_path):
    """While a mended day is made again, the tables below still say why they were refused."""
    below = {"2024-03-01": note("raw_events of 2024-03-01 was refused: x")}
    assert judged(tmp_path, notes={"raw_events": {"2024-03-01": note()}, "daily_kpis": below}) == (
        {},
        {("run_failed", "")},
    )
    never = {"2024-03-01": note("raw_events of 2024-03-01 was never made.\n  What to do: Materialise it.")}
    (it,) = judged(tmp_path, notes={"daily_kpis": never})[0].values()
    assert (it.condition, it.todo) == ("check_failed", "Materialise it.")


def test_a_file_that_is_refused_for_its_schema_is_one_cause(tmp_path):
    def changed(*changes):
        return pl.lit(
            drift.changes_to_json([drift.Change(kind, c, policy, f"{c} is odd") for kind, c, policy in changes])
        )

    warned = [("null_rate", "a", "warn"), ("null_rate", "b", "warn"), ("new_event_type", "jane@example.com", "warn")]
    landed = ledger(("a.csv", "2024-03-01", 1, None))
    found, _ = judged(tmp_path, ledger=landed.with_columns(drift=changed(*warned)))
    assert [(k, c.severity, c.reason) for k, c in found.items()] == [
        ("schema_drift/new_event_type", "warning", "an event type that no file had before"),
        ("schema_drift/null_rate", "warning", "a is odd; b is odd"),
    ]
    found, _ = judged(tmp_path, ledger=landed.with_columns(drift=changed(*warned, ("type_change", "c", "fail"))))
    assert [(k, c.severity) for k, c in found.items()] == [("schema_drift/type_change", "error")]


def test_a_header_that_may_be_a_row_of_data_does_not_leave_the_house(tmp_path):
    error = "a.csv: required column(s) missing: user_id. The file has: 17, jane@example.com.\n  What to do: " \
        "Nearest names: user_id -> jane@example.com?. Map them under source.columns."  # fmt: skip
    found, _ = judged(tmp_path, ledger=ledger(("a.csv", "2024-03-01", 0, error)))
    (it,) = found.values()
    assert "jane" not in str(it)
    assert it.todo == "Map them under source.columns."


def test_a_warning_is_a_cause_of_its_own(tmp_path):
    odd = Finding("odd", passed=False, observed="rather odd", severity="WARN")
    found, _ = judged(tmp_path, notes={"outliers": {"2024-03-01": note(None, odd), "2024-03-03": note(None, odd)}})
    (it,) = found.values()
    assert (it.condition, it.severity, it.days) == ("check_warned", "warning", ("2024-03-01", "2024-03-03"))


def test_days_without_rows_are_missing_in_between_and_late_at_the_end(tmp_path):
    landed = ledger(("a", "2024-03-01", 1, None), ("b", "2024-03-03", 1, None), ("c", "2024-03-02", 0, "c is broken."))
    found, _ = judged(tmp_path, "{deadline: '10:00'}", ledger=landed)
    assert [(c.condition, c.days) for c in found.values()] == [
        ("late_day", ("2024-03-04",)),
        ("unusable_file", ("2024-03-02",)),  # and not missing, too
    ]
    found, _ = judged(tmp_path, "{deadline: '13:00'}", ledger=landed)
    assert "late_day/landed_files" not in found
    found, _ = judged(tmp_path, "{deadline: schedule}", ledger=landed)  # 01:00
    assert "late_day/landed_files" in found
    found, _ = judged(tmp_path, ledger=ledger(("a", "2024-03-01", 1, None), ("b", "2024-03-03", 1, None)))
    assert [(c.condition, c.days) for c in found.values()] == [("missing_day", ("2024-03-02",))]


def test_figures_out_of_line_are_those_of_the_report_and_of_the_rules(tmp_path):
    line = {"key": "users", "label": "Users", "kind": "count", "value": 3, "low": 90.0, "high": 120.0, "days": 14,
            "is_unusual": True}  # fmt: skip
    figures = {
        "2024-03-04": {
            "headline": [line, line, line | {"is_unusual": False}],
            "kpis": {"rows_in": 10, "quarantined": 1, "value": None},
        }
    }
    found, _ = judged(
        tmp_path,
        "{deadline: null, rules: [{when: [{kpi: rows_in, below: 11}, {kpi: quarantine_rate, above: 0.1},"
        "{kpi: value, below: 1}, {kpi: rows_in, above: 9, below: 5}]}]}",
        figures=figures,
    )
    assert sorted(found) == [
        "kpi/daily_kpis/rows_in:below:11", "kpi/daily_kpis/rows_in:below:5:above:9", "kpi_unusual/daily_kpis",
    ]  # fmt: skip
    assert found["kpi_unusual/daily_kpis"].reason == "2024-03-04: Users: 3, usual 90 – 120; Users: 3, usual 90 – 120."
    assert found["kpi/daily_kpis/rows_in:below:11"].reason == "2024-03-04: rows_in is 10; it has to be at least 11."


def runs(*failed, busy=()):
    return causes.Runs(failed, frozenset(busy), lambda run: ("outliers", "OSError: no space left"))


def test_a_failed_run_is_told_of_unless_its_days_tell_it_or_it_healed(tmp_path):
    run = causes.FailedRun("r1", "all_days", ("2024-03-01", "2024-03-02"), 100.0, 200.0, was_killed=False)
    landed = ledger(("a", "2024-03-01", 1, None), ("b", "2024-03-02", 1, None))
    found, _ = judged(tmp_path, ledger=landed, runs=runs(run, replace(run, id="r2")))
    (it,) = found.values()
    assert (it.days, it.items, it.condition) == (("2024-03-01", "2024-03-02"), ("r1", "r2"), "run_failed")
    done = {FINISHED: {"2024-03-01": note(mark="x", at=150.0)}, "outliers": {"2024-03-02": note("bad", at=150.0)}}
    found, _ = judged(tmp_path, ledger=landed, notes=done, runs=runs(run))
    assert [c.condition for c in found.values()] == ["check_failed"]
    old = {FINISHED: {"2024-03-01": note(mark="x", at=50.0)}}  # finished before it
    found, _ = judged(tmp_path, ledger=landed, notes=old, runs=runs(run))
    assert next(iter(found.values())).days == ("2024-03-01", "2024-03-02")


def test_a_killed_run_matters_for_the_days_that_are_due_and_waits_while_they_are_made(tmp_path):
    config = settings_of(tmp_path, "{deadline: null}")
    run = causes.FailedRun("r1", "all_days", ("2024-03-01", "2024-03-02"), 100.0, 200.0, was_killed=True)
    landed = ledger(("a", "2024-03-01", 1, None), ("b", "2024-03-02", 1, None))
    from data_assets.landing import fingerprints

    DayLog(config.lake_dir).finish("2024-03-02", fingerprints(landed)["2024-03-02"])
    found, _ = judged(tmp_path, ledger=landed, runs=runs(run))
    assert [(c.days, c.is_settled) for c in found.values()] == [(("2024-03-01",), True)]
    found, _ = judged(tmp_path, ledger=landed, runs=runs(run, busy=["2024-03-01"]))
    assert [c.is_settled for c in found.values()] == [False]
    assert judged(tmp_path, ledger=landed)[1] == {("run_failed", "")}


def test_notes_are_read_again_when_they_change(tmp_path):
    config, reader = settings_of(tmp_path, "{deadline: null}"), causes.Reader()
    log = DayLog(config.lake_dir)
    log.record("outliers", "2024-03-01", (), "bad", is_due=False)
    os.utime(log.root / "outliers", (1, 1))  # long ago, so that only a change makes it look again
    assert reader.read(config, NOON, None).notes["outliers"]["2024-03-01"].refused == "bad"
    first = reader.read(config, NOON, None).notes["outliers"]["2024-03-01"]
    log.record("outliers", "2024-03-02", ())
    again = reader.read(config, NOON, None).notes["outliers"]
    assert again["2024-03-01"] is first  # not read anew
    assert again["2024-03-02"].refused is None
    log.record("outliers", "2024-03-01", ())
    assert reader.read(config, NOON, None).notes["outliers"]["2024-03-01"].refused is None


# ---- Words -------------------------------------------------------------------------------------------------------


def test_hostile_text_is_text_in_every_form(tmp_path):
    config = settings_of(tmp_path, "{channels: {ops: {url_env: A}}}")
    (it,) = incidents.reconcile([], [cause(reason=HOSTILE, items=(HOSTILE,), todo=HOSTILE)], NOON)
    message = Message("ops", ((it, "firing"),))
    for form in ("text", "html", "markdown"):
        made = messages.body(config, message, form, {it.id: [HOSTILE]})
        assert "\u202e" not in made
        assert "\r" not in made
        assert "\nBcc" not in made
        assert "@everyone" not in made
        assert "<!channel" not in made
        if form == "html":
            assert "<script" not in made
            assert "&lt;script&gt;" in made
        if form == "markdown":
            lines = [line for line in made.split("\n") if "evil" in line]
            assert len(lines) == 4
            assert all(line.count("`") == 2 and line.endswith("`") for line in lines)  # code to its end
    title = messages.title(config, message)
    assert title == "[FIRING] error: raw_events: contract, 2024-03-01"


def test_days_are_named_as_ranges(tmp_path):
    config = settings_of(tmp_path, "{channels: {ops: {url_env: A}}}")
    days = [(dt.date(2023, 1, 1) + dt.timedelta(days=n)).isoformat() for n in range(365)]
    (it,) = incidents.reconcile([], [cause(days=days)], NOON)
    message = Message("ops", ((it, "firing"),))
    assert "365 days: 2023-01-01 to 2023-12-31" in messages.body(config, message, "text", {})
    assert messages.fields(config, message)["days"] == [["2023-01-01", "2023-12-31"]]


def test_links_lead_to_the_run_the_asset_or_the_report(tmp_path):
    config = settings_of(tmp_path, "{base_url: 'https://dagster.example/x/'}")
    (it,) = incidents.reconcile([], [cause()], NOON)
    assert (
        messages.link(config, it) == "https://dagster.example/x/assets/raw_events?view=partitions&partition=2024-03-01"
    )
    (run,) = incidents.reconcile([], [cause("run_failed/all_days/x", items=("abc",))], NOON)
    assert messages.link(config, run) == "https://dagster.example/x/runs/abc"
    config = settings_of(tmp_path, "{}")
    assert messages.link(config, it) == ""
    page = config.reports_dir / "2024-03-01" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("x")
    assert messages.link(config, it) == str(page)


# ---- Real runs, real receivers -----------------------------------------------------------------------------------


def test_a_broken_file_fires_once_and_is_resolved_once_when_a_run_has_mended_it(project, webhook):
    made = project(webhook.url, days=["2024-03-01", "2024-03-03"])
    bad = made.raw / "2024-03-02.csv"
    bad.write_text("user,when\n1,2\n")
    made.ledger()
    look(made)
    assert webhook.told == [("firing", "unusable_file")]
    assert not made.run("2024-03-01", "2024-03-03").success
    for _ in range(3):
        look(made)
    assert webhook.told == [("firing", "unusable_file")]  # neither the refused day nor the failed run is another one
    alert = webhook.got[0][0]["alert"]
    assert alert["days"] == [["2024-03-02", "2024-03-02"]]
    assert alert["items"] == ["2024-03-02.csv"]
    bad.write_text(rows("2024-03-02"))
    made.ledger()
    look(made)
    assert len(webhook.got) == 1  # mended, and not made yet
    assert made.run("2024-03-02").success
    for _ in range(3):
        look(made)
    assert webhook.told == [("firing", "unusable_file"), ("resolved", "unusable_file")]
    assert webhook.got[1][0]["alert"]["incident"] == alert["incident"]
    assert look(made).open == []


def test_too_many_refused_rows_and_their_samples_only_if_allowed(project, webhook):
    made = project(webhook.url, days=["2024-03-01"])
    (made.raw / "2024-03-01.csv").write_text(rows("2024-03-01") + "jane@example.com,no time,,view,1\n" * 9)
    made.run("2024-03-01")
    look(made)
    assert webhook.told == [("firing", "quarantine_rate")]
    assert "jane" not in json.dumps(webhook.got)
    assert webhook.got[0][0]["alert"]["command"] == "data-assets quarantine show --day 2024-03-01"
    open_made = project(webhook.url, settings="include_samples: true")
    (open_made.config.data_dir / "alerts/state.json").unlink()
    look(open_made)
    assert "jane@example.com,no time" in webhook.got[1][0]["message"]


def test_schema_drift_goes_on_until_the_day_is_made(project, webhook):
    made = project(webhook.url, days=["2024-03-01", "2024-03-02"])
    assert made.run("2024-03-01", "2024-03-02").success
    text = "\n".join(line.rpartition(",")[0] for line in rows("2024-03-03").splitlines())
    (made.raw / "2024-03-03.csv").write_text(text)
    made.run("2024-03-03")
    look(made)
    assert webhook.told == [("firing", "schema_drift")]
    assert webhook.got[0][0]["alert"]["severity"] == "error"
    (made.raw / "2024-03-03.csv").write_text(rows("2024-03-03"))
    made.ledger()
    look(made)
    assert len(webhook.got) == 1
    made.run("2024-03-03")
    look(made)
    assert webhook.told == [("firing", "schema_drift"), ("resolved", "schema_drift")]


def test_a_day_out_of_line_is_one_message_until_the_next_is_in_line(project, webhook):
    made = project(
        webhook.url,
        settings="kpi_days: 1\n  rules: [{when: [kpi_unusual, {kpi: rows_in, above: 300}], severity: info}]",
    )
    counts = [40, 44, 41, 45, 42, 43, 44, 400]
    days = [f"2024-03-{n:02}" for n in range(1, 10)]
    for day, count in zip(days, counts, strict=False):
        (made.raw / f"{day}.csv").write_text(rows(day, count))
    assert made.run(days[0], days[7]).success
    look(made)
    found = {payload["alert"]["condition"]: payload["alert"] for payload, _ in webhook.got}
    assert sorted(found) == ["kpi_unusual", "rows_in:above:300"]
    assert found["kpi_unusual"]["days"] == [["2024-03-08", "2024-03-08"]]
    assert "Events: 400, usual 3" in found["kpi_unusual"]["reason"]
    assert {payload["type"] for payload, _ in webhook.got} == {"info"}
    (made.raw / "2024-03-09.csv").write_text(rows("2024-03-09", 43))
    assert made.run(days[8]).success
    look(made)
    assert sorted(webhook.told[2:]) == [("resolved", "kpi_unusual"), ("resolved", "rows_in:above:300")]


def test_a_year_that_fails_for_one_cause_is_one_message(project, webhook):
    made = project(webhook.url)
    days = [(dt.date(2024, 3, 1) + dt.timedelta(days=n)).isoformat() for n in range(365)]
    bad = Finding("contract", passed=False, observed="x")
    for day in days:
        made.log.record("raw_events", day, (bad,), "contract: x")
    look(made)
    (payload, _) = webhook.got[0]
    assert payload["alert"]["days"] == [[days[0], days[-1]]]
    assert len(webhook.got) == 1


def test_a_receiver_that_is_down_delays_nothing_and_is_told_once_when_it_is_back(project, webhook):
    webhook.down()
    made = project(webhook.url, days=["2024-03-01", "2024-03-03"])
    now = dt.datetime.now(UTC)
    first = look(made, now)
    assert made.run("2024-03-01").success
    first = look(made, now)
    assert list(first.failed) == ["ops"]
    assert "T0KENSECRET" not in first.in_words() + (made.config.data_dir / "alerts/state.json").read_text()
    waits = []
    for _ in range(6):
        state = json.loads((made.config.data_dir / "alerts/state.json").read_text())["channels"]["ops"]
        until = dt.datetime.fromisoformat(state["next"])
        waits.append((until - now).total_seconds())
        if until - now > MINUTE:
            assert look(made, until - MINUTE).failed == {}  # not tried before its time
        now = until + dt.timedelta(seconds=1)
        assert list(look(made, now).failed) == ["ops"]
    assert state["failures"] == 6
    webhook.up()
    look(made, now + dt.timedelta(hours=1))
    look(made, now + dt.timedelta(hours=2))
    assert webhook.told == [("firing", "missing_day")]
    assert "ops" not in json.loads((made.config.data_dir / "alerts/state.json").read_text())["channels"]


def test_waits_double_with_full_jitter_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: (low, high)[1])
    assert [alerts.wait(n).total_seconds() for n in (1, 2, 3, 5, 6, 40)] == [30, 60, 120, 480, 900, 900]


def test_a_receiver_that_refuses_or_hangs_is_tried_again(project, webhook):
    made = project(webhook.url, settings="timeout_seconds: 0.2", days=["2024-03-01", "2024-03-03"])
    made.ledger()
    made.log.record("raw_events", "2024-03-01", (), "a cause of its own", is_due=False)
    webhook.status = 500
    assert list(look(made).failed) == ["ops"]
    assert webhook.tries == 1  # the second message waits for its turn
    made.log.record("raw_events", "2024-03-01", ())
    webhook.status, webhook.delay = 200, 1.0
    later = dt.datetime.now(UTC) + dt.timedelta(hours=1)
    assert list(look(made, later).failed) == ["ops"]
    webhook.delay = 0.0
    look(made, later + dt.timedelta(hours=1))
    missing = [headers for payload, headers in webhook.got if payload["alert"]["condition"] == "missing_day"]
    ids = {headers["X-Data-Assets-Message"] for headers in missing}
    assert len(ids) == 1  # what it took while it hung has the same id, so that it can tell


def test_one_dead_channel_does_not_keep_the_others_from_hearing(project, webhook, monkeypatch):
    made = project(webhook.url, days=["2024-03-01", "2024-03-03"])
    made.ledger()
    text = (made.root / "pipeline.yaml").read_text().replace("{ops:", "{gone: {url_env: GONE}, ops:")
    (made.root / "pipeline.yaml").write_text(text)
    made.config = load_config(made.root / "pipeline.yaml", env={})
    assert look(made).failed == {"gone": "the environment variable GONE is not set"}
    assert len(webhook.got) == 1
    monkeypatch.setenv("GONE", "nonsense")
    assert "no address" in look(made, dt.datetime.now(UTC) + dt.timedelta(hours=1)).failed["gone"]


def test_mail_has_both_forms_one_thread_and_no_header_of_a_stranger(project, mailbox):
    made = project(mailbox.url)
    name = "x\r\nBcc: evil@example.com\r\n.csv"
    reason = f"{name}: <b>bold</b> line 3 is no text."
    made.lake.write(LANDED_FILES, None, ledger((name, "2024-03-01", 0, reason)).lazy(), {})
    look(made)
    made.lake.write(LANDED_FILES, None, ledger(("a.csv", "2024-03-01", 1, None)).lazy(), {})
    look(made)
    (fired, to), (resolved, _) = mailbox.messages
    assert to == ["ops@example.com"]
    assert fired["Subject"] == "[FIRING] error: input that cannot be used, 2024-03-01"
    assert resolved["Subject"] == "[RESOLVED] error: input that cannot be used, 2024-03-01"
    assert fired["References"] == resolved["References"]
    assert fired["X-Data-Assets-Message"] != resolved["X-Data-Assets-Message"]
    assert fired["Bcc"] is None
    page = fired.get_body(("html",)).get_content()
    assert "<b>" not in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "line 3 is no text" in fired.get_body(("plain",)).get_content()


def test_nobody_else_sends_meanwhile(project, webhook):
    made = project(webhook.url, days=["2024-03-01", "2024-03-03"])
    made.ledger()
    (made.config.data_dir / "alerts").mkdir(parents=True)
    with FileLock(made.config.data_dir / "alerts/.lock"):
        assert look(made) is None
    assert look(made).sent != []


def test_a_damaged_book_is_put_aside(project, webhook):
    made = project(webhook.url, days=["2024-03-01", "2024-03-03"])
    made.ledger()
    look(made)
    book = made.config.data_dir / "alerts/state.json"
    book.write_text(book.read_text()[:50])
    assert len(look(made).sent) == 1
    assert book.with_name("state.json.damaged").exists()


def test_what_a_killed_process_could_not_note_is_sent_again_with_the_same_id(project, webhook):
    made = project(webhook.url, days=["2024-03-01", "2024-03-03"])
    made.ledger()
    webhook.down()
    look(made)
    book = made.config.data_dir / "alerts/state.json"
    before = book.read_text()
    webhook.up()
    later = dt.datetime.now(UTC) + dt.timedelta(hours=1)
    look(made, later)
    book.write_text(before)  # as if it had been killed after the answer
    look(made, later)
    assert webhook.told == [("firing", "missing_day")] * 2
    assert len({payload["alert"]["id"] for payload, _ in webhook.got}) == 1


def test_a_full_disk_is_told_of_once(project, webhook):
    made = project(webhook.url, days=["2024-03-01", "2024-03-03"])
    made.ledger()
    teller, now = alerts.Teller(made.config), dt.datetime.now(UTC)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # the system refuses every byte
    try:
        said = [teller.make_round(made.instance, now=now, budget_seconds=20.0).in_words() for _ in range(2)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said == [
        "alerts: 1 open, 1 sent, not written down (File too large)",
        "alerts: 1 open, not written down (File too large)",
    ]
    assert teller.make_round(made.instance, now=now, budget_seconds=20.0).in_words() == "alerts: 1 open"
    assert look(made).sent == []  # it is written down now
    assert len(webhook.got) == 1


def test_a_raw_folder_that_is_gone_is_told_of(project, webhook):
    made = project(webhook.url, days=["2024-03-01"])
    assert made.run("2024-03-01").success
    made.raw.rename(made.raw.with_name("away"))
    look(made)
    assert webhook.told == [("firing", "unusable_file")]
    assert "No such file" in webhook.got[0][0]["alert"]["reason"]
    made.raw.with_name("away").rename(made.raw)
    look(made)
    assert webhook.told[1:] == [("resolved", "unusable_file")]


def test_secrets_stay_in_the_environment(webhook):
    url = "json://bob:s3cret@hooks.example.com/T0KEN/abc?+X-Key=k3y"
    words = f"failed at hooks.example.com/T0KEN with s3cret and k3y ({url})"
    assert alerts.without_secrets(words, url) == "failed at ***/*** with *** and *** (***)"


# ---- Runs of Dagster ---------------------------------------------------------------------------------------------


def test_a_run_that_breaks_is_told_of_until_its_day_is_made(project, webhook, monkeypatch):
    made = project(webhook.url, days=["2024-03-01"])
    from data_assets import metrics

    def broken(*_args, **_kwargs):
        raise RuntimeError("jane@example.com broke it")

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "outliers", broken)
        assert not made.run("2024-03-01").success
    look(made)
    assert webhook.told == [("firing", "run_failed")]
    alert = webhook.got[0][0]["alert"]
    assert alert["asset"] == "outliers"
    assert "RuntimeError" in alert["reason"]
    assert "jane" not in json.dumps(webhook.got)
    assert alert["command"] == "data-assets run --from 2024-03-01 --to 2024-03-01"
    with DagsterInstance.ephemeral() as other:  # knows nothing of the run, so not that it healed either
        assert len(alerts.Teller(made.config).make_round(other, now=dt.datetime.now(UTC), budget_seconds=1).open) == 1
    assert made.run("2024-03-01").success
    look(made)
    assert webhook.told == [("firing", "run_failed"), ("resolved", "run_failed")]


def test_a_run_that_dagster_starts_again_is_waited_for(project, webhook, monkeypatch):
    made = project(webhook.url, days=["2024-03-01"])
    with monkeypatch.context() as patch:
        patch.setattr("data_assets.metrics.outliers", lambda *_args, **_kwargs: 1 / 0)
        run = made.run("2024-03-01").run_id
    now = dt.datetime.now(UTC)
    made.instance.add_run_tags(run, {"dagster/will_retry": "true"})
    assert look(made, now).open == []
    made.instance.add_run_tags(run, {"dagster/auto_retry_run_id": "another"})
    assert look(made, now + dt.timedelta(hours=1)).open == []  # what became of it, the other one tells


def test_a_run_that_was_to_be_started_again_and_was_not_is_told_of(project, webhook, monkeypatch):
    made = project(webhook.url, days=["2024-03-01"])
    with monkeypatch.context() as patch:
        patch.setattr("data_assets.metrics.outliers", lambda *_args, **_kwargs: 1 / 0)
        run = made.run("2024-03-01").run_id
    made.instance.add_run_tags(run, {"dagster/will_retry": "true"})
    assert look(made, dt.datetime.now(UTC) + dt.timedelta(minutes=11)).sent != []
    assert webhook.told == [("firing", "run_failed")]


def test_the_sensor_runs_only_where_somebody_is_to_be_told(project, webhook):
    silent = project()
    assert alerts.build_sensor(silent.config).default_status == DefaultSensorStatus.STOPPED
    made = project(webhook.url, days=["2024-03-01", "2024-03-03"])
    made.ledger()
    sensor = alerts.build_sensor(made.config)
    assert sensor.default_status == DefaultSensorStatus.RUNNING
    with DagsterInstance.ephemeral() as instance:
        said = sensor(build_sensor_context(instance=instance))
    assert isinstance(said, SkipReason)
    assert said.skip_message == "alerts: 1 open, 1 sent"
    assert webhook.told == [("firing", "missing_day")]


# ---- The command line --------------------------------------------------------------------------------------------


def call(project, *arguments, **environment):
    return CliRunner().invoke(main, ["--config", str(project.root / "pipeline.yaml"), *arguments], env=environment)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Dagster's history below the test's folder."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))


def test_a_run_tells_what_it_found_and_keeps_its_exit_code(project, webhook, here):
    made = project(webhook.url, days=["2024-03-01", "2024-03-03"])
    done = call(made, "run")
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[-1] == "alerts: 1 open, 1 sent"
    webhook.down()
    (made.raw / "2024-03-04.csv").write_text("user,when\n1,2\n")
    done = call(made, "run")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("alerts: 2 open, 1 waiting, ops not reached (")
    assert "T0KENSECRET" not in done.output + done.stderr


def test_a_replay_tells_what_it_found_as_a_run_does(project, webhook, here):
    made = project(webhook.url, days=["2024-03-01"])
    (made.raw / "2024-03-02.csv").write_text(rows("2024-03-02") + ",2024-03-02 10:00:00,,view,1,\n" * 30)
    assert call(made, "run").exit_code == 1
    assert webhook.got[-1][0]["alert"]["state"] == "firing"
    (made.raw / "2024-03-02.csv").write_text(rows("2024-03-02"))
    done = call(made, "quarantine", "replay")
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[-1] == "alerts: 0 open, 1 sent"
    assert webhook.got[-1][0]["alert"]["state"] == "resolved"
    again = call(made, "quarantine", "replay")  # with nothing to make there is nothing to tell
    assert "alerts" not in again.stderr


def test_alerts_without_a_channel_are_shown_and_nothing_is_sent(project, here):
    made = project(days=["2024-03-01", "2024-03-03"])
    made.ledger()
    done = call(made, "alerts")
    assert done.exit_code == 1
    assert done.output.splitlines()[0] == "warning: days without rows, 2024-03-02"
    found = json.loads(call(made, "alerts", "--json").output)
    assert [(e["condition"], e["told"]) for e in found["open"]] == [("missing_day", {})]
    (made.raw / "2024-03-02.csv").write_text(rows("2024-03-02"))
    made.ledger()
    done = call(made, "alerts")
    assert (done.exit_code, done.output) == (0, "Nothing is wrong.\n")


def test_a_test_message_and_its_failure(project, webhook, here):
    made = project(webhook.url)
    assert call(made, "alerts", "test", "ops").output == "ops took the message.\n"
    assert webhook.got[0][0]["alert"]["condition"] == "test"
    webhook.down()
    done = call(made, "alerts", "test", "ops")
    assert done.exit_code == 1
    assert "T0KENSECRET" not in done.output
    assert "127.0.0.1" not in done.output
    assert call(made, "alerts", "test", "opps").exit_code == 2


def test_a_folder_that_may_not_be_written_is_said(project, here):
    made = project(days=["2024-03-01"])
    (made.config.data_dir / "alerts").write_text("in the way")
    done = call(made, "alerts")
    assert done.exit_code == 1
    assert "alerts cannot be written: File exists." in done.stderr


def test_check_sends_once(project, webhook, here):
    made = project(webhook.url, days=["2024-03-01", "2024-03-03"])
    made.ledger()
    assert call(made, "alerts", "check").output.splitlines()[-1] == "alerts: 1 open, 1 sent"
    assert call(made, "alerts", "check").output.splitlines()[-1] == "alerts: 1 open"
    assert call(made, "alerts").output.splitlines()[1].endswith("told: ops")
    webhook.down()
    (made.raw / "2024-03-02.csv").write_text(rows("2024-03-02"))
    made.ledger()
    assert "ops not reached" in call(made, "alerts", "check").output
    assert "1 try, the next after" in call(made, "alerts").output
    webhook.up()
    assert call(made, "alerts", "check").output.splitlines()[-1] == "alerts: 0 open, 1 sent"  # who asks does not wait
