"""What the peers for node have in common: node itself, and their packages, which npm installs beside package-lock.json."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping

from bench.peers.peer import CODE, VERSION, Peer

NODE_AT_LEAST = (20, 18)


class NodePeer(Peer):
    """A peer whose `packages` are npm's."""

    def missing_code(self) -> str | None:
        """Install the packages if they are not there, or not as the lock file says."""
        node, npm = shutil.which("node"), shutil.which("npm")
        if node is None or npm is None:
            return "there is no node with npm here. Type: apt-get install nodejs npm (at least 20.18), or see https://nodejs.org"
        if tuple(map(int, _node_version().removeprefix("v").split(".")[:2])) < NODE_AT_LEAST:
            return f"node {_node_version()} is too old: {'.'.join(map(str, NODE_AT_LEAST))} is needed"
        if self._are_installed():
            return None
        # `npm ci` wants the builds of an optional package (msgpackr-extract) for all platforms, which not every registry has.
        command = [npm, "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=CODE, capture_output=True, text=True, check=False)
        return None if done.returncode == 0 else f"npm install in bench/peers failed: {done.stderr.strip()[:500]}"

    def version(self) -> Mapping[str, str]:
        found = {package: _installed_version(package) for package in self.packages}
        return {**found, self.server_name: VERSION[self.server_name](), "node": _node_version()}

    def node(self, script: str) -> list[str]:
        """Return the command that runs a script of this folder."""
        return [shutil.which("node") or "node", str(CODE / script)]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "NODE_ENV": "production"}

    def _are_installed(self) -> bool:
        wanted = json.loads((CODE / "package-lock.json").read_text())["packages"]
        return all(_installed_version(package) == wanted[f"node_modules/{package}"]["version"] for package in self.packages)


def _node_version() -> str:
    return subprocess.run(["node", "--version"], capture_output=True, text=True, check=True, env=os.environ).stdout.strip()


def _installed_version(package: str) -> str:
    try:
        return str(json.loads((CODE / "node_modules" / package / "package.json").read_text())["version"])
    except FileNotFoundError:
        return "none"
