"""Private servers for one run each: MariaDB, Redis and PostgreSQL, on loopback, in a folder of their own, durable."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pymysql

from bench import machine

PACKAGES = {
    "mariadb": ["mariadb-server-core", "mariadb-client-core"],
    "redis": ["redis-server"],
    "postgres": ["postgresql"],
    "compiler": ["gcc", "libc6-dev"],
}
START_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `url` is complete; `pid` is that of the process that was started."""

    url: str
    port: int
    pid: int

    def pids(self) -> list[int]:
        """Return all its processes."""
        return machine.family(self.pid)


# --- what is there -----------------------------------------------------------------------------------------------------


def missing_mariadb() -> str | None:
    """Say what to type if there is none."""
    return None if _program("mariadbd", "mysqld") else _advice("MariaDB", "mariadb")


def missing_redis() -> str | None:
    """Say what to type if there is none."""
    return None if _program("redis-server", "valkey-server") else _advice("Redis", "redis")


def missing_postgres() -> str | None:
    """Say what to type if there is none."""
    if not _postgres_program("postgres"):
        return _advice("PostgreSQL", "postgres")
    if os.getuid() == 0 and _unprivileged() is None:
        return "PostgreSQL does not run as root, and there is no user postgres: start the benchmark as another user"
    return None


def mariadb_version() -> str:
    return _first_line(_program("mariadbd", "mysqld"))


def redis_version() -> str:
    return _first_line(_program("redis-server", "valkey-server"))


def postgres_version() -> str:
    return _first_line(_postgres_program("postgres"))


def _first_line(program: str | None) -> str:
    if program is None:
        return "none"
    written = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return written.splitlines()[0].removeprefix(program).strip()


def _advice(what: str, name: str) -> str:
    return f"there is no {what} here. Type: apt-get install --no-install-recommends {' '.join(PACKAGES[name])}"


def _program(*names: str) -> str | None:
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    return next(filter(None, (shutil.which(name, path=search) for name in names)), None)


def _postgres_program(name: str) -> str | None:
    """Debian keeps them in a folder for each version, off the PATH: take the newest."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2].split(".")[0]), reverse=True)
    return next((str(path / name) for path in folders if (path / name).exists()), None) or _program(name)


# --- getting what is missing -------------------------------------------------------------------------------------------


def may_install() -> bool:
    return os.getuid() == 0 and shutil.which("apt-get") is not None and os.environ.get("CASSATA_NO_APT") != "1"


def install(names: Sequence[str], say: Callable[[str], None] = lambda text: print(f"cassata: {text}", file=sys.stderr)) -> bool:
    """Install Debian's packages for these PACKAGES, starting no service; tell whether that went well. Needs `may_install`."""
    packages = [package for name in names for package in PACKAGES[name]]
    say(f"installing {' '.join(packages)} with apt-get")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run(["apt-get", *words], env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                say(f"that failed: {(done.stderr or done.stdout).strip()[-1000:]}")
                return False
    return True


@contextmanager
def _no_services() -> Iterator[None]:
    """Have Debian's packages start nothing: invoke-rc.d(8) asks /usr/sbin/policy-rc.d, and 101 means no."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


# --- MariaDB -----------------------------------------------------------------------------------------------------------

MARIADB_SETTINGS = "innodb_flush_log_at_trx_commit=1, no binary log, buffer pool 2 GB, log file 512 MB, performance_schema off"


@contextmanager
def mariadb(folder: Path, *, preload: Path | None = None, extra: Sequence[str] = ()) -> Iterator[Server]:
    """Run an empty MariaDB in `folder`, every commit on disk before it is answered, with an empty database `bench`.

    `preload` is a library for LD_PRELOAD; `extra` are more options.
    """
    program = _program("mariadbd", "mysqld")
    if program is None:
        raise RuntimeError(missing_mariadb())
    folder = _own_folder(folder, "mariadb")
    user = pwd.getpwuid(os.getuid()).pw_name
    port = machine.free_port()
    environment = _with_own_temporary_folder(folder)
    _initialise_mariadb(program, folder, user, environment)
    command = [program, "--no-defaults", f"--user={user}", f"--datadir={folder / 'data'}", f"--port={port}", *_mariadb_files(folder)]
    command += ["--bind-address=127.0.0.1", "--innodb-flush-log-at-trx-commit=1", "--innodb-buffer-pool-size=2G"]
    command += ["--innodb-log-file-size=512M", "--skip-log-bin", "--performance-schema=OFF", "--max-connections=500", *extra]
    if preload is not None:
        environment["LD_PRELOAD"] = str(preload)
    with _process(command, folder, environment) as process:

        def is_ready() -> bool:
            with contextlib.suppress(pymysql.Error):
                connection = pymysql.connect(host="127.0.0.1", port=port, user="root", autocommit=True)
                with connection, connection.cursor() as cursor:
                    cursor.execute("CREATE DATABASE IF NOT EXISTS bench CHARACTER SET utf8mb4")
                return True
            return False

        _await(process, is_ready, folder)
        yield Server(f"mysql+pymysql://root@127.0.0.1:{port}/bench", port, process.pid)


def _mariadb_files(folder: Path) -> list[str]:
    """The path of a socket may have 107 characters: where the folder is deep, none but 127.0.0.1 is needed."""
    socket = folder / "socket"
    files = [f"--pid-file={folder / 'pid'}", f"--tmpdir={folder}"]
    return [*files, f"--socket={socket}"] if len(str(socket)) < 100 else [*files, "--socket=socket"]


def _initialise_mariadb(program: str, folder: Path, user: str, environment: dict[str, str]) -> None:
    """Make the system tables, with a root user that needs no password on 127.0.0.1."""
    if tool := _program("mariadb-install-db", "mysql_install_db"):
        command = [tool, "--no-defaults", f"--user={user}", f"--datadir={folder / 'data'}"]
        command += ["--auth-root-authentication-method=normal", "--skip-test-db", "--innodb-log-file-size=512M"]
    else:
        command = [program, "--no-defaults", f"--user={user}", f"--datadir={folder / 'data'}", "--initialize-insecure"]
    _run(command, env=environment)


# --- Redis -------------------------------------------------------------------------------------------------------------

REDIS_SETTINGS = "appendonly yes, appendfsync everysec: its usual durable setting, which may lose a second on a power cut"


@contextmanager
def redis(folder: Path) -> Iterator[Server]:
    """Run an empty Redis in `folder` that keeps what it is told, on disk within a second."""
    program = _program("redis-server", "valkey-server")
    if program is None:
        raise RuntimeError(missing_redis())
    folder = _own_folder(folder, "redis")
    port = machine.free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxclients", "4000"]
    with _process(command, folder, _with_own_temporary_folder(folder)) as process:
        _await(process, lambda: _answers_ping(port), folder)
        yield Server(f"redis://127.0.0.1:{port}/0", port, process.pid)


def _answers_ping(port: int) -> bool:
    import socket

    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(5) == b"+PONG"
    except OSError:
        return False


# --- PostgreSQL --------------------------------------------------------------------------------------------------------

POSTGRES_SETTINGS = "its defaults (fsync and synchronous_commit on), shared_buffers 1 GB, max_wal_size 4 GB"


@contextmanager
def postgres(folder: Path) -> Iterator[Server]:
    """Run an empty PostgreSQL in `folder`, durable by its defaults, with an empty database `bench`."""
    if reason := missing_postgres():
        raise RuntimeError(reason)
    user = _unprivileged() if os.getuid() == 0 else None
    folder, borrowed = _folder_for(user, _own_folder(folder, "postgres"))
    port = machine.free_port()
    environment = _with_own_temporary_folder(folder)
    data = folder / "data"
    try:
        initdb = [_postgres_program("initdb") or "initdb", "-D", str(data), "-U", "bench", "--auth=trust", "-E", "UTF8", "--locale=C"]
        _run(initdb, env=environment, cwd=folder, **_as_user(user))
        command = [_postgres_program("postgres") or "postgres", "-D", str(data), "-p", str(port), "-h", "127.0.0.1"]
        for setting in ("unix_socket_directories=", "shared_buffers=1GB", "max_wal_size=4GB", "max_connections=300"):
            command += ["-c", setting]
        with _process(command, folder, environment, user) as process:
            _await(process, lambda: _makes_database(port), folder)
            yield Server(f"postgresql://bench@127.0.0.1:{port}/bench", port, process.pid)
    finally:
        if borrowed:
            shutil.rmtree(folder, ignore_errors=True)


def _makes_database(port: int) -> bool:
    import psycopg

    try:
        with psycopg.connect(f"postgresql://bench@127.0.0.1:{port}/postgres", autocommit=True, connect_timeout=2) as connection:
            connection.execute("CREATE DATABASE bench")
        return True
    except psycopg.errors.DuplicateDatabase:
        return True
    except psycopg.Error:
        return False


def _unprivileged() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    return None


def _as_user(user: pwd.struct_passwd | None) -> dict[str, object]:
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _folder_for(user: pwd.struct_passwd | None, folder: Path) -> tuple[Path, bool]:
    """Give `folder` to the user; where he cannot get to it (a checkout in /root), another one, and say that it is borrowed."""
    if user is None:
        return folder, False
    os.chown(folder, user.pw_uid, user.pw_gid)
    if subprocess.run(["test", "-w", str(folder)], check=False, **_as_user(user)).returncode == 0:  # type: ignore[call-overload]
        return folder, False
    other = Path(tempfile.mkdtemp(prefix="cassata-bench-", dir="/var/tmp"))
    os.chown(other, user.pw_uid, user.pw_gid)
    return other, True


# --- what all of them need ---------------------------------------------------------------------------------------------


def _own_folder(folder: Path, name: str) -> Path:
    own = (folder / name).absolute()
    own.mkdir(parents=True)
    return own


def _with_own_temporary_folder(folder: Path) -> dict[str, str]:
    """A server that starts removes the temporary tables it finds: another one's, where they share the folder."""
    return {**os.environ, "TMPDIR": str(folder)}


def _run(command: Sequence[str], **options: object) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout)[-2000:]}")


@contextmanager
def _process(
    command: Sequence[str], folder: Path, environment: dict[str, str], user: pwd.struct_passwd | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends. It need not end well: its folder is of no use any more."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(  # type: ignore[call-overload]
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=machine.die_with_parent,
            **_as_user(user),
        )
    try:
        yield process
    finally:
        machine.kill(machine.family(process.pid))
        process.wait()


def _await(process: subprocess.Popen[bytes], is_ready: Callable[[], bool], folder: Path) -> None:
    done = machine.wait_until(lambda: process.poll() is not None or is_ready(), seconds=START_SECONDS)
    if not done or process.poll() is not None:
        raise RuntimeError(f"the server did not start:\n{(folder / 'server.log').read_text(errors='replace')[-2000:]}")
