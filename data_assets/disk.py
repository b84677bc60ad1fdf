"""Whether there is room for what is about to be written.

Here: the look before work begins. Not here: what the room is needed for, or what becomes of a disk that fills up
meanwhile: every writer leaves the old version in place (``storage.py``), and ``failures.py`` names the kind.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from data_assets.errors import StorageFullError, visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from data_assets.config import PipelineConfig

GROWTH = 3  # parts, tables and the old version beside the new one, to the size of a file that is read
PACKED_GROWTH = 12  # of a compressed file, and of Parquet
PACKED = (".gz", ".zst", ".parquet")
MIN_INODES = 1_000


def needed(config: PipelineConfig, paths: Iterable[str] = ()) -> int:
    """Bytes that a run over these files (below the raw folder) may need, and that are to be left."""
    total = config.disk.min_free_bytes
    for path in paths:
        try:
            size = (config.raw_dir / path).stat().st_size
        except OSError:  # gone, or retired: nothing of it is read
            continue
        total += size * (PACKED_GROWTH if path.lower().endswith(PACKED) else GROWTH)
    return total


def check_room(config: PipelineConfig, paths: Iterable[str] = (), made: int = 0) -> None:
    """Look whether a run over these files fits onto the disk of ``data_dir``.

    Args:
        config: which disk, and what is to be left on it.
        paths: the files, below the raw folder.
        made: bytes of what such a run writes that are there already.

    Raises:
        StorageFullError: it might not.
    """
    folder = next(p for p in (config.data_dir.absolute(), *config.data_dir.absolute().parents) if p.exists())
    free, wanted = shutil.disk_usage(folder).free, max(needed(config), needed(config, paths) - made)
    inodes = _free_inodes(folder)
    if free >= wanted and inodes >= MIN_INODES:
        return
    what = f"{free / 1e6:,.0f} MB free, {wanted / 1e6:,.0f} MB needed"
    if inodes < MIN_INODES:
        what = f"room for {inodes:,} more files, {MIN_INODES:,} needed"
    raise StorageFullError(
        f"The disk of {visible(str(folder))} is nearly full: {what}.",
        "Nothing was begun and every day keeps what it had. Make room (`data-assets retention` shows what may go) or "
        "lower disk.min_free; then run again. The sensor goes on by itself.",
        path=folder,
    )


def _free_inodes(folder: Path) -> int:
    """How many files fit; plenty where the file system does not count them."""
    found = os.statvfs(folder)
    return found.f_favail if found.f_files else MIN_INODES
