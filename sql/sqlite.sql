-- Cassata's tables for sqlite, at version 0006. 'cassata db upgrade' makes the same.

CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

-- Running upgrade  -> 0001

CREATE TABLE applications (
    id INTEGER NOT NULL,
    application_id VARCHAR(64) NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT applications_application_id UNIQUE (application_id)
);

CREATE TABLE events (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    application INTEGER NOT NULL,
    event_id VARCHAR(128) NOT NULL,
    status SMALLINT NOT NULL,
    due_at BIGINT NOT NULL,
    wake_at BIGINT,
    fence BIGINT NOT NULL,
    attempts INTEGER NOT NULL,
    lost_leases SMALLINT NOT NULL,
    cancel_requested BOOLEAN DEFAULT 0 NOT NULL,
    method VARCHAR(8) NOT NULL,
    url VARCHAR(2048) NOT NULL,
    headers TEXT,
    payload BLOB,
    options TEXT,
    request_hash BLOB NOT NULL,
    last_error VARCHAR(500),
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    CONSTRAINT events_event_id UNIQUE (application, event_id)
);

CREATE INDEX events_wake ON events (application, wake_at, id);

CREATE INDEX events_due ON events (application, due_at, id);

CREATE TABLE attempts (
    event INTEGER NOT NULL,
    fence BIGINT NOT NULL,
    number INTEGER NOT NULL,
    started_at BIGINT NOT NULL,
    duration_ms INTEGER NOT NULL,
    status_code SMALLINT,
    error VARCHAR(32),
    detail VARCHAR(500),
    excerpt TEXT,
    PRIMARY KEY (event, fence)
);

INSERT INTO alembic_version (version_num) VALUES ('0001') RETURNING version_num;

-- Running upgrade 0001 -> 0002

ALTER TABLE applications ADD COLUMN active BOOLEAN NOT NULL DEFAULT 1;

ALTER TABLE applications ADD COLUMN limits TEXT;

ALTER TABLE applications ADD COLUMN egress TEXT;

ALTER TABLE applications ADD COLUMN metadata TEXT;

ALTER TABLE applications ADD COLUMN secrets TEXT;

ALTER TABLE applications ADD COLUMN changed_at BIGINT NOT NULL DEFAULT '0';

CREATE INDEX applications_changed ON applications (changed_at);

CREATE TABLE IF NOT EXISTS api_keys (
    id INTEGER NOT NULL,
    prefix VARCHAR(16) NOT NULL,
    application INTEGER,
    name VARCHAR(100) NOT NULL,
    scopes VARCHAR(32) NOT NULL,
    hash BLOB NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT,
    PRIMARY KEY (id),
    CONSTRAINT api_keys_prefix UNIQUE (prefix)
);

CREATE INDEX api_keys_application ON api_keys (application);

CREATE TABLE installation (
    id INTEGER NOT NULL,
    secret BLOB NOT NULL,
    PRIMARY KEY (id)
);

CREATE TABLE IF NOT EXISTS paces (
    application INTEGER NOT NULL,
    kind SMALLINT NOT NULL,
    next_at BIGINT NOT NULL,
    PRIMARY KEY (application, kind)
);

CREATE TABLE IF NOT EXISTS holdings (
    application INTEGER NOT NULL,
    holder VARCHAR(32) NOT NULL,
    events INTEGER NOT NULL,
    held_until BIGINT NOT NULL,
    PRIMARY KEY (application, holder)
);

CREATE TABLE IF NOT EXISTS breakers (
    application INTEGER NOT NULL,
    destination VARCHAR(262) NOT NULL,
    opened_at BIGINT NOT NULL,
    retry_at BIGINT NOT NULL,
    openings INTEGER NOT NULL,
    probing BOOLEAN DEFAULT 0 NOT NULL,
    reason VARCHAR(500),
    PRIMARY KEY (application, destination)
);

CREATE INDEX breakers_retry ON breakers (retry_at);

UPDATE alembic_version SET version_num='0002' WHERE alembic_version.version_num = '0001';

-- Running upgrade 0002 -> 0003

ALTER TABLE events ADD COLUMN series INTEGER;

ALTER TABLE events ADD COLUMN replayed_at BIGINT;

ALTER TABLE events ADD COLUMN operation INTEGER;

ALTER TABLE events ADD COLUMN last_status SMALLINT;

CREATE TABLE IF NOT EXISTS series (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    application INTEGER NOT NULL,
    series_id VARCHAR(111) NOT NULL,
    status SMALLINT NOT NULL,
    wake_at BIGINT,
    last_at BIGINT,
    last_index INTEGER,
    version BIGINT NOT NULL,
    name VARCHAR(200),
    rule TEXT NOT NULL,
    options TEXT,
    metadata TEXT,
    method VARCHAR(8) NOT NULL,
    url VARCHAR(2048) NOT NULL,
    headers TEXT,
    payload BLOB,
    request_hash BLOB NOT NULL,
    created_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    finished_at BIGINT,
    CONSTRAINT series_series_id UNIQUE (application, series_id)
);

CREATE INDEX series_wake ON series (wake_at, id);

CREATE TABLE IF NOT EXISTS operations (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    application INTEGER NOT NULL,
    operation_id VARCHAR(64) NOT NULL,
    action VARCHAR(16) NOT NULL,
    status SMALLINT NOT NULL,
    wake_at BIGINT,
    filter TEXT NOT NULL,
    parameters TEXT,
    place TEXT,
    newest_row BIGINT NOT NULL,
    expected INTEGER NOT NULL,
    exact BOOLEAN NOT NULL,
    examined BIGINT NOT NULL,
    changed BIGINT NOT NULL,
    skipped BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    CONSTRAINT operations_operation_id UNIQUE (application, operation_id)
);

CREATE INDEX operations_wake ON operations (wake_at, id);

CREATE INDEX operations_application ON operations (application, id);

UPDATE alembic_version SET version_num='0003' WHERE alembic_version.version_num = '0002';

-- Running upgrade 0003 -> 0004

CREATE TABLE IF NOT EXISTS tallies (
    application INTEGER NOT NULL,
    measure SMALLINT NOT NULL,
    minute INTEGER NOT NULL,
    events BIGINT NOT NULL,
    PRIMARY KEY (application, measure, minute)
);

CREATE INDEX tallies_minute ON tallies (minute);

CREATE TABLE IF NOT EXISTS workers (
    worker VARCHAR(32) NOT NULL,
    host VARCHAR(64) NOT NULL,
    pid INTEGER NOT NULL,
    version VARCHAR(32) NOT NULL,
    started_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL,
    in_hand INTEGER NOT NULL,
    PRIMARY KEY (worker)
);

UPDATE alembic_version SET version_num='0004' WHERE alembic_version.version_num = '0003';

-- Running upgrade 0004 -> 0005

ALTER TABLE events ADD COLUMN payload_removed_at BIGINT;

UPDATE alembic_version SET version_num='0005' WHERE alembic_version.version_num = '0004';

-- Running upgrade 0005 -> 0006

ALTER TABLE events ADD COLUMN followed BOOL NOT NULL DEFAULT false;

ALTER TABLE events ADD COLUMN priority SMALLINT NOT NULL DEFAULT 0;

ALTER TABLE series ADD COLUMN follows INTEGER;

ALTER TABLE applications ADD COLUMN topics TEXT;

ALTER TABLE applications ADD COLUMN stream TEXT;

ALTER TABLE applications ADD COLUMN prioritized BOOL NOT NULL DEFAULT false;

CREATE INDEX series_follows ON series (follows);

CREATE TABLE IF NOT EXISTS links (
    successor INTEGER NOT NULL,
    predecessor INTEGER NOT NULL,
    wanted SMALLINT NOT NULL,
    input BOOLEAN NOT NULL,
    PRIMARY KEY (successor)
);

CREATE INDEX links_predecessor ON links (predecessor);

CREATE TABLE IF NOT EXISTS outputs (
    event INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    headers TEXT,
    body BLOB,
    length BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (event, fence)
);

CREATE TABLE IF NOT EXISTS batches (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    application INTEGER NOT NULL,
    batch_id VARCHAR(64) NOT NULL,
    active BOOLEAN DEFAULT 1 NOT NULL,
    archive BLOB NOT NULL,
    hash BLOB NOT NULL,
    created_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    CONSTRAINT batches_batch_id UNIQUE (application, batch_id)
);

CREATE TABLE IF NOT EXISTS streams (
    application INTEGER NOT NULL,
    holder VARCHAR(32) NOT NULL,
    held_until BIGINT NOT NULL,
    failures INTEGER NOT NULL,
    reason VARCHAR(500),
    PRIMARY KEY (application)
);

CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    application INTEGER NOT NULL,
    event_id VARCHAR(128) NOT NULL,
    wake_at BIGINT NOT NULL,
    tries INTEGER NOT NULL,
    message TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE INDEX outbox_wake ON outbox (application, wake_at, id);

CREATE INDEX outbox_event ON outbox (application, event_id, id);

CREATE TABLE IF NOT EXISTS ended_sessions (
    session VARCHAR(16) NOT NULL,
    kept_until BIGINT NOT NULL,
    PRIMARY KEY (session)
);

CREATE INDEX ended_sessions_kept ON ended_sessions (kept_until);

UPDATE alembic_version SET version_num='0006' WHERE alembic_version.version_num = '0005';
