"""What a day will need, what there is, and the way that follows.

Here: ``data_assets/memory.py``, and that the engine knows the switches of ``engine.py``. Not here: that all ways give
the same bytes (``test_metrics.py``).
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import polars._plr
import pytest

from data_assets.config import MemoryConfig
from data_assets.engine import SWITCHES
from data_assets.memory import (
    ALLOCATOR,
    EAGER_ROWS,
    GIVEN_BACK_LATE,
    GIVEN_BACK_SOON,
    available,
    decide,
    needed,
    settle_allocator,
)  # fmt: skip

MEMINFO = "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"
NO_MARGIN = MemoryConfig(margin=0)


@pytest.fixture
def machine(tmp_path):
    """A machine's /proc and /sys, with a process that holds 100 MiB."""

    def make(**limits):
        files = {"proc/meminfo": MEMINFO, "proc/self/status": "Name:\tpython\nVmRSS:\t  102400 kB\n"}
        for name, text in (files | limits).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def test_a_row_needs_its_columns_and_what_sorting_them_takes():
    assert needed(1_000_000) == 1_000_000 * 32 * 3.8 + 80e6
    assert needed(1_000_000, text_length=8) == 1_000_000 * 40 * 3.8 + 80e6
    assert needed(1_000_000, text_length=36) == 1_000_000 * 76 * 3.8 + 80e6
    assert needed(10_000) == 10_000 * (32 * 3.8 + 120)  # what is kept beside is small for a small day
    assert needed(0) == 0


@pytest.mark.parametrize(
    ("needs", "rows", "mode"),
    [
        (650, 1_000, "eager"),
        (651, 1_000, "lazy"),
        (2_000, 1_000, "lazy"),
        (2_001, 1_000, "streaming"),
        (1, EAGER_ROWS, "eager"),
        (1, EAGER_ROWS + 1, "lazy"),  # parts that fit the cache are faster, however much memory there is
        (0, 0, "eager"),
    ],
)
def test_the_way_follows_from_the_share(needs, rows, mode):
    decision = decide(rows, needs, 1_000, MemoryConfig())
    assert decision.mode == mode
    assert decision.words.startswith(f"{mode}: ")


def test_the_shares_are_settings():
    config = MemoryConfig(eager_ratio=0.1, lazy_ratio=0.2)
    assert [decide(1, needs, 1_000, config).mode for needs in (100, 200, 201)] == ["eager", "lazy", "streaming"]


def test_nothing_available_is_no_division_by_zero():
    assert decide(10, 1, 0, MemoryConfig()).mode == "lazy"
    assert decide(10, 100, 0, MemoryConfig()).mode == "streaming"


def test_what_is_there_is_the_smallest_of_all_limits(machine):
    assert available(NO_MARGIN, machine()) == 8_000_000 << 10
    assert available(MemoryConfig(margin=0.3), machine()) == int((8_000_000 << 10) * 0.7)
    assert available(MemoryConfig(limit="1GiB", margin=0), machine()) == (1 << 30) - (100 << 20)
    one = machine(**{"sys/fs/cgroup/memory.max": f"{512 << 20}\n"})
    assert available(NO_MARGIN, one) == 412 << 20
    assert available(MemoryConfig(limit="50MB", margin=0), one) == 0


def test_a_container_without_a_limit_says_max(machine):
    assert available(NO_MARGIN, machine(**{"sys/fs/cgroup/memory.max": "max\n"})) == 8_000_000 << 10


def test_the_older_kind_of_container(machine):
    root = machine(**{"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{1 << 30}\n"})
    assert available(NO_MARGIN, root) == (1 << 30) - (100 << 20)


@pytest.mark.parametrize(
    ("group", "limits"),
    [
        ("0::/system.slice/data-assets-code.service", {"system.slice/data-assets-code.service/memory.max": "512"}),
        ("0::/system.slice/data-assets-code.service", {"system.slice/memory.max": "512", "memory.max": "9999"}),
        ("7:cpu:/x\n4:memory:/batch", {"memory/batch/memory.limit_in_bytes": "512"}),
        ("0::/not/shown/here", {"memory.max": "512"}),
    ],
    ids=["unit", "slice", "older", "container"],
)
def test_the_limit_of_a_group_of_processes_holds(machine, group, limits):
    files = {f"sys/fs/cgroup/{name}": f"{int(megabytes) << 20}\n" for name, megabytes in limits.items()}
    assert available(NO_MARGIN, machine(**files, **{"proc/self/cgroup": f"{group}\n"})) == 412 << 20


def test_a_system_that_does_not_tell_has_all_its_memory(tmp_path):
    assert available(NO_MARGIN, tmp_path) > 1 << 28


def test_this_machine_has_some():
    assert 0 < available(MemoryConfig()) < 1 << 50


@pytest.mark.parametrize(
    ("limit", "before", "after"),
    [
        ("auto", GIVEN_BACK_SOON, GIVEN_BACK_LATE), ("1GB", GIVEN_BACK_SOON, GIVEN_BACK_SOON),
        ("1GB", GIVEN_BACK_LATE, GIVEN_BACK_SOON), ("auto", "narenas:7", "narenas:7"),
    ],
)  # fmt: skip
def test_freed_memory_is_kept_for_longer_where_there_is_room(machine, monkeypatch, limit, before, after):
    monkeypatch.setenv(ALLOCATOR, before)
    settle_allocator(MemoryConfig(limit=limit), machine(**{"proc/meminfo": "MemAvailable: 8000000 kB\n"}))
    assert os.environ[ALLOCATOR] == after


@pytest.mark.parametrize("setting", [GIVEN_BACK_SOON, GIVEN_BACK_LATE])
def test_the_allocator_knows_its_settings(setting):
    """It says on stderr what it does not know."""

    def said(value: str) -> str:
        code, env = "import polars", os.environ | {ALLOCATOR: value}
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stderr

    assert said(setting) == ""
    assert "Invalid conf pair: no_such:1" in said(f"{setting},no_such:1")


def test_the_package_sets_it_before_anything_else():
    code = f"import os; os.environ.pop('{ALLOCATOR}', None); import data_assets; print(os.environ['{ALLOCATOR}'])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == GIVEN_BACK_SOON


@pytest.mark.parametrize("switch", [*SWITCHES, "POLARS_NO_SUCH_SWITCH"])
def test_the_engine_knows_the_switches(switch):
    """None is documented, so a version that calls one otherwise would say nothing."""
    with (
        Path(polars._plr.__file__).open("rb") as program,
        mmap.mmap(program.fileno(), 0, access=mmap.ACCESS_READ) as all_,
    ):
        assert (all_.find(switch.encode()) >= 0) == (switch in SWITCHES)
