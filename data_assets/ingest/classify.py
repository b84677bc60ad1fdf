"""What is valid, what is refused and why, and on which day a row counts.

Here: the rules of a valid row (DESIGN.md), the count of a file's days, and the one pass that writes both sides. Not
here: reading (``opening.py`` and the module of each format), types (``values.py``), duplicates, which cross files.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import polars as pl

from data_assets.config import COLUMNS
from data_assets.contracts import QUARANTINED_EVENTS, tables
from data_assets.engine import chosen, scan_named
from data_assets.ingest import values
from data_assets.ingest.mapping import Source, blank_to_null, bound, numbers_in, sources
from data_assets.ingest.records import EMPTY, HELPERS, LINE, MALFORMED, RECORD, Records, collected
from data_assets.reasons import REASONS
from data_assets.storage import LOOKED_AT, arrow_schema, parquet_options, row_group, rows_of, text_length

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from data_assets.config import PipelineConfig

ROW_GROUP_PARTS, ROW_GROUP_MANY_DAYS = 65_536, 8_192  # of what is read once and thrown away
# Of rows that are few among others: a row group waits in as many pieces as it has sources, with 8 KB a text in each.
ROW_GROUP_FEW = 4_096
FEW_DAYS = 8
WHOLE_DAY = "whole.parquet"
REST = "rest.parquet"
DAYS = pl.Schema({"day": pl.Date(), "rows": pl.Int64()})
DAY = "__day"  # on which a row counts, until that tells where it is written; files have columns called "day"
_TIMES = ("session_start", "session_end")
_TEXTS = ("event_type", "metadata")
_GIVEN = "__given_"
_VALUE = "__value_"
_FAILED = "__failed_"
_REFUSED = "__refused"
_CLEAN = "__clean"
_PART = "__part"
_SAMPLE = 1_000
_MOSTLY = 0.5  # with fewer, to judge every row at once is no dearer
_DAY = pl.col(_VALUE + "session_start").dt.date().alias(DAY)
KINDS = ("valid", "mended", "quarantined")


def count_days(records: Records, relative: str, config: PipelineConfig) -> pl.DataFrame:
    """How many records each day has; day null where the start time cannot be read. One pass over the time column.

    Raises:
        SourceFileError: the file turns out to be damaged.
        ConfigurationError: the mapping's SQL does not fit the file.
    """
    if records.physical_rows == 0:
        return pl.DataFrame(schema=DAYS)
    source = sources(records, relative, config)["session_start"]
    form = _form(records, source, relative)
    given = bound(records.frame, [source]).select(
        _given(source, config, is_text=False).alias("session_start"), MALFORMED
    )
    formats, zone = config.source.timestamp_formats, config.timezone
    # Where the order does not matter, the engine reads all pieces of a long Parquet file at once (columnar.py).
    is_ordered = records.format == "parquet"
    if source.dtype == pl.String:  # most are read at first sight; only where some are left are those looked at
        first, is_whole = values.quick_time(pl.col("session_start"), formats, zone, form), ~pl.col(MALFORMED)
        of_days = given.group_by(day=pl.when(is_whole).then(first).dt.date(), maintain_order=is_ordered).agg(
            rows=pl.len(), left=is_whole.sum().cast(pl.UInt32)
        )
        [read] = collected([of_days], relative)
        is_left = pl.col("day").is_null()
        counted = read.select("day", rows=pl.when(is_left).then(pl.col("rows") - pl.col("left")).otherwise("rows"))
        if read.filter(is_left)["left"].sum():
            missed = given.filter(first.is_null() & is_whole)
            left = missed.group_by("session_start", maintain_order=is_ordered).agg(rows=pl.len())
            [texts] = collected([left], relative)
            second = values.time(texts.lazy(), "session_start", source.dtype, formats, zone, form)
            later = second.select(day=pl.col("session_start").dt.date(), rows="rows").collect(engine=chosen())
            counted = pl.concat([counted, later])
    else:
        typed = values.time(given, "session_start", source.dtype, formats, zone, form)
        of_days = typed.group_by(day=pl.col("session_start").dt.date(), maintain_order=is_ordered).agg(rows=pl.len())
        [counted] = collected([of_days], relative)
    return _by_day(counted.with_columns(pl.col("rows").cast(pl.Int64)))


def _by_day(counted: pl.DataFrame) -> pl.DataFrame:
    """Each day once, null too, if it has rows."""
    return counted.group_by("day").agg(pl.col("rows").sum()).filter(pl.col("rows") > 0).sort("day")


def classify(records: Records, relative: str, home_day: dt.date, config: PipelineConfig) -> pl.LazyFrame:
    """Every record, typed as far as it can be read, with the reasons that speak against it (none: it is valid).

    Columns: those of ``raw_events`` with the extra source columns that are kept, without those called like the columns
    that follow: ``reasons``, ``record``, ``home_day``, ``day``. A row before ``start_date`` counts, like one without a
    readable start, on the home day.
    """
    rules = _rules(records, relative, home_day, config)
    said = {
        "reasons": rules.reasons,
        "record": rules.record,
        "home_day": pl.lit(home_day),
        "day": pl.col(DAY),
    }
    columns = (column for column in rules.columns if column.meta.output_name() not in said)
    return rules.base.select(*columns, *rules.place, **said)


def all_at_sight(records: Records, relative: str, config: PipelineConfig) -> pl.LazyFrame | None:
    """``user_id`` and ``day`` of the rows of a small file that reads at first sight, all of which are valid.

    ``None`` of any other file. ``classify`` comes to the same, and takes three times as long.

    Raises:
        SourceFileError: the file turns out to be damaged.
        ConfigurationError: the mapping's SQL does not fit the file.
    """
    quick = _quick(records, relative, config) if 0 < records.physical_rows <= _SAMPLE else None
    return None if quick is None else quick.rows(relative).select("user_id", day=DAY)


def split_file(
    records: Records,
    relative: str,
    home_day: dt.date,
    days: Collection[dt.date] | None,
    config: PipelineConfig,
    out_dir: Path,
    *,
    is_all: bool = False,
) -> None:
    """Write the rows of each day, valid and refused, as Parquet files below ``out_dir``, in one pass over the file.

    In ``valid``, ``mended`` and ``quarantined``, a folder ``__day=…`` each: mended rows are valid ones in a form that
    took a second look; ``source_line`` says where they belong among the others. In each the rows stand in file order;
    valid and mended ones have no ``source_file``, which is the same for all. ``days`` limits what is written.
    ``is_all``: the valid rows are all that the one day has, so those that are not mended are written as the lake has
    them, with their ``source_file``, in a file called WHOLE_DAY.

    Raises:
        SourceFileError: the file turns out to be damaged.
        ConfigurationError: the mapping's SQL does not fit the file.
    """
    _make_folders(out_dir)
    if records.physical_rows == 0:
        return
    quick = _quick(records, relative, config)
    if quick is None:
        _split(records, relative, home_day, days, config, (out_dir / "valid", out_dir / "quarantined"), is_all=is_all)
        return
    rows = replace(quick, frame=quick.frame.filter(_CLEAN)).rows(relative)
    plain = rows if is_all else rows.drop("source_file")
    if days is not None:
        plain = plain.filter(pl.col(DAY).is_in(sorted(days)))
    sink = _sink(plain, out_dir / "valid", days, relative, is_all=is_all)
    if quick.is_all:
        collected([sink], relative)
        return
    _sift(records, relative, [sink], quick.frame.filter(~pl.col(_CLEAN)), out_dir)
    finish_split(records, relative, home_day, days, config, out_dir)


def split_unseen(records: Records, relative: str, config: PipelineConfig, out_dir: Path) -> pl.DataFrame | None:
    """Split a file before its days are known, and say which they are as ``count_days`` does: one pass in place of two.

    What reads at first sight is written below ``out_dir`` as ``split_file`` has it; ``finish_split`` is for the rest. A
    file whose first rows are all of one day is taken for all that this day has, see ``is_all``.

    Returns:
        ``None``, with nothing written, where few rows would read at first sight.

    Raises:
        SourceFileError: the file turns out to be damaged.
    """
    quick = _quick(records, relative, config)
    if quick is None:
        return None
    _make_folders(out_dir)
    valid = out_dir / "valid"
    if quick.is_all and quick.day is not None:
        collected([_sink(quick.rows(relative), valid, [quick.day], relative, is_all=True)], relative)
        return pl.DataFrame([(quick.day, rows_of(valid.rglob("*.parquet")))], schema=DAYS, orient="row")
    # A column of its own: of conditions within the filters the engine would do all that is before them twice.
    is_likely = pl.lit(value=False) if quick.day is None else _starts_on(quick.day)
    part = pl.when(~pl.col(_CLEAN)).then(0).when(is_likely).then(1).otherwise(2)
    rest, likely, other = (
        replace(quick, frame=quick.frame.with_columns(part.alias(_PART)).filter(pl.col(_PART) == n)) for n in range(3)
    )
    sinks = [] if quick.day is None else [_sink(likely.rows(relative), valid, [quick.day], relative, is_all=True)]
    others = other.rows(relative).drop("source_file")
    sinks.append(_sink(_copied(others) if sinks else others, valid, None, relative))
    _sift(records, relative, sinks, rest.frame, out_dir)
    found = [
        (dt.date.fromisoformat(folder.name.partition("=")[2]), rows_of(list(folder.iterdir())))
        for folder in valid.iterdir()
    ]
    left = _left(records, out_dir)
    counts = [pl.DataFrame(found, schema=DAYS, orient="row"), *([count_days(left, relative, config)] if left else [])]
    return _by_day(pl.concat(counts))


def _starts_on(day: dt.date) -> pl.Expr:
    """Whether a row counts on this day; to make a date of each start takes seven times as long."""
    first, last = dt.datetime.combine(day, dt.time.min), dt.datetime.combine(day, dt.time.max)
    return pl.col(_VALUE + "session_start").is_between(
        pl.lit(first, pl.Datetime("us")), pl.lit(last, pl.Datetime("us"))
    )


def finish_split(
    records: Records,
    relative: str,
    home_day: dt.date,
    days: Collection[dt.date] | None,
    config: PipelineConfig,
    out_dir: Path,
) -> None:
    """Every rule on what the first sight left over; then ``out_dir`` is as ``split_file`` leaves it.

    ``records``: as they were split; only those that are left over are read.
    """
    left = _left(records, out_dir)
    if left is not None:
        targets = (out_dir / "mended", out_dir / "quarantined")
        _split(left, relative, home_day, days, config, targets, is_all=False)
    (out_dir / REST).unlink(missing_ok=True)


def _make_folders(out_dir: Path) -> None:
    for kind in KINDS:
        (out_dir / kind).mkdir(parents=True, exist_ok=True)


def _sift(records: Records, relative: str, sinks: list[pl.LazyFrame], rest: pl.LazyFrame, out_dir: Path) -> None:
    """Write what reads at first sight by ``sinks``, and ``rest`` as it stands."""
    read = [name for name in records.frame.collect_schema() if name not in HELPERS]  # of JSON not every key is
    left = _copied(rest.select(*read, LINE, MALFORMED, records.record.alias(RECORD), records.empty.alias(EMPTY)))
    rest_sink = left.sink_parquet(out_dir / REST, compression="uncompressed", row_group_size=ROW_GROUP_FEW, lazy=True)
    collected([*sinks, rest_sink], relative)


def _copied(frame: pl.LazyFrame) -> pl.LazyFrame:
    """The same with texts copied: as they come, each holds the whole buffer that it was read from."""
    schema = frame.collect_schema()
    return frame.with_columns(pl.concat_str(n, pl.lit("")).alias(n) for n, t in schema.items() if t == pl.String)


def _left(records: Records, out_dir: Path) -> Records | None:
    """What the first sight left over; ``None`` when that is nothing."""
    path = out_dir / REST
    rows = rows_of([path]) if path.exists() else 0
    if not rows:
        return None
    frame = scan_named(path)
    return replace(records, frame=frame, physical_rows=rows, record=pl.col(RECORD), empty=pl.col(EMPTY))


def _split(
    records: Records,
    relative: str,
    home_day: dt.date,
    days: Collection[dt.date] | None,
    config: PipelineConfig,
    targets: tuple[Path, Path],
    *,
    is_all: bool,
) -> None:
    """Every rule on every record. ``targets``: the folders for valid and for refused ones."""
    rules = _rules(records, relative, home_day, config)
    base = rules.base if days is None else rules.base.filter(pl.col(DAY).is_in(sorted(days)))
    file, line = rules.place
    valid = base.filter(~pl.col(_REFUSED)).select(*rules.columns, *([file] if is_all else []), line, DAY)
    refused = (
        base.filter(_REFUSED)
        .with_columns(
            *rules.place,
            rules.reasons.alias("reasons"),
            rules.record.alias("record"),
            pl.lit(home_day).alias("home_day"),
        )
        .select(*QUARANTINED_EVENTS.names, DAY)
    )
    valid_dir, quarantined_dir = targets
    few = _sink(refused, quarantined_dir, days, relative, most=ROW_GROUP_FEW)
    collected([_sink(valid, valid_dir, days, relative, is_all=is_all), few], relative)


@dataclass(frozen=True)
class _Quick:
    """The records with ``__clean``, and the columns of a valid row, which hold where that is true.

    Attributes:
        day: that of the first rows, where they have one and the same.
        is_all: every row reads at first sight; of a small file that is known.
    """

    frame: pl.LazyFrame
    columns: list[pl.Expr]
    day: dt.date | None
    is_all: bool

    def rows(self, relative: str) -> pl.LazyFrame:
        """The frame's rows as the lake has them, with their day."""
        place = [pl.lit(relative).alias("source_file"), pl.col(LINE).alias("source_line")]
        return self.frame.select_seq(*self.columns, *place, _DAY)


def _quick(records: Records, relative: str, config: PipelineConfig) -> _Quick | None:
    """The rules as they are for a row that reads at first sight; ``None`` where few rows would.

    On such a row they come to the same as ``_rules``; looking no further at it saves a third of the time.
    """
    found, source = sources(records, relative, config), config.source
    required = _required(config)
    whole = source.types.user_id == "int64"
    texts = _TEXTS if whole else (*_TEXTS, "user_id")
    plain = all(s.value is None or (not s.names and _is_quick(n, s.dtype, texts)) for n, s in found.items())
    # A row that may lack its start counts on the home day, and one in which nothing stands is no row.
    absent = "session_start" not in required or any(found[name].value is None for name in required)
    parted = source.csv.decimal_comma or source.csv.thousands is not None
    if not plain or absent or parted or _may_be_read(config):
        return None
    sample = collected([records.frame.head(_SAMPLE)], relative)[0].lazy()
    given = {n: _given(s, config, is_text=n in texts, must=n in required) for n, s in found.items()}
    typed = given | {n: value for n in texts if n in required and (value := found[n].value) is not None}
    is_text = {n: s.dtype == pl.String for n, s in found.items()}
    if whole:
        user_id, dtype = given["user_id"], found["user_id"].dtype
        is_cast = is_text["user_id"]
        typed["user_id"] = user_id.cast(pl.Int64, strict=False) if is_cast else values.whole_number(user_id, dtype)
    value, dtype = given["value"], found["value"].dtype
    typed["value"] = value.cast(pl.Float64, strict=False) if is_text["value"] else values.number(value, dtype)
    for name in _TIMES:
        dtype = found[name].dtype
        if isinstance(dtype, pl.Datetime | pl.Date):
            typed[name] = values.native_time(given[name], dtype, config.timezone)
            continue
        form = values.common_form(sample.select(x=given[name]).collect(engine="in-memory")["x"])
        typed[name] = values.quick_time(given[name], source.timestamp_formats, config.timezone, form)
    nulls = _nulls(config, must=True)
    read = {n: pl.col(_VALUE + n).is_not_null() for n in COLUMNS if n not in texts}
    read["value"] = pl.col(_VALUE + "value").is_finite().fill_null(value=False)
    blank = {n: (given[n] == "").fill_null(value=True) if is_text[n] else given[n].is_null() for n in read}
    read |= {n: blank[n] | read[n] for n in read if n not in required}
    read |= {n: _is_said(pl.col(_VALUE + n), nulls) for n in texts if n in required}
    refused = [*_quality_flags(config).values(), pl.col(MALFORMED)]
    clean = pl.all_horizontal(*read.values(), *(~r.fill_null(value=False) for r in refused))

    def judged(frame: pl.LazyFrame) -> pl.LazyFrame:
        return frame.with_columns_seq(typed[n].alias(_VALUE + n) for n in COLUMNS).with_columns(clean.alias(_CLEAN))

    # Of a small file all rows were looked at, and are not again: if one is left over, every rule is asked at once.
    is_small = records.physical_rows <= _SAMPLE
    least = 1.0 if is_small else _MOSTLY
    looked = judged(sample).collect(engine="in-memory")
    clean_days = looked.select(_DAY.filter(_CLEAN)).to_series()
    first, last = clean_days.min(), clean_days.max()
    if looked[_CLEAN].sum() < least * looked.height:
        return None
    contract = tables(source.types.user_id)["raw_events"].schema
    columns = [pl.col(_VALUE + n).cast(contract[n]).alias(n) for n in COLUMNS]
    every = [*columns, *_extra(records, found, config, set(contract))]
    frame = looked.lazy() if is_small else judged(records.frame)
    return _Quick(frame, every, first if isinstance(first, dt.date) and first == last else None, is_small)


def _is_quick(name: str, dtype: pl.DataType, texts: Collection[str]) -> bool:
    """Whether a column of this type can be read at first sight."""
    if dtype == pl.String:
        return True
    return isinstance(dtype, pl.Datetime | pl.Date) if name in _TIMES else name not in texts and dtype.is_numeric()


def _sink(
    frame: pl.LazyFrame,
    target: Path,
    days: Collection[dt.date] | None,
    relative: str,
    *,
    is_all: bool = False,
    most: int | None = None,
) -> pl.LazyFrame:
    """The frame on its way to a file for each day; not compressed when it is read once and thrown away."""
    if is_all:
        [day] = days or ()
        rows, length, told = frame.drop(DAY), 0.0, None
        schema = rows.collect_schema()
        if chosen() == "streaming":  # few rows are one row group in any case
            [first] = collected([rows.head(LOOKED_AT)], relative)
            length = text_length(first.lazy())
            # Of one name for all rows none is looked up: a tenth of writing. Who reads the file finds text as ever.
            rows, told = rows.with_columns(source_file=pl.lit(relative, pl.Enum([relative]))), arrow_schema(schema)
        path, how = _folder(target, day) / WHOLE_DAY, parquet_options(len(schema), length)
        return rows.sink_parquet(path, mkdir=True, lazy=True, metadata=told, **how)
    few = days is not None and len(days) <= FEW_DAYS
    size = min(row_group(len(frame.collect_schema())), most or (ROW_GROUP_PARTS if few else ROW_GROUP_MANY_DAYS))
    how = {"compression": "uncompressed", "row_group_size": size}
    if days is not None and len(days) == 1:
        path = _folder(target, next(iter(days))) / "0.parquet"
        return frame.drop(DAY).sink_parquet(path, mkdir=True, lazy=True, **how)
    return frame.sink_parquet(pl.PartitionBy(target, key=DAY, include_key=False), mkdir=True, lazy=True, **how)


def _folder(target: Path, day: dt.date) -> Path:
    """As the engine calls the parts of a day."""
    return target / f"{DAY}={day}"


@dataclass(frozen=True)
class _Rules:
    """The typed frame with ``__refused`` and ``__day``, and what is taken from it.

    Attributes:
        columns: what the source says, as a valid row has it.
        place: ``source_file`` and ``source_line``.
        reasons: the list of reasons.
        record: the record as it stood.
    """

    base: pl.LazyFrame
    columns: list[pl.Expr]
    place: list[pl.Expr]
    reasons: pl.Expr
    record: pl.Expr


def _rules(records: Records, relative: str, home_day: dt.date, config: PipelineConfig) -> _Rules:
    found = sources(records, relative, config)
    written, whole = numbers_in(records, config), config.source.types.user_id == "int64"
    texts = _TEXTS if whole else (*_TEXTS, "user_id")
    given = {
        n: _given(s, config, is_text=n in texts, must=n in _required(config)).alias(_GIVEN + n)
        for n, s in found.items()
    }
    frame, record = records.frame, records.record
    if any(s.names for s in found.values()):  # SQL may hide columns that the record is made of
        frame, record = frame.with_columns(record.alias(RECORD)), pl.col(RECORD)
    frame = frame.with_columns(e for n, e in given.items() if not found[n].names)
    frame = (
        bound(frame, found.values())
        .with_columns(
            *(e for n, e in given.items() if found[n].names),
            *(s.unreadable.alias(_FAILED + n) for n, s in found.items() if s.unreadable is not None),
        )
        .with_columns(pl.col(_GIVEN + n).alias(_VALUE + n) for n in COLUMNS)
    )
    for name in _TIMES:
        frame = values.time(
            frame, _VALUE + name, found[name].dtype, config.source.timestamp_formats, config.timezone,
            _form(records, found[name], relative),
        )  # fmt: skip
    user_id = pl.col(_VALUE + "user_id")
    user_type = found["user_id"].dtype
    frame = frame.with_columns(
        (values.whole_number(user_id, user_type) if whole else values.text(user_id, user_type)).alias(
            _VALUE + "user_id"
        ),
        values.number(
            pl.col(_VALUE + "value"),
            found["value"].dtype,
            decimal_comma=written.decimal_comma,
            thousands=written.thousands,
        ).alias(_VALUE + "value"),
        *(values.text(pl.col(_VALUE + n), found[n].dtype).alias(_VALUE + n) for n in ("event_type", "metadata")),
    )
    frame = frame.with_columns(
        _left_blank(n, config) for n, s in found.items() if n not in texts and s.dtype == pl.String
    )
    # A record in which nothing stands lacks its start: where that is required, no other field has to be looked at.
    is_missed = found["session_start"].uses and "session_start" in config.source.required
    broken = pl.col(MALFORMED) if is_missed else pl.col(MALFORMED) | pl.col(EMPTY)
    if not is_missed:
        frame = frame.with_columns(records.empty.alias(EMPTY))
    start = pl.col(_VALUE + "session_start").dt.date()
    day = pl.when(~broken & (start >= config.start_date)).then(start).otherwise(pl.lit(home_day))
    frame = frame.with_columns(day.alias(DAY))
    flags = _flags(found, config)
    base = frame.with_columns((pl.any_horizontal([broken, *flags.values()])).alias(_REFUSED))
    listed = [pl.when(flag).then(pl.lit(code)) for code, flag in flags.items()]
    said = (
        pl.when(records.empty if is_missed else pl.col(EMPTY))
        .then(pl.lit("empty_row"))
        .when(MALFORMED)
        .then(pl.lit("malformed_record"))
        .otherwise(pl.concat_str(listed, separator=",", ignore_nulls=True))
    )
    # As text: putting lists together was most of what a refused row cost.
    reasons = pl.when(said == "").then(pl.lit([], pl.List(pl.String))).otherwise(said.str.split(","))
    contract = tables(config.source.types.user_id)["raw_events"].schema
    columns: list[pl.Expr] = [pl.col(_VALUE + n).cast(contract[n]).alias(n) for n in COLUMNS]
    columns += _extra(records, found, config, set(contract))
    place = [pl.lit(relative).alias("source_file"), pl.col(LINE).alias("source_line")]
    return _Rules(base, columns, place, reasons, record)


def _given(source: Source, config: PipelineConfig, *, is_text: bool, must: bool = True) -> pl.Expr:
    """The source's value, null where its text means "no value".

    Of numbers and times only those that could not be read are looked at, later, by ``_left_blank``; unless a text that
    means "no value" could itself be read, like -1.
    """
    if source.value is None:
        return pl.lit(None, source.dtype)
    if source.dtype != pl.String or not (is_text or _may_be_read(config)):
        return source.value
    return blank_to_null(source.value, _nulls(config, must=must or not is_text))


def _required(config: PipelineConfig) -> tuple[str, ...]:
    """Our columns without which a row is refused."""
    dropped = ("value",) if config.cleaning.missing_value == "drop" else ()
    return (*config.source.required, *dropped)


def _may_be_read(config: PipelineConfig) -> bool:
    return any(character.isdigit() for null in config.source.null_values for character in null)


def _nulls(config: PipelineConfig, *, must: bool) -> list[str]:
    """Texts that mean "no value"; where there must be one, nothing at all does too."""
    nulls = list(config.source.null_values)
    return [*nulls, ""] if must and "" not in nulls else nulls


def _is_said(text: pl.Expr, nulls: list[str]) -> pl.Expr:
    """Whether a text is one that ``blank_to_null`` leaves as it is, at first sight."""
    last = text.cast(pl.Binary).bin.get(-1, null_on_oob=True)  # in half the time that the end of a text takes
    return ((text >= "!") & (last != ord(" ")) & ~text.is_in(nulls)).fill_null(value=False)


def _left_blank(name: str, config: PipelineConfig) -> pl.Expr:
    """What was given where no value could be read from it, null where that was "no value"."""
    unread = pl.when(pl.col(_VALUE + name).is_null()).then(pl.col(_GIVEN + name))
    return blank_to_null(unread, _nulls(config, must=True)).alias(_GIVEN + name)


def _flags(found: dict[str, Source], config: PipelineConfig) -> dict[str, pl.Expr]:
    """Reason to the expression that says whether it holds; never null."""
    flags: dict[str, pl.Expr] = {}
    for name in COLUMNS:
        value, given = pl.col(_VALUE + name), pl.col(_GIVEN + name)
        unreadable = value.is_null() & given.is_not_null()
        if found[name].unreadable is not None:
            unreadable |= value.is_null() & pl.col(_FAILED + name)
        missing = value.is_null()
        if f"unreadable_{name}" in REASONS:
            flags[f"unreadable_{name}"] = unreadable
            missing &= ~unreadable
        if name in _required(config):
            flags[f"missing_{name}"] = missing
    flags |= _quality_flags(config)
    return {code: flags[code].fill_null(value=False) for code in REASONS if code in flags}


def _quality_flags(config: PipelineConfig) -> dict[str, pl.Expr]:
    """The reasons that speak against values that could be read; null where there is none."""
    start, number = pl.col(_VALUE + "session_start"), pl.col(_VALUE + "value")
    flags = {"before_start_date": start < pl.lit(config.start_date, pl.Datetime("us"))}
    quality = config.quality
    is_refused = config.cleaning.bounds == "quarantine"
    if is_refused and quality.value_min is not None:
        flags["value_out_of_range"] = number < quality.value_min
    if is_refused and quality.value_max is not None:
        flags["value_out_of_range"] = flags.get("value_out_of_range", pl.lit(value=False)) | (
            number > quality.value_max
        )
    if quality.required_event_types is not None:
        flags["unknown_event_type"] = ~pl.col(_VALUE + "event_type").is_in(list(quality.required_event_types))
    return flags


def _extra(records: Records, found: dict[str, Source], config: PipelineConfig, ours: set[str]) -> list[pl.Expr]:
    """The source's columns that nothing maps, as text, when they are kept."""
    if config.source.extra_columns != "keep":
        return []
    mapped = {c for s in found.values() for c in s.uses}
    schema = records.frame.collect_schema()
    taken = ours | set(records.columns)
    result: list[pl.Expr] = []
    for name in records.columns:
        if name in mapped:
            continue
        target, suffix = name, 2
        while target in ours or (target != name and target in taken):
            target, suffix = f"{name}_{suffix}", suffix + 1
        taken.add(target)
        result.append(values.text(pl.col(name), schema[name]).alias(target))
    return result


def _form(records: Records, source: Source, relative: str) -> str:
    """Which form of time the file's first rows have."""
    if source.value is None or source.dtype != pl.String:
        return values.common_form(pl.Series([], dtype=pl.String))
    sample = bound(records.frame, [source]).select(source.value.alias("x")).head(values.SAMPLE)
    return values.common_form(collected([sample], relative)[0]["x"])
