"""`data-assets alerts`: what is wrong now, a test message, one round by hand; and the round after a `run`.

Here: arguments and words. Not here: the round itself (``alerts.py``).
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from data_assets.commands import opened_instance
from data_assets.config import load_config
from data_assets.errors import DataAssetsError, visible

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dagster import DagsterInstance

    from data_assets.alerts import Round
    from data_assets.config import PipelineConfig

LOCK_SECONDS = 2.0


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="print them as JSON")
@click.pass_context
def alerts(ctx: click.Context, as_json: bool) -> None:
    """What is wrong now, and since when. Sends nothing.

    Exits with 1 when something is.
    """
    if ctx.invoked_subcommand is not None:
        return
    config, made = _round(ctx.obj, deliver=False)
    _show(config, made, as_json=as_json)
    sys.exit(1 if made is not None and made.open else 0)


@alerts.command()
@click.option("--json", "as_json", is_flag=True, help="print what is open as JSON")
@click.pass_obj
def check(config_path: Path | None, as_json: bool) -> None:
    """Look once, and send what is due, as the sensor does every half minute.

    Exits with 1 when a channel could not be reached.
    """
    config, made = _round(config_path, deliver=True)
    _show(config, made, as_json=as_json)
    if not as_json and made is not None:
        click.echo(made.in_words())
    sys.exit(1 if made is None or made.failed else 0)


@alerts.command()
@click.argument("channel")
@click.pass_obj
def test(config_path: Path | None, channel: str) -> None:
    """Send a test message to CHANNEL."""
    from data_assets import alerts as telling

    config = load_config(config_path)
    problem = telling.send(config, telling.test_message(config, channel, dt.datetime.now(config.zone)))
    if problem is not None:
        raise DataAssetsError(
            f"{channel} did not take the message: {problem}.",
            f"Look at the address in {config.alerts.channels[channel].url_env}; "
            "its forms: https://github.com/caronc/apprise/wiki",
        )
    click.echo(f"{channel} took the message.")


def _round(config_path: Path | None, *, deliver: bool) -> tuple[PipelineConfig, Round | None]:
    config = load_config(config_path)
    with opened_instance() as instance:
        return config, _made(config, instance, deliver=deliver, at_once=deliver)


def _made(config: PipelineConfig, instance: DagsterInstance, *, deliver: bool, at_once: bool = False) -> Round | None:
    from data_assets import alerts as telling

    return telling.Teller(config).make_round(
        instance,
        now=dt.datetime.now(config.zone),
        budget_seconds=telling.COMMAND_BUDGET_SECONDS,
        lock_timeout=LOCK_SECONDS,
        deliver=deliver,
        at_once=at_once,
    )


def after_run(config: PipelineConfig, instance: DagsterInstance) -> str | None:
    """A round after a run, in one line; None without channels. What goes wrong here is said, and changes nothing."""
    if not config.alerts.channels:
        return None
    try:
        made = _made(config, instance, deliver=True)
    except (DataAssetsError, OSError) as problem:
        return f"alerts: not sent: {visible(str(problem).splitlines()[0])}"
    return "alerts: another process is at it" if made is None else made.in_words()


def _show(config: PipelineConfig, made: Round | None, *, as_json: bool) -> None:
    entries = [_entry(config, made, number) for number in range(len(made.open))] if made is not None else []
    if as_json:
        click.echo(json.dumps({"open": entries, "channels": dict(made.channels) if made is not None else {}}))
        return
    if made is None:
        click.echo("Another process is looking just now; ask again in a moment.")
        return
    from data_assets.report.text import plural

    click.echo("\n\n".join(_in_words(e) for e in entries) if entries else "Nothing is wrong.")
    for channel, state in made.channels.items():
        click.echo(
            f"{channel} is not reached since {state['since']} ({state['problem']}); "
            f"{plural(state['failures'], 'try', 'tries')}, the next after {state['next']}."
        )


def _entry(config: PipelineConfig, made: Round, number: int) -> dict[str, Any]:
    from data_assets.messages import entry

    incident = made.open[number]
    told = {channel: {"state": t.state, "at": t.at} for channel, t in incident.told.items()}
    return {**entry(config, "", incident, "firing"), "told": told}


def _in_words(found: Mapping[str, Any]) -> str:
    days = ", ".join(a if a == b else f"{a} to {b}" for a, b in found["days"][:8])
    lines = [
        f"{found['severity']}: {found['title']}" + (f", {days}" if days else ""),
        f"  since {found['since']}; told: {', '.join(found['told']) or 'nobody'}",
        f"  {found['reason']}",
    ]
    lines += [f"  {', '.join(found['items'][:5])}"] if found["items"] else []
    lines += [f"  What to do: {found['to_do']}"] if found["to_do"] else []
    return "\n".join([*lines, f"  {found['command']}"])
