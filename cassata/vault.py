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


class SecretsKeyMissing(ConfigError):
    """Signing secrets are sealed in this database, and new ones would not be: set database.secretsKeyFile, as where they were sealed."""


class Vault:
    """Writes secrets down and reads them again.

    A key file holds keys of Fernet (AES-128-CBC and HMAC-SHA256), one a line: the first one seals, all of them open. Without a
    file secrets are written as they are. What is sealed names its application: in another's row it opens nothing.
    """

    def __init__(self, key_file: str | None = None) -> None:
        self._fernet = None if key_file is None else _read(Path(key_file))

    @property
    def seals(self) -> bool:
        return self._fernet is not None

    def written(self, application_id: str, secrets: tuple[Secret, ...]) -> str:
        """Return a JSON array of secrets as they are, or an object with all of them sealed."""
        parts = [{"secret": secret.value, "until": secret.until} for secret in secrets]
        if self._fernet is None:
            return json.dumps(parts)
        opened = json.dumps({"application-id": application_id, "secrets": parts})
        return json.dumps({"sealed": self._fernet.encrypt(opened.encode()).decode()})

    def read(self, application_id: str, written: str) -> tuple[Secret, ...]:
        """Return the secrets, the newest first. Raises SecretsUnreadable."""
        document = json.loads(written)
        parts = document if isinstance(document, list) else self._opened(application_id, document["sealed"])
        return tuple(Secret(part["secret"], part["until"]) for part in parts)

    def _opened(self, application_id: str, sealed: str) -> Any:
        if self._fernet is None:
            raise SecretsUnreadable
        from cryptography.fernet import InvalidToken

        try:
            document = json.loads(self._fernet.decrypt(sealed.encode()))
        except InvalidToken as error:
            raise SecretsUnreadable from error
        if document["application-id"] != application_id:  # whoever may write to the database has put it there
            raise SecretsUnreadable
        return document["secrets"]


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
