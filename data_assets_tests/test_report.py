"""The daily report: its structure, its figures, its files.

Here: tests of ``data_assets.report`` through its public names. Pixels are not tested, markup is. Not here: how the
tables that it shows come about.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import replace
from datetime import date, datetime, timedelta
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_assets import contracts
from data_assets.metrics import DayFigures
from data_assets.report import (
    CheckResult,
    DayInput,
    build,
    histogram_markdown,
    sparkline_markdown,
    svgkit,
    text,
    write,
)
from data_assets.report import (
    page as page_module,
)

DAY = date(2025, 11, 19)
HOSTILE = "\u202e\x00</svg><script>alert(1)</script><img src=http://x/ onerror=alert(2)>\" ' {{ 7*7 }} \x1b\n--><bdi>"
VOID = {"meta", "link", "br", "hr", "img", "input"}
TABLES = contracts.tables("string")


# ---- Synthetic days ----------------------------------------------------------------------------------------------


def kpi_row(rng: random.Random, scale: float = 1.0) -> dict:
    valid = int(46_000 * scale * rng.uniform(0.9, 1.1))
    quarantined = int(valid * rng.uniform(0.008, 0.011))
    duplicate = int(valid * 0.004)
    return {
        "rows_in": valid + quarantined + duplicate, "valid": valid, "quarantined": quarantined, "duplicate": duplicate,
        "late": rng.randrange(40), "late_max_days": 1, "late_mean_days": 1.0,
        "users": int(1_200 * scale * rng.uniform(0.95, 1.05)), "sessions": valid,
        "events": valid, "value": round(valid * rng.uniform(1.8, 2.0), 2),
        "avg_duration": round(rng.uniform(600, 700), 2),
        "median_duration": round(rng.uniform(370, 440), 2), "anomalies": rng.randrange(20, 40),
        "outliers": int(valid * rng.uniform(0.010, 0.013)),
    }  # fmt: skip


def history(days: list[date], seed: int = 1) -> pl.DataFrame:
    rng = random.Random(seed)
    schema = {"date": pl.Date(), **contracts.DAILY_KPIS.schema}
    rows = [{"date": d, **kpi_row(rng, 0.8 if d.weekday() >= 5 else 1.0)} for d in days]
    return pl.DataFrame(rows, schema=schema)


def window(trend_days: int, *, without: tuple[int, ...] = ()) -> list[date]:
    return [DAY - timedelta(days=b) for b in range(trend_days, 0, -1) if b not in without]


def events_of(rows: int, types: list[str], seed: int = 7) -> pl.DataFrame:
    rng = random.Random(seed)
    start = datetime.fromisoformat("2025-11-19")
    found = []
    for i in range(rows):
        begin = start + timedelta(seconds=rng.uniform(0, 86_000))
        length = timedelta(seconds=round(rng.lognormvariate(6.1, 1.1), 3)) if i % 200 else timedelta(0)
        found.append({
            "user_id": f"u_{rng.randrange(1, 1 + rows // 8 + 1):05}", "session_start": begin,
            "session_end": None if i % 97 == 3 else begin + length,
            "event_type": types[min(int(rng.expovariate(0.55)), len(types) - 1)],
            "value": None if i % 50 == 2 else round(rng.lognormvariate(0.4, 0.8), 2), "metadata": None,
            "source_file": "2025/11/events_2025-11-19.csv.gz", "source_line": i + 2,
        })  # fmt: skip
    return pl.DataFrame(found, schema=TABLES["raw_events"].schema)


def distribution(counts: dict[str, int]) -> pl.DataFrame:
    ordered = sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))
    n, k = sum(counts.values()), len(counts)
    chi = sum((c - n / k) ** 2 / (n / k) for c in counts.values()) if n else None
    v = (chi / (n * (k - 1))) ** 0.5 if k > 1 else None
    running = 0
    rows = []
    for name, c in ordered:
        running += c
        rows.append((name, c, c / n, running / n, chi, k - 1, 0.0 if k > 1 else None, v))
    return pl.DataFrame(rows, schema=contracts.EVENT_DISTRIBUTION.schema, orient="row")


def outliers_of(events: pl.DataFrame) -> pl.DataFrame:
    q1, q3 = (events["value"].quantile(q, "linear") for q in (0.25, 0.75))
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    score = (pl.col("value") - events["value"].median()) / events["value"].std()
    found = events.filter((pl.col("value") < low) | (pl.col("value") > high))
    return found.with_columns(outlier_score=score, iqr_lower=pl.lit(low), iqr_upper=pl.lit(high)).select(
        TABLES["outliers"].names
    )


def statistics_of(events: pl.DataFrame) -> pl.DataFrame:
    rows = []
    lengths = (events["session_end"] - events["session_start"]).dt.total_microseconds() / 1e6
    for name, column in {"duration": lengths, "value": events["value"]}.items():
        quartiles = [column.quantile(q, "linear") for q in (0.25, 0.5, 0.75)]
        rows.append((name, column.count(), column.null_count(), column.mean(), column.std(), str(column.min()),
                     *quartiles, str(column.max()), column.n_unique()))  # fmt: skip
    for name in ("event_type", "user_id"):
        column = events[name]
        rows.append((name, column.count(), 0, None, None, column.min(), *[None] * 3, column.max(), column.n_unique()))
    return pl.DataFrame(rows, schema=contracts.SUMMARY_STATISTICS.schema, orient="row")


def metrics_of(events: pl.DataFrame) -> pl.DataFrame:
    length = (pl.col("session_end") - pl.col("session_start")).dt.total_microseconds() / 1e6
    return (
        events.group_by("user_id")
        .agg(
            total_sessions=pl.len().cast(pl.Int64), avg_duration=length.mean().round(2), max_duration=length.max(),
            min_duration=length.filter(length > 0).min(), total_value=pl.col("value").sum().round(2),
            mean_value=pl.col("value").mean().round(2), anomaly_count=(length <= 0).sum().cast(pl.Int64),
        )
        .sort("user_id")
    )  # fmt: skip


FILES = {"path": pl.String, "rows": pl.Int64, "valid": pl.Int64, "quarantined": pl.Int64, "duplicate": pl.Int64,
         "late": pl.Int64, "late_days": pl.Int64, "content_hash": pl.String, "lane": pl.String,
         "lane_reason": pl.String}  # fmt: skip
REASONS = {"reason": pl.String, "rows": pl.Int64}


TYPES = ["page_view", "click", "search", "add_to_cart", "checkout", "purchase", "refund", "login", "logout", "share",
         "export", "invite", "comment", "upload", "download"]  # fmt: skip


def day_of(
    rows: int = 6_000, *, types: list[str] | None = None, trend_days: int = 14, without: tuple[int, ...] = (9,)
) -> DayInput:
    names = types or TYPES
    events = events_of(rows, names)
    counts = Counter(events["event_type"].to_list())
    if types:
        counts.update(names)
    outliers = outliers_of(events)
    quarantined, duplicate = int(rows * 0.034), int(rows * 0.004)
    lengths = (events["session_end"] - events["session_start"]).dt.total_microseconds() / 1e6
    kpis = {
        "rows_in": rows + quarantined + duplicate, "valid": rows, "quarantined": quarantined, "duplicate": duplicate,
        "late": 12, "late_max_days": 1, "late_mean_days": 1.0,
        "users": events["user_id"].n_unique(), "sessions": rows, "events": rows,
        "value": round(events["value"].sum(), 2), "avg_duration": lengths.mean(), "median_duration": lengths.median(),
        "anomalies": int((lengths <= 0).sum()), "outliers": outliers.height,
    }  # fmt: skip
    past = history(window(trend_days, without=without))
    sized = {"users": kpis["users"] / 1_200, "outliers": outliers.height / 600}
    scaled = past.with_columns(
        (pl.col(c) * sized.get(c, rows / 46_000)).cast(past.schema[c])
        for c in ("rows_in", "valid", "quarantined", "duplicate", "sessions", "events", "outliers", "users", "value")
    )
    late = 1_000 * rows // 6_000
    files = [
        (
            "2025/11/19.csv.gz",
            kpis["rows_in"] - late,
            rows - late,
            quarantined,
            duplicate,
            0,
            0,
            "9f1c" * 8,
            "fast",
            "",
        ),
        ("2025/11/20.csv.gz", late, late, 0, 0, late, 1, "04ab" * 8, "exact", "quotes inside fields"),
    ]
    return DayInput(
        day=DAY, timezone="UTC", kpis=kpis, history=scaled, trend_days=trend_days,
        session_metrics=metrics_of(events).lazy(), outliers=outliers.lazy(), event_distribution=distribution(counts),
        summary_statistics=statistics_of(events), events=DayFigures(events.lazy()),
        quarantine_reasons=pl.DataFrame(
            {"reason": ["missing_user_id", "unreadable_value", "malformed_record"], "rows": [quarantined - 40, 30, 10]},
            schema=REASONS,
        ),
        files=pl.DataFrame(files, schema=FILES, orient="row"), without_rows=[date(2025, 11, 10)],
        policies={"bounds": "clip"}, policy_rows={"clipped_values": 3},
        checks=[
            CheckResult("raw_events", "rows_are_conserved", True, "ERROR", f"{kpis['rows_in']} of {kpis['rows_in']}"),
            CheckResult("raw_events", "quarantine_rate", False, "ERROR", "3.27% of rows quarantined, limit 2%"),
            CheckResult("raw_events", "schema_drift", False, "WARN", "1 column is new: campaign_id"),
            CheckResult("session_metrics", "contract", True, "ERROR", "every row keeps the contract"),
            CheckResult("event_distribution", "proportions_sum_to_one", True, "ERROR", "1.000000"),
            CheckResult("outliers", "outside_the_fences", True, "ERROR", f"{outliers.height} of {outliers.height}"),
        ],
        max_quarantine_rate=0.02, versions={"data_assets": "0.1.0", "polars": "2.1.0", "python": "3.11.7"},
        outlier_factor=1.5,
    )  # fmt: skip


def calm_day() -> DayInput:
    """A day on which nothing is wrong."""
    day = day_of(without=())
    kpis = dict(day.history.drop("date").median().row(0, named=True)) | {
        "late": 0,
        "late_max_days": 0,
        "late_mean_days": None,
    }
    whole = {
        k: int(v) for k, v in kpis.items() if k not in ("late_mean_days", "value", "avg_duration", "median_duration")
    }
    whole["rows_in"] = whole["valid"] + whole["quarantined"] + whole["duplicate"]
    files = [
        ("a.csv", *(whole[k] for k in ("rows_in", "valid", "quarantined", "duplicate")), 0, 0, "00" * 16, "fast", "")
    ]
    passed = [replace(c, passed=True) for c in day.checks]
    return replace(
        day, kpis=kpis | whole, without_rows=[], checks=passed, files=pl.DataFrame(files, schema=FILES, orient="row")
    )  # fmt: skip


def bare_day(events: pl.DataFrame | None = None, kpis: dict | None = None, **changes: object) -> DayInput:
    """A day with no history, no checks, no files; without events unless given."""
    raw = TABLES["raw_events"].empty() if events is None else events
    counted = [n for n, t in contracts.DAILY_KPIS.schema.items() if t == pl.Int64]
    day = DayInput(
        day=DAY, timezone="UTC",
        kpis=dict.fromkeys(counted, 0) | {"value": None, "avg_duration": None, "median_duration": None} | (kpis or {}),
        history=pl.DataFrame(schema={"date": pl.Date(), **contracts.DAILY_KPIS.schema}), trend_days=14,
        session_metrics=TABLES["session_metrics"].empty().lazy(), outliers=TABLES["outliers"].empty().lazy(),
        event_distribution=contracts.EVENT_DISTRIBUTION.empty(),
        summary_statistics=contracts.SUMMARY_STATISTICS.empty(),
        events=DayFigures(raw.lazy()),
        quarantine_reasons=pl.DataFrame(schema=REASONS), files=pl.DataFrame(schema=FILES),
        without_rows=[], policies={}, policy_rows={}, checks=[],
        max_quarantine_rate=0.02, versions={}, outlier_factor=1.5,
    )  # fmt: skip
    return replace(day, **changes)


# ---- Reading the page --------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Elements with their attributes, whether they nest, and text by the nearest element."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.cards: dict[str, str] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "li" and self.open[-1] == "li":  # HTML may leave its end out
            self.open.pop()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag == "ol" and self.open[-1] == "li":
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))
        key = self.elements[-1][1].get("data-figure") if self.elements else None
        if key and key not in self.cards:
            self.cards[key] = data

    @property
    def words(self) -> str:
        return " ".join(" ".join(t for e, t in self.text if e != "style").split())

    def census(self) -> Counter:
        return Counter((tag, *sorted(attrs)) for tag, attrs in self.elements)


def page_of(day: DayInput) -> Page:
    page = Page(build(day).html)
    assert not page.open
    return page


@pytest.fixture(scope="module")
def day() -> DayInput:
    return day_of()


# ---- Structure ---------------------------------------------------------------------------------------------------


def test_the_page_is_self_contained(day):
    page = page_of(day)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {
        "script",
        "img",
        "image",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "use",
        "foreignobject",
    }
    for _, attributes in page.elements:
        assert not [a for a in attributes if a.startswith("on") or a in ("style", "src", "srcset", "xlink:href")]
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in build(day).html
    assert "@import" not in build(day).html


def test_the_policy_allows_the_style_and_nothing_else(day):
    html = build(day).html
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(a["content"] for _, a in Page(html).elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_the_page_can_be_used_by_everybody(day):
    page = page_of(day)
    assert ("html", {"lang": "en"}) in page.elements
    assert [t for t, _ in page.elements].count("h1") == 1
    assert all("scope" in a for t, a in page.elements if t == "th")
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for t, a in page.elements if t == "a"} <= set(ids)
    assert {a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a} <= set(ids)
    charts = [a for t, a in page.elements if t == "svg" and "viewbox" not in a and "aria-hidden" not in a]
    assert len(charts) == 6 + 6 + 2 + 1
    assert all(a["role"] == "img" and a["aria-label"].endswith(".") for a in charts)
    assert page.words.index("Needs attention") < page.words.index("Today") < page.words.index("Event mix")


def test_same_day_same_bytes(day, tmp_path):
    for name in ("a", "b"):
        write(build(day_of()), tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == [
        "event_distribution.csv",
        "outliers.csv",
        "report.html",
        "report.txt",
        "session_metrics.csv",
        "summary.json",
    ]
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_sizes(day):
    assert len(build(day).html.encode()) <= 100_000
    many = day_of(6_000, types=[f"type_{i:04}_{'x' * 60}" for i in range(5_000)], trend_days=90)
    assert len(build(many).html.encode()) <= 150_000


def test_colours_have_contrast():
    css = resources.files("data_assets.report").joinpath("report.css").read_text(encoding="utf-8")

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    roots = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    whole = [p for r in roots if (p := dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", r)))]
    assert len(whole) == 3  # light, dark, print
    for p in whole:
        for tone in ("ink", "soft", "calm", "fail", "warn", "ok"):
            assert contrast(p[tone], p["sheet"]) >= 4.5
            assert contrast(p[tone], p["page"]) >= 4.5
        assert all(
            contrast(p[t], p[f"{t}-bg"]) >= 4.5 and contrast(p["ink"], p[f"{t}-bg"]) >= 4.5
            for t in ("fail", "warn", "ok")
        )
        assert contrast(p["foot"], p["sheet"]) >= 3


# ---- Hostile values ----------------------------------------------------------------------------------------------


def with_text(day: DayInput, change) -> DayInput:
    """``day`` with every text field put through ``change``."""

    def frame(data: pl.DataFrame, keep: tuple[str, ...] = ()) -> pl.DataFrame:
        names = [n for n, t in data.schema.items() if t == pl.String and n not in keep]
        return data.with_columns(
            pl.Series(n, [None if v is None else change(v) for v in data[n]], dtype=pl.String) for n in names
        )

    return replace(
        day,
        timezone=change(day.timezone),
        session_metrics=frame(day.session_metrics.collect()).lazy(),
        outliers=frame(day.outliers.collect()).lazy(),
        event_distribution=frame(day.event_distribution),
        summary_statistics=frame(day.summary_statistics, ("min", "max")).with_columns(min=pl.lit(change("x"))),
        events=DayFigures(frame(day.events.events.collect()).lazy()),
        quarantine_reasons=frame(day.quarantine_reasons),
        files=frame(day.files),
        checks=[
            replace(c, asset=change(c.asset), name=change(c.name), observed=change(c.observed)) for c in day.checks
        ],
        policies={change(k): change(v) for k, v in day.policies.items()},
        versions={change(k): change(v) for k, v in day.versions.items()},
    )


def test_hostile_text_changes_no_markup(day):
    benign = page_of(with_text(day, lambda v: "x" + v))
    hostile_day = with_text(day, lambda v: HOSTILE + v)
    hostile = page_of(hostile_day)
    assert hostile.census() == benign.census()
    html = build(hostile_day).html
    assert "\\u202e" in html
    assert not [c for c in html if not c.isprintable() and c != "\n"]
    assert "{{ 7*7 }}" in html
    assert "<script" not in html


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_any_text_changes_no_markup(value):
    small = day_of(60)
    assert (
        page_of(with_text(small, lambda v: value + v)).census() == page_of(with_text(small, lambda v: "x" + v)).census()
    )


def test_both_gates_hold_on_their_own():
    gate = page_module._environment().from_string("{{ a }}|{{ b }}|{{ c }}|{{ d }}")
    assert gate.render(a=None, b=float("nan"), c="\u202e<", d=0) == "–|–|\\u202e&lt;|0"
    assert str(svgkit.tag("text", "\x00<&", aria_label='"\u2066>')) == (
        '<text aria-label="&#34;\\u2066&gt;">\\x00&lt;&amp;</text>'
    )


def test_the_sentence_holds_no_foreign_text(day):
    assert build(with_text(day, lambda v: HOSTILE + v)).sentence == build(day).sentence


# ---- Verdict -----------------------------------------------------------------------------------------------------


def test_all_clear():
    report = build(calm_day())
    assert report.verdict == "All clear"
    rows = f"{report.summary['kpis']['rows_in']:,}"
    assert report.sentence == f"{rows} rows in, every one accounted for; every headline number is in its usual range."
    assert report.summary["findings"] == []
    assert not [a for _, a in Page(report.html).elements if a.get("class") in ("card hot", "pt hot")]


def test_a_warning_is_worth_a_look():
    day = calm_day()
    report = build(replace(day, checks=[CheckResult("a", "b", False, "WARN", "so")]))
    assert report.verdict == "Worth a look"
    assert "1 check warned" in report.sentence


def test_an_unusual_number_is_worth_a_look():
    day = calm_day()
    report = build(replace(day, kpis={**day.kpis, "users": 1}))
    assert report.verdict == "Worth a look"
    assert "1 of 6 headline numbers is outside its usual range" in report.sentence
    users = next(h for h in report.summary["headline"] if h["key"] == "users")
    assert users["is_unusual"]
    assert users["low"] > 1


def test_what_is_outside_the_usual_range_looks_it():
    assert text.span(243.2, 377.6, "count") == "244 – 377"
    assert text.span(3.0, 3.0, "count") == "3"
    assert text.span(360.0, 455.0, "seconds") == "6 – 7.6 min"
    assert text.span(6034.2, 15195.3, "amount") == "6,034 – 15,195"
    assert text.span(0.0079, 0.011, "rate") == "0.79% – 1.10%"


def test_a_number_that_vanished_is_unusual():
    day = calm_day()
    report = build(replace(day, kpis={**day.kpis, "value": None}))
    assert next(h for h in report.summary["headline"] if h["key"] == "value")["is_unusual"]


@pytest.mark.parametrize(
    "change",
    [
        {"checks": [CheckResult("a", "b", False, "ERROR", "")]},
        {"max_quarantine_rate": 0.001},
        {"files": pl.DataFrame([("a", 5, 1, 1, 1, 0, 0, "", None, None)], schema=FILES, orient="row")},
    ],
)
def test_what_needs_attention(change):
    assert build(replace(calm_day(), **change)).verdict == "Needs attention"


def test_rows_that_do_not_add_up_need_attention():
    day = calm_day()
    report = build(replace(day, kpis={**day.kpis, "rows_in": day.kpis["rows_in"] + 3}))
    assert report.verdict == "Needs attention"
    assert report.summary["conservation"]["unaccounted"] == 3
    assert "not every one accounted for" in report.sentence


def test_the_usual_range_takes_five_earlier_days():
    four = replace(calm_day(), history=history(window(14)[-4:]))
    assert all(h["low"] is None and not h["is_unusual"] for h in build(four).summary["headline"])
    assert "only 4 earlier days to compare with" in build(four).sentence
    five = replace(calm_day(), history=history(window(14)[-5:]))
    assert all(h["low"] is not None for h in build(five).summary["headline"])


def test_the_usual_range_is_the_median_and_three_robust_deviations():
    day = calm_day()
    past = day.history["users"].to_list()
    median = sorted(past)[6] / 2 + sorted(past)[7] / 2
    away = sorted(abs(p - median) for p in past)
    users = next(h for h in build(day).summary["headline"] if h["key"] == "users")
    assert users["median"] == median
    assert users["high"] - median == pytest.approx(3 * 1.4826 * (away[6] + away[7]) / 2)


def test_findings_are_capped_and_worst_first():
    checks = [CheckResult("a", f"c{i}", False, "WARN" if i % 2 else "ERROR", "") for i in range(30)]
    page = page_of(replace(calm_day(), checks=checks))
    levels = [a["class"] for t, a in page.elements if t == "li" and a.get("class") in ("fail", "warn", "info")]
    assert levels == ["fail"] * 8 + ["info"]
    assert "and 22 more" in page.words


def test_missing_days_are_gaps(day):
    report = build(day_of(without=(9, 4, 3)))
    assert report.summary["missing_days"] == ["2025-11-10", "2025-11-15", "2025-11-16"]
    words = Page(report.html).words
    assert "3 earlier days without figures Mon 10 Nov, Sat 15 Nov, Sun 16 Nov" in words
    crosses = [t for e, t in Page(report.html).text if e == "text" and t == "×"]
    assert len(crosses) == 3 * 6


def test_days_for_which_nothing_landed_are_worth_knowing():
    """Unless they are missing already, too long ago, or the day itself, of which the first finding tells."""
    day = replace(calm_day(), without_rows=[DAY - timedelta(days=n) for n in (0, 3, 99)])
    report = build(day)
    assert report.verdict == "All clear"
    assert [f["title"] for f in report.summary["findings"]] == ["1 earlier day without rows"]
    assert report.summary["findings"][0]["detail"] == "Sun 16 Nov: nothing landed"
    assert [f["title"] for f in build(day_of()).summary["findings"] if "without rows" in f["title"]] == []


def test_days_before_the_first_are_not_missing():
    report = build(replace(calm_day(), history=history(window(14)[8:])))
    assert report.summary["missing_days"] == []
    assert "missing" not in report.sentence


# ---- Figures -----------------------------------------------------------------------------------------------------


def test_cards_tables_and_summary_agree(day):
    report = build(day)
    page = Page(report.html)
    kpis = day.kpis
    rate = kpis["quarantined"] / kpis["rows_in"]
    shown = {
        "events": f"{kpis['events']:,}", "users": f"{kpis['users']:,}", "outliers": f"{kpis['outliers']:,}",
        "median_duration": text.seconds(kpis["median_duration"]), "value": text.amount(kpis["value"]),
        "quarantine_rate": f"{rate * 100:.2f}%",
    }  # fmt: skip
    assert page.cards == shown
    summary = {h["key"]: h["value"] for h in report.summary["headline"]}
    assert summary == {k: kpis.get(k, rate) for k in shown}
    today = next(r for r in re.findall(r'<tr class="now">(.*?)</tr>', report.html))
    cells = re.findall(r'class="n">([^<]*)<', today)
    assert cells == [f"{kpis['rows_in']:,}", f"{kpis['valid']:,}", f"{kpis['quarantined']:,}", f"{kpis['duplicate']:,}",
                     shown["quarantine_rate"], shown["users"], shown["median_duration"], shown["value"],
                     shown["outliers"]]  # fmt: skip
    assert f"10 of {shown['outliers']}; all in outliers.csv" in page.words
    assert f"{kpis['rows_in']:,} in = {kpis['valid']:,} valid + {kpis['quarantined']:,} quarantined" in page.words


def test_histograms_hold_every_event(day):
    events = day.events.events.collect()
    summary = build(day).summary
    values = summary["value_histogram"]
    assert sum(b["count"] for b in values["bins"]) == values["count"] == events["value"].count()
    lengths = summary["duration_histogram"]
    assert lengths["left_out"] > 0
    assert sum(b["count"] for b in lengths["bins"]) == lengths["count"]
    # Every end is known or filled from the same user's next row, save those of users without a later one.
    known = (events["session_end"] - events["session_start"]).drop_nulls().len()
    assert known < lengths["count"] + lengths["left_out"] <= events.height
    for found in (values["bins"], lengths["bins"]):
        assert all(a["end"] == b["start"] and a["start"] < a["end"] for a, b in pairwise(found))
        assert 8 <= len(found) <= 41


def test_missing_ends_are_filled_backward_within_the_user():
    at = datetime.fromisoformat("2025-11-19T10:00:00")

    def row(user: str, start: int, end: int | None) -> dict:
        return {"user_id": user, "session_start": at + timedelta(seconds=start),
                "session_end": None if end is None else at + timedelta(seconds=end), "event_type": "e", "value": 1.0,
                "metadata": None, "source_file": "f", "source_line": 1}  # fmt: skip

    rows = [row("a", 100, 160), row("a", 0, None), row("b", 50, None), row("c", 0, 10), row("a", 200, None),
            row("d", 5, 99), row("d", 5, None), row("d", 5, 20)]  # fmt: skip
    summary = build(bare_day(pl.DataFrame(rows, schema=TABLES["raw_events"].schema))).summary
    lengths = summary["duration_histogram"]
    found = sorted((b["start"], b["count"]) for b in lengths["bins"] if b["count"])
    assert lengths["count"] == 6  # a: 60 and 160, c: 10, d: 94, 15 and (the smallest end from its start on) 15
    assert found[0][0] <= 10 < found[-1][0] <= 160


def test_the_event_mix_shows_twelve_types_and_the_others(day):
    mix = build(day).summary["event_mix"]
    assert len(mix["shares"]) == 13
    assert mix["shares"][-1]["event_type"] is None
    assert mix["others"] == 3
    assert sum(s["count"] for s in mix["shares"]) == mix["events"] == day.kpis["events"]
    words = page_of(day).words
    assert "3 other types" in words
    assert "Cramér’s V = 0." in words


def test_top_tens_are_the_worst(day):
    summary = build(day).summary
    scores = day.outliers.collect()["outlier_score"].abs().sort(descending=True).head(10).to_list()
    assert [abs(r["outlier_score"]) for r in summary["top_outliers"]] == scores
    anomalies = day.session_metrics.collect()["anomaly_count"].sort(descending=True).head(10).to_list()
    assert [r["anomaly_count"] for r in summary["top_anomalies"]] == anomalies


def test_failed_checks_come_first(day):
    assert [c["passed"] for c in build(day).summary["checks"]] == [False, False, True, True, True, True]


# ---- Degenerate days ---------------------------------------------------------------------------------------------


def one_event(**changes: object) -> pl.DataFrame:
    at = datetime.fromisoformat("2025-11-19T10:00:00")
    row = {"user_id": "u", "session_start": at, "session_end": at + timedelta(seconds=30), "event_type": "e",
           "value": 4.0, "metadata": None, "source_file": "f", "source_line": 2} | changes  # fmt: skip
    return pl.DataFrame([row], schema=TABLES["raw_events"].schema)


ONE = {"rows_in": 1, "valid": 1, "events": 1, "users": 1, "sessions": 1}
DEGENERATE = {
    "no_rows": bare_day(),
    "one_row": bare_day(one_event(), ONE | {"value": 4.0, "median_duration": 30.0, "avg_duration": 30.0},
                        event_distribution=distribution({"e": 1})),
    "all_null": bare_day(one_event(session_end=None, value=None), ONE),
    "no_duration": bare_day(one_event(session_end=one_event()["session_start"][0]), ONE | {"anomalies": 1}),
    "constant": bare_day(pl.concat([one_event()] * 9), ONE | {"value": 36.0}),
    "all_quarantined": bare_day(None, {"rows_in": 7, "quarantined": 7}),
    "not_finite": bare_day(None, {"value": float("nan"), "median_duration": float("inf"), "events": 3, "rows_in": 0}),
    "huge": bare_day(pl.concat([one_event(value=v) for v in (-1.7e308, 0.0, 1.7e308)]), ONE | {"value": 1.7e308}),
    "tiny": bare_day(pl.concat([one_event(value=v) for v in (0.0, 5e-324)]), ONE | {"value": 5e-324}),
    "close": bare_day(pl.concat([one_event(value=v) for v in (1e16, 1e16 + 2)]), ONE | {"value": 2e16}),
    "no_trend": bare_day(trend_days=0),
    "null_history": bare_day(
        history=pl.DataFrame({"date": window(14)}).with_columns(
            pl.lit(None, t).alias(n) for n, t in contracts.DAILY_KPIS.schema.items()
        )
    ),
    "constant_history": bare_day(
        history=pl.concat([history([DAY], 3)] * 14).with_columns(date=pl.Series(window(14))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_days_render(name, tmp_path):
    report = build(DEGENERATE[name])
    page = Page(report.html)
    assert not page.open
    words = re.sub(r": none on this day|none; median", "", page.words)
    assert not re.search(r"\b(nan|none|inf|null|undefined)\b", words, re.IGNORECASE)
    assert not re.search(r'="[^"]*\b(nan|inf|None)\b', report.html)
    assert len(page.cards) == 6
    write(report, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["verdict"] == report.verdict


def test_the_first_day_says_so():
    report = build(DEGENERATE["one_row"])
    assert report.sentence == "1 row in, accounted for; no earlier day to compare with."
    assert report.verdict == "All clear"
    assert build(bare_day()).sentence == "No rows came in; no earlier day to compare with."
    assert build(bare_day()).verdict == "Worth a look"
    assert set(Page(build(bare_day()).html).cards.values()) == {"0", "–"}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5e306, 5e306) | st.none(), max_size=30))
def test_any_values_make_a_histogram(values):
    """A day whose sum exceeds a double has no report: session_metrics refuses it."""
    events = pl.concat([TABLES["raw_events"].empty(), *(one_event(value=v) for v in values)])
    found = [v for v in values if v is not None]
    frame = pl.Series(found, dtype=pl.Float64)
    stats = pl.DataFrame(
        [("value", len(found), 0, None, None, None, *(frame.quantile(q) for q in (0.25, 0.5, 0.75)), None, 0)],
        schema=contracts.SUMMARY_STATISTICS.schema, orient="row",
    )  # fmt: skip
    report = build(bare_day(events, ONE, summary_statistics=stats))
    assert sum(b["count"] for b in report.summary["value_histogram"]["bins"]) == len(found)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', report.html)


# ---- Files -------------------------------------------------------------------------------------------------------


FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@x",
    "\tx",
    "\rx",
    "\uff1d1",
    "\uff0b1",
    "\uff0d1",
    "\uff20x",
    " =1",
    "\n=1",
    "\ufeff=1",
]


def test_formulas_in_csv_are_neutralised(tmp_path):
    types = [*FORMULAS, "a=1", "x", "1-2", ""]
    mix = distribution(dict.fromkeys(types, 5))
    frame = mix.rename({"cumulative": "=cmd"}).with_columns(
        change=pl.lit(-5), parts=pl.Series([["=1"]] * len(types)), raw=pl.Series([b"="] * len(types))
    )
    report = replace(build(bare_day()), csvs={"event_distribution.csv": frame.lazy()})
    write(report, tmp_path)
    with (tmp_path / "event_distribution.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted(r["event_type"] for r in rows) == sorted(["'" + f for f in FORMULAS] + ["a=1", "x", "1-2", ""])
    assert "'=cmd" in rows[0]
    assert {r["change"] for r in rows} == {"-5"}
    assert rows[0]["parts"] == '{"parts":["=1"]}'
    assert rows[0]["raw"] == "3d"


def test_csv_files_hold_every_row(day, tmp_path):
    write(build(day), tmp_path)
    for name, frame in (("outliers", day.outliers.collect()), ("session_metrics", day.session_metrics.collect())):
        assert pl.read_csv(tmp_path / f"{name}.csv").height == frame.height
    assert json.loads((tmp_path / "summary.json").read_text()) == build(day).summary
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == build(day).html


def test_every_file_reaches_the_disk_before_it_is_put_in_place(day, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("data_assets.report.files.os.fsync", synced.append)
    write(build(day), tmp_path)
    assert len(synced) >= 5


def test_a_failed_write_leaves_what_was_there(day, tmp_path):
    write(build(day), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    broken = day.outliers.with_columns(pl.col("event_type").cast(pl.Int64).alias("boom"))
    with pytest.raises(pl.exceptions.InvalidOperationError):
        write(replace(build(day_of(50)), csvs={**build(day).csvs, "outliers.csv": broken}), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# ---- Dagster's pictures ------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(st.none() | st.integers(-(2**63), 2**63) | st.floats(), max_size=400))
def test_pictures_stay_under_dagsters_limit(values):
    for picture in (sparkline_markdown(values), histogram_markdown(values)):
        assert len(picture) < 1000
        words, data = re.fullmatch(r"!\[([^\]\[<>]+)\]\(data:image/svg\+xml;base64,([\w+/=]+)\)", picture).groups()
        svg = base64.b64decode(data).decode()
        Page(svg)
        assert "nan" not in svg + words
        assert "inf" not in svg + words


@pytest.mark.parametrize("size", [1, 2, 60, 61, 90, 1_000])
def test_pictures_of_long_series_stay_under_the_limit(size):
    rng = random.Random(size)
    jagged = [rng.uniform(-1e9, 1e9) for _ in range(size)]
    gaps = [v if i % 2 else None for i, v in enumerate(jagged)]
    assert all(len(f(v)) < 1000 for f in (sparkline_markdown, histogram_markdown) for v in (jagged, gaps))


def test_pictures_use_the_two_tones(day):
    counts = [b["count"] for b in build(day).summary["value_histogram"]["bins"]]
    for picture in (sparkline_markdown([3, None, 5, 4]), histogram_markdown(counts)):
        svg = base64.b64decode(picture.partition("base64,")[2][:-1]).decode()
        assert set(re.findall(r"#[0-9a-f]{6}", svg)) == {"#6b7f95", "#d9622b"}
    assert sparkline_markdown([3, None, 5, 4]).startswith("![4 values, 3 to 5, last 4](")
