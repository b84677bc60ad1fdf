"""What is wrong, since when, and what has been said about it: one incident for each cause, from beginning to end.

Here: causes, incidents, which messages are due, as pure functions of what is known and of a clock that is passed in.
Not here: finding the causes (``causes.py``), their wording (``messages.py``), the disk and the receivers
(``alerts.py``).

Messages are not queued: an incident keeps what each channel was told last, and a message is due when that is no longer
true. So whatever happens while a receiver is away, it is told once, as things stand when it is back.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from data_assets.config import WHEN, RuleConfig, Severity
from data_assets.partitions import contiguous_ranges, days_between

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from data_assets.config import AlertsConfig, QuietHours

State = Literal["firing", "updated", "resolved"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error", "critical")
MOST_ITEMS = 500  # names that an incident remembers
FOLDER, STATE = "alerts", "state.json"  # below data_dir
LOCK = ".lock"
"""Whoever looks touches it first: its time is that of the last look."""
_VERSION = 1


@dataclass(frozen=True)
class Cause:
    """Something that is wrong now. It is the same cause as before when its key is.

    Attributes:
        key: kind, asset and check, column or kind of error; never a day or a run.
        condition: what a rule's ``when`` says to mean it.
        asset: the asset that it is about.
        title: in few words of our own, without any text from the files.
        days: days (ISO) that it concerns.
        items: names of the files or ids of the runs that it concerns.
        reason: what was found, fit to be shown.
        todo: the next step in words.
        command: the same as a command line.
        is_settled: False when it may heal by itself shortly: no incident is opened for it, and none is ended.
    """

    key: str
    condition: str
    asset: str
    title: str
    severity: Severity
    days: tuple[str, ...]
    items: tuple[str, ...]
    reason: str
    todo: str
    command: str
    is_settled: bool = True


@dataclass(frozen=True)
class Told:
    """What a channel knows of an incident."""

    state: State
    revision: int
    at: str


@dataclass(frozen=True)
class Incident:
    """A cause from the time when it was first seen.

    Attributes:
        id: the same for all messages about it, another one when the same cause comes back later.
        cause: as it was seen last; its days, items and severity are all that it ever had.
        since, changed, resolved: times (ISO, UTC); ``changed`` is that of the revision.
        revision: counts its growth: days, items or severity.
        told: what each channel was told last.
    """

    id: str
    cause: Cause
    since: str
    changed: str
    revision: int = 0
    resolved: str | None = None
    told: Mapping[str, Told] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """What a channel is to be told now: about one incident, or in a digest about several."""

    channel: str
    entries: tuple[tuple[Incident, State], ...]
    is_digest: bool = False

    @property
    def id(self) -> str:
        """The same when it is sent again after a crash, so that a receiver can tell a repetition."""
        names = [
            f"{incident.id}.{state}" + (f".{incident.revision}" if state == "updated" else "")
            for incident, state in self.entries
        ]
        return names[0] if not self.is_digest else f"digest.{_digest(*names)}"


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=6).hexdigest()


def _worst(one: Severity, other: Severity) -> Severity:
    return max(one, other, key=SEVERITIES.index)


def _joined(one: Sequence[str], other: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*one, *other)))


# ---- From causes to incidents --------------------------------------------------------------------------------------


def reconcile(
    incidents: Sequence[Incident], causes: Sequence[Cause], now: dt.datetime, held: Collection[tuple[str, str]] = ()
) -> list[Incident]:
    """The incidents after a look: new ones for new causes, those whose cause is gone resolved.

    Args:
        incidents: as they were.
        causes: everything that is wrong now, each key once.
        now: the time of the look, with a zone.
        held: conditions with a day, or with "" for any, that cannot be judged now: their incidents stay as they are.
    """
    at = now.astimezone(dt.UTC).isoformat(timespec="seconds")
    by_key = {cause.key: cause for cause in causes}
    known, kept = set(), []
    for incident in incidents:
        cause = by_key.get(incident.cause.key)
        if incident.resolved is not None:
            kept.append(incident)
        elif cause is not None:
            known.add(cause.key)
            kept.append(_grown(incident, cause, at))
        elif any((incident.cause.condition, day) in held for day in ("", *incident.cause.days)):
            kept.append(incident)
        else:
            kept.append(replace(incident, resolved=at))
    new = [c for c in causes if c.key not in known and c.is_settled]
    taken = {incident.id for incident in kept}
    for cause in new:
        number = 0
        while (name := _digest(cause.key, at, str(number))) in taken:
            number += 1
        taken.add(name)
        kept.append(Incident(name, cause, at, at))
    return kept


def _grown(incident: Incident, cause: Cause, at: str) -> Incident:
    """The incident with what the cause is now, and all that it ever concerned."""
    before = incident.cause
    days = tuple(sorted({*before.days, *cause.days}))
    items = _joined(before.items, cause.items)[:MOST_ITEMS]
    severity = _worst(before.severity, cause.severity)
    if (len(days), len(items), severity) == (len(before.days), len(before.items), before.severity):
        return replace(incident, cause=replace(cause, days=days, items=items, severity=severity))
    grown = replace(cause, days=days, items=items, severity=severity)
    return replace(incident, cause=grown, revision=incident.revision + 1, changed=at)


# ---- From incidents to messages ------------------------------------------------------------------------------------


def rule_for(alerts: AlertsConfig, incident: Incident, channel: str) -> RuleConfig | None:
    """The first rule that means this incident and channel."""
    for rule in rules(alerts):
        if incident.cause.condition in rule.conditions and (rule.channels is None or channel in rule.channels):
            return rule
    return None


def rules(alerts: AlertsConfig) -> tuple[RuleConfig, ...]:
    """The rules in force: those of the configuration, or one that means everything."""
    return alerts.rules or (RuleConfig(when=WHEN),)


def severity_of(alerts: AlertsConfig, incident: Incident, channel: str) -> Severity:
    """The severity that a channel sees."""
    rule = rule_for(alerts, incident, channel)
    return incident.cause.severity if rule is None or rule.severity is None else rule.severity


def is_for(alerts: AlertsConfig, incident: Incident, channel: str) -> bool:
    """Whether the channel is still to hear of the incident: now, or when it ends."""
    told = incident.told.get(channel)
    if rule_for(alerts, incident, channel) is None:
        return False
    return incident.resolved is None or told is None or told.state != "resolved"


def due(incidents: Iterable[Incident], alerts: AlertsConfig, now: dt.datetime) -> list[Message]:
    """The messages to send now, by channel, oldest first.

    Args:
        incidents: after ``reconcile``.
        alerts: channels and rules.
        now: in the zone of the quiet hours and digests.
    """
    ordered = sorted(incidents, key=lambda i: (i.resolved or i.changed, i.id))
    found = []
    for channel in alerts.channels:
        digest: list[tuple[Incident, State]] = []
        for incident in ordered:
            rule = rule_for(alerts, incident, channel)
            state = _to_tell(incident, channel, alerts, now) if rule is not None else None
            if rule is None or state is None:
                continue
            if rule.digest is not None:
                if _instant(incident, state) <= _last(rule.digest, now):
                    digest.append((incident, state))
            elif not _is_quiet(rule.quiet_hours, severity_of(alerts, incident, channel), now):
                found.append(Message(channel, ((incident, state),)))
        if digest:
            found.append(Message(channel, tuple(digest), is_digest=True))
    return found


def _to_tell(incident: Incident, channel: str, alerts: AlertsConfig, now: dt.datetime) -> State | None:
    """What the channel does not know yet."""
    told = incident.told.get(channel)
    if incident.resolved is not None:
        return None if told is not None and told.state == "resolved" else "resolved"
    if told is None:
        return "firing"
    waited = now - dt.datetime.fromisoformat(told.at) >= dt.timedelta(minutes=alerts.update_minutes)
    return "updated" if told.revision < incident.revision and waited else None


def _instant(incident: Incident, state: State) -> dt.datetime:
    """When that which is to be told came about."""
    text = {"firing": incident.since, "updated": incident.changed, "resolved": incident.resolved or incident.changed}
    return dt.datetime.fromisoformat(text[state])


def _last(time: dt.time, now: dt.datetime) -> dt.datetime:
    """The last time before ``now`` that the clock showed ``time``."""
    today = dt.datetime.combine(now.date(), time, tzinfo=now.tzinfo)
    return today if today <= now else dt.datetime.combine(now.date() - dt.timedelta(days=1), time, tzinfo=now.tzinfo)


def _is_quiet(quiet: QuietHours | None, severity: Severity, now: dt.datetime) -> bool:
    if quiet is None or (quiet.exempt is not None and SEVERITIES.index(severity) >= SEVERITIES.index(quiet.exempt)):
        return False
    time = now.time()
    if quiet.start <= quiet.end:
        return quiet.start <= time < quiet.end
    return time >= quiet.start or time < quiet.end


def was_told(incidents: Sequence[Incident], message: Message, now: dt.datetime) -> list[Incident]:
    """The incidents after a channel took a message."""
    at = now.astimezone(dt.UTC).isoformat(timespec="seconds")
    news = {incident.id: (incident.revision, state) for incident, state in message.entries}
    return [
        replace(i, told={**i.told, message.channel: Told(news[i.id][1], news[i.id][0], at)}) if i.id in news else i
        for i in incidents
    ]


def forget(incidents: Sequence[Incident], alerts: AlertsConfig) -> list[Incident]:
    """The incidents without those that are over and that every channel has heard of."""
    return [i for i in incidents if i.resolved is None or any(is_for(alerts, i, c) for c in alerts.channels)]


# ---- On disk -------------------------------------------------------------------------------------------------------


def to_json(incidents: Sequence[Incident]) -> list[dict[str, Any]]:
    """Incidents as plain data; days as ranges."""
    return [{**asdict(i), "cause": {**asdict(i.cause), "days": contiguous_ranges(i.cause.days)}} for i in incidents]


def from_json(found: Iterable[Mapping[str, Any]]) -> list[Incident]:
    """What ``to_json`` wrote."""
    incidents = []
    for entry in found:
        cause = dict(entry["cause"])
        spans = [days_between(dt.date.fromisoformat(a), dt.date.fromisoformat(b)) for a, b in cause["days"]]
        cause |= {"days": tuple(day for span in spans for day in span), "items": tuple(cause["items"])}
        told = {channel: Told(**known) for channel, known in entry["told"].items()}
        incidents.append(Incident(**{**entry, "cause": Cause(**cause), "told": told}))
    return incidents


def dumps(incidents: Sequence[Incident], channels: Mapping[str, Mapping[str, Any]]) -> str:
    """The state as text: incidents, and how delivery to each channel stands."""
    return json.dumps({"version": _VERSION, "incidents": to_json(incidents), "channels": channels}, indent=1)


def loads(text: str) -> tuple[list[Incident], dict[str, dict[str, Any]]]:
    """What ``dumps`` wrote.

    Raises:
        ValueError: it is no such text, or that of another version.
    """
    try:
        found = json.loads(text)
        if found["version"] != _VERSION:
            msg = "another version's"
            raise ValueError(msg)
        return from_json(found["incidents"]), found["channels"]
    except (KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
