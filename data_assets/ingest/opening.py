"""From a path to ``Records``: which format it is, decompression, and which reader takes it.

Here: the decision. Not here: any reading (``delimited.py``, ``jsontext.py``, ``columnar.py``, ``compressed.py``).
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_assets.engine import for_rows, set_switches
from data_assets.errors import SourceFileError, visible
from data_assets.ingest import columnar, delimited, jsontext
from data_assets.ingest.compressed import CODECS, codec_of, decompress
from data_assets.ingest.mapping import check_required
from data_assets.ingest.records import collected

if TYPE_CHECKING:
    from data_assets.config import PipelineConfig
    from data_assets.ingest.records import Records

HELD_BYTES = 1 << 20  # a text up to this is read once, as a whole: to begin a pass over one takes longer than it
FORMATS = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip


def detect_format(path: Path) -> str:
    """The format that a file's name tells: ``csv``, ``json``, ``jsonl`` or ``parquet``, then ``.gz`` or ``.zst``.

    Whether a ``.json`` file holds one value or a record on each line is seen in its content when it is opened.

    >>> detect_format(Path("a/B.JSON.gz"))
    'json.gz'

    Raises:
        SourceFileError: the name tells none of them.
    """
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    packed = suffixes.pop() if suffixes and suffixes[-1] in CODECS else ""
    kind = FORMATS.get(suffixes[-1]) if suffixes else None
    if kind is None:
        raise SourceFileError(
            f"{visible(str(path))}: its name tells no format that can be read.",
            f"Known endings: {', '.join(FORMATS)}, each also with .gz or .zst. "
            "Rename the file or narrow source.patterns.",
            path=str(path),
        )
    return kind + packed


def open_records(
    path: Path,
    relative: str,
    config: PipelineConfig,
    scratch: Path,
    *,
    require_columns: bool = True,
    verify: bool = True,
) -> Records:
    """Open one file; whatever has to be spooled lies below ``scratch``, which the caller removes.

    Args:
        path: the file.
        relative: its path below the raw directory, for messages and for ``{path: …}`` columns.
        config: what ``pipeline.yaml`` says.
        scratch: an existing folder.
        require_columns: whether missing columns are an error here; else call ``check_required`` later.
        verify: whether to look for damage that only shows when all is read (Parquet); a second look need not.

    Raises:
        SourceFileError: the file cannot be read at all.
        MissingColumnsError: it lacks columns that the mapping requires.
    """
    set_switches()
    name = detect_format(Path(relative))
    kind, _, packed = name.partition(".")
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as problem:
        raise cannot_open(relative, problem) from problem
    own = Path(tempfile.mkdtemp(prefix="open-", dir=scratch))
    codec = codec_of(f".{packed}" if packed else "", head)
    if codec is not None:
        plain = own / "content"
        decompress(path, codec, plain, relative)
        path = plain
        name = f"{kind}.{'gz' if codec == 'gzip' else 'zst'}"
    if kind == "csv":
        records = delimited.open_csv(path, relative, config, own, name)
    elif kind == "parquet":
        records = columnar.open_parquet(path, relative, config, name, verify=verify)
    else:
        records = jsontext.open_json(path, relative, config, own, name)
    if require_columns:
        check_required(records, relative, config)
    if records.encoding != "binary" and path.stat().st_size <= HELD_BYTES:
        with for_rows(records.physical_rows):
            [held] = collected([records.frame], relative)
        return replace(records, frame=held.lazy())
    return records


def cannot_open(relative: str, problem: OSError) -> SourceFileError:
    """The refusal of a file that the operating system refuses."""
    return SourceFileError(
        f"{visible(relative)} cannot be opened: {visible(problem.strerror or str(problem))}.",
        "Check that the file is still there and may be read.",
        path=relative,
    )
