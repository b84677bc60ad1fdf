"""What an opened file looks like to the rest of the project, whatever its format.

Here: ``Records``, the names of its helper columns, how source columns are named, how what is asked of the records is
collected, and the spool that readers in Python write into. Not here: the readers themselves
(``delimited.py``, ``exact.py``, ``jsontext.py``, ``columnar.py``).
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.exceptions import PanicException

from data_assets.engine import chosen, scan_named
from data_assets.errors import SourceFileError, visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

LINE = "__line"
RECORD = "__record"
MALFORMED = "__malformed"
EMPTY = "__empty"
HELPERS = (LINE, RECORD, MALFORMED, EMPTY)
_IN_EXPRESSION = "This error occurred in the following expression:"  # what the engine says, but not of what it reads
CHUNK_RECORDS = 50_000
CHUNK_CHARACTERS = 4 << 20


@dataclass(frozen=True)
class Records:
    """One file, opened.

    Attributes:
        frame: the source's columns (text for text formats, native types for Parquet) and the helper columns ``__line``
            (physical line on which the record starts; row number for Parquet) and ``__malformed``; ``__record`` and
            ``__empty`` where they are not made of the others.
        columns: the source's column names after ``source.column_naming``.
        physical_rows: how many records the file holds, counted apart from the parser.
        format: ``csv``, ``json``, ``jsonl`` or ``parquet``, with ``.gz`` or ``.zst`` when compressed.
        encoding: the text's encoding, or ``binary``.
        lane: ``fast`` (the engine reads the file), ``exact`` (Python does, record by record) or ``mixed`` (Python reads
            the lines that the engine might misread).
        reason: why not the fast lane; empty for it.
        record: the record as it stood; evaluated on refused rows only, as it costs as much as reading them.
        empty: whether nothing stands in the record; likewise.
    """

    frame: pl.LazyFrame
    columns: tuple[str, ...]
    physical_rows: int
    format: str
    encoding: str
    lane: str
    reason: str
    record: pl.Expr = field(default_factory=lambda: pl.col(RECORD))
    empty: pl.Expr = field(default_factory=lambda: pl.col(EMPTY))


def collected(frames: list[pl.LazyFrame], relative: str) -> list[pl.DataFrame]:
    """What is asked of a file's records, in one pass.

    Raises:
        SourceFileError: the file turns out to be damaged, or SQL cannot be computed over its values.
    """
    try:
        return pl.collect_all(frames, engine=chosen())
    except (pl.exceptions.PolarsError, PanicException) as problem:
        why = visible(str(problem).partition("\n")[0])
        _, computed, expression = str(problem).partition(_IN_EXPRESSION)
        if computed:  # nothing of ours gives up a file: it is the SQL of the mapping
            shown = visible(expression.strip().partition("\n")[0])
            raise SourceFileError(
                f"{visible(relative)}: SQL under source.columns cannot be computed over its values: {why}, in {shown}.",
                "Correct the SQL, so that it holds for every value. Decimals have 38 digits at most: compute with "
                "CAST(x AS DOUBLE). Divide by NULLIF(x, 0).",
                path=relative,
            ) from problem
        raise SourceFileError(
            f"{visible(relative)} cannot be read to its end: {why}.",
            "The file is damaged, or changed while it was read. Ask the sender for it again, or remove it.",
            path=relative,
        ) from problem


def rename(name: str, naming: str) -> str:
    """``name`` as ``source.column_naming`` wants it.

    >>> rename("CustomerID", "lower")
    'customerid'
    """
    if naming == "lower":
        return name.lower()
    if naming == "upper":
        return name.upper()
    return name.capitalize() if naming == "capitalize" else name


def column_names(names: Iterable[str], naming: str) -> tuple[str, ...]:
    """Header names made usable: trimmed, renamed, never blank, never twice, never one of the helpers.

    >>> column_names(["ID", "id ", ""], "lower")
    ('id', 'id_2', 'column_3')
    """
    taken = set(HELPERS)
    result = []
    for number, name in enumerate(names, start=1):
        wanted = rename(printable(name.strip()), naming) or f"column_{number}"
        unique, suffix = wanted, 2
        while unique in taken:
            unique, suffix = f"{wanted}_{suffix}", suffix + 1
        taken.add(unique)
        result.append(unique)
    return tuple(result)


def no_rows(columns: Sequence[str] = ()) -> pl.LazyFrame:
    """A frame for a file without records."""
    schema = pl.Schema(
        {
            **dict.fromkeys(columns, pl.String()),
            LINE: pl.Int64(),
            RECORD: pl.String(),
            MALFORMED: pl.Boolean(),
            EMPTY: pl.Boolean(),
        }
    )
    return schema.to_frame(eager=False)


class Spool:
    """Records on their way from Python to a Parquet file below the scratch folder, chunk by chunk.

    Memory stays at one chunk, and all that comes after reads the same kind of lazy frame as the fast lane. Within the
    ``with`` block Python's collector of cycles rests: records have none, and to look for them through all that is
    loaded took as long as to read them.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns = tuple(columns)
        self.rows = 0
        self._schema = pa.schema(
            [pa.field(c, pa.string()) for c in self.columns]
            + [(LINE, pa.int64()), (RECORD, pa.string()), (MALFORMED, pa.bool_()), (EMPTY, pa.bool_())]
        )
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", compression_level=1)
        self._fields: list[list[str | None]] = [[] for _ in self.columns]
        self._lines: list[int] = []
        self._records: list[str] = []
        self._malformed: list[bool] = []
        self._empty: list[bool] = []
        self._characters = 0
        self._nothing: tuple[None, ...] = (None,) * len(self.columns)

    def extend(self, rows: Sequence[Sequence[str | None] | None], lines: Sequence[int], records: list[str]) -> None:
        """Some records row by row, with the physical lines they start on and their texts; ``None``: malformed.

        A record that is blank, or whose fields all are, is empty.
        """
        some = [any(f) if f is not None else bool(r) for f, r in zip(rows, records, strict=True)]
        malformed = [f is None and s for f, s in zip(rows, some, strict=True)]
        fields = list(zip(*(self._nothing if f is None else f for f in rows), strict=True))
        self.add(fields or [() for _ in self.columns], lines, records, malformed, [not s for s in some])

    def add(
        self,
        fields: Sequence[Sequence[str | None]],
        lines: Sequence[int],
        records: Sequence[str],
        malformed: Sequence[bool],
        empty: Sequence[bool],
    ) -> None:
        """Some records column by column; of those that are malformed or empty all fields are ``None``."""
        for taken, column in zip(self._fields, fields, strict=True):
            taken.extend(column)
        self._lines += lines
        self._records += records
        self._malformed += malformed
        self._empty += empty
        self._characters += sum(map(len, records))
        if len(self._lines) >= CHUNK_RECORDS or self._characters >= CHUNK_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if not self._lines:
            return
        columns = [_text_array(values) for values in self._fields]
        columns += [pa.array(self._lines, pa.int64()), _text_array(self._records)]
        columns += [pa.array(self._malformed), pa.array(self._empty)]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self.rows += len(self._lines)
        for column in self._fields:
            column.clear()
        for values in (self._lines, self._records, self._malformed, self._empty):
            values.clear()
        self._characters = 0

    def __enter__(self) -> Self:
        self._is_collecting = gc.isenabled()
        gc.disable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flush()
        finally:
            self._writer.close()
            if self._is_collecting:
                gc.enable()

    def scan(self) -> pl.LazyFrame:
        """What was written, lazily; only after the ``with`` block."""
        return scan_named(self.path)


def _text_array(values: Sequence[str | None]) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:  # a surrogate: a byte that is not the encoding's, or half a character in JSON
        return pa.array([None if v is None else printable(v) for v in values], pa.string())


def is_broken(text: str) -> bool:
    """Whether a byte of a text that was decoded with "surrogateescape" was not UTF-8."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def printable(text: str) -> str:
    r"""``text`` fit for UTF-8: a byte that could not be decoded becomes ``\xff``, half a character ``\ud800``."""
    return "".join(
        c
        if not "\ud800" <= c <= "\udfff"
        else f"\\x{ord(c) - 0xDC00:02x}"
        if "\udc80" <= c <= "\udcff"
        else ascii(c)[1:-1]
        for c in text
    )
