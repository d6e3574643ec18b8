"""Workloads that look inside Cassata: what one part of it costs, beside what that part could cost at least."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.base import Place, Run
from bench.inside.add import add
from bench.inside.depth import depth
from bench.inside.floor import floor
from bench.inside.guards import guards
from bench.inside.idle import idle
from bench.inside.memory import memory
from bench.inside.profile import profile
from bench.inside.search import search
from bench.inside.slow_disk import slow_disk
from bench.inside.tenants import tenants

WORKLOADS: dict[str, Callable[[Place, int, bool], Iterator[Run]]] = {
    "floor": floor,
    "add": add,
    "depth": depth,
    "search": search,
    "tenants": tenants,
    "guards": guards,
    "idle": idle,
    "memory": memory,
    "slow-disk": slow_disk,
    "profile": profile,
}
"""By name: each is given a place, how many runs to make, and whether it shall be quick."""
