"""What a day will need, what there is, and how the day is therefore worked on.

Here: the prediction, the look at the limits, the choice between three ways, and how soon freed memory is given back.
Not here: what each way does (``metrics.py``, ``filling.py``, ``quantities.py``), how files are read, which always
streams (``ingest/``), or the engine's own switches (``engine.py``). All ways give the same tables, byte for byte.

- ``eager``: the day's columns are held as a whole, where that fits easily; the fastest. Above EAGER_ROWS what it saves,
  a quarter of a stage, is not worth more than a gigabyte, however much there is (docs/decisions/0008).
- ``lazy``: the users' rows in parts on disk, one part at a time, and so what many users come to; different values of
  a column are held all at once.
- ``streaming``: those are counted in parts on disk too, where they are many; a day of any size needs about the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from data_assets.config import MemoryConfig

Mode = Literal["eager", "lazy", "streaming"]
EAGER_ROWS = 10_000_000
FIXED_BYTES = 24  # of a row: start, end and value
NUMBER_BYTES, TEXT_BYTES = 8, 16  # of a user; a text of more than TEXT_INLINE bytes stands elsewhere as well
TEXT_INLINE = 12
# What holding a day takes at its peak, at most: so many times the bytes of its rows, and what the engine keeps beside,
# which grows with small days alone. Days of which hardly two durations are alike take it, those whose times are whole
# seconds a third (`python -m benchmarks.memory`); which is known only when the day is there.
HELD_FACTOR = 3.8
KEPT_BYTES_PER_ROW, MOST_KEPT_BYTES = 120, 80_000_000

ALLOCATOR = "_RJEM_MALLOC_CONF"
GIVEN_BACK_SOON = "dirty_decay_ms:200,muzzy_decay_ms:0,narenas:2"  # freed memory; what the package sets at first
GIVEN_BACK_LATE = "dirty_decay_ms:2000,muzzy_decay_ms:0,narenas:2"  # holds up to 150 MB more, for a twentieth less CPU
ROOM = 4_000_000_000  # where so many bytes are there for a day, those 150 MB are nothing


@dataclass(frozen=True)
class Decision:
    """How a day is worked on, and why.

    Attributes:
        needed: bytes that holding the day would take at the peak.
        available: bytes that there are for it, the margin taken off.
    """

    mode: Mode
    needed: int
    available: int

    @property
    def ratio(self) -> float:
        """What is needed to what there is."""
        return self.needed / max(1, self.available)

    @property
    def words(self) -> str:
        """For people."""
        return (
            f"{self.mode}: holding the day would take {self.needed / 1e6:,.0f} MB, {self.available / 1e6:,.0f} MB "
            "are there for it"
        )


def needed(rows: int, text_length: float | None = None) -> int:
    """Bytes that holding a day takes at the peak.

    Args:
        rows: events of the day.
        text_length: mean bytes of a user_id; None for whole numbers.
    """
    user = float(NUMBER_BYTES)
    if text_length is not None:
        user = TEXT_BYTES + (text_length if text_length > TEXT_INLINE else 0)
    return int(rows * (FIXED_BYTES + user) * HELD_FACTOR) + min(rows * KEPT_BYTES_PER_ROW, MOST_KEPT_BYTES)


def decide(rows: int, needs: int, available_bytes: int, config: MemoryConfig) -> Decision:
    """The way for a day of ``rows`` events, held whole only where that fits."""
    ratio = needs / max(1, available_bytes)
    mode: Mode = "streaming"
    if ratio <= config.eager_ratio and rows <= EAGER_ROWS:
        mode = "eager"
    elif ratio <= config.lazy_ratio:
        mode = "lazy"
    return Decision(mode, needs, available_bytes)


def available(config: MemoryConfig, root: Path = Path("/")) -> int:
    """Bytes that a day may take beside what this process holds already, the margin taken off.

    The smallest of the configured limit, the container's (cgroup) and what the system has free.

    Args:
        config: ``memory`` of pipeline.yaml.
        root: where /proc and /sys are.
    """
    own = _own(root)
    limits = [config.limit_bytes, *_limits(root)]
    free = [limit - own for limit in limits if limit is not None]
    free.append(_free(root))
    return max(0, int(min(free) * (1 - config.margin)))


def settle_allocator(config: MemoryConfig, root: Path = Path("/")) -> None:
    """Say when Polars' allocator is to give back what is freed: late where there is room, else soon.

    For this process, if Polars is not loaded yet, and for those that it starts. What an operator has set is left alone.

    Args:
        config: ``memory`` of pipeline.yaml.
        root: where /proc and /sys are.
    """
    if os.environ.get(ALLOCATOR) in (GIVEN_BACK_SOON, GIVEN_BACK_LATE):
        os.environ[ALLOCATOR] = GIVEN_BACK_LATE if available(config, root) >= ROOM else GIVEN_BACK_SOON


def _limits(root: Path) -> Iterator[int]:
    """The limits of the control groups that this process is in: its own, and those around it.

    In a container its own group is usually shown as the outermost one; below systemd it is not.
    """
    files = {root / "sys/fs/cgroup/memory.max", root / "sys/fs/cgroup/memory/memory.limit_in_bytes"}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, kinds, group = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        place, name = ("sys/fs/cgroup/memory", "memory.limit_in_bytes") if kinds else ("sys/fs/cgroup", "memory.max")
        own = PurePosixPath(group.strip("/"))
        files |= {root / place / outer / name for outer in (own, *own.parents)}
    for file in files:
        text = _text(file).strip()
        if text.isdigit():  # else it is "max"
            yield int(text)


def _text(path: Path) -> str:
    """The file's text; nothing where there is no file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _kilobytes(path: Path, name: str) -> int | None:
    found = _text(path).partition(f"{name}:")[2].split()
    return int(found[0]) << 10 if found else None


def _own(root: Path) -> int:
    """What this process holds."""
    return _kilobytes(root / "proc/self/status", "VmRSS") or 0


def _free(root: Path) -> int:
    """What the system has free; all that it has, where it does not tell."""
    free = _kilobytes(root / "proc/meminfo", "MemAvailable")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if free is None else free
