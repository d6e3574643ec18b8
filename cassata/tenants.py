"""Applications and their keys: who they are, what they may do, and by which secrets their receivers know them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import string
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Row
from sqlalchemy.exc import IntegrityError

from cassata import database, store, telemetry
from cassata.errors import (
    ApplicationExists,
    CassataError,
    ConfigError,
    InvalidApplication,
    InvalidEvent,
    Problem,
    UnknownApplication,
    UnknownKey,
)
from cassata.model import SECRET_PREFIX, Application, Destination, Egress, EgressPolicy, Key, Milestone, Scope, Secret, Stream
from cassata.vault import SecretsKeyMissing, SecretsUnreadable, Vault

FRESH_SECONDS = 1.0
"""What is kept in mind of applications and keys is looked at again after that: so soon a change holds everywhere."""
LATE_COMMIT_MS = 10_000
"""So long after its instant a change may become visible."""
KEYS_IN_MIND = 10_000
SECRET_BYTES = 32
SECRETS_AT_ONCE = 500
SESSIONS_AT_ONCE = 100
PREFIX_LETTERS = string.ascii_lowercase + string.digits
PREFIX_LENGTH = 8
KEY_SCHEME = "csk"
CHECK_BYTES = 9
CHECK_LENGTH = 12
LONGEST_TOKEN = 100
MOST_SECRETS = 10
MOST_KEYS = 100
"""So many keys of one application, or of the operators, are valid at a time. As many that have ended are listed, too."""


PACES = {store.PaceKind.ADDS: "adds_per_second", store.PaceKind.DELIVERIES: "deliveries_per_second"}


class TooManyKeys(CassataError):
    """The application has too many valid keys: revoke those that are not used any more."""

    def __init__(self) -> None:
        super().__init__(f"There are {MOST_KEYS} valid keys already, and that is the limit: revoke one that is not used any more.")


@dataclass(frozen=True, slots=True)
class Changes:
    """What to set of an application; None leaves it as it is. A limit of None is the configured one again, `egress` and `topics`
    "default" too. `stream` "off" tells nobody anything any more.
    """

    active: bool | None = None
    limits: Mapping[str, float | None] | None = None
    egress: Egress | Literal["default"] | None = None
    topics: Mapping[str, str | None] | Literal["default"] | None = None
    metadata: Mapping[str, Any] | None = None
    stream: Stream | Literal["off"] | None = None

    def applied_to(self, application: Application) -> Application:
        limits = {**application.limits, **(self.limits or {})}
        egress = application.egress if self.egress is None else self.egress
        topics = application.topics if self.topics is None else self.topics
        stream = application.stream if self.stream is None else self.stream
        return replace(
            application,
            active=application.active if self.active is None else self.active,
            limits={name: value for name, value in limits.items() if value is not None},
            egress=None if egress == "default" else egress,
            topics=None if topics == "default" else topics,
            metadata=application.metadata if self.metadata is None else self.metadata,
            stream=None if stream == "off" else stream,
        )


class _Known(NamedTuple):
    key: Key | None
    hash: bytes
    looked_at: float


class Tenants:
    """Applications and keys in one database. Safe to share between threads."""

    def __init__(self, engines: database.Engines, clock: database.Clock, vault: Vault) -> None:
        self._transactions = database.Transactions(engines)
        self._clock = clock
        self._vault = vault
        self._some_are_sealed = (float("-inf"), False)  # when that was looked up (monotonic), and what was found
        self._lock = threading.Lock()  # of the three attributes below
        self._by_number: dict[int, Application] = {}
        self._by_id: dict[str, Application] = {}
        self._looked_at = float("-inf")  # monotonic
        self._seen_until = 0  # changes up to then (ms) are known of
        self._keys: dict[str, _Known] = {}  # the one looked up last stands last; changed under the lock
        self._installation_secret: bytes | None = None

    # --- applications --------------------------------------------------------------------------------------------------

    def create(self, application_id: str, changes: Changes = Changes()) -> Application:
        """Make an application. Raises ApplicationExists, SecretsKeyMissing."""

        def work(conn: Connection, _tries: int) -> Application:
            now = self._clock.now(conn)
            new = changes.applied_to(Application(0, application_id))
            self.register(conn, application_id, now, **self._difference(conn, Application(0, application_id), new))
            return self._found(conn, application_id)

        try:
            return self._transactions.write(work)
        except IntegrityError as error:
            raise ApplicationExists(f"there is an application {application_id!r} already") from error

    def register(self, conn: Connection, application_id: str, now: int, **columns: Any) -> int:
        """Make an application, with a signing secret, in somebody's transaction; return its number. Raises SecretsKeyMissing."""
        secrets = self._written(conn, application_id, (new_secret(),))
        return store.register_application(conn, application_id, now, secrets=secrets, **columns)

    def prioritize(self, conn: Connection, number: int, now: int) -> None:
        """Have claims look at priorities, since an event or a series of that application has one; in somebody's transaction."""
        known = self._by_number.get(number)
        if known is None or not known.prioritized:
            store.prioritize(conn, number, now)

    def application(self, application_id: str) -> Application:
        """Return an application as it is now. Raises UnknownApplication."""
        return self._transactions.read(lambda conn: self._found(conn, application_id))

    def secrets(self, application_id: str) -> tuple[Secret, ...]:
        """Return the signing secrets that are in use now, the newest first. Raises UnknownApplication, SecretsUnreadable."""

        def work(conn: Connection) -> tuple[Secret, ...]:
            application, now = self._found(conn, application_id), self._clock.now(conn)
            if application.is_sealed:
                raise SecretsUnreadable
            return tuple(secret for secret in application.secrets if secret.until is None or secret.until > now)

        return self._transactions.read(work)

    def applications(self, *, after: str = "", limit: int = 100) -> list[Application]:
        """List applications in the order of their ids."""
        rows = self._transactions.read(lambda conn: store.applications_after(conn, after, limit))
        return [self.read_row(row) for row in rows]

    def change(self, application_id: str, changes: Changes) -> Application:
        """Change an application. Workers and services follow within two seconds. Raises UnknownApplication."""
        return self._change(application_id, lambda application, _now: changes.applied_to(application))

    def put(
        self,
        application_id: str,
        *,
        active: bool | None = None,
        limits: Mapping[str, float | None] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Application:
        """Make an application, or change it if there is one. Raises SecretsKeyMissing."""
        changes = Changes(active=active, limits=limits, metadata=metadata)
        try:
            return self.create(application_id, changes)
        except ApplicationExists:
            return self.change(application_id, changes)

    def rotate_secret(self, application_id: str, *, overlap_ms: int, secret: Secret | None = None) -> Application:
        """Sign with a new secret from now on, and with those before it for that long still.

        Raises UnknownApplication, SecretsUnreadable, SecretsKeyMissing, InvalidApplication if too many would be in use.
        """

        def rotated(application: Application, now: int) -> Application:
            if application.is_sealed:
                raise SecretsUnreadable
            ends_at = now + overlap_ms
            before = [replace(old, until=min(old.until or ends_at, ends_at)) for old in application.secrets]
            live = tuple(old for old in before if old.until is not None and old.until > now)
            if len(live) >= MOST_SECRETS:
                raise InvalidApplication([Problem("overlap", f"would leave more than {MOST_SECRETS} in use: make it shorter")])
            return replace(application, secrets=(secret or new_secret(), *live))

        return self._change(application_id, rotated)

    def seal_secrets(self) -> int:
        """Write the secrets of all applications down anew, as the key file says now; return of how many.

        Raises ConfigError if it says nothing, and SecretsUnreadable, having changed those before.
        """
        if not self._vault.seals:
            raise ConfigError("there is no key to seal with: make one with 'cassata app new-key-file', and set database.secretsKeyFile")
        after, count = "", 0
        while page := self.applications(after=after, limit=1_000):
            after = page[-1].application_id
            for application in page:
                self._change(application.application_id, lambda same, _now: same, anew=True)
                count += 1
        return count

    def give_secrets(self) -> None:
        """Make signing secrets for applications that an older Cassata has left without. Several that start at once share the work."""
        while without := self._transactions.read(lambda conn: store.applications_without_secrets(conn, SECRETS_AT_ONCE)):
            self._transactions.write(lambda conn, _tries, without=without: self._give_secrets(conn, without))  # type: ignore[misc]

    def _give_secrets(self, conn: Connection, without: Iterable[tuple[int, str]]) -> None:
        for number, application_id in without:
            store.give_secrets(conn, number, self._written(conn, application_id, (new_secret(),)), self._clock.now(conn))

    def warn_of_open_secrets(self) -> None:
        """Tell in the log where secrets are not kept as the settings say."""
        seals = self._vault.seals
        if not self._transactions.read(lambda conn: store.has_secrets(conn, sealed=not seals)):
            return
        if seals:
            telemetry.emit("some signing secrets are not sealed", level="warning", hint="type: cassata app seal-secrets")
        else:
            telemetry.emit("signing secrets are sealed", level="warning", hint="set database.secretsKeyFile: what they sign has to wait")

    def _written(self, conn: Connection, application_id: str, secrets: tuple[Secret, ...]) -> str:
        """Write secrets down. Raises SecretsKeyMissing rather than leave some open where others are sealed."""
        if not self._vault.seals:
            looked_at, found = self._some_are_sealed
            if time.monotonic() - looked_at > FRESH_SECONDS:  # not for every new application: it reads them all
                found = store.has_secrets(conn, sealed=True)
                self._some_are_sealed = time.monotonic(), found
            if found:
                raise SecretsKeyMissing
        return self._vault.written(application_id, secrets)

    def _change(self, application_id: str, change: Callable[[Application, int], Application], *, anew: bool = False) -> Application:
        def work(conn: Connection, _tries: int) -> Application:
            now = self._clock.now(conn)
            before = self.read_row(_there(store.lock_application(conn, application_id)))
            if anew and before.is_sealed:
                raise SecretsUnreadable
            after = change(before, now)
            columns = self._difference(conn, before, after, anew=anew)
            if columns:
                store.change_application(conn, before.number, now, columns)
            for kind, rate in PACES.items():
                if before.limits.get(rate) != after.limits.get(rate):  # whoever was told to wait, by another pace, is not told so any more
                    store.forget_pace(conn, before.number, kind)
            return self._found(conn, application_id)

        changed = self._transactions.write(work)
        self._forget([changed.number])
        return changed

    def _difference(self, conn: Connection, before: Application, after: Application, *, anew: bool = False) -> dict[str, Any]:
        """Return the columns that differ, as they are to be written."""
        columns: dict[str, Any] = {}
        if after.active != before.active:
            columns["active"] = after.active
        if after.limits != before.limits:
            columns["limits"] = json.dumps(dict(after.limits))
        if after.egress != before.egress:
            columns["egress"] = after.egress and json.dumps({"policy": after.egress.policy, "allow": after.egress.allow})
        if after.topics != before.topics:
            columns["topics"] = None if after.topics is None else json.dumps(dict(after.topics))
        if after.metadata != before.metadata:
            columns["metadata"] = json.dumps(after.metadata)
        if after.stream != before.stream:
            columns["stream"] = after.stream and _written_stream(after.stream)
        if after.secrets != before.secrets or (anew and after.secrets):
            columns["secrets"] = self._written(conn, after.application_id, after.secrets)
        return columns

    def _found(self, conn: Connection, application_id: str) -> Application:
        return self.read_row(_there(store.application(conn, application_id)))

    def read_row(self, row: Row[Any]) -> Application:
        """Make an application of its row."""
        application = Application(
            number=row.id,
            application_id=row.application_id,
            active=row.active,
            limits=json.loads(row.limits) if row.limits else {},
            egress=_egress(row.egress),
            topics=None if row.topics is None else json.loads(row.topics),
            metadata=json.loads(row.metadata) if row.metadata else {},
            stream=_stream(row.stream, row.application_id),
            created_at=row.created_at,
            changed_at=row.changed_at,
            prioritized=row.prioritized,
        )
        try:
            return replace(application, secrets=self._vault.read(row.application_id, row.secrets)) if row.secrets else application
        except SecretsUnreadable:
            return replace(application, is_sealed=True)

    # --- applications in mind ------------------------------------------------------------------------------------------

    def known(self, conn: Connection, application_id: str) -> Application | None:
        """Return an application as it was a second ago at most, None if there is none."""
        self.refresh(conn)
        found = self._by_id.get(application_id)
        if found is None and (row := store.application(conn, application_id)):
            (found,) = self._remember([row])
        return found

    def of_numbers(self, conn: Connection, numbers: Collection[int]) -> Mapping[int, Application]:
        """Return applications by their numbers, as they were a second ago at most, with others; those that are gone are missing."""
        unknown = [number for number in numbers if number not in self._by_number]
        if unknown:
            self._remember(store.applications_by_number(conn, unknown))
        return self._by_number

    def of_number(self, conn: Connection, number: int) -> Application | None:
        """Return one likewise, and surely if it is there: others forget applications meanwhile."""
        found = self._by_number.get(number)
        if found is None and (rows := store.applications_by_number(conn, [number])):
            (found,) = self._remember(rows)
        return found

    def is_in_mind(self, application_id: str) -> bool:
        return application_id in self._by_id

    def in_mind(self, number: int) -> Application | None:
        """Return what is known of an application without asking."""
        return self._by_number.get(number)

    def refresh(self, conn: Connection) -> bool:
        """Forget what has been changed, if nobody has looked for a second; say whether there was something."""
        now = time.monotonic()
        if now - self._looked_at < FRESH_SECONDS:
            return False
        before, self._looked_at = self._looked_at, now
        try:
            instant = self._clock.now(conn)
            changed = store.changed_applications(conn, self._seen_until - LATE_COMMIT_MS) if self._seen_until else {}
        except BaseException:
            self._looked_at = before
            raise
        self._seen_until = instant
        in_mind = ((self._by_number.get(number), changed_at) for number, changed_at in changed.items())
        stale = [application.number for application, changed_at in in_mind if application and application.changed_at != changed_at]
        self._forget(stale)
        return bool(stale)

    def _remember(self, rows: Iterable[Row[Any]]) -> list[Application]:
        applications = [self.read_row(row) for row in rows]
        with self._lock:
            for application in applications:
                self._by_number[application.number] = application
                self._by_id[application.application_id] = application
        return applications

    def _forget(self, numbers: Iterable[int]) -> None:
        with self._lock:
            for number in numbers:
                if application := self._by_number.pop(number, None):
                    self._by_id.pop(application.application_id, None)

    # --- keys ----------------------------------------------------------------------------------------------------------

    def create_key(
        self,
        application_id: str | None,
        scopes: Collection[Scope],
        *,
        name: str = "",
        expires_at: int | None = None,
        maker: Key | None = None,
    ) -> tuple[Key, str]:
        """Make a key, for an application or (None) an operator's; return it with its token, which nobody can ever read again.

        It expires no later than the key that it is made with. Raises UnknownApplication, TooManyKeys.
        """
        prefix = "".join(secrets.choice(PREFIX_LETTERS) for _ in range(PREFIX_LENGTH))
        token = f"{KEY_SCHEME}_{prefix}_{self._check_of(prefix)}{secrets.token_urlsafe(SECRET_BYTES)}"
        ends = [instant for instant in (expires_at, maker.expires_at if maker else None) if instant is not None]

        def work(conn: Connection, _tries: int) -> Key:
            # Locked, so that two that are made at once are counted one after the other.
            application = None if application_id is None else _there(store.lock_application(conn, application_id))
            now = self._clock.now(conn)
            if store.live_keys(conn, application and application.id, now) >= MOST_KEYS:
                raise TooManyKeys
            row = {
                "prefix": prefix,
                "application": application and application.id,
                "name": name,
                "scopes": ",".join(sorted(scopes)),
                "hash": _hash(token),
                "created_at": now,
                "expires_at": min(ends, default=None),
            }
            store.insert_key(conn, row)
            return _key(_there_key(store.key(conn, prefix)))

        return self._transactions.write(work), token

    def keys(self, application_id: str | None = None) -> list[Key]:
        """List the keys of an application, or (None) the operators': all that are valid, and the last hundred of the others.

        Raises UnknownApplication.
        """

        def work(conn: Connection) -> list[Key]:
            number = None if application_id is None else _there(store.application(conn, application_id)).id
            return [_key(row) for row in store.keys(conn, number, self._clock.now(conn), 2 * MOST_KEYS)]

        return self._transactions.read(work)

    def revoke_key(self, prefix: str, *, application_id: str | None = None) -> Key:
        """Make a key worthless, within two seconds everywhere. Raises UnknownKey, also if it is not that application's."""

        def work(conn: Connection, _tries: int) -> Key:
            found = _key(_there_key(store.key(conn, prefix) if _is_prefix(prefix) else None))
            if application_id is not None and found.application_id != application_id:
                raise UnknownKey
            store.revoke_key(conn, prefix, self._clock.now(conn))
            return _key(_there_key(store.key(conn, prefix)))

        revoked = self._transactions.write(work)
        with self._lock:
            self._keys.pop(prefix, None)
        return revoked

    def has_operator_key(self) -> bool:
        """Whether there is a key by which somebody may make applications and other keys."""
        return self._transactions.read(lambda conn: store.operator_keys(conn, self._clock.now(conn))) > 0

    def authenticate(self, token: str) -> Key | None:
        """Return the live key that this token stands for, as it was a second ago at most.

        Only what this installation has made is ever looked up: guesses cost the database nothing, and keep nobody else waiting.
        """
        scheme, _, rest = token.partition("_")
        prefix, _, secret = rest.partition("_")
        if scheme != KEY_SCHEME or not secret or len(token) > LONGEST_TOKEN or not _is_prefix(prefix):
            return None
        known = self._keys.get(prefix)
        if known is None or time.monotonic() - known.looked_at > FRESH_SECONDS:
            if known is None and not self._is_ours(prefix, secret):
                return None
            known = self._look_up(prefix)
        if known.key is None or not hmac.compare_digest(known.hash, _hash(token)):
            return None
        return known.key if known.key.is_live(self._clock.estimate()) else None

    def live_key(self, prefix: str) -> Key | None:
        """Return the key of that prefix, which somebody has shown before, if it is still valid; as it was a second ago at most."""
        if not _is_prefix(prefix):
            return None
        known = self._keys.get(prefix)
        if known is None or time.monotonic() - known.looked_at > FRESH_SECONDS:
            known = self._look_up(prefix)
        return known.key if known.key is not None and known.key.is_live(self._clock.estimate()) else None

    def _look_up(self, prefix: str) -> _Known:
        looked_at = time.monotonic()

        def work(conn: Connection) -> Row[Any] | None:
            self._clock.now(conn)  # so that there is an estimate of it
            return store.key(conn, prefix)

        row = self._transactions.read(work)
        known = _Known(row and _key(row), row.hash if row else b"", looked_at)
        with self._lock:
            self._keys.pop(prefix, None)
            while len(self._keys) >= KEYS_IN_MIND:
                del self._keys[next(iter(self._keys))]
            self._keys[prefix] = known
        return known

    def _is_ours(self, prefix: str, secret: str) -> bool:
        if self._found_installation_secret() is None:  # no key has been made yet, and nothing is for a guess
            return False
        return hmac.compare_digest(secret[:CHECK_LENGTH].encode(), self._check_of(prefix).encode())

    def _check_of(self, prefix: str) -> str:
        """Return what a key's secret begins with: the sign that this installation has made a key of that prefix."""
        return base64.urlsafe_b64encode(self.keyed_hash(b"key", prefix.encode())[:CHECK_BYTES]).decode()

    # --- sessions that keys have begun ---------------------------------------------------------------------------------

    def end_session(self, session: str, *, kept_ms: int) -> None:
        """Have a session be over, at once and for every service. `kept_ms`: for how long it might be used otherwise."""

        def work(conn: Connection, _tries: int) -> None:
            now = self._clock.now(conn)
            store.end_session(conn, session, now + kept_ms)
            store.forget_sessions(conn, now, SESSIONS_AT_ONCE)

        self._transactions.write(work)

    def has_ended(self, session: str) -> bool:
        """Say whether a session was ended."""
        return self._transactions.read(lambda conn: store.has_ended(conn, session))

    # --- what only this installation knows -----------------------------------------------------------------------------

    def keyed_hash(self, purpose: bytes, message: bytes) -> bytes:
        """Return an HMAC-SHA256 that every service of this database computes alike, and nobody else can."""
        secret = self._found_installation_secret() or self._made_installation_secret()
        return hmac.digest(secret, purpose + b":" + message, hashlib.sha256)

    def _found_installation_secret(self) -> bytes | None:
        if self._installation_secret is None:
            self._installation_secret = self._transactions.read(store.installation_secret)
        return self._installation_secret

    def _made_installation_secret(self) -> bytes:
        made = secrets.token_bytes(SECRET_BYTES)
        with contextlib.suppress(IntegrityError):  # another process was quicker
            self._transactions.write(lambda conn, _tries: store.keep_installation_secret(conn, made))
        return self._found_installation_secret() or made


def new_secret() -> Secret:
    return Secret(SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode())


def _there(row: Row[Any] | None) -> Row[Any]:
    if row is None:
        raise UnknownApplication
    return row


def _there_key(row: Row[Any] | None) -> Row[Any]:
    if row is None:
        raise UnknownKey
    return row


def _key(row: Row[Any]) -> Key:
    scopes = frozenset(Scope(scope) for scope in row.scopes.split(","))
    return Key(row.prefix, row.application_id, row.name, scopes, row.created_at, row.expires_at, row.revoked_at)


def _hash(token: str) -> bytes:
    """Fingerprint a token. Its 256 random bits cannot be guessed, so that a slow hash would only be slow."""
    return hashlib.sha256(token.encode()).digest()


def _is_prefix(text: str) -> bool:
    return len(text) == PREFIX_LENGTH and set(text) <= set(PREFIX_LETTERS)


def _egress(written: str | None) -> Egress | None:
    if written is None:
        return None
    document = json.loads(written)
    return Egress(EgressPolicy(document["policy"]), tuple(document["allow"]))


def _written_stream(stream: Stream) -> str:
    document = {"url": stream.url, "kinds": sorted(stream.kinds), "headers": stream.headers}
    return json.dumps(document | ({"destination": stream.destination.document} if stream.destination else {}))


def _stream(written: str | None, application_id: str) -> Stream | None:
    """Read a stream. One that cannot be read, of a later version say, tells nobody anything, and stops nothing else."""
    if written is None:
        return None
    try:
        document = json.loads(written)
        headers = tuple((name, value) for name, value in document["headers"])
        details = document.get("destination")
        destination = details and Destination(details.pop("type"), details)
        return Stream(document["url"], frozenset(Milestone(kind) for kind in document["kinds"]), headers, destination)
    except (ValueError, TypeError, KeyError, InvalidEvent) as error:
        telemetry.emit("stream unreadable", level="error", application_id=application_id, error=repr(error))
        return None
