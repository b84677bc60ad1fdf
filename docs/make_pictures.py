"""Writes docs/pictures/ui-*.png: each view of the UI, over a project of three weeks.

Here: the project, what happens in it (files land, a day is refused, a day by hand, a backfill), and where the browser
looks. Not here: what the pictures show (docs/ui.md), nor the clicks that must work (``test_ui.py``).

    python -m docs.make_pictures [NAME ...]

It starts `dagster dev` in a scratch folder, and takes five minutes. The days are the three weeks up to yesterday,
because the UI shows days up to today.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

from data_assets_tests.test_e2e import Dev, _started
from data_assets_tests.test_report_browser import SYSTEM
from data_assets_tests.test_ui import materialize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Locator, Page

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
TODAY = dt.datetime.now(dt.UTC).date()
DAYS = [(TODAY - dt.timedelta(days=n)).isoformat() for n in range(21, 0, -1)]
BAD, DRIFTED, MISSING = DAYS[-2], DAYS[-4], DAYS[6]
FIRST = [day for day in DAYS[:-1] if day not in {BAD, MISSING}]
SETTINGS = f"""\
start_date: {DAYS[0]}
source: {{settle_seconds: 0}}
freshness: {{raw_events: {{warn_after_hours: 26, fail_after_hours: 30}}}}
"""
KINDS = ("view", "view", "view", "click", "click", "purchase", "signup")
PATIENCE = 90_000
WIDTH, HEIGHT, HIGH = 1440, 900, 1250
# No picture shows where it was made.
ELSEWHERE = """names => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode())
        for (const [here, there] of Object.entries(names))
            texts.currentNode.data = texts.currentNode.data.replaceAll(here, there);
}"""
SETTLED = 5_000  # until every box of a view has its figures; milliseconds


def day_file(day: str) -> str:
    """Some hundred events, fewer at weekends; on the bad day every third has no user."""
    chance, date = random.Random(day), dt.date.fromisoformat(day)  # noqa: S311 - guards nothing
    header = ["user_id", "session_start", "session_end", "event_type", "value"]
    rows = []
    for _ in range(chance.randint(380, 460) - (150 if date.weekday() > 4 else 0)):
        second = min(86_399, max(0, int(chance.gauss(52_000, 14_000))))
        start = dt.datetime.combine(date, dt.time()) + dt.timedelta(seconds=second)
        end = start + dt.timedelta(seconds=int(chance.expovariate(1 / 400)))
        value = chance.gauss(20, 4) * (10 if chance.random() < 0.01 else 1)
        user = "" if chance.random() < (0.3 if day == BAD else 0.004) else str(chance.randint(1000, 1120))
        rows.append([user, start.isoformat(" "), end.isoformat(" "), chance.choice(KINDS), f"{value:.2f}"])
    if day == DRIFTED:
        header, rows = [*header, "campaign"], [[*row, "spring"] for row in rows]
    return "".join(",".join(row) + "\n" for row in [header, *rows])


def land(root: Path, day: str) -> None:
    """Put a day's file into the raw folder, whole."""
    temporary = root / "data" / "raw" / f".{day}.tmp"
    temporary.write_text(day_file(day), encoding="utf-8")
    temporary.rename(temporary.with_name(f"events_{day}.csv"))


def run_of(site: Dev, days: str, started_by: str, status: str = "SUCCESS") -> str:
    """The run of these days that somebody started, once it has ended."""
    wanted = {"data_assets/days": days}

    def look() -> str | None:
        for run_id, run in site.runs().items():
            tags = run["tags"]
            is_meant = tags.items() >= wanted.items() and tags["data_assets/started_by"].startswith(started_by)
            if is_meant and run["status"] == status:
                return run_id
        return None

    found: str = site.wait(f"the run of {days} by {started_by}", look)
    return found


def live(site: Dev, page: Page, root: Path) -> dict[str, str]:
    """What happens in the project; gives what the addresses of the views need."""
    run_of(site, f"{DAYS[7]} to {FIRST[-1]}", "sensor")
    land(root, BAD)
    refused = run_of(site, BAD, "sensor", "FAILURE")
    land(root, DAYS[-1])
    run_of(site, DAYS[-1], "sensor")
    materialize(page, site, FIRST[-1])
    run_of(site, FIRST[-1], "the UI")
    materialize(page, site, f"[{DAYS[7]}...{DAYS[13]}]")
    run_of(site, f"{DAYS[7]} to {DAYS[13]}", "backfill")
    return {"refused": refused, "bad": BAD, "last": DAYS[-1], "good": DAYS[8], "root": str(root)}


@contextlib.contextmanager
def lived() -> Iterator[tuple[Path, Browser, Page, Dev, dict[str, str]]]:
    """The project after all that, with its UI still running: folder, browser, page, UI, addresses."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        root = Path(folder)
        (root / "data" / "raw").mkdir(parents=True)
        (root / "pipeline.yaml").write_text(SETTINGS, encoding="utf-8")
        for name in ("dagster.yaml", "workspace.yaml"):
            shutil.copy(ROOT / name, root)
        for day in FIRST:
            land(root, day)
        program = next((found for name in SYSTEM if (found := shutil.which(name))), None)
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        with _started(root, "-m", "dagster", "dev") as site:
            site.wait("the code location", site.locations)
            page = paged(browser, site.port)
            yield root, browser, page, site, live(site, page, root)
        browser.close()


def paged(browser: Browser, port: int) -> Page:
    """A page of the UI at this port."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.set_default_timeout(PATIENCE)
    page.go = lambda path: page.goto(f"http://127.0.0.1:{port}{path}")  # as test_ui.py has it
    return page


def seen(page: Page, text: str) -> Locator:
    """The last thing with this text that can be seen."""
    return page.get_by_text(text, exact=True).locator("visible=true").last


def the_day_of_the_check(page: Page) -> None:
    """A check's partitions, and in them the bad day."""
    seen(page, "Partitions").click()
    page.wait_for_timeout(1_500)
    seen(page, BAD).click()


def plotted(page: Page) -> None:
    """Metadata as plots."""
    page.get_by_role("button", name="Plots").click()
    page.get_by_text("Metadata", exact=True).last.scroll_into_view_if_needed()


GRAPH = "/asset-groups/?expanded=" + ",".join(f"global@global:{group}" for group in ("ingest", "metrics", "report"))
VIEWS: dict[str, tuple[str, Callable[[Page], None] | None]] = {
    "graph": (GRAPH, None),
    "catalogue": ("/assets", None),
    "asset": ("/assets/raw_events", None),
    "plots": ("/assets/daily_kpis", plotted),
    "partitions": ("/assets/daily_report?view=partitions&partition={good}", None),
    "checks": ("/assets/raw_events?view=checks&checkDetail=quarantine_rate", the_day_of_the_check),
    "runs": ("/runs", None),
    "run": ("/runs/{refused}", None),
    "backfills": ("/runs?view=backfills", None),
    "automation": ("/automation", None),
    "sensor": ("/locations/data_assets/sensors/raw_files", None),
}


def take(page: Page, name: str, addresses: dict[str, str]) -> None:
    """One picture."""
    path, prepare = VIEWS[name]
    page.set_viewport_size({"width": WIDTH, "height": HIGH if path == GRAPH else HEIGHT})
    page.go(path.format(**addresses))
    page.wait_for_timeout(SETTLED)
    if prepare is not None:
        prepare(page)
        page.wait_for_timeout(SETTLED)
    page.evaluate(ELSEWHERE, {sys.prefix: ".venv", addresses["root"]: "/srv/data_assets"})
    page.screenshot(path=PICTURES / f"ui-{name}.png")


@contextlib.contextmanager
def viewers(root: Path, site: Dev) -> Iterator[int]:
    """The UI for viewers, over the same history: its port."""
    port = site.port + 1
    words = ("-m", "dagster_webserver", "--read-only", "-h", "127.0.0.1", "-p", str(port), "-w", "workspace.yaml")
    with subprocess.Popen(  # noqa: S603
        [sys.executable, *words],
        cwd=root,
        env=os.environ | {"DAGSTER_HOME": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            site.wait("the UI for viewers", Dev(process, port, site.log).locations)
            yield port
        finally:
            process.terminate()


def main(names: list[str]) -> None:
    """Make the pictures, all or the named ones."""
    with lived() as (root, browser, page, site, addresses):
        for name in VIEWS:
            if not names or name in names:
                take(page, name, addresses)
        if not names or "viewer" in names:
            with viewers(root, site) as port:
                shown = paged(browser, port)
                shown.go("/assets/daily_report")
                shown.wait_for_timeout(SETTLED)
                shown.evaluate(ELSEWHERE, {addresses["root"]: "/srv/data_assets"})
                shown.screenshot(path=PICTURES / "ui-viewer.png")


if __name__ == "__main__":
    main(sys.argv[1:])
