"""An incident in words: for people as plain text, HTML and Markdown, for machines as plain data.

Here: what each message says, and escaping for the place where it is shown. Not here: when one is due
(``incidents.py``) or how it gets there (``alerts.py``).

The title holds our own words and figures only. Whatever may stem from a file is shown as code, so that no place that
shows it takes it for markup, a link or a mention.
"""

from __future__ import annotations

import datetime as dt
import html
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from data_assets.errors import visible
from data_assets.incidents import SEVERITIES, severity_of
from data_assets.partitions import contiguous_ranges
from data_assets.report.text import plural

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from data_assets.config import PipelineConfig
    from data_assets.incidents import Incident, Message, State

Format = Literal["text", "html", "markdown"]
WORDS: Mapping[State, str] = {"firing": "FIRING", "updated": "STILL FIRING", "resolved": "RESOLVED"}
MOST_RANGES = 8
MOST_NAMES = 10
_MENTION = re.compile(r"@(?=everyone|here|channel|all\b)|<(?=[!@#])", re.IGNORECASE)
_NO_MENTION = "\u200b"  # behind the sign, so that no chat takes it for a call to everybody


@dataclass(frozen=True)
class Line:
    """One line of a message: a label of ours, and what is said; as code when it may stem from a file."""

    label: str
    words: str
    is_code: bool = False


def title(config: PipelineConfig, message: Message) -> str:
    """One line; our own words and figures."""
    if message.is_digest:
        count = {state: sum(s == state for _, s in message.entries) for state in WORDS}
        parts = [f"{n} {WORDS[state].lower()}" for state, n in count.items() if n]
        return f"[digest] data_assets: {', '.join(parts)}"
    incident, state = message.entries[0]
    severity = severity_of(config.alerts, incident, message.channel)
    days = f", {spans(incident.cause.days, 2)}" if incident.cause.days else ""
    return visible(f"[{WORDS[state]}] {severity}: {incident.cause.title}{days}", 180)


def spans(days: Sequence[str], most: int = MOST_RANGES) -> str:
    """Days as ranges.

    >>> spans(["2024-03-01", "2024-03-02", "2024-03-05"])
    '2024-03-01 to 2024-03-02, 2024-03-05'
    """
    ranges = contiguous_ranges(days)
    named = ", ".join(a if a == b else f"{a} to {b}" for a, b in ranges[:most])
    return named + (f" and {len(ranges) - most} more ranges" if len(ranges) > most else "")


def link(config: PipelineConfig, incident: Incident) -> str:
    """Where to look: the run or the asset in Dagster's UI, else the report's path; "" when there is none."""
    cause, base = incident.cause, config.alerts.base_url
    if base is not None and cause.condition == "run_failed" and cause.items:
        return f"{base}/runs/{quote(cause.items[-1])}"
    if base is not None:
        day = f"?view=partitions&partition={cause.days[-1]}" if cause.days and cause.asset != "landed_files" else ""
        return f"{base}/assets/{quote(cause.asset)}{day}"
    pages = (config.reports_dir / day / "report.html" for day in reversed(cause.days[-31:]))
    page = next((p for p in pages if p.exists()), config.reports_dir / "index.html")
    return str(page) if page.exists() else ""


def lines(
    config: PipelineConfig, incident: Incident, state: State, channel: str, samples: Sequence[str] = ()
) -> list[Line]:
    """What a message says of an incident."""
    cause = incident.cause
    severity = severity_of(config.alerts, incident, channel)
    told = incident.told.get(channel)
    found = [Line("What", f"{cause.title} ({cause.asset}, {severity})")]
    if state == "resolved":
        over = "" if told is not None else "; it was over before this could be sent"
        found += [Line("Since", f"{_clock(incident.since, config)} until {_clock(incident.resolved, config)}{over}")]
    else:
        found += [Line("Since", _clock(incident.since, config))]
    if cause.days:
        found.append(Line("Days", f"{plural(len(cause.days), 'day')}: {spans(cause.days)}"))
    if cause.items:
        more = f" and {len(cause.items) - MOST_NAMES} more" if len(cause.items) > MOST_NAMES else ""
        label = "Runs" if cause.condition == "run_failed" else "Files"
        found.append(Line(label, ", ".join(cause.items[:MOST_NAMES]) + more, is_code=True))
    found.append(Line("Why" if state != "resolved" else "It was", cause.reason, is_code=True))
    found += [Line("Such as", sample, is_code=True) for sample in samples if state != "resolved"]
    if state == "resolved":
        found.append(Line("Next", "Nothing to do."))
    else:
        found += [Line("To do", cause.todo, is_code=True)] if cause.todo else []
        found.append(Line("Next", cause.command, is_code=True))
    where = link(config, incident)
    return found + ([Line("Look", where, is_code=not where.startswith("http"))] if where else [])


def _clock(at: str | None, config: PipelineConfig) -> str:
    when = dt.datetime.fromisoformat(at or "").astimezone(config.zone)
    return f"{when:%Y-%m-%d %H:%M} {when.tzname()}"


def body(config: PipelineConfig, message: Message, form: Format, samples: Mapping[str, Sequence[str]]) -> str:
    """The message in the form that a receiver shows.

    Args:
        config: where links lead to.
        message: what is to be told.
        form: which of the three.
        samples: records to show, by the incident's id.
    """
    parts = []
    for incident, state in message.entries:
        of_it = lines(config, incident, state, message.channel, samples.get(incident.id, ()))
        if message.is_digest:
            of_it = [Line("State", WORDS[state].lower()), *of_it]
        parts.append(written(of_it, form))
    closing = written([Line("Message", message.id)], form)
    return {"text": "\n\n", "markdown": "\n\n", "html": "\n"}[form].join([*parts, closing])


def written(found: Sequence[Line], form: Format) -> str:
    """Lines in one of the three forms, escaped."""
    safe = [(line, _MENTION.sub(rf"\g<0>{_NO_MENTION}", visible(line.words, 1_200))) for line in found]
    if form == "text":
        return "\n".join(f"{line.label}: {words}" for line, words in safe)
    if form == "html":
        rows = "".join(
            f'<tr><th align="left" valign="top">{line.label}</th><td>{_in_html(line, words)}</td></tr>\n'
            for line, words in safe
        )
        return f"<table>\n{rows}</table>"
    return "\n".join(f"- **{line.label}**: {_in_markdown(line, words)}" for line, words in safe)


def _in_html(line: Line, words: str) -> str:
    escaped = html.escape(words, quote=True)
    if line.is_code:
        return f"<code>{escaped}</code>"
    return f'<a href="{escaped}">{escaped}</a>' if words.startswith("http") else escaped


def _in_markdown(line: Line, words: str) -> str:
    """Code keeps every character but the one that ends it."""
    if line.is_code:
        return "`" + words.replace("`", "'") + "`"
    return words if words.startswith("http") else re.sub(r"([\\`*_{}\[\]<>#|~!])", r"\\\1", words)


def fields(config: PipelineConfig, message: Message) -> dict[str, Any]:
    """The message for a machine; what an incident lacks is null or empty."""
    entries = [entry(config, message.channel, incident, state) for incident, state in message.entries]
    if message.is_digest:
        return {"id": message.id, "state": "digest", "entries": entries}
    return {"id": message.id, **entries[0]}


def entry(config: PipelineConfig, channel: str, incident: Incident, state: State) -> dict[str, Any]:
    """One incident for a machine; severity as its cause has it when ``channel`` is none."""
    cause = incident.cause
    return {
        "incident": incident.id,
        "state": state,
        "announced": channel in incident.told or state != "resolved",
        "severity": severity_of(config.alerts, incident, channel),
        "condition": cause.condition,
        "cause": cause.key,
        "asset": cause.asset,
        "title": cause.title,
        "days": [list(span) for span in contiguous_ranges(cause.days)],
        "items": list(cause.items),
        "reason": cause.reason,
        "to_do": cause.todo,
        "command": cause.command,
        "link": link(config, incident),
        "since": incident.since,
        "resolved": incident.resolved,
    }


def kind(config: PipelineConfig, message: Message) -> Literal["info", "success", "warning", "failure"]:
    """What receivers colour a message by."""
    open_ones = [i for i, state in message.entries if state != "resolved"]
    if not open_ones:
        return "success"
    worst = max((severity_of(config.alerts, i, message.channel) for i in open_ones), key=SEVERITIES.index)
    return "info" if worst == "info" else "warning" if worst == "warning" else "failure"
