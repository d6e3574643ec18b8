"""bin/cassata, bin/test and the wheel: how Cassata gets onto a machine.

A real set-up downloads for a quarter of a minute, so here a pretended Python takes its place: what is tested is the shell.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
SHELLS = [shell for shell in ("sh", "dash", "busybox") if shutil.which(shell)]
SCRIPTS = ("bin/cassata", "bin/test", "bin/bootstrap.sh")

# It says that it is new enough, makes "environments" that hold only itself, and writes down what it was asked.
PRETENDED_PYTHON = """#!/bin/sh
echo "$*" >> "{journal}"
case "$*" in
    *ensurepip*) exit {has_venv} ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip install"*) sleep {pause}; exit {pip} ;;
    "-m cassata"*) echo "home=$CASSATA_HOME arguments=$*" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with nothing but what the scripts need."""
    copy = tmp_path / "the checkout"
    (copy / "bin").mkdir(parents=True)
    for script in SCRIPTS:
        shutil.copy2(CHECKOUT / script, copy / script)
    shutil.copy2(CHECKOUT / "pyproject.toml", copy)
    return copy


class Shell:
    """Runs bin/cassata of a checkout with a pretended Python."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.checkout = checkout
        self.journal = folder / "journal"
        self.python = folder / "python"
        self.pretend()

    def pretend(self, *, pip: int = 0, has_venv: int = 0, pause: float = 0) -> None:
        self.journal.write_text("")
        self.python.write_text(PRETENDED_PYTHON.format(journal=self.journal, pip=pip, has_venv=has_venv, pause=pause))
        self.python.chmod(0o755)

    def start(self, *words: str, script: Path | None = None, cwd: Path | None = None, **env: str) -> subprocess.Popen[str]:
        surroundings = {"PATH": "/usr/bin:/bin", "PYTHON": str(self.python), "CASSATA_NO_APT": "1", **env}
        command = [str(script or self.checkout / "bin" / "cassata"), *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=cwd, env=surroundings, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    def run(self, *words: str, script: Path | None = None, cwd: Path | None = None, **env: str) -> tuple[int, str, str]:
        process = self.start(*words, script=script, cwd=cwd, **env)
        output, errors = process.communicate(timeout=30)
        return process.returncode, output, errors

    def asked(self, beginning: str) -> int:
        return sum(line.startswith(beginning) for line in self.journal.read_text().splitlines())


@pytest.fixture
def shell(checkout: Path, tmp_path: Path) -> Shell:
    return Shell(checkout, tmp_path)


# --- the scripts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("interpreter", SHELLS)
def test_the_scripts_are_plain_posix_shell(script: str, interpreter: str) -> None:
    command = [interpreter, *(["sh"] if interpreter == "busybox" else []), "-n", str(CHECKOUT / script)]
    assert subprocess.run(command, capture_output=True, check=False).stderr == b""
    assert "[[" not in (CHECKOUT / script).read_text()


def test_the_first_use_sets_up_and_the_second_is_quiet(shell: Shell) -> None:
    code, output, errors = shell.run("demo", "--for", "20s")
    assert (code, output) == (0, f"home={shell.checkout} arguments=-m cassata demo --for 20s\n")
    assert [line.split(": ")[0] for line in errors.splitlines()] == ["cassata"] * 3
    shell.journal.write_text("")
    assert shell.run("demo") == (0, f"home={shell.checkout} arguments=-m cassata demo\n", "")
    assert shell.journal.read_text() == "-m cassata demo\n"  # and nothing else: it starts one program
    assert not (shell.checkout / ".venv.lock").exists()


def test_it_works_through_links_and_from_any_folder(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "one").symlink_to("../the checkout/bin/cassata")
    (tmp_path / "two").symlink_to(tmp_path / "bin" / "one")
    expected = f"home={shell.checkout} arguments=-m cassata x y\n"
    assert shell.run("x y", script=tmp_path / "two", cwd=Path("/"))[1] == expected
    assert shell.run("x y", script=Path("../bin/one"), cwd=tmp_path / "the checkout")[1] == expected
    assert shell.run("x y", script=tmp_path / "two", CASSATA_HOME="/mine")[1] == expected.replace(str(shell.checkout), "/mine")


def test_a_changed_project_or_python_or_place_is_installed_again(shell: Shell) -> None:
    shell.run()
    with (shell.checkout / "pyproject.toml").open("a") as project:
        project.write("# changed\n")
    assert "done" in shell.run()[2]
    with (shell.checkout / ".venv" / "bin" / "python").open("a") as python:
        python.write("# newer\n")
    assert "done" in shell.run()[2]
    shell.checkout = shell.checkout.rename(shell.checkout.with_name("moved"))
    assert "done" in shell.run()[2]
    assert shell.run()[2] == ""
    assert shell.asked("-m venv") == 1


def test_a_failed_install_is_begun_anew(shell: Shell) -> None:
    shell.pretend(pip=1)
    code, output, errors = shell.run()
    assert (code, output) == (1, "")
    assert "could not be installed" in errors
    assert not (shell.checkout / ".venv").exists()
    shell.pretend()
    assert shell.run()[0] == 0
    assert shell.asked("-m venv") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_install_is_begun_anew(shell: Shell, number: signal.Signals) -> None:
    shell.pretend(pause=30)
    process = shell.start()
    wait_until(lambda: bool(shell.asked("-m pip install")))
    os.killpg(process.pid, number)
    process.communicate(timeout=10)
    shell.pretend()
    assert shell.run()[0] == 0
    assert shell.asked("-m venv") == 1
    assert not (shell.checkout / ".venv.lock").exists()


def test_of_two_that_start_at_once_one_installs_and_both_work(shell: Shell) -> None:
    shell.pretend(pause=1)
    processes = [shell.start("x") for _ in range(2)]
    outputs = [process.communicate(timeout=30) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert {output for output, _ in outputs} == {f"home={shell.checkout} arguments=-m cassata x\n"}
    assert shell.asked("-m pip install") == 1
    assert sum("waiting for process" in errors for _, errors in outputs) == 1


def test_without_a_venv_module_the_one_command_to_type_is_told(shell: Shell) -> None:
    shell.pretend(has_venv=1)
    code, _, errors = shell.run()
    assert code == 1
    expected = "sudo apt-get install -y --no-install-recommends python3-venv" if shutil.which("apt-get") else "install it"
    assert expected in errors
    assert not (shell.checkout / ".venv").exists()


@pytest.mark.parametrize("python", ["/nowhere/python", "false"])
def test_without_a_python_there_is_a_clear_sentence(shell: Shell, python: str) -> None:
    code, _, errors = shell.run(PYTHON=python)
    assert code == 1
    assert f"Cassata needs Python 3.11 or newer, and none was found at PYTHON={python}" in errors


def test_the_tests_get_an_extra_and_a_stamp_of_their_own(shell: Shell) -> None:
    code, _, errors = shell.run("-k", "x", script=shell.checkout / "bin" / "test")
    assert code == 0, errors
    assert (shell.checkout / ".venv" / "cassata-test.stamp").exists()
    assert f"-m pip install --quiet --disable-pip-version-check --editable {shell.checkout}[test]" in shell.journal.read_text()
    assert re.search(r"-m pytest .*-k x\n\Z", shell.journal.read_text())
    assert shell.run()[2] == ""  # what the tests need is enough for the command


# --- the wheel -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys, hatchling.build; hatchling.build.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=CHECKOUT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as opened:
        yield opened


def test_the_wheel_holds_the_migrations_and_the_command(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    expected = {f"cassata/_sql/{file.relative_to(CHECKOUT / 'sql')}" for file in (CHECKOUT / "sql").rglob("*.py")}
    assert expected
    assert expected <= names
    assert not any(name.startswith(("tests/", "config/", "var/")) or name.endswith((".pyc", ".db")) for name in names)
    (entry,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "cassata = cassata.cli:main" in wheel.read(entry).decode()


def test_what_the_wheel_holds_works_without_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    surroundings = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), sysconfig.get_path("purelib")])}
    command = [sys.executable, "-S", "-c", "from cassata.cli import main; main()", "db", "upgrade"]
    run = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert (tmp_path / "var" / "cassata.db").exists()
