"""The UI as a person uses it, in a real browser: the graph, a day by hand, a failed check's reason, a backfill.

Here: what is clicked and read, in headless Chromium, on a real `dagster dev`. Not here: what runs come to
(``test_e2e.py``), the reports (``test_report_browser.py``). Skipped, with the reason, where there is no browser.
"""

from __future__ import annotations

import datetime as dt
import shutil

import pytest

from data_assets_tests.test_e2e import PATIENCE, ROOT, _started
from data_assets_tests.test_report_browser import browser  # noqa: F401 - a fixture

pytestmark = pytest.mark.e2e
HEADER = "user_id,session_start,session_end,event_type,value\n"
TODAY = dt.datetime.now(dt.UTC).date()
BAD, *GOOD = ((TODAY - dt.timedelta(days=n)).isoformat() for n in (2, 6, 5, 4, 3))
JOB = "/locations/data_assets/jobs/all_days"
SECONDS = PATIENCE * 1000
GROUPS = {
    "ingest": ("landed_files", "raw_events", "quarantined_events"),
    "metrics": ("session_metrics", "outliers", "event_distribution", "summary_statistics"),
    "report": ("daily_kpis", "daily_report", "weekly_report"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A project of four good days and one of which half the rows are refused; nothing is made by itself."""
    root = tmp_path_factory.mktemp("ui")
    raw = root / "data" / "raw"
    raw.mkdir(parents=True)
    for day in (*GOOD, BAD):
        rows = "".join(f"{n},{day} {n % 24:02}:00:00,{day} {n % 24:02}:30:00,view,{n}.5\n" for n in range(30))
        (raw / f"{day}.csv").write_text(
            HEADER + rows + (f",{day} 10:00:00,,view,1\n" * 30 if day == BAD else ""), encoding="utf-8"
        )
    (root / "pipeline.yaml").write_text(
        f"start_date: {TODAY - dt.timedelta(days=20)}\nsource: {{settle_seconds: 0}}\nsensor: {{enabled: false}}\n",
        encoding="utf-8",
    )
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, root)
    with _started(root, "-m", "dagster", "dev") as running:
        running.wait("the code location", running.locations)
        yield running


@pytest.fixture
def page(browser, site):  # noqa: F811
    """A page of the UI; errors that it meets end the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    page.broken = []
    page.on("pageerror", lambda problem: page.broken.append(str(problem)))
    page.go = lambda path: page.goto(f"http://127.0.0.1:{site.port}{path}")
    yield page
    assert page.broken == []
    context.close()


def materialize(page, site, partitions: str) -> None:
    """Ask for these days of the whole job, by its button and the dialog."""
    page.go(JOB)
    page.get_by_role("button", name="Materialize all").first.click()
    dialog = page.get_by_role("dialog")
    box = dialog.locator("input[type=text]").first
    box.wait_for()
    dialog.get_by_role("button", name="Clear").wait_for()
    box.fill(partitions)
    box.press("Tab")
    dialog.get_by_role("button", name="Launch", exact=False).last.click()
    dialog.wait_for(state="hidden")


def latest_run(site, day: str) -> dict:
    """The finished run that was asked to make this day."""

    def look():
        found = [r for r in site.runs().values() if day in r["tags"].values()]
        return next((r for r in found if r["status"] in {"SUCCESS", "FAILURE"}), None)

    return site.wait(f"the run of {day}", look)


def test_the_graph_shows_every_asset_in_its_group_and_says_what_it_is(page):
    for group, assets in GROUPS.items():
        page.go(f"/locations/data_assets/asset-groups/{group}/list")
        for asset in assets:
            page.get_by_text(asset, exact=True).first.wait_for()
    page.go("/asset-groups/")
    for group in GROUPS:
        page.get_by_role("button", name=group).first.wait_for()
    page.go("/assets/raw_events")
    page.get_by_text("Every valid event of the day, typed, in file order.").first.wait_for()
    page.get_by_text("start, in the configured time zone, stored without zone").wait_for()


def test_a_day_is_made_by_hand_and_watched(page, site):
    materialize(page, site, GOOD[0])
    run = latest_run(site, GOOD[0])
    assert run["status"] == "SUCCESS", site.said()[-4000:]
    page.go(f"/runs/{run['runId']}")
    page.get_by_text("Success", exact=True).first.wait_for()
    page.go(f"/assets/raw_events?view=partitions&partition={GOOD[0]}")
    page.get_by_text("quarantine_rate").first.wait_for()
    page.get_by_text("events_by_hour").first.wait_for()


def test_the_reason_of_a_failed_check_is_read(page, site):
    materialize(page, site, BAD)
    run = latest_run(site, BAD)
    assert run["status"] == "FAILURE"
    assert run["tags"]["data_assets/failure"] == "data"
    assert run["tags"]["data_assets/days"] == BAD
    assert not [name for name in run["tags"] if "process" in name]  # a tag for machines alone
    page.go("/assets/raw_events?view=checks&checkDetail=quarantine_rate")
    page.get_by_text("50.00% of 60 rows (limit 2.00%)").first.wait_for()
    page.get_by_text(f"data-assets quarantine show --day {BAD}").first.wait_for()


@pytest.mark.slow  # the daemon looks at backfills every 30 seconds
def test_a_backfill_is_started_and_ends_well(page, site):
    materialize(page, site, f"[{GOOD[1]}...{GOOD[3]}]")
    run = latest_run(site, GOOD[1])
    assert run["status"] == "SUCCESS", site.said()[-4000:]
    page.go("/runs?view=backfills")
    page.get_by_text("Success", exact=True).first.wait_for()
    page.go("/assets/daily_report?view=partitions")
    page.get_by_text(GOOD[3]).first.wait_for()
