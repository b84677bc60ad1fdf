"""CSV: encoding, delimiter, header, and which lines the engine may read.

Here: the look at the bytes before anything is parsed, and the lanes of the engine. It reads a file whole when those
bytes prove that it cannot lose or mend a record: no quote, no NUL, no bare CR, valid UTF-8. Where they do not, every
line is compared with the grammar of a complete record; the lines that do not fit it are read apart (``exact.py``), the
others by the engine. Not here: what the values mean (``values.py``).
"""

from __future__ import annotations

import codecs
import csv
import functools
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from data_assets.errors import SourceFileError, visible
from data_assets.ingest import exact
from data_assets.ingest.mapping import find, required_columns
from data_assets.ingest.records import (
    EMPTY,
    HELPERS,
    LINE,
    MALFORMED,
    RECORD,
    Records,
    Spool,
    column_names,
    no_rows,
    printable,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from data_assets.config import PipelineConfig

DELIMITERS = ",;\t|"
_BLOCK = 256 << 10  # small enough to stay in the processor's cache, and to be allocated without asking the kernel
_TRANSCODED = 4 << 20
_HEAD_BYTES = 256 << 10
_HEAD_CHARACTERS = _HEAD_BYTES // 4  # a head of fewer characters is the whole file
_HEAD_LINES = 50
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_LINE_END = re.compile(r"\r\n|\n|\r")
_LAST_ASCII = 0x7F
_FEED = 0x0A
_GRAMMAR_COLUMNS = 1_000  # the grammar of a record grows with its columns
_APART = 1_000  # so many lines are read apart in any file
_LOOKS = 1_024  # so many of them are remembered, a few hundred bytes each
_APART_SHARE = 0.02  # beyond that, this share of its lines


def _latin1(error: UnicodeError) -> tuple[str, int]:
    """For the five bytes that cp1252 leaves undefined."""
    if isinstance(error, UnicodeDecodeError):
        return error.object[error.start : error.end].decode("latin-1"), error.end
    raise error


def _broken(error: UnicodeError) -> tuple[str, int]:
    """For what is no text: a byte that is no UTF-8 either, so that its line is refused and not mended."""
    if isinstance(error, UnicodeDecodeError):
        return "\udcff", error.end
    raise error


codecs.register_error("data_assets.latin1", _latin1)
codecs.register_error("data_assets.broken", _broken)


@dataclass(frozen=True)
class Top:
    """How a file begins.

    Attributes:
        delimiter: the character between fields.
        before: the lines above the header, blank ones included.
        fields: the header's fields; without a header, those of the first line. ``None`` when one line does not hold
            them all.
        length: bytes of the lines above the header, without a byte order mark.
    """

    delimiter: str
    before: tuple[str, ...]
    fields: tuple[str, ...] | None
    length: int

    def records_above(self) -> list[str]:
        """The lines above the header that are records; blank ones right before it belong to it."""
        last = max((number for number, text in enumerate(self.before, 1) if text), default=0)
        return list(self.before[:last])


@dataclass
class Look:
    """What one pass over a file's bytes tells.

    Attributes:
        lines: physical lines (ended by LF, CRLF or CR; the last may have no end).
        even: whether every line, from the header on, has as many delimiters as it.
    """

    lines: int = 0
    quoted: bool = False
    nul: bool = False
    bare_cr: bool = False
    utf8: bool = True
    even: bool = True

    def doubts(self) -> str:
        """Why the engine might misread the file; empty when it cannot."""
        found = (
            ("quotes", self.quoted),
            ("a NUL byte", self.nul),
            ("line ends by CR alone", self.bare_cr),
            ("bytes that are not UTF-8", not self.utf8),
        )
        return ", ".join(text for text, holds in found if holds)


def open_csv(path: Path, relative: str, config: PipelineConfig, scratch: Path, name: str) -> Records:
    """Open a delimited text file.

    Raises:
        SourceFileError: its text cannot be decoded at all.
    """
    if path.stat().st_size == 0:
        return Records(no_rows(), (), 0, name, "utf-8", "fast", "")
    encoding = _declared(path, config.source.csv.encoding)
    if encoding not in ("", "utf-8"):
        path = transcode(path, encoding, scratch / "utf8", relative)
    top = find_top(_head(path), config)
    look = _look(path, top)
    if not encoding and not look.utf8 and _is_cp1252(path):
        encoding = "cp1252"
        path = transcode(path, encoding, scratch / "utf8", relative)
        top = find_top(_head(path), config)
        look = _look(path, top)
    opened = _engine(_File(path, top, look, config), scratch)
    if opened is None:
        doubts = look.doubts() or "an unusual delimiter or header"
        shape = exact.Shape(top.delimiter, look.lines, len(top.records_above()))
        frame, columns, rows = exact.read_all(path, relative, config, scratch, shape)
        return Records(frame, columns, rows, name, encoding or "utf-8", "exact", doubts)
    lane = "mixed" if opened.apart else "fast"
    reason = f"{opened.apart:,} lines read apart: {look.doubts()}" if opened.apart else ""
    frame, record, empty = opened.frame, opened.record, opened.empty
    above = top.records_above()
    if above:
        frame, record, empty = _below(above, frame.with_columns(record.alias(RECORD), empty.alias(EMPTY)))
    rows = opened.rows + len(above)
    return Records(frame, opened.columns, rows, name, encoding or "utf-8", lane, reason, record, empty)


@dataclass(frozen=True)
class _File:
    """A file of UTF-8 text and what is known of it."""

    path: Path
    top: Top
    look: Look
    config: PipelineConfig

    @property
    def first(self) -> int:
        """Lines before the first record."""
        return len(self.top.before) + self.config.source.csv.header

    def scan(self, path: Path, schema: Mapping[str, type[pl.String]], separator: str, **how: Any) -> pl.LazyFrame:
        """The engine's reader from the first record on."""
        return pl.scan_csv(
            path,
            glob=False,
            has_header=False,
            skip_lines=self.first,
            schema=schema,
            separator=separator,
            empty_string_is_null=False,
            **how,
        )

    def raw(self) -> pl.LazyFrame:
        """Lines and their numbers; NUL, which the file has not, parts nothing."""
        return self.scan(
            self.path,
            {RECORD: pl.String, "__nul": pl.String},
            "\0",
            quote_char=None,
            encoding="utf8" if self.look.utf8 else "utf8-lossy",
            missing_columns="insert",
            row_index_name=LINE,
            row_index_offset=1 + self.first,
        ).select(pl.col(LINE).cast(pl.Int64), RECORD)


@dataclass(frozen=True)
class _Opened:
    """The records below the header; the fields as in ``Records``. ``apart``: lines that the engine did not read."""

    frame: pl.LazyFrame
    columns: tuple[str, ...]
    rows: int
    record: pl.Expr
    empty: pl.Expr
    apart: int = 0


def _engine(file: _File, scratch: Path) -> _Opened | None:
    """The file as the engine reads it; ``None`` where it must not."""
    look, top, source = file.look, file.top, file.config.source
    if not top.fields or look.bare_cr or look.nul or ord(top.delimiter) > _LAST_ASCII:
        return None
    columns = column_names(top.fields if source.csv.header else [""] * len(top.fields), source.column_naming)
    if look.doubts():
        return _sifted(file, columns, scratch) if len(columns) <= _GRAMMAR_COLUMNS else None
    return _even(file, columns) if look.even else _uneven(file, columns)


def _even(file: _File, columns: tuple[str, ...]) -> _Opened:
    """Every record has every field: the engine splits them, and the fields joined are the record as it stood."""
    frame = file.scan(
        file.path,
        dict.fromkeys(columns, pl.String),
        file.top.delimiter,
        quote_char=None,
        row_index_name=LINE,
        row_index_offset=1 + file.first,
    ).with_columns(pl.col(LINE).cast(pl.Int64), pl.lit(value=False).alias(MALFORMED))
    record = pl.concat_str(columns, separator=file.top.delimiter)
    return _Opened(frame, columns, file.look.lines - file.first, record, _all_blank(columns))


def _uneven(file: _File, columns: tuple[str, ...]) -> _Opened:
    """Some record is short, long or blank: the engine reads whole lines, which are split afterwards."""
    count = len(columns)
    fields = pl.col(RECORD).str.split_exact(file.top.delimiter, count)
    last, surplus = pl.col(f"field_{count - 1}"), pl.col(f"field_{count}")
    wrong = (last.is_null() | surplus.is_not_null()) & (pl.col(RECORD) != "")
    frame = (
        file.raw()
        .select(LINE, RECORD, fields.alias("__fields"))
        .unnest("__fields")
        .select(*(pl.col(f"field_{i}").alias(c) for i, c in enumerate(columns)), LINE, RECORD, wrong.alias(MALFORMED))
    )
    empty = (pl.col(RECORD) == "") | (~pl.col(MALFORMED) & _all_blank(columns))
    return _Opened(frame, columns, file.look.lines - file.first, pl.col(RECORD), empty)


def _sifted(file: _File, columns: tuple[str, ...], scratch: Path) -> _Opened | None:
    """Quotes or broken bytes: the engine reads the lines that are a record each by the strictest grammar.

    The others, and the lines that their quotes take with them, are read apart, and the engine gets a copy of the file
    with nothing between the delimiters of those. ``None`` when they are too many.
    """
    raw, mark = file.raw(), re.escape(file.top.delimiter)
    field = f'(?:[^"{mark}]*|"(?:[^"]|"")*")'
    whole = f"^{field}(?:{mark}{field}){{{len(columns) - 1}}}$"
    line = pl.col(RECORD)
    plain = line.str.contains(whole) | ((line == "") & (pl.col(LINE) > 1 + file.first))  # the first tells the width
    doubtful = ~plain | line.str.contains("\ufffd", literal=True)
    limit = max(_APART, int(file.look.lines * _APART_SHARE))
    apart = raw.filter(doubtful).select(LINE).head(limit + 1).collect(engine="streaming")[LINE].sort().to_list()
    if len(apart) > limit:
        return None
    path, taken, spool = file.path, [], None
    if apart:
        path = scratch / "sifted.csv"
        spool = Spool(scratch / "apart.parquet", columns)
        taken = exact.read_apart(file.path, apart, file.top.delimiter, path, spool)
    fields = file.scan(path, dict.fromkeys(columns, pl.String), file.top.delimiter, quote_char='"')
    frame = pl.concat([raw, fields], how="horizontal").with_columns(
        pl.lit(value=False).alias(MALFORMED), ((line == "") | _all_blank(columns)).alias(EMPTY)
    )
    if spool is not None:
        rest = frame.filter(~pl.col(LINE).is_in(taken))
        names = frame.collect_schema().names()
        frame = rest.merge_sorted(spool.scan().select(names), key=LINE, maintain_order=True)
    rows = file.look.lines - file.first - len(taken) + (spool.rows if spool else 0)
    return _Opened(frame, columns, rows, line, pl.col(EMPTY), len(apart))


def _all_blank(columns: Sequence[str]) -> pl.Expr:
    return pl.all_horizontal([pl.col(c) == "" for c in columns])


def _below(above: list[str], frame: pl.LazyFrame) -> tuple[pl.LazyFrame, pl.Expr, pl.Expr]:
    """The records, and before them the lines that stand above the header, each of which is malformed or blank."""
    schema, blank = frame.collect_schema(), pl.col(RECORD) == ""
    lines = pl.LazyFrame({RECORD: above}, schema={RECORD: pl.String}).with_row_index(LINE, offset=1)
    lines = lines.with_columns(pl.col(LINE).cast(pl.Int64), (~blank).alias(MALFORMED), blank.alias(EMPTY))
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in schema.items() if name not in HELPERS]
    return pl.concat([lines.with_columns(missing).select(schema.names()), frame]), pl.col(RECORD), pl.col(EMPTY)


def find_top(head: str, config: PipelineConfig) -> Top:
    """Where the header stands, and what parts its fields.

    The header is the first line that names every column that the mapping requires; where none does, the first that is
    not blank. The delimiter is the configured one, else the one with which the header does so.
    """
    csv_config, naming = config.source.csv, config.source.column_naming
    guess = guess_delimiter(head) if csv_config.delimiter == "auto" else csv_config.delimiter
    marks = [guess] if csv_config.delimiter != "auto" else [guess, *(d for d in DELIMITERS if d != guess)]
    ends = [m.end() for m in _LINE_END.finditer(head)]
    lines = _LINE_END.split(head)
    if not csv_config.header:
        return Top(guess, (), _fields(lines[0], guess), 0)
    index, mark = next((i for i, x in enumerate(lines) if x), 0), guess
    required = required_columns(config)
    for number, text in enumerate(lines[:_HEAD_LINES]):
        named = (d for d in marks if text and _names(required, _fields(text, d), naming))
        if (found := next(named, None)) is not None:
            index, mark = number, found
            break
    length = len(head[: ends[index - 1]].encode("utf-8", "surrogateescape")) if index else 0
    whole = index < len(ends) or len(head) < _HEAD_CHARACTERS
    return Top(mark, tuple(printable(x) for x in lines[:index]), _fields(lines[index], mark) if whole else None, length)


def _names(required: Sequence[str], fields: Sequence[str] | None, naming: str) -> bool:
    columns = column_names(fields or (), naming)
    return bool(columns) and all(find(name, columns, naming) for name in required)


def _fields(line: str, delimiter: str) -> tuple[str, ...] | None:
    """The fields of a line; ``None`` when its quotes are not closed on it."""
    try:
        return tuple(next(csv.reader([line], delimiter=delimiter, strict=True), ()))
    except csv.Error:
        return None


def _look(path: Path, top: Top) -> Look:
    """The look at a file; one that has not changed since this process looked is not looked at again."""
    found = path.stat()
    identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return _looked(path, identity, top.delimiter, len(top.fields or ()) - 1, top.length)


@functools.lru_cache(maxsize=_LOOKS)
def _looked(path: Path, _identity: tuple[int, ...], delimiter: str, per_line: int, skip: int) -> Look:
    return scan_bytes(path, delimiter, per_line, skip)


def scan_bytes(path: Path, delimiter: str, per_line: int, skip: int = 0) -> Look:
    """Look at every byte once.

    Evenness is seen by leaving out everything but delimiters and line feeds: what remains must be one pattern repeated.
    The engine does so in half the time that ``bytes.translate`` takes.

    Args:
        path: the file.
        delimiter: the character between fields.
        per_line: how many of them each line should have.
        skip: bytes of the lines above the header, which need not have them; at most a block.
    """
    look = Look()
    mark = delimiter.encode() if ord(delimiter) <= _LAST_ASCII else b""
    unit = mark * per_line + b"\n"
    repeated = _bytes(unit * (_BLOCK // len(unit) + 2))
    decoder = codecs.getincrementaldecoder("utf-8")()
    feeds = bare = phase = 0
    last = b""
    for block in _blocks(path):
        look.quoted = look.quoted or b'"' in block
        look.nul = look.nul or b"\0" in block
        if last == b"\r" and not block.startswith(b"\n"):
            bare += 1
        if b"\r" in block:
            bare += block.count(b"\r") - block.count(b"\r\n") - block.endswith(b"\r")
        above = skip + len(codecs.BOM_UTF8) * block.startswith(codecs.BOM_UTF8) if skip else 0
        feeds += block.count(b"\n", 0, above) if above else 0
        below, skip = block[above:] if above else block, 0
        if look.even:
            each = _bytes(below)
            rest = each.filter((each == _FEED) | (each == ord(delimiter))) if mark else each.filter(each == _FEED)
            look.even = (rest == repeated.slice(phase, len(rest))).all()
            whole, phase = divmod(phase + len(rest), len(unit))
            feeds += whole if look.even else below.count(b"\n")
        else:
            feeds += below.count(b"\n")
        look.utf8 = look.utf8 and _is_utf8(decoder, block)
        last = block[-1:]
    bare += last == b"\r"
    look.utf8 = look.utf8 and _is_utf8(decoder, b"", final=True)
    look.bare_cr = bare > 0
    look.lines = feeds + bare + (last not in b"\r\n")
    look.even = look.even and (phase == 0 if last == b"\n" else phase == per_line)
    return look


def _bytes(block: bytes) -> pl.Series:
    """As they lie there, not copied."""
    import pyarrow as pa

    return pl.Series(pa.Array.from_buffers(pa.uint8(), len(block), [None, pa.py_buffer(block)]))


def _is_utf8(decoder: codecs.IncrementalDecoder, block: bytes, *, final: bool = False) -> bool:
    if not final and block.isascii() and not decoder.getstate()[0]:
        return True
    try:
        decoder.decode(block, final)
    except UnicodeDecodeError:
        return False
    return True


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            yield block


def _head(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8)
    return head.decode("utf-8", "surrogateescape")


def _declared(path: Path, configured: str) -> str:
    """The encoding as configured, else by byte order mark, else none."""
    with path.open("rb") as file:
        start = file.read(4)
    marked = next((encoding for bom, encoding in _BOMS if start.startswith(bom)), "")
    if configured == "auto":
        return marked
    plain = codecs.lookup(configured).name.replace("_", "-").removesuffix("-sig")
    return marked if marked and plain in ("utf-16", "utf-32", "utf-8") else plain


def _is_cp1252(path: Path) -> bool:
    """Whether a file that is not all UTF-8 is cp1252 rather than UTF-8 with a few broken bytes.

    Those lines are refused; as cp1252, every accented letter of the others would become two wrong ones.
    """
    good = bad = 0
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for block in _blocks(path):
        if block.isascii() and not decoder.getstate()[0]:
            continue
        text = decoder.decode(block)
        sound = text.encode("utf-8", "ignore").decode()
        bad += len(text) - len(sound)
        good += len(sound) - len(sound.encode("ascii", "ignore"))
    bad += len(decoder.getstate()[0])
    return bad > good


def transcode(path: Path, encoding: str, target: Path, relative: str) -> Path:
    """The file's text as UTF-8 in ``target``, line ends untouched.

    Raises:
        SourceFileError: the configured encoding cannot be.
    """
    kept = "data_assets.broken" if encoding.startswith("utf-") else "strict"
    errors = "data_assets.latin1" if encoding == "cp1252" else kept
    try:
        with path.open(encoding=encoding, errors=errors, newline="") as source, target.open("wb") as out:
            first = True
            while text := source.read(_TRANSCODED):
                out.write((text.removeprefix("\ufeff") if first else text).encode("utf-8", "surrogateescape"))
                first = False
    except UnicodeError as problem:
        raise SourceFileError(
            f"{visible(relative)} is not {encoding}, which source.csv.encoding says it is: {visible(str(problem))}.",
            "Set source.csv.encoding to auto or to the encoding that the sender uses.",
            path=relative,
        ) from problem
    return target


def guess_delimiter(head: str) -> str:
    r"""The delimiter with which most of the first lines fall into equally many fields; a comma when none does.

    >>> guess_delimiter("a;b,c\\n1;2,5\\n3;4\\n")
    ';'
    """
    lines = [x for x in _LINE_END.split(_QUOTED.sub("", head)) if x]
    lines = (lines[:-1] if len(lines) > 1 and len(head) >= _HEAD_CHARACTERS else lines)[:_HEAD_LINES]
    best, score = ",", (0.0, 0)
    for candidate in DELIMITERS:
        counts = Counter(n for line in lines if (n := line.count(candidate)))
        for width, agree in counts.items():
            if (agree / len(lines), width) > score:
                best, score = candidate, (agree / len(lines), width)
    return best
