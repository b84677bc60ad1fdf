"""Polluted CSV files of which the truth is known, each made from a seed alone.

Here: random tables, written in a random dialect, then polluted in one or several ways as the Pollock benchmark does it
(Vitagliano et al., VLDB 2023), and ``problems``, which holds what was read against what was written. Not here: the
loops over seeds (``test_pollution.py``, ``benchmarks/fuzz.py``), and any reader.

The truth. A file is a list of pieces, each a record or a line of something else; a piece knows on which physical line
it starts (line ends are LF, CRLF and CR, inside quotes too) and how many it covers. A clean piece must come back as
exactly one valid row on its line with its values. A polluted piece must come back as at least one row and at most one
for each of its lines, since a record with a broken quote may tear into its lines; all of them refused where the
pollution leaves no way to read it (``refused``), either way where it does (a stray quote may well be text).

What is kept apart, because there the bytes are a well-formed other table and no reader could know: a file with quotes
torn open has none torn shut, and its clean quoted fields do not begin with a delimiter, a quote or a line end.
"""

from __future__ import annotations

import codecs
import datetime as dt
import gzip
import itertools
import random
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import polars as pl

END = re.compile(r"\r\n|\n|\r")
DELIMITERS = ",;\t|"
WORDS = ("buy", "view", "click", "été", "größe", "søk", "naïve", "x", "long text with spaces", "it's", "a/b", "50%")
ASCII_WORDS = tuple(w for w in WORDS if w.isascii())
OURS = ("user_id", "session_start", "event_type")
OPTIONAL = ("session_end", "value", "metadata", "country", "note")
FIRST = dt.datetime(2024, 1, 1)  # noqa: DTZ001 - wall time
HUGE_EVERY = 5
LARGE_EVERY = 60


@dataclass
class Piece:
    """A record or a line of something else.

    Attributes:
        text: as it stands in the file, without its line end.
        values: of the clean record, by column; ``None`` for everything else.
        refused: whether no row that comes of it may be valid.
        is_row: whether it counts; the header does not.
    """

    text: str
    end: str
    fields: list[str] = field(default_factory=list)
    values: dict[str, Any] | None = None
    refused: bool = False
    is_row: bool = True
    line: int = 0
    lines: int = 1

    @property
    def is_clean(self) -> bool:
        return self.values is not None


@dataclass
class Polluted:
    """One file and the truth about it.

    Attributes:
        content: its bytes.
        source: the ``source`` section of the configuration that it needs.
        pieces: all of it in order, the header among them.
        what: the pollutions, by name.
        may_be_refused: whether the file may be refused whole, with a clear error.
    """

    seed: int
    name: str
    content: bytes
    source: dict[str, Any]
    pieces: list[Piece]
    what: list[str]
    may_be_refused: bool = False

    @property
    def physical(self) -> tuple[int, int]:
        """The least and the most rows that conserve it."""
        rows = [p for p in self.pieces if p.is_row]
        return len(rows), sum(1 if p.is_clean else p.lines for p in rows)


class _Maker:
    """The state while one file is made."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        r = self.r
        self.delimiter = r.choice(DELIMITERS)
        self.end = r.choice(("\n", "\n", "\r\n", "\r"))
        self.quoting = r.choice(("least", "least", "all", "text", "some"))
        self.encoding = r.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252", "ascii"))
        self.header = r.random() < 0.85
        self.last_end = r.random() < 0.7
        self.packed = r.choice(("", "", "", "", ".gz", ".zst"))
        self.words = ASCII_WORDS if self.encoding == "ascii" else WORDS
        self.columns = [*OURS, *r.sample(OPTIONAL, r.randint(0, len(OPTIONAL)))]
        r.shuffle(self.columns)
        large = r.randrange(LARGE_EVERY) == 0
        self.height = r.randint(2_100, 5_000) if large else r.randint(6, 40)
        names = [n for n in POLLUTIONS if self.header or n not in NEEDS_HEADER]
        self.what = r.sample(names, r.choice((0, 1, 1, 1, 1, 2, 2, 3)))
        if "open_quote" in self.what:
            self.what = [n for n in self.what if n not in TEARS_SHUT]
        if "other_separator_in_all" in self.what:
            self.what = [n for n in self.what if n not in TEARS] + ["other_separator_in_all"]  # none is left to tear
        self.tame = bool(set(self.what) & TEARS)
        self.may_be_refused = False
        self.torn: str | None = None
        self.bad_bytes = False
        rows = [self.record() for _ in range(self.height)]
        self.pieces = [*([self.head()] if self.header else []), *rows]

    # ---- a clean table ----------------------------------------------------------------------------------------

    def text(self) -> str:
        r = self.r
        if r.random() < 0.15:
            return ""
        if r.random() < 0.6:
            return r.choice(self.words)
        odd = (self.delimiter, r.choice(DELIMITERS), '"', "\n", "\r\n", "\r", '"' + self.delimiter, "\n\n")
        middle = r.choice(odd[:6] if self.tame else odd)
        # Between letters: see the module's docstring. Where nothing tears, anything goes.
        if self.tame or r.random() < 0.5:
            return f"{r.choice(ASCII_WORDS)}{middle}{r.choice(ASCII_WORDS)}"
        return r.choice((middle + "x", "x" + middle, middle, middle + middle))

    def values(self) -> dict[str, Any]:
        r = self.r
        start = FIRST + dt.timedelta(seconds=r.randrange(3 * 86_400))
        metadata = self.text()
        return {
            "user_id": r.randint(-5, 10**6),
            "session_start": start,
            "event_type": r.choice(self.words),
            "session_end": start + dt.timedelta(minutes=r.randint(0, 90)) if r.random() < 0.8 else None,
            "value": r.choice((None, round(r.uniform(-100, 1000), 2), float(r.randint(0, 9)))),
            "metadata": metadata,
            "country": self.text(),
            "note": self.text(),
        }

    def encoded(self, value: object) -> str:
        text = "" if value is None else str(value)
        must = bool(set(text) & {self.delimiter, '"', "\n", "\r"})
        may = {
            "least": False,
            "all": True,
            "text": isinstance(value, str),
            "some": self.r.random() < 0.4,
        }[self.quoting]
        return '"' + text.replace('"', '""') + '"' if must or may else text

    def record(self) -> Piece:
        values = {k: v for k, v in self.values().items() if k in self.columns}
        fields = [self.encoded(values[c]) for c in self.columns]
        if not values.get("metadata", "x").strip():
            values["metadata"] = None  # null_values hold with white space around them too
        return Piece(self.delimiter.join(fields), self.end, fields, values)

    def head(self) -> Piece:
        names = [c.upper() if self.r.random() < 0.1 else c for c in self.columns]
        quoted = self.quoting == "all"
        fields = [f'"{n}"' if quoted else n for n in names]
        return Piece(self.delimiter.join(fields), self.end, fields, is_row=False)

    # ---- what the pollutions use ------------------------------------------------------------------------------

    def victim(self) -> Piece:
        """A clean record, no longer clean. Never the first one: a file without a header takes its width from it."""
        candidates = [p for p in self.pieces[1:] if p.is_clean]
        few = self.r.sample(candidates, min(len(candidates), 3))
        chosen = min(few, key=lambda p: len(END.findall(p.text)))  # mostly single lines, as files mostly are
        chosen.values = None
        return chosen

    def spoil(self, piece: Piece, text: str, *, refused: bool) -> None:
        piece.text, piece.refused = text, refused

    def somewhere(self) -> int:
        """A place between two rows, or after the last."""
        head = next((n for n, p in enumerate(self.pieces) if not p.is_row), 0)
        return self.r.randint(head + 1 + self.header, len(self.pieces))

    def insert(self, text: str, at: int | None = None, *, refused: bool = True) -> None:
        piece = Piece(text, self.end, refused=refused)
        self.pieces.insert(self.somewhere() if at is None else at, piece)


def extra_delimiter(m: _Maker) -> None:
    for _ in range(m.r.randint(1, 2)):
        piece = m.victim()
        fields = list(piece.fields)
        fields.insert(m.r.randint(0, len(fields)), "")
        m.spoil(piece, m.delimiter.join(fields), refused=True)


def missing_delimiter(m: _Maker) -> None:
    piece = m.victim()
    at = m.r.randrange(len(piece.fields) - 1)
    joined = piece.fields[at] + piece.fields[at + 1]
    fields = [*piece.fields[:at], joined, *piece.fields[at + 2 :]]
    # A quote that no longer begins its field is text, so a delimiter that it kept now parts fields in its stead.
    m.spoil(piece, m.delimiter.join(fields), refused=m.delimiter not in joined)


def ragged(m: _Maker) -> None:
    for _ in range(m.r.randint(1, 3)):
        piece = m.victim()
        if m.r.random() < 0.5:
            fields = piece.fields[: m.r.randint(1, len(piece.fields) - 1)]
            if not any(f.strip('"') for f in fields):
                fields[0] = "x"
        else:
            fields = [*piece.fields, *("x" * m.r.randint(1, 9))]
        m.spoil(piece, m.delimiter.join(fields), refused=True)


def open_quote(m: _Maker) -> None:
    """A quote before a field that has none, or the closing one of a field that has both taken away."""
    for _ in range(m.r.randint(1, 3)):
        piece = m.victim()
        fields = list(piece.fields)
        at = m.r.choice([i for i, f in enumerate(fields) if f.strip('"')])
        fields[at] = fields[at][:-1] if fields[at].startswith('"') else '"' + fields[at]
        m.spoil(piece, m.delimiter.join(fields), refused=False)


def shut_quote(m: _Maker) -> None:
    """A quote after a field that has none, or the opening one of a field that has both taken away."""
    for _ in range(m.r.randint(1, 3)):
        piece = m.victim()
        fields = list(piece.fields)
        at = m.r.choice([i for i, f in enumerate(fields) if f.strip('"')])
        fields[at] = fields[at][1:] if fields[at].startswith('"') else fields[at] + '"'
        m.spoil(piece, m.delimiter.join(fields), refused=False)


def stray_quote(m: _Maker) -> None:
    """One quote anywhere in one record."""
    piece = m.victim()
    at = m.r.randint(0, len(piece.text))
    m.spoil(piece, piece.text[:at] + '"' + piece.text[at:], refused=False)


def other_separator(m: _Maker) -> None:
    """One record between whose fields something else stands."""
    piece = m.victim()
    other = m.r.choice([d for d in (*DELIMITERS, " ", "::") if d != m.delimiter])
    m.spoil(piece, other.join(piece.fields), refused=True)


def other_separator_in_all(m: _Maker) -> None:
    """Every record but the header: nothing can be read, yet nothing may get lost."""
    other = m.r.choice([d for d in DELIMITERS if d != m.delimiter])
    for piece in m.pieces:
        if piece.is_clean:
            piece.values = None
            m.spoil(piece, other.join(piece.fields), refused=False)
    m.may_be_refused = True


def other_line_end(m: _Maker) -> None:
    """One record ends differently from the others, which is no fault."""
    m.r.choice(m.pieces).end = m.r.choice(("\n", "\r\n", "\r"))


def other_line_ends(m: _Maker) -> None:
    """Every record ends as it likes."""
    for piece in m.pieces:
        piece.end = m.r.choice(("\n", "\r\n", "\r"))


def preamble(m: _Maker) -> None:
    kinds = (
        "Report of the week", "Exported by someone", "# a comment", f"from{m.delimiter}2024-01-01",
        f"Company: ACME{m.delimiter * (len(m.columns) - 1)}", "x" + m.delimiter * 2 + "y",
    )  # fmt: skip
    for text in m.r.choices(kinds, k=m.r.randint(1, 5)):
        m.insert(text, 0)


def header_over_header(m: _Maker) -> None:
    """A first row of names of groups, the real header second."""
    groups = m.delimiter.join(m.r.choice(("who", "when", "")) for _ in m.columns[1:])
    m.insert("group" + m.delimiter + groups, 0)


def header_under_header(m: _Maker) -> None:
    """A second row of units or types."""
    m.insert(m.delimiter.join("(unit)" for _ in m.columns), 1)


def repeated_header(m: _Maker) -> None:
    head = next(p for p in m.pieces if not p.is_row)
    for _ in range(m.r.randint(1, 3)):
        m.insert(head.text)


def footer(m: _Maker) -> None:
    for _ in range(m.r.randint(1, 2)):
        m.insert(m.r.choice((f"Total: {m.height}", "-- end --", f"rows{m.delimiter}{m.height}")), len(m.pieces))


def blank_lines(m: _Maker) -> None:
    for _ in range(m.r.randint(1, 4)):
        m.insert("")


def empty_records(m: _Maker) -> None:
    m.insert(m.delimiter * (len(m.columns) - 1))


def nul(m: _Maker) -> None:
    piece = m.victim()
    at = m.r.randint(0, len(piece.text))
    m.spoil(piece, piece.text[:at] + "\0" + piece.text[at:], refused=False)


def bad_byte(m: _Maker) -> None:
    """One byte that is not UTF-8 in a file that is."""
    if not m.encoding.startswith("utf-8"):
        return
    piece = m.victim()
    inside = [i for i in range(len(piece.text) + 1) if piece.text[i - 1 : i] != "\r"]
    at = m.r.choice(inside)
    m.spoil(piece, piece.text[:at] + "\udcff" + piece.text[at:], refused=False)
    m.bad_bytes = True


def torn_end(m: _Maker) -> None:
    """The last record is cut off."""
    piece = m.pieces[-1]
    if not piece.is_row or len(piece.text) < 2:
        return
    piece.values = None
    piece.end = ""
    m.spoil(piece, piece.text[: m.r.randint(1, len(piece.text) - 1)].rstrip("\r"), refused=False)


def header_only(m: _Maker) -> None:
    m.pieces = [p for p in m.pieces if not p.is_row]


def nothing(m: _Maker) -> None:
    m.pieces = []


def huge_field(m: _Maker) -> None:
    """A field longer than Python's csv reader takes by itself; now and then of 1 to 16 MB, which takes its time."""
    piece = m.victim()
    text = "y" * (m.r.randint(1, 16) << 20 if m.r.randrange(HUGE_EVERY) == 0 else 200_000)
    m.spoil(piece, m.delimiter.join([*piece.fields[:-1], f'"{text}"' if m.r.random() < 0.5 else text]), refused=False)


POLLUTIONS = {
    f.__name__: f
    for f in (
        extra_delimiter, missing_delimiter, ragged, open_quote, shut_quote, stray_quote, other_separator,
        other_separator_in_all, other_line_end, other_line_ends, preamble, header_over_header, header_under_header,
        repeated_header, footer, blank_lines, empty_records, nul, bad_byte, huge_field, torn_end, header_only, nothing,
    )
}  # fmt: skip
NEEDS_HEADER = {
    "preamble", "header_over_header", "header_under_header", "repeated_header", "header_only",
    "other_separator_in_all",
}  # fmt: skip
TEARS = {
    "extra_delimiter", "missing_delimiter", "ragged", "open_quote", "shut_quote", "stray_quote", "other_separator",
    "other_separator_in_all", "nul", "bad_byte", "torn_end", "huge_field",
}  # fmt: skip
TEARS_SHUT = {"shut_quote", "stray_quote", "missing_delimiter", "torn_end", "other_separator_in_all"}
ORDER = list(POLLUTIONS)


def polluted(seed: int) -> Polluted:
    """The file of a seed."""
    m = _Maker(seed)
    m.what.sort(key=ORDER.index)
    for name in m.what:
        POLLUTIONS[name](m)
    if m.pieces and not m.last_end and m.pieces[-1].text:
        m.pieces[-1].end = ""
    text = _assemble(m.pieces)
    content, encoding = _bytes(m, text)
    source: dict[str, Any] = {"csv": {"header": m.header}}
    if not m.header:
        names = {c: f"column_{i}" for i, c in enumerate(m.columns, 1)}
        source["columns"] = {c: names.get(c) for c in (*OURS, "session_end", "value", "metadata")}
    # Few rows, many of them polluted or none with the header's delimiter: there even a person would have to be told.
    unsure = not m.header or "other_separator_in_all" in m.what or "preamble" in m.what
    if unsure or m.r.random() < 0.4:
        source["csv"]["delimiter"] = m.delimiter
    if encoding is not None:
        source["csv"]["encoding"] = encoding
    return Polluted(seed, f"p{seed}.csv{m.packed}", content, source, m.pieces, m.what, m.may_be_refused)


def _assemble(pieces: list[Piece]) -> str:
    """The whole text; every piece learns its line."""
    for before, piece in itertools.pairwise(pieces):
        if before.end == "\r" and not piece.text and piece.end == "\n":
            piece.end = "\r"  # else the two would be one line end
    text = "".join(p.text + p.end for p in pieces)
    ends = [match.end() for match in END.finditer(text)]
    at, passed = 0, 0
    for piece in pieces:
        while passed < len(ends) and ends[passed] <= at:
            passed += 1
        piece.line = passed + 1
        piece.lines = len(END.findall(piece.text)) + 1
        at += len(piece.text) + len(piece.end)
    return text


def _bytes(m: _Maker, text: str) -> tuple[bytes, str | None]:
    """The file's bytes, and the encoding that has to be configured to read them."""
    configured = None
    if m.encoding == "utf-16-be":
        content = codecs.BOM_UTF16_BE + text.encode("utf-16-be")
    elif m.encoding == "ascii":
        content = text.encode("utf-8", "surrogateescape")
    else:
        content = text.encode(m.encoding, "surrogateescape" if m.encoding.startswith("utf-8") else "strict")
    if m.bad_bytes:
        configured = "utf-8"
    if m.encoding == "cp1252" and (m.r.random() < 0.3 or content.isascii()):
        configured = "cp1252"
    if not text:
        content = b""
    if m.packed == ".gz":
        content = gzip.compress(content, 1, mtime=0)
    elif m.packed == ".zst":
        content = pa.compress(content, codec="zstd", asbytes=True)
    return content, configured


def problems(file: Polluted, rows: pl.DataFrame, physical: int) -> list[str]:
    """What is wrong with what was read: lost, doubled, refused without need or of other values; none if all is well.

    Args:
        file: the file and the truth about it.
        rows: ``source_line``, ``reasons`` and the event's columns of every row, valid or refused.
        physical: how many records the reader says there are.
    """
    low, high = file.physical
    found = []
    if rows.height != physical:
        found.append(f"{rows.height} rows of {physical} physical records")
    if not low <= rows.height <= high:
        found.append(f"{rows.height} rows, but the file holds {low} to {high}")
    by_line: dict[int, list[dict[str, Any]]] = {}
    for row in rows.iter_rows(named=True):
        by_line.setdefault(row["source_line"], []).append(row)
    found += [f"line {line} came {len(r)} times" for line, r in by_line.items() if len(r) > 1]
    for piece in file.pieces:
        if piece.is_row:
            mine = [row for line in range(piece.line, piece.line + piece.lines) for row in by_line.pop(line, ())]
            found += _wrong(piece, mine)
    found += [f"line {line} is no record's: {r[0]['record']!r}" for line, r in by_line.items()]
    return found


def _wrong(piece: Piece, rows: list[dict[str, Any]]) -> list[str]:
    where = f"line {piece.line} ({piece.text[:80]!r})"
    if piece.values is None:
        if not rows:
            return [f"{where}: a polluted record is lost"]
        if piece.refused and not all(row["reasons"] for row in rows):
            return [f"{where}: is polluted, yet valid"]
        return []
    if len(rows) != 1 or rows[0]["source_line"] != piece.line:
        return [f"{where}: a clean record came as {len(rows)} rows"]
    (row,) = rows
    if row["reasons"]:
        return [f"{where}: a clean record was refused: {row['reasons']}"]
    return [
        f"{where}: {name} is {row[name]!r}, not {value!r}"
        for name, value in piece.values.items()
        if name in row and row[name] != value
    ]
