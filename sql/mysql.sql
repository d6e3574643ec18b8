-- Cassata's tables for mysql, at version 0006. 'cassata db upgrade' makes the same.

CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

-- Running upgrade  -> 0001

CREATE TABLE applications (
    id INTEGER NOT NULL AUTO_INCREMENT,
    application_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT applications_application_id UNIQUE (application_id)
)ENGINE=InnoDB CHARSET=utf8mb4;

CREATE TABLE events (
    id BIGINT NOT NULL AUTO_INCREMENT,
    application INTEGER NOT NULL,
    event_id VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    status SMALLINT NOT NULL,
    due_at BIGINT NOT NULL,
    wake_at BIGINT,
    fence BIGINT NOT NULL,
    attempts INTEGER NOT NULL,
    lost_leases SMALLINT NOT NULL,
    cancel_requested BOOL NOT NULL DEFAULT false,
    method VARCHAR(8) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    url VARCHAR(2048) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    headers TEXT,
    payload MEDIUMBLOB,
    options TEXT,
    request_hash BINARY(32) NOT NULL,
    last_error VARCHAR(500),
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    PRIMARY KEY (id),
    CONSTRAINT events_event_id UNIQUE (application, event_id)
)ENGINE=InnoDB CHARSET=utf8mb4;

CREATE INDEX events_wake ON events (application, wake_at, id);

CREATE INDEX events_due ON events (application, due_at, id);

CREATE TABLE attempts (
    event BIGINT NOT NULL,
    fence BIGINT NOT NULL,
    number INTEGER NOT NULL,
    started_at BIGINT NOT NULL,
    duration_ms INTEGER NOT NULL,
    status_code SMALLINT,
    error VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin,
    detail VARCHAR(500),
    excerpt TEXT,
    PRIMARY KEY (event, fence)
)ENGINE=InnoDB CHARSET=utf8mb4;

INSERT INTO alembic_version (version_num) VALUES ('0001');

-- Running upgrade 0001 -> 0002

ALTER TABLE applications ADD COLUMN active BOOL NOT NULL DEFAULT true, ADD COLUMN limits TEXT, ADD COLUMN egress TEXT, ADD COLUMN metadata TEXT, ADD COLUMN secrets TEXT, ADD COLUMN changed_at BIGINT NOT NULL DEFAULT '0', ADD INDEX applications_changed (changed_at);

CREATE TABLE IF NOT EXISTS api_keys (
    id INTEGER NOT NULL AUTO_INCREMENT,
    prefix VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    application INTEGER,
    name VARCHAR(100) NOT NULL,
    scopes VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    hash BINARY(32) NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT,
    PRIMARY KEY (id),
    CONSTRAINT api_keys_prefix UNIQUE (prefix)
)ENGINE=InnoDB CHARSET=utf8mb4;

CREATE INDEX api_keys_application ON api_keys (application);

CREATE TABLE installation (
    id INTEGER NOT NULL,
    secret BINARY(32) NOT NULL,
    PRIMARY KEY (id)
)ENGINE=InnoDB CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS paces (
    application INTEGER NOT NULL,
    kind SMALLINT NOT NULL,
    next_at BIGINT NOT NULL,
    PRIMARY KEY (application, kind)
)ENGINE=InnoDB CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS holdings (
    application INTEGER NOT NULL,
    holder VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    events INTEGER NOT NULL,
    held_until BIGINT NOT NULL,
    PRIMARY KEY (application, holder)
)ENGINE=InnoDB CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS breakers (
    application INTEGER NOT NULL,
    destination VARCHAR(262) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    opened_at BIGINT NOT NULL,
    retry_at BIGINT NOT NULL,
    openings INTEGER NOT NULL,
    probing BOOL NOT NULL DEFAULT false,
    reason VARCHAR(500),
    PRIMARY KEY (application, destination)
)ENGINE=InnoDB CHARSET=utf8mb4;

CREATE INDEX breakers_retry ON breakers (retry_at);

UPDATE alembic_version SET version_num='0002' WHERE alembic_version.version_num = '0001';

-- Running upgrade 0002 -> 0003

ALTER TABLE events ADD COLUMN series INTEGER, ADD COLUMN replayed_at BIGINT, ADD COLUMN operation INTEGER, ADD COLUMN last_status SMALLINT;

CREATE TABLE IF NOT EXISTS series (
    id INTEGER NOT NULL AUTO_INCREMENT,
    application INTEGER NOT NULL,
    series_id VARCHAR(111) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    status SMALLINT NOT NULL,
    wake_at BIGINT,
    last_at BIGINT,
    last_index INTEGER,
    version BIGINT NOT NULL,
    name VARCHAR(200),
    rule TEXT NOT NULL,
    options TEXT,
    metadata TEXT,
    method VARCHAR(8) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    url VARCHAR(2048) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    headers TEXT,
    payload MEDIUMBLOB,
    request_hash BINARY(32) NOT NULL,
    created_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    finished_at BIGINT,
    PRIMARY KEY (id),
    CONSTRAINT series_series_id UNIQUE (application, series_id)
)ENGINE=InnoDB CHARSET=utf8mb4;

CREATE INDEX series_wake ON series (wake_at, id);

CREATE TABLE IF NOT EXISTS operations (
    id INTEGER NOT NULL AUTO_INCREMENT,
    application INTEGER NOT NULL,
    operation_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    action VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    status SMALLINT NOT NULL,
    wake_at BIGINT,
    filter TEXT NOT NULL,
    parameters TEXT,
    place TEXT,
    newest_row BIGINT NOT NULL,
    expected INTEGER NOT NULL,
    exact BOOL NOT NULL,
    examined BIGINT NOT NULL,
    changed BIGINT NOT NULL,
    skipped BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    PRIMARY KEY (id),
    CONSTRAINT operations_operation_id UNIQUE (application, operation_id)
)ENGINE=InnoDB CHARSET=utf8mb4;

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
)ENGINE=InnoDB CHARSET=utf8mb4;

CREATE INDEX tallies_minute ON tallies (minute);

CREATE TABLE IF NOT EXISTS workers (
    worker VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    host VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    pid INTEGER NOT NULL,
    version VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    started_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL,
    in_hand INTEGER NOT NULL,
    PRIMARY KEY (worker)
)ENGINE=InnoDB CHARSET=utf8mb4;

UPDATE alembic_version SET version_num='0004' WHERE alembic_version.version_num = '0003';

-- Running upgrade 0004 -> 0005

ALTER TABLE events ADD COLUMN payload_removed_at BIGINT;

UPDATE alembic_version SET version_num='0005' WHERE alembic_version.version_num = '0004';

-- Running upgrade 0005 -> 0006

ALTER TABLE events ADD COLUMN followed BOOL NOT NULL DEFAULT false, ADD COLUMN priority SMALLINT NOT NULL DEFAULT 0;

ALTER TABLE series ADD COLUMN follows INTEGER;

ALTER TABLE applications ADD COLUMN topics TEXT, ADD COLUMN stream TEXT, ADD COLUMN prioritized BOOL NOT NULL DEFAULT false;

CREATE INDEX series_follows ON series (follows);

CREATE TABLE IF NOT EXISTS links (
    successor BIGINT NOT NULL,
    predecessor BIGINT NOT NULL,
    wanted SMALLINT NOT NULL,
    input BOOL NOT NULL,
    PRIMARY KEY (successor)
)ENGINE=InnoDB CHARSET=utf8mb4;

CREATE INDEX links_predecessor ON links (predecessor);

CREATE TABLE IF NOT EXISTS outputs (
    event BIGINT NOT NULL,
    fence BIGINT NOT NULL,
    headers TEXT,
    body MEDIUMBLOB,
    length BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (event, fence)
)ENGINE=InnoDB CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS batches (
    id INTEGER NOT NULL AUTO_INCREMENT,
    application INTEGER NOT NULL,
    batch_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    active BOOL NOT NULL DEFAULT true,
    archive MEDIUMBLOB NOT NULL,
    hash BINARY(32) NOT NULL,
    created_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT batches_batch_id UNIQUE (application, batch_id)
)ENGINE=InnoDB CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS streams (
    application INTEGER NOT NULL,
    holder VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    held_until BIGINT NOT NULL,
    failures INTEGER NOT NULL,
    reason VARCHAR(500),
    PRIMARY KEY (application)
)ENGINE=InnoDB CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS outbox (
    id BIGINT NOT NULL AUTO_INCREMENT,
    application INTEGER NOT NULL,
    event_id VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    wake_at BIGINT NOT NULL,
    tries INTEGER NOT NULL,
    message TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (id)
)ENGINE=InnoDB CHARSET=utf8mb4;

CREATE INDEX outbox_wake ON outbox (application, wake_at, id);

CREATE INDEX outbox_event ON outbox (application, event_id, id);

CREATE TABLE IF NOT EXISTS ended_sessions (
    session VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    kept_until BIGINT NOT NULL,
    PRIMARY KEY (session)
)ENGINE=InnoDB CHARSET=utf8mb4;

CREATE INDEX ended_sessions_kept ON ended_sessions (kept_until);

UPDATE alembic_version SET version_num='0006' WHERE alembic_version.version_num = '0005';
