"""soak: services, workers and a database under load for some minutes, while something is broken every few seconds.

What was acknowledged, what the destination saw and what the database says are compared at the end by the checker of the fault
tests, whose harness this is. Meanwhile the memory of the workers and services is noted.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from bench import machine
from tests.conftest import Running, die_with_parent
from tests.faults.cluster import Cluster, between, children_of, stopped
from tests.faults.receiver import receiving
from tests.faults.server import BreakableServer, breakable_server

CHECKOUT = Path(__file__).resolve().parent.parent
WORKERS = 3
SERVICES = 2
PRODUCERS = 8
PEACE_SECONDS = 8.0
"""About so long nothing is broken after each fault, so that it is seen whether all goes on."""
SAMPLE_SECONDS = 5.0
PATIENCE_SECONDS = 120


class Soak:
    """A cluster on a database, and somebody who breaks things."""

    def __init__(self, cluster: Cluster, server: BreakableServer, seed: int) -> None:
        self._cluster = cluster
        self._server = server
        self._chance = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.services = [cluster.start_service() for _ in range(SERVICES)]
        self.workers = [cluster.start_worker() for _ in range(WORKERS)]

    def break_something(self) -> None:
        fault = self._chance.choice(
            (self.kill_a_worker, self.stop_a_worker, self.end_a_worker, self.kill_a_gunicorn_worker, self.kill_the_database,
             self.stop_the_database, self.cut_connections)
        )  # fmt: skip
        name = fault.__name__.replace("_", " ")
        self.faults[name] += 1
        say(name)
        fault()

    def kill_a_worker(self) -> None:
        self._one_worker(Running.kill)

    def end_a_worker(self) -> None:
        self._one_worker(Running.stop)

    def stop_a_worker(self) -> None:
        with stopped(self._chance.choice(self.workers).pid):
            time.sleep(self._chance.uniform(4, 8))  # past its leases

    def kill_a_gunicorn_worker(self) -> None:
        pid = self._chance.choice(children_of(self._chance.choice(self.services).pid))
        os.kill(pid, signal.SIGKILL)

    def kill_the_database(self) -> None:
        self._server.kill()
        time.sleep(self._chance.uniform(0.5, 3))
        self._server.start()

    def stop_the_database(self) -> None:
        with self._server.paused():
            time.sleep(self._chance.uniform(1, 6))

    def cut_connections(self) -> None:
        self._server.kill_connections("user = 'plain'")

    def _one_worker(self, end: Callable[[Running], Any]) -> None:
        place = self._chance.randrange(len(self.workers))
        end(self.workers[place])
        self.workers[place] = self._cluster.start_worker(ready=False)

    def sample(self, began: float) -> dict[str, Any]:
        """Note how much memory the processes have (PSS, MB), the largest of each kind."""
        families = {"worker": self.workers, "service": self.services}
        processes = {kind: [pid for running in many for pid in machine.family(running.pid)] for kind, many in families.items()}
        most = {kind: round(max(machine.pss_mb([pid]) for pid in pids), 1) for kind, pids in processes.items()}
        return {"seconds": round(time.monotonic() - began, 1), **most, "acknowledged": len(self._cluster.ledger.ids)}


def say(text: str) -> None:
    click.echo(f"soak: {text}", err=True)


@contextmanager
def running(folder: Path, seed: int) -> Iterator[tuple[Cluster, Soak]]:
    with ExitStack() as stack:
        server = stack.enter_context(breakable_server(folder / "database"))
        url = server.create_database()
        log = folder / "receiver.jsonl"
        destination = stack.enter_context(receiving(log, preexec_fn=die_with_parent))
        (folder / "cluster").mkdir()
        cluster = stack.enter_context(Cluster(url, folder / "cluster", destination, log, seed=seed))
        yield cluster, Soak(cluster, server, seed)


def soak(minutes: float, rate: float, seed: int, into: Path) -> bool:
    """Run it, print the figures, write them and a plot; tell whether nothing was lost, early, stuck or contradictory."""
    samples: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="cassata-soak-") as name, running(Path(name), seed) as (cluster, soaked):
        began = time.monotonic()
        until = began + minutes * 60
        ended = threading.Event()
        sampling = threading.Thread(target=_sample, args=(soaked, began, ended, samples), daemon=True)
        sampling.start()
        paths = itertools.cycle(("/ok", "/ok", "/slow/0.2", "/flaky/1"))
        with cluster.producers(soaked.services, count=PRODUCERS, pause=PRODUCERS / rate, delay=between(0, 5), path=lambda _: next(paths)):
            while time.monotonic() < until:
                soaked.break_something()
                time.sleep(random.uniform(0.5, 1.5) * PEACE_SECONDS)
        say("all is left in peace: waiting until every event has ended")
        cluster.wait_until_all_have_ended(PATIENCE_SECONDS)
        ended.set()
        sampling.join()
        figures = cluster.check()
    into.mkdir(parents=True, exist_ok=True)
    document = {"seed": seed, "minutes": minutes, "rate": rate, "faults": dict(soaked.faults), "figures": str(figures), "samples": samples}
    (into / "soak.json").write_text(json.dumps(document, indent=2))
    _plot(samples, into / "soak.svg")
    click.echo(
        f"{figures}\nfaults: {', '.join(f'{count} x {what}' for what, count in soaked.faults.most_common())}\nseed {seed}; written: {into}"
    )
    return figures.is_sound


def _sample(soaked: Soak, began: float, ended: threading.Event, samples: list[dict[str, Any]]) -> None:
    while not ended.wait(SAMPLE_SECONDS):
        try:
            samples.append(soaked.sample(began))
        except (OSError, ValueError):
            continue  # a process has just been killed


def _plot(samples: list[dict[str, Any]], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    minutes = [sample["seconds"] / 60 for sample in samples]
    for kind, colour in (("worker", "#0a7d4f"), ("service", "#7f9ab8")):
        axes.plot(minutes, [sample[kind] for sample in samples], color=colour, label=f"largest {kind}")
    axes.set(xlabel="minutes", ylabel="MB (PSS)", title="Memory while something is broken every few seconds", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file)


@click.command()
@click.option("--minutes", type=float, default=15, show_default=True)
@click.option("--rate", type=float, default=100, show_default=True, help="Adds a second, all clients together.")
@click.option("--seed", type=int, default=None, help="What the faults are drawn from; default: a new one.")
@click.option("--into", type=click.Path(path_type=Path), default=CHECKOUT / "bench-results" / "soak", show_default=True)
def main(minutes: float, rate: float, seed: int | None, into: Path) -> None:
    """Run services, workers and a database under load, while something is broken every few seconds."""
    sys.exit(0 if soak(minutes, rate, seed if seed is not None else random.randrange(10**6), into) else 1)


if __name__ == "__main__":
    main()
