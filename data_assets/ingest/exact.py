"""CSV record by record, for files and lines that the engine might misread: quotes, NUL, bare CR, broken bytes.

Here: the splitter. Physical lines are taken as they stand (LF, CRLF or CR), Python's strict ``csv`` reader says where a
quoted record ends, and each physical line is accounted to exactly one record: the sum is compared with a count that the
look at the bytes made (``delimited.py``). A quote that is never closed, or that would glue sound records together,
costs its own physical line and nothing else. Not here: what the values mean (``values.py``).
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import re
import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from data_assets.errors import SourceFileError, visible
from data_assets.ingest.records import Spool, column_names, is_broken, no_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import polars as pl

    from data_assets.config import PipelineConfig

LOOK_AHEAD_LINES = 1_000
LOOK_AHEAD_CHARACTERS = 16 << 20
_BATCH = 2_000
_FIELD_LIMIT = 2**31 - 1

Batch = tuple[Sequence[list[str] | None], Sequence[int], list[str]]
"""Fields (``None``: malformed), lines and texts of some records."""


@dataclass(frozen=True)
class Shape:
    """What is known of the file before it is read.

    Attributes:
        lines: its physical lines.
        above: how many of them stand above the header and are no part of it.
    """

    delimiter: str
    lines: int
    above: int = 0


class Record(NamedTuple):
    """One record: ``fields`` is ``None`` when it is malformed; ``covered`` counts its physical lines."""

    fields: list[str] | None
    line: int
    text: str
    covered: int


def read_all(
    path: Path, relative: str, config: PipelineConfig, scratch: Path, shape: Shape
) -> tuple[pl.LazyFrame, tuple[str, ...], int]:
    """Spool every record of a UTF-8 file.

    Returns:
        The records with their helper columns, the source's columns, and how many records there are.

    Raises:
        SourceFileError: a physical line was lost or taken twice.
    """
    with _any_field_size(), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as source:
        reader = _Reader(source, shape.delimiter)
        above = [reader.line() for _ in range(shape.above)]
        first = reader.header()
        if first is None:
            return no_rows(), (), 0
        header, names = config.source.csv.header, first.fields or [""]
        columns = column_names(names if header else [""] * len(names), config.source.column_naming)
        with Spool(scratch / "records.parquet", columns) as spool:
            spool.extend(*_columns(above if header else [first]))
            for batch in reader.records(len(columns)):
                spool.extend(*batch)
    if reader.covered != shape.lines:
        raise SourceFileError(
            f"{visible(relative)} has {shape.lines} physical lines, but its records cover {reader.covered}.",
            "This is a defect of the reader; the file was left alone. Please report it with the file.",
            path=relative,
        )
    return spool.scan(), columns, spool.rows


def read_apart(path: Path, apart: Sequence[int], delimiter: str, copy: Path, spool: Spool) -> list[int]:
    """Spool the records that begin on the given lines, and copy the file with no more than delimiters in theirs.

    Returns:
        The lines that those records cover.
    """
    taken: list[int] = []
    with _any_field_size(), spool, path.open("rb") as source, copy.open("wb") as out:
        nothing = delimiter.encode() * (len(spool.columns) - 1) + b"\n"
        reader = _Reader((raw.decode("utf-8", "surrogateescape") for raw in source), delimiter)
        for number in apart:
            if number <= reader.covered:
                continue
            reader.copy(number - 1 - reader.covered, source, out)
            record = reader.one(len(spool.columns))
            spool.extend(*_columns([record]))
            out.write(nothing * record.covered)
            taken += range(number, number + record.covered)
        reader.copy(None, source, out)
    return taken


@contextlib.contextmanager
def _any_field_size() -> Iterator[None]:
    """The default refuses fields over 128 KiB."""
    previous = csv.field_size_limit(_FIELD_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(previous)


def _columns(records: list[Record]) -> Batch:
    """Records as the spool takes them."""
    return [r.fields for r in records], [r.line for r in records], [r.text for r in records]


class _Reader:
    """Physical lines in, records out."""

    def __init__(self, source: Iterable[str], delimiter: str) -> None:
        self._source = iter(source)
        self._waiting: deque[str] = deque()
        self._delimiter = delimiter
        self.covered = 0

    def header(self) -> Record | None:
        """The first record that is not blank; blank lines before it belong to it."""
        while self._fill(1):
            record = self.one(None)
            if record.text:
                return record
        return None

    def line(self) -> Record:
        """The next physical line, whatever it holds."""
        self._fill(1)
        text = _bare(self._waiting.popleft())
        self.covered += 1
        return Record(None, self.covered, text, 1)

    def copy(self, lines: int | None, source: BinaryIO, out: BinaryIO) -> None:
        """Pass the next lines (``None``: all that are left) on to ``out`` unread."""
        ahead = [
            self._waiting.popleft()
            for _ in range(len(self._waiting) if lines is None else min(lines, len(self._waiting)))
        ]
        out.writelines(text.encode("utf-8", "surrogateescape") for text in ahead)
        if lines is None:
            shutil.copyfileobj(source, out)
            return
        out.writelines(itertools.islice(source, lines - len(ahead)))
        self.covered += lines

    def records(self, width: int) -> Iterator[Batch]:
        """All that follows, each of ``width`` fields or malformed."""
        while self._fill(_BATCH):
            plain = self._plain(width)
            if plain:
                yield plain
                continue
            until = self.covered + len(self._waiting)
            while self.covered < until and self._fill(1):
                yield _columns(self._careful(width) or [self.one(width)])

    def _fill(self, lines: int) -> bool:
        """Have at least so many lines waiting if the file has them."""
        if len(self._waiting) < lines:
            self._waiting.extend(itertools.islice(self._source, lines - len(self._waiting)))
        return bool(self._waiting)

    def _parse(self, lines: Iterable[str]) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=self._delimiter, strict=True)

    def _plain(self, width: int) -> Batch | None:
        """Every waiting line, when each is a record of the right width; this is the usual case, and at C's speed."""
        lines = list(self._waiting)
        try:
            rows = list(self._parse(lines))
        except csv.Error:
            return None
        if len(rows) != len(lines) or any(len(row) != width for row in rows) or is_broken("".join(lines)):
            return None
        start = self.covered + 1
        self._waiting.clear()
        self.covered += len(lines)
        return rows, range(start, start + len(lines)), [_bare(x) for x in lines]

    def _careful(self, width: int) -> list[Record]:
        """Waiting records one by one, up to the first that needs a look at its lines; none when that is the first."""
        lines = list(self._waiting)
        parser = csv.reader(lines, delimiter=self._delimiter, strict=True)
        result: list[Record] = []
        start = 0
        try:
            for fields in parser:
                end = parser.line_num
                text = lines[start] if end - start == 1 else "".join(lines[start:end])
                kept = fields if len(fields) == width and not is_broken(text) else None
                if kept is None and end - start > 1:
                    break
                result.append(Record(kept, self.covered + start + 1, _bare(text), end - start))
                start = end
        except csv.Error:
            pass  # the record that starts at ``start`` is looked at alone
        for _ in range(start):
            self._waiting.popleft()
        self.covered += start
        return result

    def one(self, width: int | None) -> Record:
        """The next record, with as many lines as its quotes need; of the wrong width, it is malformed."""
        line = self.covered + 1
        used: list[str] = []
        try:
            fields: list[str] | None = next(self._parse(self._ahead(used)))
        except csv.Error:
            fields = None
        count = 1 if fields is None else len(used)
        if fields is not None and width is not None and len(fields) != width:
            if any(self._is_sound(text, width) for text in used[1:]):
                count = 1  # a quote that is never closed glued records together; else it is one, of the wrong width
            fields = None
        if any(is_broken(part) for part in used):
            fields = None
        for _ in range(count):
            self._waiting.popleft()
        self.covered += count
        return Record(fields, line, _bare("".join(used[:count])), count)

    def _is_sound(self, line: str, width: int) -> bool:
        """Whether a line is a record by itself: of the right width, and every quote where quotes belong."""
        mark = re.escape(self._delimiter)
        field = f'(?:[^"{mark}]*+|"(?:[^"]|"")*+")'
        return re.fullmatch(f"{field}(?:{mark}{field}){{{width - 1}}}", _bare(line)) is not None

    def _ahead(self, used: list[str]) -> Iterator[str]:
        """Waiting lines one by one, noting each that is handed out, as far as one may look."""
        characters = 0
        for number in range(LOOK_AHEAD_LINES):
            if number >= len(self._waiting) and not self._fill(number + 1):
                return
            if number >= len(self._waiting):
                return
            text = self._waiting[number]
            characters += len(text)
            if number and characters > LOOK_AHEAD_CHARACTERS:
                return
            used.append(text)
            yield text


def _bare(text: str) -> str:
    """A record without its line end."""
    return text[:-2] if text.endswith("\r\n") else text[:-1] if text.endswith(("\n", "\r")) else text
