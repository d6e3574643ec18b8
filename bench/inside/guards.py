"""guards: what keys, limits and signing cost: the same deliveries and the same adds with and without them.

The worker as shipped, with four processes, delivers 20,000 events that are due at one instant; the service, with four, takes adds
one by one on 16 connections. With guards means: each delivery is signed, and its application has a limit of every kind, none of
which it reaches; each add comes with a key, to an application with limits of every kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from bench.base import Place, Run
from bench.inside import add, tenants
from bench.inside.database import Database, fresh
from cassata.model import Scope
from cassata.scheduler import Scheduler
from cassata.tenants import new_secret

LIMITS = {
    "max_pending": 1_000_000_000,
    "adds_per_second": 1_000_000,
    "max_in_flight": 100_000,
    "deliveries_per_second": 1_000_000,
    "max_in_flight_per_host": 100_000,
}
WITH_KEYS = {"CASSATA_SERVICE__AUTHENTICATION": "required"}


def guards(place: Place, runs: int, quick: bool) -> Iterator[Run]:
    """Measure deliveries and adds, without guards and with them, in turn, and again."""
    with fresh(place) as database:
        token = _operators_token(database)
        plain = add.Variant("adds-plain")
        guarded = add.Variant("adds-guarded", environment=WITH_KEYS, token=token)
        for number in range(1, runs + 1):
            for name, is_guarded in (("deliveries-plain", False), ("deliveries-guarded", True)):
                figures = tenants.measure(place, database, 1, prepare=lambda is_guarded=is_guarded: _guard(database, is_guarded))
                yield Run("guards", "cassata-mariadb", number, name, figures)
            for variant in (plain, guarded):
                database.empty()
                database.add_applications(1)
                _guard(database, variant is guarded)
                database.execute("UPDATE applications SET application_id = 'bench'")
                yield from add.measure_one(place, database, variant, "guards", number, seconds=3 if quick else 8)


def _operators_token(database: Database) -> str:
    scheduler = Scheduler.open(database.url)
    try:
        return scheduler.tenants.create_key(None, {Scope.ADMIN})[1]
    finally:
        scheduler.close()


def _guard(database: Database, is_guarded: bool) -> None:
    """Give the applications limits and secrets, or none: an empty list of secrets is no secret."""
    secrets = [{"secret": new_secret().value, "until": None}] if is_guarded else []
    limits = f"'{json.dumps(LIMITS)}'" if is_guarded else "NULL"
    database.execute(f"UPDATE applications SET secrets = '{json.dumps(secrets)}', limits = {limits}")
