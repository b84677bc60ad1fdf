"""Whether a file has the columns that the files before it had: what is seen, what changed, and what is accepted.

Here: a file's schema from a look at its head, the comparison of two schemas, the judgement over all files, and the file
of the accepted schema. Not here: where the observations are kept (``landing.py``), what a refused file costs
(``staging.py``, ``checks.py``) and the commands (``cli.py``).

What is known is everything that was seen and let pass, not only the last file: two senders whose files take turns are
reported once, not every day.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import shlex
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_assets.config import COLUMNS, EPOCHS, read_settings
from data_assets.engine import chosen
from data_assets.errors import ConfigurationError, SourceFileError, visible
from data_assets.ingest import values
from data_assets.ingest.mapping import find, numbers_in, wanted_columns
from data_assets.ingest.records import MALFORMED, collected, rename
from data_assets.storage import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from data_assets.config import CsvConfig, PipelineConfig, SchemaDriftConfig
    from data_assets.ingest.records import Records

Family = Literal["empty", "boolean", "integer", "number", "time", "text", "nested"]
Kind = Literal["new_column", "missing_column", "type_change", "null_rate", "new_event_type"]

SAMPLE_ROWS = 10_000
SAMPLE_CELLS = 1_000_000
MIN_SAMPLE_ROWS = 100
CELL_CHARACTERS = 100
NEARLY_ALL = 0.95
MOST = 0.5
MAX_EVENT_TYPES = 50
STANDARD_ERRORS = 3
_NUMBERS = frozenset({"integer", "number"})
_EMPTY: Family = "empty"
_ISO_TIME = r"^\s*[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ][0-9]{2}:[0-9]{2}.*)?\s*$"
_JSON_VALUE = r"^\s*[\[{]"
_HEAD = """\
# The schema that is accepted of the raw files. Every file is compared with it; what to do with a difference:
# schema_drift in the configuration. Written by `data-assets schema accept`, may be edited, belongs in version control.
#   type      empty, boolean, integer, number, time, text or nested; a list when several are right
#   nulls     the share of the values that may be missing, before schema_drift.null_rate_jump
#   since     files of earlier days may lack the column
#   optional  any file may lack it
#   event_types: null means any
"""


@dataclass(frozen=True)
class Column:
    """One column of a schema.

    Attributes:
        types: the family of its values; several once more than one was let pass.
        nulls: the share of missing values, 0 to 1.
        rows: how many rows that share was seen on; 0 when it was accepted, not seen.
        since: files whose home day is earlier may lack the column.
        optional: any file may lack it.
    """

    name: str
    types: tuple[Family, ...]
    nulls: float = 0.0
    rows: int = 0
    since: dt.date | None = None
    optional: bool = False


@dataclass(frozen=True)
class Schema:
    """The columns of a file, or what is known of those of many, in order.

    Attributes:
        event_types: the event types seen, sorted; ``None`` when there are too many to follow.
        rows: rows of the sample.
        headed: whether the file names its columns apart from its rows. JSON does not: a key that no record has may be
            missing by chance.
    """

    columns: tuple[Column, ...]
    event_types: tuple[str, ...] | None = ()
    rows: int = 0
    headed: bool = True

    @property
    def by_name(self) -> dict[str, Column]:
        """The columns by their names."""
        return {c.name: c for c in self.columns}

    def to_json(self) -> str:
        """The observation as text; ``from_json`` reads it."""
        columns = [[c.name, c.types[0], c.nulls, c.rows] for c in self.columns]
        found = {"columns": columns, "event_types": self.event_types, "rows": self.rows, "headed": self.headed}
        return json.dumps(found, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """What ``to_json`` wrote."""
        found = json.loads(text)
        types = found["event_types"]
        return cls(
            tuple(Column(name, (family,), nulls, rows) for name, family, nulls, rows in found["columns"]),
            None if types is None else tuple(types),
            found["rows"],
            found["headed"],
        )


@dataclass(frozen=True)
class Change:
    """A difference between a file and what was known before it.

    Attributes:
        column: the source's column.
        policy: what holds for it: ``warn`` or ``fail``. What is accepted as configured is no change.
        text: what changed, fit to be shown.
    """

    kind: Kind
    column: str
    policy: str
    text: str


@dataclass(frozen=True)
class SeenFile:
    """A file as the judgement needs it."""

    path: str
    home_day: dt.date
    schema: Schema


# ---- What a file looks like ----------------------------------------------------------------------------------------


def observe(records: Records, relative: str, config: PipelineConfig) -> Schema:
    """The schema of an opened file, from its first rows (10,000, fewer when there are over 100 columns).

    A column of text has the first family, of boolean, integer, number, time and nested, that at least 95 % of its
    values look like, else the one that most do; numbers are a time where the mapping takes them for one. Columns of
    other types have their native family. The keys of JSON that nothing reads are known by name alone.

    Raises:
        SourceFileError: the file turns out to be damaged.
    """
    headed = not records.format.startswith("json")
    types = records.frame.collect_schema()
    native = {c: _native(types[c]) for c in records.columns if c in types}
    if not native:
        return Schema(tuple(Column(c, ("empty",), 1.0) for c in records.columns), headed=headed)
    sample = _sample(records, relative, {c: family is None for c, family in native.items()}, config)
    rows = sample.height
    texts = sample.select(c for c, family in native.items() if family is None)
    read = _read_as(texts, numbers_in(records, config), config.source.timestamp_formats)
    epochs = any(f in EPOCHS for f in config.source.timestamp_formats)
    times = _mapped(records, config, ("session_start", "session_end")) if epochs else frozenset()
    columns = []
    for name in records.columns:
        if name not in native:  # JSON whose other keys are not kept
            columns.append(Column(name, ("empty",), 1.0))
            continue
        family = native[name] or read[name]
        if name in times and family in _NUMBERS:
            family = "time"
        missing = sample[name].null_count() if native[name] is None else int(sample[name].sum())
        columns.append(Column(name, (family,), round(missing / rows, 4) if rows else 0.0, rows))
    return Schema(tuple(columns), _event_types(sample, records, native, config), rows, headed)


def _sample(records: Records, relative: str, is_text: Mapping[str, bool], config: PipelineConfig) -> pl.DataFrame:
    """The first rows: text cut short, null where it means "no value"; of other columns whether a value is missing."""
    limit = max(MIN_SAMPLE_ROWS, min(SAMPLE_ROWS, SAMPLE_CELLS // len(is_text)))
    nulls = sorted({*config.source.null_values, ""})
    cells = []
    for name, there in is_text.items():
        text = pl.col(name).cast(pl.String)
        cell = pl.when(~text.str.strip_chars().is_in(nulls)).then(text.str.head(CELL_CHARACTERS))
        cells.append(cell.alias(name) if there else pl.col(name).is_null())
    head = records.frame.head(limit).filter(~pl.col(MALFORMED) & ~records.empty).select_seq(cells)
    return collected([head], relative)[0]


def _native(dtype: pl.DataType) -> Family | None:
    """The family of a native type; ``None`` for text, which is read like that of any other file."""
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return None
    known: dict[type[pl.DataType], Family] = {pl.Boolean: "boolean", pl.Null: "empty"}
    if dtype.base_type() in known:
        return known[dtype.base_type()]
    if dtype.is_numeric():
        return "integer" if dtype.is_integer() else "number"
    return "time" if dtype.is_temporal() else "nested"


def _mapped(records: Records, config: PipelineConfig, ours: Iterable[str]) -> frozenset[str]:
    """The file's columns that are mapped straight onto some of ours."""
    mapping = config.source.columns.as_mapping()
    found = (
        find(t, records.columns, config.source.column_naming) for t in map(mapping.get, ours) if isinstance(t, str)
    )
    return frozenset(name for name in found if name is not None)


def _read_as(texts: pl.DataFrame, written: CsvConfig, formats: Sequence[str]) -> dict[str, Family]:
    """The family of each column of text: the first that nearly all values look like, else the one that most do.

    A column with many bad cells keeps its family: cells are the quarantine's matter, drift is about columns.
    """
    there = {name: texts.height - texts[name].null_count() for name in texts.columns}
    found: dict[str, Family] = {c: "empty" for c, count in there.items() if count == 0}
    # Numbers as they are mostly written: much cheaper than all that is tried below.
    plain: tuple[tuple[Family, pl.DataType], ...] = (("integer", pl.Int64()), ("number", pl.Float64()))
    for family, dtype in plain if not written.decimal_comma else plain[:1]:
        for name in [c for c in texts.columns if c not in found]:
            read = texts[name].cast(dtype, strict=False)
            if texts.height - read.null_count() >= NEARLY_ALL * there[name]:
                found[name] = family
    rest = [c for c in texts.columns if c not in found]
    formats = [f for f in formats if f not in EPOCHS]
    counted = (
        texts.select_seq(_looks_like(pl.col(c), written).alias(c) for c in rest).row(0, named=True) if rest else {}
    )
    for column, counts in counted.items():
        if formats:
            counts["time"] = max(counts["time"], _times(texts, column, formats))
        nearly = next((f for f, n in counts.items() if n >= NEARLY_ALL * there[column]), None)
        most = max(counts, key=lambda family: counts[family])
        found[column] = nearly or (most if counts[most] > MOST * there[column] else "text")
    return found


def _looks_like(text: pl.Expr, written: CsvConfig) -> pl.Expr:
    """How many of the texts look like each family, as a struct; in the order in which they are preferred."""
    plain = pl.String()
    return pl.struct(
        text.str.strip_chars().str.to_lowercase().is_in(["true", "false"]).sum().alias("boolean"),
        values.whole_number(text, plain).count().alias("integer"),
        values.number(text, plain, decimal_comma=written.decimal_comma, thousands=written.thousands)
        .count()
        .alias("number"),
        text.str.contains(_ISO_TIME).sum().alias("time"),
        text.str.contains(_JSON_VALUE).sum().alias("nested"),
    )


def _times(texts: pl.DataFrame, column: str, formats: Sequence[str]) -> int:
    """How many values of a column are times in the configured formats."""
    frame = values.time(texts.lazy().select(column), column, pl.String(), formats, "UTC")
    return int(frame.select(pl.col(column).count()).collect(engine=chosen()).item())


def _event_types(
    sample: pl.DataFrame, records: Records, native: Mapping[str, Family | None], config: PipelineConfig
) -> tuple[str, ...] | None:
    """The sample's event types; none when they are not a text of the file's own."""
    column = next(iter(_mapped(records, config, ["event_type"])), None)
    if column is None or native[column] is not None:
        return ()
    found = sample[column].drop_nulls().unique().sort().to_list()
    return tuple(found) if len(found) <= MAX_EVENT_TYPES else None


# ---- What changed --------------------------------------------------------------------------------------------------


def compare(before: Schema, now: Schema, config: PipelineConfig, home_day: dt.date) -> list[Change]:
    """What of the file ``now`` is not as known ``before``, in the order of the columns; accepted kinds left out.

    No change is: a type that widens (empty to anything, integer and number), another order, a higher share of missing
    values that a sample of this size shows by chance. What the mapping does not read is at most warned about, a new
    column apart; the type of a column that becomes text does not matter.
    """
    found = []
    for kind, column, text in _differences(before, now, config, home_day) if now.columns else ():
        policy = getattr(config.schema_drift, kind)
        spared = policy == "fail" and kind != "new_column" and column not in _read_columns(config)
        if policy != "accept":
            found.append(Change(kind, column, "warn" if spared else policy, text))
    return found


def _differences(
    before: Schema, now: Schema, config: PipelineConfig, home_day: dt.date
) -> Iterator[tuple[Kind, str, str]]:
    present, known = now.by_name, before.by_name
    for old in before.columns:
        new = present.get(old.name)
        if new is not None:
            yield from _column_differences(old, new, config)
        elif _is_missing(old, now, config.schema_drift, home_day):
            yield "missing_column", old.name, f"the column {_quoted(old.name)} is missing"
    for new in now.columns:
        if new.name not in known:
            kind = "" if new.types == ("empty",) else f" ({new.types[0]})"
            yield "new_column", new.name, f"the column {_quoted(new.name)}{kind} is new"
    unseen = _unseen(before, now, config)
    if unseen:
        shown = ", ".join(_quoted(t) for t in unseen[:5]) + (f" and {len(unseen) - 5} more" if len(unseen) > 5 else "")
        column = next((n for n in _direct(config, ["event_type"]) if n in present), "event_type")
        yield "new_event_type", column, f"new event {'type' if len(unseen) == 1 else 'types'} {shown}"


def _column_differences(old: Column, new: Column, config: PipelineConfig) -> Iterator[tuple[Kind, str, str]]:
    name = _quoted(old.name)
    if not _fits(old, new) and old.name not in _direct(config, _text_targets(config)):
        yield "type_change", old.name, f"the column {name} holds {new.types[0]} where it held {' or '.join(old.types)}"
    if _jumps(old, new, config.schema_drift):
        yield "null_rate", old.name, f"the column {name} lacks {new.nulls:.0%} of its values, before {old.nulls:.0%}"


def _quoted(name: str) -> str:
    return f"'{visible(name, 60)}'"


def _direct(config: PipelineConfig, ours: Iterable[str]) -> list[str]:
    """The source's columns that these of ours are taken from as they stand, in both spellings."""
    mapping = config.source.columns.as_mapping()
    theirs = [name for name in map(mapping.get, ours) if isinstance(name, str)]
    return theirs + [rename(name, config.source.column_naming) for name in theirs]


def _read_columns(config: PipelineConfig) -> set[str]:
    """The source's columns that the mapping reads, in both spellings."""
    return {*wanted_columns(config), *_direct(config, COLUMNS)}


def _text_targets(config: PipelineConfig) -> list[str]:
    return ["event_type", "metadata"] + (["user_id"] if config.source.types.user_id == "string" else [])


def _fits(known: Column, now: Column) -> bool:
    family = now.types[0]
    if family == "empty" or family in known.types or known.types == ("empty",):
        return True
    return family in _NUMBERS and not _NUMBERS.isdisjoint(known.types)


def _is_missing(known: Column, now: Schema, policy: SchemaDriftConfig, home_day: dt.date) -> bool:
    if known.optional or (known.since is not None and home_day < known.since):
        return False
    return now.headed or _jumps(known, Column(known.name, ("empty",), 1.0, now.rows), policy, least=0.0)


def _jumps(known: Column, now: Column, policy: SchemaDriftConfig, least: float | None = None) -> bool:
    """Whether the share of missing values rose by more than allowed, and by more than chance explains.

    Chance: three standard errors of the difference between two shares, on the smaller of the two samples.
    """
    rise = now.nulls - known.nulls
    rows = min(known.rows or now.rows, now.rows)
    if rows == 0 or rise <= (policy.null_rate_jump if least is None else least):
        return False
    both = (now.nulls + known.nulls) / 2
    return rise > STANDARD_ERRORS * math.sqrt(2 * both * (1 - both) / rows)


def _unseen(before: Schema, now: Schema, config: PipelineConfig) -> list[str]:
    """Event types that no file had; none when there are too many to follow, or when the configuration lists them."""
    if config.quality.required_event_types is not None or not before.event_types or now.event_types is None:
        return []
    return sorted(set(now.event_types) - set(before.event_types))


# ---- What is known -------------------------------------------------------------------------------------------------


def merge(known: Schema | None, now: Schema, config: PipelineConfig, home_day: dt.date) -> Schema:
    """What is known after the file ``now`` was let pass: nothing of it would be reported again."""
    if known is None or not now.columns:
        return now if known is None else known
    present, before = now.by_name, known.by_name
    columns = []
    for column in known.columns:
        found = present.get(column.name)
        if found is not None:
            columns.append(_merged(column, found, config.schema_drift))
        else:
            missing = _is_missing(column, now, config.schema_drift, home_day)
            columns.append(replace(column, optional=True, since=None) if missing else column)
    columns += [replace(c, since=home_day) for c in now.columns if c.name not in before]
    types = None
    if known.event_types is not None and now.event_types is not None:
        both = {*known.event_types, *now.event_types}
        types = tuple(sorted(both)) if len(both) <= MAX_EVENT_TYPES else None
    return replace(known, columns=tuple(columns), event_types=types)


def _merged(known: Column, now: Column, policy: SchemaDriftConfig) -> Column:
    """Both types; the share of missing values of the larger sample, or of the file in which it jumped."""
    families = {*known.types, *now.types}
    families -= {"empty"} if len(families) > 1 else set()
    families -= {"integer"} if "number" in families else set()
    larger = now.rows > known.rows or _jumps(known, now, policy)
    return replace(
        known,
        types=tuple(f for f in get_args(Family) if f in families),
        nulls=now.nulls if larger else known.nulls,
        rows=now.rows if larger else known.rows,
    )


def judge(
    files: Iterable[SeenFile], accepted: Schema | None, config: PipelineConfig
) -> tuple[dict[str, tuple[Change, ...]], Schema | None]:
    """The changes of each file that has any, by path, and what is known in the end.

    The files are gone through in the order of home day and path, whatever order they come in. Each is compared with the
    accepted schema, or without one with all files before it that had no failing change.
    """
    changes: dict[str, tuple[Change, ...]] = {}
    known = accepted
    settled: set[tuple[Schema, dt.date]] = set()  # of thousands of files most are alike: they tell nothing new
    for file in sorted(files, key=lambda f: (f.home_day, f.path)):
        if (file.schema, file.home_day) in settled:
            continue
        found = compare(known, file.schema, config, file.home_day) if known is not None else []
        if found:
            changes[file.path] = tuple(found)
        before = known
        if accepted is None and file.schema.columns and not fails(found):
            known = merge(known, file.schema, config, file.home_day)
        if known != before:
            settled.clear()
        elif not found:
            settled.add((file.schema, file.home_day))
    return changes, known


def fails(changes: Iterable[Change]) -> bool:
    """Whether a file with these changes is refused."""
    return any(change.policy == "fail" for change in changes)


def refusal(path: str, changes: Iterable[Change]) -> str:
    """Why a file with failing changes is refused, and what to do."""
    failing = [c for c in changes if c.policy == "fail"]
    shown = "; ".join(c.text for c in failing[:5]) + (f"; and {len(failing) - 5} more" if len(failing) > 5 else "")
    keys = ", ".join(f"schema_drift.{kind}" for kind in dict.fromkeys(c.kind for c in failing))
    return str(
        SourceFileError(
            f"{visible(path)}: its schema is not that of the files before: {shown}.",
            f"If that is right: data-assets schema accept {shlex.quote(visible(path))} (or set {keys} to warn). "
            "If not: ask the sender for the file as it was.",
            path=path,
        )
    )


# ---- What is accepted ----------------------------------------------------------------------------------------------


def accept(
    files: Sequence[SeenFile], known: Schema | None, config: PipelineConfig, unchanged: Sequence[SeenFile] = ()
) -> Schema:
    """``known`` with all that the files have; none of them has a change against it.

    A column that this adds holds from its first file's home day on, unless a later file lacks it.

    Args:
        files: what is accepted; at least one.
        known: what was accepted before, or what was let pass without.
        config: the mapping and the policies.
        unchanged: files without a change as they are judged now, which they keep.
    """
    ordered = sorted(files, key=lambda f: (f.home_day, f.path))
    result = known or ordered[0].schema
    for file in ordered:
        result = merge(result, file.schema, config, file.home_day)
    columns = []
    for merged in result.columns:
        column = replace(merged, rows=0)
        for file in [*ordered, *unchanged]:
            column = _allowed(column, file, config.schema_drift)
        columns.append(column)
    return Schema(tuple(columns), result.event_types)


def _allowed(column: Column, file: SeenFile, policy: SchemaDriftConfig) -> Column:
    """The column such that the file neither lacks it nor lacks too many of its values."""
    if not file.schema.columns:
        return column
    found = file.schema.by_name.get(column.name)
    if found is not None:
        return replace(column, nulls=found.nulls) if _jumps(column, found, policy) else column
    missing = _is_missing(column, file.schema, policy, file.home_day)
    return replace(column, optional=True, since=None) if missing else column


class _Dumper(yaml.SafeDumper):
    """Writes a day that stands there twice out twice, not as an alias, which is refused when it is read."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


class _AcceptedColumn(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Family | tuple[Family, ...]
    nulls: Annotated[float, Field(ge=0, le=1)] = 0.0
    since: dt.date | None = None
    optional: bool = False


class _Accepted(BaseModel):
    """The file, as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: dict[str, _AcceptedColumn]
    event_types: tuple[str, ...] | None = None


def read_accepted(path: Path) -> Schema | None:
    """The accepted schema, ``None`` when there is no such file.

    Raises:
        ConfigurationError: it cannot be read, or does not say what it should.
    """
    if not path.exists():
        return None
    try:
        found = _Accepted.model_validate(read_settings(path))
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        where = ".".join(visible(str(part), 60) for part in first["loc"])
        raise ConfigurationError(
            f"{visible(str(path))}: {where}: {visible(first['msg'])}.",
            "Correct that place, or write the file anew: remove it, then data-assets schema accept.",
            file=path,
        ) from problem
    columns = (
        Column(name, (c.type,) if isinstance(c.type, str) else c.type, c.nulls, 0, c.since, c.optional)
        for name, c in found.columns.items()
    )
    types = found.event_types
    return Schema(tuple(columns), None if types is None else tuple(sorted(set(types))))


def write_accepted(path: Path, schema: Schema) -> None:
    """Write the accepted schema: columns in the files' order, one a line."""
    columns = {}
    for c in schema.columns:
        described: dict[str, object] = {"type": c.types[0] if len(c.types) == 1 else list(c.types), "nulls": c.nulls}
        described |= {"since": c.since} if c.since is not None else {}
        described |= {"optional": True} if c.optional else {}
        columns[c.name] = described
    types = None if schema.event_types is None else list(schema.event_types)
    text = yaml.dump(
        {"columns": columns, "event_types": types},
        Dumper=_Dumper,
        sort_keys=False, allow_unicode=True, default_flow_style=None, width=1 << 20,
    )  # fmt: skip
    write_atomically(path, _HEAD + text)


def rules(config: PipelineConfig) -> str:
    """A short hash of what a judgement depends on beside the files: the policies and the accepted schema."""
    path = config.schema_drift.accepted
    accepted = path.read_bytes() if path.exists() else b""
    text = config.schema_drift.model_dump_json(exclude={"accepted"}).encode()
    return hashlib.blake2b(text + b"\0" + accepted, digest_size=8).hexdigest()


def changes_to_json(changes: Sequence[Change]) -> str:
    """For the ledger; ``changes_from_json`` reads it."""
    return json.dumps([asdict(c) for c in changes], ensure_ascii=False)


def changes_from_json(text: str | None) -> list[Change]:
    """What ``changes_to_json`` wrote; nothing for a file without changes."""
    return [Change(**c) for c in json.loads(text)] if text else []
