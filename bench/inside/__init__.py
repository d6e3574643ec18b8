"""Workloads that look inside Cassata: what one part of it costs, beside what that part could cost at least."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.base import Place, Run
from bench.inside.depth import depth
from bench.inside.floor import floor
from bench.inside.tenants import tenants

WORKLOADS: dict[str, Callable[[Place, int, bool], Iterator[Run]]] = {
    "floor": floor,
    "depth": depth,
    "tenants": tenants,
}
"""By name: each is given a place, how many runs to make, and whether it shall be quick."""
