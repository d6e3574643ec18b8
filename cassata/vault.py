"""Signing secrets at rest: sealed with a key file, if one is configured."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cassata.errors import CassataError, ConfigError
from cassata.model import Secret


class SecretsUnreadable(CassataError):
    """The signing secrets are sealed with a key that is not in database.secretsKeyFile."""


class Vault:
    """Writes secrets down and reads them again.

    A key file holds keys of Fernet (AES-128-CBC and HMAC-SHA256), one a line: the first one seals, all of them open. Without a
    file secrets are written as they are.
    """

    def __init__(self, key_file: str | None = None) -> None:
        self._fernet = None if key_file is None else _read(Path(key_file))

    def written(self, secrets: tuple[Secret, ...]) -> str:
        return json.dumps([{**self._hidden(secret.value), "until": secret.until} for secret in secrets])

    def read(self, written: str | None) -> tuple[Secret, ...]:
        """Return the secrets, the newest first. Raises SecretsUnreadable."""
        return tuple(Secret(self._shown(part), part["until"]) for part in json.loads(written or "[]"))

    def _hidden(self, value: str) -> dict[str, str]:
        if self._fernet is None:
            return {"secret": value}
        return {"sealed": self._fernet.encrypt(value.encode()).decode()}

    def _shown(self, part: dict[str, Any]) -> str:
        if "secret" in part:
            return str(part["secret"])
        if self._fernet is None:
            raise SecretsUnreadable
        from cryptography.fernet import InvalidToken

        try:
            return str(self._fernet.decrypt(part["sealed"].encode()).decode())
        except InvalidToken as error:
            raise SecretsUnreadable from error


def _read(file: Path) -> Any:
    from cryptography.fernet import Fernet, MultiFernet  # only where it is needed: 4 MB of memory

    try:
        lines = [line for line in file.read_text(encoding="ascii").split() if line]
        fernet = MultiFernet([Fernet(line) for line in lines])
    except OSError as error:
        raise ConfigError(f"database.secretsKeyFile {str(file)!r} cannot be read: {error.strerror}") from error
    except ValueError:
        raise ConfigError(f"database.secretsKeyFile {str(file)!r} holds no usable key: make one with 'cassata app new-key-file'") from None
    return fernet


def new_key_file(file: Path) -> None:
    """Make a key file with one key, for its owner's eyes only. Raises FileExistsError: a lost key is a lost secret."""
    from cryptography.fernet import Fernet

    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(Fernet.generate_key() + b"\n")
