"""Mutated files against the ingest: no crash, no hang, no row lost or doubled.

Here: `python -m benchmarks.fuzz --minutes 30 [--first SEED]`, and `--seed SEED` for one again. Each seed makes a file
(one of ``data_assets_tests/pollution.py``, or one of ../shared/data/nasty where that folder lies), mutates its bytes
and has it read in a worker process, as a run reads it. Failures are printed with their seed and kept in ``--keep``: an
exception that is none of the project's, a worker that dies, one that says nothing for a minute, rows that do not add
up. Not here: what clean records hold (the generator's tests know that).

What adds up: records counted, classified and counted by day are equally many, and they are as many as the file holds by
another count: for CSV, every physical line belongs to exactly one record, in order, but for one header; for JSON lines,
a record a line; for a JSON array, what ``json.loads`` finds; for Parquet, what its footer says.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gzip
import json
import multiprocessing
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from data_assets_tests.pollution import END, Polluted, polluted

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.sharedctypes import Synchronized

    from data_assets.config import PipelineConfig
    from data_assets.ingest import Records

NASTY = Path(__file__).parents[2] / "shared" / "data" / "nasty"
LARGEST = 300_000
HOME = dt.date(2024, 5, 5)
PATIENCE = 60.0
TOKENS = (
    b'"', b'""', b",", b";", b"\t", b"|", b"\n", b"\r", b"\r\n", b"\n\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe",
    b"\xc3\xa9", b"\xe9", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\xe2\x80\xa8", b"\x1a", b"\x0b\x0c", b"\x85", b"'",
    b"\\", b'\\"',
    b"NaN", b"-Infinity", b"1e999", b"9" * 40, b"{", b"}", b"[", b"]", b"null", b"user_id", b"0000-00-00",
    b"=1+1", b" ", b"\x1f\x8b", b"PAR1",
)  # fmt: skip


def mutated(r: random.Random, content: bytes, other: bytes) -> bytes:
    """Some bytes changed, lost, doubled, put in or exchanged."""
    data = bytearray(content)
    for _ in range(r.choice((1, 1, 1, 2, 3, 5, 8))):
        at = r.randint(0, len(data))
        to = min(len(data), at + r.choice((1, 1, 2, 5, 20, 200)))
        kind = r.randrange(7)
        if kind == 0 and data:
            data[at - 1] ^= 1 << r.randrange(8)
        elif kind == 1:
            del data[at:to]
        elif kind == 2:
            data[at:at] = data[at:to]
        elif kind in (3, 4):
            data[at:at] = r.choice(TOKENS) * r.choice((1, 1, 1, 2, 50))
        elif kind == 5 and r.random() < 0.3:
            del data[at:]
        elif kind == 6:
            start = r.randint(0, len(other))
            data[at:to] = other[start : start + r.randint(0, 100)]
    return bytes(data)


def case(seed: int) -> tuple[str, bytes, dict[str, Any]]:
    """The name, the bytes and the ``source`` settings of a seed."""
    r = random.Random(seed)
    files = sorted(p for p in NASTY.rglob("*") if p.is_file() and p.stat().st_size <= LARGEST) if NASTY.is_dir() else []
    known = [p for p in files if p.name.lower().endswith(KNOWN)]
    if known and r.random() < 0.4:
        path, other = r.choice(known), r.choice(known)
        content = mutated(r, path.read_bytes(), other.read_bytes())
        columns = {"user_id": "user_id", "session_start": "session_start", "event_type": "event_type"}
        source: dict[str, Any] = {"required": [], "types": {"user_id": "string"}, "columns": columns}
        name = path.name
    else:
        file: Polluted = polluted(seed)
        plain = gzip.decompress(file.content) if file.name.endswith(".gz") else file.content
        content, source, name = mutated(r, plain, polluted(seed + 1).content), dict(file.source), file.name
        if name.endswith(".gz"):
            packed = gzip.compress(content, 1, mtime=0)
            content = packed if r.random() < 0.7 else mutated(r, packed, plain)
        source |= {"required": []} if r.random() < 0.5 else {}
    source |= {"extra_columns": r.choice(("keep", "drop"))}
    return name, content, source


KNOWN = (".csv", ".txt", ".tsv", ".json", ".jsonl", ".ndjson", ".csv.gz", ".json.gz", ".zst", ".parquet")


def read(name: str, content: bytes, source: dict[str, Any], folder: Path) -> list[str]:
    """What is wrong; nothing if all is well or the file is refused with a clear error."""
    from data_assets import ingest
    from data_assets.config import PipelineConfig
    from data_assets.errors import SourceFileError

    path, scratch = folder / name, folder / "scratch"
    scratch.mkdir()
    path.write_bytes(content)
    try:
        config = PipelineConfig(source=source)
        records = ingest.open_records(path, name, config, scratch)
        # As a run does it, which puts damage in words; then once more for the rows with their records.
        ingest.split_file(records, name, HOME, None, config, scratch / "out")
        rows = ingest.classify(records, name, HOME, config).collect(engine="streaming")
        counted = int(ingest.count_days(records, name, config)["rows"].sum())
        written = sum(pq.ParquetFile(part).metadata.num_rows for part in (scratch / "out").rglob("*.parquet"))
        wrong = []
        if not rows.height == counted == written == records.physical_rows:
            wrong.append(f"{records.physical_rows} records, {written} written, {counted} counted by day")
        places = rows.select("source_line", "record").rows()
        return wrong + _against_the_bytes(records, places, _plain(path, scratch, records.format), config)
    except SourceFileError as problem:
        return [] if problem.what and problem.hint else [f"an error without words: {problem!r}"]
    finally:
        path.unlink()
        shutil.rmtree(scratch)


def _plain(path: Path, scratch: Path, form: str) -> Path:
    return next(scratch.rglob("content")) if "." in form else path


def _against_the_bytes(records: Records, rows: list[tuple[int, str]], path: Path, config: PipelineConfig) -> list[str]:
    kind = records.format.partition(".")[0]
    if kind == "parquet":
        held = pq.ParquetFile(path).metadata.num_rows if path.stat().st_size else 0
        return [] if held == len(rows) else [f"{len(rows)} rows of {held} in the footer"]
    errors = "replace" if records.encoding.startswith("utf-16") else "surrogateescape"
    text = path.read_bytes().decode(records.encoding, errors).removeprefix("\ufeff")
    if kind == "csv":
        return _lines_left_over(text, sorted(rows), header=config.source.csv.header)
    if kind == "jsonl":
        held = sum(1 for line in text.split("\n") if line.strip(" \t\r"))
        return [] if held == len(rows) else [f"{len(rows)} records on {held} lines"]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    held = len(value) if isinstance(value, list) else 1
    return [] if held == len(rows) else [f"{len(rows)} records, json.loads finds {held}"]


def _lines_left_over(text: str, rows: list[tuple[int, str]], *, header: bool) -> list[str]:
    """Lines of the text that are in no record or in two; one header with the blank lines before it is allowed."""
    lines = END.split(text)
    if lines[-1] == "":
        lines.pop()
    free = [True] * len(lines)
    wrong = []
    for number, record in rows:
        count = len(END.findall(record)) + 1
        for line in range(number - 1, number - 1 + count):
            if line >= len(free) or not free[line]:
                wrong.append(f"line {line + 1} is in two records or behind the end")
            else:
                free[line] = False
        stood = "".join(lines[number - 1 : number - 1 + count])
        if record.isascii() and stood.isascii() and stood != END.sub("", record):
            wrong.append(f"line {number}: the record is not what stands there")
    left = [number for number, is_free in enumerate(free, 1) if is_free]
    kept = [number for number in left if lines[number - 1]]
    if not header and kept:
        wrong.append(f"lines {kept[:5]} are in no record")
    elif left and left[-1] - left[0] != len(left) - 1:
        wrong.append(f"lines {left[:5]} are in no record, and apart")
    elif len(kept) > 1 and '"' not in "".join(lines[k - 1] for k in kept):
        wrong.append(f"lines {kept[:5]} are in no record, and are no header")
    return wrong


def work(first: int, current: Synchronized[int], failures: Queue[tuple[int, str]], until: float) -> None:
    """Seed after seed until the time is up."""
    with tempfile.TemporaryDirectory() as folder:
        seed = first
        while time.time() < until:
            current.value = seed
            try:
                wrong = read(*case(seed), Path(folder))
            except BaseException as problem:  # noqa: BLE001 - what nobody expected is what is looked for
                wrong = [f"{type(problem).__name__}: {problem}"]
                shutil.rmtree(folder, ignore_errors=True)
                Path(folder).mkdir(exist_ok=True)
            for what in wrong[:3]:
                failures.put((seed, what))
            seed += 1
        current.value = -seed


def run(minutes: float, first: int, keep: Path | None) -> int:
    """All seeds from ``first`` on for so many minutes; how many of them failed."""
    context = multiprocessing.get_context("spawn")
    current = context.Value("q", first)
    failures: Queue[tuple[int, str]] = context.Queue()
    until, failed, seed = time.time() + minutes * 60, 0, first
    worker = None
    seen, since = first, time.monotonic()

    def fail(number: int, what: str) -> None:
        nonlocal failed
        failed += 1
        print(f"seed {number}: {re.sub(r'[^ -~]', '?', what)[:400]}", flush=True)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            name, content, source = case(number)
            (keep / f"{number}-{name}").write_bytes(content)
            (keep / f"{number}.json").write_text(json.dumps(source))

    while True:
        if worker is None:
            worker = context.Process(target=work, args=(seed, current, failures, until))
            worker.start()
            seen, since = seed, time.monotonic()
        worker.join(1)
        while not failures.empty():
            fail(*failures.get())
        now = current.value
        if now < 0:
            break
        if now != seen:
            seen, since = now, time.monotonic()
        dead = not worker.is_alive()
        if dead or time.monotonic() - since > PATIENCE:
            fail(now, f"the worker died with {worker.exitcode}" if dead else f"nothing for {PATIENCE:.0f} s")
            worker.kill()
            worker.join()
            worker, seed = None, now + 1
    worker.join()
    while not failures.empty():
        fail(*failures.get())
    print(f"{-current.value - first:,} files from seed {first}: {failed} failures")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="only this one, in this process")
    parser.add_argument("--keep", type=Path, help="folder for the files that fail")
    given = parser.parse_args()
    if given.seed is None:
        sys.exit(1 if run(given.minutes, given.first, given.keep) else 0)
    with tempfile.TemporaryDirectory() as folder:
        wrong = read(*case(given.seed), Path(folder))
    print("\n".join(wrong) or "all is well")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
