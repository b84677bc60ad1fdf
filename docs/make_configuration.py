"""Writes docs/configuration.md from the configuration's model. A test holds the committed file against it.

Here: the page's words and table. Not here: the keys themselves (``data_assets/config.py``).
"""

from __future__ import annotations

from pathlib import Path

from data_assets.config import describe

PAGE = Path(__file__).with_name("configuration.md")
INTRODUCTION = """# Configuration

`pipeline.yaml` or `pipeline.toml`: named by `--config`, else by `$DATA_ASSETS_CONFIG`, else in the working directory.
Every key may be set by `DATA_ASSETS_<SECTION>__<KEY>` too, which wins. Relative paths start at the file's folder.
An unknown key is an error that names the nearest one.

| key | type | default | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The page as it should be."""
    rows = (
        (f"`{row.key}`", row.type, f"`{row.default}`" if str(row.default) else "", row.description)
        for row in describe()
    )
    cells = ((str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows)
    return INTRODUCTION + "".join(f"| {' | '.join(row)} |\n" for row in cells)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
