"""CSV: encoding, delimiter, header, and whether the engine may read the file.

Here: the look at the bytes before anything is parsed, and the fast lane. It is taken only when those bytes prove that
the engine cannot lose or mend a record: no quote, no NUL, no bare CR, valid UTF-8. When moreover every line has as many
delimiters as the header, the engine splits the fields as well; else it reads lines and they are split afterwards. Not
here: everything else, record by record (``exact.py``), and what the values mean (``values.py``).
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from data_assets.errors import SourceFileError, visible
from data_assets.ingest import exact
from data_assets.ingest.records import EMPTY, LINE, MALFORMED, RECORD, Records, column_names, no_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from data_assets.config import PipelineConfig

DELIMITERS = ",;\t|"
_BLOCK = 4 << 20
_HEAD_BYTES = 256 << 10
_HEAD_LINES = 50
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_LAST_ASCII = 0x7F


def _latin1(error: UnicodeError) -> tuple[str, int]:
    """For the five bytes that cp1252 leaves undefined."""
    if isinstance(error, UnicodeDecodeError):
        return error.object[error.start : error.end].decode("latin-1"), error.end
    raise error


codecs.register_error("data_assets.latin1", _latin1)


@dataclass
class Look:
    """What one pass over a file's bytes tells.

    Attributes:
        lines: physical lines (ended by LF, CRLF or CR; the last may have no end).
        even: whether every line has exactly as many delimiters as the first.
    """

    lines: int = 0
    quoted: bool = False
    nul: bool = False
    bare_cr: bool = False
    utf8: bool = True
    even: bool = True

    def slow_reason(self) -> str:
        """Why the engine must not read the file; empty when it may."""
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
    encoding = _encoding(path, config.source.csv.encoding)
    if encoding != "utf-8":
        path = transcode(path, encoding, scratch / "utf8", relative)
    head = _head(path)
    delimiter = config.source.csv.delimiter
    if delimiter == "auto":
        delimiter = guess_delimiter(head)
    look = scan_bytes(path, delimiter, head.split("\n", 1)[0].count(delimiter))
    reason = look.slow_reason()
    first = re.split(r"\r\n|\n|\r", head, maxsplit=1)[0]
    if not reason and not first:
        reason = "a blank first line"
    if not reason and (ord(delimiter) > _LAST_ASCII or len(first.encode()) >= _HEAD_BYTES):
        reason = "an unusual delimiter or header"
    if reason:
        return exact.open_exact(
            path, relative, config, scratch, exact.Shape(name, encoding, delimiter, look.lines, reason)
        )
    header = config.source.csv.header
    fields = first.split(delimiter)
    columns = column_names(fields if header else [""] * len(fields), config.source.column_naming)
    frame = _even(path, columns, delimiter, header) if look.even else _lines(path, columns, delimiter, header)
    return Records(frame, columns, look.lines - header, name, encoding, "fast", "")


def _even(path: Path, columns: tuple[str, ...], delimiter: str, header: bool) -> pl.LazyFrame:
    """Every record has every field: the engine splits them, and the fields joined are the record as it stood."""
    scan = pl.scan_csv(
        path,
        glob=False,
        has_header=False,
        skip_rows=int(header),
        schema=dict.fromkeys(columns, pl.String),
        separator=delimiter,
        quote_char=None,
        empty_string_is_null=False,
        row_index_name=LINE,
        row_index_offset=1 + header,
    )
    return scan.with_columns(
        pl.col(LINE).cast(pl.Int64),
        pl.concat_str(columns, separator=delimiter).alias(RECORD),
        pl.lit(value=False).alias(MALFORMED),
        pl.all_horizontal([pl.col(c) == "" for c in columns]).alias(EMPTY),
    )


def _lines(path: Path, columns: tuple[str, ...], delimiter: str, header: bool) -> pl.LazyFrame:
    """Some record is short, long or blank: the engine reads whole lines, NUL (which the file has not) parts nothing."""
    scan = pl.scan_csv(
        path,
        glob=False,
        has_header=False,
        skip_rows=int(header),
        schema={RECORD: pl.String, "__nul": pl.String},
        separator="\0",
        quote_char=None,
        empty_string_is_null=False,
        missing_columns="insert",
        row_index_name=LINE,
        row_index_offset=1 + header,
    )
    count = len(columns)
    fields = pl.col(RECORD).str.split_exact(delimiter, count)
    last, surplus = pl.col(f"field_{count - 1}"), pl.col(f"field_{count}")
    blank = pl.col(RECORD) == ""
    wrong = (last.is_null() | surplus.is_not_null()) & ~blank
    return (
        scan.select(pl.col(LINE).cast(pl.Int64), RECORD, fields.alias("__fields"))
        .unnest("__fields")
        .with_columns(
            wrong.alias(MALFORMED),
            (blank | (~wrong & pl.all_horizontal([pl.col(f"field_{i}") == "" for i in range(count)]))).alias(EMPTY),
        )
        .select(
            *(pl.col(f"field_{i}").alias(c) for i, c in enumerate(columns)), LINE, RECORD, MALFORMED, EMPTY
        )
    )  # fmt: skip


def scan_bytes(path: Path, delimiter: str, per_line: int) -> Look:
    """Look at every byte once. ``per_line``: how many delimiters each line should have.

    Evenness is seen by deleting everything but delimiters and line feeds: what remains must be one pattern repeated.
    """
    look = Look()
    mark = delimiter.encode() if ord(delimiter) <= _LAST_ASCII else b""
    drop = bytes(b for b in range(256) if b not in mark + b"\n")
    unit = mark * per_line + b"\n"
    repeated = unit * (_BLOCK // len(unit) + 2)
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
        if look.even:
            rest = block.translate(None, drop)
            look.even = rest == repeated[phase : phase + len(rest)]
            phase = (phase + len(rest)) % len(unit)
            feeds += rest.count(b"\n")
        else:
            feeds += block.count(b"\n")
        look.utf8 = look.utf8 and _is_utf8(decoder, block)
        last = block[-1:]
    bare += last == b"\r"
    look.utf8 = look.utf8 and _is_utf8(decoder, b"", final=True)
    look.bare_cr = bare > 0
    look.lines = feeds + bare + (last not in b"\r\n")
    look.even = look.even and (phase == 0 if last == b"\n" else phase == per_line)
    return look


def _is_utf8(decoder: codecs.IncrementalDecoder, block: bytes, *, final: bool = False) -> bool:
    if not final and block.isascii() and not decoder.getstate()[0]:
        return True
    try:
        decoder.decode(block, final)
    except UnicodeDecodeError:
        return False
    return True


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")


def _encoding(path: Path, configured: str) -> str:
    """The encoding: as configured, else by byte order mark, else UTF-8 if it is that, else cp1252.

    A file that is UTF-8 but for a few broken bytes stays UTF-8 (those lines are refused) rather than turn every
    accented letter of the others into two wrong ones.
    """
    with path.open("rb") as file:
        start = file.read(4)
    marked = next((encoding for bom, encoding in _BOMS if start.startswith(bom)), None)
    if configured != "auto":
        plain = codecs.lookup(configured).name.replace("_", "-").removesuffix("-sig")
        return marked if marked and plain in ("utf-16", "utf-32", "utf-8") else plain
    if marked:
        return marked
    good = bad = 0
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for block in _blocks(path):
        if block.isascii() and not decoder.getstate()[0]:
            continue
        text = decoder.decode(block)
        try:
            text.encode()
        except UnicodeEncodeError:
            bad += sum("\udc80" <= c <= "\udcff" for c in text)
        if bad or not good:
            good += sum(c > "\x7f" and not "\udc80" <= c <= "\udcff" for c in text)
    bad += len(decoder.getstate()[0])
    return "utf-8" if good >= bad else "cp1252"


def transcode(path: Path, encoding: str, target: Path, relative: str) -> Path:
    """The file's text as UTF-8 in ``target``, line ends untouched.

    Raises:
        SourceFileError: the configured encoding cannot be.
    """
    errors = "data_assets.latin1" if encoding == "cp1252" else "replace" if encoding.startswith("utf-") else "strict"
    try:
        with path.open(encoding=encoding, errors=errors, newline="") as source, target.open("wb") as out:
            first = True
            while text := source.read(_BLOCK):
                out.write((text.removeprefix("\ufeff") if first else text).encode("utf-8", "backslashreplace"))
                first = False
    except UnicodeError as problem:
        raise SourceFileError(
            f"{visible(relative)} is not {encoding}, which source.csv.encoding says it is: {visible(str(problem))}.",
            "Set source.csv.encoding to auto or to the encoding that the sender uses.",
            path=relative,
        ) from problem
    return target


def guess_delimiter(head: str) -> str:
    r"""The delimiter with which the first lines fall into equally many fields; a comma when none does.

    >>> guess_delimiter("a;b,c\\n1;2,5\\n3;4\\n")
    ';'
    """
    lines = [x for x in re.split(r"\r\n|\n|\r", _QUOTED.sub("", head)) if x]
    lines = (lines[:-1] if len(lines) > 1 and len(head) >= _HEAD_BYTES else lines)[:_HEAD_LINES]
    best, score = ",", (0.0, 0)
    for candidate in DELIMITERS:
        counts = [line.count(candidate) for line in lines]
        if not counts or not counts[0]:
            continue
        width, agree = counts[0], Counter(counts)[counts[0]]
        if (agree / len(counts), width) > score:
            best, score = candidate, (agree / len(counts), width)
    return best
