"""The reports in a real browser: accessibility, width, print, hostile values, no request.

Here: what only a browser can tell, in headless Chromium. Not here: markup and figures (``test_report.py``,
``test_period.py``). Skipped, with the reason, where there is no browser: `playwright install chromium` brings one.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from datetime import timedelta

import pytest

from data_assets.report import build, build_period, index
from data_assets_tests.test_period import FIRST, LAST, span, weeks_of
from data_assets_tests.test_report import HOSTILE, bare_day, day_of, with_text

SYSTEM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
PAGES = ("typical", "hostile", "degenerate", "period", "index")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
    with api.sync_playwright() as playwright:
        program = next((found for name in SYSTEM if (found := shutil.which(name))), None)
        try:
            found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except api.Error as problem:
            pytest.skip(f"no Chromium to look at the reports with: {str(problem).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Each page as a file."""
    verdicts = dict(zip(span(FIRST - timedelta(days=400), LAST), ["All clear", "Worth a look", "Needs attention"] * 200,
                        strict=False))  # fmt: skip
    periods = [index.Period("periods/a", FIRST, LAST, "Worth a look")]
    made = {
        "typical": build(day_of()).html,
        "hostile": build(with_text(day_of(600), lambda v: HOSTILE + v)).html,
        "degenerate": build(bare_day()).html,
        "period": build_period(replace(weeks_of(without=(LAST - timedelta(days=9),)), timezone=HOSTILE)).html,
        "quarter": build_period(weeks_of(LAST - timedelta(days=91), LAST)).html,
        "index": index.build(verdicts, periods, {LAST}, "UTC"),
    }
    folder = tmp_path_factory.mktemp("pages")
    for name, html in made.items():
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in made}


@pytest.fixture
def opened(browser, pages):
    """Opens a page at a width and in a scheme; counts what it asks the network for, and dialogs."""
    contexts = []

    def go(name: str, width: int = 1280, scheme: str = "light", **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options))
        page = contexts[-1].new_page()
        page.told = []
        page.on("request", lambda r: page.told.append(r.url) if r.url != pages[name] else None)
        page.on("dialog", lambda d: (page.told.append(d.message), d.dismiss()))
        page.on("console", lambda m: page.told.append(m.text) if m.type == "error" else None)
        page.goto(pages[name])
        return page

    yield go
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(opened, name, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: make setup")
    page = opened(name, width, scheme, bypass_csp=True)  # axe is a script, which the page's policy refuses
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = axe.Axe().run(page, options=RULES)
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found.response["violations"]] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_narrow_phone_does_not_scroll_sideways(opened, name):
    page = opened(name, 320)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_asked_for_and_nothing_runs(opened, name):
    page = opened(name)
    page.mouse.wheel(0, 5_000)
    page.wait_for_timeout(100)
    assert page.told == []


def test_the_policy_stops_what_an_escape_would_let_through(opened, browser, pages, tmp_path):
    """The same page with a script and an image in it, as if escaping had failed: neither gets anywhere."""
    html = build(day_of(60)).html
    broken = html.replace("<h1>", "<script>alert(1)</script><img src='http://127.0.0.1:9/x' onerror='alert(2)'><h1>")
    (tmp_path / "broken.html").write_text(broken, encoding="utf-8")
    pages["broken"] = (tmp_path / "broken.html").as_uri()
    told = opened("broken").told
    refused = [t for t in told if "Content Security Policy" in t]
    assert len(refused) >= 2
    assert set(told) - set(refused) <= {"http://127.0.0.1:9/x"}  # named before the policy stops it; no dialog


@pytest.mark.parametrize("name", ["typical", "degenerate", "period", "quarter"])
def test_it_prints_on_at_most_five_pages(opened, name):
    pdf = opened(name, scheme="dark").pdf(format="A4", prefer_css_page_size=True)
    sheets = len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf))
    assert 1 <= sheets <= 5


@pytest.mark.parametrize("name", PAGES)
def test_forced_colours_keep_every_mark(opened, name):
    """Text and chart marks stay apart from the ground when the system chooses the colours."""
    page = opened(name, forced_colors="active")
    same = page.evaluate("""() => {
        const ground = getComputedStyle(document.body).backgroundColor;
        return [...document.querySelectorAll('.bar, .ln, .pt, .lab, .ax, .verdict strong, td, .month a')].filter(e => {
            const s = getComputedStyle(e), svg = e instanceof SVGElement;
            const tone = !svg ? s.color : s.fill !== 'none' ? s.fill : s.stroke;
            return tone === ground;
        }).map(e => e.outerHTML.slice(0, 80));
    }""")
    assert same == []


def test_the_verdict_is_seen_first(opened):
    """Without scrolling, on a phone too."""
    for width in (1280, 375):
        box = opened("typical", width).locator(".verdict").bounding_box()
        assert box["y"] + box["height"] < 500
