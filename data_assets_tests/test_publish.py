"""A day in PostgreSQL: its types and rows, what may be written to, two publishers, a server that goes away, secrets.

Here: ``publish.py`` and the assets ``postgres/*`` against a real server (``DATA_ASSETS_TEST_DSN``, else our own).
Not here: kills at random moments (``python -m benchmarks.publish kills``), SQL over everything (``test_query.py``).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import shutil
import threading
from pathlib import Path

import polars as pl
import psycopg
import pytest
from dagster import AssetKey, RetryPolicy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from data_assets import publish
from data_assets.cli import _make
from data_assets.config import PUBLISHABLE, PostgresConfig, load_config
from data_assets.contracts import tables
from data_assets.errors import (
    ConfigurationError,
    ContractError,
    DayFailedError,
    PostgresUnavailableError,
    StorageBusyError,
)

FIXTURES = Path(__file__).parent.parent / "fixtures"
DAY, NEXT = "2024-03-01", "2024-03-02"
START = dt.datetime.fromisoformat("2024-03-01T08:00:00")
EVENTS, SESSIONS = tables()["raw_events"], tables()["session_metrics"]


def events(n=3, **columns):
    rows = {
        "user_id": list(range(n)),
        "session_start": [START + dt.timedelta(microseconds=i) for i in range(n)],
        "session_end": [None if i % 3 == 2 else START + dt.timedelta(hours=1) for i in range(n)],
        "event_type": ["view"] * n,
        "value": [None if i % 2 else i / 7 for i in range(n)],
        "metadata": [None if i % 2 else 'é\n\t\\N,"' for i in range(n)],
        "source_file": ["a.csv"] * n,
        "source_line": list(range(2, n + 2)),
    }
    return pl.DataFrame(rows | columns, schema=EVENTS.schema | {k: pl.Series(v).dtype for k, v in columns.items()})


def sessions(users=(1, 2)):
    columns = {name: [1] * len(users) for name in SESSIONS.names} | {"user_id": list(users)}
    return pl.DataFrame(columns).cast(dict(SESSIONS.schema))


def options(schema, **more):
    return PostgresConfig(schema_name=schema, **more)


def put(config, table, frames):
    with publish.publisher(config, table) as send:
        return [send(day, frame.lazy()) for day, frame in frames.items()]


def stored(connection, schema, table, day=None):
    where = sql.SQL("WHERE date = {}").format(sql.Literal(day)) if day else sql.SQL("")
    return connection.execute(sql.SQL("SELECT * FROM {} {}").format(sql.Identifier(schema, table), where)).fetchall()


def rows_of(frame, day=DAY):
    return sorted(((dt.date.fromisoformat(day), *row) for row in frame.rows()), key=repr)


# ---- Rows and tables ---------------------------------------------------------------------------------------------


def test_the_table_has_the_contracts_types_key_and_comments_and_the_rows_are_those_of_the_day(postgres):
    schema, connection = postgres
    put(options(schema), EVENTS, {DAY: events()})
    put(options(schema), SESSIONS, {DAY: sessions(), NEXT: sessions()})
    assert sorted(stored(connection, schema, "raw_events"), key=repr) == rows_of(events())
    described = connection.execute(
        "SELECT column_name, data_type, is_nullable, col_description(to_regclass(%s), ordinal_position::int) "
        "FROM information_schema.columns WHERE table_schema = %s AND table_name = 'raw_events' ORDER BY 1",
        [sql.Identifier(schema, "raw_events").as_string(connection), schema],
    ).fetchall()
    kinds = {"user_id": "bigint", "source_line": "bigint", "value": "double precision"}
    kinds |= dict.fromkeys(["session_start", "session_end"], "timestamp without time zone")
    expected = [
        (c.name, kinds.get(c.name, "text"), "YES" if c.nullable else "NO", c.description) for c in EVENTS.columns
    ]
    assert described == sorted([("date", "date", "NO", "the day"), *expected])
    insert = sql.SQL("INSERT INTO {0} SELECT * FROM {0} LIMIT 1").format(sql.Identifier(schema, "session_metrics"))
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute(insert)


def test_every_table_that_may_be_published_can_be_made(postgres):
    schema, connection = postgres
    for user_id in ("int64", "string"):
        for name in PUBLISHABLE:
            table = tables(user_id)[name]
            put(options(schema), table, {DAY: table.empty()})
            connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(schema, name)))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1),
            st.datetimes(),
            st.none() | st.floats(allow_nan=False, allow_infinity=False),
            st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
            st.none() | st.booleans(),
        ),
        max_size=30,
    )
)
def test_any_row_comes_back_as_it_was_sent(postgres, rows):
    schema, connection = postgres
    ids, times, values, texts, flags = zip(*rows, strict=True) if rows else ([],) * 5
    frame = events(len(rows)).with_columns(
        pl.Series("user_id", ids, pl.Int64), pl.Series("session_start", times, pl.Datetime("us")),
        pl.Series("value", values, pl.Float64), pl.Series("metadata", texts, pl.String),
    )  # fmt: skip
    frame = frame.with_columns(pl.Series('a "b" %s', flags, pl.Boolean))
    (there,) = put(options(schema, drift="add_columns"), EVENTS, {DAY: frame})
    assert there.rows == len(rows)
    assert sorted(stored(connection, schema, "raw_events"), key=repr) == rows_of(frame)


def test_a_day_is_replaced_and_the_others_stay(postgres):
    schema, connection = postgres
    put(options(schema), EVENTS, {DAY: events(5), NEXT: events(4)})
    put(options(schema), EVENTS, {DAY: events(2)})
    assert len(stored(connection, schema, "raw_events", DAY)) == 2
    assert len(stored(connection, schema, "raw_events", NEXT)) == 4
    put(options(schema), EVENTS, {DAY: events(0)})
    assert stored(connection, schema, "raw_events", DAY) == []


def test_long_days_and_long_texts_are_sent_in_bounded_batches(monkeypatch):
    monkeypatch.setattr(publish, "MOST_AT_ONCE", 100)
    monkeypatch.setattr(publish, "BATCH_ROWS", 40)
    monkeypatch.setattr(publish, "BATCH_BYTES", 1_000)
    frame = pl.DataFrame({"n": range(250), "text": ["x" * 100] * 250})
    batches = list(publish._batches(frame.lazy()))
    assert pl.concat(batches).equals(frame)
    assert max(b.estimated_size() for b in batches) <= 1_100
    assert list(publish._batches(frame.head(0).lazy())) == []


# ---- What is there already ---------------------------------------------------------------------------------------


def foreign(connection, schema, columns):
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    connection.execute(sql.SQL("CREATE TABLE {} ({})").format(sql.Identifier(schema, "raw_events"), sql.SQL(columns)))


SAME = (
    "date date, user_id bigint, session_start timestamp, session_end timestamp, event_type text, value float8, "
    "metadata text, source_file text, source_line bigint"
)


def test_fail_never_touches_a_table_that_was_not_made_here(postgres):
    schema, connection = postgres
    foreign(connection, schema, SAME)
    with pytest.raises(ContractError, match="did not make"):
        put(options(schema), EVENTS, {DAY: events()})
    assert stored(connection, schema, "raw_events") == []
    put(options(schema, if_table_exists="replace"), EVENTS, {DAY: events()})
    assert len(stored(connection, schema, "raw_events")) == 3


def test_append_adds_days_once_and_refuses_others(postgres):
    schema, connection = postgres
    foreign(connection, schema, SAME)
    config = options(schema, if_table_exists="append")
    put(config, EVENTS, {DAY: events()})
    put(config, EVENTS, {DAY: events(), NEXT: events()})
    assert len(stored(connection, schema, "raw_events")) == 6
    with pytest.raises(DayFailedError, match="3 rows, not 4"):
        put(config, EVENTS, {DAY: events(4)})
    with pytest.raises(DayFailedError, match="event_type bytes"):
        put(config, EVENTS, {DAY: events(event_type=["viewed", "view", "view"])})
    assert len(stored(connection, schema, "raw_events", DAY)) == 3


@pytest.mark.parametrize(
    ("columns", "drift", "said"),
    [
        (SAME.replace("value float8", "value real"), "add_columns", "value is real, not double precision"),
        (SAME.replace(", value float8", ""), "fail", "value is missing"),
        (SAME + ", note text", "fail", "note is not ours"),
        (SAME + ", note text NOT NULL", "add_columns", "note must have a value"),
        (SAME.replace("metadata text", "metadata text NOT NULL"), "add_columns", "metadata must have a value there"),
        (SAME.replace("metadata text", "metadata text GENERATED ALWAYS AS ('x') STORED"), "fail", "is computed there"),
    ],
)
def test_a_table_with_other_columns_is_refused(postgres, columns, drift, said):
    schema, connection = postgres
    foreign(connection, schema, columns)
    with pytest.raises(ContractError, match=said):
        put(options(schema, if_table_exists="replace", drift=drift), EVENTS, {DAY: events()})
    assert stored(connection, schema, "raw_events") == []


def test_add_columns_adds_what_is_missing_and_leaves_what_is_more(postgres):
    schema, connection = postgres
    foreign(connection, schema, SAME.replace(", value float8", "") + ", note text NOT NULL DEFAULT 'n'")
    put(options(schema, if_table_exists="replace", drift="add_columns"), EVENTS, {DAY: events()})
    found = connection.execute(
        sql.SQL("SELECT value, note FROM {} ORDER BY user_id").format(sql.Identifier(schema, "raw_events"))
    ).fetchall()
    assert found == [(0.0, "n"), (None, "n"), (2 / 7, "n")]


# ---- What must not be committed ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("IF NEW.user_id = 1 THEN RETURN NULL; END IF; RETURN NEW;", "2 rows, not 3"),
        ("NEW.event_type := 'v'; RETURN NEW;", "event_type bytes"),
        ("NEW.value := NEW.value + 0.001; RETURN NEW;", "value float"),
        ("NEW.metadata := coalesce(NEW.metadata, ''); RETURN NEW;", "metadata values"),
        ("NEW.session_start := NEW.session_start - interval '1 hour'; RETURN NEW;", "session_start first"),
        ("NEW.user_id := 7; RETURN NEW;", "user_id sum"),
    ],
)
def test_a_server_that_changes_rows_is_found_out_before_the_commit(postgres, body, said):
    schema, connection = postgres
    put(options(schema), EVENTS, {DAY: events(2)})
    function, table = sql.Identifier(schema, "meddle"), sql.Identifier(schema, "raw_events")
    connection.execute(
        sql.SQL("CREATE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS {}").format(
            function, sql.Literal(f"BEGIN {body} END")
        )
    )
    connection.execute(
        sql.SQL("CREATE TRIGGER meddle BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION {}()").format(table, function)
    )
    with pytest.raises(DayFailedError, match=said):
        put(options(schema), EVENTS, {DAY: events(3)})
    assert len(stored(connection, schema, "raw_events")) == 2


def test_what_the_server_refuses_leaves_the_day_as_it_was(postgres):
    schema, connection = postgres
    put(options(schema), EVENTS, {DAY: events(2)})
    with pytest.raises(DayFailedError, match=r"raw_events of 2024-03-01.*0x00"):
        put(options(schema), EVENTS, {DAY: events(3, event_type=["a", "b\0", "c"])})
    put(options(schema), SESSIONS, {DAY: sessions()})
    with pytest.raises(DayFailedError, match="duplicate key"):
        put(options(schema), SESSIONS, {DAY: sessions((3, 3))})
    assert len(stored(connection, schema, "raw_events")) == len(stored(connection, schema, "session_metrics")) == 2


def test_a_type_without_an_equal_is_refused():
    with pytest.raises(ContractError, match="List"):
        publish.columns(EVENTS, {"a": pl.List(pl.String)})


def test_huge_numbers_do_not_overflow_the_sums(postgres):
    schema, _ = postgres
    (there,) = put(options(schema), EVENTS, {DAY: events(3, value=[1.7e308, 1.7e308, 1.0], user_id=[2**63 - 1] * 3)})
    assert there.sums["value float"] == 1.0
    assert there.sums["user_id sum"] == 3 * (2**63 - 1)


# ---- Two publishers, and a server that goes away -----------------------------------------------------------------


def test_of_two_publishers_of_a_day_one_waits(postgres):
    schema, connection = postgres
    put(options(schema), EVENTS, {DAY: events(10)})
    failed = []

    def work():
        try:
            for _ in range(5):
                put(options(schema), EVENTS, {DAY: events(500)})
        except Exception as error:  # noqa: BLE001 - handed to the test
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(stored(connection, schema, "raw_events")) == 500


def test_waiting_has_an_end(postgres, postgres_server):
    schema, connection = postgres
    config = options(schema, lock_timeout_seconds=0.2)
    put(config, EVENTS, {DAY: events(2)})
    with psycopg.connect(postgres_server) as other:
        name = sql.Identifier(schema, "raw_events").as_string(other)
        lock = f"data_assets/{name}/{DAY}"
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [lock])
        with pytest.raises(StorageBusyError) as caught:
            put(config, EVENTS, {DAY: events(3)})
        assert caught.value.retryable
        put(config, EVENTS, {NEXT: events(3)})  # another day is free
    assert len(stored(connection, schema, "raw_events", DAY)) == 2


def test_a_session_that_dies_in_the_middle_leaves_the_day_and_the_retry_makes_it_right(postgres, monkeypatch):
    schema, connection = postgres
    put(options(schema), EVENTS, {DAY: events(2)})
    real = publish.Sums.add

    def dying(self, batch):
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
                           ["data_assets"])  # fmt: skip
        real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(publish.Sums, "add", dying)
        with pytest.raises(PostgresUnavailableError) as caught:
            put(options(schema), EVENTS, {DAY: events(3)})
    assert caught.value.retryable
    assert len(stored(connection, schema, "raw_events")) == 2
    put(options(schema), EVENTS, {DAY: events(3)})
    assert len(stored(connection, schema, "raw_events")) == 3


# ---- Secrets -----------------------------------------------------------------------------------------------------

DSN = "postgresql://me:hunter2@h/db"


@pytest.mark.parametrize(
    ("dsn", "error"),
    [
        ("postgresql://me:hunter2%25correct@127.0.0.1:1/db", PostgresUnavailableError),
        ("host=127.0.0.1 port=1 password=hunter2%correct", PostgresUnavailableError),
        ("postgresql://me:hunter2%correct@127.0.0.1:1/db", ConfigurationError),
        ("postgresql://me:hunter2%25correct@127.0.0.1:1/db?nonsense=hunter2", ConfigurationError),
        ("host=hunter2.invalid port=1 password=hunter2.invalid", PostgresUnavailableError),
    ],
)
def test_no_message_shows_a_secret(monkeypatch, dsn, error):
    monkeypatch.setenv(publish.DSN_VARIABLE, dsn)
    with pytest.raises(error) as caught, publish.connect(PostgresConfig(connect_timeout_seconds=1)):
        pass
    shown = f"{caught.value} {caught.value!r} {caught.value.__cause__}"
    assert caught.value.__suppress_context__
    assert "hunter2" not in shown


def test_the_dsn_is_no_setting(monkeypatch):
    config = load_config(env={publish.DSN_VARIABLE: DSN}, cwd=FIXTURES)
    assert "hunter2" not in repr(config)
    assert not config.publishes


# ---- The assets --------------------------------------------------------------------------------------------------


@pytest.fixture
def project(project_at, tmp_path, postgres):
    source = tmp_path / "project"
    shutil.copytree(FIXTURES, source, ignore=shutil.ignore_patterns("data", ".dagster", "*.py", "expected"))
    schema, _ = postgres
    with (source / "pipeline.yaml").open("a", encoding="utf-8") as out:
        quoted = schema.replace("'", "''")
        out.write(f"\npostgres:\n  schema_name: '{quoted}'\n  tables: {list(PUBLISHABLE)}\n  lock_timeout_seconds: 5\n")
    return project_at(source, source)


def published_keys(project):
    return [f"postgres/{name}" for name in project.config.postgres.tables]


def test_a_run_publishes_every_table_as_it_is_here_and_nothing_of_a_refused_day(project, postgres):
    schema, connection = postgres
    days = [f"2024-03-0{n}" for n in range(1, 10)]
    assert project.run(days[0], days[-1]).success
    for name in project.config.postgres.tables:
        assert sorted(stored(connection, schema, name), key=repr) == sorted(project.table(name, days).rows(), key=repr)
        assert sorted(project.log.finished(publish.mark(name))) == days
        made = project.instance.get_materialized_partitions(AssetKey(["postgres", name]))
        assert sorted(made) == days
    assert publish.unpublished_days(project.config, project.log) == []

    before = stored(connection, schema, "raw_events", days[0])
    path = next(project.raw.glob("*03-01*"))
    path.write_text(path.read_text(encoding="utf-8") + "x,x,x,x,x,x\n" * 500, encoding="utf-8")
    result = project.run(days[0], days[1])
    assert not result.success
    refused = project.log.refusals("postgres/raw_events", days)
    assert list(refused) == [days[0]]
    assert "quarantine_rate" in refused[days[0]]
    alone = project.run(days[0], days[1], only=["postgres/raw_events"])
    assert not alone.success
    assert stored(connection, schema, "raw_events", days[0]) == before


def test_without_the_section_nothing_of_it_is_in_the_graph(tmp_path):
    from data_assets.definitions import build_definitions

    (tmp_path / "pipeline.yaml").write_text("start_date: 2024-01-01\n")
    keys = build_definitions(load_config(tmp_path / "pipeline.yaml", env={})).resolve_asset_graph().get_all_asset_keys()
    assert not [key for key in keys if key.path[0] == "postgres"]
    (tmp_path / "pipeline.yaml").write_text("postgres:\n")
    config = load_config(tmp_path / "pipeline.yaml", env={})
    assert config.publishes
    keys = build_definitions(config).resolve_asset_graph().get_all_asset_keys()
    assert sorted(key.path[1] for key in keys if key.path[0] == "postgres") == sorted(PUBLISHABLE[:4])


def test_a_server_that_is_away_costs_the_day_only_its_publishing_and_the_next_run_catches_up(
    project, postgres, monkeypatch
):
    schema, connection = postgres
    days = ["2024-03-01", "2024-03-03"]
    few = project.config.postgres.model_copy(update={"tables": ("daily_kpis",)})
    project.config = project.config.model_copy(update={"postgres": few})
    there = publish.connection_text()
    monkeypatch.setattr("data_assets.retries.POLICY", RetryPolicy(max_retries=0))
    monkeypatch.setattr("data_assets.cli.opened_instance", lambda: contextlib.nullcontext(project.instance))
    with monkeypatch.context() as away:
        away.setenv(publish.DSN_VARIABLE, "postgresql://me:hunter2@127.0.0.1:1/db")
        failed = _make(project.config, lambda _: [(day, day) for day in days], as_json=True)
    assert list(failed.failed) == days
    assert all("postgres/daily_kpis: PostgreSQL cannot be reached" in why for why in failed.failed.values())
    assert "hunter2" not in str(failed)
    assert all((project.config.reports_dir / day / "report.html").exists() for day in days)
    assert publish.unpublished_days(project.config, project.log) == days
    assert project.log.finished(publish.mark("daily_kpis")) == {}
    assert publish.connection_text() == there
    caught_up = _make(project.config, lambda _: [], as_json=True, publish_rest=True)
    assert caught_up.failed == {}
    assert publish.unpublished_days(project.config, project.log) == []
    assert len(stored(connection, schema, "daily_kpis")) == 2
    assert len(project.instance.get_runs()) == 4
    assert _make(project.config, lambda _: [], as_json=True, publish_rest=True).days == 0


def test_sums_of_floats_are_compared_up_to_rounding():
    wanted = publish.columns(EVENTS, {"value": pl.Float64()})
    sums = publish.Sums(wanted)
    sums.add(pl.DataFrame({"value": [0.1, 0.2, 1e9, None]}))
    sent = sums.result()
    near = publish.Published(4, sent.sums | {"value float": math.nextafter(sent.sums["value float"], math.inf)})
    assert publish.same(sent, near)
    assert not publish.same(sent, publish.Published(4, sent.sums | {"value float": sent.sums["value float"] + 10}))
