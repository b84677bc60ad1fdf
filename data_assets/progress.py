"""Who is told how far a run is.

Here: one context variable. Not here: how progress is shown (``cli.py``) or made (``assets.py``, ``staging.py``). In a
run of the daemon nobody listens, and nothing happens.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_listener: ContextVar[Callable[[str, str], None] | None] = ContextVar("progress_listener", default=None)


def step(stage: str, what: str) -> None:
    """Say that ``stage`` (an asset) has come to ``what`` (a day or a file)."""
    listener = _listener.get()
    if listener is not None:
        listener(stage, what)


@contextlib.contextmanager
def listening(listener: Callable[[str, str], None]) -> Iterator[None]:
    """Have ``listener`` called for every step inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
