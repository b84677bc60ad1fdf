"""The reports of periods, the page of all days and the plain-text versions.

Here: tests of ``data_assets.report`` beyond a single day's page, and of ``periods.due_weeks``. Not here: the day's page
(``test_report.py``), a browser (``test_report_browser.py``), Dagster (``test_graph.py``).
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import threading
from dataclasses import replace
from datetime import date, timedelta
from itertools import combinations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_assets import periods, report
from data_assets.config import PipelineConfig
from data_assets.report import PeriodInput, build, build_period, index, period, pictures, text
from data_assets_tests.test_report import HOSTILE, Page, calm_day, day_of, history, with_text

FIRST, LAST = date(2025, 9, 1), date(2025, 9, 28)  # four weeks, from a Monday on
WEEK = timedelta(days=7)


def span(first: date, last: date) -> list[date]:
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def types_of(kpis: pl.DataFrame, names: dict[str, float]) -> pl.DataFrame:
    rows = [(d, name, round(events * share)) for d, events in kpis.select("date", "events").iter_rows()
            for name, share in names.items()]  # fmt: skip
    return pl.DataFrame(rows, schema={"date": pl.Date, "event_type": pl.String, "count": pl.Int64}, orient="row")


def weeks_of(first: date = FIRST, last: date = LAST, *, without: tuple[date, ...] = (), seed: int = 3) -> PeriodInput:
    """Days with the weekend's usual dip, from as far back as a report looks."""
    days = [d for d in span(report.needed_from(first, last), last) if d not in without]
    kpis = history(days, seed)
    return PeriodInput(
        first=first, last=last, timezone="UTC", kpis=kpis, versions={"polars": "2"},
        types=types_of(kpis, {"view": 0.7, "buy": 0.2, "share": 0.1}),
        verdicts=dict.fromkeys((d for d in span(first, last) if d not in without), "All clear"),
    )  # fmt: skip


def with_value(given: PeriodInput, day: date, **figures: float) -> PeriodInput:
    changed = given.kpis.with_columns(
        pl.when(pl.col("date") == day).then(value).otherwise(name).cast(given.kpis.schema[name]).alias(name)
        for name, value in figures.items()
    )
    return replace(given, kpis=changed)


def number(summary: dict, key: str) -> dict:
    return next(h for h in summary["headline"] if h["key"] == key)


# ---- Figures -----------------------------------------------------------------------------------------------------


def test_totals_and_changes_by_hand():
    given = weeks_of(without=(date(2025, 9, 10),))
    inside = given.kpis.filter(pl.col("date").is_between(FIRST, LAST))
    before = given.kpis.filter(pl.col("date").is_between(FIRST - 4 * WEEK, FIRST - timedelta(days=1)))
    summary = build_period(given).summary
    assert inside.height == 27
    events = number(summary, "events")
    assert events["value"] == inside["events"].sum()
    assert events["change"] == pytest.approx(inside["events"].mean() / before["events"].mean() - 1)
    assert number(summary, "users")["value"] == inside["users"].median()
    assert number(summary, "quarantine_rate")["value"] == inside["quarantined"].sum() / inside["rows_in"].sum()
    assert summary["missing_days"] == ["2025-09-10"]
    assert summary["totals"]["rows_in"] == inside["rows_in"].sum()
    assert "27 of 28 days have figures" in summary["sentence"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-50, 50) | st.none(), min_size=1, max_size=40))
def test_the_slope_is_the_median_over_pairs(values):
    """Against the definition, pair by pair; and Mann and Kendall's S against counting."""
    series = [(FIRST + timedelta(days=i), v) for i, v in enumerate(values) if v is not None]
    seasonal = len(values) >= 14
    pairs = [
        ((b - a) / (e - d).days, (b > a) - (b < a))
        for (d, a), (e, b) in combinations(series, 2)
        if not seasonal or d.weekday() == e.weekday()
    ]
    found = period.trend(series, len(values))
    if len(series) < 5 or not pairs:
        assert found.per_week is None
        return
    assert found.per_week == pytest.approx(7 * statistics.median(p for p, _ in pairs), abs=1e-9)
    if found.is_clear:
        assert abs(sum(s for _, s in pairs)) > 1


@pytest.mark.parametrize(("step", "clear"), [(0.0, False), (100.0, True), (-100.0, True)])
def test_a_trend_is_told_from_a_weekday_pattern(step, clear):
    rng = random.Random(5)
    days = span(FIRST, FIRST + timedelta(days=41))
    series = [
        (d, 5_000 * (0.5 if d.weekday() > 4 else 1) + step * i + rng.uniform(-50, 50)) for i, d in enumerate(days)
    ]
    found = period.trend(series, len(days))
    assert found.is_clear is clear
    assert found.per_week == pytest.approx(step * 7, abs=40)


def test_ties_are_no_trend():
    assert not period.trend([(d, 3) for d in span(FIRST, LAST)], 28).is_clear


def test_a_day_is_compared_with_its_weekday_once_there_are_five_weeks():
    sunday = LAST
    given = with_value(weeks_of(), sunday, users=1_200)  # usual on a workday, far too many for a Sunday
    found = [c for c in build_period(given).summary["callouts"] if c["key"] == "users" and c["day"] == str(sunday)]
    assert [(c["baseline"], c["days"]) for c in found] == [("weekday", 8)]
    eight_weeks = given.kpis.filter(pl.col("date").is_between(sunday - 8 * WEEK, sunday, closed="left"))
    away = []
    for weekday in range(1, 8):
        values = sorted(eight_weeks.filter(pl.col("date").dt.weekday() == weekday)["users"].to_list())
        middle = (values[3] + values[4]) / 2
        away += [abs(v - middle) for v in values]
    spread = 1.4826 * statistics.median(away) * (8 / 7) ** 0.5 * (1 + math.pi / 16) ** 0.5
    assert (found[0]["low"], found[0]["high"]) == pytest.approx((middle - 3 * spread, middle + 3 * spread))


def test_before_that_it_is_compared_with_the_days_before():
    given = weeks_of()
    young = replace(given, kpis=given.kpis.filter(pl.col("date") >= FIRST))
    day = FIRST + timedelta(days=15)
    found = build_period(with_value(young, day, users=90_000)).summary["callouts"][0]
    assert (found["day"], found["baseline"], found["days"]) == (str(day), "recent", 14)
    fourth = FIRST + timedelta(days=3)
    assert not [
        c for c in build_period(with_value(young, fourth, users=90_000)).summary["callouts"] if c["day"] == str(fourth)
    ]


def test_a_spread_of_zero_takes_the_mean_deviation():
    factor = (8 / 7) ** 0.5 * (1 + math.pi / 16) ** 0.5
    assert period.robust_spread([[5, 5, 5, 5, 5, 5, 5, 9]]) == pytest.approx(1.2533 * 4 / 8 * factor)
    assert period.robust_spread([[5] * 6]) == 0


def test_few_days_that_differ_by_chance_are_called_out():
    """Two years of noise around a weekday pattern: as rarely as the page says."""
    rng = random.Random(11)
    days = span(FIRST - 104 * WEEK, FIRST)
    known = {d: {"users": rng.gauss(1_000 - 60 * d.weekday(), 20)} for d in days}
    found = period.out_of_line(known, days[56:])
    assert {c.baseline for c in found} == {"weekday"}
    assert 0.005 < len(found) / len(days[56:]) < 0.02


def test_the_weekday_pattern():
    summary = build_period(weeks_of()).summary
    assert [w["weekday"] for w in summary["weekdays"]] == list(range(7))
    assert {w["days"] for w in summary["weekdays"]} == {4}
    assert max(w["events"] for w in summary["weekdays"][5:]) < min(w["events"] for w in summary["weekdays"][:5])
    short = weeks_of(LAST - timedelta(days=6), LAST)
    assert build_period(short).summary["weekday_days"] == 28
    assert build_period(replace(short, kpis=short.kpis.tail(10))).summary["weekdays"] == []


def test_changes_by_event_type_by_hand():
    given = weeks_of()
    before = pl.col("date") < FIRST
    kinds = given.types.filter(
        ~(before & (pl.col("event_type") == "buy")) & ~(~before & (pl.col("event_type") == "share"))
    )
    built = build_period(replace(given, types=kinds))
    found = {t["event_type"]: t for t in built.summary["types"]}
    inside = kinds.filter(~before)
    assert found["buy"]["before"] == 0
    assert found["buy"]["per_day"] == inside.filter(pl.col("event_type") == "buy")["count"].sum() / 28
    assert found["share"]["count"] == 0
    assert found["share"]["change"] == -found["share"]["before"]
    assert sum(t["share"] for t in found.values()) == pytest.approx(1)
    assert found["view"]["share_change"] == pytest.approx(7 / 9 - 7 / 8, abs=1e-3)
    sizes = [abs(t["change"]) for t in built.summary["types"]]
    assert sizes == sorted(sizes, reverse=True)
    words = Page(built.html).words
    assert "new" in words
    assert "gone" in words


def test_the_verdict_of_a_period():
    given = weeks_of()
    quiet = replace(given, kpis=pl.concat([history([FIRST], 3)] * given.kpis.height).with_columns(given.kpis["date"]))
    assert build_period(quiet).verdict == "All clear"
    assert build_period(quiet).summary["findings"] == []
    for said, verdict in (("Worth a look",) * 2, ("Needs attention",) * 2, ("Refused", "Needs attention")):
        changed = build_period(replace(quiet, verdicts={**quiet.verdicts, LAST: said}))
        assert (changed.verdict, [f["title"] for f in changed.summary["findings"]]) == (verdict, [f"{said}: 1 day"])
    assert build_period(weeks_of(without=(LAST,))).verdict == "Worth a look"
    assert build_period(with_value(quiet, LAST, users=1)).verdict == "Worth a look"
    lost = build_period(with_value(quiet, LAST, rows_in=1))
    assert lost.verdict == "Needs attention"
    assert "not every one accounted for" in lost.sentence


EMPTY = replace(weeks_of(), kpis=history([]), types=weeks_of().types.clear(), verdicts={})


@pytest.mark.parametrize(
    "given",
    [
        EMPTY,
        weeks_of(LAST, LAST),
        replace(weeks_of(LAST, LAST), kpis=history([LAST])),
        replace(EMPTY, kpis=history([LAST]).with_columns(value=pl.lit(float("nan")), median_duration=pl.lit(None))),
        with_value(weeks_of(), LAST, value=1.7e308),
        weeks_of(FIRST, FIRST + timedelta(days=365)),
    ],
    ids=["nothing", "one_day", "first_day", "not_a_number", "huge", "year"],
)
def test_degenerate_periods_render(given):
    built = build_period(given)
    page = Page(built.html)
    assert not page.open
    assert len(page.cards) == 6
    for shown in (page.words, built.text):
        assert not [w for w in ("nan", "None", "inf", "null") if w in shown.replace("/", " ").split()]
    json.dumps(built.summary, allow_nan=False)
    assert len(built.html.encode()) <= 130_000  # a year


def test_a_period_in_all_its_files(tmp_path):
    given = weeks_of()
    built = build_period(given)
    for name in ("a", "b"):
        report.write(build_period(weeks_of()), tmp_path / name)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["days.csv", "event_types.csv", "report.html", "report.txt", "summary.json"]
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    days = pl.read_csv(tmp_path / "a" / "days.csv")
    assert days["events"].sum() == number(built.summary, "events")["value"]
    kinds = pl.read_csv(tmp_path / "a" / "event_types.csv")
    assert kinds["count"].to_list() == [t["count"] for t in built.summary["types"]]
    cards = Page(built.html).cards
    assert cards == {h["key"]: text.figure(h["value"], h["kind"]) for h in built.summary["headline"]}
    assert all(shown in built.text for shown in cards.values())


def test_hostile_text_changes_no_markup_of_a_period():
    def changed(prefix: str) -> PeriodInput:
        given = weeks_of()
        return replace(
            given, timezone=prefix + "UTC", versions={prefix + "a": prefix + "b"},
            types=given.types.with_columns(event_type=pl.lit(prefix) + pl.col("event_type")),
        )  # fmt: skip

    hostile = build_period(changed(HOSTILE))
    assert Page(hostile.html).census() == Page(build_period(changed("x")).html).census()
    assert not [c for c in hostile.html + hostile.text if not c.isprintable() and c != "\n"]


# ---- Plain text --------------------------------------------------------------------------------------------------


def test_the_text_of_a_day_says_it_all():
    built = build(day_of())
    lines = built.text.splitlines()
    assert lines[0] == "✕ NEEDS ATTENTION"
    assert lines[1] == "Wednesday, 19 November 2025 (UTC)"
    cards = Page(built.html).cards
    assert all(any(value in line for line in lines) for value in cards.values())
    for words in ("in = ", "quarantined", "late rows: 12; 1 day at most, 1 on average", "clipped values",
                  "schema: 1 column is new: campaign_id", "2025/11/20.csv.gz"):  # fmt: skip
        assert words in built.text, words
    assert max(len(line) for line in lines) <= 100
    assert build(calm_day()).text.startswith("✓ ALL CLEAR\n")


def test_hostile_text_is_harmless_in_a_terminal():
    hostile = build(with_text(day_of(60), lambda v: HOSTILE + v)).text
    assert "\\u202e" in hostile
    assert not [c for c in hostile if not c.isprintable() and c != "\n"]


# ---- The page of all days ----------------------------------------------------------------------------------------


def made(folder, day: str, verdict: str = "All clear", **more: object) -> None:
    (folder / day).mkdir(parents=True, exist_ok=True)
    said = {"day": day, "verdict": verdict} | more
    (folder / day / "summary.json").write_text(json.dumps(said))


def test_the_index_links_every_report(tmp_path):
    for day, verdict in (
        ("2024-02-28", "All clear"),
        ("2024-03-01", "Needs attention"),
        ("2025-01-01", "Worth a look"),
    ):
        made(tmp_path, day, verdict)
    made(tmp_path, "periods/2024-02-26_2024-03-03")
    period_said = {"first": "2024-02-26", "last": "2024-03-03", "verdict": "Worth a look"}
    (tmp_path / "periods/2024-02-26_2024-03-03/summary.json").write_text(json.dumps(period_said))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "summary.json").write_text('{"verdict": "<script>"}')
    html = report.rebuild(tmp_path, ["2024-02-29", "2024-03-01"], "UTC").read_text()
    page = Page(html)
    links = [a["href"] for t, a in page.elements if t == "a" and not a["href"].startswith("#")]
    assert sorted(set(links)) == [
        "2024-02-28/report.html", "2024-03-01/report.html", "2025-01-01/report.html",
        "periods/2024-02-26_2024-03-03/report.html",
    ]  # fmt: skip
    assert all((tmp_path / link).parent.is_dir() for link in links)
    assert html.index("2025:") < html.index("2024:")
    assert "2024: 1 all clear, 2 refused, 305 no report" in page.words
    assert "<script" not in html


def test_the_index_of_ten_years_is_small_and_read_once(tmp_path, monkeypatch):
    days = span(date(2015, 1, 1), date(2024, 12, 31))
    verdicts = {d: "Worth a look" if d.day % 4 == 0 else "All clear" for d in days}
    assert len(index.build(verdicts, [], set(), "UTC").encode()) <= 200_000
    for day in days[:40]:
        made(tmp_path, str(day))
    report.rebuild(tmp_path, [], "UTC")
    read = []
    real = index._said
    monkeypatch.setattr(index, "_said", lambda path: read.append(path.parent.name) or real(path))
    made(tmp_path, str(days[3]), "Needs attention")
    os.utime(tmp_path / str(days[3]) / "summary.json", ns=(1, 1))
    assert "1 needs attention" in report.rebuild(tmp_path, [], "UTC").read_text()
    assert read == [str(days[3])]


def test_no_report_at_all(tmp_path):
    assert "No day has a report yet." in report.rebuild(tmp_path / "new", [], "UTC").read_text()


def test_of_two_runs_that_end_together_none_is_lost(tmp_path):
    """Each writes its day and then rebuilds; whatever the order, the last page names all of them."""
    days = [str(d) for d in span(FIRST, LAST)]

    def run(mine: list[str]) -> None:
        for day in mine:
            made(tmp_path, day)
            report.rebuild(tmp_path, [], "UTC")

    threads = [threading.Thread(target=run, args=(days[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    html = (tmp_path / "index.html").read_text()
    assert all(f'"{day}/report.html"' in html for day in days)
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob(".*.tmp"))


# ---- Which weeks are due -----------------------------------------------------------------------------------------


def test_weeks_are_due_when_over_and_older_than_a_day(tmp_path):
    config = PipelineConfig(data_dir=tmp_path, start_date=date(2024, 1, 3))

    def stamp(folder, when: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text("{}")
        os.utime(folder / "summary.json", ns=(when, when))

    for day in ("2024-01-03", "2024-01-09", "2024-01-16"):
        stamp(config.reports_dir / day, 100)
    mondays = [date(2024, 1, 1), date(2024, 1, 8), date(2024, 1, 15)]
    assert periods.due_weeks(config, date(2024, 1, 21)) == mondays[:2]  # the third week has its Sunday still before it
    assert periods.due_weeks(config, date(2024, 1, 22)) == mondays
    stamp(periods.folder(config, date(2024, 1, 1), date(2024, 1, 7)), 101)
    assert periods.due_weeks(config, date(2024, 1, 22)) == mondays[1:]
    stamp(config.reports_dir / "2024-01-05", 102)  # a late file
    assert periods.due_weeks(config, date(2024, 1, 22)) == mondays


def test_ranges_of_weeks():
    mondays = [date(2024, 1, 1), date(2024, 1, 8), date(2024, 1, 22)]
    assert periods.ranges_of_weeks(mondays) == [("2024-01-01", "2024-01-08"), ("2024-01-22", "2024-01-22")]
    assert periods.ranges_of_weeks([]) == []


# ---- Markdown in Dagster -----------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=60) | st.sampled_from([HOSTILE, "![t](http://h/x.png)", "`](javascript:x)", "a|b|<img src=x>"]))
def test_no_value_is_markup_in_dagsters_tables(value):
    """Read by another implementation of CommonMark, with tables: no image, link or HTML, and no cell more."""
    from markdown_it import MarkdownIt

    small = build(calm_day()).summary
    small["event_mix"]["shares"] = [{"event_type": value, "count": 1, "proportion": 1.0, "cumulative": 1.0}]
    table = pictures.figures_markdown(small)
    assert len(table) < 1000
    tokens = MarkdownIt("commonmark").enable("table").parse(table)
    flat = [child for t in tokens for child in (t, *(t.children or ()))]
    assert not [t.type for t in flat if t.type in ("image", "link_open", "html_inline", "html_block")]
    assert [t.type for t in tokens].count("table_open") == 1
    assert [t.type for t in tokens].count("tr_open") == 1 + 6 + 1
    assert tokens[-1].type == "table_close"
