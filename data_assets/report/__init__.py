"""The reports: frames of a day or a period in, one self-contained HTML page, its text, figures and CSV files out.

Here: the names that the assets, the command line and the tests use. Not here: how the figures come about
(``figures.py``, ``bins.py``, ``period.py``), how they are worded and drawn (``text.py``, ``view.py``,
``period_view.py``, ``plaintext.py``, ``svgkit.py``), how a page is put together (``page.py``, ``*.html.j2``,
``report.css``), the page of all days (``index.py``) and how files reach the disk (``files.py``). Nothing in
this room knows Dagster, the clock or a run id: the same day gives the same bytes.
"""

from __future__ import annotations

from data_assets.report.files import write
from data_assets.report.index import PERIODS, rebuild, verdicts, written, written_at
from data_assets.report.model import CheckResult, DayInput, Report
from data_assets.report.page import build, build_period
from data_assets.report.period import LONGEST, PeriodInput, needed_from
from data_assets.report.pictures import figures_markdown, histogram_markdown, sparkline_markdown

__all__ = [
    "LONGEST",
    "PERIODS",
    "CheckResult",
    "DayInput",
    "PeriodInput",
    "Report",
    "build",
    "build_period",
    "figures_markdown",
    "histogram_markdown",
    "needed_from",
    "rebuild",
    "sparkline_markdown",
    "verdicts",
    "write",
    "written",
    "written_at",
]
