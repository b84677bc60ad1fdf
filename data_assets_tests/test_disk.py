"""A disk that is full, read-only, gone or forbidden: a clear word, the old day kept, and the next run goes on.

Here: the cases of docs/failures.md, each on a file system of its own; the look before work begins; the sensor. Where no
file system may be mounted (not root, a container without the right) the cases are skipped, aloud.
"""

from __future__ import annotations

import errno
import os
import re
import runpy
import subprocess
import sys

import pytest
from dagster import DagsterInstance, build_sensor_context

from data_assets import disk, sensors
from data_assets.definitions import build_definitions
from data_assets.errors import RawFolderMissingError, StorageFullError
from data_assets.failures import as_disk_error, kind_of
from data_assets.jobs import build_job
from data_assets_tests.conftest import ROOT

FAILURES = runpy.run_path(str(ROOT / "docs/make_failures.py"))
DAY = "2024-03-01"


def may_mount(folder) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
            return False
    except FileNotFoundError:
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


@pytest.mark.parametrize("case", [pytest.param(c, id=c.title) for c in FAILURES["CASES"]])
def test_the_old_day_stays_and_the_next_run_goes_on(case, tmp_path):
    if not may_mount(tmp_path):
        pytest.skip("no file system may be mounted here")
    found = FAILURES["outcome"](case)
    assert found.exit_code == 1
    assert "What to do: " in found.printed
    assert "Traceback" not in found.printed
    assert "Stack Trace" not in found.printed
    assert found.first_day_kept
    assert not found.second_day_made
    assert found.leftovers == ()
    assert found.then == "1 of 1 days done in 1 s."
    assert found.printed in FAILURES["PAGE"].read_text(encoding="utf-8")


def test_the_page_has_every_case():
    titles = re.findall("^## (.*)$", FAILURES["PAGE"].read_text(encoding="utf-8"), re.MULTILINE)
    assert titles == [c.title for c in FAILURES["CASES"]]


@pytest.fixture
def project(tmp_path, project_at):
    def make(settings=""):
        (tmp_path / "data" / "raw").mkdir(parents=True)
        (tmp_path / "pipeline.yaml").write_text(f"start_date: 2024-01-01\nsource: {{settle_seconds: 0}}\n{settings}")
        (tmp_path / "data" / "raw" / f"{DAY}.csv").write_text(
            f"user_id,session_start,session_end,event_type,value\n1,{DAY} 10:00:00,{DAY} 11:00:00,view,1\n"
        )
        return project_at(tmp_path, tmp_path)

    return make


def test_room_is_asked_for_by_the_size_of_the_files(project):
    made = project("disk: {min_free: 1KB}\n")
    size = (made.raw / f"{DAY}.csv").stat().st_size
    assert disk.needed(made.config, [f"{DAY}.csv", "gone.csv"]) == 1_000 + disk.GROWTH * size
    disk.check_room(made.config, [f"{DAY}.csv"])


def test_what_is_written_already_needs_no_more_room(project, monkeypatch):
    made = project("disk: {min_free: 1KB}\n")
    wanted = disk.needed(made.config, [f"{DAY}.csv"])
    usage = disk.shutil.disk_usage(made.root)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=wanted - 100))
    with pytest.raises(StorageFullError):
        disk.check_room(made.config, [f"{DAY}.csv"], 99)
    disk.check_room(made.config, [f"{DAY}.csv"], 100)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=999))
    with pytest.raises(StorageFullError):  # what is to be left is to be left all the same
        disk.check_room(made.config, [f"{DAY}.csv"], 10_000)


def test_too_little_room_is_an_error_before_anything_is_written(project):
    made = project("disk: {min_free: 900000TB}\n")
    with pytest.raises(StorageFullError, match=r"nearly full: .* MB free, .* MB needed") as refused:
        disk.check_room(made.config)
    assert kind_of(refused.value) == "storage"
    made.ledger()
    result = made.run(DAY)
    assert not result.success
    assert made.lake.days("raw_events") == []
    assert made.instance.get_run_by_id(result.run_id).tags["data_assets/failure"] == "storage"


def tick(made, cursor=None):
    sensor = sensors.build_sensor(made.config, build_job())
    repository = build_definitions(made.config).get_repository_def()
    with DagsterInstance.ephemeral() as instance:
        return sensor.evaluate_tick(
            build_sensor_context(instance=instance, cursor=cursor, repository_def=repository, sensor_name="raw_files")
        )


def test_the_sensor_waits_for_room_and_then_asks(project):
    full = project("disk: {min_free: 900000TB}\n")
    waiting = tick(full)
    assert waiting.run_requests == []
    assert "nearly full" in waiting.skip_message
    (full.root / "pipeline.yaml").write_text("start_date: 2024-01-01\nsource: {settle_seconds: 0}\n")
    roomy = type(full)(full.root, full.instance)
    assert len(tick(roomy, waiting.cursor).run_requests) == 1


def test_a_raw_folder_that_is_gone_makes_nothing_due(project):
    made = project()
    assert made.run(DAY).success
    made.raw.rename(made.root / "elsewhere")
    with pytest.raises(RawFolderMissingError, match="is not there"):
        made.ledger()
    skipped = tick(made)
    assert "is not there" in skipped.skip_message
    made.raw.mkdir()
    assert made.stale() == [DAY]  # an empty folder is an empty folder


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x", "data/a"), "data/a: No space left on device."),
        (OSError(errno.EROFS, "x"), "the disk: Read-only file system."),
        (RuntimeError("could not write (os error 28)"), "the disk: No space left on device."),
        (ValueError("no space left on device"), None),
        (OSError(errno.EIO, "x"), None),
    ],
)
def test_only_what_the_system_said_of_the_disk_is_put_into_words(error, words):
    said = as_disk_error(error)
    assert (None if said is None else said.what) == words
