"""Log lines: JSON in a rotating file, words with figures in Dagster's event log and, when asked for, on the terminal.

Here: where a line goes and how it is written. Not here: what is measured (``telemetry.py``), nor what the command line
says to whoever runs it (``cli.py``).

A line holds names, counts and codes, never a value out of a file: those may be anybody's. So nothing passes on an
error's text; ``reason_of`` takes what of it is ours.

The lines of days and files go to the file alone: Dagster's event log costs a millisecond a line. What a whole stage
came to goes through the Python logger ``data_assets``, which dagster.yaml has Dagster listen to.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import sys
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from data_assets.errors import HEADER_FOLLOWS, visible

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping
    from pathlib import Path

    from data_assets.config import LogsConfig, PipelineConfig

EVERYWHERE = "data_assets.log"
"""Goes up to ``data_assets``, where Dagster listens."""
FILE_ONLY = "data_assets_file"
LONGEST_TEXT = 300
MOST_ITEMS = 20
_LISTENED_TO = "data_assets"
_TOLD_BY_DAGSTER = ("at", "level", "event", "run_id")

_in_force: tuple[Path, LogsConfig] | None = None
_terminal: logging.Handler | None = None


def start(config: PipelineConfig) -> None:
    """Have lines written as the configuration says; called for every stage, it does nothing when that is in force."""
    global _in_force  # noqa: PLW0603 - loggers belong to the whole process, and so does who writes them
    wanted = (config.log_path, config.logs)
    if _in_force == wanted:
        return
    loggers = [logging.getLogger(name) for name in (_LISTENED_TO, FILE_ONLY)]
    for logger in loggers:
        for handler in [h for h in logger.handlers if getattr(h, "is_data_assets_file", False)]:
            logger.removeHandler(handler)
            handler.close()
    for name in (EVERYWHERE, FILE_ONLY):
        logging.getLogger(name).setLevel(config.logs.level)
    loggers[1].propagate = False
    handler = _file(config) if config.logs.file else logging.NullHandler()
    for logger in loggers:
        logger.addHandler(handler)
    _in_force = wanted


def _file(config: PipelineConfig) -> logging.Handler:
    """The rotating file, which several processes may write at once."""
    from concurrent_log_handler import ConcurrentRotatingFileHandler

    try:
        config.log_path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        _say_unwritable(config.log_path, problem)
        return logging.NullHandler()

    class File(ConcurrentRotatingFileHandler):  # imported here, so it cannot be a base any earlier
        is_data_assets_file = True
        is_reported = False

        def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - logging's signature
            """Say once that the log cannot be written. A full disk stops the run itself, where it writes data."""
            if not self.is_reported:
                self.is_reported = True
                _say_unwritable(config.log_path, sys.exc_info()[1])

    handler = File(
        str(config.log_path),
        maxBytes=int(config.logs.max_megabytes * 1_000_000),
        backupCount=config.logs.kept_files,
        encoding="utf-8",
    )
    handler.setFormatter(_Json())
    return handler


def _say_unwritable(path: Path, problem: object) -> None:
    sys.stderr.write(f"{path}: the log cannot be written ({problem}). The run goes on without.\n")


@contextlib.contextmanager
def on_terminal() -> Iterator[None]:
    """Show what goes everywhere on standard error too, inside the block."""
    global _terminal  # noqa: PLW0603 - as above
    if _terminal is not None:
        yield
        return
    _terminal = logging.StreamHandler(sys.stderr)
    _terminal.setFormatter(_Words(colors=sys.stderr.isatty()))
    logger = logging.getLogger(_LISTENED_TO)
    logger.addHandler(_terminal)
    try:
        yield
    finally:
        logger.removeHandler(_terminal)
        _terminal = None


def is_on_terminal() -> bool:
    """Whether lines are shown on the terminal, where a progress bar would be in their way."""
    return _terminal is not None


def tell(level: int, event: str, **figures: object) -> None:
    """A line for the file, Dagster's event log and the terminal; for what is said once or twice a stage."""
    _logger(EVERYWHERE).log(level, event, **figures)


def write(level: int, event: str, **figures: object) -> None:
    """A line for the file alone; for what is said for every day or file."""
    _logger(FILE_ONLY).log(level, event, **figures)


def reason_of(text: str) -> str:
    """What of an error's text may stand in a log: its first line, up to where it quotes the file's header."""
    return visible(text.partition("\n")[0].partition(HEADER_FOLLOWS)[0], LONGEST_TEXT)


@cache
def _logger(name: str) -> Any:  # noqa: ANN401 - structlog's proxy
    import structlog

    return structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            _plain,
            _as_record if name == FILE_ONLY else _as_record_with_words,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _plain(_logger: object, _method: str, line: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """The line in its order, with only what JSON knows; nothing that is null."""
    first = ("at", "level", "event", "run_id", "asset", "day", "file")
    names = [n for n in first if n in line] + [n for n in line if n not in first]
    return {name: _value(line[name]) for name in names if line[name] is not None}


def _value(value: object) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return round(value, 3) if value == value and abs(value) != float("inf") else None  # noqa: PLR0124 - NaN
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {visible(str(k), LONGEST_TEXT): _value(v) for k, v in list(value.items())[:MOST_ITEMS]}
    if isinstance(value, list | tuple):
        return [_value(v) for v in value[:MOST_ITEMS]]
    return visible(str(value), LONGEST_TEXT)


def _as_record(_logger: object, _method: str, line: Mapping[str, Any]) -> tuple[tuple[str], dict[str, Any]]:
    """As logging takes it, for our own formatters."""
    return (line["event"],), {"extra": {"line": line}}


def _as_record_with_words(_logger: object, _method: str, line: Mapping[str, Any]) -> tuple[tuple[str], dict[str, Any]]:
    """The same with words, for whoever knows no more (Dagster)."""
    figures = ", ".join(f"{name} {_word(value)}" for name, value in line.items() if name not in _TOLD_BY_DAGSTER)
    return (f"{line['event']}: {figures}",), {"extra": {"line": line}}


def _word(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        if isinstance(value, Mapping):
            return " ".join(f"{k}={_word(v)}" for k, v in value.items())
        return " ".join(map(_word, value)) if isinstance(value, list) else str(value)
    return f"{value:,}"


class _Json(logging.Formatter):
    """A line as JSON; a record of other loggers below ``data_assets`` with its message."""

    def format(self, record: logging.LogRecord) -> str:
        import json

        return json.dumps(_line(record), ensure_ascii=False)


def _line(record: logging.LogRecord) -> Mapping[str, Any]:
    line: Mapping[str, Any] | None = getattr(record, "line", None)
    if line is None:
        at = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat().replace("+00:00", "Z")
        words = visible(record.getMessage(), LONGEST_TEXT)
        return {"at": at, "level": record.levelname.lower(), "event": words, "logger": record.name}
    return line


class _Words(logging.Formatter):
    """A line for people."""

    def __init__(self, *, colors: bool) -> None:
        super().__init__()
        import structlog

        self._render = structlog.dev.ConsoleRenderer(
            colors=colors, timestamp_key="at", sort_keys=False, pad_event_to=14
        )

    def format(self, record: logging.LogRecord) -> str:
        line = {k: v for k, v in _line(record).items() if k != "run_id"}
        line["at"] = str(line["at"])[11:19]
        return str(self._render(None, record.levelname.lower(), line))
