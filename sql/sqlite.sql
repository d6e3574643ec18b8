-- Cassata's tables for sqlite, at version 0001. 'cassata db upgrade' makes the same.

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
