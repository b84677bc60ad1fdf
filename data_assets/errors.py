"""The error family: what went wrong, where, and what to do next.

Here: every exception that the project raises on purpose. Not here: where they are turned into exit codes (``cli.py``)
or into a failed day (``assets.py``). Row-level problems are never raised; they are quarantined (``ingest/``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

HEADER_FOLLOWS = " The file has: "
"""What stands before a file's header in an error. Where a file has none, that is its first record: not for logs."""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of ``known`` that look like ``name``, best first (letter case does not count)."""
    by_folded = {k.casefold(): k for k in known}
    return [by_folded[m] for m in difflib.get_close_matches(name.casefold(), list(by_folded), n=3, cutoff=0.6)]


def visible(text: str, limit: int = 200) -> str:
    """``text`` fit for one log line: control and bidirectional characters shown as escapes, cut at ``limit``."""
    shown = text
    if not text.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


class DataAssetsError(Exception):
    """Base of the family.

    Attributes:
        what: one sentence that says what is wrong.
        hint: the next step for the person who reads it.
        retryable: whether the same call may work later without anybody changing anything.
    """

    retryable = False

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n  What to do: {self.hint}" if self.hint else self.what


class ConfigurationError(DataAssetsError):
    """pipeline.yaml, pipeline.toml or an environment variable cannot be used as it stands."""

    def __init__(self, what: str, hint: str, *, file: Path | None = None, key: str | None = None) -> None:
        super().__init__(what, hint)
        self.file = file
        self.key = key


class SourceFileError(DataAssetsError):
    """One input file cannot be read at all; the days it touches keep what they had."""

    def __init__(self, what: str, hint: str, *, path: str, line: int | None = None) -> None:
        super().__init__(what, hint)
        self.path = path
        self.line = line


class RawFolderMissingError(SourceFileError):
    """The raw folder is not there at all, though files were read from it: is its disk mounted?"""


class DiskError(DataAssetsError):
    """The disk is full, read-only, gone or forbidden; what was stored before is as it was."""

    def __init__(self, what: str, hint: str, *, path: Path | None = None) -> None:
        super().__init__(what, hint)
        self.path = path


class StorageFullError(DiskError):
    """There is too little room on the disk for what would be written; nothing was begun."""


def _look_of_header(present: Sequence[str]) -> str:
    """What a header of one column tells about the file."""
    if len(present) != 1:
        return ""
    if present[0].lstrip().startswith("<"):
        return "This looks like a web page, such as a server's error message, saved in place of the data. "
    delimiter = max(",;\t|", key=present[0].count)
    if delimiter not in present[0]:
        return ""
    return f"The fields seem to be parted by {delimiter!r}: set source.csv.delimiter to it, or to auto. "


class MissingColumnsError(SourceFileError):
    """A file lacks columns that the mapping requires."""

    def __init__(self, path: str, missing: Sequence[str], present: Sequence[str]) -> None:
        self.missing = list(missing)
        self.present = list(present)
        near = {m: nearest(m, present) for m in missing}
        guesses = "; ".join(f"{visible(m)} -> {', '.join(map(visible, n))}?" for m, n in near.items() if n)
        shown = ", ".join(visible(c, 60) for c in present[:30]) + (" …" if len(present) > 30 else "")
        super().__init__(
            f"{visible(path)}: required column(s) missing: {', '.join(map(visible, missing))}."
            f"{HEADER_FOLLOWS}{shown or 'no columns'}.",
            (f"Nearest names: {guesses}. " if guesses else "")
            + _look_of_header(present)
            + "Map them under source.columns in pipeline.yaml, or ask the sender for a complete file.",
            path=path,
        )


class ContractError(DataAssetsError):
    """A table does not have the columns, types or values that its contract promises."""

    def __init__(self, what: str, hint: str, *, table: str, day: str | None = None) -> None:
        super().__init__(what, hint)
        self.table = table
        self.day = day


class DayFailedError(DataAssetsError):
    """A day was refused by a blocking check, or its input cannot be read."""

    def __init__(self, what: str, hint: str, *, table: str, day: str) -> None:
        super().__init__(what, hint)
        self.table = table
        self.day = day


class StorageBusyError(DataAssetsError):
    """Another process holds the warehouse for longer than the deadline."""

    retryable = True


class PostgresUnavailableError(DataAssetsError):
    """PostgreSQL cannot be reached, or went away in the middle; nothing of the day in hand was changed."""

    retryable = True


class UsageError(DataAssetsError):
    """The command line was used in a way that cannot work."""
