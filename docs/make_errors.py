"""Writes docs/errors.md: wrong input of every kind, and what the command line prints. A test holds the page against it.

Here: the cases, and running the real command line on each in a folder of its own. Not here: the words themselves, which
stand where the error is raised.
"""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).with_name("errors.md")
INTRODUCTION = """# When the input is wrong

What `data-assets run` prints for wrong input of these kinds, as printed: each is run for this page. What a file
that cannot be used would have changed stays as it was; everything else is made. `data-assets status` says it again.

"""
HEADER = "user_id,session_start,session_end,event_type,value\n"
ROWS = "".join(f"{n},2024-03-01 {n % 24:02}:00:00,2024-03-01 {n % 24:02}:30:00,view,{n}.5\n" for n in range(1, 41))
GOOD = (HEADER + ROWS).encode()
HTML = b"""<!DOCTYPE html>
<html><head><title>503 Service Unavailable</title></head>
<body><h1>Service Unavailable</h1><p>Please, try again later.</p></body></html>
"""
# Root may read everything, unless it gives that up.
PRIVILEGES = "-dac_override,-dac_read_search"
WITHOUT_PRIVILEGE = ("setpriv", f"--bounding-set={PRIVILEGES}", f"--inh-caps={PRIVILEGES}")
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("DATA_ASSETS_") and k != "DAGSTER_HOME"}
PROGRESS = re.compile(r"[a-z_]+: (\S+|[\d,]+ days)$")
SETTINGS = "start_date: 2024-03-01\nsource: {settle_seconds: 0}\n"


@dataclass(frozen=True)
class Case:
    """One kind of wrong input.

    Attributes:
        title: what is wrong, for the page.
        files: name below ``data/raw`` to content.
        settings: ``pipeline.yaml``.
        prepare: what else has to be done in the project's folder.
    """

    title: str
    files: dict[str, bytes] = field(default_factory=dict)
    settings: str = SETTINGS
    prepare: Callable[[Path], None] | None = None


def _parquet(root: Path) -> None:
    import polars as pl

    path = root / "data/raw/day_2024-03-01.parquet"
    pl.read_csv(GOOD).write_parquet(path, compression="uncompressed")
    content = path.read_bytes()
    path.write_bytes(content[:300] + content[400:])


def _folder(root: Path) -> None:
    (root / "data/raw/day_2024-03-02.csv").mkdir()


def _forbidden(root: Path) -> None:
    (root / "data/raw/day_2024-03-01.csv").chmod(0)


NAME = "day_2024-03-01.csv"
JSON = b"""[{"user_id": 1, "session_start": "2024-03-01 10:00:00", "event_type": "view"},
 {"user_id": 2, "session_start": "2024-03-0"""
CASES = (
    Case("A required column is missing", {NAME: GOOD.replace(b"session_start", b"sesion_start")}),
    Case(
        "Another delimiter is configured than the file has",
        {NAME: GOOD.replace(b",", b";")},
        SETTINGS.replace("{", '{csv: {delimiter: "|"}, '),
    ),
    Case("A gzip file is cut short", {f"{NAME}.gz": gzip.compress(GOOD, mtime=0)[:200]}),
    Case("A Parquet file is damaged", prepare=_parquet),
    Case(
        "Another encoding is configured than the file has",
        {NAME: GOOD.replace(b"view", "größer".encode("cp1252"))},
        SETTINGS.replace("{", "{csv: {encoding: utf-8}, "),
    ),
    Case(
        "An encoding is configured that the file cannot have",
        {NAME: GOOD.replace(b"view", b"\x81")},
        SETTINGS.replace("{", "{csv: {encoding: shift_jis}, "),
    ),
    Case("A JSON array is cut short", {"day_2024-03-01.json": JSON}),
    Case(
        "The mapping's SQL does not fit the file",
        {NAME: GOOD},
        SETTINGS.replace("{", '{columns: {value: {sql: "CAST(price AS DOUBLE) * 2"}}, '),
    ),
    Case("The SQL cannot be read", {NAME: GOOD}, SETTINGS.replace("{", '{columns: {value: {sql: "CAST(value AS"}}, ')),
    Case(
        "The timestamp format fits no row",
        {NAME: GOOD.replace(b"2024-03-01", b"01/03/24")},
        SETTINGS.replace("{", '{timestamp_formats: ["%d.%m.%Y %H:%M"], '),
    ),
    Case("A file is empty", {NAME: b""}),
    Case("A file is a web page", {NAME: HTML}),
    Case("A folder is called like a file", {NAME: GOOD}, prepare=_folder),
    Case("A file may not be read", {NAME: GOOD}, prepare=_forbidden),
    Case("A file has a name that tells no format", {NAME: GOOD, "day_2024-03-02.csv.bak": GOOD}),
    Case("The settings have a key that does not exist", {NAME: GOOD}, SETTINGS.replace("source", "sources")),
)


def printed(case: Case) -> str:
    """What the command line prints, without what differs from run to run, and the exit code."""
    with tempfile.TemporaryDirectory(prefix="errors-") as folder:
        root = Path(folder)
        (root / "data/raw").mkdir(parents=True)
        (root / "pipeline.yaml").write_text(case.settings, encoding="utf-8")
        for name, content in case.files.items():
            (root / "data/raw" / name).write_bytes(content)
        if case.prepare is not None:
            case.prepare(root)
        as_anybody = WITHOUT_PRIVILEGE if case.prepare is _forbidden and os.geteuid() == 0 else ()
        done = subprocess.run(  # noqa: S603 - this very project
            (*as_anybody, sys.executable, "-m", "data_assets.cli", "run"),
            cwd=root,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        text = done.stdout.replace(f"{root.resolve()}/", "").replace(f"{root}/", "")
    text = re.sub(r"in \d+ s \(\d+ CPU-s, peak [\d,]+ MB\)", "in 1 s", text)
    shown = [line for line in text.splitlines() if not PROGRESS.match(line)]
    return "\n".join([*shown, f"(exit code {done.returncode})"])


def section(case: Case) -> str:
    """The case's part of the page."""
    return f"## {case.title}\n\n```\n{printed(case)}\n```\n"


def page() -> str:
    """The page as it should be."""
    return INTRODUCTION + "\n".join(map(section, CASES))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
