"""Figures for Prometheus: what they say, that their number is bounded, and the dashboard over them."""

from __future__ import annotations

import datetime as dt
import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from data_assets import alerts, exposition, runs
from data_assets.cli import main
from data_assets.config import load_config

ROOT = Path(__file__).parents[1]
NOW = dt.datetime(2024, 3, 20, 12, tzinfo=dt.UTC)


def samples(text):
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for f in text_string_to_metric_families(text)
        for s in f.samples
    }


def value(found, name, **labels):
    return found["data_assets_" + name, tuple(sorted(labels.items()))]


@pytest.fixture(scope="module")
def made(project_at, tmp_path_factory):
    """The fixtures, made up to the fifth day; not to be changed."""
    root = tmp_path_factory.mktemp("exposed") / "project"
    shutil.copytree(ROOT / "fixtures", root, ignore=shutil.ignore_patterns("data", ".dagster", "*.py", "expected"))
    project = project_at(root, root)
    assert project.run("2024-03-01", "2024-03-05").success
    look(project)
    return project


def look(project):
    """A round of the alerts, which sends nothing: there is no channel."""
    return alerts.Teller(project.config).make_round(project.instance, now=NOW, budget_seconds=0)


def test_the_figures_are_those_of_what_is_stored(made):
    found = samples(exposition.exposed(made.config, NOW))
    kpis = made.table("daily_kpis", [f"2024-03-0{n}" for n in range(1, 6)])
    assert value(found, "days", state="done") == 5
    assert value(found, "days", state="due") == len(made.stale())
    assert value(found, "days", state="refused") == 0
    assert value(found, "files", state="usable") == made.ledger()["path"].n_unique()
    assert value(found, "last_finished_day_timestamp_seconds") == dt.datetime(2024, 3, 5, tzinfo=dt.UTC).timestamp()
    for outcome in ("valid", "quarantined", "duplicate"):
        assert value(found, "rows", outcome=outcome, window="1d") == kpis[outcome][-1]
        assert value(found, "rows", outcome=outcome, window="7d") == kpis[outcome].sum()
    assert value(found, "late_rows", window="28d") == kpis["late"].sum()
    rate = kpis["quarantined"].sum() / kpis["rows_in"].sum()
    assert value(found, "quarantine_ratio", window="28d") == pytest.approx(rate)
    last = runs.last(made.config.lake_dir)
    assert value(found, "last_run_duration_seconds") == last.seconds
    assert value(found, "last_run_peak_bytes") == pytest.approx(last.peak_mb * 2**20)
    assert value(found, "last_run_success") == 1
    assert value(found, "last_run_stage_seconds", stage="daily_report") == last.stages["daily_report"]
    assert value(found, "ledger_bytes") > 0
    assert 0 < value(found, "disk_free_bytes") < value(found, "disk_size_bytes")


def test_labels_are_bounded_and_none_is_a_day_or_a_value(made):
    labels = {pair for _, of_sample in samples(exposition.exposed(made.config, NOW)) for pair in of_sample}
    assert {name for name, _ in labels} == {"version", "state", "outcome", "window", "stage", "severity"}
    assert not [value for name, value in labels if name != "version" and re.search(r"\d{4}|@|/", value)]


def test_a_refused_day_and_an_unusable_file_are_counted(made, project_at, tmp_path):
    again = project_at(made.root, tmp_path / "project")
    (again.raw / "events_2024-03-01.csv").write_text("user_id,session_start,event_type\n,,\n" * 50)
    (again.raw / "more_2024-03-04.csv").write_text("a\n1\n")
    again.run("2024-03-01")
    found = samples(exposition.exposed(again.config, NOW))
    assert value(found, "days", state="refused") == 1
    assert value(found, "files", state="unusable") == 1
    assert (value(found, "last_run_success"), value(found, "last_run_days_refused")) == (0, 1)


def test_open_incidents_are_counted_by_severity_as_of_the_last_look(made, project_at, tmp_path):
    again = project_at(made.root, tmp_path / "project")
    state = again.config.data_dir / "alerts" / "state.json"
    (again.raw / "more_2024-03-04.csv").write_text("a\n1\n")
    again.ledger()
    before = samples(exposition.exposed(again.config, NOW))
    found_open = [i.cause.severity for i in look(again).open]
    after = samples(exposition.exposed(again.config, NOW))
    counts = {s: value(after, "incidents", severity=s) for s in ("info", "warning", "error", "critical")}
    assert counts == {s: found_open.count(s) for s in counts}
    assert sum(counts.values()) == sum(value(before, "incidents", severity=s) for s in counts) + 1
    assert value(after, "alert_channels_unreached") == 0
    assert value(after, "alerts_last_look_timestamp_seconds") >= state.stat().st_mtime - 1
    state.unlink()  # begun with the first incident: none so far
    assert value(samples(exposition.exposed(again.config, NOW)), "incidents", severity="error") == 0
    state.write_text("{")
    damaged = {name for name, _ in samples(exposition.exposed(again.config, NOW))}
    assert not [name for name in damaged if "incidents" in name or "alert" in name]


def test_an_empty_project_has_figures_too(tmp_path):
    (tmp_path / "pipeline.yaml").write_text("data_dir: not/there/yet\n")
    found = samples(exposition.exposed(load_config(tmp_path / "pipeline.yaml", env={}), NOW))
    assert value(found, "days", state="done") == 0
    assert not [name for name, _ in found if "run" in name or "rows" in name or "incidents" in name]
    assert [p.name for p in tmp_path.iterdir()] == ["pipeline.yaml"]


def test_the_command_prints_them_or_replaces_a_file(made, tmp_path):
    config = ["--config", str(made.root / "pipeline.yaml"), "metrics"]
    printed = CliRunner().invoke(main, config)
    target = tmp_path / "data_assets.prom"
    target.write_text("old")
    assert CliRunner().invoke(main, [*config, "--textfile", str(target)]).exit_code == 0
    assert samples(target.read_text()).keys() == samples(printed.stdout).keys()
    assert target.stat().st_mode & 0o444 == 0o444  # the collector is another user
    assert [p.name for p in tmp_path.iterdir()] == ["data_assets.prom"]
    (tmp_path / "file").write_text("")
    refused = CliRunner().invoke(main, [*config, "--textfile", str(tmp_path / "file" / "x.prom")])
    assert refused.exit_code == 2
    assert "cannot be written" in refused.stderr


def test_the_dashboard_asks_for_figures_that_there_are_and_for_all_of_them(made):
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "data_assets.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    found = samples(exposition.exposed(made.config, NOW))
    names = {name for name, _ in found}
    assert {name for expr in asked for name in re.findall(r"data_assets_\w+", expr)} == names
    labels = {pair for _, of_sample in found for pair in of_sample}
    for expr in asked:
        assert set(re.findall(r'(\w+)="([^"]+)"', expr)) <= labels
    shown = {
        label
        for panel in dashboard["panels"]
        for t in panel["targets"]
        for label in re.findall(r"{{(\w+)}}", t["legendFormat"])
    }
    assert shown <= {name for name, _ in labels}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
