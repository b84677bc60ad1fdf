"""A first ``pipeline.yaml`` from a look at somebody's own files.

Here: which source column may be which of ours, by its name and by its values, in which form the times are written, and
the commented text of the configuration. Not here: the sample (``planning.py``), reading (``ingest/``), or writing the
file (``commands.py``). A guess is a beginning for a person, so every guess says in a comment what it rests on.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import tempfile
import time
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import yaml

from data_assets import ingest
from data_assets.config import COLUMNS, EPOCHS, PipelineConfig, load_config
from data_assets.errors import SourceFileError, visible
from data_assets.ingest import values
from data_assets.ingest.delimited import guess_delimiter
from data_assets.ingest.records import MALFORMED, collected
from data_assets.planning import FilePlan, files_below, open_text, plan_files, take_sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HEAD_CHARACTERS = 256 << 10
ROWS = 20_000
NESTED_ROWS = 200
FIRST_VALUES = 50
MOST_COLUMNS = 2_000  # the others are in the file, but hardly what somebody looks for
MOST_READ = 0.8
MOST_FILES = 20
FEW_KINDS = 50
STRAY_DAYS = 366
WORDS: Mapping[str, tuple[str, ...]] = {
    "user_id": (
        "user_id", "userid", "user", "customer_id", "customerid", "customer", "client_id", "client", "account_id",
        "account", "member", "visitor", "subscriber", "player", "patient", "person", "passenger", "rider", "driver",
        "actor_id", "actor", "author", "owner", "email", "device_id", "device", "case_id", "case", "session_id",
        "vendor_id", "vehicle", "tail_num", "tailnum", "who",
    ),
    "session_start": (
        "session_start", "start_time", "start_timestamp", "started_at", "start", "begin", "pickup_datetime", "pickup",
        "departure", "event_time", "timestamp", "datetime", "created_at", "created", "occurred_at", "time", "date",
        "invoice_date", "day", "when", "ts", "data",
    ),
    "session_end": (
        "session_end", "end_time", "end_timestamp", "ended_at", "end", "stop", "finish", "finished_at", "dropoff",
        "arrival", "closed_at", "until",
    ),
    "event_type": (
        "event_type", "eventtype", "event_name", "event", "action", "activity", "type", "kind", "category", "operation",
        "method", "status", "payment_type", "channel", "carrier", "country", "label", "class",
    ),
    "value": (
        "value", "amount", "total_amount", "total", "price", "fare", "revenue", "cost", "sum", "quantity", "qty",
        "score", "delta", "delay", "distance", "duration", "count",
    ),
    "metadata": (
        "metadata", "meta", "properties", "payload", "attributes", "details", "comment", "note", "description", "page",
        "url",
    ),
}  # fmt: skip
FORMATS = (
    *(f"{day}{clock}" for day in (
        "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d", "%d/%m/%y", "%m/%d/%y",
        "%d.%m.%y", "%d %b %Y", "%d-%b-%Y", "%b %d, %Y",
    ) for clock in (" %H:%M:%S%.f", " %H:%M", " %I:%M:%S %p", " %I:%M %p", "")),
    "%d/%b/%Y:%H:%M:%S %z", "%a, %d %b %Y %H:%M:%S %z", "%a %b %d %H:%M:%S %z %Y", "%Y%m%d%H%M%S", "%Y%m%d",
    *EPOCHS,
)  # fmt: skip
_ONLY_NAMED = (*EPOCHS, "%Y%m%d", "%Y%m%d%H%M%S")
_SHORTEST, _LONGEST, _FEWEST_DIGITS = len("1/2/24"), 60, 4  # of a time's text
_TIME_NAME = re.compile(r"time|date|stamp|epoch|start|begin|end|day|when|(^|_)(ts|at)$", re.IGNORECASE)
_SANE = (dt.datetime(1990, 1, 1), dt.datetime(2100, 1, 1))  # noqa: DTZ001 - wall time
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_]+")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Profile:
    """What one source column holds, by a sample of its values.

    Attributes:
        given: the share of records that have a value.
        distinct: different values; 0 where each is a struct, a list or a map, which are not compared.
        whole, number, comma: the shares of values that read as whole numbers, as numbers, as numbers like 1,5.
        form: the time format that reads most of them; "" is ISO 8601, ``None``: they are no times.
        also: other formats that read as many.
    """

    name: str
    given: float
    rows: int
    distinct: int
    whole: float
    number: float
    comma: float
    form: str | None
    also: tuple[str, ...]


@dataclass(frozen=True)
class Proposal:
    """A configuration for somebody's files.

    Attributes:
        text: the file, commented.
        unknown: required columns that could not be guessed, with the columns that they may be.
        plans: what it makes of the files.
    """

    text: str
    unknown: Mapping[str, list[str]]
    plans: Sequence[FilePlan]


@dataclass
class _Choice:
    """What is written for one of our columns: theirs or nothing, and why."""

    theirs: str | None
    why: str


@dataclass
class _Draft:
    """The configuration as far as it is known."""

    choices: dict[str, _Choice]
    user_id: str = "int64"
    formats: list[str] = field(default_factory=list)
    ambiguous: str = ""
    csv: dict[str, tuple[Any, str]] = field(default_factory=dict)
    delimiter: str | None = None
    naming: str = "lower"
    start_date: str = "1900-01-01"
    start_why: str = ""
    patterns: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


def files_to_look_at(paths: Sequence[Path]) -> list[Path]:
    """The files themselves and those below folders, as a run would list them; not more than ``MOST_FILES``."""
    plain = PipelineConfig()
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            there, listing = files_below(plain, path, time.time_ns())
            found += [there.raw_dir / file.path for file in listing.files]
        else:
            found.append(path)
    return found[:MOST_FILES]


def propose(files: Sequence[Path], raw: Path) -> Proposal:
    """A configuration for these files; the columns are guessed from the first, the days from all.

    Args:
        files: at least one.
        raw: the raw directory that the configuration will have unless it says otherwise.

    Raises:
        SourceFileError: the first file cannot be read.
    """
    header, profiles, delimiter = _look(files[0])
    draft = _drafted(profiles)
    draft.delimiter = delimiter
    if not header:
        draft.csv["header"] = (False, "the first line looks like values; the columns are called column_1, column_2 …")
    lowered = [p.name.lower() for p in profiles]
    draft.naming = "lower" if len(set(lowered)) == len(lowered) else "none"
    if _comma(profiles):
        draft.csv["decimal_comma"] = (True, "numbers are written 1,5")
    _place(draft, files, raw)
    with tempfile.TemporaryDirectory(prefix="data-assets-init-") as folder:
        config = _loaded(_text(draft, files), Path(folder))
        unknown = {n: _candidates(n, profiles) for n in config.source.required if draft.choices[n].theirs is None}
        for name, near in unknown.items():
            draft.choices[name].why = "could not be guessed" + (f"; candidates: {_names(near)}" if near else "")
        known = [n for n in config.source.required if n not in unknown]
        rest = config.model_copy(update={"source": config.source.model_copy(update={"required": tuple(known)})})
        plans = plan_files(rest, [(path, path.name) for path in files])
        if "session_start" not in unknown:
            _first_day(draft, plans)
        _hint(draft, plans)
        text = _text(draft, files)
        _loaded(text, Path(folder))
    return Proposal(text, unknown, plans)


def _loaded(text: str, folder: Path) -> PipelineConfig:
    """The configuration that the text is; it must be one."""
    file = folder / "pipeline.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(file, env={})


# --- the look ------------------------------------------------------------------------------------------------------


def _look(path: Path) -> tuple[bool, list[Profile], str | None]:
    """Whether the file has a header, its columns, and its delimiter if it has one."""
    with tempfile.TemporaryDirectory(prefix="data-assets-init-") as name:
        folder = Path(name)
        sample = take_sample(path, path.name, "auto", folder)
        header = True
        for header in (True, False):
            config = PipelineConfig(
                source={"column_naming": "none", "extra_columns": "keep", "csv": {"header": header}}
            )
            records = ingest.open_records(sample.path, sample.relative, config, folder, require_columns=False)
            if not (header and records.format.startswith("csv") and _looks_like_values(records.columns)):
                break
        if not records.columns:
            raise SourceFileError(
                f"{visible(path.name)} holds no columns to guess from.", "Take a file with records.", path=path.name
            )
        good = records.frame.filter(~pl.col(MALFORMED) & ~records.empty).select(records.columns)
        every = max(1, records.physical_rows // ROWS)
        [frame] = collected([good.gather_every(every).head(ROWS)], path.name)
        delimiter = None
        if records.format.startswith("csv"):
            with open_text(sample.path, records) as text:
                delimiter = guess_delimiter(text.read(HEAD_CHARACTERS))
    named = (c for c in chain(frame.get_columns(), _nested(frame)) if "\0" not in c.name)  # else it cannot be written
    columns = islice(named, MOST_COLUMNS)
    return header, [_profile(column) for column in columns], delimiter


def _looks_like_values(names: Sequence[str]) -> bool:
    """Whether a header's names are numbers or times: then it is no header."""
    texts = pl.Series([re.sub(r"_[0-9]+$", "", n) for n in names if not n.startswith("column_")], dtype=pl.String)
    return any(_read_as(texts, form) > 0 for form in ("", *FORMATS) if form not in _ONLY_NAMED) or any(
        re.fullmatch(r"[+-]?[0-9]+([.,][0-9]+)?", text) for text in texts
    )


def _nested(frame: pl.DataFrame) -> Iterator[pl.Series]:
    """What stands inside of JSON objects, one level down, under names such as ``actor.id``."""
    for column in frame.get_columns():
        if column.dtype != pl.String or not column.drop_nulls().head(5).str.starts_with("{").any():
            continue
        rows: list[dict[str, Any]] = []
        for text in column.head(NESTED_ROWS):
            try:
                value = json.loads(text) if text else {}
            except ValueError:
                value = {}
            rows.append(value if isinstance(value, dict) else {})
        for key in dict.fromkeys(k for row in rows for k in row if k and "." not in k):
            items = [row.get(key) for row in rows]
            if not any(isinstance(item, dict | list) for item in items):
                texts = [None if item is None else str(item) for item in items]
                yield pl.Series(f"{column.name}.{key}", texts, dtype=pl.String)


def _profile(column: pl.Series) -> Profile:
    rows, dtype = column.len(), column.dtype
    if dtype == pl.String:
        column = column.str.strip_chars()
        column = column.filter(~column.is_in(["", "NA", "NULL"]).fill_null(value=True))
    column = column.drop_nulls()
    frame = column.to_frame("x")
    whole = _share(frame.select(values.whole_number(pl.col("x"), dtype)))
    number = _share(frame.select(values.number(pl.col("x"), dtype, decimal_comma=False)))
    comma = _share(frame.select(values.number(pl.col("x"), dtype, decimal_comma=True))) if dtype == pl.String else 0.0
    form, also = _time_form(column)
    kinds = 0 if dtype.is_nested() else column.n_unique()
    return Profile(column.name, column.len() / rows if rows else 0, rows, kinds, whole, number, comma, form, also)


def _share(frame: pl.DataFrame) -> float:
    column = frame.to_series()
    return column.count() / column.len() if column.len() else 0.0


def _time_form(column: pl.Series) -> tuple[str | None, tuple[str, ...]]:
    """The format that reads most of a column's values, and others that read as many."""
    if isinstance(column.dtype, pl.Datetime | pl.Date):
        return "", ()
    if column.is_empty() or not (column.dtype == pl.String or column.dtype.is_numeric()):
        return None, ()
    first = column.head(FIRST_VALUES)
    tried = [f for f in ("", *FORMATS) if f not in _ONLY_NAMED or _TIME_NAME.search(column.name)]
    if column.dtype == pl.String:  # most hold nothing like it, and to try every format takes a tenth of a second
        of_length = first.str.len_chars().is_between(_SHORTEST, _LONGEST)
        may_be = of_length & (first.str.count_matches("[0-9]") >= _FEWEST_DIGITS)
        is_number = first.cast(pl.Float64, strict=False).is_not_null()
        likely = {kind: (may_be & (is_number == kind)).sum() >= first.len() * MOST_READ / 2 for kind in (False, True)}
        tried = [f for f in tried if likely[f in _ONLY_NAMED]]
    promising = []
    for form in tried:
        share = _read_as(first, form)
        promising += [form] if share >= MOST_READ / 2 else []
        if share == 1:
            promising += [f for f in tried if f not in promising and _swapped(f) == form]
            break
    shares = {form: _read_as(column, form) for form in promising}
    best = max(shares, key=lambda f: shares[f], default=None)
    if best is None or shares[best] < MOST_READ:
        return None, ()
    if not best:
        return best, ()
    return best, tuple(f for f in shares if f != best and shares[f] == shares[best] and _swapped(f) == best)


def _swapped(form: str) -> str:
    """The format with day and month exchanged."""
    return form.translate(str.maketrans("dm", "md"))


def _read_as(column: pl.Series, form: str) -> float:
    """The share of values that read as times of a sane year."""
    formats = [form] if form else []
    read = values.time(column.to_frame("x").lazy(), "x", column.dtype, formats, "UTC").collect(engine="in-memory")["x"]
    return float((read.is_between(*_SANE)).sum() / read.len()) if read.len() else 0.0


# --- the guess -----------------------------------------------------------------------------------------------------


def likeness(name: str, words: Sequence[str]) -> float:
    """How much a column's name looks like one of the words: 2 equal, 1 contains it, 0 not; earlier words first.

    >>> likeness("CustomerID", ["customer_id"]), likeness("ip", ["trip"])
    (2.0, 0.0)
    """
    parts = [p.lower() for p in _WORD.findall(name.rpartition(".")[2] if name.count(".") == 0 else name)]
    whole = f"_{'_'.join(parts)}_"
    best = 0.0
    for place, word in enumerate(words):
        if whole.replace("_", "") == word.replace("_", ""):
            score = 2.0
        elif f"_{word}_" in whole:
            score = 1.0
        else:
            continue
        best = max(best, score - place / 1000)
    return best


def _fits(ours: str, column: Profile) -> bool:
    """Whether a column's values can be what ours needs."""
    if not column.given:
        return False
    if ours in ("session_start", "session_end"):
        return column.form is not None
    if column.form is not None:
        return False
    if ours == "user_id":
        return column.distinct > 1 and (column.number < 1 or column.whole == 1)
    if ours == "event_type":
        return 1 <= column.distinct <= max(FEW_KINDS, column.rows * column.given / 4)
    return ours == "metadata" or max(column.number, column.comma) >= MOST_READ


def _drafted(profiles: Sequence[Profile]) -> _Draft:
    taken: set[str] = set()
    choices: dict[str, _Choice] = {}
    for ours in ("session_end", "session_start", "user_id", "event_type", "value", "metadata"):
        choices[ours] = _choose(ours, [p for p in profiles if p.name not in taken])
        taken |= {choices[ours].theirs or ""}
    draft = _Draft({ours: choices[ours] for ours in COLUMNS})
    by_name = {p.name: p for p in profiles}
    user = by_name.get(choices["user_id"].theirs or "")
    if user is not None and user.whole < 1:
        draft.user_id = "string"
    for ours in ("session_start", "session_end"):
        time = by_name.get(choices[ours].theirs or "")
        if time is not None and time.form and time.form not in draft.formats:
            draft.formats.append(time.form)
            draft.ambiguous = draft.ambiguous or ", ".join(time.also)
    return draft


def _choose(ours: str, profiles: Sequence[Profile]) -> _Choice:
    fitting = [p for p in profiles if _fits(ours, p)]
    named = [(likeness(p.name, WORDS[ours]) + p.given / 10_000, p) for p in fitting]
    score, best = max(named, key=lambda pair: pair[0], default=(0.0, None))
    if best is not None and score >= 0.5:
        return _Choice(best.name, f"by its name; {_seen(best)}")
    by_values = [p for p in fitting if _told_by_values(ours, p)]
    if ours == "user_id" and len(by_values) > 1:
        by_values = []
    if by_values:
        return _Choice(by_values[0].name, f"by its values alone, so look: {_seen(by_values[0])}")
    return _Choice(None, "the file seems to have none")


def _told_by_values(ours: str, column: Profile) -> bool:
    """Whether the values alone are enough for a guess."""
    if ours == "session_start":
        return True
    if ours == "user_id":
        return column.name.lower().endswith("id") and column.given > MOST_READ
    if ours == "event_type":
        return 1 < column.distinct <= FEW_KINDS and column.number == 0 and column.given > MOST_READ
    return False


def _candidates(ours: str, profiles: Sequence[Profile]) -> list[str]:
    """Columns whose values could be ours, the likeliest first."""
    fitting = [p for p in profiles if _fits(ours, p)]
    return [p.name for p in sorted(fitting, key=lambda p: (p.whole == 1, -p.given))][:10]


def _seen(column: Profile) -> str:
    if column.form is not None:
        kind = "times" + (f" {column.form}" if column.form else ", ISO 8601")
    elif column.whole == 1:
        kind = "whole numbers"
    elif max(column.number, column.comma) >= MOST_READ:
        kind = "numbers"
    else:
        kind = "texts"
    different = f", {column.distinct:,} different" if column.distinct else ""
    return f"{kind}{different}, {column.given:.0%} given"


def _comma(profiles: Sequence[Profile]) -> bool:
    """Whether numbers are written 1,5: some column reads only so, and none only with a point."""
    only_comma = any(p.form is None and p.comma >= MOST_READ > p.number for p in profiles)
    return only_comma and not any(p.form is None and p.number >= MOST_READ > p.comma for p in profiles)


# --- the text ------------------------------------------------------------------------------------------------------


def _place(draft: _Draft, files: Sequence[Path], raw: Path) -> None:
    """Where the files lie, and whether the usual patterns match them."""
    outside = [f for f in files if not f.absolute().is_relative_to(raw.absolute())]
    if outside:
        draft.hints.append(
            f"{visible(outside[0].name)} does not lie in {raw.name}/ yet: put the files into data/raw, or say above "
            "source.columns where they are: directory: /path"
        )
    for suffix in dict.fromkeys(s for f in files for s in f.suffixes[-2:] if s.lower() in (".tsv", ".txt", ".pq")):
        draft.patterns.append(f"**/*{suffix}*")


def _first_day(draft: _Draft, plans: Sequence[FilePlan]) -> None:
    days: dict[str, int] = {}
    for plan in plans:
        for day, rows in plan.days.items():
            days[day] = days.get(day, 0) + rows
    total, before = sum(days.values()), 0
    usual = "1900-01-01"
    for day in sorted(days):
        before += days[day]
        usual = day
        if before > total / 100:
            break
    first = min(days, default=usual)
    sampled = "of the sample" if any(p.sample for p in plans) else "of the files"
    draft.start_date, draft.start_why = first, f"the first day {sampled}"
    if (dt.date.fromisoformat(usual) - dt.date.fromisoformat(first)).days > STRAY_DAYS:
        strays = sum(rows for day, rows in days.items() if day < usual)
        draft.start_date = usual
        draft.start_why = f"{strays:,} rows are dated earlier, the first {first}: they will be quarantined"


def _hint(draft: _Draft, plans: Sequence[FilePlan]) -> None:
    rows, refused = sum(p.sampled_rows for p in plans), sum(p.refused for p in plans)
    broken = [p for p in plans if p.error]
    if broken:
        first = visible((broken[0].error or "").partition("\n")[0])
        draft.hints.append(f"{len(broken)} of the files looked at would be refused: {first}")
    if refused:
        reasons: dict[str, int] = {}
        for plan in plans:
            for reason, n in plan.reasons.items():
                reasons[reason] = reasons.get(reason, 0) + n
        shown = ", ".join(f"{r} {n:,}" for r, n in sorted(reasons.items(), key=lambda item: -item[1])[:3])
        draft.hints.append(f"{refused / rows:.1%} of the records looked at would be quarantined: {shown}")


def _names(names: Sequence[str]) -> str:
    return ", ".join(visible(n, 60) for n in names)


def _scalar(text: str) -> str:
    """``text`` as a YAML value that reads as this text, on one line."""
    if _PLAIN.fullmatch(text) and yaml.safe_load(text) == text:
        return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf")).strip()


def _line(indent: int, key: str, value: str, why: str) -> str:
    return (
        f"{' ' * indent}{key}: {value}".ljust(40) + f" # {visible(why, 300)}"
        if why
        else f"{' ' * indent}{key}: {value}"
    )


def _text(draft: _Draft, files: Sequence[Path]) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    lines = [
        f"# Made by `data-assets init` from a look at {visible(files[0].name)}{more}.",
        "# These are guesses, each with what it rests on.",
        "# Every key: docs/configuration.md. What a run would do with the files: data-assets plan",
        "data_dir: data",
        _line(0, "start_date", draft.start_date, draft.start_why),
        _line(0, "timezone", "UTC", "times without a zone are in it, and it decides a row's day"),
        "",
        "source:",
    ]
    if draft.patterns:
        lines.append(f"  patterns: {json.dumps(draft.patterns)}")
    lines.append("  columns: # ours: theirs; also null, {sql: expression}, {value: text} or {path: pattern}")
    for ours, choice in draft.choices.items():
        if choice.theirs is None and ours in ("user_id", "session_start", "event_type"):
            lines.append("  " + _line(2, f"# {ours}", "?", choice.why))
        else:
            value = "null" if choice.theirs is None else _scalar(choice.theirs)
            lines.append("  " + _line(2, ours, value, choice.why))
    lines.append(_line(2, "types", f"{{user_id: {draft.user_id}}}", "string unless all are whole numbers"))
    if draft.formats:
        why = "tried before ISO 8601"
        if draft.ambiguous:
            why += f"; AMBIGUOUS: {draft.ambiguous} reads as many, so ask which is the day and which the month"
        lines.append(_line(2, "timestamp_formats", json.dumps(draft.formats), why))
    if draft.naming != "lower":
        lines.append(_line(2, "column_naming", draft.naming, "some columns differ only in upper and lower case"))
    if draft.delimiter:
        lines.append(
            _line(2, "# csv", f"{{delimiter: {json.dumps(draft.delimiter)}}}", "found by itself in every file")
        )
    if draft.csv:
        lines.append("  csv:")
    lines += [_line(4, key, json.dumps(value), why) for key, (value, why) in draft.csv.items()]
    lines += ["", "# quality: {max_quarantine_rate: 0.02} # a day with a larger share of refused rows is not built on"]
    lines += [f"# {visible(hint, 400)}" for hint in draft.hints]
    return "\n".join(lines) + "\n"
