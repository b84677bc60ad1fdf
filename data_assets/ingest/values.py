"""Text and native values to our types: times, whole numbers, numbers, text.

Here: expressions that give the typed value, or null where it cannot be read. Each tries the common form on every value
first, and the other forms only on what that left (elsewhere they see nulls, which cost nothing). Not here: which column
is read (``mapping.py``), and what a null means for the row (``classify.py``).
"""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import polars as pl

from data_assets.config import EPOCHS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_FIRST = dt.datetime(1, 1, 1)  # noqa: DTZ001 - wall time
_LAST = dt.datetime(9999, 12, 31, 23, 59, 59, 999_999)  # noqa: DTZ001 - wall time
_EPOCH_FIRST, _EPOCH_LAST = -62_135_596_800, 253_402_300_799
_FAR_SECONDS = 200_000 * 31_556_952  # the engine's calendar ends soon after, and to convert what is beyond it gives up
_INT64_FIRST, _INT64_LAST = -(2**63), 2**63 - 1
_DAY_SECONDS, _SECOND = 86_400, 1_000_000
_UNITS = {"ms": 1_000, "us": 1_000_000}  # in nanoseconds 64 bits hold the years 1677 to 2262 alone
_SPACE = "%Y-%m-%d %H:%M:%S"
_T = "%Y-%m-%dT%H:%M:%S"
_PLAIN = (_SPACE, _T)
_SECONDS = len("2024-01-31 10:20:30")
_OFFSET = "[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9])?"
_ISO = (
    "^([0-9]{4}-[0-9]{2}-[0-9]{2})(?:([Tt ])([0-9]{2}:[0-9]{2})(?::([0-5][0-9])(?:([.,])([0-9]+))?)?"
    f"(?:( ?)([Zz]|UTC|{_OFFSET}))?)?$"
)
_SHAPES = {
    "%Y": "[12][0-9]{3}",  # no offset takes these years out of bounds
    **dict.fromkeys(("%m", "%d", "%H", "%M"), "[0-9]{2}"),
    "%S": "[0-5][0-9]",
    "%3f": "[0-9]{3}",
    "%6f": "[0-9]{6}",
    "%.f": "(?:[.][0-9]+)?",
    "%#z": f" ?{_OFFSET}",
}
_NEARLY_ALL = 0.95
_GROUPED = r"^[+-]?[0-9]{{1,3}}({}[0-9]{{3}})+({}[0-9]*)?$"
_MAX_EXACT_FLOAT = 2**53
SAMPLE = 64


def common_form(sample: pl.Series) -> str:
    """The ISO form that most of a column's first values have; only how fast the others are read depends on it.

    Where nearly all have as many digits of a second, or the same offset from UTC, those are part of the form, since the
    engine reads texts of one length by a quicker way.
    """
    found = [re.match(_ISO, text) for text in sample.filter(sample != "").head(SAMPLE)]
    parts = [match.groups(default="") for match in found if match]
    form = _SPACE
    for is_exact, has_offset in ((True, True), (False, True), (False, False)) if parts else ():
        forms = Counter(_form(of_text, is_exact=is_exact, has_offset=has_offset) for of_text in parts)
        [(form, count)] = forms.most_common(1)
        if count >= _NEARLY_ALL * len(parts):
            break
    return form


def _form(parts: Sequence[str], *, is_exact: bool, has_offset: bool) -> str:
    """The form of a text of these parts: with its number of digits of a second, its offset from UTC, or with any."""
    _, mark, clock, second, point, fraction, gap, offset = parts
    digits = f"%{len(fraction)}f"
    exact = point + digits if digits in _SHAPES else "%.f" if fraction else ""
    seconds = f":%S{exact if is_exact else '%.f'}" if second else ""
    zone = gap + offset if has_offset or not offset[-1:].isdigit() else "%#z"
    return f"%Y-%m-%d{mark}{'%H:%M' if clock else ''}{seconds}{zone}"


def time(
    frame: pl.LazyFrame, name: str, dtype: pl.DataType, formats: Sequence[str], zone: str, form: str = _SPACE
) -> pl.LazyFrame:
    """Column ``name`` as wall time of ``zone``, null where it cannot be read."""
    column = pl.col(name)
    if isinstance(dtype, pl.Datetime | pl.Date):
        return frame.with_columns(native_time(column, dtype, zone).alias(name))
    if dtype.is_numeric():
        wide = column.cast(_widest(dtype), strict=False)  # a product of 32 bits would wrap around
        digits = wide.cast(pl.String)
        read = [
            _epoch(wide, EPOCHS[f], zone) if f in EPOCHS else _formatted(digits, f, zone)
            for f in formats
            if f in EPOCHS or dtype.is_integer()
        ]
        value = _bounded(pl.coalesce(read)) if read else pl.lit(None, pl.Datetime("us"))
        return frame.with_columns(value.alias(name))
    if dtype != pl.String:
        return frame.with_columns(pl.lit(None, pl.Datetime("us")).alias(name))
    first, rest, parts, wall = (f"{name}__{step}" for step in ("first", "rest", "parts", "wall"))
    return (
        frame.with_columns(quick_time(column, formats, zone, form).alias(first))
        .with_columns(pl.when(pl.col(first).is_null()).then(column).str.strip_chars().alias(rest))
        .with_columns(pl.col(rest).str.extract_groups(_ISO).alias(parts))  # columns of their own are made once
        .with_columns(_wall(pl.col(parts)).alias(wall))
        .with_columns(
            pl.coalesce(
                [first]
                + [_formatted(pl.col(rest), f, zone) for f in formats]
                + [_common(pl.col(rest), f, zone) for f in _PLAIN]
                + [_iso(pl.col(wall), pl.col(parts), zone)]
            ).alias(name)
        )
        .with_columns(_bounded(column).alias(name))
        .drop(first, rest, parts, wall)
    )


def _widest(dtype: pl.DataType) -> pl.DataType:
    if dtype.is_decimal():
        return pl.Decimal(38, 9)  # no float: it has no nanoseconds
    return pl.Int64() if dtype.is_integer() else pl.Float64()


def native_time(column: pl.Expr, dtype: pl.Datetime | pl.Date, zone: str) -> pl.Expr:
    """A time or date as wall time of ``zone``, null where it is out of bounds; without a zone it is wall time."""
    column = within_years(column, dtype)
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        return _bounded(column.dt.cast_time_unit("us").dt.convert_time_zone(zone).dt.replace_time_zone(None))
    return _bounded(column.cast(pl.Datetime("us")))


def within_years(column: pl.Expr, dtype: pl.Datetime | pl.Date) -> pl.Expr:
    """Times and dates of the years 1 to 9999, null elsewhere, as with "infinity", which the engine cannot convert."""
    number, first, last = column.to_physical(), _EPOCH_FIRST, _EPOCH_LAST
    if isinstance(dtype, pl.Date):
        return pl.when(number.is_between(first // _DAY_SECONDS, last // _DAY_SECONDS)).then(column)
    factor = _UNITS.get(dtype.time_unit)
    if factor is None:
        return column
    return pl.when(number.is_between(first * factor, (last + 1) * factor - 1)).then(column)


def convertible(column: pl.Expr, dtype: pl.Datetime | pl.Date) -> pl.Expr:
    """Times and dates as they are, but no further away than the engine can convert them, in years that nobody means."""
    units = _UNITS.get(dtype.time_unit) if isinstance(dtype, pl.Datetime) else 1 / _DAY_SECONDS
    if units is None:
        return column
    return column.to_physical().clip(round(-_FAR_SECONDS * units), round(_FAR_SECONDS * units)).cast(dtype)


def times_in(column: pl.Expr, dtype: pl.DataType, change: Callable[[pl.Expr, Any], pl.Expr]) -> pl.Expr:
    """A column with the times and dates changed that it holds at any depth; itself, where none is."""
    if isinstance(dtype, pl.Datetime | pl.Date):
        return change(column, dtype)
    if isinstance(dtype, pl.Struct):
        given = {f.name: (column.struct.field(f.name), cast("pl.DataType", f.dtype)) for f in dtype.fields}
        changed = {name: times_in(field, part, change) for name, (field, part) in given.items()}
        if all(changed[name] is field for name, (field, _) in given.items()):
            return column
        return pl.when(column.is_not_null()).then(pl.struct(field.alias(name) for name, field in changed.items()))
    if isinstance(dtype, pl.List | pl.Array):
        element = pl.element()
        within = times_in(element, cast("pl.DataType", dtype.inner), change)
        if within is not element:
            return column.arr.eval(within) if isinstance(dtype, pl.Array) else column.list.eval(within)
    return column


def quick_time(text: pl.Expr, formats: Sequence[str], zone: str, form: str) -> pl.Expr:
    """Text as wall time of ``zone`` where it has the usual form or a configured one; null says nothing yet."""
    if formats:
        return _bounded(pl.coalesce([_formatted(text, f, zone) for f in formats]))
    return _common(text, form, zone)


def _bounded(value: pl.Expr) -> pl.Expr:
    """Years 1 to 9999, which is what every reader of the tables can hold."""
    return pl.when(value.is_between(pl.lit(_FIRST, pl.Datetime("us")), pl.lit(_LAST, pl.Datetime("us")))).then(value)


def _parsed(text: pl.Expr, form: str) -> pl.Expr:
    return text.str.to_datetime(form, time_unit="us", strict=False, cache=False)


def _walled(utc: pl.Expr, zone: str) -> pl.Expr:
    """Naive UTC to naive wall time of ``zone``."""
    if zone == "UTC":
        return utc
    return utc.dt.replace_time_zone("UTC").dt.convert_time_zone(zone).dt.replace_time_zone(None)


def _common(text: pl.Expr, form: str, zone: str) -> pl.Expr:
    """One of the usual forms; not the second 60 and leading spaces, which the engine would read.

    Of the plain forms the years 1 to 9999; of others nothing that ``_iso`` does not read.
    """
    if form in _PLAIN:  # to hold the time between bounds, as _bounded does, would have the engine parse it twice
        tens = text.cast(pl.Binary).bin.get(
            _SECONDS - 2, null_on_oob=True
        )  # of seconds; the end of a text costs twice that
        known = (text.str.len_bytes() == _SECONDS) & (text >= "0001") & (tens < ord("6"))
    else:
        shape = "".join(_SHAPES.get(part) or pl.escape_regex(part) for part in re.split("(%[.#]?[0-9]?[a-zA-Z])", form))
        known = text.str.contains(f"^{shape}$")
    text = pl.when(known).then(text)
    if form.endswith("%#z"):
        return _formatted(text, form, zone)
    wall, offset = _parsed(text, form), re.search(f"([Zz]|UTC|{_OFFSET})$", form)
    if offset is None:
        return wall
    before = dt.time.fromisoformat(f"00:00{offset[0].upper().replace('UTC', 'Z')}").utcoffset()
    return _walled(wall - before, zone)


def _wall(parts: pl.Expr) -> pl.Expr:
    """The time that the parts of an ISO 8601 text say, whatever their offset."""
    day, _, clock, second, _, fraction, _, _ = (parts.struct[i] for i in range(8))
    wall = _parsed(
        pl.concat_str(day, pl.lit(" "), clock.fill_null("00:00"), pl.lit(":"), second.fill_null("00")), _SPACE
    )
    return wall + pl.duration(microseconds=fraction.str.pad_end(6, "0").str.slice(0, 6).cast(pl.Int64).fill_null(0))


def _iso(wall: pl.Expr, parts: pl.Expr, zone: str) -> pl.Expr:
    """Every form of ISO 8601 that is read, from its parts and the time that they say."""
    offset = parts.struct[7]
    digits = offset.str.replace_all(":", "", literal=True)
    minutes = (
        digits.str.slice(1, 2).cast(pl.Int64, strict=False) * 60
        + digits.str.slice(3, 2).cast(pl.Int64, strict=False).fill_null(0)
    ).fill_null(0)
    signed = pl.when(offset.str.starts_with("-")).then(-minutes).otherwise(minutes)
    utc = _walled(wall - pl.duration(minutes=signed), zone)
    return pl.when(offset.is_null()).then(wall).otherwise(utc)


def _formatted(text: pl.Expr, form: str, zone: str) -> pl.Expr:
    if form in EPOCHS:
        whole = text.cast(pl.Int64, strict=False)
        other = pl.when(whole.is_null()).then(text).cast(pl.Float64, strict=False)
        return pl.coalesce(_epoch(whole, EPOCHS[form], zone), _epoch(other, EPOCHS[form], zone))
    known = ~text.str.contains(":60", literal=True)  # the engine would read the second 60
    if re.search(r"%[#:]*z", form):
        aware = text.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False, cache=False)
        return pl.when(known).then(aware.dt.convert_time_zone(zone).dt.replace_time_zone(None))
    wall = pl.when(known).then(_parsed(text, form))
    letters = re.sub("%[.:-]?[0-9]?[A-Za-z]", " ", form)
    return _walled(wall, zone) if re.search(r"\b(?:Z|UTC|GMT)\b", letters) else wall


def _epoch(number: pl.Expr, units: int, zone: str) -> pl.Expr:
    """``units`` of these numbers make a second; what is less than a microsecond is cut off."""
    first, last = max(_EPOCH_FIRST * units, _INT64_FIRST), min(_EPOCH_LAST * units, _INT64_LAST)
    sane = pl.when(number.is_between(first, last)).then(number)
    microseconds = sane * (_SECOND // units) if units <= _SECOND else sane // (units // _SECOND)
    return _bounded(_walled(microseconds.cast(pl.Int64).cast(pl.Datetime("us")), zone))


def whole_number(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """A whole number of 64 bits. Text is read strictly (no ``2.0``); a native float must be whole and exact."""
    if dtype == pl.String:
        first = column.cast(pl.Int64, strict=False)
        rest = pl.when(first.is_null()).then(column).str.strip_chars()
        return pl.coalesce(first, rest.cast(pl.Int64, strict=False))
    if dtype.is_integer():
        return column.cast(pl.Int64, strict=False)
    if dtype.is_decimal():  # through a float, long numbers would become others
        whole = column.cast(pl.String).str.extract(r"^([+-]?[0-9]+)(?:\.0*)?$")
        return whole.cast(pl.Int64, strict=False)
    if dtype.is_float():
        number = column.cast(pl.Float64)
        exact = (number == number.floor()) & (number.abs() <= _MAX_EXACT_FLOAT)
        return pl.when(exact).then(number).cast(pl.Int64, strict=False)
    return pl.lit(None, pl.Int64)


def number(
    column: pl.Expr, dtype: pl.DataType, *, decimal_comma: bool = False, thousands: str | None = None
) -> pl.Expr:
    """A finite number. Text in which groups of three digits are parted is read where ``thousands`` says by what."""
    if dtype == pl.String:
        mark, group = ("," if decimal_comma else "."), thousands or ("." if decimal_comma else None)
        if group is not None:
            parted = column.str.strip_chars().str.contains(_GROUPED.format(re.escape(group), re.escape(mark)))
            column = pl.when(parted).then(column.str.replace_all(group, "", literal=True)).otherwise(column)
        if decimal_comma:
            column = (
                pl.when(~column.str.contains(".", literal=True)).then(column).str.replace_all(",", ".", literal=True)
            )
        first = column.cast(pl.Float64, strict=False)
        rest = pl.when(first.is_null()).then(column).str.strip_chars()
        value = pl.coalesce(first, rest.cast(pl.Float64, strict=False))
    elif dtype.is_numeric() or dtype == pl.Boolean:
        value = column.cast(pl.Float64, strict=False)
    else:
        return pl.lit(None, pl.Float64)
    return pl.when(value.is_finite()).then(value)


def text(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Anything as text; nested values as JSON, a time outside of the years 1 to 9999 as the number that is stored.

    Floats that are whole and exact read as whole numbers do; what is not finite is no value.
    """
    if dtype == pl.String:
        return column
    if isinstance(dtype, pl.Datetime | pl.Date):
        return pl.coalesce(within_years(column, dtype).cast(pl.String), column.to_physical().cast(pl.String))
    if dtype.is_float():  # in which pandas keeps whole numbers, as soon as one is missing
        finite = pl.when(column.is_finite()).then(column)
        return pl.coalesce(whole_number(finite, dtype).cast(pl.String), finite.cast(pl.String))
    if isinstance(dtype, pl.Struct):
        return pl.when(column.is_not_null()).then(times_in(column, dtype, text).struct.json_encode())
    if dtype.is_nested():
        encoded = pl.struct(times_in(column, dtype, text).alias("x")).struct.json_encode()
        return pl.when(column.is_not_null()).then(encoded.str.slice(len('{"x":')).str.strip_suffix("}"))
    # A cast leaves out the fraction of a second of a time of day, and there is none of a duration, which SQL may make.
    return column.dt.to_string("iso") if dtype in (pl.Time, pl.Duration) else column.cast(pl.String, strict=False)
