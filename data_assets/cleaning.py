"""What is changed in the valid rows of a day, as configured: bounds, missing values, a lookup, standardised values.

Here: plain functions from one day's events to the same rows in the same order with other values or more columns, each
with its impact, and reading the lookup file. Not here: rows that are refused instead (``bounds: quarantine`` and
``missing_value: drop`` are rules of ``ingest/``), duplicates (``staging.py``), the arithmetic (``metrics.py``).

Order: bounds, missing values, lookup, standardised values; each sees what the ones before it made. So a mean is one of
clipped values, a filled value is not held against the bounds, and z-scores include filled values.

Only aggregates are collected (a few numbers per event type), and for ``previous`` 12 bytes for each value that is
filled; to find those, a long day is parted by users on disk, and one part after the other is sorted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import polars as pl
from polars.exceptions import PanicException, PolarsError

from data_assets import metrics, quantities
from data_assets.config import ConstantNumber
from data_assets.errors import ConfigurationError, nearest, visible
from data_assets.ingest import columnar
from data_assets.metrics import START, TYPE, USER, VALUE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from data_assets.config import LookupConfig, PipelineConfig

NOTE = "cleaning"
OUT_OF_RANGE, ZSCORE, MINMAX = "value_out_of_range", "value_zscore", "value_minmax"
LOOKUP_PREFIX = "lookup_"
SCORE_DECIMALS = 6
SORTED_ROWS = 2_000_000  # about as many rows are sorted at a time
_KEY, _ROW, _FILL, _BASE, _SPAN = (
    "__cleaning_key",
    "__cleaning_row",
    "__cleaning_fill",
    "__cleaning_base",
    "__cleaning_span",
)


class Cleaned(NamedTuple):
    """The day's events, same rows in the same order, and what was done to how many of them."""

    events: pl.LazyFrame
    rows: dict[str, int]


@dataclass(frozen=True)
class Impact:
    """What cleaning did to a day.

    Attributes:
        policies: the keys of the section ``cleaning`` that were on, with their setting in words; empty when none was.
        rows: how many rows each of them touched, e.g. ``{"clipped_values": 3}``.
    """

    policies: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def notes(self) -> dict[str, str]:
        """The entry to keep with the day; none when no policy was on."""
        return {NOTE: json.dumps({"policies": self.policies, "rows": self.rows})} if self.policies else {}


def noted_impact(notes: Mapping[str, str]) -> Impact:
    """The impact on a published day, from its notes."""
    return Impact(**json.loads(notes[NOTE])) if NOTE in notes else Impact()


def clean(
    events: pl.LazyFrame, quarantined: pl.LazyFrame, config: PipelineConfig, lookup: pl.DataFrame | None
) -> tuple[pl.LazyFrame, Impact]:
    """Apply what is configured to one day.

    Args:
        events: valid rows, after deduplication, in their order.
        quarantined: refused rows of the day; only counted.
        config: what pipeline.yaml says.
        lookup: from :func:`read_lookup`.
    """
    cleaning, quality = config.cleaning, config.quality
    policies: dict[str, str] = {}
    rows: dict[str, int] = {}
    if cleaning.bounds != "quarantine":
        policies["bounds"] = cleaning.bounds
        bound = clip_values if cleaning.bounds == "clip" else flag_values
        events, found = bound(events, quality.value_min, quality.value_max)
        rows |= found
    if cleaning.missing_value != "keep":
        how = cleaning.missing_value
        policies["missing_value"] = f"constant {how.constant:g}" if isinstance(how, ConstantNumber) else how
        if how == "drop":
            found = {"dropped_values": _dropped(quarantined)}
        else:
            number = how.constant if isinstance(how, ConstantNumber) else how
            events, found = fill_values(events, number, config.scratch_dir)
        rows |= found
    if lookup is not None:
        policies["lookup"] = cleaning.lookup.key
        events, found = look_up(events, cleaning.lookup.key, lookup)
        rows |= found
    if cleaning.standardise != "none":
        policies["standardise"] = cleaning.standardise
        events, found = standardise(events, cleaning.standardise)
        rows |= found
    return events, Impact(policies, rows)


def _dropped(quarantined: pl.LazyFrame) -> int:
    is_dropped = pl.col("reasons").list.contains("missing_value")
    return int(quarantined.select(is_dropped.sum()).collect(engine="streaming").item())


# ---- Policies ----------------------------------------------------------------------------------------------------


def clip_values(events: pl.LazyFrame, least: float | None, most: float | None) -> Cleaned:
    """Values below ``least`` become ``least``, those above ``most`` become ``most``. Counted: ``clipped_values``."""
    rows = {"clipped_values": _count(events, _is_out_of_range(least, most))}
    return Cleaned(events.with_columns(pl.col(VALUE).clip(least, most)), rows)


def flag_values(events: pl.LazyFrame, least: float | None, most: float | None) -> Cleaned:
    """Adds ``value_out_of_range`` (Boolean; false where there is no value). Counted: ``flagged_values``."""
    is_out = _is_out_of_range(least, most)
    events = _make_room(events, [OUT_OF_RANGE])
    return Cleaned(events.with_columns(is_out.alias(OUT_OF_RANGE)), {"flagged_values": _count(events, is_out)})


def _is_out_of_range(least: float | None, most: float | None) -> pl.Expr:
    value = pl.col(VALUE)
    is_below = value < least if least is not None else pl.lit(value=False)
    is_above = value > most if most is not None else pl.lit(value=False)
    return (is_below | is_above).fill_null(value=False)


def fill_values(
    events: pl.LazyFrame, how: float | Literal["mean", "median", "previous"], scratch: Path | None = None
) -> Cleaned:
    """Missing values become a number, the mean or median of the event type, or the user's value before.

    A type without any value leaves them missing, and so does a user without a value before. "Before" is by
    (session_start, place in the day's order of files and lines). Counted: ``filled_values``, ``still_missing_values``.
    ``scratch``: where a long day is parted; without it the rows of users who miss a value are sorted at once.
    """
    missing = _count(events, pl.col(VALUE).is_null())
    if not isinstance(how, str):
        events, filled = events.with_columns(pl.col(VALUE).fill_null(how)), missing
    elif how == "previous":
        events, filled = _filled_from_before(events, scratch)
    else:
        events, filled = _filled_by_type(events, how)
    return Cleaned(events, {"filled_values": filled, "still_missing_values": missing - filled})


def _filled_by_type(events: pl.LazyFrame, how: Literal["mean", "median"]) -> tuple[pl.LazyFrame, int]:
    types = metrics.type_means(events)
    if how == "median":
        types = types.join(metrics.type_medians(events), on=TYPE)
    filling = types.filter(pl.col("count") > 0)
    return _filled(events, filling.select(TYPE, pl.col(how).alias(_FILL)), TYPE), int(filling["nulls"].sum())


def _filled_from_before(events: pl.LazyFrame, scratch: Path | None) -> tuple[pl.LazyFrame, int]:
    events = _make_room(events, [_ROW])
    rows = events.select(pl.len()).collect(engine="streaming").item()
    numbered = events.select(USER, START, VALUE).with_row_index(_ROW)
    count = min(quantities.MOST_PARTS, 1 + rows // SORTED_ROWS)
    if scratch is None or count == 1:
        found = _values_before(numbered)
    else:
        with quantities.parts_on_disk(numbered, rows, pl.col(USER).hash() % count, scratch) as parts:
            found = pl.concat(map(_values_before, parts))
    return _filled(events.with_row_index(_ROW), found, _ROW).drop(_ROW), found.height


def _values_before(numbered: pl.LazyFrame) -> pl.DataFrame:
    """Row number and filling of each row that misses a value and whose user has one before."""
    asked = numbered.filter(pl.col(VALUE).is_null())
    known = numbered.filter(pl.col(VALUE).is_not_null()).join(asked.select(USER).unique(), on=USER, how="semi")
    owner = pl.when(pl.col(VALUE).is_not_null()).then(pl.col(USER))
    return (
        pl.concat([asked, known])
        .sort(USER, START, _ROW)
        .select(
            _ROW,
            pl.col(VALUE).forward_fill().alias(_FILL),
            (pl.col(VALUE).is_null() & (owner.forward_fill() == pl.col(USER))).alias("is_found"),
        )
        .filter("is_found")
        .select(_ROW, _FILL)
        .collect(engine="streaming")
    )


def _filled(events: pl.LazyFrame, filling: pl.DataFrame, key: str) -> pl.LazyFrame:
    joined = _joined(_make_room(events, [_FILL]), filling, key)
    return joined.with_columns(pl.col(VALUE).fill_null(pl.col(_FILL))).drop(_FILL)


def look_up(events: pl.LazyFrame, key: str, lookup: pl.DataFrame) -> Cleaned:
    """Adds the lookup's columns where the key, as text, stands in it; else nulls. Counted: ``lookup_unmatched``."""
    as_text = pl.col(key).cast(pl.String).alias(_KEY)
    unmatched = events.select(as_text).join(lookup.lazy(), on=_KEY, how="anti").select(pl.len())
    joined = _joined(_make_room(events, lookup.columns).with_columns(as_text), lookup, _KEY).drop(_KEY)
    return Cleaned(joined, {"lookup_unmatched": int(unmatched.collect(engine="streaming").item())})


def standardise(events: pl.LazyFrame, how: Literal["zscore", "minmax"]) -> Cleaned:
    """Adds ``value_zscore`` or ``value_minmax`` (float64, 6 decimals), against the day's values of the event type.

    ``zscore`` is (value - mean) / sample standard deviation, ``minmax`` is (value - min) / (max - min); null where
    there is no value, or where the type's values are all the same. Counted: ``standardised_values``.
    """
    types = metrics.type_means(events)
    if how == "zscore":
        of_types = metrics.type_spreads(events, types).rename({"half_mean": _BASE, "half_std": _SPAN})
    else:
        of_types = types.select(
            TYPE, (pl.col("low") / 2).alias(_BASE), (pl.col("high") / 2 - pl.col("low") / 2).alias(_SPAN)
        )
    of_types = of_types.filter(pl.col(_SPAN) > 0)
    name = ZSCORE if how == "zscore" else MINMAX
    score = quantities.rounded((pl.col(VALUE) / 2 - pl.col(_BASE)) / pl.col(_SPAN), SCORE_DECIMALS)
    joined = _joined(_make_room(events, [name, _BASE, _SPAN]), of_types, TYPE)
    scored = joined.with_columns(score.alias(name)).drop(_BASE, _SPAN)
    scaled = types.join(of_types, on=TYPE, how="semi")
    return Cleaned(scored, {"standardised_values": int(scaled["count"].sum())})


def _joined(events: pl.LazyFrame, table: pl.DataFrame, key: str) -> pl.LazyFrame:
    """The events in their order with the columns of their key, which stands once in the table; streamed past it."""
    return events.join(table.lazy(), on=key, how="left", maintain_order="left", build_side="force_right")


def _count(events: pl.LazyFrame, is_counted: pl.Expr) -> int:
    return int(events.select(is_counted.sum()).collect(engine="streaming").item())


def _make_room(events: pl.LazyFrame, added: Iterable[str]) -> pl.LazyFrame:
    """Source columns that are called like an added one get a number, as ``ingest/`` does where names meet."""
    names = events.collect_schema().names()
    taken = {*names, *added}
    renamed: dict[str, str] = {}
    for name in sorted(set(names) & set(added)):
        number = 2
        while f"{name}_{number}" in taken:
            number += 1
        renamed[name] = f"{name}_{number}"
        taken.add(renamed[name])
    return events.rename(renamed) if renamed else events


# ---- The lookup file ---------------------------------------------------------------------------------------------


def read_lookup(config: PipelineConfig) -> pl.DataFrame | None:
    """The configured lookup, for :func:`look_up`; None when there is none.

    Returns:
        One row per key: the key as text, and the columns to add, under the names that they will have. From CSV all are
        text, from Parquet they keep their types.

    Raises:
        ConfigurationError: the file or a column is missing, the file cannot be read, or a key stands there twice.
    """
    lookup = config.cleaning.lookup
    if lookup.file is None:
        return None
    found = _read(lookup.file)
    key = lookup.file_key or lookup.key
    wanted = lookup.columns if lookup.columns is not None else [n for n in found.columns if n != key]
    for setting, name in [("file_key", key), *(("columns", n) for n in wanted)]:
        if name not in found.columns:
            near = nearest(name, found.columns)
            shown = ", ".join(visible(c, 60) for c in found.columns[:30])
            raise _unusable(
                lookup,
                f"has no column {visible(name, 60)}; it has: {shown}",
                (f"Nearest: {', '.join(visible(n, 60) for n in near)}. " if near else "")
                + f"Name the column in cleaning.lookup.{setting}; names are compared letter by letter.",
            )
    if not wanted:
        raise _unusable(lookup, f"has no column beside {visible(key, 60)}", "Add the columns that events are to get.")
    _check_types(lookup, found.schema, key, wanted)
    keyed = found.select(
        pl.col(key).cast(pl.String).alias(_KEY), *(pl.col(n).alias(LOOKUP_PREFIX + n) for n in wanted)
    ).filter(pl.col(_KEY).is_not_null())
    twice = keyed.filter(pl.col(_KEY).is_duplicated())
    if twice.height:
        keys = twice[_KEY].unique(maintain_order=True)
        raise _unusable(
            lookup,
            f"has {keys.len()} keys more than once, first {visible(keys[0], 60)!r}",
            "Keep one row for each key; with two, an event would become two.",
        )
    return keyed


def _read(path: Path) -> pl.DataFrame:
    try:
        if path.suffix.lower() == ".csv":
            return pl.read_csv(path, infer_schema=False, glob=False)
        return columnar.scan_in_known_zones(path).collect(engine="streaming")
    except (OSError, PolarsError, PanicException) as problem:
        why = visible(str(problem).partition("\n")[0])
        raise ConfigurationError(
            f"cleaning.lookup.file: {visible(str(path))} cannot be read: {why}.",
            "Put a CSV file (UTF-8, commas, header) or a Parquet file there, or set the key to null.",
            key="cleaning.lookup.file",
        ) from problem


def _check_types(lookup: LookupConfig, schema: pl.Schema, key: str, wanted: Iterable[str]) -> None:
    if not (schema[key].is_integer() or schema[key] in (pl.String, pl.Categorical, pl.Enum)):
        raise _unusable(
            lookup,
            f"has keys of type {schema[key]}, neither text nor whole numbers",
            "Write the keys as text, or choose another column with cleaning.lookup.file_key.",
        )
    for name in wanted:
        if schema[name].is_nested() or schema[name] in (pl.Binary, pl.Object):
            raise _unusable(
                lookup,
                f"has the column {visible(name, 60)} of type {visible(str(schema[name]), 60)}, no single value",
                "Choose the columns to add with cleaning.lookup.columns.",
            )


def _unusable(lookup: LookupConfig, what: str, hint: str) -> ConfigurationError:
    return ConfigurationError(
        f"cleaning.lookup.file: {visible(str(lookup.file))} {what}.", hint, key="cleaning.lookup.file"
    )
