"""Writes docs/mapping.md: files of many kinds, a mapping for each, and the events that come of them. A test holds it.

Here: the cases, and reading each as a run does. Not here: how a file is read (``data_assets/ingest/``), and every key
(``make_configuration.py``).
"""

from __future__ import annotations

import datetime as dt
import io
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
PAGE = Path(__file__).with_name("mapping.md")
INTRODUCTION = """# Your files as events

What `pipeline.yaml` says under `source` for files of these kinds, and the events that are read: each is read for this
page. `data-assets init FILE` guesses most of it, `data-assets plan` says what a run would make of it, and
[every key](configuration.md) has its meaning. An event has `user_id`, `session_start`, `session_end`, `event_type`,
`value` and `metadata`; the first, the second and the fourth are `required` unless you say otherwise.

"""
COLUMNS = ("user_id", "session_start", "session_end", "event_type", "value", "metadata")
NO_DAY = dt.date(2024, 3, 1)


@dataclass(frozen=True)
class Case:
    """A file and how it is read.

    Attributes:
        title, text: what it shows.
        settings: of `pipeline.yaml`.
        name: the file's, below data/raw.
        content: the file as it is shown; ``stored``: what lies there, when that is no text.
    """

    title: str
    text: str
    settings: str
    name: str
    content: str
    stored: Callable[[], bytes] | None = None


def _parquet() -> bytes:
    import polars as pl

    frame = pl.DataFrame(
        {
            "id": [1.0, 2.0, float("nan")],
            "ts": [1_709_287_200_000, 1_709_290_800_500, 1_709_294_400_000],
            "kind": pl.Series(["view", "buy", "view"], dtype=pl.Categorical),
            "cart": [{"items": [{"price": 9.5}]}, {"items": [{"price": 20.0}, {"price": 1.0}]}, {"items": []}],
        }
    )
    frame.write_parquet(stored := io.BytesIO())
    return stored.getvalue()


CASES = (
    Case(
        "Columns by other names",
        "Ours to theirs; null where the file has none. The file's names are compared in small letters unless "
        "`column_naming` says otherwise. `day` is the day that the row counts on.",
        """
        source:
          columns:
            user_id: CustomerID
            session_start: Started
            session_end: null
            event_type: Action
            value: Price
            metadata: null
        """,
        "shop_2024-03-01.csv",
        "CustomerID,Started,Action,Price\n17,2024-03-01 10:00:00,buy,9.50\n18,2024-03-01T10:00:05Z,view,\n",
    ),
    Case(
        "Times",
        "Every form of ISO 8601 is read without being told; others are named in `timestamp_formats` and tried in "
        "order. A time without an offset is in `timezone`, one with an offset is converted to it. `epoch_s`, "
        "`epoch_ms`, `epoch_us` and `epoch_ns` are numbers since 1970. What no format reads costs its row, with its"
        " reason.",
        """
        timezone: Europe/Berlin
        source:
          timestamp_formats: ["%d.%m.%Y %H:%M", "epoch_s"]
        """,
        "web_2024-03-01.csv",
        "user_id,session_start,session_end,event_type\n1,01.03.2024 10:00,01.03.2024 10:05,view\n"
        "2,1709283600,2024-03-01T10:30:00+01:00,view\n3,2024-03-01 11:00:00.250,,view\n4,yesterday,,view\n",
    ),
    Case(
        "Numbers as people write them",
        "`decimal_comma` and `thousands` hold for CSV files. `null_values` are texts that mean that there is no value.",
        """
        source:
          csv: {decimal_comma: true, thousands: "."}
          null_values: ["", "-", "n/a"]
        """,
        "shop_2024-03-01.csv",
        "user_id;session_start;event_type;value\n1;2024-03-01 10:00:00;buy;1.234,50\n2;2024-03-01 10:01:00;buy;-\n"
        "n/a;2024-03-01 10:02:00;buy;3\n",
    ),
    Case(
        "JSON with values within values",
        "A path of names and places leads into objects and lists. An object or a list that is mapped becomes JSON, "
        "with its numbers as they are written. Records need not have the same keys.",
        """
        source:
          columns:
            user_id: actor.id
            session_start: created_at
            event_type: type
            value: items.0.price
            metadata: actor
        """,
        "api_2024-03-01.jsonl",
        '{"type":"buy","actor":{"id":7,"name":"Ada"},"items":[{"price":1.50},{"price":2}],'
        '"created_at":"2024-03-01T10:00:00Z"}\n{"created_at":"2024-03-01T10:01:00Z","type":"view","actor":{"id":8}}\n',
    ),
    Case(
        "Parquet with its own types",
        "Times, dates, numbers and dictionaries are taken as they are; NaN means that there is no value; a whole "
        "number in a column of floats reads as one. Paths work as in JSON.",
        """
        source:
          columns: {user_id: id, session_start: ts, event_type: kind, value: cart.items.0.price}
          timestamp_formats: [epoch_ms]
        """,
        "lake_2024-03-01.parquet",
        "id: float, ts: int64, kind: dictionary, cart: {items: [{price: float}]}\n"
        "1.0, 1709287200000, view, {items: [{price: 9.5}]}\n"
        "2.0, 1709290800500, buy, {items: [{price: 20.0}, {price: 1.0}]}\n"
        "NaN, 1709294400000, view, {items: []}\n",
        _parquet,
    ),
    Case(
        "SQL",
        "An expression over the file's columns, in the dialect of "
        "[Polars](https://docs.pola.rs/api/python/stable/reference/sql/). Columns of CSV and JSON are text, so "
        "numbers need `CAST`, dates `DATE(x)` and times `STRPTIME(x, form)`. Where one of these cannot read what is"
        " there, it is null, and costs its row where our column is a number or a time.",
        """
        source:
          columns:
            user_id: user_id
            session_start: {sql: "day || ' ' || clock"}
            event_type: {sql: "CASE WHEN amount LIKE '-%' THEN 'refund' ELSE 'sale' END"}
            value: {sql: "CAST(amount AS DOUBLE) * CAST(rate AS DOUBLE)"}
            metadata: {sql: "STRFTIME(DATE(day), '%A')"}
        """,
        "sales_2024-03-01.csv",
        "user_id,day,clock,amount,rate\n1,2024-03-01,10:00,20,1.1\n2,2024-03-01,10:05,-5,1.1\n3,2024-03-01,10:06,four,1.1\n",
    ),
    Case(
        "What the file does not say",
        "`{value: …}` is the same for all rows. `{path: …}` is what the group of a regular expression finds in the "
        "path below `data/raw`. Without a start, a row counts on the day in the file's name, or else in that of its"
        " folder.",
        """
        source:
          required: [user_id, event_type]
          columns:
            user_id: user
            session_start: null
            event_type: {path: "^([a-z]+)/"}
            metadata: {value: import}
        """,
        "mobile/2024-03-01.csv",
        "user,value\n1,2\n2,3\n",
    ),
    Case(
        "No header, and columns that nothing maps",
        "Columns without a name are called `column_1` and so on. `extra_columns: keep` has the others follow ours.",
        """
        source:
          csv: {header: false}
          extra_columns: keep
          columns: {user_id: column_1, session_start: column_2, event_type: column_3, value: null}
        """,
        "sensor_2024-03-01.csv",
        "5|2024-03-01 10:00:00|open|left\n6|2024-03-01 10:00:09|close|right\n",
    ),
)


def read(case: Case) -> str:
    """The events of the file and its refused rows, as a table."""
    from data_assets import ingest
    from data_assets.config import load_config
    from data_assets.landing import home_day_in_name

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "pipeline.yaml").write_text(textwrap.dedent(case.settings), encoding="utf-8")
        path = root / "data/raw" / case.name
        path.parent.mkdir(parents=True)
        path.write_bytes(case.stored() if case.stored else case.content.encode())
        config = load_config(root / "pipeline.yaml", env={})
        records = ingest.open_records(path, case.name, config, root)
        events = ingest.classify(records, case.name, home_day_in_name(case.name) or NO_DAY, config)
        found = events.collect(engine="streaming")
    kept = config.source.extra_columns == "keep"
    extra = [c for c in found.columns if kept and c in records.columns and c not in COLUMNS]
    names = [c for c in COLUMNS if found[c].null_count() < found.height] + [*extra, "day"]
    rows = []
    for row in found.iter_rows(named=True):
        cells = [*(row[name] for name in names), ", ".join(row["reasons"])]
        rows.append("| " + " | ".join("" if cell is None else str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(["| " + " | ".join([*names, "refused, as"]) + " |", "|---" * (len(names) + 1) + "|", *rows])


def section(case: Case) -> str:
    """The case's part of the page."""
    shown = textwrap.dedent(case.settings).strip()
    text = "\n".join(textwrap.wrap(case.text, 118, break_long_words=False, break_on_hyphens=False))
    return (
        f"## {case.title}\n\n{text}\n\n```yaml\n{shown}\n```\n\n`data/raw/{case.name}`:\n\n```\n{case.content}```\n\n"
        f"{read(case)}\n"
    )


def page() -> str:
    """The page as it should be."""
    return INTRODUCTION + "\n".join(map(section, CASES))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
