"""slow-disk: the burst, and adds, with an fsync that takes 1 ms longer, as on many a cloud disk.

A library that is loaded before all others (fsync_delay.c) makes it so, in MariaDB, and in the worker and the service where they
hold SQLite. The runs are named after the workloads they repeat, with a variant that ends in fsync-1ms.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench import workloads
from bench.base import Place, Run
from bench.inside.add import VARIANTS, measure
from bench.inside.database import fresh
from bench.systems.cassata import CassataMariaDb, CassataSqlite
from bench.workloads import Sizes

SOURCE = Path(__file__).resolve().parents[1] / "fsync_delay.c"
NAME = "fsync-1ms"


def slow_disk(place: Place, runs: int, quick: bool) -> Iterator[Run]:
    """Measure the burst on both databases, and adds on MariaDB."""
    library = build(place.folder)
    sizes = Sizes(burst_events=5_000) if quick else Sizes()
    on_mariadb = type("CassataMariaDbOnSlowDisk", (CassataMariaDb,), {"preload": library})
    for number in range(1, runs + 1):
        yield _named(workloads.burst(on_mariadb, _room(place), number, sizes))
        with preloaded(library):
            run = workloads.burst(CassataSqlite, _room(place), number, sizes)
        yield _named(run)
    variants = tuple(variant for variant in VARIANTS if variant.name in {"single", "bare", "batch-1000"})
    with fresh(place, preload=library) as database:
        yield from measure(place, database, variants, runs, seconds=3 if quick else 8, suffix=f"-{NAME}")


def _named(run: Run) -> Run:
    return replace(run, variant=NAME)


def _room(place: Place) -> Place:
    return replace(place, folder=Path(tempfile.mkdtemp(dir=place.folder)))


def build(folder: Path) -> Path:
    library = folder / "fsync_delay.so"
    compiler = shutil.which("cc") or shutil.which("gcc") or "cc"
    subprocess.run([compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


@contextmanager
def preloaded(library: Path) -> Iterator[None]:
    """Have every process that is started within load the library."""
    before = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = str(library)
    try:
        yield
    finally:
        del os.environ["LD_PRELOAD"]
        if before is not None:
            os.environ["LD_PRELOAD"] = before
