"""The tables: migrated and fresh ones are the same, and two that make them at once do not break one another."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from cassata import database, schema
from cassata.errors import ConfigError, DatabaseUnavailable, TablesMissing, TablesOutdated, TablesTooNew
from cassata.scheduler import Scheduler
from tests.words import new_event

DDL = Path(__file__).parents[2] / "sql"


@pytest.fixture(params=["sqlite", "mariadb"])
def empty_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"empty_{request.param}_url")
    return url


def facts_of(engines: database.Engines) -> dict[str, Any]:
    """Read what the database itself says about the tables."""
    found = inspect(engines.read)
    return {
        table: (
            [(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(table)],
            sorted((str(i["name"]), tuple(i["column_names"])) for i in found.get_indexes(table)),
            sorted((str(u["name"]), tuple(u["column_names"])) for u in found.get_unique_constraints(table)),
            found.get_pk_constraint(table)["constrained_columns"],
        )
        for table in schema.metadata.tables
    }


def test_a_fresh_schema_equals_a_migrated_one(empty_url: str) -> None:
    engines = database.open_engines(empty_url)
    schema.metadata.create_all(engines.write)
    fresh = facts_of(engines)
    schema.metadata.drop_all(engines.write)

    database.upgrade(empty_url)

    assert facts_of(engines) == fresh
    with engines.read.connect() as conn:
        assert compare_metadata(MigrationContext.configure(conn, opts={"compare_type": True}), schema.metadata) == []
    engines.dispose()


def test_tables_go_back_version_by_version_and_forth_again(empty_url: str) -> None:
    engines = database.open_engines(empty_url)
    database.upgrade(empty_url)
    newest = facts_of(engines)
    versions = [f"{number:04}" for number in range(int(schema.VERSION) - 1, 0, -1)]

    for version in versions:
        assert database.downgrade(empty_url, version) == version
    assert database.downgrade(empty_url, "base") is None

    assert database.upgrade(empty_url) == schema.VERSION
    assert facts_of(engines) == newest
    engines.dispose()


def test_there_is_no_going_back_to_what_is_no_older_version(empty_url: str) -> None:
    database.upgrade(empty_url)
    database.downgrade(empty_url, "0004")
    for version in ("0005", "0000", "nonsense"):
        with pytest.raises(ConfigError, match="there is no version"):
            database.downgrade(empty_url, version)


def test_an_sqlite_file_and_what_lies_beside_it_are_their_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "cassata.db"
    before = os.umask(0)
    try:
        scheduler = Scheduler.open(f"sqlite:///{file}", create_tables=True)
        scheduler.add(new_event())
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("cassata.db*")}
        scheduler.close()
    finally:
        os.umask(before)
    assert modes == {"cassata.db": 0o600, "cassata.db-wal": 0o600, "cassata.db-shm": 0o600}


def test_an_sqlite_file_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "cassata.db"
    file.touch(0o640)
    database.upgrade(f"sqlite:///{file}")
    assert file.stat().st_mode & 0o777 == 0o640


def test_the_code_needs_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(database.alembic_config()).get_heads() == [schema.VERSION]


@pytest.mark.parametrize("dialect", ["mysql", "sqlite"])
def test_the_ddl_for_administrators_is_what_the_migrations_do(dialect: str) -> None:
    """To render it anew: CASSATA_RENDER_DDL=1 bin/test tests/store/test_schema.py"""
    rendered = io.StringIO()
    settings = database.alembic_config()
    settings.output_buffer = rendered
    settings.set_main_option("dialect", dialect)
    command.upgrade(settings, "head", sql=True)
    text_ = f"-- Cassata's tables for {dialect}, at version {schema.VERSION}. 'cassata db upgrade' makes the same.\n\n"
    text_ += "\n".join(line.rstrip() for line in rendered.getvalue().strip().splitlines()) + "\n"
    file = DDL / f"{dialect}.sql"
    if os.environ.get("CASSATA_RENDER_DDL"):
        file.write_text(text_)

    assert file.read_text() == text_


def test_the_ddl_for_mysql_has_nothing_that_only_mariadb_knows() -> None:
    assert "INDEX IF NOT EXISTS" not in (DDL / "mysql.sql").read_text()  # a syntax error on MySQL 8 and 9


def test_eight_upgrades_at_once_make_one_schema(empty_url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: database.upgrade(empty_url), range(8)))

    assert versions == [schema.VERSION] * 8
    Scheduler.open(empty_url).close()


def test_an_upgrade_that_was_interrupted_goes_on(empty_url: str) -> None:
    """On MySQL each statement is committed by itself. It ended here after the first one of the second migration."""
    engines = database.open_engines(empty_url)
    with engines.write.connect() as conn:
        settings = database.alembic_config()
        settings.attributes["connection"] = conn
        command.upgrade(settings, "0001")
        conn.commit()
    if engines.write.dialect.name != "sqlite":
        with engines.write.begin() as conn:
            kinds = "ADD COLUMN active BOOL NOT NULL DEFAULT true, ADD COLUMN limits TEXT, ADD COLUMN egress TEXT, ADD COLUMN metadata TEXT"
            rest = "ADD COLUMN secrets TEXT, ADD COLUMN changed_at BIGINT NOT NULL DEFAULT '0', ADD INDEX applications_changed (changed_at)"
            conn.execute(text(f"ALTER TABLE applications {kinds}, {rest}"))
    engines.dispose()

    assert database.upgrade(empty_url) == schema.VERSION
    Scheduler.open(empty_url).close()


def test_without_tables_it_refuses_and_says_what_to_type(empty_url: str) -> None:
    with pytest.raises(TablesMissing, match="cassata db upgrade"):
        Scheduler.open(empty_url)


@pytest.mark.parametrize(("version", "error"), [("0000", TablesOutdated), ("9999", TablesTooNew)])
def test_tables_of_another_version_are_refused(database_url: str, version: str, error: type[Exception]) -> None:
    engines = database.open_engines(database_url)
    with engines.write.begin() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})
    engines.dispose()

    with pytest.raises(error):
        Scheduler.open(database_url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "postgresql://h/d",
        "mysql+pymysql://h",
        "sqlite://",
        "sqlite:///:memory:",
        "oracle://x/y",
        "mysql+pymysql://u:p@h:33o6/d",
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"database\.url"):
        database.open_engines(url)


def test_a_database_that_is_away_is_named_so(free_port: Any) -> None:
    with pytest.raises(DatabaseUnavailable):
        Scheduler.open(f"mysql+pymysql://root@127.0.0.1:{free_port()}/none")
