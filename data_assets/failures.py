"""What kind of failure an exception is, and so whether to try again.

Here: one judgement, as a pure function of the exception. Not here: the exceptions of the project (``errors.py``),
waiting and trying again, or the run's tag (``retries.py``).

Exceptions of libraries are known by their names, so that none is imported to be compared with.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from data_assets.errors import (
    ConfigurationError,
    DataAssetsError,
    DiskError,
    RawFolderMissingError,
    SourceFileError,
    UsageError,
    visible,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Kind = Literal["transient", "data", "configuration", "storage", "killed", "bug"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MEANINGS: dict[Kind, str] = {
    "transient": "a lock, a connection or a disk that may answer again; tried again before it counted as failed",
    "data": "what the files hold, or a table that is not as promised: mend the file, or the rule that refuses it",
    "configuration": "pipeline.yaml, the environment, or a memory limit that the day does not fit into",
    "storage": "a disk that is full, read-only or may not be written, or a damaged file: mend that, then run again",
    "killed": "the process ended without a word (kill, out of memory, power); the daemon runs it again",
    "bug": "nobody foresaw it: read the stack trace",
}

# Names of errno that may go away by themselves; some do not exist on every system.
_PASSING = {
    number
    for name in (
        "EAGAIN", "EBUSY", "EINTR", "EIO", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENFILE", "ENOTCONN", "ENOLCK",
        "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "ETXTBSY", "ECONNABORTED", "ECONNREFUSED",
        "ECONNRESET", "EPIPE",
    )
    if (number := getattr(errno, name, None)) is not None
}  # fmt: skip
_LASTING = tuple(
    os.strerror(number).lower()
    for name in (
        "EACCES", "EDQUOT", "EFBIG", "EISDIR", "ELOOP", "EMFILE", "ENAMETOOLONG", "ENODEV", "ENOENT", "ENOSPC",
        "ENOTDIR", "EPERM", "EROFS",
    )
    if (number := getattr(errno, name, None)) is not None
)  # fmt: skip
_HINTS = {
    errno.ENOSPC: "Make room on the disk (`data-assets retention` shows what may go).",
    errno.EDQUOT: "The user's share of the disk is used up: make room, or have it raised.",
    errno.EROFS: "Mount the disk for writing; a disk that turned read-only by itself may be broken.",
    errno.EACCES: "Let the user who runs this read and write there.",
    errno.EPERM: "Let the user who runs this read and write there.",
    errno.ENOENT: "Is the disk mounted, and the folder where data_dir says?",
}
_SAID = (
    ("no space left on device", errno.ENOSPC),
    ("database or disk is full", errno.ENOSPC),
    ("disk i/o error", errno.ENOSPC),  # what SQLite says of a full disk in the middle of its journal
    ("read-only file system", errno.EROFS),
    ("readonly database", errno.EROFS),
    ("permission denied", errno.EACCES),
)
_OS_ERROR = re.compile(r"\(os error (\d{1,4})\)")  # how Rust, and so Polars, ends what the system said
_DAMAGED = ("not a valid", "corrupt", "checksum")
_NAMED: dict[str, Kind] = {
    "_duckdb.OutOfMemoryException": "configuration",
    "_duckdb.TransactionException": "transient",
    "_duckdb.ConnectionException": "transient",
    "builtins.MemoryError": "configuration",
    "dagster._core.definitions.events.Failure": "data",  # raised by our own judgements alone
    "dagster._core.errors.DagsterAssetCheckFailedError": "data",
    "psycopg.OperationalError": "transient",
    "psycopg2.OperationalError": "transient",
    "sqlalchemy.exc.OperationalError": "transient",
    "sqlite3.OperationalError": "transient",
}


def kind_of(error: BaseException) -> Kind:
    """The kind of ``error``, or of the nearest of its causes that has one; ``bug`` when none has.

    An input file that could not be read because of the system (and not of what it holds) is of the system's kind.
    """
    chain = list(_causes(error))
    found: Kind = next((kind for kind in map(_own_kind, chain) if kind is not None), "bug")
    if isinstance(error, SourceFileError) and len(chain) > 1 and isinstance(chain[1], OSError):
        return _own_kind(chain[1]) or found
    return found


def as_disk_error(error: BaseException) -> DiskError | None:
    """What the system said of a disk that is full, read-only, gone or forbidden, in words; None for anything else."""
    if isinstance(error, DataAssetsError) or kind_of(error) not in ("storage", "transient"):
        return None
    for cause in _causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        said = str(cause)
        if number is None and (found := _OS_ERROR.search(said)):
            number = int(found[1])
        if number is None:  # DuckDB and SQLite say it in words alone
            number = next((n for words, n in _SAID if words in said.lower()), None)
        if number not in _HINTS:
            continue
        name = cause.filename if isinstance(cause, OSError) else None
        where = visible(str(name)) if name else "the disk"
        return DiskError(
            f"{where}: {os.strerror(number)}.",
            f"{_HINTS[number]} What was stored before is as it was; then run again.",
            path=Path(name) if isinstance(name, str) else None,
        )
    return None


def kind_of_recorded(classes: Iterable[str]) -> Kind:
    """The kind of an error of which only the names of the classes are left, itself first, then its causes."""
    ours = {c.__name__: c for c in _family(DataAssetsError)}
    named: dict[str, Kind] = {name.rpartition(".")[2]: kind for name, kind in _NAMED.items()}
    for name in classes:
        if name in ours:
            return _kind_of_ours(ours[name])
        if name in named:
            return named[name]
    return "bug"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__


def _family(base: type[DataAssetsError]) -> Iterator[type[DataAssetsError]]:
    yield base
    for child in base.__subclasses__():
        yield from _family(child)


def _kind_of_ours(kind: type[DataAssetsError]) -> Kind:
    if kind.retryable:
        return "transient"
    if issubclass(kind, DiskError | RawFolderMissingError):
        return "storage"
    return "configuration" if issubclass(kind, ConfigurationError | UsageError) else "data"


def _own_kind(error: BaseException) -> Kind | None:
    """The kind by what the exception itself is; None when that says nothing."""
    if isinstance(error, DataAssetsError):
        return _kind_of_ours(type(error))
    if not isinstance(error, Exception):  # an interrupt, or the end of the interpreter
        return "killed"
    if isinstance(error, OSError):
        return _kind_of_system(error.errno, error)
    names = [f"{c.__module__}.{c.__qualname__}" for c in type(error).__mro__]
    named = next((_NAMED[name] for name in names if name in _NAMED), None)
    text = str(error).lower()
    if number := _OS_ERROR.search(text):
        return _kind_of_system(int(number[1]), error)
    if "_duckdb.Error" in names and any(reason in text for reason in (*_LASTING, *_DAMAGED)):
        return "storage"
    return "transient" if "_duckdb.IOException" in names else named


def _kind_of_system(number: int | None, error: BaseException) -> Kind:
    if number is None and (said := _OS_ERROR.search(str(error))):
        number = int(said[1])
    if number is None:
        return "transient" if isinstance(error, ConnectionError | TimeoutError) else "storage"
    return "transient" if number in _PASSING else "storage"
