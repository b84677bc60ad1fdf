"""Polluted files come back whole: nothing lost, nothing doubled, and every clean record valid on its line.

Here: loops over the seeds of ``pollution.py``, and that its comparison would see what it is for. Not here: files made
by hand (``test_ingest.py``), mutated bytes (``benchmarks/fuzz.py``).
"""

from __future__ import annotations

import datetime as dt
import shutil

import polars as pl
import pytest

from data_assets import ingest
from data_assets.config import PipelineConfig
from data_assets.errors import SourceFileError
from data_assets_tests.pollution import POLLUTIONS, polluted, problems

HOME = dt.date(2024, 5, 5)
QUICK = 300
MANY = 10_000
BLOCK = 25


def read(file, folder):
    """Every row of the file and how many the reader says there are; by both ways that the project goes."""
    scratch = folder / "scratch"
    scratch.mkdir()
    path = folder / file.name
    path.write_bytes(file.content)
    config = PipelineConfig(source=file.source)
    records = ingest.open_records(path, file.name, config, scratch)
    rows = ingest.classify(records, file.name, HOME, config).collect(engine="streaming")
    counted = ingest.count_days(records, file.name, config)["rows"].sum()
    assert counted == records.physical_rows
    if file.seed % 10 == 0:  # the files that a run writes, which cost more than the look at the frame
        ingest.split_file(records, file.name, HOME, None, config, scratch / "out")
        written = {side: list((scratch / "out" / side).rglob("*.parquet")) for side in ("valid", "quarantined")}
        heights = {side: sum(pl.read_parquet(f).height for f in found) for side, found in written.items()}
        refused = rows.filter(pl.col("reasons").list.len() > 0).height
        assert heights == {"valid": rows.height - refused, "quarantined": refused}
    shutil.rmtree(scratch)
    path.unlink()
    return rows, records.physical_rows


def check(seeds, folder):
    found = []
    for seed in seeds:
        file = polluted(seed)
        try:
            wrong = problems(file, *read(file, folder))
        except SourceFileError as problem:
            shutil.rmtree(folder / "scratch")
            wrong = [] if file.may_be_refused else [f"refused whole: {problem}"]
        found += [f"seed {seed} ({', '.join(file.what)}): {w}" for w in wrong[:3]]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("first", range(0, QUICK, BLOCK))
def test_polluted_files_come_back_whole(tmp_path, first):
    check(range(first, first + BLOCK), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(QUICK, MANY, 100))
def test_ten_thousand_polluted_files_come_back_whole(tmp_path, first):
    check(range(first, min(first + 100, MANY)), tmp_path)


def test_the_quick_files_are_of_every_kind():
    files = [polluted(seed) for seed in range(QUICK)]
    assert {name for f in files for name in f.what} == set(POLLUTIONS)
    assert {f.name.partition(".")[2] for f in files} == {"csv", "csv.gz", "csv.zst"}
    assert polluted(7).content == polluted(7).content
    assert sum(len(p.values or ()) > 0 for f in files for p in f.pieces) > 5_000
    assert max(len(p.text) for f in files for p in f.pieces) > 1 << 20


@pytest.fixture
def sound(tmp_path):
    """A file with a polluted record of one line, and what is read of it."""
    file = next(f for f in map(polluted, range(1000)) if f.what == ["extra_delimiter"] and len(f.pieces) < 60)
    rows, physical = read(file, tmp_path)
    assert problems(file, rows, physical) == []
    return file, rows


def test_a_lost_row_is_seen(sound):
    file, rows = sound
    for at in range(rows.height):
        left = rows.with_row_index("at").filter(pl.col("at") != at).drop("at")
        assert problems(file, left, left.height), at


def test_a_doubled_row_is_seen(sound):
    file, rows = sound
    assert problems(file, pl.concat([rows, rows.tail(1)]), rows.height + 1)


def test_a_row_on_another_line_is_seen(sound):
    file, rows = sound
    assert problems(file, rows.with_columns(pl.col("source_line") + 1), rows.height)


def test_a_changed_value_and_a_clean_row_refused_are_seen(sound):
    file, rows = sound
    assert problems(file, rows.with_columns(pl.col("user_id") + 1), rows.height)
    assert problems(file, rows.with_columns(reasons=pl.lit(["malformed_record"])), rows.height)


def test_a_polluted_row_that_passes_is_seen(sound):
    file, rows = sound
    assert problems(file, rows.with_columns(reasons=pl.lit([], pl.List(pl.String))), rows.height)
