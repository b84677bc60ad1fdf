"""The daily report: frames of one day in, one self-contained HTML page, its figures and three CSV files out.

Here: the names that the assets, the command line and the tests use. Not here: how the figures come about
(``figures.py``, ``bins.py``), how they are worded and drawn (``text.py``, ``view.py``, ``svgkit.py``), how the page is
put together (``page.py``, ``report.html.j2``, ``report.css``) and how files reach the disk (``files.py``). Nothing in
this room knows Dagster, the clock or a run id: the same day gives the same bytes.
"""

from __future__ import annotations

from data_assets.report.files import write
from data_assets.report.model import CheckResult, DayInput, Report
from data_assets.report.page import build
from data_assets.report.pictures import histogram_markdown, sparkline_markdown

__all__ = ["CheckResult", "DayInput", "Report", "build", "histogram_markdown", "sparkline_markdown", "write"]
