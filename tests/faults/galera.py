"""A Galera cluster on this machine: three real nodes, on ports and in folders of their own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pymysql
import pytest

from cassata import database
from tests.conftest import NO_GALERA, die_with_parent, find_program, unused_port, wait_until

PROVIDERS = [Path("/usr/lib/galera/libgalera_smm.so"), Path("/usr/lib64/galera-4/libgalera_smm.so")]
SUSPECT_SECONDS = 3
"""So long a node may be silent before the others go on without it. By default it is 5."""


class Node:
    """One server of a cluster."""

    def __init__(self, number: int, folder: Path, user: pwd.struct_passwd) -> None:
        self.number = number
        self.port, self.group_port, self.state_port, self.missed_port = (unused_port() for _ in range(4))
        self.folder = folder / f"node{number}"
        self.process: subprocess.Popen[bytes] | None = None
        self._user = user

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def initialise(self) -> None:
        self.folder.mkdir()
        os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        command = [str(find_program("mariadb-install-db")), "--no-defaults", f"--datadir={self.folder / 'data'}"]
        command += ["--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run(command, check=True, capture_output=True, **self._as_user())

    def start(self, addresses: str, *options: str) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command(addresses, *options),
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
                **self._as_user(),
            )

    def _command(self, addresses: str, *options: str) -> list[str]:
        provider = {
            "gmcast.listen_addr": f"tcp://127.0.0.1:{self.group_port}",
            "ist.recv_addr": f"127.0.0.1:{self.missed_port}",
            "gcache.size": "16M",
            "evs.suspect_timeout": f"PT{SUSPECT_SECONDS}S",
            "evs.inactive_timeout": f"PT{SUSPECT_SECONDS + 5}S",
        }
        settings: dict[str, object] = {
            "datadir": self.folder / "data",
            "socket": self.folder / "socket",
            "port": self.port,
            "bind-address": "127.0.0.1",
            "max-connections": 400,
            "performance-schema": "OFF",
            "binlog-format": "ROW",
            "innodb-buffer-pool-size": "64M",
            "innodb-autoinc-lock-mode": 2,
            "innodb-flush-log-at-trx-commit": 1,
            "wsrep-on": "ON",
            "wsrep-provider": next(path for path in PROVIDERS if path.exists()),
            "wsrep-provider-options": ";".join(f"{name}={value}" for name, value in provider.items()),
            "wsrep-cluster-address": f"gcomm://{addresses}",
            "wsrep-node-address": f"127.0.0.1:{self.group_port}",
            "wsrep-sst-method": "rsync",
            "wsrep-sst-receive-address": f"127.0.0.1:{self.state_port}",
        }
        server = str(find_program("mariadbd", "mysqld"))
        return [server, "--no-defaults", "--skip-log-bin", *(f"--{name}={value}" for name, value in settings.items()), *options]

    def _as_user(self) -> dict[str, Any]:
        """A server does not start as root; and as root its state transfer would drop to `nobody` and fail."""
        surroundings = {**os.environ, "TMPDIR": str(self.folder)}
        if os.geteuid() != 0:
            return {"env": surroundings}
        return {"env": surroundings, "user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def kill(self) -> None:
        """End it at once (SIGKILL), with what it may have started to bring another node up."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def connect(self, database: str | None = None) -> pymysql.Connection[Any]:
        patience = {"connect_timeout": 2, "read_timeout": 5, "write_timeout": 5}
        return pymysql.connect(
            host="127.0.0.1", port=self.port, user="root", database=database, autocommit=True, ssl_disabled=True, **patience
        )

    def status(self, name: str) -> str:
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SHOW GLOBAL STATUS LIKE %s", (name,))
            row = cursor.fetchone()
            return str(row[1]) if row else ""

    def is_synced_with(self, nodes: int) -> bool:
        try:
            return self.status("wsrep_local_state_comment") == "Synced" and self.status("wsrep_cluster_size") == str(nodes)
        except pymysql.Error:
            return False

    def recovered_position(self, addresses: str) -> int:
        """Find out, while it is down, how many of the cluster's writes it has."""
        command = self._command(addresses, "--wsrep-recover", "--skip-networking")
        found = subprocess.run(command, check=False, capture_output=True, text=True, **self._as_user())
        line = next((line for line in found.stderr.splitlines() if "Recovered position" in line), None)
        assert line is not None, found.stderr[-4_000:]
        return int(line.rsplit(":", 1)[1])


class Galera:
    """Three nodes."""

    def __init__(self, folder: Path, user: pwd.struct_passwd) -> None:
        self.nodes = [Node(number, folder, user) for number in (1, 2, 3)]
        self._folder = folder

    def start(self) -> None:
        for node in self.nodes:
            node.initialise()
        self._found(*self.nodes)

    def _found(self, first: Node, *others: Node) -> None:
        first.start(self._addresses, "--wsrep-new-cluster")
        self.wait_until_synced(first, nodes=1)
        for count, node in enumerate(others, 2):
            node.start(self._addresses)
            self.wait_until_synced(node, nodes=count)

    @property
    def _addresses(self) -> str:
        return ",".join(f"127.0.0.1:{node.group_port}" for node in self.nodes)

    def wait_until_synced(self, node: Node, nodes: int = 3) -> None:
        """Wait until a node has all there is, in a cluster of so many."""
        wait_until(lambda: node.is_synced_with(nodes), 60, lambda: node.log[-4_000:])

    def rejoin(self, node: Node) -> float:
        """Start a node that is down; return how many seconds it took until it was one of three again."""
        began = time.monotonic()
        node.start(self._addresses)
        self.wait_until_synced(node)
        return time.monotonic() - began

    def restart(self) -> None:
        """Bring all of them up again after all were down: first the one that has most."""
        first, *others = sorted(self.nodes, key=lambda node: node.recovered_position(self._addresses), reverse=True)
        state = first.folder / "data" / "grastate.dat"
        state.write_text(state.read_text().replace("safe_to_bootstrap: 0", "safe_to_bootstrap: 1"))
        self._found(first, *others)

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, name: str, *order: int) -> str:
        """Return the URL of a database with these nodes (1 to 3) in that order."""
        return f"mysql+pymysql://root@{','.join(f'127.0.0.1:{self.nodes[number - 1].port}' for number in order)}/{name}"

    def create_database(self) -> str:
        name = f"t_{uuid.uuid4().hex[:12]}"
        with self.nodes[0].connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        database.upgrade(self.url(name, 1, 2, 3))
        return name

    def drop_database(self, name: str) -> None:
        with self.nodes[2].connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name}")

    def counters(self) -> Mapping[str, int]:
        """Add up over the nodes how many transactions were committed, and how many were not because of a conflict."""

        def total(name: str) -> int:
            return sum(int(node.status(name)) for node in self.nodes)

        return {"commits": total("wsrep_local_commits"), "conflicts": total("wsrep_local_cert_failures") + total("wsrep_local_bf_aborts")}


def missing() -> Sequence[str]:
    """Name what a cluster needs and this machine has not."""
    needed = ["mariadb-install-db", "rsync", "wsrep_sst_rsync"]
    gone = [name for name in needed if not find_program(name)]
    gone += [] if find_program("mariadbd", "mysqld") else ["mariadbd"]
    gone += [] if find_program("ss", "lsof") else ["ss"]
    return gone + ([] if any(path.exists() for path in PROVIDERS) else ["libgalera_smm.so"])


@contextlib.contextmanager
def running_galera() -> Iterator[Galera]:
    """Run three nodes; skip the test, and be loud about it, where that is not possible."""
    if gone := missing():
        pytest.skip(f"{NO_GALERA}; missing: {', '.join(gone)}")
    try:
        user = pwd.getpwnam("mysql") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    except KeyError:
        pytest.skip(f"{NO_GALERA}; missing: the user mysql")
    folder = Path(tempfile.mkdtemp(prefix="galera-"))  # pytest's own folders are root's alone
    os.chown(folder, user.pw_uid, user.pw_gid)
    cluster = Galera(folder, user)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
