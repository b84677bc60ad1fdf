"""pipeline.yaml or pipeline.toml, with the environment on top, as one checked and frozen ``PipelineConfig``.

Here: every key with its bounds and its description, the search for the file, and the wording of what is wrong with it.
Not here: what a setting does to a row (``ingest/``), to a table (``metrics.py``) or to a run (``memory.py``,
``jobs.py``), and no password, which the module that connects (``publish.py``) takes from the environment itself.
"""

from __future__ import annotations

import codecs
import datetime as dt
import hashlib
import json
import math
import os
import re
import tomllib
import types
import typing
import zoneinfo
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import annotated_types
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from data_assets.errors import ConfigurationError, nearest, visible

if typing.TYPE_CHECKING:
    from pydantic.fields import FieldInfo

CONFIG_VARIABLE = "DATA_ASSETS_CONFIG"
ENV_PREFIX = "DATA_ASSETS_"
NOT_SETTINGS = frozenset({CONFIG_VARIABLE, f"{ENV_PREFIX}POSTGRES_DSN"})
"""Variables that begin with the prefix and are no keys."""
FILE_NAMES = ("pipeline.yaml", "pipeline.yml", "pipeline.toml")
MAX_FILE_BYTES = 1_000_000
THOUSANDS = (",", ".", "'", "’", " ", "\u00a0", "\u202f")
COLUMNS = ("user_id", "session_start", "session_end", "event_type", "value", "metadata")
"""The columns of an event that a source is mapped onto."""

_FINGERPRINT_VERSION = 2
_SECRET_KEY = re.compile(r"passw|pwd|token|secret|credential|api_?key|private_?key", re.IGNORECASE)
_URL_LOGIN = re.compile(r"(://)[^/\s]*@")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(I?)B", re.IGNORECASE)
_MIN_MEMORY = 1_000_000
# strftime's, and the fractions (%.3f) and the zone with a colon (%:z) that the engine knows beside them.
_DIRECTIVES = (
    frozenset("aAbBcdgGHIjmMnpSuUVwWxXyYz%-") | {f"{dot}{n}f" for dot in ("", ".") for n in (3, 6, 9)} | {".f", ":z"}
)
_OTHERWISE = {  # what the engine reads, but not as what it says
    "f": "a fraction of a second is %.f with its point before it, else %3f, %6f or %9f by its digits",
    "Z": "an offset is %z; the letters Z, UTC or GMT in a format mean UTC",
}
EPOCHS = {"epoch_s": 1, "epoch_ms": 1_000, "epoch_us": 1_000_000, "epoch_ns": 1_000_000_000}  # units a second


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        msg = "true and false are no numbers"
        raise ValueError(msg)
    return value


def _no_none_list(value: object) -> object:
    """A list whose bare ``NULL`` or ``no`` YAML has turned into something else than text: say so."""
    if isinstance(value, list | tuple):
        for number, item in enumerate(value):
            if not isinstance(item, str):
                msg = f"item {number + 1} is {item!r}, not text (in YAML, put it in quotes)"
                raise ValueError(msg)
            if "\0" in item:
                msg = f"item {number + 1} holds a NUL character"
                raise ValueError(msg)
    return value


def _path_text(value: object) -> object:
    if isinstance(value, str):
        if not value.strip() or "\0" in value:
            msg = "a path is not blank"
            raise ValueError(msg)
        return Path(value)
    return value


def _day(value: object) -> object:
    if isinstance(value, str):
        return dt.date.fromisoformat(value)
    if isinstance(value, dt.datetime) or not isinstance(value, dt.date):
        msg = "not a day written as YYYY-MM-DD"
        raise ValueError(msg)
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_no_none_list)]
FilePath = Annotated[Path, BeforeValidator(_path_text)]
Policy = Literal["warn", "fail", "accept"]


def _allowed(text: str) -> dict[str, Any]:
    """Extra data for a field whose bounds a validator knows and the annotation does not."""
    return {"allowed": text}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class SqlExpression(_Section):
    """A column computed from the source's columns."""

    sql: str = Field(min_length=1, description="SQL expression over the source's columns.")


class ConstantValue(_Section):
    """A column that is the same text in every row."""

    value: str = Field(description="The text.")


class PathPattern(_Section):
    """A column taken from the file's path."""

    path: str = Field(min_length=1, description="Regular expression with one group, searched in the relative path.")


ColumnSource = str | SqlExpression | ConstantValue | PathPattern | None
_COLUMN_FORMS: dict[str, type[SqlExpression | ConstantValue | PathPattern]] = {
    "sql": SqlExpression,
    "value": ConstantValue,
    "path": PathPattern,
}
_COLUMN_ALLOWED = (
    "a column's name, null (in TOML: false) when the source has none, {sql: expression}, {value: text} "
    "or {path: regular expression with one group}"
)


def _one_group(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except (re.error, RecursionError, OverflowError) as error:
        msg = f"path is no regular expression ({error})"
        raise ValueError(msg) from None
    if groups != 1:
        msg = f"path has {groups} groups in parentheses, not one"
        raise ValueError(msg)


def _column_source(value: object) -> ColumnSource:
    if value is None or value is False:
        return None
    if isinstance(value, SqlExpression | ConstantValue | PathPattern):
        return value
    if isinstance(value, str):
        if not value.strip() or "\0" in value:
            msg = "a column's name is not blank"
            raise ValueError(msg)
        return value
    if not isinstance(value, Mapping) or len(value) != 1:
        msg = "not a column's name, null, or a mapping with exactly one of the keys sql, value, path"
        raise ValueError(msg)
    form, text = next(iter(value.items()))
    if form not in _COLUMN_FORMS:
        near = nearest(str(form), _COLUMN_FORMS)
        msg = f"unknown form {visible(str(form), 40)}" + (f", nearest: {near[0]}" if near else "")
        raise ValueError(msg)
    if not isinstance(text, str):
        msg = f"{form} is not text (in YAML, put it in quotes)"
        raise ValueError(msg)
    if form != "value" and not text.strip():
        msg = f"{form} is blank"
        raise ValueError(msg)
    if form == "path":
        _one_group(text)
    return _COLUMN_FORMS[form](**{form: text})


Column = Annotated[ColumnSource, BeforeValidator(_column_source)]


def _column(name: str, description: str) -> Any:  # noqa: ANN401 - what pydantic.Field returns
    return Field(default=name, description=description, json_schema_extra=_allowed(_COLUMN_ALLOWED))


class ColumnsConfig(_Section):
    """Ours to theirs; a column that is not mentioned has the same name in the source."""

    user_id: Column = _column("user_id", "Who.")
    session_start: Column = _column("session_start", "When it began; decides the row's day.")
    session_end: Column = _column("session_end", "When it ended.")
    event_type: Column = _column("event_type", "What kind of event.")
    value: Column = _column("value", "How much.")
    metadata: Column = _column("metadata", "Anything else, as text.")

    def as_mapping(self) -> dict[str, ColumnSource]:
        """Our column names in their order, each with where it comes from (also those that are not mentioned)."""
        return {name: getattr(self, name) for name in COLUMNS}


class TypesConfig(_Section):
    """The types that may be chosen."""

    user_id: Literal["int64", "string"] = Field(default="int64", description="Type of user_id in every table.")


class CsvConfig(_Section):
    """How CSV files are written."""

    delimiter: str = Field(
        default="auto",
        description="Character between fields; auto finds it out per file.",
        json_schema_extra=_allowed("auto or one character (not a quote, a line end or NUL)"),
    )
    encoding: str = Field(
        default="auto",
        description="Text encoding; auto finds it out per file.",
        json_schema_extra=_allowed("auto or the name of a text encoding that Python knows, e.g. utf-8, cp1252"),
    )
    header: bool = Field(default=True, description="Whether the first line holds the column names.")
    decimal_comma: bool = Field(
        default=False, description="Whether numbers are written 1,5 instead of 1.5; not in JSON."
    )
    thousands: str | None = Field(
        default=None,
        description="Character between groups of three digits; with decimal_comma the dot is one anyway.",
        json_schema_extra=_allowed("null, a comma, a dot, an apostrophe or a space"),
    )

    @field_validator("thousands")
    @classmethod
    def _between_digits(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and value not in THOUSANDS:
            msg = "none of the characters that part thousands"
            raise ValueError(msg)
        if value == ("," if info.data.get("decimal_comma") else "."):
            msg = "the same as the decimal mark"
            raise ValueError(msg)
        return value

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str) -> str:
        value = "\t" if value == "\\t" else value
        if value != "auto" and (len(value) != 1 or value in '"\r\n\0'):
            near = nearest(value, ["auto"])
            msg = "not a single usable character" + (f", nearest: {near[0]}" if near else "")
            raise ValueError(msg)
        return value

    @field_validator("encoding")
    @classmethod
    def _known_codec(cls, value: str) -> str:
        if value == "auto":
            return value
        try:
            "".encode(value)  # refuses hex, zlib and the like, which lookup alone lets through
            return codecs.lookup(value).name
        except (LookupError, ValueError):
            near = nearest(
                value, ["auto", "utf-8", "utf-16", "cp1252", "latin-1", "iso-8859-15", "gb18030", "shift_jis"]
            )
            msg = "no text encoding of that name" + (f", nearest: {near[0]}" if near else "")
            raise ValueError(msg) from None


class SourceConfig(_Section):
    """What lies in the raw folder and how to read it."""

    directory: FilePath | None = Field(
        default=None,
        description="Folder of the raw files; null means <data_dir>/raw.",
        json_schema_extra=_allowed("a path or null"),
    )
    patterns: Texts = Field(
        default=("**/*.csv*", "**/*.json*", "**/*.jsonl*", "**/*.ndjson*", "**/*.parquet*"),
        min_length=1,
        description="Files to look at, relative to the folder, whether in capitals or not.",
    )
    columns: ColumnsConfig = Field(default=ColumnsConfig(), description="Ours to theirs.")
    types: TypesConfig = Field(default=TypesConfig(), description="Types that may be chosen.")
    timestamp_formats: Texts = Field(
        default=(),
        description="Formats of the times, tried in order before ISO 8601; Z, UTC or GMT in one means UTC.",
        json_schema_extra=_allowed("list of strftime formats such as %d/%m/%Y %H:%M, or " + ", ".join(EPOCHS)),
    )
    required: Texts = Field(
        default=("user_id", "session_start", "event_type"),
        description="Columns without which a row is quarantined.",
        json_schema_extra=_allowed("list of " + ", ".join(COLUMNS)),
    )
    null_values: Texts = Field(default=("", "NA", "NULL"), description="Texts that mean: no value.")
    csv: CsvConfig = Field(default=CsvConfig(), description="How CSV files are written.")
    extra_columns: Literal["drop", "keep"] = Field(
        default="drop", description="What becomes of source columns that nothing maps."
    )
    column_naming: Literal["none", "lower", "upper", "capitalize"] = Field(
        default="lower", description="How the source's column names are changed before the mapping."
    )
    deduplicate: Literal["none", "exact"] | Texts = Field(
        default="none",
        description="Which rows count as the same: none, equal in all columns, or equal in those listed.",
        json_schema_extra=_allowed("none, exact, or a list of columns"),
    )
    settle_seconds: Number = Field(
        default=2.0, ge=0, le=86_400, description="A file that changed less long ago than this waits."
    )

    @field_validator("patterns")
    @classmethod
    def _inside(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            if not pattern.strip() or pattern.startswith("/") or ".." in Path(pattern).parts:
                msg = f"{visible(pattern, 60)!r} is blank or leaves the folder"
                raise ValueError(msg)
        return value

    @field_validator("timestamp_formats")
    @classmethod
    def _formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if text in EPOCHS:
                continue
            if "%" not in text:
                near = nearest(text, EPOCHS)
                msg = f"{visible(text, 60)!r} has no % directive" + (f", nearest: {near[0]}" if near else "")
                raise ValueError(msg)
            for directive in re.findall(r"%(\.?[369]?f|:z|.?)", text, re.DOTALL):
                if directive not in _DIRECTIVES:
                    how = f"; {_OTHERWISE[directive]}" if directive in _OTHERWISE else ""
                    msg = f"{visible(text, 60)!r} has the unknown directive %{visible(directive)}{how}"
                    raise ValueError(msg)
        return value

    @field_validator("required")
    @classmethod
    def _among_ours(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        _known_columns(value)
        columns = info.data.get("columns")
        absent = [name for name in value if columns is not None and getattr(columns, name) is None]
        if absent:
            msg = f"{', '.join(absent)} cannot be required while source.columns says that the source has none"
            raise ValueError(msg)
        return value

    @field_validator("deduplicate", mode="before")
    @classmethod
    def _same_rows(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, list | tuple):
            _no_none_list(value)
            if not value:
                msg = "the list is empty; say none instead"
                raise ValueError(msg)
            if info.data.get("extra_columns") == "drop":
                _known_columns(value)
            return tuple(value)
        if value not in ("none", "exact"):
            near = nearest(str(value), ("none", "exact"))
            msg = "neither none, exact nor a list" + (f", nearest: {near[0]}" if near else "")
            raise ValueError(msg)
        return value


def _known_columns(names: typing.Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name not in COLUMNS:
            near = nearest(name, COLUMNS)
            msg = f"{visible(name, 60)!r} is not one of our columns" + (f", nearest: {near[0]}" if near else "")
            raise ValueError(msg)
        if name in seen:
            msg = f"{name} stands there twice"
            raise ValueError(msg)
        seen.add(name)


class QualityConfig(_Section):
    """What a day must be like."""

    max_quarantine_rate: Number = Field(
        default=0.02, ge=0, le=1, description="Largest share of refused rows with which a day is still accepted."
    )
    required_event_types: Texts | None = Field(
        default=None,
        description="The event types there are; a row with another is quarantined. null: any.",
        json_schema_extra=_allowed("list of texts (at least one) or null"),
    )
    value_min: Number | None = Field(default=None, description="Smallest value of a valid row; null: no bound.")
    value_max: Number | None = Field(default=None, description="Largest value of a valid row; null: no bound.")

    @field_validator("required_event_types")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value == ():
            msg = "an empty list would refuse every row; say null instead"
            raise ValueError(msg)
        return value

    @field_validator("value_max")
    @classmethod
    def _in_order(cls, value: float | None, info: ValidationInfo) -> float | None:
        least = info.data.get("value_min")
        if value is not None and least is not None and value < least:
            msg = f"smaller than quality.value_min, which is {least:g}"
            raise ValueError(msg)
        return value


class SchemaDriftConfig(_Section):
    """What to do when a file's columns are not those of the files before it."""

    new_column: Policy = Field(default="warn", description="A column that was not there before.")
    missing_column: Policy = Field(default="fail", description="A column that is no longer there.")
    type_change: Policy = Field(default="fail", description="A column whose type is another.")
    null_rate: Policy = Field(default="warn", description="A column that lacks more of its values than before.")
    null_rate_jump: Number = Field(
        default=0.2, ge=0, le=1, description="Rise of the share of missing values from which on null_rate holds."
    )
    new_event_type: Policy = Field(
        default="warn",
        description="An event type that no file had; not asked when quality.required_event_types lists them.",
    )
    accepted: FilePath = Field(
        default=Path("schema.yaml"),
        description="File of the accepted schema, which `data-assets schema accept` writes; need not exist.",
    )


class ConstantNumber(_Section):
    """A number put where the value is missing."""

    constant: Number = Field(description="The number.")


MissingValue = Literal["keep", "drop", "mean", "median", "previous"]
_MISSING_VALUE = typing.get_args(MissingValue)


def _missing_value(value: object) -> object:
    if value in _MISSING_VALUE or isinstance(value, ConstantNumber):
        return value
    if isinstance(value, Mapping) and set(value) == {"constant"}:
        number = value["constant"]
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            msg = "constant is not a finite number"
            raise ValueError(msg)
        return ConstantNumber(constant=number)
    near = nearest(str(value), (*_MISSING_VALUE, "constant"))
    msg = "no such policy" + (f", nearest: {near[0]}" if near else "")
    raise ValueError(msg)


class LookupConfig(_Section):
    """A table of one row a key, whose columns are added to every event with that key."""

    file: FilePath | None = Field(
        default=None,
        description="CSV (UTF-8, with commas and a header) or Parquet file of columns to add to the events; "
        "null: none. It is held in memory.",
        json_schema_extra=_allowed("a path that ends in .csv or .parquet, or null"),
    )
    key: Literal["user_id", "event_type", "metadata"] = Field(
        default="event_type", description="Our column that is looked up, compared as text."
    )
    file_key: str | None = Field(
        default=None, min_length=1, description="The file's column with the keys; null: it is called as ours."
    )
    columns: Texts | None = Field(
        default=None,
        min_length=1,
        description="The file's columns to add, each with lookup_ before its name; null: all.",
    )

    @field_validator("file")
    @classmethod
    def _known_ending(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix.lower() not in {".csv", ".parquet"}:
            msg = "the file's name ends neither in .csv nor in .parquet"
            raise ValueError(msg)
        return value

    @field_validator("columns")
    @classmethod
    def _each_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) != len(value):
            msg = "a column stands there twice"
            raise ValueError(msg)
        return value


class CleaningConfig(_Section):
    """What is changed in valid rows; applied in this order."""

    bounds: Literal["quarantine", "clip", "flag"] = Field(
        default="quarantine",
        description="A value beyond quality.value_min or value_max: its row is quarantined, the value becomes the "
        "bound, or it stays and the extra column value_out_of_range says so.",
    )
    missing_value: Annotated[MissingValue | ConstantNumber, BeforeValidator(_missing_value)] = Field(
        default="keep",
        description="A row without a value keeps none, is quarantined (drop), or gets a constant, the mean or median "
        "of its event type on that day, or the same user's value before it on that day.",
        json_schema_extra=_allowed("keep, drop, mean, median, previous, or {constant: number}"),
    )
    lookup: LookupConfig = Field(default=LookupConfig(), description="Columns added from a file.")
    standardise: Literal["none", "zscore", "minmax"] = Field(
        default="none",
        description="Adds value_zscore, or value_minmax (0 to 1): the value against the day's values of its event "
        "type, 6 decimals.",
    )


class OutliersConfig(_Section):
    """The fences."""

    factor: Number = Field(default=1.5, gt=0, description="Distance of the fences from the quartiles, in IQRs.")


class MemoryConfig(_Section):
    """How much memory a run may take."""

    limit: str = Field(
        default="auto",
        description="Memory that a run may take; auto means what the machine or the container has.",
        json_schema_extra=_allowed("auto or a size of at least 1MB such as 512MB, 2GB, 1.5GiB"),
    )
    margin: Number = Field(default=0.3, ge=0, lt=1, description="Share of the limit that is kept free.")
    eager_ratio: Number = Field(
        default=0.65,
        ge=0,
        description="A day is held as a whole while it needs at most this share of what there is.",
    )
    lazy_ratio: Number = Field(
        default=2.0,
        ge=0,
        description="Up to this share its different values are held; beyond it nothing is that grows with the day.",
    )

    @field_validator("limit", mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            value = f"{value}B"
        if isinstance(value, str) and value != "auto":
            value = value.strip()
            size = _bytes(value)
            if size is None or size < _MIN_MEMORY:
                msg = "not a size" if size is None else "too small"
                raise ValueError(msg)
        return value

    @property
    def limit_bytes(self) -> int | None:
        """The limit in bytes, ``None`` for auto."""
        return _bytes(self.limit)


def _bytes(text: str) -> int | None:
    """``512MB`` -> 512000000, ``512MiB`` -> 536870912 (as DuckDB reads them); ``None`` if it is not a size."""
    match = _SIZE.fullmatch(text if not text.isdigit() else text + "B")
    if match is None:
        return None
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** ("KMGT".index(match[2].upper()) + 1 if match[2] else 0))


class EveryConfig(_Section):
    """A steady beat, counted from midnight; only what divides a day or an hour evenly keeps one."""

    hours: Whole | None = Field(default=None, description="Every so many hours, on the hour; null: not so.",
                                json_schema_extra=_allowed("null or 1, 2, 3, 4, 6, 8, 12, 24"))  # fmt: skip
    minutes: Whole | None = Field(default=None, description="Every so many minutes; null: not so.",
                                  json_schema_extra=_allowed("null or a whole number that divides 60"))  # fmt: skip

    @field_validator("hours", "minutes")
    @classmethod
    def _divides(cls, value: int | None, info: ValidationInfo) -> int | None:
        whole = 24 if info.field_name == "hours" else 60
        if value is not None and (value < 1 or whole % value):
            msg = f"does not divide {whole}, so the time between two runs would not be the same"
            raise ValueError(msg)
        return value


_CRON_FIELDS = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    ("day of the week", 0, 7, ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
)


def _cron(text: str) -> None:
    """Refuse what is not a cron expression of five fields.

    Raises:
        ValueError: with the field that is wrong.
    """
    parts = text.split()
    if len(parts) != len(_CRON_FIELDS):
        msg = f"{len(parts)} fields, not the five of minute, hour, day of the month, month, day of the week"
        raise ValueError(msg)
    for part, (name, least, most, names) in zip(parts, _CRON_FIELDS, strict=True):
        known = {word: least + number for number, word in enumerate(names)}
        for item in part.lower().split(","):
            span, _, step = item.partition("/")
            ends = [least, most] if span == "*" else [known.get(e, e) for e in span.split("-")]
            numbers = [int(e) for e in (*ends, step or "1") if str(e).isdecimal()]
            whole = len(ends) <= 2 and len(numbers) == len(ends) + 1 and numbers[-1] >= 1
            if not whole or not least <= numbers[0] <= numbers[-2] <= most:
                msg = f"{visible(item, 40)!r} is no {name} of cron ({least} to {most})"
                raise ValueError(msg)


class ScheduleConfig(_Section):
    """When runs start by the clock, in the configured time zone: at one time for yesterday, or every, or by cron."""

    hour: Whole = Field(default=1, ge=0, le=23, description="Hour of the daily run, which makes yesterday.")
    minute: Whole = Field(default=0, ge=0, le=59, description="Its minute.")
    every: EveryConfig = Field(default=EveryConfig(), description="A beat; each run makes the days that are due.")
    cron: str | None = Field(
        default=None,
        description="Instead: times in cron's words; each run makes the days whose files are new or changed.",
        json_schema_extra=_allowed('null or five fields of cron such as "30 6 * * 1-5"'),
    )
    enabled: bool = Field(default=False, description="Whether the schedule runs unless switched otherwise in the UI.")

    @field_validator("cron")
    @classmethod
    def _one_form(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            _cron(value)
        every = info.data.get("every")
        forms = [every.hours, every.minutes] if every is not None else []
        given = sum(form is not None for form in (*forms, value))
        if given > 1:
            msg = "every.hours, every.minutes and cron exclude one another"
            raise ValueError(msg)
        if given and (info.data.get("hour"), info.data.get("minute")) != (1, 0):
            msg = "hour and minute are for the daily run; with every or cron leave them out"
            raise ValueError(msg)
        return value

    @property
    def cron_schedule(self) -> str | None:
        """The beat or the cron expression as cron; None for the daily run at hour and minute."""
        if self.every.hours:
            return "0 0 * * *" if self.every.hours == 24 else f"0 */{self.every.hours} * * *"
        if self.every.minutes:
            return "0 * * * *" if self.every.minutes == 60 else f"*/{self.every.minutes} * * * *"
        return self.cron


PUBLISHABLE = ("session_metrics", "event_distribution", "summary_statistics", "daily_kpis", "raw_events", "outliers")
"""Tables that may stand in PostgreSQL: those of the warehouse, and the events."""


class PostgresConfig(_Section):
    """Tables in PostgreSQL; without this section none. Where it is, and as whom, says the environment alone."""

    tables: Texts = Field(
        default=PUBLISHABLE[:4],
        min_length=1,
        description="Tables to publish.",
        json_schema_extra=_allowed("list of " + ", ".join(PUBLISHABLE)),
    )
    schema_name: str = Field(default="public", min_length=1, max_length=63, description="Schema that they stand in.")
    if_table_exists: Literal["fail", "append", "replace"] = Field(
        default="fail",
        description="fail: only tables made by data_assets are written to, their days replaced; append: only days that "
        "are not there yet are added; replace: days are replaced in any table with these columns.",
    )
    drift: Literal["fail", "add_columns"] = Field(
        default="fail",
        description="A table there with other columns: refuse it, or add what is missing and leave alone what is more.",
    )
    connect_timeout_seconds: Number = Field(
        default=10.0, ge=1, le=600, description="Wait this long for the server to answer."
    )
    lock_timeout_seconds: Number = Field(
        default=600.0, gt=0, le=86_400, description="Wait this long for another publisher of the same day."
    )

    @field_validator("tables")
    @classmethod
    def _known_tables(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in PUBLISHABLE:
                near = nearest(name, PUBLISHABLE)
                msg = f"{visible(name, 60)!r} cannot be published" + (f", nearest: {near[0]}" if near else "")
                raise ValueError(msg)
        if len(set(value)) != len(value):
            msg = "a table stands there twice"
            raise ValueError(msg)
        return value

    @field_validator("schema_name")
    @classmethod
    def _usable_name(cls, value: str) -> str:
        if "\0" in value or len(value.encode()) > 63:
            msg = "not a name that PostgreSQL can hold (63 bytes, no NUL)"
            raise ValueError(msg)
        return value


class DiskConfig(_Section):
    """When there is too little room to begin."""

    min_free: str = Field(
        default="256MB",
        description="Room that must be left on the disk of data_dir, beside what the files to read will need.",
        json_schema_extra=_allowed("a size such as 256MB, 5GB, 1.5GiB"),
    )

    @field_validator("min_free")
    @classmethod
    def _is_size(cls, value: str) -> str:
        if _bytes(value) is None:
            msg = "not a size"
            raise ValueError(msg)
        return value

    @property
    def min_free_bytes(self) -> int:
        """In bytes."""
        return _bytes(self.min_free) or 0


Age = Annotated[Whole, Field(ge=1, le=36_500)] | None


class RetentionConfig(_Section):
    """How many days things are kept; null: for ever. `data-assets retention` shows what would go."""

    raw: Age = Field(default=None, description="Raw files, by the newest day that they hold; only accounted ones go.")
    raw_move_to: FilePath | None = Field(default=None, description="Folder that they are moved to; null: deleted.")
    lake: Age = Field(default=None, description="Days of raw_events, quarantined_events and the like in the lake.")
    reports: Age = Field(default=None, description="Reports of days.")
    history: Age = Field(default=None, description="Runs and their logs in Dagster's history, by their end.")
    run_records: Age = Field(default=None, description="Months of pipeline_runs.")
    daily: bool = Field(default=False, description="Whether the daemon does it every day, one hour after the schedule.")

    @property
    def is_set(self) -> bool:
        """Whether anything is ever to go."""
        return any(age is not None for age in (self.raw, self.lake, self.reports, self.history, self.run_records))


class LogsConfig(_Section):
    """What is written of each run, beside Dagster's own history (docs/logs.md)."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Lines below this level are not written."
    )
    file: bool = Field(default=True, description="Whether JSON lines go to logs/data_assets.jsonl below data_dir.")
    max_megabytes: Number = Field(
        default=10.0, gt=0, le=10_000, description="A larger file is set aside for a new one."
    )
    kept_files: Whole = Field(default=5, ge=1, le=100, description="How many files that were set aside are kept.")


ALERT_VARIABLES = f"{ENV_PREFIX}ALERT_"
"""What the variables that hold a channel's address begin with, if they begin with the prefix: they are no keys."""
WHEN = (
    "run_failed", "check_failed", "check_warned", "missing_day", "late_day", "schema_drift", "unusable_file",
    "quarantine_rate", "kpi_unusual",
)  # fmt: skip
"""What a rule can be about, beside a figure's bounds."""
KPIS = (
    "rows_in", "valid", "quarantined", "duplicate", "quarantine_rate", "late", "late_max_days", "users", "sessions",
    "events", "value", "avg_duration", "median_duration", "anomalies", "outliers",
)  # fmt: skip
"""A day's figures that a rule can bound."""
Severity = Literal["info", "warning", "error", "critical"]
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")


def _time_of_day(value: object) -> object:
    """``"08:00"``; also the number that YAML makes of 22:00 without quotes, and TOML's local time."""
    if isinstance(value, dt.time):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 24 * 60:
        return dt.time(value // 60, value % 60)
    found = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        msg = f"{visible(str(value), 40)!r} is not a time of day written as 'HH:MM'"
        raise ValueError(msg)
    return dt.time(int(found[1]), int(found[2]))


TimeOfDay = Annotated[dt.time, BeforeValidator(_time_of_day)]


def _deadline(value: object) -> object:
    return value if value is None or value == "schedule" else _time_of_day(value)


class ChannelConfig(_Section):
    """Where messages go."""

    url_env: str = Field(description="Environment variable that holds the Apprise address.")

    @field_validator("url_env")
    @classmethod
    def _no_key(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,127}", value):
            msg = "url_env is the name of an environment variable, not the address itself, which is secret"
            raise ValueError(msg)
        if value.upper().startswith(ENV_PREFIX) and not value.upper().startswith(ALERT_VARIABLES):
            msg = f"{value} would be taken for a setting; begin its name with {ALERT_VARIABLES}"
            raise ValueError(msg)
        return value


class QuietHours(_Section):
    """When messages wait."""

    model_config = ConfigDict(populate_by_name=True, frozen=True, extra="forbid")

    start: TimeOfDay = Field(alias="from", description="First minute of it.")
    end: TimeOfDay = Field(alias="to", description="When the messages that waited are sent.")
    exempt: Severity | None = Field(
        default="critical", alias="except", description="This severity and those above it are sent all the same."
    )


class KpiBounds(_Section):
    """A day's figure outside fixed bounds."""

    kpi: str = Field(description="Which figure.")
    below: Number | None = Field(default=None, description="Smaller than this.")
    above: Number | None = Field(default=None, description="Larger than this.")

    @property
    def condition(self) -> str:
        """The bounds as one word, which tells them from others of the same figure."""
        bounds = {"below": self.below, "above": self.above}
        return ":".join([self.kpi, *(f"{name}:{value:g}" for name, value in bounds.items() if value is not None)])


class RuleConfig(_Section):
    """Which messages go where, and when."""

    when: tuple[str | KpiBounds, ...] = Field(min_length=1, description="What it is about.")
    severity: Severity | None = Field(default=None, description="In place of the severity that the cause has.")
    channels: Texts | None = Field(default=None, min_length=1, description="Names of channels; null: all.")
    quiet_hours: QuietHours | None = Field(default=None, description="When messages wait.")
    digest: TimeOfDay | None = Field(default=None, description="One message a day, at this time.")

    @property
    def conditions(self) -> frozenset[str]:
        """What it is about, a word each."""
        return frozenset(w.condition if isinstance(w, KpiBounds) else w for w in self.when)


def _only(value: object, keys: typing.Sequence[str], what: str) -> Mapping[str, object]:
    """``value`` if it is a mapping with these keys alone."""
    if not isinstance(value, Mapping):
        msg = f"{what} is not a mapping with {', '.join(keys)}"
        raise ValueError(msg)
    for key in value:
        if key not in keys:
            near = nearest(str(key), keys)
            msg = f"{what} has no key {visible(str(key), 60)!r}" + (f", nearest: {near[0]}" if near else "")
            raise ValueError(msg)
    return value


def _named(name: object, known: typing.Sequence[str], what: str) -> None:
    if name not in known:
        near = nearest(str(name), known)
        msg = f"{what}: no {visible(str(name), 60)!r}" + (f", nearest: {near[0]}" if near else "")
        raise ValueError(msg)


def _channels(value: object) -> object:
    for name, channel in value.items() if isinstance(value, Mapping) else ():
        if not isinstance(channel, ChannelConfig):
            _only(channel, ("url_env",), f"channel {visible(str(name), 60)}")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", str(name)):
            msg = f"{visible(str(name), 60)!r} is no name for a channel (letters, digits, _ and -)"
            raise ValueError(msg)
    return value


def _rules(value: object) -> object:
    if not isinstance(value, list | tuple):
        return value
    for number, rule in enumerate(value, start=1):
        what = f"rule {number}"
        if isinstance(rule, RuleConfig):
            continue
        found = _only(rule, tuple(RuleConfig.model_fields), what)
        conditions = found.get("when")
        for condition in conditions if isinstance(conditions, list | tuple) else ():
            if isinstance(condition, str):
                _named(condition, WHEN, f"{what}, when")
            elif not isinstance(condition, KpiBounds):
                bounds = _only(condition, ("kpi", "below", "above"), f"{what}, when")
                _named(bounds.get("kpi"), KPIS, f"{what}, kpi")
                if bounds.get("below") is None and bounds.get("above") is None:
                    msg = f"{what}: {bounds['kpi']} has no bound; say below, above or both"
                    raise ValueError(msg)
        if isinstance(found.get("quiet_hours"), Mapping):
            _only(found["quiet_hours"], ("from", "to", "except"), f"{what}, quiet_hours")
    return value


class AlertsConfig(_Section):
    """Who is told when something is wrong, and when it is over."""

    base_url: str | None = Field(
        default=None,
        description="Address of Dagster's UI, which messages link to; null: they name the report's path.",
        json_schema_extra=_allowed("an address that begins with http:// or https://, or null"),
    )
    channels: Annotated[dict[str, ChannelConfig], BeforeValidator(_channels)] = Field(
        default={},
        description="Where messages go: a name for each, and the environment variable that holds its Apprise address.",
        json_schema_extra=_allowed("mapping of a name to {url_env: NAME_OF_A_VARIABLE}"),
    )
    rules: Annotated[tuple[RuleConfig, ...], BeforeValidator(_rules)] = Field(
        default=(),
        description="Which messages go where and when; for each channel the first rule that fits holds. "
        "Without any: everything to every channel at once.",
        json_schema_extra=_allowed(
            f"list of {{when: [{', '.join(WHEN)}, {{kpi: rows_in, below: 1000}}], severity, channels, quiet_hours: "
            "{from, to, except}, digest}"
        ),
    )
    deadline: Annotated[dt.time | Literal["schedule"] | None, BeforeValidator(_deadline)] = Field(
        default="schedule",
        description="By this time rows of the day before must have landed, else it is late; schedule: by the time of "
        "the daily run; null: no day is late.",
        json_schema_extra=_allowed("schedule, a time such as '06:00', or null"),
    )
    kpi_days: Whole = Field(
        default=3, ge=1, le=31, description="How many of the newest days that are over have their figures judged."
    )
    update_minutes: Number = Field(
        default=60.0, ge=0, le=10_080, description="An open message is updated at most this often."
    )
    include_samples: bool = Field(
        default=False, description="Whether messages may hold values from the files, such as quarantined records."
    )
    timeout_seconds: Number = Field(
        default=5.0, ge=0.1, le=20, description="Wait this long for a receiver to answer; then it is tried again later."
    )

    def __hash__(self) -> int:
        """Of the text: the channels are a mapping."""
        return hash(self.model_dump_json())

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", value):
            msg = "not an address that begins with http:// or https:// and holds no login"
            raise ValueError(msg)
        return value.rstrip("/") if value else value

    @field_validator("rules")
    @classmethod
    def _known_channels(cls, value: tuple[RuleConfig, ...], info: ValidationInfo) -> tuple[RuleConfig, ...]:
        for number, rule in enumerate(value, start=1):
            for name in rule.channels or ():
                _named(name, tuple(info.data.get("channels", {})), f"rule {number}, channels")
        return value


class SensorConfig(_Section):
    """The sensor raw_files."""

    enabled: bool = Field(default=True, description="Whether it looks for files unless switched otherwise in the UI.")


class RunsConfig(_Section):
    """How work is cut into runs."""

    max_days: Whole = Field(
        default=31,
        ge=1,
        le=3660,
        description="Most days of one run; longer ranges are several runs, and a killed one costs only its own.",
    )


class FreshConfig(_Section):
    """How old an asset's newest day may be, by when it was made."""

    warn_after_hours: Number | None = Field(default=None, ge=0.1, le=9000, description="Late; null: never.")
    fail_after_hours: Number | None = Field(default=None, ge=0.1, le=9000, description="Overdue; null: not watched.")

    @field_validator("fail_after_hours")
    @classmethod
    def _later(cls, value: float | None, info: ValidationInfo) -> float | None:
        warn = info.data.get("warn_after_hours")
        if warn is not None and (value is None or value <= warn):
            msg = f"not after warn_after_hours, which is {warn:g}"
            raise ValueError(msg)
        return value


class FreshnessConfig(_Section):
    """By when an asset must have been made again; the UI shows it as fresh, late or overdue."""

    landed_files: FreshConfig = Field(default=FreshConfig(), description="The look at the raw folder.")
    raw_events: FreshConfig = Field(default=FreshConfig(), description="The events.")
    session_metrics: FreshConfig = Field(default=FreshConfig(), description="Per user.")
    outliers: FreshConfig = Field(default=FreshConfig(), description="Rows outside the fences.")
    event_distribution: FreshConfig = Field(default=FreshConfig(), description="Per event type.")
    summary_statistics: FreshConfig = Field(default=FreshConfig(), description="Per column.")
    daily_kpis: FreshConfig = Field(default=FreshConfig(), description="What a day came to.")
    daily_report: FreshConfig = Field(default=FreshConfig(), description="The report.")
    weekly_report: FreshConfig = Field(default=FreshConfig(), description="The report of a week.")


class PipelineConfig(BaseSettings):
    """All settings. Building one reads neither a file nor the environment; ``load_config`` does."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    data_dir: FilePath = Field(default=Path("data"), description="Folder of everything that is stored.")
    start_date: Annotated[dt.date, BeforeValidator(_day)] = Field(
        default=dt.date(2024, 1, 1), ge=dt.date(1900, 1, 1), description="First day; earlier rows are quarantined."
    )
    timezone: str = Field(
        default="UTC",
        description="Time zone that decides a row's day; a time without a zone is in it. Times are kept as its clocks "
        "show them, so a duration over a change of the clocks is an hour off; in UTC none is.",
        json_schema_extra=_allowed("a name from the IANA time zone database, e.g. UTC, Europe/Berlin"),
    )
    source: SourceConfig = Field(default=SourceConfig(), description="What lies in the raw folder.")
    quality: QualityConfig = Field(default=QualityConfig(), description="What a day must be like.")
    schema_drift: SchemaDriftConfig = Field(default=SchemaDriftConfig(), description="Changed columns.")
    cleaning: CleaningConfig = Field(default=CleaningConfig(), description="What is changed in valid rows.")
    outliers: OutliersConfig = Field(default=OutliersConfig(), description="The fences.")
    precision: Whole = Field(default=2, ge=0, le=9, description="Decimals that derived numbers are rounded to.")
    memory: MemoryConfig = Field(default=MemoryConfig(), description="How much memory a run may take.")
    trend_days: Whole = Field(
        default=14, ge=1, le=366, description="Days before a day that the report compares it with."
    )
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="When the daily run starts.")
    postgres: PostgresConfig = Field(default=PostgresConfig(), description="Tables in PostgreSQL.")
    logs: LogsConfig = Field(default=LogsConfig(), description="Log lines.")
    disk: DiskConfig = Field(default=DiskConfig(), description="Room on the disk.")
    retention: RetentionConfig = Field(default=RetentionConfig(), description="What is kept, and for how long.")
    alerts: AlertsConfig = Field(default=AlertsConfig(), description="Who is told when something is wrong.")
    sensor: SensorConfig = Field(default=SensorConfig(), description="The sensor raw_files.")
    runs: RunsConfig = Field(default=RunsConfig(), description="How work is cut into runs.")
    freshness: FreshnessConfig = Field(default=FreshnessConfig(), description="By when assets must be made again.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: ``load_config`` lays the environment over the file, so that it can name both."""
        return (init_settings,)

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            # localtime and posixrules depend on the machine
            zoneinfo.ZoneInfo("" if value in ("localtime", "posixrules") else value)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            near = nearest(value, sorted(zoneinfo.available_timezones()))
            msg = "no time zone of that name" + (f", nearest: {', '.join(near)}" if near else "")
            raise ValueError(msg) from None
        return value

    @field_validator("cleaning")
    @classmethod
    def _not_every_row(cls, value: CleaningConfig, info: ValidationInfo) -> CleaningConfig:
        source = info.data.get("source")
        if value.missing_value == "drop" and source is not None and source.columns.value is None:
            msg = "missing_value drop would refuse every row, for source.columns says that the source has no value"
            raise ValueError(msg)
        return value

    @property
    def publishes(self) -> bool:
        """Whether there is a section ``postgres``, be it empty: without one nothing is published."""
        return "postgres" in self.model_fields_set

    @property
    def raw_dir(self) -> Path:
        """Where the raw files lie."""
        return self.source.directory or self.data_dir / "raw"

    @property
    def lake_dir(self) -> Path:
        """Where the Parquet tables lie."""
        return self.data_dir / "lake"

    @property
    def warehouse_path(self) -> Path:
        """The DuckDB file."""
        return self.data_dir / "warehouse.duckdb"

    @property
    def reports_dir(self) -> Path:
        """Where the reports lie."""
        return self.data_dir / "reports"

    @property
    def scratch_dir(self) -> Path:
        """Where unfinished work lies."""
        return self.data_dir / ".scratch"

    @property
    def log_path(self) -> Path:
        """The file of log lines."""
        return self.data_dir / "logs" / "data_assets.jsonl"

    @property
    def zone(self) -> zoneinfo.ZoneInfo:
        """The time zone."""
        return zoneinfo.ZoneInfo(self.timezone)

    def mapping_fingerprint(self) -> str:
        """Sixteen hex digits that change when, and only when, the same files could come to other tables.

        What is left out is named, so a key that is added later counts until somebody says that it does not.
        """
        meaning = self.model_dump(
            mode="json",
            exclude={
                "data_dir": True,
                "memory": True,
                "trend_days": True,
                "schedule": True,
                "postgres": True,
                "logs": True,
                "disk": True,
                "retention": True,
                "alerts": True,
                "sensor": True,
                "runs": True,
                "freshness": True,
                "schema_drift": True,  # decides which days are refused, not what stands in them: landing.fingerprints
                "source": {"directory", "patterns", "settle_seconds"},
                "cleaning": {"lookup": {"file"}},  # its content counts, in landing.fingerprints
            },
        )
        for section, key in (
            ("source", "required"),
            ("source", "null_values"),
            ("source", "deduplicate"),
            ("quality", "required_event_types"),
        ):
            if isinstance(meaning[section][key], list):  # their order says nothing
                meaning[section][key] = sorted(set(meaning[section][key]))
        text = json.dumps([_FINGERPRINT_VERSION, meaning], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- what the model allows, in words -------------------------------------------------------------------------------


class SettingRow(NamedTuple):
    """One key, for the documentation."""

    key: str
    type: str
    default: str
    description: str


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, _Section) else None


def _fields(model: type[BaseModel] = PipelineConfig, prefix: str = "") -> dict[str, FieldInfo]:
    """Every key that is not a section, dotted."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        section = _section_of(field)
        if section is None:
            found[prefix + name] = field
        else:
            found.update(_fields(section, f"{prefix}{name}."))
    return found


def _parts(annotation: object) -> tuple[object, ...]:
    """The members of a union (and of what is annotated); a single type is its own only member."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _parts(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(part for member in typing.get_args(annotation) for part in _parts(member))
    return (annotation,)


def _bounds(metadata: list[Any]) -> str:
    words: list[str] = []
    for rule in metadata:
        for kind, sign in ((annotated_types.Ge, "ge"), (annotated_types.Gt, "gt")):
            if isinstance(rule, kind):
                words.append(f"{'at least' if sign == 'ge' else 'greater than'} {getattr(rule, sign)}")
        for kind_, sign in ((annotated_types.Le, "le"), (annotated_types.Lt, "lt")):
            if isinstance(rule, kind_):
                words.append(f"{'at most' if sign == 'le' else 'less than'} {getattr(rule, sign)}")
        if isinstance(rule, annotated_types.MinLen):
            words.append(f"{rule.min_length} or more")
    return ", ".join(words)


def _type_text(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "allowed" in extra:
        return str(extra["allowed"])
    names: dict[object, str] = {
        int: "whole number", float: "number", bool: "true or false", Path: "path", str: "text",
        dt.date: "day (YYYY-MM-DD)", type(None): "null",
    }  # fmt: skip
    words: list[str] = []
    for part in _parts(field.annotation):
        if typing.get_origin(part) is Literal:
            words.extend(map(str, typing.get_args(part)))
        elif typing.get_origin(part) is tuple:
            words.append("list of texts")
        else:
            words.append(names.get(part, str(part)))
    bounds = _bounds(field.metadata)
    return " or ".join(words) + (f", {bounds}" if bounds else "")


def describe() -> list[SettingRow]:
    """Every key with what is allowed, its default and what it is for, in the model's order."""
    rows: list[SettingRow] = []
    for key, field in _fields().items():
        default = field.default
        text = json.dumps(default if isinstance(default, bool | int | float | tuple | dict | None) else str(default))
        rows.append(SettingRow(key, _type_text(field), text, field.description or ""))
    return rows


# --- reading -------------------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """``yaml.safe_load`` that refuses a key that stands twice, and aliases (nothing here needs them; bombs do)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"the key {visible(key.value, 60)} stands there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError):  # e.g. 2024-02-31
            kind = node.tag.rpartition(":")[2]
            problem = f"not a valid {kind}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


def _syntax(file: Path, what: str) -> NoReturn:
    raise ConfigurationError(
        f"{visible(str(file))}: {what}", "Correct that place; docs/ lists every key.", file=file
    ) from None


def _parse_yaml(file: Path, text: str) -> object:
    try:
        loader = _StrictLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        _syntax(file, f"{where}{visible(error.problem or error.context or 'not valid YAML')}.")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        _syntax(file, f"line {line}: a character that YAML does not allow.")
    except RecursionError:
        _syntax(file, "nested too deeply.")


def _parse_toml(file: Path, text: str) -> object:
    try:
        return tomllib.loads(text)
    except RecursionError:
        _syntax(file, "nested too deeply.")
    except ValueError as error:  # TOMLDecodeError is one; its text has line and column
        _syntax(file, f"{visible(str(error))}.")


def read_settings(file: Path) -> dict[object, object]:
    """The mapping in a YAML or TOML file, with every doubt refused: keys that stand twice, aliases, other encodings.

    Raises:
        ConfigurationError: it cannot be read, or is not that.
    """
    if file.suffix.lower() not in {".yaml", ".yml", ".toml"}:
        raise ConfigurationError(
            f"{visible(str(file))}: a configuration file ends in .yaml, .yml or .toml.", "Rename it.", file=file
        )
    try:
        if not file.is_file():
            what = "is not a file" if file.exists() else "does not exist"
            raise ConfigurationError(
                f"{visible(str(file))}: the configuration file {what}.",
                f"Check --config and ${CONFIG_VARIABLE}, or leave both out to use {FILE_NAMES[0]} in this folder.",
                file=file,
            )
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{visible(str(file))}: the configuration file cannot be read ({error}).", "Check its rights.", file=file
        ) from error
    if len(raw) > MAX_FILE_BYTES:
        _syntax(file, f"larger than {MAX_FILE_BYTES} bytes, which no configuration is.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        _syntax(file, f"line {line}: not UTF-8.")
    data = _parse_toml(file, text) if file.suffix.lower() == ".toml" else _parse_yaml(file, text)
    if data is None:
        return {}
    if not isinstance(data, dict):
        _syntax(file, "the top level is not a mapping of keys.")
    return data


def find_config(path: Path | None = None, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Path | None:
    """The configuration file that holds: ``path``, else ``$DATA_ASSETS_CONFIG``, else the one in ``cwd``, else none."""
    env = os.environ if env is None else env
    here = (Path.cwd() if cwd is None else cwd).absolute()
    named = path or (Path(env[CONFIG_VARIABLE]) if env.get(CONFIG_VARIABLE) else None)
    if named is not None:
        return _based(named, here)
    found = [here / name for name in FILE_NAMES if os.path.lexists(here / name)]
    if len(found) > 1:
        raise ConfigurationError(
            f"{visible(str(here))}: {' and '.join(f.name for f in found)} both lie there; only one can hold.",
            "Remove or rename one, or choose with --config.",
            file=found[0],
        )
    return found[0] if found else None


def _based(path: Path, folder: Path) -> Path:
    try:
        whole = folder / path.expanduser()
        return whole.resolve() if ".." in whole.parts else whole
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigurationError(
            f"{visible(str(path))}: this path cannot be used ({error}).", "Write it as an absolute path."
        ) from error


# --- checking ------------------------------------------------------------------------------------------------------


class _Problem(NamedTuple):
    key: str
    text: str


def _shown(key: str, value: object) -> str:
    """``value`` for a message, without anything that looks like a secret."""
    text = _URL_LOGIN.sub(r"\1(hidden)@", repr(_masked(key, value)))
    if key.startswith("alerts."):  # an address put where its variable's name belongs is a secret as a whole
        text = re.sub(r"://[^\s'\"]*", "://(hidden)", text)
    return visible(text, 120)


class _Hidden:
    def __repr__(self) -> str:
        return "(hidden)"


def _masked(key: str, value: object) -> object:
    if _SECRET_KEY.search(key):
        return _Hidden()
    if isinstance(value, Mapping):
        return {k: _masked(str(k), v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_masked("", v) for v in value]
    return value.isoformat() if isinstance(value, dt.date | dt.time) else value


def _env_name(key: str) -> str:
    return ENV_PREFIX + key.replace(".", "__").upper()


def _near_keys(key: str) -> list[str]:
    """Valid keys that somebody who wrote ``key`` may have meant: in the same section first, then anywhere."""
    section, _, leaf = key.rpartition(".")
    every = [*_fields(), *(name for name, field in PipelineConfig.model_fields.items() if _section_of(field))]
    beside = {k.rpartition(".")[2]: k for k in every if k.rpartition(".")[0] == section}
    if section:
        nested = {k[len(section) + 1 :].partition(".")[0] for k in every if k.startswith(section + ".")}
        beside.update({n: f"{section}.{n}" for n in nested})
    found = [beside[n] for n in nearest(leaf, beside)]
    leaves = {k.rpartition(".")[2]: k for k in every}
    found += [leaves[n] for n in nearest(leaf, leaves)] if not found else []
    return (found or nearest(key, every))[:3]


class _Checked:
    """File and environment on their way to a model: what is usable, and what is wrong with the rest."""

    def __init__(self, file: Path | None, cwd: Path) -> None:
        self.file = file
        self.cwd = cwd
        self.problems: list[_Problem] = []
        self.from_env: dict[str, str] = {}

    def where(self, key: str) -> str:
        bare = key
        while bare:
            if bare in self.from_env:
                return f"environment variable {self.from_env[bare]}"
            bare = bare.rpartition(".")[0]
        return visible(str(self.file)) if self.file else f"{visible(str(self.cwd))} (no configuration file)"

    def add(self, key: str, value: object, reason: str, allowed: str = "", near: typing.Sequence[str] = ()) -> None:
        text = f"{self.where(key)}: {visible(key)} = {_shown(key, value)}: {reason}."
        text += f" Allowed: {allowed}." if allowed else ""
        text += f" Nearest: {', '.join(near)}." if near else ""
        self.problems.append(_Problem(key, text))

    def known(self, data: Mapping[Any, object], model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
        """``data`` without the keys that ``model`` does not have; each of those is a problem."""
        kept: dict[str, Any] = {}
        for name, value in data.items():
            key = f"{prefix}{name}"
            field = model.model_fields.get(name) if isinstance(name, str) else None
            if field is None:
                keys = ", ".join(model.model_fields)
                self.add(key, value, "no such key", f"{keys}", _near_keys(key))
                continue
            section = _section_of(field)
            if section is None:
                kept[name] = value
            elif isinstance(value, Mapping):
                kept[name] = self.known(value, section, f"{key}.")
            elif value is None:  # a section whose keys are all commented out is empty, but there
                kept[name] = {}
            else:
                self.add(key, value, "not a section", f"a mapping with {', '.join(section.model_fields)}")
        return kept

    def overlay(self, data: dict[str, Any], env: Mapping[str, str]) -> None:
        """Lay the environment over ``data``: sections written as JSON first, then single keys."""
        names = {_env_name(key): key for key in _fields()}
        sections = {_env_name(key): key for key in _section_keys()}
        ours = [n for n in env if n.upper().startswith(ENV_PREFIX) and n not in NOT_SETTINGS]
        ours = [n for n in ours if not n.upper().startswith(ALERT_VARIABLES)]
        for name in sorted(ours, key=lambda n: (n.count("__") + (n in names), n)):
            key = names.get(name) or sections.get(name)
            if key is None:
                near = nearest(name, [*names, *sections, *NOT_SETTINGS])
                is_address = "://" in env[name]  # a channel's, under a name with a typing error
                shown = "(hidden)" if is_address else _shown(name, env[name])
                text = f"environment variable {visible(name)} = {shown}: no such setting."
                text += f" Nearest: {', '.join(near)}." if near else ""
                text += f" Allowed: {ENV_PREFIX}<SECTION>__<KEY>, in capitals, for the keys of the configuration file."
                self.problems.append(_Problem(name, text))
                continue
            self.from_env[key] = name
            try:
                value = _from_text(key, env[name])
            except (ValueError, RecursionError):
                self.add(key, env[name], "not valid JSON", "a JSON list or object" if name in names else "JSON object")
                continue
            *above, leaf = key.split(".")
            target = data
            for part in above:
                target = target.setdefault(part, {})
            if name in names:
                target[leaf] = value
            elif isinstance(value, dict):
                part_of_env = self.known(value, _section_keys()[key], f"{key}.")
                del self.from_env[key]  # from here on only the keys that it sets are the variable's
                self.from_env.update(dict.fromkeys(_leaves(part_of_env, key), name))
                _merge(target.setdefault(leaf, {}), part_of_env)
            else:
                self.add(key, value, "not a section", "a JSON object")

    def build(self, data: dict[str, Any]) -> PipelineConfig | None:
        """The model, or ``None`` with the problems noted."""
        try:
            return PipelineConfig(**data)
        except ValidationError as error:
            fields = _fields()
            for item in error.errors(include_url=False):
                key = ".".join(part for part in item["loc"] if isinstance(part, str))
                while key and key not in fields and "." in key:  # names of union members stand behind the key
                    key = key.rpartition(".")[0]
                if any(problem.key == key for problem in self.problems):
                    continue
                field = fields.get(key)
                value = _dig(data, key, item["input"])
                reason = str(item["ctx"]["error"]) if item["type"] == "value_error" else item["msg"]
                reason = "not a list" if item["type"] == "tuple_type" else reason
                reason = reason.removeprefix("Input ").rstrip(".")
                near: list[str] = []
                if field is not None and isinstance(value, str) and item["type"] == "literal_error":
                    near = nearest(value, [str(a) for p in _parts(field.annotation) for a in typing.get_args(p)])
                allowed = _type_text(field) if field else ""
                if key in self.from_env and allowed.startswith("list"):
                    allowed += ' (as JSON: ["a", "b"])'
                self.add(key, value, reason, allowed, near)
            return None

    def finish(self) -> NoReturn:
        """Raise everything that was found, at once."""
        first = self.problems[0]
        what = first.text
        if len(self.problems) > 1:
            what = f"{len(self.problems)} problems in the configuration:" + "".join(
                f"\n  - {problem.text}" for problem in self.problems
            )
        raise ConfigurationError(
            what, "Correct what is named; a key that is left out has its default.", file=self.file, key=first.key
        )


def _section_keys(model: type[BaseModel] = PipelineConfig, prefix: str = "") -> dict[str, type[BaseModel]]:
    found: dict[str, type[BaseModel]] = {}
    for name, field in model.model_fields.items():
        section = _section_of(field)
        if section is not None:
            found[prefix + name] = section
            found.update(_section_keys(section, f"{prefix}{name}."))
    return found


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for name, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict) and not set(value) <= set(_COLUMN_FORMS):
            _merge(into[name], value)
        else:
            into[name] = value


def _leaves(data: Mapping[str, Any], prefix: str) -> list[str]:
    known = _fields()
    found: list[str] = []
    for name, value in data.items():
        key = f"{prefix}.{name}"
        found += [key] if key in known else _leaves(value, key)
    return found


def _dig(data: Mapping[str, Any], key: str, otherwise: object) -> object:
    found: Any = data
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return otherwise
        found = found[part]
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        msg = "a key stands there twice"
        raise ValueError(msg)
    return dict(pairs)


def _from_text(key: str, text: str) -> object:
    """What an environment variable's text means for ``key``: JSON where the key takes more than a word."""
    field = _fields().get(key)
    if field is None:
        return json.loads(text, object_pairs_hook=_unique)
    members = _parts(field.annotation)
    if type(None) in members and text == "null":
        return None
    opens = {"[" for m in members if typing.get_origin(m) is tuple}
    opens |= {"{" for m in members if m in (SqlExpression, ConstantNumber) or typing.get_origin(m) is dict}
    if text.lstrip()[:1] in opens:
        return json.loads(text, object_pairs_hook=_unique)
    return text


def load_config(
    path: Path | None = None, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> PipelineConfig:
    """The settings that hold: defaults, then the file, then the environment; paths absolute.

    Args:
        path: the file (``--config``); default ``$DATA_ASSETS_CONFIG``, else ``pipeline.yaml`` and its kin in ``cwd``.
        env: the environment; default that of the process.
        cwd: the working directory; default that of the process.

    Raises:
        ConfigurationError: with every problem that was found.
    """
    env = os.environ if env is None else env
    here = (Path.cwd() if cwd is None else cwd).absolute()
    file = find_config(path, env, here)
    checked = _Checked(file, here)
    data = checked.known(read_settings(file), PipelineConfig) if file else {}
    checked.overlay(data, env)
    config = checked.build(data)
    if config is None or checked.problems:
        checked.finish()
    base = file.parent if file else here
    source, drift, lookup = config.source, config.schema_drift, config.cleaning.lookup
    keeping = config.retention
    if source.directory:
        source = source.model_copy(update={"directory": _based(source.directory, base)})
    if keeping.raw_move_to:
        keeping = keeping.model_copy(update={"raw_move_to": _based(keeping.raw_move_to, base)})
    if lookup.file:
        lookup = lookup.model_copy(update={"file": _based(lookup.file, base)})
    return config.model_copy(
        update={
            "data_dir": _based(config.data_dir, base),
            "source": source,
            "schema_drift": drift.model_copy(update={"accepted": _based(drift.accepted, base)}),
            "cleaning": config.cleaning.model_copy(update={"lookup": lookup}),
            "retention": keeping,
        }
    )
