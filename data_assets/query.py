"""One SQL session over everything: the lake, the warehouse and, when asked for, PostgreSQL as ``pg``.

Here: ``connect``, which `data-assets query` and notebooks use, and the ready views. Not here: how the tables are read
(``storage.Warehouse``), how PostgreSQL is reached (``publish.py``) or how rows are shown (``cli.py``).

The session reads a copy of the warehouse and immutable versions of the lake, all as of when it was opened: a run that
goes on meanwhile neither waits for it nor changes it. It can change nothing that is stored and reaches no other file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from data_assets import publish
from data_assets.config import PipelineConfig, load_config
from data_assets.contracts import PIPELINE_RUNS
from data_assets.errors import ConfigurationError
from data_assets.storage import Lake, Warehouse

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

    from data_assets.config import PostgresConfig

VIEWS = {
    "events_per_day": "SELECT date, count(*) AS events, count(DISTINCT user_id) AS users, sum(value) AS value "
    "FROM raw_events GROUP BY date ORDER BY date",
    "latest_day": "SELECT * FROM daily_kpis WHERE date = (SELECT max(date) FROM daily_kpis)",
    "quarantine_reasons": "SELECT date, reason, count(*) AS rows FROM (SELECT date, unnest(reasons) AS reason "
    "FROM quarantined_events) GROUP BY date, reason ORDER BY date, rows DESC, reason",
    "files": "SELECT path, format, min(day) AS first_day, max(day) AS last_day, sum(rows)::BIGINT AS rows, "
    "any_value(error) AS error FROM landed_files GROUP BY path, format ORDER BY path",
}
"""Ready views, by name. docs/query.md says what each is for."""

FETCH_ROWS = 20_000


def connect(config: PipelineConfig | Path | str | None = None, *, postgres: bool = False) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection that sees every table, and PostgreSQL as ``pg`` when asked for; close it when done.

    Args:
        config: the configuration or its file; None: as ``load_config`` finds it.
        postgres: whether to connect to the PostgreSQL server that the environment names.

    Raises:
        ConfigurationError: the configuration, or that of PostgreSQL, cannot be used.
        PostgresUnavailableError: the server cannot be reached.
        StorageBusyError: the warehouse is held by a program that is not ours.
    """
    found = config if isinstance(config, PipelineConfig) else load_config(Path(config) if config else None)
    warehouse = Warehouse(
        found.warehouse_path,
        Lake(found.lake_dir),
        user_id=found.source.types.user_id,
        trend_days=found.trend_days,
    )

    def complete(connection: duckdb.DuckDBPyConnection) -> None:
        have = {name for (name,) in connection.execute("SELECT view_name FROM duckdb_views()").fetchall()}
        for contract in (*warehouse.tables.values(), PIPELINE_RUNS):
            if contract.name not in have:
                empty = contract.empty()
                if contract.is_partitioned:
                    empty = empty.with_columns(pl.lit(None, dtype=pl.Date).alias("date"))
                connection.register(contract.name, empty.to_arrow())
        for name, statement in VIEWS.items():
            connection.execute(f'CREATE VIEW "{name}" AS {statement}').fetchall()
        if postgres:
            attach_postgres(connection, found)

    return warehouse.session(found.scratch_dir, complete)


def attach_postgres(connection: duckdb.DuckDBPyConnection, config: PipelineConfig) -> None:
    """Make the tables of PostgreSQL readable as ``pg.<table>`` and ``pg.<schema>.<table>``.

    DuckDB's postgres extension does it where it is installed, and lets the server filter. Without it the published
    tables alone are there, and every statement that names one streams it whole.
    """
    import duckdb

    try:
        connection.execute("SET autoinstall_known_extensions = false; LOAD postgres").fetchall()
    except duckdb.Error:
        _stream_postgres(connection, config)
        return
    with publish.connect(config.postgres) as server:  # reached, and with whom it said no, without DuckDB's words
        server.execute("SELECT 1")
    dsn = publish.connection_text().replace("'", "''")
    try:
        connection.execute(f"ATTACH '{dsn}' AS pg (TYPE postgres, READ_ONLY)").fetchall()
    except duckdb.Error:  # its text holds the connection string
        raise ConfigurationError(
            "DuckDB cannot attach the PostgreSQL server, though psycopg reaches it.",
            f"Write ${publish.DSN_VARIABLE} as a whole: host, port, user, password and database.",
        ) from None


def _stream_postgres(connection: duckdb.DuckDBPyConnection, config: PipelineConfig) -> None:
    connection.execute("ATTACH ':memory:' AS pg").fetchall()
    schema = config.postgres.schema_name.replace('"', '""')
    if schema != "main":
        connection.execute(f'CREATE SCHEMA pg."{schema}"').fetchall()
    with publish.connect(config.postgres) as server:
        found = {name: publish.stored_columns(server, config.postgres, name) for name in config.postgres.tables}
    for name, stored in found.items():
        if stored:
            connection.register(f"_pg_{name}", _Streamed(config.postgres, name, stored))
            for place in dict.fromkeys((schema, "main")):
                connection.execute(f'CREATE VIEW pg."{place}"."{name}" AS SELECT * FROM temp."_pg_{name}"').fetchall()  # noqa: S608


class _Streamed:
    """A table of PostgreSQL as an Arrow stream, from the start each time that it is asked for."""

    def __init__(self, config: PostgresConfig, table: str, stored: dict[str, pl.DataType]) -> None:
        self._config = config
        self._table = table
        self._stored = stored
        self._schema = pl.Schema(stored).to_frame().to_arrow().schema

    def __arrow_c_schema__(self) -> Any:  # noqa: ANN401 - a capsule
        return self._schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:  # noqa: ANN401 - a capsule
        import pyarrow as pa

        reader = pa.RecordBatchReader.from_batches(self._schema, self._batches())
        return reader.__arrow_c_stream__(requested_schema)

    def _batches(self) -> Iterator[Any]:
        with publish.connect(self._config) as server:
            for rows in publish.stored_rows(server, self._config, self._table, self._stored, FETCH_ROWS):
                frame = pl.DataFrame(rows, schema=self._stored, orient="row")
                yield from frame.to_arrow().cast(self._schema).to_batches()
