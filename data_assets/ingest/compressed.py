"""Compressed files: what they are, and their content as a plain file below the scratch folder.

Here: .gz and .zst, told by name and by their first bytes. Not here: what the content is (``opening.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from data_assets.errors import SourceFileError, visible

if TYPE_CHECKING:
    from pathlib import Path

CODECS = {".gz": "gzip", ".zst": "zstd"}
MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_BLOCK = 4 << 20


def codec_of(suffix: str, head: bytes) -> str | None:
    """The codec that a file's name or, failing that, its first bytes tell; ``None`` for a plain file."""
    named = CODECS.get(suffix.lower())
    return named or next((codec for codec, magic in MAGIC.items() if head.startswith(magic)), None)


def decompress(path: Path, codec: str, target: Path, relative: str) -> None:
    """Write the content of ``path`` to ``target``, in a stream.

    Raises:
        SourceFileError: the file is truncated, damaged or not compressed at all; it is then refused whole.
    """
    if path.stat().st_size == 0:
        target.touch()
        return
    try:
        with (
            pa.OSFile(str(path), "rb") as raw,
            pa.CompressedInputStream(raw, codec) as content,
            target.open("wb") as out,
        ):
            while block := content.read(_BLOCK):
                out.write(block)
    except (OSError, pa.ArrowException) as problem:
        raise SourceFileError(
            f"{visible(relative)} cannot be decompressed ({codec}): {visible(str(problem))}. Nothing of it is used.",
            "The file is cut short or damaged. Ask the sender for it again, or remove it.",
            path=relative,
        ) from problem
