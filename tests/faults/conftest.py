"""Fixtures of the fault tests. Each of them runs once for each round, with a seed that its figures show.

CASSATA_FAULT_SEED=N repeats a run; the seed of a round is that number, the name of the test and the round.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import FAULT_SEED, NO_FAKETIME, die_with_parent
from tests.faults.cluster import Cluster
from tests.faults.receiver import receiving


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        rounds = range(1, metafunc.config.getoption("--fault-rounds") + 1)
        metafunc.parametrize("seed", rounds, indirect=True, ids=[f"round{number}" for number in rounds])


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> Iterator[str]:
    """What a round's chances come from."""
    seed = f"{os.environ[FAULT_SEED]}:{request.node.originalname}:{request.param}"
    yield seed
    if getattr(request.node, "failed", False):
        print(f"{FAULT_SEED}={os.environ[FAULT_SEED]} repeats this")


@pytest.fixture
def figure(figure: Callable[[str], None], request: pytest.FixtureRequest) -> Callable[[str], None]:
    """The usual one; it adds on what it was found, and what repeats it."""
    where = "-".join(re.findall(r"sqlite|mariadb|round\d+", request.node.name))
    return lambda line: figure(f"{line} [{where}, seed {os.environ[FAULT_SEED]}]")


@pytest.fixture
def receiver_log(tmp_path: Path) -> Path:
    return tmp_path / "receiver.jsonl"


@pytest.fixture
def destination(receiver_log: Path) -> Iterator[str]:
    """The URL of a receiver, without a path."""
    with receiving(receiver_log, preexec_fn=die_with_parent) as url:
        yield url


@pytest.fixture
def cluster_on(
    tmp_path: Path, destination: str, receiver_log: Path, seed: str, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], Cluster]]:
    """A function: a cluster on a database, whose processes are ended with the test."""
    made: list[Cluster] = []

    def make(database_url: str) -> Cluster:
        folder = tmp_path / f"cluster{len(made)}"
        folder.mkdir()
        made.append(Cluster(database_url, folder, destination, receiver_log, seed=seed))
        return made[-1]

    yield make
    for cluster in made:
        cluster.__exit__()
        if getattr(request.node, "failed", False):
            for running in cluster.processes:
                print(f"--- {running.log.name}\n{running.output()[-4_000:]}")


@pytest.fixture
def cluster(cluster_on: Callable[[str], Cluster], database_url: str) -> Cluster:
    """A cluster on each kind of database, one after the other."""
    return cluster_on(database_url)


@pytest.fixture
def mariadb_cluster(cluster_on: Callable[[str], Cluster], mariadb_url: str) -> Cluster:
    return cluster_on(mariadb_url)


@pytest.fixture
def faked_clock() -> Callable[[float], dict[str, str]]:
    """A function: variables that make a process believe that it is so many seconds later. Skips, loudly, where that cannot be had."""
    library = next(Path("/usr").glob("lib*/**/libfaketimeMT.so.1"), None)
    if library is None:
        pytest.skip(NO_FAKETIME)

    def variables(seconds: float) -> dict[str, str]:
        # Its own way of faking monotonic clocks makes waits on conditions hang, and no machine sets them anyway.
        return {"LD_PRELOAD": str(library), "FAKETIME": f"{seconds:+.3f}", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}

    return variables
