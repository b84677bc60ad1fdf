"""When runs start by the clock, from the configuration, and by when assets must be fresh.

Here: each form of the section ``schedule``, the switches, freshness policies, the cut of the sensor's ranges. Not here:
yesterday's run and finished weeks (``test_landing.py``, ``test_graph.py``), or a real daemon (``test_deploy.py``).
"""

from __future__ import annotations

import datetime as dt
import json

import pytest
from dagster import AssetKey, DagsterInstance, DefaultScheduleStatus, DefaultSensorStatus, build_schedule_context

from data_assets import sensors
from data_assets.config import load_config
from data_assets.definitions import build_definitions
from data_assets.errors import ConfigurationError

DAYS = ("2024-03-01", "2024-03-02", "2024-03-04")
ROW = "user_id,session_start,session_end,event_type,value,metadata\n1,{day}T08:00:00,{day}T09:00:00,buy,1,\n"


def configured(tmp_path, text):
    (tmp_path / "pipeline.yaml").write_text(text)
    return load_config(tmp_path / "pipeline.yaml", env={})


def repository(tmp_path, text):
    return build_definitions(configured(tmp_path, text)).get_repository_def()


@pytest.mark.parametrize(
    ("section", "name", "cron"),
    [
        ("{}", "yesterday", "0 1 * * *"),
        ("{hour: 6, minute: 30}", "yesterday", "30 6 * * *"),
        ("{every: {hours: 6}}", "due_days", "0 */6 * * *"),
        ("{every: {hours: 24}}", "due_days", "0 0 * * *"),
        ("{every: {minutes: 15}}", "due_days", "*/15 * * * *"),
        ("{every: {minutes: 60}}", "due_days", "0 * * * *"),
        ('{cron: "30 6 * * mon-fri"}', "due_days", "30 6 * * mon-fri"),
        ('{cron: "0 8-18/2 1,15 */3 0"}', "due_days", "0 8-18/2 1,15 */3 0"),
    ],
)
def test_each_form_is_one_schedule_that_dagster_takes(tmp_path, section, name, cron):
    found = repository(tmp_path, f"timezone: Europe/Berlin\nschedule: {section}")
    assert {s.name for s in found.schedule_defs} == {name, "finished_weeks"}
    schedule = found.get_schedule_def(name)
    assert (schedule.cron_schedule, schedule.execution_timezone) == (cron, "Europe/Berlin")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{every: {hours: 5}}", ["schedule.every.hours = 5", "does not divide 24", "1, 2, 3, 4, 6, 8, 12, 24"]),
        ("{every: {hours: 0}}", ["does not divide 24"]),
        ("{every: {minutes: 45}}", ["schedule.every.minutes = 45", "does not divide 60"]),
        ("{every: {hours: 6, minutes: 10}}", ["exclude one another"]),
        ('{every: {hours: 6}, cron: "0 1 * * *"}', ["exclude one another"]),
        ("{hour: 3, every: {hours: 6}}", ["hour and minute are for the daily run"]),
        ('{minute: 3, cron: "0 1 * * *"}', ["hour and minute are for the daily run"]),
        ('{cron: "0 1 * *"}', ["schedule.cron", "4 fields, not the five"]),
        ('{cron: "0 24 * * *"}', ["'24' is no hour of cron (0 to 23)"]),
        ('{cron: "0 5-2 * * *"}', ["'5-2' is no hour"]),
        ('{cron: "*/0 * * * *"}', ["'*/0' is no minute"]),
        ('{cron: "* * 0 * *"}', ["'0' is no day of the month"]),
        ('{cron: "* * * someday *"}', ["'someday' is no month"]),
        ("{every: {days: 1}}", ["schedule.every.days", "no such key"]),
        ("{enabled: soon}", ["schedule.enabled", "true or false"]),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(tmp_path, section, words):
    with pytest.raises(ConfigurationError) as caught:
        configured(tmp_path, f"schedule: {section}")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "schedule", "sensor"),
    [
        ("{}", DefaultScheduleStatus.STOPPED, DefaultSensorStatus.RUNNING),
        (
            "schedule: {enabled: true}\nsensor: {enabled: false}",
            DefaultScheduleStatus.RUNNING,
            DefaultSensorStatus.STOPPED,
        ),
        ("schedule: {enabled: true, every: {hours: 1}}", DefaultScheduleStatus.RUNNING, DefaultSensorStatus.RUNNING),
    ],
)
def test_schedule_and_sensor_are_switched_on_by_configuration(tmp_path, text, schedule, sensor):
    found = repository(tmp_path, text)
    [ours] = [s for s in found.schedule_defs if s.name != "finished_weeks"]
    assert ours.default_status == schedule
    assert found.get_sensor_def("raw_files").default_status == sensor


def test_a_beat_asks_for_the_days_that_are_due_and_for_no_other(tmp_path, project_at):
    (tmp_path / "history").mkdir()
    raw = tmp_path / "data" / "raw"
    raw.mkdir(parents=True)
    for day in DAYS:
        (raw / f"events_{day}.csv").write_text(ROW.format(day=day))
    configured(
        tmp_path,
        "start_date: 2024-02-26\nsource: {settle_seconds: 0}\nschedule: {every: {hours: 6}}\nruns: {max_days: 1}\n",
    )
    project = project_at(tmp_path, tmp_path)
    schedule = build_definitions(project.config).get_repository_def().get_schedule_def("due_days")

    def asked(hour):
        when = dt.datetime(2024, 3, 10, hour, tzinfo=dt.UTC)
        with DagsterInstance.local_temp(str(tmp_path / "history")) as instance:
            told = schedule.evaluate_tick(build_schedule_context(instance, when))
        assert bool(told.run_requests) != bool(told.skip_message)
        return [(r.run_key, r.tags["dagster/asset_partition_range_end"]) for r in told.run_requests or []]

    keys = [f"2024-03-10T06:00:00+00:00:{day}..{day}" for day in DAYS]  # a day each, as runs.max_days says
    assert asked(6) == list(zip(keys, DAYS, strict=True))
    assert project.run(DAYS[0], DAYS[1]).success
    assert [day for _, day in asked(12)] == [DAYS[2]]
    assert project.run(DAYS[2]).success
    assert asked(18) == []
    (raw / f"events_{DAYS[1]}.csv").write_text(ROW.format(day=DAYS[1]).replace("buy", "view"))
    assert [day for _, day in asked(0)] == [DAYS[1]]


def test_the_sensor_asks_for_ranges_of_at_most_so_many_days():
    stale = {f"2024-03-{n:02d}": "mark" for n in range(1, 8)}
    tick = sensors.decide(stale, None, set(), 3)
    assert tick.ranges == (
        ("2024-03-01", "2024-03-03", "1:2024-03-01..2024-03-03"),
        ("2024-03-04", "2024-03-06", "1:2024-03-04..2024-03-06"),
        ("2024-03-07", "2024-03-07", "1:2024-03-07..2024-03-07"),
    )
    assert sorted(json.loads(tick.cursor)["asked"]) == sorted(stale)


def test_a_backfill_is_cut_as_configured(tmp_path):
    found = build_definitions(configured(tmp_path, "runs: {max_days: 7}"))
    cuts = {a.backfill_policy.max_partitions_per_run for a in found.assets if a.backfill_policy}
    assert cuts == {7}


def test_assets_have_the_freshness_policies_that_are_configured(tmp_path):
    windows = "{raw_events: {fail_after_hours: 30, warn_after_hours: 26}, daily_report: {fail_after_hours: 0.5}}"
    graph = build_definitions(configured(tmp_path, f"freshness: {windows}")).resolve_asset_graph()
    policies = {key.to_user_string(): graph.get(key).freshness_policy for key in graph.get_all_asset_keys()}
    watched = {name: policy for name, policy in policies.items() if policy is not None}
    assert set(watched) == {"raw_events", "daily_report"}
    raw, report = watched["raw_events"], watched["daily_report"]
    assert (raw.fail_window.to_timedelta(), raw.warn_window.to_timedelta()) == (
        dt.timedelta(hours=30),
        dt.timedelta(hours=26),
    )
    assert (report.fail_window.to_timedelta(), report.warn_window) == (dt.timedelta(minutes=30), None)
    assert graph.get(AssetKey("raw_events")).description  # the rest of the asset is as it was


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{raw_events: {fail_after_hours: 20, warn_after_hours: 26}}", ["not after warn_after_hours, which is 26"]),
        ("{raw_events: {warn_after_hours: 26}}", ["not after warn_after_hours"]),
        ("{raw_events: {fail_after_hours: 0}}", ["at least 0.1"]),
        ("{raw_event: {fail_after_hours: 20}}", ["no such key", "freshness.raw_events"]),
    ],
)
def test_a_freshness_that_cannot_be_is_refused(tmp_path, section, words):
    with pytest.raises(ConfigurationError) as caught:
        configured(tmp_path, f"freshness: {section}")
    for word in words:
        assert word in str(caught.value)
