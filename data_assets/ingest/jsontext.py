"""JSON: a record on each line, or one array (or object) in the file.

Here: both readers. Values become text, numbers as they are written. Not here: what they mean (``values.py``).
"""

from __future__ import annotations

import codecs
import json
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

import polars as pl

from data_assets.errors import SourceFileError, visible
from data_assets.ingest.delimited import transcode
from data_assets.ingest.mapping import wanted_columns
from data_assets.ingest.records import HELPERS, Records, Spool, no_rows, printable, rename

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from data_assets.config import PipelineConfig

_BLOCK = 4 << 20
_SNIFFED_LINES = 100
_SPACE = " \t\n\r"
_UTF16 = ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


class _NotFinite(str):
    """NaN or Infinity, which JSON does not have."""

    __slots__ = ()


class _Number(str):
    """A number as it is written."""

    __slots__ = ()


def _constant(name: str) -> _NotFinite:
    return _NotFinite(name)


_DECODER = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_constant)


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
        physical = _count_lines(path)
        source = _lines(path)
    else:
        physical = -1
        source = _elements(path, relative)
    frame, columns, rows = reader.spool(source)
    if physical not in (-1, rows):
        raise SourceFileError(
            f"{visible(relative)} has {physical} lines with a record, but {rows} were read.",
            "This is a defect of the reader; the file was left alone. Please report it with the file.",
            path=relative,
        )
    return Records(frame, columns, rows, kind + dot + packed, encoding, "exact", "JSON is read record by record")


class _Keys:
    """Objects to rows of text: the columns that are wanted, and all keys that were met."""

    def __init__(self, config: PipelineConfig, scratch: Path) -> None:
        self._naming = config.source.column_naming
        self._keep = config.source.extra_columns == "keep"
        self._scratch = scratch
        self._wanted = wanted_columns(config)
        self._met: dict[str, None] = {}
        self._names: dict[str, str] = {}

    def spool(self, source: Iterator[tuple[object, int, str]]) -> tuple[pl.LazyFrame, tuple[str, ...], int]:
        """Write all records; a new file is begun when a key turns up that the current one has no column for."""
        parts: list[Spool] = []
        columns = list(self._wanted)
        pending: tuple[object, int, str] | None = next(source, None)
        while pending is not None:
            with Spool(self._scratch / f"records-{len(parts)}.parquet", columns) as part:
                parts.append(part)
                pending = self._fill(part, pending, source)
            if pending is not None:
                columns = list(dict.fromkeys([*self._wanted, *self._met]))
        if not parts:
            return no_rows(), (), 0
        frame = pl.concat([p.scan() for p in parts], how="diagonal") if len(parts) > 1 else parts[0].scan()
        absent = [c for c in self._wanted if c not in self._met]
        return frame.drop(absent), tuple(self._met), sum(p.rows for p in parts)

    def _fill(
        self, part: Spool, record: tuple[object, int, str] | None, source: Iterator[tuple[object, int, str]]
    ) -> tuple[object, int, str] | None:
        """Records into ``part`` until one does not fit; that one, or ``None`` at the end."""
        while record is not None:
            value, line, text = record
            try:
                row = self._row(value) if isinstance(value, dict) else None
            except RecursionError:
                row = None
            if row is None or not isinstance(value, dict):
                part.add(None, line, text)
            else:
                if self._keep and not row.keys() <= set(part.columns):
                    return record
                empty = not any(row.values()) and not any(v not in (None, "") for v in value.values())
                part.add(None if empty else [row.get(c) for c in part.columns], line, text, empty=empty)
            record = next(source, None)
        return None

    def _row(self, value: Mapping[str, Any]) -> dict[str, str | None]:
        named = {self._name(key): item for key, item in value.items()}
        row: dict[str, str | None] = {}
        for key in named if self._keep else self._wanted:
            if key in named:
                row[key] = _text(named[key])
        for key in self._wanted:
            if key not in named and "." in key:
                found, item = self._reach(value, key)
                if found:
                    self._met[key] = None
                    row[key] = _text(item)
        return row

    def _name(self, key: str) -> str:
        name = self._names.get(key)
        if name is None:
            name = rename(printable(key.strip()), self._naming) or "column"
            name = f"{name}_2" if name in HELPERS else name
            self._names[key] = name
            self._met[name] = None
        return name

    def _reach(self, value: Mapping[str, Any], dotted: str) -> tuple[bool, object]:
        """What stands at ``actor.id`` in nested objects."""
        here: object = value
        for step in dotted.split("."):
            if not isinstance(here, dict):
                return False, None
            keys = {rename(k, self._naming): k for k in here}
            key = step if step in here else keys.get(rename(step, self._naming))
            if key is None:
                return False, None
            here = here[key]
        return True, here


def _text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else _nested(value)


def _nested(value: object) -> str:
    """Compact JSON, numbers as they were written."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_quoted(k)}:{_nested(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_nested, value)) + "]"
    return value if isinstance(value, _Number) else _quoted(value)


def _quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _decode(text: str) -> object:
    """The value of one line; ``None`` for everything that is not an object, and for what is not JSON."""
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if end == len(text) and isinstance(value, dict) and not _has_constant(text, value) else None


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


def _lines(path: Path) -> Iterator[tuple[object, int, str]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).strip(b" \t\r\n")
            if not line:
                continue
            try:
                text = line.decode()
            except UnicodeDecodeError:
                yield None, number, line.decode("utf-8", "surrogateescape")
                continue
            yield _decode(text), number, text


def _count_lines(path: Path) -> int:
    """Lines that are not blank, counted on the bytes."""
    with path.open("rb") as file:
        return sum(
            1 for n, raw in enumerate(file) if (raw if n else raw.removeprefix(codecs.BOM_UTF8)).strip(b" \t\r\n")
        )


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


def _elements(path: Path, relative: str) -> Iterator[tuple[object, int, str]]:
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


def _checked(window: _Window) -> tuple[object, int, str]:
    line = window.here()
    value, text = window.value()
    return (value if isinstance(value, dict) and not _has_constant(text, value) else None), line, text


def _array(window: _Window) -> Iterator[tuple[object, int, str]]:
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


def _objects(window: _Window) -> Iterator[tuple[object, int, str]]:
    while mark := window.peek():
        if mark != "{":
            msg = "neither an array nor an object"
            raise ValueError(msg)
        yield _checked(window)
