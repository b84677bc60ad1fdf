"""A day, looked at through ``data_assets.connect()``: `marimo edit docs/notebooks/a_day.py` in the project's folder.

Here: an example to begin with; it reads what the last run made and changes nothing. Not here: the views that it asks
(docs/query.md).
"""

import marimo

app = marimo.App()


@app.cell
def _():
    import marimo as mo

    import data_assets

    connection = data_assets.connect()
    return connection, mo


@app.cell
def _(connection, mo):
    days = connection.sql("SELECT date, events, users, value FROM events_per_day").pl()
    mo.md(f"## {len(days)} days with events, {days['events'].sum():,} events")
    return (days,)


@app.cell
def _(days, mo):
    chosen = days["date"].max()
    mo.md(f"The rest is about **{chosen}**.")
    return (chosen,)


@app.cell
def _(chosen, connection):
    kinds = connection.sql(
        "SELECT event_type, count, proportion FROM event_distribution WHERE date = $day", params={"day": chosen}
    ).pl()
    kinds  # noqa: B018 - a cell shows its last expression
    return (kinds,)


@app.cell
def _(chosen, connection):
    busiest = connection.sql(
        "SELECT user_id, total_sessions, total_value FROM session_metrics WHERE date = $day "
        "ORDER BY total_sessions DESC, user_id LIMIT 10",
        params={"day": chosen},
    ).pl()
    busiest  # noqa: B018
    return (busiest,)


@app.cell
def _(connection, mo):
    reasons = connection.sql("SELECT reason, sum(rows)::BIGINT AS rows FROM quarantine_reasons GROUP BY reason").pl()
    mo.md(f"Refused records by reason: {dict(sorted(reasons.iter_rows()))}")
    return (reasons,)


if __name__ == "__main__":
    app.run()
