"""data_assets: event files in, trusted days out (a Dagster project).

Nothing lives here: ``definitions.py`` is what Dagster loads, ``cli.py`` is the command line, and every other module's
docstring says what is in it. ``data_assets.connect()`` is ``query.connect``, for notebooks.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_assets.query import connect

__all__ = ["connect"]

# Polars' allocator reads it when it is loaded, so it cannot wait: with two arenas, and freed memory given back after
# a fifth of a second, long days peak a third lower (docs/decisions/0008). Where there is room, memory.settle_allocator
# has it given back later. An operator's own setting wins.
os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:200,muzzy_decay_ms:0,narenas:2")


def __getattr__(name: str) -> object:
    """``connect``, imported when it is first asked for."""
    if name != "connect":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from data_assets.query import connect as found

    return found
