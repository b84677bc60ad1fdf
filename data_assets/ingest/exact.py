"""CSV record by record, for files that the engine might misread: quotes, NUL, bare CR, broken bytes.

Here: the splitter. Physical lines are taken as they stand (LF, CRLF or CR), Python's strict ``csv`` reader says where a
quoted record ends, and each physical line is accounted to exactly one record: the sum is compared with a count that the
look at the bytes made (``delimited.py``). A quote that is never closed, or that would glue lines into a record of the
wrong width, costs its own physical line and nothing else. Not here: what the values mean (``values.py``).
"""

from __future__ import annotations

import csv
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from data_assets.errors import SourceFileError, visible
from data_assets.ingest.records import Records, Spool, column_names, no_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from data_assets.config import PipelineConfig

LOOK_AHEAD_LINES = 1_000
LOOK_AHEAD_CHARACTERS = 16 << 20
_BATCH = 2_000
_FIELD_LIMIT = 2**31 - 1

Batch = tuple[Sequence[list[str] | None], Sequence[int], list[str]]
"""Fields (``None``: malformed), lines and texts of some records."""


@dataclass(frozen=True)
class Shape:
    """What is known of the file before it is read: its names, and its physical lines."""

    format: str
    encoding: str
    delimiter: str
    lines: int
    reason: str


class Record(NamedTuple):
    """One record: ``fields`` is ``None`` when it is malformed; ``covered`` counts its physical lines."""

    fields: list[str] | None
    line: int
    text: str
    covered: int


def open_exact(path: Path, relative: str, config: PipelineConfig, scratch: Path, shape: Shape) -> Records:
    """Spool every record of a UTF-8 file.

    Raises:
        SourceFileError: a physical line was lost or taken twice.
    """
    previous = csv.field_size_limit(_FIELD_LIMIT)  # the default refuses fields over 128 KiB
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as source:
            reader = _Reader(source, shape.delimiter)
            first = reader.header()
            if first is None:
                return Records(no_rows(), (), 0, shape.format, shape.encoding, "exact", shape.reason)
            header = config.source.csv.header
            columns = column_names(first.fields or [""] if header else [""] * len(first.fields or [""]),
                                   config.source.column_naming)  # fmt: skip
            records = reader.records(len(columns))
            with Spool(scratch / "records.parquet", columns) as spool:
                if not header:
                    spool.extend(*_columns([first]))
                for batch in records:
                    spool.extend(*batch)
    finally:
        csv.field_size_limit(previous)
    if reader.covered != shape.lines:
        raise SourceFileError(
            f"{visible(relative)} has {shape.lines} physical lines, but its records cover {reader.covered}.",
            "This is a defect of the reader; the file was left alone. Please report it with the file.",
            path=relative,
        )
    return Records(spool.scan(), columns, spool.rows, shape.format, shape.encoding, "exact", shape.reason)


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
            record = self._one(None)
            if record.text:
                return record
        return None

    def records(self, width: int) -> Iterator[Batch]:
        """All that follows, each of ``width`` fields or malformed."""
        while self._fill(_BATCH):
            plain = self._plain(width)
            if plain:
                yield plain
                continue
            until = self.covered + len(self._waiting)
            while self.covered < until and self._fill(1):
                yield _columns(self._careful(width) or [self._one(width)])

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
        if len(rows) != len(lines) or any(len(row) != width for row in rows) or _is_broken("".join(lines)):
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
                kept = fields if len(fields) == width and not _is_broken(text) else None
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

    def _one(self, width: int | None) -> Record:
        """The next record, with as many lines as its quotes need, if those make a record of the right width."""
        line = self.covered + 1
        used: list[str] = []
        try:
            fields = next(self._parse(self._ahead(used)))
        except csv.Error:
            fields = None
        if fields is not None and width is not None and len(fields) != width:
            fields = None
        if any(_is_broken(part) for part in used):
            fields = None
        count = len(used) if fields is not None else 1
        for _ in range(count):
            self._waiting.popleft()
        self.covered += count
        return Record(fields, line, _bare("".join(used[:count])), count)

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


def _is_broken(text: str) -> bool:
    """Whether a byte of it was not UTF-8."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _bare(text: str) -> str:
    """A record without its line end."""
    return text[:-2] if text.endswith("\r\n") else text[:-1] if text.endswith(("\n", "\r")) else text
