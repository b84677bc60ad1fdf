"""Writes docs/failures.md: a disk that is full, read-only, gone or forbidden, what is printed, and the state afterwards.

Here: the cases, each made with the real command line on a small file system of its own; Linux and root are needed for
that. `test_disk.py` runs the same cases. Not here: the words, which stand where the error is raised, nor wrong input
(``make_errors.py``).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = Path(__file__).with_name("failures.md")
INTRODUCTION = """# When the disk is the problem

What `data-assets run` prints, as printed, when a day was made before, a second file has landed, and the disk is at
fault; then what was found in the folder, and what the next run came to once the disk was mended. Each case is run for
this page (`python docs/make_failures.py`). The sensor does nothing while the disk is nearly full or the raw folder is
missing, says so in the UI, and goes on by itself; every other run fails with the tag `data_assets/failure=storage`.

"""
HEADER = "user_id,session_start,session_end,event_type,value\n"
SETTINGS = "start_date: 2024-03-01\nsource: {settle_seconds: 0}\ndisk: {min_free: MIN_FREE}\n"
FIRST, SECOND = "2024-03-01", "2024-03-02"
MEGABYTES = 48
PRIVILEGES = "-dac_override,-dac_read_search"
WITHOUT_PRIVILEGE = ("setpriv", f"--bounding-set={PRIVILEGES}", f"--inh-caps={PRIVILEGES}")
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("DATA_ASSETS_") and k != "DAGSTER_HOME"}
PROGRESS = re.compile(r"[a-z_]+: (\S+|[\d,]+ days)$")


@dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
        title: for the page.
        harm, mend: what is done to the project's folder, and how it is undone.
        min_free: ``disk.min_free``.
    """

    title: str
    harm: Callable[[Path], None]
    mend: Callable[[Path], None]
    min_free: str = "1MB"


@dataclass(frozen=True)
class Outcome:
    """What became of a case: the words, and what was found."""

    printed: str
    exit_code: int
    first_day_kept: bool
    second_day_made: bool
    leftovers: tuple[str, ...]
    then: str


def _nothing(_root: Path) -> None:
    """It mends itself, or there is nothing to do."""


def _fill(left: int) -> Callable[[Path], None]:
    def fill(root: Path) -> None:
        free = shutil.disk_usage(root).free - left
        (root / "ballast").write_bytes(b"\0" * max(0, free))

    return fill


def _empty(root: Path) -> None:
    (root / "ballast").unlink()


def _remount(how: str) -> Callable[[Path], None]:
    def remount(root: Path) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(root)], check=True)

    return remount


def _hide(root: Path) -> None:
    (root / "data/raw").rename(root / "elsewhere")


def _show(root: Path) -> None:
    (root / "elsewhere").rename(root / "data/raw")


def _mode(path: str, mode: int) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / path).chmod(mode)

    return change


CASES = (
    Case("The disk is nearly full", _fill(3_000_000), _empty, min_free="5MB"),
    Case("The disk fills up in the middle", _fill(900_000), _empty, min_free="1KB"),
    Case("The folder is read-only", _remount("ro"), _remount("rw")),
    Case("The raw folder is missing", _hide, _show),
    Case("The raw folder may not be read", _mode("data/raw", 0), _mode("data/raw", 0o755)),
    Case("The lake may not be written", _mode("data/lake/raw_events", 0o555), _mode("data/lake/raw_events", 0o755)),
)


@contextlib.contextmanager
def _small_disk() -> Iterator[Path]:
    """A file system of its own."""
    with tempfile.TemporaryDirectory(prefix="failures-") as name:
        root = Path(name).resolve()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(root)], check=True)
        try:
            yield root
        finally:
            subprocess.run(["umount", "-l", str(root)], check=True)


def _put(root: Path, day: str) -> None:
    rows = "".join(f"{n},{day} {n % 24:02}:00:00,{day} {n % 24:02}:30:00,view,{n}.5\n" for n in range(1, 41))
    (root / "data/raw" / f"{day}.csv").write_text(HEADER + rows, encoding="utf-8")


def _run(root: Path) -> tuple[str, int]:
    """What the command line prints, without what differs from run to run, and its exit code."""
    with tempfile.TemporaryDirectory() as elsewhere:  # Dagster's history and Python's files are on another disk
        shutil.copy(PAGE.parents[1] / "dagster.yaml", elsewhere)
        done = subprocess.run(
            (*WITHOUT_PRIVILEGE, sys.executable, "-m", "data_assets.cli", "run"),
            cwd=root,
            env=ENVIRONMENT | {"TMPDIR": elsewhere, "DAGSTER_HOME": elsewhere},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    text = done.stdout.replace(f"{root}/", "").replace(str(root), "the project's folder")
    text = re.sub(r"in \d+ s \(\d+ CPU-s, peak [\d,]+ MB\)", "in 1 s", text)
    text = re.sub(r"[0-9a-f]{32}|tmp[a-z0-9_]{8}", "…", text)
    return "\n".join(line for line in text.splitlines() if not PROGRESS.match(line)), done.returncode


def _bytes_of_first_day(root: Path) -> str:
    """What a reader sees of the day that was made before, in one hash."""
    files = sorted(p for p in (root / "data").rglob("*") if f"={FIRST}/" in str(p) and p.name == "data.parquet")
    return hashlib.blake2b(b"".join(p.read_bytes() for p in files)).hexdigest() if files else ""


def _figures(root: Path) -> list[object]:
    import duckdb

    with duckdb.connect(str(root / "data/warehouse.duckdb"), read_only=True) as connection:
        rows: list[object] = connection.execute("SELECT * FROM daily_kpis ORDER BY date").fetchall()
    return rows


def outcome(case: Case) -> Outcome:
    """Make the case, and look at what it left behind."""
    with _small_disk() as root:
        (root / "data/raw").mkdir(parents=True)
        (root / "pipeline.yaml").write_text(SETTINGS.replace("MIN_FREE", case.min_free), encoding="utf-8")
        _put(root, FIRST)
        before_all, code = _run(root)
        if code:
            raise RuntimeError(before_all)
        before = _bytes_of_first_day(root), _figures(root)
        _put(root, SECOND)
        case.harm(root)
        printed, code = _run(root)
        kept = (_bytes_of_first_day(root), _figures(root)[:1]) == before
        made = (root / f"data/lake/raw_events/date={SECOND}/data.parquet").exists()
        leftovers = tuple(
            str(p.relative_to(root)) for p in sorted((root / "data").rglob("*"))
            if p.is_file() and (p.name.endswith(".tmp") or ".scratch" in p.parts)
        )  # fmt: skip
        case.mend(root)
        then, _ = _run(root)
        return Outcome(printed, code, kept, made, leftovers, then.partition("\n")[0])


def section(case: Case) -> str:
    """The case's part of the page."""
    found = outcome(case)
    first = "as it was" if found.first_day_kept else "CHANGED"
    second = "made" if found.second_day_made else "not made"
    left = ", ".join(found.leftovers) or "nothing half written"
    return (
        f"## {case.title}\n\n```\n{found.printed}\n(exit code {found.exit_code})\n```\n\n"
        f"Afterwards: {FIRST} is {first}, {SECOND} is {second}, {left} was left behind. The next run, once that was "
        f"mended: “{found.then}”\n"
    )


def page() -> str:
    """The page as it should be."""
    return INTRODUCTION + "\n".join(map(section, CASES))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
