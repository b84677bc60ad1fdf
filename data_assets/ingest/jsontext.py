"""JSON: a record on each line, or one array (or object) in the file.

Here: both readers. Values become text, numbers as they are written. JSON lines have a fast lane: a pattern made of the
first record's keys, which only a flat object with just these keys in this order can match, takes the fields from each
line in the engine. No JSON parser of an engine is asked: they rewrite numbers (1.50), take the first of two equal keys
and make half a character a NUL. A line that does not match is read record by record, and put where it stood. Not here:
what the values mean (``values.py``).
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import polars as pl

from data_assets.engine import scan_named
from data_assets.errors import SourceFileError, visible
from data_assets.ingest.delimited import transcode
from data_assets.ingest.mapping import wanted_columns
from data_assets.ingest.records import (
    CHUNK_RECORDS,
    EMPTY,
    HELPERS,
    LINE,
    MALFORMED,
    RECORD,
    Records,
    Spool,
    is_broken,
    no_rows,
    printable,
    rename,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

    from data_assets.config import PipelineConfig

_BLOCK = 256 << 10
_BATCH = 32 << 10  # of text, in which a column is put together at a time
_SNIFFED_LINES = 100
_SPACE = " \t\n\r"
_MOST_KEYS = 64
_GAP = r"[ \t]*"
_STRING = r'"[^"\\\x00-\x1f\x{FFFD}]*"'
_SCALAR = _STRING + r"|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null"
_NO_VALUE = ("null", '""')
_NOT_PLAIN = '"\\\ufffd'
_FITS = "__fits"
_SPACE_BYTES = b" \t\r"
_UTF16 = ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


_Item = tuple[object, int, str]
"""A record's value (``None``: it is malformed), the physical line it starts on, and its text."""


_Batch = tuple[list[object], list[int], list[str]]
"""The same of some records."""


class _NotFinite(str):
    """NaN or Infinity, which JSON does not have."""

    __slots__ = ()


class _Number(str):
    """A number as it is written."""

    __slots__ = ()


def _constant(name: str) -> _NotFinite:
    return _NotFinite(name)


def _refused_constant(name: str) -> NoReturn:
    raise ValueError(name)


_ABSENT = object()
_DECODER = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_constant)
_SCAN = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_refused_constant).scan_once  # type: ignore[attr-defined]


def open_json(path: Path, relative: str, config: PipelineConfig, scratch: Path, name: str) -> Records:
    """Open a JSON file; a ``.json`` file's content decides between lines and one value.

    Raises:
        SourceFileError: it is one value and that is broken, or it is neither an array nor objects.
    """
    kind, dot, packed = name.partition(".")
    with path.open("rb") as file:
        start = file.read(4)
    encoding = next((e for bom, e in _UTF16 if start.startswith(bom)), "utf-8")
    if encoding != "utf-8":
        path = transcode(path, encoding, scratch / "utf8", relative)
    if kind == "json" and _is_lines(path):
        kind = "jsonl"
    reader = _Keys(config, scratch)
    if kind == "jsonl":
        look = _look(path)
        physical = look.records
        read = _open_lines(path, look, reader, scratch)
    else:
        read = _Read(*reader.spool(_batches(_elements(path, relative))), "exact", "the file is one JSON value")
        physical = _count_elements(path)
    if physical != read.rows:
        raise SourceFileError(
            f"{visible(relative)} holds {physical:,} records, but {read.rows:,} were read.",
            "This is a defect of the reader; the file was left alone. Please report it with the file.",
            path=relative,
        )
    return Records(read.frame, read.columns, read.rows, kind + dot + packed, encoding, read.lane, read.reason)


class _Read(NamedTuple):
    frame: pl.LazyFrame
    columns: tuple[str, ...]
    rows: int
    lane: str
    reason: str


@dataclass
class _Look:
    """What one pass over the bytes of a file of JSON lines tells.

    Attributes:
        lines: physical lines, ended by LF; the last may have no end.
        records: lines that are not blank.
        objects: whether the first line begins an object.
    """

    lines: int = 0
    records: int = 0
    nul: bool = False
    utf8: bool = True
    objects: bool = False


def _look(path: Path) -> _Look:
    """Look at every byte once."""
    look = _Look()
    decoder = codecs.getincrementaldecoder("utf-8")()
    something, last = False, b"\n"  # of the line that is not ended yet
    with path.open("rb") as file:
        start = file.read(len(codecs.BOM_UTF8))
        if start != codecs.BOM_UTF8:
            file.seek(0)
        look.objects = file.peek(1)[:1] == b"{"
        while block := file.read(_BLOCK):
            look.nul = look.nul or b"\0" in block
            look.utf8 = look.utf8 and _is_utf8(decoder, block)
            first, *others = block.split(b"\n")
            something = something or bool(first.strip(_SPACE_BYTES))
            if others:
                look.lines += len(others)
                look.records += something + sum(1 for line in others[:-1] if line.strip(_SPACE_BYTES))
                something = bool(others[-1].strip(_SPACE_BYTES))
            last = block[-1:]
    look.records += something
    look.lines += last != b"\n"
    look.utf8 = look.utf8 and _is_utf8(decoder, b"", final=True)
    return look


def _is_utf8(decoder: codecs.IncrementalDecoder, block: bytes, *, final: bool = False) -> bool:
    if block.isascii() and not final and not decoder.getstate()[0]:
        return True
    try:
        decoder.decode(block, final)
    except UnicodeDecodeError:
        return False
    return True


def _open_lines(path: Path, look: _Look, reader: _Keys, scratch: Path) -> _Read:
    """Each line by the pattern where it matches, the others one by one."""
    template, reason = _learn(path, look, reader)
    if template is None:
        return _Read(*reader.spool(_lines(path)), "exact", reason)
    scan = pl.scan_csv(
        path,
        glob=False,
        has_header=False,
        schema={RECORD: pl.String, "__nul": pl.String},
        separator="\0",
        quote_char=None,
        empty_string_is_null=False,
        missing_columns="insert",
        encoding="utf8" if look.utf8 else "utf8-lossy",
        row_index_name=LINE,
        row_index_offset=1,
    )
    taken = scratch / "lines.parquet"
    template.take_apart(scan, reader.wants).sink_parquet(
        taken, compression="zstd", compression_level=1, row_group_size=CHUNK_RECORDS
    )
    lines = scan_named(taken)
    seen, fitting = lines.select(pl.len(), pl.col(_FITS).sum()).collect(engine="streaming").row(0)
    if seen != look.lines:
        return _Read(*reader.spool(_lines(path)), "exact", "the engine sees other lines than the bytes tell")
    batches = lines.filter(~pl.col(_FITS)).select(LINE).collect_batches(maintain_order=True, lazy=True)
    numbers = (number for batch in batches for number in batch[LINE])
    frame, columns, rows = reader.spool(_lines(path, numbers), template.keys)
    names = frame.collect_schema().names()
    there = lines.collect_schema().names()
    fast = lines.filter(_FITS).select(c if c in there else pl.lit(None, pl.String).alias(c) for c in names)
    if not rows:
        return _Read(fast, columns, fitting, "fast", "")
    reason = f"{rows:,} of {look.records:,} records are no flat objects with the keys of the first, in its order"
    return _Read(fast.merge_sorted(frame, LINE), columns, fitting + rows, "mixed", reason)


@dataclass(frozen=True)
class _Template:
    """The form of most lines.

    Attributes:
        keys: the columns' names to the keys, as the first record has them.
    """

    keys: dict[str, str]

    def pattern(self, captured: Collection[str] = (), value: str = _SCALAR) -> str:
        """The regular expression of a whole line; the values of ``captured`` are its groups."""
        members = (
            f'"{pl.escape_regex(key)}"{_GAP}:{_GAP}' + (f"({value})" if name in captured else f"(?:{value})")
            for name, key in self.keys.items()
        )
        return rf"^{_GAP}\{{{_GAP}" + f"{_GAP},{_GAP}".join(members) + rf"{_GAP}\}}[ \t\r]*$"

    def take_apart(self, scan: pl.LazyFrame, wants: Callable[[str], bool]) -> pl.LazyFrame:
        """All lines, with the values of those that match, and whether they do."""
        captured = [name for name in self.keys if wants(name)] or [next(iter(self.keys))]
        groups = [f"__group_{n}" for n in range(len(captured))]
        first = pl.col(groups[0])
        line = pl.col(RECORD)
        parts = line.str.extract_groups(self.pattern(captured)).struct.rename_fields(groups)
        values = [pl.when((pl.col(g) != "null") & ~pl.col(EMPTY)).then(pl.col(g).str.strip_chars('"')) for g in groups]
        blank = pl.all_horizontal([pl.col(g).is_in(_NO_VALUE) for g in groups])
        hollow = pl.when(blank).then(line).str.contains(self.pattern(value="|".join(_NO_VALUE)))
        return (
            scan.select(pl.col(LINE).cast(pl.Int64), line, parts.alias("__parts"))
            .unnest("__parts")
            .with_columns(hollow.fill_null(value=False).alias(EMPTY))
            .select(
                *(value.alias(name) for value, name in zip(values, captured, strict=True)),
                LINE,
                pl.when(first.is_not_null()).then(line).str.strip_chars(" \t\r").alias(RECORD),
                pl.lit(value=False).alias(MALFORMED),
                EMPTY,
                first.is_not_null().alias(_FITS),
            )
        )


def _learn(path: Path, look: _Look, reader: _Keys) -> tuple[_Template | None, str]:
    """The form of the first record, or why it cannot be the form of the file."""
    if look.nul or not look.objects:
        return None, "a NUL byte" if look.nul else "the first line is no object"
    records = chain.from_iterable(zip(values, texts, strict=True) for values, _, texts in _lines(path))
    sample = list(islice(records, _SNIFFED_LINES))
    first = next((value for value, _ in sample if isinstance(value, dict)), {})
    names = [reader.name(key) for key in first]
    plain = not any(c in _NOT_PLAIN or c < " " or "\ud800" <= c <= "\udfff" for key in first for c in key)
    if not first or len(set(names)) < len(first) or not plain or len(first) > _MOST_KEYS:
        return None, "the first record's keys are none, unusual or very many"
    template = _Template(dict(zip(names, first, strict=True)))
    lines = pl.Series([printable(text) for _, text in sample])
    if lines.str.contains(template.pattern()).sum() * 2 < len(sample):
        return None, "its records differ in their keys, or hold nested values"
    return template, ""


class _Keys:
    """Objects to columns of text: those that are wanted, and all keys that were met."""

    def __init__(self, config: PipelineConfig, scratch: Path) -> None:
        self._naming = config.source.column_naming
        self._keep = config.source.extra_columns == "keep"
        self._scratch = scratch
        self._wanted = wanted_columns(config)
        self._met: dict[str, None] = {}
        self._within: set[str] = set()
        self._names: dict[str, str] = {}

    def spool(self, source: Iterator[_Batch], known: Iterable[str] = ()) -> tuple[pl.LazyFrame, tuple[str, ...], int]:
        """Write all records; a new file is begun when a key turns up that the current one has no column for.

        Args:
            source: the records.
            known: names of keys that other records of the file have.

        Returns:
            The records, with the columns that are wanted and met; all keys that were met, then the paths that lead to
            something; how many records.
        """
        self._met.update(dict.fromkeys(known))
        parts: list[Spool] = []
        with contextlib.ExitStack() as current:
            for values, lines, texts in source:
                columns, malformed, empty = self._taken(values)
                if not parts or not columns.keys() <= set(parts[-1].columns):
                    current.close()
                    path = self._scratch / f"records-{len(parts)}.parquet"
                    parts.append(current.enter_context(Spool(path, self._columns())))
                nothing = [None] * len(lines)
                fields = [columns.get(name, nothing) for name in parts[-1].columns]
                parts[-1].add(fields, lines, texts, malformed, empty)
        met = tuple(dict.fromkeys([*self._met, *(name for name in self._wanted if name in self._within)]))
        if not parts:
            return no_rows([c for c in self._columns() if c in met]), met, 0
        frame = pl.concat([p.scan() for p in parts], how="diagonal") if len(parts) > 1 else parts[0].scan()
        return frame.drop(c for c in self._wanted if c not in met), met, sum(p.rows for p in parts)

    def wants(self, name: str) -> bool:
        """Whether a column is to be there."""
        return self._keep or name in self._wanted

    def _columns(self) -> list[str]:
        return list(dict.fromkeys([*self._wanted, *(self._met if self._keep else ())]))

    def _taken(self, values: list[object]) -> tuple[dict[str, list[str | None]], list[bool], list[bool]]:
        """The texts of each column, which records are malformed, and which are empty."""
        rows: list[dict[str, object]] = [value if isinstance(value, dict) else {} for value in values]
        keys: dict[str, list[str]] = {}
        for key in dict.fromkeys(chain.from_iterable(rows)):
            keys.setdefault(self.name(key), []).append(key)
        found = {name: self._found(rows, name, keys.get(name, [])) for name in self._columns()}
        malformed = [value is None for value in values]
        try:
            columns = {name: _texts(column) for name, column in found.items()}
        except RecursionError:
            deep = {n for column in found.values() for n, value in enumerate(column) if _is_too_deep(value)}
            malformed = [is_so or n in deep for n, is_so in enumerate(malformed)]
            columns = {
                name: _texts([None if n in deep else value for n, value in enumerate(column)])
                for name, column in found.items()
            }
        bare = [not any(row) for row in zip(*columns.values(), strict=True)]
        empty = [
            nothing and not wrong and not any(item not in (None, "") for item in row.values())
            for nothing, wrong, row in zip(bare, malformed, rows, strict=True)
        ]
        for n in [n for n, (wrong, nothing) in enumerate(zip(malformed, empty, strict=True)) if wrong or nothing]:
            for column in columns.values():
                column[n] = None
        return columns, malformed, empty

    def _found(self, rows: list[dict[str, object]], name: str, keys: list[str]) -> list[object]:
        """What stands in each row for a column; ``keys`` are those that it may stand under."""
        if len(keys) == 1:
            [key] = keys
            column = [row.get(key) for row in rows]
        elif keys:  # spellings that become one name: of several in one object the last counts
            column = [next((row[key] for key in reversed(row) if key in keys), None) for row in rows]
        else:
            column = [None] * len(rows)
        if name not in self._wanted or "." not in name:
            return column
        reached = self._reached(rows, name)
        is_used = [
            item is not _ABSENT and not (keys and any(key in row for key in keys))
            for item, row in zip(reached, rows, strict=True)
        ]
        if any(is_used):
            self._within.add(name)
        return [item if used else given for item, used, given in zip(reached, is_used, column, strict=True)]

    def name(self, key: str) -> str:
        """The column that a key becomes; from now on it is one that was met."""
        name = self._names.get(key)
        if name is None:
            name = rename(printable(key.strip()), self._naming) or "column"
            name = f"{name}_2" if name in HELPERS else name
            self._names[key] = name
            self._met[name] = None
        return name

    def _reached(self, rows: Iterable[object], dotted: str) -> list[object]:
        """What stands at ``actor.id`` or ``items.0.id`` in nested objects and arrays."""
        here = list(rows)
        for step in dotted.split("."):
            here = [h[step] if isinstance(h, dict) and step in h else self._otherwise(h, step) for h in here]
        return here

    def _otherwise(self, here: object, step: str) -> object:
        if isinstance(here, list) and step.isascii() and step.isdecimal() and int(step) < len(here):
            return here[int(step)]
        if isinstance(here, dict):
            key = {rename(k, self._naming): k for k in here}.get(rename(step, self._naming))
            return _ABSENT if key is None else here[key]
        return _ABSENT


def _texts(column: list[object]) -> list[str | None]:
    return [value if value is None or isinstance(value, str) else _nested(value) for value in column]


def _is_too_deep(value: object) -> bool:
    try:
        _texts([value])
    except RecursionError:
        return True
    return False


def _nested(value: object) -> str:
    """Compact JSON, numbers as they were written."""
    return "".join(_ENCODE(value, 0))


def _spelled(text: str) -> str:
    return text if type(text) is _Number else _quoted(text)


_quoted = json.encoder.encode_basestring
# What JSONEncoder calls, which lets nobody say how a text is to be written.
_ENCODE = json.encoder.c_make_encoder(None, None, _spelled, None, ":", ",", False, False, False)  # type: ignore[attr-defined]


def _decode(text: str) -> object:
    """The value of one line; ``None`` for everything that is not an object, and for what is not JSON."""
    try:
        value, end = _SCAN(text, 0)
    except (ValueError, StopIteration, RecursionError):
        return None
    return value if end == len(text) and isinstance(value, dict) else None


def _has_constant(text: str, value: object) -> bool:
    """Whether NaN or Infinity stands in it outside of strings."""
    if "NaN" not in text and "Infinity" not in text:
        return False
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, _NotFinite):
            return True
        if isinstance(item, dict):
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
    return False


def _lines(path: Path, numbers: Iterator[int] | None = None) -> Iterator[_Batch]:
    """The lines that are not blank; when ``numbers`` are given, of those."""
    after, wanted = 1, next(numbers, None) if numbers is not None else None
    with path.open("rb") as file:
        while (numbers is None or wanted is not None) and (read := file.readlines(_BATCH)):
            first, after = after, after + len(read)
            if first == 1:
                read[0] = read[0].removeprefix(codecs.BOM_UTF8)
            places = list(range(first, after))
            if numbers is not None:
                places.clear()
                while wanted is not None and wanted < after:
                    places.append(wanted)
                    wanted = next(numbers, None)
                read = [read[place - first] for place in places]
            bare = [line.strip(b" \t\r\n") for line in read]
            if not all(bare):
                places = [place for place, line in zip(places, bare, strict=True) if line]
                bare = [line for line in bare if line]
            if bare:
                texts = [line.decode("utf-8", "surrogateescape") for line in bare]
                yield [None if is_broken(text) else _decode(text) for text in texts], places, texts


def _batches(items: Iterator[_Item]) -> Iterator[_Batch]:
    """So many records at a time that memory stays small, however long they are."""
    values: list[object] = []
    lines: list[int] = []
    texts: list[str] = []
    size = 0
    for value, line, text in items:
        values.append(value)
        lines.append(line)
        texts.append(text)
        size += len(text)
        if size >= _BATCH:
            yield values, lines, texts
            values, lines, texts, size = [], [], [], 0
    if values:
        yield values, lines, texts


def _is_lines(path: Path) -> bool:
    """Whether the file holds an object on each line rather than one value.

    An object on a line of its own decides it; an opening bracket, or a first object that needs several lines, does not.
    """
    with path.open("rb") as file:
        lines = [x.removeprefix(codecs.BOM_UTF8).strip() for x in islice(file, _SNIFFED_LINES)]
    lines = [x for x in lines if x]
    if not lines or not lines[0].startswith(b"{"):
        return False
    return any(
        x.startswith(b"{")
        and x.endswith(b"}")
        and len(x) > len(b"{}")
        and _decode(x.decode("utf-8", "replace")) is not None
        for x in lines
    )


_INNERMOST = re.compile(rb"\{[^][{}]*+\}|\[[^][{}]*+\]")
_PIECE = re.compile(rb"[^][{}]+|[][{}]")
_STEPS = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
_NO_MARKS = bytes(b for b in range(256) if b not in b'[]{},"')


def _count_elements(path: Path) -> int:
    """The elements of an array, or the objects that follow each other, counted on the bytes without decoding them.

    All but quotes, brackets and commas is left out, then strings; brackets within brackets are counted down. Of a file
    that is no valid JSON it counts something.
    """
    depth = commas = objects = 0
    first = open_string = b""
    with path.open("rb") as file:
        start = file.read(len(codecs.BOM_UTF8))
        if start != codecs.BOM_UTF8:
            file.seek(0)
        while block := file.read(_BLOCK):
            whole = open_string + block
            text = whole.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in whole else whole
            # Two quotes side by side, taken away, leave all else within or outside of strings.
            pieces = text.translate(None, _NO_MARKS).replace(b'""', b"").split(b'"')
            open_string = b""
            if len(pieces) % 2 == 0:
                slashes = len(whole) - len(whole.rstrip(b"\\"))
                open_string = b'"\\' if slashes % 2 else b'"'
            text = b"".join(pieces[::2])
            if len(first) < len(b"[]"):
                is_begun = bool(first)
                first = (first + block.translate(None, _SPACE.encode()))[: len(b"[]")]
                if not is_begun and first.startswith(b"["):
                    depth, text = 1, text[1:]
            for piece in _PIECE.findall(_INNERMOST.sub(b"o", _INNERMOST.sub(b"o", text))):
                step = _STEPS.get(piece, 0)
                if depth == 0 and step >= 0:
                    objects += len(piece)
                elif depth == 1 and step >= 0:
                    commas += piece.count(b",")
                depth += step
    return commas + (first != b"[]") if first.startswith(b"[") else objects


class _Window:
    """A text that is read as far as it is needed, and forgotten as far as it is done."""

    def __init__(self, path: Path) -> None:
        self._file = path.open(encoding="utf-8-sig", newline="")
        self.text = ""
        self.position = 0
        self.at_end = False
        self._line = 1
        self._counted = 0

    def close(self) -> None:
        self._file.close()

    def more(self) -> None:
        """Read on; twice as much each time, so that a long element is not decoded too often."""
        self._forget()
        block = self._file.read(max(_BLOCK, len(self.text)))
        self.at_end = not block
        self.text += block

    def _forget(self) -> None:
        self.here()
        self.text, self.position, self._counted = self.text[self.position :], 0, 0

    def peek(self) -> str:
        """The next character that is no space, or "" at the end; the position is on it."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in _SPACE:
                self.position += 1
            if self.position < len(self.text) or self.at_end:
                return self.text[self.position : self.position + 1]
            self.more()

    def value(self) -> tuple[object, str]:
        """The value that begins at the position, and its text.

        Raises:
            ValueError: there is none, or the text ends within it.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except ValueError:
                if self.at_end:
                    raise
            else:
                if end < len(self.text) or self.at_end:
                    text = self.text[self.position : end]
                    self.position = end
                    return value, text
            self.more()

    def here(self) -> int:
        """The physical line of the position."""
        self._line += self.text.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line


def _elements(path: Path, relative: str) -> Iterator[_Item]:
    """The elements of an array, or objects that follow each other."""
    window = _Window(path)
    try:
        yield from _array(window) if window.peek() == "[" else _objects(window)
    except RecursionError:
        _refuse(relative, window.here(), "it is nested too deeply")
    except UnicodeDecodeError as problem:
        _refuse(relative, window.here(), f"it is not UTF-8 ({problem.reason})")
    except ValueError as problem:
        _refuse(relative, window.here(), str(problem).partition(":")[0])
    finally:
        window.close()


def _refuse(relative: str, line: int, why: str) -> NoReturn:
    raise SourceFileError(
        f"{visible(relative)}, from line {line}: not valid JSON ({visible(why)}). Nothing of the file is used.",
        "The file is cut short or damaged. Ask the sender for it again, or for one record on each line (.jsonl).",
        path=relative,
        line=line,
    ) from None


def _checked(window: _Window) -> _Item:
    line = window.here()
    value, text = window.value()
    return (value if isinstance(value, dict) and not _has_constant(text, value) else None), line, text


def _array(window: _Window) -> Iterator[_Item]:
    window.position += 1
    if window.peek() == "]":
        window.position += 1
    else:
        while True:
            if not window.peek():
                msg = "the array is not closed"
                raise ValueError(msg)
            yield _checked(window)
            mark = window.peek()
            window.position += 1
            if mark == "]":
                break
            if mark != ",":
                msg = "neither a comma nor the end of the array after an element"
                raise ValueError(msg)
            window.peek()
    if window.peek():
        msg = "something stands after the end of the array"
        raise ValueError(msg)


def _objects(window: _Window) -> Iterator[_Item]:
    while mark := window.peek():
        if mark != "{":
            msg = "neither an array nor an object"
            raise ValueError(msg)
        yield _checked(window)
